//! The fleet that `make up` runs, natively or in containers, acted on through the words of `scripts/stack`.
//!
//! Those are what people use, so they are tried along. A word blocks until it is done, which may be half a minute, so each action has a thread of its own,
//! from the choice of its worker to its aftermath: a thaw or a start comes when it is due, whatever else goes on. Nobody is acted on by two
//! at once. What a word did, and when, it tells itself (`EVENTS=1`); processes are known by the ids that they have in the fleet, and the
//! gateway by its address.
//!
//! | thread | does | ends |
//! |---|---|---|
//! | `action` | chooses, says a word, waits, says what follows | with its action |
//! | `tidy` | waits for all of these, and brings as many workers as there were | when the fleet is as it was found |

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;

use kafka_share::BrokerAddress;
use program::logging::escape;
use program::options::positive;
use program::stop::Stop;
use program::threads::{self, Thread};

use super::fact::Fact;
use super::fleet::{Attempt, Fleet, LOCK, MAX_DELIVERIES, Pauses, Place, Teller};
use super::hits::Hits;
use super::http::Client;
use super::options::GatewayAddress;
use super::plan::{What, Who};
use super::process::Happening;
use super::schedule::Planned;

/// The words.
const SCRIPT: &str = "scripts/stack";
/// Of the programs, where the words do not say.
const WORKER_TIMEOUT: Duration = Duration::from_secs(5);
const GATEWAY_GRACE: Duration = Duration::from_secs(30);
/// Actions under way at once; the director tries one more again later.
const MOST: usize = 12;
/// How long an action waits for somebody whom it can hit.
const PATIENCE: Duration = Duration::from_secs(12);
/// How long it waits for an action that is at the gateway or at Kafka: one that starts may take long.
const TURN: Duration = Duration::from_secs(40);
/// How often the gateway is asked who is busy, and how often the words who runs: they take longer.
const LOOK: Duration = Duration::from_millis(40);
const LIST: Duration = Duration::from_secs(1);
/// A worker says once a second what it has in hand. A task that was told just now is likely to be in hand still, since it began within that
/// second; what was told twice takes long.
const JUST_TOLD: Duration = Duration::from_millis(120);
const TOLD_TWICE: Duration = Duration::from_millis(1200);

/// A worker as `scripts/stack workers` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Worker {
    /// For the words.
    name: String,
    /// In the fleet.
    id: String,
    frozen: bool,
}

/// What came of a word.
struct Said {
    /// Its lines for people, or why it failed.
    told: Result<String, String>,
    events: Vec<Told>,
}

/// Something that a word did.
#[derive(Clone, Debug, PartialEq)]
struct Told {
    /// Unix seconds.
    at: f64,
    /// `signal`, `started`, `ready` or `exited`.
    what: String,
    process: String,
    value: String,
}

/// What all actions share.
struct Shared {
    teller: Teller,
    gateway: GatewayAddress,
    /// How many workers there were when it was found.
    workers: usize,
    /// Names of workers, `gateway`, `kafka`: some action is at it, or will be again.
    taken: Mutex<BTreeSet<String>>,
    /// Workers that were stopped or killed for good.
    away: Mutex<Vec<Worker>>,
    /// How often a worker was hit that had this task in hand.
    hits: Mutex<Hits>,
    /// Counts changes of the number of workers: those may start one that was away, or remove it.
    scaled: AtomicU64,
    /// The load has ended: nothing new begins, and what is due later is done now.
    over: Stop,
    died: Stop,
}

/// See the module documentation.
pub(super) struct Stack {
    shared: Arc<Shared>,
    place: Place,
    mode: String,
    kafka: String,
    /// At most [`MOST`] that are not done.
    actions: Vec<Thread>,
    tidy: Option<Thread>,
}

impl Stack {
    /// Asks where it is. `died` is triggered when a thread of it fails.
    ///
    /// # Errors
    /// Nothing runs, or this is not the project's folder.
    pub(super) fn find(teller: Teller, died: Stop) -> Result<Self, String> {
        if !Path::new(SCRIPT).is_file() {
            return Err(format!(
                "there is no {SCRIPT} here; start the drill in the project's folder, or name a gateway: TARGET=http://host:port"
            ));
        }
        let told = say("where", None, &[]).told.map_err(|problem| {
            format!("no fleet to act on: {problem} (so that tasks may take a time: ALLOW_WORK_MS=1 make up)")
        })?;
        let value = |name: &str| {
            let found = told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            found.map(str::to_owned).ok_or_else(|| format!("{SCRIPT} where does not say {name}"))
        };
        let gateway = value("GATEWAY_URL")?;
        let brokers = value("KAFKA_BOOTSTRAP_SERVERS")?;
        let duration = |name: &str| value(name).ok().and_then(|text| positive(&text).ok());
        let gateway =
            GatewayAddress::read(&gateway).map_err(|problem| format!("GATEWAY_URL \"{gateway}\" {problem}"))?;
        let place = Place {
            gateways: vec![gateway.clone()],
            bootstrap: BrokerAddress::list(&brokers)
                .map_err(|problem: String| format!("KAFKA_BOOTSTRAP_SERVERS \"{brokers}\" {problem}"))?,
            tasks_topic: value("TASKS_TOPIC")?,
            results_topic: value("RESULTS_TOPIC")?,
            group: value("WORKER_GROUP")?,
            drain_timeout: duration("DRAIN_TIMEOUT").unwrap_or(Duration::from_secs(30)),
            gateway_grace: duration("GATEWAY_STOP_GRACE_PERIOD").unwrap_or(GATEWAY_GRACE),
            worker_timeout: duration("WORKER_TIMEOUT").unwrap_or(WORKER_TIMEOUT),
            concurrency: value("WORKER_CONCURRENCY").ok().and_then(|text| text.parse().ok()).unwrap_or(1),
            max_deliveries: MAX_DELIVERIES,
            lock: LOCK,
            takes_work: value("ALLOW_WORK_MS")? == "1",
            pauses: Pauses::default(),
        };
        let (mode, kafka) = (value("MODE")?, value("KAFKA")?);
        let shared = Shared {
            teller,
            gateway,
            workers: list().map_err(|problem| format!("no fleet to act on: {problem}"))?.len(),
            taken: Mutex::default(),
            away: Mutex::default(),
            hits: Mutex::default(),
            scaled: AtomicU64::new(0),
            over: Stop::new(),
            died,
        };
        Ok(Self { shared: Arc::new(shared), place, mode, kafka, actions: Vec::new(), tidy: None })
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Threads that are done are joined.
    fn reap(&mut self) {
        for thread in self.actions.extract_if(.., |thread| thread.is_finished()) {
            // How it ended was logged where it happened.
            let _ = thread.join();
        }
    }
}

fn start(name: &str, died: Stop, body: impl FnOnce() + Send + 'static) -> Thread {
    threads::spawn(name, died, move || {
        body();
        Ok::<(), Infallible>(())
    })
}

impl Fleet for Stack {
    fn describe(&self) -> String {
        format!("make up, {}, {}", self.mode, self.kafka)
    }

    fn can(&self, what: What) -> Result<(), String> {
        match (what, self.kafka.as_str()) {
            (What::StopBroker | What::RestartBroker | What::KillBroker, "embedded") => {
                Err("the embedded broker would forget everything; it is possible with KAFKA=apache make up".to_owned())
            }
            (What::Fault, _) => Err("faults on demand are those of a drill's own embedded broker".to_owned()),
            (What::CutBroker | What::RollBrokers | What::MoveLeader, _) => {
                Err("it is done to a drill's own broker of several nodes".to_owned())
            }
            (what, "own") if what.has_broker() => Err("this Kafka is not the fleet's to stop".to_owned()),
            _ => Ok(()),
        }
    }

    fn order(&mut self, number: u32, planned: &Planned) -> Attempt {
        self.reap();
        if self.actions.len() >= MOST {
            return Attempt::NotInTurn(format!("{MOST} actions are under way"));
        }
        let action = Action { shared: Arc::clone(&self.shared), number, planned: planned.clone(), taken: None };
        self.actions.push(start("action", self.shared.died.clone(), move || action.run()));
        Attempt::Begun
    }

    fn happened(&mut self, _: Happening) {}

    fn due(&self) -> Option<Instant> {
        None
    }

    fn tick(&mut self) {}

    fn heal(&mut self) {
        self.shared.over.trigger();
        if self.tidy.is_none() {
            let (actions, shared) = (std::mem::take(&mut self.actions), Arc::clone(&self.shared));
            self.tidy = Some(start("tidy", self.shared.died.clone(), move || tidy(actions, &shared)));
        }
    }

    fn is_sound(&self) -> bool {
        self.tidy.as_ref().is_some_and(Thread::is_finished)
    }

    // It was there before the drill, and stays.
    fn stop_workers(&mut self) {}

    fn stop_gateways(&mut self) {}

    fn is_stopped(&self) -> bool {
        true
    }

    // Nothing is left frozen or dead, however a drill ends.
    fn end(&mut self) {
        self.heal();
        if let Some(thread) = self.tidy.take() {
            // How it ended was logged where it happened.
            let _ = thread.join();
        }
    }
}

/// When all actions are done, there are as many workers as before.
fn tidy(actions: Vec<Thread>, shared: &Shared) {
    for thread in actions {
        // How it ended was logged where it happened.
        let _ = thread.join();
    }
    let wanted = [("WORKERS", shared.workers.to_string())];
    if list().is_ok_and(|workers| workers.len() != shared.workers)
        && let Err(problem) = shared.say("scale-up", None, &wanted, None)
    {
        log::error!("the fleet is not as it was found: {}", escape(&problem));
    }
}

impl Shared {
    /// Says a word, and tells what it did.
    fn say(
        &self,
        word: &str,
        worker: Option<&Worker>,
        variables: &[(&str, String)],
        action: Option<u32>,
    ) -> Result<String, String> {
        let said = say(word, worker, variables);
        let mut last: BTreeMap<String, f64> = BTreeMap::new();
        for event in said.events {
            // The time of a file, by which a native process's end is known, is some milliseconds coarse: what came later shall not be earlier.
            let after = last.get(&event.process).map_or(f64::NEG_INFINITY, |last| last + 0.001);
            let at = (event.at - self.teller.clock.unix()).max(after);
            last.insert(event.process.clone(), at);
            if let Some(fact) = event.fact(&self.gateway.to_string(), action) {
                self.teller.tell_at(at, fact);
            }
        }
        said.told
    }
}

impl Told {
    /// What is not known for sure is not told.
    fn fact(self, gateway: &str, action: Option<u32>) -> Option<Fact> {
        let process = if self.process == "gateway" { gateway.to_owned() } else { self.process };
        Some(match self.what.as_str() {
            "signal" => Fact::Signalled { process, signal: self.value, action },
            "started" => Fact::Started { process, pid: self.value.parse().unwrap_or_default() },
            "ready" => Fact::Ready { process },
            "exited" => {
                let status: i32 = self.value.parse().ok()?;
                // As shells and engines put it: 128 and the signal.
                let signal = (status > 128).then_some(status - 128);
                let code = signal.is_none().then_some(status);
                Fact::Exited { process, pid: 0, code, signal, receipt: None }
            }
            _ => return None,
        })
    }
}

/// Says a word, and waits until it is done.
fn say(word: &str, worker: Option<&Worker>, variables: &[(&str, String)]) -> Said {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(SCRIPT);
    // What the drill was given for itself is not meant for it.
    for name in ["FOR", "RATE", "WORKER", "WORKERS", "ALL", "FOLLOW", "SIGNALS"] {
        command.env_remove(name);
    }
    command.arg(word).env("EVENTS", "1").envs(variables.iter().map(|(name, value)| (name, value)));
    if let Some(worker) = worker {
        command.env("WORKER", &worker.name);
    }
    // A Ctrl-C is for the drill, which ends what it has begun.
    let output = match command.stdin(Stdio::null()).process_group(0).output() {
        Ok(output) => output,
        Err(error) => {
            return Said { told: Err(format!("{SCRIPT} does not start: {error}")), events: Vec::new() };
        }
    };
    let stdout = String::from_utf8_lossy(&output.stdout);
    let (events, lines): (Vec<&str>, Vec<&str>) = stdout.lines().partition(|line| line.starts_with("@\t"));
    let events = events.into_iter().filter_map(event).collect();
    if output.status.success() {
        return Said { told: Ok(lines.join("\n")), events };
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("without a word");
    Said { told: Err(last.strip_prefix("stack: ").unwrap_or(last).to_owned()), events }
}

/// A line of `EVENTS=1`.
fn event(line: &str) -> Option<Told> {
    let columns: Vec<&str> = line.split('\t').collect();
    let [_, at, what, process, value] = columns[..] else { return None };
    let at = at.parse().ok()?;
    Some(Told { at, what: what.to_owned(), process: process.to_owned(), value: value.to_owned() })
}

/// The workers that run.
fn list() -> Result<Vec<Worker>, String> {
    let told = say("workers", None, &[]).told?;
    let worker = |line: &str| {
        let mut columns = line.split('\t');
        let (name, id, _, state) = (columns.next()?, columns.next()?, columns.next()?, columns.next()?);
        Some(Worker { name: name.to_owned(), id: id.to_owned(), frozen: state == "frozen" })
    };
    Ok(told.lines().filter_map(worker).collect())
}

/// One action, from the choice of whom it hits to its end.
struct Action {
    shared: Arc<Shared>,
    number: u32,
    planned: Planned,
    /// What nobody else may touch until it is over.
    taken: Option<String>,
}

impl Drop for Action {
    fn drop(&mut self) {
        self.release();
    }
}

/// Whether a word found nobody of this name: it has done nothing.
fn is_of_nobody(problem: &str) -> bool {
    problem.starts_with("no worker '")
}

impl Action {
    fn run(mut self) {
        match self.planned.what {
            What::StartWorker => self.start_worker(),
            what if what.has_worker() && self.planned.who == Who::All => self.all_workers(),
            what if what.has_worker() => self.worker(),
            What::Scale => {
                self.ordered(None);
                self.shared.scaled.fetch_add(1, Ordering::Relaxed);
                let outcome = self.say("scale-up", None, &[("WORKERS", self.planned.to.to_string())]);
                self.carried(outcome);
            }
            what => self.other(what),
        }
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

    fn carried(&self, outcome: Result<String, String>) {
        let (done, detail) = match outcome {
            Ok(told) => (true, told.trim().replace('\n', "; ")),
            Err(problem) => (false, problem),
        };
        self.shared.teller.tell(Fact::Carried { action: self.number, done, detail });
    }

    /// It hit nobody.
    fn give_up(&self, why: String) {
        self.ordered(None);
        self.carried(Err(why));
    }

    fn say(&self, word: &str, worker: Option<&Worker>, variables: &[(&str, String)]) -> Result<String, String> {
        self.shared.say(word, worker, variables, Some(self.number))
    }

    /// Waits for what follows, as long as the plan says, or until the load is over.
    fn last(&self) {
        // Over or called off: it is the same.
        let _ = self.shared.over.sleep(self.planned.length.unwrap_or_default());
    }

    /// Others may touch it again.
    fn release(&mut self) {
        if let Some(name) = self.taken.take() {
            self.shared.taken.lock().remove(&name);
        }
    }

    /// Nobody else touches it until this is over; false when somebody does already.
    fn take(&mut self, name: &str) -> bool {
        let free = self.shared.taken.lock().insert(name.to_owned());
        if free {
            self.taken = Some(name.to_owned());
        }
        free
    }

    fn worker(&mut self) {
        let began = Instant::now();
        while !self.hit_worker(began) {}
    }

    /// False: the one that was chosen had just been scaled away, and nothing was done.
    fn hit_worker(&mut self, began: Instant) -> bool {
        let worker = match self.choose(began) {
            Ok(worker) => worker,
            Err(why) => {
                self.give_up(why);
                return true;
            }
        };
        self.ordered(Some(&worker));
        let scaled = self.shared.scaled.load(Ordering::Relaxed);
        let (word, variables, after) = match self.planned.what {
            What::StopWorker => ("stop-worker", None, Some("start-worker")),
            What::SecondSignal => ("stop-worker", Some(("SIGNALS", "2".to_owned())), Some("start-worker")),
            What::KillWorker => ("kill-worker", None, Some("start-worker")),
            What::FreezeWorker => ("freeze-worker", None, Some("thaw-worker")),
            _ => ("restart-worker", None, None),
        };
        let outcome = self.say(word, Some(&worker), variables.as_slice());
        if outcome.as_ref().is_err_and(|problem| is_of_nobody(problem)) && began.elapsed() < PATIENCE {
            self.release();
            return false;
        }
        let done = outcome.is_ok();
        self.carried(outcome);
        let Some(after) = after.filter(|_| done) else { return true };
        if self.planned.length.is_none() && self.planned.what != What::SecondSignal {
            self.shared.away.lock().push(worker);
            return true;
        }
        self.last();
        if let Err(problem) = self.say(after, Some(&worker), &[])
            && !self.is_done(after, &worker, scaled)
        {
            self.carried(Err(problem));
        }
        true
    }

    /// Whether another action has seen to what should follow: a rolling restart thaws what it stops, and a change of the number starts or removes.
    fn is_done(&self, word: &str, worker: &Worker, scaled: u64) -> bool {
        let now = list().unwrap_or_default();
        match now.iter().find(|other| other.name == worker.name) {
            Some(worker) => !worker.frozen,
            None => word == "thaw-worker" || self.shared.scaled.load(Ordering::Relaxed) != scaled,
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
        let outcome = self.say("start-worker", Some(&worker), &[]);
        self.carried(outcome);
    }

    fn all_workers(&self) {
        self.ordered(None);
        if self.planned.what != What::KillWorker {
            let outcome = self.say("restart-worker", None, &[]);
            return self.carried(outcome);
        }
        let before = list().map_or(1, |workers| workers.len().max(1));
        self.shared.scaled.fetch_add(1, Ordering::Relaxed);
        let outcome = self.say("kill-worker", None, &[("ALL", "1".to_owned())]);
        self.carried(outcome);
        self.last();
        if let Err(problem) = self.say("scale-up", None, &[("WORKERS", before.to_string())]) {
            self.carried(Err(problem));
        }
    }

    /// What is done to the gateway or to Kafka.
    fn other(&mut self, what: What) {
        let (word, after) = match what {
            What::StopGateway => ("stop-gateway", Some("start-gateway")),
            What::KillGateway => ("kill-gateway", Some("start-gateway")),
            What::StopBroker | What::RestartBroker => ("stop-kafka", Some("start-kafka")),
            What::KillBroker => ("kill-kafka", Some("start-kafka")),
            What::FreezeBroker => ("freeze-kafka", Some("thaw-kafka")),
            _ => ("restart-gateway", None),
        };
        let began = Instant::now();
        let name = if what.has_broker() { "kafka" } else { "gateway" };
        while !self.take(name) {
            if began.elapsed() >= TURN || self.shared.over.sleep(LOOK).is_err() {
                return self.give_up(format!("another action is at {name}"));
            }
        }
        self.ordered(None);
        let outcome = self.say(word, None, &[]);
        let done = outcome.is_ok();
        self.carried(outcome);
        if let Some(after) = after.filter(|_| done) {
            self.last();
            if let Err(problem) = self.say(after, None, &[]) {
                self.carried(Err(problem));
            }
        }
    }

    /// A worker as the plan wants it, that nobody else is at.
    fn choose(&mut self, began: Instant) -> Result<Worker, String> {
        let mut client = Client::new(self.shared.gateway.clone(), self.shared.over.clone());
        let (mut sound, mut listed, mut hands) = (Vec::new(), None, Hands::default());
        loop {
            if listed.is_none_or(|listed: Instant| listed.elapsed() >= LIST) {
                sound = list().unwrap_or_default();
                sound.retain(|worker| !worker.frozen);
                listed = Some(Instant::now());
            }
            let who = self.planned.who.clone();
            hands.see(&in_hand(&mut client).unwrap_or_default(), Instant::now());
            let taken = self.shared.taken.lock().clone();
            let spared = |id: &str| self.shared.hits.lock().are_enough(hands.of(id));
            let wanted: Vec<&Worker> = sound
                .iter()
                .filter(|worker| !taken.contains(&worker.name))
                .filter(|worker| match &who {
                    Who::Named(name) => worker.name == *name || worker.id == *name,
                    Who::Any | Who::All => !spared(&worker.id),
                    who => !spared(&worker.id) && hands.are(who, &worker.id, Instant::now()),
                })
                .collect();
            let index = (self.planned.draw % wanted.len().max(1) as u64) as usize;
            if let Some(worker) = wanted.get(index).map(|worker| (*worker).clone())
                && self.take(&worker.name)
            {
                self.shared.hits.lock().add(hands.of(&worker.id));
                return Ok(worker);
            }
            if began.elapsed() >= PATIENCE {
                return Err("no worker runs that is not frozen, and that no other action is at".to_owned());
            }
            if self.shared.over.sleep(LOOK).is_err() {
                return Err("the load had ended before it hit anybody".to_owned());
            }
        }
    }
}

/// Tasks in hand, by worker, as the gateway tells them.
type InHand = BTreeMap<String, BTreeSet<String>>;

fn in_hand(client: &mut Client) -> Option<InHand> {
    let response = client.get("/workers/status", Duration::from_secs(1)).ok()?;
    let view: Value = serde_json::from_slice(&response.body).ok()?;
    let workers = view.get("workers")?.as_object()?.iter();
    let responsive = workers.filter(|(_, worker)| worker.get("is_responsive") == Some(&Value::Bool(true)));
    let tasks = |worker: &Value| {
        let tasks = worker.get("current_tasks").and_then(Value::as_array).into_iter().flatten();
        tasks.filter_map(|task| task.as_str().map(str::to_owned)).collect()
    };
    Some(responsive.map(|(id, worker)| (id.clone(), tasks(worker))).collect())
}

/// Since when it is known what workers have in hand. Pure.
#[derive(Debug, Default)]
struct Hands(BTreeMap<String, BTreeMap<String, Instant>>);

impl Hands {
    fn see(&mut self, now: &InHand, at: Instant) {
        let mut seen = BTreeMap::new();
        for (worker, tasks) in now {
            let before = self.0.get(worker);
            let since = |task: &String| before.and_then(|before| before.get(task)).copied().unwrap_or(at);
            seen.insert(worker.clone(), tasks.iter().map(|task| (task.clone(), since(task))).collect());
        }
        self.0 = seen;
    }

    /// What this worker has in hand, by what is known.
    fn of(&self, worker: &str) -> impl Iterator<Item = &String> {
        self.0.get(worker).into_iter().flat_map(BTreeMap::keys)
    }

    /// Whether this worker is, by what is known.
    fn are(&self, who: &Who, worker: &str, at: Instant) -> bool {
        let Some(tasks) = self.0.get(worker) else { return false };
        let ages = || tasks.values().map(|since| at.saturating_duration_since(*since));
        match who {
            Who::Idle => tasks.is_empty(),
            Who::Busy => ages().any(|age| age <= JUST_TOLD || age >= TOLD_TWICE),
            Who::Long => ages().any(|age| age >= TOLD_TWICE),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_word_did_becomes_facts() {
        let fact = |line: &str| event(line)?.fact("http://a:1", Some(7));
        let signal = Fact::Signalled { process: "w".to_owned(), signal: "SIGTERM".to_owned(), action: Some(7) };
        assert_eq!(fact("@\t1700000000.25\tsignal\tw\tSIGTERM"), Some(signal));
        assert_eq!(event("@\t1700000000.25\tready\tgateway\t-").map(|told| told.at), Some(1_700_000_000.25));
        let ready = Fact::Ready { process: "http://a:1".to_owned() };
        assert_eq!(fact("@\t1.0\tready\tgateway\t-"), Some(ready));
        let exited = |code, signal| Some(Fact::Exited { process: "w".to_owned(), pid: 0, code, signal, receipt: None });
        assert_eq!(fact("@\t1.0\texited\tw\t3"), exited(Some(3), None));
        assert_eq!(fact("@\t1.0\texited\tw\t137"), exited(None, Some(9)));
    }

    #[test]
    fn a_word_that_found_nobody_is_known_by_what_it_says() {
        assert!(is_of_nobody("no worker 'worker_5' runs; there are: worker_1"));
        assert!(!is_of_nobody("worker_1 did not stop within 60 s"));
    }

    #[test]
    fn an_end_that_nobody_knows_is_not_told() {
        assert_eq!(event("@\t1.0\texited\tw\t-").and_then(|told| told.fact("g", None)), None);
        assert_eq!(event("@\tsoon\texited\tw\t0"), None);
        assert_eq!(event("@ what people are told"), None);
    }

    #[test]
    fn who_has_a_long_task_is_known_from_its_second_word() {
        let (begin, mut hands) = (Instant::now(), Hands::default());
        let told = |tasks: &[&str]| {
            InHand::from([("w".to_owned(), tasks.iter().map(|task| (*task).to_owned()).collect::<BTreeSet<_>>())])
        };
        let at = |ms| begin + Duration::from_millis(ms);
        hands.see(&told(&["a"]), at(0));
        assert!(hands.are(&Who::Busy, "w", at(0)) && !hands.are(&Who::Long, "w", at(0)));
        // Told a while ago and not since: it may be over.
        hands.see(&told(&["a"]), at(800));
        assert!(!hands.are(&Who::Busy, "w", at(800)) && !hands.are(&Who::Idle, "w", at(800)));
        hands.see(&told(&["a", "b"]), at(1300));
        assert!(hands.are(&Who::Long, "w", at(1300)) && hands.are(&Who::Busy, "w", at(1300)));
        hands.see(&told(&[]), at(2000));
        assert!(hands.are(&Who::Idle, "w", at(2000)));
        assert!(!hands.are(&Who::Idle, "unheard", at(2000)));
    }
}
