//! `drill watch` on a fleet whose workers are stopped and killed: its output, its verdict, its exit codes.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{
    Gateway, Rig, SOON, audit, built, eventually, eventually_some,
    program::{Launch, Program},
    reserved_port,
};

/// Long enough for the load, for the silence of a killed worker, and for the look-ups at the end.
const OVER: Duration = Duration::from_secs(60);

fn watch(rig: &Rig, gateway: &str) -> Launch {
    rig.launch("drill", built("drill")).arg("watch").env("GATEWAY_URL", format!("http://{gateway}"))
}

fn last_line(drill: &Program) -> String {
    drill.lines().last().map(|line| line.text.clone()).unwrap_or_default()
}

#[test]
fn watch_holds_the_promises_of_a_fleet_with_a_stopped_and_a_killed_worker() {
    let (rig, gateway, mut stopped) = Rig::quiet("drill").fleet("stopped");
    let mut killed = rig.start_worker("killed");
    let mut drill = watch(&rig, &gateway.address)
        .arg("--for=10s")
        .env("RATE", 20)
        .env("REPORT_EVERY", "1s")
        .env("WORK_MS", 20)
        .env("SEED", 7)
        .start();
    drill.wait_for_line("  answered ", SOON);
    stopped.signal(Signal::SIGTERM);
    let _replacement = rig.start_worker("replacement");
    assert_eq!(stopped.wait(SOON).code, Some(0));
    killed.kill();
    let _other = rig.start_worker("other");
    let exit = drill.wait(OVER);
    assert_eq!(exit.code, Some(0));
    assert_eq!(drill.stderr(), "");
    drill.assert_lines_in_order(&[
        "; seed 7",
        "🛑 stopped: shutdown_started",
        "👋 stopped: shutdown_completed: drained after SIGTERM",
        "🚀 other: worker_started",
        "⏳ killed: silent",
    ]);
    drill.wait_for_line("🚀 replacement: worker_started", SOON);
    drill.wait_for_line("a fleet that others act on: only its tasks are judged", SOON);
    drill.wait_for_line("  |  workers ", SOON);
    let verdict = last_line(&drill);
    assert!(verdict.starts_with("verdict: HELD: ") && verdict.contains(" 0 lost, 0 wrong, "), "{verdict}");
    let audit = rig.audit();
    assert!(verdict.contains(&format!("{} sent, {0} answered", audit.tasks.len())), "{verdict}");
    assert!(audit.tasks.len() > 100, "20 per second for 10 s are 200: {verdict}");
}

#[test]
fn the_first_signal_ends_watch_with_a_verdict_and_the_second_without() {
    let (rig, gateway, worker) = Rig::shared("drill-signals").fleet("a");
    let mut drill = watch(&rig, &gateway.address).env("REPORT_EVERY", "200ms").start();
    eventually(SOON, "thirty requests are answered", || {
        drill.lines().iter().filter_map(|line| line.text.split_once("  answered ")).any(|(_, rest)| {
            let number = rest.split_whitespace().next().and_then(|number| number.parse::<u32>().ok());
            number.is_some_and(|number| number >= 30)
        })
    });
    drill.signal(Signal::SIGINT);
    // On a busy machine a task may wait for the end of its lock.
    assert_eq!(drill.wait(SOON * 3).code, Some(0));
    assert!(last_line(&drill).starts_with("verdict: HELD: "), "{}", last_line(&drill));
    drill.wait_for_line("SIGINT received", SOON);
    // Without a worker the drill always waits for responses.
    drop(worker);
    let mut drill = watch(&rig, &gateway.address).env("REPORT_EVERY", "200ms").start();
    // Matches 1 and 10 to 19 waiting requests: at 20 per second the drill prints this more than once.
    drill.wait_for_line("  waiting 1", SOON);
    drill.signal(Signal::SIGTERM);
    drill.wait_for_line("SIGTERM received", SOON);
    let exit = drill.ends_at(Signal::SIGTERM, 4);
    assert!(exit.elapsed < Duration::from_secs(5), "{exit:?}");
    assert!(last_line(&drill).starts_with("verdict: NONE: "));
}

#[test]
fn watch_finds_an_unexplained_second_run() {
    let (rig, gateway, _worker) = Rig::shared("drill-broken").fleet("a");
    let mut drill = watch(&rig, &gateway.address).env("FOR", "8s").start();
    drill.wait_for_line("for 8 s", SOON);
    // The task already has a result, so the second result differs from the first.
    let id = &eventually_some(SOON, "a task of the drill has run", || rig.audit().results.into_keys().next());
    let again = json!({"task_id": id, "success": true, "processed_by": "ghost", "seconds": 0.1, "type": "result"});
    audit::produce(
        rig.broker().address(),
        &rig.results(),
        &[(Some(id.as_bytes()), Some(again.to_string().as_bytes()))],
    );
    assert_eq!(drill.wait(OVER).code, Some(5));
    let told = drill.wait_for_line("a task ran on a, then on ghost, unexplained", SOON).text;
    assert!(told.contains(id) && told.contains("; ledger lines "), "{told}");
    let verdict = last_line(&drill);
    assert!(verdict.starts_with("verdict: BROKEN: every answer is right (1), no task runs twice (1) ("), "{verdict}");
}

#[test]
fn watch_could_not_run_if_the_gateway_refuses_every_request() {
    let rig = Rig::shared("drill-refused");
    let gateway = Gateway::start(rig.gateway().env("ALLOW_WORK_MS", 0));
    let mut drill = watch(&rig, &gateway.address).env("FOR", "500ms").env("WORK_MS", 1).start();
    assert_eq!(drill.wait(OVER).code, Some(1));
    let verdict = last_line(&drill);
    assert!(verdict.starts_with("verdict: COULD NOT RUN: ") && verdict.contains("ALLOW_WORK_MS=1"), "{verdict}");
}

#[test]
fn watch_is_undecided_while_kafka_is_unreachable() {
    let (rig, gateway, _worker) = Rig::shared("drill-no-kafka").fleet("a");
    let port = reserved_port();
    let nowhere = port.address().to_string();
    let mut drill = watch(&rig, &gateway.address).env("FOR", "1s").env("KAFKA_BOOTSTRAP_SERVERS", &nowhere).start();
    assert_eq!(drill.wait(OVER).code, Some(1), "held without an audit");
    assert_eq!(drill.lines_with("Kafka does not answer").len(), 1);
    drill.wait_for_line(&format!("cannot be read at {nowhere}"), SOON);
    let verdict = last_line(&drill);
    assert!(verdict.starts_with("verdict: UNDECIDED: ") && verdict.contains("nothing was audited"), "{verdict}");
}

#[test]
fn watch_reports_a_missing_gateway_and_each_bad_option_in_one_line() {
    let port = reserved_port();
    let nowhere = port.address().to_string();
    let drill = Launch::new("drill", built("drill"));
    let mut lonely = drill.clone().arg("watch").env("GATEWAY_URL", format!("http://{nowhere}")).start();
    let mut wrong = drill.clone().arg("watch").arg("--rate=0").env("GATEWAY_URL", "ftp://x").start();
    assert_eq!(wrong.wait(SOON).code, Some(2));
    let faults = wrong.stderr();
    assert_eq!(faults.lines().count(), 2, "{faults}");
    assert!(faults.contains("GATEWAY_URL: value \"ftp://x\"") && faults.contains("RATE: value \"0\""), "{faults}");
    // Its own broker has neither TLS nor logins.
    let security = [("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT"), ("KAFKA_SASL_MECHANISM", "PLAIN")];
    let launch = security.into_iter().fold(drill.clone().arg("run"), |launch, (name, value)| launch.env(name, value));
    let mut insecure = launch.env("KAFKA_SASL_USERNAME", "user").env("KAFKA_SASL_PASSWORD_FILE", "hunter2").start();
    assert_eq!(insecure.wait(SOON).code, Some(2));
    let faults = insecure.stderr();
    assert!(faults.starts_with("KAFKA_SASL_PASSWORD_FILE: value [hidden] cannot be read"), "{faults}");
    assert!(
        faults.ends_with("KAFKA_SECURITY_PROTOCOL: set; expected only with KAFKA_BOOTSTRAP_SERVERS or TARGET\n"),
        "{faults}"
    );
    let no_certificate = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let launch = drill.clone().arg("watch").env("KAFKA_SECURITY_PROTOCOL", "SSL");
    let mut insecure = launch.env("KAFKA_SSL_CA_FILE", no_certificate).start();
    assert_eq!(insecure.wait(SOON).code, Some(2));
    let expected = format!("KAFKA_SSL_CA_FILE: value \"{no_certificate}\" has no certificate; expected \"-----BEGIN");
    assert!(insecure.stderr().starts_with(&expected), "{}", insecure.stderr());
    let mut nothing = drill.start();
    assert_eq!(nothing.wait(SOON).code, Some(2));
    assert_eq!(lonely.wait(Duration::from_secs(20)).code, Some(1));
    let told = lonely.stderr();
    assert!(told.lines().count() == 1 && told.contains(&nowhere) && told.contains("make up"), "{told}");
}
