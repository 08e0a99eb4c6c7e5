//! An action of a plan: its kinds, its options, and how a plan writes them.
//!
//! Part of the [plan](super), which alone makes actions.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

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

/// A network fault at one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkFault {
    /// The broker closes the connection; the request has no effect.
    CutBefore,
    /// The request takes effect; the broker closes the connection instead of responding.
    CutAfter,
    /// The broker responds after `for`.
    Delay,
    /// The broker sends the response twice.
    AnswerTwice,
}

/// Requests that can have a fault, by Kafka's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RequestKind {
    /// Produce
    Produce,
    /// Fetch
    Fetch,
    /// ShareFetch
    ShareFetch,
    /// ShareAcknowledge
    ShareAcknowledge,
    /// ShareGroupHeartbeat
    ShareGroupHeartbeat,
}

/// A fault at the next request of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultPlan {
    /// The fault.
    pub fault: NetworkFault,
    /// The kind of request.
    pub request: RequestKind,
    /// `true`: a worker's request; `false`: a gateway's.
    pub of_worker: bool,
}

impl What {
    /// All kinds with their names in plans.
    pub const ALL: [(Self, &str); 19] = [
        (Self::StopWorker, "stop-worker"),
        (Self::RestartWorker, "restart-worker"),
        (Self::SecondSignal, "second-signal"),
        (Self::KillWorker, "kill-worker"),
        (Self::FreezeWorker, "freeze-worker"),
        (Self::StartWorker, "start-worker"),
        (Self::Scale, "scale"),
        (Self::StopGateway, "stop-gateway"),
        (Self::RestartGateway, "restart-gateway"),
        (Self::KillGateway, "kill-gateway"),
        (Self::StopBroker, "stop-broker"),
        (Self::RestartBroker, "restart-broker"),
        (Self::RollBrokers, "roll-brokers"),
        (Self::KillBroker, "kill-broker"),
        (Self::FreezeBroker, "freeze-broker"),
        (Self::CutBroker, "cut-broker"),
        (Self::MoveLeader, "move-leader"),
        (Self::Pause, "pause"),
        (Self::Fault, "fault"),
    ];

    /// The name in plans.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(what, _)| *what == self).map_or("?", |(_, name)| name)
    }

    /// Whether the action is on a worker.
    pub fn has_worker(self) -> bool {
        use What::{FreezeWorker, KillWorker, RestartWorker, SecondSignal, StartWorker, StopWorker};
        matches!(self, StopWorker | RestartWorker | SecondSignal | KillWorker | FreezeWorker | StartWorker)
    }

    /// Whether the action is on the broker.
    pub fn has_broker(self) -> bool {
        self.has_node() || matches!(self, Self::RollBrokers | Self::MoveLeader)
    }

    /// Whether the action is on one node of the broker.
    fn has_node(self) -> bool {
        use What::{CutBroker, FreezeBroker, KillBroker, RestartBroker, StopBroker};
        matches!(self, StopBroker | RestartBroker | KillBroker | FreezeBroker | CutBroker)
    }

    /// Whether only some brokers support it; a plan runs without it on the others.
    pub fn is_left_out(self) -> bool {
        matches!(self, Self::Fault | Self::CutBroker | Self::RollBrokers | Self::MoveLeader)
    }

    /// Whether `for` is allowed, and whether it is required.
    fn takes_length(self) -> (bool, bool) {
        use What::{
            CutBroker, FreezeBroker, FreezeWorker, KillBroker, KillGateway, KillWorker, Pause, StopBroker, StopGateway,
        };
        match self {
            FreezeBroker | CutBroker | StopBroker | KillBroker => (true, true),
            FreezeWorker | Pause | StopGateway | KillGateway => (true, true),
            KillWorker | Self::StopWorker | Self::Fault => (true, false),
            _ => (false, false),
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

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
    #[serde(default)]
    pub at: Moments,
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
    #[serde(default, rename = "for")]
    pub length: Option<Range>,
    /// For `scale`: the number of workers.
    #[serde(default)]
    pub to: Option<u32>,
    /// For `fault`: the fault.
    #[serde(default)]
    pub fault: Option<NetworkFault>,
    /// For `fault`: the kind of request.
    #[serde(default)]
    pub request: Option<RequestKind>,
    /// For `fault`: the program that sends the request.
    #[serde(default)]
    pub of: Option<Client>,
}

/// The program whose request gets a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Client {
    /// A worker's.
    Worker,
    /// A gateway's.
    Gateway,
}

/// A time or several, from the start of the load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moments(pub Vec<Duration>);

/// A range of durations, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range(pub Duration, pub Duration);

/// A text or a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Several(Vec<String>),
}

fn durations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Duration>, D::Error> {
    let texts = match Texts::deserialize(deserializer)? {
        Texts::One(text) => vec![text],
        Texts::Several(texts) => texts,
    };
    texts.iter().map(|text| read(text).map_err(serde::de::Error::custom)).collect()
}

fn read(text: &str) -> Result<Duration, String> {
    values::duration(text, &(Duration::ZERO..=LONGEST)).map_err(|problem| format!("\"{}\" {problem}", escape(text)))
}

pub(super) fn length<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    read(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn some_length<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    length(deserializer).map(Some)
}

impl<'de> Deserialize<'de> for Moments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        durations(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match durations(deserializer)?[..] {
            [only] => Ok(Self(only, only)),
            [from, to] if from <= to => Ok(Self(from, to)),
            _ => Err(serde::de::Error::custom("expected a duration, or two: [\"1s\", \"20s\"], the shorter one first")),
        }
    }
}

impl ActionPlan {
    /// The fault, if the action is a complete one.
    pub fn network_fault(&self) -> Option<FaultPlan> {
        let of_worker = self.of? == Client::Worker;
        Some(FaultPlan { fault: self.fault?, request: self.request?, of_worker })
    }

    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        match (self.at.0.is_empty(), self.every) {
            (true, None) => faults.push("has neither at nor every; expected one of them".to_owned()),
            (false, Some(_)) => faults.push("has both at and every; expected one of them".to_owned()),
            (true, Some(every)) if every < Duration::from_millis(100) => {
                faults.push("every is too short; expected 100ms at least".to_owned());
            }
            _ => {}
        }
        match (self.what.takes_length(), self.length) {
            ((_, true), None) => faults.push("needs for: how long, for example for = \"3s\"".to_owned()),
            ((false, _), Some(_)) => faults.push("takes no for".to_owned()),
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
        if is_fault && self.network_fault().is_none() {
            faults.push(
                "needs fault, request and of, for example fault = \"cut-after\", request = \"produce\", of = \"gateway\"".to_owned(),
            );
        } else if !is_fault && parts.contains(&true) {
            faults.push("takes no fault, request and of".to_owned());
        }
        if self.fault.is_some() && (self.fault == Some(NetworkFault::Delay)) != self.length.is_some() {
            faults.push("has a delay without for, or for without a delay; expected both or neither".to_owned());
        }
        if self.worker != Who::Any && !self.what.has_worker() {
            faults.push("takes no worker".to_owned());
        }
        if self.node.is_some() && !self.what.has_node() {
            faults.push("takes no node".to_owned());
        }
        if self.worker == Who::All && !matches!(self.what, What::RestartWorker | What::KillWorker) {
            faults.push("cannot hit all workers; only restart-worker and kill-worker can".to_owned());
        }
        faults
    }
}
