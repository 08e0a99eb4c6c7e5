//! Administration of topics and groups on either broker, and a reader of records with their times and headers.

use std::collections::BTreeMap;

use bytes::Bytes;
use kafka_protocol::{
    messages::{
        AlterShareGroupOffsetsRequest, BrokerId, CreatePartitionsRequest, CreateTopicsRequest, DeleteRecordsRequest,
        DeleteTopicsRequest, DescribeConfigsRequest, FetchRequest, GroupId, IncrementalAlterConfigsRequest,
        ListOffsetsRequest, MetadataRequest, TopicName,
        alter_share_group_offsets_request::{
            AlterShareGroupOffsetsRequestPartition, AlterShareGroupOffsetsRequestTopic,
        },
        create_partitions_request::CreatePartitionsTopic,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
        delete_topics_request::DeleteTopicState,
        describe_configs_request::DescribeConfigsResource,
        fetch_request::{FetchPartition, FetchTopic},
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        metadata_request::MetadataRequestTopic,
    },
    protocol::StrBytes,
    records::{Record, RecordBatchDecoder},
};
use kafka_share::{ClientOptions, Cluster};

use super::{SOON, eventually, wire::Wire};

/// Kafka's types of resources with settings.
#[derive(Clone, Copy)]
pub enum Of {
    Topic = 2,
    Group = 32,
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn topic_name(name: &str) -> TopicName {
    TopicName(text(name))
}

/// Creates a topic and waits until its leaders know it.
pub fn create_topic(broker: &str, name: &str, partitions: i32, configs: &[(&str, &str)]) {
    let configs = configs
        .iter()
        .map(|(key, value)| CreatableTopicConfig::default().with_name(text(key)).with_value(Some(text(value))));
    let topic = CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(partitions)
        .with_replication_factor(-1)
        .with_configs(configs.collect());
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
    let answer = Wire::connect(broker).call(7, &request);
    assert_eq!(answer.topics[0].error_code, 0, "{:?}", answer.topics[0].error_message);
    eventually(SOON, "the topic's leaders know it", || {
        (0..partitions).all(|index| end_offset(broker, name, index).is_ok())
    });
}

/// Gives a topic this many partitions in all.
pub fn grow_topic(broker: &str, name: &str, partitions: i32) {
    let topic = CreatePartitionsTopic::default().with_name(topic_name(name)).with_count(partitions);
    let topics = vec![topic.with_assignments(None)];
    let request = CreatePartitionsRequest::default().with_topics(topics).with_timeout_ms(10_000);
    let answer = Wire::connect(broker).call(3, &request);
    assert_eq!(answer.results[0].error_code, 0, "{:?}", answer.results[0].error_message);
}

/// Deletes a topic.
pub fn delete_topic(broker: &str, name: &str) {
    let topic = DeleteTopicState::default().with_name(Some(topic_name(name)));
    let request = DeleteTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
    assert_eq!(Wire::connect(broker).call(6, &request).responses[0].error_code, 0, "{name}");
}

/// True if the topic exists.
pub fn has_topic(broker: &str, name: &str) -> bool {
    let topic = MetadataRequestTopic::default().with_name(Some(topic_name(name)));
    let request = MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(false);
    Wire::connect(broker).call(12, &request).topics[0].error_code == 0
}

/// The topic's number of partitions.
pub fn partitions(broker: &str, topic: &str) -> usize {
    let topic = MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
    let request = MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(false);
    let answer = Wire::connect(broker).call(12, &request);
    assert_eq!(answer.topics[0].error_code, 0);
    answer.topics[0].partitions.len()
}

/// All settings of a topic or a group.
pub fn configs(broker: &str, of: Of, name: &str) -> BTreeMap<String, String> {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(of as i8)
        .with_resource_name(text(name))
        .with_configuration_keys(None);
    let answer = Wire::connect(broker).call(4, &DescribeConfigsRequest::default().with_resources(vec![resource]));
    let result = answer.results.into_iter().next().expect("the resource asked for");
    assert_eq!(result.error_code, 0, "{name}: {:?}", result.error_message);
    let values = result
        .configs
        .into_iter()
        .map(|config| (config.name.to_string(), config.value.unwrap_or_default().to_string()));
    values.collect()
}

/// Changes a setting of a topic or a group and waits until the broker returns the new value.
pub fn set(broker: &str, of: Of, name: &str, key: &str, value: &str) {
    let config = AlterableConfig::default().with_name(text(key)).with_value(Some(text(value)));
    let resource = AlterConfigsResource::default()
        .with_resource_type(of as i8)
        .with_resource_name(text(name))
        .with_configs(vec![config]);
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    assert_eq!(Wire::connect(broker).call(1, &request).responses[0].error_code, 0, "{key}");
    eventually(SOON, "the broker has the new setting", || {
        configs(broker, of, name).get(key).is_some_and(|is| is == value)
    });
}

/// The offset after the last record that a client can read, or the broker's error code.
pub fn end_offset(broker: &str, topic: &str, partition: i32) -> Result<i64, i16> {
    list_offset(broker, (topic, partition), CLIENT, LATEST)
}

/// Replica ids in ListOffsets: those of a client, and of a debugging consumer, for which records count before they are
/// replicated.
pub const CLIENT: i32 = -1;
pub const DEBUGGING_CONSUMER: i32 = -2;
/// Timestamps in ListOffsets: of the end of the log, and of the record with the latest time.
pub const LATEST: i64 = -1;
pub const MAX_TIME: i64 = -3;

/// Asks for the offset of a timestamp; -1: no such record. `Err`: the broker's error code.
pub fn list_offset(broker: &str, (topic, partition): (&str, i32), replica: i32, timestamp: i64) -> Result<i64, i16> {
    let wanted = ListOffsetsPartition::default()
        .with_partition_index(partition)
        .with_current_leader_epoch(-1)
        .with_timestamp(timestamp);
    let topic = ListOffsetsTopic::default().with_name(topic_name(topic)).with_partitions(vec![wanted]);
    let request = ListOffsetsRequest::default().with_replica_id(BrokerId(replica)).with_topics(vec![topic]);
    let answer = Wire::connect(broker).call(7, &request);
    let found = &answer.topics[0].partitions[0];
    if found.error_code == 0 { Ok(found.offset) } else { Err(found.error_code) }
}

/// Deletes the records of a partition before this offset.
pub fn delete_records(broker: &str, topic: &str, partition: i32, before: i64) {
    let wanted = DeleteRecordsPartition::default().with_partition_index(partition).with_offset(before);
    let topic = DeleteRecordsTopic::default().with_name(topic_name(topic)).with_partitions(vec![wanted]);
    let request = DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
    let answer = Wire::connect(broker).call(2, &request);
    let done = &answer.topics[0].partitions[0];
    assert_eq!((done.error_code, done.low_watermark), (0, before));
}

/// Records of partition 0 that the share group has not finished (KIP-1226); `None` if the group has no state.
pub fn share_lag(broker: &str, group: &str, topic: &str) -> Option<i64> {
    let cluster = Cluster::new(ClientOptions::new(vec![broker.parse().expect("host:port")], "lag"));
    let lags = kafka_share::admin::share_group_lags(&cluster, group, topic).expect("the broker tells");
    lags.get(&0).copied()
}

/// Moves a share group without members to the end of the topic's only partition.
pub fn skip_to_end(broker: &str, group: &str, topic: &str) {
    let end = end_offset(broker, topic, 0).expect("the topic is there");
    let partition = AlterShareGroupOffsetsRequestPartition::default().with_partition_index(0).with_start_offset(end);
    let topic = AlterShareGroupOffsetsRequestTopic::default()
        .with_topic_name(topic_name(topic))
        .with_partitions(vec![partition]);
    let request = AlterShareGroupOffsetsRequest::default().with_group_id(GroupId(text(group))).with_topics(vec![topic]);
    let answer = Wire::connect(broker).call(0, &request);
    assert_eq!(answer.error_code, 0, "{:?}", answer.error_message);
    assert_eq!(answer.responses[0].partitions[0].error_code, 0);
}

/// All records of a topic with one partition, with times and headers.
pub fn records(broker: &str, topic: &str) -> Vec<Record> {
    let mut wire = Wire::connect(broker);
    let end = end_offset(broker, topic, 0).expect("the topic is there");
    let mut found: Vec<Record> = Vec::new();
    let mut next = 0;
    while next < end {
        let partition = FetchPartition::default()
            .with_current_leader_epoch(-1)
            .with_fetch_offset(next)
            .with_partition_max_bytes(8 << 20);
        let wanted = FetchTopic::default().with_topic(topic_name(topic)).with_partitions(vec![partition]);
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_bytes(8 << 20)
            .with_session_epoch(-1)
            .with_topics(vec![wanted]);
        let answer = wire.call(11, &request);
        let partition = &answer.responses[0].partitions[0];
        assert_eq!(partition.error_code, 0);
        let mut bytes = whole_batches(partition.records.clone().expect("records before the end"));
        let sets = RecordBatchDecoder::decode_all(&mut bytes).expect("readable batches");
        let fresh = sets.into_iter().flat_map(|set| set.records).filter(|record| record.offset >= next);
        found.extend(fresh.collect::<Vec<_>>());
        next = found.last().expect("records before the end").offset + 1;
    }
    found
}

/// Removes a last batch that the size limit has cut.
fn whole_batches(bytes: Bytes) -> Bytes {
    let mut whole = 0;
    while let Some(field) = bytes.get(whole + 8..whole + 12) {
        let length = i32::from_be_bytes(field.try_into().expect("four bytes"));
        let end = whole + 12 + usize::try_from(length).expect("not negative");
        if end > bytes.len() {
            break;
        }
        whole = end;
    }
    bytes.slice(..whole)
}
