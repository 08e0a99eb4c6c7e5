//! What the threads of the drill tell the run.

use std::time::{Duration, Instant};

use serde_json::Value;

use lastcall::task::WorkerStatus;

use super::fact::{Answer, Line};
use super::http::Response;

/// Events that may wait to be taken; then their senders wait, too.
pub(super) const EVENTS: usize = 4096;

/// See the module documentation.
#[derive(Debug)]
pub(super) enum Event {
    /// A request is about to be sent.
    Submitted { number: u64, gateway: usize, at: Instant },
    /// A request found no free caller.
    Late { at: Instant },
    /// A request has its outcome.
    Posted { number: u64, answer: Answer, took: Duration, at: Instant },
    /// An open task was asked for and has its outcome.
    Found { number: u64, gateway: usize, answer: Answer },
    /// A task that is done was read back.
    ReadBack { number: u64, gateway: usize, task_id: String, response: Option<Response> },
    /// All tasks of the last list were asked for.
    AskedAll,
    /// The fleet as a gateway shows it, or why it does not.
    Fleet { gateway: usize, view: Result<Value, String> },
    /// The results topic was read; `answered`: when a broker last answered.
    Read { answered: Option<Instant>, statuses: Vec<WorkerStatus> },
    /// Tasks of this run that were read on their topic.
    Tasks(Vec<(u64, String)>),
    /// Results cannot be read; said once until they can be again.
    Away(String),
    /// Something for the ledger.
    Fact(Line),
    /// The director has done what it was asked for.
    Phase(Phase),
}

/// What the director was asked for and has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Everything runs that should.
    Healed,
    /// The workers have stopped.
    WorkersStopped,
    /// The gateways have, too.
    GatewaysStopped,
}
