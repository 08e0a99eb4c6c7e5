//! Counts of one client: connections, and the times of its requests.
//!
//! Plain numbers without names or formats; a program shows them as it likes. Written by
//! [`connection`](super::connection) for each response, without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kafka_protocol::messages::ApiKey;

/// Upper bounds of the buckets of [`Times`], in milliseconds; a last bucket has no bound.
pub const BOUNDS_MS: [u64; 12] = [1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1_000, 5_000];

/// The counts of one client; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Statistics(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    connected: AtomicU64,
    lost: AtomicU64,
    /// In the order of [`REQUESTS`], then all others.
    times: [Atomics; REQUESTS.len() + 1],
}

/// The requests with times of their own.
const REQUESTS: [(ApiKey, &str); 5] = [
    (ApiKey::Produce, "Produce"),
    (ApiKey::Fetch, "Fetch"),
    (ApiKey::ShareFetch, "ShareFetch"),
    (ApiKey::ShareAcknowledge, "ShareAcknowledge"),
    (ApiKey::Metadata, "Metadata"),
];

#[derive(Debug, Default)]
struct Atomics {
    nanoseconds: AtomicU64,
    buckets: [AtomicU64; BOUNDS_MS.len() + 1],
}

/// The times of one kind of request, from sending it to its response. A fetch includes the time for which the broker
/// waits for records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Times {
    /// The request's name; `other` for all that have no times of their own.
    pub request: &'static str,
    /// The sum of all times.
    pub sum: Duration,
    /// The number of times up to each bound and above the one before; the last bucket has no bound.
    pub buckets: [u64; BOUNDS_MS.len() + 1],
}

impl Statistics {
    /// Connections opened so far.
    pub fn connected_total(&self) -> u64 {
        self.0.connected.load(Ordering::Relaxed)
    }

    /// Connections that ended by an error, by the broker, or while it owed a response.
    pub fn lost_total(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// The times of all requests that were answered.
    pub fn times(&self) -> impl Iterator<Item = Times> {
        let names = REQUESTS.iter().map(|(_, name)| *name).chain(["other"]);
        names.zip(&self.0.times).map(|(request, times)| Times {
            request,
            sum: Duration::from_nanos(times.nanoseconds.load(Ordering::Relaxed)),
            buckets: std::array::from_fn(|index| times.buckets[index].load(Ordering::Relaxed)),
        })
    }

    pub(super) fn connected(&self) {
        self.0.connected.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn lost(&self) {
        self.0.lost.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn answered(&self, api_key: i16, took: Duration) {
        let index = REQUESTS.iter().position(|(key, _)| *key as i16 == api_key).unwrap_or(REQUESTS.len());
        let bucket = BOUNDS_MS.iter().position(|bound| took <= Duration::from_millis(*bound));
        let times = &self.0.times[index];
        times.buckets[bucket.unwrap_or(BOUNDS_MS.len())].fetch_add(1, Ordering::Relaxed);
        times.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_in_the_bucket_of_its_request() {
        let statistics = Statistics::default();
        statistics.answered(ApiKey::Produce as i16, Duration::from_millis(1));
        statistics.clone().answered(ApiKey::Produce as i16, Duration::from_micros(1_001));
        statistics.answered(ApiKey::Heartbeat as i16, Duration::from_secs(6));
        let times: Vec<Times> = statistics.times().collect();
        assert_eq!((times[0].request, times[0].sum), ("Produce", Duration::from_micros(2_001)));
        assert_eq!(times[0].buckets[..3], [1, 1, 0]);
        assert_eq!((times[5].request, times[5].buckets[BOUNDS_MS.len()]), ("other", 1));
    }
}
