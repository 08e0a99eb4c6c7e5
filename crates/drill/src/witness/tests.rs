//! The witness on a broker with known records.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::SystemTime;

use bytes::Bytes;
use kafka_protocol::messages::fetch_request::{FetchPartition as RawPartition, FetchTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{BrokerId, FetchRequest, ProduceRequest, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::*;
use devbroker::{Action, Broker, Fault, Kind, Settings};
use kafka_share::admin::{self, TopicSpec};
use kafka_share::records::{self, BatchIdentity, RecordContent};
use kafka_share::{ClientOptions, Cluster, ErrorCode};

const NODE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
/// Kafka's default of `fetch.max.bytes`.
const CAP: usize = 55 << 20;
const LONG: Duration = Duration::from_secs(60);

/// A topic on the embedded broker.
struct Place {
    broker: Broker,
    cluster: Cluster,
    topic: String,
}

impl Place {
    fn new(nodes: usize, partitions: i32) -> Self {
        let broker = Broker::start(Settings::new(vec![NODE; nodes])).expect("free ports");
        let bootstrap = vec![broker.address().to_string().parse().expect("host:port")];
        let (cluster, topic) = (Cluster::new(ClientOptions::new(bootstrap, "writer")), "witnessed".to_owned());
        let spec = TopicSpec { name: topic.clone(), partitions, replication_factor: Some(1), configs: Vec::new() };
        admin::ensure_topic(&cluster, &spec).expect("the topic is created");
        Self { broker, cluster, topic }
    }

    /// Two partitions on two nodes, with 20 records each.
    fn of_two_nodes() -> Self {
        let place = Self::new(2, 2);
        for _ in 0..10 {
            place.write(0, &values(2));
            place.write(1, &values(2));
        }
        place
    }

    /// Writes a batch of records with these values and the key `k`.
    fn write(&self, partition: i32, values: &[Bytes]) {
        let headers = [(Cow::Borrowed("name"), Some(Bytes::from_static(b"value"))), (Cow::Borrowed("none"), None)];
        let key = Bytes::from_static(b"k");
        let content = |value| RecordContent { key: Some(&key), value: Some(value), headers: &headers };
        let contents = values.iter().map(content);
        let identity = BatchIdentity { producer_id: -1, producer_epoch: -1, base_sequence: -1 };
        let batch = records::encode(contents, identity, SystemTime::now()).expect("small");
        let data = PartitionProduceData::default().with_index(partition).with_records(Some(batch));
        let topic = TopicProduceData::default().with_name(self.name()).with_partition_data(vec![data]);
        let request = ProduceRequest::default().with_acks(-1).with_timeout_ms(5000).with_topic_data(vec![topic]);
        let leader = self.cluster.leader(&self.topic, partition).expect("there is one");
        let mut connection = self.cluster.connect(leader).expect("it takes a connection");
        let answer = connection.call(7, &request, LONG).expect("it answers");
        assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
    }

    /// Bytes of records in the broker's response to a request for everything.
    fn bytes_of_all(&self) -> usize {
        let wanted = RawPartition::default().with_partition_max_bytes(i32::MAX);
        let topic = FetchTopic::default().with_topic(self.name()).with_partitions(vec![wanted]);
        let request = FetchRequest::default().with_replica_id(BrokerId(-1)).with_max_bytes(i32::MAX);
        let answer = self.cluster.ask(11, &request.with_topics(vec![topic])).expect("the broker answers");
        answer.responses[0].partitions[0].records.as_ref().map_or(0, Bytes::len)
    }

    fn name(&self) -> TopicName {
        TopicName(StrBytes::from_string(self.topic.clone()))
    }

    fn witness(&self) -> Witness {
        Witness::new(vec![self.broker.address().to_string()])
    }

    /// Reads the whole topic, as (partition, offset, length of the value).
    fn read(&self) -> Vec<(i32, i64, usize)> {
        let mut witness = self.witness();
        let to = witness.ends(&self.topic).expect("the ends are known");
        let mut read = Vec::new();
        let mut each = |record: Record| {
            assert!(record.key == b"k" && matches!(record.value[0], b'v' | b'h' | b'l'), "{:?}", record.key);
            read.push((record.partition, record.offset, record.value.len()));
        };
        witness.read(&self.topic, &BTreeMap::new(), &to, &Stop::new(), &mut each).expect("it can be read");
        read
    }

    fn offsets_within(&self, from: i64, to: i64) -> Result<Vec<i64>, WitnessError> {
        let (from, to) = (BTreeMap::from([(0, from)]), BTreeMap::from([(0, to)]));
        let mut read = Vec::new();
        let mut witness = self.witness();
        witness.limits.stalls = 2;
        witness.read(&self.topic, &from, &to, &Stop::new(), &mut |record| read.push(record.offset))?;
        Ok(read)
    }
}

/// Values of 10, 11, 12, … bytes.
fn values(count: usize) -> Vec<Bytes> {
    (0..count).map(|index| Bytes::from(vec![b'v'; 10 + index])).collect()
}

#[test]
fn a_topic_larger_than_a_response_is_read_exactly() {
    let place = Place::new(1, 1);
    let (half, little) = (Bytes::from(vec![b'h'; 524_000]), Bytes::from_static(b"little"));
    let batches = 64;
    for _ in 0..batches {
        place.write(0, &[half.clone(), little.clone(), half.clone()]);
    }
    assert_eq!(place.bytes_of_all(), CAP, "the response is cut in the middle of a batch");
    let read = place.read();
    let lengths = [half.len(), little.len(), half.len()].into_iter().cycle();
    let written: Vec<_> = (0..batches * 3).zip(lengths).map(|(offset, length)| (0, offset, length)).collect();
    assert!(read == written, "{} of {} records", read.len(), written.len());
}

#[test]
fn partitions_are_read_between_the_given_offsets() {
    let place = Place::new(1, 3);
    place.write(0, &values(4));
    place.write(0, &values(3));
    place.write(2, &values(2));
    let all = [(0, 0, 10), (0, 1, 11), (0, 2, 12), (0, 3, 13), (0, 4, 10), (0, 5, 11), (0, 6, 12)];
    assert_eq!(place.read(), [&all[..], &[(2, 0, 10), (2, 1, 11)]].concat());
    assert_eq!(place.offsets_within(1, 3).expect("inside of one batch"), [1, 2]);
    assert_eq!(place.offsets_within(3, 6).expect("over two"), [3, 4, 5]);
    assert_eq!(place.offsets_within(7, 7).expect("nothing"), [0; 0]);
    assert_eq!(place.offsets_within(5, 2).expect("less than nothing"), [0; 0]);
    let mut witness = place.witness();
    assert_eq!(witness.ends(&place.topic).expect("ends"), BTreeMap::from([(0, 7), (1, 0), (2, 2)]));
}

#[test]
fn an_error_names_the_partition_and_the_offset() {
    let place = Place::new(1, 1);
    place.write(0, &values(3));
    let stalled = place.offsets_within(1, 5).expect_err("the log ends at 3").to_string();
    assert_eq!(stalled, format!("{}-0 returns no records from 3 on; expected records up to 5", place.topic));
    let beyond = place.offsets_within(4, 5).expect_err("the log ends at 3").to_string();
    assert!(beyond.starts_with(&format!("{}-0 cannot be read from 4 on: ", place.topic)), "{beyond}");
    assert!(beyond.contains("OffsetOutOfRange"), "{beyond}");
    for _ in 0..2 {
        assert_eq!(place.witness().ends("nowhere").expect("ends"), BTreeMap::new(), "the topic was created");
    }
    let to = BTreeMap::from([(0, 1)]);
    let missing = place.witness().read("nowhere", &BTreeMap::new(), &to, &Stop::new(), &mut |_| {});
    let missing = missing.expect_err("there is nothing to be read").to_string();
    assert_eq!(missing, "nowhere-0 cannot be read from 0 on: there is no such partition");
}

#[test]
fn passing_faults_do_not_change_the_records() {
    let place = Place::of_two_nodes();
    let whole = place.read();
    assert_eq!(whole.len(), 40);
    let refused = Action::Refuse(ErrorCode::NOT_LEADER_OR_FOLLOWER);
    let pause = Duration::from_millis(300);
    for action in
        [refused, Action::CutBefore, Action::CutAfter, Action::AnswerTwice, Action::MoveLeaders, Action::Restart(pause)]
    {
        for kind in [Kind::Metadata, Kind::ListOffsets, Kind::Fetch] {
            let bites = place.broker.inject(Fault::new(action).at(kind).of_client("lastcall-witness"));
            assert_eq!(place.read(), whole, "{action:?} at {kind:?}");
            assert_eq!(bites.count(), 1, "{action:?} at {kind:?}");
        }
    }
}

#[test]
fn a_frozen_broker_ends_the_reading_after_the_limit_and_a_stop_at_once() {
    let place = Place::of_two_nodes();
    let mut witness = place.witness();
    let to = witness.ends(&place.topic).expect("ends");
    place.broker.nodes().freeze();
    witness.limits = Limits { answer: Duration::from_millis(200), trouble: Duration::from_secs(1), stalls: 2 };
    let started = Instant::now();
    let silent = witness.read(&place.topic, &to, &BTreeMap::from([(0, 99)]), &Stop::new(), &mut |_| {});
    let silent = silent.expect_err("the broker is frozen").to_string();
    assert_eq!(silent, format!("{}-0 cannot be read from 20 on: no answer within 200ms", place.topic));
    let ends = witness.ends(&place.topic).expect_err("the broker is frozen").to_string();
    assert_eq!(ends, format!("{}: no offsets: no answer within 200ms", place.topic));
    assert!(started.elapsed() < Duration::from_secs(10));
    let stop = Stop::new();
    stop.trigger();
    let ended = witness.read(&place.topic, &to, &BTreeMap::from([(0, 99)]), &stop, &mut |_| {});
    assert!(matches!(ended, Err(WitnessError::Ended)), "{ended:?}");
    place.broker.nodes().thaw();
    assert_eq!(place.witness().ends(&place.topic).expect("it answers again"), to);
}
