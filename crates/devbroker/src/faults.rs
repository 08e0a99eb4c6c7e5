//! Faults on demand: which action, at which requests, how often.
//!
//! Only a plan: [`answer`](super::answer) asks it at every request and carries out the due actions. Called by tests,
//! through [`Broker`](super::Broker).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kafka_protocol::messages::ApiKey;
use parking_lot::Mutex;

use super::scope::Scope;
use kafka_share::ErrorCode;

/// In place of the api key of a request.
const NO_REQUEST: i16 = -1;

/// Kinds of requests at which faults can be due.
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
    /// SaslHandshake
    SaslHandshake,
    /// SaslAuthenticate
    SaslAuthenticate,
    /// The TLS handshake, once its ClientHello is read. It is no request: only faults of this kind are due at it, and
    /// its client has no id. `Deafen`, `Truncate`, `Alert`, `CutBefore`, `Delay` and `CutAfter` (after the handshake)
    /// take effect; other actions do nothing.
    TlsHandshake,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 13] = [
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
        Self::SaslHandshake,
        Self::SaslAuthenticate,
        Self::TlsHandshake,
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
            Self::SaslHandshake => ApiKey::SaslHandshake,
            Self::SaslAuthenticate => ApiKey::SaslAuthenticate,
            Self::TlsHandshake => return NO_REQUEST,
        };
        key as i16
    }

    pub(super) fn of_api_key(key: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.api_key() == key)
    }
}

/// The effect of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The request has no effect and gets this code. A fault of one topic or partition refuses only that; the rest of
    /// the request is handled normally.
    Refuse(ErrorCode),
    /// The request has its effect, but gets this code.
    Misreport(ErrorCode),
    /// The request's acknowledgements are refused with this code; the rest of it is handled normally.
    RefuseAcknowledgements(ErrorCode),
    /// The request has its effect after this time.
    Delay(Duration),
    /// The request has its effect; its response, as of then, is sent after this time. Meanwhile the broker reads
    /// nothing from the connection.
    Late(Duration),
    /// The connection is closed; the request has no effect.
    CutBefore,
    /// The request has its effect; instead of a response the connection is closed.
    CutAfter,
    /// The response is sent twice.
    AnswerTwice,
    /// The request has no effect. Its connection stays open, but the broker neither writes nor reads on it, and does
    /// not notice its end.
    Deafen,
    /// The request has its effect. The response says how long the client is throttled, and the broker reads nothing
    /// from the connection for this long. The responses to Fetch and ShareFetch bring no records, as in Kafka.
    Throttle(Duration),
    /// The request has its effect. In a Fetch or ShareFetch response each partition's first batch has a wrong checksum,
    /// as after a bit error on the wire. In the SaslAuthenticate response that ends SCRAM the server's signature is
    /// wrong. Other responses are unchanged.
    Damage,
    /// The request has its effect; the socket gets the bytes of its response one by one.
    Trickle,
    /// The request has its effect; only this many bytes of its response, or of the server's first flight in a TLS
    /// handshake, are sent. Then the connection is deaf as after [`Self::Deafen`].
    Truncate(usize),
    /// The request has no effect; a fatal TLS alert (bad_record_mac) ends the connection. Without TLS it is closed.
    Alert,
    /// The whole broker freezes for this time, before the effect.
    Freeze(Duration),
    /// The whole broker is killed and starts again after this time; its memory survives.
    Restart(Duration),
    /// From now on the next node leads all partitions that the request's node leads.
    MoveLeaders,
    /// From now on the next node coordinates all groups that the request's node coordinates.
    MoveCoordinators,
}

/// One entry of the plan: an action and its requests. By default it is due once, at the next request of any kind from
/// any client.
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
}

impl Fault {
    /// Makes a fault that is due once, at any request.
    pub fn new(action: Action) -> Self {
        Self { action, kind: None, client: None, topic: None, partition: None, node: None, skip: 0, every: 1, times: 1 }
    }

    /// Whether the fault is bound to a topic or partition.
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

    /// Only at requests that concern this partition, of any topic or of the topic of [`Self::of_topic`].
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

    /// Lets this many of these requests pass first.
    #[must_use]
    pub fn after(mut self, requests: u32) -> Self {
        self.skip = requests;
        self
    }

    /// At every n-th of these requests, this many times in all.
    #[must_use]
    pub fn every(mut self, nth: u32, times: u32) -> Self {
        (self.every, self.times) = (nth.max(1), times);
        self
    }
}

/// A fault that is due at one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub action: Action,
    /// The topic and partition of the fault, if it is bound to any.
    pub topic: Option<String>,
    pub partition: Option<i32>,
}

impl Due {
    /// Whether it concerns the whole request.
    pub fn is_whole(&self) -> bool {
        self.topic.is_none() && self.partition.is_none()
    }
}

/// Counts how often a fault took effect.
#[derive(Clone, Debug)]
pub struct Bites(Arc<AtomicU32>);

impl Bites {
    /// Returns the count.
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
#[derive(Debug, Default)]
pub(super) struct Faults {
    armed: Mutex<Vec<Armed>>,
}

impl Faults {
    /// Adds to the plan.
    pub fn add(&self, fault: Fault) -> Bites {
        let bites = Arc::new(AtomicU32::new(0));
        self.armed.lock().push(Armed { fault, seen: 0, bites: Arc::clone(&bites) });
        Bites(bites)
    }

    /// Empties the plan.
    pub fn clear(&self) {
        self.armed.lock().clear();
    }

    /// Returns the faults that are due at this request, in the order of the plan. Calls `scope` only if a fault is
    /// bound to a topic or partition.
    pub fn due(&self, api_key: i16, client: &str, node: i32, scope: impl FnOnce() -> Scope) -> Vec<Due> {
        let bound = self.armed.lock().iter().any(|entry| entry.fault.is_bound());
        let scope = if bound { scope() } else { Scope::default() };
        let mut due = Vec::new();
        for entry in self.armed.lock().iter_mut() {
            let fault = &entry.fault;
            let matches = fault.kind.map_or(api_key != NO_REQUEST, |kind| kind.api_key() == api_key)
                && fault.client.as_ref().is_none_or(|id| client.contains(id.as_str()))
                && fault.node.is_none_or(|id| id == node)
                && (!fault.is_bound() || scope.has(fault.topic.as_deref(), fault.partition));
            if !matches || entry.bites.load(Ordering::SeqCst) >= fault.times {
                continue;
            }
            entry.seen += 1;
            if entry.seen > fault.skip && (entry.seen - fault.skip - 1).is_multiple_of(fault.every) {
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
    fn fault_is_due_only_at_its_requests() {
        let faults = Faults::default();
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
    fn kinds_match_their_api_keys() {
        for kind in Kind::ALL {
            assert_eq!(Kind::of_api_key(kind.api_key()), Some(kind));
        }
        assert_eq!(Kind::of_api_key(18), None);
    }
}
