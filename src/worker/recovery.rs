//! After a share session was lost (broker restart, leader move, connection cut): getting the locks of running tasks back.
//!
//! The broker delivers everything that was locked again, from the oldest record on, to whoever asks first. A worker with
//! work under way asks at once and attaches what is its own; what lies at or below the highest offset that it had seen
//! and is not its own probably belongs to another busy worker and goes straight back. A worker with nothing under way
//! holds still for a moment, so that the busy ones come first. Pure: time and facts in, decisions out.
//!
//! Every release counts as a delivery, and the broker drops a record at its tenth. A search may be in vain: a record whose
//! accept was applied and not answered never comes again. So a search pauses between its rounds, a record goes back only
//! while it was delivered a few times, by whomever, and everything else is held until the search is over.

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
/// Records held during a search at the most; the search goes no further.
const MOST_HELD: usize = 256;
/// From this delivery count on another worker's record is held as well. A broker restart starts the count at 1, so this bounds
/// what all workers' searches together can add to it.
const HELD_FROM: u16 = 4;
/// The pause after the first round that did not bring everything; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Recovery {
    missing: Vec<RecordKey>,
    highest: BTreeMap<SharePartition, i64>,
    opened_at: Option<Instant>,
    useful_at: Option<Instant>,
    /// When the next round of the search is due, and how long the pause after it is.
    next_round: Option<Instant>,
    pause: Duration,
}

impl Recovery {
    /// `missing`: the work that goes on without a lock; `highest`: the last offset seen in each partition.
    pub(super) fn new(missing: Vec<RecordKey>, highest: BTreeMap<SharePartition, i64>) -> Self {
        Self { missing, highest, opened_at: None, useful_at: None, next_round: None, pause: FIRST_PAUSE }
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
        self.next_round = Some(now + self.pause);
        self.pause *= 2;
    }

    /// When there is something to ask for again, if it is not now.
    pub(super) fn next_round(&self) -> Option<Instant> {
        self.next_round
    }

    /// True while locks of running tasks are looked for.
    pub(super) fn is_searching(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Records to ask for now, given those that are held.
    pub(super) fn wanted(&self, now: Instant, held: usize) -> usize {
        let due = self.next_round.is_none_or(|next| now >= next);
        if self.is_searching() && due && held < MOST_HELD { SEARCH_RECORDS } else { 0 }
    }

    /// True when the record is likely to be another worker's.
    pub(super) fn is_foreign(&self, key: &RecordKey) -> bool {
        self.is_searching() && self.highest.get(&key.partition).is_some_and(|highest| key.offset <= *highest)
    }

    /// True when a record goes back at once, so that the worker that runs it finds it; otherwise it is held.
    pub(super) fn goes_back(&self, key: &RecordKey, delivery_count: u16) -> bool {
        self.is_foreign(key) && delivery_count < HELD_FROM
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
        assert_eq!(recovery.wanted(now, 0), 0);
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
        assert!(recovery.wanted(now, 0) > 0);
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

    #[test]
    fn a_search_in_vain_costs_few_deliveries() {
        let now = Instant::now();
        let in_flight = InFlight::default();
        in_flight.admit(key(5), "five".into(), now);
        in_flight.claim(key(5), false, now, Duration::from_secs(15));
        let mut recovery = Recovery::new(in_flight.session_lost(&|_| true), BTreeMap::from([(PARTITION, 7)]));
        recovery.session_opened(now);
        let mut rounds = 0;
        for millisecond in 0..1000 {
            let at = now + Duration::from_millis(millisecond);
            if recovery.wanted(at, 0) > 0 {
                rounds += 1;
                recovery.fetched(at);
            }
        }
        assert!((3..=7).contains(&rounds), "{rounds} rounds in a second");
        assert_eq!(recovery.wanted(now + Duration::from_secs(9), MOST_HELD), 0, "what is held is bounded");
        // Whoever gave it back before: from the fourth delivery on nobody does while he searches.
        assert!(recovery.goes_back(&key(6), 1) && recovery.goes_back(&key(6), 3) && !recovery.goes_back(&key(6), 4));
        assert!(!recovery.goes_back(&key(8), 1), "it is nobody's yet");
    }
}
