//! `lastcall` runs tasks for HTTP callers on a fleet of workers; a worker can stop at any moment without losing a task.
//!
//! The programs are `gateway`, `worker` and `dead`; each is one call of this library. A worker for other work is a
//! [`Handler`](handler::Handler) and the same call:
//!
//! ```no_run
//! use lastcall::config::WorkerConfig;
//! use lastcall::handler::{Context, HandlerError};
//! use lastcall::task::Task;
//! use lastcall::{exit::ExitCode, logging, signals, worker};
//! use serde_json::{Map, Value};
//!
//! fn length(task: &Task, _: &Context) -> Result<Map<String, Value>, HandlerError> {
//!     Ok(Map::from_iter([("bytes".to_owned(), task.text.len().into())]))
//! }
//!
//! fn main() -> ExitCode {
//!     signals::run(|signals| {
//!         let config = WorkerConfig::from_args();
//!         logging::init(config.common.log_level, config.common.log_format);
//!         worker::run(config, length, signals)
//!     })
//! }
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`gateway`] | takes tasks over HTTP, answers with their results, answers every caller before it stops |
//! | [`worker`] | takes tasks from the share group, runs them, sends the results, stops |
//! | [`dead`] | lists, shows, replays and drops dead letters |
//! | [`handler`], [`analysis`] | the trait of handlers, and the shipped handler |
//! | [`journal`] | a file with the starts and ends of a handler, for drills |
//! | [`queue`] | topics and group settings, prepared before tasks are accepted or fetched |
//! | [`task`] | the records of the topics |
//! | [`config`] | options of both programs |
//! | [`supervisor`], [`healthcheck`] | reports to service managers, and health checks |
//! | [`exit`], [`logging`], [`signals`], [`stop`] | from the crate `program`, which all programs share |
//!
//! The Kafka client is the crate `kafka-share`. The crates `devbroker` and `drill` are further programs.

pub mod analysis;
pub mod config;
pub mod dead;
pub mod gateway;
pub mod handler;
pub mod healthcheck;
mod http;
pub mod journal;
mod metrics;
mod outage;
pub mod queue;
pub mod supervisor;
pub mod task;
mod trace;
pub mod worker;

pub use program::{exit, logging, signals, stop};
