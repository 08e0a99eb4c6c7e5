//! A share group's progress in one partition (KIP-932): locks, delivery counts and finished records.
//!
//! Offsets and states only; no bytes, no clock, no waits. Called by `share_fetch`, `share_group` and the timer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_share::ErrorCode;
use uuid::Uuid;

/// A partition by the id of its topic.
pub(super) type PartitionKey = (Uuid, i32);

/// Settings of the group that apply to its records.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Duration of a lock.
    pub lock: Duration,
    /// Delivery limit: a record delivered this often is not delivered again.
    pub deliveries: i16,
    /// Largest distance from the oldest unfinished record to the newest delivered one.
    pub span: i64,
}

/// Consecutive records acquired together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Acquired {
    pub first: i64,
    pub last: i64,
    pub deliveries: i16,
}

/// A member's acknowledgement of a record (KIP-932, KIP-1222).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Gap,
    Accept,
    Release,
    Reject,
    Renew,
}

impl Said {
    /// The acknowledge type of the protocol.
    pub fn of_type(number: i8) -> Option<Self> {
        [Self::Gap, Self::Accept, Self::Release, Self::Reject, Self::Renew].get(usize::try_from(number).ok()?).copied()
    }
}

#[derive(Clone, Debug)]
enum State {
    Available,
    Acquired { member: Arc<str>, until: Instant },
    Finished,
}

#[derive(Clone, Debug)]
struct Record {
    state: State,
    /// Number of deliveries.
    deliveries: i16,
    /// The count that survives a restart: written at a release, not at a delivery.
    written: i16,
}

/// Unwritten state that a new leader does not find.
#[derive(Clone, Copy, Debug)]
pub(super) enum Loss {
    /// Every acknowledgement was written.
    Nothing,
    /// Acknowledgements less than `delay` before `now` are lost.
    After {
        /// How late acknowledgements are written.
        delay: Duration,
        /// When the leader ended.
        now: Instant,
    },
}

/// A copy of the state before a change.
#[derive(Debug)]
struct Before {
    at: Instant,
    start: i64,
    next: i64,
    records: BTreeMap<i64, Record>,
}

/// States of a partition's records for one group.
#[derive(Debug)]
pub(super) struct SharePartition {
    /// The first unfinished offset.
    start: i64,
    /// The next offset that was never delivered.
    next: i64,
    /// Every offset from `start`, before `next`.
    records: BTreeMap<i64, Record>,
    /// Number of expired locks; a change makes waiting fetches look again.
    expiries: u64,
    /// Whether a member has fetched from the current leader, which knows no record before that.
    pub fetched: bool,
    /// States before changes that are not yet written, if acknowledgements are written late.
    unwritten: VecDeque<Before>,
}

impl SharePartition {
    /// Makes a state that begins at `start` without any delivery.
    pub fn new(start: i64) -> Self {
        Self { start, next: start, records: BTreeMap::new(), expiries: 0, fetched: false, unwritten: VecDeque::new() }
    }

    /// The first unfinished offset.
    pub fn start(&self) -> i64 {
        self.start
    }

    /// The last offset that was delivered or reloaded; `start - 1` without any.
    pub fn last_known(&self) -> i64 {
        self.next - 1
    }

    /// Number of unfinished records before `end` (KIP-1226).
    pub fn lag(&self, end: i64) -> i64 {
        let finished = self.records.values().filter(|record| matches!(record.state, State::Finished)).count();
        (end - self.start).max(0) - i64::try_from(finished).unwrap_or(i64::MAX)
    }

    /// Number of locks expired so far.
    pub fn expiries(&self) -> u64 {
        self.expiries
    }

    /// The first offset that could be delivered, whether or not the log has it; `None` while the span is exhausted.
    pub fn first_available(&self, rules: Rules) -> Option<i64> {
        let given_back = self.records.iter().find(|(_, record)| matches!(record.state, State::Available));
        let fresh = (self.next - self.start < rules.span).then_some(self.next);
        given_back.map(|(offset, _)| *offset).or(fresh)
    }

    /// Locks up to `limit` records for `member`, oldest first, up to `last`. `whole` returns the end of a record's
    /// batch; with it, a batch is delivered to its end (KIP-932 before the record limit of KIP-1206).
    pub fn acquire(
        &mut self,
        member: &Arc<str>,
        limit: usize,
        last: i64,
        rules: Rules,
        now: Instant,
        whole: Option<&dyn Fn(i64) -> i64>,
    ) -> Vec<Acquired> {
        let mut ranges: Vec<Acquired> = Vec::new();
        let (mut count, mut batch_end) = (0, i64::MIN);
        let mut offset = self.start;
        while offset <= last && (count < limit || offset <= batch_end) {
            if offset == self.next {
                if self.next - self.start >= rules.span {
                    break;
                }
                self.records.insert(offset, Record { state: State::Available, deliveries: 0, written: 0 });
                self.next += 1;
            }
            if let Some(record) = self.records.get_mut(&offset)
                && matches!(record.state, State::Available)
            {
                record.deliveries += 1;
                record.state = State::Acquired { member: Arc::clone(member), until: now + rules.lock };
                count += 1;
                batch_end = whole.map_or(i64::MIN, |end_of| end_of(offset));
                match ranges.last_mut() {
                    Some(range) if range.last + 1 == offset && range.deliveries == record.deliveries => {
                        range.last = offset
                    }
                    _ => ranges.push(Acquired { first: offset, last: offset, deliveries: record.deliveries }),
                }
            }
            offset += 1;
        }
        ranges
    }

    /// Finishes the unlocked records of these ranges (first and last offset, in order) without delivering them.
    pub fn finish(&mut self, ranges: &[(i64, i64)], rules: Rules) {
        let Some((_, last)) = ranges.last() else { return };
        while self.next <= *last && self.next - self.start < rules.span {
            self.records.insert(self.next, Record { state: State::Available, deliveries: 0, written: 0 });
            self.next += 1;
        }
        for (first, last) in ranges.iter().filter(|(_, last)| *last >= self.start) {
            for (_, record) in self.records.range_mut(*first..=*last) {
                if matches!(record.state, State::Available) {
                    record.state = State::Finished;
                }
            }
        }
        self.advance();
    }

    /// Applies all of a member's acknowledgements, or none.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_RECORD_STATE`]: a record is not locked by this member. Offsets before the first unfinished
    /// one are ignored.
    pub fn acknowledge(
        &mut self,
        member: &str,
        said: &[(i64, Said)],
        rules: Rules,
        now: Instant,
    ) -> Result<(), ErrorCode> {
        let said = said.iter().filter(|(offset, _)| *offset >= self.start);
        let holds = |offset: &i64| {
            let state = self.records.get(offset).map(|record| &record.state);
            matches!(state, Some(State::Acquired { member: holder, .. }) if **holder == *member)
        };
        if !said.clone().all(|(offset, _)| holds(offset)) {
            return Err(ErrorCode::INVALID_RECORD_STATE);
        }
        for (offset, said) in said {
            let Some(record) = self.records.get_mut(offset) else { continue };
            match said {
                Said::Accept | Said::Reject | Said::Gap => record.state = State::Finished,
                Said::Release => record.give_back(rules),
                Said::Renew => {
                    if let State::Acquired { until, .. } = &mut record.state {
                        *until = now + rules.lock;
                    }
                }
            }
        }
        self.advance();
        Ok(())
    }

    /// Releases all records of a member; returns whether there were any.
    pub fn release_all(&mut self, member: &str, rules: Rules) -> bool {
        self.give_back_where(rules, |holder, _| holder == member)
    }

    /// Releases records whose lock has expired.
    pub fn expire(&mut self, rules: Rules, now: Instant) {
        if self.give_back_where(rules, |_, until| until <= now) {
            self.expiries += 1;
        }
    }

    /// When the next lock expires.
    pub fn next_expiry(&self) -> Option<Instant> {
        let locks = self.records.values().filter_map(|record| match record.state {
            State::Acquired { until, .. } => Some(until),
            _ => None,
        });
        locks.min()
    }

    fn give_back_where(&mut self, rules: Rules, gone: impl Fn(&str, Instant) -> bool) -> bool {
        let mut any = false;
        for record in self.records.values_mut() {
            if let State::Acquired { member, until } = &record.state
                && gone(member, *until)
            {
                record.give_back(rules);
                any = true;
            }
        }
        self.advance();
        any
    }

    /// Follows the log's start: records before it are finished.
    pub fn follow_log_start(&mut self, log_start: i64) {
        if log_start > self.start {
            self.records = self.records.split_off(&log_start);
            self.start = log_start;
            self.next = self.next.max(log_start);
            self.advance();
        }
    }

    /// Reloads the state as a new leader does: locks and unwritten deliveries are lost. Records without any written
    /// state are unknown to it.
    pub fn reload(&mut self, loss: Loss) {
        if let Loss::After { delay, now } = loss {
            self.lose(delay, now);
        }
        for record in self.records.values_mut() {
            if let State::Acquired { .. } = record.state {
                record.state = State::Available;
                record.deliveries = record.written;
            }
        }
        while let Some(last) = self.records.last_entry()
            && last.get().deliveries == 0
        {
            last.remove();
            self.next -= 1;
        }
        self.fetched = false;
        self.unwritten.clear();
    }

    /// Restores the state before the first change less than `delay` before `now`.
    fn lose(&mut self, delay: Duration, now: Instant) {
        if let Some(before) = self.unwritten.drain(..).find(|before| before.at + delay > now) {
            (self.start, self.next, self.records) = (before.start, before.next, before.records);
        }
    }

    /// Saves the state before a change that a kill within the next `delay` would undo.
    pub fn remember(&mut self, delay: Duration, now: Instant) {
        while self.unwritten.front().is_some_and(|before| before.at + delay <= now) {
            self.unwritten.pop_front();
        }
        if !delay.is_zero() {
            let (start, next, records) = (self.start, self.next, self.records.clone());
            self.unwritten.push_back(Before { at: now, start, next, records });
        }
    }

    /// Forgets finished records at the front.
    fn advance(&mut self) {
        while self.records.get(&self.start).is_some_and(|record| matches!(record.state, State::Finished)) {
            self.records.remove(&self.start);
            self.start += 1;
        }
    }
}

impl Record {
    /// Releases the record; at the delivery limit it is finished instead.
    fn give_back(&mut self, rules: Rules) {
        self.written = self.deliveries;
        self.state = if self.deliveries >= rules.deliveries { State::Finished } else { State::Available };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { lock: Duration::from_secs(15), deliveries: 3, span: 100 };

    fn member(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    fn one(partition: &mut SharePartition, name: &str, now: Instant) -> Vec<(i64, i16)> {
        let ranges = partition.acquire(&member(name), 1, 9, RULES, now, None);
        ranges.iter().map(|range| (range.first, range.deliveries)).collect()
    }

    #[test]
    fn lock_expires_unless_renewed() {
        let (mut partition, now) = (SharePartition::new(0), Instant::now());
        one(&mut partition, "a", now);
        partition.finish(&[(0, 0)], RULES);
        let later = now + Duration::from_secs(10);
        partition.acknowledge("a", &[(0, Said::Renew)], RULES, later).expect("only unlocked records are finished");
        assert_eq!(partition.next_expiry(), Some(later + RULES.lock));
        partition.expire(RULES, now + RULES.lock);
        assert_eq!((partition.expiries(), partition.next_expiry().is_some()), (0, true));
        partition.expire(RULES, later + RULES.lock);
        assert_eq!((partition.expiries(), partition.next_expiry()), (1, None));
        assert_eq!(
            partition.acknowledge("a", &[(0, Said::Accept)], RULES, later),
            Err(ErrorCode::INVALID_RECORD_STATE)
        );
        assert_eq!(one(&mut partition, "b", later), [(0, 2)]);
    }

    #[test]
    fn batch_is_delivered_whole_without_a_record_limit() {
        let (mut partition, now) = (SharePartition::new(0), Instant::now());
        let by_tens = |offset: i64| offset / 10 * 10 + 9;
        let ranges = partition.acquire(&member("a"), 1, 99, RULES, now, Some(&by_tens));
        assert_eq!(ranges, [Acquired { first: 0, last: 9, deliveries: 1 }]);
    }

    #[test]
    fn restart_loses_locks_and_unwritten_deliveries() {
        let (mut partition, now) = (SharePartition::new(0), Instant::now());
        one(&mut partition, "a", now);
        partition.release_all("a", RULES);
        partition.acquire(&member("a"), 2, 9, RULES, now, None);
        partition.reload(Loss::Nothing);
        assert_eq!(one(&mut partition, "b", now), [(0, 2)]);
        assert_eq!(one(&mut partition, "b", now), [(1, 1)]);
    }

    #[test]
    fn records_that_the_log_dropped_are_finished() {
        let (mut partition, now) = (SharePartition::new(0), Instant::now());
        partition.acquire(&member("a"), 3, 9, RULES, now, None);
        partition.follow_log_start(2);
        assert_eq!(partition.start(), 2);
        let said = [(0, Said::Accept), (2, Said::Reject)];
        assert_eq!((partition.acknowledge("a", &said, RULES, now), partition.start()), (Ok(()), 3));
        partition.follow_log_start(7);
        assert_eq!(one(&mut partition, "a", now), [(7, 1)]);
    }
}
