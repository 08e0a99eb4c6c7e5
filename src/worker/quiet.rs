//! Quiet: after SIGUSR1 the worker takes nothing new and keeps its membership, until SIGUSR2 or a stop.
//!
//! Main follows the signals here and says what changes; the switch itself is [`Control`], which the intakes and the
//! handlers read. What is ready is finished or released as in a stop; the tasks in flight finish.

use super::bells::Rings;
use super::start::Running;
use super::stopping::announce_running;
use crate::task::WorkerState;
use crossbeam_channel::Receiver;
use program::logging::escape;
use program::signals::Signals;

#[cfg(doc)]
use super::drain::Control;

/// Whether the worker is quiet, as its notifications say it.
pub(super) struct Quiet {
    is_quiet: bool,
    /// The line that nothing is in flight was written.
    told: bool,
    /// Rings during the quiet when a task has finished.
    doorbell: Receiver<()>,
}

impl Quiet {
    /// Sends the first notification: `worker_started`, or `worker_quiet` after a SIGUSR1 during the start.
    pub(super) fn begin(worker: &Running, id: &str, signals: &Signals) -> Self {
        let doorbell = worker.control.doorbell(Rings::Changes);
        let mut quiet = Self { is_quiet: false, told: false, doorbell };
        if signals.first.is_triggered() || worker.fatal.is_triggered() {
            return quiet;
        }
        if signals.quiet.is_asked() {
            quiet.follow(worker, id, signals);
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

    /// Applies the last signal. A repeated signal changes nothing.
    pub(super) fn follow(&mut self, worker: &Running, id: &str, signals: &Signals) {
        let asked = signals.quiet.is_asked();
        if asked == self.is_quiet {
            return;
        }
        self.is_quiet = asked;
        let name = escape(id);
        let state = if asked {
            self.told = false;
            worker.control.set_finishes_ready(worker.queue.finishes_quickly());
            log::info!("🔕 Worker {name} received SIGUSR1: it takes no new tasks and stays in its group");
            WorkerState::Quiet
        } else {
            log::info!("🔔 Worker {name} received SIGUSR2: it takes tasks again");
            WorkerState::Started
        };
        worker.control.set_quiet(asked);
        announce_running(worker, id, state, signals);
        self.look(worker, id);
    }

    /// Logs once that a quiet worker has nothing left to do.
    pub(super) fn look(&mut self, worker: &Running, id: &str) {
        if self.is_quiet && !self.told && worker.in_flight.counts().nothing_in_flight() {
            self.told = true;
            log::info!("💤 Worker {} is quiet and has no task in flight", escape(id));
        }
    }
}
