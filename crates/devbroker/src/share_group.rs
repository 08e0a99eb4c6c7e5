//! The requests of share groups' members (KIP-932). [`group`](super::group) assigns the partitions,
//! [`share_partition`](super::share_partition) has the delivered records. Called by the dispatcher and the timer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use kafka_protocol::messages::share_group_heartbeat_response::{Assignment, TopicPartitions};
use kafka_protocol::messages::{ShareGroupHeartbeatRequest, ShareGroupHeartbeatResponse};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::group::{Group, Member};
use super::rights::{Operation, Resource};
use super::share_partition::PartitionKey;
use super::state::{Caller, State};
use kafka_share::ErrorCode;

/// Member epochs with a special meaning in a heartbeat.
const JOIN: i32 = 0;
const LEAVE: i32 = -1;
/// Member ids are UUIDs; Kafka takes no longer ids.
const LONGEST_MEMBER_ID: usize = 36;

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
