//! Tells threads to stop: a flag for threads that poll, a channel for threads that `select!`.
//!
//! A [`Stop`] is triggered once and stays triggered. It carries no reason and no deadline; the draining program has
//! those. Called by everything that loops, waits or backs off.

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
    /// Nothing is sent on it: dropping it reaches any number of receivers, including later ones.
    sender: Mutex<Option<Sender<Infallible>>>,
}

/// Outcome of a wait that a stop has ended; not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped")]
pub struct Stopped;

impl Stop {
    /// Makes a stop that is not triggered.
    pub fn new() -> Self {
        let (sender, triggered) = bounded(0);
        let shared = Shared { flag: AtomicBool::new(false), sender: Mutex::new(Some(sender)) };
        Self { shared: Arc::new(shared), triggered }
    }

    /// Triggers the stop. Returns `true` for the first caller, `false` for all later ones.
    pub fn trigger(&self) -> bool {
        let first = !self.shared.flag.swap(true, Ordering::SeqCst);
        // Dropped outside the lock, since disconnecting wakes other threads.
        let sender = self.shared.sender.lock().take();
        drop(sender);
        first
    }

    /// Whether the stop was triggered.
    pub fn is_triggered(&self) -> bool {
        self.shared.flag.load(Ordering::SeqCst)
    }

    /// Becomes ready, by disconnecting, once the stop is triggered, and stays ready. A loop that selects on it must
    /// then end, or replace it by [`never`](crossbeam_channel::never); otherwise it spins.
    pub fn triggered(&self) -> &Receiver<Infallible> {
        &self.triggered
    }

    /// Returns `Err(Stopped)` once triggered, for the `?` of a long computation.
    pub fn check(&self) -> Result<(), Stopped> {
        if self.is_triggered() { Err(Stopped) } else { Ok(()) }
    }

    /// Sleeps for `duration`, or until the stop is triggered.
    pub fn sleep(&self, duration: Duration) -> Result<(), Stopped> {
        match self.triggered.recv_timeout(duration) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(Stopped),
            Ok(never) => match never {},
        }
    }

    /// Waits until the stop is triggered, without a limit.
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
    fn trigger_returns_true_only_once() {
        let stop = Stop::new();
        assert!(!stop.is_triggered());
        assert_eq!(stop.check(), Ok(()));
        assert!(stop.trigger());
        assert!(!stop.clone().trigger());
        assert!(stop.is_triggered());
        assert_eq!(stop.check(), Err(Stopped));
    }

    #[test]
    fn sleep_without_a_stop_lasts_its_time() {
        let started = Instant::now();
        assert_eq!(Stop::new().sleep(Duration::from_millis(20)), Ok(()));
        assert!(started.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn stop_wakes_every_sleeper_and_selector() {
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
    fn clone_made_after_the_trigger_is_triggered() {
        let stop = Stop::new();
        stop.trigger();
        assert_eq!(stop.clone().sleep(LONG), Err(Stopped));
    }

    #[test]
    fn dropping_a_clone_does_not_trigger_the_stop() {
        let stop = Stop::new();
        drop(stop.clone());
        assert_eq!(stop.sleep(Duration::from_millis(1)), Ok(()));
    }
}
