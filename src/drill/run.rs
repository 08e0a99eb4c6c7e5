//! A run: takes what the threads tell, writes the ledger, shows what goes on, and decides when it is over.
//!
//! The one owner of all state, so that nothing of it needs a lock. It judges nothing: when everything has been seen, the judge gets the ledger. Called by
//! [`run`](fn@super::run).
//!
//! | thread | does | ends |
//! |---|---|---|
//! | main | this module | returns the exit code |
//! | `pace` | hands out request numbers | when the load's time is over, or at a signal |
//! | `send-N` | posts, waits for the answer | when the pace ended and its answer came |
//! | `director` | acts on the fleet | when it is told to |
//! | `broker` | one action on the nodes of the broker | when every replica is in sync again |
//! | `out-NAME` | reads a process's output | with the process |
//! | `fleet`, `lookups` | ask the gateways | when nobody asks any more |
//! | `tasks`, `results` | read the topics | when their client is interrupted |

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use serde_json::Value;

use crate::exit::ExitCode;
use crate::kafka::{ClientOptions, Cluster, Interrupter};
use crate::logging::escape;
use crate::signals::Signals;
use crate::stop::Stop;
use crate::threads::{self, Thread};

use super::account::Account;
use super::asker::{Asker, Question};
use super::audit::Audit;
use super::clock::Clock;
use super::console::Console;
use super::director::{Command, Director};
use super::display::Display;
use super::event::{EVENTS, Event, Phase};
use super::fact::{Begin, Ending, Fact, Line};
use super::fleet::{Fleet, Place, Teller};
use super::history::History;
use super::http::Client;
use super::judge::{self, Circumstances};
use super::judgement::{Conclusion, Verdict};
use super::ledger::Ledger;
use super::load::{Load, LoadOptions};
use super::options::{GatewayAddress, RunConfig};
use super::outcome;
use super::output;
use super::plan::{Plan, What};
use super::process::{Ears, Happening};
use super::report::Counts;
use super::schedule;
use super::target;
use super::texts::{AFTERWARDS, Checked, Special, Texts};
use super::topics;

/// How long outstanding answers are waited for once the load has ended, beside the longest task.
const ANSWERS_WAIT: Duration = Duration::from_secs(15);
/// How long unknown outcomes are asked for without any progress.
const UNKNOWN_WAIT: Duration = Duration::from_secs(30);
/// The same after a broker was away: a gateway sends a task again that was not heard of for so long (`MISSING_AFTER`, and the sweep).
const MISSING_WAIT: Duration = Duration::from_secs(100);
/// A lock runs out so long after the last fault at most, and what it held is run.
const LOCK_WAIT: Duration = Duration::from_secs(17);
/// How long a fleet may take to be whole again.
const HEAL_WAIT: Duration = Duration::from_secs(120);
/// A process that has not stopped for so long after its own limit does not stop.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// How long gateways may take to show what is so.
const SHOWN_WAIT: Duration = Duration::from_secs(6);
/// Once everything is well: so many tasks are sent through each gateway, and so many that are done are read back from each.
const PROBES: u64 = 20;
const READ_BACK: usize = 100;
/// Results are read back while gateways keep them for sure (`RESULT_RETENTION`).
const READ_BACK_OF: Duration = Duration::from_secs(300);
/// How long that may take.
const PROBE_WAIT: Duration = Duration::from_secs(30);
/// How often unknown outcomes are asked for.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How often gateways are asked for the fleet.
const FLEET_EVERY: Duration = Duration::from_millis(250);
/// How long Kafka is waited for at the start.
const KAFKA_WAIT: Duration = Duration::from_secs(10);
/// How often signals and deadlines are looked at.
const TICK: Duration = Duration::from_millis(50);

/// Why a run ends before its verdict.
enum End {
    /// A second signal.
    Forced,
    /// The reader of its stdout has closed the pipe.
    Unread,
    /// A thread died; it was logged there.
    Died,
    /// Something is missing: what.
    Cannot(String),
}

/// Runs it.
pub(super) fn run(config: &RunConfig, signals: &Signals, mut console: Console) -> ExitCode {
    let clock = Clock::start();
    let (events, taken) = bounded(EVENTS);
    let (owner, happenings) = bounded(EVENTS);
    let died = Stop::new();
    let teller = Teller { clock, facts: events.clone() };
    let ears = Ears { owner, died: died.clone() };
    console.line(&format!("drill: {}", config.headline()));
    let seed = config.seed.unwrap_or_else(|| fastrand::u64(0..1_000_000));
    let (fleet, place) = match target::reach(config, seed, teller, ears, &happenings, signals) {
        Ok(reached) => reached,
        Err(why) => {
            console.error(&why);
            return ExitCode::Fatal;
        }
    };
    let mut run = Run::new(Parts { config, signals, clock, events, taken, died, place, seed, console });
    let outcome = run.all(fleet, happenings);
    run.finish(outcome)
}

/// What a run is made of.
struct Parts<'a> {
    config: &'a RunConfig,
    signals: &'a Signals,
    clock: Clock,
    events: Sender<Event>,
    taken: Receiver<Event>,
    died: Stop,
    place: Place,
    seed: u64,
    console: Console,
}

/// The threads beside the load.
struct Side {
    threads: Vec<Thread>,
    fleet: Option<Sender<Question>>,
    lookups: Option<Sender<Question>>,
    director: Option<Sender<Command>>,
    hurry: Stop,
    interrupter: Interrupter,
    cluster: Cluster,
}

/// What a gateway shows of the fleet.
#[derive(Clone, Debug)]
struct View {
    told: Value,
    active: Vec<String>,
    stopping: Vec<String>,
}

struct Run<'a> {
    config: &'a RunConfig,
    signals: &'a Signals,
    clock: Clock,
    events: Sender<Event>,
    /// `None` once nobody listens any more.
    taken: Option<Receiver<Event>>,
    died: Stop,
    place: Place,
    seed: u64,
    display: Display,
    texts: Texts,
    ledger: Ledger,
    account: Account,
    history: History,
    side: Option<Side>,
    load: Option<Load>,
    kafka_read: bool,
    kafka_away: bool,
    /// When the tasks topic was last read to where it then ended.
    tasks_read: Duration,
    /// When something last happened that shows later: a kill, a freeze, an outage.
    disturbed: Option<Duration>,
    outage: bool,
    asking: bool,
    asked: Duration,
    fleet_asked: Duration,
    /// What each gateway showed last.
    views: Vec<Option<View>>,
    phase: Option<Phase>,
    cut_short: bool,
}

impl<'a> Run<'a> {
    fn new(parts: Parts<'a>) -> Self {
        let Parts { config, signals, clock, events, taken, died, place, seed, console } = parts;
        let texts = Texts::new(fastrand::u32(..), seed, &config.plan.load, config.answers);
        let views = vec![None; place.gateways.len()];
        let history = History::new(clock.unix(), place.worker_timeout);
        Self {
            config,
            signals,
            clock,
            events,
            taken: Some(taken),
            died,
            place,
            seed,
            display: Display::new(console, &config.plan.name, config.length(), config.report_every),
            texts,
            ledger: Ledger::default(),
            account: Account::default(),
            history,
            side: None,
            load: None,
            kafka_read: false,
            kafka_away: false,
            tasks_read: Duration::ZERO,
            disturbed: None,
            outage: false,
            asking: false,
            asked: Duration::ZERO,
            fleet_asked: Duration::ZERO,
            views,
            phase: None,
            cut_short: false,
        }
    }

    fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    fn plan(&self) -> &'a Plan {
        &self.config.plan
    }

    /// From the first line to the verdict.
    fn all(&mut self, fleet: Option<Box<dyn Fleet>>, happenings: Receiver<Happening>) -> Result<Verdict, End> {
        let target = fleet.as_ref().map_or_else(
            || "a fleet that others act on: only its tasks are judged".to_owned(),
            |fleet| fleet.describe(),
        );
        let owned = self.config.owns_processes();
        let paused = Arc::new(AtomicBool::new(false));
        let path = self.config.ledger_path();
        self.ledger = Ledger::create(path.as_deref())
            .map_err(|error| End::Cannot(format!("the ledger {}: {error}", path.unwrap_or_default().display())))?;
        self.start_side();
        if let Some(fleet) = fleet {
            self.start_director(fleet, happenings, Arc::clone(&paused))?;
        }
        self.begin(&target, owned);
        self.wait_for_kafka()?;
        let cluster = self.side.as_ref().map(|side| side.cluster.clone());
        let mut audit = self.begin_audit();
        let load = self.load_options(paused);
        // Before the load: an action of its last moment comes before its end.
        self.command(Command::Begin(Instant::now()));
        self.load = Some(Load::start(&load, &self.texts, &self.events, &self.died));
        self.watch()?;
        self.write(Fact::LoadEnded);
        self.display.phase = "waiting";
        self.settle(owned)?;
        let audited = match (&mut audit, &cluster) {
            (Some(audit), Some(cluster)) => self.audit(audit, cluster)?,
            _ => false,
        };
        Ok(self.judge(audited))
    }

    /// Nothing is audited where Kafka cannot be read; the answers are checked all the same.
    fn begin_audit(&mut self) -> Option<Audit> {
        let begun = if self.kafka_read {
            Audit::begin(&self.place, self.clock, &self.texts).map_err(|error| error.to_string())
        } else {
            Err("it does not answer".to_owned())
        };
        let why = match begun {
            Ok(audit) => return Some(audit),
            Err(why) => why,
        };
        let brokers: Vec<String> = self.place.bootstrap.iter().map(ToString::to_string).collect();
        let place = brokers.join(", ");
        let line = format!("drill: Kafka cannot be read at {place} ({}); nothing will be audited", escape(&why));
        self.display.console.line(&line);
        None
    }

    fn start_side(&mut self) {
        let options = ClientOptions::new(self.place.bootstrap.clone(), "drill");
        let interrupter = options.interrupter.clone();
        let cluster = Cluster::new(options);
        let hurry = Stop::new();
        let mut threads = Vec::new();
        let (events, texts) = (self.events.clone(), self.texts.clone());
        let (reading, topic) = (cluster.clone(), self.place.tasks_topic.clone());
        threads.push(threads::spawn("tasks", self.died.clone(), move || {
            topics::read_tasks(reading, &topic, &texts, &events)
        }));
        let events = self.events.clone();
        let (reading, topic) = (cluster.clone(), self.place.results_topic.clone());
        threads
            .push(threads::spawn("results", self.died.clone(), move || topics::read_results(reading, &topic, &events)));
        let mut ask = |name: &str| {
            // One question at a time; full: it is asked the next time.
            let (questions, asked) = bounded(1);
            let clients =
                self.place.gateways.iter().map(|gateway| Client::new(gateway.clone(), hurry.clone())).collect();
            let asker = Asker { clients, texts: self.texts.clone(), events: self.events.clone() };
            threads.push(threads::spawn(name, self.died.clone(), move || asker.run(&asked)));
            Some(questions)
        };
        let (fleet, lookups) = (ask("fleet"), ask("lookups"));
        self.side = Some(Side { threads, fleet, lookups, director: None, hurry, interrupter, cluster });
    }

    fn start_director(
        &mut self,
        fleet: Box<dyn Fleet>,
        happenings: Receiver<Happening>,
        paused: Arc<AtomicBool>,
    ) -> Result<(), End> {
        let mut schedule = schedule::schedule(self.plan(), self.plan().length, self.seed);
        let mut impossible: Vec<(What, String)> = What::ALL
            .iter()
            .filter(|(what, _)| schedule.iter().any(|planned| planned.what == *what))
            .filter_map(|(what, name)| Some((*what, format!("{name}: {}", fleet.can(*what).err()?))))
            .collect();
        schedule.retain(|planned| fleet.can(planned.what).is_ok());
        // A fleet that was there is taken as it is; one of the drill's own could have been made for the plan, but for what only some brokers can do.
        let owned = self.config.owns_processes() && impossible.iter().any(|(what, _)| !what.is_left_out());
        if (owned || schedule.is_empty())
            && let Some((_, why)) = impossible.pop()
        {
            return Err(End::Cannot(why));
        }
        for (_, why) in impossible {
            self.display.console.line(&format!("drill: left out: {why}"));
        }
        self.display.planned = Some(schedule.len() as u64);
        let (commands, obeyed) = bounded(4);
        let teller = Teller { clock: self.clock, facts: self.events.clone() };
        let director = Director { fleet, schedule: schedule.into(), teller, commands: obeyed, happenings, paused };
        let thread = threads::spawn("director", self.died.clone(), move || director.run());
        if let Some(side) = &mut self.side {
            side.threads.push(thread);
            side.director = Some(commands);
        }
        Ok(())
    }

    fn load_options(&self, paused: Arc<AtomicBool>) -> LoadOptions {
        LoadOptions {
            gateways: self.place.gateways.clone(),
            rate: self.plan().load.rate,
            length: self.config.length(),
            callers: self.plan().load.callers,
            paused,
            first: 0,
            most: u64::MAX,
        }
    }

    fn command(&self, command: Command) -> bool {
        let director = self.side.as_ref().and_then(|side| side.director.as_ref());
        // Room for every command of a run.
        director.is_some_and(|director| director.send(command).is_ok())
    }

    fn wait_for_kafka(&mut self) -> Result<(), End> {
        let deadline = self.now() + KAFKA_WAIT;
        while !self.kafka_read && self.now() < deadline && !self.signals.first.is_triggered() {
            self.step()?;
        }
        Ok(())
    }

    fn begin(&mut self, target: &str, owned: bool) {
        let names = self.place.gateways.iter().map(GatewayAddress::to_string).collect::<Vec<_>>().join(", ");
        let rate = match self.plan().load.rate {
            Some(rate) => format!("{rate} tasks per second"),
            None => format!("{} callers, each as fast as it is answered,", self.plan().load.callers),
        };
        let length =
            self.config.length().map_or("until Ctrl-C".to_owned(), |length| format!("for {} s", length.as_secs_f64()));
        let faults = self.display.planned.map(|planned| format!(", {planned} actions")).unwrap_or_default();
        self.display.console.line(&format!("drill: {rate} to {names}, {length}{faults}; seed {}", self.seed));
        let brokers = if self.config.owns_broker() { self.place.bootstrap.len() as u32 } else { 0 };
        let begin = Begin {
            unix: self.clock.unix(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            plan: self.plan().name.clone(),
            seed: self.seed,
            target: target.to_owned(),
            owns_processes: owned,
            owns_broker: self.config.owns_broker(),
            own_handler: self.config.answers == Checked::Any,
            tests: self.plan().tests.clone(),
            drain_timeout_ms: milliseconds(self.place.drain_timeout),
            gateway_grace_ms: milliseconds(self.place.gateway_grace),
            worker_timeout_ms: milliseconds(self.place.worker_timeout),
            concurrency: self.place.concurrency,
            max_deliveries: self.place.max_deliveries,
            lock_ms: milliseconds(self.place.lock),
            brokers,
            pauses: self.place.pauses,
        };
        self.ledger.write(Line { at: 0.0, fact: Fact::Begin(begin) });
        self.display.begin(self.now());
    }

    /// While the load goes on and until the last answer is there.
    fn watch(&mut self) -> Result<(), End> {
        let mut ended: Option<Duration> = None;
        let wait = ANSWERS_WAIT + self.plan().longest_work();
        while let Some(load) = &self.load {
            if load.is_done() {
                break;
            }
            let now = self.now();
            if self.signals.first.is_triggered() && load.stop.trigger() {
                self.cut_short = self.config.length().is_some();
                self.display.console.at(now, &format!("{} received: no more tasks are sent", self.signals.name()));
            }
            match ended {
                None if load.has_ended() => {
                    ended = Some(now);
                    // Nobody who still waits for an answer shall wait for a worker that is frozen for good.
                    self.command(Command::Heal { early: self.cut_short });
                }
                Some(since) if now >= since + wait => {
                    load.hurry.trigger();
                }
                _ => {}
            }
            self.step()?;
        }
        if ended.is_none() {
            // The last answer came together with the end of the load.
            self.command(Command::Heal { early: self.cut_short });
        }
        self.drain();
        let (at, open) = (self.now(), self.account.open());
        self.display.console.at(at, &format!("the load has ended; {open} outcomes are unknown and asked for"));
        Ok(())
    }

    /// What was told last.
    fn drain(&mut self) {
        while let Some(event) = self.taken.as_ref().and_then(|taken| taken.try_recv().ok()) {
            self.take(event);
        }
    }

    /// Until everything is known, or nothing moves any more; then past everything that happens by itself later.
    fn settle(&mut self, owned: bool) -> Result<(), End> {
        if self.side.as_ref().is_some_and(|side| side.director.is_some()) {
            self.wait_for(Phase::Healed, HEAL_WAIT, "the fleet is not whole again")?;
        }
        let patience = if self.outage { MISSING_WAIT } else { UNKNOWN_WAIT } + 2 * self.plan().longest_work();
        let (mut open, mut moved) = (self.account.open(), self.now());
        while self.account.open() > 0 && self.now() < moved + patience {
            self.account.close_unaccepted(self.tasks_read);
            if self.account.open() < open {
                (open, moved) = (self.account.open(), self.now());
            }
            if !owned && self.kafka_read && self.history.nobody_works() && self.now() > moved + UNKNOWN_WAIT {
                break;
            }
            self.step()?;
        }
        // A lock that was held when the last fault came runs out, and what comes of that is seen.
        while self.disturbed.is_some_and(|disturbed| self.now() < disturbed + LOCK_WAIT) {
            self.step()?;
        }
        let deadline = self.now() + SHOWN_WAIT;
        while self.kafka_read && self.now() < deadline && !self.history.is_settled(self.now()) {
            self.step()?;
        }
        if owned {
            self.probe()?;
            self.stop_fleet()?;
        }
        Ok(())
    }

    /// Everything is well again: whatever is sent now has to be served, and what is done has to be what it was.
    fn probe(&mut self) -> Result<(), End> {
        self.write(Fact::Healed);
        self.display.phase = "probing";
        let gateways = self.place.gateways.len();
        let options = LoadOptions {
            rate: None,
            length: None,
            callers: 2 * gateways,
            first: AFTERWARDS,
            most: PROBES * gateways as u64,
            ..self.load_options(Arc::default())
        };
        let probes = Load::start(&options, &self.texts, &self.events, &self.died);
        let deadline = self.now() + PROBE_WAIT;
        while !probes.is_done() {
            if self.now() >= deadline {
                probes.stop.trigger();
                probes.hurry.trigger();
            }
            self.step()?;
        }
        join(probes.threads);
        let tasks = self.account.some_done(self.now().saturating_sub(READ_BACK_OF), READ_BACK);
        while self.asking {
            self.step()?;
        }
        let asked = self.side.as_ref().and_then(|side| side.lookups.clone());
        self.asking = asked.is_some_and(|ask| ask.send(Question::ReadBack(tasks)).is_ok());
        let deadline = self.now() + PROBE_WAIT;
        while self.asking && self.now() < deadline {
            self.step()?;
        }
        self.drain();
        Ok(())
    }

    /// The last stop is one more that is judged.
    fn stop_fleet(&mut self) -> Result<(), End> {
        self.command(Command::StopWorkers);
        self.wait_for(Phase::WorkersStopped, self.place.drain_timeout + STOP_WAIT, "the workers do not stop")?;
        let deadline = self.now() + SHOWN_WAIT;
        let shown =
            |run: &Self| run.views.iter().flatten().all(|view| view.active.is_empty() && view.stopping.is_empty());
        while self.now() < deadline && !shown(self) {
            self.step()?;
        }
        self.command(Command::StopGateways);
        self.wait_for(Phase::GatewaysStopped, self.place.gateway_grace + STOP_WAIT, "the gateways do not stop")
    }

    fn wait_for(&mut self, phase: Phase, limit: Duration, otherwise: &str) -> Result<(), End> {
        let deadline = self.now() + limit;
        while self.phase != Some(phase) {
            if self.now() >= deadline {
                let at = self.now();
                self.display.console.at(at, &format!("{otherwise} after {} s; judging what there is", limit.as_secs()));
                return Ok(());
            }
            self.step()?;
        }
        Ok(())
    }

    /// Whether it could be done.
    fn audit(&mut self, audit: &mut Audit, cluster: &Cluster) -> Result<bool, End> {
        let at = self.now();
        self.display.phase = "audit";
        self.display.console.at(at, "reading the topics");
        let stop = self.signals.second.clone();
        let mut outcome = Ok(());
        match audit.lag(cluster, &stop) {
            Ok(tasks) => self.write(Fact::Lag { tasks }),
            Err(error) => outcome = Err(error.to_string()),
        }
        let ledger = &mut self.ledger;
        let read = audit.read(cluster, &stop, &mut |line| ledger.write(line));
        outcome = outcome.and(read.map_err(|error| error.to_string()));
        if stop.is_triggered() {
            return Err(End::Forced);
        }
        if let Err(why) = &outcome {
            let at = self.now();
            self.display.console.at(at, &format!("the topics cannot be audited: {}", escape(why)));
        }
        Ok(outcome.is_ok())
    }

    fn judge(&mut self, audited: bool) -> Verdict {
        let ending = Ending {
            cut_short: self.cut_short,
            audited,
            nobody_works: !self.config.owns_processes() && self.history.nobody_works(),
        };
        self.write(Fact::End(ending));
        let lines = self.ledger.lines();
        // It has just got its last line.
        judge::judge(lines, &Circumstances::of(lines, self.ledger.path()).unwrap_or_default())
    }

    /// Takes what comes within a tick, and does what is due.
    fn step(&mut self) -> Result<(), End> {
        let received = match &self.taken {
            Some(taken) => taken.recv_timeout(TICK),
            None => Err(RecvTimeoutError::Disconnected),
        };
        match received {
            Ok(event) => {
                self.take(event);
                // What has come together is taken together, but not for ever.
                for _ in 0..EVENTS {
                    let Some(event) = self.taken.as_ref().and_then(|taken| taken.try_recv().ok()) else { break };
                    self.take(event);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(End::Died),
        }
        let now = self.now();
        for line in self.history.tick(now) {
            self.disturbed = Some(now);
            self.display.console.at(now, &line);
        }
        self.ask(now);
        self.show(now);
        if self.signals.second.is_triggered() {
            Err(End::Forced)
        } else if self.display.console.is_closed() {
            Err(End::Unread)
        } else if self.died.is_triggered() {
            Err(End::Died)
        } else {
            Ok(())
        }
    }

    fn ask(&mut self, now: Duration) {
        let Some(side) = &self.side else { return };
        if now >= self.fleet_asked + FLEET_EVERY
            && side.fleet.as_ref().is_some_and(|fleet| fleet.try_send(Question::Fleet).is_ok())
        {
            self.fleet_asked = now;
        }
        if self.asking || now < self.asked + ASK_EVERY {
            return;
        }
        let tasks = self.account.to_ask();
        if !tasks.is_empty() && side.lookups.as_ref().is_some_and(|ask| ask.try_send(Question::Tasks(tasks)).is_ok()) {
            (self.asking, self.asked) = (true, now);
        }
    }

    fn write(&mut self, fact: Fact) {
        let at = self.clock.now();
        self.ledger.write(Line { at, fact });
    }

    fn gateway(&self, index: usize) -> String {
        if self.config.owns_processes() {
            return format!("gateway_{}", index + 1);
        }
        self.place.gateways.get(index).map(GatewayAddress::to_string).unwrap_or_default()
    }

    fn take(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Submitted { number, gateway, at } => {
                self.account.submitted += 1;
                let Special { repeats, asynchronous, poison, .. } = self.texts.special(number);
                let (gateway, work_ms) = (self.gateway(gateway), self.texts.work_ms(number));
                let fact = Fact::Submitted { number, gateway, work_ms, repeats, asynchronous, poison };
                self.ledger.write(Line { at: self.clock.at(at), fact });
            }
            Event::Late { at } => self.ledger.write(Line { at: self.clock.at(at), fact: Fact::Late }),
            Event::Posted { number, answer, took, at } => {
                self.account.told += 1;
                self.account.note(number, &answer, now);
                if answer.outcome == super::fact::Kind::Answered {
                    self.display.answered(now, took);
                }
                let fact = Fact::Answered { number, took_ms: took.as_secs_f64() * 1e3, answer };
                self.ledger.write(Line { at: self.clock.at(at), fact });
            }
            Event::Found { number, gateway, answer } => {
                self.account.note(number, &answer, now);
                let gateway = self.gateway(gateway);
                self.write(Fact::Fetched { number, gateway, answer });
            }
            Event::ReadBack { number, gateway, task_id, response } => {
                let status = response.as_ref().map(|response| response.status);
                let mark = response.as_ref().map(|response| outcome::mark(&response.body));
                let (gateway, is_result) = (self.gateway(gateway), response.as_ref().is_some_and(outcome::is_result));
                self.write(Fact::ReadBack { number, gateway, task_id, status, mark, is_result });
            }
            Event::AskedAll => self.asking = false,
            Event::Fleet { gateway, view } => self.take_view(gateway, view),
            Event::Tasks(tasks) => {
                self.tasks_read = now;
                for (number, task_id) in tasks {
                    for number in self.texts.sharing(number) {
                        self.account.learn(number, &task_id);
                    }
                }
            }
            Event::Read { answered, statuses } => self.take_read(answered, &statuses, now),
            Event::Away(why) => {
                self.kafka_away = true;
                self.history.lost_kafka(now);
                self.display.console.at(now, &format!("Kafka does not answer ({}); trying on", escape(&why)));
            }
            Event::Fact(line) => self.take_fact(line),
            Event::Phase(phase) => self.phase = Some(phase),
        }
    }

    fn take_fact(&mut self, line: Line) {
        let at = Duration::try_from_secs_f64(line.at).unwrap_or_default();
        self.display.note(&line.fact);
        match &line.fact {
            Fact::Ordered { what, target, detail, .. } => {
                let target = target.as_deref().map(|target| format!(" {}", escape(target))).unwrap_or_default();
                self.display.console.at(at, &format!("⚡ {what}{target} {detail}"));
            }
            Fact::Carried { done: false, detail, .. } => {
                self.display.console.at(at, &format!("⚡ not done: {}", escape(detail)));
            }
            Fact::Signalled { signal, process, .. } => {
                let is_broker = process.starts_with("broker");
                if signal != "SIGTERM" || is_broker {
                    self.disturbed = Some(self.now());
                }
                self.outage |= is_broker;
            }
            Fact::Exited { process, .. } => {
                self.history.ended(process);
                self.forget_view(process);
            }
            Fact::Started { process, .. } => self.forget_view(process),
            _ => {}
        }
        self.ledger.write(line);
    }

    /// What a new process shows is news, though it be what the one before had shown.
    fn forget_view(&mut self, process: &str) {
        let gateway = (0..self.views.len()).find(|index| self.gateway(*index) == process);
        if let Some(view) = gateway.and_then(|index| self.views.get_mut(index)) {
            *view = None;
        }
    }

    fn take_read(&mut self, answered: Option<Instant>, statuses: &[crate::task::WorkerStatus], now: Duration) {
        self.kafka_read = true;
        if std::mem::take(&mut self.kafka_away) {
            self.display.console.at(now, "Kafka answers again");
        }
        let outage = answered.and_then(|answered| self.history.read(Duration::from_secs_f64(self.clock.at(answered))));
        if let Some((since, until)) = outage {
            (self.outage, self.disturbed) = (true, Some(now));
            self.account.postpone(now);
            let fact = Fact::KafkaAway { until: until.as_secs_f64() };
            self.ledger.write(Line { at: since.as_secs_f64(), fact });
        }
        for status in statuses {
            for line in self.history.hear(status, now) {
                self.display.console.at(now, &line);
            }
        }
    }

    fn take_view(&mut self, gateway: usize, view: Result<Value, String>) {
        let name = self.gateway(gateway);
        let Some(known) = self.views.get_mut(gateway) else { return };
        let Ok(view) = view else {
            *known = None;
            return;
        };
        let listed = |shutting_down: bool| {
            let workers = view.get("workers").and_then(Value::as_object).into_iter().flatten();
            let ids = workers.filter(|(_, worker)| {
                worker.get("is_responsive") == Some(&Value::Bool(true))
                    && (worker.get("status").and_then(Value::as_str) == Some("shutdown_started")) == shutting_down
            });
            ids.map(|(id, _)| id.clone()).collect::<Vec<_>>()
        };
        let (active, stopping) = (listed(false), listed(true));
        // Only what is new: heartbeats change nothing.
        let new = known.as_ref().is_none_or(|known| (&known.active, &known.stopping) != (&active, &stopping));
        *known = Some(View { told: view, active: active.clone(), stopping: stopping.clone() });
        if new {
            self.write(Fact::Fleet { gateway: name, active, stopping });
        }
    }

    fn show(&mut self, now: Duration) {
        let counts = Counts {
            sent: self.account.submitted - self.account.refused.min(self.account.submitted),
            waiting: self.account.waiting(),
            answered: self.account.answered,
            refused: self.account.refused,
            unknown: self.account.open(),
            failed: self.account.failed,
            late: self.load.as_ref().map_or(0, Load::late),
        };
        let view = self.views.iter().flatten().map(|view| &view.told).next();
        self.display.show(now, counts, view);
    }

    /// Ends all threads, and says what there is to say.
    fn finish(mut self, outcome: Result<Verdict, End>) -> ExitCode {
        let verdict = match outcome {
            Ok(verdict) => verdict,
            Err(end) => {
                let code = self.say_end(&end);
                // At once: threads that still wait for somebody end with the process; what the drill has started ends now.
                self.end_side(matches!(end, End::Forced));
                return code;
            }
        };
        self.end_side(false);
        let code = verdict.exit_code();
        let ledger_kept = self.ledger.flush().map_err(|error| format!("the ledger: {error}"));
        let written = output::write(&self.config.outputs, self.ledger.lines(), &verdict).and(ledger_kept);
        if let Err(why) = &written {
            self.display.console.error(why);
        }
        self.display.console.verdict(&verdict);
        match (written, verdict.conclusion) {
            (Err(_), Conclusion::Held) => ExitCode::Fatal,
            _ => code,
        }
    }

    fn say_end(&mut self, end: &End) -> ExitCode {
        match end {
            End::Forced => {
                self.display.console.end_bar();
                self.display.console.line("verdict: NONE: a second signal ended the drill at once");
                ExitCode::Forced
            }
            End::Unread => ExitCode::Fatal,
            End::Died => {
                self.display.console.end_bar();
                self.display.console.line("verdict: COULD NOT RUN: a part of the drill failed, see above");
                ExitCode::Fatal
            }
            End::Cannot(why) => {
                self.display.console.error(why);
                ExitCode::Fatal
            }
        }
    }

    /// `at_once`: threads that wait for a gateway are not waited for.
    fn end_side(&mut self, at_once: bool) {
        // The receiver first: whoever still has something to tell must not wait for room.
        self.taken = None;
        self.command(Command::End);
        let Some(mut side) = self.side.take() else { return };
        side.hurry.trigger();
        side.interrupter.interrupt();
        (side.fleet, side.lookups) = (None, None);
        if let Some(load) = self.load.take() {
            load.stop.trigger();
            load.hurry.trigger();
            if !at_once {
                join(load.threads);
            }
        }
        if at_once {
            side.threads.retain(|thread| thread.name() == "director");
        }
        join(side.threads);
    }
}

fn join(threads: Vec<Thread>) {
    for thread in threads {
        // How it ended was logged where it happened.
        let _ = thread.join();
    }
}

fn milliseconds(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}
