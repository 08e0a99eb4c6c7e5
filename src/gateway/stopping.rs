//! How a gateway stops: nothing new is accepted, everybody who waits is answered, then it ends.
//!
//! It keeps answering to the end; a connection is closed with its next answer. Idle connections end with the process: a
//! request that is on its way to one that is closed would be cut off.

use super::desk::Desk;
use super::http::listener;
use super::parting;
use super::reply::Parting;
use super::start::Running;
use crate::exit::{self, ExitCode};
use crate::signals::Signals;
use crate::stop::Stop;
use crate::supervisor;
use crate::threads;
use crossbeam_channel::{bounded, select, tick};
use std::convert::Infallible;
use std::time::{Duration, Instant};

/// Callers who wait get their results until so long before the grace period ends.
const ANSWERS_END: Duration = Duration::from_secs(6);
/// The process is gone so long before the grace period ends, whatever happens.
const EXIT_MARGIN: Duration = Duration::from_secs(5);
/// And so long after a fatal error.
const FATAL_END: Duration = Duration::from_secs(3);
/// How often is looked whether everybody is answered.
const LOOK: Duration = Duration::from_millis(5);
/// Answers that were given are written within this.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// And those to callers who came when it was stopping already.
const LATER_ANSWERS: Duration = Duration::from_millis(100);
/// The producer gets so long for what callers were told is unknown.
const LAST_PRODUCE: Duration = Duration::from_millis(200);
/// Threads that have nothing left to do end within this.
const JOIN: Duration = Duration::from_millis(300);

/// Waits for a signal or a dead thread, then ends the gateway.
pub(super) fn run_until_stopped(mut gateway: Running, signals: &Signals) -> ExitCode {
    let round = tick(supervisor::INTERVAL);
    let mut ready = false;
    loop {
        tell_supervisor(&mut gateway, &mut ready);
        select! {
            recv(signals.first.triggered()) -> _ => return drain(gateway, signals),
            recv(gateway.fatal.triggered()) -> _ => return fail(gateway),
            recv(round) -> _ => {}
        }
    }
}

/// Main while the gateway serves. Ready is said once: afterwards `/readyz` says how things are.
fn tell_supervisor(gateway: &mut Running, ready: &mut bool) {
    let desk = &gateway.desk;
    let can_serve = desk.is_prepared() && desk.is_kafka_connected() && desk.has_read_enough();
    let status = if can_serve { "serves" } else { "waiting for Kafka" };
    if !*ready && can_serve {
        *ready = true;
        gateway.supervisor.ready(status);
    } else if !*ready {
        gateway.supervisor.starting(status);
    } else if gateway.submitter.liveness().iter().all(|(_, alive)| *alive) {
        gateway.supervisor.alive(status);
    }
}

/// A thread died, or the cluster cannot be used.
fn fail(gateway: Running) -> ExitCode {
    let unusable = gateway.unusable.is_triggered();
    let code = if unusable { ExitCode::Usage } else { ExitCode::Fatal };
    let disarm = arm_watchdog(Instant::now() + FATAL_END, code);
    if !unusable {
        log::error!("the gateway ends: a thread that must not end has ended (its own line says why)");
    }
    gateway.desk.start_draining();
    answer_the_rest(&gateway.desk);
    end(gateway);
    drop(disarm);
    code
}

fn drain(mut gateway: Running, signals: &Signals) -> ExitCode {
    let began = Instant::now();
    let grace = gateway.desk.config.stop_grace_period;
    // First of all: whatever the next line waits for, the process ends in time.
    let disarm = arm_watchdog(began + grace.saturating_sub(EXIT_MARGIN), ExitCode::Fatal);
    gateway.desk.start_draining();
    let waiting = gateway.desk.state().waiting.callers();
    log::info!("🛑 Gateway received {}, initiating graceful shutdown; {waiting} caller(s) wait", signals.name());
    let until = began + grace.saturating_sub(ANSWERS_END);
    let forced = match wait_until_answered(&mut gateway, signals, until) {
        Waited::Answered | Waited::Late => false,
        Waited::Forced => true,
        Waited::Failed => return fail(gateway),
    };
    let left = answer_the_rest(&gateway.desk);
    let code = if forced && left > 0 { ExitCode::Forced } else { ExitCode::Drained };
    end(gateway);
    log::info!("👋 Gateway gracefully shut down after {:.3} s", began.elapsed().as_secs_f64());
    drop(disarm);
    code
}

/// Why a drain goes on.
enum Waited {
    Answered,
    Late,
    Forced,
    Failed,
}

fn wait_until_answered(gateway: &mut Running, signals: &Signals, until: Instant) -> Waited {
    let (look, round, over) = (tick(LOOK), tick(supervisor::INTERVAL), crossbeam_channel::at(until));
    gateway.supervisor.stopping("stops");
    // One thread waits for one condition here, for seconds at most: a tick is simpler than a signal from every
    // connection.
    while gateway.desk.unanswered_from_before() > 0 {
        select! {
            recv(look) -> _ => {}
            recv(round) -> _ => {
                let (callers, left) = (gateway.desk.unanswered_from_before(), until.saturating_duration_since(Instant::now()));
                gateway.supervisor.stopping(&format!("answering {callers} caller(s), {} s left", left.as_secs()));
            }
            recv(over) -> _ => {
                log::warn!("time is over; the callers who still wait are told where to ask");
                return Waited::Late;
            }
            recv(signals.second.triggered()) -> _ => {
                log::warn!("🛑 Gateway received a second signal; the callers who still wait are told where to ask");
                return Waited::Forced;
            }
            recv(gateway.fatal.triggered()) -> _ => return Waited::Failed,
        }
    }
    Waited::Answered
}

/// Answers everybody who still waits, and waits until that is written; returns how many there were.
fn answer_the_rest(desk: &Desk) -> usize {
    let leaving = desk.state().waiting.close();
    let count = leaving.len();
    for it in leaving {
        parting::tell(it, Parting::Stopping);
    }
    wait_while(LAST_ANSWERS, || desk.unanswered_from_before() > 0);
    // Whoever came later is answered as well, but callers who ask all the time are never all answered.
    wait_while(LATER_ANSWERS, || desk.unanswered() > 0);
    count
}

/// Looks again and again, for so long at the most.
fn wait_while(most: Duration, condition: impl Fn() -> bool) {
    let (deadline, look) = (crossbeam_channel::at(Instant::now() + most), tick(LOOK));
    while condition() {
        select! {
            recv(look) -> _ => {}
            recv(deadline) -> _ => break,
        }
    }
}

/// Ends the threads: what Kafka owes is waited for a moment, then the sockets are closed.
fn end(gateway: Running) {
    let Running { address, interrupter, end, producer, threads, .. } = gateway;
    let producer = producer.lock().take();
    if let Some(producer) = producer {
        producer.close(Instant::now() + LAST_PRODUCE);
    }
    end.trigger();
    interrupter.interrupt();
    listener::wake(address);
    let deadline = Instant::now() + JOIN;
    for thread in threads {
        if let Err(thread) = thread.join_deadline(deadline) {
            log::debug!("thread {} ends with the process", thread.name());
        }
    }
}

/// Ends the process at `exit_at` whatever happens, unless the returned guard is dropped before.
fn arm_watchdog(exit_at: Instant, code: ExitCode) -> crossbeam_channel::Sender<Infallible> {
    let (disarm, disarmed) = bounded::<Infallible>(0);
    let watchdog = threads::spawn("watchdog", Stop::new(), move || -> Result<(), Infallible> {
        if disarmed.recv_deadline(exit_at) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
            exit::terminate(code);
        }
        Ok(())
    });
    // It ends with the guard, or it ends the process: either way within the grace period, so nobody need join it.
    drop(watchdog);
    disarm
}
