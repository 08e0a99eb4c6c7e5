//! P11: any of three brokers may fail, and every worker goes on. Always on the embedded broker, because the tests
//! choose the moment of each fault.

mod kills;
mod sessions;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use devbroker::{Action, Bites, Broker, Fault, Kind};
use kafka_share::ErrorCode;
use nix::sys::signal::Signal;

use crate::support::{
    Gateway, Rig, SHORT_LOCKS, SOON, audit, eventually,
    load::{Shot, task_ids},
    program::Program,
    started,
};

/// Another broker leads the partitions of a broker that is silent for this long.
const FAIL_OVER: Duration = Duration::from_secs(2);
/// Duration of a record lock with [`SHORT_LOCKS`].
const LOCK: Duration = Duration::from_secs(3);

/// A cluster of three brokers, a gateway, and workers.
struct Scene {
    rig: Rig,
    gateway: Gateway,
    workers: Vec<Program>,
}

impl Scene {
    fn new(name: &str, partitions: usize, workers: &[&str]) -> Scene {
        Scene::of(Rig::with_faults_and(name, 3, &["--set", "broker.session.timeout.ms=2000"]), partitions, workers)
    }

    fn of(rig: Rig, partitions: usize, workers: &[&str]) -> Scene {
        let gateway = rig.gateway().env("TASKS_PARTITIONS", partitions).env("REPLICATION_FACTOR", 3);
        let gateway = Gateway::start(gateway.env("ANSWER_TIMEOUT", "25s"));
        let workers = workers.iter().map(|id| started(&rig.worker(id))).collect();
        Scene { rig, gateway, workers }
    }

    /// A scene with one broker and record locks of [`LOCK`].
    fn short_locks(name: &str, workers: &[&str]) -> Scene {
        let rig = Rig::with_faults_and(name, 1, &SHORT_LOCKS);
        let gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "25s"));
        let workers = workers.iter().map(|id| started(&rig.worker(id))).collect();
        Scene { rig, gateway, workers }
    }

    fn broker(&self) -> &Broker {
        self.rig.broker().faulty()
    }

    fn lead(&self, partition: i32, node: i32) {
        assert!(self.broker().move_leader(&self.rig.tasks(), partition, node));
    }

    fn leader(&self, partition: i32) -> i32 {
        self.broker().leader(&self.rig.tasks(), partition).expect("a leader")
    }

    /// Asserts that no request failed, that each task has a result, and that every worker runs tasks now.
    fn assert_all_work(&mut self, shots: &[Shot]) {
        let refused: Vec<_> = shots
            .iter()
            .filter(|shot| shot.fault.is_some() || shot.outcome.as_ref().is_ok_and(|it| *it == 500))
            .collect();
        assert!(refused.is_empty(), "{} of {} requests failed: {:?}", refused.len(), shots.len(), refused[0]);
        for task in task_ids(shots) {
            self.gateway.wait_for_result(&task, SOON);
        }
        assert_eq!(self.rig.audit().lost(), [""; 0]);
        let before = self.rig.audit().results;
        let all: BTreeSet<&str> = self.workers.iter().map(Program::name).collect();
        let load = self.gateway.load(40, 20);
        eventually(SOON, "every worker works", || {
            let results = self.rig.audit().results;
            let new = results.iter().filter(|(task, _)| !before.contains_key(*task));
            new.filter_map(|(_, results)| results[0]["processed_by"].as_str()).collect::<BTreeSet<&str>>() == all
        });
        load.finish();
        assert!(self.workers.iter_mut().all(Program::is_running));
    }

    /// The longest time between two results.
    fn longest_silence(shots: &[Shot]) -> Duration {
        let mut answered: Vec<Instant> =
            shots.iter().filter(|shot| shot.outcome == Ok(200)).map(|shot| shot.due + shot.latency).collect();
        answered.sort();
        answered.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(Duration::MAX)
    }

    /// The partition of each task.
    fn partitions(&self) -> BTreeMap<String, i32> {
        let records = audit::read(self.rig.broker().address(), &self.rig.tasks());
        records.into_iter().map(|record| (record.key(), record.partition)).collect()
    }

    /// Drops everything that worker `id` sends from now on, on its present connections and on new ones.
    fn cut_off(&self, id: &str) -> Bites {
        self.broker().inject(Fault::new(Action::Deafen).of_client(&format!("lastcall-worker-{id}")).every(1, u32::MAX))
    }

    fn starts(&self, task: &str) -> usize {
        let lines = self.workers.iter().flat_map(|worker| worker.lines_with(&format!("starts task {task}")));
        lines.count()
    }
}

/// Waits for a time that no condition shows.
fn wait(time: Duration) {
    std::thread::sleep(time);
}

// ---- whole brokers ----

/// After a rolling restart some workers were alive and responsive but took no tasks.
#[test]
fn every_worker_runs_tasks_after_a_rolling_restart_of_all_brokers() {
    let mut scene = Scene::new("p11-roll", 3, &["a", "b", "c", "d"]);
    let load = scene.gateway.load(40, 20);
    for node in 1..=3 {
        scene.broker().node(node).stop();
        load.wait_for(30, SOON);
        scene.broker().node(node).revive().expect("the broker starts again on its port");
        load.wait_for(30, SOON);
    }
    let shots = load.finish();
    assert!(Scene::longest_silence(&shots) < Duration::from_secs(3), "{:?}", Scene::longest_silence(&shots));
    scene.assert_all_work(&shots);
}

#[test]
fn every_worker_runs_tasks_after_many_moves_of_leaders() {
    let mut scene = Scene::new("p11-moves", 3, &["a", "b", "c", "d"]);
    let load = scene.gateway.load(40, 20);
    for round in 0..24 {
        let partition = round % 3;
        scene.lead(partition, 1 + (scene.leader(partition) + round) % 3);
        wait(Duration::from_millis(120));
    }
    let shots = load.finish();
    assert!(Scene::longest_silence(&shots) < Duration::from_secs(2), "{:?}", Scene::longest_silence(&shots));
    scene.assert_all_work(&shots);
}

/// A frozen broker stopped all workers until it thawed, although its partitions had new leaders.
#[test]
fn all_partitions_are_served_after_the_fail_over_of_a_frozen_broker() {
    let mut scene = Scene::new("p11-freeze", 3, &["a", "b", "c", "d"]);
    // Node 2 leads only partition 1 of the tasks.
    for partition in 0..3 {
        scene.lead(partition, 1 + partition);
    }
    assert!(scene.broker().move_leader(&scene.rig.results(), 0, 1));
    scene.broker().move_coordinator(&scene.rig.group(), 3);
    let load = scene.gateway.load(40, 20);
    load.wait_for(30, SOON);
    let frozen = Instant::now();
    scene.broker().node(2).freeze();
    wait(Duration::from_secs(9));
    let shots = load.finish();
    // Each write waits for the replica of the frozen broker until the controller fences it.
    let (partitions, fenced) = (scene.partitions(), frozen + FAIL_OVER);
    let of_others =
        |shot: &&Shot| shot.task_id.as_ref().is_some_and(|task| partitions.get(task).is_some_and(|it| *it != 1));
    let hop = |shot: &Shot| (shot.due + shot.latency).saturating_duration_since(shot.sent.max(fenced));
    let mut hops: Vec<Duration> = shots.iter().filter(of_others).map(hop).collect();
    hops.sort_unstable();
    let p99 = hops[hops.len() * 99 / 100];
    assert!(p99 < Duration::from_secs(1), "p99 of the partitions of the other brokers: {p99:?}");
    let settled = frozen + FAIL_OVER + Duration::from_secs(3);
    let late: Vec<_> = shots.iter().filter(|shot| shot.due > settled && shot.outcome != Ok(200)).collect();
    let of = shots.iter().filter(|shot| shot.due > settled).count();
    assert!(of > 100 && late.is_empty(), "{} of {of} requests failed after the fail-over: {late:?}", late.len());
    scene.broker().node(2).thaw();
    scene.assert_all_work(&shots);
}

#[test]
fn a_killed_broker_loses_no_task_and_every_worker_runs_tasks_afterwards() {
    let mut scene = Scene::new("p11-kill", 3, &["a", "b", "c", "d"]);
    let load = scene.gateway.load(40, 20);
    load.wait_for(30, SOON);
    scene.broker().node(1).kill();
    wait(FAIL_OVER + Duration::from_secs(4));
    scene.broker().node(1).revive().expect("the broker starts again on its port");
    load.wait_for(30, SOON);
    let shots = load.finish();
    let longest = Scene::longest_silence(&shots);
    assert!(longest < FAIL_OVER + Duration::from_secs(3), "{longest:?} without a result");
    scene.assert_all_work(&shots);
}

/// The gateway waited for the time-out of its fetch to the frozen broker, seconds after `results` had a new leader.
#[test]
fn results_are_read_again_right_after_the_fail_over_of_a_frozen_leader() {
    let scene = Scene::new("p11-tail", 1, &["a"]);
    let (broker, results) = (scene.broker(), scene.rig.results());
    assert!(broker.move_leader(&results, 0, 1));
    scene.lead(0, 2);
    broker.move_coordinator(&scene.rig.group(), 2);
    // Binds the gateway's Metadata requests to the broker that will freeze, so that only the reader can notice.
    let metadata = |action, node| {
        let fault = Fault::new(action).at(Kind::Metadata).of_client("lastcall-gateway").on_node(node);
        broker.inject(fault.every(1, u32::MAX))
    };
    for node in [2, 3] {
        metadata(Action::CutBefore, node);
    }
    let requests = metadata(Action::Delay(Duration::ZERO), 1);
    eventually(SOON, "the gateway asks node 1", || requests.count() >= 3);
    let load = scene.gateway.load(40, 20);
    load.wait_for(20, SOON);
    broker.heal();
    broker.node(1).freeze();
    eventually(SOON, "another broker leads the results", || broker.leader(&results, 0) != Some(1));
    let moved = Instant::now();
    wait(Duration::from_secs(6));
    let shots = load.finish();
    let answers = shots.iter().filter(|shot| shot.outcome == Ok(200)).map(|shot| shot.due + shot.latency);
    let first = answers.filter(|answered| *answered > moved).min().expect("a result after the fail-over");
    let after = first - moved;
    assert!(after < Duration::from_secs(2), "the first result was read {after:?} after the fail-over");
}

/// The gateway answered 404 after it had searched only the other partitions, although the task might exist.
#[test]
fn unknown_task_gets_503_while_a_leader_does_not_answer() {
    let scene = Scene::new("p11-unknown", 3, &["a"]);
    let (broker, results) = (scene.broker(), scene.rig.results());
    for partition in 0..3 {
        scene.lead(partition, 1 + partition);
    }
    assert!(broker.move_leader(&results, 0, 1));
    let ask = || scene.gateway.get("/tasks/never-heard-of");
    ask().assert_problem(404);
    broker.node(3).freeze();
    let status = ask().status;
    let is_moved = broker.leader(&scene.rig.tasks(), 2) != Some(3);
    assert!(status == 503 || status == 404 && is_moved, "{status} before its partition has another leader");
    eventually(SOON, "the task is known to be missing", || ask().status == 404);
}

// ---- one partition ----

/// The error of one partition lost the locks of all other partitions on that broker.
#[test]
fn a_move_of_one_partition_starts_no_task_of_another_partition_again() {
    let scene = Scene::new("p11-neighbour", 2, &["a", "b", "c", "d", "e"]);
    for partition in [0, 1] {
        scene.lead(partition, 1);
    }
    for round in 0..3 {
        let task = scene.gateway.submit(&format!("round {round}"), Duration::from_millis(1500));
        scene.gateway.wait_until_running(&task, SOON);
        let neighbour = 1 - scene.partitions()[&task];
        scene.lead(neighbour, 2 + round % 2);
        scene.gateway.wait_for_result(&task, SOON);
        assert_eq!((scene.rig.audit().runs(&task), scene.starts(&task)), (1, 0), "a second start in round {round}");
        scene.lead(neighbour, 1);
    }
}

/// The new leader delivers the record of a running task again; its worker gets it and attaches it to the handler.
#[test]
fn a_running_task_stays_with_its_worker_when_its_leader_moves() {
    let scene = Scene::new("p11-holder", 1, &["a", "b", "c", "d"]);
    let mut again = 0;
    for round in 0..5 {
        let task = scene.gateway.submit(&format!("round {round}"), Duration::from_millis(1200));
        scene.gateway.wait_until_running(&task, SOON);
        scene.lead(0, 1 + scene.leader(0) % 3);
        scene.gateway.wait_for_result(&task, SOON);
        again += scene.rig.audit().runs(&task) - 1;
    }
    wait(Duration::from_millis(1500));
    assert!(again <= 1, "{again} of 5 ran again");
}

/// The worker reads the former leader's response after it has run and accepted the records at the new leader.
#[test]
fn late_response_of_the_former_leader_starts_no_task() {
    let mut scene = Scene::new("p11-late", 1, &[]);
    scene.lead(0, 1);
    scene.workers.push(started(&scene.rig.worker("only").env("WORKER_CONCURRENCY", 2).env("LOG_LEVEL", "debug")));
    scene.gateway.analyze("before");
    // Both faults take effect on one fetch. It acquires the records that come during the delay. Its response is sent
    // after the worker has read Metadata (0.3 s) and has waited before the fetch at the new leader (0.3 s), but before
    // the former leader's intake stops waiting (1 s after Metadata).
    let (acquires, answers) = (Duration::from_millis(200), Duration::from_millis(800));
    let faults = [Action::Delay(acquires), Action::Late(answers)];
    let bites = faults.map(|action| scene.broker().inject(Fault::new(action).at(Kind::ShareFetch).of_client("worker")));
    eventually(SOON, "a fetch is delayed", || bites.iter().all(|bites| bites.count() == 1));
    let moves_at = Instant::now() + acquires + Duration::from_millis(50);
    let tasks = [1, 2].map(|number| scene.gateway.submit(&format!("task {number}"), Duration::from_millis(1)));
    wait(moves_at.saturating_duration_since(Instant::now()));
    let to_former = Fault::new(Action::Delay(Duration::ZERO)).at(Kind::ShareAcknowledge).on_node(1);
    let to_former = scene.broker().inject(to_former.every(1, u32::MAX));
    scene.lead(0, 2);
    for task in &tasks {
        scene.gateway.wait_for_result(task, SOON);
    }
    eventually(SOON, "the records of the late response are released, and the session is closed", || {
        to_former.count() >= 2
    });
    // A worker would start the records of the late response before this task.
    assert_eq!(scene.gateway.analyze("after").status, 200);
    scene.rig.audit().assert_each_ran_once(&tasks);
    assert_eq!([&tasks[0], &tasks[1]].map(|task| scene.starts(task)), [1, 1]);
}

/// The leader moves to another node and back during a fetch, which then acquires records in the new epoch. The worker
/// must ask for these records before it forgets the partition, or they stay locked until their locks end.
#[test]
fn a_leader_that_moves_there_and_back_during_a_fetch_delays_no_task() {
    let scene = Scene::new("p11-there-and-back", 1, &["only"]);
    scene.lead(0, 1);
    // After very short tasks the worker fetches ahead: it sends a fetch although its only handler is busy.
    for number in 0..20 {
        assert_eq!(scene.gateway.analyze(&format!("before {number}")).status, 200);
    }
    let running = scene.gateway.submit("in work", Duration::from_millis(1500));
    scene.gateway.wait_until_running(&running, SOON);
    // Less than 0.3 s, after which the worker reads Metadata; more than 0.1 s, in which a new leader reads its state.
    let parked =
        Fault::new(Action::Delay(Duration::from_millis(250))).at(Kind::ShareFetch).of_client("lastcall-worker");
    let parked = scene.broker().inject(parked);
    eventually(SOON, "a fetch is sent", || parked.count() == 1);
    for node in [2, 1] {
        scene.lead(0, node);
    }
    let mut tasks: Vec<String> =
        (0..3).map(|number| scene.gateway.submit(&format!("queued {number}"), Duration::from_millis(1))).collect();
    // The worker reads Metadata when the broker refuses the partition in the next fetch.
    let refused = Fault::new(Action::Refuse(ErrorCode::NOT_LEADER_OR_FOLLOWER)).at(Kind::ShareFetch);
    let refused = scene.broker().inject(refused.of_client("lastcall-worker").of_topic(&scene.rig.tasks()));
    let asked = scene.rig.count(Kind::ShareAcknowledge, "lastcall-worker");
    eventually(SOON, "the fetch is answered, and the next fetch is refused", || refused.count() == 1);
    tasks.push(running);
    for task in &tasks {
        // A record that stayed locked would come after 15 s.
        scene.gateway.wait_for_result(task, Duration::from_secs(5));
    }
    assert!(asked.count() > 0, "the worker did not ask for the records");
    assert_eq!(scene.gateway.analyze("and after").status, 200);
    scene.rig.audit().assert_each_ran_once(&tasks);
}
