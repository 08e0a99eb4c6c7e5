//! Applies Kafka's acknowledgements to the account, on the producer's thread, for every record of the outbox.
//!
//! Only this file calls [`InFlight::published`]. A refused record is replaced by a smaller one, at last by a line in
//! the log ([`repair`](super::repair)). A record that is denied for a missing right releases its task. So no task stays
//! `Publishing` forever.

use super::drain::Control;
use super::in_flight::{InFlight, RecordKey};
use super::repair::{Debt, Owed, Repair};
use crossbeam_channel::Sender;
use kafka_share::producer::{Delivery, DeliveryError, ProducerEvents};
use program::logging::escape;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Instant;

/// Identifies a record; the producer returns it with the delivery.
#[derive(Debug)]
pub(super) enum Token {
    /// A record that must be in Kafka before its task is accepted.
    Owed(RecordKey, Debt),
    /// A notification for whose acknowledgement main waits. Capacity one, one answer.
    Notice(Sender<bool>),
    /// The record of a start, for which a handler waits. Capacity one, one answer.
    Start(Sender<bool>, Arc<StartRecord>),
    /// A heartbeat.
    Heartbeat,
    /// A record for which no thread waits.
    Fleeting,
}

/// Whether the record of a start was sent, or its handler stopped waiting before.
#[derive(Debug, Default)]
pub(super) struct StartRecord(AtomicU8);

impl StartRecord {
    const WAITS: u8 = 0;
    const SENT: u8 = 1;
    const CANCELLED: u8 = 2;

    /// Cancels the record, because the handler stops waiting. Returns false if it was sent already.
    pub(super) fn cancel(&self) -> bool {
        self.change(Self::CANCELLED)
    }

    fn change(&self, to: u8) -> bool {
        self.0.compare_exchange(Self::WAITS, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// Receives the producer's deliveries.
pub(super) struct Settling {
    pub(super) in_flight: Arc<InFlight>,
    pub(super) control: Arc<Control>,
    /// To the status thread. Full: the task is released.
    pub(super) repairs: Sender<Repair>,
    /// A heartbeat is on its way.
    pub(super) heartbeat: Arc<AtomicBool>,
    pub(super) worker_id: Arc<str>,
    /// Records that could not be written at all.
    pub(super) unwritten: u64,
}

impl ProducerEvents<Token> for Settling {
    fn about_to_send(&mut self, token: &Token) -> bool {
        match token {
            // A start for which no handler waits is not written.
            Token::Start(_, record) => record.change(StartRecord::SENT),
            _ => true,
        }
    }

    fn settled(&mut self, deliveries: Vec<Delivery<Token>>) {
        for Delivery { token, outcome } in deliveries {
            match (token, outcome) {
                (Token::Owed(key, _), Ok(_)) => self.in_flight.published(key),
                (Token::Owed(key, debt), Err(error)) => self.mend(key, &debt, &error),
                // Capacity one and one answer: never full. Disconnected: the waiting thread timed out.
                (Token::Notice(waiting) | Token::Start(waiting, _), outcome) => {
                    let _ = waiting.try_send(outcome.is_ok());
                }
                (Token::Heartbeat, _) => self.heartbeat.store(false, Ordering::Relaxed),
                (Token::Fleeting, _) => {}
            }
        }
        self.control.ring();
    }
}

impl Settling {
    fn mend(&mut self, key: RecordKey, debt: &Debt, error: &DeliveryError) {
        match error {
            // The producer is closed, so the process ends, and main has released the task.
            DeliveryError::Unsent => {}
            DeliveryError::Denied { .. } | DeliveryError::Unknown => self.give_back(key, debt, error),
            DeliveryError::Refused { .. } => {
                let reason: Arc<str> = error.to_string().into();
                let given_up = if let Owed::Copy(_, task_id) = &debt.record { Some(Arc::clone(task_id)) } else { None };
                match debt.less(&reason) {
                    Some(less) => {
                        if self.repairs.try_send(Repair { key, debt: less, reason, given_up }).is_err() {
                            self.give_back(key, debt, &"too many records are being repaired");
                        }
                    }
                    None => self.last_resort(key, debt, &reason),
                }
            }
        }
    }

    /// Releases the task after a rest; it runs again.
    fn give_back(&self, key: RecordKey, debt: &Debt, reason: &dyn std::fmt::Display) {
        let rest = debt.rest(self.in_flight.is_last(key));
        log::warn!(
            "Worker {} gives the task at offset {} back in {} s: {}",
            escape(&self.worker_id),
            key.offset,
            rest.as_secs(),
            escape(&reason.to_string())
        );
        self.in_flight.unpublished(key, Instant::now() + rest);
    }

    /// Logs the facts of a record that cannot be written, and settles the task as if it had been written.
    fn last_resort(&mut self, key: RecordKey, debt: &Debt, reason: &str) {
        self.unwritten += 1;
        log::error!(
            "Worker {} cannot write the {} (partition {}, offset {}): {}; the task ends without it ({} such records so \
             far)",
            escape(&self.worker_id),
            debt.facts(),
            key.partition.partition,
            key.offset,
            escape(reason),
            self.unwritten
        );
        self.in_flight.published(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::in_flight::Claim;
    use crossbeam_channel::{Receiver, bounded};
    use kafka_share::error::ErrorCode;
    use kafka_share::producer::Delivered;
    use kafka_share::share_wire::{Acknowledgement, SharePartition};
    use std::time::Duration;
    use uuid::Uuid;

    const KEY: RecordKey = RecordKey { partition: SharePartition { topic_id: Uuid::nil(), partition: 0 }, offset: 1 };

    /// An account with one task whose `records` are on their way, and its `Settling`.
    fn publishing(records: u8) -> (Settling, Receiver<Repair>) {
        let in_flight = Arc::new(InFlight::new(Duration::from_secs(15)));
        let now = Instant::now();
        let delivered = crate::worker::in_flight::Delivered {
            key: KEY,
            mark: "id".into(),
            node: 1,
            sent_at: now,
            startable: true,
            delivery_count: 1,
            last_delivery: false,
        };
        assert!(in_flight.deliver(delivered, now));
        let Claim::Yours(run) = in_flight.claim((KEY, 1), None, false, now) else { panic!("the record is ready") };
        assert!(in_flight.publish(KEY, &run, records, None));
        let (repairs, to_repair) = bounded(1);
        let settling = Settling {
            in_flight,
            control: Arc::new(Control::new()),
            repairs,
            heartbeat: Arc::default(),
            worker_id: "w".into(),
            unwritten: 0,
        };
        (settling, to_repair)
    }

    fn settle(settling: &mut Settling, record: Owed, outcome: Result<Delivered, DeliveryError>) {
        let token = Token::Owed(KEY, Debt { deliveries: 1, record });
        settling.settled(vec![Delivery { token, outcome }]);
    }

    fn due(settling: &Settling) -> Vec<Acknowledgement> {
        let channel = settling.in_flight.new_channel();
        let due = settling.in_flight.take_due(1, channel).into_values();
        due.flat_map(std::collections::BTreeMap::into_values).collect()
    }

    fn result() -> Owed {
        Owed::Result("id".into(), Vec::new())
    }

    fn refused() -> DeliveryError {
        DeliveryError::Refused { code: ErrorCode::MESSAGE_TOO_LARGE, message: String::new() }
    }

    #[test]
    fn refused_record_is_replaced_and_finally_counts_as_written() {
        let (mut settling, to_repair) = publishing(1);
        settle(&mut settling, result(), Err(refused()));
        let Repair { debt, .. } = to_repair.try_recv().expect("a repair");
        assert!(due(&settling).is_empty());
        settle(&mut settling, debt.record, Err(refused()));
        assert!(to_repair.try_recv().is_err(), "there is no smaller record");
        assert_eq!((due(&settling), settling.unwritten), (vec![Acknowledgement::Accept], 1));
    }

    #[test]
    fn denied_record_releases_its_task_after_a_rest_even_if_another_record_is_written() {
        let denied = DeliveryError::Denied { right: "Write", resource: "topic t".into(), code: ErrorCode(29) };
        for error in [denied, DeliveryError::Unknown] {
            let (mut settling, _to_repair) = publishing(2);
            settle(&mut settling, result(), Err(error));
            settle(&mut settling, result(), Ok(Delivered { partition: 0, offset: 0 }));
            assert!(due(&settling).is_empty() && settling.in_flight.counts().resting == 1);
            settling.in_flight.end_rests(Instant::now() + Duration::from_secs(6));
            assert_eq!(due(&settling), [Acknowledgement::Release]);
        }
    }

    #[test]
    fn task_is_released_when_too_many_records_are_being_repaired() {
        let (mut settling, _to_repair) = publishing(2);
        settle(&mut settling, result(), Err(refused()));
        settle(&mut settling, result(), Err(refused()));
        assert_eq!(settling.in_flight.counts().resting, 1);
    }

    #[test]
    fn start_record_is_not_sent_when_its_handler_has_stopped_waiting() {
        let (mut settling, _to_repair) = publishing(1);
        let (waiting, _answer) = bounded(1);
        let record = Arc::new(StartRecord::default());
        let token = Token::Start(waiting, Arc::clone(&record));
        assert!(record.cancel());
        assert!(!settling.about_to_send(&token) && settling.about_to_send(&Token::Heartbeat));
    }
}
