//! Everything that the broker knows, in one struct behind one lock: topics with their logs, groups, sessions.
//!
//! Data and the small questions about it. What a request does to it stands in the file of the request; who waits for a change waits in
//! [`core`](super::core). Called by all of them.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::committed::Committed;
use super::log::Log;
use super::rights::Rights;
use super::sequences::Sequences;
use super::settings::{GROUP, Settings, TOPIC, Values, milliseconds};
use super::share_fetch::{Session, SessionKey};
use super::share_group::Group;
use super::share_partition::Rules;
use crate::kafka::ErrorCode;

/// Who asks: which node was asked, over which connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller<'a> {
    /// The node that the connection is with.
    pub node: i32,
    /// The connection; its end ends the share sessions that it opened.
    pub connection: u64,
    /// The client id of the request.
    pub client: &'a str,
    /// A fault: every acknowledgement of this request is refused with this code.
    pub refuses: Option<ErrorCode>,
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
    /// The node that leads it.
    pub leader: i32,
    /// How often its leader changed.
    pub epoch: i32,
}

/// A partition by the id of its topic.
pub(super) type PartitionKey = (Uuid, i32);

/// See the module documentation.
#[derive(Debug)]
pub(super) struct State {
    pub settings: Settings,
    pub rights: Rights,
    pub cluster_id: String,
    /// Where each node tells clients to find it; node ids count from 1.
    pub nodes: Vec<SocketAddr>,
    pub topics: BTreeMap<String, Topic>,
    pub groups: BTreeMap<String, Group>,
    pub group_values: BTreeMap<String, Values>,
    /// The coordinators of groups that moved away from their first one.
    pub coordinators: BTreeMap<String, i32>,
    pub sessions: HashMap<SessionKey, Session>,
    /// Positions by group, topic and partition.
    pub committed: BTreeMap<(String, String, i32), Committed>,
    pub next_producer_id: i64,
    /// Nothing is answered, no time passes.
    pub frozen: bool,
    /// Nothing is answered any more.
    pub stopped: bool,
    /// After a restart leaders and coordinators read their state until then.
    pub loading_until: Option<Instant>,
}

impl State {
    /// An empty cluster of the nodes at these addresses.
    pub fn new(settings: Settings, nodes: Vec<SocketAddr>) -> Self {
        Self {
            settings,
            rights: Rights::default(),
            cluster_id: Uuid::new_v4().simple().to_string()[..22].to_owned(),
            nodes,
            topics: BTreeMap::new(),
            groups: BTreeMap::new(),
            group_values: BTreeMap::new(),
            coordinators: BTreeMap::new(),
            sessions: HashMap::new(),
            committed: BTreeMap::new(),
            next_producer_id: 1,
            frozen: false,
            stopped: false,
            loading_until: None,
        }
    }

    /// What is left after a restart: connections, sessions and locks are gone.
    pub fn restart(&mut self, now: Instant, loading: Duration) {
        self.sessions.clear();
        for group in self.groups.values_mut() {
            group.restart(now);
        }
        self.loading_until = Some(now + loading);
        (self.frozen, self.stopped) = (false, false);
    }

    /// Whether leaders and coordinators still read their state.
    pub fn is_loading(&mut self, now: Instant) -> bool {
        if self.loading_until.is_some_and(|until| until <= now) {
            self.loading_until = None;
        }
        self.loading_until.is_some()
    }

    /// The nodes' ids.
    pub fn node_ids(&self) -> impl Iterator<Item = i32> + use<> {
        1..=i32::try_from(self.nodes.len()).unwrap_or(1)
    }

    /// The address of a node as clients are told.
    pub fn node(&self, id: i32) -> Option<SocketAddr> {
        self.nodes.get(usize::try_from(id - 1).ok()?).copied()
    }

    /// The name of the topic with this id.
    pub fn topic_name(&self, id: Uuid) -> Option<String> {
        self.topics.iter().find(|(_, topic)| topic.id == id).map(|(name, _)| name.clone())
    }

    /// Creates a topic; its name is free and good.
    pub fn create_topic(&mut self, name: &str, partitions: i32, values: Values) -> &Topic {
        let nodes = i32::try_from(self.nodes.len()).unwrap_or(1);
        let first = i32::try_from(self.topics.len()).unwrap_or(0);
        let partitions = (0..partitions).map(|index| Partition {
            log: Log::default(),
            sequences: Sequences::default(),
            leader: 1 + (first + index) % nodes,
            epoch: 0,
        });
        let topic = Topic { id: Uuid::new_v4(), partitions: partitions.collect(), values };
        self.topics.entry(name.to_owned()).or_insert(topic)
    }

    /// A partition that this node leads.
    ///
    /// # Errors
    /// [`ErrorCode::UNKNOWN_TOPIC_OR_PARTITION`], or [`ErrorCode::NOT_LEADER_OR_FOLLOWER`].
    pub fn led(&mut self, topic: &str, index: i32, node: i32, now: Instant) -> Result<&mut Partition, ErrorCode> {
        let loading = self.is_loading(now);
        let partitions = self.topics.get_mut(topic).map(|topic| &mut topic.partitions);
        let partition = usize::try_from(index).ok().and_then(|index| partitions?.get_mut(index));
        let partition = partition.ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)?;
        if loading || partition.leader != node { Err(ErrorCode::NOT_LEADER_OR_FOLLOWER) } else { Ok(partition) }
    }

    /// A topic's setting that is a number.
    pub fn topic_number(&self, topic: &str, setting: &str) -> i64 {
        self.topics.get(topic).map_or(0, |topic| topic.values.number(TOPIC, setting, &self.settings))
    }

    /// A topic's setting.
    pub fn topic_text(&self, topic: &str, setting: &str) -> &str {
        let known = TOPIC.iter().find(|known| known.name == setting);
        let topic = self.topics.get(topic);
        known.zip(topic).map_or("", |(known, topic)| topic.values.get(known, &self.settings))
    }

    /// A group's setting that is a number.
    pub fn group_number(&self, group: &str, setting: &str) -> i64 {
        let none = Values::default();
        self.group_values.get(group).unwrap_or(&none).number(GROUP, setting, &self.settings)
    }

    /// A group's setting that is a number of milliseconds.
    pub fn group_duration(&self, group: &str, setting: &str) -> Duration {
        milliseconds(self.group_number(group, setting))
    }

    /// What a group says about its records.
    pub fn rules(&self, group: &str) -> Rules {
        Rules {
            lock: self.group_duration(group, "share.record.lock.duration.ms"),
            deliveries: i16::try_from(self.group_number(group, "share.delivery.count.limit")).unwrap_or(i16::MAX),
            span: self.group_number(group, "share.partition.max.record.locks"),
        }
    }

    /// The node that coordinates a group, a producer's transactions or anything else with a name.
    pub fn coordinator(&self, name: &str) -> i32 {
        let nodes = u32::try_from(self.nodes.len()).unwrap_or(1);
        let first = || 1 + i32::try_from(crc32c::crc32c(name.as_bytes()) % nodes).unwrap_or(0);
        self.coordinators.get(name).copied().unwrap_or_else(first)
    }

    /// Whether this node may answer for the group now.
    ///
    /// # Errors
    /// [`ErrorCode::NOT_COORDINATOR`], or [`ErrorCode::COORDINATOR_LOAD_IN_PROGRESS`].
    pub fn check_coordinator(&mut self, group: &str, node: i32, now: Instant) -> Result<(), ErrorCode> {
        if self.coordinator(group) != node {
            return Err(ErrorCode::NOT_COORDINATOR);
        }
        if self.is_loading(now) { Err(ErrorCode::COORDINATOR_LOAD_IN_PROGRESS) } else { Ok(()) }
    }

    /// Bytes of records in all logs.
    pub fn bytes(&self) -> usize {
        self.topics.values().flat_map(|topic| &topic.partitions).map(|partition| partition.log.bytes()).sum()
    }

    /// Drops what is older, or more, than each topic keeps. Kafka drops whole segments; this drops whole batches.
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

    /// Lets locks and members run out; whether any lock did, and when the next one does.
    pub fn expire(&mut self, now: Instant) -> (bool, Option<Instant>) {
        let groups: Vec<String> = self.groups.keys().cloned().collect();
        let (mut any, mut next) = (false, None);
        for id in groups {
            let (rules, timeout) = (self.rules(&id), self.group_duration(&id, "share.session.timeout.ms"));
            let Some(group) = self.groups.get_mut(&id) else { continue };
            group.expire_members(timeout, now);
            for progress in group.partitions.values_mut() {
                if progress.next_expiry().is_some_and(|at| at <= now) {
                    progress.expire(rules, now);
                    any = true;
                }
                next = next.into_iter().chain(progress.next_expiry()).min();
            }
        }
        (any, next)
    }
}
