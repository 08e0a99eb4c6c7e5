//! A worker as a member of its share group: heartbeats and assignment; and its status and side topics.

use std::time::{Duration, Instant};

use devbroker::Kind;
use kafka_protocol::{
    messages::{GroupId, ShareGroupDescribeRequest},
    protocol::StrBytes,
};
use nix::sys::signal::Signal;

use crate::support::{
    Rig, SOON,
    admin::{Of, configs, create_topic, delete_topic, grow_topic, has_topic},
    eventually,
    wire::Wire,
};

/// Sum of the partitions assigned to the members of the group.
fn assigned(rig: &Rig) -> usize {
    let group = GroupId(StrBytes::from_string(rig.group()));
    let request = ShareGroupDescribeRequest::default().with_group_ids(vec![group]);
    let answer = Wire::connect(rig.broker().address()).call(1, &request);
    let members = answer.groups.iter().flat_map(|group| &group.members);
    members.flat_map(|member| &member.assignment.topic_partitions).map(|topic| topic.partitions.len()).sum()
}

#[test]
fn added_partitions_are_assigned_within_two_seconds() {
    let rig = Rig::quiet("member-grown");
    let _worker = rig.start_worker("grown_1");
    // Three times, because the time depends on the next heartbeat.
    for count in [2, 3, 4] {
        grow_topic(rig.broker().address(), &rig.tasks(), count);
        let wanted = usize::try_from(count).expect("a few");
        eventually(Duration::from_secs(2), "the partition is assigned", || assigned(&rig) == wanted);
    }
}

#[test]
fn member_without_partitions_logs_it_once_and_sends_few_heartbeats() {
    let rig = Rig::with_faults("member-nothing", 1);
    let mut worker = rig.start_worker("nothing_1");
    delete_topic(rig.broker().address(), &rig.tasks());
    worker.wait_for_line("assigns no partition", SOON);
    let heartbeats = rig.count(Kind::ShareGroupHeartbeat, "");
    std::thread::sleep(Duration::from_secs(3));
    assert!((1..=9).contains(&heartbeats.count()), "{} in 3 s", heartbeats.count());
    assert_eq!(worker.lines_with("assigns no partition").len(), 1);
    create_topic(rig.broker().address(), &rig.tasks(), 1, &[]);
    worker.wait_for_line("assigns partitions again", SOON);
    worker.ends_at(Signal::SIGTERM, 0);
}

#[test]
fn status_heartbeats_continue_while_the_leader_of_the_tasks_is_frozen() {
    let rig = Rig::with_faults("member-frozen", 2);
    let (broker, address) = (rig.broker().faulty(), rig.broker().address().to_owned());
    create_topic(&address, &rig.results(), 1, &[]);
    let results = broker.leader(&rig.results(), 0).expect("a leader");
    broker.move_coordinator(&rig.group(), results);
    let gateway = rig.start_gateway();
    let _worker = rig.start_worker("frozen_1");
    let tasks = broker.leader(&rig.tasks(), 0).expect("a leader");
    assert_ne!(tasks, results, "one node leads both topics");
    let task = gateway.submit("long", Duration::from_secs(30));
    gateway.wait_until_running(&task, SOON);
    let asks = rig.count(Kind::ListOffsets, "lastcall-worker");
    eventually(SOON, "the worker asks for the span of its long task, as it will of the frozen leader", || {
        asks.count() > 0
    });
    broker.node(tasks).freeze();
    let frozen = Instant::now();
    while frozen.elapsed() < Duration::from_secs(8) {
        let worker = gateway.fleet()["workers"]["frozen_1"].clone();
        assert!(worker["seconds_since_update"].as_u64().is_some_and(|seconds| seconds <= 3), "{worker}");
        std::thread::sleep(Duration::from_millis(200));
    }
    broker.node(tasks).thaw();
}

#[test]
fn worker_creates_a_deleted_side_topic_again() {
    let rig = Rig::shared("member-side");
    let worker = rig.start_worker("side_1");
    for kind in ["dead", "starts"] {
        let topic = format!("{}.{kind}", rig.tasks());
        delete_topic(rig.broker().address(), &topic);
        eventually(SOON, "the topic exists again", || has_topic(rig.broker().address(), &topic));
        worker.wait_for_line(&format!("topic {topic} was missing; it was made again"), SOON);
        let made = configs(rig.broker().address(), Of::Topic, &topic);
        assert_eq!(made["message.timestamp.type"], "LogAppendTime", "{topic}");
    }
}
