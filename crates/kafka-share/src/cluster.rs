//! This client's knowledge of the cluster: brokers, topics and their leaders, coordinators of groups.
//!
//! A shared cache that also opens connections; it holds no connection of its users and starts no thread. The cache can
//! be stale at any time. A caller that gets [`Retry::RefreshMetadata`](super::error::Retry) or loses a connection calls
//! [`Cluster::refresh`] or [`Cluster::forget`] and asks again. Called by producer, reader, share consumer and admin.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{FindCoordinatorRequest, MetadataRequest, MetadataResponse, TopicName};
use kafka_protocol::protocol::{Request, StrBytes};
use parking_lot::Mutex;

use super::address::BrokerAddress;
use super::client_options::ClientOptions;
use super::connection::Connection;
use super::error::{ErrorCode, KafkaError, Result, Retry};
use super::interrupt::Interrupter;

mod topic;

use topic::topic_of;
pub use topic::{Partition, Topic};

/// A partition in a request to its leader, with the leader epoch known when the request was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Led<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    pub(super) epoch: i32,
}

/// Handle to the cache; clones share it.
#[derive(Clone, Debug)]
pub struct Cluster {
    options: Arc<ClientOptions>,
    known: Arc<Mutex<Known>>,
    /// Connection left from the last request to any broker; the next request uses it. A thread takes it out before I/O,
    /// so no lock is held during I/O.
    spare: Arc<Mutex<Option<Connection>>>,
}

#[derive(Debug, Default)]
struct Known {
    brokers: BTreeMap<i32, BrokerAddress>,
    topics: HashMap<String, Topic>,
    /// When a broker last described each topic.
    told_at: HashMap<String, Instant>,
    coordinators: HashMap<String, i32>,
    /// Brokers that answered neither a request nor an attempt to connect, and since when. [`Cluster::forget`] keeps
    /// them.
    silent: HashMap<BrokerAddress, Instant>,
    /// See [`Cluster::insecurity`].
    insecurity: Option<String>,
}

/// How long a broker that did not answer is tried after the others.
const SILENCE: Duration = Duration::from_secs(10);
/// Interval at which another broker is asked while a leader owes a response.
pub(super) const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// Shortest time for each broker when a request goes to several brokers in turn.
const SHORTEST_PATIENCE: Duration = Duration::from_millis(250);

impl Cluster {
    /// Makes a cluster that knows only the bootstrap list. Opens no connection.
    pub fn new(options: ClientOptions) -> Self {
        Self { options: Arc::new(options), known: Arc::default(), spare: Arc::default() }
    }

    /// Returns a handle to the same cache with its own interrupter. It shares no connection with the other handles.
    #[must_use]
    pub fn scoped(&self, interrupter: Interrupter) -> Self {
        let options = ClientOptions { interrupter, ..ClientOptions::clone(&self.options) };
        Self { options: Arc::new(options), known: Arc::clone(&self.known), spare: Arc::default() }
    }

    /// The client's options.
    pub fn options(&self) -> &ClientOptions {
        &self.options
    }

    /// Runs `question` on a new connection to any broker, tried in random order, out of metadata and the bootstrap list.
    /// Brokers that were silent lately come last, since a frozen broker takes connections and answers nothing. After a
    /// failure to connect, in TLS or in a login the next broker is asked: certificates and passwords are replaced at one
    /// broker after the other.
    ///
    /// # Errors
    /// `Security` if no connection can be secured, final if it is so at each broker; `NoBroker` if any other broker
    /// takes no connection; otherwise the question's.
    fn ask_any<T>(&self, question: impl Fn(&mut Connection) -> Result<T>) -> Result<T> {
        let candidates = self.candidates();
        let (mut unreachable, mut insecure) = (None, None);
        for address in &candidates {
            let mut connection = match self.open(address) {
                Ok(connection) => connection,
                Err(KafkaError::Interrupted) => return Err(KafkaError::Interrupted),
                Err(error @ KafkaError::Security { .. }) => {
                    insecure = Some(error);
                    continue;
                }
                Err(error) => {
                    unreachable = Some(error);
                    continue;
                }
            };
            let answer = question(&mut connection);
            match self.answered(connection, answer) {
                Err(error @ KafkaError::Security { .. }) => insecure = Some(error),
                answer => return answer,
            }
        }
        Err(match (unreachable, insecure) {
            (None, Some(insecure)) => insecure,
            (Some(unreachable), insecure) => {
                KafkaError::NoBroker { tried: listed(&candidates), last: Box::new(insecure.unwrap_or(unreachable)) }
            }
            (None, None) => KafkaError::Unsupported("no broker address is configured".into()),
        })
    }

    /// Why connections cannot be secured as this client and the brokers are configured; `None` once one could.
    #[must_use]
    pub fn insecurity(&self) -> Option<String> {
        self.known.lock().insecurity.clone()
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

    /// Marks a broker as silent if `error` is its time-out: for 10 s the others are tried first. Other errors change
    /// nothing. Users with connections of their own, such as share sessions, report their time-outs here.
    pub fn blame(&self, error: &KafkaError) {
        let broker = match error {
            KafkaError::Timeout { broker, .. } => broker,
            // Each attempt to connect to a host that is gone, or behind a firewall that drops, costs the whole connect
            // timeout.
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

    /// Sends the request to any broker. The request must be repeatable: if an idle connection turns out to be dead,
    /// another connection repeats the request once.
    pub fn ask<R: Request>(&self, version: i16, request: &R) -> Result<R::Response> {
        self.ask_with(|connection| connection.call(version, request, self.options().request_timeout))
    }

    /// Runs `question` on a connection to any broker, like [`ask`](Self::ask).
    pub fn ask_with<T>(&self, question: impl Fn(&mut Connection) -> Result<T>) -> Result<T> {
        let spare = self.spare.lock().take();
        if let Some(mut connection) = spare.filter(|spare| self.is_usable(spare)) {
            match question(&mut connection) {
                // A time-out is not repeated: the broker got the request, and the caller has waited long enough.
                Err(error) if error.retry() == Retry::Reconnect && !matches!(error, KafkaError::Timeout { .. }) => {}
                answer => return self.answered(connection, answer),
            }
        }
        self.ask_any(question)
    }

    fn answered<T>(&self, connection: Connection, answer: Result<T>) -> Result<T> {
        match &answer {
            Ok(_) => {
                let mut known = self.known.lock();
                known.silent.remove(connection.broker());
                known.insecurity = None;
            }
            Err(error @ KafkaError::Security { is_final: true, .. }) => {
                self.known.lock().insecurity = Some(error.to_string());
            }
            Err(error) => self.blame(error),
        }
        self.put_back(connection);
        answer
    }

    /// Whether the broker of a kept connection is not silent, and does not throttle it for longer than a response may
    /// take.
    fn is_usable(&self, connection: &Connection) -> bool {
        !self.is_silent(connection.broker()) && connection.muted_for() <= self.options().request_timeout
    }

    fn is_silent(&self, address: &BrokerAddress) -> bool {
        self.known.lock().silent.get(address).is_some_and(|since| since.elapsed() < SILENCE)
    }

    fn put_back(&self, connection: Connection) {
        if !connection.is_broken() {
            // Another thread may have put a connection back meanwhile; that one is closed outside the lock.
            let replaced = self.spare.lock().replace(connection);
            drop(replaced);
        }
    }

    /// Returns the topic, from the cache or from the cluster. A missing topic is error 3 and is never created by
    /// asking.
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

    /// Asks the cluster for its brokers and for these topics (Metadata v12, KIP-516; `allow_auto_topic_creation` is
    /// false). All topics without an error enter the cache.
    ///
    /// A partition without a leader is no error of its topic; its leader is -1.
    ///
    /// # Errors
    /// The error of the request, or of the first topic with an error.
    pub fn refresh(&self, topics: &[&str]) -> Result<()> {
        let response = self.ask(METADATA_VERSION, &metadata_of(topics))?;
        self.learn(response)
    }

    /// As [`refresh`](Self::refresh), for when the node `not` does not answer and may no longer lead. Asks all other
    /// brokers in turn within `limit`, until one answers. Each gets its share of the remaining time, at least 250 ms.
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

    /// Returns whether a partition in `led` has moved while `node` owes a response: to another leader, or to a newer
    /// epoch. The response is not worth waiting for then. `silence` is the error that marks the node as silent. If the
    /// cache shows no move, another broker is asked, for at most [`WATCH_INTERVAL`].
    pub(super) fn leads_elsewhere(&self, node: i32, led: &[Led<'_>], silence: &KafkaError) -> bool {
        let has_moved = |led: &Led<'_>| {
            let now = self.partition(led.topic, led.partition).filter(|partition| partition.leader >= 0);
            // Without a known epoch no epoch counts as newer.
            now.is_some_and(|now| now.leader != node || (led.epoch >= 0 && now.leader_epoch > led.epoch))
        };
        let moved = led.iter().any(has_moved);
        if !moved && self.broker_count() <= 1 {
            return false;
        }
        self.blame(silence);
        let topics: BTreeSet<&str> = led.iter().map(|led| led.topic).collect();
        let topics: Vec<&str> = topics.into_iter().collect();
        // If no other broker answers, the caller continues to wait.
        let told = || self.refresh_from_another(node, &topics, WATCH_INTERVAL).is_ok();
        moved || (told() && led.iter().any(has_moved))
    }

    /// Returns the partition from the cache.
    fn partition(&self, topic: &str, index: i32) -> Option<Partition> {
        let known = self.known.lock();
        known.topics.get(topic)?.partitions.iter().find(|partition| partition.index == index).copied()
    }

    /// Returns the leader epoch of the partition from the cache, -1 if unknown.
    pub(super) fn epoch(&self, topic: &str, partition: i32) -> i32 {
        self.partition(topic, partition).map_or(-1, |known| known.leader_epoch)
    }

    /// Returns the brokers other than the node `not`. Nodes known from metadata come first: an address of the bootstrap
    /// list can be another name of `not`.
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

    /// Sends one request to one broker, on the spare connection if it leads there and is not throttled.
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
        if let Some(mut connection) = held.filter(|held| held.muted_for().is_zero()) {
            match connection.call(METADATA_VERSION, request, patience) {
                // The connection died while it was idle.
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

    pub(super) fn learn(&self, response: MetadataResponse) -> Result<()> {
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

    /// Returns the time since a broker last described the topic to any part of this client; `None` if the topic is
    /// unknown.
    pub(super) fn topic_age(&self, name: &str) -> Option<Duration> {
        let known = self.known.lock();
        known.topics.get(name).and_then(|_| known.told_at.get(name)).map(Instant::elapsed)
    }

    /// Returns the node id of the partition's leader; error 5 without a leader, error 3 if the partition does not
    /// exist.
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

    /// Returns the node id of the group's coordinator (FindCoordinator v3, key type 0), from the cache or from the
    /// cluster. Share groups use the same coordinator as consumer groups.
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

    /// Forgets the group's coordinator: the next call asks the cluster.
    pub fn forget_coordinator(&self, group: &str) {
        self.known.lock().coordinators.remove(group);
    }

    /// Forgets one topic: the next call asks the cluster.
    pub fn forget_topic(&self, name: &str) {
        self.known.lock().topics.remove(name);
    }

    /// Forgets everything but the bootstrap list and the silent brokers, so that the next request does not go to a
    /// silent broker first.
    pub fn forget(&self) {
        let mut known = self.known.lock();
        let (silent, insecurity) = (std::mem::take(&mut known.silent), known.insecurity.take());
        *known = Known { silent, insecurity, ..Known::default() };
    }
}

impl Known {
    /// Moves silent brokers to the end; otherwise keeps the order.
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
