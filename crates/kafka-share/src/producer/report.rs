//! Reports of a producer's threads to its actor.
//!
//! Data only. Sent by [`link`](super::link) and [`asker`](super::asker), received by [`actor`](super::actor).

use std::sync::Arc;

use kafka_protocol::messages::ProduceResponse;

use super::LaneKey;
use super::lane::Identity;
use crate::error::{KafkaError, Result};

/// Result of a job, or of a question to the cluster.
#[derive(Debug)]
pub(super) enum Report {
    /// The connection works, with the log ends; or the error.
    Opened(i32, Result<Vec<(LaneKey, Result<i64>)>>),
    /// The broker's response; on an error the request's outcome is unknown.
    Produced(i32, Result<ProduceResponse>),
    /// The new producer id, and the offset of the batch.
    LookedUp(i32, LaneKey, Result<(Identity, Result<Option<i64>>)>),
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
