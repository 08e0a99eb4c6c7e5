//! ListOffsets and DeleteRecords: where logs begin and end.
//!
//! Called by the dispatcher.

use std::time::Instant;

use kafka_protocol::messages::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use kafka_protocol::messages::list_offsets_request::ListOffsetsPartition;
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::{
    BrokerId, DeleteRecordsRequest, DeleteRecordsResponse, ListOffsetsRequest, ListOffsetsResponse,
};

use super::fetch::{READ_COMMITTED, wrong_epoch};
use super::rights::{Operation, Resource};
use super::state::{Caller, State};
use kafka_share::ErrorCode;

/// The replica id of clients; a debugging consumer has -2.
const CONSUMER: BrokerId = BrokerId(-1);
/// Timestamps with a special meaning (Kafka's `ListOffsetsRequest`).
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIME: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;

impl State {
    /// ListOffsets.
    pub fn list_offsets(
        &mut self,
        caller: &Caller,
        version: i16,
        request: &ListOffsetsRequest,
        now: Instant,
    ) -> ListOffsetsResponse {
        let topics = request.topics.iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|wanted| {
                let answer = ListOffsetsPartitionResponse::default().with_partition_index(wanted.partition_index);
                let committed = request.isolation_level == READ_COMMITTED;
                let reader = if request.replica_id == CONSUMER { Some(committed) } else { None };
                match self.offset_at(caller, (topic.name.as_str(), reader), wanted, now) {
                    Ok((offset, time, epoch)) => {
                        // Versions before 4 have no field for the epoch.
                        let epoch = if version < 4 { -1 } else { epoch };
                        answer.with_offset(offset).with_timestamp(time).with_leader_epoch(epoch)
                    }
                    Err(code) => {
                        answer.with_error_code(code.0).with_offset(-1).with_timestamp(-1).with_leader_epoch(-1)
                    }
                }
            });
            let partitions = partitions.collect();
            ListOffsetsTopicResponse::default().with_name(topic.name.clone()).with_partitions(partitions)
        });
        ListOffsetsResponse::default().with_topics(topics.collect())
    }

    /// Offset, time and leader epoch; -1 for a missing value. For `read_committed` readers the log ends at the last
    /// stable offset, for other clients at the high watermark. Other readers (`None`) get its real end.
    fn offset_at(
        &mut self,
        caller: &Caller,
        (topic, reader): (&str, Option<bool>),
        wanted: &ListOffsetsPartition,
        now: Instant,
    ) -> Result<(i64, i64, i32), ErrorCode> {
        self.check_right(caller, Operation::Describe, Resource::Topic(topic))?;
        let partition = self.led(topic, wanted.partition_index, caller, now)?;
        if let Some(code) = wrong_epoch(wanted.current_leader_epoch, partition.epoch) {
            return Err(code);
        }
        let (log, epoch) = (&partition.log, partition.epoch);
        let end = reader.map_or(log.end(), |committed| partition.readable(committed));
        let found = match wanted.timestamp {
            LATEST => Some((end, -1)),
            EARLIEST | EARLIEST_LOCAL => Some((log.start(), -1)),
            MAX_TIME => log.latest_time().filter(|(offset, _)| *offset < end),
            LATEST_TIERED => None,
            time => log.first_since(time).filter(|(offset, _)| *offset < end),
        };
        Ok(found.map_or((-1, -1, -1), |(offset, time)| (offset, time, epoch)))
    }

    /// DeleteRecords: moves the starts of logs.
    pub fn delete_records(
        &mut self,
        caller: &Caller,
        request: &DeleteRecordsRequest,
        now: Instant,
    ) -> DeleteRecordsResponse {
        let topics = request.topics.iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|wanted| {
                let deleted =
                    self.delete_before(caller, topic.name.as_str(), wanted.partition_index, wanted.offset, now);
                let answer = DeleteRecordsPartitionResult::default().with_partition_index(wanted.partition_index);
                match deleted {
                    Ok(start) => answer.with_low_watermark(start),
                    Err(code) => answer.with_error_code(code.0).with_low_watermark(-1),
                }
            });
            let partitions = partitions.collect();
            DeleteRecordsTopicResult::default().with_name(topic.name.clone()).with_partitions(partitions)
        });
        DeleteRecordsResponse::default().with_topics(topics.collect())
    }

    fn delete_before(
        &mut self,
        caller: &Caller,
        topic: &str,
        index: i32,
        offset: i64,
        now: Instant,
    ) -> Result<i64, ErrorCode> {
        const TO_THE_END: i64 = -1;
        self.check_right(caller, Operation::Delete, Resource::Topic(topic))?;
        let partition = self.led(topic, index, caller, now)?;
        let (log, end) = (&mut partition.log, partition.high_watermark);
        let offset = if offset == TO_THE_END { end } else { offset };
        if !(0..=end).contains(&offset) {
            return Err(ErrorCode::OFFSET_OUT_OF_RANGE);
        }
        log.delete_before(offset);
        Ok(log.start())
    }
}
