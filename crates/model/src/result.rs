//! How a worker handles a result, on the current connection or on a superseded one.

use crate::account::{deliver, give_up_results};
use crate::connection::{Connection, Request};
use crate::entry::{Entry, Progress};
use crate::ids::{ConnectionId, TaskId};
use crate::scenario::Scenario;
use crate::state::{Intake, IntakeStage, State};
use crate::twin::Twin;

/// Returns the state after the worker has read the connection's result.
pub fn read(state: &State, scenario: &Scenario, id: ConnectionId, result: &Connection) -> State {
    let mut next = *state;
    let is_current = state.is_current(id);
    *next.connection_mut(id) = Some(result.without_request());
    if result.error.is_some() {
        give_up_results(&mut next, scenario, id);
        let worker = &mut next.workers[id.worker];
        let intake = &mut worker.intakes[id.broker];
        if is_current && intake.stage != IntakeStage::Closed {
            intake.stage = IntakeStage::Refused;
            worker.recovering = true;
        }
        return next;
    }
    read_session(&mut next, scenario, id, result, is_current);
    for task in scenario.tasks() {
        // Both use the entry before the result: a request either acknowledges or renews a record, never both.
        let entry = next.workers[id.worker].account[task];
        if result.acknowledged().contains(task) && entry.is_unanswered_on(id) {
            read_acknowledgement(&mut next.workers[id.worker].account[task], scenario, result, task);
        }
        let is_renewal = result.renew.contains(task) && !result.outdated.contains(task);
        if is_renewal && entry.lock == Some(id.broker) {
            read_renewal(&mut next.workers[id.worker].account[task], scenario, id, result, task);
        }
    }
    for task in scenario.tasks().filter(|&task| result.delivered.contains(task)) {
        let leader_changed = result.leader_changed.contains(scenario.partition_of(task));
        // Rule 10.
        let doubtful = !is_current || result.silence > 0 || leader_changed && !scenario.has(Twin::StartFromOldLeader);
        deliver(&mut next, scenario, id, task, doubtful);
    }
    let worker = &mut next.workers[id.worker];
    if worker.intakes[id.broker].stage == IntakeStage::Closed && worker.holds_at(id.broker) {
        // Rule 22: a record arrived after -1: open the session, release the record, close the session again.
        worker.intakes[id.broker].stage = IntakeStage::Idle;
    }
    if result.request == Some(Request::Fetch) {
        for task in scenario.tasks() {
            let partition = scenario.partition_of(task);
            if result.partitions.contains(partition) && !result.moved.contains(partition) {
                worker.account[task].search = false;
            }
        }
    }
    next
}

/// Applies the result to the session.
fn read_session(next: &mut State, scenario: &Scenario, id: ConnectionId, result: &Connection, is_current: bool) {
    let worker = &mut next.workers[id.worker];
    match result.request {
        Some(Request::Open) if is_current => {
            let renew_all = worker.holds_at(id.broker);
            let intake = &mut worker.intakes[id.broker];
            intake.stage = IntakeStage::Open;
            intake.renew_all = renew_all;
            worker.recovering = false;
        }
        // Rule 6: the late epoch 0 took the session from the current connection.
        Some(Request::Open) => {
            if !scenario.has(Twin::StolenClose) {
                worker.intakes[id.broker].open_again = true;
            }
        }
        Some(Request::Close) => {
            worker.intakes[id.broker] = Intake { stage: IntakeStage::Closed, ..Intake::default() };
            next.change_connection(id, Connection::close);
        }
        Some(Request::Fetch | Request::Acknowledge) | None => {}
    }
}

/// Applies the code of an accept or release.
fn read_acknowledgement(entry: &mut Entry, scenario: &Scenario, result: &Connection, task: TaskId) {
    let accepts = result.accept.contains(task);
    let is_retry = result.retry.contains(task);
    if is_retry && !scenario.has(Twin::TransientLost) {
        // Rule 16: after 15 and similar codes the acknowledgement is due again.
        entry.unanswered_on = None;
        entry.renewal_due = true;
        entry.progress = if accepts { Progress::Done } else { Progress::ToRelease };
    } else if accepts && (result.refused.contains(task) || is_retry) {
        entry.lose_lock(scenario);
    } else {
        *entry = Entry::default();
    }
}

/// Applies the code of a renewal. 0 means "continue", never "start" (rule 15).
fn read_renewal(entry: &mut Entry, scenario: &Scenario, id: ConnectionId, result: &Connection, task: TaskId) {
    let elsewhere = entry.is_unanswered_elsewhere(id);
    let was_in_transition = result.in_transition.contains(task) && !scenario.has(Twin::CodesAtReading);
    if !result.refused.contains(task) {
        entry.renewal_due = false;
        // Rule 13: the request that is unanswered elsewhere did not arrive.
        if elsewhere && !scenario.has(Twin::NoProbe) {
            entry.unanswered_on = None;
            entry.progress = entry.progress.due_again();
        }
    } else if elsewhere && scenario.has(Twin::Lost121) {
        *entry = Entry::default();
    } else if was_in_transition || elsewhere {
        // Rules 13 and 14: in transition when the renewal was sent; the superseded connection will show the outcome.
        entry.renewal_due = !elsewhere;
    } else {
        entry.lose_lock(scenario);
    }
}
