//! The one way to start a thread: named, owned, joined, and never dead unnoticed.
//!
//! A thread that returns an error or unwinds triggers its `on_death`, so that its siblings stop, too; whoever owns the
//! [`Thread`] joins it. Nothing else in the library spawns.

use crate::stop::Stop;
use crossbeam_channel::{Receiver, bounded};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Longest name that Linux shows (`pthread_setname_np(3)`).
const LONGEST_NAME: usize = 15;

/// How a thread ended badly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThreadError {
    /// Its body returned an error.
    #[error("thread {name} ended: {error}")]
    Failed {
        /// The thread.
        name: String,
        /// What its body returned.
        error: String,
    },
    /// Its body unwound.
    #[error("thread {name} panicked: {message}")]
    Panicked {
        /// The thread.
        name: String,
        /// The panic's message.
        message: String,
    },
}

/// A running thread; to be joined by its owner.
#[derive(Debug)]
pub struct Thread {
    name: String,
    ended: Receiver<Result<(), ThreadError>>,
    handle: std::thread::JoinHandle<()>,
}

/// Starts a thread named `name` (at most 15 bytes). An error or a panic of `body` is logged and triggers `on_death`.
///
/// # Panics
/// When the operating system has no thread to give, which nothing here could live without.
pub fn spawn<E: Display>(name: &str, on_death: Stop, body: impl FnOnce() -> Result<(), E> + Send + 'static) -> Thread {
    debug_assert!(name.len() <= LONGEST_NAME, "thread name {name:?} is longer than Linux shows");
    let (told, ended) = bounded(1);
    let of_thread = name.to_owned();
    let run = move || {
        let outcome = match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(ThreadError::Failed { name: of_thread, error: error.to_string() }),
            Err(panic) => Err(ThreadError::Panicked { name: of_thread, message: panic_message(&*panic) }),
        };
        if let Err(error) = &outcome {
            log::error!("{error}");
            on_death.trigger();
        }
        // Capacity one and one outcome: never full. Disconnected: the owner did not wait for it.
        let _ = told.try_send(outcome);
    };
    #[expect(clippy::disallowed_methods, reason = "the one place")]
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    #[expect(clippy::expect_used, reason = "see Panics")]
    let handle = started.expect("the operating system starts a thread");
    Thread { name: name.to_owned(), ended, handle }
}

impl Thread {
    /// The name it was started with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True when its body has returned.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// How it ended badly.
    pub fn join(self) -> Result<(), ThreadError> {
        let outcome = self.ended.recv();
        // The body cannot unwind past `catch_unwind`, so the join only waits for the last instruction.
        let _ = self.handle.join();
        outcome.unwrap_or(Ok(()))
    }

    /// Waits for its end until `deadline`; gives the thread back if it has not ended by then.
    ///
    /// # Errors
    /// The thread itself, still running.
    pub fn join_deadline(self, deadline: Instant) -> Result<Result<(), ThreadError>, Self> {
        match self.ended.recv_deadline(deadline) {
            Ok(outcome) => {
                let _ = self.handle.join();
                Ok(outcome)
            }
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => Ok(self.join()),
            Err(crossbeam_channel::RecvTimeoutError::Timeout) => Err(self),
        }
    }
}

/// The text of a panic's payload, which is a string unless somebody went out of their way.
#[must_use]
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_good_end_disturbs_nobody() {
        let stop = Stop::new();
        let thread = spawn("good", stop.clone(), || Ok::<(), String>(()));
        assert_eq!(thread.name(), "good");
        assert_eq!(thread.join(), Ok(()));
        assert!(!stop.is_triggered());
    }

    #[test]
    fn an_error_stops_the_siblings() {
        let stop = Stop::new();
        let thread = spawn("failing", stop.clone(), || Err("no luck"));
        let error = ThreadError::Failed { name: "failing".into(), error: "no luck".into() };
        assert_eq!(thread.join(), Err(error));
        assert!(stop.is_triggered());
    }

    #[test]
    fn a_panic_stops_the_siblings() {
        let stop = Stop::new();
        let thread = spawn("panicking", stop.clone(), || -> Result<(), String> { panic!("out of {}", "cheese") });
        let error = ThreadError::Panicked { name: "panicking".into(), message: "out of cheese".into() };
        assert_eq!(thread.join(), Err(error));
        assert!(stop.is_triggered());
    }

    #[test]
    fn a_join_with_a_deadline_gives_a_running_thread_back() {
        let release = Stop::new();
        let waiting = release.clone();
        let thread = spawn("waiting", Stop::new(), move || {
            let _ = waiting.sleep(Duration::from_secs(60));
            Ok::<(), String>(())
        });
        let thread = thread.join_deadline(Instant::now() + Duration::from_millis(20)).expect_err("it still waits");
        assert!(!thread.is_finished());
        release.trigger();
        let joined = thread.join_deadline(Instant::now() + Duration::from_secs(30));
        assert!(matches!(joined, Ok(Ok(()))));
    }
}
