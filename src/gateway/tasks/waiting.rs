//! The waiting replies: for a task's result, for Kafka's acknowledgement, for a stored result, or for the answer
//! whether a task exists.
//!
//! A reply is entered before any action that could answer it, so no result arrives before its entry. The thread that
//! takes an entry out gives the reply, so each is given exactly once by construction. The connection's thread keeps the
//! deadline. Pure: time is a parameter, nothing is sent from here.

use super::key::TaskKey;
use crate::gateway::reply::Ticket;
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
    /// That Kafka has the task (`Prefer: respond-async`).
    Acceptance,
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
    /// When it was entered.
    pub(super) since: Instant,
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

/// Why a reply may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// This many replies wait already.
    Table(usize),
    /// The gateway has ended.
    Closed,
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
        asynchronous: bool,
        progress: Progress,
        now: Instant,
    ) -> Ticket {
        let wish = if asynchronous { Wish::Acceptance } else { Wish::Result };
        let ticket = self.enter(Waiter { reply, key, wish, since: now }, self.patience);
        self.callers += 1;
        let task = self.tasks.entry(key).or_insert_with(|| Task { progress, callers: Vec::with_capacity(1) });
        task.callers.push(ticket.number);
        ticket
    }

    /// Enters a caller of a stored result. Without room it returns the reply.
    pub(super) fn look_up(
        &mut self,
        key: TaskKey,
        id: String,
        reply: R,
        patience: Duration,
        now: Instant,
    ) -> Result<Ticket, (R, Full)> {
        let look_ups = self.waiters.len() - self.callers - self.unknown.len();
        match self.room_beside(look_ups, MOST_LOOK_UPS) {
            Ok(()) => Ok(self.enter(Waiter { reply, key, wish: Wish::Stored(id), since: now }, patience)),
            Err(full) => Err((reply, full)),
        }
    }

    /// Enters a caller that asks for an unknown task. Without room it returns the reply.
    pub(super) fn ask(&mut self, key: TaskKey, id: String, reply: R, now: Instant) -> Result<Ticket, (R, Full)> {
        match self.room_beside(self.unknown.len(), MOST_UNKNOWN) {
            Ok(()) => {
                let ticket =
                    self.enter(Waiter { reply, key, wish: Wish::Existence(id), since: now }, QUESTION_PATIENCE);
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

    fn enter(&mut self, waiter: Waiter<R>, patience: Duration) -> Ticket {
        let (number, until) = (self.next, waiter.since + patience);
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

    /// Takes a waiter out; `None`: it was taken out before, and another thread gives its reply.
    pub(super) fn take(&mut self, number: u64) -> Option<Leaving<R>> {
        let waiter = self.waiters.remove(&number)?;
        let mut progress = Progress::Acknowledged;
        match &waiter.wish {
            Wish::Stored(_) => {}
            Wish::Existence(_) => self.unknown.retain(|(own, _)| *own != number),
            Wish::Result | Wish::Acceptance => {
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
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn key(number: u128) -> TaskKey {
        TaskKey::from_number(number)
    }

    fn table(most: usize) -> Waiting<u32> {
        Waiting::new(most, PATIENCE)
    }

    fn park(waiting: &mut Waiting<u32>, number: u128, reply: u32) -> Ticket {
        waiting.park(key(number), reply, false, Progress::Queued, Instant::now())
    }

    fn replies(waiters: Vec<Waiter<u32>>) -> Vec<u32> {
        waiters.into_iter().map(|waiter| waiter.reply).collect()
    }

    #[test]
    fn waiter_leaves_with_the_first_event_and_only_once() {
        let mut waiting = table(8);
        let ticket = park(&mut waiting, 1, 1);
        assert_eq!(replies(waiting.complete(key(1))), [1]);
        assert!(waiting.complete(key(1)).is_empty() && waiting.take(ticket.number).is_none());
        assert_eq!(waiting.callers(), 0);
    }

    #[test]
    fn progress_of_a_task_follows_its_way_to_kafka() {
        let mut waiting = table(8);
        let tickets = [1, 2, 3].map(|number| park(&mut waiting, number, number as u32));
        assert!(waiting.sending(key(2)) && waiting.sending(key(3)));
        assert!(waiting.acknowledged(key(3)).is_empty(), "it waits for the result");
        let progress = tickets.map(|ticket| waiting.take(ticket.number).expect("it waits").progress);
        assert_eq!(progress, [Progress::Queued, Progress::Sent, Progress::Acknowledged]);
        assert!(!waiting.sending(key(1)), "a task whose callers all left unsent is withdrawn");
    }

    #[test]
    fn caller_waits_for_its_patience_and_question_for_three_seconds() {
        let (mut waiting, now) = (table(8), Instant::now());
        assert_eq!(waiting.park(key(1), 1, false, Progress::Queued, now).until, now + PATIENCE);
        let asked = waiting.ask(key(2), "2".to_owned(), 2, now).expect("room");
        let looked_up = waiting.look_up(key(3), "3".to_owned(), 3, QUESTION_PATIENCE, now).expect("room");
        assert_eq!([asked.until, looked_up.until], [now + Duration::from_secs(3); 2]);
    }

    #[test]
    fn asynchronous_caller_leaves_with_the_acknowledgement() {
        let mut waiting = table(8);
        waiting.park(key(1), 1, true, Progress::Queued, Instant::now());
        park(&mut waiting, 1, 2);
        assert_eq!(replies(waiting.acknowledged(key(1))), [1]);
        assert_eq!(waiting.callers(), 1);
        assert_eq!(replies(waiting.complete(key(1))), [2]);
    }

    #[test]
    fn question_for_an_unknown_task_waits_for_three_passes() {
        let (mut waiting, now) = (table(8), Instant::now());
        let ask = |waiting: &mut Waiting<u32>, number: u32| {
            waiting.ask(key(number.into()), number.to_string(), number, now).expect("room")
        };
        ask(&mut waiting, 1);
        assert!(waiting.passed(1).is_empty());
        let left = ask(&mut waiting, 2);
        let last = ask(&mut waiting, 3);
        assert!(waiting.passed(2).is_empty() && waiting.passed(2).is_empty(), "no leader answers");
        assert_eq!(waiting.passed(3), [(0, key(1))]);
        assert!(waiting.take(left.number).is_some());
        assert_eq!(waiting.passed(4), [(last.number, key(3))]);
        assert!(waiting.passed(9).is_empty() && waiting.unknown.is_empty());
        assert!(waiting.waits(last.number), "the caller of `passed` answers it");
    }

    #[test]
    fn result_that_is_not_found_becomes_a_question_for_an_unknown_task() {
        let (mut waiting, now) = (table(8), Instant::now());
        let ticket = waiting.look_up(key(1), "1".to_owned(), 1, PATIENCE, now).expect("room");
        waiting.not_found(ticket.number);
        waiting.not_found(ticket.number);
        assert!(waiting.passed(2).is_empty());
        assert_eq!(waiting.passed(3), [(ticket.number, key(1))]);
        let leaving = waiting.take(ticket.number).expect("it waits");
        assert_eq!(leaving.waiter.wish, Wish::Existence("1".to_owned()));
        waiting.not_found(ticket.number);
        assert!(waiting.unknown.is_empty(), "it has left");
    }

    #[test]
    fn each_kind_has_its_own_room_and_a_closed_table_has_none() {
        let (mut waiting, now) = (table(2), Instant::now());
        for number in 0..2 {
            assert_eq!(waiting.room(), Ok(()));
            park(&mut waiting, number, 0);
        }
        assert_eq!(waiting.room(), Err(Full::Table(2)));
        for number in 0..MOST_LOOK_UPS {
            waiting.look_up(key(number as u128), String::new(), 0, PATIENCE, now).expect("room");
        }
        for number in 0..MOST_UNKNOWN {
            waiting.ask(key(number as u128), String::new(), 0, now).expect("room");
        }
        let full = waiting.look_up(key(0), String::new(), 7, PATIENCE, now).expect_err("no room");
        assert_eq!(full, (7, Full::Table(MOST_LOOK_UPS)));
        let full = waiting.ask(key(0), String::new(), 7, now).expect_err("no room");
        assert_eq!(full, (7, Full::Table(MOST_UNKNOWN)));
        assert_eq!(waiting.complete(key(0)).len(), 1, "the callers of a task, not those of its stored result");
        assert_eq!(waiting.room(), Ok(()));
        assert_eq!(waiting.close().len(), 1 + MOST_LOOK_UPS + MOST_UNKNOWN);
        assert_eq!(waiting.room(), Err(Full::Closed));
        assert_eq!(waiting.ask(key(0), String::new(), 7, now).expect_err("closed"), (7, Full::Closed));
    }

    proptest::proptest! {
        #[test]
        fn waiters_leave_exactly_once(steps in proptest::collection::vec((0u8..9, 0u128..5), 1..200)) {
            let now = Instant::now();
            let mut waiting = table(usize::MAX);
            let (mut entered, mut left, mut tickets) = (0u32, Vec::new(), Vec::new());
            for (step, number) in steps {
                let before = entered;
                match step {
                    0 | 1 => {
                        tickets.push(waiting.park(key(number), entered, step == 1, Progress::Queued, now));
                        entered += 1;
                    }
                    2 => {
                        tickets.push(waiting.look_up(key(number), number.to_string(), entered, PATIENCE, now).expect("room"));
                        entered += 1;
                    }
                    3 => {
                        tickets.push(waiting.ask(key(number), number.to_string(), entered, now).expect("room"));
                        entered += 1;
                    }
                    4 => { waiting.sending(key(number)); }
                    5 => left.extend(replies(waiting.acknowledged(key(number)))),
                    6 => left.extend(replies(waiting.complete(key(number)))),
                    7 => { waiting.passed(waiting.passes + 1); }
                    _ => {
                        let ticket = tickets.get(number as usize * 7);
                        left.extend(ticket.and_then(|ticket| waiting.take(ticket.number)).map(|it| it.waiter.reply));
                    }
                }
                proptest::prop_assert!(tickets.len() == entered as usize && entered - before <= 1);
                proptest::prop_assert_eq!(waiting.waiters.len() + left.len(), entered as usize);
            }
            left.extend(waiting.close().into_iter().map(|it| it.waiter.reply));
            left.sort_unstable();
            proptest::prop_assert_eq!(left, (0..entered).collect::<Vec<_>>());
            proptest::prop_assert!(waiting.tasks.is_empty() && waiting.unknown.is_empty() && waiting.callers == 0);
        }
    }
}
