//! The partitions of one leader: which may be fetched from now, and in which the locks of running tasks are sought.
//!
//! After a change of leader or a restart of the broker, all locked records are delivered again to the member that
//! fetches first. A member with work fetches at once, as many records as it misses, and releases others' records (a
//! search); members without work pause. Records that were released a few times are taken like any other.
//!
//! A partition that is assigned to another member is visited now and then with short fetches, and adopted while it
//! brings records: its member is dead or busy. It joins each fetch from another partition of the same leader, so that
//! no visit takes a partition with held records out of the session (rule 20).
//!
//! Pure: times and facts in, decisions out. Called by the intake.

use crate::outage::{Outage, Refusals};
use crate::worker::leaders::Leader;
use kafka_share::error::KafkaError;
use kafka_share::share_wire::SharePartition;
use program::backoff::Backoff;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a member without work pauses after a change. Measured with eight such members: the member with work got its
/// record back in 9 of 10 moves, without a pause in 5.
const IDLE_PAUSE: Duration = Duration::from_millis(300);
/// How long a search continues after the leader's first answer with records: then the other members start to fetch.
const SEARCH: Duration = IDLE_PAUSE;
/// A search ends this long after the first answer without an error, with or without records.
const LONGEST_SEARCH: Duration = Duration::from_secs(3);
/// First and longest pause between two rounds of a search.
const SEARCH_PAUSES: (Duration, Duration) = (Duration::from_millis(30), Duration::from_millis(120));
/// A partition is refused briefly after each move of its leader; only longer refusals are logged.
const USUAL: Duration = Duration::from_secs(2);
/// How often to look up the leader of a partition that is refused for longer.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// From this delivery on, a search keeps records of other members instead of releasing them.
const FOUND_OFTEN: u16 = 4;
/// First and longest pause between two visits. A killed worker's task starts elsewhere within half a second on any
/// partition, so a pause must be shorter than that.
const VISIT_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(250));
/// How long a partition of another member is fetched from like an own partition after it brought a record.
const ADOPTED: Duration = Duration::from_secs(1);
/// First and longest pause after a refusal during a search: the new leader may be ready at any moment.
const REFUSED_PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));

#[derive(Debug)]
struct Arrival {
    /// [`Leader::since`] when the partition was entered.
    since: Instant,
    /// Assigned to this worker.
    is_own: bool,
    /// No visit before this, if the partition is another member's.
    visit_at: Instant,
    visits: Backoff,
    /// Until then it is fetched from like an own partition.
    adopted_until: Instant,
    /// No ordinary fetch before this.
    not_before: Instant,
    search: Option<Search>,
    refused: Backoff,
    refused_since: Option<Instant>,
    looked_up_at: Option<Instant>,
    outage: Outage,
}

#[derive(Debug)]
struct Search {
    /// The first answer without an error.
    answered_at: Option<Instant>,
    /// The first answer with a record.
    useful_at: Option<Instant>,
    next_round: Instant,
    pauses: Backoff,
}

/// The partitions to fetch from now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Partitions in which locks are sought.
    pub(super) search: BTreeSet<SharePartition>,
    /// The number of locks that are missed there.
    pub(super) missing: usize,
    /// Partitions for ordinary fetches.
    pub(super) fetch: BTreeSet<SharePartition>,
    /// All partitions of `fetch` are other members'.
    pub(super) is_visit: bool,
    /// When the plan changes without an event.
    pub(super) next: Option<Instant>,
    /// Partitions whose search has ended.
    pub(super) given_up: Vec<SharePartition>,
}

impl Plan {
    fn wake_at(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}

#[derive(Debug)]
pub(super) struct Arrivals {
    /// The tasks topic.
    topic: Arc<str>,
    refusals: Refusals,
    partitions: BTreeMap<SharePartition, Arrival>,
}

impl Arrivals {
    pub(super) fn new(topic: Arc<str>, refusals: Refusals) -> Self {
        Self { topic, refusals, partitions: BTreeMap::new() }
    }

    /// Stores which partitions the node leads.
    pub(super) fn follow(&mut self, led: &BTreeMap<SharePartition, Leader>, now: Instant) {
        self.partitions.retain(|partition, _| led.contains_key(partition));
        for (partition, leader) in led {
            let not_before = if leader.changed { leader.since + IDLE_PAUSE } else { now };
            let arrival = self.partitions.entry(*partition).or_insert_with(|| Arrival {
                since: leader.since,
                is_own: leader.is_own,
                visit_at: now,
                visits: Backoff::new(VISIT_PAUSES.0, VISIT_PAUSES.1),
                adopted_until: now,
                not_before,
                search: None,
                refused: Backoff::new(REFUSED_PAUSES.0, REFUSED_PAUSES.1),
                refused_since: None,
                looked_up_at: None,
                outage: Outage::new(
                    format!("partition {} of topic {}", partition.partition, self.topic),
                    &self.refusals,
                ),
            });
            arrival.is_own = leader.is_own;
            if arrival.since != leader.since {
                (arrival.since, arrival.not_before, arrival.search) = (leader.since, not_before, None);
            }
        }
    }

    /// Pauses all partitions: the broker may have released every lock, because its connection ended or it restarted.
    pub(super) fn hold_still(&mut self, now: Instant) {
        for arrival in self.partitions.values_mut() {
            arrival.not_before = now + IDLE_PAUSE;
        }
    }

    /// Notes that the broker refused the partition. Returns true if its leader should be looked up.
    pub(super) fn refused(&mut self, partition: SharePartition, error: &KafkaError, now: Instant) -> bool {
        let Some(arrival) = self.partitions.get_mut(&partition) else { return true };
        let since = *arrival.refused_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= USUAL {
            arrival.outage.report(error);
        }
        arrival.not_before = now + IDLE_PAUSE;
        if let Some(search) = &mut arrival.search {
            search.next_round = now + arrival.refused.pause();
        }
        let lasts = now.saturating_duration_since(since) >= USUAL;
        let looked = arrival.looked_up_at.is_some_and(|at| now.saturating_duration_since(at) < LOOK_INTERVAL);
        if lasts && looked {
            return false;
        }
        arrival.looked_up_at = Some(now);
        true
    }

    /// Notes a fetch without an error; `brought`: it had records. A leader that still reads its share state answers
    /// without records and without an error.
    pub(super) fn fetched(&mut self, partition: SharePartition, brought: bool, now: Instant) {
        let Some(arrival) = self.partitions.get_mut(&partition) else { return };
        arrival.refused_since = None;
        arrival.outage.over();
        arrival.refused.reset();
        if brought {
            arrival.visits.reset();
            arrival.adopted_until = now + ADOPTED;
        }
        arrival.visit_at = now + arrival.visits.pause();
        if let Some(search) = &mut arrival.search {
            search.answered_at.get_or_insert(now);
            if brought {
                search.useful_at.get_or_insert(now);
            }
            search.next_round = now + search.pauses.pause();
        }
    }

    /// Whether to release an unknown record during a search here, because other members may search for it.
    pub(super) fn goes_back(&self, partition: &SharePartition, delivery_count: u16) -> bool {
        let searching = self.partitions.get(partition).is_some_and(|arrival| arrival.search.is_some());
        searching && delivery_count < FOUND_OFTEN
    }

    /// The fetches to send now, given how many locks are missed in each partition.
    pub(super) fn plan(&mut self, missed: impl Fn(SharePartition) -> usize, now: Instant) -> Plan {
        let mut plan = Plan::default();
        let mut visits = Vec::new();
        for (&partition, arrival) in &mut self.partitions {
            let missing = missed(partition);
            if missing == 0 {
                arrival.search = None;
            } else {
                let search = arrival.search.get_or_insert_with(|| Search {
                    answered_at: None,
                    useful_at: None,
                    next_round: now,
                    pauses: Backoff::new(SEARCH_PAUSES.0, SEARCH_PAUSES.1),
                });
                let past = |since: Option<Instant>, limit| {
                    since.is_some_and(|since| now.saturating_duration_since(since) >= limit)
                };
                if past(search.useful_at, SEARCH) || past(search.answered_at, LONGEST_SEARCH) {
                    arrival.search = None;
                    plan.given_up.push(partition);
                }
            }
            let (set, at) = match &arrival.search {
                Some(search) => (&mut plan.search, search.next_round),
                None if arrival.is_own || arrival.adopted_until > now => (&mut plan.fetch, arrival.not_before),
                None => {
                    visits.push((partition, arrival.not_before, arrival.visit_at));
                    continue;
                }
            };
            if at <= now {
                set.insert(partition);
                plan.missing += if arrival.search.is_some() { missing } else { 0 };
            } else {
                plan.wake_at(at);
            }
        }
        plan.is_visit = plan.fetch.is_empty();
        let one_is_due = visits.iter().any(|(_, not_before, visit_at)| *not_before.max(visit_at) <= now);
        for (partition, not_before, visit_at) in visits {
            let at = if plan.is_visit && !one_is_due { not_before.max(visit_at) } else { not_before };
            if at <= now {
                plan.fetch.insert(partition);
            } else {
                plan.wake_at(at);
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::leaders::Leaders;
    use kafka_share::cluster::{Partition, Topic};
    use kafka_share::error::ErrorCode;
    use uuid::Uuid;

    const P0: SharePartition = SharePartition { topic_id: Uuid::nil(), partition: 0 };
    const P1: SharePartition = SharePartition { topic_id: Uuid::nil(), partition: 1 };

    /// Both partitions at node 1, the second of them since its election at `now`.
    fn arrived(now: Instant) -> Arrivals {
        let leaders = Leaders::new();
        leaders.assign(BTreeSet::from([P0, P1]));
        let topic = |of_second| Topic {
            name: "tasks".into(),
            id: Uuid::nil(),
            is_internal: false,
            partitions: [(0, 1, 1), of_second]
                .map(|(index, leader, leader_epoch)| Partition { index, leader, leader_epoch })
                .to_vec(),
        };
        leaders.learn(&topic((1, 2, 1)), now);
        leaders.learn(&topic((1, 1, 2)), now);
        let mut arrivals = Arrivals::new("tasks".into(), Refusals::default());
        arrivals.follow(&leaders.of_node(1), now);
        arrivals
    }

    /// The partitions of node 1, all of them other members'; given are the leaders of partitions 0 to 2.
    fn visitor(leaders_of: [i32; 3], now: Instant) -> Arrivals {
        let leaders = Leaders::new();
        let partitions = (0..).zip(leaders_of).map(|(index, leader)| Partition { index, leader, leader_epoch: 1 });
        let partitions = partitions.collect();
        leaders.learn(&Topic { name: "tasks".into(), id: Uuid::nil(), is_internal: false, partitions }, now);
        leaders.assign(BTreeSet::from([SharePartition { topic_id: Uuid::nil(), partition: 2 }]));
        let mut arrivals = Arrivals::new("tasks".into(), Refusals::default());
        arrivals.follow(&leaders.of_node(1), now);
        arrivals
    }

    fn error() -> KafkaError {
        KafkaError::broker("ShareFetch", ErrorCode::NOT_LEADER_OR_FOLLOWER, None)
    }

    #[test]
    fn idle_member_pauses_only_where_the_leader_has_changed() {
        let now = Instant::now();
        let mut arrivals = arrived(now);
        let plan = arrivals.plan(|_| 0, now);
        assert_eq!((plan.fetch, plan.next), (BTreeSet::from([P0]), Some(now + IDLE_PAUSE)));
        assert_eq!(arrivals.plan(|_| 0, now + IDLE_PAUSE).fetch, BTreeSet::from([P0, P1]));
        arrivals.refused(P1, &error(), now + IDLE_PAUSE);
        assert_eq!(arrivals.plan(|_| 0, now + IDLE_PAUSE).fetch, BTreeSet::from([P0]));
        assert_eq!(arrivals.plan(|_| 0, now + 2 * IDLE_PAUSE).fetch, BTreeSet::from([P0, P1]));
    }

    #[test]
    fn member_with_work_fetches_at_once_and_again_soon_after_a_refusal() {
        let now = Instant::now();
        let mut arrivals = arrived(now);
        let missed = |partition| if partition == P1 { 2 } else { 0 };
        let plan = arrivals.plan(missed, now);
        assert_eq!((plan.search, plan.missing, plan.fetch), (BTreeSet::from([P1]), 2, BTreeSet::from([P0])));
        arrivals.refused(P1, &error(), now);
        assert!(arrivals.plan(missed, now).search.is_empty());
        assert_eq!(arrivals.plan(missed, now + REFUSED_PAUSES.0).search, BTreeSet::from([P1]));
        assert!(arrivals.goes_back(&P1, 3) && !arrivals.goes_back(&P1, 4) && !arrivals.goes_back(&P0, 1));
        assert_eq!(arrivals.plan(|_| 0, now).search, BTreeSet::new(), "all locks were found");
        assert!(!arrivals.goes_back(&P1, 1));
    }

    #[test]
    fn partition_of_another_member_is_visited_and_adopted_while_it_brings_records() {
        let now = Instant::now();
        let mut arrivals = visitor([1, 2, 2], now);
        let visited = |arrivals: &mut Arrivals, at| (arrivals.plan(|_| 0, at).fetch.contains(&P0)).then_some(());
        let (mut visits, mut is_visit) = (0, true);
        for millisecond in 0..1_000 {
            let at = now + Duration::from_millis(millisecond);
            is_visit &= arrivals.plan(|_| 0, at).is_visit;
            if visited(&mut arrivals, at).is_some() {
                visits += 1;
                arrivals.fetched(P0, visits == 6, at);
            }
            if visits == 6 {
                break;
            }
        }
        assert!(visits == 6 && is_visit, "{visits} visits in a second");
        let found = now + Duration::from_secs(1);
        arrivals.fetched(P0, true, found);
        let plan = arrivals.plan(|_| 0, found);
        assert!(plan.fetch.contains(&P0) && !plan.is_visit);
        arrivals.fetched(P0, false, found + ADOPTED);
        assert!(arrivals.plan(|_| 0, found + ADOPTED).fetch.is_empty(), "it is visited later");
    }

    /// A visit to one of them would take the other out of the session.
    #[test]
    fn partitions_of_other_members_are_visited_together() {
        let now = Instant::now();
        let mut arrivals = visitor([1, 1, 2], now);
        let mut visits = 0;
        for millisecond in 0..2_000 {
            let at = now + Duration::from_millis(millisecond);
            let plan = arrivals.plan(|_| 0, at);
            if !plan.fetch.is_empty() {
                visits += 1;
                assert!(plan.is_visit);
                assert_eq!(plan.fetch, BTreeSet::from([P0, P1]), "visit {visits}");
            }
            plan.fetch.iter().for_each(|partition| arrivals.fetched(*partition, false, at));
        }
        assert!((8..=20).contains(&visits), "{visits} visits in two seconds");
        // The other member's locks were released, so this one pauses there.
        arrivals.refused(P1, &error(), now + Duration::from_secs(2));
        assert_eq!(arrivals.plan(|_| 0, now + Duration::from_millis(2_250)).fetch, BTreeSet::from([P0]));
    }

    #[test]
    fn search_ends_when_other_members_start_and_has_few_rounds() {
        let now = Instant::now();
        let mut arrivals = arrived(now);
        let missed = |partition| usize::from(partition == P1);
        let (mut rounds, mut given_up) = (0, Vec::new());
        for millisecond in 0..=300 {
            let at = now + Duration::from_millis(millisecond);
            let plan = arrivals.plan(missed, at);
            given_up.extend(plan.given_up.into_iter().map(|partition| (partition, millisecond)));
            if !plan.search.is_empty() {
                rounds += 1;
                arrivals.fetched(P1, true, at);
            }
        }
        assert_eq!(given_up, [(P1, 300)]);
        assert!((4..=6).contains(&rounds), "{rounds} rounds");
    }
}
