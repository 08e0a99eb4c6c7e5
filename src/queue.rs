//! Prepares the queue in both programs before any task is accepted or fetched: checks the cluster, creates the topics,
//! writes the share group's settings and reads them back.
//!
//! Several processes may do this at once: each step accepts what another process has done. Called by `worker::start`
//! and the gateway's thread `kafka`; the worker's upkeep calls [`restore_side_topics`].

mod group;
mod topics;

use std::time::{Duration, Instant};

use crate::config::{Common, WorkerConfig};
use crate::outage::{Outage, Refusal, Refusals};
use kafka_share::{Cluster, ErrorCode, KafkaError, Retry, admin};
use program::backoff::Backoff;
use program::stop::Stop;

pub use topics::restore_side_topics;

/// How long a starting program waits for a right: Kafka may not have loaded its ACLs yet, or an operator grants them
/// just now.
pub(crate) const RIGHTS_WAIT: Duration = Duration::from_secs(30);
/// First and longest pause while the queue cannot be prepared.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The queue as it was found or created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// How long a fetched task is locked for its worker, unless renewed (`share.record.lock.duration.ms`).
    pub lock: Duration,
    /// After this many deliveries of a record the broker drops it silently (`share.delivery.count.limit`).
    pub delivery_limit: u16,
    /// The broker delivers at most this many offsets beyond the oldest unfinished task
    /// (`share.partition.max.record.locks`).
    pub record_locks: u32,
    /// Partitions of the tasks topic, those without a leader included.
    pub tasks_partitions: usize,
}

/// The limits of a worker that the queue has to fit.
#[derive(Clone, Copy, Debug)]
pub struct Starts {
    /// `MAX_DELIVERIES`: starts of one task.
    pub most: u16,
    /// `TASK_TIMEOUT`: the longest run of one task.
    pub longest: Duration,
}

impl Starts {
    /// The limits of a worker with this configuration.
    #[must_use]
    pub fn of(config: &WorkerConfig) -> Self {
        Self { most: config.max_deliveries, longest: config.task_timeout }
    }
}

/// Why the queue is not ready.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The cluster or a setting cannot be used, and waiting does not help; the text names what is needed. Exit code 2.
    #[error("{0}")]
    Unusable(String),
    /// A right is missing; the text names it. Exit code 2 if that lasts.
    #[error("{0}")]
    Denied(String),
    /// Kafka does not answer, or is not ready yet: retry.
    #[error(transparent)]
    Unreachable(KafkaError),
}

impl From<KafkaError> for PrepareError {
    fn from(error: KafkaError) -> Self {
        match error {
            KafkaError::Unsupported(text) => Self::Unusable(text),
            KafkaError::Interrupted => Self::Unreachable(error),
            // Fewer brokers than replicas: other brokers may still be starting.
            KafkaError::Broker { code: ErrorCode::INVALID_REPLICATION_FACTOR, .. } => Self::Unreachable(error),
            KafkaError::Security { is_final: true, .. } => Self::Unusable(error.to_string()),
            error if error.missing_right().is_some() => Self::Denied(error.explained()),
            error if error.retry() == Retry::Never => Self::Unusable(error.to_string()),
            error => Self::Unreachable(error),
        }
    }
}

impl PrepareError {
    /// A listener with logins serves the question for the cluster's versions, and closes the connection at the next
    /// request of an anonymous client.
    fn at_first_request(self, common: &Common) -> Self {
        match self {
            Self::Unreachable(KafkaError::Closed { broker }) if !common.security.protocol.has_sasl() => {
                let detail = "it closed the connection at the first request; if its listener wants a login, set \
                              KAFKA_SECURITY_PROTOCOL to SASL_PLAINTEXT or SASL_SSL";
                Self::Unreachable(KafkaError::Security { broker, detail: detail.to_owned(), is_final: false })
            }
            other => other,
        }
    }

    /// Adds the name of the affected resource, which the broker's text does not contain.
    fn about(what: &str, error: KafkaError) -> Self {
        match Self::from(error) {
            Self::Unusable(text) => Self::Unusable(format!("{what}: {text}")),
            Self::Denied(text) => Self::Denied(format!("{what}: {text}")),
            unreachable => unreachable,
        }
    }
}

/// Prepares the queue, and repeats that while Kafka is unreachable, and for 30 s while a right is missing. `starts` as
/// in [`prepare`]. `None`: stopped or interrupted. `Some(Err)`: why this cluster cannot be used.
pub(crate) fn prepare_until(
    cluster: &Cluster,
    common: &Common,
    starts: Option<Starts>,
    stop: &Stop,
) -> Option<Result<Queue, String>> {
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    let mut outage = Outage::new("Kafka", &Refusals::default());
    let mut denied: Option<(String, Instant)> = None;
    loop {
        match prepare(cluster, common, starts) {
            Ok(queue) => {
                outage.over();
                return Some(Ok(queue));
            }
            Err(PrepareError::Unreachable(KafkaError::Interrupted)) => return None,
            Err(PrepareError::Unusable(reason)) => return Some(Err(reason)),
            Err(PrepareError::Denied(reason)) => {
                if waited_for(&mut denied, &reason) >= RIGHTS_WAIT {
                    return Some(Err(reason));
                }
                outage.report(&Refusal(reason));
            }
            Err(PrepareError::Unreachable(error)) => {
                denied = None;
                outage.report(&error);
            }
        }
        stop.sleep(backoff.pause()).ok()?;
    }
}

/// How long a program has waited for this right, and for no other meanwhile.
pub(crate) fn waited_for(denied: &mut Option<(String, Instant)>, reason: &str) -> Duration {
    if denied.as_ref().is_none_or(|(known, _)| known != reason) {
        *denied = Some((reason.to_owned(), Instant::now()));
    }
    denied.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed())
}

/// Prepares the queue once: share groups, the group's settings, the topics.
///
/// Partitions without a leader do not prevent a start: `tasks` and `results` need one partition with a leader each.
///
/// `starts`: a worker's limits, checked against the broker's; `None` in a gateway, which needs no side topics.
///
/// # Errors
/// See [`PrepareError`]; a program that can wait retries after `Unreachable`, and for a while after `Denied`.
pub fn prepare(cluster: &Cluster, common: &Common, starts: Option<Starts>) -> Result<Queue, PrepareError> {
    admin::check_share_support(cluster)?;
    // Logged at the end: an attempt that fails is repeated.
    let mut warnings = Vec::new();
    let group = group::prepare(cluster, &common.worker_group, starts.map(|starts| starts.most), &mut warnings);
    let group = group.map_err(|error| error.at_first_request(common))?;
    let tasks = topics::prepare(cluster, common, starts, &mut warnings)?;
    group::await_leaders(cluster, &common.worker_group, &tasks)?;
    warnings.iter().for_each(|warning| log::warn!("{warning}"));
    group::tell_lock(&common.worker_group, group.lock);
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
    fn errors_that_time_fixes_are_unreachable_and_others_are_unusable() {
        let of = |code: i16| PrepareError::from(KafkaError::broker("CreateTopics", ErrorCode(code), None));
        for code in [14, 15, 16, 7, 5, 38] {
            assert!(matches!(of(code), PrepareError::Unreachable(_)), "{code}");
        }
        for code in [17, 37, 40, 44] {
            assert!(matches!(of(code), PrepareError::Unusable(_)), "{code}");
        }
        for code in [29, 30, 31] {
            assert!(matches!(of(code), PrepareError::Denied(_)), "{code}");
        }
        assert!(matches!(PrepareError::from(KafkaError::Interrupted), PrepareError::Unreachable(_)));
        assert!(matches!(PrepareError::from(KafkaError::Unsupported("4.2".into())), PrepareError::Unusable(_)));
    }

    #[test]
    fn missing_right_is_named_with_its_resource() {
        let refused = |request, code| KafkaError::broker(request, ErrorCode(code), Some("Authorization failed."));
        let error = PrepareError::about("topic \"tasks\"", refused("DescribeConfigs", 29)).to_string();
        assert!(error.starts_with("topic \"tasks\": the right DescribeConfigs on the topic is missing"), "{error}");
        let error = PrepareError::about("group \"workers\"", refused("IncrementalAlterConfigs", 30)).to_string();
        assert!(error.starts_with("group \"workers\": the right AlterConfigs on the group is missing"), "{error}");
    }
}
