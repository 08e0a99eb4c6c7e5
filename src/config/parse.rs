//! From the command line and the environment to a configuration: first text, then values, then their relations. All
//! faults are collected and reported.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Command, CommandFactory};
use kafka_share::BrokerAddress;
use program::options::values::{self, Read, show_duration};
use program::options::{Effective, Environment, Faults, WEEK, positive};

use super::options::{CommonOptions, GatewayOptions, WorkerOptions};
use super::{Common, GatewayConfig, HealthCheck, Security, WorkerConfig};
use crate::supervisor;
use crate::task::ID_LIMIT;

/// The time that a worker needs after its drain timeout to abandon tasks, announce its end, and leave.
pub const LEAVING: Duration = Duration::from_secs(5);
/// The shortest grace period of a gateway, which answers callers until 6 s before its end.
pub const SHORTEST_GATEWAY_GRACE: Duration = Duration::from_secs(10);

/// The range of the heartbeat interval; shorter ones would load Kafka.
const HEARTBEATS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_mins(1);
const LONGEST_GROUP: usize = 249;
/// `.starts` and `.dead` are appended to the name of the tasks topic.
pub(crate) const TASKS_TOPIC_LIMIT: usize = values::TOPIC_LIMIT - ".starts".len();

/// The variables of the options of both programs: what a program that starts them passes on.
pub fn variables() -> BTreeSet<String> {
    [WorkerOptions::command(), GatewayOptions::command()].iter().flat_map(variables_of).collect()
}

pub(super) fn variables_of(command: &Command) -> Vec<String> {
    let names = command.get_arguments().filter_map(|arg| arg.get_env());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

program::configuration!(WorkerConfig);
program::configuration!(GatewayConfig);

impl WorkerConfig {
    fn read(
        options: &WorkerOptions,
        environment: &Environment,
        effective: &mut Effective,
        faults: &mut Faults,
    ) -> Self {
        let host_name = environment.host_name.to_string_lossy();
        let worker_id = options.worker_id.as_deref().unwrap_or(&host_name);
        effective.or_default("WORKER_ID", worker_id);
        let mut config = Self { common: Common::read(&options.common, effective, faults), ..Self::default() };
        faults.set(&mut config.worker_id, "WORKER_ID", worker_id, |text| values::printable(text, ID_LIMIT));
        let concurrency = &options.worker_concurrency;
        faults
            .set(&mut config.concurrency, "WORKER_CONCURRENCY", concurrency, |text| values::number(text, &(1..=1024)));
        let deliveries = &options.max_deliveries;
        faults.set(&mut config.max_deliveries, "MAX_DELIVERIES", deliveries, |text| values::number(text, &(2..=7)));
        let task_timeout = &options.task_timeout;
        faults.set(&mut config.task_timeout, "TASK_TIMEOUT", task_timeout, positive);
        let heartbeat = &options.heartbeat_interval;
        let heartbeats = |text: &str| values::duration(text, &HEARTBEATS);
        faults.set(&mut config.heartbeat_interval, "HEARTBEAT_INTERVAL", heartbeat, heartbeats);
        let drain = &options.drain_timeout;
        let drains = |text: &str| values::duration(text, &(Duration::ZERO..=WEEK));
        let drain_read = faults.set(&mut config.drain_timeout, "DRAIN_TIMEOUT", drain, drains);
        let grace = &options.stop_grace_period;
        let grace_read = faults.set(&mut config.stop_grace_period, "STOP_GRACE_PERIOD", grace, positive);
        let needed = config.drain_timeout + LEAVING;
        if drain_read && grace_read && needed > config.stop_grace_period {
            let problem = format!(
                "is too short: DRAIN_TIMEOUT {} + {} to leave = {}; expected at least {}, or a shorter DRAIN_TIMEOUT",
                show_duration(config.drain_timeout),
                show_duration(LEAVING),
                show_duration(needed),
                show_duration(needed)
            );
            faults.add("STOP_GRACE_PERIOD", grace, &problem);
        }
        if let Some(address) = &options.metrics_addr {
            let read = |text: &str| values::listen_address(text).map(Some);
            faults.set(&mut config.metrics_addr, "METRICS_ADDR", address, read);
        }
        config.health_file = options.health_file.as_ref().map(PathBuf::from);
        if let Some(path) = config.health_file.as_deref().filter(|_| options.common.check.check_config)
            && let Err(fault) = supervisor::check_health_file(path)
        {
            faults.note(fault);
        }
        if let Some(check) = &options.healthcheck {
            faults.set(&mut config.healthcheck, "HEALTHCHECK", check, |text| health_check(text).map(Some));
        }
        config
    }
}

impl GatewayConfig {
    fn read(options: &GatewayOptions, _: &Environment, effective: &mut Effective, faults: &mut Faults) -> Self {
        let mut config = Self { common: Common::read(&options.common, effective, faults), ..Self::default() };
        faults.set(&mut config.http_addr, "HTTP_ADDR", &options.http_addr, values::listen_address);
        if let Some(address) = &options.admin_addr {
            let read = |text: &str| values::listen_address(text).map(Some);
            faults.set(&mut config.admin_addr, "ADMIN_ADDR", address, read);
            if config.admin_addr == Some(config.http_addr) && config.http_addr.port() != 0 {
                faults.add("ADMIN_ADDR", address, "is HTTP_ADDR; expected another port or address");
            }
        }
        faults.set(&mut config.answer_timeout, "ANSWER_TIMEOUT", &options.answer_timeout, positive);
        let ready = &options.ready_without_kafka;
        faults.set(&mut config.ready_without_kafka, "READY_WITHOUT_KAFKA", ready, positive);
        // Below 1 s the gateway would ask Kafka all the time. Results are kept for an hour, and searched that far back.
        let missing = Duration::from_secs(1)..=Duration::from_secs(30 * 60);
        let missing = |text: &str| values::duration(text, &missing);
        faults.set(&mut config.missing_after, "MISSING_AFTER", &options.missing_after, missing);
        faults.set(&mut config.worker_timeout, "WORKER_TIMEOUT", &options.worker_timeout, positive);
        let max_waiting = &options.max_waiting;
        faults.set(&mut config.max_waiting, "MAX_WAITING", max_waiting, |text| values::number(text, &(1..=100_000)));
        let max_pending = &options.max_pending;
        faults.set(&mut config.max_pending, "MAX_PENDING", max_pending, |text| values::number(text, &(1..=10_000_000)));
        let max_keys = &options.max_keys;
        faults.set(&mut config.max_keys, "MAX_KEYS", max_keys, |text| values::number(text, &(1..=10_000_000)));
        let max_results = &options.max_results;
        faults
            .set(&mut config.max_results, "MAX_RESULTS", max_results, |text| values::number(text, &(1..=100_000_000)));
        let grace = &options.stop_grace_period;
        let read = faults.set(&mut config.stop_grace_period, "STOP_GRACE_PERIOD", grace, positive);
        if read && config.stop_grace_period < SHORTEST_GATEWAY_GRACE {
            let problem = format!(
                "is too short: the gateway answers callers until 6s before its end and needs 4s before that; expected at least {}",
                show_duration(SHORTEST_GATEWAY_GRACE)
            );
            faults.add("STOP_GRACE_PERIOD", grace, &problem);
        }
        if let Some(check) = &options.healthcheck {
            faults.set(&mut config.healthcheck, "HEALTHCHECK", check, |text| gateway_check(text).map(Some));
        }
        config
    }
}

impl Common {
    fn read(options: &CommonOptions, effective: &Effective, faults: &mut Faults) -> Self {
        let mut common = Self { effective: effective.clone(), ..Self::default() };
        let bootstrap = &options.kafka_bootstrap_servers;
        faults.set(&mut common.bootstrap, "KAFKA_BOOTSTRAP_SERVERS", bootstrap, BrokerAddress::list);
        common.read_topics(options, faults);
        let group = |text: &str| values::printable(text, LONGEST_GROUP);
        faults.set(&mut common.worker_group, "WORKER_GROUP", &options.worker_group, group);
        faults.set(&mut common.result_retention, "RESULT_RETENTION", &options.result_retention, positive);
        faults.set(&mut common.allow_work_ms, "ALLOW_WORK_MS", &options.allow_work_ms, values::switch);
        faults.set(&mut common.log_level, "LOG_LEVEL", &options.log_level, values::log_level);
        faults.set(&mut common.log_format, "LOG_FORMAT", &options.log_format, values::log_format);
        common.security = Security::read(&options.security, faults);
        if options.check.check_config {
            common.security.check_files(&options.security, faults);
        }
        common
    }

    fn read_topics(&mut self, options: &CommonOptions, faults: &mut Faults) {
        let (tasks, results) = (&options.tasks_topic, &options.results_topic);
        let tasks_read =
            faults.set(&mut self.tasks_topic, "TASKS_TOPIC", tasks, |text| values::topic(text, TASKS_TOPIC_LIMIT));
        let results_read = faults
            .set(&mut self.results_topic, "RESULTS_TOPIC", results, |text| values::topic(text, values::TOPIC_LIMIT));
        let taken = [self.tasks_topic.clone(), self.dead_topic(), self.starts_topic()];
        // Kafka refuses topics whose names differ only in "." and "_", since their metrics would have one name.
        let metric = |name: &str| name.replace('.', "_");
        if tasks_read
            && results_read
            && let Some(taken) = taken.iter().find(|taken| metric(taken) == metric(&self.results_topic))
        {
            let problem = format!("is the same as the topic {taken} to Kafka; expected another name");
            faults.add("RESULTS_TOPIC", results, &problem);
        }
        let partitions = &options.tasks_partitions;
        faults.set(&mut self.tasks_partitions, "TASKS_PARTITIONS", partitions, |text| {
            values::number(text, &(1..=10_000))
        });
        if let Some(factor) = &options.replication_factor {
            let replicas = |text: &str| values::number(text, &(1..=i16::MAX)).map(Some);
            faults.set(&mut self.replication_factor, "REPLICATION_FACTOR", factor, replicas);
        }
    }
}

/// The value of the gateway's `--healthcheck`.
fn gateway_check(text: &str) -> Read<HealthCheck> {
    // A path goes into a request line.
    let is_path = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_path {
        return Ok(HealthCheck::Path(text.to_owned()));
    }
    health_check(text).map_err(|problem| format!("{problem}, or a path, for example /health"))
}

/// The value of the worker's `--healthcheck`.
fn health_check(text: &str) -> Read<HealthCheck> {
    match text {
        "live" => Ok(HealthCheck::Live),
        "ready" => Ok(HealthCheck::Ready),
        _ => Err("is no health check; expected live or ready".to_owned()),
    }
}
