//! P11: three brokers, any of which may go, and every worker works on. On the embedded broker, since what happens has to
//! happen at a moment that the test chooses.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use lastcall::{
    devbroker::{Action, Bites, Broker, Fault, Kind},
    kafka::ErrorCode,
};
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

/// A frozen broker stopped everything for as long as it was frozen, although its partitions had new leaders long before.
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

/// The gateway waited for the whole time-out of its fetch to the frozen broker, seconds after `results` had a new leader.
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
    // For less than the 0.3 s after which the worker reads Metadata, and longer than a new leader reads its state (0.1 s).
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

// ---- connections that die without a word ----

/// The worker waited for the answer for ever, and called itself healthy.
#[test]
fn a_connection_that_says_nothing_any_more_is_replaced_and_no_lock_is_lost() {
    let scene = Scene::short_locks("p11-deaf", &["a", "b"]);
    let task = scene.gateway.submit("held meanwhile", Duration::from_secs(5));
    let holder = scene.gateway.wait_until_running(&task, SOON);
    // It renews the lock every second, and fetches nothing.
    let deaf = Fault::new(Action::Deafen).of_client(&format!("lastcall-worker-{holder}")).at(Kind::ShareAcknowledge);
    let bites = scene.broker().inject(deaf);
    eventually(SOON, "its session's connection is deaf", || bites.count() > 0);
    scene.gateway.wait_for_result(&task, SOON);
    wait(2 * LOCK);
    assert_eq!(scene.rig.audit().runs(&task), 1, "the locks were taken over");
    for round in 0..20 {
        assert_eq!(scene.gateway.analyze(&format!("round {round}")).status, 200);
    }
}

/// An acknowledgement that a connection swallowed is said again on the next one, within the lock.
#[test]
fn what_a_deaf_connection_has_swallowed_is_said_again() {
    let scene = Scene::short_locks("p11-swallowed", &["only"]);
    scene.gateway.analyze("before");
    let deaf = Fault::new(Action::Deafen).of_client("lastcall-worker").at(Kind::ShareFetch);
    let bites = scene.broker().inject(deaf);
    let tasks = [1, 2].map(|number| scene.gateway.submit(&format!("task {number}"), Duration::from_millis(1)));
    for task in &tasks {
        scene.gateway.wait_for_result(task, SOON);
    }
    assert_eq!(bites.count(), 1);
    wait(2 * LOCK);
    scene.rig.audit().assert_each_ran_once(&tasks);
}

/// A path that holds everything up for less than a lock, and then delivers it in whatever order: the task runs once.
#[test]
fn a_path_that_stalls_for_less_than_a_lock_costs_nothing() {
    let scene = Scene::new("p11-stall", 1, &["a", "b"]);
    let task = scene.gateway.submit("held meanwhile", Duration::from_secs(16));
    scene.gateway.wait_until_running(&task, SOON);
    scene.broker().nodes().freeze();
    wait(Duration::from_secs(12));
    scene.broker().nodes().thaw();
    scene.gateway.wait_for_result(&task, SOON);
    wait(Duration::from_secs(1));
    assert_eq!((scene.rig.audit().runs(&task), scene.starts(&task)), (1, 0));
}

/// P8b: a worker that is cut off does not call itself live, its task starts elsewhere, and it works again by itself.
#[test]
fn a_worker_that_is_cut_off_says_so_and_works_again_when_it_can() {
    let scene = Scene::short_locks("p11-cut", &["a", "b"]);
    let task = scene.gateway.submit("held meanwhile", Duration::from_secs(4));
    let holder = scene.gateway.wait_until_running(&task, SOON);
    let place = scene.workers.iter().position(|worker| worker.name() == holder).expect("one of ours");
    let (cut, heir) = (&scene.workers[place], &scene.workers[1 - place]);
    scene.cut_off(&holder);
    heir.wait_for_line(&format!("starts task {task}"), SOON);
    cut.wait_for_line("is not live: no leader of the tasks has answered", SOON);
    scene.broker().heal();
    let healed = Instant::now();
    cut.wait_for_line("is live again", Duration::from_secs(25));
    eventually(Duration::from_secs(25), "it takes tasks again", || {
        let answers = (0..4).map(|number| scene.gateway.analyze(&format!("text {number}")));
        answers.into_iter().any(|answer| answer.json()["processed_by"] == holder.as_str())
    });
    assert!(healed.elapsed() < Duration::from_secs(25));
}

// ---- stops and kills right after a replacement ----

/// A worker that leaves right after it has replaced a connection takes no task along.
#[test]
fn a_stop_or_a_kill_right_after_a_replacement_hides_no_task() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut scene = Scene::short_locks("p11-leave", &["leaves"]);
        let deaf = Fault::new(Action::Deafen).of_client("lastcall-worker").at(Kind::ShareFetch);
        let bites = scene.broker().inject(deaf);
        eventually(SOON, "its connection is deaf", || bites.count() == 1);
        scene.workers[0].wait_for_line("a leader of the tasks, does not answer", SOON);
        scene.workers.push(started(&scene.rig.worker("stays")));
        scene.workers[0].signal(signal);
        let begun = Instant::now();
        let task = scene.gateway.submit("right after", Duration::from_millis(1));
        scene.gateway.wait_for_result(&task, SOON);
        // P8 allows a lock for a record that was fetched within 100 ms after a connection was lost and replaced.
        let limit = if signal == Signal::SIGTERM { Duration::from_secs(1) } else { LOCK + Duration::from_secs(1) };
        assert!(begun.elapsed() < limit, "{signal}: {:?}", begun.elapsed());
        scene.workers[0].wait(SOON);
    }
}

// ---- several tasks at once ----

/// Counts requests of this kind of all workers from now on, and does nothing to them.
fn count(scene: &Scene, kind: Kind) -> Bites {
    let nothing = Fault::new(Action::Delay(Duration::ZERO)).at(kind).of_client("lastcall-worker");
    scene.broker().inject(nothing.every(1, u32::MAX))
}

/// A group of renewals that is refused for lost locks is halved; it was sent again as a whole, as fast as it was refused.
#[test]
fn a_worker_that_hung_with_several_tasks_floods_nobody_and_works_on() {
    let mut scene = Scene::short_locks("p11-group", &[]);
    let start = |scene: &mut Scene, id: &str| {
        let worker = started(&scene.rig.worker(id).env("WORKER_CONCURRENCY", 3));
        scene.workers.push(worker);
    };
    start(&mut scene, "hung");
    let tasks = [1, 2, 3].map(|number| scene.gateway.submit(&format!("task {number}"), Duration::from_secs(8)));
    scene.wait_until_runs("hung", 3);
    start(&mut scene, "heir");
    scene.workers[0].signal(Signal::SIGSTOP);
    for task in &tasks {
        scene.workers[1].wait_for_line(&format!("starts task {task}"), SOON);
    }
    let acknowledged = count(&scene, Kind::ShareAcknowledge);
    scene.workers[0].signal(Signal::SIGCONT);
    scene.workers[0].wait_for_lines("lost the lock of task", 3, SOON);
    wait(Duration::from_secs(1));
    assert!(acknowledged.count() < 100, "{} acknowledgements in a second", acknowledged.count());
    for task in &tasks {
        scene.gateway.wait_for_result(task, SOON);
    }
    let mut both = BTreeSet::new();
    eventually(SOON, "both work on", || {
        both.insert(scene.gateway.analyze("and after").json()["processed_by"].to_string());
        both.len() == 2
    });
}

/// While an accept hangs, other records are fetched and run, and what hangs is done once.
#[test]
fn an_accept_that_hangs_stops_nothing_else() {
    let scene = Scene::short_locks("p11-hang", &["only"]);
    let first = scene.gateway.submit("its accept rides on a fetch that hangs", Duration::from_secs(2));
    scene.gateway.wait_until_running(&first, SOON);
    // Nothing is fetched while it runs.
    let hang = Fault::new(Action::Delay(Duration::from_secs(4))).at(Kind::ShareFetch).of_client("lastcall-worker");
    let bites = scene.broker().inject(hang);
    eventually(SOON, "a fetch hangs", || bites.count() == 1);
    let begun = Instant::now();
    let acknowledged = count(&scene, Kind::ShareAcknowledge);
    let mut tasks = vec![first];
    assert_eq!(scene.gateway.analyze("on the connection that has taken over").status, 200);
    assert!(begun.elapsed() < LOCK / 3, "answered only when it had hung for {:?}", begun.elapsed());
    while begun.elapsed() < Duration::from_secs(5) {
        tasks.push(scene.gateway.submit("meanwhile", Duration::from_millis(1)));
        wait(Duration::from_millis(250));
    }
    for task in &tasks {
        scene.gateway.wait_for_result(task, Duration::from_secs(2));
    }
    assert!(acknowledged.count() < 100, "{} acknowledgements in five seconds", acknowledged.count());
    wait(LOCK + Duration::from_secs(1));
    scene.rig.audit().assert_each_ran_once(&tasks);
}

/// A result that hangs, as one does whose leader was killed, keeps no other task from its start.
#[test]
fn a_result_that_hangs_keeps_no_task_waiting() {
    let mut scene = Scene::short_locks("p11-result", &[]);
    scene.workers.push(started(&scene.rig.worker("only").env("LOG_LEVEL", "debug")));
    let first = scene.gateway.submit("its result hangs", Duration::from_millis(500));
    scene.workers[0].wait_for_line(&format!("starts task {first}"), SOON);
    let hang = Fault::new(Action::Delay(Duration::from_secs(4))).at(Kind::Produce).of_client("lastcall-worker");
    let bites = scene.broker().inject(hang.of_topic(&scene.rig.results()));
    scene.workers[0].wait_for_line(&format!("has run task {first}"), SOON);
    eventually(SOON, "a result or a heartbeat hangs, and what comes after it waits", || bites.count() == 1);
    let second = scene.gateway.submit("meanwhile", Duration::from_millis(1));
    scene.workers[0].wait_for_line(&format!("starts task {second}"), Duration::from_secs(1));
    for task in [&first, &second] {
        scene.gateway.wait_for_result(task, SOON);
        assert_eq!(scene.rig.audit().runs(task), 1);
    }
}

/// A session that is opened on a second connection, and on a third because that hangs as well, stays with the third: what
/// the second one does late is undone, and no lock is lost.
#[test]
fn a_session_that_is_opened_late_takes_no_lock_away() {
    let rig = Rig::with_faults_and("p11-late", 1, &[]);
    let gateway = Gateway::start(rig.gateway());
    let workers = vec![started(&rig.worker("holder").env("WORKER_CONCURRENCY", 2))];
    let mut scene = Scene { rig, gateway, workers };
    let tasks = [14, 2].map(|seconds| scene.gateway.submit("held meanwhile", Duration::from_secs(seconds)));
    scene.wait_until_runs("holder", 2);
    // The fetch with the accept of the second task, and the epoch 0 of the connection that takes over: two thirds of a
    // lock later there is a third one, and then the second one has its answer.
    let hang =
        Fault::new(Action::Delay(Duration::from_secs(11))).at(Kind::ShareFetch).of_client("lastcall-worker-holder");
    let bites = scene.broker().inject(hang.every(1, 2));
    scene.workers.push(started(&scene.rig.worker("heir")));
    for task in &tasks {
        scene.gateway.wait_for_result(task, Duration::from_secs(20));
    }
    wait(Duration::from_secs(1));
    assert_eq!(bites.count(), 2);
    for task in &tasks {
        assert_eq!((scene.rig.audit().runs(task), scene.starts(task)), (1, 0));
    }
}
