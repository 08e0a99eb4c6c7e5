//! Fleets that run already, acted on by the commands of a file. `tests/stack` drills one; here is what goes wrong.

use super::*;
use crate::support::Gateway;

/// A drill by the commands of a file, on a fleet of the rig.
fn drill(rig: &Rig, gateway: &Gateway, plan: &str, workers: &str, commands: &str) -> Drill {
    let (tasks, results, group) = (rig.tasks(), rig.results(), rig.group());
    let (url, broker) = (format!("http://{}", gateway.address), rig.broker().address());
    let text = format!(
        "gateways = [\"{url}\"]\nkafka_bootstrap_servers = [\"{broker}\"]\ntasks_topic = \"{tasks}\"\nresults_topic = \"{results}\"\n\
         worker_group = \"{group}\"\ncommand_timeout = \"1s\"\nworkers = '{workers}'\n[commands]\n{commands}"
    );
    let setup = Setup::alone(plan);
    let path = setup.folder.join("fleet.toml");
    fs::write(&path, text).expect("a file is written");
    setup.env("TARGET", path.display()).start()
}

#[test]
fn a_command_that_fails_or_hangs_is_not_done_and_is_undone() {
    let rig = Rig::shared("drill-commands");
    let (gateway, _worker) = (rig.start_gateway(), rig.start_worker("w"));
    let plan = r#"
        for = "3s"
        load = { rate = 10, tasks = [{ share = 1, work = "5ms" }] }
        action = [
            { do = "stop-worker", at = "200ms", for = "100ms" },
            { do = "freeze-worker", at = "1s", for = "60s" },
            { do = "kill-worker", at = "1s" },
        ]
    "#;
    let commands = r#"
        stop-worker = "echo stopping; echo no such unit >&2; exit 1"
        start-worker = "echo start $WORKER >>$FOLDER/undone"
        freeze-worker = "echo freezing; sleep 1000"
        thaw-worker = "echo thaw $WORKER >>$FOLDER/undone"
    "#;
    let mut drill = drill(&rig, &gateway, plan, "echo w", commands);
    assert_eq!(drill.wait(OVER).code, Some(1), "{}", drill.last_line());
    assert!(drill.last_line().starts_with("verdict: UNDECIDED: 2 of the planned actions"), "{}", drill.last_line());
    drill.program.wait_for_line("left out: kill-worker: ", SOON);
    drill.program.wait_for_line("not done: stop-worker: no such unit", SOON);
    let hung = "not done: freeze-worker: the command did not end within 1s; it was killed; its last line: freezing";
    drill.program.wait_for_line(hung, SOON);
    assert_eq!(fs::read_to_string(drill.path("undone")).expect("both were undone"), "start w\nthaw w\n");
}

#[test]
fn a_fleet_that_cannot_be_drilled_is_told_before_the_load() {
    let rig = Rig::shared("drill-no-fleet");
    let gateway = Gateway::start(rig.gateway().env("ALLOW_WORK_MS", 0));
    let start = "ALLOW_WORK_MS=1 make up";
    for (workers, parts) in [
        ("echo nothing runs >&2; exit 1", ["workers failed: nothing runs", start]),
        ("true", ["lists no worker", start]),
        ("echo w", ["does not accept work_ms", start]),
    ] {
        let mut drill = drill(
            &rig,
            &gateway,
            &format!("{LOAD}[[action]]\ndo = \"scale\"\nto = 1\nat = \"1s\"\n"),
            workers,
            "scale = \"true\"",
        );
        assert_eq!(drill.wait(START).code, Some(1));
        let told = drill.program.stderr();
        assert!(told.lines().count() == 1 && parts.iter().all(|part| told.contains(part)), "{told}");
    }
}
