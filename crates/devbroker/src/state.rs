//! The broker's whole state in one struct behind one lock: topics with their logs, groups, sessions.
//!
//! Data and small queries; [`nodes`](super::nodes) has those about nodes and leaders. Each request's file changes the
//! state; [`core`](super::core) waits for changes. Called by all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::group::Group;
use super::log::Log;
use super::node::{NO_LEADER, Node};
use super::rights::{Operation, Resource, Rights};
use super::sequences::Sequences;
use super::session::{Session, SessionKey};
use super::settings::{GROUP, Settings, TOPIC, Values, milliseconds};
use super::share_partition::{PartitionKey, Rules};
use kafka_share::ErrorCode;

/// The caller of a request: its node, connection and client.
#[derive(Clone, Debug)]
pub(super) struct Caller<'a> {
    /// The node that received the request.
    pub node: i32,
    /// The connection; the share sessions that it opened end with it.
    pub connection: u64,
    /// The client id of the request.
    pub client: &'a str,
    /// Parts of this request that faults refuse.
    pub refusals: Vec<Refusal>,
}

/// A fault that refuses a part of one request.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// The only topic refused, if set.
    pub topic: Option<String>,
    /// The only partition refused, if set.
    pub partition: Option<i32>,
    /// Refuses only acknowledgements, or only the rest.
    pub acknowledgements: bool,
    pub code: ErrorCode,
}

impl Caller<'_> {
    /// Makes a caller without faults.
    pub const fn new(node: i32, connection: u64) -> Self {
        Self { node, connection, client: "", refusals: Vec::new() }
    }

    /// The code with which a fault refuses this partition; without a partition, the whole topic.
    pub fn refused(&self, topic: &str, partition: Option<i32>, acknowledgements: bool) -> Option<ErrorCode> {
        let hit = self.refusals.iter().find(|refusal| {
            refusal.acknowledgements == acknowledgements
                && refusal.topic.as_ref().is_none_or(|name| name == topic)
                && refusal.partition.is_none_or(|index| partition == Some(index))
        });
        hit.map(|refusal| refusal.code)
    }
}

/// A topic.
#[derive(Debug)]
pub(super) struct Topic {
    pub id: Uuid,
    pub partitions: Vec<Partition>,
    pub values: Values,
}

/// A partition of a topic.
#[derive(Debug)]
pub(super) struct Partition {
    pub log: Log,
    pub sequences: Sequences,
    /// The nodes with a replica, the preferred leader first.
    pub replicas: Vec<i32>,
    /// The replicas that are in sync.
    pub in_sync: Vec<i32>,
    /// The first offset that readers do not see yet, since an in-sync replica lacks it.
    pub high_watermark: i64,
    /// The node that leads it, or -1.
    pub leader: i32,
    /// Until then its leader loads its state.
    pub ready_at: Option<Instant>,
    /// Number of leader changes.
    pub epoch: i32,
}

impl Partition {
    /// The offset before which readers may read: the high watermark; for committed records at most the last stable
    /// offset.
    pub fn readable(&self, committed: bool) -> i64 {
        if committed { self.log.last_stable().min(self.high_watermark) } else { self.high_watermark }
    }
}

/// State of a transactional id.
#[derive(Debug)]
pub(super) struct Transaction {
    pub producer_id: i64,
    pub epoch: i16,
    /// Topic and index of each partition in the open transaction; empty without one.
    pub open: BTreeSet<(String, i32)>,
    /// Whether the last transaction of this epoch was committed; `None` before its end.
    pub committed: Option<bool>,
}

/// The broker's state.
#[derive(Debug)]
pub(super) struct State {
    pub settings: Settings,
    pub rights: Rights,
    pub cluster_id: String,
    pub nodes: Vec<Node>,
    pub topics: BTreeMap<String, Topic>,
    pub groups: BTreeMap<String, Group>,
    pub group_values: BTreeMap<String, Values>,
    /// Coordinators of groups that have moved.
    pub coordinators: BTreeMap<String, i32>,
    pub sessions: HashMap<SessionKey, Session>,
    /// Number of sessions opened so far.
    pub sessions_opened: u64,
    pub next_producer_id: i64,
    /// Transactions by transactional id.
    pub transactions: BTreeMap<String, Transaction>,
}

impl State {
    /// Makes an empty cluster of nodes at these addresses.
    pub fn new(settings: Settings, addresses: Vec<SocketAddr>) -> Self {
        Self {
            settings,
            rights: Rights::default(),
            cluster_id: Uuid::new_v4().simple().to_string()[..22].to_owned(),
            nodes: addresses.into_iter().map(Node::new).collect(),
            topics: BTreeMap::new(),
            groups: BTreeMap::new(),
            group_values: BTreeMap::new(),
            coordinators: BTreeMap::new(),
            sessions: HashMap::new(),
            sessions_opened: 0,
            next_producer_id: 1,
            transactions: BTreeMap::new(),
        }
    }

    /// The name of the topic with this id.
    pub fn topic_name(&self, id: Uuid) -> Option<String> {
        self.topics.iter().find(|(_, topic)| topic.id == id).map(|(name, _)| name.clone())
    }

    /// Creates a topic. The caller has checked that its name is valid and unused, and that as many nodes as `replicas`
    /// are not fenced.
    pub fn create_topic(&mut self, name: &str, partitions: i32, replicas: usize, values: Values) -> &Topic {
        let first = self.topics.len();
        let partitions = (0..partitions).zip(first..).map(|(_, place)| self.new_partition(place, replicas));
        let topic = Topic { id: Uuid::new_v4(), partitions: partitions.collect(), values };
        self.topics.entry(name.to_owned()).or_insert(topic)
    }

    /// Makes an empty partition; its replicas are the living nodes from `place` on.
    pub fn new_partition(&self, place: usize, replicas: usize) -> Partition {
        let nodes: Vec<i32> = self.living_nodes().map(|(id, _)| id).collect();
        let replicas: Vec<i32> =
            nodes.iter().cycle().skip(place % nodes.len().max(1)).take(replicas).copied().collect();
        Partition {
            log: Log::default(),
            sequences: Sequences::default(),
            leader: replicas.first().copied().unwrap_or(NO_LEADER),
            in_sync: replicas.clone(),
            replicas,
            high_watermark: 0,
            ready_at: None,
            epoch: 0,
        }
    }

    /// Returns a partition that the caller's node leads.
    ///
    /// # Errors
    /// [`ErrorCode::UNKNOWN_TOPIC_OR_PARTITION`], [`ErrorCode::NOT_LEADER_OR_FOLLOWER`], or the code of a fault.
    pub fn led(&mut self, topic: &str, index: i32, caller: &Caller, now: Instant) -> Result<&mut Partition, ErrorCode> {
        if let Some(code) = caller.refused(topic, Some(index), false) {
            return Err(code);
        }
        self.led_by(topic, index, caller.node, now)
    }

    /// Returns a partition that this node leads, regardless of faults.
    ///
    /// # Errors
    /// As [`Self::led`], without faults.
    pub fn led_by(&mut self, topic: &str, index: i32, node: i32, now: Instant) -> Result<&mut Partition, ErrorCode> {
        let partitions = self.topics.get_mut(topic).map(|topic| &mut topic.partitions);
        let partition = usize::try_from(index).ok().and_then(|index| partitions?.get_mut(index));
        let partition = partition.ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)?;
        let ready = partition.ready_at.is_none_or(|at| at <= now);
        if ready && partition.leader == node { Ok(partition) } else { Err(ErrorCode::NOT_LEADER_OR_FOLLOWER) }
    }

    /// The value of a numeric setting of a topic.
    pub fn topic_number(&self, topic: &str, setting: &str) -> i64 {
        self.topics.get(topic).map_or(0, |topic| topic.values.number(TOPIC, setting, &self.settings))
    }

    /// The value of a topic's setting.
    pub fn topic_text(&self, topic: &str, setting: &str) -> &str {
        let known = TOPIC.iter().find(|known| known.name == setting);
        let topic = self.topics.get(topic);
        known.zip(topic).map_or("", |(known, topic)| topic.values.get(known, &self.settings))
    }

    /// The value of a numeric setting of a group.
    pub fn group_number(&self, group: &str, setting: &str) -> i64 {
        let none = Values::default();
        self.group_values.get(group).unwrap_or(&none).number(GROUP, setting, &self.settings)
    }

    /// The value of a group's setting.
    pub fn group_text(&self, group: &str, setting: &str) -> &str {
        let known = GROUP.iter().find(|known| known.name == setting);
        let values = self.group_values.get(group);
        known.map_or("", |known| {
            values.map_or_else(|| known.default(&self.settings), |own| own.get(known, &self.settings))
        })
    }

    /// The value of a group's setting in milliseconds.
    pub fn group_duration(&self, group: &str, setting: &str) -> Duration {
        milliseconds(self.group_number(group, setting))
    }

    /// The group's settings for its records.
    pub fn rules(&self, group: &str) -> Rules {
        Rules {
            lock: self.group_duration(group, "share.record.lock.duration.ms"),
            deliveries: i16::try_from(self.group_number(group, "share.delivery.count.limit")).unwrap_or(i16::MAX),
            span: self.group_number(group, "share.partition.max.record.locks"),
        }
    }

    /// Bytes of records in all logs.
    pub fn bytes(&self) -> usize {
        self.topics.values().flat_map(|topic| &topic.partitions).map(|partition| partition.log.bytes()).sum()
    }

    /// Drops records beyond each topic's retention. Kafka drops whole segments; this drops whole batches.
    pub fn apply_retention(&mut self, now_ms: i64) {
        for topic in self.topics.values_mut() {
            let keeps_ms = topic.values.number(TOPIC, "retention.ms", &self.settings);
            let keeps_bytes = usize::try_from(topic.values.number(TOPIC, "retention.bytes", &self.settings));
            for partition in &mut topic.partitions {
                if keeps_ms >= 0 {
                    partition.log.delete_older(now_ms.saturating_sub(keeps_ms));
                }
                if let Ok(limit) = keeps_bytes {
                    partition.log.shrink_to(limit);
                }
            }
        }
    }

    /// Expires locks and members, if time passes for the node in charge. Returns whether a lock expired, and when the
    /// next one does.
    pub fn expire(&mut self, now: Instant) -> (bool, Option<Instant>) {
        let groups: Vec<String> = self.groups.keys().cloned().collect();
        let standing = self.standing_partitions(now);
        let (mut any, mut next) = (false, None);
        for id in groups {
            let (rules, timeout) = (self.rules(&id), self.group_duration(&id, "share.session.timeout.ms"));
            let coordinated = self.coordinator(&id).is_some_and(|node| self.keeps_time(node, now));
            let Some(group) = self.groups.get_mut(&id) else { continue };
            if coordinated {
                group.expire_members(timeout, now);
            }
            for (_, progress) in group.partitions.iter_mut().filter(|(key, _)| !standing.contains(key)) {
                if progress.next_expiry().is_some_and(|at| at <= now) {
                    progress.expire(rules, now);
                    any = true;
                }
                next = next.into_iter().chain(progress.next_expiry()).min();
            }
        }
        (any, next)
    }

    /// Partitions for which no time passes: the leader is frozen, or missing.
    fn standing_partitions(&self, now: Instant) -> Vec<PartitionKey> {
        let partitions = self.topics.values().flat_map(|topic| {
            let indexed = (0..).zip(&topic.partitions);
            indexed.filter(|(_, partition)| !self.keeps_time(partition.leader, now)).map(|(index, _)| (topic.id, index))
        });
        partitions.collect()
    }

    /// Whether the caller has this right.
    pub fn may(&self, caller: &Caller, operation: Operation, resource: Resource) -> bool {
        self.rights.allow(caller.client, operation, resource)
    }

    /// Checks that the caller has this right.
    ///
    /// # Errors
    /// [`ErrorCode::TOPIC_AUTHORIZATION_FAILED`], [`ErrorCode::GROUP_AUTHORIZATION_FAILED`] or
    /// [`ErrorCode::CLUSTER_AUTHORIZATION_FAILED`]: the code of the resource.
    pub fn check_right(&self, caller: &Caller, operation: Operation, resource: Resource) -> Result<(), ErrorCode> {
        if self.may(caller, operation, resource) { Ok(()) } else { Err(resource.code()) }
    }

    /// Checks that the caller may create or delete a topic: the right to the cluster or to the topic is enough.
    ///
    /// # Errors
    /// [`ErrorCode::TOPIC_AUTHORIZATION_FAILED`]
    pub fn check_topic_or_cluster(&self, caller: &Caller, operation: Operation, topic: &str) -> Result<(), ErrorCode> {
        if self.may(caller, operation, Resource::Cluster) {
            return Ok(());
        }
        self.check_right(caller, operation, Resource::Topic(topic))
    }

    /// Checks that the caller may be an idempotent producer: IdempotentWrite on the cluster or Write on any topic is
    /// enough.
    ///
    /// # Errors
    /// [`ErrorCode::CLUSTER_AUTHORIZATION_FAILED`]
    pub fn check_idempotent(&self, caller: &Caller) -> Result<(), ErrorCode> {
        // Only a denial of Write on `*` leaves no writable topic.
        if self.may(caller, Operation::Write, Resource::Topic("*")) {
            return Ok(());
        }
        self.check_right(caller, Operation::IdempotentWrite, Resource::Cluster)
    }

    /// Returns the name of a topic that the caller may read.
    ///
    /// # Errors
    /// [`ErrorCode::UNKNOWN_TOPIC_ID`], or [`ErrorCode::TOPIC_AUTHORIZATION_FAILED`].
    pub fn readable_topic(&self, caller: &Caller, id: Uuid) -> Result<String, ErrorCode> {
        let name = self.topic_name(id).ok_or(ErrorCode::UNKNOWN_TOPIC_ID)?;
        self.check_right(caller, Operation::Read, Resource::Topic(&name)).map(|()| name)
    }
}

/// Kafka's rule for topic names (`Topic.validate`).
pub(super) fn is_topic_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=249).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(legal)
}
