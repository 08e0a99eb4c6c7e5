//! What the gateway does beyond the promises: the HTTP table and its edges. How requests are read: `http`.

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
/// What a request must not take while others misbehave; a bound for a busy machine, no promise.
const PROMPT: Duration = Duration::from_secs(5);

/// Asserts that the gateway answers somebody else at once.
fn assert_prompt(gateway: &Gateway, meanwhile: &str) {
    let asked = Instant::now();
    let mut http = gateway.connect();
    http.set_patience(PROMPT).expect("a socket");
    let answer = http.get("/livez").unwrap_or_else(|error| panic!("no answer while {meanwhile}: {error}"));
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
    assert_eq!(stored, result, "what can be asked for later is the same");
}

#[test]
fn respond_async_answers_as_soon_as_the_task_is_in_kafka() {
    let rig = Rig::shared("gw-async");
    let gateway = rig.start_gateway();
    let prefer = [("Prefer", "wait=10, Respond-Async")];
    // Nobody works: 202 does not wait for a result.
    let answer = gateway.analyze_with(&prefer, &json!({ "text": "two words" }));
    let task = answer.task_id();
    assert_eq!((answer.status, answer.json()), (202, json!({ "task_id": task, "state": "pending" })));
    assert_eq!(answer.header("location"), Some(format!("/tasks/{task}").as_str()));
    let asked = gateway.get(answer.header("location").expect("a location"));
    assert_eq!((asked.status, asked.json()), (200, json!({ "task_id": task, "state": "pending" })));
    let _worker = rig.start_worker("w");
    assert_eq!(gateway.wait_for_result(&task, SOON)["words"], 2);
    // With a key it stays 202, also when the result is there.
    let keyed = [("Prefer", "respond-async"), ("Idempotency-Key", "a key")];
    let first = gateway.analyze_with(&keyed, &json!({ "text": "keyed" }));
    gateway.wait_for_result(&first.task_id(), SOON);
    let second = gateway.analyze_with(&keyed, &json!({ "text": "keyed" }));
    assert_eq!((first.status, second.status, second.task_id()), (202, 202, first.task_id()));
}

#[test]
fn a_key_is_one_task_on_every_gateway_and_for_one_text() {
    let rig = Rig::shared("gw-key");
    let (gateway, other) = (rig.start_gateway(), rig.start_gateway());
    let key = [("Idempotency-Key", "order 17; \"quoted\"")];
    let body = json!({ "text": "once only", "work_ms": 300 });
    // Two callers while it is under way, before there is a worker.
    let answers: Vec<Response> = std::thread::scope(|scope| {
        let callers: Vec<_> =
            [&gateway, &gateway, &other].map(|to| scope.spawn(|| to.analyze_with(&key, &body))).into_iter().collect();
        // Which text comes first decides: the other one is sent only when all three wait.
        for (at, count) in [(&gateway, 2), (&other, 1)] {
            eventually(SOON, "the callers wait", || {
                at.get("/metrics").text().contains(&format!("lastcall_gateway_waiting_callers {count}\n"))
            });
        }
        assert_eq!(gateway.analyze_with(&key, &json!({ "text": "another" })).status, 422, "the first is under way");
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
    // Its id, from a gateway that shares nothing but the code.
    let elsewhere = Rig::beside(&rig, "gw-claim-elsewhere");
    let other = elsewhere.start_gateway();
    let _helper = elsewhere.start_worker("helper");
    let task = other.analyze_with(&key, &json!({ "text": "a text" })).task_id();
    // A gateway that died between its claim and its task.
    let claims = crate::support::audit::read(rig.broker().address(), &elsewhere.results());
    let claim = claims.iter().find(|record| record.json()["type"] == "claim").expect("it was claimed").json();
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
    assert!(asked.elapsed() > Duration::from_secs(3), "the other claim is given its time: {:?}", asked.elapsed());
}

#[test]
fn a_task_that_failed_for_good_is_a_problem_with_the_result_beside() {
    let rig = Rig::shared("gw-failed");
    let gateway = rig.start_gateway();
    let _worker = started(&rig.obedient_worker("w"));
    let answer = gateway.analyze("fail \"no\" luck");
    let problem = answer.assert_problem(500);
    assert_eq!((&problem["success"], &problem["error"]), (&json!(false), &json!("\"no\" luck")));
    assert_eq!(problem["processed_by"], "w");
    let stored = gateway.get(&format!("/tasks/{}", answer.task_id()));
    assert_eq!((stored.status, stored.json()["success"].clone()), (200, json!(false)));
    assert!(stored.json().get("title").is_none() && stored.json().get("type").is_none());
}

#[test]
fn results_are_forgotten_after_their_time_and_the_gateway_says_so() {
    let rig = Rig::shared("gw-retention");
    let gateway = Gateway::start(rig.gateway().env("RESULT_RETENTION", "6s"));
    let _worker = rig.start_worker("w");
    let task = gateway.analyze("soon forgotten").task_id();
    assert_eq!(gateway.get(&format!("/tasks/{task}")).status, 200);
    eventually(2 * SOON, "it is forgotten", || gateway.get(&format!("/tasks/{task}")).status == 404);
    gateway.get(&format!("/tasks/{task}")).assert_problem(404);
}

#[test]
fn health_liveness_readiness_metrics_and_the_page_are_served() {
    let rig = Rig::shared("gw-pages");
    let gateway = rig.start_gateway();
    let _worker = rig.start_worker("w");
    gateway.analyze("for the metrics");
    eventually(SOON, "the worker is seen", || gateway.fleet()["active_workers"] == 1);
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
    for name in ["lastcall_gateway_tasks_accepted_total 1", "lastcall_gateway_active_workers 1"] {
        assert!(metrics.text().contains(name), "{name} is not in {}", metrics.text());
    }
    let page = gateway.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let html = page.text();
    for foreign in ["http://", "https://", "src=", "innerHTML", "outerHTML", "document.write"] {
        assert!(!html.contains(foreign), "{foreign} is on the page");
    }
    assert!(html.contains("textContent") && html.contains("/workers/status"));
    let mut http = gateway.connect();
    let head = http.request("HEAD", "/", &[], b"").expect("an answer");
    assert_eq!(head.header("content-length"), Some(html.len().to_string().as_str()));
    assert_eq!(http.get("/livez").expect("the connection goes on behind HEAD").status, 200);
    let absolute = http.get(&format!("http://{}/health?x", gateway.address)).expect("an answer");
    assert_eq!(absolute.status, 200, "a target may be a whole URL");
}

#[test]
fn a_frozen_kafka_shows_and_so_does_its_return() {
    let rig = Rig::with_own_broker("gw-frozen", &[]);
    let gateway = Gateway::start(rig.gateway().env("READY_WITHOUT_KAFKA", "8s"));
    let _worker = rig.start_worker("w");
    let task = gateway.analyze("before the frost").task_id();
    rig.broker().freeze();
    eventually(SOON, "it is not healthy", || gateway.get("/health").status == 503);
    let health = gateway.get("/health").json();
    assert_eq!((&health["status"], &health["kafka_connected"]), (&json!("degraded"), &json!(false)));
    assert_eq!((gateway.get("/readyz").status, gateway.get("/livez").status), (200, 200), "a short outage");
    // Known, and not to be had at the moment.
    gateway.get(&format!("/tasks/{task}")).assert_problem(503);
    eventually(SOON, "it is not ready", || gateway.get("/readyz").status == 503);
    assert_eq!(
        gateway.get("/livez?verbose").json()["checks"],
        json!({ "upkeep": "ok", "results_tail": "ok", "producer": "ok" })
    );
    rig.broker().thaw();
    eventually(SOON, "it is ready", || gateway.get("/readyz").status == 200);
    assert_eq!(gateway.wait_for_result(&task, SOON)["words"], 3);
    assert_eq!(gateway.analyze("after it").status, 200);
}

#[test]
fn the_log_tells_of_each_worker_once() {
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

// ---- callers that are many, slow or large ----

#[test]
fn a_burst_of_connections_is_served_to_the_last_one() {
    let rig = Rig::quiet("gw-burst");
    let gateway = rig.start_gateway();
    // Also with many that are open and idle, and with threads that have just become free.
    for idle in [0, 100] {
        let _idle: Vec<Http> = (0..idle).map(|_| gateway.connect()).collect();
        for _ in 0..3 {
            let mut burst: Vec<Http> = (0..64).map(|_| gateway.connect()).collect();
            for http in &mut burst {
                http.send("GET", "/livez", &[], b"").expect("it is sent");
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
fn pipelined_requests_are_answered_in_order_and_hold_up_nobody_else() {
    let rig = Rig::quiet("gw-pipeline");
    let gateway = rig.start_gateway();
    let _worker = started(&rig.worker("w").env("WORKER_CONCURRENCY", 20));
    let mut pipelines: Vec<Http> = (0..10).map(|_| gateway.connect()).collect();
    for http in &mut pipelines {
        http.send("POST", "/analyze", &[JSON], br#"{"text": "one", "work_ms": 4000}"#).expect("it is sent");
        http.send("POST", "/analyze", &[JSON], br#"{"text": "one two"}"#).expect("it is sent");
        http.send("GET", "/livez", &[], b"").expect("it is sent");
    }
    assert_prompt(&gateway, "ten connections wait with more requests behind");
    assert_eq!(gateway.analyze("another connection").status, 200);
    for http in &mut pipelines {
        assert_eq!(http.receive("POST").expect("the first answer").json()["words"], 1);
        assert_eq!(http.receive("POST").expect("the second answer").json()["words"], 2);
        assert_eq!(http.receive("GET").expect("the third answer").status, 200);
    }
}

#[test]
fn slow_and_large_bodies_hold_up_nobody_else() {
    let rig = Rig::shared("gw-slow");
    let gateway = rig.start_gateway();
    let _worker = rig.start_worker("w");
    let open = |bytes: &[u8]| {
        let mut http = gateway.connect();
        http.send_raw(bytes).expect("it is sent");
        http
    };
    let head = |rest: &str| format!("POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{rest}");
    let mut held = Vec::new();
    // Never finished: heads, small bodies, larger ones, chunked ones.
    for unfinished in [
        head("X-Endless: aaaa"),
        head("Content-Length: 100\r\n\r\n{"),
        head("Content-Length: 30000\r\n\r\n{"),
        head("Transfer-Encoding: chunked\r\n\r\n5\r\n{"),
    ] {
        held.extend((0..40).map(|_| open(unfinished.as_bytes())));
    }
    assert_prompt(&gateway, "bodies do not come");
    // Too large: answered before they come, though they never do.
    let mut large: Vec<Http> = (0..20).map(|_| open(head("Content-Length: 10000000\r\n\r\n{").as_bytes())).collect();
    for http in &mut large {
        http.set_patience(PROMPT).expect("a socket");
        http.receive("POST").expect("answered at once").assert_problem(413);
    }
    // To other paths, too.
    let mut elsewhere = open(b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n");
    elsewhere.set_patience(PROMPT).expect("a socket");
    elsewhere.receive("POST").expect("answered at once").assert_problem(405);
    assert_prompt(&gateway, "large bodies do not come");
    assert_eq!(gateway.analyze("still at work").json()["words"], 3);
}

#[test]
fn a_body_that_drips_is_given_up() {
    let rig = Rig::shared("gw-drip");
    let gateway = rig.start_gateway();
    let mut http = gateway.connect();
    let head = "POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 30000\r\n\r\n";
    http.send_raw(head.as_bytes()).expect("it is sent");
    let begun = Instant::now();
    http.set_patience(Duration::from_millis(500)).expect("a socket");
    let answer = crate::support::eventually_some(Duration::from_secs(20), "it is given up", || {
        http.send_raw(b" ").expect("it is sent");
        http.receive("POST").ok()
    });
    answer.assert_problem(408);
    assert!(begun.elapsed() > Duration::from_secs(9), "it is given its time: {:?}", begun.elapsed());
}

#[test]
fn a_body_without_a_length_has_the_same_limit() {
    let rig = Rig::shared("gw-chunked");
    let gateway = rig.start_gateway();
    let _worker = rig.start_worker("w");
    let chunked = |text: &str| {
        let body = json!({ "text": text }).to_string();
        let mut bytes = b"POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for piece in body.as_bytes().chunks(1000) {
            bytes.extend(format!("{:x}\r\n", piece.len()).bytes());
            bytes.extend(piece);
            bytes.extend(b"\r\n");
        }
        bytes.extend(b"0\r\n\r\n");
        bytes
    };
    let mut http = gateway.connect();
    http.send_raw(&chunked("in some pieces")).expect("it is sent");
    assert_eq!(http.receive("POST").expect("an answer").json()["words"], 3);
    http.send_raw(&chunked(&"x".repeat(70_000))).expect("it is sent");
    http.receive("POST").expect("an answer").assert_problem(413);
    let mut http = gateway.connect();
    let expecting = [JSON, ("Expect", "100-continue")];
    let answer = http.request("POST", "/analyze", &expecting, br#"{"text": "go on"}"#).expect("an answer");
    assert_eq!(answer.json()["words"], 2);
}

#[test]
fn nothing_is_read_behind_a_request_whose_end_is_unclear() {
    let rig = Rig::shared("gw-smuggle");
    let gateway = rig.start_gateway();
    let inner = "GET /health HTTP/1.1\r\nHost: smuggled\r\n\r\n";
    let unclear = [
        (400, format!("Content-Length: +5\r\n\r\n{inner}")),
        (400, format!("Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd{inner}")),
        (400, format!("Content-Length: 5, 5\r\n\r\nabcde{inner}")),
        (501, format!("Transfer-Encoding: gzip\r\n\r\n{inner}")),
        (400, format!("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{inner}")),
        (400, format!("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{inner}")),
        (400, format!("Transfer-Encoding: chunked\r\n\r\nzz\r\n{inner}")),
    ];
    for (status, rest) in unclear {
        let mut http = gateway.connect();
        let head = "POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
        http.send_raw(format!("{head}{rest}").as_bytes()).expect("it is sent");
        http.receive("POST").expect("an answer").assert_problem(status);
        http.set_patience(Duration::from_millis(500)).expect("a socket");
        let more = http.receive("GET");
        assert!(more.is_err(), "{rest:?} was answered twice: {more:?}");
    }
    assert_prompt(&gateway, "nothing");
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
fn a_gateway_that_ran_out_of_files_takes_connections_again() {
    let rig = Rig::quiet("gw-files");
    let mut gateway = rig.start_gateway();
    let _worker = rig.start_worker("w");
    let open: Vec<Http> = (0..20).map(|_| gateway.connect()).collect();
    limit_files(gateway.program.id(), "16");
    // Each of them meets the limit, at its socket or at the duplicate of it.
    let refused: Vec<Http> = (0..20).map(|_| gateway.connect()).collect();
    gateway.program.wait_for_line("the system does not answer", SOON);
    drop(refused);
    drop(open);
    limit_files(gateway.program.id(), "1024");
    gateway.program.wait_for_line("the system answers again", SOON);
    assert_prompt(&gateway, "files are there again");
    assert_eq!(gateway.analyze("still at work").json()["words"], 3);
    assert!(gateway.program.is_running());
}

#[test]
fn answers_on_a_kept_connection_do_not_wait_for_an_acknowledgement() {
    let rig = Rig::quiet("gw-nagle");
    let gateway = rig.start_gateway();
    let mut http = gateway.connect();
    let fastest = (0..20)
        .map(|_| {
            let asked = Instant::now();
            let page = http.get("/").expect("an answer");
            assert!(page.body.len() > 1024, "larger than the library's buffer");
            asked.elapsed()
        })
        .min()
        .expect("some were asked");
    // With Nagle's algorithm and delayed acknowledgements each takes 40 ms.
    assert!(fastest < Duration::from_millis(30), "{fastest:?}");
}
