//! Tasks of idempotency keys on their way to Kafka: who produces them, this gateway or another.
//!
//! A key's task is claimed before it is produced, by a record on the results topic that all gateways read. The first
//! claim in the log holds; the others wait for its task, and when none has come after [`CLAIM_LIFE`] they claim again.
//! A gateway that holds the claim hands its task to the producer well before others may claim it. Pure: time is a
//! parameter, what is to be written is returned.

use super::analyze::Wanted;
use super::index::TaskKey;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A claim without a task may be claimed again after this.
pub(super) const CLAIM_LIFE: Duration = Duration::from_secs(5);
/// The holder of a claim does not send its task later than this: somebody else may be about to.
const SEND_WITHIN: Duration = Duration::from_secs(4);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Our claim is on its way into the log and back.
    Claiming { since: Instant },
    /// Another gateway's claim holds; its task is waited for.
    Elsewhere { since: Instant },
    /// Our claim holds, and the producer has the task.
    Producing { since: Instant },
}

#[derive(Debug)]
struct KeyedTask {
    wanted: Wanted,
    digest: Uuid,
    stage: Stage,
}

/// What a claim that was read means for us.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing is to be done.
    Nothing,
    /// It is ours: the task is to be produced.
    Produce(Wanted),
    /// Another gateway produces the task.
    Wait,
    /// Another gateway produces a task of this key with another text.
    Conflict,
}

/// The keyed tasks that this gateway has taken and that are not known to be in Kafka. As many as there are callers who
/// wait for them, and what the producer holds.
#[derive(Debug, Default)]
pub(super) struct KeyedTasks {
    tasks: HashMap<TaskKey, KeyedTask>,
}

impl KeyedTasks {
    /// The digest of the text of this key's task, if it is on its way here.
    pub(super) fn digest(&self, key: TaskKey) -> Option<Uuid> {
        self.tasks.get(&key).map(|task| task.digest)
    }

    /// A claim for this task is about to be written.
    pub(super) fn claim(&mut self, key: TaskKey, wanted: Wanted, digest: Uuid, now: Instant) {
        self.tasks.insert(key, KeyedTask { wanted, digest, stage: Stage::Claiming { since: now } });
    }

    /// Another gateway has claimed this task.
    pub(super) fn wait(&mut self, key: TaskKey, wanted: Wanted, digest: Uuid, now: Instant) {
        self.tasks.insert(key, KeyedTask { wanted, digest, stage: Stage::Elsewhere { since: now } });
    }

    /// A claim for this task was read; `held_by_us` and `held_digest` are those of the claim that holds now.
    pub(super) fn claim_read(&mut self, key: TaskKey, held_by_us: bool, held_digest: Uuid, now: Instant) -> Next {
        let Some(task) = self.tasks.get_mut(&key) else { return Next::Nothing };
        match task.stage {
            Stage::Claiming { since } if held_by_us && now.saturating_duration_since(since) < SEND_WITHIN => {
                task.stage = Stage::Producing { since };
                Next::Produce(task.wanted.clone())
            }
            // Our claim took so long that another gateway may be claiming; it comes round again when ours is over.
            Stage::Claiming { .. } if held_by_us => {
                task.stage = Stage::Elsewhere { since: now };
                Next::Nothing
            }
            Stage::Producing { .. } => Next::Nothing,
            _ if held_by_us => Next::Nothing,
            _ if held_digest != task.digest => {
                self.tasks.remove(&key);
                Next::Conflict
            }
            Stage::Claiming { .. } | Stage::Elsewhere { .. } => {
                task.stage = Stage::Elsewhere { since: now };
                Next::Wait
            }
        }
    }

    /// Whether the task may still be sent under our claim. A task without a key always may.
    pub(super) fn may_be_sent(&self, key: TaskKey, now: Instant) -> bool {
        match self.tasks.get(&key).map(|task| task.stage) {
            Some(Stage::Producing { since }) => now.saturating_duration_since(since) < SEND_WITHIN,
            _ => true,
        }
    }

    /// The task is in Kafka, or will not get there from here.
    pub(super) fn settled(&mut self, key: TaskKey) {
        self.tasks.remove(&key);
    }

    /// The tasks to be claimed again. Those that nobody here waits for any more are forgotten, unless the producer has
    /// them.
    pub(super) fn overdue(&mut self, now: Instant, is_wanted: impl Fn(TaskKey) -> bool) -> Vec<(TaskKey, Uuid)> {
        self.tasks.retain(|key, task| matches!(task.stage, Stage::Producing { .. }) || is_wanted(*key));
        let mut overdue = Vec::new();
        for (key, task) in &mut self.tasks {
            if let Stage::Elsewhere { since } = task.stage
                && now.saturating_duration_since(since) >= CLAIM_LIFE
            {
                task.stage = Stage::Claiming { since: now };
                overdue.push((*key, task.digest));
            }
        }
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: u128 = 7;

    fn key() -> TaskKey {
        TaskKey::from_number(KEY)
    }

    fn wanted(text: &str) -> Wanted {
        Wanted { text: text.to_owned(), work_ms: None }
    }

    fn digest(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    #[test]
    fn whoever_holds_the_claim_produces_once() {
        let now = Instant::now();
        let mut keyed = KeyedTasks::default();
        keyed.claim(key(), wanted("a"), digest(1), now);
        assert_eq!(keyed.claim_read(key(), true, digest(1), now), Next::Produce(wanted("a")));
        // Another gateway's claim, read later, changes nothing: ours holds.
        assert_eq!(keyed.claim_read(key(), true, digest(1), now), Next::Nothing);
        assert!(keyed.may_be_sent(key(), now + Duration::from_secs(3)));
        assert!(!keyed.may_be_sent(key(), now + Duration::from_secs(4)), "others may claim it any moment");
        keyed.settled(key());
        assert_eq!(keyed.digest(key()), None);
    }

    #[test]
    fn whoever_does_not_hold_it_waits_and_claims_again() {
        let now = Instant::now();
        let mut keyed = KeyedTasks::default();
        keyed.claim(key(), wanted("a"), digest(1), now);
        assert_eq!(keyed.claim_read(key(), false, digest(1), now), Next::Wait);
        // Our own claim comes after the other one in the log.
        assert_eq!(keyed.claim_read(key(), false, digest(1), now), Next::Wait);
        assert!(keyed.overdue(now + Duration::from_millis(4_999), |_| true).is_empty());
        let later = now + CLAIM_LIFE;
        assert_eq!(keyed.overdue(later, |_| true), [(key(), digest(1))]);
        assert!(keyed.overdue(later, |_| true).is_empty(), "the claim is on its way");
        assert_eq!(keyed.claim_read(key(), true, digest(1), later), Next::Produce(wanted("a")));
    }

    #[test]
    fn a_claim_for_another_text_is_a_conflict() {
        let now = Instant::now();
        let mut keyed = KeyedTasks::default();
        keyed.claim(key(), wanted("a"), digest(1), now);
        assert_eq!(keyed.claim_read(key(), false, digest(2), now), Next::Conflict);
        assert_eq!(keyed.claim_read(key(), false, digest(2), now), Next::Nothing);
    }

    #[test]
    fn a_claim_that_took_too_long_is_not_used() {
        let now = Instant::now();
        let mut keyed = KeyedTasks::default();
        keyed.claim(key(), wanted("a"), digest(1), now);
        assert_eq!(keyed.claim_read(key(), true, digest(1), now + SEND_WITHIN), Next::Nothing);
        assert_eq!(keyed.overdue(now + SEND_WITHIN + CLAIM_LIFE, |_| true), [(key(), digest(1))]);
    }

    #[test]
    fn what_nobody_waits_for_is_forgotten_unless_the_producer_has_it() {
        let now = Instant::now();
        let mut keyed = KeyedTasks::default();
        keyed.wait(key(), wanted("a"), digest(1), now);
        assert!(keyed.overdue(now + CLAIM_LIFE, |_| false).is_empty());
        assert_eq!(keyed.digest(key()), None);
        keyed.claim(key(), wanted("a"), digest(1), now);
        keyed.claim_read(key(), true, digest(1), now);
        assert!(keyed.overdue(now + CLAIM_LIFE, |_| false).is_empty());
        assert_eq!(keyed.digest(key()), Some(digest(1)), "its outcome is not known");
    }

    #[test]
    fn tasks_without_a_key_may_always_be_sent() {
        assert!(KeyedTasks::default().may_be_sent(key(), Instant::now()));
    }
}
