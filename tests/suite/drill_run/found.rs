//! Broken promises that the drill has to find: real workers behind a shell script, and a stranger on the topics.

use kafka_protocol::{
    messages::{MetadataRequest, TopicName, metadata_request::MetadataRequestTopic},
    protocol::StrBytes,
};

use super::*;
use crate::support::{audit, eventually_some, session::Session, wire::Wire};

/// Forwards no signal; its worker dies with it.
const DEAF: &str = r#"setpriv --pdeathsig KILL "$WORKER" & trap '' TERM; wait $!"#;
/// Ends at SIGTERM without a drain.
const HASTY: &str = r#"setpriv --pdeathsig KILL "$WORKER" & trap 'kill -9 $!; exit 0' TERM; wait $!"#;
/// Changes the receipt on its way to standard output.
const LIAR: &str = r#"mkfifo "$FOLDER/$$"; sed -u 's/"tasks_finished":[0-9]*/"tasks_finished":7/' < "$FOLDER/$$" &
    setpriv --pdeathsig KILL "$WORKER" > "$FOLDER/$$" & worker=$!; trap 'kill $worker' TERM
    while kill -0 $worker 2>/dev/null; do wait $worker; code=$?; done; wait; exit $code"#;

#[test]
fn a_worker_that_does_not_stop_is_found() {
    // Its only signal is that of the drill's end: a fleet that is not whole would be waited for.
    let plan = LOAD.replace("60s", "1s").replace("5s", "1s");
    assert_found(&plan, DEAF, "a busy one finishes and stops", "got a signal and has not ended");
}

#[test]
fn a_worker_that_stops_without_a_drain_is_found() {
    assert_found(STOPS, HASTY, "stops are announced and receipted", "stopped without shutdown_started");
}

#[test]
fn a_receipt_that_is_not_true_is_found() {
    assert_found(STOPS, LIAR, "receipts match what was seen", "; its receipt says 7");
}

/// Drills a fleet of workers behind this script: this row is broken, and a finding says this.
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
fn a_task_that_a_stranger_accepted_is_lost_and_one_that_a_stranger_gave_up_is_found() {
    let rig = Rig::shared("drill-stranger");
    let mut drill = Setup::on(&rig, &LOAD.replace("60s", "4s")).start();
    drill.wait_for_load();
    let address = rig.broker().address();
    let mut wire = Wire::connect(address);
    let name = TopicName(StrBytes::from_string(rig.tasks()));
    let topic = MetadataRequestTopic::default().with_name(Some(name));
    let topic = wire.call(12, &MetadataRequest::default().with_topics(Some(vec![topic]))).topics[0].topic_id;
    let mut thief = Session::new(wire, topic, &rig.group(), "00000000-0000-4000-8000-000000000000");
    let (stolen, _) =
        eventually_some(SOON, "the thief is served", || thief.fetch(100, &[0]).acquired(0).first().copied());
    assert_eq!(thief.acknowledge(&[(0, stolen, 1)]), (0, vec![0]));
    thief.close();
    let done = eventually_some(SOON, "a task has run", || rig.audit().results.into_keys().next());
    let dead = format!("{}.dead", rig.tasks());
    audit::produce(address, &dead, &[(Some(done.as_bytes()), Some(br#"{"text": "no"}"#.as_slice()))]);
    assert_eq!(drill.wait(OVER).code, Some(5), "{}", drill.last_line());
    let said = |row: &str, says: &str| {
        let findings = drill.findings(row);
        assert!(findings.iter().any(|it| it["what"].as_str().is_some_and(|what| what.contains(says))), "{findings:?}");
    };
    said("no task is lost", "was accepted and has no result");
    said("no task is given up that could be done", "a task was put on the topic of the dead");
}

#[test]
fn a_worker_that_dies_by_itself_is_seen() {
    let rig = Rig::shared("drill-dies");
    let plan = LOAD.replace("60s", "3s");
    // Its output stays open for as long as the worker behind it lives.
    let script = r#"[ "$WORKER_ID" = worker_2 ] || exec "$WORKER"; "$WORKER" &
        until [ -e "$FOLDER/now" ]; do sleep 0.05; done; kill -9 $!; wait $!; exit 7"#;
    let mut drill = Setup::on(&rig, &plan).worker_script(script).start();
    drill.wait_for_load();
    fs::write(drill.path("now"), "").expect("a file");
    assert_eq!(drill.wait(OVER).code, Some(5));
    let findings = drill.findings("exit codes tell the truth");
    let told: Vec<_> = findings.iter().map(|finding| &finding["what"]).collect();
    assert_eq!(told, ["worker_2 ended by itself, with exit code 7"]);
    drill.assert_consistent(5);
}
