//! Requests about the cluster itself: its support for share groups, topics, settings of topics and groups, offsets.
//!
//! Each function sends one request (a dead idle connection is replaced once). The caller decides what the response
//! means for the program and repeats. Called by `lastcall::queue` and by the gateway's sweep.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::BytesMut;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_share_group_offsets_request::{
    DescribeShareGroupOffsetsRequestGroup, DescribeShareGroupOffsetsRequestTopic,
};
use kafka_protocol::messages::describe_share_group_offsets_response::DescribeShareGroupOffsetsResponsePartition;
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    CreateTopicsRequest, DescribeConfigsRequest, DescribeConfigsResponse, DescribeShareGroupOffsetsRequest,
    DescribeShareGroupOffsetsResponse, GroupId, IncrementalAlterConfigsRequest, MetadataRequest,
};
use kafka_protocol::protocol::{Encodable, StrBytes};

use super::cluster::{Cluster, Topic, str_bytes, topic_name};
use super::connection::{ApiVersions, Connection};
use super::error::{ErrorCode, KafkaError, Result, Retry};
use super::offsets::{self, Position};
use super::pool::Pool;
use super::share_lag;

/// Resource types of the configuration requests.
const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const GROUP: i8 = 32;

const OFFSETS_REQUEST: &str = "DescribeShareGroupOffsets";

/// Requirement on the cluster, phrased for its operator.
const NEEDED: &str = "lastcall needs share groups (KIP-932): Apache Kafka 4.2 or later";

/// Checks that the cluster speaks ShareGroupHeartbeat v1, ShareFetch v2 and ShareAcknowledge v2, with the feature
/// `share.version` switched on: Kafka 4.1 lists the requests even with the feature off.
///
/// # Errors
/// `Unsupported` names what is missing; or the error of the request.
pub fn check_share_support(cluster: &Cluster) -> Result<()> {
    let timeout = cluster.options().request_timeout;
    let (broker, versions) = cluster.ask_with(|connection| {
        let versions = match connection.api_versions(timeout) {
            Err(error) if error.code() == Some(ErrorCode::UNSUPPORTED_VERSION) => None,
            versions => Some(versions?),
        };
        Ok((connection.broker().clone(), versions))
    })?;
    let wanted = [
        (ApiVersions::SHARE_GROUP_HEARTBEAT, 1, "ShareGroupHeartbeat 1"),
        (ApiVersions::SHARE_FETCH, 2, "ShareFetch 2"),
        (ApiVersions::SHARE_ACKNOWLEDGE, 2, "ShareAcknowledge 2"),
    ];
    let missing: Vec<&str> = wanted
        .into_iter()
        .filter(|(key, version, _)| !versions.as_ref().is_some_and(|versions| versions.supports(*key, *version)))
        .map(|(_, _, name)| name)
        .collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(KafkaError::Unsupported(format!("{NEEDED}; the broker {broker} does not know {missing}")));
    }
    if versions.and_then(|versions| versions.feature_level("share.version")).unwrap_or(0) < 1 {
        return Err(KafkaError::Unsupported(format!(
            "{NEEDED} with the feature switched on; at {broker} it is off: \
             run kafka-features.sh --bootstrap-server {broker} upgrade --feature share.version=1"
        )));
    }
    Ok(())
}

/// Settings of a topic to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Number of replicas; `None` means the broker's default.
    pub replication_factor: Option<i16>,
    /// Settings that differ from the broker's own, or must not follow them.
    pub configs: Vec<(&'static str, String)>,
}

/// Result of [`ensure_topic`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnsuredTopic {
    /// The topic. Partitions of it may have no leader.
    pub topic: Topic,
    /// Whether this call created it. An existing topic is left unchanged.
    pub created: bool,
}

/// Creates the topic unless it exists (CreateTopics v7, KIP-4). After creating it, waits until the brokers know its
/// leaders.
///
/// # Errors
/// The error of a request; code 38 with fewer brokers than replicas; 29 without the right Describe or Create.
pub fn ensure_topic(cluster: &Cluster, spec: &TopicSpec) -> Result<EnsuredTopic> {
    match cluster.refresh(&[&spec.name]) {
        Err(error) if error.code() == Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION) => {
            let created = create_topic(cluster, spec)?;
            Ok(EnsuredTopic { topic: await_leaders(cluster, &spec.name)?, created })
        }
        known => {
            let topic = known.and_then(|()| cluster.topic(&spec.name))?;
            // Without any leader the topic was just created by another program. A single leader may be missing for
            // long.
            let is_led = topic.partitions.iter().any(|partition| partition.leader >= 0);
            let topic = if is_led { topic } else { await_leaders(cluster, &spec.name)? };
            Ok(EnsuredTopic { topic, created: false })
        }
    }
}

/// Returns `false` if another program created the topic first.
fn create_topic(cluster: &Cluster, spec: &TopicSpec) -> Result<bool> {
    let replicas = match spec.replication_factor {
        Some(replicas) => replicas,
        None => match ask_create(cluster, spec, -1, true)? {
            Some(planned) => planned.replication_factor,
            None => return Ok(false),
        },
    };
    Ok(ask_create(cluster, spec, replicas, false)?.is_some())
}

/// Creates the topic; with `validate_only` returns only what would be created. `None`: the topic exists.
fn ask_create(
    cluster: &Cluster,
    spec: &TopicSpec,
    replicas: i16,
    validate_only: bool,
) -> Result<Option<CreatableTopicResult>> {
    // With acks=all a write is safe on two replicas, if the topic has two. Without the right DescribeConfigs the broker
    // returns -1 for the number of replicas; its own default applies then.
    let in_sync = (replicas > 0).then(|| ("min.insync.replicas", replicas.min(2).to_string()));
    let configs = spec.configs.iter().chain(&in_sync).map(|(name, value)| {
        CreatableTopicConfig::default().with_name(StrBytes::from_static_str(name)).with_value(Some(str_bytes(value)))
    });
    let topic = CreatableTopic::default()
        .with_name(topic_name(&spec.name))
        .with_num_partitions(spec.partitions)
        .with_replication_factor(replicas)
        .with_configs(configs.collect());
    let request = CreateTopicsRequest::default()
        .with_topics(vec![topic])
        .with_timeout_ms(broker_wait(cluster))
        .with_validate_only(validate_only);
    let response = cluster.ask(7, &request)?;
    let result = response.topics.into_iter().next();
    let result =
        result.ok_or_else(|| KafkaError::broker("CreateTopics", ErrorCode::UNKNOWN_SERVER_ERROR, Some("no answer")))?;
    if ErrorCode(result.error_code) == ErrorCode::TOPIC_ALREADY_EXISTS {
        return Ok(None);
    }
    let message = result.error_message.as_ref().map_or(spec.name.as_str(), |message| message.as_str());
    ErrorCode(result.error_code).check("CreateTopics", Some(message))?;
    Ok(Some(result))
}

/// How long the broker may work on a request, in milliseconds: less than this client waits for the response.
fn broker_wait(cluster: &Cluster) -> i32 {
    i32::try_from((cluster.options().request_timeout * 4 / 5).as_millis()).unwrap_or(i32::MAX)
}

/// Waits for the leaders of a new topic: brokers learn of them some milliseconds after its creation. A leader that is
/// missing at the deadline is left out.
fn await_leaders(cluster: &Cluster, name: &str) -> Result<Topic> {
    let deadline = std::time::Instant::now() + cluster.options().request_timeout;
    loop {
        let known = cluster.refresh(&[name]).and_then(|()| cluster.topic(name));
        let last = std::time::Instant::now() >= deadline;
        match known {
            Ok(topic) if last || topic.partitions.iter().all(|partition| partition.leader >= 0) => return Ok(topic),
            Err(error) if last || error.retry() != Retry::RefreshMetadata => return Err(error),
            _ => {}
        }
        cluster.options().interrupter.sleep(Duration::from_millis(20))?;
    }
}

/// A right to a topic. Its number is that of Kafka's `AclOperation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicRight {
    /// Fetch and ShareFetch.
    Read = 3,
    /// Produce.
    Write = 4,
}

impl TopicRight {
    /// These missing rights in words.
    pub fn missing(missing: &[(String, Self)]) -> String {
        let each = missing.iter().map(|(name, right)| {
            let name = name.escape_debug();
            format!("topic \"{name}\": the right {right:?} on the topic is missing")
        });
        each.collect::<Vec<_>>().join("; ")
    }
}

/// Returns the rights in `wanted` that this client lacks (Metadata v12, KIP-430). Topics that do not exist, or whose
/// rights the broker does not report, are left out.
///
/// # Errors
/// The error of the request.
pub fn missing_rights(cluster: &Cluster, wanted: &[(String, TopicRight)]) -> Result<Vec<(String, TopicRight)>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let topics = wanted.iter().map(|(name, _)| MetadataRequestTopic::default().with_name(Some(topic_name(name))));
    let request = MetadataRequest::default()
        .with_topics(Some(topics.collect()))
        .with_allow_auto_topic_creation(false)
        .with_include_topic_authorized_operations(true);
    let response = cluster.ask(12, &request)?;
    let lacks = |name: &str, right: TopicRight| {
        let told = response.topics.iter().find(|topic| topic.name.as_ref().is_some_and(|told| told.as_str() == name));
        told.is_some_and(|topic| match ErrorCode(topic.error_code) {
            // The broker sends i32::MIN when it does not report the rights.
            ErrorCode::NONE => {
                topic.topic_authorized_operations != i32::MIN
                    && topic.topic_authorized_operations & (1 << right as i32) == 0
            }
            // Each right includes Describe.
            code => code == ErrorCode::TOPIC_AUTHORIZATION_FAILED,
        })
    };
    Ok(wanted.iter().filter(|(name, right)| lacks(name, *right)).cloned().collect())
}

/// One setting as the broker reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The value in force.
    pub value: String,
    /// Whether the value is Kafka's own default: neither the resource nor the brokers' configuration sets another.
    pub is_default: bool,
}

/// Returns the settings of a topic, with the defaults that apply (DescribeConfigs v4, KIP-133). Settings without a
/// value are left out.
///
/// # Errors
/// Code 29 without the right DescribeConfigs on the topic; or the error of the request.
pub fn topic_configs(cluster: &Cluster, topic: &str) -> Result<BTreeMap<String, String>> {
    let found = described(cluster.ask(4, &describe(TOPIC, topic))?)?;
    Ok(found.into_iter().map(|(key, setting)| (key, setting.value)).collect())
}

/// Returns the settings of a broker, by its node id.
///
/// # Errors
/// Code 31 without the right DescribeConfigs on the cluster; or the error of the request.
pub fn broker_settings(cluster: &Cluster, node: i32) -> Result<BTreeMap<String, Setting>> {
    // Only the broker itself returns its settings.
    let timeout = cluster.options().request_timeout;
    described(cluster.connect(node)?.call(4, &describe(BROKER, &node.to_string()), timeout)?)
}

/// Returns the settings of a group, with the defaults that apply; the group need not exist (KIP-848).
///
/// # Errors
/// Code 30 without the right DescribeConfigs on the group; or the error of the request.
pub fn group_settings(cluster: &Cluster, group: &str) -> Result<BTreeMap<String, Setting>> {
    described(cluster.ask(4, &describe(GROUP, group))?)
}

/// As [`group_settings`], asked of the broker with this node id.
///
/// # Errors
/// As [`group_settings`]; `timeout` limits the wait for the response alone.
pub fn group_settings_at(
    cluster: &Cluster,
    node: i32,
    group: &str,
    timeout: Duration,
) -> Result<BTreeMap<String, Setting>> {
    described(cluster.connect(node)?.call(4, &describe(GROUP, group), timeout)?)
}

fn describe(kind: i8, name: &str) -> DescribeConfigsRequest {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(kind)
        .with_resource_name(str_bytes(name))
        .with_configuration_keys(None);
    DescribeConfigsRequest::default().with_resources(vec![resource])
}

fn described(response: DescribeConfigsResponse) -> Result<BTreeMap<String, Setting>> {
    /// Kafka's `ConfigSource.DEFAULT_CONFIG`
    const DEFAULT: i8 = 5;
    let mut found = BTreeMap::new();
    for result in response.results {
        let message = result.error_message.as_ref().map(|message| message.as_str());
        ErrorCode(result.error_code).check("DescribeConfigs", message)?;
        let settings = result.configs.into_iter().filter_map(|config| {
            let setting = Setting { value: config.value?.to_string(), is_default: config.config_source == DEFAULT };
            Some((config.name.to_string(), setting))
        });
        found.extend(settings);
    }
    Ok(found)
}

/// Sets one setting of a topic (IncrementalAlterConfigs v1, KIP-339).
pub fn set_topic_config(cluster: &Cluster, topic: &str, key: &str, value: &str) -> Result<()> {
    set_config(cluster, TOPIC, topic, key, value)
}

/// Sets one setting of a group, which need not exist. Sends one key per request: an unknown key (error 40) makes the
/// broker refuse the whole request.
pub fn set_group_config(cluster: &Cluster, group: &str, key: &str, value: &str) -> Result<()> {
    set_config(cluster, GROUP, group, key, value)
}

fn set_config(cluster: &Cluster, kind: i8, name: &str, key: &str, value: &str) -> Result<()> {
    // Operation 0: set.
    let config = AlterableConfig::default()
        .with_name(str_bytes(key))
        .with_config_operation(0)
        .with_value(Some(str_bytes(value)));
    let resource = AlterConfigsResource::default()
        .with_resource_type(kind)
        .with_resource_name(str_bytes(name))
        .with_configs(vec![config]);
    let response = cluster.ask(1, &IncrementalAlterConfigsRequest::default().with_resources(vec![resource]))?;
    for result in response.responses {
        let message = result.error_message.as_ref().map(|message| message.as_str());
        ErrorCode(result.error_code).check("IncrementalAlterConfigs", message)?;
    }
    Ok(())
}

/// Returns the offset before which a share group has finished every record, per partition (DescribeShareGroupOffsets
/// v0, KIP-932). Partitions that the group has not begun or that have no leader are left out; a group that does not
/// exist has none.
pub fn share_group_offsets(cluster: &Cluster, group: &str, topic: &str) -> Result<BTreeMap<i32, i64>> {
    let request = describe_offsets(cluster, group, topic)?;
    let timeout = cluster.options().request_timeout;
    let response = ask_coordinator(cluster, group, |connection| connection.call(0, &request, timeout))?;
    let started = partitions_of(response)?.into_iter().filter(|partition| partition.start_offset >= 0);
    Ok(started.map(|partition| (partition.partition_index, partition.start_offset)).collect())
}

/// Returns how many records of each partition a share group has not finished (DescribeShareGroupOffsets v1, KIP-1226).
/// Leaves out the same partitions as [`share_group_offsets`].
pub fn share_group_lags(cluster: &Cluster, group: &str, topic: &str) -> Result<BTreeMap<i32, i64>> {
    let request = describe_offsets(cluster, group, topic)?;
    let timeout = cluster.options().request_timeout;
    let (response, lags) = ask_coordinator(cluster, group, |connection| {
        let mut body = BytesMut::new();
        // The request is the same in both versions.
        request
            .encode(&mut body, 0)
            .map_err(|error| KafkaError::Unencodable { request: OFFSETS_REQUEST, detail: error.to_string() })?;
        let (key, version) = (share_lag::DESCRIBE_SHARE_GROUP_OFFSETS, share_lag::WIRE_VERSION);
        let body = connection.call_body(key, version, &body, timeout)?;
        share_lag::decode(&body).map_err(|detail| connection.malformed(detail))
    })?;
    let known = partitions_of(response)?.into_iter().zip(lags).filter(|(_, lag)| *lag >= 0);
    Ok(known.map(|(partition, lag)| (partition.partition_index, lag)).collect())
}

fn describe_offsets(cluster: &Cluster, group: &str, topic: &str) -> Result<DescribeShareGroupOffsetsRequest> {
    // The coordinator asks the leaders; a partition without a leader would get error 5.
    let known = cluster.topic(topic)?.partitions;
    let led = known.iter().filter(|partition| partition.leader >= 0).map(|partition| partition.index);
    let partitions = led.collect();
    let topics =
        DescribeShareGroupOffsetsRequestTopic::default().with_topic_name(topic_name(topic)).with_partitions(partitions);
    let asked = DescribeShareGroupOffsetsRequestGroup::default()
        .with_group_id(GroupId(str_bytes(group)))
        .with_topics(Some(vec![topics]));
    Ok(DescribeShareGroupOffsetsRequest::default().with_groups(vec![asked]))
}

/// Asks the coordinator of a group once, and forgets a wrong coordinator.
fn ask_coordinator<T>(cluster: &Cluster, group: &str, ask: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
    let connection = cluster.group_coordinator(group).and_then(|node| cluster.connect(node));
    let answer = connection.and_then(|mut connection| ask(&mut connection));
    if answer.as_ref().is_err_and(|error| matches!(error.retry(), Retry::Reconnect | Retry::RefreshMetadata)) {
        cluster.forget_coordinator(group);
    }
    answer
}

/// Returns all partitions of a response in its order; none for a group that does not exist.
fn partitions_of(
    response: DescribeShareGroupOffsetsResponse,
) -> Result<Vec<DescribeShareGroupOffsetsResponsePartition>> {
    let mut partitions = Vec::new();
    for group in response.groups {
        let message = group.error_message.as_ref().map(|message| message.as_str());
        match ErrorCode(group.error_code) {
            ErrorCode::GROUP_ID_NOT_FOUND => continue,
            code => code.check(OFFSETS_REQUEST, message)?,
        }
        for partition in group.topics.into_iter().flat_map(|topic| topic.partitions) {
            let message = partition.error_message.as_ref().map(|message| message.as_str());
            ErrorCode(partition.error_code).check(OFFSETS_REQUEST, message)?;
            partitions.push(partition);
        }
    }
    Ok(partitions)
}

/// Returns the offset after the last record of each partition that has a leader (ListOffsets v7).
///
/// # Errors
/// The error of a leader; code 5 when no partition has a leader.
pub fn end_offsets(cluster: &Cluster, topic: &str) -> Result<BTreeMap<i32, i64>> {
    list(cluster, topic, Position::End)
}

/// Returns the offset of the first record kept in each partition that has a leader (ListOffsets v7).
///
/// # Errors
/// As [`end_offsets`].
pub fn start_offsets(cluster: &Cluster, topic: &str) -> Result<BTreeMap<i32, i64>> {
    list(cluster, topic, Position::Start)
}

fn list(cluster: &Cluster, topic: &str, position: Position) -> Result<BTreeMap<i32, i64>> {
    let known = cluster.topic(topic)?.partitions;
    let led = known.iter().filter(|partition| partition.leader >= 0).map(|partition| partition.index);
    let partitions: Vec<i32> = led.collect();
    let offsets = if partitions.is_empty() {
        Err(KafkaError::broker("Metadata", ErrorCode::LEADER_NOT_AVAILABLE, Some(topic)))
    } else {
        offsets::list(&mut Pool::new(cluster.clone()), topic, partitions, position)
    };
    if offsets.as_ref().is_err_and(|error| error.retry() != Retry::Never) {
        cluster.forget_topic(topic);
    }
    offsets
}
