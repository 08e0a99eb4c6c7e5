//! P2: a graceful stop, restart or scaling never runs a task twice.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{
    Rig, SOON,
    load::{assert_all_answered, task_ids},
    program::Program,
};

fn stop(worker: &mut Program, signal: Signal) {
    let exit = worker.ends_at(signal, 0);
    // 20 ms for the running task, 100 ms for the fetched tasks that the worker may finish, and the second of P4.
    assert!(exit.elapsed < Duration::from_millis(1_120), "{exit:?}");
}

#[test]
fn a_rolling_restart_of_three_workers_under_load_runs_each_task_once() {
    let rig = Rig::shared("p2-rolling");
    let gateway = rig.start_gateway();
    let mut workers: Vec<Program> = (0..3).map(|number| rig.start_worker(&format!("worker_{number}"))).collect();
    let load = gateway.load(50, 20);
    load.wait_for(100, SOON);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        for (index, worker) in workers.iter_mut().enumerate() {
            stop(worker, signal);
            *worker = rig.start_worker(&format!("worker_{index}"));
            load.wait_for(25, SOON);
        }
    }
    let shots = load.finish();
    assert_all_answered(&shots);
    let audit = rig.audit();
    audit.assert_each_ran_once(&task_ids(&shots));
    assert_eq!(audit.tasks.len(), shots.len(), "tasks on the topic differ from responses");
    assert!(audit.dead.is_empty());
}

#[test]
fn scaling_down_and_up_under_load_runs_each_task_once() {
    let rig = Rig::shared("p2-scaling");
    let gateway = rig.start_gateway();
    let mut workers: Vec<Program> = (0..3).map(|number| rig.start_worker(&format!("worker_{number}"))).collect();
    // A load that one worker can take on a busy machine.
    let load = gateway.load(25, 10);
    load.wait_for(60, SOON);
    for round in 0..3 {
        for mut worker in workers.split_off(1) {
            stop(&mut worker, Signal::SIGTERM);
        }
        load.wait_for(30, SOON);
        let more = (0..2).map(|number| rig.start_worker(&format!("more_{round}_{number}")));
        workers.extend(more);
        load.wait_for(30, SOON);
    }
    let shots = load.finish();
    assert_all_answered(&shots);
    rig.audit().assert_each_ran_once(&task_ids(&shots));
}

#[test]
fn the_whole_fleet_restarted_at_once_runs_each_task_once() {
    let rig = Rig::shared("p2-fleet");
    let gateway = rig.start_gateway();
    let mut workers: Vec<Program> = (0..3).map(|number| rig.start_worker(&format!("worker_{number}"))).collect();
    let load = gateway.load(50, 20);
    for round in 0..3 {
        load.wait_for(50, SOON);
        for worker in &mut workers {
            worker.signal(Signal::SIGTERM);
        }
        for worker in &mut workers {
            assert_eq!(worker.wait(SOON).code, Some(0));
        }
        workers = (0..3).map(|number| rig.start_worker(&format!("worker_{round}_{number}"))).collect();
    }
    load.wait_for(50, SOON);
    let shots = load.finish();
    assert_all_answered(&shots);
    rig.audit().assert_each_ran_once(&task_ids(&shots));
}

#[test]
fn a_stop_with_a_backlog_of_short_tasks_releases_unstarted_tasks() {
    let rig = Rig::shared("p2-backlog");
    let gateway = rig.start_gateway();
    // Without work_ms a worker runs thousands per second, so it holds many when the signal comes.
    let body = serde_json::json!({ "text": "one of very many" }).to_string();
    let headers = [("Content-Type", "application/json"), ("Prefer", "respond-async")];
    let mut http = gateway.connect();
    let tasks: Vec<String> = (0..2_000)
        .map(|_| http.request("POST", "/analyze", &headers, body.as_bytes()).expect("a response").task_id())
        .collect();
    let mut first = rig.start_worker("first");
    stop(&mut first, Signal::SIGTERM);
    let mut second = rig.start_worker("second");
    for task in &tasks {
        gateway.wait_for_result(task, Duration::from_secs(30));
    }
    stop(&mut second, Signal::SIGTERM);
    rig.audit().assert_each_ran_once(&tasks);
}
