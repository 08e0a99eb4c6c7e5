//! How a task gets from a caller into Kafka: `POST /analyze` behind its parsing, idempotency keys, and what the
//! producer says.
//!
//! A caller is parked before its task is handed to the producer, so that no answer is faster than its entry. For a
//! request with an idempotency key the gateway first writes a claim (see [`keyed`](super::keyed)). Called by the
//! connections' threads, the tail reader (claims), the thread `upkeep` (claims that came to nothing) and the sweeper.

use super::analyze::Wanted;
use super::answer::Answer;
use super::desk::{Desk, State, THREAD_SILENCE};
use super::index::{HeldClaim, Known, Place, TaskKey, digest, task_of_key};
use super::keyed::{CLAIM_LIFE, Next};
use super::lookup::Questions;
use super::reply::{Reply, Ticket};
use super::waiting::{Full, Progress, Waiter};
use crate::kafka::producer::{Delivery, DeliveryError, ProducerEvents, ProducerRecord, ProducerSender, TrySendError};
use crate::task::{self, Claim, Task, unix_now};
use bytes::Bytes;
use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Callers that are turned away come back after this.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Callers that are turned away because of a long queue are not sent away for longer.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Bytes of records that the producer has and Kafka has not acknowledged: while Kafka is away they pile up.
const MOST_UNACKNOWLEDGED: usize = 32 * 1024 * 1024;

/// What a record of the gateway is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A task whose callers wait.
    Task,
    /// A claim whose callers wait.
    Claim,
    /// A task that Kafka had dropped; nobody need wait for it.
    Again,
}

/// What travels with each record of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    kind: Kind,
    key: TaskKey,
    bytes: usize,
}

/// What a request asked for, beside its body.
#[derive(Clone, Debug, Default)]
pub(super) struct Terms {
    pub(super) asynchronous: bool,
    pub(super) idempotency_key: Option<String>,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Submitter {
    desk: Arc<Desk>,
    producer: OnceLock<ProducerSender<Token>>,
    questions: Questions,
    tasks: Arc<str>,
    results: Arc<str>,
}

impl Submitter {
    pub(super) fn new(desk: Arc<Desk>, questions: Questions) -> Self {
        let (tasks, results) = (&desk.config.common.tasks_topic, &desk.config.common.results_topic);
        let (tasks, results) = (tasks.as_str().into(), results.as_str().into());
        Self { desk, producer: OnceLock::new(), questions, tasks, results }
    }

    /// The producer is there: tasks can be taken.
    pub(super) fn set_producer(&self, producer: ProducerSender<Token>) {
        // Set once, when the topics are prepared.
        let _ = self.producer.set(producer);
    }

    /// Whether the producer has a connection.
    pub(super) fn is_producer_ready(&self) -> bool {
        self.producer.get().is_some_and(ProducerSender::is_ready)
    }

    /// The threads that must move, and whether they do. That of the listening socket is watched from outside: see
    /// `listener`.
    pub(super) fn liveness(&self) -> [(&'static str, bool); 3] {
        let producer = self.producer.get().is_none_or(|producer| producer.last_turn().elapsed() < THREAD_SILENCE);
        [("upkeep", self.desk.is_upkeep_alive()), ("results_tail", self.desk.is_tail_alive()), ("producer", producer)]
    }

    /// Whether Kafka takes this gateway's records, as far as its rights go.
    pub(super) fn has_rights(&self) -> bool {
        self.producer.get().is_none_or(|producer| producer.denial().is_none())
    }

    /// Takes what a caller wants, or turns the caller away.
    pub(super) fn submit(&self, reply: Reply, wanted: Wanted, terms: &Terms) -> Option<Ticket> {
        let refused = if self.desk.is_draining() {
            "the gateway is shutting down; send this to another one"
        } else if self.producer.get().is_none() {
            "Kafka is not connected yet; nothing was accepted"
        } else if terms.idempotency_key.is_some() && !self.desk.is_read_back() {
            "the gateway is still reading what happened before its start; try again"
        } else {
            return match &terms.idempotency_key {
                None => self.submit_new(reply, Uuid::now_v7(), wanted, terms.asynchronous),
                Some(key) => self.submit_keyed(reply, key, wanted, terms.asynchronous),
            };
        };
        reply.give(Answer::unavailable(refused, None, RETRY_AFTER));
        None
    }

    fn submit_new(&self, reply: Reply, id: Uuid, wanted: Wanted, asynchronous: bool) -> Option<Ticket> {
        let key = TaskKey::from_uuid(id);
        let now = Instant::now();
        let parked = {
            let mut state = self.desk.state();
            match self.refusal(&mut state, true, asynchronous, now) {
                Some(answer) => Err((reply, answer)),
                None => Ok(state.waiting.park(key, reply, asynchronous, Progress::Queued, now)),
            }
        };
        match parked {
            Ok(ticket) => {
                self.produce_task(key, wanted);
                Some(ticket)
            }
            Err((reply, answer)) => {
                reply.give(answer);
                None
            }
        }
    }

    /// Why no more work is taken now.
    fn refusal(&self, state: &mut State, is_new: bool, asynchronous: bool, now: Instant) -> Option<Answer> {
        let config = &self.desk.config;
        let pending = state.index.pending_count();
        if is_new && pending >= config.max_pending {
            let detail = format!("{pending} tasks are pending already (MAX_PENDING={})", config.max_pending);
            return Some(Answer::unavailable(&detail, None, RETRY_AFTER));
        }
        let wait = state.rate.wait(pending, now).filter(|wait| *wait > config.answer_timeout);
        if let Some(wait) = wait.filter(|_| !asynchronous) {
            let detail =
                format!("{pending} tasks are pending, and the workers are not likely to get to one more in time");
            return Some(Answer::unavailable(&detail, None, wait.min(LONGEST_RETRY_AFTER)));
        }
        if state.unacknowledged_bytes >= MOST_UNACKNOWLEDGED {
            let detail = "Kafka does not take tasks as fast as they come; nothing was accepted";
            return Some(Answer::unavailable(detail, None, RETRY_AFTER));
        }
        let detail = match state.waiting.room() {
            Ok(()) => return None,
            Err(Full::Table(count)) => format!("{count} callers wait already (MAX_WAITING)"),
            Err(Full::Closed) => "the gateway is shutting down; send this to another one".to_owned(),
        };
        Some(Answer::unavailable(&detail, None, RETRY_AFTER))
    }

    fn produce_task(&self, key: TaskKey, wanted: Wanted) {
        let id = key.as_uuid().to_string();
        let task = Task { task_id: id, text: wanted.text, timestamp: unix_now(), work_ms: wanted.work_ms };
        let value = Bytes::from(task.encode());
        let record = ProducerRecord {
            topic: Arc::clone(&self.tasks),
            key: Some(Bytes::from(task.task_id)),
            value: Some(value),
            headers: Vec::new(),
        };
        self.produce(record, Kind::Task, key);
    }

    /// Hands a record to the producer; its queue full, the callers are turned away with nothing accepted.
    fn produce(&self, record: ProducerRecord, kind: Kind, key: TaskKey) {
        let bytes = record.value.as_ref().map_or(0, Bytes::len);
        {
            // Before it is handed over: it may be settled before this returns.
            let mut state = self.desk.state();
            state.unacknowledged_bytes += bytes;
            if let (Kind::Task, Some(value)) = (kind, &record.value) {
                state.kept.keep(key, value.clone());
            }
        }
        let refused = match self.producer.get().map(|producer| producer.try_send(record, Token { kind, key, bytes })) {
            Some(Ok(())) => return,
            Some(Err(TrySendError::Full(_))) => "too many tasks wait for Kafka; nothing was accepted",
            Some(Err(TrySendError::Closed(_))) | None => "the gateway is shutting down; nothing was accepted",
        };
        let callers = {
            let mut state = self.desk.state();
            state.unacknowledged_bytes -= bytes;
            state.task_is_given_up(key)
        };
        turn_away(callers, &Answer::unavailable(refused, None, RETRY_AFTER));
    }

    /// Produces a task again that Kafka has dropped, as it was.
    pub(super) fn produce_again(&self, key: TaskKey, record_key: Option<Bytes>, value: Bytes) {
        let (topic, headers) = (Arc::clone(&self.tasks), Vec::new());
        let record = ProducerRecord { topic, key: record_key, value: Some(value), headers };
        self.produce(record, Kind::Again, key);
    }

    // ---- idempotency keys ----

    fn submit_keyed(&self, reply: Reply, idempotency_key: &str, wanted: Wanted, asynchronous: bool) -> Option<Ticket> {
        let key = TaskKey::from_uuid(task_of_key(idempotency_key));
        let digest = digest(&wanted.text);
        let decided = {
            let mut state = self.desk.state();
            self.decide(&mut state, reply, key, wanted, digest, asynchronous)
        };
        match decided {
            Keyed::Answer(reply, answer) => {
                reply.give(*answer);
                None
            }
            Keyed::Fetch(reply, place) => self.questions.fetch(reply, key, key.as_uuid().to_string(), place, false),
            Keyed::Wait(ticket) => Some(ticket),
            Keyed::Claim(ticket) => {
                self.produce_claim(key, digest);
                Some(ticket)
            }
        }
    }

    /// Decides and parks with one visit to the lock, so that of two callers of one key one claims and the other waits.
    fn decide(
        &self,
        state: &mut State,
        reply: Reply,
        key: TaskKey,
        wanted: Wanted,
        digest: Uuid,
        asynchronous: bool,
    ) -> Keyed {
        let now = Instant::now();
        let (known, claim) = (state.index.known(key), state.index.held_claim(key));
        // A claim that nothing came of says nothing about the key any more.
        let claim =
            claim.filter(|claim| known != Known::Nothing || self.desk.now() - claim.heard < CLAIM_LIFE.as_secs_f64());
        let other_text = |known: Uuid| known != digest;
        if claim.is_some_and(|claim| other_text(claim.digest)) || state.keyed.digest(key).is_some_and(other_text) {
            return Keyed::Answer(reply, Box::new(used_with_another_text(key)));
        }
        match known {
            Known::Done(_) | Known::Pending if asynchronous => {
                return Keyed::Answer(reply, Box::new(Answer::accepted(&key.as_uuid().to_string())));
            }
            Known::Done(place) => return Keyed::Fetch(reply, place),
            Known::Pending | Known::Nothing => {}
        }
        let is_new = known == Known::Nothing && claim.is_none() && state.keyed.digest(key).is_none();
        if let Some(answer) = self.refusal(state, is_new, asynchronous, now) {
            return Keyed::Answer(reply, Box::new(answer));
        }
        let keys = state.index.claims_count();
        if is_new && keys >= self.desk.config.max_keys {
            let detail = format!("{keys} idempotency keys are remembered already (MAX_KEYS)");
            return Keyed::Answer(reply, Box::new(Answer::unavailable(&detail, None, RETRY_AFTER)));
        }
        let wait = |state: &mut State, progress| state.waiting.park(key, reply, asynchronous, progress, now);
        if known == Known::Pending {
            Keyed::Wait(wait(state, Progress::Acknowledged))
        } else if state.keyed.digest(key).is_some() {
            // Where it is on its way already the progress is known, unless all its callers have left: then it is not.
            Keyed::Wait(wait(state, Progress::Sent))
        } else if claim.is_some() {
            // Whether its gateway has produced the task is unknown.
            let ticket = wait(state, Progress::Sent);
            state.keyed.wait(key, wanted, digest, now);
            Keyed::Wait(ticket)
        } else {
            let ticket = wait(state, Progress::Queued);
            state.keyed.claim(key, wanted, digest, now);
            Keyed::Claim(ticket)
        }
    }

    fn produce_claim(&self, key: TaskKey, digest: Uuid) {
        let id = key.as_uuid().to_string();
        let claim = Claim {
            task_id: id,
            text_hash: digest.to_string(),
            gateway: self.desk.instance.to_string(),
            timestamp: unix_now(),
        };
        let value = Bytes::from(claim.encode());
        let record = ProducerRecord {
            topic: Arc::clone(&self.results),
            key: Some(Bytes::from(claim.task_id)),
            value: Some(value),
            headers: vec![(Cow::Borrowed(task::KIND_HEADER), Some(Bytes::from_static(task::KIND_CLAIM.as_bytes())))],
        };
        self.produce(record, Kind::Claim, key);
    }

    /// The tail reader has read a claim; `held` is the one that holds now.
    pub(super) fn claim_read(&self, key: TaskKey, held: HeldClaim) {
        let (produce, conflicting) = {
            let mut state = self.desk.state();
            let by_us = held.gateway == self.desk.instance;
            match state.keyed.claim_read(key, by_us, held.digest, Instant::now()) {
                Next::Nothing => (None, Vec::new()),
                Next::Produce(wanted) if state.waiting.contains(key) => (Some(wanted), Vec::new()),
                // Everybody has left: what nobody was promised is not produced.
                Next::Produce(_) => {
                    state.keyed.settled(key);
                    (None, Vec::new())
                }
                Next::Wait => {
                    state.waiting.sending(key);
                    (None, Vec::new())
                }
                Next::Conflict => (None, state.waiting.complete(key)),
            }
        };
        if let Some(wanted) = produce {
            self.produce_task(key, wanted);
        }
        if !conflicting.is_empty() {
            turn_away(conflicting, &used_with_another_text(key));
        }
    }

    /// Claims again what other gateways have claimed and not produced.
    pub(super) fn claim_overdue(&self) {
        if !self.desk.is_kafka_connected() {
            // Whether a task was produced elsewhere is not known at the moment.
            return;
        }
        let overdue = {
            let mut state = self.desk.state();
            let State { keyed, waiting, .. } = &mut *state;
            keyed.overdue(Instant::now(), |key| waiting.contains(key))
        };
        for (key, digest) in overdue {
            self.produce_claim(key, digest);
        }
    }
}

fn turn_away(callers: Vec<Waiter<Reply>>, answer: &Answer) {
    for caller in callers {
        caller.reply.give(answer.clone());
    }
}

fn used_with_another_text(key: TaskKey) -> Answer {
    Answer::problem(422, "this Idempotency-Key was used with another text", Some(&key.as_uuid().to_string()))
}

/// What a keyed request comes to.
enum Keyed {
    Answer(Reply, Box<Answer>),
    Fetch(Reply, Place),
    Wait(Ticket),
    Claim(Ticket),
}

/// What the gateway does when Kafka answers the producer.
pub(super) struct Settling {
    pub(super) desk: Arc<Desk>,
}

impl ProducerEvents<Token> for Settling {
    fn about_to_send(&mut self, token: &Token) -> bool {
        if token.kind != Kind::Task {
            return true;
        }
        let late = {
            let mut state = self.desk.state();
            let in_time = state.keyed.may_be_sent(token.key, Instant::now());
            // Everybody who wanted it was told that nothing was accepted: so it must not be.
            if in_time && state.waiting.sending(token.key) {
                return true;
            }
            state.unacknowledged_bytes -= token.bytes;
            state.task_is_given_up(token.key)
        };
        let detail = "Kafka did not take the task in time; nothing was accepted";
        turn_away(late, &Answer::unavailable(detail, None, RETRY_AFTER));
        false
    }

    fn settled(&mut self, deliveries: Vec<Delivery<Token>>) {
        let mut answers = Vec::new();
        let now = self.desk.now();
        {
            let mut state = self.desk.state();
            for Delivery { token, outcome } in deliveries {
                state.unacknowledged_bytes -= token.bytes;
                match (token.kind, outcome) {
                    (Kind::Task | Kind::Again, Ok(delivered)) => {
                        self.desk.metrics.accepted();
                        let place = Place { partition: delivered.partition, offset: delivered.offset };
                        let done = state.task_is_in_kafka(token.key, place, now);
                        if !done.is_empty() {
                            answers.push((done, Answer::accepted(&token.key.as_uuid().to_string())));
                        }
                    }
                    (Kind::Claim, Ok(_)) => {}
                    (_, Err(error)) => {
                        answers.push((state.task_is_given_up(token.key), not_accepted(token.key, &error)));
                    }
                }
            }
        }
        for (callers, answer) in answers {
            turn_away(callers, &answer);
        }
    }
}

fn not_accepted(key: TaskKey, error: &DeliveryError) -> Answer {
    match error {
        DeliveryError::Refused { code, .. } => {
            Answer::unavailable(&format!("Kafka refused the task ({code}); nothing was accepted"), None, RETRY_AFTER)
        }
        DeliveryError::Denied { .. } => {
            Answer::unavailable(&format!("{error}; nothing was accepted"), None, RETRY_AFTER)
        }
        DeliveryError::Unsent => {
            Answer::unavailable("the gateway is shutting down; nothing was accepted", None, RETRY_AFTER)
        }
        DeliveryError::Unknown => {
            let detail = "Kafka has not acknowledged the task; whether it was accepted is unknown: ask for its result";
            Answer::unavailable(detail, Some(&key.as_uuid().to_string()), RETRY_AFTER)
        }
    }
}
