//! A worker whose handler obeys the task's text. Only for tests of crashes and failures.
//!
//! `abort`, `panic`, `fail WHY`, `retry WHY`, `wait MILLISECONDS` (ends when abandoned), `sleep MILLISECONDS` (does
//! not), `stumble MILLISECONDS` (sleeps, then fails with a retry). Any other text succeeds. First of all the handler
//! prints each start on stdout: `handler started ID delivery N`.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "this handler crashes, sleeps without a stop and prints on purpose"
)]

use std::time::Duration;

use lastcall::{
    config::WorkerConfig,
    exit::ExitCode,
    handler::{Context, Handler, HandlerError},
    logging, signals,
    task::Task,
    worker,
};
use serde_json::{Map, Value};

struct Obedient;

impl Handler for Obedient {
    fn handle(&self, task: &Task, context: &Context) -> Result<Map<String, Value>, HandlerError> {
        println!("handler started {} delivery {}", task.task_id, context.delivery);
        let (order, rest) = task.text.split_once(' ').unwrap_or((&task.text, ""));
        match order {
            "abort" => std::process::abort(),
            "panic" => panic!("as ordered"),
            "fail" => Err(HandlerError::Final(rest.to_owned())),
            "retry" => Err(HandlerError::Retry(rest.to_owned())),
            "wait" => {
                // The abandoned task ends its wait; its outcome is dropped.
                let _ = context.abandoned.sleep(time(rest)?);
                Ok(Map::new())
            }
            "sleep" => {
                std::thread::sleep(time(rest)?);
                Ok(Map::new())
            }
            "stumble" => {
                std::thread::sleep(time(rest)?);
                Err(HandlerError::Retry("as ordered".to_owned()))
            }
            _ => Ok(Map::from_iter([("obeyed".to_owned(), Value::from(true))])),
        }
    }
}

fn time(text: &str) -> Result<Duration, HandlerError> {
    text.parse()
        .map(Duration::from_millis)
        .map_err(|_| HandlerError::Final(format!("{text:?} is not a number of milliseconds")))
}

fn main() -> ExitCode {
    signals::run(|signals| {
        let config = WorkerConfig::from_args();
        logging::init(config.common.log_level, config.common.log_format);
        worker::run(config, Obedient, signals)
    })
}
