//! The desk: the one state of the gateway behind one lock, and what everybody has to know of everybody else.
//!
//! Nothing is sent, written, logged or answered while the lock is held.

use super::fleet::{Fleet, FleetEvent};
use super::http::load::Load;
use super::index::{Index, MOST_RESULTS, Place, TaskKey};
use super::kept::Kept;
use super::keyed::KeyedTasks;
use super::metrics::Metrics;
use super::rate::Rate;
use super::reply::Reply;
use super::unanswered::{Counted, Unanswered};
use super::waiting::{Waiter, Waiting};
use crate::config::GatewayConfig;
use crate::logging::escape;
use crate::task::unix_now;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// What the lock protects.
#[derive(Debug)]
pub(super) struct State {
    pub(super) waiting: Waiting<Reply>,
    pub(super) index: Index,
    pub(super) fleet: Fleet,
    pub(super) rate: Rate,
    pub(super) keyed: KeyedTasks,
    pub(super) kept: Kept,
    /// Bytes of records that the producer has and Kafka has not acknowledged.
    pub(super) unacknowledged_bytes: usize,
    /// Kafka's times of the newest records of the results topic that were read: the newest, and the one before, which
    /// counts. So one record that is dated in the future makes none look old.
    newest: [f64; 2],
}

impl State {
    /// A task does not get into Kafka. Returns its callers.
    pub(super) fn task_is_given_up(&mut self, key: TaskKey) -> Vec<Waiter<Reply>> {
        self.keyed.settled(key);
        self.kept.forget(key);
        self.waiting.complete(key)
    }

    /// A task's result stands on the results topic. Returns whether that is news, and its callers.
    pub(super) fn task_is_done(&mut self, key: TaskKey, place: Place, at: f64) -> (bool, Vec<Waiter<Reply>>) {
        let news = self.index.result(key, place, at);
        self.keyed.settled(key);
        self.kept.forget(key);
        (news, self.waiting.complete(key))
    }

    /// Nothing more will come of a task.
    pub(super) fn task_is_settled(&mut self, key: TaskKey) {
        self.index.settle(key);
        self.kept.forget(key);
    }

    /// A record of this time by Kafka's clock was read.
    pub(super) fn record_read(&mut self, written: f64) {
        let [newest, second] = self.newest;
        self.newest = [newest.max(written), second.max(newest.min(written))];
    }

    /// When a record that is read back was written, in our time: its age is what it lies behind the newest record. No
    /// clock of ours takes part, which may be an hour wrong; in a cluster where nothing happens records look younger
    /// than they are.
    pub(super) fn date(&self, written: f64, now: f64) -> f64 {
        now - (self.newest[1] - written).max(0.0)
    }

    /// The same for who must not look alive when it is dead: the older one by either clock.
    pub(super) fn date_of_life(&self, written: f64, now: f64) -> f64 {
        self.date(written, now).min(written)
    }

    /// A task stands on the tasks topic. Returns the callers who only wanted to know that.
    pub(super) fn task_is_in_kafka(&mut self, key: TaskKey, place: Place, at: f64) -> Vec<Waiter<Reply>> {
        self.index.task(key, place, at);
        self.keyed.settled(key);
        self.waiting.acknowledged(key)
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) config: GatewayConfig,
    /// This process, in claims.
    pub(super) instance: Uuid,
    pub(super) metrics: Metrics,
    state: Mutex<State>,
    /// Requests that are whole and not answered.
    unanswered: Arc<Unanswered>,
    /// Connections.
    pub(super) load: Arc<Load>,
    /// The gateway stops: nothing new is accepted.
    draining: AtomicBool,
    /// What is read back: [`RESULTS_READ`], [`TASKS_READ`], [`TASKS_FULL`].
    read_back: AtomicU8,
    /// Topics and group are prepared.
    prepared: AtomicBool,
    born: Instant,
    born_at: f64,
    /// When Kafka last answered the tail reader, in milliseconds after `born` plus one; 0: never.
    kafka_answered: AtomicU64,
    /// When the thread `upkeep` last came round, likewise.
    ticked: AtomicU64,
    /// When the tail reader did.
    tail_turned: AtomicU64,
}

/// The results of the retention are read back.
pub(super) const RESULTS_READ: u8 = 1;
/// The tasks are read to the end that was seen at the start.
pub(super) const TASKS_READ: u8 = 2;
/// They are not, since `MAX_PENDING` of them are pending.
pub(super) const TASKS_FULL: u8 = 4;
const READ_BACK: u8 = RESULTS_READ | TASKS_READ;

/// Kafka counts as connected when it has answered within this.
const KAFKA_SILENCE: Duration = Duration::from_secs(3);
/// Our own threads count as alive when they came round within this.
pub(super) const THREAD_SILENCE: Duration = Duration::from_secs(10);
/// And one that waits for Kafka itself, a question to one broker after the other.
const READER_SILENCE: Duration = Duration::from_secs(60);

impl Desk {
    pub(super) fn new(config: GatewayConfig, load: Load) -> Self {
        let state = State {
            waiting: Waiting::new(config.max_waiting, config.answer_timeout),
            index: Index::new(config.common.result_retention.as_secs_f64(), MOST_RESULTS),
            fleet: Fleet::new(config.worker_timeout),
            rate: Rate::new(Instant::now()),
            keyed: KeyedTasks::default(),
            kept: Kept::default(),
            unacknowledged_bytes: 0,
            newest: [0.0; 2],
        };
        Self {
            config,
            instance: Uuid::new_v4(),
            metrics: Metrics::new(),
            state: Mutex::new(state),
            unanswered: Arc::default(),
            load: Arc::new(load),
            draining: AtomicBool::new(false),
            read_back: AtomicU8::new(0),
            prepared: AtomicBool::new(false),
            born: Instant::now(),
            born_at: unix_now(),
            kafka_answered: AtomicU64::new(0),
            ticked: AtomicU64::new(0),
            tail_turned: AtomicU64::new(0),
        }
    }

    /// The state. Hold it for a few lines, across nothing that waits.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Counts a request as unanswered until what this returns is dropped.
    pub(super) fn count_unanswered(&self) -> Counted {
        self.unanswered.enter()
    }

    /// Requests that are whole and not answered.
    pub(super) fn unanswered(&self) -> usize {
        self.unanswered.count()
    }

    /// Those of them that were there when the drain began; later ones are turned away, or ask for nothing that takes
    /// time.
    pub(super) fn unanswered_from_before(&self) -> usize {
        self.unanswered.before()
    }

    pub(super) fn start_draining(&self) {
        // In this order: who is counted as a later one finds that it is turned away.
        self.draining.store(true, Ordering::SeqCst);
        self.unanswered.draw_line();
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// One of [`RESULTS_READ`], [`TASKS_READ`] and [`TASKS_FULL`] is so.
    pub(super) fn set_read(&self, what: u8) {
        let before = self.read_back.fetch_or(what, Ordering::AcqRel);
        if (before | what) & READ_BACK == READ_BACK && before & READ_BACK != READ_BACK {
            let (results, pending) = {
                let state = self.state();
                (state.index.results_count(), state.index.pending_count())
            };
            log::info!("read back: {results} results, {pending} pending tasks");
        }
    }

    /// True once every result that is kept can be asked for, and as many pending tasks as there is room for.
    pub(super) fn has_read_enough(&self) -> bool {
        let read = self.read_back.load(Ordering::Acquire);
        read & RESULTS_READ != 0 && read & (TASKS_READ | TASKS_FULL) != 0
    }

    /// True once an unknown task is known not to exist.
    pub(super) fn is_read_back(&self) -> bool {
        self.read_back.load(Ordering::Acquire) & READ_BACK == READ_BACK
    }

    pub(super) fn set_prepared(&self) {
        self.prepared.store(true, Ordering::Release);
    }

    pub(super) fn is_prepared(&self) -> bool {
        self.prepared.load(Ordering::Acquire)
    }

    /// Kafka has answered the tail reader at this moment.
    pub(super) fn kafka_answered(&self, at: Instant) {
        let ago = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.kafka_answered.store(self.milliseconds().saturating_sub(ago), Ordering::Relaxed);
    }

    /// Whether Kafka answers.
    pub(super) fn is_kafka_connected(&self) -> bool {
        self.is_recent(&self.kafka_answered, KAFKA_SILENCE)
    }

    /// Whether Kafka has been away for so short a time that this gateway still serves best: it says what is the matter,
    /// and with which task.
    pub(super) fn is_kafka_near(&self) -> bool {
        self.is_recent(&self.kafka_answered, self.config.ready_without_kafka.max(KAFKA_SILENCE))
    }

    /// The tail reader came round.
    pub(super) fn tail_turned(&self) {
        self.tail_turned.store(self.milliseconds(), Ordering::Relaxed);
    }

    /// Whether the tail reader moves, or has not begun.
    pub(super) fn is_tail_alive(&self) -> bool {
        self.tail_turned.load(Ordering::Relaxed) == 0 || self.is_recent(&self.tail_turned, READER_SILENCE)
    }

    /// The thread `upkeep` came round.
    pub(super) fn ticked(&self) {
        self.ticked.store(self.milliseconds(), Ordering::Relaxed);
    }

    /// Whether the thread `upkeep` moves.
    pub(super) fn is_upkeep_alive(&self) -> bool {
        self.is_recent(&self.ticked, THREAD_SILENCE)
    }

    /// Unix time that does not jump when somebody sets the clock.
    pub(super) fn now(&self) -> f64 {
        self.born_at + self.born.elapsed().as_secs_f64()
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn is_recent(&self, at: &AtomicU64, within: Duration) -> bool {
        let at = at.load(Ordering::Relaxed);
        at != 0 && self.milliseconds().saturating_sub(at) <= u64::try_from(within.as_millis()).unwrap_or(u64::MAX)
    }
}

/// One log line for each thing that happened in the fleet.
pub(super) fn log_events(events: &[FleetEvent]) {
    for event in events {
        match event {
            FleetEvent::Started(id) => log::info!("🚀 Worker {} started", escape(id)),
            FleetEvent::ShutdownStarted(id) => log::info!("🛑 Worker {} is shutting down", escape(id)),
            FleetEvent::ShutdownCompleted(id, Some(code)) => {
                log::info!("👋 Worker {} completed its shutdown with exit code {code}", escape(id));
            }
            FleetEvent::ShutdownCompleted(id, None) => log::info!("👋 Worker {} completed its shutdown", escape(id)),
            FleetEvent::Silent(id) => log::warn!("⏳ Worker {} is silent: no status within WORKER_TIMEOUT", escape(id)),
            FleetEvent::Returned(id) => log::info!("📡 Worker {} is heard again", escape(id)),
            FleetEvent::Conflict(id) => {
                log::warn!("two live workers call themselves {}; give each a WORKER_ID of its own", escape(id))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::http::load::Load;

    #[test]
    fn one_record_that_is_dated_in_the_future_makes_none_look_old() {
        let desk = Desk::new(GatewayConfig::default(), Load::new(1));
        let mut state = desk.state();
        for written in [100.0, 9_000.0, 101.0, 103.0, 102.0] {
            state.record_read(written);
        }
        assert_eq!((state.date(103.0, 5_000.0), state.date(93.0, 5_000.0)), (5_000.0, 4_990.0));
        assert_eq!(state.date(9_000.0, 5_000.0), 5_000.0, "nor itself younger than now");
    }
}
