//! Responses to a throttled client (KIP-219): sent at once, with the time for which the broker reads nothing.
//!
//! The responses to Fetch and ShareFetch bring no records, as measured with Kafka 4.4. Records acquired by the
//! ShareFetch stay locked, unknown to the member. Called by [`core`](super::core) for
//! [`Action::Throttle`](super::Action::Throttle).

use std::time::Duration;

use bytes::BytesMut;
use kafka_protocol::messages::{FetchResponse, ProduceResponse, ShareFetchResponse};
use kafka_protocol::protocol::{Decodable, Encodable};

use super::asked::Asked;
use super::faults::Kind;
use super::share_wire;

/// Writes the throttle time into a response's body. Versions without such a field stay unchanged.
pub(super) fn throttled(kind: Kind, asked: &Asked, mut body: BytesMut, time: Duration) -> Option<BytesMut> {
    let (version, time_ms) = (asked.version, i32::try_from(time.as_millis()).unwrap_or(i32::MAX));
    let mut changed = BytesMut::new();
    match kind {
        Kind::Produce => {
            let answer = ProduceResponse::decode(&mut body.freeze(), version).ok()?;
            answer.with_throttle_time_ms(time_ms).encode(&mut changed, version).ok()?;
            return Some(changed);
        }
        Kind::Fetch => {
            FetchResponse::default().with_throttle_time_ms(time_ms).encode(&mut changed, version).ok()?;
            return Some(changed);
        }
        Kind::ShareFetch => {
            let answer = ShareFetchResponse::decode(&mut body.freeze(), 1).ok()?;
            without_records(asked, answer)?.with_throttle_time_ms(time_ms).encode(&mut changed, 1).ok()?;
            return Some(changed);
        }
        // From this version on, the time is the first field.
        Kind::ListOffsets if version < 2 => {}
        Kind::Metadata if version < 3 => {}
        Kind::FindCoordinator if version < 1 => {}
        Kind::SaslHandshake | Kind::SaslAuthenticate => {}
        _ => body.get_mut(..4)?.copy_from_slice(&time_ms.to_be_bytes()),
    }
    Some(body)
}

/// Keeps only the results of the acknowledgements in a ShareFetch response.
fn without_records(asked: &Asked, mut answer: ShareFetchResponse) -> Option<ShareFetchResponse> {
    let request = share_wire::decode_fetch(&asked.body, asked.version)?.request;
    let acknowledged = |topic_id, index| {
        let topics = request.topics.iter().filter(|topic| topic.topic_id == topic_id);
        let mut partitions = topics.flat_map(|topic| &topic.partitions);
        partitions.any(|partition| partition.partition_index == index && !partition.acknowledgement_batches.is_empty())
    };
    for topic in &mut answer.responses {
        topic.partitions.retain(|partition| acknowledged(topic.topic_id, partition.partition_index));
        for partition in &mut topic.partitions {
            (partition.error_code, partition.records) = (0, None);
            partition.acquired_records.clear();
        }
    }
    answer.responses.retain(|topic| !topic.partitions.is_empty());
    Some(answer)
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::{
        ApiKey, CreateTopicsResponse, FindCoordinatorResponse, InitProducerIdResponse, ListOffsetsResponse,
        MetadataResponse, ShareGroupHeartbeatResponse,
    };

    use super::*;
    use kafka_protocol::messages::share_fetch_response::{PartitionData, ShareFetchableTopicResponse};
    use kafka_share::share_wire::{
        Acknowledgement, Acknowledgements, FetchLimits, SessionHeader, SharePartition, encode_fetch,
    };
    use uuid::Uuid;

    fn asked(key: ApiKey, version: i16, body: bytes::Bytes) -> Asked {
        let client = String::new();
        Asked { key, version, correlation: 0, client, body, too_new: false }
    }

    fn told<R: Default + Encodable + Decodable>(kind: Kind, version: i16, time: impl Fn(&R) -> i32) -> i32 {
        let mut body = BytesMut::new();
        R::default().encode(&mut body, version).expect("encodable");
        let key = ApiKey::try_from(kind.api_key()).expect("known");
        let asked = asked(key, version, bytes::Bytes::new());
        let body = throttled(kind, &asked, body, Duration::from_millis(7)).expect("an answer");
        time(&R::decode(&mut body.freeze(), version).expect("readable"))
    }

    #[test]
    fn throttle_time_is_sent_in_each_version_with_such_a_field() {
        for version in 3..=13 {
            assert_eq!(told(Kind::Produce, version, |answer: &ProduceResponse| answer.throttle_time_ms), 7);
        }
        for version in 4..=17 {
            assert_eq!(told(Kind::Fetch, version, |answer: &FetchResponse| answer.throttle_time_ms), 7);
        }
        for version in 1..=10 {
            let time = told(Kind::ListOffsets, version, |answer: &ListOffsetsResponse| answer.throttle_time_ms);
            assert_eq!(time, if version < 2 { 0 } else { 7 }, "ListOffsets {version}");
        }
        for version in 0..=13 {
            let time = told(Kind::Metadata, version, |answer: &MetadataResponse| answer.throttle_time_ms);
            assert_eq!(time, if version < 3 { 0 } else { 7 }, "Metadata {version}");
        }
        for version in 2..=7 {
            assert_eq!(told(Kind::CreateTopics, version, |answer: &CreateTopicsResponse| answer.throttle_time_ms), 7);
        }
        for version in 0..=5 {
            let time = |answer: &InitProducerIdResponse| answer.throttle_time_ms;
            assert_eq!(told(Kind::InitProducerId, version, time), 7);
        }
        for version in 0..=6 {
            let time = told(Kind::FindCoordinator, version, |answer: &FindCoordinatorResponse| answer.throttle_time_ms);
            assert_eq!(time, if version < 1 { 0 } else { 7 }, "FindCoordinator {version}");
        }
        let time = |answer: &ShareGroupHeartbeatResponse| answer.throttle_time_ms;
        assert_eq!(told(Kind::ShareGroupHeartbeat, 1, time), 7);
        let mut body = BytesMut::new();
        share_wire::encode_acknowledged(&mut body, &Default::default(), 2, 15_000).expect("encodable");
        let asked = asked(ApiKey::ShareAcknowledge, 2, bytes::Bytes::new());
        let body = throttled(Kind::ShareAcknowledge, &asked, body, Duration::from_millis(7)).expect("an answer");
        let (answer, _) = kafka_share::share_wire::decode_acknowledge(&body.freeze()).expect("readable");
        assert_eq!(answer.throttle_time_ms, 7);
    }

    #[test]
    fn throttled_share_fetch_names_only_partitions_with_acknowledgements() {
        let topic_id = Uuid::from_u128(7);
        let acknowledged = SharePartition { topic_id, partition: 1 };
        let said = Acknowledgements::from([(acknowledged, [(5, Acknowledgement::Accept)].into())]);
        let header = SessionHeader { group: "g", member: "m", epoch: 7 };
        let limits = FetchLimits { max_wait: Duration::ZERO, max_bytes: 1, max_records: 1 };
        let body = encode_fetch(header, limits, &[], &[], &said).expect("encodable");
        let partition = |index| PartitionData::default().with_partition_index(index).with_acknowledge_error_code(121);
        let topic = ShareFetchableTopicResponse::default().with_topic_id(topic_id);
        let topic = topic.with_partitions(vec![partition(0), partition(1)]);
        let answer = ShareFetchResponse::default().with_responses(vec![topic]);
        let left = without_records(&asked(ApiKey::ShareFetch, 2, body), answer).expect("an answer");
        let left = left.responses[0].partitions.iter();
        assert!(left.map(|left| (left.partition_index, left.acknowledge_error_code)).eq([(1, 121)]));
    }
}
