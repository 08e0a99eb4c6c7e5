//! P8 with several brokers: a killed worker's tasks start elsewhere within half a second, whichever partitions it has
//! visited or searched before.

use super::*;
use crate::support::wire::Wire;
use kafka_protocol::{
    messages::{GroupId, ShareGroupDescribeRequest},
    protocol::StrBytes,
};

/// Partitions in the test of visits. Some visits coincide, but hardly ever those to all partitions of a broker.
const PARTITIONS: usize = 6;
/// Handlers of each worker: far more tasks than it takes to have one on each partition.
const HANDLERS: usize = 64;
/// Longer than the test.
const LONG: Duration = Duration::from_secs(60);

/// The partitions that the group assigns to each worker, by the worker's client id.
fn assigned(scene: &Scene) -> BTreeMap<String, Vec<i32>> {
    let group = GroupId(StrBytes::from_string(scene.rig.group()));
    let request = ShareGroupDescribeRequest::default().with_group_ids(vec![group]);
    let answer = Wire::connect(scene.rig.broker().address()).call(1, &request);
    let members = answer.groups.iter().flat_map(|group| &group.members);
    let partitions = members.map(|member| {
        let topics = member.assignment.topic_partitions.iter();
        (member.client_id.to_string(), topics.flat_map(|topic| topic.partitions.clone()).collect())
    });
    partitions.collect()
}

fn start(scene: &Scene, id: &str) -> Program {
    started(&scene.rig.worker(id).env("WORKER_CONCURRENCY", HANDLERS).env("LOG_LEVEL", "debug"))
}

/// Counts the fetches of a worker at node 1 from now on.
fn fetches(scene: &Scene, id: &str) -> Bites {
    let nothing = Fault::new(Action::Delay(Duration::ZERO)).at(Kind::ShareFetch).on_node(1);
    scene.broker().inject(nothing.of_client(&format!("lastcall-worker-{id}")).every(1, u32::MAX))
}

/// Kills `holder` and asserts that each task starts at `heir` within half a second.
fn assert_hop(holder: &mut Program, heir: &Program, tasks: &[String]) {
    let killed = holder.kill();
    for task in tasks {
        // Without a release by the broker, the lock of a task ends after 15 s.
        let hop = heir.wait_for_line(&format!("starts task {task}"), 2 * SOON).at - killed;
        assert!(hop < Duration::from_millis(500), "task {task} started elsewhere after {hop:?}");
    }
}

/// A connection that ends releases only the records of the session's partitions. A visit to one partition took the
/// others out of the session, also those in which the worker ran tasks.
#[test]
fn tasks_of_a_killed_worker_that_visits_other_partitions_start_elsewhere_at_once() {
    let mut scene = Scene::of(Rig::quiet_with_faults("p11-visits", 3), PARTITIONS, &["gone"]);
    // Only the coordinator describes the group.
    scene.broker().move_coordinator(&scene.rig.group(), 1);
    let heir = start(&scene, "heir");
    let mut holder = start(&scene, "holder");
    let even = |it: &BTreeMap<String, Vec<i32>>| it.len() == 3 && it.values().all(|it| it.len() == PARTITIONS / 3);
    eventually(SOON, "each worker has a third of the partitions", || even(&assigned(&scene)));
    // The group keeps a killed member for 45 s. The heir cannot fetch at first.
    scene.workers[0].kill();
    let refused = Fault::new(Action::Refuse(ErrorCode::NOT_LEADER_OR_FOLLOWER)).at(Kind::ShareFetch);
    let refused = refused.of_client("lastcall-worker-heir").of_topic(&scene.rig.tasks()).every(1, u32::MAX);
    let refused = scene.broker().inject(refused);
    // An intake pauses for 0.3 s after each refusal, so by then its earlier fetch has ended.
    eventually(SOON, "the heir's fetches are refused", || refused.count() >= 10);
    let own = assigned(&scene).remove("lastcall-worker-holder").expect("a member");
    for (partition, _) in (0..).zip(0..PARTITIONS) {
        scene.lead(partition, if own.contains(&partition) { 2 } else { 1 });
    }
    let mut tasks = Vec::new();
    while scene.partitions().values().collect::<BTreeSet<_>>().len() < PARTITIONS {
        tasks.push(scene.gateway.submit(&format!("task {}", tasks.len()), LONG));
    }
    assert!(tasks.len() < HANDLERS, "an idle handler makes the worker visit");
    scene.gateway.wait_until_busy("holder", tasks.len());
    // For a second after its last record, a partition is fetched from like an assigned one.
    let visits = fetches(&scene, "holder");
    eventually(SOON, "the worker visits node 1", || visits.count() >= 30);
    scene.broker().heal();
    let fetches = fetches(&scene, "heir");
    eventually(SOON, "the heir fetches", || fetches.count() >= 10);
    assert_hop(&mut holder, &heir, &tasks);
}

/// A search for lost locks fetches from the searched partition only.
#[test]
fn tasks_of_a_killed_worker_that_has_searched_a_partition_start_elsewhere_at_once() {
    let scene = Scene::of(Rig::quiet_with_faults("p11-searches", 3), 2, &[]);
    (0..2).for_each(|partition| scene.lead(partition, 1 + partition));
    let mut holder = start(&scene, "holder");
    let tasks: Vec<String> =
        (0..HANDLERS).map(|number| scene.gateway.submit(&format!("task {number}"), LONG)).collect();
    // Without an idle handler the worker does not fetch.
    scene.gateway.wait_until_busy("holder", HANDLERS);
    assert_eq!(scene.partitions().values().collect::<BTreeSet<_>>().len(), 2);
    let search = fetches(&scene, "holder");
    scene.lead(1, 1);
    eventually(SOON, "the worker searches the moved partition", || search.count() > 0);
    let heir = start(&scene, "heir");
    assert_hop(&mut holder, &heir, &tasks);
}
