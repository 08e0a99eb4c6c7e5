//! A broker's steps at one connection: it takes requests, persists, answers, and notices a closed connection.
//!
//! Models Kafka as measured; the rules bind only the worker. Called by `steps` for each connection.

use crate::account::acknowledgements_wait;
use crate::connection::{Closed, Connection, Request, SessionError, Stage};
use crate::entry::Progress;
use crate::fault::Fault;
use crate::ids::{ConnectionId, TaskId, TaskSet};
use crate::records;
use crate::scenario::Scenario;
use crate::state::{Health, LOCK, Place, Record, RecordState, Session, State};
use crate::step::{Kind, Steps, Subject};

/// Most records of one fetch.
const MAX_FETCHED: usize = 2;

/// All steps of the broker at this connection.
pub fn steps(state: &State, scenario: &Scenario, id: ConnectionId, steps: &mut Steps) {
    let Some(connection) = state.connection(id) else { return };
    if connection.ended || state.brokers[id.broker].health != Health::Up {
        return;
    }
    let subject = Subject::Connection(id);
    if connection.request.is_some() && connection.stage == Stage::Sent && state.passes(id, connection) {
        steps.add(Kind::Urgent, "broker takes the request", subject, take_request(state, scenario, id, connection));
    }
    if connection.stage == Stage::Hanging {
        let waiting: TaskSet =
            scenario.tasks().filter(|&task| is_being_persisted(state, scenario, id, connection, task)).collect();
        if waiting.is_empty() || !state.coordinator_unavailable {
            let next = persist(state, scenario, id, connection, waiting);
            steps.add(Kind::Urgent, "the write is persisted and the request goes on", subject, next);
        }
        if !waiting.is_empty() && state.faults_left[Fault::PersisterFails] > 0 {
            let next = fail_to_persist(state, scenario, id, connection, waiting);
            steps.add(Kind::Fault, "persister gives up (15): rolled back to acquired", subject, next);
        }
    }
    if connection.stage == Stage::Parked {
        steps.add_some(Kind::Urgent, "fetch ends", subject, end_fetch(state, scenario, id, connection));
    }
    // The broker sees a close only if no request waits in the connection.
    let is_busy = connection.request.is_some() && !connection.is_answered();
    if !connection.is_open() && state.passes(id, connection) && !is_busy {
        steps.add(Kind::Urgent, "broker sees the close", subject, see_close(state, scenario, id, connection));
    }
}

fn take_request(state: &State, scenario: &Scenario, id: ConnectionId, connection: &Connection) -> State {
    let mut next = *state;
    let session = state.workers[id.worker].sessions[id.broker];
    if connection.request == Some(Request::Open) {
        next.workers[id.worker].sessions[id.broker] =
            Session { connection: Place::At(id.slot), partitions: connection.partitions };
        next.change_connection(id, |it| it.stage = Stage::Answered);
    } else if session.connection != Place::At(id.slot) {
        let is_unknown = session.connection == Place::None;
        let error = if is_unknown { SessionError::NotFound } else { SessionError::InvalidEpoch };
        next.change_connection(id, |it| (it.error, it.stage) = (Some(error), Stage::Answered));
    } else {
        let is_fetch = connection.request == Some(Request::Fetch);
        let (refused, is_hanging) = acknowledge(state, &mut next, scenario, id, connection);
        next.change_connection(id, |it| {
            it.refused = refused;
            it.stage = match () {
                () if is_hanging => Stage::Hanging,
                () if is_fetch => Stage::Parked,
                () => Stage::Answered,
            };
        });
        if is_fetch {
            next.workers[id.worker].sessions[id.broker].partitions = connection.partitions;
        }
        if connection.request == Some(Request::Close) && !is_hanging {
            records::end_session(&mut next, scenario, id.worker, id.broker);
        }
    }
    next
}

/// Applies renewals, accepts and releases. Returns the refused records, and whether the request hangs. Renewals are not
/// persisted and never hang.
fn acknowledge(
    state: &State,
    next: &mut State,
    scenario: &Scenario,
    id: ConnectionId,
    connection: &Connection,
) -> (TaskSet, bool) {
    let mut refused = TaskSet::default();
    let mut is_hanging = false;
    for task in scenario.tasks() {
        let is_leader = state.leads(id.broker, scenario.partition_of(task));
        let is_held = is_leader && state.records[task].is_acquired_by(id.worker);
        // An offset below the start of the window is answered 0, which proves nothing (rule 15).
        let is_answered_0 = is_held || is_leader && is_below_window(state, scenario, task);
        if connection.renew.contains(task) {
            if is_held {
                next.records[task].lock_left = LOCK;
            } else if !is_answered_0 {
                refused.insert(task);
            }
        }
        if connection.acknowledged().contains(task) {
            let accepts = connection.accept.contains(task);
            if is_held && state.coordinator_unavailable {
                next.records[task].state = if accepts { RecordState::Accepting } else { RecordState::Releasing };
                is_hanging = true;
            } else if is_held && accepts {
                records::accept(next, task);
            } else if is_held {
                records::release(next, task);
            } else if !is_answered_0 {
                refused.insert(task);
            }
        }
    }
    (refused, is_hanging)
}

/// Whether the record and all earlier ones on its partition are accepted.
fn is_below_window(state: &State, scenario: &Scenario, task: TaskId) -> bool {
    TaskId::ALL.into_iter().filter(|&it| it <= task).all(|it| {
        scenario.partition_of(it) != scenario.partition_of(task) || state.records[it].state == RecordState::Accepted
    })
}

/// Whether this request's accept or release of the record is being persisted.
fn is_being_persisted(
    state: &State,
    scenario: &Scenario,
    id: ConnectionId,
    connection: &Connection,
    task: TaskId,
) -> bool {
    connection.acknowledged().contains(task)
        && state.leads(id.broker, scenario.partition_of(task))
        && state.records[task].owner == Some(id.worker)
        && state.records[task].is_in_transition()
}

fn persist(state: &State, scenario: &Scenario, id: ConnectionId, connection: &Connection, waiting: TaskSet) -> State {
    let mut next = *state;
    for task in scenario.tasks().filter(|&task| waiting.contains(task)) {
        if state.records[task].state == RecordState::Accepting {
            records::accept(&mut next, task);
        } else {
            records::release(&mut next, task);
        }
    }
    go_on(&mut next, scenario, id, connection);
    next
}

fn fail_to_persist(
    state: &State,
    scenario: &Scenario,
    id: ConnectionId,
    connection: &Connection,
    waiting: TaskSet,
) -> State {
    let mut next = *state;
    next.faults_left[Fault::PersisterFails] -= 1;
    for task in scenario.tasks().filter(|&task| waiting.contains(task)) {
        next.records[task].state = RecordState::Acquired;
    }
    next.change_connection(id, |it| it.retry |= waiting);
    go_on(&mut next, scenario, id, connection);
    next
}

/// Continues a request that hung. Records whose leader has moved meanwhile are refused.
fn go_on(next: &mut State, scenario: &Scenario, id: ConnectionId, connection: &Connection) {
    let moved: TaskSet = scenario
        .tasks()
        .filter(|&it| connection.acknowledged().contains(it) && !next.leads(id.broker, scenario.partition_of(it)))
        .collect();
    next.change_connection(id, |it| {
        it.refused |= moved;
        it.stage = if it.request == Some(Request::Fetch) { Stage::Parked } else { Stage::Answered };
    });
    if connection.request == Some(Request::Close) {
        records::end_session(next, scenario, id.worker, id.broker);
    }
}

/// Ends a parked fetch when it has records, or when its worker will not wait for it: its longest wait is far below a
/// tick. It acquires for its member even if the session has changed.
fn end_fetch(state: &State, scenario: &Scenario, id: ConnectionId, connection: &Connection) -> Option<State> {
    let mut next = *state;
    let named = connection.partitions;
    let moved = scenario.partitions().filter(|&it| named.contains(it) && !state.leads(id.broker, it)).collect();
    let mut delivered = TaskSet::default();
    let is_fetchable = |task: TaskId| {
        let partition = scenario.partition_of(task);
        state.records[task].state == RecordState::Available
            && named.contains(partition)
            && state.leads(id.broker, partition)
    };
    for task in scenario.tasks().filter(|&task| is_fetchable(task)).take(MAX_FETCHED) {
        next.records[task] = Record { state: RecordState::Acquired, owner: Some(id.worker), lock_left: LOCK };
        delivered.insert(task);
    }
    next.change_connection(id, |it| {
        it.stage = Stage::Answered;
        it.delivered = delivered;
        it.moved = moved;
    });
    let ends = !delivered.is_empty()
        || next.connection(id).is_some_and(|it| !it.moved.is_empty())
        || !connection.is_open()
        || !state.passes(id, connection)
        || worker_needs_the_connection(state, scenario, id, connection);
    ends.then_some(next)
}

/// Whether the worker has another request for the connection, or no use for the fetched records.
fn worker_needs_the_connection(state: &State, scenario: &Scenario, id: ConnectionId, connection: &Connection) -> bool {
    let worker = &state.workers[id.worker];
    let has_to_send = || {
        worker.account.0.iter().filter(|entry| entry.lock == Some(id.broker)).any(|entry| {
            if matches!(entry.progress, Progress::Done | Progress::ToRelease) {
                !acknowledgements_wait(state, scenario, id)
            } else {
                entry.renewal_due
            }
        })
    };
    !state.is_current(id)
        || !state.has_session(id)
        || !worker.takes()
        || worker.intakes[id.broker].renew_all
        || connection.partitions != worker.partitions_at(id.broker, scenario)
        || has_to_send()
}

fn see_close(state: &State, scenario: &Scenario, id: ConnectionId, connection: &Connection) -> State {
    let mut next = *state;
    if state.has_session(id) {
        records::end_session(&mut next, scenario, id.worker, id.broker);
        // Only a reset closes a session that the worker did not give up: its records may start again.
        let released = |task: TaskId| next.records[task].state != state.records[task].state;
        let released: TaskSet = scenario.tasks().filter(|&task| released(task)).collect();
        if connection.closed == Closed::ByReset {
            for task in scenario.tasks().filter(|&task| released.contains(task)) {
                records::permit_another_start(&mut next, task);
            }
        }
    }
    *next.connection_mut(id) = None;
    next
}
