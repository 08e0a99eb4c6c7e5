//! Record batches, message format 2 (<https://kafka.apache.org/documentation/#recordbatch>): out of answers and into requests.
//!
//! Our own, beside the codec's: that one fails on the cut batch at the end of most fetches, gives the sender's time where the
//! topic keeps the broker's, loses a whole batch for one header that is not UTF-8, and one of two headers of a name; a record
//! that anybody may have written must not do that, and a dead letter keeps all it came with. Nothing is compressed; our topics are
//! created with `compression.type=uncompressed`, so that most brokers hand out no compressed batch either. Called by producer, reader
//! and share consumer.

use std::borrow::Cow;
use std::num::TryFromIntError;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::compression::Codec;

/// One record as it stands in the log. Its bytes share the memory of the whole answer; what is kept for long is better copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Position in its partition.
    pub offset: i64,
    /// The broker's time where the topic says `LogAppendTime`, else the sender's.
    pub timestamp: SystemTime,
    /// Key, if it has one.
    pub key: Option<Bytes>,
    /// Value, if it has one.
    pub value: Option<Bytes>,
    /// Headers in their order; names may repeat.
    pub headers: Vec<(String, Option<Bytes>)>,
}

/// Offsets that the log has and that cannot be read: whoever waits for them must not wait for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The first offset concerned.
    pub first: i64,
    /// The last offset concerned.
    pub last: i64,
    /// Why.
    pub reason: String,
}

/// The whole batches out of one answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Records from the wanted offset on, without control records.
    pub records: Vec<Record>,
    /// What could not be read, from the wanted offset on.
    pub unreadable: Vec<Unreadable>,
    /// Where the next fetch begins: after the last batch that was taken; the wanted offset when there was none.
    pub next_offset: i64,
    /// Bytes of the records that were compressed, after unpacking.
    unpacked: usize,
}

/// The longest records of one batch that are unpacked, in bytes: 16 times the largest batch that a broker takes by default
/// (`message.max.bytes`). Clients fill a batch with 1 MB at most before they compress it; a worker in Kubernetes has 128 MiB.
pub const MOST_UNPACKED: usize = 16 << 20;

/// Decodes all whole batches of `bytes`; a cut batch at the end is left out, and so is all from the first compressed batch on that follows
/// [`MOST_UNPACKED`] unpacked bytes. Records below `from_offset` are dropped: a broker answers with whole batches, however little of one was
/// asked for.
pub fn decode(bytes: &Bytes, from_offset: i64) -> Decoded {
    let mut decoded = Decoded { next_offset: from_offset, ..Decoded::default() };
    for batch in batches(bytes) {
        if decoded.unpacked >= MOST_UNPACKED && Codec::of_attributes(batch.attributes()) != Ok(None) {
            break;
        }
        batch.records(from_offset, &mut decoded);
        decoded.next_offset = decoded.next_offset.max(batch.last_offset().saturating_add(1));
    }
    decoded
}

/// The producer's mark on a batch: a resent batch carries the same one, so it tells whether a batch is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchIdentity {
    /// Producer id, -1 for none.
    pub producer_id: i64,
    /// Epoch of the producer id.
    pub producer_epoch: i16,
    /// Sequence number of the batch's first record.
    pub base_sequence: i32,
}

/// One whole batch, not decoded yet.
#[derive(Clone, Debug)]
pub struct Batch {
    /// From the base offset to the end of the records.
    bytes: Bytes,
}

/// Bytes up to and including the batch length, which counts what follows it.
const LENGTH_END: usize = 12;
/// Bytes before the records.
const HEADER: usize = 61;
/// Where the checksum begins to count.
const CHECKED_FROM: usize = 21;

/// Splits an answer by the batches' own lengths; stops at the first that is cut.
pub fn batches(bytes: &Bytes) -> impl Iterator<Item = Batch> {
    let mut rest = bytes.clone();
    std::iter::from_fn(move || {
        let length = rest.get(8..LENGTH_END)?.first_chunk::<4>().map(|field| i32::from_be_bytes(*field))?;
        let whole = usize::try_from(length).ok()?.checked_add(LENGTH_END)?;
        (HEADER..=rest.len()).contains(&whole).then(|| Batch { bytes: rest.split_to(whole) })
    })
}

impl Batch {
    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        // `batches` yields nothing shorter than a header, and every field lies in it.
        field.copy_from_slice(&self.bytes[at..at + N]);
        field
    }

    /// Offset of the first record.
    pub fn base_offset(&self) -> i64 {
        i64::from_be_bytes(self.field(0))
    }

    /// Offset of the last record.
    pub fn last_offset(&self) -> i64 {
        self.base_offset().saturating_add(i32::from_be_bytes(self.field(23)).into())
    }

    /// The producer's mark.
    pub fn identity(&self) -> BatchIdentity {
        BatchIdentity {
            producer_id: i64::from_be_bytes(self.field(43)),
            producer_epoch: i16::from_be_bytes(self.field(51)),
            base_sequence: i32::from_be_bytes(self.field(53)),
        }
    }

    fn attributes(&self) -> i16 {
        i16::from_be_bytes(self.field(21))
    }

    /// Why the records cannot be read, if so.
    fn fault(&self) -> Option<String> {
        let magic = self.bytes[16];
        if magic != 2 {
            return Some(format!("message format {magic}"));
        }
        if crc32c::crc32c(&self.bytes[CHECKED_FROM..]) != u32::from_be_bytes(self.field(17)) {
            return Some("checksum does not match".into());
        }
        None
    }

    /// The bytes of the records without compression, and whether they were compressed.
    fn unpacked(&self) -> Result<(Bytes, bool), String> {
        let bytes = self.bytes.slice(HEADER..);
        match Codec::of_attributes(self.attributes()) {
            Ok(None) => Ok((bytes, false)),
            Ok(Some(codec)) => {
                let unpacked = codec.unpack(&bytes, MOST_UNPACKED);
                unpacked
                    .map(|bytes| (bytes, true))
                    .map_err(|error| format!("compressed with {}: {error}", codec.name()))
            }
            Err(other) => Err(format!("compressed with unknown method {other}")),
        }
    }

    fn records(&self, from_offset: i64, decoded: &mut Decoded) {
        let unreadable = |first: i64, reason: String| Unreadable { first, last: self.last_offset(), reason };
        if self.last_offset() < from_offset || self.attributes() & CONTROL != 0 {
            return;
        }
        let (mut rest, was_compressed) = match self.fault().map_or_else(|| self.unpacked(), Err) {
            Ok(unpacked) => unpacked,
            Err(reason) => {
                decoded.unreadable.push(unreadable(self.base_offset().max(from_offset), reason));
                return;
            }
        };
        decoded.unpacked += if was_compressed { rest.len() } else { 0 };
        let mut next = self.base_offset();
        for _ in 0..i32::from_be_bytes(self.field(57)) {
            let Some(record) = self.record(&mut rest) else {
                decoded.unreadable.push(unreadable(next.max(from_offset), "malformed record".into()));
                return;
            };
            next = record.offset.saturating_add(1);
            if record.offset >= from_offset {
                decoded.records.push(record);
            }
        }
    }

    /// The next record, or `None` when the bytes are not one.
    fn record(&self, rest: &mut Bytes) -> Option<Record> {
        let length = usize::try_from(varint(rest)?).ok()?;
        let mut body = take(rest, length)?;
        // Attributes: none are defined.
        take(&mut body, 1)?;
        let timestamp_delta = varint(&mut body)?;
        let offset_delta = varint(&mut body)?;
        let key = optional(&mut body)?;
        let value = optional(&mut body)?;
        let count = usize::try_from(varint(&mut body)?).ok()?;
        // A header takes at least two bytes: a false count must not claim memory.
        let mut headers = Vec::with_capacity(count.min(body.len() / 2));
        for _ in 0..count {
            let name = optional(&mut body)??;
            headers.push((String::from_utf8_lossy(&name).into_owned(), optional(&mut body)?));
        }
        let offset = self.base_offset().checked_add(offset_delta)?;
        Some(Record { offset, timestamp: self.timestamp(timestamp_delta), key, value, headers })
    }

    fn timestamp(&self, delta: i64) -> SystemTime {
        let milliseconds = if self.attributes() & LOG_APPEND_TIME != 0 {
            // The broker's time of the whole batch stands in "max timestamp" only.
            i64::from_be_bytes(self.field(35))
        } else {
            i64::from_be_bytes(self.field(27)).saturating_add(delta)
        };
        time(milliseconds)
    }
}

const LOG_APPEND_TIME: i16 = 1 << 3;
const CONTROL: i16 = 1 << 5;

/// A time of the protocol, in milliseconds since 1970; before that, and "no timestamp" (-1), is 1970.
pub fn time(milliseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
}

/// A time in the protocol's milliseconds since 1970.
pub fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn take(rest: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= rest.len()).then(|| rest.split_to(length))
}

/// Bytes behind their length as a varint; -1 is null. The outer `None`: malformed.
fn optional(rest: &mut Bytes) -> Option<Option<Bytes>> {
    match varint(rest)? {
        -1 => Some(None),
        length => take(rest, usize::try_from(length).ok()?).map(Some),
    }
}

/// A zigzag varint of up to 64 bits.
fn varint(rest: &mut Bytes) -> Option<i64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        if !rest.has_remaining() {
            return None;
        }
        let byte = rest.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1).cast_signed() ^ -((value & 1).cast_signed()));
        }
    }
    None
}

/// What a record to be written consists of.
#[derive(Clone, Copy, Debug)]
pub struct RecordContent<'a> {
    /// Key.
    pub key: Option<&'a Bytes>,
    /// Value.
    pub value: Option<&'a Bytes>,
    /// Headers; names may repeat.
    pub headers: &'a [(Cow<'static, str>, Option<Bytes>)],
}

/// Encodes one batch, not compressed, with the base offset 0 (brokers set it).
///
/// # Errors
/// A length that the format has no room for.
pub fn encode<'a>(
    records: impl Iterator<Item = RecordContent<'a>>,
    identity: BatchIdentity,
    now: SystemTime,
) -> Result<Bytes, TryFromIntError> {
    let mut batch = BytesMut::new();
    batch.put_bytes(0, HEADER);
    let mut record = Vec::new();
    let mut count = 0_i32;
    for content in records {
        record.clear();
        put_record(&mut record, count, &content)?;
        put_varint(&mut batch, i32::try_from(record.len())?);
        batch.put_slice(&record);
        count = i32::try_from(i64::from(count) + 1)?;
    }
    put_header(&mut batch, count, identity, milliseconds(now))?;
    Ok(batch.freeze())
}

fn put_record(record: &mut Vec<u8>, offset_delta: i32, content: &RecordContent<'_>) -> Result<(), TryFromIntError> {
    // Attributes: none are defined. Timestamp delta: all records have the batch's time.
    record.put_slice(&[0, 0]);
    put_varint(record, offset_delta);
    put_optional(record, content.key.map(|key| &key[..]))?;
    put_optional(record, content.value.map(|value| &value[..]))?;
    put_varint(record, i32::try_from(content.headers.len())?);
    for (name, value) in content.headers {
        put_optional(record, Some(name.as_bytes()))?;
        put_optional(record, value.as_deref())?;
    }
    Ok(())
}

/// Fills the place left for the header, last of all the checksum over what follows it.
fn put_header(batch: &mut BytesMut, count: i32, identity: BatchIdentity, now: i64) -> Result<(), TryFromIntError> {
    const MAGIC: u8 = 2;
    let length = i32::try_from(batch.len() - LENGTH_END)?;
    let mut header = &mut batch[..HEADER];
    header.put_i64(0);
    header.put_i32(length);
    // Partition leader epoch: the broker's to set.
    header.put_i32(-1);
    header.put_u8(MAGIC);
    header.put_u32(0);
    // Attributes: not compressed, the sender's time, no transaction.
    header.put_i16(0);
    // Offset delta of the last record.
    header.put_i32(count - 1);
    header.put_i64(now);
    header.put_i64(now);
    header.put_i64(identity.producer_id);
    header.put_i16(identity.producer_epoch);
    header.put_i32(identity.base_sequence);
    header.put_i32(count);
    let checksum = crc32c::crc32c(&batch[CHECKED_FROM..]);
    batch[CHECKED_FROM - 4..CHECKED_FROM].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

fn put_optional(record: &mut Vec<u8>, bytes: Option<&[u8]>) -> Result<(), TryFromIntError> {
    match bytes {
        Some(bytes) => {
            put_varint(record, i32::try_from(bytes.len())?);
            record.put_slice(bytes);
        }
        None => put_varint(record, -1),
    }
    Ok(())
}

/// A zigzag varint of up to 32 bits.
fn put_varint(into: &mut impl BufMut, value: i32) {
    let mut rest = ((value << 1) ^ (value >> 31)).cast_unsigned();
    while rest > 0x7f {
        into.put_u8((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    into.put_u8(rest as u8);
}

#[cfg(test)]
mod tests {
    use kafka_protocol::records::RecordBatchDecoder;
    use proptest::prelude::*;

    use super::*;

    const NOBODY: BatchIdentity = BatchIdentity { producer_id: -1, producer_epoch: -1, base_sequence: -1 };

    /// A batch of the offsets `base..base + values.len()`.
    fn batch(base: i64, values: &[&'static str]) -> Vec<u8> {
        let values: Vec<Bytes> = values.iter().map(|value| Bytes::from_static(value.as_bytes())).collect();
        let key = Bytes::from_static(b"key");
        let header = [(Cow::Borrowed("kind"), Some(Bytes::from_static(b"result")))];
        let contents =
            values.iter().map(|value| RecordContent { key: Some(&key), value: Some(value), headers: &header });
        let now = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let mut bytes = encode(contents, NOBODY, now).expect("encodable").to_vec();
        // The base offset is not part of the checksum: brokers set it.
        bytes[..8].copy_from_slice(&base.to_be_bytes());
        bytes
    }

    fn seal(bytes: &mut [u8]) {
        let checksum = crc32c::crc32c(&bytes[CHECKED_FROM..]);
        bytes[17..21].copy_from_slice(&checksum.to_be_bytes());
    }

    fn values(decoded: &Decoded) -> Vec<(i64, &str)> {
        let pairs = decoded.records.iter().map(|record| (record.offset, record.value.as_deref().expect("a value")));
        pairs.map(|(offset, value)| (offset, std::str::from_utf8(value).expect("text"))).collect()
    }

    #[test]
    fn one_record_is_the_known_bytes() {
        let bytes = batch(7, &["v"]);
        let body = b"\x2c\x00\x00\x00\x06key\x02v\x02\x08kind\x0cresult";
        assert_eq!(&bytes[HEADER..], body);
        assert_eq!(&bytes[..8], &7_i64.to_be_bytes());
        assert_eq!(bytes[16], 2, "message format");
        assert_eq!(
            usize::try_from(i32::from_be_bytes(bytes[8..12].try_into().expect("four bytes"))),
            Ok(bytes.len() - 12)
        );
    }

    #[test]
    fn a_cut_last_batch_is_left_for_the_next_fetch() {
        let mut bytes = batch(0, &["a", "b"]);
        let whole = bytes.len();
        bytes.extend(batch(2, &["c"]));
        for cut in whole..bytes.len() {
            let decoded = decode(&Bytes::copy_from_slice(&bytes[..cut]), 0);
            assert_eq!(values(&decoded), [(0, "a"), (1, "b")], "cut at {cut}");
            assert_eq!(decoded.next_offset, 2);
        }
        assert_eq!(decode(&Bytes::from(bytes), 0).next_offset, 3);
    }

    #[test]
    fn records_below_the_wanted_offset_are_dropped() {
        let decoded = decode(&Bytes::from(batch(10, &["a", "b", "c"])), 12);
        assert_eq!(values(&decoded), [(12, "c")]);
        assert_eq!(decoded.next_offset, 13);
        assert_eq!(decode(&Bytes::new(), 12).next_offset, 12);
    }

    #[test]
    fn the_brokers_time_wins_where_the_topic_keeps_it() {
        let mut bytes = batch(0, &["a"]);
        assert_eq!(decode(&Bytes::copy_from_slice(&bytes), 0).records[0].timestamp, time(1_700_000_000_123));
        bytes[22] |= LOG_APPEND_TIME as u8;
        bytes[35..43].copy_from_slice(&1_800_000_000_456_i64.to_be_bytes());
        seal(&mut bytes);
        assert_eq!(decode(&Bytes::from(bytes), 0).records[0].timestamp, time(1_800_000_000_456));
    }

    #[test]
    fn what_cannot_be_read_is_named_and_passed() {
        let mut bytes = batch(0, &["a", "b"]);
        let faulty = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut first = bytes.clone();
            change(&mut first);
            first.extend(batch(2, &["c"]));
            decode(&Bytes::from(first), 1)
        };
        let compressed = faulty(&|batch| {
            batch[22] |= 5;
            seal(batch);
        });
        let flipped = faulty(&|batch| *batch.last_mut().expect("not empty") ^= 1);
        let malformed = faulty(&|batch| {
            batch[HEADER] = 0x7f;
            seal(batch);
        });
        for (decoded, reason) in [
            (compressed, "compressed with unknown method 5"),
            (flipped, "checksum does not match"),
            (malformed, "malformed record"),
        ] {
            assert_eq!(values(&decoded), [(2, "c")], "{reason}");
            assert_eq!(decoded.unreadable, [Unreadable { first: 1, last: 1, reason: reason.into() }]);
            assert_eq!(decoded.next_offset, 3);
        }
        bytes[22] |= CONTROL as u8;
        seal(&mut bytes);
        let control = decode(&Bytes::from(bytes), 0);
        assert_eq!((control.records.len(), control.unreadable.len(), control.next_offset), (0, 0, 2));
    }

    /// The batch of these records compressed by the codec.
    fn packed(mut batch: Vec<u8>, codec: Codec) -> Vec<u8> {
        let records = codec.pack(&batch.split_off(HEADER)).expect("packed");
        batch.extend(records);
        batch[22] |= codec.bits() as u8;
        let length = i32::try_from(batch.len() - LENGTH_END).expect("short");
        batch[8..LENGTH_END].copy_from_slice(&length.to_be_bytes());
        seal(&mut batch);
        batch
    }

    #[test]
    fn compressed_batches_are_read() {
        for codec in Codec::ALL {
            let mut bytes = packed(batch(0, &["a", "b"]), codec);
            bytes.extend(batch(2, &["c"]));
            let decoded = decode(&Bytes::from(bytes), 1);
            assert_eq!((values(&decoded), &decoded.unreadable[..]), (vec![(1, "b"), (2, "c")], &[][..]), "{codec:?}");
        }
    }

    #[test]
    fn a_compressed_batch_that_cannot_be_unpacked_is_named_and_passed() {
        for codec in Codec::ALL {
            let mut bytes = packed(batch(0, &["a", "b"]), codec);
            // Neither gzip's magic nor any other.
            bytes[HEADER..HEADER + 4].fill(0xff);
            seal(&mut bytes);
            bytes.extend(batch(2, &["c"]));
            let decoded = decode(&Bytes::from(bytes), 0);
            let unreadable = &decoded.unreadable[0];
            assert_eq!((values(&decoded), unreadable.first, unreadable.last), (vec![(2, "c")], 0, 1), "{codec:?}");
            assert!(
                unreadable.reason.starts_with(&format!("compressed with {}: malformed", codec.name())),
                "{unreadable:?}"
            );
        }
    }

    #[test]
    fn one_answer_unpacks_to_a_limited_number_of_bytes() {
        let large = |base, length| {
            let value = Bytes::from(vec![0; length]);
            let content = RecordContent { key: None, value: Some(&value), headers: &[] };
            let mut bytes = encode([content].into_iter(), NOBODY, UNIX_EPOCH).expect("encodable").to_vec();
            bytes[..8].copy_from_slice(&i64::to_be_bytes(base));
            packed(bytes, Codec::Gzip)
        };
        let bomb = decode(&Bytes::from(large(0, MOST_UNPACKED)), 0);
        assert_eq!((bomb.records.len(), bomb.next_offset), (0, 1));
        assert_eq!(
            bomb.unreadable[0].reason,
            format!("compressed with gzip: longer than {MOST_UNPACKED} bytes when unpacked")
        );
        let half = MOST_UNPACKED / 2;
        let answer = [large(0, half), large(1, half), large(2, half), batch(3, &["plain"])].concat();
        let decoded = decode(&Bytes::from(answer.clone()), 0);
        assert_eq!((decoded.records.len(), decoded.next_offset), (2, 2), "the rest is left for the next fetch");
        let rest = decode(&Bytes::from(answer), 2);
        assert_eq!((rest.records.len(), rest.next_offset), (2, 4));
    }

    #[test]
    fn a_header_that_is_not_text_loses_nothing() {
        let mut bytes = batch(0, &["a"]);
        let name = bytes.windows(4).position(|window| window == b"kind").expect("the header");
        bytes[name] = 0xff;
        seal(&mut bytes);
        let decoded = decode(&Bytes::from(bytes), 0);
        assert_eq!(decoded.records[0].headers[0].0, "\u{fffd}ind");
        assert_eq!(values(&decoded), [(0, "a")]);
    }

    #[test]
    fn headers_of_one_name_are_all_kept() {
        let header = |value| (Cow::Borrowed("name"), value);
        let headers = [header(Some(Bytes::from_static(b"1"))), header(None), header(Some(Bytes::from_static(b"2")))];
        let content = RecordContent { key: None, value: None, headers: &headers };
        let decoded = decode(&encode([content].into_iter(), NOBODY, UNIX_EPOCH).expect("encodable"), 0);
        let values: Vec<Option<&[u8]>> = decoded.records[0].headers.iter().map(|(_, value)| value.as_deref()).collect();
        assert_eq!(values, [Some(&b"1"[..]), None, Some(&b"2"[..])]);
    }

    #[test]
    fn a_batch_carries_its_producers_mark() {
        let identity = BatchIdentity { producer_id: 4000, producer_epoch: 3, base_sequence: i32::MAX - 1 };
        let value = Bytes::from_static(b"v");
        let content = RecordContent { key: None, value: Some(&value), headers: &[] };
        // The sequence numbers wrap inside; it must stay one batch all the same.
        let bytes = encode([content; 4].into_iter(), identity, UNIX_EPOCH).expect("encodable");
        let batches: Vec<Batch> = batches(&bytes).collect();
        assert_eq!(batches.len(), 1);
        assert_eq!((batches[0].identity(), batches[0].last_offset()), (identity, 3));
    }

    proptest! {
        #[test]
        fn the_codec_reads_what_we_write_and_so_do_we(
            records in prop::collection::vec((prop::option::of(any::<Vec<u8>>()), prop::option::of(any::<Vec<u8>>())), 1..200),
            header in prop::option::of(any::<Vec<u8>>()),
            base_sequence in 0..=i32::MAX,
        ) {
            let records: Vec<(Option<Bytes>, Option<Bytes>)> =
                records.into_iter().map(|(key, value)| (key.map(Bytes::from), value.map(Bytes::from))).collect();
            let headers = [(Cow::Borrowed("name"), header.map(Bytes::from))];
            let contents =
                records.iter().map(|(key, value)| RecordContent { key: key.as_ref(), value: value.as_ref(), headers: &headers });
            let identity = BatchIdentity { producer_id: 5, producer_epoch: 1, base_sequence };
            let bytes = encode(contents, identity, time(1_700_000_000_123)).expect("encodable");

            let read = RecordBatchDecoder::decode_all(&mut bytes.clone()).expect("whole");
            prop_assert_eq!(read.len(), 1);
            for (index, (theirs, ours)) in read[0].records.iter().zip(&records).enumerate() {
                prop_assert_eq!((&theirs.key, &theirs.value), (&ours.0, &ours.1));
                prop_assert_eq!((theirs.offset, theirs.timestamp), (index as i64, 1_700_000_000_123));
                prop_assert_eq!((theirs.producer_id, theirs.producer_epoch), (5, 1));
                prop_assert_eq!(theirs.headers.get("name".as_bytes()), Some(&headers[0].1));
            }

            let decoded = decode(&bytes, 0);
            prop_assert!(decoded.unreadable.is_empty());
            prop_assert!(decoded.records.iter().all(|record| record.headers == [("name".to_owned(), headers[0].1.clone())]));
            let read: Vec<_> = decoded.records.into_iter().map(|record| (record.key, record.value)).collect();
            prop_assert_eq!(read, records);
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), sealed: bool) {
            if sealed && bytes.len() >= HEADER {
                let length = i32::try_from(bytes.len() - LENGTH_END).expect("short");
                bytes[8..LENGTH_END].copy_from_slice(&length.to_be_bytes());
                bytes[16] = 2;
                bytes[21..23].copy_from_slice(&[0, 0]);
                seal(&mut bytes);
            }
            decode(&Bytes::from(bytes), 0);
        }
    }
}
