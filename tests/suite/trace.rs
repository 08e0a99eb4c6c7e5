//! The trace context of a request (W3C Trace Context): on the records of its task and result, and in log lines.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kafka_protocol::{protocol::StrBytes, records::Record};
use kafka_share::producer::ProducerRecord;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::client::{cluster, deliver};
use crate::support::{Gateway, Rig, SOON, admin, eventually, started};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The trace context of the records about this task, in the order of the log.
fn contexts(rig: &Rig, topic: &str, task: &str) -> Vec<[Option<String>; 2]> {
    let records = admin::records(rig.broker().address(), topic).into_iter();
    let is_of = |record: &Record| {
        let value: Value = serde_json::from_slice(record.value.as_deref().unwrap_or_default()).unwrap_or_default();
        value["task_id"] == task && value["type"] != "claim"
    };
    records.filter(is_of).map(|record| ["traceparent", "tracestate"].map(|name| header(&record, name))).collect()
}

fn header(record: &Record, name: &'static str) -> Option<String> {
    let value = record.headers.get(&StrBytes::from_static_str(name))?.as_deref()?;
    Some(String::from_utf8_lossy(value).into_owned())
}

#[test]
fn trace_context_of_a_request_is_on_its_task_and_its_result_and_in_the_log() {
    let rig = Rig::shared("trace");
    let gateway = rig.start_gateway();
    let worker = started(&rig.obedient_worker("w"));
    let context =
        [("traceparent", PARENT), ("Tracestate", "rojo=00f067aa0ba902b7"), ("tracestate", "congo=t61rcWkgMzE")];
    let expected = [Some(PARENT.to_owned()), Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE".to_owned())];
    let keyed: Vec<_> = context.iter().copied().chain([("Idempotency-Key", "traced")]).collect();
    for headers in [&context[..], &keyed] {
        let task = gateway.analyze_with(headers, &json!({ "text": "fail on purpose" })).task_id();
        for topic in [rig.tasks(), rig.results()] {
            assert_eq!(contexts(&rig, &topic, &task), std::slice::from_ref(&expected), "{topic}");
        }
        worker.wait_for_line(&format!("task {task} (trace {TRACE}) failed for good"), SOON);
    }
    // A malformed traceparent is dropped, with the tracestate, and the request is served.
    let malformed = PARENT.to_uppercase();
    for headers in [[("traceparent", malformed.as_str()), ("tracestate", "a=1")], [("tracestate", "a=1"), ("a", "b")]] {
        let answer = gateway.analyze_with(&headers, &json!({ "text": "two words" }));
        assert_eq!(answer.status, 200, "{headers:?}");
        for topic in [rig.tasks(), rig.results()] {
            assert_eq!(contexts(&rig, &topic, &answer.task_id()), [[None, None]], "{headers:?}");
        }
    }
}

#[test]
fn stopping_worker_names_the_trace_of_a_task_that_it_waits_for_and_abandons() {
    let rig = Rig::shared("trace-stop");
    let (gateway, mut worker) = (rig.start_gateway(), rig.start_worker("w"));
    let headers = [("Prefer", "respond-async"), ("traceparent", PARENT)];
    let task = gateway.analyze_with(&headers, &json!({ "text": "long", "work_ms": 60_000 })).task_id();
    gateway.wait_until_running(&task, SOON);
    worker.signal(Signal::SIGTERM);
    worker.wait_for_line(&format!("waiting for current task {task} (trace {TRACE}) to complete..."), SOON);
    worker.ends_at(Signal::SIGTERM, 4);
    worker.assert_lines_in_order(&[&format!("abandons task {task} (trace {TRACE}) and releases it")]);
    assert_eq!(worker.receipt()["tasks_abandoned"], json!([task]));
}

#[test]
fn worker_names_the_trace_of_a_task_that_runs_longer_than_task_timeout() {
    let rig = Rig::shared("trace-overdue");
    let gateway = rig.start_gateway();
    let worker = started(&rig.worker("w").env("TASK_TIMEOUT", "500ms"));
    let headers = [("Prefer", "respond-async"), ("traceparent", PARENT)];
    let task = gateway.analyze_with(&headers, &json!({ "text": "long", "work_ms": 3_000 })).task_id();
    worker.wait_for_line(&format!("task {task} (trace {TRACE}) runs longer than TASK_TIMEOUT"), SOON);
}

#[test]
fn trace_context_of_a_task_of_another_program_is_on_its_result() {
    let rig = Rig::shared("trace-foreign");
    let (gateway, _worker) = (rig.start_gateway(), rig.start_worker("w"));
    let header = |name: &'static str, value: &str| (name.into(), Some(Bytes::copy_from_slice(value.as_bytes())));
    let long = format!("a={}", "x".repeat(2000));
    let record = ProducerRecord {
        topic: Arc::from(rig.tasks()),
        key: None,
        value: Some(Bytes::from_static(br#"{"task_id": "foreign-1", "text": "two words"}"#)),
        headers: vec![header("other", "x"), header("traceparent", PARENT), header("tracestate", &long)],
    };
    deliver(&cluster(&rig), vec![record]);
    gateway.wait_for_result("foreign-1", SOON);
    assert_eq!(contexts(&rig, &rig.results(), "foreign-1"), [[Some(PARENT.to_owned()), None]]);
}

#[test]
fn trace_context_of_a_task_that_kafka_dropped_stays_on_its_new_record() {
    let rig = Rig::shared("trace-again");
    let gateway = Gateway::start(rig.gateway().env("MISSING_AFTER", "2s"));
    let mut worker = rig.start_worker("w");
    assert_eq!(gateway.analyze("makes the group known").status, 200);
    worker.ends_at(Signal::SIGTERM, 0);
    let headers = [("Prefer", "respond-async"), ("traceparent", PARENT)];
    let task = gateway.analyze_with(&headers, &json!({ "text": "dropped" })).task_id();
    admin::skip_to_end(rig.broker().address(), &rig.group(), &rig.tasks());
    let expected = [Some(PARENT.to_owned()), None];
    eventually(Duration::from_secs(20), "the task is produced again", || {
        contexts(&rig, &rig.tasks(), &task) == [expected.clone(), expected.clone()]
    });
    gateway.program.wait_for_line(&format!("Kafka has dropped task {task} (trace {TRACE})"), SOON);
}
