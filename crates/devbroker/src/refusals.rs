//! Responses with nothing but an error code, for injected faults.
//!
//! In responses with a code per partition, topic or group, each gets this code. Called by [`core`](super::core).

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
use kafka_protocol::messages::fetch_response::{self, FetchableTopicResponse};
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    CreateTopicsRequest, CreateTopicsResponse, FetchRequest, FetchResponse, FindCoordinatorRequest,
    FindCoordinatorResponse, InitProducerIdResponse, ListOffsetsRequest, ListOffsetsResponse, MetadataRequest,
    MetadataResponse, ProduceRequest, ProduceResponse, ProducerId, SaslAuthenticateResponse, SaslHandshakeResponse,
    ShareAcknowledgeResponse, ShareFetchResponse, ShareGroupHeartbeatResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable};

use super::faults::Kind;
use super::share_wire;
use kafka_share::ErrorCode;

/// Returns the body of the response; `None` if the request cannot be decoded.
pub(super) fn body(kind: Kind, version: i16, mut request: Bytes, code: ErrorCode) -> Option<BytesMut> {
    let mut body = BytesMut::new();
    let (request, version) = (&mut request, version);
    match kind {
        Kind::Produce => produce(&ProduceRequest::decode(request, version).ok()?, code).encode(&mut body, version),
        Kind::Fetch => fetch(&FetchRequest::decode(request, version).ok()?, code).encode(&mut body, version),
        Kind::ListOffsets => {
            list_offsets(&ListOffsetsRequest::decode(request, version).ok()?, code).encode(&mut body, version)
        }
        Kind::Metadata => metadata(&MetadataRequest::decode(request, version).ok()?, code).encode(&mut body, version),
        Kind::CreateTopics => {
            create_topics(&CreateTopicsRequest::decode(request, version).ok()?, code).encode(&mut body, version)
        }
        Kind::InitProducerId => InitProducerIdResponse::default()
            .with_error_code(code.0)
            .with_producer_id(ProducerId(-1))
            .encode(&mut body, version),
        Kind::FindCoordinator => {
            find_coordinator(version, &FindCoordinatorRequest::decode(request, version).ok()?, code)
                .encode(&mut body, version)
        }
        Kind::ShareGroupHeartbeat => {
            ShareGroupHeartbeatResponse::default().with_error_code(code.0).encode(&mut body, version)
        }
        Kind::ShareFetch => ShareFetchResponse::default().with_error_code(code.0).encode(&mut body, 1),
        Kind::ShareAcknowledge => {
            let answer = ShareAcknowledgeResponse::default().with_error_code(code.0);
            share_wire::encode_acknowledged(&mut body, &answer, version, 0)?;
            Ok(())
        }
        Kind::SaslHandshake => SaslHandshakeResponse::default().with_error_code(code.0).encode(&mut body, version),
        Kind::TlsHandshake => return None,
        Kind::SaslAuthenticate => {
            SaslAuthenticateResponse::default().with_error_code(code.0).encode(&mut body, version)
        }
    }
    .ok()?;
    Some(body)
}

fn produce(request: &ProduceRequest, code: ErrorCode) -> ProduceResponse {
    let topics = request.topic_data.iter().map(|topic| {
        let partitions = topic.partition_data.iter().map(|partition| {
            let answer = PartitionProduceResponse::default().with_index(partition.index).with_error_code(code.0);
            answer.with_base_offset(-1).with_log_append_time_ms(-1).with_log_start_offset(-1)
        });
        let answer = TopicProduceResponse::default().with_name(topic.name.clone()).with_topic_id(topic.topic_id);
        answer.with_partition_responses(partitions.collect())
    });
    ProduceResponse::default().with_responses(topics.collect())
}

fn fetch(request: &FetchRequest, code: ErrorCode) -> FetchResponse {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            fetch_response::PartitionData::default()
                .with_partition_index(partition.partition)
                .with_error_code(code.0)
                .with_high_watermark(-1)
                .with_records(Some(Bytes::new()))
        });
        let answer = FetchableTopicResponse::default().with_topic(topic.topic.clone()).with_topic_id(topic.topic_id);
        answer.with_partitions(partitions.collect())
    });
    FetchResponse::default().with_responses(topics.collect())
}

fn list_offsets(request: &ListOffsetsRequest, code: ErrorCode) -> ListOffsetsResponse {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            let answer = ListOffsetsPartitionResponse::default().with_partition_index(partition.partition_index);
            answer.with_error_code(code.0).with_offset(-1).with_timestamp(-1)
        });
        ListOffsetsTopicResponse::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
    });
    ListOffsetsResponse::default().with_topics(topics.collect())
}

fn metadata(request: &MetadataRequest, code: ErrorCode) -> MetadataResponse {
    let topics = request.topics.iter().flatten().map(|topic| {
        let answer = MetadataResponseTopic::default().with_name(topic.name.clone()).with_topic_id(topic.topic_id);
        answer.with_error_code(code.0)
    });
    MetadataResponse::default().with_topics(topics.collect())
}

fn create_topics(request: &CreateTopicsRequest, code: ErrorCode) -> CreateTopicsResponse {
    let topics = request.topics.iter().map(|topic| {
        let answer = CreatableTopicResult::default().with_name(topic.name.clone()).with_error_code(code.0);
        answer.with_configs(None)
    });
    CreateTopicsResponse::default().with_topics(topics.collect())
}

fn find_coordinator(version: i16, request: &FindCoordinatorRequest, code: ErrorCode) -> FindCoordinatorResponse {
    // Versions up to 3 ask for one key, and their response has no list.
    if version < 4 {
        return FindCoordinatorResponse::default().with_error_code(code.0).with_port(-1);
    }
    let coordinators = request
        .coordinator_keys
        .iter()
        .map(|key| Coordinator::default().with_key(key.clone()).with_error_code(code.0).with_port(-1));
    FindCoordinatorResponse::default().with_coordinators(coordinators.collect())
}

#[cfg(test)]
mod tests {
    use kafka_protocol::protocol::StrBytes;

    use super::*;

    #[test]
    fn refusal_of_find_coordinator_is_encodable_in_both_forms() {
        let key = StrBytes::from_static_str("group");
        let one = FindCoordinatorRequest::default().with_key(key.clone());
        let several = FindCoordinatorRequest::default().with_coordinator_keys(vec![key]);
        for (version, request) in [(3, one), (4, several)] {
            let mut bytes = BytesMut::new();
            request.encode(&mut bytes, version).expect("encodable");
            let code = ErrorCode::COORDINATOR_NOT_AVAILABLE;
            let answer = body(Kind::FindCoordinator, version, bytes.freeze(), code).expect("an answer");
            let answer = FindCoordinatorResponse::decode(&mut answer.freeze(), version).expect("readable");
            let told = answer.coordinators.first().map_or(answer.error_code, |coordinator| coordinator.error_code);
            assert_eq!(told, code.0, "version {version}");
        }
    }
}
