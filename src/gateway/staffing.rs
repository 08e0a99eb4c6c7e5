//! Whether the fleet has workers enough for the partitions of the tasks: pure state and time in, a line for the log
//! out.
//!
//! Kafka spreads the partitions over the workers. With fewer than two for each, the partition of a killed worker waits
//! up to 45 s for another one. Called every second by the thread `kafka`.

use std::time::{Duration, Instant};

const WORKERS_PER_PARTITION: usize = 2;
/// A restart of workers one after the other is no lack of them.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Staffing {
    short_since: Option<Instant>,
    told: bool,
}

impl Staffing {
    /// What to warn of, given how many workers take tasks; once while it lasts. All workers share a single partition,
    /// so that one needs no second worker; a fleet without workers is told otherwise.
    pub(super) fn look(&mut self, workers: usize, partitions: usize, now: Instant) -> Option<String> {
        let wanted = WORKERS_PER_PARTITION * partitions;
        if partitions < 2 || workers == 0 || workers >= wanted {
            *self = Self::default();
            return None;
        }
        let since = *self.short_since.get_or_insert(now);
        if self.told || now.saturating_duration_since(since) < PATIENCE {
            return None;
        }
        self.told = true;
        Some(format!(
            "{workers} worker(s) for {partitions} partitions of the tasks: the partition of a killed worker can wait 45 s \
             for another one; run at least {wanted} workers, or use fewer partitions"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lack_of_workers_that_lasts_is_told_once() {
        let now = Instant::now();
        let mut staffing = Staffing::default();
        let mut told = |seconds, workers, partitions| {
            staffing.look(workers, partitions, now + Duration::from_secs(seconds)).is_some()
        };
        for (seconds, workers, partitions, expected) in [
            (0, 1, 1, false),
            (100, 1, 1, false),
            (200, 3, 2, false),
            (209, 3, 2, false),
            (210, 3, 2, true),
            (300, 3, 2, false),
            // Enough for a moment: it begins anew.
            (310, 4, 2, false),
            (320, 3, 2, false),
            (329, 3, 2, false),
            (330, 2, 2, true),
            (340, 0, 2, false),
            (400, 0, 2, false),
        ] {
            assert_eq!(told(seconds, workers, partitions), expected, "{workers} for {partitions} at {seconds} s");
        }
    }
}
