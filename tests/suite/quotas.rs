//! P12, quotas: throttled programs are slower, and nothing else. No task runs twice, no broker counts as silent, and
//! every stop keeps its bound. On a real Kafka these are its own quotas.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{
    Gateway, Rig, SOON,
    broker::Quota,
    eventually,
    load::{Load, task_ids},
    program::Program,
};

/// A record in a throttled response is locked without being sent; it comes again when its lock has ended.
const LATE: Duration = Duration::from_secs(40);

fn assert_stops(program: &mut Program) {
    let exit = program.ends_at(Signal::SIGTERM, 0);
    assert!(exit.elapsed < Duration::from_secs(1), "{exit:?}");
}

/// Sets a quota while callers send 20 tasks per second, more than it permits. Stops all programs while they are
/// throttled; then another worker runs the other tasks without the quota.
fn tasks_run_once_and_stops_are_in_time(name: &str, quota: Quota, limit: f64) {
    let rig = Rig::quiet_with_own_broker(name, &[]);
    let mut gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "3s"));
    let mut workers = ["a", "b"].map(|id| rig.start_worker(id));
    let load: Load = gateway.load(20, 5);
    load.wait_for(20, SOON);
    rig.broker().set_quota(quota, Some(limit));
    let is_throttled = |program: &Program| !program.lines_with("throttles this client").is_empty();
    eventually(SOON, "a program is throttled", || is_throttled(&gateway.program) || workers.iter().any(is_throttled));
    // The callers exceed the quota further; no condition shows by how much.
    std::thread::sleep(Duration::from_secs(2));
    assert_stops(&mut workers[0]);
    let shots = load.finish();
    assert_stops(&mut workers[1]);
    assert_stops(&mut gateway.program);
    rig.broker().set_quota(quota, None);
    let refused = shots.iter().filter(|shot| !matches!(shot.outcome, Ok(200 | 503 | 504)) || shot.fault.is_some());
    assert_eq!(refused.count(), 0, "{shots:?}");
    let _heir = rig.start_worker("heir");
    eventually(LATE, "every task has a result", || rig.audit().lost().is_empty());
    let accepted = shots.iter().filter(|shot| shot.outcome != Ok(503)).cloned().collect::<Vec<_>>();
    rig.audit().assert_each_ran_once(&task_ids(&accepted));
    for program in workers.iter().chain([&gateway.program]) {
        for words in ["does not answer", "could not", "has not ended", "may run again"] {
            assert_eq!(program.lines_with(words).len(), 0, "{}: {words}", program.name());
        }
    }
}

#[test]
fn quota_of_produced_bytes_runs_no_task_twice() {
    tasks_run_once_and_stops_are_in_time("quota-produced", Quota::Produced, 1000.0);
}

#[test]
fn quota_of_consumed_bytes_runs_no_task_twice() {
    tasks_run_once_and_stops_are_in_time("quota-consumed", Quota::Consumed, 2000.0);
}

#[test]
fn quota_of_processor_time_runs_no_task_twice() {
    tasks_run_once_and_stops_are_in_time("quota-processed", Quota::Processed, 0.5);
}
