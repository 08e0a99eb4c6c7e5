//! Requests by a task's id: the book knows the position of a result, the thread `lookup` fetches it from Kafka.
//!
//! One thread with its own connections, so that the readers never wait for a look-up. The reply waits in the book like
//! every reply that cannot be given at once; the queue holds only its number and the position.

use super::Tasks;
use super::index::Known;
use super::key::{Position, TaskKey};
use super::readers::decode;
use super::waiting::{Full, Leaving, Poll, QUESTION_PATIENCE, Wish};
use crate::http::reply::{Parting, Preferences, Reply, Ticket};
use crate::http::response::Response;
use crate::task::{ResultPeek, ResultsRecord};
use bytes::Bytes;
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
                return self.search(reply, key, id);
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
            Known::Nothing if may_be_pushed_out => return self.search(reply, key, id),
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
                Known::Nothing => self.give(number, unknown),
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
            put_off(reply, AWAY, &id);
            return None;
        }
        let preferences = reply.preferences();
        let entered = self.book().look_up(key, id.clone(), (reply, preferences), QUESTION_PATIENCE, Instant::now());
        let ticket = ticket(entered, &id)?;
        self.hand_over(Question { number: ticket.number, key, position, stored });
        Some(ticket)
    }

    /// Passes the question to the thread `lookup`.
    pub(super) fn hand_over(&self, question: Question) {
        if self.questions.try_send(question).is_err() {
            self.put_off(question.number, "too many results are requested at once");
        }
    }

    /// Answers a question, unless its caller has left.
    pub(super) fn give(&self, number: u64, response: impl FnOnce(&str) -> Response) {
        if let Some((reply, id)) = self.take_question(number) {
            reply.give(response(&id));
        }
    }

    /// Tells the caller of a question that its answer is not known now, unless the caller has left.
    pub(super) fn put_off(&self, number: u64, detail: &str) {
        if let Some((reply, id)) = self.take_question(number) {
            put_off(reply, detail, &id);
        }
    }

    /// The reply of a question, which names only the preferences that apply, and the task's id.
    fn take_question(&self, number: u64) -> Option<(Reply, String)> {
        let Leaving { waiter, .. } = self.book().take(number)?;
        let (Wish::Stored(id) | Wish::Existence(id) | Wish::Poll(id)) = waiter.wish else { return None };
        Some((waiter.reply.applying(waiter.preferences), id))
    }
}

/// Tells a caller that the answer is not known now. A caller with `respond-async` gets 202, since Kafka has its task.
pub(super) fn put_off(reply: Reply, detail: &str, id: &str) {
    let is_asynchronous = reply.preferences().asynchronous;
    let response = if is_asynchronous { Response::accepted(id) } else { Response::unavailable(detail, Some(id)) };
    reply.without_wait().give(response);
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
    put_off(reply, detail, id);
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
        match found {
            Ok(found) => {
                if found.is_none() {
                    tasks.book().result_is_gone(key);
                }
                tasks.give(number, |id| of_record(found, stored, id));
            }
            Err(error) => {
                log::debug!("a result could not be fetched: {error}");
                tasks.put_off(number, AWAY);
            }
        }
    }
}

/// The response with this record of a result, if it is still stored.
fn of_record(found: Option<(ResultPeek, Bytes)>, stored: bool, id: &str) -> Response {
    match found {
        Some((peek, value)) if stored => Response::stored_result(&peek, &value),
        Some((peek, value)) => Response::result(&peek, &value),
        None if stored => Response::problem(404, "the result is no longer stored", Some(id)),
        None => {
            let detail = "the result of this key is no longer stored; send the request again";
            Response::unavailable(detail, Some(id))
        }
    }
}

/// The response for an unknown task.
pub(super) fn unknown(id: &str) -> Response {
    Response::problem(404, "this task is unknown, or its result is older than RESULT_RETENTION", Some(id))
}

pub(super) fn pending(id: &str) -> Response {
    Response::json(200, &json!({ "task_id": id, "state": "pending" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GatewayConfig;
    use crate::gateway::state::State;
    use crate::http::reply::tests::Given;
    use std::sync::Arc;

    const ID: &str = "1";
    const WAIT: Option<Duration> = Some(Duration::from_secs(5));
    const AT: Position = Position { partition: 0, offset: 7 };
    const RESPOND_ASYNC: Preferences = Preferences { asynchronous: true, wait: None };

    /// A gateway, and a reply that it will give.
    fn asked(change: impl FnOnce(&mut GatewayConfig), preferences: Preferences) -> (Arc<Tasks>, Reply, Arc<Given>) {
        let mut config = GatewayConfig::default();
        change(&mut config);
        let given = Arc::<Given>::default();
        let reply = Reply::new(Arc::clone(&given) as _).applying(preferences);
        (Tasks::new(Arc::new(State::new(config))).0, reply, given)
    }

    fn key() -> TaskKey {
        TaskKey::from_id(ID)
    }

    #[test]
    fn pending_body_names_a_preferred_wait_only_if_there_was_a_place_to_wait() {
        let preferences = Preferences { asynchronous: false, wait: WAIT };
        for (places, expected) in [(1, preferences), (0, Preferences::default())] {
            let (tasks, reply, given) = asked(|config| config.max_waiting = places, preferences);
            let ticket = tasks.book().ask(key(), ID.to_owned(), (reply, WAIT), Instant::now()).expect("room");
            let now = tasks.now();
            tasks.book().in_kafka(key(), AT, now.time);
            tasks.passed(9);
            if places == 1 {
                assert_eq!(tasks.callers(), 1, "the question has become a poll");
                tasks.give(ticket.number, pending);
            }
            assert_eq!(*given.0.lock(), [pending(ID).applying(expected)]);
        }
    }

    #[test]
    fn asynchronous_caller_of_a_known_result_gets_202_while_kafka_is_unreachable() {
        for (asynchronous, status) in [(true, 202), (false, 503)] {
            let preferences = Preferences { asynchronous, wait: WAIT };
            let (tasks, reply, given) = asked(|_| {}, preferences);
            // Kafka has never answered.
            assert_eq!(tasks.fetch(reply, key(), ID.to_owned(), AT, false), None);
            let again = Reply::new(Arc::clone(&given) as _).applying(preferences);
            let looked_up = (again, preferences);
            let entered = tasks.book().look_up(key(), ID.to_owned(), looked_up, QUESTION_PATIENCE, Instant::now());
            tasks.put_off(entered.expect("room").number, AWAY);
            let given = std::mem::take(&mut *given.0.lock());
            assert_eq!(given.iter().map(Response::status).collect::<Vec<_>>(), [status; 2]);
            if asynchronous {
                assert_eq!(given, [(); 2].map(|()| Response::accepted(ID).applying(RESPOND_ASYNC)));
            }
        }
    }

    #[test]
    fn asynchronous_caller_of_a_known_result_gets_202_after_its_wait_or_at_a_stop() {
        for (parting, wait) in [(Parting::Late, WAIT), (Parting::Stopping, None)] {
            let preferences = Preferences { asynchronous: true, wait: WAIT };
            let (tasks, reply, given) = asked(|_| {}, preferences);
            let looked_up = (reply, preferences);
            let entered = tasks.book().look_up(key(), ID.to_owned(), looked_up, QUESTION_PATIENCE, Instant::now());
            let leaving = tasks.book().take(entered.expect("room").number).expect("it waits");
            tasks.tell(leaving, parting);
            let expected = Response::accepted(ID).applying(Preferences { wait, ..RESPOND_ASYNC });
            assert_eq!(*given.0.lock(), [expected], "{parting:?}");
        }
    }

    #[test]
    fn result_that_is_no_longer_stored_is_404_by_its_id_and_503_by_its_key() {
        let value = br#"{"task_id":"1","success":false,"error":"no luck","type":"result"}"#;
        let found = || Some((ResultPeek::decode(value).expect("a result"), Bytes::from_static(value)));
        let status = |found, stored| of_record(found, stored, ID).status();
        assert_eq!([status(None, true), status(None, false)], [404, 503]);
        assert_eq!([status(found(), true), status(found(), false)], [200, 500]);
    }
}
