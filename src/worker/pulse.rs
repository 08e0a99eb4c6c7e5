//! The pulse: whether the worker hears of the brokers that lead the tasks.
//!
//! Intakes count what they are told; main looks at the count every second. So what main tells the supervisor is what the
//! working threads do, and no thread that has nothing else to do can lie about it.

use std::time::{Duration, Instant};

/// See the module documentation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pulse {
    count: u64,
    since: Instant,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self { count: 0, since: now }
    }

    /// Takes the count as it is now; whether it has moved within `limit`.
    pub(super) fn beats(&mut self, count: u64, limit: Duration, now: Instant) -> bool {
        if self.count != count {
            *self = Self { count, since: now };
        }
        now.saturating_duration_since(self.since) <= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_stands_still_for_too_long_is_no_pulse() {
        const LIMIT: Duration = Duration::from_secs(60);
        let born = Instant::now();
        let at = |seconds| born + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(born);
        assert!(pulse.beats(0, LIMIT, at(60)), "the first count has as long as any other");
        assert!(!pulse.beats(0, LIMIT, at(61)));
        assert!(pulse.beats(7, LIMIT, at(61)), "it moves again");
        assert!(pulse.beats(7, LIMIT, at(121)));
        assert!(!pulse.beats(7, LIMIT, at(122)));
    }
}
