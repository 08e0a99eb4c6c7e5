//! Logs once that a service does not answer or refuses, and once that it answers again.

use kafka_share::error::{KafkaError, Retry};
use program::logging::escape;
use std::fmt::Display;
use std::io;
use std::time::Instant;

/// An error that an [`Outage`] can report.
pub(crate) trait Trouble: Display {
    /// The reason, if the error is a refusal: then waiting does not help, and an operator has to act.
    fn refusal(&self) -> Option<String> {
        None
    }
}

impl Trouble for io::Error {}

impl Trouble for String {}

impl Trouble for KafkaError {
    fn refusal(&self) -> Option<String> {
        match self {
            Self::Security { is_final: true, .. } => return Some(self.to_string()),
            Self::Broker { .. } if self.retry() == Retry::Never => {}
            _ => return None,
        }
        let right = self.missing_right().map(|right| format!("{right} is missing: "));
        Some(format!("{}{self}", right.unwrap_or_default()))
    }
}

/// One service's outage, as one thread sees it.
#[derive(Debug)]
pub(crate) struct Outage {
    what: String,
    since: Option<Instant>,
    /// The last logged error was a refusal.
    refused: bool,
}

impl Outage {
    /// `what` is the subject of the log line, such as "Kafka".
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), since: None, refused: false }
    }

    /// Notes a failure. Logs the first one in a row, and each change between silence and refusal.
    pub(crate) fn report(&mut self, error: &impl Trouble) {
        let refusal = error.refusal();
        if self.since.is_some() && self.refused == refusal.is_some() {
            return;
        }
        self.since.get_or_insert_with(Instant::now);
        self.refused = refusal.is_some();
        match refusal {
            Some(reason) => log::warn!("{} refuses ({}); retrying", self.what, escape(&reason)),
            None => log::warn!("{} does not answer ({}); retrying", self.what, escape(&error.to_string())),
        }
    }

    /// Notes a success. Logs it if an outage ends.
    pub(crate) fn over(&mut self) {
        if let Some(since) = self.since.take() {
            log::info!("{} answers again after {:.1} s", self.what, since.elapsed().as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_share::error::ErrorCode;

    #[test]
    fn errors_that_waiting_does_not_fix_are_refusals() {
        let of = |code| KafkaError::broker("ShareGroupHeartbeat", ErrorCode(code), None).refusal();
        for code in [23, 29, 30, 31, 69, 81] {
            assert!(of(code).is_some_and(|reason| reason.contains("ShareGroupHeartbeat")), "{code}");
        }
        for code in [5, 6, 14, 15, 16] {
            assert_eq!(of(code), None, "{code}");
        }
        assert!(of(30).is_some_and(|reason| reason.starts_with("the right Read on the group is missing")));
        assert_eq!(KafkaError::Interrupted.refusal(), None);
    }

    #[test]
    fn refusal_after_silence_is_one_outage_of_another_kind() {
        let mut outage = Outage::new("Kafka");
        let (silence, refusal) =
            (io::Error::from(io::ErrorKind::TimedOut), KafkaError::broker("Fetch", ErrorCode(29), None));
        outage.report(&silence);
        let since = outage.since;
        assert!(since.is_some() && !outage.refused);
        outage.report(&refusal);
        assert!(outage.since == since && outage.refused, "one outage, of another kind");
        outage.over();
        assert_eq!(outage.since, None);
    }
}
