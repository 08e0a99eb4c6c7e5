//! The records of the topics: tasks, results, status records, claims and starts, as JSON; dead letters by headers.
//!
//! Formats and their checks only, without topic names or connections. Readers ignore unknown members and types, so
//! programs of different versions can run together. Called by worker, gateway, and all other programs that read or
//! write the topics.

pub mod dead;
mod results;
mod starts;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use results::{
    Claim, KIND_CLAIM, KIND_HEADER, KIND_RESULT, KIND_STATUS, RESULT_MEMBERS, Receipt, ResultPeek, ResultsRecord,
    TaskResult, WorkerState, WorkerStatus,
};
pub use starts::{StartsRecord, TaskFailed, TaskReplayed, TaskStarted, TaskStopped};

/// Longest task id and worker id, in characters.
pub const ID_LIMIT: usize = 100;
/// The headers of a task's record that its worker hands on to the record of its result: the trace context (W3C Trace
/// Context, sections 3.2 and 3.3), and the number of the replay.
pub const CARRIED_HEADERS: &[&str] = &[crate::trace::PARENT, crate::trace::STATE, dead::REPLAY_HEADER];
/// Longest value of a header that is handed on, in bytes: headers of strangers must not make a result too large.
pub const LONGEST_CARRIED: usize = 1024;

/// Headers of a record to be written, as [`ProducerRecord`](kafka_share::producer::ProducerRecord) takes them.
pub type Headers = Vec<(Cow<'static, str>, Option<Bytes>)>;

/// The headers that a task's record hands on: the first of each name in [`CARRIED_HEADERS`], unless its value is longer
/// than [`LONGEST_CARRIED`].
pub fn carried(headers: &[(String, Option<Bytes>)]) -> Headers {
    if headers.is_empty() {
        return Headers::new();
    }
    let first = |name: &&'static str| {
        let (_, value) = headers.iter().find(|(own, _)| own == name)?;
        let fits = value.as_ref().is_none_or(|value| value.len() <= LONGEST_CARRIED);
        fits.then(|| (Cow::Borrowed(*name), value.clone()))
    };
    CARRIED_HEADERS.iter().filter_map(first).collect()
}

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

/// Encodes a type of this module as JSON.
fn to_json(value: &impl Serialize) -> Vec<u8> {
    // Maps with string keys, strings and numbers have a JSON form, and a vector accepts all bytes.
    serde_json::to_vec(value).expect("the types of this module can be written as JSON")
}

/// Decodes a JSON object; serde alone would also accept an array of the members' values.
fn from_object<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, serde_json::Error> {
    match value.trim_ascii_start().first() {
        None | Some(b'{') => serde_json::from_slice(value),
        Some(_) => Err(serde::de::Error::custom("not a JSON object")),
    }
}

/// One record of the tasks topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// The task's id; [`is_task_id`] holds.
    pub task_id: String,
    /// The text to work on. Never logged.
    pub text: String,
    /// When it was accepted, in Unix seconds; 0 if unknown.
    #[serde(default)]
    pub timestamp: f64,
    /// How much longer the handler takes, in milliseconds; for demonstrations and drills.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_ms: Option<u64>,
}

/// Why a record of the tasks topic is not a task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BadTask {
    /// The fault, without any of the record's content.
    pub reason: String,
    /// A usable task id from the value, or else from the key.
    pub task_id: Option<String>,
}

impl Task {
    /// Decodes a record. The key is used only to find an id for a record that is not a task.
    pub fn decode(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Self, BadTask> {
        let task = value.and_then(|value| from_object::<Self>(value).ok());
        match task {
            Some(task) if is_task_id(&task.task_id) => Ok(task),
            // Only the rare bad record is parsed again for its fault.
            _ => Err(BadTask::diagnose(key, value)),
        }
    }

    /// The id of a record as its worker finds it: the id in the value, or the key's for a record that is not a task.
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

/// Decodes the value of a record as an object, or returns its fault.
fn parse(value: &[u8]) -> Result<Map<String, Value>, String> {
    if std::str::from_utf8(value).is_err() {
        return Err("the value is not UTF-8".to_owned());
    }
    match serde_json::from_slice(value) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err("the value is not a JSON object".to_owned()),
        // A syntax error names a place, not the text there.
        Err(error) => Err(format!("the value is not JSON: {error}")),
    }
}

/// The first fault of an object that is not a task. Not serde's text, which quotes the value: a task's text must not
/// get into logs and headers.
fn fault_of(members: &Map<String, Value>) -> &'static str {
    let member = |name: &str| members.get(name);
    match (member("task_id"), member("text")) {
        (None, _) => "task_id is missing",
        (Some(Value::String(id)), _) if !is_task_id(id) => "task_id is not 1 to 100 printable ASCII characters",
        (Some(Value::String(_)), None) => "text is missing",
        (Some(Value::String(_)), Some(Value::String(_))) => match (member("timestamp"), member("work_ms")) {
            (Some(timestamp), _) if !timestamp.is_number() => "timestamp is not a number",
            (_, Some(work)) if !work.is_null() && !work.is_u64() => "work_ms is not a whole number",
            _ => "a member occurs twice",
        },
        (Some(Value::String(_)), Some(_)) => "text is not a string",
        (Some(_), _) => "task_id is not a string",
    }
}
