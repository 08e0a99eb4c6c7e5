//! Decodes responses without trusting the counts in them.
//!
//! The codec crate reserves memory for as many items as an array's length field says, before it reads the first one. A
//! false length of 2^32 ends the process in its allocator. Here a length beyond the remaining bytes is an error. The
//! codec has no limit of its own, so a buffer checks every number that the codec reads. Called by
//! [`Connection::decode`](super::connection::Connection::decode) and by modules that decode responses themselves.

use std::ops::Range;

use bytes::{Buf, Bytes, TryGetError};
use kafka_protocol::protocol::Decodable;
use kafka_protocol::protocol::buf::ByteBuf;

/// A varint may exceed the remaining bytes by this much: numbers of tagged fields are varints, too.
const VARINT_ROOM: usize = 64;
/// A 32-bit number may exceed the remaining bytes by this much. Numbers that are no lengths (partitions, throttle times
/// in milliseconds, the session id 0) stay below it. A million items reserve about 100 MB of address space, no memory.
const NUMBER_ROOM: usize = 1 << 20;

/// Decodes a response. `flexible`: its version has compact lengths (KIP-482).
///
/// # Errors
/// The codec's description of the fault.
pub(super) fn decode<T: Decodable>(body: &mut Bytes, version: i16, flexible: bool) -> Result<T, String> {
    let mut bounded = Bounded { rest: body.clone(), flexible, varint: 0, bits: 0 };
    let decoded = T::decode(&mut bounded, version).map_err(|error| error.to_string())?;
    *body = bounded.rest;
    Ok(decoded)
}

/// The bytes of a response, checked while the codec reads them.
struct Bounded {
    rest: Bytes,
    flexible: bool,
    /// The varint whose bytes are being read, and how many of its bits have been read.
    varint: u64,
    bits: u32,
}

impl Bounded {
    fn check(&self, length: u64, room: usize) -> Result<(), TryGetError> {
        let available = self.rest.remaining();
        let requested = usize::try_from(length).unwrap_or(usize::MAX);
        if requested > available.saturating_add(room) { Err(TryGetError { requested, available }) } else { Ok(()) }
    }
}

impl Buf for Bounded {
    fn remaining(&self) -> usize {
        self.rest.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.rest.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.rest.advance(count);
    }

    fn try_get_u8(&mut self) -> Result<u8, TryGetError> {
        let byte = self.rest.try_get_u8()?;
        if self.flexible {
            // In responses, only a varint that continues has a byte with the highest bit set.
            self.varint |= u64::from(byte & 0x7f) << self.bits;
            self.bits += 7;
            if byte & 0x80 == 0 || self.bits > 28 {
                let length = std::mem::take(&mut self.varint);
                self.bits = 0;
                self.check(length, VARINT_ROOM)?;
            }
        }
        Ok(byte)
    }

    fn try_get_i32(&mut self) -> Result<i32, TryGetError> {
        let number = self.rest.try_get_i32()?;
        if !self.flexible {
            self.check(u64::try_from(number).unwrap_or(0), NUMBER_ROOM)?;
        }
        Ok(number)
    }
}

impl ByteBuf for Bounded {
    fn peek_bytes(&mut self, range: Range<usize>) -> Bytes {
        self.rest.peek_bytes(range)
    }

    fn get_bytes(&mut self, size: usize) -> Bytes {
        self.rest.get_bytes(size)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::messages::api_versions_response::ApiVersion;
    use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
    use kafka_protocol::messages::metadata_response::{MetadataResponsePartition, MetadataResponseTopic};
    use kafka_protocol::messages::{ApiVersionsResponse, FetchResponse, MetadataResponse, ProduceResponse};
    use kafka_protocol::protocol::Encodable;

    use super::*;

    fn bytes_of(answer: &impl Encodable, version: i16) -> Bytes {
        let mut bytes = BytesMut::new();
        answer.encode(&mut bytes, version).expect("encodable");
        bytes.freeze()
    }

    #[test]
    fn false_count_is_an_error_and_does_not_abort_the_process() {
        // Error code 0, then 2^32 - 2 items.
        let mut body = Bytes::from_static(b"\0\0\xff\xff\xff\xff\x0f\0\0\0\0");
        let error = decode::<ApiVersionsResponse>(&mut body, 3, true).expect_err("too many");
        assert!(!error.is_empty());
        // Throttle time, error, session, then 2^31 - 1 topics.
        let mut body = Bytes::from_static(b"\0\0\0\0\0\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\0");
        assert!(decode::<FetchResponse>(&mut body, 11, false).is_err());
        let mut body = Bytes::from_static(b"\x7f\xff\xff\xff\0\0\0\0");
        assert!(decode::<ProduceResponse>(&mut body, 8, false).is_err());
    }

    #[test]
    fn truncated_response_is_an_error_at_every_length() {
        let versions = ApiVersion::default().with_api_key(3).with_max_version(12);
        let body = bytes_of(&ApiVersionsResponse::default().with_api_keys(vec![versions; 9]), 3);
        for length in 0..body.len() {
            assert!(decode::<ApiVersionsResponse>(&mut body.slice(..length), 3, true).is_err(), "{length}");
        }
    }

    #[test]
    fn bounds_do_not_change_responses_with_large_numbers_and_many_items() {
        let partition =
            |index| MetadataResponsePartition::default().with_partition_index(index).with_leader_epoch(i32::MAX);
        let topic = MetadataResponseTopic::default().with_partitions((0..20_000).map(partition).collect());
        let answer = MetadataResponse::default().with_throttle_time_ms(i32::MAX).with_topics(vec![topic]);
        assert_eq!(decode(&mut bytes_of(&answer, 12), 12, true).as_ref(), Ok(&answer));
        let partition =
            PartitionData::default().with_partition_index(100_000).with_records(Some(Bytes::from_static(b"x")));
        let topic = FetchableTopicResponse::default().with_partitions(vec![partition]);
        let answer = FetchResponse::default().with_throttle_time_ms(600_000).with_responses(vec![topic]);
        assert_eq!(decode(&mut bytes_of(&answer, 11), 11, false).as_ref(), Ok(&answer));
    }
}
