//! A worker with its own handler: copy this file, and put your work into `handle`.
//!
//! This handler returns the text in upper case. Fetching, retries, results, heartbeats, stopping and the options (also
//! `--help`) are those of the `worker` program. Its own topics and group let it run beside the text analysis:
//!
//! ```text
//! export TASKS_TOPIC=shouts RESULTS_TOPIC=shouts.results WORKER_GROUP=shouters HTTP_ADDR=127.0.0.1:8081
//! cargo run --release --example shout &
//! cargo run --release --bin gateway &
//! curl -H 'Content-Type: application/json' -d '{"text": "come here"}' http://127.0.0.1:8081/analyze
//! ```
//!
//! answers `{"task_id":"…","success":true,"shouted":"COME HERE","processed_by":"…","seconds":…}`. All workers of a
//! group do the same work, so each kind of work needs its own topics and group.

use lastcall::config::WorkerConfig;
use lastcall::handler::{Context, Handler, HandlerError};
use lastcall::task::Task;
use lastcall::{logging, signals, worker};
use program::exit::ExitCode;
use serde_json::{Map, Value};

/// One value serves all handler threads; keep shared state here, behind a lock or an atomic.
struct Shout;

impl Handler for Shout {
    fn handle(&self, task: &Task, context: &Context) -> Result<Map<String, Value>, HandlerError> {
        if !task.text.chars().any(char::is_alphabetic) {
            // Retrying cannot help, so the caller gets the error at once. Use `HandlerError::Retry` for failures that
            // may pass, for example an unavailable service.
            return Err(HandlerError::Final("there is nothing to shout".to_owned()));
        }
        let mut shouted = String::with_capacity(task.text.len());
        for word in task.text.split_inclusive(' ') {
            // Long work checks from time to time whether the task was abandoned; then its result is dropped.
            context.abandoned.check().map_err(|stopped| HandlerError::Retry(stopped.to_string()))?;
            shouted.push_str(&word.to_uppercase());
        }
        // Members of the result, beside those of every result. Effects elsewhere (a payment, a file) should use
        // `task.task_id` as their key: after a crash a task may be handled again.
        Ok(Map::from_iter([("shouted".to_owned(), Value::from(shouted))]))
    }
}

fn main() -> ExitCode {
    // First of all: an earlier signal would end the process silently.
    signals::run(|signals| {
        let config = WorkerConfig::from_args();
        logging::init(config.common.log_level, config.common.log_format);
        worker::run(config, Shout, signals)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shout(text: &str, context: &Context) -> Result<Map<String, Value>, HandlerError> {
        let task = Task { task_id: "a".to_owned(), text: text.to_owned(), timestamp: 0.0, work_ms: None };
        Shout.handle(&task, context)
    }

    #[test]
    fn handler_returns_the_text_in_upper_case() {
        let answer = shout("come here, Ёж", &Context::new()).expect("there are letters");
        assert_eq!(answer.get("shouted"), Some(&Value::from("COME HERE, ЁЖ")));
    }

    #[test]
    fn text_without_letters_fails_for_good() {
        assert!(matches!(shout("123", &Context::new()), Err(HandlerError::Final(_))));
    }

    #[test]
    fn handler_ends_when_the_task_is_abandoned() {
        let context = Context::new();
        context.abandoned.trigger();
        assert!(matches!(shout("come here", &context), Err(HandlerError::Retry(_))));
    }
}
