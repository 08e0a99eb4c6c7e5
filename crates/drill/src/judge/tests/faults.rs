//! Crashes and hangs (P8), and gateways (P9, P10).

use super::super::super::fact::Led;
use super::*;

// ---- quiet ----

/// Worker 1 is quiet from 12.0 to 16.0, and says so 10 ms after the signal.
fn quiet() -> Sample {
    let mut sample = Sample::calm();
    sample.drop_tasks_of("worker_1", 12.0, 16.2).order(1, "quiet-worker", "worker_1", 12.0);
    sample.signal("worker_1", 12.0, "SIGUSR1").say("worker_1", 1, 12.01, "worker_quiet", None);
    sample.signal("worker_1", 16.0, "SIGUSR2");
    sample
}

#[test]
fn quiet_worker_may_start_what_it_has_fetched_and_nothing_later() {
    let started = |at: f64| {
        let mut sample = quiet();
        sample.task(600, "worker_1", at, 10);
        sample.broken()
    };
    assert_eq!(quiet().broken(), NONE);
    assert_eq!(quiet().row(QUIET).count, 1);
    assert_eq!(started(12.5), NONE);
    assert_eq!(started(13.2), [QUIET]);
    assert_eq!(started(15.8), [QUIET]);
    assert_eq!(started(16.1), NONE);
}

#[test]
fn quiet_ends_with_the_stop_of_its_worker() {
    let mut sample = quiet();
    sample.remove(|fact| matches!(fact, Fact::Signalled { signal, .. } if signal == "SIGUSR2"));
    sample.order(2, "stop-worker", "worker_1", 13.5).stop("worker_1", 13.5, 0.05).start("worker_1", 14.0);
    sample.task(600, "worker_1", 15.0, 10);
    assert_eq!(sample.broken(), NONE);
    assert_eq!(sample.row(QUIET).count, 1);
}

#[test]
fn quiet_that_no_status_record_shows_is_an_action_without_effect() {
    let mut sample = quiet();
    sample.remove(|fact| matches!(fact, Fact::Notified { status, .. } if status == "worker_quiet"));
    assert_eq!(sample.broken(), [actions::NAME]);
}

#[test]
fn task_may_wait_while_the_only_idle_worker_is_quiet() {
    let waits = |is_quiet: bool| {
        let mut sample = if is_quiet { quiet() } else { Sample::calm() };
        sample.drop_tasks_of("worker_1", 12.0, 16.2);
        sample.task(601, "worker_2", 12.3, 3500).task(602, "worker_3", 12.3, 3500);
        sample.submit(600, 13.0, 10).accept(600, 13.01).begin(600, "worker_1", 16.05, 1);
        sample.result(600, "worker_1", 16.06, 0.01).answer(600, "worker_1", 16.07);
        sample.broken()
    };
    assert_eq!(waits(true), NONE);
    assert_eq!(waits(false), [IN_TIME]);
}

// ---- P8 ----

#[test]
fn task_of_a_killed_worker_may_wait_while_no_handler_is_free() {
    // Both other workers have long tasks in flight, except for a moment in which an earlier task starts.
    let mut sample = long_task("worker_1", 2000);
    sample.order(1, "kill-worker", "worker_1", 13.0).kill("worker_1", 13.0).start("worker_1", 14.0);
    sample.task(601, "worker_2", 12.2, 900).task(602, "worker_2", 13.108, 2000).task(603, "worker_3", 12.2, 3000);
    restart(&mut sample, "worker_1", 14.2);
    assert_eq!(sample.broken(), NONE);
    // Now one of them is idle all the time.
    sample.remove(|fact| matches!(fact, Fact::RunBegan { task_id, .. } | Fact::RunEnded { task_id, .. } | Fact::Accepted { task_id, .. } if *task_id == id(603)));
    sample.remove(|fact| matches!(fact, Fact::Submitted { number: 603, .. } | Fact::Answered { number: 603, .. }));
    assert_eq!(sample.broken(), [AFTER_KILL]);
}

#[test]
fn gaps_between_tasks_of_a_backlog_do_not_count_as_free() {
    // All tasks come at once; each worker runs tasks of 40 ms in sequence.
    let backlog = |between_seconds: f64| {
        let mut sample = Sample::calm();
        for number in 600..615 {
            let (round, worker) = ((number - 600) / 3, format!("worker_{}", 1 + number % 3));
            let at = 12.01 + round as f64 * (0.04 + between_seconds);
            sample.submit(number, 12.0, 40).accept(number, 12.001).begin(number, &worker, at, 1);
            sample.result(number, &worker, at + 0.04, 0.04).answer(number, &worker, at + 0.05);
        }
        sample.broken()
    };
    assert_eq!(backlog(0.45), NONE);
    assert_eq!(backlog(0.55), [IN_TIME]);
}

#[test]
fn tasks_wait_while_a_restarted_broker_reads_the_share_state() {
    let started = |brokers: u32, state_read_ms: u64, after_seconds: f64| {
        let mut sample = Sample::calm();
        sample.change(|line| {
            if let Fact::Begin(begin) = &mut line.fact {
                begin.brokers = brokers;
                begin.pauses.state_read_ms = state_read_ms;
            }
        });
        sample.order(1, "restart-broker", "broker", 11.5).signal("broker", 11.5, "SIGTERM");
        sample.exit("broker", 11.8, Some(0), None, None).start("broker", 11.9);
        sample.submit(600, 12.1, 10).accept(600, 12.11).begin(600, "worker_1", 12.0 + after_seconds, 1);
        sample.result(600, "worker_1", 12.02 + after_seconds, 0.01).answer(600, "worker_1", 12.03 + after_seconds);
        sample.broken()
    };
    assert_eq!(started(1, 0, 3.9), NONE);
    assert_eq!(started(1, 0, 4.2), [IN_TIME]);
    assert_eq!(started(1, 3000, 5.5), NONE);
    assert_eq!(started(1, 3000, 5.8), [IN_TIME]);
    assert!(started(3, 3000, 5.5).contains(&IN_TIME), "in a cluster other nodes lead meanwhile");
}

#[test]
fn result_just_after_the_kill_of_its_worker_is_no_loss() {
    let mut sample = long_task("worker_1", 990);
    sample.order(1, "kill-worker", "worker_1", 13.0).kill("worker_1", 13.0).start("worker_1", 14.0);
    sample.result(600, "worker_1", 13.05, 0.99).answer(600, "worker_1", 13.06);
    assert_eq!(sample.broken(), NONE);
}

#[test]
fn kill_loses_the_results_that_wait_for_their_acceptance_after_an_outage() {
    let twice = |stopped_at: Option<f64>| {
        let mut sample = Sample::calm();
        if let Some(at) = stopped_at {
            sample.order(1, "restart-broker", "broker", at).signal("broker", at, "SIGTERM");
            sample.exit("broker", at + 0.3, Some(0), None, None).start("broker", at + 0.4);
        }
        // More tasks than the worker has handlers, with results up to a second before the kill.
        for number in 600..605 {
            let at = 12.0 + (number - 600) as f64 * 0.1;
            sample.task(number, "worker_1", at, 10).begin(number, "worker_2", 13.2, 2);
            sample.result(number, "worker_2", 13.22, 0.01);
        }
        sample.order(2, "kill-worker", "worker_1", 13.0).kill("worker_1", 13.0).start("worker_1", 14.0);
        sample.row(TWICE).findings.len()
    };
    assert_eq!(twice(Some(11.5)), 0);
    assert_eq!(twice(Some(8.5)), 5, "the outage ended 3 s before the results");
    assert_eq!(twice(None), 5, "without an outage the results are accepted at once");
}

#[test]
fn kill_loses_the_finished_tasks_whose_results_could_not_be_written() {
    let twice = |stopped_at: Option<f64>, ended_before: Option<f64>| {
        let mut sample = Sample::of_cluster();
        if let Some(at) = stopped_at {
            sample.order(1, "restart-broker", "broker", at).signal("broker", at, "SIGTERM");
            sample.exit("broker", at + 0.3, Some(0), None, None).start("broker", at + 0.4);
        }
        for number in 600..605 {
            sample.submit(number, 12.0, 10).accept(number, 12.01).begin(number, "worker_1", 12.3, 1);
            let ended = |before: f64| {
                let (worker, task_id) = ("worker_1".to_owned(), id(number));
                (13.0 - before, Fact::HandlerEnded { worker, task_id, delivery: 1 })
            };
            if let Some((at, fact)) = ended_before.map(ended) {
                sample.put(at, fact);
            }
            sample.begin(number, "worker_2", 13.2, 2).result(number, "worker_2", 13.22, 0.01);
        }
        sample.order(2, "kill-worker", "worker_1", 13.0).kill("worker_1", 13.0).start("worker_1", 14.0);
        sample.row(TWICE).findings.len()
    };
    // The worker has one handler, so that a kill alone explains one second run.
    assert_eq!(twice(Some(11.5), Some(0.5)), 0);
    assert_eq!(twice(None, Some(0.5)), 4, "without an outage the results are written at once");
    assert_eq!(twice(None, Some(0.05)), 0, "results on their way");
    assert_eq!(twice(Some(11.5), None), 4, "not every run without a result was finished");
    assert_eq!(twice(Some(8.5), Some(0.5)), 4, "the outage ended long before");
}

#[test]
fn earlier_process_of_a_name_does_not_add_to_the_losses_of_a_kill() {
    let twice = |restarted: bool| {
        let mut sample = Sample::of_cluster();
        sample.order(1, "restart-broker", "broker", 11.5).signal("broker", 11.5, "SIGTERM");
        sample.exit("broker", 11.8, Some(0), None, None).start("broker", 11.9);
        for number in 600..605 {
            sample.task(number, "worker_1", 12.0 + (number - 600) as f64 / 50.0, 10);
        }
        if restarted {
            sample.stop("worker_1", 12.3, 0.05).start("worker_1", 12.4);
        }
        for number in 605..607 {
            sample.submit(number, 12.5, 200).accept(number, 12.51).begin(number, "worker_1", 12.8, 1);
            sample.begin(number, "worker_2", 13.2, 2).result(number, "worker_2", 13.4, 0.2);
        }
        sample.order(2, "kill-worker", "worker_1", 13.0).kill("worker_1", 13.0).start("worker_1", 14.0);
        sample.row(TWICE).findings.len()
    };
    assert_eq!((twice(false), twice(true)), (0, 1));
}

#[test]
fn result_of_a_moved_leader_may_wait_for_its_acceptance_until_the_tasks_move() {
    let twice = |results: Option<bool>| {
        let mut sample = Sample::of_cluster();
        let mut moves = |action, at, led| {
            let process = "broker_1".to_owned();
            sample.order(action, "move-leader", "", at).put(at, Fact::Led { action, process, led });
        };
        if let Some(results) = results {
            moves(1, 11.9, Led { tasks: if results { Vec::new() } else { vec![1] }, results });
        }
        moves(2, 12.8, Led { tasks: vec![0], results: false });
        sample.task(600, "worker_1", 12.0, 10).begin(600, "worker_2", 13.0, 2).result(600, "worker_2", 13.02, 0.01);
        sample.row(TWICE).findings.len()
    };
    assert_eq!(twice(Some(true)), 0);
    assert_eq!((twice(Some(false)), twice(None)), (1, 1), "another partition of tasks, or none, moved before");
}

#[test]
fn task_beside_an_unavailable_node_may_wait_until_the_node_leaves_the_in_sync_replicas() {
    let started_after = |accepted: f64, seconds: f64, means: &str, brokers: u32| {
        let mut sample = Sample::of_cluster();
        sample.change(|line| {
            if let Fact::Begin(begin) = &mut line.fact {
                (begin.brokers, begin.pauses.in_sync_ms) = (brokers, 1500);
            }
        });
        let process = "broker_1".to_owned();
        sample.start("broker_1", 0.1).order(1, means, "broker_1", 5.0);
        sample.put(5.0, Fact::Led { action: 1, process, led: Led { tasks: vec![1], results: false } });
        if means == "stop-broker" {
            sample.signal("broker_1", 5.0, "SIGTERM").exit("broker_1", 5.5, Some(0), None, None);
            sample.start("broker_1", 11.9);
        }
        sample.submit(600, accepted - 0.01, 10).accept(600, accepted).begin(600, "worker_1", accepted + seconds, 1);
        sample.result(600, "worker_1", accepted + seconds + 0.02, 0.01);
        sample.answer(600, "worker_1", accepted + seconds + 0.03).row(IN_TIME).state
    };
    // The node was back at 12.0.
    assert_eq!(started_after(11.2, 2.4, "stop-broker", 3), State::Held);
    assert_eq!(started_after(11.2, 2.6, "stop-broker", 3), State::Broken);
    assert_eq!(started_after(12.9, 2.4, "stop-broker", 3), State::Held);
    assert_eq!(started_after(13.1, 1.1, "stop-broker", 3), State::Broken, "the node was back long before");
    assert_eq!(started_after(11.2, 1.1, "move-leader", 3), State::Broken, "every node was available");
    assert_eq!(started_after(15.2, 1.1, "stop-broker", 1), State::Broken, "no other node waits for the only one");
}

// ---- P9 and P10 ----

#[test]
fn gateway_stops_within_a_second_of_its_last_answer() {
    let stop = |took: f64, code: i32, answered: f64| {
        let mut sample = Sample::calm();
        sample.change(|line| line.at += if line.at > 11.5 { 30.0 } else { 0.0 });
        // An even number: gateway_1 gets the request.
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
    // A caller that waited beyond the gateway's limit.
    assert_eq!(stop(25.9, 0, 27.0), NONE);
    assert_eq!(stop(26.1, 0, 27.0), [GATEWAY]);
}

#[test]
fn only_a_kill_excuses_a_lost_connection() {
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
    // Request 51 goes to gateway_2 at 6.1.
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
fn restarted_gateway_knows_the_fleet_within_three_seconds() {
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
