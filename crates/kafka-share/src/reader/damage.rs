//! Batches with a wrong checksum: fetched again, since only the response may be damaged, and skipped if still damaged.

use std::collections::BTreeMap;

use super::Reader;
use crate::fetch::Fetched;
use crate::records::{self, Decoded};

/// Number of repeated fetches of a damaged batch. With the pauses between (20 ms, then doubled) they take 0.3 to 0.6 s.
const REPETITIONS: u32 = 5;

/// Damaged batches of one reader.
#[derive(Debug, Default)]
pub(super) struct Damage {
    /// By partition: offset of a damaged batch, and the number of fetches that brought it.
    found: BTreeMap<i32, (i64, u32)>,
    /// Batches skipped so far.
    skipped: u64,
    /// A damaged batch will be fetched again, after a pause.
    pub(super) is_pending: bool,
}

impl Damage {
    /// Notes that the partition's batches are undamaged.
    pub(super) fn is_over(&mut self, partition: i32) {
        self.found.remove(&partition);
    }

    /// Counts a fetch of a damaged batch. Returns the number of fetches that brought it.
    fn count(&mut self, partition: i32, offset: i64) -> u32 {
        let found = self.found.entry(partition).or_insert((offset, 0));
        let fetches = if found.0 == offset { found.1 + 1 } else { 1 };
        *found = (offset, fetches);
        fetches
    }
}

impl Reader {
    /// Decodes a response up to its damaged batch. After [`REPETITIONS`] the batch is skipped. The records after it
    /// come with the next fetch.
    pub(super) fn decode_damaged(&mut self, node: i32, fetched: &Fetched, from: i64) -> Decoded {
        let (topic, partition) = (&self.topic, fetched.partition);
        let mut whole = 0;
        let damaged = records::batches(&fetched.bytes).find_map(|batch| {
            let reason = batch.fault();
            whole += if reason.is_none() { batch.length() } else { 0 };
            Some((batch.last_offset(), reason?))
        });
        let (last, reason) = damaged.unwrap_or((from, String::new()));
        let mut decoded = records::decode(&fetched.bytes.slice(..whole), from);
        let offset = decoded.next_offset;
        let fetches = self.damage.count(partition, offset);
        if fetches == 1 {
            log::warn!("{topic}-{partition}: offset {offset}: the batch is damaged ({reason}); fetching it again");
        }
        if fetches <= REPETITIONS {
            // The next fetch uses a new connection to the leader known by then.
            self.fetches.drop_node(node);
            (self.is_stale, self.damage.is_pending) = (true, true);
            return decoded;
        }
        self.damage.is_over(partition);
        self.damage.skipped += 1;
        // The last offset in the damaged batch may be wrong, too.
        let last = last.min(fetched.high_watermark - 1).max(offset);
        decoded.next_offset = last + 1;
        let skipped = self.damage.skipped;
        log::error!(
            "{topic}-{partition}: offset {offset}: the batch was damaged in {fetches} fetches ({reason}); its records, \
             up to offset {last}, are skipped ({skipped} batch(es) so far)"
        );
        decoded
    }
}
