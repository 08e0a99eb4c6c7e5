//! Fetching stored results: the index knows where a result stands, this thread gets it from Kafka.
//!
//! One thread with connections of its own, so that neither the dispatcher nor the readers ever wait for a lookup.

use super::answer::Answer;
use super::desk::{Desk, Exchange};
use super::index::{Place, TaskKey};
use crate::kafka::cluster::Cluster;
use crate::kafka::error::KafkaError;
use crate::kafka::reader::Lookup;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::sync::Arc;
use std::time::Duration;

/// Questions that may wait. Full: the caller is told to come back.
const QUEUE: usize = 1024;
/// When to come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A result that somebody asks for.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) exchange: Exchange,
    pub(super) key: TaskKey,
    pub(super) place: Place,
    /// Asked for by its id (200 whatever came of the task), not by posting the task.
    pub(super) stored: bool,
}

/// The asking side.
#[derive(Clone, Debug)]
pub(super) struct Questions(Sender<Question>);

/// The two ends of the queue.
pub(super) fn queue() -> (Questions, Receiver<Question>) {
    let (sender, receiver) = bounded(QUEUE);
    (Questions(sender), receiver)
}

impl Questions {
    /// Hands a question over, or answers that there are too many.
    pub(super) fn ask(&self, desk: &Desk, question: Question) {
        let detail = match self.0.try_send(question) {
            Ok(()) => return,
            Err(TrySendError::Full(question)) => (question, "too many results are asked for at once"),
            Err(TrySendError::Disconnected(question)) => (question, "the gateway is shutting down"),
        };
        desk.answer(detail.0.exchange, Answer::unavailable(detail.1, None, RETRY_AFTER));
    }
}

/// Answers questions until the askers are gone.
pub(super) fn run(desk: &Arc<Desk>, cluster: Cluster, questions: &Receiver<Question>) -> Result<(), KafkaError> {
    let topic = desk.config.common.results_topic.clone();
    let mut lookup = Lookup::new(cluster);
    while let Ok(Question { exchange, key, place, stored }) = questions.recv() {
        let answer = match lookup.read(&topic, place.partition, place.offset) {
            Ok(Some(record)) => match record.value {
                Some(value) if stored => Answer::stored_result(&value),
                Some(value) => Answer::result(&value),
                None => gone(),
            },
            Ok(None) => {
                desk.state().index.settle(key);
                gone()
            }
            Err(error) => {
                log::debug!("a result could not be fetched: {error}");
                Answer::unavailable("Kafka does not answer; the result is not lost", None, RETRY_AFTER)
            }
        };
        desk.answer(exchange, answer);
    }
    Ok(())
}

fn gone() -> Answer {
    Answer::problem(404, "the result is not kept any more", None)
}
