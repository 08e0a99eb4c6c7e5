//! The earlier starts of a task that was delivered before: how many there were, and how they failed.
//!
//! A delivery is not a start: the broker also counts a delivery of a record that lay ready beside a task that killed
//! its worker. So every start after the first delivery is written to `${TASKS_TOPIC}.starts`, and a handler reads that
//! topic before it dead-letters a task. Called by handlers for records whose delivery count exceeds the limit.

use crate::task::StartsRecord;
use kafka_share::cluster::Cluster;
use kafka_share::error::{ErrorCode, KafkaError};
use kafka_share::reader::{Reader, ReaderOptions, StartAt};
use program::stop::Stop;
use std::time::{Duration, Instant};

/// Longest wait for one round of reading.
const READ_WAIT: Duration = Duration::from_millis(200);
/// Bytes of one round of reading.
const READ_BYTES: i32 = 1024 * 1024;
/// Longest time for the whole reading; then the task is released and checked again at its next delivery.
const READ_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Past {
    /// Starts on record. The start of the first delivery leaves no record.
    pub(super) starts: u32,
    /// Starts that their workers' stops ended, the first delivery included. They do not count against the task.
    pub(super) stops: u32,
    /// The error of the last failed start.
    pub(super) last_error: Option<String>,
}

/// What to do with a task that was delivered `delivery` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Start it.
    Run,
    /// The task has used up its starts: write a dead letter and an error result.
    GiveUp,
    /// The broker drops the record at its next release, but the task has starts left: send it again under the same id.
    SendAgain,
}

impl Past {
    /// Applies the limits: `max_starts` starts, and `near_limit`, a delivery count near the broker's own limit.
    pub(super) fn decide(&self, delivery: u16, max_starts: u16, near_limit: u16) -> Decision {
        if delivery > max_starts && self.counted() >= u32::from(max_starts) {
            Decision::GiveUp
        } else if delivery >= near_limit {
            Decision::SendAgain
        } else {
            Decision::Run
        }
    }

    /// Reads the starts of `task_id` up to the topic's present end.
    ///
    /// # Errors
    /// Kafka could not be read within [`READ_LIMIT`], or `stop` was triggered.
    pub(super) fn read(cluster: &Cluster, topic: &str, task_id: &str, stop: &Stop) -> Result<Self, KafkaError> {
        let options = ReaderOptions { max_wait: READ_WAIT, max_bytes: READ_BYTES, ..ReaderOptions::default() };
        let mut reader = Reader::new(cluster.clone(), topic, StartAt::Earliest, options);
        let deadline = Instant::now() + READ_LIMIT;
        let mut past = Past::default();
        let mut ends = None;
        loop {
            if stop.is_triggered() {
                return Err(KafkaError::Interrupted);
            }
            let round = reader.end_offsets().map(|now| ends.get_or_insert(now).clone()).and_then(|ends| {
                let positions = reader.positions();
                let behind = ends.iter().any(|(partition, end)| positions.get(partition).is_none_or(|at| at < end));
                if behind { reader.poll().map(Some) } else { Ok(None) }
            });
            match round {
                Ok(None) => return Ok(past),
                // The topic keeps an hour of starts, which can take too long while a handler waits.
                Ok(Some(_)) if Instant::now() >= deadline => {
                    let message = format!("the starts were not read within {} s", READ_LIMIT.as_secs());
                    return Err(KafkaError::broker("Fetch", ErrorCode::REQUEST_TIMED_OUT, Some(&message)));
                }
                Ok(Some(records)) => {
                    let mine = records.iter().filter(|record| record.key.as_deref() == Some(task_id.as_bytes()));
                    mine.for_each(|record| past.add(record.value.as_deref().unwrap_or_default()));
                }
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(KafkaError::Interrupted) => return Err(KafkaError::Interrupted),
                Err(_) => cluster.options().interrupter.sleep(READ_WAIT / 4)?,
            }
        }
    }

    /// Starts that count against the task. The first start left no record.
    fn counted(&self) -> u32 {
        (self.starts + 1).saturating_sub(self.stops)
    }

    fn add(&mut self, value: &[u8]) {
        match StartsRecord::decode(value) {
            Some(StartsRecord::Started(_)) => self.starts += 1,
            Some(StartsRecord::Failed(failed)) => self.last_error = Some(failed.error),
            Some(StartsRecord::Stopped(_)) => self.stops += 1,
            Some(StartsRecord::Replayed(_)) => *self = Self::default(),
            None => {}
        }
    }

    /// The reason for the dead letter and the error result.
    pub(super) fn reason(&self, max_starts: u16) -> String {
        let starts = self.counted().max(u32::from(max_starts));
        match &self.last_error {
            Some(error) => format!("dead-lettered after {starts} starts; the last error was: {error}"),
            None => format!("dead-lettered after {starts} starts, each without a result"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(starts: u32) -> Past {
        Past { starts, ..Past::default() }
    }

    #[test]
    fn task_is_dead_lettered_for_starts_and_not_for_deliveries() {
        // (starts on record, delivery, decision) with five starts allowed
        let table = [
            (0, 2, Decision::Run),
            (4, 5, Decision::Run),
            (4, 6, Decision::GiveUp),
            (3, 6, Decision::Run),
            (0, 8, Decision::Run),
            (0, 9, Decision::SendAgain),
            (3, 10, Decision::SendAgain),
            (4, 10, Decision::GiveUp),
            (9, 6, Decision::GiveUp),
        ];
        for (starts, delivery, expected) in table {
            assert_eq!(past(starts).decide(delivery, 5, 9), expected, "{starts} starts, delivery {delivery}");
        }
    }

    #[test]
    fn starts_that_a_stop_ended_do_not_count_against_a_task() {
        let mut past = past(6);
        for _ in 0..3 {
            past.add(br#"{"type":"task_stopped","task_id":"a","worker_id":"w"}"#);
        }
        assert_eq!(past.decide(7, 5, 9), Decision::Run, "seven starts, three of them stopped");
        assert_eq!(past.decide(9, 5, 9), Decision::SendAgain);
        past.add(br#"{"type":"task_started","task_id":"a","delivery":7,"worker_id":"w"}"#);
        assert_eq!(past.decide(8, 5, 9), Decision::GiveUp, "five starts that were not stopped");
        assert_eq!(past.reason(5), "dead-lettered after 5 starts, each without a result");
    }

    #[test]
    fn replay_resets_the_starts_of_a_task() {
        let mut past = Past { starts: 4, stops: 0, last_error: Some("disk full".to_owned()) };
        past.add(br#"{"type":"task_replayed","task_id":"a","replay":7}"#);
        assert_eq!(past, Past::default());
        past.add(br#"{"type":"task_started","task_id":"a","delivery":2,"worker_id":"w"}"#);
        assert_eq!(past.decide(6, 5, 9), Decision::Run, "two starts since the replay");
    }

    #[test]
    fn reason_contains_the_last_error() {
        let failed = Past { starts: 4, last_error: Some("disk full".to_owned()), ..Past::default() };
        assert_eq!(failed.reason(5), "dead-lettered after 5 starts; the last error was: disk full");
        assert!(past(4).reason(5).contains("each without a result"));
    }
}
