//! Preferences of callers (RFC 7240): `wait` with the id of a task, and with a new task.

use std::{
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    Gateway, Rig, SOON, eventually,
    http::{Http, Response},
};

/// Bound of an answer that comes at once, on a busy machine; not a promise.
const AT_ONCE: Duration = Duration::from_millis(900);

/// Asks for a task and is ready to wait; the response, and the time it took.
fn poll(gateway: &Gateway, task: &str, prefer: &str) -> JoinHandle<(Response, Duration)> {
    let (mut http, path, prefer) = (gateway.connect(), format!("/tasks/{task}"), prefer.to_owned());
    let ask = move || {
        let asked = Instant::now();
        let answer = http.request("GET", &path, &[("Prefer", &prefer)], b"").expect("the gateway answers");
        (answer, asked.elapsed())
    };
    std::thread::Builder::new().name("poll".to_owned()).spawn(ask).expect("a thread starts")
}

fn wait_for_callers(gateway: &Gateway, count: usize) {
    let line = format!("lastcall_callers_waiting {count}\n");
    eventually(SOON, &format!("{count} callers wait"), || gateway.get("/metrics").text().contains(&line));
}

fn assert_pending(answer: &Response, task: &str, applied: Option<&str>) {
    assert_eq!((answer.status, answer.json()), (200, json!({ "task_id": task, "state": "pending" })));
    assert_eq!(answer.header("preference-applied"), applied);
}

/// The metrics of Server-Timing, in milliseconds.
fn timing(answer: &Response) -> Vec<(String, f64)> {
    let metrics = answer.header("server-timing").unwrap_or_default().split(", ").filter(|it| !it.is_empty());
    let parts = metrics.map(|metric| metric.split_once(";dur=").expect("a name and a duration"));
    parts.map(|(name, duration)| (name.to_owned(), duration.parse().expect("a number"))).collect()
}

#[test]
fn long_poll_returns_the_result_as_soon_as_it_comes() {
    let rig = Rig::shared("prefer-poll");
    let (gateway, other) = (rig.start_gateway(), rig.start_gateway());
    let task = gateway.submit("two words", Duration::from_secs(1));
    // The other gateway may not know the task yet.
    let polls = [poll(&gateway, &task, "wait=10"), poll(&other, &task, "foo, Wait=9; bar")];
    wait_for_callers(&gateway, 1);
    let _worker = rig.start_worker("w");
    for (poll, applied) in polls.into_iter().zip(["wait=10", "wait=9"]) {
        let (answer, _) = poll.join().expect("no panic");
        assert_eq!((answer.status, &answer.json()["words"]), (200, &json!(2)), "{}", answer.text());
        assert_eq!(answer.header("preference-applied"), Some(applied));
        assert!(matches!(&timing(&answer)[..], [(name, run)] if name == "run" && *run >= 1000.0), "{answer:?}");
    }
    let (stored, took) = poll(&gateway, &task, "wait=10").join().expect("no panic");
    assert!(stored.json()["success"] == true && took < AT_ONCE, "{took:?}: {stored:?}");
    assert_eq!(timing(&stored).len(), 1);
    rig.audit().assert_each_ran_once([&task]);
}

#[test]
fn long_poll_ends_with_its_wait_and_with_answer_timeout() {
    let rig = Rig::shared("prefer-pending");
    let gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "2s"));
    let task = gateway.submit("waits", Duration::ZERO);
    for (prefer, seconds) in [("wait=1", 1), ("wait=600", 2)] {
        let (answer, took) = poll(&gateway, &task, prefer).join().expect("no panic");
        assert_pending(&answer, &task, Some(&format!("wait={seconds}")));
        let wait = Duration::from_secs(seconds);
        assert!((wait..wait + AT_ONCE).contains(&took), "{prefer}: {took:?}");
    }
    for prefer in ["wait=0", "wait=soon", "respond-async"] {
        let (answer, took) = poll(&gateway, &task, prefer).join().expect("no panic");
        assert_pending(&answer, &task, (prefer == "wait=0").then_some("wait=0"));
        assert!(took < AT_ONCE, "{prefer}: {took:?}");
    }
    let (unknown, _) = poll(&gateway, "never-heard-of", "wait=1").join().expect("no panic");
    unknown.assert_problem(404);
}

#[test]
fn long_poll_takes_a_place_of_max_waiting_until_its_caller_leaves() {
    let rig = Rig::shared("prefer-places");
    let gateway = Gateway::start(rig.gateway().env("MAX_WAITING", 1).env("ANSWER_TIMEOUT", "60s"));
    let task = gateway.submit("waits", Duration::ZERO);
    let mut http = gateway.connect();
    http.send("GET", &format!("/tasks/{task}"), &[("Prefer", "wait=60")], b"").expect("the request is sent");
    wait_for_callers(&gateway, 1);
    let (answer, took) = poll(&gateway, &task, "wait=60").join().expect("no panic");
    assert_pending(&answer, &task, None);
    assert!(took < AT_ONCE, "{took:?}");
    gateway.analyze("no place").assert_problem(503);
    drop(http);
    wait_for_callers(&gateway, 0);
}

#[test]
fn drain_answers_long_polls_at_once() {
    let rig = Rig::quiet("prefer-drain");
    let mut gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "60s"));
    let task = gateway.submit("waits", Duration::ZERO);
    let mut polls: Vec<Http> = (0..20).map(|_| gateway.connect()).collect();
    for http in &mut polls {
        http.send("GET", &format!("/tasks/{task}"), &[("Prefer", "wait=60")], b"").expect("the request is sent");
    }
    wait_for_callers(&gateway, 20);
    let exit = gateway.program.ends_at(Signal::SIGTERM, 0);
    assert!(exit.elapsed < Duration::from_secs(1), "{exit:?}");
    for http in &mut polls {
        assert_pending(&http.receive("GET").expect("every caller is answered"), &task, None);
    }
}

#[test]
fn new_task_with_a_preferred_wait_is_answered_with_its_result_or_after_that_time() {
    let rig = Rig::shared("prefer-post");
    let gateway = rig.start_gateway();
    let post = |prefer: &str, work_ms: u64| {
        let asked = Instant::now();
        let answer = gateway.analyze_with(&[("Prefer", prefer)], &json!({ "text": "two words", "work_ms": work_ms }));
        let applied = answer.header("preference-applied").map(str::to_owned);
        (answer, applied.unwrap_or_default(), asked.elapsed())
    };
    let second = Duration::from_secs(1)..Duration::from_secs(1) + AT_ONCE;
    // Without a worker no result comes.
    let (accepted, applied, took) = post("respond-async, wait=1", 0);
    assert_eq!((accepted.status, applied.as_str()), (202, "respond-async, wait=1"), "{}", accepted.text());
    assert!(second.contains(&took) && accepted.header("location").is_some(), "{took:?}: {accepted:?}");
    let (late, applied, took) = post("wait=1", 0);
    assert_eq!((late.assert_problem(504)["task_id"].is_string(), applied.as_str()), (true, "wait=1"));
    assert!(second.contains(&took), "{took:?}");
    let (none, applied, _) = post("wait=0", 0);
    assert_eq!((none.status, applied.as_str()), (504, "wait=0"), "it is told only once Kafka has the task");
    let (at_once, applied, took) = post("respond-async, wait=0", 0);
    assert_eq!((at_once.status, applied.as_str()), (202, "respond-async, wait=0"));
    assert!(took < AT_ONCE, "{took:?}");
    let _worker = rig.start_worker("w");
    for prefer in ["respond-async, wait=9", "wait=9"] {
        let (answer, applied, took) = post(prefer, 300);
        assert_eq!((answer.status, &answer.json()["words"], applied.as_str()), (200, &json!(2), "wait=9"), "{prefer}");
        let times = timing(&answer);
        let [(first, queue), (second, run)] = &times[..] else { panic!("{prefer}: {times:?}") };
        assert_eq!((first.as_str(), second.as_str()), ("queue", "run"));
        assert!(*run >= 300.0 && *queue > 0.0 && queue + run <= took.as_secs_f64() * 1e3, "{times:?} of {took:?}");
    }
    let ids: Vec<Value> = [&accepted, &late, &none, &at_once].map(|answer| json!(answer.task_id())).to_vec();
    for id in &ids {
        gateway.wait_for_result(id.as_str().expect("an id"), SOON);
    }
    let keyed = [("Prefer", "respond-async, wait=9"), ("Idempotency-Key", "known")];
    for _ in 0..2 {
        let answer = gateway.analyze_with(&keyed, &json!({ "text": "two words" }));
        assert_eq!((answer.status, answer.header("preference-applied")), (200, Some("wait=9")), "{}", answer.text());
    }
}
