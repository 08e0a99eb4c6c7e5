//! P4: a busy worker takes nothing new, finishes what is in flight, and stops within a second of that.

use std::{
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{
    Gateway, Rig, SOON, eventually,
    http::Response,
    load::{Load, Plan, assert_all_answered, task_ids},
};

/// A caller that waits for its answer, and when that came.
fn analyze_in_background(gateway: &Gateway, text: &str, work: Duration) -> JoinHandle<(Response, Instant)> {
    let mut http = gateway.connect();
    let body = json!({ "text": text, "work_ms": u64::try_from(work.as_millis()).expect("short") });
    std::thread::Builder::new()
        .name("caller".to_owned())
        .spawn(move || (http.post("/analyze", &body).expect("an answer"), Instant::now()))
        .expect("a thread starts")
}

/// Waits until the worker says that it has `count` tasks in hand.
fn wait_until_busy(gateway: &Gateway, worker: &str, count: usize) {
    eventually(SOON, "the worker is busy", || {
        let fleet = gateway.fleet();
        let worker = &fleet["workers"][worker];
        let tasks = worker["current_tasks"].as_array().map_or(0, Vec::len);
        if count > 1 { tasks == count } else { worker["current_task"].is_string() }
    });
}

fn a_busy_worker_finishes_and_stops(name: &str, signal: Signal) {
    let rig = Rig::quiet(name);
    let gateway = rig.start_gateway();
    let work = Duration::from_secs(4);
    let mut worker = rig.start_worker("busy");
    let caller = analyze_in_background(&gateway, "one two three", work);
    wait_until_busy(&gateway, "busy", 1);
    worker.signal(signal);
    eventually(SOON, "the gateway sees it draining", || {
        let fleet = gateway.fleet();
        fleet["shutting_down_workers"] == 1 && fleet["active_workers"] == 0 && fleet["total_workers"] == 1
    });
    let exit = worker.wait(Duration::from_secs(10));
    let (answer, answered) = caller.join().expect("the caller does not panic");
    assert_eq!((answer.status, &answer.json()["words"]), (200, &json!(3)), "{}", answer.text());
    assert_eq!(exit.code, Some(0));
    // The task's own time is over when its answer is there: the bound is one second from then.
    assert!(exit.at < answered + Duration::from_secs(1), "exit {:?} after the answer", exit.at - answered);
    assert!(exit.elapsed < work + Duration::from_secs(1), "{exit:?}");
    let task = answer.task_id();
    worker.assert_lines_in_order(&[
        "🛑 Worker busy received SIG",
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
    assert!(draining.len() >= 2, "heartbeats go on while it drains: {draining:?}");
    assert!(draining.iter().any(|status| status["current_task"] == *task));

    // Nothing is left locked or to be done: another worker gets new work at once, and only that.
    let _other = rig.start_worker("other");
    assert_eq!(gateway.analyze("next").json()["processed_by"], "other");
    rig.audit().assert_each_ran_once([&task]);
}

#[test]
fn a_busy_worker_finishes_its_task_at_sigterm() {
    a_busy_worker_finishes_and_stops("p4-term", Signal::SIGTERM);
}

#[test]
fn a_busy_worker_finishes_its_task_at_sigint() {
    a_busy_worker_finishes_and_stops("p4-int", Signal::SIGINT);
}

#[test]
fn a_stopping_worker_takes_nothing_new() {
    let rig = Rig::shared("p4-nothing-new");
    let gateway = rig.start_gateway();
    let mut worker = rig.start_worker("stopping");
    let caller = analyze_in_background(&gateway, "long", Duration::from_secs(8));
    wait_until_busy(&gateway, "stopping", 1);
    worker.signal(Signal::SIGTERM);
    worker.wait_for_line("⏳", SOON);
    let tasks: Vec<String> = (0..20).map(|number| gateway.submit(&format!("new {number}"), Duration::ZERO)).collect();
    // They wait for nobody but a worker that takes tasks.
    let _other = rig.start_worker("other");
    for task in &tasks {
        assert_eq!(gateway.wait_for_result(task, SOON)["processed_by"], "other");
    }
    assert!(worker.is_running());
    assert_eq!(worker.wait(SOON).code, Some(0));
    assert_eq!(worker.receipt()["tasks_finished"], 1);
    assert_eq!(caller.join().expect("no panic").0.json()["processed_by"], "stopping");
    rig.audit().assert_each_ran_once(&tasks);
}

#[test]
fn all_handlers_in_flight_are_finished() {
    let rig = Rig::quiet("p4-many");
    let gateway = rig.start_gateway();
    let launch = rig.worker("many").env("WORKER_CONCURRENCY", 4).env("HEARTBEAT_INTERVAL", "200ms");
    let mut worker = crate::support::started(&launch);
    let callers: Vec<_> = (0..4)
        .map(|number| analyze_in_background(&gateway, &format!("text {number}"), Duration::from_secs(5)))
        .collect();
    wait_until_busy(&gateway, "many", 4);
    worker.signal(Signal::SIGTERM);
    let exit = worker.wait(Duration::from_secs(10));
    assert_eq!(exit.code, Some(0));
    let answers: Vec<_> = callers.into_iter().map(|caller| caller.join().expect("no panic")).collect();
    let last = answers.iter().map(|(_, at)| *at).max().expect("four answers");
    assert!(exit.at < last + Duration::from_secs(1), "exit {:?} after the last answer", exit.at - last);
    assert_eq!(worker.receipt()["tasks_finished"], 4);
    let tasks: Vec<String> = answers.iter().map(|(answer, _)| answer.task_id()).collect();
    assert!(answers.iter().all(|(answer, _)| answer.status == 200));
    rig.audit().assert_each_ran_once(&tasks);
}

#[test]
fn what_a_stopping_worker_fetched_and_did_not_start_starts_elsewhere_at_once() {
    let rig = Rig::quiet("p4-prefetched");
    let gateway = rig.start_gateway();
    let mut first = rig.start_worker("first");
    let _second = rig.start_worker("second");
    // 5 ms each, more than both can do: each holds some that it has not started.
    let addresses = vec![gateway.address.clone()];
    let load = Load::start(Plan { addresses, per_second: 300, work: Some(Duration::from_millis(5)) });
    eventually(SOON, "answers come", || load.answered() > 300);
    first.signal(Signal::SIGTERM);
    let exit = first.wait(SOON);
    assert_eq!(exit.code, Some(0));
    // Its own task takes 5 ms, and what it finishes besides takes under 100 ms in all.
    assert!(exit.elapsed < Duration::from_millis(1_105), "{exit:?}");
    let shots = load.finish();
    assert_all_answered(&shots);
    // A task that stayed locked with the stopped worker would have waited for the 15 s of its lock.
    let slowest = shots.iter().map(|shot| shot.latency).max().expect("there were requests");
    assert!(slowest < Duration::from_secs(5), "a task waited for {slowest:?}");
    rig.audit().assert_each_ran_once(&task_ids(&shots));
}

/// What lay ready was started after the signal for as long as a frozen broker kept the fetch from its end.
#[test]
fn nothing_that_lies_ready_is_started_after_the_signal_though_kafka_is_frozen() {
    let rig = Rig::with_faults("p4-ready", 1);
    let gateway = rig.start_gateway();
    let mut worker = crate::support::started(&rig.worker("busy").env("LOG_LEVEL", "debug").env("DRAIN_TIMEOUT", "5s"));
    // Short enough that the worker fetches ahead.
    let short = |count: usize| {
        for number in 0..count {
            gateway.submit(&format!("text {number}"), Duration::from_millis(6));
        }
    };
    short(60);
    let begun = |worker: &crate::support::program::Program| worker.lines_with("starts task").len();
    eventually(SOON, "the first ones are done", || begun(&worker) == 60);
    let load = std::thread::scope(|scope| {
        let sender = scope.spawn(|| short(150));
        eventually(SOON, "some more are done", || begun(&worker) > 100);
        rig.broker().faulty().nodes().freeze();
        worker.signal(Signal::SIGTERM);
        let exit = worker.wait(SOON);
        rig.broker().faulty().nodes().thaw();
        sender.join().expect("they are accepted at last");
        exit
    });
    assert!(load.elapsed < Duration::from_secs(6), "{load:?}");
    let signalled = worker.lines_with("received SIGTERM")[0].at;
    let after: Vec<_> = worker.lines_with("starts task").into_iter().filter(|line| line.at > signalled).collect();
    assert!(after.len() <= 1, "one may start in the instant of the signal: {after:?}");
}
