//! Messages from the threads of the drill to the run.

use std::time::Instant;

use serde_json::Value;

use lastcall::task::WorkerStatus;

use super::fact::Line;

/// Events that may wait in the channel; senders block when it is full.
pub(super) const EVENTS: usize = 4096;

/// A message to the run.
#[derive(Debug)]
pub(super) enum Event {
    /// The asker has finished the last list of tasks.
    AskedAll,
    /// `/workers/status` of a gateway; `None`: it has not responded with a view.
    Fleet { gateway: String, view: Option<Value> },
    /// The results topic was read; `answered`: time of the broker's last response.
    Read { answered: Option<Instant>, statuses: Vec<WorkerStatus> },
    /// Tasks of this run that were read on the tasks topic.
    Tasks(Vec<(u64, String)>),
    /// The results topic cannot be read; sent once per outage.
    Away(String),
    /// A line for the ledger.
    Fact(Line),
    /// The director has finished a command.
    Phase(Phase),
}

/// A finished command of the director.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// All processes that should run are ready.
    Healed,
    /// The workers have stopped.
    WorkersStopped,
    /// The gateways have stopped.
    GatewaysStopped,
}
