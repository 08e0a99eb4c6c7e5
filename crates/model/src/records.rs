//! Changes of a record at its partition's leader, for every request and fault.

use crate::ids::{BrokerId, PartitionId, TaskId, WorkerId};
use crate::scenario::Scenario;
use crate::state::{Record, RecordState, Session, State};
use crate::violation::Violation;

/// Largest number of starts and causes that the model distinguishes.
pub const MANY: u8 = 3;

/// Counts a loss of the task's lock that permits a second start.
pub fn permit_another_start(state: &mut State, task: TaskId) {
    let causes = &mut state.history[task].causes;
    *causes = (*causes + 1).min(MANY);
}

/// Accepts the record for good.
pub fn accept(state: &mut State, task: TaskId) {
    if state.history[task].results.is_empty() {
        state.violate(Violation::AcceptedWithoutResult);
    }
    state.records[task] = Record { state: RecordState::Accepted, ..Record::default() };
}

/// Makes the record available again.
pub fn release(state: &mut State, task: TaskId) {
    state.records[task] = Record { state: RecordState::Available, ..Record::default() };
}

/// Ends a worker's session: the broker releases the locks of the partitions in *this* session only.
pub fn end_session(state: &mut State, scenario: &Scenario, worker: WorkerId, broker: BrokerId) {
    let session = state.workers[worker].sessions[broker];
    for task in scenario.tasks() {
        let partition = scenario.partition_of(task);
        let is_in_session = state.leads(broker, partition) && session.partitions.contains(partition);
        if is_in_session && state.records[task].is_acquired_by(worker) {
            release(state, task);
        }
    }
    state.workers[worker].sessions[broker] = Session::default();
}

/// Drops all locks of a partition, because "acquired" is not persisted. An accept in progress may or may not count:
/// returns all outcomes.
pub fn lose_locks(state: &State, scenario: &Scenario, partition: PartitionId) -> Vec<State> {
    let mut outcomes = vec![*state];
    for task in scenario.tasks().filter(|&task| scenario.partition_of(task) == partition) {
        for index in 0..outcomes.len() {
            let mut next = outcomes[index];
            let record = next.records[task];
            if record.is_locked() {
                permit_another_start(&mut next, task);
            }
            if record.state == RecordState::Accepting {
                let mut accepted = next;
                accepted.records[task] = Record { state: RecordState::Accepted, ..Record::default() };
                outcomes.push(accepted);
            }
            if record.is_locked() {
                release(&mut next, task);
            }
            outcomes[index] = next;
        }
    }
    outcomes
}
