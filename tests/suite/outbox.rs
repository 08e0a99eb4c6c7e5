//! Records that a worker or a gateway cannot write: each has a defined outcome, and the program goes on.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use devbroker::{Action, Denial, Fault, Kind, Operation, Resource};
use kafka_share::{ErrorCode, ProducerRecord};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    client::{cluster, deliver},
    support::{
        Gateway, Rig, SHORT_LOCKS, SOON,
        admin::{self, Of},
        audit, eventually,
        program::{Launch, Line, Program},
        started,
    },
};

/// A worker and a gateway on their own embedded broker.
struct Scene {
    rig: Rig,
    gateway: Gateway,
    worker: Program,
}

impl Scene {
    fn new(name: &str) -> Scene {
        let (rig, gateway, worker) = Rig::with_faults(name, 1).fleet("w");
        Scene { rig, gateway, worker }
    }

    fn dead(&self) -> String {
        format!("{}.dead", self.rig.tasks())
    }

    /// Produces a record that is not a task, with a header as large as its value.
    fn produce_poison(&self) {
        let record = ProducerRecord {
            topic: Arc::from(self.rig.tasks()),
            key: Some(Bytes::from_static(b"poison")),
            value: Some(Bytes::from_static(&[b'x'; 2000])),
            headers: vec![("foreign".into(), Some(Bytes::from_static(&[b'y'; 2000])))],
        };
        deliver(&cluster(&self.rig), vec![record]);
    }

    /// Asserts that the worker runs tasks and stops in time.
    fn works_and_stops(mut self) {
        for _ in 0..3 {
            let answer = self.gateway.analyze("still at work");
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        let exit = self.worker.ends_at(Signal::SIGTERM, 0);
        assert!(exit.elapsed < Duration::from_secs(2), "{exit:?}");
    }
}

/// A worker that logs each start of a task, and that fetches for its second handler while the first waits.
fn verbose_worker(rig: &Rig) -> Launch {
    rig.worker("w").env("LOG_LEVEL", "debug").env("WORKER_CONCURRENCY", 2)
}

fn starts(worker: &Program, task: &str) -> Vec<Line> {
    worker.lines_with(&format!("starts task {task} "))
}

/// Submits a task; returns its id when a worker has fetched it.
fn submit_and_wait_for_fetch(rig: &Rig, gateway: &Gateway) -> String {
    let task = gateway.submit("waits for the right", Duration::ZERO);
    let fetches = rig.count(Kind::ShareFetch, "lastcall-worker");
    // A worker sends the second fetch when it has read the response to the first.
    eventually(SOON, "the worker has fetched the task", || fetches.count() >= 2);
    task
}

#[test]
fn a_too_large_dead_letter_keeps_only_its_key_and_the_facts_about_it() {
    let scene = Scene::new("outbox-large");
    admin::set(scene.rig.broker().address(), Of::Topic, &scene.dead(), "max.message.bytes", "1000");
    scene.produce_poison();
    eventually(SOON, "the record is dead-lettered", || scene.rig.dead_letters().len() == 1);
    let letter = &scene.rig.dead_letters()[0];
    assert_eq!((letter.key.as_deref(), letter.value.as_deref()), (Some(&b"poison"[..]), None));
    let names: Vec<&str> = letter.headers.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, lastcall::task::dead::LETTER_HEADERS);
    scene.works_and_stops();
}

#[test]
fn a_dead_letter_that_cannot_be_written_is_logged() {
    for (name, code) in [("outbox-10", ErrorCode::MESSAGE_TOO_LARGE), ("outbox-87", ErrorCode::INVALID_RECORD)] {
        let scene = Scene::new(name);
        let refuse = Fault::new(Action::Refuse(code)).at(Kind::Produce).of_topic(&scene.dead());
        scene.rig.broker().faulty().inject(refuse.every(1, u32::MAX));
        scene.produce_poison();
        let line = scene.worker.wait_for_line("cannot write the dead letter", SOON);
        assert!(line.text.contains("\"poison\"") && line.text.contains("not a task"), "{}", line.text);
        scene.works_and_stops();
    }
}

#[test]
fn a_result_that_is_too_large_becomes_an_error_result() {
    let scene = Scene::new("outbox-result");
    // Large enough for status records and error results.
    admin::set(scene.rig.broker().address(), Of::Topic, &scene.rig.results(), "max.message.bytes", "700");
    let text = format!("{} {}", "w".repeat(1500), "v".repeat(1500));
    let task = json!({ "task_id": "large", "text": text, "timestamp": 1.5 }).to_string();
    audit::produce(scene.rig.broker().address(), &scene.rig.tasks(), &[(Some(b"large"), Some(task.as_bytes()))]);
    let result = scene.gateway.wait_for_result("large", SOON);
    assert_eq!(result["success"], false, "{result}");
    scene.works_and_stops();
}

#[test]
fn a_result_that_cannot_be_written_is_logged() {
    let scene = Scene::new("outbox-no-result");
    let refuse = Fault::new(Action::Refuse(ErrorCode::MESSAGE_TOO_LARGE)).at(Kind::Produce);
    let refuse = refuse.of_topic(&scene.rig.results()).of_client("lastcall-worker");
    scene.rig.broker().faulty().inject(refuse.every(1, u32::MAX));
    let task = scene.gateway.submit("result is refused", Duration::ZERO);
    let line = scene.worker.wait_for_line("cannot write the result", SOON);
    assert!(line.text.contains(&task), "{}", line.text);
    scene.rig.broker().faulty().heal();
    scene.works_and_stops();
}

#[test]
fn a_worker_without_the_right_to_write_results_is_not_ready_and_runs_its_task_later() {
    let rig = Rig::with_faults("outbox-right", 1);
    let gateway = rig.start_gateway();
    let file = std::env::temp_dir().join(format!("lastcall-outbox-{}", std::process::id()));
    let mut worker = started(&verbose_worker(&rig).env("HEALTH_FILE", file.display()));
    let health = || std::fs::read_to_string(&file).unwrap_or_default();
    eventually(SOON, "the worker is ready", || health() == "running\n");
    let broker = rig.broker().faulty();
    let (topic, client) = (rig.results(), "lastcall-worker");
    broker.deny(Denial::new(Operation::Write, Resource::Topic(&topic)).of_client(client));
    let line = worker.wait_for_line(&format!("Kafka refuses Write on topic {topic}"), SOON);
    assert!(!line.text.contains("does not answer"), "{}", line.text);
    eventually(SOON, "the worker is not ready", || health() == "not ready\n");
    let task = submit_and_wait_for_fetch(&rig, &gateway);
    let attempts = rig.count(Kind::Produce, "lastcall-worker");
    eventually(SOON, "the worker tries to write again", || attempts.count() >= 3);
    assert!(starts(&worker, &task).is_empty(), "the task was started without the right to write its result");
    assert_eq!(worker.lines_with("Kafka refuses Write").len(), 1, "the refusal is logged once");
    broker.allow_all();
    gateway.wait_for_result(&task, SOON);
    eventually(SOON, "the worker is ready again", || health() == "running\n");
    worker.ends_at(Signal::SIGTERM, 0);
}

#[test]
fn a_worker_without_the_right_to_write_results_stops_in_time_and_releases_its_task() {
    let rig = Rig::with_faults("outbox-stop", 1);
    let gateway = rig.start_gateway();
    let mut worker = started(&verbose_worker(&rig));
    let broker = rig.broker().faulty();
    broker.deny(Denial::new(Operation::Write, Resource::Topic(&rig.results())).of_client("lastcall-worker"));
    worker.wait_for_line("Kafka refuses Write on topic", SOON);
    let task = submit_and_wait_for_fetch(&rig, &gateway);
    let exit = worker.ends_at(Signal::SIGTERM, 0);
    assert!(exit.elapsed < Duration::from_secs(2), "{exit:?}");
    assert_eq!(worker.receipt()["tasks_returned"], 1, "{}", worker.receipt());
    broker.allow_all();
    let _other = rig.start_worker("other");
    gateway.wait_for_result(&task, SOON);
    assert_eq!(rig.audit().runs(&task), 1);
}

#[test]
fn a_task_whose_result_is_denied_is_released_and_runs_again() {
    let rig = Rig::with_faults("outbox-release", 1);
    let gateway = rig.start_gateway();
    let worker = started(&verbose_worker(&rig));
    let broker = rig.broker().faulty();
    let task = gateway.submit("runs while the right is taken away", Duration::from_secs(2));
    gateway.wait_until_running(&task, SOON);
    broker.deny(Denial::new(Operation::Write, Resource::Topic(&rig.results())).of_client("lastcall-worker"));
    let released = worker.wait_for_line("gives the task at offset 0 back in 5 s", SOON).at;
    broker.allow_all();
    let result = gateway.wait_for_result(&task, Duration::from_secs(20));
    assert_eq!(result["success"], true, "{result}");
    let starts = starts(&worker, &task);
    assert!(starts.len() == 2 && starts[1].at - released > Duration::from_secs(4), "{starts:?}");
    assert_eq!(rig.audit().runs(&task), 1);
}

#[test]
fn a_missing_right_to_record_starts_does_not_block_the_worker() {
    let rig = Rig::with_faults("outbox-starts", 1);
    let gateway = rig.start_gateway();
    let mut worker = started(&rig.obedient_worker("w"));
    let broker = rig.broker().faulty();
    let starts = format!("{}.starts", rig.tasks());
    broker.deny(Denial::new(Operation::Write, Resource::Topic(&starts)));
    let failing = gateway.submit("retry later", Duration::ZERO);
    worker.wait_for_line(&format!("Kafka refuses Write on topic {starts}"), SOON);
    let other = gateway.submit("anything", Duration::ZERO);
    gateway.wait_for_result(&other, SOON);
    worker.wait_for_line("could not be put on record: a right is missing", SOON);
    broker.allow_all();
    gateway.wait_for_result(&failing, Duration::from_secs(30));
    worker.ends_at(Signal::SIGTERM, 0);
}

#[test]
fn a_handler_waits_for_the_record_of_a_start_no_longer_than_a_lock() {
    let rig = Rig::with_faults_and("outbox-vetting", 1, &SHORT_LOCKS);
    let gateway = rig.start_gateway();
    let mut worker = started(&rig.obedient_worker("w"));
    let broker = rig.broker().faulty();
    let starts = format!("{}.starts", rig.tasks());
    let away = Fault::new(Action::Refuse(ErrorCode::NOT_ENOUGH_REPLICAS)).at(Kind::Produce).of_topic(&starts);
    broker.inject(away.every(1, u32::MAX));
    let failing = gateway.submit("retry later", Duration::ZERO);
    worker.wait_for_line("failed at its delivery 1", SOON);
    // The only handler waits until the second start is on record.
    let other = gateway.submit("anything", Duration::ZERO);
    gateway.wait_for_result(&other, SOON);
    worker.wait_for_line("could not be put on record: Kafka did not take it in time", SOON);
    broker.heal();
    gateway.wait_for_result(&failing, Duration::from_secs(30));
    worker.ends_at(Signal::SIGTERM, 0);
}

#[test]
fn heartbeats_do_not_pile_up_while_kafka_is_unavailable() {
    let rig = Rig::with_faults("outbox-heartbeats", 1);
    let worker = started(&rig.worker("w").env("HEARTBEAT_INTERVAL", "50ms"));
    let statuses = || rig.audit().statuses_of("w").count();
    eventually(SOON, "heartbeats come", || statuses() > 5);
    let refuse = Fault::new(Action::Refuse(ErrorCode::NOT_ENOUGH_REPLICAS)).at(Kind::Produce);
    let refused = rig.broker().faulty().inject(refuse.every(1, u32::MAX));
    eventually(SOON, "a heartbeat is refused", || refused.count() > 0);
    let before = statuses();
    // The outage must last this long; no condition shows that.
    std::thread::sleep(Duration::from_secs(3));
    rig.broker().faulty().heal();
    eventually(SOON, "heartbeats come again", || statuses() > before + 5);
    let written = statuses() - before;
    assert!(written < 30, "{written} status records; 60 heartbeats were due during the outage");
    drop(worker);
}

#[test]
fn a_gateway_without_the_right_to_write_tasks_names_it_and_is_not_ready() {
    let scene = Scene::new("outbox-gateway");
    let broker = scene.rig.broker().faulty();
    broker.deny(Denial::new(Operation::Write, Resource::Topic(&scene.rig.tasks())).of_client("lastcall-gateway"));
    let refused = scene.gateway.analyze("not to be accepted");
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("Write on topic"), "{}", refused.text());
    assert_eq!(scene.gateway.get("/readyz").status, 503);
    scene.gateway.program.wait_for_line("Kafka refuses Write on topic", SOON);
    // Without requests the gateway asks for the right. It took the refusal for over after 10 s.
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(scene.gateway.get("/readyz").status, 503);
    broker.allow_all();
    eventually(Duration::from_secs(15), "the gateway is ready without a request", || {
        scene.gateway.get("/readyz").status == 200
    });
    eventually(SOON, "the gateway accepts tasks again", || scene.gateway.analyze("accepted").status == 200);
    eventually(SOON, "the gateway is ready again", || scene.gateway.get("/readyz").status == 200);
    scene.works_and_stops();
}

/// A broken connection releases the record of a running task; the worker's search acquires it again with a higher
/// delivery count. The worker released the record of a failed task at the limit, and the broker dropped it.
#[test]
fn task_that_fails_at_the_delivery_limit_is_produced_again() {
    let limit = 5;
    let rig = Rig::with_faults_and("fault-limit", 1, &["--set", "group.share.max.delivery.count.limit=5"]);
    let worker = rig.obedient_worker("w").env("MAX_DELIVERIES", 2).env("WORKER_CONCURRENCY", 2);
    let worker = started(&worker);
    let gateway = rig.start_gateway();
    let task = gateway.submit("stumble 3500", Duration::ZERO);
    let start = format!("handler started {task} delivery 1");
    worker.wait_for_line(&start, SOON);
    for delivery in 2..=limit {
        let cut = Fault::new(Action::CutBefore).at(Kind::ShareFetch).of_client("lastcall-worker");
        rig.broker().faulty().inject(cut);
        worker.wait_for_lines(&format!("lost the lock of task {task}"), delivery - 1, SOON);
        // After six fetches the worker has opened its session and searched: the search fetches every 0.1 s.
        let asked = rig.count(Kind::ShareFetch, "lastcall-worker");
        eventually(SOON, "the worker has searched", || asked.count() >= 6);
    }
    worker.wait_for_lines(&start, 2, SOON);
}
