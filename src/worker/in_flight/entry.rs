//! One record that the worker holds: what is being done with it, and what is known of its lock.
//!
//! Pure: times and facts in, a new state out. Called by the account ([`super`]) only, under its lock. The rules that are
//! named here by number are those of the protocol model (`crates/model`).

use kafka_share::error::ErrorCode;
use kafka_share::share_wire::{Acknowledgement, SharePartition};
use program::stop::Stop;
use std::sync::Arc;
use std::time::Instant;

/// Where a record stands: partition and offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::worker) struct RecordKey {
    pub(in crate::worker) partition: SharePartition,
    pub(in crate::worker) offset: i64,
}

/// One connection of this process to a broker, for the account: never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::worker) struct ChannelId(pub(in crate::worker) u64);

impl ChannelId {
    /// Whether this connection was made before the other one.
    pub(super) fn is_before(self, other: ChannelId) -> bool {
        self.0 < other.0
    }
}

/// One start of one task by one handler: what a handler says counts only for its own run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::worker) struct RunId(pub(super) u64);

/// What is being done with a record, and so what may change it.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// Lies ready in the handlers' channel. An intake may take it back.
    Ready,
    /// A handler looks into its past before it may start; not a start yet. A stop may give it back.
    Vetting(RunId),
    /// A handler runs it. Only the handler, its time-out or the deadline ends this.
    Running { run: RunId, since: Instant, abandoned: Stop },
    /// Its result is on the way to Kafka in this many records. Only the outbox ends this.
    Publishing(u8),
    /// Its result is in Kafka; the accept is due or sent.
    Done,
    /// Its failure may pass; released when that time has come.
    Resting(Instant),
    /// The release is due or sent.
    Returned,
}

/// The lock of a record, as far as this worker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    /// Held through this node's session. `since`: when the request was sent that took or renewed it last. In doubt it
    /// is renewed at once, and nothing is started on the strength of it (rules 10 and 15).
    Held { node: i32, since: Instant, doubt: bool },
    /// Gone. While it is sought, fetches of the new leader may still bring it back before another member has it.
    Gone { sought: bool },
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// What tells this record from another one that may stand at the same offset later: its key, as far as it has one.
    pub(super) mark: Arc<str>,
    /// The task's id: the mark, until a handler has looked into the value, which counts (any key may stand beside it).
    pub(super) task_id: Arc<str>,
    pub(super) state: State,
    pub(super) lock: Lock,
    /// When its present delivery was entered: an answer to a request sent before says nothing about it (rule 9).
    pub(super) delivered_at: Instant,
    /// Which delivery that is.
    pub(super) delivery_count: u16,
    /// The broker drops it at its next release: a handler copies it instead.
    pub(super) last_delivery: bool,
    /// Where an accept or a release of it is unanswered.
    pub(super) asked: Option<ChannelId>,
    /// When an acknowledgement of it was last out on a connection other than the one that renewed it (rule 14).
    pub(super) asked_until: Option<Instant>,
}

impl Entry {
    pub(super) fn node(&self) -> Option<i32> {
        match self.lock {
            Lock::Held { node, .. } => Some(node),
            Lock::Gone { .. } => None,
        }
    }

    /// What has to be said to the broker of it, once it can be said.
    pub(super) fn owed(&self) -> Option<Acknowledgement> {
        match (&self.state, self.lock) {
            (State::Done, Lock::Held { .. }) => Some(Acknowledgement::Accept),
            (State::Returned, Lock::Held { .. }) => Some(Acknowledgement::Release),
            _ => None,
        }
    }

    pub(super) fn is_sure(&self) -> bool {
        matches!(self.lock, Lock::Held { doubt: false, .. })
    }

    /// Work that goes on without its lock, which may still be found.
    pub(super) fn is_sought(&self) -> bool {
        self.lock == Lock::Gone { sought: true }
    }
}

/// What one code says about an acknowledgement, read by rule 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) enum Verdict {
    /// It was applied.
    Applied,
    /// The broker could not write it down (its share coordinator moves, loads or is away): said again later.
    Again,
    /// The lock is not this member's any more.
    Lost,
}

impl Verdict {
    pub(in crate::worker) fn of(code: Option<ErrorCode>) -> Self {
        match code {
            None => Verdict::Applied,
            Some(
                ErrorCode::COORDINATOR_NOT_AVAILABLE
                | ErrorCode::COORDINATOR_LOAD_IN_PROGRESS
                | ErrorCode::NOT_COORDINATOR
                | ErrorCode::REQUEST_TIMED_OUT
                | ErrorCode::UNKNOWN_SERVER_ERROR
                // A right that was withdrawn may come back before the lock has run out.
                | ErrorCode::TOPIC_AUTHORIZATION_FAILED
                | ErrorCode::GROUP_AUTHORIZATION_FAILED,
            ) => Verdict::Again,
            Some(_) => Verdict::Lost,
        }
    }
}
