//! Doorbells: a thread that sleeps at one is woken when there is something to do for it.
//!
//! They carry no message: a thread that is woken looks at everything. Called by [`Control`](super::drain::Control).

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use std::sync::Arc;

/// What a doorbell rings for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rings {
    /// For work: a handler is free, an acknowledgement is due; and for changes.
    Work,
    /// For changes: of the phase, of the assignment, of a leader. During a stop for work as well, since that may end it.
    Changes,
}

#[derive(Clone, Debug)]
struct Bell {
    rings: Rings,
    /// Capacity one: a bell that rings already need not be rung again, so a full channel loses nothing.
    sender: Sender<()>,
}

impl Bell {
    /// True: it belonged to a thread that has ended.
    fn ring(&self) -> bool {
        matches!(self.sender.try_send(()), Err(TrySendError::Disconnected(())))
    }
}

/// A doorbell for each thread that takes part. Replaced as a whole, so that nothing is sent under the lock.
#[derive(Debug, Default)]
pub(super) struct Bells {
    all: Mutex<Arc<[Bell]>>,
}

impl Bells {
    /// Rings those that are wanted.
    pub(super) fn ring(&self, wanted: impl Fn(Rings) -> bool) {
        let bells = Arc::clone(&self.all.lock());
        if bells.iter().filter(|bell| wanted(bell.rings) && bell.ring()).count() > 0 {
            let left = bells.iter().filter(|bell| !bell.ring()).cloned().collect();
            let mut now = self.all.lock();
            // Another doorbell was added meanwhile: the next ring tries again.
            if Arc::ptr_eq(&now, &bells) {
                *now = left;
            }
        }
    }

    /// One more, which rings until its receiver is dropped.
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
    fn a_bell_rings_once_for_many_rings_and_is_forgotten_with_its_thread() {
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
