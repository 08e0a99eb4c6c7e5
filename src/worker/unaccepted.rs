//! The tasks that this worker finished and could not accept, because their locks were gone.
//!
//! Their results are in Kafka, but the broker delivers their records again. Another worker cannot know and runs them; this
//! one does, and accepts. Not a promise to anybody: the memory is bounded. Called by the account (`in_flight`), under its lock.

use super::in_flight::RecordKey;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Tasks remembered at the most: far more than one worker holds at once. Beyond it the oldest is forgotten.
const MOST_REMEMBERED: usize = 1024;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Unaccepted {
    tasks: HashMap<RecordKey, Arc<str>>,
    order: VecDeque<RecordKey>,
}

impl Unaccepted {
    pub(super) fn remember(&mut self, key: RecordKey, task_id: Arc<str>) {
        self.order.retain(|known| *known != key);
        if self.order.len() >= MOST_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.tasks.remove(&oldest);
        }
        self.order.push_back(key);
        self.tasks.insert(key, task_id);
    }

    /// The task is compared as well: where a log was cut off, another record may stand at the same offset.
    pub(super) fn knows(&self, key: &RecordKey, task_id: &str) -> bool {
        self.tasks.get(key).is_some_and(|known| **known == *task_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::share_wire::SharePartition;
    use uuid::Uuid;

    fn key(offset: i64) -> RecordKey {
        RecordKey { partition: SharePartition { topic_id: Uuid::nil(), partition: 0 }, offset }
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut unaccepted = Unaccepted::default();
        let last = i64::try_from(MOST_REMEMBERED).unwrap_or(i64::MAX);
        for offset in (0..=last).chain([2]) {
            unaccepted.remember(key(offset), "task".into());
        }
        assert_eq!((unaccepted.tasks.len(), unaccepted.order.len()), (MOST_REMEMBERED, MOST_REMEMBERED));
        assert!(!unaccepted.knows(&key(0), "task"));
        assert!((1..=last).all(|offset| unaccepted.knows(&key(offset), "task")));
        unaccepted.remember(key(0), "task".into());
        unaccepted.remember(key(last + 1), "task".into());
        let known = [1, 2, 3, 4].map(|offset| unaccepted.knows(&key(offset), "task"));
        assert_eq!(known, [false, true, false, true], "2 was said again");
    }
}
