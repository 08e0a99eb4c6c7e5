//! The time of a run: seconds since its start, by the clocks of this machine.
//!
//! The drill dates its own observations by the monotonic clock. It converts wall-clock times of others, such as Kafka's
//! record timestamps, by the wall-clock time of the start. Copied to every thread of the drill.

use std::time::{Duration, Instant};

use lastcall::task::unix_now;

/// The start of the run on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    began: Instant,
    unix: f64,
}

impl Clock {
    /// Starts the clock of a run.
    pub(super) fn start() -> Self {
        Self { began: Instant::now(), unix: unix_now() }
    }

    /// Unix time of the start, in seconds.
    pub(super) fn unix(&self) -> f64 {
        self.unix
    }

    /// Time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Time since the start in seconds.
    pub(super) fn now(&self) -> f64 {
        self.elapsed().as_secs_f64()
    }

    /// Converts a moment of the run to seconds since the start.
    pub(super) fn at(&self, moment: Instant) -> f64 {
        moment.saturating_duration_since(self.began).as_secs_f64()
    }

    /// Converts Unix seconds to seconds since the start; negative before it.
    pub(super) fn of_unix(&self, unix: f64) -> f64 {
        unix - self.unix
    }
}
