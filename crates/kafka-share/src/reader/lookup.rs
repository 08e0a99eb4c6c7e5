//! Reads single records by their offsets. Called by the gateway (results, tasks).

use std::time::Duration;

use super::ReadRecord;
use crate::cluster::Cluster;
use crate::error::{ErrorCode, KafkaError, Result, Retry};
use crate::fetch::{self, Fetched, Limits};
use crate::pool::Pool;
use crate::records;

/// Reads single records by their offsets on kept connections.
#[derive(Debug)]
pub struct Lookup {
    pool: Pool,
}

impl Lookup {
    /// Makes a look-up; it asks nothing yet.
    #[must_use]
    pub fn new(cluster: Cluster) -> Self {
        Self { pool: Pool::new(cluster) }
    }

    /// Returns the record at this offset, `None` if it no longer exists.
    ///
    /// # Errors
    /// The leader's error, after one repetition with fresh metadata.
    pub fn read(&mut self, topic: &str, partition: i32, offset: i64) -> Result<Option<ReadRecord>> {
        match self.try_read(topic, partition, offset) {
            // The connection was idle, or the leader has moved: try once more.
            Err(error) if error.retry() != Retry::Never => {
                self.pool.cluster().refresh(&[topic])?;
                self.try_read(topic, partition, offset)
            }
            outcome => outcome,
        }
    }

    fn try_read(&mut self, topic: &str, partition: i32, offset: i64) -> Result<Option<ReadRecord>> {
        let leader = self.pool.cluster().leader(topic, partition)?;
        // One byte: a broker still sends one whole batch.
        let limits = Limits { max_wait: Duration::ZERO, max_bytes: 1, min_bytes: 1 };
        let found = fetch_one(&mut self.pool, leader, topic, (partition, offset), limits)?;
        if found.code == ErrorCode::OFFSET_OUT_OF_RANGE {
            return Ok(None);
        }
        found.code.check("Fetch", Some(topic))?;
        let decoded = records::decode(&found.bytes, offset);
        if decoded.is_damaged {
            // Only this response may be damaged, so the record may still exist.
            self.pool.drop_node(leader);
            return Err(KafkaError::broker("Fetch", ErrorCode::CORRUPT_MESSAGE, Some(topic)));
        }
        let first = decoded.records.into_iter().next();
        Ok(first.filter(|record| record.offset == offset).map(|record| ReadRecord::new(partition, record)))
    }
}

/// Sends one Fetch for one partition. Also called by the producer, which searches for its own batches.
pub(crate) fn fetch_one(
    pool: &mut Pool,
    leader: i32,
    topic: &str,
    wanted: (i32, i64),
    limits: Limits,
) -> Result<Fetched> {
    let timeout = limits.max_wait + pool.cluster().options().request_timeout;
    let request = fetch::request(topic, &[wanted], limits);
    if !pool.muted_for(leader).is_zero() {
        // Callers wait for a single record, and the broker reads a new connection at once.
        pool.drop_node(leader);
    }
    let response = pool.get(leader)?.call(fetch::VERSION, &request, timeout)?;
    let partition = fetch::open(response)?.into_iter().find(|fetched| fetched.partition == wanted.0);
    // The response to a throttled fetch names no topic.
    let is_throttled = !pool.muted_for(leader).is_zero();
    let code = if is_throttled { ErrorCode::THROTTLING_QUOTA_EXCEEDED } else { ErrorCode::UNKNOWN_TOPIC_OR_PARTITION };
    partition.ok_or_else(|| KafkaError::broker("Fetch", code, Some(topic)))
}
