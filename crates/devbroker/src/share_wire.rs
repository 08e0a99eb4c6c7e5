//! Both versions of ShareFetch and ShareAcknowledge on the wire, decoded and encoded by the broker.
//!
//! The codec crate knows version 1. Version 2 (KIP-1206, KIP-1222) adds two fields to the first request, one to the
//! second, and one to the second's response; this module removes and inserts them. The client's side is
//! [`kafka_share::share_wire`]. Called by the dispatcher.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ShareAcknowledgeRequest, ShareAcknowledgeResponse, ShareFetchRequest};
use kafka_protocol::protocol::{Decodable, Encodable};

use super::share_partition::{PartitionKey, Said};
use kafka_share::ErrorCode;

/// The version that the codec crate decodes and encodes.
const CODEC: i16 = 1;
/// Bytes between the two strings of ShareFetch and the fields of version 2.
const FETCH_NUMBERS: usize = 24;
/// As `FETCH_NUMBERS`, for ShareAcknowledge.
const ACKNOWLEDGE_NUMBERS: usize = 4;

/// A ShareFetch with the fields that the codec crate lacks.
pub(super) struct Fetch {
    pub request: ShareFetchRequest,
    /// `max_records` is exact; without this, batches are delivered whole.
    pub record_limit: bool,
    pub renews: bool,
}

/// A ShareAcknowledge with the fields that the codec crate lacks.
pub(super) struct Acknowledge {
    pub request: ShareAcknowledgeRequest,
    pub renews: bool,
}

/// A member's acknowledgements by partition, in the order of the request; or the error of a partition.
pub(super) type Statements = Vec<(PartitionKey, Result<Vec<(i64, Said)>, ErrorCode>)>;

/// Reads the acknowledgements of a request; the codec has different types for the two requests.
macro_rules! statements_of {
    ($request:expr, $renews:expr) => {{
        let topics = $request.topics.iter();
        let partitions = topics.flat_map(|topic| topic.partitions.iter().map(|partition| (topic.topic_id, partition)));
        let said = partitions.map(|(topic, partition)| {
            let batches = partition.acknowledgement_batches.iter();
            let batches = batches.map(|batch| (batch.first_offset, batch.last_offset, &batch.acknowledge_types[..]));
            ((topic, partition.partition_index), statements(batches, $renews))
        });
        said.collect()
    }};
}

impl Fetch {
    /// The acknowledgements in the request.
    pub fn statements(&self) -> Statements {
        statements_of!(self.request, self.renews)
    }
}

impl Acknowledge {
    /// The acknowledgements in the request.
    pub fn statements(&self) -> Statements {
        statements_of!(self.request, self.renews)
    }
}

/// Returns one acknowledgement per offset. Ranges must be ordered and must not overlap; a range has one type for all
/// its offsets, or one per offset.
fn statements<'a>(
    batches: impl Iterator<Item = (i64, i64, &'a [i8])>,
    renews: bool,
) -> Result<Vec<(i64, Said)>, ErrorCode> {
    // More records than a group may hold: a false range must not reserve memory.
    const MOST: i64 = 1 << 20;
    let mut statements = Vec::new();
    let mut behind = i64::MIN;
    for (first, last, types) in batches {
        let length = last
            .checked_sub(first)
            .and_then(|distance| distance.checked_add(1))
            .filter(|length| (1..=MOST).contains(length));
        let length = length.and_then(|length| usize::try_from(length).ok()).ok_or(ErrorCode::INVALID_REQUEST)?;
        if first < behind || types.is_empty() || (types.len() > 1 && types.len() != length) {
            return Err(ErrorCode::INVALID_REQUEST);
        }
        behind = last.saturating_add(1);
        for (offset, number) in (first..=last).zip(types.iter().cycle()) {
            match Said::of_type(*number) {
                Some(Said::Renew) if !renews => return Err(ErrorCode::INVALID_REQUEST),
                Some(said) => statements.push((offset, said)),
                None => return Err(ErrorCode::INVALID_REQUEST),
            }
        }
    }
    Ok(statements)
}

/// Returns `None` if the bytes are no such request.
pub(super) fn decode_fetch(body: &Bytes, version: i16) -> Option<Fetch> {
    if version < 2 {
        let request = ShareFetchRequest::decode(&mut body.clone(), CODEC).ok()?;
        return Some(Fetch { request, record_limit: false, renews: false });
    }
    let (cut, mut rest) = cut_out::<2>(body, FETCH_NUMBERS)?;
    let request = ShareFetchRequest::decode(&mut rest, CODEC).ok()?;
    Some(Fetch { request, record_limit: cut[0] == 1, renews: cut[1] != 0 })
}

/// Returns `None` if the bytes are no such request.
pub(super) fn decode_acknowledge(body: &Bytes, version: i16) -> Option<Acknowledge> {
    if version < 2 {
        return Some(Acknowledge {
            request: ShareAcknowledgeRequest::decode(&mut body.clone(), CODEC).ok()?,
            renews: false,
        });
    }
    let (cut, mut rest) = cut_out::<1>(body, ACKNOWLEDGE_NUMBERS)?;
    Some(Acknowledge { request: ShareAcknowledgeRequest::decode(&mut rest, CODEC).ok()?, renews: cut[0] != 0 })
}

/// Appends the response; `lock_ms` is the group's lock duration.
pub(super) fn encode_acknowledged(
    into: &mut BytesMut,
    answer: &ShareAcknowledgeResponse,
    version: i16,
    lock_ms: i32,
) -> Option<()> {
    if version < 2 {
        return answer.encode(into, CODEC).ok();
    }
    let mut body = BytesMut::new();
    answer.encode(&mut body, CODEC).ok()?;
    let body = body.freeze();
    // Throttle time, error code, error message; then the lock duration.
    let at = 6 + compact_length(body.get(6..)?)?;
    into.put_slice(&body[..at]);
    into.put_i32(lock_ms);
    into.put_slice(&body[at..]);
    Some(())
}

/// Removes `N` bytes that follow two compact strings and `numbers` bytes.
fn cut_out<const N: usize>(body: &Bytes, numbers: usize) -> Option<([u8; N], Bytes)> {
    let group = compact_length(body)?;
    let member = compact_length(body.get(group..)?)?;
    let at = group + member + numbers;
    let cut = *body.get(at..)?.first_chunk::<N>()?;
    let mut rest = BytesMut::with_capacity(body.len());
    rest.put_slice(&body[..at]);
    rest.put_slice(&body[at + N..]);
    Some((cut, rest.freeze()))
}

/// Bytes of a compact nullable string: its length plus one as an unsigned varint, then its bytes.
fn compact_length(bytes: &[u8]) -> Option<usize> {
    let mut value = 0_usize;
    for (index, byte) in bytes.iter().enumerate().take(5) {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some(index + 1 + value.saturating_sub(1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_share::share_wire::{
        self as client, Acknowledgement, Acknowledgements, FetchLimits, SessionHeader, SharePartition,
    };
    use std::time::Duration;
    use uuid::Uuid;

    fn said(kind: Acknowledgement) -> Acknowledgements {
        let partition = SharePartition { topic_id: Uuid::from_u128(7), partition: 3 };
        Acknowledgements::from([(partition, [(5, kind), (6, kind)].into())])
    }

    #[test]
    fn requests_of_the_client_are_decoded() {
        let long = "g".repeat(300);
        for group in ["workers", &long] {
            let header = SessionHeader { group, member: "m1", epoch: 7 };
            let limits = FetchLimits { max_wait: Duration::from_millis(100), max_bytes: 65_536, max_records: 5 };
            let body =
                client::encode_fetch(header, limits, &[], &[], &said(Acknowledgement::Accept)).expect("encodable");
            let fetch = decode_fetch(&body, 2).expect("readable");
            assert!(fetch.record_limit && !fetch.renews);
            assert_eq!(fetch.request.group_id.map(|id| id.0.to_string()).as_deref(), Some(group));
            assert_eq!((fetch.request.max_records, fetch.request.topics.len()), (5, 1));
            let body = client::encode_acknowledge(header, &said(Acknowledgement::Renew)).expect("encodable");
            let acknowledge = decode_acknowledge(&body, 2).expect("readable");
            assert!(acknowledge.renews);
            assert_eq!((acknowledge.request.share_session_epoch, acknowledge.request.topics.len()), (7, 1));
        }
    }

    #[test]
    fn client_decodes_the_response() {
        for message in [None, Some("why".into())] {
            let answer = ShareAcknowledgeResponse::default().with_error_code(42).with_error_message(message);
            let mut body = BytesMut::new();
            encode_acknowledged(&mut body, &answer, 2, 15_000).expect("encodable");
            let (read, lock) = client::decode_acknowledge(&body.freeze()).expect("readable");
            assert_eq!((read, lock), (answer, Some(Duration::from_secs(15))));
        }
    }

    #[test]
    fn truncated_requests_are_none() {
        assert!(decode_fetch(&Bytes::from_static(b"\x02g\x02m"), 2).is_none());
        assert!(decode_acknowledge(&Bytes::from_static(b"\xff\xff\xff\xff\xff\xff"), 2).is_none());
        assert!(decode_acknowledge(&Bytes::new(), 1).is_none());
    }

    #[test]
    fn ranges_become_one_acknowledgement_per_offset() {
        let read = |batches: &[(i64, i64, &[i8])]| statements(batches.iter().copied(), false);
        let expected = vec![(1, Said::Accept), (2, Said::Accept), (5, Said::Release), (6, Said::Reject)];
        assert_eq!(read(&[(1, 2, &[1]), (5, 6, &[2, 3])]), Ok(expected));
        assert_eq!(read(&[]), Ok(Vec::new()));
        for wrong in [
            &[(2, 1, &[1][..])][..],
            &[(1, 2, &[1]), (2, 3, &[1])],
            &[(1, 3, &[1, 1])],
            &[(1, 1, &[])],
            &[(1, 1, &[5])],
            &[(1, 1, &[-1])],
            &[(1, 1, &[4])],
            &[(0, i64::MAX, &[1])],
            &[(i64::MIN, i64::MAX, &[1])],
        ] {
            assert_eq!(read(wrong), Err(ErrorCode::INVALID_REQUEST), "{wrong:?}");
        }
        assert_eq!(statements([(1, 1, &[4_i8][..])].into_iter(), true), Ok(vec![(1, Said::Renew)]));
    }
}
