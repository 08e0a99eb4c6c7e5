//! P1: stops, restarts and kills of workers, gateways and brokers lose no accepted task.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{
    Gateway, Rig, SOON,
    broker::Broker,
    eventually,
    load::{Load, Plan, Shot, task_ids},
    program::Program,
    reserved_port,
};

/// Asserts that each response was 200, 503 or 504, that no result was wrong, and that each task named by a 200 or 504
/// and each task on the topic has a result.
fn assert_nothing_lost(rig: &Rig, gateway: &Gateway, shots: &[Shot]) {
    for shot in shots {
        assert!(shot.fault.is_none(), "{shot:?}");
        assert!(matches!(shot.outcome, Ok(200 | 503 | 504) | Err(_)), "{shot:?}");
        assert!(shot.outcome != Ok(504) || shot.task_id.is_some(), "a 504 names its task: {shot:?}");
    }
    for (shot, id) in shots.iter().filter_map(|shot| Some((shot, shot.task_id.as_ref()?))) {
        // After a 503 with an id the outcome is unknown: Kafka need not have the task.
        if shot.outcome != Ok(503) {
            gateway.wait_for_result(id, Duration::from_secs(30));
        }
    }
    eventually(Duration::from_secs(30), "every task on the topic has a result", || rig.audit().lost().is_empty());
    let audit = rig.audit();
    let answered = shots.iter().filter(|shot| shot.outcome == Ok(200));
    let unknown: Vec<_> =
        answered.filter(|shot| audit.runs(shot.task_id.as_deref().unwrap_or_default()) == 0).collect();
    assert!(unknown.is_empty(), "answered, but not on the topic: {unknown:?}");
}

#[test]
fn nothing_is_lost_when_the_broker_restarts_or_is_killed_under_load() {
    let rig = Rig::with_own_broker("p1-broker", &["--set", "broker.session.timeout.ms=2000"]);
    let gateway = rig.start_gateway();
    let _workers = ["a", "b", "c"].map(|id| rig.start_worker(id));
    let load = gateway.load(40, 20);
    load.wait_for(80, SOON);
    for (end, seconds) in [(Broker::stop as fn(&Broker), 20), (Broker::kill, 30)] {
        end(rig.broker());
        rig.broker().start();
        load.wait_for(80, Duration::from_secs(seconds));
    }
    assert_nothing_lost(&rig, &gateway, &load.finish());
    eventually(SOON, "all three workers are active", || gateway.fleet()["active_workers"] == 3);
}

#[test]
fn nothing_is_lost_when_workers_are_killed_under_load() {
    let rig = Rig::shared("p1-workers");
    let gateway = rig.start_gateway();
    let mut workers: Vec<Program> = ["a", "b", "c"].iter().map(|id| rig.start_worker(id)).collect();
    let load = gateway.load(50, 20);
    load.wait_for(50, SOON);
    for round in 0..6 {
        let index = round % workers.len();
        workers[index].kill();
        load.wait_for(20, SOON);
        workers[index] = rig.start_worker(&format!("again-{round}"));
    }
    let shots = load.finish();
    assert_nothing_lost(&rig, &gateway, &shots);
    crate::support::load::assert_all_answered(&shots);
}

#[test]
fn nothing_is_lost_when_a_gateway_is_killed_under_load() {
    let rig = Rig::shared("p1-gateways");
    let (port, other) = (reserved_port(), rig.start_gateway());
    let mut gateway = Gateway::start(rig.gateway_at(port.address()));
    let _worker = rig.start_worker("a");
    let addresses = [&gateway, &other].map(|gateway| gateway.address.clone()).into();
    let load = Load::start(Plan { addresses, per_second: 50, work_ms: 20 });
    load.wait_for(50, SOON);
    gateway.program.kill();
    gateway = Gateway::start(rig.gateway_at(port.address()));
    let back = Instant::now();
    // On a busy machine one worker runs ten tasks per second.
    load.wait_for(100, SOON * 3);
    let shots = load.finish();
    let broken = shots.iter().filter(|shot| shot.outcome.is_err());
    for shot in broken {
        assert!(shot.due < back + Duration::from_secs(5), "a request failed after the restart: {shot:?}");
    }
    // A caller of the killed gateway got no task id; the tasks on the topic must have results all the same.
    assert_nothing_lost(&rig, &other, &shots);
    let audit = rig.audit();
    assert!(audit.tasks.len() >= task_ids(&shots).len());
    assert_eq!(audit.ran_again().len(), 0, "the kill of a gateway ran tasks again: {:?}", audit.ran_again());
    gateway.program.ends_at(Signal::SIGTERM, 0);
}
