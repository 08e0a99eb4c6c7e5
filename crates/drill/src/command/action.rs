//! An action on a command fleet: from the choice of its process to the command that undoes it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::fact::Fact;
use super::super::plan::{What, Who};
use super::super::schedule::Planned;
use super::file::{Deed, EXIT_CODES};
use super::tasks_seen::{self, TasksSeen};
use super::{Shared, Worker};

/// How long an action waits for a worker that it can hit.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long an action waits while another action is at its process: a start may take long.
const TURN: Duration = Duration::from_secs(40);
/// How often an action asks a gateway for tasks in flight, and how often it lists the workers, which takes longer.
const LOOK: Duration = Duration::from_millis(40);
const LIST: Duration = Duration::from_secs(1);
/// The name of Kafka in facts.
const BROKER: &str = "broker";

/// Environment variables for a command.
type Variables<'v> = &'v [(&'static str, String)];

/// An action under way.
pub(super) struct Action {
    pub(super) shared: Arc<Shared>,
    pub(super) number: u32,
    pub(super) planned: Planned,
    pub(super) deed: &'static Deed,
}

/// Reserves a process for one action until it is dropped.
struct Taken(Arc<Shared>, String);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.taken.lock().remove(&self.1);
    }
}

impl Action {
    pub(super) fn run(&self) {
        let outcome = match self.planned.what {
            What::Scale => {
                self.ordered(None);
                self.shared.scaled.fetch_add(1, Ordering::Relaxed);
                self.carried(self.shared.run("scale", &[("WORKERS", self.planned.to.to_string())]));
                Ok(())
            }
            what if what.has_worker() && self.planned.who == Who::All => self.all_workers(),
            what if what.has_worker() => self.worker(),
            what if what.has_broker() => self.other(BROKER, &[]),
            _ => {
                let urls: Vec<String> = self.shared.file.place.gateways.iter().map(ToString::to_string).collect();
                let url =
                    urls.get((self.planned.draw % urls.len().max(1) as u64) as usize).cloned().unwrap_or_default();
                self.other(&url, &[("GATEWAY", url.clone())])
            }
        };
        if let Err(why) = outcome {
            // The action found no process.
            self.ordered(None);
            self.carried(Err(why));
        }
    }

    fn worker(&self) -> Result<(), String> {
        let (worker, _taken) = self.choose()?;
        self.ordered(Some(&worker));
        let scaled = self.shared.scaled.load(Ordering::Relaxed);
        let done = self.act(&worker.id, &variables(&worker));
        if matches!(self.planned.what, What::StopWorker | What::KillWorker) && self.planned.length.is_none() {
            self.shared.away.lock().push(worker);
            return Ok(());
        }
        self.last();
        let undone = self.undo(&worker.id, &variables(&worker));
        // A `scale` meanwhile may have started or removed the worker, so that the undo may fail.
        self.undone(undone, done && self.shared.scaled.load(Ordering::Relaxed) == scaled);
        Ok(())
    }

    /// An action on a gateway or on Kafka.
    fn other(&self, process: &str, variables: Variables<'_>) -> Result<(), String> {
        let _taken = self.wait_for_turn(process)?;
        self.ordered(None);
        let done = self.act(process, variables);
        self.last();
        self.undone(self.undo(process, variables), done);
        Ok(())
    }

    /// Restarts all workers one after another, or kills all and then starts all.
    fn all_workers(&self) -> Result<(), String> {
        let workers = self.shared.list()?;
        self.ordered(None);
        let (mut killed, mut done) = (Vec::new(), true);
        for worker in workers {
            // Skips a worker that another action holds, and all after the end of the load.
            let Ok(taken) = self.wait_for_turn(&worker.name) else { continue };
            done &= self.act(&worker.id, &variables(&worker));
            if self.planned.what == What::RestartWorker {
                self.undone(self.undo(&worker.id, &variables(&worker)), done);
            } else {
                killed.push((worker, taken));
            }
        }
        self.last();
        for (worker, _taken) in killed {
            self.undone(self.undo(&worker.id, &variables(&worker)), done);
        }
        Ok(())
    }

    /// Runs the command and reports what it may have done and when, even if it failed. Returns whether it succeeded.
    fn act(&self, process: &str, variables: Variables<'_>) -> bool {
        let from = self.shared.teller.clock.now();
        let outcome = self.shared.run(self.deed.command, variables);
        let until = self.shared.teller.clock.now();
        if !self.deed.signal.is_empty() {
            self.tell_signal(process, self.deed.signal, from, until);
        }
        if self.planned.what == What::SecondSignal {
            self.tell_signal(process, self.deed.signal, from, until);
        }
        let outcome = outcome.and_then(|printed| {
            let (process, pid) = (process.to_owned(), 0);
            if self.deed.after.is_some_and(|after| after.starts_with("start-")) {
                let (code, signal) = self.exit_status(&process, variables)?;
                self.tell(until, Fact::Exited { process, pid, code, signal, receipt: None });
            } else if self.deed.command == "restart-gateway" {
                self.tell(until, Fact::Started { process: process.clone(), pid });
                self.tell(until, Fact::Ready { process });
            }
            Ok(printed)
        });
        let done = outcome.is_ok();
        self.carried(outcome);
        done
    }

    /// Exit code or signal of a process, if the fleet has a command that prints it.
    fn exit_status(&self, process: &str, variables: Variables<'_>) -> Result<(Option<i32>, Option<i32>), String> {
        let [of_worker, of_gateway] = EXIT_CODES;
        let name = if self.planned.what.has_worker() { of_worker } else { of_gateway };
        if process == BROKER || !self.shared.file.commands.contains_key(name) {
            return Ok((None, None));
        }
        let printed = self.shared.run(name, variables)?;
        match printed.trim().parse::<i32>() {
            Ok(status) if status > 128 => Ok((None, Some(status - 128))),
            Ok(status) => Ok((Some(status), None)),
            Err(_) => Err(format!("{name} printed \"{}\"; expected a number", printed.trim())),
        }
    }

    /// Runs the command that undoes the action, if there is one. A started worker reports itself by status records.
    fn undo(&self, process: &str, variables: Variables<'_>) -> Result<String, String> {
        let Some(after) = self.deed.after else { return Ok(String::new()) };
        let from = self.shared.teller.clock.now();
        let starts = after.starts_with("start-") && !self.planned.what.has_worker();
        if starts {
            self.tell(from, Fact::Started { process: process.to_owned(), pid: 0 });
        }
        let outcome = self.shared.run(after, variables);
        let until = self.shared.teller.clock.now();
        if starts && outcome.is_ok() {
            self.tell(until, Fact::Ready { process: process.to_owned() });
        } else if after.starts_with("thaw-") {
            self.tell_signal(process, "SIGCONT", from, until);
        }
        outcome
    }

    fn tell(&self, at: f64, fact: Fact) {
        self.shared.teller.tell_at(at, fact);
    }

    fn tell_signal(&self, process: &str, signal: &str, from: f64, until: f64) {
        let (process, signal, action) = (process.to_owned(), signal.to_owned(), Some(self.number));
        self.tell(from, Fact::Signalled { process, signal, action, until: Some(until) });
    }

    fn ordered(&self, target: Option<&Worker>) {
        let all = if self.planned.who == Who::All { "all " } else { "" };
        let detail = match (self.planned.length, self.planned.what) {
            (_, What::Scale) => format!("to {} workers", self.planned.to),
            (Some(length), _) => format!("{all}for {:.1} s", length.as_secs_f64()),
            (None, _) => all.to_owned(),
        };
        let (action, what) = (self.number, self.planned.what.to_string());
        let target = target.map(|worker| worker.id.clone());
        self.shared.teller.tell(Fact::Ordered { action, what, target, detail });
    }

    fn carried(&self, outcome: Result<String, String>) {
        let (done, detail) = match outcome {
            Ok(printed) => (true, printed.lines().next_back().unwrap_or_default().trim().to_owned()),
            Err(why) => (false, why),
        };
        self.shared.teller.tell(Fact::Carried { action: self.number, done, detail });
    }

    /// Reports an action that was done as not done if its undo failed.
    fn undone(&self, outcome: Result<String, String>, done: bool) {
        if let (Err(why), true) = (outcome, done) {
            self.carried(Err(why));
        }
    }

    /// Waits as long as planned, or until the load has ended.
    fn last(&self) {
        // The end of the load only shortens the wait.
        let _ = self.shared.over.sleep(self.planned.length.unwrap_or_default());
    }

    /// Reserves a process; `None`: another action is at it.
    fn take(&self, name: &str) -> Option<Taken> {
        let free = self.shared.taken.lock().insert(name.to_owned());
        free.then(|| Taken(Arc::clone(&self.shared), name.to_owned()))
    }

    fn wait_for_turn(&self, name: &str) -> Result<Taken, String> {
        let began = Instant::now();
        loop {
            if let Some(taken) = self.take(name) {
                return Ok(taken);
            }
            if began.elapsed() >= TURN || self.shared.over.sleep(LOOK).is_err() {
                return Err(format!("another action is at {name}"));
            }
        }
    }

    /// Chooses and reserves a worker in the planned state: a running worker, or, for `start-worker`, a worker that was
    /// stopped or killed for good.
    fn choose(&self) -> Result<(Worker, Taken), String> {
        let starts = self.planned.what == What::StartWorker;
        let (began, mut clients) = (Instant::now(), self.shared.clients());
        let (mut workers, mut listed, mut tasks_seen) = (Vec::new(), None, TasksSeen::default());
        loop {
            if starts {
                workers.clone_from(&self.shared.away.lock());
            } else if listed.is_none_or(|listed: Instant| listed.elapsed() >= LIST) {
                workers = self.shared.list().unwrap_or_default();
                listed = Some(Instant::now());
            }
            tasks_seen.see(&tasks_seen::in_flight(&mut clients).unwrap_or_default(), Instant::now());
            let taken = self.shared.taken.lock().clone();
            let spared = |id: &str| self.shared.hits.lock().are_enough(tasks_seen.of(id));
            let is_wanted = |worker: &&Worker| match &self.planned.who {
                Who::Named(name) => worker.name == *name || worker.id == *name,
                Who::Any | Who::All => !spared(&worker.id),
                who => !spared(&worker.id) && tasks_seen.fits(who, &worker.id, Instant::now()),
            };
            let free = workers.iter().filter(|worker| !taken.contains(&worker.name));
            let wanted: Vec<&Worker> = free.filter(is_wanted).collect();
            let index = (self.planned.draw % wanted.len().max(1) as u64) as usize;
            if let Some(worker) = wanted.get(index).map(|worker| (*worker).clone())
                && let Some(taken) = self.take(&worker.name)
            {
                self.shared.away.lock().retain(|away| *away != worker);
                self.shared.hits.lock().add(tasks_seen.of(&worker.id));
                return Ok((worker, taken));
            }
            if began.elapsed() >= PATIENCE {
                let what = if starts { "stopped for good" } else { "in the planned state" };
                return Err(format!("no worker {what} is free of other actions"));
            }
            if self.shared.over.sleep(LOOK).is_err() {
                return Err("the load ended before the action found a worker".to_owned());
            }
        }
    }
}

fn variables(worker: &Worker) -> [(&'static str, String); 1] {
    [("WORKER", worker.name.clone())]
}
