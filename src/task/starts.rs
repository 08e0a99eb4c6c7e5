//! The records of the starts topic, from which a worker counts the starts of a task. Part of [`task`](super).

use serde::{Deserialize, Serialize};

use super::{from_object, to_json};

/// Written before a handler starts a redelivered task, since not every delivery is a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStarted {
    /// The task's id.
    pub task_id: String,
    /// The delivery in which it starts.
    pub delivery: u16,
    /// The worker that starts it.
    pub worker_id: String,
}

/// Written when a handler failed and a later attempt may succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFailed {
    /// The task's id.
    pub task_id: String,
    /// The delivery in which it failed.
    pub delivery: u16,
    /// The worker on which it failed.
    pub worker_id: String,
    /// The handler's error.
    pub error: String,
}

/// Written when a stopping worker releases a task that it has started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStopped {
    /// The task's id.
    pub task_id: String,
    /// The worker that stops.
    pub worker_id: String,
}

/// Written before a task is replayed: its earlier starts no longer count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskReplayed {
    /// The task's id.
    pub task_id: String,
    /// The number of the replay.
    pub replay: u64,
}

/// A record of the starts topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum StartsRecord {
    /// A handler is about to start a task.
    #[serde(rename = "task_started")]
    Started(TaskStarted),
    /// A handler failed.
    #[serde(rename = "task_failed")]
    Failed(TaskFailed),
    /// A stopping worker released the task, so this start does not count.
    #[serde(rename = "task_stopped")]
    Stopped(TaskStopped),
    /// An operator replays the task.
    #[serde(rename = "task_replayed")]
    Replayed(TaskReplayed),
}

impl StartsRecord {
    /// Decodes the value of a record; `None` if this version does not know it.
    pub fn decode(value: &[u8]) -> Option<Self> {
        from_object(value).ok()
    }
}

impl TaskStarted {
    /// The value of its record.
    pub fn encode(&self) -> Vec<u8> {
        to_json(&StartsRecord::Started(self.clone()))
    }
}

impl TaskStopped {
    /// The value of its record.
    pub fn encode(&self) -> Vec<u8> {
        to_json(&StartsRecord::Stopped(self.clone()))
    }
}

impl TaskReplayed {
    /// The value of its record.
    pub fn encode(&self) -> Vec<u8> {
        to_json(&StartsRecord::Replayed(self.clone()))
    }
}

impl TaskFailed {
    /// The value of its record.
    pub fn encode(&self) -> Vec<u8> {
        to_json(&StartsRecord::Failed(self.clone()))
    }
}
