//! The time of a run: seconds since it began, by this machine's clocks.
//!
//! What the drill sees is dated by the monotonic clock; what others date, such as Kafka its records, by the wall clock of the moment
//! at which the run began. Copied to every thread of the drill.

use std::time::{Duration, Instant};

use lastcall::task::unix_now;

/// See the module documentation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    began: Instant,
    unix: f64,
}

impl Clock {
    /// The run begins now.
    pub(super) fn start() -> Self {
        Self { began: Instant::now(), unix: unix_now() }
    }

    /// When it began, in Unix seconds.
    pub(super) fn unix(&self) -> f64 {
        self.unix
    }

    /// Since it began.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The same in seconds.
    pub(super) fn now(&self) -> f64 {
        self.elapsed().as_secs_f64()
    }

    /// The second of the run of a moment that it contains.
    pub(super) fn at(&self, moment: Instant) -> f64 {
        moment.saturating_duration_since(self.began).as_secs_f64()
    }

    /// The second of the run of a Unix time in seconds; negative before it began.
    pub(super) fn of_unix(&self, unix: f64) -> f64 {
        unix - self.unix
    }
}
