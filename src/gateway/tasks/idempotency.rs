//! Tasks of idempotency keys: which gateway produces them.
//!
//! A gateway claims a key's task before it produces it, by a record on the results topic that all gateways read. The
//! first claim in the log holds. Other gateways wait for its task, and claim again after [`CLAIM_LIFE`] without one.
//! The holder passes its task to the producer well before that. [`Claims`] are the claims in the log, the same on every
//! gateway; [`KeyedTasks`] are this gateway's own tasks on their way. Pure: times are parameters, records to write are
//! returned.

use super::Wanted;
use super::key::TaskKey;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};
use uuid::Uuid;

/// After this time a key whose claim has brought no task may be claimed again.
pub(super) const CLAIM_LIFE: Duration = Duration::from_secs(5);
/// The holder of a claim sends its task within this time, because afterwards another gateway may send it.
pub(super) const SEND_WITHIN: Duration = Duration::from_secs(4);

/// A claim in the log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Claim {
    /// The digest of the task's text.
    pub(super) digest: Uuid,
    pub(super) gateway: Uuid,
    /// When it was written, by Kafka's clock.
    pub(super) at: SystemTime,
    /// When it was read, by the gateway's clock.
    pub(super) heard: SystemTime,
}

impl Claim {
    fn is_same_record(&self, other: &Self) -> bool {
        (self.digest, self.gateway, self.at) == (other.digest, other.gateway, other.at)
    }
}

/// The claims that hold, for as long as the results of their tasks are kept.
#[derive(Debug)]
pub(super) struct Claims {
    retention: Duration,
    held: HashMap<TaskKey, Claim>,
    by_age: VecDeque<(SystemTime, TaskKey)>,
}

impl Claims {
    pub(super) fn new(retention: Duration) -> Self {
        Self { retention, held: HashMap::new(), by_age: VecDeque::new() }
    }

    /// Applies a claim that was read, and returns the claim that holds now. It holds unless an earlier claim does; an
    /// earlier claim without a task expires after [`CLAIM_LIFE`].
    pub(super) fn read(&mut self, key: TaskKey, claim: Claim, has_task: bool) -> Claim {
        if let Some(held) = self.held.get(&key).copied() {
            // Read back after a later claim, but earlier in the log.
            let earlier = claim.at < held.at && held.at < claim.at + CLAIM_LIFE;
            if held.is_same_record(&claim) || (!earlier && (has_task || claim.at < held.at + CLAIM_LIFE)) {
                return held;
            }
        }
        self.held.insert(key, claim);
        self.by_age.push_back((claim.at, key));
        claim
    }

    /// The claim that holds now; a claim that brought no task in time no longer holds.
    pub(super) fn held(&self, key: TaskKey, has_task: bool, now: SystemTime) -> Option<Claim> {
        let is_young = |claim: &Claim| now.duration_since(claim.heard).unwrap_or_default() < CLAIM_LIFE;
        self.held.get(&key).copied().filter(|claim| has_task || is_young(claim))
    }

    /// The last claim for the task, whether or not it brought a task.
    pub(super) fn last(&self, key: TaskKey) -> Option<Claim> {
        self.held.get(&key).copied()
    }

    /// Forgets claims older than the retention. `kept_from`: from when on the claim's task keeps it for the retention;
    /// `None` without a known task.
    pub(super) fn forget_old(&mut self, now: SystemTime, kept_from: impl Fn(TaskKey) -> Option<SystemTime>) {
        let is_old = |at: &SystemTime| now.duration_since(*at).is_ok_and(|age| age > self.retention);
        while self.by_age.front().is_some_and(|(at, _)| is_old(at)) {
            let Some((at, key)) = self.by_age.pop_front() else { return };
            // Unless there is a later claim, which has its own entry.
            if self.held.get(&key).is_none_or(|held| held.at > at) {
                continue;
            }
            match kept_from(key).filter(|from| !is_old(from)) {
                Some(from) => {
                    // Mostly near the front, so this moves few entries.
                    let place = self.by_age.partition_point(|(other, _)| *other <= from);
                    self.by_age.insert(place, (from, key));
                }
                None => drop(self.held.remove(&key)),
            }
        }
    }

    /// The number of remembered claims.
    pub(super) fn count(&self) -> usize {
        self.held.len()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// This gateway's claim is on its way into the log and back.
    Claiming { since: Instant },
    /// Another gateway's claim holds; this gateway waits for its task.
    Elsewhere { since: Instant },
    /// This gateway's claim holds, and the producer has the task.
    Producing { since: Instant },
}

#[derive(Debug)]
struct KeyedTask {
    wanted: Wanted,
    digest: Uuid,
    stage: Stage,
}

/// The effect of a claim that was read on this gateway's task.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// No effect.
    Nothing,
    /// The claim is this gateway's: produce the task.
    Produce(Wanted),
    /// Another gateway produces the task.
    Wait,
    /// Another gateway produces a task of this key with another text.
    Conflict,
}

/// The keyed tasks of this gateway that are not known to be in Kafka: those of waiting callers and of the producer.
#[derive(Debug, Default)]
pub(super) struct KeyedTasks {
    tasks: HashMap<TaskKey, KeyedTask>,
    /// Bytes of their texts.
    bytes: usize,
}

impl KeyedTasks {
    /// The digest of the text of this key's task, if this gateway has the task.
    pub(super) fn digest(&self, key: TaskKey) -> Option<Uuid> {
        self.tasks.get(&key).map(|task| task.digest)
    }

    /// Adds a task for which this gateway is about to write a claim.
    pub(super) fn claim(&mut self, key: TaskKey, wanted: Wanted, digest: Uuid, now: Instant) {
        self.enter(key, KeyedTask { wanted, digest, stage: Stage::Claiming { since: now } });
    }

    /// Adds a task that another gateway has claimed.
    pub(super) fn wait(&mut self, key: TaskKey, wanted: Wanted, digest: Uuid, now: Instant) {
        self.enter(key, KeyedTask { wanted, digest, stage: Stage::Elsewhere { since: now } });
    }

    fn enter(&mut self, key: TaskKey, task: KeyedTask) {
        self.bytes += task.wanted.text.len();
        self.bytes -= self.tasks.insert(key, task).map_or(0, |replaced| replaced.wanted.text.len());
    }

    /// The bytes of the texts.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Applies a claim for this task; `held_by_us` and `held_digest` belong to the claim that holds now.
    pub(super) fn claim_read(&mut self, key: TaskKey, held_by_us: bool, held_digest: Uuid, now: Instant) -> Next {
        let Some(task) = self.tasks.get_mut(&key) else { return Next::Nothing };
        match task.stage {
            Stage::Claiming { since } if held_by_us && now.saturating_duration_since(since) < SEND_WITHIN => {
                task.stage = Stage::Producing { since };
                Next::Produce(task.wanted.clone())
            }
            // The claim took so long that another gateway may be claiming; this one claims again when that has expired.
            Stage::Claiming { .. } if held_by_us => {
                task.stage = Stage::Elsewhere { since: now };
                Next::Nothing
            }
            Stage::Producing { .. } => Next::Nothing,
            _ if held_by_us => Next::Nothing,
            _ if held_digest != task.digest => {
                self.settled(key);
                Next::Conflict
            }
            Stage::Claiming { .. } | Stage::Elsewhere { .. } => {
                task.stage = Stage::Elsewhere { since: now };
                Next::Wait
            }
        }
    }

    /// Whether the task may still be sent under this gateway's claim; always true for a task without a key.
    pub(super) fn may_be_sent(&self, key: TaskKey, now: Instant) -> bool {
        match self.tasks.get(&key).map(|task| task.stage) {
            Some(Stage::Producing { since }) => now.saturating_duration_since(since) < SEND_WITHIN,
            _ => true,
        }
    }

    /// Forgets a task that is in Kafka, or will not get there from here.
    pub(super) fn settled(&mut self, key: TaskKey) {
        self.bytes -= self.tasks.remove(&key).map_or(0, |task| task.wanted.text.len());
    }

    /// The tasks to claim again. Forgets tasks without a caller here, unless the producer has them.
    pub(super) fn overdue(&mut self, now: Instant, is_wanted: impl Fn(TaskKey) -> bool) -> Vec<(TaskKey, Uuid)> {
        let is_left =
            |key: &TaskKey, task: &mut KeyedTask| !matches!(task.stage, Stage::Producing { .. }) && !is_wanted(*key);
        self.bytes -= self.tasks.extract_if(is_left).map(|(_, task)| task.wanted.text.len()).sum::<usize>();
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
    use crate::task::Headers;
    use std::time::UNIX_EPOCH;

    const KEY: u128 = 7;

    fn key() -> TaskKey {
        TaskKey::from_number(KEY)
    }

    fn wanted(text: &str) -> Wanted {
        Wanted { text: text.to_owned(), work_ms: None, headers: Headers::new() }
    }

    fn digest(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    #[test]
    fn first_claim_holds_until_it_expires_without_a_task() {
        let time = |seconds: f64| UNIX_EPOCH + Duration::from_secs_f64(seconds);
        let claim = |gateway: u128, at: f64| Claim {
            digest: Uuid::nil(),
            gateway: Uuid::from_u128(gateway),
            at: time(at),
            heard: time(at),
        };
        let other = TaskKey::from_number(8);
        let mut claims = Claims::new(Duration::from_secs(600));
        assert_eq!(claims.read(key(), claim(1, 100.0), false), claim(1, 100.0));
        assert_eq!(claims.read(key(), claim(2, 104.9), false), claim(1, 100.0));
        assert_eq!(claims.held(key(), false, time(104.9)), Some(claim(1, 100.0)));
        assert_eq!(claims.held(key(), false, time(105.0)), None, "it brought no task");
        assert_eq!(claims.read(key(), claim(2, 105.0), false), claim(2, 105.0));
        assert_eq!(claims.read(other, claim(2, 50.0), false), claim(2, 50.0));
        assert_eq!(claims.read(other, claim(1, 49.0), false), claim(1, 49.0), "read back later, but written earlier");
        assert_eq!(claims.read(key(), claim(3, 200.0), true), claim(2, 105.0), "its task is known");
        claims.forget_old(time(705.5), |pending| (pending == key()).then_some(time(705.5)));
        assert_eq!(claims.held(key(), true, time(705.5)), Some(claim(2, 105.0)), "kept while its task is pending");
        assert_eq!(claims.count(), 1);
        claims.forget_old(time(1_400.0), |_| None);
        assert_eq!((claims.count(), claims.by_age.len()), (0, 0));
    }

    #[test]
    fn holder_of_the_claim_produces_once() {
        let now = Instant::now();
        let mut keyed = KeyedTasks::default();
        keyed.claim(key(), wanted("a"), digest(1), now);
        assert_eq!(keyed.claim_read(key(), true, digest(1), now), Next::Produce(wanted("a")));
        // Another gateway's claim, read later, has no effect: this gateway's claim holds.
        assert_eq!(keyed.claim_read(key(), true, digest(1), now), Next::Nothing);
        assert!(keyed.may_be_sent(key(), now + Duration::from_secs(3)));
        assert!(!keyed.may_be_sent(key(), now + Duration::from_secs(4)), "others may claim it at any moment");
        keyed.settled(key());
        assert_eq!(keyed.digest(key()), None);
    }

    #[test]
    fn other_gateway_waits_and_claims_again() {
        let now = Instant::now();
        let mut keyed = KeyedTasks::default();
        keyed.claim(key(), wanted("a"), digest(1), now);
        assert_eq!(keyed.claim_read(key(), false, digest(1), now), Next::Wait);
        // This gateway's claim comes after the other one in the log.
        assert_eq!(keyed.claim_read(key(), false, digest(1), now), Next::Wait);
        assert!(keyed.overdue(now + Duration::from_millis(4_999), |_| true).is_empty());
        let later = now + CLAIM_LIFE;
        assert_eq!(keyed.overdue(later, |_| true), [(key(), digest(1))]);
        assert!(keyed.overdue(later, |_| true).is_empty(), "the claim is on its way");
        assert_eq!(keyed.claim_read(key(), true, digest(1), later), Next::Produce(wanted("a")));
    }

    #[test]
    fn claim_for_another_text_is_a_conflict() {
        let now = Instant::now();
        let mut keyed = KeyedTasks::default();
        keyed.claim(key(), wanted("a"), digest(1), now);
        assert_eq!(keyed.claim_read(key(), false, digest(2), now), Next::Conflict);
        assert_eq!(keyed.claim_read(key(), false, digest(2), now), Next::Nothing);
    }

    #[test]
    fn claim_that_took_too_long_is_not_used() {
        let now = Instant::now();
        let mut keyed = KeyedTasks::default();
        keyed.claim(key(), wanted("a"), digest(1), now);
        assert_eq!(keyed.claim_read(key(), true, digest(1), now + SEND_WITHIN), Next::Nothing);
        assert_eq!(keyed.overdue(now + SEND_WITHIN + CLAIM_LIFE, |_| true), [(key(), digest(1))]);
    }

    #[test]
    fn task_without_a_caller_is_forgotten_unless_the_producer_has_it() {
        let now = Instant::now();
        let mut keyed = KeyedTasks::default();
        keyed.wait(key(), wanted("a"), digest(1), now);
        assert!(keyed.overdue(now + CLAIM_LIFE, |_| false).is_empty());
        assert_eq!((keyed.digest(key()), keyed.bytes()), (None, 0));
        keyed.claim(key(), wanted("a"), digest(1), now);
        keyed.claim_read(key(), true, digest(1), now);
        assert!(keyed.overdue(now + CLAIM_LIFE, |_| false).is_empty());
        assert_eq!((keyed.digest(key()), keyed.bytes()), (Some(digest(1)), 1), "its outcome is not known");
        keyed.settled(key());
        assert_eq!(keyed.bytes(), 0);
    }

    #[test]
    fn task_without_a_key_may_always_be_sent() {
        assert!(KeyedTasks::default().may_be_sent(key(), Instant::now()));
    }
}
