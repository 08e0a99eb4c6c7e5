//! An action of a plan: its kinds, its options, and how a plan writes them.
//!
//! Part of the [plan](super), which alone makes actions.

use std::fmt;
use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use devbroker::{Action, Kind};
use program::logging::escape;
use program::options::values;

use super::LONGEST;

/// The kinds of actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// SIGTERM; started again after `for`.
    StopWorker,
    /// SIGTERM; started again after its exit.
    RestartWorker,
    /// SIGTERM, and a second SIGTERM while it drains; started again after its exit.
    SecondSignal,
    /// SIGKILL; started again after `for`.
    KillWorker,
    /// SIGSTOP; SIGCONT after `for`.
    FreezeWorker,
    /// SIGUSR1, so that it takes nothing new; SIGUSR2 after `for`.
    QuietWorker,
    /// Starts a worker that does not run.
    StartWorker,
    /// Changes the number of workers to `to`.
    Scale,
    /// SIGTERM; started again after `for`.
    StopGateway,
    /// SIGTERM; started again after its exit.
    RestartGateway,
    /// SIGKILL; started again after `for`.
    KillGateway,
    /// Stops a node of the broker; started again after `for`.
    StopBroker,
    /// Stops a node and starts it again at once.
    RestartBroker,
    /// Restarts every node, each after the replicas of the node before are in sync again.
    RollBrokers,
    /// Kills a node; started again after `for`.
    KillBroker,
    /// Freezes a node for `for`.
    FreezeBroker,
    /// Drops all traffic from and to a node for `for`; its connections stay open. Embedded broker only.
    CutBroker,
    /// Moves the leader of a partition of the tasks or the results to another node.
    MoveLeader,
    /// Pauses the load for `for`.
    Pause,
    /// A network fault at one request to the embedded broker.
    Fault,
}

/// The target of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Worker,
    Fleet,
    Gateway,
    Node,
    Cluster,
    Load,
    Request,
}

/// Whether an action takes `for`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    No,
    May,
    Must,
}

impl What {
    /// All kinds with their names in plans.
    pub fn all() -> impl Iterator<Item = (Self, &'static str)> {
        KINDS.iter().map(|(what, name, ..)| (*what, *name))
    }

    fn kind(self) -> &'static (Self, &'static str, On, Length) {
        &KINDS[self as usize]
    }

    /// The name in plans.
    pub fn name(self) -> &'static str {
        self.kind().1
    }

    /// Whether the action is on a worker.
    pub fn has_worker(self) -> bool {
        self.kind().2 == On::Worker
    }

    /// Whether the action is on the broker.
    pub fn has_broker(self) -> bool {
        matches!(self.kind().2, On::Node | On::Cluster)
    }

    /// Whether only some brokers support it; a plan runs without it on the others.
    pub fn is_left_out(self) -> bool {
        self == Self::CutBroker || matches!(self.kind().2, On::Cluster | On::Request)
    }
}

/// Each kind with its name in plans, its target, and whether it takes `for`; in the order of [`What`].
const KINDS: [(What, &str, On, Length); 20] = [
    (What::StopWorker, "stop-worker", On::Worker, Length::May),
    (What::RestartWorker, "restart-worker", On::Worker, Length::No),
    (What::SecondSignal, "second-signal", On::Worker, Length::No),
    (What::KillWorker, "kill-worker", On::Worker, Length::May),
    (What::FreezeWorker, "freeze-worker", On::Worker, Length::Must),
    (What::QuietWorker, "quiet-worker", On::Worker, Length::Must),
    (What::StartWorker, "start-worker", On::Worker, Length::No),
    (What::Scale, "scale", On::Fleet, Length::No),
    (What::StopGateway, "stop-gateway", On::Gateway, Length::Must),
    (What::RestartGateway, "restart-gateway", On::Gateway, Length::No),
    (What::KillGateway, "kill-gateway", On::Gateway, Length::Must),
    (What::StopBroker, "stop-broker", On::Node, Length::Must),
    (What::RestartBroker, "restart-broker", On::Node, Length::No),
    (What::RollBrokers, "roll-brokers", On::Cluster, Length::No),
    (What::KillBroker, "kill-broker", On::Node, Length::Must),
    (What::FreezeBroker, "freeze-broker", On::Node, Length::Must),
    (What::CutBroker, "cut-broker", On::Node, Length::Must),
    (What::MoveLeader, "move-leader", On::Cluster, Length::No),
    (What::Pause, "pause", On::Load, Length::Must),
    (What::Fault, "fault", On::Request, Length::May),
];

// A row out of order does not compile. The last kind is named below.
const _: () = {
    let mut row = 0;
    while row < KINDS.len() {
        assert!(KINDS[row].0 as usize == row);
        row += 1;
    }
    assert!(KINDS.len() == What::Fault as usize + 1);
};

/// Network faults by their names in plans. The length of a delay is the `for` of its action.
const FAULTS: [(&str, Action); 4] = [
    ("cut-before", Action::CutBefore),
    ("cut-after", Action::CutAfter),
    ("delay", Action::Delay(Duration::ZERO)),
    ("answer-twice", Action::AnswerTwice),
];
/// Requests that can have a fault.
const REQUESTS: [(&str, Kind); 5] = [
    ("produce", Kind::Produce),
    ("fetch", Kind::Fetch),
    ("share-fetch", Kind::ShareFetch),
    ("share-acknowledge", Kind::ShareAcknowledge),
    ("share-group-heartbeat", Kind::ShareGroupHeartbeat),
];
/// Programs whose request can have a fault.
const CLIENTS: [(&str, ClientId); 2] = [("worker", "worker"), ("gateway", "gateway")];

impl fmt::Display for What {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A network fault at the next request of a kind by a worker or a gateway.
pub type FaultPlan = (Action, Kind, ClientId);
/// A word that the client ids of a program contain.
pub type ClientId = &'static str;

/// The worker that an action hits.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Who {
    /// A random worker.
    #[default]
    Any,
    /// A random worker with a task in flight.
    Busy,
    /// The worker with the youngest task of those in flight for more than half a second. If the plan has tasks that
    /// outlast a drain, only a worker with such a task.
    Long,
    /// A random worker without a task in flight.
    Idle,
    /// Every worker, one after another.
    All,
    /// The worker of this name.
    Named(String),
}

impl<'de> Deserialize<'de> for Who {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match String::deserialize(deserializer)?.as_str() {
            "any" => Self::Any,
            "busy" => Self::Busy,
            "long" => Self::Long,
            "idle" => Self::Idle,
            "all" => Self::All,
            name => Self::Named(name.to_owned()),
        })
    }
}

/// An action at fixed or at random times.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionPlan {
    /// The kind.
    #[serde(rename = "do")]
    pub what: What,
    /// Fixed times from the start of the load.
    #[serde(default, deserialize_with = "durations")]
    pub at: Vec<Duration>,
    /// Average time between random times.
    #[serde(default, deserialize_with = "some_length")]
    pub every: Option<Duration>,
    /// The worker that it hits.
    #[serde(default)]
    pub worker: Who,
    /// The node of the broker, from 1; `None`: a random node.
    #[serde(default)]
    pub node: Option<u32>,
    /// Duration, or range of durations.
    #[serde(default, rename = "for", deserialize_with = "range")]
    pub length: Option<(Duration, Duration)>,
    /// For `scale`: the number of workers.
    #[serde(default)]
    pub to: Option<u32>,
    /// For `fault`: the fault.
    #[serde(default, deserialize_with = "fault")]
    pub fault: Option<Action>,
    /// For `fault`: the kind of request.
    #[serde(default, deserialize_with = "request")]
    pub request: Option<Kind>,
    /// For `fault`: the program that sends the request.
    #[serde(default, deserialize_with = "client")]
    pub of: Option<ClientId>,
}

/// A value or a list.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> From<OneOrMore<T>> for Vec<T> {
    fn from(written: OneOrMore<T>) -> Self {
        match written {
            OneOrMore::One(only) => vec![only],
            OneOrMore::More(all) => all,
        }
    }
}

fn durations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Duration>, D::Error> {
    let texts = Vec::from(OneOrMore::<String>::deserialize(deserializer)?);
    texts.iter().map(|text| read(text).map_err(Error::custom)).collect()
}

fn read(text: &str) -> Result<Duration, String> {
    values::duration(text, &(Duration::ZERO..=LONGEST)).map_err(|problem| format!("\"{}\" {problem}", escape(text)))
}

pub(super) fn length<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    read(&String::deserialize(deserializer)?).map_err(Error::custom)
}

fn some_length<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    length(deserializer).map(Some)
}

fn range<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<(Duration, Duration)>, D::Error> {
    match durations(deserializer)?[..] {
        [only] => Ok(Some((only, only))),
        [from, to] if from <= to => Ok(Some((from, to))),
        _ => Err(Error::custom("expected a duration, or two: [\"1s\", \"20s\"], the shorter one first")),
    }
}

fn fault<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Action>, D::Error> {
    named(deserializer, &FAULTS)
}

fn request<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Kind>, D::Error> {
    named(deserializer, &REQUESTS)
}

fn client<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ClientId>, D::Error> {
    named(deserializer, &CLIENTS)
}

fn named<'de, D: Deserializer<'de>, T: Copy>(deserializer: D, all: &[(&str, T)]) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if let Some((_, value)) = all.iter().find(|(name, _)| *name == text) {
        return Ok(Some(*value));
    }
    let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
    Err(Error::custom(format!("\"{}\" is not known; expected one of {}", escape(&text), names.join(", "))))
}

impl ActionPlan {
    /// The network fault, if the action is a complete one. `length`: of a delay.
    pub fn network_fault(&self, length: Option<Duration>) -> Option<FaultPlan> {
        let action = match self.fault? {
            Action::Delay(_) => Action::Delay(length.unwrap_or_default()),
            action => action,
        };
        Some((action, self.request?, self.of?))
    }

    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        match (self.at.is_empty(), self.every) {
            (true, None) => faults.push("has neither at nor every; expected one of them".to_owned()),
            (false, Some(_)) => faults.push("has both at and every; expected one of them".to_owned()),
            (true, Some(every)) if every < Duration::from_millis(100) => {
                faults.push("every is too short; expected 100ms at least".to_owned());
            }
            _ => {}
        }
        let &(_, _, on, takes_length) = self.what.kind();
        match (takes_length, self.length) {
            (Length::Must, None) => faults.push("needs for: how long, for example for = \"3s\"".to_owned()),
            (Length::No, Some(_)) => faults.push("takes no for".to_owned()),
            _ => {}
        }
        match (self.what, self.to) {
            (What::Scale, Some(1..=100)) => {}
            (What::Scale, _) => faults.push("needs to: how many workers, 1 to 100".to_owned()),
            (_, Some(_)) => faults.push("takes no to".to_owned()),
            _ => {}
        }
        let (is_fault, parts) =
            (self.what == What::Fault, [self.fault.is_some(), self.request.is_some(), self.of.is_some()]);
        if is_fault && self.network_fault(None).is_none() {
            faults.push(
                "needs fault, request and of, for example fault = \"cut-after\", request = \"produce\", of = \"gateway\"".to_owned(),
            );
        } else if !is_fault && parts.contains(&true) {
            faults.push("takes no fault, request and of".to_owned());
        }
        if self.fault.is_some() && matches!(self.fault, Some(Action::Delay(_))) != self.length.is_some() {
            faults.push("has a delay without for, or for without a delay; expected both or neither".to_owned());
        }
        if self.worker != Who::Any && on != On::Worker {
            faults.push("takes no worker".to_owned());
        }
        if self.node.is_some() && on != On::Node {
            faults.push("takes no node".to_owned());
        }
        if self.worker == Who::All && !matches!(self.what, What::RestartWorker | What::KillWorker) {
            faults.push("cannot hit all workers; only restart-worker and kill-worker can".to_owned());
        }
        faults
    }
}
