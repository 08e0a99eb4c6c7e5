//! Invalid input from outside: it leads to a clear error or a dead letter, and no program panics or stops.

use std::{
    io::{Read, Write},
    net::TcpListener,
    time::Duration,
};

use devbroker::{Action, Bites, Fault, Kind};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    Gateway, Rig, SOON, START, audit, eventually,
    program::{Launch, Program},
};

/// Asserts that both programs still work and did not panic.
fn assert_works(gateway: &Gateway, worker: &mut Program) {
    assert_eq!(gateway.analyze("still at work").json()["words"], 3);
    assert!(worker.is_running());
    for program in [worker as &Program, &gateway.program] {
        assert!(program.lines_with("panicked").is_empty(), "{:?}", program.lines_with("panicked"));
    }
}

#[test]
fn bad_requests_are_refused_with_a_problem_document() {
    let (rig, gateway, mut worker) = Rig::shared("bad-http").fleet("w");
    let long = json!({ "text": "x".repeat(64 * 1024) }).to_string();
    let table: [(&str, &[u8], u16); 5] = [
        ("application/json", b"hello", 400),
        ("application/json", b"{\"text\": \"\xff\xfe\"}", 400),
        ("application/json", long.as_bytes(), 413),
        ("application/json", br#"{"text": "a", "work_ms": 120001}"#, 400),
        ("text/plain", br#"{"text": "a"}"#, 415),
    ];
    let post = |kind: &str, body: &[u8]| {
        gateway.connect().request("POST", "/analyze", &[("Content-Type", kind)], body).expect("a response")
    };
    for (kind, body, status) in table {
        post(kind, body).assert_problem(status);
    }
    assert_eq!(post("Application/JSON; charset=utf-8", br#"{"text": "a"}"#).status, 200);
    let mut http = gateway.connect();
    for path in ["/nothing", "/analyze/x", "/tasks", "/tasks/", "/workers", "/%2e%2e/etc/passwd", "//"] {
        assert_eq!(http.get(path).expect("a response").assert_problem(404)["status"], 404, "{path}");
    }
    let methods =
        [("GET", "/analyze", "POST"), ("DELETE", "/tasks/x", "GET"), ("POST", "/health", "GET"), ("PUT", "/", "GET")];
    for (method, path, allowed) in methods {
        let answer = http.request(method, path, &[("Content-Type", "application/json")], b"").expect("a response");
        answer.assert_problem(405);
        assert!(answer.header("allow").is_some_and(|allow| allow.contains(allowed)), "{method} {path}: {answer:?}");
    }
    for id in ["%00", "%0d%0aSet-Cookie:%20a=b", &"x".repeat(101), "%F0%9F%9B%91"] {
        http.get(&format!("/tasks/{id}")).expect("a response").assert_problem(404);
    }
    assert_works(&gateway, &mut worker);
    rig.audit().assert_each_ran_once([]);
}

#[test]
fn a_text_of_maximum_length_is_analysed() {
    let (_rig, gateway, mut worker) = Rig::shared("bad-limit").fleet("w");
    let frame = json!({ "text": "" }).to_string().len();
    let text = "é".repeat((64 * 1024 - frame) / 2);
    let answer = gateway.analyze(&text);
    assert_eq!((answer.status, &answer.json()["words"]), (200, &json!(1)), "{}", answer.text());
    assert_eq!(answer.json()["chars"], text.chars().count());
    assert_works(&gateway, &mut worker);
}

#[test]
fn work_ms_is_refused_unless_it_is_allowed() {
    let rig = Rig::shared("bad-work-ms");
    let gateway = Gateway::start(rig.gateway().env("ALLOW_WORK_MS", 0));
    gateway.post("/analyze", &json!({ "text": "a", "work_ms": 1 })).assert_problem(400);
    // A worker ignores it as well in a task that another program produced.
    let worker = rig.worker("w").env("ALLOW_WORK_MS", 0).start();
    worker.wait_for_line("worker_started notification", START);
    let task = json!({ "task_id": "sneaky", "text": "a b", "timestamp": 1.5, "work_ms": 120_000 }).to_string();
    audit::produce(rig.broker().address(), &rig.tasks(), &[(Some(b"sneaky"), Some(task.as_bytes()))]);
    let result = gateway.wait_for_result("sneaky", SOON);
    assert!(result["seconds"].as_f64().is_some_and(|seconds| seconds < 10.0), "{result}");
}

#[test]
fn records_that_are_not_tasks_become_dead_letters() {
    let (rig, gateway, mut worker) = Rig::shared("bad-records").fleet("w");
    let before = gateway.analyze("before").task_id();
    let big = vec![b'x'; 1_000_000];
    let long_id = json!({ "task_id": "i".repeat(101), "text": "a" }).to_string();
    let strange_id = json!({ "task_id": "a\nb", "text": "a" }).to_string();
    let no_text = json!({ "task_id": "no-text" }).to_string();
    let unknown_members = json!({ "task_id": "extra", "text": "a b", "timestamp": 1.0, "colour": "red" }).to_string();
    let records: [audit::KeyValue<'_>; 10] = [
        (None, None),
        (Some(b"null-value"), None),
        (Some(b"no-json"), Some(b"hello")),
        (None, Some(b"hello")),
        (Some(b"empty"), Some(b"")),
        (Some(b"big"), Some(&big)),
        (Some(b"\xff\xfe"), Some(long_id.as_bytes())),
        (None, Some(strange_id.as_bytes())),
        (None, Some(no_text.as_bytes())),
        (Some(b"list"), Some(b"[1,2,3]")),
    ];
    for record in records {
        audit::produce(rig.broker().address(), &rig.tasks(), &[record]);
    }
    audit::produce(rig.broker().address(), &rig.tasks(), &[(Some(b"extra"), Some(unknown_members.as_bytes()))]);
    assert_eq!(gateway.wait_for_result("extra", SOON)["words"], 2, "unknown members are ignored");
    eventually(SOON, "each record is dead-lettered", || rig.audit().dead.len() == 10);
    // A usable id in value or key gets an error result, because a caller may wait for it.
    for id in ["null-value", "no-json", "empty", "big", "no-text", "list"] {
        let result = gateway.wait_for_result(id, SOON);
        assert_eq!(result["success"], false, "{result}");
        assert!(result["error"].as_str().is_some_and(|error| !error.is_empty()), "{result}");
    }
    let dead = rig.audit().dead;
    let dead_big = dead.iter().find(|record| record.key == b"big").expect("a dead letter with this key");
    assert_eq!(dead_big.value.len(), big.len(), "the dead letter lacks a part of the value");
    assert_works(&gateway, &mut worker);
    let audit = rig.audit();
    assert_eq!(audit.runs(&before), 1);
    assert_eq!(audit.ran_again().len(), 0);
    worker.ends_at(Signal::SIGTERM, 0);
}

/// A gateway, and a worker that receives each task with a wrong checksum.
fn with_damage(name: &str) -> (Rig, Gateway, Program) {
    let rig = Rig::with_faults(name, 1);
    let gateway = rig.start_gateway();
    // Before the start of the worker, because the fault does not affect a fetch that is parked already.
    rig.broker().faulty().inject(Fault::new(Action::Damage).at(Kind::ShareFetch).every(1, u32::MAX));
    let worker = rig.start_worker("w");
    (rig, gateway, worker)
}

#[test]
fn a_task_damaged_in_transit_runs_when_it_arrives_intact() {
    let (rig, gateway, mut worker) = with_damage("bad-checksum");
    let task = gateway.submit("damaged for a while", Duration::ZERO);
    worker.wait_for_line("checksum does not match", SOON);
    rig.broker().faulty().heal();
    assert_eq!(gateway.wait_for_result(&task, SOON)["words"], 4);
    assert!(rig.audit().dead.is_empty());
    assert_works(&gateway, &mut worker);
}

#[test]
fn a_task_damaged_at_every_delivery_is_dead_lettered_at_the_last_one_with_its_content() {
    let (rig, gateway, mut worker) = with_damage("bad-checksums");
    let task = gateway.submit("damaged for good", Duration::ZERO);
    let result = gateway.wait_for_result(&task, Duration::from_secs(40));
    assert!(result["error"].as_str().is_some_and(|error| error.contains("checksum does not match")), "{result}");
    rig.broker().faulty().heal();
    // Result and dead letter are written in any order.
    eventually(SOON, "the task is dead-lettered", || !rig.audit().dead.is_empty());
    let dead = rig.audit().dead;
    assert_eq!(dead.iter().map(|record| record.key()).collect::<Vec<_>>(), [task]);
    assert_eq!(dead[0].json()["text"], "damaged for good");
    assert_works(&gateway, &mut worker);
}

/// Damages the responses to this many of the gateway's next fetches of `results`.
fn damage_results(rig: &Rig, times: u32) -> Bites {
    let fault = Fault::new(Action::Damage).at(Kind::Fetch).of_client("lastcall-gateway").of_topic(&rig.results());
    rig.broker().faulty().inject(fault.every(1, times))
}

/// The gateway skipped a damaged batch at once, and the caller got no result.
#[test]
fn result_damaged_in_transit_reaches_its_caller() {
    let (rig, gateway, mut worker) = Rig::with_faults("bad-fetch", 1).fleet_with("w", &[("ANSWER_TIMEOUT", "6s")]);
    // A fetch is parked for half a second: one of the four brings the result, and its first repetitions are damaged.
    let bites = damage_results(&rig, 4);
    eventually(SOON, "a fetch with a damaged response is parked", || bites.count() > 0);
    let answer = gateway.post("/analyze", &json!({ "text": "damaged for a moment", "work_ms": 300 }));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["words"], 4);
    assert_eq!(bites.count(), 4);
    assert_works(&gateway, &mut worker);
}

#[test]
fn result_that_stays_damaged_is_skipped_and_later_ones_are_delivered() {
    let (rig, gateway, mut worker) = Rig::with_faults("bad-fetches", 1).fleet("w");
    let bites = damage_results(&rig, u32::MAX);
    eventually(SOON, "a fetch with a damaged response is parked", || bites.count() > 0);
    gateway.submit("damaged for good", Duration::ZERO);
    let line = gateway.program.wait_for_line("skipped", SOON).text;
    assert!(line.contains(&format!("{}-0: offset", rig.results())) && line.contains("1 batch"), "{line}");
    assert!(bites.count() >= 6, "{}", bites.count());
    rig.broker().faulty().heal();
    assert_works(&gateway, &mut worker);
}

/// The gateway forgot a result when a look-up returned a damaged batch.
#[test]
fn result_damaged_during_a_look_up_is_not_forgotten() {
    let (rig, gateway, worker) = Rig::with_faults("bad-look-up", 1).fleet("w");
    let task = gateway.submit("looked up", Duration::ZERO);
    gateway.wait_for_result(&task, SOON);
    let path = format!("/tasks/{task}");
    damage_results(&rig, u32::MAX);
    assert_eq!(gateway.get(&path).status, 503);
    rig.broker().faulty().heal();
    assert_eq!(gateway.get(&path).json()["words"], 2);
    drop(worker);
}

#[test]
fn invalid_records_on_results_are_ignored() {
    let (rig, gateway, mut worker) = Rig::shared("bad-results").fleet("w");
    let status = |id: &str| {
        let (kind, state) = ("worker_status", "worker_started");
        json!({ "type": kind, "worker_id": id, "status": state, "timestamp": 1.0, "current_task": null }).to_string()
    };
    let unknown =
        json!({ "task_id": "unknown", "success": true, "processed_by": "x", "seconds": 0.1, "type": "result" })
            .to_string();
    let future = json!({ "type": "something_new", "value": 7 }).to_string();
    let strange = ["<script>alert(1)</script>", "a\nb\u{1b}[31m", "", "Ж".repeat(5_000).as_str()].map(status);
    let mut records: Vec<Vec<u8>> = strange.into_iter().map(String::into_bytes).collect();
    let more: [&[u8]; 7] = [
        b"hello",
        b"",
        b"[]",
        b"null",
        b"{\"type\":\"worker_status\"}",
        b"{\"type\":\"result\",\"task_id\":7}",
        b"\xff",
    ];
    records.extend(more.map(<[u8]>::to_vec));
    records.extend([unknown.into_bytes(), future.into_bytes(), vec![b'x'; 900_000]]);
    for record in &records {
        audit::produce(rig.broker().address(), &rig.results(), &[(Some(b"k"), Some(record))]);
    }
    audit::produce(rig.broker().address(), &rig.results(), &[(None, None)]);
    assert_works(&gateway, &mut worker);
    let fleet = gateway.get("/workers/status");
    assert_eq!(fleet.status, 200);
    assert_eq!(fleet.json()["workers"]["w"]["is_responsive"], true);
    let page = gateway.get("/");
    assert_eq!(page.status, 200);
    assert!(!page.text().contains("<script>alert"), "the page does not escape a worker id");
    assert!(gateway.program.lines().iter().all(|line| !line.text.contains('\u{1b}')), "a log line has an escape code");
}

/// Asserts that a program exits with code 2 and that its output contains these texts.
fn assert_refused(launch: &Launch, texts: &[&str]) {
    let mut program = launch.start();
    let exit = program.wait(START);
    assert_eq!(exit.code, Some(2), "{}", program.stderr());
    let said: String = program.lines().into_iter().map(|line| line.text + "\n").collect();
    for text in texts {
        assert!(said.contains(text), "{text:?} is not in {said:?}");
    }
}

#[test]
fn invalid_options_are_refused_on_stderr() {
    let rig = Rig::shared("bad-config");
    let mut worker = rig.worker("w").env("DRAIN_TIMEOUT", "30").env("MAX_DELIVERIES", 8).start();
    assert_eq!(worker.wait(START).code, Some(2));
    for name in ["DRAIN_TIMEOUT", "MAX_DELIVERIES"] {
        assert_eq!(worker.stderr().matches(name).count(), 1, "{name} in {}", worker.stderr());
    }
    assert_refused(&rig.gateway().arg("--no-such-option"), &["--no-such-option"]);
    let mut help = rig.gateway().arg("--help").start();
    assert_eq!(help.wait(START).code, Some(0));
    let mut version = rig.worker("w").arg("--version").start();
    assert_eq!(version.wait(START).code, Some(0));
    version.wait_for_line(env!("CARGO_PKG_VERSION"), SOON);
}

#[test]
fn a_cluster_without_share_groups_is_refused() {
    let rig = Rig::with_own_broker("bad-kafka", &["--feature", "share.version=0"]);
    for launch in [rig.worker("w"), rig.gateway()] {
        assert_refused(&launch, &["Apache Kafka 4.2", "kafka-features.sh"]);
    }
}

#[test]
fn a_port_in_use_ends_the_gateway_with_code_1_and_is_named() {
    let rig = Rig::shared("bad-port");
    let gateway = rig.start_gateway();
    let mut second = rig.gateway().env("HTTP_ADDR", &gateway.address).start();
    let exit = second.wait(START);
    assert_eq!(exit.code, Some(1));
    let said: String = second.lines().into_iter().map(|line| line.text + "\n").collect();
    assert!(said.contains(&gateway.address) && said.contains("in use"), "{said}");
    assert_eq!(gateway.get("/livez").status, 200);
}

/// Starts a server that sends these bytes in response to each connection's first request; returns its address.
fn impostor(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let body = move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { break };
            let mut buffer = [0; 512];
            if stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                let _ = stream.write_all(&answer);
            }
        }
    };
    std::thread::Builder::new().name("impostor".to_owned()).spawn(body).expect("a thread starts");
    address
}

#[test]
fn programs_survive_a_broker_that_does_not_speak_kafka() {
    let rig = Rig::shared("bad-impostor");
    let answers: [&[u8]; 6] = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"",
        b"\x7f\xff\xff\xff",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x04\x00\x00\x00\x09",
        b"\x00\x00\x00\x05\x00\x00\x00\x00\xff",
    ];
    for answer in answers {
        let address = impostor(answer.to_vec());
        let mut worker = rig.worker("w").env("KAFKA_BOOTSTRAP_SERVERS", &address).start();
        let mut gateway = Gateway::launch(rig.gateway().env("KAFKA_BOOTSTRAP_SERVERS", &address));
        eventually(SOON, "the gateway serves HTTP", || gateway.try_get("/livez").is_some_and(|it| it.status == 200));
        assert_eq!(gateway.get("/readyz").status, 503);
        gateway.analyze("without a broker").assert_problem(503);
        worker.wait_for_line(&address, SOON);
        for program in [&mut worker, &mut gateway.program] {
            assert!(program.is_running(), "the program exited because Kafka is unreachable");
            let exit = program.ends_at(Signal::SIGTERM, 0);
            assert!(exit.elapsed < Duration::from_secs(5), "{exit:?}");
        }
    }
}

#[test]
fn a_kafka_without_share_fetch_2_is_refused() {
    let rig = Rig::shared("bad-old");
    // Version 3 of ApiVersions with correlation id, no error, Produce 3 to 12 only, throttle time, and no tags.
    let mut old =
        b"\x00\x00\x00\x13\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x03\x00\x0c\x00\x00\x00\x00\x00\x00".to_vec();
    let length = i32::try_from(old.len() - 4).expect("short");
    old[..4].copy_from_slice(&length.to_be_bytes());
    // Version 0 with the error UNSUPPORTED_VERSION and no keys, as brokers before 2.4 answer.
    let ancient = b"\x00\x00\x00\x0a\x00\x00\x00\x00\x00\x23\x00\x00\x00\x00".to_vec();
    for answer in [old, ancient] {
        let launch = rig.worker("w").env("KAFKA_BOOTSTRAP_SERVERS", impostor(answer));
        assert_refused(&launch, &["Apache Kafka 4.2 or later", "ShareFetch 2"]);
    }
}

#[test]
fn programs_wait_for_a_broker_that_starts_later() {
    let rig = Rig::with_own_broker("bad-late", &[]);
    rig.broker().stop();
    let gateway = Gateway::launch(rig.gateway());
    let worker = rig.worker("w").start();
    eventually(SOON, "HTTP serves without Kafka", || gateway.try_get("/livez").is_some_and(|it| it.status == 200));
    let health = gateway.get("/health");
    assert_eq!((health.status, health.json()["kafka_connected"].clone()), (503, Value::from(false)));
    worker.wait_for_line("Kafka does not answer", SOON);
    // The worker tries again within this time; no condition shows an attempt that it does not log.
    std::thread::sleep(Duration::from_secs(1));
    rig.broker().start();
    worker.wait_for_line("worker_started notification", START);
    eventually(SOON, "the gateway is ready", || gateway.get("/readyz").status == 200);
    assert_eq!(gateway.analyze("at last").status, 200);
    assert_eq!(worker.lines_with("Kafka does not answer").len(), 1, "each attempt logs a warning");
}
