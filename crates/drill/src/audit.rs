//! The audit: reads the topics from the start of the run to their ends, and writes their records into the ledger.
//!
//! It uses two clients that share no code: [`Witness`] reads the records; the project's own reader adds the broker's
//! timestamps, which the witness does not know, and must see the same records. On a secured Kafka, which the witness
//! cannot read, the own reader reads alone. Called by the run after the load, when the fleet is at rest or has stopped.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde_json::Value;

use kafka_share::{Cluster, ErrorCode, KafkaError, ReadRecord, Reader, ReaderOptions, Retry, StartAt, admin};
use program::stop::Stop;

use super::clock::Clock;
use super::fact::{Fact, Line};
use super::outcome;
use super::place::Place;
use super::texts::Texts;
use super::witness::{Record, Witness, WitnessError};

/// How long the group may take to finish the tasks that are left at the end of a run.
const LAG_WAIT: Duration = Duration::from_secs(10);
/// How often the audit asks for the lag, or for the ends of a topic.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long the project's own reader may take for a topic.
const READ_WAIT: Duration = Duration::from_secs(60);
/// How long a partition may be without a leader when the own reader asks for the ends.
const ENDS_WAIT: Duration = Duration::from_secs(30);
/// How long a topic may be unknown: a broker may not have heard of it yet.
const UNKNOWN_WAIT: Duration = Duration::from_secs(1);

/// The audit of a run.
pub(super) struct Audit {
    place: Place,
    clock: Clock,
    texts: Texts,
    /// `None` on a secured Kafka.
    witness: Option<Witness>,
    topics: [Topic; 4],
}

/// A topic, with its end offsets at the start of the run.
#[derive(Debug)]
struct Topic {
    name: String,
    kind: Kind,
    from: BTreeMap<i32, i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tasks,
    Results,
    Starts,
    Dead,
}

/// Why an audit failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuditError {
    #[error(transparent)]
    Witness(#[from] WitnessError),
    #[error("{topic}: {source}")]
    Own { topic: String, source: KafkaError },
    #[error("{topic}: a partition has no leader")]
    Leaderless { topic: String },
    #[error("{topic} was not read to its end within {READ_WAIT:?}")]
    Unread { topic: String },
}

/// Timestamp and checksum of each record, by partition and offset.
type Seen = HashMap<(i32, i64), (f64, u32)>;

impl Audit {
    /// Notes the present ends of the topics.
    ///
    /// # Errors
    /// Kafka cannot be read.
    pub(super) fn begin(place: &Place, cluster: &Cluster, clock: Clock, texts: &Texts) -> Result<Self, AuditError> {
        let bootstrap = || place.bootstrap.iter().map(ToString::to_string).collect();
        let mut witness = place.has_witness().then(|| Witness::new(bootstrap()));
        let (tasks, results) = (&place.tasks_topic, &place.results_topic);
        let mut topic = |name: String, kind| {
            let from = ends(witness.as_mut(), cluster, &name, &Stop::new())?;
            Ok::<_, AuditError>(Topic { name, kind, from })
        };
        let topics = [
            topic(tasks.clone(), Kind::Tasks)?,
            topic(results.clone(), Kind::Results)?,
            topic(format!("{tasks}.starts"), Kind::Starts)?,
            topic(format!("{tasks}.dead"), Kind::Dead)?,
        ];
        Ok(Self { place: place.clone(), clock, texts: texts.clone(), witness, topics })
    }

    /// Reads the topics to their present ends and passes each record to `write` as a fact. `stop` ends the reading
    /// early.
    ///
    /// # Errors
    /// Kafka cannot be read, or not in time; the records that were read until then are written.
    pub(super) fn read(
        &mut self,
        cluster: &Cluster,
        stop: &Stop,
        write: &mut dyn FnMut(Line),
    ) -> Result<(), AuditError> {
        // The tasks topic comes first, because the expected result depends on the request of the task.
        let mut numbers = HashMap::new();
        for topic in &self.topics {
            let to = ends(self.witness.as_mut(), cluster, &topic.name, stop)?;
            if to.is_empty() {
                continue;
            }
            let (clock, texts) = (self.clock, &self.texts);
            let Some(witness) = &mut self.witness else {
                let is_read = topic.read_own(cluster, &to, clock, stop, &mut |at, record| {
                    if let Some(fact) = topic.fact(record, texts, &mut numbers) {
                        write(Line { at, fact });
                    }
                })?;
                if is_read {
                    continue;
                }
                return Err(AuditError::Unread { topic: topic.name.clone() });
            };
            let mut seen = Seen::new();
            // What it does not read in time is missing below.
            topic.read_own(cluster, &to, clock, stop, &mut |at, record| {
                seen.insert((record.partition, record.offset), (at, crc32c::crc32c(&record.value)));
            })?;
            let own = seen.len();
            let (mut read, mut differ, mut missed) = (0_usize, 0_usize, 0_usize);
            witness.read(&topic.name, &topic.from, &to, stop, &mut |record| {
                read += 1;
                let at = match seen.remove(&(record.partition, record.offset)) {
                    Some((at, mark)) => {
                        differ += usize::from(mark != crc32c::crc32c(&record.value));
                        at
                    }
                    None => {
                        missed += 1;
                        clock.now()
                    }
                };
                if let Some(fact) = topic.fact(&record, texts, &mut numbers) {
                    write(Line { at, fact });
                }
            })?;
            if differ + missed + seen.len() > 0 {
                let detail = format!(
                    "the witness found {read} records, the project's reader {own}: {missed} missing in the second, {} in the first, {differ} differ",
                    seen.len()
                );
                write(Line { at: self.clock.now(), fact: Fact::Disagreed { topic: topic.name.clone(), detail } });
            }
        }
        Ok(())
    }

    /// Number of tasks that the group has left after [`LAG_WAIT`] at most.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub(super) fn lag(&self, cluster: &Cluster, stop: &Stop) -> Result<i64, KafkaError> {
        let deadline = Instant::now() + LAG_WAIT;
        loop {
            let lags = admin::share_group_lags(cluster, &self.place.group, &self.place.tasks_topic)?;
            let ends = admin::end_offsets(cluster, &self.place.tasks_topic)?;
            // A partition that the group has not begun counts with all its records.
            let lag = ends.iter().map(|(partition, end)| lags.get(partition).unwrap_or(end)).sum();
            if lag <= 0 || Instant::now() >= deadline || stop.sleep(ASK_EVERY).is_err() {
                return Ok(lag);
            }
        }
    }
}

/// The end offset of each partition; empty if the topic does not exist. Without a witness the own client asks.
fn ends(
    witness: Option<&mut Witness>,
    cluster: &Cluster,
    topic: &str,
    stop: &Stop,
) -> Result<BTreeMap<i32, i64>, AuditError> {
    if let Some(witness) = witness {
        return Ok(witness.ends(topic)?);
    }
    let (unknown_until, deadline) = (Instant::now() + UNKNOWN_WAIT, Instant::now() + ENDS_WAIT);
    loop {
        // Partitions may have been added.
        cluster.forget_topic(topic);
        let ends = admin::end_offsets(cluster, topic);
        let known = cluster.topic(topic).map_or(0, |topic| topic.partitions.len());
        let is_over = Instant::now() >= deadline || stop.is_triggered();
        match ends {
            // Partitions without a leader are left out.
            Ok(ends) if ends.len() >= known => return Ok(ends),
            Ok(_) if is_over => return Err(AuditError::Leaderless { topic: topic.to_owned() }),
            Err(error) if error.code() == Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION) => {
                if is_over || Instant::now() >= unknown_until {
                    return Ok(BTreeMap::new());
                }
            }
            Err(source) if is_over || source.retry() == Retry::Never => {
                return Err(AuditError::Own { topic: topic.to_owned(), source });
            }
            Ok(_) | Err(_) => {}
        }
        // The loop checks the stop.
        let _ = stop.sleep(ASK_EVERY);
    }
}

/// A member of a record; `None` if it is missing or of another type.
fn member<T: DeserializeOwned>(record: &Value, name: &str) -> Option<T> {
    T::deserialize(record.get(name)?).ok()
}

/// The same for a member that may be missing.
fn optional<T: DeserializeOwned + Default>(record: &Value, name: &str) -> Option<T> {
    record.get(name).map_or_else(|| Some(T::default()), |value| T::deserialize(value).ok())
}

impl Topic {
    /// Passes the records from the begin of the run up to `to` and their times to `each`, by the project's own reader.
    /// Returns whether it has read all.
    fn read_own(
        &self,
        cluster: &Cluster,
        to: &BTreeMap<i32, i64>,
        clock: Clock,
        stop: &Stop,
        each: &mut dyn FnMut(f64, &Record),
    ) -> Result<bool, AuditError> {
        let start = if self.from.is_empty() { StartAt::Earliest } else { StartAt::Offsets(self.from.clone()) };
        let mut reader = Reader::new(cluster.clone(), &self.name, start, ReaderOptions::default());
        let deadline = Instant::now() + READ_WAIT;
        let mut next = self.from.clone();
        loop {
            let positions = reader.positions();
            if to.iter().all(|(partition, end)| *end == 0 || positions.get(partition).is_some_and(|at| at >= end)) {
                return Ok(true);
            }
            let is_over = stop.is_triggered() || Instant::now() >= deadline;
            let records = match reader.poll() {
                _ if is_over => return Ok(false),
                Ok(records) => records,
                // The reader recovers by itself.
                Err(error) if error.retry() != Retry::Never => continue,
                Err(source) => return Err(AuditError::Own { topic: self.name.clone(), source }),
            };
            for record in records {
                let ReadRecord { partition, offset, timestamp, key, value, .. } = record;
                let next = next.entry(partition).or_default();
                // No record twice, also if the reader begins anew.
                if offset >= *next && to.get(&partition).is_some_and(|end| offset < *end) {
                    *next = offset + 1;
                    let unix = timestamp.duration_since(UNIX_EPOCH).unwrap_or_default();
                    let (key, value) = (key.unwrap_or_default().into(), value.unwrap_or_default().into());
                    each(clock.of_unix(unix.as_secs_f64()), &Record { partition, offset, key, value });
                }
            }
        }
    }

    /// The fact of a record, decoded without the code that wrote the record.
    fn fact(&self, record: &Record, texts: &Texts, numbers: &mut HashMap<String, u64>) -> Option<Fact> {
        let Record { partition, offset, .. } = *record;
        let value: Option<Value> = serde_json::from_slice(&record.value).ok();
        if self.kind == Kind::Dead {
            let task_id = value.and_then(|value| member(&value, "task_id"));
            return Some(Fact::Dead {
                task_id: task_id.or_else(|| String::from_utf8(record.key.clone()).ok()),
                offset,
            });
        }
        let value = value?;
        let text = |name| member::<String>(&value, name);
        let kind = text("type");
        match (self.kind, kind.as_deref()) {
            (Kind::Tasks, _) => {
                let task_id = text("task_id")?;
                let number = texts.number(&text("text")?);
                numbers.extend(number.map(|number| (task_id.clone(), number)));
                Some(Fact::Accepted { number, task_id, partition, offset })
            }
            (Kind::Results, Some("result")) => {
                let task_id = text("task_id")?;
                let fault = numbers.get(&task_id).and_then(|number| texts.fault(*number, &value));
                Some(Fact::RunEnded {
                    task_id,
                    worker: optional(&value, "processed_by")?,
                    seconds: optional(&value, "seconds")?,
                    success: member(&value, "success")?,
                    digest: outcome::digest(&value),
                    fault,
                    partition,
                    offset,
                })
            }
            (Kind::Results, Some("worker_status")) => Some(Fact::Notified {
                worker: text("worker_id")?,
                instance: optional(&value, "instance")?,
                status: text("status")?,
                current_tasks: optional(&value, "current_tasks")?,
                receipt: optional(&value, "receipt")?,
                offset,
            }),
            // The topic also has records of other types, about the ends of starts.
            (Kind::Starts, Some("task_started")) => {
                let (task_id, worker, delivery) = (text("task_id")?, text("worker_id")?, member(&value, "delivery")?);
                Some(Fact::Restarted { task_id, worker, delivery, offset })
            }
            _ => None,
        }
    }
}
