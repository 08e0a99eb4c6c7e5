//! Mutations of stops, receipts and crashes of workers.

use super::*;

pub(super) const MUTATIONS: &[Mutation] = mutations! {
    // ---- stops of workers ----
    "idle worker took too long" => IDLE, "its bound was 1 s", 1.2 not 0.95: |it, by| {
        let stop = it.idle_stop();
        it.later(&stop, by);
    };
    "idle worker took 4.9 s after a broker freeze of 1 ms" => IDLE, "its bound was 1 s": |it| {
        let stop = it.idle_stop();
        it.later(&stop, 4.9);
        for (at, signal) in [(stop.at - 2.9, "SIGSTOP"), (stop.at - 2.899, "SIGCONT")] {
            it.put(at, Fact::Signalled { process: "broker".to_owned(), signal: signal.to_owned(), action: None, until: None });
        }
    };
    "busy worker took too long" => BUSY, "its bound was its task + 1 s", 1.2 not 0.95: |it, by| {
        let stop = it.done("restart-worker").remove(1);
        it.later(&stop, by);
    };
    "worker kept a task of 5 ms for 2.4 s and claimed that it took that long" => BUSY, "its bound was its task + 1 s": |it| {
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
    "worker left with a task that it had time to finish" => BUSY, "there was time to finish it": |it| {
        let stop = it.idle_stop();
        let task = it.task();
        it.put(stop.at - 0.2, Fact::RunBegan { worker: stop.process, task_id: task.id.clone(), delivery: 1 });
        alter!(it, line: Fact::Submitted { number, work_ms, .. } if *number == task.number => *work_ms = Some(400));
    };
    "worker did not end" => BUSY, "got a signal and has not ended": |it| {
        let stop = it.idle_stop();
        it.remove(|line| line.at > stop.at && matches!(&line.fact, Fact::Exited { process, .. }
            | Fact::Started { process, .. } | Fact::Ready { process } | Fact::Signalled { process, .. } if *process == stop.process));
    };
    "drain exceeded its timeout" => DEADLINE, "its bound was the drain timeout + 1 s", 1.1 not 0.95: |it, by| {
        let stop = it.deadline();
        it.later(&stop, by);
    };
    "abandoned task started late" => RESTARTED, "abandoned started elsewhere after", 2.5 not 1.5: |it, by| {
        let stop = it.deadline();
        let id = abandoned(it, &stop);
        let number = request_of(it, &id);
        it.delay(&id, number, stop.at, by);
    };
    "worker left 1.2 s after its second signal" => SECOND, "to leave after its second signal; its bound was 1 s": |it| {
        let stop = it.first("second-signal");
        it.later(&stop, 1.2);
    };
    "stop without Kafka took longer" => AWAY, "its bound was 5.0 s", 3.6 not 3.3: |it, by| {
        let stop = it.done("stop-worker").pop().expect("the last one stops without Kafka");
        it.later(&stop, by);
    };
    "worker abandoned a task with exit code 0" => CODES, "ended with exit code 0; expected 3": |it| {
        let stop = it.deadline();
        it.exit(&stop, |line| if let Fact::Exited { code, .. } = &mut line.fact { *code = Some(0) });
    };
    "worker ended with exit code 0 after its second signal" => CODES, "ended with exit code 0; expected 4": |it| {
        let stop = it.first("second-signal");
        it.exit(&stop, |line| if let Fact::Exited { code, .. } = &mut line.fact { *code = Some(0) });
    };
    "worker drained with exit code 1" => CODES, "ended with exit code 1; expected 0": |it| {
        let stop = it.idle_stop();
        it.exit(&stop, |line| if let Fact::Exited { code, .. } = &mut line.fact { *code = Some(1) });
    };
    "worker crashed during its stop" => CODES, "ended by signal 11": |it| {
        let stop = it.idle_stop();
        it.exit(&stop, |line| if let Fact::Exited { code, signal, .. } = &mut line.fact { (*code, *signal) = (None, Some(11)) });
    };
    "worker ended by itself" => CODES, "ended by itself": |it| {
        let stop = it.idle_stop();
        it.remove(|line| matches!(&line.fact, Fact::Signalled { process, .. } if *process == stop.process && line.at == stop.at));
    };
    "stop without shutdown_started" => SAID, "stopped without shutdown_started": |it| {
        let stop = it.idle_stop();
        it.remove(|line| is_notice(line, &stop.process, "shutdown_started", stop.at, stop.exit));
    };
    "stop without shutdown_completed" => SAID, "stopped without shutdown_completed": |it| {
        let stop = it.idle_stop();
        it.remove(|line| is_notice(line, &stop.process, "shutdown_completed", stop.at, stop.exit));
    };
    "shutdown_completed without a receipt" => SAID, "without a receipt": |it| {
        let stop = it.idle_stop();
        alter!(it, line: Fact::Notified { worker, receipt: receipt @ Some(_), .. }
            if *worker == stop.process && (stop.at - 0.01..stop.exit + 0.5).contains(&line.at) => *receipt = None);
    };
    "stop without any receipt" => RECEIPTS, "left no receipt": |it| {
        let stop = it.idle_stop();
        alter!(it, line: Fact::Exited { process, receipt, .. } | Fact::Notified { worker: process, receipt, .. }
            if *process == stop.process && (stop.at..stop.exit + 0.01).contains(&line.at) => *receipt = None);
    };
    "receipt without worker_id" => RECEIPTS, "missing field `worker_id`": |it| without(it, "worker_id");
    "receipt without signal" => RECEIPTS, "missing field `signal`": |it| without(it, "signal");
    "receipt without outcome" => RECEIPTS, "missing field `outcome`": |it| without(it, "outcome");
    "receipt without phases_ms" => RECEIPTS, "missing field `phases_ms`": |it| without(it, "phases_ms");
    "receipt without tasks_finished" => RECEIPTS, "missing field `tasks_finished`": |it| without(it, "tasks_finished");
    "receipt without tasks_returned" => RECEIPTS, "missing field `tasks_returned`": |it| without(it, "tasks_returned");
    "receipt without tasks_abandoned" => RECEIPTS, "missing field `tasks_abandoned`": |it| without(it, "tasks_abandoned");
    "receipt without exit_code" => RECEIPTS, "missing field `exit_code`": |it| without(it, "exit_code");
    "receipt claims 999 returned tasks" => RECEIPTS, "its receipt says 999": |it| says(it, "tasks_returned", json!(999));
    "receipt claims 999 finished tasks" => RECEIPTS, "its receipt says 999": |it| says(it, "tasks_finished", json!(999));
    "receipt calls a finished task abandoned" => RECEIPTS, "its receipt says t": |it| {
        let task = it.task();
        says(it, "tasks_abandoned", json!([task.id]));
    };
    "receipt omits the abandoned task" => RECEIPTS, "its receipt says nothing": |it| {
        let stop = it.deadline();
        it.receipt(&stop, |receipt| receipt["tasks_abandoned"] = json!([]));
    };
    "receipt has a wrong exit code" => RECEIPTS, "its receipt says 3": |it| says(it, "exit_code", json!(3));
    "receipt has a wrong outcome" => RECEIPTS, "says forced in its receipt": |it| says(it, "outcome", json!("forced"));
    "receipt has a wrong signal" => RECEIPTS, "its receipt says \"SIGINT\"": |it| says(it, "signal", json!("SIGINT"));
    "receipt has the id of another worker" => RECEIPTS, "has the receipt of \"worker_9\"": |it| says(it, "worker_id", json!("worker_9"));
    "phases of a receipt do not add up" => RECEIPTS, "has phases of": |it| {
        let stop = it.idle_stop();
        it.receipt(&stop, |receipt| receipt["phases_ms"]["close"] = json!(4000));
    };
    "phases of a receipt leave a gap" => RECEIPTS, "has phases of 0 ms in a total of 5000 ms": |it| {
        says(it, "phases_ms", json!({ "drain": 0, "total": 5000 }));
    };
    "phases of a receipt have no total" => RECEIPTS, "has no total": |it| says(it, "phases_ms", json!({ "drain": 40 }));
    "receipt has a total that is too long" => RECEIPTS, "its receipt says 2.0 s": |it| {
        let stop = it.idle_stop();
        it.receipt(&stop, |receipt| receipt["phases_ms"] = json!({ "drain": 1990, "total": 2000 }));
    };
    "receipts on the topic and on the output differ" => RECEIPTS, "has different receipts on the topic and on its output": |it| {
        let stop = it.idle_stop();
        it.exit(&stop, |line| if let Fact::Exited { receipt: Some(receipt), .. } = &mut line.fact {
            receipt["tasks_finished"] = json!(1);
        });
    };

    // ---- crashes ----
    "task of a killed worker started late" => KILLED, "its bound was 500 ms", 0.6 not 0.4: |it, by| {
        let kill = it.first("kill-worker");
        let id = in_flight(it, &kill.process, kill.at);
        let number = request_of(it, &id);
        it.delay(&id, number, kill.at, by);
    };
    "later tasks overtook the task of a killed worker" => KILLED, "accepted later, had started before it": |it| {
        let kill = it.first("kill-worker");
        let id = in_flight(it, &kill.process, kill.at);
        let number = request_of(it, &id);
        it.delay(&id, number, kill.at, 1.5);
    };
    "task of a hung worker started late" => HUNG, "its bound was 20.0 s", 5.5 not 4.5: |it, by| {
        let freeze = it.first("freeze-worker");
        let id = in_flight(it, &freeze.process, freeze.at);
        let number = request_of(it, &id);
        it.delay(&id, number, freeze.at, by);
    };
};
