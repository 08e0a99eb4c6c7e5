//! A fleet of processes that the drill starts, on a broker of its own or on a running one.
//!
//! Every process has a slot, which is filled or empty. Later steps of an action (a thaw, a start, a second signal)
//! stand in the slot with their times; the director calls `tick` when the first is due. Only the start of a process and
//! a request to `/readyz` block. Actions on the broker have a thread of their own, [`broker_work`](super::broker_work).
//! Made by `target`, owned by the director.

mod orders;
mod start;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use devbroker::Bites;
use kafka_share::{BrokerAddress, Cluster};
use lastcall::journal::JOURNAL;
use program::options::values::show_duration;
use program::reserved_port::ReservedPort;
use program::stop::Stop;

use super::broker::Broker;
use super::broker_work::{BrokerWork, drawn_node};
use super::fact::Fact;
use super::fleet::{Attempt, Fleet, Teller};
use super::hits::Hits;
use super::http::Client;
use super::leaders::Leaders;
use super::options::{NativeTarget, RunConfig};
use super::place::{GatewayAddress, Place};
use super::plan::{Plan, What, Who, drawn};
use super::process::{Ears, Happened, Happening, Launch, Process};
use super::schedule::Planned;
use super::starts::Starts;

/// How long a program may take to be ready; a broker is slow just after its start.
const START: Duration = Duration::from_secs(60);
/// Time between the first signal and the second.
const SECOND_SIGNAL: Duration = Duration::from_millis(150);
/// A worker whose task is this old is most likely still busy when a signal reaches it.
const BUSY: Duration = Duration::from_millis(40);
/// Minimum age of a long task, which will run for seconds.
const LONG: Duration = Duration::from_millis(600);
/// How often a starting gateway is asked whether it is ready.
const LOOK: Duration = Duration::from_millis(20);
/// How long a fault waits for its request.
const FAULT_WAIT: Duration = Duration::from_secs(10);
/// How often the journal is read.
const READ: Duration = Duration::from_millis(50);
/// How long the drill asks `/readyz` of a stopping gateway until it is not ready.
const READY_LIMIT: Duration = Duration::from_millis(250);
/// `HEARTBEAT_INTERVAL` of the workers, independent of the drill's own environment, because the verdict depends on it.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Part of the workers' `STOP_GRACE_PERIOD` after `DRAIN_TIMEOUT`.
const GRACE_BEYOND_DRAIN: Duration = Duration::from_secs(15);

/// The next step for a slot whose process has exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// The slot stays empty.
    Stay,
    /// A new process starts after this long.
    Start(Duration),
}

/// A later step of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Start,
    Thaw,
    Resume,
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

/// A native fleet.
pub(super) struct Native {
    plan: Plan,
    /// Partitions of the tasks topic.
    partitions: u32,
    worker: PathBuf,
    gateway: PathBuf,
    /// Folder of the logs, the journal and the data of a real broker.
    folder: PathBuf,
    /// Addresses and settings of the fleet.
    pub(super) place: Place,
    broker: Broker,
    ears: Ears,
    teller: Teller,
    starts: Starts,
    /// When the journal was read last.
    read: Instant,
    slots: BTreeMap<String, Slot>,
    /// Held for the whole run: a gateway that was stopped or killed comes back at its address.
    ports: Vec<ReservedPort>,
    hits: Hits,
    /// Workers that a rolling restart has not reached yet, with the number of its action.
    rolling: VecDeque<(String, u32)>,
    rolled: Option<String>,
    leaders: Leaders,
    broker_work: Option<BrokerWork>,
    /// Faults that wait for their request: since when, number of the action, how often they took effect.
    faults: Vec<(Instant, u32, Bites)>,
    /// A process that should run again starts as soon as its predecessor has exited.
    healing: bool,
    /// A signal ended the load: actions that are left need not be done.
    cut_short: bool,
}

impl Native {
    fn signal(&mut self, name: &str, signal: Signal, action: Option<u32>) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        let Some(process) = &mut slot.process else { return };
        // The fact before the signal, so that its effects follow it in the ledger.
        self.teller.tell(Fact::Signalled { process: name.to_owned(), signal: signal.to_string(), action, until: None });
        process.signal(signal);
        match signal {
            Signal::SIGSTOP => process.frozen = true,
            Signal::SIGCONT => process.frozen = false,
            Signal::SIGUSR1 | Signal::SIGUSR2 => {}
            _ => slot.stopping = true,
        }
        if signal == Signal::SIGTERM && !slot.is_worker {
            self.ask_ready(name);
        }
    }

    /// Asks `/readyz` of a stopping gateway until it is not ready or does not respond, and reports the last status.
    fn ask_ready(&self, name: &str) {
        let index = name.strip_prefix("gateway_").and_then(|number| number.parse::<usize>().ok()?.checked_sub(1));
        let Some(address) = index.and_then(|index| self.place.gateways.get(index)) else { return };
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

    /// Names of the workers, or of the gateways, that are ready, not stopping and not frozen.
    fn sound(&self, workers: bool) -> Vec<String> {
        let runs = |slot: &Slot| {
            slot.is_worker == workers
                && slot.ready
                && !slot.stopping
                && slot.process.as_ref().is_some_and(|process| !process.frozen)
        };
        self.slots.iter().filter(|(_, slot)| runs(slot)).map(|(name, _)| name.clone()).collect()
    }

    fn do_due(&mut self, name: &str, due: Due) {
        match due {
            Due::Thaw => {
                // Takes the action, so that a later exit is not attributed to this freeze.
                let action = self.slots.get_mut(name).and_then(|slot| slot.action.take());
                self.signal(name, Signal::SIGCONT, action);
                if let Some(number) = action {
                    self.carried(number, true, format!("{name} goes on"));
                }
            }
            Due::Resume => self.signal(name, Signal::SIGUSR2, None),
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
}

impl Fleet for Native {
    fn describe(&self) -> String {
        let mut described = format!("native, {}", self.broker.name());
        for (count, what) in [(self.broker.nodes(), " of {} nodes"), (self.partitions, ", {} partitions")] {
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
        // Ignores events of a former process of this name.
        if slot.process.as_ref().is_none_or(|process| process.pid() != pid) {
            return;
        }
        match what {
            // A quiet worker says it again when it goes on.
            Happened::Ready if slot.ready => {}
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
        slots.chain([self.read + READ]).min()
    }

    fn tick(&mut self) {
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

    fn heal(&mut self, early: bool) {
        (self.healing, self.cut_short) = (true, early);
        let left = std::mem::take(&mut self.rolling);
        if let Some((_, number)) = left.front() {
            let detail = format!("the load ended before the last {} were restarted", left.len());
            self.carried(*number, self.cut_short, detail);
        }
        let now = Instant::now();
        if let Some(work) = &self.broker_work {
            work.hurry();
        }
        for (at, due) in self.slots.values_mut().flat_map(|slot| &mut slot.due) {
            if matches!(due, Due::Start | Due::Resume) {
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
        // At least one worker must run for the tasks that are left.
        if !self.slots.values().any(|slot| slot.is_worker && (slot.process.is_some() || !slot.due.is_empty())) {
            self.do_due("worker_1", Due::Start);
        }
        for number in 1..=self.plan.fleet.gateways {
            let name = format!("gateway_{number}");
            if self.slots.get(&name).is_some_and(|slot| slot.process.is_none() && slot.due.is_empty()) {
                self.do_due(&name, Due::Start);
            }
        }
        self.tick();
    }

    fn is_sound(&self) -> bool {
        self.broker_work.as_ref().is_none_or(BrokerWork::has_ended)
            && self.slots.values().all(|slot| {
                slot.due.is_empty()
                    && slot.process.as_ref().is_none_or(|process| slot.ready && !slot.stopping && !process.frozen)
            })
    }

    fn stop(&mut self, workers: bool) {
        let names: Vec<String> =
            self.slots.iter().filter(|(_, slot)| slot.is_worker == workers).map(|(name, _)| name.clone()).collect();
        for name in names {
            if let Some(slot) = self.slots.get_mut(&name) {
                (slot.after, slot.due) = (After::Stay, Vec::new());
            }
            self.signal(&name, Signal::SIGTERM, None);
        }
    }

    fn is_stopped(&self) -> bool {
        self.slots.values().all(|slot| slot.process.is_none() || !slot.stopping)
    }

    fn end(&mut self) {
        // The processes first, so that an action on the broker does not delay their end.
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
