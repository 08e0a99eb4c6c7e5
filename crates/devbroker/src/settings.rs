//! Settings of the broker, its topics and its groups, with Kafka's names, defaults and limits.
//!
//! Tables, and the rules for values; a setting takes effect where it is read. Called by all modules of this crate, and
//! by callers that start a broker.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::security::Security;

/// Default for the bytes of records that a broker stores.
pub const MEMORY_LIMIT: usize = 512 << 20;

/// The version of Kafka that an embedded broker poses as. The level of `share.version` and the settings of brokers,
/// topics and groups follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KafkaVersion {
    /// Kafka 4.2
    V4_2,
    /// Kafka 4.3
    V4_3,
    /// Kafka 4.4
    V4_4,
}

impl KafkaVersion {
    /// The highest level of the feature `share.version`.
    pub(super) fn share_version(self) -> i16 {
        if self < Self::V4_4 { 1 } else { 2 }
    }
}

impl std::str::FromStr for KafkaVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "4.2" => Ok(Self::V4_2),
            "4.3" => Ok(Self::V4_3),
            "4.4" => Ok(Self::V4_4),
            _ => Err("expected 4.2, 4.3 or 4.4".to_owned()),
        }
    }
}

/// Settings with which an embedded broker starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Addresses of its nodes; port 0 takes a free port. Loopback addresses of this machine only.
    pub listen: Vec<SocketAddr>,
    /// Most bytes of records; beyond it the broker answers like a Kafka with a full disk.
    pub memory_limit: usize,
    /// The version of Kafka that the broker poses as.
    pub pose: KafkaVersion,
    /// The level of the feature `share.version`: the version's highest level unless set lower; 0 switches share groups
    /// off.
    pub share_version: i16,
    /// How long a restarted node is fenced: it answers, but leads nothing.
    pub fenced: Duration,
    /// How long a new leader, or the coordinator on a restarted node, loads its state; Kafka takes 40 to 200 ms.
    pub loading: Duration,
    /// How late acknowledgements are written. A killed leader loses those of its last `share_state_delay`; with zero,
    /// none.
    pub share_state_delay: Duration,
    /// How the listeners are secured at the start; [`Broker::set_security`](super::Broker::set_security) changes it.
    pub security: Security,
    /// Settings of the broker that differ from Kafka's defaults.
    overrides: BTreeMap<String, String>,
}

impl Settings {
    /// Makes settings with Kafka's defaults, on these addresses.
    pub fn new(listen: Vec<SocketAddr>) -> Self {
        let pose = KafkaVersion::V4_4;
        Self {
            listen,
            memory_limit: MEMORY_LIMIT,
            pose,
            share_version: pose.share_version(),
            fenced: Duration::ZERO,
            loading: Duration::from_millis(100),
            share_state_delay: Duration::ZERO,
            security: Security::default(),
            overrides: BTreeMap::new(),
        }
    }

    /// Sets one setting of the broker, by Kafka's name.
    ///
    /// # Errors
    /// The fault, if the broker has no such setting or does not take the value.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let known = BROKER.iter().find(|known| known.0 == name && self.knows(name));
        let Some((_, default)) = known else { return Err(format!("the embedded broker has no setting {name}")) };
        if !default.is_empty() && default.parse::<i64>().is_ok() != value.parse::<i64>().is_ok() {
            return Err(format!("{name} is {value:?}; expected a value such as {default}"));
        }
        self.overrides.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// Whether Kafka has this setting in the version that the broker poses as.
    pub(super) fn knows(&self, name: &str) -> bool {
        !LATER.iter().any(|(later, since)| *later == name && self.pose < *since)
    }

    /// The value of a broker's setting; empty for an unknown one.
    pub(super) fn text(&self, name: &str) -> &str {
        let default = || BROKER.iter().find(|known| known.0 == name && self.knows(name)).map_or("", |known| known.1);
        self.overrides.get(name).map_or_else(default, String::as_str)
    }

    /// All settings of the broker with their values.
    pub(super) fn of_broker(&self) -> impl Iterator<Item = (&'static str, &str)> {
        BROKER.iter().filter(|(name, _)| self.knows(name)).map(|(name, _)| (*name, self.text(name)))
    }

    /// The value of a numeric setting of the broker; 0 for an unknown one.
    pub(super) fn number(&self, name: &str) -> i64 {
        self.text(name).parse().unwrap_or(0)
    }

    /// The value of a setting of the broker in milliseconds.
    pub(super) fn duration(&self, name: &str) -> Duration {
        milliseconds(self.number(name))
    }
}

/// Converts milliseconds; a negative number becomes zero.
pub(super) fn milliseconds(number: i64) -> Duration {
    Duration::from_millis(u64::try_from(number).unwrap_or(0))
}

/// Settings of the broker that have an effect here or that tests set, with Kafka's defaults.
const BROKER: &[(&str, &str)] = &[
    ("advertised.listeners", ""),
    ("auto.create.topics.enable", "true"),
    ("broker.session.timeout.ms", "9000"),
    ("connections.max.idle.ms", "600000"),
    ("default.replication.factor", "1"),
    ("fetch.max.bytes", "57671680"),
    ("group.share.assignment.interval.ms", "1000"),
    ("group.share.delivery.count.limit", "5"),
    ("group.share.heartbeat.interval.ms", "5000"),
    ("group.share.max.assignment.interval.ms", "15000"),
    ("group.share.max.delivery.count.limit", "10"),
    ("group.share.max.heartbeat.interval.ms", "15000"),
    ("group.share.max.partition.max.record.locks", "4000"),
    ("group.share.max.record.lock.duration.ms", "60000"),
    ("group.share.max.session.timeout.ms", "60000"),
    ("group.share.max.share.sessions", "2000"),
    ("group.share.max.size", "200"),
    ("group.share.min.assignment.interval.ms", "0"),
    ("group.share.min.delivery.count.limit", "2"),
    ("group.share.min.heartbeat.interval.ms", "5000"),
    ("group.share.min.partition.max.record.locks", "100"),
    ("group.share.min.record.lock.duration.ms", "15000"),
    ("group.share.min.session.timeout.ms", "45000"),
    ("group.share.partition.max.record.locks", "2000"),
    ("group.share.record.lock.duration.ms", "30000"),
    ("group.share.session.timeout.ms", "45000"),
    ("log.retention.check.interval.ms", "300000"),
    ("log.retention.ms", "604800000"),
    ("message.max.bytes", "1048588"),
    ("min.insync.replicas", "1"),
    ("num.partitions", "1"),
    ("socket.request.max.bytes", "104857600"),
];

/// Settings that Kafka 4.2 lacks, with the first version that has them (asked of Kafka 4.2.0, 4.3.1 and 4.4.0).
const LATER: &[(&str, KafkaVersion)] = &[
    ("errors.deadletterqueue.copy.record.enable", KafkaVersion::V4_4),
    ("errors.deadletterqueue.group.enable", KafkaVersion::V4_4),
    ("errors.deadletterqueue.topic.name", KafkaVersion::V4_4),
    // Kafka 4.2 assigns partitions with the next heartbeat.
    ("group.share.assignment.interval.ms", KafkaVersion::V4_3),
    ("group.share.max.assignment.interval.ms", KafkaVersion::V4_3),
    ("group.share.max.delivery.count.limit", KafkaVersion::V4_3),
    ("group.share.max.partition.max.record.locks", KafkaVersion::V4_3),
    ("group.share.min.assignment.interval.ms", KafkaVersion::V4_3),
    ("group.share.min.delivery.count.limit", KafkaVersion::V4_3),
    ("group.share.min.partition.max.record.locks", KafkaVersion::V4_3),
    ("max.decompressed.message.bytes", KafkaVersion::V4_4),
    ("remote.copy.lag.bytes", KafkaVersion::V4_4),
    ("remote.copy.lag.ms", KafkaVersion::V4_4),
    ("share.assignment.interval.ms", KafkaVersion::V4_3),
    ("share.delivery.count.limit", KafkaVersion::V4_3),
    ("share.partition.max.record.locks", KafkaVersion::V4_3),
    ("share.renew.acknowledge.enable", KafkaVersion::V4_3),
];

/// Allowed values of a topic's or a group's setting.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A whole number within these bounds.
    Number(i64, i64),
    /// A whole number between the values of two settings of the broker.
    Between(&'static str, &'static str),
    /// `true` or `false`.
    Boolean,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// `earliest`, `latest` or `by_duration:` and an ISO 8601 duration.
    Reset,
    /// Anything.
    Text,
}

/// A setting of a topic or a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub name: &'static str,
    pub kind: Kind,
    /// Kafka's default, unless `broker` names a setting of the broker that is the default.
    default: &'static str,
    broker: &'static str,
}

impl Known {
    /// The value if none was set.
    pub fn default<'a>(&self, settings: &'a Settings) -> &'a str {
        if self.broker.is_empty() { self.default } else { settings.text(self.broker) }
    }

    /// Whether the setting takes this value.
    pub fn takes(&self, value: &str, settings: &Settings) -> bool {
        let within = |least: i64, most: i64| value.parse().is_ok_and(|number: i64| (least..=most).contains(&number));
        match self.kind {
            Kind::Number(least, most) => within(least, most),
            Kind::Between(least, most) => within(settings.number(least), settings.number(most)),
            Kind::Boolean => matches!(value, "true" | "false"),
            Kind::OneOf(words) => value.split(',').all(|word| words.contains(&word.trim())),
            Kind::Reset => matches!(value, "earliest" | "latest") || value.starts_with("by_duration:P"),
            Kind::Text => true,
        }
    }
}

const fn own(name: &'static str, kind: Kind, default: &'static str) -> Known {
    Known { name, kind, default, broker: "" }
}

const fn follows(name: &'static str, kind: Kind, broker: &'static str) -> Known {
    Known { name, kind, default: "", broker }
}

const ANY: Kind = Kind::Number(i64::MIN, i64::MAX);
const NATURAL: Kind = Kind::Number(0, i64::MAX);
const COUNT: Kind = Kind::Number(1, i32::MAX as i64);
const INT: Kind = Kind::Number(0, i32::MAX as i64);
const SINCE_MINUS_1: Kind = Kind::Number(-1, i64::MAX);
const SINCE_MINUS_2: Kind = Kind::Number(-2, i64::MAX);

/// Settings of a topic (Kafka 4.4, `TopicConfig`). Only compression.type, max.message.bytes, message.timestamp.* and
/// retention.* have an effect; the others are stored and shown.
pub(super) const TOPIC: &[Known] = &[
    own("cleanup.policy", Kind::OneOf(&["delete", "compact"]), "delete"),
    own("compression.gzip.level", Kind::Number(-1, 9), "-1"),
    own("compression.lz4.level", Kind::Number(1, 17), "9"),
    own("compression.type", Kind::OneOf(&["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"]), "producer"),
    own("compression.zstd.level", Kind::Number(-131_072, 22), "3"),
    own("delete.retention.ms", NATURAL, "86400000"),
    own("errors.deadletterqueue.group.enable", Kind::Boolean, "false"),
    own("file.delete.delay.ms", NATURAL, "60000"),
    own("flush.messages", Kind::Number(1, i64::MAX), "9223372036854775807"),
    own("flush.ms", NATURAL, "9223372036854775807"),
    own("follower.replication.throttled.replicas", Kind::Text, ""),
    own("index.interval.bytes", INT, "4096"),
    own("leader.replication.throttled.replicas", Kind::Text, ""),
    own("local.retention.bytes", SINCE_MINUS_2, "-2"),
    own("local.retention.ms", SINCE_MINUS_2, "-2"),
    own("max.compaction.lag.ms", Kind::Number(1, i64::MAX), "9223372036854775807"),
    own("max.decompressed.message.bytes", INT, "2147483639"),
    follows("max.message.bytes", INT, "message.max.bytes"),
    own("message.timestamp.after.max.ms", NATURAL, "3600000"),
    own("message.timestamp.before.max.ms", NATURAL, "9223372036854775807"),
    own("message.timestamp.type", Kind::OneOf(&["CreateTime", "LogAppendTime"]), "CreateTime"),
    own("min.cleanable.dirty.ratio", Kind::Text, "0.5"),
    own("min.compaction.lag.ms", NATURAL, "0"),
    follows("min.insync.replicas", COUNT, "min.insync.replicas"),
    own("preallocate", Kind::Boolean, "false"),
    own("remote.copy.lag.bytes", SINCE_MINUS_2, "-1"),
    own("remote.copy.lag.ms", SINCE_MINUS_2, "0"),
    own("remote.log.copy.disable", Kind::Boolean, "false"),
    own("remote.log.delete.on.disable", Kind::Boolean, "false"),
    own("remote.storage.enable", Kind::Boolean, "false"),
    own("retention.bytes", ANY, "-1"),
    follows("retention.ms", SINCE_MINUS_1, "log.retention.ms"),
    own("segment.bytes", Kind::Number(1 << 20, i32::MAX as i64), "1073741824"),
    own("segment.index.bytes", Kind::Number(4, i32::MAX as i64), "10485760"),
    own("segment.jitter.ms", NATURAL, "0"),
    own("segment.ms", Kind::Number(1, i64::MAX), "604800000"),
    own("unclean.leader.election.enable", Kind::Boolean, "false"),
];

/// The settings of a group (Kafka 4.4, `GroupConfig`) that concern share groups.
pub(super) const GROUP: &[Known] = &[
    own("errors.deadletterqueue.copy.record.enable", Kind::Boolean, "false"),
    own("errors.deadletterqueue.topic.name", Kind::Text, ""),
    follows(
        "share.assignment.interval.ms",
        Kind::Between("group.share.min.assignment.interval.ms", "group.share.max.assignment.interval.ms"),
        "group.share.assignment.interval.ms",
    ),
    own("share.auto.offset.reset", Kind::Reset, "latest"),
    follows(
        "share.delivery.count.limit",
        Kind::Between("group.share.min.delivery.count.limit", "group.share.max.delivery.count.limit"),
        "group.share.delivery.count.limit",
    ),
    follows(
        "share.heartbeat.interval.ms",
        Kind::Between("group.share.min.heartbeat.interval.ms", "group.share.max.heartbeat.interval.ms"),
        "group.share.heartbeat.interval.ms",
    ),
    own("share.isolation.level", Kind::OneOf(&["read_uncommitted", "read_committed"]), "read_uncommitted"),
    follows(
        "share.partition.max.record.locks",
        Kind::Between("group.share.min.partition.max.record.locks", "group.share.max.partition.max.record.locks"),
        "group.share.partition.max.record.locks",
    ),
    follows(
        "share.record.lock.duration.ms",
        Kind::Between("group.share.min.record.lock.duration.ms", "group.share.max.record.lock.duration.ms"),
        "group.share.record.lock.duration.ms",
    ),
    own("share.renew.acknowledge.enable", Kind::Boolean, "true"),
    follows(
        "share.session.timeout.ms",
        Kind::Between("group.share.min.session.timeout.ms", "group.share.max.session.timeout.ms"),
        "group.share.session.timeout.ms",
    ),
];

/// The values set for one topic or one group; all others have their default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Values(BTreeMap<&'static str, String>);

impl Values {
    /// The value in force.
    pub fn get<'a>(&'a self, known: &Known, settings: &'a Settings) -> &'a str {
        self.0.get(known.name).map_or_else(|| known.default(settings), String::as_str)
    }

    /// The value in force of a numeric setting.
    pub fn number(&self, table: &[Known], name: &str, settings: &Settings) -> i64 {
        let known = table.iter().find(|known| known.name == name);
        known.and_then(|known| self.get(known, settings).parse().ok()).unwrap_or(0)
    }

    /// Whether a value was set.
    pub fn has(&self, known: &Known) -> bool {
        self.0.contains_key(known.name)
    }

    /// Sets a value; `None` restores the default.
    pub fn set(&mut self, known: &Known, value: Option<String>) {
        match value {
            Some(value) => self.0.insert(known.name, value),
            None => self.0.remove(known.name),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_an_allowed_value() {
        let settings = Settings::new(Vec::new());
        for known in TOPIC.iter().chain(GROUP) {
            assert!(known.takes(known.default(&settings), &settings), "{known:?}");
        }
    }

    #[test]
    fn settings_of_a_later_version_are_unknown() {
        let mut settings = Settings::new(Vec::new());
        let names = || BROKER.iter().map(|known| known.0).chain(TOPIC.iter().chain(GROUP).map(|known| known.name));
        assert!(names().all(|name| settings.knows(name)));
        assert!(LATER.iter().all(|(later, _)| names().any(|name| name == *later)), "each of them is a setting");
        settings.pose = "4.3".parse().expect("a version");
        assert!(settings.knows("share.delivery.count.limit") && !settings.knows("remote.copy.lag.ms"));
        settings.pose = "4.2".parse().expect("a version");
        assert!(!settings.knows("share.delivery.count.limit"));
        assert!(settings.set("group.share.min.delivery.count.limit", "3").is_err());
        assert!(settings.set("group.share.delivery.count.limit", "3").is_ok());
        assert_eq!(settings.number("group.share.assignment.interval.ms"), 0);
        assert!("4.5".parse::<KafkaVersion>().is_err_and(|error| error.contains("4.4")));
    }

    #[test]
    fn bounds_follow_the_brokers_settings() {
        let mut settings = Settings::new(Vec::new());
        let lock = GROUP.iter().find(|known| known.name == "share.record.lock.duration.ms").expect("known");
        assert!(!lock.takes("1000", &settings) && lock.takes("15000", &settings) && !lock.takes("x", &settings));
        settings.set("group.share.min.record.lock.duration.ms", "500").expect("known");
        assert!(lock.takes("1000", &settings));
    }
}
