//! What the threads of a producer report to its actor.
//!
//! Data only. Sent by [`link`](super::link) and [`asker`](super::asker), received by [`actor`](super::actor).

use std::sync::Arc;

use kafka_protocol::messages::ProduceResponse;

use super::LaneKey;
use super::lane::Identity;
use crate::error::{KafkaError, Result};

/// What came of a job, or of a question to the cluster.
#[derive(Debug)]
pub(super) enum Report {
    /// The connection stands, and the logs end there; or nothing is known.
    Opened(i32, Result<Vec<(LaneKey, Result<i64>)>>),
    /// The broker has answered, or nothing is known about the request.
    Produced(i32, Result<ProduceResponse>),
    /// The new producer id, and where the batch stands.
    LookedUp(i32, LaneKey, Result<(Identity, Result<Option<i64>>)>),
    /// What the cluster knows.
    Asked(Asked),
}

/// What the cluster has told.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) identity: Option<Identity>,
    /// Each topic's leaders, or what is wrong with it alone.
    pub(super) topics: Vec<(Arc<str>, Result<Vec<i32>>)>,
    /// Those about which nothing was told.
    pub(super) missed: Vec<Arc<str>>,
    /// Any broker.
    pub(super) node: Option<i32>,
    /// Why not everything was told.
    pub(super) failed: Option<KafkaError>,
}
