//! Members of a share group and their partitions (KIP-932).
//!
//! Membership only: it assigns partitions, and does not check that members fetch from them.
//! [`share_partition`](super::share_partition) has the delivered records. Called by the dispatcher and the timer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kafka_protocol::messages::share_group_heartbeat_response::{Assignment, TopicPartitions};
use kafka_protocol::messages::{ShareGroupHeartbeatRequest, ShareGroupHeartbeatResponse};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::rights::{Operation, Resource};
use super::share_partition::SharePartition;
use super::state::{Caller, PartitionKey, State};
use kafka_share::ErrorCode;

/// Member epochs with a special meaning in a heartbeat.
const JOIN: i32 = 0;
const LEAVE: i32 = -1;
/// Member ids are UUIDs; Kafka takes no longer ids.
const LONGEST_MEMBER_ID: usize = 36;
/// How long Kafka writes the first state of a partition before it is assigned to a member.
const INITIALIZING: Duration = Duration::from_millis(3);

/// A share group.
#[derive(Debug)]
pub(super) struct Group {
    /// Grows with every change of members, subscriptions and partitions.
    pub epoch: i32,
    pub members: BTreeMap<String, Member>,
    /// The group's progress in each partition that a member has fetched.
    pub partitions: BTreeMap<PartitionKey, SharePartition>,
    /// From when on a partition may be assigned.
    initialized: BTreeMap<PartitionKey, Instant>,
    /// Time and epoch of the last assignment.
    assigned_at: Instant,
    assigned_epoch: i32,
}

/// A member of a share group.
#[derive(Debug)]
pub(super) struct Member {
    pub epoch: i32,
    /// The previous epoch: the response with the new one may have been lost.
    previous: i32,
    pub client: String,
    pub subscribed: BTreeSet<String>,
    pub assigned: BTreeSet<PartitionKey>,
    /// Whether the member has received its assignment.
    told: bool,
    heard: Instant,
}

impl Group {
    fn new(now: Instant) -> Self {
        Self {
            // The first member gets epoch 2 in Kafka: one step for the member, one for its subscribed topics.
            epoch: 1,
            members: BTreeMap::new(),
            partitions: BTreeMap::new(),
            initialized: BTreeMap::new(),
            assigned_at: now,
            assigned_epoch: 0,
        }
    }

    /// Restarts the members' timeouts, since a new coordinator begins to count.
    pub fn hear_all(&mut self, now: Instant) {
        self.members.values_mut().for_each(|member| member.heard = now);
    }

    /// Whether the partition has a state: a member subscribed to its topic at least [`INITIALIZING`] ago.
    pub fn has_begun(&self, partition: PartitionKey, now: Instant) -> bool {
        self.initialized.get(&partition).is_some_and(|at| *at <= now)
    }

    /// Removes members that have been silent for too long.
    pub fn expire_members(&mut self, timeout: Duration, now: Instant) {
        let before = self.members.len();
        self.members.retain(|_, member| now < member.heard + timeout);
        if self.members.len() < before {
            self.epoch += 1;
        }
    }

    /// Assigns partitions to members, unless that was done just now.
    fn assign(&mut self, wanted: &BTreeSet<PartitionKey>, interval: Duration, now: Instant) {
        for key in wanted {
            self.initialized.entry(*key).or_insert(now + INITIALIZING);
        }
        let ready: Vec<PartitionKey> = wanted.iter().filter(|key| self.has_begun(**key, now)).copied().collect();
        let known: BTreeSet<PartitionKey> =
            self.members.values().flat_map(|member| member.assigned.iter().copied()).collect();
        let fresh = !self.members.is_empty() && ready.iter().any(|key| !known.contains(key));
        // Partitions of deleted topics.
        let gone = known.iter().any(|key| !wanted.contains(key));
        let changed = fresh || gone;
        if (!changed && self.assigned_epoch == self.epoch) || now < self.assigned_at + interval {
            return;
        }
        self.epoch += i32::from(changed && self.assigned_epoch == self.epoch);
        let had: Vec<_> = self.members.values().map(|member| &member.assigned).collect();
        let shares = deal(&had, &ready);
        for (member, share) in self.members.values_mut().zip(shares) {
            if member.assigned != share {
                member.assigned = share;
                member.told = false;
            }
        }
        (self.assigned_at, self.assigned_epoch) = (now, self.epoch);
    }
}

/// Assigns partitions like Kafka's `SimpleAssignor`. Each partition gets as many members as it takes for every member
/// to have one. Members keep their partitions as far as possible.
fn deal(had: &[&BTreeSet<PartitionKey>], partitions: &[PartitionKey]) -> Vec<BTreeSet<PartitionKey>> {
    let members = had.len();
    let mut shares = vec![BTreeSet::new(); members];
    if partitions.is_empty() || members == 0 {
        return shares;
    }
    let readers = members.div_ceil(partitions.len());
    let slots = partitions.len() * readers;
    let (fair, mut more) = (slots / members, slots % members);
    let mut places: BTreeMap<PartitionKey, usize> = partitions.iter().map(|key| (*key, readers)).collect();
    for (share, had) in shares.iter_mut().zip(had) {
        for key in *had {
            let Some(free) = places.get_mut(key).filter(|free| **free > 0) else { continue };
            if share.len() > fair || (share.len() == fair && more == 0) {
                break;
            }
            more -= usize::from(share.len() == fair);
            *free -= 1;
            share.insert(*key);
        }
    }
    // The partition with the fewest members goes first, to the member with the fewest partitions.
    for _ in 0..slots {
        let Some((key, _)) = places.iter().filter(|(_, free)| **free > 0).max_by_key(|(_, free)| **free) else { break };
        let key = *key;
        let taker = shares.iter_mut().filter(|share| !share.contains(&key)).min_by_key(|share| share.len());
        taker.map(|share| share.insert(key));
        places.entry(key).and_modify(|free| *free -= 1);
    }
    shares
}

impl State {
    /// ShareGroupHeartbeat: joins, stays or leaves.
    pub fn share_group_heartbeat(
        &mut self,
        caller: &Caller,
        request: &ShareGroupHeartbeatRequest,
        now: Instant,
    ) -> ShareGroupHeartbeatResponse {
        match self.heartbeat(caller, request, now) {
            Ok(answer) => answer,
            Err(code) => ShareGroupHeartbeatResponse::default().with_error_code(code.0),
        }
    }

    fn heartbeat(
        &mut self,
        caller: &Caller,
        request: &ShareGroupHeartbeatRequest,
        now: Instant,
    ) -> Result<ShareGroupHeartbeatResponse, ErrorCode> {
        let (group_id, member_id) = (request.group_id.as_str(), request.member_id.as_str());
        if self.settings.share_version < 1 {
            return Err(ErrorCode::UNSUPPORTED_VERSION);
        }
        let joins = request.member_epoch == JOIN;
        let subscribed = request.subscribed_topic_names.as_ref();
        let nothing = subscribed.is_none_or(Vec::is_empty);
        let named = !group_id.is_empty() && (1..=LONGEST_MEMBER_ID).contains(&member_id.len());
        if !named || request.member_epoch < LEAVE || (joins && nothing) {
            return Err(ErrorCode::INVALID_REQUEST);
        }
        self.check_right(caller, Operation::Read, Resource::Group(group_id))?;
        for topic in subscribed.into_iter().flatten() {
            self.check_right(caller, Operation::Describe, Resource::Topic(topic.as_str()))?;
        }
        self.check_coordinator(group_id, caller.node, now)?;
        if request.member_epoch == LEAVE {
            return self.leave(group_id, member_id);
        }
        let largest = usize::try_from(self.settings.number("group.share.max.size")).unwrap_or(usize::MAX);
        if joins {
            self.groups.entry(group_id.to_owned()).or_insert_with(|| Group::new(now));
        }
        let group = self.groups.get_mut(group_id).ok_or(ErrorCode::GROUP_ID_NOT_FOUND)?;
        if !group.members.contains_key(member_id) {
            if !joins {
                return Err(ErrorCode::UNKNOWN_MEMBER_ID);
            }
            if group.members.len() >= largest {
                return Err(ErrorCode::GROUP_MAX_SIZE_REACHED);
            }
            group.epoch += 1;
            group.members.insert(member_id.to_owned(), Member::new(group.epoch, caller.client, now));
        }
        let Some(member) = group.members.get_mut(member_id) else { return Err(ErrorCode::UNKNOWN_MEMBER_ID) };
        if !joins && ![member.epoch, member.previous].contains(&request.member_epoch) {
            return Err(ErrorCode::FENCED_MEMBER_EPOCH);
        }
        member.heard = now;
        if let Some(names) = subscribed {
            let names: BTreeSet<String> = names.iter().map(|name| name.as_str().to_owned()).collect();
            if member.subscribed != names {
                member.subscribed = names;
                group.epoch += i32::from(!joins);
            }
        }
        self.assign(group_id, now);
        Ok(self.heartbeat_answer(group_id, member_id, joins || subscribed.is_some()))
    }

    fn leave(&mut self, group_id: &str, member_id: &str) -> Result<ShareGroupHeartbeatResponse, ErrorCode> {
        let group = self.groups.get_mut(group_id).ok_or(ErrorCode::GROUP_ID_NOT_FOUND)?;
        group.members.remove(member_id).ok_or(ErrorCode::UNKNOWN_MEMBER_ID)?;
        group.epoch += 1;
        let member_id = StrBytes::from_string(member_id.to_owned());
        Ok(ShareGroupHeartbeatResponse::default().with_member_id(Some(member_id)).with_member_epoch(LEAVE))
    }

    fn assign(&mut self, group_id: &str, now: Instant) {
        let interval = self.group_duration(group_id, "share.assignment.interval.ms");
        let Some(group) = self.groups.get_mut(group_id) else { return };
        let names = group.members.values().flat_map(|member| &member.subscribed);
        let topics: BTreeSet<&String> = names.collect();
        let topics = topics.into_iter().filter_map(|name| self.topics.get(name));
        let wanted = topics.flat_map(|topic| (0..).zip(&topic.partitions).map(|(index, _)| (topic.id, index)));
        group.assign(&wanted.collect(), interval, now);
    }

    fn heartbeat_answer(&mut self, group_id: &str, member_id: &str, whole: bool) -> ShareGroupHeartbeatResponse {
        let interval = i32::try_from(self.group_number(group_id, "share.heartbeat.interval.ms")).unwrap_or(i32::MAX);
        let mut answer = ShareGroupHeartbeatResponse::default().with_heartbeat_interval_ms(interval);
        let Some(group) = self.groups.get_mut(group_id) else { return answer };
        let (assigned_epoch, epoch) = (group.assigned_epoch, group.epoch);
        let Some(member) = group.members.get_mut(member_id) else { return answer };
        // A member has the epoch of the last assignment; before the first one, the epoch of its own arrival.
        let reached = member.epoch.max(assigned_epoch).min(epoch);
        if reached != member.epoch {
            (member.previous, member.epoch) = (member.epoch, reached);
        }
        answer.member_id = Some(StrBytes::from_string(member_id.to_owned()));
        answer.member_epoch = member.epoch;
        if whole || !member.told {
            member.told = true;
            answer.assignment = Some(assignment(&member.assigned));
        }
        answer
    }
}

fn assignment(assigned: &BTreeSet<PartitionKey>) -> Assignment {
    let mut topics: BTreeMap<Uuid, Vec<i32>> = BTreeMap::new();
    for (topic, index) in assigned {
        topics.entry(*topic).or_default().push(*index);
    }
    let topics = topics
        .into_iter()
        .map(|(topic, indexes)| TopicPartitions::default().with_topic_id(topic).with_partitions(indexes));
    Assignment::default().with_topic_partitions(topics.collect())
}

impl Member {
    fn new(epoch: i32, client: &str, now: Instant) -> Self {
        Self {
            epoch,
            previous: epoch,
            client: client.to_owned(),
            subscribed: BTreeSet::new(),
            assigned: BTreeSet::new(),
            told: true,
            heard: now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(count: i32) -> Vec<PartitionKey> {
        (0..count).map(|index| (Uuid::nil(), index)).collect()
    }

    fn indexes(shares: &[BTreeSet<PartitionKey>]) -> Vec<Vec<i32>> {
        shares.iter().map(|share| share.iter().map(|key| key.1).collect()).collect()
    }

    fn fresh(members: usize, count: i32) -> Vec<BTreeSet<PartitionKey>> {
        deal(&vec![&BTreeSet::new(); members], &partitions(count))
    }

    #[test]
    fn every_member_has_a_partition_and_every_partition_a_member() {
        assert_eq!(indexes(&fresh(3, 1)), [[0], [0], [0]]);
        assert_eq!(indexes(&fresh(4, 2)).concat().iter().filter(|index| **index == 0).count(), 2);
        assert!(indexes(&fresh(4, 2)).iter().all(|share| share.len() == 1));
        for (members, count) in [(2, 3), (3, 2), (3, 6), (5, 2), (7, 4)] {
            let shares = indexes(&fresh(members, count));
            let readers = members.div_ceil(usize::try_from(count).expect("few"));
            for index in 0..count {
                let found = shares.iter().filter(|share| share.contains(&index)).count();
                assert_eq!(found, readers, "partition {index} of {count}, {members} members: {shares:?}");
            }
            assert!(shares.iter().all(|share| !share.is_empty()), "{members} members, {count} partitions: {shares:?}");
        }
        assert_eq!(indexes(&fresh(1, 0)), [[0; 0]]);
        assert!(fresh(0, 2).is_empty());
    }

    #[test]
    fn members_keep_their_partitions() {
        let before = fresh(4, 2);
        let nothing = BTreeSet::new();
        let had: Vec<_> = before.iter().chain([&nothing]).collect();
        let after = deal(&had, &partitions(2));
        assert!(after.iter().zip(&before).all(|(after, before)| after.is_superset(before)), "{after:?}");
        assert!(!after[4].is_empty());
    }
}
