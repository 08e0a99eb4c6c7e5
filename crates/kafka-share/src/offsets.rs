//! Offsets of partitions: their start, their end, and the first record after a time (ListOffsets v7, KIP-79 and
//! KIP-734).
//!
//! Asks each leader once and repeats nothing. Called by reader, producer and admin.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{BrokerId, ListOffsetsRequest};

use super::cluster::topic_name;
use super::error::{ErrorCode, KafkaError, Result};
use super::pool::Pool;
use super::records;

const VERSION: i16 = 7;

/// A position to be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// The first record that is still kept.
    Start,
    /// After the last record.
    End,
    /// The end of the leader's log, including records not replicated yet.
    LogEnd,
    /// After the last record before the first open transaction.
    CommittedEnd,
    /// The first readable record at or after this time, else the end.
    Time(SystemTime),
    /// The record with the latest time (KIP-734), also if it is not replicated yet.
    Latest,
}

impl Position {
    /// The protocol's field: milliseconds since 1970, or a negative constant.
    fn timestamp(self) -> i64 {
        match self {
            Self::Start => -2,
            Self::End | Self::LogEnd | Self::CommittedEnd => -1,
            Self::Latest => -3,
            Self::Time(time) => records::milliseconds(time),
        }
    }
}

/// Result for one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    partition: i32,
    /// -1 without a matching record.
    offset: i64,
    /// Time of the record found; -1 for start and end.
    timestamp: i64,
}

/// Looks `position` up in each of `partitions`.
pub(super) fn list(
    pool: &mut Pool,
    topic: &str,
    partitions: impl IntoIterator<Item = i32>,
    position: Position,
) -> Result<BTreeMap<i32, i64>> {
    let partitions: Vec<i32> = partitions.into_iter().collect();
    let mut offsets = BTreeMap::new();
    if matches!(position, Position::Time(_)) {
        // For partitions without a matching record. Asked first: a record that becomes readable between the two
        // requests is not before this end.
        let ends = ask_leaders(pool, topic, partitions.iter().copied(), Position::End)?;
        offsets.extend(ends.iter().map(|end| (end.partition, end.offset)));
    }
    let found = ask_leaders(pool, topic, partitions, position)?;
    offsets.extend(found.iter().filter(|found| found.offset >= 0).map(|found| (found.partition, found.offset)));
    Ok(offsets)
}

/// Looks up where the records of the last `age` begin in each of `partitions`. The age counts back from the partition's
/// latest record, or from `no_later_than` if that is earlier. Without `no_later_than` only the clock that dated the
/// records counts. A log without a record begins at its start. No position is after the last readable record.
pub(super) fn list_back_from_latest(
    pool: &mut Pool,
    topic: &str,
    partitions: impl IntoIterator<Item = i32>,
    age: Duration,
    no_later_than: Option<SystemTime>,
) -> Result<BTreeMap<i32, i64>> {
    let mut offsets = BTreeMap::new();
    for latest in ask_leaders(pool, topic, partitions, Position::Latest)? {
        let latest_time = records::time(latest.timestamp);
        let now = no_later_than.map_or(latest_time, |time| time.min(latest_time));
        let since = now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let position = if latest.offset < 0 { Position::Start } else { Position::Time(since) };
        offsets.extend(list(pool, topic, [latest.partition], position)?);
    }
    Ok(offsets)
}

/// Asks this node for [`Position::LogEnd`].
pub(super) fn log_end(pool: &mut Pool, node: i32, topic: &str, partition: i32) -> Result<i64> {
    let found = ask(pool, node, topic, vec![partition], Position::LogEnd)?;
    found.first().map(|found| found.offset).ok_or_else(|| {
        KafkaError::broker("ListOffsets", ErrorCode::UNKNOWN_SERVER_ERROR, Some("no answer for a partition"))
    })
}

fn ask_leaders(
    pool: &mut Pool,
    topic: &str,
    partitions: impl IntoIterator<Item = i32>,
    position: Position,
) -> Result<Vec<Found>> {
    let mut by_leader: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for partition in partitions {
        by_leader.entry(pool.cluster().leader(topic, partition)?).or_default().push(partition);
    }
    let mut found = Vec::new();
    for (leader, partitions) in by_leader {
        found.extend(ask(pool, leader, topic, partitions, position)?);
    }
    Ok(found)
}

fn ask(pool: &mut Pool, leader: i32, topic: &str, partitions: Vec<i32>, position: Position) -> Result<Vec<Found>> {
    let partitions = partitions.into_iter().map(|partition| {
        ListOffsetsPartition::default()
            .with_partition_index(partition)
            .with_current_leader_epoch(-1)
            .with_timestamp(position.timestamp())
    });
    let topics = vec![ListOffsetsTopic::default().with_name(topic_name(topic)).with_partitions(partitions.collect())];
    // For a client (-1) the log ends at the high watermark: a latest record that is not replicated yet is answered with
    // offset -1, like an empty log. For a debugging consumer (-2) all records count (`ReplicaManager.fetchOffset`).
    let replica = BrokerId(if matches!(position, Position::LogEnd | Position::Latest) { -2 } else { -1 });
    // Isolation level 0: all replicated records; 1: only committed ones.
    let isolation = i8::from(position == Position::CommittedEnd);
    let request =
        ListOffsetsRequest::default().with_replica_id(replica).with_isolation_level(isolation).with_topics(topics);
    let timeout = pool.cluster().options().request_timeout;
    let response = pool.get(leader)?.call(VERSION, &request, timeout)?;
    let mut found = Vec::new();
    for answer in response.topics.into_iter().flat_map(|topic| topic.partitions) {
        ErrorCode(answer.error_code).check("ListOffsets", None)?;
        found.push(Found { partition: answer.partition_index, offset: answer.offset, timestamp: answer.timestamp });
    }
    Ok(found)
}
