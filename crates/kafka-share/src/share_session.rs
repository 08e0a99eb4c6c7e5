//! One connection of a member to one broker, and the share session on it.
//!
//! Requests are numbered (KIP-932 "share session epoch"), and the broker answers them in order. Locks belong to the
//! *member*: epoch 0, on a second connection or on the same one, opens the session anew and takes them over. When the
//! session's connection ends, the broker releases every record of the session's partitions. So a timeout closes nothing
//! here: [`ShareSession::receive`] returns `None` and the caller decides. While the broker throttles the connection
//! (KIP-219), requests go out on another one; only the end of the first ends the session.
//!
//! The worker decides which records to acknowledge and when; [`super::share_membership`] handles group membership,
//! [`super::share_wire`] the bytes.

use super::address::BrokerAddress;
use super::cluster::Cluster;
use super::connection::Connection;
use super::error::{ErrorCode, KafkaError};
use super::records;
use super::share_wire::{
    self, Acknowledgement, Acknowledgements, FetchLimits, SHARE_ACKNOWLEDGE, SHARE_FETCH, SessionHeader,
    SharePartition, WIRE_VERSION,
};
use bytes::Bytes;
use kafka_protocol::messages::share_fetch_response::PartitionData;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Session epoch of the request that opens a session.
const OPENING_EPOCH: i32 = 0;
/// Session epoch of the request that closes a session and releases its records.
const FINAL_EPOCH: i32 = -1;
/// A shorter throttle time is waited for.
const SHORT_MUTE: Duration = Duration::from_millis(100);
/// Limits of a request that fetches no records.
const NO_RECORDS: FetchLimits = FetchLimits { max_wait: Duration::ZERO, max_bytes: 0, max_records: 0 };

/// The group and the member id that the sessions and the membership of one process share.
#[derive(Clone, Debug)]
pub struct ShareIdentity {
    /// The share group.
    pub group: Arc<str>,
    /// This process's member id; random, so a killed predecessor is another member.
    pub member: Arc<str>,
}

/// A record that the broker has locked for this member.
#[derive(Clone, Debug)]
pub struct AcquiredRecord {
    /// The record's partition.
    pub partition: SharePartition,
    /// Its offset there.
    pub offset: i64,
    /// How often the broker has delivered it, including this time. A new leader and a restarted broker know only the
    /// count at the last release.
    pub delivery_count: u16,
    /// The record's key.
    pub key: Option<Bytes>,
    /// The record's value.
    pub value: Option<Bytes>,
    /// The record's headers, in order.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Why key, value and headers are missing or unreliable: the batch is damaged, or cannot be unpacked.
    pub fault: Option<String>,
}

/// Result of one request's acknowledgements for one partition: all applied, or none.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// The partition.
    pub partition: SharePartition,
    /// The offsets with their acknowledgements.
    pub offsets: Vec<(i64, Acknowledgement)>,
    /// `None`: applied. 121: none was applied, because at least one lock is lost (KIP-932 INVALID_RECORD_STATE).
    pub error: Option<ErrorCode>,
}

/// Purpose of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Epoch 0: open the session, or take it over.
    Open,
    /// Fetch records.
    Fetch,
    /// Add partitions to the session.
    Add,
    /// Only apply acknowledgements.
    Acknowledge,
    /// Epoch -1: close the session.
    Close,
}

/// The response to one request.
#[derive(Debug)]
pub struct Answer {
    /// The request's purpose.
    pub asked: Asked,
    /// When the request was sent; its locks begin then at the earliest.
    pub sent_at: Instant,
    /// The same by the wall clock, which advances while the machine is suspended.
    pub sent_wall: SystemTime,
    /// Why the broker refused the whole request. Whether its acknowledgements were applied is unknown then; the
    /// connection is still good.
    pub refused: Option<KafkaError>,
    /// The fetched partitions.
    pub partitions: BTreeSet<SharePartition>,
    /// The acquired records.
    pub acquired: Vec<AcquiredRecord>,
    /// Acquired offsets without a usable record, each with its acknowledgement: a gap if no record exists (for example
    /// a transaction marker), a release if the response ended before the record.
    pub unowned: Vec<(SharePartition, i64, Acknowledgement)>,
    /// Results of the acknowledgements in the request.
    pub settlements: Vec<Settlement>,
    /// Partitions that could not be fetched, with the reason.
    pub partition_errors: Vec<(SharePartition, ErrorCode)>,
    /// Duration of a lock, if the broker sent it.
    pub lock: Option<Duration>,
}

/// An unanswered request.
struct Outstanding {
    correlation: i32,
    sent_at: Instant,
    sent_wall: SystemTime,
    asked: Asked,
    partitions: BTreeSet<SharePartition>,
    acknowledgements: Acknowledgements,
}

/// One connection and its share session.
pub struct ShareSession {
    cluster: Cluster,
    connection: Connection,
    /// The connection that opened the session, while the broker throttles it and `connection` is another one.
    first: Option<Connection>,
    muted_until: Instant,
    identity: ShareIdentity,
    node: i32,
    next_epoch: i32,
    /// Partitions in the broker's session after it has read every sent request.
    partitions: BTreeSet<SharePartition>,
    outstanding: VecDeque<Outstanding>,
}

impl ShareSession {
    /// Connects to broker `node`; sends no request yet.
    ///
    /// # Errors
    /// The broker is unknown, or takes no connection within the connect timeout.
    pub fn connect(cluster: &Cluster, node: i32, identity: ShareIdentity) -> Result<Self, KafkaError> {
        Ok(Self {
            connection: cluster.connect(node)?,
            cluster: cluster.clone(),
            first: None,
            muted_until: Instant::now(),
            identity,
            node,
            next_epoch: OPENING_EPOCH,
            partitions: BTreeSet::new(),
            outstanding: VecDeque::new(),
        })
    }

    /// Node id of the session's broker.
    #[must_use]
    pub fn node(&self) -> i32 {
        self.node
    }

    /// The session's partitions: those of the last fetch, and those added since.
    #[must_use]
    pub fn partitions(&self) -> &BTreeSet<SharePartition> {
        &self.partitions
    }

    /// Whether a request is unanswered.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.outstanding.is_empty()
    }

    /// When the oldest unanswered request was sent, and its purpose.
    #[must_use]
    pub fn waiting(&self) -> Option<(Instant, Asked)> {
        self.outstanding.front().map(|request| (request.sent_at, request.asked))
    }

    /// Opens the session over `partitions` (epoch 0) without fetching records, and takes over the member's locks. It is
    /// the first request on a connection, or a later one when the broker has lost the session.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send_open(&mut self, partitions: &BTreeSet<SharePartition>) -> Result<(), KafkaError> {
        self.next_epoch = OPENING_EPOCH;
        self.partitions.clear();
        self.send_fetch_body(Asked::Open, partitions, Acknowledgements::new(), NO_RECORDS)
    }

    /// Sends a ShareFetch in record-limit mode for exactly these partitions: the others leave the session, and their
    /// records stay locked. The `acknowledgements`, which must belong to `partitions`, take effect when the request
    /// arrives.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send_fetch(
        &mut self,
        partitions: &BTreeSet<SharePartition>,
        acknowledgements: Acknowledgements,
        limits: FetchLimits,
    ) -> Result<(), KafkaError> {
        debug_assert!(acknowledgements.keys().all(|partition| partitions.contains(partition)));
        self.send_fetch_body(Asked::Fetch, partitions, acknowledgements, limits)
    }

    /// Adds these partitions to the session without fetching records. When the connection ends, the broker releases
    /// only the records of the session's partitions.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send_add(&mut self, partitions: &BTreeSet<SharePartition>) -> Result<(), KafkaError> {
        let all = self.partitions.union(partitions).copied().collect();
        self.send_fetch_body(Asked::Add, &all, Acknowledgements::new(), NO_RECORDS)
    }

    fn send_fetch_body(
        &mut self,
        asked: Asked,
        partitions: &BTreeSet<SharePartition>,
        acknowledgements: Acknowledgements,
        limits: FetchLimits,
    ) -> Result<(), KafkaError> {
        let added: Vec<SharePartition> = partitions.difference(&self.partitions).copied().collect();
        let forgotten: Vec<SharePartition> = self.partitions.difference(partitions).copied().collect();
        let header = self.header(self.next_epoch);
        let body = share_wire::encode_fetch(header, limits, &added, &forgotten, &acknowledgements)?;
        if !(added.is_empty() && forgotten.is_empty()) {
            self.partitions.clone_from(partitions);
        }
        self.send(SHARE_FETCH, &body, asked, acknowledgements)
    }

    /// Sends a ShareAcknowledge. Its partitions need not be in the session.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send_acknowledge(&mut self, acknowledgements: Acknowledgements) -> Result<(), KafkaError> {
        let body = share_wire::encode_acknowledge(self.header(self.next_epoch), &acknowledgements)?;
        self.send(SHARE_ACKNOWLEDGE, &body, Asked::Acknowledge, acknowledgements)
    }

    /// Sends the last request of the session: the broker releases the records still held in its partitions.
    ///
    /// # Errors
    /// The connection is gone, which also releases all records.
    pub fn send_close(&mut self) -> Result<(), KafkaError> {
        self.next_epoch = FINAL_EPOCH;
        let body = share_wire::encode_acknowledge(self.header(FINAL_EPOCH), &Acknowledgements::new())?;
        self.send(SHARE_ACKNOWLEDGE, &body, Asked::Close, Acknowledgements::new())
    }

    fn header(&self, epoch: i32) -> SessionHeader<'_> {
        SessionHeader { group: &self.identity.group, member: &self.identity.member, epoch }
    }

    fn send(
        &mut self,
        api_key: i16,
        body: &Bytes,
        asked: Asked,
        acknowledgements: Acknowledgements,
    ) -> Result<(), KafkaError> {
        if self.outstanding.is_empty() {
            self.evade();
        }
        let (sent_at, sent_wall) = (Instant::now(), SystemTime::now());
        let correlation = self.connection.send_body(api_key, WIRE_VERSION, true, body)?;
        if self.next_epoch != FINAL_EPOCH {
            // The largest epoch is followed by 1: 0 would open a new session.
            self.next_epoch = self.next_epoch.checked_add(1).unwrap_or(1);
        }
        let partitions = if asked == Asked::Fetch { self.partitions.clone() } else { BTreeSet::new() };
        self.outstanding.push_back(Outstanding {
            correlation,
            sent_at,
            sent_wall,
            asked,
            partitions,
            acknowledgements,
        });
        Ok(())
    }

    /// Goes on with a connection that the broker reads: the first one, if it is no longer throttled. A lock must be
    /// renewed in time, and a stop has its bound. If no other connection can be opened, the request waits.
    fn evade(&mut self) {
        let is_read = |connection: &mut Connection| connection.muted_for() <= SHORT_MUTE;
        if let Some(first) = self.first.take_if(is_read) {
            self.connection = first;
        } else if !is_read(&mut self.connection)
            && let Ok(other) = self.cluster.connect(self.node)
        {
            let muted = std::mem::replace(&mut self.connection, other);
            self.first.get_or_insert(muted);
        }
    }

    /// Waits at most `wait` for the response to the oldest unanswered request.
    ///
    /// `None`: no response yet, or none owed; the session is still good.
    ///
    /// # Errors
    /// The connection is gone. Acknowledgements in unanswered requests may or may not have been applied.
    pub fn receive(&mut self, wait: Duration) -> Result<Option<Answer>, KafkaError> {
        let Some(oldest) = self.outstanding.front() else { return Ok(None) };
        let Some(body) = self.connection.receive(oldest.correlation, wait)? else { return Ok(None) };
        let Some(request) = self.outstanding.pop_front() else { return Ok(None) };
        self.muted_until = self.muted_until.max(self.connection.muted_until());
        let broker = self.connection.broker();
        let answer = match request.asked {
            Asked::Open | Asked::Fetch | Asked::Add => fetched(request, body, broker)?,
            Asked::Acknowledge | Asked::Close => acknowledged(request, &body, broker)?,
        };
        if answer.asked == Asked::Open && answer.refused.is_none() {
            // The session belongs to this connection now.
            self.first = None;
        }
        Ok(Some(answer))
    }

    /// Goes back to a throttled connection after the one beside it was lost: the end of the first would release the
    /// records. It is unknown which requests arrived, so the session has to be opened again. Returns false if there is
    /// no such connection.
    pub fn fall_back(&mut self) -> bool {
        let Some(first) = self.first.take().filter(|first| !first.is_broken()) else { return false };
        self.connection = first;
        self.outstanding.clear();
        true
    }

    /// The broker throttles this member before this time (KIP-219): it should not fetch.
    #[must_use]
    pub fn muted_until(&self) -> Instant {
        self.muted_until
    }

    /// Whether the broker has throttled this client within the last minute.
    #[must_use]
    pub fn is_throttled(&self) -> bool {
        self.connection.is_throttled()
    }

    /// Makes the timeout error for this session's broker.
    #[must_use]
    pub fn silent(&self, waited: Duration) -> KafkaError {
        self.connection.late("ShareFetch", waited)
    }
}

fn malformed(broker: &BrokerAddress, detail: String) -> KafkaError {
    KafkaError::Malformed { broker: broker.clone(), detail }
}

impl Answer {
    fn to(request: &mut Outstanding, lock: Option<Duration>, refused: Result<(), KafkaError>) -> Self {
        Self {
            asked: request.asked,
            sent_at: request.sent_at,
            sent_wall: request.sent_wall,
            refused: refused.err(),
            partitions: std::mem::take(&mut request.partitions),
            acquired: Vec::new(),
            unowned: Vec::new(),
            settlements: Vec::new(),
            partition_errors: Vec::new(),
            lock,
        }
    }
}

fn fetched(mut request: Outstanding, body: Bytes, broker: &BrokerAddress) -> Result<Answer, KafkaError> {
    let response = share_wire::decode_fetch(body).map_err(|detail| malformed(broker, detail))?;
    let refused = ErrorCode(response.error_code).check("ShareFetch", response.error_message.as_deref());
    let lock = lock_length(response.acquisition_lock_timeout_ms);
    let mut answer = Answer::to(&mut request, lock, refused);
    if answer.refused.is_some() {
        return Ok(answer);
    }
    let mut errors = Vec::new();
    for topic in &response.responses {
        for data in &topic.partitions {
            let partition = SharePartition { topic_id: topic.topic_id, partition: data.partition_index };
            if data.error_code != 0 {
                answer.partition_errors.push((partition, ErrorCode(data.error_code)));
            }
            if data.acknowledge_error_code != 0 {
                errors.push((partition, ErrorCode(data.acknowledge_error_code)));
            }
            take_acquired(partition, data, &mut answer);
        }
    }
    answer.settlements = settle(request.acknowledgements, &errors);
    Ok(answer)
}

fn acknowledged(mut request: Outstanding, body: &Bytes, broker: &BrokerAddress) -> Result<Answer, KafkaError> {
    let (response, lock) = share_wire::decode_acknowledge(body).map_err(|detail| malformed(broker, detail))?;
    let refused = ErrorCode(response.error_code).check("ShareAcknowledge", response.error_message.as_deref());
    let mut answer = Answer::to(&mut request, lock, refused);
    if answer.refused.is_some() {
        return Ok(answer);
    }
    let mut errors = Vec::new();
    for topic in &response.responses {
        for data in topic.partitions.iter().filter(|data| data.error_code != 0) {
            let partition = SharePartition { topic_id: topic.topic_id, partition: data.partition_index };
            errors.push((partition, ErrorCode(data.error_code)));
        }
    }
    answer.settlements = settle(request.acknowledgements, &errors);
    Ok(answer)
}

fn lock_length(milliseconds: i32) -> Option<Duration> {
    u64::try_from(milliseconds).ok().filter(|length| *length > 0).map(Duration::from_millis)
}

/// Picks the acquired records out of the batches: the broker sends whole batches, and other members may hold the rest.
fn take_acquired(partition: SharePartition, data: &PartitionData, answer: &mut Answer) {
    let Some(first) = data.acquired_records.iter().map(|range| range.first_offset).min() else { return };
    let mut decoded = records::decode(data.records.as_ref().unwrap_or(&Bytes::new()), first);
    let doubtful = decoded.unreadable.iter_mut().flat_map(|gap| std::mem::take(&mut gap.doubtful));
    // Undamaged records come last, so a damaged offset cannot replace them.
    let mut records: BTreeMap<i64, records::Record> =
        doubtful.chain(decoded.records).map(|record| (record.offset, record)).collect();
    for range in &data.acquired_records {
        let delivery_count = u16::try_from(range.delivery_count).unwrap_or(1);
        for offset in range.first_offset..=range.last_offset {
            if offset >= decoded.next_offset {
                // The response ended before this record; it comes with another delivery.
                answer.unowned.push((partition, offset, Acknowledgement::Release));
                continue;
            }
            let unreadable = decoded.unreadable.iter().find(|gap| (gap.first..=gap.last).contains(&offset));
            let (record, fault) = (records.remove(&offset), unreadable.map(|gap| gap.reason.clone()));
            if record.is_none() && fault.is_none() {
                // A batch with a wrong checksum may hide the record.
                let said = if decoded.is_damaged { Acknowledgement::Release } else { Acknowledgement::Gap };
                answer.unowned.push((partition, offset, said));
                continue;
            }
            let (key, value, headers) =
                record.map_or((None, None, Vec::new()), |record| (record.key, record.value, record.headers));
            // Copied, since a task may run for minutes and must not keep the whole response in memory.
            let own = |bytes: Option<Bytes>| bytes.map(|bytes| Bytes::copy_from_slice(&bytes));
            let headers = headers.into_iter().map(|(name, value)| (name, own(value))).collect();
            let (key, value) = (own(key), own(value));
            answer.acquired.push(AcquiredRecord { partition, offset, delivery_count, key, value, headers, fault });
        }
    }
}

fn settle(acknowledgements: Acknowledgements, errors: &[(SharePartition, ErrorCode)]) -> Vec<Settlement> {
    acknowledgements
        .into_iter()
        .map(|(partition, offsets)| Settlement {
            partition,
            offsets: offsets.into_iter().collect(),
            error: errors.iter().find(|(failed, _)| *failed == partition).map(|(_, code)| *code),
        })
        .collect()
}

#[cfg(test)]
mod tests;
