//! Actions on a fleet whose commands are shell scripts that fail on demand.

use std::path::{Path, PathBuf};

use crossbeam_channel::{Receiver, bounded};

use super::super::clock::Clock;
use super::super::event::Event;
use super::super::fact::{Fact, Line};
use super::super::plan::Who;
use super::*;

const SOON: Duration = Duration::from_secs(20);

/// A folder in which commands leave marks.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lastcall-fleet-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).expect("a new folder");
        Self(path)
    }

    fn wait_for(&self, mark: &str) {
        wait_until(|| self.0.join(mark).exists());
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let (began, pause) = (Instant::now(), Stop::new());
    while !condition() {
        assert!(began.elapsed() < SOON, "the condition does not come true");
        let _ = pause.sleep(Duration::from_millis(5));
    }
}

/// A fleet of these workers. In the commands, `D` is the folder.
fn fleet(folder: &Path, workers: &str, commands: &[(&str, &str)]) -> (CommandFleet, Receiver<Event>) {
    let own = |command: &str| format!("'''D='{}'; {command}'''", folder.display());
    let commands: Vec<String> = commands.iter().map(|(name, command)| format!("{name} = {}\n", own(command))).collect();
    let text = format!(
        "gateways = [\"http://127.0.0.1:1\"]\nkafka_bootstrap_servers = [\"b:2\"]\ncommand_timeout = \"20s\"\n\
         workers = {}\n[commands]\n{}",
        own(workers),
        commands.concat()
    );
    let file = FleetFile::read("f.toml", &text).expect("a fleet");
    let (facts, told) = bounded(super::super::event::EVENTS);
    let teller = Teller { clock: Clock::start(), facts };
    (CommandFleet::find(file, teller, Stop::new()).expect("workers"), told)
}

fn planned(what: What, who: Who) -> Planned {
    let length = Some(Duration::from_millis(1));
    Planned { at: Duration::ZERO, what, who, node: None, length, to: 3, fault: None, draw: 0 }
}

/// Outcomes that were told, each as whether the action is done, and its detail.
fn outcomes(told: &Receiver<Event>) -> Vec<(bool, String)> {
    let outcome = |event| match event {
        Event::Fact(Line { fact: Fact::Carried { done, detail, .. }, .. }) => Some((done, detail)),
        _ => None,
    };
    told.try_iter().filter_map(outcome).collect()
}

fn act(fleet: &mut CommandFleet, planned: &Planned) {
    assert_eq!(fleet.order(1, planned), Attempt::Begun);
    wait_until(|| fleet.actions.iter().all(Thread::is_finished));
}

#[test]
fn a_line_of_workers_is_a_name_and_perhaps_an_id() {
    let read = |text: &str| {
        let workers = read_workers(text)?.into_iter().map(|worker| (worker.name, worker.id));
        Ok::<_, String>(workers.collect::<Vec<_>>())
    };
    let pair = |name: &str, id: &str| (name.to_owned(), id.to_owned());
    let expected = vec![pair("worker_1", "worker_1"), pair("app-worker-1", "1f2e")];
    assert_eq!(read("worker_1\n \napp-worker-1\t1f2e\t0\trunning\n"), Ok(expected));
    for id in ["gateway-7", "broker_1", "http://a:1"] {
        let why = read(&format!("w1\nw2 {id}")).expect_err("the id of another process");
        assert!(why.contains(&format!("\"w2 {id}\"")) && why.contains("WORKER_ID"), "{why}");
    }
}

#[test]
fn each_worker_that_fails_makes_a_restart_of_all_not_done() {
    let folder = Folder::new("all");
    let stop = "case $WORKER in b) ;; *) echo no $WORKER; false;; esac";
    let commands = [("stop-worker", stop), ("start-worker", "true")];
    let (mut fleet, told) = fleet(&folder.0, "printf 'a\\nb\\nc\\n'", &commands);
    act(&mut fleet, &planned(What::RestartWorker, Who::All));
    assert_eq!(outcomes(&told), [(false, "a: stop-worker: no a; c: stop-worker: no c".to_owned())]);
}

#[test]
fn restart_of_all_ends_when_the_load_is_cut_short() {
    let folder = Folder::new("cut");
    let stop = "echo $WORKER >> $D/stopped; until [ -e $D/go ]; do sleep 0.01; done";
    let commands = [("stop-worker", stop), ("start-worker", "true")];
    let (mut fleet, told) = fleet(&folder.0, "printf 'a\\nb\\n'", &commands);
    assert_eq!(fleet.order(1, &planned(What::RestartWorker, Who::All)), Attempt::Begun);
    folder.wait_for("stopped");
    fleet.heal(true);
    std::fs::write(folder.0.join("go"), "").expect("a mark");
    fleet.end();
    assert_eq!(std::fs::read_to_string(folder.0.join("stopped")).expect("a list"), "a\n");
    assert_eq!(outcomes(&told), [(true, "1 workers".to_owned())]);
}

#[test]
fn action_without_a_worker_at_the_end_of_the_load_is_not_done_unless_a_signal_ended_it() {
    for cut_short in [false, true] {
        let folder = Folder::new(if cut_short { "signal" } else { "none" });
        let listed = "if [ -e $D/broken ]; then mkdir $D/once 2>/dev/null || touch $D/seen; echo broken >&2; false; else echo a; fi";
        let (mut fleet, told) = fleet(&folder.0, listed, &[("kill-worker", "true"), ("start-worker", "true")]);
        std::fs::write(folder.0.join("broken"), "").expect("a mark");
        assert_eq!(fleet.order(1, &planned(What::KillWorker, Who::Any)), Attempt::Begun);
        folder.wait_for("seen");
        fleet.heal(cut_short);
        wait_until(|| fleet.is_sound());
        let why = "the load had ended before it hit a worker; the command workers failed last: broken";
        let expected = if cut_short { Vec::new() } else { vec![(false, why.to_owned())] };
        assert_eq!(outcomes(&told), expected);
    }
}

#[test]
fn failed_thaw_is_tried_again_at_the_end() {
    let folder = Folder::new("thaw");
    let thaw = "mkdir $D/first 2>/dev/null && { echo not yet; exit 1; }; touch $D/thawed";
    let (mut fleet, told) = fleet(&folder.0, "echo a", &[("freeze-worker", "true"), ("thaw-worker", thaw)]);
    act(&mut fleet, &planned(What::FreezeWorker, Who::Any));
    assert_eq!(outcomes(&told), [(true, String::new()), (false, "thaw-worker: not yet".to_owned())]);
    assert_eq!(fleet.shared.away.lock().len(), 1);
    fleet.end();
    assert!(folder.0.join("thawed").exists() && fleet.shared.away.lock().is_empty());
}

#[test]
fn worker_whose_start_fails_stays_to_be_started() {
    let folder = Folder::new("start");
    let listed = "if [ -e $D/stopped ]; then echo b; else echo a; echo b; fi";
    let start = "[ -e $D/can ] || { echo cannot; exit 1; }; rm -f $D/stopped";
    let commands = [("stop-worker", "touch $D/stopped"), ("start-worker", start)];
    let (mut fleet, told) = fleet(&folder.0, listed, &commands);
    let named = || Who::Named("a".to_owned());
    act(&mut fleet, &Planned { length: None, ..planned(What::StopWorker, named()) });
    act(&mut fleet, &planned(What::StartWorker, named()));
    assert_eq!(outcomes(&told), [(true, String::new()), (false, "start-worker: cannot".to_owned())]);
    std::fs::write(folder.0.join("can"), "").expect("a mark");
    act(&mut fleet, &planned(What::StartWorker, named()));
    assert_eq!(outcomes(&told), [(true, String::new())]);
    assert!(fleet.shared.away.lock().is_empty());
}

#[test]
fn start_and_scale_without_an_effect_are_not_done() {
    let folder = Folder::new("scale");
    let commands = [("stop-worker", "true"), ("start-worker", "true"), ("scale", "true")];
    let (mut fleet, told) = fleet(&folder.0, "printf 'a\\nb\\n'", &commands);
    act(&mut fleet, &planned(What::Scale, Who::Any));
    let why = "scale: the command succeeded, and 2 workers run; ordered: 3";
    assert_eq!(outcomes(&told), [(false, why.to_owned())]);
    let gone = Process { variable: Some("WORKER"), name: "gone".to_owned(), id: "gone".to_owned() };
    fleet.shared.send_away(&gone, "start-worker");
    act(&mut fleet, &planned(What::StartWorker, Who::Any));
    let why = "start-worker: the command succeeded, and the command workers does not list it";
    assert_eq!(outcomes(&told), [(false, why.to_owned())]);
}
