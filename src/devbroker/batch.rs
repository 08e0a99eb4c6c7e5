//! The header of a record batch, message format 2 (<https://kafka.apache.org/documentation/#recordbatch>), as a broker looks at it:
//! checks it, gives it its place in the log, and stamps it.
//!
//! What is in the records is the business of those who read them. Called by `produce`, `log` and `sequences`.

use bytes::{Bytes, BytesMut};
use kafka_protocol::compression::{Decompressor, Snappy};

use crate::kafka::ErrorCode;

/// Bytes up to and including the length field, which counts what follows it.
const LENGTH_END: usize = 12;
/// Bytes before the records.
const HEADER: usize = 61;
/// Where the checksum begins to count.
const CHECKED_FROM: usize = 21;
const MAGIC: u8 = 2;
/// Attribute bits.
const COMPRESSION: i16 = 0b111;
const SNAPPY: i16 = 2;
const LOG_APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;

/// One whole batch whose header and checksum are good.
#[derive(Clone, Debug)]
pub(super) struct Batch(Bytes);

/// The producer's mark on a batch (KIP-98).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub producer_id: i64,
    pub epoch: i16,
    pub first_sequence: i32,
    pub last_sequence: i32,
}

impl Batch {
    /// The one batch of a produce request for one partition.
    ///
    /// # Errors
    /// The code that Kafka answers: [`ErrorCode::INVALID_RECORD`] for none, a cut one, several, or another format; [`ErrorCode::MESSAGE_TOO_LARGE`];
    /// [`ErrorCode::CORRUPT_MESSAGE`].
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
        // An idempotent producer counts its records.
        let uncounted = batch.mark().is_some_and(|mark| mark.first_sequence < 0);
        let special = attributes & (TRANSACTIONAL | CONTROL) != 0;
        if count < 1 || batch.last_delta() != count - 1 || special || uncounted {
            return Err(ErrorCode::INVALID_RECORD);
        }
        Ok(batch)
    }

    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        // Nothing shorter than a header is made a batch, and every field lies in it.
        field.copy_from_slice(&self.0[at..at + N]);
        field
    }

    fn attributes(&self) -> i16 {
        i16::from_be_bytes(self.field(21))
    }

    fn last_delta(&self) -> i32 {
        i32::from_be_bytes(self.field(23))
    }

    /// Whether its records are compressed.
    pub fn is_compressed(&self) -> bool {
        self.attributes() & COMPRESSION != 0
    }

    /// Whether the records' time is that of the broker, which stands in [`Self::max_timestamp`].
    pub fn has_broker_time(&self) -> bool {
        self.attributes() & LOG_APPEND_TIME != 0
    }

    /// The largest time of its records, in milliseconds since 1970.
    pub fn max_timestamp(&self) -> i64 {
        i64::from_be_bytes(self.field(35))
    }

    /// The same records without compression.
    ///
    /// # Errors
    /// [`ErrorCode::UNSUPPORTED_COMPRESSION_TYPE`] for any other than snappy; [`ErrorCode::CORRUPT_MESSAGE`].
    pub fn uncompressed(&self) -> Result<Self, ErrorCode> {
        if self.attributes() & COMPRESSION != SNAPPY {
            return Err(ErrorCode::UNSUPPORTED_COMPRESSION_TYPE);
        }
        let mut compressed = self.0.slice(HEADER..);
        let records = Snappy::decompress(&mut compressed, |records| Ok(records.split_off(0)));
        let records = records.map_err(|_| ErrorCode::CORRUPT_MESSAGE)?;
        let mut bytes = BytesMut::from(&self.0[..HEADER]);
        bytes.extend_from_slice(&records);
        let length = i32::try_from(bytes.len() - LENGTH_END).map_err(|_| ErrorCode::MESSAGE_TOO_LARGE)?;
        bytes[8..LENGTH_END].copy_from_slice(&length.to_be_bytes());
        bytes[21..23].copy_from_slice(&(self.attributes() & !COMPRESSION).to_be_bytes());
        Ok(Self::sealed(bytes))
    }

    /// With the checksum that its bytes have now.
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

    /// The mark of its producer, if that is idempotent.
    pub fn mark(&self) -> Option<Mark> {
        let producer_id = i64::from_be_bytes(self.field(43));
        let first = i32::from_be_bytes(self.field(53));
        (producer_id >= 0).then(|| Mark {
            producer_id,
            epoch: i16::from_be_bytes(self.field(51)),
            first_sequence: first,
            last_sequence: sequence_after(first, self.last_delta()),
        })
    }

    /// The bytes as they stand in the log.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The batch at its place in the log, in memory of its own. `now`, in milliseconds since 1970, replaces the records' own time.
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

/// The sequence number so many records later; 0 follows the largest.
pub(super) fn sequence_after(sequence: i32, records: i32) -> i32 {
    let sum = i64::from(sequence) + i64::from(records);
    i32::try_from(sum % (i64::from(i32::MAX) + 1)).unwrap_or(0)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use kafka_protocol::compression::Compressor;

    use super::*;
    use crate::kafka::records::{self, BatchIdentity, RecordContent};

    /// A batch of so many records as a producer sends it, with a time of its own.
    pub fn batch_of(count: usize, producer_id: i64, base_sequence: i32, at_ms: u64) -> Bytes {
        let value = Bytes::from_static(b"value");
        let contents = (0..count).map(|_| RecordContent { key: None, value: Some(&value), headers: &[] });
        let identity = BatchIdentity { producer_id, producer_epoch: 0, base_sequence };
        records::encode(contents, identity, UNIX_EPOCH + Duration::from_millis(at_ms)).expect("small")
    }

    #[test]
    fn a_batch_gets_its_place_and_its_time() {
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
    fn what_is_no_batch_is_refused_as_kafka_does() {
        let good = batch_of(1, -1, -1, 0);
        let refused = |bytes: &[u8], largest| Batch::of_request(&Bytes::copy_from_slice(bytes), largest).err();
        assert_eq!(refused(&good, good.len()), None);
        assert_eq!(refused(&good, good.len() - 1), Some(ErrorCode::MESSAGE_TOO_LARGE));
        assert_eq!(refused(&[], 1000), Some(ErrorCode::INVALID_RECORD));
        assert_eq!(refused(&[&good[..], &good[..]].concat(), 1000), Some(ErrorCode::INVALID_RECORD));
        assert_eq!(refused(&good[..good.len() - 1], 1000), Some(ErrorCode::INVALID_RECORD));
        assert_eq!(
            refused(&batch_of(1, 7, -1, 0), 1000),
            Some(ErrorCode::INVALID_RECORD),
            "a producer without a count"
        );
        for (at, code) in [(16, ErrorCode::INVALID_RECORD), (30, ErrorCode::CORRUPT_MESSAGE)] {
            let mut bad = good.to_vec();
            bad[at] ^= 1;
            assert_eq!(refused(&bad, 1000), Some(code), "byte {at}");
        }
    }

    #[test]
    fn a_compressed_batch_can_be_unpacked() {
        let plain = Batch::of_request(&batch_of(3, 7, 5, 1000), 1000).expect("good");
        let mut packed = BytesMut::from(&plain.0[..HEADER]);
        Snappy::compress(&mut packed, |into| {
            into.extend_from_slice(&plain.0[HEADER..]);
            Ok(())
        })
        .expect("compressible");
        let length = i32::try_from(packed.len() - LENGTH_END).expect("small");
        packed[8..LENGTH_END].copy_from_slice(&length.to_be_bytes());
        packed[21..23].copy_from_slice(&SNAPPY.to_be_bytes());
        let mut packed = Batch::sealed(packed);
        assert!(packed.is_compressed());
        assert_eq!(packed.uncompressed().expect("snappy").0, plain.0);
        let cut = packed.0.slice(..packed.0.len() - 5);
        packed.0 = cut;
        assert_eq!(packed.uncompressed().err(), Some(ErrorCode::CORRUPT_MESSAGE));
        let mut gzip = BytesMut::from(&plain.0[..]);
        gzip[22] = 1;
        let gzip = Batch::sealed(gzip);
        assert_eq!(gzip.uncompressed().err(), Some(ErrorCode::UNSUPPORTED_COMPRESSION_TYPE));
    }

    #[test]
    fn sequences_wrap() {
        assert_eq!(sequence_after(i32::MAX - 1, 1), i32::MAX);
        assert_eq!(sequence_after(i32::MAX, 1), 0);
        assert_eq!(sequence_after(i32::MAX, 3), 2);
    }
}
