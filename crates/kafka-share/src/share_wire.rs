//! The wire form of ShareFetch v2 and ShareAcknowledge v2 (KIP-932 with KIP-1206 record limit and KIP-1222 renewal).
//!
//! The codec crate knows version 1 of both. Version 2 adds fields at fixed places: two to the first request, one to the
//! second, and one to the second's response. This module encodes version 1 and splices them in. It holds no connection
//! and no session state. Called by [`super::share_session`] alone.

use super::bounded;
use super::error::KafkaError;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::share_acknowledge_request::{
    self as acknowledge_request, AcknowledgePartition, AcknowledgeTopic,
};
use kafka_protocol::messages::share_fetch_request::{self as fetch_request, FetchPartition, FetchTopic};
use kafka_protocol::messages::{
    ApiKey, GroupId, ShareAcknowledgeRequest, ShareAcknowledgeResponse, ShareFetchRequest, ShareFetchResponse,
};
use kafka_protocol::protocol::{Encodable, StrBytes};
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

/// The version of both requests on the wire.
pub const WIRE_VERSION: i16 = 2;
/// The version that the codec crate encodes and decodes.
const CODEC_VERSION: i16 = 1;
/// Api key of ShareFetch.
pub const SHARE_FETCH: i16 = ApiKey::ShareFetch as i16;
/// Api key of ShareAcknowledge.
pub const SHARE_ACKNOWLEDGE: i16 = ApiKey::ShareAcknowledge as i16;

/// A partition with its topic's id, as share requests name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SharePartition {
    /// The topic's id.
    pub topic_id: Uuid,
    /// The partition's index.
    pub partition: i32,
}

/// A member's acknowledgement of one acquired record (KIP-932 "acknowledge types", KIP-1222 for renewal).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub enum Acknowledgement {
    /// No record exists at this offset.
    Gap = 0,
    /// Processed; the broker never delivers it again.
    Accept = 1,
    /// Not processed; the broker delivers it again, with its delivery count increased by one.
    Release = 2,
    /// Still being processed; the lock starts anew.
    Renew = 4,
}

/// Acknowledgements of one request: for each partition its offsets with their types.
pub type Acknowledgements = BTreeMap<SharePartition, BTreeMap<i64, Acknowledgement>>;

/// The first three fields of both requests: group, member and session epoch.
#[derive(Clone, Copy, Debug)]
pub struct SessionHeader<'a> {
    /// The share group.
    pub group: &'a str,
    /// The member id, a UUID in the URL-safe base64 form or any other string that the member chose.
    pub member: &'a str,
    /// 0 opens the session, -1 closes it; otherwise the number of the request in the session.
    pub epoch: i32,
}

/// Limits of a ShareFetch.
#[derive(Clone, Copy, Debug)]
pub struct FetchLimits {
    /// How long the broker parks the request while nothing can be acquired.
    pub max_wait: Duration,
    /// Bytes read from the log for this request; the first batch always comes whole.
    pub max_bytes: i32,
    /// Most records to acquire; strict, because the request asks for record-limit mode.
    pub max_records: i32,
}

/// Encodes the body of a ShareFetch v2 request in record-limit mode.
///
/// `added` and `forgotten` are the partitions that enter and leave the session. Acknowledgements bring their partitions
/// into the session. Forgetting a partition releases none of its records.
///
/// # Errors
/// [`KafkaError::Unencodable`] when a field cannot be encoded.
pub fn encode_fetch(
    header: SessionHeader<'_>,
    limits: FetchLimits,
    added: &[SharePartition],
    forgotten: &[SharePartition],
    acknowledgements: &Acknowledgements,
) -> Result<Bytes, KafkaError> {
    let mut left: BTreeMap<Uuid, Vec<i32>> = BTreeMap::new();
    for partition in forgotten {
        left.entry(partition.topic_id).or_default().push(partition.partition);
    }
    let left = left.into_iter().map(|(topic_id, partitions)| {
        fetch_request::ForgottenTopic::default().with_topic_id(topic_id).with_partitions(partitions)
    });
    let mut topics: BTreeMap<Uuid, BTreeMap<i32, Vec<fetch_request::AcknowledgementBatch>>> = BTreeMap::new();
    for partition in added {
        topics.entry(partition.topic_id).or_default().entry(partition.partition).or_default();
    }
    for (partition, offsets) in acknowledgements {
        let batches = ranges(offsets).into_iter().map(|range| {
            fetch_request::AcknowledgementBatch::default()
                .with_first_offset(range.first)
                .with_last_offset(range.last)
                .with_acknowledge_types(vec![range.kind as i8])
        });
        let entry = topics.entry(partition.topic_id).or_default().entry(partition.partition).or_default();
        entry.extend(batches);
    }
    let request = ShareFetchRequest::default()
        .with_group_id(Some(GroupId(StrBytes::from_string(header.group.to_owned()))))
        .with_member_id(Some(StrBytes::from_string(header.member.to_owned())))
        .with_share_session_epoch(header.epoch)
        .with_max_wait_ms(i32::try_from(limits.max_wait.as_millis()).unwrap_or(i32::MAX))
        .with_min_bytes(i32::from(limits.max_records > 0))
        .with_max_bytes(limits.max_bytes)
        .with_max_records(limits.max_records)
        .with_batch_size(limits.max_records)
        .with_topics(
            topics
                .into_iter()
                .map(|(topic_id, partitions)| {
                    FetchTopic::default().with_topic_id(topic_id).with_partitions(
                        partitions
                            .into_iter()
                            .map(|(index, batches)| {
                                FetchPartition::default()
                                    .with_partition_index(index)
                                    .with_acknowledgement_batches(batches)
                            })
                            .collect(),
                    )
                })
                .collect(),
        )
        .with_forgotten_topics_data(left.collect());
    // ShareAcquireMode (1 = record limit) and IsRenewAck follow BatchSize: six int32 fields after the two strings.
    splice(&request, prefix_length(header) + 24, &[1, 0], "ShareFetch")
}

/// Encodes the body of a ShareAcknowledge v2 request.
///
/// IsRenewAck is set if any acknowledgement is a renewal; the request may also contain accepts and releases.
///
/// # Errors
/// [`KafkaError::Unencodable`] when a field cannot be encoded.
pub fn encode_acknowledge(header: SessionHeader<'_>, acknowledgements: &Acknowledgements) -> Result<Bytes, KafkaError> {
    let mut topics: BTreeMap<Uuid, Vec<AcknowledgePartition>> = BTreeMap::new();
    let mut renews = false;
    for (partition, offsets) in acknowledgements {
        let batches = ranges(offsets).into_iter().map(|range| {
            renews |= range.kind == Acknowledgement::Renew;
            acknowledge_request::AcknowledgementBatch::default()
                .with_first_offset(range.first)
                .with_last_offset(range.last)
                .with_acknowledge_types(vec![range.kind as i8])
        });
        let batches = batches.collect();
        topics.entry(partition.topic_id).or_default().push(
            AcknowledgePartition::default()
                .with_partition_index(partition.partition)
                .with_acknowledgement_batches(batches),
        );
    }
    let request = ShareAcknowledgeRequest::default()
        .with_group_id(Some(GroupId(StrBytes::from_string(header.group.to_owned()))))
        .with_member_id(Some(StrBytes::from_string(header.member.to_owned())))
        .with_share_session_epoch(header.epoch)
        .with_topics(
            topics
                .into_iter()
                .map(|(topic_id, partitions)| {
                    AcknowledgeTopic::default().with_topic_id(topic_id).with_partitions(partitions)
                })
                .collect(),
        );
    // IsRenewAck follows ShareSessionEpoch.
    splice(&request, prefix_length(header) + 4, &[u8::from(renews)], "ShareAcknowledge")
}

/// Decodes the body of a ShareFetch v2 response, which is that of version 1.
///
/// # Errors
/// The fault, if the bytes are no such response.
pub fn decode_fetch(mut body: Bytes) -> Result<ShareFetchResponse, String> {
    bounded::decode(&mut body, CODEC_VERSION, true).map_err(|error| format!("answer to ShareFetch: {error}"))
}

/// Decodes the body of a ShareAcknowledge v2 response, and the lock duration if the broker sent it.
///
/// # Errors
/// The fault, if the bytes are no such response.
pub fn decode_acknowledge(body: &Bytes) -> Result<(ShareAcknowledgeResponse, Option<Duration>), String> {
    // Throttle time (int32), error code (int16), error message (compact nullable string), then the lock's int32.
    let mut head = body.clone();
    if head.remaining() < 6 {
        return Err(malformed("shorter than its fixed fields"));
    }
    head.advance(6);
    let message_length = unsigned_varint(&mut head)?.saturating_sub(1) as usize;
    if head.remaining() < message_length + 4 {
        return Err(malformed("cut before the lock time-out"));
    }
    head.advance(message_length);
    let split = body.len() - head.remaining();
    let lock_ms = head.get_i32();
    let mut version_1 = BytesMut::with_capacity(body.len());
    version_1.put_slice(&body[..split]);
    version_1.put_slice(&head);
    let response = bounded::decode(&mut version_1.freeze(), CODEC_VERSION, true).map_err(malformed)?;
    let lock = u64::try_from(lock_ms).ok().filter(|milliseconds| *milliseconds > 0).map(Duration::from_millis);
    Ok((response, lock))
}

/// Consecutive offsets with the same acknowledgement.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: i64,
    last: i64,
    kind: Acknowledgement,
}

fn ranges(offsets: &BTreeMap<i64, Acknowledgement>) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for (&offset, &kind) in offsets {
        match ranges.last_mut() {
            Some(range) if range.last + 1 == offset && range.kind == kind => range.last = offset,
            _ => ranges.push(Range { first: offset, last: offset, kind }),
        }
    }
    ranges
}

/// Bytes of the two compact strings at the start of both requests.
fn prefix_length(header: SessionHeader<'_>) -> usize {
    compact_length(header.group) + compact_length(header.member)
}

/// A compact string is its length plus one as an unsigned varint, then its bytes.
fn compact_length(text: &str) -> usize {
    let mut rest = (text.len() + 1) >> 7;
    let mut varint = 1;
    while rest > 0 {
        varint += 1;
        rest >>= 7;
    }
    varint + text.len()
}

fn splice<R: Encodable>(request: &R, at: usize, inserted: &[u8], name: &'static str) -> Result<Bytes, KafkaError> {
    let mut version_1 = BytesMut::with_capacity(256);
    request
        .encode(&mut version_1, CODEC_VERSION)
        .map_err(|error| KafkaError::Unencodable { request: name, detail: error.to_string() })?;
    let mut body = BytesMut::with_capacity(version_1.len() + inserted.len());
    body.put_slice(&version_1[..at]);
    body.put_slice(inserted);
    body.put_slice(&version_1[at..]);
    Ok(body.freeze())
}

fn unsigned_varint(buffer: &mut Bytes) -> Result<u32, String> {
    let mut value = 0u32;
    for shift in [0, 7, 14, 21, 28] {
        if !buffer.has_remaining() {
            break;
        }
        let byte = buffer.get_u8();
        value |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(malformed("bad length of its error message"))
}

fn malformed(detail: impl std::fmt::Display) -> String {
    format!("answer to ShareAcknowledge: {detail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: Uuid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
    const HEADER: SessionHeader<'static> = SessionHeader { group: "workers", member: "m1", epoch: 7 };

    fn acknowledgements(said: &[(i64, Acknowledgement)]) -> Acknowledgements {
        let partition = SharePartition { topic_id: TOPIC, partition: 3 };
        BTreeMap::from([(partition, said.iter().copied().collect())])
    }

    #[test]
    fn fetch_carries_record_limit_mode_and_riding_acknowledgements() {
        let limits = FetchLimits { max_wait: Duration::from_millis(100), max_bytes: 65_536, max_records: 5 };
        let said = acknowledgements(&[(10, Acknowledgement::Accept), (11, Acknowledgement::Accept)]);
        let body = encode_fetch(HEADER, limits, &[], &[], &said).unwrap();
        let mut expected = vec![8];
        expected.extend_from_slice(b"workers");
        expected.push(3);
        expected.extend_from_slice(b"m1");
        expected.extend_from_slice(&7i32.to_be_bytes()); // epoch
        expected.extend_from_slice(&100i32.to_be_bytes()); // max wait
        expected.extend_from_slice(&1i32.to_be_bytes()); // min bytes
        expected.extend_from_slice(&65_536i32.to_be_bytes());
        expected.extend_from_slice(&5i32.to_be_bytes()); // max records
        expected.extend_from_slice(&5i32.to_be_bytes()); // batch size
        expected.extend_from_slice(&[1, 0]); // record limit, no renewal
        expected.push(2); // one topic
        expected.extend_from_slice(TOPIC.as_bytes());
        expected.push(2); // one partition
        expected.extend_from_slice(&3i32.to_be_bytes());
        expected.push(2); // one batch
        expected.extend_from_slice(&10i64.to_be_bytes());
        expected.extend_from_slice(&11i64.to_be_bytes());
        expected.extend_from_slice(&[2, 1]); // one type: accept
        expected.extend_from_slice(&[0, 0, 0]); // tags of batch, partition, topic
        expected.push(1); // no forgotten topics
        expected.push(0);
        assert_eq!(body.as_ref(), expected.as_slice());
        let forgotten = [SharePartition { topic_id: TOPIC, partition: 4 }];
        let body = encode_fetch(HEADER, limits, &[], &forgotten, &said).unwrap();
        expected.truncate(expected.len() - 2);
        expected.push(2); // one forgotten topic
        expected.extend_from_slice(TOPIC.as_bytes());
        expected.push(2); // one partition
        expected.extend_from_slice(&4i32.to_be_bytes());
        expected.extend_from_slice(&[0, 0]); // tags of topic and request
        assert_eq!(body.as_ref(), expected.as_slice());
    }

    #[test]
    fn acknowledge_request_marks_renewals_and_separates_kinds() {
        let said = acknowledgements(&[
            (10, Acknowledgement::Accept),
            (11, Acknowledgement::Renew),
            (13, Acknowledgement::Release),
            (14, Acknowledgement::Release),
        ]);
        let body = encode_acknowledge(HEADER, &said).unwrap();
        let mut expected = vec![8];
        expected.extend_from_slice(b"workers");
        expected.push(3);
        expected.extend_from_slice(b"m1");
        expected.extend_from_slice(&7i32.to_be_bytes());
        expected.push(1); // renewals inside
        expected.push(2);
        expected.extend_from_slice(TOPIC.as_bytes());
        expected.push(2);
        expected.extend_from_slice(&3i32.to_be_bytes());
        expected.push(4); // three batches
        for (first, last, kind) in [(10i64, 10i64, 1u8), (11, 11, 4), (13, 14, 2)] {
            expected.extend_from_slice(&first.to_be_bytes());
            expected.extend_from_slice(&last.to_be_bytes());
            expected.extend_from_slice(&[2, kind, 0]);
        }
        expected.extend_from_slice(&[0, 0, 0]);
        assert_eq!(body.as_ref(), expected.as_slice());
    }

    #[test]
    fn acknowledge_response_yields_the_lock_time() {
        let mut body = vec![0, 0, 0, 0, 0, 0]; // throttle, no error
        body.push(0); // no message
        body.extend_from_slice(&15_000i32.to_be_bytes());
        body.push(2); // one topic
        body.extend_from_slice(TOPIC.as_bytes());
        body.push(2); // one partition
        body.extend_from_slice(&3i32.to_be_bytes());
        body.extend_from_slice(&121i16.to_be_bytes());
        body.push(0);
        body.extend_from_slice(&1i32.to_be_bytes()); // leader
        body.extend_from_slice(&5i32.to_be_bytes()); // leader epoch
        body.extend_from_slice(&[0, 0, 0]); // tags of leader, partition, topic
        body.push(1); // no endpoints
        body.push(0);
        let (response, lock) = decode_acknowledge(&Bytes::from(body.clone())).unwrap();
        assert_eq!(lock, Some(Duration::from_secs(15)));
        assert_eq!(response.responses[0].topic_id, TOPIC);
        assert_eq!(response.responses[0].partitions[0].error_code, 121);
        for length in 0..body.len() {
            assert!(decode_acknowledge(&Bytes::from(body[..length].to_vec())).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn compact_strings_of_127_bytes_and_more_have_longer_lengths() {
        for length in [0, 1, 126, 127, 128, 16_382, 16_383] {
            let text = "g".repeat(length);
            let mut encoded = BytesMut::new();
            let header = SessionHeader { group: &text, member: "m", epoch: 0 };
            ShareAcknowledgeRequest::default()
                .with_group_id(Some(GroupId(StrBytes::from_string(text.clone()))))
                .with_member_id(Some(StrBytes::from_static_str("m")))
                .encode(&mut encoded, CODEC_VERSION)
                .unwrap();
            // epoch int32, empty topics, no tags
            assert_eq!(prefix_length(header), encoded.len() - 6, "group of {length} bytes");
        }
    }
}
