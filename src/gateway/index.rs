//! What a gateway knows of tasks: which are pending, where the results of the others stand, who claimed a key.
//!
//! It holds places in Kafka, not values: a result that is asked for is fetched. Filled by the readers of `results` and
//! `tasks`, so that every gateway, a fresh one too, knows the same. Results are bounded by number and by age; a pending
//! task is never forgotten, but with `MAX_PENDING` of them, or `MAX_KEYS` claims, the gateway takes no new ones. Pure:
//! time is Unix seconds of Kafka's own clock, as a parameter.

use std::collections::{HashMap, VecDeque};
use uuid::Uuid;

/// Results that are remembered at the most, some 120 bytes each; beyond, the oldest are forgotten early.
pub(super) const MOST_RESULTS: usize = 1_000_000;
/// A table of this size whose entries are mostly gone is made smaller.
const SPARSE: usize = 8_192;
/// A claim without a task may be claimed again after this many seconds.
pub(super) const CLAIM_SECONDS: f64 = 5.0;
/// Namespace of task ids that are made from idempotency keys, and of keys made from ids that are no UUIDs.
const NAMESPACE: Uuid = Uuid::from_u128(0x6c61_7374_6361_6c6c_8000_7461_736b_6964);

/// A task's id in 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct TaskKey(u128);

impl TaskKey {
    /// Ids of our own are UUIDs and keep their value; ids of strangers are hashed.
    pub(super) fn from_id(id: &str) -> Self {
        match Uuid::try_parse(id) {
            // Only the form that we write ourselves: the same UUID in another spelling is another id.
            Ok(uuid) if uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == id => Self(uuid.as_u128()),
            _ => Self(Uuid::new_v5(&NAMESPACE, id.as_bytes()).as_u128()),
        }
    }

    /// The key of one of our own ids.
    pub(super) fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid.as_u128())
    }

    /// The id, if the key is that of one of our own.
    pub(super) fn as_uuid(self) -> Uuid {
        Uuid::from_u128(self.0)
    }

    #[cfg(test)]
    pub(super) fn from_number(number: u128) -> Self {
        Self(number)
    }
}

/// The task that an idempotency key stands for, the same on every gateway.
pub(super) fn task_of_key(idempotency_key: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("idempotency-key:{idempotency_key}").as_bytes())
}

/// A digest of a task's text, to tell apart two requests with one key. Not for secrets: SHA-1 cut to 122 bits.
pub(super) fn digest(text: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, text.as_bytes())
}

/// Where a record stands in its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) partition: i32,
    pub(super) offset: i64,
}

/// What is known of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing.
    Nothing,
    /// It is on the tasks topic and has no result.
    Pending,
    /// Its result stands there.
    Done(Place),
}

/// A task without a result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PendingTask {
    /// Where its last record stands.
    pub(super) place: Place,
    /// When Kafka took that.
    pub(super) since: f64,
    /// How many records there were before it.
    pub(super) again: u32,
}

#[derive(Clone, Copy, Debug)]
struct ResultEntry {
    place: Place,
    at: f64,
}

/// A claim that holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct HeldClaim {
    pub(super) digest: Uuid,
    pub(super) gateway: Uuid,
    /// When it was written, by Kafka's clock.
    pub(super) at: f64,
    /// When it was read, by ours.
    pub(super) heard: f64,
}

impl HeldClaim {
    fn is_same_record(&self, other: &Self) -> bool {
        (self.digest, self.gateway, self.at) == (other.digest, other.gateway, other.at)
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Index {
    retention: f64,
    most_results: usize,
    pending: HashMap<TaskKey, PendingTask>,
    results: HashMap<TaskKey, ResultEntry>,
    by_age: VecDeque<(f64, TaskKey)>,
    claims: HashMap<TaskKey, HeldClaim>,
    claims_by_age: VecDeque<(f64, TaskKey)>,
    duplicates: u64,
}

impl Index {
    /// Results are remembered for `retention_seconds` and at most `most_results` of them.
    pub(super) fn new(retention_seconds: f64, most_results: usize) -> Self {
        Self {
            retention: retention_seconds,
            most_results,
            pending: HashMap::new(),
            results: HashMap::new(),
            by_age: VecDeque::new(),
            claims: HashMap::new(),
            claims_by_age: VecDeque::new(),
            duplicates: 0,
        }
    }

    /// A task stands on the tasks topic. Ignored when its result is known. Of several records of one task the last
    /// counts: it was produced again because the one before was lost.
    pub(super) fn task(&mut self, key: TaskKey, place: Place, at: f64) {
        if self.results.contains_key(&key) {
            return;
        }
        let pending = self.pending.entry(key).or_insert(PendingTask { place, since: at, again: 0 });
        // Of two partitions only their times say which record is the later one.
        let is_later = match place.partition == pending.place.partition {
            true => place.offset > pending.place.offset,
            false => at > pending.since,
        };
        if is_later {
            *pending = PendingTask { place, since: at, again: pending.again + 1 };
        }
    }

    /// A result stands on the results topic. The first in the log is the one; true when this is it and was not known.
    pub(super) fn result(&mut self, key: TaskKey, place: Place, at: f64) -> bool {
        self.pending.remove(&key);
        if let Some(known) = self.results.get_mut(&key) {
            if place < known.place {
                known.place = place;
            }
            self.duplicates += u64::from(place != known.place);
            return false;
        }
        self.results.insert(key, ResultEntry { place, at });
        self.by_age.push_back((at, key));
        while self.results.len() > self.most_results {
            self.forget_oldest();
        }
        true
    }

    /// A claim stands on the results topic. It holds unless an earlier one does; an earlier one without a task gives
    /// way after [`CLAIM_SECONDS`]. Returns the claim that holds now, and whether it is this one and new.
    pub(super) fn claim(&mut self, key: TaskKey, claim: HeldClaim) -> (HeldClaim, bool) {
        if let Some(held) = self.claims.get(&key).copied() {
            let taken = self.known(key) != Known::Nothing;
            // Read back after a later one: it was the first all the same.
            let earlier = claim.at < held.at && held.at < claim.at + CLAIM_SECONDS;
            if held.is_same_record(&claim) || (!earlier && (taken || claim.at < held.at + CLAIM_SECONDS)) {
                return (held, false);
            }
        }
        self.claims.insert(key, claim);
        self.claims_by_age.push_back((claim.at, key));
        (claim, true)
    }

    /// The claim that holds for the task.
    pub(super) fn held_claim(&self, key: TaskKey) -> Option<HeldClaim> {
        self.claims.get(&key).copied()
    }

    /// What is known of the task.
    pub(super) fn known(&self, key: TaskKey) -> Known {
        if let Some(result) = self.results.get(&key) {
            return Known::Done(result.place);
        }
        if self.pending.contains_key(&key) { Known::Pending } else { Known::Nothing }
    }

    /// Forgets results and claims that are older than the retention.
    pub(super) fn forget_old(&mut self, now: f64) {
        // What a flood has left behind is given back.
        if self.pending.capacity() > SPARSE && self.pending.len() < self.pending.capacity() / 8 {
            self.pending.shrink_to_fit();
        }
        if self.results.capacity() > SPARSE && self.results.len() < self.results.capacity() / 8 {
            self.results.shrink_to_fit();
            self.by_age.shrink_to_fit();
        }
        let oldest = now - self.retention;
        while self.by_age.front().is_some_and(|(at, _)| *at < oldest) {
            self.forget_oldest();
        }
        while self.claims_by_age.front().is_some_and(|(at, _)| *at < oldest) {
            if let Some((at, key)) = self.claims_by_age.pop_front() {
                // A claim that was renewed, or whose task still runs, is kept with it.
                let stale = self.claims.get(&key).is_some_and(|held| held.at <= at);
                if stale && !self.pending.contains_key(&key) {
                    self.claims.remove(&key);
                } else if stale {
                    self.claims_by_age.push_back((now, key));
                }
            }
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((at, key)) = self.by_age.pop_front()
            // Unless it was forgotten before, and there is a later one.
            && self.results.get(&key).is_some_and(|result| result.at <= at)
        {
            self.results.remove(&key);
        }
    }

    /// Tasks that have waited for a result since before `before`.
    pub(super) fn pending_since(&self, before: f64) -> Vec<(TaskKey, PendingTask)> {
        let old = self.pending.iter().filter(|(_, task)| task.since < before);
        old.map(|(key, task)| (*key, *task)).collect()
    }

    /// Whether the task has no result, and its last record stands there.
    pub(super) fn is_pending_at(&self, key: TaskKey, place: Place) -> bool {
        self.pending.get(&key).is_some_and(|task| task.place == place)
    }

    /// The record of the task's result is not there any more.
    pub(super) fn forget(&mut self, key: TaskKey) {
        self.results.remove(&key);
    }

    /// The task turned out not to be pending: its result is older than what is read back.
    pub(super) fn settle(&mut self, key: TaskKey) {
        self.pending.remove(&key);
    }

    /// Tasks without a result.
    pub(super) fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// Idempotency keys that are remembered.
    pub(super) fn claims_count(&self) -> usize {
        self.claims.len()
    }

    /// Results that can be asked for.
    pub(super) fn results_count(&self) -> usize {
        self.results.len()
    }

    /// Results that came for tasks which had one already.
    pub(super) fn duplicates(&self) -> u64 {
        self.duplicates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u128) -> TaskKey {
        TaskKey::from_number(number)
    }

    fn at(offset: i64) -> Place {
        Place { partition: 0, offset }
    }

    #[test]
    fn spellings_of_one_uuid_are_different_ids() {
        let id = "018f2f6e-7b1c-7c5a-9d3e-0123456789ab";
        assert_eq!(TaskKey::from_id(id), TaskKey::from_uuid(Uuid::parse_str(id).unwrap()));
        for other in ["018F2F6E-7B1C-7C5A-9D3E-0123456789AB", "018f2f6e7b1c7c5a9d3e0123456789ab", "task-1", ""] {
            assert_ne!(TaskKey::from_id(other), TaskKey::from_id(id), "{other}");
            assert_eq!(TaskKey::from_id(other), TaskKey::from_id(other));
        }
    }

    #[test]
    fn a_task_is_pending_until_its_result_in_whatever_order_they_are_read() {
        let mut index = Index::new(600.0, 10);
        assert_eq!(index.known(key(1)), Known::Nothing);
        index.task(key(1), at(5), 100.0);
        assert_eq!(index.known(key(1)), Known::Pending);
        assert!(index.result(key(1), at(50), 101.0));
        assert_eq!(index.known(key(1)), Known::Done(at(50)));
        index.task(key(1), at(5), 100.0);
        assert_eq!(index.known(key(1)), Known::Done(at(50)), "the tasks topic is read behind the results");
        assert_eq!((index.pending_count(), index.results_count()), (0, 1));
    }

    #[test]
    fn of_a_task_that_was_produced_again_the_last_record_counts() {
        let mut index = Index::new(600.0, 10);
        index.task(key(1), at(5), 100.0);
        index.task(key(1), at(90), 200.0);
        index.task(key(1), at(5), 100.0);
        assert_eq!(index.pending_since(300.0), [(key(1), PendingTask { place: at(90), since: 200.0, again: 1 })]);
        // In a partition with a lower number, later.
        let (first, second) = (Place { partition: 2, offset: 90 }, Place { partition: 1, offset: 7 });
        index.task(key(2), first, 100.0);
        index.task(key(2), second, 200.0);
        index.task(key(2), first, 100.0);
        assert!(index.is_pending_at(key(2), second));
    }

    #[test]
    fn the_first_result_in_the_log_is_the_one() {
        let mut index = Index::new(600.0, 10);
        assert!(index.result(key(1), at(50), 100.0));
        assert!(!index.result(key(1), at(60), 101.0));
        assert_eq!((index.known(key(1)), index.duplicates()), (Known::Done(at(50)), 1));
        assert!(!index.result(key(1), at(40), 99.0), "read back later, written earlier");
        assert_eq!(index.known(key(1)), Known::Done(at(40)));
        assert!(!index.result(key(1), at(40), 99.0));
        assert_eq!(index.duplicates(), 1, "the same record read twice is no duplicate");
    }

    #[test]
    fn results_are_forgotten_by_age_and_by_number_and_pending_tasks_never() {
        let mut index = Index::new(600.0, 2);
        index.task(key(9), at(1), 0.0);
        for number in 1..=3 {
            index.result(key(number), at(number as i64), 100.0 * number as f64);
        }
        assert_eq!(index.known(key(1)), Known::Nothing, "the third pushed the first out");
        index.forget_old(800.1);
        assert_eq!((index.known(key(2)), index.known(key(3))), (Known::Nothing, Known::Done(at(3))));
        assert_eq!(index.known(key(9)), Known::Pending);
        assert_eq!(index.pending_since(0.5).len(), 1);
        assert!(index.pending_since(0.0).is_empty());
        // Its record was deleted, and its task, of an idempotency key, is run again.
        index.forget(key(3));
        assert!(index.result(key(3), at(9), 900.0));
        index.forget_old(950.0);
        assert_eq!(index.known(key(3)), Known::Done(at(9)), "only the first one is old");
    }

    #[test]
    fn the_first_claim_holds_until_it_is_stale_without_a_task() {
        let claim = |gateway: u128, at: f64| HeldClaim {
            digest: Uuid::nil(),
            gateway: Uuid::from_u128(gateway),
            at,
            heard: at,
        };
        let mut index = Index::new(600.0, 10);
        assert_eq!(index.claim(key(1), claim(1, 100.0)), (claim(1, 100.0), true));
        assert_eq!(index.claim(key(1), claim(2, 104.9)), (claim(1, 100.0), false));
        assert_eq!(index.claim(key(1), claim(1, 100.0)), (claim(1, 100.0), false), "read twice");
        assert_eq!(index.claim(key(1), claim(2, 105.0)), (claim(2, 105.0), true), "nothing came of the first");
        assert_eq!(index.claim(key(2), claim(2, 50.0)), (claim(2, 50.0), true));
        assert_eq!(index.claim(key(2), claim(1, 49.0)), (claim(1, 49.0), true), "read back later, written earlier");
        index.task(key(1), at(3), 105.5);
        assert_eq!(index.claim(key(1), claim(3, 200.0)), (claim(2, 105.0), false), "its task is there");
        index.forget_old(705.5);
        assert_eq!(index.held_claim(key(1)), Some(claim(2, 105.0)), "kept while its task is pending");
        index.result(key(1), at(9), 706.0);
        index.forget_old(1_400.0);
        assert_eq!(index.held_claim(key(1)), None);
    }

    #[test]
    fn a_key_stands_for_one_task_and_a_text_for_one_digest() {
        assert_eq!(task_of_key("order-1"), task_of_key("order-1"));
        assert_ne!(task_of_key("order-1"), task_of_key("order-2"));
        assert_eq!(digest("a"), digest("a"));
        assert_ne!(digest("a"), digest("b"));
    }
}
