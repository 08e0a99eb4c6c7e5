//! All calls that block on one leader: connecting, producing, asking for log ends, searching batches.
//!
//! A [`Link`] does one job at a time on the calling thread and returns a report. It decides nothing and repeats
//! nothing. [`leader`](super::leader) owns it, and gives it a thread in clusters of several brokers.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};

use super::LaneKey;
use super::doubts::{self, Doubt};
use super::report::{Done, Report};
use crate::cluster::{Cluster, Led, WATCH_INTERVAL, topic_name};
use crate::error::{Result, Retry};
use crate::offsets::{self, Position};
use crate::pool::Pool;

/// Produce v8: as v7, and the response carries the broker's message (KIP-467).
const VERSION: i16 = 8;

/// A job for a link.
#[derive(Debug)]
pub(super) enum Job {
    /// Ensure a working connection, and ask for the log ends of these partitions.
    Open(Vec<LaneKey>),
    /// Send these batches in one request and wait for the response.
    Produce(Vec<(LaneKey, Bytes)>),
    /// Search the log for a batch, and get a new producer id.
    LookUp(Doubt),
}

/// Connection and jobs of one node.
#[derive(Debug)]
pub(super) struct Link {
    node: i32,
    /// Connections to this node; also to another node when the leader has just moved.
    pool: Pool,
}

impl Link {
    pub(super) fn new(node: i32, cluster: Cluster) -> Self {
        Self { node, pool: Pool::new(cluster) }
    }

    /// Does the job; the client's timeouts limit it.
    pub(super) fn perform(&mut self, job: Job) -> Report {
        if !self.pool.muted_for(self.node).is_zero() {
            // The producer is in a hurry: the broker reads a new connection at once.
            self.pool.drop_node(self.node);
        }
        match job {
            Job::Open(keys) => {
                let outcome = self.open(keys);
                let outcome = self.checked(outcome);
                Report::Opened(self.done(), outcome)
            }
            Job::Produce(batches) => {
                let outcome = self.produce(batches);
                let outcome = self.checked(outcome);
                Report::Produced(self.done(), outcome)
            }
            Job::LookUp(doubt) => {
                let outcome = doubts::new_identity(self.pool.cluster())
                    .map(|fresh| (fresh, doubts::search(&mut self.pool, self.node, &doubt)));
                if let Ok((_, Err(error))) = &outcome {
                    self.pool.cluster().blame(error);
                }
                Report::LookedUp(self.done(), doubt.key, outcome)
            }
        }
    }

    fn done(&self) -> Done {
        Done { node: self.node, reads_at: Instant::now() + self.pool.muted_for(self.node) }
    }

    /// Closes the connection after a failure: it may be in the middle of a response.
    fn checked<T>(&mut self, outcome: Result<T>) -> Result<T> {
        outcome.inspect_err(|error| {
            self.pool.cluster().blame(error);
            self.pool.drop_node(self.node);
        })
    }

    fn open(&mut self, keys: Vec<LaneKey>) -> Result<Vec<(LaneKey, Result<i64>)>> {
        if keys.is_empty() {
            // Replaces a connection that the broker closed while idle.
            self.pool.any_alive();
        }
        self.pool.get(self.node)?;
        let mut ends = Vec::with_capacity(keys.len());
        for key in keys {
            let end = offsets::list(&mut self.pool, &key.0, [key.1], Position::End)
                .map(|ends| ends.get(&key.1).copied().unwrap_or(0));
            match end {
                Err(error) if error.retry() == Retry::Reconnect || error.is_interrupted() => return Err(error),
                end => ends.push((key, end)),
            }
        }
        Ok(ends)
    }

    fn produce(&mut self, batches: Vec<(LaneKey, Bytes)>) -> Result<ProduceResponse> {
        let timeout = self.pool.cluster().options().request_timeout;
        let cluster = self.pool.cluster().clone();
        let keys: Vec<LaneKey> = batches.iter().map(|(key, _)| key.clone()).collect();
        let led = keys.iter().map(|(topic, partition)| {
            let epoch = cluster.epoch(topic, *partition);
            Led { topic, partition: *partition, epoch }
        });
        let led: Vec<Led<'_>> = led.collect();
        let request = produce_request(batches, timeout);
        let connection = self.pool.get(self.node)?;
        let correlation = connection.send(VERSION, &request)?;
        let begin = Instant::now();
        loop {
            let left = timeout.saturating_sub(begin.elapsed());
            if let Some(mut body) = connection.receive(correlation, left.min(WATCH_INTERVAL))? {
                return connection.decode::<ProduceRequest>(&mut body, VERSION);
            }
            let waited = begin.elapsed();
            let error = connection.late("Produce", waited);
            if waited >= timeout || cluster.leads_elsewhere(self.node, &led, &error) {
                return Err(error);
            }
        }
    }
}

/// Makes a Produce v8 request with acks=all. `batches` is sorted, so the batches of one topic are adjacent.
fn produce_request(batches: Vec<(LaneKey, Bytes)>, timeout: Duration) -> ProduceRequest {
    let mut topics: Vec<TopicProduceData> = Vec::new();
    for ((topic, partition), bytes) in batches {
        let data = PartitionProduceData::default().with_index(partition).with_records(Some(bytes));
        match topics.last_mut() {
            Some(last) if **last.name == *topic => last.partition_data.push(data),
            _ => topics.push(TopicProduceData::default().with_name(topic_name(&topic)).with_partition_data(vec![data])),
        }
    }
    // The broker waits for its replicas a little less than this client waits for the broker.
    let timeout_ms = i32::try_from((timeout * 4 / 5).as_millis()).unwrap_or(i32::MAX);
    ProduceRequest::default()
        .with_transactional_id(None)
        .with_acks(-1)
        .with_timeout_ms(timeout_ms)
        .with_topic_data(topics)
}
