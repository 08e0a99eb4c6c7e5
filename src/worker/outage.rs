//! Says once that something is away and once that it is back, however often it is tried in between.

use crate::logging::escape;
use std::fmt::Display;
use std::time::Instant;

/// One kind of trouble, as one thread sees it.
#[derive(Debug)]
pub(crate) struct Outage {
    what: String,
    since: Option<Instant>,
}

impl Outage {
    /// `what` is the subject of the log line, such as "Kafka".
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), since: None }
    }

    /// It failed; the first failure in a row is logged.
    pub(crate) fn report(&mut self, error: &dyn Display) {
        if self.since.is_none() {
            self.since = Some(Instant::now());
            log::warn!("{} does not answer ({}); trying on", self.what, escape(&error.to_string()));
        }
    }

    /// It worked; logged if it had failed before.
    pub(crate) fn over(&mut self) {
        if let Some(since) = self.since.take() {
            log::info!("{} answers again after {:.1} s", self.what, since.elapsed().as_secs_f64());
        }
    }
}
