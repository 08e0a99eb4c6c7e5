//! The gateway's metrics. docs/metrics.md lists them; [`crate::metrics`] has those that the worker has, too.

use super::history::Totals;
use crate::metrics::{Counted, Durations, Now};
use crate::task::Receipt;
use kafka_share::statistics::Statistics;
use program::exit::ExitCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::time::Duration;

/// The route of new tasks.
pub(super) const ANALYZE: &str = "/analyze";
const OUTCOMES_OF_TASKS: [&str; 2] = ["succeeded", "failed"];
/// The receipt's outcomes; `failed`: a thread of the worker died, so its outcome says little.
const OUTCOMES_OF_STOPS: [&str; 4] = ["drained", "abandoned", "forced", FAILED];
const FAILED: &str = "failed";
/// The receipt's signals; `other`: none, or one that is not known.
const SIGNALS: [&str; 4] = ["SIGTERM", "SIGINT", "SIGHUP", OTHER];
const OTHER: &str = "other";

/// Why a task was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    /// The gateway stops.
    Draining,
    /// Kafka is not connected, or did not take the task in time.
    KafkaUnavailable,
    /// Kafka refused the record.
    KafkaRefused,
    /// Too many bytes or records wait for Kafka.
    KafkaSlow,
    /// The records from before the start are being read.
    ReadingBack,
    /// `MAX_PENDING`.
    MaxPending,
    /// The workers are not likely to finish the task in time.
    ExpectedWait,
    /// `MAX_WAITING`.
    MaxWaiting,
    /// `MAX_KEYS`.
    MaxKeys,
}

impl Reason {
    const ALL: [Self; 9] = [
        Self::Draining,
        Self::KafkaUnavailable,
        Self::KafkaRefused,
        Self::KafkaSlow,
        Self::ReadingBack,
        Self::MaxPending,
        Self::ExpectedWait,
        Self::MaxWaiting,
        Self::MaxKeys,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::KafkaUnavailable => "kafka_unavailable",
            Self::KafkaRefused => "kafka_refused",
            Self::KafkaSlow => "kafka_slow",
            Self::ReadingBack => "reading_back",
            Self::MaxPending => "max_pending",
            Self::ExpectedWait => "expected_wait",
            Self::MaxWaiting => "max_waiting",
            Self::MaxKeys => "max_keys",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    route: &'static str,
    method: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stop {
    outcome: &'static str,
    signal: &'static str,
}

/// Counters and histograms; encoded only on request.
#[derive(Debug)]
pub(super) struct Metrics {
    counted: Counted,
    requests: Family<Request, Counter>,
    durations: Family<Route, Durations>,
    /// Of the requests whose task ran, or was waited for to the end.
    waits: Durations,
    accepted: Counter,
    answered: Counter,
    refused: Family<Refusal, Counter>,
    produced_again: Counter,
    results: Family<Outcome, Counter>,
    unreadable: Counter,
    stops: Family<Stop, Counter>,
    drains: Histogram,
    lost: Counter,
    returned: Counter,
    abandoned: Counter,
}

/// From 50 ms to 51 s, beyond every drain by default.
fn drain_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.05, 2.0, 11))
}

impl Metrics {
    pub(super) fn new(statistics: Statistics) -> Self {
        let mut counted = Counted::new(statistics);
        let metrics = Self {
            waits: Durations::default(),
            requests: counted.add("http_requests", "Responses, by route, method and status code", Family::default()),
            durations: counted.seconds(
                "http_request_duration",
                "From a complete request to its response; long polls and waits for results included",
                Family::default(),
            ),
            accepted: counted.counter("tasks_accepted", "Tasks of this gateway's callers that Kafka has acknowledged"),
            answered: counted.counter("tasks_answered", "Waiting callers that were given their task's result"),
            refused: counted.add("tasks_refused", "Requests whose task was not accepted, by reason", Family::default()),
            produced_again: counted
                .counter("tasks_produced_again", "Tasks that Kafka had dropped and this gateway produced again"),
            results: counted.add("results", "Results read from Kafka, of all callers, by outcome", Family::default()),
            unreadable: counted.counter("records_unreadable", "Records on the results topic that could not be read"),
            stops: counted.add(
                "worker_stops",
                "Completed stops of workers, by the receipt's outcome and signal",
                Family::default(),
            ),
            drains: counted.seconds("worker_drain", "From a worker's signal to its receipt", drain_buckets()),
            lost: counted.counter("workers_lost", "Workers that ended without a stop, or fell silent"),
            returned: counted.counter("worker_tasks_returned", "Tasks that stopping workers released unstarted"),
            abandoned: counted.counter("worker_tasks_abandoned", "Started tasks that stopping workers gave up"),
            counted,
        };
        metrics.begin();
        metrics
    }

    /// Begins counts at zero: Prometheus does not see the first increase of a count that was not there before.
    fn begin(&self) {
        Reason::ALL.iter().for_each(|reason| self.refused(*reason, 0));
        OUTCOMES_OF_TASKS.iter().for_each(|outcome| drop(self.results.get_or_create(&Outcome { outcome })));
        for outcome in OUTCOMES_OF_STOPS {
            SIGNALS.iter().for_each(|signal| drop(self.stops.get_or_create(&Stop { outcome, signal })));
        }
    }

    /// Counts a response.
    pub(super) fn responded(&self, route: &'static str, method: &'static str, code: u16, took: Duration) {
        self.requests.get_or_create(&Request { route, method, code }).inc();
        self.durations.get_or_create(&Route { route }).observe(took);
        // Refusals are quick, and would hide how long accepted tasks take.
        if route == ANALYZE && matches!(code, 200 | 500 | 504) {
            self.waits.observe(took);
        }
    }

    /// What the page's history is made of.
    pub(super) fn totals(&self) -> Totals {
        let results = OUTCOMES_OF_TASKS.iter().map(|outcome| self.results.get_or_create(&Outcome { outcome }).get());
        Totals { results: results.sum(), waits: self.waits.counts() }
    }

    pub(super) fn accepted(&self) {
        self.accepted.inc();
    }

    /// Counts callers that were given a result.
    pub(super) fn answered(&self, callers: usize) {
        self.answered.inc_by(callers as u64);
    }

    /// Counts callers whose task was not accepted.
    pub(super) fn refused(&self, reason: Reason, callers: usize) {
        self.refused.get_or_create(&Refusal { reason: reason.name() }).inc_by(callers as u64);
    }

    pub(super) fn produced_again(&self) {
        self.produced_again.inc();
    }

    /// Counts new results.
    pub(super) fn results(&self, succeeded: u64, failed: u64) {
        for (outcome, count) in OUTCOMES_OF_TASKS.into_iter().zip([succeeded, failed]) {
            self.results.get_or_create(&Outcome { outcome }).inc_by(count);
        }
    }

    pub(super) fn unreadable(&self) {
        self.unreadable.inc();
    }

    /// Counts workers that are not heard any more.
    pub(super) fn lost(&self, workers: usize) {
        self.lost.inc_by(workers as u64);
    }

    /// Counts the stop of a worker.
    pub(super) fn stopped(&self, receipt: &Receipt) {
        // Both are from outside, and the number of labels must not be.
        let known = |names: &[&'static str], name: &str| names.iter().copied().find(|it| *it == name);
        let outcome = match receipt.exit_code == ExitCode::Fatal as u8 {
            true => FAILED,
            false => known(&OUTCOMES_OF_STOPS, &receipt.outcome).unwrap_or(OTHER),
        };
        let signal = known(&SIGNALS, &receipt.signal).unwrap_or(OTHER);
        self.stops.get_or_create(&Stop { outcome, signal }).inc();
        if let Some(total) = receipt.phases_ms.get("total").and_then(serde_json::Value::as_u64) {
            self.drains.observe(Duration::from_millis(total).as_secs_f64());
        }
        self.returned.inc_by(receipt.tasks_returned);
        self.abandoned.inc_by(receipt.tasks_abandoned.len() as u64);
    }

    /// The body of `GET /metrics`.
    pub(super) fn text(&self, now: &Now) -> String {
        self.counted.text(now)
    }
}
