//! Share sessions and their two requests: ShareFetch and ShareAcknowledge (KIP-932).
//!
//! A session belongs to the connection that opened it, and its requests are numbered. Each function does what is
//! possible now; [`core`](super::core) calls them and waits for records.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kafka_protocol::messages::share_acknowledge_response::{
    PartitionData as AcknowledgedPartition, ShareAcknowledgeTopicResponse,
};
use kafka_protocol::messages::share_fetch_response::{
    AcquiredRecords, LeaderIdAndEpoch, NodeEndpoint, PartitionData, ShareFetchableTopicResponse,
};
use kafka_protocol::messages::{BrokerId, ShareAcknowledgeResponse, ShareFetchResponse};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::rights::{Operation, Resource};
use super::session::{Session, SessionKey};
use super::share_partition::{Acquired, PartitionKey, Said, SharePartition};
use super::share_wire::{Acknowledge, Fetch, Statements};
use super::state::{Caller, Partition, State, Topic};
use kafka_share::ErrorCode;

/// Epochs of the requests that open and close a session.
const OPEN: i32 = 0;
const CLOSE: i32 = -1;

/// An accepted ShareFetch that may have to wait for records.
pub(super) struct Parked {
    pub key: SessionKey,
    /// Number and partitions of its session when it was accepted; a later session under the same key changes neither.
    session: u64,
    partitions: Vec<PartitionKey>,
    /// The response so far, by partition.
    answers: BTreeMap<PartitionKey, PartitionData>,
    /// Whether it has looked for records already. Later errors of partitions are left to the next request.
    has_looked: bool,
    record_limit: bool,
    max_records: usize,
    max_bytes: usize,
    /// The session's epoch when it was accepted: another request meanwhile makes its response void.
    epoch: i32,
    turn: usize,
}

impl State {
    /// Accepts a ShareFetch: checks its session and applies its acknowledgements. `Err` is the final response.
    pub fn take_share_fetch(
        &mut self,
        caller: &Caller,
        fetch: &Fetch,
        now: Instant,
    ) -> Result<Parked, ShareFetchResponse> {
        self.try_take_share_fetch(caller, fetch, now)
            .map_err(|code| ShareFetchResponse::default().with_error_code(code.0))
    }

    fn try_take_share_fetch(&mut self, caller: &Caller, fetch: &Fetch, now: Instant) -> Result<Parked, ErrorCode> {
        let request = &fetch.request;
        let group = request.group_id.as_ref().map_or("", |group| group.as_str());
        let key = self.session_key(caller, group, request.member_id.as_deref())?;
        let said = fetch.statements();
        let asks = (request.max_wait_ms, request.min_bytes, request.max_bytes, request.max_records);
        if fetch.renews && asks != (0, 0, 0, 0) {
            return Err(ErrorCode::INVALID_REQUEST);
        }
        let epoch = request.share_session_epoch;
        if epoch == OPEN && said.iter().any(|(_, said)| said.as_ref() != Ok(&Vec::new())) {
            return Err(ErrorCode::INVALID_REQUEST);
        }
        let partitions = request
            .topics
            .iter()
            .flat_map(|topic| topic.partitions.iter().map(|partition| (topic.topic_id, partition.partition_index)));
        let forgotten = request.forgotten_topics_data.iter();
        let forgotten: Vec<PartitionKey> =
            forgotten.flat_map(|topic| topic.partitions.iter().map(|index| (topic.topic_id, *index))).collect();
        let turn = self.advance_session(caller, &key, epoch, partitions.collect(), &forgotten)?;
        let mut answers = BTreeMap::new();
        for (partition, code) in self.acknowledge(caller, &key, said, now) {
            let data = PartitionData::default().with_partition_index(partition.1).with_acknowledge_error_code(code);
            answers.insert(partition, data);
        }
        if epoch == CLOSE {
            self.close_session(&key);
        }
        let session = self.sessions.get(&key);
        let natural = |number: i32| usize::try_from(number).unwrap_or(0);
        Ok(Parked {
            answers,
            record_limit: fetch.record_limit,
            max_records: if epoch == CLOSE { 0 } else { natural(request.max_records) },
            max_bytes: natural(request.max_bytes),
            epoch: session.map_or(CLOSE, |session| session.epoch),
            session: session.map_or(0, |session| session.number),
            partitions: session.map_or_else(Vec::new, |session| session.partitions.clone()),
            has_looked: false,
            turn,
            key,
        })
    }

    /// Tries to acquire records. Returns whether the response goes out now: it has records, or none can come. As in
    /// Kafka, a partition led elsewhere does not hasten the response while others may bring records. Its error is
    /// reported only if the first attempt found it.
    pub fn try_share_fetch(&mut self, caller: &Caller, parked: &mut Parked, now: Instant) -> bool {
        let mut partitions = parked.partitions.clone();
        let ended = !self.sessions.contains_key(&parked.key);
        if partitions.is_empty() || parked.max_records == 0 || ended {
            return true;
        }
        let first = parked.turn % partitions.len();
        partitions.rotate_left(first);
        let (mut records_left, mut bytes_left, mut any) = (parked.max_records, parked.max_bytes, false);
        let mut failed = 0;
        let looks_again = std::mem::replace(&mut parked.has_looked, true);
        for key in partitions {
            let found = self.acquire(caller, parked, key, records_left, bytes_left, now);
            let entry = parked.answers.entry(key);
            match found {
                Ok(None) => {}
                Ok(Some((bytes, acquired))) => {
                    let count: i64 = acquired.iter().map(|range| range.last - range.first + 1).sum();
                    records_left = records_left.saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
                    bytes_left = bytes_left.saturating_sub(bytes.len());
                    let data = entry.or_insert_with(|| PartitionData::default().with_partition_index(key.1));
                    data.records = Some(bytes);
                    data.acquired_records = acquired.into_iter().map(acquired_records).collect();
                    any = true;
                }
                Err(_) if looks_again => {}
                Err(code) => {
                    let leader = self.leader_of(key);
                    let data = entry.or_insert_with(|| PartitionData::default().with_partition_index(key.1));
                    data.error_code = code.0;
                    data.current_leader = leader;
                    failed += 1;
                }
            }
            if records_left == 0 {
                break;
            }
        }
        any || failed == parked.partitions.len()
    }

    /// A number that changes with the events that wake a parked ShareFetch: appended records and expired locks.
    /// Released records and moved leaders do not change it.
    pub fn share_fetch_signal(&self, parked: &Parked) -> u64 {
        let group = self.groups.get(&parked.key.group);
        let signal = |key: &PartitionKey| {
            let end = self.partition(*key).map_or(0, |partition| u64::try_from(partition.high_watermark).unwrap_or(0));
            let progress = group.and_then(|group| group.partitions.get(key));
            end + progress.map_or(0, SharePartition::expiries)
        };
        parked.partitions.iter().map(signal).sum()
    }

    /// Makes the response, with or without records.
    pub fn finish_share_fetch(&mut self, parked: Parked) -> ShareFetchResponse {
        let lock = self.lock_ms(&parked.key.group);
        let closed = parked.epoch == CLOSE;
        // Another request of the session overtook this one: the records acquired by this one stay locked and are not
        // delivered. A session that was replaced meanwhile still delivers.
        let overtaken = |session: &Session| session.number == parked.session && session.epoch != parked.epoch;
        if !closed && self.sessions.get(&parked.key).is_some_and(overtaken) {
            return ShareFetchResponse::default().with_error_code(ErrorCode::INVALID_SHARE_SESSION_EPOCH.0);
        }
        let mut topics: BTreeMap<Uuid, Vec<PartitionData>> = BTreeMap::new();
        let mut elsewhere = false;
        for ((topic, _), data) in parked.answers {
            elsewhere |= data.error_code == ErrorCode::NOT_LEADER_OR_FOLLOWER.0;
            topics.entry(topic).or_default().push(data);
        }
        let responses = topics.into_iter().map(|(topic, partitions)| {
            ShareFetchableTopicResponse::default().with_topic_id(topic).with_partitions(partitions)
        });
        let endpoints = if elsewhere { self.endpoints() } else { Vec::new() };
        ShareFetchResponse::default()
            .with_acquisition_lock_timeout_ms(lock)
            .with_responses(responses.collect())
            .with_node_endpoints(endpoints)
    }

    /// ShareAcknowledge.
    pub fn share_acknowledge(
        &mut self,
        caller: &Caller,
        acknowledge: &Acknowledge,
        now: Instant,
    ) -> ShareAcknowledgeResponse {
        self.try_share_acknowledge(caller, acknowledge, now)
            .unwrap_or_else(|code| ShareAcknowledgeResponse::default().with_error_code(code.0))
    }

    fn try_share_acknowledge(
        &mut self,
        caller: &Caller,
        acknowledge: &Acknowledge,
        now: Instant,
    ) -> Result<ShareAcknowledgeResponse, ErrorCode> {
        let request = &acknowledge.request;
        let group = request.group_id.as_ref().map_or("", |group| group.as_str());
        let key = self.session_key(caller, group, request.member_id.as_deref())?;
        let epoch = request.share_session_epoch;
        if epoch == OPEN {
            return Err(ErrorCode::INVALID_SHARE_SESSION_EPOCH);
        }
        self.advance_session(caller, &key, epoch, Vec::new(), &[])?;
        let mut topics: BTreeMap<Uuid, Vec<AcknowledgedPartition>> = BTreeMap::new();
        for ((topic, index), code) in self.acknowledge(caller, &key, acknowledge.statements(), now) {
            let data = AcknowledgedPartition::default().with_partition_index(index).with_error_code(code);
            topics.entry(topic).or_default().push(data);
        }
        if epoch == CLOSE {
            self.close_session(&key);
        }
        let responses = topics.into_iter().map(|(topic, partitions)| {
            ShareAcknowledgeTopicResponse::default().with_topic_id(topic).with_partitions(partitions)
        });
        Ok(ShareAcknowledgeResponse::default().with_responses(responses.collect()))
    }

    /// The lock duration of a group as responses contain it.
    pub fn lock_ms(&self, group: &str) -> i32 {
        i32::try_from(self.group_number(group, "share.record.lock.duration.ms")).unwrap_or(i32::MAX)
    }

    /// Ends the sessions of an ended connection and releases their records.
    pub fn end_sessions_of(&mut self, connection: u64) {
        let ended = self.sessions.iter().filter(|(_, session)| session.connection == connection);
        let ended: Vec<SessionKey> = ended.map(|(key, _)| key.clone()).collect();
        ended.iter().for_each(|key| self.close_session(key));
    }

    fn session_key(&self, caller: &Caller, group: &str, member: Option<&str>) -> Result<SessionKey, ErrorCode> {
        if self.settings.share_version < 1 {
            return Err(ErrorCode::UNSUPPORTED_VERSION);
        }
        match member {
            Some(member) if !member.is_empty() && !group.is_empty() => {
                self.check_right(caller, Operation::Read, Resource::Group(group))?;
                Ok(SessionKey { node: caller.node, group: group.to_owned(), member: Arc::from(member) })
            }
            _ => Err(ErrorCode::INVALID_REQUEST),
        }
    }

    /// Opens or advances the session; the end comes later. Returns the turn, which selects the first partition.
    fn advance_session(
        &mut self,
        caller: &Caller,
        key: &SessionKey,
        epoch: i32,
        added: Vec<PartitionKey>,
        forgotten: &[PartitionKey],
    ) -> Result<usize, ErrorCode> {
        if epoch == OPEN {
            let most = usize::try_from(self.settings.number("group.share.max.share.sessions")).unwrap_or(usize::MAX);
            let open = self.sessions.keys().filter(|key| key.node == caller.node).count();
            if !self.sessions.contains_key(key) && open >= most {
                return Err(ErrorCode::SHARE_SESSION_LIMIT_REACHED);
            }
            self.sessions_opened += 1;
            let (connection, number) = (caller.connection, self.sessions_opened);
            let session = Session { connection, number, epoch: 1, partitions: added, turn: 0 };
            self.sessions.insert(key.clone(), session);
            return Ok(0);
        }
        let session = self.sessions.get_mut(key).ok_or(ErrorCode::SHARE_SESSION_NOT_FOUND)?;
        if epoch == CLOSE {
            return Ok(0);
        }
        if session.epoch != epoch {
            return Err(ErrorCode::INVALID_SHARE_SESSION_EPOCH);
        }
        session.epoch = epoch.checked_add(1).unwrap_or(1);
        session.turn = session.turn.wrapping_add(1);
        for key in added {
            if !session.partitions.contains(&key) {
                session.partitions.push(key);
            }
        }
        session.partitions.retain(|key| !forgotten.contains(key));
        Ok(session.turn)
    }

    /// Ends a session and releases the member's records in its partitions. Records in partitions forgotten before stay
    /// locked, as in Kafka.
    pub fn close_session(&mut self, key: &SessionKey) {
        let Some(session) = self.sessions.remove(key) else { return };
        let rules = self.rules(&key.group);
        for partition in session.partitions {
            let led = self.partition(partition).is_none_or(|partition| partition.leader == key.node);
            let group = self.groups.get_mut(&key.group).filter(|_| led);
            if let Some(progress) = group.and_then(|group| group.partitions.get_mut(&partition)) {
                progress.release_all(&key.member, rules);
            }
        }
    }

    fn acknowledge(
        &mut self,
        caller: &Caller,
        key: &SessionKey,
        said: Statements,
        now: Instant,
    ) -> Vec<(PartitionKey, i16)> {
        let mut answers = Vec::new();
        for (partition, said) in said {
            if said.as_ref().is_ok_and(Vec::is_empty) {
                continue;
            }
            let result = said.and_then(|said| self.acknowledge_partition(caller, key, partition, &said, now));
            answers.push((partition, result.err().map_or(0, |code| code.0)));
        }
        answers
    }

    fn acknowledge_partition(
        &mut self,
        caller: &Caller,
        key: &SessionKey,
        partition: PartitionKey,
        said: &[(i64, Said)],
        now: Instant,
    ) -> Result<(), ErrorCode> {
        let name = self.readable_topic(caller, partition.0)?;
        if let Some(code) = caller.refused(&name, Some(partition.1), true) {
            return Err(code);
        }
        // Whatever the reason, a node that does not lead returns this code (measured on Kafka 4.4).
        let led = self.led_by(&name, partition.1, key.node, now).map_err(|_| ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)?;
        let log_start = led.log.start();
        let (rules, delay) = (self.rules(&key.group), self.settings.share_state_delay);
        let Some(log) = partition_in(&self.topics, partition).map(|partition| &partition.log) else {
            return Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
        };
        let group = self.groups.get_mut(&key.group);
        let progress = group.and_then(|group| group.partitions.get_mut(&partition)).filter(|known| known.fetched);
        let progress = progress.ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)?;
        progress.follow_log_start(log_start);
        // Refuses offsets in batches that were not delivered since this leader took over.
        let last_known = progress.last_known();
        let known_end = if last_known < progress.start() { last_known } else { log.end_of_batch(last_known) };
        if said.iter().any(|(offset, _)| *offset > known_end) {
            return Err(ErrorCode::INVALID_REQUEST);
        }
        progress.remember(delay, now);
        progress.acknowledge(&key.member, said, rules, now)
    }

    fn acquire(
        &mut self,
        caller: &Caller,
        parked: &Parked,
        partition: PartitionKey,
        max_records: usize,
        max_bytes: usize,
        now: Instant,
    ) -> Result<Option<(Bytes, Vec<Acquired>)>, ErrorCode> {
        let name = self.readable_topic(caller, partition.0)?;
        let led = self.led(&name, partition.1, caller, now)?;
        let (log_start, log_end) = (led.log.start(), led.high_watermark);
        let group = parked.key.group.as_str();
        let rules = self.rules(group);
        let from_earliest = self.group_text(group, "share.auto.offset.reset") == "earliest";
        let committed = self.group_text(group, "share.isolation.level") == "read_committed";
        // The partition is readable once the group's coordinator has initialised its state.
        let group = self.groups.get_mut(group).filter(|group| group.has_begun(partition, now));
        let group = group.ok_or(ErrorCode::UNKNOWN_SERVER_ERROR)?;
        let begin = if from_earliest { log_start } else { log_end };
        let progress = group.partitions.entry(partition).or_insert_with(|| SharePartition::new(begin));
        progress.fetched = true;
        progress.follow_log_start(log_start);
        let Some(led) = partition_in(&self.topics, partition) else { return Ok(None) };
        let (log, readable) = (&led.log, led.readable(committed));
        if committed {
            progress.finish(&log.aborted_batches(progress.start(), readable), rules);
        }
        let Some(first) = progress.first_available(rules).filter(|first| *first < readable) else { return Ok(None) };
        let last = log.last_within(first, max_bytes).unwrap_or(first).min(readable - 1);
        let end_of_batch = |offset: i64| log.end_of_batch(offset);
        let whole: Option<&dyn Fn(i64) -> i64> = if parked.record_limit { None } else { Some(&end_of_batch) };
        let ranges = progress.acquire(&parked.key.member, max_records, last, rules, now, whole);
        let ends = ranges.first().zip(ranges.last());
        Ok(ends.map(|(first, last)| log.read_range(first.first, last.last)).map(|bytes| (bytes, ranges)))
    }

    fn partition(&self, key: PartitionKey) -> Option<&Partition> {
        partition_in(&self.topics, key)
    }

    fn leader_of(&self, key: PartitionKey) -> LeaderIdAndEpoch {
        let leader = self.partition(key).map_or((-1, -1), |partition| (partition.leader, partition.epoch));
        LeaderIdAndEpoch::default().with_leader_id(leader.0).with_leader_epoch(leader.1)
    }

    fn endpoints(&self) -> Vec<NodeEndpoint> {
        let endpoints = self.living_nodes().map(|(id, address)| {
            NodeEndpoint::default()
                .with_node_id(BrokerId(id))
                .with_host(StrBytes::from_string(address.ip().to_string()))
                .with_port(address.port().into())
        });
        endpoints.collect()
    }
}

fn partition_in(topics: &BTreeMap<String, Topic>, key: PartitionKey) -> Option<&Partition> {
    let topic = topics.values().find(|topic| topic.id == key.0)?;
    topic.partitions.get(usize::try_from(key.1).ok()?)
}

fn acquired_records(range: Acquired) -> AcquiredRecords {
    AcquiredRecords::default()
        .with_first_offset(range.first)
        .with_last_offset(range.last)
        .with_delivery_count(range.deliveries)
}
