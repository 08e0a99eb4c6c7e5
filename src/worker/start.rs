//! How a worker starts: it prepares the topics and the group, starts the threads, and waits until it can take tasks.
//!
//! While Kafka is unreachable the worker logs that once and retries. A signal ends the start at any point.

use super::drain::{self, Account, Control, Deadlines, Event};
use super::early_watchdog::EarlyWatchdog;
use super::handlers::HandlerThread;
use super::in_flight::InFlight;
use super::intake::queue::{ReadyQueue, last_delivery};
use super::intake::{IntakeLinks, Job};
use super::intakes::{IntakeReport, Intakes};
use super::leaders::{Leaders, LeadersThread};
use super::membership::{self, Assignment, Leave};
use super::metrics::{Metrics, Server};
use super::outbox::{self, Outbox, OutboxTopics};
use super::repair::Repair;
use super::settling::Token;
use super::status::{Announce, Identity, StatusThread};
use super::upkeep::Upkeep;
use crate::config::WorkerConfig;
use crate::handler::Handler;
use crate::queue::{self, Queue, Starts};
use crate::supervisor::{self, Supervisor};
use crate::task::unix_now;
use crossbeam_channel::{Receiver, Sender, bounded, select, tick};
use kafka_share::cluster::Cluster;
use kafka_share::error::KafkaError;
use kafka_share::interrupt::Interrupter;
use kafka_share::producer::Producer;
use kafka_share::share_membership::ShareMembership;
use kafka_share::share_session::ShareIdentity;
use parking_lot::Mutex;
use program::exit::ExitCode;
use program::logging::{LAST_LINES, escape};
use program::signals::Signals;
use program::stop::Stop;
use program::threads::{self, Thread};
use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Jobs in the queue in addition to one per handler; more than the window ever allows.
const MOST_JOBS: usize = 1024;

/// How long to wait for woken threads to end.
const JOIN: Duration = Duration::from_millis(500);

/// The outcome of the start.
pub(super) enum Started {
    /// The worker takes tasks.
    Running(Box<Running>),
    /// A signal came before the worker took a task.
    Stopped(EarlyWatchdog),
    /// The reason was logged.
    Failed(ExitCode),
}

/// A running worker, as main needs it for the stop. The fields are in the order in which a stop uses them.
pub(super) struct Running {
    pub(super) control: Arc<Control>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) account: Arc<Account>,
    /// Triggered when a thread ends that must not end.
    pub(super) fatal: Stop,
    pub(super) interrupter: Interrupter,
    pub(super) announcements: Sender<Announce>,
    pub(super) deadlines: Arc<Mutex<Option<Deadlines>>>,
    /// Sends the deadlines of the stop; dropped to disarm the watchdog.
    pub(super) watchdog: Sender<Deadlines>,
    pub(super) queue: Arc<ReadyQueue>,
    /// How the intakes ended; sent once.
    pub(super) intake_done: Receiver<Result<IntakeReport, KafkaError>>,
    pub(super) leave: Sender<Leave>,
    pub(super) producer: Producer<Token>,
    /// For main's notes about abandoned tasks.
    pub(super) outbox: Outbox,
    pub(super) supervisor: Supervisor,
    pub(super) threads: WorkerThreads,
    /// The address of the metrics, closed at the end of the stop.
    pub(super) _server: Option<Server>,
}

/// The threads, by the moment at which they are joined.
pub(super) struct WorkerThreads {
    pub(super) intakes: Thread,
    pub(super) leaders: Thread,
    pub(super) handlers: Vec<Thread>,
    pub(super) membership: Thread,
    pub(super) status: Thread,
    pub(super) watchdog: Thread,
}

/// The status that the service manager shows while a worker starts.
const STARTING: &str = "waiting for Kafka";

/// Starts all threads. Returns when the first share session is open, or on a signal or a fault before.
pub(super) fn start(config: &WorkerConfig, handler: impl Handler, signals: &Signals) -> Started {
    let early = EarlyWatchdog::arm(config, signals);
    let mut supervisor = match Supervisor::new(config.health_file.as_deref()) {
        Ok(supervisor) => supervisor,
        Err(fault) => {
            // A fault of the configuration; if stderr is closed, only the exit code is left.
            let _ = writeln!(std::io::stderr(), "{fault}");
            return Started::Failed(ExitCode::Usage);
        }
    };
    let interrupter = Interrupter::default();
    let client_id = format!("lastcall-worker-{}", config.worker_id);
    let cluster = match config.common.client_options(&client_id, &interrupter) {
        Ok(options) => Cluster::new(options),
        Err(fault) => {
            log::error!("{}", escape(&fault.to_string()));
            return Started::Failed(ExitCode::Usage);
        }
    };
    let metrics = Arc::new(Metrics::new(cluster.options().statistics.clone()));
    let server = config.metrics_addr.map(|address| Server::start(address, Arc::clone(&metrics))).transpose();
    let server = match server {
        Ok(server) => server,
        Err(error) => {
            log::error!(
                "cannot listen on METRICS_ADDR {}: {error}",
                config.metrics_addr.map_or_else(String::new, |it| it.to_string())
            );
            return Started::Failed(ExitCode::Fatal);
        }
    };
    let queue = match prepare(&cluster, config, signals, &mut supervisor) {
        Ok(queue) => queue,
        Err(Some(code)) => return Started::Failed(code),
        Err(None) => return Started::Stopped(early),
    };
    log::info!("🚀 Worker {} started", escape(&config.worker_id));
    let (mut running, ready, is_refused) =
        start_threads(config, handler, &cluster, (metrics, server), queue, signals, supervisor);
    // After a signal or a fault while joining, the ordinary stop ends what was started.
    let round = tick(supervisor::INTERVAL);
    loop {
        select! {
            recv(ready) -> _ => break,
            recv(signals.first.triggered()) -> _ => break,
            recv(running.fatal.triggered()) -> _ => break,
            recv(signals.quiet.signalled()) -> _ => running.control.set_quiet(signals.quiet.is_asked()),
            recv(is_refused) -> reason => {
                // Disconnected: the thread has ended; the stop handles that.
                let Ok(reason) = reason else { break };
                log::error!("Worker {} cannot use this Kafka: {}", escape(&config.worker_id), escape(&reason));
                give_up(running);
                return Started::Failed(ExitCode::Usage);
            }
            recv(round) -> _ => running.supervisor.starting(STARTING),
        }
    }
    drop(early);
    Started::Running(Box::new(running))
}

/// Ends the threads of a worker that the group refuses, before it has taken a task.
fn give_up(running: Running) {
    running.control.apply(Event::Fatal);
    running.interrupter.interrupt();
    running.producer.close(Instant::now());
    let deadline = Instant::now() + JOIN;
    for thread in [running.threads.intakes, running.threads.leaders, running.threads.membership] {
        // A thread that does not end in time ends with the process.
        let _ = thread.join_deadline(deadline);
    }
}

/// Prepares topics and group, retrying. `Err`: the exit code after a fault, `None` after a signal.
fn prepare(
    cluster: &Cluster,
    config: &WorkerConfig,
    signals: &Signals,
    supervisor: &mut Supervisor,
) -> Result<Queue, Option<ExitCode>> {
    supervisor.starting(STARTING);
    let (told, outcome) = bounded(1);
    let (stop, common, starts) = (signals.first.clone(), config.common.clone(), Starts::of(config));
    let of_thread = cluster.clone();
    // A separate thread, so that a frozen Kafka does not delay a signal.
    let thread = threads::spawn("prepare", Stop::new(), move || -> Result<(), Infallible> {
        if let Some(answer) = queue::prepare_until(&of_thread, &common, Some(starts), &stop) {
            // Capacity one, one answer.
            let _ = told.try_send(answer);
        }
        Ok(())
    });
    let round = tick(supervisor::INTERVAL);
    let result = loop {
        select! {
            recv(outcome) -> answer => break match answer {
                Ok(Ok(queue)) => Ok(queue),
                Ok(Err(reason)) => {
                    log::error!("Worker {} cannot use this Kafka: {}", escape(&config.worker_id), escape(&reason));
                    Err(Some(ExitCode::Usage))
                }
                // The thread ended without an answer: after a signal, or it died, and its join logs why.
                Err(_) if signals.first.is_triggered() => Err(None),
                Err(_) => Err(Some(ExitCode::Fatal)),
            },
            recv(signals.first.triggered()) -> _ => break Err(None),
            recv(round) -> _ => supervisor.starting(STARTING),
        }
    };
    if result.is_err() {
        // Wakes the thread from any wait.
        cluster.options().interrupter.interrupt();
    }
    match thread.join_deadline(Instant::now() + JOIN) {
        Ok(ended) => drop(ended.inspect_err(|error| log::error!("{error}"))),
        Err(thread) => log::warn!("thread {} ends with the process", thread.name()),
    }
    result
}

fn start_threads(
    config: &WorkerConfig,
    handler: impl Handler,
    cluster: &Cluster,
    (metrics, server): (Arc<Metrics>, Option<Server>),
    queue: Queue,
    signals: &Signals,
    mut supervisor: Supervisor,
) -> (Running, Receiver<()>, Receiver<String>) {
    let fatal = Stop::new();
    let control = Arc::new(Control::new());
    control.set_quiet(signals.quiet.is_asked());
    let in_flight = Arc::new(InFlight::new(queue.lock));
    metrics.watch(&in_flight);
    let account = Arc::new(Account::new(&config.worker_id, Arc::clone(&in_flight)));
    let topics = OutboxTopics {
        tasks: config.common.tasks_topic.as_str().into(),
        results: config.common.results_topic.as_str().into(),
        dead: config.common.dead_topic().into(),
        starts: config.common.starts_topic().into(),
        group: config.common.worker_group.as_str().into(),
    };
    let parts = Parts { config, cluster, control: &control, in_flight: &in_flight, fatal: &fatal, queue };
    let (producer, outbox, repairs) = outbox::start(
        cluster.clone(),
        topics,
        &config.worker_id,
        Arc::clone(&in_flight),
        Arc::clone(&control),
        fatal.clone(),
    );
    supervisor.watch(outbox.obstacle(cluster, &control.refusals));
    let (announcements, to_announce) = bounded(2);
    let deadlines = Arc::new(Mutex::new(None));
    let status = parts.status(outbox.clone(), &metrics, to_announce, repairs, Arc::clone(&deadlines));
    let (queue_in, queue_out) = bounded(MOST_JOBS + config.concurrency);
    let handlers = parts.handlers(Arc::new(handler), &metrics, &outbox, &queue_out);
    let assignment = Arc::new(Assignment::default());
    // Random, so that a killed process with the same worker id is another member.
    let identity =
        ShareIdentity { group: config.common.worker_group.as_str().into(), member: Uuid::new_v4().to_string().into() };
    let (leave, to_leave) = bounded(1);
    let (refused, is_refused) = bounded(1);
    let membership = parts.membership(identity.clone(), Arc::clone(&assignment), refused, to_leave);
    let leaders = Arc::new(Leaders::new());
    let leaders_thread = parts.leaders(Arc::clone(&leaders), assignment);
    let (ready, is_ready) = bounded(1);
    let ready_queue = Arc::new(ReadyQueue::new(
        config.concurrency,
        queue.delivery_limit,
        Arc::clone(&in_flight),
        Arc::clone(&control),
        (queue_in, queue_out),
    ));
    let links = IntakeLinks {
        cluster: cluster.clone(),
        identity,
        worker_id: config.worker_id.as_str().into(),
        topic: config.common.tasks_topic.as_str().into(),
        in_flight: Arc::clone(&in_flight),
        control: Arc::clone(&control),
        leaders,
        queue: Arc::clone(&ready_queue),
        ready,
    };
    let (intakes, intake_done) = parts.intakes(links);
    // First and second signal: at most two deadlines, so sending never blocks.
    let (watchdog, deadlines_of_watchdog) = bounded(2);
    let watched = Arc::clone(&account);
    let watchdog_thread = threads::spawn("watchdog", fatal.clone(), move || -> Result<(), Infallible> {
        drain::watch(&deadlines_of_watchdog, &watched);
        Ok(())
    });
    let threads =
        WorkerThreads { intakes, leaders: leaders_thread, handlers, membership, status, watchdog: watchdog_thread };
    let running = Running {
        control,
        in_flight,
        account,
        fatal,
        interrupter: cluster.options().interrupter.clone(),
        announcements,
        deadlines,
        watchdog,
        queue: ready_queue,
        intake_done,
        leave,
        producer,
        outbox,
        supervisor,
        threads,
        _server: server,
    };
    (running, is_ready, is_refused)
}

/// What the functions that start the threads have in common.
struct Parts<'a> {
    config: &'a WorkerConfig,
    cluster: &'a Cluster,
    control: &'a Arc<Control>,
    in_flight: &'a Arc<InFlight>,
    fatal: &'a Stop,
    queue: Queue,
}

impl Parts<'_> {
    fn status(
        &self,
        outbox: Outbox,
        metrics: &Arc<Metrics>,
        announcements: Receiver<Announce>,
        repairs: Receiver<Repair>,
        deadlines: Arc<Mutex<Option<Deadlines>>>,
    ) -> Thread {
        let identity = Identity {
            worker_id: self.config.worker_id.as_str().into(),
            instance: Uuid::new_v4(),
            started_at: unix_now(),
        };
        let upkeep = Upkeep {
            worker_id: self.config.worker_id.as_str().into(),
            in_flight: Arc::clone(self.in_flight),
            cluster: self.cluster.clone(),
            common: self.config.common.clone(),
            starts: Starts::of(self.config),
            queue: self.queue,
        };
        let status = StatusThread {
            identity,
            control: Arc::clone(self.control),
            outbox,
            metrics: Arc::clone(metrics),
            in_flight: Arc::clone(self.in_flight),
            upkeep,
            fatal: self.fatal.clone(),
            heartbeat_interval: self.config.heartbeat_interval,
            announcements,
            repairs,
            deadlines,
        };
        threads::spawn("status", self.fatal.clone(), move || status.run())
    }

    fn handlers<H: Handler>(
        &self,
        handler: Arc<H>,
        metrics: &Arc<Metrics>,
        outbox: &Outbox,
        jobs: &Receiver<Job>,
    ) -> Vec<Thread> {
        (1..=self.config.concurrency)
            .map(|number| {
                let thread = HandlerThread {
                    handler: Arc::clone(&handler),
                    jobs: jobs.clone(),
                    in_flight: Arc::clone(self.in_flight),
                    control: Arc::clone(self.control),
                    metrics: Arc::clone(metrics),
                    outbox: outbox.clone(),
                    cluster: self.cluster.clone(),
                    worker_id: self.config.worker_id.as_str().into(),
                    max_deliveries: self.config.max_deliveries,
                    last_delivery: last_delivery(self.queue.delivery_limit),
                };
                threads::spawn(&format!("handler-{number}"), self.fatal.clone(), move || thread.run())
            })
            .collect()
    }

    fn membership(
        &self,
        identity: ShareIdentity,
        assignment: Arc<Assignment>,
        refused: Sender<String>,
        commands: Receiver<Leave>,
    ) -> Thread {
        let member = ShareMembership::new(self.cluster.clone(), identity, &self.config.common.tasks_topic);
        let control = Arc::clone(self.control);
        threads::spawn("membership", self.fatal.clone(), move || {
            membership::run(member, &assignment, &control, &refused, &commands)
        })
    }

    fn leaders(&self, leaders: Arc<Leaders>, assignment: Arc<Assignment>) -> Thread {
        let thread = LeadersThread {
            cluster: self.cluster.clone(),
            worker_id: self.config.worker_id.as_str().into(),
            topic: self.config.common.tasks_topic.as_str().into(),
            leaders,
            assignment,
            in_flight: Arc::clone(self.in_flight),
            control: Arc::clone(self.control),
        };
        threads::spawn("leaders", self.fatal.clone(), move || thread.run())
    }

    fn intakes(&self, links: IntakeLinks) -> (Thread, Receiver<Result<IntakeReport, KafkaError>>) {
        let intakes = Intakes::new(links, self.config.task_timeout, self.fatal.clone());
        let (told, done) = bounded(1);
        let thread = threads::spawn("intakes", self.fatal.clone(), move || -> Result<(), String> {
            let report = intakes.run();
            let outcome = report.as_ref().map(|_| ()).map_err(ToString::to_string);
            // Capacity one, one answer.
            let _ = told.try_send(report);
            outcome
        });
        (thread, done)
    }
}

/// Logs a stop before the worker took a task, and prints the receipt. The watchdog stays armed to the end.
pub(super) fn say_stopped_early(config: &WorkerConfig, signals: &Signals, armed: EarlyWatchdog) -> ExitCode {
    let id = escape(&config.worker_id);
    log::info!("🛑 Worker {id} received {}, initiating graceful shutdown...", signals.name());
    log::info!("👋 Worker {id} gracefully shut down before it had started");
    let account = Account::new(&config.worker_id, Arc::new(InFlight::new(Duration::ZERO)));
    account.begin(signals.name(), Instant::now());
    drain::print_receipt(&account.receipt(), LAST_LINES);
    drop(armed);
    ExitCode::Drained
}
