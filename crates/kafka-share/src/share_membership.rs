//! Membership of one process in a share group: heartbeats to the group's coordinator, and what it assigns.
//!
//! A plain state machine over one connection with no thread of its own: `worker::membership` calls it in a loop.
//! Membership and share sessions are independent (KIP-932): leaving the group frees no lock, closing the session does,
//! so a stop closes the sessions first and leaves then.

use super::cluster::Cluster;
use super::connection::Connection;
use super::error::{ErrorCode, KafkaError};
use super::share_session::ShareIdentity;
use super::share_wire::SharePartition;
use kafka_protocol::messages::{GroupId, ShareGroupHeartbeatRequest, ShareGroupHeartbeatResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// ShareGroupHeartbeat's version on Kafka 4.1 and newer.
const HEARTBEAT_VERSION: i16 = 1;
/// Member epoch with which a member joins.
const JOINING_EPOCH: i32 = 0;
/// Member epoch with which a member leaves.
const LEAVING_EPOCH: i32 = -1;
/// How long one request waits for its answer while joined; a frozen broker is found out by this.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(5);

/// What one heartbeat taught.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The partitions to fetch from, when the coordinator sent an assignment with this answer.
    pub assignment: Option<BTreeSet<SharePartition>>,
    /// When the next heartbeat is due.
    pub interval: Duration,
}

/// See the module documentation.
pub struct ShareMembership {
    cluster: Cluster,
    identity: ShareIdentity,
    topic: String,
    connection: Option<Connection>,
    epoch: i32,
}

impl ShareMembership {
    /// A member that has not joined yet.
    #[must_use]
    pub fn new(cluster: Cluster, identity: ShareIdentity, topic: &str) -> Self {
        Self { cluster, identity, topic: topic.to_owned(), connection: None, epoch: JOINING_EPOCH }
    }

    /// True once the coordinator has taken this member in and not thrown it out since.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        self.epoch > JOINING_EPOCH
    }

    /// The reason, with topic or group and the missing right, when an error of [`heartbeat`](Self::heartbeat) is one
    /// that time does not change: rights (29, 30, 31), a group of another kind (23, 69).
    #[must_use]
    pub fn refusal(&self, error: &KafkaError) -> Option<String> {
        let group = format!("group \"{}\"", self.identity.group.escape_debug());
        let what = match error.code()? {
            ErrorCode::TOPIC_AUTHORIZATION_FAILED => format!("topic \"{}\"", self.topic.escape_debug()),
            ErrorCode::GROUP_AUTHORIZATION_FAILED
            | ErrorCode::CLUSTER_AUTHORIZATION_FAILED
            | ErrorCode::INCONSISTENT_GROUP_PROTOCOL
            | ErrorCode::GROUP_ID_NOT_FOUND => group,
            _ => return None,
        };
        let right = error.missing_right().map(|right| format!("{right} is missing: "));
        Some(format!("{what}: {}{error}", right.unwrap_or_default()))
    }

    /// Joins, or says that this member is still there (KIP-932 ShareGroupHeartbeat).
    ///
    /// # Errors
    /// As the coordinator says. The member has already drawn its conclusion (find the coordinator anew, join anew with the
    /// same id); the caller only waits a little and calls again.
    pub fn heartbeat(&mut self) -> Result<Heartbeat, KafkaError> {
        // The subscription is sent with every request: repeating it costs 20 bytes and survives a coordinator's move.
        let topics = vec![TopicName(StrBytes::from_string(self.topic.clone()))];
        let request = self.request(self.epoch).with_subscribed_topic_names(Some(topics));
        let response = self.exchange(&request, HEARTBEAT_TIMEOUT)?;
        self.epoch = response.member_epoch;
        let assignment = response.assignment.map(|assignment| {
            let topics = assignment.topic_partitions.into_iter();
            topics
                .flat_map(|topic| {
                    let topic_id = topic.topic_id;
                    topic.partitions.into_iter().map(move |partition| SharePartition { topic_id, partition })
                })
                .collect()
        });
        let interval = u64::try_from(response.heartbeat_interval_ms).unwrap_or(0).max(100);
        Ok(Heartbeat { assignment, interval: Duration::from_millis(interval) })
    }

    /// Leaves the group. A member that never joined has nothing to leave. Tries until `deadline`.
    ///
    /// # Errors
    /// The last error before the deadline; the coordinator then drops the member when its session ends (45 s).
    pub fn leave(&mut self, deadline: Instant) -> Result<(), KafkaError> {
        if !self.is_joined() {
            return Ok(());
        }
        let request = self.request(LEAVING_EPOCH);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.exchange(&request, left.min(HEARTBEAT_TIMEOUT)) {
                Ok(_) => break,
                // Not a member any more: that is what leaving is for.
                Err(KafkaError::Broker {
                    code: ErrorCode::UNKNOWN_MEMBER_ID | ErrorCode::FENCED_MEMBER_EPOCH, ..
                }) => break,
                Err(error) if left <= RETRY_PAUSE => return Err(error),
                Err(KafkaError::Interrupted) => return Err(KafkaError::Interrupted),
                Err(_) => self.cluster.options().interrupter.sleep(RETRY_PAUSE)?,
            }
        }
        self.epoch = JOINING_EPOCH;
        self.connection = None;
        Ok(())
    }

    fn request(&self, epoch: i32) -> ShareGroupHeartbeatRequest {
        ShareGroupHeartbeatRequest::default()
            .with_group_id(GroupId(StrBytes::from_string(self.identity.group.to_string())))
            .with_member_id(StrBytes::from_string(self.identity.member.to_string()))
            .with_member_epoch(epoch)
    }

    fn exchange(
        &mut self,
        request: &ShareGroupHeartbeatRequest,
        timeout: Duration,
    ) -> Result<ShareGroupHeartbeatResponse, KafkaError> {
        let mut connection = match self.connection.take().filter(|connection| !connection.is_broken()) {
            Some(connection) => connection,
            None => {
                let coordinator = self.cluster.group_coordinator(&self.identity.group)?;
                let connected = self.cluster.connect(coordinator);
                connected.inspect_err(|_| self.cluster.forget_coordinator(&self.identity.group))?
            }
        };
        let answered = connection.call(HEARTBEAT_VERSION, request, timeout);
        let response = answered.inspect_err(|_| self.cluster.forget_coordinator(&self.identity.group))?;
        match ErrorCode(response.error_code) {
            // The group lives on another broker, or its broker is still starting: ask again who coordinates it.
            ErrorCode::COORDINATOR_LOAD_IN_PROGRESS
            | ErrorCode::COORDINATOR_NOT_AVAILABLE
            | ErrorCode::NOT_COORDINATOR => self.cluster.forget_coordinator(&self.identity.group),
            // Thrown out: join anew with the same id. The share session is another matter and stays.
            ErrorCode::UNKNOWN_MEMBER_ID | ErrorCode::FENCED_MEMBER_EPOCH => {
                self.epoch = JOINING_EPOCH;
                self.connection = Some(connection);
            }
            _ => self.connection = Some(connection),
        }
        ErrorCode(response.error_code).check("ShareGroupHeartbeat", response.error_message.as_deref())?;
        Ok(response)
    }
}

/// Between two tries of leaving; a coordinator that moved is found again within this.
const RETRY_PAUSE: Duration = Duration::from_millis(30);
