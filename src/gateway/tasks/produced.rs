//! Applies Kafka's acknowledgements of the gateway's records, on the producer's thread.

use super::book::{Loss, TaskBook};
use super::key::{Position, TaskKey};
use super::parting::tell_accepted;
use super::{Tasks, give_all};
use crate::gateway::metrics::Reason;
use crate::http::reply::Reply;
use crate::http::response::Response;
use kafka_share::producer::{Delivery, DeliveryError, ProducerEvents};
use std::sync::Arc;
use std::time::Instant;

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A task whose callers wait.
    Task,
    /// A claim: for an idempotency key, whose callers wait, or for a lost task.
    Claim,
    /// A task that Kafka had dropped; its callers wait only for its result.
    Again(Loss),
}

/// Identifies a record; the producer returns it with the delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) struct Token {
    pub(super) kind: Kind,
    pub(super) key: TaskKey,
    /// The size of its value.
    pub(super) bytes: usize,
}

pub(in crate::gateway) struct ProducerOutcomes(pub(in crate::gateway) Arc<Tasks>);

impl ProducerEvents<Token> for ProducerOutcomes {
    fn about_to_send(&mut self, token: &Token) -> bool {
        let now = Instant::now();
        let late = match token.kind {
            Kind::Claim => return true,
            Kind::Again(lost) => return self.0.book().sending_again(token.key, lost, token.bytes, now),
            Kind::Task => self.0.book().sending(token.key, token.bytes, now),
        };
        let Err(late) = late else { return true };
        let detail = "Kafka did not take the task in time; the task was not accepted";
        self.0.refuse_all(Reason::KafkaUnavailable, late, detail);
        false
    }

    fn settled(&mut self, deliveries: Vec<Delivery<Token>>) {
        let now = self.0.state.now();
        let (mut responses, mut accepted) = (Vec::new(), Vec::new());
        {
            let mut book = self.0.book();
            for Delivery { token, outcome } in deliveries {
                let book: &mut TaskBook<Reply> = &mut book;
                match (token.kind, outcome) {
                    (Kind::Again(lost), Ok(_)) if !book.heeds(token.key, lost.replay) => {
                        book.settled_record(token.bytes);
                    }
                    (Kind::Task | Kind::Again(_), Ok(delivered)) => {
                        match token.kind {
                            Kind::Again(_) => self.0.state.metrics.produced_again(),
                            _ => self.0.state.metrics.accepted(),
                        }
                        let position = Position { partition: delivered.partition, offset: delivered.offset };
                        let callers = book.task_acknowledged(token.key, token.bytes, position, now);
                        if !callers.is_empty() {
                            accepted.push((callers, token.key.as_uuid().to_string()));
                        }
                    }
                    // After an error the sweep finds the task again.
                    (Kind::Claim, Ok(_)) | (Kind::Again(_), Err(_)) => book.settled_record(token.bytes),
                    (Kind::Task | Kind::Claim, Err(error)) => {
                        let callers = book.given_up(token.key, token.bytes);
                        if let Some(reason) = reason_of(&error) {
                            self.0.state.metrics.refused(reason, callers.len());
                        }
                        responses.push((callers, not_accepted(token.key, &error)));
                    }
                }
            }
        }
        for (callers, id) in accepted {
            tell_accepted(callers, &id);
        }
        for (callers, response) in responses {
            give_all(callers, &response);
        }
    }
}

/// Why the task was not accepted; `None`: it may have been.
fn reason_of(error: &DeliveryError) -> Option<Reason> {
    match error {
        DeliveryError::Refused { .. } | DeliveryError::Denied { .. } => Some(Reason::KafkaRefused),
        DeliveryError::Unsent => Some(Reason::Draining),
        DeliveryError::Unknown => None,
    }
}

fn not_accepted(key: TaskKey, error: &DeliveryError) -> Response {
    let detail = match error {
        DeliveryError::Refused { code, .. } => format!("Kafka refused the task ({code}); the task was not accepted"),
        DeliveryError::Denied { .. } => format!("{error}; the task was not accepted"),
        DeliveryError::Unsent => "the gateway is shutting down; the task was not accepted".to_owned(),
        DeliveryError::Unknown => {
            let detail = "Kafka has not acknowledged the task; whether it was accepted is unknown: ask for its result";
            return Response::unavailable(detail, Some(&key.as_uuid().to_string()));
        }
    };
    Response::unavailable(&detail, None)
}
