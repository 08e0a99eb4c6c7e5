//! How many records a worker requests: enough that its handlers never wait for the network, and so few that no task
//! waits behind another while a second worker is idle.
//!
//! Pure: durations in, a number out. Called by the queue of the intakes.

use std::time::Duration;

/// Work that may be ready beyond the running tasks: two round trips to the broker on a loaded machine. A task that
/// takes longer is never fetched ahead.
const BUDGET: Duration = Duration::from_millis(10);
/// At most this many records are fetched ahead: a tenth of a partition's locks (`share.partition.max.record.locks`).
const MOST_AHEAD: usize = 400;
/// The number of recent durations for the percentile.
const RECENT: usize = 64;
/// Weight of the newest duration in the moving average.
const NEWEST_WEIGHT: f64 = 0.1;

#[derive(Debug)]
pub(super) struct Window {
    handlers: usize,
    average_seconds: f64,
    recent: Vec<Duration>,
    next_recent: usize,
    ahead: usize,
}

impl Window {
    /// A window for `handlers` handler threads before the first task: one record for each idle handler.
    pub(super) fn new(handlers: usize) -> Self {
        Self { handlers, average_seconds: 0.0, recent: Vec::with_capacity(RECENT), next_recent: 0, ahead: 0 }
    }

    /// Adds the duration of a task. A task over the budget closes the window at once.
    pub(super) fn observe(&mut self, took: Duration) {
        if self.recent.is_empty() {
            self.average_seconds = took.as_secs_f64();
        } else {
            self.average_seconds += NEWEST_WEIGHT * (took.as_secs_f64() - self.average_seconds);
        }
        if self.recent.len() < RECENT {
            self.recent.push(took);
        } else {
            self.recent[self.next_recent] = took;
        }
        self.next_recent = (self.next_recent + 1) % RECENT;
        if took > BUDGET {
            self.ahead = 0;
        }
    }

    /// Opens the window one step, or closes it to the limit of the estimate. Called once per round, not per task,
    /// because the estimate sorts the recent durations.
    pub(super) fn adjust(&mut self) {
        let allowed = match self.estimate() {
            None => 0,
            Some(estimate) => {
                let fitting = BUDGET.as_secs_f64() / estimate.as_secs_f64().max(1e-6);
                // A float cast saturates, so an absurd quotient is only large.
                ((fitting as usize).saturating_mul(self.handlers)).min(MOST_AHEAD)
            }
        };
        self.ahead = allowed.min(self.ahead * 2 + 1);
    }

    /// The expected duration of the next task: the average or the recent 98th percentile, whichever is larger.
    pub(super) fn estimate(&self) -> Option<Duration> {
        if self.recent.is_empty() {
            return None;
        }
        let mut sorted = self.recent.clone();
        sorted.sort_unstable();
        // With 64 samples the 98th percentile is the second slowest, so a single pause of the machine does not count.
        let slow =
            sorted[(sorted.len() * 98 / 100).min(sorted.len() - 1).saturating_sub(usize::from(sorted.len() == RECENT))];
        Some(slow.max(Duration::from_secs_f64(self.average_seconds)))
    }

    /// The number of records to request now, given idle handlers and ready records.
    ///
    /// This is 0 while no handler is idle and over half the window is ready, so a round trip brings many records.
    pub(super) fn wanted(&self, idle: usize, ready: usize) -> usize {
        if idle == 0 && ready * 2 > self.ahead {
            return 0;
        }
        (idle + self.ahead).saturating_sub(ready)
    }

    /// Whether no records are fetched ahead: tasks are long, or none has run yet.
    pub(super) fn is_closed(&self) -> bool {
        self.ahead == 0
    }

    /// With this many ready records or fewer the next round is due.
    pub(super) fn low_water(&self) -> usize {
        self.ahead / 2
    }

    /// Whether this many ready records are expected to finish within `limit`.
    pub(super) fn finishes_within(&self, ready: usize, limit: Duration) -> bool {
        match self.estimate() {
            _ if ready == 0 => true,
            None => false,
            Some(estimate) => estimate.as_secs_f64() * ready.div_ceil(self.handlers) as f64 <= limit.as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fed(handlers: usize, took: Duration, times: usize) -> Window {
        let mut window = Window::new(handlers);
        for _ in 0..times {
            window.observe(took);
            window.adjust();
        }
        window
    }

    #[test]
    fn window_starts_with_one_record_for_each_idle_handler() {
        let mut window = Window::new(4);
        window.adjust();
        assert_eq!(window.wanted(4, 0), 4);
        assert_eq!(window.wanted(0, 0), 0);
    }

    #[test]
    fn long_tasks_are_never_fetched_ahead() {
        for milliseconds in [11, 20, 1_000, 60_000] {
            let window = fed(2, Duration::from_millis(milliseconds), 100);
            assert_eq!(window.wanted(0, 0), 0, "{milliseconds} ms, no handler idle");
            assert_eq!(window.wanted(1, 0), 1, "{milliseconds} ms, one handler idle");
        }
    }

    #[test]
    fn short_tasks_open_the_window_by_doubling_up_to_the_limit() {
        let mut window = Window::new(1);
        let mut seen = Vec::new();
        for _ in 0..12 {
            window.observe(Duration::from_micros(20));
            window.adjust();
            seen.push(window.wanted(0, 0));
        }
        assert_eq!(seen, [1, 3, 7, 15, 31, 63, 127, 255, 400, 400, 400, 400]);
    }

    #[test]
    fn task_over_the_budget_closes_the_window() {
        let mut window = fed(1, Duration::from_micros(20), 100);
        assert_eq!(window.wanted(0, 0), 400);
        window.observe(Duration::from_millis(500));
        assert_eq!(window.wanted(0, 0), 0);
        window.adjust();
        assert!(window.wanted(0, 0) <= 1, "it opens slowly again");
    }

    #[test]
    fn busy_handlers_request_no_more_while_over_half_the_window_is_ready() {
        let window = fed(1, Duration::from_micros(20), 100);
        assert_eq!(window.wanted(0, 201), 0);
        assert_eq!(window.wanted(0, 200), 200);
        assert_eq!(window.wanted(1, 300), 101);
    }

    #[test]
    fn ready_tasks_finish_quickly_only_if_known_to_be_short() {
        assert!(Window::new(1).finishes_within(0, Duration::from_millis(100)));
        assert!(!Window::new(1).finishes_within(1, Duration::from_millis(100)), "no task has run yet");
        let window = fed(2, Duration::from_millis(1), 64);
        assert!(window.finishes_within(200, Duration::from_millis(100)));
        assert!(!window.finishes_within(202, Duration::from_millis(100)));
    }

    proptest! {
        #[test]
        fn records_fetched_ahead_never_exceed_the_budget(
            microseconds in proptest::collection::vec(1u64..50_000, 1..200), handlers in 1usize..8, idle in 0usize..8,
        ) {
            let mut window = Window::new(handlers);
            for took in &microseconds {
                window.observe(Duration::from_micros(*took));
                window.adjust();
            }
            let idle = idle.min(handlers);
            let ahead = window.wanted(idle, 0) - idle.min(window.wanted(idle, 0));
            prop_assert!(ahead <= MOST_AHEAD);
            let average = Duration::from_secs_f64(window.average_seconds);
            prop_assert!(average.as_secs_f64() * ahead as f64 <= BUDGET.as_secs_f64() * handlers as f64 + 1e-9);
            if *microseconds.last().unwrap() > 10_000 {
                prop_assert_eq!(ahead.min(2), ahead, "closed by the last task, at most one step open");
            }
        }
    }
}
