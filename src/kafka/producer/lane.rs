//! The records of one partition on their way into the log: pure, no I/O, no clock but the one handed in.
//!
//! At most one batch of a partition is out at a time. Its bytes are made once, with the producer's id and the next sequence number, and stay
//! the same until the answer settles them. What a broker's answer means is decided here; what is sent when, by
//! [`run`](super::run).

use std::collections::VecDeque;
use std::time::SystemTime;

use bytes::Bytes;

use super::{Delivered, Delivery, DeliveryError, Message};
use crate::kafka::error::ErrorCode;
use crate::kafka::records::{self, BatchIdentity, RecordContent};

/// A record larger than this is refused here: a request above the broker's `socket.request.max.bytes` (100 MiB) is answered by
/// closing the connection, for ever.
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
    /// Our batches stand at or behind this offset, unless they are acknowledged.
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
    /// The code to be repeated after, if the batch is still out.
    pub(super) again: Option<ErrorCode>,
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

    /// Whether the lane can send: it has records, and waits neither for an answer nor for the log.
    pub(super) fn can_send(&self) -> bool {
        match &self.batch {
            Some(batch) => !batch.out && !batch.in_doubt,
            None => !self.pieces.is_empty() || !self.waiting.is_empty(),
        }
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

    /// Makes the next batch unless one is out already. `keep` is asked for each record that goes out for the first time; the ones it drops
    /// are gone. Returns what could be refused without asking the broker.
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

    /// The bytes to be sent now; `None` when there is nothing, or the log must be asked first. Counts as sent from here on.
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
        let Some(batch) = &mut self.batch else { return Answer { deliveries: Vec::new(), again: None } };
        batch.out = false;
        match code {
            ErrorCode::NONE => Answer { deliveries: self.delivered(base_offset), again: None },
            code if is_sequence_fault(code) || (is_refusal(code) && batch.maybe_written) => {
                // An earlier sending may be in the log, and a new id would write it a second time.
                batch.in_doubt = true;
                Answer { deliveries: Vec::new(), again: Some(code) }
            }
            code if is_refusal(code) => {
                Answer { deliveries: self.split(code, message.unwrap_or_default()), again: None }
            }
            code => {
                // 7 and 20 come after the leader has written the batch, 6 can: only the final answer tells.
                batch.maybe_written = true;
                Answer { deliveries: Vec::new(), again: Some(code) }
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

    /// Nothing of a refused batch is in the log, and its sequence numbers are free again: halve it until the culprit is alone.
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
        let refused = DeliveryError::Refused { code, message: message.to_owned() };
        self.bytes -= messages.iter().map(|message| message.record.size()).sum::<usize>();
        messages.into_iter().map(|Message { token, .. }| Delivery { token, outcome: Err(refused.clone()) }).collect()
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

/// The codes that concern a record itself and that repeating cannot cure. For the whole batch the broker names one culprit.
fn is_refusal(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::MESSAGE_TOO_LARGE
            | ErrorCode::RECORD_LIST_TOO_LARGE
            | ErrorCode::INVALID_TIMESTAMP
            | ErrorCode::INVALID_RECORD
    )
}

/// The broker does not agree about our id or sequence numbers: it lost them (retention, an unclean leader), or we are at fault.
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
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::ProducerRecord;
    use super::*;

    const FIRST: Identity = Identity { id: 1, epoch: 0 };
    const SECOND: Identity = Identity { id: 2, epoch: 0 };

    fn lane(records: u32) -> Lane<u32> {
        let mut lane = Lane::new(0, FIRST);
        lane.set_search_from(100);
        for token in 0..records {
            let value = Some(Bytes::from(token.to_string()));
            let record = ProducerRecord { topic: Arc::from("topic"), key: None, value, headers: Vec::new() };
            lane.push(Message { record, token });
        }
        lane
    }

    /// Makes and sends the next batch; its mark, and the records in it.
    fn send(lane: &mut Lane<u32>) -> (BatchIdentity, Vec<u32>) {
        assert!(lane.compose(usize::MAX, SystemTime::UNIX_EPOCH, |_| true).is_empty());
        let bytes = lane.outgoing().expect("a batch");
        let values = records::decode(&bytes, 0).records.into_iter().map(|record| record.value.expect("a value"));
        let tokens = values.map(|value| String::from_utf8(value.to_vec()).expect("text").parse().expect("a number"));
        let batch = records::batches(&bytes).next().expect("whole");
        (batch.identity(), tokens.collect())
    }

    fn mark(identity: Identity, base_sequence: i32) -> BatchIdentity {
        BatchIdentity { producer_id: identity.id, producer_epoch: identity.epoch, base_sequence }
    }

    fn outcomes(deliveries: Vec<Delivery<u32>>) -> Vec<(u32, Result<i64, DeliveryError>)> {
        let outcome = |delivery: Delivery<u32>| (delivery.token, delivery.outcome.map(|delivered| delivered.offset));
        deliveries.into_iter().map(outcome).collect()
    }

    #[test]
    fn a_batch_is_the_same_until_it_is_acknowledged_and_the_next_follows_it() {
        let mut lane = lane(2);
        let (first, tokens) = send(&mut lane);
        assert_eq!((first, tokens), (mark(FIRST, 0), vec![0, 1]));
        let bytes = lane.outgoing();
        lane.unanswered();
        assert!(lane.compose(usize::MAX, SystemTime::now(), |_| panic!("asked once only")).is_empty());
        assert_eq!(lane.outgoing(), bytes);
        assert_eq!(lane.answered(ErrorCode(6), -1, None).again, Some(ErrorCode(6)));
        assert_eq!(lane.outgoing(), bytes);
        assert_eq!(outcomes(lane.answered(ErrorCode::NONE, 100, None).deliveries), [(0, Ok(100)), (1, Ok(101))]);
        assert!(!lane.has_work() && lane.bytes() == 0);
        assert_eq!(lane.search_from(), Some(102));
        lane.push(Message {
            record: ProducerRecord {
                topic: Arc::from("topic"),
                key: None,
                value: Some(Bytes::from("7")),
                headers: Vec::new(),
            },
            token: 7,
        });
        assert_eq!(send(&mut lane), (mark(FIRST, 2), vec![7]));
    }

    #[test]
    fn a_batch_ends_at_its_bytes_but_takes_one_record_whatever_its_size() {
        let mut lane = lane(5);
        let one = lane.bytes() / 5;
        lane.compose(2 * one, SystemTime::UNIX_EPOCH, |_| true);
        assert_eq!(outcomes(lane.answered(ErrorCode::NONE, 0, None).deliveries).len(), 2);
        lane.compose(1, SystemTime::UNIX_EPOCH, |_| true);
        assert_eq!(outcomes(lane.answered(ErrorCode::NONE, 2, None).deliveries).len(), 1);
    }

    #[test]
    fn a_record_nobody_wants_any_more_is_dropped_without_a_word() {
        let mut lane = lane(3);
        lane.compose(usize::MAX, SystemTime::UNIX_EPOCH, |token| *token != 1);
        assert_eq!(outcomes(lane.answered(ErrorCode::NONE, 0, None).deliveries), [(0, Ok(0)), (2, Ok(1))]);
        assert_eq!(lane.bytes(), 0);
    }

    proptest! {
        #[test]
        fn a_refused_record_is_found_and_the_others_are_delivered_in_order(
            count in 1_u32..40,
            culprits in prop::collection::btree_set(0_u32..40, 0..6),
            code in prop::sample::select(vec![10_i16, 18, 32, 87]),
        ) {
            let mut lane = lane(count);
            let (mut delivered, mut refused, mut end) = (Vec::new(), Vec::new(), 100);
            while lane.has_work() {
                let (identity, tokens) = send(&mut lane);
                // What is in the log has used up the sequence numbers before this batch, nothing else has.
                prop_assert_eq!(identity, mark(FIRST, delivered.len() as i32));
                let bad = tokens.iter().any(|token| culprits.contains(token));
                let answer = lane.answered(ErrorCode(if bad { code } else { 0 }), if bad { -1 } else { end }, Some("why"));
                prop_assert_eq!(answer.again, None);
                for (token, outcome) in outcomes(answer.deliveries) {
                    match outcome {
                        Ok(offset) => {
                            prop_assert_eq!(offset, end);
                            end += 1;
                            delivered.push(token);
                        }
                        Err(error) => {
                            prop_assert_eq!(error, DeliveryError::Refused { code: ErrorCode(code), message: "why".into() });
                            refused.push(token);
                        }
                    }
                }
            }
            prop_assert_eq!(lane.bytes(), 0);
            prop_assert!(delivered.is_sorted());
            let expected: Vec<u32> = (0..count).filter(|token| culprits.contains(token)).collect();
            prop_assert_eq!(refused, expected);
        }
    }

    #[test]
    fn the_log_decides_what_a_sequence_fault_leaves_open() {
        for code in [45, 46, 47, 59, 90].map(ErrorCode) {
            let mut found = lane(2);
            let (identity, _) = send(&mut found);
            found.unanswered();
            assert_eq!(found.answered(code, -1, None).again, Some(code));
            assert_eq!((found.in_doubt(), found.outgoing()), (Some(identity), None));
            assert_eq!(outcomes(found.found(105, SECOND)), [(0, Ok(105)), (1, Ok(106))]);
            assert!(!found.has_work());

            let mut missing = lane(2);
            send(&mut missing);
            missing.answered(code, -1, None);
            missing.not_found(SECOND);
            assert_eq!(send(&mut missing), (mark(SECOND, 0), vec![0, 1]));
        }
    }

    #[test]
    fn a_refusal_after_silence_is_looked_up_first() {
        let mut lane = lane(1);
        let (identity, _) = send(&mut lane);
        lane.unanswered();
        lane.outgoing();
        assert!(lane.answered(ErrorCode::INVALID_TIMESTAMP, -1, None).deliveries.is_empty());
        assert_eq!(lane.in_doubt(), Some(identity));
        lane.not_found(SECOND);
        send(&mut lane);
        let refused = outcomes(lane.answered(ErrorCode::INVALID_TIMESTAMP, -1, None).deliveries);
        assert!(matches!(&refused[..], [(0, Err(DeliveryError::Refused { .. }))]), "{refused:?}");
    }

    #[test]
    fn the_end_tells_unsent_from_unknown() {
        let all = |lane: Lane<u32>| outcomes(lane.abandon());
        assert_eq!(all(lane(1)), [(0, Err(DeliveryError::Unsent))]);

        let mut composed = lane(1);
        composed.compose(usize::MAX, SystemTime::UNIX_EPOCH, |_| true);
        assert_eq!(all(composed), [(0, Err(DeliveryError::Unsent))]);

        let mut out = lane(1);
        send(&mut out);
        assert_eq!(all(out), [(0, Err(DeliveryError::Unknown))]);

        // Written by the leader, too few replicas: the final answer never came.
        let mut repeated = lane(2);
        repeated.compose(1, SystemTime::UNIX_EPOCH, |_| true);
        repeated.outgoing();
        repeated.answered(ErrorCode(20), -1, None);
        assert_eq!(all(repeated), [(0, Err(DeliveryError::Unknown)), (1, Err(DeliveryError::Unsent))]);
    }

    #[test]
    fn sequence_numbers_begin_again_at_zero() {
        assert_eq!(sequence_after(0, 3), 3);
        assert_eq!(sequence_after(i32::MAX, 1), 0);
        assert_eq!(sequence_after(i32::MAX - 1, 4), 2);
    }

    #[test]
    fn a_record_that_no_broker_takes_is_refused_here() {
        let mut lane = lane(1);
        let value = Some(Bytes::from(vec![0; RECORD_CAP + 1]));
        lane.push(Message {
            record: ProducerRecord { topic: Arc::from("topic"), key: None, value, headers: Vec::new() },
            token: 9,
        });
        let refused = outcomes(lane.compose(usize::MAX, SystemTime::UNIX_EPOCH, |_| true));
        assert!(
            matches!(&refused[..], [(9, Err(DeliveryError::Refused { code: ErrorCode::MESSAGE_TOO_LARGE, .. }))]),
            "{refused:?}"
        );
        assert_eq!(outcomes(lane.answered(ErrorCode::NONE, 0, None).deliveries), [(0, Ok(0))]);
    }
}
