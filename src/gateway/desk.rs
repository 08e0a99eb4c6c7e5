//! The desk: the one state of the gateway behind one lock, and the way in which answers leave.
//!
//! Whoever owns an answer hands it in here; the desk keeps each connection's order and passes what may be written to the answering
//! threads, outside the lock. Nothing is sent, written or logged while the lock is held.

use super::answer::Answer;
use super::connections::{Connections, Ticket};
use super::fleet::{Fleet, FleetEvent};
use super::index::{Index, MOST_RESULTS};
use super::metrics::Metrics;
use super::rate::Rate;
use super::waiting::Waiting;
use crate::config::GatewayConfig;
use crate::logging::escape;
use crossbeam_channel::Sender;
use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tiny_http::Request;
use uuid::Uuid;

/// A request and its place in the order of its connection.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) request: Request,
    pub(super) ticket: Ticket,
}

/// An answer that may be written now.
pub(super) type Written = (Request, Answer);

/// What the lock protects.
#[derive(Debug)]
pub(super) struct State {
    pub(super) connections: Connections<Written>,
    pub(super) waiting: Waiting<Exchange>,
    pub(super) index: Index,
    pub(super) fleet: Fleet,
    pub(super) rate: Rate,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) config: GatewayConfig,
    /// This process, in claims.
    pub(super) instance: Uuid,
    pub(super) metrics: Metrics,
    state: Mutex<State>,
    /// Capacity [`ANSWERS`]. Full: whoever answers waits, at the most as long as slow callers hold all answering threads,
    /// which the sockets' send time-out bounds.
    answers: Sender<Vec<Written>>,
    /// The gateway stops: nothing new is accepted.
    draining: AtomicBool,
    /// The results of the retention are read back, the pending tasks are known.
    read_back: AtomicBool,
    /// Topics and group are prepared.
    prepared: AtomicBool,
    born: Instant,
    /// When Kafka last answered the tail reader, in milliseconds after `born` plus one; 0: never.
    kafka_answered: AtomicU64,
    /// When the deadline thread last came round, likewise.
    ticked: AtomicU64,
}

/// Batches of answers that may wait for the answering threads.
pub(super) const ANSWERS: usize = 1024;
/// Kafka counts as connected when it has answered within this.
const KAFKA_SILENCE: Duration = Duration::from_secs(3);
/// Our own threads count as alive when they came round within this.
const THREAD_SILENCE: Duration = Duration::from_secs(10);
/// Answers of one batch for one answering thread; more are spread.
const ANSWERS_TOGETHER: usize = 8;

impl Desk {
    pub(super) fn new(config: GatewayConfig, answers: Sender<Vec<Written>>) -> Self {
        let state = State {
            connections: Connections::new(),
            waiting: Waiting::new(config.max_waiting, config.answer_timeout),
            index: Index::new(config.common.result_retention.as_secs_f64(), MOST_RESULTS),
            fleet: Fleet::new(config.worker_timeout),
            rate: Rate::new(Instant::now()),
        };
        Self {
            config,
            instance: Uuid::new_v4(),
            metrics: Metrics::new(),
            state: Mutex::new(state),
            answers,
            draining: AtomicBool::new(false),
            read_back: AtomicBool::new(false),
            prepared: AtomicBool::new(false),
            born: Instant::now(),
            kafka_answered: AtomicU64::new(0),
            ticked: AtomicU64::new(0),
        }
    }

    /// The state. Hold it for a few lines, across nothing that waits.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Answers one request.
    pub(super) fn answer(&self, exchange: Exchange, answer: Answer) {
        self.answer_all(vec![(exchange, answer)]);
    }

    /// Answers several requests with one visit to the lock.
    pub(super) fn answer_all(&self, answers: Vec<(Exchange, Answer)>) {
        if answers.is_empty() {
            return;
        }
        for (_, answer) in &answers {
            self.metrics.answered(answer.status);
        }
        let mut writable = {
            let mut state = self.state.lock();
            let mut writable = Vec::with_capacity(answers.len());
            for (exchange, answer) in answers {
                writable.extend(state.connections.answer(exchange.ticket, (exchange.request, answer)));
            }
            writable
        };
        while !writable.is_empty() {
            // From the front, so that a connection's answers stay in order within and across batches.
            let rest = writable.split_off(writable.len().min(ANSWERS_TOGETHER));
            // Disconnected: the process ends, and its sockets with it.
            let _ = self.answers.send(std::mem::replace(&mut writable, rest));
        }
    }

    pub(super) fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(super) fn set_read_back(&self) {
        self.read_back.store(true, Ordering::Release);
    }

    /// True once an unknown task is known not to exist.
    pub(super) fn is_read_back(&self) -> bool {
        self.read_back.load(Ordering::Acquire)
    }

    pub(super) fn set_prepared(&self) {
        self.prepared.store(true, Ordering::Release);
    }

    pub(super) fn is_prepared(&self) -> bool {
        self.prepared.load(Ordering::Acquire)
    }

    /// Kafka has answered the tail reader now.
    pub(super) fn kafka_answered(&self) {
        self.kafka_answered.store(self.milliseconds(), Ordering::Relaxed);
    }

    /// Whether Kafka answers.
    pub(super) fn is_kafka_connected(&self) -> bool {
        self.is_recent(&self.kafka_answered, KAFKA_SILENCE)
    }

    /// The deadline thread came round.
    pub(super) fn ticked(&self) {
        self.ticked.store(self.milliseconds(), Ordering::Relaxed);
    }

    /// Whether our own threads move; the one that asks is alive anyway.
    pub(super) fn is_alive(&self) -> bool {
        self.is_recent(&self.ticked, THREAD_SILENCE)
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
