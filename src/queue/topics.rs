//! The topics: what they are created with, what is corrected in existing ones, what is only warned of.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use super::{PrepareError, Starts};
use crate::config::Common;
use kafka_share::admin::{self, TopicRight, TopicSpec};
use kafka_share::{Cluster, ErrorCode, KafkaError, Result, Topic};

/// Prepares all topics; returns that of the tasks. A gateway (`starts` is `None`) goes on without a right to the side
/// topics, which workers write.
pub(super) fn prepare(
    cluster: &Cluster,
    common: &Common,
    starts: Option<Starts>,
) -> std::result::Result<Topic, PrepareError> {
    let is_gateway = starts.is_none();
    let needed = |spec: &TopicSpec| -> std::result::Result<Topic, PrepareError> {
        let topic = prepare_topic(cluster, common, spec).map_err(|error| about(spec, error))?;
        if topic.partitions.iter().any(|partition| partition.leader >= 0) {
            return Ok(topic);
        }
        let text = format!("{}: no partition has a leader", spec.name);
        Err(KafkaError::broker("Metadata", ErrorCode::LEADER_NOT_AVAILABLE, Some(&text)).into())
    };
    let tasks = needed(&tasks_spec(common))?;
    needed(&results_spec(common))?;
    for spec in side_specs(cluster, common, starts).map_err(|error| about(&tasks_spec(common), error))? {
        match prepare_topic(cluster, common, &spec) {
            Err(error) if is_gateway && error.missing_right().is_some() => log::debug!("topic {}: {error}", spec.name),
            prepared => drop(prepared.map_err(|error| about(&spec, error))?),
        }
    }
    check_rights(cluster, common, is_gateway)?;
    Ok(tasks)
}

/// Names every right to the topics that the program lacks: without some of them it would start, and do nothing.
fn check_rights(cluster: &Cluster, common: &Common, is_gateway: bool) -> std::result::Result<(), PrepareError> {
    use TopicRight::{Read, Write};
    let (tasks, results) = (common.tasks_topic.clone(), common.results_topic.clone());
    let (dead, starts) = (common.dead_topic(), common.starts_topic());
    let (needed, wanted) = if is_gateway {
        (vec![(tasks.clone(), Read), (tasks, Write), (results.clone(), Read), (results, Write)], Vec::new())
    } else {
        // The last two are for tasks that were delivered many times: to count their starts, and to send them again.
        let needed = vec![(tasks.clone(), Read), (results, Write), (dead, Write), (starts.clone(), Write)];
        (needed, vec![(starts, Read), (tasks, Write)])
    };
    let listed = |missing: Vec<(String, TopicRight)>| {
        let each = missing
            .iter()
            .map(|(name, right)| format!("topic \"{name}\": the right {right:?} on the topic is missing"));
        each.collect::<Vec<_>>().join("; ")
    };
    let missing = admin::missing_rights(cluster, &needed)?;
    if !missing.is_empty() {
        return Err(PrepareError::Unusable(listed(missing)));
    }
    let missing = admin::missing_rights(cluster, &wanted)?;
    if !missing.is_empty() {
        log::warn!("{}; a task that is delivered again and again stays in the queue without it", listed(missing));
    }
    Ok(())
}

/// Makes the side topics (dead tasks, starts) again when an operator has deleted them: records for them wait until they
/// exist.
///
/// # Errors
/// See [`PrepareError`]; the next call tries again.
pub fn restore_side_topics(
    cluster: &Cluster,
    common: &Common,
    starts: Starts,
) -> std::result::Result<(), PrepareError> {
    let names = [common.dead_topic(), common.starts_topic()];
    if cluster.refresh(&names.each_ref().map(String::as_str)).is_ok() {
        return Ok(());
    }
    for name in names {
        match cluster.refresh(&[&name]) {
            Err(error) if error.code() == Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION) => {}
            known => {
                known?;
                continue;
            }
        }
        let specs = side_specs(cluster, common, Some(starts)).map_err(|error| about(&tasks_spec(common), error))?;
        for spec in specs.into_iter().filter(|spec| spec.name == name) {
            prepare_topic(cluster, common, &spec).map_err(|error| about(&spec, error))?;
        }
        log::warn!("topic {name} was missing; it was made again");
    }
    Ok(())
}

fn about(spec: &TopicSpec, error: KafkaError) -> PrepareError {
    PrepareError::about(&format!("topic \"{}\"", spec.name.escape_debug()), error)
}

/// Kafka's default for `max.message.bytes`: 1 MiB and the batch's own header.
const MESSAGE_BYTES: u64 = 1_048_588;
/// Kafka's largest `max.message.bytes`, an int.
const LARGEST: u64 = 0x7fff_ffff;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long a task may wait for a worker.
const TASKS_RETENTION: Duration = DAY.saturating_mul(7);
/// How long people have to look at a dead task.
const DEAD_RETENTION: Duration = DAY.saturating_mul(30);
/// Retention deletes whole segments: those of the short-lived topics must be short, too.
const SHORT_SEGMENT: Duration = Duration::from_secs(600);

/// Settings that every topic of ours has: the broker's defaults can be others.
fn common_configs(retention: Duration, message_bytes: u64) -> Vec<(&'static str, String)> {
    vec![
        // The sender's clock may be an hour wrong, and then nothing could be written or every reader would be misled.
        (TIMESTAMP_TYPE, "LogAppendTime".to_owned()),
        // Writers may compress; no reader has to know how.
        (COMPRESSION, "uncompressed".to_owned()),
        ("cleanup.policy", "delete".to_owned()),
        (RETENTION, retention.as_millis().to_string()),
        ("retention.bytes", "-1".to_owned()),
        (MAX_BYTES, message_bytes.min(LARGEST).to_string()),
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

/// A dead task keeps all it came with and gets headers besides: the topic takes twice the size, as far as Kafka has a
/// number for it.
fn dead_spec(common: &Common, tasks_limit: u64) -> TopicSpec {
    single_spec(common, common.dead_topic(), common_configs(DEAD_RETENTION, tasks_limit.saturating_mul(2)))
}

/// The first start of a task has to be on record when its last one ends. One [`Starts::longest`] more is for the time
/// in which the task lies in the queue. A gateway does not know the workers' limits: a worker corrects the retention.
fn starts_spec(common: &Common, starts: Option<Starts>) -> TopicSpec {
    let needed = starts.map_or(HOUR, |starts| starts.longest.saturating_mul(u32::from(starts.most) + 1));
    let mut configs = common_configs(needed.max(HOUR), MESSAGE_BYTES);
    configs.push(("segment.ms", SHORT_SEGMENT.as_millis().to_string()));
    single_spec(common, common.starts_topic(), configs)
}

/// The topics that workers write and that no task needs until one fails or kills its worker.
fn side_specs(cluster: &Cluster, common: &Common, starts: Option<Starts>) -> Result<[TopicSpec; 2]> {
    let tasks = admin::topic_configs(cluster, &common.tasks_topic)?;
    let tasks_limit = number(&tasks, MAX_BYTES).unwrap_or(MESSAGE_BYTES);
    Ok([dead_spec(common, tasks_limit), starts_spec(common, starts)])
}

fn prepare_topic(cluster: &Cluster, common: &Common, spec: &TopicSpec) -> Result<Topic> {
    let keeps_starts = spec.name == common.starts_topic();
    let ensured = admin::ensure_topic(cluster, spec)?;
    if ensured.topic.is_internal {
        return Err(KafkaError::Unsupported("it is one of Kafka's own topics; choose another name".to_owned()));
    }
    if ensured.created {
        log::info!("topic {} created, {} partitions", spec.name, ensured.topic.partitions.len());
        return Ok(ensured.topic);
    }
    let mut found = admin::topic_configs(cluster, &spec.name)?;
    for (key, value) in corrections(spec, &found, keeps_starts) {
        match admin::set_topic_config(cluster, &spec.name, key, value) {
            Ok(()) => {
                log::warn!("topic {}: {key} was not {value}; it is set now", spec.name);
                found.insert(key.to_owned(), value.to_owned());
            }
            // Wrong clocks can then hold up records, every reader has to unpack, a task may be started more often:
            // worse, but it works.
            Err(error) if error.missing_right().is_some() => {
                log::warn!(
                    "topic {}: {key} is not {value} ({error}); set it, or give the program the right AlterConfigs on the topic",
                    spec.name
                );
            }
            Err(error) => return Err(error),
        }
    }
    for warning in warnings(spec, &found, ensured.topic.partitions.len()) {
        log::warn!("topic {}: {warning}", spec.name);
    }
    Ok(ensured.topic)
}

const MAX_BYTES: &str = "max.message.bytes";
const TIMESTAMP_TYPE: &str = "message.timestamp.type";
const COMPRESSION: &str = "compression.type";
const RETENTION: &str = "retention.ms";

/// Settings of an existing topic that the programs cannot work without. `keeps_starts`: its retention is one of them,
/// since a task whose first starts are deleted is never given up.
fn corrections<'a>(
    spec: &'a TopicSpec,
    found: &BTreeMap<String, String>,
    keeps_starts: bool,
) -> Vec<(&'static str, &'a str)> {
    let differs = |key: &str, value: &String| match key {
        TIMESTAMP_TYPE | COMPRESSION => found.get(key) != Some(value),
        RETENTION => keeps_starts && is_shorter(found, value),
        _ => false,
    };
    let needed = spec.configs.iter().filter(|(key, value)| differs(key, value));
    needed.map(|(key, value)| (*key, value.as_str())).collect()
}

/// Whether the topic keeps its records for less than this many milliseconds; -1 is for ever.
fn is_shorter(found: &BTreeMap<String, String>, wanted: &str) -> bool {
    let (is, wanted) = (number::<i64>(found, RETENTION), wanted.parse());
    is.zip(wanted.ok()).is_some_and(|(is, wanted)| (0..wanted).contains(&is))
}

/// What else differs in an existing topic, as far as it can lose something.
fn warnings(spec: &TopicSpec, found: &BTreeMap<String, String>, partitions: usize) -> Vec<String> {
    let mut warnings = Vec::new();
    let wanted = spec.configs.iter().find(|(key, _)| *key == RETENTION);
    if let Some((_, wanted)) = wanted.filter(|(_, wanted)| is_shorter(found, wanted)) {
        let is = &found[RETENTION];
        warnings.push(format!("{RETENTION} is {is}, less than {wanted}: records may be deleted before they are read"));
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

fn number<N: FromStr>(found: &BTreeMap<String, String>, key: &str) -> Option<N> {
    found.get(key)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_topic_never_asks_for_more_than_kafka_has_numbers_for() {
        let of = |tasks: u64| dead_spec(&Common::default(), tasks).configs;
        assert!(of(1_000_000).contains(&(MAX_BYTES, "2000000".to_owned())));
        assert!(of(1_500_000_000).contains(&(MAX_BYTES, i32::MAX.to_string())));
    }

    #[test]
    fn results_are_kept_as_long_as_they_can_be_asked_for() {
        let common = Common { result_retention: Duration::from_secs(7_200), ..Common::default() };
        assert!(results_spec(&common).configs.contains(&("retention.ms", "7200000".to_owned())));
        let short = Common { result_retention: Duration::from_secs(60), ..Common::default() };
        assert!(results_spec(&short).configs.contains(&("retention.ms", "3600000".to_owned())));
    }

    #[test]
    fn starts_are_kept_until_the_last_start_of_the_longest_task_ends() {
        let retention = |starts: Option<Starts>| {
            let configs = starts_spec(&Common::default(), starts).configs;
            configs.into_iter().find(|(key, _)| *key == RETENTION).expect("a retention").1
        };
        let starts = |most, minutes: u64| Some(Starts { most, longest: Duration::from_secs(minutes * 60) });
        assert_eq!([None, starts(5, 10), starts(2, 1)].map(retention), ["3600000"; 3], "an hour at least");
        assert_eq!(retention(starts(5, 30)), (6 * 30 * 60_000).to_string());
    }

    #[test]
    fn only_the_starts_are_kept_longer_by_force() {
        let spec = starts_spec(&Common::default(), Some(Starts { most: 5, longest: HOUR }));
        let kept = |value: &str| {
            let own = spec.configs.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
            own.chain([(RETENTION.to_owned(), value.to_owned())]).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(corrections(&spec, &kept("3600000"), true), [(RETENTION, "21600000")]);
        assert!(corrections(&spec, &kept("3600000"), false).is_empty());
        for enough in ["21600000", "86400000", "-1"] {
            assert!(corrections(&spec, &kept(enough), true).is_empty(), "{enough}");
        }
    }

    #[test]
    fn a_topic_of_somebody_else_is_corrected_where_it_must_be_and_named_where_it_could_lose() {
        let spec = tasks_spec(&Common::default());
        let found = |changed: &[(&str, &str)]| -> BTreeMap<String, String> {
            let own = spec.configs.iter().map(|(key, value)| (*key, value.as_str()));
            own.chain(changed.iter().copied()).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
        };
        assert!(corrections(&spec, &found(&[]), false).is_empty() && warnings(&spec, &found(&[]), 1).is_empty());
        let strange = found(&[
            (TIMESTAMP_TYPE, "CreateTime"),
            (COMPRESSION, "producer"),
            ("retention.ms", "60000"),
            ("cleanup.policy", "compact"),
        ]);
        assert_eq!(
            corrections(&spec, &strange, false),
            [(TIMESTAMP_TYPE, "LogAppendTime"), (COMPRESSION, "uncompressed")]
        );
        let warned = warnings(&spec, &strange, 3);
        assert_eq!(warned.len(), 3, "{warned:?}");
        // -1: kept for ever.
        assert!(warnings(&spec, &found(&[("retention.ms", "-1")]), 1).is_empty());
    }
}
