//! The Kafka client against a broker; the crate `kafka` reads and writes beside it, and shares no code with it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use devbroker::{Action, Bites, Fault, Kind};
use kafka_share::{
    ClientOptions, Cluster, Delivered, Delivery, DeliveryError, ErrorCode, KafkaError, Lookup, Producer,
    ProducerEvents, ProducerOptions, ProducerRecord, ReadRecord, Reader, ReaderOptions, StartAt,
    admin::{self, TopicSpec},
};
use program::stop::Stop;

use crate::support::{Rig, SOON, START, audit, eventually};

/// A client for this rig's broker.
pub fn cluster(rig: &Rig) -> Cluster {
    cluster_at(rig.broker().address())
}

/// A client with a request timeout of one second.
fn impatient_cluster(rig: &Rig) -> Cluster {
    let mut options = cluster(rig).options().clone();
    options.request_timeout = Duration::from_secs(1);
    Cluster::new(options)
}

pub fn cluster_at(address: &str) -> Cluster {
    let mut options = ClientOptions::new(vec![address.parse().expect("an address")], "test");
    options.request_timeout = Duration::from_secs(10);
    Cluster::new(options)
}

/// Creates a topic with `LogAppendTime`, as the programs do.
pub fn create(cluster: &Cluster, name: &str, partitions: i32, more: &[(&'static str, &str)]) {
    let own = [("message.timestamp.type", "LogAppendTime")];
    let configs = own.iter().chain(more).map(|(key, value)| (*key, (*value).to_owned())).collect();
    let spec = TopicSpec { name: name.to_owned(), partitions, replication_factor: None, configs };
    let ensured = eventually_ok(START, || admin::ensure_topic(cluster, &spec));
    assert_eq!(ensured.topic.partitions.len(), usize::try_from(partitions).expect("a few"));
    // Metadata names the leaders before they know it themselves.
    eventually_ok(START, || admin::end_offsets(cluster, name));
}

/// Repeats a call until Kafka answers it without an error.
pub fn eventually_ok<T>(limit: Duration, mut call: impl FnMut() -> Result<T, KafkaError>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match call() {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "not within {limit:?}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Passes outcomes to the test; withdraws records with an odd token if `drops_odd`.
struct Told {
    deliveries: Sender<Delivery<u64>>,
    drops_odd: bool,
}

impl ProducerEvents<u64> for Told {
    fn about_to_send(&mut self, token: &u64) -> bool {
        !(self.drops_odd && token % 2 == 1)
    }

    fn settled(&mut self, deliveries: Vec<Delivery<u64>>) {
        for delivery in deliveries {
            // The test may have dropped the receiver.
            let _ = self.deliveries.send(delivery);
        }
    }
}

/// Starts a producer; its outcomes come on the channel.
pub fn producer(cluster: &Cluster) -> (Producer<u64>, Receiver<Delivery<u64>>) {
    let (deliveries, told) = bounded(100_000);
    let events = Told { deliveries, drops_odd: false };
    (Producer::start("test-producer", cluster.clone(), ProducerOptions::default(), events, Stop::new()), told)
}

pub fn record(topic: &str, key: &str, value: &str) -> ProducerRecord {
    let bytes = |text: &str| Some(Bytes::copy_from_slice(text.as_bytes()));
    ProducerRecord { topic: Arc::from(topic), key: bytes(key), value: bytes(value), headers: Vec::new() }
}

fn outcome(told: &Receiver<Delivery<u64>>) -> (u64, Result<Delivered, DeliveryError>) {
    let delivery = told.recv_timeout(START).expect("every record has an outcome");
    (delivery.token, delivery.outcome)
}

/// Sends the records and waits until all are in the log.
pub fn deliver(cluster: &Cluster, records: Vec<ProducerRecord>) -> Vec<Delivered> {
    let (producer, told) = producer(cluster);
    let count = records.len();
    for (token, record) in (0..).zip(records) {
        producer.send(record, token).expect("open");
    }
    (0..count).map(|_| outcome(&told).1.expect("delivered")).collect()
}

pub fn reader(cluster: &Cluster, topic: &str, start: StartAt) -> Reader {
    let options = ReaderOptions { max_wait: Duration::from_millis(100), max_bytes: 1 << 20, min_bytes: 1 };
    Reader::new(cluster.clone(), topic, start, options)
}

/// Polls until this many records have come.
pub fn read(reader: &mut Reader, count: usize) -> Vec<ReadRecord> {
    let mut records = Vec::new();
    eventually(START, "all records are read", || {
        records.extend(reader.poll().unwrap_or_default());
        records.len() >= count
    });
    records
}

fn text(bytes: &Option<Bytes>) -> &str {
    std::str::from_utf8(bytes.as_deref().unwrap_or_default()).expect("text")
}

#[test]
fn an_independent_reader_finds_each_record_where_its_delivery_says() {
    let rig = Rig::shared("client-write");
    let cluster = cluster(&rig);
    create(&cluster, &rig.tasks(), 3, &[]);
    let keys: Vec<String> = (0..1000).map(|number| format!("key-{number}")).collect();
    let delivered =
        deliver(&cluster, keys.iter().map(|key| record(&rig.tasks(), key, &format!("value of {key}"))).collect());
    let read = audit::read(rig.broker().address(), &rig.tasks());
    assert_eq!(read.len(), 1000);
    let by_place: BTreeMap<(i32, i64), &audit::Record> =
        read.iter().map(|record| ((record.partition, record.offset), record)).collect();
    let mut places: Vec<(i32, i64)> =
        delivered.iter().map(|delivered| (delivered.partition, delivered.offset)).collect();
    places.sort_unstable();
    assert!(places.iter().eq(by_place.keys()), "the deliveries do not name the places of the records");
    for record in &read {
        assert_eq!(record.value, format!("value of {}", record.key()).as_bytes());
    }
    assert!(
        (0..3).all(|partition| read.iter().any(|record| record.partition == partition)),
        "keys spread over the partitions"
    );
}

#[test]
fn the_reader_reads_all_records_of_an_independent_writer() {
    let rig = Rig::shared("client-read");
    let cluster = cluster(&rig);
    create(&cluster, &rig.tasks(), 2, &[]);
    let records: Vec<(String, String)> =
        (0..2000).map(|number| (format!("key-{number}"), "x".repeat(number % 300))).collect();
    for chunk in records.chunks(400) {
        let chunk: Vec<_> = chunk.iter().map(|(key, value)| (Some(key.as_bytes()), Some(value.as_bytes()))).collect();
        audit::produce(rig.broker().address(), &rig.tasks(), &chunk);
    }
    let mut reader = reader(&cluster, &rig.tasks(), StartAt::Earliest);
    let found = read(&mut reader, records.len());
    let found: BTreeMap<&str, &str> = found.iter().map(|record| (text(&record.key), text(&record.value))).collect();
    assert!(records.iter().all(|(key, value)| found.get(key.as_str()) == Some(&value.as_str())) && found.len() == 2000);
    assert_eq!(reader.end_offsets().expect("the broker answers"), reader.positions());
    assert_eq!(reader.gaps(), 0);
}

#[test]
fn headers_and_missing_keys_and_values_survive() {
    let rig = Rig::shared("client-headers");
    let cluster = cluster(&rig);
    create(&cluster, &rig.tasks(), 1, &[]);
    let headers = vec![
        ("name".into(), Some(Bytes::from_static(b"1"))),
        ("name".into(), None),
        ("other".into(), Some(Bytes::new())),
    ];
    let empty = ProducerRecord { topic: Arc::from(rig.tasks()), key: None, value: None, headers: headers.clone() };
    let before = SystemTime::now() - Duration::from_secs(60);
    deliver(&cluster, vec![empty]);
    let mut lookup = Lookup::new(cluster);
    let mut read = |offset| lookup.read(&rig.tasks(), 0, offset).expect("readable");
    let found = read(0).expect("there");
    assert_eq!((found.key, found.value, found.offset), (None, None, 0));
    let expected: Vec<(String, Option<Bytes>)> =
        headers.into_iter().map(|(name, value)| (name.into_owned(), value)).collect();
    assert_eq!(found.headers, expected);
    assert!(found.timestamp > before, "{:?}", found.timestamp);
    assert_eq!((read(1), read(7)), (None, None));
}

#[test]
fn a_reader_starts_at_the_requested_position() {
    let rig = Rig::shared("client-start");
    let cluster = cluster(&rig);
    create(&cluster, &rig.tasks(), 2, &[]);
    let values =
        |number: u32| (0..20).map(|key| record(&rig.tasks(), &format!("key-{key}"), &number.to_string())).collect();
    deliver(&cluster, values(1));
    let first = read(&mut reader(&cluster, &rig.tasks(), StartAt::Earliest), 20);
    let latest = first.iter().map(|record| record.timestamp).max().expect("twenty records");
    // The second twenty records get a later time, because the broker uses this machine's clock.
    eventually(SOON, "the clock has moved on", || SystemTime::now() > latest + Duration::from_millis(5));
    deliver(&cluster, values(2));
    let all = read(&mut reader(&cluster, &rig.tasks(), StartAt::Earliest), 40);
    let second: Vec<&ReadRecord> = all.iter().filter(|record| text(&record.value) == "2").collect();
    let since = second.iter().map(|record| record.timestamp).min().expect("twenty records");

    let until = second.iter().map(|record| record.timestamp).max().expect("twenty records");
    let halves: BTreeMap<i32, i64> = [(0, 1), (1, 2)].into();
    let after_halves = all.iter().filter(|record| record.offset >= halves[&record.partition]).count();
    let only_first = all.iter().filter(|record| record.partition == 1 || record.offset >= 3).count();
    for (start, expected) in [
        (StartAt::Time(since), 20),
        (StartAt::Time(until + Duration::from_secs(3600)), 0),
        (StartAt::EndMinus(until.duration_since(since).expect("later")), 20),
        (StartAt::EndMinus(Duration::from_secs(3600)), 40),
        (StartAt::Offsets(halves), after_halves),
        (StartAt::Offsets([(0, 3)].into()), only_first),
        (StartAt::Latest, 0),
    ] {
        let mut reader = reader(&cluster, &rig.tasks(), start.clone());
        let found = read(&mut reader, expected);
        // One more poll would bring a record too many.
        let more = reader.poll().expect("the broker answers");
        assert_eq!(found.len() + more.len(), expected, "{start:?}");
        assert_eq!(reader.end_offsets().expect("the broker answers"), reader.positions(), "{start:?}");
    }
}

#[test]
fn a_reader_outside_of_the_log_starts_at_its_first_record() {
    let rig = Rig::shared("client-gap");
    let cluster = cluster(&rig);
    create(&cluster, &rig.tasks(), 1, &[]);
    deliver(&cluster, (0..10).map(|number| record(&rig.tasks(), "key", &number.to_string())).collect());
    let mut slow = reader(&cluster, &rig.tasks(), StartAt::Offsets([(0, 2)].into()));
    crate::support::admin::delete_records(rig.broker().address(), &rig.tasks(), 0, 6);
    let found = read(&mut slow, 4);
    assert_eq!(found.iter().map(|record| record.offset).collect::<Vec<_>>(), [6, 7, 8, 9]);
    assert_eq!(slow.gaps(), 1);
    let mut beyond = reader(&cluster, &rig.tasks(), StartAt::Offsets([(0, 1000)].into()));
    assert_eq!(read(&mut beyond, 4).len(), 4);
    assert_eq!(Lookup::new(cluster).read(&rig.tasks(), 0, 2).expect("readable"), None);
}

#[test]
fn a_reader_continues_after_a_frozen_and_a_restarted_broker() {
    let rig = Rig::with_own_broker("client-reader", &[]);
    let cluster = impatient_cluster(&rig);
    create(&cluster, &rig.tasks(), 2, &[]);
    let ten = |number: u32| (0..10).map(|key| record(&rig.tasks(), &key.to_string(), &number.to_string())).collect();
    let mut reader = reader(&cluster, &rig.tasks(), StartAt::Earliest);
    deliver(&cluster, ten(1));
    assert_eq!(read(&mut reader, 10).len(), 10);

    rig.broker().freeze();
    let begin = Instant::now();
    assert!(reader.poll().is_ok_and(|records| records.is_empty()), "the response may still come");
    // The poll waits for the fetch's 100 ms, not for the request timeout.
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    eventually(SOON, "the fetch times out", || matches!(reader.poll(), Err(KafkaError::Timeout { .. })));
    assert!(reader.last_answer().is_some_and(|at| at.elapsed() > Duration::from_secs(1)));
    rig.broker().thaw();
    deliver(&cluster, ten(2));
    assert_eq!(read(&mut reader, 10).iter().filter(|record| text(&record.value) == "2").count(), 10);

    rig.broker().stop();
    eventually(SOON, "the reader notices", || reader.poll().is_err());
    rig.broker().start();
    deliver(&cluster, ten(3));
    assert_eq!(read(&mut reader, 10).iter().filter(|record| text(&record.value) == "3").count(), 10);
    assert_eq!(reader.gaps(), 0);
}

/// Sends records steadily while `disturb` runs, and asserts that each is in the log once and in order.
fn nothing_lost_or_doubled(rig: &Rig, disturb: impl FnOnce(&Producer<u64>)) {
    let cluster = impatient_cluster(rig);
    create(&cluster, &rig.tasks(), 2, &[]);
    let mut reader = reader(&cluster, &rig.tasks(), StartAt::Earliest);
    let (producer, told) = producer(&cluster);
    let sender = producer.sender();
    let (stop, topic) = (Stop::new(), rig.tasks());
    let sent = std::thread::scope(|scope| {
        let feeder = scope.spawn(|| {
            let mut sent = 0_u64;
            while stop.sleep(Duration::from_millis(1)).is_ok() {
                sender.send(record(&topic, &format!("key-{sent}"), &sent.to_string()), sent).expect("open");
                sent += 1;
            }
            sent
        });
        assert!(told.recv_timeout(START).expect("an outcome").outcome.is_ok());
        disturb(&producer);
        stop.trigger();
        feeder.join().expect("the feeder ends")
    });
    for _ in 1..sent {
        assert_eq!(outcome(&told).1.err(), None);
    }
    producer.close(Instant::now() + SOON);
    assert!(told.try_recv().is_err(), "each record has one outcome");
    let found = read(&mut reader, usize::try_from(sent).expect("few"));
    let mut next: BTreeMap<i32, u64> = BTreeMap::new();
    for record in &found {
        let number: u64 = text(&record.value).parse().expect("a number");
        let last = next.insert(record.partition, number);
        assert!(last.is_none_or(|last| last < number), "order: {number} after {last:?}");
    }
    let once: std::collections::BTreeSet<&str> = found.iter().map(|record| text(&record.value)).collect();
    assert_eq!((found.len(), once.len()), (usize::try_from(sent).expect("few"), usize::try_from(sent).expect("few")));
    assert_eq!(audit::read(rig.broker().address(), &rig.tasks()).len(), found.len());
}

#[test]
fn a_broker_restart_loses_and_duplicates_no_record() {
    let rig = Rig::with_own_broker("client-restart", &[]);
    nothing_lost_or_doubled(&rig, |producer| {
        for kill in [false, true, true] {
            if kill {
                rig.broker().kill()
            } else {
                rig.broker().stop()
            };
            eventually(SOON, "the producer notices", || !producer.is_ready());
            rig.broker().start();
            eventually(SOON, "the producer is ready again", || producer.is_ready());
        }
    });
}

#[test]
fn a_frozen_broker_loses_and_duplicates_no_record() {
    let rig = Rig::with_own_broker("client-frozen", &["--set", "broker.session.timeout.ms=60000"]);
    nothing_lost_or_doubled(&rig, |producer| {
        rig.broker().freeze();
        eventually(SOON, "the producer notices", || !producer.is_ready());
        // The producer resends after each second without a response; no condition shows it while the broker is frozen.
        std::thread::sleep(Duration::from_secs(3));
        rig.broker().thaw();
        eventually(SOON, "the producer is ready again", || producer.is_ready());
    });
}

#[test]
fn an_idle_producer_notices_a_restart_of_its_broker() {
    let rig = Rig::with_own_broker("client-idle", &[]);
    let cluster = cluster(&rig);
    let (producer, _told) = producer(&cluster);
    eventually(START, "the producer connects without a record", || producer.is_ready());
    rig.broker().kill();
    eventually(SOON, "the producer has lost the connection", || !producer.is_ready());
    rig.broker().start();
    eventually(SOON, "the producer is connected again", || producer.is_ready());
}

#[test]
fn closing_on_a_frozen_broker_reports_every_outcome_in_time() {
    let rig = Rig::with_own_broker("client-close", &["--set", "broker.session.timeout.ms=60000"]);
    let cluster = impatient_cluster(&rig);
    create(&cluster, &rig.tasks(), 1, &[]);
    let (producer, told) = producer(&cluster);
    producer.send(record(&rig.tasks(), "a", "1"), 1).expect("open");
    assert!(outcome(&told).1.is_ok());
    // After an error of a starting broker the producer becomes ready only after the outcome.
    eventually(SOON, "the producer is ready", || producer.is_ready());
    rig.broker().freeze();
    producer.send(record(&rig.tasks(), "a", "2"), 2).expect("open");
    eventually(SOON, "the record was sent and not acknowledged", || !producer.is_ready());
    for token in 3..100 {
        producer.send(record(&rig.tasks(), "a", "3"), token).expect("open");
    }
    let sender = producer.sender();
    let begin = Instant::now();
    producer.close(begin + Duration::from_millis(300));
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    assert_eq!(outcome(&told), (2, Err(DeliveryError::Unknown)));
    for token in 3..100 {
        assert_eq!(outcome(&told), (token, Err(DeliveryError::Unsent)));
    }
    assert!(sender.send(record(&rig.tasks(), "a", "4"), 4).is_err());
    assert!(told.try_recv().is_err());
    rig.broker().thaw();
}

#[test]
fn an_interrupt_wakes_a_reader_and_its_whole_client() {
    let rig = Rig::shared("client-interrupt");
    let cluster = cluster(&rig);
    create(&cluster, &rig.tasks(), 1, &[]);
    let options = ReaderOptions { max_wait: Duration::from_secs(30), max_bytes: 1 << 20, min_bytes: 1 };
    let mut reader = Reader::new(cluster.clone(), &rig.tasks(), StartAt::Latest, options);
    let interrupter = cluster.options().interrupter.clone();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            while !matches!(reader.poll(), Err(KafkaError::Interrupted)) {}
            Instant::now()
        });
        // After the round trip of a record the reader is in its poll.
        deliver(&cluster, vec![record(&rig.tasks(), "key", "value")]);
        let begin = Instant::now();
        interrupter.interrupt();
        let ended = reading.join().expect("the reader ends");
        assert!(ended.duration_since(begin) < Duration::from_secs(5), "the reader waited for its 30 s");
    });
    assert!(matches!(cluster.refresh(&[]), Err(KafkaError::Interrupted)));
}

#[test]
fn a_refused_record_does_not_fail_other_records() {
    let rig = Rig::shared("client-refused");
    let cluster = cluster(&rig);
    create(&cluster, &rig.tasks(), 1, &[("max.message.bytes", "4000")]);
    let large = "x".repeat(5000);
    let (producer, told) = producer(&cluster);
    for token in 0..100 {
        let value = if [13, 14, 77].contains(&token) { large.as_str() } else { "small" };
        producer.send(record(&rig.tasks(), &format!("key-{token}"), value), token).expect("open");
    }
    let mut refused = Vec::new();
    for _ in 0..100 {
        match outcome(&told) {
            (_, Ok(_)) => {}
            (token, Err(DeliveryError::Refused { code: ErrorCode::MESSAGE_TOO_LARGE, .. })) => refused.push(token),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, [13, 14, 77]);
    let keys: Vec<String> = audit::read(rig.broker().address(), &rig.tasks()).iter().map(audit::Record::key).collect();
    let expected: Vec<String> =
        (0..100).filter(|token| !refused.contains(token)).map(|token| format!("key-{token}")).collect();
    assert_eq!(keys, expected, "the other records, once and in order");
}

#[test]
fn a_withdrawn_record_is_not_sent() {
    let rig = Rig::shared("client-dropped");
    let cluster = cluster(&rig);
    create(&cluster, &rig.tasks(), 1, &[]);
    let (deliveries, told) = bounded(100);
    let events = Told { deliveries, drops_odd: true };
    let producer = Producer::start("test-producer", cluster, ProducerOptions::default(), events, Stop::new());
    for token in 0..10 {
        producer.send(record(&rig.tasks(), &token.to_string(), "value"), token).expect("open");
    }
    producer.close(Instant::now() + SOON);
    assert_eq!(told.try_iter().map(|delivery| delivery.token).collect::<Vec<_>>(), [0, 2, 4, 6, 8]);
    assert_eq!(audit::read(rig.broker().address(), &rig.tasks()).len(), 5);
}

#[test]
fn a_batch_of_unknown_outcome_is_looked_up_before_it_is_written_again() {
    use Action::{CutAfter, CutBefore, Misreport, Refuse};
    let rig = Rig::with_faults("client-unknown", 1);
    let cluster = cluster(&rig);
    create(&cluster, &rig.tasks(), 1, &[]);
    let (producer, told) = producer(&cluster);
    let mut expected = 0;
    // Each produce request meets the next action.
    let mut send = |actions: &[Action]| {
        let faults = (0..).zip(actions).map(|(index, action)| Fault::new(*action).at(Kind::Produce).after(index));
        let bites: Vec<Bites> = faults.map(|fault| rig.broker().faulty().inject(fault)).collect();
        producer.send(record(&rig.tasks(), &format!("key-{expected}"), "value"), expected).expect("open");
        let (token, delivered) = outcome(&told);
        let offset = i64::try_from(expected).expect("few");
        assert_eq!((token, delivered), (expected, Ok(Delivered { partition: 0, offset })), "{actions:?}");
        assert!(bites.iter().all(|bites| bites.count() == 1), "{actions:?}");
        expected += 1;
    };
    send(&[]);
    // The broker recognises the repeated batch.
    send(&[CutAfter]);
    send(&[CutBefore, CutAfter, CutAfter, CutBefore]);
    for code in [45, 47, 59].map(ErrorCode) {
        // The batch is in the log, but the broker does not know the producer.
        send(&[CutAfter, Misreport(code)]);
        send(&[Misreport(code)]);
        // The batch is not in the log.
        send(&[CutBefore, Refuse(code)]);
        send(&[Refuse(code)]);
        send(&[]);
    }
    // Written to too few replicas (20); then a code (32) that would be final for a batch that was not written.
    send(&[Misreport(ErrorCode(20)), Misreport(ErrorCode(32))]);
    // The partition has no leader for a moment.
    send(&[6, 5, 3, 14].map(|code| Refuse(ErrorCode(code))));
    let keys: Vec<String> = audit::read(rig.broker().address(), &rig.tasks()).iter().map(audit::Record::key).collect();
    assert_eq!(keys, (0..expected).map(|number| format!("key-{number}")).collect::<Vec<_>>());
}
