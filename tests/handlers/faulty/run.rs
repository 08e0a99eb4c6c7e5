//! One run of one task, on a thread of its own, with what the defect makes of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lastcall::{
    analysis::Analysis,
    handler::{Context, Handler, HandlerError},
    journal::Journaled,
    logging::escape,
    task::{BadTask, Task, TaskResult, TaskStarted},
};
use parking_lot::Mutex;
use serde_json::{Map, Value};

use crate::{fault::Fault, outbox::Outbox};

/// How late a task starts that was delivered before.
const LATE_BY: Duration = Duration::from_secs(2);

/// What is to be done with the record.
pub enum Outcome {
    /// These are said, then the task is accepted.
    Results(Vec<TaskResult>),
    /// It goes to the dead-letter topic; with an error result if there is a task to answer.
    Dead { reason: String, task_id: Option<String> },
    /// It goes back to Kafka.
    Back,
}

/// What a run works with.
pub struct Run {
    pub fault: Fault,
    pub task: Result<Task, BadTask>,
    pub context: Context,
    pub analysis: Journaled<Analysis>,
    pub outbox: Outbox,
    pub worker_id: String,
    /// The members of the last result that this process made.
    pub last: Arc<Mutex<Option<Map<String, Value>>>>,
}

impl Run {
    /// Blocks for as long as the task takes.
    pub fn run(self) -> Outcome {
        let task = match &self.task {
            Ok(task) => task,
            Err(bad) => {
                let reason = format!("not a task: {}", bad.reason);
                return Outcome::Dead { reason, task_id: bad.task_id.clone() };
            }
        };
        match self.fault {
            Fault::DropOne => return Outcome::Results(Vec::new()),
            Fault::DeadLetters => {
                let reason = format!("given up after {} starts", self.context.delivery);
                return Outcome::Dead { reason, task_id: Some(task.task_id.clone()) };
            }
            Fault::LateStart if self.context.delivery > 1 && self.context.abandoned.sleep(LATE_BY).is_err() => {
                return Outcome::Back;
            }
            _ => {}
        }
        let runs = if self.fault == Fault::RunTwice { 2 } else { 1 };
        let results: Option<Vec<TaskResult>> = (0..runs).map(|_| self.run_once(task)).collect();
        match (results, self.fault) {
            (None, _) => Outcome::Back,
            (Some(mut results), Fault::Differ) => {
                results.extend(results.first().cloned().map(miscounted));
                Outcome::Results(results)
            }
            (Some(results), _) => Outcome::Results(results),
        }
    }

    /// `None`: not started, or abandoned.
    fn run_once(&self, task: &Task) -> Option<TaskResult> {
        let delivery = self.context.delivery;
        let level = if delivery > 1 { log::Level::Info } else { log::Level::Debug };
        let worker_id = &self.worker_id;
        log::log!(level, "Worker {worker_id} starts task {} at its delivery {delivery}", escape(&task.task_id));
        if delivery > 1 {
            let started = TaskStarted { task_id: task.task_id.clone(), delivery, worker_id: worker_id.clone() };
            let told = self.outbox.started(&started);
            // A start counts even if it is the last thing this process does.
            crossbeam_channel::select! {
                recv(told) -> in_kafka => in_kafka.ok().filter(|in_kafka| *in_kafka)?,
                recv(self.context.abandoned.triggered()) -> _ => return None,
            };
        }
        let began = Instant::now();
        let handled = self.analysis.handle(task, &self.context);
        let took = began.elapsed();
        // As the real one says it: whoever reads the log knows from it who is idle.
        log::debug!("Worker {worker_id} has run task {} for {} us", escape(&task.task_id), took.as_micros());
        let (output, error) = match handled {
            Ok(output) => (self.answer(output), None),
            Err(HandlerError::Final(error)) => (Map::new(), Some(error)),
            Err(HandlerError::Retry(_)) => return None,
        };
        Some(TaskResult {
            task_id: task.task_id.clone(),
            success: error.is_none(),
            error,
            output,
            processed_by: worker_id.clone(),
            seconds: took.as_secs_f64(),
        })
    }

    /// The members of the answer, given those that are right.
    fn answer(&self, right: Map<String, Value>) -> Map<String, Value> {
        let before = self.last.lock().replace(right.clone());
        match before {
            Some(before) if self.fault == Fault::WrongAnswer => before,
            _ => right,
        }
    }
}

/// The same result with one character more.
fn miscounted(mut result: TaskResult) -> TaskResult {
    let chars = result.output.get("chars").and_then(Value::as_u64).unwrap_or_default();
    result.output.insert("chars".to_owned(), (chars + 1).into());
    result
}
