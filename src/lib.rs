//! `lastcall` runs tasks for callers over HTTP on a fleet of workers that can be stopped at any moment without losing one.
//!
//! The programs are `gateway` and `worker`; each is one call of this library. A worker for work of one's own is a [`Handler`](handler::Handler)
//! and the same call:
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
//! fn main() -> Result<ExitCode, signals::SignalsError> {
//!     let signals = signals::install()?;
//!     let config = WorkerConfig::from_args();
//!     logging::init(config.common.log_level);
//!     Ok(worker::run(config, length, signals))
//! }
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`gateway`] | takes tasks over HTTP, answers with their results, stops without leaving a caller behind |
//! | [`worker`] | takes tasks from the share group, runs them, says the results, stops |
//! | [`handler`], [`analysis`] | the work: the trait, and the one that ships |
//! | [`journal`] | a handler's starts and ends in a file, for drills |
//! | [`queue`] | topics and group settings, brought about before anything starts |
//! | [`task`] | the records of the topics |
//! | [`config`] | options of both programs |
//! | [`supervisor`], [`healthcheck`] | what whoever supervises a process is told, and can ask |
//! | [`exit`], [`logging`], [`signals`], [`stop`] | of the crate `program`, which all programs share |
//!
//! The client of Kafka is the crate `kafka-share`. The crates `devbroker` and `drill` are programs beside these two.

pub mod analysis;
pub mod config;
pub mod gateway;
pub mod handler;
pub mod healthcheck;
pub mod journal;
mod outage;
pub mod queue;
pub mod supervisor;
pub mod task;
pub mod worker;

pub use program::{exit, logging, signals, stop};
