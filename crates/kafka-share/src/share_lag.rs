//! The wire form of the lag of share groups (DescribeShareGroupOffsets v1, KIP-1226).
//!
//! The codec crate knows version 0. Version 1 adds one field to each partition of the response; this module removes and
//! inserts it. The start offset alone does not show how many records are left: records after it may be finished, too.
//! Brokers may also keep an old start offset until another record is finished. Called by [`super::admin`], and by the
//! embedded broker for its responses.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, DescribeShareGroupOffsetsResponse};
use kafka_protocol::protocol::{Decodable, Encodable};

/// The version with the lag.
pub const WIRE_VERSION: i16 = 1;
/// Api key of DescribeShareGroupOffsets.
pub const DESCRIBE_SHARE_GROUP_OFFSETS: i16 = ApiKey::DescribeShareGroupOffsets as i16;
/// The version that the codec crate decodes and encodes.
const CODEC_VERSION: i16 = 0;
/// Bytes of a partition before its lag: index, start offset, leader epoch.
const BEFORE_LAG: usize = 16;
const LAG: usize = 8;

/// Decodes the body of a version 1 response. The lags come in the order of the partitions; -1: unknown to the broker.
///
/// # Errors
/// The fault, if the bytes are no such response.
pub fn decode(body: &Bytes) -> Result<(DescribeShareGroupOffsetsResponse, Vec<i64>), String> {
    let mut lags = Vec::new();
    let walk = Walk { rest: body.clone(), copy: BytesMut::with_capacity(body.len()) };
    let partition = &mut |walk: &mut Walk| {
        walk.pass(BEFORE_LAG)?;
        lags.push(walk.take(LAG)?.get_i64());
        Some(())
    };
    let mut version_0 = walk.answer(partition).ok_or("answer to DescribeShareGroupOffsets: cut")?;
    let response = DescribeShareGroupOffsetsResponse::decode(&mut version_0, CODEC_VERSION)
        .map_err(|error| format!("answer to DescribeShareGroupOffsets: {error}"))?;
    Ok((response, lags))
}

/// Encodes a version 1 response; `None` if there are fewer lags than partitions, or it cannot be encoded.
pub fn encode(response: &DescribeShareGroupOffsetsResponse, lags: &[i64]) -> Option<Bytes> {
    let mut version_0 = BytesMut::new();
    response.encode(&mut version_0, CODEC_VERSION).ok()?;
    let mut lags = lags.iter();
    let walk = Walk { rest: version_0.freeze(), copy: BytesMut::new() };
    let partition = &mut |walk: &mut Walk| {
        walk.pass(BEFORE_LAG)?;
        walk.copy.put_i64(*lags.next()?);
        Some(())
    };
    walk.answer(partition)
}

/// Walks through a response and copies it; the caller's closure handles each partition.
struct Walk {
    rest: Bytes,
    copy: BytesMut,
}

impl Walk {
    fn answer(mut self, partition: &mut dyn FnMut(&mut Self) -> Option<()>) -> Option<Bytes> {
        // Throttle time.
        self.pass(4)?;
        self.each(&mut |walk| {
            walk.string()?;
            walk.each(&mut |walk| {
                walk.string()?;
                // The topic's id.
                walk.pass(16)?;
                walk.each(&mut |walk| {
                    partition(walk)?;
                    walk.error()
                })?;
                walk.tags()
            })?;
            walk.error()
        })?;
        self.tags()?;
        self.rest.is_empty().then(|| self.copy.freeze())
    }

    /// Walks through a compact array.
    fn each(&mut self, item: &mut dyn FnMut(&mut Self) -> Option<()>) -> Option<()> {
        for _ in 1..self.varint()? {
            item(self)?;
        }
        Some(())
    }

    /// Passes error code, error message and tags: the end of a group and of a partition.
    fn error(&mut self) -> Option<()> {
        self.pass(2)?;
        self.string()?;
        self.tags()
    }

    /// Passes a compact string: its length plus one, then its bytes; 0 means null.
    fn string(&mut self) -> Option<()> {
        let length = self.varint()?.saturating_sub(1);
        self.pass(length)
    }

    fn tags(&mut self) -> Option<()> {
        for _ in 0..self.varint()? {
            self.varint()?;
            let length = self.varint()?;
            self.pass(length)?;
        }
        Some(())
    }

    fn varint(&mut self) -> Option<usize> {
        let mut value = 0_usize;
        for index in 0..5 {
            let byte = self.take(1)?.get_u8();
            self.copy.put_u8(byte);
            value |= usize::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn pass(&mut self, length: usize) -> Option<()> {
        let bytes = self.take(length)?;
        self.copy.put_slice(&bytes);
        Some(())
    }

    fn take(&mut self, length: usize) -> Option<Bytes> {
        (self.rest.len() >= length).then(|| self.rest.split_to(length))
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::GroupId;
    use kafka_protocol::messages::describe_share_group_offsets_response::{
        DescribeShareGroupOffsetsResponseGroup as Group, DescribeShareGroupOffsetsResponsePartition as Partition,
        DescribeShareGroupOffsetsResponseTopic as Topic,
    };
    use kafka_protocol::protocol::StrBytes;

    use super::super::cluster::topic_name;
    use super::*;

    fn answer() -> DescribeShareGroupOffsetsResponse {
        let partition = |index, start| Partition::default().with_partition_index(index).with_start_offset(start);
        let failed = partition(2, -1).with_error_code(3).with_error_message(Some(StrBytes::from_static_str("no")));
        let topic =
            |name: &str, partitions| Topic::default().with_topic_name(topic_name(name)).with_partitions(partitions);
        let topics = vec![topic("tasks", vec![partition(0, 4505), failed]), topic("others", vec![partition(1, 7)])];
        let group = |name: &'static str, topics| {
            Group::default().with_group_id(GroupId(StrBytes::from_static_str(name))).with_topics(topics)
        };
        DescribeShareGroupOffsetsResponse::default()
            .with_groups(vec![group("workers", topics), group("nobody", Vec::new()).with_error_code(69)])
    }

    #[test]
    fn lags_survive_a_round_trip() {
        let body = encode(&answer(), &[0, -1, 812]).expect("as many as partitions");
        assert_eq!(decode(&body), Ok((answer(), vec![0, -1, 812])));
        assert_eq!(encode(&answer(), &[0, -1]), None);
    }

    /// Sent by Apache Kafka 4.4.0: every record is finished, and the start offset is old.
    #[test]
    fn response_of_apache_kafka_is_decoded() {
        let body = Bytes::from_static(
            b"\0\0\0\0\x02\x08workers\x02\x06tasks\xb6\xbc\xea\xbc2\xd0J\x0e\x83\x83\x83\xe5\xdc\xa4\x90L\x02\
              \0\0\0\0\0\0\0\0\0\0\x11\x99\0\0\0\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        );
        let (response, lags) = decode(&body).expect("an answer");
        assert_eq!((response.groups[0].topics[0].partitions[0].start_offset, lags), (4505, vec![0]));
    }

    #[test]
    fn truncated_response_is_an_error() {
        let body = encode(&answer(), &[0, -1, 812]).expect("as many as partitions");
        for length in 0..body.len() {
            assert!(decode(&body.slice(..length)).is_err(), "{length} of {} bytes", body.len());
        }
    }
}
