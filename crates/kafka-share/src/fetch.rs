//! Fetch requests and their responses (Fetch v11, without a fetch session).
//!
//! Encodes and decodes; sends nothing. Called by the reader, and by the producer when it searches the log for its own
//! batches.

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse};

use super::cluster::topic_name;
use super::error::{ErrorCode, Result};

pub(super) const VERSION: i16 = 11;

/// Limits of one response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How long the broker waits for a first record.
    pub(super) max_wait: Duration,
    /// Bytes of the whole response and of each partition in it. At least one batch always comes, however large.
    pub(super) max_bytes: i32,
    /// Bytes that the broker waits for, at most for `max_wait`.
    pub(super) min_bytes: i32,
}

/// One partition's part of a response.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    pub(super) partition: i32,
    pub(super) code: ErrorCode,
    /// The offset after the last record that every in-sync replica has; records from here on cannot be read yet.
    pub(super) high_watermark: i64,
    /// Whole batches; the last one can be cut.
    pub(super) bytes: Bytes,
    /// Producer id and first offset of each aborted transaction; only readers of committed records get them.
    pub(super) aborted: Vec<(i64, i64)>,
}

/// Kafka's isolation level `read_committed`: a response ends before the first open transaction.
const READ_COMMITTED: i8 = 1;

/// Makes a request for these partitions of the topic, each from its offset.
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
    // Replica id -1: a client. Session id 0 and epoch -1: no fetch session, so each request names all its partitions.
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

/// As [`request`], for committed records.
pub(super) fn request_committed(topic: &str, wanted: &[(i32, i64)], limits: Limits) -> FetchRequest {
    request(topic, wanted, limits).with_isolation_level(READ_COMMITTED)
}

/// Returns the partitions of a response; `Err` if the broker refused the whole request.
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
