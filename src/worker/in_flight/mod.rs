//! The account of every record that this process holds: it decides each task's outcome and acknowledgement.
//!
//! Each entry has one owner at a time, named by its state, and all changes happen under one lock: a handler finishes
//! only a `Running` task, a stop never releases a `Publishing` one. All intakes share the account. An entry names the
//! node that holds its lock, and codes from another node's session do not change it. No I/O, log line or send happens
//! here.
//!
//! Callers: intakes (deliveries, acknowledgements), handlers, `settling`, the thread `intakes` (time-outs), `leaders`,
//! and main. Rule numbers refer to the protocol model (`crates/model`).

mod acknowledgements;
mod deliveries;
mod entry;
mod runs;
#[cfg(test)]
mod tests;
mod unaccepted;

pub(super) use entry::{ChannelId, RecordKey, RunId, Verdict};

use crate::trace::TaskName;
use entry::{Entry, Lock, State};
use kafka_share::share_wire::Acknowledgement;
use parking_lot::Mutex;
use program::stop::Stop;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use unaccepted::Unaccepted;

/// A handler starts no task whose lock has less than this part of its duration left, since the first renewal must
/// arrive before the lock ends. A part, because a broker may shorten the 15 s that the worker asks for.
const LEAST_LOCK_LEFT: u32 = 5;
/// A lock is renewed after this part of its duration.
const RENEW_AFTER: u32 = 3;
/// A request with a due renewal also renews the locks that have used up this part: one request instead of many.
const RENEW_ALONG: u32 = 4;

/// The number of records in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// In the handlers' channel.
    pub(super) ready: usize,
    /// With a handler that checks their earlier starts.
    pub(super) vetting: usize,
    /// With a handler that runs them.
    pub(super) running: usize,
    /// With a result on its way to Kafka.
    pub(super) publishing: usize,
    /// Accept due or sent.
    pub(super) done: usize,
    /// Resting after a failure.
    pub(super) resting: usize,
    /// Release due or sent.
    pub(super) returned: usize,
    /// Handlers that have not returned yet after their record was taken away.
    pub(super) detached: usize,
}

impl Counts {
    /// True when only acknowledgements are unsettled.
    pub(super) fn only_acknowledgements(&self) -> bool {
        self.ready + self.vetting + self.running + self.publishing + self.resting == 0
    }

    /// True when no task is in flight: each result is in Kafka, and no handler is in use.
    pub(super) fn nothing_in_flight(&self) -> bool {
        self.only_acknowledgements() && self.detached == 0
    }

    /// Handler threads in use.
    pub(super) fn busy(&self) -> usize {
        self.vetting + self.running + self.detached
    }

    /// Started tasks whose result Kafka has not acknowledged.
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

/// One start, as its handler needs it to report the outcome.
#[derive(Clone, Debug)]
pub(super) struct Run {
    id: RunId,
    /// Triggered when the task is abandoned: it ran too long, its lock is lost for good, or the deadline has passed.
    pub(super) abandoned: Stop,
}

/// The answer to a handler that took a record from the channel.
#[derive(Clone, Debug)]
pub(super) enum Claim {
    /// The handler owns the record.
    Yours(Run),
    /// The record was released, or its lock is too old: drop the job.
    Gone,
}

/// A record that the broker has just locked for this process.
#[derive(Clone, Debug)]
pub(super) struct Delivered {
    pub(super) key: RecordKey,
    /// The record's key or a substitute: see [`Entry::mark`].
    pub(super) mark: Arc<str>,
    /// The broker that brought it.
    pub(super) node: i32,
    /// When the request was sent; the lock is not older.
    pub(super) sent_at: Instant,
    /// It may be started (rule 10); otherwise it is released, unless the account knows it.
    pub(super) startable: bool,
    pub(super) delivery_count: u16,
    /// The broker drops it at its next release.
    pub(super) last_delivery: bool,
}

/// A task that a handler runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunningTask {
    pub(super) task: TaskName,
    pub(super) key: RecordKey,
    pub(super) since: Instant,
}

/// Tasks for the log.
pub(super) type TaskNames = Vec<TaskName>;

#[derive(Debug)]
struct Table {
    /// How long a lock lasts, as reported by the brokers.
    lock: Duration,
    entries: HashMap<RecordKey, Entry>,
    counts: Counts,
    /// Acknowledgements that can be sent now.
    due: BTreeMap<RecordKey, Acknowledgement>,
    /// Entries whose lock is sought.
    sought: usize,
    unaccepted: Unaccepted,
    /// Runs whose outcome is dropped, with the task if it is overdue.
    detached: HashMap<RunId, Option<RunningTask>>,
    next_run: u64,
    next_channel: u64,
    durations: Vec<Duration>,
    finished: u64,
    returned: u64,
    abandoned: TaskNames,
}

impl Table {
    /// Changes one entry and updates the counts and the due acknowledgements.
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

    /// Releases the record; without a lock it is only removed.
    fn give_back(&mut self, key: RecordKey) {
        match self.entries.get(&key).map(|entry| entry.lock) {
            Some(Lock::Held { .. }) => drop(self.change(key, |entry| entry.state = State::Returned)),
            _ => drop(self.remove(key)),
        }
    }

    /// Releases a record that is not started, unless this is its last delivery. A handler that vets it finds it gone.
    fn give_back_unstarted(&mut self, key: RecordKey) {
        let Some(entry) = self.entries.get(&key) else { return };
        match entry.state {
            State::Ready | State::Vetting(_) if entry.last_delivery => return,
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

    /// Removes a detached run whose handler has returned. Returns true if it was detached: its outcome is dropped.
    fn reattach(&mut self, run: RunId) -> bool {
        let was = self.detached.remove(&run).is_some();
        self.counts.detached = self.detached.len();
        was
    }

    /// Removes a record whose offset holds another task now; the outcome of its run is dropped.
    fn forget(&mut self, key: RecordKey) {
        if let Some(State::Vetting(run) | State::Running { run, .. }) = self.entries.get(&key).map(|entry| &entry.state)
        {
            let run = *run;
            self.detach(run, None);
        }
        self.remove(key);
    }

    /// Applies the loss of a lock. Tasks in work continue without it, finished tasks are remembered (rule 12), other
    /// records are removed. Returns the task if it was in work or finished.
    fn lose(&mut self, key: RecordKey) -> Option<TaskName> {
        let entry = self.entries.get(&key)?;
        match entry.state {
            State::Running { .. } | State::Publishing(_) => self.change(key, |entry| {
                entry.lock = Lock::Gone { sought: true };
                entry.asked = None;
                entry.task.clone()
            }),
            State::Done => {
                let entry = self.remove(key)?;
                self.unaccepted.remember(key, entry.mark, true);
                Some(entry.task)
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
            self.abandoned.push(entry.task.clone());
        }
        self.give_back(key);
    }
}

#[derive(Debug)]
pub(super) struct InFlight {
    table: Mutex<Table>,
}

impl InFlight {
    /// Creates an empty account; `lock` is how long a lock lasts.
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
            abandoned: TaskNames::new(),
        };
        Self { table: Mutex::new(table) }
    }

    /// Abandons the running tasks, at the deadline or the second signal, and releases unstarted and resting ones.
    /// Publishing tasks stay.
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

    /// Abandons the tasks whose result Kafka has not acknowledged: they are released, because done is not proven.
    pub(super) fn abandon_publishing(&self) {
        let mut table = self.table.lock();
        for key in table.keys(|_, entry| matches!(entry.state, State::Publishing(_))) {
            table.abandon(key);
        }
    }

    /// The tasks that were abandoned so far.
    pub(super) fn abandoned(&self) -> TaskNames {
        self.table.lock().abandoned.clone()
    }

    /// Finished tasks whose accept is still due or unanswered.
    pub(super) fn unaccepted(&self) -> TaskNames {
        let table = self.table.lock();
        let done = table.entries.values().filter(|entry| matches!(entry.state, State::Done));
        done.map(|entry| entry.task.clone()).collect()
    }

    /// The number of records in each state.
    pub(super) fn counts(&self) -> Counts {
        self.table.lock().counts
    }

    /// Tasks finished (result in Kafka) and records returned unstarted, since the process began.
    pub(super) fn totals(&self) -> (u64, u64) {
        let table = self.table.lock();
        (table.finished, table.returned)
    }

    /// The tasks that handlers run, overdue ones included, the longest first.
    pub(super) fn running(&self) -> Vec<RunningTask> {
        let table = self.table.lock();
        let mut running: Vec<RunningTask> = table
            .entries
            .iter()
            .filter_map(|(key, entry)| match entry.state {
                State::Running { since, .. } => Some(RunningTask { task: entry.task.clone(), key: *key, since }),
                _ => None,
            })
            .chain(table.detached.values().flatten().cloned())
            .collect();
        running.sort_unstable_by_key(|task| (task.since, task.key));
        running
    }

    /// Started tasks whose result Kafka has not acknowledged.
    pub(super) fn started(&self) -> TaskNames {
        let table = self.table.lock();
        let started =
            table.entries.values().filter(|entry| matches!(entry.state, State::Running { .. } | State::Publishing(_)));
        started.map(|entry| entry.task.clone()).collect()
    }
}
