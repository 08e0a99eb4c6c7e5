//! Which broker leads which partition of `tasks`, and which partitions are this worker's: one table for all intakes.
//!
//! A worker takes tasks from every partition, its own ones first: a worker that was killed keeps its partitions for the
//! 45 s until the group misses it, and a worker with a long task keeps others waiting. Leaders serve every member, as a
//! test on both brokers shows.
//!
//! Metadata of two brokers can differ for a moment. The answer with the larger leader epoch is the later one, and an
//! older one is ignored. The thread `leaders` looks up and writes; intakes read, and ask for another look.

use super::bells::Rings;
use super::drain::{Control, Phase};
use super::in_flight::{InFlight, TaskIds};
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

/// How often the leaders are looked up without a reason.
const INTERVAL: Duration = Duration::from_secs(5);
/// First and longest pause while a look fails or a partition has no leader.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// How long the others are asked when a node owes an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks, however often they are asked for.
const LEAST_PAUSE: Duration = Duration::from_millis(10);

/// A partition's leader, as far as this worker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leader {
    /// Its node id; `None` while the partition has none.
    pub(super) node: Option<i32>,
    epoch: i32,
    /// When this worker learned of it. What was asked for before says nothing about what the leader holds now (rule 10).
    pub(super) since: Instant,
    /// The partition had another leader, or another epoch, before: its locks were lost by all members at once.
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
    /// Nodes that owe an answer: another one is asked for the leaders.
    silent: BTreeSet<i32>,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Leaders {
    table: Mutex<Table>,
    /// Capacity one: a look that is asked for need not be asked for again, so a full channel loses nothing.
    ask: Sender<()>,
    asked: Receiver<()>,
}

impl Table {
    /// The partitions to take tasks from, with their leaders: all, once the group has taken this worker in.
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

    /// Asks for a look at the cluster.
    pub(super) fn look_up(&self) {
        // Full: it is asked for already.
        let _ = self.ask.try_send(());
    }

    /// Rings when a look is asked for.
    pub(super) fn asked(&self) -> &Receiver<()> {
        &self.asked
    }

    /// This node owes an answer, or has given it.
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

    /// Nodes that lead such a partition.
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

    /// Enters what is assigned. True: there are partitions of which no leader is known.
    pub(super) fn assign(&self, assigned: BTreeSet<SharePartition>) -> bool {
        let mut table = self.table.lock();
        let unknown = assigned.iter().any(|partition| !table.leaders.contains_key(partition));
        table.assigned = assigned;
        unknown
    }

    /// Enters the answer of a broker. Returns partitions with a new leader or a new epoch of the old one, and the leader.
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

/// Asks the cluster for the leaders and applies what has changed to the account. Returns the tasks whose work goes on
/// without a lock.
///
/// # Errors
/// No broker answers, or the topic is not there.
pub(super) fn look(
    cluster: &Cluster,
    topic: &str,
    leaders: &Leaders,
    in_flight: &InFlight,
) -> Result<TaskIds, KafkaError> {
    match leaders.silent() {
        Some(node) => match cluster.refresh_from_another(node, &[topic], PATIENCE) {
            // There is no other broker.
            Err(error) if error.code() == Some(ErrorCode::LEADER_NOT_AVAILABLE) => return Ok(TaskIds::new()),
            asked => asked?,
        },
        None => cluster.refresh(&[topic])?,
    }
    let changed = leaders.learn(&cluster.topic(topic)?, Instant::now());
    // Another thread may have learned of a later change meanwhile.
    let changed =
        changed.into_iter().filter(|(partition, node)| leaders.of(*partition).is_some_and(|it| it.node == Some(*node)));
    Ok(changed.flat_map(|(partition, leader)| in_flight.leader_changed(partition, leader)).collect())
}

/// Why locks are lost when a leader changes.
pub(super) const MOVED: &str = "another broker leads its partition";

/// Says in the log which tasks lost their locks while they are in work.
pub(super) fn say_lost(worker_id: &str, lost: &TaskIds, why: &str) {
    for task in lost {
        log::warn!(
            "Worker {} lost the lock of task {} ({why}); its result counts, and another worker may run it again",
            escape(worker_id),
            escape(task)
        );
    }
}

/// The thread `leaders`.
pub(super) struct LeadersThread {
    pub(super) cluster: Cluster,
    pub(super) worker_id: Arc<str>,
    /// The topic that the tasks are on.
    pub(super) topic: Arc<str>,
    pub(super) leaders: Arc<Leaders>,
    pub(super) assignment: Arc<Assignment>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) control: Arc<Control>,
}

impl LeadersThread {
    /// Looks up leaders whenever that is asked for, and now and then, until the worker has stopped.
    ///
    /// # Errors
    /// None: what fails is tried again. The thread ends early only when its connections are interrupted.
    pub(super) fn run(self) -> Result<(), KafkaError> {
        let doorbell = self.control.doorbell(Rings::Changes);
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        let mut outage = Outage::new(format!("topic {}", self.topic));
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

    /// A broker has told where the leaders are. While there is no leader to ask anything, this is what the worker hears.
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
    fn an_older_answer_changes_nothing() {
        let (leaders, now) = (Leaders::new(), Instant::now());
        leaders.assign(BTreeSet::from([P0, P1]));
        assert_eq!(leaders.learn(&told(&[(0, 1, 5), (1, 2, 3)]), now), [], "known for the first time");
        assert_eq!(leaders.learn(&told(&[(0, 2, 6), (1, 2, 4)]), now), [(P0, 2), (P1, 2)]);
        assert_eq!(leaders.learn(&told(&[(0, 1, 5), (1, 3, 3)]), now), []);
        assert_eq!(leaders.nodes(), BTreeSet::from([2]));
        assert!(leaders.of_node(2).values().all(|leader| leader.changed));
    }

    #[test]
    fn a_partition_without_a_leader_is_nothing_of_any_node() {
        let (leaders, now) = (Leaders::new(), Instant::now());
        assert!(leaders.assign(BTreeSet::from([P0, P1])) && leaders.is_incomplete());
        leaders.learn(&told(&[(0, -1, 5), (1, 2, 3)]), now);
        assert!(leaders.is_incomplete());
        assert_eq!(leaders.of_node(2).keys().collect::<Vec<_>>(), [&P1]);
        assert_eq!(leaders.learn(&told(&[(0, 1, 6), (1, 2, 3)]), now), [(P0, 1)], "it had none, and locks before that");
        assert!(!leaders.is_incomplete());
    }

    #[test]
    fn a_worker_that_is_in_the_group_takes_from_every_partition() {
        let (leaders, now) = (Leaders::new(), Instant::now());
        leaders.learn(&told(&[(0, 1, 5), (1, 2, 3)]), now);
        assert!(leaders.nodes().is_empty(), "it is not in the group yet");
        leaders.assign(BTreeSet::from([P1]));
        assert_eq!(leaders.nodes(), BTreeSet::from([1, 2]));
        let own = |node| leaders.of_node(node).into_iter().map(|(key, it)| (key, it.is_own)).collect::<Vec<_>>();
        assert_eq!((own(1), own(2)), (vec![(P0, false)], vec![(P1, true)]));
    }
}
