//! The outbox: one idempotent producer for everything that a worker writes to Kafka.
//!
//! A task is accepted after all in-sync replicas have its result: see [`settling`](super::settling). Handlers and the
//! status thread send; the producer's thread settles.

use super::drain::Control;
use super::in_flight::{InFlight, RecordKey};
use super::repair::{Debt, Owed, Part, Repair};
use super::settling::{Settling, StartRecord, Token};
use crate::outage::Refusals;
use crate::supervisor::Obstacle;
use crate::task::dead::{self, ReasonClass, dlq};
use crate::task::{self, Headers, TaskFailed, TaskResult, TaskStarted, TaskStopped, WorkerStatus};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, select};
use kafka_share::cluster::Cluster;
use kafka_share::producer::{Producer, ProducerOptions, ProducerRecord, ProducerSender};
use kafka_share::share_session::AcquiredRecord;
use program::logging::escape;
use program::stop::Stop;
use serde_json::Map;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Capacity of the producer's queue. Full: handlers wait with their outcome, so the worker fetches no more.
const QUEUE: usize = 2048;
/// Capacity for refused records that wait for their repair. Full: the task is released.
const REPAIRS: usize = 256;
/// How often a waiting handler checks whether a missing right was granted.
const DENIAL_CHECK: Duration = Duration::from_millis(100);

/// The outcome of announcing a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Announced {
    /// Kafka has the record.
    #[error("it is")]
    OnRecord,
    /// A right is missing.
    #[error("a right is missing")]
    Denied,
    /// Kafka did not acknowledge the record within the limit.
    #[error("Kafka did not take it in time")]
    TooLate,
    /// The worker stops.
    #[error("the worker stops")]
    Stopped,
}

/// Names of the topics that a worker writes to.
#[derive(Clone, Debug)]
pub(super) struct OutboxTopics {
    pub(super) tasks: Arc<str>,
    pub(super) results: Arc<str>,
    pub(super) dead: Arc<str>,
    pub(super) starts: Arc<str>,
    /// The share group, which dead letters name.
    pub(super) group: Arc<str>,
}

/// The sending side, for handlers and the status thread.
#[derive(Clone)]
pub(super) struct Outbox {
    sender: ProducerSender<Token>,
    topics: OutboxTopics,
    worker_id: Arc<str>,
    /// A heartbeat is on its way.
    heartbeat: Arc<AtomicBool>,
}

/// The outbox is closed, because the process ends.
#[derive(Debug, thiserror::Error)]
#[error("the outbox is closed")]
pub(super) struct OutboxClosed;

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
    let options = ProducerOptions { queue: QUEUE, request_bytes: 900 * 1024, ..ProducerOptions::default() };
    let heartbeat = Arc::new(AtomicBool::new(false));
    let worker_id: Arc<str> = worker_id.into();
    let settling = Settling {
        in_flight,
        control,
        repairs,
        heartbeat: Arc::clone(&heartbeat),
        worker_id: Arc::clone(&worker_id),
        unwritten: 0,
    };
    let producer = Producer::start("outbox", cluster, options, settling, on_death);
    let outbox = Outbox { sender: producer.sender(), topics, worker_id, heartbeat };
    (producer, outbox, to_repair)
}

impl Outbox {
    pub(super) fn topics(&self) -> &OutboxTopics {
        &self.topics
    }

    /// The obstacle to readiness: a missing right, or connections that cannot be secured.
    pub(super) fn obstacle(&self, cluster: &Cluster, refusals: &Refusals) -> Obstacle {
        let (sender, cluster, refusals) = (self.sender.clone(), cluster.clone(), refusals.clone());
        Obstacle::new(move || {
            let denied = sender.denial().map(|denied| denied.to_string());
            denied.or_else(|| refusals.first()).or_else(|| cluster.insecurity())
        })
    }

    /// Waits while Kafka denies results: the result of a task that ran now could not be written. Heartbeats go to the
    /// same topic, so the first heartbeat that Kafka takes ends the wait. Returns false if `stop` came first, or once
    /// `waits` returns false.
    pub(super) fn wait_for_rights(&self, stop: &Stop, waits: impl Fn() -> bool) -> bool {
        while self.sender.denial_of(&self.topics.results).is_some() {
            if !waits() || stop.sleep(DENIAL_CHECK).is_err() {
                return false;
            }
        }
        true
    }

    /// Sends the result of a task, with the headers that the task's record hands on. The task is accepted once Kafka has
    /// all records that the account expects.
    pub(super) fn send_result(
        &self,
        key: RecordKey,
        record: &AcquiredRecord,
        result: &TaskResult,
    ) -> Result<(), OutboxClosed> {
        let (deliveries, carried) = (record.delivery_count, task::carried(&record.headers));
        let record = Owed::Result(result.task_id.as_str().into(), carried.clone());
        self.send(self.result_record(result, carried), Token::Owed(key, Debt { deliveries, record }))
    }

    /// Sends a copy of a task to the dead-letter topic.
    pub(super) fn send_dead(&self, key: RecordKey, record: &AcquiredRecord, reason: &str) -> Result<(), OutboxClosed> {
        let dead = Owed::DeadLetter(Box::new(record.clone()), reason.into(), Part::Whole);
        self.send_owed(key, Debt { deliveries: record.delivery_count, record: dead }, reason)
    }

    /// Sends the task again under the same id, because the broker is about to drop the old record.
    pub(super) fn send_again(
        &self,
        key: RecordKey,
        record: &AcquiredRecord,
        task_id: &str,
    ) -> Result<(), OutboxClosed> {
        let copy = Owed::Copy(Box::new(record.clone()), task_id.into());
        self.send_owed(key, Debt { deliveries: record.delivery_count, record: copy }, "")
    }

    /// Writes the replacement of a record that Kafka has refused.
    pub(super) fn repair(&self, repair: Repair) -> Result<(), OutboxClosed> {
        let Repair { key, debt, reason, given_up } = repair;
        log::warn!("offset {}: {}; writing less instead", key.offset, escape(&reason));
        if let Some(task_id) = given_up {
            // Not owed: the account expects only the replacement.
            let carried = match &debt.record {
                Owed::DeadLetter(record, ..) | Owed::Copy(record, _) => task::carried(&record.headers),
                Owed::Result(_, carried) | Owed::ErrorResult(_, carried) => carried.clone(),
            };
            let result = error_result(&task_id, &self.worker_id, &reason);
            self.send(self.result_record(&result, carried), Token::Fleeting)?;
        }
        self.send_owed(key, debt, &reason)
    }

    /// Announces the start of a redelivered task. Waits for Kafka for at most `limit`, and not while the worker stops.
    pub(super) fn announce_start(&self, started: &TaskStarted, stop: &Stop, limit: Duration) -> Announced {
        let (waiting, answer) = bounded(1);
        let record = Arc::new(StartRecord::default());
        let token = Token::Start(waiting, Arc::clone(&record));
        if self.send(self.starts_record(&started.task_id, started.encode()), token).is_err() {
            return Announced::Stopped;
        }
        let (told, otherwise) = select! {
            recv(answer) -> in_kafka => (in_kafka.ok(), Announced::Stopped),
            recv(stop.triggered()) -> _ => (answer.try_recv().ok(), Announced::Stopped),
            default(limit) => (answer.try_recv().ok(), Announced::TooLate),
        };
        match told {
            Some(true) => return Announced::OnRecord,
            Some(false) if self.sender.denial_of(&self.topics.starts).is_some() => return Announced::Denied,
            Some(false) => {}
            None if record.cancel() => {}
            // The record may still arrive, but the task was not started.
            None => {
                let (task_id, worker_id) = (started.task_id.clone(), self.worker_id.to_string());
                self.note_stop(&TaskStopped { task_id, worker_id });
            }
        }
        otherwise
    }

    /// Notes why a start failed, for the reason in the dead letter. Does not wait for Kafka.
    pub(super) fn note_failure(&self, failed: &TaskFailed) -> Result<(), OutboxClosed> {
        self.send(self.starts_record(&failed.task_id, failed.encode()), Token::Fleeting)
    }

    /// Notes that a start ended with its worker's stop, so that the start does not count against the task. Does not
    /// wait: if the queue is full, the note is dropped and the start counts.
    pub(super) fn note_stop(&self, stopped: &TaskStopped) {
        // Full or closed: the start counts.
        let _ = self.sender.try_send(self.starts_record(&stopped.task_id, stopped.encode()), Token::Fleeting);
    }

    /// Sends a status record; `waiting` gets true once Kafka has it.
    pub(super) fn send_status(&self, status: &WorkerStatus, waiting: Sender<bool>) -> Result<(), OutboxClosed> {
        self.send(self.status_record(status), Token::Notice(waiting))
    }

    /// Sends a heartbeat unless another is on its way or the queue is full, so that heartbeats do not pile up.
    pub(super) fn send_heartbeat(&self, status: &WorkerStatus) {
        if self.heartbeat.swap(true, Ordering::Relaxed) {
            return;
        }
        if self.sender.try_send(self.status_record(status), Token::Heartbeat).is_err() {
            self.heartbeat.store(false, Ordering::Relaxed);
        }
    }

    /// Sends a record that is owed. `reason`: why an error result replaces a result.
    fn send_owed(&self, key: RecordKey, debt: Debt, reason: &str) -> Result<(), OutboxClosed> {
        let record = match &debt.record {
            Owed::Result(task_id, carried) | Owed::ErrorResult(task_id, carried) => {
                self.result_record(&error_result(task_id, &self.worker_id, reason), carried.clone())
            }
            Owed::DeadLetter(record, why, part) => self.dead_record(record, why, *part),
            Owed::Copy(record, _) => ProducerRecord {
                topic: Arc::clone(&self.topics.tasks),
                key: record.key.clone(),
                value: record.value.clone(),
                headers: own_headers(record),
            },
        };
        self.send(record, Token::Owed(key, debt))
    }

    fn send(&self, record: ProducerRecord, token: Token) -> Result<(), OutboxClosed> {
        self.sender.send(record, token).map_err(|_| OutboxClosed)
    }

    fn result_record(&self, result: &TaskResult, carried: Headers) -> ProducerRecord {
        let mut headers = kind_header(task::KIND_RESULT);
        headers.extend(carried);
        ProducerRecord {
            topic: Arc::clone(&self.topics.results),
            key: Some(Bytes::copy_from_slice(result.task_id.as_bytes())),
            value: Some(Bytes::from(result.encode())),
            headers,
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

    fn dead_record(&self, record: &AcquiredRecord, reason: &str, part: Part) -> ProducerRecord {
        let mut headers = if part == Part::KeyAlone { Vec::new() } else { own_headers(record) };
        let mut add = |name: &'static str, value: String| headers.push((Cow::Borrowed(name), Some(Bytes::from(value))));
        add(dead::REASON_HEADER, reason.to_owned());
        add(dead::REASON_CLASS_HEADER, ReasonClass::of_reason(reason).name().to_owned());
        add(dead::DELIVERIES_HEADER, record.delivery_count.to_string());
        add(dead::WORKER_HEADER, self.worker_id.to_string());
        add(dead::ORIGINAL_OFFSET_HEADER, record.offset.to_string());
        // As Kafka names the same facts in its own dead letters.
        add(dlq::TOPIC, self.topics.tasks.to_string());
        add(dlq::PARTITION, record.partition.partition.to_string());
        add(dlq::OFFSET, record.offset.to_string());
        add(dlq::GROUP, self.topics.group.to_string());
        add(dlq::DELIVERY_COUNT, record.delivery_count.to_string());
        add(dlq::MESSAGE, reason.to_owned());
        let value = record.value.clone().filter(|_| part == Part::Whole);
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

fn kind_header(kind: &'static str) -> Headers {
    vec![(Cow::Borrowed(task::KIND_HEADER), Some(Bytes::from_static(kind.as_bytes())))]
}

fn own_headers(record: &AcquiredRecord) -> Headers {
    record.headers.iter().map(|(name, value)| (Cow::Owned(name.clone()), value.clone())).collect()
}
