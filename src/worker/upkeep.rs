//! The upkeep thread: checks every 5 s whether a long task holds back its partition and the side topics exist.
//!
//! Brokers may not answer these requests, so they have a thread of their own, and no heartbeat or notification waits
//! for them. The status thread starts it, reads its result and ends it.

use super::in_flight::InFlight;
use crate::config::Common;
use crate::queue::{self, Queue, Starts};
use kafka_share::admin;
use kafka_share::cluster::Cluster;
use program::logging::escape;
use program::stop::Stop;
use program::threads::{self, Thread};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The interval of the checks, and how long a task must run before it is checked.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long to wait for the woken thread to end.
const JOIN: Duration = Duration::from_millis(200);

/// The inputs of the thread.
pub(super) struct Upkeep {
    pub(super) worker_id: Arc<str>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) cluster: Cluster,
    pub(super) common: Common,
    pub(super) starts: Starts,
    pub(super) queue: Queue,
}

/// Handle of the running thread. Dropping it ends the thread.
pub(super) struct Running {
    holding_back: Arc<AtomicBool>,
    stop: Stop,
    cluster: Cluster,
    thread: Option<Thread>,
}

impl Upkeep {
    /// Starts the thread; its death triggers `on_death`.
    pub(super) fn start(mut self, on_death: Stop) -> Running {
        // Its own interrupter: interrupting wakes only this thread's requests.
        self.cluster = self.cluster.scoped(self.cluster.options().interrupter.child());
        let (holding_back, stop, cluster) = (Arc::new(AtomicBool::new(false)), Stop::new(), self.cluster.clone());
        let (verdict, until) = (Arc::clone(&holding_back), stop.clone());
        let thread = threads::spawn("upkeep", on_death, move || -> Result<(), Infallible> {
            self.run(&verdict, &until);
            Ok(())
        });
        Running { holding_back, stop, cluster, thread: Some(thread) }
    }

    fn run(&self, holding_back: &AtomicBool, until: &Stop) {
        let mut told = false;
        while until.sleep(INTERVAL).is_ok() {
            let before = holding_back.load(Ordering::Relaxed);
            holding_back.store(self.look_at_span(before), Ordering::Relaxed);
            match queue::restore_side_topics(&self.cluster, &self.common, self.starts) {
                Ok(()) => told = false,
                Err(_) if self.cluster.options().interrupter.is_interrupted() => return,
                Err(queue::PrepareError::Unreachable(error)) => log::debug!("could not check the side topics: {error}"),
                Err(queue::PrepareError::Unusable(reason) | queue::PrepareError::Denied(reason)) => {
                    if !std::mem::replace(&mut told, true) {
                        log::warn!("Worker {}: {}; retrying", escape(&self.worker_id), escape(&reason));
                    }
                }
            }
        }
    }

    /// Returns whether the oldest running task keeps its partition from delivering. Logs it each time that begins.
    fn look_at_span(&self, before: bool) -> bool {
        let running = self.in_flight.running();
        let old = running.iter().filter(|task| task.since.elapsed() >= INTERVAL);
        let Some(oldest) = old.min_by_key(|task| task.key) else { return false };
        let Ok(ends) = admin::end_offsets(&self.cluster, &self.common.tasks_topic) else { return before };
        let span = ends.get(&oldest.key.partition.partition).map_or(0, |end| end - oldest.key.offset);
        let long = is_long(span, self.queue.record_locks);
        if long && !before {
            log::warn!(
                "Worker {} holds task {} for {} s with {span} records after it: partition {} delivers at most {} \
                 records beyond its oldest unfinished record and stands still until this task is done",
                self.worker_id,
                oldest.task,
                oldest.since.elapsed().as_secs(),
                oldest.key.partition.partition,
                self.queue.record_locks
            );
        }
        long
    }
}

/// Whether a partition with this span of unfinished offsets is close to standing still: from 97.5 % of the limit on.
fn is_long(span: i64, record_locks: u32) -> bool {
    span >= i64::from(record_locks - record_locks / 40)
}

impl Running {
    /// The result of the last check.
    pub(super) fn is_holding_back(&self) -> bool {
        self.holding_back.load(Ordering::Relaxed)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.trigger();
        self.cluster.options().interrupter.interrupt();
        // A thread that does not end in time ends with the process.
        let _ = self.thread.take().map(|thread| thread.join_deadline(Instant::now() + JOIN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_is_compared_with_the_limit_of_the_group() {
        for (span, record_locks, long) in
            [(3_899, 4_000, false), (3_900, 4_000, true), (1_949, 2_000, false), (1_950, 2_000, true), (98, 100, true)]
        {
            assert_eq!(is_long(span, record_locks), long, "{span} of {record_locks}");
        }
    }
}
