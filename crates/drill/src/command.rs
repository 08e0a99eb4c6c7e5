//! A running fleet, acted on by the shell commands of a file.
//!
//! A command can take half a minute, so each action has a thread of its own, from the choice of its process to the
//! command that undoes it. Two actions never act on one process at a time. A command acts at some time between its
//! begin and its end; facts have both times. Made by `target`, owned by the director.
//!
//! | thread | does | ends |
//! |---|---|---|
//! | `action` | chooses a process, runs a command, waits, runs the command that undoes it | with its action |
//! | `tidy` | joins these threads, undoes what they could not undo, starts as many workers as the drill found | with its last command |

mod action;
mod file;
mod tasks_seen;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use program::logging::escape;
use program::options::values::show_duration;
use program::stop::Stop;
use program::threads::{self, Thread};

use super::fleet::{Attempt, Fleet, Teller};
use super::hits::Hits;
use super::http::Client;
use super::plan::What;
use super::schedule::Planned;
use super::shell;

use action::Action;

pub use file::FleetFile;

/// Actions under way at once; beyond, the director tries an action again later.
const MOST: usize = 12;

/// How often `tidy` runs a command that undoes an action, and how long it waits between two attempts.
const TRIES: u32 = 3;
const BETWEEN: Duration = Duration::from_secs(1);
/// How the names of gateways and of Kafka begin in the ledger; no worker may have such an id.
const NOT_WORKERS: [&str; 3] = ["gateway", "broker", "http://"];

/// A worker as the command `workers` lists it, a gateway by its URL, or Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    /// The environment variable that names the process to the commands.
    variable: Option<&'static str>,
    /// Name for the commands.
    name: String,
    /// `WORKER_ID`.
    id: String,
}

impl Process {
    /// The environment variables for its commands.
    fn variables(&self) -> Vec<(&'static str, String)> {
        self.variable.map(|variable| (variable, self.name.clone())).into_iter().collect()
    }
}

/// A process that is stopped or frozen, and the command that undoes it.
type Away = (Process, &'static str);

/// State that all actions share.
struct Shared {
    teller: Teller,
    file: FleetFile,
    /// Number of workers that the drill found.
    workers: usize,
    /// Processes with an action under way: names of workers, URLs of gateways, or `broker`.
    taken: Mutex<BTreeSet<String>>,
    /// Processes that an action may have stopped or frozen, until the command that undoes it has succeeded.
    away: Mutex<Vec<Away>>,
    /// How often each task was in flight at a worker that an action hit.
    hits: Mutex<Hits>,
    /// Number of `scale` actions: each may start or remove a stopped worker.
    scaled: AtomicU64,
    /// The load has ended: no action begins, and every undo runs at once.
    over: Stop,
    /// A signal ended the load: what has not been done need not be done.
    cut_short: AtomicBool,
}

/// A running fleet with its commands.
pub(super) struct CommandFleet {
    shared: Arc<Shared>,
    died: Stop,
    /// Threads of actions, at most [`MOST`] of them unfinished.
    actions: Vec<Thread>,
    tidy: Option<Thread>,
}

impl CommandFleet {
    /// Finds the workers. `died` is triggered when a thread of the fleet fails.
    ///
    /// # Errors
    /// The command `workers` fails, lists none, or lists an id that no worker may have.
    pub(super) fn find(file: FleetFile, teller: Teller, died: Stop) -> Result<Self, String> {
        let hits = Mutex::new(Hits::new(file.place.max_deliveries));
        let (taken, away) = (Mutex::default(), Mutex::default());
        let (scaled, over, cut_short) = (AtomicU64::new(0), Stop::new(), AtomicBool::new(false));
        let mut shared = Shared { teller, file, workers: 0, taken, away, hits, scaled, over, cut_short };
        let help = "start the fleet so that it takes work_ms, for example by ALLOW_WORK_MS=1 make up";
        let name = shared.file.name.clone();
        let printed = shell::sh(&shared.file.workers, &[], shared.file.limit)
            .map_err(|why| format!("{name}: the command workers failed: {}; {help}", escape(&why)))?;
        let listed = read_workers(&printed).map_err(|why| format!("{name}: {why}"))?;
        if listed.is_empty() {
            return Err(format!("{name}: the command workers lists no worker that runs; {help}"));
        }
        shared.workers = listed.len();
        Ok(Self { shared: Arc::new(shared), died, actions: Vec::new(), tidy: None })
    }

    fn start(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Thread {
        threads::spawn(name, self.died.clone(), move || {
            body();
            Ok::<(), Infallible>(())
        })
    }
}

impl Fleet for CommandFleet {
    fn describe(&self) -> String {
        format!("the fleet of {}, by its commands", self.shared.file.name)
    }

    fn can(&self, what: What) -> Result<(), String> {
        if what == What::Pause { Ok(()) } else { self.shared.file.deed(what).map(drop) }
    }

    fn order(&mut self, number: u32, planned: &Planned) -> Attempt {
        // A thread logs its own failure.
        self.actions.extract_if(.., |thread| thread.is_finished()).for_each(|thread| drop(thread.join()));
        if self.actions.len() >= MOST {
            return Attempt::NotInTurn(format!("{MOST} actions are under way"));
        }
        match self.shared.file.deed(planned.what) {
            Ok(deed) => {
                let action = Action { shared: Arc::clone(&self.shared), number, planned: planned.clone(), deed };
                self.actions.push(self.start("action", move || action.run()));
                Attempt::Begun
            }
            Err(why) => Attempt::NotNow(why),
        }
    }

    fn heal(&mut self, early: bool) {
        self.shared.cut_short.fetch_or(early, Ordering::SeqCst);
        self.shared.over.trigger();
        if self.tidy.is_none() {
            let (actions, shared) = (std::mem::take(&mut self.actions), Arc::clone(&self.shared));
            self.tidy = Some(self.start("tidy", move || shared.tidy(actions)));
        }
    }

    fn is_sound(&self) -> bool {
        self.tidy.as_ref().is_some_and(Thread::is_finished)
    }

    // After every end of a drill, no process may stay frozen or stopped.
    fn end(&mut self) {
        self.heal(true);
        if let Some(thread) = self.tidy.take() {
            if !thread.is_finished() {
                // The drill shows errors only.
                let limit = show_duration(self.shared.file.limit);
                log::error!("the drill waits for the commands that undo its actions, and kills each after {limit}");
            }
            // The thread logs its own failure.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Runs a command of the file.
    fn run(&self, name: &str, variables: &[(&str, String)]) -> Result<String, String> {
        let command =
            self.file.commands.get(name).ok_or_else(|| format!("{} has no command {name}", self.file.name))?;
        shell::sh(command, variables, self.file.limit).map_err(|why| format!("{name}: {why}"))
    }

    /// Lists the running workers.
    fn list(&self) -> Result<Vec<Process>, String> {
        read_workers(&shell::sh(&self.file.workers, &[], self.file.limit)?)
    }

    /// Notes that a process may be stopped or frozen now.
    fn send_away(&self, process: &Process, undo: &'static str) {
        let mut away = self.away.lock();
        away.retain(|(other, _)| other != process);
        away.push((process.clone(), undo));
    }

    /// Runs the command that undoes it; once it succeeds, the process is not away any more.
    fn bring_back(&self, process: &Process, undo: &'static str) -> Result<String, String> {
        let printed = self.run(undo, &process.variables())?;
        self.away.lock().retain(|(other, _)| other != process);
        Ok(printed)
    }

    /// Clients of the addresses for operators, which show the tasks in flight.
    fn clients(&self) -> Vec<Client> {
        self.file.place.operators().iter().map(|gateway| Client::new(gateway.clone(), self.over.clone())).collect()
    }

    /// When all actions are done, nothing is stopped or frozen, and there are as many workers as before.
    fn tidy(&self, actions: Vec<Thread>) {
        // A thread logs its own failure.
        actions.into_iter().for_each(|thread| drop(thread.join()));
        let left = self.bring_all_back();
        let count = || self.list().map(|workers| workers.len());
        let mut found = count();
        if found != Ok(self.workers) && self.file.commands.contains_key("scale") {
            let scaled = self.run("scale", &[("WORKERS", self.workers.to_string())]);
            found = scaled.and_then(|_| count());
        }
        let all_run = found == Ok(self.workers);
        match found {
            Ok(_) if all_run => {}
            Ok(found) => log::error!("{found} workers run; the drill found {}", self.workers),
            Err(why) => log::error!("the workers that the drill found may not all run: {}", escape(&why)),
        }
        // Where all workers run, a scale has started or replaced a stopped worker.
        for (process, undo, why) in left.iter().filter(|(_, undo, _)| !(all_run && *undo == "start-worker")) {
            let state = match undo.split_once('-') {
                Some(("thaw", _)) => "frozen",
                Some(("resume", _)) => "quiet",
                _ => "stopped",
            };
            log::error!("{} may still be {state}: {}", escape(&process.name), escape(why));
        }
    }

    /// Undoes what the actions could not undo; returns what failed each time, with the last failure.
    fn bring_all_back(&self) -> Vec<(Process, &'static str, String)> {
        let (began, pause) = (Instant::now(), Stop::new());
        let mut left = Vec::new();
        for attempt in 0..TRIES {
            if attempt > 0 && (left.is_empty() || began.elapsed() >= self.file.limit) {
                break;
            }
            if attempt > 0 {
                // Never triggered: the time ends the wait.
                let _ = pause.sleep(BETWEEN);
            }
            let away = self.away.lock().clone();
            let failed = |(process, undo): Away| self.bring_back(&process, undo).err().map(|why| (process, undo, why));
            left = away.into_iter().filter_map(failed).collect();
        }
        left
    }
}

/// Reads a line for each worker: a name, and an id if it differs; what follows is ignored.
///
/// # Errors
/// An id with which the ledger would take the worker for a gateway or for Kafka.
fn read_workers(printed: &str) -> Result<Vec<Process>, String> {
    let workers = printed.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next()?.to_owned();
        let id = words.next().map_or_else(|| name.clone(), str::to_owned);
        Some(match NOT_WORKERS.iter().find(|begin| id.starts_with(**begin)) {
            None => Ok(Process { variable: Some("WORKER"), name, id }),
            Some(begin) => Err(format!(
                "the command workers printed the line \"{}\", in which the id of the worker begins with \"{begin}\"; \
                 expected an id that begins with none of {}, set by WORKER_ID",
                escape(line),
                NOT_WORKERS.join(", ")
            )),
        })
    });
    workers.collect()
}

#[cfg(test)]
mod tests;
