//! Mutations of tasks and answers.

use super::*;

pub(super) const MUTATIONS: &[Mutation] = mutations! {
    // ---- tasks and answers ----
    "task was accepted and never run" => LOST, "was accepted and has no result": |it| {
        let task = it.task();
        it.forget_runs(&task.id);
        it.answer(task.number, &Answer { task_id: Some(task.id), status: Some(504), ..Answer::of(Kind::Accepted) });
    };
    "gateway returned 202 for a task that is not in Kafka" => LOST, "was accepted and has no result": |it| {
        let task = it.task();
        it.turn_away(&task, 503);
        it.answer(task.number, &Answer { task_id: Some(task.id), status: Some(202), ..Answer::of(Kind::Accepted) });
    };
    "answer has no result in Kafka" => LOST, "Kafka has no such result": |it| {
        let task = it.task();
        it.remove(|line| matches!(&line.fact, Fact::RunEnded { task_id, .. } if *task_id == task.id));
    };
    "result is returned by no gateway" => FETCHED, "has a result that no gateway returned": |it| {
        let task = it.task();
        it.answer(task.number, &Answer { task_id: Some(task.id), status: Some(504), ..Answer::of(Kind::Accepted) });
    };
    "answer belongs to another text" => RIGHT, "is wrong": |it| {
        let task = it.task();
        it.answer(task.number, &Answer { task_id: Some(task.id), status: Some(200), ..Answer::of(Kind::Wrong) });
    };
    "answer differs from the result" => RIGHT, "differs from each result of its task": |it| {
        let task = it.task();
        let digest = Some("00000000".to_owned());
        it.answer(task.number, &Answer { task_id: Some(task.id), digest, status: Some(200), ..Answer::of(Kind::Answered) });
    };
    "result on the topic is wrong" => RIGHT, "a result on the topic is wrong: words is 1": |it| {
        let task = it.task();
        alter!(it, line: Fact::RunEnded { task_id, fault, .. }
            if *task_id == task.id => *fault = Some("words is 1".to_owned()));
    };
    "two results of one task differ" => RIGHT, "the results of one task differ": |it| {
        let task = it.task();
        it.run(&task.id, &task.worker, task.answered + 1.0);
        alter!(it, line: Fact::RunEnded { task_id, digest, .. }
            if *task_id == task.id && line.at > task.answered => *digest = "00000000".to_owned());
    };
    "poison task was answered" => RIGHT, "its handler fails each time": |it| {
        let (number, id) = poison(it);
        let answer = Answer { task_id: Some(id), status: Some(200), ..Answer::of(Kind::Answered) };
        it.answer(number, &answer);
    };
    "task ran without a request" => UNEXPECTED, "a result of a task that is not on the topic": |it| {
        let task = it.task();
        it.remove(|line| matches!(&line.fact, Fact::Accepted { task_id, .. } if *task_id == task.id));
    };
    "task of a refused request ran" => UNEXPECTED, "was refused, and its task exists": |it| {
        let task = it.task();
        it.answer(task.number, &refused(503));
    };
    "one request became two tasks" => UNEXPECTED, "became 2 tasks": |it| {
        let task = it.task();
        let other = Fact::Accepted { number: Some(task.number), task_id: "other".to_owned(), partition: 0, offset: 9_999 };
        it.put(task.accepted, other);
    };
    "repeated request became a second task" => UNEXPECTED, "became 2 tasks": |it| {
        let first = it.lines.iter().find_map(|line| match &line.fact {
            Fact::Submitted { repeats: Some(first), .. } => Some((*first, line.at)),
            _ => None,
        });
        let (number, at) = first.expect("a repeated request");
        it.put(at, Fact::Accepted { number: Some(number), task_id: "other".to_owned(), partition: 0, offset: 9_999 });
    };
    "task that can succeed failed" => GIVEN_UP, "failed": |it| {
        let task = it.task();
        it.answer(task.number, &Answer { task_id: Some(task.id), status: Some(500), ..Answer::of(Kind::Failed) });
    };
    "task that can succeed was dead-lettered" => GIVEN_UP, "a task was dead-lettered": |it| {
        let task = it.task();
        it.put(task.answered, Fact::Dead { task_id: Some(task.id), offset: 9_999 });
    };
    "poison task was dead-lettered after three starts" => POISON, "was dead-lettered after 3 starts": |it| {
        let (_, id) = poison(it);
        it.remove(|line| matches!(&line.fact, Fact::RunBegan { task_id, delivery: 4.., .. } if *task_id == id));
    };
    "poison task was never dead-lettered" => POISON, "was never dead-lettered": |it| {
        let (_, id) = poison(it);
        it.remove(|line| matches!(&line.fact, Fact::RunEnded { task_id, .. } if *task_id == id));
    };
    "poison task got an error result and was dropped" => POISON, "is not on the topic of dead-lettered tasks": |it| {
        let (_, id) = poison(it);
        it.remove(|line| matches!(&line.fact, Fact::Dead { task_id, .. } if task_id.as_deref() == Some(&id)));
    };

    // ---- second runs ----
    "task ran twice without a cause" => TWICE, "unexplained": |it| {
        let task = it.task();
        it.run(&task.id, &it.other(&task.worker), task.answered + 0.3);
    };
    "second start is only in the journal" => TWICE, "unexplained": |it| {
        let task = it.task();
        let worker = it.other(&task.worker);
        // The broker is frozen and killed later, which explains nothing.
        it.put(task.began + 0.002, Fact::RunBegan { worker, task_id: task.id, delivery: 1 });
    };
    "tasks were sent again long after an outage" => TWICE, "unexplained": |it| {
        let from = it.first("freeze-broker").at;
        let shift = from - it.calm()[0].accepted;
        // An outage before the tasks, which lost no record.
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
    "finished task was sent again at a later outage" => TWICE, "unexplained": |it| {
        let task = it.task();
        let again = it.first("kill-broker").exit + 1.0;
        assert!(again > task.answered + 10.0);
        it.put(again, Fact::Accepted { number: Some(task.number), task_id: task.id.clone(), partition: 0, offset: 9_999 });
        it.run(&task.id, &it.other(&task.worker), again + 0.01);
        alter!(it, line: Fact::RunBegan { task_id, delivery, .. }
            if *task_id == task.id && line.at > again => *delivery = 1);
    };
    "tasks ran twice after a short freeze of the broker" => TWICE, "unexplained": |it| {
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
    "more tasks ran twice after a kill than the worker had in flight" => TWICE, "unexplained": |it| {
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
    "abandoned task that no receipt lists ran twice" => TWICE, "unexplained": |it| {
        let stop = it.deadline();
        it.receipt(&stop, |receipt| receipt["tasks_abandoned"] = json!([]));
    };
    "kill at another time explains no second run" => TWICE, "unexplained": |it| {
        let kill = it.first("kill-worker");
        let task = it.task();
        it.run(&task.id, &kill.process, task.answered + 0.2);
        it.run(&task.id, &kill.process, task.answered + 0.3);
    };
};
