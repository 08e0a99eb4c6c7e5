//! The programs on older versions of Kafka. With `KAFKA=apache`, `scripts/kafka` downloads these versions.

use nix::sys::signal::Signal;

use crate::support::{Rig, SOON, START};

#[test]
fn fleet_works_on_kafka_4_3() {
    fleet_works("version-4-3", &["--version", "4.3.1"]);
}

/// Groups of Kafka 4.2 have no delivery limit of their own; the brokers' limit counts.
#[test]
fn fleet_works_on_kafka_4_2_with_a_delivery_limit_of_10() {
    fleet_works("version-4-2", &["--version", "4.2.0", "--set", "group.share.delivery.count.limit=10"]);
}

fn fleet_works(name: &str, arguments: &[&str]) {
    let (rig, gateway, mut worker) = Rig::with_own_broker(name, arguments).fleet("w");
    let answers: Vec<_> = (0..5).map(|number| gateway.analyze(&format!("text {number}"))).collect();
    assert!(answers.iter().all(|answer| answer.status == 200));
    let status = &gateway.fleet()["workers"]["w"];
    assert_eq!(status["is_responsive"], true, "{status}");
    worker.ends_at(Signal::SIGTERM, 0);
    let tasks: Vec<String> = answers.iter().map(|answer| answer.task_id()).collect();
    rig.audit().assert_each_ran_once(&tasks);
}

#[test]
fn worker_refuses_kafka_4_2_with_the_default_delivery_limit_and_names_the_brokers_setting() {
    let rig = Rig::with_own_broker("version-4-2-default", &["--version", "4.2.0"]);
    let mut worker = rig.worker("w").start();
    assert_eq!(worker.wait(START).code, Some(2));
    worker.wait_for_line("share.delivery.count.limit=5: the broker would drop tasks", SOON);
    worker.wait_for_line("at the brokers, as group.share.delivery.count.limit", SOON);
}
