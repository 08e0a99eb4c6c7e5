//! The kinds of faults, and their names in scenarios.
//!
//! `faults` has their effects. Planned events of a worker (stop, login, the end of a visit) are faults, too.

use crate::ids::numbered;

numbered!(
    /// A kind of fault. A scenario sets how often each may occur; the search tries every moment.
    Fault, PerFault:
    /// `move`: the leader of a partition changes in order.
    LeaderMove
    /// `crash`: a broker ends; its connections close and its unpersisted locks are lost.
    Crash
    /// `freeze`: a broker freezes and keeps its connections.
    Freeze
    /// `hole`: one connection becomes a black hole in both directions.
    BlackHole
    /// `rst`: one connection is reset at the worker's side only.
    Reset
    /// `cut`: all connections of worker 0 to a broker stall; no byte is lost.
    Cut
    /// `coord`: the share coordinator is unavailable, so no accept or release is persisted.
    Coordinator
    /// `ro`: the results topic is unavailable.
    Results
    /// `kill`: a worker is killed.
    Kill
    /// `term`: a worker gets SIGTERM.
    Terminate
    /// `quiet`: a worker gets SIGUSR1. SIGUSR2 follows at any time.
    Quiet
    /// `login`: a worker replaces a connection on purpose, because its login or certificate expires.
    Login
    /// `visit`: a visit of worker 0 ends: another worker's partition leaves its session, and the leader stays.
    Visit
    /// `pfail`: the persister gives up a write with error 15.
    PersisterFails
);

impl Fault {
    /// The name in scenarios.
    pub fn name(self) -> &'static str {
        match self {
            Self::LeaderMove => "move",
            Self::Crash => "crash",
            Self::Freeze => "freeze",
            Self::BlackHole => "hole",
            Self::Reset => "rst",
            Self::Cut => "cut",
            Self::Coordinator => "coord",
            Self::Results => "ro",
            Self::Kill => "kill",
            Self::Terminate => "term",
            Self::Quiet => "quiet",
            Self::Login => "login",
            Self::Visit => "visit",
            Self::PersisterFails => "pfail",
        }
    }

    /// The fault of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }
}
