//! Logs once that a service does not answer or refuses, and once that it answers again; and keeps what is refused now.

use kafka_share::error::{KafkaError, Retry};
use parking_lot::Mutex;
use program::logging::escape;
use std::fmt::Display;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// An error that an [`Outage`] can report.
pub(crate) trait Trouble: Display {
    /// The reason, if the error is a refusal: then waiting does not help, and an operator has to act.
    fn refusal(&self) -> Option<String> {
        None
    }
}

impl Trouble for io::Error {}

impl Trouble for String {}

/// A refusal that its service explains better than its error.
pub(crate) struct Refusal(pub(crate) String);

impl Display for Refusal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Trouble for Refusal {
    fn refusal(&self) -> Option<String> {
        Some(self.0.clone())
    }
}

impl Trouble for KafkaError {
    fn refusal(&self) -> Option<String> {
        match self {
            Self::Security { is_final: true, .. } => return Some(self.to_string()),
            Self::Broker { .. } if self.retry() == Retry::Never => {}
            _ => return None,
        }
        Some(self.explained())
    }
}

/// What is refused to a program now, as its outages know it. While it is not empty, the program is not ready.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusals(Arc<Mutex<Vec<Refused>>>);

/// A reason, held by its outage, and when it was reported last.
#[derive(Debug)]
struct Refused {
    reason: Weak<str>,
    reported_at: Instant,
}

impl Refusals {
    /// A refusal that was not repeated for [`FRESH`] is not counted: nothing is asked of its service any more.
    pub(crate) fn first(&self) -> Option<String> {
        let all = self.0.lock();
        let fresh = all.iter().filter(|refused| refused.reported_at.elapsed() < FRESH);
        fresh.filter_map(|refused| refused.reason.upgrade()).next().map(|reason| reason.to_string())
    }

    /// Adds a refusal, which lasts as long as the returned reason. Returns true if no other is the same.
    fn add(&self, reason: String) -> (Arc<str>, bool) {
        let is_new = !self.has(&reason);
        let reason: Arc<str> = reason.into();
        self.0.lock().push(Refused { reason: Arc::downgrade(&reason), reported_at: Instant::now() });
        (reason, is_new)
    }

    fn repeat(&self, reason: &Arc<str>) {
        let mut all = self.0.lock();
        let own = all.iter_mut().find(|refused| refused.reason.ptr_eq(&Arc::downgrade(reason)));
        own.into_iter().for_each(|refused| refused.reported_at = Instant::now());
    }

    /// Whether an outage has this reason.
    fn has(&self, reason: &str) -> bool {
        let mut all = self.0.lock();
        all.retain(|refused| refused.reason.strong_count() > 0);
        all.iter().filter_map(|refused| refused.reason.upgrade()).any(|known| *known == *reason)
    }
}

/// Every refused request is repeated sooner than this.
const FRESH: Duration = Duration::from_secs(15);

/// One service's outage, as one thread sees it.
#[derive(Debug)]
pub(crate) struct Outage {
    what: String,
    refusals: Refusals,
    since: Option<Instant>,
    /// The last error was a refusal, for this reason.
    refused: Option<Arc<str>>,
}

impl Outage {
    /// `what` is the subject of the log line, such as "Kafka".
    pub(crate) fn new(what: impl Into<String>, refusals: &Refusals) -> Self {
        Self { what: what.into(), refusals: refusals.clone(), since: None, refused: None }
    }

    /// Notes a failure. Logs the first one in a row, each change between silence and refusal, and each other reason; a
    /// refusal that the program has in another thread, too, is logged once.
    pub(crate) fn report(&mut self, error: &impl Trouble) {
        let begins = self.since.is_none();
        self.since.get_or_insert_with(Instant::now);
        let Some(reason) = error.refusal() else {
            if self.refused.take().is_some() || begins {
                log::warn!("{} does not answer ({}); retrying", self.what, escape(&error.to_string()));
            }
            return;
        };
        match &self.refused {
            Some(known) if **known == *reason => self.refusals.repeat(known),
            _ => {
                self.refused = None;
                let (reason, is_new) = self.refusals.add(reason);
                if is_new {
                    log::warn!("{} refuses ({}); retrying", self.what, escape(&reason));
                }
                self.refused = Some(reason);
            }
        }
    }

    /// As [`report`](Self::report), for a thread beside another that logs when the service does not answer.
    pub(crate) fn report_refusal(&mut self, error: &impl Trouble) {
        if error.refusal().is_some() {
            self.report(error);
        } else {
            log::debug!("{}: {error}", self.what);
        }
    }

    /// Notes a success. Logs it if an outage ends; of several with one refusal, the last.
    pub(crate) fn over(&mut self) {
        let Some(since) = self.since.take() else { return };
        let is_refused_elsewhere = self.refused.take().is_some_and(|reason| {
            let text = reason.to_string();
            drop(reason);
            self.refusals.has(&text)
        });
        if !is_refused_elsewhere {
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
        let refusals = Refusals::default();
        let mut outage = Outage::new("Kafka", &refusals);
        let (silence, refusal) =
            (io::Error::from(io::ErrorKind::TimedOut), KafkaError::broker("Fetch", ErrorCode(29), None));
        outage.report(&silence);
        let since = outage.since;
        assert!(since.is_some() && refusals.first().is_none());
        outage.report(&refusal);
        assert!(outage.since == since && refusals.first().is_some(), "one outage, of another kind");
        outage.report(&silence);
        assert!(outage.since == since && refusals.first().is_none(), "silent again");
        outage.report(&refusal);
        outage.over();
        assert!(outage.since.is_none() && refusals.first().is_none());
    }

    #[test]
    fn refusal_of_several_threads_lasts_until_each_has_ended() {
        let refusals = Refusals::default();
        let refused = KafkaError::broker("ShareFetch", ErrorCode(29), None);
        let [mut first, mut second] = ["partition 0", "partition 1"].map(|what| Outage::new(what, &refusals));
        first.report(&refused);
        assert!(!refusals.add(refused.explained()).1, "known");
        second.report_refusal(&refused);
        first.over();
        assert!(refusals.first().is_some_and(|reason| reason.contains("the right Read on the topic")));
        second.over();
        assert!(refusals.first().is_none() && !refusals.has(&refused.explained()));
    }

    #[test]
    fn another_reason_replaces_the_first() {
        let refusals = Refusals::default();
        let mut outage = Outage::new("Kafka", &refusals);
        for (code, words) in [(29, "on the topic"), (30, "on the group")] {
            outage.report(&KafkaError::broker("Fetch", ErrorCode(code), None));
            assert!(refusals.first().is_some_and(|reason| reason.contains(words)), "{:?}", refusals.first());
        }
    }

    #[test]
    fn silence_beside_a_thread_that_logs_it_is_no_outage() {
        let mut outage = Outage::new("Kafka", &Refusals::default());
        outage.report_refusal(&io::Error::from(io::ErrorKind::TimedOut));
        assert_eq!(outage.since, None);
    }
}
