//! The limits of a gateway for waiting callers, pending tasks, keys and results, and the behaviour beyond them.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Gateway, Rig, SOON, eventually, http::Http};

const JSON: (&str, &str) = ("Content-Type", "application/json");

#[test]
fn callers_beyond_max_waiting_get_503() {
    let rig = Rig::shared("gw-full");
    let gateway = Gateway::start(rig.gateway().env("MAX_WAITING", 8).env("ANSWER_TIMEOUT", "8s"));
    let mut waiting: Vec<Http> = (0..8).map(|_| gateway.connect()).collect();
    for http in &mut waiting {
        http.send("POST", "/analyze", &[JSON], br#"{"text": "waits"}"#).expect("the request is sent");
    }
    let all_wait = "lastcall_callers_waiting 8\n";
    eventually(SOON, "all callers wait", || gateway.get("/metrics").text().contains(all_wait));
    let answer = gateway.analyze_with(&[("Prefer", "respond-async")], &json!({ "text": "one more" }));
    answer.assert_problem(503);
    assert!(answer.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok()), "{answer:?}");
    for http in &mut waiting {
        http.receive("POST").expect("a response").assert_problem(504);
    }
    assert_eq!(gateway.analyze_with(&[("Prefer", "respond-async")], &json!({ "text": "room again" })).status, 202);
}

#[test]
fn tasks_of_all_gateways_count_against_max_pending() {
    let rig = Rig::shared("gw-pending");
    let first = rig.start_gateway();
    for number in 0..20 {
        first.submit(&format!("task {number}"), Duration::ZERO);
    }
    let gateway = Gateway::start(rig.gateway().env("MAX_PENDING", 5));
    eventually(SOON, "a task is refused", || gateway.analyze("one more").text().contains("MAX_PENDING"));
    gateway.get("/tasks/never-heard-of").assert_problem(503);
    let _worker = rig.start_worker("w");
    eventually(SOON, "the gateway accepts a task again", || gateway.analyze("one more").status == 200);
    eventually(SOON, "the gateway knows all tasks", || gateway.get("/tasks/never-heard-of").status == 404);
}

#[test]
fn caller_with_the_key_of_a_pending_task_may_wait_at_max_pending() {
    let rig = Rig::shared("gw-joins");
    let gateway = Gateway::start(rig.gateway().env("MAX_PENDING", 1).env("ANSWER_TIMEOUT", "2s"));
    let post = |prefer: &str| {
        gateway.analyze_with(&[("Idempotency-Key", "a"), ("Prefer", prefer)], &json!({ "text": "keyed" }))
    };
    assert_eq!(post("respond-async").status, 202);
    assert_eq!(post("wait").status, 504, "the key's task was refused");
    gateway.analyze("other").assert_problem(503);
}

#[test]
fn new_keys_beyond_max_keys_get_503() {
    let (_rig, gateway, _worker) = Rig::shared("gw-keys").fleet_with("w", &[("MAX_KEYS", "2")]);
    let post = |key: &str| gateway.analyze_with(&[("Idempotency-Key", key)], &json!({ "text": "keyed" }));
    let first = post("a").task_id();
    assert_eq!(post("b").status, 200);
    assert!(post("c").assert_problem(503)["detail"].as_str().is_some_and(|detail| detail.contains("MAX_KEYS")));
    assert_eq!(post("\"a\"").task_id(), first, "a known key in quotes");
}

/// Time limit for the gateway to drop a result from its index, which it does at an age of ten seconds at the earliest.
const DROPPED: Duration = Duration::from_secs(30);

#[test]
fn results_beyond_max_results_are_read_from_kafka() {
    let (rig, gateway, _worker) = Rig::shared("limit-results").fleet_with("w", &[("MAX_RESULTS", "3")]);
    let results: Vec<Value> = (0..12).map(|number| gateway.analyze(&format!("text {number}")).json()).collect();
    let known = "lastcall_results_known 3\n";
    eventually(DROPPED, "three results are left in the index", || gateway.get("/metrics").text().contains(known));
    let path = |result: &Value| format!("/tasks/{}", result["task_id"].as_str().expect("an id"));
    for result in &results {
        let found = gateway.get(&path(result));
        assert_eq!((found.status, &found.json()), (200, result));
    }
    // Concurrent look-ups share a search.
    let mut callers: Vec<Http> = results.iter().map(|_| gateway.connect()).collect();
    for (caller, result) in callers.iter_mut().zip(&results) {
        caller.send("GET", &path(result), &[], b"").expect("the request is sent");
    }
    for (caller, result) in callers.iter_mut().zip(&results) {
        assert_eq!(&caller.receive("GET").expect("a response").json(), result);
    }
    gateway.get("/tasks/unknown-id").assert_problem(404);
    gateway.get(&format!("/tasks/{}", Uuid::now_v7())).assert_problem(404);
    let restarted = Gateway::start(rig.gateway().env("MAX_RESULTS", 3));
    eventually(SOON, "the restarted gateway has the earlier results", || {
        restarted.get(&path(&results[0])).json() == results[0]
    });
}

#[test]
fn a_key_keeps_its_result_beyond_max_results() {
    let (rig, gateway, _worker) = Rig::shared("limit-keyed").fleet_with("w", &[("MAX_RESULTS", "1")]);
    let post = || gateway.analyze_with(&[("Idempotency-Key", "a")], &json!({ "text": "keyed" }));
    let first = post();
    for number in 0..5 {
        assert_eq!(gateway.analyze(&format!("text {number}")).status, 200);
    }
    let metrics = || gateway.get("/metrics").text();
    eventually(DROPPED, "two results are left in the index", || metrics().contains("lastcall_results_known 2\n"));
    let again = post();
    assert_eq!((again.status, again.json()), (200, first.json()));
    rig.audit().assert_each_ran_once([&first.task_id()]);
}
