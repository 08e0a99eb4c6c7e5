//! The waiting replies: for a task's result, for Kafka's acknowledgement, for a stored result, or for the answer
//! whether a task exists.
//!
//! A reply is entered before any action that could answer it, so no result arrives before its entry. The thread that
//! takes an entry out gives the reply, so each is given exactly once by construction. The connection's thread keeps the
//! deadline. Pure: time is a parameter, nothing is sent from here.

use super::key::TaskKey;
use crate::gateway::metrics::Reason;
use crate::gateway::overload::Refused;
use crate::http::reply::{Preferences, Ticket};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// At most this many callers wait for stored results.
const MOST_LOOK_UPS: usize = 1024;
/// At most this many callers wait for unknown tasks.
const MOST_UNKNOWN: usize = 256;
/// How long a caller waits for an answer from Kafka.
pub(super) const QUESTION_PATIENCE: Duration = Duration::from_secs(3);
/// A question for an unknown task waits for this many passes over all partitions of the tasks topic. The first is under
/// way when the question comes, and the answers of the second may have been built before.
const PASSES: u64 = 3;

/// How far the caller's task is on its way to Kafka; decides the response at the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not in a request yet: it can still be withdrawn, and then it was never accepted.
    Queued,
    /// Sent; it is unknown whether Kafka has it.
    Sent,
    /// Kafka has the task.
    Acknowledged,
}

/// The answer that a caller waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// The task's result.
    Result,
    /// That Kafka has the task: the caller prefers a response without the result, or its preferred wait is over.
    Acceptance,
    /// The result of the pending task with this id; at the deadline, that it is pending.
    Poll(String),
    /// A stored result of the task with this id.
    Stored(String),
    /// Whether a task with this id exists.
    Existence(String),
}

/// A waiting reply.
#[derive(Debug)]
pub(super) struct Waiter<R> {
    pub(super) reply: R,
    pub(super) key: TaskKey,
    pub(super) wish: Wish,
    pub(super) preferences: Preferences,
    /// Its request brought the task; others joined it later.
    pub(super) is_first: bool,
    /// When it was entered.
    pub(super) since: Instant,
    /// Its deadline; its ticket may have an earlier time.
    pub(super) until: Instant,
}

/// What becomes of a reply whose ticket's time is over.
#[derive(Debug)]
pub(super) enum Late<R> {
    /// It leaves without its answer.
    Leaves(Leaving<R>),
    /// It waits until a later time.
    Waits(Ticket),
    /// It was taken out before, and another thread gives it.
    Gone,
}

/// A waiting reply that leaves without its answer, and its task's progress.
#[derive(Debug)]
pub(super) struct Leaving<R> {
    pub(super) waiter: Waiter<R>,
    pub(super) progress: Progress,
}

#[derive(Debug)]
struct Task {
    progress: Progress,
    /// Several callers wait for one task if they use the same idempotency key.
    callers: Vec<u64>,
}

/// A caller that waits for the result of a pending task.
#[derive(Debug)]
pub(super) struct Poll<R> {
    pub(super) key: TaskKey,
    pub(super) id: String,
    pub(super) reply: R,
    /// How long it waits.
    pub(super) wait: Duration,
}

/// Why a reply may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// This many replies wait already.
    Table(usize),
    /// The gateway has ended.
    Closed,
}

impl From<Full> for Refused {
    fn from(full: Full) -> Self {
        match full {
            Full::Table(count) => Self::new(Reason::MaxWaiting, format!("{count} callers wait already (MAX_WAITING)")),
            Full::Closed => {
                Self::new(Reason::Draining, "the gateway is shutting down; send the request to another gateway")
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Waiting<R> {
    waiters: HashMap<u64, Waiter<R>>,
    tasks: HashMap<TaskKey, Task>,
    /// The replies for unknown tasks, each with the number of passes at which it is answered.
    unknown: Vec<(u64, u64)>,
    /// The complete passes over the tasks topic.
    passes: u64,
    /// The number of waiters for a task on its way.
    callers: usize,
    most_callers: usize,
    patience: Duration,
    next: u64,
    polls_ended: bool,
    closed: bool,
}

impl<R> Waiting<R> {
    /// At most `most_callers` wait for tasks on their way, each for `patience` (`MAX_WAITING`, `ANSWER_TIMEOUT`).
    pub(super) fn new(most_callers: usize, patience: Duration) -> Self {
        Self {
            waiters: HashMap::new(),
            tasks: HashMap::new(),
            unknown: Vec::new(),
            passes: 0,
            callers: 0,
            most_callers,
            patience,
            next: 0,
            polls_ended: false,
            closed: false,
        }
    }

    /// Checks the room for one more caller of a task on its way.
    pub(super) fn room(&self) -> Result<(), Full> {
        self.room_beside(self.callers, self.most_callers)
    }

    fn room_beside(&self, count: usize, most: usize) -> Result<(), Full> {
        match (self.closed, count >= most) {
            (true, _) => Err(Full::Closed),
            (false, true) => Err(Full::Table(count)),
            (false, false) => Ok(()),
        }
    }

    /// Enters a caller of a task on its way. `progress` counts only if the task has no caller yet.
    pub(super) fn park(
        &mut self,
        key: TaskKey,
        reply: R,
        preferences: Preferences,
        progress: Progress,
        now: Instant,
    ) -> Ticket {
        let wait = preferences.wait.filter(|wait| !(preferences.asynchronous && wait.is_zero()));
        let preferences = Preferences { wait, ..preferences };
        let wish = if preferences.asynchronous && wait.is_none() { Wish::Acceptance } else { Wish::Result };
        let is_first = progress == Progress::Queued;
        let patience = wait.map_or(self.patience, |wait| wait.min(self.patience));
        let ticket = self.enter(Waiter { reply, key, wish, preferences, is_first, since: now, until: now + patience });
        self.join(key, ticket.number, progress);
        ticket
    }

    /// Counts a waiter among the callers of a task on its way.
    fn join(&mut self, key: TaskKey, number: u64, progress: Progress) {
        self.callers += 1;
        let task = self.tasks.entry(key).or_insert_with(|| Task { progress, callers: Vec::with_capacity(1) });
        task.callers.push(number);
    }

    /// Enters a caller that waits for the result of a pending task for this time. Without room, or after
    /// [`end_polls`](Self::end_polls), it returns reply and id.
    pub(super) fn poll(&mut self, poll: Poll<R>, now: Instant) -> Result<Ticket, (R, String)> {
        let Poll { key, id, reply, wait } = poll;
        if self.polls_ended || self.room().is_err() {
            return Err((reply, id));
        }
        let preferences = Preferences { asynchronous: false, wait: Some(wait) };
        let waiter =
            Waiter { reply, key, wish: Wish::Poll(id), preferences, is_first: false, since: now, until: now + wait };
        let ticket = self.enter(waiter);
        self.join(key, ticket.number, Progress::Acknowledged);
        Ok(ticket)
    }

    /// Lets a question wait for the result of its task, which is pending, if its caller prefers that and time is left.
    /// Returns whether it waits. Without room its preference is dropped: the response does not apply it.
    pub(super) fn poll_on(&mut self, number: u64, now: Instant) -> bool {
        let has_room = !self.polls_ended && self.room().is_ok();
        let Some(waiter) = self.waiters.get_mut(&number) else { return false };
        let until = waiter.preferences.wait.map(|wait| waiter.since + wait).filter(|until| *until > now);
        let (Some(until), Wish::Stored(id) | Wish::Existence(id)) = (until, &mut waiter.wish) else { return false };
        if !has_room {
            waiter.preferences.wait = None;
            return false;
        }
        (waiter.wish, waiter.until) = (Wish::Poll(std::mem::take(id)), until);
        let key = waiter.key;
        self.unknown.retain(|(own, _)| *own != number);
        self.join(key, number, Progress::Acknowledged);
        true
    }

    /// Takes out all callers that poll, and admits no more of them: the gateway drains.
    pub(super) fn end_polls(&mut self) -> Vec<Leaving<R>> {
        self.polls_ended = true;
        let polls = self.waiters.iter().filter(|(_, waiter)| matches!(waiter.wish, Wish::Poll(_)));
        let polls: Vec<u64> = polls.map(|(number, _)| *number).collect();
        polls.into_iter().filter_map(|number| self.take(number)).collect()
    }

    /// Enters a caller of a stored result. It waits for `patience`, or for its preferred wait if its caller then gets a
    /// response without the result. Without room it returns the reply.
    pub(super) fn look_up(
        &mut self,
        key: TaskKey,
        id: String,
        (reply, preferences): (R, Preferences),
        patience: Duration,
        now: Instant,
    ) -> Result<Ticket, (R, Full)> {
        let look_ups = self.waiters.len() - self.callers - self.unknown.len();
        match self.room_beside(look_ups, MOST_LOOK_UPS) {
            Ok(()) => {
                let wish = Wish::Stored(id);
                let until = now + preferences.wait.filter(|_| preferences.asynchronous).unwrap_or(patience);
                Ok(self.enter(Waiter { reply, key, wish, preferences, is_first: false, since: now, until }))
            }
            Err(full) => Err((reply, full)),
        }
    }

    /// Enters a caller that asks for an unknown task. Without room it returns the reply.
    pub(super) fn ask(
        &mut self,
        key: TaskKey,
        id: String,
        (reply, wait): (R, Option<Duration>),
        now: Instant,
    ) -> Result<Ticket, (R, Full)> {
        match self.room_beside(self.unknown.len(), MOST_UNKNOWN) {
            Ok(()) => {
                let preferences = Preferences { asynchronous: false, wait };
                let (wish, until) = (Wish::Existence(id), now + QUESTION_PATIENCE);
                let ticket = self.enter(Waiter { reply, key, wish, preferences, is_first: false, since: now, until });
                self.unknown.push((ticket.number, self.passes + PASSES));
                Ok(ticket)
            }
            Err(full) => Err((reply, full)),
        }
    }

    /// Notes that a result was not found: its caller waits until it is known whether the task exists.
    pub(super) fn not_found(&mut self, number: u64) {
        if let Some(waiter) = self.waiters.get_mut(&number)
            && let Wish::Stored(id) = &mut waiter.wish
        {
            waiter.wish = Wish::Existence(std::mem::take(id));
            self.unknown.push((number, self.passes + PASSES));
        }
    }

    /// The ticket ends with the preferred wait, even if the answer needs longer: a question may become a poll.
    fn enter(&mut self, waiter: Waiter<R>) -> Ticket {
        let number = self.next;
        let until = waiter.preferences.wait.map_or(waiter.until, |wait| waiter.until.min(waiter.since + wait));
        self.next += 1;
        self.waiters.insert(number, waiter);
        Ticket { number, until }
    }

    /// Notes that the task goes into a request now. Returns false if all its callers have left, so it is withdrawn.
    pub(super) fn sending(&mut self, key: TaskKey) -> bool {
        match self.tasks.get_mut(&key) {
            Some(task) => {
                if task.progress == Progress::Queued {
                    task.progress = Progress::Sent;
                }
                true
            }
            None => false,
        }
    }

    /// Notes that Kafka has the task. Returns the callers that wait only for that.
    pub(super) fn acknowledged(&mut self, key: TaskKey) -> Vec<Waiter<R>> {
        let Some(task) = self.tasks.get_mut(&key) else { return Vec::new() };
        task.progress = Progress::Acknowledged;
        let waiters = &self.waiters;
        let wants_no_more = |number: &mut u64| waiters.get(number).is_none_or(|it| it.wish == Wish::Acceptance);
        let content: Vec<u64> = task.callers.extract_if(.., wants_no_more).collect();
        if task.callers.is_empty() {
            self.tasks.remove(&key);
        }
        self.leave_together(content)
    }

    /// Takes out all callers of a task: its result has arrived, or none will.
    pub(super) fn complete(&mut self, key: TaskKey) -> Vec<Waiter<R>> {
        let callers = self.tasks.remove(&key).map(|task| task.callers).unwrap_or_default();
        self.leave_together(callers)
    }

    fn leave_together(&mut self, callers: Vec<u64>) -> Vec<Waiter<R>> {
        self.callers -= callers.len();
        callers.iter().filter_map(|number| self.waiters.remove(number)).collect()
    }

    /// Notes the number of passes over the tasks topic. Returns the questions for unknown tasks that this decides.
    pub(super) fn passed(&mut self, passes: u64) -> Vec<(u64, TaskKey)> {
        self.passes = passes;
        let ripe = self.unknown.extract_if(.., |(_, at)| *at <= passes);
        ripe.filter_map(|(number, _)| Some((number, self.waiters.get(&number)?.key))).collect()
    }

    /// Whether this reply still waits.
    pub(super) fn waits(&self, number: u64) -> bool {
        self.waiters.contains_key(&number)
    }

    /// Handles the end of a ticket's time. A caller whose preferred wait is over waits on for Kafka's acknowledgement,
    /// which decides its response, and a question for its answer.
    pub(super) fn late(&mut self, number: u64, now: Instant) -> Late<R> {
        let Some(waiter) = self.waiters.get_mut(&number) else { return Late::Gone };
        let progress = self.tasks.get(&waiter.key).map(|task| task.progress);
        if waiter.wish == Wish::Result && progress != Some(Progress::Acknowledged) {
            let last = waiter.since + self.patience;
            if waiter.until < last {
                (waiter.wish, waiter.until) = (Wish::Acceptance, last);
            }
        }
        if waiter.until > now {
            return Late::Waits(Ticket { number, until: waiter.until });
        }
        self.take(number).map_or(Late::Gone, Late::Leaves)
    }

    /// Takes a waiter out; `None`: it was taken out before, and another thread gives its reply.
    pub(super) fn take(&mut self, number: u64) -> Option<Leaving<R>> {
        let waiter = self.waiters.remove(&number)?;
        let mut progress = Progress::Acknowledged;
        match &waiter.wish {
            Wish::Stored(_) => {}
            Wish::Existence(_) => self.unknown.retain(|(own, _)| *own != number),
            Wish::Result | Wish::Acceptance | Wish::Poll(_) => {
                self.callers -= 1;
                if let Some(task) = self.tasks.get_mut(&waiter.key) {
                    progress = task.progress;
                    task.callers.retain(|own| *own != number);
                    if task.callers.is_empty() {
                        self.tasks.remove(&waiter.key);
                    }
                }
            }
        }
        Some(Leaving { waiter, progress })
    }

    /// Takes all waiters out and admits no more, because the gateway ends.
    pub(super) fn close(&mut self) -> Vec<Leaving<R>> {
        self.closed = true;
        let all: Vec<u64> = self.waiters.keys().copied().collect();
        all.into_iter().filter_map(|number| self.take(number)).collect()
    }

    /// The number of callers that wait for a task on its way.
    pub(super) fn callers(&self) -> usize {
        self.callers
    }

    /// Whether a caller waits for this task.
    pub(super) fn contains(&self, key: TaskKey) -> bool {
        self.tasks.contains_key(&key)
    }
}

#[cfg(test)]
mod tests;
