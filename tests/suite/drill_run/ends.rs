//! The end of a drill by a signal, and plans and options that it refuses.

use super::*;

// ---- signals ----

#[test]
fn a_signal_ends_the_load_and_the_facts_so_far_are_judged() {
    let rig = Rig::quiet("drill-interrupted");
    // A stop for a minute, a restart of all workers, and an action that waits for a long task, which never comes.
    let actions = r#"
        [[action]]
        do = "stop-worker"
        for = "60s"
        at = "200ms"
        [[action]]
        do = "restart-worker"
        worker = "all"
        at = "1500ms"
        [[action]]
        do = "second-signal"
        worker = "long"
        at = "1500ms"
        [[action]]
        do = "kill-worker"
        worker = "all"
        at = "50s"
    "#;
    let plan = LOAD.replace("workers = 2", "workers = 3").replace("5ms", "300ms").replace("30\n", "5\n");
    let mut drill = Setup::on(&rig, &format!("{plan}{actions}")).start();
    drill.program.wait_for_line("⚡ restart-worker all 2", START + SOON);
    drill.program.signal(Signal::SIGINT);
    let exit = drill.wait(OVER);
    assert!(exit.elapsed < Duration::from_secs(20), "{exit:?}");
    let (code, last) = (exit.code.expect("an exit code"), drill.last_line());
    assert!([0, 5].contains(&code) && last.contains(": cut short by a signal; "), "{code} {last}");
    drill.assert_consistent(code);
    drill.program.wait_for_line("SIGINT received: no more tasks are sent", SOON);
    assert_eq!(drill.verdict()["cut_short"], true);
    assert!(drill.verdict()["totals"]["sent"].as_u64() < Some(100), "the load continued");
    // Actions that the signal cancelled do not break the row.
    assert_eq!(drill.row("planned actions took effect")["state"], "held");
    // The drill restarts the stopped worker without its minute.
    let actions = drill.facts("ordered");
    let absent = &actions[0]["target"];
    assert_eq!(drill.facts("started").iter().filter(|line| line["process"] == *absent).count(), 2);
}

#[test]
fn a_stopped_broker_is_restarted_when_a_signal_ends_the_load() {
    let _turn = Turn::with_broker();
    let actions = "[[action]]\ndo = \"stop-broker\"\nfor = \"100s\"\nat = \"500ms\"\n";
    let mut drill = Setup::alone(&format!("{LOAD}{actions}")).start();
    drill.program.wait_for_line("⚡ stop-broker broker for 100.0 s", 3 * START);
    drill.program.signal(Signal::SIGINT);
    let exit = drill.wait(OVER);
    let code = exit.code.expect("an exit code");
    assert!([0, 5].contains(&code) && exit.elapsed < Duration::from_secs(60), "{exit:?}");
    drill.assert_consistent(code);
    assert_eq!(drill.facts("started").iter().filter(|line| line["process"] == "broker").count(), 2);
}

#[test]
fn a_second_signal_ends_the_drill_at_once() {
    let _turn = Turn::with_broker();
    let actions = "[[action]]\ndo = \"stop-broker\"\nfor = \"100s\"\nat = \"500ms\"\n";
    let mut drill = Setup::alone(&format!("{LOAD}{actions}")).start();
    drill.program.wait_for_line("Kafka does not answer", 3 * START);
    assert!(drill.folder.processes().len() >= 4, "the drill, two workers and a gateway");
    drill.program.signal(Signal::SIGINT);
    drill.program.wait_for_line("SIGINT received", SOON);
    drill.program.signal(Signal::SIGINT);
    let exit = drill.wait(SOON);
    assert_eq!(exit.code, Some(4));
    // The drill waits for the script that stops an Apache Kafka.
    let limit = if broker::is_apache() { 9 } else { 5 };
    assert!(exit.elapsed < Duration::from_secs(limit), "{exit:?}");
    assert_eq!(drill.last_line(), "verdict: NONE: a second signal ended the drill at once");
    assert!(!drill.path("verdict.json").exists());
}

#[test]
fn a_signal_before_the_fleet_is_ready_leaves_no_process_running() {
    let rig = Rig::shared("drill-start");
    let setup = Setup::on(&rig, LOAD).env("HEARTBEAT_INTERVAL", "3s").env("WORKER_TIMEOUT", "9s");
    // The workers are never ready and ignore SIGTERM.
    let mut drill = setup.worker_script("trap '' TERM; exec sleep 1000").start();
    eventually(START, "three programs are started", || drill.folder.processes().len() >= 4);
    // The drill sets the values that the verdict relies on, whatever its own environment has.
    let set = |value: &str| {
        let processes = drill.folder.processes();
        processes.iter().filter(|(_, environment)| environment.split('\0').any(|it| it == value)).count()
    };
    eventually(SOON, "two workers and a gateway have these values", || {
        (set("HEARTBEAT_INTERVAL=1s"), set("WORKER_TIMEOUT=5s")) == (2, 1)
    });
    drill.program.signal(Signal::SIGTERM);
    let exit = drill.wait(SOON);
    assert_eq!(exit.code, Some(1));
    assert!(exit.elapsed < Duration::from_secs(9), "{exit:?}");
    assert!(
        drill.program.stderr().contains("ended by a signal before the fleet was ready"),
        "{}",
        drill.program.stderr()
    );
}

// ---- refused plans and options ----

#[test]
fn invalid_plans_and_options_are_reported_before_a_process_starts() {
    let explode = format!("{LOAD}[[action]]\ndo = \"explode\"\nat = \"1s\"\n");
    let options = ["--for=5", "--rate=0", "--broker=rabbit", "--target=somewhere", "--seed=-1"];
    let values = ["FOR: value", "RATE: value", "BROKER: value", "TARGET: value", "SEED: value"];
    let of_plan = ["PLAN", "plan.toml", "line ", "explode", "kill-worker"];
    for (plan, options, lines, parts) in [(explode.as_str(), &[][..], 1, of_plan), (LOAD, &options, 5, values)] {
        let setup = Setup::alone(plan);
        let folder = setup.folder.join("not-made");
        let launch = options.iter().fold(setup.launch, |launch, option| launch.arg(*option));
        let mut drill = launch.env("FOLDER", folder.display()).start();
        assert_eq!(drill.wait(SOON).code, Some(2), "{options:?}");
        let told = drill.stderr();
        assert!(parts.iter().all(|part| told.contains(part)) && told.lines().count() == lines, "{told}");
        assert!(!folder.exists() && drill.lines().len() == lines, "{options:?}: the drill began");
    }
}

#[test]
fn the_drill_refuses_to_stop_a_broker_that_it_did_not_start() {
    let rig = Rig::shared("drill-given");
    let mut drill = Setup::on(&rig, &format!("{LOAD}[[action]]\ndo = \"restart-broker\"\nat = \"1s\"\n")).start();
    assert_eq!(drill.wait(START + SOON).code, Some(1));
    let told = drill.program.stderr();
    assert!(told.contains("restart-broker: the drill does not act on a running Kafka; use BROKER=embedded"), "{told}");
}

#[test]
fn a_program_that_does_not_start_is_reported_with_its_last_output() {
    let rig = Rig::shared("drill-programs");
    let file = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(name).display().to_string();
    let tries = [
        (
            Setup::on(&rig, LOAD).env("WORKER_PROGRAM", "/no/such/worker"),
            &["no program /no/such/worker", "--worker-program"][..],
        ),
        (Setup::on(&rig, LOAD).env("GATEWAY_PROGRAM", file("README.md")), &["README.md does not start", "ermission"]),
        (
            Setup::on(&rig, LOAD).worker_script("echo 'no licence' >&2; exit 3"),
            &["worker_", " exited during its start", "no licence", ".log"],
        ),
    ];
    let mut drills = tries.map(|(setup, parts)| (setup.start(), parts));
    for (drill, parts) in &mut drills {
        assert_eq!(drill.wait(START).code, Some(1));
        let told = drill.program.stderr();
        assert!(told.lines().count() == 1 && parts.iter().all(|part| told.contains(part)), "{told}");
    }
}
