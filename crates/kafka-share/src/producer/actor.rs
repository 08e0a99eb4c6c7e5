//! The producer's thread: takes records, gives each leader its next job, and applies the reports.
//!
//! With more than one broker the thread never waits for Kafka: leaders and the asker have threads of their own and
//! report through one channel. It blocks only in [`Actor::next_report`]: on records, reports, the end, and the end of
//! the next rest.

mod reports;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, never, select};

use super::asker::{Asker, Question};
use super::denials::Denials;
use super::doubts::Doubt;
use super::lane::{Identity, Lane};
use super::leader::{Leader, Links};
use super::link::Job;
use super::report::Report;
use super::topics::Topics;
use super::trouble::Trouble;
use super::{Delivery, DeliveryError, LaneKey, Message, ProducerEvents, ProducerOptions, Shared};
use crate::cluster::Cluster;
use crate::error::{ErrorCode, KafkaError, Result};
use program::stop::Stop;
use program::threads::Thread;

/// Reports that may wait for the actor.
const REPORTS: usize = 64;
/// How long the actor waits when nothing is due.
const IDLE: Duration = Duration::from_secs(1);
/// The same while closing, to notice an interrupt.
const CLOSING: Duration = Duration::from_millis(20);
/// How long the threads may take to end after their sockets were shut down.
const END_GRACE: Duration = Duration::from_millis(250);
/// Key for records without a known partition or leader in the account of held bytes.
const NO_LEADER: i32 = -1;

/// Shared state of the thread and its owner.
pub(super) struct Handles<T> {
    pub(super) inbox: Receiver<Message<T>>,
    pub(super) closing: Stop,
    pub(super) shared: Arc<Shared>,
}

/// One partition's records and their failures.
struct Slot<T> {
    lane: Lane<T>,
    trouble: Trouble,
    /// A job that concerns the partition is in progress.
    asked: bool,
}

/// See the module documentation.
pub(super) struct Actor<T, E> {
    links: Links,
    reports: Receiver<Report>,
    options: ProducerOptions,
    events: E,
    inbox: Receiver<Message<T>>,
    closing: Stop,
    shared: Arc<Shared>,
    asker: Option<Asker>,
    identity: Option<Identity>,
    cluster_trouble: Trouble,
    topics: Topics<T>,
    lanes: BTreeMap<LaneKey, Slot<T>>,
    leaders: BTreeMap<i32, Leader>,
    denials: Denials,
    /// A leader that leads no partition has failed: connect to another broker, if there is one.
    look_for_leader: bool,
    /// The cluster never had more than one broker.
    alone: bool,
    /// The actor may take more records from the channel.
    has_room: bool,
    /// Threads of dropped leaders that have not ended yet.
    ending: Vec<Thread>,
}

impl<T: Send + 'static, E: ProducerEvents<T>> Actor<T, E> {
    pub(super) fn new(
        (name, on_death): (&str, &Stop),
        cluster: Cluster,
        options: ProducerOptions,
        events: E,
        Handles { inbox, closing, shared }: Handles<T>,
    ) -> Self {
        let (reports_in, reports) = bounded(REPORTS);
        let links = Links { name: name.to_owned(), cluster, reports: reports_in, on_death: on_death.clone() };
        Self {
            denials: Denials::new(name, Arc::clone(&shared)),
            links,
            reports,
            options,
            events,
            inbox,
            closing,
            shared,
            asker: None,
            identity: None,
            cluster_trouble: Trouble::new(),
            topics: Topics::new(Instant::now()),
            lanes: BTreeMap::new(),
            leaders: BTreeMap::new(),
            look_for_leader: false,
            alone: true,
            has_room: true,
            ending: Vec::new(),
        }
    }

    /// Runs until closed and settled, or until interrupted.
    pub(super) fn run(mut self) -> Result<()> {
        let end = self.work();
        self.shared.ready.store(false, Ordering::Relaxed);
        self.settle_rest();
        self.end_threads();
        match end {
            Err(KafkaError::Interrupted) => Ok(()),
            end => end,
        }
    }

    fn work(&mut self) -> Result<()> {
        loop {
            self.links.cluster.options().interrupter.check()?;
            self.fill();
            if self.is_finished() {
                return Ok(());
            }
            let now = Instant::now();
            self.shared.turn(now);
            self.ask(now);
            let done_here = self.dispatch(now)?;
            self.shared.ready.store(self.is_ready(), Ordering::Relaxed);
            if !done_here && let Some(report) = self.next_report(now) {
                self.handle(report)?;
            }
            while let Ok(report) = self.reports.try_recv() {
                self.handle(report)?;
            }
        }
    }

    // ---- records ----

    /// Takes records from the channel until a leader holds its maximum of bytes.
    fn fill(&mut self) {
        let mut held: BTreeMap<i32, usize> = [(NO_LEADER, self.topics.bytes())].into();
        for (key, slot) in &self.lanes {
            *held.entry(self.topics.leader(key).unwrap_or(NO_LEADER)).or_default() += slot.lane.bytes();
        }
        let bound = self.options.held_bytes;
        self.has_room = held.values().all(|bytes| *bytes < bound);
        while self.has_room {
            let Ok(message) = self.inbox.try_recv() else { break };
            let size = message.record.size();
            let bytes = held.entry(self.take(message)).or_default();
            *bytes += size;
            self.has_room = *bytes < bound;
        }
    }

    /// Assigns a record to its partition, if that is known. Returns the leader that the record waits for.
    fn take(&mut self, message: Message<T>) -> i32 {
        let Some((key, message)) = self.topics.place(message) else { return NO_LEADER };
        let leader = self.topics.leader(&key).unwrap_or(NO_LEADER);
        self.push(key, message);
        leader
    }

    fn push(&mut self, key: LaneKey, message: Message<T>) {
        // Without a producer id no leader is looked up.
        let Some(identity) = self.identity else { return };
        let partition = key.1;
        let new = || Slot { lane: Lane::new(partition, identity), trouble: Trouble::new(), asked: false };
        self.lanes.entry(key).or_insert_with(new).lane.push(message);
    }

    fn is_finished(&self) -> bool {
        self.closing.is_triggered()
            && self.inbox.is_empty()
            && self.topics.missing().next().is_none()
            && !self.lanes.values().any(|slot| slot.lane.has_work())
    }

    fn settle(&mut self, deliveries: Vec<Delivery<T>>) {
        if !deliveries.is_empty() {
            self.events.settled(deliveries);
        }
    }

    // ---- next jobs ----

    /// Asks the cluster for missing facts, one question at a time.
    fn ask(&mut self, now: Instant) {
        let asker = self.asker.get_or_insert_with(|| Asker::start(&self.links));
        if asker.is_busy() || self.cluster_trouble.rests(now) {
            return;
        }
        let identity = self.identity.is_none();
        let topics = self.topics.take_wanted(now);
        let denied = self.denials.take_old(now);
        let brokers = self.leaders.is_empty() || std::mem::take(&mut self.look_for_leader);
        if identity || brokers || !topics.is_empty() || !denied.is_empty() {
            asker.ask(Question { identity, topics, denied });
        }
    }

    /// Gives every free leader its next job. Returns true if this thread did a job itself.
    fn dispatch(&mut self, now: Instant) -> Result<bool> {
        self.find_leaders(now);
        self.alone &= self.links.cluster.broker_count() <= 1;
        let mut done_here = false;
        let nodes: Vec<i32> = self.leaders.keys().copied().collect();
        for node in nodes {
            let Some(job) = self.next_job(node, now) else { continue };
            let Some(leader) = self.leaders.get_mut(&node) else { continue };
            if let Some(report) = leader.give(job, self.alone, &self.links, now) {
                done_here = true;
                self.handle(report)?;
            }
        }
        Ok(done_here)
    }

    /// Finds a leader for every lane with records, or has the cluster asked.
    fn find_leaders(&mut self, now: Instant) {
        let mut without = Vec::new();
        for (key, slot) in &self.lanes {
            if !slot.lane.has_work() {
                continue;
            }
            match self.topics.leader(key) {
                Some(node) => {
                    self.leaders.entry(node).or_insert_with(|| Leader::new(node, &self.links));
                }
                None if slot.asked || slot.trouble.rests(now) => {}
                None => without.push(key.clone()),
            }
        }
        for key in without {
            let unavailable = KafkaError::broker("Metadata", ErrorCode::LEADER_NOT_AVAILABLE, None);
            self.lane_failed(&key, &unavailable, now);
        }
    }

    /// Chooses the leader's next job, if it is free: connect and look log ends up, look a batch up, send, or check its
    /// idle connection. Connects before composing, so that `about_to_send` is called only when the record really goes
    /// out.
    fn next_job(&mut self, node: i32, now: Instant) -> Option<Job> {
        let hurries = self.shared.hurries.load(Ordering::Relaxed);
        let leader = self.leaders.get_mut(&node).filter(|leader| leader.is_free(now, hurries))?;
        let (mut unlearnt, mut sendable, mut doubt) = (Vec::new(), Vec::new(), None);
        for (key, slot) in &self.lanes {
            if !slot.lane.has_work() || slot.asked || slot.trouble.rests(now) || self.topics.leader(key) != Some(node) {
                continue;
            }
            if let Some(batch) = slot.lane.in_doubt() {
                let from = slot.lane.search_from().unwrap_or(0);
                doubt.get_or_insert_with(|| Doubt { key: key.clone(), batch, from });
            } else if slot.lane.search_from().is_none() {
                unlearnt.push(key.clone());
            } else {
                sendable.push(key.clone());
            }
        }
        let has_work = !unlearnt.is_empty() || !sendable.is_empty() || doubt.is_some();
        let job = if !unlearnt.is_empty() || (has_work && !leader.connected) {
            leader.out.clone_from(&unlearnt);
            Job::Open(unlearnt)
        } else if let Some(doubt) = doubt.filter(|_| leader.doubts_first || sendable.is_empty()) {
            leader.doubts_first = false;
            leader.out = vec![doubt.key.clone()];
            Job::LookUp(doubt)
        } else if !sendable.is_empty() {
            leader.doubts_first = true;
            self.compose(node, sendable)?
        } else if leader.is_unwatched(now) {
            Job::Open(Vec::new())
        } else {
            return None;
        };
        for key in self.leaders.get(&node).map_or(&[][..], |leader| &leader.out) {
            if let Some(slot) = self.lanes.get_mut(key) {
                slot.asked = true;
            }
        }
        Some(job)
    }

    /// Composes one request: a batch of each lane in turn, until the request is full.
    fn compose(&mut self, node: i32, mut keys: Vec<LaneKey>) -> Option<Job> {
        let leader = self.leaders.get_mut(&node)?;
        let after = leader.last.as_ref().map_or(0, |last| keys.partition_point(|key| key <= last));
        let first = if after < keys.len() { after } else { 0 };
        keys.rotate_left(first);
        let (mut batches, mut refused, mut bytes) = (Vec::new(), Vec::new(), 0);
        let now = SystemTime::now();
        for key in keys {
            let Some(slot) = self.lanes.get_mut(&key) else { continue };
            let events = &mut self.events;
            refused.extend(slot.lane.compose(self.options.batch_bytes, now, |token| events.about_to_send(token)));
            let Some(batch) = slot.lane.outgoing() else { continue };
            bytes += batch.len();
            batches.push((key, batch));
            if bytes >= self.options.request_bytes {
                break;
            }
        }
        leader.last = batches.last().map(|(key, _)| key.clone());
        // Sorted, so the batches of one topic are adjacent.
        batches.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
        leader.out = batches.iter().map(|(key, _)| key.clone()).collect();
        self.settle(refused);
        (!batches.is_empty()).then_some(Job::Produce(batches))
    }

    // ---- reports ----

    /// Waits for a report, a record, the end, or the next due moment.
    fn next_report(&mut self, now: Instant) -> Option<Report> {
        let closing = self.closing.is_triggered();
        let due = self.wakes_at(now).map_or(IDLE, |at| at.saturating_duration_since(Instant::now()));
        let (no_records, no_end) = (never(), never());
        let inbox = if self.has_room { &self.inbox } else { &no_records };
        let end = if closing { &no_end } else { self.closing.triggered() };
        select! {
            recv(self.reports) -> report => report.ok(),
            recv(inbox) -> message => {
                match message {
                    Ok(message) => drop(self.take(message)),
                    // The handle and all senders are gone.
                    Err(_) => self.inbox = never(),
                }
                None
            }
            recv(end) -> _ => None,
            default(due.min(if closing { CLOSING } else { IDLE })) => None,
        }
    }

    /// Returns the next moment after `now` at which a rest ends.
    fn wakes_at(&self, now: Instant) -> Option<Instant> {
        let working = self.lanes.values().filter(|slot| slot.lane.has_work());
        let lanes = working.filter_map(|slot| slot.trouble.rests_until());
        let leaders = self.leaders.values().flat_map(Leader::wakes_at);
        let all = lanes.chain(leaders).chain(self.topics.wakes_at()).chain(self.cluster_trouble.rests_until());
        all.filter(|at| *at > now).min()
    }

    /// See [`super::Producer::is_ready`].
    fn is_ready(&self) -> bool {
        let well = |node| self.leaders.get(&node).is_some_and(|leader| !leader.trouble.lasts());
        let lanes = self.lanes.iter().filter(|(_, slot)| slot.lane.has_work());
        let lanes = lanes.map(|(key, slot)| !slot.trouble.lasts() && self.topics.leader(key).is_none_or(well));
        let mut working = lanes.chain(self.topics.missing().map(|missing| !missing)).peekable();
        self.leaders.values().any(|leader| leader.connected)
            && self.denials.is_empty()
            && (working.peek().is_none() || working.any(|works| works))
    }

    // ---- the end ----

    /// Refuses further records and settles all remaining ones.
    fn settle_rest(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        let rest: Vec<Delivery<T>> =
            std::mem::take(&mut self.lanes).into_values().flat_map(|slot| slot.lane.abandon()).collect();
        let mut unsent = self.topics.take_waiting();
        loop {
            // Senders see the flag, but some may still be inside `send`: receiving makes room for them.
            let none_inside = self.shared.inside.load(Ordering::SeqCst) == 0;
            match self.inbox.recv_timeout(if none_inside { Duration::ZERO } else { Duration::from_millis(1) }) {
                Ok(message) => unsent.push(message),
                Err(RecvTimeoutError::Timeout) if !none_inside => {}
                Err(_) => break,
            }
        }
        self.settle(rest);
        self.fail(unsent, &DeliveryError::Unsent);
    }

    /// Joins all threads. A thread that is opening a connection cannot be woken; it ends after the connect timeout.
    fn end_threads(self) {
        drop(self.reports);
        // The interrupter is this producer's own, and every record is settled.
        self.links.cluster.options().interrupter.interrupt();
        let deadline = Instant::now() + END_GRACE;
        let leaders = self.leaders.into_values().map(|leader| leader.end(deadline));
        let asker = self.asker.into_iter().map(|asker| asker.end(deadline));
        let ending = self.ending.into_iter().map(|thread| thread.join_deadline(deadline).map(drop));
        for late in leaders.chain(asker).chain(ending).filter_map(std::result::Result::err) {
            log::warn!("thread {} has not ended: it is opening a connection", late.name());
        }
    }
}
