//! Finds the topics and partitions that a request concerns, for faults bound to them.
//!
//! Decodes requests and changes nothing. Called by [`core`](super::core) while such a fault is in the plan.

use kafka_protocol::messages::{
    ApiKey, CreateTopicsRequest, FetchRequest, ListOffsetsRequest, MetadataRequest, ProduceRequest,
};
use kafka_protocol::protocol::Decodable;
use uuid::Uuid;

use super::asked::Asked;
use super::share_wire;
use super::state::{Caller, State};

/// Topics, each with a partition. Without a partition the request concerns the whole topic, and so each of its
/// partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scope(Vec<(String, Option<i32>)>);

impl Scope {
    /// Whether the request concerns this topic (any without a name) and this partition (any without a number).
    pub fn has(&self, topic: Option<&str>, partition: Option<i32>) -> bool {
        self.0.iter().any(|(name, index)| {
            topic.is_none_or(|topic| topic == name) && (partition.is_none() || index.is_none() || *index == partition)
        })
    }
}

impl State {
    /// Returns the scope of a request; empty if the request cannot be decoded or names no topics.
    pub fn scope(&self, caller: &Caller, asked: &Asked) -> Scope {
        Scope(self.concerned(caller, asked).unwrap_or_default())
    }

    fn concerned(&self, caller: &Caller, asked: &Asked) -> Option<Vec<(String, Option<i32>)>> {
        let (mut body, version) = (asked.body.clone(), asked.version);
        let named = |name: &str, id: Uuid| self.topic_name(id).unwrap_or_else(|| name.to_owned());
        Some(match asked.key {
            ApiKey::Produce => {
                let request = ProduceRequest::decode(&mut body, version).ok()?;
                let topics = request.topic_data.iter().flat_map(|topic| {
                    let name = named(topic.name.as_str(), topic.topic_id);
                    topic.partition_data.iter().map(move |partition| (name.clone(), Some(partition.index)))
                });
                topics.collect()
            }
            ApiKey::Fetch => {
                let request = FetchRequest::decode(&mut body, version).ok()?;
                let topics = request.topics.iter().flat_map(|topic| {
                    let name = named(topic.topic.as_str(), topic.topic_id);
                    topic.partitions.iter().map(move |partition| (name.clone(), Some(partition.partition)))
                });
                topics.collect()
            }
            ApiKey::ListOffsets => {
                let request = ListOffsetsRequest::decode(&mut body, version).ok()?;
                let topics = request.topics.iter().flat_map(|topic| {
                    let partitions = topic.partitions.iter();
                    partitions.map(|partition| (topic.name.as_str().to_owned(), Some(partition.partition_index)))
                });
                topics.collect()
            }
            ApiKey::Metadata => {
                let request = MetadataRequest::decode(&mut body, version).ok()?;
                match &request.topics {
                    None => self.topics.keys().map(|name| (name.clone(), None)).collect(),
                    Some(topics) => {
                        let name = |topic: &kafka_protocol::messages::metadata_request::MetadataRequestTopic| {
                            named(topic.name.as_ref().map_or("", |name| name.as_str()), topic.topic_id)
                        };
                        topics.iter().map(|topic| (name(topic), None)).collect()
                    }
                }
            }
            ApiKey::CreateTopics => {
                let request = CreateTopicsRequest::decode(&mut body, version).ok()?;
                // The request concerns no partition.
                request.topics.iter().map(|topic| (topic.name.as_str().to_owned(), Some(-1))).collect()
            }
            ApiKey::ShareFetch => {
                let fetch = share_wire::decode_fetch(&asked.body, version)?.request;
                let topics = fetch.topics.iter().flat_map(|topic| {
                    topic.partitions.iter().map(|partition| (topic.topic_id, partition.partition_index))
                });
                let sessions = self.sessions.values().filter(|session| session.connection == caller.connection);
                let fetched = sessions.flat_map(|session| session.partitions.iter().copied());
                topics.chain(fetched).filter_map(|(id, index)| Some((self.topic_name(id)?, Some(index)))).collect()
            }
            ApiKey::ShareAcknowledge => {
                let acknowledge = share_wire::decode_acknowledge(&asked.body, version)?.request;
                let topics = acknowledge.topics.iter().flat_map(|topic| {
                    topic.partitions.iter().map(|partition| (topic.topic_id, partition.partition_index))
                });
                topics.filter_map(|(id, index)| Some((self.topic_name(id)?, Some(index)))).collect()
            }
            _ => return None,
        })
    }
}
