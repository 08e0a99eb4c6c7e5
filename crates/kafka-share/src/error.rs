//! What can go wrong between this client and Kafka, and the one decision whether it is worth repeating.
//!
//! Every module of the client returns [`KafkaError`]; none of them decides for itself what a code means for a repetition,
//! they ask [`ErrorCode::retry`] or [`KafkaError::retry`]. The codes of share sessions are the exception by nature: what
//! they mean depends on what the session holds, so the share consumer reads them itself and this table says
//! [`Retry::Never`].

use std::fmt;
use std::io;
use std::time::Duration;

use kafka_protocol::error::ResponseError;

use super::address::BrokerAddress;

/// Result of every call to Kafka.
pub type Result<T> = std::result::Result<T, KafkaError>;

/// What a caller may do after an error, from the cheapest to the dearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same request can only fail again.
    Never,
    /// The broker needs a moment: repeat on this connection after a back-off.
    SameConnection,
    /// The connection is gone or cannot be trusted: open another one. Leaders may have moved meanwhile.
    Reconnect,
    /// Ask again who leads or coordinates, then repeat; the connection itself is good.
    RefreshMetadata,
}

/// An error code of the Kafka protocol (<https://kafka.apache.org/protocol#protocol_error_codes>).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ErrorCode(pub i16);

impl ErrorCode {
    /// An error the broker has no name for.
    pub const UNKNOWN_SERVER_ERROR: Self = Self(-1);
    /// No error.
    pub const NONE: Self = Self(0);
    /// The offset asked for is before the first or after the last record of the partition.
    pub const OFFSET_OUT_OF_RANGE: Self = Self(1);
    /// A record batch fails its checksum or is malformed.
    pub const CORRUPT_MESSAGE: Self = Self(2);
    /// The broker does not know the topic, or does not hold the partition.
    pub const UNKNOWN_TOPIC_OR_PARTITION: Self = Self(3);
    /// The partition has no leader at the moment.
    pub const LEADER_NOT_AVAILABLE: Self = Self(5);
    /// The broker is not the partition's leader.
    pub const NOT_LEADER_OR_FOLLOWER: Self = Self(6);
    /// The record is larger than the topic takes.
    pub const MESSAGE_TOO_LARGE: Self = Self(10);
    /// The coordinator is reading its state.
    pub const COORDINATOR_LOAD_IN_PROGRESS: Self = Self(14);
    /// The coordinator's topic does not exist yet, or it has no leader.
    pub const COORDINATOR_NOT_AVAILABLE: Self = Self(15);
    /// Another broker coordinates the group.
    pub const NOT_COORDINATOR: Self = Self(16);
    /// Fewer replicas are in sync than `min.insync.replicas` wants.
    pub const NOT_ENOUGH_REPLICAS: Self = Self(19);
    /// The request was not done in its time.
    pub const REQUEST_TIMED_OUT: Self = Self(7);
    /// A topic name that Kafka refuses.
    pub const INVALID_TOPIC_EXCEPTION: Self = Self(17);
    /// The batch is larger than a segment of the topic.
    pub const RECORD_LIST_TOO_LARGE: Self = Self(18);
    /// The group is one of another kind.
    pub const INCONSISTENT_GROUP_PROTOCOL: Self = Self(23);
    /// The group does not know the member.
    pub const UNKNOWN_MEMBER_ID: Self = Self(25);
    /// `acks` is neither -1, 0 nor 1.
    pub const INVALID_REQUIRED_ACKS: Self = Self(21);
    /// The client lacks a right to the topic.
    pub const TOPIC_AUTHORIZATION_FAILED: Self = Self(29);
    /// The client lacks a right to the group.
    pub const GROUP_AUTHORIZATION_FAILED: Self = Self(30);
    /// The client lacks a right to the cluster.
    pub const CLUSTER_AUTHORIZATION_FAILED: Self = Self(31);
    /// The record's time is outside of what the topic takes.
    pub const INVALID_TIMESTAMP: Self = Self(32);
    /// The broker does not speak this version of the request, or the feature is off.
    pub const UNSUPPORTED_VERSION: Self = Self(35);
    /// The topic exists already.
    pub const TOPIC_ALREADY_EXISTS: Self = Self(36);
    /// No number of partitions for a topic.
    pub const INVALID_PARTITIONS: Self = Self(37);
    /// A policy of the cluster's operator forbids it.
    pub const POLICY_VIOLATION: Self = Self(44);
    /// More replicas asked for than there are brokers.
    pub const INVALID_REPLICATION_FACTOR: Self = Self(38);
    /// The broker does not take this request or this value.
    pub const INVALID_CONFIG: Self = Self(40);
    /// A request the broker could read and cannot accept: a fault of the client.
    pub const INVALID_REQUEST: Self = Self(42);
    /// A batch of an idempotent producer left a gap.
    pub const OUT_OF_ORDER_SEQUENCE_NUMBER: Self = Self(45);
    /// The producer's epoch is over.
    pub const INVALID_PRODUCER_EPOCH: Self = Self(47);
    /// The broker's disk fails, or is full.
    pub const KAFKA_STORAGE_ERROR: Self = Self(56);
    /// The broker no longer knows the producer id.
    pub const UNKNOWN_PRODUCER_ID: Self = Self(59);
    /// The group still has members.
    pub const NON_EMPTY_GROUP: Self = Self(68);
    /// The group does not exist.
    pub const GROUP_ID_NOT_FOUND: Self = Self(69);
    /// The caller knows an older leader of the partition.
    pub const FENCED_LEADER_EPOCH: Self = Self(74);
    /// The caller knows a newer leader of the partition than the broker.
    pub const UNKNOWN_LEADER_EPOCH: Self = Self(75);
    /// The batch is compressed in a way that the topic does not take.
    pub const UNSUPPORTED_COMPRESSION_TYPE: Self = Self(76);
    /// The group has its largest number of members.
    pub const GROUP_MAX_SIZE_REACHED: Self = Self(81);
    /// The broker's validation refused a record.
    pub const INVALID_RECORD: Self = Self(87);
    /// The topic id is unknown: the topic was deleted, perhaps created again.
    pub const UNKNOWN_TOPIC_ID: Self = Self(100);
    /// The member's epoch is not the group's.
    pub const FENCED_MEMBER_EPOCH: Self = Self(110);
    /// A record named in an acknowledgement is not held by this session.
    pub const INVALID_RECORD_STATE: Self = Self(121);
    /// The broker does not know the share session.
    pub const SHARE_SESSION_NOT_FOUND: Self = Self(122);
    /// The share session's epoch is not the expected one.
    pub const INVALID_SHARE_SESSION_EPOCH: Self = Self(123);
    /// The broker has its largest number of share sessions.
    pub const SHARE_SESSION_LIMIT_REACHED: Self = Self(133);

    /// `Ok` for code 0, else the error of the request named.
    pub fn check(self, request: &'static str, message: Option<&str>) -> Result<()> {
        if self == Self::NONE { Ok(()) } else { Err(KafkaError::broker(request, self, message)) }
    }

    /// The one retry decision for codes in answers.
    pub fn retry(self) -> Retry {
        match self.0 {
            // The log, a replica or a quota needs a moment: 2 corrupt in transit, 7 timed out, 14 coordinator loading,
            // 19 and 20 too few replicas, 51 another request of ours is still worked on, 78 the leader is just elected,
            // 89 quota. -1 hides anything, and repeating is harmless: our produce requests are idempotent.
            -1 | 2 | 7 | 14 | 19 | 20 | 51 | 78 | 89 => Retry::SameConnection,
            // Somebody else is the leader, or nobody yet: 3, 5, 6, 8, 9, 13, 56 broken disk, 72 listener, 74 and 75 epochs,
            // 100 and 103 topic ids, 129 the broker no longer trusts our metadata. A fresh topic answers 3 or 6 for up to 300 ms.
            3 | 5 | 6 | 8 | 9 | 13 | 56 | 72 | 74 | 75 | 100 | 103 | 129 => Retry::RefreshMetadata,
            // Another broker coordinates or controls, or none yet.
            15 | 16 | 41 => Retry::RefreshMetadata,
            // Everything else says something about the request or the cluster's settings that time does not change;
            // 1, 25, 45, 47, 59, 81, 110 and 121-124 have an owner who knows what to do (reader, producer, share consumer).
            _ => Retry::Never,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match ResponseError::try_from_code(self.0) {
            None if self.0 == 0 => "NONE".to_owned(),
            None | Some(ResponseError::Unknown(_)) => "UNKNOWN_CODE".to_owned(),
            Some(error) => screaming(&format!("{error:?}")),
        };
        write!(formatter, "{name} ({})", self.0)
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// `NotLeaderOrFollower` as Kafka's own documentation writes it: `NOT_LEADER_OR_FOLLOWER`.
fn screaming(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 8);
    for character in name.chars() {
        if character.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(character.to_ascii_uppercase());
    }
    text
}

/// Why a call to Kafka failed.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    /// The operating system failed the connection.
    #[error("{action} {broker}: {source}")]
    Io {
        /// What was tried, for example "connect to".
        action: &'static str,
        /// The broker of the connection.
        broker: BrokerAddress,
        /// The system's error.
        source: io::Error,
    },
    /// No answer within the request's own deadline. The only sign of a frozen broker: connecting to one succeeds.
    #[error("no answer from {broker} to {request} within {waited:?}")]
    Timeout {
        /// Name of the request.
        request: &'static str,
        /// The broker asked.
        broker: BrokerAddress,
        /// How long the answer was waited for.
        waited: Duration,
    },
    /// The broker closed the connection. Kafka does so when it stops, and when it cannot read a request.
    #[error("connection closed by {broker}")]
    Closed {
        /// The broker of the connection.
        broker: BrokerAddress,
    },
    /// What came is not what the Kafka protocol says: wrong correlation, oversized frame, undecodable answer.
    #[error("{broker} does not answer as a Kafka broker does: {detail}")]
    Malformed {
        /// The broker of the connection.
        broker: BrokerAddress,
        /// What was wrong.
        detail: String,
    },
    /// The broker answered with an error code.
    #[error("{request}: {code}{}{}", if message.is_some() { ": " } else { "" }, message.as_deref().unwrap_or_default().escape_debug())]
    Broker {
        /// Name of the request.
        request: &'static str,
        /// The code.
        code: ErrorCode,
        /// The broker's own words, if it gave any.
        message: Option<String>,
    },
    /// The cluster, or what it stores, is beyond this client. Says what is needed.
    #[error("{0}")]
    Unsupported(String),
    /// A request cannot be put into the protocol's bytes, for example a text longer than its length field.
    #[error("{request} cannot be encoded: {detail}")]
    Unencodable {
        /// Name of the request.
        request: &'static str,
        /// The codec's reason.
        detail: String,
    },
    /// The client was told to end.
    #[error("interrupted")]
    Interrupted,
    /// None of the known brokers takes a connection.
    #[error("no broker reachable ({tried}); last: {last}")]
    NoBroker {
        /// The addresses tried, comma-separated.
        tried: String,
        /// The last failure.
        last: Box<KafkaError>,
    },
}

impl KafkaError {
    /// An error code of the answer to `request`.
    pub fn broker(request: &'static str, code: ErrorCode, message: Option<&str>) -> Self {
        Self::Broker { request, code, message: message.filter(|text| !text.is_empty()).map(str::to_owned) }
    }

    /// The code, when the broker answered with one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Broker { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The right that the client lacks, and on what, when the broker refused the request for it: "the right Read on the
    /// group". The broker's own words name neither.
    pub fn missing_right(&self) -> Option<String> {
        let Self::Broker { request, code, .. } = self else { return None };
        let resource = match *code {
            ErrorCode::TOPIC_AUTHORIZATION_FAILED => "topic",
            ErrorCode::GROUP_AUTHORIZATION_FAILED => "group",
            ErrorCode::CLUSTER_AUTHORIZATION_FAILED => "cluster",
            _ => return None,
        };
        let right = match (*request, resource) {
            ("Produce", _) => "Write",
            ("CreateTopics", _) => "Create",
            ("DescribeConfigs", _) => "DescribeConfigs",
            ("IncrementalAlterConfigs", _) => "AlterConfigs",
            ("InitProducerId", _) => "IdempotentWrite",
            ("Fetch" | "ShareFetch" | "ShareAcknowledge", _) | ("ShareGroupHeartbeat", "group") => "Read",
            _ => "Describe",
        };
        Some(format!("the right {right} on the {resource}"))
    }

    /// Whether the client was told to end.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }

    /// The one retry decision.
    pub fn retry(&self) -> Retry {
        match self {
            // Nothing is known about the request; the connection may stand in the middle of a frame.
            Self::Io { .. } | Self::Timeout { .. } | Self::Closed { .. } | Self::Malformed { .. } => Retry::Reconnect,
            // All brokers may be restarting.
            Self::NoBroker { .. } => Retry::Reconnect,
            Self::Broker { code, .. } => code.retry(),
            // Told to stop; or a fault that repetition keeps.
            Self::Interrupted | Self::Unsupported(_) | Self::Unencodable { .. } => Retry::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_shown_by_their_protocol_names() {
        assert_eq!(ErrorCode(6).to_string(), "NOT_LEADER_OR_FOLLOWER (6)");
        assert_eq!(ErrorCode(0).to_string(), "NONE (0)");
        assert_eq!(ErrorCode(-1).to_string(), "UNKNOWN_SERVER_ERROR (-1)");
        assert_eq!(ErrorCode(122).to_string(), "SHARE_SESSION_NOT_FOUND (122)");
        assert_eq!(ErrorCode(9999).to_string(), "UNKNOWN_CODE (9999)");
    }

    #[test]
    fn every_code_has_the_decision_written_down_for_it() {
        let same = [-1, 2, 7, 14, 19, 20, 51, 78, 89];
        let refresh = [3, 5, 6, 8, 9, 13, 15, 16, 41, 56, 72, 74, 75, 100, 103, 129];
        for code in -1..=140 {
            let expected = if same.contains(&code) {
                Retry::SameConnection
            } else if refresh.contains(&code) {
                Retry::RefreshMetadata
            } else {
                Retry::Never
            };
            assert_eq!(ErrorCode(code).retry(), expected, "{}", ErrorCode(code));
        }
    }

    #[test]
    fn a_broken_connection_is_replaced_and_an_interrupt_is_final() {
        let broker = BrokerAddress::new("localhost", 9092);
        let closed = KafkaError::Closed { broker: broker.clone() };
        let malformed = KafkaError::Malformed { broker: broker.clone(), detail: "frame of -1 bytes".into() };
        let timeout = KafkaError::Timeout { request: "Fetch", broker, waited: Duration::from_secs(1) };
        for error in [closed, malformed, timeout] {
            assert_eq!(error.retry(), Retry::Reconnect, "{error}");
        }
        assert_eq!(KafkaError::Interrupted.retry(), Retry::Never);
        assert_eq!(KafkaError::broker("Produce", ErrorCode(6), None).retry(), Retry::RefreshMetadata);
    }

    #[test]
    fn missing_right_follows_from_request_and_code() {
        let missing = |request, code| KafkaError::broker(request, ErrorCode(code), None).missing_right();
        for (request, code, right) in [
            ("Metadata", 29, "the right Describe on the topic"),
            ("ShareGroupHeartbeat", 29, "the right Describe on the topic"),
            ("ShareGroupHeartbeat", 30, "the right Read on the group"),
            ("ShareFetch", 29, "the right Read on the topic"),
            ("FindCoordinator", 30, "the right Describe on the group"),
            ("Produce", 29, "the right Write on the topic"),
            ("InitProducerId", 31, "the right IdempotentWrite on the cluster"),
        ] {
            assert_eq!(missing(request, code).as_deref(), Some(right), "{request} {code}");
        }
        assert_eq!(missing("Metadata", 3), None);
        assert_eq!(KafkaError::Interrupted.missing_right(), None);
    }

    #[test]
    fn the_brokers_own_words_are_shown_escaped() {
        let error = KafkaError::broker("CreateTopics", ErrorCode(17), Some("bad\nname"));
        assert_eq!(error.to_string(), "CreateTopics: INVALID_TOPIC_EXCEPTION (17): bad\\nname");
        let silent = KafkaError::broker("CreateTopics", ErrorCode(17), None);
        assert_eq!(silent.to_string(), "CreateTopics: INVALID_TOPIC_EXCEPTION (17)");
    }
}
