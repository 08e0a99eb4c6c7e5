//! The options of both programs: flags, environment variables, defaults, and the validated values.
//!
//! Nothing here connects or listens. Options become text first and values second, so that all faults are reported at
//! once, each on its line. Called by the binaries ([`WorkerConfig::from_args`], [`GatewayConfig::from_args`]) before
//! they start anything, and by users of the library that fill the structs.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use kafka_share::tls::TlsFault;
use kafka_share::{BrokerAddress, ClientOptions, Interrupter};
use program::logging::LogFormat;

mod options;
mod parse;
mod security;
#[cfg(test)]
mod tests;

pub use options::SecurityOptions;
pub(crate) use parse::TASKS_TOPIC_LIMIT;
pub use parse::{LEAVING, SHORTEST_GATEWAY_GRACE, variables};
pub use program::options::{ConfigError, Effective, Environment, Parsed};
pub use security::{Security, SecurityProtocol};

/// Options of both programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Common {
    /// `KAFKA_BOOTSTRAP_SERVERS`: brokers to ask first; one reachable broker is enough.
    pub bootstrap: Vec<BrokerAddress>,
    /// `TASKS_TOPIC`: the topic of the tasks.
    pub tasks_topic: String,
    /// `RESULTS_TOPIC`: the topic of results and status records.
    pub results_topic: String,
    /// `TASKS_PARTITIONS`: partitions of the tasks topic when it is created.
    pub tasks_partitions: i32,
    /// `REPLICATION_FACTOR`: replicas of each topic that is created; the broker's default when `None`.
    pub replication_factor: Option<i16>,
    /// `WORKER_GROUP`: the share group (KIP-932) that all workers join.
    pub worker_group: String,
    /// `RESULT_RETENTION`: how long results can be fetched.
    pub result_retention: Duration,
    /// `ALLOW_WORK_MS`: whether tasks may have `work_ms`.
    pub allow_work_ms: bool,
    /// `LOG_LEVEL`
    pub log_level: LevelFilter,
    /// `LOG_FORMAT`
    pub log_format: LogFormat,
    /// `KAFKA_SECURITY_PROTOCOL` and its further options.
    pub security: Security,
    /// All options as they were parsed, for the log; empty if they were not parsed.
    pub effective: Effective,
}

impl Common {
    /// Logs all options in one line, without secrets, if they were parsed.
    pub(crate) fn log_effective(&self) {
        if !self.effective.is_empty() {
            log::info!("configuration: {}", self.effective);
        }
    }

    /// The dead-letter topic.
    pub fn dead_topic(&self) -> String {
        format!("{}.dead", self.tasks_topic)
    }

    /// The topic on which workers record the starts of redelivered tasks.
    pub fn starts_topic(&self) -> String {
        format!("{}.starts", self.tasks_topic)
    }

    /// Options of a client of this Kafka. Reads the files of TLS.
    ///
    /// # Errors
    /// One of the files cannot be used.
    pub fn client_options(&self, client_id: &str, interrupter: &Interrupter) -> Result<ClientOptions, TlsFault> {
        let mut options = self.security.client_options(self.bootstrap.clone(), client_id)?;
        options.interrupter = interrupter.clone();
        Ok(options)
    }
}

impl Default for Common {
    fn default() -> Self {
        Self {
            bootstrap: vec![BrokerAddress::new("127.0.0.1", 9092)],
            tasks_topic: "tasks".to_owned(),
            results_topic: "results".to_owned(),
            tasks_partitions: 1,
            replication_factor: None,
            worker_group: "workers".to_owned(),
            result_retention: Duration::from_secs(600),
            allow_work_ms: false,
            log_level: LevelFilter::Info,
            log_format: LogFormat::Text,
            security: Security::default(),
            effective: Effective::default(),
        }
    }
}

/// Options of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Options of both programs.
    pub common: Common,
    /// `WORKER_ID`: its name in status records, results and logs.
    pub worker_id: String,
    /// `WORKER_CONCURRENCY`: handler threads, at least 1.
    pub concurrency: usize,
    /// `DRAIN_TIMEOUT`: how long tasks in flight may continue after a signal.
    pub drain_timeout: Duration,
    /// `STOP_GRACE_PERIOD`: how long the orchestrator waits before it kills.
    pub stop_grace_period: Duration,
    /// `TASK_TIMEOUT`: after this time the worker releases a running task and is not live.
    pub task_timeout: Duration,
    /// `HEARTBEAT_INTERVAL`: how often the status record is repeated.
    pub heartbeat_interval: Duration,
    /// `MAX_DELIVERIES`: starts of one task before it is dead-lettered, 2 to 7.
    pub max_deliveries: u16,
    /// `METRICS_ADDR`: the address that serves the metrics; `None`: there is none.
    pub metrics_addr: Option<SocketAddr>,
    /// `HEALTH_FILE`: refreshed every second while the worker is live.
    pub health_file: Option<PathBuf>,
    /// `--healthcheck`: do not run, but check the running worker.
    pub healthcheck: Option<HealthCheck>,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            common: Common::default(),
            worker_id: "worker".to_owned(),
            concurrency: 1,
            drain_timeout: Duration::from_secs(30),
            stop_grace_period: Duration::from_secs(45),
            task_timeout: Duration::from_secs(600),
            heartbeat_interval: Duration::from_secs(1),
            max_deliveries: 5,
            metrics_addr: None,
            health_file: None,
            healthcheck: None,
        }
    }
}

/// Options of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Options of both programs.
    pub common: Common,
    /// `HTTP_ADDR`: the address that it listens on.
    pub http_addr: SocketAddr,
    /// `ADMIN_ADDR`: the address for operators; `None`: `HTTP_ADDR` serves them, too.
    pub admin_addr: Option<SocketAddr>,
    /// `ANSWER_TIMEOUT`: how long a caller waits for its result.
    pub answer_timeout: Duration,
    /// `STOP_GRACE_PERIOD`: how long the orchestrator waits before it kills.
    pub stop_grace_period: Duration,
    /// `MISSING_AFTER`: after this time a task without a result is searched for in Kafka, and produced again if
    /// dropped.
    pub missing_after: Duration,
    /// `WORKER_TIMEOUT`: a worker without a status record for this long is not responsive.
    pub worker_timeout: Duration,
    /// `MAX_WAITING`: at most this many callers wait at once.
    pub max_waiting: usize,
    /// `MAX_PENDING`: with this many tasks without a result, new tasks are refused.
    pub max_pending: usize,
    /// `MAX_KEYS`: with this many remembered idempotency keys, new keys are refused.
    pub max_keys: usize,
    /// `MAX_RESULTS`: results whose positions in Kafka are remembered; older results are searched for.
    pub max_results: usize,
    /// `READY_WITHOUT_KAFKA`: how long Kafka may be unavailable before the gateway is not ready.
    pub ready_without_kafka: Duration,
    /// `--healthcheck`: do not run, but check the running gateway.
    pub healthcheck: Option<HealthCheck>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            common: Common::default(),
            http_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            admin_addr: None,
            answer_timeout: Duration::from_secs(10),
            stop_grace_period: Duration::from_secs(30),
            missing_after: Duration::from_secs(60),
            worker_timeout: Duration::from_secs(5),
            max_waiting: 1024,
            max_pending: 100_000,
            max_keys: 100_000,
            max_results: 1_000_000,
            ready_without_kafka: Duration::from_secs(15),
            healthcheck: None,
        }
    }
}

/// The state that a health check checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthCheck {
    /// The process's threads move; an orchestrator restarts a process that is not live.
    Live,
    /// The process takes work; an orchestrator sends no work to a process that is not ready.
    Ready,
    /// The response of a gateway to `GET` of this path; a worker has no such check.
    Path(String),
}
