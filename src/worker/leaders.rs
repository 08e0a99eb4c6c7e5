//! Which broker leads which partition of `tasks`, and which partitions are assigned to this worker: one table for all
//! intakes.
//!
//! A worker takes tasks from every partition, its own ones first. A killed worker keeps its partitions for the 45 s
//! until the group notices, and tasks would wait in the partitions of a worker with a long task. Leaders serve every
//! member, as a test on both brokers shows.
//!
//! Metadata of two brokers can differ for a moment; the larger leader epoch is the later one. The thread `leaders`
//! looks up and writes; intakes read, and request look-ups.

use super::bells::Rings;
use super::drain::{Control, Phase};
use super::in_flight::{InFlight, TaskNames};
use super::membership::Assignment;
use crate::outage::Outage;
use crossbeam_channel::{Receiver, Sender, bounded, select};
use kafka_share::cluster::{Cluster, Topic};
use kafka_share::error::{ErrorCode, KafkaError};
use kafka_share::share_wire::SharePartition;
use parking_lot::Mutex;
use program::backoff::Backoff;
use program::logging::escape;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Interval between look-ups that were not requested.
const INTERVAL: Duration = Duration::from_secs(5);
/// First and longest pause while a look-up fails or a partition has no leader.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// How long to ask the other brokers while a node owes an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Shortest pause between two look-ups.
const LEAST_PAUSE: Duration = Duration::from_millis(10);

/// A partition's leader, as far as this worker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leader {
    /// Its node id; `None` while the partition has none.
    pub(super) node: Option<i32>,
    epoch: i32,
    /// When this worker learned of it. Requests sent before say nothing about what the leader holds now (rule 10).
    pub(super) since: Instant,
    /// The partition had another leader or epoch before, so all members lost its locks at once.
    pub(super) changed: bool,
    /// The group assigns the partition to this worker.
    pub(super) is_own: bool,
}

#[derive(Debug, Default)]
struct Table {
    assigned: BTreeSet<SharePartition>,
    /// All partitions of the topic.
    partitions: BTreeSet<SharePartition>,
    leaders: BTreeMap<SharePartition, Leader>,
    /// Nodes that owe an answer: the worker asks another node for the leaders.
    silent: BTreeSet<i32>,
}

#[derive(Debug)]
pub(super) struct Leaders {
    table: Mutex<Table>,
    /// Capacity one. Full: a look-up is requested already.
    ask: Sender<()>,
    asked: Receiver<()>,
}

impl Table {
    /// The partitions to take tasks from, with their leaders: all, once the group has assigned any to this worker.
    fn wanted(&self) -> impl Iterator<Item = (SharePartition, Option<Leader>)> + '_ {
        let others = self.partitions.difference(&self.assigned).filter(|_| !self.assigned.is_empty());
        self.assigned.iter().chain(others).map(|partition| {
            let is_own = self.assigned.contains(partition);
            (*partition, self.leaders.get(partition).map(|leader| Leader { is_own, ..*leader }))
        })
    }
}

impl Leaders {
    pub(super) fn new() -> Self {
        let (ask, asked) = bounded(1);
        Self { table: Mutex::default(), ask, asked }
    }

    /// Requests a look-up of the leaders.
    pub(super) fn look_up(&self) {
        // Full: a look-up is requested already.
        let _ = self.ask.try_send(());
    }

    /// Receives a message for each requested look-up.
    pub(super) fn asked(&self) -> &Receiver<()> {
        &self.asked
    }

    /// Notes whether this node owes an answer.
    pub(super) fn set_silent(&self, node: i32, silent: bool) {
        let mut table = self.table.lock();
        if silent {
            table.silent.insert(node);
        } else {
            table.silent.remove(&node);
        }
    }

    /// A node that owes an answer.
    pub(super) fn silent(&self) -> Option<i32> {
        self.table.lock().silent.first().copied()
    }

    /// The partitions that `node` leads.
    pub(super) fn of_node(&self, node: i32) -> BTreeMap<SharePartition, Leader> {
        let table = self.table.lock();
        let led = table.wanted().filter_map(|(partition, leader)| Some((partition, leader?)));
        led.filter(|(_, leader)| leader.node == Some(node)).collect()
    }

    /// The partition's leader.
    pub(super) fn of(&self, partition: SharePartition) -> Option<Leader> {
        self.table.lock().leaders.get(&partition).copied()
    }

    /// Nodes that lead a partition.
    pub(super) fn nodes(&self) -> BTreeSet<i32> {
        self.table.lock().wanted().filter_map(|(_, leader)| leader?.node).collect()
    }

    /// Nodes that lead a partition for which `which` is true.
    pub(super) fn nodes_of(&self, which: impl Fn(SharePartition) -> bool) -> BTreeSet<i32> {
        let led: Vec<(SharePartition, i32)> = {
            let table = self.table.lock();
            table.wanted().filter_map(|(partition, leader)| Some((partition, leader?.node?))).collect()
        };
        led.into_iter().filter(|(partition, _)| which(*partition)).map(|(_, node)| node).collect()
    }

    /// True while a partition has no known leader.
    pub(super) fn is_incomplete(&self) -> bool {
        self.table.lock().wanted().any(|(_, leader)| leader.is_none_or(|leader| leader.node.is_none()))
    }

    /// Stores the assignment. Returns true if an assigned partition has no known leader.
    pub(super) fn assign(&self, assigned: BTreeSet<SharePartition>) -> bool {
        let mut table = self.table.lock();
        let unknown = assigned.iter().any(|partition| !table.leaders.contains_key(partition));
        table.assigned = assigned;
        unknown
    }

    /// Stores a broker's answer, without older epochs. Returns the partitions with a new leader or epoch, and the
    /// leader.
    pub(super) fn learn(&self, topic: &Topic, now: Instant) -> Vec<(SharePartition, i32)> {
        let mut table = self.table.lock();
        let mut changed = Vec::new();
        let key = |index| SharePartition { topic_id: topic.id, partition: index };
        table.partitions = topic.partitions.iter().map(|partition| key(partition.index)).collect();
        for partition in &topic.partitions {
            let key = key(partition.index);
            let node = (partition.leader >= 0).then_some(partition.leader);
            let known = table.leaders.get(&key).copied();
            let news = known.is_none_or(|known| {
                partition.leader_epoch > known.epoch || (partition.leader_epoch == known.epoch && node != known.node)
            });
            if !news {
                continue;
            }
            let epoch = partition.leader_epoch;
            let leader = Leader { node, epoch, since: now, changed: known.is_some(), is_own: false };
            table.leaders.insert(key, leader);
            if let (Some(_), Some(node)) = (known, node) {
                changed.push((key, node));
            }
        }
        changed
    }
}

/// Looks up the leaders and applies changes to the account. Returns the tasks in work that lost their locks.
///
/// # Errors
/// No broker answers, or the topic does not exist.
pub(super) fn look(
    cluster: &Cluster,
    topic: &str,
    leaders: &Leaders,
    in_flight: &InFlight,
) -> Result<TaskNames, KafkaError> {
    match leaders.silent() {
        Some(node) => match cluster.refresh_from_another(node, &[topic], PATIENCE) {
            // There is no other broker.
            Err(error) if error.code() == Some(ErrorCode::LEADER_NOT_AVAILABLE) => return Ok(TaskNames::new()),
            asked => asked?,
        },
        None => cluster.refresh(&[topic])?,
    }
    let changed = leaders.learn(&cluster.topic(topic)?, Instant::now());
    // Another thread may have stored a later change meanwhile.
    let changed =
        changed.into_iter().filter(|(partition, node)| leaders.of(*partition).is_some_and(|it| it.node == Some(*node)));
    Ok(changed.flat_map(|(partition, leader)| in_flight.leader_changed(partition, leader)).collect())
}

/// The reason of a lost lock when a leader changes.
pub(super) const MOVED: &str = "another broker leads its partition";

/// Logs the tasks in work that lost their locks.
pub(super) fn say_lost(worker_id: &str, lost: &TaskNames, why: &str) {
    for task in lost {
        log::warn!(
            "Worker {} lost the lock of task {task} ({why}); its result counts, and another worker may run it again",
            escape(worker_id)
        );
    }
}

/// The thread `leaders`.
pub(super) struct LeadersThread {
    pub(super) cluster: Cluster,
    pub(super) worker_id: Arc<str>,
    /// The tasks topic.
    pub(super) topic: Arc<str>,
    pub(super) leaders: Arc<Leaders>,
    pub(super) assignment: Arc<Assignment>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) control: Arc<Control>,
}

impl LeadersThread {
    /// Looks up leaders on request and every [`INTERVAL`], until the worker has stopped.
    ///
    /// # Errors
    /// None: failed look-ups are retried. The thread ends early only when its connections are interrupted.
    pub(super) fn run(self) -> Result<(), KafkaError> {
        let doorbell = self.control.doorbell(Rings::Changes);
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        let mut outage = Outage::new(format!("topic {}", self.topic), &self.control.refusals);
        let mut next_look = Instant::now();
        let mut earliest = next_look;
        let mut assigned = BTreeSet::new();
        while self.control.phase() < Phase::Stopped {
            let wanted = self.assignment.partitions();
            if wanted != assigned {
                if self.leaders.assign(wanted.clone()) {
                    next_look = Instant::now();
                }
                assigned = wanted;
                self.control.announce();
            }
            if Instant::now() >= next_look {
                let well = match look(&self.cluster, &self.topic, &self.leaders, &self.in_flight) {
                    Ok(lost) => {
                        outage.over();
                        say_lost(&self.worker_id, &lost, MOVED);
                        self.answered();
                        self.control.announce();
                        !self.leaders.is_incomplete()
                    }
                    Err(KafkaError::Interrupted) => return Ok(()),
                    Err(error) => {
                        if error.code().is_some() {
                            self.answered();
                        }
                        outage.report(&error);
                        false
                    }
                };
                if well {
                    backoff.reset();
                }
                earliest = Instant::now() + LEAST_PAUSE;
                next_look = Instant::now() + if well { INTERVAL } else { backoff.pause() };
            }
            select! {
                recv(self.leaders.asked()) -> _ => next_look = next_look.min(earliest),
                recv(doorbell) -> _ => {}
                default(next_look.saturating_duration_since(Instant::now())) => {}
            }
        }
        Ok(())
    }

    /// Counts a look-up as an answer while no leader is known: then no intake can receive one.
    fn answered(&self) {
        if self.leaders.nodes().is_empty() {
            self.control.heard();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_share::cluster::Partition;
    use uuid::Uuid;

    const P0: SharePartition = SharePartition { topic_id: Uuid::nil(), partition: 0 };
    const P1: SharePartition = SharePartition { topic_id: Uuid::nil(), partition: 1 };

    fn told(partitions: &[(i32, i32, i32)]) -> Topic {
        let partitions =
            partitions.iter().map(|&(index, leader, leader_epoch)| Partition { index, leader, leader_epoch }).collect();
        Topic { name: "tasks".into(), id: Uuid::nil(), is_internal: false, partitions }
    }

    #[test]
    fn answer_with_an_older_epoch_changes_nothing() {
        let (leaders, now) = (Leaders::new(), Instant::now());
        leaders.assign(BTreeSet::from([P0, P1]));
        assert_eq!(leaders.learn(&told(&[(0, 1, 5), (1, 2, 3)]), now), [], "known for the first time");
        assert_eq!(leaders.learn(&told(&[(0, 2, 6), (1, 2, 4)]), now), [(P0, 2), (P1, 2)]);
        assert_eq!(leaders.learn(&told(&[(0, 1, 5), (1, 3, 3)]), now), []);
        assert_eq!(leaders.nodes(), BTreeSet::from([2]));
        assert!(leaders.of_node(2).values().all(|leader| leader.changed));
    }

    #[test]
    fn partition_without_a_leader_belongs_to_no_node() {
        let (leaders, now) = (Leaders::new(), Instant::now());
        assert!(leaders.assign(BTreeSet::from([P0, P1])) && leaders.is_incomplete());
        leaders.learn(&told(&[(0, -1, 5), (1, 2, 3)]), now);
        assert!(leaders.is_incomplete());
        assert_eq!(leaders.of_node(2).keys().collect::<Vec<_>>(), [&P1]);
        assert_eq!(
            leaders.learn(&told(&[(0, 1, 6), (1, 2, 3)]), now),
            [(P0, 1)],
            "it had a leader with locks before it had none"
        );
        assert!(!leaders.is_incomplete());
    }

    #[test]
    fn member_with_an_assignment_takes_from_every_partition() {
        let (leaders, now) = (Leaders::new(), Instant::now());
        leaders.learn(&told(&[(0, 1, 5), (1, 2, 3)]), now);
        assert!(leaders.nodes().is_empty(), "the worker is not in the group yet");
        leaders.assign(BTreeSet::from([P1]));
        assert_eq!(leaders.nodes(), BTreeSet::from([1, 2]));
        let own = |node| leaders.of_node(node).into_iter().map(|(key, it)| (key, it.is_own)).collect::<Vec<_>>();
        assert_eq!((own(1), own(2)), (vec![(P0, false)], vec![(P1, true)]));
    }
}
