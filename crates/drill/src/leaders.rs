//! Which node of the drill's broker leads what, and whether every replica is in sync; moves a leader of a real Kafka.
//!
//! It asks the cluster itself, so each call blocks for as long as a request may take. Called by [`broker_work`](super::broker_work).

use kafka_protocol::messages::alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
use kafka_protocol::messages::elect_leaders_request::TopicPartitions;
use kafka_protocol::messages::metadata_response::MetadataResponsePartition;
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, BrokerId, ElectLeadersRequest, MetadataRequest, TopicName,
};
use kafka_protocol::protocol::StrBytes;

use kafka_share::Cluster;

use super::fact::Led;

/// How long the controller may work on a request, in the protocol's milliseconds.
const CONTROLLER_WAIT_MS: i32 = 5_000;
/// Metadata of all topics.
const METADATA_VERSION: i16 = 12;

/// See the module documentation.
#[derive(Clone, Debug)]
pub(super) struct Leaders {
    pub(super) cluster: Cluster,
    pub(super) tasks_topic: String,
    pub(super) results_topic: String,
}

/// A partition that gets another leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) from: i32,
    pub(super) to: i32,
    replicas: Vec<i32>,
}

impl Leaders {
    /// What a node leads of the tasks and of the results.
    ///
    /// # Errors
    /// The cluster does not tell.
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

    /// What such a move takes from its leader.
    pub(super) fn led_by_move(&self, planned: &Move) -> Led {
        let is_task = planned.topic == self.tasks_topic;
        Led { tasks: if is_task { vec![planned.partition] } else { Vec::new() }, results: !is_task }
    }

    /// Whether every partition of every topic has a leader, and all of its replicas in sync.
    ///
    /// # Errors
    /// The cluster does not tell.
    pub(super) fn are_in_sync(&self) -> Result<bool, String> {
        let sound = |partition: &MetadataResponsePartition| {
            partition.leader_id.0 >= 0 && partition.isr_nodes.len() == partition.replica_nodes.len()
        };
        Ok(self.partitions()?.iter().all(|(_, partition)| sound(partition)))
    }

    /// A partition of the tasks or of the results, and the node that is to lead it, as drawn.
    ///
    /// # Errors
    /// The cluster does not tell, or no partition has a second replica in sync.
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
        moves.into_iter().nth(index).ok_or_else(|| "no partition has another replica that is in sync".to_owned())
    }

    /// Whether a partition has the leader that it was to get.
    ///
    /// # Errors
    /// The cluster does not tell.
    pub(super) fn has_moved(&self, planned: &Move) -> Result<bool, String> {
        let of = |(topic, partition): &(String, MetadataResponsePartition)| {
            *topic == planned.topic
                && partition.partition_index == planned.partition
                && partition.leader_id.0 == planned.to
        };
        Ok(self.partitions()?.iter().any(of))
    }

    /// Has a real Kafka elect the new leader: it is made the preferred one, which is the first of the replicas (KIP-455), and elected (KIP-460).
    /// The election is refused until the new order is known; so it is asked for again until [`has_moved`](Self::has_moved) says so.
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
