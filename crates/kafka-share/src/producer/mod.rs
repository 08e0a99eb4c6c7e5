//! The idempotent, batching producer (KIP-98, without transactions): reports every record's outcome exactly once.
//!
//! One thread takes records from a channel and sends one request per leader at a time. The next request carries the
//! records gathered meanwhile: no timer, no linger. A batch is resent unchanged until its outcome is known, so a broker
//! that has it already recognises it. If the broker refuses a record for good, its batch is split and the others are
//! delivered. A missing right fails all records that need it. While a leader, partition or topic is unavailable, only
//! its own records wait, with a back-off of their own. The producer holds up to [`ProducerOptions::held_bytes`] for
//! each leader and for all records without one. Beyond that the channel fills, and `send` waits or `try_send` refuses,
//! for any topic. Records of one partition keep their order.
//!
//! | module | noun |
//! |---|---|
//! | `actor` | the thread that decides |
//! | `lane` | one partition's records, and the meaning of responses for them; pure |
//! | `topics`, `asker` | partitions and leaders; the thread that asks for them |
//! | `leader` | one leader: its job, rest and thread |
//! | `link` | calls that block on a leader |
//! | `report` | reports of these threads to the actor |
//! | `doubts` | looking batches up in the log |
//! | `denials` | requests that Kafka refuses for good |
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

/// A record to be written. Its key decides its partition, as with Kafka's own producers.
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
    /// Approximate bytes of the record in a batch.
    fn size(&self) -> usize {
        /// Lengths, deltas and attributes of a record, and of a header.
        const RECORD: usize = 24;
        const HEADER: usize = 6;
        let bytes = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + bytes(value) + HEADER).sum();
        bytes(&self.key) + bytes(&self.value) + headers + RECORD
    }
}

/// Position of a record that all in-sync replicas have acknowledged (acks=all).
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
    /// The broker refuses this record alone, and repeating cannot cure that: 10, 18, 32 or 87.
    #[error("refused: {code}{}{message}", if message.is_empty() { "" } else { ": " })]
    Refused {
        /// The broker's code.
        code: ErrorCode,
        /// The broker's own message, if it sent any.
        message: String,
    },
    /// Kafka refuses the topic, the producer or the request, whatever the record, until an operator changes it: a right
    /// is missing (29, 31), or a setting forbids it. The record is not in the log.
    #[error("Kafka refuses {right} on {resource}: {code}")]
    Denied {
        /// The refused operation, by its name in Kafka's ACLs: "Write", "Describe", "IdempotentWrite".
        right: &'static str,
        /// The resource: `topic NAME`, or "the cluster".
        resource: Arc<str>,
        /// The broker's code.
        code: ErrorCode,
    },
    /// The producer was closed before it sent the record: the record is not in the log.
    #[error("closed before it was sent")]
    Unsent,
    /// The record may be in the log: the producer was closed too early to know, or lacks the right to read the log.
    #[error("whether it was written is unknown")]
    Unknown,
}

/// The outcome of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery<T> {
    /// The token that came with the record.
    pub token: T,
    /// The record's position, or the reason why it was not delivered.
    pub outcome: Result<Delivered, DeliveryError>,
}

/// Callbacks of the records' owner. They run on the producer's thread and must not block.
pub trait ProducerEvents<T>: Send + 'static {
    /// Called once, directly before the record's first sending. `false` drops it unsent, without a delivery.
    fn about_to_send(&mut self, token: &T) -> bool {
        let _ = token;
        true
    }

    /// Reports the outcomes of records, each once.
    fn settled(&mut self, deliveries: Vec<Delivery<T>>);
}

/// Bounds of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerOptions {
    /// Records that can wait in the channel. When it is full, `send` blocks and `try_send` refuses.
    pub queue: usize,
    /// Bytes after which a batch ends. Readers get whole batches, so batches of tasks are kept small. Kafka:
    /// `batch.size`.
    pub batch_bytes: usize,
    /// Bytes after which a request takes no further batch. Kafka: `max.request.size`.
    pub request_bytes: usize,
    /// Bytes of records held for one leader, in addition to the channel, and for all records without a leader together.
    /// Enough for the records of a leader change. Kafka: `buffer.memory`, one bound for all.
    pub held_bytes: usize,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self { queue: 4096, batch_bytes: 512 << 10, request_bytes: 1 << 20, held_bytes: 8 << 20 }
    }
}

/// The producer has ended and did not take the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the producer is closed")]
pub struct Closed;

/// Why a record was not taken at once; contains its token.
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

/// A record and its owner's token.
#[derive(Debug)]
struct Message<T> {
    record: ProducerRecord,
    token: T,
}

/// Topic and partition.
type LaneKey = (Arc<str>, i32);

/// Shared state of the producer's thread and its handles.
#[derive(Debug)]
struct Shared {
    born: Instant,
    /// Time of the thread's last loop, in milliseconds after `born`.
    turned: AtomicU64,
    ready: AtomicBool,
    closed: AtomicBool,
    /// See [`Producer::hurry`].
    hurries: AtomicBool,
    /// Number of callers inside `send`. The thread drops the channel only at zero, so that no record is lost.
    inside: AtomicUsize,
    /// Whether `denied` has entries: a fast check for every task.
    is_denied: AtomicBool,
    /// The denials, by resource.
    denied: Mutex<BTreeMap<Arc<str>, Denial>>,
}

impl Shared {
    fn new() -> Self {
        Self {
            born: Instant::now(),
            turned: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            hurries: AtomicBool::new(false),
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

/// Sends records to a producer; clones share its channel.
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
    /// Sends a record; blocks while the channel is full.
    ///
    /// # Errors
    /// [`Closed`]: the record was not taken and gets no delivery.
    pub fn send(&self, record: ProducerRecord, token: T) -> Result<(), Closed> {
        let _inside = Inside::enter(&self.shared).ok_or(Closed)?;
        self.inbox.send(Message { record, token }).map_err(|_| Closed)
    }

    /// Sends a record if the channel has room.
    ///
    /// # Errors
    /// The token, and why the record was not taken; it gets no delivery.
    pub fn try_send(&self, record: ProducerRecord, token: T) -> Result<(), TrySendError<T>> {
        let Some(_inside) = Inside::enter(&self.shared) else { return Err(TrySendError::Closed(token)) };
        self.inbox.try_send(Message { record, token }).map_err(|error| match error {
            crossbeam_channel::TrySendError::Full(message) => TrySendError::Full(message.token),
            crossbeam_channel::TrySendError::Disconnected(message) => TrySendError::Closed(message.token),
        })
    }

    /// The number of records that the producer's thread has not taken yet.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.inbox.len()
    }

    /// See [`Producer::is_ready`].
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.shared.ready.load(Ordering::Relaxed)
    }

    /// Time of the last loop of the producer's thread: at most a second ago, even without Kafka.
    #[must_use]
    pub fn last_turn(&self) -> Instant {
        self.shared.born + Duration::from_millis(self.shared.turned.load(Ordering::Relaxed))
    }

    /// The current [`DeliveryError::Denied`]; it ends with a success, or after 10 s without another denial.
    #[must_use]
    pub fn denial(&self) -> Option<DeliveryError> {
        self.shared.denial(|_| true)
    }

    /// The current denial for records of one topic.
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
        // Count first, then read the flag. The thread sets the flag first, then reads the count, so at least one of
        // them sees the other.
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

/// How long the thread may take to end after its sockets were shut down.
const END_GRACE: Duration = Duration::from_millis(500);

/// Handle to the producer's thread. Dropping it closes the producer immediately.
#[derive(Debug)]
pub struct Producer<T> {
    sender: ProducerSender<T>,
    /// Makes the thread end once everything is settled.
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
        // An own interrupter: closing wakes only this producer's calls.
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

    /// Whether records are being written: a leader is connected, nothing is denied, and not all waiting records are
    /// delayed. A frozen broker is noticed with the next record.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Sends records from now on without regard to quotas: a leader that throttles its connection gets them on a new
    /// one (KIP-219). For the few records of a stop. Takes effect with the next record, or within a second.
    pub fn hurry(&self) {
        self.sender.shared.hurries.store(true, Ordering::Relaxed);
    }

    /// Sends queued records until `deadline`, then settles the rest as `Unsent` or `Unknown`. All deliveries have been
    /// reported when this returns. Exception: in a cluster with one broker that takes no connection the thread ends
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
