//! What travels through Kafka: tasks, results, statuses, claims and starts, as JSON (contract section 4).
//!
//! Pure encoding and decoding; who writes what and when is the gateway's and the worker's business. A reader ignores members
//! and types that it does not know, so that versions can live side by side.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Record header on `results` that tells the kinds apart without looking into the value.
pub const KIND_HEADER: &str = "lastcall-kind";
/// [`KIND_HEADER`] of a task's result.
pub const KIND_RESULT: &str = "result";
/// [`KIND_HEADER`] of a worker's status.
pub const KIND_STATUS: &str = "worker_status";
/// [`KIND_HEADER`] of a gateway's claim to an idempotency key.
pub const KIND_CLAIM: &str = "claim";
/// Longest task id, in bytes.
pub const LONGEST_TASK_ID: usize = 100;
/// A result's value ends so; the gateway cuts it off to have the HTTP body.
const RESULT_END: &[u8] = b",\"type\":\"result\"}";

/// Seconds since the Unix epoch, with a fraction.
#[must_use]
pub fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Whether `text` can name a task: 1 to 100 printable ASCII characters.
#[must_use]
pub fn is_task_id(text: &str) -> bool {
    (1..=LONGEST_TASK_ID).contains(&text.len()) && text.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
}

/// One task: a record on the tasks topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Names the task, here and in its result.
    pub task_id: String,
    /// What is to be worked on.
    pub text: String,
    /// When the gateway accepted it, in Unix seconds.
    #[serde(default)]
    pub timestamp: f64,
    /// How long the handler shall take besides, in milliseconds; for demonstrations and drills.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_ms: Option<u64>,
}

/// Why a record on the tasks topic is not a task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BadTask {
    /// What is wrong with it.
    pub reason: String,
    /// The id under which its error result can be found, if value or key carry a usable one.
    pub task_id: Option<String>,
}

impl Task {
    /// The record's value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        to_json(self)
    }

    /// Reads a record of the tasks topic. Members that a task does not have are ignored.
    ///
    /// # Errors
    /// [`BadTask`] for everything that is not `{"task_id","text",…}` with a usable id.
    pub fn decode(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Self, BadTask> {
        let reason = match value {
            None => "the record has no value".to_owned(),
            Some(value) => match serde_json::from_slice::<Task>(value) {
                Ok(task) if is_task_id(&task.task_id) => return Ok(task),
                Ok(_) => "task_id must be 1 to 100 printable ASCII characters".to_owned(),
                Err(error) => format!("not a JSON object with task_id and text: {error}"),
            },
        };
        Err(BadTask { reason, task_id: usable_id(key, value) })
    }
}

/// An id in the value, else the key.
fn usable_id(key: Option<&[u8]>, value: Option<&[u8]>) -> Option<String> {
    #[derive(Deserialize)]
    struct OnlyId {
        task_id: String,
    }
    let in_value = value.and_then(|value| serde_json::from_slice::<OnlyId>(value).ok()).map(|only| only.task_id);
    let in_key = || key.and_then(|key| std::str::from_utf8(key).ok()).map(str::to_owned);
    in_value.filter(|id| is_task_id(id)).or_else(|| in_key().filter(|id| is_task_id(id)))
}

/// The outcome of a task: a record on the results topic, and (without its type) the answer to the caller.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskResult {
    /// The task.
    pub task_id: String,
    /// Whether the handler succeeded.
    pub success: bool,
    /// Why it did not.
    pub error: Option<String>,
    /// The handler's own members.
    pub output: Map<String, Value>,
    /// The worker that ran it.
    pub processed_by: String,
    /// How long the handler took.
    pub seconds: f64,
}

impl TaskResult {
    /// The record's value: members in the contract's order, the type last.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut members = Map::new();
        members.insert("task_id".to_owned(), Value::from(self.task_id.as_str()));
        members.insert("success".to_owned(), Value::from(self.success));
        if let Some(error) = &self.error {
            members.insert("error".to_owned(), Value::from(error.as_str()));
        }
        for (name, value) in &self.output {
            if !matches!(name.as_str(), "task_id" | "success" | "error" | "processed_by" | "seconds" | "type") {
                members.insert(name.clone(), value.clone());
            }
        }
        members.insert("processed_by".to_owned(), Value::from(self.processed_by.as_str()));
        members.insert("seconds".to_owned(), Value::from((self.seconds * 1e6).round() / 1e6));
        members.insert("type".to_owned(), Value::from(KIND_RESULT));
        to_json(&members)
    }

    /// The record's value as the caller gets it: without the member `type`.
    ///
    /// Costs nothing for what [`Self::encode`] wrote; anything else is parsed. What is not a JSON object is handed on unchanged.
    #[must_use]
    pub fn body_for_http(value: &[u8]) -> Cow<'_, [u8]> {
        if let Some(body) = value.strip_suffix(RESULT_END) {
            let mut whole = Vec::with_capacity(body.len() + 1);
            whole.extend_from_slice(body);
            whole.push(b'}');
            return Cow::Owned(whole);
        }
        match serde_json::from_slice::<Map<String, Value>>(value) {
            Ok(mut members) => {
                members.shift_remove("type");
                Cow::Owned(to_json(&members))
            }
            Err(_) => Cow::Borrowed(value),
        }
    }

    /// What a gateway needs to know of a result: the task and whether it succeeded.
    ///
    /// `None` when `value` is no result.
    #[must_use]
    pub fn peek(value: &[u8]) -> Option<ResultPeek> {
        serde_json::from_slice::<ResultPeek>(value).ok().filter(|peek| peek.kind == KIND_RESULT)
    }
}

/// The members of a result that a gateway reads.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ResultPeek {
    /// The task.
    pub task_id: String,
    /// Whether the handler succeeded.
    pub success: bool,
    /// Why it did not.
    #[serde(default)]
    pub error: Option<String>,
    #[serde(rename = "type")]
    kind: String,
}

/// Where a worker stands, as its notifications say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WorkerState {
    /// It takes tasks.
    #[serde(rename = "worker_started")]
    Started,
    /// It got a signal and finishes what it has.
    #[serde(rename = "shutdown_started")]
    ShutdownStarted,
    /// It is gone.
    #[serde(rename = "shutdown_completed")]
    ShutdownCompleted,
}

impl std::fmt::Display for WorkerState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Started => "worker_started",
            Self::ShutdownStarted => "shutdown_started",
            Self::ShutdownCompleted => "shutdown_completed",
        })
    }
}

/// A notification or a heartbeat of a worker, on the results topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The worker's name.
    pub worker_id: String,
    /// Where it stands.
    pub status: WorkerState,
    /// When this was written, in Unix seconds.
    pub timestamp: f64,
    /// The task that runs longest.
    #[serde(default)]
    pub current_task: Option<String>,
    /// All tasks that run, the longest first.
    #[serde(default)]
    pub current_tasks: Vec<String>,
    /// The process; a restarted worker has another one.
    #[serde(default)]
    pub instance: Uuid,
    /// When the process started, in Unix seconds.
    #[serde(default)]
    pub started_at: f64,
    /// While draining: when running tasks are abandoned, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_deadline: Option<f64>,
    /// A task of this worker runs so long that its partition stands still behind it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub holding_back: bool,
    /// In the last one: the account of the stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}

/// The account that a worker gives of its stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The worker's name.
    pub worker_id: String,
    /// The first signal.
    pub signal: String,
    /// `drained`, `abandoned` (deadline) or `forced` (second signal).
    pub outcome: String,
    /// How long each step took, in milliseconds, in order.
    pub phases_ms: Map<String, Value>,
    /// Tasks finished from the signal on.
    pub tasks_finished: u64,
    /// Tasks given back unstarted from the signal on.
    pub tasks_returned: u64,
    /// Tasks that were started and are not proven done.
    pub tasks_abandoned: Vec<String>,
    /// The exit code that follows.
    pub exit_code: u8,
}

/// A gateway's claim to produce the task of an idempotency key, on the results topic: the first in the log wins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    /// The task that the key stands for.
    pub task_id: String,
    /// Digest of the text, so that the same key with another text is told apart.
    pub text_hash: String,
    /// The claiming gateway's instance.
    pub gateway: String,
    /// When this was written, in Unix seconds.
    pub timestamp: f64,
}

/// A start of a task that was delivered before, on the starts topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStarted {
    /// The task.
    pub task_id: String,
    /// Which delivery this is.
    pub delivery: u16,
    /// Who starts it.
    pub worker_id: String,
}

/// A start that failed and may be tried again, on the starts topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFailed {
    /// The task.
    pub task_id: String,
    /// Which delivery this was.
    pub delivery: u16,
    /// Who ran it.
    pub worker_id: String,
    /// What it said.
    pub error: String,
}

impl WorkerStatus {
    /// The record's value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        tagged(KIND_STATUS, self)
    }
}

impl Claim {
    /// The record's value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        tagged(KIND_CLAIM, self)
    }
}

impl TaskStarted {
    /// The record's value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        tagged("task_started", self)
    }
}

impl TaskFailed {
    /// The record's value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        tagged("task_failed", self)
    }
}

/// A record of the results topic.
#[derive(Clone, Debug, PartialEq)]
pub enum ResultsRecord {
    /// A task's result, as far as a gateway reads it.
    Result(ResultPeek),
    /// A worker's status.
    Status(Box<WorkerStatus>),
    /// A claim to an idempotency key.
    Claim(Claim),
    /// Something else: of a later version, or of a stranger.
    Other,
}

impl ResultsRecord {
    /// Reads the value of a record of the results topic.
    #[must_use]
    pub fn decode(value: Option<&[u8]>) -> Self {
        #[derive(Deserialize)]
        struct Tag<'a> {
            #[serde(rename = "type", borrow)]
            kind: Cow<'a, str>,
        }
        let Some(value) = value else { return Self::Other };
        let Ok(tag) = serde_json::from_slice::<Tag<'_>>(value) else { return Self::Other };
        match tag.kind.as_ref() {
            KIND_RESULT => TaskResult::peek(value).map_or(Self::Other, Self::Result),
            KIND_STATUS => serde_json::from_slice(value).map_or(Self::Other, |status| Self::Status(Box::new(status))),
            KIND_CLAIM => serde_json::from_slice(value).map_or(Self::Other, Self::Claim),
            _ => Self::Other,
        }
    }
}

/// A record of the starts topic.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type")]
pub enum StartsRecord {
    /// A task was about to be started.
    #[serde(rename = "task_started")]
    Started(TaskStarted),
    /// A start failed.
    #[serde(rename = "task_failed")]
    Failed(TaskFailed),
}

impl StartsRecord {
    /// Reads the value of a record of the starts topic; `None` for anything else.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }
}

fn tagged(kind: &str, value: &impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    struct Tagged<'a, T: Serialize> {
        #[serde(rename = "type")]
        kind: &'a str,
        #[serde(flatten)]
        value: &'a T,
    }
    to_json(&Tagged { kind, value })
}

#[expect(clippy::expect_used, reason = "maps with string keys and finite numbers always have a JSON form")]
fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("the value has a JSON form")
}
