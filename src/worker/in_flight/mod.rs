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

mod acknowledgements;
mod deliveries;
mod entry;
mod runs;
#[cfg(test)]
mod tests;
mod unaccepted;

pub(super) use entry::{ChannelId, RecordKey, RunId, Verdict};

use entry::{Entry, Lock, State};
use kafka_share::share_wire::Acknowledgement;
use parking_lot::Mutex;
use program::stop::Stop;
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
    /// The record's key, or another name: see [`Entry::mark`].
    pub(super) mark: Arc<str>,
    /// The broker that brought it.
    pub(super) node: i32,
    /// When it was asked for: the lock is not older.
    pub(super) sent_at: Instant,
    /// It may be started (rule 10); otherwise it goes back, unless it is known.
    pub(super) startable: bool,
    pub(super) delivery_count: u16,
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

    /// A handler that was detached is back: whatever it says, it does not count.
    fn reattach(&mut self, run: RunId) -> bool {
        let was = self.detached.remove(&run).is_some();
        self.counts.detached = self.detached.len();
        was
    }

    /// The record is another task's now: what is done with the former one does not count any more.
    fn forget(&mut self, key: RecordKey) {
        if let Some(State::Vetting(run) | State::Running { run, .. }) = self.entries.get(&key).map(|entry| &entry.state)
        {
            let run = *run;
            self.detach(run, None);
        }
        self.remove(key);
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
                self.unaccepted.remember(key, entry.mark, true);
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
