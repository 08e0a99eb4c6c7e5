//! Hazards of a queue on share groups, with a test for each that it does not occur.

use std::{
    sync::Barrier,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{
    Gateway, Rig, SOON,
    admin::{self, Of},
    audit, eventually, eventually_some,
    load::{assert_all_answered, task_ids},
    program::Program,
    started,
};

#[test]
fn topics_get_the_settings_that_the_programs_need() {
    let rig = Rig::shared("hazard-settings");
    let _gateway = rig.start_gateway();
    let broker = rig.broker().address();
    let tasks = admin::configs(broker, Of::Topic, &rig.tasks());
    let results = admin::configs(broker, Of::Topic, &rig.results());
    for (topic, retention) in [(&tasks, "604800000"), (&results, "3600000")] {
        let expected =
            [("message.timestamp.type", "LogAppendTime"), ("retention.ms", retention), ("min.insync.replicas", "1")];
        for (setting, value) in expected {
            assert_eq!(topic[setting], value, "{setting}");
        }
    }
    assert_eq!(admin::partitions(broker, &rig.tasks()), 1);
    for suffix in [".dead", ".starts"] {
        let name = format!("{}{suffix}", rig.tasks());
        assert_eq!(admin::configs(broker, Of::Topic, &name)["message.timestamp.type"], "LogAppendTime", "{name}");
    }
}

#[test]
fn the_first_worker_of_a_group_takes_tasks_within_a_second() {
    let rig = Rig::quiet("hazard-join");
    let times = [0, 1, 2].map(|round| {
        let rig = Rig::beside(&rig, &format!("hazard-join-{round}"));
        let gateway = rig.start_gateway();
        let start = Instant::now();
        let _worker = rig.start_worker("first");
        assert_eq!(gateway.analyze("a new group").status, 200);
        start.elapsed()
    });
    // By default Kafka computes assignments once per second. The fastest round counts: a busy machine may pause.
    assert!(times.iter().min() < Some(&Duration::from_secs(1)), "{times:?}");
}

#[test]
fn a_worker_waits_while_its_group_is_full() {
    let (rig, gateway, mut first) =
        Rig::with_own_broker("hazard-full", &["--set", "group.share.max.size=2"]).fleet("first");
    let _second = rig.start_worker("second");
    let mut third = rig.worker("third").start();
    eventually(SOON, "the group refuses the third worker", || {
        third.lines().iter().any(|line| line.text.contains("GROUP_MAX_SIZE_REACHED") || line.text.contains("full"))
    });
    assert!(third.is_running() && third.lines_with("sent worker_started").is_empty());
    first.ends_at(Signal::SIGTERM, 0);
    third.wait_for_line("worker_started notification", SOON);
    assert_eq!(gateway.analyze("room for one more").status, 200);
}

#[test]
fn the_same_key_on_two_gateways_at_once_is_one_task() {
    let rig = Rig::shared("hazard-key");
    let gateways = [rig.start_gateway(), rig.start_gateway()];
    let _worker = rig.start_worker("w");
    for round in 0..30 {
        let key = format!("key {round}");
        let barrier = Barrier::new(2);
        let answers: Vec<_> = std::thread::scope(|scope| {
            let callers: Vec<_> = gateways
                .iter()
                .map(|gateway| {
                    let mut http = gateway.connect();
                    let (key, barrier) = (&key, &barrier);
                    scope.spawn(move || {
                        let headers = [("Content-Type", "application/json"), ("Idempotency-Key", key.as_str())];
                        barrier.wait();
                        http.request("POST", "/analyze", &headers, br#"{"text": "once only"}"#).expect("a response")
                    })
                })
                .collect();
            callers.into_iter().map(|caller| caller.join().expect("no panic")).collect()
        });
        assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        assert_eq!(answers[0].task_id(), answers[1].task_id());
        assert_eq!(answers[0].json(), answers[1].json());
    }
    let audit = rig.audit();
    assert_eq!(audit.tasks.len(), 30);
    assert!(audit.tasks.values().all(|records| *records == 1), "{:?}", audit.tasks);
    audit.assert_each_ran_once([]);
}

#[test]
fn a_task_of_unknown_produce_outcome_runs_once_under_its_id() {
    let (rig, gateway, _worker) =
        Rig::quiet_with_own_broker("hazard-unknown", &[]).fleet_with("w", &[("ANSWER_TIMEOUT", "3s")]);
    // At 300 requests per second some request is in flight when the broker freezes.
    let load = gateway.load(300, 0);
    load.wait_for(300, SOON);
    rig.broker().freeze();
    eventually(SOON, "a caller gets 503 with a task id", || load.unknown() > 0);
    rig.broker().thaw();
    load.wait_for(100, SOON);
    let shots = load.finish();
    // The gateway sends the same batch until its outcome is known, so each task id has a task.
    let ids = task_ids(&shots);
    for id in &ids {
        gateway.wait_for_result(id, SOON);
    }
    rig.audit().assert_each_ran_once(&ids);
}

#[test]
fn callers_whose_result_cannot_come_in_time_get_503_at_once() {
    let (_rig, gateway, _worker) = Rig::quiet("hazard-overload").fleet_with("w", &[("ANSWER_TIMEOUT", "3s")]);
    let mut http = gateway.connect();
    let headers = [("Content-Type", "application/json"), ("Prefer", "respond-async")];
    for _ in 0..400 {
        let answer =
            http.request("POST", "/analyze", &headers, br#"{"text": "busy", "work_ms": 50}"#).expect("a response");
        assert_eq!(answer.status, 202);
    }
    // The backlog takes 20 s. Once the gateway knows the rate, it refuses callers that would wait longer than 3 s.
    let refused = eventually_some(Duration::from_secs(8), "a caller gets 503", || {
        let asked = Instant::now();
        let answer = gateway.analyze("one more");
        (answer.status == 503).then(|| (answer, asked.elapsed()))
    });
    refused.0.assert_problem(503);
    assert!(refused.0.header("retry-after").is_some());
    assert!(refused.1 < Duration::from_secs(1), "503 after {:?}", refused.1);
}

#[test]
fn a_task_that_kafka_dropped_is_produced_again() {
    let rig = Rig::shared("hazard-dropped");
    // All three gateways notice that the task is missing.
    let gateways = [(); 3].map(|()| Gateway::start(rig.gateway().env("MISSING_AFTER", "6s")));
    let gateway = &gateways[0];
    let mut worker = rig.start_worker("w");
    assert_eq!(gateway.analyze("makes the group known").status, 200);
    worker.ends_at(Signal::SIGTERM, 0);
    let task = gateway.submit("dropped", Duration::ZERO);
    admin::skip_to_end(rig.broker().address(), &rig.group(), &rig.tasks());
    let _worker = rig.start_worker("w");
    assert_eq!(gateway.analyze("the group has skipped it").status, 200);
    assert_eq!(rig.audit().runs(&task), 0, "Kafka delivered the skipped task");
    // A gateway misses the task after 6 s and looks for it again 3 s later.
    let result = gateway.wait_for_result(&task, Duration::from_secs(20));
    assert_eq!((&result["success"], &result["words"]), (&json!(true), &json!(1)));
    assert_eq!((rig.audit().runs(&task), rig.audit().tasks[&task]), (1, 2), "one gateway produced it again");
}

/// The gateways took the key for the id: the task stayed pending, and every gateway produced it again and again.
#[test]
fn task_with_another_key_is_known_by_the_id_in_its_value() {
    let rig = Rig::shared("hazard-key");
    let gateway = Gateway::start(rig.gateway().env("MISSING_AFTER", "2s"));
    let value = |id: &str| json!({ "task_id": id, "text": "a b", "timestamp": 0.0 }).to_string();
    let values = [value("t-1"), value("t-2")];
    audit::produce(
        rig.broker().address(),
        &rig.tasks(),
        &[(Some(b"customer-7"), Some(values[0].as_bytes())), (None, Some(values[1].as_bytes()))],
    );
    for id in ["t-1", "t-2"] {
        let pending = json!({ "task_id": id, "state": "pending" });
        eventually(SOON, "the task is pending under its id", || gateway.get(&format!("/tasks/{id}")).json() == pending);
    }
    assert_eq!(gateway.get("/tasks/customer-7").status, 404);
    let _worker = rig.start_worker("w");
    for id in ["t-1", "t-2"] {
        assert_eq!(gateway.wait_for_result(id, SOON)["words"], 2);
    }
    // A gateway without pending tasks misses none.
    let none_pending = || gateway.get("/metrics").text().contains("lastcall_tasks_pending 0\n");
    eventually(SOON, "no task is pending", none_pending);
    assert_eq!(rig.audit().tasks.values().collect::<Vec<_>>(), [&1, &1]);
}

#[test]
fn task_that_kafka_drops_repeatedly_is_produced_again_only_twice() {
    let (rig, gateway, mut worker) = Rig::shared("hazard-again").fleet_with("w", &[("MISSING_AFTER", "2s")]);
    assert_eq!(gateway.analyze("makes the group known").status, 200);
    worker.ends_at(Signal::SIGTERM, 0);
    let task = gateway.submit("dropped", Duration::ZERO);
    for records in 1..=3 {
        eventually(Duration::from_secs(20), "the record is on the topic", || rig.audit().tasks[&task] == records);
        admin::skip_to_end(rig.broker().address(), &rig.group(), &rig.tasks());
    }
    gateway.program.wait_for_line("was dropped again and again", Duration::from_secs(20));
    eventually(SOON, "the gateway has forgotten the task", || gateway.get(&format!("/tasks/{task}")).status == 404);
    assert_eq!(rig.audit().tasks[&task], 3);
}

#[test]
fn six_workers_serve_two_partitions_through_kills() {
    let rig = Rig::shared("hazard-partitions");
    let gateway = Gateway::start(rig.gateway().env("TASKS_PARTITIONS", 2));
    let start = |number: usize| started(&rig.worker(&format!("w{number}")).env("TASKS_PARTITIONS", 2));
    // Kafka keeps dead members for 45 s. With ten members it assigns each partition to five; four of these can be dead.
    let mut workers: Vec<Program> = (0..6).map(start).collect();
    let load = gateway.load(50, 20);
    load.wait_for(100, SOON);
    for (index, worker) in workers.iter_mut().enumerate().take(4) {
        worker.kill();
        load.wait_for(50, SOON);
        *worker = start(6 + index);
    }
    let shots = load.finish();
    assert_all_answered(&shots);
    eventually(SOON, "every task has a result", || rig.audit().lost().is_empty());
    let ends = audit::end_offsets(rig.broker().address(), &rig.tasks());
    assert!(ends.len() == 2 && ends.values().all(|end| *end > 0), "one partition got nothing: {ends:?}");
}
