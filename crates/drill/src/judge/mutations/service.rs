//! Mutations: gateways, service, and the run as a whole.

use super::*;

pub(super) const MUTATIONS: &[Mutation] = mutations! {
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
