//! Produce: appends batches to the logs.
//!
//! Called by the dispatcher.

use std::time::Instant;

use bytes::Bytes;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::{LeaderIdAndEpoch, PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{BrokerId, ProduceRequest, ProduceResponse, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::batch::Batch;
use super::rights::{Operation, Resource};
use super::state::{Caller, State};
use kafka_share::ErrorCode;

/// From this version on, topics are named by their ids (KIP-516).
const TOPIC_IDS: i16 = 13;
/// `acks=all`: all in-sync replicas have the batch before the response.
pub(super) const ALL: i16 = -1;

impl State {
    /// Appends each partition's batch; each has its own outcome.
    pub fn produce(
        &mut self,
        caller: &Caller,
        version: i16,
        request: &ProduceRequest,
        now: Instant,
        now_ms: i64,
    ) -> ProduceResponse {
        let responses = request.topic_data.iter().map(|topic| {
            let name = self.produced_topic(topic, version);
            let partitions = topic.partition_data.iter().map(|partition| {
                let index = partition.index;
                let appended = name.clone().and_then(|name| {
                    self.check_right(caller, Operation::Write, Resource::Topic(&name))?;
                    check_acks(request.acks)?;
                    let id = request.transactional_id.as_ref().map(|id| id.as_str());
                    self.append(caller, (&name, id), partition, request.acks, now, now_ms)
                });
                self.produced(name.as_deref().unwrap_or_default(), index, appended)
            });
            let partitions = partitions.collect();
            TopicProduceResponse::default()
                .with_name(topic.name.clone())
                .with_topic_id(topic.topic_id)
                .with_partition_responses(partitions)
        });
        ProduceResponse::default().with_responses(responses.collect())
    }

    pub fn produced_topic(&self, topic: &TopicProduceData, version: i16) -> Result<String, ErrorCode> {
        if version >= TOPIC_IDS {
            return self.topic_name(topic.topic_id).ok_or(ErrorCode::UNKNOWN_TOPIC_ID);
        }
        Ok(topic.name.as_str().to_owned())
    }

    /// Appends a batch. Returns its offset, and its time if the broker's time applies.
    fn append(
        &mut self,
        caller: &Caller,
        (topic, transactional_id): (&str, Option<&str>),
        data: &PartitionProduceData,
        acks: i16,
        now: Instant,
        now_ms: i64,
    ) -> Result<(i64, i64), ErrorCode> {
        self.check_in_sync(topic, data.index, caller, acks, now)?;
        let limit = usize::try_from(self.topic_number(topic, "max.message.bytes")).unwrap_or(usize::MAX);
        let segment = usize::try_from(self.topic_number(topic, "segment.bytes")).unwrap_or(usize::MAX);
        let batch = Batch::of_request(data.records.as_ref().unwrap_or(&Bytes::new()), limit)?;
        self.check_transaction(transactional_id, &batch, topic, data.index)?;
        let batch = batch.compressed_as(self.topic_text(topic, "compression.type"), self.settings.memory_limit)?;
        if batch.bytes().len() > limit {
            return Err(ErrorCode::MESSAGE_TOO_LARGE);
        }
        if batch.bytes().len() > segment {
            return Err(ErrorCode::RECORD_LIST_TOO_LARGE);
        }
        let broker_time = self.topic_text(topic, "message.timestamp.type") == "LogAppendTime";
        if !broker_time {
            self.check_time(topic, batch.max_timestamp(), now_ms)?;
        }
        let known = batch.mark().map(|mark| (mark, self.led(topic, data.index, caller, now)));
        if let Some((mark, partition)) = known
            && let partition = partition?
            && let Some(offset) = partition.sequences.check(mark)?
        {
            return Ok((offset, partition.log.time_of(offset)));
        }
        if self.bytes() + batch.bytes().len() > self.settings.memory_limit {
            return Err(ErrorCode::KAFKA_STORAGE_ERROR);
        }
        let partition = self.led(topic, data.index, caller, now)?;
        let stamp = broker_time.then_some(now_ms);
        let offset = partition.log.append(&batch, partition.epoch, stamp);
        if let Some(mark) = batch.mark() {
            partition.sequences.remember(mark, offset);
        }
        if !self.is_unreplicated(topic, data.index) {
            let partition = self.led(topic, data.index, caller, now)?;
            partition.high_watermark = partition.log.end();
        }
        Ok((offset, stamp.unwrap_or(-1)))
    }

    /// Checks that this node leads the partition and that enough replicas are in sync.
    fn check_in_sync(
        &mut self,
        topic: &str,
        index: i32,
        caller: &Caller,
        acks: i16,
        now: Instant,
    ) -> Result<(), ErrorCode> {
        let least = usize::try_from(self.topic_number(topic, "min.insync.replicas")).unwrap_or(1);
        let in_sync = self.led(topic, index, caller, now)?.in_sync.len();
        if acks == ALL && in_sync < least { Err(ErrorCode::NOT_ENOUGH_REPLICAS) } else { Ok(()) }
    }

    /// Whether a silent in-sync replica lacks records of this partition.
    pub fn is_unreplicated(&self, topic: &str, index: i32) -> bool {
        let partitions = self.topics.get(topic).map(|topic| &topic.partitions);
        let partition = partitions.zip(usize::try_from(index).ok()).and_then(|(all, index)| all.get(index));
        partition.is_some_and(|partition| self.is_held_up(partition))
    }

    fn check_time(&self, topic: &str, time: i64, now_ms: i64) -> Result<(), ErrorCode> {
        let (before, after) = ("message.timestamp.before.max.ms", "message.timestamp.after.max.ms");
        let oldest = now_ms.saturating_sub(self.topic_number(topic, before));
        let newest = now_ms.saturating_add(self.topic_number(topic, after));
        // -1 means no time, which has no limits.
        if time != -1 && !(oldest..=newest).contains(&time) { Err(ErrorCode::INVALID_TIMESTAMP) } else { Ok(()) }
    }

    fn produced(&self, topic: &str, index: i32, appended: Result<(i64, i64), ErrorCode>) -> PartitionProduceResponse {
        let answer = PartitionProduceResponse::default().with_index(index);
        let partitions = self.topics.get(topic).map(|topic| &topic.partitions);
        let partition = partitions.zip(usize::try_from(index).ok()).and_then(|(all, index)| all.get(index));
        match appended {
            Ok((offset, time)) => answer
                .with_base_offset(offset)
                .with_log_append_time_ms(time)
                .with_log_start_offset(partition.map_or(-1, |partition| partition.log.start())),
            Err(code) => {
                let leader = partition.map_or((-1, -1), |partition| (partition.leader, partition.epoch));
                let leader = LeaderIdAndEpoch::default().with_leader_id(BrokerId(leader.0)).with_leader_epoch(leader.1);
                answer
                    .with_error_code(code.0)
                    .with_base_offset(-1)
                    .with_log_append_time_ms(-1)
                    .with_log_start_offset(-1)
                    .with_current_leader(leader)
            }
        }
    }
}

fn check_acks(acks: i16) -> Result<(), ErrorCode> {
    if (-1..=1).contains(&acks) { Ok(()) } else { Err(ErrorCode::INVALID_REQUIRED_ACKS) }
}

/// A topic's name in the codec's type.
pub(super) fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::batch::tests::batch_of;
    use super::super::settings::{Settings, Values};
    use super::*;

    const CALLER: Caller = Caller::new(1, 1);

    fn send(state: &mut State, records: Bytes) -> (i16, i64) {
        let partition = PartitionProduceData::default().with_records(Some(records));
        let topic = TopicProduceData::default().with_name(topic_name("t")).with_partition_data(vec![partition]);
        let request = ProduceRequest::default().with_acks(-1).with_topic_data(vec![topic]);
        let answer = state.produce(&CALLER, 7, &request, Instant::now(), 0);
        let done = &answer.responses[0].partition_responses[0];
        (done.error_code, done.base_offset)
    }

    #[test]
    fn full_memory_refuses_records_until_there_is_room() {
        let batch = batch_of(1, -1, -1, 0);
        let mut settings = Settings::new(Vec::new());
        settings.memory_limit = batch.len() * 2;
        let mut state = State::new(settings, vec![SocketAddr::from(([127, 0, 0, 1], 9092))]);
        state.create_topic("t", 1, 1, Values::default());
        assert_eq!([send(&mut state, batch.clone()), send(&mut state, batch.clone())], [(0, 0), (0, 1)]);
        assert_eq!(send(&mut state, batch.clone()).0, ErrorCode::KAFKA_STORAGE_ERROR.0);
        let log = state.led_by("t", 0, 1, Instant::now()).map(|partition| &mut partition.log);
        log.expect("led").delete_before(1);
        assert_eq!(send(&mut state, batch), (0, 2));
    }
}
