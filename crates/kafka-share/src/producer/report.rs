//! Reports of a producer's threads to its actor.
//!
//! Data only. Sent by [`link`](super::link) and [`asker`](super::asker), received by [`actor`](super::actor).

use std::sync::Arc;
use std::time::Instant;

use kafka_protocol::messages::ProduceResponse;

use super::LaneKey;
use super::lane::Identity;
use crate::error::{KafkaError, Result};

/// The node of a job that is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) node: i32,
    /// When the node reads the next request at the earliest (KIP-219).
    pub(super) reads_at: Instant,
}

/// Result of a job, or of a question to the cluster.
#[derive(Debug)]
pub(super) enum Report {
    /// The connection works, with the log ends; or the error.
    Opened(Done, Result<Vec<(LaneKey, Result<i64>)>>),
    /// The broker's response; on an error the request's outcome is unknown.
    Produced(Done, Result<ProduceResponse>),
    /// The new producer id, and the offset of the batch.
    LookedUp(Done, LaneKey, Result<(Identity, Result<Option<i64>>)>),
    /// The cluster's response.
    Asked(Asked),
}

/// The cluster's response.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) identity: Option<Identity>,
    /// Each topic's leaders, or the error of this topic alone.
    pub(super) topics: Vec<(Arc<str>, Result<Vec<i32>>)>,
    /// Topics that may be written again.
    pub(super) granted: Vec<Arc<str>>,
    /// Topics without a response.
    pub(super) missed: Vec<Arc<str>>,
    /// Node id of any known broker.
    pub(super) node: Option<i32>,
    /// The error, if something is missing.
    pub(super) failed: Option<KafkaError>,
}
