//! A histogram of durations without a lock, for the threads that serve callers; and the figures of a part of it.

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::TypedMetric;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bound of the first bucket; each further bound is twice the one before. The last is 16 s.
const FIRST: Duration = Duration::from_micros(500);
const BOUNDS: usize = 16;

/// A histogram; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Durations(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    nanoseconds: AtomicU64,
    /// The last has no bound.
    buckets: [AtomicU64; BOUNDS + 1],
}

/// The counts of a histogram at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts([u64; BOUNDS + 1]);

impl Durations {
    pub(crate) fn observe(&self, duration: Duration) {
        let bucket = (0..BOUNDS).find(|index| duration <= bound(*index)).unwrap_or(BOUNDS);
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.0.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts(std::array::from_fn(|index| self.0.buckets[index].load(Ordering::Relaxed)))
    }
}

impl Counts {
    /// What was added since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self(std::array::from_fn(|index| self.0[index].saturating_sub(before.0[index])))
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The duration that this part of all does not exceed, within its bucket as if the durations there were spread
    /// evenly; the last bound for longer ones. `None` without durations.
    pub(crate) fn quantile(&self, part: f64) -> Option<Duration> {
        let wanted = part * self.total() as f64;
        let mut below = 0.0;
        for (index, count) in self.0.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            if below + count >= wanted {
                let lower = index.checked_sub(1).map_or(Duration::ZERO, bound);
                let width = bound(index.min(BOUNDS - 1)).saturating_sub(lower);
                return Some(lower + width.mul_f64(((wanted - below) / count).clamp(0.0, 1.0)));
            }
            below += count;
        }
        None
    }
}

fn bound(index: usize) -> Duration {
    FIRST * (1 << index)
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        let Counts(counts) = self.counts();
        let bounds = (0..BOUNDS).map(|index| bound(index).as_secs_f64()).chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let sum = Duration::from_nanos(self.0.nanoseconds.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_durations_since_a_moment() {
        let durations = Durations::default();
        durations.observe(Duration::from_secs(60));
        let before = durations.counts();
        assert_eq!(Counts::default().quantile(0.5), None);
        for _ in 0..99 {
            durations.observe(Duration::from_micros(800));
        }
        durations.observe(Duration::from_secs(3));
        let counts = durations.counts().since(&before);
        assert_eq!(counts.total(), 100);
        let [half, most, all] = [0.5, 0.99, 1.0].map(|part| counts.quantile(part).expect("durations"));
        assert!(half > Duration::from_micros(740) && half < Duration::from_micros(760), "{half:?}");
        assert!(most <= Duration::from_millis(1) && all == Duration::from_millis(4_096), "{most:?} {all:?}");
        assert_eq!(before.quantile(1.0), Some(bound(BOUNDS - 1)), "longer than the last bound");
    }
}
