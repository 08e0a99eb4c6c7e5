//! All steps that a state permits, and the reductions that make equal situations equal states.
//!
//! `broker`, `worker`, `intake`, `faults` and `clock` have the steps themselves. Called by `search` and `trace`.

use crate::connection::Stage;
use crate::ids::{BrokerId, ConnectionId, PartitionId, Slot, TaskId, WorkerId, WorkerSet};
use crate::scenario::Scenario;
use crate::state::State;
use crate::{broker, clock, faults, worker};
use std::fmt;

/// When a step may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Takes no time: it happens before the next tick. The search tries all orders of urgent steps.
    Urgent,
    /// May take any time.
    Lazy,
    /// May happen, but never has to.
    Fault,
    /// A third of a lock passes.
    Tick,
}

/// The subject of a step, for traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Everything,
    Worker(WorkerId),
    Broker(BrokerId),
    Partition(PartitionId, BrokerId),
    Visit(WorkerId, PartitionId),
    Record(TaskId),
    Task(WorkerId, TaskId),
    Connection(ConnectionId),
}

impl Subject {
    /// The same subject with the workers swapped.
    pub fn mirrored(self) -> Self {
        match self {
            Self::Worker(worker) => Self::Worker(worker.other()),
            Self::Visit(worker, partition) => Self::Visit(worker.other(), partition),
            Self::Task(worker, task) => Self::Task(worker.other(), task),
            Self::Connection(id) => Self::Connection(ConnectionId { worker: id.worker.other(), ..id }),
            Self::Everything | Self::Broker(_) | Self::Partition(..) | Self::Record(_) => self,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Everything => Ok(()),
            Self::Worker(worker) => write!(f, "worker {}", worker as u8),
            Self::Broker(broker) => write!(f, "broker {}", broker as u8),
            Self::Partition(partition, to) => write!(f, "partition {} to broker {}", partition as u8, to as u8),
            Self::Visit(worker, partition) => write!(f, "worker {}, partition {}", worker as u8, partition as u8),
            Self::Record(task) => write!(f, "task {}", task as u8),
            Self::Task(worker, task) => write!(f, "worker {}, task {}", worker as u8, task as u8),
            Self::Connection(ConnectionId { worker, broker, slot }) => {
                write!(f, "worker {}, broker {}, connection {}", worker as u8, broker as u8, slot as u8)
            }
        }
    }
}

/// A step and the state after it.
pub struct Step {
    pub kind: Kind,
    pub name: &'static str,
    pub subject: Subject,
    pub state: State,
}

/// The steps that a state permits.
#[derive(Default)]
pub struct Steps(pub Vec<Step>);

impl Steps {
    /// Adds a step.
    pub fn add(&mut self, kind: Kind, name: &'static str, subject: Subject, state: State) {
        self.0.push(Step { kind, name, subject, state });
    }

    /// Adds a step if there is one.
    pub fn add_some(&mut self, kind: Kind, name: &'static str, subject: Subject, state: Option<State>) {
        if let Some(state) = state {
            self.add(kind, name, subject, state);
        }
    }

    /// Whether any step must happen before the next tick.
    pub fn any_urgent(&self) -> bool {
        self.0.iter().any(|step| step.kind == Kind::Urgent)
    }
}

/// Replaces `steps` by all steps of a state. Their states are not yet reduced.
pub fn all(state: &State, scenario: &Scenario, steps: &mut Steps) {
    steps.0.clear();
    if state.violation.is_some() {
        return;
    }
    for worker in WorkerId::ALL {
        for broker in BrokerId::ALL {
            for slot in Slot::ALL {
                broker::steps(state, scenario, ConnectionId { worker, broker, slot }, steps);
            }
        }
        worker::steps(state, scenario, worker, steps);
    }
    faults::steps(state, scenario, steps);
    if !steps.any_urgent() {
        steps.add_some(Kind::Tick, "a third of a lock passes", Subject::Everything, clock::tick(state, scenario));
    }
}

/// Clears fields that can no longer matter. With symmetry, also chooses between the state and its mirror image; returns
/// true for the mirror image.
pub fn reduce(state: &mut State, scenario: &Scenario) -> bool {
    for worker in WorkerId::ALL {
        let is_live = state.workers[worker].phase.is_live();
        for (broker, slot) in BrokerId::ALL.into_iter().flat_map(|broker| Slot::ALL.map(|slot| (broker, slot))) {
            let id = ConnectionId { worker, broker, slot };
            let Some(mut connection) = state.connection(id).copied() else { continue };
            let is_at_broker = matches!(connection.stage, Stage::Parked | Stage::Hanging);
            if !connection.is_open() && connection.black_hole && !state.has_session(id) && !is_at_broker {
                *state.connection_mut(id) = None;
            } else if !is_live {
                connection.forget_worker();
                *state.connection_mut(id) = Some(connection);
            }
        }
    }
    if scenario.symmetric {
        let mirrored = mirror(state);
        if mirrored < *state {
            *state = mirrored;
            return true;
        }
    }
    false
}

/// The state with the two workers swapped.
fn mirror(state: &State) -> State {
    let mut mirrored = *state;
    mirrored.workers.0.reverse();
    for record in &mut mirrored.records.0 {
        record.owner = record.owner.map(WorkerId::other);
    }
    for history in &mut mirrored.history.0 {
        let results = history.results;
        let swapped = WorkerId::ALL.into_iter().filter(|worker| results.contains(worker.other()));
        history.results = swapped.collect::<WorkerSet>();
    }
    mirrored
}
