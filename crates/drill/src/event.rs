//! Messages from the threads of the drill to the run.

use std::time::{Duration, Instant};

use serde_json::Value;

use lastcall::task::WorkerStatus;

use super::fact::{Answer, Line};
use super::http::Response;

/// Events that may wait in the channel; senders block when it is full.
pub(super) const EVENTS: usize = 4096;

/// A message to the run.
#[derive(Debug)]
pub(super) enum Event {
    /// A request is about to be sent.
    Submitted { number: u64, gateway: usize, at: Instant },
    /// A request found no free caller.
    Late { at: Instant },
    /// A request got its outcome.
    Posted { number: u64, answer: Answer, took: Duration, at: Instant },
    /// A lookup of an open task gave its outcome.
    Found { number: u64, gateway: usize, answer: Answer },
    /// A finished task was read back.
    ReadBack { number: u64, gateway: usize, task_id: String, response: Option<Response> },
    /// The asker has finished the last list of tasks.
    AskedAll,
    /// `/workers/status` of a gateway, or why the request failed.
    Fleet { gateway: usize, view: Result<Value, String> },
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
