//! The share group's settings: the values that the programs want, and the values that they accept.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::PrepareError;
use kafka_share::admin::{self, Setting};
use kafka_share::{Cluster, ErrorCode, KafkaError, Topic};

/// The room between the limit of starts and the delivery limit, for deliveries that are not starts.
const DELIVERY_ROOM: u16 = 2;
const RESET: &str = "share.auto.offset.reset";
const DELIVERY_LIMIT: &str = "share.delivery.count.limit";
const LOCK_DURATION: &str = "share.record.lock.duration.ms";
const RECORD_LOCKS: &str = "share.partition.max.record.locks";
const RENEW: &str = "share.renew.acknowledge.enable";
const ISOLATION: &str = "share.isolation.level";

/// A setting of the share group (KIP-932) and its values, best first: a broker refuses values outside its bounds.
struct Wanted {
    key: &'static str,
    values: &'static [&'static str],
}

const WANTED: &[Wanted] = &[
    // The default, latest, loses tasks that were sent before the first worker.
    Wanted { key: RESET, values: &["earliest"] },
    // Short, so that a hung worker's tasks soon start on another worker; renewed while a handler runs.
    Wanted { key: LOCK_DURATION, values: &["15000"] },
    // At its limit the broker drops a task silently, so the worker's limit must come first.
    Wanted { key: DELIVERY_LIMIT, values: &["10", "9", "8"] },
    // The span of offsets after a long task; at its end the broker delivers nothing, without an error.
    Wanted { key: RECORD_LOCKS, values: &["4000"] },
    // A member's first assignment comes with its first heartbeat instead of a second later (Kafka 4.4).
    Wanted { key: "share.assignment.interval.ms", values: &["0"] },
    // Without it a task could not run longer than its lock (Kafka 4.2, KIP-1222).
    Wanted { key: RENEW, values: &["true"] },
    // A task of an open or aborted transaction must not run.
    Wanted { key: ISOLATION, values: &["read_committed"] },
];

impl Wanted {
    /// Whether the setting has to be written. An operator's choice stays if the programs accept it; `least` is the
    /// lowest acceptable delivery limit.
    fn differs(&self, found: &Setting, least: u16) -> bool {
        if self.values[0] == found.value {
            return false;
        }
        found.is_default
            || match self.key {
                RESET | RENEW => true,
                DELIVERY_LIMIT => found.value.parse().is_ok_and(|limit: u16| limit < least),
                _ => false,
            }
    }
}

/// The lock duration that the programs want: a hung worker's tasks start elsewhere within 20 s.
const SHORT_LOCK: Duration = Duration::from_secs(15);
/// How long written settings may take to reach the brokers.
const SETTLE: Duration = Duration::from_secs(2);
/// How often they are read back meanwhile.
const SETTLE_STEP: Duration = Duration::from_millis(20);

/// The group's settings as they were read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) lock: Duration,
    pub(super) delivery_limit: u16,
    pub(super) record_locks: u32,
}

type Settings = BTreeMap<String, Setting>;

/// Writes the settings that differ, reads them back and judges them.
pub(super) fn prepare(
    cluster: &Cluster,
    group: &str,
    max_deliveries: Option<u16>,
    warnings: &mut Vec<String>,
) -> Result<Facts, PrepareError> {
    let about = |error| PrepareError::about(&format!("group \"{}\"", group.escape_debug()), error);
    let mut found = admin::group_settings(cluster, group).map_err(about)?;
    let least = max_deliveries.map_or(0, least_limit);
    let mut written = BTreeMap::new();
    let (mut refused, mut kept) = (None, Vec::new());
    // A key that this Kafka does not know is missing in `found` and causes no write.
    for wanted in WANTED {
        let Some(setting) = found.get(wanted.key).filter(|setting| wanted.differs(setting, least)) else { continue };
        match write(cluster, group, wanted) {
            Ok(value) => written.extend(value.map(|value| (wanted.key, value))),
            Err(error) if is_refusal(&error) => {
                kept.push(format!("{}={} instead of {}", wanted.key, setting.value.escape_debug(), wanted.values[0]));
                refused = Some(error);
            }
            Err(error) => return Err(about(error)),
        }
    }
    if let Some(error) = &refused {
        warnings.push(format!(
            "group {} keeps {}; set it, or grant the program the right AlterConfigs on the group ({error})",
            group.escape_debug(),
            kept.join(", "),
        ));
    }
    // The answer came from the controller; brokers apply the settings a moment later.
    let deadline = Instant::now() + SETTLE;
    let seen = |found: &Settings| written.iter().all(|(key, value)| text(found, key) == Some(value));
    while !seen(&found) {
        found = admin::group_settings(cluster, group).map_err(about)?;
        if seen(&found) || Instant::now() >= deadline {
            break;
        }
        cluster.options().interrupter.sleep(SETTLE_STEP)?;
    }
    if group.contains(':') && !found.contains_key(DELIVERY_LIMIT) {
        // KAFKA-20183
        let group = group.escape_debug();
        warnings.push(format!("group {group}: Kafka 4.2.0 delivers nothing to a group with a colon in its name"));
    }
    read_of_brokers(cluster, group, &mut found)?;
    // Every broker answers this, so an unavailable coordinator delays no start.
    if let Err(error) = cluster.group_coordinator(group)
        && error.missing_right().is_some()
    {
        return Err(about(error));
    }
    let facts = judge(group, &found).map_err(|error| with_refusal(error, refused.as_ref()))?;
    if let Some(starts) = max_deliveries {
        check_delivery_limit(group, facts.delivery_limit, starts)
            .map_err(|error| with_refusal(error, refused.as_ref()))?;
    }
    Ok(facts)
}

/// Logs a lock that is longer than the programs want.
pub(super) fn tell_lock(group: &str, lock: Duration) {
    if lock > SHORT_LOCK {
        let (group, seconds) = (group.escape_debug(), lock.as_secs());
        log::info!(
            "group {group}: {LOCK_DURATION} stays {seconds} s: tasks of a hung worker start elsewhere after that"
        );
    }
}

/// Reads two settings from the brokers, because Kafka 4.2 has them for all groups there.
fn read_of_brokers(cluster: &Cluster, group: &str, found: &mut Settings) -> Result<(), PrepareError> {
    let missing: Vec<&str> =
        [DELIVERY_LIMIT, RECORD_LOCKS].into_iter().filter(|key| !found.contains_key(*key)).collect();
    if !missing.is_empty() {
        let coordinator = cluster
            .group_coordinator(group)
            .map_err(|error| PrepareError::about(&format!("group \"{}\"", group.escape_debug()), error))?;
        let brokers = admin::broker_settings(cluster, coordinator)
            .map_err(|error| PrepareError::about("settings of the brokers", error))?;
        let values = missing.into_iter().filter_map(|key| Some((key, brokers.get(&format!("group.{key}"))?)));
        found.extend(values.map(|(key, setting)| (key.to_owned(), setting.clone())));
    }
    Ok(())
}

/// Waits until each leader of a task partition knows that the group begins at the oldest task: otherwise it would begin
/// after the newest. A leader that does not answer learns the setting before it leads again.
pub(super) fn await_leaders(cluster: &Cluster, group: &str, tasks: &Topic) -> Result<(), PrepareError> {
    let deadline = Instant::now() + SETTLE;
    let leaders = tasks.partitions.iter().map(|partition| partition.leader).filter(|leader| *leader >= 0);
    let mut leaders: Vec<i32> = leaders.collect();
    leaders.sort_unstable();
    leaders.dedup();
    for node in leaders {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match admin::group_settings_at(cluster, node, group, left.max(SETTLE_STEP)) {
                Ok(found) if text(&found, RESET) == Some("earliest") => break,
                Err(KafkaError::Interrupted) => return Err(KafkaError::Interrupted.into()),
                Err(error) => {
                    log::debug!(
                        "could not read the settings of group {} at node {node}: {error}",
                        group.escape_debug()
                    );
                    break;
                }
                Ok(_) if left.is_zero() => {
                    let text = format!("node {node} does not know the settings of the group yet");
                    let code = ErrorCode::COORDINATOR_LOAD_IN_PROGRESS;
                    return Err(KafkaError::broker("DescribeConfigs", code, Some(&text)).into());
                }
                Ok(_) => cluster.options().interrupter.sleep(SETTLE_STEP)?,
            }
        }
    }
    Ok(())
}

/// Writes the first value that the broker accepts, and returns it; `None` if it accepts none (error 40).
fn write(cluster: &Cluster, group: &str, wanted: &Wanted) -> Result<Option<&'static str>, KafkaError> {
    for value in wanted.values {
        match admin::set_group_config(cluster, group, wanted.key, value) {
            Ok(()) => return Ok(Some(value)),
            Err(error) if error.code() == Some(ErrorCode::INVALID_CONFIG) => {
                log::debug!("the broker refuses {}={value}: {error}", wanted.key);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether an operator's right or policy forbids this program to write settings.
fn is_refusal(error: &KafkaError) -> bool {
    error.missing_right().is_some() || error.code() == Some(ErrorCode::POLICY_VIOLATION)
}

/// Adds the reason why the setting could not be written. With the right, the program sets it.
fn with_refusal(error: PrepareError, refused: Option<&KafkaError>) -> PrepareError {
    match (error, refused) {
        (PrepareError::Unusable(text), Some(refused)) => {
            let text = format!("{text}; it could not be set ({refused})");
            if refused.missing_right().is_some() { PrepareError::Denied(text) } else { PrepareError::Unusable(text) }
        }
        (error, _) => error,
    }
}

fn least_limit(max_deliveries: u16) -> u16 {
    max_deliveries.saturating_add(DELIVERY_ROOM + 1)
}

/// Checks that the worker's limit comes before the broker's, where the broker drops a task silently.
fn check_delivery_limit(group: &str, limit: u16, max_deliveries: u16) -> Result<(), PrepareError> {
    let least = least_limit(max_deliveries);
    if limit >= least {
        return Ok(());
    }
    Err(PrepareError::Unusable(format!(
        "group {group} has {DELIVERY_LIMIT}={limit}: the broker would drop tasks before MAX_DELIVERIES={max_deliveries} is reached; \
         it must be at least {least} (the brokers' group.share.max.delivery.count.limit caps it; in Kafka 4.2 it is set at the \
         brokers, as group.{DELIVERY_LIMIT})"
    )))
}

/// Judges the settings that were read back.
fn judge(group: &str, found: &Settings) -> Result<Facts, PrepareError> {
    let missing = |key: &str| PrepareError::Unusable(format!("group {group} has no readable setting {key}"));
    let reset = text(found, RESET).unwrap_or_default();
    if reset != "earliest" {
        return Err(PrepareError::Unusable(format!(
            "group {group} has {RESET}={}; it must be earliest, or tasks sent before the first worker are lost",
            reset.escape_debug()
        )));
    }
    // Kafka 4.1 and before have no such key, and no renewal.
    if text(found, RENEW).is_some_and(|value| value != "true") {
        return Err(PrepareError::Unusable(format!(
            "group {group} has {RENEW}=false; it must be true, or no task can run longer than its lock"
        )));
    }
    Ok(Facts {
        lock: Duration::from_millis(number(found, LOCK_DURATION).ok_or_else(|| missing(LOCK_DURATION))?),
        delivery_limit: number(found, DELIVERY_LIMIT).ok_or_else(|| missing(DELIVERY_LIMIT))?,
        record_locks: number(found, RECORD_LOCKS).ok_or_else(|| missing(RECORD_LOCKS))?,
    })
}

fn text<'a>(found: &'a Settings, key: &str) -> Option<&'a str> {
    Some(found.get(key)?.value.as_str())
}

fn number<N: FromStr>(found: &Settings, key: &str) -> Option<N> {
    text(found, key)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(value: &str, is_default: bool) -> Setting {
        Setting { value: value.to_owned(), is_default }
    }

    fn settings(changed: &[(&str, &str)]) -> Settings {
        let good = [(RESET, "earliest"), (LOCK_DURATION, "15000"), (DELIVERY_LIMIT, "10"), (RECORD_LOCKS, "4000")];
        good.iter().chain(changed).map(|(key, value)| ((*key).to_owned(), setting(value, false))).collect()
    }

    #[test]
    fn acceptable_choice_of_an_operator_stays_and_default_is_replaced() {
        for (key, value, default_is_written, choice_is_written) in [
            (RESET, "latest", true, true),
            (RESET, "earliest", false, false),
            (RENEW, "false", true, true),
            (LOCK_DURATION, "30000", true, false),
            (RECORD_LOCKS, "2000", true, false),
            (ISOLATION, "read_uncommitted", true, false),
            ("share.assignment.interval.ms", "1000", true, false),
            (DELIVERY_LIMIT, "5", true, true),
            (DELIVERY_LIMIT, "8", true, false),
            (DELIVERY_LIMIT, "10", false, false),
        ] {
            let wanted = WANTED.iter().find(|wanted| wanted.key == key).expect("a wanted setting");
            let written = [true, false].map(|is_default| wanted.differs(&setting(value, is_default), least_limit(5)));
            assert_eq!(written, [default_is_written, choice_is_written], "{key}={value}");
        }
    }

    #[test]
    fn delivery_limit_near_the_limit_of_starts_is_refused_with_the_arithmetic() {
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
    fn settings_that_were_read_back_are_judged() {
        let facts = judge("workers", &settings(&[(LOCK_DURATION, "30000"), (DELIVERY_LIMIT, "8")])).expect("usable");
        assert_eq!((facts.lock, facts.delivery_limit, facts.record_locks), (Duration::from_secs(30), 8, 4000));
        for fault in [(RESET, "latest"), (RENEW, "false"), (DELIVERY_LIMIT, "many")] {
            let error = judge("workers", &settings(&[fault])).expect_err("not usable").to_string();
            assert!(error.contains(fault.0) && error.contains("workers"), "{error}");
        }
    }
}
