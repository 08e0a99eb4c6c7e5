//! The records of one partition on their way into the log. Pure: no I/O, time is a parameter.
//!
//! At most one batch of a partition is out at a time. Its bytes are made once, with the producer's id and the next
//! sequence number, and stay the same until a response settles them. The lane decides what a broker's response means;
//! [`actor`](super::actor) decides what is sent when.

use std::collections::VecDeque;
use std::time::SystemTime;

use bytes::Bytes;

use super::{Delivered, Delivery, DeliveryError, Message};
use crate::error::{ErrorCode, Retry};
use crate::records::{self, BatchIdentity, RecordContent};

/// Largest record. Above the broker's `socket.request.max.bytes` (100 MiB) the broker would close the connection at
/// every attempt.
const RECORD_CAP: usize = 32 << 20;

/// Producer id and epoch, given by a broker (KIP-98).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) id: i64,
    pub(super) epoch: i16,
}

/// One partition's records.
#[derive(Debug)]
pub(super) struct Lane<T> {
    partition: i32,
    identity: Identity,
    next_sequence: i32,
    /// Every batch that is not yet acknowledged was written at this offset or later.
    search_from: Option<i64>,
    /// Halves of refused batches, the next one last. They are sent before the waiting records.
    pieces: Vec<Vec<Message<T>>>,
    waiting: VecDeque<Message<T>>,
    batch: Option<Batch<T>>,
    /// Bytes of all records in this lane.
    bytes: usize,
}

/// A batch with an unknown outcome.
#[derive(Debug)]
struct Batch<T> {
    messages: Vec<Message<T>>,
    bytes: Bytes,
    identity: BatchIdentity,
    /// A connection has it, and the response has not come.
    out: bool,
    /// An earlier sending got no final response: the batch may be in the log, whatever a later response says.
    maybe_written: bool,
    /// Only the log shows the outcome: it is searched before the lane sends anything else.
    in_doubt: bool,
}

/// Result of a response or of a search in the log.
#[derive(Debug)]
pub(super) struct Answer<T> {
    pub(super) deliveries: Vec<Delivery<T>>,
    pub(super) verdict: Verdict,
}

/// Meaning of a response for the batch that was out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The batch is settled, or was split and the rest is sent again.
    Settled,
    /// The same batch is sent again after a rest.
    Again(ErrorCode),
    /// Only the log shows the outcome: [`Lane::in_doubt`].
    InDoubt(ErrorCode),
    /// The topic or the request is refused, whatever the record: [`Lane::deny`].
    Denied(ErrorCode),
}

impl<T> Answer<T> {
    fn without_deliveries(verdict: Verdict) -> Self {
        Self { deliveries: Vec::new(), verdict }
    }

    fn settled(deliveries: Vec<Delivery<T>>) -> Self {
        Self { deliveries, verdict: Verdict::Settled }
    }
}

impl<T> Lane<T> {
    pub(super) fn new(partition: i32, identity: Identity) -> Self {
        Self {
            partition,
            identity,
            next_sequence: 0,
            search_from: None,
            pieces: Vec::new(),
            waiting: VecDeque::new(),
            batch: None,
            bytes: 0,
        }
    }

    pub(super) fn push(&mut self, message: Message<T>) {
        self.bytes += message.record.size();
        self.waiting.push_back(message);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn has_work(&self) -> bool {
        self.batch.is_some() || !self.pieces.is_empty() || !self.waiting.is_empty()
    }

    /// Offset from which the log is searched for a batch in doubt; `None` until it is known.
    pub(super) fn search_from(&self) -> Option<i64> {
        self.search_from
    }

    pub(super) fn set_search_from(&mut self, offset: i64) {
        self.search_from = Some(offset);
    }

    /// Returns the batch that the log must be searched for before the lane continues.
    pub(super) fn in_doubt(&self) -> Option<BatchIdentity> {
        self.batch.as_ref().filter(|batch| batch.in_doubt).map(|batch| batch.identity)
    }

    /// Makes the next batch unless a batch is out. Calls `keep` before a record's first sending; `false` drops the
    /// record. Returns the records refused without asking the broker.
    pub(super) fn compose(
        &mut self,
        batch_bytes: usize,
        now: SystemTime,
        mut keep: impl FnMut(&T) -> bool,
    ) -> Vec<Delivery<T>> {
        if self.batch.is_some() {
            return Vec::new();
        }
        let mut refused = Vec::new();
        let messages = match self.pieces.pop() {
            Some(piece) => piece,
            None => self.take_waiting(batch_bytes, &mut keep, &mut refused),
        };
        if messages.is_empty() {
            return refused;
        }
        let identity = BatchIdentity {
            producer_id: self.identity.id,
            producer_epoch: self.identity.epoch,
            base_sequence: self.next_sequence,
        };
        let contents = messages.iter().map(|Message { record, .. }| RecordContent {
            key: record.key.as_ref(),
            value: record.value.as_ref(),
            headers: &record.headers,
        });
        match records::encode(contents, identity, now) {
            Ok(bytes) => {
                self.batch =
                    Some(Batch { messages, bytes, identity, out: false, maybe_written: false, in_doubt: false });
            }
            Err(error) => refused.extend(self.refuse(messages, ErrorCode::INVALID_RECORD, &error.to_string())),
        }
        refused
    }

    fn take_waiting(
        &mut self,
        batch_bytes: usize,
        keep: &mut impl FnMut(&T) -> bool,
        refused: &mut Vec<Delivery<T>>,
    ) -> Vec<Message<T>> {
        let mut messages = Vec::new();
        let mut taken = 0;
        while let Some(message) = self.waiting.front() {
            let size = message.record.size();
            if taken > 0 && taken + size > batch_bytes {
                break;
            }
            let Some(message) = self.waiting.pop_front() else { break };
            if !keep(&message.token) {
                self.bytes -= size;
            } else if size > RECORD_CAP {
                refused.extend(self.refuse(
                    vec![message],
                    ErrorCode::MESSAGE_TOO_LARGE,
                    "larger than any broker takes",
                ));
            } else {
                taken += size;
                messages.push(message);
            }
        }
        messages
    }

    /// Returns the bytes to be sent now, and marks them as out. `None`: no batch, or the log must be searched first.
    pub(super) fn outgoing(&mut self) -> Option<Bytes> {
        let batch = self.batch.as_mut().filter(|batch| !batch.in_doubt)?;
        batch.out = true;
        Some(batch.bytes.clone())
    }

    /// Notes that no response came: the batch is sent again unchanged.
    pub(super) fn unanswered(&mut self) {
        if let Some(batch) = &mut self.batch {
            batch.maybe_written |= batch.out;
            batch.out = false;
        }
    }

    /// Applies the broker's response for this partition.
    pub(super) fn answered(&mut self, code: ErrorCode, base_offset: i64, message: Option<&str>) -> Answer<T> {
        let Some(batch) = &mut self.batch else { return Answer::settled(Vec::new()) };
        batch.out = false;
        match code {
            ErrorCode::NONE => Answer::settled(self.delivered(base_offset)),
            // An earlier sending may be in the log; sending under a new id could write the batch twice.
            code if is_sequence_fault(code) || (code.retry() == Retry::Never && batch.maybe_written) => {
                batch.in_doubt = true;
                Answer::without_deliveries(Verdict::InDoubt(code))
            }
            code if is_refusal(code) => Answer::settled(self.split(code, message.unwrap_or_default())),
            code if code.retry() == Retry::Never => Answer::without_deliveries(Verdict::Denied(code)),
            code => {
                // The leader may have written the batch (with 7 and 20 it has): only the final response shows.
                batch.maybe_written = true;
                Answer::without_deliveries(Verdict::Again(code))
            }
        }
    }

    /// Settles the batch in doubt, found in the log at this offset, and replaces its producer id.
    pub(super) fn found(&mut self, base_offset: i64, fresh: Identity) -> Vec<Delivery<T>> {
        let deliveries = self.delivered(base_offset);
        self.renew(fresh);
        deliveries
    }

    /// Sends the records of the batch in doubt again, before all others, under a new id: the log does not have them.
    pub(super) fn not_found(&mut self, fresh: Identity) {
        if let Some(batch) = self.batch.take() {
            self.pieces.push(batch.messages);
        }
        self.renew(fresh);
    }

    /// Settles the batch in doubt as unknown, because the log cannot be read. Its id is not used again.
    pub(super) fn not_told(&mut self, fresh: Identity) -> Vec<Delivery<T>> {
        let messages = self.batch.take().map(|batch| batch.messages).unwrap_or_default();
        self.renew(fresh);
        self.fail(messages, &DeliveryError::Unknown)
    }

    /// Fails all records, since Kafka refuses the partition. A batch that may be in the log is settled as unknown.
    pub(super) fn deny(&mut self, denied: &DeliveryError) -> Vec<Delivery<T>> {
        let mut deliveries = Vec::new();
        if let Some(batch) = self.batch.take() {
            if batch.out || batch.maybe_written {
                // A batch in the log has used its sequence numbers. If it is not there, the next response reports a
                // gap.
                self.next_sequence = sequence_after(self.next_sequence, batch.messages.len());
                deliveries = self.fail(batch.messages, &DeliveryError::Unknown);
            } else {
                deliveries = self.fail(batch.messages, denied);
            }
        }
        let pieces = std::mem::take(&mut self.pieces).into_iter().rev().flatten();
        let rest = pieces.chain(std::mem::take(&mut self.waiting)).collect();
        deliveries.extend(self.fail(rest, denied));
        deliveries
    }

    fn fail(&mut self, messages: Vec<Message<T>>, error: &DeliveryError) -> Vec<Delivery<T>> {
        self.bytes -= messages.iter().map(|message| message.record.size()).sum::<usize>();
        messages.into_iter().map(|Message { token, .. }| Delivery { token, outcome: Err(error.clone()) }).collect()
    }

    fn renew(&mut self, fresh: Identity) {
        self.identity = fresh;
        self.next_sequence = 0;
    }

    fn delivered(&mut self, base_offset: i64) -> Vec<Delivery<T>> {
        let Some(batch) = self.batch.take() else { return Vec::new() };
        let count = batch.messages.len();
        self.next_sequence = sequence_after(self.next_sequence, count);
        self.search_from = Some(base_offset.saturating_add(count as i64));
        let partition = self.partition;
        let offsets = base_offset..;
        let mut deliveries = Vec::with_capacity(count);
        for (message, offset) in batch.messages.into_iter().zip(offsets) {
            self.bytes -= message.record.size();
            deliveries.push(Delivery { token: message.token, outcome: Ok(Delivered { partition, offset }) });
        }
        deliveries
    }

    /// Halves a refused batch until the faulty record is alone. A refused batch is not in the log, so its sequence
    /// numbers are free.
    fn split(&mut self, code: ErrorCode, message: &str) -> Vec<Delivery<T>> {
        let Some(Batch { mut messages, .. }) = self.batch.take() else { return Vec::new() };
        if messages.len() == 1 {
            return self.refuse(messages, code, message);
        }
        let second = messages.split_off(messages.len() / 2);
        self.pieces.push(second);
        self.pieces.push(messages);
        Vec::new()
    }

    fn refuse(&mut self, messages: Vec<Message<T>>, code: ErrorCode, message: &str) -> Vec<Delivery<T>> {
        self.fail(messages, &DeliveryError::Refused { code, message: message.to_owned() })
    }

    /// Settles all remaining records at the end.
    pub(super) fn abandon(self) -> Vec<Delivery<T>> {
        let (unknown, unsent) = match self.batch {
            Some(batch) if batch.out || batch.maybe_written => (batch.messages, Vec::new()),
            Some(batch) => (Vec::new(), batch.messages),
            None => (Vec::new(), Vec::new()),
        };
        let unknown = unknown.into_iter().map(|message| (message.token, DeliveryError::Unknown));
        let rest = unsent.into_iter().chain(self.pieces.into_iter().rev().flatten()).chain(self.waiting);
        unknown
            .chain(rest.map(|message| (message.token, DeliveryError::Unsent)))
            .map(|(token, error)| Delivery { token, outcome: Err(error) })
            .collect()
    }
}

/// Codes that concern a record itself, which repeating cannot cure. The broker names one faulty record for the whole
/// batch.
fn is_refusal(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::MESSAGE_TOO_LARGE
            | ErrorCode::RECORD_LIST_TOO_LARGE
            | ErrorCode::INVALID_TIMESTAMP
            | ErrorCode::INVALID_RECORD
    )
}

/// The broker rejects the producer id or sequence number: it lost them (retention, an unclean leader), or the client is
/// at fault.
fn is_sequence_fault(code: ErrorCode) -> bool {
    /// The batch is older than the last five, whose numbers the broker remembers.
    const DUPLICATE_SEQUENCE_NUMBER: ErrorCode = ErrorCode(46);
    /// Another producer took the id over.
    const PRODUCER_FENCED: ErrorCode = ErrorCode(90);
    matches!(
        code,
        ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER
            | ErrorCode::INVALID_PRODUCER_EPOCH
            | ErrorCode::UNKNOWN_PRODUCER_ID
            | DUPLICATE_SEQUENCE_NUMBER
            | PRODUCER_FENCED
    )
}

/// Sequence numbers run from 0 to 2^31 - 1, then start again at 0.
fn sequence_after(sequence: i32, count: usize) -> i32 {
    let next = (i64::from(sequence) + count as i64) % (i64::from(i32::MAX) + 1);
    // The remainder is below 2^31.
    next as i32
}

#[cfg(test)]
mod tests;
