//! The records of the topics: tasks, results, statuses, claims and starts, as JSON.
//!
//! Formats and their checks only; nothing here knows a topic's name or a connection. Readers ignore members and types that they
//! do not know, so that programs of different versions can run side by side. Called by worker and gateway, and by everything
//! else that reads or writes the topics.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};
use uuid::Uuid;

/// Longest task id and worker id, in characters.
pub const ID_LIMIT: usize = 100;
/// Header of a record on `results` that tells its kind, so that a reader need not parse it: one of the `KIND_` values.
pub const KIND_HEADER: &str = "lastcall-kind";
/// [`KIND_HEADER`] of a [`TaskResult`].
pub const KIND_RESULT: &str = "result";
/// [`KIND_HEADER`] of a [`WorkerStatus`].
pub const KIND_STATUS: &str = "worker_status";
/// [`KIND_HEADER`] of a [`Claim`].
pub const KIND_CLAIM: &str = "claim";
/// Members of a result that the worker writes itself; a handler's output cannot replace them.
pub const RESULT_MEMBERS: [&str; 6] = ["task_id", "success", "error", "processed_by", "seconds", "type"];

/// The time now, in Unix seconds with a fraction; 0 for a clock before 1970.
pub fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Whether a text can be a task id: 1 to [`ID_LIMIT`] printable ASCII characters.
pub fn is_task_id(text: &str) -> bool {
    (1..=ID_LIMIT).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Whether a text can be a worker id; the rule is that of [`is_task_id`].
pub fn is_worker_id(text: &str) -> bool {
    is_task_id(text)
}

/// Writes one of our own types as JSON.
fn to_json(value: &impl Serialize) -> Vec<u8> {
    // Maps with string keys, strings and numbers have a JSON form, and a vector takes everything.
    serde_json::to_vec(value).expect("our own types can be written as JSON")
}

/// One record of the tasks topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Which task it is; [`is_task_id`] holds.
    pub task_id: String,
    /// What to work on. Never logged.
    pub text: String,
    /// When it was accepted, in Unix seconds; 0 when its producer did not say.
    #[serde(default)]
    pub timestamp: f64,
    /// How long the handler shall take besides, in milliseconds; for demonstrations and drills.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_ms: Option<u64>,
}

/// Why a record of the tasks topic is no task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BadTask {
    /// What is wrong, without any of the record's content.
    pub reason: String,
    /// The task id, where the value or else the key has a usable one.
    pub task_id: Option<String>,
}

impl Task {
    /// Reads a record. Its key only serves to find an id for a record that is no task.
    pub fn decode(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Self, BadTask> {
        let task = value.and_then(|value| serde_json::from_slice::<Self>(value).ok());
        match task {
            Some(task) if is_task_id(&task.task_id) => Ok(task),
            // Only the rare bad record pays for finding out why.
            _ => Err(BadTask::diagnose(key, value)),
        }
    }

    /// The value of its record.
    pub fn encode(&self) -> Vec<u8> {
        to_json(self)
    }
}

impl BadTask {
    fn diagnose(key: Option<&[u8]>, value: Option<&[u8]>) -> Self {
        let usable = |id: &str| is_task_id(id).then(|| id.to_owned());
        let from_key = || key.and_then(|key| std::str::from_utf8(key).ok()).and_then(usable);
        let (reason, from_value) = match value.map(parse) {
            None => ("the value is null".to_owned(), None),
            Some(Err(reason)) => (reason, None),
            Some(Ok(members)) => {
                let id = members.get("task_id").and_then(Value::as_str).and_then(usable);
                (fault_of(&members).to_owned(), id)
            }
        };
        Self { reason, task_id: from_value.or_else(from_key) }
    }
}

/// Reads the value of a record as an object, or says why it is none.
fn parse(value: &[u8]) -> Result<Map<String, Value>, String> {
    if std::str::from_utf8(value).is_err() {
        return Err("the value is not UTF-8".to_owned());
    }
    match serde_json::from_slice(value) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err("the value is not a JSON object".to_owned()),
        // A syntax error names a place, never the text at it.
        Err(error) => Err(format!("the value is not JSON: {error}")),
    }
}

/// The first thing that keeps an object from being a task. In our own words: those of serde quote what was found, and a task's
/// text must not get into logs and headers.
fn fault_of(members: &Map<String, Value>) -> &'static str {
    let member = |name: &str| members.get(name);
    match (member("task_id"), member("text")) {
        (None, _) => "task_id is missing",
        (Some(Value::String(id)), _) if !is_task_id(id) => "task_id is not 1 to 100 printable ASCII characters",
        (Some(Value::String(_)), None) => "text is missing",
        (Some(Value::String(_)), Some(Value::String(_))) => match (member("timestamp"), member("work_ms")) {
            (Some(timestamp), _) if !timestamp.is_number() => "timestamp is not a number",
            (_, Some(work)) if !work.is_null() && !work.is_u64() => "work_ms is not a whole number",
            _ => "a member appears twice",
        },
        (Some(Value::String(_)), Some(_)) => "text is not a string",
        (Some(_), _) => "task_id is not a string",
    }
}

/// The outcome of a task, as the results topic has it.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskResult {
    /// Which task it is.
    pub task_id: String,
    /// Whether the handler did its work; otherwise the task failed for good.
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

/// What a gateway needs to know of a result; the rest of it stays unread.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ResultPeek {
    /// Which task it is.
    pub task_id: String,
    /// Whether the handler did its work.
    pub success: bool,
    /// Why it did not.
    #[serde(default)]
    pub error: Option<String>,
}

/// The end of every result that [`TaskResult::encode`] wrote.
const RESULT_SUFFIX: &[u8] = br#","type":"result"}"#;

impl TaskResult {
    /// The value of its record: `"type":"result"` comes last, so that [`body_for_http`](Self::body_for_http) finds it at once.
    pub fn encode(&self) -> Vec<u8> {
        to_json(self)
    }

    /// Reads the value of a record.
    pub fn decode(value: &[u8]) -> Result<Self, serde_json::Error> {
        let peek: ResultPeek = serde_json::from_slice(value)?;
        let mut output: Map<String, Value> = serde_json::from_slice(value)?;
        let processed_by = output.get("processed_by").and_then(Value::as_str).unwrap_or_default().to_owned();
        let seconds = output.get("seconds").and_then(Value::as_f64).unwrap_or_default();
        output.retain(|name, _| !RESULT_MEMBERS.contains(&name.as_str()));
        Ok(Self { task_id: peek.task_id, success: peek.success, error: peek.error, output, processed_by, seconds })
    }

    /// The value of a result's record as callers get it: the same JSON without its `type`.
    pub fn body_for_http(value: &[u8]) -> Cow<'_, [u8]> {
        // In an object that ends so, these bytes are its last member: a quote before the closing brace ends a string, and
        // reading backwards from it each of the others is unescaped too.
        if let Some(front) = value.strip_suffix(RESULT_SUFFIX) {
            let mut body = Vec::with_capacity(front.len() + 1);
            body.extend_from_slice(front);
            body.push(b'}');
            return Cow::Owned(body);
        }
        let Ok(mut members) = serde_json::from_slice::<Map<String, Value>>(value) else { return Cow::Borrowed(value) };
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
        // To the microsecond: more digits would be noise.
        map.serialize_entry("seconds", &((self.seconds * 1e6).round() / 1e6))?;
        map.serialize_entry("type", KIND_RESULT)?;
        map.end()
    }
}

/// What a worker last said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerState {
    /// It takes tasks.
    #[serde(rename = "worker_started")]
    Started,
    /// It takes nothing new and finishes what is in flight.
    #[serde(rename = "shutdown_started")]
    ShutdownStarted,
    /// It has left.
    #[serde(rename = "shutdown_completed")]
    ShutdownCompleted,
}

impl WorkerState {
    /// The name on the wire and in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Started => "worker_started",
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
    /// Which worker it is; [`is_worker_id`] holds.
    pub worker_id: String,
    /// What it last notified.
    pub status: WorkerState,
    /// When this was said, in Unix seconds by the worker's clock.
    pub timestamp: f64,
    /// The task that runs longest of those in flight.
    #[serde(default)]
    pub current_task: Option<String>,
    /// All tasks in flight, oldest first.
    #[serde(default)]
    pub current_tasks: Vec<String>,
    /// Which process it is: a worker that is started again is another one. Nil when it did not say.
    #[serde(default)]
    pub instance: Uuid,
    /// When the process started, in Unix seconds; 0 when it did not say.
    #[serde(default)]
    pub started_at: f64,
    /// When a stopping worker leaves at the latest, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_deadline: Option<f64>,
    /// Whether a long task of it keeps its partition from delivering.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub holding_back: bool,
    /// How it stopped; in its last status only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}

impl WorkerStatus {
    /// The value of its record.
    pub fn encode(&self) -> Vec<u8> {
        to_json(self)
    }
}

/// How a worker stopped: in its last status, and alone on the last line of its stdout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Receipt {
    /// Which worker it was.
    pub worker_id: String,
    /// The first signal's name; empty when none came.
    pub signal: String,
    /// `drained`, `abandoned` (the deadline passed) or `forced` (second signal).
    pub outcome: String,
    /// How long each phase took, in milliseconds, in their order.
    pub phases_ms: Map<String, Value>,
    /// Tasks finished from the signal on.
    pub tasks_finished: u64,
    /// Tasks given back unstarted.
    pub tasks_returned: u64,
    /// Tasks given back although a handler had started them.
    pub tasks_abandoned: Vec<String>,
    /// The process's [`ExitCode`](crate::exit::ExitCode).
    pub exit_code: u8,
}

impl Receipt {
    /// One line of JSON.
    pub fn to_line(&self) -> String {
        // JSON is UTF-8 by definition; nothing is lost here.
        String::from_utf8_lossy(&to_json(self)).into_owned()
    }
}

/// A gateway's announcement that it is going to produce the task of an Idempotency-Key; the first in the log wins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "claim")]
pub struct Claim {
    /// Which task it is about.
    pub task_id: String,
    /// Digest of the text: the same key with another text is refused.
    pub text_hash: String,
    /// Which gateway process it is.
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
    /// A type that this version does not know: to be ignored.
    Other,
    /// What cannot be read, with what is wrong and without the record's content: to be counted and otherwise ignored.
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
        match serde_json::from_slice::<Typed<'_>>(value) {
            Ok(typed) => Self::decode_kind(typed.kind.as_bytes(), value),
            Err(_) => Self::Bad("the value is not a JSON object with a type"),
        }
    }

    /// Reads the value of a record whose kind is known, from its [`KIND_HEADER`].
    pub fn decode_kind(kind: &[u8], value: &[u8]) -> Self {
        if kind == KIND_RESULT.as_bytes() {
            match serde_json::from_slice::<ResultPeek>(value) {
                Ok(peek) if is_task_id(&peek.task_id) => Self::Result(peek),
                Ok(_) => Self::Bad("the result's task_id is not 1 to 100 printable ASCII characters"),
                Err(_) => Self::Bad("the result has no task_id or no success"),
            }
        } else if kind == KIND_STATUS.as_bytes() {
            match serde_json::from_slice::<Box<WorkerStatus>>(value) {
                Ok(status) if is_worker_id(&status.worker_id) => Self::Status(status),
                Ok(_) => Self::Bad("the status has a worker_id that is not 1 to 100 printable ASCII characters"),
                Err(_) => Self::Bad("the status lacks a member or has one of a wrong type"),
            }
        } else if kind == KIND_CLAIM.as_bytes() {
            match serde_json::from_slice::<Claim>(value) {
                Ok(claim) if is_task_id(&claim.task_id) => Self::Claim(claim),
                Ok(_) => Self::Bad("the claim's task_id is not 1 to 100 printable ASCII characters"),
                Err(_) => Self::Bad("the claim lacks a member or has one of a wrong type"),
            }
        } else {
            Self::Other
        }
    }
}

/// Said before a handler starts a task that was delivered before: a delivery is not a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStarted {
    /// Which task it is.
    pub task_id: String,
    /// The delivery it is started in.
    pub delivery: u16,
    /// The worker that starts it.
    pub worker_id: String,
}

/// Said when a handler failed and a later attempt may succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFailed {
    /// Which task it is.
    pub task_id: String,
    /// The delivery it failed in.
    pub delivery: u16,
    /// The worker it failed on.
    pub worker_id: String,
    /// What the handler said.
    pub error: String,
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
}

impl StartsRecord {
    /// Reads the value of a record; `None` for what this version does not know.
    pub fn decode(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }
}

impl TaskStarted {
    /// The value of its record.
    pub fn encode(&self) -> Vec<u8> {
        to_json(&StartsRecord::Started(self.clone()))
    }
}

impl TaskFailed {
    /// The value of its record.
    pub fn encode(&self) -> Vec<u8> {
        to_json(&StartsRecord::Failed(self.clone()))
    }
}
