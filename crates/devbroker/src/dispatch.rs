//! Decodes requests, calls their handlers, and encodes the responses.
//!
//! Called by [`answer`](super::answer).

use std::time::Instant;

use bytes::BytesMut;
use kafka_protocol::messages::api_versions_response::{ApiVersion, FinalizedFeatureKey, SupportedFeatureKey};
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, AlterShareGroupOffsetsRequest, ApiKey, ApiVersionsResponse, CreatePartitionsRequest,
    CreateTopicsRequest, DeleteRecordsRequest, DeleteTopicsRequest, DescribeConfigsRequest,
    DescribeShareGroupOffsetsRequest, EndTxnRequest, FetchRequest, FindCoordinatorRequest,
    IncrementalAlterConfigsRequest, InitProducerIdRequest, ListOffsetsRequest, MetadataRequest, ProduceRequest,
    ShareGroupDescribeRequest, ShareGroupHeartbeatRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable, Request, StrBytes};

use super::asked::{Asked, REQUESTS};
use super::core::{Core, now_ms};
use super::share_wire;
use super::state::Caller;
use kafka_share::{ErrorCode, share_lag};

/// Returns the body of the response. `None`: the request cannot be decoded, and Kafka would close the connection.
pub(super) fn answer(core: &Core, caller: &Caller, asked: &Asked) -> Option<BytesMut> {
    let (version, now) = (asked.version, Instant::now());
    match asked.key {
        ApiKey::ApiVersions => api_versions(core, asked),
        ApiKey::Produce => typed(asked, |request: ProduceRequest| core.produce(caller, version, &request)),
        ApiKey::Fetch => typed(asked, |request: FetchRequest| core.fetch(caller, version, &request)),
        ApiKey::ListOffsets => {
            typed(asked, |request: ListOffsetsRequest| core.state.lock().list_offsets(caller, version, &request, now))
        }
        ApiKey::Metadata => {
            typed(asked, |request: MetadataRequest| core.state.lock().metadata(caller, version, &request))
        }
        ApiKey::FindCoordinator => typed(asked, |request: FindCoordinatorRequest| {
            core.state.lock().find_coordinator(caller, version, &request)
        }),
        ApiKey::InitProducerId => {
            let answer = typed(asked, |request: InitProducerIdRequest| {
                core.state.lock().init_producer_id(caller, &request, now, now_ms())
            });
            core.changed.notify_all();
            answer
        }
        ApiKey::AddPartitionsToTxn => {
            typed(asked, |request: AddPartitionsToTxnRequest| core.state.lock().add_partitions(caller, &request, now))
        }
        ApiKey::EndTxn => {
            let answer = typed(asked, |request: EndTxnRequest| {
                core.state.lock().end_transaction(caller, &request, now, now_ms())
            });
            core.changed.notify_all();
            answer
        }
        ApiKey::CreateTopics => {
            typed(asked, |request: CreateTopicsRequest| core.state.lock().create_topics(caller, version, &request))
        }
        ApiKey::DeleteTopics => typed(asked, |request: DeleteTopicsRequest| {
            let answer = core.state.lock().delete_topics(caller, version, &request);
            core.changed.notify_all();
            answer
        }),
        ApiKey::CreatePartitions => {
            typed(asked, |request: CreatePartitionsRequest| core.state.lock().create_partitions(caller, &request))
        }
        ApiKey::DeleteRecords => {
            typed(asked, |request: DeleteRecordsRequest| core.state.lock().delete_records(caller, &request, now))
        }
        ApiKey::DescribeConfigs => {
            typed(asked, |request: DescribeConfigsRequest| core.state.lock().describe_configs(caller, &request))
        }
        ApiKey::IncrementalAlterConfigs => {
            typed(asked, |request: IncrementalAlterConfigsRequest| core.state.lock().alter_configs(caller, &request))
        }
        _ => answer_group(core, caller, asked, now),
    }
}

fn answer_group(core: &Core, caller: &Caller, asked: &Asked, now: Instant) -> Option<BytesMut> {
    match asked.key {
        ApiKey::ShareGroupHeartbeat => typed(asked, |request: ShareGroupHeartbeatRequest| {
            core.state.lock().share_group_heartbeat(caller, &request, now)
        }),
        ApiKey::ShareFetch => {
            let fetch = share_wire::decode_fetch(&asked.body, asked.version)?;
            let answer = core.share_fetch(caller, &fetch);
            let mut body = BytesMut::new();
            answer.encode(&mut body, 1).ok().map(|()| body)
        }
        ApiKey::ShareAcknowledge => {
            let acknowledge = share_wire::decode_acknowledge(&asked.body, asked.version)?;
            let (answer, lock_ms) = core.share_acknowledge(caller, &acknowledge);
            let mut body = BytesMut::new();
            share_wire::encode_acknowledged(&mut body, &answer, asked.version, lock_ms).map(|()| body)
        }
        ApiKey::ShareGroupDescribe => typed(asked, |request: ShareGroupDescribeRequest| {
            core.state.lock().describe_share_groups(caller, &request, now)
        }),
        ApiKey::DescribeShareGroupOffsets => {
            // The request is the same in both versions.
            let request = DescribeShareGroupOffsetsRequest::decode(&mut asked.body.clone(), 0).ok()?;
            let (answer, lags) = core.state.lock().describe_share_group_offsets(caller, &request, now);
            let mut body = BytesMut::new();
            match asked.version {
                0 => answer.encode(&mut body, 0).ok()?,
                _ => body.extend_from_slice(&share_lag::encode(&answer, &lags)?),
            }
            Some(body)
        }
        ApiKey::AlterShareGroupOffsets => typed(asked, |request: AlterShareGroupOffsetsRequest| {
            core.state.lock().alter_share_group_offsets(caller, &request, now)
        }),
        _ => None,
    }
}

fn typed<R: Request>(asked: &Asked, answer: impl FnOnce(R) -> R::Response) -> Option<BytesMut> {
    let request = R::decode(&mut asked.body.clone(), asked.version).ok()?;
    let mut body = BytesMut::new();
    answer(request).encode(&mut body, asked.version).ok()?;
    Some(body)
}

fn api_versions(core: &Core, asked: &Asked) -> Option<BytesMut> {
    let api = |&(key, least, most): &(ApiKey, i16, i16)| {
        ApiVersion::default().with_api_key(key as i16).with_min_version(least).with_max_version(most)
    };
    let mut answer = ApiVersionsResponse::default();
    if asked.too_new {
        let own = REQUESTS.iter().filter(|request| request.0 == ApiKey::ApiVersions).map(api);
        answer = answer.with_error_code(ErrorCode::UNSUPPORTED_VERSION.0).with_api_keys(own.collect());
    } else {
        let (level, most) = {
            let settings = &core.state.lock().settings;
            (settings.share_version.min(settings.pose.share_version()), settings.pose.share_version())
        };
        let name = StrBytes::from_static_str("share.version");
        let supported =
            SupportedFeatureKey::default().with_name(name.clone()).with_min_version(0).with_max_version(most);
        let finalized = FinalizedFeatureKey::default().with_name(name).with_max_version_level(level);
        answer = answer.with_api_keys(REQUESTS.iter().map(api).collect()).with_finalized_features_epoch(0);
        // Clients of version 3 cannot read features that begin at 0, so they do not get them.
        if asked.version >= 4 {
            answer = answer.with_supported_features(vec![supported]);
        }
        if level > 0 {
            answer = answer.with_finalized_features(vec![finalized.with_min_version_level(level)]);
        }
    }
    let mut body = BytesMut::new();
    answer.encode(&mut body, asked.version).ok().map(|()| body)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
    use kafka_protocol::messages::create_topics_request::CreatableTopic;
    use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
    use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
    use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
    use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
    use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
    use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
    use kafka_protocol::messages::{ApiVersionsRequest, RequestHeader, TopicName};
    use uuid::Uuid;

    use super::super::asked::ShareVersions;
    use super::super::batch::tests::batch_of;
    use super::super::settings::{Settings, Values};
    use super::super::state::State;
    use super::*;

    const CALLER: Caller = Caller::new(1, 1);

    fn core() -> Core {
        let (orders, _) = crossbeam_channel::bounded(1);
        let mut state = State::new(Settings::new(Vec::new()), vec![SocketAddr::from(([127, 0, 0, 1], 9092))]);
        state.create_topic("there", 1, 1, Values::default());
        Core::new(state, orders)
    }

    fn name(there: bool) -> TopicName {
        TopicName(StrBytes::from_static_str(if there { "there" } else { "nowhere" }))
    }

    /// Sends a request in this version and decodes the response as a client does.
    fn ask<R: Request>(core: &Core, version: i16, request: &R) {
        let mut frame = BytesMut::new();
        let key = ApiKey::try_from(R::KEY).expect("known");
        let header = RequestHeader::default().with_request_api_key(R::KEY).with_request_api_version(version);
        header.encode(&mut frame, key.request_header_version(version)).expect("encodable");
        request.encode(&mut frame, version).unwrap_or_else(|error| panic!("{key:?} {version}: {error}"));
        let asked = Asked::read(frame.freeze()).unwrap_or_else(|| panic!("{key:?} {version} is not known"));
        let body = answer(core, &CALLER, &asked).unwrap_or_else(|| panic!("{key:?} {version} has no answer"));
        let read = R::Response::decode(&mut body.freeze(), version);
        read.unwrap_or_else(|error| panic!("{key:?} {version}: {error}"));
    }

    fn versions(key: ApiKey) -> std::ops::RangeInclusive<i16> {
        let (_, least, most) = REQUESTS.iter().find(|request| request.0 == key).expect("listed");
        *least.max(key.valid_versions_with_share().start())..=*most
    }

    #[test]
    fn records_can_be_written_and_read_in_every_version() {
        let core = core();
        let id = core.state.lock().topics["there"].id;
        for there in [true, false] {
            let by_id = |from: i16, version: i16| version >= from;
            for version in versions(ApiKey::Produce) {
                let partition = PartitionProduceData::default().with_records(Some(batch_of(1, -1, -1, 0)));
                let topic = TopicProduceData::default().with_partition_data(vec![partition]);
                let topic = match (by_id(13, version), there) {
                    (true, true) => topic.with_topic_id(id),
                    (true, false) => topic.with_topic_id(Uuid::from_u128(1)),
                    _ => topic.with_name(name(there)),
                };
                ask(&core, version, &ProduceRequest::default().with_acks(-1).with_topic_data(vec![topic]));
            }
            for version in versions(ApiKey::Fetch) {
                for offset in [0, 1_000_000] {
                    let partition = FetchPartition::default().with_current_leader_epoch(-1).with_fetch_offset(offset);
                    let topic = FetchTopic::default().with_partitions(vec![partition.with_partition_max_bytes(1000)]);
                    let topic = match (by_id(13, version), there) {
                        (true, true) => topic.with_topic_id(id),
                        (true, false) => topic.with_topic_id(Uuid::from_u128(1)),
                        _ => topic.with_topic(name(there)),
                    };
                    ask(&core, version, &FetchRequest::default().with_max_bytes(1000).with_topics(vec![topic]));
                }
            }
            for version in versions(ApiKey::ListOffsets) {
                let partition = ListOffsetsPartition::default().with_current_leader_epoch(-1).with_timestamp(-1);
                let topic = ListOffsetsTopic::default().with_name(name(there)).with_partitions(vec![partition]);
                ask(&core, version, &ListOffsetsRequest::default().with_topics(vec![topic]));
            }
        }
    }

    #[test]
    fn topics_and_groups_are_described_in_every_version() {
        let core = core();
        for version in versions(ApiKey::ApiVersions) {
            ask(&core, version, &ApiVersionsRequest::default());
        }
        for version in versions(ApiKey::Metadata) {
            for there in [true, false] {
                let topic = MetadataRequestTopic::default().with_name(Some(name(there)));
                let request = MetadataRequest::default().with_topics(Some(vec![topic]));
                ask(&core, version, &request.with_allow_auto_topic_creation(version < 4));
            }
        }
        for version in versions(ApiKey::FindCoordinator) {
            let (key, request) = (StrBytes::from_static_str("group"), FindCoordinatorRequest::default());
            let one = version < 4;
            let request = if one { request.with_key(key) } else { request.with_coordinator_keys(vec![key]) };
            ask(&core, version, &request);
        }
        for version in versions(ApiKey::CreateTopics) {
            for there in [true, false] {
                let topic = CreatableTopic::default().with_name(name(there)).with_num_partitions(1);
                let request = CreateTopicsRequest::default().with_topics(vec![topic.with_replication_factor(1)]);
                ask(&core, version, &request.with_validate_only(true));
            }
        }
        for version in versions(ApiKey::CreatePartitions) {
            for there in [true, false] {
                let topic =
                    CreatePartitionsTopic::default().with_name(name(there)).with_count(2).with_assignments(None);
                let request = CreatePartitionsRequest::default().with_topics(vec![topic]).with_timeout_ms(1000);
                ask(&core, version, &request.with_validate_only(true));
            }
        }
        for version in versions(ApiKey::DeleteTopics) {
            let request = DeleteTopicsRequest::default();
            let state = DeleteTopicState::default().with_name(Some(name(false)));
            let names = version < 6;
            let request =
                if names { request.with_topic_names(vec![name(false)]) } else { request.with_topics(vec![state]) };
            ask(&core, version, &request);
        }
        for version in versions(ApiKey::DescribeConfigs) {
            let resource = DescribeConfigsResource::default().with_resource_type(2);
            let resource =
                resource.with_resource_name(StrBytes::from_static_str("there")).with_configuration_keys(None);
            ask(&core, version, &DescribeConfigsRequest::default().with_resources(vec![resource]));
        }
        for version in versions(ApiKey::InitProducerId) {
            ask(&core, version, &InitProducerIdRequest::default().with_transactional_id(None));
        }
        for version in versions(ApiKey::AddPartitionsToTxn) {
            ask(&core, version, &AddPartitionsToTxnRequest::default());
        }
        for version in versions(ApiKey::EndTxn) {
            ask(&core, version, &EndTxnRequest::default());
        }
    }
}
