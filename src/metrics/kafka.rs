//! The metrics of the client of Kafka.

use kafka_share::statistics::{BOUNDS_MS, Statistics};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Unit;

#[derive(Debug)]
pub(super) struct Kafka(pub(super) Statistics);

impl Collector for Kafka {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let mut count = |name: &str, help: &str, value: u64| {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
        };
        count("kafka_connections_opened", "Connections to brokers that were opened", self.0.connected_total())?;
        let help = "Connections to brokers that ended by an error, by the broker, or while it owed a response";
        count("kafka_connections_lost", help, self.0.lost_total())?;
        let help = "From a request to its response; a fetch includes the broker's wait for records";
        let mut family =
            encoder.encode_descriptor("kafka_request_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for times in self.0.times() {
            let bounds = BOUNDS_MS.iter().map(|bound| *bound as f64 / 1e3).chain([f64::MAX]);
            let buckets: Vec<(f64, u64)> = bounds.zip(times.buckets).collect();
            let count = times.buckets.iter().sum();
            let labels = [("request", times.request)];
            let mut metric = family.encode_family(&labels)?;
            metric.encode_histogram::<NoLabelSet>(times.sum.as_secs_f64(), count, &buckets, None)?;
        }
        Ok(())
    }
}
