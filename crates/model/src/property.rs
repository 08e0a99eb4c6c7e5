//! The properties that the search checks: violations in a state, and goals that must stay reachable from every state.

use crate::connection::{Request, Stage};
use crate::ids::{ConnectionId, PartitionId, WorkerId};
use crate::scenario::Scenario;
use crate::state::{Phase, RecordState, State};
use std::fmt;

/// A liveness property: from every reachable state, steps other than faults lead to a state that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// I1: every task has a result and is accepted, as long as a worker can do it.
    TasksEnd,
    /// A drain ends.
    DrainEnds,
    /// I4: the worker's fetch is parked at the leader of the partition.
    Fetches(WorkerId, PartitionId),
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TasksEnd => f.write_str("I1 every task gets a result and is accepted"),
            Self::DrainEnds => f.write_str("a drain ends"),
            Self::Fetches(worker, partition) => {
                write!(f, "I4 worker {} fetches from partition {}", *worker as u8, *partition as u8)
            }
        }
    }
}

impl Goal {
    /// All goals of a scenario.
    pub fn all(scenario: &Scenario) -> Vec<Self> {
        let fetches =
            WorkerId::ALL.into_iter().flat_map(|worker| scenario.partitions().map(move |it| Self::Fetches(worker, it)));
        [Self::TasksEnd, Self::DrainEnds].into_iter().chain(fetches).collect()
    }

    /// Whether the goal is reached.
    pub fn holds(self, state: &State, scenario: &Scenario) -> bool {
        let workers = &state.workers.0;
        match self {
            Self::TasksEnd => {
                let done = |task| {
                    state.records[task].state == RecordState::Accepted && !state.history[task].results.is_empty()
                        || !workers.iter().any(|worker| {
                            worker.phase == Phase::Running && worker.fetched.contains(scenario.partition_of(task))
                        })
                };
                !workers.iter().any(|worker| worker.phase.is_live()) || scenario.tasks().all(done)
            }
            Self::DrainEnds => workers.iter().all(|worker| worker.phase != Phase::Draining),
            Self::Fetches(worker, partition) => {
                let own = &state.workers[worker];
                if own.phase != Phase::Running || !own.fetched.contains(partition) {
                    return true;
                }
                let broker = state.leaders[partition].broker;
                let Some(slot) = own.intakes[broker].current.slot() else { return false };
                let id = ConnectionId { worker, broker, slot };
                state.connection(id).is_some_and(|connection| {
                    !connection.black_hole
                        && connection.request == Some(Request::Fetch)
                        && connection.stage == Stage::Parked
                        && connection.partitions.contains(partition)
                        && state.has_session(id)
                })
            }
        }
    }
}
