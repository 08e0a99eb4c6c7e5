//! Whether a new task is accepted, by three limits: the pending tasks, the expected wait by the fleet's rate, and the
//! bytes that Kafka has not acknowledged. Pure; called by [`tasks`](super::tasks).
//!
//! The rate is measured only during a crowd: with few pending tasks the fleet finishes as many as arrive, which does
//! not show its speed. A crowd is judged only after it has lasted for [`PATIENCE`].

use super::metrics::Reason;
use std::time::{Duration, Instant};

/// With this many pending tasks or fewer, no task is refused for its expected wait.
const FEW: usize = 256;
/// How long a crowd must last before it is judged; the fleet often works off a burst within this time.
const PATIENCE: Duration = Duration::from_secs(1);
/// Duration of one bucket.
const BUCKET: Duration = Duration::from_millis(500);
/// The number of buckets in the sliding window.
const BUCKETS: usize = 10;

/// The longest Retry-After for a long queue.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);
/// At most this many bytes wait for Kafka; they accumulate while it is unavailable.
const MOST_UNACKNOWLEDGED: usize = 32 * 1024 * 1024;

/// Why a task is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) reason: Reason,
    pub(super) detail: String,
    /// When to retry, if more than "soon" is known.
    pub(super) retry_after: Option<Duration>,
}

impl Refused {
    /// `detail`: a sentence without its final period.
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), retry_after: None }
    }
}

/// The load at the arrival of a task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crowd {
    /// Tasks without a result.
    pub(super) pending: usize,
    /// Bytes of tasks that Kafka has not acknowledged.
    pub(super) unacknowledged: usize,
}

#[derive(Debug)]
pub(super) struct Overload {
    rate: Rate,
    most_pending: usize,
    patience: Duration,
}

impl Overload {
    /// At most `most_pending` pending tasks, and a wait of at most `patience` (`MAX_PENDING`, `ANSWER_TIMEOUT`).
    pub(super) fn new(most_pending: usize, patience: Duration, now: Instant) -> Self {
        Self { rate: Rate::new(now), most_pending, patience }
    }

    /// Notes that `count` tasks were finished just now; `pending` tasks are left.
    pub(super) fn finished(&mut self, count: u64, pending: usize, now: Instant) {
        self.rate.finished(count, pending, now);
    }

    /// Decides whether a task is accepted. `is_new`: it adds a pending task. `waits`: its caller waits for the result.
    ///
    /// # Errors
    /// The limit that is exceeded.
    pub(super) fn admit(&mut self, crowd: Crowd, is_new: bool, waits: bool, now: Instant) -> Result<(), Refused> {
        let Crowd { pending, unacknowledged } = crowd;
        if is_new && pending >= self.most_pending {
            let most = self.most_pending;
            let detail = format!("{pending} tasks are pending already (MAX_PENDING={most})");
            return Err(Refused::new(Reason::MaxPending, detail));
        }
        // Called in any case, so that the start of a crowd is noticed.
        let wait = self.rate.wait(pending, now).filter(|wait| waits && *wait > self.patience);
        if let Some(wait) = wait {
            let detail =
                format!("{pending} tasks are pending, and the workers are not likely to finish one more in time");
            return Err(Refused {
                reason: Reason::ExpectedWait,
                detail,
                retry_after: Some(wait.min(LONGEST_RETRY_AFTER)),
            });
        }
        if unacknowledged >= MOST_UNACKNOWLEDGED {
            let detail = "Kafka does not take tasks as fast as they arrive; the task was not accepted";
            return Err(Refused::new(Reason::KafkaSlow, detail));
        }
        Ok(())
    }
}

/// A sliding count of finished tasks, and the start of the present crowd.
#[derive(Debug)]
struct Rate {
    start: Instant,
    counts: [u64; BUCKETS],
    newest: u64,
    crowd_since: Option<Instant>,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self { start: now, counts: [0; BUCKETS], newest: 0, crowd_since: None }
    }

    fn finished(&mut self, count: u64, pending: usize, now: Instant) {
        self.advance(now);
        self.counts[index(self.newest)] += count;
        self.look(pending, now);
    }

    /// How long a task would wait after `pending` others; `None` while there is no crowd, or a recent one.
    fn wait(&mut self, pending: usize, now: Instant) -> Option<Duration> {
        let since = self.look(pending, now)?;
        let lasted = now.saturating_duration_since(since);
        if lasted < PATIENCE {
            return None;
        }
        self.advance(now);
        let window = lasted.min(BUCKET * u32::try_from(BUCKETS).unwrap_or(u32::MAX));
        let buckets = (window.as_millis() / BUCKET.as_millis()).clamp(1, BUCKETS as u128) as u64;
        let finished: u64 = (0..buckets).map(|back| self.counts[index(self.newest.wrapping_sub(back))]).sum();
        let per_second = finished as f64 / window.as_secs_f64();
        // Nothing finished: the wait has no known end.
        Some(Duration::try_from_secs_f64(pending as f64 / per_second).unwrap_or(Duration::MAX))
    }

    fn look(&mut self, pending: usize, now: Instant) -> Option<Instant> {
        self.crowd_since = (pending > FEW).then(|| self.crowd_since.unwrap_or(now));
        self.crowd_since
    }

    fn advance(&mut self, now: Instant) {
        let bucket = u64::try_from(now.duration_since(self.start).as_millis() / BUCKET.as_millis()).unwrap_or(u64::MAX);
        let steps = bucket.saturating_sub(self.newest).min(BUCKETS as u64);
        for step in 0..steps {
            self.counts[index(bucket - step)] = 0;
        }
        self.newest = self.newest.max(bucket);
    }
}

fn index(bucket: u64) -> usize {
    // Below BUCKETS.
    (bucket % BUCKETS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    #[test]
    fn wait_of_a_crowd_is_its_size_divided_by_the_rate() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        for step in 0..80 {
            // 100 per second, with 2,000 pending all the time.
            rate.finished(10, 2_000, at(start, step * 100));
        }
        let wait = rate.wait(2_000, at(start, 7_950)).expect("a crowd that lasts");
        assert!((15.0..25.0).contains(&wait.as_secs_f64()), "{wait:?}");
    }

    #[test]
    fn few_tasks_and_recent_crowds_are_not_judged() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        assert_eq!(rate.wait(FEW, at(start, 60_000)), None);
        assert_eq!(rate.wait(FEW + 1, at(start, 60_000)), None, "the crowd has just begun");
        assert_eq!(rate.wait(FEW + 1, at(start, 60_900)), None);
        rate.finished(100, 10, at(start, 60_950));
        assert_eq!(rate.wait(FEW + 1, at(start, 61_100)), None, "that crowd is over, another has begun");
    }

    #[test]
    fn wait_of_a_crowd_without_finished_tasks_is_endless() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        assert_eq!(rate.wait(1_000, start), None);
        assert_eq!(rate.wait(1_000, at(start, 1_500)), Some(Duration::MAX));
    }

    #[test]
    fn slow_time_before_the_crowd_does_not_count() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        // A minute with one task per second, because no more were sent; then a crowd that finishes at 1,000 per second.
        for second in 0..60 {
            rate.finished(1, 1, at(start, second * 1_000));
        }
        for step in 0..15 {
            rate.finished(100, 5_000, at(start, 60_000 + step * 100));
        }
        let wait = rate.wait(5_000, at(start, 61_450)).expect("a crowd that lasts");
        assert!(wait < Duration::from_secs(10), "{wait:?}");
    }

    #[test]
    fn refused_task_names_the_exceeded_limit() {
        let start = Instant::now();
        let mut overload = Overload::new(5_000, Duration::from_secs(10), start);
        let few = Crowd { pending: 4_999, unacknowledged: MOST_UNACKNOWLEDGED - 1 };
        assert_eq!(overload.admit(few, true, true, start), Ok(()), "the crowd has just begun");
        let detail = |result: Result<(), Refused>| result.expect_err("too much").detail;
        let full = Crowd { pending: 5_000, ..few };
        assert!(detail(overload.admit(full, true, true, start)).contains("MAX_PENDING=5000"));
        assert_eq!(overload.admit(full, false, true, start), Ok(()), "another request for a known task");
        let slow = Crowd { unacknowledged: MOST_UNACKNOWLEDGED, ..few };
        assert!(detail(overload.admit(slow, true, true, start)).contains("Kafka does not take"));
        let later = at(start, 1_500);
        let refused = overload.admit(few, true, true, later).expect_err("nothing is finished");
        assert_eq!(refused.retry_after, Some(LONGEST_RETRY_AFTER));
        assert_eq!(overload.admit(few, true, false, later), Ok(()), "its caller does not wait for the result");
    }
}
