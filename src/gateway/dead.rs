//! The open dead letters, for `GET /dead` and for metrics. Read by the thread `dead`, once the gateway is ready.
//!
//! Without the right Read on the dead-letter topic the gateway works, and only `GET /dead` says what is missing.

use super::state::State;
use crate::dead::letters::{Letters, unordered};
use crate::outage::{Outage, Refusals};
use crate::task::dead::ReasonClass;
use kafka_share::admin::{self, TopicRight};
use kafka_share::cluster::Cluster;
use kafka_share::error::{ErrorCode, KafkaError, Retry};
use kafka_share::reader::{Reader, ReaderOptions, StartAt};
use parking_lot::Mutex;
use program::stop::Stop;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

/// At most this many open letters are kept, about 1 KB each.
const MOST_KEPT: usize = 10_000;
/// At most this many of them are listed.
const MOST_LISTED: usize = 1_000;
/// How long a fetch is parked while no letter arrives: an idle topic costs six requests a minute.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// How often the letters that retention has deleted are looked for.
const RETENTION_CHECK: Duration = Duration::from_secs(600);
/// How often the gateway's state is looked at until it is ready.
const READY_CHECK: Duration = Duration::from_millis(250);
/// Pause after a refusal, until an operator has acted.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// The open letters as read so far.
#[derive(Debug)]
pub(super) struct DeadLetters(Mutex<Known>);

#[derive(Debug)]
struct Known {
    letters: Letters,
    /// Why the letters are not known now.
    missing: Option<String>,
}

impl DeadLetters {
    pub(super) fn new() -> Self {
        let missing = Some("the gateway has not read the dead letters yet".to_owned());
        Self(Mutex::new(Known { letters: Letters::open(MOST_KEPT), missing }))
    }

    /// The number of open letters by the class of their reasons; `None` while they are not known.
    pub(super) fn counts(&self) -> Option<BTreeMap<ReasonClass, usize>> {
        let known = self.0.lock();
        known.missing.is_none().then(|| known.letters.counts())
    }

    /// The counts and the newest letters.
    ///
    /// # Errors
    /// They are not known, for this reason.
    pub(super) fn to_json(&self, now: SystemTime) -> Result<Value, String> {
        let known = self.0.lock();
        if let Some(missing) = &known.missing {
            return Err(missing.clone());
        }
        let letters = known.letters.by_age();
        let older = letters.len().saturating_sub(MOST_LISTED);
        Ok(known.letters.to_json(letters.into_iter().skip(older), now))
    }
}

/// Reads the dead letters until stopped.
///
/// # Errors
/// None: failed reads are retried. An interruption ends it.
pub(super) fn run(state: &State, cluster: &Cluster, stop: &Stop) -> Result<(), KafkaError> {
    while !state.has_read_enough() {
        if stop.sleep(READY_CHECK).is_err() {
            return Ok(());
        }
    }
    let topic = state.config.common.dead_topic();
    let options = ReaderOptions { max_wait: MAX_WAIT, ..ReaderOptions::default() };
    let mut reading = Reading {
        reader: Reader::new(cluster.clone(), &topic, StartAt::Earliest, options),
        ends: None,
        gaps: 0,
        next_check: Instant::now() + RETENTION_CHECK,
    };
    // A refusal here leaves the gateway ready.
    let mut outage = Outage::new("the reader of dead letters: Kafka", &Refusals::default());
    while !stop.is_triggered() {
        match reading.round(&state.dead, cluster, &topic) {
            Ok(()) => outage.over(),
            Err(KafkaError::Interrupted) => return Ok(()),
            Err(error) => {
                let is_refused = error.retry() == Retry::Never;
                let was_known = {
                    let mut known = state.dead.0.lock();
                    let was_known = known.missing.is_none();
                    // Otherwise the last known letters are served until Kafka answers again.
                    if is_refused || !was_known {
                        known.missing = Some(format!("topic \"{}\": {}", topic.escape_debug(), error.explained()));
                    }
                    was_known
                };
                // The start has named a right that was missing from the beginning.
                if was_known {
                    outage.report_refusal(&error);
                }
                let pause = if is_refused { REFUSED_PAUSE } else { Duration::ZERO };
                if stop.sleep(pause).is_err() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

struct Reading {
    reader: Reader,
    /// The ends, when the reading began, of the partitions that had letters then.
    ends: Option<BTreeMap<i32, i64>>,
    /// [`Reader::gaps`] of the last round.
    gaps: u64,
    /// When deleted letters are looked for.
    next_check: Instant,
}

impl Reading {
    fn round(&mut self, dead: &DeadLetters, cluster: &Cluster, topic: &str) -> Result<(), KafkaError> {
        if self.ends.is_none() {
            // An empty topic would seem read, although its letters could not be.
            if !admin::missing_rights(cluster, &[(topic.to_owned(), TopicRight::Read)])?.is_empty() {
                return Err(KafkaError::broker("Fetch", ErrorCode::TOPIC_AUTHORIZATION_FAILED, Some(topic)));
            }
            let (mut ends, starts) = (self.reader.all_end_offsets()?, admin::start_offsets(cluster, topic)?);
            ends.retain(|partition, end| starts.get(partition) != Some(end));
            // The first fetch of an empty topic is parked.
            if ends.is_empty() {
                dead.0.lock().missing = unordered(topic, starts.len());
            }
            self.ends = Some(ends);
        }
        let records = self.reader.poll()?;
        let positions = self.reader.positions();
        let is_read = |(partition, end): (&i32, &i64)| positions.get(partition).is_some_and(|at| at >= end);
        {
            let mut known = dead.0.lock();
            // The letters read before a gap are deleted.
            if std::mem::replace(&mut self.gaps, self.reader.gaps()) != self.reader.gaps() {
                known.letters = Letters::open(MOST_KEPT);
            }
            records.iter().for_each(|record| known.letters.read(record));
            if self.ends.iter().flatten().all(is_read) {
                known.missing = unordered(topic, positions.len());
            }
        }
        // Last, since its error ends the round.
        if Instant::now() >= self.next_check {
            let starts = admin::start_offsets(cluster, topic)?;
            dead.0.lock().letters.forget_before(&starts);
            self.next_check = Instant::now() + RETENTION_CHECK;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::dead::REASON_HEADER;
    use devbroker::{Action, Broker, Fault, Kind, Settings};
    use kafka_share::ClientOptions;
    use kafka_share::admin::TopicSpec;
    use kafka_share::producer::{Delivery, Producer, ProducerEvents, ProducerOptions, ProducerRecord};
    use kafka_share::reader::ReadRecord;

    /// Ends with the broker's acknowledgement.
    fn bury(cluster: &Cluster) {
        struct Ignored;
        impl ProducerEvents<()> for Ignored {
            fn settled(&mut self, _: Vec<Delivery<()>>) {}
        }
        let producer = Producer::start("producer", cluster.clone(), ProducerOptions::default(), Ignored, Stop::new());
        let headers = vec![(REASON_HEADER.into(), Some("not a task: x".into()))];
        producer.send(ProducerRecord { topic: "dead".into(), key: None, value: None, headers }, ()).expect("open");
        producer.close(Instant::now() + Duration::from_secs(10));
    }

    #[test]
    fn letters_read_in_a_round_are_known_although_its_look_for_deleted_ones_fails() {
        let broker = Broker::start(Settings::new(vec![([127, 0, 0, 1], 0).into()])).expect("a broker");
        let address = broker.address().to_string().parse().expect("an address");
        let cluster = Cluster::new(ClientOptions::new(vec![address], "gateway"));
        let spec = TopicSpec { name: "dead".to_owned(), partitions: 1, replication_factor: None, configs: Vec::new() };
        admin::ensure_topic(&cluster, &spec).expect("the topic");
        bury(&cluster);
        let options = ReaderOptions { max_wait: MAX_WAIT, ..ReaderOptions::default() };
        let reader = Reader::new(cluster.clone(), "dead", StartAt::Earliest, options);
        let (dead, next_check) = (DeadLetters::new(), Instant::now() + RETENTION_CHECK);
        let mut reading = Reading { reader, ends: None, gaps: 0, next_check };
        reading.round(&dead, &cluster, "dead").expect("the first letter");
        bury(&cluster);
        reading.next_check = Instant::now();
        broker.inject(Fault::new(Action::Refuse(ErrorCode::NOT_LEADER_OR_FOLLOWER)).at(Kind::ListOffsets));
        let refused = reading.round(&dead, &cluster, "dead");
        assert!(refused.is_err() && reading.next_check <= Instant::now(), "{refused:?}");
        assert_eq!(dead.counts(), Some(BTreeMap::from([(ReasonClass::NotATask, 2)])));
    }

    #[test]
    fn newest_letters_are_listed_all_are_counted_and_a_reason_is_given_while_they_are_not_known() {
        let (dead, now) = (DeadLetters::new(), SystemTime::now());
        assert!(dead.to_json(now).is_err_and(|missing| missing.contains("not read")));
        assert_eq!(dead.counts(), None);
        for offset in 0..1_001 {
            let reason = (REASON_HEADER.to_owned(), Some("not a task: x".into()));
            let record =
                ReadRecord { partition: 0, offset, timestamp: now, key: None, value: None, headers: vec![reason] };
            dead.0.lock().letters.read(&record);
        }
        dead.0.lock().missing = None;
        let shown = dead.to_json(now).expect("they are known");
        assert_eq!((&shown["open"], &shown["truncated"]), (&1_001.into(), &false.into()));
        let letters = shown["letters"].as_array().expect("letters");
        assert_eq!(
            (letters.len(), &letters[0]["letter"], &letters[999]["letter"]),
            (1_000, &"0:1".into(), &"0:1000".into())
        );
        assert_eq!(dead.counts(), Some(BTreeMap::from([(ReasonClass::NotATask, 1_001)])));
    }
}
