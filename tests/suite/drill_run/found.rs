//! Broken promises that the drill must find: workers behind a shell script, and foreign records on the topics.

use kafka_protocol::{
    messages::{MetadataRequest, TopicName, metadata_request::MetadataRequestTopic},
    protocol::StrBytes,
};

use super::*;
use crate::support::{audit, eventually_some, session::Session, wire::Wire};

/// Ignores SIGTERM; the worker is killed when the shell ends.
const DEAF: &str = r#"setpriv --pdeathsig KILL "$WORKER" & trap '' TERM; wait $!"#;
/// Kills the worker at SIGTERM and exits with code 0.
const HASTY: &str = r#"setpriv --pdeathsig KILL "$WORKER" & trap 'kill -9 $!; exit 0' TERM; wait $!"#;
/// Changes the receipt that the worker writes to standard output.
const LIAR: &str = r#"mkfifo "$FOLDER/$$"; sed -u 's/"tasks_finished":[0-9]*/"tasks_finished":7/' < "$FOLDER/$$" &
    setpriv --pdeathsig KILL "$WORKER" > "$FOLDER/$$" & worker=$!; trap 'kill $worker' TERM
    while kill -0 $worker 2>/dev/null; do wait $worker; code=$?; done; wait; exit $code"#;

#[test]
fn a_worker_that_does_not_stop_is_found() {
    // The plan has no stop, because the drill would wait for the fleet to be complete: it signals only at its end.
    let plan = LOAD.replace("60s", "1s").replace("5s", "1s");
    assert_found(&plan, DEAF, "busy worker finishes and stops", "got a signal and has not ended");
}

#[test]
fn a_worker_that_stops_without_a_drain_is_found() {
    assert_found(STOPS, HASTY, "stops have notifications and receipts", "stopped without shutdown_started");
}

#[test]
fn a_false_receipt_is_found() {
    assert_found(STOPS, LIAR, "receipts match the evidence", "; its receipt says 7");
}

/// Drills a fleet of workers behind this script and asserts that a finding of this row contains the text `says`.
fn assert_found(plan: &str, script: &str, row: &str, says: &str) {
    let turn = Turn::shared();
    let mut drill = Setup::embedded(plan).worker_script(script).start();
    drill.program.wait_for_line("the load has ended", OVER);
    drop(turn);
    assert_eq!(drill.wait(OVER).code, Some(5), "{}", drill.last_line());
    let findings = drill.findings(row);
    let said = |finding: &Value| finding["what"].as_str().is_some_and(|what| what.contains(says));
    assert!(findings.iter().any(said), "{says:?} is not in {findings:?}");
    drill.assert_consistent(5);
}

#[test]
fn a_lost_task_and_a_foreign_dead_letter_are_found() {
    let rig = Rig::shared("drill-stranger");
    let mut drill = Setup::on(&rig, &LOAD.replace("60s", "4s")).start();
    drill.wait_for_load();
    let address = rig.broker().address();
    let mut wire = Wire::connect(address);
    let name = TopicName(StrBytes::from_string(rig.tasks()));
    let topic = MetadataRequestTopic::default().with_name(Some(name));
    let topic = wire.call(12, &MetadataRequest::default().with_topics(Some(vec![topic]))).topics[0].topic_id;
    let mut foreign = Session::new(wire, topic, &rig.group(), "00000000-0000-4000-8000-000000000000");
    let (offset, _) = eventually_some(SOON, "a foreign member acquires a task", || {
        foreign.fetch(100, &[0]).acquired(0).first().copied()
    });
    assert_eq!(foreign.acknowledge(&[(0, offset, 1)]), (0, vec![0]));
    foreign.close();
    let done = eventually_some(SOON, "a task has run", || rig.audit().results.into_keys().next());
    let dead = format!("{}.dead", rig.tasks());
    audit::produce(address, &dead, &[(Some(done.as_bytes()), Some(br#"{"text": "no"}"#.as_slice()))]);
    assert_eq!(drill.wait(OVER).code, Some(5), "{}", drill.last_line());
    let said = |row: &str, says: &str| {
        let findings = drill.findings(row);
        assert!(findings.iter().any(|it| it["what"].as_str().is_some_and(|what| what.contains(says))), "{findings:?}");
    };
    said("no task is lost", "was accepted and has no result");
    said("no task fails that can succeed", "a task was dead-lettered");
}

#[test]
fn a_worker_that_exits_without_an_action_is_found() {
    let rig = Rig::shared("drill-dies");
    let plan = LOAD.replace("60s", "3s");
    let script = r#"[ "$WORKER_ID" = worker_2 ] || exec "$WORKER"; "$WORKER" &
        until [ -e "$FOLDER/now" ]; do sleep 0.05; done; kill -9 $!; wait $!; exit 7"#;
    let mut drill = Setup::on(&rig, &plan).worker_script(script).start();
    drill.wait_for_load();
    fs::write(drill.path("now"), "").expect("a file");
    assert_eq!(drill.wait(OVER).code, Some(5));
    let findings = drill.findings("exit codes are correct");
    let told: Vec<_> = findings.iter().map(|finding| &finding["what"]).collect();
    assert_eq!(told, ["worker_2 ended by itself, with exit code 7"]);
    drill.assert_consistent(5);
}
