//! How many tasks the fleet finishes a second, over the last seconds. Pure; for refusing work that would wait too long.

use std::time::{Duration, Instant};

/// Length of one bucket.
const BUCKET: Duration = Duration::from_millis(500);
/// Buckets looked back at.
const BUCKETS: usize = 10;

/// A sliding count.
#[derive(Debug)]
pub(super) struct Rate {
    start: Instant,
    counts: [u64; BUCKETS],
    newest: u64,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { start: now, counts: [0; BUCKETS], newest: 0 }
    }

    /// So many tasks were finished just now.
    pub(super) fn add(&mut self, now: Instant, count: u64) {
        self.advance(now);
        self.counts[(self.newest % BUCKETS as u64) as usize] += count;
    }

    /// Tasks finished per second.
    pub(super) fn per_second(&mut self, now: Instant) -> f64 {
        self.advance(now);
        let seconds = now.duration_since(self.start).as_secs_f64().min(BUCKET.as_secs_f64() * BUCKETS as f64);
        if seconds < BUCKET.as_secs_f64() { 0.0 } else { self.counts.iter().sum::<u64>() as f64 / seconds }
    }

    fn advance(&mut self, now: Instant) {
        let bucket = (now.duration_since(self.start).as_millis() / BUCKET.as_millis()) as u64;
        let steps = bucket.saturating_sub(self.newest).min(BUCKETS as u64);
        for step in 0..steps {
            self.counts[((bucket - step) % BUCKETS as u64) as usize] = 0;
        }
        self.newest = self.newest.max(bucket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_last_five_seconds() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut rate = Rate::new(start);
        assert_eq!(rate.per_second(at(100)), 0.0, "nothing can be said yet");
        for second in 0..10 {
            rate.add(at(second * 1000 + 10), 100);
        }
        let steady = rate.per_second(at(9_400));
        assert!((80.0..=120.0).contains(&steady), "{steady}");
        assert_eq!(rate.per_second(at(60_000)), 0.0, "long ago does not count");
    }
}
