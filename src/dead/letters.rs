//! The letters of the dead-letter topic and their states, from its records in the order of the log.
//!
//! Every reader comes to the same states: of two operators that claim one letter, the first in the log holds it. A claim
//! whose replay was not marked within [`CLAIM_LIFE`] expires, and the letter can be claimed again. Pure: times are those
//! of the records, or parameters. Used by the program `dead` and by the gateway.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kafka_share::ReadRecord;
use serde_json::{Value, json};

use crate::task::dead::{DeadRecord, LetterHead, LetterId, Mark, MarkKind, ReasonClass};
use crate::task::{ID_LIMIT, Task};

/// After this time without its mark `replayed`, a claim holds no longer.
pub(crate) const CLAIM_LIFE: Duration = Duration::from_secs(15);
/// Bytes of a reason that are kept.
const REASON_BYTES: usize = 500;

/// A claim to a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The offset of its mark.
    pub(crate) offset: i64,
    /// The number of the replay.
    pub(crate) replay: u64,
    pub(crate) operator: String,
    pub(crate) at: SystemTime,
}

/// Whether a letter still needs an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The last claim of [`Letter::claims`] holds, unless it has expired.
    Claimed,
    Replayed,
    Dropped,
}

/// A letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) id: LetterId,
    /// The id of its task, from its value or its key; `None` if neither has a usable id.
    pub(crate) task_id: Option<String>,
    /// When Kafka appended it.
    pub(crate) at: SystemTime,
    pub(crate) head: LetterHead,
    /// The claims that held, in order. All but the last have expired.
    pub(crate) claims: Vec<Claim>,
    phase: Phase,
    /// The operator of the last mark, and its time.
    pub(crate) marked: Option<(String, SystemTime)>,
    /// The highest number of a replay in the letter and in its marks.
    replay: u64,
}

/// The state of a letter, as operators see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LetterState {
    /// Nothing has been done about it.
    Open,
    /// An operator is replaying it.
    Replaying,
    /// A replay was begun and not finished; it can be replayed again.
    Unfinished,
    /// Its task was produced again.
    Replayed,
    /// An operator has dropped it.
    Dropped,
}

impl LetterState {
    pub(crate) const ALL: [Self; 5] = [Self::Open, Self::Replaying, Self::Unfinished, Self::Replayed, Self::Dropped];

    /// The name in options and in JSON.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Replaying => "replaying",
            Self::Unfinished => "unfinished",
            Self::Replayed => "replayed",
            Self::Dropped => "dropped",
        }
    }
}

impl Letter {
    /// The state at this time.
    pub(crate) fn state(&self, now: SystemTime) -> LetterState {
        match (&self.phase, self.claims.last()) {
            (Phase::Claimed, Some(claim)) if now < claim.at + CLAIM_LIFE => LetterState::Replaying,
            (Phase::Claimed, _) => LetterState::Unfinished,
            (Phase::Open, _) => LetterState::Open,
            (Phase::Replayed, _) => LetterState::Replayed,
            (Phase::Dropped, _) => LetterState::Dropped,
        }
    }

    /// Whether its task was neither replayed nor dropped.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Claimed)
    }

    /// Whether the claim with this offset holds.
    pub(crate) fn is_held_by(&self, offset: i64) -> bool {
        self.phase == Phase::Claimed && self.claims.last().is_some_and(|claim| claim.offset == offset)
    }

    /// Whether its reason is of the class with this name, or begins with this text.
    pub(crate) fn has_reason(&self, wanted: &str) -> bool {
        self.head.class.name() == wanted || self.head.reason.starts_with(wanted)
    }

    /// The letter as JSON, without the task's text.
    pub(crate) fn to_json(&self, now: SystemTime) -> Value {
        let mut value = json!({
            "task_id": self.task_id,
            "letter": self.id.to_string(),
            "time": seconds(self.at),
            "reason_class": self.head.class.name(),
            "reason": self.head.reason,
            "deliveries": self.head.deliveries,
            "worker": self.head.worker,
            "state": self.state(now).name(),
        });
        if let Some((operator, at)) = &self.marked {
            value["operator"] = operator.as_str().into();
            value["marked"] = seconds(*at).into();
        }
        value
    }

    fn mark(&mut self, mark: Mark, offset: i64, at: SystemTime) {
        self.replay = self.replay.max(mark.replay);
        let Mark { kind, replay, operator, .. } = mark;
        let operator = shortened(operator, ID_LIMIT);
        let is_held = self.state(at) == LetterState::Replaying;
        match kind {
            _ if !self.is_open() => return,
            // Only the operator whose claim held has produced the task.
            MarkKind::Replayed => self.phase = Phase::Replayed,
            MarkKind::Claim | MarkKind::Dropped if is_held => return,
            MarkKind::Claim => {
                self.claims.push(Claim { offset, replay, operator: operator.clone(), at });
                self.phase = Phase::Claimed;
            }
            MarkKind::Dropped => self.phase = Phase::Dropped,
        }
        self.marked = Some((operator, at));
    }
}

/// All letters, or the newest open letters.
#[derive(Debug)]
pub(crate) struct Letters {
    letters: BTreeMap<LetterId, Letter>,
    /// `Some`: only open letters are kept, and at most this many.
    most_open: Option<usize>,
    /// The kept letters in the order of reading, and some that were closed since.
    order: VecDeque<LetterId>,
    /// Whether an open letter is missing because of `most_open`.
    is_truncated: bool,
}

impl Letters {
    /// Keeps all letters.
    pub(crate) fn all() -> Self {
        Self { letters: BTreeMap::new(), most_open: None, order: VecDeque::new(), is_truncated: false }
    }

    /// Keeps open letters only, and the newest `most` of them.
    pub(crate) fn open(most: usize) -> Self {
        Self { most_open: Some(most), ..Self::all() }
    }

    /// Applies a record. The records of a partition come in their order.
    pub(crate) fn read(&mut self, record: &ReadRecord) {
        match DeadRecord::of_headers(&record.headers) {
            DeadRecord::Letter(head) => self.add(record, head),
            DeadRecord::Mark(mark) => {
                let id = mark.letter;
                let Some(letter) = self.letters.get_mut(&id) else { return };
                letter.mark(mark, record.offset, record.timestamp);
                if self.most_open.is_some() && !letter.is_open() {
                    self.letters.remove(&id);
                }
            }
            DeadRecord::Other => {}
        }
    }

    fn add(&mut self, record: &ReadRecord, head: LetterHead) {
        let id = LetterId { partition: record.partition, offset: record.offset };
        let head = LetterHead {
            reason: shortened(head.reason, REASON_BYTES),
            worker: head.worker.map(|worker| shortened(worker, ID_LIMIT)),
            ..head
        };
        let letter = Letter {
            id,
            task_id: Task::id_of(record.key.as_deref(), record.value.as_deref()),
            at: record.timestamp,
            replay: head.replay,
            head,
            claims: Vec::new(),
            phase: Phase::Open,
            marked: None,
        };
        let Some(most) = self.most_open else {
            self.letters.insert(id, letter);
            return;
        };
        self.letters.insert(id, letter);
        self.order.push_back(id);
        // Closed letters leave the order when it is twice as long as needed.
        if self.order.len() > 2 * most {
            self.order.retain(|id| self.letters.contains_key(id));
        }
        while self.letters.len() > most {
            let Some(oldest) = self.order.pop_front() else { return };
            self.is_truncated |= self.letters.remove(&oldest).is_some();
        }
    }

    /// Forgets the letters that retention has deleted: those before these offsets of their partitions.
    pub(crate) fn forget_before(&mut self, starts: &BTreeMap<i32, i64>) {
        let is_deleted = |id: &LetterId| starts.get(&id.partition).is_some_and(|start| id.offset < *start);
        self.letters.retain(|id, _| !is_deleted(id));
    }

    /// The letter at this position.
    pub(crate) fn get(&self, id: LetterId) -> Option<&Letter> {
        self.letters.get(&id)
    }

    /// The newest later letter of the same task that was not dropped.
    pub(crate) fn newer(&self, letter: &Letter) -> Option<&Letter> {
        let age = |letter: &Letter| (letter.at, letter.id);
        let same = self.letters.values().filter(|other| other.task_id == letter.task_id && age(other) > age(letter));
        same.filter(|other| other.phase != Phase::Dropped).max_by_key(|other| age(other))
    }

    /// The letters, the newest last.
    pub(crate) fn by_age(&self) -> Vec<&Letter> {
        let mut letters: Vec<_> = self.letters.values().collect();
        letters.sort_by_key(|letter| (letter.at, letter.id));
        letters
    }

    /// The number for another replay of this letter: higher than any earlier number of its task, and the time in
    /// milliseconds, so that it also exceeds the numbers in letters that Kafka has deleted.
    pub(crate) fn next_replay(&self, letter: &Letter, now: SystemTime) -> u64 {
        let same = self.letters.values().filter(|other| other.task_id == letter.task_id);
        let last = same.map(|other| other.replay).max().unwrap_or_default();
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        u64::try_from(now).unwrap_or_default().max(last.saturating_add(1))
    }

    /// The number of open letters by the class of their reasons; classes without one are left out.
    pub(crate) fn counts(&self) -> BTreeMap<ReasonClass, usize> {
        let mut counts = BTreeMap::new();
        for letter in self.letters.values().filter(|letter| letter.is_open()) {
            *counts.entry(letter.head.class).or_default() += 1;
        }
        counts
    }

    /// The counts and these letters as JSON.
    pub(crate) fn to_json<'l>(&self, shown: impl IntoIterator<Item = &'l Letter>, now: SystemTime) -> Value {
        let counts = self.counts();
        let by_reason: serde_json::Map<_, _> =
            counts.iter().map(|(class, count)| (class.name().to_owned(), Value::from(*count))).collect();
        json!({
            "open": counts.values().sum::<usize>(),
            "by_reason": by_reason,
            "truncated": self.is_truncated,
            "letters": shown.into_iter().map(|letter| letter.to_json(now)).collect::<Vec<_>>(),
        })
    }
}

/// Why the marks of a topic with this many partitions cannot be read; `None` if they can.
pub(crate) fn unordered(topic: &str, partitions: usize) -> Option<String> {
    let topic = topic.escape_debug();
    let text = || format!("topic \"{topic}\" has {partitions} partitions; marks have no order there; expected 1");
    (partitions > 1).then(text)
}

/// Unix seconds with a fraction.
fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A copy of the first bytes of a text, at most `most`, cut between characters.
fn shortened(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text.shrink_to_fit();
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::task::dead::{REASON_HEADER, REPLAY_HEADER};
    use bytes::Bytes;

    pub(in crate::dead) fn time(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    pub(in crate::dead) fn record(offset: i64, seconds: u64, headers: &[(&str, &str)]) -> ReadRecord {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), Some(Bytes::from((*value).to_owned()))));
        ReadRecord {
            partition: 0,
            offset,
            timestamp: time(seconds),
            key: Some(Bytes::from_static(b"task")),
            value: None,
            headers: headers.collect(),
        }
    }

    pub(in crate::dead) fn letter(offset: i64, seconds: u64) -> ReadRecord {
        record(offset, seconds, &[(REASON_HEADER, "not a task: it was a test")])
    }

    pub(in crate::dead) fn mark(kind: MarkKind, offset: i64, seconds: u64, letter: i64) -> ReadRecord {
        let letter = LetterId { partition: 0, offset: letter };
        let replay = u64::try_from(offset).expect("positive");
        let headers = Mark { kind, letter, replay, operator: format!("operator {offset}") }.headers();
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        record(offset, seconds, &headers)
    }

    pub(in crate::dead) fn read(records: &[ReadRecord]) -> Letters {
        let mut letters = Letters::all();
        records.iter().for_each(|record| letters.read(record));
        letters
    }

    fn only(letters: &Letters) -> &Letter {
        letters.by_age()[0]
    }

    #[test]
    fn first_claim_holds_until_its_end_and_a_later_one_then() {
        use MarkKind::{Claim, Dropped, Replayed};
        let letters = read(&[letter(0, 100), mark(Claim, 1, 110, 0), mark(Claim, 2, 111, 0), mark(Dropped, 3, 112, 0)]);
        let held = only(&letters);
        assert!(held.is_held_by(1) && !held.is_held_by(2), "{held:?}");
        assert_eq!([held.state(time(124)), held.state(time(125))], [LetterState::Replaying, LetterState::Unfinished]);
        let letters = read(&[letter(0, 100), mark(Claim, 1, 110, 0), mark(Claim, 2, 125, 0)]);
        assert!(only(&letters).is_held_by(2));
        assert_eq!(only(&letters).claims.len(), 2, "the task of the first claim may be in Kafka");
        let letters = read(&[letter(0, 100), mark(Claim, 1, 110, 0), mark(Dropped, 2, 125, 0)]);
        assert_eq!(only(&letters).state(time(125)), LetterState::Dropped);
        let letters = read(&[
            letter(0, 100),
            mark(Claim, 1, 110, 0),
            mark(Replayed, 2, 111, 0),
            mark(Claim, 3, 500, 0),
            mark(Dropped, 4, 501, 0),
        ]);
        assert_eq!(only(&letters).state(time(502)), LetterState::Replayed);
        assert_eq!(only(&letters).marked, Some(("operator 2".to_owned(), time(111))));
    }

    #[test]
    fn later_letter_of_the_same_task_is_newer_unless_it_was_dropped() {
        let letters = read(&[letter(0, 100), letter(1, 100)]);
        let by_age = letters.by_age();
        assert_eq!([letters.newer(by_age[0]), letters.newer(by_age[1])], [Some(by_age[1]), None]);
        let letters = read(&[letter(0, 100), letter(1, 100), mark(MarkKind::Dropped, 2, 101, 1)]);
        assert_eq!(letters.newer(letters.by_age()[0]), None);
    }

    #[test]
    fn number_of_a_replay_exceeds_the_earlier_ones_of_its_task() {
        let letters = read(&[letter(0, 100)]);
        assert_eq!(letters.next_replay(only(&letters), time(7)), 7_000, "the time in milliseconds");
        let again = record(5, 200, &[(REASON_HEADER, "x"), (REPLAY_HEADER, "9000")]);
        let letters = read(&[letter(0, 100), again, mark(MarkKind::Claim, 6, 201, 0)]);
        assert_eq!(letters.next_replay(only(&letters), time(7)), 9_001, "another clock was ahead");
        assert_eq!(letters.next_replay(only(&letters), time(10)), 10_000);
    }

    #[test]
    fn open_letters_are_kept_up_to_their_number_and_closed_ones_are_forgotten() {
        let mut letters = Letters::open(3);
        for offset in 0..4 {
            letters.read(&letter(offset, 100));
        }
        letters.read(&mark(MarkKind::Dropped, 9, 101, 2));
        // A mark about a letter that is not kept.
        letters.read(&mark(MarkKind::Dropped, 10, 101, 0));
        let offsets = |letters: &Letters| letters.by_age().iter().map(|letter| letter.id.offset).collect::<Vec<_>>();
        assert_eq!((offsets(&letters), letters.is_truncated), (vec![1, 3], true));
        for offset in 11..1_000 {
            letters.read(&letter(offset, 102));
            letters.read(&mark(MarkKind::Dropped, offset + 5_000, 103, offset));
        }
        assert_eq!(offsets(&letters), [1, 3]);
        assert!(letters.order.len() <= 6, "{}", letters.order.len());
        letters.forget_before(&BTreeMap::from([(0, 3)]));
        assert_eq!(offsets(&letters), [3]);
    }

    #[test]
    fn letter_is_listed_by_class_or_the_beginning_of_its_reason_without_its_text() {
        let letters = read(&[letter(7, 100)]);
        let only = only(&letters);
        assert!(only.has_reason("not-a-task") && only.has_reason("not a task: it") && !only.has_reason("failed"));
        let shown = letters.to_json(letters.by_age(), time(100));
        let expected = json!({
            "open": 1, "by_reason": {"not-a-task": 1}, "truncated": false,
            "letters": [{
                "task_id": "task", "letter": "0:7", "time": 100.0, "reason_class": "not-a-task",
                "reason": "not a task: it was a test", "deliveries": null, "worker": null, "state": "open"
            }]
        });
        assert_eq!(shown, expected);
    }
}
