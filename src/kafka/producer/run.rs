//! The producer's thread: gathers records, sends a batch per partition, applies the answers, repeats what must be repeated.
//!
//! One request per leader is out at a time. The thread blocks in three places only: on the channel while there is nothing to do, on
//! the answers, and in a back-off. Its interrupter wakes the last two; closing and a new record the first. In a cluster of several
//! brokers the answers are looked for in turn, so that a frozen leader holds up its own partitions and no others.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, select};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{InitProducerIdRequest, ProduceRequest, ProduceResponse};

use super::lane::{Identity, Lane};
use super::{Delivery, DeliveryError, Message, ProducerEvents, ProducerOptions, Shared};
use crate::backoff::Backoff;
use crate::kafka::cluster::{Cluster, topic_name};
use crate::kafka::error::{ErrorCode, KafkaError, Result, Retry};
use crate::kafka::fetch::Limits;
use crate::kafka::offsets::{self, Position};
use crate::kafka::partitioner;
use crate::kafka::pool::Pool;
use crate::kafka::reader::fetch_one;
use crate::kafka::records::{self, BatchIdentity};
use crate::stop::Stop;

/// Produce v8: as v7, and the answer carries the broker's words (KIP-467).
const VERSION: i16 = 8;
/// How often an idle producer looks whether its connection still stands.
const IDLE_CHECK: Duration = Duration::from_secs(1);
/// Partitions can be added to a topic: how often it is looked at again.
const METADATA_AGE: Duration = Duration::from_secs(60);
const BACKOFF_FIRST: Duration = Duration::from_millis(10);
const BACKOFF_LONGEST: Duration = Duration::from_millis(500);
/// Answers that ask for patience are normal for a moment (a fresh topic, a leader that moves); later the producer is not ready.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes per fetch while the log is searched for a batch.
const SEARCH_BYTES: i32 = 1 << 20;
/// With several brokers each answer is looked for so long.
const TURN: Duration = Duration::from_millis(2);

type LaneKey = (Arc<str>, i32);

/// A request without an answer.
struct InFlight {
    correlation: i32,
    deadline: Instant,
    keys: Vec<LaneKey>,
}

/// Why the thread goes on or ends.
enum Gathered {
    Records,
    Idle,
    Finished,
}

pub(super) struct Actor<T, E> {
    name: String,
    /// The produce requests' connections: nothing else is asked on them.
    pool: Pool,
    /// Connections for offsets and for looking into the log.
    questions: Pool,
    options: ProducerOptions,
    events: E,
    inbox: Receiver<Message<T>>,
    closing: Stop,
    shared: Arc<Shared>,
    /// Partition counts of the topics in use.
    topics: HashMap<Arc<str>, i32>,
    topics_since: Instant,
    /// Taken from the channel; the topic's partitions are not known yet.
    unplaced: VecDeque<Message<T>>,
    unplaced_bytes: usize,
    lanes: BTreeMap<LaneKey, Lane<T>>,
    /// By the leader's node id.
    in_flight: BTreeMap<i32, InFlight>,
    identity: Option<Identity>,
    backoff: Backoff,
    trouble_since: Option<Instant>,
    /// The present trouble has been logged.
    told: bool,
    /// Records were settled since the last trouble.
    progress: bool,
}

impl<T: Send + 'static, E: ProducerEvents<T>> Actor<T, E> {
    pub(super) fn new(
        name: &str,
        cluster: Cluster,
        options: ProducerOptions,
        events: E,
        inbox: Receiver<Message<T>>,
        closing: Stop,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            pool: Pool::new(cluster.clone()),
            questions: Pool::new(cluster),
            options,
            events,
            inbox,
            closing,
            shared,
            topics: HashMap::new(),
            topics_since: Instant::now(),
            unplaced: VecDeque::new(),
            unplaced_bytes: 0,
            lanes: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            identity: None,
            backoff: Backoff::new(BACKOFF_FIRST, BACKOFF_LONGEST),
            trouble_since: None,
            told: false,
            progress: false,
        }
    }

    /// Ends when closed and everything is settled, or when interrupted.
    pub(super) fn run(mut self) -> Result<()> {
        let end = self.work();
        self.shared.ready.store(false, Ordering::Relaxed);
        self.settle_rest();
        match end {
            Err(KafkaError::Interrupted) => Ok(()),
            end => end,
        }
    }

    fn work(&mut self) -> Result<()> {
        let mut outcome = self.connect();
        loop {
            match outcome {
                Ok(true) => self.all_is_well(),
                // Nobody has answered yet.
                Ok(false) => {}
                Err(KafkaError::Interrupted) => return Err(KafkaError::Interrupted),
                Err(error) => self.trouble(&error)?,
            }
            outcome = match self.gather() {
                Gathered::Records => self.round(),
                Gathered::Idle => self.connect(),
                Gathered::Finished => return Ok(()),
            };
        }
    }

    /// Takes what is in the channel, up to the bound; waits for a first record only when nothing is in hand.
    fn gather(&mut self) -> Gathered {
        if !self.has_work() {
            if self.closing.is_triggered() && self.inbox.is_empty() {
                return Gathered::Finished;
            }
            let received = if self.closing.is_triggered() {
                self.inbox.recv_timeout(Duration::ZERO)
            } else {
                select! {
                    recv(self.inbox) -> message => message.map_err(|_| RecvTimeoutError::Disconnected),
                    recv(self.closing.triggered()) -> _ => return self.gather(),
                    default(IDLE_CHECK) => Err(RecvTimeoutError::Timeout),
                }
            };
            match received {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => return Gathered::Idle,
                // The handle is gone, and so are all senders.
                Err(RecvTimeoutError::Disconnected) => return Gathered::Finished,
            }
        }
        let mut held = self.held_bytes();
        while held < self.options.request_bytes {
            let Ok(message) = self.inbox.try_recv() else { break };
            held += message.record.size();
            self.take(message);
        }
        Gathered::Records
    }

    fn held_bytes(&self) -> usize {
        self.unplaced_bytes + self.lanes.values().map(Lane::bytes).sum::<usize>()
    }

    fn take(&mut self, message: Message<T>) {
        self.unplaced_bytes += message.record.size();
        self.unplaced.push_back(message);
    }

    fn has_work(&self) -> bool {
        !self.unplaced.is_empty() || self.lanes.values().any(Lane::has_work)
    }

    /// Sends what can be sent and waits for an answer; whether one came. The first failure is the round's; the others have been tried
    /// all the same.
    fn round(&mut self) -> Result<bool> {
        self.connect_first_time()?;
        let mut trouble = self.refresh_when_old().err();
        note(&mut trouble, self.place());
        self.clear_doubts(&mut trouble)?;
        let plan = self.compose(&mut trouble);
        self.send(plan, &mut trouble)?;
        let answered = self.await_answers(&mut trouble)?;
        match trouble {
            Some(error) => Err(error),
            None => Ok(answered),
        }
    }

    fn connect_first_time(&mut self) -> Result<Identity> {
        match self.identity {
            Some(identity) => Ok(identity),
            None => {
                let identity = self.new_identity()?;
                self.identity = Some(identity);
                Ok(identity)
            }
        }
    }

    /// A producer id (InitProducerId v3, KIP-98 and KIP-360). A fresh cluster first answers 14 or 15.
    fn new_identity(&mut self) -> Result<Identity> {
        // The codec's default transactional id is the empty one, which is refused; null means idempotent only.
        let request = InitProducerIdRequest::default().with_transactional_id(None).with_transaction_timeout_ms(0);
        let response = self.pool.cluster().ask(3, &request)?;
        ErrorCode(response.error_code).check("InitProducerId", None)?;
        Ok(Identity { id: response.producer_id.0, epoch: response.producer_epoch })
    }

    /// Keeps an idle producer connected: a connection that the broker closed is replaced, so that `is_ready` tells the truth.
    fn connect(&mut self) -> Result<bool> {
        self.connect_first_time()?;
        if !self.pool.any_alive() {
            let cluster = self.pool.cluster();
            cluster.refresh(&[])?;
            if let Some(node) = cluster.any_node() {
                self.pool.get(node)?;
            }
        }
        Ok(true)
    }

    fn refresh_when_old(&mut self) -> Result<()> {
        if self.topics_since.elapsed() < METADATA_AGE {
            return Ok(());
        }
        self.refresh()
    }

    fn refresh(&mut self) -> Result<()> {
        let names: Vec<Arc<str>> = self.topics.drain().map(|(name, _)| name).collect();
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        self.topics_since = Instant::now();
        self.pool.cluster().refresh(&names)
    }

    /// Gives every record its partition. What has no known topic stays where it is.
    fn place(&mut self) -> Result<()> {
        let Some(identity) = self.identity else { return Ok(()) };
        let mut failed: Option<(Arc<str>, KafkaError)> = None;
        for message in std::mem::take(&mut self.unplaced) {
            let topic = &message.record.topic;
            let count = match &failed {
                Some((name, _)) if name == topic => None,
                _ => match self.partition_count(topic) {
                    Ok(count) => Some(count),
                    Err(error) => {
                        failed = Some((Arc::clone(topic), error));
                        None
                    }
                },
            };
            let Some(count) = count else {
                self.unplaced.push_back(message);
                continue;
            };
            self.unplaced_bytes -= message.record.size();
            let partition = partitioner::partition(message.record.key.as_deref(), count);
            let key = (Arc::clone(topic), partition);
            self.lanes.entry(key).or_insert_with(|| Lane::new(partition, identity)).push(message);
        }
        failed.map_or(Ok(()), |(_, error)| Err(error))
    }

    fn partition_count(&mut self, topic: &Arc<str>) -> Result<i32> {
        if let Some(count) = self.topics.get(topic) {
            return Ok(*count);
        }
        let partitions = self.pool.cluster().topic(topic)?.partitions.len();
        let count = i32::try_from(partitions).unwrap_or(i32::MAX);
        self.topics.insert(Arc::clone(topic), count);
        Ok(count)
    }

    /// Makes the batches and says which leader gets which; leaders that still owe an answer get none. Connects first: `about_to_send` shall mean it.
    fn compose(&mut self, trouble: &mut Option<KafkaError>) -> BTreeMap<i32, Vec<LaneKey>> {
        let mut plan: BTreeMap<i32, Vec<LaneKey>> = BTreeMap::new();
        let mut refused = Vec::new();
        let now = SystemTime::now();
        for (key, lane) in self.lanes.iter_mut().filter(|(_, lane)| lane.can_send()) {
            let (topic, partition) = (&*key.0, key.1);
            let connected = self.pool.cluster().leader(topic, partition).and_then(|leader| {
                if self.in_flight.contains_key(&leader) {
                    return Ok(None);
                }
                learn_end(&mut self.questions, topic, partition, lane)?;
                self.pool.get(leader)?;
                Ok(Some(leader))
            });
            let leader = match connected {
                Ok(Some(leader)) => leader,
                Ok(None) => continue,
                Err(error) => {
                    trouble.get_or_insert(error);
                    continue;
                }
            };
            let events = &mut self.events;
            refused.extend(lane.compose(self.options.batch_bytes, now, |token| events.about_to_send(token)));
            plan.entry(leader).or_default().push(key.clone());
        }
        self.settle(refused);
        plan
    }

    /// Sends one request to each leader. Only an interrupt or a fault of ours is an error.
    fn send(&mut self, plan: BTreeMap<i32, Vec<LaneKey>>, trouble: &mut Option<KafkaError>) -> Result<()> {
        let timeout = self.pool.cluster().options().request_timeout;
        for (node, keys) in plan {
            let mut batches = Vec::new();
            for key in keys {
                if let Some(bytes) = self.lanes.get_mut(&key).and_then(Lane::outgoing) {
                    batches.push((key, bytes));
                }
            }
            if batches.is_empty() {
                continue;
            }
            let keys: Vec<LaneKey> = batches.iter().map(|(key, _)| key.clone()).collect();
            let request = produce_request(batches, timeout);
            match self.pool.get(node).and_then(|connection| connection.send(VERSION, &request)) {
                Ok(correlation) => {
                    self.in_flight.insert(node, InFlight { correlation, deadline: Instant::now() + timeout, keys });
                }
                Err(error @ (KafkaError::Unencodable { .. } | KafkaError::Interrupted)) => return Err(error),
                Err(error) => self.no_answer(node, &keys, error, trouble),
            }
        }
        Ok(())
    }

    /// Waits until a leader has answered or failed, or there is something to send to another one. Whether any answered.
    fn await_answers(&mut self, trouble: &mut Option<KafkaError>) -> Result<bool> {
        // With one broker there is nothing else to do meanwhile: what comes is sent when it has answered.
        let alone = self.pool.cluster().broker_count() <= 1;
        let mut answered = false;
        while !self.in_flight.is_empty() && !answered && trouble.is_none() {
            let nodes: Vec<i32> = self.in_flight.keys().copied().collect();
            for node in nodes {
                answered |= self.receive(node, if alone { Duration::MAX } else { TURN }, trouble)?;
            }
            if !self.inbox.is_empty() && self.held_bytes() < self.options.request_bytes {
                break;
            }
        }
        Ok(answered)
    }

    /// Looks for one leader's answer, until its deadline at most, and applies it. Whether it came.
    fn receive(&mut self, node: i32, wait: Duration, trouble: &mut Option<KafkaError>) -> Result<bool> {
        let Some(InFlight { correlation, deadline, keys }) = self.in_flight.remove(&node) else { return Ok(false) };
        let timeout = self.pool.cluster().options().request_timeout;
        let left = deadline.saturating_duration_since(Instant::now());
        let answer =
            self.pool.get(node).and_then(|connection| match connection.receive(correlation, left.min(wait))? {
                Some(mut body) => connection.decode::<ProduceRequest>(&mut body, VERSION).map(Some),
                None if Instant::now() < deadline => Ok(None),
                None => Err(KafkaError::Timeout {
                    request: "Produce",
                    broker: connection.broker().clone(),
                    waited: timeout,
                }),
            });
        let answered = match answer {
            Ok(Some(response)) => {
                self.apply(response, &keys, trouble);
                true
            }
            Ok(None) => {
                self.in_flight.insert(node, InFlight { correlation, deadline, keys });
                false
            }
            Err(error) => {
                self.pool.cluster().blame(&error);
                self.no_answer(node, &keys, error, trouble);
                false
            }
        };
        self.pool.cluster().options().interrupter.check()?;
        Ok(answered)
    }

    /// Whatever was sent may have arrived: it goes out again as it is, on a new connection.
    fn no_answer(&mut self, node: i32, keys: &[LaneKey], error: KafkaError, trouble: &mut Option<KafkaError>) {
        for key in keys {
            if let Some(lane) = self.lanes.get_mut(key) {
                lane.unanswered();
            }
        }
        self.pool.drop_node(node);
        trouble.get_or_insert(error);
    }

    /// Each partition of an answer stands for itself: one can fail while another succeeds.
    fn apply(&mut self, response: ProduceResponse, keys: &[LaneKey], trouble: &mut Option<KafkaError>) {
        let mut deliveries = Vec::new();
        let mut silent: Vec<&LaneKey> = keys.iter().collect();
        for topic in &response.responses {
            for answer in &topic.partition_responses {
                let key = silent.iter().position(|key| *key.0 == **topic.name && key.1 == answer.index);
                let Some(key) = key.map(|at| silent.swap_remove(at)) else { continue };
                let Some(lane) = self.lanes.get_mut(key) else { continue };
                let message = answer.error_message.as_ref().map(|message| message.as_str());
                let settled = lane.answered(ErrorCode(answer.error_code), answer.base_offset, message);
                deliveries.extend(settled.deliveries);
                if let Some(code) = settled.again {
                    trouble.get_or_insert(KafkaError::broker("Produce", code, message));
                }
            }
        }
        for key in silent {
            // A partition the broker says nothing about.
            if let Some(lane) = self.lanes.get_mut(key) {
                lane.unanswered();
            }
            trouble.get_or_insert(KafkaError::broker(
                "Produce",
                ErrorCode::UNKNOWN_SERVER_ERROR,
                Some("no answer for a partition"),
            ));
        }
        self.settle(deliveries);
    }

    /// Looks the batches in doubt up in the log. Found: delivered. Not found: again under a new id.
    fn clear_doubts(&mut self, trouble: &mut Option<KafkaError>) -> Result<()> {
        let doubts: Vec<(LaneKey, BatchIdentity, i64)> = self
            .lanes
            .iter()
            .filter_map(|(key, lane)| Some((key.clone(), lane.in_doubt()?, lane.search_from().unwrap_or(0))))
            .collect();
        for (key, identity, from) in doubts {
            let found = search(&mut self.questions, &key, identity, from);
            let cleared = found.and_then(|found| Ok((found, self.new_identity()?)));
            match cleared {
                Ok((found, fresh)) => {
                    let at = found.map_or_else(|| "is not".to_owned(), |offset| format!("is at offset {offset}"));
                    log::warn!(
                        "{}: {}-{}: a batch of unknown outcome {at} in the log; new producer id",
                        self.name,
                        key.0,
                        key.1
                    );
                    let Some(lane) = self.lanes.get_mut(&key) else { continue };
                    let deliveries = match found {
                        Some(offset) => lane.found(offset, fresh),
                        None => {
                            lane.not_found(fresh);
                            Vec::new()
                        }
                    };
                    self.settle(deliveries);
                }
                Err(KafkaError::Interrupted) => return Err(KafkaError::Interrupted),
                Err(error) => {
                    trouble.get_or_insert(error);
                }
            }
        }
        Ok(())
    }

    fn settle(&mut self, deliveries: Vec<Delivery<T>>) {
        if !deliveries.is_empty() {
            self.progress = true;
            self.events.settled(deliveries);
        }
    }

    fn all_is_well(&mut self) {
        self.backoff.reset();
        if let Some(since) = self.trouble_since.take()
            && std::mem::take(&mut self.told)
        {
            log::info!("{}: Kafka answers again after {:.1?}", self.name, since.elapsed());
        }
        self.shared.ready.store(true, Ordering::Relaxed);
    }

    /// Says once that something is wrong, asks who leads, waits a little. What failed is repeated in the next round.
    fn trouble(&mut self, error: &KafkaError) -> Result<()> {
        log::debug!("{}: {error}", self.name);
        let since = *self.trouble_since.get_or_insert_with(Instant::now);
        let away = error.retry() == Retry::Reconnect;
        if away || since.elapsed() > PATIENCE {
            self.shared.ready.store(false, Ordering::Relaxed);
            if !std::mem::replace(&mut self.told, true) {
                log::warn!("{}: {error}; repeating", self.name);
            }
        }
        // One partition's trouble must not slow down those that are well.
        if std::mem::take(&mut self.progress) {
            self.backoff.reset();
        }
        self.pool.cluster().options().interrupter.sleep(self.backoff.pause())?;
        if matches!(error.retry(), Retry::Reconnect | Retry::RefreshMetadata) {
            // Its failing is the next round's trouble.
            if let Err(KafkaError::Interrupted) = self.refresh() {
                return Err(KafkaError::Interrupted);
            }
        }
        Ok(())
    }

    /// The end: nothing more is taken, and everything that is left is settled.
    fn settle_rest(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        let mut rest: Vec<Delivery<T>> =
            std::mem::take(&mut self.lanes).into_values().flat_map(Lane::abandon).collect();
        let mut unsent = std::mem::take(&mut self.unplaced);
        loop {
            // Senders see the flag, but some may still be inside: they are let out by making room.
            let nobody_inside = self.shared.inside.load(Ordering::SeqCst) == 0;
            match self.inbox.recv_timeout(if nobody_inside { Duration::ZERO } else { Duration::from_millis(1) }) {
                Ok(message) => unsent.push_back(message),
                Err(RecvTimeoutError::Timeout) if !nobody_inside => {}
                Err(_) => break,
            }
        }
        rest.extend(
            unsent.into_iter().map(|message| Delivery { token: message.token, outcome: Err(DeliveryError::Unsent) }),
        );
        self.settle(rest);
    }
}

fn note(trouble: &mut Option<KafkaError>, outcome: Result<()>) {
    if let Err(error) = outcome {
        trouble.get_or_insert(error);
    }
}

/// A lane on its first way out learns where the log ends: everything it writes comes behind.
fn learn_end<T>(questions: &mut Pool, topic: &str, partition: i32, lane: &mut Lane<T>) -> Result<()> {
    if lane.search_from().is_none() {
        let ends = offsets::list(questions, topic, [partition], Position::End)?;
        lane.set_search_from(ends.get(&partition).copied().unwrap_or(0));
    }
    Ok(())
}

/// Produce v8 with acks=all. The lanes come sorted, so those of one topic stand together.
fn produce_request(batches: Vec<(LaneKey, bytes::Bytes)>, timeout: Duration) -> ProduceRequest {
    let mut topics: Vec<TopicProduceData> = Vec::new();
    for ((topic, partition), bytes) in batches {
        let data = PartitionProduceData::default().with_index(partition).with_records(Some(bytes));
        match topics.last_mut() {
            Some(last) if **last.name == *topic => last.partition_data.push(data),
            _ => topics.push(TopicProduceData::default().with_name(topic_name(&topic)).with_partition_data(vec![data])),
        }
    }
    // The broker waits for its replicas a little less than we wait for the broker.
    let timeout_ms = i32::try_from((timeout * 4 / 5).as_millis()).unwrap_or(i32::MAX);
    ProduceRequest::default()
        .with_transactional_id(None)
        .with_acks(-1)
        .with_timeout_ms(timeout_ms)
        .with_topic_data(topics)
}

/// Looks for a batch of ours in the log from `from` to its present end, by the producer's mark on it.
fn search(pool: &mut Pool, (topic, partition): &LaneKey, wanted: BatchIdentity, from: i64) -> Result<Option<i64>> {
    let bound = |pool: &mut Pool, position| -> Result<i64> {
        Ok(offsets::list(pool, topic, [*partition], position)?.get(partition).copied().unwrap_or(0))
    };
    let end = bound(pool, Position::End)?;
    let start = bound(pool, Position::Start)?;
    // A log that ends before our last acknowledged record was cut or created again: all of it is searched.
    let mut next = if (start..=end).contains(&from) { from } else { start };
    let leader = pool.cluster().leader(topic, *partition)?;
    let limits = Limits { max_wait: Duration::ZERO, max_bytes: SEARCH_BYTES, min_bytes: 1 };
    while next < end {
        let fetched = fetch_one(pool, leader, topic, (*partition, next), limits)?;
        fetched.code.check("Fetch", Some(topic))?;
        let before = next;
        for batch in records::batches(&fetched.bytes) {
            if batch.identity() == wanted {
                return Ok(Some(batch.base_offset()));
            }
            next = next.max(batch.last_offset().saturating_add(1));
        }
        if next == before {
            return Err(KafkaError::broker(
                "Fetch",
                ErrorCode::CORRUPT_MESSAGE,
                Some("no whole batch where the log has records"),
            ));
        }
    }
    Ok(None)
}
