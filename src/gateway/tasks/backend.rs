//! The threads that need Kafka: prepares the queue, then starts the producer and the readers.
//!
//! Runs in the thread `kafka`, which joins the others and ends with them.

use super::produced::ProducerOutcomes;
use super::questions::answer_questions;
use super::{Asked, Tasks, readers, search, sweep};
use crate::gateway::dead;
use crate::queue;
use kafka_share::cluster::Cluster;
use kafka_share::error::KafkaError;
use kafka_share::producer::{Producer, ProducerOptions};
use program::logging::escape;
use program::stop::Stop;
use program::threads::{self, Thread};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// At most this many tasks wait for the producer. Full: callers are refused.
const PRODUCER_QUEUE: usize = 4096;
/// The size of a batch of tasks: small, because the broker sends a whole batch in each fetch that takes a part of it.
const TASK_BATCH_BYTES: usize = 32 * 1024;
/// How often the topics are looked up: added partitions are read within twice this time.
const TOPICS_AGE: Duration = Duration::from_secs(1);

pub(in crate::gateway) struct Backend {
    pub(in crate::gateway) tasks: Arc<Tasks>,
    pub(in crate::gateway) cluster: Cluster,
    pub(in crate::gateway) asked: Asked,
    /// Ends the threads.
    pub(in crate::gateway) end: Stop,
    /// Triggered when a thread ends that must not end.
    pub(in crate::gateway) fatal: Stop,
    /// Triggered before `fatal` when the cluster can never be used.
    pub(in crate::gateway) unusable: Stop,
}

impl Backend {
    /// Runs until the end.
    pub(in crate::gateway) fn run(self) {
        let parts = || (Arc::clone(&self.tasks), self.cluster.clone(), self.end.clone());
        let ((tasks, cluster, end), questions) = (parts(), self.asked.questions.clone());
        let lookup = self.spawn("lookup", move || -> Result<(), Infallible> {
            answer_questions(&tasks, cluster, &questions, &end);
            Ok(())
        });
        let ((tasks, cluster, end), searches) = (parts(), self.asked.searches.clone());
        let search = self.spawn("search", move || -> Result<(), Infallible> {
            search::run(&tasks, &cluster, &searches, &end);
            Ok(())
        });
        let mut running = vec![lookup, search];
        if self.prepare() {
            self.tasks.state.set_prepared();
            let options =
                ProducerOptions { queue: PRODUCER_QUEUE, batch_bytes: TASK_BATCH_BYTES, ..ProducerOptions::default() };
            let outcomes = ProducerOutcomes(Arc::clone(&self.tasks));
            let producer = Producer::start("producer", self.cluster.clone(), options, outcomes, self.fatal.clone());
            self.tasks.set_producer(producer);
            running.extend(self.start_readers());
            self.watch_topics();
        }
        for thread in running {
            // The thread has logged its failure, and `fatal` is triggered.
            let _ = thread.join();
        }
    }

    fn spawn<E: std::fmt::Display>(&self, name: &str, body: impl FnOnce() -> Result<(), E> + Send + 'static) -> Thread {
        threads::spawn(name, self.fatal.clone(), body)
    }

    fn start_readers(&self) -> [Thread; 5] {
        let parts = || (Arc::clone(&self.tasks), self.cluster.clone(), self.end.clone());
        let (tasks, cluster, end) = parts();
        let tail = self.spawn("results-tail", move || readers::tail(&tasks, cluster, &end));
        let (tasks, cluster, end) = parts();
        let past = self.spawn("results-past", move || -> Result<(), Infallible> {
            readers::past(&tasks, cluster, &end);
            Ok(())
        });
        let (tasks, cluster, end) = parts();
        let pending = self.spawn("tasks", move || readers::tasks(&tasks, cluster, &end));
        let (tasks, cluster, end) = parts();
        let sweep = self.spawn("sweep", move || sweep::run(&tasks, &cluster, &end));
        let (tasks, cluster, end) = parts();
        let dead = self.spawn("dead", move || dead::run(&tasks.state, &cluster, &end));
        [tail, past, pending, sweep, dead]
    }

    /// Refreshes the metadata of the topics until the end. The readers use it and do not ask themselves: a broker that
    /// does not answer would delay results that other brokers have.
    fn watch_topics(&self) {
        let common = &self.tasks.state.config.common;
        while self.end.sleep(TOPICS_AGE).is_ok() {
            match self.cluster.refresh(&[&common.tasks_topic, &common.results_topic]) {
                Ok(()) => {}
                Err(KafkaError::Interrupted) => return,
                // The tail logs that Kafka does not answer.
                Err(error) => log::debug!("the topics cannot be looked up: {error}"),
            }
        }
    }

    /// Prepares the queue. Returns false if the end came first, or this Kafka cannot be used.
    fn prepare(&self) -> bool {
        match queue::prepare_until(&self.cluster, &self.tasks.state.config.common, None, &self.end) {
            Some(Ok(queue)) => {
                log::info!("Kafka is ready: {} partition(s) of tasks", queue.tasks_partitions);
                true
            }
            Some(Err(reason)) => {
                log::error!("this Kafka cannot be used: {}", escape(&reason));
                self.unusable.trigger();
                self.fatal.trigger();
                false
            }
            None => false,
        }
    }
}
