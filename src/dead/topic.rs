//! What `dead` reads from Kafka and writes to it: each record is acknowledged before the next step.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use crossbeam_channel::{Sender, bounded};
use kafka_share::admin;
use kafka_share::admin::TopicRight::{self, Read, Write};
use kafka_share::{
    Cluster, Delivered, Delivery, DeliveryError, ErrorCode, KafkaError, Lookup, Producer, ProducerEvents,
    ProducerOptions, ProducerRecord, ReadRecord, Reader, ReaderOptions, StartAt,
};
use program::stop::Stop;

use super::DeadError;
use super::letters::{Letter, Letters, unordered};
use super::search::Sightings;
use crate::task::TaskReplayed;
use crate::task::dead::{LetterId, Mark};

/// Longest time without progress of one reading.
const READ_WAIT: Duration = Duration::from_secs(15);
/// Longest wait for the acknowledgement of a record.
const WRITE_WAIT: Duration = Duration::from_secs(15);
/// How far before a letter its task is searched for, since timestamps may be those of senders.
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

/// The tasks topic, as read so far.
#[derive(Debug)]
pub(super) struct Search {
    reader: Reader,
    pub(super) sightings: Sightings,
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

    /// The name of the tasks topic.
    pub(super) fn tasks(&self) -> &str {
        &self.tasks
    }

    pub(super) fn letters(&self) -> &Letters {
        &self.letters
    }

    /// Reads the letters and marks up to the topic's present end.
    ///
    /// # Errors
    /// There was no progress for [`READ_WAIT`], an error that no repetition cures, or marks without an order.
    pub(super) fn read_to_end(&mut self) -> Result<(), DeadError> {
        let Self { reader, letters, .. } = self;
        read(&self.cluster, reader, &self.dead, None, |record| letters.read(record))?;
        let topic = self.cluster.topic(&self.dead).map_err(|error| about(&self.dead, &error))?;
        unordered(&self.dead, topic.partitions.len()).map_or(Ok(()), |text| Err(DeadError::Kafka(text)))
    }

    /// A search for the tasks of these letters, from the time of the oldest on.
    pub(super) fn search(&self, letters: &[&Letter]) -> Search {
        let oldest = letters.iter().map(|letter| letter.at).min();
        let since = oldest.and_then(|at| at.checked_sub(SLACK)).unwrap_or(SystemTime::UNIX_EPOCH);
        let reader = reader(&self.cluster, &self.tasks, StartAt::Time(since));
        Search { reader, sightings: Sightings::of(letters.iter().copied()) }
    }

    /// Reads on up to the present end of the tasks topic.
    ///
    /// # Errors
    /// There was no progress for [`READ_WAIT`], or an error that no repetition cures.
    pub(super) fn read_on(&self, search: &mut Search) -> Result<(), DeadError> {
        let Search { reader, sightings } = search;
        read(&self.cluster, reader, &self.tasks, None, |record| sightings.read(record))
    }

    /// Fails if a right is missing that a replay needs.
    ///
    /// # Errors
    /// The names of the rights, or Kafka has not told them.
    pub(super) fn check_rights(&self) -> Result<(), DeadError> {
        let each = [(&self.tasks, Read), (&self.tasks, Write), (&self.dead, Write), (&self.starts, Write)];
        let wanted = each.map(|(topic, right)| (topic.to_string(), right));
        let missing = admin::missing_rights(&self.cluster, &wanted).map_err(|error| about(&self.tasks, &error))?;
        match &missing[..] {
            [] => Ok(()),
            missing => Err(DeadError::Kafka(TopicRight::missing(missing))),
        }
    }

    /// The time since which the tasks topic has all of its records: Kafka may have deleted earlier ones.
    ///
    /// # Errors
    /// Kafka has not told it.
    pub(super) fn kept_since(&mut self) -> Result<SystemTime, DeadError> {
        let told = |error: KafkaError| about(&self.tasks, &error);
        let mut since = SystemTime::UNIX_EPOCH;
        for (partition, start) in admin::start_offsets(&self.cluster, &self.tasks).map_err(told)? {
            if start > 0 {
                let first = self.lookup.read(&self.tasks, partition, start).map_err(told)?;
                since = since.max(first.map_or_else(SystemTime::now, |record| record.timestamp));
            }
        }
        Ok(since)
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
        until: Instant,
    ) -> Result<Delivered, DeadError> {
        let starts = ProducerRecord {
            topic: Arc::clone(&self.starts),
            key: Some(Bytes::copy_from_slice(reset.task_id.as_bytes())),
            value: Some(Bytes::from(reset.encode())),
            headers: Vec::new(),
        };
        self.write(starts, until)?;
        self.write(ProducerRecord { topic: Arc::clone(&self.tasks), key, value, headers }, until)
    }

    /// Writes a record until then at the latest: afterwards it is no longer sent, nor sent again.
    ///
    /// # Errors
    /// Kafka refuses the record, or has not acknowledged it.
    fn write(&mut self, record: ProducerRecord, until: Instant) -> Result<Delivered, DeadError> {
        let producer = self.producer.get_or_insert_with(|| {
            let options = ProducerOptions { queue: 16, ..ProducerOptions::default() };
            Producer::start("producer", self.cluster.clone(), options, Outcomes, Stop::new())
        });
        let topic = Arc::clone(&record.topic);
        let (outcome, told) = bounded(1);
        let failed = |why: String| DeadError::Kafka(format!("topic \"{topic}\": {why}"));
        producer.send(record, Token { outcome, send_until: until }).map_err(|closed| failed(closed.to_string()))?;
        match told.recv_deadline(until) {
            Ok(Err(error @ DeliveryError::Refused { .. })) => {
                Err(DeadError::Refused(format!("topic \"{topic}\": {error}")))
            }
            Ok(outcome) => outcome.map_err(|error| failed(error.to_string())),
            Err(_) => {
                // The producer would send the record again.
                self.producer = None;
                Err(failed("Kafka has not acknowledged the record in time".to_owned()))
            }
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
