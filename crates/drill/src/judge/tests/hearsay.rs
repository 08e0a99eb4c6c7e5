//! Fleets that others started: judged by their status records.

use super::*;

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
    // No worker is left whose status records would show that the others are silent; each has run what the worker before it had.
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
