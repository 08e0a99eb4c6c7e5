//! Runs in both programs before any task is accepted or fetched: checks the cluster, creates the topics, writes the
//! share group's settings and reads them back.
//!
//! Several processes may do it at once: each step finds what another one has done. It repeats nothing; [`PrepareError`]
//! says whether that is worth while. Called by `worker::run` and `gateway::run`; the worker's upkeep calls
//! [`restore_side_topics`].

mod group;
mod topics;

use std::time::Duration;

use crate::config::{Common, WorkerConfig};
use kafka_share::{Cluster, ErrorCode, KafkaError, Retry, admin};

pub use topics::restore_side_topics;

/// The queue as it was found or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// How long a fetched task is locked for its worker, unless renewed (`share.record.lock.duration.ms`).
    pub lock: Duration,
    /// Deliveries of one record after which the broker drops it without a word (`share.delivery.count.limit`).
    pub delivery_limit: u16,
    /// Offsets from the oldest unfinished task on after which the broker delivers nothing more
    /// (`share.partition.max.record.locks`).
    pub record_locks: u32,
    /// Partitions of the tasks topic, those without a leader included.
    pub tasks_partitions: usize,
}

/// How often a worker starts one task, and for how long at most: what the queue has to suit for a worker.
#[derive(Clone, Copy, Debug)]
pub struct Starts {
    /// `MAX_DELIVERIES`
    pub most: u16,
    /// `TASK_TIMEOUT`
    pub longest: Duration,
}

impl Starts {
    /// Those of a worker with this configuration.
    #[must_use]
    pub fn of(config: &WorkerConfig) -> Self {
        Self { most: config.max_deliveries, longest: config.task_timeout }
    }
}

/// Why the queue is not ready.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The cluster or a setting is not usable, and waiting does not change it; says what is needed. Exit code 2.
    #[error("{0}")]
    Unusable(String),
    /// Kafka does not answer, or not yet as it should: to be tried again.
    #[error(transparent)]
    Unreachable(KafkaError),
}

impl From<KafkaError> for PrepareError {
    fn from(error: KafkaError) -> Self {
        match error {
            KafkaError::Unsupported(text) => Self::Unusable(text),
            KafkaError::Interrupted => Self::Unreachable(error),
            // Fewer brokers than replicas: the others may still be starting.
            KafkaError::Broker { code: ErrorCode::INVALID_REPLICATION_FACTOR, .. } => Self::Unreachable(error),
            error if error.retry() == Retry::Never => Self::Unusable(error.to_string()),
            error => Self::Unreachable(error),
        }
    }
}

impl PrepareError {
    /// The same with the name of what it is about, and the right where one is missing: the broker's own words name
    /// neither.
    fn about(what: &str, error: KafkaError) -> Self {
        let right = error.missing_right().map(|right| format!("{right} is missing: "));
        match Self::from(error) {
            Self::Unusable(text) => Self::Unusable(format!("{what}: {}{text}", right.unwrap_or_default())),
            unreachable => unreachable,
        }
    }
}

/// Prepares the queue: share groups, the group's settings, the topics.
///
/// A partition without a leader keeps nothing from starting: `tasks` and `results` need one partition that has one.
///
/// `starts`: of a worker, to be checked against the broker's limit of deliveries; `None` in a gateway, which needs no
/// right to the side topics.
///
/// # Errors
/// See [`PrepareError`]; a program that can wait tries again after `Unreachable`.
pub fn prepare(cluster: &Cluster, common: &Common, starts: Option<Starts>) -> Result<Queue, PrepareError> {
    admin::check_share_support(cluster)?;
    let group = group::prepare(cluster, &common.worker_group, starts.map(|starts| starts.most))?;
    let tasks = topics::prepare(cluster, common, starts)?;
    group::await_leaders(cluster, &common.worker_group, &tasks)?;
    Ok(Queue {
        lock: group.lock,
        delivery_limit: group.delivery_limit,
        record_locks: group.record_locks,
        tasks_partitions: tasks.partitions.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_time_cures_is_tried_again_and_what_it_does_not_is_not() {
        let of = |code: i16| PrepareError::from(KafkaError::broker("CreateTopics", ErrorCode(code), None));
        for code in [14, 15, 16, 7, 5, 38] {
            assert!(matches!(of(code), PrepareError::Unreachable(_)), "{code}");
        }
        for code in [17, 29, 31, 37, 40, 44] {
            assert!(matches!(of(code), PrepareError::Unusable(_)), "{code}");
        }
        assert!(matches!(PrepareError::from(KafkaError::Interrupted), PrepareError::Unreachable(_)));
        assert!(matches!(PrepareError::from(KafkaError::Unsupported("4.2".into())), PrepareError::Unusable(_)));
    }

    #[test]
    fn missing_right_is_named_with_what_it_is_about() {
        let refused = |request, code| KafkaError::broker(request, ErrorCode(code), Some("Authorization failed."));
        let error = PrepareError::about("topic \"tasks\"", refused("DescribeConfigs", 29)).to_string();
        assert!(error.starts_with("topic \"tasks\": the right DescribeConfigs on the topic is missing"), "{error}");
        let error = PrepareError::about("group \"workers\"", refused("IncrementalAlterConfigs", 30)).to_string();
        assert!(error.starts_with("group \"workers\": the right AlterConfigs on the group is missing"), "{error}");
    }
}
