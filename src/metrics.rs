//! Metrics that both programs have: the build, the process, and the client of Kafka; and their text (OpenMetrics 1.0).
//!
//! The names follow Prometheus' rules (<https://prometheus.io/docs/practices/naming>); docs/metrics.md lists them all.
//! Each program registers its own metrics beside these; nothing is computed before the text is requested.

mod durations;
mod kafka;
mod process;

pub(crate) use durations::{Counts as DurationCounts, Durations};

use kafka_share::statistics::Statistics;
use prometheus_client::encoding::EncodeLabelValue;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Metric, Registry, Unit};
use std::fmt::Debug;
use std::hash::Hash;
use std::time::Duration;

/// The media type of [`Counted::text`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The prefix of all names but those of the process.
const PREFIX: &str = "lastcall";
/// The metrics of one program: those that it counts, and those that both programs have.
#[derive(Debug)]
pub(crate) struct Counted(Registry);

impl Counted {
    /// Starts with the metrics that both programs have.
    pub(crate) fn new(statistics: Statistics) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process::new()));
        let mut counted = Self(registry);
        counted.own().register_collector(Box::new(kafka::Kafka(statistics)));
        let build: Family<[(&str, &str); 1], Gauge> = Family::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        counted.add("build_info", "Version of this program; the value is 1", build);
        counted
    }

    fn own(&mut self) -> &mut Registry {
        self.0.sub_registry_with_prefix(PREFIX)
    }

    /// Adds a metric, and returns it. The text appends `_total` to the name of a counter.
    pub(crate) fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.own().register(name, help, metric.clone());
        metric
    }

    /// Adds a counter.
    pub(crate) fn counter(&mut self, name: &str, help: &str) -> Counter {
        self.add(name, help, Counter::default())
    }

    /// Adds a histogram or another metric in seconds; the text appends `_seconds` to its name.
    pub(crate) fn seconds<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.own().register_with_unit(name, help, Unit::Seconds, metric.clone());
        metric
    }

    /// The text of all metrics; `now` are those that are known only at this moment.
    pub(crate) fn text(&self, now: &Now) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode_registry(&mut text, &self.0)
            .and_then(|()| encode_registry(&mut text, &now.0))
            .and_then(|()| encode_eof(&mut text));
        text
    }
}

/// Gauges with their values at one moment.
#[derive(Debug)]
pub(crate) struct Now(Registry);

impl Now {
    pub(crate) fn new() -> Self {
        Self(Registry::with_prefix(PREFIX))
    }

    /// Adds a size or a number.
    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.0.register(name, help, ConstGauge::new(number(value)));
    }

    /// Adds a count; the text appends `_total` to its name.
    pub(crate) fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.0.register(name, help, ConstCounter::new(value));
    }

    /// Adds 1 for true, 0 for false.
    pub(crate) fn flag(&mut self, name: &str, help: &str, value: bool) {
        self.gauge(name, help, usize::from(value));
    }

    /// Adds a time.
    pub(crate) fn seconds(&mut self, name: &str, help: &str, value: Duration) {
        self.0.register_with_unit(name, help, Unit::Seconds, ConstGauge::new(value.as_secs_f64()));
    }

    /// Adds one value for each value of a label.
    pub(crate) fn by<L: EncodeLabelValue + Eq + Hash + Clone + Debug + Send + Sync + 'static>(
        &mut self,
        (name, label): (&str, &'static str),
        help: &str,
        values: impl IntoIterator<Item = (L, usize)>,
    ) {
        let family: Family<[(&'static str, L); 1], Gauge> = Family::default();
        for (of, value) in values {
            family.get_or_create(&[(label, of)]).set(number(value));
        }
        self.0.register(name, help, family);
    }
}

fn number(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_each_metric_once_and_ends_with_its_mark() {
        let mut counted = Counted::new(Statistics::default());
        let tasks = counted.counter("tasks_accepted", "Tasks");
        let _ = tasks.inc();
        let mut now = Now::new();
        now.by(("workers", "state"), "Workers", [("active", 2)]);
        now.flag("draining", "Whether it stops", true);
        let text = counted.text(&now);
        for line in [
            "# TYPE lastcall_tasks_accepted counter",
            "lastcall_tasks_accepted_total 1",
            "lastcall_workers{state=\"active\"} 2",
            "lastcall_draining 1",
            "lastcall_kafka_request_duration_seconds_count{request=\"Produce\"} 0",
        ] {
            assert_eq!(text.lines().filter(|it| *it == line).count(), 1, "{line} in {text}");
        }
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
        #[cfg(target_os = "linux")]
        for name in ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds"] {
            let value = text.lines().find_map(|line| line.strip_prefix(&format!("process_{name} "))).expect(name);
            assert!(value.parse::<f64>().expect("a number") > 0.0 || name.starts_with("cpu"), "{name} {value}");
        }
    }
}
