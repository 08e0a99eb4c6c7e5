//! Fetching stored results: the index knows where a result stands, this thread gets it from Kafka.
//!
//! One thread with connections of its own, so that the readers never wait for a lookup.

use super::answer::Answer;
use super::desk::Desk;
use super::exchange::Exchange;
use super::index::{Known, Place, TaskKey};
use crate::kafka::cluster::Cluster;
use crate::kafka::reader::Lookup;
use crate::stop::Stop;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};
use serde_json::json;
use std::convert::Infallible;
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
    /// Answers who asks for a task by its id, from what is known of it.
    pub(super) fn answer(&self, known: Known, exchange: Exchange, key: TaskKey, id: &str, read_back: bool) {
        match known {
            Known::Done(place) => self.ask(Question { exchange, key, place, stored: true }),
            Known::Pending => exchange.answer(Answer::json(200, &json!({ "task_id": id, "state": "pending" }))),
            Known::Nothing if read_back => {
                let detail = "this task is not known, or its result is older than RESULT_RETENTION";
                exchange.answer(Answer::problem(404, detail, Some(id)));
            }
            Known::Nothing => {
                let detail = "the gateway is still reading what happened before its start; try again";
                exchange.answer(Answer::unavailable(detail, Some(id), RETRY_AFTER));
            }
        }
    }

    /// Hands a question over, or answers that there are too many.
    pub(super) fn ask(&self, question: Question) {
        let (question, detail) = match self.0.try_send(question) {
            Ok(()) => return,
            Err(TrySendError::Full(question)) => (question, "too many results are asked for at once"),
            Err(TrySendError::Disconnected(question)) => (question, "the gateway is shutting down"),
        };
        question.exchange.answer(Answer::unavailable(detail, None, RETRY_AFTER));
    }
}

/// Answers questions until stopped.
pub(super) fn run(
    desk: &Arc<Desk>,
    cluster: Cluster,
    questions: &Receiver<Question>,
    stop: &Stop,
) -> Result<(), Infallible> {
    let topic = desk.config.common.results_topic.clone();
    let mut lookup = Lookup::new(cluster);
    loop {
        let Question { exchange, key, place, stored } = select! {
            recv(questions) -> question => match question {
                Ok(question) => question,
                Err(_) => return Ok(()),
            },
            recv(stop.triggered()) -> _ => return Ok(()),
        };
        let answer = match lookup.read(&topic, place.partition, place.offset) {
            Ok(Some(record)) => match record.value {
                Some(value) if stored => Answer::stored_result(&value),
                Some(value) => Answer::result(&value),
                None => gone(),
            },
            Ok(None) => {
                desk.state().index.forget(key);
                gone()
            }
            Err(error) => {
                log::debug!("a result could not be fetched: {error}");
                Answer::unavailable("Kafka does not answer; the result is not lost", None, RETRY_AFTER)
            }
        };
        exchange.answer(answer);
    }
}

fn gone() -> Answer {
    Answer::problem(404, "the result is not kept any more", None)
}
