//! The idempotent, batching producer (KIP-98, without transactions): every record's outcome is told exactly once.
//!
//! One thread takes what is in the channel, sends it as one request per leader, and takes what has gathered meanwhile: no timer, no linger.
//! A batch's bytes are made once and resent as they are until their outcome is known, so that a broker that has them
//! already says so. A record that the broker refuses for good is found by splitting its batch; the others are delivered. The producer never
//! gives a record up because Kafka is away: it repeats until it is closed. Records of one partition keep their order.
//!
//! `lane` is the pure part, one partition's records and what an answer means for them; `run` is the thread. Called by the gateway (tasks,
//! claims) and by the worker's outbox.

mod lane;
mod run;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Sender, bounded};

use super::cluster::Cluster;
use super::error::ErrorCode;
use super::interrupt::Interrupter;
use crate::stop::Stop;
use crate::threads::{self, Thread};

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
    /// Closed before it was sent: it is not in the log.
    #[error("closed before it was sent")]
    Unsent,
    /// Closed before the outcome was known: it may be in the log.
    #[error("closed before the outcome was known")]
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
    /// Bytes after which a batch ends. A batch is read as a whole, so batches of tasks are kept small. Kafka: `batch.size`.
    pub batch_bytes: usize,
    /// Bytes in hand beside the channel, and so the size of a request. Kafka: `max.request.size`.
    pub request_bytes: usize,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self { queue: 4096, batch_bytes: 512 << 10, request_bytes: 1 << 20 }
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

/// What the producer's thread and its handles share.
#[derive(Debug, Default)]
struct Shared {
    ready: AtomicBool,
    closed: AtomicBool,
    /// Callers inside `send`: the thread drops the channel only when none is, so that no record vanishes between the two.
    inside: AtomicUsize,
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
    /// Starts the thread `name` (at most 15 bytes). It connects at once, and goes on trying while Kafka is away.
    pub fn start(
        name: &str,
        cluster: Cluster,
        options: ProducerOptions,
        events: impl ProducerEvents<T>,
        on_death: Stop,
    ) -> Self {
        let (inbox, records) = bounded(options.queue);
        let closing = Stop::new();
        let shared = Arc::new(Shared::default());
        // Its own interrupter: closing wakes this producer's calls and nobody else's.
        let interrupter = cluster.options().interrupter.child();
        let actor = run::Actor::new(
            name,
            cluster.scoped(interrupter.clone()),
            options,
            events,
            records,
            closing.clone(),
            Arc::clone(&shared),
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

    /// Whether Kafka took part lately: the last request was answered, or nothing is to be sent and the connection stands. A
    /// frozen broker is noticed with the next record.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Sends what is queued until `deadline`; the rest is settled as `Unsent` or `Unknown`. All deliveries are told when this returns,
    /// unless the thread hangs in the operating system (an unreachable address, at most the connect timeout).
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
