//! Raw share sessions, in version 1 of their requests, and the preparation of a group for them.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        ApiKey, GroupId, IncrementalAlterConfigsRequest, ProduceRequest, ShareAcknowledgeRequest, ShareFetchRequest,
        ShareFetchResponse, ShareGroupHeartbeatRequest, TopicName,
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
        produce_request::{PartitionProduceData, TopicProduceData},
        share_acknowledge_request::{AcknowledgePartition, AcknowledgeTopic, AcknowledgementBatch},
        share_fetch_request::{FetchPartition, FetchTopic, ForgottenTopic},
    },
    protocol::{Decodable, Encodable, StrBytes},
};
use kafka_share::records::{self, BatchIdentity, RecordContent};
use uuid::Uuid;

use super::{cluster::PATIENCE, eventually, wire::Wire};

pub const ACCEPT: i8 = 1;
pub const RELEASE: i8 = 2;
pub const REJECT: i8 = 3;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// Sets a new group to start at the earliest offset, and joins it with the member `first`. Waits until the member is
/// assigned this many partitions of the topic; returns its epoch. `wire` leads to the group's coordinator.
pub fn prepare_group(wire: &mut Wire, group: &str, topic: &str, partitions: i32) -> i32 {
    let mut epoch = 0;
    for (key, value) in [("share.auto.offset.reset", "earliest"), ("share.assignment.interval.ms", "0")] {
        let config = AlterableConfig::default().with_name(text(key)).with_value(Some(text(value)));
        let group = AlterConfigsResource::default().with_resource_type(32).with_resource_name(text(group));
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![group.with_configs(vec![config])]);
        assert_eq!(wire.call(1, &request).responses[0].error_code, 0, "{key}");
    }
    eventually(PATIENCE, "the partitions are assigned", || {
        let request = ShareGroupHeartbeatRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_member_id(text("first"))
            .with_subscribed_topic_names(Some(vec![TopicName(text(topic))]));
        let answer = wire.call(1, &request);
        let assigned = answer.assignment.map(|all| all.topic_partitions.iter().map(|one| one.partitions.len()).sum());
        epoch = answer.member_epoch;
        answer.error_code == 0 && assigned == usize::try_from(partitions).ok()
    });
    epoch
}

/// Produces a batch with one record, with `acks=all`; returns error code and offset.
pub fn produce(wire: &mut Wire, topic: &str, partition: i32) -> (i16, i64) {
    produce_to(wire, (topic, partition), one_record(), -1)
}

/// A batch with one record.
pub fn one_record() -> Bytes {
    let value = Bytes::from_static(b"value");
    let content = RecordContent { key: None, value: Some(&value), headers: &[] };
    let no_producer = BatchIdentity { producer_id: -1, producer_epoch: -1, base_sequence: -1 };
    records::encode([content].into_iter(), no_producer, SystemTime::now()).expect("small")
}

/// Produces these bytes to a partition; returns error code and offset.
pub fn produce_to(wire: &mut Wire, (topic, partition): (&str, i32), batch: Bytes, acks: i16) -> (i16, i64) {
    let data = PartitionProduceData::default().with_index(partition).with_records(Some(batch));
    let topic = TopicProduceData::default().with_name(TopicName(text(topic))).with_partition_data(vec![data]);
    let request = ProduceRequest::default().with_acks(acks).with_timeout_ms(25_000).with_topic_data(vec![topic]);
    let answer = wire.call(7, &request);
    let done = &answer.responses[0].partition_responses[0];
    (done.error_code, done.base_offset)
}

/// Waits until a fetch that was sent is parked at the broker; no condition shows this from outside.
pub fn be_parked() {
    std::thread::sleep(Duration::from_millis(100));
}

/// An acquired record: its offset and its delivery count.
pub type Acquired = (i64, i16);

/// A share session of one member on one topic.
pub struct Session {
    wire: Wire,
    topic: Uuid,
    group: String,
    name: String,
    /// Epoch of the next request.
    pub epoch: i32,
}

/// A ShareFetch response; for each partition: error, leader, acquired records.
#[derive(Debug)]
pub struct Told {
    pub error: i16,
    pub partitions: BTreeMap<i32, (i16, i32, Vec<Acquired>)>,
}

impl Told {
    pub fn error_of(&self, partition: i32) -> i16 {
        self.partitions.get(&partition).map_or(0, |told| told.0)
    }

    pub fn acquired(&self, partition: i32) -> Vec<Acquired> {
        self.partitions.get(&partition).map_or_else(Vec::new, |told| told.2.clone())
    }
}

impl Session {
    /// Prepares a session; its first request opens it.
    pub fn new(wire: Wire, topic: Uuid, group: &str, name: &str) -> Session {
        Session { wire, topic, group: group.to_owned(), name: name.to_owned(), epoch: 0 }
    }

    pub fn send_fetch(&mut self, wait_ms: i32, add: &[i32], forget: &[i32]) {
        let added = add.iter().map(|index| FetchPartition::default().with_partition_index(*index)).collect();
        let topics = FetchTopic::default().with_topic_id(self.topic).with_partitions(added);
        let forgotten = ForgottenTopic::default().with_topic_id(self.topic).with_partitions(forget.to_vec());
        let request = ShareFetchRequest::default()
            .with_group_id(Some(GroupId(text(&self.group))))
            .with_member_id(Some(text(&self.name)))
            .with_share_session_epoch(self.epoch)
            .with_max_wait_ms(wait_ms)
            .with_min_bytes(1)
            .with_max_bytes(1 << 20)
            .with_max_records(100)
            .with_batch_size(100)
            .with_topics(if add.is_empty() { Vec::new() } else { vec![topics] })
            .with_forgotten_topics_data(if forget.is_empty() { Vec::new() } else { vec![forgotten] });
        let mut body = BytesMut::new();
        request.encode(&mut body, 1).expect("encodable");
        self.wire.send(ApiKey::ShareFetch as i16, 1, 2, &body);
        self.epoch += 1;
    }

    pub fn told(&mut self) -> Told {
        let mut body = self.wire.receive(1).expect("a response");
        let answer = ShareFetchResponse::decode(&mut body, 1).expect("readable");
        let partitions = answer.responses.iter().flat_map(|topic| &topic.partitions).map(|data| {
            let ranges = data.acquired_records.iter();
            let records = ranges.flat_map(|range| {
                (range.first_offset..=range.last_offset).map(|offset| (offset, range.delivery_count))
            });
            (data.partition_index, (data.error_code, data.current_leader.leader_id, records.collect()))
        });
        Told { error: answer.error_code, partitions: partitions.collect() }
    }

    pub fn fetch(&mut self, wait_ms: i32, add: &[i32]) -> Told {
        self.send_fetch(wait_ms, add, &[]);
        self.told()
    }

    /// Acknowledges records: partition, offset, type. Returns the error of the request and that of each partition.
    pub fn acknowledge(&mut self, said: &[(i32, i64, i8)]) -> (i16, Vec<i16>) {
        let partitions = said.iter().map(|(partition, offset, kind)| {
            let batch = AcknowledgementBatch::default().with_first_offset(*offset).with_last_offset(*offset);
            let batch = batch.with_acknowledge_types(vec![*kind]);
            AcknowledgePartition::default().with_partition_index(*partition).with_acknowledgement_batches(vec![batch])
        });
        let topics = AcknowledgeTopic::default().with_topic_id(self.topic).with_partitions(partitions.collect());
        let request = ShareAcknowledgeRequest::default()
            .with_group_id(Some(GroupId(text(&self.group))))
            .with_member_id(Some(text(&self.name)))
            .with_share_session_epoch(self.epoch)
            .with_topics(if said.is_empty() { Vec::new() } else { vec![topics] });
        self.epoch += 1;
        let answer = self.wire.call(1, &request);
        let mut codes: Vec<(i32, i16)> = answer
            .responses
            .iter()
            .flat_map(|topic| topic.partitions.iter().map(|told| (told.partition_index, told.error_code)))
            .collect();
        codes.sort_unstable();
        (answer.error_code, codes.into_iter().map(|(_, code)| code).collect())
    }

    pub fn close(&mut self) -> i16 {
        self.epoch = -1;
        self.acknowledge(&[]).0
    }
}
