//! The gateway: takes tasks over HTTP, puts them on Kafka, and answers with the results that come back.
//!
//! | part | noun | imports |
//! |---|---|---|
//! | `lifecycle` | starting the threads, serving, the drain | all others |
//! | `http` | connections: requests are read from them, responses written | those below |
//! | `tasks` | what is known of tasks, on their way to Kafka and back | those below |
//! | `reply` | the way back to one caller | `response` |
//! | `response` | what a caller gets: problem documents, results | |
//! | `overload` | whether one more task is taken | |
//! | `fleet` | the workers as their statuses show them | |
//! | `state` | whether the gateway serves, and whether Kafka answers | `metrics` |
//! | `metrics` | figures | |
//!
//! [`run`] is all there is for callers: the `gateway` binary, and programs of one's own.

mod fleet;
mod http;
mod lifecycle;
mod metrics;
mod overload;
mod reply;
mod response;
mod state;
mod tasks;

use crate::config::GatewayConfig;
use crate::healthcheck;
use program::exit::ExitCode;
use program::signals::Signals;

/// Runs a gateway until a signal stops it, and says how that went; with `config.healthcheck` asks the one that runs.
///
/// Kafka that cannot be reached is no fault: HTTP serves, and answers 503 where Kafka is needed.
///
/// Exit codes: [`ExitCode::Drained`] when every waiting caller was answered in time; [`ExitCode::Forced`] when a second
/// signal found callers waiting; [`ExitCode::Usage`] when the cluster cannot be used; [`ExitCode::Fatal`] when the port
/// is in use or a thread died.
pub fn run(config: GatewayConfig, signals: Signals) -> ExitCode {
    if let Some(check) = &config.healthcheck {
        return healthcheck::gateway(&config, check);
    }
    match lifecycle::start(config) {
        Ok(gateway) => lifecycle::run_until_stopped(gateway, &signals),
        Err(code) => code,
    }
}
