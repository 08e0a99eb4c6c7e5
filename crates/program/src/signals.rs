//! SIGTERM, SIGINT and SIGHUP: the first asks for a graceful stop, the second for an immediate end. SIGUSR1 and SIGUSR2
//! ask a worker to take nothing new, and to go on ([`QuietSignals`]).
//!
//! Turns signals into two [`Stop`]s and remembers the first signal's name; `worker` and `gateway` decide what stopping
//! means. Each binary installs it first of all, since the first process of a container gets no default action for an
//! unhandled signal.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::exit::ExitCode;
use crate::stop::Stop;
use crate::threads;

/// All signals that stop a program, with their names.
const STOPPING: [(i32, &str); 3] = [(SIGTERM, "SIGTERM"), (SIGINT, "SIGINT"), (SIGHUP, "SIGHUP")];
/// The signals of [`QuietSignals`], with their names.
const QUIET: [(i32, &str); 2] = [(SIGUSR1, "SIGUSR1"), (SIGUSR2, "SIGUSR2")];
/// Name of a signal whose real name was not known in time.
const UNNAMED: &str = "signal";
/// How long a first signal waits for its name. The handler stores the number at the same moment, but its thread may
/// have to wait for a processor.
const NAME_WAIT: Duration = Duration::from_millis(250);
const NAME_POLL: Duration = Duration::from_micros(200);

/// The stops that this process's signals have requested; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Stop gracefully.
    pub first: Stop,
    /// End immediately. Never triggered before `first`.
    pub second: Stop,
    /// Take nothing new, or go on.
    pub quiet: QuietSignals,
    name: Arc<OnceLock<&'static str>>,
}

/// SIGUSR1 asks a process to take nothing new, SIGUSR2 to go on; the last signal counts. Clones share it.
#[derive(Clone, Debug)]
pub struct QuietSignals {
    /// 1: the last signal was SIGUSR1; 2: it was SIGUSR2; 0: there was none.
    last: Arc<AtomicUsize>,
    /// Capacity one. Full: the receiver has not yet looked at an earlier signal, and will see the last one.
    ring: Sender<()>,
    rung: Receiver<()>,
}

impl Default for QuietSignals {
    fn default() -> Self {
        let (ring, rung) = bounded(1);
        Self { last: Arc::default(), ring, rung }
    }
}

impl QuietSignals {
    /// Whether the last signal was SIGUSR1.
    pub fn is_asked(&self) -> bool {
        self.name() == Some(QUIET[0].1)
    }

    /// The last signal's name.
    pub fn name(&self) -> Option<&'static str> {
        let index = self.last.load(Ordering::SeqCst).checked_sub(1)?;
        QUIET.get(index).map(|(_, name)| *name)
    }

    /// Receives a message after a signal; several signals may be one message.
    pub fn signalled(&self) -> &Receiver<()> {
        &self.rung
    }

    /// Handles one signal: SIGUSR1 if `quiet`, else SIGUSR2. For tests, and for programs with their own handlers.
    pub fn deliver(&self, quiet: bool) {
        self.last.store(if quiet { 1 } else { 2 }, Ordering::SeqCst);
        let _ = self.ring.try_send(());
    }

    /// Handles both signals. The handler stores the signal's number, then writes a byte; the thread `signals` reads it.
    ///
    /// # Errors
    /// The operating system refuses the socket, a handler or the thread.
    fn install(&self) -> Result<(), SignalsError> {
        let (mut wake, woken_by) = UnixStream::pair()?;
        for (index, (signal, _name)) in QUIET.iter().enumerate() {
            // In this order: the thread that the byte wakes finds the number.
            signal_hook::flag::register_usize(*signal, Arc::clone(&self.last), index + 1)?;
            signal_hook::low_level::pipe::register(*signal, woken_by.try_clone()?)?;
        }
        let ring = self.ring.clone();
        let thread = threads::spawn("signals", Stop::new(), move || -> std::io::Result<()> {
            let mut bytes = [0; 64];
            loop {
                match wake.read(&mut bytes) {
                    Ok(0) => return Ok(()),
                    Ok(_) => drop(ring.try_send(())),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        });
        match thread.join_deadline(Instant::now()) {
            Ok(ended) => Ok(ended?),
            // It runs until the process ends, like the thread of `ctrlc`; there is nothing to join it for.
            Err(_running) => Ok(()),
        }
    }
}

/// Why the signals could not be handled.
#[derive(Debug, thiserror::Error)]
enum SignalsError {
    /// The handler was not installed, for example because another is installed already.
    #[error("cannot handle signals: {0}")]
    Handler(#[from] ctrlc::Error),
    /// The operating system refused.
    #[error("cannot handle signals: {0}")]
    Register(#[from] std::io::Error),
    /// The thread that waits for SIGUSR1 and SIGUSR2 could not be started.
    #[error("cannot handle signals: {0}")]
    Thread(#[from] threads::ThreadError),
}

/// Handles the signals of this module for the whole process, then runs the program. For `main`, as its only statement.
///
/// Returns the program's exit code; [`ExitCode::Fatal`] after a line on stderr if the signals cannot be handled.
pub fn run(program: impl FnOnce(Signals) -> ExitCode) -> ExitCode {
    match install() {
        Ok(signals) => program(signals),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::Fatal
        }
    }
}

/// Handles the signals of this module for the whole process.
///
/// # Errors
/// See [`SignalsError`].
fn install() -> Result<Signals, SignalsError> {
    let signals = Signals::manual();
    let last = Arc::new(AtomicUsize::new(0));
    let (deliver, number) = (signals.clone(), Arc::clone(&last));
    // The order matters. The handler of `ctrlc` does not learn the signal's number and replaces earlier handlers;
    // `signal-hook` stores the number and chains. The other way round, no name would ever be known. `try_set_handler`
    // would refuse ignored signals: a shell ignores SIGINT for background jobs, and `nohup` ignores SIGHUP. Such a
    // signal still asks this process to stop.
    ctrlc::set_handler(move || deliver.deliver(deliver.name_for_first(&number)))?;
    for (index, (signal, _name)) in STOPPING.iter().enumerate() {
        signal_hook::flag::register_usize(*signal, Arc::clone(&last), index + 1)?;
    }
    signals.quiet.install()?;
    Ok(signals)
}

impl Signals {
    /// Makes signals that come only from [`deliver`](Self::deliver): for tests, and for programs with their own
    /// handlers.
    pub fn manual() -> Self {
        Self::default()
    }

    /// Handles one signal: the first triggers `first` and sets the name, every later one triggers `second`.
    pub fn deliver(&self, name: &'static str) {
        let later = self.name.set(name).is_err();
        self.first.trigger();
        if later {
            self.second.trigger();
        }
    }

    /// The first signal's name: `SIGTERM`, `SIGINT` or `SIGHUP`, or `signal` if it is unknown.
    pub fn name(&self) -> &'static str {
        self.name.get().copied().unwrap_or(UNNAMED)
    }

    /// Waits for the number of the signal that woke the `ctrlc` thread. Only the first signal needs a name; a second
    /// must not wait.
    fn name_for_first(&self, number: &AtomicUsize) -> &'static str {
        let deadline = Instant::now() + NAME_WAIT;
        while !self.first.is_triggered() {
            if let Some(name) = number.load(Ordering::SeqCst).checked_sub(1).and_then(|index| STOPPING.get(index)) {
                return name.1;
            }
            if Instant::now() >= deadline {
                break;
            }
            // A signal handler may only set a flag, so this polls. `second` is never triggered before `first`.
            let _ = self.second.sleep(NAME_POLL);
        }
        UNNAMED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_signal_triggers_first_stop_and_later_ones_the_second() {
        let signals = Signals::manual();
        assert_eq!(signals.name(), "signal");
        assert!(!signals.first.is_triggered());
        signals.deliver("SIGINT");
        assert!(signals.first.is_triggered());
        assert!(!signals.second.is_triggered());
        signals.clone().deliver("SIGTERM");
        assert!(signals.second.is_triggered());
        assert_eq!(signals.name(), "SIGINT");
    }

    #[test]
    fn first_signal_waits_for_its_late_name() {
        let signals = Signals::manual();
        let number = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let name = scope.spawn(|| signals.name_for_first(&number));
            number.store(3, Ordering::SeqCst);
            assert_eq!(name.join().expect("no panic"), "SIGHUP");
        });
    }

    #[test]
    fn wait_for_a_missing_name_is_limited() {
        let started = Instant::now();
        assert_eq!(Signals::manual().name_for_first(&AtomicUsize::new(0)), "signal");
        assert!(started.elapsed() >= NAME_WAIT);
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn last_of_several_quiet_signals_counts_and_rings_once() {
        let quiet = Signals::manual().quiet;
        assert!(!quiet.is_asked() && quiet.name().is_none());
        for (asked, name) in [(true, "SIGUSR1"), (false, "SIGUSR2"), (true, "SIGUSR1")] {
            quiet.clone().deliver(asked);
            assert_eq!((quiet.is_asked(), quiet.name()), (asked, Some(name)));
        }
        assert!(quiet.signalled().try_recv().is_ok());
        assert!(quiet.signalled().try_recv().is_err());
    }

    #[test]
    fn second_signal_does_not_wait_for_its_name() {
        let signals = Signals::manual();
        signals.deliver("SIGTERM");
        assert_eq!(signals.name_for_first(&AtomicUsize::new(0)), "signal");
    }
}
