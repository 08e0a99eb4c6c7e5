//! The cluster as this client knows it: brokers, topics and their leaders, coordinators of groups.
//!
//! A shared cache and the way to a connection; it holds no open connections of its users and starts no thread. What it
//! knows can be stale at any time: whoever is told so by a broker ([`Retry::RefreshMetadata`](super::error::Retry)), or loses a connection,
//! calls [`Cluster::refresh`] or [`Cluster::forget`] and asks again. Called by producer, reader, share consumer and admin.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{FindCoordinatorRequest, MetadataRequest, MetadataResponse, TopicName};
use kafka_protocol::protocol::{Request, StrBytes};
use parking_lot::Mutex;
use uuid::Uuid;

use super::address::BrokerAddress;
use super::client_options::ClientOptions;
use super::connection::Connection;
use super::error::{ErrorCode, KafkaError, Result, Retry};
use super::interrupt::Interrupter;

/// One topic of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its id (KIP-516): a topic deleted and created again has another one.
    pub id: Uuid,
    /// Whether it is one of Kafka's own, such as `__consumer_offsets`.
    pub is_internal: bool,
    /// Its partitions in the order of their indexes.
    pub partitions: Vec<Partition>,
}

/// One partition of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 0.
    pub index: i32,
    /// Node id of the broker that leads it, -1 when none does.
    pub leader: i32,
    /// How often its leader has changed (KIP-320); -1 when the broker does not know. A higher epoch is newer knowledge,
    /// and locks of a share session do not survive the change.
    pub leader_epoch: i32,
}

/// A partition that a leader was sent a request about, and the leader's epoch as it was known at that time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Led<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    pub(super) epoch: i32,
}

/// Handle on the shared knowledge; clones share it.
#[derive(Clone, Debug)]
pub struct Cluster {
    options: Arc<ClientOptions>,
    known: Arc<Mutex<Known>>,
    /// Connection left over from the last question to any broker, so that questions in a row share one. It is taken out while
    /// it is used: nobody holds the lock during I/O.
    spare: Arc<Mutex<Option<Connection>>>,
}

#[derive(Debug, Default)]
struct Known {
    brokers: BTreeMap<i32, BrokerAddress>,
    topics: HashMap<String, Topic>,
    /// When a broker last told of each of them.
    told_at: HashMap<String, Instant>,
    coordinators: HashMap<String, i32>,
    /// Brokers that answered neither a request nor an attempt to connect, and since when. [`Cluster::forget`] keeps
    /// them.
    silent: HashMap<BrokerAddress, Instant>,
}

/// How long a broker that did not answer is asked last.
const SILENCE: Duration = Duration::from_secs(10);
/// How often another broker is asked while a leader owes an answer.
pub(super) const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// A question that goes round several brokers gives each at least this long.
const SHORTEST_PATIENCE: Duration = Duration::from_millis(250);

impl Cluster {
    /// A cluster of which nothing is known but the bootstrap list. Opens no connection.
    pub fn new(options: ClientOptions) -> Self {
        Self { options: Arc::new(options), known: Arc::default(), spare: Arc::default() }
    }

    /// The same knowledge for a part of the client that is interrupted on its own. It shares no connection with the rest.
    #[must_use]
    pub fn scoped(&self, interrupter: Interrupter) -> Self {
        let options = ClientOptions { interrupter, ..ClientOptions::clone(&self.options) };
        Self { options: Arc::new(options), known: Arc::clone(&self.known), spare: Arc::default() }
    }

    /// The client's options.
    pub fn options(&self) -> &ClientOptions {
        &self.options
    }

    /// A connection to the first broker that takes one, of those known from metadata and the bootstrap list, in random order. A
    /// frozen broker takes connections and answers nothing: the ones that were silent lately come last.
    pub fn connect_any(&self) -> Result<Connection> {
        let candidates = self.candidates();
        let mut last = None;
        for address in &candidates {
            match self.open(address) {
                Ok(connection) => return Ok(connection),
                Err(KafkaError::Interrupted) => return Err(KafkaError::Interrupted),
                Err(error) => last = Some(error),
            }
        }
        Err(match last {
            Some(last) => KafkaError::NoBroker { tried: listed(&candidates), last: Box::new(last) },
            None => KafkaError::Unsupported("no broker address is configured".into()),
        })
    }

    fn open(&self, address: &BrokerAddress) -> Result<Connection> {
        Connection::open(address, self.options()).inspect_err(|error| self.blame(error))
    }

    fn candidates(&self) -> Vec<BrokerAddress> {
        let mut known = self.known.lock();
        let mut candidates: Vec<BrokerAddress> = known.brokers.values().cloned().collect();
        for address in &self.options().bootstrap {
            if !candidates.contains(address) {
                candidates.push(address.clone());
            }
        }
        fastrand::shuffle(&mut candidates);
        known.silent_last(&mut candidates);
        candidates
    }

    /// Remembers a broker that did not answer, when `error` says so: for 10 s the others are asked first. A user that
    /// waits for answers on connections of its own, such as a share session, reports its time-outs here; other errors
    /// change nothing.
    pub fn blame(&self, error: &KafkaError) {
        let broker = match error {
            KafkaError::Timeout { broker, .. } => broker,
            // A host that is gone, a firewall that drops: each attempt to connect costs the whole connect timeout.
            KafkaError::Io { broker, source, .. } if source.kind() == ErrorKind::TimedOut => broker,
            _ => return,
        };
        self.known.lock().silent.insert(broker.clone(), Instant::now());
    }

    /// A connection to the broker with this node id.
    pub fn connect(&self, node: i32) -> Result<Connection> {
        let address = match self.address(node) {
            Some(address) => address,
            None => {
                self.refresh(&[])?;
                self.address(node).ok_or_else(|| {
                    KafkaError::broker("Metadata", ErrorCode::LEADER_NOT_AVAILABLE, Some("unknown node"))
                })?
            }
        };
        self.open(&address)
    }

    fn address(&self, node: i32) -> Option<BrokerAddress> {
        self.known.lock().brokers.get(&node).cloned()
    }

    /// Asks any broker. A connection that was idle may be dead without our knowing: one that fails then is replaced once,
    /// so the request must be one that can be repeated.
    pub fn ask<R: Request>(&self, version: i16, request: &R) -> Result<R::Response> {
        self.ask_with(|connection| connection.call(version, request, self.options().request_timeout))
    }

    /// Runs `question` on a connection to any broker, like [`ask`](Self::ask).
    pub fn ask_with<T>(&self, question: impl Fn(&mut Connection) -> Result<T>) -> Result<T> {
        let spare = self.spare.lock().take();
        if let Some(mut connection) = spare.filter(|spare| !self.is_silent(spare.broker())) {
            match question(&mut connection) {
                // Not for a time-out: that broker had it, and the caller has waited long enough.
                Err(error) if error.retry() == Retry::Reconnect && !matches!(error, KafkaError::Timeout { .. }) => {}
                answer => return self.answered(connection, answer),
            }
        }
        let mut connection = self.connect_any()?;
        let answer = question(&mut connection);
        self.answered(connection, answer)
    }

    fn answered<T>(&self, connection: Connection, answer: Result<T>) -> Result<T> {
        match &answer {
            Ok(_) => drop(self.known.lock().silent.remove(connection.broker())),
            Err(error) => self.blame(error),
        }
        self.put_back(connection);
        answer
    }

    fn is_silent(&self, address: &BrokerAddress) -> bool {
        self.known.lock().silent.get(address).is_some_and(|since| since.elapsed() < SILENCE)
    }

    fn put_back(&self, connection: Connection) {
        if !connection.is_broken() {
            // The one replaced, if another thread was faster, is closed outside the lock.
            let replaced = self.spare.lock().replace(connection);
            drop(replaced);
        }
    }

    /// The topic, from the cache or from the cluster. A topic that does not exist is error 3; it is never created by asking.
    pub fn topic(&self, name: &str) -> Result<Topic> {
        let cached = self.known.lock().topics.get(name).cloned();
        match cached {
            Some(topic) => Ok(topic),
            None => {
                self.refresh(&[name])?;
                let topic = self.known.lock().topics.get(name).cloned();
                topic.ok_or_else(|| KafkaError::broker("Metadata", ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, Some(name)))
            }
        }
    }

    /// Asks the cluster for its brokers and for these topics (Metadata v12, KIP-516; `allow_auto_topic_creation` is false).
    /// The first topic with an error makes the error; the others are known afterwards.
    ///
    /// A partition without a leader is no error of its topic: it is known with leader -1.
    ///
    /// # Errors
    /// What kept the question from being answered, or the first topic's error.
    pub fn refresh(&self, topics: &[&str]) -> Result<()> {
        let response = self.ask(METADATA_VERSION, &metadata_of(topics))?;
        self.learn(response)
    }

    /// The same, asked of any broker but `not`, a node that does not answer: is it still the leader? All other brokers
    /// are asked in turn within `limit`, each for its share of what is left (at least 250 ms), until one answers.
    ///
    /// # Errors
    /// As [`refresh`](Self::refresh); `NoBroker` when none of them answered, error 5 when no other broker is known.
    pub fn refresh_from_another(&self, not: i32, topics: &[&str], limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let candidates = self.others(not);
        let mut last =
            KafkaError::broker("Metadata", ErrorCode::LEADER_NOT_AVAILABLE, Some("no other broker is known"));
        for (tried, address) in candidates.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let share = left / u32::try_from(candidates.len() - tried).unwrap_or(u32::MAX);
            match self.ask_at(address, &metadata_of(topics), share.max(SHORTEST_PATIENCE)) {
                Ok(response) => return self.learn(response),
                Err(KafkaError::Interrupted) => return Err(KafkaError::Interrupted),
                Err(error) => last = KafkaError::NoBroker { tried: listed(&candidates), last: Box::new(error) },
            }
        }
        Err(last)
    }

    /// While the leader `node` owes an answer (`silence`) to a request about `led`: whether one of these partitions has
    /// another leader, or a newer epoch of this one, so that the answer need not be waited for. If none is known to,
    /// another broker is asked, which takes [`WATCH_INTERVAL`] at most.
    pub(super) fn leads_elsewhere(&self, node: i32, led: &[Led<'_>], silence: &KafkaError) -> bool {
        let has_moved = |led: &Led<'_>| {
            let now = self.partition(led.topic, led.partition).filter(|partition| partition.leader >= 0);
            // Where no epoch was known none is newer.
            now.is_some_and(|now| now.leader != node || (led.epoch >= 0 && now.leader_epoch > led.epoch))
        };
        let moved = led.iter().any(has_moved);
        if !moved && self.broker_count() <= 1 {
            return false;
        }
        self.blame(silence);
        let topics: BTreeSet<&str> = led.iter().map(|led| led.topic).collect();
        let topics: Vec<&str> = topics.into_iter().collect();
        // Where no other broker tells, the answer is waited for.
        let told = || self.refresh_from_another(node, &topics, WATCH_INTERVAL).is_ok();
        moved || (told() && led.iter().any(has_moved))
    }

    /// The partition as it was told last; asks nothing.
    fn partition(&self, topic: &str, index: i32) -> Option<Partition> {
        let known = self.known.lock();
        known.topics.get(topic)?.partitions.iter().find(|partition| partition.index == index).copied()
    }

    /// The epoch of the partition's leader as it was told last, -1 when it is not known; asks nothing.
    pub(super) fn epoch(&self, topic: &str, partition: i32) -> i32 {
        self.partition(topic, partition).map_or(-1, |known| known.leader_epoch)
    }

    /// The brokers that are not the node `not`: first the nodes known from metadata, then the bootstrap list, since an
    /// address of that list can be another name of the same node.
    fn others(&self, not: i32) -> Vec<BrokerAddress> {
        let mut known = self.known.lock();
        let silent = known.brokers.get(&not).cloned();
        let nodes = known.brokers.iter().filter(|(node, _)| **node != not).map(|(_, address)| address.clone());
        let mut others: Vec<BrokerAddress> = nodes.collect();
        fastrand::shuffle(&mut others);
        let strangers = self.options().bootstrap.iter().filter(|address| Some(*address) != silent.as_ref());
        let strangers: Vec<BrokerAddress> = strangers.filter(|address| !others.contains(address)).cloned().collect();
        others.extend(strangers);
        known.silent_last(&mut others);
        others
    }

    /// One question to one broker, on the spare connection if it leads there.
    fn ask_at(
        &self,
        address: &BrokerAddress,
        request: &MetadataRequest,
        patience: Duration,
    ) -> Result<MetadataResponse> {
        let deadline = Instant::now() + patience;
        let mut spare = self.spare.lock();
        let held = spare.take_if(|connection| connection.broker() == address);
        drop(spare);
        if let Some(mut connection) = held {
            match connection.call(METADATA_VERSION, request, patience) {
                // It died while nothing was asked.
                Err(error) if error.retry() == Retry::Reconnect && !matches!(error, KafkaError::Timeout { .. }) => {}
                answer => return self.answered(connection, answer),
            }
        }
        let mut options = ClientOptions::clone(&self.options);
        options.connect_timeout = options.connect_timeout.min(patience);
        let mut connection = Connection::open(address, &options).inspect_err(|error| self.blame(error))?;
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = connection.call(METADATA_VERSION, request, left);
        self.answered(connection, answer)
    }

    fn learn(&self, response: MetadataResponse) -> Result<()> {
        let brokers = response.brokers.iter().filter_map(|broker| {
            let port = u16::try_from(broker.port).ok()?;
            Some((broker.node_id.0, BrokerAddress::new(broker.host.as_str(), port)))
        });
        let mut outcome = Ok(());
        let mut known = self.known.lock();
        known.brokers = brokers.collect();
        for topic in &response.topics {
            let Some(name) = topic.name.as_ref().map(|name| name.as_str()) else { continue };
            match ErrorCode(topic.error_code).check("Metadata", Some(name)) {
                Ok(()) => {
                    let topic = topic_of(name, topic, known.topics.get(name));
                    known.topics.insert(name.to_owned(), topic);
                    known.told_at.insert(name.to_owned(), Instant::now());
                }
                Err(error) => {
                    known.topics.remove(name);
                    outcome = outcome.and(Err(error));
                }
            }
        }
        outcome
    }

    /// How long ago a broker told of the topic, whatever part of this client asked; `None` when it is not known.
    pub(super) fn topic_age(&self, name: &str) -> Option<Duration> {
        let known = self.known.lock();
        known.topics.get(name).and_then(|_| known.told_at.get(name)).map(Instant::elapsed)
    }

    /// Node id of the partition's leader; error 5 when it has none, error 3 when there is no such partition.
    pub fn leader(&self, topic: &str, partition: i32) -> Result<i32> {
        if !self.known.lock().topics.contains_key(topic) {
            self.refresh(&[topic])?;
        }
        let known = self.known.lock();
        let partitions = known.topics.get(topic).map_or(&[][..], |topic| &topic.partitions);
        let missing = match partitions.iter().find(|known| known.index == partition) {
            Some(known) if known.leader >= 0 => return Ok(known.leader),
            Some(_) => ErrorCode::LEADER_NOT_AVAILABLE,
            None => ErrorCode::UNKNOWN_TOPIC_OR_PARTITION,
        };
        Err(KafkaError::broker("Metadata", missing, Some(&format!("{topic}-{partition}"))))
    }

    /// Brokers known from metadata.
    pub(super) fn broker_count(&self) -> usize {
        self.known.lock().brokers.len()
    }

    /// Node id of any broker known from metadata.
    pub(super) fn any_node(&self) -> Option<i32> {
        self.known.lock().brokers.keys().next().copied()
    }

    /// Node id of the broker that coordinates the group (FindCoordinator v3, key type 0), from the cache or from the cluster.
    /// Share groups use the same coordinator as consumer groups.
    pub fn group_coordinator(&self, group: &str) -> Result<i32> {
        let cached = self.known.lock().coordinators.get(group).copied();
        if let Some(node) = cached {
            return Ok(node);
        }
        let request = FindCoordinatorRequest::default().with_key(str_bytes(group)).with_key_type(0);
        let response = self.ask(3, &request)?;
        let message = response.error_message.as_ref().map(|text| text.as_str());
        ErrorCode(response.error_code).check("FindCoordinator", message)?;
        let port = u16::try_from(response.port)
            .map_err(|_| KafkaError::broker("FindCoordinator", ErrorCode::COORDINATOR_NOT_AVAILABLE, message))?;
        let node = response.node_id.0;
        let mut known = self.known.lock();
        known.brokers.insert(node, BrokerAddress::new(response.host.as_str(), port));
        known.coordinators.insert(group.to_owned(), node);
        Ok(node)
    }

    /// Forgets the group's coordinator: the next question asks the cluster.
    pub fn forget_coordinator(&self, group: &str) {
        self.known.lock().coordinators.remove(group);
    }

    /// Forgets one topic: the next question asks the cluster.
    pub fn forget_topic(&self, name: &str) {
        self.known.lock().topics.remove(name);
    }

    /// Forgets everything but the bootstrap list and the brokers that do not answer: the next question must not go to
    /// one of those first.
    pub fn forget(&self) {
        let mut known = self.known.lock();
        let silent = std::mem::take(&mut known.silent);
        *known = Known { silent, ..Known::default() };
    }
}

impl Known {
    /// Moves the brokers that did not answer lately to the end, and keeps the order otherwise.
    fn silent_last(&mut self, candidates: &mut [BrokerAddress]) {
        self.silent.retain(|_, since| since.elapsed() < SILENCE);
        candidates.sort_by_key(|address| self.silent.contains_key(address));
    }
}

/// Metadata v12: topics by name, their ids and the epochs of their leaders.
const METADATA_VERSION: i16 = 12;

fn metadata_of(topics: &[&str]) -> MetadataRequest {
    let wanted = topics.iter().map(|name| MetadataRequestTopic::default().with_name(Some(topic_name(name))));
    MetadataRequest::default().with_topics(Some(wanted.collect())).with_allow_auto_topic_creation(false)
}

fn listed(addresses: &[BrokerAddress]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The topic as the answer says, but for partitions of which a newer leader is known: a node that was cut off or frozen
/// goes on naming the old one for a while.
fn topic_of(name: &str, answer: &MetadataResponseTopic, before: Option<&Topic>) -> Topic {
    let before = before.filter(|topic| topic.id == answer.topic_id).map_or(&[][..], |topic| &topic.partitions);
    let mut partitions: Vec<Partition> = answer
        .partitions
        .iter()
        .map(|partition| {
            let (index, leader) = (partition.partition_index, partition.leader_id.0);
            let told = Partition { index, leader, leader_epoch: partition.leader_epoch };
            let known = before.binary_search_by_key(&index, |known| known.index).ok().map(|at| before[at]);
            known.filter(|known| known.leader_epoch > told.leader_epoch && told.leader_epoch >= 0).unwrap_or(told)
        })
        .collect();
    partitions.sort_unstable_by_key(|partition| partition.index);
    Topic { name: name.to_owned(), id: answer.topic_id, is_internal: answer.is_internal, partitions }
}

/// A text in the codec's type.
pub(super) fn str_bytes(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// A topic's name in the codec's type.
pub(super) fn topic_name(name: &str) -> TopicName {
    TopicName(str_bytes(name))
}

#[cfg(test)]
mod tests;
