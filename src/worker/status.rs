//! The status thread: notifications, heartbeats, and two quiet duties that need a thread which never waits for a handler.
//!
//! It is the only sender of statuses, so that a heartbeat never overtakes the notification of a later state. Main asks it to
//! announce; the outbox hands it records to repair; every few seconds it looks whether a long task holds back the partition
//! (the lock limit counts the span from the oldest unfinished record, hazard of one long task).

use super::drain::Deadlines;
use super::in_flight::InFlight;
use super::outbox::{Outbox, OutboxClosed};
use super::repair::Repair;
use crate::kafka::admin;
use crate::kafka::cluster::Cluster;
use crate::logging::escape;
use crate::task::{Receipt, WorkerState, WorkerStatus, unix_now};
use crossbeam_channel::{Receiver, Sender, never, select, tick};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// How often the span of the oldest running task is looked at.
const SPAN_INTERVAL: Duration = Duration::from_secs(5);
/// A partition delivers 4000 records from the oldest unfinished one on; a span this long is close to standing still.
const LONG_SPAN: i64 = 3_900;

/// Who this process is, as statuses say it.
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
    /// Capacity one: gets the receiver that tells when Kafka has it.
    pub(super) sent: Sender<Receiver<bool>>,
}

/// See the module documentation.
pub(super) struct StatusThread {
    pub(super) identity: Identity,
    pub(super) outbox: Outbox,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) cluster: Cluster,
    pub(super) heartbeat_interval: Duration,
    /// Capacity two; main sends one at a time and waits.
    pub(super) announcements: Receiver<Announce>,
    pub(super) repairs: Receiver<Repair>,
    /// Set by main when the stop begins; for the countdown that people see.
    pub(super) deadlines: Arc<Mutex<Option<Deadlines>>>,
}

impl StatusThread {
    /// Runs until main drops its end of `announcements`.
    pub(super) fn run(mut self) -> Result<(), OutboxClosed> {
        let heartbeat = tick(self.heartbeat_interval);
        let span = tick(SPAN_INTERVAL);
        let mut state = None;
        let mut holding_back = false;
        loop {
            select! {
                recv(self.announcements) -> announcement => {
                    let Ok(announcement) = announcement else { return Ok(()) };
                    state = Some(announcement.state);
                    let status = self.status(announcement.state, announcement.receipt, holding_back);
                    let answer = self.outbox.send_status(&status)?;
                    // Capacity one and one answer: never full. Disconnected: main no longer waits.
                    let _ = announcement.sent.try_send(answer);
                }
                recv(heartbeat) -> _ => {
                    // Nothing is said before the start is announced, and nothing after the end.
                    if let Some(state @ (WorkerState::Started | WorkerState::ShutdownStarted)) = state {
                        self.outbox.send_heartbeat(&self.status(state, None, holding_back));
                    }
                }
                recv(self.repairs) -> repair => {
                    if let Ok(repair) = repair {
                        self.outbox.repair(repair)?;
                    } else {
                        // The producer has ended: the next send says so.
                        self.repairs = never();
                    }
                }
                recv(span) -> _ => holding_back = self.look_at_span(holding_back),
            }
        }
    }

    fn status(&self, status: WorkerState, receipt: Option<Receipt>, holding_back: bool) -> WorkerStatus {
        let current_tasks: Vec<String> = self.in_flight.running().iter().map(|task| task.task_id.to_string()).collect();
        WorkerStatus {
            worker_id: self.identity.worker_id.to_string(),
            status,
            timestamp: unix_now(),
            current_task: current_tasks.first().cloned(),
            current_tasks,
            instance: self.identity.instance,
            started_at: self.identity.started_at,
            stop_deadline: self.deadlines.lock().map(|deadlines| unix_time(deadlines.abandon_at)),
            holding_back,
            receipt,
        }
    }

    /// True when the oldest running task keeps its partition from delivering; said once in the log each time it begins.
    fn look_at_span(&self, before: bool) -> bool {
        let running = self.in_flight.running();
        let Some(oldest) =
            running.iter().filter(|task| task.since.elapsed() >= SPAN_INTERVAL).min_by_key(|task| task.key)
        else {
            return false;
        };
        let Ok(ends) = admin::end_offsets(&self.cluster, &self.outbox.topics().tasks) else { return before };
        let span = ends.get(&oldest.key.partition.partition).map_or(0, |end| end - oldest.key.offset);
        let long = span >= LONG_SPAN;
        if long && !before {
            log::warn!(
                "Worker {} holds task {} for {} s with {span} records behind it: partition {} delivers at most 4000 beyond \
                 its oldest unfinished record and stands still until this one is done",
                self.identity.worker_id,
                escape(&oldest.task_id),
                oldest.since.elapsed().as_secs(),
                oldest.key.partition.partition
            );
        }
        long
    }
}

fn unix_time(at: Instant) -> f64 {
    let now = Instant::now();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    if at >= now { wall + (at - now).as_secs_f64() } else { wall - (now - at).as_secs_f64() }
}
