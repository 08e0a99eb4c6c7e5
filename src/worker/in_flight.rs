//! The account of every record that this process holds: who decides its fate, and what Kafka is owed for it.
//!
//! One owner at a time decides what becomes of a task. The states of an entry say who, and every change is made under
//! one lock: a handler may only finish what is still `Running`, a stop may only give back what is not `Publishing`.
//! No I/O, no log line and no send happens in here; time comes in as a parameter.
//!
//! Callers: the intake admits records and takes the acknowledgements that are due; handlers begin and finish; the outbox
//! says what Kafka has acknowledged; main abandons at the deadline and reads the counts.

use super::unaccepted::Unaccepted;
use crate::kafka::share_wire::{Acknowledgement, Acknowledgements, SharePartition};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// No handler starts a task whose lock has less than this part of its duration left: the first renewal must reach the broker before. A
/// part, since a broker may allow shorter locks than the 15 s that are asked for.
const LEAST_LOCK_LEFT: u32 = 5;

/// Where a record stands: partition and offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RecordKey {
    pub(super) partition: SharePartition,
    pub(super) offset: i64,
}

/// What is being done with a record, and so who may change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Lies ready in the handlers' channel. The intake may take it back.
    Ready,
    /// A handler looks into its past before it may start; not a start yet. A stop may give it back.
    Vetting,
    /// A handler runs it since then. Only the handler, or the deadline, ends this.
    Running(Instant),
    /// Its result is on the way to Kafka in so many records. Only the outbox ends this.
    Publishing(u8),
    /// Its result is in Kafka; the accept is due or sent.
    Done,
    /// Its failure may pass; released when that time has come.
    Resting(Instant),
    /// The release is due or sent.
    Returned,
}

#[derive(Debug)]
struct Entry {
    task_id: Arc<str>,
    state: State,
    /// The broker holds the lock for us in a session that lives.
    locked: bool,
    /// The lock went with its session, and is looked for.
    sought: bool,
    /// When the request was sent that last took or renewed the lock.
    locked_at: Instant,
    /// The handler has run past TASK_TIMEOUT; no longer renewed.
    overdue: bool,
}

/// How many records are in which stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// In the handlers' channel.
    pub(super) ready: usize,
    /// With a handler that looks into their past.
    pub(super) vetting: usize,
    /// With a handler that runs them.
    pub(super) running: usize,
    /// Results on their way.
    pub(super) publishing: usize,
    /// Accept due or sent.
    pub(super) done: usize,
    /// Waiting out a failure.
    pub(super) resting: usize,
    /// Release due or sent.
    pub(super) returned: usize,
}

impl Counts {
    /// Nothing that was taken is unsettled, acknowledgements apart.
    pub(super) fn only_acknowledgements(&self) -> bool {
        self.ready + self.vetting + self.running + self.publishing + self.resting == 0
    }
    /// Handler threads in use.
    pub(super) fn busy(&self) -> usize {
        self.vetting + self.running
    }
    /// Tasks that a handler has started and whose result is not safe.
    pub(super) fn started(&self) -> usize {
        self.running + self.publishing
    }
    fn slot(&mut self, state: State) -> &mut usize {
        match state {
            State::Ready => &mut self.ready,
            State::Vetting => &mut self.vetting,
            State::Running(_) => &mut self.running,
            State::Publishing(_) => &mut self.publishing,
            State::Done => &mut self.done,
            State::Resting(_) => &mut self.resting,
            State::Returned => &mut self.returned,
        }
    }
}

/// What a handler may do with a record that it took from the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Go on.
    Yours,
    /// It was taken back, or its lock is too old; forget it.
    Gone,
}

/// What became of an offered record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// New; to be handed to a handler.
    New,
    /// This process is working on it already, or has finished it: the lock is attached to that work, nothing is started again.
    Attached,
}

/// A task that a handler runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunningTask {
    pub(super) task_id: Arc<str>,
    pub(super) key: RecordKey,
    pub(super) since: Instant,
}

/// Tasks that the loss of a lock concerns, for the log.
pub(super) type TaskIds = Vec<Arc<str>>;

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<RecordKey, Entry>,
    counts: Counts,
    due: BTreeMap<RecordKey, Acknowledgement>,
    unaccepted: Unaccepted,
    durations: Vec<Duration>,
    finished: u64,
    returned: u64,
    abandoned: TaskIds,
}

impl Table {
    fn set(&mut self, key: RecordKey, state: State) {
        if let Some(entry) = self.entries.get_mut(&key) {
            *self.counts.slot(entry.state) -= 1;
            entry.state = state;
            *self.counts.slot(state) += 1;
        }
    }

    fn remove(&mut self, key: &RecordKey) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        *self.counts.slot(entry.state) -= 1;
        self.due.remove(key);
        Some(entry)
    }

    /// The record goes back to the broker; without a lock there is nothing to give.
    fn give_back(&mut self, key: RecordKey) {
        if self.entries.get(&key).is_some_and(|entry| entry.locked) {
            self.set(key, State::Returned);
            self.due.insert(key, Acknowledgement::Release);
        } else {
            self.remove(&key);
        }
    }

    /// A finished task that cannot be accepted is held no longer, and known when it comes again. `None`: it is not finished.
    fn forget_finished(&mut self, key: RecordKey) -> Option<Arc<str>> {
        self.entries.get(&key).filter(|entry| entry.state == State::Done)?;
        let entry = self.remove(&key)?;
        self.unaccepted.remember(key, Arc::clone(&entry.task_id));
        Some(entry.task_id)
    }

    fn keys(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<RecordKey> {
        self.entries.iter().filter(|(_, entry)| wanted(entry)).map(|(key, _)| *key).collect()
    }
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    table: Mutex<Table>,
}

impl InFlight {
    // ---- the intake ----

    /// Enters a record that the broker has just locked for us, with its accept due if it was finished here before; the request for it was sent at `locked_at`.
    pub(super) fn admit(&self, key: RecordKey, task_id: Arc<str>, locked_at: Instant) -> Admission {
        let mut table = self.table.lock();
        if let Some(entry) = table.entries.get_mut(&key) {
            (entry.locked, entry.sought) = (true, false);
            entry.locked_at = locked_at;
            match entry.state {
                State::Done => {
                    table.due.insert(key, Acknowledgement::Accept);
                }
                State::Returned => {
                    table.due.insert(key, Acknowledgement::Release);
                }
                _ => {}
            }
            return Admission::Attached;
        }
        let finished = table.unaccepted.knows(&key, &task_id);
        let state = if finished { State::Done } else { State::Ready };
        table.entries.insert(key, Entry { task_id, state, locked: true, sought: false, locked_at, overdue: false });
        *table.counts.slot(state) += 1;
        if !finished {
            return Admission::New;
        }
        table.due.insert(key, Acknowledgement::Accept);
        Admission::Attached
    }

    /// Takes back one record that no handler has touched; counted as returned unstarted.
    pub(super) fn take_back(&self, key: RecordKey) -> bool {
        let mut table = self.table.lock();
        let ready = table.entries.get(&key).is_some_and(|entry| entry.state == State::Ready);
        if ready {
            table.returned += 1;
            table.give_back(key);
        }
        ready
    }

    /// Makes the releases of failed tasks due at once: the worker stops, and another one has the time.
    pub(super) fn take_back_resting(&self) {
        let mut table = self.table.lock();
        if table.counts.resting == 0 {
            return;
        }
        for key in table.keys(|entry| matches!(entry.state, State::Resting(_))) {
            table.give_back(key);
        }
    }

    /// Makes the releases due of failed tasks whose rest is over.
    pub(super) fn end_rests(&self, now: Instant) {
        let mut table = self.table.lock();
        if table.counts.resting == 0 {
            return;
        }
        for key in table.keys(|entry| matches!(entry.state, State::Resting(until) if until <= now)) {
            table.give_back(key);
        }
    }

    /// Moves out the acknowledgements that are due on `partitions`.
    pub(super) fn take_due(&self, partitions: &dyn Fn(&SharePartition) -> bool) -> Acknowledgements {
        let mut table = self.table.lock();
        let mut taken = Acknowledgements::new();
        table.due.retain(|key, acknowledgement| {
            let mine = partitions(&key.partition);
            if mine {
                taken.entry(key.partition).or_default().insert(key.offset, *acknowledgement);
            }
            !mine
        });
        taken
    }

    /// Adds renewals to `acknowledgements` for what is being worked on and was locked or renewed `after` ago or longer.
    /// Tasks that run past `task_timeout` are no longer renewed; those that just did are returned.
    pub(super) fn add_renewals(
        &self,
        acknowledgements: &mut Acknowledgements,
        partitions: &dyn Fn(&SharePartition) -> bool,
        now: Instant,
        after: Duration,
        task_timeout: Duration,
    ) -> TaskIds {
        let mut table = self.table.lock();
        let mut overdue = Vec::new();
        for (key, entry) in &mut table.entries {
            match entry.state {
                State::Running(since) if !entry.overdue && now.saturating_duration_since(since) > task_timeout => {
                    entry.overdue = true;
                    overdue.push(Arc::clone(&entry.task_id));
                }
                _ => {}
            }
            let held = !matches!(entry.state, State::Done | State::Returned) && entry.locked && !entry.overdue;
            if held && partitions(&key.partition) && now.saturating_duration_since(entry.locked_at) >= after {
                acknowledgements.entry(key.partition).or_default().insert(key.offset, Acknowledgement::Renew);
            }
        }
        overdue
    }

    /// Whether a handler runs past its time.
    pub(super) fn has_overdue(&self) -> bool {
        let table = self.table.lock();
        table.entries.values().any(|entry| entry.overdue && matches!(entry.state, State::Running(_)))
    }

    /// When the next renewal is due, or a rest ends.
    pub(super) fn next_timer(&self, renew_after: Duration) -> Option<Instant> {
        let table = self.table.lock();
        table
            .entries
            .values()
            .filter_map(|entry| match entry.state {
                State::Done | State::Returned => None,
                State::Resting(until) => Some(until.min(entry.locked_at + renew_after)),
                _ if entry.locked && !entry.overdue => Some(entry.locked_at + renew_after),
                _ => None,
            })
            .min()
    }

    /// The broker has applied these acknowledgements, sent at `sent_at`.
    pub(super) fn applied(&self, partition: SharePartition, offsets: &[(i64, Acknowledgement)], sent_at: Instant) {
        let mut table = self.table.lock();
        for &(offset, acknowledgement) in offsets {
            let key = RecordKey { partition, offset };
            match acknowledgement {
                Acknowledgement::Accept | Acknowledgement::Release => {
                    // What was attached anew since the request was sent has an acknowledgement of its own due.
                    let settled = table.entries.get(&key).is_some_and(|entry| {
                        matches!(entry.state, State::Done | State::Returned) && entry.locked_at <= sent_at
                    });
                    if settled {
                        table.remove(&key);
                    }
                }
                Acknowledgement::Renew => {
                    if let Some(entry) = table.entries.get_mut(&key) {
                        entry.locked_at = entry.locked_at.max(sent_at);
                    }
                }
                Acknowledgement::Gap => {}
            }
        }
    }

    /// The broker says that this lock is not ours any more. What runs goes on, its result is still published, and an
    /// accept is owed only if the record comes to us again. Returns the task that it concerns, if work was under way.
    pub(super) fn lost(&self, key: RecordKey) -> Option<Arc<str>> {
        let mut table = self.table.lock();
        let entry = table.entries.get_mut(&key)?;
        entry.locked = false;
        let task_id = Arc::clone(&entry.task_id);
        let working = matches!(entry.state, State::Running(_) | State::Publishing(_) | State::Vetting);
        table.due.remove(&key);
        if working {
            return Some(task_id);
        }
        table.forget_finished(key).or_else(|| {
            table.remove(&key);
            None
        })
    }

    /// The session over `partitions` is gone and with it every lock. What lay ready is forgotten: the broker has it
    /// again. Returns the keys of the work that goes on and should be locked again.
    pub(super) fn session_lost(&self, partitions: &dyn Fn(&SharePartition) -> bool) -> Vec<RecordKey> {
        let mut table = self.table.lock();
        let mut missing = Vec::new();
        for key in table.keys(|_| true) {
            if !partitions(&key.partition) {
                continue;
            }
            match table.entries.get(&key).map(|entry| entry.state) {
                Some(State::Ready | State::Resting(_) | State::Returned) => {
                    table.remove(&key);
                }
                Some(_) => {
                    table.due.remove(&key);
                    if let Some(entry) = table.entries.get_mut(&key) {
                        (entry.locked, entry.sought) = (false, true);
                    }
                    missing.push(key);
                }
                None => {}
            }
        }
        missing
    }

    /// True while the work on `key` goes on without a lock.
    pub(super) fn is_missing(&self, key: &RecordKey) -> bool {
        self.table.lock().entries.get(key).is_some_and(|entry| !entry.locked)
    }

    /// Gives up waiting for locks that were lost with a session. Returns the tasks whose accept is impossible now, unless
    /// their records happen to come here again.
    pub(super) fn forget_missing(&self) -> TaskIds {
        let mut table = self.table.lock();
        let mut forgotten = TaskIds::new();
        for key in table.keys(|entry| entry.sought) {
            if let Some(entry) = table.entries.get_mut(&key) {
                entry.sought = false;
            }
            forgotten.extend(table.forget_finished(key));
        }
        forgotten
    }

    /// The durations that handlers have reported since the last call.
    pub(super) fn take_durations(&self) -> Vec<Duration> {
        std::mem::take(&mut self.table.lock().durations)
    }

    // ---- handlers ----

    /// A handler has taken the record from the channel. With `vetting` its past is looked into first.
    pub(super) fn claim(&self, key: RecordKey, vetting: bool, now: Instant, lock: Duration) -> Claim {
        let mut table = self.table.lock();
        let Some(entry) = table.entries.get(&key) else { return Claim::Gone };
        if entry.state != State::Ready {
            return Claim::Gone;
        }
        let left = (entry.locked_at + lock).saturating_duration_since(now);
        if !entry.locked || left < lock / LEAST_LOCK_LEFT {
            if left.is_zero() {
                table.remove(&key);
            } else {
                table.returned += 1;
                table.give_back(key);
            }
            return Claim::Gone;
        }
        table.set(key, if vetting { State::Vetting } else { State::Running(now) });
        Claim::Yours
    }

    /// The past is clean: the handler starts now.
    pub(super) fn start(&self, key: RecordKey, now: Instant) -> Claim {
        let mut table = self.table.lock();
        if table.entries.get(&key).is_none_or(|entry| entry.state != State::Vetting) {
            return Claim::Gone;
        }
        table.set(key, State::Running(now));
        Claim::Yours
    }

    /// The handler gives a vetted record back unstarted: the worker stops.
    pub(super) fn decline(&self, key: RecordKey) {
        let mut table = self.table.lock();
        if table.entries.get(&key).is_some_and(|entry| entry.state == State::Vetting) {
            table.returned += 1;
            table.give_back(key);
        }
    }

    /// The handler is done, or gives the task up: `records` records go to Kafka now. `Gone`: the task was given back in
    /// the meantime, and its outcome must be dropped.
    pub(super) fn publish(&self, key: RecordKey, records: u8, took: Option<Duration>) -> Claim {
        let mut table = self.table.lock();
        table.durations.extend(took);
        if table.entries.get(&key).is_none_or(|entry| !matches!(entry.state, State::Vetting | State::Running(_))) {
            return Claim::Gone;
        }
        table.set(key, State::Publishing(records));
        Claim::Yours
    }

    /// The failure may pass: released at `until`, or at once when the worker stops.
    pub(super) fn rest(&self, key: RecordKey, until: Instant, took: Duration) {
        let mut table = self.table.lock();
        table.durations.push(took);
        match table.entries.get(&key).map(|entry| (entry.state, entry.locked)) {
            Some((State::Running(_), true)) => table.set(key, State::Resting(until)),
            Some((State::Running(_), false)) => {
                table.remove(&key);
            }
            _ => {}
        }
    }

    // ---- the outbox ----

    /// Kafka has acknowledged one of the task's records; after the last one the accept is due.
    pub(super) fn published(&self, key: RecordKey) {
        let mut table = self.table.lock();
        let Some(State::Publishing(left)) = table.entries.get(&key).map(|entry| entry.state) else { return };
        if left > 1 {
            table.set(key, State::Publishing(left - 1));
            return;
        }
        table.finished += 1;
        table.set(key, State::Done);
        match table.entries.get(&key).map(|entry| (entry.locked, entry.sought)) {
            Some((true, _)) => {
                table.due.insert(key, Acknowledgement::Accept);
            }
            // The loss of its lock was reported when it was lost.
            Some((false, false)) => drop(table.forget_finished(key)),
            _ => {}
        }
    }

    /// One of the task's records will not be written: the task is released at `until`, or at once when the worker stops.
    pub(super) fn unpublished(&self, key: RecordKey, until: Instant) {
        let mut table = self.table.lock();
        match table.entries.get(&key).map(|entry| (entry.state, entry.locked)) {
            Some((State::Publishing(_), true)) => table.set(key, State::Resting(until)),
            Some((State::Publishing(_), false)) => {
                table.remove(&key);
            }
            _ => {}
        }
    }

    // ---- main ----

    /// Abandons what handlers run, at the deadline or the second signal; what publishes is left alone.
    pub(super) fn abandon_running(&self) {
        let mut table = self.table.lock();
        for key in table.keys(|entry| matches!(entry.state, State::Running(_))) {
            table.abandon(key);
        }
        for key in table.keys(|entry| matches!(entry.state, State::Ready | State::Vetting | State::Resting(_))) {
            table.returned += 1;
            table.give_back(key);
        }
    }

    /// Abandons what is on its way to Kafka without an answer: given back, because done is not proven.
    pub(super) fn abandon_publishing(&self) {
        let mut table = self.table.lock();
        for key in table.keys(|entry| matches!(entry.state, State::Publishing(_))) {
            table.abandon(key);
        }
    }

    /// The tasks that were abandoned so far.
    pub(super) fn abandoned(&self) -> TaskIds {
        self.table.lock().abandoned.clone()
    }

    /// How many records are in which stage.
    pub(super) fn counts(&self) -> Counts {
        self.table.lock().counts
    }

    /// Tasks finished (result in Kafka) and records returned unstarted, since the process began.
    pub(super) fn totals(&self) -> (u64, u64) {
        let table = self.table.lock();
        (table.finished, table.returned)
    }

    /// What handlers run, the longest first.
    pub(super) fn running(&self) -> Vec<RunningTask> {
        let table = self.table.lock();
        let mut running: Vec<RunningTask> = table
            .entries
            .iter()
            .filter_map(|(key, entry)| match entry.state {
                State::Running(since) => Some(RunningTask { task_id: Arc::clone(&entry.task_id), key: *key, since }),
                _ => None,
            })
            .collect();
        running.sort_unstable_by_key(|task| (task.since, task.key));
        running
    }

    /// The tasks whose result Kafka has not acknowledged yet, run or publishing.
    pub(super) fn started_ids(&self) -> TaskIds {
        let table = self.table.lock();
        let started =
            table.entries.values().filter(|entry| matches!(entry.state, State::Running(_) | State::Publishing(_)));
        started.map(|entry| Arc::clone(&entry.task_id)).collect()
    }
}

impl Table {
    fn abandon(&mut self, key: RecordKey) {
        if let Some(entry) = self.entries.get(&key) {
            self.abandoned.push(Arc::clone(&entry.task_id));
        }
        self.give_back(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const PARTITION: SharePartition = SharePartition { topic_id: Uuid::nil(), partition: 0 };
    const LOCK: Duration = Duration::from_secs(15);

    fn key(offset: i64) -> RecordKey {
        RecordKey { partition: PARTITION, offset }
    }

    fn every(_: &SharePartition) -> bool {
        true
    }

    /// An account with records 1 to `count`, all ready.
    fn holding(count: i64, now: Instant) -> InFlight {
        let in_flight = InFlight::default();
        for offset in 1..=count {
            assert_eq!(in_flight.admit(key(offset), offset.to_string().into(), now), Admission::New);
        }
        in_flight
    }

    fn due(in_flight: &InFlight) -> Vec<(i64, Acknowledgement)> {
        in_flight.take_due(&every).remove(&PARTITION).unwrap_or_default().into_iter().collect()
    }

    fn run(in_flight: &InFlight, offset: i64, now: Instant) {
        assert_eq!(in_flight.claim(key(offset), false, now, LOCK), Claim::Yours);
    }

    #[test]
    fn a_task_is_accepted_only_after_all_its_records_are_in_kafka() {
        let now = Instant::now();
        let in_flight = holding(1, now);
        run(&in_flight, 1, now);
        assert!(due(&in_flight).is_empty());
        assert_eq!(in_flight.publish(key(1), 2, Some(Duration::from_millis(3))), Claim::Yours);
        in_flight.published(key(1));
        assert!(due(&in_flight).is_empty(), "one of two");
        in_flight.published(key(1));
        assert_eq!(due(&in_flight), [(1, Acknowledgement::Accept)]);
        in_flight.applied(PARTITION, &[(1, Acknowledgement::Accept)], now);
        assert_eq!(in_flight.counts(), Counts::default());
        assert_eq!(in_flight.totals(), (1, 0));
        assert_eq!(in_flight.take_durations(), [Duration::from_millis(3)]);
    }

    #[test]
    fn what_is_taken_back_cannot_be_claimed_and_what_is_claimed_cannot_be_taken_back() {
        let now = Instant::now();
        let in_flight = holding(2, now);
        assert!(in_flight.take_back(key(1)));
        assert_eq!(in_flight.claim(key(1), false, now, LOCK), Claim::Gone);
        run(&in_flight, 2, now);
        assert!(!in_flight.take_back(key(2)));
        assert_eq!(due(&in_flight), [(1, Acknowledgement::Release)]);
        assert_eq!(in_flight.totals(), (0, 1));
    }

    #[test]
    fn the_outcome_of_an_abandoned_task_is_dropped() {
        let now = Instant::now();
        let in_flight = holding(3, now);
        run(&in_flight, 1, now);
        run(&in_flight, 2, now);
        assert_eq!(in_flight.publish(key(2), 1, None), Claim::Yours);
        in_flight.abandon_running();
        assert_eq!(in_flight.publish(key(1), 1, None), Claim::Gone);
        assert_eq!(in_flight.abandoned(), ["1".into()], "what publishes is left alone, what is ready only goes back");
        in_flight.published(key(2));
        assert_eq!(
            due(&in_flight),
            [(1, Acknowledgement::Release), (2, Acknowledgement::Accept), (3, Acknowledgement::Release)]
        );
    }

    #[test]
    fn an_unproven_result_is_given_back_at_the_very_end() {
        let now = Instant::now();
        let in_flight = holding(1, now);
        run(&in_flight, 1, now);
        in_flight.publish(key(1), 1, None);
        in_flight.abandon_publishing();
        in_flight.published(key(1));
        assert_eq!(due(&in_flight), [(1, Acknowledgement::Release)], "a late answer changes nothing");
        assert_eq!(in_flight.abandoned(), ["1".into()]);
    }

    #[test]
    fn no_handler_starts_a_task_whose_lock_runs_out() {
        let now = Instant::now();
        let in_flight = holding(2, now);
        let late = now + LOCK - LOCK / LEAST_LOCK_LEFT + Duration::from_millis(1);
        assert_eq!(in_flight.claim(key(1), false, late, LOCK), Claim::Gone);
        assert_eq!(due(&in_flight), [(1, Acknowledgement::Release)], "still ours: it goes back");
        assert_eq!(in_flight.claim(key(2), false, now + LOCK, LOCK), Claim::Gone);
        assert!(due(&in_flight).is_empty(), "expired: there is nothing to give back");
    }

    #[test]
    fn work_is_renewed_and_overdue_work_is_not() {
        let now = Instant::now();
        let in_flight = holding(3, now);
        run(&in_flight, 1, now);
        assert_eq!(in_flight.claim(key(2), true, now, LOCK), Claim::Yours);
        let renewals = |at: Duration, timeout: Duration| {
            let mut acknowledgements = Acknowledgements::new();
            let overdue = in_flight.add_renewals(&mut acknowledgements, &every, now + at, LOCK / 3, timeout);
            let offsets: Vec<i64> = acknowledgements.remove(&PARTITION).unwrap_or_default().into_keys().collect();
            (offsets, overdue)
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(renewals(Duration::from_secs(4), hour).0, Vec::<i64>::new(), "not due yet");
        assert_eq!(renewals(Duration::from_secs(5), hour).0, [1, 2, 3]);
        in_flight.applied(PARTITION, &[(1, Acknowledgement::Renew)], now + Duration::from_secs(5));
        assert_eq!(renewals(Duration::from_secs(6), hour).0, [2, 3]);
        let (renewed, overdue) = renewals(Duration::from_secs(11), Duration::from_secs(10));
        assert_eq!((renewed, overdue), (vec![2, 3], vec!["1".into()]));
        assert!(renewals(Duration::from_secs(12), Duration::from_secs(10)).1.is_empty(), "said once");
    }

    #[test]
    fn a_lost_session_keeps_the_work_and_forgets_the_rest() {
        let now = Instant::now();
        let in_flight = holding(4, now);
        run(&in_flight, 1, now);
        run(&in_flight, 2, now);
        in_flight.publish(key(2), 1, None);
        in_flight.published(key(2));
        in_flight.take_back(key(3));
        let mut missing = in_flight.session_lost(&every);
        missing.sort();
        assert_eq!(missing, [key(1), key(2)]);
        assert!(due(&in_flight).is_empty(), "what was due belongs to locks that are gone");
        assert_eq!(in_flight.claim(key(4), false, now, LOCK), Claim::Gone);
        // The broker delivers both again: nothing is started, the accept of the finished one is due at once.
        assert_eq!(in_flight.admit(key(1), "1".into(), now), Admission::Attached);
        assert_eq!(in_flight.admit(key(2), "2".into(), now), Admission::Attached);
        assert_eq!(due(&in_flight), [(2, Acknowledgement::Accept)]);
        in_flight.publish(key(1), 1, None);
        in_flight.published(key(1));
        assert_eq!(due(&in_flight), [(1, Acknowledgement::Accept)]);
    }

    #[test]
    fn an_accept_that_has_no_lock_is_given_up_by_name() {
        let now = Instant::now();
        let in_flight = holding(1, now);
        run(&in_flight, 1, now);
        in_flight.session_lost(&every);
        in_flight.publish(key(1), 1, None);
        in_flight.published(key(1));
        assert!(due(&in_flight).is_empty());
        assert_eq!(in_flight.forget_missing(), ["1".into()]);
        assert_eq!(in_flight.counts(), Counts::default());
    }

    #[test]
    fn a_finished_task_that_was_not_accepted_is_accepted_when_it_comes_again() {
        let now = Instant::now();
        let in_flight = holding(3, now);
        for offset in 1..=3 {
            run(&in_flight, offset, now);
            in_flight.publish(key(offset), 1, None);
            in_flight.published(key(offset));
        }
        assert_eq!(due(&in_flight).len(), 3);
        // One lock is refused, the session with the two others breaks, and they are not found again.
        assert_eq!(in_flight.lost(key(1)), Some("1".into()));
        in_flight.session_lost(&every);
        assert_eq!(in_flight.forget_missing().len(), 2);
        assert_eq!(in_flight.admit(key(1), "1".into(), now), Admission::Attached);
        assert_eq!(in_flight.admit(key(2), "2".into(), now), Admission::Attached);
        assert_eq!(in_flight.admit(key(3), "another task".into(), now), Admission::New, "the log was cut off");
        assert_eq!(due(&in_flight), [(1, Acknowledgement::Accept), (2, Acknowledgement::Accept)]);
        // However often.
        assert_eq!(in_flight.lost(key(2)), Some("2".into()));
        assert_eq!(in_flight.admit(key(2), "2".into(), now), Admission::Attached);
        assert_eq!(due(&in_flight), [(2, Acknowledgement::Accept)]);
        assert_eq!(in_flight.totals(), (3, 0), "finished once each");
    }

    #[test]
    fn who_finishes_without_a_lock_that_is_looked_for_holds_nothing() {
        let now = Instant::now();
        let in_flight = holding(2, now);
        run(&in_flight, 1, now);
        run(&in_flight, 2, now);
        // The lock of one is refused while it runs; that of the other is looked for in vain.
        assert_eq!(in_flight.lost(key(1)), Some("1".into()));
        in_flight.admit(key(1), "1".into(), now);
        in_flight.session_lost(&|_| true);
        in_flight.admit(key(1), "1".into(), now);
        in_flight.lost(key(1));
        assert!(in_flight.forget_missing().is_empty(), "neither is finished");
        for offset in [1, 2] {
            in_flight.publish(key(offset), 1, None);
            in_flight.published(key(offset));
        }
        assert_eq!((in_flight.counts(), in_flight.totals()), (Counts::default(), (2, 0)));
        assert_eq!(in_flight.admit(key(2), "2".into(), now), Admission::Attached, "and is known when it comes");
        assert_eq!(due(&in_flight), [(2, Acknowledgement::Accept)]);
    }

    #[test]
    fn a_failed_task_rests_before_it_goes_back() {
        let now = Instant::now();
        let in_flight = holding(2, now);
        for offset in [1, 2] {
            run(&in_flight, offset, now);
            in_flight.rest(key(offset), now + Duration::from_secs(offset as u64), Duration::ZERO);
        }
        in_flight.end_rests(now);
        assert!(due(&in_flight).is_empty());
        in_flight.end_rests(now + Duration::from_secs(1));
        assert_eq!(due(&in_flight), [(1, Acknowledgement::Release)]);
        in_flight.take_back_resting();
        assert_eq!(due(&in_flight), [(2, Acknowledgement::Release)], "a stop does not wait");
    }

    #[test]
    fn an_answer_to_an_old_release_does_not_settle_a_new_delivery() {
        let now = Instant::now();
        let in_flight = holding(1, now);
        in_flight.take_back(key(1));
        assert_eq!(due(&in_flight), [(1, Acknowledgement::Release)]);
        let later = now + Duration::from_millis(5);
        assert_eq!(in_flight.admit(key(1), "1".into(), later), Admission::Attached);
        in_flight.applied(PARTITION, &[(1, Acknowledgement::Release)], now);
        assert_eq!(due(&in_flight), [(1, Acknowledgement::Release)], "the new lock is still to be released");
    }

    #[test]
    fn running_lists_the_longest_first() {
        let now = Instant::now();
        let in_flight = holding(3, now);
        for (offset, after) in [(3, 0), (1, 20), (2, 10)] {
            run(&in_flight, offset, now + Duration::from_millis(after));
        }
        let ids: Vec<String> = in_flight.running().iter().map(|task| task.task_id.to_string()).collect();
        assert_eq!(ids, ["3", "2", "1"]);
    }

    proptest::proptest! {
        /// Whatever happens in whatever order: counts equal the entries, an accept is due only for what was published, and
        /// an offset never has two fates.
        #[test]
        fn counts_and_fates_stay_true(steps in proptest::collection::vec((0u8..12, 0i64..6), 1..300)) {
            let now = Instant::now();
            let in_flight = InFlight::default();
            let mut published = std::collections::BTreeSet::new();
            for (step, offset) in steps {
                let key = key(offset);
                match step {
                    0 | 1 => { in_flight.admit(key, "t".into(), now); }
                    2 => { in_flight.claim(key, offset % 2 == 0, now, LOCK); }
                    3 => { in_flight.start(key, now); }
                    4 => { in_flight.publish(key, 1, None); }
                    5 => {
                        let publishing = matches!(in_flight.table.lock().entries.get(&key).map(|entry| entry.state), Some(State::Publishing(_)));
                        in_flight.published(key);
                        if publishing { published.insert(offset); }
                    }
                    6 => { in_flight.take_back(key); }
                    7 => { in_flight.rest(key, now, Duration::ZERO); in_flight.end_rests(now); }
                    8 => { in_flight.lost(key); }
                    9 => { in_flight.session_lost(&every); }
                    10 => { in_flight.decline(key); in_flight.forget_missing(); }
                    _ => {
                        let said = due(&in_flight);
                        for (offset, acknowledgement) in &said {
                            if *acknowledgement == Acknowledgement::Accept {
                                proptest::prop_assert!(published.contains(offset), "accepted unpublished {offset}");
                            }
                        }
                        in_flight.applied(PARTITION, &said, now);
                    }
                }
                let table = in_flight.table.lock();
                let counts = table.counts;
                let total = counts.ready + counts.vetting + counts.running + counts.publishing + counts.done + counts.resting + counts.returned;
                proptest::prop_assert_eq!(total, table.entries.len());
                proptest::prop_assert!(table.due.keys().all(|key| table.entries.contains_key(key)));
            }
        }
    }
}
