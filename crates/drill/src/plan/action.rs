//! What can be done to a fleet, and how a plan writes it.
//!
//! Part of the [plan](super); nothing else makes one.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use program::logging::escape;
use program::options::values;

use super::LONGEST;

/// What can be done to a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// SIGTERM, and it stays away for `for`.
    StopWorker,
    /// SIGTERM, and it is started again when it has ended.
    RestartWorker,
    /// SIGTERM, and another one while it drains; started again when it has ended.
    SecondSignal,
    /// SIGKILL, and it stays away for `for`.
    KillWorker,
    /// SIGSTOP, and SIGCONT after `for`.
    FreezeWorker,
    /// One that is away is started.
    StartWorker,
    /// So many workers, `to`.
    Scale,
    /// SIGTERM, and it stays away for `for`.
    StopGateway,
    /// SIGTERM, and it is started again when it has ended.
    RestartGateway,
    /// SIGKILL, and it stays away for `for`.
    KillGateway,
    /// A node of the broker is stopped, and stays away for `for`.
    StopBroker,
    /// The same, for no longer than it takes.
    RestartBroker,
    /// Every node is restarted, each when the one before is in sync again.
    RollBrokers,
    /// A node is killed, and away for `for`.
    KillBroker,
    /// A node is frozen for `for`.
    FreezeBroker,
    /// For `for` nothing that is sent to a node arrives, and nothing that it sends; its connections stay. The embedded broker's only.
    CutBroker,
    /// A partition of the tasks or of the results gets another of the nodes as its leader.
    MoveLeader,
    /// No load for `for`.
    Pause,
    /// Something goes wrong between a program and the embedded broker, once.
    Fault,
}

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkFault {
    /// The connection is closed, and the request has no effect.
    CutBefore,
    /// The request has its effect, and the connection is closed instead of the answer.
    CutAfter,
    /// The request is answered after `for`.
    Delay,
    /// The answer comes twice.
    AnswerTwice,
}

/// Which requests can go wrong; Kafka's names.
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

/// A fault, and the request that it is done to: the next one of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultPlan {
    /// What goes wrong.
    pub fault: NetworkFault,
    /// With which kind of request.
    pub request: RequestKind,
    /// Of a worker; otherwise of a gateway.
    pub of_worker: bool,
}

impl What {
    /// All of them, with their names.
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

    /// As plans write it.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(what, _)| *what == self).map_or("?", |(_, name)| name)
    }

    /// Whether it concerns one worker.
    pub fn has_worker(self) -> bool {
        use What::{FreezeWorker, KillWorker, RestartWorker, SecondSignal, StartWorker, StopWorker};
        matches!(self, StopWorker | RestartWorker | SecondSignal | KillWorker | FreezeWorker | StartWorker)
    }

    /// Whether it concerns the broker.
    pub fn has_broker(self) -> bool {
        self.has_node() || matches!(self, Self::RollBrokers | Self::MoveLeader)
    }

    /// Whether it concerns one node of the broker.
    fn has_node(self) -> bool {
        use What::{CutBroker, FreezeBroker, KillBroker, RestartBroker, StopBroker};
        matches!(self, StopBroker | RestartBroker | KillBroker | FreezeBroker | CutBroker)
    }

    /// Whether only some brokers can do it: a plan is run without it on the others.
    pub fn is_left_out(self) -> bool {
        matches!(self, Self::Fault | Self::CutBroker | Self::RollBrokers | Self::MoveLeader)
    }

    /// Whether `for` means something; and whether it has to be given.
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

/// Which worker an action is meant for.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Who {
    /// By chance.
    #[default]
    Any,
    /// By chance among those with a task in flight.
    Busy,
    /// Of those that have had a task for more than half a second, the one that has had it for the shortest time; where the plan has tasks that outlast a drain, only one with such a task.
    Long,
    /// By chance among those without.
    Idle,
    /// Every one, one after another.
    All,
    /// This one.
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

/// Something that happens: at moments of its own, or at random ones.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionPlan {
    /// What.
    #[serde(rename = "do")]
    pub what: What,
    /// When: these moments, counted from the start of the load.
    #[serde(default)]
    pub at: Moments,
    /// Or at random, so often on average.
    #[serde(default, deserialize_with = "some_length")]
    pub every: Option<Duration>,
    /// Whom.
    #[serde(default)]
    pub worker: Who,
    /// Which node of the broker, from 1 on; by chance without it.
    #[serde(default)]
    pub node: Option<u32>,
    /// How long: between these two.
    #[serde(default, rename = "for")]
    pub length: Option<Range>,
    /// How many; for `scale`.
    #[serde(default)]
    pub to: Option<u32>,
    /// For `fault`: what goes wrong.
    #[serde(default)]
    pub fault: Option<NetworkFault>,
    /// For `fault`: with which request.
    #[serde(default)]
    pub request: Option<RequestKind>,
    /// For `fault`: whose request, `worker` or `gateway`.
    #[serde(default)]
    pub of: Option<Client>,
}

/// Whose requests a fault is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Client {
    /// A worker's.
    Worker,
    /// A gateway's.
    Gateway,
}

/// One moment or several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moments(pub Vec<Duration>);

/// From the first to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range(pub Duration, pub Duration);

/// A text, or several.
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
    /// The fault that it is, if it is one.
    pub fn network_fault(&self) -> Option<FaultPlan> {
        let of_worker = self.of? == Client::Worker;
        Some(FaultPlan { fault: self.fault?, request: self.request?, of_worker })
    }

    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        match (self.at.0.is_empty(), self.every) {
            (true, None) => faults.push("says neither at nor every; expected one of them".to_owned()),
            (false, Some(_)) => faults.push("says both at and every; expected one of them".to_owned()),
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
            faults.push("has a delay without for, or for without a delay".to_owned());
        }
        if self.worker != Who::Any && !self.what.has_worker() {
            faults.push("takes no worker".to_owned());
        }
        if self.node.is_some() && !self.what.has_node() {
            faults.push("takes no node".to_owned());
        }
        if self.worker == Who::All && !matches!(self.what, What::RestartWorker | What::KillWorker) {
            faults.push("cannot be done to all workers; restart-worker and kill-worker can".to_owned());
        }
        faults
    }
}
