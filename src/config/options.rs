//! The options as text: names, defaults and the text of `--help`. [`parse`](super::parse) turns the texts into values
//! later, so that all faults are reported.
//!
//! `--help` shows each doc comment below. An option's variable is its flag in capitals, with `_` for `-`.

use clap::{Args, Parser};
use program::options::CheckOptions;

/// Options of both programs.
#[derive(Args)]
#[command(next_help_heading = "Kafka")]
pub(super) struct CommonOptions {
    /// Brokers to ask first; one reachable broker is enough
    #[arg(long, env = "KAFKA_BOOTSTRAP_SERVERS", value_name = "HOST:PORT,...", default_value = "127.0.0.1:9092")]
    pub kafka_bootstrap_servers: String,
    /// Topic of the tasks; created when missing, with <TASKS_TOPIC>.dead and <TASKS_TOPIC>.starts beside it
    #[arg(long, env = "TASKS_TOPIC", value_name = "TOPIC", default_value = "tasks")]
    pub tasks_topic: String,
    /// Topic of results and status records; created when missing
    #[arg(long, env = "RESULTS_TOPIC", value_name = "TOPIC", default_value = "results")]
    pub results_topic: String,
    /// Partitions of the tasks topic when it is created
    #[arg(long, env = "TASKS_PARTITIONS", value_name = "NUMBER", default_value = "1")]
    pub tasks_partitions: String,
    /// Replicas of each topic that is created [default: the broker's]
    #[arg(long, env = "REPLICATION_FACTOR", value_name = "NUMBER")]
    pub replication_factor: Option<String>,
    /// Share group (KIP-932) that all workers join
    #[arg(long, env = "WORKER_GROUP", value_name = "GROUP", default_value = "workers")]
    pub worker_group: String,
    /// How long results can be fetched; give all programs the same value
    #[arg(long, env = "RESULT_RETENTION", value_name = "DURATION", default_value = "10m")]
    pub result_retention: String,
    #[command(flatten)]
    pub security: SecurityOptions,
    /// 1: accept work_ms in a task, the time it takes in addition; for demonstrations and drills
    #[arg(
        long,
        env = "ALLOW_WORK_MS",
        value_name = "0|1",
        default_value = "0",
        num_args = 0..=1,
        default_missing_value = "1",
        help_heading = "Tasks"
    )]
    pub allow_work_ms: String,
    /// How much is logged: off, error, warn, info, debug or trace
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL", default_value = "info", help_heading = "Running")]
    pub log_level: String,
    /// How each line of the log is written: text, or json (an object with timestamp, level and message)
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT", default_value = "text", help_heading = "Running")]
    pub log_format: String,
    #[command(flatten)]
    pub check: CheckOptions,
}

/// The options that secure connections to Kafka, for each program that connects. `hide_env_values` marks those whose
/// values no log shows.
#[derive(Args)]
#[command(next_help_heading = "Kafka")]
pub struct SecurityOptions {
    /// How connections are secured: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL
    #[arg(long, env = "KAFKA_SECURITY_PROTOCOL", value_name = "PROTOCOL", default_value = "PLAINTEXT")]
    pub(super) kafka_security_protocol: String,
    /// PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER
    #[arg(long, env = "KAFKA_SASL_MECHANISM", value_name = "MECHANISM")]
    pub(super) kafka_sasl_mechanism: Option<String>,
    /// User name for PLAIN and SCRAM
    #[arg(long, env = "KAFKA_SASL_USERNAME", value_name = "NAME", hide_env_values = true)]
    pub(super) kafka_sasl_username: Option<String>,
    /// File with the password for PLAIN and SCRAM
    #[arg(long, env = "KAFKA_SASL_PASSWORD_FILE", value_name = "PATH", hide_env_values = true)]
    pub(super) kafka_sasl_password_file: Option<String>,
    /// File with the token for OAUTHBEARER, read at each login
    #[arg(long, env = "KAFKA_SASL_TOKEN_FILE", value_name = "PATH", hide_env_values = true)]
    pub(super) kafka_sasl_token_file: Option<String>,
    /// Command that prints the token for OAUTHBEARER within 10s, run by sh at each login
    #[arg(long, env = "KAFKA_SASL_TOKEN_COMMAND", value_name = "COMMAND", hide_env_values = true)]
    pub(super) kafka_sasl_token_command: Option<String>,
    /// File with the certificates of the trusted authorities, in PEM; the system's authorities if unset
    #[arg(long, env = "KAFKA_SSL_CA_FILE", value_name = "PATH")]
    pub(super) kafka_ssl_ca_file: Option<String>,
    /// File with the program's certificate and its issuers', in PEM
    #[arg(long, env = "KAFKA_SSL_CERTIFICATE_FILE", value_name = "PATH")]
    pub(super) kafka_ssl_certificate_file: Option<String>,
    /// File with the key of the program's certificate, in PEM, not encrypted
    #[arg(long, env = "KAFKA_SSL_KEY_FILE", value_name = "PATH", hide_env_values = true)]
    pub(super) kafka_ssl_key_file: Option<String>,
}

/// Takes tasks from Kafka, runs them, and sends the results. Any number can run; each can be stopped at any moment.
#[derive(Parser)]
#[command(name = "worker", version, args_override_self = true, next_line_help = true, after_help = AFTER_WORKER)]
pub(super) struct WorkerOptions {
    #[command(flatten)]
    pub common: CommonOptions,
    /// Name in status records, results and logs; different for each worker [default: the host name]
    #[arg(long, env = "WORKER_ID", value_name = "NAME", help_heading = "Running")]
    pub worker_id: Option<String>,
    /// Tasks handled at once
    #[arg(long, env = "WORKER_CONCURRENCY", value_name = "NUMBER", default_value = "1", help_heading = "Tasks")]
    pub worker_concurrency: String,
    /// Starts of one task before it is dead-lettered, 2 to 7
    #[arg(long, env = "MAX_DELIVERIES", value_name = "NUMBER", default_value = "5", help_heading = "Tasks")]
    pub max_deliveries: String,
    /// After this time a running task goes to another worker, and this worker is not live until the handler returns
    #[arg(long, env = "TASK_TIMEOUT", value_name = "DURATION", default_value = "10m", help_heading = "Tasks")]
    pub task_timeout: String,
    /// How often the status record is repeated
    #[arg(long, env = "HEARTBEAT_INTERVAL", value_name = "DURATION", default_value = "1s", help_heading = "Running")]
    pub heartbeat_interval: String,
    /// How long tasks in flight may continue after a signal before they are released
    #[arg(long, env = "DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s", help_heading = "Stopping")]
    pub drain_timeout: String,
    /// What the orchestrator allows from the signal to the kill; DRAIN_TIMEOUT + 5s must fit inside
    #[arg(long, env = "STOP_GRACE_PERIOD", value_name = "DURATION", default_value = "45s", help_heading = "Stopping")]
    pub stop_grace_period: String,
    /// Address that serves GET /metrics [default: none]
    #[arg(long, env = "METRICS_ADDR", value_name = "IP:PORT", help_heading = "Running")]
    pub metrics_addr: Option<String>,
    /// A file that is refreshed every second while the worker is live, for --healthcheck [default: none]
    #[arg(long, env = "HEALTH_FILE", value_name = "PATH", help_heading = "Running")]
    pub health_file: Option<String>,
    /// Do not run: check that the worker with this HEALTH_FILE is live, or (=ready) takes tasks; exit code 0 or 1
    #[arg(
        long,
        value_name = "live|ready",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "live",
        help_heading = "Running"
    )]
    pub healthcheck: Option<String>,
}

/// Takes tasks over HTTP, passes them to the workers through Kafka, and answers with the results.
#[derive(Parser)]
#[command(name = "gateway", version, args_override_self = true, next_line_help = true, after_help = AFTER_GATEWAY)]
pub(super) struct GatewayOptions {
    #[command(flatten)]
    pub common: CommonOptions,
    /// Address to listen on
    #[arg(long, env = "HTTP_ADDR", value_name = "IP:PORT", default_value = "127.0.0.1:8080", help_heading = "HTTP")]
    pub http_addr: String,
    /// Address for operators: with it the page, /workers/status, /metrics and /dead are served there only [default: none]
    #[arg(long, env = "ADMIN_ADDR", value_name = "IP:PORT", help_heading = "HTTP")]
    pub admin_addr: Option<String>,
    /// How long POST /analyze waits for the result
    #[arg(long, env = "ANSWER_TIMEOUT", value_name = "DURATION", default_value = "10s", help_heading = "HTTP")]
    pub answer_timeout: String,
    /// Callers that wait at once; more get 503 with Retry-After
    #[arg(long, env = "MAX_WAITING", value_name = "NUMBER", default_value = "1024", help_heading = "HTTP")]
    pub max_waiting: String,
    /// Tasks without a result before more get 503 with Retry-After
    #[arg(long, env = "MAX_PENDING", value_name = "NUMBER", default_value = "100000", help_heading = "HTTP")]
    pub max_pending: String,
    /// Idempotency keys that are remembered before new ones get 503 with Retry-After
    #[arg(long, env = "MAX_KEYS", value_name = "NUMBER", default_value = "100000", help_heading = "HTTP")]
    pub max_keys: String,
    /// Results whose positions in Kafka are remembered, some 120 bytes each; older results are searched for on request
    #[arg(long, env = "MAX_RESULTS", value_name = "NUMBER", default_value = "1000000", help_heading = "HTTP")]
    pub max_results: String,
    /// How long Kafka may be unavailable before /readyz answers 503
    #[arg(long, env = "READY_WITHOUT_KAFKA", value_name = "DURATION", default_value = "15s", help_heading = "HTTP")]
    pub ready_without_kafka: String,
    /// A task without a result for this long is searched for in Kafka, and produced again if dropped; 1s to 30m
    #[arg(long, env = "MISSING_AFTER", value_name = "DURATION", default_value = "60s", help_heading = "Running")]
    pub missing_after: String,
    /// A worker without a status record for this long is shown as not responsive
    #[arg(long, env = "WORKER_TIMEOUT", value_name = "DURATION", default_value = "5s", help_heading = "Running")]
    pub worker_timeout: String,
    /// What the orchestrator allows from the signal to the kill; at least 10s
    #[arg(long, env = "STOP_GRACE_PERIOD", value_name = "DURATION", default_value = "30s", help_heading = "Stopping")]
    pub stop_grace_period: String,
    /// Do not run: check that the gateway at HTTP_ADDR is ready, or (=live) only live, or print its response to GET of a path; exit code 0 or 1
    #[arg(
        long,
        value_name = "live|ready|/PATH",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "ready",
        help_heading = "Running"
    )]
    pub healthcheck: Option<String>,
}

/// The end of the worker's `--help`; a test ties the codes to [`ExitCode`](program::exit::ExitCode).
const AFTER_WORKER: &str = "\
Durations are whole numbers with ms, s, m or h. A flag counts before its variable; an empty variable counts as unset.

Exit codes:
  0  stopped by a signal and drained
  1  fatal error while running (one line says which)
  2  wrong usage or configuration
  3  drain timeout passed, work abandoned
  4  second signal, work abandoned (nothing in flight: 0)

Signals: SIGTERM, SIGINT and SIGHUP stop gracefully; a second signal stops at once.

Example:
  worker --worker-id worker_1 --kafka-bootstrap-servers kafka-1:9092,kafka-2:9092 --worker-concurrency 4";

/// The end of the gateway's `--help`.
const AFTER_GATEWAY: &str = "\
Durations are whole numbers with ms, s, m or h. A flag counts before its variable; an empty variable counts as unset.

Exit codes:
  0  stopped by a signal and drained
  1  fatal error while running (one line says which)
  2  wrong usage or configuration
  4  second signal, waiting callers were answered 503 (nobody waiting: 0)

Signals: SIGTERM, SIGINT and SIGHUP stop gracefully; a second signal stops at once.

Example:
  gateway --http-addr 0.0.0.0:8080 --kafka-bootstrap-servers kafka-1:9092,kafka-2:9092
  curl -d '{\"text\": \"the quick brown fox\"}' -H 'Content-Type: application/json' http://127.0.0.1:8080/analyze";
