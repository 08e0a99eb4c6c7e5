//! Complete requests without a written response: those from before a stop, and later ones.
//!
//! A stop waits only for the first kind, so that new requests cannot prolong it. Entered by the connections' threads,
//! read by `lifecycle`.

use parking_lot::Mutex;
use std::sync::Arc;

#[derive(Debug, Default)]
pub(crate) struct Unanswered(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// A stop has begun.
    line_drawn: bool,
    before: usize,
    after: usize,
}

/// Counts one request until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    unanswered: Arc<Unanswered>,
    is_later: bool,
}

impl Unanswered {
    /// Counts a request until the returned guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Counted {
        let mut counts = self.0.lock();
        let is_later = counts.line_drawn;
        *counts.of(is_later) += 1;
        Counted { unanswered: Arc::clone(self), is_later }
    }

    /// Starts to count new requests as later ones.
    pub(crate) fn draw_line(&self) {
        self.0.lock().line_drawn = true;
    }

    /// The requests from before the stop, or all if there is no stop.
    pub(crate) fn before(&self) -> usize {
        self.0.lock().before
    }

    /// All requests.
    pub(crate) fn count(&self) -> usize {
        let counts = self.0.lock();
        counts.before + counts.after
    }
}

impl Counts {
    fn of(&mut self, is_later: bool) -> &mut usize {
        if is_later { &mut self.after } else { &mut self.before }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *self.unanswered.0.lock().of(self.is_later) -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_counts_by_its_time_of_arrival() {
        let unanswered = Arc::<Unanswered>::default();
        let first = unanswered.enter();
        unanswered.draw_line();
        let later = unanswered.enter();
        assert_eq!((unanswered.before(), unanswered.count()), (1, 2));
        drop(first);
        assert_eq!((unanswered.before(), unanswered.count()), (0, 1));
        drop(later);
        assert_eq!(unanswered.count(), 0);
    }
}
