//! A share group: its members, and which partitions each of them has (KIP-932).
//!
//! Assigns partitions, and does not check that members fetch from them. Pure; [`share_group`](super::share_group) calls it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::share_partition::{PartitionKey, SharePartition};

/// How long Kafka writes the first state of a partition before it is assigned to a member.
const INITIALIZING: Duration = Duration::from_millis(3);

/// A share group.
#[derive(Debug)]
pub(super) struct Group {
    /// Grows with every change of members, subscriptions and partitions.
    pub epoch: i32,
    pub members: BTreeMap<String, Member>,
    /// The group's progress in each partition that a member has fetched.
    pub partitions: BTreeMap<PartitionKey, SharePartition>,
    /// From when on a partition may be assigned.
    pub initialized: BTreeMap<PartitionKey, Instant>,
    /// Time and epoch of the last assignment.
    pub assigned_at: Instant,
    pub assigned_epoch: i32,
}

/// A member of a share group.
#[derive(Debug)]
pub(super) struct Member {
    pub epoch: i32,
    /// The previous epoch: the response with the new one may have been lost.
    pub previous: i32,
    pub client: String,
    pub subscribed: BTreeSet<String>,
    pub assigned: BTreeSet<PartitionKey>,
    /// Whether the member has received its assignment.
    pub told: bool,
    pub heard: Instant,
}

impl Group {
    pub fn new(now: Instant) -> Self {
        Self {
            // The first member gets epoch 2 in Kafka: one step for the member, one for its subscribed topics.
            epoch: 1,
            members: BTreeMap::new(),
            partitions: BTreeMap::new(),
            initialized: BTreeMap::new(),
            assigned_at: now,
            assigned_epoch: 0,
        }
    }

    /// Restarts the members' timeouts, since a new coordinator begins to count.
    pub fn hear_all(&mut self, now: Instant) {
        self.members.values_mut().for_each(|member| member.heard = now);
    }

    /// Whether the partition has a state: a member subscribed to its topic at least [`INITIALIZING`] ago.
    pub fn has_begun(&self, partition: PartitionKey, now: Instant) -> bool {
        self.initialized.get(&partition).is_some_and(|at| *at <= now)
    }

    /// Removes members that have been silent for too long.
    pub fn expire_members(&mut self, timeout: Duration, now: Instant) {
        let before = self.members.len();
        self.members.retain(|_, member| now < member.heard + timeout);
        if self.members.len() < before {
            self.epoch += 1;
        }
    }

    /// Assigns partitions to members, unless that was done just now.
    pub fn assign(&mut self, wanted: &BTreeSet<PartitionKey>, interval: Duration, now: Instant) {
        for key in wanted {
            self.initialized.entry(*key).or_insert(now + INITIALIZING);
        }
        let ready: Vec<PartitionKey> = wanted.iter().filter(|key| self.has_begun(**key, now)).copied().collect();
        let known: BTreeSet<PartitionKey> =
            self.members.values().flat_map(|member| member.assigned.iter().copied()).collect();
        let fresh = !self.members.is_empty() && ready.iter().any(|key| !known.contains(key));
        // Partitions of deleted topics.
        let gone = known.iter().any(|key| !wanted.contains(key));
        let changed = fresh || gone;
        if (!changed && self.assigned_epoch == self.epoch) || now < self.assigned_at + interval {
            return;
        }
        self.epoch += i32::from(changed && self.assigned_epoch == self.epoch);
        let had: Vec<_> = self.members.values().map(|member| &member.assigned).collect();
        let shares = deal(&had, &ready);
        for (member, share) in self.members.values_mut().zip(shares) {
            if member.assigned != share {
                member.assigned = share;
                member.told = false;
            }
        }
        (self.assigned_at, self.assigned_epoch) = (now, self.epoch);
    }
}

/// Assigns partitions like Kafka's `SimpleAssignor`. Each partition gets as many members as it takes for every member
/// to have one. Members keep their partitions as far as possible.
fn deal(had: &[&BTreeSet<PartitionKey>], partitions: &[PartitionKey]) -> Vec<BTreeSet<PartitionKey>> {
    let members = had.len();
    let mut shares = vec![BTreeSet::new(); members];
    if partitions.is_empty() || members == 0 {
        return shares;
    }
    let readers = members.div_ceil(partitions.len());
    let slots = partitions.len() * readers;
    let (fair, mut more) = (slots / members, slots % members);
    let mut places: BTreeMap<PartitionKey, usize> = partitions.iter().map(|key| (*key, readers)).collect();
    for (share, had) in shares.iter_mut().zip(had) {
        for key in *had {
            let Some(free) = places.get_mut(key).filter(|free| **free > 0) else { continue };
            if share.len() > fair || (share.len() == fair && more == 0) {
                break;
            }
            more -= usize::from(share.len() == fair);
            *free -= 1;
            share.insert(*key);
        }
    }
    // The partition with the fewest members goes first, to the member with the fewest partitions.
    for _ in 0..slots {
        let Some((key, _)) = places.iter().filter(|(_, free)| **free > 0).max_by_key(|(_, free)| **free) else { break };
        let key = *key;
        let taker = shares.iter_mut().filter(|share| !share.contains(&key)).min_by_key(|share| share.len());
        taker.map(|share| share.insert(key));
        places.entry(key).and_modify(|free| *free -= 1);
    }
    shares
}

impl Member {
    pub fn new(epoch: i32, client: &str, now: Instant) -> Self {
        Self {
            epoch,
            previous: epoch,
            client: client.to_owned(),
            subscribed: BTreeSet::new(),
            assigned: BTreeSet::new(),
            told: true,
            heard: now,
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn partitions(count: i32) -> Vec<PartitionKey> {
        (0..count).map(|index| (Uuid::nil(), index)).collect()
    }

    fn indexes(shares: &[BTreeSet<PartitionKey>]) -> Vec<Vec<i32>> {
        shares.iter().map(|share| share.iter().map(|key| key.1).collect()).collect()
    }

    fn fresh(members: usize, count: i32) -> Vec<BTreeSet<PartitionKey>> {
        deal(&vec![&BTreeSet::new(); members], &partitions(count))
    }

    #[test]
    fn every_member_has_a_partition_and_every_partition_a_member() {
        assert_eq!(indexes(&fresh(3, 1)), [[0], [0], [0]]);
        assert_eq!(indexes(&fresh(4, 2)).concat().iter().filter(|index| **index == 0).count(), 2);
        assert!(indexes(&fresh(4, 2)).iter().all(|share| share.len() == 1));
        for (members, count) in [(2, 3), (3, 2), (3, 6), (5, 2), (7, 4)] {
            let shares = indexes(&fresh(members, count));
            let readers = members.div_ceil(usize::try_from(count).expect("few"));
            for index in 0..count {
                let found = shares.iter().filter(|share| share.contains(&index)).count();
                assert_eq!(found, readers, "partition {index} of {count}, {members} members: {shares:?}");
            }
            assert!(shares.iter().all(|share| !share.is_empty()), "{members} members, {count} partitions: {shares:?}");
        }
        assert_eq!(indexes(&fresh(1, 0)), [[0; 0]]);
        assert!(fresh(0, 2).is_empty());
    }

    #[test]
    fn members_keep_their_partitions() {
        let before = fresh(4, 2);
        let nothing = BTreeSet::new();
        let had: Vec<_> = before.iter().chain([&nothing]).collect();
        let after = deal(&had, &partitions(2));
        assert!(after.iter().zip(&before).all(|(after, before)| after.is_superset(before)), "{after:?}");
        assert!(!after[4].is_empty());
    }
}
