//! A state of the world: partitions, records, brokers, workers, and what happened so far as far as the properties ask
//! for it.
//!
//! Plain data of single bytes; the steps are in the other modules. The derived order has no meaning but to pick one of
//! two mirror images (see `steps`). Time is counted in ticks: one is a third of a lock.

use crate::account::Entry;
use crate::connection::Connection;
use crate::fault::PerFault;
use crate::ids::{
    BrokerId, ConnectionId, PartitionId, PartitionSet, PerBroker, PerPartition, PerSlot, PerTask, PerWorker, Slot,
    WorkerId, WorkerSet,
};
use crate::property::Violation;
use crate::scenario::Scenario;

/// Ticks that a lock lasts.
pub const LOCK: u8 = 3;

/// The leader of a partition and its epoch: as it is, or as a worker knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Leader {
    pub broker: BrokerId,
    pub epoch: u8,
}

/// The state of a record at the leader of its partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RecordState {
    #[default]
    NotProduced,
    Available,
    Acquired,
    /// The accept has arrived and is being persisted.
    Accepting,
    /// The release has arrived and is being persisted.
    Releasing,
    Accepted,
}

/// A record at the leader of its partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record {
    pub state: RecordState,
    /// The worker whose lock it is under.
    pub owner: Option<WorkerId>,
    /// Ticks until the lock runs out.
    pub lock_left: u8,
}

impl Record {
    /// Whether the record is under a lock of this worker that no unpersisted write is about to end.
    pub fn is_acquired_by(&self, worker: WorkerId) -> bool {
        self.state == RecordState::Acquired && self.owner == Some(worker)
    }

    /// Whether a write of its state is being persisted.
    pub fn is_in_transition(&self) -> bool {
        matches!(self.state, RecordState::Accepting | RecordState::Releasing)
    }

    /// Whether the record is under a lock, whatever is being persisted.
    pub fn is_locked(&self) -> bool {
        self.state == RecordState::Acquired || self.is_in_transition()
    }
}

/// Whether a broker works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Health {
    #[default]
    Up,
    Frozen,
    Crashed,
}

/// A broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Broker {
    pub health: Health,
    /// Ticks since it froze or crashed, at most two: then another leader may be elected.
    pub down: u8,
    /// The connections of worker 0 to it stall.
    pub cut: bool,
}

/// What a broker knows of a worker's share session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session {
    /// The connection that has the session.
    pub connection: Place,
    pub partitions: PartitionSet,
}

/// The place of a connection, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    At(Slot),
    #[default]
    None,
}

impl Place {
    /// The place, if there is one.
    pub fn slot(self) -> Option<Slot> {
        match self {
            Self::At(slot) => Some(slot),
            Self::None => None,
        }
    }
}

/// How far a worker's intake is with its session at one broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum IntakeStage {
    /// No session.
    #[default]
    Idle,
    /// Epoch 0 is out.
    Opening,
    Open,
    /// Closed with epoch -1, in a drain.
    Closed,
    /// Answered 122 or 123: epoch 0 is due on the same connection (rule 3).
    Refused,
}

/// A worker's intake from one broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Intake {
    /// The connection in use; the others are superseded and read to their end.
    pub current: Place,
    pub stage: IntakeStage,
    /// All locks held at this broker have to be renewed before anything else (rule 2).
    pub renew_all: bool,
    /// A superseded epoch 0 was answered late: epoch 0 is due once more on the current connection (rule 6).
    pub open_again: bool,
}

/// Whether a worker works. The phase never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Phase {
    #[default]
    Running,
    Draining,
    /// Left with exit code 0.
    Drained,
    Killed,
    /// Left at the limit of its drain, and logged a warning.
    Abandoned,
}

impl Phase {
    /// Whether the process runs.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Running | Self::Draining)
    }
}

/// A worker, both ends of its connections, and its sessions at the brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Worker {
    pub sessions: PerBroker<Session>,
    pub connections: PerBroker<PerSlot<Option<Connection>>>,
    pub phase: Phase,
    pub intakes: PerBroker<Intake>,
    /// The leaders that it knows from metadata.
    pub leaders: PerPartition<Leader>,
    /// The partitions that it fetches from.
    pub fetched: PartitionSet,
    /// One account for all intakes (rule 8).
    pub account: PerTask<Entry>,
    /// Twins only: the recovery flag that the worker once had for all partitions together.
    pub recovering: bool,
}

/// What happened to a task, as far as the properties ask for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct History {
    /// The workers whose result for it is in the log.
    pub results: WorkerSet,
    /// How often it was started, at most three.
    pub starts: u8,
    /// How often its lock was taken away by something that permits a second start, at most three.
    pub causes: u8,
}

/// A state of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    pub leaders: PerPartition<Leader>,
    pub records: PerTask<Record>,
    pub brokers: PerBroker<Broker>,
    /// The share coordinator is unavailable.
    pub coordinator_unavailable: bool,
    /// The results topic is unavailable.
    pub results_unavailable: bool,
    pub workers: PerWorker<Worker>,
    pub history: PerTask<History>,
    /// How often each fault may still occur.
    pub faults_left: PerFault<u8>,
    /// How many tasks are produced.
    pub produced: u8,
    /// The first broken property; such a state has no successors.
    pub violation: Option<Violation>,
}

impl State {
    /// Where a scenario begins: no connections, no sessions, and all workers know the leaders.
    pub fn initial(scenario: &Scenario) -> Self {
        let second = if scenario.same_leader { BrokerId::B0 } else { BrokerId::B1 };
        let leaders = PerPartition([BrokerId::B0, second].map(|broker| Leader { broker, epoch: 0 }));
        let worker = Worker {
            sessions: PerBroker::default(),
            connections: PerBroker::default(),
            phase: Phase::Running,
            intakes: PerBroker::default(),
            leaders,
            fetched: scenario.partitions().collect(),
            account: PerTask::default(),
            recovering: false,
        };
        let mut state = Self {
            leaders,
            records: PerTask::default(),
            brokers: PerBroker::default(),
            coordinator_unavailable: false,
            results_unavailable: false,
            workers: PerWorker([worker; 2]),
            history: PerTask::default(),
            faults_left: scenario.faults,
            produced: 0,
            violation: None,
        };
        if scenario.one_worker {
            state.workers[WorkerId::W1].phase = Phase::Killed;
        }
        if !scenario.produce_later {
            for task in scenario.tasks() {
                state.records[task].state = RecordState::Available;
                state.produced += 1;
            }
        }
        state
    }

    /// The connection, if it exists.
    pub fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        self.workers[id.worker].connections[id.broker][id.slot].as_ref()
    }

    /// The place of the connection.
    pub fn connection_mut(&mut self, id: ConnectionId) -> &mut Option<Connection> {
        &mut self.workers[id.worker].connections[id.broker][id.slot]
    }

    /// Changes the connection, if it exists.
    pub fn change_connection(&mut self, id: ConnectionId, change: impl FnOnce(&mut Connection)) {
        if let Some(connection) = self.connection_mut(id) {
            change(connection);
        }
    }

    /// Whether the path between the two is cut.
    pub fn is_cut(&self, worker: WorkerId, broker: BrokerId) -> bool {
        worker == WorkerId::W0 && self.brokers[broker].cut
    }

    /// Whether bytes pass on this connection.
    pub fn passes(&self, id: ConnectionId, connection: &Connection) -> bool {
        !connection.black_hole && !self.is_cut(id.worker, id.broker)
    }

    /// Whether the broker leads the partition.
    pub fn leads(&self, broker: BrokerId, partition: PartitionId) -> bool {
        self.leaders[partition].broker == broker
    }

    /// Whether the connection has the worker's session at its broker.
    pub fn has_session(&self, id: ConnectionId) -> bool {
        self.workers[id.worker].sessions[id.broker].connection == Place::At(id.slot)
    }

    /// Whether the worker uses this connection now.
    pub fn is_current(&self, id: ConnectionId) -> bool {
        self.workers[id.worker].intakes[id.broker].current == Place::At(id.slot)
    }

    /// Notes a broken property. The first counts.
    pub fn violate(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }
}

impl Worker {
    /// The partitions that it fetches from this broker.
    pub fn partitions_at(&self, broker: BrokerId, scenario: &Scenario) -> PartitionSet {
        scenario
            .partitions()
            .filter(|&partition| self.leaders[partition].broker == broker && self.fetched.contains(partition))
            .collect()
    }

    /// Whether it holds a lock at this broker, as far as it knows.
    pub fn holds_at(&self, broker: BrokerId) -> bool {
        self.account.0.iter().any(|entry| entry.lock == Some(broker))
    }

    /// The connection in use at this broker, if it exists.
    pub fn current_connection(&self, broker: BrokerId) -> Option<&Connection> {
        let slot = self.intakes[broker].current.slot()?;
        self.connections[broker][slot].as_ref()
    }

    /// Whether a request on a connection in use has had no result for a tick.
    pub fn waits_for_a_broker(&self) -> bool {
        BrokerId::ALL.into_iter().any(|it| self.current_connection(it).is_some_and(|connection| connection.silence > 0))
    }

    /// Tasks that occupy a handler.
    pub fn tasks_at_work(&self) -> usize {
        self.account.0.iter().filter(|entry| entry.progress.is_at_work()).count()
    }
}
