//! Share groups: members, sessions, locks, lag.

use super::*;

#[test]
fn member_ids_and_epochs_are_checked() {
    let mut place = Place::new("is-members");
    let id = place.group(&[]).id;
    let (error, epoch, assigned) = place.beat(&id, "second", 0);
    assert_eq!((error, assigned), (0, Some(1)), "each member is assigned the only partition");
    assert_eq!(place.beat(&id, "second", epoch), (0, epoch, None));
    assert_eq!(place.beat(&id, "second", epoch + 5).0, 110);
    assert_eq!(place.beat(&id, "second", 1).0, 110, "an earlier epoch");
    assert_eq!(place.beat(&id, &"m".repeat(37), 0).0, 42, "longer than a UUID");
    assert_eq!(place.beat(&id, "stranger", 3).0, 25);
    assert_eq!(place.beat(&id, "", 0).0, 42);
    let (error, again, assigned) = place.beat(&id, "second", 0);
    assert_eq!((error, again, assigned), (0, epoch, Some(1)), "joins again with the same id");
    assert_eq!(place.beat(&id, "second", -1), (0, -1, None));
    assert_eq!(place.beat(&id, "second", epoch).0, 25);
    let request = AlterShareGroupOffsetsRequest::default().with_group_id(GroupId(text(&id)));
    assert_eq!(place.wire.call(0, &request).error_code, 68, "the first member is still in the group");
    assert_eq!(place.beat(&id, "first", -1).0, 0);
}

#[test]
fn a_full_group_refuses_new_members() {
    let mut place = Place::on(Rig::with_own_broker("is-full", &["--set", "group.share.max.size=2"]), &[]);
    let id = place.group(&[]).id;
    assert_eq!(place.beat(&id, "second", 0).0, 0);
    assert_eq!(place.beat(&id, "third", 0).0, 81);
    assert_eq!(place.beat(&id, "second", -1).0, 0);
    assert_eq!(place.beat(&id, "third", 0).0, 0);
}

#[test]
fn share_session_epochs_are_checked() {
    let mut place = Place::new("is-sessions");
    place.produce(1);
    let group = place.group(&[]);
    let mut member = group.member("m");
    member.epoch = 3;
    assert_eq!(member.fetch(1, 0, &[]).error, 122, "there is no session");
    assert_eq!(member.acknowledge(&[]).0, 122);
    member.epoch = 0;
    assert_eq!(member.acknowledge(&[]).0, 123, "only a fetch opens a session");
    member.epoch = 0;
    assert_eq!(member.fetch(0, 0, &[(0, Accept)]).error, 42, "a request that opens a session cannot acknowledge");
    member.epoch = 0;
    assert_eq!(member.fetch(0, 0, &[]).error, 0);
    assert_eq!(member.eventually(10), [(0, 0, 1)]);
    let epoch = member.epoch;
    member.epoch = epoch + 1;
    assert_eq!(member.fetch(1, 0, &[]).error, 123);
    member.epoch = epoch;
    assert_eq!(member.acknowledge(&[(0, Accept)]), (0, 0), "the session is unchanged");
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
    assert_eq!(a.acknowledge(&[(1, Accept)]), (0, 121), "a record of another session");
    assert_eq!(a.acknowledge(&[(0, Accept), (50, Accept)]), (0, 121), "a record that no session holds");
    assert_eq!(a.acknowledge(&[(0, Accept)]), (0, 0), "the refused request changed nothing");
    assert_eq!(a.acknowledge(&[(0, Accept)]), (0, 0), "a record before the start offset is not checked");
    assert_eq!(b.acknowledge(&[(1, Renew), (2, Release)]), (0, 0));
    assert_eq!(
        a.eventually(2),
        [(2, 2, 2), (3, 3, 1)],
        "the released record comes first, with a higher delivery count"
    );
    let rode = b.fetch(1, 5000, &[(1, Accept)]);
    assert_eq!((rode.acknowledge_error, rode.acquired), (0, vec![(4, 4, 1)]));
    drop(b);
    // The end of b's connection releases record 4.
    eventually(SOON, "the record of the closed connection is delivered", || {
        let got = a.fetch(1, 50, &[]).acquired;
        got.contains(&(4, 4, 2))
    });
    assert_eq!(a.close(), (0, 0));
    let mut c = group.open("c");
    let mut seen = Vec::new();
    eventually(SOON, "the records of the closed session are delivered with a higher delivery count", || {
        seen.extend(c.fetch(3, 50, &[]).acquired);
        [(2, 2, 3), (3, 3, 2), (4, 4, 3)].iter().all(|range| seen.contains(range))
    });
}

#[test]
fn a_record_released_at_its_delivery_limit_is_not_delivered_again() {
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
fn a_full_span_of_locks_stops_the_delivery() {
    let mut place = Place::new("is-span");
    for _ in 0..3 {
        place.produce(100);
    }
    let group = place.group(&[("share.partition.max.record.locks", "100")]);
    let mut member = group.open("m");
    assert_eq!(member.eventually(1000), [(0, 99, 1)]);
    let all_but_first: Vec<_> = (1..100).map(|offset| (offset, Accept)).collect();
    assert_eq!(member.acknowledge(&all_but_first), (0, 0));
    assert_eq!(member.fetch(1000, 100, &[]).acquired, [], "the oldest record is not finished");
    assert_eq!(member.acknowledge(&[(0, Accept)]), (0, 0));
    assert_eq!(member.eventually(1000), [(100, 199, 1)]);
}

#[test]
fn records_and_expired_locks_but_not_releases_wake_a_parked_share_fetch() {
    let rig = Rig::with_own_broker("is-woken", &["--set", "group.share.min.record.lock.duration.ms=3000"]);
    let mut place = Place::on(rig, &[]);
    place.produce(1);
    let group = place.group(&[("share.record.lock.duration.ms", "3000")]);
    let (mut a, mut b) = (group.open("a"), group.open("b"));
    assert_eq!(a.eventually(1), [(0, 0, 1)]);
    // A released record is delivered only at the end of the wait.
    let begin = Instant::now();
    b.send_fetch(1, 500, &[]);
    be_parked();
    assert_eq!(a.acknowledge(&[(0, Release)]), (0, 0));
    assert_eq!(b.fetched().acquired, [(0, 0, 2)]);
    assert!(begin.elapsed() >= Duration::from_millis(450), "{:?}", begin.elapsed());
    // An expired lock ends the wait.
    let begin = Instant::now();
    a.send_fetch(1, 20_000, &[]);
    assert_eq!(a.fetched().acquired, [(0, 0, 3)]);
    assert!((Duration::from_millis(400)..Duration::from_secs(15)).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    assert_eq!(b.acknowledge(&[(0, Accept)]), (0, 121));
    assert_eq!(a.acknowledge(&[(0, Accept)]), (0, 0));
    // A new record ends the wait.
    a.send_fetch(1, 20_000, &[]);
    be_parked();
    group.place.produce(1);
    let begin = Instant::now();
    assert_eq!(a.fetched().acquired, [(1, 1, 1)]);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn auto_offset_reset_decides_where_a_new_group_starts() {
    for (reset, expected) in [("earliest", vec![(0, 2, 1)]), ("latest", vec![(3, 3, 1)])] {
        let mut place = Place::new(&format!("is-{reset}"));
        place.produce(3);
        let group = place.group(&[("share.auto.offset.reset", reset)]);
        let mut member = group.open("m");
        // The group's first fetch fixes the start offset.
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

#[test]
fn records_finished_after_the_start_offset_are_not_lag() {
    let mut place = Place::new("is-lag");
    place.produce(5);
    let group = place.group(&[]);
    assert_eq!(group.lag(), None, "no member has fetched");
    let mut member = group.open("m");
    assert_eq!(member.eventually(3), [(0, 2, 1)]);
    assert_eq!(member.acknowledge(&[(1, Accept), (2, Accept)]), (0, 0));
    eventually(SOON, "two of five are finished", || group.lag() == Some(3));
    assert_eq!(member.acknowledge(&[(0, Release)]), (0, 0));
    assert_eq!(group.lag(), Some(3), "a released record is not finished");
    assert_eq!(member.eventually(1), [(0, 0, 2)]);
    assert_eq!(member.acknowledge(&[(0, Accept)]), (0, 0));
    assert_eq!(member.eventually(2), [(3, 4, 1)]);
    assert_eq!(member.acknowledge(&[(3, Accept), (4, Accept)]), (0, 0));
    eventually(SOON, "all are finished", || group.lag() == Some(0));
}

#[test]
fn a_missing_group_has_no_start_offset() {
    let mut place = Place::new("is-offsets");
    let mut group = place.group(&[]);
    let there = group.id.clone();
    assert_eq!(group.offsets(), (0, -1), "no member has fetched");
    group.id = format!("{there}-not");
    assert_eq!(group.offsets(), (0, -1));
}
