//! Tasks: from a caller into Kafka, and from Kafka back to the caller.
//!
//! ```text
//!  http ──► submit ──► producer ──► `tasks`      `results` ──► readers ──► reply
//!             │            │                                      │
//!             └────────────┴──────────► book ◄────────────────────┘
//! ```
//!
//! | file | noun |
//! |---|---|
//! | `book` | the state of tasks and the waiting callers, behind methods |
//! | `index`, `kept`, `waiting`, `idempotency` | its parts: positions of results, records, callers, keys |
//! | `key` | a task's id and a record's position |
//! | `clock` | how old a record is |
//! | `submit` | tasks and claims on their way to the producer |
//! | `produced` | Kafka's acknowledgements of them |
//! | `readers` | the tail, the past, the tasks |
//! | `questions` | requests by a task's id |
//! | `search` | results that the index has no room for |
//! | `parting` | responses to callers whose time is over, or whose gateway stops |
//! | `sweep` | tasks that Kafka has dropped |
//! | `backend` | the threads that need Kafka |
//!
//! `http` uses [`Tasks`], `lifecycle` also [`Backend`]. No I/O, log line or response happens while the book is locked.

mod backend;
mod book;
mod clock;
mod idempotency;
mod index;
mod kept;
mod key;
mod parting;
mod produced;
mod questions;
mod readers;
mod search;
mod submit;
mod sweep;
mod waiting;

use super::fleet::{Fleet, FleetEvent, FleetView, log_events};
use super::history::{History, Sample};
use super::metrics::Reason;
use super::overload::Refused;
use super::state::{ReadBack, State, THREAD_SILENCE};
use super::stops::WorkerStop;
use crate::http::reply::Reply;
use crate::http::response::Response;
use crate::metrics::Now;
use crate::task::Headers;
use crate::task::dead::ReasonClass;
use book::{Moment, TaskBook};
use clock::KafkaClock;
use crossbeam_channel::{Receiver, Sender, bounded};
use kafka_share::producer::{Producer, ProducerSender};
use parking_lot::{Mutex, MutexGuard};
use produced::Token;
use program::stop::Stop;
use questions::Question;
use search::Search;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use waiting::Waiter;

pub(super) use backend::Backend;
pub(super) use submit::SubmitOptions;

/// How often old workers, claims and results are looked for.
const UPKEEP_INTERVAL: Duration = Duration::from_millis(200);

/// The task of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) text: String,
    pub(super) work_ms: Option<u64>,
    /// The headers of its record: the trace context of the request.
    pub(super) headers: Headers,
}

/// The queue at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueView {
    /// Tasks without a result.
    pub(super) pending: usize,
    /// Those of them that workers run, by their status records.
    pub(super) running: usize,
    /// The age of the oldest one; zero without one.
    pub(super) oldest: Duration,
}

#[derive(Debug)]
pub(super) struct Tasks {
    state: Arc<State>,
    book: Mutex<TaskBook<Reply>>,
    fleet: Mutex<Fleet>,
    history: Mutex<History>,
    clock: KafkaClock,
    /// `Some` from the first contact with Kafka until the producer is closed.
    producer: Mutex<Option<Producer<Token>>>,
    /// The sending side of the producer.
    sender: OnceLock<ProducerSender<Token>>,
    questions: Sender<Question>,
    searches: Sender<Search>,
    /// What the share group has not finished, by partition; empty while that is unknown.
    group_lags: Mutex<BTreeMap<i32, usize>>,
    tasks_topic: Arc<str>,
    results_topic: Arc<str>,
}

/// The requests to the threads `lookup` and `search`.
#[derive(Debug)]
pub(super) struct Asked {
    questions: Receiver<Question>,
    searches: Receiver<Search>,
}

impl Tasks {
    /// Also returns the receivers of the queues for the [`Backend`].
    pub(super) fn new(state: Arc<State>) -> (Arc<Self>, Asked) {
        let (questions, asked) = bounded(questions::QUEUE);
        let (searches, searched) = bounded(search::QUEUE);
        let config = &state.config;
        let tasks = Self {
            book: Mutex::new(TaskBook::new(config, Instant::now())),
            fleet: Mutex::new(Fleet::new(config.worker_timeout)),
            history: Mutex::new(History::new(Instant::now())),
            clock: KafkaClock::new(),
            producer: Mutex::default(),
            sender: OnceLock::new(),
            group_lags: Mutex::default(),
            questions,
            searches,
            tasks_topic: config.common.tasks_topic.as_str().into(),
            results_topic: config.common.results_topic.as_str().into(),
            state,
        };
        (Arc::new(tasks), Asked { questions: asked, searches: searched })
    }

    /// Locks the book. Callers hold it for a few lines, and never while they wait.
    fn book(&self) -> MutexGuard<'_, TaskBook<Reply>> {
        self.book.lock()
    }

    fn now(&self) -> Moment {
        Moment { instant: Instant::now(), time: self.state.now() }
    }

    /// Stores the producer; from now on the gateway can accept tasks.
    fn set_producer(&self, producer: Producer<Token>) {
        // Set once, when the topics are prepared.
        let _ = self.sender.set(producer.sender());
        *self.producer.lock() = Some(producer);
    }

    /// Closes the producer; Kafka may still acknowledge its records until `deadline`.
    pub(super) fn close_producer(&self, deadline: Instant) {
        let producer = self.producer.lock().take();
        if let Some(producer) = producer {
            producer.close(deadline);
        }
    }

    /// Whether the producer has a connection.
    pub(super) fn is_producer_ready(&self) -> bool {
        self.sender.get().is_some_and(ProducerSender::is_ready)
    }

    /// Whether Kafka refuses this gateway no right that it needs to serve.
    pub(super) fn has_rights(&self) -> bool {
        let may_write = self.sender.get().is_none_or(|producer| producer.denial().is_none());
        may_write && self.state.refusals.first().is_none()
    }

    /// The threads that must move, and whether they do. The watch of the port checks the listener.
    pub(super) fn liveness(&self) -> [(&'static str, bool); 3] {
        let producer = self.sender.get().is_none_or(|producer| producer.last_turn().elapsed() < THREAD_SILENCE);
        [("upkeep", self.state.is_upkeep_alive()), ("results_tail", self.state.is_tail_alive()), ("producer", producer)]
    }

    /// The fleet as it is now.
    pub(super) fn fleet(&self) -> FleetView {
        let now = self.state.heard_until();
        self.fleet.lock().view(now)
    }

    /// The number of workers that take tasks now.
    pub(super) fn active_workers(&self) -> usize {
        let now = self.state.heard_until();
        self.fleet.lock().active(now)
    }

    /// The number of callers that wait for a task on its way.
    pub(super) fn callers(&self) -> usize {
        self.book().counts().callers
    }

    /// The queue as it is now.
    pub(super) fn queue(&self) -> QueueView {
        let (heard, time) = (self.state.heard_until(), self.state.now());
        let running = self.fleet.lock().running(heard);
        let (pending, oldest) = {
            let book = self.book();
            (book.counts().pending, book.oldest_pending())
        };
        let oldest = oldest.map_or(Duration::ZERO, |since| time.duration_since(since).unwrap_or_default());
        // A result arrives before its worker's next status record.
        QueueView { pending, running: running.min(pending), oldest }
    }

    /// The last completed stops of workers, the newest first.
    pub(super) fn stops(&self) -> Vec<WorkerStop> {
        self.fleet.lock().stops().to_vec()
    }

    /// Adds the values of this moment to the metrics.
    pub(super) fn measure(&self, now: &mut Now) {
        let workers = self.fleet.lock().states(self.state.heard_until());
        let (queue, counts) = (self.queue(), self.book().counts());
        now.gauge("tasks_pending", "Tasks without a result, of all gateways", queue.pending);
        now.gauge("tasks_running", "Tasks that workers run now, by their status records", queue.running);
        now.seconds(
            "tasks_oldest_pending_age",
            "Age of the oldest task without a result; 0: there is none",
            queue.oldest,
        );
        let lags = self.group_lags.lock().clone();
        now.by(("group_lag", "partition"), "Records that the share group has not finished, by Kafka", lags);
        if let Some(letters) = self.state.dead.counts() {
            let counts = ReasonClass::ALL.map(|class| (class.name(), letters.get(&class).copied().unwrap_or(0)));
            now.by(("dead_letters", "reason"), "Open dead letters, by the class of their reasons", counts);
        }
        now.by(("workers", "state"), "Workers by their last status record", workers);
        now.gauge("callers_waiting", "Callers that wait for a task on its way", counts.callers);
        now.gauge("results_known", "Results whose position in Kafka is known", counts.results);
        now.counter("results_duplicate", "Results of tasks that had a result already", counts.duplicate_results);
        now.gauge(
            "producer_unacknowledged_bytes",
            "Bytes of records that Kafka has not acknowledged",
            counts.unacknowledged_bytes,
        );
        let queued = self.sender.get().map_or(0, ProducerSender::queued);
        now.gauge("producer_queue_records", "Records that wait for the producer", queued);
        now.flag("kafka_connected", "1 while Kafka answers", self.state.is_kafka_connected());
        now.flag("draining", "1 while this gateway stops", self.state.is_draining());
    }

    /// Counts a caller whose task is not accepted. Returns its response.
    fn refuse(&self, reason: Reason, detail: &str) -> Response {
        self.state.metrics.refused(reason, 1);
        Response::unavailable(detail, None)
    }

    /// The same for a limit that is exceeded.
    fn refusal(&self, refused: &Refused) -> Response {
        self.state.metrics.refused(refused.reason, 1);
        match refused.retry_after {
            None => Response::unavailable(&refused.detail, None),
            Some(retry_after) => Response::unavailable_for(&refused.detail, None, retry_after),
        }
    }

    /// Gives all these callers the same refusal.
    fn refuse_all(&self, reason: Reason, callers: Vec<Waiter<Reply>>, detail: &str) {
        self.state.metrics.refused(reason, callers.len());
        give_all(callers, &Response::unavailable(detail, None));
    }

    /// Handles silent workers, old claims and old results until stopped. The thread `upkeep`.
    pub(super) fn keep_up(&self, stop: &Stop) {
        loop {
            let now = self.state.now();
            self.book().forget_old(now);
            let events = self.fleet.lock().tick(self.state.heard_until());
            // Without Kafka no worker is heard, and none is lost.
            if self.state.is_kafka_connected() {
                let is_lost = |it: &&FleetEvent| matches!(it, FleetEvent::Silent(_) | FleetEvent::Replaced(_));
                self.state.metrics.lost(events.iter().filter(is_lost).count());
            }
            self.sample();
            self.state.upkeep_came_round();
            log_events(&events);
            self.claim_overdue();
            if stop.sleep(UPKEEP_INTERVAL).is_err() {
                return;
            }
        }
    }

    /// Adds to the history when its interval is over. Only the thread `upkeep` does.
    fn sample(&self) {
        let now = self.now();
        if self.history.lock().is_due(now.instant) {
            let (totals, pending) = (self.state.metrics.totals(), self.book().counts().pending);
            self.history.lock().add(totals, pending, now.instant, now.time);
        }
    }

    /// The last ten minutes.
    pub(super) fn history(&self) -> Vec<Sample> {
        self.history.lock().samples()
    }

    fn set_read(&self, part: ReadBack) {
        if self.state.set_read(part) {
            let counts = self.book().counts();
            log::info!("read back: {} results, {} pending tasks", counts.results, counts.pending);
        }
    }
}

/// Gives all these callers the same response.
fn give_all(callers: Vec<Waiter<Reply>>, response: &Response) {
    for caller in callers {
        caller.reply.give(response.clone());
    }
}
