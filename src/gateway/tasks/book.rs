//! The book of tasks: the state of each task, and the callers that wait for it.
//!
//! Its parts are private and change together, by methods that report events. Each method returns the callers whose
//! replies it decides, and the calling thread gives these replies. Pure: times are parameters; the book does not send,
//! log or wait. One lock protects it, held for one call or a batch of calls (see [`tasks`](super)).

use super::Wanted;
use super::idempotency::{CLAIM_LIFE, Claim, Claims, KeyedTasks, Next, SEND_WITHIN};
use super::index::{Index, Known, PendingTask};
use super::kept::{Kept, LostTask, Record};
use super::key::{Position, TaskKey, claim_of_loss};
use super::waiting::{Full, Late, Leaving, Poll, Progress, Waiter, Waiting};
use crate::config::GatewayConfig;
use crate::gateway::metrics::Reason;
use crate::gateway::overload::{Crowd, Overload, Refused};
use crate::http::reply::{Preferences, Ticket};
use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};
use uuid::Uuid;

/// At most this many records of lost tasks are held until it is known which gateway produces them.
const MOST_LOST: usize = 500;

/// One moment, by the clock for timeouts and by the clock for dates of records.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) instant: Instant,
    pub(super) time: SystemTime,
}

/// A request with an idempotency key.
#[derive(Clone, Debug)]
pub(super) struct KeyedRequest {
    pub(super) wanted: Wanted,
    /// The digest of its text.
    pub(super) digest: Uuid,
    pub(super) preferences: Preferences,
}

/// The decision about such a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Keyed<R> {
    /// A limit is exceeded.
    Refused(R, Refused),
    /// The key was used with another text.
    Conflict(R),
    /// Kafka has the task, and the caller waits only for that.
    Accepted(R),
    /// The task's result is at this position.
    Fetch(R, Position),
    /// The caller waits: the task is on its way.
    Waits(Ticket),
    /// The caller waits, and this gateway has to write a claim.
    Claims(Ticket),
}

/// Data for the record of a task that is produced again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    /// The position of the lost record.
    pub(super) position: Position,
    /// The number of its replay.
    pub(super) replay: u64,
    pub(super) send_until: Instant,
}

/// The effect of a claim that was read.
#[derive(Debug)]
pub(super) enum ClaimRead<R> {
    Nothing,
    /// The claim is this gateway's: produce the task.
    Produce(Wanted),
    /// The claim is this gateway's: produce the task again, before another gateway may claim it at this time.
    ProduceAgain(LostTask, Instant),
    /// Another gateway holds the key, with another text.
    Conflict(Vec<Waiter<R>>),
}

/// The sizes of the book's parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) callers: usize,
    pub(super) pending: usize,
    pub(super) results: usize,
    pub(super) duplicate_results: u64,
    pub(super) unacknowledged_bytes: usize,
}

/// `R` is the reply to a caller.
#[derive(Debug)]
pub(super) struct TaskBook<R> {
    waiting: Waiting<R>,
    index: Index,
    claims: Claims,
    keyed: KeyedTasks,
    kept: Kept,
    /// Claims for tasks that Kafka has dropped.
    losses: Claims,
    /// Tasks that Kafka has dropped, by the key of their claim, until it is known which gateway produces them.
    lost: HashMap<TaskKey, (Instant, LostTask)>,
    overload: Overload,
    /// Bytes of the producer's records that Kafka has not acknowledged.
    unacknowledged: usize,
    most_keys: usize,
    most_pending: usize,
}

impl<R> TaskBook<R> {
    /// Creates an empty book with these limits.
    pub(super) fn new(config: &GatewayConfig, now: Instant) -> Self {
        let retention = config.common.result_retention;
        Self {
            waiting: Waiting::new(config.max_waiting, config.answer_timeout),
            index: Index::new(retention, config.max_results),
            claims: Claims::new(retention),
            keyed: KeyedTasks::default(),
            kept: Kept::default(),
            losses: Claims::new(retention),
            lost: HashMap::new(),
            overload: Overload::new(config.max_pending, config.answer_timeout, now),
            unacknowledged: 0,
            most_keys: config.max_keys,
            most_pending: config.max_pending,
        }
    }

    // ---- callers bring tasks ----

    /// Adds a caller with a new task. It waits from now on, so that no result arrives before its entry.
    pub(super) fn accept(
        &mut self,
        key: TaskKey,
        reply: R,
        preferences: Preferences,
        now: Instant,
    ) -> Result<Ticket, (R, Refused)> {
        match self.admit(true, preferences.asynchronous, now) {
            Ok(()) => Ok(self.waiting.park(key, reply, preferences, Progress::Queued, now)),
            Err(refused) => Err((reply, refused)),
        }
    }

    /// Adds a caller with an idempotency key. Decided and entered at once, so that of two callers with one key the
    /// first claims and the other waits.
    pub(super) fn accept_keyed(&mut self, key: TaskKey, reply: R, request: KeyedRequest, now: Moment) -> Keyed<R> {
        let KeyedRequest { wanted, digest, preferences } = request;
        let Preferences { asynchronous, wait } = preferences;
        let waits = wait.is_some_and(|wait| !wait.is_zero());
        let known = self.index.known(key);
        let claim = self.claims.held(key, known != Known::Nothing, now.time);
        let own = self.keyed.digest(key);
        if claim.map(|claim| claim.digest).into_iter().chain(own).any(|other| other != digest) {
            return Keyed::Conflict(reply);
        }
        match known {
            Known::Done(_) | Known::Pending if asynchronous && !waits => return Keyed::Accepted(reply),
            Known::Done(position) => return Keyed::Fetch(reply, position),
            Known::Pending | Known::Nothing => {}
        }
        let is_new = known == Known::Nothing && claim.is_none() && own.is_none();
        if let Err(refused) = self.admit(is_new, asynchronous, now.instant) {
            return Keyed::Refused(reply, refused);
        }
        if is_new && self.claims.count() >= self.most_keys {
            let detail = format!("{} idempotency keys are remembered already (MAX_KEYS)", self.claims.count());
            return Keyed::Refused(reply, Refused::new(Reason::MaxKeys, detail));
        }
        let progress = match known {
            Known::Pending => Progress::Acknowledged,
            _ if is_new => Progress::Queued,
            // On its way from this or another gateway: it is unknown whether Kafka has it.
            _ => Progress::Sent,
        };
        let ticket = self.waiting.park(key, reply, preferences, progress, now.instant);
        if is_new {
            self.keyed.claim(key, wanted, digest, now.instant);
            return Keyed::Claims(ticket);
        }
        if known == Known::Nothing && own.is_none() {
            self.keyed.wait(key, wanted, digest, now.instant);
        }
        Keyed::Waits(ticket)
    }

    fn admit(&mut self, is_new: bool, asynchronous: bool, now: Instant) -> Result<(), Refused> {
        let crowd = Crowd {
            pending: self.index.pending_count(),
            // The texts of tasks with keys also stay here until their claims are read.
            unacknowledged: self.unacknowledged + self.keyed.bytes(),
        };
        self.overload.admit(crowd, is_new, !asynchronous, now)?;
        self.waiting.room().map_err(Refused::from)
    }

    // ---- records go to Kafka ----

    /// Notes a record before it is passed to the producer, since it may be settled during that call.
    pub(super) fn producing(&mut self, bytes: usize) {
        self.unacknowledged += bytes;
    }

    /// The same for the record of a task, which is kept.
    pub(super) fn producing_task(&mut self, key: TaskKey, record: Record) {
        self.producing(record.bytes());
        self.kept.keep(key, record);
    }

    /// Notes that the task goes into a request now. `Err`: it must not be sent, because all its callers were told that
    /// it was not accepted, or because another gateway may send it; returns its callers.
    pub(super) fn sending(&mut self, key: TaskKey, bytes: usize, now: Instant) -> Result<(), Vec<Waiter<R>>> {
        if self.keyed.may_be_sent(key, now) && self.waiting.sending(key) {
            return Ok(());
        }
        Err(self.given_up(key, bytes))
    }

    /// The same for a task that is produced again. Returns false if it is too late, or another gateway was faster.
    pub(super) fn sending_again(&mut self, key: TaskKey, lost: Loss, bytes: usize, now: Instant) -> bool {
        let is_due = self.index.is_pending_at(key, lost.position) && now < lost.send_until;
        if !is_due {
            self.settled_record(bytes);
        }
        is_due
    }

    /// Notes that the producer has settled a record of this size, without other effects.
    pub(super) fn settled_record(&mut self, bytes: usize) {
        self.unacknowledged -= bytes;
    }

    /// Notes that Kafka has acknowledged the task. Returns the callers that wait only for that.
    pub(super) fn task_acknowledged(
        &mut self,
        key: TaskKey,
        bytes: usize,
        position: Position,
        at: SystemTime,
    ) -> Vec<Waiter<R>> {
        self.settled_record(bytes);
        self.in_kafka(key, position, at)
    }

    /// Notes that Kafka will not get the task or its claim, or that this is unknown. Returns the task's callers, unless
    /// a record of the task was read: then they wait for its result.
    pub(super) fn given_up(&mut self, key: TaskKey, bytes: usize) -> Vec<Waiter<R>> {
        self.settled_record(bytes);
        self.keyed.settled(key);
        if self.index.known(key) == Known::Pending {
            return Vec::new();
        }
        self.kept.forget(key);
        self.waiting.complete(key)
    }

    // ---- records come from Kafka ----

    /// Whether a record of this replay (0: of none) counts, and is to be added. See [`Index::heeds`].
    pub(super) fn heeds(&mut self, key: TaskKey, replay: u64) -> bool {
        if replay != 0 {
            // It is the record before the replay.
            self.kept.forget(key);
        }
        self.index.heeds(key, replay)
    }

    /// Adds a record of the tasks topic. Returns the callers that wait only for that.
    pub(super) fn in_kafka(&mut self, key: TaskKey, position: Position, at: SystemTime) -> Vec<Waiter<R>> {
        self.index.task(key, position, at);
        self.keyed.settled(key);
        self.waiting.acknowledged(key)
    }

    /// Adds a record of the results topic. Returns whether the result is new, and the task's callers.
    pub(super) fn done(&mut self, key: TaskKey, position: Position, at: SystemTime) -> (bool, Vec<Waiter<R>>) {
        let is_news = self.index.result(key, position, at);
        self.keyed.settled(key);
        self.kept.forget(key);
        (is_news, self.waiting.complete(key))
    }

    /// Notes that this many tasks were finished just now.
    pub(super) fn finished(&mut self, count: u64, now: Instant) {
        self.overload.finished(count, self.index.pending_count(), now);
    }

    /// Applies a claim that was read; `own` is this gateway.
    pub(super) fn claim_read(&mut self, key: TaskKey, claim: Claim, own: Uuid, now: Instant) -> ClaimRead<R> {
        if claim.digest.is_nil() {
            return self.claim_of_loss_read(key, claim, own, now);
        }
        let held = self.claims.read(key, claim, self.index.known(key) != Known::Nothing);
        match self.keyed.claim_read(key, held.gateway == own, held.digest, now) {
            Next::Nothing => ClaimRead::Nothing,
            Next::Produce(wanted) if self.waiting.contains(key) => ClaimRead::Produce(wanted),
            // All its callers have left: no caller was promised the task, so it is not produced.
            Next::Produce(_) => {
                self.keyed.settled(key);
                ClaimRead::Nothing
            }
            Next::Wait => {
                self.waiting.sending(key);
                ClaimRead::Nothing
            }
            Next::Conflict => ClaimRead::Conflict(self.waiting.complete(key)),
        }
    }

    /// Applies a claim of a loss. A loss has no text, so its claim has no digest.
    fn claim_of_loss_read(&mut self, claimed: TaskKey, claim: Claim, own: Uuid, now: Instant) -> ClaimRead<R> {
        let held = self.losses.read(claimed, claim, false);
        let Some((since, lost)) = self.lost.remove(&claimed) else { return ClaimRead::Nothing };
        // Only this claim counts, not an earlier claim for which the task is being produced, and only without a result.
        let is_ours = held == claim && held.gateway == own && self.index.is_pending_at(lost.key, lost.position);
        let in_time = now.saturating_duration_since(since) < SEND_WITHIN;
        if is_ours && in_time { ClaimRead::ProduceAgain(lost, since + SEND_WITHIN) } else { ClaimRead::Nothing }
    }

    /// The keys to claim again, with digests: other gateways claimed them and did not produce in time.
    pub(super) fn overdue_claims(&mut self, now: Instant) -> Vec<(TaskKey, Uuid)> {
        let Self { keyed, waiting, .. } = self;
        keyed.overdue(now, |key| waiting.contains(key))
    }

    // ---- questions ----

    /// The state of the task.
    pub(super) fn known(&self, key: TaskKey) -> Known {
        self.index.known(key)
    }

    /// Whether Kafka may have a result that the index has displaced; `since`: the task was not created before this.
    pub(super) fn may_be_pushed_out(&self, key: TaskKey, since: Option<SystemTime>) -> bool {
        self.index.may_be_pushed_out(key, since)
    }

    /// Notes that the result was not found: its caller waits until it is known whether the task exists.
    pub(super) fn not_found(&mut self, number: u64) {
        self.waiting.not_found(number);
    }

    /// Adds a caller that waits for a stored result, for `patience`. Without room it returns the reply.
    pub(super) fn look_up(
        &mut self,
        key: TaskKey,
        id: String,
        caller: (R, Preferences),
        patience: Duration,
        now: Instant,
    ) -> Result<Ticket, (R, Full)> {
        self.waiting.look_up(key, id, caller, patience, now)
    }

    /// Adds a caller that waits until it is known whether the task exists, and then for `wait` if it is pending.
    /// Without room it returns the reply.
    pub(super) fn ask(
        &mut self,
        key: TaskKey,
        id: String,
        (reply, wait): (R, Option<Duration>),
        now: Instant,
    ) -> Result<Ticket, (R, Full)> {
        self.waiting.ask(key, id, (reply, wait), now)
    }

    /// Adds a caller that waits for the result of a pending task. If the task is not pending any more, or without room,
    /// it returns reply and id.
    pub(super) fn poll(&mut self, poll: Poll<R>, now: Instant) -> Result<Ticket, (R, String)> {
        match self.index.known(poll.key) {
            Known::Pending => self.waiting.poll(poll, now),
            Known::Done(_) | Known::Nothing => Err((poll.reply, poll.id)),
        }
    }

    /// Takes out all callers that wait for the result of a pending task by its id, and admits no more of them.
    pub(super) fn end_polls(&mut self) -> Vec<Leaving<R>> {
        self.waiting.end_polls()
    }

    /// The task's state, which answers this question; `None`: the task is pending, and the caller waits for its result.
    pub(super) fn answer(&mut self, number: u64, key: TaskKey, now: Instant) -> Option<Known> {
        let known = self.index.known(key);
        (known != Known::Pending || !self.waiting.poll_on(number, now)).then_some(known)
    }

    /// Notes the number of passes over the tasks topic. Returns the questions that this decides, with their tasks'
    /// states.
    pub(super) fn passed(&mut self, passes: u64, now: Instant) -> Vec<(u64, TaskKey, Known)> {
        let decided = self.waiting.passed(passes).into_iter();
        decided.filter_map(|(number, key)| Some((number, key, self.answer(number, key, now)?))).collect()
    }

    /// Whether this reply still waits.
    pub(super) fn waits(&self, number: u64) -> bool {
        self.waiting.waits(number)
    }

    /// Forgets a result whose record no longer exists.
    pub(super) fn result_is_gone(&mut self, key: TaskKey) {
        self.index.forget(key);
    }

    // ---- tasks that Kafka has dropped ----

    /// Tasks without a result since before `before`.
    pub(super) fn pending_since(&self, before: SystemTime) -> Vec<(TaskKey, PendingTask)> {
        self.index.pending_since(before)
    }

    /// The number of the task's last replay; 0 if there was none.
    pub(super) fn replay(&self, key: TaskKey) -> u64 {
        self.index.replay(key)
    }

    /// Whether the task has no result and its last record is at this position.
    pub(super) fn is_pending_at(&self, key: TaskKey, position: Position) -> bool {
        self.index.is_pending_at(key, position)
    }

    /// Notes that Kafka has dropped the task, and returns the key to claim. All gateways see the same loss, and the
    /// first to claim it produces the task again. `None`: another gateway has claimed it, and this one may not have
    /// read the new record.
    pub(super) fn lose(&mut self, lost: LostTask, own: Uuid, now: Instant) -> Option<TaskKey> {
        let claimed = TaskKey::from_uuid(claim_of_loss(lost.key, lost.position));
        let is_reading = self.index.pending_count() < self.most_pending;
        if !is_reading && self.losses.last(claimed).is_some_and(|claim| claim.gateway != own) {
            return None;
        }
        self.lost.insert(claimed, (now, lost));
        Some(claimed)
    }

    /// Forgets losses whose claims did not arrive in time; the sweep finds them again. Returns the room for more.
    pub(super) fn forget_late_losses(&mut self, now: Instant) -> usize {
        self.lost.retain(|_, (since, _)| now.saturating_duration_since(*since) < CLAIM_LIFE);
        MOST_LOST.saturating_sub(self.lost.len())
    }

    /// The task's record, if this gateway produced it and still has it.
    pub(super) fn kept(&self, key: TaskKey) -> Option<Record> {
        self.kept.get(key)
    }

    /// Forgets a task that will get no result. Returns its callers: if they stayed, a later caller of its key would join
    /// them and be told that Kafka has the task.
    pub(super) fn settled(&mut self, key: TaskKey) -> Vec<Waiter<R>> {
        self.index.settle(key);
        self.kept.forget(key);
        self.waiting.complete(key)
    }

    // ---- leaving ----

    /// Takes a caller out; `None`: it was taken out before, and another thread gives its reply.
    pub(super) fn take(&mut self, number: u64) -> Option<Leaving<R>> {
        self.waiting.take(number)
    }

    /// Handles the end of a ticket's time: its caller leaves or waits longer.
    pub(super) fn late(&mut self, number: u64, now: Instant) -> Late<R> {
        self.waiting.late(number, now)
    }

    /// Takes all callers out, and admits no more.
    pub(super) fn close(&mut self) -> Vec<Leaving<R>> {
        self.waiting.close()
    }

    /// Forgets results and claims that are older than `RESULT_RETENTION`.
    pub(super) fn forget_old(&mut self, now: SystemTime) {
        self.index.forget_old(now, |key| self.claims.last(key).is_some());
        self.claims.forget_old(now, |key| self.index.kept_from(key, now));
        self.losses.forget_old(now, |_| None);
    }

    /// When Kafka appended the oldest record of the tasks without a result.
    pub(super) fn oldest_pending(&self) -> Option<SystemTime> {
        self.index.oldest_pending()
    }

    /// The sizes of the book's parts.
    pub(super) fn counts(&self) -> Counts {
        Counts {
            callers: self.waiting.callers(),
            pending: self.index.pending_count(),
            results: self.index.results_count(),
            duplicate_results: self.index.duplicates(),
            unacknowledged_bytes: self.unacknowledged,
        }
    }
}

#[cfg(test)]
mod tests;
