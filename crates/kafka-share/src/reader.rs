//! Reads all partitions of one topic without a group: every reader sees every record.
//!
//! Keeps one Fetch request outstanding per leader and returns the received records. It recovers by itself from moved
//! leaders, restarted brokers, added partitions and batches damaged on the wire. It also recovers from offsets deleted
//! by retention and from topics created again; [`Reader::gaps`] counts both. It commits nothing and starts no thread:
//! its caller polls it in a loop. Called by the gateway (results, tasks) and by the worker (starts). [`Lookup`] reads
//! single records.

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

/// Interval at which the cluster is asked for added partitions. Newer answers to other parts of the client are used at
/// once.
const METADATA_AGE: Duration = Duration::from_secs(60);
/// The same while a partition has no leader. Longer than the interval at which a gateway asks, so its readers need not
/// ask.
const LEADERLESS_AGE: Duration = Duration::from_secs(2);
/// With several leaders the reader waits this long for each in turn.
const TURN: Duration = Duration::from_millis(2);
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_LONGEST: Duration = Duration::from_millis(500);

/// Where reading begins. A partition that is added later is read from its first record. A partition without a leader
/// begins here once it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// The first record that is still kept.
    Earliest,
    /// After the last record.
    Latest,
    /// The first record at or after this time, in the topic's own kind of timestamp.
    Time(SystemTime),
    /// These offsets; partitions that are not named begin at their first record.
    Offsets(BTreeMap<i32, i64>),
    /// The records of this last time span, counted back from the latest record's timestamp, without this machine's
    /// clock.
    EndMinus(Duration),
    /// As `EndMinus`, and more if the latest record's timestamp is ahead of this machine's clock.
    AtLeast(Duration),
}

/// Options of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderOptions {
    /// Longest time [`Reader::poll`] blocks without a record. Kafka: `fetch.max.wait.ms`.
    pub max_wait: Duration,
    /// Bytes of one response; a larger batch still comes. Kafka: `fetch.max.bytes`.
    pub max_bytes: i32,
    /// The broker responds before `max_wait` once it has this many bytes: 1 for the shortest delay, more for fewer
    /// requests. Kafka: `fetch.min.bytes`.
    pub min_bytes: i32,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        Self { max_wait: Duration::from_millis(250), max_bytes: 1 << 20, min_bytes: 1 }
    }
}

/// A record and its position. Its bytes share the memory of the whole response; copy what you keep for long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRecord {
    /// Partition of the topic.
    pub partition: i32,
    /// Position in the partition.
    pub offset: i64,
    /// The broker's time if the topic uses `LogAppendTime`, else the sender's.
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
    /// Whether to leave out records of uncommitted transactions.
    is_committed: bool,
    /// Connections used for fetches only.
    fetches: Pool,
    /// Connections for offset requests.
    questions: Pool,
    outstanding: BTreeMap<i32, Outstanding>,
    positions: BTreeMap<i32, i64>,
    /// Id of the topic, from the first look-up; another id under the same name is another log.
    topic_id: Option<Uuid>,
    /// The cached metadata is wrong: look the topic up before the next fetch.
    is_stale: bool,
    /// Whether a partition has no leader now.
    leaderless: bool,
    /// Partitions that have had no leader since the first look-up.
    absent: BTreeSet<i32>,
    /// Earliest next attempt at new partitions, after a failed one.
    new_from: Option<Instant>,
    last_answer: Option<Instant>,
    /// The brokers that have throttled their last response (KIP-219), with the time of the last response before.
    throttled: BTreeMap<i32, Instant>,
    /// Partitions with a response since the last complete pass, and the number of passes.
    answered: BTreeSet<i32>,
    passes: u64,
    damage: Damage,
    gaps: u64,
    backoff: Backoff,
}

impl Reader {
    /// Makes a reader of `topic`. It asks nothing yet; the first [`poll`](Self::poll) finds the starting positions.
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
            topic_id: None,
            is_stale: true,
            leaderless: false,
            absent: BTreeSet::new(),
            new_from: None,
            last_answer: None,
            throttled: BTreeMap::new(),
            answered: BTreeSet::new(),
            passes: 0,
            damage: Damage::default(),
            gaps: 0,
            backoff: Backoff::new(BACKOFF_FIRST, BACKOFF_LONGEST),
        }
    }

    /// Leaves out records of aborted transactions, and waits for the end of open ones. Otherwise all replicated records
    /// are read.
    #[must_use]
    pub fn committed(mut self) -> Self {
        self.is_committed = true;
        self
    }

    /// Returns the received records, in order within each partition; empty if none came within `max_wait`.
    ///
    /// # Errors
    /// The error of this round, after a back-off; call again, since the reader recovers by itself. `Interrupted` is
    /// final.
    pub fn poll(&mut self) -> Result<Vec<ReadRecord>> {
        // The pause comes here, so that the records of the previous round were returned without delay.
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
                // After any error the leaders are looked up again. If that fails, the next round reports it.
                self.is_stale = true;
                self.fetches.cluster().forget_topic(&self.topic);
                self.fetches.cluster().options().interrupter.sleep(self.backoff.pause())?;
                Err(error)
            }
        }
    }

    /// Returns the offset of the next record of each partition; empty until a poll has succeeded.
    #[must_use]
    pub fn positions(&self) -> BTreeMap<i32, i64> {
        self.positions.clone()
    }

    /// Counts the times that records were deleted before they were read; reading continued at later ones or in a new
    /// log.
    #[must_use]
    pub fn gaps(&self) -> u64 {
        self.gaps
    }

    /// Time of the last response to a fetch; the present time while a broker throttles this reader (KIP-219), since
    /// that broker is well.
    #[must_use]
    pub fn last_answer(&self) -> Option<Instant> {
        if self.is_throttled() { Some(Instant::now()) } else { self.last_answer }
    }

    /// While a broker throttles this reader: the time of the last response before. Later records are not read yet.
    #[must_use]
    pub fn throttled_since(&self) -> Option<Instant> {
        self.throttled.values().min().copied().filter(|_| self.is_throttled())
    }

    /// Counts the passes in which every partition got a response. It stands still while a partition has no leader, or
    /// its leader is silent.
    #[must_use]
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// Asks for the offset after the last record of each partition that has a leader. With
    /// [`committed`](Self::committed) only records that can be read now count.
    ///
    /// # Errors
    /// The error of a leader; nothing is repeated. Code 5 when no partition has a leader.
    pub fn end_offsets(&mut self) -> Result<BTreeMap<i32, i64>> {
        let (partitions, _) = self.partitions()?;
        let end = if self.is_committed { Position::CommittedEnd } else { Position::End };
        offsets::list(&mut self.questions, &self.topic, partitions, end)
    }

    /// As [`end_offsets`](Self::end_offsets), but of every partition: for readers to which a missing record means that
    /// it was never written.
    ///
    /// # Errors
    /// As [`end_offsets`](Self::end_offsets). Code 5 also when only some partitions have no leader.
    pub fn all_end_offsets(&mut self) -> Result<BTreeMap<i32, i64>> {
        if self.partitions()?.1.is_empty() {
            return self.end_offsets();
        }
        self.questions.cluster().forget_topic(&self.topic);
        Err(KafkaError::broker("Metadata", ErrorCode::LEADER_NOT_AVAILABLE, Some(&self.topic)))
    }

    /// Returns the partitions with a leader, and those without.
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
            // A new partition that cannot be read yet does not delay the others.
            log::debug!("{}: a new partition cannot be read yet: {error}", self.topic);
            (self.is_stale, self.new_from) = (true, Some(Instant::now() + LEADERLESS_AGE));
        }
        let mut trouble = self.send_fetches()?;
        let mut records = Vec::new();
        loop {
            // A single leader is waited for. Several are polled in turn, and the first records end the round.
            let single = self.outstanding.len() == 1 && trouble.is_none();
            let nodes: Vec<i32> = self.outstanding.keys().copied().collect();
            for node in nodes {
                let left = returns.saturating_duration_since(Instant::now());
                // A response at the end of the parked time still has to travel back.
                let wait = if single { left + TURN } else { left.min(TURN) };
                match self.receive(node, wait) {
                    Ok(received) => records.extend(received),
                    Err(error) => trouble = trouble.or(Some(error)),
                }
            }
            match trouble {
                Some(KafkaError::Interrupted) => return Err(KafkaError::Interrupted),
                Some(error) if records.is_empty() => return Err(error),
                // Records already read are returned; the next round looks the leaders up.
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

    /// A topic that was created again is read from its first record: the positions belong to another log.
    fn notice_new_topic(&mut self) -> Result<()> {
        let id = self.questions.cluster().topic(&self.topic)?.id;
        if self.topic_id.replace(id).is_some_and(|before| before != id) {
            log::warn!("{}: the topic was created again, reading continues at its first record", self.topic);
            // These fetches bring records at offsets of the former log.
            std::mem::take(&mut self.outstanding).into_keys().for_each(|node| self.fetches.drop_node(node));
            self.throttled.clear();
            self.positions = BTreeMap::new();
            self.start = StartAt::Earliest;
            self.gaps += 1;
        }
        Ok(())
    }

    /// Finds the starting positions of partitions that are new, or have a leader for the first time. Without such
    /// partitions it asks no broker.
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

    /// Takes the records of a response and moves the positions. A partition's error is the round's error only if no
    /// records were read.
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
                // Records already read are returned; the next round looks the leaders up.
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
        let aborted = records::aborted_offsets(&fetched.bytes, &fetched.aborted);
        let records = decoded.records.into_iter();
        let records = records.filter(|record| !aborted.iter().any(|offsets| offsets.contains(&record.offset)));
        records.map(|record| ReadRecord::new(fetched.partition, record)).collect()
    }

    /// Moves to the first record in the log: retention deleted the position, or the log ends before it (topic created
    /// again, records lost with an unclean leader). Reading a record twice is better than never.
    fn skip_gap(&mut self, partition: i32) -> Result<()> {
        let found = offsets::list(&mut self.questions, &self.topic, [partition], Position::Start)?;
        let Some(&start) = found.get(&partition) else { return Ok(()) };
        let old = self.positions.insert(partition, start);
        self.gaps += 1;
        let old = old.unwrap_or_default();
        log::warn!("{}-{partition}: offset {old} is out of range, reading continues at {start}", self.topic);
        Ok(())
    }
}
