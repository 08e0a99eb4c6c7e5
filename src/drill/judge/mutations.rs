//! The table of mutations: a real run is held; each of these changes to its ledger turns the row red that it should, for its reason.
//!
//! This is what shows that the judge can find what it looks for. `hole` numbers the ways in which an earlier judge was fooled.

use serde_json::json;

use super::super::fact::{Answer, Fact, Kind};
use super::super::judgement::{Conclusion, State};
use super::super::texts::AFTERWARDS;
use super::recorded::{Recorded, broken, refused, task_of};

/// One change, and what has to come of it: a row that is broken and says this, or a verdict that is undecided and says it.
pub(super) struct Mutation {
    pub(super) name: &'static str,
    pub(super) row: &'static str,
    pub(super) says: &'static str,
    pub(super) change: fn(&mut Recorded),
}

pub(super) const LOST: &str = "no task is lost";
const FETCHED: &str = "every result can be fetched";
pub(super) const RIGHT: &str = "every answer is right";
const UNEXPECTED: &str = "nothing runs that nobody asked for";
pub(super) const GIVEN_UP: &str = "no task is given up that could be done";
const POISON: &str = "a poison task is given up";
pub(super) const TWICE: &str = "nothing runs twice";
pub(super) const IDLE: &str = "an idle worker stops";
pub(super) const BUSY: &str = "a busy one finishes and stops";
pub(super) const DEADLINE: &str = "a drain ends at its timeout";
pub(super) const RESTARTED: &str = "what was abandoned starts elsewhere";
pub(super) const SECOND: &str = "a second signal ends it";
pub(super) const AWAY: &str = "it stops though Kafka is away";
pub(super) const CODES: &str = "exit codes tell the truth";
pub(super) const SAID: &str = "stops are announced and receipted";
pub(super) const RECEIPTS: &str = "receipts match what was seen";
pub(super) const KILLED: &str = "the tasks of a killed one start elsewhere";
pub(super) const HUNG: &str = "the tasks of a hung one start elsewhere";
pub(super) const GATEWAY: &str = "a gateway answers its callers and stops";
const UNREADY: &str = "a stopping gateway is not ready";
pub(super) const CUT: &str = "every caller is answered";
pub(super) const KNOWS: &str = "a new gateway knows the fleet";
const PAGE: &str = "the fleet page tells the truth";
const REFUSED: &str = "no caller is turned away without a cause";
const RECOVERED: &str = "after each cause callers are served again";
pub(super) const IN_TIME: &str = "tasks start in time";
const FOLLOWS: &str = "an answer follows its result";
const PROBED: &str = "everything is served in the end";
const STAYS: &str = "results stay what they are";
const KAFKA: &str = "Kafka is there unless an action takes it away";
const LAG: &str = "nothing is left in the queue";
const READERS: &str = "two readers find the same";
const PLANNED: &str = "what was planned has happened";
/// No row, but the verdict.
const UNDECIDED: &str = "UNDECIDED";

macro_rules! mutations {
    ($($name:literal => $row:expr, $says:literal: $change:expr;)*) => {
        &[$(Mutation { name: $name, row: $row, says: $says, change: $change }),*]
    };
}

const MUTATIONS: &[Mutation] = mutations! {
    // ---- tasks and answers ----
    "a task was accepted and never run" => LOST, "was accepted and has no result": |it| {
        let task = it.task();
        it.forget_runs(&task.id);
        it.answer(task.number, &Answer { task_id: Some(task.id), status: Some(504), ..Answer::of(Kind::Accepted) });
    };
    "a gateway said 202 for a task that is not in Kafka" => LOST, "was accepted and has no result": |it| {
        let task = it.task();
        it.turn_away(&task, 503);
        it.answer(task.number, &Answer { task_id: Some(task.id), status: Some(202), ..Answer::of(Kind::Accepted) });
    };
    "an answer has no result in Kafka" => LOST, "Kafka has no such result": |it| {
        let task = it.task();
        it.remove(|line| matches!(&line.fact, Fact::RunEnded { task_id, .. } if *task_id == task.id));
    };
    "a result is given by no gateway" => FETCHED, "has a result that no gateway gave": |it| {
        let task = it.task();
        it.answer(task.number, &Answer { task_id: Some(task.id), status: Some(504), ..Answer::of(Kind::Accepted) });
    };
    "an answer is that of another text" => RIGHT, "is wrong": |it| {
        let task = it.task();
        it.answer(task.number, &Answer { task_id: Some(task.id), status: Some(200), ..Answer::of(Kind::Wrong) });
    };
    "an answer is none of the results" => RIGHT, "is none of its task's results": |it| {
        let task = it.task();
        let digest = Some("00000000".to_owned());
        it.answer(task.number, &Answer { task_id: Some(task.id), digest, status: Some(200), ..Answer::of(Kind::Answered) });
    };
    "a result on the topic is wrong" => RIGHT, "a result on the topic is wrong: words is 1": |it| {
        let task = it.task();
        it.change(|line| match &mut line.fact {
            Fact::RunEnded { task_id, fault, .. } if *task_id == task.id => {
                *fault = Some("words is 1".to_owned());
                true
            }
            _ => false,
        });
    };
    "two results of one task differ" => RIGHT, "the results of one task differ": |it| {
        let task = it.task();
        it.run(&task.id, &task.worker, task.answered + 1.0);
        it.change(|line| match &mut line.fact {
            Fact::RunEnded { task_id, digest, .. } if *task_id == task.id && line.at > task.answered => {
                *digest = "00000000".to_owned();
                true
            }
            _ => false,
        });
    };
    "a poison task was answered" => RIGHT, "its handler fails each time": |it| {
        let (number, id) = poison(it);
        let answer = Answer { task_id: Some(id), status: Some(200), ..Answer::of(Kind::Answered) };
        it.answer(number, &answer);
    };
    "a task was run that no request is of" => UNEXPECTED, "a result of a task that is not on the topic": |it| {
        let task = it.task();
        it.remove(|line| matches!(&line.fact, Fact::Accepted { task_id, .. } if *task_id == task.id));
    };
    "a task was run that was refused" => UNEXPECTED, "was refused, and its task is there": |it| {
        let task = it.task();
        it.answer(task.number, &refused(503));
    };
    "one request became two tasks" => UNEXPECTED, "became 2 tasks": |it| {
        let task = it.task();
        let other = Fact::Accepted { number: Some(task.number), task_id: "other".to_owned(), partition: 0, offset: 9_999 };
        it.put(task.accepted, other);
    };
    "a repeated request became a task of its own (hole 21)" => UNEXPECTED, "became 2 tasks": |it| {
        let first = it.lines.iter().find_map(|line| match &line.fact {
            Fact::Submitted { repeats: Some(first), .. } => Some((*first, line.at)),
            _ => None,
        });
        let (number, at) = first.expect("a repeated request");
        it.put(at, Fact::Accepted { number: Some(number), task_id: "other".to_owned(), partition: 0, offset: 9_999 });
    };
    "a task failed that could be done" => GIVEN_UP, "failed": |it| {
        let task = it.task();
        it.answer(task.number, &Answer { task_id: Some(task.id), status: Some(500), ..Answer::of(Kind::Failed) });
    };
    "a task that could be done was dead-lettered" => GIVEN_UP, "a task was put on the topic of the dead": |it| {
        let task = it.task();
        it.put(task.answered, Fact::Dead { task_id: Some(task.id), offset: 9_999 });
    };
    "a poison task was given up after three starts (hole 16)" => POISON, "was given up after 3 starts": |it| {
        let (_, id) = poison(it);
        it.remove(|line| matches!(&line.fact, Fact::RunBegan { task_id, delivery: 4.., .. } if *task_id == id));
    };
    "a poison task was started for ever" => POISON, "was never given up": |it| {
        let (_, id) = poison(it);
        it.remove(|line| matches!(&line.fact, Fact::RunEnded { task_id, .. } if *task_id == id));
    };
    "a poison task was given up and dropped" => POISON, "is not on the topic of the dead": |it| {
        let (_, id) = poison(it);
        it.remove(|line| matches!(&line.fact, Fact::Dead { task_id, .. } if task_id.as_deref() == Some(&id)));
    };

    // ---- second runs ----
    "a task ran twice in calm" => TWICE, "unexplained": |it| {
        let task = it.task();
        it.run(&task.id, &it.other(&task.worker), task.answered + 0.3);
    };
    "a start that only the journal tells (hole 19)" => TWICE, "unexplained": |it| {
        let task = it.task();
        let worker = it.other(&task.worker);
        it.put(task.began + 0.002, Fact::RunBegan { worker, task_id: task.id, delivery: 1 });
    };
    "tasks were sent again long after an outage (hole 5)" => TWICE, "unexplained": |it| {
        let from = it.first("freeze-broker").at;
        let shift = from - it.calm()[0].accepted;
        // An outage before them, and nothing that could have lost a record.
        it.put(it.calm()[0].accepted - 18.0, Fact::KafkaAway { until: it.calm()[0].accepted - 17.95 });
        for (index, task) in it.calm().into_iter().enumerate() {
            assert!(shift > 0.0);
            let again = Fact::Accepted {
                number: Some(task.number), task_id: task.id.clone(), partition: 0, offset: 9_000 + index as i64,
            };
            it.put(task.answered + 0.1, again);
            it.run(&task.id, &it.other(&task.worker), task.answered + 0.2);
        }
    };
    "a short freeze of the broker made tasks run twice (hole 6)" => TWICE, "unexplained": |it| {
        let frozen = it.first("freeze-broker").at;
        let ids: Vec<String> = it.lines.iter().filter_map(|line| match &line.fact {
            Fact::RunEnded { task_id, success: true, .. } if (frozen - 2.0..frozen).contains(&line.at) => Some(task_id.clone()),
            _ => None,
        }).collect();
        assert!(ids.len() > 5);
        for id in ids {
            it.run(&id, "worker_1", frozen + 2.3);
        }
    };
    "a kill made more tasks run twice than its worker can have had (hole 7)" => TWICE, "unexplained": |it| {
        let kill = it.first("kill-worker");
        for (number, task) in (0..).zip(it.calm().into_iter().take(20)) {
            let ended = kill.at - 0.4 + f64::from(number) * 0.02;
            it.remove(|line| task_of(&line.fact) == Some(&task.id) && matches!(line.fact, Fact::RunBegan { .. }));
            it.change(|line| {
                let is = task_of(&line.fact) == Some(&task.id);
                if let (true, Fact::RunEnded { worker, .. }) = (is, &mut line.fact) {
                    worker.clone_from(&kill.process);
                }
                if is {
                    line.at = if matches!(line.fact, Fact::Accepted { .. }) { ended - 0.01 } else { ended };
                }
                is
            });
            let (worker, task_id) = (kill.process.clone(), task.id.clone());
            it.put(ended - 0.006, Fact::RunBegan { worker, task_id, delivery: 1 });
            it.run(&task.id, &it.other(&kill.process), kill.at + 0.1);
        }
    };
    "a kill of another worker explains nothing" => TWICE, "unexplained": |it| {
        let kill = it.first("kill-worker");
        let task = it.task();
        it.run(&task.id, &kill.process, task.answered + 0.2);
        it.run(&task.id, &kill.process, task.answered + 0.3);
    };

    // ---- stops of workers ----
    "an idle worker took 1.2 s" => IDLE, "its bound was 1 s": |it| {
        let stop = it.idle_stop();
        it.later(&stop, 1.2);
    };
    "an idle worker took 4.9 s after a freeze of a millisecond (hole 12)" => IDLE, "its bound was 1 s": |it| {
        let stop = it.idle_stop();
        it.later(&stop, 4.9);
        for (at, signal) in [(stop.at - 2.9, "SIGSTOP"), (stop.at - 2.899, "SIGCONT")] {
            it.put(at, Fact::Signalled { process: "broker".to_owned(), signal: signal.to_owned(), action: None });
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

    // ---- gateways ----
    "a gateway did not end (hole 3)" => GATEWAY, "got a signal and has not ended": |it| {
        let stop = it.first("restart-gateway");
        it.remove(|line| line.at > stop.at && matches!(&line.fact, Fact::Exited { process, .. }
            | Fact::Started { process, .. } | Fact::Signalled { process, .. } if *process == stop.process));
        it.change(|line| {
            let last = matches!(line.fact, Fact::End(_));
            line.at += if last { 60.0 } else { 0.0 };
            last
        });
    };
    "a gateway hung after its last answer (hole 3)" => GATEWAY, "after its last answer; its bound was 1 s": |it| {
        let stop = it.first("restart-gateway");
        it.linger(&stop, 1.5);
    };
    "a gateway stopped with exit code 1" => GATEWAY, "stopped with exit code Some(1)": |it| {
        let stop = it.first("restart-gateway");
        it.exit(&stop, |line| if let Fact::Exited { code, .. } = &mut line.fact { *code = Some(1) });
    };
    "a gateway ended by itself" => GATEWAY, "ended by itself": |it| {
        let stop = it.first("restart-gateway");
        it.remove(|line| line.at == stop.at && matches!(&line.fact, Fact::Signalled { process, .. } if *process == stop.process));
    };
    "a gateway was ready when it was told to stop (hole 22)" => UNREADY, "/readyz said 200": |it| {
        it.change(|line| match &mut line.fact {
            Fact::ReadyAsked { status, .. } => {
                *status = Some(200);
                true
            }
            _ => false,
        });
    };
    "a caller was cut off" => CUT, "was cut off by gateway_": |it| {
        let task = it.task();
        it.answer(task.number, &Answer { why: Some("connection reset".to_owned()), ..Answer::of(Kind::Unknown) });
    };
    "a caller was never answered" => CUT, "was never answered": |it| {
        let task = it.task();
        it.remove(|line| matches!(line.fact, Fact::Answered { number, .. } if number == task.number));
    };
    "a new gateway knew of no worker" => KNOWS, "after its start, and": |it| {
        let stop = it.first("restart-gateway");
        it.change(|line| match &mut line.fact {
            Fact::Fleet { gateway, active, .. }
                if *gateway == stop.process && (stop.exit..stop.exit + 9.0).contains(&line.at) =>
            {
                active.clear();
                true
            }
            _ => false,
        });
    };
    "a page listed no worker (hole 15)" => PAGE, "does not list worker_": |it| {
        let task = it.task();
        it.put(task.answered, Fact::Fleet { gateway: "gateway_1".to_owned(), active: Vec::new(), stopping: Vec::new() });
    };
    "a page listed a ghost (hole 15)" => PAGE, "lists worker_9": |it| {
        it.change(|line| match &mut line.fact {
            Fact::Fleet { active, .. } if !active.is_empty() => {
                active.push("worker_9".to_owned());
                true
            }
            _ => false,
        });
    };
    "a page listed workers that were gone" => PAGE, "lists worker_": |it| {
        let end = it.lines.iter().map(|line| line.at).fold(0.0, f64::max);
        it.remove(|line| match &line.fact {
            Fact::Fleet { gateway, .. } => gateway == "gateway_1" && line.at > end - 20.0,
            _ => false,
        });
        it.change(|line| match &line.fact {
            Fact::Signalled { process, .. } | Fact::Exited { process, .. } if process == "gateway_1" && line.at > end - 5.0 => {
                line.at += 8.0;
                true
            }
            _ => false,
        });
    };

    // ---- service ----
    "nearly every caller was turned away (hole 1)" => REFUSED, "was turned away without a cause": |it| {
        for task in it.calm().into_iter().skip(1) {
            it.turn_away(&task, 503);
        }
    };
    "valid requests got 400 (hole 1)" => REFUSED, "is valid and got 400": |it| {
        let task = it.task();
        it.turn_away(&task, 400);
    };
    "requests got 500 (hole 1)" => REFUSED, "is valid and got 500": |it| {
        let task = it.task();
        it.turn_away(&task, 500);
    };
    "connections were refused in calm (hole 1)" => REFUSED, "was turned away without a cause": |it| {
        let task = it.task();
        it.turn_away(&task, 503);
        it.answer(task.number, &Answer { why: Some("nothing sent: refused".to_owned()), ..Answer::of(Kind::Refused) });
    };
    "a refusal does not say when to try again (hole 22)" => REFUSED, "503 without Retry-After": |it| {
        it.change(|line| match &mut line.fact {
            Fact::Answered { answer, .. } if answer.status == Some(503) => {
                answer.retry_after = false;
                true
            }
            _ => false,
        });
    };
    "a restarted gateway refused for ever (hole 1)" => REFUSED, "was turned away without a cause": |it| {
        let stop = it.first("restart-gateway");
        let tasks: Vec<_> = it.calm().into_iter().filter(|task| task.gateway == stop.process).collect();
        for task in tasks {
            it.turn_away(&task, 503);
        }
    };
    "a gateway served no caller for long after its restart" => RECOVERED, "served no caller for": |it| {
        let stop = it.first("restart-gateway");
        let back = it.lines.iter().find(|line| {
            line.at >= stop.exit && matches!(&line.fact, Fact::Started { process, .. } if *process == stop.process)
        });
        let back = back.expect("it was started").at;
        let numbers: Vec<u64> = it.lines.iter().filter_map(|line| match &line.fact {
            Fact::Submitted { number, gateway, .. } if *gateway == stop.process && (stop.at - 13.0..back + 3.5).contains(&line.at) => Some(*number),
            _ => None,
        }).collect();
        it.change(|line| match &mut line.fact {
            Fact::Answered { number, .. } if numbers.contains(number) && (back..back + 3.5).contains(&line.at) => {
                line.at = back + 3.6;
                true
            }
            _ => false,
        });
    };
    "a task started 3 s after it was accepted (hole 4)" => IN_TIME, "after it was accepted; a worker was free for": |it| {
        let task = it.task();
        it.delay(&task.id, task.number, task.began, 3.0);
    };
    "what a stopped worker had fetched stayed locked (hole 4)" => IN_TIME, "after it was accepted; a worker was free for": |it| {
        let stop = it.idle_stop();
        let task = it.task();
        it.change(|line| {
            let accepted = matches!(&line.fact, Fact::Accepted { task_id, .. } if *task_id == task.id);
            line.at = if accepted { stop.at - 0.005 } else { line.at };
            accepted
        });
        it.delay(&task.id, task.number, task.began, 5.0 - (task.began - stop.at));
    };
    "an answer came 2 s after its result (hole 20)" => FOLLOWS, "after its result was in Kafka": |it| {
        let task = it.task();
        it.change(|line| match &line.fact {
            Fact::Answered { number, .. } if *number == task.number => {
                line.at += 2.0;
                true
            }
            _ => false,
        });
    };
    "when all was well, a task was not answered" => PROBED, "was not answered, though all was well": |it| {
        it.answer(AFTERWARDS + 1, &Answer { status: Some(504), ..Answer::of(Kind::Accepted) });
    };
    "when all was well, nothing worked any more" => PROBED, "was not answered, though all was well": |it| {
        it.change(|line| match &mut line.fact {
            Fact::Answered { number: AFTERWARDS.., answer, .. } => {
                *answer = refused(503);
                true
            }
            _ => false,
        });
    };
    "when all was well, a task took 3 s" => PROBED, "though all was well": |it| {
        it.change(|line| match &line.fact {
            Fact::Answered { number, .. } if *number == AFTERWARDS + 2 => {
                line.at += 3.0;
                true
            }
            _ => false,
        });
    };
    "two gateways give different results (hole 14)" => STAYS, "is another result than the one before": |it| {
        it.change(|line| match &mut line.fact {
            Fact::ReadBack { gateway, mark, .. } if gateway == "gateway_2" => {
                *mark = Some("00000000".to_owned());
                true
            }
            _ => false,
        });
    };
    "a result is pending again (hole 14)" => STAYS, "is pending again": |it| read_back(it, Some(200));
    "a result is not known any more (hole 14)" => STAYS, "is answered 404": |it| read_back(it, Some(404));
    "a result cannot be read any more" => STAYS, "is not answered": |it| read_back(it, None);
    "Kafka was unavailable without an action (hole 11)" => KAFKA, "no action had done anything to it": |it| {
        let task = it.task();
        it.put(task.began, Fact::KafkaAway { until: task.began + 2.0 });
    };

    // ---- books, and what was planned ----
    "the group has not finished everything" => LAG, "2 tasks are not finished by the group": |it| {
        it.change(|line| match &mut line.fact {
            Fact::Lag { tasks } => {
                *tasks = 2;
                true
            }
            _ => false,
        });
    };
    "two readers disagree" => READERS, "one is missing": |it| {
        it.put(50.0, Fact::Disagreed { topic: "tasks".to_owned(), detail: "one is missing".to_owned() });
    };
    "an action was not carried out" => PLANNED, "the reason": |it| carried(it, |fact| {
        if let Fact::Carried { done, detail, .. } = fact { (*done, *detail) = (false, "the reason".to_owned()) }
    });
    "an action never ended" => PLANNED, "it was begun and never ended": |it| {
        it.remove(|line| matches!(line.fact, Fact::Carried { action: 2, .. }));
    };
    "a frozen broker took records (hole 10)" => PLANNED, "SIGSTOP to broker was not seen to have an effect": |it| {
        let frozen = it.first("freeze-broker").at;
        let task = it.task();
        it.change(|line| {
            let is = matches!(&line.fact, Fact::RunEnded { task_id, .. } if *task_id == task.id);
            line.at = if is { frozen + 1.0 } else { line.at };
            is
        });
    };
    "a killed broker took records (hole 10)" => PLANNED, "SIGKILL to broker was not seen to have an effect": |it| {
        let kill = it.first("kill-broker");
        let task = it.task();
        it.change(|line| {
            let is = matches!(&line.fact, Fact::RunEnded { task_id, .. } if *task_id == task.id);
            line.at = if is { kill.exit + 0.2 } else { line.at };
            is
        });
    };
    "a frozen worker began a task (hole 10)" => PLANNED, "was not seen to have an effect": |it| {
        let freeze = it.first("freeze-worker");
        let task = it.task();
        it.put(freeze.at + 1.0, Fact::RunBegan { worker: freeze.process, task_id: task.id, delivery: 1 });
    };
    "a killed worker ended otherwise" => PLANNED, "SIGKILL to worker_": |it| {
        let kill = it.first("kill-worker");
        it.exit(&kill, |line| if let Fact::Exited { code, signal, .. } = &mut line.fact { (*code, *signal) = (Some(0), None) });
    };
    "one request in thirty found no free caller (hole 2)" => UNDECIDED, "found no free caller": |it| {
        for task in it.calm() {
            it.put(task.began, Fact::Late);
        }
    };
    "the plan tests what there was no occasion for (hole 9)" => UNDECIDED, "the plan tests P8c": |it| {
        while let Some((number, id)) = find_poison(it) {
            it.remove(|line| match &line.fact {
                Fact::Submitted { number: of, .. } | Fact::Answered { number: of, .. } => *of == number,
                fact => task_of(fact) == Some(&id),
            });
        }
    };
    "the fleet was not probed in the end" => UNDECIDED, "not seen to work when everything was over": |it| {
        it.remove(|line| matches!(line.fact, Fact::Submitted { number: AFTERWARDS.., .. } | Fact::Answered { number: AFTERWARDS.., .. }));
    };
};

/// A poison request and its task.
fn find_poison(it: &Recorded) -> Option<(u64, String)> {
    let number = it.lines.iter().find_map(|line| match &line.fact {
        Fact::Submitted { number, poison: true, .. } => Some(*number),
        _ => None,
    })?;
    let id = it.lines.iter().find_map(|line| match &line.fact {
        Fact::Accepted { number: Some(of), task_id, .. } if *of == number => Some(task_id.clone()),
        _ => None,
    });
    Some((number, id.unwrap_or_default()))
}

fn poison(it: &Recorded) -> (u64, String) {
    find_poison(it).expect("a poison request")
}

/// A task that this process had in flight then, and that was run again.
fn in_flight(it: &Recorded, process: &str, at: f64) -> String {
    let began = it.lines.iter().filter_map(|line| match &line.fact {
        Fact::RunBegan { worker, task_id, .. } if worker == process && line.at < at => Some(task_id.clone()),
        _ => None,
    });
    let again = |id: &String| {
        it.lines
            .iter()
            .any(|line| line.at > at && matches!(&line.fact, Fact::RunBegan { task_id, .. } if task_id == id))
    };
    began.rev().find(again).expect("a task in flight")
}

/// The task that a stop gave up.
fn abandoned(it: &Recorded, stop: &super::recorded::Done) -> String {
    let receipt = it.lines.iter().find_map(|line| match &line.fact {
        Fact::Exited { process, receipt: Some(receipt), .. } if *process == stop.process && line.at == stop.exit => {
            receipt["tasks_abandoned"][0].as_str().map(str::to_owned)
        }
        _ => None,
    });
    receipt.expect("it gave one up")
}

fn request_of(it: &Recorded, id: &str) -> u64 {
    let number = it.lines.iter().find_map(|line| match &line.fact {
        Fact::Accepted { number, task_id, .. } if task_id == id => *number,
        _ => None,
    });
    number.expect("a task of this run")
}

fn is_said(line: &super::super::fact::Line, worker: &str, status: &str, from: f64, until: f64) -> bool {
    let within = (from - 0.01..until + 0.5).contains(&line.at);
    within && matches!(&line.fact, Fact::Notified { worker: by, status: said, .. } if by == worker && said == status)
}

fn without(it: &mut Recorded, member: &str) {
    let stop = it.idle_stop();
    it.receipt(&stop, |receipt| drop(receipt.as_object_mut().expect("an object").remove(member)));
}

fn says(it: &mut Recorded, member: &str, value: serde_json::Value) {
    let stop = it.idle_stop();
    it.receipt(&stop, |receipt| receipt[member] = value.clone());
}

fn read_back(it: &mut Recorded, answered: Option<u16>) {
    let mut first = true;
    it.change(|line| match &mut line.fact {
        // The second time.
        Fact::ReadBack { gateway, status, mark, is_result, .. }
            if gateway == "gateway_2" && std::mem::take(&mut first) =>
        {
            (*status, *mark, *is_result) = (answered, None, false);
            true
        }
        _ => false,
    });
}

fn carried(it: &mut Recorded, change: impl Fn(&mut Fact)) {
    it.change(|line| {
        let is = matches!(line.fact, Fact::Carried { action: 2, .. });
        if is {
            change(&mut line.fact);
        }
        is
    });
}

#[test]
fn the_recorded_run_is_held() {
    let verdict = Recorded::new().judged();
    let broken = broken(&verdict);
    assert!(verdict.conclusion == Conclusion::Held && broken.is_empty(), "{:?}: {broken:#?}", verdict.conclusion);
    // Nothing is held for want of an occasion, but for what a broker of one node has none for.
    let untested = verdict.rows.iter().filter(|row| row.state == State::Untested && row.promise != "P11");
    assert_eq!(untested.map(|row| row.name).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn each_mutation_turns_its_row_red_for_its_reason() {
    assert!(MUTATIONS.len() >= 60);
    let wrong: Vec<String> =
        MUTATIONS.iter().filter_map(|mutation| undetected(mutation, Recorded::new()).err()).collect();
    assert!(wrong.is_empty(), "{} of {} mutations:\n{}", wrong.len(), MUTATIONS.len(), wrong.join("\n"));
}

/// Why a change to this ledger does not have its effect.
pub(super) fn undetected(mutation: &Mutation, mut recorded: Recorded) -> Result<(), String> {
    let Mutation { name, row, says, change } = mutation;
    change(&mut recorded);
    let verdict = recorded.judged();
    if *row == UNDECIDED {
        let Conclusion::Undecided(why) = &verdict.conclusion else {
            return Err(format!("{name}: {:?}, {:#?}", verdict.conclusion, broken(&verdict)));
        };
        return if why.contains(says) { Ok(()) } else { Err(format!("{name}: undecided, since {why}")) };
    }
    let red = broken(&verdict);
    let said =
        red.iter().filter(|found| found.name == *row).flat_map(|row| &row.findings).any(|it| it.what.contains(says));
    let held = verdict.conclusion == Conclusion::Held;
    let rows: Vec<String> =
        red.iter().map(|row| format!("{} ({:?})", row.name, row.findings.first().map(|it| &it.what))).collect();
    if said && !held { Ok(()) } else { Err(format!("{name}: {:?}: {}", verdict.conclusion, rows.join(", "))) }
}
