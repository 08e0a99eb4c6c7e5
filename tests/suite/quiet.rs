//! Quiet: after SIGUSR1 a worker takes nothing new and stays in its group, after SIGUSR2 it goes on.

use std::time::{Duration, Instant};

use devbroker::{Action, Fault, Kind};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::p03_idle_stop::catches;
use crate::support::{
    Gateway, Rig, SHORT_LOCKS, SOON, START, admin, broker, eventually,
    load::{assert_all_answered, task_ids},
    program::Program,
    started,
};

const NOTIFIED: &str = "sent worker_quiet notification";

/// Sends SIGUSR1 and waits for the notification and the end of the tasks in flight. `times`: how often so far.
fn quiet(worker: &mut Program, times: usize) {
    worker.signal(Signal::SIGUSR1);
    worker.wait_for_lines(NOTIFIED, times, SOON);
    worker.wait_for_lines("is quiet and has no task in flight", times, SOON);
}

/// Sends SIGUSR2 and waits for the notification; `times`: how often so far.
fn resume(worker: &mut Program, times: usize) {
    worker.signal(Signal::SIGUSR2);
    // The first notification is that of the start.
    worker.wait_for_lines("sent worker_started notification", times + 1, SOON);
}

fn state(gateway: &Gateway, worker: &str) -> Value {
    gateway.fleet()["workers"][worker]["status"].clone()
}

/// Waits until the gateway has read `count` more heartbeats of a quiet worker.
fn wait_for_heartbeats(rig: &Rig, worker: &str, count: usize) {
    let quiet = || rig.audit().statuses_of(worker).filter(|status| status["status"] == "worker_quiet").count();
    let before = quiet();
    eventually(4 * SOON, "heartbeats of the quiet worker", || quiet() >= before + count);
}

#[test]
fn a_quiet_worker_finishes_its_task_takes_no_other_and_goes_on_after_sigusr2() {
    let (rig, gateway, mut worker) = Rig::shared("quiet").fleet("quiet");
    let caller = gateway.call("one two three", Duration::from_secs(3));
    gateway.wait_until_busy("quiet", 1);
    worker.signal(Signal::SIGUSR1);
    eventually(SOON, "the gateway counts the worker as quiet", || {
        let fleet = gateway.fleet();
        fleet["quiet_workers"] == 1 && fleet["active_workers"] == 0 && fleet["total_workers"] == 0
    });
    let fleet = gateway.fleet();
    assert_eq!(fleet["workers"]["quiet"]["current_task"], *caller.task);
    assert_eq!(fleet["workers"]["quiet"]["is_responsive"], true);
    let tasks: Vec<String> = (0..5).map(|number| gateway.submit(&format!("new {number}"), Duration::ZERO)).collect();
    worker.signal(Signal::SIGUSR1);
    let answer = caller.join().0;
    assert_eq!((answer.status, &answer.json()["processed_by"]), (200, &Value::from("quiet")));
    worker.wait_for_line("💤 Worker quiet is quiet and has no task in flight", SOON);
    wait_for_heartbeats(&rig, "quiet", 3);
    assert_eq!(rig.audit().lost().len(), tasks.len(), "a quiet worker started a task");
    resume(&mut worker, 1);
    for task in &tasks {
        assert_eq!(gateway.wait_for_result(task, SOON)["processed_by"], "quiet");
    }
    let audit = rig.audit();
    assert!(audit.tasks.values().all(|records| *records == 1), "a quiet worker fetched and released tasks");
    assert_eq!(audit.starts, [] as [Value; 0], "a quiet worker fetched and released a task");
    eventually(SOON, "the gateway counts the worker as active", || {
        let fleet = gateway.fleet();
        fleet["quiet_workers"] == 0 && fleet["active_workers"] == 1 && fleet["total_workers"] == 1
    });
    worker.signal(Signal::SIGUSR2);
    assert_eq!(gateway.analyze("last").status, 200);
    worker.ends_at(Signal::SIGTERM, 0);
    worker.assert_lines_in_order(&[
        "🔕 Worker quiet received SIGUSR1: it takes no new tasks and stays in its group",
        "📡 Worker quiet sent worker_quiet notification",
        "💤 Worker quiet is quiet and has no task in flight",
        "🔔 Worker quiet received SIGUSR2: it takes tasks again",
        "🛑 Worker quiet received SIGTERM",
    ]);
    for text in ["🔕", "💤", "🔔"] {
        assert_eq!(worker.lines_with(text).len(), 1, "a repeated signal changes nothing");
    }
    gateway.program.wait_for_line("🛑 Worker quiet is shutting down", SOON);
    gateway.program.assert_lines_in_order(&[
        "🔕 Worker quiet is quiet: it takes no new tasks",
        "🔔 Worker quiet takes tasks again",
        "🛑 Worker quiet is shutting down",
    ]);
    let audit = rig.audit();
    let states = ["worker_started", "worker_quiet", "worker_started", "shutdown_started", "shutdown_completed"];
    assert_eq!(audit.states_of("quiet"), states);
    audit.assert_each_ran_once(&tasks);
}

#[test]
fn a_quiet_worker_stops_as_always() {
    let rig = Rig::quiet("quiet-stop");
    let gateway = rig.start_gateway();
    let mut idle = rig.start_worker("idle");
    let asked = idle.signal(Signal::SIGUSR1);
    // A fetch is parked for up to 100 ms, and its answer may take another 100 ms.
    let line = idle.wait_for_line("💤", SOON);
    assert!(
        line.at >= asked + Duration::from_millis(200),
        "{:?}: a parked fetch may still bring a task",
        line.at - asked
    );
    idle.wait_for_line(NOTIFIED, SOON);
    let exit = idle.ends_at(Signal::SIGTERM, 0);
    assert!(exit.elapsed < Duration::from_secs(1), "{exit:?}");
    assert_eq!((&idle.receipt()["outcome"], &idle.receipt()["signal"]), (&"drained".into(), &"SIGTERM".into()));
    let audit = rig.audit();
    assert_eq!(audit.states_of("idle"), ["worker_started", "worker_quiet", "shutdown_started", "shutdown_completed"]);
    assert_eq!(audit.receipt_of("idle"), &idle.receipt());

    let mut busy = rig.start_worker("busy");
    let caller = gateway.call("long", Duration::from_secs(3));
    gateway.wait_until_busy("busy", 1);
    busy.signal(Signal::SIGUSR1);
    busy.wait_for_line(NOTIFIED, SOON);
    let exit = busy.ends_at(Signal::SIGTERM, 0);
    let (answer, answered) = caller.join();
    assert_eq!(answer.status, 200);
    assert!(exit.at < answered + Duration::from_secs(1), "exit {:?} after the response", exit.at - answered);
    assert_eq!(busy.receipt()["tasks_finished"], 1);
    rig.audit().assert_each_ran_once(&[answer.task_id()]);
}

#[test]
fn a_worker_that_gets_sigusr1_before_it_is_ready_begins_quiet() {
    let rig = Rig::with_own_broker("quiet-early", &[]);
    let gateway = rig.start_gateway();
    let task = gateway.submit("waits", Duration::ZERO);
    rig.broker().freeze();
    let mut worker = rig.worker("early").start();
    eventually(START, "the signal handler is installed", || catches(worker.id(), Signal::SIGUSR1));
    worker.signal(Signal::SIGUSR1);
    rig.broker().thaw();
    worker.wait_for_line(NOTIFIED, START);
    wait_for_heartbeats(&rig, "early", 3);
    assert_eq!(rig.audit().lost(), [task.as_str()]);
    assert!(worker.lines_with("sent worker_started").is_empty());
    worker.signal(Signal::SIGUSR2);
    assert_eq!(gateway.wait_for_result(&task, SOON)["processed_by"], "early");
    assert_eq!(rig.audit().starts, [] as [Value; 0], "a quiet worker fetched and released the task");
    worker.ends_at(Signal::SIGTERM, 0);
}

#[test]
fn a_stopping_worker_and_a_gateway_ignore_sigusr1_and_sigusr2() {
    let rig = Rig::shared("quiet-ignored");
    let mut gateway = rig.start_gateway();
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2] {
        gateway.program.signal(signal);
        gateway.program.wait_for_line(&format!("{signal} is ignored: only a worker can be quiet"), SOON);
    }
    let mut worker = started(&rig.worker("draining").env("LOG_LEVEL", "debug"));
    let caller = gateway.call("long", Duration::from_secs(4));
    gateway.wait_until_busy("draining", 1);
    worker.signal(Signal::SIGTERM);
    worker.wait_for_line("⏳", SOON);
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2] {
        worker.signal(signal);
        worker.wait_for_line(&format!("{signal} is ignored: the worker stops"), SOON);
    }
    assert_eq!(worker.wait(SOON).code, Some(0));
    assert_eq!(caller.join().0.status, 200);
    let states = ["worker_started", "shutdown_started", "shutdown_completed"];
    assert_eq!(rig.audit().states_of("draining"), states);
}

#[test]
fn unstarted_tasks_of_a_worker_that_becomes_quiet_start_elsewhere_at_once() {
    let (rig, gateway, mut first) = Rig::quiet("quiet-prefetched").fleet("first");
    let _second = rig.start_worker("second");
    // 300 tasks of 5 ms per second are a backlog for two workers, so each holds unstarted tasks.
    let load = gateway.load(300, 5);
    load.wait_for(300, SOON);
    let asked = first.signal(Signal::SIGUSR1);
    let finished = first.wait_for_line("💤", SOON);
    // 5 ms for the running task, 100 ms for the fetched tasks that the worker may finish, and a second as in P4.
    assert!(finished.at < asked + Duration::from_millis(1_105), "{:?}", finished.at - asked);
    let by_first = || rig.audit().results.values().filter(|results| results[0]["processed_by"] == "first").count();
    let before = by_first();
    load.wait_for(100, SOON);
    let shots = load.finish();
    assert_eq!(by_first(), before, "a quiet worker ran a task");
    assert_all_answered(&shots);
    rig.audit().assert_each_ran_once(&task_ids(&shots));
}

#[test]
fn a_worker_that_becomes_quiet_while_it_reads_the_starts_of_a_task_releases_the_task() {
    let rig = Rig::with_faults("quiet-vetting", 1);
    let broker = rig.broker().faulty();
    let gateway = rig.start_gateway();
    // Damaged deliveries are no starts; from the third delivery on, the worker reads the starts.
    broker.inject(Fault::new(Action::Damage).at(Kind::ShareFetch).every(1, u32::MAX));
    let mut worker = started(&rig.obedient_worker("w").env("MAX_DELIVERIES", 2));
    let task = gateway.submit("text", Duration::ZERO);
    worker.wait_for_line("cannot be read at its delivery 2", SOON);
    broker.heal();
    let late = Fault::new(Action::Delay(Duration::from_secs(2))).at(Kind::ListOffsets).of_client("lastcall-worker");
    let read = broker.inject(late.of_topic(&format!("{}.starts", rig.tasks())));
    eventually(SOON, "the worker reads the starts", || read.count() == 1);
    quiet(&mut worker, 1);
    assert!(worker.lines_with("handler started").is_empty(), "a quiet worker started a task");
    resume(&mut worker, 1);
    assert_eq!(gateway.wait_for_result(&task, SOON)["success"], true);
    assert_eq!(worker.lines_with(&format!("handler started {task}")).len(), 1);
}

#[test]
fn workers_that_become_quiet_and_go_on_fifty_times_under_load_lose_and_repeat_no_task() {
    let rig = Rig::quiet("quiet-often");
    let gateway = rig.start_gateway();
    let mut workers = ["a", "b", "c"].map(|id| rig.start_worker(id));
    let load = gateway.load(60, 15);
    load.wait_for(60, SOON);
    for round in 0..50 {
        let times = round / workers.len() + 1;
        let worker = &mut workers[round % 3];
        worker.signal(Signal::SIGUSR1);
        worker.wait_for_lines(NOTIFIED, times, SOON);
        resume(worker, times);
    }
    let shots = load.finish();
    assert_all_answered(&shots);
    rig.audit().assert_each_ran_once(&task_ids(&shots));
    for worker in &mut workers {
        worker.ends_at(Signal::SIGTERM, 0);
    }
}

/// The embedded broker has short locks: a worker that sends nothing for two of them would not be live. On Apache Kafka
/// the broker closes a connection that is idle for 8 s.
#[test]
fn an_idle_quiet_worker_stays_live_keeps_its_session_and_takes_a_task_at_once_after_sigusr2() {
    let (settings, heartbeats): (&[&str], usize) =
        if broker::is_apache() { (&["--set", "connections.max.idle.ms=8000"], 20) } else { (&SHORT_LOCKS, 8) };
    let rig = Rig::quiet_with_own_broker("quiet-idle", settings);
    let gateway = rig.start_gateway();
    let mut worker = started(&rig.worker("idle").env("LOG_LEVEL", "debug"));
    assert_eq!(gateway.analyze("first").status, 200);
    quiet(&mut worker, 1);
    wait_for_heartbeats(&rig, "idle", heartbeats);
    let task = gateway.submit("waits", Duration::ZERO);
    let resumed = worker.signal(Signal::SIGUSR2);
    gateway.wait_for_result(&task, SOON);
    assert!(resumed.elapsed() < Duration::from_secs(1), "{:?} after SIGUSR2", resumed.elapsed());
    for text in ["not live", "opening the session again", "closed the connection"] {
        assert!(worker.lines_with(text).is_empty(), "{text}: {:?}", worker.lines_with(text));
    }
    rig.audit().assert_each_ran_once(&[task]);
}

#[test]
fn a_quiet_worker_takes_tasks_again_after_a_broker_restart_and_from_new_partitions() {
    let rig = Rig::with_own_broker("quiet-restart", &[]);
    let gateway = rig.start_gateway();
    let mut worker = rig.start_worker("patient");
    quiet(&mut worker, 1);
    rig.broker().stop();
    rig.broker().start();
    admin::grow_topic(rig.broker().address(), &rig.tasks(), 3);
    wait_for_heartbeats(&rig, "patient", 2);
    let tasks: Vec<String> = (0..12).map(|number| gateway.submit(&format!("new {number}"), Duration::ZERO)).collect();
    assert_eq!(state(&gateway, "patient"), "worker_quiet");
    resume(&mut worker, 1);
    for task in &tasks {
        gateway.wait_for_result(task, 2 * SOON);
    }
    rig.audit().assert_each_ran_once(&tasks);
}

#[test]
fn a_quiet_worker_takes_tasks_again_from_the_leaders_of_that_time() {
    let rig = Rig::with_faults("quiet-leaders", 3);
    let gateway = rig.gateway().env("TASKS_PARTITIONS", 3).env("REPLICATION_FACTOR", 3);
    let gateway = Gateway::start(gateway);
    let mut worker = rig.start_worker("moved");
    let task = gateway.submit("runs during the moves", Duration::from_secs(3));
    gateway.wait_until_running(&task, SOON);
    worker.signal(Signal::SIGUSR1);
    worker.wait_for_line(NOTIFIED, SOON);
    let cluster = rig.broker().faulty();
    for partition in 0..3 {
        let leader = cluster.leader(&rig.tasks(), partition).expect("a leader");
        assert!(cluster.move_leader(&rig.tasks(), partition, leader % 3 + 1));
    }
    gateway.wait_for_result(&task, SOON);
    worker.wait_for_line("💤", SOON);
    let tasks: Vec<String> = (0..12).map(|number| gateway.submit(&format!("new {number}"), Duration::ZERO)).collect();
    wait_for_heartbeats(&rig, "moved", 2);
    assert_eq!(rig.audit().lost().len(), tasks.len());
    let resumed = Instant::now();
    resume(&mut worker, 1);
    for task in &tasks {
        gateway.wait_for_result(task, SOON);
    }
    assert!(resumed.elapsed() < Duration::from_secs(2), "{:?}", resumed.elapsed());
    rig.audit().assert_each_ran_once(&tasks);
}
