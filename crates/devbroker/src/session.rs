//! A share session. Data only; [`share_fetch`](super::share_fetch) changes it.

use std::sync::Arc;

use super::share_partition::PartitionKey;

/// Key of a session: one node, and one member of one group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SessionKey {
    pub node: i32,
    pub group: String,
    pub member: Arc<str>,
}

/// A share session.
#[derive(Debug)]
pub(super) struct Session {
    /// When this connection ends, so does the session.
    pub connection: u64,
    /// Distinguishes sessions that follow each other under the same key.
    pub number: u64,
    /// The epoch of the next request.
    pub epoch: i32,
    /// The fetched partitions; each request begins with the next one.
    pub partitions: Vec<PartitionKey>,
    pub turn: usize,
}
