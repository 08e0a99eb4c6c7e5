//! What stands on the topics, read with a client that shares no code with the fleet's own.
//!
//! The client is the crate `kafkang`. It reads exactly, and it gives up easily; what it cannot do is done here:
//! - It takes no answer that ends in a cut batch, and brokers cut each answer at their `fetch.max.bytes` (55 MiB unless told otherwise). A
//!   partition is therefore asked for all its rest at once, and batch by batch while that is too much: a first batch always comes whole
//!   (KIP-74).
//! - It never reconnects. After each failure there is a new client.
//! - It waits 120 s for an answer, which nobody can change or interrupt. It has a thread of its own, which is left alone after
//!   [`Limits::answer`].
//! - It leaves out partitions that have no leader. They are counted here.
//!
//! What it does not tell apart: a null key or value from an empty one, and the control records of transactions from records; headers it
//! leaves out. It checks each batch's checksum, knows Snappy as Java writes it, and no other compression. Judges nothing. Called by the judge.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded, select};
use kafka::client::fetch::{Data, Message, Response};
use kafka::client::{FetchOffset, FetchPartition, KafkaClient};
use kafka::error::KafkaCode;

use program::backoff::Backoff;
use program::stop::{Stop, Stopped};
use program::threads::{self, Thread};

/// Bytes that are asked for when all the rest shall come: above what brokers give unless told otherwise, and the most that is held at a time.
const REST: i32 = 64 << 20;
/// Bytes that bring one batch, whatever its size.
const ONE_BATCH: i32 = 1;
/// While single batches come, the rest is asked for again each time that this part of it has come. Each time may cost an answer in vain.
const PART: i64 = 8;
/// How long the broker waits when there is nothing.
const EMPTY_WAIT: Duration = Duration::from_millis(100);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long the end waits for its threads. One that waits for a socket ends with it, or with the process.
const FAREWELL: Duration = Duration::from_secs(1);

/// One record as it stands on a topic. A null key or value is an empty one here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// Why a reading was given up. What it told of until then holds.
#[derive(Debug, thiserror::Error)]
pub(super) enum WitnessError {
    /// Where the partitions start or end could not be found out.
    #[error("{topic}: no offsets: {seen}")]
    Offsets { topic: String, seen: Trouble },
    /// A partition cannot be read on.
    #[error("{topic}-{partition} cannot be read from {offset} on: {seen}")]
    Unreadable { topic: String, partition: i32, offset: i64, seen: Trouble },
    /// The broker answers, but with no records, although there shall be some.
    #[error("{topic}-{partition} gives nothing from {offset} on, but is to be read to its end at {end}")]
    Stalled { topic: String, partition: i32, offset: i64, end: i64 },
    /// `stop` was triggered.
    #[error("stopped")]
    Ended,
}

/// What came instead of an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Client(#[from] kafka::Error),
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("the client died of the answer")]
    Died,
    #[error("a partition has no leader")]
    Leaderless,
    #[error("there is no such partition")]
    Missing,
    #[error("the answer is about something else")]
    Foreign,
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// When to lose patience.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// With one answer.
    answer: Duration,
    /// With a broker that brings nothing further, since the last time that it did.
    trouble: Duration,
    /// With answers that hold nothing, one after the other.
    stalls: u32,
}

const LIMITS: Limits = Limits { answer: Duration::from_secs(10), trouble: Duration::from_secs(30), stalls: 10 };

/// Reads topics; see the module.
pub(super) struct Witness {
    bootstrap: Vec<String>,
    limits: Limits,
    asker: Option<Asker>,
    /// Threads that were left alone; they end when the operating system lets them.
    retired: Vec<Thread>,
}

/// What of a partition is to be read: up to `end`, exclusive.
#[derive(Clone, Copy, Debug)]
struct Span<'a> {
    topic: &'a str,
    partition: i32,
    end: i64,
}

impl Witness {
    /// Connects when it is asked something. `bootstrap`: brokers as `host:port`.
    pub(super) fn new(bootstrap: Vec<String>) -> Self {
        Self { bootstrap, limits: LIMITS, asker: None, retired: Vec::new() }
    }

    /// The offset that the next record gets, of each partition. Empty if there is no such topic; asking does not create it.
    ///
    /// # Errors
    /// [`WitnessError::Offsets`], half a minute after the last sign of life at the latest.
    pub(super) fn ends(&mut self, topic: &str) -> Result<BTreeMap<i32, i64>, WitnessError> {
        self.offsets(topic, FetchOffset::Latest, &Stop::new())
    }

    /// Reads each partition that is named in `to` up to the offset given there, exclusive: from the offset in `from`, or else from its
    /// start. Tells `each` of every record once, in the order of the log, one partition after the other. Looks at `stop` all the time.
    ///
    /// # Errors
    /// [`WitnessError`]
    pub(super) fn read(
        &mut self,
        topic: &str,
        from: &BTreeMap<i32, i64>,
        to: &BTreeMap<i32, i64>,
        stop: &Stop,
        each: &mut dyn FnMut(Record),
    ) -> Result<(), WitnessError> {
        let given = to.keys().all(|partition| from.contains_key(partition));
        let starts = if given { BTreeMap::new() } else { self.offsets(topic, FetchOffset::Earliest, stop)? };
        // An answer that was left over from another call could be about later offsets.
        self.retire();
        for (&partition, &end) in to {
            let span = Span { topic, partition, end };
            let start = from.get(&partition).or_else(|| starts.get(&partition));
            let start = *start.ok_or_else(|| span.unreadable(0, Trouble::Missing))?;
            self.read_span(span, start, stop, each)?;
        }
        Ok(())
    }

    fn read_span(
        &mut self,
        span: Span<'_>,
        start: i64,
        stop: &Stop,
        each: &mut dyn FnMut(Record),
    ) -> Result<(), WitnessError> {
        let mut walk = Walk::new(span, start, self.limits);
        while walk.next < span.end {
            let answer = self.fetch(span, walk.next, walk.portion, stop);
            match answer.and_then(|answer| walk.take(&answer, each)) {
                Ok(true) => {}
                Ok(false) => walk.stalled(stop)?,
                Err(seen) => {
                    self.retire();
                    walk.failed(seen, stop)?;
                }
            }
        }
        Ok(())
    }

    fn fetch(&mut self, span: Span<'_>, from: i64, portion: Portion, stop: &Stop) -> Result<Response, Trouble> {
        let (topic, partition) = (span.topic.to_owned(), span.partition);
        self.ask(stop, move |client| {
            if client.topics().is_empty() {
                client.load_metadata_all()?;
            }
            let wanted = FetchPartition::new(&topic, partition, from).with_max_bytes(portion.bytes());
            let answers = client.fetch_messages([&wanted])?;
            // It asks nobody when it knows no leader.
            answers.into_iter().next().ok_or(Trouble::Leaderless)
        })
    }

    fn offsets(&mut self, topic: &str, which: FetchOffset, stop: &Stop) -> Result<BTreeMap<i32, i64>, WitnessError> {
        let fail = |seen| match seen {
            Trouble::Stopped(Stopped) => WitnessError::Ended,
            seen => WitnessError::Offsets { topic: topic.to_owned(), seen },
        };
        let (mut patience, mut missed) = (Patience::new(self.limits.trouble), false);
        loop {
            // What a client knows of the topics is of its beginning.
            self.retire();
            let name = topic.to_owned();
            match self.ask(stop, move |client| offsets(client, &name, which)) {
                // The client does not show an answer that failed: it has no topics either. That there is nothing is believed the second time.
                Ok(offsets) if offsets.is_empty() && !missed => {
                    missed = true;
                    patience.sleep(stop).map_err(fail)?;
                }
                Ok(offsets) => return Ok(offsets),
                Err(seen) => patience.after(seen, stop).map_err(fail)?,
            }
        }
    }

    /// Has the client answer, or whatever came instead; after that it has to be retired.
    fn ask<T: Send + 'static>(
        &mut self,
        stop: &Stop,
        question: impl FnOnce(&mut KafkaClient) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T, Trouble> {
        let asker = self.asker.get_or_insert_with(|| Asker::start(self.bootstrap.clone()));
        let (reply, answer) = bounded(1);
        let question: Question = Box::new(move |client| {
            // Nobody listens to an answer that came too late.
            let _ = reply.send(question(client));
        });
        asker.questions.send(question).map_err(|_| Trouble::Died)?;
        select! {
            recv(answer) -> answer => answer.unwrap_or(Err(Trouble::Died)),
            recv(stop.triggered()) -> _ => Err(Trouble::Stopped(Stopped)),
            default(self.limits.answer) => Err(Trouble::Silent(self.limits.answer)),
        }
    }

    /// Leaves the client alone. The next one begins with another broker: one that is silent would be asked first each time.
    fn retire(&mut self) {
        let Some(Asker { questions, thread }) = self.asker.take() else { return };
        drop(questions);
        self.retired.push(thread);
        let (ended, waiting): (Vec<_>, Vec<_>) = self.retired.drain(..).partition(Thread::is_finished);
        self.retired = waiting;
        // Whatever ended them has been told as an answer.
        let _ = threads::join_all(ended);
        let next = 1.min(self.bootstrap.len());
        self.bootstrap.rotate_left(next);
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.retire();
        let deadline = Instant::now() + FAREWELL;
        for thread in self.retired.drain(..) {
            let _ = thread.join_deadline(deadline);
        }
    }
}

type Question = Box<dyn FnOnce(&mut KafkaClient) + Send>;

/// A client on a thread of its own.
struct Asker {
    /// One at a time, so it never blocks. Dropping it ends the thread, as soon as it listens.
    questions: Sender<Question>,
    thread: Thread,
}

impl Asker {
    fn start(bootstrap: Vec<String>) -> Self {
        let (questions, asked) = bounded::<Question>(1);
        let thread = threads::spawn("witness", Stop::new(), move || {
            let mut client = KafkaClient::new(bootstrap);
            client.set_client_id("lastcall-witness".to_owned());
            client.set_fetch_max_wait_time(EMPTY_WAIT)?;
            client.set_fetch_min_bytes(1);
            asked.iter().for_each(|question| question(&mut client));
            Ok::<(), kafka::Error>(())
        });
        Self { questions, thread }
    }
}

/// How much of a partition is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Portion {
    /// All that is left.
    Rest,
    /// One batch after the other, up to this offset; `None` until the first one tells where the log ends.
    Batches { until: Option<i64> },
}

impl Portion {
    fn bytes(self) -> i32 {
        match self {
            Self::Rest => REST,
            Self::Batches { .. } => ONE_BATCH,
        }
    }

    /// What to ask for at `next`, in a log that ends at `end`.
    fn after(self, next: i64, end: i64) -> Self {
        match self {
            Self::Batches { until: Some(until) } if next >= until => Self::Rest,
            Self::Batches { until: None } => Self::Batches { until: Some(next + (end - next) / PART + 1) },
            portion => portion,
        }
    }
}

/// The way through one partition.
struct Walk<'a> {
    span: Span<'a>,
    /// The first offset that `each` was not told of.
    next: i64,
    portion: Portion,
    patience: Patience,
    stalls: u32,
    limits: Limits,
}

impl<'a> Walk<'a> {
    fn new(span: Span<'a>, start: i64, limits: Limits) -> Self {
        Self { span, next: start, portion: Portion::Rest, patience: Patience::new(limits.trouble), stalls: 0, limits }
    }

    /// Tells `each` what is new in an answer; whether that led further.
    fn take(&mut self, answer: &Response, each: &mut dyn FnMut(Record)) -> Result<bool, Trouble> {
        let data = data(answer, self.span)?;
        let before = self.next;
        for message in data.messages() {
            if message.offset >= self.span.end {
                // In between there is nothing any more.
                self.next = self.span.end;
                break;
            }
            if message.offset >= self.next {
                self.next = message.offset + 1;
                each(record(self.span.partition, message));
            }
        }
        if self.next == before {
            return Ok(false);
        }
        self.stalls = 0;
        self.patience = Patience::new(self.limits.trouble);
        self.portion = self.portion.after(self.next, data.highwatermark_offset());
        Ok(true)
    }

    /// After an answer without anything new.
    fn stalled(&mut self, stop: &Stop) -> Result<(), WitnessError> {
        let Span { topic, partition, end } = self.span;
        if self.stalls == self.limits.stalls {
            return Err(WitnessError::Stalled { topic: topic.to_owned(), partition, offset: self.next, end });
        }
        self.stalls += 1;
        // A batch without records shows no end; what comes behind it does.
        self.portion = Portion::Rest;
        self.patience.sleep(stop).map_err(|seen| self.span.unreadable(self.next, seen))
    }

    /// After no answer.
    fn failed(&mut self, seen: Trouble, stop: &Stop) -> Result<(), WitnessError> {
        let all = self.portion == Portion::Rest;
        // Being too much to be answered in time may be what was wrong with it, too.
        if all && matches!(seen, Trouble::Silent(_) | Trouble::Client(kafka::Error::UnexpectedEOF)) {
            self.portion = Portion::Batches { until: None };
        }
        if all && matches!(seen, Trouble::Client(kafka::Error::UnexpectedEOF)) {
            return Ok(());
        }
        self.patience.after(seen, stop).map_err(|seen| self.span.unreadable(self.next, seen))
    }
}

impl Span<'_> {
    fn unreadable(&self, offset: i64, seen: Trouble) -> WitnessError {
        match seen {
            Trouble::Stopped(Stopped) => WitnessError::Ended,
            seen => WitnessError::Unreadable { topic: self.topic.to_owned(), partition: self.partition, offset, seen },
        }
    }
}

/// How long trouble is borne.
struct Patience {
    ends: Instant,
    backoff: Backoff,
}

impl Patience {
    fn new(time: Duration) -> Self {
        Self { ends: Instant::now() + time, backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE) }
    }

    /// Sleeps before the next attempt. `Err` when there shall be none.
    fn after(&mut self, seen: Trouble, stop: &Stop) -> Result<(), Trouble> {
        if seen.is_final() || Instant::now() >= self.ends {
            return Err(seen);
        }
        self.sleep(stop)
    }

    fn sleep(&mut self, stop: &Stop) -> Result<(), Trouble> {
        Ok(stop.sleep(self.backoff.pause())?)
    }
}

impl Trouble {
    /// Whether another attempt would see the same.
    fn is_final(&self) -> bool {
        match self {
            Self::Stopped(Stopped) => true,
            Self::Client(error) => is_final(error),
            _ => false,
        }
    }
}

fn is_final(error: &kafka::Error) -> bool {
    use kafka::Error;
    match error {
        Error::ArcSelf(error) => is_final(error),
        Error::Kafka(code) | Error::TopicPartitionError { error_code: code, .. } => matches!(
            code,
            KafkaCode::OffsetOutOfRange | KafkaCode::TopicAuthorizationFailed | KafkaCode::ClusterAuthorizationFailed
        ),
        Error::UnsupportedCompression | Error::UnsupportedProtocol | Error::InvalidSnappy(_) => true,
        _ => false,
    }
}

fn record(partition: i32, message: &Message<'_>) -> Record {
    Record { partition, offset: message.offset, key: message.key.to_vec(), value: message.value.to_vec() }
}

/// The part of an answer that is about this partition.
fn data<'a>(answer: &'a Response, span: Span<'_>) -> Result<&'a Data<'a>, Trouble> {
    let topics = answer.topics().iter().filter(|topic| topic.topic() == span.topic);
    let found = topics.flat_map(|topic| topic.partitions()).find(|found| found.partition() == span.partition);
    Ok(found.ok_or(Trouble::Foreign)?.data().map_err(kafka::Error::from)?)
}

/// Offsets of all partitions of a topic, or of none if it does not exist.
fn offsets(client: &mut KafkaClient, topic: &str, which: FetchOffset) -> Result<BTreeMap<i32, i64>, Trouble> {
    // All topics, never this one by name: asking for a topic that is missing would create it.
    client.load_metadata_all()?;
    let Some(partitions) = client.topics().partitions(topic).map(|partitions| partitions.len()) else {
        return Ok(BTreeMap::new());
    };
    let found = client.fetch_offsets(&[topic], which)?.remove(topic).unwrap_or_default();
    let found: BTreeMap<i32, i64> = found.into_iter().map(|at| (at.partition, at.offset)).collect();
    // Those without a leader are left out, and a topic that is being created has none yet.
    if partitions == 0 || found.len() < partitions { Err(Trouble::Leaderless) } else { Ok(found) }
}

#[cfg(test)]
mod tests;
