//! The records of accepted tasks, kept until their results arrive. If Kafka deletes such a record, only this gateway
//! can produce it again.
//!
//! Bounded by bytes; further tasks are as safe as their topic. Pure.

use super::key::{Position, TaskKey};
use crate::task::{Headers, Task};
use crate::trace;
use bytes::Bytes;
use std::collections::HashMap;

/// At most this many bytes of records are kept.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// The records of tasks.
#[derive(Debug, Default)]
pub(super) struct Kept {
    records: HashMap<TaskKey, Record>,
    bytes: usize,
}

/// A task that Kafka has dropped, with its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LostTask {
    pub(super) key: TaskKey,
    /// The position of the lost record.
    pub(super) position: Position,
    pub(super) record_key: Option<Bytes>,
    pub(super) record: Record,
}

/// Value and headers of a task's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) value: Bytes,
    pub(super) headers: Headers,
}

impl Record {
    /// The bytes of value and headers.
    pub(super) fn bytes(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Bytes::len));
        self.value.len() + headers.sum::<usize>()
    }

    /// The task for the log, with the id in its value or `record_key`, and with its trace.
    pub(super) fn named(&self, record_key: Option<&[u8]>) -> String {
        let id = Task::id_of(record_key, Some(&self.value));
        id.map_or("the task".to_owned(), |id| format!("task {}", trace::named(&id, &self.headers)))
    }
}

impl Kept {
    /// Keeps the record of a task that is being produced, if there is room.
    pub(super) fn keep(&mut self, key: TaskKey, record: Record) {
        if self.bytes + record.bytes() <= MOST_BYTES {
            self.bytes += record.bytes();
            self.bytes -= self.records.insert(key, record).map_or(0, |replaced| replaced.bytes());
        }
    }

    /// The record of a task, if it was kept.
    pub(super) fn get(&self, key: TaskKey) -> Option<Record> {
        self.records.get(&key).cloned()
    }

    /// Forgets a task that has a result, or was not accepted.
    pub(super) fn forget(&mut self, key: TaskKey) {
        self.bytes -= self.records.remove(&key).map_or(0, |record| record.bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u128) -> TaskKey {
        TaskKey::from_number(number)
    }

    fn record(value: impl Into<Bytes>) -> Record {
        Record { value: value.into(), headers: Headers::new() }
    }

    #[test]
    fn record_is_kept_until_it_is_forgotten() {
        let mut kept = Kept::default();
        kept.keep(key(1), record("one"));
        let traced = Record { headers: vec![("name".into(), Some("value".into()))], ..record("first") };
        kept.keep(key(1), traced.clone());
        assert_eq!((kept.get(key(1)), kept.bytes), (Some(traced), 14));
        kept.forget(key(1));
        kept.forget(key(1));
        assert_eq!((kept.get(key(1)), kept.bytes), (None, 0));
    }

    #[test]
    fn kept_bytes_are_limited() {
        let mut kept = Kept::default();
        kept.keep(key(1), record(vec![0; MOST_BYTES]));
        kept.keep(key(2), record("x"));
        assert_eq!((kept.get(key(2)), kept.bytes), (None, MOST_BYTES));
        kept.forget(key(1));
        kept.keep(key(2), record("x"));
        assert!(kept.get(key(2)).is_some());
    }
}
