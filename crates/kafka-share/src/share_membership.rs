//! Membership of one process in a share group: heartbeats to the group's coordinator, and the assignment it sends.
//!
//! A state machine over one connection, without a thread: `worker::membership` calls it in a loop. Membership and share
//! sessions are independent (KIP-932). Closing the session frees its locks, leaving the group does not; a stop
//! therefore closes the sessions first.

use super::cluster::Cluster;
use super::connection::Connection;
use super::error::{ErrorCode, KafkaError};
use super::share_session::ShareIdentity;
use super::share_wire::SharePartition;
use kafka_protocol::messages::{GroupId, ShareGroupHeartbeatRequest, ShareGroupHeartbeatResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Version of ShareGroupHeartbeat on Kafka 4.1 and newer.
const HEARTBEAT_VERSION: i16 = 1;
/// Member epoch of a join request.
const JOINING_EPOCH: i32 = 0;
/// Member epoch of a leave request.
const LEAVING_EPOCH: i32 = -1;
/// How long a heartbeat waits for its response; this detects a frozen broker.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(5);

/// Result of one heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The partitions to fetch from, if the coordinator sent an assignment.
    pub assignment: Option<BTreeSet<SharePartition>>,
    /// When the next heartbeat is due.
    pub interval: Duration,
}

/// This process's membership.
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

    /// Whether the coordinator has accepted this member and not removed it since.
    fn is_joined(&self) -> bool {
        self.epoch > JOINING_EPOCH
    }

    /// Returns the reason if `error` is permanent: see [`KafkaError::refusal_of`].
    #[must_use]
    pub fn refusal(&self, error: &KafkaError) -> Option<String> {
        error.refusal_of(&self.identity.group, &self.topic)
    }

    /// Joins the group, or tells the coordinator that this member is alive (KIP-932 ShareGroupHeartbeat).
    ///
    /// # Errors
    /// The coordinator's error. The next call finds the coordinator again, or joins again with the same id, as the
    /// error requires; the caller only pauses and calls again.
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

    /// How long the coordinator throttles this member and so reads no heartbeat, at most 5 s: far less than a member's
    /// session lasts.
    #[must_use]
    pub fn rest(&self) -> Duration {
        self.connection.as_ref().map_or(Duration::ZERO, Connection::muted_for).min(HEARTBEAT_TIMEOUT)
    }

    /// Leaves the group, retrying until `deadline`. Does nothing for a member that never joined.
    ///
    /// # Errors
    /// The last error before the deadline. The coordinator then drops the member when its session ends (45 s).
    pub fn leave(&mut self, deadline: Instant) -> Result<(), KafkaError> {
        if !self.is_joined() {
            return Ok(());
        }
        let request = self.request(LEAVING_EPOCH);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.exchange(&request, left.min(HEARTBEAT_TIMEOUT)) {
                Ok(_) => break,
                // The coordinator has removed this member already.
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
        // A muted connection is replaced: the caller has waited, or leaves (see `rest`).
        let kept = self.connection.take().filter(|kept| !kept.is_broken() && kept.muted_for().is_zero());
        let mut connection = match kept {
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
            // Another broker coordinates the group, or its broker is still starting: look the coordinator up again.
            ErrorCode::COORDINATOR_LOAD_IN_PROGRESS
            | ErrorCode::COORDINATOR_NOT_AVAILABLE
            | ErrorCode::NOT_COORDINATOR => self.cluster.forget_coordinator(&self.identity.group),
            // The coordinator removed this member: join again with the same id. The share session is independent and
            // stays.
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

/// Pause between two attempts to leave; a coordinator that moved is found again within this time.
const RETRY_PAUSE: Duration = Duration::from_millis(30);
