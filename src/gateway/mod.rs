//! The gateway: takes tasks over HTTP, puts them on Kafka, and answers with the results that come back.
//!
//! ```text
//!              conn-N (one per connection)
//!  callers ──► request ──► routes ──► submit ──► producer ──► `tasks`
//!     ▲            waits │            │ parked in `waiting`
//!     └── answer ◄───────┴─ exchange ◄┴── results-tail ◄── `results`
//! ```
//!
//! | file | noun |
//! |---|---|
//! | `http` | connections: requests are read from them, responses written |
//! | `exchange` | a request that waits for its answer, wherever that comes from |
//! | `routes` | which request gets which answer |
//! | `analyze` | what `POST /analyze` may ask for |
//! | `answer` | a response: problem documents, results |
//! | `desk` | the one state behind one lock |
//! | `waiting` | callers under the ids of their tasks |
//! | `submit` | from a caller into Kafka |
//! | `kept` | the records of tasks without a result |
//! | `keyed` | idempotency keys: which gateway produces |
//! | `index` | where results stand, what is pending, who claimed |
//! | `fleet` | the workers as their statuses show them |
//! | `readers` | the tail, the past, the tasks |
//! | `lookup` | fetching stored results |
//! | `unanswered` | requests that a stop waits for |
//! | `unknown` | questions for tasks that only other gateways know |
//! | `sweep` | finding tasks that Kafka dropped |
//! | `start`, `stopping` | bringing the threads up, and the drain |
//! | `rate`, `metrics`, `page` | what the names say |
//!
//! [`run`] is all there is for callers: the `gateway` binary, and programs of one's own.

mod analyze;
mod answer;
mod desk;
mod exchange;
mod fleet;
mod http;
mod index;
mod kept;
mod keyed;
mod lookup;
mod metrics;
mod page;
mod rate;
mod readers;
mod routes;
mod start;
mod stopping;
mod submit;
mod sweep;
mod unanswered;
mod unknown;
mod waiting;

use crate::config::GatewayConfig;
use crate::exit::ExitCode;
use crate::healthcheck;
use crate::signals::Signals;

/// Runs a gateway until a signal stops it, and says how that went; with `config.healthcheck` asks the one that runs.
///
/// Kafka that cannot be reached is no fault: HTTP serves, and answers 503 where Kafka is needed.
///
/// Exit codes: [`ExitCode::Drained`] when every waiting caller was answered in time; [`ExitCode::Forced`] when a second signal found callers
/// waiting; [`ExitCode::Usage`] when the cluster cannot be used; [`ExitCode::Fatal`] when the port is in use or a thread died.
pub fn run(config: GatewayConfig, signals: Signals) -> ExitCode {
    if let Some(check) = config.healthcheck {
        return healthcheck::gateway(&config, check);
    }
    match start::start(config) {
        Ok(gateway) => stopping::run_until_stopped(gateway, &signals),
        Err(code) => code,
    }
}
