//! P5: a task that still runs at the drain timeout is given back, never marked done, and starts elsewhere.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Rig, SOON, audit, eventually, started};

const DRAIN: Duration = Duration::from_secs(2);

#[test]
fn a_task_that_outlasts_the_drain_timeout_is_given_back() {
    let rig = Rig::quiet("p5");
    let gateway = rig.start_gateway();
    let work = Duration::from_secs(6);
    let mut worker = started(&rig.worker("slow").env("DRAIN_TIMEOUT", "2s"));
    let task = gateway.submit("a long one", work);
    assert_eq!(gateway.wait_until_running(&task, SOON), "slow");
    let other = rig.start_worker("other");
    worker.signal(Signal::SIGTERM);
    let exit = worker.wait(SOON);
    assert_eq!(exit.code, Some(3));
    assert!(exit.elapsed >= DRAIN, "it had its time: {exit:?}");
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
    assert_eq!(audit.result(&task)["processed_by"], "other", "what was abandoned has one result");
    // Its status counts the seconds down for the page.
    let draining = audit.statuses_of("slow").find(|status| status["status"] == "shutdown_started");
    assert!(draining.is_some_and(|status| status["stop_deadline"].is_f64()), "{draining:?}");
    drop(other);
}

#[test]
fn only_what_outlasts_the_drain_timeout_is_given_back() {
    let rig = Rig::quiet("p5-mixed");
    let gateway = rig.start_gateway();
    let launch = rig.worker("mixed").env("DRAIN_TIMEOUT", "6s").env("WORKER_CONCURRENCY", 2);
    let mut worker = started(&launch.env("HEARTBEAT_INTERVAL", "200ms"));
    let long = gateway.submit("long", Duration::from_secs(12));
    let short = gateway.submit("short", Duration::from_secs(4));
    eventually(SOON, "both run", || {
        gateway.fleet()["workers"]["mixed"]["current_tasks"].as_array().is_some_and(|tasks| tasks.len() == 2)
    });
    worker.signal(Signal::SIGTERM);
    let exit = worker.wait(SOON);
    assert_eq!(exit.code, Some(3));
    assert!(exit.elapsed < Duration::from_secs(7), "{exit:?}");
    let receipt = worker.receipt();
    assert_eq!((&receipt["tasks_finished"], &receipt["tasks_abandoned"]), (&json!(1), &json!([long])));
    assert_eq!(gateway.wait_for_result(&short, SOON)["processed_by"], "mixed");
    let _other = rig.start_worker("other");
    assert_eq!(gateway.wait_for_result(&long, Duration::from_secs(30))["processed_by"], "other");
    rig.audit().assert_each_ran_once([&short, &long]);
}

#[test]
fn a_handler_that_heeds_nothing_does_not_hold_up_the_exit() {
    let rig = Rig::shared("p5-deaf");
    let gateway = rig.start_gateway();
    // Its handler sleeps without asking whether it shall stop.
    let mut worker = started(&rig.obedient_worker("deaf").env("DRAIN_TIMEOUT", "2s"));
    let task = gateway.submit("sleep 30000", Duration::ZERO);
    worker.wait_for_line(&format!("handler started {task}"), SOON);
    worker.signal(Signal::SIGTERM);
    let exit = worker.wait(SOON);
    assert_eq!(exit.code, Some(3));
    assert!(exit.elapsed < DRAIN + Duration::from_secs(1), "{exit:?}");
    assert_eq!(worker.receipt()["tasks_abandoned"], json!([task]));
    // Given back, not left to the lock: it starts elsewhere at once.
    let other = started(&rig.obedient_worker("other"));
    let again = other.wait_for_line(&format!("handler started {task}"), SOON);
    let ready = other.lines_with("worker_started notification")[0].at;
    assert!(again.at.saturating_duration_since(ready.max(exit.at)) < Duration::from_secs(2));
    assert_eq!(gateway.get(&format!("/tasks/{task}")).json().get("success"), None::<&Value>);
}

/// A drill of an hour gave long tasks up because deploy after deploy had stopped their workers.
#[test]
fn a_task_that_outlasts_stop_after_stop_is_not_given_up() {
    let rig = Rig::shared("p5-deploys");
    let gateway = rig.start_gateway();
    let launch = |id: &str| rig.worker(id).env("MAX_DELIVERIES", 2);
    let task = gateway.submit("a long one", Duration::from_secs(5));
    for number in 0..4 {
        let id = format!("w{number}");
        let mut worker = started(&launch(&id));
        eventually(SOON, "it has the task", || gateway.fleet()["workers"][&id]["current_task"] == *task);
        worker.signal(Signal::SIGTERM);
        worker.wait_for_line("received SIGTERM", SOON);
        worker.signal(Signal::SIGTERM);
        assert_eq!(worker.wait(SOON).code, Some(4));
    }
    let _last = started(&launch("last"));
    let result = gateway.wait_for_result(&task, Duration::from_secs(20));
    assert_eq!((&result["success"], &result["processed_by"]), (&json!(true), &json!("last")), "{result}");
    assert_eq!(rig.audit().dead.len(), 0);
}

/// Any program may write tasks, with any key or none: the id in the value counts, in the receipt and against its starts.
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
        worker.signal(Signal::SIGTERM);
        let exit = worker.wait(SOON);
        assert_eq!((exit.code, &worker.receipt()["tasks_abandoned"]), (Some(3), &json!([id])));
        eventually(SOON, "the stop is noted under its id", || {
            let starts = audit::read(rig.broker().address(), &format!("{}.starts", rig.tasks()));
            starts.iter().any(|it| it.key() == id && it.json()["type"] == "task_stopped")
        });
    }
}
