//! The one way to tell threads to stop: a flag for those who poll, a channel for those who `select!`.
//!
//! A [`Stop`] is triggered once and stays triggered. It carries no reason and no deadline; whoever drains owns those.
//! Called by everything that loops, waits or backs off.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

/// A request to stop; clones share it.
#[derive(Clone, Debug)]
pub struct Stop {
    shared: Arc<Shared>,
    /// Outside of `Shared`, so that `select!` can borrow it without a lock.
    triggered: Receiver<Infallible>,
}

#[derive(Debug)]
struct Shared {
    flag: AtomicBool,
    /// Never sent on: dropping it is the message, and reaches any number of receivers, also later ones.
    sender: Mutex<Option<Sender<Infallible>>>,
}

/// The typed outcome of a wait that was told to stop; not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped")]
pub struct Stopped;

impl Stop {
    /// A stop that nobody has asked for yet.
    pub fn new() -> Self {
        let (sender, triggered) = bounded(0);
        let shared = Shared { flag: AtomicBool::new(false), sender: Mutex::new(Some(sender)) };
        Self { shared: Arc::new(shared), triggered }
    }

    /// Asks everybody to stop. `true` for the first caller, `false` for all later ones.
    pub fn trigger(&self) -> bool {
        let first = !self.shared.flag.swap(true, Ordering::SeqCst);
        // Taken under the lock, dropped after it: disconnecting wakes others.
        let sender = self.shared.sender.lock().take();
        drop(sender);
        first
    }

    /// Whether a stop was asked for.
    pub fn is_triggered(&self) -> bool {
        self.shared.flag.load(Ordering::SeqCst)
    }

    /// Becomes ready, by disconnecting, once a stop is asked for, and stays ready. A loop that selects on it has to leave
    /// (or to replace it by [`never`](crossbeam_channel::never)), else it spins.
    pub fn triggered(&self) -> &Receiver<Infallible> {
        &self.triggered
    }

    /// `Err(Stopped)` once a stop was asked for, for the `?` of a long computation.
    pub fn check(&self) -> Result<(), Stopped> {
        if self.is_triggered() { Err(Stopped) } else { Ok(()) }
    }

    /// Sleeps for `duration`, or until a stop is asked for.
    pub fn sleep(&self, duration: Duration) -> Result<(), Stopped> {
        match self.triggered.recv_timeout(duration) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(Stopped),
            Ok(never) => match never {},
        }
    }

    /// Waits until a stop is asked for, however long that takes.
    pub fn wait(&self) {
        match self.triggered.recv() {
            Err(_disconnected) => {}
            Ok(never) => match never {},
        }
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use crossbeam_channel::select;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn only_the_first_trigger_is_the_first() {
        let stop = Stop::new();
        assert!(!stop.is_triggered());
        assert_eq!(stop.check(), Ok(()));
        assert!(stop.trigger());
        assert!(!stop.clone().trigger());
        assert!(stop.is_triggered());
        assert_eq!(stop.check(), Err(Stopped));
    }

    #[test]
    fn a_sleep_lasts_its_time_when_nobody_stops_it() {
        let started = Instant::now();
        assert_eq!(Stop::new().sleep(Duration::from_millis(20)), Ok(()));
        assert!(started.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn every_sleeper_and_selector_wakes() {
        let stop = Stop::new();
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(stop.sleep(LONG), Err(Stopped)));
                scope.spawn(|| stop.wait());
                scope.spawn(|| {
                    select! {
                        recv(stop.triggered()) -> _ => {}
                        default(LONG) => panic!("the stop did not reach select!"),
                    }
                });
            }
            stop.trigger();
        });
        assert!(started.elapsed() < SOON);
    }

    #[test]
    fn a_later_clone_is_triggered_too() {
        let stop = Stop::new();
        stop.trigger();
        assert_eq!(stop.clone().sleep(LONG), Err(Stopped));
    }

    #[test]
    fn a_stop_dropped_elsewhere_is_not_triggered() {
        let stop = Stop::new();
        drop(stop.clone());
        assert_eq!(stop.sleep(Duration::from_millis(1)), Ok(()));
    }
}
