//! The thread `intakes`: starts an intake for each broker that leads a partition, and joins intakes that end.
//!
//! A broker that leads nothing loses its intake when all records held there are settled. During a stop or a
//! quiet the thread releases unstarted tasks. A stop ends when no task is in work and every intake has closed its
//! session. Not here: which broker leads what ([`super::leaders`]).

use super::bells::Rings;
use super::drain::Phase;
use super::in_flight::TaskNames;
use super::intake::queue::ReadyQueue;
use super::intake::{Intake, IntakeLinks};
use crossbeam_channel::{Receiver, Sender, bounded, select};
use kafka_share::error::KafkaError;
use program::stop::Stop;
use program::threads::{self, Thread};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::{Duration, Instant};

/// How often the thread checks time-outs and the phase.
const TICK: Duration = Duration::from_millis(100);
/// At most this many ended intakes wait to be joined; further ones wait before they end.
const MOST_ENDED: usize = 16;
/// Node ids in thread names are cut to this many digits, since the kernel cuts names.
const NAMED_NODES: i32 = 100_000_000;

/// How the intakes ended.
#[derive(Debug, Default)]
pub(super) struct IntakeReport {
    /// Tasks whose result is in Kafka but whose accept is not: another worker may run them again.
    pub(super) unaccepted: TaskNames,
    /// Why sessions could not be closed; the broker releases their locks when the connections end.
    pub(super) close_failed: Vec<String>,
}

/// How one intake ended.
struct Ended {
    node: i32,
    outcome: Result<Option<String>, KafkaError>,
}

pub(super) struct Intakes {
    links: IntakeLinks,
    task_timeout: Duration,
    /// Triggered when an intake dies.
    on_death: Stop,
    threads: BTreeMap<i32, Thread>,
    /// One message per thread, sent right before it ends. Full: the thread waits until others are joined.
    tell: Sender<Ended>,
    told: Receiver<Ended>,
    report: IntakeReport,
}

impl Intakes {
    pub(super) fn new(links: IntakeLinks, task_timeout: Duration, on_death: Stop) -> Self {
        let (tell, told) = bounded(MOST_ENDED);
        Self { links, task_timeout, on_death, threads: BTreeMap::new(), tell, told, report: IntakeReport::default() }
    }

    /// Runs intakes until the worker has settled everything.
    ///
    /// # Errors
    /// The error that ended an intake; retrying cannot fix it.
    pub(super) fn run(mut self) -> Result<IntakeReport, KafkaError> {
        let doorbell = self.links.control.doorbell(Rings::Changes);
        // Since when no tasks are taken.
        let mut idle_since = None;
        loop {
            let now = Instant::now();
            self.say_overdue(now);
            match self.links.control.phase() {
                Phase::Running => {
                    if self.links.control.takes() {
                        idle_since = None;
                    } else {
                        self.give_back(*idle_since.get_or_insert(now), now);
                    }
                    self.start_missing(self.links.leaders.nodes());
                }
                Phase::Draining => {
                    self.give_back(*idle_since.get_or_insert(now), now);
                    // The partition of a running task may have a new leader.
                    self.start_missing(self.links.leaders.nodes_of(|it| self.links.in_flight.sought(it, false) > 0));
                }
                Phase::Closing | Phase::Stopped => {}
            }
            if self.is_over() {
                break;
            }
            select! {
                recv(self.told) -> ended => {
                    if let Ok(ended) = ended {
                        self.join(ended)?;
                    }
                }
                recv(doorbell) -> _ => {}
                default(TICK) => {}
            }
        }
        self.report.unaccepted = self.links.in_flight.unaccepted();
        Ok(self.report)
    }

    fn is_over(&self) -> bool {
        match self.links.control.phase() {
            Phase::Running => false,
            Phase::Draining => self.threads.is_empty() && self.links.in_flight.counts().only_acknowledgements(),
            Phase::Closing | Phase::Stopped => self.threads.is_empty(),
        }
    }

    fn start_missing(&mut self, nodes: BTreeSet<i32>) {
        for node in nodes {
            if self.threads.contains_key(&node) {
                continue;
            }
            let intake = Intake::new(node, self.links.clone());
            let tell = self.tell.clone();
            let name = format!("intake-{}", node.rem_euclid(NAMED_NODES));
            let thread = threads::spawn(&name, self.on_death.clone(), move || -> Result<(), Infallible> {
                let outcome = intake.run();
                // Full: waits until other intakes are joined. The receiver outlives every intake.
                let _ = tell.send(Ended { node, outcome });
                Ok(())
            });
            self.threads.insert(node, thread);
        }
    }

    fn join(&mut self, ended: Ended) -> Result<(), KafkaError> {
        if let Some(thread) = self.threads.remove(&ended.node) {
            // The thread sent its message last; a panic was logged and has ended the worker.
            let _ = thread.join();
        }
        let failed = ended.outcome?;
        if self.links.control.phase() == Phase::Running {
            // Its broker leads nothing now, and is often about to stop.
            log::debug!("intake of broker {} ended: {failed:?}", ended.node);
        } else {
            self.report.close_failed.extend(failed);
        }
        Ok(())
    }

    /// Finishes ready tasks at the beginning of a stop or a quiet if they take only a moment, and releases them
    /// otherwise. Failed tasks that rest are released: another worker has time for them.
    fn give_back(&self, since: Instant, now: Instant) {
        let quick = now.saturating_duration_since(since) <= ReadyQueue::quick_finish();
        let finishes = quick && self.links.control.may_start();
        self.links.control.set_finishes_ready(finishes);
        if !finishes && self.links.queue.take_back_all() {
            self.links.control.ring();
        }
        self.links.in_flight.take_back_resting();
    }

    fn say_overdue(&self, now: Instant) {
        for task in self.links.in_flight.take_overdue(self.task_timeout, now) {
            log::error!(
                "Worker {} is not live: task {task} runs longer than TASK_TIMEOUT ({} s); releasing it and dropping the \
                 outcome of its handler",
                self.links.worker_id,
                self.task_timeout.as_secs()
            );
        }
    }
}
