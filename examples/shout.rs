//! A worker for work of your own: copy this file, and put your work into `handle`.
//!
//! This one answers with the text in upper case. Fetching, retries, results, heartbeats, stopping and the options are those of the
//! `worker` program, `--help` included. Topics and group are its own here, so that it can run beside text analysis:
//!
//! ```text
//! export TASKS_TOPIC=shouts RESULTS_TOPIC=shouts.results WORKER_GROUP=shouters HTTP_ADDR=127.0.0.1:8081
//! cargo run --release --example shout &
//! cargo run --release --bin gateway &
//! curl -H 'Content-Type: application/json' -d '{"text": "come here"}' http://127.0.0.1:8081/analyze
//! ```
//!
//! answers `{"task_id":"…","success":true,"shouted":"COME HERE","processed_by":"…","seconds":…}`. Workers of one group all do the
//! same work: give each kind of work its topics and its group.

use std::io::Write;

use lastcall::config::WorkerConfig;
use lastcall::handler::{Context, Handler, HandlerError};
use lastcall::task::Task;
use lastcall::{logging, signals, worker};
use program::exit::ExitCode;
use serde_json::{Map, Value};

/// One value serves all handler threads: what they share stands here, behind a lock or an atomic.
struct Shout;

impl Handler for Shout {
    fn handle(&self, task: &Task, context: &Context) -> Result<Map<String, Value>, HandlerError> {
        if !task.text.chars().any(char::is_alphabetic) {
            // Trying again would change nothing: the caller gets this at once. For what may pass, a service that is down for
            // example, there is `HandlerError::Retry`.
            return Err(HandlerError::Final("there is nothing to shout".to_owned()));
        }
        let mut shouted = String::with_capacity(task.text.len());
        for word in task.text.split_inclusive(' ') {
            // Work that takes long looks from time to time whether anybody still waits for it. What it returns then is dropped.
            context.abandoned.check().map_err(|stopped| HandlerError::Retry(stopped.to_string()))?;
            shouted.push_str(&word.to_uppercase());
        }
        // Members of the answer, beside those that every answer has. Work with effects elsewhere (a payment, a file) should use
        // `task.task_id` as their key: after a crash a task may be handled again.
        Ok(Map::from_iter([("shouted".to_owned(), Value::from(shouted))]))
    }
}

fn main() -> ExitCode {
    // First of all: a signal that comes before this would end the process without a word.
    let signals = match signals::install() {
        Ok(signals) => signals,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            return ExitCode::Fatal;
        }
    };
    let config = WorkerConfig::from_args();
    logging::init(config.common.log_level);
    worker::run(config, Shout, signals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shout(text: &str, context: &Context) -> Result<Map<String, Value>, HandlerError> {
        let task = Task { task_id: "a".to_owned(), text: text.to_owned(), timestamp: 0.0, work_ms: None };
        Shout.handle(&task, context)
    }

    #[test]
    fn it_shouts() {
        let answer = shout("come here, Ёж", &Context::new()).expect("there are letters");
        assert_eq!(answer.get("shouted"), Some(&Value::from("COME HERE, ЁЖ")));
    }

    #[test]
    fn silence_is_final() {
        assert!(matches!(shout("123", &Context::new()), Err(HandlerError::Final(_))));
    }

    #[test]
    fn it_ends_when_nobody_waits() {
        let context = Context::new();
        context.abandoned.trigger();
        assert!(matches!(shout("come here", &context), Err(HandlerError::Retry(_))));
    }
}
