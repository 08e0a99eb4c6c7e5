//! Share groups: members, sessions, locks, lag.

use super::*;

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
