//! A fleet whose connections were idle until the broker closed them (`connections.max.idle.ms`, default ten minutes).

use std::time::{Duration, Instant};

use crate::support::{Rig, started, wire::Wire};

#[test]
fn request_after_an_idle_period_is_answered_at_once() {
    let rig = Rig::with_own_broker("idle", &["--set", "connections.max.idle.ms=1000"]);
    let gateway = rig.start_gateway();
    // Without heartbeats the producer of the worker is idle as well.
    let mut worker = started(&rig.worker("w").env("HEARTBEAT_INTERVAL", "1m"));
    let first = gateway.analyze("before");
    assert_eq!(first.status, 200);
    let mut tasks = vec![first.task_id()];
    for _ in 0..3 {
        // This connection is idle like the fleet's: when the broker closes it, it has closed the fleet's as well.
        let mut idle = Wire::connect(rig.broker().address());
        assert!(idle.receive(0).is_none(), "a response without a request");
        let asked_at = Instant::now();
        let answer = gateway.analyze("after");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(asked_at.elapsed() < Duration::from_secs(3), "{:?}", asked_at.elapsed());
        tasks.push(answer.task_id());
    }
    rig.audit().assert_each_ran_once(&tasks);
    assert!(worker.is_running());
    assert_eq!(gateway.get("/readyz").status, 200);
}
