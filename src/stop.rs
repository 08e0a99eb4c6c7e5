//! A stop: a flag for those who poll, and a channel for those who `select!`.
//!
//! Stopping is an outcome, not an error: [`Stop::check`] and [`Stop::sleep`] unwind a long wait with `?`, and the top says
//! "stopped".

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Somebody asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped")]
pub struct Stopped;

/// A request to stop that many can wait for. Clones share it; once triggered it stays so.
#[derive(Clone, Debug)]
pub struct Stop {
    shared: Arc<Shared>,
    triggered: Receiver<Infallible>,
}

#[derive(Debug)]
struct Shared {
    flag: AtomicBool,
    /// Nothing is ever sent: dropping it disconnects all receivers, which wakes every `select!` at once.
    open: Mutex<Option<Sender<Infallible>>>,
}

impl Stop {
    /// A stop that nobody has triggered.
    #[must_use]
    pub fn new() -> Self {
        let (open, triggered) = bounded(0);
        Self { shared: Arc::new(Shared { flag: AtomicBool::new(false), open: Mutex::new(Some(open)) }), triggered }
    }

    /// Triggers it. True for the first caller.
    pub fn trigger(&self) -> bool {
        let first = !self.shared.flag.swap(true, Ordering::AcqRel);
        let open = self.shared.open.lock().take();
        drop(open);
        first
    }

    /// Whether it was triggered.
    #[must_use]
    pub fn is_triggered(&self) -> bool {
        self.shared.flag.load(Ordering::Acquire)
    }

    /// Disconnects when it is triggered and never carries a value: `recv(stop.triggered()) -> _ => …`.
    #[must_use]
    pub fn triggered(&self) -> &Receiver<Infallible> {
        &self.triggered
    }

    /// Sleeps for `duration`, or until it is triggered.
    ///
    /// # Errors
    /// [`Stopped`] when it is triggered before the time is over.
    pub fn sleep(&self, duration: Duration) -> Result<(), Stopped> {
        match self.triggered.recv_timeout(duration) {
            Ok(never) => match never {},
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(Stopped),
        }
    }

    /// `Err` once it is triggered.
    ///
    /// # Errors
    /// [`Stopped`] when it was triggered.
    pub fn check(&self) -> Result<(), Stopped> {
        if self.is_triggered() { Err(Stopped) } else { Ok(()) }
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn the_first_trigger_is_told_apart() {
        let stop = Stop::new();
        assert!(!stop.is_triggered() && stop.check().is_ok());
        assert!(stop.clone().trigger());
        assert!(!stop.trigger());
        assert_eq!(stop.check(), Err(Stopped));
    }

    #[test]
    fn a_sleeper_wakes_when_another_thread_triggers() {
        let stop = Stop::new();
        let asleep = Instant::now();
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| stop.sleep(Duration::from_secs(60)));
            stop.trigger();
            assert_eq!(sleeper.join().unwrap(), Err(Stopped));
        });
        assert!(asleep.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_sleep_ends_by_itself() {
        assert_eq!(Stop::new().sleep(Duration::from_millis(1)), Ok(()));
    }
}
