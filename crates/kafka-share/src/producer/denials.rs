//! Denials: requests that Kafka refuses for good, above all for a missing right. Each is logged once and visible to the
//! producer's handles. It ends with the first success. Without records nothing would end it, so after [`AGE`] the
//! cluster is asked whether a right to a topic is still missing; another denial ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{DeliveryError, Shared};
use crate::error::{ErrorCode, KafkaError, Retry};

pub(super) const CLUSTER: &str = "the cluster";
/// How long a denial counts after its last refused record.
const AGE: Duration = Duration::from_secs(10);

/// One denial.
#[derive(Clone, Debug)]
pub(super) struct Denial {
    pub(super) error: DeliveryError,
    topic: Arc<str>,
    last: Instant,
}

impl Denial {
    /// Whether the cluster tells when it ends.
    fn is_of_topic(&self) -> bool {
        matches!(self.error, DeliveryError::Denied { code: ErrorCode::TOPIC_AUTHORIZATION_FAILED, .. })
    }
}

/// All current denials.
pub(super) struct Denials {
    /// The producer's name.
    name: String,
    shared: Arc<Shared>,
}

impl Denials {
    pub(super) fn new(name: &str, shared: Arc<Shared>) -> Self {
        Self { name: name.to_owned(), shared }
    }

    /// Records the denial in an error; `None` for errors that repeating may cure.
    pub(super) fn note(&mut self, error: &KafkaError, topic: &str, now: Instant) -> Option<DeliveryError> {
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
        let error = DeliveryError::Denied { right, resource: Arc::clone(&resource), code: *code };
        let denial = Denial { error: error.clone(), topic: topic.into(), last: now };
        if self.shared.denied.lock().insert(resource, denial).is_none() {
            log::error!("{}: {error}; records that need it fail until it is granted", self.name);
        }
        self.shared.is_denied.store(true, Ordering::Relaxed);
        Some(error)
    }

    /// Ends the denials of a topic after a record was written to it.
    pub(super) fn over(&mut self, topic: &str) {
        if !self.is_empty() {
            let written = resource(topic);
            self.end(|resource, _| *resource == *written || resource == CLUSTER);
        }
    }

    /// Returns the topics with a denial that is older than [`AGE`]: the cluster has to be asked. Ends old denials of
    /// which the cluster tells nothing.
    pub(super) fn take_old(&mut self, now: Instant) -> Vec<Arc<str>> {
        if self.is_empty() {
            return Vec::new();
        }
        let is_old = |denial: &Denial| now.saturating_duration_since(denial.last) >= AGE;
        self.end(|_, denial| is_old(denial) && !denial.is_of_topic());
        let mut all = self.shared.denied.lock();
        let old = all.values_mut().filter(|denial| is_old(denial));
        old.map(|denial| {
            denial.last = now;
            Arc::clone(&denial.topic)
        })
        .collect()
    }

    fn end(&mut self, ended: impl Fn(&str, &Denial) -> bool) {
        let mut all = self.shared.denied.lock();
        all.retain(|resource, denial| {
            let ended = ended(resource, denial);
            if ended {
                log::info!("{}: no longer refused: {}", self.name, denial.error);
            }
            !ended
        });
        self.shared.is_denied.store(!all.is_empty(), Ordering::Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.shared.is_denied.load(Ordering::Relaxed)
    }
}

pub(super) fn resource(topic: &str) -> Arc<str> {
    format!("topic {topic}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denial_ends_after_a_success_on_its_topic_and_its_right_is_asked_for_every_ten_seconds() {
        let shared = Arc::new(Shared::new());
        let mut denials = Denials::new("test", Arc::clone(&shared));
        let now = Instant::now();
        let refused = |request, code| KafkaError::broker(request, ErrorCode(code), None);
        assert_eq!(denials.note(&refused("Produce", 6), "a", now), None, "a leader that moves is no denial");
        let write = denials.note(&refused("Produce", 29), "a", now).expect("a denial");
        assert_eq!(write.to_string(), "Kafka refuses Write on topic a: TOPIC_AUTHORIZATION_FAILED (29)");
        assert!(denials.note(&refused("Produce", 31), "a", now).expect("a denial").to_string().contains("the cluster"));
        assert!(denials.note(&refused("Metadata", 29), "b", now).expect("a denial").to_string().contains("Describe"));
        denials.over("a");
        assert_eq!(shared.denied.lock().keys().map(|name| &**name).collect::<Vec<_>>(), ["topic b"]);
        denials.note(&refused("Produce", 31), "c", now).expect("a denial");
        assert!(denials.take_old(now + AGE / 2).is_empty());
        assert_eq!(shared.denied.lock().len(), 2);
        assert_eq!(denials.take_old(now + AGE), ["b".into()]);
        assert_eq!(shared.denied.lock().len(), 1, "the right to the cluster is not asked for");
        assert!(denials.take_old(now + AGE).is_empty(), "asked just now");
        denials.over("b");
        assert!(denials.is_empty());
    }
}
