//! The worker itself: takes one task, has it run, says its result, waits until Kafka has that, accepts, takes the next.
//!
//! Main does all of it in turns of at most [`TURN`]; only the run is on a thread of its own.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use lastcall::{
    analysis::Analysis,
    backoff::Backoff,
    config::WorkerConfig,
    exit::ExitCode,
    handler::Context,
    journal::Journaled,
    kafka::{
        ClientOptions, Cluster, Producer,
        share_session::{AcquiredRecord, Answer},
        share_wire::Acknowledgement,
    },
    logging::escape,
    queue::{self, PrepareError, Starts},
    signals::Signals,
    stop::Stop,
    task::{BadTask, Receipt, Task, TaskResult, WorkerState, WorkerStatus, unix_now},
    threads,
};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{
    fault::{Fault, Faults},
    intake::{Intake, Key},
    outbox::{self, Outbox, Told},
    run::{Outcome, Run},
    stop,
};

/// How long main waits for one thing before it looks at the others.
pub const TURN: Duration = Duration::from_millis(20);
/// "Sent" means acknowledged by Kafka, waited for so long.
pub const NOTIFICATION_WAIT: Duration = Duration::from_secs(1);
/// A third of the lock.
const RENEW_AFTER: Duration = Duration::from_secs(5);
/// How long after the accept a result is said that is said too late.
const LATE_BY: Duration = Duration::from_millis(300);

/// The task that is held.
pub struct Hand {
    key: Key,
    pub task_id: String,
    /// Of the session that holds the lock.
    session: Option<u64>,
    since: Instant,
    locked_at: Instant,
    record: AcquiredRecord,
    pub abandoned: Stop,
    pub step: Step,
}

/// How far the task is.
pub enum Step {
    /// Capacity one, one outcome. Disconnected: the handler panicked.
    Running(Receiver<Outcome>),
    /// What Kafka has to have before the task is accepted.
    Publishing(Vec<Told>),
}

/// See the module documentation.
pub struct Worker {
    pub config: WorkerConfig,
    pub faults: Faults,
    pub intake: Intake,
    pub outbox: Outbox,
    pub producer: Producer<Sender<bool>>,
    /// Triggered when a thread dies.
    pub fatal: Stop,
    pub hand: Option<Hand>,
    /// Results of tasks that were accepted before them, and when they are due.
    pub late: VecDeque<(Instant, TaskResult)>,
    last: Arc<Mutex<Option<Map<String, Value>>>>,
    state: Option<WorkerState>,
    next_beat: Instant,
    instance: Uuid,
    started_at: f64,
    pub stop_deadline: Option<f64>,
    pub draining: Stop,
    pub finished: u64,
    pub returned: u64,
}

/// Runs until a signal.
pub fn run(config: WorkerConfig, faults: Faults, signals: &Signals) -> ExitCode {
    let client_id = format!("lastcall-worker-{}", config.worker_id);
    let cluster = Cluster::new(ClientOptions::new(config.common.bootstrap.clone(), client_id));
    match prepare(&cluster, &config, signals) {
        Ok(true) => {}
        Ok(false) => return stop::before_the_start(&config, signals),
        Err(reason) => {
            log::error!("Worker {} cannot use this Kafka: {reason}", escape(&config.worker_id));
            return ExitCode::Usage;
        }
    }
    log::info!("🚀 Worker {} started", escape(&config.worker_id));
    let mut worker = Worker::new(config, faults, cluster);
    while !signals.first.is_triggered() {
        if worker.fatal.is_triggered() {
            return ExitCode::Fatal;
        }
        if worker.state.is_none() && worker.intake.session().is_some() {
            worker.announce(WorkerState::Started, None, NOTIFICATION_WAIT);
        }
        worker.turn(worker.state.is_some());
    }
    stop::stop(worker, signals)
}

/// Topics and group settings, tried until they are there; false after a signal.
fn prepare(cluster: &Cluster, config: &WorkerConfig, signals: &Signals) -> Result<bool, String> {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    loop {
        match queue::prepare(cluster, &config.common, Some(Starts::of(config))) {
            Ok(_) => return Ok(true),
            Err(PrepareError::Unusable(reason)) => return Err(reason),
            Err(PrepareError::Unreachable(error)) => log::warn!("Kafka does not answer ({error}); trying on"),
        }
        if signals.first.sleep(backoff.pause()).is_err() {
            return Ok(false);
        }
    }
}

impl Worker {
    fn new(config: WorkerConfig, faults: Faults, cluster: Cluster) -> Self {
        let fatal = Stop::new();
        let (producer, outbox) = outbox::start(cluster.clone(), &config.common, &config.worker_id, fatal.clone());
        Self {
            intake: Intake::join(cluster, &config.common, fatal.clone()),
            config,
            faults,
            outbox,
            producer,
            fatal,
            hand: None,
            late: VecDeque::new(),
            last: Arc::default(),
            state: None,
            next_beat: Instant::now(),
            instance: Uuid::new_v4(),
            started_at: unix_now(),
            stop_deadline: None,
            draining: Stop::new(),
            finished: 0,
            returned: 0,
        }
    }

    /// One round of everything; waits for at most [`TURN`]. What is fetched while it is not `taking` goes back.
    pub fn turn(&mut self, taking: bool) {
        self.beat();
        self.say_late_results();
        if self.hand.is_none() && !self.draining.is_triggered() {
            self.intake.open();
        }
        self.keep_hold();
        if taking && self.hand.is_none() && !self.intake.is_waiting() {
            self.intake.fetch();
        }
        if self.intake.is_waiting() {
            if let Some(answer) = self.intake.receive(TURN) {
                self.take(answer, taking);
            }
            self.advance(Duration::ZERO);
        } else {
            self.advance(TURN);
        }
    }

    // ---- what Kafka says ----

    fn take(&mut self, answer: Answer, taking: bool) {
        if let Some((_, code)) = answer.partition_errors.first() {
            return self.intake.lose(code);
        }
        for (partition, offset, said) in answer.unowned {
            self.intake.say((partition, offset), said);
        }
        for settlement in answer.settlements.iter().filter(|settlement| settlement.error.is_some()) {
            let of_hand = |hand: &Hand| {
                hand.key.0 == settlement.partition && settlement.offsets.iter().any(|(offset, _)| *offset == hand.key.1)
            };
            log::warn!("Kafka did not take {:?}: the lock was lost", settlement.offsets);
            if let Some(lost) = self.hand.take_if(|hand| of_hand(hand)) {
                lost.abandoned.trigger();
            }
        }
        for record in answer.acquired {
            if taking && self.hand.is_none() {
                self.begin(record, answer.sent_at);
            } else {
                self.returned += 1;
                self.intake.say((record.partition, record.offset), Acknowledgement::Release);
            }
        }
    }

    fn begin(&mut self, record: AcquiredRecord, locked_at: Instant) {
        let task = match &record.fault {
            Some(fault) => Err(BadTask { reason: fault.clone(), task_id: None }),
            None => Task::decode(record.key.as_deref(), record.value.as_deref()),
        };
        let task_id = task.as_ref().map_or_else(|bad| bad.task_id.clone(), |task| Some(task.task_id.clone()));
        let abandoned = Stop::new();
        let fault = self.faults.of_next_task();
        if fault != Fault::None {
            log::debug!("FAULT {} at task {}", fault.name(), escape(task_id.as_deref().unwrap_or_default()));
        }
        let run = Run {
            fault,
            task,
            context: Context {
                delivery: record.delivery_count,
                draining: self.draining.clone(),
                abandoned: abandoned.clone(),
            },
            analysis: Journaled::new(
                Analysis { allow_work_ms: self.config.common.allow_work_ms },
                &self.config.worker_id,
            )
            .expect("the drill's journal can be opened"),
            outbox: self.outbox.clone(),
            worker_id: self.config.worker_id.clone(),
            last: Arc::clone(&self.last),
        };
        let (told, outcome) = bounded(1);
        // Not joined: it tells its outcome, or is abandoned and ends with the process. A panic of its own gives the task back.
        let _thread = threads::spawn("handler", Stop::new(), move || -> Result<(), Infallible> {
            // Capacity one, one outcome. Disconnected: the lock was lost, and nobody wants it.
            let _ = told.try_send(run.run());
            Ok(())
        });
        self.hand = Some(Hand {
            key: (record.partition, record.offset),
            task_id: task_id.unwrap_or_default(),
            session: self.intake.session(),
            since: Instant::now(),
            locked_at,
            record,
            abandoned,
            step: Step::Running(outcome),
        });
    }

    /// Renews the lock; drops a task whose lock went with its session, since it runs again elsewhere.
    fn keep_hold(&mut self) {
        let session = self.intake.session();
        if let Some(lost) = self.hand.take_if(|hand| hand.session != session) {
            log::warn!("task {} was given back while it ran; its outcome is dropped", escape(&lost.task_id));
            lost.abandoned.trigger();
        }
        let timeout = self.config.task_timeout;
        if let Some(hand) = &mut self.hand
            && hand.locked_at.elapsed() >= RENEW_AFTER
            && hand.since.elapsed() < timeout
        {
            hand.locked_at = Instant::now();
            self.intake.say(hand.key, Acknowledgement::Renew);
        }
    }

    // ---- what becomes of the task ----

    /// Waits for the next step of the task, at most so long.
    fn advance(&mut self, wait: Duration) {
        let Some(mut hand) = self.hand.take() else {
            // Nothing to wait for but time.
            let _ = self.fatal.sleep(wait);
            return;
        };
        match &mut hand.step {
            Step::Running(outcome) => match outcome.recv_timeout(wait) {
                Ok(outcome) => self.publish(hand, outcome),
                Err(RecvTimeoutError::Timeout) => self.hand = Some(hand),
                Err(RecvTimeoutError::Disconnected) => self.intake.say(hand.key, Acknowledgement::Release),
            },
            Step::Publishing(owed) => match owed.last().map(|told| told.recv_timeout(wait)) {
                None => self.settle(&hand),
                Some(Ok(true)) => {
                    owed.pop();
                    self.hand = Some(hand);
                    self.advance(Duration::ZERO);
                }
                Some(Err(RecvTimeoutError::Timeout)) => self.hand = Some(hand),
                Some(Ok(false) | Err(RecvTimeoutError::Disconnected)) => {
                    log::error!("Kafka refused a record of task {}; the task goes back", escape(&hand.task_id));
                    self.intake.say(hand.key, Acknowledgement::Release);
                }
            },
        }
    }

    fn publish(&mut self, mut hand: Hand, outcome: Outcome) {
        let owed = match outcome {
            Outcome::Results(results) if self.faults.is(Fault::AcceptFirst) => {
                let due = Instant::now() + LATE_BY;
                self.late.extend(results.into_iter().map(|result| (due, result)));
                Vec::new()
            }
            // Sent in their order; the last one is waited for first.
            Outcome::Results(results) => results.iter().map(|result| self.outbox.result(result)).collect(),
            Outcome::Dead { reason, task_id } => {
                log::error!("Worker {} gives task {} up ({reason})", self.config.worker_id, escape(&hand.task_id));
                let error = task_id.map(|task_id| TaskResult {
                    task_id,
                    success: false,
                    error: Some(reason.clone()),
                    output: Map::new(),
                    processed_by: self.config.worker_id.clone(),
                    seconds: 0.0,
                });
                let copy = self.outbox.dead(&hand.record, &reason);
                std::iter::once(copy).chain(error.map(|error| self.outbox.result(&error))).collect()
            }
            Outcome::Back => return self.intake.say(hand.key, Acknowledgement::Release),
        };
        hand.step = Step::Publishing(owed);
        self.hand = Some(hand);
        self.advance(Duration::ZERO);
    }

    /// All is in Kafka that has to be.
    fn settle(&mut self, hand: &Hand) {
        self.finished += 1;
        let again = self.faults.is(Fault::RunAgain) && self.draining.is_triggered();
        let what = if again { Acknowledgement::Release } else { Acknowledgement::Accept };
        self.intake.say(hand.key, what);
        log::debug!("Worker {} said {what:?} of task {}", escape(&self.config.worker_id), escape(&hand.task_id));
    }

    fn say_late_results(&mut self) {
        while let Some((_, result)) = self.late.pop_front_if(|(due, _)| *due <= Instant::now()) {
            // Nobody waits for it: that is the defect.
            drop(self.outbox.result(&result));
        }
    }

    // ---- statuses ----

    fn beat(&mut self) {
        if let Some(state) = self.state
            && Instant::now() >= self.next_beat
        {
            self.next_beat = Instant::now() + self.config.heartbeat_interval;
            drop(self.outbox.status(&self.status(state, None)));
        }
    }

    /// Sends a notification and waits until Kafka has it.
    pub fn announce(&mut self, state: WorkerState, receipt: Option<Receipt>, wait: Duration) {
        self.state = Some(state);
        self.next_beat = Instant::now() + self.config.heartbeat_interval;
        let told = self.outbox.status(&self.status(state, receipt));
        let id = escape(&self.config.worker_id);
        if told.recv_timeout(wait).unwrap_or(false) {
            log::info!("📡 Worker {id} sent {state} notification");
        } else {
            log::warn!("Worker {id} could not send its {state} notification: Kafka does not answer");
        }
    }

    fn status(&self, status: WorkerState, receipt: Option<Receipt>) -> WorkerStatus {
        let current_task = self.hand.as_ref().map(|hand| hand.task_id.clone());
        WorkerStatus {
            worker_id: self.config.worker_id.clone(),
            status,
            timestamp: unix_now(),
            current_tasks: current_task.iter().cloned().collect(),
            current_task,
            instance: self.instance,
            started_at: self.started_at,
            stop_deadline: self.stop_deadline,
            holding_back: false,
            receipt,
        }
    }
}
