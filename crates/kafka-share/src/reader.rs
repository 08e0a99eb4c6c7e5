//! Reads all partitions of one topic, without a group: every reader sees every record.
//!
//! Keeps one Fetch request outstanding per leader and returns what has come. It recovers by itself: leaders that move,
//! brokers that restart, offsets that retention has deleted, topics that are created again (both counted by
//! [`Reader::gaps`]), partitions that are added, batches that were damaged on their way. It commits nothing and starts
//! no thread: its caller polls it in a loop. Called by the gateway (results, tasks) and by the worker (starts). Single
//! records: [`Lookup`].

mod damage;
mod fetches;
mod lookup;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use uuid::Uuid;

use super::cluster::{Cluster, Partition};
use super::error::{ErrorCode, KafkaError, Result};
use super::fetch::Fetched;
use super::offsets::{self, Position};
use super::pool::Pool;
use super::records::{self, Record};
use program::backoff::Backoff;

use damage::Damage;
use fetches::Outstanding;
pub use lookup::Lookup;
pub(super) use lookup::fetch_one;

/// Partitions can be added to a topic: how often the cluster is asked for them. What others ask in between is used at
/// once.
const METADATA_AGE: Duration = Duration::from_secs(60);
/// The same while a partition has no leader. Longer than the interval in which a gateway asks, so that its readers need
/// not.
const LEADERLESS_AGE: Duration = Duration::from_secs(2);
/// With several leaders each is looked at in turn for this long.
const TURN: Duration = Duration::from_millis(2);
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_LONGEST: Duration = Duration::from_millis(500);

/// Where reading begins. Partitions that are added later are read from their first record; those that have no leader at
/// first, from here once they have one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// The first record still kept.
    Earliest,
    /// Behind the last record.
    Latest,
    /// The first record at or after this time, in the topic's own kind of time.
    Time(SystemTime),
    /// These offsets; partitions not named from their first record.
    Offsets(BTreeMap<i32, i64>),
    /// The records of this last time span, counted back from the latest record's time: no clock of ours takes part.
    EndMinus(Duration),
    /// The same, and more where the latest record is dated ahead of our clock.
    AtLeast(Duration),
}

/// How a reader fetches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderOptions {
    /// Longest time [`Reader::poll`] blocks without a record. Kafka: `fetch.max.wait.ms`.
    pub max_wait: Duration,
    /// Bytes of one answer; a larger batch still comes. Kafka: `fetch.max.bytes`.
    pub max_bytes: i32,
    /// The broker answers before `max_wait` once there are so many bytes: 1 for the least delay, more for fewer
    /// requests. Kafka: `fetch.min.bytes`.
    pub min_bytes: i32,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        Self { max_wait: Duration::from_millis(250), max_bytes: 1 << 20, min_bytes: 1 }
    }
}

/// A record and where it stands. Its bytes share the memory of the whole answer; what is kept for long is better
/// copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRecord {
    /// Partition of the topic.
    pub partition: i32,
    /// Position in the partition.
    pub offset: i64,
    /// The broker's time where the topic says `LogAppendTime`, else the sender's.
    pub timestamp: SystemTime,
    /// Key, if it has one.
    pub key: Option<Bytes>,
    /// Value, if it has one.
    pub value: Option<Bytes>,
    /// Headers in their order.
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl ReadRecord {
    fn new(partition: i32, record: Record) -> Self {
        let Record { offset, timestamp, key, value, headers } = record;
        Self { partition, offset, timestamp, key, value, headers }
    }
}

/// Reader of one topic.
#[derive(Debug)]
pub struct Reader {
    topic: String,
    start: StartAt,
    options: ReaderOptions,
    /// Leave out what transactions have not committed.
    is_committed: bool,
    /// The fetches' connections: nothing else is asked on them.
    fetches: Pool,
    /// Connections for offsets.
    questions: Pool,
    outstanding: BTreeMap<i32, Outstanding>,
    positions: BTreeMap<i32, i64>,
    high_watermarks: BTreeMap<i32, i64>,
    /// Told by the first look-up; another one under the same name is another log.
    topic_id: Option<Uuid>,
    /// What is known of the topic is wrong: look it up before the next fetch.
    is_stale: bool,
    /// Whether a partition has no leader at present.
    leaderless: bool,
    /// Partitions of the first look-up that had no leader then, and have none since.
    absent: BTreeSet<i32>,
    /// Partitions that are new are not looked at again before: one of them failed.
    new_from: Option<Instant>,
    last_answer: Option<Instant>,
    /// Partitions that were answered for since the last pass over all of them, and how many passes there were.
    answered: BTreeSet<i32>,
    passes: u64,
    damage: Damage,
    gaps: u64,
    backoff: Backoff,
}

impl Reader {
    /// A reader of `topic`. Asks nothing yet; the first [`poll`](Self::poll) finds the starting positions.
    #[must_use]
    pub fn new(cluster: Cluster, topic: &str, start: StartAt, options: ReaderOptions) -> Self {
        Self {
            topic: topic.to_owned(),
            start,
            options,
            is_committed: false,
            fetches: Pool::new(cluster.clone()),
            questions: Pool::new(cluster),
            outstanding: BTreeMap::new(),
            positions: BTreeMap::new(),
            high_watermarks: BTreeMap::new(),
            topic_id: None,
            is_stale: true,
            leaderless: false,
            absent: BTreeSet::new(),
            new_from: None,
            last_answer: None,
            answered: BTreeSet::new(),
            passes: 0,
            damage: Damage::default(),
            gaps: 0,
            backoff: Backoff::new(BACKOFF_FIRST, BACKOFF_LONGEST),
        }
    }

    /// Leaves out records of aborted transactions, and waits for the end of open ones. Without it everything that is
    /// replicated is read.
    #[must_use]
    pub fn committed(mut self) -> Self {
        self.is_committed = true;
        self
    }

    /// The records that have come, in order within each partition; empty when none came within `max_wait`.
    ///
    /// # Errors
    /// A failed round, after a back-off: call again, the reader recovers by itself. `Interrupted` is final.
    pub fn poll(&mut self) -> Result<Vec<ReadRecord>> {
        // Here and not at the end of the round before: what that one read was not to wait.
        if std::mem::take(&mut self.damage.is_pending) {
            self.fetches.cluster().options().interrupter.sleep(self.backoff.pause())?;
        }
        match self.round() {
            Ok(records) => {
                if !self.damage.is_pending {
                    self.backoff.reset();
                }
                Ok(records)
            }
            Err(KafkaError::Interrupted) => Err(KafkaError::Interrupted),
            Err(error) => {
                // Whatever it was: ask again who leads. Its failing is the next round's error.
                self.is_stale = true;
                self.fetches.cluster().forget_topic(&self.topic);
                self.fetches.cluster().options().interrupter.sleep(self.backoff.pause())?;
                Err(error)
            }
        }
    }

    /// The offset of the next record of each partition; empty until the first poll that succeeded.
    #[must_use]
    pub fn positions(&self) -> BTreeMap<i32, i64> {
        self.positions.clone()
    }

    /// How often records were deleted before they were read, and reading went on at later ones or in a new log.
    #[must_use]
    pub fn gaps(&self) -> u64 {
        self.gaps
    }

    /// Whether everything is read up to the ends that the last answers named.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        let at_end = |(partition, position): (&i32, &i64)| {
            self.high_watermarks.get(partition).is_some_and(|end| position >= end)
        };
        !self.positions.is_empty() && self.positions.iter().all(at_end)
    }

    /// When a broker last answered a fetch.
    #[must_use]
    pub fn last_answer(&self) -> Option<Instant> {
        self.last_answer
    }

    /// How often every partition was answered for since the time before; it stands still while one has no leader, or
    /// its leader is silent.
    #[must_use]
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// The offset after the last record (that can be read now, with [`committed`](Self::committed)) of each partition
    /// that has a leader, asked now.
    ///
    /// # Errors
    /// What the leaders answered; nothing is repeated. Code 5 when no partition has a leader.
    pub fn end_offsets(&mut self) -> Result<BTreeMap<i32, i64>> {
        let (partitions, _) = self.partitions()?;
        let end = if self.is_committed { Position::CommittedEnd } else { Position::End };
        offsets::list(&mut self.questions, &self.topic, partitions, end)
    }

    /// The record at this offset, `None` when there is none any more.
    ///
    /// # Errors
    /// What the leader answered, after one repetition with fresh metadata. For many, [`Lookup`] keeps its connections.
    pub fn read_one(cluster: &Cluster, topic: &str, partition: i32, offset: i64) -> Result<Option<ReadRecord>> {
        Lookup::new(cluster.clone()).read(topic, partition, offset)
    }

    /// The partitions that have a leader, and those that have none.
    fn partitions(&self) -> Result<(Vec<i32>, Vec<i32>)> {
        let topic = self.questions.cluster().topic(&self.topic)?;
        let (led, leaderless): (Vec<_>, Vec<_>) = topic.partitions.iter().partition(|partition| partition.leader >= 0);
        if led.is_empty() {
            return Err(KafkaError::broker("Metadata", ErrorCode::LEADER_NOT_AVAILABLE, Some(&self.topic)));
        }
        let index = |partition: &Partition| partition.index;
        Ok((led.into_iter().map(index).collect(), leaderless.into_iter().map(index).collect()))
    }

    fn round(&mut self) -> Result<Vec<ReadRecord>> {
        let age = if self.leaderless { LEADERLESS_AGE } else { METADATA_AGE };
        let cluster = self.questions.cluster();
        if self.is_stale || cluster.topic_age(&self.topic).is_none_or(|told| told > age) {
            cluster.refresh(&[&self.topic])?;
            self.is_stale = false;
        }
        self.notice_new_topic()?;
        let returns = Instant::now() + self.options.max_wait;
        if let Err(error) = self.take_up_new() {
            if self.positions.is_empty() || error.is_interrupted() {
                return Err(error);
            }
            // A new partition that cannot be had yet keeps none of the others from being read.
            log::debug!("{}: a new partition cannot be read yet: {error}", self.topic);
            (self.is_stale, self.new_from) = (true, Some(Instant::now() + LEADERLESS_AGE));
        }
        let mut trouble = self.send_fetches()?;
        let mut records = Vec::new();
        loop {
            // One leader is waited for; several are looked at in turn, and the first that has something ends the round.
            let single = self.outstanding.len() == 1 && trouble.is_none();
            let nodes: Vec<i32> = self.outstanding.keys().copied().collect();
            for node in nodes {
                let left = returns.saturating_duration_since(Instant::now());
                // An answer that takes the whole wait needs its way back, too.
                let wait = if single { left + TURN } else { left.min(TURN) };
                match self.receive(node, wait) {
                    Ok(received) => records.extend(received),
                    Err(error) => trouble = trouble.or(Some(error)),
                }
            }
            match trouble {
                Some(KafkaError::Interrupted) => return Err(KafkaError::Interrupted),
                Some(error) if records.is_empty() => return Err(error),
                // What was read is not thrown away; the next round looks the leaders up.
                Some(_) => {
                    self.is_stale = true;
                    return Ok(records);
                }
                None if records.is_empty()
                    && Instant::now() < returns
                    && !self.outstanding.is_empty()
                    && !self.damage.is_pending => {}
                None => return Ok(records),
            }
        }
    }

    /// A topic that was deleted and created again is read from its first record: the positions are those of another
    /// log.
    fn notice_new_topic(&mut self) -> Result<()> {
        let id = self.questions.cluster().topic(&self.topic)?.id;
        if self.topic_id.replace(id).is_some_and(|before| before != id) {
            log::warn!("{}: the topic was created again, reading goes on at its first records", self.topic);
            // What these fetches bring is from offsets of the former log.
            std::mem::take(&mut self.outstanding).into_keys().for_each(|node| self.fetches.drop_node(node));
            (self.positions, self.high_watermarks) = (BTreeMap::new(), BTreeMap::new());
            self.start = StartAt::Earliest;
            self.gaps += 1;
        }
        Ok(())
    }

    /// Finds the starting positions of partitions that are new, or have a leader for the first time. Asks brokers only
    /// for those.
    fn take_up_new(&mut self) -> Result<()> {
        if self.new_from.is_some_and(|from| Instant::now() < from) {
            return Ok(());
        }
        self.new_from = None;
        let (led, leaderless) = self.partitions()?;
        self.leaderless = !leaderless.is_empty();
        let first_time = self.positions.is_empty();
        if first_time {
            self.absent = leaderless.into_iter().collect();
        }
        let new: Vec<i32> = led.into_iter().filter(|partition| !self.positions.contains_key(partition)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let (known, added): (Vec<i32>, Vec<i32>) =
            new.into_iter().partition(|partition| first_time || self.absent.contains(partition));
        let start = self.start.clone();
        for (partitions, start) in [(known, &start), (added, &StartAt::Earliest)] {
            if !partitions.is_empty() {
                let positions = self.starting_positions(partitions, start)?;
                self.absent.retain(|partition| !positions.contains_key(partition));
                self.positions.extend(positions);
            }
        }
        Ok(())
    }

    fn starting_positions(&mut self, partitions: Vec<i32>, start: &StartAt) -> Result<BTreeMap<i32, i64>> {
        let (pool, topic) = (&mut self.questions, self.topic.as_str());
        match start {
            StartAt::Earliest => offsets::list(pool, topic, partitions, Position::Start),
            StartAt::Latest => offsets::list(pool, topic, partitions, Position::End),
            StartAt::Time(time) => offsets::list(pool, topic, partitions, Position::Time(*time)),
            StartAt::EndMinus(age) => offsets::list_back_from_latest(pool, topic, partitions, *age, None),
            StartAt::AtLeast(age) => {
                offsets::list_back_from_latest(pool, topic, partitions, *age, Some(SystemTime::now()))
            }
            StartAt::Offsets(given) => {
                let (named, others): (Vec<i32>, Vec<i32>) =
                    partitions.into_iter().partition(|partition| given.contains_key(partition));
                let mut positions = offsets::list(pool, topic, others, Position::Start)?;
                positions.extend(named.into_iter().filter_map(|partition| Some((partition, *given.get(&partition)?))));
                Ok(positions)
            }
        }
    }

    /// Takes an answer's records and moves the positions. A partition with an error is the round's error only if
    /// nothing was read.
    fn take(&mut self, node: i32, answer: Vec<Fetched>) -> Result<Vec<ReadRecord>> {
        self.last_answer = Some(Instant::now());
        let mut records = Vec::new();
        let mut trouble = None;
        for fetched in answer {
            match fetched.code {
                ErrorCode::NONE => records.extend(self.take_partition(node, &fetched)),
                ErrorCode::OFFSET_OUT_OF_RANGE => trouble = trouble.or(self.skip_gap(fetched.partition).err()),
                code => trouble = trouble.or(Some(KafkaError::broker("Fetch", code, Some(&self.topic)))),
            }
        }
        if self.absent.is_empty() && self.positions.keys().all(|partition| self.answered.contains(partition)) {
            self.answered.clear();
            self.passes += 1;
        }
        match trouble {
            Some(error) if records.is_empty() => Err(error),
            Some(_) => {
                // What was read is not thrown away; the next round looks the leaders up.
                self.is_stale = true;
                Ok(records)
            }
            None => Ok(records),
        }
    }

    fn take_partition(&mut self, node: i32, fetched: &Fetched) -> Vec<ReadRecord> {
        let Some(&position) = self.positions.get(&fetched.partition) else { return Vec::new() };
        let mut decoded = records::decode(&fetched.bytes, position);
        if decoded.is_damaged {
            decoded = self.decode_damaged(node, fetched, position);
        } else {
            self.damage.is_over(fetched.partition);
        }
        for unreadable in &decoded.unreadable {
            let (first, last, reason) = (unreadable.first, unreadable.last, &unreadable.reason);
            log::warn!("{}-{}: offsets {first} to {last} cannot be read: {reason}", self.topic, fetched.partition);
        }
        self.answered.insert(fetched.partition);
        self.positions.insert(fetched.partition, decoded.next_offset);
        self.high_watermarks.insert(fetched.partition, fetched.high_watermark);
        let aborted = records::aborted_offsets(&fetched.bytes, &fetched.aborted);
        let records = decoded.records.into_iter();
        let records = records.filter(|record| !aborted.iter().any(|offsets| offsets.contains(&record.offset)));
        records.map(|record| ReadRecord::new(fetched.partition, record)).collect()
    }

    /// The position is not in the log: retention was faster, or the log ends before it (topic created again, records
    /// lost with an unclean leader). Either way the first record that is there comes next: seen twice is better than
    /// never.
    fn skip_gap(&mut self, partition: i32) -> Result<()> {
        let found = offsets::list(&mut self.questions, &self.topic, [partition], Position::Start)?;
        let Some(&start) = found.get(&partition) else { return Ok(()) };
        let old = self.positions.insert(partition, start);
        self.gaps += 1;
        let old = old.unwrap_or_default();
        log::warn!("{}-{partition}: offset {old} is out of range, reading goes on at {start}", self.topic);
        Ok(())
    }
}
