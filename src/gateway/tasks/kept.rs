//! The records of accepted tasks, kept until their results arrive. If Kafka deletes such a record, only this gateway
//! can produce it again.
//!
//! Bounded by bytes; further tasks are as safe as their topic. Pure.

use super::key::TaskKey;
use bytes::Bytes;
use std::collections::HashMap;

/// At most this many bytes of values are kept.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// The values of task records.
#[derive(Debug, Default)]
pub(super) struct Kept {
    values: HashMap<TaskKey, Bytes>,
    bytes: usize,
}

impl Kept {
    /// Keeps the value of a task that is being produced, if there is room.
    pub(super) fn keep(&mut self, key: TaskKey, value: Bytes) {
        if self.bytes + value.len() <= MOST_BYTES {
            self.bytes += value.len();
            self.bytes -= self.values.insert(key, value).map_or(0, |replaced| replaced.len());
        }
    }

    /// The value of a task, if it was kept.
    pub(super) fn get(&self, key: TaskKey) -> Option<Bytes> {
        self.values.get(&key).cloned()
    }

    /// Forgets a task that has a result, or was not accepted.
    pub(super) fn forget(&mut self, key: TaskKey) {
        self.bytes -= self.values.remove(&key).map_or(0, |value| value.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u128) -> TaskKey {
        TaskKey::from_number(number)
    }

    #[test]
    fn value_is_kept_until_it_is_forgotten() {
        let mut kept = Kept::default();
        kept.keep(key(1), Bytes::from_static(b"one"));
        kept.keep(key(1), Bytes::from_static(b"first"));
        assert_eq!((kept.get(key(1)), kept.bytes), (Some(Bytes::from_static(b"first")), 5));
        kept.forget(key(1));
        kept.forget(key(1));
        assert_eq!((kept.get(key(1)), kept.bytes), (None, 0));
    }

    #[test]
    fn kept_bytes_are_limited() {
        let mut kept = Kept::default();
        kept.keep(key(1), Bytes::from(vec![0; MOST_BYTES]));
        kept.keep(key(2), Bytes::from_static(b"x"));
        assert_eq!((kept.get(key(2)), kept.bytes), (None, MOST_BYTES));
        kept.forget(key(1));
        kept.keep(key(2), Bytes::from_static(b"x"));
        assert!(kept.get(key(2)).is_some());
    }
}
