//! The log: its formats, the journal, the configuration in its first line. A full pipe at stdout (a stopped log
//! collector, a paused terminal) blocks only the log of a program.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    Gateway, Rig, SOON, audit,
    certificates::Authority,
    eventually,
    program::{Program, Stream},
    reserved_port, started,
};

/// The lines on stdout, without the worker's receipt at the end.
fn logged(program: &Program) -> Vec<String> {
    let mut lines: Vec<String> =
        program.lines().into_iter().filter(|line| line.stream == Stream::Stdout).map(|line| line.text).collect();
    if lines.last().is_some_and(|line| line.starts_with("{\"worker_id\"")) {
        lines.pop();
    }
    lines
}

#[test]
fn json_format_makes_each_line_an_object_with_the_message_of_the_text_and_leaves_the_receipt_alone() {
    let rig = Rig::shared("logs-json");
    let mut gateway = Gateway::start(rig.gateway().env("LOG_FORMAT", "json"));
    // A backslash of the text is escaped in the message, as in the text format; JSON escapes both once more.
    let mut worker = started(&rig.worker(r#"w "1"\"#).env("LOG_FORMAT", "json"));
    assert_eq!(gateway.analyze("in JSON").status, 200);
    worker.ends_at(Signal::SIGTERM, 0);
    gateway.program.ends_at(Signal::SIGTERM, 0);
    assert_eq!(worker.receipt()["worker_id"], r#"w "1"\"#);
    let mut messages = Vec::new();
    for line in logged(&worker).into_iter().chain(logged(&gateway.program)) {
        let object: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let members: Vec<&String> = object.as_object().expect("an object").keys().collect();
        assert_eq!(members, ["timestamp", "level", "message"], "{line}");
        assert!(object["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
        assert!(["info", "warn"].iter().any(|level| object["level"] == *level), "{line}");
        messages.push(object["message"].as_str().expect("a text").to_owned());
    }
    for text in [r#"🚀 Worker w "1"\\ started"#, r#"👋 Worker w "1"\\ gracefully shut down"#] {
        assert!(messages.iter().any(|message| message == text), "{text} in {messages:?}");
    }
}

#[test]
fn lines_begin_with_their_priority_only_if_stdout_is_the_journal() {
    let (rig, port) = (Rig::shared("logs-journal"), reserved_port());
    let launch = rig.worker("w").env("KAFKA_BOOTSTRAP_SERVERS", port.address());
    let elsewhere = launch.clone().env("JOURNAL_STREAM", "8:1");
    for (launch, is_journal) in [(launch.clone().in_journal(), true), (launch, false), (elsewhere, false)] {
        let mut worker = launch.start();
        // A warning: nothing listens there.
        worker.wait_for_line("[WARN]", SOON);
        worker.ends_at(Signal::SIGTERM, 0);
        assert_eq!(worker.receipt()["worker_id"], "w", "the receipt is JSON as it is");
        for line in logged(&worker) {
            let begin = if line.contains("[WARN]") { "<4>2" } else { "<6>2" };
            assert_eq!((line.starts_with(begin), line.starts_with('2')), (is_journal, !is_journal), "{line}");
        }
    }
}

#[test]
fn first_line_is_the_configuration_in_effect() {
    let rig = Rig::shared("logs-configuration");
    let gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "7s"));
    let worker = started(&rig.worker("w 1").env("DRAIN_TIMEOUT", "20s"));
    for (program, option) in [(&gateway.program, "ANSWER_TIMEOUT=7s"), (&worker, "DRAIN_TIMEOUT=20s")] {
        let first = logged(program).remove(0);
        assert!(first.contains(" [INFO] configuration: KAFKA_BOOTSTRAP_SERVERS="), "{first}");
        for pair in [option.to_owned(), format!("TASKS_TOPIC={}", rig.tasks()), "LOG_LEVEL=info".to_owned()] {
            assert!(first.contains(&format!(" {pair} ")), "{pair} in {first}");
        }
    }
    assert!(logged(&worker)[0].contains(r#" WORKER_ID="w 1""#));
}

#[test]
fn check_config_reports_faults_of_options_and_files_and_neither_connects_nor_listens() {
    let (rig, nowhere, taken) = (Rig::shared("logs-check"), reserved_port(), reserved_port());
    let listener = std::net::TcpListener::bind(taken.address()).expect("a reserved port");
    let files = Authority::new();
    ["one", "other"].iter().for_each(|name| files.issue(name, &["client"], 2100));
    for launch in [rig.worker("w"), rig.obedient_worker("w"), rig.gateway_at(taken.address())] {
        let launch = launch
            .arg("--check-config")
            .env("KAFKA_BOOTSTRAP_SERVERS", nowhere.address())
            .env("KAFKA_SECURITY_PROTOCOL", "SSL")
            .env("KAFKA_SSL_CA_FILE", files.path("ca.pem").display())
            .env("KAFKA_SSL_CERTIFICATE_FILE", files.path("one.pem").display())
            .env("KAFKA_SSL_KEY_FILE", files.path("one.key").display());
        let mut valid = launch.start();
        assert_eq!((valid.wait(SOON).code, valid.stderr().as_str()), (Some(0), ""));
        let lines = logged(&valid);
        assert_eq!(lines[0], "the configuration is valid");
        for pair in [&format!("KAFKA_BOOTSTRAP_SERVERS={}", nowhere.address()), "KAFKA_SSL_KEY_FILE=[hidden]"] {
            assert!(lines.iter().any(|line| line == pair), "{pair} in {lines:?}");
        }
        let other = launch.env("KAFKA_SSL_KEY_FILE", files.path("other.key").display()).env("LOG_FORMAT", "xml");
        let mut invalid = other.start();
        assert_eq!((invalid.wait(SOON).code, logged(&invalid).len()), (Some(2), 0));
        let faults = invalid.stderr();
        let [format, key] =
            ["LOG_FORMAT: value \"xml\" is no format", "KAFKA_SSL_KEY_FILE: value [hidden] is not the key"];
        assert!(faults.lines().any(|line| line.starts_with(format)), "{faults}");
        assert!(faults.lines().any(|line| line.starts_with(key)), "{faults}");
        assert_eq!(faults.lines().count(), 2, "{faults}");
    }
    drop(listener);
}

/// Produces records that are not tasks: the worker logs a line for each.
fn produce_garbage(rig: &Rig, count: usize) {
    let garbage: Vec<audit::KeyValue<'_>> = vec![(None, Some(b"garbage")); count];
    audit::produce(rig.broker().address(), &rig.tasks(), &garbage);
}

fn wait_for_dead_letters(rig: &Rig, count: usize) {
    let dead = format!("{}.dead", rig.tasks());
    eventually(3 * SOON, "the records are dead-lettered", || {
        audit::end_offsets(rig.broker().address(), &dead).values().sum::<i64>() == i64::try_from(count).expect("few")
    });
}

#[test]
fn worker_whose_stdout_is_full_works_and_stops_in_time() {
    let (rig, gateway, mut worker) = Rig::quiet("logs-worker").fleet("mute");
    worker.mute();
    produce_garbage(&rig, 3);
    wait_for_dead_letters(&rig, 3);
    assert_eq!(gateway.analyze("with a full pipe").status, 200);
    let task = gateway.submit("longer than a lock would be", Duration::from_secs(2));
    gateway.wait_until_running(&task, SOON);
    let exit = worker.ends_at(Signal::SIGTERM, 0);
    assert!(exit.elapsed < Duration::from_secs(3), "longer than the task and a second: {exit:?}");
    let audit = rig.audit();
    assert_eq!(audit.runs(&task), 1);
    assert_eq!(audit.states_of("mute").last(), Some(&"shutdown_completed"));
}

#[test]
fn idle_programs_whose_stdout_is_full_stop_within_a_second() {
    let (rig, mut gateway, mut worker) = Rig::quiet("logs-idle").fleet("mute");
    for program in [&mut worker, &mut gateway.program] {
        program.mute();
        let exit = program.ends_at(Signal::SIGTERM, 0);
        assert!(exit.elapsed < Duration::from_secs(1), "{exit:?}");
    }
    assert_eq!(rig.audit().states_of("mute").last(), Some(&"shutdown_completed"));
}

#[test]
fn gateway_whose_stdout_is_full_answers() {
    let rig = Rig::shared("logs-gateway");
    let gateway = rig.start_gateway();
    gateway.program.mute();
    let mut worker = rig.start_worker("told");
    assert_eq!(gateway.analyze("with a full pipe").status, 200);
    worker.ends_at(Signal::SIGTERM, 0);
    let other = rig.start_worker("other");
    assert_eq!(gateway.analyze("after an event of the fleet").status, 200);
    assert_eq!(gateway.get("/livez").status, 200);
    drop(other);
}

#[test]
fn dropped_log_lines_are_counted_and_the_receipt_is_the_last_line() {
    let rig = Rig::shared("logs-dropped");
    let _gateway = rig.start_gateway();
    let mut worker = started(&rig.worker("mute").env("WORKER_CONCURRENCY", 8));
    worker.mute();
    // More lines than the queue of the log holds (1024).
    produce_garbage(&rig, 1_100);
    wait_for_dead_letters(&rig, 1_100);
    worker.unmute();
    let told = worker.wait_for_line("line(s) of the log were dropped", SOON).text;
    let dropped: usize = told.split(' ').find_map(|word| word.parse().ok()).expect("a number");
    let kept = || worker.lines_with("gives task without an id up").len();
    eventually(SOON, &format!("kept and dropped lines are 1100 in all, after {told}"), || kept() + dropped == 1_100);
    worker.mute();
    worker.signal(Signal::SIGTERM);
    eventually(SOON, "the worker has sent its last notification", || {
        rig.audit().states_of("mute").last() == Some(&"shutdown_completed")
    });
    worker.unmute();
    assert_eq!(worker.wait(SOON).code, Some(0));
    assert_eq!(worker.receipt()["outcome"], "drained");
    worker.assert_lines_in_order(&["🛑 Worker mute received SIGTERM", "👋 Worker mute gracefully shut down"]);
}
