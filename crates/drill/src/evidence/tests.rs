//! The evidence of made-up ledgers.

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

/// A status record of worker `w` from this process.
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
fn command_gives_the_exit_code_and_status_records_give_the_time_of_an_exit() {
    let lines = lines(vec![
        (5.0, signal("SIGTERM")),
        (5.4, exited(Some(3), None)),
        (1.0, says("a", "worker_started", &[], None)),
        (5.1, says("a", "shutdown_started", &[], None)),
        (5.2, says("a", "shutdown_completed", &[], receipt(0, &[]))),
    ]);
    let evidence = Evidence::new(&lines);
    let [life] = &evidence.workers["w"][..] else { panic!("one process") };
    let exit = life.exit.as_ref().expect("an end");
    assert_eq!((exit.at, exit.code, exit.receipt.and_then(receipt::exit_code)), (5.2, Some(3), Some(0)));
    assert!(life.by_hearsay && life.terms.len() == 1 && life.terms[0].1 == 5.1);
}

#[test]
fn process_facts_are_taken_in_the_order_of_time_whatever_the_order_of_lines() {
    // A command that restarts a whole fleet reports at its end; meanwhile the new process was frozen.
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
    let [old, new] = &evidence.workers["w"][..] else { panic!("two processes") };
    assert_eq!((&old.frozen[..], old.terms.len(), old.exit.as_ref().map(|exit| exit.at)), (&[][..], 1, Some(5.4)));
    assert_eq!((&new.frozen[..], new.terms.len(), new.from), (&[(5.5, 6.5)][..], 0, 5.47));
}

#[test]
fn receipt_gives_the_exit_code_of_an_unseen_exit() {
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
fn process_killed_before_its_first_status_record_has_not_ended_by_itself() {
    let lines = lines(vec![
        (0.6, signal("SIGKILL")),
        (0.61, exited(None, Some(9))),
        (1.2, says("b", "worker_started", &[], None)),
    ]);
    let evidence = Evidence::new(&lines);
    let [killed, next] = &evidence.workers["w"][..] else { panic!("two processes") };
    assert!(killed.kill.is_some() && killed.exit.is_some(), "{killed:?}");
    assert!(next.kill.is_none() && next.exit.is_none(), "{next:?}");
}

#[test]
fn signals_belong_to_the_process_that_ran_at_their_time() {
    let lines = lines(vec![
        // Killed long after its last status record, because it was frozen.
        (3.5, signal("SIGSTOP")),
        (20.0, signal("SIGKILL")),
        (20.1, exited(None, Some(9))),
        (1.0, says("a", "worker_started", &[], None)),
        (3.0, says("a", "worker_started", &[], None)),
        (22.0, says("b", "worker_started", &[], None)),
        (30.0, says("b", "worker_started", &[], None)),
    ]);
    let evidence = Evidence::new(&lines);
    let [first, second] = &evidence.workers["w"][..] else { panic!("two processes") };
    assert_eq!(first.exit.as_ref().map(|exit| (exit.at, exit.signal)), Some((20.1, Some(9))));
    assert_eq!((second.from, second.ready, second.kill), (22.0, Some(22.0), None));
    assert!(second.exit.is_none() && first.frozen.len() == 1);
}

#[test]
fn process_that_ended_before_its_first_status_record_is_counted() {
    let lines = lines(vec![
        (10.1, signal("SIGTERM")),
        (10.2, exited(Some(0), None)),
        (1.0, says("a", "worker_started", &[], None)),
        (9.0, says("a", "shutdown_completed", &[], None)),
        (12.0, says("b", "worker_started", &[], None)),
    ]);
    let evidence = Evidence::new(&lines);
    let [_, second, third] = &evidence.workers["w"][..] else { panic!("three processes") };
    assert_eq!((second.from, second.ready, second.terms.len()), (9.0, None, 1));
    assert_eq!((third.from, third.ready, third.terms.len()), (12.0, Some(12.0), 0));
}

#[test]
fn silent_worker_lived_until_its_last_result() {
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

/// `drill watch` once called a run unexplained whose worker was killed in the second after its last status record.
#[test]
fn unseen_kill_came_after_the_last_status_record() {
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
fn task_in_a_status_record_of_a_killed_worker_is_a_run() {
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
fn task_in_status_records_with_a_result_is_one_run() {
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
fn task_in_flight_at_the_first_status_record_began_before_it() {
    let lines = lines(vec![(0.9, says("a", "worker_started", &["t"], None)), (0.2, task("t"))]);
    let evidence = Evidence::new(&lines);
    assert!(evidence.life("w", 0.3).is_some_and(|life| life.ready == Some(0.9)));
}

#[test]
fn abandoned_task_is_a_run_even_if_no_status_record_lists_it() {
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
fn gateway_of_others_is_known_by_its_address() {
    let gateway = || "http://127.0.0.1:8080".to_owned();
    let lines = lines(vec![
        (1.0, Fact::Signalled { process: gateway(), signal: "SIGTERM".to_owned(), action: None, until: None }),
        (1.5, Fact::Exited { process: gateway(), pid: 0, code: Some(0), signal: None, receipt: None }),
    ]);
    let evidence = Evidence::new(&lines);
    assert!(evidence.workers.is_empty());
    assert_eq!(evidence.gateways[gateway().as_str()].len(), 1);
}

#[test]
fn first_record_of_a_task_is_the_earliest_whatever_the_order_of_partitions() {
    let lines = lines(vec![(9.0, task("t")), (3.0, task("t"))]);
    let accepted = &Evidence::new(&lines).tasks["t"].accepted;
    assert_eq!(accepted.iter().map(|(_, at)| *at).collect::<Vec<_>>(), [3.0, 9.0]);
}
