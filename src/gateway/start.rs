//! How a gateway starts: the port first, then HTTP, then Kafka as soon as it can be reached.

use super::desk::{ANSWERS, Desk, log_events};
use super::http::{self, Dispatcher, LargeBody};
use super::lookup::{self, Question};
use super::readers::{self, ReadBack};
use super::submit::{Settling, Submitter, Token, parting_answer};
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
use crate::task::unix_now;
use crate::threads::{self, Thread};
use crate::worker::outage::Outage;
use crossbeam_channel::{Receiver, bounded};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tiny_http::Server;

/// Threads that write answers.
const ANSWERERS: usize = 3;
/// Threads that read bodies which were not there with the request's head; so many slow ones hold up further large ones.
const BODY_READERS: usize = 16;
/// Large bodies that may wait for a thread.
const BODIES: usize = 256;
/// Tasks that may wait for the producer; beyond, callers are turned away.
const PRODUCER_QUEUE: usize = 4096;
/// A batch of tasks travels again with every round that takes a part of it, so it ends early.
const TASK_BATCH_BYTES: usize = 32 * 1024;
/// First and longest pause while Kafka cannot be reached.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// The deadline thread looks at least so often; sooner when a caller's time is over.
const TICK: Duration = Duration::from_millis(200);

/// A gateway that runs.
pub(super) struct Running {
    pub(super) desk: Arc<Desk>,
    pub(super) submitter: Arc<Submitter>,
    pub(super) server: Arc<Server>,
    pub(super) interrupter: Interrupter,
    /// Triggered when a thread ends that must not.
    pub(super) fatal: Stop,
    /// Set with `fatal` when the cluster can never be used.
    pub(super) unusable: Stop,
    /// Ends the threads that serve.
    pub(super) end: Stop,
    /// There once Kafka was reached.
    pub(super) producer: Arc<Mutex<Option<Producer<Token>>>>,
    pub(super) threads: Vec<Thread>,
}

/// Takes the port and starts the threads.
pub(super) fn start(config: GatewayConfig) -> Result<Running, ExitCode> {
    let address = config.http_addr;
    let listener = http::listen(address).map_err(|error| {
        log::error!("cannot listen on HTTP_ADDR {address}: {error}");
        ExitCode::Fatal
    })?;
    let bound = listener.local_addr().unwrap_or(address);
    let server = http::serve(listener, bound).map_err(|error| {
        log::error!("cannot serve HTTP on {bound}: {error}");
        ExitCode::Fatal
    })?;
    let (answers, to_write) = bounded(ANSWERS);
    let grace = config.stop_grace_period;
    let desk = Arc::new(Desk::new(config, answers));
    let (questions, asked) = lookup::queue();
    let submitter = Arc::new(Submitter::new(Arc::clone(&desk), questions.clone()));
    let interrupter = Interrupter::default();
    let mut options = ClientOptions::new(desk.config.common.bootstrap.clone(), "lastcall-gateway");
    options.interrupter = interrupter.clone();
    let mut running = Running {
        desk,
        submitter,
        server: Arc::new(server),
        interrupter,
        fatal: Stop::new(),
        unusable: Stop::new(),
        end: Stop::new(),
        producer: Arc::default(),
        threads: Vec::new(),
    };
    running.start_http(bound, questions, &to_write);
    running.start_kafka(Cluster::new(options), asked);
    log::info!("🚀 Gateway started on {bound}; stops within {} s", grace.as_secs());
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

    fn start_http(
        &mut self,
        address: std::net::SocketAddr,
        questions: lookup::Questions,
        to_write: &Receiver<Vec<super::desk::Written>>,
    ) {
        for number in 1..=ANSWERERS {
            let (to_write, desk) = (to_write.clone(), Arc::clone(&self.desk));
            self.spawn(&format!("answer-{number}"), move || -> Result<(), Infallible> {
                http::write_answers(&to_write, &desk);
                Ok(())
            });
        }
        let (bodies, to_read) = bounded::<LargeBody>(BODIES);
        let dispatcher = |bodies| Dispatcher {
            desk: Arc::clone(&self.desk),
            submitter: Arc::clone(&self.submitter),
            questions: questions.clone(),
            bodies,
        };
        let readers: Vec<Dispatcher> = (0..BODY_READERS).map(|_| dispatcher(bounded(0).0)).collect();
        let main = dispatcher(bodies);
        for (number, reader) in readers.into_iter().enumerate() {
            let to_read = to_read.clone();
            self.spawn(&format!("body-{}", number + 1), move || -> Result<(), Infallible> {
                reader.read_bodies(&to_read);
                Ok(())
            });
        }
        let (server, end) = (Arc::clone(&self.server), self.end.clone());
        self.spawn("http", move || main.run(&server, &end));
        let end = self.end.clone();
        self.spawn("port-watch", move || http::watch_port(address, &end));
        let (desk, end) = (Arc::clone(&self.desk), self.end.clone());
        self.spawn("deadlines", move || -> Result<(), Infallible> {
            watch_deadlines(&desk, &end);
            Ok(())
        });
    }

    fn start_kafka(&mut self, cluster: Cluster, asked: Receiver<Question>) {
        let (desk, of_lookup) = (Arc::clone(&self.desk), cluster.clone());
        self.spawn("lookup", move || lookup::run(&desk, of_lookup, &asked));
        let starter = KafkaStarter {
            desk: Arc::clone(&self.desk),
            submitter: Arc::clone(&self.submitter),
            cluster,
            end: self.end.clone(),
            fatal: self.fatal.clone(),
            unusable: self.unusable.clone(),
            producer: Arc::clone(&self.producer),
        };
        self.spawn("kafka", move || starter.run());
    }
}

/// Callers whose time is over, workers that fell silent.
fn watch_deadlines(desk: &Desk, end: &Stop) {
    loop {
        let now = Instant::now();
        let (leaving, events, next) = {
            let mut state = desk.state();
            let leaving = state.waiting.expire(now);
            let events = state.fleet.tick(unix_now());
            (leaving, events, state.waiting.next_deadline())
        };
        desk.ticked();
        // ANSWER_TIMEOUT goes on counting while the gateway drains, and says the same.
        let answers = leaving.into_iter().map(|it| (it.caller.request, parting_answer(it.key, it.progress, false)));
        desk.answer_all(answers.collect());
        log_events(&events);
        let pause = next.map_or(TICK, |next| next.saturating_duration_since(Instant::now()).min(TICK));
        // A pause of zero would spin on a deadline that has just passed: the next round takes it.
        if end.sleep(pause.max(Duration::from_millis(1))).is_err() {
            return;
        }
    }
}

/// Prepares the queue, then starts everything that needs it, and keeps its threads until the end.
struct KafkaStarter {
    desk: Arc<Desk>,
    submitter: Arc<Submitter>,
    cluster: Cluster,
    end: Stop,
    fatal: Stop,
    unusable: Stop,
    producer: Arc<Mutex<Option<Producer<Token>>>>,
}

impl KafkaStarter {
    fn run(self) -> Result<(), String> {
        if !self.prepare()? {
            return Ok(());
        }
        self.desk.set_prepared();
        let options =
            ProducerOptions { queue: PRODUCER_QUEUE, batch_bytes: TASK_BATCH_BYTES, ..ProducerOptions::default() };
        let settling = Settling { desk: Arc::clone(&self.desk) };
        let producer = Producer::start("producer", self.cluster.clone(), options, settling, self.fatal.clone());
        self.submitter.set_producer(producer.sender());
        *self.producer.lock() = Some(producer);
        for thread in self.start_readers() {
            // Its own line says how it ended badly, and `fatal` is triggered.
            let _ = thread.join();
        }
        Ok(())
    }

    /// False: the end came first.
    fn prepare(&self) -> Result<bool, String> {
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        let mut outage = Outage::new("Kafka");
        loop {
            match queue::prepare(&self.cluster, &self.desk.config.common, None) {
                Ok(queue) => {
                    outage.over();
                    log::info!("Kafka is ready: {} partition(s) of tasks", queue.tasks_partitions);
                    return Ok(true);
                }
                Err(PrepareError::Unusable(reason)) => {
                    self.unusable.trigger();
                    return Err(format!("this Kafka cannot be used: {}", escape(&reason)));
                }
                Err(PrepareError::Unreachable(KafkaError::Interrupted)) => return Ok(false),
                Err(PrepareError::Unreachable(error)) => outage.report(&error),
            }
            if self.end.sleep(backoff.pause()).is_err() {
                return Ok(false);
            }
        }
    }

    fn start_readers(&self) -> [Thread; 4] {
        let read_back = Arc::new(ReadBack::new(Arc::clone(&self.desk)));
        let parts = || (Arc::clone(&self.desk), self.cluster.clone(), Arc::clone(&read_back), self.end.clone());
        let spawn = |name: &str, body: Box<dyn FnOnce() -> Result<(), KafkaError> + Send>| {
            threads::spawn(name, self.fatal.clone(), body)
        };
        let submitter = Arc::clone(&self.submitter);
        let (desk, cluster, _, end) = parts();
        let tail = spawn("results-tail", Box::new(move || readers::tail(&desk, &submitter, cluster, &end)));
        let (desk, cluster, back, end) = parts();
        let past = spawn("results-past", Box::new(move || readers::past(&desk, cluster, &back, &end)));
        let (desk, cluster, back, end) = parts();
        let tasks = spawn("tasks", Box::new(move || readers::tasks(&desk, cluster, &back, &end)));
        let submitter = Arc::clone(&self.submitter);
        let (desk, cluster, _, end) = parts();
        let sweep = spawn("sweep", Box::new(move || sweep::run(&desk, &submitter, &cluster, &end)));
        [tail, past, tasks, sweep]
    }
}
