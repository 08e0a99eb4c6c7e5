//! The queue in Kafka: its topics and the share group, with the settings that the promises rest on.
//!
//! Both programs call [`prepare`] before anything is accepted or fetched, so that it does not matter who starts first; what is
//! there already and right is left alone, so that a fleet that starts together does not write the same settings over and over.

use crate::config::Common;
use crate::kafka::admin::{self, TopicSpec};
use crate::kafka::cluster::Cluster;
use crate::kafka::error::{ErrorCode, KafkaError, Retry};
use std::collections::BTreeMap;
use std::time::Duration;

/// The group's lock on a record (KIP-932 `share.record.lock.duration.ms`): a worker that hangs blocks its tasks so long.
const LOCK: Duration = Duration::from_secs(15);
/// The broker drops a record silently after so many deliveries: the largest value there is, so that ours comes first.
const DELIVERY_LIMIT: u16 = 10;
/// Between our limit of starts and the broker's limit of deliveries there must be room for deliveries that are no starts.
const DELIVERY_ROOM: u16 = 2;
/// Records delivered beyond the oldest unfinished one, at the most; Kafka's largest value.
const PARTITION_LOCKS: u32 = 4_000;
/// How long tasks are kept, done or not.
const TASKS_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long results are kept at least.
const LEAST_RESULTS_RETENTION: Duration = Duration::from_secs(3600);
/// How long dead letters are kept.
const DEAD_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long starts of suspects are remembered.
const STARTS_RETENTION: Duration = Duration::from_secs(3600);
/// Largest batch on the dead-letter topic, in bytes: what Kafka takes by default elsewhere, and room for our headers.
const DEAD_MESSAGE_BYTES: u32 = 2 * 1024 * 1024;

const TIMESTAMP_TYPE: &str = "message.timestamp.type";
const LOG_APPEND_TIME: &str = "LogAppendTime";

/// The queue as it was found or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The group's lock on a record.
    pub lock: Duration,
    /// Partitions of the tasks topic.
    pub tasks_partitions: usize,
}

/// Why the queue cannot be used now.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Nothing that time changes: exit 2. Says what the cluster or the configuration needs.
    #[error("{0}")]
    Unusable(String),
    /// Kafka is away or not ready yet: try again.
    #[error(transparent)]
    Unreachable(KafkaError),
}

impl From<KafkaError> for PrepareError {
    fn from(error: KafkaError) -> Self {
        match &error {
            KafkaError::Unsupported(needed) => Self::Unusable(needed.clone()),
            // Fewer brokers than replicas: the others may still be starting.
            KafkaError::Broker { code: ErrorCode::INVALID_REPLICATION_FACTOR, .. } => Self::Unreachable(error),
            KafkaError::Broker { code, .. } if code.retry() == Retry::Never => Self::Unusable(error.to_string()),
            _ => Self::Unreachable(error),
        }
    }
}

/// Creates what is missing, sets what is different, reads the group's settings back.
///
/// `max_deliveries`: the worker's limit of starts, to be checked against the broker's limit of deliveries.
///
/// # Errors
/// [`PrepareError`]: unusable for good, or to be tried again.
pub fn prepare(cluster: &Cluster, common: &Common, max_deliveries: Option<u16>) -> Result<Queue, PrepareError> {
    admin::check_share_support(cluster)?;
    let mut tasks_partitions = 1;
    for spec in topics(common) {
        let ensured = admin::ensure_topic(cluster, &spec)?;
        if spec.name == common.tasks_topic {
            tasks_partitions = ensured.topic.partitions.len();
        }
        if !ensured.created {
            check_topic(cluster, &spec)?;
        }
    }
    let wanted_partitions = usize::try_from(common.tasks_partitions).unwrap_or(1);
    if tasks_partitions != wanted_partitions {
        log::warn!(
            "topic {} has {tasks_partitions} partition(s), TASKS_PARTITIONS says {wanted_partitions}: it is left as it is",
            common.tasks_topic
        );
    }
    let settings = prepare_group(cluster, &common.worker_group)?;
    check_delivery_limit(&settings, &common.worker_group, max_deliveries)?;
    let lock = number(&settings, "share.record.lock.duration.ms").map_or(LOCK, Duration::from_millis);
    Ok(Queue { lock, tasks_partitions })
}

/// The four topics. Broker time everywhere: a machine whose clock is off could not write otherwise (error 32).
fn topics(common: &Common) -> [TopicSpec; 4] {
    let spec = |name: String, partitions: i32, retention: Duration, more: Vec<(&'static str, String)>| {
        let mut configs = vec![
            (TIMESTAMP_TYPE, LOG_APPEND_TIME.to_owned()),
            ("cleanup.policy", "delete".to_owned()),
            // The broker decompresses what a foreign producer compressed: no reader of ours can.
            ("compression.type", "uncompressed".to_owned()),
            ("retention.ms", retention.as_millis().to_string()),
        ];
        configs.extend(more);
        TopicSpec { name, partitions, replication_factor: common.replication_factor, configs }
    };
    let results_retention = LEAST_RESULTS_RETENTION.max(common.result_retention);
    [
        spec(common.tasks_topic.clone(), common.tasks_partitions, TASKS_RETENTION, Vec::new()),
        spec(common.results_topic.clone(), 1, results_retention, Vec::new()),
        spec(common.dead_topic(), 1, DEAD_RETENTION, vec![("max.message.bytes", DEAD_MESSAGE_BYTES.to_string())]),
        spec(common.starts_topic(), 1, STARTS_RETENTION, Vec::new()),
    ]
}

/// A topic that somebody else created: its time must be the broker's, whatever else they chose.
fn check_topic(cluster: &Cluster, spec: &TopicSpec) -> Result<(), PrepareError> {
    let found = admin::topic_configs(cluster, &spec.name)?;
    if found.get(TIMESTAMP_TYPE).is_none_or(|kind| kind == LOG_APPEND_TIME) {
        return Ok(());
    }
    log::warn!("topic {} has {TIMESTAMP_TYPE}={}; setting {LOG_APPEND_TIME}", spec.name, found[TIMESTAMP_TYPE]);
    admin::set_topic_config(cluster, &spec.name, TIMESTAMP_TYPE, LOG_APPEND_TIME)?;
    Ok(())
}

/// The group's settings, the first four required; each written in a request of its own, and only where it differs.
fn prepare_group(cluster: &Cluster, group: &str) -> Result<BTreeMap<String, String>, PrepareError> {
    let required = [
        // The default, latest, would lose what was sent before the first worker came.
        ("share.auto.offset.reset", "earliest".to_owned()),
        ("share.record.lock.duration.ms", LOCK.as_millis().to_string()),
        ("share.delivery.count.limit", DELIVERY_LIMIT.to_string()),
        ("share.partition.max.record.locks", PARTITION_LOCKS.to_string()),
    ];
    let found = admin::group_configs(cluster, group)?;
    for (key, value) in &required {
        if found.get(*key) == Some(value) {
            continue;
        }
        match admin::set_group_config(cluster, group, key, value) {
            Ok(()) => {}
            // The broker caps it below our wish, or does not know it: what it has is checked afterwards.
            Err(KafkaError::Broker { code: ErrorCode::INVALID_CONFIG, message, .. }) => {
                log::warn!("Kafka does not take {key}={value} for group {group}: {}", message.unwrap_or_default());
            }
            Err(error) => return Err(error.into()),
        }
    }
    // Kafka 4.4: assignments at once instead of once a second. Older brokers do not know it (error 40) and are slower to join.
    let interval = ("share.assignment.interval.ms", "0");
    if found.get(interval.0).is_some_and(|value| value != interval.1) {
        match admin::set_group_config(cluster, group, interval.0, interval.1) {
            Ok(()) | Err(KafkaError::Broker { code: ErrorCode::INVALID_CONFIG, .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let settled = admin::group_configs(cluster, group)?;
    if settled.get("share.auto.offset.reset").is_some_and(|value| value != "earliest") {
        return Err(PrepareError::Unusable(format!(
            "group {group} has share.auto.offset.reset={}; it must be earliest, or tasks sent before the first worker are lost",
            settled["share.auto.offset.reset"]
        )));
    }
    Ok(settled)
}

fn check_delivery_limit(
    settings: &BTreeMap<String, String>,
    group: &str,
    max_deliveries: Option<u16>,
) -> Result<(), PrepareError> {
    let (Some(ours), Some(limit)) = (max_deliveries, number(settings, "share.delivery.count.limit")) else {
        return Ok(());
    };
    let least = u64::from(ours + DELIVERY_ROOM) + 1;
    if limit < least {
        return Err(PrepareError::Unusable(format!(
            "group {group} has share.delivery.count.limit={limit}: the broker would drop tasks before MAX_DELIVERIES={ours} \
             is reached; it must be at least {least} (the broker's group.share.max.delivery.count.limit caps it)"
        )));
    }
    Ok(())
}

fn number(settings: &BTreeMap<String, String>, key: &str) -> Option<u64> {
    settings.get(key).and_then(|value| value.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("share.delivery.count.limit".to_owned(), value.to_owned())])
    }

    #[test]
    fn a_delivery_limit_near_ours_is_refused_with_the_arithmetic() {
        for (found, ours, usable) in
            [("10", 5, true), ("8", 5, true), ("7", 5, false), ("10", 7, true), ("5", 2, true), ("4", 2, false)]
        {
            let checked = check_delivery_limit(&limit(found), "workers", Some(ours));
            assert_eq!(checked.is_ok(), usable, "limit {found}, MAX_DELIVERIES {ours}");
        }
        let error = check_delivery_limit(&limit("5"), "workers", Some(5)).unwrap_err().to_string();
        assert!(error.contains("=5") && error.contains("at least 8"), "{error}");
    }

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
    fn results_are_kept_as_long_as_they_can_be_asked_for() {
        let common = Common { result_retention: Duration::from_secs(7_200), ..Common::default() };
        let results = &topics(&common)[1];
        assert!(results.configs.contains(&("retention.ms", "7200000".to_owned())), "{results:?}");
        let short = Common { result_retention: Duration::from_secs(60), ..Common::default() };
        assert!(topics(&short)[1].configs.contains(&("retention.ms", "3600000".to_owned())));
    }
}
