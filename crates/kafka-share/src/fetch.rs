//! One Fetch request and its answer (Fetch v11, KIP-392 and before; without a fetch session).
//!
//! Builds and takes apart; sends nothing. Used by the reader and by the producer, which looks for its own batches.

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse};

use super::cluster::topic_name;
use super::error::{ErrorCode, Result};

pub(super) const VERSION: i16 = 11;

/// What one answer may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How long the broker waits for a first record.
    pub(super) max_wait: Duration,
    /// Bytes of the whole answer and of each partition in it. One batch always comes, however large.
    pub(super) max_bytes: i32,
    /// Bytes that the broker waits for, `max_wait` at the most.
    pub(super) min_bytes: i32,
}

/// One partition's share of an answer.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    pub(super) partition: i32,
    pub(super) code: ErrorCode,
    /// Behind the last record that every replica in sync has: what can be read ends here.
    pub(super) high_watermark: i64,
    /// Whole batches, the last one perhaps cut.
    pub(super) bytes: Bytes,
    /// Producer id and first offset of each aborted transaction in it; only told to readers of committed records.
    pub(super) aborted: Vec<(i64, i64)>,
}

/// Kafka's isolation level `read_committed`: an answer ends before the first open transaction.
const READ_COMMITTED: i8 = 1;

/// A request for these partitions of the topic, each from its offset on.
pub(super) fn request(topic: &str, wanted: &[(i32, i64)], limits: Limits) -> FetchRequest {
    let partitions = wanted.iter().map(|(partition, offset)| {
        FetchPartition::default()
            .with_partition(*partition)
            .with_current_leader_epoch(-1)
            .with_fetch_offset(*offset)
            .with_log_start_offset(-1)
            .with_partition_max_bytes(limits.max_bytes)
    });
    let topic = FetchTopic::default().with_topic(topic_name(topic)).with_partitions(partitions.collect());
    // Replica id -1: a client. Session id 0 and epoch -1: no fetch session, each request says all it wants.
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(i32::try_from(limits.max_wait.as_millis()).unwrap_or(i32::MAX))
        .with_min_bytes(limits.min_bytes)
        .with_max_bytes(limits.max_bytes)
        .with_isolation_level(0)
        .with_session_id(0)
        .with_session_epoch(-1)
        .with_topics(vec![topic])
}

/// The same for committed records.
pub(super) fn request_committed(topic: &str, wanted: &[(i32, i64)], limits: Limits) -> FetchRequest {
    request(topic, wanted, limits).with_isolation_level(READ_COMMITTED)
}

/// The partitions of an answer; `Err` when the request as a whole was refused.
pub(super) fn open(response: FetchResponse) -> Result<Vec<Fetched>> {
    ErrorCode(response.error_code).check("Fetch", None)?;
    let partitions = response.responses.into_iter().flat_map(|topic| topic.partitions);
    Ok(partitions
        .map(|partition| Fetched {
            partition: partition.partition_index,
            code: ErrorCode(partition.error_code),
            high_watermark: partition.high_watermark,
            bytes: partition.records.unwrap_or_default(),
            aborted: partition
                .aborted_transactions
                .into_iter()
                .flatten()
                .map(|aborted| (aborted.producer_id.0, aborted.first_offset))
                .collect(),
        })
        .collect())
}
