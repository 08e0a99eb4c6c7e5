//! Replacements for records that Kafka refuses: each keeps less, and the last one is a line in the log. So every debt
//! ends, and the task that holds it is settled.
//!
//! Pure; the [`outbox`](super::outbox) builds the records and sends them.

use super::in_flight::RecordKey;
use crate::task::Headers;
use crate::trace;
use kafka_share::share_session::AcquiredRecord;
use program::logging::escape;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a key, and of a reason, that a log line or the smallest dead letter shows.
const SHOWN: usize = 200;
/// First rest of a task whose record was denied; doubled with each further delivery.
const FIRST_REST: Duration = Duration::from_secs(5);
/// Longest rest.
const LONGEST_REST: Duration = Duration::from_secs(60);
/// Rest of a task at its last delivery: the broker would drop it at a release, so the worker holds it.
const LAST_REST: Duration = Duration::from_secs(3600);

/// A record that has to be in Kafka before its task is accepted, with the data for a smaller replacement.
#[derive(Clone, Debug)]
pub(super) struct Debt {
    /// The task's delivery count.
    pub(super) deliveries: u16,
    pub(super) record: Owed,
}

#[derive(Clone, Debug)]
pub(super) enum Owed {
    /// The result of the task with this id, and the headers that its record got from the task's record.
    Result(Arc<str>, Headers),
    /// An error result instead of a result that Kafka refused.
    ErrorResult(Arc<str>, Headers),
    /// A copy of the record for the dead-letter topic, the reason, and how much of the record it keeps.
    DeadLetter(Box<AcquiredRecord>, Arc<str>, Part),
    /// A copy of the record for the tasks topic, and the task's id.
    Copy(Box<AcquiredRecord>, Arc<str>),
}

/// How much of a record its dead letter keeps. The headers of this program are always kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Key, value and headers.
    Whole,
    /// Key and headers.
    WithoutValue,
    /// The key.
    KeyAlone,
}

/// The replacement of a refused record.
#[derive(Debug)]
pub(super) struct Repair {
    pub(super) key: RecordKey,
    pub(super) debt: Debt,
    /// Why Kafka refused the record.
    pub(super) reason: Arc<str>,
    /// The task that this dead-letters; its caller gets an error result.
    pub(super) given_up: Option<Arc<str>>,
}

impl Debt {
    /// The smaller replacement when Kafka refuses this record for `reason`; `None` when nothing smaller exists.
    pub(super) fn less(&self, reason: &str) -> Option<Self> {
        let record = match &self.record {
            Owed::Result(task_id, carried) => Owed::ErrorResult(Arc::clone(task_id), carried.clone()),
            Owed::ErrorResult(..) => return None,
            Owed::Copy(record, _) => {
                let why = format!("it could not be sent again: {reason}");
                Owed::DeadLetter(record.clone(), why.into(), Part::Whole)
            }
            Owed::DeadLetter(record, why, part) => {
                let less = match part {
                    Part::Whole if record.value.is_some() => Part::WithoutValue,
                    Part::Whole | Part::WithoutValue => Part::KeyAlone,
                    Part::KeyAlone => return None,
                };
                let why = if less == Part::KeyAlone { shortened(why).into() } else { Arc::clone(why) };
                Owed::DeadLetter(record.clone(), why, less)
            }
        };
        Some(Self { record, ..*self })
    }

    /// How long the task rests before its release when Kafka denies its record. Each release brings it nearer to the
    /// delivery limit, and at its last delivery Kafka would drop it.
    pub(super) fn rest(&self, last_delivery: bool) -> Duration {
        if last_delivery {
            return LAST_REST;
        }
        FIRST_REST.saturating_mul(1 << self.deliveries.saturating_sub(1).min(10)).min(LONGEST_REST)
    }

    /// The facts that the log keeps of a record that cannot be written.
    pub(super) fn facts(&self) -> String {
        match &self.record {
            Owed::Result(task_id, carried) | Owed::ErrorResult(task_id, carried) => {
                format!("result of task {}", trace::named(task_id, carried))
            }
            Owed::Copy(record, task_id) => format!("copy of task {}", trace::named(task_id, &record.headers)),
            Owed::DeadLetter(record, why, _) => format!(
                "dead letter of the record with key {}, {} header(s), a value of {} bytes and {} deliveries, given up \
                 because: {}",
                record
                    .key
                    .as_ref()
                    .map_or("none".into(), |key| format!("\"{}\"", escape(&shortened(&String::from_utf8_lossy(key))))),
                record.headers.len(),
                record.value.as_ref().map_or(0, bytes::Bytes::len),
                record.delivery_count,
                escape(&shortened(why))
            ),
        }
    }
}

/// The first [`SHOWN`] bytes of a text at most, cut between characters.
fn shortened(text: &str) -> String {
    text.char_indices().take_while(|(at, c)| at + c.len_utf8() <= SHOWN).map(|(_, c)| c).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use kafka_share::share_wire::SharePartition;

    fn record(value: Option<&'static str>) -> Box<AcquiredRecord> {
        Box::new(AcquiredRecord {
            partition: SharePartition { topic_id: uuid::Uuid::nil(), partition: 0 },
            offset: 7,
            delivery_count: 3,
            key: Some(Bytes::from_static(b"k\n")),
            value: value.map(|value| Bytes::from_static(value.as_bytes())),
            headers: vec![("h".to_owned(), None)],
            fault: None,
        })
    }

    fn parts(debt: Debt) -> Vec<Part> {
        let ladder = std::iter::successors(Some(debt), |debt| debt.less("too large"));
        ladder
            .filter_map(|debt| if let Owed::DeadLetter(_, _, part) = debt.record { Some(part) } else { None })
            .collect()
    }

    #[test]
    fn replacements_of_a_dead_letter_get_smaller_and_end() {
        let dead = |value| Debt { deliveries: 1, record: Owed::DeadLetter(record(value), "why".into(), Part::Whole) };
        assert_eq!(parts(dead(Some("v"))), [Part::Whole, Part::WithoutValue, Part::KeyAlone]);
        assert_eq!(parts(dead(None)), [Part::Whole, Part::KeyAlone]);
    }

    #[test]
    fn copy_is_replaced_by_a_dead_letter_and_result_by_an_error_result() {
        let copy = Debt { deliveries: 9, record: Owed::Copy(record(Some("v")), "id".into()) };
        assert_eq!(parts(copy), [Part::Whole, Part::WithoutValue, Part::KeyAlone]);
        let result = Debt { deliveries: 1, record: Owed::Result("id".into(), Headers::new()) };
        let error = result.less("too large").expect("an error result");
        assert!(matches!(&error.record, Owed::ErrorResult(id, _) if &**id == "id"));
        assert!(error.less("too large").is_none());
    }

    #[test]
    fn facts_are_short_and_escaped() {
        let why: Arc<str> = "x".repeat(10_000).into();
        let facts = Debt { deliveries: 3, record: Owed::DeadLetter(record(Some("v")), why, Part::KeyAlone) }.facts();
        assert!(facts.contains("key \"k\\n\"") && facts.contains("3 deliveries") && facts.len() < 500, "{facts}");
    }

    #[test]
    fn denied_task_rests_longer_with_each_delivery_and_is_held_near_the_limit() {
        let debt = |deliveries| Debt { deliveries, record: Owed::Result("id".into(), Headers::new()) };
        assert_eq!([1, 2, 5, 8].map(|it| debt(it).rest(false)), [5, 10, 60, 60].map(Duration::from_secs));
        assert_eq!(debt(9).rest(true), LAST_REST);
    }
}
