//! Topics, records, offsets and settings.

use super::*;

#[test]
fn unknown_requests_and_versions_close_the_connection() {
    let rig = Rig::shared("is-unknown");
    let broker = rig.broker().address();
    for (key, version) in [(999, 0), (0, 2), (0, 14), (1, 3), (3, 14), (11, 0), (78, 3), (76, 0)] {
        assert!(Wire::connect(broker).hangs_up_at(key, version), "{key} {version}");
    }
    let mut wire = Wire::connect(broker);
    wire.send(18, 99, 2, b"");
    let mut answer = wire.receive(0).expect("answered in version 0");
    assert_eq!(ApiVersionsResponse::decode(&mut answer, 0).expect("readable").error_code, 35);
}

#[test]
fn create_topics_refuses_existing_names_and_invalid_values() {
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
    assert_eq!((create(new, 0, 0, None), create(new, 0, 3, None)), (38, 37), "the order of the checks");
    assert_eq!(create(&there.replacen('-', "_", 1), 1, 1, None), 0);
    assert_eq!(create(new, 1, 1, Some(("retention.msec", "1"))), 40);
    assert_eq!(create(new, 1, 1, Some(("retention.ms", "soon"))), 40);
    assert_eq!(create(new, -1, -1, Some(("retention.ms", "1000"))), 0);
}

#[test]
fn metadata_of_missing_topics_has_their_error_codes() {
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
fn sequence_numbers_of_an_idempotent_producer_are_checked() {
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
    assert_eq!(send(first, 0, 3, 1).0, 47, "an earlier epoch");
    assert_eq!(send(second, 0, 9, 1), (0, 4), "the first batch of a producer may have any number");
    for number in 1..=5 {
        assert_eq!(send(first, 1, number, 1), (0, 4 + i64::from(number)));
    }
    assert_eq!(send(first, 1, 1, 1), (0, 5), "the broker remembers five batches");
    assert_eq!(send(first, 1, 0, 1).0, 45, "the broker has forgotten the sixth");
    let empty = InitProducerIdRequest::default().with_transactional_id(Some(TransactionalId(text(""))));
    assert_eq!(place.wire.call(3, &empty).error_code, 42);
}

#[test]
fn invalid_batches_are_refused() {
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
    assert_eq!(session::produce_to(&mut place.wire, (&topic, 0), good.clone(), 2).0, 21);
    assert_eq!(session::produce_to(&mut place.wire, (&topic, 0), good, 1), (0, 0));
}

#[test]
fn a_fetch_returns_whole_batches_and_waits_for_records() {
    let mut place = Place::new("is-fetch");
    let topic = place.topic.clone();
    let one = plain(3).len();
    for _ in 0..3 {
        place.produce(3);
    }
    let (error, all) = fetch(&mut place.wire, &topic, 1, 0, 1 << 20);
    assert_eq!((error, all.len()), (0, 3 * one), "whole batches, with the records before the offset");
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
fn list_offsets_finds_offsets_by_time() {
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
    assert_eq!(at(milliseconds(ago(100))), (0, 2), "a record of this very time");
    assert_eq!(at(milliseconds(ago(50))), (0, -1));
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
    eventually(SOON, "the broker has the new settings", || {
        admin::configs(&broker, Group, &group)["share.record.lock.duration.ms"] == "15000"
            && admin::configs(&broker, Topic, &topic)["retention.ms"] == "60000"
    });
    assert_eq!(set(Topic, &topic, "retention.ms", None), 0);
    eventually(SOON, "the default is back", || admin::configs(&broker, Topic, &topic)["retention.ms"] == "604800000");
}
