//! The gateway: takes tasks over HTTP, puts them on Kafka, and answers with the results that come back.
//!
//! ```text
//!            ┌─ http ──► submit ──► producer ──► `tasks`
//!  callers ──┤             │ parked in `waiting`
//!            └─ answer-N ◄─┴── desk ◄── results-tail ◄── `results`
//! ```
//!
//! | file | noun |
//! |---|---|
//! | `http` | listener, dispatcher, large bodies, answering threads, the watch of the own port |
//! | `analyze` | what `POST /analyze` may ask for |
//! | `answer` | a response: problem documents, results |
//! | `connections` | the order of answers on each connection |
//! | `desk` | the one state behind one lock, and the way in which answers leave |
//! | `waiting` | callers under the ids of their tasks |
//! | `submit` | from a caller into Kafka, idempotency keys |
//! | `index` | where results stand, what is pending, who claimed |
//! | `fleet` | the workers as their statuses show them |
//! | `readers` | the tail, the past, the tasks |
//! | `lookup` | fetching stored results |
//! | `sweep` | finding tasks that Kafka dropped |
//! | `rate`, `metrics`, `page` | what the names say |
//!
//! [`run`] is all there is for callers: the `gateway` binary, and programs of one's own.

mod analyze;
mod answer;
mod connections;
mod desk;
mod fleet;
mod http;
mod index;
mod lookup;
mod metrics;
mod page;
mod rate;
mod readers;
mod start;
mod stopping;
mod submit;
mod sweep;
mod waiting;

use crate::config::GatewayConfig;
use crate::exit::ExitCode;
use crate::signals::Signals;

/// Runs a gateway until a signal stops it, and says how that went.
///
/// Kafka that cannot be reached is no fault: HTTP serves, and answers 503 where Kafka is needed.
///
/// Exit codes: [`ExitCode::Drained`] when every waiting caller was answered in time; [`ExitCode::Forced`] when a second signal found callers
/// waiting; [`ExitCode::Usage`] when the cluster cannot be used; [`ExitCode::Fatal`] when the port is in use or a thread died.
pub fn run(config: GatewayConfig, signals: Signals) -> ExitCode {
    match start::start(config) {
        Ok(gateway) => stopping::run_until_stopped(gateway, &signals),
        Err(code) => code,
    }
}
