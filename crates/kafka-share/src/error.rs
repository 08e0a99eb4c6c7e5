//! Errors between this client and Kafka, and the single decision whether to retry.
//!
//! Every module of the client returns [`KafkaError`] and asks [`ErrorCode::retry`] or [`KafkaError::retry`] what an
//! error means for a retry. Only the share consumer reads the codes of share sessions itself, since their meaning
//! depends on the records that the session holds. For these codes the table says [`Retry::Never`].

use std::fmt;
use std::io;
use std::time::Duration;

use kafka_protocol::error::ResponseError;

use super::address::BrokerAddress;

/// Result of every call to Kafka.
pub type Result<T> = std::result::Result<T, KafkaError>;

/// What a caller may do after an error, from the cheapest to the most expensive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same request would fail again.
    Never,
    /// The broker needs a moment: repeat on this connection after a back-off.
    SameConnection,
    /// The connection is gone or in an unknown state: open another. Leaders may have moved meanwhile.
    Reconnect,
    /// Look the leader or coordinator up again, then repeat; the connection itself is good.
    RefreshMetadata,
}

/// An error code of the Kafka protocol (<https://kafka.apache.org/protocol#protocol_error_codes>).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ErrorCode(pub i16);

impl ErrorCode {
    /// The broker failed without a specific code.
    pub const UNKNOWN_SERVER_ERROR: Self = Self(-1);
    /// No error.
    pub const NONE: Self = Self(0);
    /// The requested offset is before the first or after the last record of the partition.
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
    /// The broker did not finish the request within the request's own time.
    pub const REQUEST_TIMED_OUT: Self = Self(7);
    /// Kafka does not allow this topic name.
    pub const INVALID_TOPIC_EXCEPTION: Self = Self(17);
    /// The batch is larger than a segment of the topic.
    pub const RECORD_LIST_TOO_LARGE: Self = Self(18);
    /// The group is of another kind.
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
    /// The record's timestamp is outside the range that the topic takes.
    pub const INVALID_TIMESTAMP: Self = Self(32);
    /// The broker offers other SASL mechanisms.
    pub const UNSUPPORTED_SASL_MECHANISM: Self = Self(33);
    /// The request does not belong to the present step of a login, or the listener has no logins.
    pub const ILLEGAL_SASL_STATE: Self = Self(34);
    /// The broker does not speak this version of the request, or the feature is off.
    pub const UNSUPPORTED_VERSION: Self = Self(35);
    /// The topic exists already.
    pub const TOPIC_ALREADY_EXISTS: Self = Self(36);
    /// The number of partitions is not allowed.
    pub const INVALID_PARTITIONS: Self = Self(37);
    /// A policy of the cluster's operator forbids the request.
    pub const POLICY_VIOLATION: Self = Self(44);
    /// The request asks for more replicas than there are brokers.
    pub const INVALID_REPLICATION_FACTOR: Self = Self(38);
    /// The broker does not take this request or this value.
    pub const INVALID_CONFIG: Self = Self(40);
    /// The broker read the request and cannot accept it: a fault of the client.
    pub const INVALID_REQUEST: Self = Self(42);
    /// A batch of an idempotent producer left a gap.
    pub const OUT_OF_ORDER_SEQUENCE_NUMBER: Self = Self(45);
    /// The producer's epoch has been replaced.
    pub const INVALID_PRODUCER_EPOCH: Self = Self(47);
    /// The broker's disk fails or is full.
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
    /// The group has its largest number of members.
    pub const GROUP_MAX_SIZE_REACHED: Self = Self(81);
    /// The broker's validation refused a record.
    pub const INVALID_RECORD: Self = Self(87);
    /// A quota forbids the request for now.
    pub const THROTTLING_QUOTA_EXCEEDED: Self = Self(89);
    /// The topic id is unknown: the topic was deleted, and perhaps created again.
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

    /// Returns `Ok` for code 0, else the error of `request`.
    pub fn check(self, request: &'static str, message: Option<&str>) -> Result<()> {
        if self == Self::NONE { Ok(()) } else { Err(KafkaError::broker(request, self, message)) }
    }

    /// Decides on a retry for codes in responses.
    pub fn retry(self) -> Retry {
        match self.0 {
            // The log, a replica or a quota needs a moment: 2 corrupt in transit, 7 timed out, 14 coordinator loading,
            // 19 and 20 too few replicas, 51 another request of this client is in progress, 78 a leader was just
            // elected, 89 quota. -1 can mean anything; repeating is harmless, since produce requests are idempotent.
            -1 | 2 | 7 | 14 | 19 | 20 | 51 | 78 | 89 => Retry::SameConnection,
            // Another broker leads, or none yet: 3, 5, 6, 8, 9, 13, 56 broken disk, 72 listener, 74 and 75 epochs, 100
            // and 103 topic ids, 129 stale metadata. A new topic returns 3 or 6 for up to 300 ms.
            3 | 5 | 6 | 8 | 9 | 13 | 56 | 72 | 74 | 75 | 100 | 103 | 129 => Retry::RefreshMetadata,
            // Another broker is coordinator or controller, or none yet.
            15 | 16 | 41 => Retry::RefreshMetadata,
            // The other codes concern the request or the cluster's settings, which time does not change. Reader,
            // producer and share consumer handle 1, 25, 45, 47, 59, 81, 110 and 121-124 themselves.
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

/// Converts `NotLeaderOrFollower` to the form of Kafka's documentation, `NOT_LEADER_OR_FOLLOWER`.
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
        /// The attempted action, for example "cannot connect to".
        action: &'static str,
        /// The broker of the connection.
        broker: BrokerAddress,
        /// The system's error.
        source: io::Error,
    },
    /// No response within the request's own deadline. Only this shows a frozen broker: connecting to it succeeds.
    #[error("no answer from {broker} to {request} within {waited:?}")]
    Timeout {
        /// Name of the request.
        request: &'static str,
        /// The broker that did not answer.
        broker: BrokerAddress,
        /// How long the client waited.
        waited: Duration,
    },
    /// The broker closed the connection. Kafka closes it when it stops, and when it cannot read a request.
    #[error("connection closed by {broker}")]
    Closed {
        /// The broker of the connection.
        broker: BrokerAddress,
    },
    /// The bytes break the Kafka protocol: wrong correlation id, oversized frame, undecodable response.
    #[error("{broker} does not answer as a Kafka broker does: {detail}")]
    Malformed {
        /// The broker of the connection.
        broker: BrokerAddress,
        /// The fault.
        detail: String,
    },
    /// The connection cannot be secured as this client and the broker are configured.
    #[error("{broker} cannot be used securely: {detail}")]
    Security {
        /// The broker of the connection.
        broker: BrokerAddress,
        /// The fault, and what would be right.
        detail: String,
        /// Whether every repetition fails until a person changes something.
        is_final: bool,
    },
    /// The broker answered with an error code.
    #[error(
        "{request}: {code}{}{}",
        if message.is_some() { ": " } else { "" },
        message.as_deref().unwrap_or_default().escape_debug()
    )]
    Broker {
        /// Name of the request.
        request: &'static str,
        /// The code.
        code: ErrorCode,
        /// The broker's own message, if it sent any.
        message: Option<String>,
    },
    /// This client does not support the cluster or its data. The text says what is needed.
    #[error("{0}")]
    Unsupported(String),
    /// The request does not fit the protocol, for example a text longer than its length field.
    #[error("{request} cannot be encoded: {detail}")]
    Unencodable {
        /// Name of the request.
        request: &'static str,
        /// The codec's reason.
        detail: String,
    },
    /// The interrupter stopped this client.
    #[error("interrupted")]
    Interrupted,
    /// None of the known brokers takes a connection.
    #[error("no broker reachable ({tried}); last: {last}")]
    NoBroker {
        /// The tried addresses, comma-separated.
        tried: String,
        /// The last failure.
        last: Box<KafkaError>,
    },
}

impl KafkaError {
    /// Makes the error for a code in the response to `request`.
    pub fn broker(request: &'static str, code: ErrorCode, message: Option<&str>) -> Self {
        Self::Broker { request, code, message: message.filter(|text| !text.is_empty()).map(str::to_owned) }
    }

    /// The error code, if the broker sent one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Broker { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Names the right that the client lacks and its resource, for example "the right Read on the group". The broker's
    /// own message names neither.
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

    /// The error, after the right that the client lacks, if that is its cause.
    pub fn explained(&self) -> String {
        match self.missing_right() {
            Some(right) if right.ends_with("Describe on the topic") => {
                format!("{right}, which Read and Write include, is missing: {self}")
            }
            Some(right) if right.ends_with("Describe on the group") => {
                format!("{right}, which Read includes, is missing: {self}")
            }
            Some(right) => format!("{right} is missing: {self}"),
            None => self.to_string(),
        }
    }

    /// Returns the reason, with the name of the group or topic, if this error is permanent for a member of the group:
    /// missing rights (29, 30, 31), or a group of another kind (23, 69).
    pub fn refusal_of(&self, group: &str, topic: &str) -> Option<String> {
        let what = match self.code()? {
            ErrorCode::TOPIC_AUTHORIZATION_FAILED => format!("topic \"{}\"", topic.escape_debug()),
            ErrorCode::GROUP_AUTHORIZATION_FAILED
            | ErrorCode::CLUSTER_AUTHORIZATION_FAILED
            | ErrorCode::INCONSISTENT_GROUP_PROTOCOL
            | ErrorCode::GROUP_ID_NOT_FOUND => format!("group \"{}\"", group.escape_debug()),
            _ => return None,
        };
        Some(format!("{what}: {}", self.explained()))
    }

    /// Whether the interrupter stopped this client.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }

    /// Decides on a retry.
    pub fn retry(&self) -> Retry {
        match self {
            // The request's outcome is unknown; the connection may be in the middle of a frame.
            Self::Io { .. } | Self::Timeout { .. } | Self::Closed { .. } | Self::Malformed { .. } => Retry::Reconnect,
            // All brokers may be restarting.
            Self::NoBroker { .. } => Retry::Reconnect,
            // Certificates are replaced while programs run. Only a start gives up.
            Self::Security { .. } => Retry::Reconnect,
            Self::Broker { code, .. } => code.retry(),
            // Repeating cannot help after an interrupt or a fault in the request.
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
    fn every_error_code_has_its_listed_retry_decision() {
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
    fn broken_connection_is_replaced_and_interrupt_is_final() {
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
    fn message_of_the_broker_is_shown_escaped() {
        let error = KafkaError::broker("CreateTopics", ErrorCode(17), Some("bad\nname"));
        assert_eq!(error.to_string(), "CreateTopics: INVALID_TOPIC_EXCEPTION (17): bad\\nname");
        let silent = KafkaError::broker("CreateTopics", ErrorCode(17), None);
        assert_eq!(silent.to_string(), "CreateTopics: INVALID_TOPIC_EXCEPTION (17)");
    }
}
