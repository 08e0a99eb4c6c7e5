//! Mutations of gateways, of service, and of the run as a whole.

use super::*;

pub(super) const MUTATIONS: &[Mutation] = mutations! {
    // ---- gateways ----
    "gateway did not end" => GATEWAY, "got a signal and has not ended": |it| {
        let stop = it.first("restart-gateway");
        it.remove(|line| line.at > stop.at && matches!(&line.fact, Fact::Exited { process, .. }
            | Fact::Started { process, .. } | Fact::Signalled { process, .. } if *process == stop.process));
        alter!(it, line: Fact::End(_) => line.at += 60.0);
    };
    "gateway hung after its last answer" => GATEWAY, "after its last answer; its bound was 1 s", 1.1 not 0.9: |it, by| {
        let stop = it.first("restart-gateway");
        it.linger(&stop, by);
    };
    "gateway stopped with exit code 1" => GATEWAY, "stopped with exit code 1; expected 0": |it| {
        let stop = it.first("restart-gateway");
        it.exit(&stop, |line| if let Fact::Exited { code, .. } = &mut line.fact { *code = Some(1) });
    };
    "gateway ended by itself" => GATEWAY, "ended by itself": |it| {
        let stop = it.first("restart-gateway");
        it.remove(|line| line.at == stop.at && matches!(&line.fact, Fact::Signalled { process, .. } if *process == stop.process));
    };
    "gateway was ready after its signal" => UNREADY, "returned 200 after its signal": |it| {
        alter!(it, line: Fact::ReadyAsked { status, .. } => *status = Some(200));
    };
    "caller was cut off" => CUT, "was cut off by gateway_": |it| {
        let task = it.task();
        it.answer(task.number, &Answer { why: Some("connection reset".to_owned()), ..Answer::of(Kind::Unknown) });
    };
    "caller was never answered" => CUT, "was never answered": |it| {
        let task = it.task();
        it.remove(|line| matches!(line.fact, Fact::Answered { number, .. } if number == task.number));
    };
    "restarted gateway knew no worker" => KNOWS, "after its start, but": |it| {
        let stop = it.first("restart-gateway");
        alter!(it, line: Fact::Fleet { gateway, active, .. }
            if *gateway == stop.process && (stop.exit..stop.exit + 9.0).contains(&line.at) => active.clear());
    };
    "page listed no worker" => PAGE, "does not list worker_": |it| {
        let task = it.task();
        it.put(task.answered, Fact::Fleet { gateway: "gateway_1".to_owned(), active: Vec::new(), stopping: Vec::new() });
    };
    "page listed a worker that never ran" => PAGE, "lists worker_9": |it| {
        alter!(it, line: Fact::Fleet { active, .. } if !active.is_empty() => active.push("worker_9".to_owned()));
    };
    "page listed workers that were gone" => PAGE, "lists worker_": |it| {
        let end = it.lines.iter().map(|line| line.at).fold(0.0, f64::max);
        it.remove(|line| match &line.fact {
            Fact::Fleet { gateway, .. } => gateway == "gateway_1" && line.at > end - 20.0,
            _ => false,
        });
        alter!(it, line: Fact::Signalled { process, .. } | Fact::Exited { process, .. }
            if process == "gateway_1" && line.at > end - 5.0 => line.at += 8.0);
    };

    // ---- service ----
    "nearly every request was refused" => REFUSED, "was refused without a cause": |it| {
        for task in it.calm().into_iter().skip(1) {
            it.turn_away(&task, 503);
        }
    };
    "valid request got 400" => REFUSED, "is valid and got 400": |it| {
        let task = it.task();
        it.turn_away(&task, 400);
    };
    "valid request got 500" => REFUSED, "is valid and got 500": |it| {
        let task = it.task();
        it.turn_away(&task, 500);
    };
    "connection was refused without a cause" => REFUSED, "was refused without a cause": |it| {
        let task = it.task();
        it.turn_away(&task, 503);
        it.answer(task.number, &Answer { why: Some("nothing sent: refused".to_owned()), ..Answer::of(Kind::Refused) });
    };
    "refusals had no Retry-After" => REFUSED, "503 without Retry-After": |it| {
        alter!(it, line: Fact::Answered { answer, .. } if answer.status == Some(503) => answer.retry_after = false);
    };
    "restarted gateway refused every request" => REFUSED, "was refused without a cause": |it| {
        let stop = it.first("restart-gateway");
        let tasks: Vec<_> = it.calm().into_iter().filter(|task| task.gateway == stop.process).collect();
        for task in tasks {
            it.turn_away(&task, 503);
        }
    };
    "restarted gateway served no caller for 3.6 s" => RECOVERED, "served no caller for": |it| {
        let stop = it.first("restart-gateway");
        let back = it.lines.iter().find(|line| {
            line.at >= stop.exit && matches!(&line.fact, Fact::Started { process, .. } if *process == stop.process)
        });
        let back = back.expect("it was started").at;
        let numbers: Vec<u64> = it.lines.iter().filter_map(|line| match &line.fact {
            Fact::Submitted { number, gateway, .. } if *gateway == stop.process && (stop.at - 13.0..back + 3.5).contains(&line.at) => Some(*number),
            _ => None,
        }).collect();
        alter!(it, line: Fact::Answered { number, .. }
            if numbers.contains(number) && (back..back + 3.5).contains(&line.at) => line.at = back + 3.6);
    };
    "task started late" => IN_TIME, "after it was accepted; a worker was free for", 1.1 not 0.9: |it, by| {
        let task = it.task();
        it.delay(&task.id, task.number, task.began, by);
    };
    "records that a stopped worker had fetched stayed locked" => IN_TIME, "after it was accepted; a worker was free for": |it| {
        let stop = it.idle_stop();
        let task = it.task();
        alter!(it, line: Fact::Accepted { task_id, .. } if *task_id == task.id => line.at = stop.at - 0.005);
        it.delay(&task.id, task.number, task.began, 5.0 - (task.began - stop.at));
    };
    "answer came late" => FOLLOWS, "after its result was in Kafka", 1.1 not 0.9: |it, by| {
        let task = it.task();
        alter!(it, line: Fact::Answered { number, .. } if *number == task.number => line.at += by);
    };
    "one probe was not answered" => PROBED, "was not answered, though all faults were over": |it| {
        it.answer(AFTERWARDS + 1, &Answer { status: Some(504), ..Answer::of(Kind::Accepted) });
    };
    "no probe was answered" => PROBED, "was not answered, though all faults were over": |it| {
        alter!(it, line: Fact::Answered { number: AFTERWARDS.., answer, .. } => *answer = refused(503));
    };
    "one probe took too long" => PROBED, "though all faults were over", 2.1 not 0.9: |it, by| {
        alter!(it, line: Fact::Answered { number, .. } if *number == AFTERWARDS + 2 => line.at += by);
    };
    "two gateways returned different results" => STAYS, "differs from the result before": |it| {
        alter!(it, line: Fact::ReadBack { gateway, mark, .. }
            if gateway == "gateway_2" => *mark = Some("00000000".to_owned()));
    };
    "task with a result was pending again" => STAYS, "is pending again": |it| read_back(it, Some(200));
    "result was unknown again" => STAYS, "is answered 404": |it| read_back(it, Some(404));
    "request for a result was not answered" => STAYS, "is not answered": |it| read_back(it, None);
    "restarted gateway took a finished task for pending" => STAYS, "is pending again": |it| {
        ask_restarted(it, 1.0, Some(200));
    };
    "restarted gateway did not know a finished task" => STAYS, "is answered 404": |it| ask_restarted(it, 1.0, Some(404));
    "restarted gateway was still reading" => STAYS, "is answered 503", 3.2 not 2.8: |it, by| {
        ask_restarted(it, by, Some(503));
    };
    "restarted gateway did not answer" => STAYS, "is not answered", 3.2 not 2.8: |it, by| ask_restarted(it, by, None);
    "Kafka was unavailable without an action" => KAFKA, "no action had disturbed it": |it| {
        let task = it.task();
        it.put(task.began, Fact::KafkaAway { until: task.began + 2.0 });
    };

    // ---- accounting and planned actions ----
    "worker group has unfinished tasks" => LAG, "the worker group has not finished 2 tasks": |it| {
        alter!(it, line: Fact::Lag { tasks } => *tasks = 2);
    };
    "two readers disagree" => READERS, "one is missing": |it| {
        it.put(50.0, Fact::Disagreed { topic: "tasks".to_owned(), detail: "one is missing".to_owned() });
    };
    "action was not carried out" => PLANNED, "the reason": |it| {
        alter!(it, line: Fact::Carried { action: 2, done, detail }
            => (*done, *detail) = (false, "the reason".to_owned()));
    };
    "action never ended" => PLANNED, "it began and never ended": |it| {
        it.remove(|line| matches!(line.fact, Fact::Carried { action: 2, .. }));
    };
    "frozen broker took records" => PLANNED, "SIGSTOP to broker had no visible effect": |it| {
        let frozen = it.first("freeze-broker").at;
        let task = it.task();
        alter!(it, line: Fact::RunEnded { task_id, .. } if *task_id == task.id => line.at = frozen + 1.0);
    };
    "killed broker took records" => PLANNED, "SIGKILL to broker had no visible effect": |it| {
        let kill = it.first("kill-broker");
        let task = it.task();
        alter!(it, line: Fact::RunEnded { task_id, .. } if *task_id == task.id => line.at = kill.exit + 0.2);
    };
    "frozen worker began a task" => PLANNED, "had no visible effect": |it| {
        let freeze = it.first("freeze-worker");
        let task = it.task();
        it.put(freeze.at + 1.0, Fact::RunBegan { worker: freeze.process, task_id: task.id, delivery: 1 });
    };
    "killed worker ended with exit code 0" => PLANNED, "SIGKILL to worker_": |it| {
        let kill = it.first("kill-worker");
        it.exit(&kill, |line| if let Fact::Exited { code, signal, .. } = &mut line.fact { (*code, *signal) = (Some(0), None) });
    };
    "one request in thirty found no free caller" => UNDECIDED, "found no free caller": |it| {
        for task in it.calm() {
            it.put(task.began, Fact::Late);
        }
    };
    "plan tests a promise that the run did not test" => UNDECIDED, "the plan tests P8c": |it| {
        while let Some((number, id)) = find_poison(it) {
            it.remove(|line| match &line.fact {
                Fact::Submitted { number: of, .. } | Fact::Answered { number: of, .. } => *of == number,
                fact => task_of(fact) == Some(&id),
            });
        }
    };
    "fleet was not probed at the end" => UNDECIDED, "was not probed after the last action": |it| {
        it.remove(|line| matches!(line.fact, Fact::Submitted { number: AFTERWARDS.., .. } | Fact::Answered { number: AFTERWARDS.., .. }));
    };
};
