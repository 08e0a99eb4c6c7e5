//! A worker's intake from one broker: its session and connections, its next request, its recovery.
//!
//! `result` handles the results that it reads. Called by `worker` for each broker.

use crate::account::{acknowledgements_wait, doubt_locks, give_up_results, lose_session};
use crate::connection::{Closed, Connection, Request};
use crate::entry::{Entry, Progress};
use crate::ids::{BrokerId, ConnectionId, PartitionSet, Slot, TaskSet, WorkerId};
use crate::result;
use crate::scenario::Scenario;
use crate::state::{Health, Intake, IntakeStage, Phase, Place, State, Worker};
use crate::step::{Kind, Steps, Subject};
use crate::twin::Twin;

/// All steps of the worker at this broker.
pub fn steps(state: &State, scenario: &Scenario, worker: WorkerId, broker: BrokerId, steps: &mut Steps) {
    for slot in Slot::ALL {
        connection_steps(state, scenario, ConnectionId { worker, broker, slot }, steps);
    }
    let view = View::new(state, scenario, worker, broker);
    let own = view.own;
    let intake = own.intakes[broker];
    let is_needed = view.keeps_session() || own.holds_at(broker);
    if intake.stage == IntakeStage::Idle
        && is_needed
        && state.brokers[broker].health != Health::Crashed
        && !view.is_serialised()
        && let Some(free) = view.free()
    {
        let next = open(*state, scenario, free);
        steps.add(Kind::Urgent, "worker opens a session", Subject::Connection(free), next);
    }
    let Some(slot) = intake.current.slot() else { return };
    let id = ConnectionId { worker, broker, slot };
    let Some(connection) = state.connection(id) else { return };
    if !connection.is_open() || connection.ended {
        return;
    }
    let subject = Subject::Connection(id);
    steps.add_some(Kind::Urgent, "worker closes a session that it needs no more", subject, view.retire(id, connection));
    view.take_over(id, connection, steps);
    if connection.request.is_some() {
        return;
    }
    if intake.stage == IntakeStage::Refused || intake.open_again {
        // Rules 3 and 6: epoch 0 on the same connection.
        let mut next = open(*state, scenario, id);
        next.change_connection(id, |it| it.black_hole = connection.black_hole);
        steps.add(Kind::Urgent, "worker opens the session again on the same connection", subject, next);
    } else if intake.stage == IntakeStage::Open && !view.is_serialised() {
        view.send(id, connection, steps);
    }
}

/// Sends epoch 0 on this connection: opens the session, or takes it over with all its locks (rule 2). Until the answer,
/// the locks at the broker are in doubt.
pub fn open(mut state: State, scenario: &Scenario, id: ConnectionId) -> State {
    let partitions = state.workers[id.worker].partitions_at(id.broker, scenario);
    *state.connection_mut(id) = Some(Connection::with_request(Request::Open, partitions));
    state.workers[id.worker].intakes[id.broker] =
        Intake { current: Place::At(id.slot), stage: IntakeStage::Opening, ..Intake::default() };
    doubt_locks(&mut state, scenario, id.worker, id.broker);
    state
}

/// Returns the first slot without a connection, within the scenario's limit (rule 7).
pub fn free_place(state: &State, scenario: &Scenario, worker: WorkerId, broker: BrokerId) -> Option<ConnectionId> {
    let places = Slot::ALL.into_iter().take(scenario.connections);
    places.map(|slot| ConnectionId { worker, broker, slot }).find(|&id| state.connection(id).is_none())
}

/// The worker's steps with a connection, in use or superseded.
fn connection_steps(state: &State, scenario: &Scenario, id: ConnectionId, steps: &mut Steps) {
    let Some(connection) = state.connection(id).filter(|it| it.is_open()) else { return };
    let subject = Subject::Connection(id);
    let is_current = state.is_current(id);
    if connection.ended {
        // Rule 17.
        let mut next = *state;
        *next.connection_mut(id) = None;
        give_up_results(&mut next, scenario, id);
        if is_current {
            lose_session(&mut next, scenario, id.worker, id.broker);
        }
        steps.add(Kind::Urgent, "worker reads EOF", subject, next);
        return;
    }
    let passes = state.passes(id, connection);
    let is_frozen = state.brokers[id.broker].health == Health::Frozen;
    if connection.request.is_some() && connection.is_answered() && passes && !is_frozen {
        steps.add(Kind::Urgent, "worker reads the result", subject, result::read(state, scenario, id, connection));
    }
    if !passes && connection.is_long_silent() && !scenario.deaf {
        // ETIMEDOUT: no byte reaches the broker any more.
        let mut next = *state;
        next.change_connection(id, |it| (it.closed, it.black_hole) = (Closed::ByWorker, true));
        give_up_results(&mut next, scenario, id);
        if is_current {
            lose_session(&mut next, scenario, id.worker, id.broker);
        }
        steps.add(Kind::Lazy, "TCP gives the connection up", subject, next);
    }
    let intake = &state.workers[id.worker].intakes[id.broker];
    let is_superseded = !is_current && (intake.current != Place::None || intake.stage == IntakeStage::Closed);
    let has_successor = matches!(intake.stage, IntakeStage::Open | IntakeStage::Closed) && !intake.open_again;
    // Rules 2 and 6: only after its last request, and after its successor's epoch 0 was answered.
    if is_superseded && has_successor && (connection.request.is_none() || scenario.has(Twin::NoReadOld)) {
        let mut next = *state;
        if connection.request.is_some() {
            give_up_results(&mut next, scenario, id);
        }
        next.change_connection(id, Connection::close);
        steps.add(Kind::Urgent, "worker closes the superseded connection", subject, next);
    }
}

/// A state from the intake's point of view.
struct View<'a> {
    state: &'a State,
    scenario: &'a Scenario,
    worker: WorkerId,
    broker: BrokerId,
    own: &'a Worker,
    /// The partitions of the worker's session here.
    partitions: PartitionSet,
}

impl<'a> View<'a> {
    fn new(state: &'a State, scenario: &'a Scenario, worker: WorkerId, broker: BrokerId) -> Self {
        let own = &state.workers[worker];
        Self { state, scenario, worker, broker, own, partitions: own.partitions_at(broker, scenario) }
    }

    fn is_draining(&self) -> bool {
        self.own.phase == Phase::Draining
    }

    /// Whether the session stays although nothing is held. A quiet worker keeps its sessions (rule 24).
    fn keeps_session(&self) -> bool {
        !self.is_draining() && !self.own.fetched_at(self.broker, self.scenario).is_empty()
    }

    fn wants_records(&self) -> bool {
        !self.own.quiet && self.keeps_session()
    }

    /// Whether a twin with one intake for all leaders waits for a leader.
    fn is_serialised(&self) -> bool {
        self.scenario.has(Twin::Serial) && self.own.waits_for_a_broker()
    }

    fn is_busy(&self) -> bool {
        self.own.tasks_at_work() >= self.scenario.handlers
    }

    fn free(&self) -> Option<ConnectionId> {
        free_place(self.state, self.scenario, self.worker, self.broker)
    }

    /// The other connections of this worker to this broker.
    fn others(&self, id: ConnectionId) -> impl Iterator<Item = &'a Connection> {
        let connections = &self.own.connections[self.broker];
        Slot::ALL.into_iter().filter(move |&slot| slot != id.slot).filter_map(|slot| connections[slot].as_ref())
    }

    /// Closes the session if the worker fetches nothing and holds nothing at this broker.
    fn retire(&self, id: ConnectionId, connection: &Connection) -> Option<State> {
        let is_unneeded = !self.keeps_session() && !self.own.holds_at(self.broker) && !self.is_draining();
        let is_settled = self.own.intakes[self.broker].stage == IntakeStage::Open
            && (connection.request.is_none() || connection.silence > 0)
            && self.others(id).next().is_none();
        if !is_unneeded || !is_settled {
            return None;
        }
        let mut next = *self.state;
        give_up_results(&mut next, self.scenario, id);
        next.change_connection(id, Connection::close);
        next.workers[self.worker].intakes[self.broker] = Intake::default();
        Some(next)
    }

    /// Opens a second connection if the current one had no result for a tick (rule 2), or none for its epoch 0 for two.
    /// A connection with an unanswered epoch 0 stays open (rule 6).
    fn take_over(&self, id: ConnectionId, connection: &Connection, steps: &mut Steps) {
        let Some(request) = connection.request else { return };
        let Some(free) = self.free() else { return };
        let subject = Subject::Connection(free);
        let mut next = *self.state;
        if request == Request::Open {
            if connection.is_long_silent() {
                if self.scenario.has(Twin::CloseUnansweredOpen) {
                    next.change_connection(id, Connection::close);
                }
                steps.add(Kind::Lazy, "worker takes over again", subject, open(next, self.scenario, free));
            }
            return;
        }
        let patience = if self.scenario.has(Twin::LateTakeover) { 2 } else { 1 };
        let has_result = connection.is_answered() && self.state.passes(id, connection);
        let is_needed = self.keeps_session() || self.own.holds_at(self.broker) || self.is_draining();
        if connection.silence >= patience && !has_result && is_needed && !self.scenario.has(Twin::NoTakeover) {
            if self.scenario.has(Twin::CloseFirst) {
                next.change_connection(id, Connection::close);
                give_up_results(&mut next, self.scenario, id);
            }
            steps.add(Kind::Urgent, "worker takes over", subject, open(next, self.scenario, free));
        }
    }

    /// Sends the next request on the current connection: renewals first, then acknowledgements and fetches, then the
    /// close.
    fn send(&self, id: ConnectionId, connection: &Connection, steps: &mut Steps) {
        if self.own.quiet && self.scenario.has(Twin::QuietSilent) {
            return;
        }
        let due = self.due(id);
        let subject = Subject::Connection(id);
        let mut next = *self.state;
        let renew_all = &mut next.workers[self.worker].intakes[self.broker].renew_all;
        if *renew_all && due.renew.is_empty() {
            *renew_all = false;
            steps.add(Kind::Urgent, "worker has nothing to renew", subject, next);
            return;
        }
        if !due.renew.is_empty() {
            *renew_all = false;
            let is_in_transition = |it| due.renew.contains(it) && self.own.account[it].is_unanswered_elsewhere(id);
            let in_transition: TaskSet = self.scenario.tasks().filter(|&task| is_in_transition(task)).collect();
            next.change_connection(id, |it| {
                // `outdated` stays: a code about the record that this connection delivered last is ignored once, and
                // the renewal is sent again. That is stricter than rule 9; every scenario of the sweep also holds
                // without it.
                it.request = Some(Request::Acknowledge);
                it.renew = due.renew;
                it.in_transition |= in_transition;
            });
            steps.add(Kind::Urgent, "worker renews", subject, next);
            return;
        }
        let wants_fetch = self.wants_fetch();
        if wants_fetch || !due.accept.is_empty() || !due.release.is_empty() {
            // Rule 5: a request that releases does not fetch.
            let fetches = wants_fetch && (due.release.is_empty() || self.scenario.has(Twin::ReleaseOnFetch));
            let request = if fetches { Request::Fetch } else { Request::Acknowledge };
            self.acknowledge(&mut next, id, connection, &due, request);
            let name = if fetches { "worker fetches" } else { "worker acknowledges" };
            steps.add(Kind::Urgent, name, subject, next);
        } else if self.is_draining() && self.may_close(id) {
            next.change_connection(id, |it| {
                *it = Connection { request: Some(Request::Close), ..connection.without_request() };
            });
            if self.scenario.has(Twin::DrainReliesOnClose) {
                let account = &mut next.workers[self.worker].account.0;
                account.iter_mut().filter(|it| it.lock == Some(self.broker)).for_each(|it| *it = Entry::default());
            }
            steps.add(Kind::Urgent, "worker closes its session (-1)", subject, next);
        }
    }

    /// The requests that the account requires at this broker.
    fn due(&self, id: ConnectionId) -> Due {
        let mut due = Due::default();
        let waits = acknowledgements_wait(self.state, self.scenario, id);
        let renew_all = self.own.intakes[self.broker].renew_all;
        for task in self.scenario.tasks() {
            let entry = &self.own.account[task];
            if entry.lock != Some(self.broker) {
                continue;
            }
            let is_settling = matches!(entry.progress, Progress::Done | Progress::ToRelease);
            if (entry.renewal_due || renew_all) && (waits || !is_settling) {
                due.renew.insert(task);
            }
            if waits && !self.scenario.has(Twin::AcknowledgeDuringHang) {
                continue;
            }
            let is_early = self.scenario.has(Twin::AcceptEarly) && entry.progress == Progress::Publishing;
            if entry.progress == Progress::Done || is_early {
                due.accept.insert(task);
            }
            let is_left_to_close = self.is_draining() && self.scenario.has(Twin::DrainReliesOnClose);
            if entry.progress == Progress::ToRelease && !is_left_to_close {
                due.release.insert(task);
            }
        }
        due
    }

    /// Whether to fetch: for free handlers; or, also during a stop, to find a running record whose partition moved here
    /// (rules 16, 19 and 23).
    fn wants_fetch(&self) -> bool {
        let account = &self.own.account;
        let is_searched = |task| account[task].search && self.partitions.contains(self.scenario.partition_of(task));
        let has_stock = account.0.iter().any(|it| matches!(it.progress, Progress::Ready | Progress::Ghost));
        let is_paused = self.scenario.has(Twin::GlobalRecovery) && self.own.recovering;
        let is_idle = !has_stock && !self.is_busy() && !is_paused;
        (self.wants_records() && is_idle) || self.scenario.tasks().any(is_searched)
    }

    fn acknowledge(&self, next: &mut State, id: ConnectionId, connection: &Connection, due: &Due, request: Request) {
        next.change_connection(id, |it| {
            *it = Connection {
                request: Some(request),
                accept: due.accept,
                release: due.release,
                partitions: self.partitions,
                ..connection.without_request()
            };
        });
        for task in self.scenario.tasks() {
            let entry = &mut next.workers[self.worker].account[task];
            if due.accept.contains(task) {
                if entry.progress == Progress::Done {
                    entry.progress = Progress::Accepting;
                }
                entry.unanswered_on = Some((id.broker, id.slot));
            }
            if due.release.contains(task) {
                entry.progress = Progress::Releasing;
                entry.unanswered_on = Some((id.broker, id.slot));
            }
        }
    }

    /// Whether epoch -1 may be sent: every record is settled by name, and every superseded connection is read to its
    /// end (rule 21).
    fn may_close(&self, id: ConnectionId) -> bool {
        let is_owed = self
            .own
            .account
            .0
            .iter()
            .any(|it| it.unanswered_on.is_some_and(|(broker, slot)| broker == self.broker && slot != id.slot));
        let relies_on_close = self.scenario.has(Twin::DrainReliesOnClose) && self.own.tasks_at_work() == 0;
        let is_settled = !is_owed && (!self.own.holds_at(self.broker) || relies_on_close);
        let may_bring_records = |it: &Connection| {
            it.is_open() && it.request.is_some() && (it.silence == 0 || !it.acknowledged().is_empty())
        };
        is_settled && (!self.others(id).any(may_bring_records) || self.scenario.has(Twin::DrainCloseEarly))
    }
}

/// Records of a broker by the acknowledgement that is due.
#[derive(Default)]
struct Due {
    accept: TaskSet,
    release: TaskSet,
    renew: TaskSet,
}
