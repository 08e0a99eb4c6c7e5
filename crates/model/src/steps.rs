//! All steps that a state permits, and the reductions that make equal situations equal states.
//!
//! `broker`, `worker`, `intake`, `faults` and `clock` have the steps themselves. Called by `search` and `trace`.

use crate::connection::Stage;
use crate::ids::{BrokerId, ConnectionId, Slot, WorkerId, WorkerSet};
use crate::scenario::Scenario;
use crate::state::State;
use crate::step::{Kind, Steps, Subject};
use crate::{broker, clock, faults, worker};

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
