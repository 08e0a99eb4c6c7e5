//! A fleet of processes that the drill has started itself, on a broker of its own or on one that runs.
//!
//! Every process is a slot that is filled or empty. What is to happen with a slot later (a thaw, a start, a second signal) is written
//! into it with its moment; the director looks in when the first of them is due. Nothing here blocks but the start of a process; what is done to the
//! broker is done by a thread of its own, [`broker_work`](super::broker_work).

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::config::values::show_duration;
use crate::devbroker::Bites;
use crate::journal::JOURNAL;
use crate::kafka::{BrokerAddress, ClientOptions, Cluster};
use crate::reserved_port::ReservedPort;
use crate::stop::Stop;

use super::broker::Broker;
use super::broker_work::{BrokerWork, drawn_node};
use super::fact::Fact;
use super::fleet::{Attempt, Fleet, LOCK, MAX_DELIVERIES, Place, Teller};
use super::hits::Hits;
use super::http::Client;
use super::leaders::Leaders;
use super::options::GatewayAddress;
use super::plan::{FaultPlan, FleetPlan, What, Who};
use super::process::{Ears, Happened, Happening, Launch, Process};
use super::schedule::Planned;
use super::starts::Starts;

/// How long a program may take to be ready; a broker that has just started is slow.
const START: Duration = Duration::from_secs(60);
/// Between the first signal and the second.
const SECOND_SIGNAL: Duration = Duration::from_millis(150);
/// A worker with a task that it has had for so long is still busy when a signal reaches it.
const BUSY: Duration = Duration::from_millis(40);
/// One with such a task has it for seconds.
const LONG: Duration = Duration::from_millis(600);
/// How often what cannot tell by itself is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long a fault waits for its request.
const FAULT_WAIT: Duration = Duration::from_secs(10);
/// How often the journal is read.
const READ: Duration = Duration::from_millis(50);
/// How long a gateway that was told to stop is asked for whether it is ready, until it says that it is not.
const READY_LIMIT: Duration = Duration::from_millis(250);
/// What a gateway allows between two words of a worker, and how often a worker speaks. Told to the programs, whatever stands in the drill's own
/// environment: the verdict counts on them.
const WORKER_TIMEOUT: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(1);
/// What is left of `STOP_GRACE_PERIOD` after `DRAIN_TIMEOUT`.
const GRACE_BEYOND_DRAIN: Duration = Duration::from_secs(15);
const GATEWAY_GRACE: Duration = Duration::from_secs(30);

/// What a native fleet is made of.
#[derive(Clone, Debug)]
pub(super) struct NativeOptions {
    pub(super) plan: FleetPlan,
    /// Of the tasks topic.
    pub(super) partitions: u32,
    /// See [`Plan::outlasts_drain`](super::plan::Plan::outlasts_drain).
    pub(super) outlasts_drain: Option<Duration>,
    pub(super) worker: PathBuf,
    pub(super) gateway: PathBuf,
    /// For logs, and for the data of a real broker.
    pub(super) folder: PathBuf,
    pub(super) tasks_topic: String,
    pub(super) results_topic: String,
    pub(super) group: String,
}

/// What becomes of a slot whose process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// It stays empty.
    Stay,
    /// It is filled again after so long.
    Start(Duration),
}

/// What is to be done with a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Start,
    Thaw,
    SecondSignal,
}

/// A place for one process.
#[derive(Debug)]
struct Slot {
    launch: Launch,
    is_worker: bool,
    process: Option<Process>,
    ready: bool,
    stopping: bool,
    after: After,
    due: Vec<(Instant, Due)>,
    action: Option<u32>,
}

/// See the module documentation.
pub(super) struct Native {
    options: NativeOptions,
    broker: Broker,
    ears: Ears,
    teller: Teller,
    starts: Starts,
    /// When the journal was read last.
    read: Instant,
    slots: BTreeMap<String, Slot>,
    gateways: Vec<GatewayAddress>,
    /// Held for the whole run: a gateway that was stopped or killed comes back at its address.
    ports: Vec<ReservedPort>,
    hits: Hits,
    /// Workers that are to be restarted one after another, and the action that says so.
    rolling: VecDeque<(String, u32)>,
    rolled: Option<String>,
    leaders: Leaders,
    broker_work: Option<BrokerWork>,
    /// Faults that wait for their request: since when, of which action, how often they were done.
    faults: Vec<(Instant, u32, Bites)>,
    /// Nobody stays away for longer than his end takes.
    healing: bool,
    /// What is left of the plan need not be done.
    cut_short: bool,
}

impl Native {
    /// Starts all of it and waits until it is ready.
    ///
    /// # Errors
    /// What did not start, and where to look.
    pub(super) fn start(
        options: NativeOptions,
        broker: Broker,
        teller: Teller,
        ears: Ears,
        happenings: &crossbeam_channel::Receiver<Happening>,
        signal: &Stop,
    ) -> Result<Self, String> {
        let starts = Starts::create(&options.folder)?;
        let leaders = Leaders {
            cluster: Cluster::new(ClientOptions::new(broker.addresses(), "drill-nodes")),
            tasks_topic: options.tasks_topic.clone(),
            results_topic: options.results_topic.clone(),
        };
        let mut native = Self {
            options,
            broker,
            ears,
            teller,
            starts,
            read: Instant::now(),
            slots: BTreeMap::new(),
            gateways: Vec::new(),
            ports: Vec::new(),
            hits: Hits::default(),
            rolling: VecDeque::new(),
            rolled: None,
            leaders,
            broker_work: None,
            faults: Vec::new(),
            healing: false,
            cut_short: false,
        };
        for node in 1..=native.broker.nodes().max(1) {
            native.teller.tell(Fact::Started { process: native.broker.process(node), pid: 0 });
            native.teller.tell(Fact::Ready { process: native.broker.process(node) });
        }
        for number in 1..=native.options.plan.gateways {
            let port = ReservedPort::any().map_err(|error| format!("no port for a gateway: {error}"))?;
            let address = GatewayAddress { host: port.address().ip().to_string(), port: port.address().port() };
            native.ports.push(port);
            native.gateways.push(address.clone());
            let name = format!("gateway_{number}");
            let launch = native.gateway_launch(&name, &address);
            native.add(name, launch, false)?;
        }
        for number in 1..=native.options.plan.workers {
            native.add_worker(number)?;
        }
        native.wait_until_ready(happenings, signal)?;
        Ok(native)
    }

    /// Where it is.
    pub(super) fn place(&self) -> Place {
        Place {
            gateways: self.gateways.clone(),
            bootstrap: self.broker.addresses(),
            tasks_topic: self.options.tasks_topic.clone(),
            results_topic: self.options.results_topic.clone(),
            group: self.options.group.clone(),
            drain_timeout: self.options.plan.drain_timeout,
            gateway_grace: GATEWAY_GRACE,
            worker_timeout: WORKER_TIMEOUT,
            concurrency: self.options.plan.concurrency,
            max_deliveries: MAX_DELIVERIES,
            lock: LOCK,
            takes_work: true,
            pauses: self.broker.pauses(),
        }
    }

    fn wait_until_ready(
        &mut self,
        happenings: &crossbeam_channel::Receiver<Happening>,
        signal: &Stop,
    ) -> Result<(), String> {
        let deadline = Instant::now() + START;
        let mut clients: Vec<Client> =
            self.gateways.iter().map(|gateway| Client::new(gateway.clone(), signal.clone())).collect();
        loop {
            while let Ok(happening) = happenings.recv_timeout(LOOK) {
                let ended = matches!(happening.what, Happened::Ended { .. }).then(|| happening.process.clone());
                self.happened(happening);
                if let Some(name) = ended {
                    return Err(format!("{name} ended at its start: {}", self.last_words(&name)));
                }
            }
            clients.retain_mut(|client| {
                !client.get("/readyz", Duration::from_secs(1)).is_ok_and(|answer| answer.status == 200)
            });
            if clients.is_empty() && self.slots.values().all(|slot| slot.ready || !slot.is_worker) {
                for slot in self.slots.values_mut() {
                    slot.ready = true;
                }
                return Ok(());
            }
            if signal.is_triggered() {
                return Err("ended by a signal before the fleet was ready".to_owned());
            }
            if Instant::now() >= deadline {
                let waiting = self.slots.iter().find(|(_, slot)| !slot.ready).map_or("a gateway", |(name, _)| name);
                return Err(format!(
                    "{waiting} is not ready after {}: {}",
                    show_duration(START),
                    self.last_words(waiting)
                ));
            }
        }
    }

    /// The last line of a program's log.
    fn last_words(&self, name: &str) -> String {
        let Some(slot) = self.slots.get(name) else { return "it has no log".to_owned() };
        let log = std::fs::read_to_string(&slot.launch.log).unwrap_or_default();
        let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        format!("{last} ({})", slot.launch.log.display())
    }

    fn add(&mut self, name: String, launch: Launch, is_worker: bool) -> Result<(), String> {
        let slot = Slot {
            launch,
            is_worker,
            process: None,
            ready: false,
            stopping: false,
            after: After::Stay,
            due: Vec::new(),
            action: None,
        };
        self.slots.insert(name.clone(), slot);
        self.fill(&name)
    }

    fn add_worker(&mut self, number: u32) -> Result<(), String> {
        let name = format!("worker_{number}");
        let plan = &self.options.plan;
        let grace = plan.drain_timeout + GRACE_BEYOND_DRAIN;
        let mut environment = self.environment();
        environment.extend([
            ("WORKER_ID".to_owned(), name.clone()),
            ("WORKER_GROUP".to_owned(), self.options.group.clone()),
            ("WORKER_CONCURRENCY".to_owned(), plan.concurrency.to_string()),
            ("DRAIN_TIMEOUT".to_owned(), show_duration(plan.drain_timeout)),
            ("STOP_GRACE_PERIOD".to_owned(), show_duration(grace)),
            ("HEARTBEAT_INTERVAL".to_owned(), show_duration(HEARTBEAT)),
            ("MAX_DELIVERIES".to_owned(), MAX_DELIVERIES.to_string()),
            ("LOG_LEVEL".to_owned(), "info".to_owned()),
            (JOURNAL.to_owned(), self.starts.path().to_string_lossy().into_owned()),
        ]);
        let launch = self.launch(&name, self.options.worker.clone(), environment);
        self.add(name, launch, true)
    }

    fn gateway_launch(&self, name: &str, address: &GatewayAddress) -> Launch {
        let mut environment = self.environment();
        environment.extend([
            ("HTTP_ADDR".to_owned(), address.authority()),
            ("WORKER_GROUP".to_owned(), self.options.group.clone()),
            ("STOP_GRACE_PERIOD".to_owned(), show_duration(GATEWAY_GRACE)),
            ("WORKER_TIMEOUT".to_owned(), show_duration(WORKER_TIMEOUT)),
            ("LOG_LEVEL".to_owned(), "info".to_owned()),
        ]);
        self.launch(name, self.options.gateway.clone(), environment)
    }

    fn environment(&self) -> Vec<(String, String)> {
        let brokers: Vec<String> = self.broker.addresses().iter().map(BrokerAddress::to_string).collect();
        vec![
            ("KAFKA_BOOTSTRAP_SERVERS".to_owned(), brokers.join(",")),
            ("TASKS_TOPIC".to_owned(), self.options.tasks_topic.clone()),
            ("RESULTS_TOPIC".to_owned(), self.options.results_topic.clone()),
            ("TASKS_PARTITIONS".to_owned(), self.options.partitions.to_string()),
            ("ALLOW_WORK_MS".to_owned(), "1".to_owned()),
        ]
    }

    fn launch(&self, name: &str, program: PathBuf, environment: Vec<(String, String)>) -> Launch {
        Launch { name: name.to_owned(), program, environment, log: self.options.folder.join(format!("{name}.log")) }
    }

    /// Starts the process of an empty slot.
    fn fill(&mut self, name: &str) -> Result<(), String> {
        let Some(slot) = self.slots.get_mut(name).filter(|slot| slot.process.is_none()) else { return Ok(()) };
        self.starts.forget(name, &self.teller);
        let process = Process::start(&slot.launch, &self.ears)?;
        self.teller.tell(Fact::Started { process: name.to_owned(), pid: process.pid() });
        // A gateway is asked for by those who need it.
        slot.ready = !slot.is_worker;
        (slot.stopping, slot.after, slot.process) = (false, After::Stay, Some(process));
        slot.due.clear();
        Ok(())
    }

    fn signal(&mut self, name: &str, signal: Signal, action: Option<u32>) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        let Some(process) = &mut slot.process else { return };
        // Told first: whoever sees what it does finds out why.
        self.teller.tell(Fact::Signalled { process: name.to_owned(), signal: signal.to_string(), action });
        process.signal(signal);
        match signal {
            Signal::SIGSTOP => process.frozen = true,
            Signal::SIGCONT => process.frozen = false,
            _ => slot.stopping = true,
        }
        if signal == Signal::SIGTERM && !slot.is_worker {
            self.ask_ready(name);
        }
    }

    /// What `/readyz` of a gateway says that was told to stop: asked until it is not ready any more or does not answer.
    fn ask_ready(&self, name: &str) {
        let index = name.strip_prefix("gateway_").and_then(|number| number.parse::<usize>().ok()?.checked_sub(1));
        let Some(address) = index.and_then(|index| self.gateways.get(index)) else { return };
        let mut client = Client::new(address.clone(), Stop::new());
        let deadline = Instant::now() + READY_LIMIT;
        let status = loop {
            let status = client.get("/readyz", READY_LIMIT).ok().map(|response| response.status);
            if status != Some(200) || Instant::now() >= deadline {
                break status;
            }
            client.rest(Duration::from_millis(5));
        };
        self.teller.tell(Fact::ReadyAsked { gateway: name.to_owned(), status });
    }

    /// Workers, or gateways, that run undisturbed.
    fn sound(&self, workers: bool) -> Vec<String> {
        let runs = |slot: &Slot| {
            slot.is_worker == workers
                && slot.ready
                && !slot.stopping
                && slot.process.as_ref().is_some_and(|process| !process.frozen)
        };
        self.slots.iter().filter(|(_, slot)| runs(slot)).map(|(name, _)| name.clone()).collect()
    }

    /// Whom an action hits; `Err`: nobody just now.
    fn choose(&self, planned: &Planned) -> Result<String, String> {
        let spared = |name: &String| self.hits.are_enough(self.starts.tasks(name));
        let mut all = self.sound(planned.what.has_worker());
        if !matches!(planned.who, Who::Named(_)) {
            all.retain(|name| !spared(name));
        }
        let busy_since = |name: &String| self.starts.busy_since(name);
        let long_since = |name: &String| self.starts.long_since(name, LONG);
        let wanted: Vec<String> = match &planned.who {
            Who::Named(wanted) => all.iter().filter(|name| *name == wanted).cloned().collect(),
            Who::Busy => {
                let busy = |name: &&String| busy_since(name).is_some_and(|since| since.elapsed() >= BUSY);
                all.iter().filter(busy).cloned().collect()
            }
            // The one that began last, and outlasts a drain where the plan has such tasks.
            Who::Long => {
                let newest = all.iter().filter_map(|name| Some((long_since(name)?, name))).max();
                let fresh = self.options.outlasts_drain.unwrap_or(Duration::MAX);
                let newest = newest.filter(|(since, _)| since.elapsed() <= fresh);
                newest.map(|(_, name)| name.clone()).into_iter().collect()
            }
            Who::Idle => all.iter().filter(|name| busy_since(name).is_none()).cloned().collect(),
            Who::Any | Who::All => all.clone(),
        };
        let index = (planned.draw % wanted.len().max(1) as u64) as usize;
        wanted.get(index).cloned().ok_or_else(|| match &planned.who {
            Who::Named(name) => format!("{name} does not run undisturbed"),
            Who::Busy | Who::Long if !all.is_empty() => "no worker has a long task in hand".to_owned(),
            Who::Idle if !all.is_empty() => "no worker is idle".to_owned(),
            _ => "none runs that is not stopping, frozen, about to start, or at a task that was hit twice".to_owned(),
        })
    }

    fn ordered(&self, number: u32, planned: &Planned, target: Option<&str>, detail: String) {
        let (what, target) = (planned.what.to_string(), target.map(str::to_owned));
        self.teller.tell(Fact::Ordered { action: number, what, target, detail });
    }

    fn carried(&self, number: u32, done: bool, detail: impl Into<String>) {
        self.teller.tell(Fact::Carried { action: number, done, detail: detail.into() });
    }

    /// A signal to one, and what follows.
    fn order_one(&mut self, number: u32, planned: &Planned) -> Attempt {
        self.starts.read(&self.teller);
        let name = match self.choose(planned) {
            Ok(name) => name,
            Err(why) => return Attempt::NotNow(why),
        };
        let length = planned.length;
        let lasting = length.map(|length| format!("for {:.1} s", length.as_secs_f64())).unwrap_or_default();
        self.ordered(number, planned, Some(&name), lasting);
        let (signal, after) = match planned.what {
            What::FreezeWorker => (Signal::SIGSTOP, After::Stay),
            What::KillWorker | What::KillGateway => (Signal::SIGKILL, length.map_or(After::Stay, After::Start)),
            What::StopWorker | What::StopGateway => (Signal::SIGTERM, length.map_or(After::Stay, After::Start)),
            _ => (Signal::SIGTERM, After::Start(Duration::ZERO)),
        };
        self.signal(&name, signal, Some(number));
        self.hits.add(self.starts.tasks(&name));
        let Some(slot) = self.slots.get_mut(&name) else { return Attempt::Begun };
        slot.action = Some(number);
        slot.after = after;
        match planned.what {
            What::FreezeWorker => slot.due.push((Instant::now() + length.unwrap_or_default(), Due::Thaw)),
            What::SecondSignal => slot.due.push((Instant::now() + SECOND_SIGNAL, Due::SecondSignal)),
            _ => {}
        }
        Attempt::Begun
    }

    fn order_all(&mut self, number: u32, planned: &Planned) -> Attempt {
        let all = self.sound(true);
        if all.is_empty() {
            return Attempt::NotNow("no worker runs undisturbed".to_owned());
        }
        if planned.what == What::KillWorker {
            self.ordered(number, planned, None, format!("all {}", all.len()));
            for name in &all {
                self.signal(name, Signal::SIGKILL, Some(number));
                if let Some(slot) = self.slots.get_mut(name) {
                    slot.after = planned.length.map_or(After::Stay, After::Start);
                }
            }
            self.carried(number, true, format!("killed {}", all.join(", ")));
            return Attempt::Begun;
        }
        if !self.rolling.is_empty() || self.rolled.is_some() {
            return Attempt::NotInTurn("the workers are being restarted already".to_owned());
        }
        self.ordered(number, planned, None, format!("all {}, one after another", all.len()));
        self.rolling = all.into_iter().map(|name| (name, number)).collect();
        self.roll();
        Attempt::Begun
    }

    /// Restarts the next worker of a rolling restart, unless one is under way.
    fn roll(&mut self) {
        let under_way = |name: &String| {
            self.slots
                .get(name)
                .is_some_and(|slot| (slot.process.is_some() && (!slot.ready || slot.stopping)) || !slot.due.is_empty())
        };
        if self.rolled.as_ref().is_some_and(under_way) {
            return;
        }
        self.rolled = None;
        while let Some((name, number)) = self.rolling.pop_front() {
            let last = self.rolling.is_empty();
            if self.sound(true).contains(&name) {
                self.signal(&name, Signal::SIGTERM, Some(number));
                if let Some(slot) = self.slots.get_mut(&name) {
                    slot.after = After::Start(Duration::ZERO);
                }
                self.rolled = Some(name);
            }
            if last {
                self.carried(number, true, "the last one is being restarted");
            }
            if self.rolled.is_some() {
                return;
            }
        }
    }

    fn start_one(&mut self, number: u32, planned: &Planned) -> Attempt {
        let empty = |slot: &Slot| slot.is_worker && slot.process.is_none() && slot.due.is_empty();
        let wanted = |name: &String| !matches!(&planned.who, Who::Named(wanted) if wanted != name);
        let found = self.slots.iter().find(|(name, slot)| empty(slot) && wanted(name));
        let Some(name) = found.map(|(name, _)| name.clone()) else {
            return Attempt::NotNow("no worker is away that does not come back by itself".to_owned());
        };
        self.ordered(number, planned, Some(&name), String::new());
        let outcome = self.fill(&name);
        self.carried(number, outcome.is_ok(), outcome.err().unwrap_or_else(|| format!("started {name}")));
        Attempt::Begun
    }

    fn scale(&mut self, number: u32, planned: &Planned) -> Attempt {
        // Those that come back by themselves count.
        let counts = |slot: &Slot| {
            slot.is_worker
                && (slot.process.is_some() && (!slot.stopping || slot.after != After::Stay)
                    || slot.due.iter().any(|(_, due)| *due == Due::Start))
        };
        let running: Vec<String> =
            self.slots.iter().filter(|(_, slot)| counts(slot)).map(|(name, _)| name.clone()).collect();
        let (now, wanted) = (running.len(), planned.to as usize);
        self.ordered(number, planned, None, format!("from {now} to {wanted}"));
        for name in running.iter().skip(wanted) {
            // One that is on its way out stays away; another signal would hurry it.
            if self.slots.get(name).is_some_and(|slot| !slot.stopping) {
                self.signal(name, Signal::SIGTERM, Some(number));
            }
            if let Some(slot) = self.slots.get_mut(name) {
                (slot.after, slot.stopping) = (After::Stay, true);
                slot.due.retain(|(_, due)| *due == Due::Thaw);
            }
        }
        let mut problem = None;
        let missing =
            (1..).filter(|number| !running.contains(&format!("worker_{number}"))).take(wanted.saturating_sub(now));
        for number in missing {
            let name = format!("worker_{number}");
            let outcome = match self.slots.get_mut(&name) {
                // It is on its way out, and comes back.
                Some(slot) if slot.process.is_some() => {
                    slot.after = After::Start(Duration::ZERO);
                    Ok(())
                }
                Some(_) => self.fill(&name),
                None => self.add_worker(number),
            };
            problem = problem.or(outcome.err());
        }
        self.carried(number, problem.is_none(), problem.unwrap_or_else(|| format!("{wanted} workers")));
        Attempt::Begun
    }

    fn order_broker(&mut self, number: u32, planned: &Planned) -> Attempt {
        if self.broker_work.is_some() {
            return Attempt::NotInTurn("something is being done to the broker already".to_owned());
        }
        let process = self.broker.process(drawn_node(planned, self.broker.nodes()));
        let target = (!matches!(planned.what, What::RollBrokers | What::MoveLeader)).then_some(process.as_str());
        let detail = planned.length.map(|length| format!("for {:.1} s", length.as_secs_f64())).unwrap_or_default();
        self.ordered(number, planned, target, detail);
        let (broker, leaders, teller) = (self.broker.clone(), self.leaders.clone(), self.teller.clone());
        let died = self.ears.died.clone();
        self.broker_work = Some(BrokerWork::begin(broker, leaders, teller, died, number, planned.clone()));
        Attempt::Begun
    }

    fn order_fault(&mut self, number: u32, planned: &Planned) -> Attempt {
        let Some(fault) = planned.fault else { return Attempt::NotNow("it is no fault".to_owned()) };
        let FaultPlan { fault: what, request, of_worker } = fault;
        let whose = if of_worker { "a worker" } else { "a gateway" };
        self.ordered(number, planned, None, format!("{what:?} at {request:?} of {whose}"));
        match self.broker.fault(fault, planned.length.unwrap_or_default()) {
            Some(bites) => self.faults.push((Instant::now(), number, bites)),
            None => self.carried(number, false, "faults on demand are the embedded broker's"),
        }
        Attempt::Begun
    }

    /// Faults that were done are carried out; no request came for those that have waited for long.
    fn look_after_faults(&mut self) {
        for (since, number, bites) in std::mem::take(&mut self.faults) {
            if bites.count() > 0 {
                self.carried(number, true, "it was done");
            } else if since.elapsed() >= FAULT_WAIT || self.healing {
                self.carried(number, self.cut_short, "no such request came");
            } else {
                self.faults.push((since, number, bites));
            }
        }
    }

    fn look_after_broker(&mut self) {
        let Some(outcome) = self.broker_work.as_mut().and_then(BrokerWork::outcome) else { return };
        let Some(work) = self.broker_work.take() else { return };
        let number = work.number;
        work.join(false);
        self.carried(number, outcome.is_ok(), outcome.unwrap_or_else(|problem| problem));
    }

    fn do_due(&mut self, name: &str, due: Due) {
        match due {
            Due::Thaw => {
                // Taken: its end, whenever that comes, is none of the freeze's any more.
                let action = self.slots.get_mut(name).and_then(|slot| slot.action.take());
                self.signal(name, Signal::SIGCONT, action);
                if let Some(number) = action {
                    self.carried(number, true, format!("{name} goes on"));
                }
            }
            Due::SecondSignal => self.signal(name, Signal::SIGTERM, self.slots.get(name).and_then(|slot| slot.action)),
            Due::Start => {
                if let Err(problem) = self.fill(name) {
                    log::error!("{problem}");
                }
            }
        }
    }

    fn ended(&mut self, name: &str, at: Instant, receipt: Option<Value>) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        let Some(process) = slot.process.take() else { return };
        let pid = process.pid();
        let (code, signal) = process.wait();
        self.starts.forget(name, &self.teller);
        (slot.ready, slot.due) = (false, Vec::new());
        let at = self.teller.clock.at(at);
        self.teller.tell_at(at, Fact::Exited { process: name.to_owned(), pid, code, signal, receipt });
        let action = slot.action.take();
        if let After::Start(wait) = slot.after {
            let wait = if self.healing { Duration::ZERO } else { wait };
            slot.due.push((Instant::now() + wait, Due::Start));
        }
        slot.stopping = false;
        if let Some(number) = action {
            let how = match (code, signal) {
                (Some(code), _) => format!("exit code {code}"),
                (None, Some(signal)) => format!("ended by signal {signal}"),
                (None, None) => "ended".to_owned(),
            };
            self.carried(number, true, format!("{name}: {how}"));
        }
    }

    fn stop_all(&mut self, workers: bool) {
        let names: Vec<String> =
            self.slots.iter().filter(|(_, slot)| slot.is_worker == workers).map(|(name, _)| name.clone()).collect();
        for name in names {
            if let Some(slot) = self.slots.get_mut(&name) {
                (slot.after, slot.due) = (After::Stay, Vec::new());
            }
            self.signal(&name, Signal::SIGTERM, None);
        }
    }
}

impl Fleet for Native {
    fn describe(&self) -> String {
        let mut described = format!("native, {}", self.broker.name());
        for (count, what) in [(self.broker.nodes(), " of {} nodes"), (self.options.partitions, ", {} partitions")] {
            if count > 1 {
                described.push_str(&what.replace("{}", &count.to_string()));
            }
        }
        described
    }

    fn can(&self, what: What) -> Result<(), String> {
        self.broker.can(what)
    }

    fn order(&mut self, number: u32, planned: &Planned) -> Attempt {
        match planned.what {
            What::Scale => self.scale(number, planned),
            What::StartWorker => self.start_one(number, planned),
            What::Pause => Attempt::Begun,
            What::Fault => self.order_fault(number, planned),
            what if what.has_broker() => self.order_broker(number, planned),
            _ if planned.who == Who::All => self.order_all(number, planned),
            _ => self.order_one(number, planned),
        }
    }

    fn happened(&mut self, happening: Happening) {
        let Happening { process: name, pid, what } = happening;
        let Some(slot) = self.slots.get_mut(&name) else { return };
        // A former process of this name has nothing more to say.
        if slot.process.as_ref().is_none_or(|process| process.pid() != pid) {
            return;
        }
        match what {
            Happened::Ready => {
                slot.ready = true;
                self.teller.tell(Fact::Ready { process: name });
            }
            Happened::Ended { at, receipt } => self.ended(&name, at, receipt),
        }
        self.roll();
    }

    fn due(&self) -> Option<Instant> {
        let slots = self.slots.values().flat_map(|slot| &slot.due).map(|(at, _)| *at);
        let broker = self.broker_work.as_ref().map(|work| work.look);
        slots.chain(broker).chain([self.read + READ]).min()
    }

    fn tick(&mut self) {
        self.look_after_broker();
        self.look_after_faults();
        let now = Instant::now();
        self.starts.read(&self.teller);
        self.read = now;
        let mut all: Vec<(Instant, String, Due)> = Vec::new();
        for (name, slot) in &mut self.slots {
            all.extend(slot.due.extract_if(.., |(at, _)| *at <= now).map(|(at, due)| (at, name.clone(), due)));
        }
        all.sort_by_key(|(at, ..)| *at);
        for (_, name, due) in all {
            self.do_due(&name, due);
        }
        self.roll();
    }

    fn cut_short(&mut self) {
        self.cut_short = true;
    }

    fn heal(&mut self) {
        self.healing = true;
        let left = std::mem::take(&mut self.rolling);
        if let Some((_, number)) = left.front() {
            let detail = format!("the load had ended before the last {} were restarted", left.len());
            self.carried(*number, self.cut_short, detail);
        }
        let now = Instant::now();
        if let Some(work) = &self.broker_work {
            work.hurry();
        }
        for (at, due) in self.slots.values_mut().flat_map(|slot| &mut slot.due) {
            if *due == Due::Start {
                *at = now;
            }
        }
        let frozen: Vec<String> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.process.as_ref().is_some_and(|process| process.frozen))
            .map(|(name, _)| name.clone())
            .collect();
        for name in frozen {
            if let Some(slot) = self.slots.get_mut(&name) {
                slot.due.retain(|(_, due)| *due != Due::Thaw);
            }
            self.do_due(&name, Due::Thaw);
        }
        // Somebody has to do what is left.
        if !self.slots.values().any(|slot| slot.is_worker && (slot.process.is_some() || !slot.due.is_empty())) {
            self.do_due("worker_1", Due::Start);
        }
        for number in 1..=self.options.plan.gateways {
            let name = format!("gateway_{number}");
            if self.slots.get(&name).is_some_and(|slot| slot.process.is_none() && slot.due.is_empty()) {
                self.do_due(&name, Due::Start);
            }
        }
        self.tick();
    }

    fn is_sound(&self) -> bool {
        self.broker_work.is_none()
            && self.slots.values().all(|slot| {
                slot.due.is_empty()
                    && slot.process.as_ref().is_none_or(|process| slot.ready && !slot.stopping && !process.frozen)
            })
    }

    fn stop_workers(&mut self) {
        self.stop_all(true);
    }

    fn stop_gateways(&mut self) {
        self.stop_all(false);
    }

    fn is_stopped(&self) -> bool {
        self.slots.values().all(|slot| slot.process.is_none() || !slot.stopping)
    }

    fn end(&mut self) {
        // The processes first: nothing that is done to the broker holds up their end.
        for slot in self.slots.values_mut() {
            if let Some(process) = slot.process.take() {
                process.signal(Signal::SIGKILL);
                process.wait();
            }
        }
        if let Some(work) = self.broker_work.take() {
            work.join(true);
        }
        if let Broker::Apache(_) = self.broker {
            for node in 1..=self.broker.nodes() {
                if let Err(problem) = self.broker.stop(node, true) {
                    log::error!("{problem}");
                }
            }
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.end();
    }
}
