//! One record in a worker's account: its progress and its lock. Data only; [`account`](crate::account) changes it.

use crate::ids::{BrokerId, ConnectionId, Slot};
use crate::scenario::Scenario;
use crate::twin::Twin;

/// A worker's progress with a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Progress {
    /// Not in the account.
    #[default]
    Unknown,
    /// Waits for a handler.
    Ready,
    Running,
    /// The result is sent, but not acknowledged.
    Publishing,
    /// The result is acknowledged, the accept is due.
    Done,
    /// The accept is unanswered.
    Accepting,
    /// The release is due.
    ToRelease,
    /// The release is unanswered.
    Releasing,
    /// The result is acknowledged and the lock is gone. The worker remembers it and accepts the record when it comes
    /// back (rule 12).
    Finished,
    /// Twins only: in the account and renewed, but its task was dropped.
    Ghost,
}

impl Progress {
    /// Whether the record occupies a handler.
    pub fn is_at_work(self) -> bool {
        matches!(self, Self::Running | Self::Publishing)
    }

    /// Returns the progress after an accept or release that was not applied, or whose outcome is unknown: it is due
    /// again.
    pub fn due_again(self) -> Self {
        match self {
            Self::Accepting => Self::Done,
            Self::Releasing => Self::ToRelease,
            other => other,
        }
    }
}

/// A record in the account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    pub progress: Progress,
    /// The leader that holds its lock. A code from another leader's session never changes the entry (rule 8).
    pub lock: Option<BrokerId>,
    /// The lock has to be renewed.
    pub renewal_due: bool,
    /// The lock is gone while the task runs: one fetch at the new leader may bring the record back (rule 16).
    pub search: bool,
    /// The connection on which its accept or release is unanswered.
    pub unanswered_on: Option<(BrokerId, Slot)>,
}

impl Entry {
    /// Remembers the result; a twin forgets it.
    pub fn finished(scenario: &Scenario) -> Self {
        if scenario.has(Twin::ForgetDone) {
            Self::default()
        } else {
            Self { progress: Progress::Finished, ..Self::default() }
        }
    }

    /// Whether its accept or release is unanswered on another connection, to any broker.
    pub fn is_unanswered_elsewhere(&self, id: ConnectionId) -> bool {
        self.unanswered_on.is_some_and(|place| place != (id.broker, id.slot))
    }

    /// Whether its accept or release is unanswered on this connection.
    pub fn is_unanswered_on(&self, id: ConnectionId) -> bool {
        self.unanswered_on == Some((id.broker, id.slot))
    }

    /// The result is acknowledged, so the accept is due now, not earlier (rule 1). Without a lock the result is
    /// remembered.
    pub fn publish(&mut self, scenario: &Scenario) {
        if scenario.has(Twin::AcceptEarly) && self.unanswered_on.is_some() {
            self.progress = Progress::Accepting;
        } else if self.lock.is_some() {
            self.progress = Progress::Done;
        } else {
            *self = Self::finished(scenario);
        }
    }

    /// Notes that the worker considers the lock lost (rule 16).
    pub fn lose_lock(&mut self, scenario: &Scenario) {
        match self.progress {
            Progress::Running | Progress::Publishing => {
                self.lock = None;
                self.renewal_due = false;
                self.search = true;
            }
            Progress::Done | Progress::Accepting | Progress::Finished => *self = Self::finished(scenario),
            _ => *self = Self::default(),
        }
    }
}
