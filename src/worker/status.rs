//! The status thread: sends notifications and heartbeats, repairs refused records; waits for no handler or broker.
//!
//! It is the only sender of status records, so a heartbeat never follows the notification of a later state. Main
//! requests notifications; the outbox passes records to repair; [`upkeep`] reports whether a long task holds back its
//! partition.

use super::drain::{Control, Deadlines, Phase};
use super::in_flight::InFlight;
use super::metrics::Metrics;
use super::outbox::{Outbox, OutboxClosed};
use super::repair::Repair;
use super::upkeep::{self, Upkeep};
use crate::task::{Receipt, WorkerState, WorkerStatus, unix_now};
use crossbeam_channel::{Receiver, Sender, never, select, tick};
use parking_lot::Mutex;
use program::stop::Stop;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// The identity of this process in status records.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) worker_id: Arc<str>,
    pub(super) instance: Uuid,
    pub(super) started_at: f64,
}

/// Asks for a notification.
#[derive(Debug)]
pub(super) struct Announce {
    pub(super) state: WorkerState,
    pub(super) receipt: Option<Receipt>,
    /// Capacity one: gets true once Kafka has the notification.
    pub(super) sent: Sender<bool>,
}

pub(super) struct StatusThread {
    pub(super) identity: Identity,
    pub(super) control: Arc<Control>,
    pub(super) outbox: Outbox,
    pub(super) metrics: Arc<Metrics>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) upkeep: Upkeep,
    /// Triggered when the upkeep thread dies.
    pub(super) fatal: Stop,
    pub(super) heartbeat_interval: Duration,
    /// Capacity two; main sends one announcement at a time and waits.
    pub(super) announcements: Receiver<Announce>,
    pub(super) repairs: Receiver<Repair>,
    /// Set by main when the stop begins; for the countdown on the gateway's page.
    pub(super) deadlines: Arc<Mutex<Option<Deadlines>>>,
}

impl StatusThread {
    /// Runs until main drops its end of `announcements`.
    pub(super) fn run(self) -> Result<(), OutboxClosed> {
        let Self {
            identity,
            control,
            outbox,
            metrics,
            in_flight,
            upkeep,
            fatal,
            heartbeat_interval,
            announcements,
            mut repairs,
            deadlines,
        } = self;
        let statuses = Statuses { identity, in_flight, upkeep: upkeep.start(fatal), deadlines };
        let heartbeat = tick(heartbeat_interval);
        // No heartbeat before the notification of the start.
        let mut announced = false;
        loop {
            select! {
                recv(announcements) -> announcement => {
                    let Ok(announcement) = announcement else { return Ok(()) };
                    announced = true;
                    let status = statuses.status(announcement.state, announcement.receipt);
                    outbox.send_status(&status, announcement.sent)?;
                }
                recv(heartbeat) -> _ => {
                    if let Some(state) = present_state(&control).filter(|_| announced) {
                        outbox.send_heartbeat(&statuses.status(state, None));
                    }
                }
                recv(repairs) -> repair => {
                    if let Ok(repair) = repair {
                        if repair.given_up.is_some() {
                            metrics.dead_lettered(&repair.reason);
                        }
                        outbox.repair(repair)?;
                    } else {
                        // The producer has ended; the next send returns the error.
                        repairs = never();
                    }
                }
            }
        }
    }
}

/// The state for a heartbeat: that of the worker, even if its notification was lost. There is none near the end, so no
/// heartbeat follows the last notification.
fn present_state(control: &Control) -> Option<WorkerState> {
    match control.phase() {
        Phase::Running if control.takes() => Some(WorkerState::Started),
        Phase::Running => Some(WorkerState::Quiet),
        Phase::Draining => Some(WorkerState::ShutdownStarted),
        Phase::Closing | Phase::Stopped => None,
    }
}

/// The sources of a status record.
struct Statuses {
    identity: Identity,
    in_flight: Arc<InFlight>,
    upkeep: upkeep::Running,
    deadlines: Arc<Mutex<Option<Deadlines>>>,
}

impl Statuses {
    fn status(&self, status: WorkerState, receipt: Option<Receipt>) -> WorkerStatus {
        let (running, now) = (self.in_flight.running(), Instant::now());
        let current_tasks: Vec<String> = running.iter().map(|task| task.task.id.to_string()).collect();
        let ran = running.iter().map(|task| now.saturating_duration_since(task.since).as_millis() as f64 / 1e3);
        WorkerStatus {
            worker_id: self.identity.worker_id.to_string(),
            status,
            timestamp: unix_now(),
            current_task: current_tasks.first().cloned(),
            current_tasks,
            current_task_seconds: ran.collect(),
            instance: self.identity.instance,
            started_at: self.identity.started_at,
            stop_deadline: self.deadlines.lock().map(|deadlines| unix_time(deadlines.abandon_at)),
            holding_back: self.upkeep.is_holding_back(),
            receipt,
        }
    }
}

fn unix_time(at: Instant) -> f64 {
    let now = Instant::now();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    if at >= now { wall + (at - now).as_secs_f64() } else { wall - (now - at).as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::drain::Event;

    #[test]
    fn heartbeats_have_the_state_of_the_worker_and_end_before_the_last_notification() {
        let control = Control::new();
        assert_eq!(present_state(&control), Some(WorkerState::Started));
        for (quiet, state) in [(true, WorkerState::Quiet), (false, WorkerState::Started), (true, WorkerState::Quiet)] {
            control.set_quiet(quiet);
            assert_eq!(present_state(&control), Some(state));
        }
        control.apply(Event::Signal);
        assert_eq!(present_state(&control), Some(WorkerState::ShutdownStarted));
        for event in [Event::Settled, Event::Closed] {
            control.apply(event);
            assert_eq!(present_state(&control), None);
        }
    }
}
