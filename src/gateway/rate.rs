//! How long a new task would wait, judged by what the fleet finishes. Pure; for refusing work whose answer would come
//! too late.
//!
//! Only a crowd says something about the fleet: while few tasks are pending, it finishes as many as there are. So the
//! rate is measured while tasks queue, and a crowd is judged once it has lasted a moment.

use std::time::{Duration, Instant};

/// So many pending tasks are no crowd: refusing any of them would help nobody.
const FEW: usize = 256;
/// A crowd is judged once it has lasted so long; a burst is often worked off within it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Length of one bucket.
const BUCKET: Duration = Duration::from_millis(500);
/// Buckets looked back at.
const BUCKETS: usize = 10;

/// A sliding count of finished tasks, and since when there has been a crowd.
#[derive(Debug)]
pub(super) struct Rate {
    start: Instant,
    counts: [u64; BUCKETS],
    newest: u64,
    crowd_since: Option<Instant>,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { start: now, counts: [0; BUCKETS], newest: 0, crowd_since: None }
    }

    /// So many tasks were finished just now, and so many are pending.
    pub(super) fn finished(&mut self, count: u64, pending: usize, now: Instant) {
        self.advance(now);
        self.counts[index(self.newest)] += count;
        self.look(pending, now);
    }

    /// How long a task that is added to so many would wait; `None` when that cannot be told, or is no matter.
    pub(super) fn wait(&mut self, pending: usize, now: Instant) -> Option<Duration> {
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
        // Nothing finished: for ever, as far as anybody can tell.
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
    fn a_crowd_waits_its_number_by_the_rate() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        for step in 0..80 {
            // 100 a second, 2,000 pending all the time.
            rate.finished(10, 2_000, at(start, step * 100));
        }
        let wait = rate.wait(2_000, at(start, 7_950)).expect("a crowd that lasts");
        assert!((15.0..25.0).contains(&wait.as_secs_f64()), "{wait:?}");
    }

    #[test]
    fn few_tasks_and_short_crowds_are_not_judged() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        assert_eq!(rate.wait(FEW, at(start, 60_000)), None);
        assert_eq!(rate.wait(FEW + 1, at(start, 60_000)), None, "it has just begun");
        assert_eq!(rate.wait(FEW + 1, at(start, 60_900)), None);
        rate.finished(100, 10, at(start, 60_950));
        assert_eq!(rate.wait(FEW + 1, at(start, 61_100)), None, "that one is over, another has begun");
    }

    #[test]
    fn a_crowd_that_nobody_works_on_waits_for_ever() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        assert_eq!(rate.wait(1_000, start), None);
        assert_eq!(rate.wait(1_000, at(start, 1_500)), Some(Duration::MAX));
    }

    #[test]
    fn a_slow_time_before_the_crowd_does_not_count() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        // A minute of one task a second, because no more were sent; then a crowd that is worked off at 1,000 a second.
        for second in 0..60 {
            rate.finished(1, 1, at(start, second * 1_000));
        }
        for step in 0..15 {
            rate.finished(100, 5_000, at(start, 60_000 + step * 100));
        }
        let wait = rate.wait(5_000, at(start, 61_450)).expect("a crowd that lasts");
        assert!(wait < Duration::from_secs(10), "{wait:?}");
    }
}
