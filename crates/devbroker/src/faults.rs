//! Faults on demand: what shall go wrong, at which request, how often.
//!
//! A plan only: it is asked at every request and says what is due; [`core`](super::core) does it. What can be left to
//! chance is drawn from a seed. Called by tests, through [`Broker`](super::Broker).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kafka_protocol::messages::ApiKey;
use parking_lot::Mutex;

use super::scope::Scope;
use kafka_share::ErrorCode;

/// Kinds of requests that faults can be bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Produce
    Produce,
    /// Fetch
    Fetch,
    /// ListOffsets
    ListOffsets,
    /// Metadata
    Metadata,
    /// CreateTopics
    CreateTopics,
    /// InitProducerId
    InitProducerId,
    /// FindCoordinator
    FindCoordinator,
    /// ShareGroupHeartbeat
    ShareGroupHeartbeat,
    /// ShareFetch
    ShareFetch,
    /// ShareAcknowledge
    ShareAcknowledge,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Produce,
        Self::Fetch,
        Self::ListOffsets,
        Self::Metadata,
        Self::CreateTopics,
        Self::InitProducerId,
        Self::FindCoordinator,
        Self::ShareGroupHeartbeat,
        Self::ShareFetch,
        Self::ShareAcknowledge,
    ];

    pub(super) fn api_key(self) -> i16 {
        let key = match self {
            Self::Produce => ApiKey::Produce,
            Self::Fetch => ApiKey::Fetch,
            Self::ListOffsets => ApiKey::ListOffsets,
            Self::Metadata => ApiKey::Metadata,
            Self::CreateTopics => ApiKey::CreateTopics,
            Self::InitProducerId => ApiKey::InitProducerId,
            Self::FindCoordinator => ApiKey::FindCoordinator,
            Self::ShareGroupHeartbeat => ApiKey::ShareGroupHeartbeat,
            Self::ShareFetch => ApiKey::ShareFetch,
            Self::ShareAcknowledge => ApiKey::ShareAcknowledge,
        };
        key as i16
    }

    pub(super) fn of_api_key(key: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.api_key() == key)
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The request has no effect, the answer is this code. A fault of one topic or partition refuses that alone; the
    /// rest of the request is as ever.
    Refuse(ErrorCode),
    /// The request has its effect, and the answer is this code all the same.
    Misreport(ErrorCode),
    /// What the request acknowledges is refused with this code; the rest of it is as ever.
    RefuseAcknowledgements(ErrorCode),
    /// The request has its effect after so long.
    Delay(Duration),
    /// The request has its effect, and the answer to it, as it was then, is sent after so long. Meanwhile the broker reads
    /// nothing from the connection.
    Late(Duration),
    /// The connection is closed; the request has no effect.
    CutBefore,
    /// The request has its effect; the connection is closed instead of the answer.
    CutAfter,
    /// The answer comes twice.
    AnswerTwice,
    /// The request has no effect; its connection stays open, says nothing and hears nothing any more, not even its end.
    Deafen,
    /// The request has its effect, the answer tells the client how long it is throttled, and the broker reads nothing
    /// from the connection for this long. The answers to Fetch and ShareFetch bring no records, as with Kafka.
    Throttle(Duration),
    /// The request has its effect; in each partition of the answer to a Fetch or a ShareFetch the checksum of the first
    /// batch is wrong, as after a bit error on its way. Answers to other requests are as ever.
    Damage,
    /// The whole broker stands still for so long, from before the effect on.
    Freeze(Duration),
    /// The whole broker ends without a warning and starts again after so long; memory survives.
    Restart(Duration),
    /// The same, and all it knew is gone.
    Forget(Duration),
    /// The request's node alone stands still for so long, from before the effect on.
    FreezeNode(Duration),
    /// The request's node alone ends without a warning and starts again after so long.
    RestartNode(Duration),
    /// All partitions that the request's node leads are led by the next node from now on.
    MoveLeaders,
    /// All groups that the request's node coordinates are coordinated by the next node from now on.
    MoveCoordinators,
}

/// One entry of the plan: an action, and the requests at which it is due. Without more it is due once, at the next
/// request of any kind of any client.
#[derive(Clone, Debug)]
pub struct Fault {
    action: Action,
    kind: Option<Kind>,
    client: Option<String>,
    topic: Option<String>,
    partition: Option<i32>,
    node: Option<i32>,
    skip: u32,
    every: u32,
    times: u32,
    chance: f64,
}

impl Fault {
    /// See the type.
    pub fn new(action: Action) -> Self {
        Self {
            action,
            kind: None,
            client: None,
            topic: None,
            partition: None,
            node: None,
            skip: 0,
            every: 1,
            times: 1,
            chance: 1.0,
        }
    }

    /// Whether it concerns one topic or partition.
    fn is_bound(&self) -> bool {
        self.topic.is_some() || self.partition.is_some()
    }

    /// Only at requests of this kind.
    #[must_use]
    pub fn at(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Only at requests of clients whose id contains this.
    #[must_use]
    pub fn of_client(mut self, id: &str) -> Self {
        self.client = Some(id.to_owned());
        self
    }

    /// Only at requests that concern this topic.
    #[must_use]
    pub fn of_topic(mut self, name: &str) -> Self {
        self.topic = Some(name.to_owned());
        self
    }

    /// Only at requests that concern this partition, of any topic or of that of [`Self::of_topic`].
    #[must_use]
    pub fn of_partition(mut self, index: i32) -> Self {
        self.partition = Some(index);
        self
    }

    /// Only at requests to this node.
    #[must_use]
    pub fn on_node(mut self, id: i32) -> Self {
        self.node = Some(id);
        self
    }

    /// Lets so many of these requests pass first.
    #[must_use]
    pub fn after(mut self, requests: u32) -> Self {
        self.skip = requests;
        self
    }

    /// At every n-th of these requests, so many times in all.
    #[must_use]
    pub fn every(mut self, nth: u32, times: u32) -> Self {
        (self.every, self.times) = (nth.max(1), times);
        self
    }

    /// At each of these requests with this probability, so many times in all.
    #[must_use]
    pub fn by_chance(mut self, probability: f64, times: u32) -> Self {
        (self.chance, self.times) = (probability, times);
        self
    }
}

/// A fault at one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub action: Action,
    /// What the fault is bound to.
    pub topic: Option<String>,
    pub partition: Option<i32>,
}

impl Due {
    /// Whether it concerns the whole request.
    pub fn is_whole(&self) -> bool {
        self.topic.is_none() && self.partition.is_none()
    }
}

/// How often a fault has bitten so far.
#[derive(Clone, Debug)]
pub struct Bites(Arc<AtomicU32>);

impl Bites {
    /// The number.
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct Armed {
    fault: Fault,
    seen: u32,
    bites: Arc<AtomicU32>,
}

/// The plan of one broker.
#[derive(Debug)]
pub(super) struct Faults {
    armed: Mutex<(Vec<Armed>, fastrand::Rng)>,
}

impl Faults {
    pub fn new() -> Self {
        Self { armed: Mutex::new((Vec::new(), fastrand::Rng::with_seed(0))) }
    }

    /// Draws from this seed from now on.
    pub fn seed(&self, seed: u64) {
        self.armed.lock().1 = fastrand::Rng::with_seed(seed);
    }

    /// Adds to the plan.
    pub fn add(&self, fault: Fault) -> Bites {
        let bites = Arc::new(AtomicU32::new(0));
        self.armed.lock().0.push(Armed { fault, seen: 0, bites: Arc::clone(&bites) });
        Bites(bites)
    }

    /// Empties the plan.
    pub fn clear(&self) {
        self.armed.lock().0.clear();
    }

    /// What is due at this request, in the order of the plan. `scope` is asked for what the request concerns, if some
    /// fault wants to know.
    pub fn due(&self, api_key: i16, client: &str, node: i32, scope: impl FnOnce() -> Scope) -> Vec<Due> {
        let bound = self.armed.lock().0.iter().any(|entry| entry.fault.is_bound());
        let scope = if bound { scope() } else { Scope::default() };
        let mut armed = self.armed.lock();
        let (plan, random) = &mut *armed;
        let mut due = Vec::new();
        for entry in plan.iter_mut() {
            let fault = &entry.fault;
            let matches = fault.kind.is_none_or(|kind| kind.api_key() == api_key)
                && fault.client.as_ref().is_none_or(|id| client.contains(id.as_str()))
                && fault.node.is_none_or(|id| id == node)
                && (!fault.is_bound() || scope.has(fault.topic.as_deref(), fault.partition));
            if !matches || entry.bites.load(Ordering::SeqCst) >= fault.times {
                continue;
            }
            entry.seen += 1;
            let turn = entry.seen > fault.skip && (entry.seen - fault.skip - 1).is_multiple_of(fault.every);
            if turn && (fault.chance >= 1.0 || random.f64() < fault.chance) {
                entry.bites.fetch_add(1, Ordering::SeqCst);
                due.push(Due { action: fault.action, topic: fault.topic.clone(), partition: fault.partition });
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(faults: &Faults, kind: Kind, client: &str, requests: usize) -> Vec<usize> {
        (0..requests).filter(|_| !faults.due(kind.api_key(), client, 1, Scope::default).is_empty()).collect()
    }

    #[test]
    fn a_fault_is_due_where_it_was_asked_for() {
        let faults = Faults::new();
        let bites = faults.add(Fault::new(Action::CutBefore).at(Kind::Produce).of_client("gate").after(2));
        assert_eq!(turns(&faults, Kind::Fetch, "gateway", 3), [0; 0]);
        assert_eq!(turns(&faults, Kind::Produce, "worker", 3), [0; 0]);
        assert_eq!(turns(&faults, Kind::Produce, "gateway", 5), [2]);
        assert_eq!(bites.count(), 1);
        let bites = faults.add(Fault::new(Action::CutBefore).at(Kind::Fetch).every(3, 2));
        assert_eq!(turns(&faults, Kind::Fetch, "any", 10), [0, 3]);
        assert_eq!(bites.count(), 2);
        faults.add(Fault::new(Action::CutAfter));
        faults.clear();
        assert_eq!(turns(&faults, Kind::Fetch, "any", 10), [0; 0]);
    }

    #[test]
    fn chance_follows_its_seed() {
        let draw = |seed| {
            let faults = Faults::new();
            faults.seed(seed);
            faults.add(Fault::new(Action::CutBefore).by_chance(0.5, 1000));
            turns(&faults, Kind::Fetch, "any", 64)
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!((10..54).contains(&draw(3).len()));
    }

    #[test]
    fn kinds_are_found_by_their_keys() {
        for kind in Kind::ALL {
            assert_eq!(Kind::of_api_key(kind.api_key()), Some(kind));
        }
        assert_eq!(Kind::of_api_key(18), None);
    }
}
