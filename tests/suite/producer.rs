//! Failures of single topics, partitions and leaders: each delays or fails only its own records of the producer.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use crossbeam_channel::Receiver;
use devbroker::{Action, Denial, Fault, Kind, Operation, Resource};
use kafka_protocol::{
    messages::{CreateTopicsRequest, TopicName, create_topics_request::CreatableTopic},
    protocol::StrBytes,
};
use kafka_share::{
    ClientOptions, Cluster, Delivered, Delivery, DeliveryError, ErrorCode, Producer, ProducerRecord, ProducerSender,
};
use socket2::{Domain, Socket, Type};

use crate::{
    client::producer,
    support::{Rig, SOON, audit, eventually, wire::Wire},
};

/// Bound for a partition with a working leader while other leaders fail (promise P11).
const SERVED: Duration = Duration::from_secs(1);
/// The controller fences no node during a test, so a partition keeps its unavailable leader.
const NEVER_FENCED: [&str; 2] = ["--set", "broker.session.timeout.ms=600000"];

type Outcome = (u64, Result<Delivered, DeliveryError>);

/// An embedded broker with a topic `first` led by node 1 and a topic `second` led by the last node, and a producer.
struct Scene {
    rig: Rig,
    first: String,
    second: String,
    producer: Producer<u64>,
    told: Receiver<Delivery<u64>>,
}

impl Scene {
    fn new(name: &str, nodes: i32) -> Scene {
        Scene::with(name, nodes, &NEVER_FENCED)
    }

    fn with(name: &str, nodes: i32, arguments: &[&str]) -> Scene {
        let count = usize::try_from(nodes).expect("a few");
        let rig = Rig::with_faults_and(name, count, arguments);
        let (first, second) = (rig.tasks(), rig.results());
        for (topic, node) in [(&first, 1), (&second, nodes)] {
            create(&rig, topic, 1);
            assert!(rig.broker().faulty().move_leader(topic, 0, node));
        }
        let mut options = ClientOptions::new(vec![rig.broker().address().parse().expect("an address")], "test");
        options.request_timeout = Duration::from_secs(2);
        let (producer, told) = producer(&Cluster::new(options));
        Scene { rig, first, second, producer, told }
    }

    /// Sends a small record.
    fn send(&self, topic: &str, token: u64) {
        send(&self.producer.sender(), topic, token, 10);
    }

    fn outcome(&self, limit: Duration) -> Outcome {
        let delivery = self.told.recv_timeout(limit).expect("an outcome in time");
        (delivery.token, delivery.outcome)
    }

    fn delivered(&self, topic: &str, token: u64, limit: Duration) {
        self.send(topic, token);
        let (settled, outcome) = self.outcome(limit);
        assert!(settled == token && outcome.is_ok(), "{token}: {settled} {outcome:?}");
    }

    /// Sends records to the first topic, one after the other, for `time`; each must be delivered within [`SERVED`].
    fn first_is_served(&self, time: Duration) {
        self.is_served(&self.first, time);
    }

    fn is_served(&self, topic: &str, time: Duration) {
        let end = Instant::now() + time;
        let mut token = 1000;
        while Instant::now() < end {
            self.delivered(topic, token, SERVED);
            token += 1;
        }
    }

    fn both_are_served(&self) {
        self.delivered(&self.first, 1, SOON);
        self.delivered(&self.second, 2, SOON);
        eventually(SOON, "the producer is ready", || self.producer.is_ready());
    }
}

fn create(rig: &Rig, topic: &str, replicas: i16) {
    let wanted = CreatableTopic::default()
        .with_name(TopicName(StrBytes::from_string(topic.to_owned())))
        .with_num_partitions(1)
        .with_replication_factor(replicas);
    let created =
        Wire::connect(rig.broker().address()).call(7, &CreateTopicsRequest::default().with_topics(vec![wanted]));
    assert_eq!(created.topics[0].error_code, 0);
}

fn send(producer: &ProducerSender<u64>, topic: &str, token: u64, size: usize) {
    let record = ProducerRecord {
        topic: Arc::from(topic),
        key: Some(Bytes::from(format!("key-{token}"))),
        value: Some(Bytes::from(vec![b'x'; size])),
        headers: Vec::new(),
    };
    producer.send(record, token).expect("open");
}

#[test]
fn records_of_a_missing_topic_delay_no_others() {
    let scene = Scene::new("producer-missing", 1);
    scene.send("no-such-topic", 7);
    scene.first_is_served(Duration::from_secs(3));
    create(&scene.rig, "no-such-topic", 1);
    let (token, outcome) = scene.outcome(SOON);
    assert!(token == 7 && outcome.is_ok(), "{outcome:?}");
}

#[test]
fn records_of_a_dead_leader_delay_no_others() {
    let scene = Scene::new("producer-dead", 3);
    scene.both_are_served();
    let broker = scene.rig.broker().faulty();
    broker.node(3).kill();
    scene.send(&scene.second, 7);
    scene.first_is_served(Duration::from_secs(4));
    broker.node(3).revive().expect("the node starts again on its port");
    let (token, outcome) = scene.outcome(SOON);
    assert!(token == 7 && outcome.is_ok(), "{outcome:?}");
}

#[test]
fn records_of_a_frozen_leader_delay_no_others() {
    let scene = Scene::new("producer-frozen", 3);
    scene.both_are_served();
    let broker = scene.rig.broker().faulty();
    broker.node(3).freeze();
    scene.send(&scene.second, 7);
    scene.first_is_served(Duration::from_secs(6));
    assert!(scene.producer.is_ready(), "the other leaders take records");
    broker.node(3).thaw();
    let (token, outcome) = scene.outcome(SOON);
    assert!(token == 7 && outcome.is_ok(), "{outcome:?}");
}

/// The first contact with a leader opens a connection and asks for the end of the log.
#[test]
fn the_first_contact_with_a_frozen_leader_delays_no_others() {
    let scene = Scene::new("producer-unasked", 3);
    scene.delivered(&scene.first, 1, SOON);
    let broker = scene.rig.broker().faulty();
    broker.node(3).freeze();
    scene.send(&scene.second, 7);
    scene.first_is_served(Duration::from_secs(6));
    broker.node(3).thaw();
    let (token, outcome) = scene.outcome(SOON);
    assert!(token == 7 && outcome.is_ok(), "{outcome:?}");
}

/// An address that neither accepts nor refuses connections, like a lost host: its listener's queue is full.
struct BlackHole {
    _listener: Socket,
    _queued: Vec<Socket>,
    address: SocketAddr,
}

impl BlackHole {
    fn new() -> BlackHole {
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let listener = socket();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
        listener.listen(0).expect("a listener");
        let address = listener.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
        let mut queued = Vec::new();
        loop {
            let next = socket();
            let connected = next.connect_timeout(&address.into(), Duration::from_millis(300));
            queued.push(next);
            if connected.is_err() {
                return BlackHole { _listener: listener, _queued: queued, address };
            }
        }
    }
}

#[test]
fn a_leader_that_takes_no_connection_delays_no_others() {
    let hole = BlackHole::new();
    let announced = format!("advertised.listeners=PLAINTEXT://{}", hole.address);
    let arguments = [&NEVER_FENCED[..], &["--set", &announced]].concat();
    // Metadata names the black hole as the address of node 1.
    let scene = Scene::with("producer-hole", 3, &arguments);
    scene.delivered(&scene.second, 1, SOON);
    scene.send(&scene.first, 7);
    scene.is_served(&scene.second, Duration::from_secs(5));
    let begin = Instant::now();
    scene.producer.close(begin + Duration::from_millis(100));
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    let left = scene.told.try_recv().expect("an outcome before the close returns");
    assert_eq!((left.token, left.outcome), (7, Err(DeliveryError::Unsent)));
}

#[test]
fn records_of_an_unavailable_leader_leave_room_for_others() {
    let scene = Scene::new("producer-bytes", 3);
    scene.both_are_served();
    let broker = scene.rig.broker().faulty();
    broker.node(3).kill();
    for token in 0..30 {
        send(&scene.producer.sender(), &scene.second, token, 100_000);
    }
    scene.first_is_served(Duration::from_secs(3));
    broker.node(3).revive().expect("the node starts again on its port");
    for token in 0..30 {
        let (settled, outcome) = scene.outcome(SOON);
        assert!(settled == token && outcome.is_ok(), "{token}: {settled} {outcome:?}");
    }
}

#[test]
fn one_partition_without_enough_replicas_delays_no_other_on_its_leader() {
    let scene = Scene::new("producer-partition", 1);
    scene.both_are_served();
    let refuse = Fault::new(Action::Refuse(ErrorCode(19))).at(Kind::Produce).of_topic(&scene.second);
    scene.rig.broker().faulty().inject(refuse.every(1, u32::MAX));
    scene.send(&scene.second, 7);
    let begin = Instant::now();
    for token in 1000..1100 {
        scene.delivered(&scene.first, token, SERVED);
    }
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?} for a hundred", begin.elapsed());
    scene.rig.broker().faulty().heal();
    let (token, outcome) = scene.outcome(SOON);
    assert!(token == 7 && outcome.is_ok(), "{outcome:?}");
}

#[test]
fn a_missing_right_fails_the_record_and_names_right_and_topic() {
    let scene = Scene::new("producer-right", 1);
    scene.both_are_served();
    let broker = scene.rig.broker().faulty();
    broker.deny(Denial::new(Operation::Write, Resource::Topic(&scene.first)));
    scene.send(&scene.first, 7);
    let (token, outcome) = scene.outcome(SOON);
    let error = outcome.expect_err("refused").to_string();
    assert!(token == 7 && error.contains("Write") && error.contains(&scene.first), "{error}");
    eventually(SOON, "the producer is not ready", || !scene.producer.is_ready());
    scene.delivered(&scene.second, 8, SERVED);
    assert!(!scene.producer.is_ready(), "the right is still missing");
    broker.allow_all();
    scene.delivered(&scene.first, 9, SERVED);
    eventually(SOON, "the producer is ready", || scene.producer.is_ready());
}

#[test]
fn a_topic_that_may_not_be_described_fails_its_records() {
    let scene = Scene::new("producer-describe", 1);
    let broker = scene.rig.broker().faulty();
    broker.deny(Denial::new(Operation::Describe, Resource::Topic(&scene.first)));
    scene.send(&scene.first, 7);
    let (token, outcome) = scene.outcome(SOON);
    let error = outcome.expect_err("refused").to_string();
    assert!(token == 7 && error.contains("Describe") && error.contains(&scene.first), "{error}");
    broker.allow_all();
    scene.delivered(&scene.first, 8, SOON);
}

#[test]
fn a_producer_without_the_right_to_be_idempotent_fails_its_records() {
    let scene = Scene::new("producer-idempotent", 1);
    let broker = scene.rig.broker().faulty();
    broker.deny(Denial::new(Operation::Write, Resource::Topic("*")).of_client("second"));
    broker.deny(Denial::new(Operation::IdempotentWrite, Resource::Cluster).of_client("second"));
    let options = ClientOptions::new(vec![scene.rig.broker().address().parse().expect("an address")], "second");
    let (producer, told) = producer(&Cluster::new(options));
    send(&producer.sender(), &scene.first, 7, 10);
    let error = told.recv_timeout(SOON).expect("an outcome").outcome.expect_err("refused").to_string();
    assert!(error.contains("IdempotentWrite"), "{error}");
    assert!(!producer.is_ready());
    // The first producer is another client, so it still has the rights.
    scene.delivered(&scene.first, 9, SOON);
    broker.allow_all();
    send(&producer.sender(), &scene.first, 8, 10);
    eventually(SOON, "the record is delivered", || told.try_recv().is_ok_and(|delivery| delivery.outcome.is_ok()));
}

/// The broker reads no request on a throttled connection (KIP-219), here for 4 s; the request timeout is 2 s.
#[test]
fn a_throttled_producer_waits_and_stays_ready() {
    let scene = Scene::new("producer-throttle", 1);
    scene.both_are_served();
    let broker = scene.rig.broker().faulty();
    let opened = scene.rig.count(Kind::Metadata, "");
    broker.inject(Fault::new(Action::Throttle(Duration::from_secs(4))).at(Kind::Produce));
    scene.delivered(&scene.first, 3, SOON);
    scene.send(&scene.first, 4);
    let begin = Instant::now();
    let outcome = loop {
        assert!(scene.producer.is_ready(), "not ready after {:?}", begin.elapsed());
        match scene.told.recv_timeout(Duration::from_millis(20)) {
            Ok(delivery) => break delivery.outcome,
            Err(_) => assert!(begin.elapsed() < SOON),
        }
    };
    assert_eq!(outcome.map(|delivered| delivered.offset), Ok(2));
    assert!(begin.elapsed() > Duration::from_secs(3), "{:?}", begin.elapsed());
    assert_eq!(opened.count(), 0, "the producer refreshed Metadata");
}

/// A batch that is not replicated is not readable; the producer's search must not take it for missing.
#[test]
fn a_batch_in_doubt_that_is_not_replicated_yet_is_written_once() {
    let scene = Scene::new("producer-doubt", 3);
    let broker = scene.rig.broker().faulty();
    create(&scene.rig, "replicated", 3);
    assert!(broker.move_leader("replicated", 0, 1));
    scene.delivered("replicated", 1, SOON);
    broker.node(3).freeze();
    // The batch is written and not acknowledged; then the broker does not know the producer.
    let lost = broker.inject(Fault::new(Action::CutAfter).at(Kind::Produce).of_topic("replicated"));
    let forgotten = Fault::new(Action::Refuse(ErrorCode::UNKNOWN_PRODUCER_ID)).at(Kind::Produce);
    let forgotten = broker.inject(forgotten.of_topic("replicated").after(1));
    scene.send("replicated", 2);
    eventually(SOON, "both faults took effect", || lost.count() == 1 && forgotten.count() == 1);
    // Long enough for a search that ends too early.
    assert!(scene.told.recv_timeout(Duration::from_secs(3)).is_err(), "an outcome before all replicas have the batch");
    broker.node(3).thaw();
    let (token, outcome) = scene.outcome(SOON);
    assert_eq!((token, outcome.map(|delivered| delivered.offset)), (2, Ok(1)));
    let keys: Vec<String> =
        audit::read(scene.rig.broker().address(), "replicated").iter().map(audit::Record::key).collect();
    assert_eq!(keys, ["key-1", "key-2"]);
}

#[test]
fn closing_while_a_leader_is_frozen_reports_every_outcome_in_time() {
    let scene = Scene::new("producer-close", 3);
    scene.both_are_served();
    scene.rig.broker().faulty().node(3).freeze();
    scene.send(&scene.second, 7);
    scene.delivered(&scene.first, 8, SERVED);
    let begin = Instant::now();
    scene.producer.close(begin + Duration::from_millis(300));
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    let left = scene.told.try_recv().expect("an outcome before the close returns");
    assert_eq!((left.token, left.outcome), (7, Err(DeliveryError::Unknown)));
    scene.rig.broker().faulty().node(3).thaw();
}
