//! One action on a command fleet: from the choice of the process that it hits to the command that undoes it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::fact::Fact;
use super::super::plan::{What, Who};
use super::super::schedule::Planned;
use super::file::Deed;
use super::hands::{self, Hands};
use super::{Shared, Worker};

/// How long an action waits for a worker that it can hit.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long an action waits until no other is at the gateway, Kafka or a worker of all: a start may take long.
const TURN: Duration = Duration::from_secs(40);
/// How long a restart of all workers waits for each to be back.
const BACK: Duration = Duration::from_secs(20);
/// How often a gateway is asked who is busy, and how often the workers are listed, which takes longer.
const LOOK: Duration = Duration::from_millis(40);
const LIST: Duration = Duration::from_secs(1);
/// The name of Kafka in facts.
const BROKER: &str = "broker";

/// See the module documentation.
pub(super) struct Action {
    shared: Arc<Shared>,
    number: u32,
    planned: Planned,
    deed: Deed,
    /// What no other action may touch until this one is over.
    taken: Vec<String>,
}

impl Drop for Action {
    fn drop(&mut self) {
        let mut taken = self.shared.taken.lock();
        taken.retain(|name| !self.taken.contains(name));
    }
}

impl Action {
    pub(super) fn new(shared: Arc<Shared>, number: u32, planned: Planned, deed: Deed) -> Self {
        Self { shared, number, planned, deed, taken: Vec::new() }
    }

    pub(super) fn run(mut self) {
        match self.planned.what {
            What::StartWorker => self.start_worker(),
            What::Scale => self.scale(),
            what if what.has_worker() && self.planned.who == Who::All => self.all_workers(),
            what if what.has_worker() => self.worker(),
            what if what.has_broker() => self.other(BROKER, Vec::new()),
            _ => {
                let gateways = &self.shared.file.place.gateways;
                let index = (self.planned.draw % gateways.len().max(1) as u64) as usize;
                let url = gateways.get(index).map(ToString::to_string).unwrap_or_default();
                self.other(&url.clone(), vec![("GATEWAY", url)]);
            }
        }
    }

    fn worker(&mut self) {
        let worker = match self.choose() {
            Ok(worker) => worker,
            Err(why) => return self.give_up(why),
        };
        self.ordered(Some(&worker));
        let scaled = self.shared.scaled.load(Ordering::Relaxed);
        let outcome = self.act(&worker.id, &variables(&worker));
        let done = outcome.is_ok();
        self.carried(outcome);
        let lasts =
            self.planned.length.is_some() || matches!(self.planned.what, What::SecondSignal | What::RestartWorker);
        if self.deed.after.is_some() && !lasts {
            self.shared.away.lock().push(worker);
            return;
        }
        self.last();
        // After a change of the number the worker may run already, or may have been removed.
        if let Err(why) = self.undo(&worker.id, &variables(&worker))
            && done
            && self.shared.scaled.load(Ordering::Relaxed) == scaled
        {
            self.carried(Err(why));
        }
    }

    /// A restart of all, one after another; or a kill of all, and a start of all.
    fn all_workers(&mut self) {
        self.ordered(None);
        let workers = match self.shared.list() {
            Ok(workers) => workers,
            Err(why) => return self.carried(Err(why)),
        };
        let (mut clients, mut outcomes, mut hit) = (self.shared.clients(), Vec::new(), Vec::new());
        let before = hands::in_flight(&mut clients).map_or(0, |workers| workers.len());
        for worker in workers {
            // Another action has stopped it meanwhile, or the load is over.
            if self.wait_for_turn(&worker.name).is_err() {
                continue;
            }
            let mut outcome = self.act(&worker.id, &variables(&worker));
            if self.planned.what == What::RestartWorker {
                outcome = outcome.and_then(|_| self.undo(&worker.id, &variables(&worker)));
                let deadline = Instant::now() + BACK;
                let back = |clients: &mut [_]| hands::in_flight(clients).is_some_and(|workers| workers.len() >= before);
                while !back(&mut clients) && Instant::now() < deadline && self.shared.over.sleep(LOOK).is_ok() {}
                self.release(&worker.name);
            }
            outcomes.push(outcome);
            hit.push(worker);
        }
        let count = outcomes.len();
        let outcome = outcomes.into_iter().collect::<Result<Vec<String>, String>>();
        let done = outcome.is_ok();
        self.carried(outcome.map(|_| format!("{} of {count} workers", self.planned.what)));
        if self.planned.what == What::RestartWorker {
            return;
        }
        self.last();
        for worker in hit {
            if let Err(why) = self.undo(&worker.id, &variables(&worker))
                && done
            {
                self.carried(Err(why));
            }
        }
    }

    fn start_worker(&mut self) {
        let began = Instant::now();
        let worker = loop {
            let found = {
                let mut away = self.shared.away.lock();
                let wanted = |worker: &Worker| match &self.planned.who {
                    Who::Named(name) => worker.name == *name || worker.id == *name,
                    _ => true,
                };
                away.iter().position(wanted).map(|index| away.remove(index))
            };
            match found {
                Some(worker) => break worker,
                None if began.elapsed() < PATIENCE && self.shared.over.sleep(LOOK).is_ok() => {}
                None => return self.give_up("no worker was stopped or killed for good".to_owned()),
            }
        };
        self.ordered(Some(&worker));
        let outcome = self.shared.run("start-worker", &variables(&worker));
        self.carried(outcome);
    }

    fn scale(&self) {
        self.ordered(None);
        self.shared.scaled.fetch_add(1, Ordering::Relaxed);
        let outcome = self.shared.run("scale", &[("WORKERS", self.planned.to.to_string())]);
        self.carried(outcome);
    }

    /// What is done to a gateway or to Kafka.
    fn other(&mut self, process: &str, variables: Vec<(&'static str, String)>) {
        if let Err(why) = self.wait_for_turn(process) {
            return self.give_up(why);
        }
        self.ordered(None);
        let outcome = self.act(process, &variables);
        let done = outcome.is_ok();
        self.carried(outcome);
        self.last();
        if let Err(why) = self.undo(process, &variables)
            && done
        {
            self.carried(Err(why));
        }
    }

    /// Runs the command, and tells what it may have done and when, also if it failed: then nothing else says so.
    fn act(&self, process: &str, variables: &[(&'static str, String)]) -> Result<String, String> {
        let from = self.shared.teller.clock.now();
        let outcome = self.shared.run(self.deed.command, variables);
        let until = self.shared.teller.clock.now();
        for _ in 0..self.deed.times {
            self.tell_signal(process, self.deed.signal, from, until);
        }
        if outcome.is_err() {
            return outcome;
        }
        let ends = self.deed.after.is_some_and(|after| after.starts_with("start-"));
        if ends {
            let (code, signal) = self.exit_status(process, variables);
            let process = process.to_owned();
            self.tell(until, Fact::Exited { process, pid: 0, code, signal, receipt: None });
        } else if self.deed.command == "restart-gateway" {
            self.tell(until, Fact::Started { process: process.to_owned(), pid: 0 });
            self.tell(until, Fact::Ready { process: process.to_owned() });
        }
        outcome
    }

    /// How a process ended, as code or signal, where a command prints it: as shells and engines do, 128 and the signal.
    fn exit_status(&self, process: &str, variables: &[(&'static str, String)]) -> (Option<i32>, Option<i32>) {
        let name = if self.planned.what.has_worker() { "exit-code" } else { "gateway-exit-code" };
        if process == BROKER || !self.shared.file.commands.contains_key(name) {
            return (None, None);
        }
        match self.shared.run(name, variables).map(|printed| printed.trim().parse::<i32>().map_err(|_| printed)) {
            Ok(Ok(status)) if status > 128 => (None, Some(status - 128)),
            Ok(Ok(status)) => (Some(status), None),
            Ok(Err(printed)) => {
                let printed = crate::logging::escape(printed.trim()).to_string();
                log::error!("{name} printed \"{printed}\"; expected a number");
                (None, None)
            }
            Err(why) => {
                log::error!("{}", crate::logging::escape(&why));
                (None, None)
            }
        }
    }

    /// Runs the command that undoes it, if there is one. A worker tells by itself that it is back.
    fn undo(&self, process: &str, variables: &[(&'static str, String)]) -> Result<String, String> {
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
        let detail = match (self.planned.length, &self.planned.who, self.planned.what) {
            (_, _, What::Scale) => format!("to {} workers", self.planned.to),
            (Some(length), Who::All, _) => format!("all for {:.1} s", length.as_secs_f64()),
            (Some(length), ..) => format!("for {:.1} s", length.as_secs_f64()),
            (None, Who::All, _) => "all".to_owned(),
            (None, ..) => String::new(),
        };
        let (action, what) = (self.number, self.planned.what.to_string());
        let target = target.map(|worker| worker.id.clone());
        self.shared.teller.tell(Fact::Ordered { action, what, target, detail });
    }

    /// Told once more if the command that undoes it fails.
    fn carried(&self, outcome: Result<String, String>) {
        let (done, detail) = match outcome {
            Ok(printed) => (true, printed.lines().next_back().unwrap_or_default().trim().to_owned()),
            Err(why) => (false, why),
        };
        self.shared.teller.tell(Fact::Carried { action: self.number, done, detail });
    }

    /// It hit no process.
    fn give_up(&self, why: String) {
        self.ordered(None);
        self.carried(Err(why));
    }

    /// Waits as long as the plan says, or until the load is over.
    fn last(&self) {
        // Over or called off: it is the same.
        let _ = self.shared.over.sleep(self.planned.length.unwrap_or_default());
    }

    /// From now on no other action touches it; false when another one does.
    fn take(&mut self, name: &str) -> bool {
        let free = self.shared.taken.lock().insert(name.to_owned());
        if free {
            self.taken.push(name.to_owned());
        }
        free
    }

    fn release(&mut self, name: &str) {
        self.taken.retain(|taken| taken != name);
        self.shared.taken.lock().remove(name);
    }

    fn wait_for_turn(&mut self, name: &str) -> Result<(), String> {
        let began = Instant::now();
        while !self.take(name) {
            if began.elapsed() >= TURN || self.shared.over.sleep(LOOK).is_err() {
                return Err(format!("another action is at {name}"));
            }
        }
        Ok(())
    }

    /// A worker as the plan wants it, that no other action is at.
    fn choose(&mut self) -> Result<Worker, String> {
        let (began, mut clients) = (Instant::now(), self.shared.clients());
        let (mut running, mut listed, mut hands) = (Vec::new(), None, Hands::default());
        loop {
            if listed.is_none_or(|listed: Instant| listed.elapsed() >= LIST) {
                running = self.shared.list().unwrap_or_default();
                listed = Some(Instant::now());
            }
            hands.see(&hands::in_flight(&mut clients).unwrap_or_default(), Instant::now());
            let taken = self.shared.taken.lock().clone();
            let spared = |id: &str| self.shared.hits.lock().are_enough(hands.of(id));
            let is_wanted = |worker: &&Worker| match &self.planned.who {
                Who::Named(name) => worker.name == *name || worker.id == *name,
                Who::Any | Who::All => !spared(&worker.id),
                who => !spared(&worker.id) && hands.are(who, &worker.id, Instant::now()),
            };
            let free = running.iter().filter(|worker| !taken.contains(&worker.name));
            let wanted: Vec<&Worker> = free.filter(is_wanted).collect();
            let index = (self.planned.draw % wanted.len().max(1) as u64) as usize;
            if let Some(worker) = wanted.get(index).map(|worker| (*worker).clone())
                && self.take(&worker.name)
            {
                self.shared.hits.lock().add(hands.of(&worker.id));
                return Ok(worker);
            }
            if began.elapsed() >= PATIENCE {
                return Err("no worker runs that the plan wants and that no other action is at".to_owned());
            }
            if self.shared.over.sleep(LOOK).is_err() {
                return Err("the load had ended before it hit a worker".to_owned());
            }
        }
    }
}

fn variables(worker: &Worker) -> Vec<(&'static str, String)> {
    vec![("WORKER", worker.name.clone())]
}
