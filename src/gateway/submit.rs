//! How a task gets from a caller into Kafka: `POST /analyze` behind its parsing, idempotency keys, and what the producer says.
//!
//! A caller is parked before its task is handed to the producer. For a request with an idempotency key the gateway first writes a
//! claim to the results topic; whoever's claim is first in the log produces the task, so that one key sent to two gateways in
//! the same instant is one task. Called by the dispatcher, the body threads, the tail reader (claims) and the sweeper.

use super::analyze::Wanted;
use super::answer::Answer;
use super::desk::{Desk, Exchange};
use super::index::{HeldClaim, Known, Place, TaskKey, digest, task_of_key};
use super::lookup::{Question, Questions};
use super::waiting::{Caller, Full, Progress};
use crate::kafka::producer::{Delivery, DeliveryError, ProducerEvents, ProducerRecord, ProducerSender, TrySendError};
use crate::task::{self, Claim, Task, unix_now};
use bytes::Bytes;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Callers that are turned away come back after this.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// With fewer pending tasks nothing is refused for their number.
const FEW_PENDING: usize = 1_000;

/// What travels with each record of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A task whose callers wait.
    Task(TaskKey),
    /// A claim whose callers wait.
    Claim(TaskKey),
    /// A task that Kafka had dropped; nobody need wait for it.
    Again(TaskKey),
}

/// What a request asked for, beside its body.
#[derive(Clone, Debug, Default)]
pub(super) struct Terms {
    pub(super) asynchronous: bool,
    pub(super) idempotency_key: Option<String>,
}

/// A keyed task that this gateway has claimed and not produced yet.
#[derive(Debug)]
struct Claimed {
    wanted: Wanted,
    at: Instant,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Submitter {
    desk: Arc<Desk>,
    producer: OnceLock<ProducerSender<Token>>,
    questions: Questions,
    tasks: Arc<str>,
    results: Arc<str>,
    /// Claims on their way; bounded by the callers that wait for them.
    claimed: parking_lot::Mutex<HashMap<TaskKey, Claimed>>,
}

impl Submitter {
    pub(super) fn new(desk: Arc<Desk>, questions: Questions) -> Self {
        let (tasks, results) = (&desk.config.common.tasks_topic, &desk.config.common.results_topic);
        let (tasks, results) = (tasks.as_str().into(), results.as_str().into());
        Self { desk, producer: OnceLock::new(), questions, tasks, results, claimed: parking_lot::Mutex::default() }
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

    /// Takes what a caller wants, or turns the caller away.
    pub(super) fn submit(&self, exchange: Exchange, wanted: Wanted, terms: &Terms) {
        if self.desk.is_draining() {
            let answer =
                Answer::unavailable("the gateway is shutting down; send this to another one", None, RETRY_AFTER);
            return self.desk.answer(exchange, answer);
        }
        if self.producer.get().is_none() {
            let answer = Answer::unavailable("Kafka is not connected yet; nothing was accepted", None, RETRY_AFTER);
            return self.desk.answer(exchange, answer);
        }
        match &terms.idempotency_key {
            None => {
                let id = Uuid::now_v7();
                self.submit_new(exchange, id, &wanted, terms.asynchronous);
            }
            Some(key) => self.submit_keyed(exchange, key, wanted, terms.asynchronous),
        }
    }

    fn submit_new(&self, exchange: Exchange, id: Uuid, wanted: &Wanted, asynchronous: bool) {
        let key = TaskKey::from_uuid(id);
        let now = Instant::now();
        let refused = {
            let mut state = self.desk.state();
            match self.refusal(&mut state, &exchange, asynchronous, now) {
                Some(answer) => Some((exchange, answer)),
                None => {
                    let address = exchange.ticket.address().ip();
                    let caller = Caller { address, request: exchange, asynchronous, since: now };
                    state.waiting.park(key, caller, Progress::Queued, now);
                    None
                }
            }
        };
        match refused {
            Some((exchange, answer)) => self.desk.answer(exchange, answer),
            None => self.produce_task(key, wanted),
        }
    }

    /// Why no more work is taken now.
    fn refusal(
        &self,
        state: &mut super::desk::State,
        exchange: &Exchange,
        asynchronous: bool,
        now: Instant,
    ) -> Option<Answer> {
        let config = &self.desk.config;
        let pending = state.index.pending_count();
        if asynchronous && pending >= config.max_pending {
            let detail = format!("{pending} tasks are pending already (MAX_PENDING={})", config.max_pending);
            return Some(Answer::unavailable(&detail, None, RETRY_AFTER));
        }
        let rate = state.rate.per_second(now);
        if !asynchronous && pending > FEW_PENDING && rate > 0.0 {
            let seconds = pending as f64 / rate;
            if seconds > config.answer_timeout.as_secs_f64() {
                let detail = format!(
                    "{pending} tasks are pending, which takes about {seconds:.0} s; longer than an answer is waited for"
                );
                return Some(Answer::unavailable(&detail, None, Duration::from_secs_f64(seconds.min(60.0))));
            }
        }
        let address = exchange.ticket.address().ip();
        match state.waiting.room(address, config.trusted_proxies.contains(&address)) {
            Ok(()) => None,
            Err(Full::Table) => {
                let detail = format!("{} callers wait already (MAX_WAITING)", config.max_waiting);
                Some(Answer::unavailable(&detail, None, RETRY_AFTER))
            }
            Err(Full::Address) => {
                let detail = "too many callers from your address wait already (a quarter of MAX_WAITING)";
                Some(Answer::unavailable(detail, None, RETRY_AFTER))
            }
        }
    }

    fn produce_task(&self, key: TaskKey, wanted: &Wanted) {
        let id = key.as_uuid().to_string();
        let task =
            Task { task_id: id.clone(), text: wanted.text.clone(), timestamp: unix_now(), work_ms: wanted.work_ms };
        let record = ProducerRecord {
            topic: Arc::clone(&self.tasks),
            key: Some(Bytes::from(id)),
            value: Some(Bytes::from(task.encode())),
            headers: Vec::new(),
        };
        self.produce(record, Token::Task(key));
    }

    /// Hands a record to the producer; its queue full, the callers are turned away with nothing accepted.
    fn produce(&self, record: ProducerRecord, token: Token) {
        let (Token::Task(key) | Token::Claim(key) | Token::Again(key)) = token;
        let refused = match self.producer.get().map(|producer| producer.try_send(record, token)) {
            Some(Ok(())) => return,
            Some(Err(TrySendError::Full(_))) => "too many tasks wait for Kafka; nothing was accepted",
            Some(Err(TrySendError::Closed(_))) | None => "the gateway is shutting down; nothing was accepted",
        };
        let callers = self.desk.state().waiting.complete(key);
        self.turn_away(callers, &Answer::unavailable(refused, None, RETRY_AFTER));
    }

    fn turn_away(&self, callers: Vec<Caller<Exchange>>, answer: &Answer) {
        self.desk.answer_all(callers.into_iter().map(|caller| (caller.request, answer.clone())).collect());
    }

    /// Produces a task again that Kafka has dropped, as it was.
    pub(super) fn produce_again(&self, key: TaskKey, id: Bytes, value: Bytes) {
        let record =
            ProducerRecord { topic: Arc::clone(&self.tasks), key: Some(id), value: Some(value), headers: Vec::new() };
        self.produce(record, Token::Again(key));
    }

    // ---- idempotency keys ----

    fn submit_keyed(&self, exchange: Exchange, idempotency_key: &str, wanted: Wanted, asynchronous: bool) {
        if !self.desk.is_read_back() {
            let detail = "the gateway is still reading what happened before its start; try again";
            return self.desk.answer(exchange, Answer::unavailable(detail, None, RETRY_AFTER));
        }
        let id = task_of_key(idempotency_key);
        let (key, id) = (TaskKey::from_uuid(id), id.to_string());
        let digest = digest(&wanted.text, wanted.work_ms);
        let now = Instant::now();
        let next = {
            let mut state = self.desk.state();
            let claim = state.index.held_claim(key);
            let known = state.index.known(key);
            let on_its_way = state.waiting.contains(key);
            if claim.is_some_and(|claim| claim.digest != digest) {
                Keyed::Answer(Answer::problem(422, "this Idempotency-Key was used with another text", Some(&id)))
            } else if let Known::Done(place) = known {
                if asynchronous { Keyed::Answer(Answer::accepted(&id)) } else { Keyed::Fetch(place) }
            } else if known == Known::Pending && asynchronous {
                Keyed::Answer(Answer::accepted(&id))
            } else if let Some(answer) = self.refusal(&mut state, &exchange, asynchronous, now) {
                Keyed::Answer(answer)
            } else {
                let fresh_claim = claim.is_some_and(|claim| unix_now() < claim.at + super::index::CLAIM_SECONDS);
                let progress = if known == Known::Pending { Progress::Acknowledged } else { Progress::Queued };
                if known == Known::Pending || on_its_way || fresh_claim { Keyed::Wait(progress) } else { Keyed::Claim }
            }
        };
        match next {
            Keyed::Answer(answer) => self.desk.answer(exchange, answer),
            Keyed::Fetch(place) => self.questions.ask(&self.desk, Question { exchange, key, place, stored: false }),
            Keyed::Wait(progress) => self.park(exchange, key, asynchronous, progress, now),
            Keyed::Claim => {
                self.park(exchange, key, asynchronous, Progress::Queued, now);
                self.claimed.lock().insert(key, Claimed { wanted, at: now });
                self.produce_claim(key, &id, digest);
            }
        }
    }

    fn park(&self, exchange: Exchange, key: TaskKey, asynchronous: bool, progress: Progress, now: Instant) {
        let address = exchange.ticket.address().ip();
        let caller = Caller { address, request: exchange, asynchronous, since: now };
        self.desk.state().waiting.park(key, caller, progress, now);
    }

    fn produce_claim(&self, key: TaskKey, id: &str, digest: Uuid) {
        let claim = Claim {
            task_id: id.to_owned(),
            text_hash: digest.to_string(),
            gateway: self.desk.instance.to_string(),
            timestamp: unix_now(),
        };
        let record = ProducerRecord {
            topic: Arc::clone(&self.results),
            key: Some(Bytes::copy_from_slice(id.as_bytes())),
            value: Some(Bytes::from(claim.encode())),
            headers: vec![(Cow::Borrowed(task::KIND_HEADER), Some(Bytes::from_static(task::KIND_CLAIM.as_bytes())))],
        };
        self.produce(record, Token::Claim(key));
    }

    /// The tail reader has read a claim that holds now. Ours: the task is produced. Another gateway's: its result is waited
    /// for, unless it was for another text.
    pub(super) fn claim_holds(&self, key: TaskKey, held: HeldClaim) {
        let mut claimed = self.claimed.lock();
        // What nobody waits for any more is forgotten here, so that the map stays as small as the waiting table.
        let patience = self.desk.config.answer_timeout;
        claimed.retain(|_, claimed| claimed.at.elapsed() <= patience);
        let Some(ours) = claimed.remove(&key) else { return };
        drop(claimed);
        if held.gateway == self.desk.instance {
            self.produce_task(key, &ours.wanted);
        } else if held.digest != digest(&ours.wanted.text, ours.wanted.work_ms) {
            let callers = self.desk.state().waiting.complete(key);
            let id = key.as_uuid().to_string();
            let answer = Answer::problem(422, "this Idempotency-Key was used with another text", Some(&id));
            self.turn_away(callers, &answer);
        }
    }
}

/// What a keyed request comes to.
enum Keyed {
    Answer(Answer),
    Fetch(Place),
    Wait(Progress),
    Claim,
}

/// What the gateway does when Kafka answers the producer.
pub(super) struct Settling {
    pub(super) desk: Arc<Desk>,
}

impl ProducerEvents<Token> for Settling {
    fn about_to_send(&mut self, token: &Token) -> bool {
        match token {
            // Everybody who wanted it was told that nothing was accepted: so it must not be.
            Token::Task(key) => self.desk.state().waiting.sending(*key),
            Token::Claim(_) | Token::Again(_) => true,
        }
    }

    fn settled(&mut self, deliveries: Vec<Delivery<Token>>) {
        let mut answers = Vec::new();
        let now = unix_now();
        {
            let mut state = self.desk.state();
            for delivery in deliveries {
                match (delivery.token, delivery.outcome) {
                    (Token::Task(key) | Token::Again(key), Ok(delivered)) => {
                        self.desk.metrics.accepted();
                        let place = Place { partition: delivered.partition, offset: delivered.offset };
                        state.index.task(key, place, now);
                        let id = key.as_uuid().to_string();
                        let done = state.waiting.acknowledged(key).into_iter();
                        answers.extend(done.map(|caller| (caller.request, Answer::accepted(&id))));
                    }
                    (Token::Claim(_), Ok(_)) => {}
                    (Token::Task(key) | Token::Claim(key) | Token::Again(key), Err(error)) => {
                        let answer = not_accepted(key, &error);
                        let callers = state.waiting.complete(key).into_iter();
                        answers.extend(callers.map(|caller| (caller.request, answer.clone())));
                    }
                }
            }
        }
        self.desk.answer_all(answers);
    }
}

fn not_accepted(key: TaskKey, error: &DeliveryError) -> Answer {
    match error {
        DeliveryError::Refused { code, .. } => {
            Answer::unavailable(&format!("Kafka refused the task ({code}); nothing was accepted"), None, RETRY_AFTER)
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

/// What a caller is told whose time is over, or whom the gateway cannot serve to the end.
pub(super) fn parting_answer(key: TaskKey, progress: Progress, draining: bool) -> Answer {
    let id = key.as_uuid().to_string();
    match progress {
        Progress::Queued => {
            Answer::unavailable("Kafka does not take tasks at the moment; nothing was accepted", None, RETRY_AFTER)
        }
        Progress::Sent => {
            let detail =
                "Kafka has not acknowledged the task yet; whether it was accepted is unknown: ask for its result";
            Answer::unavailable(detail, Some(&id), RETRY_AFTER)
        }
        Progress::Acknowledged if draining => {
            let detail = "the gateway is shutting down; the task is accepted and not lost: ask for its result";
            Answer::unavailable(detail, Some(&id), RETRY_AFTER)
        }
        Progress::Acknowledged => {
            Answer::problem(504, "the task is accepted and not done yet; it is not lost: ask for its result", Some(&id))
        }
    }
}
