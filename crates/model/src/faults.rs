//! Faults, recovery from them, and other outside events: their effects on a state.
//!
//! A fault may happen at any moment, as often as the scenario permits; recovery may take any time. Called by `steps`.

use crate::account::{give_up_results, lose_session};
use crate::clock::ELECTION;
use crate::connection::{Closed, Connection, Stage};
use crate::entry::{Entry, Progress};
use crate::fault::Fault;
use crate::ids::{BrokerId, ConnectionId, PartitionId, Slot, TaskId, WorkerId};
use crate::intake::{free_place, open};
use crate::records::{lose_locks, permit_another_start, release};
use crate::scenario::Scenario;
use crate::state::{Broker, Health, IntakeStage, Phase, RecordState, Session, State, Worker};
use crate::step::{Kind, Steps, Subject};
use crate::twin::Twin;
use crate::violation::Violation;
use crate::worker;

/// All steps whose cause is outside of brokers and workers.
pub fn steps(state: &State, scenario: &Scenario, steps: &mut Steps) {
    if let Some(task) = scenario.tasks().nth(usize::from(state.produced)) {
        let mut next = *state;
        next.records[task].state = RecordState::Available;
        next.produced += 1;
        steps.add(Kind::Lazy, "task is produced", Subject::Record(task), next);
    }
    for partition in scenario.partitions() {
        leader_steps(state, scenario, partition, steps);
    }
    for broker in BrokerId::ALL {
        broker_steps(state, scenario, broker, steps);
        for worker in WorkerId::ALL {
            if state.workers[worker].phase.is_live() {
                for slot in Slot::ALL {
                    connection_steps(state, scenario, ConnectionId { worker, broker, slot }, steps);
                }
                login(state, scenario, worker, broker, steps);
            }
        }
    }
    for worker in WorkerId::ALL {
        worker_steps(state, scenario, worker, steps);
    }
    outages(state, steps);
    for task in scenario.tasks() {
        expire(state, scenario, task, steps);
    }
}

/// Returns the state with this fault counted, if the scenario permits another.
fn spend(state: &State, fault: Fault) -> Option<State> {
    let left = state.faults_left[fault].checked_sub(1)?;
    let mut next = *state;
    next.faults_left[fault] = left;
    Some(next)
}

fn leader_steps(state: &State, scenario: &Scenario, partition: PartitionId, steps: &mut Steps) {
    let leader = state.leaders[partition].broker;
    let other = leader.other();
    if state.brokers[other].health != Health::Up {
        return;
    }
    let subject = Subject::Partition(partition, other);
    let mut lead = |kind, name, from: &State| {
        for mut next in lose_locks(from, scenario, partition) {
            next.leaders[partition].broker = other;
            next.leaders[partition].epoch += 1;
            steps.add(kind, name, subject, next);
        }
    };
    let old = &state.brokers[leader];
    if old.health == Health::Up {
        if let Some(next) = spend(state, Fault::LeaderMove) {
            lead(Kind::Fault, "leader moves", &next);
        }
    } else if old.down >= ELECTION && !scenario.no_election {
        lead(Kind::Urgent, "controller elects a leader", state);
    }
}

fn broker_steps(state: &State, scenario: &Scenario, broker: BrokerId, steps: &mut Steps) {
    let subject = Subject::Broker(broker);
    let is_up = state.brokers[broker].health == Health::Up;
    let with_health = |mut next: State, health: Health| {
        next.brokers[broker] = Broker { health, down: 0, cut: next.brokers[broker].cut };
        next
    };
    if let Some(next) = spend(state, Fault::Crash).filter(|_| is_up) {
        for next in crash(next, scenario, broker) {
            steps.add(Kind::Fault, "broker crashes", subject, with_health(next, Health::Crashed));
        }
    }
    if let Some(next) = spend(state, Fault::Freeze).filter(|_| is_up) {
        steps.add(Kind::Fault, "broker freezes", subject, with_health(next, Health::Frozen));
    }
    if !is_up && !scenario.no_recovery {
        steps.add(Kind::Lazy, "broker is back", subject, with_health(*state, Health::Up));
    }
    let is_cut = state.brokers[broker].cut;
    if let Some(mut next) = spend(state, Fault::Cut).filter(|_| !is_cut) {
        next.brokers[broker].cut = true;
        steps.add(Kind::Fault, "path of worker 0 is cut", subject, next);
    }
    if is_cut && !scenario.no_recovery {
        let mut next = *state;
        next.brokers[broker].cut = false;
        steps.add(Kind::Lazy, "path of worker 0 heals", subject, next);
    }
}

/// A broker crashes: its locks, sessions and connections are lost. Returns all outcomes of the writes in progress.
fn crash(state: State, scenario: &Scenario, broker: BrokerId) -> Vec<State> {
    let mut outcomes = vec![state];
    for partition in scenario.partitions().filter(|&partition| state.leads(broker, partition)) {
        outcomes = outcomes.iter().flat_map(|it| lose_locks(it, scenario, partition)).collect();
        outcomes.iter_mut().for_each(|it| it.leaders[partition].epoch += 1);
    }
    for next in &mut outcomes {
        for worker in WorkerId::ALL {
            next.workers[worker].sessions[broker] = Session::default();
            for place in &mut next.workers[worker].connections[broker].0 {
                let Some(connection) = place else { continue };
                if !connection.is_open() {
                    *place = None;
                } else if connection.black_hole {
                    connection.stage = Stage::Sent;
                } else {
                    connection.ended = true;
                    connection.request = None;
                    connection.stage = Stage::Sent;
                    connection.delivered = Default::default();
                }
            }
        }
    }
    outcomes
}

fn connection_steps(state: &State, scenario: &Scenario, id: ConnectionId, steps: &mut Steps) {
    let is_well = state.connection(id).is_some_and(|it| it.is_open() && !it.ended && !it.black_hole);
    if !is_well {
        return;
    }
    let subject = Subject::Connection(id);
    if let Some(mut next) = spend(state, Fault::BlackHole) {
        next.change_connection(id, |it| it.black_hole = true);
        steps.add(Kind::Fault, "connection becomes a black hole", subject, next);
    }
    if let Some(mut next) = spend(state, Fault::Reset) {
        next.change_connection(id, |it| it.closed = Closed::ByReset);
        give_up_results(&mut next, scenario, id);
        if state.is_current(id) {
            lose_session(&mut next, scenario, id.worker, id.broker);
        }
        steps.add(Kind::Fault, "connection is reset at the worker's side", subject, next);
    }
}

/// The worker replaces its connection on purpose (rule 4, if the scenario is calm).
fn login(state: &State, scenario: &Scenario, worker: WorkerId, broker: BrokerId, steps: &mut Steps) {
    let own = &state.workers[worker];
    let intake = &own.intakes[broker];
    let Some(slot) = intake.current.slot().filter(|_| intake.stage == IntakeStage::Open) else { return };
    let is_waiting = own.connections[broker][slot].is_some_and(|it| it.request.is_some());
    let Some(free) = free_place(state, scenario, worker, broker) else { return };
    let Some(mut next) = spend(state, Fault::Login).filter(|_| !scenario.calm || !is_waiting) else { return };
    if scenario.has(Twin::CloseFirst) {
        let old = ConnectionId { worker, broker, slot };
        next.change_connection(old, Connection::close);
        give_up_results(&mut next, scenario, old);
    }
    let next = open(next, scenario, free);
    steps.add(Kind::Fault, "worker replaces its connection (login)", Subject::Connection(free), next);
}

fn worker_steps(state: &State, scenario: &Scenario, worker: WorkerId, steps: &mut Steps) {
    let phase = state.workers[worker].phase;
    let subject = Subject::Worker(worker);
    if let Some(next) = spend(state, Fault::Kill).filter(|_| phase.is_live()) {
        let next = worker::leave(&next, scenario, worker, Phase::Killed);
        steps.add(Kind::Fault, "worker is killed", subject, next);
    }
    if phase != Phase::Running {
        return;
    }
    if let Some(mut next) = spend(state, Fault::Terminate) {
        let own = &mut next.workers[worker];
        own.phase = Phase::Draining;
        own.quiet = false;
        // Rule 21: the phase first, then all tasks not started. Running tasks are still searched for (rule 23).
        release_ready(own);
        steps.add(Kind::Fault, "SIGTERM", subject, next);
    }
    if state.workers[worker].quiet {
        let mut next = *state;
        next.workers[worker].quiet = false;
        steps.add(Kind::Lazy, "SIGUSR2", subject, next);
    } else if let Some(mut next) = spend(state, Fault::Quiet) {
        let own = &mut next.workers[worker];
        own.quiet = true;
        // Rule 24.
        if !scenario.has(Twin::QuietStarts) && !scenario.has(Twin::QuietKeepsReady) {
            release_ready(own);
        }
        steps.add(Kind::Fault, "SIGUSR1", subject, next);
    }
    for partition in scenario.partitions().filter(|_| worker == WorkerId::W0) {
        end_visit(state, scenario, worker, partition, steps);
    }
}

/// Makes the release due of every task that is not started.
fn release_ready(worker: &mut Worker) {
    for entry in worker.account.0.iter_mut().filter(|entry| entry.progress == Progress::Ready) {
        entry.progress = Progress::ToRelease;
    }
}

/// Rule 20: locked records of the partition stay locked, and the partition stays in the session until none is held.
fn end_visit(state: &State, scenario: &Scenario, worker: WorkerId, partition: PartitionId, steps: &mut Steps) {
    let Some(mut next) = spend(state, Fault::Visit) else { return };
    let own = &mut next.workers[worker];
    if !own.fetched.contains(partition) {
        return;
    }
    own.fetched.remove(partition);
    for task in scenario.tasks().filter(|&task| scenario.partition_of(task) == partition) {
        let entry = &mut own.account[task];
        if entry.progress == Progress::Ready && scenario.has(Twin::ForgetReady) {
            *entry = Entry::default();
        }
    }
    steps.add(Kind::Fault, "visit to a partition ends", Subject::Visit(worker, partition), next);
}

fn outages(state: &State, steps: &mut Steps) {
    if state.coordinator_unavailable {
        let next = State { coordinator_unavailable: false, ..*state };
        steps.add(Kind::Lazy, "share coordinator is back", Subject::Everything, next);
    } else if let Some(next) = spend(state, Fault::Coordinator) {
        let next = State { coordinator_unavailable: true, ..next };
        steps.add(Kind::Fault, "share coordinator becomes unavailable", Subject::Everything, next);
    }
    if state.results_unavailable {
        let next = State { results_unavailable: false, ..*state };
        steps.add(Kind::Lazy, "results topic is back", Subject::Everything, next);
    } else if let Some(next) = spend(state, Fault::Results) {
        let next = State { results_unavailable: true, ..next };
        steps.add(Kind::Fault, "results topic becomes unavailable", Subject::Everything, next);
    }
}

fn expire(state: &State, scenario: &Scenario, task: TaskId, steps: &mut Steps) {
    let record = &state.records[task];
    let leader = state.leaders[scenario.partition_of(task)].broker;
    let is_due = record.state == RecordState::Acquired && record.lock_left == 0;
    if !is_due || state.brokers[leader].health != Health::Up {
        return;
    }
    let mut next = *state;
    release(&mut next, task);
    permit_another_start(&mut next, task);
    let silencing = [Fault::BlackHole, Fault::Reset, Fault::Cut, Fault::Freeze, Fault::Kill];
    let was_abandoned = state.workers.0.iter().any(|worker| worker.phase == Phase::Abandoned);
    if !state.has_had(scenario, &silencing) && !was_abandoned {
        next.violate(Violation::LockRanOut);
    }
    steps.add(Kind::Urgent, "lock runs out", Subject::Record(task), next);
}
