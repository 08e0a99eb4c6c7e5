//! `drill run`: it finds broken promises with the right reason, holds kept ones, and starts and ends cleanly.
//!
//! The mutations of the judge (`crates/drill`) show that each row can turn red. Here real workers behind a shell script
//! break promises, which tests the way from a process to the verdict.

mod commands;
mod ends;
mod found;
mod secured;

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::support::{
    Rig, SOON, START, broker, built, eventually, new_folder,
    program::{Exit, Launch, Program},
    turn::Turn,
};

/// Long enough for the load, for the end of a lock, and for the search for a lost task.
const OVER: Duration = Duration::from_secs(120);

/// Stops of idle and of busy workers; each task is shorter than the drain timeout.
const STOPS: &str = r#"
for = "3s"
fleet = { workers = 3, gateways = 1, drain_timeout = "5s" }

[load]
rate = 30
tasks = [{ share = 95, work = "5ms" }, { share = 5, work = "500ms" }]

[[action]]
do = "restart-worker"
worker = "idle"
at = ["500ms", "1s"]

[[action]]
do = "restart-worker"
worker = "busy"
at = ["1500ms", "2s"]
"#;

/// Kills of workers, and tasks that outlast the drain timeout.
const LONG_TASKS: &str = r#"
for = "4s"
fleet = { workers = 5, gateways = 1, drain_timeout = "2s" }

[load]
rate = 10
tasks = [{ share = 8, work = "5ms" }, { share = 2, work = "4s" }]

[[action]]
do = "restart-worker"
worker = "long"
at = "1s"

[[action]]
do = "second-signal"
worker = "long"
at = "1s"

[[action]]
do = "kill-worker"
worker = "long"
for = "300ms"
at = "1s"
"#;

/// All kinds of actions, each shorter than a lock. The broker's restart comes last: Apache Kafka restarts slowly.
const EVERYTHING: &str = r#"
for = "7500ms"
fleet = { workers = 4, gateways = 2, concurrency = 2, drain_timeout = "2s" }

[load]
rate = 30
tasks = [{ share = 88, work = "5ms" }, { share = 8, work = "300ms" }, { share = 4, work = "4s" }]

[[action]]
do = "freeze-broker"
for = "1s"
at = "300ms"

[[action]]
do = "kill-worker"
worker = "busy"
for = "500ms"
at = "1600ms"

[[action]]
do = "kill-gateway"
for = "500ms"
at = "1700ms"

[[action]]
do = "freeze-worker"
worker = "busy"
for = "700ms"
at = "1900ms"

[[action]]
do = "stop-worker"
worker = "busy"
for = "500ms"
at = "2600ms"

[[action]]
do = "second-signal"
worker = "long"
at = "2900ms"

[[action]]
do = "scale"
to = 5
at = "3100ms"

[[action]]
do = "restart-gateway"
at = "3200ms"

[[action]]
do = "scale"
to = 3
at = "3500ms"

[[action]]
do = "restart-broker"
at = "7s"
"#;

/// Only a load.
const LOAD: &str = r#"
for = "60s"
fleet = { workers = 2, gateways = 1, drain_timeout = "5s" }

[load]
rate = 30
tasks = [{ share = 1, work = "5ms" }]
"#;

/// A drill before its start, with its own folder.
struct Setup {
    folder: PathBuf,
    launch: Launch,
}

impl Setup {
    /// A drill on the broker, the topics and the group of the rig.
    fn on(rig: &Rig, plan: &str) -> Setup {
        Setup::new(rig.launch("drill", built("drill")), plan)
    }

    /// A drill that starts its own broker.
    fn alone(plan: &str) -> Setup {
        let kind = if broker::is_apache() { "apache" } else { "embedded" };
        Setup::new(Launch::new("drill", built("drill")).env("BROKER", kind), plan)
    }

    /// A drill that starts its own embedded broker, also with `KAFKA=apache`.
    fn embedded(plan: &str) -> Setup {
        Setup::new(Launch::new("drill", built("drill")).env("BROKER", "embedded"), plan)
    }

    fn new(launch: Launch, plan: &str) -> Setup {
        let folder = new_folder("drill");
        fs::write(folder.join("plan.toml"), plan).expect("a plan is written");
        let path = |name: &str| folder.join(name).display().to_string();
        let launch = launch
            .arg("run")
            .arg(path("plan.toml"))
            .env("FOLDER", folder.display())
            .env("JSON", path("verdict.json"))
            .env("HTML", path("timeline.html"))
            .env("REPORT_EVERY", "500ms")
            // With this seed long tasks come early.
            .env("SEED", 7)
            // Short, so that the drill soon knows a task without a result to be late.
            .env("ANSWER_TIMEOUT", "1s");
        // scripts/kafka may look for its files in HOME.
        let home = std::env::var("HOME").unwrap_or_default();
        Setup { launch: launch.env("HOME", home), folder }
    }

    fn env(self, name: &str, value: impl ToString) -> Setup {
        Setup { launch: self.launch.env(name, value), ..self }
    }

    /// Replaces the worker by a shell script; `$WORKER` is the shipped worker.
    fn worker_script(self, script: &str) -> Setup {
        let path = self.folder.join("worker.sh");
        let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o755).open(&path);
        let file = file.as_mut().expect("a script is made");
        write!(file, "#!/bin/sh\n{script}\n").expect("a script is written");
        self.env("WORKER", env!("CARGO_BIN_EXE_worker")).env("WORKER_PROGRAM", path.display())
    }

    fn start(self) -> Drill {
        Drill { program: self.launch.start(), folder: Folder(self.folder) }
    }
}

/// The folder of a drill; all processes that the drill starts have it in their environment.
struct Folder(PathBuf);

impl Folder {
    /// The drill and the processes that it has started, with their environments.
    fn processes(&self) -> Vec<(i32, String)> {
        let mark = format!("FOLDER={}", self.0.display());
        let entries = fs::read_dir("/proc").expect("processes are listed").filter_map(Result::ok);
        let known = entries.filter_map(|entry| {
            let process = entry.file_name().to_str()?.parse().ok()?;
            // An ended process has no environment.
            let environment = String::from_utf8_lossy(&fs::read(entry.path().join("environ")).ok()?).into_owned();
            environment.split('\0').any(|variable| variable == mark).then_some((process, environment))
        });
        known.collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for (process, _) in self.processes() {
            // An error means that the process has ended.
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
    }
}

/// A drill that runs or has ended.
struct Drill {
    program: Program,
    // After `program`, so that the drop kills the drill before its other processes.
    folder: Folder,
}

impl Drill {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.0.join(name)
    }

    /// Waits for the exit of the drill and asserts that none of its processes is left.
    fn wait(&mut self, limit: Duration) -> Exit {
        let exit = self.program.wait(limit);
        let left = self.folder.processes();
        assert!(left.is_empty(), "the drill has left processes: {left:?}");
        exit
    }

    /// Waits for the line that the drill prints when its fleet is ready and the load begins.
    fn wait_for_load(&self) {
        self.program.wait_for_line("; seed ", 3 * START);
    }

    fn last_line(&self) -> String {
        self.program.lines().last().map(|line| line.text.clone()).unwrap_or_default()
    }

    fn verdict(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("verdict.json")).expect("a verdict")).expect("JSON")
    }

    fn ledger(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("ledger.jsonl")).expect("a ledger");
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    /// The facts of one kind in the ledger.
    fn facts(&self, kind: &str) -> Vec<Value> {
        self.ledger().into_iter().filter(|line| line["fact"] == kind).collect()
    }

    fn row(&self, name: &str) -> Value {
        let verdict = self.verdict();
        let rows = verdict["rows"].as_array().expect("rows");
        rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no row {name:?}")).clone()
    }

    /// The findings of a broken row; asserts that the ledger shows each.
    fn findings(&self, name: &str) -> Vec<Value> {
        let row = self.row(name);
        assert_eq!(row["state"], "broken", "{name}");
        let findings = row["findings"].as_array().expect("findings").clone();
        let ledger = self.ledger();
        for finding in &findings {
            assert_shown(finding, &ledger);
        }
        findings
    }

    /// Asserts that output, files and a second judgement of the ledger agree.
    fn assert_consistent(&self, code: i32) {
        let (verdict, last) = (self.verdict(), self.last_line());
        let conclusion = if code == 0 { ("held", "verdict: HELD: ") } else { ("broken", "verdict: BROKEN: ") };
        assert_eq!(verdict["conclusion"], conclusion.0);
        assert!(last.starts_with(conclusion.1), "{last}");
        let sums = format!("{} sent, {} answered", verdict["totals"]["sent"], verdict["totals"]["answered"]);
        assert!(last.contains(&sums), "{last} {sums}");

        let rows = verdict["rows"].as_array().expect("rows");
        let page = fs::read_to_string(self.path("timeline.html")).expect("a page");
        assert!(unescaped(&page).contains(&last), "{last}");
        for row in rows.iter().filter(|row| row["state"] == "broken") {
            let broken = format!(
                "{} ({})",
                row["name"].as_str().expect("a name"),
                row["findings"].as_array().map_or(0, Vec::len)
            );
            assert!(last.contains(&broken), "{last}: {broken}");
        }

        let mut judge = Launch::new("judge", built("drill"))
            .arg("judge")
            .arg(self.path("ledger.jsonl").display().to_string())
            .env("JSON", self.path("again.json").display())
            .start();
        assert_eq!(judge.wait(OVER).code, Some(code));
        assert_eq!(judge.lines().last().map(|line| line.text.clone()), Some(last));
        let again = fs::read(self.path("again.json")).expect("a verdict");
        let again = serde_json::from_slice(&again).expect("JSON");
        assert!(in_order(again) == in_order(verdict), "the second judgement differs");
    }
}

/// Asserts that the lines of a finding are in the ledger, that each line concerns an id of the finding, and that each
/// id is in one of the lines.
fn assert_shown(finding: &Value, ledger: &[Value]) {
    let list = |name: &str| finding[name].as_array().expect("a list").clone();
    let (ids, numbers) = (list("ids"), list("lines"));
    assert!(!ids.is_empty() && !numbers.is_empty(), "{finding}");
    let lines: Vec<&Value> = numbers
        .iter()
        .map(|number| {
            let index = usize::try_from(number.as_u64().expect("a number")).expect("a line");
            index
                .checked_sub(1)
                .and_then(|index| ledger.get(index))
                .unwrap_or_else(|| panic!("no line {index}: {finding}"))
        })
        .collect();
    let names = |line: &Value, id: &Value| line.to_string().contains(&id.to_string());
    // The fact of a request that is about to be sent has a number but no task id.
    let requests: Vec<&Value> = lines
        .iter()
        .filter(|line| ids.iter().any(|id| names(line, id)))
        .map(|line| &line["number"])
        .filter(|number| number.is_u64())
        .collect();
    for line in &lines {
        let known = ids.iter().any(|id| names(line, id)) || requests.contains(&&line["number"]);
        assert!(known, "{line} concerns no id of {finding}");
    }
    for id in &ids {
        assert!(lines.iter().any(|line| names(line, id)), "no line shows {id} in {finding}");
    }
}

/// Sorts the findings of a verdict, because their order is not promised.
fn in_order(mut verdict: Value) -> Value {
    for row in verdict["rows"].as_array_mut().into_iter().flatten() {
        if let Some(findings) = row["findings"].as_array_mut() {
            findings.sort_by_key(Value::to_string);
        }
    }
    verdict
}

fn unescaped(text: &str) -> String {
    [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&apos;", "'"), ("&amp;", "&")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

#[test]
fn verdict_is_held_for_a_correct_fleet_under_every_kind_of_action() {
    let turn = Turn::quiet();
    // Each plan, and the rows that it must test.
    let plans = [
        (Setup::alone(EVERYTHING), &["no task is lost"][..]),
        (Setup::embedded(STOPS), &["idle worker stops", "busy worker finishes and stops"]),
        (
            Setup::embedded(LONG_TASKS),
            &[
                "drain ends at its timeout",
                "abandoned task starts elsewhere",
                "second signal ends a worker",
                "tasks of a killed worker start elsewhere",
            ],
        ),
    ];
    // One load at a time; meanwhile the other drills wait for the end of locks.
    let mut drills = plans.map(|(setup, rows)| {
        let drill = setup.start();
        drill.wait_for_load();
        drill.program.wait_for_line("the load has ended", OVER);
        (drill, rows)
    });
    drop(turn);
    for (drill, rows) in &mut drills {
        assert_eq!(drill.wait(OVER).code, Some(0), "{}", drill.last_line());
        drill.assert_consistent(0);
        let faults = drill.verdict()["faults"].clone();
        let all_bit = |fault: &Value| fault["planned"].as_u64() > Some(0) && fault["planned"] == fault["bitten"];
        assert!(faults.as_array().is_some_and(|faults| !faults.is_empty() && faults.iter().all(all_bit)), "{faults}");
        for row in rows.iter().chain(&["exit codes are correct", "receipts match the evidence"]) {
            assert_eq!(drill.row(row)["state"], "held", "{row}");
        }
    }
    let faults = drills[0].0.verdict()["faults"].as_array().map_or(0, Vec::len);
    assert_eq!(faults, 9, "one fault for each kind of action");
    let healed = drills[0].0.facts("healed")[0]["at"].as_f64();
    let asked = drills[0].0.facts("read_back");
    assert!(
        asked.iter().any(|asked| asked["at"].as_f64() < healed),
        "a restarted gateway is asked for earlier results"
    );
}

#[test]
fn a_seed_repeats_the_same_actions() {
    let plan = r#"
        for = "2500ms"
        fleet = { workers = 4, gateways = 2 }
        load = { rate = 10, tasks = [{ share = 1, work = "5ms" }] }
        action = [
            { do = "stop-worker", every = "700ms", for = ["100ms", "900ms"] },
            { do = "restart-gateway", every = "900ms" },
            { do = "pause", every = "400ms", for = ["100ms", "900ms"] },
        ]
    "#;
    let rig = Rig::shared("drill-seed");
    let rigs = [&rig, &Rig::beside(&rig, "drill-seed-again"), &Rig::beside(&rig, "drill-seed-other")];
    let drills = rigs.into_iter().zip([5, 5, 6]).map(|(rig, seed)| Setup::on(rig, plan).env("SEED", seed).start());
    let mut planned = Vec::new();
    let ordered = drills.collect::<Vec<_>>().into_iter().map(|mut drill| {
        drill.wait(OVER);
        assert_eq!(drill.facts("begin")[0]["seed"], drill.verdict()["seed"]);
        let line = drill.program.wait_for_line(" actions; seed ", SOON).text;
        planned.push(line.split(", ").find_map(|part| part.split_once(" actions")?.0.parse::<usize>().ok()));
        // The target of an action depends on the running processes, and actions of the same moment come in any order.
        let mut ordered: Vec<String> =
            drill.facts("ordered").iter().map(|line| format!("{} {}", line["what"], line["detail"])).collect();
        ordered.sort();
        ordered
    });
    let ordered: Vec<Vec<String>> = ordered.collect();
    let [one, again, other] = &ordered[..] else { panic!("three runs") };
    assert!(one.len() >= 8, "{one:?}");
    assert_eq!(one, again);
    assert_ne!(one, other);
    // All planned actions were ordered, also those of the last moment.
    assert_eq!(ordered.iter().map(|all| Some(all.len())).collect::<Vec<_>>(), planned);
}

#[test]
fn scale_down_does_not_signal_a_stopping_worker_again() {
    let rig = Rig::shared("drill-scale");
    let actions = r#"
        [[action]]
        do = "stop-worker"
        worker = "worker_2"
        for = "500ms"
        at = "1s"
        [[action]]
        do = "scale"
        to = 1
        at = "1200ms"
    "#;
    // The load keeps both workers busy.
    let plan = LOAD.replace("60s", "3s").replace("5ms", "1500ms").replace("30\n", "3\n");
    let mut drill = Setup::on(&rig, &format!("{plan}{actions}")).start();
    let code = drill.wait(OVER).code;
    assert!([Some(0), Some(5)].contains(&code), "{}", drill.last_line());
    let about =
        |kind: &str| drill.facts(kind).into_iter().filter(|line| line["process"] == "worker_2").collect::<Vec<_>>();
    let exits = about("exited");
    assert_eq!(
        (about("started").len(), about("signalled").len(), exits.len()),
        (1, 1, 1),
        "started, signalled, exited"
    );
    assert_eq!(exits[0]["code"], 0);
    assert!(exits[0]["receipt"]["tasks_finished"].as_u64() >= Some(1), "{}", exits[0]);
}
