//! The age of a record that is read back.
//!
//! A record's age is its distance in time from the newest record of the results topic. The gateway's clock, which may
//! be an hour wrong, takes no part. In an idle cluster records look younger than they are. Fed by the readers of
//! results, used by all readers.

use parking_lot::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

/// Kafka's times of the two newest records. The second counts, so one record with a future date makes no difference.
#[derive(Debug)]
pub(super) struct KafkaClock(Mutex<[SystemTime; 2]>);

impl KafkaClock {
    pub(super) fn new() -> Self {
        Self(Mutex::new([UNIX_EPOCH; 2]))
    }

    /// Notes the times of records that were read.
    pub(super) fn read(&self, written: impl IntoIterator<Item = SystemTime>) {
        let mut times = self.0.lock();
        for written in written {
            let [newest, second] = *times;
            *times = [newest.max(written), second.max(newest.min(written))];
        }
    }

    /// When a record was written, by the gateway's clock, which shows `now`.
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
    fn age_of_a_record_is_its_distance_from_the_newest_record() {
        let clock = KafkaClock::new();
        assert_eq!(clock.date(at(50), at(5_000)), at(5_000), "no record was read");
        clock.read([100, 101, 103, 103].map(at));
        assert_eq!((clock.date(at(103), at(5_000)), clock.date(at(93), at(5_000))), (at(5_000), at(4_990)));
        assert_eq!(clock.last_seen(at(93), at(5_000)), at(93), "the gateway's clock is ahead");
        assert_eq!(clock.last_seen(at(93), at(95)), at(85), "the gateway's clock is behind");
    }

    #[test]
    fn single_record_with_a_future_date_makes_no_record_look_old() {
        let clock = KafkaClock::new();
        clock.read([100, 9_000, 101, 103, 102].map(at));
        assert_eq!((clock.date(at(103), at(5_000)), clock.date(at(93), at(5_000))), (at(5_000), at(4_990)));
        assert_eq!(clock.date(at(9_000), at(5_000)), at(5_000), "nor does it look younger than now");
    }
}
