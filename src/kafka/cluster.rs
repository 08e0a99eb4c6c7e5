//! The cluster as this client knows it: brokers, topics and their leaders, coordinators of groups.
//!
//! A shared cache and the way to a connection; it holds no open connections of its users and starts no thread. What it
//! knows can be stale at any time: whoever is told so by a broker ([`Retry::RefreshMetadata`](super::error::Retry)), or loses a connection,
//! calls [`Cluster::refresh`] or [`Cluster::forget`] and asks again. Called by producer, reader, share consumer and admin.

use std::collections::{BTreeMap, HashMap};
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
    /// Counts the elections of this partition: of two answers the one with the larger number is the later one.
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
    /// Brokers that took a request and did not answer it, and since when.
    silent: HashMap<BrokerAddress, Instant>,
}

/// How long a broker that did not answer is asked last.
const SILENCE: Duration = Duration::from_secs(10);

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
            match Connection::open(address, self.options()) {
                Ok(connection) => return Ok(connection),
                Err(KafkaError::Interrupted) => return Err(KafkaError::Interrupted),
                Err(error) => last = Some(error),
            }
        }
        let tried = candidates.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        Err(match last {
            Some(last) => KafkaError::NoBroker { tried, last: Box::new(last) },
            None => KafkaError::Unsupported("no broker address is configured".into()),
        })
    }

    fn candidates(&self) -> Vec<BrokerAddress> {
        let mut known = self.known.lock();
        known.silent.retain(|_, since| since.elapsed() < SILENCE);
        let mut candidates: Vec<BrokerAddress> = known.brokers.values().cloned().collect();
        for address in &self.options().bootstrap {
            if !candidates.contains(address) {
                candidates.push(address.clone());
            }
        }
        fastrand::shuffle(&mut candidates);
        candidates.sort_by_key(|address| known.silent.contains_key(address));
        candidates
    }

    /// Remembers a broker that did not answer. Whoever waits for answers on connections of its own tells it here.
    pub(super) fn blame(&self, error: &KafkaError) {
        if let KafkaError::Timeout { broker, .. } = error {
            self.known.lock().silent.insert(broker.clone(), Instant::now());
        }
    }

    /// This broker owes an answer: others are asked before it for a while.
    pub fn suspect(&self, node: i32) {
        let Some(address) = self.address(node) else { return };
        self.known.lock().silent.insert(address.clone(), Instant::now());
        let spare = self.spare.lock().take();
        // Closed outside the lock if it is a connection to that broker.
        if let Some(spare) = spare.filter(|spare| *spare.broker() != address) {
            self.put_back(spare);
        }
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
        Connection::open(&address, self.options())
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
        if let Some(mut connection) = spare {
            match question(&mut connection) {
                // Not for a timeout: that broker had it, and whoever asks has waited long enough.
                Err(error) if error.retry() == Retry::Reconnect && !matches!(error, KafkaError::Timeout { .. }) => {}
                answer => return self.answered(connection, answer),
            }
        }
        let mut connection = self.connect_any()?;
        let answer = question(&mut connection);
        self.answered(connection, answer)
    }

    fn answered<T>(&self, connection: Connection, answer: Result<T>) -> Result<T> {
        self.put_back(connection);
        answer.inspect_err(|error| self.blame(error))
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
    pub fn refresh(&self, topics: &[&str]) -> Result<()> {
        let wanted = topics.iter().map(|name| MetadataRequestTopic::default().with_name(Some(topic_name(name))));
        let request =
            MetadataRequest::default().with_topics(Some(wanted.collect())).with_allow_auto_topic_creation(false);
        let response = self.ask(12, &request)?;
        self.learn(response)
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
                    known.topics.insert(name.to_owned(), topic_of(name, topic));
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

    /// Forgets everything but the bootstrap list.
    pub fn forget(&self) {
        *self.known.lock() = Known::default();
    }
}

fn topic_of(name: &str, answer: &MetadataResponseTopic) -> Topic {
    let mut partitions: Vec<Partition> = answer
        .partitions
        .iter()
        .map(|partition| Partition {
            index: partition.partition_index,
            leader: partition.leader_id.0,
            leader_epoch: partition.leader_epoch,
        })
        .collect();
    partitions.sort_unstable_by_key(|partition| partition.index);
    Topic { name: name.to_owned(), id: answer.topic_id, partitions }
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

    fn answer() -> MetadataResponse {
        let broker = MetadataResponseBroker::default()
            .with_node_id(BrokerId(7))
            .with_host(StrBytes::from_static_str("kafka-7"))
            .with_port(9092);
        let partition = |index, leader| {
            MetadataResponsePartition::default().with_partition_index(index).with_leader_id(BrokerId(leader))
        };
        let topic = MetadataResponseTopic::default()
            .with_name(Some(topic_name("tasks")))
            .with_partitions(vec![partition(1, -1), partition(0, 7)]);
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
        // Nobody is there to be asked.
        assert!(matches!(cluster.topic("tasks"), Err(KafkaError::NoBroker { .. } | KafkaError::Unsupported(_))));
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
