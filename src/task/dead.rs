//! The records of the dead-letter topic: letters, and the marks of operators about them. Part of [`task`](super).
//!
//! A letter is a record of the tasks topic that was given up, with headers beside its own. A mark has the header
//! [`MARK_HEADER`] and no value. A letter that Kafka writes itself (KIP-1191) has only the `__dlq.errors.` headers. The
//! record of a letter may have any of these headers itself, so what makes it a letter decides: see [`DeadRecord`].

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

/// Header of a letter: why the record was given up, in words.
pub const REASON_HEADER: &str = "lastcall-reason";
/// Header of a letter: the name of its [`ReasonClass`].
pub const REASON_CLASS_HEADER: &str = "lastcall-reason-class";
/// Header of a letter: how often the record was delivered.
pub const DELIVERIES_HEADER: &str = "lastcall-deliveries";
/// Header of a letter: the worker that gave the record up.
pub const WORKER_HEADER: &str = "lastcall-worker";
/// Header of a letter: the record's offset on the tasks topic.
pub const ORIGINAL_OFFSET_HEADER: &str = "lastcall-original-offset";
/// Header of a replayed task, its result, its later letters and the marks: the number of the replay, in decimal. A
/// later replay of a task has a higher number; a task without the header was not replayed.
pub const REPLAY_HEADER: &str = "lastcall-replay";
/// Header of a mark: the name of its [`MarkKind`].
pub const MARK_HEADER: &str = "lastcall-mark";
/// Header of a mark: the [`LetterId`] of its letter.
pub const LETTER_HEADER: &str = "lastcall-letter";
/// Header of a mark: the operator, as `user@host`.
pub const OPERATOR_HEADER: &str = "lastcall-operator";

/// The headers of Kafka's own dead letters, of Apache Kafka 4.4 (KIP-1191, `ShareGroupDLQStateManager`). Their values
/// are text in UTF-8, numbers in decimal.
pub mod dlq {
    /// The topic of the record.
    pub const TOPIC: &str = "__dlq.errors.topic";
    /// The partition of the record.
    pub const PARTITION: &str = "__dlq.errors.partition";
    /// The offset of the record.
    pub const OFFSET: &str = "__dlq.errors.offset";
    /// The share group.
    pub const GROUP: &str = "__dlq.errors.group";
    /// How often the record was delivered.
    pub const DELIVERY_COUNT: &str = "__dlq.errors.delivery.count";
    /// Why the record was given up.
    pub const MESSAGE: &str = "__dlq.errors.message";
}

/// The headers that a letter has beside those of its record. A replayed task does not keep them.
pub const LETTER_HEADERS: [&str; 11] = [
    REASON_HEADER,
    REASON_CLASS_HEADER,
    DELIVERIES_HEADER,
    WORKER_HEADER,
    ORIGINAL_OFFSET_HEADER,
    dlq::TOPIC,
    dlq::PARTITION,
    dlq::OFFSET,
    dlq::GROUP,
    dlq::DELIVERY_COUNT,
    dlq::MESSAGE,
];

/// At most this far the clocks of operators' hosts are ahead.
const CLOCKS_DIFFER: Duration = Duration::from_secs(24 * 3600);

/// The headers of a record that was read.
pub type Headers = [(String, Option<Bytes>)];

/// The last value of the header with this name: those of a letter are added after the headers of its record.
pub fn header<'h>(headers: &'h Headers, name: &str) -> Option<&'h [u8]> {
    headers.iter().rfind(|(own, _)| own == name).and_then(|(_, value)| value.as_deref())
}

/// The header's value as text; invalid UTF-8 is replaced.
pub fn header_text(headers: &Headers, name: &str) -> Option<String> {
    header(headers, name).map(|value| String::from_utf8_lossy(value).into_owned())
}

/// The header's value as a number; `None` if there is none.
pub fn header_number<N: FromStr>(headers: &Headers, name: &str) -> Option<N> {
    std::str::from_utf8(header(headers, name)?).ok()?.parse().ok()
}

/// The number of a record's replay; 0 for a record that was not replayed. A number that is more than a day ahead of
/// this host's clock comes from elsewhere and counts as none, since no replay could exceed it.
pub fn replay_of(headers: &Headers) -> u64 {
    // The first value, as in the results of tasks.
    let Some((_, value)) = headers.iter().find(|(name, _)| name == REPLAY_HEADER) else { return 0 };
    let number = value.as_deref().and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
    let latest = (SystemTime::now() + CLOCKS_DIFFER).duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    number.filter(|number: &u64| u128::from(*number) <= latest).unwrap_or_default()
}

/// Why a record was given up: a small closed set, for counts and filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReasonClass {
    /// The task used up its starts, and none ended: it killed its workers, or their hosts failed.
    Starts,
    /// The task used up its starts, and its handler returned an error or panicked.
    Failed,
    /// The record is not a task.
    NotATask,
    /// The record's batch had a wrong checksum at every delivery.
    Damaged,
    /// Kafka refused a record that the task needs, for example because it is too large.
    Refused,
    /// Kafka gave the record up at the group's delivery limit.
    DeliveryLimit,
    /// A consumer of another program rejected the record.
    Rejected,
    /// Another reason, or none.
    Other,
}

impl ReasonClass {
    /// All classes.
    pub const ALL: [Self; 8] = [
        Self::Starts,
        Self::Failed,
        Self::NotATask,
        Self::Damaged,
        Self::Refused,
        Self::DeliveryLimit,
        Self::Rejected,
        Self::Other,
    ];

    /// The name in headers, in options and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starts => "starts",
            Self::Failed => "failed",
            Self::NotATask => "not-a-task",
            Self::Damaged => "damaged",
            Self::Refused => "refused",
            Self::DeliveryLimit => "delivery-limit",
            Self::Rejected => "rejected",
            Self::Other => "other",
        }
    }

    /// The class of a reason in words: of a worker's own, or of Kafka's messages (`ShareGroupDLQ` of Apache Kafka 4.4).
    pub fn of_reason(reason: &str) -> Self {
        const RULES: [(&str, &str, ReasonClass); 8] = [
            ("dead-lettered after ", "; the last error was: ", ReasonClass::Failed),
            ("dead-lettered after ", "", ReasonClass::Starts),
            ("not a task: ", "checksum", ReasonClass::Damaged),
            ("not a task: ", "", ReasonClass::NotATask),
            ("it could not be sent again: ", "", ReasonClass::Refused),
            ("Offset rejected by client", "", ReasonClass::Rejected),
            ("Offset delivery count exceeded", "", ReasonClass::DeliveryLimit),
            ("Acquisition lock timed out", "", ReasonClass::DeliveryLimit),
        ];
        let fits = |(start, part, _): &&(&str, &str, Self)| reason.starts_with(start) && reason.contains(part);
        RULES.iter().find(fits).map_or(Self::Other, |(_, _, class)| *class)
    }

    fn of_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name().as_bytes() == name)
    }
}

impl fmt::Display for ReasonClass {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A letter's position on the dead-letter topic; its text is `PARTITION:OFFSET`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LetterId {
    /// The partition.
    pub partition: i32,
    /// The offset in the partition.
    pub offset: i64,
}

impl fmt::Display for LetterId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.partition, self.offset)
    }
}

impl FromStr for LetterId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (partition, offset) = text.split_once(':').ok_or(())?;
        Ok(Self { partition: partition.parse().map_err(|_| ())?, offset: offset.parse().map_err(|_| ())? })
    }
}

/// What a letter's headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterHead {
    /// Why the record was given up, in words; empty if the letter does not say.
    pub reason: String,
    /// The class of the reason.
    pub class: ReasonClass,
    /// How often the record was delivered.
    pub deliveries: Option<u16>,
    /// The worker that gave it up; `None` for a letter that Kafka wrote.
    pub worker: Option<String>,
    /// The number of the replay that failed; 0 for a task that was not replayed.
    pub replay: u64,
    /// The partition and the offset of the record on the tasks topic.
    pub origin: Option<(i32, i64)>,
}

/// The kind of a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkKind {
    /// An operator is about to replay the letter. The first claim of a letter holds; it expires.
    Claim,
    /// The letter's task is on the tasks topic again.
    Replayed,
    /// The letter needs nothing more.
    Dropped,
}

impl MarkKind {
    const ALL: [Self; 3] = [Self::Claim, Self::Replayed, Self::Dropped];

    /// The value of [`MARK_HEADER`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Replayed => "replayed",
            Self::Dropped => "dropped",
        }
    }
}

/// An operator's mark about a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its kind.
    pub kind: MarkKind,
    /// Its letter.
    pub letter: LetterId,
    /// The number of the replay; 0 for other kinds.
    pub replay: u64,
    /// The operator, as `user@host`.
    pub operator: String,
}

/// A record of the dead-letter topic: a mark if it has [`MARK_HEADER`] and neither [`REASON_HEADER`] nor [`dlq::TOPIC`],
/// and a letter otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeadRecord {
    /// A record that was given up.
    Letter(LetterHead),
    /// A mark about a letter.
    Mark(Mark),
    /// A mark that this version does not know; readers ignore it.
    Other,
}

impl DeadRecord {
    /// Reads the headers of a record.
    pub fn of_headers(headers: &Headers) -> Self {
        let has = |name: &str| headers.iter().any(|(own, _)| own == name);
        if has(MARK_HEADER) && !has(REASON_HEADER) && !has(dlq::TOPIC) {
            return Mark::of_headers(headers).map_or(Self::Other, Self::Mark);
        }
        let text = |name: &str| header_text(headers, name);
        let reason = text(REASON_HEADER).or_else(|| text(dlq::MESSAGE)).unwrap_or_default();
        let named = header(headers, REASON_CLASS_HEADER).and_then(ReasonClass::of_name);
        Self::Letter(LetterHead {
            class: named.unwrap_or_else(|| ReasonClass::of_reason(&reason)),
            reason,
            deliveries: header_number(headers, DELIVERIES_HEADER)
                .or_else(|| header_number(headers, dlq::DELIVERY_COUNT)),
            worker: text(WORKER_HEADER),
            replay: replay_of(headers),
            origin: header_number(headers, dlq::PARTITION).zip(header_number(headers, dlq::OFFSET)),
        })
    }
}

impl Mark {
    fn of_headers(headers: &Headers) -> Option<Self> {
        let kind = header(headers, MARK_HEADER)?;
        Some(Self {
            kind: MarkKind::ALL.into_iter().find(|known| known.name().as_bytes() == kind)?,
            letter: header_number(headers, LETTER_HEADER)?,
            replay: replay_of(headers),
            operator: header_text(headers, OPERATOR_HEADER).unwrap_or_default(),
        })
    }

    /// The headers of its record.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            (MARK_HEADER, self.kind.name().to_owned()),
            (LETTER_HEADER, self.letter.to_string()),
            (OPERATOR_HEADER, self.operator.clone()),
        ];
        headers.extend((self.replay != 0).then(|| (REPLAY_HEADER, self.replay.to_string())));
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Vec<(String, Option<Bytes>)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), Some(Bytes::from((*value).to_owned())))).collect()
    }

    fn letter(pairs: &[(&str, &str)]) -> LetterHead {
        match DeadRecord::of_headers(&headers(pairs)) {
            DeadRecord::Letter(head) => head,
            other => panic!("{other:?} is not a letter"),
        }
    }

    #[test]
    fn letter_of_kafka_has_only_its_own_headers() {
        let head = letter(&[
            (dlq::TOPIC, "tasks"),
            (dlq::PARTITION, "0"),
            (dlq::OFFSET, "41"),
            (dlq::GROUP, "workers"),
            (dlq::DELIVERY_COUNT, "10"),
            (dlq::MESSAGE, "Offset rejected by client."),
        ]);
        let expected = ("Offset rejected by client.", ReasonClass::Rejected, Some(10), None);
        assert_eq!((head.reason.as_str(), head.class, head.deliveries, head.worker), expected);
        assert_eq!(head.origin, Some((0, 41)));
        let bare = letter(&[]);
        assert_eq!((bare.class, bare.deliveries, bare.replay), (ReasonClass::Other, None, 0));
    }

    #[test]
    fn class_comes_from_its_header_or_from_the_reason() {
        let table = [
            ("dead-lettered after 5 starts, each without a result", ReasonClass::Starts),
            ("dead-lettered after 5 starts; the last error was: Delivery count", ReasonClass::Failed),
            ("not a task: the value is null", ReasonClass::NotATask),
            ("not a task: the batch's checksum does not match", ReasonClass::Damaged),
            ("it could not be sent again: refused: 10", ReasonClass::Refused),
            ("Offset delivery count exceeded the threshold.", ReasonClass::DeliveryLimit),
            ("", ReasonClass::Other),
        ];
        for (reason, class) in table {
            assert_eq!(letter(&[(REASON_HEADER, reason)]).class, class, "{reason}");
        }
        let named = letter(&[(REASON_HEADER, "not a task: x"), (REASON_CLASS_HEADER, "failed")]);
        assert_eq!(named.class, ReasonClass::Failed);
        let unknown = letter(&[(REASON_HEADER, "not a task: x"), (REASON_CLASS_HEADER, "later version")]);
        assert_eq!(unknown.class, ReasonClass::NotATask);
    }

    #[test]
    fn letter_of_a_record_with_headers_of_marks_and_letters_is_a_letter_with_its_own_facts() {
        let foreign =
            [(MARK_HEADER, "dropped"), (LETTER_HEADER, "0:3"), (REASON_HEADER, "mine"), (dlq::DELIVERY_COUNT, "1")];
        let own = [(REASON_HEADER, "not a task: x"), (REASON_CLASS_HEADER, "not-a-task"), (DELIVERIES_HEADER, "3")];
        let head = letter(&[&foreign[..], &own].concat());
        assert_eq!(
            (head.reason.as_str(), head.class, head.deliveries),
            ("not a task: x", ReasonClass::NotATask, Some(3))
        );
        let of_kafka = [(dlq::TOPIC, "tasks"), (dlq::DELIVERY_COUNT, "10")];
        assert_eq!(letter(&[&foreign[..2], &of_kafka].concat()).deliveries, Some(10));
    }

    #[test]
    fn number_of_a_replay_that_is_far_in_the_future_is_none() {
        let number = |number: u64| replay_of(&headers(&[(REPLAY_HEADER, &number.to_string())]));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
        let now = u64::try_from(now).expect("in range");
        let ahead = now + 23 * 3_600_000;
        assert_eq!([number(7), number(ahead), number(now + 25 * 3_600_000), number(u64::MAX)], [7, ahead, 0, 0]);
    }

    #[test]
    fn mark_is_read_back_as_written_and_is_never_a_letter() {
        for (kind, replay) in [(MarkKind::Claim, 7), (MarkKind::Replayed, 7), (MarkKind::Dropped, 0)] {
            let letter = LetterId { partition: 1, offset: 17 };
            let mark = Mark { kind, letter, replay, operator: "ann@host".to_owned() };
            let written = mark.headers();
            let pairs: Vec<_> = written.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(DeadRecord::of_headers(&headers(&pairs)), DeadRecord::Mark(mark));
        }
        for strange in [&[(MARK_HEADER, "later version"), (LETTER_HEADER, "0:1")][..], &[(MARK_HEADER, "claim")]] {
            assert_eq!(DeadRecord::of_headers(&headers(strange)), DeadRecord::Other);
        }
    }
}
