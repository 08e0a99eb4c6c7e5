//! What a stand-in writes to Kafka: one producer, and for each record a channel that tells when Kafka has it.

use std::borrow::Cow;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use lastcall::{
    config::Common,
    kafka::{
        Cluster, Delivery, Producer, ProducerEvents, ProducerOptions, ProducerRecord, ProducerSender,
        share_session::AcquiredRecord,
    },
    stop::Stop,
    task::{KIND_HEADER, KIND_RESULT, KIND_STATUS, TaskResult, TaskStarted, WorkerStatus},
};

/// Capacity one, one answer: whether Kafka has the record. Disconnected: the producer has ended.
pub type Told = Receiver<bool>;
type Token = Sender<bool>;
type Headers = Vec<(Cow<'static, str>, Option<Bytes>)>;

struct Telling;

impl ProducerEvents<Token> for Telling {
    fn settled(&mut self, deliveries: Vec<Delivery<Token>>) {
        for delivery in deliveries {
            // Disconnected: nobody waits, as for a heartbeat.
            let _ = delivery.token.try_send(delivery.outcome.is_ok());
        }
    }
}

/// The sending side; clones share the producer.
#[derive(Clone)]
pub struct Outbox {
    sender: ProducerSender<Token>,
    common: Common,
    worker_id: String,
}

/// Starts the producer; `on_death` is triggered when it dies.
pub fn start(cluster: Cluster, common: &Common, worker_id: &str, on_death: Stop) -> (Producer<Token>, Outbox) {
    let producer = Producer::start("outbox", cluster, ProducerOptions::default(), Telling, on_death);
    let outbox = Outbox { sender: producer.sender(), common: common.clone(), worker_id: worker_id.to_owned() };
    (producer, outbox)
}

impl Outbox {
    pub fn result(&self, result: &TaskResult) -> Told {
        self.send(&self.common.results_topic, result.task_id.as_bytes(), Some(result.encode()), kind(KIND_RESULT))
    }

    pub fn status(&self, status: &WorkerStatus) -> Told {
        self.send(&self.common.results_topic, self.worker_id.as_bytes(), Some(status.encode()), kind(KIND_STATUS))
    }

    pub fn started(&self, started: &TaskStarted) -> Told {
        self.send(&self.common.starts_topic(), started.task_id.as_bytes(), Some(started.encode()), Vec::new())
    }

    pub fn dead(&self, record: &AcquiredRecord, reason: &str) -> Told {
        let own = record.headers.iter().map(|(name, value)| (Cow::Owned(name.clone()), value.clone()));
        let mut headers: Headers = own.collect();
        let mut add = |name: &'static str, value: String| headers.push((name.into(), Some(Bytes::from(value))));
        add("lastcall-reason", reason.to_owned());
        add("lastcall-deliveries", record.delivery_count.to_string());
        add("lastcall-worker", self.worker_id.clone());
        add("lastcall-original-offset", record.offset.to_string());
        let value = record.value.as_ref().map(|value| value.to_vec());
        self.send(&self.common.dead_topic(), record.key.as_deref().unwrap_or_default(), value, headers)
    }

    fn send(&self, topic: &str, key: &[u8], value: Option<Vec<u8>>, headers: Headers) -> Told {
        let (token, told) = bounded(1);
        let key = Some(Bytes::copy_from_slice(key));
        let record = ProducerRecord { topic: topic.into(), key, value: value.map(Bytes::from), headers };
        // Closed: the token is dropped, which is told as well.
        let _ = self.sender.send(record, token);
        told
    }
}

fn kind(kind: &'static str) -> Headers {
    vec![(KIND_HEADER.into(), Some(Bytes::from_static(kind.as_bytes())))]
}
