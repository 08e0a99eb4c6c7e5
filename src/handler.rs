//! What runs a task: the one trait that a user of the library implements.

use crate::stop::Stop;
use crate::task::Task;
use serde_json::{Map, Value};

/// Runs tasks. One value serves all handler threads at once.
pub trait Handler: Send + Sync + 'static {
    /// Runs `task` and returns the members of its result, which stand beside `task_id`, `success`, `processed_by` and `seconds`
    /// in the answer.
    ///
    /// It may take as long as it likes up to `TASK_TIMEOUT`; its lock is renewed meanwhile. A panic counts as
    /// [`HandlerError::Retry`].
    ///
    /// # Errors
    /// [`HandlerError`] says whether another try makes sense.
    fn handle(&self, task: &Task, context: &Context) -> Result<Map<String, Value>, HandlerError>;
}

/// What a handler knows beside its task.
#[derive(Clone, Debug)]
pub struct Context {
    /// How often the broker has handed this task out, this time included; above 1, somebody may have begun it before.
    pub delivery: u16,
    /// Triggered when this worker was asked to stop: finish soon, the drain timeout runs.
    pub draining: Stop,
    /// Triggered when this task was abandoned: nobody waits for the outcome any more.
    pub abandoned: Stop,
}

/// How a task failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandlerError {
    /// For good: the caller gets this text as the error, the task is not run again.
    #[error("{0}")]
    Final(String),
    /// It may pass: the task goes back and is tried again, `MAX_DELIVERIES` starts in all.
    #[error("{0}")]
    Retry(String),
}
