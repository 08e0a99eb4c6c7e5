//! How a gateway starts: the port first, then HTTP, then Kafka as soon as it can be reached.

use super::desk::{Desk, log_events};
use super::http::load::Load;
use super::http::{accept, listener};
use super::lookup::{self, Question, Questions};
use super::readers;
use super::routes::Service;
use super::submit::{Settling, Submitter, Token};
use super::sweep;
use crate::backoff::Backoff;
use crate::config::GatewayConfig;
use crate::exit::ExitCode;
use crate::kafka::ClientOptions;
use crate::kafka::cluster::Cluster;
use crate::kafka::error::KafkaError;
use crate::kafka::interrupt::Interrupter;
use crate::kafka::producer::{Producer, ProducerOptions};
use crate::logging::escape;
use crate::queue::{self, PrepareError};
use crate::stop::Stop;
use crate::supervisor::Supervisor;
use crate::threads::{self, Thread};
use crate::worker::outage::Outage;
use crossbeam_channel::Receiver;
use parking_lot::Mutex;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

/// Tasks that may wait for the producer; beyond, callers are turned away.
const PRODUCER_QUEUE: usize = 4096;
/// A batch of tasks travels again with every round that takes a part of it, so it ends early.
const TASK_BATCH_BYTES: usize = 32 * 1024;
/// First and longest pause while Kafka cannot be reached.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How often the topics are looked up: partitions that are added are read within twice this.
const TOPICS_AGE: Duration = Duration::from_secs(1);
/// How often workers, claims and results are looked through for what has become old.
const TICK: Duration = Duration::from_millis(200);

/// A gateway that runs.
pub(super) struct Running {
    pub(super) desk: Arc<Desk>,
    pub(super) submitter: Arc<Submitter>,
    /// Where it listens.
    pub(super) address: SocketAddr,
    pub(super) interrupter: Interrupter,
    /// Triggered when a thread ends that must not.
    pub(super) fatal: Stop,
    /// Set with `fatal` when the cluster can never be used.
    pub(super) unusable: Stop,
    /// Ends the threads that serve.
    pub(super) end: Stop,
    /// There once Kafka was reached.
    pub(super) producer: Arc<Mutex<Option<Producer<Token>>>>,
    pub(super) supervisor: Supervisor,
    pub(super) threads: Vec<Thread>,
}

/// Takes the port and starts the threads.
pub(super) fn start(config: GatewayConfig) -> Result<Running, ExitCode> {
    let address = config.http_addr;
    let listener = listener::listen(address).map_err(|error| {
        log::error!("cannot listen on HTTP_ADDR {address}: {error}");
        ExitCode::Fatal
    })?;
    let address = listener.local_addr().unwrap_or(address);
    let grace = config.stop_grace_period;
    let load = Load::new(accept::most_connections(config.max_waiting));
    let desk = Arc::new(Desk::new(config, load));
    let (questions, asked) = Questions::new(Arc::clone(&desk));
    let submitter = Arc::new(Submitter::new(Arc::clone(&desk), questions.clone()));
    let interrupter = Interrupter::default();
    let mut options = ClientOptions::new(desk.config.common.bootstrap.clone(), "lastcall-gateway");
    options.interrupter = interrupter.clone();
    let mut running = Running {
        desk,
        submitter,
        address,
        interrupter,
        fatal: Stop::new(),
        unusable: Stop::new(),
        end: Stop::new(),
        producer: Arc::default(),
        supervisor: Supervisor::default(),
        threads: Vec::new(),
    };
    running.start_http(listener, questions.clone());
    running.start_kafka(Cluster::new(options), questions, asked);
    log::info!("🚀 Gateway started on {address}; stops within {} s", grace.as_secs());
    Ok(running)
}

impl Running {
    fn spawn<E: std::fmt::Display + Send + 'static>(
        &mut self,
        name: &str,
        body: impl FnOnce() -> Result<(), E> + Send + 'static,
    ) {
        let thread = threads::spawn(name, self.fatal.clone(), body);
        self.threads.push(thread);
    }

    fn start_http(&mut self, listener: TcpListener, questions: Questions) {
        let service =
            Arc::new(Service { desk: Arc::clone(&self.desk), submitter: Arc::clone(&self.submitter), questions });
        let (load, end) = (Arc::clone(&self.desk.load), self.end.clone());
        self.spawn("accept", move || -> Result<(), Infallible> {
            accept::accept(&listener, &service, &load, &end);
            Ok(())
        });
        let (address, load, end) = (self.address, Arc::clone(&self.desk.load), self.end.clone());
        self.spawn("port-watch", move || listener::watch(address, &load, &end));
        let (desk, submitter, end) = (Arc::clone(&self.desk), Arc::clone(&self.submitter), self.end.clone());
        self.spawn("upkeep", move || -> Result<(), Infallible> {
            keep_up(&desk, &submitter, &end);
            Ok(())
        });
    }

    fn start_kafka(&mut self, cluster: Cluster, questions: Questions, asked: Receiver<Question>) {
        let (desk, of_lookup, end) = (Arc::clone(&self.desk), cluster.clone(), self.end.clone());
        self.spawn("lookup", move || lookup::run(&desk, of_lookup, &asked, &end));
        let starter = KafkaStarter {
            desk: Arc::clone(&self.desk),
            submitter: Arc::clone(&self.submitter),
            questions,
            cluster,
            end: self.end.clone(),
            fatal: self.fatal.clone(),
            unusable: self.unusable.clone(),
            producer: Arc::clone(&self.producer),
        };
        self.spawn("kafka", move || starter.run());
    }
}

/// Workers that fell silent, claims and results that are old.
fn keep_up(desk: &Desk, submitter: &Submitter, end: &Stop) {
    loop {
        let now = desk.now();
        let events = {
            let mut state = desk.state();
            state.index.forget_old(now);
            state.fleet.tick(now)
        };
        desk.ticked();
        log_events(&events);
        submitter.claim_overdue();
        if end.sleep(TICK).is_err() {
            return;
        }
    }
}

/// Prepares the queue, then starts everything that needs it, and keeps its threads until the end.
struct KafkaStarter {
    desk: Arc<Desk>,
    submitter: Arc<Submitter>,
    questions: Questions,
    cluster: Cluster,
    end: Stop,
    fatal: Stop,
    unusable: Stop,
    producer: Arc<Mutex<Option<Producer<Token>>>>,
}

impl KafkaStarter {
    fn run(self) -> Result<(), Infallible> {
        if !self.prepare() {
            return Ok(());
        }
        self.desk.set_prepared();
        let options =
            ProducerOptions { queue: PRODUCER_QUEUE, batch_bytes: TASK_BATCH_BYTES, ..ProducerOptions::default() };
        let settling = Settling { desk: Arc::clone(&self.desk) };
        let producer = Producer::start("producer", self.cluster.clone(), options, settling, self.fatal.clone());
        self.submitter.set_producer(producer.sender());
        *self.producer.lock() = Some(producer);
        let readers = self.start_readers();
        self.watch_topics();
        for thread in readers {
            // Its own line says how it ended badly, and `fatal` is triggered.
            let _ = thread.join();
        }
        Ok(())
    }

    /// Keeps what is known of the topics new, until the end. The readers use it and need not ask themselves: a question
    /// to a broker that does not answer would hold up results that others have.
    fn watch_topics(&self) {
        let common = &self.desk.config.common;
        while self.end.sleep(TOPICS_AGE).is_ok() {
            match self.cluster.refresh(&[&common.tasks_topic, &common.results_topic]) {
                Ok(()) => {}
                Err(KafkaError::Interrupted) => return,
                // The tail says it when Kafka does not answer.
                Err(error) => log::debug!("the topics cannot be looked up: {error}"),
            }
        }
    }

    /// False: the end came first, or this Kafka cannot be used.
    fn prepare(&self) -> bool {
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        let mut outage = Outage::new("Kafka");
        loop {
            match queue::prepare(&self.cluster, &self.desk.config.common, None) {
                Ok(queue) => {
                    outage.over();
                    log::info!("Kafka is ready: {} partition(s) of tasks", queue.tasks_partitions);
                    return true;
                }
                Err(PrepareError::Unusable(reason)) => {
                    log::error!("this Kafka cannot be used: {}", escape(&reason));
                    self.unusable.trigger();
                    self.fatal.trigger();
                    return false;
                }
                Err(PrepareError::Unreachable(KafkaError::Interrupted)) => return false,
                Err(PrepareError::Unreachable(error)) => outage.report(&error),
            }
            if self.end.sleep(backoff.pause()).is_err() {
                return false;
            }
        }
    }

    fn start_readers(&self) -> [Thread; 4] {
        let parts = || (Arc::clone(&self.desk), self.cluster.clone(), self.end.clone());
        let spawn = |name: &str, body: Box<dyn FnOnce() -> Result<(), KafkaError> + Send>| {
            threads::spawn(name, self.fatal.clone(), body)
        };
        let submitter = Arc::clone(&self.submitter);
        let (desk, cluster, end) = parts();
        let tail = spawn("results-tail", Box::new(move || readers::tail(&desk, &submitter, cluster, &end)));
        let (desk, cluster, end) = parts();
        let past = spawn("results-past", Box::new(move || readers::past(&desk, cluster, &end)));
        let (desk, cluster, end) = parts();
        let questions = self.questions.clone();
        let tasks = spawn("tasks", Box::new(move || readers::tasks(&desk, &questions, cluster, &end)));
        let submitter = Arc::clone(&self.submitter);
        let (desk, cluster, end) = parts();
        let sweep = spawn("sweep", Box::new(move || sweep::run(&desk, &submitter, &cluster, &end)));
        [tail, past, tasks, sweep]
    }
}
