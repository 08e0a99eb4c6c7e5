//! The way of a task from a caller to the producer: `POST /analyze` after parsing.
//!
//! A caller is entered before its task is passed to the producer, so no result arrives before its entry. For a request
//! with an idempotency key the gateway first writes a claim (see [`idempotency`](super::idempotency)). Called by the
//! connections' threads, the tail reader (claims), the thread `upkeep` (overdue claims) and the sweeper.

use super::book::{ClaimRead, Keyed, KeyedRequest, Loss};
use super::idempotency::Claim;
use super::kept::{LostTask, Record};
use super::key::{TaskKey, digest, task_of_key};
use super::produced::{Kind, Token};
use super::{Tasks, Wanted, give_all};
use crate::gateway::metrics::Reason;
use crate::http::reply::{Preferences, Reply, Ticket};
use crate::http::response::Response;
use crate::task::{self, Task, unix_now};
use bytes::Bytes;
use kafka_share::producer::{ProducerRecord, TrySendError};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;
use uuid::Uuid;

/// The options of a request.
#[derive(Clone, Debug, Default)]
pub(in crate::gateway) struct SubmitOptions {
    pub(in crate::gateway) preferences: Preferences,
    pub(in crate::gateway) idempotency_key: Option<String>,
}

impl Tasks {
    /// Takes a caller's task, or refuses it. Returns the ticket if the reply waits.
    pub(in crate::gateway) fn submit(&self, reply: Reply, wanted: Wanted, options: &SubmitOptions) -> Option<Ticket> {
        let (reason, detail) = if self.state.is_draining() {
            (Reason::Draining, "the gateway is shutting down; send the request to another gateway")
        } else if self.sender.get().is_none() {
            (Reason::KafkaUnavailable, "Kafka is not connected yet; the task was not accepted")
        } else if options.idempotency_key.is_some() && !self.state.is_read_back() {
            (Reason::ReadingBack, "the gateway is still reading the records from before its start; try again")
        } else {
            let reply = reply.applying(options.preferences);
            return match &options.idempotency_key {
                None => self.submit_new(reply, wanted, options.preferences),
                Some(key) => self.submit_keyed(reply, key, wanted, options.preferences),
            };
        };
        reply.give(self.refuse(reason, detail));
        None
    }

    fn submit_new(&self, reply: Reply, wanted: Wanted, preferences: Preferences) -> Option<Ticket> {
        let key = TaskKey::from_uuid(Uuid::now_v7());
        let accepted = self.book().accept(key, reply, preferences, Instant::now());
        match accepted {
            Ok(ticket) => {
                self.produce_task(key, wanted);
                Some(ticket)
            }
            Err((reply, refused)) => {
                reply.give(self.refusal(&refused));
                None
            }
        }
    }

    fn submit_keyed(
        &self,
        reply: Reply,
        idempotency_key: &str,
        wanted: Wanted,
        preferences: Preferences,
    ) -> Option<Ticket> {
        let key = TaskKey::from_uuid(task_of_key(idempotency_key));
        let digest = digest(&wanted.text);
        let request = KeyedRequest { wanted, digest, preferences };
        let now = self.now();
        let decided = self.book().accept_keyed(key, reply, request, now);
        let (reply, response) = match decided {
            Keyed::Waits(ticket) => return Some(ticket),
            Keyed::Claims(ticket) => {
                self.produce_claim(key, digest);
                return Some(ticket);
            }
            Keyed::Fetch(reply, position) => {
                return self.fetch(reply, key, key.as_uuid().to_string(), position, false);
            }
            Keyed::Refused(reply, refused) => (reply, self.refusal(&refused)),
            Keyed::Conflict(reply) => (reply, used_with_another_text(key)),
            Keyed::Accepted(reply) => (reply, Response::accepted(&key.as_uuid().to_string())),
        };
        reply.give(response);
        None
    }

    fn produce_task(&self, key: TaskKey, wanted: Wanted) {
        let id = key.as_uuid().to_string();
        let task = Task { task_id: id, text: wanted.text, timestamp: unix_now(), work_ms: wanted.work_ms };
        let kept = Record { value: Bytes::from(task.encode()), headers: wanted.headers };
        let record = ProducerRecord {
            topic: Arc::clone(&self.tasks_topic),
            key: Some(Bytes::from(task.task_id)),
            value: Some(kept.value.clone()),
            headers: kept.headers.clone(),
        };
        let token = Token { kind: Kind::Task, key, bytes: kept.bytes() };
        // Before the hand-over, since the record may be settled during it.
        self.book().producing_task(key, kept);
        self.produce(record, token);
    }

    /// Produces a dropped task again, unchanged.
    fn produce_again(&self, lost: LostTask, send_until: Instant) {
        let LostTask { key, position, record_key, record } = lost;
        let task = record.named(record_key.as_deref());
        log::warn!("Kafka has dropped {task} at offset {} without a result; producing it again", position.offset);
        let lost = Loss { position, replay: self.book().replay(key), send_until };
        let token = Token { kind: Kind::Again(lost), key, bytes: record.bytes() };
        let (topic, Record { value, headers }) = (Arc::clone(&self.tasks_topic), record);
        self.book().producing(token.bytes);
        self.produce(ProducerRecord { topic, key: record_key, value: Some(value), headers }, token);
    }

    /// Claims a dropped task, so that one gateway produces it again.
    pub(super) fn claim_lost(&self, lost: LostTask) {
        let claimed = self.book().lose(lost, self.state.instance, Instant::now());
        if let Some(claimed) = claimed {
            self.produce_claim(claimed, Uuid::nil());
        }
    }

    fn produce_claim(&self, key: TaskKey, digest: Uuid) {
        let claim = task::Claim {
            task_id: key.as_uuid().to_string(),
            text_hash: digest.to_string(),
            gateway: self.state.instance.to_string(),
            timestamp: unix_now(),
        };
        let value = Bytes::from(claim.encode());
        let token = Token { kind: Kind::Claim, key, bytes: value.len() };
        let record = ProducerRecord {
            topic: Arc::clone(&self.results_topic),
            key: Some(Bytes::from(claim.task_id)),
            value: Some(value),
            headers: vec![(Cow::Borrowed(task::KIND_HEADER), Some(Bytes::from_static(task::KIND_CLAIM.as_bytes())))],
        };
        self.book().producing(token.bytes);
        self.produce(record, token);
    }

    /// Passes a record to the producer. If its queue is full, the callers are refused.
    fn produce(&self, record: ProducerRecord, token: Token) {
        let (reason, detail) = match self.sender.get().map(|producer| producer.try_send(record, token)) {
            Some(Ok(())) => return,
            Some(Err(TrySendError::Full(_))) => {
                (Reason::KafkaSlow, "too many tasks wait for Kafka; the task was not accepted")
            }
            Some(Err(TrySendError::Closed(_))) | None => {
                (Reason::Draining, "the gateway is shutting down; the task was not accepted")
            }
        };
        let callers = match token.kind {
            Kind::Task | Kind::Claim => self.book().given_up(token.key, token.bytes),
            Kind::Again(_) => return self.book().settled_record(token.bytes),
        };
        self.refuse_all(reason, callers, detail);
    }

    /// Carries out the effect of a claim that the tail reader has read.
    pub(super) fn claim_came(&self, key: TaskKey, comes_to: ClaimRead<Reply>) {
        match comes_to {
            ClaimRead::Nothing => {}
            ClaimRead::Produce(wanted) => self.produce_task(key, wanted),
            ClaimRead::ProduceAgain(lost, send_until) => self.produce_again(lost, send_until),
            ClaimRead::Conflict(callers) => give_all(callers, &used_with_another_text(key)),
        }
    }

    /// Claims again the keys that other gateways have claimed without producing the task.
    pub(super) fn claim_overdue(&self) {
        if !self.state.is_kafka_connected() {
            // It is unknown whether another gateway has produced the task.
            return;
        }
        let overdue = self.book().overdue_claims(Instant::now());
        for (key, digest) in overdue {
            self.produce_claim(key, digest);
        }
    }
}

/// The claim of a record; `None` if no gateway can have written it.
pub(super) fn claim_of(
    record: &task::Claim,
    at: std::time::SystemTime,
    heard: std::time::SystemTime,
) -> Option<(TaskKey, Claim)> {
    let digest = Uuid::try_parse(&record.text_hash).ok()?;
    let gateway = Uuid::try_parse(&record.gateway).ok()?;
    Some((TaskKey::from_id(&record.task_id), Claim { digest, gateway, at, heard }))
}

fn used_with_another_text(key: TaskKey) -> Response {
    Response::problem(422, "this Idempotency-Key was used with another text", Some(&key.as_uuid().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GatewayConfig;
    use crate::gateway::state::{ReadBack, State};
    use crate::http::reply::tests::Kept;
    use crate::task::Headers;

    fn tasks() -> Arc<Tasks> {
        Tasks::new(Arc::new(State::new(GatewayConfig::default()))).0
    }

    fn submit(tasks: &Tasks, key: Option<&str>) -> (Arc<Kept>, Option<Ticket>) {
        let kept = Arc::<Kept>::default();
        let wanted = Wanted { text: "text".to_owned(), work_ms: None, headers: Headers::new() };
        let options = SubmitOptions { preferences: Preferences::default(), idempotency_key: key.map(str::to_owned) };
        let ticket = tasks.submit(Reply::new(Arc::clone(&kept) as _), wanted, &options);
        (kept, ticket)
    }

    #[test]
    fn without_kafka_no_task_is_accepted() {
        let tasks = tasks();
        let (kept, ticket) = submit(&tasks, None);
        assert_eq!((kept.0.lock().as_slice(), ticket), ([503].as_slice(), None));
        assert_eq!((tasks.callers(), tasks.book().counts().unacknowledged_bytes), (0, 0));
    }

    #[test]
    fn task_that_the_producer_does_not_take_is_refused_and_forgotten() {
        let tasks = tasks();
        let kept = Arc::<Kept>::default();
        let wanted = Wanted { text: "text".to_owned(), work_ms: None, headers: Headers::new() };
        // There is no producer.
        tasks.submit_new(Reply::new(Arc::clone(&kept) as _), wanted, Preferences::default()).expect("it was entered");
        assert_eq!(*kept.0.lock(), [503]);
        assert_eq!((tasks.callers(), tasks.book().counts().unacknowledged_bytes), (0, 0));
    }

    #[test]
    fn key_that_was_used_with_another_text_is_a_conflict() {
        let tasks = tasks();
        tasks.state.set_read(ReadBack::Results);
        tasks.state.set_read(ReadBack::Tasks);
        let key = TaskKey::from_uuid(task_of_key("order-1"));
        let record = task::Claim {
            task_id: key.as_uuid().to_string(),
            text_hash: digest("another text").to_string(),
            gateway: Uuid::nil().to_string(),
            timestamp: unix_now(),
        };
        let now = tasks.now();
        let (claimed, claim) = claim_of(&record, now.time, now.time).expect("it is well-formed");
        assert_eq!(claimed, key);
        tasks.book().claim_read(key, claim, tasks.state.instance, now.instant);
        let kept = Arc::<Kept>::default();
        let wanted = Wanted { text: "text".to_owned(), work_ms: None, headers: Headers::new() };
        assert!(
            tasks.submit_keyed(Reply::new(Arc::clone(&kept) as _), "order-1", wanted, Preferences::default()).is_none()
        );
        assert_eq!(*kept.0.lock(), [422]);
        let strange = task::Claim { gateway: "me".to_owned(), ..record };
        assert!(claim_of(&strange, now.time, now.time).is_none());
    }

    #[test]
    fn stopping_gateway_refuses_tasks() {
        let tasks = tasks();
        tasks.state.start_draining();
        assert_eq!(*submit(&tasks, Some("order-1")).0.0.lock(), [503]);
    }
}
