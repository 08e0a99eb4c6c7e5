//! Mutations: what becomes of tasks and answers.

use super::*;

pub(super) const MUTATIONS: &[Mutation] = mutations! {
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
};
