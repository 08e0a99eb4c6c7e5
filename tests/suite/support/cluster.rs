//! A cluster of three nodes with three replicas of each partition: embedded, or with `KAFKA=apache` three nodes that
//! `scripts/kafka start --nodes 3` runs.
//!
//! The tests of clusters share it and use it one after another. Dropping it restarts and thaws the nodes that the test
//! touched; the last test ends the cluster.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use devbroker;
use kafka_protocol::{
    messages::{
        AlterPartitionReassignmentsRequest, BrokerId, CreateTopicsRequest, ElectLeadersRequest, FindCoordinatorRequest,
        MetadataRequest, TopicName,
        alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic},
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        elect_leaders_request::TopicPartitions,
        metadata_request::MetadataRequestTopic,
    },
    protocol::StrBytes,
};
use parking_lot::{Mutex, MutexGuard};
use uuid::Uuid;

use super::{
    broker::{Apache, Broker, is_apache},
    eventually,
    turn::Turn,
    wire::Wire,
};

/// The controller fences a node that is silent for this long.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(3);
/// Time limit for an Apache cluster on a busy machine; alone it takes seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Ids of the nodes.
const NODES: [i32; 3] = [1, 2, 3];

enum Nodes {
    Embedded(Broker),
    Apache(Vec<Apache>),
}

/// The cluster, locked for one test.
pub struct Cluster {
    /// `Some` from [`Cluster::new`] to the drop.
    shared: MutexGuard<'static, Option<Shared>>,
    /// Nodes that the test stopped (`false`) or froze (`true`); the drop restarts or thaws them.
    touched: Mutex<BTreeMap<i32, bool>>,
    _wanted: Wanted,
}

/// Counts a test that uses the cluster or waits for it, also if it panics.
struct Wanted;

impl Wanted {
    fn new() -> Wanted {
        WANTED.fetch_add(1, Ordering::SeqCst);
        Wanted
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        WANTED.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Shared {
    nodes: Nodes,
    /// Held while the nodes run, because they use the machine between two tests as well.
    _turn: Turn,
}

static SHARED: Mutex<Option<Shared>> = Mutex::new(None);
static WANTED: AtomicUsize = AtomicUsize::new(0);

/// A partition in the Metadata response of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub error: i16,
    pub leader: i32,
    pub epoch: i32,
    pub in_sync: Vec<i32>,
}

impl Cluster {
    /// Waits for its turn; starts the nodes if none run.
    pub fn new() -> Cluster {
        let wanted = Wanted::new();
        let mut shared = SHARED.lock();
        let timeout = format!("broker.session.timeout.ms={}", SESSION_TIMEOUT.as_millis());
        shared.get_or_insert_with(|| {
            let turn = Turn::with_broker();
            if is_apache() {
                let arguments = ["--set", &timeout, "--set", "broker.heartbeat.interval.ms=500"];
                return Shared { nodes: Nodes::Apache(Apache::start_cluster(NODES.len(), &arguments)), _turn: turn };
            }
            let replicas = ["--set", "default.replication.factor=3", "--set", "min.insync.replicas=2"];
            let broker = Broker::embedded(NODES.len(), &[&replicas[..], &["--set", &timeout]].concat());
            Shared { nodes: Nodes::Embedded(broker), _turn: turn }
        });
        Cluster { shared, touched: Mutex::default(), _wanted: wanted }
    }

    fn nodes(&self) -> &Nodes {
        &self.shared.as_ref().expect("nodes run from new to drop").nodes
    }

    /// The embedded cluster, to inject faults; `None` with Apache Kafka.
    pub fn embedded(&self) -> Option<&devbroker::Broker> {
        match self.nodes() {
            Nodes::Embedded(broker) => Some(broker.faulty()),
            Nodes::Apache(_) => None,
        }
    }

    /// Address of a node.
    pub fn address(&self, node: i32) -> String {
        let index = usize::try_from(node - 1).expect("ids count from 1");
        match self.nodes() {
            Nodes::Embedded(broker) => broker.faulty().addresses()[index].to_string(),
            Nodes::Apache(nodes) => nodes[index].address().to_owned(),
        }
    }

    /// Connects to a node.
    pub fn wire(&self, node: i32) -> Wire {
        Wire::connect(&self.address(node))
    }

    /// SIGKILL
    pub fn kill(&self, node: i32) {
        self.touch(node, false);
        match self.nodes() {
            Nodes::Embedded(broker) => broker.faulty().node(node).kill(),
            Nodes::Apache(nodes) => nodes[self.index(node)].stop(true),
        }
    }

    /// SIGTERM
    pub fn stop(&self, node: i32) {
        self.touch(node, false);
        match self.nodes() {
            Nodes::Embedded(broker) => broker.faulty().node(node).stop(),
            Nodes::Apache(nodes) => nodes[self.index(node)].stop(false),
        }
    }

    /// Starts a stopped or killed node again.
    pub fn start(&self, node: i32) {
        match self.nodes() {
            Nodes::Embedded(broker) => broker.faulty().node(node).revive().expect("a node starts again on its port"),
            Nodes::Apache(nodes) => nodes[self.index(node)].start_again(),
        }
        self.touched.lock().remove(&node);
    }

    /// SIGSTOP
    pub fn freeze(&self, node: i32) {
        self.touch(node, true);
        match self.nodes() {
            Nodes::Embedded(broker) => broker.faulty().node(node).freeze(),
            Nodes::Apache(nodes) => nodes[self.index(node)].freeze(true),
        }
    }

    /// SIGCONT
    pub fn thaw(&self, node: i32) {
        match self.nodes() {
            Nodes::Embedded(broker) => broker.faulty().node(node).thaw(),
            Nodes::Apache(nodes) => nodes[self.index(node)].freeze(false),
        }
        self.touched.lock().remove(&node);
    }

    fn touch(&self, node: i32, frozen: bool) {
        self.touched.lock().insert(node, frozen);
    }

    fn index(&self, node: i32) -> usize {
        usize::try_from(node - 1).expect("ids count from 1")
    }

    /// Creates a topic with this many replicas and waits until all nodes know its leaders; returns the topic's id.
    pub fn create_topic(&self, name: &str, partitions: i32, replicas: i16) -> Uuid {
        // With two, `acks=all` to a topic with one replica would always fail.
        let least = if replicas == 1 { "1" } else { "2" };
        let in_sync = CreatableTopicConfig::default()
            .with_name(StrBytes::from_static_str("min.insync.replicas"))
            .with_value(Some(StrBytes::from_static_str(least)));
        let topic = CreatableTopic::default()
            .with_name(topic_name(name))
            .with_num_partitions(partitions)
            .with_replication_factor(replicas)
            .with_configs(vec![in_sync]);
        let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
        let answer = self.wire(1).call(7, &request);
        assert_eq!(answer.topics[0].error_code, 0, "{:?}", answer.topics[0].error_message);
        eventually(PATIENCE, "every node knows the leaders", || {
            let known =
                |node| (0..partitions).all(|index| self.told(node, name, index).is_some_and(|told| told.error == 0));
            NODES.into_iter().all(known)
        });
        answer.topics[0].topic_id
    }

    /// Asks a node for a partition's Metadata; `None` if the node does not know the partition.
    pub fn told(&self, node: i32, topic: &str, partition: i32) -> Option<Told> {
        let wanted = MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
        let request = MetadataRequest::default().with_topics(Some(vec![wanted])).with_allow_auto_topic_creation(false);
        let answer = self.wire(node).call(12, &request);
        let found = answer.topics[0].partitions.iter().find(|told| told.partition_index == partition)?;
        Some(Told {
            error: found.error_code,
            leader: found.leader_id.0,
            epoch: found.leader_epoch,
            in_sync: found.isr_nodes.iter().map(|node| node.0).collect(),
        })
    }

    /// The nodes in the Metadata response of a node.
    pub fn living(&self, node: i32) -> Vec<i32> {
        let answer = self.wire(node).call(12, &MetadataRequest::default().with_topics(Some(Vec::new())));
        let mut living: Vec<i32> = answer.brokers.iter().map(|broker| broker.node_id.0).collect();
        living.sort_unstable();
        living
    }

    /// The leader of a partition according to an untouched node; -1 if there is none.
    pub fn leader(&self, topic: &str, partition: i32) -> i32 {
        self.told(self.other_than(&[]), topic, partition).map_or(-1, |told| told.leader)
    }

    /// An untouched node that is none of these.
    pub fn other_than(&self, these: &[i32]) -> i32 {
        let touched = self.touched.lock();
        let found = NODES.into_iter().find(|node| !these.contains(node) && !touched.contains_key(node));
        found.expect("an untouched node")
    }

    /// Makes a replica's node the leader of a partition and waits until it leads.
    pub fn move_leader(&self, topic: &str, partition: i32, to: i32) {
        if let Some(broker) = self.embedded() {
            assert!(broker.move_leader(topic, partition, to));
            return;
        }
        let mut wire = self.wire(self.other_than(&[]));
        // The preferred leader is the first of the replicas.
        let mut replicas = vec![to];
        replicas.extend(NODES.into_iter().filter(|node| *node != to));
        let wanted = ReassignablePartition::default()
            .with_partition_index(partition)
            .with_replicas(Some(replicas.into_iter().map(BrokerId).collect()));
        let wanted = ReassignableTopic::default().with_name(topic_name(topic)).with_partitions(vec![wanted]);
        let request = AlterPartitionReassignmentsRequest::default().with_timeout_ms(10_000).with_topics(vec![wanted]);
        let answer = wire.call(0, &request);
        assert_eq!((answer.error_code, answer.responses[0].partitions[0].error_code), (0, 0));
        eventually(PATIENCE, "the leader has moved", || {
            let wanted = TopicPartitions::default().with_topic(topic_name(topic)).with_partitions(vec![partition]);
            let request =
                ElectLeadersRequest::default().with_topic_partitions(Some(vec![wanted])).with_timeout_ms(10_000);
            wire.call(2, &request);
            self.leader(topic, partition) == to
        });
    }

    /// The node that coordinates a group.
    pub fn coordinator(&self, group: &str) -> i32 {
        let mut found = -1;
        eventually(PATIENCE, "the group has a coordinator", || {
            let request = FindCoordinatorRequest::default().with_key(StrBytes::from_string(group.to_owned()));
            let answer = self.wire(self.other_than(&[])).call(3, &request);
            found = answer.node_id.0;
            answer.error_code == 0
        });
        found
    }

    /// Waits until every replica of a partition is in sync.
    pub fn wait_in_sync(&self, topic: &str, partition: i32) {
        eventually(PATIENCE, "all replicas are in sync", || {
            let told = self.told(self.other_than(&[]), topic, partition);
            told.is_some_and(|told| told.leader >= 0 && told.in_sync.len() == NODES.len())
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // After a failed test the cluster ends; the next test starts a new one.
        if std::thread::panicking() {
            *self.shared = None;
            return;
        }
        let touched = std::mem::take(&mut *self.touched.lock());
        for (node, frozen) in touched {
            if frozen { self.thaw(node) } else { self.start(node) }
        }
        if WANTED.load(Ordering::SeqCst) == 1 {
            *self.shared = None;
            return;
        }
        let deadline = Instant::now() + PATIENCE;
        while NODES.into_iter().any(|node| self.living(node) != NODES) {
            if Instant::now() > deadline {
                *self.shared = None;
                panic!("the cluster did not recover: a node still misses another");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}
