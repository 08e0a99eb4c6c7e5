//! Quiet: after SIGUSR1 the worker takes nothing new and keeps its membership, until SIGUSR2 or a stop.
//!
//! Main follows the signals here and says what changes; the switch itself is [`Control`], which the intakes and the
//! handlers read. What is ready is finished or released as in a stop; the tasks in flight finish.

use super::bells::Rings;
use super::intake::queue::ReadyQueue;
use super::start::Running;
use super::stopping::announce_running;
use crate::task::WorkerState;
use crossbeam_channel::{Receiver, at, never};
use program::logging::escape;
use program::signals::Signals;
use std::time::Instant;

#[cfg(doc)]
use super::drain::Control;

/// What main says about a quiet.
pub(super) struct Quiet {
    /// The line that nothing is in flight was written, and no work has appeared since.
    told: bool,
    /// Until then, a fetch that was parked at the signal may still bring records.
    settled_at: Instant,
    /// Fires once at that time.
    settled: Receiver<Instant>,
    /// Rings during the quiet when a task has finished.
    doorbell: Receiver<()>,
}

impl Quiet {
    /// Sends the first notification: `worker_started`, or `worker_quiet` after a SIGUSR1 during the start.
    pub(super) fn begin(worker: &Running, id: &str, signals: &Signals) -> Self {
        let doorbell = worker.control.doorbell(Rings::Changes);
        let mut quiet = Self { told: false, settled_at: Instant::now(), settled: never(), doorbell };
        if signals.first.is_triggered() || worker.fatal.is_triggered() {
            return quiet;
        }
        if signals.quiet.is_asked() {
            quiet.enter(worker, id, signals);
        } else {
            worker.control.set_quiet(false);
            announce_running(worker, id, WorkerState::Started, signals);
        }
        quiet
    }

    /// Rings when [`look`](Self::look) may have something to say.
    pub(super) fn doorbell(&self) -> &Receiver<()> {
        &self.doorbell
    }

    /// Receives a message once fetches that were parked at the signal bring no more records: time to
    /// [`look`](Self::look).
    pub(super) fn settled(&self) -> &Receiver<Instant> {
        &self.settled
    }

    /// Applies the last signal. A repeated signal changes nothing.
    pub(super) fn follow(&mut self, worker: &Running, id: &str, signals: &Signals) {
        match (signals.quiet.is_asked(), worker.control.takes()) {
            (true, true) => self.enter(worker, id, signals),
            (false, false) => {
                log::info!("🔔 Worker {} received SIGUSR2: it takes tasks again", escape(id));
                worker.control.set_quiet(false);
                announce_running(worker, id, WorkerState::Started, signals);
            }
            (true, false) | (false, true) => {}
        }
    }

    fn enter(&mut self, worker: &Running, id: &str, signals: &Signals) {
        self.told = false;
        worker.control.set_finishes_ready(worker.queue.finishes_quickly());
        log::info!("🔕 Worker {} received SIGUSR1: it takes no new tasks and stays in its group", escape(id));
        worker.control.set_quiet(true);
        self.settled_at = Instant::now() + ReadyQueue::longest_fetch();
        self.settled = at(self.settled_at);
        announce_running(worker, id, WorkerState::Quiet, signals);
        self.look(worker, id);
    }

    /// Logs that a quiet worker has nothing left to do, again if work has appeared since.
    pub(super) fn look(&mut self, worker: &Running, id: &str) {
        if worker.control.takes() || Instant::now() < self.settled_at {
            return;
        }
        let nothing = worker.in_flight.counts().nothing_in_flight();
        if nothing && !self.told {
            log::info!("💤 Worker {} is quiet and has no task in flight", escape(id));
        }
        self.told = nothing;
    }
}
