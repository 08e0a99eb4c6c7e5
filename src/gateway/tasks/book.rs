//! The book of tasks: what is known of each, and which callers wait for it.
//!
//! Its parts are private and change together, by verbs that say what has happened; each returns the callers whose
//! replies that decides; the thread that gets a caller gives its reply. Pure: times are parameters, nothing is sent,
//! logged or waited for from here. One lock protects it, which is held for a verb or a batch of them (see
//! [`tasks`](super)).

use super::Wanted;
use super::idempotency::{CLAIM_LIFE, Claim, Claims, KeyedTasks, Next, SEND_WITHIN};
use super::index::{Index, Known, PendingTask};
use super::kept::Kept;
use super::key::{Position, TaskKey, claim_of_loss};
use super::waiting::{Full, Leaving, Progress, QUESTION_PATIENCE, Waiter, Waiting};
use crate::config::GatewayConfig;
use crate::gateway::overload::{Crowd, Overload, Refused};
use crate::gateway::reply::Ticket;
use bytes::Bytes;
use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};
use uuid::Uuid;

/// How long a caller waits for a result that has to be searched for.
const SEARCH_PATIENCE: Duration = Duration::from_secs(10);

/// At most this many records of lost tasks are held here, until it is known which gateway produces them.
const MOST_LOST: usize = 500;

/// One moment, by the clock that measures patience and by the one that dates records.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) instant: Instant,
    pub(super) time: SystemTime,
}

/// What a request with an idempotency key asks for.
#[derive(Clone, Debug)]
pub(super) struct KeyedRequest {
    pub(super) wanted: Wanted,
    /// Of its text.
    pub(super) digest: Uuid,
    pub(super) asynchronous: bool,
}

/// What such a request comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Keyed<R> {
    /// There is too much already.
    Refused(R, Refused),
    /// The key was used with another text.
    Conflict(R),
    /// Kafka has the task, and the caller wants to know no more.
    Accepted(R),
    /// The task's result stands there.
    Fetch(R, Position),
    /// The task is on its way.
    Waits(Ticket),
    /// The same, once a claim is written.
    Claims(Ticket),
}

/// A task that Kafka has dropped, and its record as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LostTask {
    pub(super) key: TaskKey,
    /// Where the record stood.
    pub(super) position: Position,
    pub(super) record_key: Option<Bytes>,
    pub(super) value: Bytes,
}

/// What travels with the record of a task that is produced again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    /// Where the record stood before.
    pub(super) position: Position,
    pub(super) send_until: Instant,
}

/// What a claim that was read comes to.
#[derive(Debug)]
pub(super) enum ClaimRead<R> {
    Nothing,
    /// It is ours: the task is to be produced.
    Produce(Wanted),
    /// It is ours: the task is to be produced again, and sent before then, when another gateway may claim it.
    ProduceAgain(LostTask, Instant),
    /// Another gateway has the key, with another text.
    Conflict(Vec<Waiter<R>>),
}

/// How much there is of everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) callers: usize,
    pub(super) pending: usize,
    pub(super) results: usize,
    pub(super) duplicate_results: u64,
    pub(super) unacknowledged_bytes: usize,
}

/// See the module documentation. `R` is the way back to a caller.
#[derive(Debug)]
pub(super) struct TaskBook<R> {
    waiting: Waiting<R>,
    index: Index,
    claims: Claims,
    keyed: KeyedTasks,
    kept: Kept,
    /// Claims for tasks that Kafka has dropped.
    losses: Claims,
    /// Tasks that Kafka has dropped, by what was claimed for each: whether this gateway produces it is not known yet.
    lost: HashMap<TaskKey, (Instant, LostTask)>,
    overload: Overload,
    /// Bytes of records that the producer has and Kafka has not acknowledged.
    unacknowledged: usize,
    most_keys: usize,
    most_pending: usize,
}

impl<R> TaskBook<R> {
    /// An empty one within the bounds of these options.
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

    /// A caller brings a task. It waits from now on, so that no result is faster than its entry.
    pub(super) fn accept(
        &mut self,
        key: TaskKey,
        reply: R,
        asynchronous: bool,
        now: Instant,
    ) -> Result<Ticket, (R, Refused)> {
        match self.admit(true, asynchronous, now) {
            Ok(()) => Ok(self.waiting.park(key, reply, asynchronous, Progress::Queued, now)),
            Err(refused) => Err((reply, refused)),
        }
    }

    /// A caller brings a task with an idempotency key. Decided and entered at once, so that of two callers of one key
    /// the first claims and the other waits.
    pub(super) fn accept_keyed(&mut self, key: TaskKey, reply: R, request: KeyedRequest, now: Moment) -> Keyed<R> {
        let KeyedRequest { wanted, digest, asynchronous } = request;
        let known = self.index.known(key);
        let claim = self.claims.held(key, known != Known::Nothing, now.time);
        let own = self.keyed.digest(key);
        if claim.map(|claim| claim.digest).into_iter().chain(own).any(|other| other != digest) {
            return Keyed::Conflict(reply);
        }
        match known {
            Known::Done(_) | Known::Pending if asynchronous => return Keyed::Accepted(reply),
            Known::Done(position) => return Keyed::Fetch(reply, position),
            Known::Pending | Known::Nothing => {}
        }
        let is_new = known == Known::Nothing && claim.is_none() && own.is_none();
        if let Err(refused) = self.admit(is_new, asynchronous, now.instant) {
            return Keyed::Refused(reply, refused);
        }
        if is_new && self.claims.count() >= self.most_keys {
            let detail = format!("{} idempotency keys are remembered already (MAX_KEYS)", self.claims.count());
            return Keyed::Refused(reply, Refused::new(detail));
        }
        let progress = match known {
            Known::Pending => Progress::Acknowledged,
            _ if is_new => Progress::Queued,
            // On its way here or from another gateway: whether Kafka has it is not known.
            _ => Progress::Sent,
        };
        let ticket = self.waiting.park(key, reply, asynchronous, progress, now.instant);
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
            // The texts of tasks with keys are held here, too, until their claims are read.
            unacknowledged: self.unacknowledged + self.keyed.bytes(),
        };
        self.overload.admit(crowd, is_new, !asynchronous, now)?;
        self.waiting.room().map_err(|full| match full {
            Full::Table(count) => Refused::new(format!("{count} callers wait already (MAX_WAITING)")),
            Full::Closed => Refused::new("the gateway is shutting down; send this to another one"),
        })
    }

    // ---- records go to Kafka ----

    /// A record of this task is handed to the producer. Before it is: it may be settled while that lasts.
    pub(super) fn producing(&mut self, bytes: usize) {
        self.unacknowledged += bytes;
    }

    /// The same of the record that is the task itself.
    pub(super) fn producing_task(&mut self, key: TaskKey, value: Bytes) {
        self.producing(value.len());
        self.kept.keep(key, value);
    }

    /// The task goes into a request now. `Err`: all that wanted it were told that nothing was accepted, so it must not
    /// be, or another gateway may be about to send it; its callers.
    pub(super) fn sending(&mut self, key: TaskKey, bytes: usize, now: Instant) -> Result<(), Vec<Waiter<R>>> {
        if self.keyed.may_be_sent(key, now) && self.waiting.sending(key) {
            return Ok(());
        }
        Err(self.given_up(key, bytes))
    }

    /// The same of one that is produced again. False: it came too late, or another gateway was faster.
    pub(super) fn sending_again(&mut self, key: TaskKey, lost: Loss, bytes: usize, now: Instant) -> bool {
        let is_due = self.index.is_pending_at(key, lost.position) && now < lost.send_until;
        if !is_due {
            self.settled_record(bytes);
        }
        is_due
    }

    /// The producer has no record of these bytes any more, and nothing else is changed by that.
    pub(super) fn settled_record(&mut self, bytes: usize) {
        self.unacknowledged -= bytes;
    }

    /// Kafka has acknowledged the task. Returns the callers that only wanted to know that.
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

    /// The task, or the claim for it, does not get into Kafka from here, or whether it does is not known. Returns its
    /// callers.
    pub(super) fn given_up(&mut self, key: TaskKey, bytes: usize) -> Vec<Waiter<R>> {
        self.settled_record(bytes);
        self.keyed.settled(key);
        self.kept.forget(key);
        self.waiting.complete(key)
    }

    // ---- records come from Kafka ----

    /// The task stands on the tasks topic. Returns the callers that only wanted to know that.
    pub(super) fn in_kafka(&mut self, key: TaskKey, position: Position, at: SystemTime) -> Vec<Waiter<R>> {
        self.index.task(key, position, at);
        self.keyed.settled(key);
        self.waiting.acknowledged(key)
    }

    /// The task's result stands on the results topic. Returns whether that is news, and the task's callers.
    pub(super) fn done(&mut self, key: TaskKey, position: Position, at: SystemTime) -> (bool, Vec<Waiter<R>>) {
        let is_news = self.index.result(key, position, at);
        self.keyed.settled(key);
        self.kept.forget(key);
        (is_news, self.waiting.complete(key))
    }

    /// This many tasks were finished just now.
    pub(super) fn finished(&mut self, count: u64, now: Instant) {
        self.overload.finished(count, self.index.pending_count(), now);
    }

    /// A claim was read; `own` is this gateway.
    pub(super) fn claim_read(&mut self, key: TaskKey, claim: Claim, own: Uuid, now: Instant) -> ClaimRead<R> {
        if claim.digest.is_nil() {
            return self.claim_of_loss_read(key, claim, own, now);
        }
        let held = self.claims.read(key, claim, self.index.known(key) != Known::Nothing);
        match self.keyed.claim_read(key, held.gateway == own, held.digest, now) {
            Next::Nothing => ClaimRead::Nothing,
            Next::Produce(wanted) if self.waiting.contains(key) => ClaimRead::Produce(wanted),
            // All its callers have left: what was promised to none is not produced.
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

    /// A loss has no text, so its claim has no digest.
    fn claim_of_loss_read(&mut self, claimed: TaskKey, claim: Claim, own: Uuid, now: Instant) -> ClaimRead<R> {
        let held = self.losses.read(claimed, claim, false);
        let Some((since, lost)) = self.lost.remove(&claimed) else { return ClaimRead::Nothing };
        // This very claim, not one before it on which the task is being produced. And no result has come meanwhile.
        let is_ours = held == claim && held.gateway == own && self.index.is_pending_at(lost.key, lost.position);
        let in_time = now.saturating_duration_since(since) < SEND_WITHIN;
        if is_ours && in_time { ClaimRead::ProduceAgain(lost, since + SEND_WITHIN) } else { ClaimRead::Nothing }
    }

    /// What other gateways have claimed and not produced in time: to be claimed again, with the digest of its text.
    pub(super) fn overdue_claims(&mut self, now: Instant) -> Vec<(TaskKey, Uuid)> {
        let Self { keyed, waiting, .. } = self;
        keyed.overdue(now, |key| waiting.contains(key))
    }

    // ---- questions ----

    /// What is known of the task.
    pub(super) fn known(&self, key: TaskKey) -> Known {
        self.index.known(key)
    }

    /// Whether the task's result may stand in Kafka though it is not known; `since`: the task was not made before that.
    pub(super) fn may_be_pushed_out(&self, key: TaskKey, since: Option<SystemTime>) -> bool {
        self.index.may_be_pushed_out(key, since)
    }

    /// The result was not found: its caller waits for word whether there is such a task.
    pub(super) fn not_found(&mut self, number: u64) {
        self.waiting.not_found(number);
    }

    /// A caller waits for the result that stands in Kafka; the reply comes back where there is no room.
    pub(super) fn look_up(&mut self, key: TaskKey, id: String, reply: R, now: Instant) -> Result<Ticket, (R, Full)> {
        self.waiting.look_up(key, id, reply, QUESTION_PATIENCE, now)
    }

    /// The same of one that has to be searched for.
    pub(super) fn search(&mut self, key: TaskKey, id: String, reply: R, now: Instant) -> Result<Ticket, (R, Full)> {
        self.waiting.look_up(key, id, reply, SEARCH_PATIENCE, now)
    }

    /// A caller waits for word whether there is such a task; the reply comes back where there is no room.
    pub(super) fn ask(&mut self, key: TaskKey, id: String, reply: R, now: Instant) -> Result<Ticket, (R, Full)> {
        self.waiting.ask(key, id, reply, now)
    }

    /// This many passes over the tasks topic are done. Returns the questions that this decides, with what is known.
    pub(super) fn passed(&mut self, passes: u64) -> Vec<(u64, TaskKey, Known)> {
        let decided = self.waiting.passed(passes);
        decided.into_iter().map(|(number, key)| (number, key, self.index.known(key))).collect()
    }

    /// Whether this reply still waits.
    pub(super) fn waits(&self, number: u64) -> bool {
        self.waiting.waits(number)
    }

    /// The record of the task's result is not there any more.
    pub(super) fn result_is_gone(&mut self, key: TaskKey) {
        self.index.forget(key);
    }

    // ---- tasks that Kafka has dropped ----

    /// Tasks that have waited for a result since before `before`.
    pub(super) fn pending_since(&self, before: SystemTime) -> Vec<(TaskKey, PendingTask)> {
        self.index.pending_since(before)
    }

    /// Whether the task has no result, and its last record stands there.
    pub(super) fn is_pending_at(&self, key: TaskKey, position: Position) -> bool {
        self.index.is_pending_at(key, position)
    }

    /// Kafka has dropped the task: the gateway that claims what this returns first produces it again, since all of them
    /// see the same. `None`: another one has claimed it, and its record may not have been read here.
    pub(super) fn lose(&mut self, lost: LostTask, own: Uuid, now: Instant) -> Option<TaskKey> {
        let claimed = TaskKey::from_uuid(claim_of_loss(lost.key, lost.position));
        let is_reading = self.index.pending_count() < self.most_pending;
        if !is_reading && self.losses.last(claimed).is_some_and(|claim| claim.gateway != own) {
            return None;
        }
        self.lost.insert(claimed, (now, lost));
        Some(claimed)
    }

    /// Forgets losses whose claims have not come for long, to be found again. Returns how many more there is room for.
    pub(super) fn forget_late_losses(&mut self, now: Instant) -> usize {
        self.lost.retain(|_, (since, _)| now.saturating_duration_since(*since) < CLAIM_LIFE);
        MOST_LOST.saturating_sub(self.lost.len())
    }

    /// The task's record, if this gateway produced it and still has it.
    pub(super) fn kept(&self, key: TaskKey) -> Option<Bytes> {
        self.kept.get(key)
    }

    /// Nothing more will come of the task.
    pub(super) fn settled(&mut self, key: TaskKey) {
        self.index.settle(key);
        self.kept.forget(key);
    }

    // ---- leaving ----

    /// Takes a caller out; `None`: it was taken out before, and its reply is given by another thread.
    pub(super) fn take(&mut self, number: u64) -> Option<Leaving<R>> {
        self.waiting.take(number)
    }

    /// All callers leave, and none comes in any more.
    pub(super) fn close(&mut self) -> Vec<Leaving<R>> {
        self.waiting.close()
    }

    /// Forgets results and claims that are older than `RESULT_RETENTION`.
    pub(super) fn forget_old(&mut self, now: SystemTime) {
        self.index.forget_old(now, |key| self.claims.last(key).is_some());
        self.claims.forget_old(now, |key| self.index.known(key) == Known::Pending);
        self.losses.forget_old(now, |_| false);
    }

    /// How much there is of everything.
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
