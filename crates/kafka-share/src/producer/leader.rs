//! One leader as the producer's thread sees it: the job that is out, its rest, and the thread that does its waiting.
//!
//! A leader has one job out at a time. In a cluster of several brokers its [`Link`] has a thread of its own, so that
//! one that is frozen, unreachable or slow to take bytes holds up nothing but its own partitions. A cluster of one
//! broker has no other leader to hold up: there the link is called in line, which saves two changes of thread per
//! request.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use super::LaneKey;
use super::link::{Job, Link};
use super::report::Report;
use super::trouble::Trouble;
use crate::cluster::Cluster;
use program::stop::Stop;
use program::threads::{self, NAME_LIMIT, Thread};

/// How often the connection of an idle leader is looked at.
const IDLE_CHECK: Duration = Duration::from_secs(1);

/// What every leader's link and thread are made with.
#[derive(Clone)]
pub(super) struct Links {
    /// The producer's name.
    pub(super) name: String,
    pub(super) cluster: Cluster,
    /// Capacity: a report for each leader of a large cluster. Full: a leader's thread waits until it is read.
    pub(super) reports: Sender<Report>,
    pub(super) on_death: Stop,
}

/// Where the link's jobs are done.
enum Worker {
    /// On the actor's thread.
    Caller(Box<Link>),
    /// A thread. The field order closes the channel before the join.
    Thread { jobs: Sender<Job>, thread: Thread },
}

/// See the module documentation.
pub(super) struct Leader {
    node: i32,
    /// `None` only while a job is handed over.
    worker: Option<Worker>,
    busy: bool,
    /// The last job found a connection that stands.
    pub(super) connected: bool,
    pub(super) trouble: Trouble,
    /// The broker reads nothing from us before (KIP-219).
    throttled_until: Option<Instant>,
    looked_at: Option<Instant>,
    /// The lanes whose batches are out.
    pub(super) out: Vec<LaneKey>,
    /// The lane that was the last one in the last request: the next request begins after it.
    pub(super) last: Option<LaneKey>,
    /// The last request of records came after the last look at the log: a doubt is next.
    pub(super) doubts_first: bool,
}

impl Leader {
    pub(super) fn new(node: i32, links: &Links) -> Self {
        Self {
            node,
            worker: Some(Worker::Caller(Box::new(Link::new(node, links.cluster.clone())))),
            busy: false,
            connected: false,
            trouble: Trouble::new(),
            throttled_until: None,
            looked_at: None,
            out: Vec::new(),
            last: None,
            doubts_first: false,
        }
    }

    /// Whether it can be given a job.
    pub(super) fn is_free(&self, now: Instant) -> bool {
        !self.busy && !self.trouble.rests(now) && self.throttled_until.is_none_or(|until| until <= now)
    }

    /// Whether its connection should be looked at, where there is nothing else to do.
    pub(super) fn is_unwatched(&self, now: Instant) -> bool {
        self.looked_at.is_none_or(|at| at + IDLE_CHECK <= now)
    }

    /// When it can or should be given a job that it cannot be given now.
    pub(super) fn wakes_at(&self) -> impl Iterator<Item = Instant> {
        let watch = self.looked_at.map(|at| at + IDLE_CHECK);
        [self.trouble.rests_until(), self.throttled_until, watch].into_iter().flatten().filter(|_| !self.busy)
    }

    /// Gives it a job. With `alone` it is done here and now; otherwise the report comes by the channel.
    pub(super) fn give(&mut self, job: Job, alone: bool, links: &Links, now: Instant) -> Option<Report> {
        self.busy = true;
        self.looked_at = Some(now);
        match self.worker.take() {
            Some(Worker::Caller(mut link)) if alone => {
                let report = link.perform(job);
                self.worker = Some(Worker::Caller(link));
                Some(report)
            }
            Some(Worker::Caller(link)) => {
                let (jobs, thread) = start(self.node, *link, links);
                self.hand_over(jobs, thread, job)
            }
            Some(Worker::Thread { jobs, thread }) => self.hand_over(jobs, thread, job),
            None => None,
        }
    }

    fn hand_over(&mut self, jobs: Sender<Job>, thread: Thread, job: Job) -> Option<Report> {
        // Capacity one and one job at a time: never full. A thread that has died has triggered the producer's end.
        let _ = jobs.try_send(job);
        self.worker = Some(Worker::Thread { jobs, thread });
        None
    }

    /// Its report has come.
    pub(super) fn reported(&mut self) {
        self.busy = false;
    }

    /// The broker reads nothing from its connection for this long. True when this is to be logged: only the first of
    /// several in a row.
    pub(super) fn throttled(&mut self, time: Duration, now: Instant) -> bool {
        if time.is_zero() {
            self.throttled_until = None;
            return false;
        }
        self.throttled_until.replace(now + time).is_none()
    }

    /// Lets its thread end, and joins it. Gives it back when it has not ended by `deadline`.
    pub(super) fn end(self, deadline: Instant) -> Result<(), Thread> {
        let Some(Worker::Thread { jobs, thread }) = self.worker else { return Ok(()) };
        drop(jobs);
        // It logged whatever ended it.
        thread.join_deadline(deadline).map(drop)
    }
}

/// Starts the thread of a link; it ends when the sender of jobs is dropped.
fn start(node: i32, mut link: Link, links: &Links) -> (Sender<Job>, Thread) {
    let (jobs, to_do) = bounded::<Job>(1);
    let reports = links.reports.clone();
    let thread = threads::spawn(&thread_name(&links.name, node), links.on_death.clone(), move || {
        // Fails when the actor has ended, which is no error: the report is of no use then.
        while let Ok(job) = to_do.recv() {
            if reports.send(link.perform(job)).is_err() {
                break;
            }
        }
        Ok::<(), Infallible>(())
    });
    (jobs, thread)
}

/// The producer's name, as much of it as fits, and the node's id.
fn thread_name(producer: &str, node: i32) -> String {
    let node = format!("-{node}");
    let room = NAME_LIMIT.saturating_sub(node.len());
    let name: String =
        producer.char_indices().take_while(|(at, c)| at + c.len_utf8() <= room).map(|(_, c)| c).collect();
    name + &node
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_threads_fit_and_tell_the_node() {
        assert_eq!(thread_name("outbox", 3), "outbox-3");
        assert_eq!(thread_name("test-producer", 1001), "test-produ-1001");
        assert_eq!(thread_name("producer", i32::MAX), "prod-2147483647");
    }
}
