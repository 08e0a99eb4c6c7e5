//! An action on a command fleet: from the choice of its process to the command that undoes it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::fact::Fact;
use super::super::plan::{What, Who};
use super::super::schedule::Planned;
use super::file::{Deed, EXIT_CODES};
use super::tasks_seen::{self, TasksSeen};
use super::{Process, Shared};

/// How long an action waits for a worker that it can hit.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long an action waits while another action is at its process: a start may take long.
const TURN: Duration = Duration::from_secs(40);
/// How often an action asks a gateway for tasks in flight, and how often it lists the workers, which takes longer.
const LOOK: Duration = Duration::from_millis(40);
const LIST: Duration = Duration::from_secs(1);
/// The name of Kafka in facts.
const BROKER: &str = "broker";

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
                self.carried(self.scale());
                Ok(())
            }
            what if what.has_worker() && self.planned.who == Who::All => self.all_workers(),
            what if what.has_worker() => self.worker(),
            what if what.has_broker() => {
                self.other(Process { variable: None, name: BROKER.to_owned(), id: BROKER.to_owned() })
            }
            _ => {
                let urls: Vec<String> = self.shared.file.place.gateways.iter().map(ToString::to_string).collect();
                let url =
                    urls.get((self.planned.draw % urls.len().max(1) as u64) as usize).cloned().unwrap_or_default();
                self.other(Process { variable: Some("GATEWAY"), name: url.clone(), id: url })
            }
        };
        if let Err(why) = outcome
            && !self.is_cut_short()
        {
            // The action found no process.
            self.ordered(None);
            self.carried(Err(why));
        }
    }

    /// Compares the workers with the order, unless another action may have stopped or started a worker meanwhile.
    fn scale(&self) -> Result<String, String> {
        self.shared.scaled.fetch_add(1, Ordering::Relaxed);
        let is_alone = || self.shared.taken.lock().is_empty() && self.shared.away.lock().is_empty();
        let was_alone = is_alone();
        let printed = self.shared.run("scale", &[("WORKERS", self.planned.to.to_string())])?;
        let (running, wanted) = (self.shared.list()?.len(), self.planned.to);
        if was_alone && is_alone() && running != wanted as usize {
            return Err(format!("scale: the command succeeded, and {running} workers run; ordered: {wanted}"));
        }
        Ok(printed)
    }

    fn worker(&self) -> Result<(), String> {
        let (worker, _taken) = self.choose()?;
        self.ordered(Some(&worker));
        let scaled = self.shared.scaled.load(Ordering::Relaxed);
        let mut outcome = self.act(&worker);
        if self.planned.what == What::StartWorker {
            outcome = outcome.and_then(|printed| self.started(&worker).map(|()| printed));
        }
        let done = outcome.is_ok();
        self.carried(outcome);
        if matches!(self.planned.what, What::StopWorker | What::KillWorker) && self.planned.length.is_none() {
            return Ok(());
        }
        self.last();
        let undone = self.undo(&worker);
        // A `scale` meanwhile may have started or removed the worker.
        self.undone(undone, done && self.shared.scaled.load(Ordering::Relaxed) == scaled);
        Ok(())
    }

    /// Whether the worker runs, so that it is not away any more.
    fn started(&self, worker: &Process) -> Result<(), String> {
        if !self.shared.list()?.iter().any(|other| other.name == worker.name) {
            return Err("start-worker: the command succeeded, and the command workers does not list it".to_owned());
        }
        self.shared.away.lock().retain(|(away, _)| away.name != worker.name);
        Ok(())
    }

    /// An action on a gateway or on Kafka.
    fn other(&self, process: Process) -> Result<(), String> {
        let _taken = self.wait_for_turn(&process.name)?;
        self.ordered(None);
        let outcome = self.act(&process);
        let done = outcome.is_ok();
        self.carried(outcome);
        self.last();
        self.undone(self.undo(&process), done);
        Ok(())
    }

    /// Restarts all workers one after another, or kills all and then starts all. Done if it is done to each worker.
    fn all_workers(&self) -> Result<(), String> {
        let workers = self.shared.list()?;
        self.ordered(None);
        let scaled = self.shared.scaled.load(Ordering::Relaxed);
        let (mut hit, mut failures) = (Vec::new(), Vec::new());
        for worker in workers {
            if self.is_cut_short() {
                break;
            }
            // Skips a worker that another action holds for long.
            let Ok(taken) = self.wait_for_turn(&worker.name) else { continue };
            if self.shared.away.lock().iter().any(|(away, _)| *away == worker) {
                // Another action has stopped the worker for good meanwhile.
                continue;
            }
            failures.extend(self.act(&worker).err().map(|why| of(&worker, &why)));
            let restarted = self.planned.what == What::RestartWorker;
            let undone = if restarted { self.undo(&worker) } else { Ok(String::new()) };
            hit.push((worker, undone, (!restarted).then_some(taken)));
        }
        if hit.is_empty() && !self.is_cut_short() {
            failures.push("no worker was free for it".to_owned());
        }
        if self.planned.what != What::RestartWorker {
            self.last();
            for (worker, undone, _) in &mut hit {
                *undone = self.undo(worker);
            }
        }
        if self.shared.scaled.load(Ordering::Relaxed) == scaled {
            failures.extend(hit.iter().filter_map(|(worker, undone, _)| Some(of(worker, undone.as_ref().err()?))));
        }
        let printed = format!("{} workers", hit.len());
        self.carried(if failures.is_empty() { Ok(printed) } else { Err(failures.join("; ")) });
        Ok(())
    }

    fn is_cut_short(&self) -> bool {
        self.shared.cut_short.load(Ordering::SeqCst)
    }

    /// Runs the command and reports what it may have done and when, even if it failed.
    fn act(&self, process: &Process) -> Result<String, String> {
        if let Some(after) = self.deed.after {
            self.shared.send_away(process, after);
        }
        let variables = process.variables();
        let from = self.shared.teller.clock.now();
        let outcome = self.shared.run(self.deed.command, &variables);
        let until = self.shared.teller.clock.now();
        if !self.deed.signal.is_empty() {
            self.tell_signal(&process.id, self.deed.signal, from, until);
        }
        if self.planned.what == What::SecondSignal {
            self.tell_signal(&process.id, self.deed.signal, from, until);
        }
        let printed = outcome?;
        let (id, pid) = (process.id.clone(), 0);
        if self.deed.after.is_some_and(|after| after.starts_with("start-")) {
            let (code, signal) = self.exit_status(&id, &variables)?;
            self.tell(until, Fact::Exited { process: id, pid, code, signal, receipt: None });
        } else if self.deed.command == "restart-gateway" {
            self.tell(until, Fact::Started { process: id.clone(), pid });
            self.tell(until, Fact::Ready { process: id });
        }
        Ok(printed)
    }

    /// Exit code or signal of a process, if the fleet has a command that prints it.
    fn exit_status(&self, process: &str, variables: &[(&str, String)]) -> Result<(Option<i32>, Option<i32>), String> {
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
    fn undo(&self, process: &Process) -> Result<String, String> {
        let Some(after) = self.deed.after else { return Ok(String::new()) };
        let from = self.shared.teller.clock.now();
        let starts = after.starts_with("start-") && !self.planned.what.has_worker();
        if starts {
            self.tell(from, Fact::Started { process: process.id.clone(), pid: 0 });
        }
        let outcome = self.shared.bring_back(process, after);
        let until = self.shared.teller.clock.now();
        if starts && outcome.is_ok() {
            self.tell(until, Fact::Ready { process: process.id.clone() });
        } else if after.starts_with("thaw-") {
            self.tell_signal(&process.id, "SIGCONT", from, until);
        } else if after.starts_with("resume-") {
            self.tell_signal(&process.id, "SIGUSR2", from, until);
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

    fn ordered(&self, target: Option<&Process>) {
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
    fn choose(&self) -> Result<(Process, Taken), String> {
        let starts = self.planned.what == What::StartWorker;
        let (began, mut clients) = (Instant::now(), self.shared.clients());
        let (mut workers, mut listed, mut failed, mut tasks_seen) = (Vec::new(), None, None, TasksSeen::default());
        loop {
            if starts {
                let away = self.shared.away.lock();
                let stopped = away.iter().filter(|(_, undo)| *undo == self.deed.command);
                workers = stopped.map(|(worker, _)| worker.clone()).collect();
            } else if listed.is_none_or(|listed: Instant| listed.elapsed() >= LIST) {
                (workers, failed) = match self.shared.list() {
                    Ok(workers) => (workers, None),
                    Err(why) => (Vec::new(), Some(why)),
                };
                listed = Some(Instant::now());
            }
            tasks_seen.see(&tasks_seen::in_flight(&mut clients).unwrap_or_default(), Instant::now());
            let taken = self.shared.taken.lock().clone();
            let spared = |id: &str| self.shared.hits.lock().are_enough(tasks_seen.of(id));
            let is_wanted = |worker: &&Process| match &self.planned.who {
                Who::Named(name) => worker.name == *name || worker.id == *name,
                Who::Any | Who::All => !spared(&worker.id),
                who => !spared(&worker.id) && tasks_seen.fits(who, &worker.id, Instant::now()),
            };
            let free = workers.iter().filter(|worker| !taken.contains(&worker.name));
            let wanted: Vec<&Process> = free.filter(is_wanted).collect();
            let index = (self.planned.draw % wanted.len().max(1) as u64) as usize;
            if let Some(worker) = wanted.get(index).map(|worker| (*worker).clone())
                && let Some(taken) = self.take(&worker.name)
            {
                self.shared.hits.lock().add(tasks_seen.of(&worker.id));
                return Ok((worker, taken));
            }
            let is_late = began.elapsed() >= PATIENCE;
            if is_late || self.shared.over.sleep(LOOK).is_err() {
                let why = match (is_late, starts) {
                    (false, _) => "the load had ended before it hit a worker",
                    (true, true) => "no worker was stopped or killed for good, and that no other action is at",
                    (true, false) => "no worker runs that the plan wants, and that no other action is at",
                };
                let failed = failed.map(|why| format!("; the command workers failed last: {why}")).unwrap_or_default();
                return Err(format!("{why}{failed}"));
            }
        }
    }
}

/// Names the worker of a failure.
fn of(worker: &Process, why: &str) -> String {
    format!("{}: {why}", worker.name)
}
