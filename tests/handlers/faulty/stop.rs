//! The stop, step by step, as the contract has it; every step has a limit.

use std::time::{Duration, Instant};

use lastcall::{
    config::WorkerConfig,
    exit::ExitCode,
    logging::{self, LAST_LINES, escape},
    signals::Signals,
    task::{Receipt, WorkerState, unix_now},
};
use serde_json::{Map, Value};

use crate::{
    fault::Fault,
    worker::{Hand, NOTIFICATION_WAIT, Step, Worker},
};

/// Steps of a stop that nobody hurries: with the notifications less than the 5 s that an idle worker has.
const STEP: Duration = Duration::from_millis(700);
/// Steps after work was abandoned.
const HURRIED_STEP: Duration = Duration::from_millis(200);
/// How long a result that is on its way may still arrive at the deadline, and at a second signal.
const LAST_RESULT: Duration = Duration::from_millis(400);
const LAST_RESULT_FORCED: Duration = Duration::from_millis(100);
/// What is left of the grace period at the deadline.
const GRACE_MARGIN: Duration = Duration::from_millis(3_750);
/// What an idle worker takes whose stop is slow.
const SLOW: Duration = Duration::from_secs(3);

/// Why draining ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Settled,
    Deadline,
    SecondSignal,
}

/// A signal before anything was taken.
pub fn before_the_start(config: &WorkerConfig, signals: &Signals) -> ExitCode {
    let id = escape(&config.worker_id);
    log::info!("🛑 Worker {id} received {}, initiating graceful shutdown...", signals.name());
    log::info!("👋 Worker {id} gracefully shut down before it had started");
    let (worker_id, signal, outcome) = (config.worker_id.clone(), signals.name().to_owned(), "drained".to_owned());
    let receipt = Receipt { worker_id, signal, outcome, ..Receipt::default() };
    logging::close(Some(receipt.to_line()), LAST_LINES);
    ExitCode::Drained
}

/// From the signal to the last line.
pub fn stop(mut worker: Worker, signals: &Signals) -> ExitCode {
    let began = Instant::now();
    let mut phases = Map::new();
    let mut phase = |name: &str, since: Instant| phases.insert(name.to_owned(), milliseconds(since.elapsed()).into());
    let worker_id = worker.config.worker_id.clone();
    let id = escape(&worker_id);
    log::info!("🛑 Worker {id} received {}, initiating graceful shutdown...", signals.name());
    (worker.finished, worker.returned) = (0, 0);
    worker.draining.trigger();
    let drain_timeout = worker.config.drain_timeout.min(worker.config.stop_grace_period.saturating_sub(GRACE_MARGIN));
    worker.stop_deadline = Some(unix_now() + drain_timeout.as_secs_f64());
    if !worker.faults.is(Fault::NoStarted) {
        worker.announce(WorkerState::ShutdownStarted, None, NOTIFICATION_WAIT.min(drain_timeout));
    }
    phase("announce", began);

    let drained = Instant::now();
    let ending = drain(&mut worker, signals, began + drain_timeout);
    let abandoned = abandon(&mut worker, ending);
    phase("drain", drained);

    log::info!("🧹 Worker {id} cleaning up");
    let closed = Instant::now();
    let step = if ending == Ending::Settled { STEP } else { HURRIED_STEP };
    if !worker.intake.close(Instant::now() + step) {
        log::warn!("Worker {id} could not close its share session");
    }
    if worker.intake.leave(Instant::now() + step) {
        log::info!("✅ Worker {id} consumer closed");
    } else {
        log::warn!("Worker {id} could not leave its group");
    }
    phase("close", closed);
    phase("total", began);

    let (outcome, code) = match (ending, abandoned.is_empty()) {
        (Ending::Deadline, false) if worker.faults.is(Fault::ExitZeroAtDeadline) => ("drained", ExitCode::Drained),
        (Ending::SecondSignal, true) => ("forced", ExitCode::Drained),
        (Ending::SecondSignal, false) => ("forced", ExitCode::Forced),
        (_, true) => ("drained", ExitCode::Drained),
        (_, false) => ("abandoned", ExitCode::Abandoned),
    };
    let mut receipt = Receipt {
        worker_id: worker_id.clone(),
        signal: signals.name().to_owned(),
        outcome: outcome.to_owned(),
        phases_ms: phases,
        tasks_finished: worker.finished,
        tasks_returned: worker.returned,
        tasks_abandoned: if code == ExitCode::Drained { Vec::new() } else { abandoned },
        exit_code: code.number(),
    };
    if worker.faults.is(Fault::LyingReceipt) {
        lie(&mut receipt);
    }
    if !worker.faults.is(Fault::NoCompleted) {
        worker.announce(WorkerState::ShutdownCompleted, Some(receipt.clone()), step);
    }
    worker.producer.close(Instant::now() + HURRIED_STEP);
    log::info!("✅ Worker {id} producer closed");
    match code {
        ExitCode::Drained => log::info!("👋 Worker {id} gracefully shut down"),
        _ => log::warn!("👋 Worker {id} stopped with 1 task(s) abandoned and given back to Kafka"),
    }
    logging::close(Some(receipt.to_line()), LAST_LINES);
    code
}

/// Until nothing is in flight, the deadline, or a second signal.
fn drain(worker: &mut Worker, signals: &Signals, deadline: Instant) -> Ending {
    let began = Instant::now();
    let is_busy = |worker: &Worker| worker.hand.is_some() || !worker.late.is_empty();
    let rest = if worker.faults.is(Fault::SlowStop) && !is_busy(worker) { SLOW } else { Duration::ZERO };
    if let Some(hand) = &worker.hand {
        let id = escape(&worker.config.worker_id);
        log::info!("⏳ Worker {id} waiting for current task {} to complete...", escape(&hand.task_id));
    }
    loop {
        // A Kafka that does not answer does not hold up whoever has nothing in flight.
        let answered = !worker.intake.is_waiting() || began.elapsed() >= STEP;
        if !is_busy(worker) && answered && began.elapsed() >= rest {
            return Ending::Settled;
        }
        if signals.second.is_triggered() && !worker.faults.is(Fault::DeafToSecond) {
            log::warn!("🛑 Worker {} received a second signal, leaving at once", escape(&worker.config.worker_id));
            return Ending::SecondSignal;
        }
        if Instant::now() >= deadline {
            return Ending::Deadline;
        }
        worker.turn(false);
    }
}

/// Gives up what is still in flight; gives its id.
fn abandon(worker: &mut Worker, ending: Ending) -> Vec<String> {
    let patience = match ending {
        Ending::Settled => Duration::ZERO,
        Ending::Deadline => LAST_RESULT,
        Ending::SecondSignal => LAST_RESULT_FORCED,
    };
    let until = Instant::now() + patience;
    let on_its_way = |hand: &Hand| matches!(hand.step, Step::Publishing(_));
    while worker.hand.as_ref().is_some_and(on_its_way) && Instant::now() < until {
        worker.turn(false);
    }
    let Some(hand) = worker.hand.take() else { return Vec::new() };
    hand.abandoned.trigger();
    let (id, task) = (escape(&worker.config.worker_id), escape(&hand.task_id));
    log::warn!("Worker {id} abandons task {task}; it is given back to Kafka");
    vec![hand.task_id]
}

/// Nothing in it is true any more that is worth reading.
fn lie(receipt: &mut Receipt) {
    receipt.exit_code = if receipt.exit_code == 0 { ExitCode::Abandoned } else { ExitCode::Drained }.number();
    receipt.outcome = "drained".to_owned();
    receipt.tasks_finished += 7;
    receipt.tasks_abandoned.clear();
    receipt.phases_ms.insert("total".to_owned(), Value::from(1));
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
