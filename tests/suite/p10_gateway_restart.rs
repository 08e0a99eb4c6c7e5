//! P10: a gateway is restarted or killed: workers go on, and the next one knows results, pending tasks and the fleet.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Gateway, Rig, SOON, eventually, reserved_port};

const BOUND: Duration = Duration::from_secs(3);

/// `kill -9` or SIGTERM; what comes after is the same.
fn after_the_restart(name: &str, signal: Signal) {
    let rig = Rig::shared(name);
    let port = reserved_port();
    let mut gateway = Gateway::start(rig.gateway_at(port.address()));
    let _steady = rig.start_worker("steady");
    let mut stopped = rig.start_worker("stopped");
    let mut killed = rig.start_worker("killed");
    let done = gateway.analyze("before the restart").task_id();
    stopped.signal(Signal::SIGTERM);
    assert_eq!(stopped.wait(SOON).code, Some(0));
    killed.kill();
    let killed_at = Instant::now();
    eventually(SOON, "the killed worker is seen to be silent", || {
        gateway.fleet()["workers"]["killed"]["is_responsive"] == false
    });
    let meanwhile = gateway.submit("comes meanwhile", Duration::from_secs(1));
    let pending = gateway.submit("still runs", Duration::from_secs(8));
    gateway.program.signal(signal);
    gateway.program.wait(SOON);
    // The result comes while there is no gateway.
    eventually(SOON, "a worker finishes it", || rig.audit().runs(&meanwhile) == 1);
    assert!(killed_at.elapsed() < Duration::from_secs(60));

    let restarted = Instant::now();
    gateway = Gateway::launch(rig.gateway_at(port.address()));
    eventually(BOUND.saturating_sub(restarted.elapsed()), "the fleet is right", || {
        let Some(answer) = gateway.try_get("/workers/status").filter(|answer| answer.status == 200) else {
            return false;
        };
        let fleet = answer.json();
        fleet["total_workers"] == 1
            && fleet["active_workers"] == 1
            && fleet["shutting_down_workers"] == 0
            && fleet["workers"]["steady"]["is_responsive"] == true
    });
    eventually(SOON, "it is ready", || gateway.get("/readyz").status == 200);
    assert_eq!(gateway.wait_for_result(&done, SOON)["words"], 3);
    assert_eq!(gateway.wait_for_result(&meanwhile, SOON)["words"], 2);
    let answer = gateway.get(&format!("/tasks/{pending}"));
    assert_eq!((answer.status, answer.json()), (200, json!({ "task_id": pending, "state": "pending" })));
    assert_eq!(gateway.wait_for_result(&pending, SOON)["words"], 2);
    let unknown = gateway.get("/tasks/00000000-0000-7000-8000-000000000000");
    unknown.assert_problem(404);
    let fleet = gateway.fleet();
    let workers = &fleet["workers"];
    assert_eq!(workers["stopped"]["status"], "shutdown_completed", "{fleet}");
    assert_eq!(workers["stopped"]["is_responsive"], false);
    assert_eq!(workers["killed"]["is_responsive"], false, "a dead worker does not come to life: {fleet}");
    rig.audit().assert_each_ran_once([&done, &meanwhile, &pending]);
}

#[test]
fn a_gateway_that_was_killed_is_whole_again_within_three_seconds() {
    after_the_restart("p10-kill", Signal::SIGKILL);
}

#[test]
fn a_gateway_that_was_restarted_is_whole_again_within_three_seconds() {
    after_the_restart("p10-term", Signal::SIGTERM);
}

#[test]
fn every_gateway_serves_every_result() {
    let rig = Rig::shared("p10-both");
    let (first, second) = (rig.start_gateway(), rig.start_gateway());
    let _worker = rig.start_worker("w");
    let task = first.analyze("asked elsewhere").task_id();
    assert_eq!(second.wait_for_result(&task, SOON)["words"], 2);
    let pending = second.submit("slow", Duration::from_secs(2));
    eventually(SOON, "the other one knows the task", || first.get(&format!("/tasks/{pending}")).status == 200);
    assert_eq!(first.wait_for_result(&pending, SOON)["words"], 1);
}

#[test]
fn the_fleet_tells_a_restarted_worker_from_its_former_self_and_from_a_twin() {
    let rig = Rig::quiet("p10-fleet");
    let gateway = rig.start_gateway();
    let mut worker = rig.start_worker("same");
    worker.kill();
    let _again = rig.start_worker("same");
    eventually(SOON, "one worker of this name", || {
        let fleet = gateway.fleet();
        fleet["total_workers"] == 1 && fleet["workers"].as_object().is_some_and(|workers| workers.len() == 1)
    });
    let _twin = rig.start_worker("same");
    eventually(SOON, "the twin is listed under a name of its own", || {
        let fleet = gateway.fleet();
        let twin = |name: &String| name.strip_prefix("same#").is_some_and(|instance| instance.len() == 8);
        fleet["total_workers"] == 2 && fleet["workers"].as_object().is_some_and(|workers| workers.keys().any(twin))
    });
}
