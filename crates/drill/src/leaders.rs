//! Leaders and in-sync replicas of the drill's broker; moves a leader of a real Kafka.
//!
//! Each call asks the cluster, and blocks for as long as a request may take. Called by
//! [`broker_work`](super::broker_work).

use kafka_protocol::messages::alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
use kafka_protocol::messages::elect_leaders_request::TopicPartitions;
use kafka_protocol::messages::metadata_response::MetadataResponsePartition;
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, BrokerId, ElectLeadersRequest, MetadataRequest, TopicName,
};
use kafka_protocol::protocol::StrBytes;

use kafka_share::Cluster;

use super::fact::Led;

/// How long the controller may work on a request.
const CONTROLLER_WAIT_MS: i32 = 5_000;
/// Version of the request for the metadata of all topics.
const METADATA_VERSION: i16 = 12;

/// The cluster and the two topics whose leaders matter.
#[derive(Clone, Debug)]
pub(super) struct Leaders {
    pub(super) cluster: Cluster,
    pub(super) tasks_topic: String,
    pub(super) results_topic: String,
}

/// A move of a partition to another leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) from: i32,
    pub(super) to: i32,
    replicas: Vec<i32>,
}

impl Leaders {
    /// The partitions of the tasks, and whether of the results, that a node leads.
    ///
    /// # Errors
    /// The cluster does not answer.
    pub(super) fn of(&self, node: i32) -> Result<Led, String> {
        let all = self.partitions()?;
        let led = all.iter().filter(|(_, partition)| partition.leader_id.0 == node);
        let mut found = Led { tasks: Vec::new(), results: false };
        for (topic, partition) in led {
            found.results |= *topic == self.results_topic;
            if *topic == self.tasks_topic {
                found.tasks.push(partition.partition_index);
            }
        }
        found.tasks.sort_unstable();
        Ok(found)
    }

    /// The partition that a move takes from its leader.
    pub(super) fn led_by_move(&self, planned: &Move) -> Led {
        let is_task = planned.topic == self.tasks_topic;
        Led { tasks: if is_task { vec![planned.partition] } else { Vec::new() }, results: !is_task }
    }

    /// Whether every partition of every topic has a leader and all replicas in sync.
    ///
    /// # Errors
    /// The cluster does not answer.
    pub(super) fn are_in_sync(&self) -> Result<bool, String> {
        let sound = |partition: &MetadataResponsePartition| {
            partition.leader_id.0 >= 0 && partition.isr_nodes.len() == partition.replica_nodes.len()
        };
        Ok(self.partitions()?.iter().all(|(_, partition)| sound(partition)))
    }

    /// A random move of a partition of the tasks or of the results to another in-sync replica.
    ///
    /// # Errors
    /// The cluster does not answer, or no partition has a second replica in sync.
    pub(super) fn draw_move(&self, draw: u64) -> Result<Move, String> {
        let mut moves = Vec::new();
        for (topic, partition) in self.partitions()? {
            let from = partition.leader_id.0;
            if from < 0 || topic != self.tasks_topic && topic != self.results_topic {
                continue;
            }
            let replicas: Vec<i32> = partition.replica_nodes.iter().map(|node| node.0).collect();
            let others = partition.isr_nodes.iter().map(|node| node.0).filter(|node| *node != from);
            moves.extend(others.map(|to| {
                let replicas = replicas.clone();
                Move { topic: topic.clone(), partition: partition.partition_index, from, to, replicas }
            }));
        }
        moves.sort_by(|one, other| (&one.topic, one.partition, one.to).cmp(&(&other.topic, other.partition, other.to)));
        let index = (draw % moves.len().max(1) as u64) as usize;
        moves.into_iter().nth(index).ok_or_else(|| "no partition has a second replica in sync".to_owned())
    }

    /// Whether a move has been done.
    ///
    /// # Errors
    /// The cluster does not answer.
    pub(super) fn has_moved(&self, planned: &Move) -> Result<bool, String> {
        let of = |(topic, partition): &(String, MetadataResponsePartition)| {
            *topic == planned.topic
                && partition.partition_index == planned.partition
                && partition.leader_id.0 == planned.to
        };
        Ok(self.partitions()?.iter().any(of))
    }

    /// Makes a real Kafka elect the new leader: puts it first in the list of replicas (KIP-455), which makes it
    /// preferred, and requests the election (KIP-460). Kafka refuses the election until it knows the new order, so the
    /// caller repeats this until [`has_moved`](Self::has_moved).
    ///
    /// # Errors
    /// The cluster does not answer.
    pub(super) fn elect(&self, planned: &Move) -> Result<(), String> {
        let mut replicas = vec![BrokerId(planned.to)];
        replicas.extend(planned.replicas.iter().filter(|node| **node != planned.to).map(|node| BrokerId(*node)));
        let name = || TopicName(StrBytes::from_string(planned.topic.clone()));
        let partition =
            ReassignablePartition::default().with_partition_index(planned.partition).with_replicas(Some(replicas));
        let topic = ReassignableTopic::default().with_name(name()).with_partitions(vec![partition]);
        let order =
            AlterPartitionReassignmentsRequest::default().with_timeout_ms(CONTROLLER_WAIT_MS).with_topics(vec![topic]);
        self.cluster.ask(0, &order).map_err(|error| error.to_string())?;
        let topic = TopicPartitions::default().with_topic(name()).with_partitions(vec![planned.partition]);
        let election =
            ElectLeadersRequest::default().with_timeout_ms(CONTROLLER_WAIT_MS).with_topic_partitions(Some(vec![topic]));
        self.cluster.ask(2, &election).map_err(|error| error.to_string()).map(drop)
    }

    fn partitions(&self) -> Result<Vec<(String, MetadataResponsePartition)>, String> {
        let request = MetadataRequest::default().with_topics(None).with_allow_auto_topic_creation(false);
        let answer = self.cluster.ask(METADATA_VERSION, &request).map_err(|error| error.to_string())?;
        let mut all = Vec::new();
        for topic in answer.topics {
            let name = topic.name.map(|name| name.to_string()).unwrap_or_default();
            all.extend(topic.partitions.into_iter().map(|partition| (name.clone(), partition)));
        }
        Ok(all)
    }
}
