//! The mutations of a cluster's run: see [`mutations`](super::mutations).

use super::super::fact::{Fact, Led};
use super::super::judgement::{Conclusion, State};
use super::cluster::{OTHERS, SERVED, WORKS};
use super::mutations::{Mutation, PLANNED, TWICE, by, mutations, undetected};
use super::recorded::{Recorded, alter, broken};

const SECOND_MOVE: u32 = 2;
const STOP: u32 = 4;
const FREEZE: u32 = 5;

/// The time of an action, and what its node led.
fn led(it: &Recorded, number: u32) -> (f64, Led) {
    let found = it.lines.iter().find_map(|line| match &line.fact {
        Fact::Led { action, led, .. } if *action == number => Some((line.at, led.clone())),
        _ => None,
    });
    found.expect("every action of the run has its `Led` line")
}

/// A task that was accepted in this time on a matching partition: its request, id, worker and start.
fn task_on(it: &Recorded, (from, until): (f64, f64), on: impl Fn(i32) -> bool) -> (u64, String, String, f64) {
    let (mut number, mut id) = (0, String::new());
    for line in it.lines.iter().filter(|line| (from..until).contains(&line.at)) {
        if let Fact::Accepted { number: Some(of), task_id, partition, .. } = &line.fact
            && on(*partition)
        {
            (number, id) = (*of, task_id.clone());
            break;
        }
    }
    let begun = it.lines.iter().find_map(|line| match &line.fact {
        Fact::RunBegan { worker, task_id, .. } if *task_id == id => Some((worker.clone(), line.at)),
        _ => None,
    });
    let (worker, at) = begun.expect("an accepted task with a start");
    (number, id, worker, at)
}

const MUTATIONS: &[Mutation] = mutations! {
    "moved partition is served late" => SERVED, "was delayed by 2.": |it| {
        let (at, led) = led(it, SECOND_MOVE);
        let (number, id, _, began) = task_on(it, (at, at + 1.0), |partition| led.tasks.contains(&partition));
        it.delay(&id, number, began, 2.5);
    };
    "partition of a stopped node is served late" => SERVED, "after the action on broker_2": |it| {
        let (at, led) = led(it, STOP);
        let (number, id, _, began) = task_on(it, (at, at + 2.0), |partition| led.tasks.contains(&partition));
        it.delay(&id, number, began, 2.5);
    };
    "partition is served long after the fail-over" => SERVED, "its bound was 6.0 s": |it| {
        let (at, _) = led(it, FREEZE);
        let (number, id, _, began) = task_on(it, (at - 0.3, at + 6.0), |_| true);
        it.delay(&id, number, began, 7.0);
    };
    "partition of another node waits for a moving leader" => OTHERS, "though its partition's leader was available": |it| {
        let (at, led) = led(it, SECOND_MOVE);
        let (number, id, _, began) = task_on(it, (at, at + 1.0), |partition| !led.tasks.contains(&partition));
        it.delay(&id, number, began, 1.5);
    };
    "worker takes no tasks at the end" => WORKS, "worker_2 began no task in the last 20 s": |it| {
        let ended = it.lines.iter().find(|line| matches!(line.fact, Fact::LoadEnded)).expect("its end").at;
        alter!(it, line: Fact::RunBegan { worker, .. } | Fact::RunEnded { worker, .. }
            if worker == "worker_2" && line.at > ended - 21.0 => *worker = "worker_1".to_owned());
    };
    "task of another partition runs twice when a leader moves" => TWICE, "unexplained": |it| {
        let (at, led) = led(it, SECOND_MOVE);
        let (_, id, worker, _) = task_on(it, (at - 0.4, at), |partition| !led.tasks.contains(&partition));
        it.run(&id, &worker, at + 0.3);
    };
    "task that began at the next leader runs twice" => TWICE, "unexplained": |it| {
        let (at, led) = led(it, SECOND_MOVE);
        let (_, id, worker, began) = task_on(it, (at + 0.3, at + 1.0), |partition| led.tasks.contains(&partition));
        it.run(&id, &worker, began + 0.2);
    };
    "frozen node takes records" => PLANNED, "SIGSTOP to broker_3 had no visible effect": |it| {
        let (at, led) = led(it, FREEZE);
        let partition = *led.tasks.first().expect("it led one");
        let fact = Fact::Accepted { number: None, task_id: "other".to_owned(), partition, offset: 9_999 };
        it.put(at + 1.0, fact);
    };
};

#[test]
fn recorded_cluster_run_is_held() {
    let verdict = Recorded::of_cluster().judged();
    assert!(verdict.conclusion == Conclusion::Held, "{:?}: {:#?}", verdict.conclusion, broken(&verdict));
    let held = verdict.rows.iter().filter(|row| row.promise == "P11" && row.state == State::Held);
    assert_eq!(held.count(), 3);
}

#[test]
fn each_cluster_mutation_breaks_its_row_for_its_reason() {
    let wrong: Vec<String> =
        MUTATIONS.iter().filter_map(|mutation| undetected(mutation, Recorded::of_cluster()).err()).collect();
    assert!(wrong.is_empty(), "{} of {} mutations:\n{}", wrong.len(), MUTATIONS.len(), wrong.join("\n"));
}

/// A lost leader may cost a second run of each task in flight on its partitions.
#[test]
fn task_in_flight_at_the_loss_of_its_leader_may_run_twice() {
    let mut it = Recorded::of_cluster();
    let (at, led) = led(&it, STOP);
    let (_, id, worker, _) = task_on(&it, (at - 0.6, at), |partition| led.tasks.contains(&partition));
    // The result comes when the leader is lost.
    alter!(it, line: Fact::RunEnded { task_id, .. } if *task_id == id => line.at = at);
    it.run(&id, &worker, at + 0.7);
    let verdict = it.judged();
    let twice = verdict.rows.iter().find(|row| row.name == TWICE).expect("a row");
    assert_eq!((twice.state, twice.note.contains("broker 1 of")), (State::Held, true), "{twice:?}");
}

/// Kafka handed the task out in a response that a node held back, or to a worker that was frozen: its lock must end.
#[test]
fn task_whose_lock_must_end_may_wait_for_twenty_seconds_where_a_node_fell_silent() {
    let state = |action: u32, delivered: i16, seconds: f64, frozen: bool| {
        let mut it = Recorded::of_cluster();
        let (at, led) = led(&it, action);
        let on = |partition| action == FREEZE || led.tasks.contains(&partition);
        let (number, id, worker, began) = task_on(&it, (at, at + 2.0), on);
        it.delay(&id, number, began, seconds);
        alter!(it, line: Fact::RunBegan { task_id, delivery, .. } if *task_id == id => *delivery = delivered);
        if frozen {
            for (at, signal) in [(began, "SIGSTOP"), (began + seconds, "SIGCONT")] {
                let (process, signal) = (worker.clone(), signal.to_owned());
                it.put(at, Fact::Signalled { process, signal, action: None, until: None });
            }
        }
        it.judged().rows.into_iter().find(|row| row.name == SERVED).expect("a row").state
    };
    assert_eq!((state(FREEZE, 1, 12.0, false), state(FREEZE, 2, 12.0, false)), (State::Broken, State::Held));
    assert_eq!(state(FREEZE, 2, 21.0, false), State::Broken);
    assert_eq!((state(SECOND_MOVE, 2, 2.5, false), state(STOP, 2, 2.5, false)), (State::Broken, State::Broken));
    assert_eq!(state(SECOND_MOVE, 1, 2.5, true), State::Held);
}

/// A second outage of the partition explains only what it delays: each must keep its own bound.
#[test]
fn outage_after_a_request_has_its_own_bound_and_does_not_extend_the_one_before() {
    let state = |moved_again_after: Option<f64>, started_after: f64| {
        let mut it = Recorded::of_cluster();
        let (at, led) = led(&it, SECOND_MOVE);
        let (number, id, _, began) = task_on(&it, (at, at + 1.0), |partition| led.tasks.contains(&partition));
        it.delay(&id, number, began, at + started_after - began);
        if let Some(after) = moved_again_after {
            let (action, what) = (99, "move-leader".to_owned());
            it.put(at + after, Fact::Ordered { action, what, target: None, detail: String::new() });
            it.put(at + after, Fact::Led { action, process: "broker_2".to_owned(), led });
            it.put(at + after + 0.01, Fact::Carried { action, done: true, detail: String::new() });
        }
        it.judged().rows.into_iter().find(|row| row.name == SERVED).expect("a row").state
    };
    // The node of the partition stops 3 s after the first move.
    assert_eq!((state(None, 1.9), state(None, 2.9)), (State::Held, State::Broken));
    assert_eq!(state(Some(1.2), 2.9), State::Held);
    assert_eq!(state(Some(2.7), 2.9), State::Broken, "it was late before the second outage");
    assert_eq!(state(Some(0.6), 2.9), State::Broken, "it is late after the second outage");
    assert_eq!(state(Some(0.6), 1.9), State::Held);
}

/// An outage with a longer bound is not cut short by a later one.
#[test]
fn later_move_does_not_shorten_the_time_of_a_fail_over() {
    let mut it = Recorded::of_cluster();
    let (at, _) = led(&it, FREEZE);
    let (number, id, _, began) = task_on(&it, (at, at + 2.0), |_| true);
    it.delay(&id, number, began, at + 5.5 - began);
    let (action, what) = (99, "move-leader".to_owned());
    let led = Led { tasks: vec![0, 1, 2], results: false };
    it.put(at + 2.5, Fact::Ordered { action, what, target: None, detail: String::new() });
    it.put(at + 2.5, Fact::Led { action, process: "broker_2".to_owned(), led });
    it.put(at + 2.51, Fact::Carried { action, done: true, detail: String::new() });
    let served = it.judged().rows.into_iter().find(|row| row.name == SERVED).expect("a row");
    assert_eq!(served.state, State::Held, "{served:#?}");
}
