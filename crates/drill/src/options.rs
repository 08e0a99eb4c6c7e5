//! What a drill is asked to do, as values.
//!
//! How they are written on a command line is [`cli`](super::cli)'s. Nothing here connects.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use kafka_share::BrokerAddress;
use program::http::Authority;
use program::options::values::{self, Read};

use super::command::FleetFile;
use super::fleet::Place;
use super::output::Outputs;
use super::plan::Plan;
use super::texts::Checked;

/// What the drill is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrillConfig {
    /// `drill run` and `drill watch`
    Run(Box<RunConfig>),
    /// `drill judge`
    Judge(JudgeConfig),
}

/// What a run needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunConfig {
    /// What is acted on.
    pub target: Target,
    /// What is sent, and what happens.
    pub plan: Plan,
    /// The load goes on until a signal, whatever the plan says.
    pub endless: bool,
    /// `SEED`: texts and random actions; another one each time when `None`.
    pub seed: Option<u64>,
    /// `REPORT_EVERY`: how often the counts are printed where no terminal shows them all the time.
    pub report_every: Duration,
    /// `ANSWERS`: what results are held against.
    pub answers: Checked,
    /// `FOLDER`: the ledger of a run, and the logs of what the drill starts.
    pub folder: PathBuf,
    /// The files that it leaves.
    pub outputs: Outputs,
}

/// What a run acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Processes that the drill starts itself.
    Native(NativeTarget),
    /// A fleet that runs, acted on by the commands of a file.
    Commanded(Box<FleetFile>),
    /// A fleet that others act on.
    Outside(Place),
}

/// Processes that the drill starts itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeTarget {
    /// `BROKER`, or `KAFKA_BOOTSTRAP_SERVERS`
    pub broker: BrokerChoice,
    /// `WORKER_PROGRAM`: the one beside the drill when `None`.
    pub worker: Option<PathBuf>,
    /// `GATEWAY_PROGRAM`: the one beside the drill when `None`.
    pub gateway: Option<PathBuf>,
    /// `TASKS_TOPIC`
    pub tasks_topic: String,
    /// `RESULTS_TOPIC`
    pub results_topic: String,
    /// `WORKER_GROUP`
    pub group: String,
}

/// The Kafka of a fleet that the drill starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerChoice {
    /// The embedded one, inside the drill.
    Embedded,
    /// A real one, by `scripts/kafka`.
    Apache,
    /// One that runs.
    Given(Vec<BrokerAddress>),
}

/// What `drill judge` needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgeConfig {
    /// The ledger of an earlier run.
    pub ledger: PathBuf,
    /// The files that it leaves.
    pub outputs: Outputs,
}

impl RunConfig {
    /// Whether the drill has started the processes, and sees how they end.
    pub(super) fn owns_processes(&self) -> bool {
        matches!(self.target, Target::Native(_))
    }

    /// Whether the drill has started the broker, and knows all that happens to it.
    pub(super) fn owns_broker(&self) -> bool {
        matches!(&self.target, Target::Native(native) if !matches!(native.broker, BrokerChoice::Given(_)))
    }

    /// How long the load goes on; until a signal when `None`.
    pub(super) fn length(&self) -> Option<Duration> {
        (!self.endless).then_some(self.plan.length)
    }

    /// Where the ledger goes, if anywhere.
    pub(super) fn ledger_path(&self) -> Option<PathBuf> {
        match (&self.outputs.ledger, &self.target) {
            (Some(path), _) => Some(path.clone()),
            (None, Target::Native(_) | Target::Commanded(_)) => Some(self.folder.join("ledger.jsonl")),
            (None, Target::Outside(_)) => None,
        }
    }

    /// The first line of a run.
    pub(super) fn headline(&self) -> String {
        match &self.target {
            Target::Native(native) => {
                let (workers, gateways) = (self.plan.fleet.workers, self.plan.fleet.gateways);
                let broker = match &native.broker {
                    BrokerChoice::Embedded => "the embedded broker",
                    BrokerChoice::Apache => "Apache Kafka",
                    BrokerChoice::Given(_) => "the Kafka that was named",
                };
                format!("plan {}, on {workers} workers and {gateways} gateways of its own and {broker}", self.plan.name)
            }
            Target::Commanded(file) => format!("plan {}, on the fleet of {}", self.plan.name, file.name),
            Target::Outside(_) => "watching a fleet that others act on".to_owned(),
        }
    }
}

/// Where a gateway listens; shown as the URL it was given as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddress {
    /// A name or an address; an IPv6 address without its brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl GatewayAddress {
    /// `host:port`, as the `Host` header has it.
    pub fn authority(&self) -> String {
        Authority::from(self.clone()).to_string()
    }

    /// Reads the URL of a gateway.
    pub(super) fn read(text: &str) -> Read<Self> {
        let expected = "expected http://host:port, for example http://127.0.0.1:8080";
        if text.starts_with("https://") {
            return Err(format!("is https, which the drill does not speak; {expected}"));
        }
        let rest = text.strip_prefix("http://").ok_or_else(|| format!("is no http URL; {expected}"))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let address: BrokerAddress = rest.parse().map_err(|_| format!("is no http URL; {expected}"))?;
        Ok(Self { host: address.host, port: address.port })
    }
}

impl From<GatewayAddress> for Authority {
    fn from(GatewayAddress { host, port }: GatewayAddress) -> Self {
        Self { host, port }
    }
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "http://{}", self.authority())
    }
}

pub(super) fn gateways(text: &str) -> Read<Vec<GatewayAddress>> {
    if text.contains(',') { values::list(text, GatewayAddress::read) } else { Ok(vec![GatewayAddress::read(text)?]) }
}
