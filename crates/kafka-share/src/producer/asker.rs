//! Asks the cluster what the producer has to know: its producer id, and who leads its topics.
//!
//! On a thread of its own, since a broker may take seconds to answer and nothing else shall wait for that. One question
//! at a time. Called by the [`actor`](super::actor), which gets the answer as a report.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};

use super::doubts;
use super::leader::Links;
use super::report::{Asked, Report};
use crate::cluster::{Cluster, Topic};
use crate::error::Retry;
use program::threads::{self, NAME_LIMIT, Thread};

/// What the cluster is to be asked.
#[derive(Debug)]
pub(super) struct Question {
    /// For a producer id.
    pub(super) identity: bool,
    /// For the leaders of these topics. Without any, for the brokers alone.
    pub(super) topics: Vec<Arc<str>>,
}

/// Handle on the thread. The field order closes the channel before the join.
pub(super) struct Asker {
    questions: Sender<Question>,
    busy: bool,
    thread: Thread,
}

impl Asker {
    pub(super) fn start(links: &Links) -> Self {
        let (questions, to_ask) = bounded::<Question>(1);
        let Links { cluster, reports, on_death, .. } = links.clone();
        let name: String = links.name.chars().filter(char::is_ascii).take(NAME_LIMIT - "-ask".len()).collect();
        let thread = threads::spawn(&(name + "-ask"), on_death, move || {
            while let Ok(question) = to_ask.recv() {
                // The actor has ended: the answer is of no use.
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

    /// Asks; only while it is not busy.
    pub(super) fn ask(&mut self, question: Question) {
        self.busy = true;
        // Capacity one and one question at a time: never full. A thread that has died has triggered the producer's end.
        let _ = self.questions.try_send(question);
    }

    /// The answer has come.
    pub(super) fn reported(&mut self) {
        self.busy = false;
    }

    /// Lets the thread end, and joins it. Gives it back when it has not ended by `deadline`.
    pub(super) fn end(self, deadline: Instant) -> std::result::Result<(), Thread> {
        drop(self.questions);
        // It logged whatever ended it.
        self.thread.join_deadline(deadline).map(drop)
    }
}

/// Blocks until the cluster has answered, or the time-outs of the client are over.
fn ask(cluster: &Cluster, question: Question) -> Asked {
    let mut asked = Asked { identity: None, topics: Vec::new(), missed: Vec::new(), node: None, failed: None };
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
            // It says nothing about the topic.
            Err(error) if error.retry() == Retry::Reconnect || error.is_interrupted() => {
                asked.failed = Some(error);
                asked.missed.push(name);
            }
            Err(error) => asked.topics.push((name, Err(error))),
        }
    }
    asked.node = cluster.any_node();
    asked
}

/// By the partition's index; -1 where a partition has no leader.
fn leaders(topic: &Topic) -> Vec<i32> {
    let mut leaders = vec![-1; topic.partitions.len()];
    for partition in &topic.partitions {
        if let Some(leader) = usize::try_from(partition.index).ok().and_then(|index| leaders.get_mut(index)) {
            *leader = partition.leader;
        }
    }
    leaders
}
