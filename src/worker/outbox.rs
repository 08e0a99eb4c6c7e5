//! The outbox: everything that a worker writes to Kafka goes through one idempotent producer, and what Kafka has
//! acknowledged moves the account.
//!
//! Order is everything: a result is acknowledged by all in-sync replicas, then its task is accepted. The only call of
//! [`InFlight::published`] is in here. Handlers and the status thread send; the producer's thread settles.

use super::drain::Control;
use super::in_flight::{InFlight, RecordKey};
use crate::kafka::cluster::Cluster;
use crate::kafka::producer::{
    Delivery, DeliveryError, Producer, ProducerEvents, ProducerOptions, ProducerRecord, ProducerSender,
};
use crate::kafka::share_session::AcquiredRecord;
use crate::logging::escape;
use crate::stop::Stop;
use crate::task::{self, TaskFailed, TaskResult, TaskStarted, TaskStopped, WorkerStatus};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::Map;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

/// Records that may wait for the producer. Full: handlers wait with their outcome, and so nothing more is fetched.
const QUEUE: usize = 2048;
/// Refused records that may wait for their repair. Full: the task stays unaccepted and is delivered again later.
const REPAIRS: usize = 256;

/// Why a result could not be written as it was.
#[derive(Debug)]
pub(super) struct Repair {
    key: RecordKey,
    what: Refused,
    reason: String,
}

#[derive(Clone, Debug)]
enum Refused {
    /// The result itself, of this task.
    Result(Arc<str>),
    /// The copy for the dead-letter topic.
    DeadCopy(Box<AcquiredRecord>, Arc<str>),
}

/// What the producer gives back with each delivery.
#[derive(Debug)]
pub(super) enum Token {
    /// One of the records that must be in Kafka before the task is accepted.
    Owed { key: RecordKey, refused: Option<RefusedBox> },
    /// A notification that somebody waits for. Capacity one, one answer.
    Notice(Sender<bool>),
    /// Nobody waits.
    Fleeting,
}

/// What to write instead when Kafka refuses the record alone.
#[derive(Debug)]
pub(super) struct RefusedBox(Refused);

/// Names of the topics that a worker writes to.
#[derive(Clone, Debug)]
pub(super) struct OutboxTopics {
    pub(super) tasks: Arc<str>,
    pub(super) results: Arc<str>,
    pub(super) dead: Arc<str>,
    pub(super) starts: Arc<str>,
}

/// The sending side, for handlers and the status thread.
#[derive(Clone)]
pub(super) struct Outbox {
    sender: ProducerSender<Token>,
    topics: OutboxTopics,
    worker_id: Arc<str>,
}

/// The outbox is closed: the process ends.
#[derive(Debug, thiserror::Error)]
#[error("the outbox is closed")]
pub(super) struct OutboxClosed;

/// Moves the account when Kafka answers.
struct Settling {
    in_flight: Arc<InFlight>,
    control: Arc<Control>,
    repairs: Sender<Repair>,
}

impl ProducerEvents<Token> for Settling {
    fn settled(&mut self, deliveries: Vec<Delivery<Token>>) {
        for delivery in deliveries {
            let in_kafka = delivery.outcome.is_ok();
            match delivery.token {
                Token::Owed { key, .. } if in_kafka => self.in_flight.published(key),
                Token::Owed { key, refused } => self.mend(key, refused, delivery.outcome.as_ref().err()),
                // Capacity one and one answer: never full. Disconnected: the waiting second is over.
                Token::Notice(waiting) => drop(waiting.try_send(in_kafka)),
                Token::Fleeting => {}
            }
        }
        self.control.ring();
    }
}

impl Settling {
    fn mend(&self, key: RecordKey, refused: Option<RefusedBox>, error: Option<&DeliveryError>) {
        // Unsent or unknown: the producer was closed, so the process ends and the task is given back.
        let Some(DeliveryError::Refused { code, message }) = error else { return };
        let reason = format!(
            "Kafka refused the record: {code}{}",
            if message.is_empty() { String::new() } else { format!(" ({message})") }
        );
        let Some(RefusedBox(what)) = refused else {
            log::error!("a record of offset {} was refused twice: {}", key.offset, escape(&reason));
            return;
        };
        if self.repairs.try_send(Repair { key, what, reason }).is_err() {
            log::error!("too many refused records at once; the task at offset {} is delivered again later", key.offset);
        }
    }
}

/// Starts the producer's thread. The receiver is for the status thread, which calls [`Outbox::repair`].
pub(super) fn start(
    cluster: Cluster,
    topics: OutboxTopics,
    worker_id: &str,
    in_flight: Arc<InFlight>,
    control: Arc<Control>,
    on_death: Stop,
) -> (Producer<Token>, Outbox, Receiver<Repair>) {
    let (repairs, to_repair) = bounded(REPAIRS);
    let options = ProducerOptions {
        queue: QUEUE,
        batch_bytes: 512 * 1024,
        request_bytes: 900 * 1024,
        ..ProducerOptions::default()
    };
    let producer = Producer::start("outbox", cluster, options, Settling { in_flight, control, repairs }, on_death);
    let outbox = Outbox { sender: producer.sender(), topics, worker_id: worker_id.into() };
    (producer, outbox, to_repair)
}

impl Outbox {
    pub(super) fn topics(&self) -> &OutboxTopics {
        &self.topics
    }

    /// Sends a result; with it, and any other record that the account expects, in Kafka the task is accepted.
    pub(super) fn send_result(&self, key: RecordKey, result: &TaskResult) -> Result<(), OutboxClosed> {
        let record = self.result_record(result);
        let refused = Some(RefusedBox(Refused::Result(result.task_id.as_str().into())));
        self.send(record, Token::Owed { key, refused })
    }

    /// Sends the copy of a task that is given up to the dead-letter topic.
    pub(super) fn send_dead(&self, key: RecordKey, record: &AcquiredRecord, reason: &str) -> Result<(), OutboxClosed> {
        let copy = self.dead_record(record, record.value.clone(), reason);
        let refused = Some(RefusedBox(Refused::DeadCopy(Box::new(record.clone()), reason.into())));
        self.send(copy, Token::Owed { key, refused })
    }

    /// Sends the task again under the same id: the broker is about to drop the old record unrun.
    pub(super) fn send_again(&self, key: RecordKey, record: &AcquiredRecord) -> Result<(), OutboxClosed> {
        let again = ProducerRecord {
            topic: Arc::clone(&self.topics.tasks),
            key: record.key.clone(),
            value: record.value.clone(),
            headers: own_headers(record),
        };
        self.send(again, Token::Owed { key, refused: None })
    }

    /// Says that a task which was delivered before is about to be started, and waits until Kafka has it.
    ///
    /// False: the outbox closed, or `stop` was triggered, before Kafka had it.
    pub(super) fn announce_start(&self, started: &TaskStarted, stop: &Stop) -> bool {
        let (waiting, answer) = bounded(1);
        if self.send(self.starts_record(&started.task_id, started.encode()), Token::Notice(waiting)).is_err() {
            return false;
        }
        crossbeam_channel::select! {
            recv(answer) -> in_kafka => in_kafka.unwrap_or(false),
            recv(stop.triggered()) -> _ => answer.try_recv().unwrap_or(false),
        }
    }

    /// Notes why a start failed, for the reason in the dead letter. Nobody waits for it.
    pub(super) fn note_failure(&self, failed: &TaskFailed) -> Result<(), OutboxClosed> {
        self.send(self.starts_record(&failed.task_id, failed.encode()), Token::Fleeting)
    }

    /// Notes that a start ended with its worker's stop, so that it is not held against the task. Nobody waits for it, least of all the stop: where there is no
    /// room for it, the start counts.
    pub(super) fn note_stop(&self, stopped: &TaskStopped) {
        // Full or closed: see above.
        let _ = self.sender.try_send(self.starts_record(&stopped.task_id, stopped.encode()), Token::Fleeting);
    }

    /// Sends a status; the receiver gets true once Kafka has it.
    pub(super) fn send_status(&self, status: &WorkerStatus) -> Result<Receiver<bool>, OutboxClosed> {
        let (waiting, answer) = bounded(1);
        self.send(self.status_record(status), Token::Notice(waiting))?;
        Ok(answer)
    }

    /// Sends a heartbeat unless the queue is full: the next one follows soon.
    pub(super) fn send_heartbeat(&self, status: &WorkerStatus) {
        // Full or closed: one heartbeat less.
        let _ = self.sender.try_send(self.status_record(status), Token::Fleeting);
    }

    /// Writes something that Kafka takes in place of what it refused.
    pub(super) fn repair(&self, repair: Repair) -> Result<(), OutboxClosed> {
        let Repair { key, what, reason } = repair;
        log::warn!("offset {}: {}; writing less instead", key.offset, escape(&reason));
        let record = match what {
            Refused::Result(task_id) => self.result_record(&error_result(&task_id, &self.worker_id, &reason)),
            Refused::DeadCopy(record, why) => self.dead_record(&record, None, &why),
        };
        self.send(record, Token::Owed { key, refused: None })
    }

    fn send(&self, record: ProducerRecord, token: Token) -> Result<(), OutboxClosed> {
        self.sender.send(record, token).map_err(|_| OutboxClosed)
    }

    fn result_record(&self, result: &TaskResult) -> ProducerRecord {
        ProducerRecord {
            topic: Arc::clone(&self.topics.results),
            key: Some(Bytes::copy_from_slice(result.task_id.as_bytes())),
            value: Some(Bytes::from(result.encode())),
            headers: kind_header(task::KIND_RESULT),
        }
    }

    fn status_record(&self, status: &WorkerStatus) -> ProducerRecord {
        ProducerRecord {
            topic: Arc::clone(&self.topics.results),
            key: Some(Bytes::copy_from_slice(self.worker_id.as_bytes())),
            value: Some(Bytes::from(status.encode())),
            headers: kind_header(task::KIND_STATUS),
        }
    }

    fn starts_record(&self, task_id: &str, value: Vec<u8>) -> ProducerRecord {
        ProducerRecord {
            topic: Arc::clone(&self.topics.starts),
            key: Some(Bytes::copy_from_slice(task_id.as_bytes())),
            value: Some(Bytes::from(value)),
            headers: Vec::new(),
        }
    }

    fn dead_record(&self, record: &AcquiredRecord, value: Option<Bytes>, reason: &str) -> ProducerRecord {
        let mut headers = own_headers(record);
        let mut add = |name: &'static str, value: String| headers.push((Cow::Borrowed(name), Some(Bytes::from(value))));
        add("lastcall-reason", reason.to_owned());
        add("lastcall-deliveries", record.delivery_count.to_string());
        add("lastcall-worker", self.worker_id.to_string());
        add("lastcall-original-offset", record.offset.to_string());
        ProducerRecord { topic: Arc::clone(&self.topics.dead), key: record.key.clone(), value, headers }
    }
}

/// The result of a task that failed for good.
pub(super) fn error_result(task_id: &str, worker_id: &str, error: &str) -> TaskResult {
    TaskResult {
        task_id: task_id.to_owned(),
        success: false,
        error: Some(error.to_owned()),
        output: Map::new(),
        processed_by: worker_id.to_owned(),
        seconds: 0.0,
    }
}

fn kind_header(kind: &'static str) -> Vec<(Cow<'static, str>, Option<Bytes>)> {
    vec![(Cow::Borrowed(task::KIND_HEADER), Some(Bytes::from_static(kind.as_bytes())))]
}

fn own_headers(record: &AcquiredRecord) -> Vec<(Cow<'static, str>, Option<Bytes>)> {
    record.headers.iter().map(|(name, value)| (Cow::Owned(name.clone()), value.clone())).collect()
}

/// Waits for a notification's acknowledgement until `deadline`.
pub(super) fn acknowledged_by(answer: &Receiver<bool>, deadline: Instant) -> bool {
    answer.recv_deadline(deadline).unwrap_or(false)
}
