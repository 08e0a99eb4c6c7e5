//! Time: a tick is a third of a lock. It passes only if no urgent step is possible.

use crate::connection::{LONG_SILENCE, Stage};
use crate::entry::Progress;
use crate::fault::Fault;
use crate::ids::{BrokerId, ConnectionId, Slot, TaskId, WorkerId};
use crate::scenario::Scenario;
use crate::state::{Health, Phase, RecordState, State};
use crate::violation::Violation;

/// Ticks after which the controller elects another leader for a broker that is down.
pub const ELECTION: u8 = 2;

/// Returns the state after a tick; `None` if nothing changes any more.
pub fn tick(state: &State, scenario: &Scenario) -> Option<State> {
    let mut next = *state;
    for task in scenario.tasks().filter(|&task| state.records[task].state == RecordState::Acquired) {
        // No urgent step is left, so a lock unknown to its owner now stays hidden until it expires.
        if let Some(violation) = hidden(state, scenario, task) {
            next.violate(violation);
        }
        let record = &mut next.records[task];
        record.lock_left = record.lock_left.saturating_sub(1);
    }
    for worker in WorkerId::ALL {
        for entry in next.workers[worker].account.0.iter_mut().filter(|entry| entry.lock.is_some()) {
            entry.renewal_due = true;
        }
        for (broker, slot) in BrokerId::ALL.into_iter().flat_map(|broker| Slot::ALL.map(|slot| (broker, slot))) {
            let id = ConnectionId { worker, broker, slot };
            let Some(connection) = state.connection(id) else { continue };
            let is_up = state.brokers[broker].health == Health::Up;
            // A fetch parked at a reachable broker is not silence: its answer comes far below a tick, empty, and it is
            // sent again.
            let is_parked = connection.stage == Stage::Parked && state.passes(id, connection) && is_up;
            if connection.request.is_some() && !is_parked {
                next.change_connection(id, |it| it.silence = (it.silence + 1).min(LONG_SILENCE));
            }
        }
    }
    for broker in next.brokers.0.iter_mut().filter(|broker| broker.health != Health::Up) {
        broker.down = (broker.down + 1).min(ELECTION);
    }
    (next != *state).then_some(next)
}

/// Returns the violation if the record is locked for a worker that does not work on it.
fn hidden(state: &State, scenario: &Scenario, task: TaskId) -> Option<Violation> {
    let worker = &state.workers[state.records[task].owner?];
    let leader = state.leaders[scenario.partition_of(task)].broker;
    if state.brokers[leader].health != Health::Up || state.coordinator_unavailable {
        return None;
    }
    let entry = &worker.account[task];
    let was_silent = state.has_had(scenario, &[Fault::BlackHole, Fault::Reset, Fault::Cut, Fault::Freeze]);
    let was_path_silent = state.has_had(scenario, &[Fault::Reset, Fault::Cut, Fault::Freeze]);
    match worker.phase {
        Phase::Drained if !was_silent || scenario.strict && !was_path_silent => Some(Violation::HiddenAfterExit),
        Phase::Running if worker.quiet && entry.progress == Progress::Ready => Some(Violation::HeldWhileQuiet),
        Phase::Running | Phase::Draining
            if !was_silent && (entry.progress == Progress::Unknown || entry.lock != Some(leader)) =>
        {
            Some(Violation::HiddenFromOwner)
        }
        Phase::Killed if !was_silent => Some(Violation::HiddenByKilled),
        _ => None,
    }
}
