//! The configuration of a drill, as validated values.
//!
//! Made by [`cli`](super::cli), which has the syntax. Nothing here connects.

use std::path::PathBuf;
use std::time::Duration;

use kafka_share::BrokerAddress;

use super::command::FleetFile;
use super::output::Outputs;
use super::place::Place;
use super::plan::Plan;
use super::texts::Checked;

/// The command of the drill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrillConfig {
    /// `drill run` and `drill watch`
    Run(Box<RunConfig>),
    /// `drill judge`
    Judge(JudgeConfig),
}

/// Configuration of `drill run` and `drill watch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunConfig {
    /// The fleet to act on.
    pub target: Target,
    /// Load and actions.
    pub plan: Plan,
    /// The load goes on until a signal, whatever the plan says.
    pub endless: bool,
    /// `SEED` of texts and random actions.
    pub seed: u64,
    /// `REPORT_EVERY`: how often the counts are printed without a progress bar.
    pub report_every: Duration,
    /// `ANSWERS`: how results are checked.
    pub answers: Checked,
    /// `FOLDER` of the ledger and of the logs of a native fleet.
    pub folder: PathBuf,
    /// Files to write.
    pub outputs: Outputs,
}

/// The fleet of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Processes that the drill starts itself.
    Native(NativeTarget),
    /// A running fleet, acted on by the commands of a file.
    Commanded(Box<FleetFile>),
    /// A fleet that others act on.
    Outside(Place),
}

/// Processes that the drill starts itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeTarget {
    /// `BROKER`, or `KAFKA_BOOTSTRAP_SERVERS`
    pub broker: BrokerChoice,
    /// `WORKER_PROGRAM`
    pub worker: PathBuf,
    /// `GATEWAY_PROGRAM`
    pub gateway: PathBuf,
    /// Topics, group and settings; the addresses and the settings of the plan are yet to come.
    pub place: Place,
}

/// The Kafka of a fleet that the drill starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerChoice {
    /// The embedded broker, inside the drill.
    Embedded,
    /// A real Kafka, started by `scripts/kafka`.
    Apache,
    /// A running Kafka.
    Given(Vec<BrokerAddress>),
}

/// Configuration of `drill judge`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgeConfig {
    /// The ledger of an earlier run.
    pub ledger: PathBuf,
    /// Files to write.
    pub outputs: Outputs,
}

impl RunConfig {
    /// Whether the drill starts the processes and sees their exit codes.
    pub(super) fn owns_processes(&self) -> bool {
        matches!(self.target, Target::Native(_))
    }

    /// Whether the drill starts the broker, so that every outage has an action.
    pub(super) fn owns_broker(&self) -> bool {
        matches!(&self.target, Target::Native(native) if !matches!(native.broker, BrokerChoice::Given(_)))
    }

    /// Length of the load; until a signal if `None`.
    pub(super) fn length(&self) -> Option<Duration> {
        (!self.endless).then_some(self.plan.length)
    }

    /// File of the ledger, if it is written.
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
                    BrokerChoice::Given(_) => "a running Kafka",
                };
                format!("plan {}, on {workers} workers and {gateways} gateways of its own and {broker}", self.plan.name)
            }
            Target::Commanded(file) => format!("plan {}, on the fleet of {}", self.plan.name, file.name),
            Target::Outside(_) => "watching a fleet that others act on".to_owned(),
        }
    }
}
