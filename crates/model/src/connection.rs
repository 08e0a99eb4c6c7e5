//! A connection between a worker and a broker, with its request, seen from both ends.
//!
//! At most one request is out on a connection (rule 5). The request's record sets come from the worker, the result's
//! from the broker.

use crate::ids::{PartitionSet, TaskSet};

/// Whether the worker's end is closed. The broker sees that only if no request waits in the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Closed {
    #[default]
    No,
    ByWorker,
    ByReset,
}

/// The kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Request {
    /// Epoch 0: opens the session, or takes it over from another connection of the same member.
    Open,
    /// ShareFetch, with acknowledgements on it.
    Fetch,
    /// ShareAcknowledge: accepts, releases or renewals.
    Acknowledge,
    /// Epoch -1: closes the session.
    Close,
}

/// Progress of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Stage {
    /// On its way to the broker.
    #[default]
    Sent,
    /// A fetch that waits at the broker for records.
    Parked,
    /// At the broker, until the share coordinator has persisted its accepts and releases.
    Hanging,
    /// The result is on its way to the worker.
    Answered,
}

/// The error of a whole request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SessionError {
    /// 122: the broker has no session of this member.
    NotFound,
    /// 123: another connection has taken the session over.
    InvalidEpoch,
}

/// Longest silence that the model distinguishes, in ticks.
pub const LONG_SILENCE: u8 = 2;

/// An existing connection. Fields without a meaning at the moment have their default, so that equal situations are
/// equal states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection {
    /// The worker's end is closed.
    pub closed: Closed,
    /// The broker's end is closed, and the worker has not read the EOF yet.
    pub ended: bool,
    /// No bytes pass any more, in either direction.
    pub black_hole: bool,
    /// The request that is out.
    pub request: Option<Request>,
    pub stage: Stage,
    /// Records that the request accepts.
    pub accept: TaskSet,
    /// Records that the request releases.
    pub release: TaskSet,
    /// Records that the request renews.
    pub renew: TaskSet,
    /// Result: records whose lock this member does not hold here (3, 42, 121).
    pub refused: TaskSet,
    /// Result: records to try again (15, 16, -1).
    pub retry: TaskSet,
    /// Result: records that a fetch brings.
    pub delivered: TaskSet,
    /// Result: the error of the whole request.
    pub error: Option<SessionError>,
    /// Result: partitions that are led elsewhere (6).
    pub moved: PartitionSet,
    /// Partitions that the request names.
    pub partitions: PartitionSet,
    /// Ticks without a result for the request, at most [`LONG_SILENCE`].
    pub silence: u8,
    /// Records delivered since the request was sent: its codes concern an older delivery (rule 9).
    pub outdated: TaskSet,
    /// Partitions whose leader changed in the worker's metadata while the request was out (rule 10).
    pub leader_changed: PartitionSet,
    /// Records with an accept or release unanswered elsewhere when this renewal was sent (rule 14).
    pub in_transition: TaskSet,
}

impl Connection {
    /// Closes the worker's end of the connection.
    pub fn close(&mut self) {
        if self.is_open() {
            self.closed = Closed::ByWorker;
        }
    }

    /// An open connection with this request on it.
    pub fn with_request(request: Request, partitions: PartitionSet) -> Self {
        Self { request: Some(request), partitions, ..Self::default() }
    }

    /// The same connection without its request.
    pub fn without_request(&self) -> Self {
        Self { black_hole: self.black_hole, ..Self::default() }
    }

    /// Records that the request accepts or releases.
    pub fn acknowledged(&self) -> TaskSet {
        self.accept | self.release
    }

    /// Whether the worker's end is open.
    pub fn is_open(&self) -> bool {
        self.closed == Closed::No
    }

    /// Whether the request has had no result for [`LONG_SILENCE`].
    pub fn is_long_silent(&self) -> bool {
        self.silence == LONG_SILENCE
    }

    /// Whether the result of the request is on its way.
    pub fn is_answered(&self) -> bool {
        self.stage == Stage::Answered
    }

    /// Clears the fields that only the worker uses; its process has ended.
    pub fn forget_worker(&mut self) {
        self.silence = 0;
        self.leader_changed = PartitionSet::default();
        self.outdated = TaskSet::default();
        self.refused = TaskSet::default();
        self.retry = TaskSet::default();
    }
}
