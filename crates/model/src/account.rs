//! A worker's account of records. All its intakes share it, so no record runs twice at the same time (rule 8).
//!
//! The account holds the worker's knowledge; `records` has the truth at the broker.

use crate::entry::{Entry, Progress};
use crate::ids::{BrokerId, ConnectionId, Slot, TaskId, WorkerId};
use crate::scenario::Scenario;
use crate::state::{Intake, Phase, State};
use crate::twin::Twin;

/// Takes a record from a fetch result. `doubtful`: the result does not prove the lock (rule 10).
pub fn deliver(state: &mut State, scenario: &Scenario, id: ConnectionId, task: TaskId, doubtful: bool) {
    let partition = scenario.partition_of(task);
    let entry = state.workers[id.worker].account[task];
    // Rule 11: this broker is not the leader, and the lock is known at another one. A look-up finds the true leader.
    let elsewhere = entry.lock.is_some_and(|broker| broker != id.broker);
    if elsewhere && !state.leads(id.broker, partition) && !scenario.has(Twin::StaleDelivery) {
        return;
    }
    if entry.progress == Progress::Releasing && scenario.has(Twin::RedeliveryIgnored) {
        return;
    }
    let worker = &mut state.workers[id.worker];
    // Rule 9: the delivery is newer than all earlier requests about the record.
    let mut unanswered_on = entry.unanswered_on;
    if !scenario.has(Twin::StaleCodes) {
        let connections = worker.connections.0.iter_mut().flat_map(|slots| &mut slots.0).flatten();
        connections.for_each(|connection| connection.outdated.insert(task));
        unanswered_on = None;
    }
    // Rule 10: start only records that the known leader delivered beyond doubt; release the others.
    let from_former_leader = worker.leaders[partition].broker != id.broker && !scenario.has(Twin::StartFromOldLeader);
    // Rule 24: a quiet worker releases what its parked fetch brings.
    let takes = worker.takes()
        || worker.phase == Phase::Running && (scenario.has(Twin::QuietStarts) || scenario.has(Twin::QuietKeepsReady));
    let startable = takes && !from_former_leader && (!doubtful || scenario.has(Twin::StartUnlocked));
    let progress = match entry.progress {
        Progress::Unknown | Progress::ToRelease | Progress::Releasing | Progress::Ready => {
            if startable {
                Progress::Ready
            } else {
                Progress::ToRelease
            }
        }
        Progress::Finished | Progress::Accepting | Progress::Done => Progress::Done,
        other => other,
    };
    worker.account[task] =
        Entry { progress, lock: Some(id.broker), renewal_due: doubtful, search: false, unanswered_on };
}

/// Marks all locks at the broker as doubtful: running tasks are renewed, tasks not started are released. A renewal
/// answered 0 proves nothing, because offsets below the start of the window are answered 0, too (rules 10, 15).
pub fn doubt_locks(state: &mut State, scenario: &Scenario, worker: WorkerId, broker: BrokerId) {
    for task in scenario.tasks() {
        let entry = &mut state.workers[worker].account[task];
        if entry.lock == Some(broker) {
            entry.renewal_due = true;
            if entry.progress == Progress::Ready && !scenario.has(Twin::StartUnlocked) {
                entry.progress = Progress::ToRelease;
            }
        }
    }
}

/// Acknowledgements on this connection will get no answer: they are due again (rule 17).
pub fn give_up_results(state: &mut State, scenario: &Scenario, id: ConnectionId) {
    for task in scenario.tasks() {
        let entry = &mut state.workers[id.worker].account[task];
        if entry.is_unanswered_on(id) {
            entry.unanswered_on = None;
            entry.progress = entry.progress.due_again();
        }
    }
    doubt_locks(state, scenario, id.worker, id.broker);
    let worker = &mut state.workers[id.worker];
    worker.intakes[id.broker].renew_all = worker.holds_at(id.broker);
}

/// Drops the lost current connection and its session; another connection takes the locks over.
pub fn lose_session(state: &mut State, scenario: &Scenario, worker: WorkerId, broker: BrokerId) {
    let worker = &mut state.workers[worker];
    worker.intakes[broker] = Intake::default();
    worker.recovering = true;
    for task in scenario.tasks() {
        let entry = &mut worker.account[task];
        if entry.progress == Progress::Ready && scenario.has(Twin::DropReady) {
            if entry.lock == Some(broker) {
                *entry = Entry::default();
            } else {
                entry.progress = Progress::Ghost;
            }
        }
        if entry.lock == Some(broker) && scenario.has(Twin::NoTakeover) {
            entry.lose_lock(scenario);
        }
    }
}

/// Whether accepts and releases on this connection must wait for an unanswered one on a superseded connection to the
/// same broker. They wait until that connection has been silent for two ticks. They do not wait if this connection
/// would be the second that hangs (rule 13).
pub fn acknowledgements_wait(state: &State, scenario: &Scenario, id: ConnectionId) -> bool {
    let worker = &state.workers[id.worker];
    let connections = &worker.connections[id.broker];
    let is_silent = |slot: Slot| connections[slot].is_some_and(|it| it.request.is_some() && it.is_long_silent());
    let silent = Slot::ALL.into_iter().filter(|&slot| slot != id.slot && is_silent(slot)).count();
    worker.account.0.iter().any(|entry| {
        entry.unanswered_on.is_some_and(|(broker, slot)| {
            broker == id.broker
                && slot != id.slot
                && (!connections[slot].is_some_and(|it| it.is_long_silent())
                    || silent > 1
                    || scenario.has(Twin::WaitOldForever))
        })
    })
}
