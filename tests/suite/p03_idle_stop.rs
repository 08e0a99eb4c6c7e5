//! P3: an idle worker stops within a second; its receipt is on the topic and on stdout.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    Rig, SOON, START, eventually,
    program::{Program, Stream},
    started,
};

const BOUND: Duration = Duration::from_secs(1);

fn stop_idle(rig: &Rig, worker: &mut Program, id: &str, signal: Signal) -> Value {
    let exit = worker.ends_at(signal, 0);
    assert!(exit.elapsed < BOUND, "{exit:?}");
    assert!(worker.lines_with("has not ended").is_empty(), "a thread did not end");
    let receipt = worker.receipt();
    assert_eq!(rig.audit().receipt_of(id), &receipt, "the receipt on the topic is the one on stdout");
    receipt
}

#[test]
fn an_idle_worker_stops_within_a_second_at_each_signal() {
    let rig = Rig::quiet("p3");
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let id = signal.as_str();
        let mut worker = rig.start_worker(id);
        assert_eq!(stop_idle(&rig, &mut worker, id, signal)["signal"], id);
        worker.wait_for_line(&format!("🛑 Worker {id} received {id}, initiating graceful shutdown..."), SOON);
    }
}

/// A shell ignores SIGINT for background jobs, and `nohup` ignores SIGHUP.
#[test]
fn a_worker_that_starts_with_ignored_signals_stops_at_them() {
    let rig = Rig::quiet("p3-ignored");
    for signal in [Signal::SIGINT, Signal::SIGHUP] {
        let id = signal.as_str();
        let shell = rig.launch(id, "sh").env("WORKER_ID", id).arg("-c").arg("trap '' INT HUP; exec \"$0\"");
        let mut worker = started(&shell.arg(env!("CARGO_BIN_EXE_worker")));
        assert_eq!(stop_idle(&rig, &mut worker, id, signal)["signal"], id);
    }
}

#[test]
fn a_worker_that_is_idle_again_after_tasks_stops_within_a_second() {
    let (rig, gateway, mut worker) = Rig::quiet("p3-after").fleet("idle");
    for number in 0..20 {
        assert_eq!(gateway.analyze(&format!("text {number}")).status, 200);
    }
    let receipt = stop_idle(&rig, &mut worker, "idle", Signal::SIGTERM);
    // tasks_finished counts from the signal. The last task can count, because its caller is answered before its accept.
    assert!(receipt["tasks_finished"].as_u64().is_some_and(|finished| finished <= 1), "{receipt}");
    eventually(SOON, "the gateway has read shutdown_completed", || {
        gateway.fleet()["workers"]["idle"]["status"] == "shutdown_completed"
    });
    assert_eq!(gateway.fleet()["workers"]["idle"]["is_responsive"], false);
    rig.audit().assert_each_ran_once([]);
}

#[test]
fn log_lines_status_records_and_receipt_of_a_stop_keep_the_contract() {
    let rig = Rig::shared("p3-lines");
    let mut worker = rig.start_worker("w 1");
    worker.ends_at(Signal::SIGTERM, 0);
    worker.assert_lines_in_order(&[
        "🚀 Worker w 1 started",
        "📡 Worker w 1 sent worker_started notification",
        "🛑 Worker w 1 received SIGTERM, initiating graceful shutdown...",
        "📡 Worker w 1 sent shutdown_started notification",
        "🧹 Worker w 1 cleaning up",
        "✅ Worker w 1 consumer closed",
        "📡 Worker w 1 sent shutdown_completed notification",
        "✅ Worker w 1 producer closed",
        "👋 Worker w 1 gracefully shut down",
        r#"{"worker_id":"w 1","#,
    ]);
    assert!(worker.lines_with("waiting for current task").is_empty(), "nothing was in flight");
    let lines = worker.lines();
    let logged = lines.iter().filter(|line| line.stream == Stream::Stdout && !line.text.starts_with('{'));
    for line in logged {
        let mut parts = line.text.splitn(3, ' ');
        let (time, level) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        assert!(is_utc_time(time), "{:?} does not begin with an RFC 3339 time in UTC", line.text);
        assert!(["[INFO]", "[WARN]", "INFO", "WARN"].contains(&level), "{:?} has no level", line.text);
    }
    assert_eq!(worker.stderr(), "");

    let receipt = worker.receipt();
    let members: Vec<&str> = receipt.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(
        members,
        [
            "worker_id",
            "signal",
            "outcome",
            "phases_ms",
            "tasks_finished",
            "tasks_returned",
            "tasks_abandoned",
            "exit_code"
        ]
    );
    assert_eq!(receipt["worker_id"], "w 1");
    assert_eq!(receipt["signal"], "SIGTERM");
    assert_eq!(receipt["outcome"], "drained");
    assert!(receipt["phases_ms"].as_object().is_some_and(|phases| phases.values().all(Value::is_number)), "{receipt}");
    assert_eq!((&receipt["tasks_finished"], &receipt["tasks_returned"]), (&json!(0), &json!(0)));
    assert_eq!((&receipt["tasks_abandoned"], &receipt["exit_code"]), (&json!([]), &json!(0)));

    let audit = rig.audit();
    assert_eq!(audit.states_of("w 1"), ["worker_started", "shutdown_started", "shutdown_completed"]);
    let instances: Vec<&Value> = audit.statuses_of("w 1").map(|status| &status["instance"]).collect();
    assert!(
        instances.iter().all(|it| it.as_str().is_some_and(|it| it.len() == 36))
            && instances.windows(2).all(|it| it[0] == it[1])
    );
    for status in audit.statuses_of("w 1") {
        assert_eq!((&status["type"], &status["current_task"]), (&json!("worker_status"), &Value::Null));
        assert!(status["timestamp"].is_f64(), "{status}");
        assert_eq!(status.get("receipt").is_some_and(Value::is_object), status["status"] == "shutdown_completed");
    }
}

/// True for `2026-01-31T23:59:59Z`, also with a fraction or with `+00:00`.
fn is_utc_time(text: &str) -> bool {
    let shape: String = text.chars().map(|it| if it.is_ascii_digit() { '0' } else { it }).collect();
    let Some(rest) = shape.strip_prefix("0000-00-00T00:00:00") else { return false };
    let rest = rest.strip_prefix('.').map_or(rest, |rest| rest.trim_start_matches('0'));
    rest == "Z" || rest == "+00:00"
}

#[test]
fn a_signal_at_any_moment_of_the_start_stops_the_worker_with_code_0() {
    let rig = Rig::quiet("p3-joining");
    for moment in [0, 5, 20, 60, 150] {
        let mut worker = rig.worker(&format!("joining-{moment}")).env("LOG_LEVEL", "debug").start();
        eventually(START, "the signal handler is installed", || catches(worker.id(), Signal::SIGTERM));
        std::thread::sleep(Duration::from_millis(moment));
        let exit = worker.ends_at(Signal::SIGTERM, 0);
        assert!(exit.elapsed < Duration::from_secs(5), "{exit:?}");
    }
}

/// Reads `SigCgt`, the mask of the signals with a handler: proc_pid_status(5). Bit 0 is signal 1.
pub fn catches(process: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << (signal as i32 - 1)) != 0)
}
