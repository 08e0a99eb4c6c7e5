//! Fleets that others started: judged by their status records.

use super::*;

#[test]
fn fleet_of_others_without_actions_is_held() {
    let verdict = Sample::hearsay().judged();
    assert_eq!(verdict.conclusion, Conclusion::Held, "{:#?}", verdict.rows);
    assert!(verdict.faults.is_empty());
}

#[test]
fn announced_stop_counts_as_stop_and_silence_counts_as_kill() {
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
    // It is unknown whether the silent worker was killed or died by itself: it is no planned fault.
    assert!(verdict.faults.is_empty() && verdict.rows.iter().all(|row| !["P3", "P8", "P9"].contains(&row.promise)));
}

#[test]
fn kill_of_every_worker_at_once_is_held() {
    // No remaining status record shows that the others are silent. Each worker ran the task of the worker before it.
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
fn waiting_tasks_are_not_lost_while_no_worker_runs() {
    let mut sample = Sample::hearsay();
    sample.lines.retain(|line| !matches!(line.fact, Fact::Notified { .. }) || line.at < 11.5);
    sample.view("gateway_1", 18.0, &[]);
    sample.submit(600, 11.6, 0).accept(600, 11.61).answer(600, "", 11.9).answered(600, &of(Kind::Accepted, 600));
    let Conclusion::Undecided(why) = sample.judged().conclusion else { panic!("{:#?}", sample.judged().rows) };
    assert!(why.starts_with("tasks waiting in Kafka: 1;"), "{why}");
    // A worker runs.
    sample.beats("worker_4", 4, 11.5, 20.9);
    assert_eq!(sample.broken(), [LOST]);
    // A task that a gateway called accepted is not in Kafka.
    sample.remove(|fact| matches!(fact, Fact::Notified { worker, .. } if worker == "worker_4"));
    sample.remove(|fact| matches!(fact, Fact::Accepted { number: Some(600), .. }));
    assert_eq!(sample.broken(), [LOST]);
}

#[test]
fn stopped_worker_that_falls_silent_breaks_the_row_of_notifications() {
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
fn status_records_separate_the_processes_of_one_name() {
    // Killed twice and restarted under the same name; the second process ran a task.
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
