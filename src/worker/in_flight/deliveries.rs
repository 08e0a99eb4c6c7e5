//! Deliveries, changes of leaders, searches and time-outs.

use super::entry::{Entry, Lock, State};
use super::{Delivered, InFlight, RecordKey, RunningTask, TaskNames};
use kafka_share::share_wire::SharePartition;
use std::sync::Arc;
use std::time::{Duration, Instant};

impl InFlight {
    /// Enters a delivery, newer than every earlier request about the record (rule 9). Returns true if a handler gets
    /// it.
    pub(in crate::worker) fn deliver(&self, delivered: Delivered, now: Instant) -> bool {
        let Delivered { key, mark, node, sent_at, startable, delivery_count, last_delivery } = delivered;
        let mut table = self.table.lock();
        let lock = Lock::Held { node, since: sent_at, doubt: !startable };
        let fresh = if startable { State::Ready } else { State::Returned };
        // After the log was truncated, another task may stand at the same offset.
        if table.entries.get(&key).is_some_and(|entry| entry.mark != mark) {
            table.forget(key);
        }
        if table.entries.contains_key(&key) {
            let started = table.change(key, |entry| {
                (entry.lock, entry.delivered_at, entry.asked) = (lock, now, None);
                (entry.delivery_count, entry.last_delivery) = (delivery_count, last_delivery);
                if matches!(entry.state, State::Ready | State::Returned) {
                    entry.state = fresh;
                }
                // A job of an earlier delivery that is still in the queue is no longer valid.
                matches!(entry.state, State::Ready)
            });
            return started.unwrap_or(false);
        }
        let finished = table.unaccepted.knows(&key, &mark);
        table.unaccepted.found(&key);
        let state = if finished { State::Done } else { fresh };
        let entry = Entry {
            task: Arc::clone(&mark).into(),
            mark,
            state,
            lock,
            delivered_at: now,
            delivery_count,
            last_delivery,
            asked: None,
            asked_until: None,
        };
        *table.counts.slot(&entry.state) += 1;
        table.returned += u64::from(matches!(entry.state, State::Returned));
        let starts = matches!(entry.state, State::Ready);
        if let Some(acknowledgement) = entry.owed() {
            table.due.insert(key, acknowledgement);
        }
        table.entries.insert(key, entry);
        starts
    }

    /// Whether the record is known, as work or as finished: then a search for it has found it.
    pub(in crate::worker) fn knows(&self, key: RecordKey, mark: &str) -> bool {
        let table = self.table.lock();
        table.entries.contains_key(&key) || table.unaccepted.knows(&key, mark)
    }

    /// Whether the account holds the record.
    pub(in crate::worker) fn holds(&self, key: RecordKey) -> bool {
        self.table.lock().entries.contains_key(&key)
    }

    /// Whether another node is known to hold the lock (rule 11).
    pub(in crate::worker) fn is_held_elsewhere(&self, key: RecordKey, node: i32) -> bool {
        self.table.lock().entries.get(&key).and_then(Entry::node).is_some_and(|holder| holder != node)
    }

    /// Releases one record that no handler has started, and counts it as returned. Returns false if it is not ready.
    pub(in crate::worker) fn take_back(&self, key: RecordKey, delivery_count: u16) -> bool {
        let mut table = self.table.lock();
        let ready = table
            .entries
            .get(&key)
            .is_some_and(|entry| matches!(entry.state, State::Ready) && entry.delivery_count == delivery_count);
        if ready {
            table.returned += 1;
            table.give_back(key);
        }
        ready
    }

    /// Whether this delivery of the record is still ready.
    pub(in crate::worker) fn is_ready(&self, key: RecordKey, delivery_count: u16) -> bool {
        self.table
            .lock()
            .entries
            .get(&key)
            .is_some_and(|entry| matches!(entry.state, State::Ready) && entry.delivery_count == delivery_count)
    }

    /// Whether the broker drops the record at its next release.
    pub(in crate::worker) fn is_last(&self, key: RecordKey) -> bool {
        self.table.lock().entries.get(&key).is_some_and(|entry| entry.last_delivery)
    }

    /// Releases all resting tasks at once: the worker stops, and another worker has time for them.
    pub(in crate::worker) fn take_back_resting(&self) {
        self.end_rests_by(None);
    }

    /// Releases the tasks whose rest has ended.
    pub(in crate::worker) fn end_rests(&self, now: Instant) {
        self.end_rests_by(Some(now));
    }

    fn end_rests_by(&self, now: Option<Instant>) {
        let mut table = self.table.lock();
        if table.counts.resting == 0 {
            return;
        }
        let over = |until: Instant| now.is_none_or(|now| until <= now);
        for key in table.keys(|_, entry| matches!(entry.state, State::Resting(until) if over(until))) {
            table.give_back(key);
        }
    }

    /// Applies a change of leader: the locks of the partition at another node are lost. If the same node leads in a
    /// later epoch, the locks are renewed (rule 18). Returns the tasks in work that lost their locks.
    pub(in crate::worker) fn leader_changed(&self, partition: SharePartition, leader: i32) -> TaskNames {
        self.doubt_those(|key, entry| key.partition == partition && entry.node() == Some(leader));
        let mut table = self.table.lock();
        let elsewhere = |key: &RecordKey, entry: &Entry| {
            key.partition == partition && entry.node().is_some_and(|node| node != leader)
        };
        let keys = table.keys(elsewhere);
        keys.into_iter().filter_map(|key| table.lose(key)).collect()
    }

    /// The number of locks sought in this partition: of records in work, with `finished` also of finished tasks.
    pub(in crate::worker) fn sought(&self, partition: SharePartition, finished: bool) -> usize {
        let table = self.table.lock();
        let of_finished = if finished { table.unaccepted.sought(partition) } else { 0 };
        if table.sought == 0 {
            return of_finished;
        }
        let entries = table.entries.iter();
        entries.filter(|(key, entry)| key.partition == partition && entry.is_sought()).count() + of_finished
    }

    /// Ends the search in this partition: another member may have the missing records. Their handlers see `abandoned`.
    pub(in crate::worker) fn end_search(&self, partition: SharePartition) {
        let mut told = Vec::new();
        {
            let mut table = self.table.lock();
            table.unaccepted.end_search(partition);
            for key in table.keys(|key, entry| key.partition == partition && entry.is_sought()) {
                table.change(key, |entry| {
                    entry.lock = Lock::Gone { sought: false };
                    if let State::Running { abandoned, .. } = &entry.state {
                        told.push(abandoned.clone());
                    }
                });
            }
        }
        for abandoned in told {
            abandoned.trigger();
        }
    }

    /// Releases the tasks that have run for longer than `limit`, and returns them. They may start elsewhere, and the
    /// outcome of these handlers is dropped.
    pub(in crate::worker) fn take_overdue(&self, limit: Duration, now: Instant) -> TaskNames {
        let mut told = Vec::new();
        let mut overdue = TaskNames::new();
        {
            let mut table = self.table.lock();
            if table.counts.running == 0 {
                return overdue;
            }
            for key in table.keys(|_, entry| {
                matches!(entry.state, State::Running { since, .. } if now.saturating_duration_since(since) > limit)
            }) {
                let Some(Entry { task, state: State::Running { run, since, abandoned }, .. }) =
                    table.entries.get(&key).cloned()
                else {
                    continue;
                };
                overdue.push(task.clone());
                told.push(abandoned);
                table.detach(run, Some(RunningTask { task, key, since }));
                table.give_back(key);
            }
        }
        for abandoned in told {
            abandoned.trigger();
        }
        overdue
    }

    /// Whether a handler still runs an overdue task.
    pub(in crate::worker) fn has_overdue(&self) -> bool {
        self.table.lock().detached.values().any(Option::is_some)
    }

    /// The durations that handlers have reported since the last call.
    pub(in crate::worker) fn take_durations(&self) -> Vec<Duration> {
        std::mem::take(&mut self.table.lock().durations)
    }
}
