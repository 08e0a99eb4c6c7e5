//! One leader as the producer's thread sees it: its current job, its rest, and its thread.
//!
//! A leader has at most one job at a time. In a cluster of several brokers its [`Link`] has a thread of its own. A
//! frozen, unreachable or slow broker then delays only its own partitions. With a single broker the producer's thread
//! calls the link itself, which saves two thread switches per request.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use super::LaneKey;
use super::link::{Job, Link};
use super::report::Report;
use super::trouble::Trouble;
use crate::cluster::Cluster;
use program::stop::Stop;
use program::threads::{self, Thread};

/// Interval at which the connection of an idle leader is checked.
const IDLE_CHECK: Duration = Duration::from_secs(1);

/// Shared parts of every leader's link and thread.
#[derive(Clone)]
pub(super) struct Links {
    /// The producer's name.
    pub(super) name: String,
    pub(super) cluster: Cluster,
    /// Holds a report for each leader of a large cluster. When it is full, a leader's thread waits.
    pub(super) reports: Sender<Report>,
    pub(super) on_death: Stop,
}

/// Where the link runs its jobs.
enum Worker {
    /// On the actor's thread.
    Caller(Box<Link>),
    /// On its own thread. The field order closes the channel before the join.
    Thread { jobs: Sender<Job>, thread: Thread },
}

/// One leader and its current job.
pub(super) struct Leader {
    node: i32,
    /// `None` only inside [`give`](Self::give).
    worker: Option<Worker>,
    busy: bool,
    /// The last job found a working connection.
    pub(super) connected: bool,
    pub(super) trouble: Trouble,
    /// When the broker reads the next request at the earliest (KIP-219).
    reads_at: Instant,
    looked_at: Option<Instant>,
    /// Lanes whose batches are in the current request.
    pub(super) out: Vec<LaneKey>,
    /// The last lane in the previous request: the next request begins after it.
    pub(super) last: Option<LaneKey>,
    /// A request was sent since the last search of the log: search next.
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
            reads_at: Instant::now(),
            looked_at: None,
            out: Vec::new(),
            last: None,
            doubts_first: false,
        }
    }

    /// Whether the leader can take a job. With `hurries` it is not spared for being throttled.
    pub(super) fn is_free(&self, now: Instant, hurries: bool) -> bool {
        !self.busy && !self.trouble.rests(now) && (hurries || self.reads_at <= now)
    }

    /// Whether an idle connection is due for a check.
    pub(super) fn is_unwatched(&self, now: Instant) -> bool {
        self.looked_at.is_none_or(|at| at + IDLE_CHECK <= now)
    }

    /// Returns the moments at which the leader can or should get a job that it cannot get now.
    pub(super) fn wakes_at(&self) -> impl Iterator<Item = Instant> {
        let watch = self.looked_at.map(|at| at + IDLE_CHECK);
        [self.trouble.rests_until(), Some(self.reads_at), watch].into_iter().flatten().filter(|_| !self.busy)
    }

    /// Gives the leader a job. With `alone` the job runs here and its report is returned; otherwise the report comes
    /// through the channel.
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
        // Never full: the capacity is one, and so is the number of jobs. A thread that died has triggered the
        // producer's end.
        let _ = jobs.try_send(job);
        self.worker = Some(Worker::Thread { jobs, thread });
        None
    }

    /// Marks the job as done.
    pub(super) fn reported(&mut self, reads_at: Instant) {
        (self.busy, self.reads_at) = (false, reads_at);
    }

    /// Lets the thread end and joins it. Returns the thread if it has not ended by `deadline`.
    pub(super) fn end(self, deadline: Instant) -> Result<(), Thread> {
        let Some(Worker::Thread { jobs, thread }) = self.worker else { return Ok(()) };
        drop(jobs);
        // The thread has logged its own error.
        thread.join_deadline(deadline).map(drop)
    }
}

/// Starts the thread of a link; it ends when the job sender is dropped.
fn start(node: i32, mut link: Link, links: &Links) -> (Sender<Job>, Thread) {
    let (jobs, to_do) = bounded::<Job>(1);
    let reports = links.reports.clone();
    let name = threads::fitted(&links.name, &format!("-{node}"));
    let thread = threads::spawn(&name, links.on_death.clone(), move || {
        // Sending fails only after the actor has ended, which needs no report.
        while let Ok(job) = to_do.recv() {
            if reports.send(link.perform(job)).is_err() {
                break;
            }
        }
        Ok::<(), Infallible>(())
    });
    (jobs, thread)
}
