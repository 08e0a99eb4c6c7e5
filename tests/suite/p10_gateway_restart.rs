//! P10: workers go on while a gateway restarts; the new gateway knows results, pending tasks and the fleet.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Gateway, Rig, SOON, eventually, reserved_port};

const BOUND: Duration = Duration::from_secs(3);

/// A gateway stores no state at its stop, so a kill is the harder case.
#[test]
fn a_gateway_shows_fleet_and_results_within_three_seconds_after_a_kill() {
    let rig = Rig::shared("p10-kill");
    let port = reserved_port();
    let mut gateway = Gateway::start(rig.gateway_at(port.address()));
    let _steady = rig.start_worker("steady");
    let mut stopped = rig.start_worker("stopped");
    let mut killed = rig.start_worker("killed");
    let done = gateway.analyze("before the restart").task_id();
    stopped.ends_at(Signal::SIGTERM, 0);
    killed.kill();
    let killed_at = Instant::now();
    eventually(SOON, "the gateway shows the killed worker as not responsive", || {
        gateway.fleet()["workers"]["killed"]["is_responsive"] == false
    });
    let meanwhile = gateway.submit("comes meanwhile", Duration::from_secs(1));
    let pending = gateway.submit("still runs", Duration::from_secs(8));
    gateway.program.kill();
    // The result comes while there is no gateway.
    eventually(SOON, "a worker finishes the task", || rig.audit().runs(&meanwhile) == 1);
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
    eventually(SOON, "the gateway is ready", || gateway.get("/readyz").status == 200);
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
    assert_eq!(workers["killed"]["is_responsive"], false, "the killed worker became responsive: {fleet}");
    rig.audit().assert_each_ran_once([&done, &meanwhile, &pending]);
}

#[test]
fn every_gateway_serves_every_result() {
    let rig = Rig::shared("p10-both");
    let (first, second) = (rig.start_gateway(), rig.start_gateway());
    let _worker = rig.start_worker("w");
    let task = first.analyze("asked elsewhere").task_id();
    assert_eq!(second.wait_for_result(&task, SOON)["words"], 2);
    let pending = second.submit("slow", Duration::from_secs(2));
    eventually(SOON, "the other gateway knows the task", || first.get(&format!("/tasks/{pending}")).status == 200);
    assert_eq!(first.wait_for_result(&pending, SOON)["words"], 1);
}

#[test]
fn fleet_lists_a_restarted_worker_once_and_a_second_process_with_its_id_separately() {
    let (rig, gateway, mut worker) = Rig::quiet("p10-fleet").fleet("same");
    worker.kill();
    let _again = rig.start_worker("same");
    eventually(SOON, "the fleet lists the worker once", || {
        let fleet = gateway.fleet();
        fleet["total_workers"] == 1 && fleet["workers"].as_object().is_some_and(|workers| workers.len() == 1)
    });
    let _twin = rig.start_worker("same");
    eventually(SOON, "the second process has its own entry", || {
        let fleet = gateway.fleet();
        let twin = |name: &String| name.strip_prefix("same#").is_some_and(|instance| instance.len() == 8);
        fleet["total_workers"] == 2 && fleet["workers"].as_object().is_some_and(|workers| workers.keys().any(twin))
    });
}
