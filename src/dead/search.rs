//! The records of letters' tasks on the tasks topic: a replay must not repeat itself, nor run a task whose id was used
//! again. Pure; [`topic`](super::topic) reads the records.

use std::collections::{BTreeSet, HashMap};
use std::time::SystemTime;

use kafka_share::ReadRecord;

use super::letters::Letter;
use crate::task::Task;
use crate::task::dead::replay_of;

/// The records with the ids of letters.
#[derive(Debug)]
pub(super) struct Sightings(HashMap<String, Seen>);

/// The records with one id.
#[derive(Debug, Default)]
struct Seen {
    /// The numbers of its replays.
    replays: BTreeSet<u64>,
    /// The partition, offset and time of the last record.
    last: Option<((i32, i64), SystemTime)>,
}

impl Sightings {
    /// None yet, of the tasks of these letters.
    pub(super) fn of<'l>(letters: impl IntoIterator<Item = &'l Letter>) -> Self {
        let ids = letters.into_iter().filter_map(|letter| letter.task_id.clone());
        Self(ids.map(|id| (id, Seen::default())).collect())
    }

    /// Applies a record. The records of a partition come in their order.
    pub(super) fn read(&mut self, record: &ReadRecord) {
        let id = Task::id_of(record.key.as_deref(), record.value.as_deref());
        let Some(seen) = id.and_then(|id| self.0.get_mut(&id)) else { return };
        let replay = replay_of(&record.headers);
        if replay != 0 {
            seen.replays.insert(replay);
        }
        if seen.last.is_none_or(|((partition, _), at)| partition == record.partition || at <= record.timestamp) {
            seen.last = Some(((record.partition, record.offset), record.timestamp));
        }
    }

    /// The number of the first claim of this letter whose task was produced.
    pub(super) fn produced(&self, letter: &Letter) -> Option<u64> {
        let seen = self.seen(letter)?;
        letter.claims.iter().map(|claim| claim.replay).find(|replay| seen.replays.contains(replay))
    }

    /// The time of a task with the id of this letter that is newer than the letter's own task.
    pub(super) fn newer(&self, letter: &Letter) -> Option<SystemTime> {
        let (position, at) = self.seen(letter)?.last?;
        let is_newer = match letter.head.origin {
            Some(own) if own == position => false,
            Some((partition, offset)) if partition == position.0 && offset < position.1 => true,
            _ => at > letter.at,
        };
        is_newer.then_some(at)
    }

    fn seen(&self, letter: &Letter) -> Option<&Seen> {
        self.0.get(letter.task_id.as_ref()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead::letters::tests::{letter, mark, read, record};
    use crate::task::dead::{MarkKind, REASON_HEADER, REPLAY_HEADER, dlq};

    fn seen(letter: &Letter, records: &[ReadRecord]) -> Sightings {
        let mut sightings = Sightings::of([letter]);
        records.iter().for_each(|record| sightings.read(record));
        sightings
    }

    #[test]
    fn record_is_newer_than_a_letter_by_its_offset_or_else_by_its_time() {
        let origin = [(REASON_HEADER, "x"), (dlq::PARTITION, "0"), (dlq::OFFSET, "7")];
        let letters = read(&[record(0, 100, &origin)]);
        let own = letters.by_age()[0];
        let newer = |records: &[ReadRecord]| seen(own, records).newer(own).is_some();
        // The letter's own task, whatever the clocks of hosts; then a copy that was produced before the letter.
        assert_eq!([newer(&[]), newer(&[record(7, 101, &[])]), newer(&[record(8, 99, &[])])], [false, false, true]);
        let elsewhere = |seconds| ReadRecord { partition: 1, ..record(3, seconds, &[]) };
        assert_eq!([newer(&[elsewhere(100)]), newer(&[elsewhere(101)])], [false, true]);
        assert!(newer(&[elsewhere(101), record(7, 50, &[])]), "the last record by its time");
        let letters = read(&[letter(0, 100)]);
        let bare = letters.by_age()[0];
        let newer = |seconds| seen(bare, &[record(9, seconds, &[])]).newer(bare).is_some();
        assert_eq!([newer(100), newer(101)], [false, true], "a letter without its origin");
    }

    #[test]
    fn task_of_a_claim_is_found_by_its_number_also_below_later_records() {
        let letters = read(&[letter(0, 100), mark(MarkKind::Claim, 5, 110, 0), mark(MarkKind::Claim, 6, 130, 0)]);
        let own = letters.by_age()[0];
        let produced = |number: &str| seen(own, &[record(8, 112, &[(REPLAY_HEADER, number)]), record(9, 140, &[])]);
        assert_eq!(["6", "7"].map(|number| produced(number).produced(own)), [Some(6), None]);
        let other = ReadRecord { key: Some("other".into()), ..record(8, 112, &[(REPLAY_HEADER, "6")]) };
        assert_eq!(seen(own, &[other]).produced(own), None);
    }
}
