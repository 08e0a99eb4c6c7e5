//! The judge on made-up ledgers: cases that no mutation of a recorded run shows.

mod commands;
mod faults;
mod hearsay;

use lastcall::task::Receipt;

use super::super::fact::{Answer, Fact, Kind};
use super::super::judgement::{Conclusion, State};
use super::super::texts::AFTERWARDS;
use super::actions;
use super::mutations::{
    AWAY, BUSY as BUSY_STOP, CODES, CUT, DEADLINE, GATEWAY, GIVEN_UP, HUNG as AFTER_FREEZE, IDLE, IN_TIME,
    KILLED as AFTER_KILL, KNOWS, LOST, RECEIPTS, RIGHT, SAID, SECOND, TWICE,
};
use super::quiet::NAME as QUIET;
use super::recorded::{Recorded, alter};
use super::sample::{KILLED, Sample, abandoned, drained, forced, id};
use super::service::RECOVERIES;

const NONE: [&str; 0] = [];

fn of(outcome: Kind, number: u64) -> Answer {
    Answer { task_id: Some(id(number)), status: Some(504), ..Answer::of(outcome) }
}

/// The calm run, in which this worker has a long unfinished task in flight from 12.01 on.
fn long_task(worker: &str, work_ms: u64) -> Sample {
    let mut sample = Sample::calm();
    sample.submit(600, 12.0, work_ms).accept(600, 12.001).begin(600, worker, 12.01, 1);
    sample
}

fn restart(sample: &mut Sample, worker: &str, at: f64) {
    let seconds = 0.05;
    sample.begin(600, worker, at, 2).result(600, worker, at + seconds, seconds).answer(
        600,
        worker,
        at + seconds + 0.01,
    );
}

// ---- the run as a whole ----

#[test]
fn run_without_an_audit_or_an_answer_is_not_held() {
    let mut it = Recorded::new();
    alter!(it, line: Fact::End(ending) => ending.audited = false);
    // The lag was read, and then Kafka failed: an unread task is not lost.
    let mut unread = it.clone();
    unread.forget_runs(&it.task().id);
    it.remove(|line| {
        matches!(line.fact, Fact::Lag { .. } | Fact::Accepted { .. } | Fact::RunEnded { .. } | Fact::Dead { .. })
    });
    for it in [it, unread] {
        let verdict = it.judged();
        assert!(matches!(verdict.conclusion, Conclusion::Undecided(_)), "{verdict:#?}");
        assert!(verdict.rows.iter().all(|row| row.state != State::Broken), "{verdict:#?}");
    }
    let mut sample = Sample::calm();
    let refused = Answer { why: Some("503 full".to_owned()), ..Answer::of(Kind::Refused) };
    sample.remove(|fact| matches!(fact, Fact::Accepted { .. } | Fact::RunBegan { .. } | Fact::RunEnded { .. }));
    sample.remove(|fact| matches!(fact, Fact::Submitted { number: AFTERWARDS.., .. } | Fact::Fleet { .. }));
    for number in 0..100 {
        sample.answered(number, &refused);
    }
    let Conclusion::CouldNotRun(why) = sample.judged().conclusion else { panic!("{:?}", sample.broken()) };
    assert!(why.contains("503 full"), "{why}");
}

#[test]
fn run_that_was_cut_short_can_be_held() {
    let mut it = Recorded::new();
    alter!(it, line: Fact::End(ending) => ending.cut_short = true);
    // An action that was under way.
    it.remove(|line| matches!(line.fact, Fact::Carried { action: 2, .. }));
    let verdict = it.judged();
    assert!(verdict.cut_short && verdict.conclusion == Conclusion::Held, "{verdict:#?}");
}

// ---- P1 and answers ----

#[test]
fn task_may_be_dead_lettered_only_after_five_starts() {
    let dead = |starts: i16| {
        let mut sample = Sample::calm();
        sample.submit(600, 12.0, 1000).accept(600, 12.001);
        for start in 0..starts {
            let (worker, at) = (format!("worker_{}", 1 + start % 2), 12.01 + f64::from(start));
            sample.begin(600, &worker, at, start + 1).kill(&worker, at + 0.4).start(&worker, at + 0.5);
        }
        let at = 12.01 + f64::from(starts);
        sample.put(at, Fact::Dead { task_id: Some(id(600)), offset: 0 });
        sample.result(600, "worker_3", at, 0.0).change(|line| match &mut line.fact {
            Fact::RunEnded { task_id, success, fault, .. } if *task_id == id(600) => {
                (*success, *fault) = (false, Some("success is false".to_owned()));
            }
            _ => {}
        });
        sample.answer(600, "worker_3", at + 0.1).answered(600, &of(Kind::Failed, 600));
        // Other rows break, too, because the task starts late; they are not judged here.
        sample.broken().into_iter().filter(|name| [RIGHT, GIVEN_UP].contains(name)).collect::<Vec<_>>()
    };
    assert_eq!(dead(0), [RIGHT, GIVEN_UP]);
    assert_eq!(dead(4), [RIGHT, GIVEN_UP]);
    assert_eq!(dead(5), NONE);
}

// ---- P2 ----

#[test]
fn kill_explains_one_second_run_of_a_task() {
    let mut sample = Sample::healthy();
    sample.begin(KILLED, "worker_2", 10.0, 3).result(KILLED, "worker_2", 10.06, 0.05);
    assert_eq!(sample.broken(), [TWICE], "the kill explains the second run, not the third");
}

#[test]
fn kill_of_the_broker_explains_a_second_run() {
    let mut sample = long_task("worker_1", 500);
    sample.kill("broker", 12.1).start("broker", 13.0);
    restart(&mut sample, "worker_2", 13.4);
    assert!(!sample.broken().contains(&TWICE), "{:#?}", sample.row(TWICE));
    assert_eq!(sample.row(TWICE).note, "1 explained: broker 1 of 6");
}

#[test]
fn share_session_fault_explains_the_tasks_in_flight_of_one_worker() {
    let faulty = |request: &str| {
        let mut sample = long_task("worker_1", 500);
        let detail = format!("CutBefore at {request} of a worker");
        sample.put(12.1, Fact::Ordered { action: 1, what: "fault".to_owned(), target: None, detail });
        sample.put(12.2, Fact::Carried { action: 1, done: true, detail: "it was done".to_owned() });
        restart(&mut sample, "worker_2", 12.3);
        sample
    };
    let mut sample = faulty("ShareFetch");
    assert_eq!((sample.broken(), sample.row(TWICE).note.as_str()), (vec![], "1 explained: fault 1 of 1"));
    // A second task at the same time exceeds the budget of the cause.
    sample.submit(601, 12.0, 500).accept(601, 12.001).begin(601, "worker_3", 12.05, 1);
    sample.begin(601, "worker_2", 12.4, 2).result(601, "worker_2", 12.46, 0.05).answer(601, "worker_2", 12.47);
    assert_eq!(sample.broken(), [TWICE]);
    assert!(faulty("Produce").broken().contains(&TWICE), "Kafka recognises a batch that is sent again");
}

#[test]
fn kill_explains_the_loss_of_a_result_at_most_half_a_second_old() {
    let killed_at = |at: f64| {
        let mut sample = Sample::calm();
        // The result of request 50 is in Kafka at 6.014.
        sample.order(1, "kill-worker", "worker_3", at).kill("worker_3", at).start("worker_3", at + 0.2);
        sample.begin(50, "worker_1", at + 0.01, 2).result(50, "worker_1", at + 0.03, 0.01);
        sample.broken()
    };
    assert_eq!(killed_at(6.4), NONE);
    assert_eq!(killed_at(6.7), [TWICE]);
}

#[test]
fn record_that_was_sent_again_explains_a_second_run_only_if_its_first_was_in_doubt() {
    let twice = |first: f64, again: f64, delivery: i16| {
        let mut sample = Sample::calm();
        for at in [12.0, 108.0] {
            sample.kill("broker", at).start("broker", at + 0.9);
        }
        sample.submit(600, first - 0.01, 10).accept(600, first).begin(600, "worker_1", first + 1.1, 1);
        sample.result(600, "worker_1", first + 1.12, 0.01).answer(600, "worker_1", first + 1.13);
        sample.accept(600, again).begin(600, "worker_2", again + 0.01, delivery);
        sample.result(600, "worker_2", again + 0.03, 0.01);
        sample.row(TWICE)
    };
    assert_eq!(twice(11.9, 13.5, 1).note, "1 explained: sent again 1 of 21");
    assert_eq!(twice(9.5, 13.5, 1).findings.len(), 0, "a gateway may have waited for its acknowledgement");
    assert_eq!(twice(8.5, 13.5, 1).findings.len(), 1, "it was acknowledged before the outage");
    assert_eq!(twice(11.9, 109.5, 1).findings.len(), 1, "another outage does not put it in doubt again");
    assert_eq!(twice(11.9, 24.5, 1).findings.len(), 1, "no worker lost a record that is delivered for the first time");
    assert_eq!(twice(11.9, 24.5, 2).note, "1 explained: broker 1 of 6");
}

#[test]
fn each_record_that_was_sent_again_explains_one_run() {
    let twice = |records: u8| {
        let mut sample = Sample::of_cluster();
        sample.submit(600, 12.0, 500).accept(600, 12.001).begin(600, "worker_1", 12.01, 1);
        sample.kill("broker", 12.1).start("broker", 13.0);
        for record in 1..=records {
            sample.accept(600, 13.2 + f64::from(record) / 10.0);
        }
        // The outage cost the lock of the first record: it is delivered again.
        sample.begin(600, "worker_3", 13.15, 2).result(600, "worker_3", 13.2, 0.05);
        for (at, worker) in [(13.6, "worker_2"), (13.7, "worker_3")] {
            sample.begin(600, worker, at, 1).result(600, worker, at + 0.05, 0.05);
        }
        sample.row(TWICE).findings.len()
    };
    assert_eq!((twice(2), twice(1), twice(0)), (0, 1, 2));
}

#[test]
fn journal_line_that_is_read_late_makes_no_second_run() {
    let mut sample = Sample::healthy();
    // The drill reads this start 60 ms after the result is in Kafka.
    sample.change(|line| match &line.fact {
        Fact::RunBegan { task_id, .. } if *task_id == id(50) => line.at = 6.074,
        _ => {}
    });
    assert_eq!(sample.broken(), NONE);
    assert_eq!(sample.row(TWICE).count, 1, "the run after the kill");
}

// ---- service ----

#[test]
fn gateway_need_not_serve_callers_while_no_worker_is_free() {
    let state = |busy: &[&str], answered: f64| {
        let mut sample = Sample::calm();
        for (number, worker) in (701..).step_by(2).zip(busy) {
            sample.task(number, worker, 11.5, 4000);
        }
        sample.signal("gateway_1", 12.0, "SIGTERM").exit("gateway_1", 12.05, Some(0), None, None);
        sample.start("gateway_1", 12.1);
        for (number, at) in [(600, 12.3), (602, 14.4)] {
            sample.submit(number, at, 10).accept(number, at + 0.01).begin(number, "worker_1", answered - 0.1, 1);
            sample.result(number, "worker_1", answered - 0.05, 0.01).answer(number, "worker_1", answered);
        }
        sample.row(RECOVERIES).state
    };
    assert_eq!(state(&["worker_1", "worker_2", "worker_3"], 15.9), State::Held);
    assert_eq!(state(&["worker_1", "worker_2", "worker_3"], 18.9), State::Broken, "all were free from 15.5 on");
    assert_eq!(state(&["worker_1", "worker_2"], 15.9), State::Broken);
}

#[test]
fn only_tasks_of_a_request_must_start_in_time() {
    let state = |requested: Option<u64>| {
        let mut sample = Sample::calm();
        sample.put(12.0, Fact::Accepted { number: requested, task_id: id(600), partition: 0, offset: 900 });
        sample.begin(600, "worker_1", 13.8, 1).result(600, "worker_1", 13.81, 0.01);
        sample.row(IN_TIME).state
    };
    assert_eq!((state(Some(600)), state(None)), (State::Broken, State::Held));
}

// ---- P3 to P7 ----

#[test]
fn task_lost_in_an_outage_is_not_in_flight_once_another_worker_began_it() {
    let stop = |outage: bool, elsewhere: f64| {
        let mut sample = long_task("worker_1", 5000);
        if outage {
            sample.order(1, "restart-broker", "broker", 12.3).kill("broker", 12.3).start("broker", 12.8);
        }
        restart(&mut sample, "worker_2", elsewhere);
        sample.stop("worker_1", 14.0, 0.05).start("worker_1", 14.5);
        sample.broken().contains(&BUSY_STOP)
    };
    assert!(!stop(true, 13.6));
    assert!(stop(true, 14.1), "the worker abandoned the task at the signal");
    assert!(stop(false, 13.6), "without an outage the worker still has the task");
}

#[test]
fn handler_of_others_extends_the_bound_by_its_own_time() {
    // A handler of others takes longer than the drill requested.
    let mut sample = Sample::calm();
    sample.change(|line| {
        if let Fact::Begin(begin) = &mut line.fact {
            begin.own_handler = true;
        }
    });
    sample.submit(600, 12.0, 0).accept(600, 12.001).begin(600, "worker_1", 12.002, 1);
    sample.result(600, "worker_1", 15.01, 3.0).answer(600, "worker_1", 15.02);
    let receipt = Receipt { tasks_finished: 1, ..drained("worker_1", 2.6) };
    sample.stop_with("worker_1", 12.5, 2.6, &receipt).start("worker_1", 18.0);
    assert_eq!(sample.broken(), NONE);
}

#[test]
fn drain_beyond_its_timeout_is_a_finding_even_if_the_task_finishes() {
    let mut sample = Sample::calm();
    sample.change(|line| line.at += if line.at > 13.0 { 15.0 } else { 0.0 });
    sample.task(600, "worker_1", 12.0, 11_000);
    let receipt = Receipt { tasks_finished: 1, ..drained("worker_1", 10.6) };
    sample.stop_with("worker_1", 12.5, 10.6, &receipt).start("worker_1", 24.0);
    assert_eq!(sample.broken(), [DEADLINE, CODES]);
}

#[test]
fn worker_that_drains_on_after_its_second_signal_is_late() {
    let mut sample = Sample::calm();
    sample.task(600, "worker_1", 12.0, 3000);
    let receipt = Receipt { tasks_finished: 1, ..drained("worker_1", 2.6) };
    sample.stop_with("worker_1", 12.5, 2.6, &receipt).signal("worker_1", 12.65, "SIGTERM").start("worker_1", 15.5);
    assert_eq!(sample.broken(), [SECOND]);
}

#[test]
fn second_signal_without_tasks_in_flight_allows_exit_code_0() {
    // The outcome is forced, and every task is finished.
    let mut sample = Sample::calm();
    let receipt = Receipt { exit_code: 0, ..forced("worker_1", 0.04, &[]) };
    sample.stop_with("worker_1", 15.0, 0.04, &receipt).signal("worker_1", 15.02, "SIGTERM").start("worker_1", 15.5);
    assert_eq!(sample.broken(), NONE);
    // The second signal comes after the exit, before the drill knows of the exit.
    let mut sample = Sample::calm();
    sample.order(1, "second-signal", "worker_1", 15.0).stop("worker_1", 15.0, 0.04);
    sample.put(
        15.041,
        Fact::Signalled { process: "worker_1".to_owned(), signal: "SIGTERM".to_owned(), action: Some(1), until: None },
    );
    sample.start("worker_1", 15.5);
    // The drill learns of the exit last.
    sample.change(|line| {
        if matches!(&line.fact, Fact::Exited { process, .. } if process == "worker_1") && line.at < 16.0 {
            line.at = 15.04;
        }
    });
    let mut lines = sample.ordered();
    let exit = lines.iter().position(|line| (line.at - 15.04).abs() < 1e-9).expect("its end");
    lines.swap(exit, exit + 1);
    let verdict = super::judge(&lines, String::new());
    assert_eq!(verdict.conclusion, Conclusion::Held, "{:#?}", verdict.rows);
}

#[test]
fn idle_worker_stops_within_five_seconds_without_kafka() {
    let stop = |took: f64, receipt: &Receipt| {
        let mut sample = Sample::calm();
        sample.kill("broker", 12.0).start("broker", 18.4);
        sample.stop_with("worker_1", 12.5, took, receipt).start("worker_1", 19.0);
        sample.broken()
    };
    assert_eq!(stop(4.9, &drained("worker_1", 4.9)), NONE);
    assert_eq!(stop(5.2, &drained("worker_1", 5.2)), [AWAY]);
    // The worker had no task that it could abandon.
    assert_eq!(stop(4.9, &abandoned("worker_1", 4.9, &[])), [CODES]);
}

#[test]
fn worker_that_has_not_started_must_stop_within_five_seconds() {
    let stop = |took: f64| {
        let mut sample = Sample::calm();
        sample.put(12.0, Fact::Started { process: "worker_4".to_owned(), pid: 9 });
        sample.signal("worker_4", 12.1, "SIGTERM").exit("worker_4", 12.1 + took, Some(0), None, None);
        sample.broken()
    };
    assert_eq!(stop(4.9), NONE);
    assert_eq!(stop(5.1), ["stops before it has started"]);
}

#[test]
fn worker_may_end_by_a_signal_in_the_instant_of_its_start() {
    let stop = |at: f64, signal: i32| {
        let mut sample = Sample::calm();
        sample.put(12.0, Fact::Started { process: "worker_4".to_owned(), pid: 9 });
        sample.signal("worker_4", at, "SIGTERM").exit("worker_4", at + 0.001, None, Some(signal), None);
        sample.broken()
    };
    assert_eq!(stop(12.0001, 15), NONE);
    assert_eq!(stop(12.0001, 11), [CODES]);
    assert_eq!(stop(12.5, 15), [CODES]);
}

#[test]
fn worker_frozen_during_its_stop_has_no_bound_but_needs_a_valid_exit_code() {
    let end = |code| {
        let mut sample = Sample::calm();
        sample.start("worker_4", 1.0).freeze("worker_4", 5.0, 9.0).signal("worker_4", 6.0, "SIGTERM");
        sample.exit("worker_4", 9.2, Some(code), None, Some(drained("worker_4", 3.2)));
        sample.broken()
    };
    assert_eq!(end(0), NONE);
    assert_eq!(end(101), [CODES]);
}

/// As on a secured Kafka, which the witness cannot read.
#[test]
fn one_reader_leaves_the_comparison_of_two_readers_unchecked() {
    let mut it = Recorded::new();
    alter!(it, line: Fact::Begin(begin) => begin.one_reader = true);
    let verdict = it.judged();
    let row = verdict.rows.iter().find(|row| row.name == "two readers read the same records").expect("the row");
    assert_eq!((row.state, row.count), (State::Untested, 0));
    assert_eq!(row.note, "not checked: the records are read by one client");
    assert_eq!(verdict.conclusion, Conclusion::Held);
}
