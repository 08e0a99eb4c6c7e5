//! The stand-in for the worker (`tests/handlers/faulty`): without a fault it keeps the promises, and each fault shows from outside.
//!
//! Whoever judges workers is tried on it; what is judged there must be there, and nothing else.

use std::{collections::BTreeSet, time::Duration};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    Rig, SOON, START,
    audit::{self, Audit},
    eventually, load,
    program::{Exit, Launch, Program},
    started,
};

/// One that strikes the third task, and says what it does.
fn faulty(rig: &Rig, id: &str, fault: &str) -> Launch {
    rig.faulty_worker(id, fault).env("FAULT_EVERY", 3).env("LOG_LEVEL", "debug")
}

/// Puts a task on the topic that takes so long.
fn put(rig: &Rig, id: &str, text: &str, work_ms: u64) {
    let value = json!({ "task_id": id, "text": text, "timestamp": 1.5, "work_ms": work_ms }).to_string();
    audit::produce(rig.broker().address(), &rig.tasks(), &[(Some(id.as_bytes()), Some(value.as_bytes()))]);
}

fn wait_until_started(worker: &Program, task: &str, delivery: u16) -> std::time::Instant {
    worker.wait_for_line(&format!("starts task {task} at its delivery {delivery}"), SOON).at
}

fn wait_for_results(rig: &Rig, task: &str, count: usize) {
    eventually(2 * SOON, &format!("{count} results of {task}"), || rig.audit().runs(task) == count);
}

fn stop(worker: &mut Program) -> Exit {
    worker.signal(Signal::SIGTERM);
    worker.wait(SOON)
}

/// What is on the topics once one with this fault has had three tasks, and stopped as if nothing were wrong.
fn after_three_tasks(rig: &Rig, fault: &str) -> Audit {
    let mut worker = started(&faulty(rig, "one", fault));
    for (id, text) in [("t1", "one"), ("t2", "and two"), ("t3", "and now three")] {
        put(rig, id, text, 0);
        worker.wait_for_line(&format!("said Accept of task {id}"), SOON);
    }
    assert_eq!(stop(&mut worker).code, Some(0));
    let receipt = worker.receipt();
    assert_eq!((&receipt["outcome"], &receipt["exit_code"]), (&json!("drained"), &json!(0)));
    let audit = rig.audit();
    assert_eq!(audit.states_of("one"), ["worker_started", "shutdown_started", "shutdown_completed"]);
    for (id, chars) in [("t1", 3), ("t2", 7)] {
        assert_eq!(audit.result(id)["chars"], chars, "only the third is struck");
    }
    audit
}

/// The counts of every result of a task.
fn chars_of<'a>(audit: &'a Audit, task: &str) -> Vec<&'a Value> {
    audit.results.get(task).into_iter().flatten().map(|result| &result["chars"]).collect()
}

// ---- without a fault ----

#[test]
fn without_a_fault_each_task_runs_once_and_is_answered_right() {
    let rig = Rig::shared("standin-none");
    let gateway = rig.start_gateway();
    let mut workers = ["a", "b"].map(|id| started(&rig.faulty_worker(id, "none")));
    let mut connection = gateway.connect();
    let tasks: Vec<String> = (0..200)
        .map(|number| {
            let text = format!("text number {number}");
            let answer = connection.post("/analyze", &json!({ "text": text })).expect("an answer");
            assert_eq!((answer.status, load::fault(&answer.json(), &text)), (200, None));
            answer.task_id()
        })
        .collect();
    for worker in &mut workers {
        assert_eq!(stop(worker).code, Some(0));
    }
    let audit = rig.audit();
    audit.assert_each_ran_once(&tasks);
    assert!(audit.dead.is_empty() && audit.starts.is_empty(), "{:?} {:?}", audit.dead, audit.starts);
    let by: BTreeSet<_> = audit.results.values().flatten().filter_map(|it| it["processed_by"].as_str()).collect();
    assert_eq!(by, BTreeSet::from(["a", "b"]));
    let instances: BTreeSet<_> = audit.statuses.iter().map(|status| status["instance"].as_str()).collect();
    assert_eq!(instances.len(), 2, "each process has one: {instances:?}");
}

#[test]
fn without_a_fault_an_idle_one_stops_within_a_second() {
    let rig = Rig::quiet("standin-idle");
    let mut worker = started(&rig.faulty_worker("idle", "none"));
    let exit = stop(&mut worker);
    assert_eq!(exit.code, Some(0));
    assert!(exit.elapsed < Duration::from_secs(1), "{exit:?}");
    worker.assert_lines_in_order(&[
        "🚀 Worker idle started",
        "📡 Worker idle sent worker_started notification",
        "🛑 Worker idle received SIGTERM, initiating graceful shutdown...",
        "📡 Worker idle sent shutdown_started notification",
        "🧹 Worker idle cleaning up",
        "✅ Worker idle consumer closed",
        "📡 Worker idle sent shutdown_completed notification",
        "✅ Worker idle producer closed",
        "👋 Worker idle gracefully shut down",
    ]);
    assert_eq!(rig.audit().receipt_of("idle"), &worker.receipt());
}

#[test]
fn without_a_fault_a_busy_one_finishes_its_task() {
    let rig = Rig::shared("standin-busy");
    let mut worker = started(&faulty(&rig, "busy", "none"));
    put(&rig, "long", "one", 3_000);
    wait_until_started(&worker, "long", 1);
    assert_eq!(stop(&mut worker).code, Some(0));
    worker.wait_for_line("⏳ Worker busy waiting for current task long to complete...", SOON);
    let receipt = worker.receipt();
    assert_eq!((&receipt["outcome"], &receipt["tasks_finished"]), (&json!("drained"), &json!(1)));
    // What was accepted is not delivered again: the next task is the first that another one starts.
    let heir = started(&faulty(&rig, "heir", "none"));
    put(&rig, "next", "two", 0);
    wait_until_started(&heir, "next", 1);
    wait_for_results(&rig, "next", 1);
    rig.audit().assert_each_ran_once([]);
}

#[test]
fn without_a_fault_the_deadline_and_a_second_signal_give_the_task_back() {
    let rig = Rig::shared("standin-abandon");
    let mut first = started(&faulty(&rig, "first", "none").env("DRAIN_TIMEOUT", "1s"));
    put(&rig, "long", "one", 8_000);
    wait_until_started(&first, "long", 1);
    let mut second = started(&faulty(&rig, "second", "none"));
    assert_eq!(stop(&mut first).code, Some(3));
    let receipt = first.receipt();
    assert_eq!((&receipt["outcome"], &receipt["tasks_abandoned"]), (&json!("abandoned"), &json!(["long"])));
    assert_eq!(rig.audit().receipt_of("first"), &receipt);

    wait_until_started(&second, "long", 2);
    second.signal(Signal::SIGTERM);
    second.wait_for_line("waiting for current task long", SOON);
    let third = rig.start_worker("third");
    assert_eq!(stop(&mut second).code, Some(4));
    let receipt = second.receipt();
    assert_eq!((&receipt["outcome"], &receipt["tasks_abandoned"]), (&json!("forced"), &json!(["long"])));

    wait_until_started(&third, "long", 3);
    wait_for_results(&rig, "long", 1);
    let audit = rig.audit();
    assert_eq!(audit.result("long")["processed_by"], "third");
    let starts: Vec<_> = audit.starts.iter().map(|start| (&start["worker_id"], &start["delivery"])).collect();
    assert_eq!(starts, [(&json!("second"), &json!(2)), (&json!("third"), &json!(3))]);
}

#[test]
fn without_a_fault_a_killed_one_leaves_its_task_to_another() {
    let rig = Rig::shared("standin-kill");
    let mut victim = started(&faulty(&rig, "victim", "none"));
    put(&rig, "long", "one", 6_000);
    wait_until_started(&victim, "long", 1);
    let _heir = rig.start_worker("heir");
    victim.kill();
    wait_for_results(&rig, "long", 1);
    assert_eq!(rig.audit().result("long")["processed_by"], "heir");
}

#[test]
fn a_fault_that_nobody_knows_is_refused_with_the_list() {
    let rig = Rig::shared("standin-unknown");
    for (name, value) in [("FAULT", "drop-all"), ("FAULT_EVERY", "0")] {
        let mut worker = rig.faulty_worker("odd", "none").env(name, value).start();
        assert_eq!(worker.wait(START).code, Some(2));
        assert!(worker.stderr().contains(name), "{}", worker.stderr());
        assert_eq!(name == "FAULT", worker.stderr().contains("none, accept-first, drop-one"), "{}", worker.stderr());
    }
}

// ---- faults of tasks ----

#[test]
fn accept_first_loses_the_task_that_is_killed_behind_its_accept() {
    let rig = Rig::shared("standin-accept");
    let mut worker = started(&faulty(&rig, "hasty", "accept-first"));
    put(&rig, "kept", "one", 0);
    wait_for_results(&rig, "kept", 1);
    put(&rig, "lost", "two", 0);
    worker.wait_for_line("said Accept of task lost", SOON);
    worker.kill();
    let _heir = rig.start_worker("heir");
    put(&rig, "next", "three", 0);
    wait_for_results(&rig, "next", 1);
    assert_eq!(rig.audit().lost(), ["lost"]);
}

#[test]
fn drop_one_accepts_a_task_that_it_never_runs() {
    let rig = Rig::shared("standin-drop");
    assert_eq!(after_three_tasks(&rig, "drop-one").lost(), ["t3"]);
}

#[test]
fn run_twice_has_two_results_of_one_worker() {
    let rig = Rig::shared("standin-twice");
    let audit = after_three_tasks(&rig, "run-twice");
    assert_eq!(audit.ran_again()["t3"], ["one", "one"]);
    assert_eq!(chars_of(&audit, "t3"), [13, 13]);
    assert!(audit.starts.is_empty(), "nobody else had it: {:?}", audit.starts);
}

#[test]
fn run_again_gives_a_finished_task_to_another_worker() {
    let rig = Rig::shared("standin-again");
    let mut worker = started(&faulty(&rig, "again", "run-again"));
    put(&rig, "fine", "one", 0);
    worker.wait_for_line("said Accept of task fine", SOON);
    put(&rig, "long", "two", 5_000);
    wait_until_started(&worker, "long", 1);
    let _heir = rig.start_worker("heir");
    assert_eq!(stop(&mut worker).code, Some(0));
    let receipt = worker.receipt();
    assert_eq!((&receipt["outcome"], &receipt["tasks_finished"]), (&json!("drained"), &json!(1)));
    assert_eq!((&receipt["tasks_returned"], &receipt["tasks_abandoned"]), (&json!(0), &json!([])));
    wait_for_results(&rig, "long", 2);
    assert_eq!(rig.audit().ran_again(), [("long", vec!["again", "heir"])].into());
}

#[test]
fn wrong_answer_is_the_answer_of_the_task_before() {
    let rig = Rig::shared("standin-wrong");
    assert_eq!(after_three_tasks(&rig, "wrong-answer").result("t3")["chars"], "and two".len());
}

#[test]
fn differ_says_two_results_that_differ() {
    let rig = Rig::shared("standin-differ");
    assert_eq!(chars_of(&after_three_tasks(&rig, "differ"), "t3"), [13, 14]);
}

#[test]
fn dead_letters_give_up_a_task_with_which_nothing_is_wrong() {
    let rig = Rig::shared("standin-dead");
    let audit = after_three_tasks(&rig, "dead-letters");
    assert_eq!(audit.dead.iter().map(audit::Record::key).collect::<Vec<_>>(), ["t3"]);
    let result = audit.result("t3");
    assert_eq!((&result["success"], &result["error"]), (&json!(false), &json!("given up after 1 starts")));
}

#[test]
fn late_start_lets_a_killed_workers_task_wait() {
    let rig = Rig::shared("standin-late");
    let mut victim = started(&faulty(&rig, "victim", "none"));
    put(&rig, "long", "one", 60_000);
    wait_until_started(&victim, "long", 1);
    let late = started(&faulty(&rig, "late", "late-start"));
    let killed = victim.kill();
    let waited = wait_until_started(&late, "long", 2) - killed;
    assert!(waited >= Duration::from_secs(2), "{waited:?}");
}

// ---- faults of stops ----

#[test]
fn exit_0_at_deadline_hides_what_it_abandons() {
    let rig = Rig::shared("standin-exit-0");
    let mut worker = started(&faulty(&rig, "sly", "exit-0-at-deadline").env("DRAIN_TIMEOUT", "1s"));
    put(&rig, "long", "one", 7_000);
    wait_until_started(&worker, "long", 1);
    let heir = rig.start_worker("heir");
    let exit = stop(&mut worker);
    assert!(exit.code == Some(0) && exit.elapsed >= Duration::from_secs(1), "{exit:?}");
    let receipt = worker.receipt();
    assert_eq!((&receipt["outcome"], &receipt["exit_code"]), (&json!("drained"), &json!(0)));
    assert_eq!((&receipt["tasks_finished"], &receipt["tasks_abandoned"]), (&json!(0), &json!([])));
    wait_until_started(&heir, "long", 2);
    wait_for_results(&rig, "long", 1);
    assert_eq!(rig.audit().result("long")["processed_by"], "heir");
}

#[test]
fn no_completed_leaves_without_its_last_word() {
    let rig = Rig::shared("standin-no-completed");
    let mut worker = started(&faulty(&rig, "mute", "no-completed"));
    assert_eq!(stop(&mut worker).code, Some(0));
    assert_eq!(worker.receipt()["outcome"], "drained");
    assert!(worker.lines_with("shutdown_completed").is_empty());
    assert_eq!(rig.audit().states_of("mute"), ["worker_started", "shutdown_started"]);
}

#[test]
fn no_started_drains_without_a_word() {
    let rig = Rig::shared("standin-no-started");
    let mut worker = started(&faulty(&rig, "mute", "no-started").env("HEARTBEAT_INTERVAL", "100ms"));
    put(&rig, "long", "one", 500);
    wait_until_started(&worker, "long", 1);
    assert_eq!(stop(&mut worker).code, Some(0));
    assert!(worker.lines_with("shutdown_started").is_empty());
    let audit = rig.audit();
    assert_eq!(audit.states_of("mute"), ["worker_started", "shutdown_completed"]);
    assert_eq!(audit.runs("long"), 1);
}

#[test]
fn deaf_to_second_drains_on() {
    let rig = Rig::shared("standin-deaf");
    let mut worker = started(&faulty(&rig, "deaf", "deaf-to-second"));
    put(&rig, "long", "one", 4_000);
    wait_until_started(&worker, "long", 1);
    worker.signal(Signal::SIGTERM);
    worker.wait_for_line("waiting for current task long", SOON);
    assert_eq!(stop(&mut worker).code, Some(0));
    assert_eq!(worker.receipt()["outcome"], "drained");
    assert_eq!(rig.audit().result("long")["processed_by"], "deaf");
}

#[test]
fn slow_stop_takes_3_s_when_idle() {
    let rig = Rig::shared("standin-slow");
    let mut worker = started(&faulty(&rig, "slow", "slow-stop"));
    let exit = stop(&mut worker);
    assert!(exit.code == Some(0) && exit.elapsed >= Duration::from_secs(3), "{exit:?}");
    assert_eq!(rig.audit().receipt_of("slow"), &worker.receipt());
}

#[test]
fn lying_receipt_is_not_what_happened() {
    let rig = Rig::shared("standin-liar");
    let mut worker = started(&faulty(&rig, "liar", "lying-receipt"));
    assert_eq!(stop(&mut worker).code, Some(0));
    let receipt = worker.receipt();
    assert_eq!((&receipt["outcome"], &receipt["exit_code"]), (&json!("drained"), &json!(3)));
    assert_eq!((&receipt["tasks_finished"], &receipt["phases_ms"]["total"]), (&json!(7), &json!(1)));
    assert_eq!(rig.audit().receipt_of("liar"), &receipt, "it says the same everywhere");
}
