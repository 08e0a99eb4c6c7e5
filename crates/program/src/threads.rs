//! Starts every thread of the programs.
//!
//! A thread has a name, returns a `Result` and is joined by its starter. An error or a panic is logged and triggers the
//! stop that its owner named. There is no pool, and no way to detach a thread.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::stop::Stop;

/// Longest thread name that the kernel keeps, in bytes (`TASK_COMM_LEN` without its terminator).
const NAME_LIMIT: usize = 15;

/// Joins `base`, cut to fit the longest thread name, and `suffix`.
pub fn fitted(base: &str, suffix: &str) -> String {
    let room = base.floor_char_boundary(NAME_LIMIT.saturating_sub(suffix.len()));
    format!("{}{suffix}", &base[..room])
}

/// How a thread failed; logged by the thread itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThreadError {
    /// The operating system gave no thread.
    #[error("thread {name} could not be started: {reason}")]
    NotStarted {
        /// The thread's name.
        name: String,
        /// The operating system's error.
        reason: String,
    },
    /// The body returned an error.
    #[error("thread {name} failed: {reason}")]
    Failed {
        /// The thread's name.
        name: String,
        /// The error's text.
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

/// Handle to a thread, to be joined; dropping it would detach the thread.
#[derive(Debug)]
#[must_use = "every thread is joined"]
pub struct Thread {
    name: String,
    /// Gets the outcome right before the thread ends. Its capacity of one keeps the thread from waiting for its joiner.
    outcome: Receiver<Result<(), ThreadError>>,
    handle: Option<JoinHandle<()>>,
}

/// Starts a thread that runs `body`. If the body fails or panics, or the thread cannot start, this is logged and
/// triggers `on_death`. A body that was asked to stop therefore returns `Ok`.
///
/// `name` has at most 15 bytes, since the kernel shows no more; see [`fitted`].
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

/// Runs the body and turns an error or a panic into a value.
fn run<E: Display>(name: &str, body: impl FnOnce() -> Result<(), E>) -> Result<(), ThreadError> {
    // The body owns its data, so no code sees that data after a panic.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(ThreadError::Failed { name: name.to_owned(), reason: error.to_string() }),
        Err(payload) => Err(ThreadError::Panicked { name: name.to_owned(), message: panic_message(payload.as_ref()) }),
    }
}

/// Logs and reports an outcome. A failure triggers the stop first, so that the stop does not wait for the log line.
fn settle(outcome: Result<(), ThreadError>, report: &Sender<Result<(), ThreadError>>, on_death: &Stop) {
    if let Err(error) = &outcome {
        on_death.trigger();
        log::error!("{error}");
    }
    // Fails only if the handle was dropped: the capacity is one, and this is the only message.
    let _ = report.try_send(outcome);
}

/// Returns the text of a panic: `panic!` carries one of these two types.
pub fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("(no message)").to_owned()
}

impl Thread {
    /// The thread's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the body has ended. The thread itself may end a moment later; [`join`](Self::join) waits for that.
    pub fn is_finished(&self) -> bool {
        !self.outcome.is_empty() || self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the thread has ended, without a limit.
    pub fn join(self) -> Result<(), ThreadError> {
        let outcome = self.outcome.recv();
        self.finish(outcome.ok())
    }

    /// Waits until the thread has ended, at most until `deadline`. Returns the handle if the thread has not ended.
    pub fn join_deadline(self, deadline: Instant) -> Result<Result<(), ThreadError>, Thread> {
        match self.outcome.recv_deadline(deadline) {
            Ok(outcome) => Ok(self.finish(Some(outcome))),
            Err(RecvTimeoutError::Disconnected) => Ok(self.finish(None)),
            Err(RecvTimeoutError::Timeout) => Err(self),
        }
    }

    /// Joins the ended thread. Without an outcome it died while reporting, which only a panicking logger can cause.
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

/// Joins all threads and returns the first error; each thread has logged its own.
pub fn join_all(threads: impl IntoIterator<Item = Thread>) -> Result<(), ThreadError> {
    // Collected first, so the threads after a failed one are joined, too.
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
    fn successful_thread_triggers_no_stop() {
        let on_death = Stop::new();
        let thread = spawn("good", on_death.clone(), || Ok::<(), Infallible>(()));
        assert_eq!(thread.name(), "good");
        assert_eq!(thread.join(), Ok(()));
        assert!(!on_death.is_triggered());
    }

    #[test]
    fn kernel_shows_the_thread_name() {
        let name = || std::thread::current().name().map(str::to_owned);
        let (send, receive) = bounded(1);
        let thread = spawn("fifteen-bytes-x", Stop::new(), move || send.send(name()));
        assert_eq!(receive.recv_timeout(LIMIT).expect("the thread reports"), Some("fifteen-bytes-x".to_owned()));
        assert_eq!(thread.join(), Ok(()));
    }

    #[test]
    fn fitted_name_is_cut_before_its_suffix() {
        assert_eq!(fitted("outbox", "-3"), "outbox-3");
        assert_eq!(fitted("test-producer", "-1001"), "test-produ-1001");
        assert_eq!(fitted("out-gätewäy", "-100"), "out-gätew-100");
    }

    #[test]
    fn error_triggers_the_stop_and_is_returned() {
        let on_death = Stop::new();
        let thread = spawn("failing", on_death.clone(), || Err("no more disk"));
        assert_eq!(on_death.sleep(LIMIT), Err(crate::stop::Stopped));
        let error = ThreadError::Failed { name: "failing".to_owned(), reason: "no more disk".to_owned() };
        assert_eq!(thread.join(), Err(error));
    }

    #[test]
    fn panic_triggers_the_stop_and_is_returned() {
        let on_death = Stop::new();
        let number = 3;
        let thread = spawn("panicking", on_death.clone(), move || -> Result<(), Infallible> { panic!("at {number}") });
        assert_eq!(on_death.sleep(LIMIT), Err(crate::stop::Stopped));
        let error = ThreadError::Panicked { name: "panicking".to_owned(), message: "at 3".to_owned() };
        assert_eq!(thread.join(), Err(error));
    }

    #[test]
    fn join_with_passed_deadline_returns_the_handle() {
        let stop = Stop::new();
        let until = stop.clone();
        let thread = spawn("waiting", Stop::new(), move || {
            until.wait();
            Ok::<(), Infallible>(())
        });
        assert!(!thread.is_finished());
        let thread = thread.join_deadline(Instant::now()).expect_err("it still waits");
        stop.trigger();
        let outcome = thread.join_deadline(Instant::now() + LIMIT).expect("the thread was asked to end");
        assert_eq!(outcome, Ok(()));
    }

    #[test]
    fn join_all_joins_every_thread_and_returns_the_first_error() {
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
