//! The judge on ledgers that are made up: each promise kept, broken, and just kept.

use serde_json::json;

use crate::task::Receipt;

use super::super::fact::{Answer, Ending, Fact, Kind};
use super::super::judgement::{Conclusion, State};
use super::super::sample::id;
use super::super::texts::AFTERWARDS;
use super::Circumstances;
use super::mutations::{
    AWAY, BUSY as BUSY_ONE, CODES, CUT, DEADLINE, GATEWAY, GIVEN_UP, HUNG as AFTER_FREEZE, IDLE, IN_TIME,
    KILLED as AFTER_KILL, KNOWS, LOST, RECEIPTS, RESTARTED, RIGHT, SAID, SECOND, TWICE,
};
use super::sample::{KILLED, Sample, abandoned, drained, forced};

const NONE: [&str; 0] = [];

fn changed(change: impl FnOnce(&mut Sample)) -> Sample {
    let mut sample = Sample::healthy();
    change(&mut sample);
    sample
}

/// It was never run.
fn is_run_of(fact: &Fact, number: u64) -> bool {
    is_result_of(fact, number) || matches!(fact, Fact::RunBegan { task_id, .. } if *task_id == id(number))
}

fn is_result_of(fact: &Fact, number: u64) -> bool {
    matches!(fact, Fact::RunEnded { task_id, .. } if *task_id == id(number))
}

fn of(outcome: Kind, number: u64) -> Answer {
    Answer { task_id: Some(id(number)), status: Some(504), ..Answer::of(outcome) }
}

/// The calm run, in which this worker has a task of so long in hand at 12.0, which is not finished.
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

// ---- the whole ----

#[test]
fn a_run_that_was_not_audited_or_answered_is_not_held() {
    let sample = changed(|sample| {
        sample.remove(|fact| matches!(fact, Fact::Lag { .. } | Fact::Accepted { .. } | Fact::RunEnded { .. }));
    });
    let verdict = sample.judged_when(&Circumstances::default());
    assert!(matches!(verdict.conclusion, Conclusion::Undecided(_)), "{verdict:#?}");
    assert!(verdict.rows.iter().all(|row| row.state != State::Broken), "{verdict:#?}");
    // The lag was told, and then Kafka failed: what was not read is not lost.
    let sample = changed(|sample| {
        sample.remove(|fact| is_run_of(fact, 50));
    });
    let verdict = sample.judged_when(&Circumstances::default());
    assert!(matches!(verdict.conclusion, Conclusion::Undecided(_)), "{verdict:#?}");
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
fn what_was_cut_short_can_be_held() {
    let sample = changed(|sample| {
        sample.change(|line| {
            if let Fact::End(Ending { cut_short, .. }) = &mut line.fact {
                *cut_short = true;
            }
        });
        // A roll that was under way.
        sample.remove(|fact| matches!(fact, Fact::Carried { action: 2, .. }));
    });
    let verdict = sample.judged();
    assert!(verdict.cut_short && verdict.conclusion == Conclusion::Held, "{verdict:#?}");
}

// ---- P1 and answers ----

#[test]
fn a_task_is_given_up_only_after_its_starts() {
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
        // It also starts late again and again: not what is asked here.
        sample.broken().into_iter().filter(|name| [RIGHT, GIVEN_UP].contains(name)).collect::<Vec<_>>()
    };
    assert_eq!(dead(0), [RIGHT, GIVEN_UP]);
    assert_eq!(dead(4), [RIGHT, GIVEN_UP]);
    assert_eq!(dead(5), NONE);
}

// ---- P2 ----

#[test]
fn one_reason_explains_one_more_run() {
    let mut sample = Sample::healthy();
    sample.begin(KILLED, "worker_2", 10.0, 3).result(KILLED, "worker_2", 10.06, 0.05);
    assert_eq!(sample.broken(), [TWICE], "the kill was the reason of the second run, not of the third");
}

#[test]
fn what_comes_later_is_no_reason() {
    // Given back without a word, and run again; later there is an outage, and its first worker is killed.
    let mut sample = Sample::calm();
    sample.begin(50, "worker_1", 5.98, 1);
    sample.put(15.0, Fact::KafkaAway { until: 16.0 });
    sample.order(1, "kill-worker", "worker_1", 17.0).kill("worker_1", 17.0).start("worker_1", 17.5);
    assert!(sample.broken().contains(&TWICE), "{:?}", sample.broken());
}

#[test]
fn each_reason_is_recognized() {
    let note = |sample: &Sample| {
        assert!(!sample.broken().contains(&TWICE), "{:#?}", sample.row(TWICE));
        sample.row(TWICE).note
    };
    let mut sample = long_task("worker_1", 11_000);
    sample.stop_with("worker_1", 12.5, 6.01, &abandoned("worker_1", 6.01, &[600])).start("worker_1", 18.6);
    restart(&mut sample, "worker_2", 18.51);
    assert_eq!(note(&sample), "1 explained: drain timeout 1 of 1");

    let mut sample = long_task("worker_1", 11_000);
    sample.stop_with("worker_1", 12.5, 0.2, &forced("worker_1", 0.2, &[600])).signal("worker_1", 12.65, "SIGTERM");
    sample.start("worker_1", 12.8);
    restart(&mut sample, "worker_2", 12.7);
    assert_eq!(note(&sample), "1 explained: second signal 1 of 1");

    let mut sample = long_task("worker_1", 500);
    sample.freeze("worker_1", 12.1, 22.1).change(|line| line.at += if line.at > 13.0 { 15.0 } else { 0.0 });
    restart(&mut sample, "worker_2", 26.0);
    assert_eq!(note(&sample), "1 explained: freeze 1 of 1");

    let mut sample = long_task("worker_1", 500);
    sample.kill("broker", 12.1).start("broker", 13.0);
    restart(&mut sample, "worker_2", 13.4);
    assert_eq!(note(&sample), "1 explained: broker 1 of 6");
}

#[test]
fn a_fault_of_a_share_session_explains_what_one_worker_had_in_flight() {
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
    // Another task of the same moment is one too many.
    sample.submit(601, 12.0, 500).accept(601, 12.001).begin(601, "worker_3", 12.05, 1);
    sample.begin(601, "worker_2", 12.4, 2).result(601, "worker_2", 12.46, 0.05).answer(601, "worker_2", 12.47);
    assert_eq!(sample.broken(), [TWICE]);
    assert!(faulty("Produce").broken().contains(&TWICE), "a batch that is sent again is known to Kafka");
}

#[test]
fn a_kill_in_the_instant_of_a_result_is_a_reason_and_one_much_later_is_none() {
    let killed_at = |at: f64| {
        let mut sample = Sample::calm();
        // Request 50 is done by 6.014.
        sample.order(1, "kill-worker", "worker_3", at).kill("worker_3", at).start("worker_3", at + 0.2);
        sample.begin(50, "worker_1", at + 0.01, 2).result(50, "worker_1", at + 0.03, 0.01);
        sample.broken()
    };
    assert_eq!(killed_at(6.4), NONE);
    assert_eq!(killed_at(6.7), [TWICE]);
}

#[test]
fn a_log_that_is_read_late_makes_no_second_run() {
    let mut sample = Sample::healthy();
    // The drill reads of this start 60 ms after the result was in Kafka.
    sample.change(|line| match &line.fact {
        Fact::RunBegan { task_id, .. } if *task_id == id(50) => line.at = 6.074,
        _ => {}
    });
    assert_eq!(sample.broken(), NONE);
    assert_eq!(sample.row(TWICE).count, 1, "the one after the kill");
}

// ---- P3 to P7 ----

#[test]
fn an_idle_worker_has_a_second() {
    let stop = |took: f64| {
        let mut sample = Sample::calm();
        sample.stop("worker_1", 15.0, took).start("worker_1", 17.0);
        sample
    };
    assert_eq!(stop(0.99).broken(), NONE);
    let sample = stop(1.2);
    assert_eq!(sample.broken(), [IDLE]);
    let finding = &sample.row(IDLE).findings[0];
    assert_eq!(finding.ids, ["worker_1"]);
    let lines = [
        sample.line(|fact| matches!(fact, Fact::Signalled { process, .. } if process == "worker_1")),
        sample.line(|fact| matches!(fact, Fact::Exited { process, .. } if process == "worker_1")),
    ];
    assert_eq!(finding.lines, lines);
}

#[test]
fn a_busy_worker_has_the_time_of_its_task_and_a_second() {
    let stop = |took: f64| {
        let mut sample = Sample::calm();
        sample.task(600, "worker_1", 12.0, 2000);
        let receipt = Receipt { tasks_finished: 1, ..drained("worker_1", took) };
        sample.stop_with("worker_1", 12.5, took, &receipt).start("worker_1", 18.0);
        sample.broken()
    };
    assert_eq!(stop(2.4), NONE);
    assert_eq!(stop(2.7), [BUSY_ONE]);
}

#[test]
fn what_a_worker_lost_in_an_outage_is_not_in_its_hand_once_another_has_begun_it() {
    let stop = |outage: bool, elsewhere: f64| {
        let mut sample = long_task("worker_1", 5000);
        if outage {
            sample.order(1, "restart-broker", "broker", 12.3).kill("broker", 12.3).start("broker", 12.8);
        }
        restart(&mut sample, "worker_2", elsewhere);
        sample.stop("worker_1", 14.0, 0.05).start("worker_1", 14.5);
        sample.broken().contains(&BUSY_ONE)
    };
    assert!(!stop(true, 13.6));
    assert!(stop(true, 14.1), "it was given up at the signal");
    assert!(stop(false, 13.6), "nothing has taken it away");
}

#[test]
fn what_a_handler_takes_by_itself_is_the_time_of_its_task() {
    // A handler of others, which takes longer than the drill has asked for.
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
fn a_drain_ends_at_its_timeout_with_exit_code_3() {
    let stop = |took: f64, receipt: &Receipt, again: f64| {
        let mut sample = long_task("worker_1", 11_000);
        sample.stop_with("worker_1", 12.5, took, receipt).start("worker_1", 19.7);
        restart(&mut sample, "worker_2", 12.5 + took + again);
        sample.broken()
    };
    assert_eq!(stop(6.05, &abandoned("worker_1", 6.05, &[600]), 0.01), NONE);
    // Before it has left.
    assert_eq!(stop(6.5, &abandoned("worker_1", 6.5, &[600]), -0.4), NONE);
    assert_eq!(stop(7.1, &abandoned("worker_1", 7.1, &[600]), -0.5), [DEADLINE]);
    assert_eq!(stop(6.05, &abandoned("worker_1", 6.05, &[600]), 1.8), NONE);
    // Nobody is free any more, then.
    let mut sample = long_task("worker_1", 11_000);
    sample.change(|line| line.at += if line.at > 13.0 { 5.0 } else { 0.0 });
    sample.stop_with("worker_1", 12.5, 6.05, &abandoned("worker_1", 6.05, &[600])).start("worker_1", 21.5);
    restart(&mut sample, "worker_2", 21.0);
    assert_eq!(sample.broken(), [RESTARTED]);
    // With exit code 0, as if all were done.
    let lie = Receipt { outcome: "drained".to_owned(), exit_code: 0, ..abandoned("worker_1", 6.05, &[600]) };
    assert_eq!(stop(6.05, &lie, 0.01), [CODES]);
    assert_eq!(stop(6.05, &drained("worker_1", 6.05), 0.01), [TWICE, CODES, RECEIPTS]);
}

#[test]
fn a_worker_that_does_not_heed_its_timeout_is_told() {
    let mut sample = Sample::calm();
    sample.change(|line| line.at += if line.at > 13.0 { 15.0 } else { 0.0 });
    sample.task(600, "worker_1", 12.0, 11_000);
    let receipt = Receipt { tasks_finished: 1, ..drained("worker_1", 10.6) };
    sample.stop_with("worker_1", 12.5, 10.6, &receipt).start("worker_1", 24.0);
    assert_eq!(sample.broken(), [DEADLINE, CODES]);
}

#[test]
fn a_second_signal_ends_it_within_a_second_with_exit_code_4() {
    let stop = |left: f64, receipt: &Receipt| {
        let mut sample = long_task("worker_1", 4000);
        sample.stop_with("worker_1", 12.5, left, receipt).signal("worker_1", 12.65, "SIGTERM");
        sample.start("worker_1", 17.5);
        restart(&mut sample, "worker_2", 12.5 + left + 0.01);
        sample.broken()
    };
    assert_eq!(stop(0.2, &forced("worker_1", 0.2, &[600])), NONE);
    assert_eq!(stop(1.3, &forced("worker_1", 1.3, &[600])), [SECOND]);
    let code_0 = Receipt { exit_code: 0, ..forced("worker_1", 0.2, &[600]) };
    assert_eq!(stop(0.2, &code_0), [CODES]);
    // It drains on.
    let mut sample = Sample::calm();
    sample.task(600, "worker_1", 12.0, 3000);
    let receipt = Receipt { tasks_finished: 1, ..drained("worker_1", 2.6) };
    sample.stop_with("worker_1", 12.5, 2.6, &receipt).signal("worker_1", 12.65, "SIGTERM").start("worker_1", 15.5);
    assert_eq!(sample.broken(), [SECOND]);
}

#[test]
fn a_second_signal_that_finds_nothing_to_give_up_may_say_so() {
    // Forced, and yet everything is done.
    let mut sample = Sample::calm();
    let receipt = Receipt { exit_code: 0, ..forced("worker_1", 0.04, &[]) };
    sample.stop_with("worker_1", 15.0, 0.04, &receipt).signal("worker_1", 15.02, "SIGTERM").start("worker_1", 15.5);
    assert_eq!(sample.broken(), NONE);
    // After its end, before anybody knew.
    let mut sample = Sample::calm();
    sample.order(1, "second-signal", "worker_1", 15.0).stop("worker_1", 15.0, 0.04);
    sample
        .put(15.041, Fact::Signalled { process: "worker_1".to_owned(), signal: "SIGTERM".to_owned(), action: Some(1) });
    sample.start("worker_1", 15.5);
    // The drill learns of the end last.
    sample.change(|line| {
        if matches!(&line.fact, Fact::Exited { process, .. } if process == "worker_1") && line.at < 16.0 {
            line.at = 15.04;
        }
    });
    let mut lines = sample.ordered();
    let exit = lines.iter().position(|line| (line.at - 15.04).abs() < 1e-9).expect("its end");
    lines.swap(exit, exit + 1);
    let verdict = super::judge(&lines, &Circumstances { audited: true, ..Circumstances::default() });
    assert_eq!(verdict.conclusion, Conclusion::Held, "{:#?}", verdict.rows);
}

#[test]
fn without_kafka_it_stops_all_the_same() {
    let stop = |took: f64, code: u8| {
        let mut sample = Sample::calm();
        sample.kill("broker", 12.0).start("broker", 18.4);
        let receipt = Receipt { exit_code: code, ..drained("worker_1", took) };
        sample.stop_with("worker_1", 12.5, took, &receipt).start("worker_1", 19.0);
        sample.remove(|fact| matches!(fact, Fact::Notified { status, .. } if status == "shutdown_started"));
        sample.change(|line| {
            if let Fact::Exited { receipt: Some(receipt), .. } = &mut line.fact
                && receipt["exit_code"] == 3
            {
                receipt["outcome"] = json!("abandoned");
            }
        });
        sample.broken().into_iter().filter(|name| ![SAID, RECEIPTS].contains(name)).collect::<Vec<_>>()
    };
    assert_eq!(stop(4.9, 0), NONE);
    assert_eq!(stop(5.2, 0), [AWAY]);
    // It had nothing that it could give up.
    assert_eq!(stop(4.9, 3), [CODES]);
}

#[test]
fn one_that_has_not_started_has_five_seconds() {
    let stop = |took: f64| {
        let mut sample = Sample::calm();
        sample.put(12.0, Fact::Started { process: "worker_4".to_owned(), pid: 9 });
        sample.signal("worker_4", 12.1, "SIGTERM").exit("worker_4", 12.1 + took, Some(0), None, None);
        sample.broken()
    };
    assert_eq!(stop(4.9), NONE);
    assert_eq!(stop(5.1), ["it stops though it has not started"]);
}

#[test]
fn one_that_was_started_this_instant_may_end_by_the_signal() {
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
fn one_that_is_told_to_stop_while_frozen_has_no_bound_but_ends_well() {
    let end = |code| {
        let mut sample = Sample::calm();
        sample.start("worker_4", 1.0).freeze("worker_4", 5.0, 9.0).signal("worker_4", 6.0, "SIGTERM");
        sample.exit("worker_4", 9.2, Some(code), None, Some(drained("worker_4", 3.2)));
        sample.broken()
    };
    assert_eq!(end(0), NONE);
    assert_eq!(end(101), [CODES]);
}

// ---- notifications and receipts ----

// ---- P8 ----

#[test]
fn the_tasks_of_a_killed_worker_start_elsewhere_within_half_a_second() {
    let again = |after: f64| {
        let mut sample = long_task("worker_1", 2000);
        sample.order(1, "kill-worker", "worker_1", 13.0).kill("worker_1", 13.0);
        restart(&mut sample, "worker_2", 13.0 + after);
        sample.remove(|fact| matches!(fact, Fact::Signalled { process, action: None, .. } if process == "worker_1"));
        // Its second stop is that of nobody.
        sample.lines.retain(
            |line| !matches!(&line.fact, Fact::Exited { process, .. } if process == "worker_1" && line.at > 19.0),
        );
        sample
    };
    assert_eq!(again(0.4).broken(), NONE);
    let sample = again(0.6);
    assert_eq!(sample.broken(), [AFTER_KILL]);
    assert_eq!(sample.row(AFTER_KILL).findings[0].ids, [id(600), "worker_1".to_owned()]);
}

#[test]
fn nobody_can_start_what_nobody_has_a_hand_for() {
    // Both others have long tasks in hand, but for a moment, in which a task that came before is started.
    let mut sample = long_task("worker_1", 2000);
    sample.order(1, "kill-worker", "worker_1", 13.0).kill("worker_1", 13.0).start("worker_1", 14.0);
    sample.task(601, "worker_2", 12.2, 900).task(602, "worker_2", 13.108, 2000).task(603, "worker_3", 12.2, 3000);
    restart(&mut sample, "worker_1", 14.2);
    assert_eq!(sample.broken(), NONE);
    // One of them was idle all the time.
    sample.remove(|fact| matches!(fact, Fact::RunBegan { task_id, .. } | Fact::RunEnded { task_id, .. } | Fact::Accepted { task_id, .. } if *task_id == id(603)));
    sample.remove(|fact| matches!(fact, Fact::Submitted { number: 603, .. } | Fact::Answered { number: 603, .. }));
    assert_eq!(sample.broken(), [AFTER_KILL]);
}

#[test]
fn a_backlog_is_no_time_in_which_a_worker_was_free() {
    // All tasks come at once, and each worker has one of 40 ms after the other.
    let backlog = |between_seconds: f64| {
        let mut sample = Sample::calm();
        for number in 600..690 {
            let (round, worker) = ((number - 600) / 3, format!("worker_{}", 1 + number % 3));
            let at = 12.01 + round as f64 * (0.04 + between_seconds);
            sample.submit(number, 12.0, 40).accept(number, 12.001).begin(number, &worker, at, 1);
            sample.result(number, &worker, at + 0.04, 0.04).answer(number, &worker, at + 0.05);
        }
        sample.broken()
    };
    assert_eq!(backlog(0.09), NONE);
    assert_eq!(backlog(0.15), [IN_TIME]);
}

#[test]
fn tasks_wait_while_a_restarted_broker_reads_the_share_state() {
    let started = |state_read_ms: u64, after_seconds: f64| {
        let mut sample = Sample::calm();
        sample.change(|line| {
            if let Fact::Begin(begin) = &mut line.fact {
                begin.pauses.state_read_ms = state_read_ms;
            }
        });
        sample.order(1, "restart-broker", "broker", 11.5).signal("broker", 11.5, "SIGTERM");
        sample.exit("broker", 11.8, Some(0), None, None).start("broker", 11.9);
        sample.submit(600, 12.1, 10).accept(600, 12.11).begin(600, "worker_1", 12.0 + after_seconds, 1);
        sample.result(600, "worker_1", 12.02 + after_seconds, 0.01).answer(600, "worker_1", 12.03 + after_seconds);
        sample.broken()
    };
    assert_eq!(started(0, 3.9), NONE);
    assert_eq!(started(0, 4.2), [IN_TIME]);
    assert_eq!(started(3000, 6.9), NONE);
    assert_eq!(started(3000, 7.2), [IN_TIME]);
}

#[test]
fn a_result_that_comes_just_after_the_death_of_its_worker_is_no_loss() {
    let mut sample = long_task("worker_1", 990);
    sample.order(1, "kill-worker", "worker_1", 13.0).kill("worker_1", 13.0).start("worker_1", 14.0);
    sample.result(600, "worker_1", 13.05, 0.99).answer(600, "worker_1", 13.06);
    assert_eq!(sample.broken(), NONE);
}

#[test]
fn the_tasks_of_a_hung_worker_start_elsewhere_within_twenty_seconds() {
    let again = |after: f64| {
        let mut sample = long_task("worker_1", 2000);
        sample.change(|line| line.at += if line.at > 12.5 { 30.0 } else { 0.0 });
        sample.order(1, "freeze-worker", "worker_1", 12.6).freeze("worker_1", 12.6, 42.0);
        restart(&mut sample, "worker_2", 12.6 + after);
        sample.broken()
    };
    assert_eq!(again(19.5), NONE);
    assert_eq!(again(20.5), [AFTER_FREEZE]);
}

// ---- P9 and P10 ----

#[test]
fn a_gateway_answers_and_stops() {
    let stop = |took: f64, code: i32, answered: f64| {
        let mut sample = Sample::calm();
        sample.change(|line| line.at += if line.at > 11.5 { 30.0 } else { 0.0 });
        // Of gateway_1, since it is even.
        sample.submit(600, 11.6, 1000).accept(600, 11.61).begin(600, "worker_1", 11.62, 1);
        sample.result(600, "worker_1", 11.6 + answered - 0.01, 0.0).answer(600, "worker_1", 11.6 + answered);
        sample.signal("gateway_1", 12.0, "SIGTERM").exit("gateway_1", 12.0 + took, Some(code), None, None);
        sample.start("gateway_1", 40.0).view("gateway_1", 40.5, &["worker_1", "worker_2", "worker_3"]);
        sample.broken()
    };
    assert_eq!(stop(0.9, 0, 0.1), NONE);
    assert_eq!(stop(1.1, 0, 0.1), [GATEWAY], "no caller waited");
    // A caller waited until 2 s after the request, which is 1.6 s after the signal.
    assert_eq!(stop(2.5, 0, 2.0), NONE);
    assert_eq!(stop(2.7, 0, 2.0), [GATEWAY]);
    // A caller that waited for longer than a gateway may.
    assert_eq!(stop(25.9, 0, 27.0), NONE);
    assert_eq!(stop(26.1, 0, 27.0), [GATEWAY]);
}

#[test]
fn a_caller_is_cut_off_only_by_a_kill() {
    let cut = Answer { why: Some("connection closed".to_owned()), ..Answer::of(Kind::Unknown) };
    let mut sample = Sample::healthy();
    sample.answered(51, &cut);
    sample.remove(|fact| matches!(fact, Fact::Accepted { number: Some(51), .. }));
    sample.remove(
        |fact| matches!(fact, Fact::RunBegan { task_id, .. } | Fact::RunEnded { task_id, .. } if *task_id == id(51)),
    );
    assert_eq!(sample.broken(), [CUT]);
    let line = sample.line(|fact| matches!(fact, Fact::Submitted { number: 51, .. }));
    assert!(sample.row(CUT).findings[0].lines.contains(&line));
    // Of gateway_2, at 6.1.
    sample.kill("gateway_2", 6.105).start("gateway_2", 6.3).view(
        "gateway_2",
        6.5,
        &["worker_1", "worker_2", "worker_3"],
    );
    assert_eq!(sample.broken(), NONE);
    let mut sample = Sample::healthy();
    sample.remove(|fact| matches!(fact, Fact::Answered { number: 51, .. }));
    assert!(sample.broken().contains(&CUT));
}

#[test]
fn a_new_gateway_knows_the_fleet_within_three_seconds() {
    let shown = |at: f64| {
        let mut sample = Sample::calm();
        sample.signal("gateway_1", 10.05, "SIGTERM").exit("gateway_1", 10.07, Some(0), None, None);
        sample.start("gateway_1", 10.1).view("gateway_1", 10.3, &["worker_1"]);
        sample.view("gateway_1", at, &["worker_1", "worker_2", "worker_3"]);
        sample
    };
    assert_eq!(shown(13.05).broken(), NONE);
    assert_eq!(shown(13.05).row(KNOWS).state, State::Held);
    assert_eq!(shown(13.15).broken(), [KNOWS]);
    assert_eq!(shown(13.15).row(KNOWS).findings[0].ids, ["gateway_1"]);
}

// ---- fleets that are known by hearsay ----

#[test]
fn a_fleet_that_others_started_is_held_when_nothing_happens() {
    let verdict = Sample::hearsay().judged();
    assert_eq!(verdict.conclusion, Conclusion::Held, "{:#?}", verdict.rows);
    assert!(verdict.faults.is_empty());
}

#[test]
fn one_that_announces_its_stop_is_stopped_and_one_that_falls_silent_is_killed() {
    let mut sample = Sample::hearsay();
    sample.change(|line| match &line.fact {
        Fact::Notified { worker, .. } if worker == "worker_1" && line.at > 12.0 => line.fact = Fact::LoadEnded,
        Fact::Notified { worker, .. } if worker == "worker_2" && line.at > 12.5 => line.fact = Fact::LoadEnded,
        _ => {}
    });
    sample.remove(|fact| matches!(fact, Fact::LoadEnded));
    sample.say("worker_1", 1, 12.0, "shutdown_started", None);
    sample.say("worker_1", 1, 12.05, "shutdown_completed", Some(drained("worker_1", 0.05)));
    sample.view("gateway_1", 18.0, &["worker_3"]);
    let verdict = sample.judged();
    assert_eq!(verdict.conclusion, Conclusion::Held, "{:#?}", verdict.rows);
    // Whether the silent worker was killed or died by itself is not known: it is not counted as a fault.
    assert!(verdict.faults.is_empty() && verdict.rows.iter().all(|row| !["P3", "P8", "P9"].contains(&row.promise)));
}

#[test]
fn every_worker_of_a_fleet_can_be_killed_at_once() {
    // Nobody is left whose words would show that the others are silent; each has run what the one before had.
    let mut sample = Sample::hearsay();
    sample.lines.retain(|line| !matches!(line.fact, Fact::Notified { .. }) || line.at < 11.5);
    sample.submit(600, 10.9, 900).accept(600, 10.91).view("gateway_1", 18.0, &[]);
    for (at, worker, delivery) in [(11.0, "worker_3", 2), (11.4, "worker_2", 3)] {
        sample.put(at, Fact::Restarted { task_id: id(600), worker: worker.to_owned(), delivery, offset: 0 });
    }
    sample.result(600, "worker_2", 11.49, 0.09).answer(600, "worker_2", 11.5);
    assert_eq!(sample.broken(), NONE);
    assert!(sample.row(TWICE).note.contains("kill"), "{:?}", sample.row(TWICE));
}

#[test]
fn where_nobody_works_what_waits_is_not_lost() {
    let mut sample = Sample::hearsay();
    sample.lines.retain(|line| !matches!(line.fact, Fact::Notified { .. }) || line.at < 11.5);
    sample.view("gateway_1", 18.0, &[]);
    sample.submit(600, 11.6, 0).accept(600, 11.61).answer(600, "", 11.9).answered(600, &of(Kind::Accepted, 600));
    let Conclusion::Undecided(why) = sample.judged().conclusion else { panic!("{:#?}", sample.judged().rows) };
    assert!(why.starts_with("1 wait in Kafka"), "{why}");
    // Somebody works.
    sample.beats("worker_4", 4, 11.5, 20.9);
    assert_eq!(sample.broken(), [LOST]);
    // What a gateway said to be in Kafka is not there.
    sample.remove(|fact| matches!(fact, Fact::Notified { worker, .. } if worker == "worker_4"));
    sample.remove(|fact| matches!(fact, Fact::Accepted { number: Some(600), .. }));
    assert_eq!(sample.broken(), [LOST]);
}

#[test]
fn one_that_the_drill_told_to_stop_and_that_fell_silent_is_told() {
    let mut sample = Sample::hearsay();
    sample
        .lines
        .retain(|line| !matches!(&line.fact, Fact::Notified { worker, .. } if worker == "worker_1" && line.at > 12.0));
    sample.order(1, "stop-worker", "worker_1", 12.0).signal("worker_1", 12.0, "SIGTERM");
    sample.say("worker_1", 1, 12.01, "shutdown_started", None).view("gateway_1", 18.0, &["worker_2", "worker_3"]);
    assert_eq!(sample.broken(), [SAID]);
    sample.signal("worker_1", 12.5, "SIGKILL");
    assert_eq!(sample.broken(), NONE);
}

#[test]
fn lives_of_one_name_are_told_apart_by_hearsay() {
    // Killed twice, started again each time under its name; the second time it had run a task.
    let mut sample = Sample::hearsay();
    sample
        .lines
        .retain(|line| !matches!(&line.fact, Fact::Notified { worker, .. } if worker == "worker_1" && line.at > 12.0));
    sample.beats("worker_1", 2, 12.6, 14.5).beats("worker_1", 3, 15.5, 20.9);
    sample.order(1, "kill-worker", "worker_1", 12.1).signal("worker_1", 12.1, "SIGKILL");
    sample.order(2, "kill-worker", "worker_1", 15.0).signal("worker_1", 15.0, "SIGKILL");
    assert_eq!(sample.broken(), NONE);
    assert_eq!(sample.judged().faults[0].bitten, 2);
}

// ---- size ----
