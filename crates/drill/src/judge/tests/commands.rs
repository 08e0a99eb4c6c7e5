//! Fleets on which commands act: a command takes effect between its begin and its end.

use super::super::actions::NAME as HAPPENED;
use super::*;

impl Sample {
    /// A command of action 1 that sends `signal` at some time in this interval.
    fn command(&mut self, what: &str, process: &str, signal: &str, (from, until): (f64, f64)) -> &mut Self {
        self.order(1, what, process, from).change(|line| {
            if let Fact::Carried { .. } = line.fact {
                line.at = until;
            }
        });
        self.act(process, signal, (from, until))
    }

    fn exits_with(&mut self, status: Option<i32>) {
        self.change(|line| {
            if let Fact::Exited { code, .. } = &mut line.fact {
                *code = status;
            }
        });
    }

    fn act(&mut self, process: &str, signal: &str, (from, until): (f64, f64)) -> &mut Self {
        let (process, signal, action, until) = (process.to_owned(), signal.to_owned(), Some(1), Some(until));
        self.put(from, Fact::Signalled { process, signal, action, until })
    }

    /// Removes the status records of worker_1 after `from`; the next process of its name begins at `next`.
    fn silent(&mut self, from: f64, next: f64) -> &mut Self {
        self.lines.retain(
            |line| !matches!(&line.fact, Fact::Notified { worker, .. } if worker == "worker_1" && line.at > from),
        );
        self.beats("worker_1", 2, next, 20.9)
    }

    /// A long task that worker_1 has in flight from 11.9 on, and that starts again on worker_2.
    fn long_task(&mut self, again: f64) -> &mut Self {
        self.submit(600, 11.89, 4000).accept(600, 11.9);
        self.record_tasks(12.3)
            .put(again, Fact::Restarted { task_id: id(600), worker: "worker_2".to_owned(), delivery: 2, offset: 0 });
        self.result(600, "worker_2", again + 4.0, 4.0).answer(600, "worker_2", again + 4.01)
    }

    fn record_tasks(&mut self, at: f64) -> &mut Self {
        self.change(|line| match &mut line.fact {
            Fact::Notified { worker, current_tasks, .. }
                if worker == "worker_1" && (at - 0.01..at + 0.01).contains(&line.at) =>
            {
                current_tasks.push(id(600));
            }
            _ => {}
        })
    }
}

#[test]
fn slow_command_does_not_make_a_stop_late() {
    let mut sample = Sample::hearsay();
    sample.silent(12.4, 15.0).command("stop-worker", "worker_1", "SIGTERM", (12.0, 14.0));
    sample.say("worker_1", 1, 13.0, "shutdown_started", None);
    sample.say("worker_1", 1, 13.05, "shutdown_completed", Some(drained("worker_1", 0.05)));
    sample.exit("worker_1", 14.0, Some(0), None, None);
    assert_eq!(sample.broken(), NONE);
    assert_eq!((sample.row(IDLE).worst.as_str(), sample.row(CODES).count), ("50 ms", 1));
    // Without a command that prints the exit code, the receipt has it.
    sample.exits_with(None);
    assert_eq!((sample.broken(), sample.row(CODES).count), (Vec::new(), 1));
    sample.exits_with(Some(1));
    assert_eq!(sample.broken(), [CODES, RECEIPTS]);
}

#[test]
fn stop_without_notifications_is_a_finding_and_its_time_is_not_judged() {
    let mut sample = Sample::hearsay();
    sample.silent(12.4, 15.0).command("stop-worker", "worker_1", "SIGTERM", (12.0, 14.0));
    sample.exit("worker_1", 14.0, Some(0), None, None);
    assert_eq!((sample.broken(), sample.row(IDLE).count), (vec![SAID], 0));
    // Without Kafka there are no notifications.
    sample.put(11.8, Fact::KafkaAway { until: 14.5 });
    assert_eq!(sample.broken(), NONE);
    assert_eq!((sample.row(AWAY).count, sample.row(CODES).count), (1, 1));
}

#[test]
fn late_second_signal_of_a_command_breaks_no_bound() {
    let stop = |took: f64| {
        let mut sample = Sample::hearsay();
        sample.silent(12.4, 16.0).command("second-signal", "worker_1", "SIGTERM", (12.0, 15.0));
        sample.act("worker_1", "SIGTERM", (12.0, 15.0)).say("worker_1", 1, 12.5, "shutdown_started", None);
        sample.submit(600, 11.89, 4000).accept(600, 11.9);
        let receipt = forced("worker_1", took, &[600]);
        sample.say("worker_1", 1, 12.5 + took, "shutdown_completed", Some(receipt));
        sample.exit("worker_1", 15.0, Some(4), None, None);
        sample.result(600, "worker_2", 19.0, 4.0).answer(600, "worker_2", 19.01);
        (sample.broken(), sample.row(SECOND).count, sample.row(TWICE).note)
    };
    let explained = "1 explained: second signal 1 of 1".to_owned();
    assert_eq!(stop(0.4), (Vec::new(), 1, explained.clone()));
    assert_eq!(stop(2.0), (Vec::new(), 0, explained), "the time of the second signal is unknown");
}

#[test]
fn kill_is_a_cause_from_the_last_sign_of_its_worker_to_the_end_of_its_command() {
    let killed = |again: f64| {
        let mut sample = Sample::hearsay();
        sample.long_task(again).silent(12.4, 15.0).command("kill-worker", "worker_1", "SIGKILL", (12.0, 13.2));
        sample.exit("worker_1", 13.2, None, Some(9), None).clone()
    };
    // The last status record has the time 12.3.
    let soon = killed(12.7);
    assert_eq!((soon.broken(), soon.row(AFTER_KILL).count), (Vec::new(), 1));
    assert!(soon.row(TWICE).note.contains("kill 1 of 1"), "{}", soon.row(TWICE).note);
    let later = killed(13.5);
    assert_eq!((later.broken(), later.row(AFTER_KILL).count), (Vec::new(), 0), "it may have been killed at 13.2");
    assert_eq!(killed(13.8).broken(), [AFTER_KILL]);
}

#[test]
fn command_without_effect_makes_the_verdict_undecided() {
    for (what, signal) in [("kill-worker", "SIGKILL"), ("stop-worker", "SIGTERM")] {
        let mut sample = Sample::hearsay();
        sample.command(what, "worker_1", signal, (12.0, 12.2)).exit("worker_1", 12.2, None, None, None);
        assert_eq!(sample.broken(), [HAPPENED], "{what}");
        assert!(matches!(sample.judged().conclusion, Conclusion::Undecided(_)));
    }
    let mut sample = Sample::hearsay();
    sample.command("freeze-worker", "worker_1", "SIGSTOP", (12.0, 12.2)).act("worker_1", "SIGCONT", (18.0, 18.2));
    assert_eq!(sample.broken(), [HAPPENED]);
    let mut sample = Sample::hearsay();
    sample.command("stop-gateway", "gateway_1", "SIGTERM", (5.0, 5.1)).exit("gateway_1", 5.1, None, None, None);
    sample.start("gateway_1", 7.0).view("gateway_1", 7.5, &["worker_1", "worker_2", "worker_3"]);
    assert_eq!(sample.broken(), [HAPPENED]);
}

#[test]
fn worker_can_be_killed_before_its_first_status_record() {
    let mut sample = Sample::hearsay();
    sample.lines.retain(|line| !matches!(&line.fact, Fact::Notified { worker, .. } if worker == "worker_1"));
    sample.beats("worker_1", 2, 1.4, 20.9).command("kill-worker", "worker_1", "SIGKILL", (0.5, 0.8));
    sample.exit("worker_1", 0.8, None, None, None);
    assert_eq!((sample.broken(), sample.judged().faults[0].bitten), (Vec::new(), 1));
}

#[test]
fn freeze_lasts_from_the_begin_of_one_command_to_the_end_of_another() {
    let mut sample = Sample::hearsay();
    sample.change(|line| line.at += if line.at > 20.0 { 20.0 } else { 0.0 });
    sample.beats("worker_2", 1, 20.9, 40.0).beats("worker_3", 1, 20.9, 40.0);
    // The last status record, of 12.3, comes during the command.
    sample.long_task(27.5).silent(12.4, 60.0).beats("worker_1", 1, 31.5, 40.0);
    sample.command("freeze-worker", "worker_1", "SIGSTOP", (12.0, 13.0)).act("worker_1", "SIGCONT", (30.0, 31.0));
    assert_eq!(sample.broken(), NONE);
    assert!(sample.row(TWICE).note.contains("freeze 1 of"), "{}", sample.row(TWICE).note);
    assert_eq!(sample.row(AFTER_FREEZE).count, 1);
}

#[test]
fn slow_command_does_not_make_a_gateway_late() {
    let mut sample = Sample::hearsay();
    sample
        .remove(|fact| matches!(fact, Fact::Submitted { number, .. } if number % 2 == 0 && (40..100).contains(number)));
    sample.command("stop-gateway", "gateway_1", "SIGTERM", (5.0, 8.0)).exit("gateway_1", 8.0, None, None, None);
    sample.put(9.0, Fact::Started { process: "gateway_1".to_owned(), pid: 0 });
    sample.put(11.5, Fact::Ready { process: "gateway_1".to_owned() });
    sample.view("gateway_1", 12.5, &["worker_1", "worker_2", "worker_3"]);
    assert_eq!(sample.broken(), NONE);
    assert_eq!((sample.row(GATEWAY).count, sample.row(KNOWS).count), (0, 0), "its start began 3.5 s before");
    // One tested row of the promise is enough, because others cannot be seen. Here no request met the signal.
    assert_eq!(sample.row(CUT).count, 0);
    sample.submit(600, 4.9, 300).accept(600, 4.91).result(600, "worker_2", 5.3, 0.3).answer(600, "worker_2", 5.31);
    assert_eq!((sample.broken(), sample.row(CUT).count), (Vec::new(), 1));
    let tests = vec!["P9".to_owned()];
    sample.change(|line| {
        if let Fact::Begin(begin) = &mut line.fact {
            begin.tests.clone_from(&tests);
        }
    });
    assert_eq!(sample.judged().conclusion, Conclusion::Held);
    sample.exit("gateway_1", 8.0, Some(1), None, None);
    assert_eq!(sample.broken(), [GATEWAY]);
}

#[test]
fn kafka_outage_excuses_refusals_of_a_gateway_that_no_action_hits() {
    let refused = |from: f64, until: f64| {
        let mut sample = Sample::hearsay();
        sample.command("freeze-broker", "broker", "SIGSTOP", (from, from + 0.2));
        sample.act("broker", "SIGCONT", (until, until + 0.2));
        let unknown = Answer { status: Some(503), retry_after: true, ..of(Kind::Unknown, 600) };
        sample.submit(600, 13.1, 0).answer(600, "", 16.0).answered(600, &unknown);
        sample.lines.retain(|line| !matches!(line.fact, Fact::Notified { .. }) || !(13.1..15.9).contains(&line.at));
        sample.broken()
    };
    assert_eq!(refused(12.9, 16.0), NONE);
    assert_eq!(refused(5.0, 6.0), [super::super::service::REFUSALS, HAPPENED]);
}

#[test]
fn caller_that_is_cut_off_without_a_cause_breaks_its_promise() {
    let cut = |at: f64| {
        let mut sample = Sample::hearsay();
        sample.command("stop-gateway", "gateway_1", "SIGTERM", (5.0, 5.4)).exit("gateway_1", 5.4, Some(0), None, None);
        sample.start("gateway_1", 6.0).view("gateway_1", 6.5, &["worker_1", "worker_2", "worker_3"]);
        let unknown = Answer { status: None, ..of(Kind::Unknown, 600) };
        sample.submit(600, at, 0).answer(600, "", at + 0.1).answered(600, &unknown);
        sample.row(CUT)
    };
    assert!(cut(5.1).findings.is_empty() && cut(5.1).count > 0);
    assert_eq!(cut(15.0).findings.len(), 1);
}

#[test]
fn worker_stopped_before_its_first_status_record_needs_no_notifications() {
    let mut sample = Sample::hearsay();
    sample.lines.retain(|line| !matches!(&line.fact, Fact::Notified { worker, .. } if worker == "worker_1"));
    sample.beats("worker_1", 2, 1.4, 20.9).command("stop-worker", "worker_1", "SIGTERM", (0.5, 0.8));
    sample.exit("worker_1", 0.8, Some(0), None, None);
    assert_eq!(sample.broken(), NONE);
}

#[test]
fn kill_that_begins_before_the_first_status_record_of_its_worker_is_its_own() {
    let mut sample = Sample::hearsay();
    // The process before it stops at 12.5; the killed process says its first word during the command.
    sample.silent(12.4, 60.0).command("kill-worker", "worker_1", "SIGKILL", (14.9, 15.2));
    sample.say("worker_1", 1, 12.45, "shutdown_started", None);
    sample.say("worker_1", 1, 12.5, "shutdown_completed", Some(drained("worker_1", 0.05)));
    sample.say("worker_1", 2, 15.0, "worker_started", None).exit("worker_1", 15.2, None, Some(9), None);
    assert_eq!(sample.broken(), NONE);
}

#[test]
fn signal_of_a_failed_action_is_no_first_of_two() {
    let mut sample = Sample::hearsay();
    sample.silent(12.4, 16.0).order(2, "stop-worker", "worker_1", 11.0).change(|line| {
        if let Fact::Carried { action: 2, done, .. } = &mut line.fact {
            *done = false;
        }
    });
    let (process, signal) = ("worker_1".to_owned(), "SIGTERM".to_owned());
    sample.put(11.0, Fact::Signalled { process, signal, action: Some(2), until: Some(11.2) });
    sample.command("stop-worker", "worker_1", "SIGTERM", (12.0, 14.0));
    sample.submit(600, 12.9, 500).accept(600, 12.91).result(600, "worker_1", 13.5, 0.5).answer(600, "worker_1", 13.51);
    sample.say("worker_1", 1, 13.0, "shutdown_started", None);
    sample.say("worker_1", 1, 13.6, "shutdown_completed", Some(drained("worker_1", 0.6)));
    sample.exit("worker_1", 14.0, Some(0), None, None);
    assert_eq!(sample.row(BUSY_STOP).count, 1);
}

#[test]
fn action_of_several_commands_is_done_only_if_all_are() {
    let mut sample = Sample::hearsay();
    sample.command("restart-worker", "worker_1", "SIGTERM", (12.0, 12.4));
    sample.put(13.0, Fact::Carried { action: 1, done: false, detail: "start-worker failed".to_owned() });
    sample.put(14.0, Fact::Carried { action: 1, done: true, detail: String::new() });
    let row = sample.row(HAPPENED);
    assert!(row.findings.iter().any(|finding| finding.what.contains("start-worker failed")), "{row:?}");
}

#[test]
fn second_signal_after_the_drain_is_no_test_of_it() {
    let mut sample = Sample::hearsay();
    sample.silent(12.4, 16.0).command("second-signal", "worker_1", "SIGTERM", (12.0, 15.0));
    sample.act("worker_1", "SIGTERM", (12.0, 15.0)).say("worker_1", 1, 12.5, "shutdown_started", None);
    sample.submit(600, 12.4, 500).accept(600, 12.41).result(600, "worker_1", 13.0, 0.5).answer(600, "worker_1", 13.01);
    sample.say("worker_1", 1, 13.1, "shutdown_completed", Some(drained("worker_1", 0.6)));
    sample.exit("worker_1", 15.0, Some(0), None, None);
    assert_eq!(sample.row(SECOND).count, 0);
}

#[test]
fn failed_start_of_a_gateway_excuses_refusals_until_the_next_start() {
    let refused = |ready: Option<f64>| {
        let mut sample = Sample::hearsay();
        sample.command("stop-gateway", "gateway_1", "SIGTERM", (5.0, 5.4)).exit("gateway_1", 5.4, Some(0), None, None);
        sample.put(6.0, Fact::Started { process: "gateway_1".to_owned(), pid: 0 });
        if let Some(ready) = ready {
            sample.put(ready, Fact::Ready { process: "gateway_1".to_owned() });
        }
        let unknown = Answer { status: Some(503), retry_after: true, ..of(Kind::Unknown, 600) };
        sample.submit(600, 10.0, 0).answer(600, "", 10.1).answered(600, &unknown);
        sample.row(super::super::service::REFUSALS).findings.len()
    };
    assert_eq!((refused(None), refused(Some(6.2))), (0, 1));
}
