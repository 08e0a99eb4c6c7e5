//! Record batches of message format 2 (<https://kafka.apache.org/documentation/#recordbatch>): decoding and encoding.
//!
//! Replaces the codec crate's decoder, which fails on the cut batch at the end of most fetches and ignores the broker's
//! timestamps. It also loses a whole batch for one header that is not UTF-8, and one of two headers with the same name.
//! Any client may write such records, and a dead-lettered record keeps all its headers. Unpacks compressed batches of
//! other producers, but compresses nothing. Brokers unpack first for this system's topics
//! (`compression.type=uncompressed`). Called by producer, reader and share consumer.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::num::TryFromIntError;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::compression::Codec;

/// One record in the log. Its bytes share the memory of the whole response; copy what you keep for long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Position in its partition.
    pub offset: i64,
    /// The broker's time if the topic uses `LogAppendTime`, else the sender's.
    pub timestamp: SystemTime,
    /// Key, if it has one.
    pub key: Option<Bytes>,
    /// Value, if it has one.
    pub value: Option<Bytes>,
    /// Headers in their order; names may repeat.
    pub headers: Vec<(String, Option<Bytes>)>,
}

/// Offsets that exist in the log and cannot be read. A caller must not wait for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The first unreadable offset.
    pub first: i64,
    /// The last unreadable offset.
    pub last: i64,
    /// Why.
    pub reason: String,
    /// Records decoded despite a wrong checksum. They are for people to look at, not to be worked on: any bit may be
    /// wrong.
    pub doubtful: Vec<Record>,
}

/// The decoded whole batches of one response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Records from the wanted offset on, without control records.
    pub records: Vec<Record>,
    /// Offsets that could not be read, from the wanted offset on.
    pub unreadable: Vec<Unreadable>,
    /// Start of the next fetch: after the last decoded batch, or the wanted offset without any.
    pub next_offset: i64,
    /// A batch is damaged. Any bit of it may be wrong, including its offsets and its kind, so it may be missing from
    /// `unreadable`.
    pub is_damaged: bool,
    /// Bytes of the unpacked compressed records.
    unpacked: usize,
}

/// Most bytes of one batch's records that [`decode`] unpacks: 16 times `message.max.bytes`, the largest batch that a
/// broker takes by default. Producers put at most 1 MB into a batch before they compress it. A worker in Kubernetes has
/// 128 MiB of memory.
pub const MOST_UNPACKED: usize = 16 << 20;

/// Decodes all whole batches of `bytes`; leaves out a cut batch at the end. Drops records below `from_offset`, since
/// brokers send whole batches. Decoding stops before a compressed batch once [`MOST_UNPACKED`] bytes were unpacked; the
/// next fetch begins there. In a ShareFetch the remaining records stay locked until their lock runs out, which counts
/// one delivery more.
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

/// A producer's identification of a batch. A resent batch has the same, so it shows whether a batch is in the log.
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

/// Bytes up to and including the batch length, which counts the bytes after it.
const LENGTH_END: usize = 12;
/// Bytes before the records.
const HEADER: usize = 61;
/// First byte that the checksum covers.
const CHECKED_FROM: usize = 21;

/// Splits a response by the batches' own lengths; stops at the first cut batch.
pub fn batches(bytes: &Bytes) -> impl Iterator<Item = Batch> {
    let mut rest = bytes.clone();
    std::iter::from_fn(move || {
        let length = rest.get(8..LENGTH_END)?.first_chunk::<4>().map(|field| i32::from_be_bytes(*field))?;
        let whole = usize::try_from(length).ok()?.checked_add(LENGTH_END)?;
        (HEADER..=rest.len()).contains(&whole).then(|| Batch { bytes: rest.split_to(whole) })
    })
}

/// Returns the offsets in `bytes` that belong to aborted transactions (KIP-98). `aborted` holds the producer id and
/// first offset of each transaction; a transaction ends with the producer's next marker.
pub fn aborted_offsets(bytes: &Bytes, aborted: &[(i64, i64)]) -> Vec<RangeInclusive<i64>> {
    let mut left = aborted.to_vec();
    let mut open = BTreeSet::new();
    let mut offsets = Vec::new();
    for batch in batches(bytes) {
        left.retain(|(producer, first)| *first > batch.last_offset() || !open.insert(*producer));
        let producer = batch.identity().producer_id;
        if batch.attributes() & CONTROL != 0 {
            open.remove(&producer);
        } else if batch.attributes() & TRANSACTIONAL != 0 && open.contains(&producer) {
            offsets.push(batch.base_offset()..=batch.last_offset());
        }
    }
    offsets
}

impl Batch {
    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        // `batches` yields nothing shorter than a header, and every field is inside it.
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

    /// The producer's identification of the batch.
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

    /// Length in bytes.
    pub(super) fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Returns why the batch is damaged, or `None` if it is not.
    pub(super) fn fault(&self) -> Option<String> {
        let magic = self.bytes[16];
        if magic != 2 {
            return Some(format!("message format {magic}"));
        }
        if crc32c::crc32c(&self.bytes[CHECKED_FROM..]) != u32::from_be_bytes(self.field(17)) {
            return Some("checksum does not match".into());
        }
        None
    }

    /// Returns the unpacked bytes of the records, and whether they were compressed.
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
        let fault = self.fault();
        decoded.is_damaged |= fault.is_some();
        if self.last_offset() < from_offset || self.attributes() & CONTROL != 0 {
            return;
        }
        let Some(reason) = fault else { return self.take_apart(from_offset, decoded) };
        let mut doubtful = Decoded::default();
        self.take_apart(from_offset, &mut doubtful);
        decoded.unpacked += doubtful.unpacked;
        let (first, last) = (self.base_offset().max(from_offset), self.last_offset());
        decoded.unreadable.push(Unreadable { first, last, reason, doubtful: doubtful.records });
    }

    fn take_apart(&self, from_offset: i64, decoded: &mut Decoded) {
        let unreadable = |first: i64, reason: String| {
            let last = self.last_offset();
            Unreadable { first, last, reason, doubtful: Vec::new() }
        };
        let (mut rest, was_compressed) = match self.unpacked() {
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

    /// Decodes the next record; `None` for malformed bytes.
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
        // A header takes at least two bytes, so a false count reserves no more memory than that.
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
            // With the broker's time only "max timestamp" is set.
            i64::from_be_bytes(self.field(35))
        } else {
            i64::from_be_bytes(self.field(27)).saturating_add(delta)
        };
        time(milliseconds)
    }
}

const LOG_APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;

/// Converts milliseconds since 1970; earlier times, and "no timestamp" (-1), become 1970.
pub fn time(milliseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
}

/// Converts a time to milliseconds since 1970.
pub fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn take(rest: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= rest.len()).then(|| rest.split_to(length))
}

/// Reads bytes after their length as a varint; -1 is null. Returns the outer `None` for malformed bytes.
fn optional(rest: &mut Bytes) -> Option<Option<Bytes>> {
    match varint(rest)? {
        -1 => Some(None),
        length => take(rest, usize::try_from(length).ok()?).map(Some),
    }
}

/// Reads a zigzag varint of up to 64 bits.
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

/// Content of a record to be written.
#[derive(Clone, Copy, Debug)]
pub struct RecordContent<'a> {
    /// Key.
    pub key: Option<&'a Bytes>,
    /// Value.
    pub value: Option<&'a Bytes>,
    /// Headers; names may repeat.
    pub headers: &'a [(Cow<'static, str>, Option<Bytes>)],
}

/// Encodes one uncompressed batch with the base offset 0, which brokers replace.
///
/// # Errors
/// A length exceeds its field in the format.
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

/// Fills the header, and at last the checksum over the bytes after it.
fn put_header(batch: &mut BytesMut, count: i32, identity: BatchIdentity, now: i64) -> Result<(), TryFromIntError> {
    const MAGIC: u8 = 2;
    let length = i32::try_from(batch.len() - LENGTH_END)?;
    let mut header = &mut batch[..HEADER];
    header.put_i64(0);
    header.put_i32(length);
    // Partition leader epoch: set by the broker.
    header.put_i32(-1);
    header.put_u8(MAGIC);
    header.put_u32(0);
    // Attributes: no compression, the sender's time, no transaction.
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

/// Writes a zigzag varint of up to 32 bits.
fn put_varint(into: &mut impl BufMut, value: i32) {
    let mut rest = ((value << 1) ^ (value >> 31)).cast_unsigned();
    while rest > 0x7f {
        into.put_u8((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    into.put_u8(rest as u8);
}

#[cfg(test)]
mod tests;
