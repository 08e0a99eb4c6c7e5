//! Coordinators and descriptions of groups: FindCoordinator, ShareGroupDescribe, the offsets of a share group.
//!
//! Called by the dispatcher. [`share_group`](super::share_group) handles membership.

use std::collections::BTreeMap;
use std::time::Instant;

use kafka_protocol::messages::alter_share_group_offsets_response::{
    AlterShareGroupOffsetsResponsePartition, AlterShareGroupOffsetsResponseTopic,
};
use kafka_protocol::messages::describe_share_group_offsets_request::{
    DescribeShareGroupOffsetsRequestGroup, DescribeShareGroupOffsetsRequestTopic,
};
use kafka_protocol::messages::describe_share_group_offsets_response::{
    DescribeShareGroupOffsetsResponseGroup, DescribeShareGroupOffsetsResponsePartition,
    DescribeShareGroupOffsetsResponseTopic,
};
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::share_group_describe_response::{Assignment, DescribedGroup, Member, TopicPartitions};
use kafka_protocol::messages::{
    AlterShareGroupOffsetsRequest, AlterShareGroupOffsetsResponse, BrokerId, DescribeShareGroupOffsetsRequest,
    DescribeShareGroupOffsetsResponse, FindCoordinatorRequest, FindCoordinatorResponse, ShareGroupDescribeRequest,
    ShareGroupDescribeResponse,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::group::Group;
use super::node::NO_LEADER;
use super::produce::topic_name;
use super::rights::{Operation, Resource};
use super::share_partition::SharePartition;
use super::state::{Caller, State};
use kafka_share::ErrorCode;

/// From this version on, FindCoordinator asks for several keys at once (KIP-699).
const SEVERAL: i16 = 4;
/// Key types of FindCoordinator: groups and transactions. Share state (2) is for brokers.
const KEY_TYPES: std::ops::RangeInclusive<i8> = GROUP_KEY..=1;
const GROUP_KEY: i8 = 0;

impl State {
    /// FindCoordinator.
    pub fn find_coordinator(
        &self,
        caller: &Caller,
        version: i16,
        request: &FindCoordinatorRequest,
    ) -> FindCoordinatorResponse {
        let find = |key: &StrBytes| {
            let id = self.coordinator(key.as_str()).unwrap_or(NO_LEADER);
            let found = Coordinator::default().with_key(key.clone()).with_error_message(None);
            let none = found.clone().with_node_id(BrokerId(-1)).with_port(-1);
            let right = self.check_right(caller, Operation::Describe, Resource::Group(key.as_str()));
            if let (GROUP_KEY, Err(code)) = (request.key_type, right) {
                return none.with_error_code(code.0);
            }
            match self.node(id).map(|node| node.address) {
                _ if !KEY_TYPES.contains(&request.key_type) => none.with_error_code(ErrorCode::INVALID_REQUEST.0),
                Some(address) => found
                    .with_node_id(BrokerId(id))
                    .with_host(StrBytes::from_string(address.ip().to_string()))
                    .with_port(address.port().into()),
                None => none.with_error_code(ErrorCode::COORDINATOR_NOT_AVAILABLE.0),
            }
        };
        if version >= SEVERAL {
            let coordinators = request.coordinator_keys.iter().map(find);
            return FindCoordinatorResponse::default().with_coordinators(coordinators.collect());
        }
        let found = find(&request.key);
        FindCoordinatorResponse::default()
            .with_error_code(found.error_code)
            .with_node_id(found.node_id)
            .with_host(found.host)
            .with_port(found.port)
            .with_error_message(None)
    }

    /// ShareGroupDescribe.
    pub fn describe_share_groups(
        &mut self,
        caller: &Caller,
        request: &ShareGroupDescribeRequest,
        now: Instant,
    ) -> ShareGroupDescribeResponse {
        let groups = request.group_ids.iter().map(|id| {
            let described = DescribedGroup::default().with_group_id(id.clone()).with_error_message(None);
            let described = described.with_authorized_operations(i32::MIN);
            let right = self.check_right(caller, Operation::Describe, Resource::Group(id.as_str()));
            match right.and_then(|()| self.check_coordinator(id.as_str(), caller.node, now)) {
                Err(code) => described.with_error_code(code.0),
                Ok(()) => match self.groups.get(id.as_str()) {
                    None => described.with_error_code(ErrorCode::GROUP_ID_NOT_FOUND.0),
                    Some(group) if !self.may_describe_topics(caller, group) => {
                        described.with_error_code(ErrorCode::TOPIC_AUTHORIZATION_FAILED.0)
                    }
                    Some(group) => described
                        .with_group_state(StrBytes::from_static_str(group_state(group)))
                        .with_group_epoch(group.epoch)
                        .with_assignment_epoch(group.epoch)
                        .with_assignor_name(StrBytes::from_static_str("simple"))
                        .with_members(self.described_members(group)),
                },
            }
        });
        ShareGroupDescribeResponse::default().with_groups(groups.collect())
    }

    fn may_describe_topics(&self, caller: &Caller, group: &Group) -> bool {
        let topics = group.members.values().flat_map(|member| &member.subscribed);
        topics.into_iter().all(|name| self.may(caller, Operation::Describe, Resource::Topic(name)))
    }

    fn described_members(&self, group: &Group) -> Vec<Member> {
        let members = group.members.iter().map(|(id, member)| {
            let mut topics: BTreeMap<Uuid, Vec<i32>> = BTreeMap::new();
            member.assigned.iter().for_each(|(topic, index)| topics.entry(*topic).or_default().push(*index));
            let topics = topics.into_iter().map(|(topic, indexes)| {
                let name = self.topic_name(topic).unwrap_or_default();
                TopicPartitions::default()
                    .with_topic_id(topic)
                    .with_topic_name(topic_name(&name))
                    .with_partitions(indexes)
            });
            Member::default()
                .with_member_id(StrBytes::from_string(id.clone()))
                .with_rack_id(None)
                .with_member_epoch(member.epoch)
                .with_client_id(StrBytes::from_string(member.client.clone()))
                .with_client_host(StrBytes::from_static_str("/127.0.0.1"))
                .with_subscribed_topic_names(member.subscribed.iter().map(|name| topic_name(name)).collect())
                .with_assignment(Assignment::default().with_topic_partitions(topics.collect()))
        });
        members.collect()
    }

    /// DescribeShareGroupOffsets: the start offsets of groups; and, in the order of the partitions, their lags
    /// (KIP-1226).
    pub fn describe_share_group_offsets(
        &mut self,
        caller: &Caller,
        request: &DescribeShareGroupOffsetsRequest,
        now: Instant,
    ) -> (DescribeShareGroupOffsetsResponse, Vec<i64>) {
        let mut lags = Vec::new();
        let groups = request.groups.iter().map(|wanted| {
            let answer = DescribeShareGroupOffsetsResponseGroup::default()
                .with_group_id(wanted.group_id.clone())
                .with_error_message(None);
            match self.share_offsets(caller, wanted, now, &mut lags) {
                Ok(topics) => answer.with_topics(topics),
                Err(code) => answer.with_error_code(code.0),
            }
        });
        let answer = DescribeShareGroupOffsetsResponse::default().with_groups(groups.collect());
        (answer, lags)
    }

    fn share_offsets(
        &mut self,
        caller: &Caller,
        wanted: &DescribeShareGroupOffsetsRequestGroup,
        now: Instant,
        lags: &mut Vec<i64>,
    ) -> Result<Vec<DescribeShareGroupOffsetsResponseTopic>, ErrorCode> {
        self.check_right(caller, Operation::Describe, Resource::Group(wanted.group_id.as_str()))?;
        self.check_coordinator(wanted.group_id.as_str(), caller.node, now)?;
        // A group that does not exist has no offsets.
        let group = self.groups.get(wanted.group_id.as_str());
        let all = || {
            let keys = group.into_iter().flat_map(|group| group.partitions.keys());
            let keys = keys.filter_map(|(topic, index)| Some((self.topic_name(*topic)?, *index)));
            let keys = keys.filter(|(name, _)| self.may(caller, Operation::Describe, Resource::Topic(name)));
            keys.map(|(name, index)| {
                DescribeShareGroupOffsetsRequestTopic::default()
                    .with_topic_name(topic_name(&name))
                    .with_partitions(vec![index])
            })
        };
        let topics = wanted.topics.clone().unwrap_or_else(|| all().collect());
        let answers = topics.into_iter().map(|topic| {
            let right = self.check_right(caller, Operation::Describe, Resource::Topic(topic.topic_name.as_str()));
            let found = self.topics.get(topic.topic_name.as_str()).filter(|_| right.is_ok());
            let partitions = topic.partitions.iter().map(|index| {
                let answer = DescribeShareGroupOffsetsResponsePartition::default()
                    .with_partition_index(*index)
                    .with_start_offset(-1)
                    .with_error_message(None);
                let progress = found.and_then(|topic| group?.partitions.get(&(topic.id, *index)));
                let end = found
                    .and_then(|topic| topic.partitions.get(usize::try_from(*index).ok()?))
                    .map(|partition| partition.high_watermark);
                lags.push(progress.zip(end).map_or(-1, |(progress, end)| progress.lag(end)));
                let index = usize::try_from(*index).unwrap_or(usize::MAX);
                let partition = found.and_then(|topic| topic.partitions.get(index));
                if progress.is_some() && partition.is_some_and(|partition| partition.leader == NO_LEADER) {
                    return answer.with_error_code(ErrorCode::LEADER_NOT_AVAILABLE.0);
                }
                if found.is_none() {
                    let code = right.err().unwrap_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
                    return answer.with_error_code(code.0);
                }
                answer.with_start_offset(progress.map_or(-1, SharePartition::start))
            });
            DescribeShareGroupOffsetsResponseTopic::default()
                .with_topic_id(found.map_or(Uuid::nil(), |topic| topic.id))
                .with_partitions(partitions.collect())
                .with_topic_name(topic.topic_name)
        });
        Ok(answers.collect())
    }

    /// AlterShareGroupOffsets: sets where a group without members continues.
    pub fn alter_share_group_offsets(
        &mut self,
        caller: &Caller,
        request: &AlterShareGroupOffsetsRequest,
        now: Instant,
    ) -> AlterShareGroupOffsetsResponse {
        let answer = AlterShareGroupOffsetsResponse::default().with_error_message(None);
        let id = request.group_id.as_str();
        let right = self.check_right(caller, Operation::Read, Resource::Group(id));
        let topics = request.topics.iter().map(|topic| {
            let name = topic.topic_name.as_str();
            (topic, self.check_right(caller, Operation::Read, Resource::Topic(name)))
        });
        let topics: Vec<_> = topics.collect();
        let right = right.and_then(|()| self.check_coordinator(id, caller.node, now));
        let checked = right.and_then(|()| match self.groups.get_mut(id) {
            None => Err(ErrorCode::GROUP_ID_NOT_FOUND),
            Some(group) if !group.members.is_empty() => Err(ErrorCode::NON_EMPTY_GROUP),
            Some(group) => Ok(group),
        });
        let group = match checked {
            Ok(group) => group,
            Err(code) => return answer.with_error_code(code.0),
        };
        let responses = topics.into_iter().map(|(topic, right)| {
            let found = self.topics.get(topic.topic_name.as_str());
            let partitions = topic.partitions.iter().map(|wanted| {
                let index = wanted.partition_index;
                let exists =
                    found.filter(|topic| usize::try_from(index).is_ok_and(|index| index < topic.partitions.len()));
                let answer = AlterShareGroupOffsetsResponsePartition::default().with_partition_index(index);
                match right.and(exists.ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)) {
                    Ok(topic) => {
                        group.partitions.insert((topic.id, index), SharePartition::new(wanted.start_offset));
                        answer.with_error_message(None)
                    }
                    Err(code) => answer.with_error_code(code.0),
                }
            });
            AlterShareGroupOffsetsResponseTopic::default()
                .with_partitions(partitions.collect())
                .with_topic_id(found.map_or(Uuid::nil(), |topic| topic.id))
                .with_topic_name(topic.topic_name.clone())
        });
        answer.with_responses(responses.collect())
    }
}

fn group_state(group: &Group) -> &'static str {
    if group.members.is_empty() { "Empty" } else { "Stable" }
}
