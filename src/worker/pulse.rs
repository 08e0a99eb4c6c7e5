//! The pulse: whether the loop that takes tasks moves.
//!
//! The intake counts its rounds, and its looks at the clock while it waits for an answer; main looks at the count every second. So what main tells
//! the supervisor is what the working loop does, and no thread that has nothing else to do can lie about it.

use std::time::{Duration, Instant};

/// The longest that the intake may take from one count to the next: some brokers that do not answer, one after the other.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

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

    /// Takes the count as it is now; whether it still moves.
    pub(super) fn beats(&mut self, count: u64, now: Instant) -> bool {
        if self.count != count {
            *self = Self { count, since: now };
        }
        now.saturating_duration_since(self.since) <= LONGEST_PAUSE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_stands_still_for_too_long_is_no_pulse() {
        let born = Instant::now();
        let at = |seconds| born + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(born);
        assert!(pulse.beats(0, at(60)), "the first count has as long as any other");
        assert!(!pulse.beats(0, at(61)));
        assert!(pulse.beats(7, at(61)), "it moves again");
        assert!(pulse.beats(7, at(121)));
        assert!(!pulse.beats(7, at(122)));
    }
}
