//! The idempotent, batching producer (KIP-98, without transactions): every record's outcome is told exactly once.
//!
//! One thread takes what is in the channel and sends one request per leader at a time; the next one carries what has
//! gathered meanwhile: no timer, no linger. A batch's bytes are made once and resent as they are until their outcome is
//! known, so that a broker that has them already says so. A record that the broker refuses for good is found by
//! splitting its batch; the others are delivered. A right that is missing fails all records that need it. While a
//! leader, a partition or a topic is unavailable its records wait, until the producer is closed, and no others do: each
//! has its own back-off and its own bytes. Up to [`ProducerOptions::held_bytes`] are taken from the channel for each
//! leader (the records without one share as much); beyond, the channel fills, and `send` waits or `try_send` refuses,
//! whatever the record's topic. Records of one partition keep their order.
//!
//! | module | noun |
//! |---|---|
//! | `actor` | the thread that decides |
//! | `lane` | one partition's records, and what an answer means for them; pure |
//! | `topics`, `asker` | partitions and leaders; the thread that asks for them |
//! | `leader` | one leader: its job, rest and thread |
//! | `link` | what blocks on a leader |
//! | `report` | what these threads report to the actor |
//! | `doubts` | looking batches up in the log |
//! | `denials` | what Kafka refuses for good |
//! | `trouble` | back-off and outage of one thing; pure |
//!
//! Called by the gateway (tasks, claims) and by the worker's outbox.

mod actor;
mod asker;
mod denials;
mod doubts;
mod lane;
mod leader;
mod link;
mod report;
mod topics;
mod trouble;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;

use self::denials::Denial;
use super::cluster::Cluster;
use super::error::ErrorCode;
use super::interrupt::Interrupter;
use program::stop::Stop;
use program::threads::{self, Thread};

/// A record to be written. Its partition follows from its key, as with Kafka's own producers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerRecord {
    /// The topic, which must exist.
    pub topic: Arc<str>,
    /// Key; records of one key share a partition and keep their order.
    pub key: Option<Bytes>,
    /// Value.
    pub value: Option<Bytes>,
    /// Headers; names may repeat.
    pub headers: Vec<(Cow<'static, str>, Option<Bytes>)>,
}

impl ProducerRecord {
    /// About what the record takes in a batch.
    fn size(&self) -> usize {
        /// Lengths, deltas and attributes of one record, and of one header.
        const RECORD: usize = 24;
        const HEADER: usize = 6;
        let bytes = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + bytes(value) + HEADER).sum();
        bytes(&self.key) + bytes(&self.value) + headers + RECORD
    }
}

/// Where a record stands now, acknowledged by all replicas in sync (acks=all).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Partition of the topic.
    pub partition: i32,
    /// Position in the partition.
    pub offset: i64,
}

/// Why a record was not delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeliveryError {
    /// The broker refuses this record alone, and repeating cannot cure it: 10, 18, 32 or 87.
    #[error("refused: {code}{}{message}", if message.is_empty() { "" } else { ": " })]
    Refused {
        /// The broker's code.
        code: ErrorCode,
        /// The broker's own words, if it gave any.
        message: String,
    },
    /// Kafka refuses the topic, the producer or the request, whatever the record, and time alone does not change that:
    /// a right is missing (29, 31), or a setting forbids it. The record is not in the log.
    #[error("Kafka refuses {right} on {resource}: {code}")]
    Denied {
        /// What was refused, by the name of the operation in Kafka's ACLs: "Write", "Describe", "IdempotentWrite".
        right: &'static str,
        /// What it was refused on: `topic NAME`, or "the cluster".
        resource: Arc<str>,
        /// The broker's code.
        code: ErrorCode,
    },
    /// Closed before it was sent: it is not in the log.
    #[error("closed before it was sent")]
    Unsent,
    /// It may be in the log: the producer was closed before the outcome was known, or may not read the log to find out.
    #[error("whether it was written is unknown")]
    Unknown,
}

/// The outcome of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery<T> {
    /// What came with the record.
    pub token: T,
    /// Where it is, or why it is not.
    pub outcome: Result<Delivered, DeliveryError>,
}

/// What the owner of the records is told, on the producer's thread: it must not block.
pub trait ProducerEvents<T>: Send + 'static {
    /// Asked once, directly before the record goes out for the first time. `false` drops it unsent, without a delivery.
    fn about_to_send(&mut self, token: &T) -> bool {
        let _ = token;
        true
    }

    /// The outcomes of records, each told once.
    fn settled(&mut self, deliveries: Vec<Delivery<T>>);
}

/// Bounds of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerOptions {
    /// Records that wait in the channel. When it is full, `send` blocks and `try_send` refuses.
    pub queue: usize,
    /// Bytes after which a batch ends. A batch is read as a whole, so batches of tasks are kept small. Kafka:
    /// `batch.size`.
    pub batch_bytes: usize,
    /// Bytes after which no further batch is added to a request. Kafka: `max.request.size`.
    pub request_bytes: usize,
    /// Bytes of records that are held for one leader beside the channel, and for all records without a leader together.
    /// Enough for what comes while a leader is replaced. Kafka: `buffer.memory`, which is one bound for all.
    pub held_bytes: usize,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self { queue: 4096, batch_bytes: 512 << 10, request_bytes: 1 << 20, held_bytes: 8 << 20 }
    }
}

/// The producer has ended; the record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the producer is closed")]
pub struct Closed;

/// Why a record was not taken at once; gives its token back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// The channel is full.
    Full(T),
    /// The producer has ended.
    Closed(T),
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Full(_) => "Full",
            Self::Closed(_) => "Closed",
        })
    }
}

/// A record and what its owner knows it by.
#[derive(Debug)]
struct Message<T> {
    record: ProducerRecord,
    token: T,
}

/// Topic and partition.
type LaneKey = (Arc<str>, i32);

/// What the producer's thread and its handles share.
#[derive(Debug)]
struct Shared {
    born: Instant,
    /// When the thread last came round, in milliseconds after `born`.
    turned: AtomicU64,
    ready: AtomicBool,
    closed: AtomicBool,
    /// Callers inside `send`: the thread drops the channel only when none is, so that no record vanishes between the
    /// two.
    inside: AtomicUsize,
    /// Whether anything is denied: asked for every task.
    is_denied: AtomicBool,
    /// By resource.
    denied: Mutex<BTreeMap<Arc<str>, Denial>>,
}

impl Shared {
    fn new() -> Self {
        Self {
            born: Instant::now(),
            turned: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            is_denied: AtomicBool::new(false),
            denied: Mutex::default(),
        }
    }

    fn turn(&self, now: Instant) {
        let after = now.saturating_duration_since(self.born).as_millis();
        self.turned.store(u64::try_from(after).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn denial(&self, wanted: impl Fn(&str) -> bool) -> Option<DeliveryError> {
        if !self.is_denied.load(Ordering::Relaxed) {
            return None;
        }
        let all = self.denied.lock();
        all.iter().find(|(resource, _)| wanted(resource)).map(|(_, denial)| denial.error.clone())
    }
}

/// Takes records for a producer; clones share its channel.
#[derive(Debug)]
pub struct ProducerSender<T> {
    inbox: Sender<Message<T>>,
    shared: Arc<Shared>,
}

impl<T> Clone for ProducerSender<T> {
    fn clone(&self) -> Self {
        Self { inbox: self.inbox.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<T> ProducerSender<T> {
    /// Hands a record over; blocks while the channel is full.
    ///
    /// # Errors
    /// [`Closed`]: the record was not taken and no delivery will tell of it.
    pub fn send(&self, record: ProducerRecord, token: T) -> Result<(), Closed> {
        let _inside = Inside::enter(&self.shared).ok_or(Closed)?;
        self.inbox.send(Message { record, token }).map_err(|_| Closed)
    }

    /// Hands a record over if there is room.
    ///
    /// # Errors
    /// The token, and why the record was not taken; no delivery will tell of it.
    pub fn try_send(&self, record: ProducerRecord, token: T) -> Result<(), TrySendError<T>> {
        let Some(_inside) = Inside::enter(&self.shared) else { return Err(TrySendError::Closed(token)) };
        self.inbox.try_send(Message { record, token }).map_err(|error| match error {
            crossbeam_channel::TrySendError::Full(message) => TrySendError::Full(message.token),
            crossbeam_channel::TrySendError::Disconnected(message) => TrySendError::Closed(message.token),
        })
    }

    /// See [`Producer::is_ready`].
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.shared.ready.load(Ordering::Relaxed)
    }

    /// When the producer's thread last came round: every second at the least, whatever Kafka does.
    #[must_use]
    pub fn last_turn(&self) -> Instant {
        self.shared.born + Duration::from_millis(self.shared.turned.load(Ordering::Relaxed))
    }

    /// A [`DeliveryError::Denied`] that neither a success nor ten seconds without another denial have ended.
    #[must_use]
    pub fn denial(&self) -> Option<DeliveryError> {
        self.shared.denial(|_| true)
    }

    /// The same for records of one topic.
    #[must_use]
    pub fn denial_of(&self, topic: &str) -> Option<DeliveryError> {
        let name = denials::resource(topic);
        self.shared.denial(|resource| *resource == *name || resource == denials::CLUSTER)
    }
}

/// A caller inside `send`.
struct Inside<'a>(&'a Shared);

impl<'a> Inside<'a> {
    fn enter(shared: &'a Shared) -> Option<Self> {
        // Counted first, asked then: the thread sets the flag first and counts then, so one of the two sees the other.
        shared.inside.fetch_add(1, Ordering::SeqCst);
        let inside = Self(shared);
        (!shared.closed.load(Ordering::SeqCst)).then_some(inside)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How long the thread may take to end once its sockets are shut.
const END_GRACE: Duration = Duration::from_millis(500);

/// Handle on the producer's thread. Dropping it closes at once.
#[derive(Debug)]
pub struct Producer<T> {
    sender: ProducerSender<T>,
    /// Tells the thread to end once everything is settled.
    closing: Stop,
    interrupter: Interrupter,
    thread: Option<Thread>,
}

impl<T: Send + 'static> Producer<T> {
    /// Starts the thread `name` (at most 15 bytes). It connects at once, and keeps trying while Kafka is unavailable.
    pub fn start(
        name: &str,
        cluster: Cluster,
        options: ProducerOptions,
        events: impl ProducerEvents<T>,
        on_death: Stop,
    ) -> Self {
        let (inbox, records) = bounded(options.queue);
        let closing = Stop::new();
        let shared = Arc::new(Shared::new());
        // Its own interrupter: closing wakes this producer's calls and no others.
        let interrupter = cluster.options().interrupter.child();
        let actor = actor::Actor::new(
            (name, &on_death),
            cluster.scoped(interrupter.clone()),
            options,
            events,
            actor::Handles { inbox: records, closing: closing.clone(), shared: Arc::clone(&shared) },
        );
        let thread = threads::spawn(name, on_death, move || actor.run());
        Self { sender: ProducerSender { inbox, shared }, closing, interrupter, thread: Some(thread) }
    }
}

impl<T> Producer<T> {
    /// See [`ProducerSender::send`].
    ///
    /// # Errors
    /// [`Closed`]: the record was not taken.
    pub fn send(&self, record: ProducerRecord, token: T) -> Result<(), Closed> {
        self.sender.send(record, token)
    }

    /// See [`ProducerSender::try_send`].
    ///
    /// # Errors
    /// The token, and why the record was not taken.
    pub fn try_send(&self, record: ProducerRecord, token: T) -> Result<(), TrySendError<T>> {
        self.sender.try_send(record, token)
    }

    /// A handle that takes records.
    #[must_use]
    pub fn sender(&self) -> ProducerSender<T> {
        self.sender.clone()
    }

    /// Whether records are written: a leader is connected, nothing is denied, and where records wait for longer than a
    /// moment, others do not. A frozen broker is noticed with the next record.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Sends what is queued until `deadline`; the rest is settled as `Unsent` or `Unknown`. All deliveries are told
    /// when this returns, unless the cluster has one broker and its address takes no connection: then the thread ends
    /// after the connect timeout.
    pub fn close(mut self, deadline: Instant) {
        self.end(deadline);
    }

    fn end(&mut self, deadline: Instant) {
        self.closing.trigger();
        let Some(thread) = self.thread.take() else { return };
        if let Err(thread) = thread.join_deadline(deadline) {
            self.interrupter.interrupt();
            if let Err(thread) = thread.join_deadline(Instant::now() + END_GRACE) {
                log::warn!("thread {} has not ended", thread.name());
            }
        }
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        self.end(Instant::now());
    }
}
