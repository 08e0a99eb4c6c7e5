//! P5: a worker releases a task that still runs at the drain timeout, without accepting it; the task starts elsewhere.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Rig, SOON, audit, eventually, started};

const DRAIN: Duration = Duration::from_secs(2);

#[test]
fn a_task_that_outlasts_the_drain_timeout_is_released_and_runs_elsewhere() {
    let rig = Rig::quiet("p5");
    let gateway = rig.start_gateway();
    let work = Duration::from_secs(6);
    let mut worker = started(&rig.worker("slow").env("DRAIN_TIMEOUT", "2s"));
    let task = gateway.submit("a long one", work);
    assert_eq!(gateway.wait_until_running(&task, SOON), "slow");
    let other = rig.start_worker("other");
    let exit = worker.ends_at(Signal::SIGTERM, 3);
    assert!(exit.elapsed >= DRAIN, "the worker exited before the drain timeout: {exit:?}");
    assert!(exit.elapsed < DRAIN + Duration::from_secs(1), "{exit:?}");

    let result = gateway.wait_for_result(&task, Duration::from_secs(20));
    let restarted_after = (exit.at.elapsed()).saturating_sub(work);
    assert!(restarted_after < Duration::from_secs(2), "restarted {restarted_after:?} after the exit");
    assert_eq!((&result["success"], &result["processed_by"]), (&json!(true), &json!("other")));

    let receipt = worker.receipt();
    assert_eq!((&receipt["outcome"], &receipt["exit_code"]), (&json!("abandoned"), &json!(3)));
    assert_eq!(receipt["tasks_abandoned"], json!([task]));
    assert_eq!(receipt["tasks_finished"], 0);
    let farewell = worker.wait_for_line("👋 Worker slow", SOON);
    assert!(!farewell.text.contains("gracefully"), "{}", farewell.text);
    let audit = rig.audit();
    assert_eq!(audit.receipt_of("slow"), &receipt);
    assert_eq!(audit.result(&task)["processed_by"], "other", "the abandoned task has a result of another worker");
    // The page counts down to stop_deadline.
    let draining = audit.statuses_of("slow").find(|status| status["status"] == "shutdown_started");
    assert!(draining.is_some_and(|status| status["stop_deadline"].is_f64()), "{draining:?}");
    drop(other);
}

#[test]
fn drain_timeout_releases_only_unfinished_tasks() {
    let rig = Rig::quiet("p5-mixed");
    let gateway = rig.start_gateway();
    let launch = rig.worker("mixed").env("DRAIN_TIMEOUT", "6s").env("WORKER_CONCURRENCY", 2);
    let mut worker = started(&launch.env("HEARTBEAT_INTERVAL", "200ms"));
    let long = gateway.submit("long", Duration::from_secs(12));
    let short = gateway.submit("short", Duration::from_secs(4));
    gateway.wait_until_busy("mixed", 2);
    let exit = worker.ends_at(Signal::SIGTERM, 3);
    assert!(exit.elapsed < Duration::from_secs(7), "{exit:?}");
    let receipt = worker.receipt();
    assert_eq!((&receipt["tasks_finished"], &receipt["tasks_abandoned"]), (&json!(1), &json!([long])));
    assert_eq!(gateway.wait_for_result(&short, SOON)["processed_by"], "mixed");
    let _other = rig.start_worker("other");
    assert_eq!(gateway.wait_for_result(&long, Duration::from_secs(30))["processed_by"], "other");
    rig.audit().assert_each_ran_once([&short, &long]);
}

#[test]
fn a_handler_that_ignores_its_abandonment_does_not_delay_the_exit() {
    let rig = Rig::shared("p5-deaf");
    let gateway = rig.start_gateway();
    let mut worker = started(&rig.obedient_worker("deaf").env("DRAIN_TIMEOUT", "2s"));
    let task = gateway.submit("sleep 30000", Duration::ZERO);
    worker.wait_for_line(&format!("handler started {task}"), SOON);
    let exit = worker.ends_at(Signal::SIGTERM, 3);
    assert!(exit.elapsed < DRAIN + Duration::from_secs(1), "{exit:?}");
    assert_eq!(worker.receipt()["tasks_abandoned"], json!([task]));
    // The worker has released the task: it starts elsewhere before its lock ends.
    let other = started(&rig.obedient_worker("other"));
    let again = other.wait_for_line(&format!("handler started {task}"), SOON);
    let ready = other.lines_with("worker_started notification")[0].at;
    assert!(again.at.saturating_duration_since(ready.max(exit.at)) < Duration::from_secs(2));
    assert_eq!(gateway.get(&format!("/tasks/{task}")).json().get("success"), None::<&Value>);
}

/// In a drill of an hour, long tasks were dead-lettered because each deploy had stopped their workers.
#[test]
fn a_task_that_several_stops_interrupt_is_not_dead_lettered() {
    let rig = Rig::shared("p5-deploys");
    let gateway = rig.start_gateway();
    let launch = |id: &str| rig.worker(id).env("MAX_DELIVERIES", 2);
    let task = gateway.submit("a long one", Duration::from_secs(5));
    for number in 0..4 {
        let id = format!("w{number}");
        let mut worker = started(&launch(&id));
        eventually(SOON, &format!("{id} runs the task"), || gateway.fleet()["workers"][&id]["current_task"] == *task);
        worker.signal(Signal::SIGTERM);
        worker.wait_for_line("received SIGTERM", SOON);
        worker.ends_at(Signal::SIGTERM, 4);
    }
    let _last = started(&launch("last"));
    let result = gateway.wait_for_result(&task, Duration::from_secs(20));
    assert_eq!((&result["success"], &result["processed_by"]), (&json!(true), &json!("last")), "{result}");
    assert_eq!(rig.audit().dead.len(), 0);
}

/// Other programs may write tasks with any key or none: receipt and start records use the id in the value.
#[test]
fn a_task_with_a_foreign_key_or_none_is_named_by_its_id() {
    for (key, id) in [(None, "without-a-key"), (Some(&b"customer 7"[..]), "under-another-key")] {
        let rig = Rig::shared("p5-key");
        let mut first = started(&rig.obedient_worker("first"));
        let value = json!({ "task_id": id, "text": "sleep 30000", "timestamp": 0 }).to_string();
        audit::produce(rig.broker().address(), &rig.tasks(), &[(key, Some(value.as_bytes()))]);
        first.wait_for_line(&format!("handler started {id}"), SOON);
        first.kill();
        let mut worker = started(&rig.obedient_worker("plain").env("DRAIN_TIMEOUT", "1s"));
        worker.wait_for_line(&format!("handler started {id} delivery 2"), SOON);
        worker.ends_at(Signal::SIGTERM, 3);
        assert_eq!(worker.receipt()["tasks_abandoned"], json!([id]));
        eventually(SOON, "the task's id has a task_stopped record", || {
            let starts = audit::read(rig.broker().address(), &format!("{}.starts", rig.tasks()));
            starts.iter().any(|it| it.key() == id && it.json()["type"] == "task_stopped")
        });
    }
}
