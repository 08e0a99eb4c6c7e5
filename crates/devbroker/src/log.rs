//! The log of one partition: batches in order.
//!
//! Memory only. Knows offsets, sizes, times, and open and aborted transactions; knows no topics and no settings. Called
//! by `produce`, `fetch`, `offsets`, `transactions`, `share_fetch`.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};

use super::batch::Batch;
use kafka_share::records;

/// Batches and transactions of one partition.
#[derive(Debug, Default)]
pub(super) struct Log {
    batches: VecDeque<Batch>,
    start: i64,
    end: i64,
    bytes: usize,
    /// Producers with an open transaction, each with its first offset.
    open: BTreeMap<i64, i64>,
    aborted: Vec<Aborted>,
}

/// An aborted transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Aborted {
    pub producer_id: i64,
    pub first: i64,
    /// Offset of its marker.
    pub last: i64,
}

impl Log {
    /// The first offset in the log.
    pub fn start(&self) -> i64 {
        self.start
    }

    /// The offset that the next record gets.
    pub fn end(&self) -> i64 {
        self.end
    }

    /// Bytes of memory that the batches take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a batch and returns the offset of its first record.
    pub fn append(&mut self, batch: &Batch, leader_epoch: i32, now: Option<i64>) -> i64 {
        let placed = batch.placed(self.end, leader_epoch, now);
        let base = self.end;
        if placed.is_transactional() && !placed.is_control() {
            self.open.entry(placed.producer_id()).or_insert(base);
        }
        self.end = placed.last_offset() + 1;
        self.bytes += placed.bytes().len();
        self.batches.push_back(placed);
        base
    }

    /// Appends the marker that ends the transaction of its producer.
    pub fn end_transaction(&mut self, marker: &Batch, leader_epoch: i32, committed: bool) {
        let last = self.append(marker, leader_epoch, None);
        let producer_id = marker.producer_id();
        if let Some(first) = self.open.remove(&producer_id)
            && !committed
        {
            self.aborted.push(Aborted { producer_id, first, last });
        }
    }

    /// Whether this producer has an open transaction in this log.
    pub fn has_open(&self, producer_id: i64) -> bool {
        self.open.contains_key(&producer_id)
    }

    /// The last stable offset: the first offset of the oldest open transaction, or the end without any; never before
    /// the start.
    pub fn last_stable(&self) -> i64 {
        self.open.values().copied().min().unwrap_or(self.end).max(self.start)
    }

    /// The aborted transactions that end at `from` or later and begin before `until`.
    pub fn aborted(&self, from: i64, until: i64) -> impl Iterator<Item = &Aborted> {
        self.aborted.iter().filter(move |aborted| aborted.last >= from && aborted.first < until)
    }

    /// First and last offset of each batch of an aborted transaction between `from` and `until`.
    pub fn aborted_batches(&self, from: i64, until: i64) -> Vec<(i64, i64)> {
        if self.aborted(from, until).next().is_none() {
            return Vec::new();
        }
        let batches = self.batches.range(self.index_of(from)..).take_while(|batch| batch.base_offset() < until);
        let aborted = batches.filter(|batch| {
            let (id, base) = (batch.producer_id(), batch.base_offset());
            let mut ranges = self.aborted(base, base + 1);
            batch.is_transactional() && !batch.is_control() && ranges.any(|aborted| aborted.producer_id == id)
        });
        aborted.map(|batch| (batch.base_offset(), batch.last_offset())).collect()
    }

    /// Reads batches from the one that contains `from`, before `until`, at most `max_bytes`. The last one is cut there,
    /// as in Kafka; the first is whole if `first_is_whole`. Empty at the end.
    pub fn read(&self, from: i64, until: i64, max_bytes: usize, first_is_whole: bool) -> Bytes {
        let mut index = self.index_of(from);
        let readable = |index| self.batches.get(index).filter(|batch: &&Batch| batch.base_offset() < until);
        let Some(first) = readable(index) else { return Bytes::new() };
        if first.bytes().len() >= max_bytes {
            let length = if first_is_whole { first.bytes().len() } else { max_bytes };
            return first.bytes().slice(..length);
        }
        let mut read = BytesMut::new();
        while let Some(batch) = readable(index) {
            let room = max_bytes - read.len();
            read.put_slice(&batch.bytes()[..batch.bytes().len().min(room)]);
            if read.len() == max_bytes {
                break;
            }
            index += 1;
        }
        read.freeze()
    }

    /// Reads whole batches from the one that contains `first` to the one that contains `last`.
    pub fn read_range(&self, first: i64, last: i64) -> Bytes {
        let found = self.batches.range(self.index_of(first)..).take_while(|batch| batch.base_offset() <= last);
        let mut read = BytesMut::new();
        found.for_each(|batch| read.put_slice(batch.bytes()));
        read.freeze()
    }

    /// The last offset of the whole batches that fit into `max_bytes` from `from` on, at least one batch; `None` at the
    /// end.
    pub fn last_within(&self, from: i64, max_bytes: usize) -> Option<i64> {
        let mut room = max_bytes;
        let mut last = None;
        for batch in self.batches.range(self.index_of(from)..) {
            let length = batch.bytes().len();
            if last.is_some() && length > room {
                break;
            }
            room = room.saturating_sub(length);
            last = Some(batch.last_offset());
        }
        last
    }

    /// The last offset of the batch that contains `offset`; `offset` itself without such a batch.
    pub fn end_of_batch(&self, offset: i64) -> i64 {
        self.batches.get(self.index_of(offset)).map_or(offset, Batch::last_offset)
    }

    /// The largest time in the batch that contains `offset`; -1 without such a batch.
    pub fn time_of(&self, offset: i64) -> i64 {
        self.batches.get(self.index_of(offset)).map_or(-1, Batch::max_timestamp)
    }

    fn index_of(&self, offset: i64) -> usize {
        self.batches.partition_point(|batch| batch.last_offset() < offset)
    }

    /// Offset and time of the first record at or after `time`, in milliseconds since 1970.
    pub fn first_since(&self, time: i64) -> Option<(i64, i64)> {
        let found = self.batches.iter().filter(|batch| batch.max_timestamp() >= time);
        found.flat_map(|batch| times(batch, self.start)).find(|(_, at)| *at >= time)
    }

    /// Offset and time of the first record with the largest time.
    pub fn latest_time(&self) -> Option<(i64, i64)> {
        let latest = self.batches.iter().map(Batch::max_timestamp).max()?;
        self.first_since(latest)
    }

    /// Drops records before `offset`; memory is freed by whole batches.
    pub fn delete_before(&mut self, offset: i64) {
        self.start = offset.clamp(self.start, self.end);
        while self.batches.front().is_some_and(|batch| batch.last_offset() < self.start) {
            if let Some(gone) = self.batches.pop_front() {
                self.bytes -= gone.bytes().len();
            }
        }
        self.aborted.retain(|aborted| aborted.last >= self.start);
    }

    /// Drops the oldest batches whose records are all older than `time`, in milliseconds since 1970.
    pub fn delete_older(&mut self, time: i64) {
        let kept = self.batches.iter().find(|batch| batch.max_timestamp() >= time);
        let first_kept = kept.map_or(self.end, Batch::base_offset);
        if first_kept > self.start {
            self.delete_before(first_kept);
        }
    }

    /// Drops the oldest batches until at most `limit` bytes are left.
    pub fn shrink_to(&mut self, limit: usize) {
        while self.bytes > limit {
            let Some(oldest) = self.batches.front().map(Batch::last_offset) else { return };
            self.delete_before(oldest + 1);
        }
    }
}

/// Offset and time of each record of a batch from `start` on. Markers, and batches with the broker's time, have one
/// time for all records.
fn times(batch: &Batch, start: i64) -> Vec<(i64, i64)> {
    if batch.has_broker_time() || batch.is_control() {
        return vec![(batch.base_offset().max(start), batch.max_timestamp())];
    }
    let decoded = records::decode(batch.bytes(), start);
    decoded.records.iter().map(|record| (record.offset, records::milliseconds(record.timestamp))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::batch::tests::batch_of;
    use super::*;

    fn log(counts: &[usize]) -> Log {
        let mut log = Log::default();
        for (time, count) in (1..).zip(counts) {
            let batch = Batch::of_request(&batch_of(*count, -1, -1, time * 1000), 10_000).expect("good");
            log.append(&batch, 0, None);
        }
        log
    }

    #[test]
    fn appended_batches_get_consecutive_offsets() {
        let log = log(&[2, 1, 3]);
        assert_eq!((log.start(), log.end()), (0, 6));
        let read = records::decode(&log.read(2, 6, 10_000, true), 2);
        assert_eq!(read.records.iter().map(|record| record.offset).collect::<Vec<_>>(), [2, 3, 4, 5]);
        assert!(log.read(6, 6, 10_000, true).is_empty());
        assert_eq!(log.read(1, 3, 10_000, true), log.read_range(1, 2));
        assert_eq!(records::decode(&log.read_range(1, 2), 0).next_offset, 3);
        assert_eq!((log.end_of_batch(0), log.end_of_batch(3)), (1, 5));
    }

    #[test]
    fn read_is_cut_at_its_limit_except_for_the_first_batch() {
        let log = log(&[2, 1, 3]);
        let whole = log.bytes();
        assert_eq!(log.read(0, 6, whole - 1, true).len(), whole - 1);
        let first = log.read_range(0, 1).len();
        assert_eq!(log.read(0, 6, 10, true).len(), first);
        assert_eq!(log.read(0, 6, 10, false).len(), 10);
        assert_eq!(log.last_within(0, 10), Some(1));
        assert_eq!(log.last_within(0, first + 1), Some(1));
        assert_eq!(log.last_within(0, whole), Some(5));
        assert_eq!(log.last_within(6, 10), None);
    }

    /// A batch of two records in this producer's transaction.
    fn transactional(producer_id: i64) -> Batch {
        let mut bytes = batch_of(2, producer_id, 0, 1000).to_vec();
        bytes[22] |= 1 << 4;
        let checksum = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&checksum.to_be_bytes());
        Batch::of_request(&bytes.into(), 10_000).expect("good")
    }

    #[test]
    fn aborted_transaction_is_listed_only_in_its_range() {
        let mut log = log(&[1]);
        for producer_id in [7, 8, 7] {
            log.append(&transactional(producer_id), 0, None);
        }
        log.end_transaction(&Batch::marker(7, 0, false, 2000), 0, false);
        let aborted = Aborted { producer_id: 7, first: 1, last: 7 };
        assert_eq!(log.aborted(0, 12).collect::<Vec<_>>(), [&aborted]);
        assert_eq!((log.aborted(8, 12).count(), log.aborted(0, 1).count()), (0, 0));
        assert_eq!(log.aborted_batches(0, 12), [(1, 2), (5, 6)], "not those of the other producer");
        assert_eq!(log.latest_time(), Some((7, 2000)), "a marker has a time");
        log.delete_before(8);
        assert_eq!(log.aborted(0, 12).count(), 0);
    }

    #[test]
    fn deletion_frees_whole_batches() {
        let mut log = log(&[2, 1, 3]);
        let whole = log.bytes();
        log.delete_before(1);
        assert_eq!((log.start(), log.bytes()), (1, whole));
        log.delete_older(3000);
        assert_eq!(log.start(), 3);
        assert!(log.bytes() < whole);
        log.delete_before(100);
        assert_eq!((log.start(), log.end(), log.bytes()), (6, 6, 0));
    }
}
