//! A topic as brokers describe it.
//!
//! Called by [`Cluster`](super::Cluster).

use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use uuid::Uuid;

/// One topic of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its id (KIP-516): a topic that was deleted and created again has a new one.
    pub id: Uuid,
    /// Whether the topic is Kafka's own, such as `__consumer_offsets`.
    pub is_internal: bool,
    /// Its partitions, ordered by index.
    pub partitions: Vec<Partition>,
}

/// One partition of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 0.
    pub index: i32,
    /// Node id of its leader, -1 without a leader.
    pub leader: i32,
    /// Number of leader changes (KIP-320); -1 when the broker does not know. A higher epoch is newer knowledge. Locks
    /// of a share session do not survive the change.
    pub leader_epoch: i32,
}

/// Takes the topic from the response, except for partitions whose newer leader is known already. A node that was cut
/// off or frozen still names the old leader for a while.
pub(super) fn topic_of(name: &str, answer: &MetadataResponseTopic, before: Option<&Topic>) -> Topic {
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
