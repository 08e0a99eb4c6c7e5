//! Doorbells: each wakes a sleeping thread when there is work for it.
//!
//! A ring carries no message: the woken thread checks everything. Called by [`Control`](super::drain::Control).

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use std::sync::Arc;

/// The reason for which a doorbell rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rings {
    /// For work (a handler is free, an acknowledgement is due) and for changes.
    Work,
    /// For changes of the phase, the assignment or a leader. While no tasks are taken also for work, since work may
    /// end the stop.
    Changes,
}

#[derive(Clone, Debug)]
struct Bell {
    rings: Rings,
    /// Capacity one. Full: the bell rings already, so the second ring is not needed.
    sender: Sender<()>,
}

impl Bell {
    /// Returns true if the bell's thread has ended.
    fn ring(&self) -> bool {
        matches!(self.sender.try_send(()), Err(TrySendError::Disconnected(())))
    }
}

/// A doorbell for each registered thread. The list is replaced as a whole, so nothing is sent under the lock.
#[derive(Debug, Default)]
pub(super) struct Bells {
    all: Mutex<Arc<[Bell]>>,
}

impl Bells {
    /// Rings the bells for which `wanted` is true.
    pub(super) fn ring(&self, wanted: impl Fn(Rings) -> bool) {
        let bells = Arc::clone(&self.all.lock());
        if bells.iter().filter(|bell| wanted(bell.rings) && bell.ring()).count() > 0 {
            let left = bells.iter().filter(|bell| !bell.ring()).cloned().collect();
            let mut now = self.all.lock();
            // If another doorbell was added meanwhile, the next ring removes the dead bells.
            if Arc::ptr_eq(&now, &bells) {
                *now = left;
            }
        }
    }

    /// Adds a doorbell, which rings until its receiver is dropped.
    pub(super) fn add(&self, rings: Rings) -> Receiver<()> {
        let (sender, rung) = bounded(1);
        let mut bells = self.all.lock();
        *bells = bells.iter().cloned().chain([Bell { rings, sender }]).collect();
        rung
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doorbell_rings_once_for_many_rings_and_is_removed_with_its_thread() {
        let bells = Bells::default();
        let [first, second] = [Rings::Work, Rings::Work].map(|rings| bells.add(rings));
        bells.ring(|_| true);
        bells.ring(|_| true);
        for bell in [&first, &second] {
            assert!(bell.try_recv().is_ok());
            assert!(bell.try_recv().is_err());
        }
        drop(first);
        bells.ring(|_| true);
        assert!(second.try_recv().is_ok());
        assert_eq!(bells.all.lock().len(), 1);
    }
}
