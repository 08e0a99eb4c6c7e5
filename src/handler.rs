//! The trait [`Handler`]: the work that a worker does with a task.
//!
//! [`worker::run`](crate::worker::run) does the rest (fetching, locks, retries, results, stopping). The shipped handler
//! is [`Analysis`](crate::analysis::Analysis); `examples/` has another to copy.

use serde_json::{Map, Value};

use crate::task::Task;
use program::stop::Stop;

/// Handles one task at a time on each handler thread of the worker.
///
/// A panic counts as [`HandlerError::Retry`]; the worker continues. A task may be handled again, for example after a
/// crash. So effects outside the returned members should be repeatable, with the task id as their key.
pub trait Handler: Send + Sync + 'static {
    /// Handles one task; may block its thread. The returned members become members of the result, except names that the
    /// result uses itself ([`RESULT_MEMBERS`](crate::task::RESULT_MEMBERS)).
    ///
    /// A long handler should check [`Context::abandoned`] from time to time, for example by sleeping with
    /// [`Stop::sleep`]; its result is dropped once that is triggered.
    fn handle(&self, task: &Task, context: &Context) -> Result<Map<String, Value>, HandlerError>;
}

impl<F> Handler for F
where
    F: Fn(&Task, &Context) -> Result<Map<String, Value>, HandlerError> + Send + Sync + 'static,
{
    fn handle(&self, task: &Task, context: &Context) -> Result<Map<String, Value>, HandlerError> {
        self(task, context)
    }
}

/// Why a task failed; its caller gets the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandlerError {
    /// No attempt will succeed: the caller gets the error at once.
    #[error("{0}")]
    Final(String),
    /// A later attempt may succeed: the task is released and starts again after a pause, up to `MAX_DELIVERIES` times.
    #[error("{0}")]
    Retry(String),
}

/// Information for a handler besides its task.
#[derive(Clone, Debug)]
pub struct Context {
    /// The number of this delivery, from 1. Kafka counts deliveries; not every delivery is a start.
    pub delivery: u16,
    /// Triggered when the worker was asked to stop; the task may continue.
    pub draining: Stop,
    /// Triggered when this task was abandoned: the worker leaves, or another worker has the task. Return soon.
    pub abandoned: Stop,
}

impl Context {
    /// The context of a first delivery without a stop.
    pub fn new() -> Self {
        Self { delivery: 1, draining: Stop::new(), abandoned: Stop::new() }
    }
}

impl Default for Context {
    fn default() -> Self {
        Self::new()
    }
}
