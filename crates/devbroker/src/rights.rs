//! Rights of clients to topics, groups and the cluster, as Kafka's `StandardAuthorizer` decides them.
//!
//! A list of denials; everything else is allowed. Each request calls `State::check_right` as soon as it knows the
//! topic or group. Kafka denies users; the embedded broker denies client ids. Called by the requests, and by tests
//! through [`Broker`](super::Broker).

use kafka_share::ErrorCode;

/// An operation on a resource. Its number is that of Kafka's `AclOperation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fetch of a topic; ShareFetch, ShareAcknowledge and ShareGroupHeartbeat of a group.
    Read = 3,
    /// Produce
    Write = 4,
    /// CreateTopics; Metadata that creates topics. The right to the cluster is enough.
    Create = 5,
    /// DeleteTopics, for which the right to the cluster is enough; DeleteRecords; DeleteGroups.
    Delete = 6,
    /// CreatePartitions
    Alter = 7,
    /// Metadata and ListOffsets of a topic; FindCoordinator and ShareGroupDescribe of a group; the topics of
    /// heartbeats.
    Describe = 8,
    /// DescribeConfigs
    DescribeConfigs = 10,
    /// IncrementalAlterConfigs
    AlterConfigs = 11,
    /// InitProducerId, of the cluster.
    IdempotentWrite = 12,
}

/// The resource of a right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource<'a> {
    /// A topic by name; `*` is every topic.
    Topic(&'a str),
    /// A group by name; `*` is every group.
    Group(&'a str),
    /// The cluster.
    Cluster,
}

impl<'a> Resource<'a> {
    /// The type and name of the resource in a Kafka ACL.
    pub fn type_and_name(self) -> (i8, &'a str) {
        match self {
            Self::Topic(name) => (2, name),
            Self::Group(name) => (3, name),
            Self::Cluster => (4, "kafka-cluster"),
        }
    }

    /// The code for a request that lacks the right.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Topic(_) => ErrorCode::TOPIC_AUTHORIZATION_FAILED,
            Self::Group(_) => ErrorCode::GROUP_AUTHORIZATION_FAILED,
            Self::Cluster => ErrorCode::CLUSTER_AUTHORIZATION_FAILED,
        }
    }
}

/// One denied operation on one resource. It denies no other operation, as with a Kafka ACL: a client without Describe
/// may still read.
#[derive(Clone, Debug)]
pub struct Denial {
    operation: Operation,
    resource: (i8, String),
    client: Option<String>,
}

impl Denial {
    /// Denies the operation to every client.
    pub fn new(operation: Operation, resource: Resource) -> Self {
        let (kind, name) = resource.type_and_name();
        Self { operation, resource: (kind, name.to_owned()), client: None }
    }

    /// Only for clients whose id contains this.
    #[must_use]
    pub fn of_client(mut self, id: &str) -> Self {
        self.client = Some(id.to_owned());
        self
    }
}

/// The denials of one broker.
#[derive(Debug, Default)]
pub(super) struct Rights(Vec<Denial>);

impl Rights {
    /// Adds a denial.
    pub fn deny(&mut self, denial: Denial) {
        self.0.push(denial);
    }

    /// Removes all denials.
    pub fn allow_all(&mut self) {
        self.0.clear();
    }

    pub fn allow(&self, client: &str, operation: Operation, resource: Resource) -> bool {
        let (kind, name) = resource.type_and_name();
        !self.0.iter().any(|denial| {
            denial.operation == operation
                && denial.resource.0 == kind
                && (denial.resource.1 == name || denial.resource.1 == "*")
                && denial.client.as_ref().is_none_or(|id| client.contains(id.as_str()))
        })
    }
}
