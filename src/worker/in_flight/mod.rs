//! The account of every record that this process holds: what decides its fate, and what Kafka is owed for it.
//!
//! One owner at a time decides what becomes of a task. The states of an entry say which, and every change is made under
//! one lock: a handler may only finish what is still `Running`, a stop may only give back what is not `Publishing`.
//! There is one account for all intakes: an entry carries the node that holds its lock, and a code from another node's
//! session does not touch it. No I/O, no log line and no send happens in here; time comes in as a parameter.
//!
//! Callers: intakes enter deliveries, take the acknowledgements that are due and say what became of them; handlers begin
//! and finish; the outbox says what Kafka has acknowledged; the thread `intakes` tells of leaders and time-outs; main
//! abandons at the deadline and reads the counts. Rules that are named by number are those of the protocol model.

mod entry;
#[cfg(test)]
mod tests;
mod unaccepted;

pub(super) use entry::{ChannelId, RecordKey, RunId, Verdict};

use crate::kafka::share_wire::{Acknowledgement, Acknowledgements, SharePartition};
use crate::stop::Stop;
use entry::{Entry, Lock, State};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use unaccepted::Unaccepted;

/// No handler starts a task whose lock has less than this part of its duration left: the first renewal must reach the
/// broker before. A part, since a broker may allow shorter locks than the 15 s that are asked for.
const LEAST_LOCK_LEFT: u32 = 5;
/// A lock is renewed when this part of its duration has passed.
const RENEW_AFTER: u32 = 3;
/// With a renewal that is due go those whose locks have used up this part: one request instead of many.
const RENEW_ALONG: u32 = 4;

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
    /// Handlers whose record was taken away from them, and which have not come back.
    pub(super) detached: usize,
}

impl Counts {
    /// Nothing that was taken is unsettled, acknowledgements apart.
    pub(super) fn only_acknowledgements(&self) -> bool {
        self.ready + self.vetting + self.running + self.publishing + self.resting == 0
    }

    /// Handler threads in use.
    pub(super) fn busy(&self) -> usize {
        self.vetting + self.running + self.detached
    }

    /// Tasks that a handler has started and whose result is not safe.
    pub(super) fn started(&self) -> usize {
        self.running + self.publishing
    }

    /// Records that are in work or about to be.
    pub(super) fn in_work(&self) -> usize {
        self.ready + self.vetting + self.running + self.publishing
    }

    fn slot(&mut self, state: &State) -> &mut usize {
        match state {
            State::Ready => &mut self.ready,
            State::Vetting(_) => &mut self.vetting,
            State::Running { .. } => &mut self.running,
            State::Publishing(_) => &mut self.publishing,
            State::Done => &mut self.done,
            State::Resting(_) => &mut self.resting,
            State::Returned => &mut self.returned,
        }
    }
}

/// One start: what a handler needs to say later what became of it.
#[derive(Clone, Debug)]
pub(super) struct Run {
    id: RunId,
    /// Triggered when the task was given up: it ran too long, its lock is lost for good, or the deadline has passed.
    pub(super) abandoned: Stop,
}

/// What a handler may do with a record that it took from the channel.
#[derive(Clone, Debug)]
pub(super) enum Claim {
    /// Go on.
    Yours(Run),
    /// It was taken back, or its lock is too old; forget it.
    Gone,
}

/// A record that the broker has just locked for this process.
#[derive(Clone, Debug)]
pub(super) struct Delivered {
    pub(super) key: RecordKey,
    pub(super) task_id: Arc<str>,
    /// The broker that brought it.
    pub(super) node: i32,
    /// When it was asked for: the lock is not older.
    pub(super) sent_at: Instant,
    /// It may be started (rule 10); otherwise it goes back, unless it is known.
    pub(super) startable: bool,
    /// The broker drops it at its next release.
    pub(super) last_delivery: bool,
}

/// A task that a handler runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunningTask {
    pub(super) task_id: Arc<str>,
    pub(super) key: RecordKey,
    pub(super) since: Instant,
}

/// Tasks that something concerns, for the log.
pub(super) type TaskIds = Vec<Arc<str>>;

#[derive(Debug)]
struct Table {
    /// How long a lock lasts, as the brokers say.
    lock: Duration,
    entries: HashMap<RecordKey, Entry>,
    counts: Counts,
    /// What can be said to the broker now.
    due: BTreeMap<RecordKey, Acknowledgement>,
    /// Entries whose lock is sought.
    sought: usize,
    unaccepted: Unaccepted,
    /// Runs that count no more, with the task if it ran past its time.
    detached: HashMap<RunId, Option<RunningTask>>,
    next_run: u64,
    next_channel: u64,
    durations: Vec<Duration>,
    finished: u64,
    returned: u64,
    abandoned: TaskIds,
}

impl Table {
    /// Changes one entry and keeps everything true that is counted or listed besides.
    fn change<T>(&mut self, key: RecordKey, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let entry = self.entries.get_mut(&key)?;
        *self.counts.slot(&entry.state) -= 1;
        self.sought -= usize::from(entry.is_sought());
        let outcome = change(entry);
        *self.counts.slot(&entry.state) += 1;
        self.sought += usize::from(entry.is_sought());
        match entry.owed().filter(|_| entry.asked.is_none()) {
            Some(acknowledgement) => self.due.insert(key, acknowledgement),
            None => self.due.remove(&key),
        };
        Some(outcome)
    }

    fn remove(&mut self, key: RecordKey) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        *self.counts.slot(&entry.state) -= 1;
        self.sought -= usize::from(entry.is_sought());
        self.due.remove(&key);
        Some(entry)
    }

    /// The record goes back to the broker; without a lock there is nothing to give.
    fn give_back(&mut self, key: RecordKey) {
        match self.entries.get(&key).map(|entry| entry.lock) {
            Some(Lock::Held { .. }) => drop(self.change(key, |entry| entry.state = State::Returned)),
            _ => drop(self.remove(key)),
        }
    }

    /// What no handler has started goes back. A handler that looks into its past finds it gone.
    fn give_back_unstarted(&mut self, key: RecordKey) {
        let Some(entry) = self.entries.get(&key) else { return };
        match entry.state {
            State::Ready if entry.last_delivery => return,
            State::Ready => {}
            State::Vetting(run) => self.detach(run, None),
            _ => return,
        }
        self.returned += 1;
        self.give_back(key);
    }

    fn detach(&mut self, run: RunId, task: Option<RunningTask>) {
        self.detached.insert(run, task);
        self.counts.detached = self.detached.len();
    }

    /// A handler that was detached is back: whatever it says, it does not count.
    fn reattach(&mut self, run: RunId) -> bool {
        let was = self.detached.remove(&run).is_some();
        self.counts.detached = self.detached.len();
        was
    }

    /// The lock is not ours any more. What runs goes on without it, what is finished is remembered (rule 12), and the
    /// rest the broker has again. Returns the task if work on it was under way.
    fn lose(&mut self, key: RecordKey) -> Option<Arc<str>> {
        let entry = self.entries.get(&key)?;
        match entry.state {
            State::Running { .. } | State::Publishing(_) => self.change(key, |entry| {
                entry.lock = Lock::Gone { sought: true };
                entry.asked = None;
                Arc::clone(&entry.task_id)
            }),
            State::Done => {
                let entry = self.remove(key)?;
                self.unaccepted.remember(key, Arc::clone(&entry.task_id), true);
                Some(entry.task_id)
            }
            State::Vetting(run) => {
                self.detach(run, None);
                self.remove(key);
                None
            }
            State::Ready | State::Resting(_) | State::Returned => {
                self.remove(key);
                None
            }
        }
    }

    fn keys(&self, wanted: impl Fn(&RecordKey, &Entry) -> bool) -> Vec<RecordKey> {
        self.entries.iter().filter(|(key, entry)| wanted(key, entry)).map(|(key, _)| *key).collect()
    }

    fn new_run(&mut self) -> Run {
        self.next_run += 1;
        Run { id: RunId(self.next_run), abandoned: Stop::new() }
    }

    fn abandon(&mut self, key: RecordKey) {
        if let Some(entry) = self.entries.get(&key) {
            self.abandoned.push(Arc::clone(&entry.task_id));
        }
        self.give_back(key);
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct InFlight {
    table: Mutex<Table>,
}

impl InFlight {
    /// An empty account; `lock` is how long a lock lasts.
    pub(super) fn new(lock: Duration) -> Self {
        let table = Table {
            lock,
            entries: HashMap::new(),
            counts: Counts::default(),
            due: BTreeMap::new(),
            sought: 0,
            unaccepted: Unaccepted::default(),
            detached: HashMap::new(),
            next_run: 0,
            next_channel: 0,
            durations: Vec::new(),
            finished: 0,
            returned: 0,
            abandoned: TaskIds::new(),
        };
        Self { table: Mutex::new(table) }
    }

    // ---- intakes: deliveries ----

    /// Enters a delivery. It is newer than everything that was asked about the record before (rule 9). True: the record
    /// is to be handed to a handler.
    pub(super) fn deliver(&self, delivered: Delivered, now: Instant) -> bool {
        let Delivered { key, task_id, node, sent_at, startable, last_delivery } = delivered;
        let mut table = self.table.lock();
        let lock = Lock::Held { node, since: sent_at, doubt: !startable };
        let fresh = if startable { State::Ready } else { State::Returned };
        if table.entries.contains_key(&key) {
            let started = table.change(key, |entry| {
                (entry.lock, entry.delivered_at, entry.asked) = (lock, now, None);
                entry.last_delivery = last_delivery;
                let was_ready = matches!(entry.state, State::Ready);
                if was_ready || matches!(entry.state, State::Returned) {
                    entry.state = fresh;
                }
                startable && !was_ready && matches!(entry.state, State::Ready)
            });
            return started.unwrap_or(false);
        }
        let finished = table.unaccepted.knows(&key, &task_id);
        table.unaccepted.found(&key);
        let state = if finished { State::Done } else { fresh };
        let entry = Entry { task_id, state, lock, delivered_at: now, last_delivery, asked: None, asked_until: None };
        *table.counts.slot(&entry.state) += 1;
        table.returned += u64::from(matches!(entry.state, State::Returned));
        let starts = matches!(entry.state, State::Ready);
        if let Some(acknowledgement) = entry.owed() {
            table.due.insert(key, acknowledgement);
        }
        table.entries.insert(key, entry);
        starts
    }

    /// Whether the record is known, as work or as finished: a search for it, if there was one, has found it.
    pub(super) fn knows(&self, key: RecordKey, task_id: &str) -> bool {
        let table = self.table.lock();
        table.entries.contains_key(&key) || table.unaccepted.knows(&key, task_id)
    }

    /// Whether another node is known to hold the lock (rule 11).
    pub(super) fn is_held_elsewhere(&self, key: RecordKey, node: i32) -> bool {
        self.table.lock().entries.get(&key).and_then(Entry::node).is_some_and(|holder| holder != node)
    }

    /// Takes back one record that no handler has touched; counted as returned unstarted.
    pub(super) fn take_back(&self, key: RecordKey) -> bool {
        let mut table = self.table.lock();
        let ready = table.entries.get(&key).is_some_and(|entry| matches!(entry.state, State::Ready));
        if ready {
            table.returned += 1;
            table.give_back(key);
        }
        ready
    }

    /// Whether the record still lies ready.
    pub(super) fn is_ready(&self, key: RecordKey) -> bool {
        self.table.lock().entries.get(&key).is_some_and(|entry| matches!(entry.state, State::Ready))
    }

    /// Whether the broker drops the record at its next release.
    pub(super) fn is_last(&self, key: RecordKey) -> bool {
        self.table.lock().entries.get(&key).is_some_and(|entry| entry.last_delivery)
    }

    /// Makes the releases of failed tasks due at once: the worker stops, and another one has the time.
    pub(super) fn take_back_resting(&self) {
        self.end_rests_by(None);
    }

    /// Makes the releases due of failed tasks whose rest is over.
    pub(super) fn end_rests(&self, now: Instant) {
        self.end_rests_by(Some(now));
    }

    fn end_rests_by(&self, now: Option<Instant>) {
        let mut table = self.table.lock();
        if table.counts.resting == 0 {
            return;
        }
        let over = |until: Instant| now.is_none_or(|now| until <= now);
        for key in table.keys(|_, entry| matches!(entry.state, State::Resting(until) if over(until))) {
            table.give_back(key);
        }
    }

    // ---- intakes: acknowledgements ----

    /// Moves out what can be acknowledged to `node` now; it is sent on `channel`.
    pub(super) fn take_due(&self, node: i32, channel: ChannelId) -> Acknowledgements {
        let mut table = self.table.lock();
        let mut taken = Acknowledgements::new();
        if table.due.is_empty() {
            return taken;
        }
        let Table { due, entries, .. } = &mut *table;
        due.retain(|key, acknowledgement| {
            let Some(entry) = entries.get_mut(key).filter(|entry| entry.node() == Some(node)) else { return true };
            entry.asked = Some(channel);
            taken.entry(key.partition).or_default().insert(key.offset, *acknowledgement);
            false
        });
        taken
    }

    /// Of a group that is sent a second time, what is still as it was.
    pub(super) fn confirm(&self, (node, channel): (i32, ChannelId), mut group: Acknowledgements) -> Acknowledgements {
        let table = self.table.lock();
        for (&partition, offsets) in &mut group {
            offsets.retain(|&offset, said| {
                table.entries.get(&RecordKey { partition, offset }).is_some_and(|entry| match said {
                    Acknowledgement::Renew => entry.node() == Some(node),
                    _ => entry.asked == Some(channel) && entry.owed() == Some(*said),
                })
            });
        }
        group.retain(|_, offsets| !offsets.is_empty());
        group
    }

    /// A name for a new connection.
    pub(super) fn new_channel(&self) -> ChannelId {
        let mut table = self.table.lock();
        table.next_channel += 1;
        ChannelId(table.next_channel)
    }

    /// The renewals that are due at `node`: for what is being worked on, and with `settled` also for what waits until it
    /// can be acknowledged.
    pub(super) fn renewals(&self, node: i32, settled: bool, now: Instant) -> Acknowledgements {
        let table = self.table.lock();
        let held = |entry: &Entry| match entry.lock {
            Lock::Held { node: holder, since, doubt } if holder == node => {
                let renewable = settled || !matches!(entry.state, State::Done | State::Returned);
                renewable.then(|| (now.saturating_duration_since(since), doubt))
            }
            _ => None,
        };
        let is_due = |(age, doubt)| doubt || age >= table.lock / RENEW_AFTER;
        let mut renewals = Acknowledgements::new();
        if !table.entries.values().filter_map(held).any(is_due) {
            return renewals;
        }
        for (key, entry) in &table.entries {
            if held(entry).is_some_and(|(age, doubt)| doubt || age >= table.lock / RENEW_ALONG) {
                renewals.entry(key.partition).or_default().insert(key.offset, Acknowledgement::Renew);
            }
        }
        renewals
    }

    /// What became of acknowledgements that were sent to `node` on `channel`. Returns the tasks whose lock is found to
    /// be lost while work on them is under way.
    pub(super) fn settled(
        &self,
        (node, channel): (i32, ChannelId),
        partition: SharePartition,
        offsets: &[(i64, Acknowledgement)],
        verdict: Verdict,
        (sent_at, now): (Instant, Instant),
    ) -> TaskIds {
        let mut table = self.table.lock();
        let mut lost = TaskIds::new();
        for &(offset, acknowledgement) in offsets {
            let key = RecordKey { partition, offset };
            let Some(entry) = table.entries.get(&key) else { continue };
            if entry.node() != Some(node) || entry.delivered_at > sent_at {
                continue;
            }
            let here = entry.asked == Some(channel);
            match acknowledgement {
                Acknowledgement::Accept | Acknowledgement::Release if here => match verdict {
                    Verdict::Applied => {
                        table.remove(key);
                        table.unaccepted.forget(&key);
                    }
                    Verdict::Again => drop(table.change(key, |entry| entry.asked = None)),
                    Verdict::Lost => lost.extend(table.lose(key)),
                },
                Acknowledgement::Renew => {
                    let elsewhere = entry.asked.is_some() && !here;
                    let was_elsewhere = entry.asked_until.is_some_and(|until| until > sent_at);
                    match verdict {
                        Verdict::Applied => drop(table.change(key, |entry| {
                            let since = match entry.lock {
                                Lock::Held { since, .. } => since.max(sent_at),
                                Lock::Gone { .. } => sent_at,
                            };
                            entry.lock = Lock::Held { node, since, doubt: false };
                            // Still locked: what is unanswered elsewhere did not arrive, and is said again (rule 13).
                            if elsewhere {
                                (entry.asked, entry.asked_until) = (None, Some(now));
                            }
                        })),
                        Verdict::Again => {}
                        // In transition: says nothing (rule 14). It is asked again when nothing is out elsewhere.
                        Verdict::Lost if elsewhere || was_elsewhere => drop(table.change(key, |entry| {
                            if let Lock::Held { doubt, .. } = &mut entry.lock {
                                *doubt = !elsewhere;
                            }
                        })),
                        Verdict::Lost => lost.extend(table.lose(key)),
                    }
                }
                _ => {}
            }
        }
        lost
    }

    /// What is unanswered on `channel` will not be answered, or is not known to have been applied: it is due again.
    pub(super) fn unanswered(&self, channel: ChannelId, now: Instant) {
        let mut table = self.table.lock();
        for key in table.keys(|_, entry| entry.asked == Some(channel)) {
            table.change(key, |entry| (entry.asked, entry.asked_until) = (None, Some(now)));
        }
    }

    /// Whether the locks at `node` are ours is not known: what is in work is renewed at once, what is not started goes
    /// back (rules 10 and 17).
    pub(super) fn doubt(&self, node: i32) {
        self.doubt_those(|_, entry| entry.node() == Some(node));
    }

    fn doubt_those(&self, which: impl Fn(&RecordKey, &Entry) -> bool) {
        let mut table = self.table.lock();
        for key in table.keys(which) {
            table.change(key, |entry| {
                if let Lock::Held { doubt, .. } = &mut entry.lock {
                    *doubt = true;
                }
            });
            table.give_back_unstarted(key);
        }
    }

    /// Whether an acknowledgement is unanswered on `channel`.
    pub(super) fn asks_on(&self, channel: ChannelId) -> bool {
        self.table.lock().entries.values().any(|entry| entry.asked == Some(channel))
    }

    /// Whether anything is locked through a session with `node`.
    pub(super) fn holds_at(&self, node: i32) -> bool {
        self.table.lock().entries.values().any(|entry| entry.node() == Some(node))
    }

    /// When the next renewal at `node` is due, or a rest ends.
    pub(super) fn next_timer(&self, node: i32) -> Option<Instant> {
        let table = self.table.lock();
        let timers = table.entries.values().filter_map(|entry| match (&entry.state, entry.lock) {
            (State::Done | State::Returned, _) => None,
            (State::Resting(until), _) => Some(*until),
            (_, Lock::Held { node: holder, since, .. }) if holder == node => Some(since + table.lock / RENEW_AFTER),
            _ => None,
        });
        timers.min()
    }

    /// The lock's length, as a broker has just told it.
    pub(super) fn set_lock_length(&self, lock: Duration) {
        self.table.lock().lock = lock;
    }

    /// The lock's length.
    pub(super) fn lock_length(&self) -> Duration {
        self.table.lock().lock
    }

    // ---- leaders ----

    /// Another node leads the partition: the locks at the former one are gone. Where the same node leads it in a later
    /// epoch, it is asked (rule 18). Returns the tasks whose work goes on without a lock.
    pub(super) fn leader_changed(&self, partition: SharePartition, leader: i32) -> TaskIds {
        self.doubt_those(|key, entry| key.partition == partition && entry.node() == Some(leader));
        let mut table = self.table.lock();
        let elsewhere = |key: &RecordKey, entry: &Entry| {
            key.partition == partition && entry.node().is_some_and(|node| node != leader)
        };
        let keys = table.keys(elsewhere);
        keys.into_iter().filter_map(|key| table.lose(key)).collect()
    }

    /// The partition is another member's from now on: what is not started goes back, what runs is finished (rule 20).
    pub(super) fn unassigned(&self, partition: SharePartition) {
        let mut table = self.table.lock();
        for key in table.keys(|key, _| key.partition == partition) {
            table.give_back_unstarted(key);
        }
    }

    /// How many locks are sought in this partition: of work, and with `finished` of finished tasks, too.
    pub(super) fn sought(&self, partition: SharePartition, finished: bool) -> usize {
        let table = self.table.lock();
        let of_finished = if finished { table.unaccepted.sought(partition) } else { 0 };
        if table.sought == 0 {
            return of_finished;
        }
        let entries = table.entries.iter();
        entries.filter(|(key, entry)| key.partition == partition && entry.is_sought()).count() + of_finished
    }

    /// The search in this partition is over: another member may have what was not found. Handlers are told.
    pub(super) fn end_search(&self, partition: SharePartition) {
        let mut told = Vec::new();
        {
            let mut table = self.table.lock();
            table.unaccepted.end_search(partition);
            for key in table.keys(|key, entry| key.partition == partition && entry.is_sought()) {
                table.change(key, |entry| {
                    entry.lock = Lock::Gone { sought: false };
                    if let State::Running { abandoned, .. } = &entry.state {
                        told.push(abandoned.clone());
                    }
                });
            }
        }
        for abandoned in told {
            abandoned.trigger();
        }
    }

    /// Takes the tasks away from handlers that have run them for longer than `limit`: they go back and may start
    /// elsewhere, and what these handlers say of them is dropped. Returns them.
    pub(super) fn take_overdue(&self, limit: Duration, now: Instant) -> TaskIds {
        let mut told = Vec::new();
        let mut overdue = TaskIds::new();
        {
            let mut table = self.table.lock();
            if table.counts.running == 0 {
                return overdue;
            }
            for key in table.keys(|_, entry| {
                matches!(entry.state, State::Running { since, .. } if now.saturating_duration_since(since) > limit)
            }) {
                let Some(Entry { task_id, state: State::Running { run, since, abandoned }, .. }) =
                    table.entries.get(&key).cloned()
                else {
                    continue;
                };
                overdue.push(Arc::clone(&task_id));
                told.push(abandoned);
                table.detach(run, Some(RunningTask { task_id, key, since }));
                table.give_back(key);
            }
        }
        for abandoned in told {
            abandoned.trigger();
        }
        overdue
    }

    /// Whether a handler runs past its time.
    pub(super) fn has_overdue(&self) -> bool {
        self.table.lock().detached.values().any(Option::is_some)
    }

    /// The durations that handlers have reported since the last call.
    pub(super) fn take_durations(&self) -> Vec<Duration> {
        std::mem::take(&mut self.table.lock().durations)
    }

    // ---- handlers ----

    /// A handler has taken the record from the channel. With `vetting` its past is looked into first.
    pub(super) fn claim(&self, key: RecordKey, vetting: bool, now: Instant) -> Claim {
        let mut table = self.table.lock();
        let Some(entry) = table.entries.get(&key) else { return Claim::Gone };
        let (State::Ready, Lock::Held { since, .. }) = (&entry.state, entry.lock) else { return Claim::Gone };
        let left = (since + table.lock).saturating_duration_since(now);
        if left < table.lock / LEAST_LOCK_LEFT {
            if left.is_zero() {
                table.remove(key);
            } else {
                table.returned += 1;
                table.give_back(key);
            }
            return Claim::Gone;
        }
        let run = table.new_run();
        let state = if vetting {
            State::Vetting(run.id)
        } else {
            State::Running { run: run.id, since: now, abandoned: run.abandoned.clone() }
        };
        table.change(key, |entry| entry.state = state);
        Claim::Yours(run)
    }

    /// The past is clean: the handler starts now. False: the record was taken back meanwhile, or its lock is too old.
    pub(super) fn start(&self, key: RecordKey, run: &Run, now: Instant) -> bool {
        let mut table = self.table.lock();
        if table.reattach(run.id) {
            return false;
        }
        let Some(entry) = table.entries.get(&key) else { return false };
        let (State::Vetting(vetting), Lock::Held { since, .. }) = (&entry.state, entry.lock) else { return false };
        if *vetting != run.id {
            return false;
        }
        let left = (since + table.lock).saturating_duration_since(now);
        if !entry.is_sure() || left < table.lock / LEAST_LOCK_LEFT {
            table.returned += 1;
            table.give_back(key);
            return false;
        }
        let state = State::Running { run: run.id, since: now, abandoned: run.abandoned.clone() };
        table.change(key, |entry| entry.state = state);
        true
    }

    /// The handler gives a vetted record back unstarted: the worker stops, or its past cannot be read.
    pub(super) fn decline(&self, key: RecordKey, run: &Run) {
        let mut table = self.table.lock();
        if table.reattach(run.id) {
            return;
        }
        if table.entries.get(&key).is_some_and(|entry| matches!(entry.state, State::Vetting(id) if id == run.id)) {
            table.returned += 1;
            table.give_back(key);
        }
    }

    /// The handler is done, or gives the task up: `records` records go to Kafka now. False: the task was given back in
    /// the meantime, and its outcome must be dropped.
    pub(super) fn publish(&self, key: RecordKey, run: &Run, records: u8, took: Option<Duration>) -> bool {
        let mut table = self.table.lock();
        table.durations.extend(took);
        if table.reattach(run.id) || !table.entries.get(&key).is_some_and(|entry| is_of(entry, run.id)) {
            return false;
        }
        table.change(key, |entry| entry.state = State::Publishing(records)).is_some()
    }

    /// The failure may pass: released at `until`, or at once when the worker stops.
    /// False: the task was taken away from this handler before.
    pub(super) fn rest(&self, key: RecordKey, run: &Run, until: Instant, took: Duration) -> bool {
        let mut table = self.table.lock();
        table.durations.push(took);
        if table.reattach(run.id) {
            return false;
        }
        match table.entries.get(&key).filter(|entry| is_of(entry, run.id)).map(|entry| entry.lock) {
            Some(Lock::Held { .. }) => table.change(key, |entry| entry.state = State::Resting(until)).is_some(),
            Some(Lock::Gone { .. }) => table.remove(key).is_some(),
            None => false,
        }
    }

    // ---- the outbox ----

    /// Kafka has acknowledged one of the task's records; after the last one the accept is due.
    pub(super) fn published(&self, key: RecordKey) {
        let mut table = self.table.lock();
        let Some(State::Publishing(left)) = table.entries.get(&key).map(|entry| entry.state.clone()) else { return };
        if left > 1 {
            table.change(key, |entry| entry.state = State::Publishing(left - 1));
            return;
        }
        table.finished += 1;
        match table.entries.get(&key).map(|entry| entry.lock) {
            Some(Lock::Gone { sought }) => {
                if let Some(entry) = table.remove(key) {
                    table.unaccepted.remember(key, entry.task_id, sought);
                }
            }
            _ => drop(table.change(key, |entry| entry.state = State::Done)),
        }
    }

    // ---- main ----

    /// Abandons what handlers run, at the deadline or the second signal; what publishes is left alone.
    pub(super) fn abandon_running(&self) {
        let mut told = Vec::new();
        {
            let mut table = self.table.lock();
            for key in table.keys(|_, entry| matches!(entry.state, State::Running { .. })) {
                if let Some(State::Running { abandoned, .. }) = table.entries.get(&key).map(|entry| &entry.state) {
                    told.push(abandoned.clone());
                }
                table.abandon(key);
            }
            let unstarted = |state: &State| matches!(state, State::Ready | State::Vetting(_) | State::Resting(_));
            for key in table.keys(|_, entry| unstarted(&entry.state)) {
                table.returned += 1;
                table.give_back(key);
            }
        }
        for abandoned in told {
            abandoned.trigger();
        }
    }

    /// Abandons what is on its way to Kafka without an answer: given back, because done is not proven.
    pub(super) fn abandon_publishing(&self) {
        let mut table = self.table.lock();
        for key in table.keys(|_, entry| matches!(entry.state, State::Publishing(_))) {
            table.abandon(key);
        }
    }

    /// The tasks that were abandoned so far.
    pub(super) fn abandoned(&self) -> TaskIds {
        self.table.lock().abandoned.clone()
    }

    /// The finished tasks whose accept is still due or unanswered.
    pub(super) fn unaccepted(&self) -> TaskIds {
        let table = self.table.lock();
        let done = table.entries.values().filter(|entry| matches!(entry.state, State::Done));
        done.map(|entry| Arc::clone(&entry.task_id)).collect()
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

    /// What handlers run, the longest first, those among them that run past their time.
    pub(super) fn running(&self) -> Vec<RunningTask> {
        let table = self.table.lock();
        let mut running: Vec<RunningTask> = table
            .entries
            .iter()
            .filter_map(|(key, entry)| match entry.state {
                State::Running { since, .. } => {
                    Some(RunningTask { task_id: Arc::clone(&entry.task_id), key: *key, since })
                }
                _ => None,
            })
            .chain(table.detached.values().flatten().cloned())
            .collect();
        running.sort_unstable_by_key(|task| (task.since, task.key));
        running
    }

    /// The tasks whose result Kafka has not acknowledged yet, run or publishing.
    pub(super) fn started_ids(&self) -> TaskIds {
        let table = self.table.lock();
        let started =
            table.entries.values().filter(|entry| matches!(entry.state, State::Running { .. } | State::Publishing(_)));
        started.map(|entry| Arc::clone(&entry.task_id)).collect()
    }
}

/// Whether the entry is in the hands of this run.
fn is_of(entry: &Entry, run: RunId) -> bool {
    matches!(&entry.state, State::Vetting(id) | State::Running { run: id, .. } if *id == run)
}
