//! The worker: takes tasks from the share group, runs them through a [`Handler`], and stops without losing a task.
//!
//! ```text
//!            ShareFetch (accepts ride along)
//!  Kafka ─────────────► intake-N ──jobs──► handler-1..N ──records──► outbox ──Produce──► Kafka `results`
//!    ▲                       ▲                                          │
//!    └── accept / release ───┴──────────── in Kafka: accept is due ◄────┘
//!  leaders, intakes: one intake-N for each broker N that leads a partition
//!  membership: ShareGroupHeartbeat   status: notifications and heartbeats   watchdog: last deadline
//! ```
//!
//! Callers use only [`run`]: the `worker` binary, the examples, and programs with their own handlers.

mod bells;
mod drain;
mod early_watchdog;
mod handlers;
mod in_flight;
mod intake;
mod intakes;
mod leaders;
mod membership;
mod metrics;
mod outbox;
mod past;
mod pulse;
mod quiet;
mod repair;
mod settling;
mod start;
mod status;
mod stopping;
mod upkeep;

use crate::config::WorkerConfig;
use crate::handler::Handler;
use crate::healthcheck;
use program::exit::ExitCode;
use program::signals::Signals;

/// Runs a worker until a signal stops it. With `config.healthcheck` it checks the running worker instead. SIGUSR1 makes
/// it quiet: it takes no new tasks until SIGUSR2.
///
/// `handler` runs on `config.concurrency` threads at once. The receipt is the last line on stdout; later log lines are
/// not written. Only handlers that were abandoned at the deadline still run when this returns. They end with the
/// process, so return the exit code from `main` at once.
///
/// Exit codes: [`ExitCode::Drained`] after a signal, with every task finished or released; [`ExitCode::Fatal`] when a
/// thread died or Kafka refused a request that retrying cannot fix; [`ExitCode::Usage`] when the cluster cannot be used
/// (no share groups, a delivery limit that is too low); [`ExitCode::Abandoned`] and [`ExitCode::Forced`] when work was
/// abandoned at the deadline or by a second signal.
pub fn run(config: WorkerConfig, handler: impl Handler, signals: Signals) -> ExitCode {
    if let Some(check) = &config.healthcheck {
        return healthcheck::worker(&config, check);
    }
    config.common.log_effective();
    match start::start(&config, handler, &signals) {
        start::Started::Running(worker) => stopping::run_until_stopped(*worker, &config, &signals),
        start::Started::Stopped(armed) => start::say_stopped_early(&config, &signals, armed),
        start::Started::Failed(code) => code,
    }
}
