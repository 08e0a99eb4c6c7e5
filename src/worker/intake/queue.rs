//! What lies ready for the handlers, and how much more may be fetched: shared by all intakes of a worker.
//!
//! A record that waits behind a busy handler could run on another worker. So the places for further records are given
//! out here, one intake after the other in the order in which they asked, and a place that was given to an intake is
//! not given to another one until that fetch was answered, or is so late that its broker must be silent.
//!
//! Not here: what becomes of the records ([`InFlight`]), sessions (the intakes).

use super::window::Window;
use super::{FIRST_WAIT, Job};
use crate::worker::drain::{Control, Phase};
use crate::worker::in_flight::InFlight;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a broker parks a fetch. A released record does not wake a parked fetch, so this bounds how long a task
/// that was given back waits while every worker is idle.
pub(super) const MAX_WAIT: Duration = Duration::from_millis(100);
/// An unstarted task lies behind busy handlers this long at the most.
const LONGEST_READY: Duration = Duration::from_millis(100);
/// What lies ready when a stop begins is finished if that takes less than this, given back otherwise.
const QUICK_FINISH: Duration = Duration::from_millis(100);
/// An answer that is later than its fetch was parked by this much: its places are given to other intakes.
const LATE: Duration = Duration::from_millis(100);
/// A fetch waits for results that are on their way no longer than this: their leader may be gone.
const LONGEST_HOLD: Duration = Duration::from_millis(50);
/// What lay at a broker so long ago may be gone: others take from it as well.
const BACKLOG_LASTS: Duration = Duration::from_millis(100);

/// What an intake may fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) records: usize,
    /// How long the fetch may be parked: shorter where others wait for the same places.
    pub(super) max_wait: Duration,
}

#[derive(Debug)]
struct Places {
    window: Window,
    /// Intakes that fetch all the time, by their node; those that only visit their broker are not among them.
    intakes: BTreeSet<i32>,
    /// Records that intakes have asked their brokers for, and until when that counts.
    asked: BTreeMap<i32, (usize, Instant)>,
    /// When a broker has brought all that it was asked for: more lies there, and the next fetch is not parked.
    backlogs: BTreeMap<i32, Instant>,
    /// Since when the next fetch of an intake waits for results.
    held: BTreeMap<i32, Instant>,
    /// Intakes that found no place, the one that waits longest first.
    waiting: VecDeque<i32>,
    /// Since when all handlers were busy while records lay ready.
    busy_since: Option<Instant>,
}

/// See the module documentation.
#[derive(Debug)]
pub(in crate::worker) struct ReadyQueue {
    handlers: usize,
    /// From this delivery count on a record is not released: the broker would drop it soon.
    last_delivery: u16,
    in_flight: Arc<InFlight>,
    control: Arc<Control>,
    /// Capacity for the largest window and every handler. Full: the record goes back.
    queue_in: Sender<Job>,
    /// The same channel's other end, to take back what no handler has taken.
    queue_out: Receiver<Job>,
    places: Mutex<Places>,
}

impl ReadyQueue {
    /// `delivery_limit`: at this delivery count the broker drops a record that is released.
    pub(in crate::worker) fn new(
        handlers: usize,
        delivery_limit: u16,
        in_flight: Arc<InFlight>,
        control: Arc<Control>,
        (queue_in, queue_out): (Sender<Job>, Receiver<Job>),
    ) -> Self {
        let places = Places {
            window: Window::new(handlers),
            intakes: BTreeSet::new(),
            asked: BTreeMap::new(),
            backlogs: BTreeMap::new(),
            held: BTreeMap::new(),
            waiting: VecDeque::new(),
            busy_since: None,
        };
        let last_delivery = last_delivery(delivery_limit);
        Self { handlers, last_delivery, in_flight, control, queue_in, queue_out, places: Mutex::new(places) }
    }

    /// Whether a record at this delivery must not be released any more.
    pub(super) fn is_last(&self, delivery_count: u16) -> bool {
        delivery_count >= self.last_delivery
    }

    // ---- places ----

    /// An intake has ended.
    pub(super) fn leave(&self, node: i32) {
        self.withdraw(node);
        let mut places = self.places.lock();
        places.intakes.remove(&node);
        places.backlogs.remove(&node);
        places.held.remove(&node);
    }

    /// What the intake of `node` may fetch now. Without a grant it is woken when a place may be free for it.
    /// `is_visit`: the fetch is hardly parked, so that it keeps no others waiting.
    pub(super) fn ask(&self, node: i32, is_visit: bool, now: Instant) -> Option<Grant> {
        if self.is_held(node, now) {
            self.withdraw(node);
            return None;
        }
        let counts = self.in_flight.counts();
        let mut places = self.places.lock();
        let Places { window, intakes, asked, waiting, .. } = &mut *places;
        window.adjust();
        if is_visit {
            intakes.remove(&node);
        } else {
            intakes.insert(node);
        }
        asked.retain(|holder, (_, until)| *holder != node && *until > now);
        let others: usize = asked.values().map(|(records, _)| records).sum();
        let idle = self.handlers.saturating_sub(counts.busy());
        let free = window.wanted(idle, counts.ready + others);
        self.control.set_low_water(window.low_water());
        let is_next = waiting.front().is_none_or(|first| *first == node);
        if free == 0 || !is_next {
            if !waiting.contains(&node) {
                waiting.push_back(node);
            }
            return None;
        }
        waiting.retain(|waiter| *waiter != node);
        let sharers = intakes.len() + usize::from(is_visit);
        let records = free.div_ceil(sharers);
        let contended = sharers > 1 && records == free;
        let max_wait = match u32::try_from(sharers) {
            _ if is_visit => FIRST_WAIT,
            Ok(sharers) if contended => MAX_WAIT / sharers,
            _ => MAX_WAIT,
        };
        asked.insert(node, (records, now + max_wait + LATE));
        Some(Grant { records, max_wait })
    }

    /// Whether the next fetch of `node` waits for results that are on their way: an accept rides on the next fetch, and a
    /// fetch may be parked. A worker that is killed while it is parked then has nothing done that is not accepted. Not
    /// while other work can be fetched for meanwhile, nor while more lies at the broker.
    fn is_held(&self, node: i32, now: Instant) -> bool {
        let counts = self.in_flight.counts();
        let mut places = self.places.lock();
        let nothing_else = places.window.is_closed() || counts.ready + counts.busy() == 0;
        let lasts = |at: &Instant| now.saturating_duration_since(*at) < BACKLOG_LASTS;
        let may_park = !places.backlogs.get(&node).is_some_and(lasts);
        let waits = counts.publishing > 0 && nothing_else && may_park && self.in_flight.publishes_at(node);
        if waits && now.saturating_duration_since(*places.held.entry(node).or_insert(now)) < LONGEST_HOLD {
            return true;
        }
        places.held.remove(&node);
        false
    }

    /// The fetch of `node` was answered with so many records, or will not be: its places are free.
    pub(super) fn answered(&self, node: i32, records: usize, now: Instant) {
        let mut places = self.places.lock();
        let asked = places.asked.remove(&node).map_or(usize::MAX, |(asked, _)| asked);
        if records >= asked {
            places.backlogs.insert(node, now);
        } else {
            places.backlogs.remove(&node);
        }
        let waits = !places.waiting.is_empty();
        drop(places);
        if waits {
            self.control.ring();
        }
    }

    /// The intake of `node` asks for nothing at present.
    pub(super) fn withdraw(&self, node: i32) {
        let mut places = self.places.lock();
        places.asked.remove(&node);
        let before = places.waiting.len();
        places.waiting.retain(|waiter| *waiter != node);
        let waits = places.waiting.len() < before && !places.waiting.is_empty();
        drop(places);
        if waits {
            self.control.ring();
        }
    }

    // ---- records ----

    /// Looks at what the handlers have done: how long tasks take, and whether any lie behind one that takes long.
    pub(super) fn look(&self, now: Instant) {
        let durations = self.in_flight.take_durations();
        self.in_flight.end_rests(now);
        let counts = self.in_flight.counts();
        let stuck = {
            let mut places = self.places.lock();
            durations.into_iter().for_each(|took| places.window.observe(took));
            if counts.ready == 0 || counts.busy() < self.handlers {
                places.busy_since = None;
                return;
            }
            let since = *places.busy_since.get_or_insert(now);
            // Work that flows is not stuck, however busy: only a handler that has run that long is.
            let oldest = self.in_flight.running().first().map(|task| now.saturating_duration_since(task.since));
            let stuck = oldest
                .filter(|oldest| *oldest >= LONGEST_READY && now.saturating_duration_since(since) >= LONGEST_READY);
            if let Some(oldest) = stuck {
                // No more is fetched ahead for now, or the same records would come back at once.
                places.window.observe(oldest);
                places.busy_since = None;
            }
            stuck.is_some()
        };
        if stuck && self.take_back_all() {
            self.control.ring();
        }
    }

    /// Hands records to the handlers. What begins during a stop goes back.
    pub(super) fn hand_out(&self, jobs: Vec<Job>) {
        let stopping = self.control.phase() != Phase::Running;
        for job in jobs {
            let keep = !stopping || self.is_last(job.record.delivery_count);
            let refused = if keep { self.queue_in.try_send(job).err() } else { Some(TrySendError::Full(job)) };
            if let Some(TrySendError::Full(job) | TrySendError::Disconnected(job)) = refused {
                self.in_flight.take_back(job.key, job.record.delivery_count);
            }
        }
    }

    /// Gives unstarted records back, except those that the broker would drop then: a handler copies them. Whether any
    /// went back.
    pub(in crate::worker) fn take_back_all(&self) -> bool {
        let mut any = false;
        for job in self.queue_out.try_iter().collect::<Vec<_>>() {
            let delivery = job.record.delivery_count;
            if self.is_last(delivery) && self.in_flight.is_ready(job.key, delivery) {
                self.put_back(job);
            } else {
                any |= self.in_flight.take_back(job.key, delivery);
            }
        }
        any
    }

    /// Drops the jobs of records that are not ready any more.
    pub(super) fn purge(&self) {
        for job in self.queue_out.try_iter().collect::<Vec<_>>() {
            if self.in_flight.is_ready(job.key, job.record.delivery_count) {
                self.put_back(job);
            }
        }
    }

    /// Back into the queue, out of which it was taken a moment ago. Full: the record goes back to the broker.
    fn put_back(&self, job: Job) {
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.queue_in.try_send(job) {
            self.in_flight.take_back(job.key, job.record.delivery_count);
        }
    }

    /// Whether what lies ready is expected to be finished at once, so that a stop does not give it back.
    pub(in crate::worker) fn finishes_quickly(&self) -> bool {
        let ready = self.in_flight.counts().ready;
        self.places.lock().window.finishes_within(ready, QUICK_FINISH)
    }

    /// How long a stop waits for that.
    pub(in crate::worker) fn quick_finish() -> Duration {
        QUICK_FINISH
    }
}

/// The delivery from which on a record is not released: one before the limit, so that a lock that runs out leaves one.
pub(in crate::worker) fn last_delivery(limit: u16) -> u16 {
    limit.saturating_sub(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::in_flight::{Claim, Delivered, RecordKey};
    use crossbeam_channel::bounded;
    use kafka_share::share_wire::SharePartition;

    fn queue(handlers: usize, intakes: impl IntoIterator<Item = i32>) -> ReadyQueue {
        let in_flight = Arc::new(InFlight::new(Duration::from_secs(15)));
        let queue = ReadyQueue::new(handlers, 10, in_flight, Arc::new(Control::new()), bounded(1024));
        queue.places.lock().intakes.extend(intakes);
        queue
    }

    fn records(queue: &ReadyQueue, node: i32, now: Instant) -> usize {
        queue.ask(node, false, now).map_or(0, |grant| grant.records)
    }

    #[test]
    fn one_intake_gets_a_record_for_each_handler_and_parks_its_fetch_for_long() {
        let (queue, now) = (queue(3, [1]), Instant::now());
        assert_eq!(queue.ask(1, false, now), Some(Grant { records: 3, max_wait: MAX_WAIT }));
        assert_eq!(
            queue.ask(1, false, now),
            Some(Grant { records: 3, max_wait: MAX_WAIT }),
            "its own places are free again"
        );
    }

    #[test]
    fn one_place_goes_from_one_intake_to_the_next() {
        let (queue, now) = (queue(1, [1, 2, 3]), Instant::now());
        assert_eq!(queue.ask(1, false, now), Some(Grant { records: 1, max_wait: MAX_WAIT / 3 }));
        assert_eq!([2, 3].map(|node| records(&queue, node, now)), [0, 0], "it is given already");
        let mut order = Vec::new();
        let mut holder = 1;
        for _ in 0..5 {
            queue.answered(holder, 0, now);
            // All of them ask again, and the one that has just had it asks first.
            let granted: Vec<i32> =
                [holder, 1, 2, 3].into_iter().filter(|node| records(&queue, *node, now) == 1).collect();
            assert_eq!(granted.len(), 1, "{granted:?}");
            holder = granted[0];
            order.push(holder);
        }
        assert_eq!(order, [2, 3, 1, 2, 3]);
    }

    #[test]
    fn a_visit_takes_its_turn_and_is_hardly_parked() {
        let (queue, now) = (queue(1, [1]), Instant::now());
        assert_eq!(queue.ask(1, false, now), Some(Grant { records: 1, max_wait: MAX_WAIT }));
        assert_eq!(queue.ask(2, true, now), None, "the place is given");
        queue.answered(1, 0, now);
        assert_eq!(queue.ask(1, false, now), None, "the visit has waited for longer");
        assert_eq!(queue.ask(2, true, now), Some(Grant { records: 1, max_wait: FIRST_WAIT }));
        queue.answered(2, 0, now);
        assert_eq!(queue.ask(1, false, now), Some(Grant { records: 1, max_wait: MAX_WAIT }), "no longer shared");
    }

    #[test]
    fn several_places_are_shared() {
        let (queue, now) = (queue(4, [1, 2]), Instant::now());
        assert_eq!([1, 2].map(|node| records(&queue, node, now)), [2, 1], "half of what is left, at least one");
        let first = queue.ask(1, false, now).map(|grant| grant.max_wait);
        assert_eq!(first, Some(MAX_WAIT), "the other one is not kept waiting");
    }

    /// A record that broker 1 has brought, whose result is on its way.
    fn publish(queue: &ReadyQueue, now: Instant) {
        let partition = SharePartition { topic_id: uuid::Uuid::nil(), partition: 0 };
        let key = RecordKey { partition, offset: 7 };
        let delivered = Delivered {
            key,
            mark: "a".into(),
            node: 1,
            sent_at: now,
            startable: true,
            delivery_count: 1,
            last_delivery: false,
        };
        assert!(queue.in_flight.deliver(delivered, now));
        let Claim::Yours(run) = queue.in_flight.claim((key, 1), None, false, now) else { panic!("it is ready") };
        assert!(queue.in_flight.publish(key, &run, 1, None));
    }

    #[test]
    fn a_fetch_that_may_be_parked_waits_for_results_of_its_broker_but_not_for_long() {
        let (queue, now) = (queue(1, [1, 2]), Instant::now());
        publish(&queue, now);
        assert_eq!(records(&queue, 1, now), 0, "its accept could not be sent");
        assert_eq!(records(&queue, 2, now), 1, "another broker's session is free for it");
        queue.answered(2, 0, now);
        assert_eq!(records(&queue, 1, now + LONGEST_HOLD / 2), 0);
        assert_eq!(records(&queue, 1, now + LONGEST_HOLD), 1, "the results' leader may be gone");
    }

    #[test]
    fn a_fetch_where_more_lies_waits_for_no_result() {
        let (queue, now) = (queue(1, [1]), Instant::now());
        assert_eq!(records(&queue, 1, now), 1);
        queue.answered(1, 1, now);
        publish(&queue, now);
        let later = now + BACKLOG_LASTS;
        assert_eq!([now, later].map(|at| records(&queue, 1, at)), [1, 0], "the last one brought all that it asked for");
        assert_eq!(records(&queue, 1, now), 1);
        queue.answered(1, 0, now);
        assert_eq!(records(&queue, 1, now), 0, "the last one brought nothing");
    }

    #[test]
    fn a_broker_that_is_late_does_not_keep_its_place() {
        let (queue, now) = (queue(1, [1, 2]), Instant::now());
        assert_eq!(records(&queue, 1, now), 1);
        let late = now + MAX_WAIT / 2 + LATE + Duration::from_millis(1);
        assert_eq!([now, late].map(|at| records(&queue, 2, at)), [0, 1]);
    }

    #[test]
    fn an_intake_that_ends_or_waits_for_its_broker_is_passed_over() {
        let (queue, now) = (queue(1, [1, 2, 3]), Instant::now());
        assert_eq!([1, 2, 3].map(|node| records(&queue, node, now)), [1, 0, 0]);
        queue.withdraw(2);
        queue.answered(1, 0, now);
        assert_eq!([1, 3].map(|node| records(&queue, node, now)), [0, 1]);
        queue.leave(3);
        assert_eq!(records(&queue, 1, now), 1);
    }

    #[test]
    fn the_last_delivery_but_one_is_the_last_that_is_given_away() {
        assert_eq!([10, 8, 2, 1].map(last_delivery), [9, 7, 1, 1]);
    }
}
