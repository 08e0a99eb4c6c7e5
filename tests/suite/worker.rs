//! Behaviour of a worker beyond the promises: long tasks, partitions, broker outages, foreign records, a full pipe.

use std::{
    io::Write,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    p03_idle_stop::catches,
    support::{Gateway, Rig, SOON, START, audit, eventually, reserved_port, signal_process},
};

/// The records of `count` short tasks named `prefix-N`.
fn short_tasks(prefix: &str, count: usize) -> Vec<(String, String)> {
    (0..count)
        .map(|number| {
            let id = format!("{prefix}-{number}");
            let value = json!({ "task_id": id, "text": "to be or not to be", "timestamp": 1.5 }).to_string();
            (id, value)
        })
        .collect()
}

fn long_task(id: &str, work: Duration) -> (String, String) {
    let work_ms = u64::try_from(work.as_millis()).expect("a short time");
    let value = json!({ "task_id": id, "text": "long", "timestamp": 1.5, "work_ms": work_ms }).to_string();
    (id.to_owned(), value)
}

fn produce(rig: &Rig, records: &[(String, String)]) {
    let records: Vec<_> = records.iter().map(|(key, value)| (Some(key.as_bytes()), Some(value.as_bytes()))).collect();
    audit::produce(rig.broker().address(), &rig.tasks(), &records);
}

/// Waits until `count` tasks named `prefix-N` have results.
fn wait_for_results(rig: &Rig, prefix: &str, count: usize, limit: Duration) {
    eventually(limit, &format!("{count} results of {prefix}"), || {
        rig.audit().results.keys().filter(|id| id.starts_with(prefix)).count() == count
    });
}

#[test]
fn a_long_task_does_not_delay_thousands_of_short_tasks() {
    let rig = Rig::shared("worker-span");
    let _first = rig.start_worker("span_1");
    let _second = rig.start_worker("span_2");
    produce(&rig, &[long_task("long", Duration::from_secs(60))]);
    // By default Kafka delivers at most 2000 records from the oldest unfinished record on.
    produce(&rig, &short_tasks("short", 2_200));
    wait_for_results(&rig, "short", 2_200, Duration::from_secs(50));
    let audit = rig.audit();
    assert_eq!(audit.runs("long"), 0, "the long task ended before the short ones: the test shows nothing");
    assert!(audit.ran_again().is_empty(), "{:?}", audit.ran_again());
}

/// A free worker serves a partition that the group assigns to a busy worker.
#[test]
fn a_long_task_delays_no_partition_while_another_worker_is_free() {
    let rig = Rig::shared("worker-visits");
    let gateway = Gateway::start(rig.gateway().env("TASKS_PARTITIONS", 2));
    let _workers = ["visits_1", "visits_2"].map(|id| rig.start_worker(id));
    let long = gateway.call("long", Duration::from_secs(6));
    gateway.wait_until_running(&long.task, SOON);
    for number in 0..12 {
        let answer = gateway.analyze(&format!("text {number}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(gateway.get(&format!("/tasks/{}", long.task)).json()["state"], "pending", "the test shows nothing");
    assert_eq!(long.join().0.status, 200);
}

#[test]
fn tasks_fetched_after_a_long_task_run_on_another_worker() {
    let rig = Rig::shared("worker-stuck");
    let _first = rig.start_worker("stuck_1");
    // Short tasks open the window of the only worker, so that it fetches far ahead.
    produce(&rig, &short_tasks("warm", 500));
    wait_for_results(&rig, "warm", 500, SOON * 3);
    let mut batch = vec![long_task("long", Duration::from_secs(15))];
    batch.extend(short_tasks("behind", 50));
    produce(&rig, &batch);
    let _second = rig.start_worker("stuck_2");
    wait_for_results(&rig, "behind", 50, SOON);
    let audit = rig.audit();
    assert_eq!(audit.runs("long"), 0, "the long task ended first: the test shows nothing");
    wait_for_results(&rig, "long", 1, Duration::from_secs(20));
    assert!(rig.audit().ran_again().is_empty());
}

#[test]
fn tasks_that_run_while_the_broker_restarts_run_once() {
    let rig = Rig::with_own_broker("worker-restart", &[]);
    let _workers: Vec<_> = ["r_1", "r_2", "r_3"].map(|id| rig.start_worker(id)).into();
    let _idle = rig.start_worker("r_idle");
    let gateway = rig.start_gateway();
    let tasks: Vec<String> = (0..3).map(|_| gateway.submit("across the restart", Duration::from_secs(12))).collect();
    for task in &tasks {
        gateway.wait_until_running(task, SOON);
    }
    rig.broker().stop();
    rig.broker().start();
    for task in &tasks {
        gateway.wait_for_result(task, Duration::from_secs(30));
    }
    rig.audit().assert_each_ran_once(&tasks);
    let after = gateway.analyze("and the fleet goes on");
    assert_eq!(after.status, 200, "{}", after.text());
}

#[test]
fn a_broker_frozen_for_longer_than_the_lock_costs_no_second_run() {
    let (rig, lock) = Rig::with_short_locks("worker-frozen");
    let _busy = rig.start_worker("frozen_1");
    let gateway = rig.start_gateway();
    let task = gateway.submit("while the broker sleeps", lock + Duration::from_secs(8));
    gateway.wait_until_running(&task, SOON);
    let _idle = rig.start_worker("frozen_2");
    rig.broker().freeze();
    // The freeze must last longer than the lock; no condition shows that.
    std::thread::sleep(lock + Duration::from_secs(2));
    rig.broker().thaw();
    gateway.wait_for_result(&task, Duration::from_secs(30));
    rig.audit().assert_each_ran_once([&task]);
}

#[test]
fn worker_with_a_full_stdout_stops_in_time_at_a_signal_before_its_start() {
    let port = reserved_port();
    // Two different signals, because the kernel merges two equal pending signals.
    let signals = [Signal::SIGTERM, Signal::SIGINT];
    for (signals, limit) in [(&signals[..1], Duration::from_secs(5)), (&signals, Duration::from_millis(1500))] {
        let (_reader, mut writer) = std::io::pipe().expect("a pipe");
        // The capacity of a pipe on Linux.
        writer.write_all(&[b'\n'; 65_536]).expect("the pipe takes all bytes");
        let mut worker = Command::new(env!("CARGO_BIN_EXE_worker"))
            .env("KAFKA_BOOTSTRAP_SERVERS", port.address().to_string())
            .env("WORKER_ID", "mute_1")
            .stdout(writer)
            .spawn()
            .expect("the worker starts");
        eventually(START, "the signal handler is installed", || catches(worker.id(), Signal::SIGTERM));
        let since = Instant::now();
        signals.iter().for_each(|signal| signal_process(worker.id(), *signal));
        let ended = loop {
            if let Some(ended) = worker.try_wait().expect("a child can be waited for") {
                break Some(ended);
            }
            if since.elapsed() > limit {
                break None;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        if ended.is_none() {
            worker.kill().and_then(|()| worker.wait()).expect("the worker ends");
        }
        assert_eq!(ended.and_then(|ended| ended.code()), Some(0), "{signals:?}, {:?}", since.elapsed());
    }
}
