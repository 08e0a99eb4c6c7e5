//! A running fleet, acted on by the shell commands of a file.
//!
//! A command can take half a minute, so each action has a thread of its own, from the choice of its process to the
//! command that undoes it. Two actions never act on one process at a time. A command acts at some time between its
//! begin and its end; facts have both times. Made by `target`, owned by the director.
//!
//! | thread | does | ends |
//! |---|---|---|
//! | `action` | chooses a process, runs a command, waits, runs the command that undoes it | with its action |
//! | `tidy` | joins these threads, starts as many workers as the drill found | when those workers run |

mod action;
mod file;
mod shell;
mod tasks_seen;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;

use program::logging::escape;
use program::stop::Stop;
use program::threads::{self, Thread};

use super::fleet::{Attempt, Fleet, Teller};
use super::hits::Hits;
use super::http::Client;
use super::plan::What;
use super::schedule::Planned;

use action::Action;

pub use file::FleetFile;

/// Actions under way at once; beyond, the director tries an action again later.
const MOST: usize = 12;

/// A worker as the command `workers` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Worker {
    /// Name for the commands.
    name: String,
    /// `WORKER_ID`.
    id: String,
}

/// State that all actions share.
struct Shared {
    teller: Teller,
    file: FleetFile,
    /// Number of workers that the drill found.
    workers: usize,
    /// Processes with an action under way: names of workers, URLs of gateways, or `broker`.
    taken: Mutex<BTreeSet<String>>,
    /// Workers that an action stopped or killed for good.
    away: Mutex<Vec<Worker>>,
    /// How often each task was in flight at a worker that an action hit.
    hits: Mutex<Hits>,
    /// Number of `scale` actions: each may start or remove a stopped worker.
    scaled: AtomicU64,
    /// The load has ended: no action begins, and every undo runs at once.
    over: Stop,
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
    /// The command `workers` fails or lists no worker.
    pub(super) fn find(file: FleetFile, teller: Teller, died: Stop) -> Result<Self, String> {
        let (taken, away, hits, over) = (Mutex::default(), Mutex::default(), Mutex::default(), Stop::new());
        let mut shared = Shared { teller, file, workers: 0, taken, away, hits, scaled: AtomicU64::new(0), over };
        let help = "start the fleet so that it takes work_ms, for example by ALLOW_WORK_MS=1 make up";
        let name = shared.file.name.clone();
        let listed =
            shared.list().map_err(|why| format!("{name}: the command workers failed: {}; {help}", escape(&why)))?;
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

    fn heal(&mut self) {
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
        self.heal();
        if let Some(thread) = self.tidy.take() {
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
        shell::run(command, variables, self.file.limit).map_err(|why| format!("{name}: {why}"))
    }

    /// The workers that run.
    fn list(&self) -> Result<Vec<Worker>, String> {
        let listed = shell::run(&self.file.workers, &[], self.file.limit)?;
        Ok(listed.lines().filter_map(read_worker).collect())
    }

    /// Clients of the gateways, which know the tasks in flight.
    fn clients(&self) -> Vec<Client> {
        self.file.place.gateways.iter().map(|gateway| Client::new(gateway.clone(), self.over.clone())).collect()
    }

    /// Waits for all actions, then starts as many workers as the drill found.
    fn tidy(&self, actions: Vec<Thread>) {
        // A thread logs its own failure.
        actions.into_iter().for_each(|thread| drop(thread.join()));
        for worker in std::mem::take(&mut *self.away.lock()) {
            // Ignored: another action may have started it, and the count below finds a missing worker.
            let _ = self.run("start-worker", &[("WORKER", worker.name)]);
        }
        let count = || self.list().map(|workers| workers.len());
        let mut found = count();
        if found != Ok(self.workers) && self.file.commands.contains_key("scale") {
            let scaled = self.run("scale", &[("WORKERS", self.workers.to_string())]);
            found = scaled.and_then(|_| count());
        }
        match found {
            Ok(found) if found == self.workers => {}
            Ok(found) => log::error!("{found} workers run; the drill found {}", self.workers),
            Err(why) => log::error!("the workers that the drill found may not all run: {}", escape(&why)),
        }
    }
}

/// Reads a name and an optional id; ignores the rest of the line.
fn read_worker(line: &str) -> Option<Worker> {
    let mut words = line.split_whitespace();
    let name = words.next()?.to_owned();
    let id = words.next().map_or_else(|| name.clone(), str::to_owned);
    Some(Worker { name, id })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_worker_has_a_name_and_an_optional_id() {
        let read = |line| read_worker(line).map(|worker| (worker.name, worker.id));
        assert_eq!(read("worker_1"), Some(("worker_1".to_owned(), "worker_1".to_owned())));
        assert_eq!(read("app-worker-1\t1f2e\t0\trunning"), Some(("app-worker-1".to_owned(), "1f2e".to_owned())));
        assert_eq!(read(" "), None);
    }
}
