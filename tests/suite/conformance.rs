//! Responses of Apache Kafka 4.4 to single requests. The same tests run on both brokers, so that the embedded broker
//! answers like Kafka wherever the programs or the tests of faults depend on it.
//!
//! `kafka-share` encodes the requests that it knows; `kafka_protocol` encodes the others.

mod compression;
mod connections;
mod groups;
mod logins;
mod pose;
mod rights;
mod topics;
mod transactions;

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        AlterShareGroupOffsetsRequest, ApiKey, ApiVersionsResponse, CreateTopicsRequest,
        DescribeShareGroupOffsetsRequest, FetchRequest, FindCoordinatorRequest, GroupId,
        IncrementalAlterConfigsRequest, InitProducerIdRequest, ListOffsetsRequest, MetadataRequest, ProduceRequest,
        ShareGroupHeartbeatRequest, TopicName, TransactionalId,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        describe_share_group_offsets_request::{
            DescribeShareGroupOffsetsRequestGroup, DescribeShareGroupOffsetsRequestTopic,
        },
        fetch_request::{FetchPartition, FetchTopic},
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        metadata_request::MetadataRequestTopic,
        produce_request::{PartitionProduceData, TopicProduceData},
    },
    protocol::{Decodable, StrBytes},
};
use kafka_share::{
    records::{self, BatchIdentity, RecordContent},
    share_wire::{self, Acknowledgement, Acknowledgements, FetchLimits, SessionHeader, SharePartition},
};
use uuid::Uuid;

use crate::support::{
    Rig, SOON, admin, eventually,
    session::{self, be_parked},
    wire::Wire,
};

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn topic_name(name: &str) -> TopicName {
    TopicName(text(name))
}

/// A batch with this many records.
fn batch(count: usize, producer_id: i64, producer_epoch: i16, base_sequence: i32, time: SystemTime) -> Bytes {
    let value = Bytes::from_static(b"a value of some length");
    let contents = (0..count).map(|_| RecordContent { key: None, value: Some(&value), headers: &[] });
    records::encode(contents, BatchIdentity { producer_id, producer_epoch, base_sequence }, time).expect("small")
}

fn plain(count: usize) -> Bytes {
    batch(count, -1, -1, -1, SystemTime::now())
}

/// Returns error code and first offset.
fn produce(wire: &mut Wire, topic: &str, records: Bytes) -> (i16, i64) {
    session::produce_to(wire, (topic, 0), records, -1)
}

/// A topic with one partition.
struct Place {
    rig: Rig,
    wire: Wire,
    topic: String,
}

impl Place {
    fn new(name: &str) -> Place {
        Place::on(Rig::shared(name), &[])
    }

    fn on(rig: Rig, configs: &[(&str, &str)]) -> Place {
        let topic = rig.tasks();
        admin::create_topic(rig.broker().address(), &topic, 1, configs);
        let wire = Wire::connect(rig.broker().address());
        Place { wire, topic, rig }
    }

    fn produce(&mut self, count: usize) -> i64 {
        let (error, offset) = produce(&mut self.wire, &self.topic, plain(count));
        assert_eq!(error, 0);
        offset
    }

    fn topic_id(&mut self) -> Uuid {
        let topic = MetadataRequestTopic::default().with_name(Some(topic_name(&self.topic)));
        let answer = self.wire.call(12, &MetadataRequest::default().with_topics(Some(vec![topic])));
        answer.topics[0].topic_id
    }

    /// A group that starts at the earliest offset and assigns partitions without delay, with the member `first`.
    fn group(&mut self, configs: &[(&str, &str)]) -> Group<'_> {
        let id = self.rig.group();
        eventually(SOON, "the group has a coordinator", || {
            let request = FindCoordinatorRequest::default().with_key(text(&id));
            self.wire.call(3, &request).error_code == 0
        });
        let own = [("share.auto.offset.reset", "earliest"), ("share.assignment.interval.ms", "0")];
        for (key, value) in own.iter().chain(configs) {
            assert_eq!(alter(&mut self.wire, admin::Of::Group, &id, key, Some(value)), 0, "{key}");
        }
        let partition = SharePartition { topic_id: self.topic_id(), partition: 0 };
        // Without a member the group has no state for the partition.
        eventually(SOON, "the partition is assigned", || {
            let (error, _, assigned) = self.beat(&id, "first", 0);
            error == 0 && assigned == Some(1)
        });
        Group { place: self, id, partition }
    }

    /// Sends a heartbeat; returns error code, member epoch, and the number of partitions if there is an assignment.
    fn beat(&mut self, group: &str, member: &str, epoch: i32) -> (i16, i32, Option<usize>) {
        let request = ShareGroupHeartbeatRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_member_id(text(member))
            .with_member_epoch(epoch)
            .with_rack_id(None)
            .with_subscribed_topic_names((epoch == 0).then(|| vec![topic_name(&self.topic)]));
        let answer = self.wire.call(1, &request);
        let assigned =
            answer.assignment.map(|all| all.topic_partitions.iter().map(|topic| topic.partitions.len()).sum());
        (answer.error_code, answer.member_epoch, assigned)
    }
}

struct Group<'a> {
    place: &'a mut Place,
    id: String,
    partition: SharePartition,
}

impl Group<'_> {
    fn member(&self, name: &'static str) -> Member {
        let wire = Wire::connect(self.place.rig.broker().address());
        Member { wire, group: self.id.clone(), name, epoch: 0, partition: self.partition }
    }

    /// A member with an open session.
    fn open(&self, name: &'static str) -> Member {
        let mut member = self.member(name);
        assert_eq!(member.fetch(0, 0, &[]).error, 0);
        member
    }

    /// Returns error code and start offset.
    fn offsets(&mut self) -> (i16, i64) {
        let topic = topic_name(&self.place.topic);
        let topics = DescribeShareGroupOffsetsRequestTopic::default().with_topic_name(topic).with_partitions(vec![0]);
        let group = DescribeShareGroupOffsetsRequestGroup::default().with_group_id(GroupId(text(&self.id)));
        let request =
            DescribeShareGroupOffsetsRequest::default().with_groups(vec![group.with_topics(Some(vec![topics]))]);
        let answer = self.place.wire.call(0, &request);
        let start = answer.groups[0].topics.first().map_or(-1, |topic| topic.partitions[0].start_offset);
        (answer.groups[0].error_code, start)
    }

    fn lag(&self) -> Option<i64> {
        admin::share_lag(self.place.rig.broker().address(), &self.id, &self.place.topic)
    }
}

/// A share session of one member on one partition.
struct Member {
    wire: Wire,
    group: String,
    name: &'static str,
    epoch: i32,
    partition: SharePartition,
}

/// A ShareFetch response.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    error: i16,
    /// Errors of the partition: of its fetch, of its acknowledgements.
    fetch_error: i16,
    acknowledge_error: i16,
    /// First offset, last offset, delivery count.
    acquired: Vec<(i64, i64, i16)>,
}

impl Member {
    fn said(&self, said: &[(i64, Acknowledgement)]) -> Acknowledgements {
        if said.is_empty() {
            return Acknowledgements::new();
        }
        Acknowledgements::from([(self.partition, said.iter().copied().collect())])
    }

    fn header(&self) -> SessionHeader<'_> {
        SessionHeader { group: &self.group, member: self.name, epoch: self.epoch }
    }

    fn send_fetch(&mut self, max_records: i32, wait_ms: u64, said: &[(i64, Acknowledgement)]) {
        let limits = FetchLimits { max_wait: Duration::from_millis(wait_ms), max_bytes: 1 << 20, max_records };
        let added: &[SharePartition] = if self.epoch == 0 { &[self.partition] } else { &[] };
        let body = share_wire::encode_fetch(self.header(), limits, added, &[], &self.said(said)).expect("encodable");
        self.wire.send(ApiKey::ShareFetch as i16, 2, 2, &body);
        self.epoch += i32::from(self.epoch >= 0);
    }

    fn fetched(&mut self) -> Said {
        let body = self.wire.receive(1).expect("a response");
        let answer = share_wire::decode_fetch(body).expect("readable");
        let mut said = Said { error: answer.error_code, fetch_error: 0, acknowledge_error: 0, acquired: Vec::new() };
        for data in answer.responses.iter().flat_map(|topic| &topic.partitions) {
            (said.fetch_error, said.acknowledge_error) = (data.error_code, data.acknowledge_error_code);
            let ranges = data.acquired_records.iter();
            said.acquired.extend(ranges.map(|range| (range.first_offset, range.last_offset, range.delivery_count)));
        }
        said
    }

    fn fetch(&mut self, max_records: i32, wait_ms: u64, said: &[(i64, Acknowledgement)]) -> Said {
        self.send_fetch(max_records, wait_ms, said);
        self.fetched()
    }

    /// Fetches until records come; Kafka may need a moment to read a group's state.
    fn eventually(&mut self, max_records: i32) -> Vec<(i64, i64, i16)> {
        let deadline = Instant::now() + SOON;
        loop {
            let got = self.fetch(max_records, 100, &[]);
            if !got.acquired.is_empty() || Instant::now() > deadline {
                return got.acquired;
            }
        }
    }

    /// Returns the errors of the request and of the partition.
    fn acknowledge(&mut self, said: &[(i64, Acknowledgement)]) -> (i16, i16) {
        let body = share_wire::encode_acknowledge(self.header(), &self.said(said)).expect("encodable");
        self.wire.send(ApiKey::ShareAcknowledge as i16, 2, 2, &body);
        self.epoch += i32::from(self.epoch >= 0);
        let answer = self.wire.receive(1).expect("a response");
        let (answer, _) = share_wire::decode_acknowledge(&answer).expect("readable");
        let partition = answer.responses.first().map_or(0, |topic| topic.partitions[0].error_code);
        (answer.error_code, partition)
    }

    fn close(&mut self) -> (i16, i16) {
        self.epoch = -1;
        self.acknowledge(&[])
    }
}

use Acknowledgement::{Accept, Release, Renew};

/// Returns error code and records.
pub fn fetch(wire: &mut Wire, topic: &str, offset: i64, wait_ms: i32, max_bytes: i32) -> (i16, Bytes) {
    let partition = FetchPartition::default().with_current_leader_epoch(-1).with_fetch_offset(offset);
    let partition = partition.with_partition_max_bytes(max_bytes);
    let topic = FetchTopic::default().with_topic(topic_name(topic)).with_partitions(vec![partition]);
    let request = FetchRequest::default().with_max_bytes(1 << 20).with_min_bytes(1).with_max_wait_ms(wait_ms);
    let answer = wire.call(11, &request.with_session_epoch(-1).with_topics(vec![topic]));
    let data = &answer.responses[0].partitions[0];
    (data.error_code, data.records.clone().unwrap_or_default())
}

fn alter(wire: &mut Wire, of: admin::Of, name: &str, key: &str, value: Option<&str>) -> i16 {
    let operation = i8::from(value.is_none());
    let config =
        AlterableConfig::default().with_name(text(key)).with_config_operation(operation).with_value(value.map(text));
    let resource = AlterConfigsResource::default().with_resource_type(of as i8).with_resource_name(text(name));
    let resource = resource.with_configs(vec![config]);
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    wire.call(1, &request).responses[0].error_code
}
