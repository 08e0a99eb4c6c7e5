//! Fetch: records for readers without a group.
//!
//! A `read_committed` reader gets records up to the last stable offset, and the list of aborted transactions among them
//! (KIP-98). Each call returns the records that exist now; [`core`](super::core) waits for more. Every response is
//! complete: there are no fetch sessions (KIP-227), which Kafka may also refuse. Called by the dispatcher.

use std::time::Instant;

use bytes::Bytes;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, FetchableTopicResponse, LeaderIdAndEpoch, PartitionData,
};
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse, ProducerId};

use super::rights::{Operation, Resource};
use super::state::{Caller, State};
use kafka_share::ErrorCode;

/// From this version on, topics are named by their ids (KIP-516).
const TOPIC_IDS: i16 = 13;

/// Kafka's isolation level `read_committed`.
pub(super) const READ_COMMITTED: i8 = 1;

/// Records read from one partition.
struct Read {
    records: Bytes,
    start: i64,
    end: i64,
    last_stable: i64,
    /// Only for a `read_committed` reader.
    aborted: Option<Vec<AbortedTransaction>>,
}

/// Result of a fetch.
pub(super) struct Found {
    pub response: FetchResponse,
    /// Bytes of records, and whether the response must not wait.
    pub bytes: usize,
    pub urgent: bool,
}

impl State {
    /// Reads every requested partition, up to the limits.
    pub fn fetch(&mut self, caller: &Caller, version: i16, request: &FetchRequest, now: Instant) -> Found {
        let cap = usize::try_from(self.settings.number("fetch.max.bytes")).unwrap_or(usize::MAX);
        let mut room = usize::try_from(request.max_bytes).unwrap_or(0).min(cap);
        let committed = request.isolation_level == READ_COMMITTED;
        let (mut bytes, mut urgent) = (0, false);
        let mut responses = Vec::new();
        for topic in &request.topics {
            let mut partitions = Vec::new();
            for wanted in &topic.partitions {
                let name = self.fetched_topic(topic, version);
                let read = name.and_then(|name| self.read(caller, (&name, committed), wanted, room, bytes == 0, now));
                urgent |= read.is_err();
                let data = partition_data(wanted, read);
                let length = data.records.as_ref().map_or(0, Bytes::len);
                bytes += length;
                room = room.saturating_sub(length);
                partitions.push(data);
            }
            let answer =
                FetchableTopicResponse::default().with_topic(topic.topic.clone()).with_topic_id(topic.topic_id);
            responses.push(answer.with_partitions(partitions));
        }
        Found { response: FetchResponse::default().with_responses(responses), bytes, urgent }
    }

    fn fetched_topic(&self, topic: &FetchTopic, version: i16) -> Result<String, ErrorCode> {
        if version >= TOPIC_IDS {
            return self.topic_name(topic.topic_id).ok_or(ErrorCode::UNKNOWN_TOPIC_ID);
        }
        Ok(topic.topic.as_str().to_owned())
    }

    fn read(
        &mut self,
        caller: &Caller,
        (topic, committed): (&str, bool),
        wanted: &FetchPartition,
        room: usize,
        first: bool,
        now: Instant,
    ) -> Result<Read, ErrorCode> {
        self.check_right(caller, Operation::Read, Resource::Topic(topic))?;
        let partition = self.led(topic, wanted.partition, caller, now)?;
        let (log, from) = (&partition.log, wanted.fetch_offset);
        let (start, end) = (log.start(), partition.high_watermark);
        let last_stable = partition.readable(true);
        if let Some(code) = wrong_epoch(wanted.current_leader_epoch, partition.epoch) {
            return Err(code);
        }
        if !(start..=log.end()).contains(&from) {
            return Err(ErrorCode::OFFSET_OUT_OF_RANGE);
        }
        let limit = usize::try_from(wanted.partition_max_bytes).unwrap_or(0).min(room);
        // The first batch of a response comes whole, however large: otherwise a reader could not get past it (KIP-74).
        let readable = partition.readable(committed);
        let records = log.read(from, readable, limit, first);
        let aborted = log.aborted(from, readable).map(|aborted| {
            AbortedTransaction::default()
                .with_producer_id(ProducerId(aborted.producer_id))
                .with_first_offset(aborted.first)
        });
        let aborted = committed.then(|| aborted.collect());
        Ok(Read { records, start, end, last_stable, aborted })
    }
}

/// Returns the error for a caller that knows another leader epoch (KIP-320).
pub(super) fn wrong_epoch(known: i32, epoch: i32) -> Option<ErrorCode> {
    match known {
        -1 => None,
        known if known < epoch => Some(ErrorCode::FENCED_LEADER_EPOCH),
        known if known > epoch => Some(ErrorCode::UNKNOWN_LEADER_EPOCH),
        _ => None,
    }
}

fn partition_data(wanted: &FetchPartition, read: Result<Read, ErrorCode>) -> PartitionData {
    let data = PartitionData::default().with_partition_index(wanted.partition).with_aborted_transactions(None);
    let nobody = LeaderIdAndEpoch::default().with_leader_id(BrokerId(-1)).with_leader_epoch(-1);
    let data = data.with_current_leader(nobody).with_preferred_read_replica(BrokerId(-1));
    match read {
        Ok(read) => data
            .with_records(Some(read.records))
            .with_high_watermark(read.end)
            .with_last_stable_offset(read.last_stable)
            .with_log_start_offset(read.start)
            .with_aborted_transactions(read.aborted),
        Err(code) => data
            .with_error_code(code.0)
            .with_records(Some(Bytes::new()))
            .with_high_watermark(-1)
            .with_last_stable_offset(-1)
            .with_log_start_offset(-1),
    }
}
