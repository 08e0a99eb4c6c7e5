//! Replays: two operators at once, kills, tasks whose ids were used again, and tasks that Kafka refuses.

use std::time::Instant;

use super::*;

#[test]
fn letter_is_replayed_once_when_two_operators_replay_it_at_once() {
    let (rig, gateway, _worker) = Rig::with_faults("dead-two", 1).fleet("w");
    let ids: Vec<String> = (0..10).map(|number| format!("task-{number}")).collect();
    bury(&rig, &ids.iter().map(String::as_str).collect::<Vec<_>>(), &[REASON]);
    // Kafka holds the first claim of one operator until the other's claim is on its way.
    let claims = |action| Fault::new(action).at(Kind::Produce).of_topic(&format!("{}.dead", rig.tasks()));
    let held = claims(Action::Delay(Duration::from_secs(8))).of_client("lastcall-dead");
    let held = rig.broker().faulty().inject(held);
    let mut slow = dead(&rig, &["replay", "--reason", "failed"]).start();
    eventually(SOON, "the first claim is held", || held.count() == 1);
    let other = rig.broker().faulty().inject(claims(Action::Delay(Duration::ZERO)).of_client("lastcall-dead"));
    let mut fast = dead(&rig, &["replay", "--reason", "failed"]).start();
    eventually(SOON, "the other operator claims the same letter", || other.count() == 1);
    assert!(output(&slow).is_empty(), "{}", output(&slow));
    let mut done = 0;
    for operator in [&mut slow, &mut fast] {
        operator.wait(START);
        done += operator.lines_with(": replayed, as number").len();
    }
    assert_eq!(done, ids.len(), "{}{}", output(&slow), output(&fast));
    let refused = slow.lines_with("has replayed it already").len() + slow.lines_with("is replaying it").len();
    assert!(refused > 0, "{}", output(&slow));
    let mut found = replayed(&rig);
    found.sort();
    assert_eq!(found, ids);
    for id in &ids {
        assert_eq!(gateway.wait_for_result(id, SOON)["words"], 2);
    }
    assert!(states(&rig).iter().all(|(_, state)| state == "replayed"), "{:?}", states(&rig));
}

#[test]
fn task_whose_idempotency_key_was_used_again_is_replayed_only_by_the_position_of_its_letter() {
    let rig = Rig::shared("dead-reused");
    let gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "60s").env("RESULT_RETENTION", "1s"));
    let mut worker = started(&rig.obedient_worker("broken").env("MAX_DELIVERIES", 2));
    let key = [("Idempotency-Key", "order 17")];
    let failed = gateway.analyze_with(&key, &json!({ "text": "retry not yet" })).assert_problem(500);
    let task = failed["task_id"].as_str().expect("an id").to_owned();
    worker.ends_at(Signal::SIGTERM, 0);
    eventually(SOON, "the letter is listed", || listed(&rig, &[])["open"] == 1);
    eventually(SOON, "the result is forgotten", || gateway.get(&format!("/tasks/{task}")).status == 404);
    let _worker = rig.start_worker("mended");
    let again = gateway.analyze_with(&key, &json!({ "text": "two words" })).json();
    assert_eq!((&again["task_id"], &again["words"]), (&json!(task), &json!(2)));
    for choice in [&[task.as_str()][..], &["--reason", "failed"]] {
        let (code, said) = run(&rig, &[&["replay"], choice].concat());
        assert!(
            code == 1 && said.contains("a newer task with this id is on ") && said.contains("position 0:0"),
            "{said}"
        );
    }
    assert!(replayed(&rig).is_empty());
    let (code, said) = run(&rig, &["replay", "0:0"]);
    assert!(code == 0 && replayed(&rig) == [task], "{said}");
}

#[test]
fn unfinished_replay_from_before_the_kept_tasks_is_not_repeated_unless_by_the_position_of_its_letter() {
    let rig = Rig::shared("dead-old");
    let _gateway = rig.start_gateway();
    bury(&rig, &["a"], &[REASON]);
    let mark = [("lastcall-mark", "claim"), ("lastcall-letter", "0:0"), ("lastcall-replay", "7")];
    bury(&rig, &["a"], &mark);
    let address = rig.broker().address();
    let task = (Some(&b"b"[..]), Some(&b"any"[..]));
    crate::support::audit::produce(address, &rig.tasks(), &[task, task]);
    admin::delete_records(address, &rig.tasks(), 0, 1);
    eventually(CLAIM_ENDS, "the claim has expired", || states(&rig)[0].1 == "unfinished");
    let (code, said) = run(&rig, &["replay", "a"]);
    assert!(code == 1 && said.contains("ran is not known") && said.contains("position 0:0"), "{said}");
    let (code, said) = run(&rig, &["replay", "0:0"]);
    assert!(code == 0 && said.starts_with("0:0: replayed, as number "), "{said}");
}

#[test]
fn older_letter_of_a_task_is_not_replayed_for_its_reason() {
    let (rig, _gateway, _worker) = Rig::shared("dead-twice").fleet("w");
    bury(&rig, &["a"], &[REASON]);
    bury(&rig, &["a", "b"], &[REASON]);
    let (code, said) = run(&rig, &["replay", "--reason", "failed"]);
    assert!(code == 1 && said.contains("a: the letter 0:1 of this task is newer"), "{said}");
    assert_eq!((said.matches(": replayed, as number").count(), replayed(&rig).len()), (2, 2), "{said}");
}

#[test]
fn task_that_kafka_refuses_does_not_keep_the_others_from_their_replay() {
    let (rig, _gateway, _worker) = Rig::shared("dead-refused").fleet("w");
    let long = "x".repeat(2_000);
    bury(&rig, &["large"], &[REASON, ("foreign", &long)]);
    bury(&rig, &["small"], &[REASON]);
    admin::set(rig.broker().address(), Of::Topic, &rig.tasks(), "max.message.bytes", "1000");
    let (code, said) = run(&rig, &["replay", "--reason", "failed"]);
    assert!(code == 1 && said.contains("large: Kafka refuses the task: "), "{said}");
    assert!(said.contains("small: replayed, as number"), "{said}");
    assert_eq!(replayed(&rig), ["small"]);
}

#[test]
fn replay_ends_before_its_claim_expires_when_kafka_does_not_answer() {
    let (rig, _gateway, _worker) = Rig::with_faults("dead-slow", 1).fleet("w");
    bury(&rig, &["a"], &[REASON]);
    let fault = |action| Fault::new(action).at(Kind::Produce).of_client("lastcall-dead");
    let late = fault(Action::Late(Duration::from_secs(4))).of_topic(&format!("{}.starts", rig.tasks()));
    let never = fault(Action::Deafen).of_topic(&rig.tasks()).every(1, u32::MAX);
    for fault in [late, never] {
        rig.broker().faulty().inject(fault);
    }
    let mut operator = dead(&rig, &["replay", "a"]).start();
    let claimed =
        eventually_some(SOON, "the letter is claimed", || (states(&rig)[0].1 == "replaying").then(Instant::now));
    assert_eq!(operator.wait(CLAIM_ENDS).code, Some(1), "{}", output(&operator));
    assert!(claimed.elapsed() < Duration::from_secs(17), "{:?}", claimed.elapsed());
    assert!(output(&operator).contains("replay unfinished"), "{}", output(&operator));
}

/// Kills an operator in each step of a replay.
#[test]
fn replay_that_a_kill_interrupts_is_finished_by_the_next_one_and_produces_its_task_once() {
    let (rig, gateway, _worker) = Rig::with_faults("dead-kill", 1).fleet("w");
    let (tasks, dead_topic) = (rig.tasks(), format!("{}.dead", rig.tasks()));
    let starts = format!("{tasks}.starts");
    let late = Action::Late(Duration::from_secs(600));
    // (task, the topic of the step, requests to it before, what Kafka does, state after the kill)
    let steps = [
        ("claim", &dead_topic, 0, Action::Deafen, "open"),
        ("claimed", &dead_topic, 0, late, "unfinished"),
        ("reset", &starts, 0, Action::Deafen, "unfinished"),
        ("produce", &tasks, 0, Action::Deafen, "unfinished"),
        ("produced", &tasks, 0, late, "unfinished"),
        ("mark", &dead_topic, 1, Action::Deafen, "unfinished"),
    ];
    let ids = steps.map(|step| step.0);
    bury(&rig, &ids, &[REASON]);
    for (id, topic, before, action, _) in steps {
        let fault = Fault::new(action).at(Kind::Produce).of_topic(topic).of_client("lastcall-dead").after(before);
        let bites = rig.broker().faulty().inject(fault);
        let mut operator = dead(&rig, &["replay", id]).start();
        eventually(SOON, &format!("the step of {id} is reached"), || bites.count() == 1);
        operator.kill();
        rig.broker().faulty().heal();
        if id == "produce" {
            let (code, said) = run(&rig, &["replay", id]);
            assert!(code == 1 && said.contains("ann@") && said.contains("is replaying it"), "{said}");
        }
    }
    eventually(CLAIM_ENDS, "every claim has expired", || !states(&rig).iter().any(|(_, state)| state == "replaying"));
    assert_eq!(states(&rig).into_iter().map(|(_, state)| state).collect::<Vec<_>>(), steps.map(|step| step.4));
    let (code, said) = run(&rig, &[&["replay"], &ids[..]].concat());
    assert_eq!(code, 0, "{said}");
    assert_eq!(said.matches("was not finished; finished now").count(), 2, "{said}");
    let mut found = replayed(&rig);
    found.sort();
    assert_eq!(found, ["claim", "claimed", "mark", "produce", "produced", "reset"]);
    for id in ids {
        assert_eq!(gateway.wait_for_result(id, SOON)["words"], 2);
    }
    assert!(states(&rig).iter().all(|(_, state)| state == "replayed"), "{:?}", states(&rig));
}
