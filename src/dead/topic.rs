//! What `dead` reads from Kafka and writes to it: each record is acknowledged before the next step.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use crossbeam_channel::{Sender, bounded};
use kafka_share::{
    Cluster, Delivered, Delivery, DeliveryError, ErrorCode, KafkaError, Lookup, Producer, ProducerEvents,
    ProducerOptions, ProducerRecord, ReadRecord, Reader, ReaderOptions, StartAt,
};
use program::stop::Stop;

use super::DeadError;
use super::letters::{Letter, Letters};
use crate::task::dead::{LetterId, Mark, replay_of};
use crate::task::{Task, TaskReplayed};

/// Longest time without progress of one reading.
const READ_WAIT: Duration = Duration::from_secs(15);
/// Longest wait for the acknowledgement of a record.
const WRITE_WAIT: Duration = Duration::from_secs(15);
/// How far before a claim its task is searched for, since timestamps may be those of senders.
const SLACK: Duration = Duration::from_secs(60);
/// Pause after a failed round of reading.
const RETRY: Duration = Duration::from_millis(100);
/// Bytes of one fetch.
const READ_BYTES: i32 = 4 << 20;

/// The topics, and the letters as read so far.
#[derive(Debug)]
pub(super) struct DeadTopic {
    cluster: Cluster,
    tasks: Arc<str>,
    dead: Arc<str>,
    starts: Arc<str>,
    reader: Reader,
    letters: Letters,
    lookup: Lookup,
    /// `Some` from the first record to write.
    producer: Option<Producer<Token>>,
}

/// A record that is being written: where its outcome goes, and until when it may be sent.
#[derive(Debug)]
struct Token {
    outcome: Sender<Result<Delivered, DeliveryError>>,
    send_until: Instant,
}

struct Outcomes;

impl ProducerEvents<Token> for Outcomes {
    fn about_to_send(&mut self, token: &Token) -> bool {
        Instant::now() < token.send_until
    }

    fn settled(&mut self, deliveries: Vec<Delivery<Token>>) {
        for Delivery { token, outcome } in deliveries {
            // Capacity one and one outcome: never full. Disconnected: the writer has stopped waiting.
            let _ = token.outcome.try_send(outcome);
        }
    }
}

impl DeadTopic {
    /// Connects with the first request.
    pub(super) fn new(cluster: Cluster, tasks_topic: &str) -> Self {
        let dead = format!("{tasks_topic}.dead");
        Self {
            reader: reader(&cluster, &dead, StartAt::Earliest),
            lookup: Lookup::new(cluster.clone()),
            tasks: tasks_topic.into(),
            dead: dead.into(),
            starts: format!("{tasks_topic}.starts").into(),
            letters: Letters::all(),
            producer: None,
            cluster,
        }
    }

    pub(super) fn letters(&self) -> &Letters {
        &self.letters
    }

    /// Reads the letters and marks up to the topic's present end.
    ///
    /// # Errors
    /// There was no progress for [`READ_WAIT`], or an error that no repetition cures.
    pub(super) fn read_to_end(&mut self) -> Result<(), DeadError> {
        let Self { reader, letters, .. } = self;
        read(&self.cluster, reader, &self.dead, None, |record| letters.read(record))
    }

    /// The record of a letter; `None` if Kafka has deleted it.
    pub(super) fn record(&mut self, id: LetterId) -> Result<Option<ReadRecord>, DeadError> {
        self.lookup.read(&self.dead, id.partition, id.offset).map_err(|error| about(&self.dead, &error))
    }

    /// Writes a mark about this letter, then reads the topic up to it. Returns its offset.
    pub(super) fn mark(&mut self, mark: &Mark, key: Option<Bytes>) -> Result<i64, DeadError> {
        let headers = mark.headers().into_iter();
        let headers = headers.map(|(name, value)| (Cow::Borrowed(name), Some(Bytes::from(value)))).collect();
        // All marks about a letter are in one partition, so they have an order.
        let key = key.or_else(|| Some(Bytes::from(mark.letter.to_string())));
        let record = ProducerRecord { topic: Arc::clone(&self.dead), key, value: None, headers };
        let Delivered { partition, offset } = self.write(record, Instant::now() + WRITE_WAIT)?;
        let Self { reader, letters, .. } = self;
        let end = BTreeMap::from([(partition, offset + 1)]);
        read(&self.cluster, reader, &self.dead, Some(end), |record| letters.read(record))?;
        Ok(offset)
    }

    /// Resets the starts of a task, then produces it.
    pub(super) fn produce(
        &mut self,
        reset: &TaskReplayed,
        (key, value): (Option<Bytes>, Option<Bytes>),
        headers: Vec<(Cow<'static, str>, Option<Bytes>)>,
        send_until: Instant,
    ) -> Result<Delivered, DeadError> {
        let starts = ProducerRecord {
            topic: Arc::clone(&self.starts),
            key: Some(Bytes::copy_from_slice(reset.task_id.as_bytes())),
            value: Some(Bytes::from(reset.encode())),
            headers: Vec::new(),
        };
        self.write(starts, send_until)?;
        self.write(ProducerRecord { topic: Arc::clone(&self.tasks), key, value, headers }, send_until)
    }

    /// The number of the first of these claims whose task is on the tasks topic.
    pub(super) fn produced(&self, letter: &Letter) -> Result<Option<u64>, DeadError> {
        let Some(since) = letter.claims.iter().map(|claim| claim.at).min() else { return Ok(None) };
        let since = since.checked_sub(SLACK).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut found = None;
        let mut reader = reader(&self.cluster, &self.tasks, StartAt::Time(since));
        read(&self.cluster, &mut reader, &self.tasks, None, |record| {
            let replay = replay_of(&record.headers);
            let is_it = replay != 0 && letter.claims.iter().any(|claim| claim.replay == replay);
            if is_it && Task::id_of(record.key.as_deref(), record.value.as_deref()) == letter.task_id {
                found = Some(replay);
            }
        })?;
        Ok(found)
    }

    fn write(&mut self, record: ProducerRecord, send_until: Instant) -> Result<Delivered, DeadError> {
        let producer = self.producer.get_or_insert_with(|| {
            let options = ProducerOptions { queue: 16, ..ProducerOptions::default() };
            Producer::start("producer", self.cluster.clone(), options, Outcomes, Stop::new())
        });
        let topic = Arc::clone(&record.topic);
        let (outcome, told) = bounded(1);
        let failed = |why: String| DeadError::Kafka(format!("topic \"{topic}\": {why}"));
        producer.send(record, Token { outcome, send_until }).map_err(|closed| failed(closed.to_string()))?;
        match told.recv_timeout(WRITE_WAIT) {
            Ok(outcome) => outcome.map_err(|error| failed(error.to_string())),
            Err(_) => Err(failed("Kafka has not acknowledged the record in time".to_owned())),
        }
    }
}

fn reader(cluster: &Cluster, topic: &str, start: StartAt) -> Reader {
    let options = ReaderOptions { max_bytes: READ_BYTES, ..ReaderOptions::default() };
    Reader::new(cluster.clone(), topic, start, options)
}

/// Reads up to these ends, or else up to the present ends.
fn read(
    cluster: &Cluster,
    reader: &mut Reader,
    topic: &str,
    mut ends: Option<BTreeMap<i32, i64>>,
    mut take: impl FnMut(&ReadRecord),
) -> Result<(), DeadError> {
    let mut progress = Instant::now();
    loop {
        let round = match &ends {
            None => reader.all_end_offsets().map(|now| {
                ends = Some(now);
                Vec::new()
            }),
            Some(_) => reader.poll(),
        };
        match round {
            Ok(records) if records.is_empty() && progress.elapsed() >= READ_WAIT => {
                let text = format!("no record was read for {} s", READ_WAIT.as_secs());
                return Err(DeadError::Kafka(format!("topic \"{topic}\": {text}")));
            }
            Ok(records) => {
                progress = if records.is_empty() { progress } else { Instant::now() };
                records.iter().for_each(&mut take);
            }
            Err(error) if error.is_interrupted() || is_final(&error) => return Err(about(topic, &error)),
            Err(error) if progress.elapsed() >= READ_WAIT => return Err(about(topic, &error)),
            Err(error) => {
                log::debug!("{topic}: {error}");
                cluster.options().interrupter.sleep(RETRY).map_err(|error| about(topic, &error))?;
            }
        }
        let positions = reader.positions();
        // A partition without records has no position worth waiting for.
        let is_read = |(partition, end): (&i32, &i64)| *end == 0 || positions.get(partition) >= Some(end);
        if ends.as_ref().is_some_and(|ends| ends.iter().all(is_read)) {
            return Ok(());
        }
    }
}

/// Whether an operator has to change something first: a topic or a right is missing.
fn is_final(error: &KafkaError) -> bool {
    let missing = ErrorCode::UNKNOWN_TOPIC_OR_PARTITION;
    error.missing_right().is_some()
        || matches!(error, KafkaError::Broker { request: "Metadata", code, .. } if *code == missing)
}

fn about(topic: &str, error: &KafkaError) -> DeadError {
    DeadError::Kafka(format!("topic \"{topic}\": {}", error.explained()))
}
