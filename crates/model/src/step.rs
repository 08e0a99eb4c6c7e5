//! One step of the model: when it may happen, its subject for traces, and the state after it. Data only.

use crate::ids::{BrokerId, ConnectionId, PartitionId, TaskId, WorkerId};
use crate::state::State;
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
