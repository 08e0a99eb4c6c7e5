//! The index of tasks: which are pending, and the positions of the other tasks' results.
//!
//! It holds positions in Kafka, not values: a requested result is fetched. Filled from `results` and `tasks`, so every
//! gateway, a fresh one too, knows the same. Results are bounded by age and by number (`MAX_RESULTS`); displaced
//! results have to be searched for in Kafka. Results of idempotency keys are bounded only by age, since their tasks
//! would run again. A pending task is never forgotten, but with `MAX_PENDING` of them the gateway accepts no new tasks.
//! A replay replaces what is known of its task, in either order of reading. Pure: times are parameters.

use super::key::{Position, TaskKey};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, SystemTime};

/// A result is displaced only after this time: its task, which is read later, would seem pending.
const PUSHED_OUT_AFTER: Duration = Duration::from_secs(10);
/// A larger table that is mostly empty is shrunk.
const SPARSE: usize = 8_192;

/// The state of a task in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The task is unknown.
    Nothing,
    /// The task is on the tasks topic and has no result.
    Pending,
    /// The position of its result.
    Done(Position),
}

/// A task without a result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PendingTask {
    /// The position of its last record.
    pub(super) position: Position,
    /// When Kafka appended that record.
    pub(super) since: SystemTime,
    /// The number of earlier records.
    pub(super) again: u32,
}

#[derive(Clone, Copy, Debug)]
struct ResultEntry {
    position: Position,
    at: SystemTime,
}

#[derive(Debug)]
pub(super) struct Index {
    retention: Duration,
    most_results: usize,
    pending: HashMap<TaskKey, PendingTask>,
    results: HashMap<TaskKey, ResultEntry>,
    /// The number of the last replay of tasks in `pending` or `results`; most tasks have none.
    replays: HashMap<TaskKey, u64>,
    by_age: VecDeque<(SystemTime, TaskKey)>,
    /// The same of idempotency keys.
    keyed_by_age: VecDeque<(SystemTime, TaskKey)>,
    /// The time of the newest displaced result, within the retention.
    pushed_out: Option<SystemTime>,
    duplicates: u64,
}

impl Index {
    /// Results are remembered for `retention`, and at most `most_results` of those without an idempotency key.
    pub(super) fn new(retention: Duration, most_results: usize) -> Self {
        Self {
            retention,
            most_results,
            pending: HashMap::new(),
            results: HashMap::new(),
            replays: HashMap::new(),
            by_age: VecDeque::new(),
            keyed_by_age: VecDeque::new(),
            pushed_out: None,
            duplicates: 0,
        }
    }

    /// Whether a record of this replay (0: of none) counts, so that its task or result is to be added. It does not
    /// count after a later replay. The first record of a replay replaces what is known of the task.
    pub(super) fn heeds(&mut self, key: TaskKey, replay: u64) -> bool {
        if replay == 0 && self.replays.is_empty() {
            return true;
        }
        let known = self.replay(key);
        if replay > known {
            self.pending.remove(&key);
            self.results.remove(&key);
            self.replays.insert(key, replay);
        }
        replay >= known
    }

    /// The number of the task's last replay; 0 if there was none.
    pub(super) fn replay(&self, key: TaskKey) -> u64 {
        self.replays.get(&key).copied().unwrap_or_default()
    }

    /// Adds a record of the tasks topic, unless the task's result is known. Of several records the last counts: the
    /// task was produced again because the earlier record was lost.
    pub(super) fn task(&mut self, key: TaskKey, position: Position, at: SystemTime) {
        if self.results.contains_key(&key) {
            return;
        }
        let pending = self.pending.entry(key).or_insert(PendingTask { position, since: at, again: 0 });
        // In different partitions only the times tell which record is later.
        let is_later = match position.partition == pending.position.partition {
            true => position.offset > pending.position.offset,
            false => at > pending.since,
        };
        if is_later {
            *pending = PendingTask { position, since: at, again: pending.again + 1 };
        }
    }

    /// Adds a record of the results topic; the first result in the log counts. Returns true if the result is new.
    pub(super) fn result(&mut self, key: TaskKey, position: Position, at: SystemTime) -> bool {
        self.pending.remove(&key);
        if let Some(known) = self.results.get_mut(&key) {
            if position < known.position {
                known.position = position;
            }
            self.duplicates += u64::from(position != known.position);
            return false;
        }
        self.results.insert(key, ResultEntry { position, at });
        self.by_age.push_back((at, key));
        true
    }

    /// The state of the task.
    pub(super) fn known(&self, key: TaskKey) -> Known {
        if let Some(result) = self.results.get(&key) {
            return Known::Done(result.position);
        }
        if self.pending.contains_key(&key) { Known::Pending } else { Known::Nothing }
    }

    /// Forgets results older than the retention. Displaces the oldest beyond `MAX_RESULTS`, but not results of keys.
    pub(super) fn forget_old(&mut self, now: SystemTime, is_keyed: impl Fn(TaskKey) -> bool) {
        let is_older = |at: &SystemTime, age: Duration| now.duration_since(*at).is_ok_and(|own| own > age);
        let mut old = pop_while(&mut self.by_age, |(at, _)| is_older(at, self.retention));
        old.extend(pop_while(&mut self.keyed_by_age, |(at, _)| is_older(at, self.retention)));
        for (at, key) in old {
            self.remove(at, key);
        }
        let too_many = self.by_age.len().saturating_sub(self.most_results);
        let old_ones = self.by_age.iter().take(too_many).take_while(|(at, _)| is_older(at, PUSHED_OUT_AFTER)).count();
        let pushed_out: Vec<_> = self.by_age.drain(..old_ones).collect();
        for (at, key) in pushed_out {
            // A search would find the result before the replay.
            if is_keyed(key) || self.replay(key) != 0 {
                self.keyed_by_age.push_back((at, key));
            } else if self.remove(at, key) {
                self.pushed_out = self.pushed_out.max(Some(at));
            }
        }
        self.pushed_out = self.pushed_out.filter(|at| !is_older(at, self.retention));
        // Releases the memory of a burst.
        if self.pending.capacity() > SPARSE && self.pending.len() < self.pending.capacity() / 8 {
            self.pending.shrink_to_fit();
        }
        if self.results.capacity() > SPARSE && self.results.len() < self.results.capacity() / 8 {
            self.results.shrink_to_fit();
            self.by_age.shrink_to_fit();
        }
    }

    /// Forgets a result with this time. Returns false if it was forgotten before; then a later result may be known.
    fn remove(&mut self, at: SystemTime, key: TaskKey) -> bool {
        let is_it = self.results.get(&key).is_some_and(|result| result.at <= at);
        if is_it {
            self.forget(key);
        }
        is_it
    }

    /// From when on the retention of a task counts: a pending one from `now`, another one from its result.
    pub(super) fn kept_from(&self, key: TaskKey, now: SystemTime) -> Option<SystemTime> {
        let pending = || self.pending.contains_key(&key).then_some(now);
        self.results.get(&key).map(|result| result.at).or_else(pending)
    }

    /// Whether the task's result may have been displaced; `since`: the task was not created before this.
    pub(super) fn may_be_pushed_out(&self, key: TaskKey, since: Option<SystemTime>) -> bool {
        if self.replay(key) != 0 {
            return false;
        }
        // A task that is read after its result was displaced seems pending.
        let since = self.pending.get(&key).map(|task| task.since).max(since);
        self.pushed_out.is_some_and(|newest| since.is_none_or(|since| newest >= since))
    }

    /// Tasks without a result since before `before`.
    pub(super) fn pending_since(&self, before: SystemTime) -> Vec<(TaskKey, PendingTask)> {
        let old = self.pending.iter().filter(|(_, task)| task.since < before);
        old.map(|(key, task)| (*key, *task)).collect()
    }

    /// Whether the task has no result and its last record is at this position.
    pub(super) fn is_pending_at(&self, key: TaskKey, position: Position) -> bool {
        self.pending.get(&key).is_some_and(|task| task.position == position)
    }

    /// Forgets a result whose record no longer exists.
    pub(super) fn forget(&mut self, key: TaskKey) {
        self.results.remove(&key);
        self.forget_replay(key);
    }

    /// Forgets a pending task: its result is older than the records that are read back.
    pub(super) fn settle(&mut self, key: TaskKey) {
        self.pending.remove(&key);
        self.forget_replay(key);
    }

    /// Forgets the number of a replay with the task that has it.
    fn forget_replay(&mut self, key: TaskKey) {
        if !self.replays.is_empty() && self.known(key) == Known::Nothing {
            self.replays.remove(&key);
        }
    }

    /// The number of tasks without a result.
    pub(super) fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// When Kafka appended the oldest record of the tasks without a result.
    pub(super) fn oldest_pending(&self) -> Option<SystemTime> {
        self.pending.values().map(|task| task.since).min()
    }

    /// The number of results that can be fetched.
    pub(super) fn results_count(&self) -> usize {
        self.results.len()
    }

    /// The number of results for tasks that already had a result.
    pub(super) fn duplicates(&self) -> u64 {
        self.duplicates
    }
}

fn pop_while<T>(queue: &mut VecDeque<T>, condition: impl Fn(&T) -> bool) -> Vec<T> {
    let count = queue.iter().take_while(|it| condition(it)).count();
    queue.drain(..count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn key(number: u128) -> TaskKey {
        TaskKey::from_number(number)
    }

    fn at(offset: i64) -> Position {
        Position { partition: 0, offset }
    }

    fn time(seconds: f64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs_f64(seconds)
    }

    fn index(most_results: usize) -> Index {
        Index::new(Duration::from_secs(600), most_results)
    }

    #[test]
    fn task_is_pending_until_its_result_in_either_order_of_reading() {
        let mut index = index(10);
        assert_eq!(index.known(key(1)), Known::Nothing);
        index.task(key(1), at(5), time(100.0));
        assert_eq!(index.known(key(1)), Known::Pending);
        assert!(index.result(key(1), at(50), time(101.0)));
        assert_eq!(index.known(key(1)), Known::Done(at(50)));
        index.task(key(1), at(5), time(100.0));
        assert_eq!(index.known(key(1)), Known::Done(at(50)), "the tasks topic is read later than the results");
        assert_eq!((index.pending_count(), index.results_count()), (0, 1));
    }

    #[test]
    fn last_record_of_a_task_that_was_produced_again_counts() {
        let mut index = index(10);
        index.task(key(1), at(5), time(100.0));
        index.task(key(1), at(90), time(200.0));
        index.task(key(1), at(5), time(100.0));
        assert_eq!(
            index.pending_since(time(300.0)),
            [(key(1), PendingTask { position: at(90), since: time(200.0), again: 1 })]
        );
        // The later record is in a partition with a lower number.
        let (first, second) = (Position { partition: 2, offset: 90 }, Position { partition: 1, offset: 7 });
        index.task(key(2), first, time(100.0));
        index.task(key(2), second, time(200.0));
        index.task(key(2), first, time(100.0));
        assert!(index.is_pending_at(key(2), second));
    }

    #[test]
    fn first_result_in_the_log_counts() {
        let mut index = index(10);
        assert!(index.result(key(1), at(50), time(100.0)));
        assert!(!index.result(key(1), at(60), time(101.0)));
        assert_eq!((index.known(key(1)), index.duplicates()), (Known::Done(at(50)), 1));
        assert!(!index.result(key(1), at(40), time(99.0)), "read back later, but written earlier");
        assert_eq!(index.known(key(1)), Known::Done(at(40)));
        assert!(!index.result(key(1), at(40), time(99.0)));
        assert_eq!(index.duplicates(), 1, "the same record read twice is no duplicate");
    }

    /// What a gateway reads of a task that was replayed twice: each replay's task, and each result.
    #[test]
    fn result_of_the_last_replay_counts_in_any_order_of_reading() {
        // (replay, whether the record is a result, offset)
        const READ: [(u64, bool, i64); 6] =
            [(0, false, 1), (0, true, 50), (7, false, 2), (7, true, 60), (9, false, 3), (9, true, 70)];
        for seed in 0..720 {
            let (mut order, mut left, mut rest) = (Vec::new(), (0..READ.len()).collect::<Vec<_>>(), seed);
            while !left.is_empty() {
                order.push(left.remove(rest % left.len()));
                rest /= left.len() + 1;
            }
            let mut index = index(10);
            for (replay, is_result, offset) in order.iter().map(|read| READ[*read]) {
                let is_heeded = index.heeds(key(1), replay);
                if is_heeded && is_result {
                    index.result(key(1), at(offset), time(20.0));
                } else if is_heeded {
                    index.task(key(1), at(offset), time(10.0));
                }
            }
            assert_eq!(index.known(key(1)), Known::Done(at(70)), "{order:?}");
            assert_eq!((index.pending_count(), index.results_count(), index.duplicates()), (0, 1, 0), "{order:?}");
        }
    }

    #[test]
    fn replayed_task_is_pending_until_its_own_result_and_its_result_is_not_displaced() {
        let mut index = index(0);
        index.result(key(1), at(50), time(100.0));
        assert!(index.heeds(key(1), 7));
        index.task(key(1), at(9), time(200.0));
        assert!(!index.heeds(key(1), 0), "a late result of the first run");
        assert_eq!((index.known(key(1)), index.replay(key(1))), (Known::Pending, 7));
        assert!(index.heeds(key(1), 7) && index.result(key(1), at(60), time(201.0)));
        assert!(index.heeds(key(1), 7) && !index.result(key(1), at(61), time(202.0)));
        assert_eq!((index.known(key(1)), index.duplicates()), (Known::Done(at(60)), 1));
        index.result(key(2), at(62), time(203.0));
        index.forget_old(time(300.0), |_| false);
        assert_eq!((index.known(key(1)), index.known(key(2))), (Known::Done(at(60)), Known::Nothing));
        assert!(!index.may_be_pushed_out(key(1), None) && index.may_be_pushed_out(key(2), None));
        index.forget_old(time(801.1), |_| false);
        assert_eq!((index.known(key(1)), index.replays.len()), (Known::Nothing, 0), "the replay is forgotten, too");
        assert!(index.heeds(key(1), 0), "the id of a key is used again");
    }

    #[test]
    fn results_are_forgotten_by_age_and_pending_tasks_never() {
        let mut index = index(10);
        let forget = |index: &mut Index, seconds| index.forget_old(time(seconds), |_| false);
        index.task(key(9), at(1), time(0.0));
        for number in 2..=3 {
            index.result(key(number), at(number as i64), time(100.0 * number as f64));
        }
        forget(&mut index, 800.1);
        assert_eq!((index.known(key(2)), index.known(key(3))), (Known::Nothing, Known::Done(at(3))));
        assert_eq!(index.known(key(9)), Known::Pending);
        assert_eq!(index.pending_since(time(0.5)).len(), 1);
        assert!(index.pending_since(time(0.0)).is_empty());
        // The record was deleted, and its task, which has an idempotency key, runs again.
        index.forget(key(3));
        assert!(index.result(key(3), at(9), time(900.0)));
        forget(&mut index, 950.0);
        assert_eq!(index.known(key(3)), Known::Done(at(9)), "only the first result is old");
    }

    #[test]
    fn displaced_results_may_be_searched_for_and_results_of_keys_stay() {
        let mut index = index(2);
        let may_be = |index: &Index, since: Option<f64>| index.may_be_pushed_out(key(99), since.map(time));
        assert!(!may_be(&index, None));
        for number in 1..=5 {
            index.result(key(number), at(number as i64), time(100.0 * number as f64));
        }
        index.forget_old(time(505.0), |of| of == key(1));
        assert_eq!(
            [1, 2, 3].map(|number| index.known(key(number))),
            [Known::Done(at(1)), Known::Nothing, Known::Nothing]
        );
        assert_eq!([4, 5].map(|number| index.known(key(number))), [Known::Done(at(4)), Known::Done(at(5))]);
        assert!(may_be(&index, None) && may_be(&index, Some(300.0)));
        assert!(!may_be(&index, Some(300.1)), "a later result is still known");
        // The tasks of displaced results are read only now.
        index.task(key(3), at(7), time(299.0));
        index.task(key(6), at(8), time(301.0));
        assert!(index.may_be_pushed_out(key(3), None) && !index.may_be_pushed_out(key(6), None));
        index.forget_old(time(900.0), |_| false);
        assert!(may_be(&index, None));
        index.forget_old(time(900.1), |_| false);
        assert!(!may_be(&index, None), "the displaced result is older than the retention");
        assert_eq!(index.known(key(1)), Known::Nothing, "so is the result of the key");
    }

    #[test]
    fn recent_result_is_not_displaced() {
        let mut index = index(1);
        for number in 1..=3 {
            index.result(key(number), at(number as i64), time(100.0));
        }
        index.forget_old(time(110.0), |_| false);
        assert_eq!(index.results_count(), 3);
        index.forget_old(time(110.1), |_| false);
        assert_eq!((index.results_count(), index.known(key(3))), (1, Known::Done(at(3))));
    }
}
