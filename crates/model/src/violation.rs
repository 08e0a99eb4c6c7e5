//! The safety properties that a state can break. [`property`](crate::property) and the steps find them.

use std::fmt;

/// A broken safety property. The search does not continue from a state that has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Violation {
    /// I2: a record is accepted without a result in the log.
    AcceptedWithoutResult,
    /// I3: more starts than one plus one for each permitted loss of the lock.
    StartedWithoutCause,
    /// A worker with up-to-date metadata starts a record whose lock it does not hold.
    StartedWithoutLock,
    /// A quiet worker starts a task.
    StartedWhileQuiet,
    /// A quiet worker holds a task that it has not started.
    HeldWhileQuiet,
    /// I6: a record is locked for a worker that has left with exit code 0.
    HiddenAfterExit,
    /// A lock expires although no connection or broker was silent and no worker was killed.
    LockRanOut,
    /// A record is locked for a live worker that does not know of it.
    HiddenFromOwner,
    /// A killed worker still acquires a record, which stays hidden until its lock expires.
    HiddenByKilled,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AcceptedWithoutResult => "I2 accepted without a result",
            Self::StartedWithoutCause => "I3 second start without a cause",
            Self::StartedWithoutLock => "a record starts whose lock the worker does not hold, with metadata up to date",
            Self::StartedWhileQuiet => "a quiet worker starts a task",
            Self::HeldWhileQuiet => "quiet worker holds a task that it has not started",
            Self::HiddenAfterExit => "I6 record hidden after exit 0",
            Self::LockRanOut => "lock ran out without a cause",
            Self::HiddenFromOwner => "record hidden until its lock runs out",
            Self::HiddenByKilled => "killed worker hides a record until its lock runs out",
        })
    }
}
