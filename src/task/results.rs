//! The records of the results topic: results, status records and claims.
//!
//! A header names the kind, so a reader need not parse every value. Part of [`task`](super).

use std::borrow::Cow;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{from_object, is_task_id, is_worker_id, to_json};

/// Header of a record on `results` that names its kind: one of the `KIND_` values.
pub const KIND_HEADER: &str = "lastcall-kind";
/// [`KIND_HEADER`] of a [`TaskResult`].
pub const KIND_RESULT: &str = "result";
/// [`KIND_HEADER`] of a [`WorkerStatus`].
pub const KIND_STATUS: &str = "worker_status";
/// [`KIND_HEADER`] of a [`Claim`].
pub const KIND_CLAIM: &str = "claim";
/// Members of a result that the worker writes itself; a handler's output cannot replace them.
pub const RESULT_MEMBERS: [&str; 6] = ["task_id", "success", "error", "processed_by", "seconds", "type"];

/// The outcome of a task, as a record of the results topic.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskResult {
    /// The task's id.
    pub task_id: String,
    /// Whether the handler succeeded; otherwise the task failed for good.
    pub success: bool,
    /// Why it failed, for its caller.
    pub error: Option<String>,
    /// The handler's members, in its order.
    pub output: Map<String, Value>,
    /// The worker's id.
    pub processed_by: String,
    /// The handler's time, in seconds.
    pub seconds: f64,
}

/// The members of a result that a gateway reads.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ResultPeek {
    /// The task's id.
    pub task_id: String,
    /// Whether the handler succeeded.
    pub success: bool,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<String>,
    /// The handler's time, in seconds; `None` in results of other programs that do not have it.
    #[serde(default)]
    pub seconds: Option<f64>,
}

impl ResultPeek {
    /// Decodes the value of a record; `None` if it is not a result.
    pub fn decode(value: &[u8]) -> Option<Self> {
        from_object(value).ok()
    }
}

/// The end of every result that [`TaskResult::encode`] wrote.
const RESULT_SUFFIX: &[u8] = br#","type":"result"}"#;

impl TaskResult {
    /// The value of its record; `"type":"result"` comes last, for [`body_for_http`](Self::body_for_http).
    pub fn encode(&self) -> Vec<u8> {
        to_json(self)
    }

    /// The value of a result's record as callers get it: the same JSON without its `type`.
    pub fn body_for_http(value: &[u8]) -> Cow<'_, [u8]> {
        // At the end of an object these bytes are its last member: a quote before the closing brace ends a string, and
        // reading backwards from it, each other quote is unescaped, too.
        if let Some(front) = value.strip_suffix(RESULT_SUFFIX) {
            let mut body = Vec::with_capacity(front.len() + 1);
            body.extend_from_slice(front);
            body.push(b'}');
            return Cow::Owned(body);
        }
        let Ok(mut members) = from_object::<Map<String, Value>>(value) else { return Cow::Borrowed(value) };
        if members.shift_remove("type").is_some() { Cow::Owned(to_json(&members)) } else { Cow::Borrowed(value) }
    }
}

impl Serialize for TaskResult {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("task_id", &self.task_id)?;
        map.serialize_entry("success", &self.success)?;
        if let Some(error) = &self.error {
            map.serialize_entry("error", error)?;
        }
        for (name, value) in self.output.iter().filter(|(name, _)| !RESULT_MEMBERS.contains(&name.as_str())) {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("processed_by", &self.processed_by)?;
        // Rounded to microseconds.
        map.serialize_entry("seconds", &((self.seconds * 1e6).round() / 1e6))?;
        map.serialize_entry("type", KIND_RESULT)?;
        map.end()
    }
}

/// The state of a worker by its last notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerState {
    /// The worker takes tasks.
    #[serde(rename = "worker_started")]
    Started,
    /// The worker runs and takes no new tasks until it is told to go on.
    #[serde(rename = "worker_quiet")]
    Quiet,
    /// The worker takes no new tasks and finishes those in flight.
    #[serde(rename = "shutdown_started")]
    ShutdownStarted,
    /// The worker has left.
    #[serde(rename = "shutdown_completed")]
    ShutdownCompleted,
}

impl WorkerState {
    /// The name on the wire and in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Started => "worker_started",
            Self::Quiet => "worker_quiet",
            Self::ShutdownStarted => "shutdown_started",
            Self::ShutdownCompleted => "shutdown_completed",
        }
    }
}

impl std::fmt::Display for WorkerState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A notification of a worker, repeated as its heartbeat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "worker_status")]
pub struct WorkerStatus {
    /// The worker's id; [`is_worker_id`] holds.
    pub worker_id: String,
    /// Its last notification.
    pub status: WorkerState,
    /// When this was sent, in Unix seconds by the worker's clock.
    pub timestamp: f64,
    /// The longest running task.
    #[serde(default)]
    pub current_task: Option<String>,
    /// All tasks in flight, oldest first.
    #[serde(default)]
    pub current_tasks: Vec<String>,
    /// How long each of these tasks has run, in seconds; empty from a worker of an older version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub current_task_seconds: Vec<f64>,
    /// The id of the process; a restarted worker gets a new one. Nil if unknown.
    #[serde(default)]
    pub instance: Uuid,
    /// When the process started, in Unix seconds; 0 if unknown.
    #[serde(default)]
    pub started_at: f64,
    /// The latest time at which a stopping worker abandons its tasks, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_deadline: Option<f64>,
    /// Whether one of its long tasks keeps a partition from delivering.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub holding_back: bool,
    /// How it stopped; only in its last status record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}

impl WorkerStatus {
    /// The value of its record.
    pub fn encode(&self) -> Vec<u8> {
        to_json(self)
    }
}

/// How a worker stopped: in its last status record, and on the last line of its stdout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Receipt {
    /// The worker's id.
    pub worker_id: String,
    /// The first signal's name; empty without a signal.
    pub signal: String,
    /// `drained`, `abandoned` (the deadline passed) or `forced` (second signal).
    pub outcome: String,
    /// The duration of each phase in milliseconds, in order.
    pub phases_ms: Map<String, Value>,
    /// Number of tasks finished since the signal.
    pub tasks_finished: u64,
    /// Number of tasks released unstarted.
    pub tasks_returned: u64,
    /// Ids of the tasks released after a handler had started them.
    pub tasks_abandoned: Vec<String>,
    /// The process's [`ExitCode`](program::exit::ExitCode).
    pub exit_code: u8,
}

impl Receipt {
    /// One line of JSON.
    pub fn to_line(&self) -> String {
        // JSON is UTF-8, so this loses no bytes.
        String::from_utf8_lossy(&to_json(self)).into_owned()
    }
}

/// A gateway's announcement that it will produce the task of an Idempotency-Key; the first in the log wins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "claim")]
pub struct Claim {
    /// The task's id.
    pub task_id: String,
    /// Digest of the text: the same key with another text is refused.
    pub text_hash: String,
    /// The id of the gateway's process.
    pub gateway: String,
    /// When it was claimed, in Unix seconds by the gateway's clock.
    pub timestamp: f64,
}

impl Claim {
    /// The value of its record.
    pub fn encode(&self) -> Vec<u8> {
        to_json(self)
    }
}

/// A record of the results topic.
#[derive(Clone, Debug, PartialEq)]
pub enum ResultsRecord {
    /// A task's result, as far as a gateway reads it.
    Result(ResultPeek),
    /// A worker's notification or heartbeat.
    Status(Box<WorkerStatus>),
    /// A gateway's claim.
    Claim(Claim),
    /// A type that this version does not know; readers ignore it.
    Other,
    /// A record that cannot be read, and its fault without the record's content: readers count and ignore it.
    Bad(&'static str),
}

impl ResultsRecord {
    /// Reads the value of a record.
    pub fn decode(value: Option<&[u8]>) -> Self {
        #[derive(Deserialize)]
        struct Typed<'a> {
            #[serde(rename = "type", borrow)]
            kind: Cow<'a, str>,
        }
        let Some(value) = value else { return Self::Bad("the value is null") };
        match from_object::<Typed<'_>>(value) {
            Ok(typed) => Self::decode_kind(typed.kind.as_bytes(), value),
            Err(_) => Self::Bad("the value is not a JSON object with a type"),
        }
    }

    /// Decodes a record, by its [`KIND_HEADER`] if present; records of other programs have none.
    pub fn of_record<'h>(headers: impl IntoIterator<Item = (&'h str, Option<&'h [u8]>)>, value: Option<&[u8]>) -> Self {
        let kind = headers.into_iter().find(|(name, _)| *name == KIND_HEADER).and_then(|(_, kind)| kind);
        match (kind, value) {
            (Some(kind), Some(value)) => Self::decode_kind(kind, value),
            _ => Self::decode(value),
        }
    }

    /// Reads the value of a record whose kind is known, from its [`KIND_HEADER`].
    pub fn decode_kind(kind: &[u8], value: &[u8]) -> Self {
        if kind == KIND_RESULT.as_bytes() {
            match ResultPeek::decode(value) {
                Some(peek) if is_task_id(&peek.task_id) => Self::Result(peek),
                Some(_) => Self::Bad("the result's task_id is not 1 to 100 printable ASCII characters"),
                None => Self::Bad("the result has no task_id or no success"),
            }
        } else if kind == KIND_STATUS.as_bytes() {
            match from_object::<Box<WorkerStatus>>(value) {
                Ok(status) if is_worker_id(&status.worker_id) => Self::Status(status),
                Ok(_) => Self::Bad("the status has a worker_id that is not 1 to 100 printable ASCII characters"),
                Err(_) => Self::Bad("the status lacks a member or has one of a wrong type"),
            }
        } else if kind == KIND_CLAIM.as_bytes() {
            match from_object::<Claim>(value) {
                Ok(claim) if is_task_id(&claim.task_id) => Self::Claim(claim),
                Ok(_) => Self::Bad("the claim's task_id is not 1 to 100 printable ASCII characters"),
                Err(_) => Self::Bad("the claim lacks a member or has one of a wrong type"),
            }
        } else {
            Self::Other
        }
    }
}
