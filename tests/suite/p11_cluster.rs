//! P11: three brokers, any of which may go, and every worker works on. On the embedded broker, since what happens has
//! to happen at a moment that the test chooses.

mod sessions;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use devbroker::{Action, Bites, Broker, Fault, Kind};
use kafka_share::ErrorCode;
use nix::sys::signal::Signal;

use crate::support::{
    Gateway, Rig, SHORT_LOCKS, SOON, audit, eventually,
    load::{Load, Plan, Shot, task_ids},
    program::Program,
    started,
};

/// How long a broker may be silent before another one leads its partitions.
const FAIL_OVER: Duration = Duration::from_secs(2);
/// A lock with [`SHORT_LOCKS`].
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

    /// One broker with locks of [`LOCK`].
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
        self.broker().leader(&self.rig.tasks(), partition).expect("it has a leader")
    }

    fn load(&self) -> Load {
        let addresses = vec![self.gateway.address.clone()];
        Load::start(Plan { addresses, per_second: 40, work: Some(Duration::from_millis(20)) })
    }

    /// Everything that was sent was answered, is done, and every worker does its share of what comes now.
    fn assert_all_work(&mut self, shots: &[Shot]) {
        let refused: Vec<_> = shots
            .iter()
            .filter(|shot| shot.fault.is_some() || shot.outcome.as_ref().is_ok_and(|it| *it == 500))
            .collect();
        assert!(refused.is_empty(), "{} of {} went wrong: {:?}", refused.len(), shots.len(), refused[0]);
        for task in task_ids(shots) {
            self.gateway.wait_for_result(&task, SOON);
        }
        assert_eq!(self.rig.audit().lost(), [""; 0]);
        let load = self.load();
        wait(Duration::from_secs(2));
        let after = task_ids(&load.finish());
        let audit = self.rig.audit();
        let at_work: BTreeSet<&str> =
            after.iter().filter_map(|task| audit.results.get(task)?[0]["processed_by"].as_str()).collect();
        let all: BTreeSet<&str> = self.workers.iter().map(Program::name).collect();
        assert_eq!(at_work, all, "every worker works");
        assert!(self.workers.iter_mut().all(Program::is_running));
    }

    /// The longest time without an answer, from the first request on.
    fn longest_silence(shots: &[Shot]) -> Duration {
        let mut answered: Vec<Instant> =
            shots.iter().filter(|shot| shot.outcome == Ok(200)).map(|shot| shot.due + shot.latency).collect();
        answered.sort();
        answered.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(Duration::MAX)
    }

    /// The partition that a task stands in.
    fn partition_of(&self, task: &str) -> i32 {
        let records = audit::read(self.rig.broker().address(), &self.rig.tasks());
        records.into_iter().find(|record| record.key() == task).expect("it was accepted").partition
    }

    /// Everything that worker `id` sends from now on is swallowed, on the connections that it has and on new ones.
    fn cut_off(&self, id: &str) -> Bites {
        self.broker().inject(Fault::new(Action::Deafen).of_client(&format!("lastcall-worker-{id}")).every(1, u32::MAX))
    }

    fn wait_until_runs(&self, worker: &str, tasks: usize) {
        eventually(SOON, "all of them run", || {
            self.gateway.fleet()["workers"][worker]["current_tasks"].as_array().is_some_and(|all| all.len() == tasks)
        });
    }

    fn starts(&self, task: &str) -> usize {
        let lines = self.workers.iter().flat_map(|worker| worker.lines_with(&format!("starts task {task}")));
        lines.count()
    }
}

fn wait(time: Duration) {
    let until = Instant::now() + time;
    eventually(time * 2, "the time has passed", || Instant::now() >= until);
}

/// Counts requests of this kind of all workers from now on, and does nothing to them.
fn count(scene: &Scene, kind: Kind) -> Bites {
    let nothing = Fault::new(Action::Delay(Duration::ZERO)).at(kind).of_client("lastcall-worker");
    scene.broker().inject(nothing.every(1, u32::MAX))
}

// ---- whole brokers ----

/// An ordinary rolling restart left workers that were alive, responsive, and took nothing any more.
#[test]
fn a_rolling_restart_of_all_brokers_leaves_no_worker_behind() {
    let mut scene = Scene::new("p11-roll", 3, &["a", "b", "c", "d"]);
    let load = scene.load();
    for node in 1..=3 {
        scene.broker().node(node).stop();
        wait(Duration::from_millis(700));
        scene.broker().node(node).revive().expect("it comes back on its port");
        wait(Duration::from_millis(700));
    }
    let shots = load.finish();
    assert!(Scene::longest_silence(&shots) < Duration::from_secs(3), "{:?}", Scene::longest_silence(&shots));
    scene.assert_all_work(&shots);
}

#[test]
fn leaders_that_move_often_leave_no_worker_behind() {
    let mut scene = Scene::new("p11-moves", 3, &["a", "b", "c", "d"]);
    let load = scene.load();
    for round in 0..24 {
        let partition = round % 3;
        scene.lead(partition, 1 + (scene.leader(partition) + round) % 3);
        wait(Duration::from_millis(120));
    }
    let shots = load.finish();
    assert!(Scene::longest_silence(&shots) < Duration::from_secs(2), "{:?}", Scene::longest_silence(&shots));
    scene.assert_all_work(&shots);
}

/// A frozen broker stopped everything for as long as it was frozen, although its partitions had new leaders long
/// before.
#[test]
fn a_frozen_broker_stops_its_partitions_until_they_have_new_leaders_and_nothing_else() {
    let mut scene = Scene::new("p11-freeze", 3, &["a", "b", "c", "d"]);
    let load = scene.load();
    wait(Duration::from_secs(1));
    let frozen = Instant::now();
    scene.broker().node(2).freeze();
    wait(Duration::from_secs(9));
    let shots = load.finish();
    let settled = frozen + FAIL_OVER + Duration::from_secs(3);
    let late: Vec<_> = shots.iter().filter(|shot| shot.due > settled && shot.outcome != Ok(200)).collect();
    let of = shots.iter().filter(|shot| shot.due > settled).count();
    assert!(of > 100 && late.is_empty(), "{} of {of} are not served though it is frozen: {late:?}", late.len());
    scene.broker().node(2).thaw();
    scene.assert_all_work(&shots);
}

#[test]
fn a_killed_broker_costs_no_task_and_every_worker_works_on() {
    let mut scene = Scene::new("p11-kill", 3, &["a", "b", "c", "d"]);
    let load = scene.load();
    wait(Duration::from_secs(1));
    scene.broker().node(1).kill();
    wait(FAIL_OVER + Duration::from_secs(4));
    scene.broker().node(1).revive().expect("it comes back on its port");
    wait(Duration::from_secs(1));
    let shots = load.finish();
    let longest = Scene::longest_silence(&shots);
    assert!(longest < FAIL_OVER + Duration::from_secs(3), "{longest:?} without an answer");
    scene.assert_all_work(&shots);
}

/// The gateway waited for the whole time-out of its fetch to the frozen broker, seconds after `results` had a new
/// leader.
#[test]
fn results_are_read_again_right_after_the_fail_over_of_a_frozen_leader() {
    let scene = Scene::new("p11-tail", 1, &["a"]);
    let (broker, results) = (scene.broker(), scene.rig.results());
    assert!(broker.move_leader(&results, 0, 1));
    scene.lead(0, 2);
    broker.move_coordinator(&scene.rig.group(), 2);
    // The gateway's regular questions go to the broker that freezes: the reader has to find out by itself.
    let metadata = |action, node| {
        let fault = Fault::new(action).at(Kind::Metadata).of_client("lastcall-gateway").on_node(node);
        broker.inject(fault.every(1, u32::MAX))
    };
    for node in [2, 3] {
        metadata(Action::CutBefore, node);
    }
    let questions = metadata(Action::Delay(Duration::ZERO), 1);
    eventually(SOON, "it asks node 1", || questions.count() >= 3);
    let load = scene.load();
    eventually(SOON, "results are read", || load.answered() > 20);
    broker.heal();
    broker.node(1).freeze();
    eventually(SOON, "another broker leads the results", || broker.leader(&results, 0) != Some(1));
    let moved = Instant::now();
    wait(Duration::from_secs(6));
    let shots = load.finish();
    let answers = shots.iter().filter(|shot| shot.outcome == Ok(200)).map(|shot| shot.due + shot.latency);
    let first = answers.filter(|answered| *answered > moved).min().expect("answers go on");
    let after = first - moved;
    assert!(after < Duration::from_secs(2), "the first result was read {after:?} after the fail-over");
}

/// Answers for the other partitions were enough, and even polls that ended without one: 404 for a task that another
/// gateway might have accepted.
#[test]
fn unknown_task_is_not_denied_while_a_leader_is_silent() {
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
    eventually(SOON, "it is known again", || ask().status == 404);
}

// ---- one partition ----

/// The error of one partition cost the locks of all others on that broker.
#[test]
fn a_partition_that_moves_away_leaves_the_tasks_of_its_neighbour_alone() {
    let scene = Scene::new("p11-neighbour", 2, &["a", "b", "c", "d", "e"]);
    for partition in [0, 1] {
        scene.lead(partition, 1);
    }
    for round in 0..3 {
        let task = scene.gateway.submit(&format!("round {round}"), Duration::from_millis(1500));
        scene.gateway.wait_until_running(&task, SOON);
        let neighbour = 1 - scene.partition_of(&task);
        scene.lead(neighbour, 2 + round % 2);
        scene.gateway.wait_for_result(&task, SOON);
        assert_eq!((scene.rig.audit().runs(&task), scene.starts(&task)), (1, 0), "no second start in round {round}");
        scene.lead(neighbour, 1);
    }
}

/// What runs is found again at the new leader by the worker that runs it.
#[test]
fn a_leader_that_moves_gives_a_running_task_back_to_its_worker() {
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

/// The former leader's answer is read when its records have been run and accepted at the new one: it starts nothing.
#[test]
fn late_answer_of_the_former_leader_starts_no_task() {
    let mut scene = Scene::new("p11-late", 1, &[]);
    scene.lead(0, 1);
    scene.workers.push(started(&scene.rig.worker("only").env("WORKER_CONCURRENCY", 2).env("LOG_LEVEL", "debug")));
    scene.gateway.analyze("before");
    // Both faults meet one fetch. It acquires what comes within the delay; its answer is sent when the worker has read
    // Metadata (0.3 s), has waited before it fetches at the new leader (0.3 s), and before the intake of the former one
    // stops waiting (1 s after Metadata).
    let (acquires, answers) = (Duration::from_millis(200), Duration::from_millis(800));
    let faults = [Action::Delay(acquires), Action::Late(answers)];
    let bites = faults.map(|action| scene.broker().inject(Fault::new(action).at(Kind::ShareFetch).of_client("worker")));
    eventually(SOON, "a fetch is held up", || bites.iter().all(|bites| bites.count() == 1));
    let moves_at = Instant::now() + acquires + Duration::from_millis(50);
    let tasks = [1, 2].map(|number| scene.gateway.submit(&format!("task {number}"), Duration::from_millis(1)));
    wait(moves_at.saturating_duration_since(Instant::now()));
    let to_former = Fault::new(Action::Delay(Duration::ZERO)).at(Kind::ShareAcknowledge).on_node(1);
    let to_former = scene.broker().inject(to_former.every(1, u32::MAX));
    scene.lead(0, 2);
    for task in &tasks {
        scene.gateway.wait_for_result(task, SOON);
    }
    eventually(SOON, "what the late answer brought is released, and the session closed", || to_former.count() >= 2);
    wait(Duration::from_millis(500));
    scene.rig.audit().assert_each_ran_once(&tasks);
    assert_eq!([&tasks[0], &tasks[1]].map(|task| scene.starts(task)), [1, 1]);
}

/// The leader moves there and back while a fetch is out, which then acquires records in the new epoch. When the worker
/// reads of that epoch, the records are locked for it: it asks before it forgets them, or they are hidden until their
/// locks run out.
#[test]
fn leader_that_moves_there_and_back_within_a_fetch_hides_no_task() {
    let scene = Scene::new("p11-there-and-back", 1, &["only"]);
    scene.lead(0, 1);
    // Tasks of a few microseconds let the worker fetch ahead: the one handler is busy, and a fetch is out all the same.
    for number in 0..20 {
        assert_eq!(scene.gateway.analyze(&format!("before {number}")).status, 200);
    }
    let running = scene.gateway.submit("in work", Duration::from_millis(1500));
    scene.gateway.wait_until_running(&running, SOON);
    // For less than the 0.3 s after which the worker reads Metadata, and longer than a new leader reads its state (0.1
    // s).
    let parked =
        Fault::new(Action::Delay(Duration::from_millis(250))).at(Kind::ShareFetch).of_client("lastcall-worker");
    let parked = scene.broker().inject(parked);
    eventually(SOON, "a fetch is out", || parked.count() == 1);
    for node in [2, 1] {
        scene.lead(0, node);
    }
    let mut tasks: Vec<String> =
        (0..3).map(|number| scene.gateway.submit(&format!("queued {number}"), Duration::from_millis(1))).collect();
    // The worker reads Metadata when the partition is refused to its next fetch.
    let refused = Fault::new(Action::Refuse(ErrorCode::NOT_LEADER_OR_FOLLOWER)).at(Kind::ShareFetch);
    let refused = scene.broker().inject(refused.of_client("lastcall-worker").of_topic(&scene.rig.tasks()));
    let asked = count(&scene, Kind::ShareAcknowledge);
    eventually(SOON, "the fetch is answered, and the next one is refused", || refused.count() == 1);
    tasks.push(running);
    for task in &tasks {
        // A hidden one comes when its lock of 15 s has run out.
        scene.gateway.wait_for_result(task, Duration::from_secs(5));
    }
    assert!(asked.count() > 0, "it has asked");
    assert_eq!(scene.gateway.analyze("and after").status, 200);
    scene.rig.audit().assert_each_ran_once(&tasks);
}
