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
//! | [`kafka`] | the client: connections, producer, reader, share group |
//! | [`queue`] | topics and group settings, brought about before anything starts |
//! | [`task`] | the records of the topics |
//! | [`config`] | options of both programs |
//! | [`stop`], [`signals`], [`threads`], [`backoff`] | stopping, starting, waiting |
//! | [`logging`], [`exit`] | what the outside gets to see |

pub mod analysis;
pub mod backoff;
pub mod config;
pub mod exit;
pub mod gateway;
pub mod handler;
pub mod kafka;
pub mod logging;
pub mod queue;
pub mod signals;
pub mod stop;
pub mod task;
pub mod threads;
pub mod worker;
