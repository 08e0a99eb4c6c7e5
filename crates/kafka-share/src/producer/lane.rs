//! The records of one partition on their way into the log: pure, no I/O, no clock but the one handed in.
//!
//! At most one batch of a partition is out at a time. Its bytes are made once, with the producer's id and the next
//! sequence number, and stay the same until the answer settles them. What a broker's answer means is decided here; what
//! is sent when, by [`actor`](super::actor).

use std::collections::VecDeque;
use std::time::SystemTime;

use bytes::Bytes;

use super::{Delivered, Delivery, DeliveryError, Message};
use crate::error::{ErrorCode, Retry};
use crate::records::{self, BatchIdentity, RecordContent};

/// A record larger than this is refused here: a request above the broker's `socket.request.max.bytes` (100 MiB) is
/// answered by closing the connection, for ever.
const RECORD_CAP: usize = 32 << 20;

/// Id and epoch that a broker gave to a producer (KIP-98).
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
    /// Every batch of ours that is not yet acknowledged was written at this offset or later.
    search_from: Option<i64>,
    /// Pieces of refused batches, the next one last. They go before what waits.
    pieces: Vec<Vec<Message<T>>>,
    waiting: VecDeque<Message<T>>,
    batch: Option<Batch<T>>,
    /// Of everything in this lane.
    bytes: usize,
}

/// A batch whose outcome is not known.
#[derive(Debug)]
struct Batch<T> {
    messages: Vec<Message<T>>,
    bytes: Bytes,
    identity: BatchIdentity,
    /// It was handed to a connection, and the answer has not come.
    out: bool,
    /// Some sending of it was never answered for good: it may be in the log, whatever a later answer says.
    maybe_written: bool,
    /// Only the log can tell: it is looked up before anything else is sent.
    in_doubt: bool,
}

/// What an answer, or the log, has settled.
#[derive(Debug)]
pub(super) struct Answer<T> {
    pub(super) deliveries: Vec<Delivery<T>>,
    pub(super) verdict: Verdict,
}

/// What an answer means for the batch that was out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is settled, or was split so that the rest goes on.
    Settled,
    /// The same batch goes out again after a rest.
    Again(ErrorCode),
    /// Only the log can tell: [`Lane::in_doubt`].
    InDoubt(ErrorCode),
    /// The topic or the request is refused, whatever its records: [`Lane::deny`].
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

    /// Where the log is searched for a batch in doubt; `None` until it is told.
    pub(super) fn search_from(&self) -> Option<i64> {
        self.search_from
    }

    pub(super) fn set_search_from(&mut self, offset: i64) {
        self.search_from = Some(offset);
    }

    /// The batch that must be looked up in the log before the lane goes on.
    pub(super) fn in_doubt(&self) -> Option<BatchIdentity> {
        self.batch.as_ref().filter(|batch| batch.in_doubt).map(|batch| batch.identity)
    }

    /// Makes the next batch unless one is out already. `keep` is asked for each record that goes out for the first
    /// time; the ones it drops are gone. Returns what could be refused without asking the broker.
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

    /// The bytes to be sent now; `None` when there is nothing, or the log must be asked first. Counts as sent from here
    /// on.
    pub(super) fn outgoing(&mut self) -> Option<Bytes> {
        let batch = self.batch.as_mut().filter(|batch| !batch.in_doubt)?;
        batch.out = true;
        Some(batch.bytes.clone())
    }

    /// The batch was sent and no answer came: it goes out again as it is.
    pub(super) fn unanswered(&mut self) {
        if let Some(batch) = &mut self.batch {
            batch.maybe_written |= batch.out;
            batch.out = false;
        }
    }

    /// The broker's answer for this partition.
    pub(super) fn answered(&mut self, code: ErrorCode, base_offset: i64, message: Option<&str>) -> Answer<T> {
        let Some(batch) = &mut self.batch else { return Answer::settled(Vec::new()) };
        batch.out = false;
        match code {
            ErrorCode::NONE => Answer::settled(self.delivered(base_offset)),
            // An earlier sending may be in the log, and a new id would write it a second time.
            code if is_sequence_fault(code) || (code.retry() == Retry::Never && batch.maybe_written) => {
                batch.in_doubt = true;
                Answer::without_deliveries(Verdict::InDoubt(code))
            }
            code if is_refusal(code) => Answer::settled(self.split(code, message.unwrap_or_default())),
            code if code.retry() == Retry::Never => Answer::without_deliveries(Verdict::Denied(code)),
            code => {
                // 7 and 20 come after the leader has written the batch, 6 can: only the final answer tells.
                batch.maybe_written = true;
                Answer::without_deliveries(Verdict::Again(code))
            }
        }
    }

    /// The log has the batch in doubt at this offset. The id that caused the doubt is not used again.
    pub(super) fn found(&mut self, base_offset: i64, fresh: Identity) -> Vec<Delivery<T>> {
        let deliveries = self.delivered(base_offset);
        self.renew(fresh);
        deliveries
    }

    /// The log does not have the batch in doubt: its records go out again, first of all, under a new id.
    pub(super) fn not_found(&mut self, fresh: Identity) {
        if let Some(batch) = self.batch.take() {
            self.pieces.push(batch.messages);
        }
        self.renew(fresh);
    }

    /// The log may not be asked for the batch in doubt: its outcome stays unknown, and its id is not used again.
    pub(super) fn not_told(&mut self, fresh: Identity) -> Vec<Delivery<T>> {
        let messages = self.batch.take().map(|batch| batch.messages).unwrap_or_default();
        self.renew(fresh);
        self.fail(messages, &DeliveryError::Unknown)
    }

    /// Kafka refuses the partition, whatever its records: all of them fail. One that may be in the log stays unknown.
    pub(super) fn deny(&mut self, denied: &DeliveryError) -> Vec<Delivery<T>> {
        let mut deliveries = Vec::new();
        if let Some(batch) = self.batch.take() {
            if batch.out || batch.maybe_written {
                // If it is in the log its sequence numbers are used up; if it is not, the next answer says so.
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

    /// Nothing of a refused batch is in the log, and its sequence numbers are free again: halve it until the culprit is
    /// alone.
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

    /// Settles everything that is left, at the end.
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

/// The codes that concern a record itself and that repeating cannot cure. For the whole batch the broker names one
/// culprit.
fn is_refusal(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::MESSAGE_TOO_LARGE
            | ErrorCode::RECORD_LIST_TOO_LARGE
            | ErrorCode::INVALID_TIMESTAMP
            | ErrorCode::INVALID_RECORD
    )
}

/// The broker does not agree about our id or sequence numbers: it lost them (retention, an unclean leader), or we are
/// at fault.
fn is_sequence_fault(code: ErrorCode) -> bool {
    /// The batch is older than the five whose numbers the broker remembers.
    const DUPLICATE_SEQUENCE_NUMBER: ErrorCode = ErrorCode(46);
    /// Another producer took our id over.
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

/// Sequence numbers run from 0 to 2^31 - 1 and begin again.
fn sequence_after(sequence: i32, count: usize) -> i32 {
    let next = (i64::from(sequence) + count as i64) % (i64::from(i32::MAX) + 1);
    // Less than 2^31 by the remainder.
    next as i32
}

#[cfg(test)]
mod tests;
