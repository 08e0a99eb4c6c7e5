//! Batches whose checksum is wrong: fetched again, since the damage may be of one answer, and skipped when it stays.

use std::collections::BTreeMap;

use super::Reader;
use crate::fetch::Fetched;
use crate::records::{self, Decoded};

/// How often a damaged batch is fetched again. With the pauses between, 20 ms at first and then doubled, that takes
/// 0.3 to 0.6 s.
const REPETITIONS: u32 = 5;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Damage {
    /// By partition: where a damaged batch stands, and how many fetches brought it.
    found: BTreeMap<i32, (i64, u32)>,
    /// Batches skipped so far.
    skipped: u64,
    /// A batch is to be fetched again, after a pause.
    pub(super) is_pending: bool,
}

impl Damage {
    /// The partition's batches are whole.
    pub(super) fn is_over(&mut self, partition: i32) {
        self.found.remove(&partition);
    }

    /// Counts a damaged batch. Returns the number of fetches that brought it.
    fn count(&mut self, partition: i32, offset: i64) -> u32 {
        let found = self.found.entry(partition).or_insert((offset, 0));
        let fetches = if found.0 == offset { found.1 + 1 } else { 1 };
        *found = (offset, fetches);
        fetches
    }
}

impl Reader {
    /// Decodes an answer with a damaged batch up to that batch. When it has been fetched often enough it is skipped;
    /// what follows it comes with the next fetch either way.
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
            // On another connection, from the leader that there is by then.
            self.fetches.drop_node(node);
            (self.is_stale, self.damage.is_pending) = (true, true);
            return decoded;
        }
        self.damage.is_over(partition);
        self.damage.skipped += 1;
        // What the batch says of its last offset may be wrong as well.
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
