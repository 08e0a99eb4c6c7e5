//! The gateway: takes tasks over HTTP, puts them on Kafka, and answers with the results that come back.
//!
//! ```text
//!             conn-N (one per connection)
//!  callers ──► http ──► routes ──► submit ──► producer ──► `tasks`
//!     ▲                              │ parked in `waiting`
//!     └──────── reply ◄──────────────┴── results-tail ◄── `results`
//! ```
//!
//! | file | noun |
//! |---|---|
//! | `http` | connections: requests are read from them, responses written |
//! | `routes` | which request gets which answer |
//! | `analyze` | what `POST /analyze` may ask for |
//! | `answer` | a response: problem documents, results |
//! | `reply` | the way back to one caller |
//! | `parting` | what a caller is told that leaves without what it waited for |
//! | `desk` | the one state behind one lock |
//! | `waiting` | the replies that wait, and for what |
//! | `submit` | from a caller into Kafka |
//! | `kept` | the records of tasks without a result |
//! | `keyed` | idempotency keys: which gateway produces |
//! | `index` | where results stand, what is pending, who claimed |
//! | `fleet` | the workers as their statuses show them |
//! | `readers` | the tail, the past, the tasks |
//! | `lookup` | what is asked by a task's id; fetching stored results |
//! | `unanswered` | requests that a stop waits for |
//! | `sweep` | finding tasks that Kafka dropped |
//! | `start`, `stopping` | bringing the threads up, and the drain |
//! | `rate`, `metrics`, `page` | what the names say |
//!
//! [`run`] is all there is for callers: the `gateway` binary, and programs of one's own.

mod analyze;
mod answer;
mod desk;
mod fleet;
mod http;
mod index;
mod kept;
mod keyed;
mod lookup;
mod metrics;
mod page;
mod parting;
mod rate;
mod readers;
mod reply;
mod routes;
mod start;
mod stopping;
mod submit;
mod sweep;
mod unanswered;
mod waiting;

use crate::config::GatewayConfig;
use crate::exit::ExitCode;
use crate::healthcheck;
use crate::signals::Signals;

/// Runs a gateway until a signal stops it, and says how that went; with `config.healthcheck` asks the one that runs.
///
/// Kafka that cannot be reached is no fault: HTTP serves, and answers 503 where Kafka is needed.
///
/// Exit codes: [`ExitCode::Drained`] when every waiting caller was answered in time; [`ExitCode::Forced`] when a second
/// signal found callers waiting; [`ExitCode::Usage`] when the cluster cannot be used; [`ExitCode::Fatal`] when the port
/// is in use or a thread died.
pub fn run(config: GatewayConfig, signals: Signals) -> ExitCode {
    if let Some(check) = config.healthcheck {
        return healthcheck::gateway(&config, check);
    }
    match start::start(config) {
        Ok(gateway) => stopping::run_until_stopped(gateway, &signals),
        Err(code) => code,
    }
}
