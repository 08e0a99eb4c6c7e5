//! A fleet whose connections were idle for longer than the broker lets them be (`connections.max.idle.ms`, ten minutes unless it is set).

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
        // It is as idle as the fleet's connections; when the broker hangs up on it, it has done so on them.
        let mut idle = Wire::connect(rig.broker().address());
        assert!(idle.receive(0).is_none(), "nothing was asked");
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
