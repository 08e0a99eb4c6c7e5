//! What a worker does with a task: the trait to implement for work of one's own.
//!
//! Everything around it (fetching, locks, retries, results, stopping) is [`worker::run`](crate::worker::run). The one that ships
//! is [`Analysis`](crate::analysis::Analysis); `examples/` has a second one to copy.

use serde_json::{Map, Value};

use crate::task::Task;
use program::stop::Stop;

/// Does the work of one task at a time on each of the worker's handler threads.
///
/// A handler that panics has failed with [`HandlerError::Retry`]; the worker lives on. A task may be handled again, after a crash
/// for example: effects outside of the returned members should bear repetition, with the task id as their key.
pub trait Handler: Send + Sync + 'static {
    /// Handles one task; blocks its thread for as long as it takes. The members returned become members of the result; names
    /// that the result has itself ([`RESULT_MEMBERS`](crate::task::RESULT_MEMBERS)) are left out.
    ///
    /// One that takes long should look at [`Context::abandoned`] from time to time, for example by sleeping through
    /// [`Stop::sleep`]; what it returns then is dropped.
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

/// Why a task was not done, in words that its caller may read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandlerError {
    /// No attempt will succeed: the caller gets the error at once.
    #[error("{0}")]
    Final(String),
    /// A later attempt may succeed: the task goes back and starts again after a pause, up to `MAX_DELIVERIES` times.
    #[error("{0}")]
    Retry(String),
}

/// What a handler may want to know besides its task.
#[derive(Clone, Debug)]
pub struct Context {
    /// The how-manieth delivery of this task it is, from 1. Deliveries are counted by Kafka and are not all starts.
    pub delivery: u16,
    /// Triggered when the worker was asked to stop; the task may go on.
    pub draining: Stop,
    /// Triggered when this task was given up: the worker leaves, or another one has it. Return soon.
    pub abandoned: Stop,
}

impl Context {
    /// The context of a first delivery that nobody stops.
    pub fn new() -> Self {
        Self { delivery: 1, draining: Stop::new(), abandoned: Stop::new() }
    }
}

impl Default for Context {
    fn default() -> Self {
        Self::new()
    }
}
