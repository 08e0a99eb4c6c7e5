//! P7: a worker stops in time while Kafka is frozen or dead, and names the step that failed.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{
    Gateway, Rig, SOON, eventually,
    program::{Line, Program},
    started,
};

const IDLE_BOUND: Duration = Duration::from_secs(5);
const DRAIN: Duration = Duration::from_secs(5);
/// The shortest grace period for [`DRAIN`]: drain timeout + 5 s.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
enum Away {
    Frozen,
    Dead,
}

impl Away {
    fn begin(self, rig: &Rig) {
        match self {
            Away::Frozen => rig.broker().freeze(),
            Away::Dead => rig.broker().kill(),
        }
    }

    fn end(self, rig: &Rig) {
        match self {
            Away::Frozen => rig.broker().thaw(),
            Away::Dead => rig.broker().start(),
        }
    }
}

fn rig(name: &str) -> Rig {
    Rig::with_own_broker(name, &["--set", "broker.session.timeout.ms=2000"])
}

/// The warnings and errors that a worker logged since `since`.
fn complaints(worker: &Program, since: Instant) -> Vec<Line> {
    let lines = worker.lines().into_iter().filter(|line| line.at >= since);
    lines.filter(|line| line.text.contains("WARN") || line.text.contains("ERROR")).collect()
}

fn an_idle_worker_stops(name: &str, away: Away) {
    let rig = rig(name);
    let mut worker = rig.start_worker("idle");
    away.begin(&rig);
    let signalled = worker.signal(Signal::SIGTERM);
    let exit = worker.wait(Duration::from_secs(30));
    assert_eq!(exit.code, Some(0), "no task was abandoned");
    assert!(exit.elapsed < IDLE_BOUND, "{exit:?}");
    let complaints = complaints(&worker, signalled);
    let named = ["shutdown_started", "shutdown_completed", "session", "group", "consumer", "producer", "notification"];
    assert!(
        complaints.iter().any(|line| named.iter().any(|step| line.text.contains(step))),
        "no line names the step that failed: {complaints:?}"
    );
    assert_eq!(worker.receipt()["exit_code"], 0);
    away.end(&rig);
}

#[test]
fn an_idle_worker_stops_while_the_broker_is_frozen() {
    an_idle_worker_stops("p7-idle-frozen", Away::Frozen);
}

#[test]
fn an_idle_worker_stops_while_the_broker_is_dead() {
    an_idle_worker_stops("p7-idle-dead", Away::Dead);
}

/// Stops a worker whose task ends within the drain timeout, while Kafka cannot acknowledge the result.
fn a_busy_worker_stops(name: &str, away: Away) {
    let rig = rig(name);
    let gateway = rig.start_gateway();
    let launch = rig.worker("busy").env("DRAIN_TIMEOUT", "5s").env("STOP_GRACE_PERIOD", "10s");
    let mut worker = started(&launch);
    let task = gateway.submit("a task", Duration::from_secs(4));
    gateway.wait_until_running(&task, SOON);
    away.begin(&rig);
    let signalled = worker.signal(Signal::SIGTERM);
    let exit = worker.wait(Duration::from_secs(30));
    assert_eq!(exit.code, Some(3), "the result was not acknowledged");
    assert!(exit.elapsed < DRAIN + Duration::from_secs(1), "{exit:?}");
    assert!(exit.elapsed < GRACE - Duration::from_secs(3), "{exit:?}");
    assert!(!complaints(&worker, signalled).is_empty());
    let receipt = worker.receipt();
    assert_eq!((&receipt["exit_code"], &receipt["tasks_abandoned"]), (&json!(3), &json!([task])));
    away.end(&rig);
    the_task_is_not_lost(&rig, &gateway, &task);
}

fn the_task_is_not_lost(rig: &Rig, gateway: &Gateway, task: &str) {
    let _other = rig.start_worker("other");
    // The stopped worker could not release the task, so its lock may have to end first.
    assert_eq!(gateway.wait_for_result(task, Duration::from_secs(40))["success"], true);
    assert!(rig.audit().dead.is_empty());
}

#[test]
fn a_busy_worker_stops_while_the_broker_is_frozen() {
    a_busy_worker_stops("p7-busy-frozen", Away::Frozen);
}

#[test]
fn a_busy_worker_stops_while_the_broker_is_dead() {
    a_busy_worker_stops("p7-busy-dead", Away::Dead);
}

#[test]
fn a_task_that_outlasts_the_drain_timeout_is_abandoned_while_the_broker_is_frozen() {
    let rig = rig("p7-long-frozen");
    let gateway = rig.start_gateway();
    let launch = rig.worker("busy").env("DRAIN_TIMEOUT", "5s").env("STOP_GRACE_PERIOD", "10s");
    let mut worker = started(&launch);
    let task = gateway.submit("a task", Duration::from_secs(12));
    gateway.wait_until_running(&task, SOON);
    rig.broker().freeze();
    let exit = worker.ends_at(Signal::SIGTERM, 3);
    assert!(exit.elapsed < DRAIN + Duration::from_secs(1), "{exit:?}");
    rig.broker().thaw();
    the_task_is_not_lost(&rig, &gateway, &task);
}

#[test]
fn a_stop_finishes_its_task_when_the_broker_thaws_in_time() {
    let rig = rig("p7-back");
    let gateway = rig.start_gateway();
    let mut worker = started(&rig.worker("busy").env("LOG_LEVEL", "debug"));
    let task = gateway.submit("a task", Duration::from_secs(4));
    gateway.wait_until_running(&task, SOON);
    worker.signal(Signal::SIGTERM);
    worker.wait_for_line("⏳", SOON);
    rig.broker().freeze();
    let ended = worker.wait_for_line(&format!("has run task {task}"), SOON).at;
    // A worker that did not wait for its result would be gone within a second.
    eventually(SOON, "a second has passed", || ended.elapsed() > Duration::from_secs(1));
    assert!(worker.is_running(), "the worker did not wait for the acknowledgement of its result");
    rig.broker().thaw();
    let exit = worker.wait(Duration::from_secs(10));
    assert_eq!(exit.code, Some(0));
    assert_eq!(worker.receipt()["tasks_finished"], 1);
    let _other = rig.start_worker("other");
    assert_eq!(gateway.wait_for_result(&task, SOON)["processed_by"], "busy");
    rig.audit().assert_each_ran_once([&task]);
}
