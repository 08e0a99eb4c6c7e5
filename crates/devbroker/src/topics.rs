//! Metadata, CreateTopics, CreatePartitions and DeleteTopics: topics and their leaders.
//!
//! Called by the dispatcher.

use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    BrokerId, CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse,
    DeleteTopicsRequest, DeleteTopicsResponse, MetadataRequest, MetadataResponse,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::configs::source_of;
use super::node::NO_LEADER;
use super::produce::topic_name;
use super::rights::{Operation, Resource};
use super::settings::{TOPIC, Values};
use super::state::{Caller, State, Topic, is_topic_name};
use kafka_share::ErrorCode;

/// No authorized operations were asked for.
const NO_OPERATIONS: i32 = i32::MIN;
/// Stands for the broker's default.
const DEFAULT: i32 = -1;
/// Most partitions of one topic; Kafka has no such limit, but memory has.
const MOST_PARTITIONS: i32 = 10_000;

impl State {
    /// Metadata.
    pub fn metadata(&mut self, caller: &Caller, version: i16, request: &MetadataRequest) -> MetadataResponse {
        let brokers = self.living_nodes().map(|(id, address)| {
            MetadataResponseBroker::default()
                .with_node_id(BrokerId(id))
                .with_host(StrBytes::from_string(address.ip().to_string()))
                .with_port(address.port().into())
        });
        let brokers = brokers.collect();
        // Before version 1 an empty list meant all topics.
        let wanted = request.topics.as_ref().filter(|topics| version > 0 || !topics.is_empty());
        let topics: Vec<MetadataResponseTopic> = match wanted {
            None => {
                let topics = self.topics.iter();
                let shown = topics.filter(|(name, _)| self.may(caller, Operation::Describe, Resource::Topic(name)));
                shown.map(|(name, topic)| described(caller, name, topic)).collect()
            }
            Some(wanted) => {
                let creates = self.creates_topics(version, request);
                let described = wanted.iter().map(|topic| {
                    self.hidden(caller, topic, creates)
                        .unwrap_or_else(|| self.described(caller, version, request, topic))
                });
                described.collect()
            }
        };
        // Versions before 8 have no such field.
        let operations = |topic: MetadataResponseTopic| {
            let name =
                topic.name.clone().filter(|_| topic.error_code == 0 && request.include_topic_authorized_operations);
            let operations = name.map_or(NO_OPERATIONS, |name| self.operations(caller, name.as_str()));
            topic.with_topic_authorized_operations(operations)
        };
        let topics = topics.into_iter().map(operations).collect();
        MetadataResponse::default()
            .with_brokers(brokers)
            .with_cluster_id(Some(StrBytes::from_string(self.cluster_id.clone())))
            .with_controller_id(BrokerId(1))
            .with_topics(topics)
            .with_cluster_authorized_operations(NO_OPERATIONS)
    }

    /// The caller's rights to a topic: one bit for each of Kafka's operations on topics.
    fn operations(&self, caller: &Caller, name: &str) -> i32 {
        let all = [
            Operation::Read,
            Operation::Write,
            Operation::Create,
            Operation::Delete,
            Operation::Alter,
            Operation::Describe,
            Operation::DescribeConfigs,
            Operation::AlterConfigs,
        ];
        let allowed = all.into_iter().filter(|operation| self.may(caller, *operation, Resource::Topic(name)));
        allowed.fold(0, |bits, operation| bits | 1 << operation as i32)
    }

    /// The entry of a topic that the caller may not see, or would create without the right.
    fn hidden(&self, caller: &Caller, wanted: &MetadataRequestTopic, creates: bool) -> Option<MetadataResponseTopic> {
        let by_id = wanted.name.is_none();
        let name =
            wanted.name.as_ref().map_or_else(|| self.topic_name(wanted.topic_id), |name| Some(name.to_string()))?;
        let mut right = self.check_right(caller, Operation::Describe, Resource::Topic(&name));
        if creates && !by_id && !self.topics.contains_key(&name) {
            right = right.and_then(|()| self.check_topic_or_cluster(caller, Operation::Create, &name));
        }
        let hidden = MetadataResponseTopic::default().with_topic_authorized_operations(NO_OPERATIONS);
        let hidden = hidden.with_name(wanted.name.clone()).with_topic_id(wanted.topic_id);
        right.err().map(|code| hidden.with_error_code(code.0))
    }

    fn creates_topics(&self, version: i16, request: &MetadataRequest) -> bool {
        // Versions before 4 always create topics.
        (version < 4 || request.allow_auto_topic_creation) && self.settings.text("auto.create.topics.enable") == "true"
    }

    fn described(
        &mut self,
        caller: &Caller,
        version: i16,
        request: &MetadataRequest,
        wanted: &MetadataRequestTopic,
    ) -> MetadataResponseTopic {
        let missing = MetadataResponseTopic::default().with_topic_authorized_operations(NO_OPERATIONS);
        let Some(name) = &wanted.name else {
            let Some(name) = self.topic_name(wanted.topic_id) else {
                let missing = missing.with_topic_id(wanted.topic_id).with_name(None);
                return missing.with_error_code(ErrorCode::UNKNOWN_TOPIC_ID.0);
            };
            return self.topics.get(&name).map_or(missing, |topic| described(caller, &name, topic));
        };
        if let Some(topic) = self.topics.get(name.as_str()) {
            return described(caller, name.as_str(), topic);
        }
        let creates = self.creates_topics(version, request);
        let code = if !is_topic_name(name.as_str()) {
            ErrorCode::INVALID_TOPIC_EXCEPTION
        } else {
            ErrorCode::UNKNOWN_TOPIC_OR_PARTITION
        };
        if creates && code == ErrorCode::UNKNOWN_TOPIC_OR_PARTITION {
            let partitions = i32::try_from(self.settings.number("num.partitions")).unwrap_or(1);
            let replicas = usize::try_from(self.settings.number("default.replication.factor")).unwrap_or(1);
            self.create_topic(name.as_str(), partitions, replicas, Values::default());
        }
        missing.with_name(Some(name.clone())).with_error_code(code.0)
    }

    /// CreateTopics.
    pub fn create_topics(
        &mut self,
        caller: &Caller,
        version: i16,
        request: &CreateTopicsRequest,
    ) -> CreateTopicsResponse {
        let results = request.topics.iter().map(|topic| {
            let name = topic.name.as_str();
            let right = self.check_topic_or_cluster(caller, Operation::Create, name);
            let right = right.map_err(|code| (code, "Authorization failed.".to_owned()));
            let created = right.and_then(|()| self.check_new_topic(caller, topic));
            let created = created.map(|(partitions, replicas, values)| {
                if !request.validate_only {
                    self.create_topic(name, partitions, usize::from(replicas), values.clone());
                }
                (partitions, replicas, values)
            });
            let result = CreatableTopicResult::default().with_name(topic.name.clone());
            match created {
                Ok((partitions, replicas, values)) => {
                    let id = self.topics.get(name).map_or(Uuid::nil(), |topic| topic.id);
                    let configs = (version >= 5).then(|| self.created_configs(&values));
                    result
                        .with_topic_id(id)
                        .with_num_partitions(partitions)
                        .with_replication_factor(i16::from(replicas))
                        .with_configs(configs)
                        .with_error_message(None)
                }
                Err((code, message)) => result
                    .with_error_code(code.0)
                    .with_error_message(Some(StrBytes::from_string(message)))
                    .with_num_partitions(-1)
                    .with_replication_factor(-1)
                    .with_configs(None),
            }
        });
        CreateTopicsResponse::default().with_topics(results.collect())
    }

    fn created_configs(&self, values: &Values) -> Vec<CreatableTopicConfigs> {
        let known = TOPIC.iter().filter(|known| self.settings.knows(known.name));
        let configs = known.map(|known| {
            CreatableTopicConfigs::default()
                .with_name(StrBytes::from_static_str(known.name))
                .with_value(Some(StrBytes::from_string(values.get(known, &self.settings).to_owned())))
                .with_config_source(source_of(known, values, &self.settings, super::configs::TOPIC_SOURCE))
        });
        configs.collect()
    }

    /// Checks a new topic. Returns its number of partitions and replicas, and its settings.
    fn check_new_topic(
        &self,
        caller: &Caller,
        topic: &CreatableTopic,
    ) -> Result<(i32, u8, Values), (ErrorCode, String)> {
        let name = topic.name.as_str();
        if let Some(code) = caller.refused(name, None, false) {
            return Err((code, "refused by a fault".to_owned()));
        }
        if !is_topic_name(name) {
            return Err((ErrorCode::INVALID_TOPIC_EXCEPTION, format!("{name:?} is no name for a topic")));
        }
        if self.topics.contains_key(name) {
            return Err((ErrorCode::TOPIC_ALREADY_EXISTS, format!("Topic '{name}' already exists.")));
        }
        // Kafka's metric names do not distinguish `.` and `_`.
        let plain = |name: &str| name.replace('.', "_");
        if let Some(twin) = self.topics.keys().find(|other| plain(other) == plain(name)) {
            let message = format!("Topic '{name}' collides with existing topic: {twin}");
            return Err((ErrorCode::INVALID_TOPIC_EXCEPTION, message));
        }
        let given = i32::try_from(topic.assignments.len()).unwrap_or(i32::MAX);
        let partitions = match (given, topic.num_partitions) {
            (0, DEFAULT) => i32::try_from(self.settings.number("num.partitions")).unwrap_or(1),
            (0, number) => number,
            (given, _) => given,
        };
        let replicas = match i32::from(topic.replication_factor) {
            DEFAULT => i32::try_from(self.settings.number("default.replication.factor")).unwrap_or(1),
            number => number,
        };
        if replicas < 1 {
            let message = "Replication factor must be larger than 0.".to_owned();
            return Err((ErrorCode::INVALID_REPLICATION_FACTOR, message));
        }
        if !(1..=MOST_PARTITIONS).contains(&partitions) {
            let message = "Number of partitions was set to an invalid non-positive value.".to_owned();
            return Err((ErrorCode::INVALID_PARTITIONS, message));
        }
        let living = self.living_nodes().count();
        let replicas = u8::try_from(replicas).ok().filter(|replicas| usize::from(*replicas) <= living);
        let Some(replicas) = replicas else {
            let message = format!("Unable to replicate the partition: only {living} brokers are available");
            return Err((ErrorCode::INVALID_REPLICATION_FACTOR, message));
        };
        let mut values = Values::default();
        for config in &topic.configs {
            let mut table = TOPIC.iter().filter(|known| self.settings.knows(known.name));
            let known = table.find(|known| known.name == config.name.as_str());
            let value = config.value.as_ref().map(|value| value.as_str().to_owned());
            match (known, value) {
                (Some(known), Some(value)) if known.takes(&value, &self.settings) => values.set(known, Some(value)),
                (_, value) => {
                    let message = format!("Invalid value {value:?} for configuration {}", config.name.as_str());
                    return Err((ErrorCode::INVALID_CONFIG, message));
                }
            }
        }
        Ok((partitions, replicas, values))
    }

    /// CreatePartitions.
    pub fn create_partitions(
        &mut self,
        caller: &Caller,
        request: &CreatePartitionsRequest,
    ) -> CreatePartitionsResponse {
        let results = request.topics.iter().map(|topic| {
            let added = self.check_more_partitions(caller, topic).map(|(places, replicas)| {
                let added: Vec<_> = places.map(|place| self.new_partition(place, replicas)).collect();
                if let Some(topic) = self.topics.get_mut(topic.name.as_str()).filter(|_| !request.validate_only) {
                    topic.partitions.extend(added);
                }
            });
            let result = CreatePartitionsTopicResult::default().with_name(topic.name.clone()).with_error_message(None);
            result.with_error_code(added.err().map_or(0, |code| code.0))
        });
        CreatePartitionsResponse::default().with_results(results.collect())
    }

    /// Checks the partitions to be added. Returns their places and number of replicas.
    fn check_more_partitions(
        &self,
        caller: &Caller,
        wanted: &CreatePartitionsTopic,
    ) -> Result<(std::ops::Range<usize>, usize), ErrorCode> {
        let name = wanted.name.as_str();
        self.check_right(caller, Operation::Alter, Resource::Topic(name))?;
        let topic = self.topics.get(name).ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)?;
        let (now, most) = (topic.partitions.len(), usize::try_from(MOST_PARTITIONS).unwrap_or(usize::MAX));
        let count = usize::try_from(wanted.count).ok().filter(|count| (now + 1..=most).contains(count));
        let count = count.ok_or(ErrorCode::INVALID_PARTITIONS)?;
        let first = self.topics.keys().position(|known| known == name).unwrap_or(0);
        Ok((first + now..first + count, topic.partitions.first().map_or(1, |partition| partition.replicas.len())))
    }

    /// DeleteTopics.
    pub fn delete_topics(
        &mut self,
        caller: &Caller,
        version: i16,
        request: &DeleteTopicsRequest,
    ) -> DeleteTopicsResponse {
        let names = request.topic_names.iter().map(|name| (Some(name.as_str().to_owned()), Uuid::nil()));
        let states = request.topics.iter().map(|topic| {
            let name = topic.name.as_ref().map(|name| name.as_str().to_owned());
            (name, topic.topic_id)
        });
        let wanted: Vec<_> = if version < 6 { names.collect() } else { states.collect() };
        let responses = wanted.into_iter().map(|(name, id)| {
            let by_id = name.is_none();
            let name = name.or_else(|| self.topic_name(id));
            let right = self.check_topic_or_cluster(caller, Operation::Delete, name.as_deref().unwrap_or_default());
            if let Err(code) = right {
                let refused = DeletableTopicResult::default().with_name(name.as_deref().map(topic_name));
                return refused.with_topic_id(id).with_error_code(code.0).with_error_message(None);
            }
            let gone = name.as_ref().and_then(|name| self.topics.remove(name));
            let missing = if by_id { ErrorCode::UNKNOWN_TOPIC_ID } else { ErrorCode::UNKNOWN_TOPIC_OR_PARTITION };
            DeletableTopicResult::default()
                .with_name(name.as_deref().map(topic_name))
                .with_topic_id(gone.as_ref().map_or(id, |topic| topic.id))
                .with_error_code(if gone.is_some() { 0 } else { missing.0 })
                .with_error_message(None)
        });
        DeleteTopicsResponse::default().with_responses(responses.collect())
    }
}

fn described(caller: &Caller, name: &str, topic: &Topic) -> MetadataResponseTopic {
    let missing = MetadataResponseTopic::default().with_name(Some(topic_name(name))).with_topic_id(topic.id);
    let missing = missing.with_topic_authorized_operations(NO_OPERATIONS);
    if let Some(code) = caller.refused(name, None, false) {
        return missing.with_error_code(code.0);
    }
    let ids = |nodes: &[i32]| nodes.iter().copied().map(BrokerId).collect();
    let partitions = (0..).zip(&topic.partitions).map(|(index, partition)| {
        let leaderless = (partition.leader == NO_LEADER).then_some(ErrorCode::LEADER_NOT_AVAILABLE);
        let code = caller.refused(name, Some(index), false).or(leaderless);
        MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_error_code(code.map_or(0, |code| code.0))
            .with_leader_id(BrokerId(if code.is_some() { NO_LEADER } else { partition.leader }))
            .with_leader_epoch(partition.epoch)
            .with_replica_nodes(ids(&partition.replicas))
            .with_isr_nodes(ids(&partition.in_sync))
    });
    missing.with_partitions(partitions.collect())
}
