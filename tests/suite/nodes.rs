//! Faults of the embedded broker, tested by single requests: nodes that are cut off or fenced, deaf connections, faults
//! of one topic, partition or node, delayed share state. Apache Kafka cannot inject them; `leaders` tests its own
//! behaviour.

use std::time::{Duration, Instant};

use devbroker::{Action, Fault, Kind};
use kafka_protocol::{
    messages::{
        CreateTopicsRequest, FindCoordinatorRequest, GroupId, MetadataRequest, ShareGroupHeartbeatRequest, TopicName,
        create_topics_request::CreatableTopic, metadata_request::MetadataRequestTopic,
    },
    protocol::StrBytes,
};
use kafka_share::ErrorCode;
use uuid::Uuid;

use crate::{
    conformance,
    support::{
        Rig, SHORT_LOCKS, SOON, admin, eventually,
        session::{self, ACCEPT, Session},
        wire::Wire,
    },
};

/// Duration of a record lock with [`SHORT_LOCKS`].
const LOCK: Duration = Duration::from_secs(3);
const NOT_LEADER: ErrorCode = ErrorCode::NOT_LEADER_OR_FOLLOWER;

/// A topic, and a group that starts at the earliest offset, on the test's own embedded broker.
struct Scene {
    rig: Rig,
    topic: String,
    group: String,
    id: Uuid,
    /// Epoch of the member `first`.
    epoch: i32,
}

impl Scene {
    /// The nodes lead the partitions in turn; each node has a replica of each partition.
    fn new(name: &str, nodes: usize, partitions: i32, arguments: &[&str]) -> Scene {
        let rig = Rig::with_faults_and(name, nodes, arguments);
        let (topic, group) = (rig.tasks(), rig.group());
        rig.broker().faulty().move_coordinator(&group, 1);
        let mut wire = Wire::connect(rig.broker().address());
        let wanted = CreatableTopic::default()
            .with_name(TopicName(StrBytes::from_string(topic.clone())))
            .with_num_partitions(partitions)
            .with_replication_factor(i16::try_from(nodes).expect("few"));
        let created = wire.call(7, &CreateTopicsRequest::default().with_topics(vec![wanted]));
        assert_eq!(created.topics[0].error_code, 0);
        let epoch = session::prepare_group(&mut wire, &group, &topic, partitions);
        Scene { id: created.topics[0].topic_id, rig, topic, group, epoch }
    }

    fn wire(&self, node: usize) -> Wire {
        Wire::connect(&self.rig.broker().faulty().addresses()[node - 1].to_string())
    }

    fn member(&self, name: &str) -> Session {
        Session::new(self.wire(1), self.id, &self.group, name)
    }

    fn produce(&self, partition: i32) {
        assert_eq!(session::produce(&mut self.wire(1), &self.topic, partition).0, 0);
    }

    fn inject(&self, fault: Fault) {
        self.rig.broker().faulty().inject(fault);
    }
}

/// Waits for a moment that no condition shows.
fn until(moment: Instant) {
    std::thread::sleep(moment.saturating_duration_since(Instant::now()));
}

#[test]
fn locks_expire_while_a_node_is_cut_off_but_not_while_it_is_frozen() {
    for (cut, accepted, again) in [(true, 121, vec![(0, 2)]), (false, 0, vec![])] {
        let scene = Scene::new("node-cut", 1, 1, &SHORT_LOCKS);
        scene.produce(0);
        let mut a = scene.member("a");
        assert_eq!(a.fetch(5000, &[0]).acquired(0), [(0, 1)]);
        let runs_out = Instant::now() + LOCK;
        let node = scene.rig.broker().faulty().node(1);
        if cut {
            node.cut()
        } else {
            node.freeze()
        }
        // The request waits in the socket.
        let answer = std::thread::spawn(move || (a.acknowledge(&[(0, 0, ACCEPT)]), a));
        until(runs_out + Duration::from_millis(200));
        assert!(!answer.is_finished(), "the node answered");
        node.thaw();
        let (told, _a) = answer.join().expect("answered");
        assert_eq!(told, (0, vec![accepted]), "cut: {cut}");
        let mut b = scene.member("b");
        assert_eq!(b.fetch(300, &[0]).acquired(0), again, "cut: {cut}");
    }
}

/// The controller fences a node that is silent for 1.5 s.
const SESSION: [&str; 2] = ["--set", "broker.session.timeout.ms=1500"];

#[test]
fn a_leader_that_is_cut_off_is_replaced_and_accepts_no_acknowledgement() {
    let scene = Scene::new("node-replaced", 3, 1, &SESSION);
    scene.produce(0);
    let mut a = scene.member("a");
    assert_eq!(a.fetch(5000, &[0]).acquired(0), [(0, 1)]);
    let broker = scene.rig.broker().faulty();
    assert_eq!(broker.leader(&scene.topic, 0), Some(1));
    broker.node(1).cut();
    let cut = Instant::now();
    eventually(SOON, "another node leads", || broker.leader(&scene.topic, 0) != Some(1));
    assert!(cut.elapsed() > Duration::from_secs(1), "{:?}", cut.elapsed());
    let new = usize::try_from(broker.leader(&scene.topic, 0).expect("a leader")).expect("ids count from 1");
    let mut got = Vec::new();
    let mut b = Session::new(scene.wire(new), scene.id, &scene.group, "b");
    eventually(SOON, "the new leader delivers the record", || {
        got = b.fetch(100, if b.epoch == 0 { &[0] } else { &[] }).acquired(0);
        b.epoch = if got.is_empty() { 0 } else { b.epoch };
        !got.is_empty()
    });
    assert_eq!(got, [(0, 1)]);
    broker.node(1).thaw();
    assert_eq!(a.acknowledge(&[(0, 0, ACCEPT)]), (0, vec![3]));
    assert_eq!(a.fetch(100, &[]).error_of(0), 6);
}

#[test]
fn accepts_wait_for_a_silent_node_until_it_is_fenced_and_fetches_do_not() {
    let scene = Scene::new("node-state", 3, 1, &SESSION);
    scene.produce(0);
    let mut a = scene.member("a");
    assert_eq!(a.fetch(5000, &[0]).acquired(0), [(0, 1)]);
    scene.rig.broker().faulty().node(3).freeze();
    let frozen = Instant::now();
    assert_eq!(scene.member("b").fetch(0, &[0]).error, 0);
    assert!(frozen.elapsed() < Duration::from_secs(1), "{:?}", frozen.elapsed());
    assert_eq!(a.acknowledge(&[(0, 0, ACCEPT)]), (0, vec![0]));
    assert!(frozen.elapsed() > Duration::from_secs(1), "{:?}", frozen.elapsed());
}

#[test]
fn group_members_keep_their_epoch_at_another_coordinator() {
    let scene = Scene::new("node-coordinator", 3, 1, &SESSION);
    scene.rig.broker().faulty().node(1).kill();
    let find = FindCoordinatorRequest::default().with_key(StrBytes::from_string(scene.group.clone()));
    eventually(SOON, "another node coordinates", || scene.wire(2).call(3, &find).node_id.0 == 2);
    let beat = ShareGroupHeartbeatRequest::default()
        .with_group_id(GroupId(StrBytes::from_string(scene.group.clone())))
        .with_member_id(StrBytes::from_static_str("first"))
        .with_member_epoch(scene.epoch);
    assert_eq!(scene.wire(2).call(1, &beat).error_code, 0);
    assert_eq!(scene.wire(3).call(1, &beat).error_code, 16, "node 3 is not the coordinator");
}

/// Node 1 is not in sync when node 2 stops: the partition has no leader until node 2 runs again.
#[test]
fn a_replica_that_is_not_in_sync_never_leads() {
    let scene = Scene::new("node-behind", 2, 1, &[]);
    let broker = scene.rig.broker().faulty();
    broker.node(1).stop();
    assert_eq!(session::produce(&mut scene.wire(2), &scene.topic, 0).0, 6, "the new leader reads its state");
    eventually(SOON, "node 2 takes a record", || session::produce(&mut scene.wire(2), &scene.topic, 0).0 == 0);
    broker.node(2).stop();
    broker.node(1).revive().expect("the node starts again on its port");
    assert_eq!(broker.leader(&scene.topic, 0), None);
    broker.node(2).revive().expect("the node starts again on its port");
    assert_eq!(broker.leader(&scene.topic, 0), Some(2));
    eventually(SOON, "both nodes are in sync, and node 1 may lead again", || broker.move_leader(&scene.topic, 0, 1));
    let mut member = scene.member("a");
    eventually(SOON, "node 1 has the record that node 2 took", || {
        member.epoch = 0;
        member.fetch(100, &[0]).acquired(0) == [(0, 1)]
    });
}

#[test]
fn a_deaf_connection_keeps_its_locks_until_they_expire() {
    let scene = Scene::new("node-deaf", 1, 1, &SHORT_LOCKS);
    scene.produce(0);
    let mut a = scene.member("a");
    assert_eq!(a.fetch(5000, &[0]).acquired(0), [(0, 1)]);
    let acquired = Instant::now();
    let bites = scene.rig.broker().faulty().inject(Fault::new(Action::Deafen).at(Kind::ShareFetch));
    a.send_fetch(0, &[], &[]);
    eventually(SOON, "the connection is deaf", || bites.count() == 1);
    // The broker does not see the end of a deaf connection.
    drop(a);
    let mut b = scene.member("b");
    assert_eq!(b.fetch(20_000, &[0]).acquired(0), [(0, 2)]);
    let waited = acquired.elapsed();
    assert!((LOCK - Duration::from_millis(200)..LOCK + Duration::from_secs(3)).contains(&waited), "{waited:?}");
}

#[test]
fn a_fault_of_one_partition_does_not_affect_others() {
    let scene = Scene::new("node-scope", 1, 2, &[]);
    let refuse = |kind| Fault::new(Action::Refuse(NOT_LEADER)).at(kind).of_topic(&scene.topic).of_partition(1);
    scene.inject(refuse(Kind::Produce));
    let mut wire = scene.wire(1);
    assert_eq!(session::produce(&mut wire, &scene.topic, 0).0, 0, "the fault affected another partition");
    assert_eq!(session::produce(&mut wire, &scene.topic, 1).0, 6);
    assert_eq!(session::produce(&mut wire, &scene.topic, 1), (0, 0), "the refused request took effect");

    scene.inject(refuse(Kind::ShareFetch));
    let mut a = scene.member("a");
    let told = a.fetch(5000, &[0, 1]);
    assert_eq!((told.error, told.acquired(0), told.error_of(1), told.acquired(1)), (0, vec![(0, 1)], 6, vec![]));
    assert_eq!(a.fetch(5000, &[]).acquired(1), [(0, 1)]);

    let lost = Action::RefuseAcknowledgements(ErrorCode::INVALID_RECORD_STATE);
    scene.inject(Fault::new(lost).at(Kind::ShareAcknowledge).of_partition(1));
    assert_eq!(a.acknowledge(&[(0, 0, ACCEPT), (1, 0, ACCEPT)]), (0, vec![0, 121]));
    assert_eq!(a.acknowledge(&[(1, 0, ACCEPT)]), (0, vec![0]));
}

#[test]
fn a_fault_of_one_topic_affects_only_requests_for_it() {
    let scene = Scene::new("node-topic", 1, 1, &[]);
    let forbidden = ErrorCode(29);
    let elsewhere = scene.rig.results();
    admin::create_topic(scene.rig.broker().address(), &elsewhere, 1, &[]);
    for kind in [Kind::Metadata, Kind::CreateTopics, Kind::ListOffsets, Kind::Fetch] {
        scene.inject(Fault::new(Action::Refuse(forbidden)).at(kind).of_topic(&scene.topic));
    }
    let name = |name: &str| TopicName(StrBytes::from_string(name.to_owned()));
    let both = [&scene.topic, &elsewhere];
    let wanted = both.map(|topic| MetadataRequestTopic::default().with_name(Some(name(topic))));
    let request = MetadataRequest::default().with_topics(Some(wanted.into())).with_allow_auto_topic_creation(false);
    let answer = scene.wire(1).call(12, &request);
    assert_eq!(answer.topics.iter().map(|topic| topic.error_code).collect::<Vec<_>>(), [29, 0]);
    let wanted = both.map(|topic| CreatableTopic::default().with_name(name(topic)).with_num_partitions(1));
    let request = CreateTopicsRequest::default().with_topics(wanted.map(|it| it.with_replication_factor(1)).into());
    let answer = scene.wire(1).call(7, &request);
    assert_eq!(answer.topics.iter().map(|topic| topic.error_code).collect::<Vec<_>>(), [29, 36], "36: it exists");
    let end = |topic: &str| admin::end_offset(scene.rig.broker().address(), topic, 0);
    assert_eq!([end(&elsewhere), end(&scene.topic), end(&scene.topic)], [Ok(0), Err(29), Ok(0)]);
    let fetched = |topic: &str| conformance::fetch(&mut scene.wire(1), topic, 0, 0, 1).0;
    assert_eq!([fetched(&elsewhere), fetched(&scene.topic), fetched(&scene.topic)], [0, 29, 0]);
}

#[test]
fn a_fault_of_one_node_does_not_affect_others() {
    let scene = Scene::new("node-one", 2, 1, &[]);
    scene.inject(Fault::new(Action::CutBefore).at(Kind::Metadata).on_node(2));
    let request = MetadataRequest::default().with_topics(Some(Vec::new()));
    assert_eq!(scene.wire(1).call(12, &request).brokers.len(), 2);
    assert!(scene.wire(2).hangs_up_at(3, 12), "the request to node 2 is cut");
    assert_eq!(scene.wire(2).call(12, &request).brokers.len(), 2, "the fault took effect twice");
}

#[test]
fn delayed_share_state_is_lost_at_a_kill_but_not_at_a_stop() {
    for (kill, expected) in [(true, vec![(1, 1)]), (false, vec![])] {
        let scene = Scene::new("node-late", 1, 1, &["--emulate", "share-state-delay=2000"]);
        scene.produce(0);
        scene.produce(0);
        let mut a = scene.member("a");
        assert_eq!(a.fetch(5000, &[0]).acquired(0), [(0, 1), (1, 1)]);
        assert_eq!(a.acknowledge(&[(0, 0, ACCEPT)]), (0, vec![0]));
        until(Instant::now() + Duration::from_millis(2100));
        assert_eq!(a.acknowledge(&[(0, 1, ACCEPT)]), (0, vec![0]), "written two seconds later");
        let broker = scene.rig.broker();
        if kill {
            broker.kill()
        } else {
            broker.stop()
        }
        broker.start();
        let mut b = scene.member("b");
        assert_eq!(b.fetch(300, &[0]).acquired(0), expected, "kill: {kill}");
    }
}

#[test]
fn a_restarted_node_is_fenced_and_leads_no_partition_at_first() {
    let scene = Scene::new("node-fenced", 1, 1, &["--emulate", "fenced=3000"]);
    let broker = scene.rig.broker().faulty();
    broker.nodes().kill();
    broker.nodes().revive().expect("the node starts again on its port");
    let wanted = MetadataRequestTopic::default().with_name(Some(TopicName(StrBytes::from_string(scene.topic.clone()))));
    let request = MetadataRequest::default().with_topics(Some(vec![wanted]));
    let mut wire = scene.wire(1);
    let answer = wire.call(12, &request);
    let partition = &answer.topics[0].partitions[0];
    assert_eq!((answer.brokers.len(), partition.error_code, partition.leader_id.0), (0, 5, -1));
    assert_eq!(session::produce(&mut wire, &scene.topic, 0).0, 6);
    eventually(SOON, "the node leads again", || session::produce(&mut wire, &scene.topic, 0).0 == 0);
    let answer = wire.call(12, &request);
    assert_eq!((answer.brokers.len(), answer.topics[0].partitions[0].leader_id.0), (1, 1));
}
