//! One share session: the conversation of one member with one broker about the partitions that the broker leads.
//!
//! A session is one connection, and its requests are numbered (KIP-932 "share session epoch"). The broker answers
//! them in order, so a request may be sent while an earlier one is unanswered: that is how a renewal reaches a broker
//! that is frozen while it owes an answer. Locks belong to the connection: when it closes, the broker gives every
//! record that this session holds to another member at once. Therefore nothing in here closes it on a time-out;
//! [`ShareSession::receive`] only reports that no answer is there yet, and the caller decides.
//!
//! Not here: which records to acknowledge and when ([`crate::worker`]), group membership
//! ([`super::share_membership`]), the bytes ([`super::share_wire`]).

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
use std::time::{Duration, Instant};

/// Session epoch of the request that opens a session.
const OPENING_EPOCH: i32 = 0;
/// Session epoch of the request that closes a session and frees what it holds.
const FINAL_EPOCH: i32 = -1;

/// The group and the member id that the sessions and the membership of one process share.
#[derive(Clone, Debug)]
pub struct ShareIdentity {
    /// The share group.
    pub group: Arc<str>,
    /// This process's member id; random, so that a killed predecessor is somebody else.
    pub member: Arc<str>,
}

/// A record that the broker has locked for this session.
#[derive(Clone, Debug)]
pub struct AcquiredRecord {
    /// Where it stands.
    pub partition: SharePartition,
    /// Its offset there.
    pub offset: i64,
    /// How often the broker has handed it out, this time included; starts at 1 and again after a broker restart.
    pub delivery_count: u16,
    /// The record's key.
    pub key: Option<Bytes>,
    /// The record's value.
    pub value: Option<Bytes>,
    /// The record's headers, in order.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Why key, value and headers are missing: the batch cannot be read (corrupt, or its compression is).
    pub fault: Option<String>,
}

/// What became of the acknowledgements for one partition in one request: all applied, or none.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// The partition.
    pub partition: SharePartition,
    /// The offsets, each with what was said of it.
    pub offsets: Vec<(i64, Acknowledgement)>,
    /// `None`: applied. 121: nothing of them was, because at least one lock is lost (KIP-932 INVALID_RECORD_STATE).
    pub error: Option<ErrorCode>,
}

/// The answer to one request.
#[derive(Debug)]
pub struct Answer {
    /// When the request was sent: locks run from then at the earliest.
    pub sent_at: Instant,
    /// The answered request asked for records.
    pub fetched: bool,
    /// The records that it brought.
    pub acquired: Vec<AcquiredRecord>,
    /// Acquired offsets at which no record stands (a transaction marker, say); to be acknowledged as gaps.
    pub gaps: Vec<(SharePartition, i64)>,
    /// What became of the acknowledgements that rode on it.
    pub settlements: Vec<Settlement>,
    /// Partitions that could not be fetched from, with the reason.
    pub partition_errors: Vec<(SharePartition, ErrorCode)>,
    /// The lock's length, if the broker gave it.
    pub lock: Option<Duration>,
}

/// A request on its way.
struct Outstanding {
    correlation: i32,
    sent_at: Instant,
    fetch: bool,
    acknowledgements: Acknowledgements,
}

/// See the module documentation.
pub struct ShareSession {
    connection: Connection,
    identity: ShareIdentity,
    node: i32,
    next_epoch: i32,
    partitions: BTreeSet<SharePartition>,
    outstanding: VecDeque<Outstanding>,
}

impl ShareSession {
    /// Connects to broker `node` and opens a session over `partitions`, without asking for records.
    ///
    /// # Errors
    /// Whatever the connection or the broker says; 35 (UNSUPPORTED_VERSION) when share groups are switched off.
    pub fn open(
        cluster: &Cluster,
        node: i32,
        identity: ShareIdentity,
        partitions: BTreeSet<SharePartition>,
    ) -> Result<Self, KafkaError> {
        let connection = cluster.connect(node)?;
        let mut session = Self {
            connection,
            identity,
            node,
            next_epoch: OPENING_EPOCH,
            partitions: BTreeSet::new(),
            outstanding: VecDeque::new(),
        };
        let limits = FetchLimits { max_wait: Duration::ZERO, max_bytes: 0, max_records: 0 };
        let added: Vec<SharePartition> = partitions.iter().copied().collect();
        session.send_fetch_body(Acknowledgements::new(), limits, &added)?;
        session.partitions = partitions;
        let timeout = cluster.options().request_timeout;
        match session.receive(timeout)? {
            Some(_) => Ok(session),
            None => Err(session.silent(timeout)),
        }
    }

    /// The broker that this session is with.
    #[must_use]
    pub fn node(&self) -> i32 {
        self.node
    }

    /// The partitions of the session.
    #[must_use]
    pub fn partitions(&self) -> &BTreeSet<SharePartition> {
        &self.partitions
    }

    /// True while a request is unanswered.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.outstanding.is_empty()
    }

    /// When the oldest unanswered request was sent.
    #[must_use]
    pub fn waiting_since(&self) -> Option<Instant> {
        self.outstanding.front().map(|request| request.sent_at)
    }

    /// How many requests are unanswered.
    #[must_use]
    pub fn waiting_count(&self) -> usize {
        self.outstanding.len()
    }

    /// Sends a ShareFetch in record-limit mode; `acknowledgements` ride along and take effect when it arrives.
    ///
    /// # Errors
    /// The connection is gone, and with it the session.
    pub fn send_fetch(&mut self, acknowledgements: Acknowledgements, limits: FetchLimits) -> Result<(), KafkaError> {
        self.send_fetch_body(acknowledgements, limits, &[])
    }

    fn send_fetch_body(
        &mut self,
        acknowledgements: Acknowledgements,
        limits: FetchLimits,
        added: &[SharePartition],
    ) -> Result<(), KafkaError> {
        let epoch = self.next_epoch;
        let body = share_wire::encode_fetch(self.header(epoch), limits, added, &acknowledgements)?;
        self.send(SHARE_FETCH, &body, true, acknowledgements)
    }

    /// Sends a ShareAcknowledge.
    ///
    /// # Errors
    /// The connection is gone, and with it the session.
    pub fn send_acknowledge(&mut self, acknowledgements: Acknowledgements) -> Result<(), KafkaError> {
        let body = share_wire::encode_acknowledge(self.header(self.next_epoch), &acknowledgements)?;
        self.send(SHARE_ACKNOWLEDGE, &body, false, acknowledgements)
    }

    /// Sends the last request of the session with the last acknowledgements; whatever else it holds is freed.
    ///
    /// # Errors
    /// The connection is gone, which frees everything, too.
    pub fn send_close(&mut self, acknowledgements: Acknowledgements) -> Result<(), KafkaError> {
        self.next_epoch = FINAL_EPOCH;
        self.send_acknowledge(acknowledgements)
    }

    fn header(&self, epoch: i32) -> SessionHeader<'_> {
        SessionHeader { group: &self.identity.group, member: &self.identity.member, epoch }
    }

    fn send(
        &mut self,
        api_key: i16,
        body: &Bytes,
        fetch: bool,
        acknowledgements: Acknowledgements,
    ) -> Result<(), KafkaError> {
        let sent_at = Instant::now();
        let correlation = self.connection.send_body(api_key, WIRE_VERSION, true, body)?;
        if self.next_epoch != FINAL_EPOCH {
            // The epoch after the largest is 1: 0 would open a new session.
            self.next_epoch = self.next_epoch.checked_add(1).unwrap_or(1);
        }
        self.outstanding.push_back(Outstanding { correlation, sent_at, fetch, acknowledgements });
        Ok(())
    }

    /// Waits for the answer to the oldest unanswered request, at most `wait`.
    ///
    /// `None`: no answer yet (or none owed); the session is as good as before.
    ///
    /// # Errors
    /// [`KafkaError::Broker`] when the broker refused the request as a whole; otherwise the connection is gone.
    /// Either way the session is over. What was acknowledged in unanswered requests may or may not have been applied.
    pub fn receive(&mut self, wait: Duration) -> Result<Option<Answer>, KafkaError> {
        let Some(oldest) = self.outstanding.front() else { return Ok(None) };
        let Some(body) = self.connection.receive(oldest.correlation, wait)? else { return Ok(None) };
        let Some(request) = self.outstanding.pop_front() else { return Ok(None) };
        let broker = self.connection.broker();
        if request.fetch { fetched(request, body, broker) } else { acknowledged(request, &body, broker) }.map(Some)
    }

    /// The error for a caller that has waited long enough.
    #[must_use]
    pub fn silent(&self, waited: Duration) -> KafkaError {
        KafkaError::Timeout { request: "ShareFetch", broker: self.connection.broker().clone(), waited }
    }

    /// Adds partitions that this session's broker leads.
    ///
    /// # Errors
    /// As [`Self::open`]; the session is over then.
    pub fn add_partitions(
        &mut self,
        added: &BTreeSet<SharePartition>,
        timeout: Duration,
    ) -> Result<Option<Answer>, KafkaError> {
        let limits = FetchLimits { max_wait: Duration::ZERO, max_bytes: 0, max_records: 0 };
        let list: Vec<SharePartition> = added.iter().copied().collect();
        self.send_fetch_body(Acknowledgements::new(), limits, &list)?;
        self.partitions.extend(added);
        self.receive(timeout)
    }
}

fn malformed(broker: &BrokerAddress, detail: String) -> KafkaError {
    KafkaError::Malformed { broker: broker.clone(), detail }
}

fn fetched(request: Outstanding, body: Bytes, broker: &BrokerAddress) -> Result<Answer, KafkaError> {
    let response = share_wire::decode_fetch(body).map_err(|detail| malformed(broker, detail))?;
    ErrorCode(response.error_code).check("ShareFetch", response.error_message.as_deref())?;
    let mut answer = Answer {
        sent_at: request.sent_at,
        fetched: true,
        acquired: Vec::new(),
        gaps: Vec::new(),
        settlements: Vec::new(),
        partition_errors: Vec::new(),
        lock: lock_length(response.acquisition_lock_timeout_ms),
    };
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

fn acknowledged(request: Outstanding, body: &Bytes, broker: &BrokerAddress) -> Result<Answer, KafkaError> {
    let (response, lock) = share_wire::decode_acknowledge(body).map_err(|detail| malformed(broker, detail))?;
    ErrorCode(response.error_code).check("ShareAcknowledge", response.error_message.as_deref())?;
    let mut errors = Vec::new();
    for topic in &response.responses {
        for data in topic.partitions.iter().filter(|data| data.error_code != 0) {
            let partition = SharePartition { topic_id: topic.topic_id, partition: data.partition_index };
            errors.push((partition, ErrorCode(data.error_code)));
        }
    }
    Ok(Answer {
        sent_at: request.sent_at,
        fetched: false,
        acquired: Vec::new(),
        gaps: Vec::new(),
        settlements: settle(request.acknowledgements, &errors),
        partition_errors: Vec::new(),
        lock,
    })
}

fn lock_length(milliseconds: i32) -> Option<Duration> {
    u64::try_from(milliseconds).ok().filter(|length| *length > 0).map(Duration::from_millis)
}

/// Picks the acquired records out of the batches: the broker sends whole batches, of which others may hold the rest.
fn take_acquired(partition: SharePartition, data: &PartitionData, answer: &mut Answer) {
    let Some(first) = data.acquired_records.iter().map(|range| range.first_offset).min() else { return };
    let Some(bytes) = &data.records else { return };
    let decoded = records::decode(bytes, first);
    let mut records: BTreeMap<i64, records::Record> =
        decoded.records.into_iter().map(|record| (record.offset, record)).collect();
    for range in &data.acquired_records {
        let delivery_count = u16::try_from(range.delivery_count).unwrap_or(1);
        // Beyond what came nothing is known: what is not acknowledged is delivered again.
        for offset in range.first_offset..=range.last_offset.min(decoded.next_offset - 1) {
            let unreadable = decoded.unreadable.iter().find(|gap| (gap.first..=gap.last).contains(&offset));
            let (record, fault) = (records.remove(&offset), unreadable.map(|gap| gap.reason.clone()));
            if record.is_none() && fault.is_none() {
                answer.gaps.push((partition, offset));
                continue;
            }
            let (key, value, headers) =
                record.map_or((None, None, Vec::new()), |record| (record.key, record.value, record.headers));
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
