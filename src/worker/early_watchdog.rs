//! The watchdog of a worker before its first task: after a signal the process ends within the contract's 5 s.
//!
//! Armed before any call can block, disarmed when the worker takes tasks; then [`drain::watch`] bounds the stop.

use super::drain::{self, Account, Deadlines};
use super::in_flight::InFlight;
use crate::config::WorkerConfig;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded, select};
use program::signals::Signals;
use program::stop::Stop;
use program::threads;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A worker that has not taken tasks yet ends this long after the first signal.
const EARLY_LIMIT: Duration = Duration::from_millis(4500);
/// The same after the second signal.
const FORCED_LIMIT: Duration = Duration::from_millis(500);

/// Ends the process after a signal, for example if the resolver hangs. Dropping it disarms it.
pub(super) struct EarlyWatchdog {
    _disarm: Sender<Infallible>,
}

impl EarlyWatchdog {
    /// Starts the watchdog's thread.
    pub(super) fn arm(config: &WorkerConfig, signals: &Signals) -> Self {
        let (disarm, disarmed) = bounded::<Infallible>(0);
        let (signals, worker_id) = (signals.clone(), config.worker_id.clone());
        let watchdog = threads::spawn("early-watchdog", Stop::new(), move || -> Result<(), Infallible> {
            select! {
                recv(signals.first.triggered()) -> _ => {}
                recv(disarmed) -> _ => return Ok(()),
            }
            let account = Arc::new(Account::new(&worker_id, Arc::new(InFlight::new(Duration::ZERO))));
            account.begin(signals.name(), Instant::now());
            let deadline = Instant::now() + EARLY_LIMIT;
            let second = select! {
                recv(signals.second.triggered()) -> _ => true,
                recv(disarmed) -> _ => return Ok(()),
                recv(crossbeam_channel::at(deadline)) -> _ => false,
            };
            if second {
                account.force();
                let deadline = deadline.min(Instant::now() + FORCED_LIMIT);
                if disarmed.recv_deadline(deadline) != Err(RecvTimeoutError::Timeout) {
                    return Ok(());
                }
            }
            let (now, deadlines) = bounded(1);
            // Capacity one, and this is the only deadline. The sender lives until `watch` returns.
            let _ = now.try_send(Deadlines::at(Instant::now()));
            drain::watch(&deadlines, &account);
            Ok(())
        });
        // The thread ends with the guard, or it ends the process.
        drop(watchdog);
        Self { _disarm: disarm }
    }
}
