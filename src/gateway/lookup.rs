//! What is asked by a task's id: the index knows where a result stands, the thread `lookup` gets it from Kafka.
//!
//! One thread with connections of its own, so that the readers never wait for a look-up. A question waits in
//! [`waiting`](super::waiting) like every reply that cannot be given at once; what is queued here is its number, and
//! where its result stands.

use super::answer::Answer;
use super::desk::Desk;
use super::index::{Known, Place, TaskKey};
use super::readers;
use super::reply::{Reply, Ticket};
use super::waiting::{Full, Leaving, Wish};
use crate::kafka::cluster::Cluster;
use crate::kafka::reader::Lookup;
use crate::stop::Stop;
use crate::task::ResultsRecord;
use crossbeam_channel::{Receiver, Sender, bounded, select};
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Questions that may wait for the thread, those of callers that have left included. Full: the caller is told to come
/// back.
const QUEUE: usize = 1024;
/// When to come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A result that a caller waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    number: u64,
    key: TaskKey,
    place: Place,
    /// Asked for by its id (200 whatever came of the task), not by posting the task.
    stored: bool,
}

/// The asking side.
#[derive(Clone, Debug)]
pub(super) struct Questions {
    desk: Arc<Desk>,
    asked: Sender<Question>,
}

impl Questions {
    /// The two ends of the queue.
    pub(super) fn new(desk: Arc<Desk>) -> (Self, Receiver<Question>) {
        let (sender, receiver) = bounded(QUEUE);
        (Self { desk, asked: sender }, receiver)
    }

    /// A task is asked for by its id.
    pub(super) fn ask(&self, reply: Reply, id: String) -> Option<Ticket> {
        let desk = &self.desk;
        let key = TaskKey::from_id(&id);
        let known = desk.state().index.known(key);
        match known {
            Known::Done(place) => return self.fetch(reply, key, id, place, true),
            Known::Nothing if !desk.is_read_back() => {
                let detail = "the gateway is still reading what happened before its start; try again";
                reply.give(unavailable(detail, &id));
            }
            Known::Nothing if desk.is_draining() => {
                reply.give(unavailable("the gateway is shutting down; ask another one", &id));
            }
            Known::Nothing if !desk.is_kafka_connected() => {
                reply.give(unavailable("Kafka does not answer; whether there is such a task is not known", &id));
            }
            // Another gateway may have accepted it a moment ago.
            Known::Nothing => {
                let asked = desk.state().waiting.ask(key, id.clone(), reply, Instant::now());
                return self.ticket(asked, &id);
            }
            Known::Pending => reply.give(pending(&id)),
        }
        None
    }

    /// The tasks topic was read so often. Those that asked for an unknown task are answered once other gateways' tasks
    /// are known, too.
    pub(super) fn passed(&self, passes: u64) {
        let asked: Vec<_> = {
            let mut state = self.desk.state();
            let ripe = state.waiting.passed(passes);
            ripe.into_iter().map(|(number, key)| (number, key, state.index.known(key))).collect()
        };
        for (number, key, known) in asked {
            if let Known::Done(place) = known {
                self.hand_over(Question { number, key, place, stored: true });
                continue;
            }
            self.give(number, |id| match known {
                Known::Pending => pending(id),
                _ => Answer::problem(
                    404,
                    "this task is not known, or its result is older than RESULT_RETENTION",
                    Some(id),
                ),
            });
        }
    }

    /// Has a result fetched that stands there.
    pub(super) fn fetch(&self, reply: Reply, key: TaskKey, id: String, place: Place, stored: bool) -> Option<Ticket> {
        if !self.desk.is_kafka_connected() {
            reply.give(unavailable(AWAY, &id));
            return None;
        }
        let entered = self.desk.state().waiting.look_up(key, id.clone(), reply, Instant::now());
        let ticket = self.ticket(entered, &id)?;
        self.hand_over(Question { number: ticket.number, key, place, stored });
        Some(ticket)
    }

    fn ticket(&self, entered: Result<Ticket, (Reply, Full)>, id: &str) -> Option<Ticket> {
        let (reply, full) = match entered {
            Ok(ticket) => return Some(ticket),
            Err(refused) => refused,
        };
        reply.give(match full {
            Full::Table(_) => unavailable("too many tasks are asked for at once", id),
            Full::Closed => unavailable("the gateway is shutting down; ask another one", id),
        });
        None
    }

    fn hand_over(&self, question: Question) {
        // Full, or the thread has ended.
        if self.asked.try_send(question).is_err() {
            self.give(question.number, |id| unavailable("too many results are asked for at once", id));
        }
    }

    fn give(&self, number: u64, answer: impl FnOnce(&str) -> Answer) {
        give(&self.desk, number, answer);
    }
}

const AWAY: &str = "Kafka does not answer; the result is not lost";

/// Gives a question's reply, unless its caller has left.
fn give(desk: &Desk, number: u64, answer: impl FnOnce(&str) -> Answer) {
    let taken = desk.state().waiting.take(number);
    if let Some(Leaving { waiter, .. }) = taken
        && let Wish::Stored(id) | Wish::Existence(id) = &waiter.wish
    {
        waiter.reply.give(answer(id));
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
        let Question { number, key, place, stored } = select! {
            recv(questions) -> question => match question {
                Ok(question) => question,
                Err(_) => return Ok(()),
            },
            recv(stop.triggered()) -> _ => return Ok(()),
        };
        if !desk.state().waiting.waits(number) {
            continue;
        }
        // In a topic that was created again another record stands there, or none.
        let found = lookup.read(&topic, place.partition, place.offset).map(|record| {
            let record = record?;
            let ResultsRecord::Result(peek) = readers::decode(&record) else { return None };
            (TaskKey::from_id(&peek.task_id) == key).then_some((peek, record.value?))
        });
        if let Ok(None) = found {
            desk.state().index.forget(key);
        }
        give(desk, number, |id| match found {
            Ok(Some((_, value))) if stored => Answer::stored_result(&value),
            Ok(Some((peek, value))) => Answer::result(&peek, &value),
            Ok(None) => Answer::problem(404, "the result is not kept any more", Some(id)),
            Err(error) => {
                log::debug!("a result could not be fetched: {error}");
                unavailable(AWAY, id)
            }
        });
    }
}

fn pending(id: &str) -> Answer {
    Answer::json(200, &json!({ "task_id": id, "state": "pending" }))
}

fn unavailable(detail: &str, id: &str) -> Answer {
    Answer::unavailable(detail, Some(id), RETRY_AFTER)
}
