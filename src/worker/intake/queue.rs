//! The records that are ready for the handlers, and how many more may be fetched: shared by all intakes of a worker.
//!
//! A record behind a busy handler could run on another worker, so this limits the places for further records. Intakes
//! get places in the order in which they asked. A place is not granted again until its fetch is answered, or is so late
//! that the broker must be silent.
//!
//! Not here: the outcome of the records ([`InFlight`]), sessions (the intakes).

use super::window::Window;
use super::{FIRST_WAIT, Job};
use crate::worker::drain::Control;
use crate::worker::in_flight::InFlight;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest time for which a broker parks a fetch. A released record does not wake a parked fetch, so this bounds
/// how long a released task waits while every worker is idle.
pub(super) const MAX_WAIT: Duration = Duration::from_millis(100);
/// An unstarted task waits at most this long for a busy handler; then it is released.
const LONGEST_READY: Duration = Duration::from_millis(100);
/// Ready tasks are finished at the beginning of a stop or a quiet if that takes less than this, and released otherwise.
const QUICK_FINISH: Duration = Duration::from_millis(100);
/// When an answer is this much later than its fetch was parked, its places go to other intakes.
const LATE: Duration = Duration::from_millis(100);
/// A fetch waits at most this long for results on their way: their leader may have failed.
const LONGEST_HOLD: Duration = Duration::from_millis(50);
/// A backlog at a broker counts for this long, since other workers fetch from it as well.
const BACKLOG_LASTS: Duration = Duration::from_millis(100);

/// The permission for one fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) records: usize,
    /// How long the fetch may be parked; shorter when other intakes wait for the same places.
    pub(super) max_wait: Duration,
}

#[derive(Debug)]
struct Places {
    window: Window,
    /// Intakes that fetch all the time, by node, without those that only visit their broker.
    intakes: BTreeSet<i32>,
    /// The records that each intake has requested, and until when that counts.
    asked: BTreeMap<i32, (usize, Instant)>,
    /// When a broker's last answer was full: more records wait there, and the next fetch is not parked.
    backlogs: BTreeMap<i32, Instant>,
    /// Since when an intake's next fetch waits for results.
    held: BTreeMap<i32, Instant>,
    /// Intakes that found no place, the longest waiting first.
    waiting: VecDeque<i32>,
    /// Since when all handlers were busy while records lay ready.
    busy_since: Option<Instant>,
}

#[derive(Debug)]
pub(in crate::worker) struct ReadyQueue {
    handlers: usize,
    /// From this delivery count on, a record is not released: the broker would drop it soon.
    last_delivery: u16,
    in_flight: Arc<InFlight>,
    control: Arc<Control>,
    /// Capacity for the largest window and every handler. Full: the record is released.
    queue_in: Sender<Job>,
    /// The other end of that channel, to take back jobs that no handler has taken.
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

    /// Whether a record at this delivery count must not be released.
    pub(super) fn is_last(&self, delivery_count: u16) -> bool {
        delivery_count >= self.last_delivery
    }

    // ---- places ----

    /// Forgets an intake that has ended.
    pub(super) fn leave(&self, node: i32) {
        self.withdraw(node);
        let mut places = self.places.lock();
        places.intakes.remove(&node);
        places.backlogs.remove(&node);
        places.held.remove(&node);
    }

    /// Grants the intake of `node` a fetch. Without a grant the intake is woken when a place may be free. `is_visit`:
    /// the fetch is parked only briefly, so that it blocks no other intake.
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

    /// Whether the next fetch of `node` waits for results on their way, so that their accepts can ride on it. Then a
    /// worker that is killed during a parked fetch has no finished task that is not accepted. It does not wait while
    /// the worker can fetch other work, or while the broker has a backlog.
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

    /// Frees the places of the fetch of `node`, which was answered with this many records, or will not be answered.
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

    /// Frees the places of the intake of `node`, which does not fetch at present.
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

    /// Applies the durations of tasks, ends rests, and releases ready tasks that wait for a slow handler.
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
            // Busy handlers are not stuck: one task must have run for this long.
            let oldest = self.in_flight.running().first().map(|task| now.saturating_duration_since(task.since));
            let stuck = oldest
                .filter(|oldest| *oldest >= LONGEST_READY && now.saturating_duration_since(since) >= LONGEST_READY);
            if let Some(oldest) = stuck {
                // Closes the window, so that the same records do not come back at once.
                places.window.observe(oldest);
                places.busy_since = None;
            }
            stuck.is_some()
        };
        if stuck && self.take_back_all() {
            self.control.ring();
        }
    }

    /// Hands records to the handlers. While no tasks are taken they are released.
    pub(super) fn hand_out(&self, jobs: Vec<Job>) {
        let takes = self.control.takes();
        for job in jobs {
            let keep = takes || self.is_last(job.record.delivery_count);
            let refused = if keep { self.queue_in.try_send(job).err() } else { Some(TrySendError::Full(job)) };
            if let Some(TrySendError::Full(job) | TrySendError::Disconnected(job)) = refused {
                self.in_flight.take_back(job.key, job.record.delivery_count);
            }
        }
    }

    /// Releases unstarted records, except at their last delivery. Returns whether any were released.
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

    /// Drops the jobs of records that are no longer ready.
    pub(super) fn purge(&self) {
        for job in self.queue_out.try_iter().collect::<Vec<_>>() {
            if self.in_flight.is_ready(job.key, job.record.delivery_count) {
                self.put_back(job);
            }
        }
    }

    /// Puts a job back that was just taken from the queue. Full: the record is released.
    fn put_back(&self, job: Job) {
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.queue_in.try_send(job) {
            self.in_flight.take_back(job.key, job.record.delivery_count);
        }
    }

    /// Whether the ready tasks are expected to finish quickly, so that a stop or a quiet does not release them.
    pub(in crate::worker) fn finishes_quickly(&self) -> bool {
        let ready = self.in_flight.counts().ready;
        self.places.lock().window.finishes_within(ready, QUICK_FINISH)
    }

    /// A fetch that is not answered after this time has a silent broker.
    pub(in crate::worker) fn longest_fetch() -> Duration {
        MAX_WAIT + LATE
    }

    /// How long a stop waits for these tasks.
    pub(in crate::worker) fn quick_finish() -> Duration {
        QUICK_FINISH
    }
}

/// From this delivery count on a record is not released: one before the limit, in case a lock runs out.
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
    fn single_intake_gets_a_record_for_each_handler_and_the_longest_wait() {
        let (queue, now) = (queue(3, [1]), Instant::now());
        assert_eq!(queue.ask(1, false, now), Some(Grant { records: 3, max_wait: MAX_WAIT }));
        assert_eq!(
            queue.ask(1, false, now),
            Some(Grant { records: 3, max_wait: MAX_WAIT }),
            "its own places are free again"
        );
    }

    #[test]
    fn single_place_goes_round_among_the_intakes() {
        let (queue, now) = (queue(1, [1, 2, 3]), Instant::now());
        assert_eq!(queue.ask(1, false, now), Some(Grant { records: 1, max_wait: MAX_WAIT / 3 }));
        assert_eq!([2, 3].map(|node| records(&queue, node, now)), [0, 0], "the place is granted already");
        let mut order = Vec::new();
        let mut holder = 1;
        for _ in 0..5 {
            queue.answered(holder, 0, now);
            // All intakes ask again, and the last holder asks first.
            let granted: Vec<i32> =
                [holder, 1, 2, 3].into_iter().filter(|node| records(&queue, *node, now) == 1).collect();
            assert_eq!(granted.len(), 1, "{granted:?}");
            holder = granted[0];
            order.push(holder);
        }
        assert_eq!(order, [2, 3, 1, 2, 3]);
    }

    #[test]
    fn visit_waits_for_its_turn_and_is_parked_only_briefly() {
        let (queue, now) = (queue(1, [1]), Instant::now());
        assert_eq!(queue.ask(1, false, now), Some(Grant { records: 1, max_wait: MAX_WAIT }));
        assert_eq!(queue.ask(2, true, now), None, "the place is granted");
        queue.answered(1, 0, now);
        assert_eq!(queue.ask(1, false, now), None, "the visit has waited longer");
        assert_eq!(queue.ask(2, true, now), Some(Grant { records: 1, max_wait: FIRST_WAIT }));
        queue.answered(2, 0, now);
        assert_eq!(queue.ask(1, false, now), Some(Grant { records: 1, max_wait: MAX_WAIT }), "no longer shared");
    }

    #[test]
    fn several_places_are_shared_among_intakes() {
        let (queue, now) = (queue(4, [1, 2]), Instant::now());
        assert_eq!([1, 2].map(|node| records(&queue, node, now)), [2, 1], "half of the free places, at least one");
        let first = queue.ask(1, false, now).map(|grant| grant.max_wait);
        assert_eq!(first, Some(MAX_WAIT), "the other intake does not wait");
    }

    /// Adds a record from broker 1 whose result is on its way.
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
    fn fetch_waits_briefly_for_results_of_its_broker() {
        let (queue, now) = (queue(1, [1, 2]), Instant::now());
        publish(&queue, now);
        assert_eq!(records(&queue, 1, now), 0, "its accept could not be sent");
        assert_eq!(records(&queue, 2, now), 1, "another broker's session is free");
        queue.answered(2, 0, now);
        assert_eq!(records(&queue, 1, now + LONGEST_HOLD / 2), 0);
        assert_eq!(records(&queue, 1, now + LONGEST_HOLD), 1, "the leader of `results` may have failed");
    }

    #[test]
    fn fetch_from_a_broker_with_a_backlog_waits_for_no_result() {
        let (queue, now) = (queue(1, [1]), Instant::now());
        assert_eq!(records(&queue, 1, now), 1);
        queue.answered(1, 1, now);
        publish(&queue, now);
        let later = now + BACKLOG_LASTS;
        assert_eq!([now, later].map(|at| records(&queue, 1, at)), [1, 0], "the last fetch was full");
        assert_eq!(records(&queue, 1, now), 1);
        queue.answered(1, 0, now);
        assert_eq!(records(&queue, 1, now), 0, "the last fetch was empty");
    }

    #[test]
    fn broker_that_is_late_loses_its_place() {
        let (queue, now) = (queue(1, [1, 2]), Instant::now());
        assert_eq!(records(&queue, 1, now), 1);
        let late = now + MAX_WAIT / 2 + LATE + Duration::from_millis(1);
        assert_eq!([now, late].map(|at| records(&queue, 2, at)), [0, 1]);
    }

    #[test]
    fn intake_that_ends_or_withdraws_is_passed_over() {
        let (queue, now) = (queue(1, [1, 2, 3]), Instant::now());
        assert_eq!([1, 2, 3].map(|node| records(&queue, node, now)), [1, 0, 0]);
        queue.withdraw(2);
        queue.answered(1, 0, now);
        assert_eq!([1, 3].map(|node| records(&queue, node, now)), [0, 1]);
        queue.leave(3);
        assert_eq!(records(&queue, 1, now), 1);
    }

    #[test]
    fn last_delivery_is_one_before_the_limit() {
        assert_eq!([10, 8, 2, 1].map(last_delivery), [9, 7, 1, 1]);
    }
}
