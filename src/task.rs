//! The records of the topics: tasks, results, statuses, claims and starts, as JSON.
//!
//! Formats and their checks only; nothing here knows a topic's name or a connection. Readers ignore members and types
//! that they do not know, so that programs of different versions can run side by side. Called by worker and gateway,
//! and by everything else that reads or writes the topics.

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

/// Reads an object. For serde an array would do as well, with the members' values in their order.
fn from_object<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, serde_json::Error> {
    match value.trim_ascii_start().first() {
        None | Some(b'{') => serde_json::from_slice(value),
        Some(_) => Err(serde::de::Error::custom("not a JSON object")),
    }
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
        let task = value.and_then(|value| from_object::<Self>(value).ok());
        match task {
            Some(task) if is_task_id(&task.task_id) => Ok(task),
            // Only the rare bad record pays for finding out why.
            _ => Err(BadTask::diagnose(key, value)),
        }
    }

    /// The id under which a record's outcome is told, as its worker finds it: that in the value, or of a record that is
    /// no task the key's.
    pub fn id_of(key: Option<&[u8]>, value: Option<&[u8]>) -> Option<String> {
        #[derive(Deserialize)]
        struct Peek {
            task_id: String,
        }
        let peek = value.and_then(|value| from_object::<Peek>(value).ok());
        match peek {
            Some(peek) if is_task_id(&peek.task_id) => Some(peek.task_id),
            _ => BadTask::diagnose(key, value).task_id,
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

/// The first thing that keeps an object from being a task. In our own words: those of serde quote what was found, and a
/// task's text must not get into logs and headers.
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

impl ResultPeek {
    /// Reads the value of a record; `None`: it is no result.
    pub fn decode(value: &[u8]) -> Option<Self> {
        from_object(value).ok()
    }
}

/// The end of every result that [`TaskResult::encode`] wrote.
const RESULT_SUFFIX: &[u8] = br#","type":"result"}"#;

impl TaskResult {
    /// The value of its record: `"type":"result"` comes last, so that [`body_for_http`](Self::body_for_http) finds it
    /// at once.
    pub fn encode(&self) -> Vec<u8> {
        to_json(self)
    }

    /// The value of a result's record as callers get it: the same JSON without its `type`.
    pub fn body_for_http(value: &[u8]) -> Cow<'_, [u8]> {
        // In an object that ends so, these bytes are its last member: a quote before the closing brace ends a string,
        // and reading backwards from it each of the others is unescaped too.
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
        match from_object::<Typed<'_>>(value) {
            Ok(typed) => Self::decode_kind(typed.kind.as_bytes(), value),
            Err(_) => Self::Bad("the value is not a JSON object with a type"),
        }
    }

    /// Reads a record. Its [`KIND_HEADER`] saves a look; a stranger's record has none.
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

/// Said when a worker that stops gives back a task that it has started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStopped {
    /// Which task it is.
    pub task_id: String,
    /// The worker that stops.
    pub worker_id: String,
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
    /// A worker that stops gave it back: this start was nobody's fault.
    #[serde(rename = "task_stopped")]
    Stopped(TaskStopped),
}

impl StartsRecord {
    /// Reads the value of a record; `None` for what this version does not know.
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

impl TaskFailed {
    /// The value of its record.
    pub fn encode(&self) -> Vec<u8> {
        to_json(&StartsRecord::Failed(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).expect("JSON is UTF-8")
    }

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(members) = value else { panic!("an object") };
        members
    }

    #[test]
    fn a_task_is_this_json() {
        let mut task =
            Task {
                task_id: "a-1".to_owned(), text: "ёж \"x\"\n".to_owned(), timestamp: 1703123456.25, work_ms: None
            };
        let json = r#"{"task_id":"a-1","text":"ёж \"x\"\n","timestamp":1703123456.25}"#;
        assert_eq!(text(&task.encode()), json);
        assert_eq!(Task::decode(None, Some(json.as_bytes())), Ok(task.clone()));
        task.work_ms = Some(250);
        let json = r#"{"task_id":"a-1","text":"ёж \"x\"\n","timestamp":1703123456.25,"work_ms":250}"#;
        assert_eq!(text(&task.encode()), json);
        assert_eq!(Task::decode(None, Some(json.as_bytes())), Ok(task));
    }

    #[test]
    fn a_task_needs_no_more_than_an_id_and_a_text() {
        for json in [
            r#"{"task_id":"a","text":""}"#,
            r#" { "text" : "" , "task_id" : "a" } "#,
            r#"{"task_id":"a","text":"","work_ms":null,"of_a_later_version":{"deep":[1,{"er":null}]}}"#,
            r#"{"task_id":"\u0061","text":"","timestamp":0}"#,
        ] {
            let expected = Task { task_id: "a".to_owned(), text: String::new(), timestamp: 0.0, work_ms: None };
            assert_eq!(Task::decode(Some(b"other"), Some(json.as_bytes())), Ok(expected), "{json}");
        }
    }

    #[test]
    fn what_is_no_task_is_told_with_the_id_it_has() {
        let long = "x".repeat(ID_LIMIT + 1);
        let of_long = format!(r#"{{"task_id":"{long}","text":"t"}}"#);
        let nested = format!(r#"{{"task_id":"a","text":"t","deep":{}"#, "[".repeat(1_000));
        let id_rule = "task_id is not 1 to 100 printable ASCII characters";
        // Key, value, how the reason begins, and the id.
        type Case<'a> = (Option<&'a [u8]>, Option<&'a [u8]>, &'a str, Option<&'a str>);
        let cases: &[Case<'_>] = &[
            (None, None, "the value is null", None),
            (Some(b"k"), None, "the value is null", Some("k")),
            (Some(b"k"), Some(b""), "the value is not JSON: EOF", Some("k")),
            (Some(b"k"), Some(b"not json"), "the value is not JSON: ", Some("k")),
            (Some(b"k"), Some(br#"{"task_id":"a","text":"t"#), "the value is not JSON: EOF", Some("k")),
            (Some(b"k"), Some(br#"{"task_id":"a","text":"t"} x"#), "the value is not JSON: trailing", Some("k")),
            (Some(b"k"), Some(nested.as_bytes()), "the value is not JSON: recursion limit", Some("k")),
            (Some(b"k"), Some(b"{\"task_id\":\"a\",\"text\":\"\xff\"}"), "the value is not UTF-8", Some("k")),
            (Some(b"\xff"), Some(b"\xff"), "the value is not UTF-8", None),
            (Some(b"k"), Some(br#"{"task_id":"a","text":"\ud800"}"#), "the value is not JSON: ", Some("k")),
            (Some(b"k"), Some(b"null"), "the value is not a JSON object", Some("k")),
            (Some(b"k"), Some(br#"["a","t"]"#), "the value is not a JSON object", Some("k")),
            (Some(b"k"), Some(b"{}"), "task_id is missing", Some("k")),
            (None, Some(br#"{"text":"t"}"#), "task_id is missing", None),
            (Some(b"k"), Some(br#"{"text":"t"}"#), "task_id is missing", Some("k")),
            (Some(b"k"), Some(br#"{"task_id":7,"text":"t"}"#), "task_id is not a string", Some("k")),
            (Some(b"k"), Some(br#"{"task_id":null,"text":"t"}"#), "task_id is not a string", Some("k")),
            (Some(b"k"), Some(br#"{"task_id":"","text":"t"}"#), id_rule, Some("k")),
            (Some(b"k"), Some(br#"{"task_id":"a\nb","text":"t"}"#), id_rule, Some("k")),
            (Some(b"k"), Some("{\"task_id\":\"ё\",\"text\":\"t\"}".as_bytes()), id_rule, Some("k")),
            (Some("ё".as_bytes()), Some(of_long.as_bytes()), id_rule, None),
            (Some(b"k"), Some(br#"{"task_id":"a"}"#), "text is missing", Some("a")),
            (Some(b"k"), Some(br#"{"task_id":"a","text":null}"#), "text is not a string", Some("a")),
            (None, Some(br#"{"task_id":"a","text":["secret"]}"#), "text is not a string", Some("a")),
            (None, Some(br#"{"task_id":"a","text":"t","timestamp":"secret"}"#), "timestamp is not a number", Some("a")),
            (None, Some(br#"{"task_id":"a","text":"t","work_ms":-1}"#), "work_ms is not a whole number", Some("a")),
            (None, Some(br#"{"task_id":"a","text":"t","work_ms":1.5}"#), "work_ms is not a whole number", Some("a")),
            (
                None,
                Some(br#"{"task_id":"a","text":"t","work_ms":"secret"}"#),
                "work_ms is not a whole number",
                Some("a"),
            ),
            (None, Some(br#"{"task_id":"a","text":"t","text":"secret"}"#), "a member appears twice", Some("a")),
        ];
        for (key, value, reason, id) in cases {
            let shown = value.map(String::from_utf8_lossy);
            let bad = Task::decode(*key, *value).expect_err("no task");
            assert!(bad.reason.starts_with(reason), "{shown:?}: {}", bad.reason);
            assert!(!bad.reason.contains("secret"), "{shown:?}: {}", bad.reason);
            assert_eq!(bad.task_id.as_deref(), *id, "{shown:?}");
        }
    }

    #[test]
    fn ids_are_printable_ascii() {
        let longest = "x".repeat(ID_LIMIT);
        for id in ["a", " ", "~", "0190163d-8694-739b-aea5-966c26f8ad91", &longest] {
            assert!(is_task_id(id), "{id:?}");
        }
        let longer = "x".repeat(ID_LIMIT + 1);
        for id in ["", "\t", "a\u{7f}", "ё", "🛑", &longer] {
            assert!(!is_task_id(id), "{id:?}");
        }
    }

    fn result(error: Option<&str>, output: Value) -> TaskResult {
        TaskResult {
            task_id: "a".to_owned(),
            success: error.is_none(),
            error: error.map(str::to_owned),
            output: object(output),
            processed_by: "worker_1".to_owned(),
            seconds: 0.000_123_456_7,
        }
    }

    #[test]
    fn a_result_is_this_json() {
        let done = result(None, json!({"chars": 3, "top_words": [["the", 3]]}));
        let json = r#"{"task_id":"a","success":true,"chars":3,"top_words":[["the",3]],"processed_by":"worker_1","seconds":0.000123,"type":"result"}"#;
        assert_eq!(text(&done.encode()), json);
        let failed = result(Some("no \"luck\""), json!({}));
        let json = r#"{"task_id":"a","success":false,"error":"no \"luck\"","processed_by":"worker_1","seconds":0.000123,"type":"result"}"#;
        assert_eq!(text(&failed.encode()), json);
    }

    #[test]
    fn a_handler_cannot_replace_what_the_worker_says() {
        let output = json!({"type": "x", "task_id": "b", "success": false, "error": "e", "processed_by": "me", "seconds": 9, "mine": 1});
        let json =
            r#"{"task_id":"a","success":true,"mine":1,"processed_by":"worker_1","seconds":0.000123,"type":"result"}"#;
        assert_eq!(text(&result(None, output).encode()), json);
    }

    #[test]
    fn what_a_gateway_needs_of_a_result_reads_back() {
        for original in [result(None, json!({"chars": 3, "deep": {"success": false}})), result(Some("why"), json!({}))]
        {
            let peek = ResultPeek::decode(&original.encode()).expect("our own");
            assert_eq!((peek.task_id, peek.success, peek.error), (original.task_id, original.success, original.error));
        }
        for bad in ["[]", "{}", r#"["a", true, null]"#, r#"{"task_id":"a"}"#] {
            assert_eq!(ResultPeek::decode(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn callers_get_a_result_without_its_type() {
        for (value, body) in [
            // As we write it; and as others may.
            (r#"{"task_id":"a","seconds":0.1,"type":"result"}"#, r#"{"task_id":"a","seconds":0.1}"#),
            (r#"{"type":"result","task_id":"a"}"#, r#"{"task_id":"a"}"#),
            (r#"{"task_id":"a", "type": "result" }"#, r#"{"task_id":"a"}"#),
            (r#"{"task_id":"a","type":"result"} "#, r#"{"task_id":"a"}"#),
            (r#"{"type":"result"}"#, "{}"),
            // Only the type of the result itself goes.
            (r#"{"a":{"type":"result"},"type":"result"}"#, r#"{"a":{"type":"result"}}"#),
            (r#"{"a":"x,\"type\":\"result\"}","type":"result"}"#, r#"{"a":"x,\"type\":\"result\"}"}"#),
            (r#"{"a":",\"type\":\"result\"}"}"#, r#"{"a":",\"type\":\"result\"}"}"#),
            // What is no object stays as it is.
            ("not json", "not json"),
        ] {
            assert_eq!(text(&TaskResult::body_for_http(value.as_bytes())), body, "{value}");
        }
    }

    fn status() -> WorkerStatus {
        WorkerStatus {
            worker_id: "worker_1".to_owned(),
            status: WorkerState::ShutdownStarted,
            timestamp: 12.5,
            current_task: Some("a".to_owned()),
            current_tasks: vec!["a".to_owned(), "b".to_owned()],
            instance: Uuid::from_u128(1),
            started_at: 2.5,
            stop_deadline: None,
            holding_back: false,
            receipt: None,
        }
    }

    #[test]
    fn a_status_is_this_json() {
        let json = r#"{"type":"worker_status","worker_id":"worker_1","status":"shutdown_started","timestamp":12.5,"current_task":"a","current_tasks":["a","b"],"instance":"00000000-0000-0000-0000-000000000001","started_at":2.5}"#;
        assert_eq!(text(&status().encode()), json);
        assert_eq!(ResultsRecord::decode(Some(json.as_bytes())), ResultsRecord::Status(Box::new(status())));
        let receipt = Receipt {
            worker_id: "worker_1".to_owned(),
            signal: "SIGTERM".to_owned(),
            outcome: "drained".to_owned(),
            phases_ms: object(json!({"waiting": 7, "closing": 2})),
            tasks_finished: 1,
            tasks_returned: 2,
            tasks_abandoned: vec!["a".to_owned()],
            exit_code: 3,
        };
        let json = r#"{"worker_id":"worker_1","signal":"SIGTERM","outcome":"drained","phases_ms":{"waiting":7,"closing":2},"tasks_finished":1,"tasks_returned":2,"tasks_abandoned":["a"],"exit_code":3}"#;
        assert_eq!(receipt.to_line(), json);
        let last = WorkerStatus {
            status: WorkerState::ShutdownCompleted,
            current_task: None,
            current_tasks: Vec::new(),
            stop_deadline: Some(20.5),
            holding_back: true,
            receipt: Some(receipt),
            ..status()
        };
        let json = format!(
            r#"{{"type":"worker_status","worker_id":"worker_1","status":"shutdown_completed","timestamp":12.5,"current_task":null,"current_tasks":[],"instance":"00000000-0000-0000-0000-000000000001","started_at":2.5,"stop_deadline":20.5,"holding_back":true,"receipt":{json}}}"#
        );
        assert_eq!(text(&last.encode()), json);
        assert_eq!(ResultsRecord::decode(Some(json.as_bytes())), ResultsRecord::Status(Box::new(last)));
    }

    #[test]
    fn a_status_needs_no_more_than_the_first_version_had() {
        let json = br#"{"type":"worker_status","worker_id":"w","status":"worker_started","timestamp":1,"current_task":null,"later":1}"#;
        let ResultsRecord::Status(status) = ResultsRecord::decode(Some(json)) else { panic!("a status") };
        assert_eq!((status.status, status.timestamp, status.instance), (WorkerState::Started, 1.0, Uuid::nil()));
        let receipt = br#"{"type":"worker_status","worker_id":"w","status":"shutdown_completed","timestamp":1,"receipt":{"exit_code":3}}"#;
        let ResultsRecord::Status(status) = ResultsRecord::decode(Some(receipt)) else { panic!("a status") };
        assert_eq!(status.receipt.map(|receipt| receipt.exit_code), Some(3));
    }

    #[test]
    fn a_claim_is_this_json() {
        let claim =
            Claim { task_id: "a".to_owned(), text_hash: "ff".to_owned(), gateway: "g".to_owned(), timestamp: 1.5 };
        let json = r#"{"type":"claim","task_id":"a","text_hash":"ff","gateway":"g","timestamp":1.5}"#;
        assert_eq!(text(&claim.encode()), json);
        assert_eq!(ResultsRecord::decode(Some(json.as_bytes())), ResultsRecord::Claim(claim));
    }

    #[test]
    fn records_of_results_are_told_apart() {
        let peek = ResultPeek { task_id: "a".to_owned(), success: false, error: Some("why".to_owned()) };
        let json = br#"{"task_id":"a","success":false,"error":"why","more":[1],"type":"result"}"#;
        assert_eq!(ResultsRecord::decode(Some(json)), ResultsRecord::Result(peek.clone()));
        assert_eq!(ResultsRecord::decode_kind(KIND_RESULT.as_bytes(), json), ResultsRecord::Result(peek));
        assert_eq!(ResultsRecord::decode(Some(br#"{"type":"weather","task_id":"a"}"#)), ResultsRecord::Other);
        assert_eq!(ResultsRecord::decode_kind(b"\xff", json), ResultsRecord::Other);
    }

    #[test]
    fn records_of_results_that_cannot_be_read_are_told() {
        let cases: &[(Option<&[u8]>, &str)] = &[
            (None, "null"),
            (Some(b""), "not a JSON object with a type"),
            (Some(b"\xff"), "not a JSON object with a type"),
            (Some(b"{}"), "not a JSON object with a type"),
            (Some(br#"["result"]"#), "not a JSON object with a type"),
            (Some(br#"{"type":7}"#), "not a JSON object with a type"),
            (Some(br#"{"type":"result"}"#), "no task_id or no success"),
            (Some(br#"{"type":"result","task_id":"","success":true}"#), "100 printable"),
            (Some(br#"{"type":"result","task_id":"a","success":"yes"}"#), "no success"),
            (Some(br#"{"type":"worker_status","worker_id":"w"}"#), "lacks a member"),
            (Some(br#"{"type":"worker_status","worker_id":"w","status":"asleep","timestamp":1}"#), "of a wrong type"),
            (
                Some(br#"{"type":"worker_status","worker_id":"a\nb","status":"worker_started","timestamp":1}"#),
                "100 printable",
            ),
            (Some(br#"{"type":"claim","task_id":"a"}"#), "lacks a member"),
        ];
        for (value, part) in cases {
            let ResultsRecord::Bad(reason) = ResultsRecord::decode(*value) else { panic!("{part}: not told") };
            assert!(reason.contains(part), "{part}: {reason}");
        }
    }

    #[test]
    fn a_start_that_a_stop_ended_is_this_json() {
        let stopped = TaskStopped { task_id: "a".to_owned(), worker_id: "w".to_owned() };
        let json = r#"{"type":"task_stopped","task_id":"a","worker_id":"w"}"#;
        assert_eq!(text(&stopped.encode()), json);
        assert_eq!(StartsRecord::decode(json.as_bytes()), Some(StartsRecord::Stopped(stopped)));
    }

    #[test]
    fn starts_are_this_json() {
        let started = TaskStarted { task_id: "a".to_owned(), delivery: 2, worker_id: "w".to_owned() };
        let json = r#"{"type":"task_started","task_id":"a","delivery":2,"worker_id":"w"}"#;
        assert_eq!(text(&started.encode()), json);
        assert_eq!(StartsRecord::decode(json.as_bytes()), Some(StartsRecord::Started(started)));
        let failed =
            TaskFailed { task_id: "a".to_owned(), delivery: 2, worker_id: "w".to_owned(), error: "why".to_owned() };
        let json = r#"{"type":"task_failed","task_id":"a","delivery":2,"worker_id":"w","error":"why"}"#;
        assert_eq!(text(&failed.encode()), json);
        assert_eq!(StartsRecord::decode(json.as_bytes()), Some(StartsRecord::Failed(failed)));
        assert_eq!(StartsRecord::decode(br#"{"type":"task_paused","task_id":"a"}"#), None);
        assert_eq!(StartsRecord::decode(b"\xff"), None);
    }

    #[test]
    fn the_clock_is_after_2020() {
        assert!(unix_now() > 1_577_836_800.0);
    }

    proptest! {
        #[test]
        fn any_task_reads_back(id in "[ -~]{1,100}", words in any::<String>(), eighths in any::<u32>(), work in any::<Option<u64>>()) {
            let task = Task { task_id: id, text: words, timestamp: f64::from(eighths) / 8.0, work_ms: work };
            prop_assert_eq!(Task::decode(None, Some(&task.encode())), Ok(task));
        }

        #[test]
        fn no_bytes_make_decoding_panic(key in any::<Option<Vec<u8>>>(), value in any::<Option<Vec<u8>>>()) {
            let _ = ResultsRecord::decode(value.as_deref());
            let _ = value.as_deref().map(StartsRecord::decode);
            if let Err(bad) = Task::decode(key.as_deref(), value.as_deref()) {
                prop_assert!(bad.task_id.is_none_or(|id| is_task_id(&id)));
            }
        }

        /// The quick way to the body and the slow one agree.
        #[test]
        fn the_body_is_the_result_without_its_type(error in any::<Option<String>>(), name in any::<String>(), member in any::<String>()) {
            let result = result(error.as_deref(), json!({ name: member, "last": {"type": "result"} }));
            let value = result.encode();
            let mut members: Map<String, Value> = serde_json::from_slice(&value).expect("our own");
            members.shift_remove("type");
            let body: Map<String, Value> = serde_json::from_slice(&TaskResult::body_for_http(&value)).expect("JSON");
            prop_assert_eq!(body, members);
        }
    }
}
