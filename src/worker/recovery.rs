//! After a share session was lost (broker restart, leader move, connection cut): getting the locks of running tasks back.
//!
//! The broker delivers everything that was locked again, from the oldest record on, to whoever asks first. A worker with
//! work under way asks at once and attaches what is its own; what lies at or below the highest offset that it had seen
//! and is not its own probably belongs to another busy worker and goes straight back. A worker with nothing under way
//! holds still for a moment, so that the busy ones come first. Pure: time and facts in, decisions out.

use super::in_flight::{InFlight, RecordKey};
use crate::kafka::share_wire::SharePartition;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a worker with nothing under way holds still after the broker's first useful answer.
const IDLE_PAUSE: Duration = Duration::from_millis(300);
/// It holds still no longer than this after the new session was opened, useful answer or not.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// How long a busy worker looks for its own records after the first useful answer.
const SEARCH: Duration = Duration::from_secs(1);
/// Records asked for in one round of the search. What was locked lies at the front, so few rounds find it.
const SEARCH_RECORDS: usize = 64;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Recovery {
    missing: Vec<RecordKey>,
    highest: BTreeMap<SharePartition, i64>,
    opened_at: Option<Instant>,
    useful_at: Option<Instant>,
}

impl Recovery {
    /// `missing`: the work that goes on without a lock; `highest`: the last offset seen in each partition.
    pub(super) fn new(missing: Vec<RecordKey>, highest: BTreeMap<SharePartition, i64>) -> Self {
        Self { missing, highest, opened_at: None, useful_at: None }
    }

    /// A session is open again.
    pub(super) fn session_opened(&mut self, now: Instant) {
        self.opened_at.get_or_insert(now);
        if self.missing.is_empty() {
            self.useful_at.get_or_insert(now);
        }
    }

    /// A fetch was answered without an error of its partitions.
    pub(super) fn fetched(&mut self, now: Instant) {
        self.useful_at.get_or_insert(now);
    }

    /// True while locks of running tasks are looked for.
    pub(super) fn is_searching(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Records to ask for now.
    pub(super) fn wanted(&self) -> usize {
        if self.is_searching() { SEARCH_RECORDS } else { 0 }
    }

    /// True when the record is likely to be another worker's: it goes back.
    pub(super) fn is_foreign(&self, key: &RecordKey) -> bool {
        self.is_searching() && self.highest.get(&key.partition).is_some_and(|highest| key.offset <= *highest)
    }

    /// True when there is nothing more to wait for.
    pub(super) fn is_over(&mut self, now: Instant, in_flight: &InFlight) -> bool {
        if !self.is_searching() {
            let paused = |since: Option<Instant>, limit| since.is_some_and(|since| now.duration_since(since) >= limit);
            return paused(self.useful_at, IDLE_PAUSE) || paused(self.opened_at, LONGEST_PAUSE);
        }
        let out_of_time = self.useful_at.is_some_and(|since| now.duration_since(since) >= SEARCH);
        out_of_time || (self.opened_at.is_some() && !self.missing.iter().any(|key| in_flight.is_missing(key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const PARTITION: SharePartition = SharePartition { topic_id: Uuid::nil(), partition: 0 };

    fn key(offset: i64) -> RecordKey {
        RecordKey { partition: PARTITION, offset }
    }

    #[test]
    fn an_idle_worker_holds_still_after_the_first_useful_answer() {
        let now = Instant::now();
        let in_flight = InFlight::default();
        let mut recovery = Recovery::new(Vec::new(), BTreeMap::new());
        assert_eq!(recovery.wanted(), 0);
        assert!(!recovery.is_over(now + Duration::from_secs(60), &in_flight), "no session yet");
        recovery.session_opened(now);
        assert!(!recovery.is_over(now + Duration::from_millis(299), &in_flight));
        assert!(recovery.is_over(now + Duration::from_millis(300), &in_flight));
    }

    #[test]
    fn a_busy_worker_searches_until_it_has_its_own_again() {
        let now = Instant::now();
        let in_flight = InFlight::default();
        in_flight.admit(key(5), "five".into(), now);
        in_flight.claim(key(5), false, now, Duration::from_secs(15));
        let missing = in_flight.session_lost(&|_| true);
        assert_eq!(missing, [key(5)]);
        let mut recovery = Recovery::new(missing, BTreeMap::from([(PARTITION, 7)]));
        recovery.session_opened(now);
        assert!(recovery.wanted() > 0);
        assert!(!recovery.is_over(now, &in_flight));
        assert!(recovery.is_foreign(&key(6)) && recovery.is_foreign(&key(7)) && !recovery.is_foreign(&key(8)));
        in_flight.admit(key(5), "five".into(), now);
        assert!(recovery.is_over(now, &in_flight));
    }

    #[test]
    fn the_search_ends_a_second_after_the_first_useful_answer() {
        let now = Instant::now();
        let in_flight = InFlight::default();
        in_flight.admit(key(5), "five".into(), now);
        in_flight.claim(key(5), false, now, Duration::from_secs(15));
        let mut recovery = Recovery::new(in_flight.session_lost(&|_| true), BTreeMap::new());
        recovery.session_opened(now);
        assert!(!recovery.is_over(now + Duration::from_secs(30), &in_flight), "no useful answer yet");
        recovery.fetched(now);
        assert!(!recovery.is_over(now + Duration::from_millis(999), &in_flight));
        assert!(recovery.is_over(now + Duration::from_secs(1), &in_flight));
    }
}
