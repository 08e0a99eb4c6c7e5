//! Share sessions that the broker throttles (KIP-219).

use super::*;

/// The worker took a throttled connection for a dead one and sent its requests on a second one, past the quota.
#[test]
fn throttled_worker_opens_no_second_connection() {
    // A worker replaces a connection whose request is unanswered for half a second if it carries accepts, else for a
    // third of the lock.
    for (locks, works) in [(&[][..], true), (&SHORT_LOCKS[..], false)] {
        let rig = Rig::with_faults_and("fault-muted", 1, locks);
        let gateway = rig.start_gateway();
        let worker = started(&rig.worker("w").env("WORKER_CONCURRENCY", 2));
        let lengths = if works { &[2000, 2600][..] } else { &[] };
        let submit = |length: &u64| gateway.submit(&format!("for {length} ms"), Duration::from_millis(*length));
        let mut tasks: Vec<String> = lengths.iter().map(submit).collect();
        gateway.wait_until_busy("w", tasks.len());
        let broker = rig.broker().faulty();
        let throttle = Fault::new(Action::Throttle(Duration::from_secs(3))).at(Kind::ShareFetch);
        let throttled = broker.inject(throttle.of_client("lastcall-worker"));
        eventually(SOON, "a fetch is throttled", || throttled.count() == 1);
        // Meanwhile the worker reads the response, which has no records; no condition shows it from outside.
        std::thread::sleep(Duration::from_millis(200));
        let begun = Instant::now();
        tasks.push(gateway.submit("meanwhile", Duration::from_millis(1)));
        for task in &tasks {
            gateway.wait_for_result(task, SOON);
        }
        let took = begun.elapsed();
        let warnings = worker.lines_with("does not answer");
        assert!(warnings.is_empty(), "after {took:?}: {warnings:?}");
        assert!(took > Duration::from_secs(2), "results {took:?} after the throttled fetch");
        rig.audit().assert_each_ran_once(&tasks);
    }
}

/// The throttle time is longer than a lock: a second connection renews the lock.
#[test]
fn throttled_worker_renews_the_lock_of_its_task_in_time() {
    let rig = Rig::with_faults_and("fault-muted-lock", 1, &SHORT_LOCKS);
    let gateway = rig.start_gateway();
    let workers = ["a", "b"].map(|id| rig.start_worker(id));
    let task = gateway.submit("held meanwhile", Duration::from_secs(8));
    let holder = gateway.wait_until_running(&task, SOON);
    let throttle = Fault::new(Action::Throttle(Duration::from_secs(6))).at(Kind::ShareAcknowledge);
    let throttled = rig.broker().faulty().inject(throttle.of_client(&format!("lastcall-worker-{holder}")));
    eventually(SOON, "a renewal is throttled", || throttled.count() == 1);
    gateway.wait_for_result(&task, SOON);
    rig.audit().assert_each_ran_once([&task]);
    let lost = workers.iter().map(|worker| worker.lines_with("lost the lock").len());
    assert_eq!(lost.sum::<usize>(), 0);
}
