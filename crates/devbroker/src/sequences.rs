//! The partition's memory of its idempotent producers (KIP-98): recognises a resent batch and refuses a gap.
//!
//! Called by `produce`.

use std::collections::{HashMap, VecDeque};

use super::batch::{Mark, sequence_after};
use kafka_share::ErrorCode;

/// Recognised batches of each producer, as in Kafka's `ProducerStateEntry`.
const REMEMBERED: usize = 5;

/// Idempotent producers of one partition.
#[derive(Debug, Default)]
pub(super) struct Sequences(HashMap<i64, Producer>);

#[derive(Debug)]
struct Producer {
    epoch: i16,
    /// First and last sequence number and first offset, oldest first; never empty.
    batches: VecDeque<(i32, i32, i64)>,
}

impl Sequences {
    /// Checks whether the batch may be appended. `Some`: the log has it already, at this offset.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_PRODUCER_EPOCH`], [`ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER`].
    pub fn check(&self, mark: Mark) -> Result<Option<i64>, ErrorCode> {
        // For an unknown producer any sequence is accepted: its state may have gone with its records.
        let Some(producer) = self.0.get(&mark.producer_id) else { return Ok(None) };
        if mark.epoch < producer.epoch {
            return Err(ErrorCode::INVALID_PRODUCER_EPOCH);
        }
        if mark.epoch > producer.epoch {
            return if mark.first_sequence == 0 { Ok(None) } else { Err(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER) };
        }
        let same = |batch: &&(i32, i32, i64)| (batch.0, batch.1) == (mark.first_sequence, mark.last_sequence);
        if let Some((_, _, offset)) = producer.batches.iter().find(same) {
            return Ok(Some(*offset));
        }
        let last = producer.batches.back().map_or(-1, |batch| batch.1);
        if mark.first_sequence == sequence_after(last, 1) {
            Ok(None)
        } else {
            Err(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER)
        }
    }

    /// Records a batch that was appended at `offset`.
    pub fn remember(&mut self, mark: Mark, offset: i64) {
        let producer = self.0.entry(mark.producer_id);
        let producer = producer.or_insert_with(|| Producer { epoch: mark.epoch, batches: VecDeque::new() });
        if producer.epoch != mark.epoch {
            producer.epoch = mark.epoch;
            producer.batches.clear();
        }
        producer.batches.push_back((mark.first_sequence, mark.last_sequence, offset));
        if producer.batches.len() > REMEMBERED {
            producer.batches.pop_front();
        }
    }
}
