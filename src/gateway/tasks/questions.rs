//! Requests by a task's id: the book knows the position of a result, the thread `lookup` fetches it from Kafka.
//!
//! One thread with its own connections, so that the readers never wait for a look-up. The reply waits in the book like
//! every reply that cannot be given at once; the queue holds only its number and the position.

use super::Tasks;
use super::index::Known;
use super::key::{Position, TaskKey};
use super::readers::decode;
use super::waiting::{Full, Leaving, Poll, Wish};
use crate::http::reply::{Parting, Preferences, Reply, Ticket};
use crate::http::response::Response;
use crate::task::ResultsRecord;
use crossbeam_channel::{Receiver, select};
use kafka_share::cluster::Cluster;
use kafka_share::reader::Lookup;
use program::stop::Stop;
use serde_json::json;
use std::time::{Duration, Instant};

/// Questions that may wait for the thread, including those of callers that have left. Full: the caller has to retry.
pub(super) const QUEUE: usize = 1024;

const AWAY: &str = "Kafka does not answer; the result is not lost";

/// A result that a caller waits for.
#[derive(Clone, Copy, Debug)]
pub(in crate::gateway) struct Question {
    pub(super) number: u64,
    pub(super) key: TaskKey,
    pub(super) position: Position,
    /// Requested by its id (200 even if the task failed), not by posting the task.
    pub(super) stored: bool,
}

impl Tasks {
    /// Answers a request for a task by its id; `wait`: how long the caller waits for the result of a pending task.
    /// Returns the ticket if the reply waits.
    pub(in crate::gateway) fn ask(&self, reply: Reply, id: String, wait: Option<Duration>) -> Option<Ticket> {
        let reply = reply.applying(Preferences { asynchronous: false, wait });
        let key = TaskKey::from_id(&id);
        let known = self.book().known(key);
        let may_be_pushed_out = self.may_be_pushed_out(key, &id);
        let refused = match known {
            Known::Done(position) => return self.fetch(reply, key, id, position, true),
            Known::Pending if may_be_pushed_out && self.state.is_kafka_connected() => {
                return self.search(reply, key, id, wait);
            }
            Known::Pending if let Some(wait) = wait.filter(|wait| !wait.is_zero()) => {
                return self.poll(Poll { key, id, reply, wait });
            }
            Known::Pending => {
                reply.give(pending(&id));
                return None;
            }
            Known::Nothing if !self.state.is_read_back() => {
                "the gateway is still reading the records from before its start; try again"
            }
            Known::Nothing if self.state.is_draining() => "the gateway is shutting down; ask another gateway",
            Known::Nothing if !self.state.is_kafka_connected() => {
                "Kafka does not answer; it is not known whether this task exists"
            }
            Known::Nothing if may_be_pushed_out => return self.search(reply, key, id, wait),
            // Another gateway may have accepted it a moment ago.
            Known::Nothing => {
                let asked = self.book().ask(key, id.clone(), (reply, wait), Instant::now());
                return ticket(asked, &id);
            }
        };
        reply.give(Response::unavailable(refused, Some(&id)));
        None
    }

    /// Has a caller wait for the result of a pending task, or answers it at once.
    fn poll(&self, poll: Poll<Reply>) -> Option<Ticket> {
        let entered = self.book().poll(poll, Instant::now());
        match entered {
            Ok(ticket) => Some(ticket),
            // Its result came meanwhile, or there is no room: its wait is not applied.
            Err((reply, id)) => self.ask(reply, id, None),
        }
    }

    /// Answers all callers that wait for the result of a pending task by its id: the gateway drains.
    pub(in crate::gateway) fn end_polls(&self) {
        let polls = self.book().end_polls();
        for poll in polls {
            self.tell(poll, Parting::Stopping);
        }
    }

    /// Notes the number of complete passes over the tasks topic. Answers requests for unknown tasks once the tasks of
    /// other gateways are known, too.
    pub(super) fn passed(&self, passes: u64) {
        let decided = self.book().passed(passes, Instant::now());
        for (number, key, known) in decided {
            match known {
                Known::Done(position) => self.hand_over(Question { number, key, position, stored: true }),
                Known::Pending => self.give(number, pending),
                Known::Nothing => self.give(number, |id| {
                    let detail = "this task is unknown, or its result is older than RESULT_RETENTION";
                    Response::problem(404, detail, Some(id))
                }),
            }
        }
    }

    /// Has the result at this position fetched.
    pub(super) fn fetch(
        &self,
        reply: Reply,
        key: TaskKey,
        id: String,
        position: Position,
        stored: bool,
    ) -> Option<Ticket> {
        if !self.state.is_kafka_connected() {
            reply.give(Response::unavailable(AWAY, Some(&id)));
            return None;
        }
        let entered = self.book().look_up(key, id.clone(), reply, Instant::now());
        let ticket = ticket(entered, &id)?;
        self.hand_over(Question { number: ticket.number, key, position, stored });
        Some(ticket)
    }

    /// Passes the question to the thread `lookup`.
    pub(super) fn hand_over(&self, question: Question) {
        if self.questions.try_send(question).is_err() {
            self.give(question.number, |id| Response::unavailable("too many results are requested at once", Some(id)));
        }
    }

    /// Answers a question, unless its caller has left.
    pub(super) fn give(&self, number: u64, response: impl FnOnce(&str) -> Response) {
        let taken = self.book().take(number);
        if let Some(Leaving { waiter, .. }) = taken
            && let Wish::Stored(id) | Wish::Existence(id) = &waiter.wish
        {
            waiter.reply.give(response(id));
        }
    }
}

/// Returns the ticket of an entered reply; refuses the others.
pub(super) fn ticket(entered: Result<Ticket, (Reply, Full)>, id: &str) -> Option<Ticket> {
    let (reply, full) = match entered {
        Ok(ticket) => return Some(ticket),
        Err(refused) => refused,
    };
    let detail = match full {
        Full::Table(_) => "too many tasks are requested at once",
        Full::Closed => "the gateway is shutting down; ask another gateway",
    };
    reply.give(Response::unavailable(detail, Some(id)));
    None
}

/// Answers questions until stopped. The thread `lookup`.
pub(in crate::gateway) fn answer_questions(
    tasks: &Tasks,
    cluster: Cluster,
    questions: &Receiver<Question>,
    stop: &Stop,
) {
    let mut lookup = Lookup::new(cluster);
    loop {
        let Question { number, key, position, stored } = select! {
            recv(questions) -> question => match question {
                Ok(question) => question,
                Err(_) => return,
            },
            recv(stop.triggered()) -> _ => return,
        };
        if !tasks.book().waits(number) {
            continue;
        }
        // In a topic that was created again, another record or none is at this offset.
        let found = lookup.read(&tasks.results_topic, position.partition, position.offset).map(|record| {
            let record = record?;
            let ResultsRecord::Result(peek) = decode(&record) else { return None };
            (TaskKey::from_id(&peek.task_id) == key).then_some((peek, record.value?))
        });
        if let Ok(None) = found {
            tasks.book().result_is_gone(key);
        }
        tasks.give(number, |id| match found {
            Ok(Some((peek, value))) if stored => Response::stored_result(&peek, &value),
            Ok(Some((peek, value))) => Response::result(&peek, &value),
            Ok(None) => Response::problem(404, "the result is no longer stored", Some(id)),
            Err(error) => {
                log::debug!("a result could not be fetched: {error}");
                Response::unavailable(AWAY, Some(id))
            }
        });
    }
}

pub(super) fn pending(id: &str) -> Response {
    Response::json(200, &json!({ "task_id": id, "state": "pending" }))
}
