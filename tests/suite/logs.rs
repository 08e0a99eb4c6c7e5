//! A full pipe at stdout (a stopped log collector, a paused terminal) blocks only the log of a program.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{Rig, SOON, audit, eventually, started};

/// Produces records that are not tasks: the worker logs a line for each.
fn produce_garbage(rig: &Rig, count: usize) {
    let garbage: Vec<audit::KeyValue<'_>> = vec![(None, Some(b"garbage")); count];
    audit::produce(rig.broker().address(), &rig.tasks(), &garbage);
}

fn wait_for_dead_letters(rig: &Rig, count: usize) {
    let dead = format!("{}.dead", rig.tasks());
    eventually(3 * SOON, "the records are dead-lettered", || {
        audit::end_offsets(rig.broker().address(), &dead).values().sum::<i64>() == i64::try_from(count).expect("few")
    });
}

#[test]
fn worker_whose_stdout_is_full_works_and_stops_in_time() {
    let (rig, gateway, mut worker) = Rig::quiet("logs-worker").fleet("mute");
    worker.mute();
    produce_garbage(&rig, 3);
    wait_for_dead_letters(&rig, 3);
    assert_eq!(gateway.analyze("with a full pipe").status, 200);
    let task = gateway.submit("longer than a lock would be", Duration::from_secs(2));
    gateway.wait_until_running(&task, SOON);
    let exit = worker.ends_at(Signal::SIGTERM, 0);
    assert!(exit.elapsed < Duration::from_secs(3), "longer than the task and a second: {exit:?}");
    let audit = rig.audit();
    assert_eq!(audit.runs(&task), 1);
    assert_eq!(audit.states_of("mute").last(), Some(&"shutdown_completed"));
}

#[test]
fn idle_programs_whose_stdout_is_full_stop_within_a_second() {
    let (rig, mut gateway, mut worker) = Rig::quiet("logs-idle").fleet("mute");
    for program in [&mut worker, &mut gateway.program] {
        program.mute();
        let exit = program.ends_at(Signal::SIGTERM, 0);
        assert!(exit.elapsed < Duration::from_secs(1), "{exit:?}");
    }
    assert_eq!(rig.audit().states_of("mute").last(), Some(&"shutdown_completed"));
}

#[test]
fn gateway_whose_stdout_is_full_answers() {
    let rig = Rig::shared("logs-gateway");
    let gateway = rig.start_gateway();
    gateway.program.mute();
    let mut worker = rig.start_worker("told");
    assert_eq!(gateway.analyze("with a full pipe").status, 200);
    worker.ends_at(Signal::SIGTERM, 0);
    let other = rig.start_worker("other");
    assert_eq!(gateway.analyze("after an event of the fleet").status, 200);
    assert_eq!(gateway.get("/livez").status, 200);
    drop(other);
}

#[test]
fn dropped_log_lines_are_counted_and_the_receipt_is_the_last_line() {
    let rig = Rig::shared("logs-dropped");
    let _gateway = rig.start_gateway();
    let mut worker = started(&rig.worker("mute").env("WORKER_CONCURRENCY", 8));
    worker.mute();
    // More lines than the queue of the log holds (1024).
    produce_garbage(&rig, 1_100);
    wait_for_dead_letters(&rig, 1_100);
    worker.unmute();
    let told = worker.wait_for_line("line(s) of the log were dropped", SOON).text;
    let dropped: usize = told.split(' ').find_map(|word| word.parse().ok()).expect("a number");
    let kept = || worker.lines_with("gives task without an id up").len();
    eventually(SOON, &format!("kept and dropped lines are 1100 in all, after {told}"), || kept() + dropped == 1_100);
    worker.mute();
    worker.signal(Signal::SIGTERM);
    eventually(SOON, "the worker has sent its last notification", || {
        rig.audit().states_of("mute").last() == Some(&"shutdown_completed")
    });
    worker.unmute();
    assert_eq!(worker.wait(SOON).code, Some(0));
    assert_eq!(worker.receipt()["outcome"], "drained");
    worker.assert_lines_in_order(&["🛑 Worker mute received SIGTERM", "👋 Worker mute gracefully shut down"]);
}
