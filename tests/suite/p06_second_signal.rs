//! P6: a second signal abandons what is in flight and leaves at once.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Rig, SOON, eventually};

const BOUND: Duration = Duration::from_secs(1);

fn forced(name: &str, first: Signal, second: Signal) {
    let rig = Rig::quiet(name);
    let gateway = rig.start_gateway();
    let mut worker = rig.start_worker("forced");
    let task = gateway.submit("a long one", Duration::from_secs(60));
    gateway.wait_until_running(&task, SOON);
    let _other = rig.start_worker("other");
    let name = worker.signal(first);
    worker.wait_for_line("⏳ Worker forced waiting for current task", SOON);
    assert!(name.elapsed() < SOON && worker.is_running(), "one signal is no reason to abandon a task");
    worker.signal(second);
    let exit = worker.wait(SOON);
    assert_eq!(exit.code, Some(4));
    assert!(exit.elapsed < BOUND, "{exit:?}");
    let receipt = worker.receipt();
    assert_eq!((&receipt["outcome"], &receipt["exit_code"]), (&json!("forced"), &json!(4)));
    assert_eq!(receipt["tasks_abandoned"], json!([task]));
    assert_eq!(receipt["signal"], first.as_str(), "the first signal is the reason");
    assert_eq!(rig.audit().receipt_of("forced"), &receipt);
    // Two seconds to be started, one until its next heartbeat tells, and one until the gateway has heard it.
    let other = || gateway.fleet()["workers"]["other"]["current_task"] == *task;
    eventually(Duration::from_secs(4), "it runs elsewhere", other);
    assert_eq!(rig.audit().runs(&task), 0);
}

#[test]
fn a_second_sigterm_abandons_and_leaves() {
    forced("p6-term", Signal::SIGTERM, Signal::SIGTERM);
}

#[test]
fn a_sigint_after_a_sigterm_abandons_and_leaves() {
    forced("p6-mixed", Signal::SIGTERM, Signal::SIGINT);
}

#[test]
fn a_second_signal_to_an_idle_worker_changes_nothing() {
    let rig = Rig::quiet("p6-idle");
    for round in 0..5 {
        let id = format!("idle-{round}");
        let mut worker = rig.start_worker(&id);
        worker.signal(Signal::SIGTERM);
        // Two different ones: two equal signals at once merge in the kernel.
        worker.signal(Signal::SIGINT);
        let exit = worker.wait(SOON);
        assert_eq!(exit.code, Some(0));
        assert!(exit.elapsed < BOUND, "{exit:?}");
        assert_eq!(worker.receipt()["exit_code"], 0);
    }
}

/// Every step of a stop hears the second signal, also one that waits for a broker that does not answer.
#[test]
fn a_second_signal_is_heard_in_every_step_though_kafka_is_frozen() {
    for busy in [false, true] {
        let rig = Rig::quiet_with_own_broker("p6-frozen");
        let gateway = rig.start_gateway();
        let mut worker = rig.start_worker("frozen");
        if busy {
            let task = gateway.submit("a long one", Duration::from_secs(60));
            gateway.wait_until_running(&task, SOON);
        }
        rig.broker().freeze();
        let first = worker.signal(Signal::SIGTERM);
        // In the midst of the first step, which waits for a second.
        eventually(SOON, "the stop has begun", || first.elapsed() > Duration::from_millis(150));
        worker.signal(Signal::SIGINT);
        let exit = worker.wait(SOON);
        rig.broker().thaw();
        assert_eq!(exit.code, Some(if busy { 4 } else { 0 }));
        assert!(exit.elapsed < BOUND, "busy {busy}: {exit:?}");
    }
}
