//! Tests of the rig itself, on which the other tests rely.

use std::{
    panic::catch_unwind,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::support::{
    eventually,
    program::{Launch, Stream},
};

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
