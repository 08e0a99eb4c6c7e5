//! How old a record is that is read back.
//!
//! A record's age is what it lies behind the newest one of the results topic. No clock of ours takes part, which may be
//! an hour wrong; in a cluster where nothing happens records look younger than they are. Fed by the readers of results,
//! asked by all readers.

use parking_lot::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

/// Kafka's times of the newest records that were read: the newest, and the one before, which counts. So one record that
/// is dated in the future makes none look old.
#[derive(Debug)]
pub(super) struct KafkaClock(Mutex<[SystemTime; 2]>);

impl KafkaClock {
    pub(super) fn new() -> Self {
        Self(Mutex::new([UNIX_EPOCH; 2]))
    }

    /// Records of these times were read.
    pub(super) fn read(&self, written: impl IntoIterator<Item = SystemTime>) {
        let mut times = self.0.lock();
        for written in written {
            let [newest, second] = *times;
            *times = [newest.max(written), second.max(newest.min(written))];
        }
    }

    /// When a record was written, by our clock, which says `now`.
    pub(super) fn date(&self, written: SystemTime, now: SystemTime) -> SystemTime {
        let [_, second] = *self.0.lock();
        let age = second.duration_since(written).unwrap_or_default();
        now.checked_sub(age).unwrap_or(UNIX_EPOCH)
    }

    /// As [`date`](Self::date), but never later than the record's own time, so that a dead worker does not look alive.
    pub(super) fn last_seen(&self, written: SystemTime, now: SystemTime) -> SystemTime {
        self.date(written, now).min(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_record_is_as_old_as_it_lies_behind_the_newest() {
        let clock = KafkaClock::new();
        assert_eq!(clock.date(at(50), at(5_000)), at(5_000), "nothing was read");
        clock.read([100, 101, 103, 103].map(at));
        assert_eq!((clock.date(at(103), at(5_000)), clock.date(at(93), at(5_000))), (at(5_000), at(4_990)));
        assert_eq!(clock.last_seen(at(93), at(5_000)), at(93), "our clock is ahead");
        assert_eq!(clock.last_seen(at(93), at(95)), at(85), "our clock is behind");
    }

    #[test]
    fn one_record_that_is_dated_in_the_future_makes_none_look_old() {
        let clock = KafkaClock::new();
        clock.read([100, 9_000, 101, 103, 102].map(at));
        assert_eq!((clock.date(at(103), at(5_000)), clock.date(at(93), at(5_000))), (at(5_000), at(4_990)));
        assert_eq!(clock.date(at(9_000), at(5_000)), at(5_000), "nor itself younger than now");
    }
}
