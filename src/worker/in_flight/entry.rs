//! One record that the worker holds: the state of its task, and the state of its lock.
//!
//! Pure: times and facts in, a new state out. Called only by the account ([`super`]), under its lock. Rule numbers
//! refer to the protocol model (`crates/model`).

use crate::trace::TaskName;
use kafka_share::error::ErrorCode;
use kafka_share::share_wire::{Acknowledgement, SharePartition};
use program::stop::Stop;
use std::sync::Arc;
use std::time::Instant;

/// The place of a record: partition and offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::worker) struct RecordKey {
    pub(in crate::worker) partition: SharePartition,
    pub(in crate::worker) offset: i64,
}

/// The id of one connection of this process to a broker; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::worker) struct ChannelId(pub(in crate::worker) u64);

impl ChannelId {
    /// Whether this connection was made before the other one.
    pub(super) fn is_before(self, other: ChannelId) -> bool {
        self.0 < other.0
    }
}

/// The id of one start of one task by one handler. An outcome counts only for its own run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::worker) struct RunId(pub(super) u64);

/// The state of a record, which decides what may change it.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// Ready in the handlers' channel. An intake may release it.
    Ready,
    /// A handler checks its earlier starts; the task is not started yet. A stop may release it.
    Vetting(RunId),
    /// A handler runs it. Only the handler, its time-out or the deadline ends this.
    Running { run: RunId, since: Instant, abandoned: Stop },
    /// Its outcome is on the way to Kafka in this many records. Only the outbox ends this.
    Publishing(u8),
    /// Its outcome is in Kafka; the accept is due or sent.
    Done,
    /// It failed and rests; released at this time.
    Resting(Instant),
    /// The release is due or sent.
    Returned,
}

/// The lock of a record, as far as this worker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    /// Held through this node's session. `since`: when the request was sent that last acquired or renewed it. A lock in
    /// doubt is renewed at once, and no task is started with it (rules 10 and 15).
    Held { node: i32, since: Instant, doubt: bool },
    /// Lost. While it is sought, a fetch from the new leader may still bring it back before another member has it.
    Gone { sought: bool },
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Distinguishes this record from a later record at the same offset: the record's key or a substitute.
    pub(super) mark: Arc<str>,
    /// The task's name: the mark, until a handler has read the id in the value, which counts.
    pub(super) task: TaskName,
    pub(super) state: State,
    pub(super) lock: Lock,
    /// When its latest delivery was entered. Answers to earlier requests do not apply to it (rule 9).
    pub(super) delivered_at: Instant,
    /// The delivery count of that delivery.
    pub(super) delivery_count: u16,
    /// The broker drops it at its next release, so a handler copies it instead.
    pub(super) last_delivery: bool,
    /// The connection on which its accept or release is unanswered.
    pub(super) asked: Option<ChannelId>,
    /// Until when an acknowledgement of it was unanswered on a connection other than the renewing one (rule 14).
    pub(super) asked_until: Option<Instant>,
}

impl Entry {
    pub(super) fn node(&self) -> Option<i32> {
        match self.lock {
            Lock::Held { node, .. } => Some(node),
            Lock::Gone { .. } => None,
        }
    }

    /// The acknowledgement that the broker has to get, if the lock is held.
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

    /// Whether it is in work without its lock, which may still be found.
    pub(super) fn is_sought(&self) -> bool {
        self.lock == Lock::Gone { sought: true }
    }
}

/// The meaning of an error code for an acknowledgement (rule 16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) enum Verdict {
    /// The broker applied it.
    Applied,
    /// The broker could not store it (its share coordinator moves, loads or is unavailable); it is sent again later.
    Again,
    /// This member has lost the lock.
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
                // A withdrawn right may be granted again before the lock has run out.
                | ErrorCode::TOPIC_AUTHORIZATION_FAILED
                | ErrorCode::GROUP_AUTHORIZATION_FAILED,
            ) => Verdict::Again,
            Some(_) => Verdict::Lost,
        }
    }
}
