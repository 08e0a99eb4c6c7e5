//! One intake: the thread that takes records from one leader and tells it what became of them.
//!
//! It alone speaks on the share session with its broker, so that a broker that is silent stops nothing but its own
//! partitions. One request is out at a time on a connection: a fetch when a place is free, with the accepts that are due
//! riding along; otherwise acknowledgements, when some are due; otherwise it sleeps at its doorbell. A request that
//! releases does not fetch (rule 5).
//!
//! Files: `answers` (what an answer changes), `connections` (silence, take-over, the end of a connection), `closing`,
//! `arrivals` (from which partitions to fetch), `queue` (how much, for all intakes), `window`. Not here: which broker
//! leads what ([`super::leaders`]), the threads' start and end ([`super::intakes`]), the account
//! ([`super::in_flight`]). Rules that are named by number are those of the protocol model (`crates/model`).

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

/// How long a fetch is parked at first while something is in work here: what is done meanwhile can be accepted only when
/// the fetch has ended, and would run again if this worker were killed before. Doubled with every fetch that brings
/// nothing.
const FIRST_WAIT: Duration = Duration::from_millis(2);
/// Bytes read for a fetch of a few records; the broker's work grows with this, not with what is acquired.
const FEW_BYTES: i32 = 64 * 1024;
/// Records for which [`FEW_BYTES`] is enough.
const FEW_RECORDS: usize = 16;
/// Bytes read for the largest round.
const MOST_BYTES: i32 = 1024 * 1024;
/// How often a thread that waits looks at the phase and the clock.
const TICK: Duration = Duration::from_millis(100);
/// First and longest pause after an acknowledgement that the broker could not write down.
const AGAIN_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// First and longest pause between two attempts to reach the broker.
const CONNECT_PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A record on its way to a handler.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) key: RecordKey,
    pub(super) record: AcquiredRecord,
    /// When the fetch was sent that brought it, by both clocks.
    sent_at: Instant,
    sent_wall: SystemTime,
}

impl Job {
    /// The present time as its lock counts it. The monotonic clock stands still while the machine is suspended, and the
    /// lock runs on at the broker: what the wall clock has gained since the fetch is added. A wall clock that is set
    /// forward looks the same, and costs the record one lock and one delivery at most.
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
    /// The topic that the tasks are on.
    pub(super) topic: Arc<str>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) control: Arc<Control>,
    pub(super) leaders: Arc<Leaders>,
    pub(super) queue: Arc<ReadyQueue>,
    /// Capacity one: told once, when the first session is open.
    pub(super) ready: Sender<()>,
}

/// One connection to the broker, with the session on it.
struct Channel {
    id: ChannelId,
    session: ShareSession,
    /// Its epoch 0 was answered.
    open: bool,
    /// The broker throttles this client, and reads nothing from the connection before.
    muted_until: Instant,
}

/// See the module documentation.
pub(super) struct Intake {
    node: i32,
    links: IntakeLinks,
    doorbell: Receiver<()>,
    current: Option<Channel>,
    /// Connections that a take-over has replaced, until what they owe was read.
    superseded: Vec<Channel>,
    /// The last connection ended: its broker may have given everything away.
    was_lost: bool,
    /// The epoch 0 of a superseded connection was answered late and may have taken the session (rule 6).
    open_again: bool,
    arrivals: Arrivals,
    /// Halves of refused requests, so that one lost lock holds up nothing else.
    halves: VecDeque<Acknowledgements>,
    /// Acknowledgements of offsets without a task: gaps, and records that did not come with their answer.
    unowned: Acknowledgements,
    /// How long the next fetch is parked while something is in work here.
    patience: Duration,
    connect: Backoff,
    /// No attempt to connect before.
    connect_at: Instant,
    again: Backoff,
    /// No acknowledgement before: the last one could not be written down.
    acknowledge_at: Instant,
    outage: Outage,
    /// The broker owes an answer for longer than a fetch is parked; when the leaders were last asked for.
    silent_since: Option<Instant>,
    /// Since when a stop has nothing but acknowledgements to wait for.
    settling_since: Option<Instant>,
}

impl Intake {
    /// The intake of broker `node`. Opens no connection yet.
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
            arrivals: Arrivals::default(),
            halves: VecDeque::new(),
            unowned: Acknowledgements::new(),
            patience: FIRST_WAIT,
            connect: Backoff::new(CONNECT_PAUSES.0, CONNECT_PAUSES.1),
            connect_at: now,
            again: Backoff::new(AGAIN_PAUSES.0, AGAIN_PAUSES.1),
            acknowledge_at: now,
            outage: Outage::new(format!("broker {node}, a leader of the tasks,")),
            silent_since: None,
            settling_since: None,
            links,
        }
    }

    /// Takes tasks until the worker stops or the broker leads nothing any more, settles what is held through its session,
    /// closes that. Returns why that could not be done in order, if so.
    ///
    /// # Errors
    /// What no repetition cures: a request of ours that the broker calls invalid (42), or a cluster without share groups.
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

    /// One request, or the wait for one answer, or one sleep at the doorbell.
    fn round(&mut self, led: &BTreeMap<SharePartition, Leader>) -> Result<(), KafkaError> {
        let now = Instant::now();
        let Some(channel) = &self.current else { return self.reconnect(led, now) };
        if channel.session.is_waiting() {
            return self.await_answer(led);
        }
        if self.open_again || !channel.open {
            return self.open(led, now);
        }
        let (id, muted_until) = (channel.id, channel.muted_until);
        let settled_wait = self.is_held_back(now);
        if now >= self.acknowledge_at {
            // First what is left of refused groups: the rest of a group whose one lock is lost has to be renewed in time.
            if let Some(half) = self.next_half(id, settled_wait) {
                return self.send(|session| session.send_acknowledge(half));
            }
            let renewals = self.links.in_flight.renewals(self.node, settled_wait, now);
            if !renewals.is_empty() {
                return self.send(|session| session.send_acknowledge(renewals));
            }
        }
        let due = if now < self.acknowledge_at || settled_wait { Acknowledgements::new() } else { self.take_due(id) };
        // A stop takes nothing new, and looks for what it still runs (rule 23).
        let takes = self.takes();
        let mut plan = self.arrivals.plan(|partition| self.links.in_flight.sought(partition, takes), now);
        if !takes {
            plan.fetch.clear();
        }
        for partition in &plan.given_up {
            self.links.in_flight.end_search(*partition);
        }
        let muted = Some(muted_until).filter(|until| *until > now);
        let next = muted.or(plan.next);
        let fetch = match muted {
            // Its records would be as old as the fetch, too old to start. Acknowledgements are sent: the broker reads
            // them afterwards, even if this process ends before.
            Some(_) => {
                self.links.queue.withdraw(self.node);
                None
            }
            None if may_ride(&due, &plan) => self.next_fetch(plan, now),
            None => None,
        };
        match fetch {
            Some((partitions, limits)) => self.send(|session| session.send_fetch(&partitions, due, limits)),
            None if !due.is_empty() => self.send(|session| session.send_acknowledge(due)),
            None => {
                let acknowledge_at = Some(self.acknowledge_at).filter(|at| *at > now);
                let renewal = self.links.in_flight.next_timer(self.node).map(|at| at.max(self.acknowledge_at));
                let timers = [next, acknowledge_at, renewal];
                self.sleep(timers.into_iter().flatten().min());
                Ok(())
            }
        }
    }

    /// Whether new tasks are taken.
    fn takes(&self) -> bool {
        self.links.control.phase() == Phase::Running
    }

    /// What to fetch now, and from which partitions: first where locks are looked for.
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
        Some((plan.fetch, limits(grant)))
    }

    /// The next half of a refused group of which something still stands; while acknowledgements are held back, only
    /// renewals.
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

    /// The acknowledgements that can be sent now on channel `id`.
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
        match send(&mut channel.session) {
            Ok(()) => Ok(()),
            Err(error) => self.lost(&error),
        }
    }

    /// Sleeps until the doorbell rings, `until`, or a tick, whichever is first.
    fn sleep(&self, until: Option<Instant>) {
        let tick = Instant::now() + TICK;
        // Rung, or time: the next round looks at everything anyway.
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

/// Whether the next fetch may carry these acknowledgements: accepts, of partitions that it fetches from.
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

    /// What a handler may do with a record that it takes when the clocks have gone on this far since the fetch.
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
