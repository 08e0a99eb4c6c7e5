//! What Kafka refuses the producer for good, a missing right above all: said once, known to the producer's handles, and
//! forgotten with the first success.

use std::sync::Arc;

use super::{DeliveryError, Shared};
use crate::kafka::error::{ErrorCode, KafkaError, Retry};

const CLUSTER: &str = "the cluster";

/// See the module documentation.
pub(super) struct Denials {
    /// The producer's name.
    name: String,
    shared: Arc<Shared>,
    /// How many there are; the map itself is behind a lock.
    count: usize,
}

impl Denials {
    pub(super) fn new(name: &str, shared: Arc<Shared>) -> Self {
        Self { name: name.to_owned(), shared, count: 0 }
    }

    /// What an error says about a topic, if it is a code that no repetition cures.
    pub(super) fn note(&mut self, error: &KafkaError, topic: &str) -> Option<DeliveryError> {
        let KafkaError::Broker { request, code, .. } = error else { return None };
        if code.retry() != Retry::Never {
            return None;
        }
        let (right, resource) = match *request {
            "InitProducerId" => ("IdempotentWrite", CLUSTER.into()),
            "Produce" if *code == ErrorCode::CLUSTER_AUTHORIZATION_FAILED => ("IdempotentWrite", CLUSTER.into()),
            "Produce" => ("Write", resource(topic)),
            _ => ("Describe", resource(topic)),
        };
        let denied = DeliveryError::Denied { right, resource: Arc::clone(&resource), code: *code };
        let mut all = self.shared.denied.lock();
        if all.insert(resource, denied.clone()).is_none() {
            log::error!("{}: {denied}; records that need it fail until it is granted", self.name);
        }
        self.count = all.len();
        Some(denied)
    }

    /// A record was written to the topic.
    pub(super) fn over(&mut self, topic: &str) {
        if self.count == 0 {
            return;
        }
        let mut all = self.shared.denied.lock();
        for resource in [resource(topic), CLUSTER.into()] {
            if all.remove(&resource).is_some() {
                log::info!("{}: Kafka takes records again: {resource}", self.name);
            }
        }
        self.count = all.len();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

fn resource(topic: &str) -> Arc<str> {
    format!("topic {topic}").into()
}
