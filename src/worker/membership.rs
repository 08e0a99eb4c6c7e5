//! The membership thread: keeps this process in the share group and tells the intake what it is assigned.
//!
//! Not here: the protocol ([`crate::kafka::share_membership`]), fetching (`intake`). Main starts it, tells it to
//! leave, and joins it.

use super::drain::Control;
use super::outage::Outage;
use crate::backoff::Backoff;
use crate::kafka::error::KafkaError;
use crate::kafka::share_membership::ShareMembership;
use crate::kafka::share_wire::SharePartition;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// First pause after a refused or failed heartbeat; a coordinator that moved is found again within it.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause: a full group (81) or a cluster that is away is asked again this often.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

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
pub(super) fn run(
    mut membership: ShareMembership,
    assignment: &Assignment,
    control: &Control,
    commands: &Receiver<Leave>,
) -> Result<(), KafkaError> {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut outage = Outage::new("the share group's coordinator");
    loop {
        let pause = match membership.heartbeat() {
            Ok(heartbeat) => {
                outage.over();
                backoff.reset();
                if let Some(partitions) = heartbeat.assignment {
                    *assignment.partitions.lock() = partitions;
                    control.ring();
                }
                // A member that was just taken in has no assignment yet when a settled group recomputes it: ask soon.
                if assignment.partitions.lock().is_empty() { FIRST_PAUSE } else { heartbeat.interval }
            }
            Err(KafkaError::Interrupted) => return Ok(()),
            Err(error) => {
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
