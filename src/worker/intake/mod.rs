//! One intake: the thread that takes records from one leader and acknowledges them.
//!
//! Only this thread uses the share session with its broker, so a silent broker stops only its own partitions. Each
//! connection has one request out: a fetch with the due accepts when a place is free, otherwise acknowledgements,
//! otherwise the thread sleeps at its doorbell. A request that releases does not fetch (rule 5).
//!
//! Files: `answers`, `connections` (silence, take-over), `closing`, `arrivals` (from which partitions to fetch),
//! `queue` (how much, for all intakes), `window`. Not here: which broker leads what ([`super::leaders`]), the threads'
//! start and end ([`super::intakes`]), the account ([`super::in_flight`]). Rule numbers refer to the protocol model
//! (`crates/model`).

mod answers;
mod arrivals;
mod closing;
mod connections;
pub(super) mod queue;
mod window;

use super::bells::Rings;
use super::drain::{Control, Phase};
use super::in_flight::{ChannelId, InFlight, RecordKey};
use super::leaders::{Leader, Leaders};
use crate::outage::Outage;
use crate::trace;
use arrivals::{Arrivals, Plan};
use crossbeam_channel::{Receiver, Sender};
use kafka_share::cluster::Cluster;
use kafka_share::error::KafkaError;
use kafka_share::share_session::{AcquiredRecord, ShareIdentity, ShareSession};
use kafka_share::share_wire::{Acknowledgement, Acknowledgements, FetchLimits, SharePartition};
use program::backoff::Backoff;
use queue::{Grant, MAX_WAIT, ReadyQueue};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// First time for which a fetch is parked while this worker has work; doubled with each empty fetch. A task that
/// finishes meanwhile is accepted only after the fetch, and would run again if the worker were killed before.
const FIRST_WAIT: Duration = Duration::from_millis(2);
/// Bytes to read for a fetch of a few records. The broker's work grows with this, not with the acquired records.
const FEW_BYTES: i32 = 64 * 1024;
/// Records for which [`FEW_BYTES`] is enough.
const FEW_RECORDS: usize = 16;
/// Bytes to read for larger fetches.
const MOST_BYTES: i32 = 1024 * 1024;
/// How often a waiting thread checks the phase and the clock.
const TICK: Duration = Duration::from_millis(100);
/// First and longest pause after an acknowledgement that the broker could not store.
const AGAIN_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// First and longest pause between two attempts to reach the broker.
const CONNECT_PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A record on its way to a handler.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) key: RecordKey,
    pub(super) record: AcquiredRecord,
    /// When its fetch was sent, by both clocks.
    sent_at: Instant,
    sent_wall: SystemTime,
}

impl Job {
    /// A task's id for the log, with the trace of this record.
    pub(super) fn named<'j>(&'j self, task_id: &'j str) -> trace::Named<'j> {
        trace::named(task_id, &self.record.headers)
    }

    /// The present time as the record's lock counts it. The monotonic clock stops while the machine is suspended, but
    /// the lock continues at the broker, so this adds the lead of the wall clock since the fetch. Setting the wall
    /// clock forward has the same effect, and costs the record one lock and one delivery at most.
    pub(super) fn now(&self) -> Instant {
        self.now_at(Instant::now(), SystemTime::now())
    }

    fn now_at(&self, now: Instant, wall: SystemTime) -> Instant {
        let by_wall = wall.duration_since(self.sent_wall).unwrap_or_default();
        now + by_wall.saturating_sub(now.saturating_duration_since(self.sent_at))
    }
}

/// What an intake shares with the rest of the worker.
#[derive(Clone)]
pub(super) struct IntakeLinks {
    pub(super) cluster: Cluster,
    pub(super) identity: ShareIdentity,
    pub(super) worker_id: Arc<str>,
    /// The tasks topic.
    pub(super) topic: Arc<str>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) control: Arc<Control>,
    pub(super) leaders: Arc<Leaders>,
    pub(super) queue: Arc<ReadyQueue>,
    /// Capacity one: sent once, when the first session is open.
    pub(super) ready: Sender<()>,
}

/// One connection to the broker, with the session on it.
struct Channel {
    id: ChannelId,
    session: ShareSession,
    /// The broker has answered its epoch 0.
    open: bool,
}

/// Throttled fetches in a row. Kafka locks the records that it does not send, which uses up a delivery of each. So the
/// next fetches ask for one record, after longer pauses.
struct ThrottledFetches {
    times: u32,
    pauses: Backoff,
    fetch_at: Instant,
}

/// First and longest pause after a throttled fetch, in addition to the throttle time. The broker's quotas forget a
/// request after 11 s (`quota.window.num`).
const THROTTLED_PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(12));
/// This many throttled fetches in a row are logged.
const THROTTLED_OFTEN: u32 = 5;

impl ThrottledFetches {
    fn new(now: Instant) -> Self {
        Self { times: 0, pauses: Backoff::new(THROTTLED_PAUSES.0, THROTTLED_PAUSES.1), fetch_at: now }
    }

    /// Notes a fetch. Returns true if that is to be logged.
    fn fetched(&mut self, is_throttled: bool, muted_until: Instant) -> bool {
        if !is_throttled {
            self.times = 0;
            self.pauses.reset();
            return false;
        }
        self.times += 1;
        self.fetch_at = muted_until + self.pauses.pause();
        self.times == THROTTLED_OFTEN
    }
}

pub(super) struct Intake {
    node: i32,
    links: IntakeLinks,
    doorbell: Receiver<()>,
    current: Option<Channel>,
    /// Connections that a take-over has replaced, kept until their answers are read.
    superseded: Vec<Channel>,
    /// The last connection ended, so its broker may have released every lock.
    was_lost: bool,
    /// The epoch 0 of a superseded connection was answered late and may have taken the session (rule 6).
    open_again: bool,
    arrivals: Arrivals,
    /// Halves of refused requests, so that one lost lock does not block the others.
    halves: VecDeque<Acknowledgements>,
    /// Acknowledgements of offsets without a task: gaps, and records that were acquired but missing in the answer.
    unowned: Acknowledgements,
    /// How long the next fetch is parked while this worker has work.
    patience: Duration,
    throttled: ThrottledFetches,
    connect: Backoff,
    /// No attempt to connect before this.
    connect_at: Instant,
    again: Backoff,
    /// No acknowledgement before this, since the broker could not store the last one.
    acknowledge_at: Instant,
    outage: Outage,
    /// When the last request was sent.
    sent_at: Instant,
    /// Set while the broker owes an answer for longer than a fetch is parked: when the leaders were last requested.
    silent_since: Option<Instant>,
    /// Since when a stop waits only for acknowledgements.
    settling_since: Option<Instant>,
}

impl Intake {
    /// Creates the intake of broker `node`, without a connection.
    pub(super) fn new(node: i32, links: IntakeLinks) -> Self {
        let doorbell = links.control.doorbell(Rings::Work);
        let now = Instant::now();
        Self {
            node,
            doorbell,
            current: None,
            superseded: Vec::new(),
            was_lost: false,
            open_again: false,
            arrivals: Arrivals::new(Arc::clone(&links.topic), links.control.refusals.clone()),
            halves: VecDeque::new(),
            unowned: Acknowledgements::new(),
            patience: FIRST_WAIT,
            throttled: ThrottledFetches::new(now),
            connect: Backoff::new(CONNECT_PAUSES.0, CONNECT_PAUSES.1),
            connect_at: now,
            again: Backoff::new(AGAIN_PAUSES.0, AGAIN_PAUSES.1),
            acknowledge_at: now,
            outage: Outage::new(format!("broker {node}, a leader of the tasks,"), &links.control.refusals),
            sent_at: now,
            silent_since: None,
            settling_since: None,
            links,
        }
    }

    /// Takes tasks until the worker stops or the broker leads nothing, settles the records of its session, and closes
    /// it. Returns the reason if the close failed.
    ///
    /// # Errors
    /// An error that retrying cannot fix: the broker calls a request invalid (42), or the cluster has no share groups.
    pub(super) fn run(mut self) -> Result<Option<String>, KafkaError> {
        let worked = self.work();
        let closed = worked.and_then(|()| self.close());
        self.links.leaders.set_silent(self.node, false);
        self.links.queue.leave(self.node);
        closed
    }

    fn work(&mut self) -> Result<(), KafkaError> {
        loop {
            let now = Instant::now();
            let led = self.links.leaders.of_node(self.node);
            self.links.queue.look(now);
            self.arrivals.follow(&led, now);
            self.read_superseded(now)?;
            if self.is_over(&led, now) {
                return Ok(());
            }
            self.round(&led)?;
        }
    }

    /// Sends one request, waits for one answer, or sleeps once at the doorbell.
    fn round(&mut self, led: &BTreeMap<SharePartition, Leader>) -> Result<(), KafkaError> {
        let now = Instant::now();
        let Some(channel) = &self.current else { return self.reconnect(led, now) };
        if channel.session.is_waiting() {
            return self.await_answer(led);
        }
        if self.open_again || !channel.open {
            return self.open(led, now);
        }
        let (id, muted_until) = (channel.id, channel.session.muted_until());
        let settled_wait = self.is_held_back(now);
        if now >= self.acknowledge_at {
            // Halves of refused groups come first: their other locks have to be renewed in time.
            if let Some(half) = self.next_half(id, settled_wait) {
                return self.send(|session| session.send_acknowledge(half));
            }
            let renewals = self.links.in_flight.renewals(self.node, settled_wait, now);
            if !renewals.is_empty() {
                return self.send(|session| session.send_acknowledge(renewals));
            }
        }
        let due = if now < self.acknowledge_at || settled_wait { Acknowledgements::new() } else { self.take_due(id) };
        // A stop and a quiet worker take no new tasks, but search for the running ones (rules 23 and 24).
        let running = self.is_running();
        let mut plan = self.arrivals.plan(|partition| self.links.in_flight.sought(partition, running), now);
        let takes = self.links.control.takes();
        if !takes {
            plan.fetch.clear();
        }
        for partition in &plan.given_up {
            self.links.in_flight.end_search(*partition);
        }
        let fetch_at = if plan.search.is_empty() { muted_until.max(self.throttled.fetch_at) } else { muted_until };
        let muted = Some(fetch_at).filter(|until| *until > now);
        let next = muted.or(plan.next);
        let fetch = match muted {
            // The broker throttles this worker, and is well. Acknowledgements are sent.
            Some(_) => {
                self.links.queue.withdraw(self.node);
                self.links.control.heard();
                None
            }
            None if may_ride(&due, &plan) => self.next_fetch(plan, now),
            None => None,
        };
        match fetch {
            Some((partitions, limits)) => self.send(|session| session.send_fetch(&partitions, due, limits)),
            None if !due.is_empty() => self.send(|session| session.send_acknowledge(due)),
            None => {
                let left_out = self.left_out();
                if !left_out.is_empty() {
                    return self.send(|session| session.send_add(&left_out));
                }
                // A quiet worker learns that the broker answers, and keeps an idle connection and session (rule 24).
                if !takes && muted.is_none() && now.saturating_duration_since(self.sent_at) >= self.third() {
                    return self.send(|session| session.send_add(&BTreeSet::new()));
                }
                let acknowledge_at = Some(self.acknowledge_at).filter(|at| *at > now);
                let renewal = self.links.in_flight.next_timer(self.node).map(|at| at.max(self.acknowledge_at));
                let timers = [next, acknowledge_at, renewal];
                self.sleep(timers.into_iter().flatten().min());
                Ok(())
            }
        }
    }

    /// Whether no stop has begun.
    fn is_running(&self) -> bool {
        self.links.control.phase() == Phase::Running
    }

    /// The next fetch: its partitions and limits. Partitions with a search come first.
    fn next_fetch(&mut self, plan: Plan, now: Instant) -> Option<(BTreeSet<SharePartition>, FetchLimits)> {
        if !plan.search.is_empty() {
            let grant = Grant { records: plan.missing, max_wait: FIRST_WAIT };
            return Some((plan.search, limits(grant)));
        }
        if plan.fetch.is_empty() {
            self.links.queue.withdraw(self.node);
            return None;
        }
        let mut grant = self.links.queue.ask(self.node, plan.is_visit, now)?;
        if self.links.in_flight.counts().in_work() > 0 {
            grant.max_wait = grant.max_wait.min(self.patience);
        }
        if self.throttled.times > 0 {
            grant.records = 1;
        }
        Some((plan.fetch, limits(grant)))
    }

    /// Partitions with held records that a search or a pause has left out of the session. A kill would not release them
    /// (rule 20).
    fn left_out(&self) -> BTreeSet<SharePartition> {
        let session = self.current.as_ref().map(|channel| channel.session.partitions());
        session.map_or_else(BTreeSet::new, |session| self.links.in_flight.held_outside(session, self.node))
    }

    /// The next half of a refused group that still applies. With `only_renewals`, other halves stay in the queue.
    fn next_half(&mut self, id: ChannelId, only_renewals: bool) -> Option<Acknowledgements> {
        for _ in 0..self.halves.len() {
            let half = self.halves.pop_front()?;
            if only_renewals && !is_renewal(&half) {
                self.halves.push_back(half);
                continue;
            }
            let still = self.links.in_flight.confirm((self.node, id), half);
            if !still.is_empty() {
                return Some(still);
            }
        }
        None
    }

    /// The acknowledgements to send now on channel `id`.
    fn take_due(&mut self, id: ChannelId) -> Acknowledgements {
        if let Some(half) = self.next_half(id, false) {
            return half;
        }
        let mut due = self.links.in_flight.take_due(self.node, id);
        for (partition, offsets) in std::mem::take(&mut self.unowned) {
            due.entry(partition).or_default().extend(offsets);
        }
        due
    }

    /// Sends one request on the current connection.
    fn send(&mut self, send: impl FnOnce(&mut ShareSession) -> Result<(), KafkaError>) -> Result<(), KafkaError> {
        let Some(channel) = &mut self.current else { return Ok(()) };
        self.sent_at = Instant::now();
        match send(&mut channel.session) {
            Ok(()) => Ok(()),
            Err(error) => self.lost(&error),
        }
    }

    /// Sleeps until the doorbell rings, `until`, or a tick, whichever is first.
    fn sleep(&self, until: Option<Instant>) {
        let tick = Instant::now() + TICK;
        // The result does not matter: the next round checks everything.
        let _ = self.doorbell.recv_deadline(until.map_or(tick, |until| until.min(tick)));
    }
}

fn limits(grant: Grant) -> FetchLimits {
    FetchLimits {
        max_wait: grant.max_wait.min(MAX_WAIT),
        max_bytes: if grant.records <= FEW_RECORDS { FEW_BYTES } else { MOST_BYTES },
        max_records: i32::try_from(grant.records).unwrap_or(i32::MAX),
    }
}

fn is_renewal(acknowledgements: &Acknowledgements) -> bool {
    acknowledgements.values().flat_map(BTreeMap::values).any(|said| *said == Acknowledgement::Renew)
}

/// Whether the next fetch may carry these acknowledgements: only accepts, of partitions that it fetches from.
fn may_ride(due: &Acknowledgements, plan: &Plan) -> bool {
    let fetched = if plan.search.is_empty() { &plan.fetch } else { &plan.search };
    due.iter().all(|(partition, offsets)| {
        fetched.contains(partition) && offsets.values().all(|said| *said == Acknowledgement::Accept)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::in_flight::{Claim, Delivered};

    const LOCK: Duration = Duration::from_secs(15);

    #[test]
    fn throttled_fetches_in_a_row_are_followed_by_longer_pauses_and_one_warning() {
        let now = Instant::now();
        let mut throttled = ThrottledFetches::new(now);
        let told: Vec<bool> = (0..7).map(|_| throttled.fetched(true, now)).collect();
        assert_eq!(told, [false, false, false, false, true, false, false]);
        assert!(throttled.fetch_at > now + THROTTLED_PAUSES.1 / 3, "{:?}", throttled.fetch_at - now);
        assert!(!throttled.fetched(false, now) && throttled.times == 0);
        throttled.fetched(true, now);
        assert!(throttled.fetch_at <= now + THROTTLED_PAUSES.0, "the pauses begin again");
    }

    /// The answer to a handler that claims a record after the clocks have advanced this far since the fetch.
    fn claim_after(monotonic: Duration, wall: Duration, wall_set_back: Duration) -> Claim {
        let (sent_at, sent_wall) = (Instant::now(), SystemTime::now());
        let key = RecordKey { partition: SharePartition { topic_id: uuid::Uuid::nil(), partition: 0 }, offset: 7 };
        let record = AcquiredRecord {
            partition: key.partition,
            offset: key.offset,
            delivery_count: 1,
            key: None,
            value: None,
            headers: Vec::new(),
            fault: None,
        };
        let in_flight = InFlight::new(LOCK);
        let delivered = Delivered {
            key,
            mark: "a".into(),
            node: 1,
            sent_at,
            startable: true,
            delivery_count: 1,
            last_delivery: false,
        };
        assert!(in_flight.deliver(delivered, sent_at));
        let job = Job { key, record, sent_at, sent_wall };
        let now = job.now_at(sent_at + monotonic, sent_wall + wall - wall_set_back);
        in_flight.claim((key, 1), None, false, now)
    }

    #[test]
    fn record_whose_lock_ran_out_while_the_machine_was_suspended_is_not_started() {
        let (moment, hour) = (Duration::from_millis(50), Duration::from_secs(3600));
        assert!(matches!(claim_after(moment, moment, Duration::ZERO), Claim::Yours(_)));
        assert!(matches!(claim_after(moment, LOCK + moment, Duration::ZERO), Claim::Gone), "suspended");
        assert!(
            matches!(claim_after(moment, LOCK / 3, Duration::ZERO), Claim::Yours(_)),
            "suspended, but not for long"
        );
        assert!(matches!(claim_after(moment, moment, hour), Claim::Yours(_)), "the wall clock was set back");
        assert!(matches!(claim_after(LOCK, moment, hour), Claim::Gone), "and the lock is old");
    }
}
