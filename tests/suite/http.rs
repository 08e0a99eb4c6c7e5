//! The gateway's HTTP front: clients as they are, and callers that do not go on. What it takes and refuses, byte by byte, is tested where it is
//! written (`src/gateway/http/`), and here by the table of docs/http.md.

use std::{
    io::ErrorKind,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::Signal,
};

use crate::support::{Gateway, Rig, SOON, eventually, http::Http};

const HEAD: &str = "POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
/// What `{post}` stands for in the table of docs/http.md.
const POST: &str = r"POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
/// What a request must not take while others misbehave; a bound for a busy machine, no promise.
const PROMPT: Duration = Duration::from_secs(5);

/// A connection on which this was sent.
fn sent(gateway: &Gateway, text: &str) -> Http {
    let mut http = gateway.connect();
    http.send_raw(text.as_bytes()).expect("it is sent");
    http
}

fn figure(gateway: &Gateway, name: &str) -> u64 {
    let metrics = gateway.get("/metrics").text();
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

fn open_connections(gateway: &Gateway) -> u64 {
    figure(gateway, "lastcall_gateway_http_connections")
}

#[test]
fn client_that_offers_http_2_is_answered_in_http_1() {
    let rig = Rig::shared("http-curl");
    let gateway = rig.start_gateway();
    let _worker = rig.start_worker("w");
    let url = format!("http://{}/analyze", gateway.address);
    let curl = |arguments: &[&str]| {
        let common = ["-sS", "-m", "10", "-H", "Content-Type: application/json", "-d", r#"{"text": "a b"}"#];
        Command::new("curl").args(common).args(arguments).arg(&url).output().expect("curl is there")
    };
    let offered = curl(&["--http2"]);
    let said = String::from_utf8_lossy(&offered.stdout);
    assert!(offered.status.success() && said.contains("\"words\":2"), "{offered:?}");
    // It speaks HTTP/2 at once: it is told so and does not wait for its time to be over (28).
    let insisted = curl(&["--http2-prior-knowledge"]);
    assert!(!insisted.status.success() && insisted.status.code() != Some(28), "{insisted:?}");
    assert_eq!(rig.audit().tasks.len(), 1);
}

/// A row of the table: the request, its statuses, and whether the connection stays.
fn row(line: &str) -> Option<(String, Vec<u16>, bool)> {
    let cells: Vec<&str> = line.strip_prefix("| ")?.split(" | ").collect();
    let [_, request, statuses, connection, _] = cells[..] else { return None };
    let request = request.strip_prefix('`')?.strip_suffix('`')?.replace("{post}", POST);
    let statuses = statuses.split(' ').map(|status| status.parse().expect("a status")).collect();
    Some((request, statuses, connection == "stays"))
}

/// The bytes for which this stands: `\r`, `\n`, `\t` and `\xNN`.
fn unescaped(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((byte, after)) = rest.split_first() {
        let (byte, length) = match (byte, after) {
            (b'\\', [b'r', ..]) => (b'\r', 2),
            (b'\\', [b'n', ..]) => (b'\n', 2),
            (b'\\', [b't', ..]) => (b'\t', 2),
            (b'\\', [b'x', high, low, ..]) => {
                let digits = String::from_utf8(vec![*high, *low]).expect("digits");
                (u8::from_str_radix(&digits, 16).expect("digits"), 4)
            }
            (byte, _) => (*byte, 1),
        };
        bytes.push(byte);
        rest = &rest[length..];
    }
    bytes
}

#[test]
fn requests_are_answered_as_the_documentation_says() {
    let rig = Rig::shared("http-table");
    let gateway = rig.start_gateway();
    let rows: Vec<_> = include_str!("../../docs/http.md").lines().filter_map(row).collect();
    assert!(rows.len() > 60, "the table is whole: {}", rows.len());
    for (request, statuses, stays) in rows {
        let mut http = gateway.connect();
        http.send_raw(&unescaped(&request)).expect("it is sent");
        for status in statuses {
            let answer = http.receive("GET").unwrap_or_else(|error| panic!("{request}: {error}"));
            assert_eq!(answer.status, status, "{request}: {}", answer.text());
        }
        let next = if stays { http.get("/livez") } else { http.receive("GET") };
        match next {
            Ok(answer) => assert!(stays && answer.status == 200, "{request}: {answer:?}"),
            Err(error) => assert!(!stays && error.kind() == ErrorKind::UnexpectedEof, "{request}: {error}"),
        }
    }
}

/// The program of a caller in Java, as its documentation shows it.
const JAVA: &str = r#"
import java.net.URI;
import java.net.http.*;
import java.time.Duration;

class Caller {
    public static void main(String[] arguments) throws Exception {
        var body = HttpRequest.BodyPublishers.ofString("{\"text\": \"a b\"}");
        var request = HttpRequest.newBuilder(URI.create(arguments[0])).header("Content-Type", "application/json")
            .timeout(Duration.ofSeconds(20)).POST(body).build();
        var client = HttpClient.newHttpClient();
        for (int call = 0; call < 2; call++) {
            System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).body());
        }
    }
}
"#;

#[test]
fn client_of_java_is_answered() {
    // The compiler of a single file is part of a JDK, which a machine with Kafka need not have.
    if Command::new("javac").arg("-version").output().is_err() {
        eprintln!("NOT RUN: there is no javac");
        return;
    }
    let rig = Rig::shared("http-java");
    let gateway = rig.start_gateway();
    let _worker = rig.start_worker("w");
    let file = std::env::temp_dir().join(format!("lastcall-{}-Caller.java", std::process::id()));
    std::fs::write(&file, JAVA).expect("a folder for temporary files");
    let url = format!("http://{}/analyze", gateway.address);
    let output =
        Command::new("java").arg("-XX:TieredStopAtLevel=1").arg(&file).arg(url).output().expect("java is there");
    std::fs::remove_file(&file).expect("our own file");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.matches("\"words\":2").count() == 2, "{output:?}");
    assert_eq!(rig.audit().tasks.len(), 2);
}

#[test]
fn request_in_another_protocol_gives_its_connection_back() {
    let rig = Rig::shared("http-preface");
    let gateway = rig.start_gateway();
    for preface in ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/3.0\r\n\r\n"] {
        let mut http = sent(&gateway, preface);
        http.receive("GET").expect("an answer").assert_problem(505);
        assert!(http.receive("GET").is_err(), "the connection is closed");
    }
    eventually(SOON, "only the connection that asks is left", || open_connections(&gateway) == 1);
}

#[test]
fn quiet_connections_lock_no_caller_out() {
    let rig = Rig::quiet("http-quiet");
    // One caller that waits, and 1,024 connections more.
    let gateway = Gateway::start(rig.gateway().env("MAX_WAITING", 1));
    let _worker = rig.start_worker("w");
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the soft limit may be the hard one");
    let mut quiet: Vec<Http> = (0..1025).map(|_| gateway.connect()).collect();
    // Half a head is as quiet as none.
    for http in quiet.iter_mut().step_by(2) {
        http.send_raw(b"GET /livez HT").expect("it is sent");
    }
    let asked = Instant::now();
    for _ in 0..3 {
        let mut http = gateway.connect();
        http.set_patience(PROMPT).expect("a socket");
        assert_eq!(http.get("/livez").expect("an answer").status, 200);
    }
    assert!(asked.elapsed() < PROMPT, "{:?}", asked.elapsed());
    assert_eq!(gateway.analyze("still at work").json()["words"], 3);
}

#[test]
fn body_that_does_not_come_holds_up_no_stop() {
    let rig = Rig::quiet("http-stalled");
    let mut gateway = rig.start_gateway();
    let mut refused: Vec<Http> = ["/analyze", "/health", "/nothing"]
        .iter()
        .map(|path| {
            let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n");
            sent(&gateway, &format!("{head}Content-Length: 70000\r\n\r\n{{"))
        })
        .collect();
    for http in &mut refused {
        assert!([404, 405, 413].contains(&http.receive("POST").expect("answered before it came").status));
    }
    let unfinished = ["", "Content-Length: 100\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n5\r\n{"];
    let _stalled: Vec<Http> = unfinished.iter().map(|rest| sent(&gateway, &format!("{HEAD}{rest}"))).collect();
    gateway.program.signal(Signal::SIGTERM);
    let exit = gateway.program.wait(SOON);
    assert_eq!(exit.code, Some(0));
    assert!(exit.elapsed < Duration::from_secs(1), "{exit:?}");
}

// ---- callers that leave ----

#[test]
fn caller_that_leaves_makes_room_at_once() {
    let rig = Rig::shared("gw-left");
    let gateway = Gateway::start(rig.gateway().env("MAX_WAITING", 2).env("ANSWER_TIMEOUT", "60s"));
    let wait = || {
        let mut http = gateway.connect();
        http.send("POST", "/analyze", &[("Content-Type", "application/json")], br#"{"text": "waits"}"#)
            .expect("it is sent");
        http
    };
    for _ in 0..3 {
        let both = [wait(), wait()];
        eventually(SOON, "both wait", || figure(&gateway, "lastcall_gateway_waiting_callers") == 2);
        drop(both);
        eventually(PROMPT, "both have left", || figure(&gateway, "lastcall_gateway_waiting_callers") == 0);
    }
    let asks_alone = || open_connections(&gateway) == 1;
    eventually(PROMPT, "their connections have ended", asks_alone);
    // What Kafka has got of their tasks is run.
    let _worker = rig.start_worker("w");
    eventually(SOON, "nothing is lost", || rig.audit().lost().is_empty());
}

#[test]
fn task_whose_caller_left_before_kafka_got_it_is_not_produced() {
    let rig = Rig::with_own_broker("gw-left-queued", &[]);
    let gateway = rig.start_gateway();
    rig.broker().stop();
    let mut http = gateway.connect();
    http.send("POST", "/analyze", &[("Content-Type", "application/json")], br#"{"text": "left"}"#).expect("it is sent");
    eventually(SOON, "its caller waits", || figure(&gateway, "lastcall_gateway_waiting_callers") == 1);
    drop(http);
    eventually(PROMPT, "its caller has left", || figure(&gateway, "lastcall_gateway_waiting_callers") == 0);
    rig.broker().start();
    let _worker = rig.start_worker("w");
    eventually(SOON, "the gateway is ready", || gateway.get("/readyz").status == 200);
    let stays = gateway.analyze("stays").task_id();
    let tasks: Vec<String> = rig.audit().tasks.into_keys().collect();
    assert_eq!(tasks, [stays]);
}
