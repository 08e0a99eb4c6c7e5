//! Share sessions, and the two requests over them: ShareFetch and ShareAcknowledge (KIP-932).
//!
//! A session is bound to the connection that opened it, and its requests are numbered. Each function does what can be done now; waiting for
//! records is [`core`](super::core)'s. Called by it.

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

use super::log::Log;
use super::rights::{Operation, Resource};
use super::settings::GROUP;
use super::share_partition::{Acquired, Said, SharePartition};
use super::share_wire::{Acknowledge, Fetch};
use super::state::{Caller, PartitionKey, State};
use crate::kafka::ErrorCode;

/// Epoch of the request that opens a session, and of the one that ends it.
const OPEN: i32 = 0;
const CLOSE: i32 = -1;

/// A session is with one node, for one member of one group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SessionKey {
    pub node: i32,
    pub group: String,
    pub member: Arc<str>,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Session {
    /// Its end is the session's.
    pub connection: u64,
    /// The epoch of the next request.
    epoch: i32,
    /// What is fetched, each time beginning with another one.
    partitions: Vec<PartitionKey>,
    turn: usize,
}

/// What a member says of each partition, in the order of its request; or why that cannot be.
type Statements = Vec<(PartitionKey, Result<Vec<(i64, Said)>, ErrorCode>)>;

/// A ShareFetch that has been taken and may have to wait for records.
pub(super) struct Parked {
    pub key: SessionKey,
    /// What it answers of each partition.
    answers: BTreeMap<PartitionKey, PartitionData>,
    record_limit: bool,
    max_records: usize,
    max_bytes: usize,
    /// The session's epoch when it was taken: another request meanwhile makes its answer void.
    epoch: i32,
    turn: usize,
}

impl State {
    /// Takes a ShareFetch: checks its session, applies what rides along. `Err`: that is the answer already.
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
        let said = statements_of_fetch(fetch);
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
        let natural = |number: i32| usize::try_from(number).unwrap_or(0);
        Ok(Parked {
            answers,
            record_limit: fetch.record_limit,
            max_records: if epoch == CLOSE { 0 } else { natural(request.max_records) },
            max_bytes: natural(request.max_bytes),
            epoch: self.sessions.get(&key).map_or(CLOSE, |session| session.epoch),
            turn,
            key,
        })
    }

    /// Tries to get records for it; whether there is something to answer with.
    pub fn try_share_fetch(&mut self, caller: &Caller, parked: &mut Parked, now: Instant) -> bool {
        let Some(session) = self.sessions.get(&parked.key) else { return true };
        let mut partitions = session.partitions.clone();
        if partitions.is_empty() || parked.max_records == 0 {
            return true;
        }
        let first = parked.turn % partitions.len();
        partitions.rotate_left(first);
        let (mut records_left, mut bytes_left, mut any) = (parked.max_records, parked.max_bytes, false);
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
                Err(code) => {
                    let leader = self.leader_of(key);
                    let data = entry.or_insert_with(|| PartitionData::default().with_partition_index(key.1));
                    data.error_code = code.0;
                    data.current_leader = leader;
                    any = true;
                }
            }
            if records_left == 0 {
                break;
            }
        }
        any
    }

    /// What wakes a parked ShareFetch changes this number: records that are appended, locks that run out. Records given back do not.
    pub fn share_fetch_signal(&self, key: &SessionKey) -> u64 {
        let Some(session) = self.sessions.get(key) else { return u64::MAX };
        let group = self.groups.get(&key.group);
        let signal = |partition: &PartitionKey| {
            let end = self.log_of(*partition).map_or(0, |log| u64::try_from(log.end()).unwrap_or(0));
            let progress = group.and_then(|group| group.partitions.get(partition));
            end + progress.map_or(0, SharePartition::expiries)
                + self.leader_of(*partition).leader_epoch.unsigned_abs() as u64
        };
        session.partitions.iter().map(signal).sum()
    }

    /// The answer, with or without records.
    pub fn finish_share_fetch(&mut self, parked: Parked) -> ShareFetchResponse {
        let lock = self.lock_ms(&parked.key.group);
        let closed = parked.epoch == CLOSE;
        // Another request of the session overtook this one: what it has acquired stays locked and is not told.
        if !closed && self.sessions.get(&parked.key).map(|session| session.epoch) != Some(parked.epoch) {
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
        for ((topic, index), code) in self.acknowledge(caller, &key, statements_of_acknowledge(acknowledge), now) {
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

    /// The length of a group's locks as answers tell it.
    pub fn lock_ms(&self, group: &str) -> i32 {
        i32::try_from(self.group_number(group, "share.record.lock.duration.ms")).unwrap_or(i32::MAX)
    }

    /// A connection has ended: so have its sessions, and what they held is given back.
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

    /// Opens, continues or is about to end the session; the partition whose turn it is to be first.
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
            if !self.sessions.contains_key(key) && self.sessions.len() >= most {
                return Err(ErrorCode::SHARE_SESSION_LIMIT_REACHED);
            }
            let session = Session { connection: caller.connection, epoch: 1, partitions: added, turn: 0 };
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

    fn close_session(&mut self, key: &SessionKey) {
        self.sessions.remove(key);
        let rules = self.rules(&key.group);
        let Some(group) = self.groups.get_mut(&key.group) else { return };
        for (partition, progress) in &mut group.partitions {
            let topic = self.topics.values().find(|topic| topic.id == partition.0);
            let leader = topic.and_then(|topic| topic.partitions.get(usize::try_from(partition.1).ok()?));
            if leader.is_none_or(|partition| partition.leader == key.node) {
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
        if let Some(code) = caller.refuses {
            return Err(code);
        }
        let name = self.readable_topic(caller, partition.0)?;
        let log_start = self.led(&name, partition.1, key.node, now)?.log.start();
        let rules = self.rules(&key.group);
        let group = self.groups.get_mut(&key.group);
        let progress = group.and_then(|group| group.partitions.get_mut(&partition));
        let progress = progress.ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)?;
        progress.follow_log_start(log_start);
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
        self.led(&name, partition.1, parked.key.node, now)?;
        let group = parked.key.group.as_str();
        let rules = self.rules(group);
        let from_earliest = self.begins_at_start(group);
        let Some(log) = self.log_of(partition) else { return Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION) };
        let (log_start, log_end) = (log.start(), log.end());
        // Only what somebody joined for has a state to read.
        let group = self.groups.get_mut(group).ok_or(ErrorCode::UNKNOWN_SERVER_ERROR)?;
        let begin = if from_earliest { log_start } else { log_end };
        let progress = group.partitions.entry(partition).or_insert_with(|| SharePartition::new(begin));
        progress.follow_log_start(log_start);
        let Some(first) = progress.first_available(rules).filter(|first| *first < log_end) else { return Ok(None) };
        let Some(log) = log_in(&self.topics, partition) else { return Ok(None) };
        let last = log.last_within(first, max_bytes).unwrap_or(first);
        let end_of_batch = |offset: i64| log.end_of_batch(offset);
        let whole: Option<&dyn Fn(i64) -> i64> = if parked.record_limit { None } else { Some(&end_of_batch) };
        let ranges = progress.acquire(&parked.key.member, max_records, last, rules, now, whole);
        let ends = ranges.first().zip(ranges.last());
        Ok(ends.map(|(first, last)| log.read_range(first.first, last.last)).map(|bytes| (bytes, ranges)))
    }

    fn begins_at_start(&self, group: &str) -> bool {
        let known = GROUP.iter().find(|known| known.name == "share.auto.offset.reset");
        let values = self.group_values.get(group);
        known.zip(values).is_some_and(|(known, values)| values.get(known, &self.settings) == "earliest")
    }

    fn log_of(&self, key: PartitionKey) -> Option<&Log> {
        log_in(&self.topics, key)
    }

    fn leader_of(&self, key: PartitionKey) -> LeaderIdAndEpoch {
        let topic = self.topics.values().find(|topic| topic.id == key.0);
        let partition = topic.and_then(|topic| topic.partitions.get(usize::try_from(key.1).ok()?));
        let leader = partition.map_or((-1, -1), |partition| (partition.leader, partition.epoch));
        LeaderIdAndEpoch::default().with_leader_id(leader.0).with_leader_epoch(leader.1)
    }

    fn endpoints(&self) -> Vec<NodeEndpoint> {
        let endpoints = self.node_ids().zip(&self.nodes).map(|(id, address)| {
            NodeEndpoint::default()
                .with_node_id(BrokerId(id))
                .with_host(StrBytes::from_string(address.ip().to_string()))
                .with_port(address.port().into())
        });
        endpoints.collect()
    }
}

fn log_in(topics: &BTreeMap<String, super::state::Topic>, key: PartitionKey) -> Option<&Log> {
    let topic = topics.values().find(|topic| topic.id == key.0)?;
    topic.partitions.get(usize::try_from(key.1).ok()?).map(|partition| &partition.log)
}

fn acquired_records(range: Acquired) -> AcquiredRecords {
    AcquiredRecords::default()
        .with_first_offset(range.first)
        .with_last_offset(range.last)
        .with_delivery_count(range.deliveries)
}

fn statements_of_fetch(fetch: &Fetch) -> Statements {
    let topics = fetch.request.topics.iter();
    let partitions = topics.flat_map(|topic| topic.partitions.iter().map(|partition| (topic.topic_id, partition)));
    partitions
        .map(|(topic, partition)| {
            let batches = partition.acknowledgement_batches.iter();
            let batches = batches.map(|batch| (batch.first_offset, batch.last_offset, &batch.acknowledge_types[..]));
            ((topic, partition.partition_index), statements(batches, fetch.renews))
        })
        .collect()
}

fn statements_of_acknowledge(acknowledge: &Acknowledge) -> Statements {
    let topics = acknowledge.request.topics.iter();
    let partitions = topics.flat_map(|topic| topic.partitions.iter().map(|partition| (topic.topic_id, partition)));
    partitions
        .map(|(topic, partition)| {
            let batches = partition.acknowledgement_batches.iter();
            let batches = batches.map(|batch| (batch.first_offset, batch.last_offset, &batch.acknowledge_types[..]));
            ((topic, partition.partition_index), statements(batches, acknowledge.renews))
        })
        .collect()
}

/// One statement for each offset. Ranges stand in order and do not overlap; a range has one type for all of it or one for each offset.
fn statements<'a>(
    batches: impl Iterator<Item = (i64, i64, &'a [i8])>,
    renews: bool,
) -> Result<Vec<(i64, Said)>, ErrorCode> {
    // More than a group may ever hold: a false range must not claim memory.
    const MOST: i64 = 1 << 20;
    let mut statements = Vec::new();
    let mut behind = i64::MIN;
    for (first, last, types) in batches {
        let length = last
            .checked_sub(first)
            .and_then(|distance| distance.checked_add(1))
            .filter(|length| (1..=MOST).contains(length));
        let length = length.and_then(|length| usize::try_from(length).ok()).ok_or(ErrorCode::INVALID_REQUEST)?;
        if first < behind || types.is_empty() || (types.len() > 1 && types.len() != length) {
            return Err(ErrorCode::INVALID_REQUEST);
        }
        behind = last.saturating_add(1);
        for (offset, number) in (first..=last).zip(types.iter().cycle()) {
            match Said::of_type(*number) {
                Some(Said::Renew) if !renews => return Err(ErrorCode::INVALID_REQUEST),
                Some(said) => statements.push((offset, said)),
                None => return Err(ErrorCode::INVALID_REQUEST),
            }
        }
    }
    Ok(statements)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_one_statement_for_each_offset() {
        let read = |batches: &[(i64, i64, &[i8])]| statements(batches.iter().copied(), false);
        let expected = vec![(1, Said::Accept), (2, Said::Accept), (5, Said::Release), (6, Said::Reject)];
        assert_eq!(read(&[(1, 2, &[1]), (5, 6, &[2, 3])]), Ok(expected));
        assert_eq!(read(&[]), Ok(Vec::new()));
        for wrong in [
            &[(2, 1, &[1][..])][..],
            &[(1, 2, &[1]), (2, 3, &[1])],
            &[(1, 3, &[1, 1])],
            &[(1, 1, &[])],
            &[(1, 1, &[5])],
            &[(1, 1, &[-1])],
            &[(1, 1, &[4])],
            &[(0, i64::MAX, &[1])],
            &[(i64::MIN, i64::MAX, &[1])],
        ] {
            assert_eq!(read(wrong), Err(ErrorCode::INVALID_REQUEST), "{wrong:?}");
        }
        assert_eq!(statements([(1, 1, &[4_i8][..])].into_iter(), true), Ok(vec![(1, Said::Renew)]));
    }
}
