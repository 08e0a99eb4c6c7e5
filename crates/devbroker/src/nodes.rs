//! The nodes of the cluster: whether each runs or is fenced, which partitions it leads, which groups it coordinates.
//!
//! All nodes share one memory, so every replica has every record. A silent replica still delays `acks=all` and the high
//! watermark until it is fenced (KIP-631, KIP-966). The controller is no node: it works while more than half of the
//! nodes run. Called by [`core`](super::core) and by [`Broker`](super::Broker).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::node::{Condition, NO_LEADER, Node};
use super::share_partition::Loss;
use super::state::{Partition, State};
use kafka_share::ErrorCode;

/// After a thaw, requests waiting in sockets are handled before locks expire, as observed with Kafka.
const THAW_GRACE: Duration = Duration::from_millis(200);

impl State {
    /// The node with this id, if it exists.
    pub fn node(&self, id: i32) -> Option<&Node> {
        self.nodes.get(usize::try_from(id - 1).ok()?)
    }

    fn node_mut(&mut self, id: i32) -> Option<&mut Node> {
        self.nodes.get_mut(usize::try_from(id - 1).ok()?)
    }

    /// Ids of all nodes.
    pub fn node_ids(&self) -> impl Iterator<Item = i32> + use<> {
        1..=i32::try_from(self.nodes.len()).unwrap_or(1)
    }

    /// Ids and addresses of the nodes that Metadata names.
    pub fn living_nodes(&self) -> impl Iterator<Item = (i32, SocketAddr)> {
        (1..).zip(&self.nodes).filter(|(_, node)| !node.fenced).map(|(id, node)| (id, node.address))
    }

    /// The condition of a node; a node that does not exist is down.
    pub fn condition(&self, id: i32) -> Condition {
        self.node(id).map_or(Condition::Down, |node| node.condition)
    }

    /// Whether time passes for the partitions and groups of this node.
    pub fn keeps_time(&self, id: i32, now: Instant) -> bool {
        self.node(id).is_some_and(|node| node.keeps_time(now))
    }

    /// Freezes a node or cuts it off.
    pub fn silence(&mut self, id: i32, condition: Condition, now: Instant) {
        if let Some(node) = self.node_mut(id).filter(|node| node.condition == Condition::Running) {
            node.condition = condition;
            node.silent_since = Some(now);
        }
    }

    /// Ends a freeze or a cut. A node that was fenced meanwhile registers again.
    pub fn resume(&mut self, id: i32, now: Instant) {
        let silent = |node: &&mut Node| matches!(node.condition, Condition::Frozen | Condition::Cut);
        let Some(node) = self.node_mut(id).filter(silent) else { return };
        if node.condition == Condition::Frozen {
            node.grace_until = Some(now + THAW_GRACE);
        }
        (node.condition, node.silent_since) = (Condition::Running, None);
        if node.fenced && node.fenced_until.is_none_or(|until| until <= now) {
            self.unfence(id, now);
        }
        self.replicate();
    }

    /// Ends a node's process. A kill loses sessions, locks and unwritten share state. A stop first releases the records
    /// of its sessions and moves its leaders (KIP-966's controlled shutdown).
    pub fn end_node(&mut self, id: i32, kill: bool, now: Instant) {
        if self.condition(id) == Condition::Down {
            return;
        }
        let sessions: Vec<_> = self.sessions.keys().filter(|key| key.node == id).cloned().collect();
        for key in sessions {
            if kill { drop(self.sessions.remove(&key)) } else { self.close_session(&key) }
        }
        if kill {
            let loss = Loss::After { delay: self.settings.share_state_delay, now };
            self.each_led_by(id, |state, key| state.reload(key, loss));
        } else {
            self.fence(id, now);
        }
        if let Some(node) = self.node_mut(id) {
            node.condition = Condition::Down;
            node.silent_since.get_or_insert(now);
        }
    }

    /// Starts a node's process again: it is fenced for a while, then leads partitions without another leader, and loads
    /// its state.
    pub fn begin_node(&mut self, id: i32, now: Instant) {
        if self.condition(id) != Condition::Down {
            return;
        }
        // The controller sees a new incarnation of the node.
        self.fence(id, now);
        let until = now + self.settings.fenced;
        let loading = until + self.settings.loading;
        let Some(node) = self.node_mut(id) else { return };
        (node.condition, node.silent_since, node.fenced_until) = (Condition::Running, None, Some(until));
        node.loading_until = Some(loading);
        if until <= now {
            self.unfence(id, now);
        }
        self.replicate();
    }

    /// Does the controller's periodic work: fences nodes that are silent for `broker.session.timeout.ms`, and unfences
    /// nodes that returned. Returns whether anything changed.
    pub fn control(&mut self, now: Instant) -> bool {
        let timeout = self.settings.duration("broker.session.timeout.ms");
        let running = self.nodes.iter().filter(|node| node.condition == Condition::Running).count();
        let quorum = running * 2 > self.nodes.len();
        let mut any = false;
        for id in self.node_ids() {
            let Some(node) = self.node(id) else { continue };
            let overdue = node.silent_since.is_some_and(|since| now >= since + timeout);
            if overdue && !node.fenced && quorum {
                self.fence(id, now);
                any = true;
            } else if node.fenced
                && node.condition == Condition::Running
                && node.fenced_until.is_none_or(|until| until <= now)
            {
                self.unfence(id, now);
                any = true;
            }
        }
        if any {
            self.replicate();
        }
        any
    }

    fn fence(&mut self, id: i32, now: Instant) {
        if self.node(id).is_none_or(|node| node.fenced) {
            return;
        }
        let moving = self.coordinated_by(id);
        if let Some(node) = self.node_mut(id) {
            node.fenced = true;
        }
        for partition in self.topics.values_mut().flat_map(|topic| &mut topic.partitions) {
            // The last in-sync replica stays: only it has every record.
            if partition.in_sync.len() > 1 {
                partition.in_sync.retain(|replica| *replica != id);
            }
        }
        self.each_led_by(id, |state, key| state.elect(key, now));
        self.hear_members_of(&moving, now);
        self.replicate();
    }

    fn unfence(&mut self, id: i32, now: Instant) {
        if let Some(node) = self.node_mut(id) {
            (node.fenced, node.fenced_until) = (false, None);
        }
        self.each_led_by(NO_LEADER, |state, key| state.elect(key, now));
        let living: Vec<i32> = self.living_nodes().map(|(id, _)| id).collect();
        let partitions = self.topics.values_mut().flat_map(|topic| &mut topic.partitions);
        // Nothing can be copied without a leader, so a replica that was not in sync stays out of sync.
        for partition in partitions.filter(|partition| partition.leader != NO_LEADER) {
            let behind = partition.replicas.iter().filter(|id| living.contains(id) && !partition.in_sync.contains(id));
            let behind: Vec<i32> = behind.copied().collect();
            partition.in_sync.extend(behind);
        }
        self.hear_members_of(&self.coordinated_by(id), now);
    }

    fn coordinated_by(&self, id: i32) -> Vec<String> {
        self.groups.keys().filter(|group| self.coordinator(group) == Some(id)).cloned().collect()
    }

    fn hear_members_of(&mut self, groups: &[String], now: Instant) {
        for (_, group) in self.groups.iter_mut().filter(|(id, _)| groups.contains(id)) {
            group.hear_all(now);
        }
    }

    fn each_led_by(&mut self, id: i32, act: impl Fn(&mut Self, (&str, i32))) {
        let topics = self.topics.iter();
        let led: Vec<(String, i32)> = topics
            .flat_map(|(name, topic)| {
                let led = (0..).zip(&topic.partitions).filter(|(_, partition)| partition.leader == id);
                led.map(|(index, _)| (name.clone(), index))
            })
            .collect();
        for (topic, index) in &led {
            act(self, (topic, *index));
        }
    }

    fn partition_mut(&mut self, topic: &str, index: i32) -> Option<&mut Partition> {
        self.topics.get_mut(topic)?.partitions.get_mut(usize::try_from(index).ok()?)
    }

    /// Makes the first replica that is in sync and not fenced the leader.
    fn elect(&mut self, (topic, index): (&str, i32), now: Instant) {
        let fenced: Vec<i32> = self.node_ids().filter(|id| self.node(*id).is_some_and(|node| node.fenced)).collect();
        let Some(partition) = self.partition_mut(topic, index) else { return };
        let fit = |replica: &&i32| partition.in_sync.contains(replica) && !fenced.contains(replica);
        let leader = partition.replicas.iter().find(fit).copied().unwrap_or(NO_LEADER);
        self.lead((topic, index), leader, now);
    }

    /// Makes a node the leader of a partition. Locks and unwritten deliveries are lost (measured on Kafka 4.4).
    fn lead(&mut self, (topic, index): (&str, i32), leader: i32, now: Instant) {
        let ready_at = now + self.settings.loading;
        let Some(partition) = self.partition_mut(topic, index).filter(|partition| partition.leader != leader) else {
            return;
        };
        partition.leader = leader;
        partition.epoch += 1;
        partition.ready_at = Some(ready_at);
        self.reload((topic, index), Loss::Nothing);
    }

    fn reload(&mut self, (topic, index): (&str, i32), loss: Loss) {
        let Some(key) = self.topics.get(topic).map(|topic| (topic.id, index)) else { return };
        for progress in self.groups.values_mut().filter_map(|group| group.partitions.get_mut(&key)) {
            progress.reload(loss);
        }
    }

    /// Makes another node the leader of a partition, and its only replica if it was no replica. `false` if the
    /// partition does not exist or the node does not serve.
    pub fn move_leader(&mut self, topic: &str, index: i32, node: i32, now: Instant) -> bool {
        let serves = self.node(node).is_some_and(|node| node.condition == Condition::Running && !node.fenced);
        let Some(partition) = self.partition_mut(topic, index).filter(|_| serves) else { return false };
        if !partition.replicas.contains(&node) {
            (partition.replicas, partition.in_sync) = (vec![node], vec![node]);
        }
        self.lead((topic, index), node, now);
        true
    }

    /// Moves all partitions that a node leads to the next node.
    pub fn move_leaders(&mut self, from: i32, now: Instant) {
        let to = self.next_node(from);
        self.each_led_by(from, |state, (topic, index)| {
            state.move_leader(topic, index, to, now);
        });
    }

    /// Moves all groups that a node coordinates to the next node.
    pub fn move_coordinators(&mut self, from: i32) {
        let to = self.next_node(from);
        for group in self.coordinated_by(from) {
            self.coordinators.insert(group, to);
        }
    }

    /// The next serving node, or the node itself without another.
    fn next_node(&self, node: i32) -> i32 {
        let serves = |id: &i32| self.node(*id).is_some_and(|node| node.condition == Condition::Running && !node.fenced);
        let in_turn = self.node_ids().filter(|id| *id > node).chain(self.node_ids());
        in_turn.into_iter().find(serves).unwrap_or(node)
    }

    /// Whether a node is silent and not yet fenced. All nodes have the share state, which is written as with
    /// `acks=all`.
    pub fn is_share_state_held_up(&self) -> bool {
        self.nodes.iter().any(|node| node.silent_since.is_some() && !node.fenced)
    }

    /// Whether an in-sync replica of the partition is silent: `acks=all` and the high watermark then wait.
    pub fn is_held_up(&self, partition: &Partition) -> bool {
        let silent =
            |id: &i32| *id != partition.leader && self.node(*id).is_some_and(|node| node.silent_since.is_some());
        partition.in_sync.iter().any(silent)
    }

    /// Moves each high watermark to the end of its log, if no in-sync replica is silent.
    pub fn replicate(&mut self) {
        let mut topics = std::mem::take(&mut self.topics);
        for partition in topics.values_mut().flat_map(|topic| &mut topic.partitions) {
            if !self.is_held_up(partition) {
                partition.high_watermark = partition.log.end();
            }
        }
        self.topics = topics;
    }

    /// The node that coordinates a group, a transactional id or any other name; `None` while all nodes are fenced.
    pub fn coordinator(&self, name: &str) -> Option<i32> {
        let first = self.coordinators.get(name).map(|id| id - 1);
        let first = first.unwrap_or_else(|| i32::try_from(crc32c::crc32c(name.as_bytes()) >> 1).unwrap_or(0));
        let count = i32::try_from(self.nodes.len()).unwrap_or(1);
        let in_turn = (0..count).map(|step| 1 + (first % count + step) % count);
        in_turn.into_iter().find(|id| self.node(*id).is_some_and(|node| !node.fenced))
    }

    /// Checks that this node may answer for the group now.
    ///
    /// # Errors
    /// [`ErrorCode::NOT_COORDINATOR`], or [`ErrorCode::COORDINATOR_LOAD_IN_PROGRESS`].
    pub fn check_coordinator(&mut self, group: &str, node: i32, now: Instant) -> Result<(), ErrorCode> {
        if self.coordinator(group) != Some(node) {
            return Err(ErrorCode::NOT_COORDINATOR);
        }
        let loads = self.node(node).is_some_and(|node| node.loading_until.is_some_and(|until| now < until));
        if loads { Err(ErrorCode::COORDINATOR_LOAD_IN_PROGRESS) } else { Ok(()) }
    }

    /// Whether a running node is fenced or loads its state.
    pub fn is_loading(&self, now: Instant) -> bool {
        let loads = |node: &Node| node.fenced || node.loading_until.is_some_and(|until| now < until);
        self.nodes.iter().any(|node| node.condition == Condition::Running && loads(node))
    }
}
