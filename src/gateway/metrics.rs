//! The gateway's metrics, as OpenMetrics text.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

/// The media type of [`Metrics::encode`].
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    status: u32,
}

/// The values of the gauges at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gauges {
    pub(super) connections: usize,
    pub(super) unacknowledged_bytes: usize,
    pub(super) waiting_callers: usize,
    pub(super) pending_tasks: usize,
    pub(super) known_results: usize,
    pub(super) duplicate_results: u64,
    pub(super) active_workers: usize,
    pub(super) kafka_connected: bool,
}

/// Counters and gauges; encoded only on request.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    answers: Family<Status, Counter>,
    accepted: Counter,
    results: Counter,
    produced_again: Counter,
    bad_records: Counter,
    answer_seconds: Histogram,
    connections: Gauge,
    unacknowledged_bytes: Gauge,
    waiting: Gauge,
    pending: Gauge,
    known_results: Gauge,
    duplicate_results: Counter,
    active_workers: Gauge,
    kafka_connected: Gauge,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("lastcall_gateway");
        let answers = Family::default();
        registry.register("http_answers", "Answers by status", answers.clone());
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let accepted = counter("tasks_accepted", "Tasks of this gateway that Kafka has acknowledged");
        let results = counter("results", "Results read");
        let produced_again =
            counter("tasks_produced_again", "Tasks that Kafka had dropped and this gateway produced again");
        let bad_records = counter("bad_records", "Records of the results topic that could not be read");
        let duplicate_results = counter("duplicate_results", "Results for tasks that had one already");
        let answer_seconds = Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        registry.register_with_unit(
            "answer",
            "From a task's arrival to its result",
            Unit::Seconds,
            answer_seconds.clone(),
        );
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let connections = gauge("http_connections", "Open connections");
        let unacknowledged_bytes = gauge("unacknowledged_bytes", "Bytes of records that Kafka has not acknowledged");
        let waiting = gauge("waiting_callers", "Callers that wait for a result");
        let pending = gauge("pending_tasks", "Tasks without a result");
        let known_results = gauge("known_results", "Results that can be asked for");
        let active_workers = gauge("active_workers", "Workers that take tasks");
        let kafka_connected = gauge("kafka_connected", "1 while Kafka answers");
        Self {
            registry,
            answers,
            accepted,
            results,
            produced_again,
            bad_records,
            answer_seconds,
            connections,
            unacknowledged_bytes,
            waiting,
            pending,
            known_results,
            duplicate_results,
            active_workers,
            kafka_connected,
        }
    }

    pub(super) fn answered(&self, status: u16) {
        self.answers.get_or_create(&Status { status: status.into() }).inc();
    }

    pub(super) fn accepted(&self) {
        self.accepted.inc();
    }

    pub(super) fn results(&self, count: u64) {
        self.results.inc_by(count);
    }

    pub(super) fn produced_again(&self) {
        self.produced_again.inc();
    }

    pub(super) fn bad_record(&self) {
        self.bad_records.inc();
    }

    pub(super) fn answer_took(&self, took: Duration) {
        self.answer_seconds.observe(took.as_secs_f64());
    }

    /// Sets the gauges.
    pub(super) fn set(&self, now: Gauges) {
        let set = |gauge: &Gauge, value: usize| {
            // The previous value does not matter.
            let _ = gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.connections, now.connections);
        set(&self.unacknowledged_bytes, now.unacknowledged_bytes);
        set(&self.waiting, now.waiting_callers);
        set(&self.pending, now.pending_tasks);
        set(&self.known_results, now.known_results);
        // Counted by the index, since only it recognizes a result that was read twice.
        self.duplicate_results.inc_by(now.duplicate_results.saturating_sub(self.duplicate_results.get()));
        set(&self.active_workers, now.active_workers);
        set(&self.kafka_connected, usize::from(now.kafka_connected));
    }

    /// The body of `GET /metrics`.
    pub(super) fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
