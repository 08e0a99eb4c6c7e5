//! The programs on older versions of Kafka. Against a real Kafka, `scripts/kafka` downloads these versions.

use nix::sys::signal::Signal;

use crate::support::{Rig, SOON, START};

#[test]
fn fleet_works_on_kafka_4_3() {
    let rig = Rig::with_own_broker("version-4-3", &["--version", "4.3.1"]);
    let gateway = rig.start_gateway();
    let mut worker = rig.start_worker("w");
    let answers: Vec<_> = (0..5).map(|number| gateway.analyze(&format!("text {number}"))).collect();
    assert!(answers.iter().all(|answer| answer.status == 200));
    let status = &gateway.fleet()["workers"]["w"];
    assert_eq!(status["is_responsive"], true, "{status}");
    worker.signal(Signal::SIGTERM);
    assert_eq!(worker.wait(SOON).code, Some(0));
    let tasks: Vec<String> = answers.iter().map(|answer| answer.task_id()).collect();
    rig.audit().assert_each_ran_once(&tasks);
}

/// Groups of Kafka 4.2 have no `share.delivery.count.limit` and no `share.partition.max.record.locks`.
#[test]
fn programs_end_on_kafka_4_2_and_say_what_is_missing() {
    let rig = Rig::with_own_broker("version-4-2", &["--version", "4.2.0"]);
    for launch in [rig.gateway(), rig.worker("w")] {
        let mut program = launch.start();
        assert_eq!(program.wait(START).code, Some(2));
        program
            .wait_for_line(&format!("Kafka does not tell share.delivery.count.limit of group {}", rig.group()), SOON);
    }
}
