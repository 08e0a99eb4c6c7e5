//! Pauses before the next attempt: exponential, with jitter.
//!
//! Computes pauses only; callers sleep with [`Stop::sleep`](crate::stop::Stop::sleep) or the Kafka client's
//! `Interrupter::sleep`, which a stop can wake.

use std::time::Duration;

/// A series of pauses that double from the first to the longest.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    current: Duration,
}

impl Backoff {
    /// Starts at `first` and doubles until `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        let first = first.min(max);
        Self { first, max, current: first }
    }

    /// Returns the next pause: 50 to 100 % of the current step. The spread keeps workers that lost the same broker
    /// together from returning together.
    pub fn pause(&mut self) -> Duration {
        let step = self.current;
        self.current = step.saturating_mul(2).min(self.max);
        step.div_f64(2.0) + step.div_f64(2.0).mul_f64(fastrand::f64())
    }

    /// Resets after a success: the next pause is the first again.
    pub fn reset(&mut self) {
        self.current = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(10);
    const MAX: Duration = Duration::from_millis(100);

    #[test]
    fn steps_double_until_the_largest() {
        let mut backoff = Backoff::new(FIRST, MAX);
        for step in [10, 20, 40, 80, 100, 100, 100] {
            let (pause, step) = (backoff.pause(), Duration::from_millis(step));
            assert!(pause >= step / 2 && pause <= step, "{pause:?} for the step {step:?}");
        }
    }

    #[test]
    fn reset_returns_to_the_first_step() {
        let mut backoff = Backoff::new(FIRST, MAX);
        (0..5).for_each(|_| assert!(backoff.pause() <= MAX));
        backoff.reset();
        assert!(backoff.pause() <= FIRST);
    }

    #[test]
    fn pauses_differ() {
        let pauses: std::collections::HashSet<_> = (0..20).map(|_| Backoff::new(FIRST, MAX).pause()).collect();
        assert!(pauses.len() > 1);
    }

    #[test]
    fn extremes_neither_panic_nor_exceed_the_largest() {
        let mut longest = Backoff::new(Duration::from_secs(u64::MAX / 4), Duration::from_secs(u64::MAX / 2));
        (0..4).for_each(|_| assert!(longest.pause() <= Duration::from_secs(u64::MAX / 2)));
        assert_eq!(Backoff::new(Duration::ZERO, Duration::ZERO).pause(), Duration::ZERO);
        assert!(Backoff::new(MAX, FIRST).pause() <= FIRST);
    }
}
