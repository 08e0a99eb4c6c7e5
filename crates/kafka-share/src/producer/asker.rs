//! Asks the cluster for the producer's id, for the leaders of its topics, and for rights that were denied.
//!
//! Runs on a thread of its own, since a broker may take seconds to answer. Takes one question at a time. Called by the
//! [`actor`](super::actor), which gets the result as a report.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};

use super::doubts;
use super::leader::Links;
use super::report::{Asked, Report};
use crate::admin::{self, TopicRight};
use crate::cluster::{Cluster, Topic};
use crate::error::Retry;
use program::threads::{self, Thread};

/// A question to the cluster.
#[derive(Debug)]
pub(super) struct Question {
    /// Whether to ask for a producer id.
    pub(super) identity: bool,
    /// Topics whose leaders are asked for. Empty: only the brokers.
    pub(super) topics: Vec<Arc<str>>,
    /// Topics of which is asked whether they may be written.
    pub(super) denied: Vec<Arc<str>>,
}

/// Handle to the thread. The field order closes the channel before the join.
pub(super) struct Asker {
    questions: Sender<Question>,
    busy: bool,
    thread: Thread,
}

impl Asker {
    pub(super) fn start(links: &Links) -> Self {
        let (questions, to_ask) = bounded::<Question>(1);
        let Links { cluster, reports, on_death, .. } = links.clone();
        let thread = threads::spawn(&threads::fitted(&links.name, "-ask"), on_death, move || {
            while let Ok(question) = to_ask.recv() {
                // The actor has ended and needs no result.
                if reports.send(Report::Asked(ask(&cluster, question))).is_err() {
                    break;
                }
            }
            Ok::<(), Infallible>(())
        });
        Self { questions, busy: false, thread }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Asks the question; call only while [`is_busy`](Self::is_busy) is false.
    pub(super) fn ask(&mut self, question: Question) {
        self.busy = true;
        // Never full: the capacity is one, and so is the number of questions. A thread that died has triggered the
        // producer's end.
        let _ = self.questions.try_send(question);
    }

    /// Marks the question as answered.
    pub(super) fn reported(&mut self) {
        self.busy = false;
    }

    /// Lets the thread end and joins it. Returns the thread if it has not ended by `deadline`.
    pub(super) fn end(self, deadline: Instant) -> std::result::Result<(), Thread> {
        drop(self.questions);
        // The thread has logged its own error.
        self.thread.join_deadline(deadline).map(drop)
    }
}

/// Blocks until the cluster has answered, or until the client's timeouts.
fn ask(cluster: &Cluster, question: Question) -> Asked {
    let mut asked =
        Asked { identity: None, topics: Vec::new(), granted: Vec::new(), missed: Vec::new(), node: None, failed: None };
    if question.identity {
        match doubts::new_identity(cluster) {
            Ok(identity) => asked.identity = Some(identity),
            Err(error) => asked.failed = Some(error),
        }
    }
    if question.topics.is_empty() && asked.failed.is_none() {
        asked.failed = cluster.refresh(&[]).err();
    }
    for name in question.topics {
        if asked.failed.is_some() {
            asked.missed.push(name);
            continue;
        }
        match cluster.refresh(&[&name]).and_then(|()| cluster.topic(&name)) {
            Ok(topic) => asked.topics.push((name, Ok(leaders(&topic)))),
            // The error concerns the connection, not the topic.
            Err(error) if error.retry() == Retry::Reconnect || error.is_interrupted() => {
                asked.failed = Some(error);
                asked.missed.push(name);
            }
            Err(error) => asked.topics.push((name, Err(error))),
        }
    }
    if asked.failed.is_none() {
        let wanted: Vec<_> = question.denied.iter().map(|name| (name.to_string(), TopicRight::Write)).collect();
        match admin::missing_rights(cluster, &wanted) {
            Ok(missing) => {
                let is_granted = |name: &Arc<str>| !missing.iter().any(|(lacks, _)| **lacks == **name);
                asked.granted = question.denied.into_iter().filter(is_granted).collect();
            }
            Err(error) => asked.failed = Some(error),
        }
    }
    asked.node = cluster.any_node();
    asked
}

/// Returns node ids by partition index; -1 for a partition without a leader.
fn leaders(topic: &Topic) -> Vec<i32> {
    let mut leaders = vec![-1; topic.partitions.len()];
    for partition in &topic.partitions {
        if let Some(leader) = usize::try_from(partition.index).ok().and_then(|index| leaders.get_mut(index)) {
            *leader = partition.leader;
        }
    }
    leaders
}
