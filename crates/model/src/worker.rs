//! A worker's steps across brokers: it reads metadata, runs tasks, publishes results, and leaves.
//!
//! `intake` has its steps at one broker. Called by `steps` for each worker.

use crate::account::doubt_locks;
use crate::connection::Connection;
use crate::entry::{Entry, Progress};
use crate::fault::Fault;
use crate::ids::{BrokerId, ConnectionId, PartitionId, PerBroker, PerPartition, Slot, TaskId, WorkerId};
use crate::intake;
use crate::records::{MANY, permit_another_start};
use crate::scenario::Scenario;
use crate::state::{Health, Intake, IntakeStage, Leader, Phase, State};
use crate::step::{Kind, Steps, Subject};
use crate::twin::Twin;
use crate::violation::Violation;

/// All steps of the worker.
pub fn steps(state: &State, scenario: &Scenario, worker: WorkerId, steps: &mut Steps) {
    if !state.workers[worker].phase.is_live() {
        return;
    }
    let subject = Subject::Worker(worker);
    steps.add_some(Kind::Urgent, "worker reads metadata", subject, read_metadata(state, scenario, worker));
    for broker in BrokerId::ALL {
        intake::steps(state, scenario, worker, broker, steps);
    }
    for task in scenario.tasks() {
        task_steps(state, scenario, worker, task, steps);
    }
    if state.workers[worker].phase == Phase::Draining {
        if has_nothing_left(state, worker) {
            let next = leave(state, scenario, worker, Phase::Drained);
            steps.add(Kind::Urgent, "worker exits with 0", subject, next);
        }
        if is_kept_from_draining(state, worker) {
            let next = leave(state, scenario, worker, Phase::Abandoned);
            steps.add(Kind::Lazy, "worker exits at the limit of its drain, with a warning", subject, next);
        }
    }
}

/// Any broker that answers provides metadata, also while a request to another broker has no result (rule 18).
fn read_metadata(state: &State, scenario: &Scenario, worker: WorkerId) -> Option<State> {
    let own = &state.workers[worker];
    let answers = |broker: BrokerId| state.brokers[broker].health == Health::Up && !state.is_cut(worker, broker);
    let is_news = |partition: PartitionId| own.leaders[partition] != state.leaders[partition];
    let is_blocked = scenario.has(Twin::NoMetadataWatch) && own.waits_for_a_broker();
    if is_blocked || !BrokerId::ALL.into_iter().any(answers) || !scenario.partitions().any(is_news) {
        return None;
    }
    let mut next = *state;
    for partition in scenario.partitions().filter(|&partition| is_news(partition)) {
        learn_leader(&mut next, scenario, worker, partition);
    }
    Some(next)
}

fn learn_leader(next: &mut State, scenario: &Scenario, worker: WorkerId, partition: PartitionId) {
    let leader = next.leaders[partition];
    for task in scenario.tasks().filter(|&task| scenario.partition_of(task) == partition) {
        let own = &mut next.workers[worker];
        let Some(broker) = own.account[task].lock else { continue };
        // Rule 18: with another node, the locks of this partition are gone. The same node in a later epoch is asked.
        if broker != leader.broker || scenario.has(Twin::EpochVoid) {
            own.account[task].lose_lock(scenario);
        } else {
            own.intakes[broker].renew_all = true;
            doubt_locks(next, scenario, worker, broker);
        }
    }
    let own = &mut next.workers[worker];
    for task in scenario.tasks().filter(|&task| scenario.partition_of(task) == partition) {
        let entry = &mut own.account[task];
        if entry.progress.is_at_work() && entry.lock.is_none() {
            entry.search = true;
        }
    }
    let connections = own.connections.0.iter_mut().flat_map(|slots| &mut slots.0).flatten();
    for connection in connections.filter(|connection| connection.request.is_some()) {
        connection.leader_changed.insert(partition);
    }
    own.recovering = true;
    own.leaders[partition] = leader;
}

fn task_steps(state: &State, scenario: &Scenario, worker: WorkerId, task: TaskId, steps: &mut Steps) {
    let own = &state.workers[worker];
    let entry = own.account[task];
    let subject = Subject::Task(worker, task);
    let is_busy = own.tasks_at_work() >= scenario.handlers;
    let mut next = *state;
    let next_entry = &mut next.workers[worker].account[task];
    match entry.progress {
        Progress::Ready
            if own.phase == Phase::Running && (!own.quiet || scenario.has(Twin::QuietStarts)) && !is_busy =>
        {
            start(state, &mut next, scenario, worker, task);
            steps.add(Kind::Urgent, "worker starts the task", subject, next);
        }
        Progress::Ready if is_busy || entry.renewal_due && !(own.quiet && scenario.has(Twin::QuietKeepsReady)) => {
            next_entry.progress = Progress::ToRelease;
            steps.add(Kind::Urgent, "worker returns the task, no handler is free", subject, next);
        }
        Progress::Running => {
            next_entry.progress = Progress::Publishing;
            steps.add(Kind::Lazy, "handler finishes the task", subject, next);
        }
        Progress::Publishing if !state.results_unavailable && !state.history[task].results.contains(worker) => {
            next.history[task].results.insert(worker);
            steps.add(Kind::Urgent, "the result is in the log", subject, next);
        }
        Progress::Publishing if !state.results_unavailable => {
            next_entry.publish(scenario);
            steps.add(Kind::Urgent, "the result is acknowledged", subject, next);
        }
        _ => {}
    }
}

fn start(state: &State, next: &mut State, scenario: &Scenario, worker: WorkerId, task: TaskId) {
    let history = &mut next.history[task];
    let earlier = history.starts;
    history.starts = (earlier + 1).min(MANY);
    next.workers[worker].account[task].progress = Progress::Running;
    let partition = scenario.partition_of(task);
    let is_up_to_date = state.workers[worker].leaders[partition] == state.leaders[partition];
    // A reset, cut or freeze takes locks away without a change of metadata.
    let may_not_know = state.has_had(scenario, &[Fault::Reset, Fault::Cut, Fault::Freeze]);
    if is_up_to_date && !state.records[task].is_acquired_by(worker) && !may_not_know {
        next.violate(Violation::StartedWithoutLock);
    }
    if state.workers[worker].quiet {
        next.violate(Violation::StartedWhileQuiet);
    }
    if earlier > state.history[task].causes || scenario.once && earlier > 0 {
        next.violate(Violation::StartedWithoutCause);
    }
}

/// Whether a drain is complete (rule 21): no record is held, and every session is closed.
fn has_nothing_left(state: &State, worker: WorkerId) -> bool {
    let own = &state.workers[worker];
    own.account.0.iter().all(|entry| matches!(entry.progress, Progress::Unknown | Progress::Finished))
        && own.intakes.0.iter().all(|intake| matches!(intake.stage, IntakeStage::Idle | IntakeStage::Closed))
}

fn is_kept_from_draining(state: &State, worker: WorkerId) -> bool {
    let own = &state.workers[worker];
    state.results_unavailable
        || BrokerId::ALL.into_iter().any(|broker| {
            own.connections[broker].0.iter().flatten().any(|it| it.request.is_some() && it.is_long_silent())
                || state.brokers[broker].health != Health::Up && own.holds_at(broker)
        })
}

/// Ends the process and its connections. Its records may start again, unless it has drained.
pub fn leave(state: &State, scenario: &Scenario, worker: WorkerId, phase: Phase) -> State {
    let mut next = *state;
    next.workers[worker].phase = phase;
    for task in scenario.tasks() {
        if phase != Phase::Drained && state.records[task].owner == Some(worker) {
            permit_another_start(&mut next, task);
        }
        next.workers[worker].account[task] = Entry::default();
    }
    for broker in BrokerId::ALL {
        for slot in Slot::ALL {
            next.change_connection(ConnectionId { worker, broker, slot }, Connection::close);
        }
    }
    let own = &mut next.workers[worker];
    own.intakes = PerBroker([Intake::default(); 2]);
    own.quiet = false;
    // The knowledge of an ended process makes no difference.
    own.recovering = false;
    own.leaders = PerPartition([Leader { broker: BrokerId::B0, epoch: 0 }; 2]);
    next
}
