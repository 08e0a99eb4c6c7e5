//! Tasks of a transactional producer: worker and gateway skip markers and aborted records on the topic `tasks`.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Gateway, Rig, SOON, admin, eventually, program::Program, transactions::Transactions};

/// Keys and values of three tasks named `prefix-N`.
fn tasks(prefix: &str) -> Vec<(String, String)> {
    let task = |number| {
        let id = format!("{prefix}-{number}");
        let value = json!({ "task_id": id, "text": "to be or not to be", "timestamp": 1.5 }).to_string();
        (id, value)
    };
    (0..3).map(task).collect()
}

/// Sends three tasks in a transaction and commits or aborts it.
fn transaction(rig: &Rig, producer: &mut Transactions, prefix: &str, committed: bool) {
    let topic = rig.tasks();
    assert_eq!(producer.add(&[(&topic, 0)]), [0]);
    assert_eq!(producer.send(&topic, &tasks(prefix)).0, 0);
    assert_eq!(producer.end(committed), 0);
}

/// Produces aborted and committed tasks and an empty transaction; the last record on the topic is a marker.
fn mix(rig: &Rig, gateway: &Gateway) {
    let mut producer = Transactions::new(rig.broker().address(), &rig.group());
    transaction(rig, &mut producer, "aborted", false);
    transaction(rig, &mut producer, "committed", true);
    assert_eq!((producer.add(&[(&rig.tasks(), 0)]), producer.end(true)), (vec![0], 0));
    assert_eq!(gateway.analyze("after the markers").status, 200);
    transaction(rig, &mut producer, "aborted-last", false);
}

/// Waits until the group has no lag, then stops the worker within a second.
fn assert_at_the_end(rig: &Rig, mut worker: Program) {
    // Three transactions of three tasks, an empty one, a marker for each, and the gateway's own task.
    eventually(SOON, "the last marker is written", || {
        admin::end_offset(rig.broker().address(), &rig.tasks(), 0) == Ok(3 * 3 + 4 + 1)
    });
    eventually(SOON, "the group has no lag", || {
        admin::share_lag(rig.broker().address(), &rig.group(), &rig.tasks()) == Some(0)
    });
    let exit = worker.ends_at(Signal::SIGTERM, 0);
    assert!(exit.elapsed < Duration::from_secs(1), "{exit:?}");
}

#[test]
fn aborted_tasks_run_in_a_read_uncommitted_group() {
    let rig = Rig::quiet("transactions-all");
    admin::set(rig.broker().address(), admin::Of::Group, &rig.group(), "share.isolation.level", "read_uncommitted");
    let gateway = rig.start_gateway();
    let worker = rig.start_worker("all_1");
    mix(&rig, &gateway);
    // With read_uncommitted Kafka delivers aborted records.
    for (id, _) in ["committed", "aborted", "aborted-last"].iter().flat_map(|prefix| tasks(prefix)) {
        gateway.wait_for_result(&id, SOON);
    }
    assert_at_the_end(&rig, worker);
    let audit = rig.audit();
    assert_eq!((audit.ran_again().len(), audit.dead.len()), (0, 0));
}

#[test]
fn worker_and_gateway_skip_markers_and_aborted_tasks() {
    let (rig, gateway, worker) = Rig::quiet("transactions-committed").fleet("committed_1");
    mix(&rig, &gateway);
    for (id, _) in tasks("committed") {
        gateway.wait_for_result(&id, SOON);
    }
    // The gateway would produce a task again that is pending for a minute, and then it would run.
    for (id, _) in ["aborted", "aborted-last"].iter().flat_map(|prefix| tasks(prefix)) {
        assert_eq!(gateway.get(&format!("/tasks/{id}")).status, 404, "{id}");
    }
    assert_at_the_end(&rig, worker);
    let audit = rig.audit();
    let aborted: Vec<_> = audit.results.keys().filter(|id| id.starts_with("aborted")).collect();
    assert_eq!((aborted, audit.ran_again().len(), audit.dead.len()), (vec![], 0, 0));
}
