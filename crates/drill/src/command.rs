//! A fleet that runs already, acted on by the shell commands of a file.
//!
//! A command returns when it is done, which may take half a minute. So each action has a thread of its own, from the
//! choice of its worker to the command that undoes it. Two actions never act on one process at a time. What a command
//! does, it does at some time between its begin and its end: facts say no more. Made by `target`, owned by the
//! director.
//!
//! | thread | does | ends |
//! |---|---|---|
//! | `action` | chooses a process, runs a command, waits, runs the command that undoes it | with its action |
//! | `tidy` | joins these threads, and starts as many workers as the drill found | when the fleet is as the drill found it |

mod action;
mod file;
mod hands;
mod shell;

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

/// Actions under way at once; the director repeats an order later.
const MOST: usize = 12;

/// A worker as the command `workers` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Worker {
    /// For the commands.
    name: String,
    /// In the fleet.
    id: String,
}

/// What all actions share.
struct Shared {
    teller: Teller,
    file: FleetFile,
    /// How many workers the drill found.
    workers: usize,
    /// Names of workers, URLs of gateways and `broker`: an action is at each, and will be until it is undone.
    taken: Mutex<BTreeSet<String>>,
    /// Workers that were stopped or killed for good.
    away: Mutex<Vec<Worker>>,
    /// How often a worker was hit that had this task in flight.
    hits: Mutex<Hits>,
    /// Counts changes of the number of workers: those may start or remove a worker that was away.
    scaled: AtomicU64,
    /// The load has ended: no action begins, and what is due later is done now.
    over: Stop,
}

/// See the module documentation.
pub(super) struct CommandFleet {
    shared: Arc<Shared>,
    died: Stop,
    /// At most [`MOST`] that are not done.
    actions: Vec<Thread>,
    tidy: Option<Thread>,
}

impl CommandFleet {
    /// Finds the workers. `died` is triggered when a thread of the fleet fails.
    ///
    /// # Errors
    /// The command `workers` fails, or lists none.
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
        // How each ended was logged where it happened.
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

    // However a drill ends, nothing stays frozen or stopped.
    fn end(&mut self) {
        self.heal();
        if let Some(thread) = self.tidy.take() {
            // How it ended was logged where it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Runs a command of the file by its name.
    fn run(&self, name: &str, variables: &[(&str, String)]) -> Result<String, String> {
        let command =
            self.file.commands.get(name).ok_or_else(|| format!("{} has no command {name}", self.file.name))?;
        shell::run(command, variables, self.file.limit).map_err(|why| format!("{name}: {why}"))
    }

    /// Workers that run.
    fn list(&self) -> Result<Vec<Worker>, String> {
        let listed = shell::run(&self.file.workers, &[], self.file.limit)?;
        Ok(listed.lines().filter_map(read_worker).collect())
    }

    /// Clients of the gateways, which tell which workers are busy.
    fn clients(&self) -> Vec<Client> {
        self.file.place.gateways.iter().map(|gateway| Client::new(gateway.clone(), self.over.clone())).collect()
    }

    /// When all actions are done, there are as many workers as before.
    fn tidy(&self, actions: Vec<Thread>) {
        // How each ended was logged where it happened.
        actions.into_iter().for_each(|thread| drop(thread.join()));
        for worker in std::mem::take(&mut *self.away.lock()) {
            // Another action may have started it; the count below tells.
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

/// A name, and an id if it differs; what follows is ignored.
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
    fn a_line_of_workers_is_a_name_and_perhaps_an_id() {
        let read = |line| read_worker(line).map(|worker| (worker.name, worker.id));
        assert_eq!(read("worker_1"), Some(("worker_1".to_owned(), "worker_1".to_owned())));
        assert_eq!(read("app-worker-1\t1f2e\t0\trunning"), Some(("app-worker-1".to_owned(), "1f2e".to_owned())));
        assert_eq!(read(" "), None);
    }
}
