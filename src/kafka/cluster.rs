//! The cluster as this client knows it: brokers, topics and their leaders, coordinators of groups.
//!
//! A shared cache and the way to a connection; it holds no open connections of its users and starts no thread. What it
//! knows can be stale at any time: whoever is told so by a broker ([`Retry::RefreshMetadata`](super::error::Retry)), or loses a connection,
//! calls [`Cluster::refresh`] or [`Cluster::forget`] and asks again. Called by producer, reader, share consumer and admin.

use std::collections::{BTreeMap, HashMap};
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
use super::connection::{ClientOptions, Connection};
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
    /// How often its leader has changed (KIP-320); -1 when the broker does not know. A higher epoch is newer knowledge, and
    /// locks of a share session do not survive the change.
    pub leader_epoch: i32,
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
    coordinators: HashMap<String, i32>,
    /// Brokers that answered neither a request nor an attempt to connect, and since when. [`Cluster::forget`] keeps them.
    silent: HashMap<BrokerAddress, Instant>,
}

/// How long a broker that did not answer is asked last.
const SILENCE: Duration = Duration::from_secs(10);
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

    /// Remembers a broker that did not answer, when `error` says so: for 10 s the others are asked first. A user that waits for
    /// answers on connections of its own, such as a share session, reports its time-outs here; other errors change nothing.
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

    /// The same, asked of any broker but `not`, a node that does not answer: is it still the leader? All other brokers are asked
    /// in turn within `limit`, each for its share of what is left (at least 250 ms), until one answers.
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

    /// The brokers that are not the node `not`: first the nodes known from metadata, then the bootstrap list, since an address of
    /// that list can be another name of the same node.
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
                }
                Err(error) => {
                    known.topics.remove(name);
                    outcome = outcome.and(Err(error));
                }
            }
        }
        outcome
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

    /// Forgets everything but the bootstrap list and the brokers that do not answer: the next question must not go to one of
    /// those first.
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

/// The topic as the answer says, but for partitions of which a newer leader is known: a node that was cut off or frozen goes on
/// naming the old one for a while.
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
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use bytes::{BufMut, BytesMut};
    use kafka_protocol::messages::BrokerId;
    use kafka_protocol::messages::metadata_response::{MetadataResponseBroker, MetadataResponsePartition};
    use kafka_protocol::protocol::Encodable;

    use super::*;
    use crate::stop::Stop;
    use crate::threads;

    fn cluster(bootstrap: &[BrokerAddress]) -> Cluster {
        Cluster::new(ClientOptions::new(bootstrap.to_vec(), "test"))
    }

    fn partition(index: i32, leader: i32, epoch: i32) -> MetadataResponsePartition {
        let partition = MetadataResponsePartition::default().with_partition_index(index);
        partition.with_leader_id(BrokerId(leader)).with_leader_epoch(epoch)
    }

    fn answer() -> MetadataResponse {
        let broker = MetadataResponseBroker::default()
            .with_node_id(BrokerId(7))
            .with_host(StrBytes::from_static_str("kafka-7"))
            .with_port(9092);
        let topic = MetadataResponseTopic::default()
            .with_name(Some(topic_name("tasks")))
            .with_partitions(vec![partition(1, -1, 0), partition(0, 7, 3)]);
        let missing = MetadataResponseTopic::default().with_name(Some(topic_name("other"))).with_error_code(3);
        MetadataResponse::default().with_brokers(vec![broker]).with_topics(vec![missing, topic])
    }

    #[test]
    fn an_answer_is_learnt_although_one_topic_is_missing() {
        let cluster = cluster(&[]);
        let error = cluster.learn(answer()).expect_err("one is missing");
        assert_eq!(error.code(), Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION));
        assert_eq!(cluster.address(7), Some(BrokerAddress::new("kafka-7", 9092)));
        let indexes: Vec<i32> =
            cluster.topic("tasks").expect("known").partitions.iter().map(|known| known.index).collect();
        assert_eq!(indexes, [0, 1]);
        assert_eq!(cluster.leader("tasks", 0).ok(), Some(7));
        let code = |partition| cluster.leader("tasks", partition).expect_err("no leader").code();
        assert_eq!((code(1), code(2)), (Some(ErrorCode(5)), Some(ErrorCode(3))));
        cluster.forget_topic("tasks");
        // No broker is there to be asked.
        assert!(matches!(cluster.topic("tasks"), Err(KafkaError::NoBroker { .. } | KafkaError::Unsupported(_))));
    }

    #[test]
    fn older_leader_never_replaces_newer_one_of_same_topic() {
        let cluster = cluster(&[]);
        let learn = |id: u128, epoch: i32, leader: i32| {
            let topic = MetadataResponseTopic::default()
                .with_name(Some(topic_name("tasks")))
                .with_topic_id(Uuid::from_u128(id))
                .with_partitions(vec![partition(0, leader, epoch)]);
            cluster.learn(MetadataResponse::default().with_topics(vec![topic])).expect("no error in it");
            let known = cluster.topic("tasks").expect("known").partitions[0];
            (known.leader, known.leader_epoch)
        };
        assert_eq!(learn(1, 4, 2), (2, 4));
        assert_eq!(learn(1, 3, 1), (2, 4), "told by a node that was cut off");
        assert_eq!(learn(1, 5, -1), (-1, 5), "no leader is news as well");
        assert_eq!(learn(1, -1, 1), (1, -1), "a broker that knows no epochs");
        assert_eq!(learn(1, 6, 3), (3, 6));
        assert_eq!(learn(2, 0, 1), (1, 0), "the topic was made again");
    }

    #[test]
    fn silent_broker_is_asked_last_after_everything_else_is_forgotten() {
        let addresses = [1, 2, 3].map(|number| BrokerAddress::new(format!("kafka-{number}"), 9092));
        let cluster = cluster(&addresses);
        let source = std::io::Error::from(std::io::ErrorKind::TimedOut);
        cluster.blame(&KafkaError::Io { action: "cannot connect to", broker: addresses[1].clone(), source });
        cluster.forget();
        for _ in 0..50 {
            assert_eq!(cluster.candidates().last(), Some(&addresses[1]));
        }
    }

    /// A listener that takes connections and says nothing, and one that answers every Metadata request on every connection.
    fn mute_and_answering() -> (TcpListener, BrokerAddress, BrokerAddress, Stop) {
        let bind = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (mute, answering, stop) = (bind(), bind(), Stop::new());
        let address =
            |listener: &TcpListener| BrokerAddress::new("127.0.0.1", listener.local_addr().expect("bound").port());
        let addresses = (address(&mute), address(&answering));
        let (silent, living, end) = (addresses.0.clone(), addresses.1.clone(), stop.clone());
        let _ = threads::spawn("answering", Stop::new(), move || {
            let broker = |node, address: &BrokerAddress| {
                let broker =
                    MetadataResponseBroker::default().with_node_id(BrokerId(node)).with_port(address.port.into());
                broker.with_host(StrBytes::from_string(address.host.clone()))
            };
            let response = answer().with_brokers(vec![broker(1, &silent), broker(2, &living)]);
            for mut client in answering.incoming().map_while(std::result::Result::ok) {
                if end.is_triggered() {
                    break;
                }
                let response = response.clone();
                let _ = threads::spawn("answers", Stop::new(), move || {
                    let mut correlation = 0;
                    while client.read(&mut [0; 512]).is_ok_and(|count| count > 0) {
                        let mut frame = BytesMut::from(&[0; 4][..]);
                        frame.put_i32(correlation);
                        frame.put_u8(0);
                        correlation += 1;
                        response.encode(&mut frame, METADATA_VERSION).expect("encodable");
                        let length = u32::try_from(frame.len() - 4).expect("short");
                        (&mut frame[..4]).put_u32(length);
                        client.write_all(&frame).expect("sent");
                    }
                    Ok::<(), KafkaError>(())
                });
            }
            Ok::<(), KafkaError>(())
        });
        (mute, addresses.0, addresses.1, stop)
    }

    #[test]
    fn leader_that_does_not_answer_is_looked_up_at_another_node() {
        let (_mute, silent, living, stop) = mute_and_answering();
        // The spare connection leads to the silent node.
        let cluster = cluster(std::slice::from_ref(&silent));
        cluster.put_back(Connection::open(&silent, cluster.options()).expect("the kernel takes it"));
        cluster.known.lock().brokers.extend([(1, silent.clone()), (2, living)]);
        let since = Instant::now();
        for _ in 0..3 {
            let code = cluster.refresh_from_another(1, &["tasks", "other"], Duration::from_secs(4));
            assert_eq!(code.expect_err("one topic is missing").code(), Some(ErrorCode(3)));
        }
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
        assert_eq!(cluster.leader("tasks", 0).ok(), Some(7));
        // The other way round it is the silent one that is asked, within the limit.
        let error = cluster.refresh_from_another(2, &["tasks"], Duration::from_millis(300)).expect_err("silence");
        assert!(matches!(&error, KafkaError::NoBroker { .. }), "{error}");
        assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
        assert!(cluster.is_silent(&silent));
        stop.trigger();
    }

    #[test]
    fn single_node_has_no_other_to_ask() {
        let address = BrokerAddress::new("127.0.0.1", 1);
        let cluster = cluster(std::slice::from_ref(&address));
        cluster.known.lock().brokers.insert(1, address);
        let error = cluster.refresh_from_another(1, &[], Duration::from_secs(1)).expect_err("there is none");
        assert_eq!(error.retry(), Retry::RefreshMetadata, "{error}");
    }

    #[test]
    fn a_silent_broker_is_asked_last() {
        let addresses = [1, 2, 3].map(|number| BrokerAddress::new(format!("kafka-{number}"), 9092));
        let cluster = cluster(&addresses);
        let timeout = KafkaError::Timeout { request: "Fetch", broker: addresses[1].clone(), waited: Duration::ZERO };
        cluster.blame(&timeout);
        for _ in 0..50 {
            let candidates = cluster.candidates();
            assert_eq!((candidates.len(), candidates.last()), (3, Some(&addresses[1])));
        }
    }

    #[test]
    fn a_connection_that_died_while_idle_is_replaced() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        // Answers one question per connection, then hangs up.
        let broker = threads::spawn("broker", Stop::new(), move || {
            for mut client in listener.incoming().take(2).map_while(std::result::Result::ok) {
                let request = client.read(&mut [0; 512]).expect("a request");
                assert!(request > 0);
                // Correlation 0 on every connection, no tags.
                let mut frame = BytesMut::from(&[0; 9][..]);
                answer().with_topics(Vec::new()).encode(&mut frame, 12).expect("encodable");
                let length = u32::try_from(frame.len() - 4).expect("short");
                (&mut frame[..4]).put_u32(length);
                client.write_all(&frame).expect("sent");
            }
            Ok::<(), KafkaError>(())
        });
        let cluster = cluster(&[BrokerAddress::new("127.0.0.1", port)]);
        assert!(cluster.refresh(&[]).is_ok());
        // From the answer: a broker that does not exist. The bootstrap list is still known.
        assert!(cluster.refresh(&[]).is_ok());
        assert_eq!(broker.join(), Ok(()), "two connections");
    }

    #[test]
    fn the_parts_of_a_client_know_the_same_and_end_alone() {
        let cluster = cluster(&[]);
        let part = cluster.scoped(cluster.options().interrupter.child());
        assert!(part.learn(answer()).is_err());
        assert_eq!(cluster.leader("tasks", 0).ok(), Some(7));
        part.options().interrupter.interrupt();
        assert!(!cluster.options().interrupter.is_interrupted());
    }
}
