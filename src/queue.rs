//! What both programs do before a task is accepted or fetched: the cluster is looked at, the topics and the share
//! group's settings are brought about and read back.
//!
//! Whoever starts first does it, the others find it done; every step may run in several processes at once. It repeats
//! nothing: [`PrepareError`] says whether that is worth while. Called by `worker::run` and `gateway::run`.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::config::Common;
use crate::kafka::admin::{self, TopicSpec};
use crate::kafka::{Cluster, ErrorCode, KafkaError, Retry, Topic};

/// The queue as it was found or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// How long a fetched task is locked for its worker, unless renewed (`share.record.lock.duration.ms`).
    pub lock: Duration,
    /// Deliveries after which the broker drops a task that is released (`share.delivery.count.limit`).
    pub delivery_limit: u16,
    /// Offsets from the oldest unfinished task on after which the broker delivers nothing more
    /// (`share.partition.max.record.locks`).
    pub record_locks: u32,
    /// Partitions of the tasks topic.
    pub tasks_partitions: usize,
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

/// Brings the queue about: share groups, the group's settings, the topics.
///
/// `max_deliveries`: the worker's limit of starts, to be checked against the broker's limit of deliveries.
///
/// # Errors
/// See [`PrepareError`]; a program that can wait tries again after `Unreachable`.
pub fn prepare(cluster: &Cluster, common: &Common, max_deliveries: Option<u16>) -> Result<Queue, PrepareError> {
    admin::check_share_support(cluster)?;
    let group = prepare_group(cluster, &common.worker_group)?;
    if let Some(ours) = max_deliveries {
        check_delivery_limit(&common.worker_group, group.delivery_limit, ours)?;
    }
    let tasks = prepare_topic(cluster, &tasks_spec(common))?;
    let tasks_limit =
        number(&admin::topic_configs(cluster, &tasks.name)?, "max.message.bytes").unwrap_or(MESSAGE_BYTES);
    for spec in [results_spec(common), dead_spec(common, tasks_limit), starts_spec(common)] {
        prepare_topic(cluster, &spec)?;
    }
    Ok(Queue {
        lock: group.lock,
        delivery_limit: group.delivery_limit,
        record_locks: group.record_locks,
        tasks_partitions: tasks.partitions.len(),
    })
}

/// Between our limit of starts and the broker's limit of deliveries there must be room for deliveries that are no
/// starts.
const DELIVERY_ROOM: u16 = 2;
const DELIVERY_LIMIT: &str = "share.delivery.count.limit";
const LOCK_DURATION: &str = "share.record.lock.duration.ms";
const RECORD_LOCKS: &str = "share.partition.max.record.locks";

/// At its limit the broker drops a task silently: ours must come first.
fn check_delivery_limit(group: &str, limit: u16, ours: u16) -> Result<(), PrepareError> {
    let least = ours + DELIVERY_ROOM + 1;
    if limit >= least {
        return Ok(());
    }
    Err(PrepareError::Unusable(format!(
        "group {group} has {DELIVERY_LIMIT}={limit}: the broker would drop tasks before MAX_DELIVERIES={ours} is reached; it \
         must be at least {least} (the brokers' group.share.max.delivery.count.limit caps it; in Kafka 4.2 it is set at the \
         brokers, as group.{DELIVERY_LIMIT})"
    )))
}

/// One setting of the share group (KIP-932), and what is written, the best first: a broker refuses values outside of
/// its own bounds.
struct GroupSetting {
    key: &'static str,
    values: &'static [&'static str],
}

const GROUP_SETTINGS: &[GroupSetting] = &[
    // The default, latest, loses what was sent before the first worker.
    GroupSetting { key: "share.auto.offset.reset", values: &["earliest"] },
    // Short, so that a hung worker's tasks are soon elsewhere; renewed while a handler runs.
    GroupSetting { key: LOCK_DURATION, values: &["15000"] },
    // At its limit the broker drops a task silently: our own limit must come first.
    GroupSetting { key: DELIVERY_LIMIT, values: &["10", "9", "8"] },
    // The span of offsets behind one long task; at its end delivery stops without an error.
    GroupSetting { key: RECORD_LOCKS, values: &["4000"] },
    // A member's first assignment comes with its first heartbeat instead of a second later (Kafka 4.4).
    GroupSetting { key: "share.assignment.interval.ms", values: &["0"] },
    // Without it a task could not run longer than its lock (Kafka 4.2, KIP-1222).
    GroupSetting { key: "share.renew.acknowledge.enable", values: &["true"] },
];

/// How long written settings may take to be seen by the broker that is asked.
const SETTLE: Duration = Duration::from_secs(2);
const SETTLE_STEP: Duration = Duration::from_millis(20);

/// The group's settings as they were read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct GroupFacts {
    lock: Duration,
    delivery_limit: u16,
    record_locks: u32,
}

fn prepare_group(cluster: &Cluster, group: &str) -> Result<GroupFacts, PrepareError> {
    let mut found = admin::group_configs(cluster, group)?;
    let mut written = BTreeMap::new();
    for setting in GROUP_SETTINGS {
        if found.get(setting.key).map(String::as_str) != Some(setting.values[0])
            && let Some(value) = write_setting(cluster, group, setting)?
        {
            written.insert(setting.key, value);
        }
    }
    // The answer came from the controller; brokers follow it a moment later.
    let deadline = Instant::now() + SETTLE;
    let seen = |found: &BTreeMap<String, String>| {
        written.iter().all(|(key, value)| found.get(*key).map(String::as_str) == Some(*value))
    };
    while !written.is_empty() {
        found = admin::group_configs(cluster, group)?;
        if seen(&found) || Instant::now() >= deadline {
            break;
        }
        cluster.options().interrupter.sleep(SETTLE_STEP)?;
    }
    // Kafka 4.2 has these for all groups, at the brokers.
    let of_brokers: Vec<&str> =
        [DELIVERY_LIMIT, RECORD_LOCKS].into_iter().filter(|key| !found.contains_key(*key)).collect();
    if !of_brokers.is_empty() {
        let brokers = admin::broker_configs(cluster, cluster.group_coordinator(group)?)?;
        let values = of_brokers.into_iter().filter_map(|key| Some((key, brokers.get(&format!("group.{key}"))?)));
        found.extend(values.map(|(key, value)| (key.to_owned(), value.clone())));
    }
    group_facts(group, &found)
}

/// Writes the first value that the broker takes, and returns it. A key this Kafka does not know (error 40) is none of
/// ours.
fn write_setting(cluster: &Cluster, group: &str, setting: &GroupSetting) -> Result<Option<&'static str>, PrepareError> {
    for value in setting.values {
        match admin::set_group_config(cluster, group, setting.key, value) {
            Ok(()) => return Ok(Some(value)),
            Err(error) if error.code() == Some(ErrorCode::INVALID_CONFIG) => {
                log::debug!("{}={value} is not taken: {error}", setting.key);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Judges what was read back.
fn group_facts(group: &str, found: &BTreeMap<String, String>) -> Result<GroupFacts, PrepareError> {
    let missing = |key: &str| PrepareError::Unusable(format!("Kafka does not tell {key} of group {group}"));
    let reset = found.get("share.auto.offset.reset").map_or("", String::as_str);
    if reset != "earliest" {
        return Err(PrepareError::Unusable(format!(
            "group {group} has share.auto.offset.reset={}; it must be earliest, or tasks sent before the first worker are lost",
            reset.escape_debug()
        )));
    }
    // Kafka 4.1 and before have no such key, and no renewal.
    if found.get("share.renew.acknowledge.enable").is_some_and(|value| value != "true") {
        return Err(PrepareError::Unusable(format!(
            "group {group} has share.renew.acknowledge.enable=false; it must be true, or no task can run longer than its lock"
        )));
    }
    Ok(GroupFacts {
        lock: Duration::from_millis(number(found, LOCK_DURATION).ok_or_else(|| missing(LOCK_DURATION))?),
        delivery_limit: number(found, DELIVERY_LIMIT).ok_or_else(|| missing(DELIVERY_LIMIT))?,
        record_locks: number(found, RECORD_LOCKS).ok_or_else(|| missing(RECORD_LOCKS))?,
    })
}

fn number<N: FromStr>(found: &BTreeMap<String, String>, key: &str) -> Option<N> {
    found.get(key)?.parse().ok()
}

/// Kafka's default for `max.message.bytes`: 1 MiB and the batch's own header.
const MESSAGE_BYTES: u64 = 1_048_588;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long a task may wait for a worker.
const TASKS_RETENTION: Duration = DAY.saturating_mul(7);
/// How long people have to look at what was given up.
const DEAD_RETENTION: Duration = DAY.saturating_mul(30);
/// Retention deletes whole segments: those of the short-lived topics must be short, too.
const SHORT_SEGMENT: Duration = Duration::from_secs(600);

/// Settings that every topic of ours has, whatever the broker's defaults are.
fn common_configs(retention: Duration, message_bytes: u64) -> Vec<(&'static str, String)> {
    vec![
        // The sender's clock may be an hour wrong, and then nothing could be written or every reader would be misled.
        (TIMESTAMP_TYPE, "LogAppendTime".to_owned()),
        // Whoever writes may compress; nobody who reads has to know how.
        (COMPRESSION, "uncompressed".to_owned()),
        ("cleanup.policy", "delete".to_owned()),
        ("retention.ms", retention.as_millis().to_string()),
        ("retention.bytes", "-1".to_owned()),
        ("max.message.bytes", message_bytes.to_string()),
        ("unclean.leader.election.enable", "false".to_owned()),
    ]
}

fn tasks_spec(common: &Common) -> TopicSpec {
    TopicSpec {
        name: common.tasks_topic.clone(),
        partitions: common.tasks_partitions,
        replication_factor: common.replication_factor,
        configs: common_configs(TASKS_RETENTION, MESSAGE_BYTES),
    }
}

/// One partition: all gateways see the records of one task id in one order, and so agree which result was the first.
fn single_spec(common: &Common, name: String, configs: Vec<(&'static str, String)>) -> TopicSpec {
    TopicSpec { name, partitions: 1, replication_factor: common.replication_factor, configs }
}

fn results_spec(common: &Common) -> TopicSpec {
    let mut configs = common_configs(common.result_retention.max(HOUR), MESSAGE_BYTES);
    configs.push(("segment.ms", SHORT_SEGMENT.as_millis().to_string()));
    single_spec(common, common.results_topic.clone(), configs)
}

/// A dead task keeps all it came with and gets headers besides.
fn dead_spec(common: &Common, tasks_limit: u64) -> TopicSpec {
    single_spec(common, common.dead_topic(), common_configs(DEAD_RETENTION, tasks_limit.saturating_mul(2)))
}

fn starts_spec(common: &Common) -> TopicSpec {
    let mut configs = common_configs(HOUR, MESSAGE_BYTES);
    configs.push(("segment.ms", SHORT_SEGMENT.as_millis().to_string()));
    single_spec(common, common.starts_topic(), configs)
}

fn prepare_topic(cluster: &Cluster, spec: &TopicSpec) -> Result<Topic, PrepareError> {
    let ensured = admin::ensure_topic(cluster, spec).map_err(|error| topic_error(spec, error))?;
    if ensured.created {
        log::info!("topic {} created, {} partitions", spec.name, ensured.topic.partitions.len());
        return Ok(ensured.topic);
    }
    let found = admin::topic_configs(cluster, &spec.name)?;
    for (key, value) in corrections(spec, &found) {
        admin::set_topic_config(cluster, &spec.name, key, value).map_err(|error| topic_error(spec, error))?;
        log::warn!("topic {}: {key} was not {value}; it is set now", spec.name);
    }
    for warning in warnings(spec, &found, ensured.topic.partitions.len()) {
        log::warn!("topic {}: {warning}", spec.name);
    }
    Ok(ensured.topic)
}

/// Names the topic: the broker's own words do not always.
fn topic_error(spec: &TopicSpec, error: KafkaError) -> PrepareError {
    match PrepareError::from(error) {
        PrepareError::Unusable(text) => {
            PrepareError::Unusable(format!("topic \"{}\": {text}", spec.name.escape_debug()))
        }
        unreachable => unreachable,
    }
}

const TIMESTAMP_TYPE: &str = "message.timestamp.type";
const COMPRESSION: &str = "compression.type";

/// Settings of an existing topic that the programs cannot work without.
fn corrections<'a>(spec: &'a TopicSpec, found: &BTreeMap<String, String>) -> Vec<(&'static str, &'a str)> {
    let needed = spec.configs.iter().filter(|(key, _)| [TIMESTAMP_TYPE, COMPRESSION].contains(key));
    needed.filter(|(key, value)| found.get(*key) != Some(value)).map(|(key, value)| (*key, value.as_str())).collect()
}

/// What else differs in an existing topic, as far as it can lose something.
fn warnings(spec: &TopicSpec, found: &BTreeMap<String, String>, partitions: usize) -> Vec<String> {
    let mut warnings = Vec::new();
    let wanted: BTreeMap<String, String> =
        spec.configs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let retention = |configs| number::<i64>(configs, "retention.ms");
    if let (Some(is), Some(wanted)) = (retention(found), retention(&wanted))
        && (0..wanted).contains(&is)
    {
        warnings.push(format!("retention.ms is {is}, less than {wanted}: records may be deleted before they are read"));
    }
    if let Some(policy) = found.get("cleanup.policy").filter(|policy| policy.contains("compact")) {
        warnings.push(format!(
            "cleanup.policy is \"{}\": records may be deleted before they are read",
            policy.escape_debug()
        ));
    }
    if usize::try_from(spec.partitions) != Ok(partitions) {
        warnings.push(format!("it has {partitions} partitions, {} are configured; it stays as it is", spec.partitions));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(changed: &[(&str, &str)]) -> BTreeMap<String, String> {
        let good = [
            ("share.auto.offset.reset", "earliest"),
            (LOCK_DURATION, "15000"),
            (DELIVERY_LIMIT, "10"),
            (RECORD_LOCKS, "4000"),
        ];
        good.iter().chain(changed).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_delivery_limit_near_ours_is_refused_with_the_arithmetic() {
        for (found, ours, usable) in
            [(10, 5, true), (8, 5, true), (7, 5, false), (10, 7, true), (5, 2, true), (4, 2, false)]
        {
            let checked = check_delivery_limit("workers", found, ours);
            assert_eq!(checked.is_ok(), usable, "limit {found}, MAX_DELIVERIES {ours}");
        }
        let error = check_delivery_limit("workers", 5, 5).expect_err("too near").to_string();
        assert!(error.contains("=5") && error.contains("at least 8"), "{error}");
    }

    #[test]
    fn what_was_read_back_is_what_counts() {
        let facts =
            group_facts("workers", &settings(&[(LOCK_DURATION, "30000"), (DELIVERY_LIMIT, "8")])).expect("usable");
        assert_eq!((facts.lock, facts.delivery_limit, facts.record_locks), (Duration::from_secs(30), 8, 4000));
        for fault in [
            ("share.auto.offset.reset", "latest"),
            ("share.renew.acknowledge.enable", "false"),
            (DELIVERY_LIMIT, "many"),
        ] {
            let error = group_facts("workers", &settings(&[fault])).expect_err("not usable").to_string();
            assert!(error.contains(fault.0) && error.contains("workers"), "{error}");
        }
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
        assert!(results_spec(&common).configs.contains(&("retention.ms", "7200000".to_owned())));
        let short = Common { result_retention: Duration::from_secs(60), ..Common::default() };
        assert!(results_spec(&short).configs.contains(&("retention.ms", "3600000".to_owned())));
    }

    #[test]
    fn a_topic_of_somebody_else_is_corrected_where_it_must_be_and_named_where_it_could_lose() {
        let spec = tasks_spec(&Common::default());
        let found = |changed: &[(&str, &str)]| -> BTreeMap<String, String> {
            let own = spec.configs.iter().map(|(key, value)| (*key, value.as_str()));
            own.chain(changed.iter().copied()).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
        };
        assert!(corrections(&spec, &found(&[])).is_empty() && warnings(&spec, &found(&[]), 1).is_empty());
        let strange = found(&[
            (TIMESTAMP_TYPE, "CreateTime"),
            (COMPRESSION, "producer"),
            ("retention.ms", "60000"),
            ("cleanup.policy", "compact"),
        ]);
        assert_eq!(corrections(&spec, &strange), [(TIMESTAMP_TYPE, "LogAppendTime"), (COMPRESSION, "uncompressed")]);
        let warned = warnings(&spec, &strange, 3);
        assert_eq!(warned.len(), 3, "{warned:?}");
        // -1: kept for ever.
        assert!(warnings(&spec, &found(&[("retention.ms", "-1")]), 1).is_empty());
    }
}
