//! P12: the drill on a secured Kafka, with its own fleet.

use super::*;
use crate::support::secured::{Listener, PASSWORD, Secured, Way};

/// Workers stop and restart under load, and logins expire meanwhile.
const ROLLS: &str = r#"
for = "8s"
fleet = { workers = 3, gateways = 1, drain_timeout = "5s" }

[load]
rate = 30
tasks = [{ share = 95, work = "5ms" }, { share = 5, work = "1s" }]

[[action]]
do = "restart-worker"
worker = "busy"
at = ["1s", "3s", "5s"]

[[action]]
do = "restart-worker"
worker = "all"
at = "6s"
"#;

#[test]
fn a_drill_on_a_secured_kafka_holds_while_logins_expire_and_says_that_one_client_reads() {
    const ONE: &str = "the records are read by one client";
    let lifetime = Duration::from_secs(5);
    let secured = Secured::new("drill-secured", Some(5000));
    let way = Way::new(Listener::SaslSsl, Some("SCRAM-SHA-512"));
    secured.open(way.listener, Some(lifetime));
    let Setup { folder, launch } = Setup::on(&secured.rig, ROLLS);
    // A flag of the drill reaches its programs, too.
    let authority = format!("--kafka-ssl-ca-file={}", secured.files.path("ca.pem").display());
    let launch = secured.by(way, launch).env("KAFKA_SSL_CA_FILE", "").arg(authority);
    let mut drill = Setup { folder, launch }.start();
    assert_eq!(drill.wait(OVER).code, Some(0), "{}", drill.last_line());
    drill.assert_consistent(0);
    drill.program.wait_for_line(&format!("drill: {ONE}: "), SOON);
    assert_eq!(drill.facts("begin")[0]["one_reader"], true);
    let row = drill.row("two readers read the same records");
    assert_eq!(
        (row["state"].as_str(), row["note"].as_str()),
        (Some("untested"), Some(&*format!("not checked: {ONE}")))
    );
    let page = fs::read_to_string(drill.path("timeline.html")).expect("a page");
    assert!(page.contains(ONE));
    let row = drill.row("no task runs twice");
    assert_eq!((row["state"].as_str(), row["count"].as_u64()), (Some("held"), Some(0)), "{row}");
    assert!(drill.facts("run_ended").len() > 200, "30 per second for 8 s");
    let shown: String = drill.program.lines().into_iter().map(|line| line.text + "\n").collect();
    let ledger = fs::read_to_string(drill.path("ledger.jsonl")).expect("a ledger");
    assert!(!shown.contains(PASSWORD) && !ledger.contains(PASSWORD));
}
