//! P6: at a second signal a worker abandons the tasks in flight and exits at once.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Rig, SOON, eventually};

const BOUND: Duration = Duration::from_secs(1);

#[test]
fn a_second_signal_stops_a_busy_worker_at_once() {
    let (rig, gateway, mut worker) = Rig::quiet("p6").fleet("forced");
    let task = gateway.submit("a long one", Duration::from_secs(60));
    gateway.wait_until_running(&task, SOON);
    let _other = rig.start_worker("other");
    worker.signal(Signal::SIGTERM);
    worker.wait_for_line("⏳ Worker forced waiting for current task", SOON);
    assert!(worker.is_running(), "the first signal ended the worker");
    let exit = worker.ends_at(Signal::SIGINT, 4);
    assert!(exit.elapsed < BOUND, "{exit:?}");
    let receipt = worker.receipt();
    assert_eq!((&receipt["outcome"], &receipt["exit_code"]), (&json!("forced"), &json!(4)));
    assert_eq!(receipt["tasks_abandoned"], json!([task]));
    assert_eq!(receipt["signal"], "SIGTERM", "the receipt names the first signal");
    assert_eq!(rig.audit().receipt_of("forced"), &receipt);
    // Two seconds until the task starts, one until the next heartbeat, and one until the gateway has read it.
    let other = || gateway.fleet()["workers"]["other"]["current_task"] == *task;
    eventually(Duration::from_secs(4), "the task runs elsewhere", other);
    assert_eq!(rig.audit().runs(&task), 0);
}

#[test]
fn a_second_signal_to_an_idle_worker_changes_nothing() {
    let rig = Rig::quiet("p6-idle");
    for round in 0..5 {
        let id = format!("idle-{round}");
        let mut worker = rig.start_worker(&id);
        worker.signal(Signal::SIGTERM);
        // Two different signals, because the kernel merges two equal pending signals.
        let exit = worker.ends_at(Signal::SIGINT, 0);
        assert!(exit.elapsed < BOUND, "{exit:?}");
        assert_eq!(worker.receipt()["exit_code"], 0);
    }
}

#[test]
fn a_second_signal_stops_a_worker_within_a_second_while_kafka_is_frozen() {
    for busy in [false, true] {
        let (rig, gateway, mut worker) = Rig::quiet_with_own_broker("p6-frozen", &[]).fleet("frozen");
        if busy {
            let task = gateway.submit("a long one", Duration::from_secs(60));
            gateway.wait_until_running(&task, SOON);
        }
        rig.broker().freeze();
        worker.signal(Signal::SIGTERM);
        // The first step waits a second for the frozen broker.
        worker.wait_for_line("🛑 Worker frozen received SIGTERM", SOON);
        worker.signal(Signal::SIGINT);
        let exit = worker.wait(SOON);
        rig.broker().thaw();
        assert_eq!(exit.code, Some(if busy { 4 } else { 0 }));
        assert!(exit.elapsed < BOUND, "busy {busy}: {exit:?}");
    }
}
