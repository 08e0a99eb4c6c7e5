//! Failures of one thing (a leader, a partition, a topic, the cluster): how long it rests, since when it fails, and
//! whether that was logged.
//!
//! Pure: time is a parameter. Each thing has its own, so a failing one slows down no other.

use std::time::{Duration, Instant};

use crate::error::{KafkaError, Retry};
use program::backoff::Backoff;

const FIRST_REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_millis(500);
/// Temporary errors are normal for this long (a new topic, a leader that moves); later they are logged.
const PATIENCE: Duration = Duration::from_secs(1);

/// Back-off and outage of one thing.
#[derive(Debug)]
pub(super) struct Trouble {
    backoff: Backoff,
    since: Option<Instant>,
    rests_until: Option<Instant>,
    lasts: bool,
}

impl Trouble {
    pub(super) fn new() -> Self {
        let backoff = Backoff::new(FIRST_REST, LONGEST_REST);
        Self { backoff, since: None, rests_until: None, lasts: false }
    }

    /// Notes a failure and starts a rest. Returns true if the failure is to be logged: once per outage, when it lasts.
    pub(super) fn failed(&mut self, error: &KafkaError, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        self.rests_until = Some(now + self.backoff.pause());
        let lasts = error.retry() == Retry::Reconnect || now.saturating_duration_since(since) > PATIENCE;
        lasts && !std::mem::replace(&mut self.lasts, true)
    }

    /// Notes a success. Returns the length of the outage, if that was logged.
    pub(super) fn over(&mut self, now: Instant) -> Option<Duration> {
        let since = self.since.take()?;
        self.backoff.reset();
        self.rests_until = None;
        std::mem::take(&mut self.lasts).then(|| now.saturating_duration_since(since))
    }

    /// Whether the rest is not over.
    pub(super) fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    /// End of the rest; `None` while nothing is wrong.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.rests_until
    }

    /// Whether it has been failing for longer than is normal.
    pub(super) fn lasts(&self) -> bool {
        self.lasts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BrokerAddress;

    #[test]
    fn broken_connection_is_logged_at_once_and_a_moving_leader_only_if_it_lasts() {
        let start = Instant::now();
        let moved = KafkaError::broker("Produce", crate::ErrorCode::NOT_LEADER_OR_FOLLOWER, None);
        let closed = KafkaError::Closed { broker: BrokerAddress::new("b", 1) };
        let mut trouble = Trouble::new();
        assert!(!trouble.failed(&moved, start) && !trouble.lasts());
        assert!(trouble.rests(start) && !trouble.rests(start + LONGEST_REST));
        assert!(trouble.failed(&moved, start + PATIENCE * 2) && trouble.lasts());
        assert!(!trouble.failed(&moved, start + PATIENCE * 3), "logged once");
        assert_eq!(trouble.over(start + PATIENCE * 4), Some(PATIENCE * 4));
        assert!(!trouble.lasts() && !trouble.rests(start));
        assert_eq!(trouble.over(start), None);
        assert!(trouble.failed(&closed, start) && trouble.lasts());
    }
}
