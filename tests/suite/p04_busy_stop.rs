//! P4: a stopping worker takes no new task, finishes the tasks in flight, and exits within a second after them.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{
    Caller, Rig, SOON, eventually,
    load::{assert_all_answered, task_ids},
    program::Program,
    started,
};

#[test]
fn a_busy_worker_finishes_its_task_and_stops() {
    let rig = Rig::quiet("p4");
    let gateway = rig.start_gateway();
    let work = Duration::from_secs(4);
    let mut worker = rig.start_worker("busy");
    let caller = gateway.call("one two three", work);
    gateway.wait_until_busy("busy", 1);
    worker.signal(Signal::SIGTERM);
    eventually(SOON, "the gateway shows the worker as shutting down", || {
        let fleet = gateway.fleet();
        fleet["shutting_down_workers"] == 1 && fleet["active_workers"] == 0 && fleet["total_workers"] == 1
    });
    let exit = worker.wait(Duration::from_secs(10));
    let (answer, answered) = caller.join();
    assert_eq!((answer.status, &answer.json()["words"]), (200, &json!(3)), "{}", answer.text());
    assert_eq!(exit.code, Some(0));
    // The task has ended when its response comes; the bound of one second counts from then.
    assert!(exit.at < answered + Duration::from_secs(1), "exit {:?} after the response", exit.at - answered);
    assert!(exit.elapsed < work + Duration::from_secs(1), "{exit:?}");
    let task = answer.task_id();
    worker.assert_lines_in_order(&[
        "🛑 Worker busy received SIGTERM, initiating graceful shutdown...",
        "📡 Worker busy sent shutdown_started notification",
        &format!("⏳ Worker busy waiting for current task {task} to complete..."),
        "🧹 Worker busy cleaning up",
        "✅ Worker busy consumer closed",
        "📡 Worker busy sent shutdown_completed notification",
        "✅ Worker busy producer closed",
        "👋 Worker busy gracefully shut down",
    ]);
    let receipt = worker.receipt();
    assert_eq!((&receipt["tasks_finished"], &receipt["outcome"]), (&json!(1), &json!("drained")));
    let audit = rig.audit();
    assert_eq!(audit.result(&task)["processed_by"], "busy");
    let draining = audit.statuses_of("busy").filter(|status| status["status"] == "shutdown_started");
    let draining: Vec<_> = draining.collect();
    assert!(draining.len() >= 2, "no heartbeat during the drain: {draining:?}");
    assert!(draining.iter().any(|status| status["current_task"] == *task));

    // No task is left: another worker runs the next task at once, and only this task.
    let _other = rig.start_worker("other");
    assert_eq!(gateway.analyze("next").json()["processed_by"], "other");
    rig.audit().assert_each_ran_once([&task]);
}

#[test]
fn a_stopping_worker_takes_no_new_task() {
    let (rig, gateway, mut worker) = Rig::shared("p4-nothing-new").fleet("stopping");
    let caller = gateway.call("long", Duration::from_secs(8));
    gateway.wait_until_busy("stopping", 1);
    worker.signal(Signal::SIGTERM);
    worker.wait_for_line("⏳", SOON);
    let tasks: Vec<String> = (0..20).map(|number| gateway.submit(&format!("new {number}"), Duration::ZERO)).collect();
    let _other = rig.start_worker("other");
    for task in &tasks {
        assert_eq!(gateway.wait_for_result(task, SOON)["processed_by"], "other");
    }
    assert!(worker.is_running());
    assert_eq!(worker.wait(SOON).code, Some(0));
    assert_eq!(worker.receipt()["tasks_finished"], 1);
    assert_eq!(caller.join().0.json()["processed_by"], "stopping");
    rig.audit().assert_each_ran_once(&tasks);
}

#[test]
fn a_stopping_worker_finishes_the_tasks_of_all_its_handlers() {
    let rig = Rig::quiet("p4-many");
    let gateway = rig.start_gateway();
    let launch = rig.worker("many").env("WORKER_CONCURRENCY", 4).env("HEARTBEAT_INTERVAL", "200ms");
    let mut worker = started(&launch);
    let callers: Vec<_> =
        (0..4).map(|number| gateway.call(&format!("text {number}"), Duration::from_secs(5))).collect();
    gateway.wait_until_busy("many", 4);
    let exit = worker.ends_at(Signal::SIGTERM, 0);
    let answers: Vec<_> = callers.into_iter().map(Caller::join).collect();
    let last = answers.iter().map(|(_, at)| *at).max().expect("four answers");
    assert!(exit.at < last + Duration::from_secs(1), "exit {:?} after the last response", exit.at - last);
    assert_eq!(worker.receipt()["tasks_finished"], 4);
    let tasks: Vec<String> = answers.iter().map(|(answer, _)| answer.task_id()).collect();
    assert!(answers.iter().all(|(answer, _)| answer.status == 200));
    rig.audit().assert_each_ran_once(&tasks);
}

#[test]
fn unstarted_tasks_of_a_stopping_worker_start_elsewhere_at_once() {
    let (rig, gateway, mut first) = Rig::quiet("p4-prefetched").fleet("first");
    let _second = rig.start_worker("second");
    // 300 tasks of 5 ms per second are a backlog for two workers, so each holds unstarted tasks.
    let load = gateway.load(300, 5);
    load.wait_for(300, SOON);
    let exit = first.ends_at(Signal::SIGTERM, 0);
    // 5 ms for the running task, 100 ms for the fetched tasks that the worker may finish, and the second of P4.
    assert!(exit.elapsed < Duration::from_millis(1_105), "{exit:?}");
    let shots = load.finish();
    assert_all_answered(&shots);
    // A task that the stopped worker did not release would wait 15 s for the end of its lock.
    let slowest = shots.iter().map(|shot| shot.latency).max().expect("there were requests");
    assert!(slowest < Duration::from_secs(5), "a task waited for {slowest:?}");
    rig.audit().assert_each_ran_once(&task_ids(&shots));
}

/// The worker went on to start fetched tasks after the signal while a fetch to a frozen broker was unanswered.
#[test]
fn fetched_tasks_are_not_started_after_the_signal_while_kafka_is_frozen() {
    let rig = Rig::with_faults("p4-ready", 1);
    let gateway = rig.start_gateway();
    let mut worker = started(&rig.worker("busy").env("LOG_LEVEL", "debug").env("DRAIN_TIMEOUT", "5s"));
    // Short enough that the worker fetches ahead.
    let short = |count: usize| {
        for number in 0..count {
            gateway.submit(&format!("text {number}"), Duration::from_millis(6));
        }
    };
    short(60);
    let begun = |worker: &Program| worker.lines_with("starts task").len();
    eventually(SOON, "the first 60 tasks have started", || begun(&worker) == 60);
    let load = std::thread::scope(|scope| {
        let sender = scope.spawn(|| short(150));
        eventually(SOON, "more than 100 tasks have started", || begun(&worker) > 100);
        rig.broker().faulty().nodes().freeze();
        worker.signal(Signal::SIGTERM);
        let exit = worker.wait(SOON);
        rig.broker().faulty().nodes().thaw();
        sender.join().expect("all tasks are accepted after the thaw");
        exit
    });
    assert!(load.elapsed < Duration::from_secs(6), "{load:?}");
    let signalled = worker.lines_with("received SIGTERM")[0].at;
    let after: Vec<_> = worker.lines_with("starts task").into_iter().filter(|line| line.at > signalled).collect();
    assert!(after.len() <= 1, "at most one task may start at the moment of the signal: {after:?}");
}
