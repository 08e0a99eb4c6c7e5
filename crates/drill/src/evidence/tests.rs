//! What the evidence makes of ledgers that are made up.

use serde_json::json;

use super::super::fact::{Begin, Fact, Line};
use super::super::receipt;
use super::*;

/// The ledger of a fleet that others started: these lines, in this order.
fn lines(facts: Vec<(f64, Fact)>) -> Vec<Line> {
    let begin = Fact::Begin(Begin { worker_timeout_ms: 5_000, ..Begin::default() });
    let all = std::iter::once((0.0, begin)).chain(facts);
    all.map(|(at, fact)| Line { at, fact }).collect()
}

/// What worker `w` says as this process of it.
fn says(instance: &str, status: &str, tasks: &[&str], receipt: Option<Value>) -> Fact {
    Fact::Notified {
        worker: "w".to_owned(),
        instance: instance.to_owned(),
        status: status.to_owned(),
        current_tasks: tasks.iter().map(|task| (*task).to_owned()).collect(),
        receipt,
        offset: 0,
    }
}

fn signal(signal: &str) -> Fact {
    Fact::Signalled { process: "w".to_owned(), signal: signal.to_owned(), action: None, until: None }
}

fn exited(code: Option<i32>, signal: Option<i32>) -> Fact {
    Fact::Exited { process: "w".to_owned(), pid: 0, code, signal, receipt: None }
}

fn started() -> Fact {
    Fact::Started { process: "w".to_owned(), pid: 0 }
}

fn task(id: &str) -> Fact {
    Fact::Accepted { number: None, task_id: id.to_owned(), partition: 0, offset: 0 }
}

fn receipt(exit_code: u8, abandoned: &[&str]) -> Option<Value> {
    Some(json!({ "exit_code": exit_code, "tasks_abandoned": abandoned }))
}

#[test]
fn a_command_tells_how_a_process_ended_and_its_status_records_tell_when() {
    let lines = lines(vec![
        (5.0, signal("SIGTERM")),
        (5.4, exited(Some(3), None)),
        (1.0, says("a", "worker_started", &[], None)),
        (5.1, says("a", "shutdown_started", &[], None)),
        (5.2, says("a", "shutdown_completed", &[], receipt(0, &[]))),
    ]);
    let evidence = Evidence::new(&lines);
    let [life] = &evidence.workers["w"][..] else { panic!("one life") };
    let exit = life.exit.as_ref().expect("an end");
    assert_eq!((exit.at, exit.code, exit.receipt.and_then(receipt::exit_code)), (5.2, Some(3), Some(0)));
    assert!(life.by_hearsay && life.terms.len() == 1 && life.terms[0].1 == 5.1);
}

#[test]
fn what_was_done_to_a_process_counts_in_its_own_order_whatever_order_it_was_told_in() {
    // A word that restarts all of a fleet tells what it did when it is over; meanwhile the new one was frozen.
    let lines = lines(vec![
        (1.0, started()),
        (5.5, signal("SIGSTOP")),
        (5.2, signal("SIGTERM")),
        (5.4, exited(Some(0), None)),
        (5.47, started()),
        (6.5, signal("SIGCONT")),
        (7.0, exited(Some(0), None)),
        // After the exit: without effect.
        (7.1, signal("SIGTERM")),
    ]);
    let evidence = Evidence::new(&lines);
    let [old, new] = &evidence.workers["w"][..] else { panic!("two lives") };
    assert_eq!((&old.frozen[..], old.terms.len(), old.exit.as_ref().map(|exit| exit.at)), (&[][..], 1, Some(5.4)));
    assert_eq!((&new.frozen[..], new.terms.len(), new.from), (&[(5.5, 6.5)][..], 0, 5.47));
}

#[test]
fn where_nobody_saw_the_end_it_is_as_the_worker_said() {
    let lines = lines(vec![
        (5.0, signal("SIGTERM")),
        (1.0, says("a", "worker_started", &[], None)),
        (5.1, says("a", "shutdown_started", &[], None)),
        (5.2, says("a", "shutdown_completed", &[], receipt(0, &[]))),
    ]);
    let evidence = Evidence::new(&lines);
    let life = &evidence.workers["w"][0];
    assert_eq!(life.exit.as_ref().and_then(|exit| exit.code), Some(0));
    assert!(life.by_hearsay);
}

#[test]
fn one_that_was_killed_before_its_first_word_has_not_ended_by_itself() {
    let lines = lines(vec![
        (0.6, signal("SIGKILL")),
        (0.61, exited(None, Some(9))),
        (1.2, says("b", "worker_started", &[], None)),
    ]);
    let evidence = Evidence::new(&lines);
    let [killed, next] = &evidence.workers["w"][..] else { panic!("two lives") };
    assert!(killed.kill.is_some() && killed.exit.is_some(), "{killed:?}");
    assert!(next.kill.is_none() && next.exit.is_none(), "{next:?}");
}

#[test]
fn what_was_done_belongs_to_the_process_that_ran_then() {
    let lines = lines(vec![
        // Killed long after its last word, since it was frozen.
        (3.5, signal("SIGSTOP")),
        (20.0, signal("SIGKILL")),
        (20.1, exited(None, Some(9))),
        (1.0, says("a", "worker_started", &[], None)),
        (3.0, says("a", "worker_started", &[], None)),
        (22.0, says("b", "worker_started", &[], None)),
        (30.0, says("b", "worker_started", &[], None)),
    ]);
    let evidence = Evidence::new(&lines);
    let [first, second] = &evidence.workers["w"][..] else { panic!("two lives") };
    assert_eq!(first.exit.as_ref().map(|exit| (exit.at, exit.signal)), Some((20.1, Some(9))));
    assert_eq!((second.from, second.ready, second.kill), (22.0, Some(22.0), None));
    assert!(second.exit.is_none() && first.frozen.len() == 1);
}

#[test]
fn a_process_that_ended_before_its_first_word_is_one_too() {
    let lines = lines(vec![
        (10.1, signal("SIGTERM")),
        (10.2, exited(Some(0), None)),
        (1.0, says("a", "worker_started", &[], None)),
        (9.0, says("a", "shutdown_completed", &[], None)),
        (12.0, says("b", "worker_started", &[], None)),
    ]);
    let evidence = Evidence::new(&lines);
    let [_, second, third] = &evidence.workers["w"][..] else { panic!("three lives") };
    assert_eq!((second.from, second.ready, second.terms.len()), (9.0, None, 1));
    assert_eq!((third.from, third.ready, third.terms.len()), (12.0, Some(12.0), 0));
}

#[test]
fn one_that_fell_silent_lived_until_its_last_result() {
    let ended = |worker: &str| Fact::RunEnded {
        task_id: "t".to_owned(),
        worker: worker.to_owned(),
        seconds: 0.02,
        success: true,
        digest: String::new(),
        fault: None,
        partition: 0,
        offset: 0,
    };
    let other = |at: f64| {
        let Fact::Notified { instance, status, .. } = says("o", "worker_started", &[], None) else { unreachable!() };
        let (worker, current_tasks) = ("x".to_owned(), Vec::new());
        (at, Fact::Notified { worker, instance, status, current_tasks, receipt: None, offset: 0 })
    };
    let lines = lines(vec![
        (3.0, says("a", "worker_started", &[], None)),
        (3.5, task("t")),
        (3.7, ended("w")),
        (3.9, ended("x")),
        other(3.0),
        other(20.0),
    ]);
    let evidence = Evidence::new(&lines);
    let life = evidence.life("w", 3.68).expect("it lived when it ran the task");
    assert_eq!(life.exit.as_ref().map(|exit| (exit.at, exit.signal)), Some((3.7, Some(9))));
}

/// A drill that looked on called a run unexplained whose worker was killed in the second after its last word.
#[test]
fn a_kill_that_nobody_saw_came_after_the_last_word() {
    let lines = lines(vec![
        (1.0, says("a", "worker_started", &[], None)),
        (2.0, says("a", "worker_started", &[], None)),
        (6.0, says("b", "worker_started", &[], None)),
        (20.0, says("b", "worker_started", &[], None)),
    ]);
    let evidence = Evidence::new(&lines);
    let of = |at| evidence.life("w", at).and_then(|life| life.ready);
    assert_eq!((of(2.4), of(4.8), of(6.0)), (Some(1.0), None, Some(6.0)));
}

#[test]
fn a_task_that_a_killed_worker_said_it_had_was_a_run_of_it() {
    let again = Fact::Restarted { task_id: "t".to_owned(), worker: "x".to_owned(), delivery: 2, offset: 0 };
    let lines = lines(vec![
        (4.5, signal("SIGKILL")),
        (0.5, task("t")),
        (2.0, says("a", "worker_started", &[], None)),
        (3.0, says("a", "worker_started", &["t"], None)),
        (4.0, says("a", "worker_started", &["t"], None)),
        (4.6, again),
    ]);
    let evidence = Evidence::new(&lines);
    let runs: Vec<(&str, f64)> = evidence.tasks["t"].runs.iter().map(|run| (run.worker, run.began)).collect();
    assert_eq!(runs, [("w", 2.0), ("x", 4.6)]);
}

#[test]
fn a_task_that_was_in_hand_and_has_its_result_is_one_run() {
    let ended = Fact::RunEnded {
        task_id: "t".to_owned(),
        worker: "w".to_owned(),
        seconds: 2.0,
        success: true,
        digest: String::new(),
        fault: None,
        partition: 0,
        offset: 0,
    };
    let lines = lines(vec![
        (0.5, task("t")),
        (3.0, says("a", "worker_started", &["t"], None)),
        (4.2, says("a", "worker_started", &["t"], None)),
        (4.0, ended),
    ]);
    assert_eq!(Evidence::new(&lines).tasks["t"].runs.len(), 1);
}

#[test]
fn what_a_worker_had_in_hand_before_its_first_word_was_a_run_of_it() {
    let lines = lines(vec![(0.9, says("a", "worker_started", &["t"], None)), (0.2, task("t"))]);
    let evidence = Evidence::new(&lines);
    assert!(evidence.life("w", 0.3).is_some_and(|life| life.ready == Some(0.9)));
}

#[test]
fn an_abandoned_task_was_in_hand_though_no_heartbeat_said_so() {
    let lines = lines(vec![
        (5.0, signal("SIGTERM")),
        (5.3, signal("SIGTERM")),
        (5.4, exited(Some(4), None)),
        (0.5, task("t")),
        (1.0, says("a", "worker_started", &[], None)),
        (5.3, says("a", "shutdown_completed", &[], receipt(4, &["t"]))),
    ]);
    let evidence = Evidence::new(&lines);
    let [run] = &evidence.tasks["t"].runs[..] else { panic!("one run") };
    assert_eq!((run.worker, run.began, run.end.is_none()), ("w", 5.0, true));
}

#[test]
fn a_gateway_that_others_started_is_known_by_its_address() {
    let gateway = || "http://127.0.0.1:8080".to_owned();
    let lines = lines(vec![
        (1.0, Fact::Signalled { process: gateway(), signal: "SIGTERM".to_owned(), action: None, until: None }),
        (1.5, Fact::Exited { process: gateway(), pid: 0, code: Some(0), signal: None, receipt: None }),
    ]);
    let evidence = Evidence::new(&lines);
    assert!(evidence.workers.is_empty());
    assert_eq!(evidence.gateways[gateway().as_str()].len(), 1);
}
