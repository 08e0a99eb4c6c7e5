//! HTTP of the gateway: real clients, the table of docs/http.md, idle connections, and callers that leave. The unit
//! tests of `src/http/` cover the parser.

use std::{
    io::ErrorKind,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::Signal,
};

use crate::support::{Gateway, Rig, SOON, eventually, has_program, http::Http};

const HEAD: &str = "POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
/// What `{post}` stands for in the table of docs/http.md.
const POST: &str = r"POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
/// Bound of a request while other callers misbehave on a busy machine; not a promise.
const PROMPT: Duration = Duration::from_secs(5);

/// Opens a connection and sends this text.
fn sent(gateway: &Gateway, text: &str) -> Http {
    let mut http = gateway.connect();
    http.send_raw(text.as_bytes()).expect("the request is sent");
    http
}

fn figure(gateway: &Gateway, name: &str) -> u64 {
    let metrics = gateway.get("/metrics").text();
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {metrics}"))
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
    // With HTTP/2 from the first byte curl gets an error at once and does not time out (28).
    let insisted = curl(&["--http2-prior-knowledge"]);
    assert!(!insisted.status.success() && insisted.status.code() != Some(28), "{insisted:?}");
    assert_eq!(rig.audit().tasks.len(), 1);
}

/// Parses a row of the table: the request, the statuses, and whether the connection stays open.
fn row(line: &str) -> Option<(String, Vec<u16>, bool)> {
    let cells: Vec<&str> = line.strip_prefix("| ")?.split(" | ").collect();
    let [_, request, statuses, connection, _] = cells[..] else { return None };
    let request = request.strip_prefix('`')?.strip_suffix('`')?.replace("{post}", POST);
    let statuses = statuses.split(' ').map(|status| status.parse().expect("a status")).collect();
    Some((request, statuses, connection == "stays"))
}

/// Replaces `\r`, `\n`, `\t` and `\xNN` by their bytes.
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
fn requests_get_the_documented_responses() {
    let rig = Rig::shared("http-table");
    let gateway = rig.start_gateway();
    let rows: Vec<_> = include_str!("../../docs/http.md").lines().filter_map(row).collect();
    assert!(rows.len() > 60, "the table has {} rows, expected more than 60", rows.len());
    for (request, statuses, stays) in rows {
        let mut http = gateway.connect();
        http.send_raw(&unescaped(&request)).expect("the request is sent");
        for status in statuses {
            let answer = http.receive("GET").unwrap_or_else(|error| panic!("{request}: {error}"));
            assert_eq!(answer.status, status, "{request}: {}", answer.text());
            if status >= 400 {
                answer.assert_problem(status);
            }
        }
        let next = if stays { http.get("/livez") } else { http.receive("GET") };
        match next {
            Ok(answer) => assert!(stays && answer.status == 200, "{request}: {answer:?}"),
            Err(error) => assert!(!stays && error.kind() == ErrorKind::UnexpectedEof, "{request}: {error}"),
        }
    }
}

/// A caller in Java, as in the documentation of its HTTP client.
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
fn http_client_of_java_gets_results() {
    // Not every Java has the compiler, which runs a file of source.
    if !has_program(Command::new("java").args(["--add-modules", "jdk.compiler", "-version"]), "REQUIRE_JAVA") {
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
    std::fs::remove_file(&file).expect("the file is removed");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.matches("\"words\":2").count() == 2, "{output:?}");
    assert_eq!(rig.audit().tasks.len(), 2);
}

#[test]
fn idle_connections_do_not_block_new_callers() {
    let rig = Rig::quiet("http-quiet");
    // The gateway accepts MAX_WAITING + 1024 connections.
    let gateway = Gateway::start(rig.gateway().env("MAX_WAITING", 1));
    let _worker = rig.start_worker("w");
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the soft limit may be the hard one");
    let mut idle: Vec<Http> = (0..1025).map(|_| gateway.connect()).collect();
    // Every second connection has sent a part of a head.
    for http in idle.iter_mut().step_by(2) {
        http.send_raw(b"GET /livez HT").expect("the request is sent");
    }
    let asked = Instant::now();
    for _ in 0..3 {
        let mut http = gateway.connect();
        http.set_patience(PROMPT).expect("a socket");
        assert_eq!(http.get("/livez").expect("a response").status, 200);
    }
    assert!(asked.elapsed() < PROMPT, "{:?}", asked.elapsed());
    assert_eq!(gateway.analyze("still at work").json()["words"], 3);
}

#[test]
fn missing_bodies_do_not_delay_a_stop() {
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
        assert!([404, 405, 413].contains(&http.receive("POST").expect("a response before the body").status));
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
fn caller_that_leaves_frees_its_place_at_once() {
    let rig = Rig::shared("gw-left");
    let gateway = Gateway::start(rig.gateway().env("MAX_WAITING", 2).env("ANSWER_TIMEOUT", "60s"));
    let wait = || {
        let mut http = gateway.connect();
        http.send("POST", "/analyze", &[("Content-Type", "application/json")], br#"{"text": "waits"}"#)
            .expect("the request is sent");
        http
    };
    for _ in 0..3 {
        let both = [wait(), wait()];
        eventually(SOON, "both callers wait", || figure(&gateway, "lastcall_callers_waiting") == 2);
        drop(both);
        eventually(PROMPT, "both callers have left", || figure(&gateway, "lastcall_callers_waiting") == 0);
    }
    let open = || figure(&gateway, "lastcall_http_connections");
    eventually(PROMPT, "their connections have ended", || open() == 1);
    // Their tasks run if the gateway has produced them.
    let _worker = rig.start_worker("w");
    eventually(SOON, "every task has a result", || rig.audit().lost().is_empty());
}

#[test]
fn task_whose_caller_left_before_the_produce_is_not_produced() {
    let rig = Rig::with_own_broker("gw-left-queued", &[]);
    let gateway = rig.start_gateway();
    rig.broker().stop();
    let mut http = gateway.connect();
    http.send("POST", "/analyze", &[("Content-Type", "application/json")], br#"{"text": "left"}"#)
        .expect("the request is sent");
    eventually(SOON, "the caller waits", || figure(&gateway, "lastcall_callers_waiting") == 1);
    drop(http);
    eventually(PROMPT, "the caller has left", || figure(&gateway, "lastcall_callers_waiting") == 0);
    rig.broker().start();
    let _worker = rig.start_worker("w");
    eventually(SOON, "the gateway is ready", || gateway.get("/readyz").status == 200);
    let stays = gateway.analyze("stays").task_id();
    let tasks: Vec<String> = rig.audit().tasks.into_keys().collect();
    assert_eq!(tasks, [stays]);
}
