//! The gateway: takes tasks over HTTP, puts them on Kafka, and answers with the results that come back.
//!
//! | part | noun | imports |
//! |---|---|---|
//! | `lifecycle` | starting the threads, serving, the drain | all others |
//! | `http` | which request gets which response | those below |
//! | `tasks` | tasks on their way to Kafka, and results on their way back | those below |
//! | `response` | responses about tasks | |
//! | `overload` | whether a new task is accepted | |
//! | `dead` | the open dead letters, and the thread that reads them | `state` |
//! | `state` | whether the gateway serves, and whether Kafka answers | `metrics`, `dead` |
//! | `fleet`, `stops` | the workers, as their status records show them | |
//! | `history` | the last ten minutes | |
//! | `metrics` | figures | |
//!
//! Callers use only [`run`]: the `gateway` binary, and other programs.

mod dead;
mod fleet;
mod history;
mod http;
mod lifecycle;
mod metrics;
mod overload;
mod response;
mod state;
mod stops;
mod tasks;

pub(crate) use http::routes::is_for_operators;

use crate::config::GatewayConfig;
use crate::healthcheck;
use program::exit::ExitCode;
use program::signals::Signals;

/// Runs a gateway until a signal stops it. With `config.healthcheck` it checks the running gateway instead.
///
/// While Kafka is unreachable the gateway serves HTTP, and answers 503 where it needs Kafka.
///
/// Exit codes: [`ExitCode::Drained`] when every waiting caller was answered in time; [`ExitCode::Forced`] when a second
/// signal found callers waiting; [`ExitCode::Usage`] when the cluster cannot be used; [`ExitCode::Fatal`] when the port
/// is in use or a thread died.
pub fn run(config: GatewayConfig, signals: Signals) -> ExitCode {
    if let Some(check) = &config.healthcheck {
        return healthcheck::gateway(&config, check);
    }
    config.common.log_effective();
    match lifecycle::start(config) {
        Ok(gateway) => lifecycle::run_until_stopped(gateway, &signals),
        Err(code) => code,
    }
}
