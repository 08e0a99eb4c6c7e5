//! Membership of the group, and one share session with the broker that leads the tasks.
//!
//! A session that is lost is opened anew; whoever holds a record compares [`Intake::session`] to see that its lock is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use lastcall::{
    backoff::Backoff,
    config::Common,
    kafka::{
        Cluster, ErrorCode, KafkaError,
        share_membership::ShareMembership,
        share_session::{Answer, ShareIdentity, ShareSession},
        share_wire::{Acknowledgement, Acknowledgements, FetchLimits, SharePartition},
    },
    stop::Stop,
    threads::{self, Thread},
};
use parking_lot::Mutex;
use uuid::Uuid;

/// One record; parked as long as the real worker's fetch, so that a killed stand-in swallows no more.
const ONE_RECORD: FetchLimits =
    FetchLimits { max_wait: Duration::from_millis(100), max_bytes: 128 << 10, max_records: 1 };
/// First and longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));
/// A record's place in the queue.
pub type Key = (SharePartition, i64);

type Assignment = Arc<Mutex<BTreeSet<SharePartition>>>;

/// Tells the membership thread to leave by then. Capacity one: how it went.
struct Leave(Instant, Sender<Result<(), KafkaError>>);

/// See the module documentation.
pub struct Intake {
    cluster: Cluster,
    identity: ShareIdentity,
    topic: String,
    assigned: Assignment,
    /// What the session was opened for.
    opened_for: BTreeSet<SharePartition>,
    session: Option<ShareSession>,
    sessions: u64,
    backoff: Backoff,
    retry_at: Instant,
    leave: Sender<Leave>,
    _membership: Thread,
}

impl Intake {
    /// Joins the group.
    pub fn join(cluster: Cluster, common: &Common, on_death: Stop) -> Self {
        let member = Uuid::new_v4().to_string();
        let identity = ShareIdentity { group: common.worker_group.as_str().into(), member: member.into() };
        let assigned = Assignment::default();
        let membership = ShareMembership::new(cluster.clone(), identity.clone(), &common.tasks_topic);
        let of_thread = Arc::clone(&assigned);
        // One command: it leaves once.
        let (leave, commands) = bounded(1);
        let thread = threads::spawn("membership", on_death, move || be_member(membership, &of_thread, &commands));
        Self {
            cluster,
            identity,
            topic: common.tasks_topic.clone(),
            assigned,
            opened_for: BTreeSet::new(),
            session: None,
            sessions: 0,
            backoff: Backoff::new(PAUSES.0, PAUSES.1),
            retry_at: Instant::now(),
            leave,
            _membership: thread,
        }
    }

    /// The number of the session, while there is one.
    pub fn session(&self) -> Option<u64> {
        self.session.as_ref().map(|_| self.sessions)
    }

    /// Whether an answer is owed.
    pub fn is_waiting(&self) -> bool {
        self.session.as_ref().is_some_and(ShareSession::is_waiting)
    }

    /// Sees that there is a session over what is assigned. Only for a worker that holds nothing: closing frees all.
    pub fn open(&mut self) {
        let assigned = self.assigned.lock().clone();
        if self.session.is_some() && assigned != self.opened_for && !self.is_waiting() {
            self.session = None;
        }
        if self.session.is_some() || assigned.is_empty() || Instant::now() < self.retry_at {
            return;
        }
        match self.open_over(&assigned) {
            Ok(session) => {
                self.backoff.reset();
                self.sessions += 1;
                (self.session, self.opened_for) = (Some(session), assigned);
            }
            Err(error) => self.lose(&error),
        }
    }

    fn open_over(&self, assigned: &BTreeSet<SharePartition>) -> Result<ShareSession, KafkaError> {
        let topic = self.cluster.topic(&self.topic)?;
        let led = topic.partitions.iter().filter(|partition| partition.leader >= 0);
        let led = led.map(|known| (SharePartition { topic_id: topic.id, partition: known.index }, known.leader));
        let led: BTreeMap<_, _> = led.filter(|(partition, _)| assigned.contains(partition)).collect();
        let nobody = || KafkaError::broker("Metadata", ErrorCode::LEADER_NOT_AVAILABLE, Some("no leader"));
        let node = *led.values().next().ok_or_else(nobody)?;
        let partitions = led.into_iter().filter(|(_, leader)| *leader == node).map(|(partition, _)| partition);
        let mut session = ShareSession::connect(&self.cluster, node, self.identity.clone())?;
        session.send_open(&partitions.collect())?;
        let timeout = self.cluster.options().request_timeout;
        let answer = session.receive(timeout)?.ok_or_else(|| session.silent(timeout))?;
        answer.refused.map_or(Ok(session), Err)
    }

    /// The session is over; what it held is free.
    pub fn lose(&mut self, error: &dyn std::fmt::Display) {
        log::warn!("no share session: {error}");
        self.session = None;
        self.cluster.forget_topic(&self.topic);
        self.retry_at = Instant::now() + self.backoff.pause();
    }

    /// Asks for one record.
    pub fn fetch(&mut self) {
        let partitions = self.opened_for.clone();
        self.with_session(|session| session.send_fetch(&partitions, Acknowledgements::new(), ONE_RECORD));
    }

    /// Says something of one record that is held.
    pub fn say(&mut self, (partition, offset): Key, what: Acknowledgement) {
        let acknowledgements = BTreeMap::from([(partition, BTreeMap::from([(offset, what)]))]);
        self.with_session(|session| session.send_acknowledge(acknowledgements));
    }

    /// Waits for the next answer.
    pub fn receive(&mut self, wait: Duration) -> Option<Answer> {
        let answer = self.with_session(|session| session.receive(wait)).flatten()?;
        match &answer.refused {
            Some(error) => self.lose(error),
            None => return Some(answer),
        }
        None
    }

    fn with_session<T>(&mut self, what: impl FnOnce(&mut ShareSession) -> Result<T, KafkaError>) -> Option<T> {
        let outcome = what(self.session.as_mut()?);
        outcome.inspect_err(|error| self.lose(error)).ok()
    }

    /// Closes the session, which frees what it holds, behind all that was said; false when Kafka did not say that it has.
    pub fn close(&mut self, deadline: Instant) -> bool {
        self.with_session(|session| session.send_close());
        while self.is_waiting() && Instant::now() < deadline {
            self.receive(deadline.saturating_duration_since(Instant::now()));
        }
        self.session.take().is_some_and(|session| !session.is_waiting())
    }

    /// Leaves the group; false when Kafka did not say so in time.
    pub fn leave(&self, deadline: Instant) -> bool {
        let (done, outcome) = bounded(1);
        // The capacity is one and this is the only command.
        let _ = self.leave.try_send(Leave(deadline, done));
        outcome.recv_deadline(deadline).is_ok_and(|outcome| outcome.is_ok())
    }
}

/// Heartbeats until it is told to leave.
fn be_member(
    mut membership: ShareMembership,
    assigned: &Assignment,
    commands: &Receiver<Leave>,
) -> Result<(), Infallible> {
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    loop {
        let pause = match membership.heartbeat() {
            Ok(heartbeat) => {
                backoff.reset();
                if let Some(partitions) = heartbeat.assignment {
                    *assigned.lock() = partitions;
                }
                // One that was just taken in may have no assignment yet: ask soon.
                if assigned.lock().is_empty() { PAUSES.0 } else { heartbeat.interval }
            }
            Err(KafkaError::Interrupted) => return Ok(()),
            Err(_) => backoff.pause(),
        };
        match commands.recv_timeout(pause) {
            Ok(Leave(deadline, done)) => {
                // Disconnected: main no longer waits.
                let _ = done.try_send(membership.leave(deadline));
                return Ok(());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}
