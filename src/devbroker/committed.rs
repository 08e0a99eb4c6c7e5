//! OffsetCommit and OffsetFetch: positions that readers without a group's membership keep under a group's name.
//!
//! Called by the dispatcher. Members of classic or consumer groups cannot be: there are none here.

use std::time::Instant;

use kafka_protocol::messages::offset_commit_request::OffsetCommitRequestPartition;
use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::offset_fetch_response::{OffsetFetchResponsePartition, OffsetFetchResponseTopic};
use kafka_protocol::messages::{OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse};
use kafka_protocol::protocol::StrBytes;

use super::produce::topic_name;
use super::rights::{Operation, Resource};
use super::state::{Caller, State};
use crate::kafka::ErrorCode;

/// A position: offset, leader epoch, and what its owner wrote beside it.
pub(super) type Committed = (i64, i32, String);

/// Generation of a caller that is no member.
const NO_MEMBER: i32 = -1;

impl State {
    /// OffsetCommit.
    pub fn commit_offsets(
        &mut self,
        caller: &Caller,
        request: &OffsetCommitRequest,
        now: Instant,
    ) -> OffsetCommitResponse {
        let group = request.group_id.as_str();
        let member = request.generation_id_or_member_epoch != NO_MEMBER || !request.member_id.is_empty();
        let right = self.check_right(caller, Operation::Read, Resource::Group(group));
        let refused = right.and_then(|()| self.check_coordinator(group, caller.node, now)).err();
        let refused = refused.or(member.then_some(ErrorCode::UNKNOWN_MEMBER_ID));
        let topics = request.topics.iter().map(|topic| {
            let name = topic.name.as_str();
            let refused = refused.or(self.check_right(caller, Operation::Read, Resource::Topic(name)).err());
            let partitions = topic.partitions.iter().map(|partition| {
                let code = refused.or_else(|| self.commit(group, name, partition).err());
                OffsetCommitResponsePartition::default()
                    .with_partition_index(partition.partition_index)
                    .with_error_code(code.map_or(0, |code| code.0))
            });
            let partitions = partitions.collect();
            OffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions)
        });
        OffsetCommitResponse::default().with_topics(topics.collect())
    }

    fn commit(&mut self, group: &str, topic: &str, wanted: &OffsetCommitRequestPartition) -> Result<(), ErrorCode> {
        let partitions = self.topics.get(topic).map_or(0, |topic| topic.partitions.len());
        let index = wanted.partition_index;
        if !usize::try_from(index).is_ok_and(|index| index < partitions) {
            return Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
        }
        let metadata = wanted.committed_metadata.as_ref().map(ToString::to_string).unwrap_or_default();
        let committed = (wanted.committed_offset, wanted.committed_leader_epoch, metadata);
        self.committed.insert((group.to_owned(), topic.to_owned(), index), committed);
        Ok(())
    }

    /// OffsetFetch, up to the version in which it asks for one group.
    pub fn fetch_offsets(
        &mut self,
        caller: &Caller,
        request: &OffsetFetchRequest,
        now: Instant,
    ) -> OffsetFetchResponse {
        let group = request.group_id.as_str();
        let right = self.check_right(caller, Operation::Describe, Resource::Group(group));
        if let Err(code) = right.and_then(|()| self.check_coordinator(group, caller.node, now)) {
            return OffsetFetchResponse::default().with_error_code(code.0);
        }
        let own = self.committed.keys().filter(|(owner, ..)| owner == group);
        let all = own.map(|(_, topic, index)| {
            OffsetFetchRequestTopic::default().with_name(topic_name(topic)).with_partition_indexes(vec![*index])
        });
        let wanted = request.topics.clone().unwrap_or_else(|| all.collect());
        let topics = wanted.into_iter().map(|topic| {
            let right = self.check_right(caller, Operation::Describe, Resource::Topic(topic.name.as_str()));
            let partitions = topic.partition_indexes.iter().map(|index| {
                let key = (group.to_owned(), topic.name.to_string(), *index);
                let known = self.committed.get(&key).filter(|_| right.is_ok()).cloned();
                let (offset, epoch, metadata) = known.unwrap_or((-1, -1, String::new()));
                OffsetFetchResponsePartition::default()
                    .with_partition_index(*index)
                    .with_committed_offset(offset)
                    .with_committed_leader_epoch(epoch)
                    .with_metadata(Some(StrBytes::from_string(metadata)))
                    .with_error_code(right.err().map_or(0, |code| code.0))
            });
            let partitions = partitions.collect();
            OffsetFetchResponseTopic::default().with_name(topic.name).with_partitions(partitions)
        });
        OffsetFetchResponse::default().with_topics(topics.collect())
    }
}
