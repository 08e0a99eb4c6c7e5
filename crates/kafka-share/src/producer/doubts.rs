//! Searches the log for a batch whose outcome is unknown, by its producer id and sequence number.
//!
//! Blocks its thread on requests to the partition's leader; repeats nothing. Called by a leader's
//! [`link`](super::link).

use std::time::Duration;

use kafka_protocol::messages::InitProducerIdRequest;

use super::LaneKey;
use super::lane::Identity;
use crate::cluster::Cluster;
use crate::error::{ErrorCode, KafkaError, Result};
use crate::fetch::Limits;
use crate::offsets::{self, Position};
use crate::pool::Pool;
use crate::reader::fetch_one;
use crate::records::{self, BatchIdentity};

/// Bytes of one fetch during the search.
const SEARCH_BYTES: i32 = 1 << 20;

/// A batch with an unknown outcome.
#[derive(Clone, Debug)]
pub(super) struct Doubt {
    pub(super) key: LaneKey,
    pub(super) batch: BatchIdentity,
    /// If the batch was written, it is at this offset or later.
    pub(super) from: i64,
}

/// Gets a new producer id (InitProducerId v3, KIP-98 and KIP-360). A new cluster first returns 14 or 15.
///
/// # Errors
/// The broker's code, for example 31; or no broker answered.
pub(super) fn new_identity(cluster: &Cluster) -> Result<Identity> {
    // The codec's default transactional id is empty, which brokers refuse; null means idempotent only.
    let request = InitProducerIdRequest::default().with_transactional_id(None).with_transaction_timeout_ms(0);
    let response = cluster.ask(3, &request)?;
    ErrorCode(response.error_code).check("InitProducerId", None)?;
    Ok(Identity { id: response.producer_id.0, epoch: response.producer_epoch })
}

/// Returns the offset of the batch; `None` if it is not in the log and cannot get into it any more.
///
/// # Errors
/// The log could not be read up to the leader's last write. 19: the end of the leader's log is not replicated yet and
/// so cannot be read.
pub(super) fn search(pool: &mut Pool, node: i32, doubt: &Doubt) -> Result<Option<i64>> {
    let (topic, partition) = (&*doubt.key.0, doubt.key.1);
    // Asked first: later records are not this producer's, which has no request out.
    let end = offsets::log_end(pool, node, topic, partition)?;
    let start = offsets::list(pool, topic, [partition], Position::Start)?.get(&partition).copied().unwrap_or(0);
    // The log ends before the last acknowledged record: it was cut or created again, so all of it is searched.
    let mut next = if (start..=end).contains(&doubt.from) { doubt.from } else { start };
    let limits = Limits { max_wait: Duration::ZERO, max_bytes: SEARCH_BYTES, min_bytes: 1 };
    while next < end {
        let fetched = fetch_one(pool, node, topic, (partition, next), limits)?;
        fetched.code.check("Fetch", Some(topic))?;
        let before = next;
        for batch in records::batches(&fetched.bytes) {
            if batch.identity() == doubt.batch {
                return Ok(Some(batch.base_offset()));
            }
            next = next.max(batch.last_offset().saturating_add(1));
        }
        if next == before {
            let (code, why) = if fetched.high_watermark <= next {
                (ErrorCode::NOT_ENOUGH_REPLICAS, "the end of the log is not replicated yet")
            } else {
                (ErrorCode::CORRUPT_MESSAGE, "no whole batch where the log has records")
            };
            return Err(KafkaError::broker("Fetch", code, Some(why)));
        }
    }
    Ok(None)
}
