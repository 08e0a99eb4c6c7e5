//! Record batches of message format 2 (<https://kafka.apache.org/documentation/#recordbatch>) as a broker handles them:
//! checks the header, sets offset and time.
//!
//! Reads the records only to compress or unpack them. Called by `produce`, `log`, `transactions` and `sequences`.

use bytes::{BufMut, Bytes, BytesMut};

use kafka_share::ErrorCode;
use kafka_share::compression::{CODEC_BITS, Codec, UnpackError};

/// Bytes up to and including the length field, which counts the bytes after it.
const LENGTH_END: usize = 12;
/// Bytes before the records.
const HEADER: usize = 61;
/// First byte that the checksum covers.
const CHECKED_FROM: usize = 21;
const MAGIC: u8 = 2;
/// Attribute bits.
const LOG_APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;

/// One whole batch with a valid header and checksum.
#[derive(Clone, Debug)]
pub(super) struct Batch(Bytes);

/// A producer's identification of a batch (KIP-98).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub producer_id: i64,
    pub epoch: i16,
    pub first_sequence: i32,
    pub last_sequence: i32,
}

impl Batch {
    /// Takes the only batch of a produce request for one partition.
    ///
    /// # Errors
    /// Kafka's codes: [`ErrorCode::INVALID_RECORD`] for no batch, a cut one, several, or another format;
    /// [`ErrorCode::MESSAGE_TOO_LARGE`]; [`ErrorCode::CORRUPT_MESSAGE`].
    pub fn of_request(bytes: &Bytes, largest: usize) -> Result<Self, ErrorCode> {
        let length =
            bytes.get(8..LENGTH_END).and_then(|field| field.first_chunk::<4>()).map(|at| i32::from_be_bytes(*at));
        let whole = length.and_then(|length| usize::try_from(length).ok()).map(|length| length + LENGTH_END);
        let Some(whole) = whole.filter(|whole| (HEADER..=bytes.len()).contains(whole)) else {
            return Err(ErrorCode::INVALID_RECORD);
        };
        if whole < bytes.len() || bytes[16] != MAGIC {
            return Err(ErrorCode::INVALID_RECORD);
        }
        if whole > largest {
            return Err(ErrorCode::MESSAGE_TOO_LARGE);
        }
        let batch = Self(bytes.clone());
        if crc32c::crc32c(&batch.0[CHECKED_FROM..]) != u32::from_be_bytes(batch.field(17)) {
            return Err(ErrorCode::CORRUPT_MESSAGE);
        }
        let attributes = batch.attributes();
        let count = i32::from_be_bytes(batch.field(57));
        // An idempotent producer numbers its records.
        let uncounted = batch.mark().is_some_and(|mark| mark.first_sequence < 0);
        // Only the broker writes markers.
        let control = attributes & CONTROL != 0;
        if count < 1 || batch.last_delta() != count - 1 || control || uncounted {
            return Err(ErrorCode::INVALID_RECORD);
        }
        Ok(batch)
    }

    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        // A batch is at least as long as a header, and every field is inside it.
        field.copy_from_slice(&self.0[at..at + N]);
        field
    }

    fn attributes(&self) -> i16 {
        i16::from_be_bytes(self.field(21))
    }

    fn last_delta(&self) -> i32 {
        i32::from_be_bytes(self.field(23))
    }

    /// Makes the marker that ends a transaction: one control record, version 0, coordinator epoch 0.
    pub fn marker(producer_id: i64, epoch: i16, committed: bool, now_ms: i64) -> Self {
        // Length, attributes, time and offset deltas, key (version, type), value (version, epoch of the coordinator),
        // no headers.
        let record = [32, 0, 0, 0, 8, 0, 0, 0, u8::from(committed), 12, 0, 0, 0, 0, 0, 0, 0];
        let mut bytes = BytesMut::with_capacity(HEADER + record.len());
        bytes.put_i64(0);
        // Bytes after this field.
        bytes.put_i32(66);
        bytes.put_i32(0);
        bytes.put_u8(MAGIC);
        bytes.put_u32(0);
        bytes.put_i16(TRANSACTIONAL | CONTROL);
        bytes.put_i32(0);
        bytes.put_i64(now_ms);
        bytes.put_i64(now_ms);
        bytes.put_i64(producer_id);
        bytes.put_i16(epoch);
        bytes.put_i32(-1);
        bytes.put_i32(1);
        bytes.put_slice(&record);
        Self::sealed(bytes)
    }

    /// Whether it belongs to a transaction; a marker does, too.
    pub fn is_transactional(&self) -> bool {
        self.attributes() & TRANSACTIONAL != 0
    }

    /// Whether it is a marker.
    pub fn is_control(&self) -> bool {
        self.attributes() & CONTROL != 0
    }

    /// Its producer's id; -1 for none.
    pub fn producer_id(&self) -> i64 {
        i64::from_be_bytes(self.field(43))
    }

    /// Whether the records have the broker's time, which [`Self::max_timestamp`] returns.
    pub fn has_broker_time(&self) -> bool {
        self.attributes() & LOG_APPEND_TIME != 0
    }

    /// The largest time of its records, in milliseconds since 1970.
    pub fn max_timestamp(&self) -> i64 {
        i64::from_be_bytes(self.field(35))
    }

    /// Returns the records as a topic with this `compression.type` stores them. Unpacks compressed records for every
    /// type, to at most `most` bytes: Kafka also reads them.
    ///
    /// # Errors
    /// [`ErrorCode::UNKNOWN_SERVER_ERROR`] for an unknown codec and for bytes that the codec cannot read, as in Kafka;
    /// [`ErrorCode::MESSAGE_TOO_LARGE`].
    pub fn compressed_as(&self, compression_type: &str, most: usize) -> Result<Self, ErrorCode> {
        let codec = Codec::of_attributes(self.attributes()).map_err(|_| ErrorCode::UNKNOWN_SERVER_ERROR)?;
        let plain = match codec {
            None => self.0.slice(HEADER..),
            Some(codec) => codec.unpack(&self.0[HEADER..], most).map_err(|error| match error {
                UnpackError::Malformed(_) => ErrorCode::UNKNOWN_SERVER_ERROR,
                UnpackError::TooLong(_) => ErrorCode::MESSAGE_TOO_LARGE,
            })?,
        };
        let wanted = match compression_type {
            "producer" => codec,
            name => Codec::ALL.into_iter().find(|codec| codec.name() == name),
        };
        if wanted == codec {
            return Ok(self.clone());
        }
        let packed = wanted.map(|codec| codec.pack(&plain)).transpose().map_err(|_| ErrorCode::UNKNOWN_SERVER_ERROR)?;
        let records = packed.map_or(plain, Bytes::from);
        let mut bytes = BytesMut::from(&self.0[..HEADER]);
        bytes.extend_from_slice(&records);
        let length = i32::try_from(bytes.len() - LENGTH_END).map_err(|_| ErrorCode::MESSAGE_TOO_LARGE)?;
        bytes[8..LENGTH_END].copy_from_slice(&length.to_be_bytes());
        let attributes = self.attributes() & !CODEC_BITS | wanted.map_or(0, Codec::bits);
        bytes[21..23].copy_from_slice(&attributes.to_be_bytes());
        Ok(Self::sealed(bytes))
    }

    /// Makes a batch of these bytes with a new checksum.
    fn sealed(mut bytes: BytesMut) -> Self {
        let checksum = crc32c::crc32c(&bytes[CHECKED_FROM..]);
        bytes[CHECKED_FROM - 4..CHECKED_FROM].copy_from_slice(&checksum.to_be_bytes());
        Self(bytes.freeze())
    }

    /// The offset of its first record.
    pub fn base_offset(&self) -> i64 {
        i64::from_be_bytes(self.field(0))
    }

    /// The offset of its last record.
    pub fn last_offset(&self) -> i64 {
        self.base_offset() + i64::from(self.last_delta())
    }

    /// The producer's identification, if the producer is idempotent.
    pub fn mark(&self) -> Option<Mark> {
        let producer_id = self.producer_id();
        let first = i32::from_be_bytes(self.field(53));
        (producer_id >= 0).then(|| Mark {
            producer_id,
            epoch: i16::from_be_bytes(self.field(51)),
            first_sequence: first,
            last_sequence: sequence_after(first, self.last_delta()),
        })
    }

    /// The bytes as the log stores them.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Copies the batch with its offset and leader epoch. `now`, in milliseconds since 1970, replaces the records' own
    /// time.
    pub fn placed(&self, base_offset: i64, leader_epoch: i32, now: Option<i64>) -> Self {
        let mut bytes = BytesMut::from(&self.0[..]);
        bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
        bytes[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
        if let Some(now) = now {
            let attributes = self.attributes() | LOG_APPEND_TIME;
            bytes[21..23].copy_from_slice(&attributes.to_be_bytes());
            bytes[35..43].copy_from_slice(&now.to_be_bytes());
            return Self::sealed(bytes);
        }
        Self(bytes.freeze())
    }
}

/// Returns the sequence number this many records later; 0 follows the largest.
pub(super) fn sequence_after(sequence: i32, records: i32) -> i32 {
    let sum = i64::from(sequence) + i64::from(records);
    i32::try_from(sum % (i64::from(i32::MAX) + 1)).unwrap_or(0)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use kafka_share::records::{self, BatchIdentity, RecordContent};

    /// Makes a batch of this many records with timestamp `at_ms`, as a producer sends it.
    pub fn batch_of(count: usize, producer_id: i64, base_sequence: i32, at_ms: u64) -> Bytes {
        let value = Bytes::from_static(b"value");
        let contents = (0..count).map(|_| RecordContent { key: None, value: Some(&value), headers: &[] });
        let identity = BatchIdentity { producer_id, producer_epoch: 0, base_sequence };
        records::encode(contents, identity, UNIX_EPOCH + Duration::from_millis(at_ms)).expect("small")
    }

    #[test]
    fn placed_batch_has_its_offset_and_time() {
        let batch = Batch::of_request(&batch_of(3, 7, 5, 1000), 1000).expect("good");
        assert_eq!(batch.mark(), Some(Mark { producer_id: 7, epoch: 0, first_sequence: 5, last_sequence: 7 }));
        let placed = batch.placed(40, 2, Some(9000));
        assert_eq!((placed.base_offset(), placed.last_offset(), placed.max_timestamp()), (40, 42, 9000));
        let decoded = records::decode(placed.bytes(), 41);
        assert_eq!(decoded.unreadable, []);
        let read: Vec<_> = decoded.records.iter().map(|record| (record.offset, record.timestamp)).collect();
        assert_eq!(read, [41, 42].map(|offset| (offset, UNIX_EPOCH + Duration::from_secs(9))));
        let own_time = batch.placed(40, 2, None);
        assert_eq!(own_time.max_timestamp(), 1000);
        assert!(records::decode(own_time.bytes(), 40).unreadable.is_empty(), "the checksum does not cover the offset");
    }

    #[test]
    fn invalid_batches_are_refused_with_kafkas_codes() {
        let good = batch_of(1, -1, -1, 0);
        let refused = |bytes: &[u8]| Batch::of_request(&Bytes::copy_from_slice(bytes), good.len()).err();
        assert_eq!(refused(&good), None, "as long as allowed");
        assert_eq!(Batch::of_request(&good, good.len() - 1).err(), Some(ErrorCode::MESSAGE_TOO_LARGE));
        let mut other_format = good.to_vec();
        other_format[16] ^= 1;
        let no_count = batch_of(1, 7, -1, 0);
        for bad in [&[][..], &good[..good.len() - 1], &other_format, &no_count] {
            assert_eq!(refused(bad), Some(ErrorCode::INVALID_RECORD), "{bad:?}");
        }
        let packed = Batch(batch_of(30, -1, -1, 0)).compressed_as("gzip", 0).expect("packed");
        assert_eq!(packed.compressed_as("producer", 10).err(), Some(ErrorCode::MESSAGE_TOO_LARGE));
    }

    /// The bytes that Apache Kafka 4.4.0 wrote.
    #[test]
    fn marker_is_encoded_as_the_known_bytes() {
        let known: &[u8] = &[
            0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 66, 0, 0, 0, 0, 2, 130, 33, 134, 170, 0, 48, 0, 0, 0, 0, 0, 0, 1, 162, 35,
            137, 43, 2, 0, 0, 1, 162, 35, 137, 43, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 255, 255, 255, 255, 0, 0, 0, 1, 32,
            0, 0, 0, 8, 0, 0, 0, 1, 12, 0, 0, 0, 0, 0, 0, 0,
        ];
        let marker = Batch::marker(0, 2, true, i64::from_be_bytes([0, 0, 1, 162, 35, 137, 43, 2]));
        assert_eq!(&marker.placed(5, 0, None).0[..], known);
        assert_eq!(
            Batch::of_request(&marker.0, 1000).err(),
            Some(ErrorCode::INVALID_RECORD),
            "not a producer's to write"
        );
    }

    #[test]
    fn sequence_numbers_wrap_to_zero() {
        assert_eq!(sequence_after(i32::MAX - 1, 1), i32::MAX);
        assert_eq!(sequence_after(i32::MAX, 1), 0);
        assert_eq!(sequence_after(i32::MAX, 3), 2);
    }
}
