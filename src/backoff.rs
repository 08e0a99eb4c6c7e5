//! How long to wait before trying again: exponential, with jitter so that a fleet does not try in step.

use std::time::Duration;

/// A growing pause. Pure but for the jitter's random numbers.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses from `first`, doubling, up to `longest`.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The pause before the next try: between half of and the whole present step.
    pub fn pause(&mut self) -> Duration {
        let step = self.next.min(self.longest);
        self.next = step.saturating_mul(2).min(self.longest);
        step.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// It worked: the next pause is the first one again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_within_their_jitter_up_to_the_longest() {
        let milliseconds = Duration::from_millis;
        let mut backoff = Backoff::new(milliseconds(20), milliseconds(100));
        for step in [20, 40, 80, 100, 100] {
            let pause = backoff.pause();
            assert!(pause >= milliseconds(step) / 2 && pause <= milliseconds(step), "{pause:?} for {step} ms");
        }
        backoff.reset();
        assert!(backoff.pause() <= milliseconds(20));
    }
}
