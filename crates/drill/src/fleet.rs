//! A fleet that can be acted on: what every kind of it has in common.
//!
//! Called by the director, which says when; a fleet says how, and to whom. What it does it tells as facts.

use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use serde::{Deserialize, Serialize};

use kafka_share::BrokerAddress;

use super::clock::Clock;
use super::event::Event;
use super::fact::{Fact, Line};
use super::options::GatewayAddress;
use super::plan::What;
use super::process::Happening;
use super::schedule::Planned;

/// `MAX_DELIVERIES` of a worker that is not told otherwise.
pub(super) const MAX_DELIVERIES: u32 = 5;
/// How long a lock lasts: what the programs write into their group's settings.
pub(super) const LOCK: Duration = Duration::from_secs(15);

/// Where a fleet is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its gateways; the load goes to each in turn.
    pub gateways: Vec<GatewayAddress>,
    /// Brokers to ask first.
    pub bootstrap: Vec<BrokerAddress>,
    /// `TASKS_TOPIC`
    pub tasks_topic: String,
    /// `RESULTS_TOPIC`
    pub results_topic: String,
    /// `WORKER_GROUP`
    pub group: String,
    /// `DRAIN_TIMEOUT` of the workers.
    pub drain_timeout: Duration,
    /// `STOP_GRACE_PERIOD` of the gateways.
    pub gateway_grace: Duration,
    /// `WORKER_TIMEOUT` of the gateways.
    pub worker_timeout: Duration,
    /// `WORKER_CONCURRENCY` of the workers.
    pub concurrency: u32,
    /// `MAX_DELIVERIES` of the workers.
    pub max_deliveries: u32,
    /// How long a lock of their group lasts.
    pub lock: Duration,
    /// What its broker takes by itself.
    pub pauses: Pauses,
}

impl Place {
    /// A fleet whose programs were told nothing else.
    pub(super) fn of(gateways: Vec<GatewayAddress>, bootstrap: Vec<BrokerAddress>) -> Self {
        Self {
            gateways,
            bootstrap,
            tasks_topic: "tasks".to_owned(),
            results_topic: "results".to_owned(),
            group: "workers".to_owned(),
            drain_timeout: Duration::from_secs(30),
            gateway_grace: Duration::from_secs(30),
            worker_timeout: Duration::from_secs(5),
            concurrency: 1,
            max_deliveries: MAX_DELIVERIES,
            lock: LOCK,
            pauses: Pauses::default(),
        }
    }
}

/// What a broker takes by itself when one of its nodes goes, in milliseconds; 0 where nothing is known of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pauses {
    /// For how long a node may be silent before the others take over from it.
    pub fail_over_ms: u64,
    /// How long a partition may then be without its share state, also when the node stopped in order, and after the only node is back.
    pub state_read_ms: u64,
    /// How long records wait for a node that stops, until it is no more among the replicas in sync.
    pub in_sync_ms: u64,
}

/// What came of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// It was begun; facts tell the rest.
    Begun,
    /// It hits nobody just now: why.
    NotNow(String),
    /// Another action has to end first: which.
    NotInTurn(String),
}

/// See the module documentation.
pub(super) trait Fleet: Send {
    /// What it is, in a few words.
    fn describe(&self) -> String;

    /// Whether this can be done to it at all.
    ///
    /// # Errors
    /// Why not, and what would help.
    fn can(&self, what: What) -> Result<(), String>;

    /// Begins an action. `number` counts the actions of the run.
    fn order(&mut self, number: u32, planned: &Planned) -> Attempt;

    /// Takes what a process of it told.
    fn happened(&mut self, _: Happening) {}

    /// When [`tick`](Self::tick) has something to do; `None`: not by itself.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Does what is due.
    fn tick(&mut self) {}

    /// The load was ended before its time: what is left of the plan need not be done. Told before [`heal`](Self::heal).
    fn cut_short(&mut self) {}

    /// Ends every freeze and has everything started again that should run; [`is_sound`](Self::is_sound) tells when it does.
    fn heal(&mut self);

    /// Whether nothing is under way and everything that should run is ready.
    fn is_sound(&self) -> bool;

    /// Stops all workers, as `is_stopped` tells; those that ran before the drill go on.
    fn stop_workers(&mut self) {}

    /// Stops all gateways; those that ran before the drill go on.
    fn stop_gateways(&mut self) {}

    /// Whether those that were told to stop have.
    fn is_stopped(&self) -> bool {
        true
    }

    /// Ends all of it at once.
    fn end(&mut self);
}

/// Tells facts.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    pub(super) clock: Clock,
    pub(super) facts: Sender<Event>,
}

impl Teller {
    /// Something that is so now.
    pub(super) fn tell(&self, fact: Fact) {
        self.tell_at(self.clock.now(), fact);
    }

    /// Something that was so then.
    pub(super) fn tell_at(&self, at: f64, fact: Fact) {
        // The receiver is gone only when the drill ends.
        let _ = self.facts.send(Event::Fact(Line { at, fact }));
    }
}
