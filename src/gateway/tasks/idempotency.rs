//! Tasks of idempotency keys: which gateway produces them.
//!
//! A key's task is claimed before it is produced, by a record on the results topic that all gateways read. The first
//! claim in the log holds; the others wait for its task, and when none has come after [`CLAIM_LIFE`] they claim again.
//! A gateway that holds the claim hands its task to the producer well before others may claim it. [`Claims`] are the
//! claims in the log, the same on every gateway; [`KeyedTasks`] are this gateway's own tasks on their way. Pure: times
//! are parameters, what is to be written is returned.

use super::Wanted;
use super::key::TaskKey;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};
use uuid::Uuid;

/// A claim without a task may be claimed again after this.
pub(super) const CLAIM_LIFE: Duration = Duration::from_secs(5);
/// The holder of a claim does not send its task later than this: another gateway may be about to.
pub(super) const SEND_WITHIN: Duration = Duration::from_secs(4);

/// A claim that stands in the log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Claim {
    /// Of the task's text.
    pub(super) digest: Uuid,
    pub(super) gateway: Uuid,
    /// When it was written, by Kafka's clock.
    pub(super) at: SystemTime,
    /// When it was read, by ours.
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

    /// A claim was read. It holds unless an earlier one does; an earlier one without a task gives way after
    /// [`CLAIM_LIFE`]. Returns the claim that holds now.
    pub(super) fn read(&mut self, key: TaskKey, claim: Claim, has_task: bool) -> Claim {
        if let Some(held) = self.held.get(&key).copied() {
            // Read back after a later one: it was the first all the same.
            let earlier = claim.at < held.at && held.at < claim.at + CLAIM_LIFE;
            if held.is_same_record(&claim) || (!earlier && (has_task || claim.at < held.at + CLAIM_LIFE)) {
                return held;
            }
        }
        self.held.insert(key, claim);
        self.by_age.push_back((claim.at, key));
        claim
    }

    /// The claim that says something about the task now: one that nothing came of says nothing any more.
    pub(super) fn held(&self, key: TaskKey, has_task: bool, now: SystemTime) -> Option<Claim> {
        let is_young = |claim: &Claim| now.duration_since(claim.heard).unwrap_or_default() < CLAIM_LIFE;
        self.held.get(&key).copied().filter(|claim| has_task || is_young(claim))
    }

    /// The last claim for the task, whatever came of it.
    pub(super) fn last(&self, key: TaskKey) -> Option<Claim> {
        self.held.get(&key).copied()
    }

    /// Forgets those that are older than the retention, unless their task still runs.
    pub(super) fn forget_old(&mut self, now: SystemTime, is_pending: impl Fn(TaskKey) -> bool) {
        let is_old = |at: &SystemTime| now.duration_since(*at).is_ok_and(|age| age > self.retention);
        while self.by_age.front().is_some_and(|(at, _)| is_old(at)) {
            let Some((at, key)) = self.by_age.pop_front() else { return };
            // Unless there is a later one, which has an entry of its own.
            let is_stale = self.held.get(&key).is_some_and(|held| held.at <= at);
            if is_stale && is_pending(key) {
                self.by_age.push_back((now, key));
            } else if is_stale {
                self.held.remove(&key);
            }
        }
    }

    /// How many are remembered.
    pub(super) fn count(&self) -> usize {
        self.held.len()
    }
}

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

/// What a claim that was read means for this gateway's task.
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

/// The keyed tasks that this gateway has taken and that are not known to be in Kafka. As many as there are callers
/// that wait for them, and what the producer holds.
#[derive(Debug, Default)]
pub(super) struct KeyedTasks {
    tasks: HashMap<TaskKey, KeyedTask>,
    /// Bytes of their texts.
    bytes: usize,
}

impl KeyedTasks {
    /// The digest of the text of this key's task, if it is on its way here.
    pub(super) fn digest(&self, key: TaskKey) -> Option<Uuid> {
        self.tasks.get(&key).map(|task| task.digest)
    }

    /// A claim for this task is about to be written.
    pub(super) fn claim(&mut self, key: TaskKey, wanted: Wanted, digest: Uuid, now: Instant) {
        self.enter(key, KeyedTask { wanted, digest, stage: Stage::Claiming { since: now } });
    }

    /// Another gateway has claimed this task.
    pub(super) fn wait(&mut self, key: TaskKey, wanted: Wanted, digest: Uuid, now: Instant) {
        self.enter(key, KeyedTask { wanted, digest, stage: Stage::Elsewhere { since: now } });
    }

    fn enter(&mut self, key: TaskKey, task: KeyedTask) {
        self.bytes += task.wanted.text.len();
        self.bytes -= self.tasks.insert(key, task).map_or(0, |replaced| replaced.wanted.text.len());
    }

    /// Bytes of the texts that are held here.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
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
                self.settled(key);
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
        self.bytes -= self.tasks.remove(&key).map_or(0, |task| task.wanted.text.len());
    }

    /// The tasks to be claimed again. Those without a caller here are forgotten, unless the producer has
    /// them.
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
    use std::time::UNIX_EPOCH;

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
    fn the_first_claim_holds_until_it_is_stale_without_a_task() {
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
        assert_eq!(claims.held(key(), false, time(105.0)), None, "nothing came of it");
        assert_eq!(claims.read(key(), claim(2, 105.0), false), claim(2, 105.0));
        assert_eq!(claims.read(other, claim(2, 50.0), false), claim(2, 50.0));
        assert_eq!(claims.read(other, claim(1, 49.0), false), claim(1, 49.0), "read back later, written earlier");
        assert_eq!(claims.read(key(), claim(3, 200.0), true), claim(2, 105.0), "its task is there");
        claims.forget_old(time(705.5), |pending| pending == key());
        assert_eq!(claims.held(key(), true, time(705.5)), Some(claim(2, 105.0)), "kept while its task is pending");
        assert_eq!(claims.count(), 1);
        claims.forget_old(time(1_400.0), |_| false);
        assert_eq!((claims.count(), claims.by_age.len()), (0, 0));
    }

    #[test]
    fn the_holder_of_the_claim_produces_once() {
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
    fn another_gateway_waits_and_claims_again() {
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
    fn what_is_not_waited_for_is_forgotten_unless_the_producer_has_it() {
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
    fn tasks_without_a_key_may_always_be_sent() {
        assert!(KeyedTasks::default().may_be_sent(key(), Instant::now()));
    }
}
