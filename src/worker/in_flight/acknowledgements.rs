//! Acknowledgements and renewals: which are due at a broker, and how the broker's answers change the account.

use super::entry::{Entry, Lock, State};
use super::{ChannelId, InFlight, RENEW_AFTER, RENEW_ALONG, RecordKey, Table, TaskNames, Verdict};
use kafka_share::share_wire::{Acknowledgement, Acknowledgements, SharePartition};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

impl InFlight {
    /// Takes out the acknowledgements that are due at `node`, to be sent on `channel`.
    pub(in crate::worker) fn take_due(&self, node: i32, channel: ChannelId) -> Acknowledgements {
        let mut table = self.table.lock();
        let mut taken = Acknowledgements::new();
        if table.due.is_empty() {
            return taken;
        }
        let Table { due, entries, .. } = &mut *table;
        due.retain(|key, acknowledgement| {
            let Some(entry) = entries.get_mut(key).filter(|entry| entry.node() == Some(node)) else { return true };
            entry.asked = Some(channel);
            taken.entry(key.partition).or_default().insert(key.offset, *acknowledgement);
            false
        });
        taken
    }

    /// Keeps of a group that is sent a second time only the acknowledgements that still apply.
    pub(in crate::worker) fn confirm(
        &self,
        (node, channel): (i32, ChannelId),
        mut group: Acknowledgements,
    ) -> Acknowledgements {
        let table = self.table.lock();
        for (&partition, offsets) in &mut group {
            offsets.retain(|&offset, said| {
                table.entries.get(&RecordKey { partition, offset }).is_some_and(|entry| match said {
                    Acknowledgement::Renew => entry.node() == Some(node),
                    _ => entry.asked == Some(channel) && entry.owed() == Some(*said),
                })
            });
        }
        group.retain(|_, offsets| !offsets.is_empty());
        group
    }

    /// Returns an id for a new connection.
    pub(in crate::worker) fn new_channel(&self) -> ChannelId {
        let mut table = self.table.lock();
        table.next_channel += 1;
        ChannelId(table.next_channel)
    }

    /// The renewals that are due at `node`, for records in work. With `settled` also for records that wait until they
    /// can be acknowledged.
    pub(in crate::worker) fn renewals(&self, node: i32, settled: bool, now: Instant) -> Acknowledgements {
        let table = self.table.lock();
        let held = |entry: &Entry| match entry.lock {
            Lock::Held { node: holder, since, doubt } if holder == node => {
                let renewable = settled || !matches!(entry.state, State::Done | State::Returned);
                // In transition: an acknowledgement is unanswered (rule 14), and has to end first if it is out
                // elsewhere.
                let moot = entry.asked.is_some() && !doubt;
                (renewable && !moot).then(|| (now.saturating_duration_since(since), doubt))
            }
            _ => None,
        };
        let is_due = |(age, doubt)| doubt || age >= table.lock / RENEW_AFTER;
        let mut renewals = Acknowledgements::new();
        if !table.entries.values().filter_map(held).any(is_due) {
            return renewals;
        }
        for (key, entry) in &table.entries {
            if held(entry).is_some_and(|(age, doubt)| doubt || age >= table.lock / RENEW_ALONG) {
                renewals.entry(key.partition).or_default().insert(key.offset, Acknowledgement::Renew);
            }
        }
        renewals
    }

    /// Applies the broker's answer to acknowledgements that were sent to `node` on `channel`. Returns the tasks in work
    /// whose lock is lost.
    pub(in crate::worker) fn settled(
        &self,
        (node, channel): (i32, ChannelId),
        partition: SharePartition,
        offsets: &[(i64, Acknowledgement)],
        verdict: Verdict,
        (sent_at, now): (Instant, Instant),
    ) -> TaskNames {
        let mut table = self.table.lock();
        let mut lost = TaskNames::new();
        for &(offset, acknowledgement) in offsets {
            let key = RecordKey { partition, offset };
            let Some(entry) = table.entries.get(&key) else { continue };
            if entry.node() != Some(node) || entry.delivered_at > sent_at {
                continue;
            }
            let here = entry.asked == Some(channel);
            match acknowledgement {
                Acknowledgement::Accept | Acknowledgement::Release if here => match verdict {
                    Verdict::Applied => {
                        table.remove(key);
                        table.unaccepted.forget(&key);
                    }
                    Verdict::Again => drop(table.change(key, |entry| entry.asked = None)),
                    Verdict::Lost => lost.extend(table.lose(key)),
                },
                Acknowledgement::Renew => {
                    let elsewhere = entry.asked.is_some() && !here;
                    let was_elsewhere = entry.asked_until.is_some_and(|until| until > sent_at);
                    match verdict {
                        Verdict::Applied => drop(table.change(key, |entry| {
                            let since = match entry.lock {
                                Lock::Held { since, .. } => since.max(sent_at),
                                Lock::Gone { .. } => sent_at,
                            };
                            entry.lock = Lock::Held { node, since, doubt: false };
                            // Still locked, so an acknowledgement unanswered elsewhere did not arrive: send it again
                            // (rule 13).
                            if entry.asked.is_some_and(|asked| asked.is_before(channel)) {
                                (entry.asked, entry.asked_until) = (None, Some(now));
                            }
                        })),
                        Verdict::Again => {}
                        // In transition: this proves nothing (rule 14). Renewed again when nothing is out elsewhere.
                        Verdict::Lost if elsewhere || was_elsewhere => drop(table.change(key, |entry| {
                            if let Lock::Held { doubt, .. } = &mut entry.lock {
                                *doubt = !elsewhere;
                            }
                        })),
                        Verdict::Lost => lost.extend(table.lose(key)),
                    }
                }
                _ => {}
            }
        }
        lost
    }

    /// Makes the acknowledgements due again that are unanswered on `channel`: they may not have been applied.
    pub(in crate::worker) fn unanswered(&self, channel: ChannelId, now: Instant) {
        let mut table = self.table.lock();
        for key in table.keys(|_, entry| entry.asked == Some(channel)) {
            table.change(key, |entry| (entry.asked, entry.asked_until) = (None, Some(now)));
        }
    }

    /// Puts the locks at `node` in doubt: records in work are renewed at once, unstarted records are released (rules 10
    /// and 17).
    pub(in crate::worker) fn doubt(&self, node: i32) {
        self.doubt_those(|_, entry| entry.node() == Some(node));
    }

    pub(super) fn doubt_those(&self, which: impl Fn(&RecordKey, &Entry) -> bool) {
        let mut table = self.table.lock();
        for key in table.keys(which) {
            table.change(key, |entry| {
                if let Lock::Held { doubt, .. } = &mut entry.lock {
                    *doubt = true;
                }
            });
            table.give_back_unstarted(key);
        }
    }

    /// Whether an acknowledgement is unanswered on `channel`.
    pub(in crate::worker) fn asks_on(&self, channel: ChannelId) -> bool {
        self.table.lock().entries.values().any(|entry| entry.asked == Some(channel))
    }

    /// Whether anything is locked through a session with `node`.
    pub(in crate::worker) fn holds_at(&self, node: i32) -> bool {
        self.table.lock().entries.values().any(|entry| entry.node() == Some(node))
    }

    /// The partitions outside `session` with a record that is locked at `node`.
    pub(in crate::worker) fn held_outside(
        &self,
        session: &BTreeSet<SharePartition>,
        node: i32,
    ) -> BTreeSet<SharePartition> {
        let table = self.table.lock();
        let held = table.entries.iter().filter(|(_, entry)| entry.node() == Some(node));
        held.map(|(key, _)| key.partition).filter(|partition| !session.contains(partition)).collect()
    }

    /// Whether the result of a record that is locked through a session with `node` is on its way.
    pub(in crate::worker) fn publishes_at(&self, node: i32) -> bool {
        let table = self.table.lock();
        table.entries.values().any(|it| matches!(it.state, State::Publishing(_)) && it.node() == Some(node))
    }

    /// When the next renewal at `node` is due, or a rest ends.
    pub(in crate::worker) fn next_timer(&self, node: i32) -> Option<Instant> {
        let table = self.table.lock();
        let timers = table.entries.values().filter_map(|entry| match (&entry.state, entry.lock) {
            (State::Done | State::Returned, _) => None,
            (State::Resting(until), _) => Some(*until),
            (_, Lock::Held { node: holder, since, .. }) if holder == node => Some(since + table.lock / RENEW_AFTER),
            _ => None,
        });
        timers.min()
    }

    /// Sets the length of a lock, as a broker has just reported it.
    pub(in crate::worker) fn set_lock_length(&self, lock: Duration) {
        self.table.lock().lock = lock;
    }

    /// The length of a lock.
    pub(in crate::worker) fn lock_length(&self) -> Duration {
        self.table.lock().lock
    }
}
