//! The pulse: whether the brokers that lead the tasks still answer.
//!
//! Intakes count the answers; main compares the count every second and tells the supervisor. So the supervisor learns
//! what the working threads do.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub(super) struct Pulse {
    count: u64,
    since: Instant,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self { count: 0, since: now }
    }

    /// Takes the present count. Returns whether it has changed within `limit`.
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
    fn pulse_ends_when_the_count_stands_still_for_longer_than_the_limit() {
        const LIMIT: Duration = Duration::from_secs(60);
        let born = Instant::now();
        let at = |seconds| born + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(born);
        assert!(pulse.beats(0, LIMIT, at(60)), "the first count has the whole limit");
        assert!(!pulse.beats(0, LIMIT, at(61)));
        assert!(pulse.beats(7, LIMIT, at(61)), "the count changed");
        assert!(pulse.beats(7, LIMIT, at(121)));
        assert!(!pulse.beats(7, LIMIT, at(122)));
    }
}
