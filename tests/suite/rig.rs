//! Tests of the rig itself, on which the other tests rely.

use std::{
    panic::catch_unwind,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::support::{
    Rig, admin, audit, eventually,
    program::{Launch, Stream},
};

#[test]
fn the_audit_reads_all_records_of_a_topic() {
    let rig = Rig::shared("rig-audit");
    let broker = rig.broker();
    assert!(audit::read(broker.address(), &rig.tasks()).is_empty());
    admin::create_topic(broker.address(), &rig.tasks(), 2, &[]);
    let records: Vec<_> = (0..500).map(|number| (format!("key-{number}"), "x".repeat(number))).collect();
    let records: Vec<_> = records.iter().map(|(key, value)| (Some(key.as_bytes()), Some(value.as_bytes()))).collect();
    audit::produce(broker.address(), &rig.tasks(), &records);
    audit::produce(broker.address(), &rig.tasks(), &[(None, None)]);
    let read = audit::read(broker.address(), &rig.tasks());
    assert_eq!(read.len(), 501);
    assert_eq!((read[7].key().as_str(), read[7].value.len(), read[7].offset), ("key-7", 7, 7));
    assert_eq!((read[500].key.len(), read[500].value.len()), (0, 0));
}

#[test]
fn a_broker_can_be_frozen_killed_and_started_again() {
    let rig = Rig::with_own_broker("rig-broker", &["--set", "broker.session.timeout.ms=2000"]);
    let broker = rig.broker();
    admin::create_topic(broker.address(), &rig.tasks(), 1, &[]);
    audit::produce(broker.address(), &rig.tasks(), &[(Some(b"a"), Some(b"1"))]);
    broker.freeze();
    assert!(
        std::net::TcpStream::connect(broker.address()).is_ok(),
        "the kernel does not accept connections for a frozen broker"
    );
    broker.thaw();
    broker.kill();
    assert!(std::net::TcpStream::connect(broker.address()).is_err());
    broker.start();
    assert_eq!(audit::read(broker.address(), &rig.tasks()).len(), 1);
    broker.stop();
    broker.start();
    assert_eq!(audit::read(broker.address(), &rig.tasks()).len(), 1);
}

#[test]
fn the_rig_reads_output_exit_code_and_receipt_of_a_program() {
    let script = "trap 'echo bye; echo {\\\"exit_code\\\":7}; exit 7' TERM; echo up; echo fault >&2; \
                  while :; do sleep 0.01; done";
    let mut program = Launch::new("a shell", "bash").arg("-c").arg(script).start();
    assert_eq!(program.wait_for_line("up", Duration::from_secs(5)).stream, Stream::Stdout);
    eventually(Duration::from_secs(5), "standard error is read", || program.stderr() == "fault\n");
    assert!(program.is_running() && program.resident_bytes() > 100_000);
    program.signal(Signal::SIGTERM);
    let exit = program.wait(Duration::from_secs(5));
    assert_eq!((exit.code, exit.signal), (Some(7), None));
    assert!(exit.elapsed < Duration::from_secs(4), "{exit:?}");
    assert_eq!(program.receipt()["exit_code"], 7);
    program.assert_lines_in_order(&["up", "bye"]);
    let wrong_order = catch_unwind(std::panic::AssertUnwindSafe(|| program.assert_lines_in_order(&["bye", "up"])));
    assert!(wrong_order.is_err());
}

#[test]
fn a_program_that_does_not_stop_fails_the_test() {
    let start = Instant::now();
    let failed = catch_unwind(|| {
        let mut program = Launch::new("a deaf shell", "bash").arg("-c").arg("trap '' TERM; echo up; sleep 60").start();
        program.wait_for_line("up", Duration::from_secs(5));
        program.signal(Signal::SIGTERM);
        program.wait(Duration::from_millis(200));
    });
    assert!(failed.is_err() && start.elapsed() < Duration::from_secs(10));
}
