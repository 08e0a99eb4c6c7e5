//! Share sessions and leaders in a cluster of three nodes: responses of Apache Kafka 4.4 to single requests. The same
//! tests run on both brokers. crates/model/README.md says how the worker uses these facts.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use kafka_protocol::{
    messages::{
        DescribeShareGroupOffsetsRequest, GroupId, TopicName,
        describe_share_group_offsets_request::{
            DescribeShareGroupOffsetsRequestGroup, DescribeShareGroupOffsetsRequestTopic,
        },
    },
    protocol::StrBytes,
};
use kafka_share::{
    ClientOptions,
    share_session::{ShareIdentity, ShareSession},
    share_wire::{Acknowledgements, FetchLimits, SharePartition},
};
use uuid::Uuid;

use crate::support::{
    SOON,
    admin::{self, CLIENT, DEBUGGING_CONSUMER, LATEST, MAX_TIME, list_offset},
    cluster::{Cluster, PATIENCE, SESSION_TIMEOUT},
    eventually,
    session::{self, ACCEPT, Acquired, RELEASE, Session, be_parked},
};

/// A topic in the cluster, and a group that starts at the earliest offset.
struct Scene {
    cluster: Cluster,
    topic: String,
    id: Uuid,
    group: String,
}

impl Scene {
    fn new(name: &str, partitions: i32, replicas: i16) -> Scene {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let cluster = Cluster::new();
        let unique = format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let (topic, group) = (format!("{unique}-topic"), format!("{unique}-group"));
        let id = cluster.create_topic(&topic, partitions, replicas);
        let scene = Scene { cluster, topic, id, group };
        let coordinator = scene.cluster.coordinator(&scene.group);
        let mut wire = scene.cluster.wire(coordinator);
        session::prepare_group(&mut wire, &scene.group, &scene.topic, partitions);
        scene
    }

    fn leader(&self, partition: i32) -> i32 {
        self.cluster.leader(&self.topic, partition)
    }

    /// A node that is none of these.
    fn other_than(&self, nodes: &[i32]) -> i32 {
        self.cluster.other_than(nodes)
    }

    fn move_leader(&self, partition: i32, to: i32) {
        self.cluster.move_leader(&self.topic, partition, to);
    }

    /// Produces a record at this node; returns error code and offset.
    fn produce_at(&self, node: i32, partition: i32) -> (i16, i64) {
        session::produce(&mut self.cluster.wire(node), &self.topic, partition)
    }

    /// Produces this many records, each in its own batch.
    fn produce(&self, partition: i32, count: usize) {
        for _ in 0..count {
            eventually(PATIENCE, "the leader takes a record", || {
                self.produce_at(self.leader(partition), partition).0 == 0
            });
        }
    }

    /// A member's session with a node; its first request opens it.
    fn member(&self, name: &str, node: i32) -> Session {
        Session::new(self.cluster.wire(node), self.id, &self.group, name)
    }

    /// Opens sessions with the leader until one has acquired this many records; returns it with the records.
    fn served(&self, name: &str, partition: i32, records: usize) -> (Session, Vec<Acquired>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut session = self.member(name, self.leader(partition));
            let mut got = session.fetch(0, &[partition]).acquired(partition);
            while got.len() < records && Instant::now() < deadline {
                let told = session.fetch(100, &[]);
                // A session with records is kept: its end would release them and raise their delivery counts.
                if got.is_empty() && (told.error != 0 || told.error_of(partition) != 0) {
                    break;
                }
                got.extend(told.acquired(partition));
            }
            if got.len() >= records || Instant::now() > deadline {
                return (session, got);
            }
        }
    }
}

/// So a worker can take tasks from partitions that the group assigns to another member, which may be dead.
#[test]
fn a_leader_serves_members_without_an_assignment() {
    let scene = Scene::new("whose", 1, 3);
    let other = format!("{}-other", scene.topic);
    let id = scene.cluster.create_topic(&other, 1, 3);
    let leader = scene.cluster.leader(&other, 0);
    assert_eq!(session::produce(&mut scene.cluster.wire(leader), &other, 0).0, 0);
    // No member of this name has joined, and no member has subscribed to this topic.
    let mut stranger = Session::new(scene.cluster.wire(leader), id, &scene.group, "stranger");
    let told = stranger.fetch(100, &[0]);
    assert_eq!((told.error, told.error_of(0)), (0, -1), "the group has no state for the partition");
    let coordinator = scene.cluster.coordinator(&scene.group);
    session::prepare_group(&mut scene.cluster.wire(coordinator), &scene.group, &other, 1);
    let mut got = Vec::new();
    eventually(PATIENCE, "the stranger acquires a record", || {
        got = stranger.fetch(100, &[]).acquired(0);
        !got.is_empty()
    });
    assert_eq!(got, [(0, 1)], "the partition is assigned to another member");
    assert_eq!(stranger.acknowledge(&[(0, 0, ACCEPT)]), (0, vec![0]));
}

#[test]
fn epoch_0_on_the_same_connection_keeps_the_locks() {
    let scene = Scene::new("again", 1, 3);
    scene.produce(0, 2);
    let (mut a, got) = scene.served("a", 0, 2);
    assert_eq!(got, [(0, 1), (1, 1)]);
    a.epoch = 7;
    assert_eq!(a.fetch(0, &[]).error, 123, "a wrong epoch");
    a.epoch = 0;
    let told = a.fetch(100, &[0]);
    assert_eq!((told.error, told.acquired(0)), (0, vec![]), "its own records are not delivered again");
    let mut b = scene.member("b", scene.leader(0));
    assert_eq!(b.fetch(200, &[0]).acquired(0), [], "nor to another member");
    assert_eq!(a.acknowledge(&[(0, 0, ACCEPT)]), (0, vec![0]));
    assert_eq!(a.acknowledge(&[(0, 1, RELEASE)]), (0, vec![0]));
    assert_eq!(b.fetch(5000, &[]).acquired(0), [(1, 2)]);
}

#[test]
fn a_second_connection_of_the_same_member_takes_the_session_over_with_its_locks() {
    let scene = Scene::new("takeover", 1, 3);
    scene.produce(0, 1);
    let (mut old, got) = scene.served("a", 0, 1);
    assert_eq!(got, [(0, 1)]);
    let mut new = scene.member("a", scene.leader(0));
    let told = new.fetch(0, &[0]);
    assert_eq!((told.error, told.acquired(0)), (0, vec![]));
    old.epoch = 5;
    assert_eq!(old.fetch(0, &[]).error, 123, "the old connection's session has ended");
    drop(old);
    let mut b = scene.member("b", scene.leader(0));
    assert_eq!(b.fetch(500, &[0]).acquired(0), [], "the end of the old connection releases no record");
    assert_eq!(new.acknowledge(&[(0, 0, RELEASE)]), (0, vec![0]));
    assert_eq!(b.fetch(5000, &[]).acquired(0), [(0, 2)]);
}

#[test]
fn a_fetch_that_is_parked_on_the_old_connection_gets_the_next_record() {
    let scene = Scene::new("parked", 1, 3);
    scene.produce(0, 1);
    let (mut old, _) = scene.served("a", 0, 1);
    old.send_fetch(20_000, &[], &[]);
    be_parked();
    let mut new = scene.member("a", scene.leader(0));
    assert_eq!(new.fetch(0, &[0]).error, 0);
    scene.produce(0, 1);
    let told = old.told();
    assert_eq!((told.error, told.acquired(0)), (0, vec![(1, 1)]));
    assert_eq!(
        new.acknowledge(&[(0, 1, ACCEPT)]),
        (0, vec![0]),
        "the record belongs to the member, not to the connection"
    );
}

#[test]
fn forgetting_a_partition_releases_no_record() {
    let scene = Scene::new("forget", 2, 3);
    let node = scene.leader(0);
    scene.move_leader(1, node);
    scene.produce(0, 1);
    scene.produce(1, 2);
    let (mut a, got) = scene.served("a", 0, 1);
    assert_eq!(got, [(0, 1)]);
    let mut held = Vec::new();
    eventually(SOON, "the member has both records of the other partition", || {
        let add: &[i32] = if held.is_empty() { &[1] } else { &[] };
        held.extend(a.fetch(100, add).acquired(1));
        held.len() == 2
    });
    a.send_fetch(0, &[], &[1]);
    assert_eq!(a.told().error, 0);
    let mut b = scene.member("b", node);
    assert_eq!(b.fetch(300, &[1]).acquired(1), [], "records of a forgotten partition stay locked");
    assert_eq!(a.acknowledge(&[(1, 0, ACCEPT)]), (0, vec![0]), "the member can still accept them");
    assert_eq!(a.close(), 0);
    let told = b.fetch(300, &[0]);
    assert_eq!(
        (told.acquired(0), told.acquired(1)),
        (vec![(0, 2)], vec![]),
        "a close releases only records of partitions in the session"
    );
}

/// The worker's client adds the partitions that a search has left out.
#[test]
fn a_partition_that_returns_to_the_session_is_released_with_the_connection() {
    let scene = Scene::new("add", 2, 3);
    let node = scene.leader(0);
    scene.move_leader(1, node);
    scene.produce(0, 2);
    scene.produce(1, 2);
    let address = scene.cluster.address(node).parse().expect("an address");
    let client = kafka_share::Cluster::new(ClientOptions::new(vec![address], "add"));
    let identity = ShareIdentity { group: scene.group.as_str().into(), member: "a".into() };
    let mut a = ShareSession::connect(&client, node, identity).expect("the node takes connections");
    let partition = |index| SharePartition { topic_id: scene.id, partition: index };
    let one_record = FetchLimits { max_wait: Duration::from_millis(100), max_bytes: 1 << 20, max_records: 1 };
    let read = |a: &mut ShareSession| a.receive(PATIENCE).expect("a connection").expect("a response");
    a.send_open(&[0, 1].map(partition).into()).expect("a connection");
    read(&mut a);
    for index in [0, 1] {
        eventually(PATIENCE, "the member has one record of the partition", || {
            a.send_fetch(&[partition(index)].into(), Acknowledgements::new(), one_record).expect("a connection");
            read(&mut a).acquired.len() == 1
        });
    }
    a.send_add(&[partition(0)].into()).expect("a connection");
    let added = read(&mut a);
    assert!(added.refused.is_none() && added.partition_errors.is_empty() && added.acquired.is_empty(), "{added:?}");
    drop(a);
    let mut b = scene.member("b", node);
    let mut got = [Vec::new(), Vec::new()];
    eventually(SOON, "both partitions are released, although one had left the session", || {
        let told = b.fetch(100, if b.epoch == 0 { &[0, 1] } else { &[] });
        (0..).zip(&mut got).for_each(|(index, got)| got.extend(told.acquired(index)));
        got.iter().all(|got| got.len() == 2)
    });
    // The count of the released record is 1 in some runs beside other tests of the cluster; only its release matters.
    got.iter_mut().for_each(|got| got.sort_unstable());
    assert_eq!(got.map(|got| got.iter().map(|(offset, _)| *offset).collect::<Vec<_>>()), [[0, 1], [0, 1]]);
}

#[test]
fn an_election_releases_acquired_records_and_keeps_acknowledgements() {
    let scene = Scene::new("election", 1, 3);
    scene.produce(0, 4);
    let (mut a, got) = scene.served("a", 0, 4);
    assert_eq!(got.len(), 4, "{got:?}");
    assert_eq!(a.acknowledge(&[(0, 1, ACCEPT)]), (0, vec![0]));
    assert_eq!(a.acknowledge(&[(0, 2, RELEASE)]), (0, vec![0]));
    assert_eq!(a.fetch(5000, &[]).acquired(0), [(2, 2)]);
    let (before, old) = (scene.cluster.told(1, &scene.topic, 0).expect("known"), scene.leader(0));
    let new = scene.other_than(&[old]);
    scene.move_leader(0, new);
    eventually(PATIENCE, "the old leader knows the new one", || {
        scene.cluster.told(old, &scene.topic, 0).is_some_and(|told| told.leader == new)
    });
    assert!(scene.cluster.told(old, &scene.topic, 0).expect("known").epoch > before.epoch);

    assert_eq!(scene.produce_at(old, 0).0, 6);
    let told = a.fetch(100, &[]);
    assert_eq!((told.error, &told.partitions[&0]), (0, &(6, new, vec![])), "the old leader names the new one");
    assert_eq!(a.acknowledge(&[(0, 0, ACCEPT)]), (0, vec![3]), "the old leader accepts no acknowledgement");

    eventually(PATIENCE, "the new leader has read its state", || {
        admin::end_offset(&scene.cluster.address(new), &scene.topic, 0).is_ok()
    });
    let mut holder = scene.member("a", new);
    assert_eq!(holder.fetch(0, &[]).error, 0, "a session without partitions");
    assert_eq!(holder.acknowledge(&[(0, 0, ACCEPT)]), (0, vec![3]), "no member has fetched at the new leader");
    let (_b, mut got) = scene.served("b", 0, 3);
    got.sort_unstable();
    assert_eq!(got, [(0, 1), (2, 2), (3, 1)], "acknowledgements are persistent, acquisitions are not");
    assert_eq!(holder.acknowledge(&[(0, 0, ACCEPT)]), (0, vec![121]), "another member has it");
    assert_eq!(holder.acknowledge(&[(0, 50, ACCEPT)]), (0, vec![42]), "the offset is in no delivered batch");
}

#[test]
fn a_fetch_that_is_parked_while_the_leader_moves_is_not_woken() {
    let scene = Scene::new("unwoken", 1, 3);
    scene.produce(0, 1);
    let (mut a, _) = scene.served("a", 0, 1);
    let old = scene.leader(0);
    let begin = Instant::now();
    a.send_fetch(4000, &[], &[]);
    be_parked();
    scene.move_leader(0, scene.other_than(&[old]));
    let told = a.told();
    assert_eq!((told.error, told.error_of(0), told.acquired(0)), (0, 0, vec![]));
    assert!(begin.elapsed() >= Duration::from_millis(3900), "{:?}", begin.elapsed());
    assert_eq!(a.fetch(100, &[]).error_of(0), 6);
}

#[test]
fn a_moved_partition_has_an_error_and_the_others_are_served() {
    let scene = Scene::new("own", 2, 3);
    let node = scene.leader(0);
    scene.move_leader(1, node);
    scene.produce(0, 1);
    scene.produce(1, 1);
    let (mut a, _) = scene.served("a", 0, 1);
    eventually(SOON, "the member has the other partition's record", || !a.fetch(100, &[1]).acquired(1).is_empty());
    let new = scene.other_than(&[node]);
    scene.move_leader(1, new);
    eventually(PATIENCE, "the old leader knows the new one", || {
        scene.cluster.told(node, &scene.topic, 1).is_some_and(|told| told.leader == new)
    });
    for _ in 0..2 {
        let begin = Instant::now();
        let told = a.fetch(500, &[]);
        assert_eq!((told.error, told.error_of(0), told.partitions[&1].0, told.partitions[&1].1), (0, 0, 6, new));
        assert!(
            begin.elapsed() >= Duration::from_millis(450),
            "the fetch did not wait for the other partition: {:?}",
            begin.elapsed()
        );
    }
    scene.produce(0, 1);
    assert_eq!(a.fetch(5000, &[]).acquired(0), [(1, 1)], "the other partition is served");
    assert_eq!(a.acknowledge(&[(0, 0, ACCEPT), (1, 0, ACCEPT)]), (0, vec![0, 3]), "each partition has its own error");
    a.send_fetch(0, &[], &[1]);
    let told = a.told();
    assert_eq!((told.error, told.error_of(1)), (0, 0), "a forgotten partition has no error");
    scene.move_leader(1, node);
    scene.produce(1, 1);
    let mut got = Vec::new();
    eventually(PATIENCE, "the partition moved back and added again is served", || {
        got.extend(a.fetch(100, &[1]).acquired(1));
        got.contains(&(1, 1))
    });
    assert_eq!(a.acknowledge(&[(0, 1, ACCEPT)]), (0, vec![0]), "the other partition lost its lock");
}

/// Ends a leader and asserts that another node leads after at least this time, or before the end if the time is zero.
fn is_replaced(name: &str, end: fn(&Cluster, i32), undo: fn(&Cluster, i32), at_least: Duration) {
    let scene = Scene::new(name, 1, 3);
    scene.produce(0, 2);
    let (_a, got) = scene.served("a", 0, 2);
    assert_eq!(got, [(0, 1), (1, 1)]);
    let old = scene.leader(0);
    let before = scene.cluster.told(old, &scene.topic, 0).expect("known");
    let begin = Instant::now();
    end(&scene.cluster, old);
    let ended = Instant::now();
    let other = scene.other_than(&[old]);
    eventually(PATIENCE, "another node leads", || {
        scene.cluster.told(other, &scene.topic, 0).is_some_and(|told| ![old, -1].contains(&told.leader))
    });
    let graceful = at_least.is_zero();
    assert!(
        !graceful || ended.elapsed() < SESSION_TIMEOUT / 2,
        "the leader was replaced only after its end: {:?}",
        ended.elapsed()
    );
    // The leader's last heartbeat may be as old as its heartbeat interval.
    assert!(begin.elapsed() + Duration::from_secs(1) > at_least, "{:?}", begin.elapsed());
    let after = scene.cluster.told(other, &scene.topic, 0).expect("known");
    assert!(after.epoch > before.epoch && !after.in_sync.contains(&old), "{before:?} {after:?}");
    assert!(!scene.cluster.living(other).contains(&old), "Metadata names the ended node");
    let (_b, mut got) = scene.served("b", 0, 2);
    got.sort_unstable();
    if graceful {
        // The end of the session may have released them before, which raises their delivery counts.
        assert_eq!(got.iter().map(|record| record.0).collect::<Vec<_>>(), [0, 1], "{got:?}");
    } else {
        assert_eq!(got, [(0, 1), (1, 1)], "acquisitions are not persistent");
    }
    assert_eq!(scene.produce_at(scene.leader(0), 0).0, 0, "two replicas in sync are enough");
    undo(&scene.cluster, old);
    scene.cluster.wait_in_sync(&scene.topic, 0);
}

#[test]
fn a_killed_leader_is_replaced_after_its_session_timeout() {
    is_replaced("killed", Cluster::kill, Cluster::start, SESSION_TIMEOUT);
}

#[test]
fn a_frozen_leader_is_replaced_after_its_session_timeout() {
    is_replaced("frozen", Cluster::freeze, Cluster::thaw, SESSION_TIMEOUT);
}

#[test]
fn a_leader_that_stops_is_replaced_before_it_ends() {
    is_replaced("stopped", Cluster::stop, Cluster::start, Duration::ZERO);
}

#[test]
fn acks_of_all_wait_for_a_silent_replica_until_it_is_fenced() {
    let scene = Scene::new("acks", 1, 3);
    scene.produce(0, 1);
    let leader = scene.leader(0);
    let follower = scene.other_than(&[leader]);
    let begin = Instant::now();
    scene.cluster.freeze(follower);
    assert_eq!(scene.produce_at(leader, 0), (0, 1));
    assert!(begin.elapsed() + Duration::from_secs(1) > SESSION_TIMEOUT, "{:?}", begin.elapsed());
    let told = scene.cluster.told(leader, &scene.topic, 0).expect("known");
    assert_eq!(told.in_sync.len(), 2, "{told:?}");
    let begin = Instant::now();
    assert_eq!(scene.produce_at(leader, 0), (0, 2));
    assert!(begin.elapsed() < SESSION_TIMEOUT / 2, "{:?}", begin.elapsed());
    scene.cluster.thaw(follower);
    scene.cluster.wait_in_sync(&scene.topic, 0);
}

/// Sends DescribeShareGroupOffsets to all nodes but `not`; returns the coordinator's error codes, of the group and of
/// each partition.
fn share_offsets(scene: &Scene, not: i32, partitions: Vec<i32>) -> Option<(i16, Vec<i16>)> {
    const NOT_COORDINATOR: i16 = 16;
    let topic = TopicName(StrBytes::from_string(scene.topic.clone()));
    let topic = DescribeShareGroupOffsetsRequestTopic::default().with_topic_name(topic).with_partitions(partitions);
    let group = GroupId(StrBytes::from_string(scene.group.clone()));
    let group = DescribeShareGroupOffsetsRequestGroup::default().with_group_id(group).with_topics(Some(vec![topic]));
    let request = DescribeShareGroupOffsetsRequest::default().with_groups(vec![group]);
    let nodes = (1..=3).filter(|node| *node != not);
    let answers = nodes.map(|node| scene.cluster.wire(node).call(0, &request).groups.remove(0));
    let answer = answers.into_iter().find(|group| group.error_code != NOT_COORDINATOR)?;
    let mut partitions = answer.topics.into_iter().flat_map(|topic| topic.partitions).collect::<Vec<_>>();
    partitions.sort_by_key(|partition| partition.partition_index);
    Some((answer.error_code, partitions.iter().map(|partition| partition.error_code).collect()))
}

#[test]
fn offsets_of_a_group_have_an_error_where_a_partition_has_no_leader() {
    let scene = Scene::new("group-offsets", 2, 1);
    let (down, up) = (scene.leader(0), scene.leader(1));
    assert_ne!(down, up, "one node leads both partitions");
    scene.produce(0, 1);
    scene.produce(1, 1);
    let (_a, _) = scene.served("a", 0, 1);
    let (_b, _) = scene.served("b", 1, 1);
    scene.cluster.stop(down);
    // A partition with a leader has no error, beside the other one or alone.
    eventually(PATIENCE, "only the partition without a leader has an error", || {
        share_offsets(&scene, down, vec![0, 1]) == Some((0, vec![5, 0]))
    });
    assert_eq!(share_offsets(&scene, down, vec![1]), Some((0, vec![0])));
    scene.cluster.start(down);
}

#[test]
fn a_partition_of_one_replica_has_no_leader_while_its_node_is_down() {
    let scene = Scene::new("single", 1, 1);
    scene.produce(0, 1);
    let node = scene.leader(0);
    scene.cluster.stop(node);
    let other = scene.other_than(&[node]);
    eventually(PATIENCE, "the partition has no leader", || {
        scene.cluster.told(other, &scene.topic, 0).is_some_and(|told| (told.error, told.leader) == (5, -1))
    });
    scene.cluster.start(node);
    eventually(PATIENCE, "the node leads again", || {
        scene.cluster.told(other, &scene.topic, 0).is_some_and(|told| told.leader == node)
    });
    let (_a, got) = scene.served("a", 0, 1);
    assert_eq!(got, [(0, 1)]);
}

/// Clients cannot read records before all replicas in sync have them, and a search by time does not find them. A
/// producer that looks for its own batch must know the end of the log. A reader that counts back from the latest record
/// must know that there is one.
#[test]
fn list_offsets_gives_clients_only_replicated_records_and_debugging_consumers_all() {
    let scene = Scene::new("end", 1, 3);
    scene.produce(0, 1);
    let leader = scene.leader(0);
    let frozen = scene.other_than(&[leader]);
    let address = scene.cluster.address(leader);
    let found = |replica, time| list_offset(&address, (&scene.topic, 0), replica, time).expect("a leader");
    eventually(SOON, "every replica has the first record", || found(CLIENT, LATEST) == 1);
    let between = SystemTime::now() + Duration::from_millis(1);
    eventually(SOON, "the second record has a later time", || SystemTime::now() > between);
    let between = i64::try_from(between.duration_since(UNIX_EPOCH).expect("later").as_millis()).expect("this century");
    scene.cluster.freeze(frozen);
    std::thread::scope(|scope| {
        let written = scope.spawn(|| scene.produce_at(leader, 0));
        eventually(SESSION_TIMEOUT, "the second record is written and not replicated", || {
            (found(DEBUGGING_CONSUMER, LATEST), found(CLIENT, LATEST)) == (2, 1)
        });
        let by_time = [MAX_TIME, between].map(|time| (found(DEBUGGING_CONSUMER, time), found(CLIENT, time)));
        assert_eq!(by_time, [(1, -1), (1, -1)]);
        scene.cluster.thaw(frozen);
        assert_eq!(written.join().expect("answered"), (0, 1));
    });
    eventually(SOON, "every replica has both records", || found(CLIENT, LATEST) == 2);
    assert_eq!([MAX_TIME, between].map(|time| found(CLIENT, time)), [1, 1]);
}
