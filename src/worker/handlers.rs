//! The handler threads: each takes a record, checks its earlier starts if it was delivered before, runs the handler,
//! and passes the outcome to the outbox.
//!
//! A panic in the handler fails the task, not the worker. The account ([`super::in_flight`]) decides the record's
//! outcome: it drops the outcome of a task that was released while it ran.

use super::drain::Control;
use super::in_flight::{Claim, InFlight, Run};
use super::intake::Job;
use super::metrics::{Ended, Metrics};
use super::outbox::{Announced, Outbox, OutboxClosed, error_result};
use super::past::{Decision, Past};
use crate::handler::{Context, Handler, HandlerError};
use crate::task::{BadTask, Task, TaskFailed, TaskResult, TaskStarted};
use crossbeam_channel::Receiver;
use kafka_share::cluster::Cluster;
use program::logging::escape;
use program::threads::panic_message;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// First rest of a failed task that is tried again; doubled with each further delivery.
const FIRST_REST: Duration = Duration::from_millis(100);
/// Longest rest.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// A handler thread.
pub(super) struct HandlerThread<H> {
    pub(super) handler: Arc<H>,
    pub(super) jobs: Receiver<Job>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) control: Arc<Control>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) outbox: Outbox,
    /// For reading earlier starts; connects on first use.
    pub(super) cluster: Cluster,
    pub(super) worker_id: Arc<str>,
    pub(super) max_deliveries: u16,
    /// From this delivery on, a record that cannot be started is sent again: the broker drops it at its next release.
    pub(super) last_delivery: u16,
}

/// The outcome of one call of the handler.
enum Outcome {
    Output(serde_json::Map<String, serde_json::Value>),
    Final(String),
    Retry(String),
}

impl<H: Handler> HandlerThread<H> {
    /// Works until the intake closes the channel or the outbox closes.
    pub(super) fn run(self) -> Result<(), OutboxClosed> {
        while let Ok(job) = self.jobs.recv() {
            self.process(&job)?;
            // Rings when an intake may have work: fetch for an idle handler, or refill the window.
            if self.jobs.len() <= self.control.low_water() {
                self.control.ring();
            }
        }
        Ok(())
    }

    fn process(&self, job: &Job) -> Result<(), OutboxClosed> {
        let delivery = job.record.delivery_count;
        if !self.outbox.wait_for_rights(&self.control.draining, || !self.must_release(job)) {
            self.in_flight.take_back(job.key, delivery);
            return Ok(());
        }
        if delivery > 1 {
            self.metrics.redelivered();
        }
        let decoded = Task::decode(job.record.key.as_deref(), job.record.value.as_deref());
        let decoded = match &job.record.fault {
            Some(fault) if !self.in_flight.is_last(job.key) => {
                self.rest_damaged(job, fault);
                return Ok(());
            }
            Some(fault) => {
                let task_id = decoded.map_or_else(|bad| bad.task_id, |task| Some(task.task_id));
                Err(BadTask { reason: fault.clone(), task_id })
            }
            None => decoded,
        };
        match decoded {
            Err(bad) => {
                if let Claim::Yours(run) = self.claim(job, bad.task_id.as_deref(), true) {
                    let reason = format!("not a task: {}", bad.reason);
                    self.give_up(job, &run, bad.task_id.as_deref(), &reason)?;
                }
                Ok(())
            }
            Ok(task) if delivery > 1 => self.vet(job, &task),
            Ok(task) => {
                if let Claim::Yours(run) = self.claim(job, Some(&task.task_id), false) {
                    self.execute(job, &run, &task)
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Whether the record is to be released unstarted. A stopping or quiet worker starts no task, but still copies a
    /// record at its last delivery.
    fn must_release(&self, job: &Job) -> bool {
        !self.control.may_start() && !self.in_flight.is_last(job.key)
    }

    /// Claims the record, unless it is to be released.
    fn claim(&self, job: &Job, task_id: Option<&str>, vetting: bool) -> Claim {
        let (key, delivery) = (job.key, job.record.delivery_count);
        if self.must_release(job) && self.in_flight.take_back(key, delivery) {
            self.control.ring();
            return Claim::Gone;
        }
        let named = task_id.map(|task_id| job.named(task_id));
        self.in_flight.claim((key, delivery), named, vetting, job.now())
    }

    /// Releases a damaged record after a rest: if this answer or this leader's disk is damaged, it may come intact
    /// later.
    fn rest_damaged(&self, job: &Job, fault: &str) {
        let Claim::Yours(run) = self.claim(job, None, true) else { return };
        let (offset, delivery) = (job.key.offset, job.record.delivery_count);
        let rest = rest_after(delivery);
        if self.in_flight.rest(job.key, &run, Instant::now() + rest, None) {
            log::warn!(
                "offset {offset} of the tasks cannot be read at its delivery {delivery} ({}); it is released in {} ms",
                escape(fault),
                rest.as_millis()
            );
        }
    }

    // ---- tasks that were delivered before ----

    fn vet(&self, job: &Job, task: &Task) -> Result<(), OutboxClosed> {
        let Claim::Yours(run) = self.claim(job, Some(&task.task_id), true) else { return Ok(()) };
        let delivery = job.record.delivery_count;
        let decision = if delivery > self.max_deliveries {
            let starts_topic = &self.outbox.topics().starts;
            match Past::read(&self.cluster, starts_topic, &task.task_id, &self.control.draining) {
                Ok(past) => (past.decide(delivery, self.max_deliveries, self.last_delivery), past),
                // Near the broker's limit a copy loses nothing: its delivery count starts at one again.
                Err(_) if delivery >= self.last_delivery => (Decision::SendAgain, Past::default()),
                Err(error) => {
                    log::warn!(
                        "could not read the starts of task {} ({error}); releasing it",
                        job.named(&task.task_id)
                    );
                    self.in_flight.decline(job.key, &run);
                    return Ok(());
                }
            }
        } else {
            (Decision::Run, Past::default())
        };
        match decision {
            // The worker became quiet during the reading.
            (Decision::Run, _) if self.must_release(job) => {
                self.in_flight.decline(job.key, &run);
                Ok(())
            }
            (Decision::Run, _) => self.start_on_record(job, &run, task),
            (Decision::GiveUp, past) => self.give_up(job, &run, Some(&task.task_id), &past.reason(self.max_deliveries)),
            (Decision::SendAgain, _) => self.send_again(job, &run, task),
        }
    }

    /// Writes the start to Kafka before the handler runs, so it counts even if the task kills this process.
    fn start_on_record(&self, job: &Job, run: &Run, task: &Task) -> Result<(), OutboxClosed> {
        let delivery = job.record.delivery_count;
        let started = TaskStarted { task_id: task.task_id.clone(), delivery, worker_id: self.worker_id.to_string() };
        let announced = self.outbox.announce_start(&started, &self.control.draining, self.in_flight.lock_length());
        if announced != Announced::OnRecord {
            self.decline(job, run, task, announced);
            return Ok(());
        }
        if self.in_flight.start(job.key, run, job.now()) { self.execute(job, run, task) } else { Ok(()) }
    }

    fn decline(&self, job: &Job, run: &Run, task: &Task, announced: Announced) {
        if announced == Announced::Denied {
            // Each release brings the task nearer to the delivery limit, so wait first.
            let _ = self.control.draining.sleep(self.in_flight.lock_length() / 3);
        }
        if announced != Announced::Stopped {
            let id = job.named(&task.task_id);
            log::warn!("the start of task {id} could not be put on record: {announced}; releasing the task");
        }
        self.in_flight.decline(job.key, run);
    }

    fn give_up(&self, job: &Job, run: &Run, task_id: Option<&str>, reason: &str) -> Result<(), OutboxClosed> {
        let records = 1 + u8::from(task_id.is_some());
        if !self.in_flight.publish(job.key, run, records, None) {
            return Ok(());
        }
        self.metrics.dead_lettered(reason);
        log::error!(
            "Worker {} gives task {} up ({}); it goes to {}",
            self.worker_id,
            job.named(task_id.unwrap_or("without an id")),
            escape(reason),
            self.outbox.topics().dead
        );
        self.outbox.send_dead(job.key, &job.record, reason)?;
        match task_id {
            Some(task_id) => {
                let result = error_result(task_id, &self.worker_id, reason);
                self.outbox.send_result(job.key, &job.record, &result)
            }
            None => Ok(()),
        }
    }

    fn send_again(&self, job: &Job, run: &Run, task: &Task) -> Result<(), OutboxClosed> {
        if !self.in_flight.publish(job.key, run, 1, None) {
            return Ok(());
        }
        log::warn!(
            "task {} was delivered {} times and started less often; sending it again under the same id",
            job.named(&task.task_id),
            job.record.delivery_count
        );
        self.outbox.send_again(job.key, &job.record, &task.task_id)
    }

    // ---- running ----

    fn execute(&self, job: &Job, run: &Run, task: &Task) -> Result<(), OutboxClosed> {
        let delivery = job.record.delivery_count;
        let context = Context { delivery, draining: self.control.draining.clone(), abandoned: run.abandoned.clone() };
        self.say_start(job, task);
        let began = Instant::now();
        let outcome = match catch_unwind(AssertUnwindSafe(|| self.handler.handle(task, &context))) {
            Ok(Ok(output)) => Outcome::Output(output),
            Ok(Err(HandlerError::Final(error))) => Outcome::Final(error),
            Ok(Err(HandlerError::Retry(error))) => Outcome::Retry(error),
            Err(panic) => Outcome::Retry(format!("the handler panicked: {}", panic_message(&*panic))),
        };
        let took = began.elapsed();
        let ended = match &outcome {
            Outcome::Output(_) => Ended::Succeeded,
            Outcome::Final(_) => Ended::Failed,
            Outcome::Retry(_) => Ended::Retried,
        };
        self.metrics.ran(ended, took);
        log::debug!("Worker {} has run task {} for {} us", self.worker_id, job.named(&task.task_id), took.as_micros());
        match outcome {
            Outcome::Output(output) => self.publish(job, run, task, took, Ok(output)),
            Outcome::Final(error) => {
                log::warn!("task {} failed for good: {}", job.named(&task.task_id), escape(&error));
                self.publish(job, run, task, took, Err(error))
            }
            Outcome::Retry(error) => self.rest(job, run, task, took, error),
        }
    }

    /// Logs each start at debug level, and a redelivered task's start at info level.
    fn say_start(&self, job: &Job, task: &Task) {
        let delivery = job.record.delivery_count;
        let level = if delivery > 1 { log::Level::Info } else { log::Level::Debug };
        log::log!(
            level,
            "Worker {} starts task {} at its delivery {delivery}",
            self.worker_id,
            job.named(&task.task_id)
        );
    }

    fn publish(
        &self,
        job: &Job,
        run: &Run,
        task: &Task,
        took: Duration,
        outcome: Result<serde_json::Map<String, serde_json::Value>, String>,
    ) -> Result<(), OutboxClosed> {
        if !self.in_flight.publish(job.key, run, 1, Some(took)) {
            log::warn!("task {} was released while it ran; dropping its outcome", job.named(&task.task_id));
            return Ok(());
        }
        let success = outcome.is_ok();
        let (output, error) = match outcome {
            Ok(output) => (output, None),
            Err(error) => (serde_json::Map::new(), Some(error)),
        };
        self.outbox.send_result(
            job.key,
            &job.record,
            &TaskResult {
                task_id: task.task_id.clone(),
                success,
                error,
                output,
                processed_by: self.worker_id.to_string(),
                seconds: took.as_secs_f64(),
            },
        )
    }

    /// Releases a failed task after a rest, or sends it again if this is its last delivery. A running task whose lock
    /// was lost is redelivered each time it is found again; at its last delivery the broker would drop a released
    /// record.
    fn rest(&self, job: &Job, run: &Run, task: &Task, took: Duration, error: String) -> Result<(), OutboxClosed> {
        let (key, delivery) = (job.key, job.record.delivery_count);
        let (rest, is_last) = (rest_after(delivery), self.in_flight.is_last(key));
        let is_ours = if is_last {
            self.in_flight.publish(key, run, 1, Some(took))
        } else {
            self.in_flight.rest(key, run, Instant::now() + rest, Some(took))
        };
        if !is_ours {
            log::warn!("task {} was released while it ran; dropping its outcome", job.named(&task.task_id));
            return Ok(());
        }
        let next = if is_last {
            "its record is near the delivery limit, and the task is sent again under the same id".to_owned()
        } else {
            format!("it is released in {} ms", rest.as_millis())
        };
        let id = job.named(&task.task_id);
        log::warn!("task {id} failed at its delivery {delivery}: {}; {next}", escape(&error));
        // An abandoned task was asked to end, so its error is not a failure.
        if !run.abandoned.is_triggered() {
            let (task_id, worker_id) = (task.task_id.clone(), self.worker_id.to_string());
            self.outbox.note_failure(&TaskFailed { task_id, delivery, worker_id, error })?;
        }
        if is_last { self.outbox.send_again(key, &job.record, &task.task_id) } else { Ok(()) }
    }
}

fn rest_after(delivery: u16) -> Duration {
    FIRST_REST.saturating_mul(1 << delivery.saturating_sub(1).min(10)).min(LONGEST_REST)
}
