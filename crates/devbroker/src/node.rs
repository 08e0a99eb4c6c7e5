//! One node of the cluster, as the controller and its clients see it. Data only; [`nodes`](super::nodes) changes it.

use std::net::SocketAddr;
use std::time::Instant;

/// Metadata's leader for a partition without a leader.
pub(super) const NO_LEADER: i32 = -1;

/// Condition of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// It works and answers.
    Running,
    /// SIGSTOP: it does nothing, and no lock of its partitions expires.
    Frozen,
    /// Its network drops everything: it works, receives nothing, and locks of its partitions expire.
    Cut,
    /// Its process has ended.
    Down,
}

/// A node; ids count from 1 in the order of the list.
#[derive(Debug)]
pub(super) struct Node {
    /// The address that clients get.
    pub address: SocketAddr,
    pub condition: Condition,
    /// Since when the controller has not heard from it.
    pub silent_since: Option<Instant>,
    /// It leads and coordinates nothing, and Metadata omits it.
    pub fenced: bool,
    /// It stays fenced until then, although it runs.
    pub fenced_until: Option<Instant>,
    /// As a coordinator it loads its state until then.
    pub loading_until: Option<Instant>,
    /// No lock of its partitions expires before then.
    pub grace_until: Option<Instant>,
}

impl Node {
    /// Makes a running node.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            condition: Condition::Running,
            silent_since: None,
            fenced: false,
            fenced_until: None,
            loading_until: None,
            grace_until: None,
        }
    }

    /// Whether time passes for the partitions it leads.
    pub fn keeps_time(&self, now: Instant) -> bool {
        matches!(self.condition, Condition::Running | Condition::Cut)
            && self.grace_until.is_none_or(|until| until <= now)
    }
}
