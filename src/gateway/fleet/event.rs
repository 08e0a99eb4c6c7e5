//! What happens to workers, as one log line each.

use crate::task::Receipt;
use program::logging::escape;

/// An event to log, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum FleetEvent {
    /// A worker takes tasks.
    Started(String),
    /// A worker takes no new tasks until it is told to go on.
    Quiet(String),
    /// A quiet worker takes tasks again.
    Resumed(String),
    /// A worker got a signal.
    ShutdownStarted(String),
    /// A worker has completed its stop, with its receipt.
    ShutdownCompleted(String, Option<Box<Receipt>>),
    /// A worker has sent no status record for `WORKER_TIMEOUT`.
    Silent(String),
    /// Another process with the worker's id has started, and this one has ended without a stop.
    Replaced(String),
    /// A silent worker has sent a status record again.
    Returned(String),
    /// Two live processes use one worker id.
    Conflict(String),
}

/// Logs one line for each event.
pub(in crate::gateway) fn log_events(events: &[FleetEvent]) {
    for event in events {
        match event {
            FleetEvent::Started(id) => log::info!("🚀 Worker {} started", escape(id)),
            FleetEvent::Quiet(id) => log::info!("🔕 Worker {} is quiet: it takes no new tasks", escape(id)),
            FleetEvent::Resumed(id) => log::info!("🔔 Worker {} takes tasks again", escape(id)),
            FleetEvent::ShutdownStarted(id) => log::info!("🛑 Worker {} is shutting down", escape(id)),
            FleetEvent::ShutdownCompleted(id, Some(receipt)) => {
                let code = receipt.exit_code;
                log::info!("👋 Worker {} completed its shutdown with exit code {code}", escape(id));
            }
            FleetEvent::ShutdownCompleted(id, None) => log::info!("👋 Worker {} completed its shutdown", escape(id)),
            FleetEvent::Silent(id) => log::warn!("⏳ Worker {} is silent: no status within WORKER_TIMEOUT", escape(id)),
            FleetEvent::Replaced(id) => log::warn!("⏳ Worker {} had ended without a stop and runs again", escape(id)),
            FleetEvent::Returned(id) => log::info!("📡 Worker {} is heard again", escape(id)),
            FleetEvent::Conflict(id) => {
                log::warn!("two live workers use the id {}; give each worker its own WORKER_ID", escape(id))
            }
        }
    }
}
