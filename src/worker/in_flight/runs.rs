//! Changes by handlers, and by Kafka's acknowledgements of their results.

use super::entry::{Entry, Lock, State};
use super::{Claim, InFlight, LEAST_LOCK_LEFT, RecordKey, Run, RunId};
use crate::trace::Named;
use std::time::{Duration, Instant};

impl InFlight {
    /// Claims a record that a handler took from the channel; `named`: by the id in its value. With `vetting` the
    /// handler checks its earlier starts first.
    pub(in crate::worker) fn claim(
        &self,
        (key, delivery_count): (RecordKey, u16),
        named: Option<Named<'_>>,
        vetting: bool,
        now: Instant,
    ) -> Claim {
        let mut table = self.table.lock();
        let Some(entry) = table.entries.get(&key) else { return Claim::Gone };
        let (State::Ready, Lock::Held { since, .. }) = (&entry.state, entry.lock) else { return Claim::Gone };
        if entry.delivery_count != delivery_count {
            // The job of an earlier delivery; the job of this one is in the queue as well.
            return Claim::Gone;
        }
        let left = (since + table.lock).saturating_duration_since(now);
        if left < table.lock / LEAST_LOCK_LEFT {
            if left.is_zero() {
                table.remove(key);
            } else {
                table.returned += 1;
                table.give_back(key);
            }
            return Claim::Gone;
        }
        let run = table.new_run();
        let state = if vetting {
            State::Vetting(run.id)
        } else {
            State::Running { run: run.id, since: now, abandoned: run.abandoned.clone() }
        };
        table.change(key, |entry| {
            entry.state = state;
            if let Some(named) = named {
                entry.task.set(named);
            }
        });
        Claim::Yours(run)
    }

    /// Starts a vetted task. Returns false if the record was released meanwhile, or its lock is too old.
    pub(in crate::worker) fn start(&self, key: RecordKey, run: &Run, now: Instant) -> bool {
        let mut table = self.table.lock();
        if table.reattach(run.id) {
            return false;
        }
        let Some(entry) = table.entries.get(&key) else { return false };
        let (State::Vetting(vetting), Lock::Held { since, .. }) = (&entry.state, entry.lock) else { return false };
        if *vetting != run.id {
            return false;
        }
        let left = (since + table.lock).saturating_duration_since(now);
        if !entry.is_sure() || left < table.lock / LEAST_LOCK_LEFT {
            table.returned += 1;
            table.give_back(key);
            return false;
        }
        let state = State::Running { run: run.id, since: now, abandoned: run.abandoned.clone() };
        table.change(key, |entry| entry.state = state);
        true
    }

    /// Releases a vetted record unstarted: the worker stops, or its earlier starts cannot be read.
    pub(in crate::worker) fn decline(&self, key: RecordKey, run: &Run) {
        let mut table = self.table.lock();
        if table.reattach(run.id) {
            return;
        }
        if table.entries.get(&key).is_some_and(|entry| matches!(entry.state, State::Vetting(id) if id == run.id)) {
            table.returned += 1;
            table.give_back(key);
        }
    }

    /// Notes that `records` records of the task's outcome go to Kafka now. Returns false if the task was released
    /// meanwhile; then the outcome must be dropped.
    pub(in crate::worker) fn publish(&self, key: RecordKey, run: &Run, records: u8, took: Option<Duration>) -> bool {
        let mut table = self.table.lock();
        table.durations.extend(took);
        if table.reattach(run.id) || !table.entries.get(&key).is_some_and(|entry| is_of(entry, run.id)) {
            return false;
        }
        table.change(key, |entry| entry.state = State::Publishing(records)).is_some()
    }

    /// Lets a failed task rest: it is released at `until`, or at once when the worker stops. `took`: how long the
    /// handler ran. Returns false if the task was released before.
    pub(in crate::worker) fn rest(&self, key: RecordKey, run: &Run, until: Instant, took: Option<Duration>) -> bool {
        let mut table = self.table.lock();
        table.durations.extend(took);
        if table.reattach(run.id) {
            return false;
        }
        match table.entries.get(&key).filter(|entry| is_of(entry, run.id)).map(|entry| entry.lock) {
            Some(Lock::Held { .. }) => table.change(key, |entry| entry.state = State::Resting(until)).is_some(),
            Some(Lock::Gone { .. }) => table.remove(key).is_some(),
            None => false,
        }
    }

    /// Notes that Kafka has acknowledged one of the task's records; after the last of them the accept is due.
    pub(in crate::worker) fn published(&self, key: RecordKey) {
        let mut table = self.table.lock();
        let Some(State::Publishing(left)) = table.entries.get(&key).map(|entry| entry.state.clone()) else { return };
        if left > 1 {
            table.change(key, |entry| entry.state = State::Publishing(left - 1));
            return;
        }
        table.finished += 1;
        match table.entries.get(&key).map(|entry| entry.lock) {
            Some(Lock::Gone { sought }) => {
                if let Some(entry) = table.remove(key) {
                    table.unaccepted.remember(key, entry.mark, sought);
                }
            }
            _ => drop(table.change(key, |entry| entry.state = State::Done)),
        }
    }

    /// Notes that a record of the task will not be written. Releases the task at `until`, or at once when the worker
    /// stops.
    pub(in crate::worker) fn unpublished(&self, key: RecordKey, until: Instant) {
        let mut table = self.table.lock();
        let Some((State::Publishing(_), lock)) = table.entries.get(&key).map(|entry| (entry.state.clone(), entry.lock))
        else {
            return;
        };
        match lock {
            Lock::Held { .. } => drop(table.change(key, |entry| entry.state = State::Resting(until))),
            Lock::Gone { .. } => drop(table.remove(key)),
        }
    }
}

/// Whether this run owns the entry.
fn is_of(entry: &Entry, run: RunId) -> bool {
    matches!(&entry.state, State::Vetting(id) | State::Running { run: id, .. } if *id == run)
}
