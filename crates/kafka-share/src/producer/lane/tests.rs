//! A lane against the responses that a broker can give.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::producer::ProducerRecord;

const FIRST: Identity = Identity { id: 1, epoch: 0 };
const SECOND: Identity = Identity { id: 2, epoch: 0 };

fn lane(records: u32) -> Lane<u32> {
    let mut lane = Lane::new(0, FIRST);
    lane.set_search_from(100);
    (0..records).for_each(|token| push(&mut lane, token));
    lane
}

fn push(lane: &mut Lane<u32>, token: u32) {
    let value = Some(Bytes::from(token.to_string()));
    let record = ProducerRecord { topic: Arc::from("topic"), key: None, value, headers: Vec::new() };
    lane.push(Message { record, token });
}

/// Makes and sends the next batch; returns its identity and records.
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
fn batch_stays_unchanged_until_acknowledged_and_the_next_follows_it() {
    let mut lane = lane(2);
    let (first, tokens) = send(&mut lane);
    assert_eq!((first, tokens), (mark(FIRST, 0), vec![0, 1]));
    let bytes = lane.outgoing();
    lane.unanswered();
    assert!(lane.compose(usize::MAX, SystemTime::now(), |_| panic!("asked once only")).is_empty());
    assert_eq!(lane.outgoing(), bytes);
    assert_eq!(lane.answered(ErrorCode(6), -1, None).verdict, Verdict::Again(ErrorCode(6)));
    assert_eq!(lane.outgoing(), bytes);
    assert_eq!(outcomes(lane.answered(ErrorCode::NONE, 100, None).deliveries), [(0, Ok(100)), (1, Ok(101))]);
    assert!(!lane.has_work() && lane.bytes() == 0);
    assert_eq!(lane.search_from(), Some(102));
    push(&mut lane, 7);
    assert_eq!(send(&mut lane), (mark(FIRST, 2), vec![7]));
}

#[test]
fn batch_ends_at_its_byte_limit_but_takes_one_record_of_any_size() {
    let mut lane = lane(5);
    let one = lane.bytes() / 5;
    lane.compose(2 * one, SystemTime::UNIX_EPOCH, |_| true);
    assert_eq!(outcomes(lane.answered(ErrorCode::NONE, 0, None).deliveries).len(), 2);
    lane.compose(1, SystemTime::UNIX_EPOCH, |_| true);
    assert_eq!(outcomes(lane.answered(ErrorCode::NONE, 2, None).deliveries).len(), 1);
}

#[test]
fn record_that_its_owner_declines_is_dropped_without_a_delivery() {
    let mut lane = lane(3);
    lane.compose(usize::MAX, SystemTime::UNIX_EPOCH, |token| *token != 1);
    assert_eq!(outcomes(lane.answered(ErrorCode::NONE, 0, None).deliveries), [(0, Ok(0)), (2, Ok(1))]);
    assert_eq!(lane.bytes(), 0);
}

proptest! {
    #[test]
    fn refused_record_is_isolated_and_the_others_are_delivered_in_order(
        count in 1_u32..40,
        culprits in prop::collection::btree_set(0_u32..40, 0..6),
        code in prop::sample::select(vec![10_i16, 18, 32, 87]),
    ) {
        let mut lane = lane(count);
        let (mut delivered, mut refused, mut end) = (Vec::new(), Vec::new(), 100);
        while lane.has_work() {
            let (identity, tokens) = send(&mut lane);
            // Only records in the log have used sequence numbers.
            prop_assert_eq!(identity, mark(FIRST, delivered.len() as i32));
            let bad = tokens.iter().any(|token| culprits.contains(token));
            let answer = lane.answered(ErrorCode(if bad { code } else { 0 }), if bad { -1 } else { end }, Some("why"));
            prop_assert_eq!(answer.verdict, Verdict::Settled);
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
fn log_decides_outcome_after_a_sequence_fault() {
    for code in [45, 46, 47, 59, 90].map(ErrorCode) {
        let mut found = lane(2);
        let (identity, _) = send(&mut found);
        found.unanswered();
        assert_eq!(found.answered(code, -1, None).verdict, Verdict::InDoubt(code));
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
fn refusal_after_a_lost_response_is_looked_up_in_the_log() {
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
fn abandoned_lane_distinguishes_unsent_from_unknown() {
    let all = |lane: Lane<u32>| outcomes(lane.abandon());
    assert_eq!(all(lane(1)), [(0, Err(DeliveryError::Unsent))]);

    let mut composed = lane(1);
    composed.compose(usize::MAX, SystemTime::UNIX_EPOCH, |_| true);
    assert_eq!(all(composed), [(0, Err(DeliveryError::Unsent))]);

    let mut out = lane(1);
    send(&mut out);
    assert_eq!(all(out), [(0, Err(DeliveryError::Unknown))]);

    // The leader has written the batch, but with too few replicas; the final response never came.
    let mut repeated = lane(2);
    repeated.compose(1, SystemTime::UNIX_EPOCH, |_| true);
    repeated.outgoing();
    repeated.answered(ErrorCode(20), -1, None);
    assert_eq!(all(repeated), [(0, Err(DeliveryError::Unknown)), (1, Err(DeliveryError::Unsent))]);
}

#[test]
fn sequence_numbers_wrap_to_zero() {
    assert_eq!(sequence_after(0, 3), 3);
    assert_eq!(sequence_after(i32::MAX, 1), 0);
    assert_eq!(sequence_after(i32::MAX - 1, 4), 2);
}

#[test]
fn record_larger_than_any_broker_takes_is_refused_without_asking() {
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

#[test]
fn denied_partition_fails_its_records_and_takes_later_ones() {
    let denied = DeliveryError::Denied { right: "Write", resource: "topic t".into(), code: ErrorCode(29) };
    let mut lane = lane(2);
    lane.compose(1, SystemTime::UNIX_EPOCH, |_| true);
    lane.outgoing();
    assert_eq!(lane.answered(ErrorCode(29), -1, None).verdict, Verdict::Denied(ErrorCode(29)));
    assert_eq!(outcomes(lane.deny(&denied)), [(0, Err(denied.clone())), (1, Err(denied.clone()))]);
    assert!(!lane.has_work() && lane.bytes() == 0);
    push(&mut lane, 7);
    // The record was not written, so its number is free.
    assert_eq!(send(&mut lane), (mark(FIRST, 0), vec![7]));
}

#[test]
fn batch_that_may_be_written_before_a_denial_is_looked_up_or_unknown() {
    let denied = DeliveryError::Denied { right: "Write", resource: "topic t".into(), code: ErrorCode(29) };
    for told in [true, false] {
        let mut lane = lane(1);
        send(&mut lane);
        lane.unanswered();
        lane.outgoing();
        assert_eq!(lane.answered(ErrorCode(29), -1, None).verdict, Verdict::InDoubt(ErrorCode(29)));
        let deliveries = if told { lane.not_told(SECOND) } else { lane.deny(&denied) };
        assert_eq!(outcomes(deliveries), [(0, Err(DeliveryError::Unknown))]);
        push(&mut lane, 7);
        let expected = if told { mark(SECOND, 0) } else { mark(FIRST, 1) };
        assert_eq!(send(&mut lane), (expected, vec![7]));
    }
}
