//! The membership thread: keeps this process in the share group and stores its assignment.
//!
//! Not here: the protocol ([`kafka_share::share_membership`]), fetching (`intake`). Main starts the thread, sends it
//! [`Leave`], and joins it.

use super::drain::Control;
use crate::outage::{Outage, Refusal};
use crate::queue::{RIGHTS_WAIT, waited_for};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use kafka_share::error::{ErrorCode, KafkaError};
use kafka_share::share_membership::ShareMembership;
use kafka_share::share_wire::SharePartition;
use parking_lot::Mutex;
use program::backoff::Backoff;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// First pause after a refused or failed heartbeat; short, so a coordinator that moved is found soon.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause: how often a full group (81) or an unreachable cluster is asked again.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Longest time between two heartbeats, whatever the coordinator asks for (5 s by default). A new partition is noticed
/// with one heartbeat, assigned with the next, and has to be served within 2 s.
const LONGEST_INTERVAL: Duration = Duration::from_millis(900);
/// After this long without a partition the worker logs a warning; a new member waits only milliseconds.
const UNASSIGNED: Duration = Duration::from_secs(3);

/// The partitions that the group's coordinator has assigned to this process.
#[derive(Debug, Default)]
pub(super) struct Assignment {
    partitions: Mutex<BTreeSet<SharePartition>>,
}

impl Assignment {
    /// The assigned partitions; empty until the coordinator has answered the first heartbeat.
    pub(super) fn partitions(&self) -> BTreeSet<SharePartition> {
        self.partitions.lock().clone()
    }
}

/// Tells the membership thread to leave the group.
#[derive(Debug)]
pub(super) struct Leave {
    /// The latest end of the attempt.
    pub(super) deadline: Instant,
    /// Capacity one: the outcome, sent once.
    pub(super) done: Sender<Result<(), KafkaError>>,
}

/// Sends heartbeats until a [`Leave`] comes, or until `commands` is disconnected.
///
/// `refused`: capacity one; gets the reason if the group refuses this member from the start, a right for 30 s.
pub(super) fn run(
    mut membership: ShareMembership,
    assignment: &Assignment,
    control: &Control,
    refused: &Sender<String>,
    commands: &Receiver<Leave>,
) -> Result<(), KafkaError> {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut outage = Outage::new("the share group's coordinator", &control.refusals);
    let mut waiting = Waiting::new();
    let mut joined = false;
    let mut denied = None;
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
                match (membership.refusal(&error), error.code()) {
                    (Some(reason), _) => {
                        let waited = waited_for(&mut denied, &reason);
                        if !joined && (error.missing_right().is_none() || waited >= RIGHTS_WAIT) {
                            // Capacity one; later reasons are the same.
                            let _ = refused.try_send(reason.clone());
                        }
                        outage.report(&Refusal(reason));
                    }
                    (None, Some(ErrorCode::UNKNOWN_MEMBER_ID | ErrorCode::FENCED_MEMBER_EPOCH)) => {
                        log::info!("the share group has removed this worker ({error}); joining again");
                    }
                    (None, _) => {
                        denied = None;
                        outage.report(&error);
                    }
                }
                backoff.pause()
            }
        };
        match commands.recv_timeout(pause.max(membership.rest())) {
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

    /// The pause before the next heartbeat of a member with this many partitions. A new member gets partitions once the
    /// coordinator has computed the assignment anew, so its first pauses are short.
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
            log::warn!("the share group assigns no partition to this worker: is the tasks topic missing? Retrying");
        }
        self.pauses.pause().min(interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_without_partitions_asks_soon_and_then_at_the_usual_interval() {
        let interval = LONGEST_INTERVAL;
        let mut waiting = Waiting::new();
        assert!(waiting.next(0, interval) <= FIRST_PAUSE);
        let pauses: Vec<Duration> = (0..20).map(|_| waiting.next(0, interval)).collect();
        assert!(pauses[10..].iter().all(|pause| *pause >= interval / 2), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= interval), "{pauses:?}");
        assert_eq!(waiting.next(1, interval), interval);
        assert!(waiting.next(0, interval) <= FIRST_PAUSE, "the short pauses begin again");
    }
}
