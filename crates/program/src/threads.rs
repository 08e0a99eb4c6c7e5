//! Starts every thread of the programs.
//!
//! A thread has a name, returns a `Result`, is joined by whoever started it, and cannot die unnoticed: an error or a panic is
//! logged and triggers the stop that its owner named. There is no pool here, and no way to detach.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::stop::Stop;

/// What the kernel keeps of a thread's name, in bytes (`TASK_COMM_LEN` less its end).
pub const NAME_LIMIT: usize = 15;

/// How a thread ended when it did not end well. It was logged where it happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThreadError {
    /// The operating system gave no thread.
    #[error("thread {name} could not be started: {reason}")]
    NotStarted {
        /// The thread's name.
        name: String,
        /// What the operating system said.
        reason: String,
    },
    /// The body returned an error.
    #[error("thread {name} failed: {reason}")]
    Failed {
        /// The thread's name.
        name: String,
        /// The error, as it displays itself.
        reason: String,
    },
    /// The body panicked.
    #[error("thread {name} panicked: {}", .message.escape_debug())]
    Panicked {
        /// The thread's name.
        name: String,
        /// The panic's message.
        message: String,
    },
}

/// The handle of one thread. It has to be joined; dropping it would detach the thread.
#[derive(Debug)]
#[must_use = "every thread is joined"]
pub struct Thread {
    name: String,
    /// Gets the one outcome right before the thread ends; of capacity one, so that the thread never waits for its joiner.
    outcome: Receiver<Result<(), ThreadError>>,
    handle: Option<JoinHandle<()>>,
}

/// Starts a thread that runs `body`. When it returns an error, panics or cannot be started, that is logged and `on_death` is
/// triggered; a body that was told to stop therefore returns `Ok`.
///
/// `name` has at most [`NAME_LIMIT`] bytes, since the kernel shows no more.
pub fn spawn<E: Display>(name: &str, on_death: Stop, body: impl FnOnce() -> Result<(), E> + Send + 'static) -> Thread {
    debug_assert!((1..=NAME_LIMIT).contains(&name.len()), "thread name {name:?} has 1 to {NAME_LIMIT} bytes");
    let (report, outcome) = bounded(1);
    let to_report = report.clone();
    let death = on_death.clone();
    let thread_name = name.to_owned();
    #[expect(clippy::disallowed_methods, reason = "the one place that starts threads")]
    let started = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || settle(run(&thread_name, body), &to_report, &death));
    let handle = match started {
        Ok(handle) => Some(handle),
        Err(error) => {
            let error = ThreadError::NotStarted { name: name.to_owned(), reason: error.to_string() };
            settle(Err(error), &report, &on_death);
            None
        }
    };
    Thread { name: name.to_owned(), outcome, handle }
}

/// Runs the body and turns every way of ending into a value.
fn run<E: Display>(name: &str, body: impl FnOnce() -> Result<(), E>) -> Result<(), ThreadError> {
    // Nothing of the body is used after a panic, so nothing broken can be seen: it owns what it was given.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(ThreadError::Failed { name: name.to_owned(), reason: error.to_string() }),
        Err(payload) => Err(ThreadError::Panicked { name: name.to_owned(), message: panic_message(payload.as_ref()) }),
    }
}

/// Logs and reports an outcome; a bad one triggers the stop first, so that nobody waits for a log line.
fn settle(outcome: Result<(), ThreadError>, report: &Sender<Result<(), ThreadError>>, on_death: &Stop) {
    if let Err(error) = &outcome {
        on_death.trigger();
        log::error!("{error}");
    }
    // Capacity one and sent once: fails only when the handle is gone, and then nobody asks.
    let _ = report.try_send(outcome);
}

/// The text of a panic; panics may carry anything, but `panic!` carries one of these two.
pub fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("(no message)").to_owned()
}

impl Thread {
    /// The name it was started under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its body has ended. It may still take a moment to vanish; [`join`](Self::join) waits for that.
    pub fn is_finished(&self) -> bool {
        !self.outcome.is_empty() || self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the thread has ended, however long that takes.
    pub fn join(self) -> Result<(), ThreadError> {
        let outcome = self.outcome.recv();
        self.finish(outcome.ok())
    }

    /// Waits until the thread has ended, at most until `deadline`; gives the handle back when it has not.
    pub fn join_deadline(self, deadline: Instant) -> Result<Result<(), ThreadError>, Thread> {
        match self.outcome.recv_deadline(deadline) {
            Ok(outcome) => Ok(self.finish(Some(outcome))),
            Err(RecvTimeoutError::Disconnected) => Ok(self.finish(None)),
            Err(RecvTimeoutError::Timeout) => Err(self),
        }
    }

    /// Lets the ended thread vanish. Without an outcome it died while reporting one, which only a panicking logger can cause.
    fn finish(self, outcome: Option<Result<(), ThreadError>>) -> Result<(), ThreadError> {
        let vanished = self.handle.map_or(Ok(()), JoinHandle::join);
        match (outcome, vanished) {
            (Some(outcome), _) => outcome,
            (None, Ok(())) => Err(ThreadError::Panicked { name: self.name, message: "(no outcome)".to_owned() }),
            (None, Err(payload)) => {
                Err(ThreadError::Panicked { name: self.name, message: panic_message(payload.as_ref()) })
            }
        }
    }
}

/// Joins all of them, and returns the first error; all were logged when they happened.
pub fn join_all(threads: impl IntoIterator<Item = Thread>) -> Result<(), ThreadError> {
    // Collected before judged: the threads after a failed one are joined too.
    let outcomes: Vec<_> = threads.into_iter().map(Thread::join).collect();
    outcomes.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_good_end_triggers_nothing() {
        let on_death = Stop::new();
        let thread = spawn("good", on_death.clone(), || Ok::<(), Infallible>(()));
        assert_eq!(thread.name(), "good");
        assert_eq!(thread.join(), Ok(()));
        assert!(!on_death.is_triggered());
    }

    #[test]
    fn the_kernel_knows_the_name() {
        let name = || std::thread::current().name().map(str::to_owned);
        let (send, receive) = bounded(1);
        let thread = spawn("fifteen-bytes-x", Stop::new(), move || send.send(name()));
        assert_eq!(receive.recv_timeout(LIMIT).expect("the thread reports"), Some("fifteen-bytes-x".to_owned()));
        assert_eq!(thread.join(), Ok(()));
    }

    #[test]
    fn an_error_triggers_the_stop_and_is_returned() {
        let on_death = Stop::new();
        let thread = spawn("failing", on_death.clone(), || Err("no more disk"));
        assert_eq!(on_death.sleep(LIMIT), Err(crate::stop::Stopped));
        let error = ThreadError::Failed { name: "failing".to_owned(), reason: "no more disk".to_owned() };
        assert_eq!(thread.join(), Err(error));
    }

    #[test]
    fn a_panic_triggers_the_stop_and_is_returned() {
        let on_death = Stop::new();
        let number = 3;
        let thread = spawn("panicking", on_death.clone(), move || -> Result<(), Infallible> { panic!("at {number}") });
        assert_eq!(on_death.sleep(LIMIT), Err(crate::stop::Stopped));
        let error = ThreadError::Panicked { name: "panicking".to_owned(), message: "at 3".to_owned() };
        assert_eq!(thread.join(), Err(error));
    }

    #[test]
    fn a_join_with_a_deadline_gives_the_handle_back() {
        let stop = Stop::new();
        let until = stop.clone();
        let thread = spawn("waiting", Stop::new(), move || {
            until.wait();
            Ok::<(), Infallible>(())
        });
        assert!(!thread.is_finished());
        let thread = thread.join_deadline(Instant::now()).expect_err("it still waits");
        stop.trigger();
        let outcome = thread.join_deadline(Instant::now() + LIMIT).expect("it was told to end");
        assert_eq!(outcome, Ok(()));
    }

    #[test]
    fn all_are_joined_and_the_first_error_is_returned() {
        let late = Stop::new();
        let (running, rest) = (late.clone(), late.clone());
        let first = spawn("first", late, || Err("first"));
        let second = spawn("second", rest, move || {
            running.wait();
            Err("second")
        });
        let error = join_all([first, second]).expect_err("both failed");
        assert_eq!(error.to_string(), "thread first failed: first");
    }
}
