//! The topics: the settings of new topics, the corrections of existing ones, and the warnings about them.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use super::{PrepareError, Starts};
use crate::config::Common;
use kafka_share::admin::{self, TopicRight, TopicSpec};
use kafka_share::{Cluster, ErrorCode, KafkaError, Result, Topic};

/// Prepares all topics; returns the tasks topic. A gateway (`starts` is `None`) continues without a right to the side
/// topics, which workers write.
pub(super) fn prepare(
    cluster: &Cluster,
    common: &Common,
    starts: Option<Starts>,
    warnings: &mut Vec<String>,
) -> std::result::Result<Topic, PrepareError> {
    let is_gateway = starts.is_none();
    let mut needed = |spec: &TopicSpec| -> std::result::Result<Topic, PrepareError> {
        let topic = prepare_topic(cluster, common, spec, warnings).map_err(|error| about(spec, error))?;
        if topic.partitions.iter().any(|partition| partition.leader >= 0) {
            return Ok(topic);
        }
        let text = format!("{}: no partition has a leader", spec.name);
        Err(KafkaError::broker("Metadata", ErrorCode::LEADER_NOT_AVAILABLE, Some(&text)).into())
    };
    let tasks = needed(&tasks_spec(common))?;
    needed(&results_spec(common))?;
    for spec in side_specs(cluster, common, starts).map_err(|error| about(&tasks_spec(common), error))? {
        match prepare_topic(cluster, common, &spec, warnings) {
            Err(error) if is_gateway && error.missing_right().is_some() => log::debug!("topic {}: {error}", spec.name),
            prepared => drop(prepared.map_err(|error| about(&spec, error))?),
        }
    }
    check_rights(cluster, common, is_gateway, warnings)?;
    Ok(tasks)
}

/// Checks the rights to the topics and names every missing right: without some, the program would start and do no work.
fn check_rights(
    cluster: &Cluster,
    common: &Common,
    is_gateway: bool,
    warnings: &mut Vec<String>,
) -> std::result::Result<(), PrepareError> {
    use TopicRight::{Read, Write};
    let (tasks, results) = (common.tasks_topic.clone(), common.results_topic.clone());
    let (dead, starts) = (common.dead_topic(), common.starts_topic());
    let (needed, wanted) = if is_gateway {
        let needed = vec![(tasks.clone(), Read), (tasks, Write), (results.clone(), Read), (results, Write)];
        (needed, vec![(dead, Read)])
    } else {
        // The last two are for tasks that were delivered many times: to count their starts, and to send them again.
        let needed = vec![(tasks.clone(), Read), (results, Write), (dead, Write), (starts.clone(), Write)];
        (needed, vec![(starts, Read), (tasks, Write)])
    };
    let missing = admin::missing_rights(cluster, &needed)?;
    if !missing.is_empty() {
        return Err(PrepareError::Denied(TopicRight::missing(&missing)));
    }
    let missing = admin::missing_rights(cluster, &wanted)?;
    if !missing.is_empty() {
        let without = if is_gateway {
            "without it GET /dead shows no dead letters"
        } else {
            "without it a task that is delivered again and again stays in the queue"
        };
        warnings.push(format!("{}; {without}", TopicRight::missing(&missing)));
    }
    Ok(())
}

/// Creates the side topics (dead letters, starts) again after an operator has deleted them: their records wait until
/// the topics exist.
///
/// # Errors
/// See [`PrepareError`]; the next call retries.
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
            let mut warnings = Vec::new();
            prepare_topic(cluster, common, &spec, &mut warnings).map_err(|error| about(&spec, error))?;
            warnings.iter().for_each(|warning| log::warn!("{warning}"));
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
/// How long dead letters are kept for people to read.
const DEAD_RETENTION: Duration = DAY.saturating_mul(30);
/// Retention deletes whole segments, so short-lived topics need short segments.
const SHORT_SEGMENT: Duration = Duration::from_secs(600);

/// Settings of all topics, since the broker's defaults may differ.
fn common_configs(retention: Duration, message_bytes: u64) -> Vec<(&'static str, String)> {
    vec![
        // A sender's clock may be an hour wrong; then Kafka would refuse its records, or readers would be misled.
        (TIMESTAMP_TYPE, "LogAppendTime".to_owned()),
        // Writers may compress, but no reader has to decompress.
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

/// A topic with one partition: all gateways see a task's records in one order, so they agree on its first result.
fn single_spec(common: &Common, name: String, configs: Vec<(&'static str, String)>) -> TopicSpec {
    TopicSpec { name, partitions: 1, replication_factor: common.replication_factor, configs }
}

fn results_spec(common: &Common) -> TopicSpec {
    let mut configs = common_configs(common.result_retention.max(HOUR), MESSAGE_BYTES);
    configs.push(("segment.ms", SHORT_SEGMENT.as_millis().to_string()));
    single_spec(common, common.results_topic.clone(), configs)
}

/// The dead-letter topic: a dead letter keeps the whole record and gets more headers, so the topic takes twice the
/// size, up to Kafka's largest number.
fn dead_spec(common: &Common, tasks_limit: u64) -> TopicSpec {
    single_spec(common, common.dead_topic(), common_configs(DEAD_RETENTION, tasks_limit.saturating_mul(2)))
}

/// The starts topic: the first start of a task must still be on record when its last start ends. One more
/// [`Starts::longest`] covers the time in the queue. A gateway does not know the workers' limits; a worker corrects the
/// retention.
fn starts_spec(common: &Common, starts: Option<Starts>) -> TopicSpec {
    let needed = starts.map_or(HOUR, |starts| starts.longest.saturating_mul(u32::from(starts.most) + 1));
    let mut configs = common_configs(needed.max(HOUR), MESSAGE_BYTES);
    configs.push(("segment.ms", SHORT_SEGMENT.as_millis().to_string()));
    single_spec(common, common.starts_topic(), configs)
}

/// The side topics, which workers write and which a task needs only when it fails or kills its worker.
fn side_specs(cluster: &Cluster, common: &Common, starts: Option<Starts>) -> Result<[TopicSpec; 2]> {
    let tasks = admin::topic_configs(cluster, &common.tasks_topic)?;
    let tasks_limit = number(&tasks, MAX_BYTES).unwrap_or(MESSAGE_BYTES);
    Ok([dead_spec(common, tasks_limit), starts_spec(common, starts)])
}

fn prepare_topic(cluster: &Cluster, common: &Common, spec: &TopicSpec, warnings: &mut Vec<String>) -> Result<Topic> {
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
            // Without the correction the topic works, but worse: wrong clocks can delay records, readers have to
            // decompress, a task may start more often.
            Err(error) if error.missing_right().is_some() => {
                warnings.push(format!(
                    "topic {}: {key} is not {value} ({error}); set it, or grant the program the right AlterConfigs on it",
                    spec.name
                ));
            }
            Err(error) => return Err(error),
        }
    }
    let differences = differences(spec, &found, ensured.topic.partitions.len());
    warnings.extend(differences.iter().map(|difference| format!("topic {}: {difference}", spec.name)));
    Ok(ensured.topic)
}

const MAX_BYTES: &str = "max.message.bytes";
const TIMESTAMP_TYPE: &str = "message.timestamp.type";
const COMPRESSION: &str = "compression.type";
const RETENTION: &str = "retention.ms";

/// The settings to correct in an existing topic. `keeps_starts`: its retention is one of them, since a task is never
/// dead-lettered if its first starts are deleted.
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

/// Whether the topic keeps its records for less than this many milliseconds; -1 means forever.
fn is_shorter(found: &BTreeMap<String, String>, wanted: &str) -> bool {
    let (is, wanted) = (number::<i64>(found, RETENTION), wanted.parse());
    is.zip(wanted.ok()).is_some_and(|(is, wanted)| (0..wanted).contains(&is))
}

/// Other differences in an existing topic that can lose records.
fn differences(spec: &TopicSpec, found: &BTreeMap<String, String>, partitions: usize) -> Vec<String> {
    let mut differences = Vec::new();
    let wanted = spec.configs.iter().find(|(key, _)| *key == RETENTION);
    if let Some((_, wanted)) = wanted.filter(|(_, wanted)| is_shorter(found, wanted)) {
        let is = &found[RETENTION];
        differences
            .push(format!("{RETENTION} is {is}, less than {wanted}: records may be deleted before they are read"));
    }
    if let Some(policy) = found.get("cleanup.policy").filter(|policy| policy.contains("compact")) {
        differences.push(format!(
            "cleanup.policy is \"{}\": records may be deleted before they are read",
            policy.escape_debug()
        ));
    }
    if usize::try_from(spec.partitions) != Ok(partitions) {
        differences
            .push(format!("it has {partitions} partitions, {} are configured; it stays as it is", spec.partitions));
    }
    differences
}

fn number<N: FromStr>(found: &BTreeMap<String, String>, key: &str) -> Option<N> {
    found.get(key)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_limit_of_the_dead_letter_topic_is_at_most_kafkas_largest() {
        let of = |tasks: u64| dead_spec(&Common::default(), tasks).configs;
        assert!(of(1_000_000).contains(&(MAX_BYTES, "2000000".to_owned())));
        assert!(of(1_500_000_000).contains(&(MAX_BYTES, i32::MAX.to_string())));
    }

    #[test]
    fn results_are_kept_for_their_retention_and_at_least_an_hour() {
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
        assert_eq!([None, starts(5, 10), starts(2, 1)].map(retention), ["3600000"; 3], "at least an hour");
        assert_eq!(retention(starts(5, 30)), (6 * 30 * 60_000).to_string());
    }

    #[test]
    fn only_the_retention_of_starts_is_corrected() {
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
    fn existing_topic_is_corrected_if_necessary_and_warned_about_if_it_can_lose_records() {
        let spec = tasks_spec(&Common::default());
        let found = |changed: &[(&str, &str)]| -> BTreeMap<String, String> {
            let own = spec.configs.iter().map(|(key, value)| (*key, value.as_str()));
            own.chain(changed.iter().copied()).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
        };
        assert!(corrections(&spec, &found(&[]), false).is_empty() && differences(&spec, &found(&[]), 1).is_empty());
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
        let warned = differences(&spec, &strange, 3);
        assert_eq!(warned.len(), 3, "{warned:?}");
        // -1: kept forever.
        assert!(differences(&spec, &found(&[("retention.ms", "-1")]), 1).is_empty());
    }
}
