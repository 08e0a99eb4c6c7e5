//! The metrics `process_*` that Prometheus' own client libraries have, from proc(5) and getrusage(2).
//!
//! Elsewhere than on Linux only those that need no proc(5) are there.

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug)]
pub(super) struct Process {
    started: f64,
}

impl Process {
    /// Made at the start of the process.
    pub(super) fn new() -> Self {
        Self { started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let mut add = |name: &str, help: &str, metric: &dyn Metric| metric.add(&mut encoder, name, help);
        add("process_start_time_seconds", "Start of the process, in Unix seconds", &ConstGauge::new(self.started))?;
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let microseconds = (usage.user_time() + usage.system_time()).num_microseconds();
            let cpu = ConstCounter::new(microseconds as f64 / 1e6);
            add("process_cpu_seconds", "Processor time of the process, user and system", &cpu)?;
        }
        if let Some(bytes) = resident_bytes() {
            add("process_resident_memory_bytes", "Memory of the process that is in use", &ConstGauge::new(bytes))?;
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            // Without the one of the reading itself.
            let open = i64::try_from(files.count()).unwrap_or(i64::MAX) - 1;
            add("process_open_fds", "Open file descriptors", &ConstGauge::new(open))?;
        }
        if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            add("process_max_fds", "Limit of open file descriptors", &ConstGauge::new(soft as f64))?;
        }
        Ok(())
    }
}

/// A metric of any type.
trait Metric {
    fn add(&self, encoder: &mut DescriptorEncoder, name: &str, help: &str) -> Result<(), std::fmt::Error>;
}

impl<M: EncodeMetric> Metric for M {
    fn add(&self, encoder: &mut DescriptorEncoder, name: &str, help: &str) -> Result<(), std::fmt::Error> {
        self.encode(encoder.encode_descriptor(name, help, None, self.metric_type())?)
    }
}

fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}
