//! Looks broker names up on threads of its own: the system's resolver can take a minute and cannot be interrupted.
//!
//! A caller's wait is limited and can be interrupted; the look-up continues and its result is kept. Each look-up has
//! one thread, and there are at most [`MOST_LOOKUPS`] of them. Called by [`dial`](super::dial).

use std::collections::HashMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::select;
use parking_lot::Mutex;

use super::interrupt::Interrupter;
use program::stop::Stop;
use program::threads::{self, Thread};

/// How long a result counts as new. Short, since a container platform moves a broker to a new address under the same
/// name.
const FRESH: Duration = Duration::from_secs(10);
/// How long to wait for a new result if an old one exists.
const STALE_WAIT: Duration = Duration::from_millis(250);
/// Most look-ups at the same time.
const MOST_LOOKUPS: usize = 4;
/// Most names remembered; a cluster has a few dozen.
const MOST_NAMES: usize = 256;
/// How long an address that took no connection is tried after the others.
const BAD: Duration = Duration::from_secs(30);

type LookUp = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// The names of one client's brokers; clones share them.
#[derive(Clone)]
pub(super) struct Resolver {
    look_up: Arc<LookUp>,
    shared: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    names: HashMap<String, Name>,
    /// Threads of the look-ups that have not been joined.
    threads: Vec<Thread>,
}

#[derive(Default)]
struct Name {
    /// The last result in its order; empty before the first.
    addresses: Vec<IpAddr>,
    fresh_until: Option<Instant>,
    /// Why the last look-up failed.
    failure: Option<String>,
    /// The current look-up; triggered at its end.
    pending: Option<Stop>,
    /// Number of calls so far, which rotates the addresses.
    turn: usize,
    /// Addresses that took no connection, and since when.
    bad: HashMap<IpAddr, Instant>,
}

impl Default for Resolver {
    /// The system's resolver.
    fn default() -> Self {
        let addresses = |host: &str| (host, 0).to_socket_addrs().map(|found| found.map(|found| found.ip()).collect());
        Self { look_up: Arc::new(addresses), shared: Arc::default() }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolver {
    /// Returns the addresses of `host` in the order to try them. Each call begins with another address, since the first
    /// may belong to a frozen broker. Addresses that lately took no connection come last.
    ///
    /// # Errors
    /// `TimedOut` after `limit`; `Interrupted`; the error of the system's resolver. If an earlier result exists, it is
    /// returned instead of a timeout or a resolver's error.
    pub(super) fn addresses(&self, host: &str, limit: Duration, interrupter: &Interrupter) -> io::Result<Vec<IpAddr>> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let Some((pending, has_old)) = self.begin(host)? else { return self.known(host) };
        let limit = if has_old { limit.min(STALE_WAIT) } else { limit };
        select! {
            recv(pending.triggered()) -> _ => {}
            recv(interrupter.triggered()) -> _ => return Err(ErrorKind::Interrupted.into()),
            default(limit) => {}
        }
        self.known(host)
    }

    /// Remembers that `address` took no connection. If no address of the name took one, the name is looked up again.
    pub(super) fn failed(&self, host: &str, address: IpAddr) {
        let mut state = self.shared.lock();
        let Some(name) = state.names.get_mut(host) else { return };
        name.bad.insert(address, Instant::now());
        if name.addresses.iter().all(|address| name.bad.contains_key(address)) {
            name.fresh_until = None;
        }
    }

    /// Joins the name's current look-up or starts one; `None` if none is needed. Also returns whether an earlier result
    /// exists.
    fn begin(&self, host: &str) -> io::Result<Option<(Stop, bool)>> {
        let mut state = self.shared.lock();
        let State { names, threads } = &mut *state;
        if names.len() >= MOST_NAMES && !names.contains_key(host) {
            names.retain(|_, name| name.pending.is_some());
        }
        let name = names.entry(host.to_owned()).or_default();
        let has_old = !name.addresses.is_empty();
        if let Some(pending) = name.pending.clone().filter(|pending| !pending.is_triggered()) {
            return Ok(Some((pending, has_old)));
        }
        if name.fresh_until.is_some_and(|until| Instant::now() < until) {
            return Ok(None);
        }
        for ended in threads.extract_if(.., |thread| thread.is_finished()) {
            // A panic in the system's resolver was already logged.
            let _ = ended.join();
        }
        if threads.len() >= MOST_LOOKUPS {
            let text = format!("{MOST_LOOKUPS} look-ups of names have not ended");
            return if has_old { Ok(None) } else { Err(io::Error::new(ErrorKind::TimedOut, text)) };
        }
        let pending = Stop::new();
        name.pending = Some(pending.clone());
        name.failure = None;
        // Triggered when the thread ends for any reason, and when no thread could be started.
        let ended = OnDrop(pending.clone());
        let (look_up, shared, host) = (Arc::clone(&self.look_up), Arc::clone(&self.shared), host.to_owned());
        threads.push(threads::spawn("resolve", Stop::new(), move || -> io::Result<()> {
            let found = look_up(&host);
            if let Some(name) = shared.lock().names.get_mut(&host) {
                name.take(found);
            }
            drop(ended);
            Ok(())
        }));
        Ok(Some((pending, has_old)))
    }

    /// Returns the known addresses of `host`.
    fn known(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let mut state = self.shared.lock();
        let name = state.names.entry(host.to_owned()).or_default();
        if name.addresses.is_empty() {
            return Err(match &name.failure {
                Some(text) => io::Error::other(text.clone()),
                None => io::Error::new(ErrorKind::TimedOut, "the name server does not answer"),
            });
        }
        name.bad.retain(|_, since| since.elapsed() < BAD);
        let mut addresses = name.addresses.clone();
        let first = name.turn % addresses.len();
        name.turn = name.turn.wrapping_add(1);
        addresses.rotate_left(first);
        addresses.sort_by_key(|address| name.bad.contains_key(address));
        Ok(addresses)
    }
}

impl Name {
    /// Takes the result of a look-up. A failure keeps the earlier result.
    fn take(&mut self, found: io::Result<Vec<IpAddr>>) {
        self.pending = None;
        match found {
            Ok(mut addresses) => {
                let mut seen = std::collections::HashSet::new();
                addresses.retain(|address| seen.insert(*address));
                self.failure = addresses.is_empty().then(|| "the name has no address".to_owned());
                self.fresh_until = Some(Instant::now() + FRESH);
                self.addresses = addresses;
            }
            Err(error) => self.failure = Some(error.to_string()),
        }
    }
}

struct OnDrop(Stop);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.trigger();
    }
}

#[cfg(test)]
impl Resolver {
    pub(super) fn with(look_up: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        Self { look_up: Arc::new(look_up), shared: Arc::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SOON: Duration = Duration::from_secs(5);

    fn addresses(last: impl IntoIterator<Item = u8>) -> Vec<IpAddr> {
        last.into_iter().map(|last| IpAddr::from([10, 0, 0, last])).collect()
    }

    /// Makes the last result old.
    fn expire(resolver: &Resolver) {
        resolver.shared.lock().names.values_mut().for_each(|name| name.fresh_until = None);
    }

    #[test]
    fn numeric_addresses_are_not_looked_up() {
        let resolver = Resolver::with(|host| panic!("{host} was looked up"));
        let found = resolver.addresses("10.0.0.7", LONG, &Interrupter::new()).expect("a number");
        assert_eq!(found, addresses([7]));
    }

    #[test]
    fn result_is_kept_and_each_call_begins_with_another_address() {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let resolver = Resolver::with(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            // The system lists an address twice if the name is in two places.
            Ok(addresses([1, 2, 1, 3]))
        });
        let interrupter = Interrupter::new();
        let ask = || resolver.addresses("kafka", LONG, &interrupter).expect("found");
        assert_eq!([ask(), ask(), ask(), ask()], [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]].map(addresses));
        assert_eq!(count.load(Ordering::SeqCst), 1);
        resolver.failed("kafka", addresses([2])[0]);
        assert_eq!([ask(), ask()], [[3, 1, 2], [3, 1, 2]].map(addresses), "a refused address comes last");
        // No address takes a connection: the broker may have moved.
        resolver.failed("kafka", addresses([1])[0]);
        resolver.failed("kafka", addresses([3])[0]);
        ask();
        // The old result is returned while the new look-up takes long.
        let deadline = Instant::now() + SOON;
        while count.load(Ordering::SeqCst) < 2 {
            assert!(Instant::now() < deadline, "it is not looked up again");
            std::thread::yield_now();
        }
    }

    #[test]
    fn wait_for_hanging_look_up_is_limited_and_it_is_not_started_twice() {
        let (release, hangs) = crossbeam_channel::bounded::<()>(0);
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let resolver = Resolver::with(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = hangs.recv();
            Ok(addresses([1]))
        });
        let interrupter = Interrupter::new();
        let limit = Duration::from_millis(30);
        let since = Instant::now();
        for _ in 0..5 {
            let error = resolver.addresses("kafka", limit, &interrupter).expect_err("it hangs");
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        }
        assert!(count.load(Ordering::SeqCst) <= 1);
        for name in ["a", "b", "c", "d", "e"] {
            let error = resolver.addresses(name, limit, &interrupter).expect_err("they hang");
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        }
        assert!(count.load(Ordering::SeqCst) <= MOST_LOOKUPS);
        assert_eq!(resolver.shared.lock().threads.len(), MOST_LOOKUPS);
        assert!(since.elapsed() < SOON);
        drop(release);
        assert_eq!(resolver.addresses("kafka", LONG, &interrupter).expect("it came late"), addresses([1]));
        let deadline = Instant::now() + SOON;
        while resolver.addresses("e", LONG, &interrupter).is_err() {
            assert!(Instant::now() < deadline, "there is no room again");
        }
    }

    #[test]
    fn earlier_result_stands_in_while_name_server_is_unreachable() {
        let (release, hangs) = crossbeam_channel::bounded::<()>(0);
        let count = AtomicUsize::new(0);
        let resolver = Resolver::with(move |_| match count.fetch_add(1, Ordering::SeqCst) {
            0 => Ok(addresses([1])),
            1 => Err(io::Error::other("temporary failure")),
            _ => {
                let _ = hangs.recv();
                Ok(addresses([2]))
            }
        });
        let interrupter = Interrupter::new();
        for round in 0..3 {
            let since = Instant::now();
            let found = resolver.addresses("kafka", LONG, &interrupter).expect("known");
            assert_eq!(found, addresses([1]), "round {round}");
            assert!(since.elapsed() < SOON, "round {round}");
            expire(&resolver);
        }
        drop(release);
        let deadline = Instant::now() + SOON;
        while resolver.addresses("kafka", LONG, &interrupter).expect("known") != addresses([2]) {
            assert!(Instant::now() < deadline, "the late result is not taken");
        }
    }

    #[test]
    fn interrupt_ends_wait_for_look_up() {
        let (release, hangs) = crossbeam_channel::bounded::<()>(0);
        let resolver = Resolver::with(move |_| {
            let _ = hangs.recv();
            Ok(Vec::new())
        });
        let interrupter = Interrupter::new();
        let since = Instant::now();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| resolver.addresses("kafka", LONG, &interrupter));
            interrupter.interrupt();
            let error = waiting.join().expect("no panic").expect_err("interrupted");
            assert_eq!(error.kind(), ErrorKind::Interrupted);
        });
        assert!(since.elapsed() < SOON);
        drop(release);
    }

    #[test]
    fn failed_look_up_reports_the_systems_error() {
        let empty = Resolver::with(|_| Ok(Vec::new()));
        let error = empty.addresses("kafka", LONG, &Interrupter::new()).expect_err("nothing");
        assert_eq!(error.to_string(), "the name has no address");
        let error = Resolver::default().addresses("no.such.name.invalid", LONG, &Interrupter::new());
        assert!(error.is_err(), "{error:?}");
    }
}
