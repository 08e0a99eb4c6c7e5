//! Topics of the records to be sent: their partitions and leaders, and the records that wait for these.
//!
//! An unavailable topic delays only its own records. The [`asker`](super::asker) asks the cluster for the wanted
//! topics. Pure: time is a parameter.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::trouble::Trouble;
use super::{LaneKey, Message};
use crate::error::KafkaError;
use crate::partitioner;

/// Interval at which a topic is asked for again, since partitions can be added.
const METADATA_AGE: Duration = Duration::from_secs(60);

/// One topic.
#[derive(Debug)]
struct Topic<T> {
    /// Leaders by partition; empty until known.
    leaders: Vec<i32>,
    /// Whether the cluster must be asked (again).
    wanted: bool,
    trouble: Trouble,
    /// Records without a partition, while the leaders are unknown.
    waiting: VecDeque<Message<T>>,
    bytes: usize,
}

/// All topics that records are sent to.
#[derive(Debug)]
pub(super) struct Topics<T> {
    topics: BTreeMap<Arc<str>, Topic<T>>,
    looked_at: Instant,
}

impl<T> Topics<T> {
    pub(super) fn new(now: Instant) -> Self {
        Self { topics: BTreeMap::new(), looked_at: now }
    }

    /// Assigns a record to its partition; keeps the record while the partition is unknown.
    pub(super) fn place(&mut self, message: Message<T>) -> Option<(LaneKey, Message<T>)> {
        if let Some(topic) = self.topics.get_mut(&message.record.topic) {
            return topic.place(message);
        }
        let mut topic =
            Topic { leaders: Vec::new(), wanted: false, trouble: Trouble::new(), waiting: VecDeque::new(), bytes: 0 };
        let name = Arc::clone(&message.record.topic);
        let placed = topic.place(message);
        self.topics.insert(name, topic);
        placed
    }

    /// Node id of the partition's leader, if it is known and exists.
    pub(super) fn leader(&self, (topic, partition): &LaneKey) -> Option<i32> {
        let leaders = &self.topics.get(topic)?.leaders;
        leaders.get(usize::try_from(*partition).ok()?).copied().filter(|leader| *leader >= 0)
    }

    /// Marks the topic's leaders for a new look-up.
    pub(super) fn want(&mut self, name: &Arc<str>) {
        if let Some(topic) = self.topics.get_mut(name) {
            topic.wanted = true;
        }
    }

    /// Returns the topics to ask the cluster for now; every [`METADATA_AGE`] all of them.
    pub(super) fn take_wanted(&mut self, now: Instant) -> Vec<Arc<str>> {
        if now.saturating_duration_since(self.looked_at) >= METADATA_AGE {
            self.looked_at = now;
            self.topics.values_mut().for_each(|topic| topic.wanted = true);
        }
        let due = self.topics.iter_mut().filter(|(_, topic)| topic.wanted && !topic.trouble.rests(now));
        due.map(|(name, topic)| {
            topic.wanted = false;
            Arc::clone(name)
        })
        .collect()
    }

    /// Takes a topic's leaders from the cluster. Returns the records that waited for them, with their partitions. Also
    /// returns how long the topic was missing, if that was logged.
    pub(super) fn learnt(
        &mut self,
        name: &Arc<str>,
        leaders: Vec<i32>,
        now: Instant,
    ) -> (Vec<(LaneKey, Message<T>)>, Option<Duration>) {
        let Some(topic) = self.topics.get_mut(name) else { return (Vec::new(), None) };
        topic.leaders = leaders;
        let waiting = topic.take_waiting();
        let placed = waiting.into_iter().filter_map(|message| topic.place(message)).collect();
        (placed, topic.trouble.over(now))
    }

    /// Notes that the cluster did not name the topic's leaders. Returns true if this is to be logged.
    pub(super) fn failed(&mut self, name: &Arc<str>, error: &KafkaError, now: Instant) -> bool {
        let Some(topic) = self.topics.get_mut(name) else { return false };
        // Known partitions ask for their leader themselves when they need it.
        topic.wanted = !topic.waiting.is_empty();
        topic.trouble.failed(error, now)
    }

    /// Takes the records that wait for a refused topic.
    pub(super) fn take_waiting_for(&mut self, name: &Arc<str>) -> Vec<Message<T>> {
        self.topics.get_mut(name).map(Topic::take_waiting).unwrap_or_default()
    }

    /// Takes the records that wait for any topic.
    pub(super) fn take_waiting(&mut self) -> Vec<Message<T>> {
        self.topics.values_mut().flat_map(Topic::take_waiting).collect()
    }

    /// Bytes of the records that wait for their topics.
    pub(super) fn bytes(&self) -> usize {
        self.topics.values().map(|topic| topic.bytes).sum()
    }

    /// For each topic with waiting records: whether it is missing for longer than a moment.
    pub(super) fn missing(&self) -> impl Iterator<Item = bool> {
        self.topics.values().filter(|topic| !topic.waiting.is_empty()).map(|topic| topic.trouble.lasts())
    }

    /// The moments at which topics are asked for again.
    pub(super) fn wakes_at(&self) -> impl Iterator<Item = Instant> {
        let rests = self.topics.values().filter(|topic| topic.wanted).filter_map(|topic| topic.trouble.rests_until());
        rests.chain([self.looked_at + METADATA_AGE])
    }
}

impl<T> Topic<T> {
    fn place(&mut self, message: Message<T>) -> Option<(LaneKey, Message<T>)> {
        if self.leaders.is_empty() {
            self.wanted = true;
            self.bytes += message.record.size();
            self.waiting.push_back(message);
            return None;
        }
        let count = i32::try_from(self.leaders.len()).unwrap_or(i32::MAX);
        let partition = partitioner::partition(message.record.key.as_deref(), count);
        Some(((Arc::clone(&message.record.topic), partition), message))
    }

    fn take_waiting(&mut self) -> Vec<Message<T>> {
        (self.bytes, self.wanted) = (0, false);
        std::mem::take(&mut self.waiting).into()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ErrorCode;
    use crate::producer::ProducerRecord;

    fn message(topic: &str, key: &str) -> Message<u32> {
        let key = Some(Bytes::copy_from_slice(key.as_bytes()));
        Message { record: ProducerRecord { topic: topic.into(), key, value: None, headers: Vec::new() }, token: 7 }
    }

    #[test]
    fn records_wait_only_for_their_own_topic_and_keep_their_order() {
        let now = Instant::now();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut topics = Topics::new(now);
        for (topic, key) in [("a", "1"), ("b", "1"), ("a", "2")] {
            assert!(topics.place(message(topic, key)).is_none());
        }
        assert_eq!(topics.take_wanted(now), [Arc::clone(&a), Arc::clone(&b)]);
        assert!(topics.take_wanted(now).is_empty(), "asked once");
        let missing = KafkaError::broker("Metadata", ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, None);
        topics.failed(&a, &missing, now);
        assert!(topics.take_wanted(now).is_empty(), "it rests");
        let (placed, _) = topics.learnt(&b, vec![3], now);
        assert_eq!(placed.iter().map(|(key, _)| topics.leader(key)).collect::<Vec<_>>(), [Some(3)]);
        assert!(topics.bytes() > 0 && topics.place(message("b", "2")).is_some());
        let later = now + Duration::from_secs(1);
        assert_eq!(topics.take_wanted(later), [Arc::clone(&a)]);
        let (placed, _) = topics.learnt(&a, vec![-1], later);
        let keys: Vec<_> = placed.iter().filter_map(|(_, message)| message.record.key.as_deref()).collect();
        assert_eq!(keys, [b"1", b"2"]);
        assert_eq!((topics.leader(&(a, 0)), topics.bytes()), (None, 0));
    }

    #[test]
    fn refused_topic_returns_its_records_and_is_asked_for_again_with_the_next() {
        let now = Instant::now();
        let name: Arc<str> = "a".into();
        let mut topics = Topics::new(now);
        topics.place(message("a", "1"));
        topics.take_wanted(now);
        let denied = KafkaError::broker("Metadata", ErrorCode::TOPIC_AUTHORIZATION_FAILED, None);
        topics.failed(&name, &denied, now);
        assert_eq!(topics.take_waiting_for(&name).len(), 1);
        let later = now + Duration::from_secs(1);
        assert!(topics.take_wanted(later).is_empty() && topics.bytes() == 0);
        topics.place(message("a", "2"));
        assert_eq!(topics.take_wanted(later), [name]);
    }
}
