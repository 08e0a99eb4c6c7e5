//! The membership thread: keeps this process in the share group and tells the intake what it is assigned.
//!
//! Not here: the protocol ([`kafka_share::share_membership`]), fetching (`intake`). Main starts it, tells it to
//! leave, and joins it.

use super::drain::Control;
use crate::outage::Outage;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use kafka_share::error::KafkaError;
use kafka_share::share_membership::ShareMembership;
use kafka_share::share_wire::SharePartition;
use parking_lot::Mutex;
use program::backoff::Backoff;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// First pause after a refused or failed heartbeat; a coordinator that moved is found again within it.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause: a full group (81) or a cluster that is unreachable is asked again this often.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Longest time between two heartbeats, whatever the coordinator asks for (5 s by default): a partition that is added
/// to the tasks topic is noticed with one heartbeat and assigned with the next, and is to be served within 2 s.
const LONGEST_INTERVAL: Duration = Duration::from_millis(900);
/// A member without a partition for this long is worth a line: a new one waits for milliseconds.
const UNASSIGNED: Duration = Duration::from_secs(3);

/// What the group's coordinator has assigned to this process.
#[derive(Debug, Default)]
pub(super) struct Assignment {
    partitions: Mutex<BTreeSet<SharePartition>>,
}

impl Assignment {
    /// The partitions to fetch from; empty until the first heartbeat was answered.
    pub(super) fn partitions(&self) -> BTreeSet<SharePartition> {
        self.partitions.lock().clone()
    }
}

/// Tells the membership thread to leave the group.
#[derive(Debug)]
pub(super) struct Leave {
    /// Give up then.
    pub(super) deadline: Instant,
    /// Capacity one: the outcome, sent once.
    pub(super) done: Sender<Result<(), KafkaError>>,
}

/// Heartbeats until it is told to leave, or until `commands` is disconnected.
///
/// `refused`: capacity one; gets the reason when the group takes no member from the very start and waiting does not
/// help.
pub(super) fn run(
    mut membership: ShareMembership,
    assignment: &Assignment,
    control: &Control,
    refused: &Sender<String>,
    commands: &Receiver<Leave>,
) -> Result<(), KafkaError> {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut outage = Outage::new("the share group's coordinator");
    let mut waiting = Waiting::new();
    let mut joined = false;
    loop {
        let pause = match membership.heartbeat() {
            Ok(heartbeat) => {
                outage.over();
                backoff.reset();
                joined = true;
                if let Some(partitions) = heartbeat.assignment {
                    *assignment.partitions.lock() = partitions;
                    control.announce();
                }
                let count = assignment.partitions.lock().len();
                waiting.next(count, heartbeat.interval.min(LONGEST_INTERVAL))
            }
            Err(KafkaError::Interrupted) => return Ok(()),
            Err(error) => {
                if !joined && let Some(reason) = membership.refusal(&error) {
                    // Capacity one; later reasons are the same.
                    let _ = refused.try_send(reason);
                }
                outage.report(&error);
                backoff.pause()
            }
        };
        match commands.recv_timeout(pause) {
            Ok(leave) => {
                let outcome = membership.leave(leave.deadline);
                // Capacity one and one answer: never full. Disconnected: main no longer waits.
                let _ = leave.done.try_send(outcome);
                return Ok(());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// The time without an assigned partition.
struct Waiting {
    pauses: Backoff,
    since: Option<Instant>,
    told: bool,
}

impl Waiting {
    fn new() -> Self {
        Self { pauses: Backoff::new(FIRST_PAUSE, LONGEST_INTERVAL), since: None, told: false }
    }

    /// The pause before the next heartbeat of a member with this many partitions. One that was just taken in gets them
    /// when a settled group is computed again: it asks soon, and less often the longer that takes.
    fn next(&mut self, partitions: usize, interval: Duration) -> Duration {
        if partitions > 0 {
            let since = self.since.take();
            if let Some(since) = since.filter(|_| std::mem::take(&mut self.told)) {
                log::info!("the share group assigns partitions again, after {:.1} s", since.elapsed().as_secs_f64());
            }
            self.pauses.reset();
            return interval;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() > UNASSIGNED && !std::mem::replace(&mut self.told, true) {
            log::warn!(
                "the share group assigns no partition to this worker: is the tasks topic missing? Asking again until it does"
            );
        }
        self.pauses.pause().min(interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_without_partitions_asks_soon_and_then_as_often_as_all() {
        let interval = LONGEST_INTERVAL;
        let mut waiting = Waiting::new();
        assert!(waiting.next(0, interval) <= FIRST_PAUSE);
        let pauses: Vec<Duration> = (0..20).map(|_| waiting.next(0, interval)).collect();
        assert!(pauses[10..].iter().all(|pause| *pause >= interval / 2), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= interval), "{pauses:?}");
        assert_eq!(waiting.next(1, interval), interval);
        assert!(waiting.next(0, interval) <= FIRST_PAUSE, "it begins anew");
    }
}
