//! The callers that wait, under the ids of their tasks.
//!
//! A caller is entered before its task is produced, so that no result is faster than its entry. Who removes an entry owns the
//! answer, so each caller is answered exactly once by construction. Pure: time is a parameter, nothing is sent from here.

use super::index::TaskKey;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How far the caller's task has got on its way to Kafka; decides what may be said when time runs out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not handed to a request yet: it can still be withdrawn, and then it was never accepted.
    Queued,
    /// Sent; whether Kafka has it is not known yet.
    Sent,
    /// Kafka has it: it is not lost.
    Acknowledged,
}

/// A caller that waits for the result of type-erased request `R`.
#[derive(Debug)]
pub(super) struct Caller<R> {
    /// What is needed to answer.
    pub(super) request: R,
    /// Answered as soon as Kafka has the task (`Prefer: respond-async`).
    pub(super) asynchronous: bool,
    /// When it came.
    pub(super) since: Instant,
}

/// A caller whose time is over, or who is answered early.
#[derive(Debug)]
pub(super) struct Leaving<R> {
    pub(super) key: TaskKey,
    pub(super) caller: Caller<R>,
    pub(super) progress: Progress,
}

#[derive(Debug)]
struct Entry<R> {
    progress: Progress,
    /// Several callers wait for one task when they name the same idempotency key.
    callers: Vec<(u64, Caller<R>)>,
}

/// Why a caller may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// `MAX_WAITING` callers wait.
    Table,
    /// The gateway has ended.
    Closed,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Waiting<R> {
    entries: HashMap<TaskKey, Entry<R>>,
    deadlines: VecDeque<(Instant, TaskKey, u64)>,
    patience: Duration,
    most: usize,
    count: usize,
    next: u64,
    closed: bool,
}

impl<R> Waiting<R> {
    /// At most `most` callers, each for `patience` (`MAX_WAITING`, `ANSWER_TIMEOUT`).
    pub(super) fn new(most: usize, patience: Duration) -> Self {
        Self { entries: HashMap::new(), deadlines: VecDeque::new(), patience, most, count: 0, next: 0, closed: false }
    }

    /// Whether one more caller may wait.
    pub(super) fn room(&self) -> Result<(), Full> {
        if self.closed {
            Err(Full::Closed)
        } else if self.count >= self.most {
            Err(Full::Table)
        } else {
            Ok(())
        }
    }

    /// Enters a caller. `progress` counts for a task that nobody waits for yet; otherwise the task's own stands.
    pub(super) fn park(&mut self, key: TaskKey, caller: Caller<R>, progress: Progress, now: Instant) {
        let number = self.next;
        self.next += 1;
        self.count += 1;
        self.deadlines.push_back((now + self.patience, key, number));
        let entry = self.entries.entry(key).or_insert_with(|| Entry { progress, callers: Vec::with_capacity(1) });
        entry.callers.push((number, caller));
    }

    /// The task goes into a request now. False: everybody who wanted it has left, so it is withdrawn.
    pub(super) fn sending(&mut self, key: TaskKey) -> bool {
        match self.entries.get_mut(&key) {
            Some(entry) => {
                entry.progress = entry.progress.max_with(Progress::Sent);
                true
            }
            None => false,
        }
    }

    /// Kafka has the task. Returns the callers who only wanted to know that.
    pub(super) fn acknowledged(&mut self, key: TaskKey) -> Vec<Caller<R>> {
        let Some(entry) = self.entries.get_mut(&key) else { return Vec::new() };
        entry.progress = Progress::Acknowledged;
        let (content, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut entry.callers).into_iter().partition(|(_, caller)| caller.asynchronous);
        entry.callers = waiting;
        if entry.callers.is_empty() {
            self.entries.remove(&key);
        }
        self.gone(content)
    }

    /// The task's result is there, or nothing more will come: everybody who waits for it leaves.
    pub(super) fn complete(&mut self, key: TaskKey) -> Vec<Caller<R>> {
        let callers = self.entries.remove(&key).map(|entry| entry.callers).unwrap_or_default();
        self.gone(callers)
    }

    /// Callers whose time is over.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Leaving<R>> {
        let mut leaving = Vec::new();
        while let Some(&(deadline, key, number)) = self.deadlines.front() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_front();
            leaving.extend(self.remove_one(key, number));
        }
        leaving
    }

    /// Everybody leaves, and nobody comes in any more: the gateway ends.
    pub(super) fn close(&mut self) -> Vec<Leaving<R>> {
        self.closed = true;
        let all: Vec<_> = self.deadlines.drain(..).collect();
        all.into_iter().filter_map(|(_, key, number)| self.remove_one(key, number)).collect()
    }

    fn remove_one(&mut self, key: TaskKey, number: u64) -> Option<Leaving<R>> {
        let entry = self.entries.get_mut(&key)?;
        let place = entry.callers.iter().position(|(own, _)| *own == number)?;
        let (_, caller) = entry.callers.swap_remove(place);
        let progress = entry.progress;
        if entry.callers.is_empty() {
            self.entries.remove(&key);
        }
        self.count -= 1;
        Some(Leaving { key, caller, progress })
    }

    fn gone(&mut self, callers: Vec<(u64, Caller<R>)>) -> Vec<Caller<R>> {
        self.count -= callers.len();
        // Their deadlines stay and find nothing; most leave long before, so the queue is kept from growing.
        if self.deadlines.len() > 64 + 4 * self.count {
            let entries = &self.entries;
            self.deadlines.retain(|(_, key, number)| {
                entries.get(key).is_some_and(|entry| entry.callers.iter().any(|(own, _)| own == number))
            });
        }
        callers.into_iter().map(|(_, caller)| caller).collect()
    }

    /// When the next caller's time is over.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _, _)| *deadline)
    }

    /// Callers that wait.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Whether anybody waits for this task.
    pub(super) fn contains(&self, key: TaskKey) -> bool {
        self.entries.contains_key(&key)
    }
}

impl Progress {
    fn max_with(self, other: Progress) -> Progress {
        if self == Progress::Queued { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn caller(request: u32) -> Caller<u32> {
        Caller { request, asynchronous: false, since: Instant::now() }
    }

    fn key(number: u128) -> TaskKey {
        TaskKey::from_number(number)
    }

    fn requests(callers: Vec<Caller<u32>>) -> Vec<u32> {
        callers.into_iter().map(|caller| caller.request).collect()
    }

    #[test]
    fn a_caller_is_answered_by_whoever_comes_first_and_only_once() {
        let now = Instant::now();
        let mut waiting = Waiting::new(8, PATIENCE);
        waiting.park(key(1), caller(1), Progress::Queued, now);
        assert_eq!(requests(waiting.complete(key(1))), [1]);
        assert!(waiting.complete(key(1)).is_empty());
        assert!(waiting.expire(now + PATIENCE).is_empty());
        assert_eq!(waiting.len(), 0);
    }

    #[test]
    fn what_may_be_said_at_the_deadline_follows_the_progress() {
        let now = Instant::now();
        let mut waiting = Waiting::new(8, PATIENCE);
        for number in 1..=3 {
            waiting.park(key(number), caller(number as u32), Progress::Queued, now);
        }
        assert!(waiting.sending(key(2)) && waiting.sending(key(3)));
        assert!(waiting.acknowledged(key(3)).is_empty(), "it waits for the result");
        assert!(waiting.expire(now + PATIENCE - Duration::from_millis(1)).is_empty());
        let left: Vec<_> = waiting.expire(now + PATIENCE).iter().map(|it| (it.caller.request, it.progress)).collect();
        assert_eq!(left, [(1, Progress::Queued), (2, Progress::Sent), (3, Progress::Acknowledged)]);
        assert!(!waiting.sending(key(1)), "a task whose callers all left unsent is withdrawn");
    }

    #[test]
    fn an_asynchronous_caller_leaves_with_the_acknowledgement() {
        let now = Instant::now();
        let mut waiting = Waiting::new(8, PATIENCE);
        waiting.park(key(1), Caller { asynchronous: true, ..caller(1) }, Progress::Queued, now);
        waiting.park(key(1), caller(2), Progress::Queued, now);
        assert_eq!(requests(waiting.acknowledged(key(1))), [1]);
        assert_eq!(waiting.len(), 1);
        assert_eq!(requests(waiting.complete(key(1))), [2]);
    }

    #[test]
    fn the_table_has_room_for_so_many_callers_and_for_none_once_it_is_closed() {
        let now = Instant::now();
        let mut waiting = Waiting::new(2, PATIENCE);
        for number in 0..2 {
            assert_eq!(waiting.room(), Ok(()));
            waiting.park(key(number), caller(0), Progress::Queued, now);
        }
        assert_eq!(waiting.room(), Err(Full::Table));
        assert_eq!(waiting.complete(key(0)).len(), 1);
        assert_eq!(waiting.room(), Ok(()));
        assert_eq!(waiting.close().len(), 1);
        assert_eq!(waiting.room(), Err(Full::Closed));
    }

    #[test]
    fn the_deadlines_of_answered_callers_do_not_pile_up() {
        let now = Instant::now();
        let mut waiting = Waiting::new(8, PATIENCE);
        for number in 0..10_000 {
            waiting.park(key(number), caller(0), Progress::Queued, now);
            waiting.complete(key(number));
        }
        assert!(waiting.deadlines.len() <= 65, "{}", waiting.deadlines.len());
    }

    proptest::proptest! {
        #[test]
        fn everybody_who_parks_leaves_exactly_once(steps in proptest::collection::vec((0u8..6, 0u128..5), 1..200)) {
            let start = Instant::now();
            let mut now = start;
            let mut waiting = Waiting::new(usize::MAX, PATIENCE);
            let (mut parked, mut left) = (0u32, Vec::new());
            for (step, number) in steps {
                match step {
                    0 | 1 => {
                        let asynchronous = step == 1;
                        waiting.park(key(number), Caller { asynchronous, ..caller(parked) }, Progress::Queued, now);
                        parked += 1;
                    }
                    2 => { waiting.sending(key(number)); }
                    3 => left.extend(requests(waiting.acknowledged(key(number)))),
                    4 => left.extend(requests(waiting.complete(key(number)))),
                    _ => {
                        now += PATIENCE / 3;
                        left.extend(waiting.expire(now).into_iter().map(|it| it.caller.request));
                    }
                }
                proptest::prop_assert_eq!(waiting.len() + left.len(), parked as usize);
            }
            left.extend(waiting.close().into_iter().map(|it| it.caller.request));
            left.sort_unstable();
            proptest::prop_assert_eq!(left, (0..parked).collect::<Vec<_>>());
            proptest::prop_assert!(waiting.entries.is_empty());
        }
    }
}
