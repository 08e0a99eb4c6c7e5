//! Where partitions begin, end, and stood at a time (ListOffsets v4, KIP-79).
//!
//! Asks each leader once; repeats nothing. Called by reader, producer and admin.

use std::collections::BTreeMap;
use std::time::SystemTime;

use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{BrokerId, ListOffsetsRequest};

use super::cluster::topic_name;
use super::error::{ErrorCode, Result};
use super::pool::Pool;
use super::records;

const VERSION: i16 = 4;

/// A position to be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// The first record still kept.
    Start,
    /// Behind the last record.
    End,
    /// The first record at or after this time; the end when there is none.
    Time(SystemTime),
}

impl Position {
    /// The protocol's field: milliseconds since 1970, or one of its two marks.
    fn timestamp(self) -> i64 {
        match self {
            Self::Start => -2,
            Self::End => -1,
            Self::Time(time) => records::milliseconds(time),
        }
    }
}

/// Looks the position up in each of `partitions` of the topic.
pub(super) fn list(
    pool: &mut Pool,
    topic: &str,
    partitions: impl IntoIterator<Item = i32>,
    position: Position,
) -> Result<BTreeMap<i32, i64>> {
    let mut by_leader: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for partition in partitions {
        by_leader.entry(pool.cluster().leader(topic, partition)?).or_default().push(partition);
    }
    let mut found = BTreeMap::new();
    let mut without_record = Vec::new();
    for (leader, partitions) in by_leader {
        for (partition, offset) in ask(pool, leader, topic, partitions, position)? {
            if offset < 0 {
                without_record.push(partition);
            } else {
                found.insert(partition, offset);
            }
        }
    }
    // Nothing so late in these: -1. What comes later stands at the end.
    if !without_record.is_empty() && position != Position::End {
        found.extend(list(pool, topic, without_record, Position::End)?);
    }
    Ok(found)
}

fn ask(pool: &mut Pool, leader: i32, topic: &str, partitions: Vec<i32>, position: Position) -> Result<Vec<(i32, i64)>> {
    let partitions = partitions.into_iter().map(|partition| {
        ListOffsetsPartition::default()
            .with_partition_index(partition)
            .with_current_leader_epoch(-1)
            .with_timestamp(position.timestamp())
    });
    let topics = vec![ListOffsetsTopic::default().with_name(topic_name(topic)).with_partitions(partitions.collect())];
    // Replica id -1: a client. Isolation level 0: everything replicated, as nobody writes transactions here.
    let request =
        ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_isolation_level(0).with_topics(topics);
    let timeout = pool.cluster().options().request_timeout;
    let response = pool.get(leader)?.call(VERSION, &request, timeout)?;
    let mut offsets = Vec::new();
    for partition in response.topics.into_iter().flat_map(|topic| topic.partitions) {
        ErrorCode(partition.error_code).check("ListOffsets", None)?;
        offsets.push((partition.partition_index, partition.offset));
    }
    Ok(offsets)
}
