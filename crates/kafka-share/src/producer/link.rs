//! Everything that blocks on one leader: connecting, producing, asking where logs end, looking batches up.
//!
//! A [`Link`] does one job at a time, on the thread that calls it, and says what came of it. It decides nothing and
//! repeats nothing; [`leader`](super::leader) owns it, and gives it a thread of its own where others could be held up.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};

use super::LaneKey;
use super::doubts::{self, Doubt};
use super::report::Report;
use crate::cluster::{Cluster, Led, WATCH_INTERVAL, topic_name};
use crate::error::{KafkaError, Result, Retry};
use crate::offsets::{self, Position};
use crate::pool::Pool;

/// Produce v8: as v7, and the answer carries the broker's words (KIP-467).
const VERSION: i16 = 8;

/// What a link is to do.
#[derive(Debug)]
pub(super) enum Job {
    /// Have a connection that stands, and learn where the logs of these partitions end.
    Open(Vec<LaneKey>),
    /// Send these batches in one request, and wait for its answer.
    Produce(Vec<(LaneKey, Bytes)>),
    /// Look a batch up in the log, and get a new producer id to go on with.
    LookUp(Doubt),
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Link {
    node: i32,
    /// Of this node; a question may lead to another one when the leader has just moved.
    pool: Pool,
}

impl Link {
    pub(super) fn new(node: i32, cluster: Cluster) -> Self {
        Self { node, pool: Pool::new(cluster) }
    }

    /// Does the job, however long that takes; what bounds it are the client's time-outs.
    pub(super) fn perform(&mut self, job: Job) -> Report {
        match job {
            Job::Open(keys) => {
                let outcome = self.open(keys);
                Report::Opened(self.node, self.checked(outcome))
            }
            Job::Produce(batches) => {
                let outcome = self.produce(batches);
                Report::Produced(self.node, self.checked(outcome))
            }
            Job::LookUp(doubt) => {
                let outcome = doubts::new_identity(self.pool.cluster())
                    .map(|fresh| (fresh, doubts::search(&mut self.pool, self.node, &doubt)));
                if let Ok((_, Err(error))) = &outcome {
                    self.pool.cluster().blame(error);
                }
                Report::LookedUp(self.node, doubt.key, outcome)
            }
        }
    }

    /// After a failure the connection is closed: it may stand in the middle of an answer.
    fn checked<T>(&mut self, outcome: Result<T>) -> Result<T> {
        outcome.inspect_err(|error| {
            self.pool.cluster().blame(error);
            self.pool.drop_node(self.node);
        })
    }

    fn open(&mut self, keys: Vec<LaneKey>) -> Result<Vec<(LaneKey, Result<i64>)>> {
        if keys.is_empty() {
            // A connection that the broker closed while nothing was asked is replaced.
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
            let error = KafkaError::Timeout { request: "Produce", broker: connection.broker().clone(), waited };
            if waited >= timeout || cluster.leads_elsewhere(self.node, &led, &error) {
                return Err(error);
            }
        }
    }
}

/// Produce v8 with acks=all. The lanes come sorted, so those of one topic stand together.
fn produce_request(batches: Vec<(LaneKey, Bytes)>, timeout: Duration) -> ProduceRequest {
    let mut topics: Vec<TopicProduceData> = Vec::new();
    for ((topic, partition), bytes) in batches {
        let data = PartitionProduceData::default().with_index(partition).with_records(Some(bytes));
        match topics.last_mut() {
            Some(last) if **last.name == *topic => last.partition_data.push(data),
            _ => topics.push(TopicProduceData::default().with_name(topic_name(&topic)).with_partition_data(vec![data])),
        }
    }
    // The broker waits for its replicas a little less than we wait for the broker.
    let timeout_ms = i32::try_from((timeout * 4 / 5).as_millis()).unwrap_or(i32::MAX);
    ProduceRequest::default()
        .with_transactional_id(None)
        .with_acks(-1)
        .with_timeout_ms(timeout_ms)
        .with_topic_data(topics)
}
