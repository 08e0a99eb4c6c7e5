//! The last ten minutes of this gateway, for its page: how many tasks ended, how long callers waited, how many tasks were
//! pending. Pure: times and counts are parameters. The thread `upkeep` adds samples.

use crate::metrics::DurationCounts;
use serde::Serialize;
use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The time between two samples.
const INTERVAL: Duration = Duration::from_secs(5);
const SAMPLES: usize = 120;

/// What is counted from the gateway's start on.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    /// Results read.
    pub(super) results: u64,
    /// How long callers of `POST /analyze` waited for a result.
    pub(super) waits: DurationCounts,
}

/// One interval.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Sample {
    /// Its end, in Unix seconds.
    at: u64,
    /// Results per second.
    results: f64,
    /// Half of the results that callers of `POST /analyze` waited for came within this time; `None` without a result.
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_ms: Option<f64>,
    /// Tasks without a result at its end.
    pending: usize,
}

#[derive(Debug)]
pub(super) struct History {
    samples: VecDeque<Sample>,
    since: Instant,
    before: Totals,
}

impl History {
    pub(super) fn new(now: Instant) -> Self {
        Self { samples: VecDeque::new(), since: now, before: Totals::default() }
    }

    /// Whether an interval is over.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= INTERVAL
    }

    /// Ends an interval, which may have lasted longer.
    pub(super) fn add(&mut self, totals: Totals, pending: usize, now: Instant, at: SystemTime) {
        let lasted = now.saturating_duration_since(self.since).max(Duration::from_millis(1));
        let waits = totals.waits.since(&self.before.waits);
        let rounded = |value: f64| (value * 10.0).round() / 10.0;
        let milliseconds = |part| waits.quantile(part).map(|it: Duration| rounded(it.as_secs_f64() * 1e3));
        if self.samples.len() >= SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample {
            at: at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            results: rounded(totals.results.saturating_sub(self.before.results) as f64 / lasted.as_secs_f64()),
            p50_ms: milliseconds(0.5),
            p99_ms: milliseconds(0.99),
            pending,
        });
        (self.since, self.before) = (now, totals);
    }

    /// The samples, the oldest first.
    pub(super) fn samples(&self) -> Vec<Sample> {
        self.samples.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Durations;

    #[test]
    fn sample_has_the_rates_and_times_of_its_interval() {
        let start = Instant::now();
        let at = |seconds: u64| (start + Duration::from_secs(seconds), UNIX_EPOCH + Duration::from_secs(100 + seconds));
        let (mut history, durations) = (History::new(start), Durations::default());
        assert!(!history.is_due(at(4).0) && history.is_due(at(5).0));
        durations.observe(Duration::from_millis(100));
        let totals = |results| Totals { results, waits: durations.counts() };
        history.add(totals(50), 7, at(5).0, at(5).1);
        assert!(!history.is_due(at(9).0));
        history.add(totals(50), 0, at(15).0, at(15).1);
        let samples = history.samples();
        assert_eq!((samples[0].at, samples[0].results, samples[0].pending), (105, 10.0, 7));
        assert!(samples[0].p99_ms.is_some_and(|it| (64.0..=128.0).contains(&it)), "{samples:?}");
        assert_eq!((samples[1].results, samples[1].p50_ms), (0.0, None), "no response came");
        (2..200).for_each(|count| history.add(totals(50), 0, at(10 * count).0, at(10 * count).1));
        assert_eq!(history.samples().len(), SAMPLES);
    }
}
