//! A state of the model: partitions, records, brokers, workers, and the history that the properties need.
//!
//! Plain data of single bytes; other modules have the steps. The derived order only selects one of two mirror images
//! (see `steps`). Time is counted in ticks: a tick is a third of a lock.

use crate::connection::Connection;
use crate::entry::Entry;
use crate::fault::{Fault, PerFault};
use crate::ids::{
    BrokerId, ConnectionId, PartitionId, PartitionSet, PerBroker, PerPartition, PerSlot, PerTask, PerWorker, Slot,
    TaskId, WorkerId, WorkerSet,
};
use crate::scenario::Scenario;
use crate::twin::Twin;
use crate::violation::Violation;

/// Duration of a lock in ticks.
pub const LOCK: u8 = 3;

/// The leader of a partition and its epoch, real or in a worker's metadata.
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
    /// The worker that holds its lock.
    pub owner: Option<WorkerId>,
    /// Ticks until the lock expires.
    pub lock_left: u8,
}

impl Record {
    /// Whether this worker holds the record's lock, with no accept or release in progress.
    pub fn is_acquired_by(&self, worker: WorkerId) -> bool {
        self.state == RecordState::Acquired && self.owner == Some(worker)
    }

    /// Whether an accept or release of the record is being persisted.
    pub fn is_in_transition(&self) -> bool {
        matches!(self.state, RecordState::Accepting | RecordState::Releasing)
    }

    /// Whether the record is locked, even if an accept or release is being persisted.
    pub fn is_locked(&self) -> bool {
        self.state == RecordState::Acquired || self.is_in_transition()
    }
}

/// Condition of a broker.
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
    /// Ticks since it froze or crashed, at most two; then another leader may be elected.
    pub down: u8,
    /// The connections of worker 0 to this broker stall.
    pub cut: bool,
}

/// A worker's share session at a broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session {
    /// The connection that has the session.
    pub connection: Place,
    pub partitions: PartitionSet,
}

/// The slot of a connection, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    At(Slot),
    #[default]
    None,
}

impl Place {
    /// The slot, if there is one.
    pub fn slot(self) -> Option<Slot> {
        match self {
            Self::At(slot) => Some(slot),
            Self::None => None,
        }
    }
}

/// Stage of a worker's session at one broker.
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
    /// The current connection; the others are superseded and read to their end.
    pub current: Place,
    pub stage: IntakeStage,
    /// All locks at this broker must be renewed before anything else (rule 2).
    pub renew_all: bool,
    /// A superseded epoch 0 was answered late: epoch 0 is due once more on the current connection (rule 6).
    pub open_again: bool,
}

/// Phase of a worker; it never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Phase {
    #[default]
    Running,
    Draining,
    /// Left with exit code 0.
    Drained,
    Killed,
    /// Left at the limit of its drain, with a warning in its log.
    Abandoned,
}

impl Phase {
    /// Whether the process is running.
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
    /// It got SIGUSR1 and takes nothing new until SIGUSR2 (rule 24). A property of `Running`, not a phase.
    pub quiet: bool,
    pub intakes: PerBroker<Intake>,
    /// The leaders in its metadata.
    pub leaders: PerPartition<Leader>,
    /// The partitions that it fetches from.
    pub fetched: PartitionSet,
    /// One account for all intakes (rule 8).
    pub account: PerTask<Entry>,
    /// Twins only: the recovery flag that a former worker had for all partitions together.
    pub recovering: bool,
}

/// History of a task, as far as the properties need it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct History {
    /// The workers with a result for it in the log.
    pub results: WorkerSet,
    /// Number of starts, at most three.
    pub starts: u8,
    /// Number of lock losses that permit a second start, at most three.
    pub causes: u8,
}

/// A state of the model.
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
    /// Number of produced tasks.
    pub produced: u8,
    /// The first broken property; such a state has no successors.
    pub violation: Option<Violation>,
}

impl State {
    /// The first state of a scenario: no connections, no sessions, and all workers know the leaders.
    pub fn initial(scenario: &Scenario) -> Self {
        let second = if scenario.same_leader { BrokerId::B0 } else { BrokerId::B1 };
        let leaders = PerPartition([BrokerId::B0, second].map(|broker| Leader { broker, epoch: 0 }));
        let worker = Worker {
            sessions: PerBroker::default(),
            connections: PerBroker::default(),
            phase: Phase::Running,
            quiet: false,
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

    /// Whether any of these faults has happened.
    pub fn has_had(&self, scenario: &Scenario, faults: &[Fault]) -> bool {
        faults.iter().any(|&fault| self.faults_left[fault] < scenario.faults[fault])
    }

    /// The connection, if it exists.
    pub fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        self.workers[id.worker].connections[id.broker][id.slot].as_ref()
    }

    /// The slot of the connection.
    pub fn connection_mut(&mut self, id: ConnectionId) -> &mut Option<Connection> {
        &mut self.workers[id.worker].connections[id.broker][id.slot]
    }

    /// Changes the connection, if it exists.
    pub fn change_connection(&mut self, id: ConnectionId, change: impl FnOnce(&mut Connection)) {
        if let Some(connection) = self.connection_mut(id) {
            change(connection);
        }
    }

    /// Whether the path between worker and broker is cut.
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

    /// Whether the broker has the worker's session on this connection.
    pub fn has_session(&self, id: ConnectionId) -> bool {
        self.workers[id.worker].sessions[id.broker].connection == Place::At(id.slot)
    }

    /// Whether this is the worker's current connection to its broker.
    pub fn is_current(&self, id: ConnectionId) -> bool {
        self.workers[id.worker].intakes[id.broker].current == Place::At(id.slot)
    }

    /// Records a broken property; only the first counts.
    pub fn violate(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }
}

impl Worker {
    /// The partitions that it fetches from this broker.
    pub fn fetched_at(&self, broker: BrokerId, scenario: &Scenario) -> PartitionSet {
        scenario
            .partitions()
            .filter(|&partition| self.leaders[partition].broker == broker && self.fetched.contains(partition))
            .collect()
    }

    /// The partitions of its session with this broker: those that it fetches, and those with a record that it holds
    /// (rule 20).
    pub fn partitions_at(&self, broker: BrokerId, scenario: &Scenario) -> PartitionSet {
        let is_held = |task: TaskId| self.account[task].lock == Some(broker) && !scenario.has(Twin::ForgetHeld);
        let held: PartitionSet = scenario
            .tasks()
            .filter(|&task| is_held(task))
            .map(|task| scenario.partition_of(task))
            .filter(|&partition| self.leaders[partition].broker == broker)
            .collect();
        self.fetched_at(broker, scenario) | held
    }

    /// Whether it takes tasks: it does not drain and is not quiet.
    pub fn takes(&self) -> bool {
        self.phase == Phase::Running && !self.quiet
    }

    /// Whether it holds a lock at this broker, by its own account.
    pub fn holds_at(&self, broker: BrokerId) -> bool {
        self.account.0.iter().any(|entry| entry.lock == Some(broker))
    }

    /// The current connection to this broker, if it exists.
    pub fn current_connection(&self, broker: BrokerId) -> Option<&Connection> {
        let slot = self.intakes[broker].current.slot()?;
        self.connections[broker][slot].as_ref()
    }

    /// Whether a request on a current connection has had no result for a tick.
    pub fn waits_for_a_broker(&self) -> bool {
        BrokerId::ALL.into_iter().any(|it| self.current_connection(it).is_some_and(|connection| connection.silence > 0))
    }

    /// Number of tasks that occupy a handler.
    pub fn tasks_at_work(&self) -> usize {
        self.account.0.iter().filter(|entry| entry.progress.is_at_work()).count()
    }
}
