//! Throttled connections and idle connections.

use devbroker::Kind;
use kafka_protocol::protocol::Encodable;

use super::*;
use crate::support::broker::THROTTLED_BATCH;

/// A batch of the size that [`Broker::throttle`](crate::support::broker::Broker::throttle) expects.
fn large() -> Bytes {
    let (one, two) = (plain(1).len(), plain(2).len());
    plain((THROTTLED_BATCH - one) / (two - one) + 1)
}

/// Repeats a request until its response is throttled, and checks three facts: that response comes at once, the next
/// request on the connection is answered after the throttle time, and a request on another connection at once.
fn assert_muted<T>(place: &mut Place, mut ask: impl FnMut(&mut Place) -> (i32, T)) -> T {
    let deadline = Instant::now() + SOON;
    let (asked_at, time, answer) = loop {
        let asked_at = Instant::now();
        // Apache Kafka applies the quota a moment later.
        match ask(place) {
            (0, _) => assert!(Instant::now() < deadline, "no response is throttled"),
            (time_ms, answer) => break (asked_at, Duration::from_millis(time_ms.unsigned_abs().into()), answer),
        }
    };
    let answered_at = Instant::now();
    assert!((Duration::from_secs(1)..Duration::from_secs(4)).contains(&time), "{time:?}");
    assert!(answered_at - asked_at < time / 2, "answered after {:?} of {time:?}", answered_at - asked_at);
    let mut other = Wire::connect(place.rig.broker().address());
    let metadata = MetadataRequest::default().with_topics(Some(Vec::new()));
    other.call(12, &metadata);
    assert!(answered_at.elapsed() < time / 2, "another connection waits as well");
    place.wire.call(12, &metadata);
    let waited = answered_at.elapsed();
    assert!(waited > time - Duration::from_millis(100), "read after {waited:?} of {time:?}");
    assert!(waited < time + Duration::from_secs(2), "read after {waited:?} of {time:?}");
    answer
}

#[test]
fn throttled_produce_is_answered_at_once_and_its_connection_is_silent() {
    let mut place = Place::on(Rig::with_own_broker("is-throttled", &[]), &[]);
    place.rig.broker().throttle(Kind::Produce);
    let records = large();
    let error = assert_muted(&mut place, |place| {
        let partition = PartitionProduceData::default().with_records(Some(records.clone()));
        let topic =
            TopicProduceData::default().with_name(topic_name(&place.topic)).with_partition_data(vec![partition]);
        let request = ProduceRequest::default().with_acks(-1).with_timeout_ms(5000).with_topic_data(vec![topic]);
        let answer = place.wire.call(7, &request);
        (answer.throttle_time_ms, answer.responses[0].partition_responses[0].error_code)
    });
    assert_eq!(error, 0);
    assert!(
        admin::end_offset(place.rig.broker().address(), &place.topic, 0).expect("known") > 0,
        "the produce had no effect"
    );
}

fn fetch_request(place: &Place, offset: i64, wait_ms: i32) -> FetchRequest {
    let partition = FetchPartition::default().with_current_leader_epoch(-1).with_fetch_offset(offset);
    let partition = partition.with_partition_max_bytes(1 << 20);
    let topic = FetchTopic::default().with_topic(topic_name(&place.topic)).with_partitions(vec![partition]);
    let request = FetchRequest::default().with_max_bytes(1 << 20).with_min_bytes(1).with_max_wait_ms(wait_ms);
    request.with_session_epoch(-1).with_topics(vec![topic])
}

#[test]
fn throttled_fetch_and_share_fetch_bring_no_records() {
    let mut place = Place::on(Rig::with_own_broker("is-throttled", &[]), &[]);
    let topic = place.topic.clone();
    assert_eq!(produce(&mut place.wire, &topic, large()).0, 0);
    let group = place.group(&[]);
    let (mut member, mut heir) = (group.open("m"), group.open("heir"));
    assert_eq!(member.eventually(2), [(0, 1, 1)]);
    place.rig.broker().throttle(Kind::Fetch);
    let topics = assert_muted(&mut place, |place| {
        let answer = place.wire.call(11, &fetch_request(place, 0, 0));
        (answer.throttle_time_ms, answer.responses.len())
    });
    assert_eq!(topics, 0);
    place.rig.broker().throttle(Kind::ShareFetch);
    std::mem::swap(&mut place.wire, &mut member.wire);
    let answer = assert_muted(&mut place, |place| {
        std::mem::swap(&mut place.wire, &mut member.wire);
        member.send_fetch(2, 0, &[(0, Accept), (1, Accept)]);
        let body = member.wire.receive(1).expect("a response");
        std::mem::swap(&mut place.wire, &mut member.wire);
        let answer = share_wire::decode_fetch(body).expect("readable");
        (answer.throttle_time_ms, answer)
    });
    assert_eq!((answer.error_code, answer.responses.len()), (0, 1), "the acknowledgements have no outcome");
    let partition = &answer.responses[0].partitions[0];
    assert_eq!((partition.acknowledge_error_code, &partition.acquired_records[..]), (0, &[][..]));
    assert!(partition.records.as_ref().is_none_or(Bytes::is_empty));
    place.rig.broker().unthrottle(Kind::ShareFetch);
    eventually(SOON, "no request is throttled", || {
        place.wire.call(11, &fetch_request(&place, 0, 0)).throttle_time_ms == 0
    });
    assert_eq!(heir.fetch(2, 0, &[]).acquired, [(4, 5, 1)], "the throttled fetch locks records without returning them");
}

/// Fetches until the connection is muted; returns when it is read again.
fn mute(member: &mut Member) -> Instant {
    let deadline = Instant::now() + SOON;
    loop {
        member.send_fetch(1, 0, &[]);
        let body = member.wire.receive(1).expect("a response");
        let time_ms = share_wire::decode_fetch(body).expect("readable").throttle_time_ms;
        if time_ms > 0 {
            return Instant::now() + Duration::from_millis(time_ms.unsigned_abs().into());
        }
        assert!(Instant::now() < deadline, "no response is throttled");
    }
}

/// A member whose session holds records from 0 on; returns when its muted connection is read again.
fn muted_holder(place: &mut Place) -> (Group<'_>, Member, Instant) {
    let topic = place.topic.clone();
    assert_eq!(produce(&mut place.wire, &topic, large()).0, 0);
    let group = place.group(&[]);
    let mut member = group.open("m");
    assert_eq!(member.eventually(2), [(0, 1, 1)]);
    let broker = group.place.rig.broker();
    broker.throttle(Kind::ShareFetch);
    let ends = mute(&mut member);
    broker.unthrottle(Kind::ShareFetch);
    (group, member, ends)
}

/// Fetches until this record, the first that is not acknowledged, is released; returns when that was.
fn first_release(heir: &mut Member, offset: i64) -> Instant {
    eventually(SOON, "the records are released", || {
        let got = heir.fetch(1, 10, &[]).acquired;
        assert!(got.iter().all(|range| range.0 >= offset), "{got:?}");
        got.iter().any(|range| range.0 == offset)
    });
    Instant::now()
}

#[test]
fn closing_request_on_another_connection_acknowledges_and_releases() {
    let mut place = Place::on(Rig::with_own_broker("is-throttled", &[]), &[]);
    let (group, mut member, ends) = muted_holder(&mut place);
    member.wire = Wire::connect(group.place.rig.broker().address());
    member.epoch = -1;
    assert_eq!(member.acknowledge(&[(0, Accept)]), (0, 0));
    assert!(Instant::now() < ends, "the connection is no longer muted");
    let released = first_release(&mut group.open("heir"), 1);
    assert!(released < ends, "released at the end of the throttle time");
}

#[test]
fn share_session_takes_requests_on_another_connection_and_stays_with_the_first() {
    let mut place = Place::on(Rig::with_own_broker("is-throttled", &[]), &[]);
    let (group, mut member, ends) = muted_holder(&mut place);
    let mut other = Wire::connect(group.place.rig.broker().address());
    std::mem::swap(&mut member.wire, &mut other);
    assert_eq!(member.acknowledge(&[(0, Renew), (1, Renew)]), (0, 0));
    assert_eq!(member.acknowledge(&[(0, Accept)]), (0, 0));
    assert!(Instant::now() < ends, "the connection is no longer muted");
    // The end of the other connection releases nothing, and the session goes on.
    std::mem::swap(&mut member.wire, &mut other);
    drop(other);
    assert_eq!(member.acknowledge(&[(1, Renew)]), (0, 0));
    assert!(Instant::now() >= ends - Duration::from_millis(200), "the muted connection was read");
    drop(member);
    first_release(&mut group.open("heir"), 1);
}

#[test]
fn end_of_a_throttled_connection_is_noticed_after_the_throttle_time() {
    let mut place = Place::on(Rig::with_own_broker("is-throttled", &[]), &[]);
    let (group, member, ends) = muted_holder(&mut place);
    drop(member);
    let early = ends.saturating_duration_since(first_release(&mut group.open("heir"), 0));
    assert!(early < Duration::from_millis(200), "released {early:?} before the end of the throttle time");
}

/// The broker closes connections that are idle for two seconds; Apache Kafka does so up to half a second later.
const IDLE: [&str; 2] = ["--set", "connections.max.idle.ms=2000"];

/// Waits until the broker closes the connection; returns the time since `since`.
fn closed_after(since: Instant, wire: &mut Wire) -> Duration {
    assert!(wire.receive(0).is_none(), "a response without a request");
    since.elapsed()
}

fn assert_idle_time(time: Duration) {
    assert!((Duration::from_millis(1950)..Duration::from_secs(5)).contains(&time), "{time:?}");
}

#[test]
fn idle_connections_are_closed() {
    let mut place = Place::on(Rig::with_own_broker("is-idle", &IDLE), &[]);
    let broker = place.rig.broker().address().to_owned();
    let since = Instant::now();
    assert_idle_time(closed_after(since, &mut Wire::connect(&broker)));
    place.wire = Wire::connect(&broker);
    let begin = Instant::now();
    let mut since = begin;
    // Each pause is shorter than the limit, all pauses together are longer; no condition shows idleness from outside.
    while begin.elapsed() < Duration::from_secs(4) {
        std::thread::sleep(Duration::from_millis(400));
        since = Instant::now();
        place.produce(1);
    }
    assert_idle_time(closed_after(since, &mut place.wire));
}

#[test]
fn parked_request_does_not_keep_its_connection_open() {
    let mut place = Place::on(Rig::with_own_broker("is-idle", &IDLE), &[]);
    let since = Instant::now();
    place.wire = Wire::connect(place.rig.broker().address());
    let mut body = BytesMut::new();
    fetch_request(&place, 0, 20_000).encode(&mut body, 11).expect("encodable");
    place.wire.send(ApiKey::Fetch as i16, 11, 1, &body);
    assert_idle_time(closed_after(since, &mut place.wire));
}

#[test]
fn share_session_of_an_idle_connection_ends_with_it() {
    let rig = Rig::with_own_broker("is-idle", &IDLE);
    for parks in [false, true] {
        let mut place = Place::on(Rig::beside(&rig, "is-idle"), &[]);
        place.produce(2);
        let group = place.group(&[]);
        let mut member = group.open("holder");
        assert_eq!(member.eventually(2), [(0, 1, 1)]);
        let since = Instant::now();
        if parks {
            member.send_fetch(1, 20_000, &[]);
        }
        assert_idle_time(closed_after(since, &mut member.wire));
        let got = group.open("heir").eventually(2);
        assert_eq!((got[0].0, got.last().map(|range| range.1)), (0, Some(1)), "its records are not released: {got:?}");
        // Apache Kafka does not always count the first delivery.
        assert!(got.iter().all(|range| (1..=2).contains(&range.2)), "{got:?}; parks: {parks}");
    }
}
