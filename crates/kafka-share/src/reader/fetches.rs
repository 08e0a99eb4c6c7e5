//! The outstanding fetches, one for each leader.
//!
//! A fetch from a frozen leader is dropped as soon as another broker names a new leader, before its timeout. Called by
//! the reader's rounds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kafka_protocol::messages::FetchRequest;

use super::{ReadRecord, Reader};
use crate::cluster::{Led, WATCH_INTERVAL};
use crate::error::{ErrorCode, KafkaError, Result};
use crate::fetch::{self, Limits};

/// A response is overdue this long after the end of the fetch's parked time.
const SILENCE: Duration = Duration::from_millis(300);

/// An outstanding fetch.
#[derive(Debug)]
pub(super) struct Outstanding {
    correlation: i32,
    deadline: Instant,
    /// From then on another broker is asked for the leader.
    watch_at: Instant,
    /// Fetched partitions, with the leader epochs known when the fetch was sent.
    partitions: Vec<(i32, i32)>,
}

impl Reader {
    /// Sends a fetch to every leader without an outstanding fetch. Returns the first failure; the other leaders are
    /// read all the same.
    pub(super) fn send_fetches(&mut self) -> Result<Option<KafkaError>> {
        let mut trouble = None;
        let mut by_leader: BTreeMap<i32, Vec<(i32, i64)>> = BTreeMap::new();
        for (&partition, &position) in &self.positions {
            match self.fetches.cluster().leader(&self.topic, partition) {
                Ok(leader) => by_leader.entry(leader).or_default().push((partition, position)),
                // The partition is read again once it has a leader; the others are read meanwhile.
                Err(error) if error.code() == Some(ErrorCode::LEADER_NOT_AVAILABLE) => {}
                Err(error) => trouble = trouble.or(Some(error)),
            }
        }
        if by_leader.is_empty() && self.outstanding.is_empty() && trouble.is_none() {
            trouble = Some(KafkaError::broker("Metadata", ErrorCode::LEADER_NOT_AVAILABLE, Some(&self.topic)));
        }
        let limits = Limits {
            max_wait: self.options.max_wait,
            max_bytes: self.options.max_bytes,
            min_bytes: self.options.min_bytes,
        };
        let patience = self.patience();
        for (leader, wanted) in by_leader {
            if self.outstanding.contains_key(&leader) {
                continue;
            }
            let request = if self.is_committed { fetch::request_committed } else { fetch::request };
            let request = request(&self.topic, &wanted, limits);
            let cluster = self.fetches.cluster();
            let partitions = wanted.iter().map(|(partition, _)| (*partition, cluster.epoch(&self.topic, *partition)));
            let partitions = partitions.collect();
            match self.fetches.send(leader, fetch::VERSION, &request) {
                Ok(correlation) => {
                    let read_at = Instant::now() + self.fetches.muted_for(leader);
                    let (deadline, watch_at) = (read_at + patience, read_at + self.options.max_wait + SILENCE);
                    self.outstanding.insert(leader, Outstanding { correlation, deadline, watch_at, partitions });
                }
                Err(KafkaError::Interrupted) => return Err(KafkaError::Interrupted),
                Err(error) => trouble = trouble.or(Some(error)),
            }
        }
        // The others lead no partition now.
        self.throttled.retain(|node, _| self.outstanding.contains_key(node));
        Ok(trouble)
    }

    /// Whether a broker throttles this reader. It ends when a response is overdue.
    pub(super) fn is_throttled(&self) -> bool {
        let now = Instant::now();
        let is_due = |node| self.outstanding.get(node).is_none_or(|fetch: &Outstanding| now < fetch.watch_at);
        self.throttled.keys().any(is_due)
    }

    /// Notes whether the broker has throttled a response, which then brings no records. That is over once the reader
    /// has caught up with what was written meanwhile. `ends`: high watermarks by partition.
    fn note_throttle(&mut self, node: i32, before: Option<Instant>, ends: &[(i32, i64)]) {
        let is_muted = !self.fetches.muted_for(node).is_zero();
        let is_behind = |(partition, end): &(i32, i64)| self.positions.get(partition).is_some_and(|at| at < end);
        if is_muted {
            self.throttled.entry(node).or_insert_with(|| before.unwrap_or_else(Instant::now));
        } else if !ends.iter().any(is_behind) {
            self.throttled.remove(&node);
        }
    }

    /// How long a response may take.
    fn patience(&self) -> Duration {
        self.options.max_wait + self.fetches.cluster().options().request_timeout
    }

    /// Waits for one leader's response and takes its records.
    pub(super) fn receive(&mut self, node: i32, wait: Duration) -> Result<Vec<ReadRecord>> {
        let Some(outstanding) = self.outstanding.get(&node) else { return Ok(Vec::new()) };
        let (correlation, deadline, watch_at) = (outstanding.correlation, outstanding.deadline, outstanding.watch_at);
        let patience = self.patience();
        let wait = wait.min(watch_at.saturating_duration_since(Instant::now()));
        let answer = self.fetches.get(node).and_then(|connection| match connection.receive(correlation, wait)? {
            None => {
                let now = Instant::now();
                let waited = patience.saturating_sub(deadline.saturating_duration_since(now));
                let silence = connection.late("Fetch", waited);
                if now >= deadline {
                    connection.close();
                    return Err(silence);
                }
                Ok(Err(silence))
            }
            Some(mut body) => connection.decode::<FetchRequest>(&mut body, fetch::VERSION).map(Ok),
        });
        let response = match answer {
            Ok(Err(silence)) => {
                if self.has_moved(node, &silence) {
                    self.give_up(node);
                    if let Some(trouble) = self.send_fetches()? {
                        return Err(trouble);
                    }
                }
                return Ok(Vec::new());
            }
            Ok(Ok(response)) => response,
            Err(error) => {
                self.give_up(node);
                self.fetches.cluster().blame(&error);
                return Err(error);
            }
        };
        self.outstanding.remove(&node);
        let (before, fetched) = (self.last_answer, fetch::open(response)?);
        let ends: Vec<_> = fetched.iter().map(|fetched| (fetched.partition, fetched.high_watermark)).collect();
        let taken = self.take(node, fetched);
        self.note_throttle(node, before, &ends);
        taken
    }

    /// Whether the response is overdue and another broker names a new leader.
    fn has_moved(&mut self, node: i32, silence: &KafkaError) -> bool {
        let Some(outstanding) = self.outstanding.get_mut(&node) else { return false };
        if Instant::now() < outstanding.watch_at {
            return false;
        }
        let partitions = outstanding.partitions.iter();
        let led: Vec<Led<'_>> =
            partitions.map(|&(partition, epoch)| Led { topic: &self.topic, partition, epoch }).collect();
        let moved = self.fetches.cluster().leads_elsewhere(node, &led, silence);
        outstanding.watch_at = Instant::now() + WATCH_INTERVAL;
        if moved {
            log::debug!("{}: {silence}; another broker names a new leader, fetching there", self.topic);
        }
        moved
    }

    fn give_up(&mut self, node: i32) {
        self.outstanding.remove(&node);
        self.throttled.remove(&node);
        self.fetches.drop_node(node);
    }
}
