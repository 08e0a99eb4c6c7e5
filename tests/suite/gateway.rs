//! Behaviour of the gateway beyond the promises: its routes, and many, slow or large requests. See also `http`.

use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{
    Gateway, Rig, SOON, eventually,
    http::{Http, Response},
    started,
};

const JSON: (&str, &str) = ("Content-Type", "application/json");
/// Bound of a request while other callers misbehave on a busy machine; not a promise.
const PROMPT: Duration = Duration::from_secs(5);

/// Asserts that the gateway answers a new connection within [`PROMPT`].
fn assert_prompt(gateway: &Gateway, meanwhile: &str) {
    let asked = Instant::now();
    let mut http = gateway.connect();
    http.set_patience(PROMPT).expect("a socket");
    let answer = http.get("/livez").unwrap_or_else(|error| panic!("no response while {meanwhile}: {error}"));
    assert_eq!(answer.status, 200, "{meanwhile}");
    assert!(asked.elapsed() < PROMPT, "{:?} while {meanwhile}", asked.elapsed());
}

#[test]
fn a_result_has_the_members_of_the_contract_in_their_order() {
    let rig = Rig::shared("gw-result");
    let gateway = rig.start_gateway();
    let _worker = rig.start_worker("w");
    let answer = gateway.analyze("The cat sat. The end 🛑");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let result = answer.json();
    let members: Vec<&String> = result.as_object().expect("an object").keys().collect();
    let expected = [
        "task_id",
        "success",
        "chars",
        "words",
        "unique_words",
        "letters",
        "top_words",
        "top_letters",
        "processed_by",
        "seconds",
    ];
    assert_eq!(members.iter().map(|name| name.as_str()).collect::<BTreeSet<_>>(), BTreeSet::from(expected));
    let text = answer.text();
    let places: Vec<_> = expected.iter().map(|name| text.find(&format!("\"{name}\":"))).collect();
    assert!(places.is_sorted(), "{text}");
    assert_eq!((&result["chars"], &result["words"], &result["processed_by"]), (&json!(22), &json!(5), &json!("w")));
    let stored = gateway.wait_for_result(&answer.task_id(), SOON);
    assert_eq!(stored, result, "a look-up returns another result");
}

#[test]
fn respond_async_answers_as_soon_as_the_task_is_in_kafka() {
    let rig = Rig::shared("gw-async");
    let gateway = rig.start_gateway();
    let prefer = [("Prefer", "handling=lenient, Respond-Async")];
    // Without a worker: 202 does not wait for a result.
    let answer = gateway.analyze_with(&prefer, &json!({ "text": "two words" }));
    let task = answer.task_id();
    assert_eq!((answer.status, answer.json()), (202, json!({ "task_id": task, "state": "pending" })));
    assert_eq!(answer.header("location"), Some(format!("/tasks/{task}").as_str()));
    assert_eq!(answer.header("preference-applied"), Some("respond-async"));
    let asked = gateway.get(answer.header("location").expect("a location"));
    assert_eq!((asked.status, asked.json()), (200, json!({ "task_id": task, "state": "pending" })));
    let _worker = rig.start_worker("w");
    assert_eq!(gateway.wait_for_result(&task, SOON)["words"], 2);
    // With a key the response is 202 even when the result is known.
    let keyed = [("Prefer", "respond-async"), ("Idempotency-Key", "a key")];
    let first = gateway.analyze_with(&keyed, &json!({ "text": "keyed" }));
    gateway.wait_for_result(&first.task_id(), SOON);
    let second = gateway.analyze_with(&keyed, &json!({ "text": "keyed" }));
    assert_eq!((first.status, second.status, second.task_id()), (202, 202, first.task_id()));
}

#[test]
fn a_key_is_one_task_on_all_gateways_and_refuses_another_text() {
    let rig = Rig::shared("gw-key");
    let (gateway, other) = (rig.start_gateway(), rig.start_gateway());
    let key = [("Idempotency-Key", "order 17; \"quoted\"")];
    let body = json!({ "text": "once only", "work_ms": 300 });
    // Three callers with the same key wait before a worker starts.
    let answers: Vec<Response> = std::thread::scope(|scope| {
        let callers: Vec<_> =
            [&gateway, &gateway, &other].map(|to| scope.spawn(|| to.analyze_with(&key, &body))).into_iter().collect();
        // The first text counts, so the other text is sent only when all three wait.
        for (at, count) in [(&gateway, 2), (&other, 1)] {
            eventually(SOON, "the callers wait", || {
                at.get("/metrics").text().contains(&format!("lastcall_callers_waiting {count}\n"))
            });
        }
        assert_eq!(
            gateway.analyze_with(&key, &json!({ "text": "another" })).status,
            422,
            "the first text has no result yet"
        );
        let _worker = rig.start_worker("w");
        callers.into_iter().map(|caller| caller.join().expect("no panic")).collect()
    });
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert!(answers.iter().all(|answer| answer.json() == answers[0].json()));
    let later = other.analyze_with(&key, &body);
    assert_eq!((later.status, later.json()), (200, answers[0].json()));
    let problem = other.analyze_with(&key, &json!({ "text": "another" })).assert_problem(422);
    assert_eq!(problem["task_id"], json!(answers[0].task_id()));
    for bad in ["", &"k".repeat(256)] {
        let answer = gateway.analyze_with(&[("Idempotency-Key", bad)], &body);
        answer.assert_problem(400);
    }
    rig.audit().assert_each_ran_once([&answers[0].task_id()]);
}

#[test]
fn a_key_that_a_dead_gateway_claimed_is_claimed_again() {
    let rig = Rig::shared("gw-claim");
    let gateway = rig.start_gateway();
    let _worker = rig.start_worker("w");
    let key = [("Idempotency-Key", "left behind")];
    // A gateway with other topics computes the task id of the same key.
    let elsewhere = Rig::beside(&rig, "gw-claim-elsewhere");
    let other = elsewhere.start_gateway();
    let _helper = elsewhere.start_worker("helper");
    let task = other.analyze_with(&key, &json!({ "text": "a text" })).task_id();
    // Writes the claim of a gateway that died before it produced the task.
    let claims = crate::support::audit::read(rig.broker().address(), &elsewhere.results());
    let claim = claims.iter().find(|record| record.json()["type"] == "claim").expect("a claim").json();
    let mut stale = claim.clone();
    stale["gateway"] = json!("00000000-0000-4000-8000-000000000001");
    let value = stale.to_string();
    let asked = Instant::now();
    crate::support::audit::produce(
        rig.broker().address(),
        &rig.results(),
        &[(Some(task.as_bytes()), Some(value.as_bytes()))],
    );
    let answer = gateway.analyze_with(&key, &json!({ "text": "a text" }));
    assert_eq!((answer.status, answer.task_id()), (200, task), "{}", answer.text());
    assert!(asked.elapsed() > Duration::from_secs(3), "the other claim was ignored after {:?}", asked.elapsed());
}

#[test]
fn results_are_404_after_result_retention() {
    let rig = Rig::shared("gw-retention");
    let gateway = Gateway::start(rig.gateway().env("RESULT_RETENTION", "6s"));
    let _worker = rig.start_worker("w");
    let task = gateway.analyze("soon forgotten").task_id();
    assert_eq!(gateway.get(&format!("/tasks/{task}")).status, 200);
    eventually(2 * SOON, "the result is forgotten", || gateway.get(&format!("/tasks/{task}")).status == 404);
    gateway.get(&format!("/tasks/{task}")).assert_problem(404);
}

#[test]
fn health_liveness_readiness_metrics_and_the_page_are_served() {
    let rig = Rig::shared("gw-pages");
    let gateway = rig.start_gateway();
    let _worker = rig.start_worker("w");
    gateway.analyze("for the metrics");
    eventually(SOON, "the worker is active", || gateway.fleet()["active_workers"] == 1);
    let health = gateway.get("/health");
    let expected = json!({ "status": "ok", "kafka_connected": true, "producer_ready": true, "active_workers": 1 });
    assert_eq!((health.status, health.json()), (200, expected));
    for path in ["/livez", "/readyz"] {
        assert_eq!(gateway.get(path).status, 200);
        let verbose = gateway.get(&format!("{path}?verbose")).json();
        let checks = verbose["checks"].as_object().expect("the checks are listed");
        assert!(!checks.is_empty() && checks.values().all(|check| check == "ok"), "{verbose}");
    }
    let metrics = gateway.get("/metrics");
    assert!(metrics.header("content-type").is_some_and(|it| it.starts_with("application/openmetrics-text")));
    assert!(metrics.text().ends_with("# EOF\n"));
    for name in ["lastcall_tasks_accepted_total 1", "lastcall_workers{state=\"active\"} 1"] {
        assert!(metrics.text().contains(name), "{name} is not in {}", metrics.text());
    }
    let page = gateway.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let html = page.text();
    for foreign in ["http://", "https://", "src=", "innerHTML", "outerHTML", "document.write"] {
        assert!(!html.contains(foreign), "{foreign} is on the page");
    }
    assert!(html.contains("textContent") && html.contains("<noscript>") && html.contains("fetch(\"overview\""));
    let nonces = [&page, &gateway.get("/")].map(|page| {
        let policy = page.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        let (_, rest) = policy.split_once("script-src 'nonce-").expect("a nonce");
        let nonce = rest.split('\'').next().unwrap_or_default();
        assert_eq!((nonce.len(), page.text().matches(&format!("nonce=\"{nonce}\"")).count()), (32, 2));
        nonce.to_owned()
    });
    assert_ne!(nonces[0], nonces[1]);
    let mut http = gateway.connect();
    let head = http.request("HEAD", "/", &[], b"").expect("a response");
    assert_eq!(head.header("content-length"), Some(html.len().to_string().as_str()));
    assert_eq!(http.get("/livez").expect("the connection stays open after HEAD").status, 200);
    let absolute = http.get(&format!("http://{}/health?x", gateway.address)).expect("a response");
    assert_eq!(absolute.status, 200, "a request target in absolute form");
}

#[test]
fn a_frozen_kafka_fails_health_then_readiness_until_it_thaws() {
    let rig = Rig::with_own_broker("gw-frozen", &[]);
    let gateway = Gateway::start(rig.gateway().env("READY_WITHOUT_KAFKA", "8s"));
    let mut other = rig.start_gateway();
    let _worker = rig.start_worker("w");
    let task = gateway.analyze("before the frost").task_id();
    rig.broker().freeze();
    for gateway in [&gateway, &other] {
        eventually(SOON, "the gateway is not healthy", || gateway.get("/health").status == 503);
    }
    other.program.signal(Signal::SIGTERM);
    let exit = other.program.wait(SOON);
    assert_eq!(exit.code, Some(0));
    assert!(exit.elapsed < Duration::from_secs(1), "no caller was waiting: {exit:?}");
    let health = gateway.get("/health").json();
    assert_eq!((&health["status"], &health["kafka_connected"]), (&json!("degraded"), &json!(false)));
    assert_eq!((gateway.get("/readyz").status, gateway.get("/livez").status), (200, 200), "a short outage");
    // The gateway knows the task but cannot read its result.
    gateway.get(&format!("/tasks/{task}")).assert_problem(503);
    eventually(SOON, "the gateway is not ready", || gateway.get("/readyz").status == 503);
    assert_eq!(
        gateway.get("/livez?verbose").json()["checks"],
        json!({ "upkeep": "ok", "results_tail": "ok", "producer": "ok" })
    );
    rig.broker().thaw();
    eventually(SOON, "the gateway is ready", || gateway.get("/readyz").status == 200);
    assert_eq!(gateway.wait_for_result(&task, SOON)["words"], 3);
    assert_eq!(gateway.analyze("after it").status, 200);
}

#[test]
fn each_event_of_a_worker_is_logged_once() {
    let rig = Rig::shared("gw-log");
    let gateway = Gateway::start(rig.gateway().env("WORKER_TIMEOUT", "5s"));
    let mut worker = rig.start_worker("w\u{20}1");
    gateway.program.wait_for_line("🚀 Worker w 1 started", SOON);
    worker.signal(Signal::SIGSTOP);
    gateway.program.wait_for_line("Worker w 1 is silent", SOON);
    worker.signal(Signal::SIGCONT);
    gateway.program.wait_for_line("Worker w 1 is heard again", SOON);
    worker.signal(Signal::SIGTERM);
    worker.wait(SOON);
    gateway.program.wait_for_line("👋 Worker w 1", SOON);
    assert_eq!(gateway.program.lines_with("🛑 Worker w 1").len(), 1);
    assert_eq!(gateway.program.lines_with("Worker w 1").len(), 5, "{:?}", gateway.program.lines_with("Worker w 1"));
}

// ---- many connections, slow and large requests ----

#[test]
fn every_connection_of_a_burst_is_served() {
    let rig = Rig::quiet("gw-burst");
    let gateway = rig.start_gateway();
    // Without and with many idle connections; the later bursts meet threads that have just become free.
    for idle in [0, 100] {
        let _idle: Vec<Http> = (0..idle).map(|_| gateway.connect()).collect();
        for _ in 0..3 {
            let mut burst: Vec<Http> = (0..64).map(|_| gateway.connect()).collect();
            for http in &mut burst {
                http.send("GET", "/livez", &[], b"").expect("the request is sent");
            }
            for (number, http) in burst.iter_mut().enumerate() {
                http.set_patience(PROMPT).expect("a socket");
                let answer = http.receive("GET").unwrap_or_else(|error| panic!("connection {number}: {error}"));
                assert_eq!(answer.status, 200);
            }
        }
    }
}

#[test]
fn pipelined_requests_are_answered_in_order_and_delay_no_other_connection() {
    let rig = Rig::quiet("gw-pipeline");
    let gateway = rig.start_gateway();
    let _worker = started(&rig.worker("w").env("WORKER_CONCURRENCY", 20));
    let mut pipelines: Vec<Http> = (0..10).map(|_| gateway.connect()).collect();
    for http in &mut pipelines {
        http.send("POST", "/analyze", &[JSON], br#"{"text": "one", "work_ms": 4000}"#).expect("the request is sent");
        http.send("POST", "/analyze", &[JSON], br#"{"text": "one two"}"#).expect("the request is sent");
        http.send("GET", "/livez", &[], b"").expect("the request is sent");
    }
    assert_prompt(&gateway, "ten connections wait with pipelined requests");
    assert_eq!(gateway.analyze("another connection").status, 200);
    for http in &mut pipelines {
        assert_eq!(http.receive("POST").expect("the first response").json()["words"], 1);
        assert_eq!(http.receive("POST").expect("the second response").json()["words"], 2);
        assert_eq!(http.receive("GET").expect("the third response").status, 200);
    }
}

#[test]
fn slow_and_large_bodies_delay_no_other_connection() {
    let rig = Rig::shared("gw-slow");
    let gateway = rig.start_gateway();
    let _worker = rig.start_worker("w");
    let open = |bytes: &[u8]| {
        let mut http = gateway.connect();
        http.send_raw(bytes).expect("the request is sent");
        http
    };
    let head = |rest: &str| format!("POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{rest}");
    let mut held = Vec::new();
    // Requests that are never finished: heads, small bodies, larger bodies, chunked bodies.
    for unfinished in [
        head("X-Endless: aaaa"),
        head("Content-Length: 100\r\n\r\n{"),
        head("Content-Length: 30000\r\n\r\n{"),
        head("Transfer-Encoding: chunked\r\n\r\n5\r\n{"),
    ] {
        held.extend((0..40).map(|_| open(unfinished.as_bytes())));
    }
    assert_prompt(&gateway, "bodies do not come");
    // Too large bodies are refused before they arrive.
    let mut large: Vec<Http> = (0..20).map(|_| open(head("Content-Length: 10000000\r\n\r\n{").as_bytes())).collect();
    for http in &mut large {
        http.set_patience(PROMPT).expect("a socket");
        http.receive("POST").expect("answered at once").assert_problem(413);
    }
    let mut elsewhere = open(b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n");
    elsewhere.set_patience(PROMPT).expect("a socket");
    elsewhere.receive("POST").expect("answered at once").assert_problem(405);
    assert_prompt(&gateway, "large bodies do not come");
    assert_eq!(gateway.analyze("still at work").json()["words"], 3);
}

/// Sets the soft limit of open files of a running process.
fn limit_files(process: u32, soft: &str) {
    let status = Command::new("prlimit")
        .args(["--pid", &process.to_string(), &format!("--nofile={soft}:")])
        .status()
        .expect("prlimit is there");
    assert!(status.success());
}

#[test]
fn a_gateway_that_ran_out_of_file_descriptors_accepts_connections_again() {
    let rig = Rig::quiet("gw-files");
    let mut gateway = rig.start_gateway();
    let _worker = rig.start_worker("w");
    let open: Vec<Http> = (0..20).map(|_| gateway.connect()).collect();
    limit_files(gateway.program.id(), "16");
    // Each connection exceeds the limit, with its socket or with the socket's duplicate.
    let refused: Vec<Http> = (0..20).map(|_| gateway.connect()).collect();
    gateway.program.wait_for_line("the system does not answer", SOON);
    drop(refused);
    drop(open);
    limit_files(gateway.program.id(), "1024");
    gateway.program.wait_for_line("the system answers again", SOON);
    assert_prompt(&gateway, "file descriptors are free again");
    assert_eq!(gateway.analyze("still at work").json()["words"], 3);
    assert!(gateway.program.is_running());
}

#[test]
fn responses_on_a_persistent_connection_do_not_wait_for_an_acknowledgement() {
    let rig = Rig::quiet("gw-nagle");
    let gateway = rig.start_gateway();
    let mut http = gateway.connect();
    let fastest = (0..20)
        .map(|_| {
            let asked = Instant::now();
            let page = http.get("/").expect("a response");
            assert!(page.body.len() > 1024, "the page is too small to be sent in two parts");
            asked.elapsed()
        })
        .min()
        .expect("twenty times");
    // With Nagle's algorithm and delayed acknowledgements each response takes 40 ms.
    assert!(fastest < Duration::from_millis(30), "{fastest:?}");
}
