//! Mutations: stops, receipts and crashes of workers.

use super::*;

pub(super) const MUTATIONS: &[Mutation] = mutations! {
    // ---- stops of workers ----
    "an idle worker took 1.2 s" => IDLE, "its bound was 1 s": |it| {
        let stop = it.idle_stop();
        it.later(&stop, 1.2);
    };
    "an idle worker took 4.9 s after a freeze of a millisecond (hole 12)" => IDLE, "its bound was 1 s": |it| {
        let stop = it.idle_stop();
        it.later(&stop, 4.9);
        for (at, signal) in [(stop.at - 2.9, "SIGSTOP"), (stop.at - 2.899, "SIGCONT")] {
            it.put(at, Fact::Signalled { process: "broker".to_owned(), signal: signal.to_owned(), action: None, until: None });
        }
    };
    "a worker kept a task of 5 ms for 2.4 s and said that it took so long (hole 13)" => BUSY, "its bound was its task + 1 s": |it| {
        let stop = it.idle_stop();
        let task = it.task();
        it.later(&stop, 2.4);
        it.change(|line| {
            let is = task_of(&line.fact) == Some(&task.id) && !matches!(line.fact, Fact::ReadBack { .. });
            match &mut line.fact {
                Fact::RunBegan { worker, .. } if is => {
                    worker.clone_from(&stop.process);
                    line.at = stop.at - 0.2;
                }
                Fact::RunEnded { worker, seconds, .. } if is => {
                    (line.at, *seconds) = (stop.exit + 2.35, stop.exit + 2.35 - stop.at + 0.2);
                    worker.clone_from(&stop.process);
                }
                Fact::Accepted { .. } if is => line.at = stop.at - 0.21,
                _ => {}
            }
            is
        });
    };
    "a worker left with a task that it had the time to finish" => BUSY, "there was time to finish it": |it| {
        let stop = it.idle_stop();
        let task = it.task();
        it.put(stop.at - 0.2, Fact::RunBegan { worker: stop.process, task_id: task.id.clone(), delivery: 1 });
        it.change(|line| match &mut line.fact {
            Fact::Submitted { number, work_ms, .. } if *number == task.number => {
                *work_ms = Some(400);
                true
            }
            _ => false,
        });
    };
    "a worker did not end" => BUSY, "got a signal and has not ended": |it| {
        let stop = it.idle_stop();
        it.remove(|line| line.at > stop.at && matches!(&line.fact, Fact::Exited { process, .. }
            | Fact::Started { process, .. } | Fact::Ready { process } | Fact::Signalled { process, .. } if *process == stop.process));
    };
    "a drain did not heed its timeout" => DEADLINE, "its bound was the drain timeout + 1 s": |it| {
        let stop = it.deadline();
        it.later(&stop, 1.2);
    };
    "an abandoned task started late" => RESTARTED, "abandoned started elsewhere after": |it| {
        let stop = it.deadline();
        let id = abandoned(it, &stop);
        let number = request_of(it, &id);
        it.delay(&id, number, stop.at, 5.0);
    };
    "a second signal took 1.5 s" => SECOND, "to leave after its second signal; its bound was 1 s": |it| {
        let stop = it.first("second-signal");
        it.later(&stop, 1.5);
    };
    "a stop without Kafka took 6 s longer" => AWAY, "its bound was": |it| {
        let stop = it.done("stop-worker").pop().expect("the last one stops without Kafka");
        it.later(&stop, 6.0);
    };
    "exit code 0 of a worker that gave up" => CODES, "ended with exit code 0; expected 3": |it| {
        let stop = it.deadline();
        it.exit(&stop, |line| if let Fact::Exited { code, .. } = &mut line.fact { *code = Some(0) });
    };
    "exit code 1 of a worker that drained" => CODES, "ended with exit code 1; expected 0": |it| {
        let stop = it.idle_stop();
        it.exit(&stop, |line| if let Fact::Exited { code, .. } = &mut line.fact { *code = Some(1) });
    };
    "a stop that ended in a crash" => CODES, "ended by signal 11": |it| {
        let stop = it.idle_stop();
        it.exit(&stop, |line| if let Fact::Exited { code, signal, .. } = &mut line.fact { (*code, *signal) = (None, Some(11)) });
    };
    "a worker that ended by itself" => CODES, "ended by itself": |it| {
        let stop = it.idle_stop();
        it.remove(|line| matches!(&line.fact, Fact::Signalled { process, .. } if *process == stop.process && line.at == stop.at));
    };
    "a stop without shutdown_started" => SAID, "stopped without shutdown_started": |it| {
        let stop = it.idle_stop();
        it.remove(|line| is_said(line, &stop.process, "shutdown_started", stop.at, stop.exit));
    };
    "a stop without shutdown_completed" => SAID, "stopped without shutdown_completed": |it| {
        let stop = it.idle_stop();
        it.remove(|line| is_said(line, &stop.process, "shutdown_completed", stop.at, stop.exit));
    };
    "a shutdown_completed without a receipt" => SAID, "without a receipt": |it| {
        let stop = it.idle_stop();
        it.change(|line| {
            let is = is_said(line, &stop.process, "shutdown_completed", stop.at, stop.exit);
            if let (true, Fact::Notified { receipt, .. }) = (is, &mut line.fact) {
                *receipt = None;
            }
            is
        });
    };
    "a stop without any receipt" => RECEIPTS, "left no receipt": |it| {
        let stop = it.idle_stop();
        it.change(|line| match &mut line.fact {
            Fact::Exited { process, receipt, .. } | Fact::Notified { worker: process, receipt, .. }
                if *process == stop.process && (stop.at..stop.exit + 0.01).contains(&line.at) =>
            {
                *receipt = None;
                true
            }
            _ => false,
        });
    };
    "a receipt without worker_id" => RECEIPTS, "missing field `worker_id`": |it| without(it, "worker_id");
    "a receipt without signal" => RECEIPTS, "missing field `signal`": |it| without(it, "signal");
    "a receipt without outcome" => RECEIPTS, "missing field `outcome`": |it| without(it, "outcome");
    "a receipt without phases_ms" => RECEIPTS, "missing field `phases_ms`": |it| without(it, "phases_ms");
    "a receipt without tasks_finished" => RECEIPTS, "missing field `tasks_finished`": |it| without(it, "tasks_finished");
    "a receipt without tasks_returned (hole 17)" => RECEIPTS, "missing field `tasks_returned`": |it| without(it, "tasks_returned");
    "a receipt without tasks_abandoned" => RECEIPTS, "missing field `tasks_abandoned`": |it| without(it, "tasks_abandoned");
    "a receipt without exit_code" => RECEIPTS, "missing field `exit_code`": |it| without(it, "exit_code");
    "a receipt that returned 999 tasks (hole 17)" => RECEIPTS, "its receipt says 999": |it| says(it, "tasks_returned", json!(999));
    "a receipt that finished 999 tasks" => RECEIPTS, "its receipt says 999": |it| says(it, "tasks_finished", json!(999));
    "a receipt that abandoned a task that was done" => RECEIPTS, "its receipt says t": |it| {
        let task = it.task();
        says(it, "tasks_abandoned", json!([task.id]));
    };
    "a receipt that abandoned nothing" => RECEIPTS, "its receipt says nothing": |it| {
        let stop = it.deadline();
        it.receipt(&stop, |receipt| receipt["tasks_abandoned"] = json!([]));
    };
    "a receipt with another exit code" => RECEIPTS, "its receipt says 3": |it| says(it, "exit_code", json!(3));
    "a receipt with another outcome" => RECEIPTS, "says forced in its receipt": |it| says(it, "outcome", json!("forced"));
    "a receipt of another signal" => RECEIPTS, "its receipt says \"SIGINT\"": |it| says(it, "signal", json!("SIGINT"));
    "a receipt of another worker" => RECEIPTS, "has the receipt of \"worker_9\"": |it| says(it, "worker_id", json!("worker_9"));
    "a receipt whose phases do not add up (hole 17)" => RECEIPTS, "has phases of": |it| {
        let stop = it.idle_stop();
        it.receipt(&stop, |receipt| receipt["phases_ms"]["close"] = json!(4000));
    };
    "a receipt of a total that is too long" => RECEIPTS, "its receipt says 2.0 s": |it| {
        let stop = it.idle_stop();
        it.receipt(&stop, |receipt| receipt["phases_ms"] = json!({ "drain": 1990, "total": 2000 }));
    };
    "another receipt on the topic than on the output" => RECEIPTS, "has another receipt on the topic": |it| {
        let stop = it.idle_stop();
        it.exit(&stop, |line| if let Fact::Exited { receipt: Some(receipt), .. } = &mut line.fact {
            receipt["tasks_finished"] = json!(1);
        });
    };

    // ---- crashes ----
    "the task of a killed worker started after 2 s" => KILLED, "its bound was 500 ms": |it| {
        let kill = it.first("kill-worker");
        let id = in_flight(it, &kill.process, kill.at);
        let number = request_of(it, &id);
        it.delay(&id, number, kill.at, 2.0);
    };
    "later tasks overtook the task of a killed worker (hole 8)" => KILLED, "accepted later, had started before it": |it| {
        let kill = it.first("kill-worker");
        let id = in_flight(it, &kill.process, kill.at);
        let number = request_of(it, &id);
        it.delay(&id, number, kill.at, 1.5);
    };
    "the task of a hung worker started after 21 s" => HUNG, "its bound was 20.0 s": |it| {
        let freeze = it.first("freeze-worker");
        let id = in_flight(it, &freeze.process, freeze.at);
        let number = request_of(it, &id);
        it.delay(&id, number, freeze.at, 7.0);
    };
};
