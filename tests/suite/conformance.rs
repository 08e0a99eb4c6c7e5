//! What a broker answers, request by request: facts of Apache Kafka 4.4, found by asking it. The same tests run on both brokers, so that the
//! embedded one is as the real one wherever the programs, or the tests of their faults, lean on it.
//!
//! Requests go out as `src/kafka` writes them where it has them, and raw otherwise.

mod compression;
mod connections;
mod pose;
mod rights;
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
use lastcall::kafka::{
    self, ClientOptions, Cluster,
    records::{self, BatchIdentity, RecordContent},
    share_wire::{self, Acknowledgement, Acknowledgements, FetchLimits, SessionHeader, SharePartition},
};
use uuid::Uuid;

use crate::support::{Rig, SOON, admin, eventually, wire::Wire};

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn topic_name(name: &str) -> TopicName {
    TopicName(text(name))
}

/// A batch of so many records.
fn batch(count: usize, producer_id: i64, producer_epoch: i16, base_sequence: i32, time: SystemTime) -> Bytes {
    let value = Bytes::from_static(b"a value of some length");
    let contents = (0..count).map(|_| RecordContent { key: None, value: Some(&value), headers: &[] });
    records::encode(contents, BatchIdentity { producer_id, producer_epoch, base_sequence }, time).expect("small")
}

fn plain(count: usize) -> Bytes {
    batch(count, -1, -1, -1, SystemTime::now())
}

/// Error code and first offset.
fn produce(wire: &mut Wire, topic: &str, records: Bytes) -> (i16, i64) {
    produce_with(wire, topic, records, -1)
}

fn produce_with(wire: &mut Wire, topic: &str, records: Bytes, acks: i16) -> (i16, i64) {
    let partition = PartitionProduceData::default().with_records(Some(records));
    let topic = TopicProduceData::default().with_name(topic_name(topic)).with_partition_data(vec![partition]);
    let request = ProduceRequest::default().with_acks(acks).with_timeout_ms(5000).with_topic_data(vec![topic]);
    let answer = wire.call(7, &request);
    let done = &answer.responses[0].partition_responses[0];
    (done.error_code, done.base_offset)
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

    /// A group that begins at the start, whose members are assigned at once.
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
        // A member, so that the group has something to say about the partition.
        eventually(SOON, "the partition is assigned", || {
            let (error, _, assigned) = self.beat(&id, "first", 0);
            error == 0 && assigned == Some(1)
        });
        Group { place: self, id, partition }
    }

    /// Error code, member epoch, number of partitions if the answer has an assignment.
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

    /// One whose session is open.
    fn open(&self, name: &'static str) -> Member {
        let mut member = self.member(name);
        assert_eq!(member.fetch(0, 0, &[]).error, 0);
        member
    }

    /// Error code and start offset.
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
}

impl Group<'_> {
    /// What it has left (KIP-1226).
    fn lag(&self) -> Option<i64> {
        let address = self.place.rig.broker().address().parse().expect("host:port");
        let cluster = Cluster::new(ClientOptions::new(vec![address], "lag"));
        let lags = kafka::admin::share_group_lags(&cluster, &self.id, &self.place.topic).expect("the broker tells");
        lags.get(&0).copied()
    }
}

/// One share session, as raw as it goes.
struct Member {
    wire: Wire,
    group: String,
    name: &'static str,
    epoch: i32,
    partition: SharePartition,
}

/// What a ShareFetch or a ShareAcknowledge was answered.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    error: i16,
    /// Of the partition, for what was fetched and for what was acknowledged.
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
        let body = self.wire.receive(1).expect("an answer");
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

    /// Fetches until there is something; Kafka may need a moment to read a group's state.
    fn eventually(&mut self, max_records: i32) -> Vec<(i64, i64, i16)> {
        let deadline = Instant::now() + SOON;
        loop {
            let got = self.fetch(max_records, 100, &[]);
            if !got.acquired.is_empty() || Instant::now() > deadline {
                return got.acquired;
            }
        }
    }

    /// The error of the whole, and that of the partition.
    fn acknowledge(&mut self, said: &[(i64, Acknowledgement)]) -> (i16, i16) {
        let body = share_wire::encode_acknowledge(self.header(), &self.said(said)).expect("encodable");
        self.wire.send(ApiKey::ShareAcknowledge as i16, 2, 2, &body);
        self.epoch += i32::from(self.epoch >= 0);
        let answer = self.wire.receive(1).expect("an answer");
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

/// No condition can be seen from outside: a fetch that was sent waits at the broker by then.
fn be_parked() {
    std::thread::sleep(Duration::from_millis(100));
}

#[test]
fn requests_that_are_not_known() {
    let rig = Rig::shared("is-unknown");
    let broker = rig.broker().address();
    for (key, version) in [(999, 0), (0, 2), (0, 14), (1, 3), (3, 14), (78, 3), (76, 0)] {
        assert!(Wire::connect(broker).hangs_up_at(key, version), "{key} {version}");
    }
    let mut wire = Wire::connect(broker);
    wire.send(18, 99, 2, b"");
    let mut answer = wire.receive(0).expect("answered in version 0");
    assert_eq!(ApiVersionsResponse::decode(&mut answer, 0).expect("readable").error_code, 35);
}

#[test]
fn topics_are_created_once_and_with_what_kafka_knows() {
    let mut place = Place::new("is-topics");
    let mut create = |name: &str, partitions: i32, replicas: i16, config: Option<(&str, &str)>| {
        let configs = config
            .map(|(key, value)| CreatableTopicConfig::default().with_name(text(key)).with_value(Some(text(value))));
        let topic = CreatableTopic::default()
            .with_name(topic_name(name))
            .with_num_partitions(partitions)
            .with_replication_factor(replicas)
            .with_configs(configs.into_iter().collect());
        let request =
            CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(5000).with_validate_only(true);
        place.wire.call(7, &request).topics[0].error_code
    };
    let (there, new) = (place.rig.tasks(), "is-new");
    assert_eq!(create(&there, 1, 1, None), 36);
    assert_eq!(create("no/name", 1, 1, None), 17);
    assert_eq!(create("", 1, 1, None), 17);
    assert_eq!(create(new, 0, 1, None), 37);
    assert_eq!(create(new, 1, 3, None), 38);
    assert_eq!((create(new, 0, 0, None), create(new, 0, 3, None)), (38, 37), "what is looked at first");
    assert_eq!(create(&there.replacen('-', "_", 1), 1, 1, None), 0);
    assert_eq!(create(new, 1, 1, Some(("retention.msec", "1"))), 40);
    assert_eq!(create(new, 1, 1, Some(("retention.ms", "soon"))), 40);
    assert_eq!(create(new, -1, -1, Some(("retention.ms", "1000"))), 0);
}

#[test]
fn metadata_of_what_is_not_there() {
    let mut place = Place::new("is-metadata");
    let by_name = MetadataRequestTopic::default().with_name(Some(topic_name("is-nowhere")));
    let by_id = MetadataRequestTopic::default().with_name(None).with_topic_id(Uuid::from_u128(7));
    let bad = MetadataRequestTopic::default().with_name(Some(topic_name("no/name")));
    for (topic, code) in [(by_name, 3), (by_id, 100), (bad, 17)] {
        let request = MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(false);
        assert_eq!(place.wire.call(12, &request).topics[0].error_code, code);
    }
}

#[test]
fn sequences_of_an_idempotent_producer() {
    let mut place = Place::new("is-sequences");
    let id = |place: &mut Place| {
        let request = InitProducerIdRequest::default().with_transactional_id(None);
        let mut answer = place.wire.call(3, &request);
        eventually(SOON, "the broker has producer ids", || {
            answer = place.wire.call(3, &request);
            answer.error_code == 0
        });
        answer.producer_id.0
    };
    let (first, second) = (id(&mut place), id(&mut place));
    assert_ne!(first, second);
    let now = SystemTime::now();
    let mut send = |producer, epoch, sequence, count| {
        produce(&mut place.wire, &place.topic, batch(count, producer, epoch, sequence, now))
    };
    assert_eq!(send(first, 0, 0, 2), (0, 0));
    assert_eq!(send(first, 0, 2, 1), (0, 2));
    assert_eq!(send(first, 0, 0, 2), (0, 0), "sent again");
    assert_eq!(send(first, 0, 2, 1), (0, 2), "sent again");
    assert_eq!(send(first, 0, 4, 1).0, 45, "a gap");
    assert_eq!(send(first, 1, 3, 1).0, 45, "a new epoch begins at 0");
    assert_eq!(send(first, 1, 0, 1), (0, 3));
    assert_eq!(send(first, 0, 3, 1).0, 47, "an epoch that is over");
    assert_eq!(send(second, 0, 9, 1), (0, 4), "of whom nothing is known, anything is taken");
    for number in 1..=5 {
        assert_eq!(send(first, 1, number, 1), (0, 4 + i64::from(number)));
    }
    assert_eq!(send(first, 1, 1, 1), (0, 5), "five are remembered");
    assert_eq!(send(first, 1, 0, 1).0, 45, "the sixth is not");
    let empty = InitProducerIdRequest::default().with_transactional_id(Some(TransactionalId(text(""))));
    assert_eq!(place.wire.call(3, &empty).error_code, 42);
}

#[test]
fn batches_that_are_refused() {
    let mut place = Place::on(Rig::shared("is-batches"), &[("max.message.bytes", "2000")]);
    let topic = place.topic.clone();
    let good = plain(1);
    let mut wrong = BytesMut::from(&good[..]);
    *wrong.last_mut().expect("not empty") ^= 1;
    assert_eq!(produce(&mut place.wire, &topic, wrong.freeze()).0, 2);
    assert_eq!(produce(&mut place.wire, &topic, plain(100)).0, 10);
    let twice = Bytes::from([&good[..], &good[..]].concat());
    assert_eq!(produce(&mut place.wire, &topic, twice).0, 87);
    let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
    assert_eq!(produce(&mut place.wire, &topic, batch(1, -1, -1, -1, tomorrow)).0, 32);
    assert_eq!(produce(&mut place.wire, "is-nowhere", good.clone()).0, 3);
    assert_eq!(produce_with(&mut place.wire, &topic, good.clone(), 2).0, 21);
    assert_eq!(produce_with(&mut place.wire, &topic, good, 1), (0, 0));
}

/// Error code and records.
fn fetch(wire: &mut Wire, topic: &str, offset: i64, wait_ms: i32, max_bytes: i32) -> (i16, Bytes) {
    let partition = FetchPartition::default().with_current_leader_epoch(-1).with_fetch_offset(offset);
    let partition = partition.with_partition_max_bytes(max_bytes);
    let topic = FetchTopic::default().with_topic(topic_name(topic)).with_partitions(vec![partition]);
    let request = FetchRequest::default().with_max_bytes(1 << 20).with_min_bytes(1).with_max_wait_ms(wait_ms);
    let answer = wire.call(11, &request.with_session_epoch(-1).with_topics(vec![topic]));
    let data = &answer.responses[0].partitions[0];
    (data.error_code, data.records.clone().unwrap_or_default())
}

#[test]
fn fetches() {
    let mut place = Place::new("is-fetch");
    let topic = place.topic.clone();
    let one = plain(3).len();
    for _ in 0..3 {
        place.produce(3);
    }
    let (error, all) = fetch(&mut place.wire, &topic, 1, 0, 1 << 20);
    assert_eq!((error, all.len()), (0, 3 * one), "whole batches, also what is before the offset");
    assert_eq!(fetch(&mut place.wire, &topic, 0, 0, 10).1.len(), one, "the first batch is whole");
    let cut = i32::try_from(one).expect("small") + 7;
    assert_eq!(fetch(&mut place.wire, &topic, 0, 0, cut).1.len(), one + 7, "the last one is cut");
    assert_eq!(fetch(&mut place.wire, &topic, 9, 0, 1000), (0, Bytes::new()));
    assert_eq!(fetch(&mut place.wire, &topic, 10, 0, 1000).0, 1);
    assert_eq!(fetch(&mut place.wire, "is-nowhere", 0, 0, 1000).0, 3);
    let begin = Instant::now();
    assert_eq!(fetch(&mut place.wire, &topic, 9, 300, 1000).1.len(), 0);
    assert!(begin.elapsed() >= Duration::from_millis(290), "{:?}", begin.elapsed());
    let mut other = Wire::connect(place.rig.broker().address());
    let woken = std::thread::scope(|scope| {
        let parked = scope.spawn(|| fetch(&mut other, &topic, 9, 20_000, 1000));
        be_parked();
        place.produce(3);
        let since = Instant::now();
        let (error, read) = parked.join().expect("no panic");
        assert_eq!((error, read.len()), (0, one));
        since.elapsed()
    });
    assert!(woken < Duration::from_secs(2), "{woken:?}");
}

#[test]
fn offsets_by_time() {
    let mut place = Place::new("is-times");
    let topic = place.topic.clone();
    let now = SystemTime::now();
    let ago = |seconds: u64| now - Duration::from_secs(seconds);
    for seconds in [300, 100, 200] {
        let records = batch(2, -1, -1, -1, ago(seconds));
        assert_eq!(produce(&mut place.wire, &topic, records).0, 0);
    }
    let milliseconds =
        |time: SystemTime| i64::try_from(time.duration_since(UNIX_EPOCH).expect("later").as_millis()).expect("now");
    let mut at = |time: i64| {
        let partition = ListOffsetsPartition::default().with_current_leader_epoch(-1).with_timestamp(time);
        let topic = ListOffsetsTopic::default().with_name(topic_name(&topic)).with_partitions(vec![partition]);
        let answer = place.wire.call(7, &ListOffsetsRequest::default().with_topics(vec![topic]));
        let found = &answer.topics[0].partitions[0];
        (found.error_code, found.offset)
    };
    assert_eq!(at(-1), (0, 6));
    assert_eq!(at(-2), (0, 0));
    assert_eq!(at(-3), (0, 2), "the first of the latest time");
    assert_eq!(at(milliseconds(ago(1000))), (0, 0));
    assert_eq!(at(milliseconds(ago(250))), (0, 2));
    assert_eq!(at(milliseconds(ago(150))), (0, 2));
    assert_eq!(at(milliseconds(ago(50))), (0, -1));
}

#[test]
fn members_come_and_go() {
    let mut place = Place::new("is-members");
    let id = place.group(&[]).id;
    let (error, epoch, assigned) = place.beat(&id, "second", 0);
    assert_eq!((error, assigned), (0, Some(1)), "with one partition everybody has it");
    assert_eq!(place.beat(&id, "second", epoch), (0, epoch, None));
    assert_eq!(place.beat(&id, "second", epoch + 5).0, 110);
    assert_eq!(place.beat(&id, "second", 1).0, 110, "an epoch long over");
    assert_eq!(place.beat(&id, &"m".repeat(37), 0).0, 42, "longer than a UUID");
    assert_eq!(place.beat(&id, "stranger", 3).0, 25);
    assert_eq!(place.beat(&id, "", 0).0, 42);
    let (error, again, assigned) = place.beat(&id, "second", 0);
    assert_eq!((error, again, assigned), (0, epoch, Some(1)), "joins anew with the same id");
    assert_eq!(place.beat(&id, "second", -1), (0, -1, None));
    assert_eq!(place.beat(&id, "second", epoch).0, 25);
    let request = AlterShareGroupOffsetsRequest::default().with_group_id(GroupId(text(&id)));
    assert_eq!(place.wire.call(0, &request).error_code, 68, "the first one is still there");
    assert_eq!(place.beat(&id, "first", -1).0, 0);
}

#[test]
fn a_full_group_takes_nobody() {
    let mut place = Place::on(Rig::with_own_broker("is-full", &["--set", "group.share.max.size=2"]), &[]);
    let id = place.group(&[]).id;
    assert_eq!(place.beat(&id, "second", 0).0, 0);
    assert_eq!(place.beat(&id, "third", 0).0, 81);
    assert_eq!(place.beat(&id, "second", -1).0, 0);
    assert_eq!(place.beat(&id, "third", 0).0, 0);
}

#[test]
fn sessions_are_numbered() {
    let mut place = Place::new("is-sessions");
    place.produce(1);
    let group = place.group(&[]);
    let mut member = group.member("m");
    member.epoch = 3;
    assert_eq!(member.fetch(1, 0, &[]).error, 122, "there is no session");
    assert_eq!(member.acknowledge(&[]).0, 122);
    member.epoch = 0;
    assert_eq!(member.acknowledge(&[]).0, 123, "opened by a fetch only");
    member.epoch = 0;
    assert_eq!(member.fetch(0, 0, &[(0, Accept)]).error, 42, "nothing to acknowledge yet");
    member.epoch = 0;
    assert_eq!(member.fetch(0, 0, &[]).error, 0);
    assert_eq!(member.eventually(10), [(0, 0, 1)]);
    let epoch = member.epoch;
    member.epoch = epoch + 1;
    assert_eq!(member.fetch(1, 0, &[]).error, 123);
    member.epoch = epoch;
    assert_eq!(member.acknowledge(&[(0, Accept)]), (0, 0), "the session is as it was");
    assert_eq!(member.close(), (0, 0));
    member.epoch = epoch + 1;
    assert_eq!(member.fetch(1, 0, &[]).error, 122);
}

#[test]
fn records_are_locked_one_by_one() {
    let mut place = Place::new("is-locks");
    place.produce(100);
    let group = place.group(&[]);
    let (mut a, mut b) = (group.open("a"), group.open("b"));
    assert_eq!(a.eventually(1), [(0, 0, 1)], "one of a batch of a hundred");
    assert_eq!(b.eventually(2), [(1, 2, 1)]);
    assert_eq!(a.acknowledge(&[(1, Accept)]), (0, 121), "somebody else's");
    assert_eq!(a.acknowledge(&[(0, Accept), (50, Accept)]), (0, 121), "nobody's");
    assert_eq!(a.acknowledge(&[(0, Accept)]), (0, 0), "and nothing of it was applied");
    assert_eq!(a.acknowledge(&[(0, Accept)]), (0, 0), "below the start nothing is known");
    assert_eq!(b.acknowledge(&[(1, Renew), (2, Release)]), (0, 0));
    assert_eq!(a.eventually(2), [(2, 2, 2), (3, 3, 1)], "what was given back comes first, with a count more");
    let rode = b.fetch(1, 5000, &[(1, Accept)]);
    assert_eq!((rode.acknowledge_error, rode.acquired), (0, vec![(4, 4, 1)]));
    drop(b);
    // Its one record more comes back with the end of its connection.
    eventually(SOON, "what the other held is handed out", || {
        let got = a.fetch(1, 50, &[]).acquired;
        got.contains(&(4, 4, 2))
    });
    assert_eq!(a.close(), (0, 0));
    let mut c = group.open("c");
    let mut seen = Vec::new();
    eventually(SOON, "what the session held is handed out, each with a count more", || {
        seen.extend(c.fetch(3, 50, &[]).acquired);
        [(2, 2, 3), (3, 3, 2), (4, 4, 3)].iter().all(|range| seen.contains(range))
    });
}

#[test]
fn at_its_limit_a_record_is_dropped_without_a_word() {
    let mut place = Place::new("is-limit");
    place.produce(2);
    let group = place.group(&[("share.delivery.count.limit", "2")]);
    let mut member = group.open("m");
    assert_eq!(member.eventually(1), [(0, 0, 1)]);
    assert_eq!(member.acknowledge(&[(0, Release)]), (0, 0));
    assert_eq!(member.eventually(1), [(0, 0, 2)]);
    assert_eq!(member.acknowledge(&[(0, Release)]), (0, 0));
    assert_eq!(member.eventually(1), [(1, 1, 1)]);
}

#[test]
fn a_span_of_locks_stops_the_delivery() {
    let mut place = Place::new("is-span");
    for _ in 0..3 {
        place.produce(100);
    }
    let group = place.group(&[("share.partition.max.record.locks", "100")]);
    let mut member = group.open("m");
    assert_eq!(member.eventually(1000), [(0, 99, 1)]);
    let all_but_first: Vec<_> = (1..100).map(|offset| (offset, Accept)).collect();
    assert_eq!(member.acknowledge(&all_but_first), (0, 0));
    assert_eq!(member.fetch(1000, 100, &[]).acquired, [], "the oldest one holds it up");
    assert_eq!(member.acknowledge(&[(0, Accept)]), (0, 0));
    assert_eq!(member.eventually(1000), [(100, 199, 1)]);
}

#[test]
fn what_wakes_a_parked_share_fetch() {
    let rig = Rig::with_own_broker("is-woken", &["--set", "group.share.min.record.lock.duration.ms=3000"]);
    let mut place = Place::on(rig, &[]);
    place.produce(1);
    let group = place.group(&[("share.record.lock.duration.ms", "3000")]);
    let (mut a, mut b) = (group.open("a"), group.open("b"));
    assert_eq!(a.eventually(1), [(0, 0, 1)]);
    // Given back: found at the end of the wait only.
    let begin = Instant::now();
    b.send_fetch(1, 500, &[]);
    be_parked();
    assert_eq!(a.acknowledge(&[(0, Release)]), (0, 0));
    assert_eq!(b.fetched().acquired, [(0, 0, 2)]);
    assert!(begin.elapsed() >= Duration::from_millis(450), "{:?}", begin.elapsed());
    // A lock that runs out.
    let begin = Instant::now();
    a.send_fetch(1, 20_000, &[]);
    assert_eq!(a.fetched().acquired, [(0, 0, 3)]);
    assert!((Duration::from_millis(400)..Duration::from_secs(15)).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    assert_eq!(b.acknowledge(&[(0, Accept)]), (0, 121));
    assert_eq!(a.acknowledge(&[(0, Accept)]), (0, 0));
    // A record.
    a.send_fetch(1, 20_000, &[]);
    be_parked();
    group.place.produce(1);
    let begin = Instant::now();
    assert_eq!(a.fetched().acquired, [(1, 1, 1)]);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn where_a_new_group_begins() {
    for (reset, expected) in [("earliest", vec![(0, 2, 1)]), ("latest", vec![(3, 3, 1)])] {
        let mut place = Place::new(&format!("is-{reset}"));
        place.produce(3);
        let group = place.group(&[("share.auto.offset.reset", reset)]);
        let mut member = group.open("m");
        // Its first fetch decides where it begins.
        let mut got = member.fetch(10, 1000, &[]).acquired;
        if reset == "latest" {
            group.place.produce(1);
        }
        if got.is_empty() {
            got = member.eventually(10);
        }
        assert_eq!(got, expected, "{reset}");
    }
}

/// The error code.
fn alter(wire: &mut Wire, of: admin::Of, name: &str, key: &str, value: Option<&str>) -> i16 {
    let operation = i8::from(value.is_none());
    let config =
        AlterableConfig::default().with_name(text(key)).with_config_operation(operation).with_value(value.map(text));
    let resource = AlterConfigsResource::default().with_resource_type(of as i8).with_resource_name(text(name));
    let resource = resource.with_configs(vec![config]);
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    wire.call(1, &request).responses[0].error_code
}

#[test]
fn settings_are_checked() {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mut place = Place::new("is-settings");
    let group = format!("{}-{}", place.rig.group(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let topic = place.topic.clone();
    let broker = place.rig.broker().address().to_owned();
    let mut set = |of, name: &str, key: &str, value: Option<&str>| alter(&mut place.wire, of, name, key, value);
    use admin::Of::{Group, Topic};
    assert_eq!(set(Group, &group, "share.auto.offset.resett", Some("earliest")), 40);
    assert_eq!(set(Group, &group, "share.auto.offset.reset", Some("middle")), 40);
    assert_eq!(set(Group, &group, "share.delivery.count.limit", Some("11")), 40);
    assert_eq!(set(Group, &group, "share.record.lock.duration.ms", Some("14999")), 40);
    assert_eq!(set(Group, &group, "share.record.lock.duration.ms", Some("15000")), 0);
    assert_eq!(set(Topic, &topic, "retention.ms", Some("soon")), 40);
    assert_eq!(set(Topic, &topic, "retention.ms", Some("60000")), 0);
    assert_eq!(set(Topic, "is-nowhere", "retention.ms", Some("60000")), 3);
    eventually(SOON, "the broker follows", || {
        admin::configs(&broker, Group, &group)["share.record.lock.duration.ms"] == "15000"
            && admin::configs(&broker, Topic, &topic)["retention.ms"] == "60000"
    });
    assert_eq!(set(Topic, &topic, "retention.ms", None), 0);
    eventually(SOON, "the default is back", || admin::configs(&broker, Topic, &topic)["retention.ms"] == "604800000");
}

#[test]
fn what_is_finished_behind_the_start_is_no_lag() {
    let mut place = Place::new("is-lag");
    place.produce(5);
    let group = place.group(&[]);
    assert_eq!(group.lag(), None, "nobody has fetched");
    let mut member = group.open("m");
    assert_eq!(member.eventually(3), [(0, 2, 1)]);
    assert_eq!(member.acknowledge(&[(1, Accept), (2, Accept)]), (0, 0));
    eventually(SOON, "two of five are finished", || group.lag() == Some(3));
    assert_eq!(member.acknowledge(&[(0, Release)]), (0, 0));
    assert_eq!(group.lag(), Some(3), "what was given back is not finished");
    assert_eq!(member.eventually(1), [(0, 0, 2)]);
    assert_eq!(member.acknowledge(&[(0, Accept)]), (0, 0));
    assert_eq!(member.eventually(2), [(3, 4, 1)]);
    assert_eq!(member.acknowledge(&[(3, Accept), (4, Accept)]), (0, 0));
    eventually(SOON, "nothing is left", || group.lag() == Some(0));
}

#[test]
fn the_offsets_of_a_group_that_is_not_there() {
    let mut place = Place::new("is-offsets");
    let mut group = place.group(&[]);
    let there = group.id.clone();
    assert_eq!(group.offsets(), (0, -1), "nobody has fetched");
    group.id = format!("{there}-not");
    assert_eq!(group.offsets(), (0, -1));
}
