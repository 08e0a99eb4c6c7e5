//! How a gateway stops: nothing new is accepted, everybody who waits is answered, then it ends.
//!
//! The server keeps answering to the end: dropping it would leave requests unanswered that the library has read already.

use super::start::Running;
use super::submit::parting_answer;
use crate::exit::{self, ExitCode};
use crate::signals::Signals;
use crate::stop::Stop;
use crate::threads;
use crossbeam_channel::{bounded, select, tick};
use std::convert::Infallible;
use std::time::{Duration, Instant};

/// Callers who wait get their results until so long before the grace period ends.
const ANSWERS_END: Duration = Duration::from_secs(6);
/// The process is gone so long before the grace period ends, whatever happens.
const EXIT_MARGIN: Duration = Duration::from_secs(5);
/// How often is looked whether everybody is answered.
const LOOK: Duration = Duration::from_millis(5);
/// Answers that were handed in are written within this.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// The producer gets so long for what callers were told is unknown.
const LAST_PRODUCE: Duration = Duration::from_millis(200);
/// Threads that have nothing left to do end within this.
const JOIN: Duration = Duration::from_millis(300);

/// Waits for a signal or a dead thread, then ends the gateway.
pub(super) fn run_until_stopped(gateway: Running, signals: &Signals) -> ExitCode {
    select! {
        recv(signals.first.triggered()) -> _ => drain(gateway, signals),
        recv(gateway.fatal.triggered()) -> _ => {
            let code = if gateway.unusable.is_triggered() { ExitCode::Usage } else { ExitCode::Fatal };
            log::error!("the gateway ends: a thread that must not end has ended (its own line says why)");
            answer_the_rest(&gateway);
            end(gateway);
            code
        }
    }
}

fn drain(gateway: Running, signals: &Signals) -> ExitCode {
    let began = Instant::now();
    let grace = gateway.desk.config.stop_grace_period;
    gateway.desk.start_draining();
    let waiting = gateway.desk.state().waiting.len();
    log::info!("🛑 Gateway received {}, initiating graceful shutdown; {waiting} caller(s) wait", signals.name());
    let disarm = arm_watchdog(began + grace.saturating_sub(EXIT_MARGIN));
    let deadline = crossbeam_channel::at(began + grace.saturating_sub(ANSWERS_END));
    let look = tick(LOOK);
    let mut code = ExitCode::Drained;
    // One thread at most waits for one condition here, for seconds at most: a tick is simpler than a signal from everywhere.
    while gateway.desk.state().connections.unanswered() > 0 {
        select! {
            recv(look) -> _ => {}
            recv(deadline) -> _ => {
                log::warn!("time is over; the callers who still wait are told where to ask");
                break;
            }
            recv(signals.second.triggered()) -> _ => {
                log::warn!("🛑 Gateway received a second signal; the callers who still wait are told where to ask");
                code = ExitCode::Forced;
                break;
            }
        }
    }
    if answer_the_rest(&gateway) == 0 {
        code = ExitCode::Drained;
    }
    log::info!("👋 Gateway gracefully shut down after {:.3} s", began.elapsed().as_secs_f64());
    end(gateway);
    drop(disarm);
    code
}

/// Answers everybody who still waits; returns how many there were.
fn answer_the_rest(gateway: &Running) -> usize {
    let leaving = gateway.desk.state().waiting.drain();
    let count = leaving.len();
    let answers = leaving.into_iter().map(|it| (it.caller.request, parting_answer(it.key, it.progress, true)));
    gateway.desk.answer_all(answers.collect());
    count
}

/// Ends the threads: what was handed in is written, what Kafka owes is waited for a moment, then the sockets are closed.
fn end(gateway: Running) {
    let Running { desk, submitter, server, interrupter, end, producer, threads, .. } = gateway;
    if let Some(producer) = producer.lock().take() {
        producer.close(Instant::now() + LAST_PRODUCE);
    }
    end.trigger();
    interrupter.interrupt();
    // The dispatcher and the readers hold the desk; when they are gone nobody answers any more and the answering threads end
    // with their channel.
    drop(submitter);
    drop(desk);
    let deadline = Instant::now() + LAST_ANSWERS;
    for thread in threads {
        let limit = if thread.name().starts_with("answer-") || thread.name() == "http" {
            deadline
        } else {
            Instant::now() + JOIN
        };
        // A body thread may wait for a caller that never sends; it ends with the process.
        let _ = thread.join_deadline(limit.min(deadline));
    }
    drop(server);
}

/// Ends the process at `exit_at` whatever happens, unless the returned guard is dropped before.
fn arm_watchdog(exit_at: Instant) -> crossbeam_channel::Sender<Infallible> {
    let (disarm, disarmed) = bounded::<Infallible>(0);
    let watchdog = threads::spawn("watchdog", Stop::new(), move || -> Result<(), Infallible> {
        if disarmed.recv_deadline(exit_at) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
            exit::terminate(ExitCode::Fatal);
        }
        Ok(())
    });
    // It ends with the guard, or it ends the process: either way within the grace period, so nobody need join it.
    drop(watchdog);
    disarm
}
