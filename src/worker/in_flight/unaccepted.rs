//! The tasks that this worker finished and could not accept, because it had lost their locks.
//!
//! Their results are in Kafka, but the broker delivers their records again. Another worker runs such a task again; this
//! worker accepts the record (rule 12). The memory is bounded, so this is no promise. Called by the account
//! ([`super`]), under its lock.

use super::entry::RecordKey;
use kafka_share::share_wire::SharePartition;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// At most this many tasks are remembered, far more than a worker holds at once; then the oldest is forgotten.
const MOST_REMEMBERED: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Unaccepted {
    tasks: HashMap<RecordKey, Arc<str>>,
    order: VecDeque<RecordKey>,
    /// Tasks that the next fetches from the partition's new leader may bring, before another member has them.
    sought: BTreeSet<RecordKey>,
}

impl Unaccepted {
    pub(super) fn remember(&mut self, key: RecordKey, task_id: Arc<str>, sought: bool) {
        self.forget(&key);
        if self.order.len() >= MOST_REMEMBERED
            && let Some(oldest) = self.order.front().copied()
        {
            self.forget(&oldest);
        }
        self.order.push_back(key);
        self.tasks.insert(key, task_id);
        if sought {
            self.sought.insert(key);
        }
    }

    /// Forgets a task, for example because it was accepted.
    pub(super) fn forget(&mut self, key: &RecordKey) {
        if self.tasks.remove(key).is_some() {
            self.order.retain(|known| known != key);
            self.sought.remove(key);
        }
    }

    /// Compares the task as well: after the log was truncated, another record may stand at the same offset.
    pub(super) fn knows(&self, key: &RecordKey, task_id: &str) -> bool {
        self.tasks.get(key).is_some_and(|known| **known == *task_id)
    }

    /// Ends the search for a record that has come; it stays known until it is accepted.
    pub(super) fn found(&mut self, key: &RecordKey) {
        self.sought.remove(key);
    }

    pub(super) fn sought(&self, partition: SharePartition) -> usize {
        self.sought.iter().filter(|key| key.partition == partition).count()
    }

    pub(super) fn end_search(&mut self, partition: SharePartition) {
        self.sought.retain(|key| key.partition != partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn key(offset: i64) -> RecordKey {
        RecordKey { partition: SharePartition { topic_id: Uuid::nil(), partition: 0 }, offset }
    }

    #[test]
    fn oldest_task_is_forgotten_first() {
        let mut unaccepted = Unaccepted::default();
        let last = i64::try_from(MOST_REMEMBERED).unwrap_or(i64::MAX);
        for offset in (0..=last).chain([2]) {
            unaccepted.remember(key(offset), "task".into(), false);
        }
        assert_eq!((unaccepted.tasks.len(), unaccepted.order.len()), (MOST_REMEMBERED, MOST_REMEMBERED));
        assert!(!unaccepted.knows(&key(0), "task"));
        assert!((1..=last).all(|offset| unaccepted.knows(&key(offset), "task")));
        unaccepted.remember(key(0), "task".into(), false);
        unaccepted.remember(key(last + 1), "task".into(), false);
        let known = [1, 2, 3, 4].map(|offset| unaccepted.knows(&key(offset), "task"));
        assert_eq!(known, [false, true, false, true], "2 was remembered again");
    }

    #[test]
    fn search_ends_with_the_record_or_with_its_partition() {
        let mut unaccepted = Unaccepted::default();
        for offset in 0..3 {
            unaccepted.remember(key(offset), "task".into(), offset > 0);
        }
        let partition = key(0).partition;
        assert_eq!(unaccepted.sought(partition), 2);
        unaccepted.found(&key(1));
        assert!(unaccepted.knows(&key(1), "task"), "until it is accepted");
        assert_eq!(unaccepted.sought(partition), 1);
        unaccepted.end_search(partition);
        assert_eq!(unaccepted.sought(partition), 0);
        unaccepted.forget(&key(1));
        assert!(!unaccepted.knows(&key(1), "task"));
    }
}
