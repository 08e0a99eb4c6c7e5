//! The witness: reads the records of topics with a client that shares no code with the fleet's own.
//!
//! The client is the crate `kafkang`. It reads correctly but handles few failures:
//! - It rejects a response that ends in a cut batch; brokers cut at `fetch.max.bytes` (55 MiB by default). The witness
//!   fetches the rest of a partition at once, or batch by batch after that fails: a first batch is complete (KIP-74).
//! - It never reconnects. The witness makes a new client after each failure.
//! - It waits 120 s for a response. The witness runs it on a thread, and abandons the thread after [`Limits::answer`].
//! - It leaves out partitions without a leader. The witness counts the partitions.
//!
//! The client does not distinguish a null key or value from an empty one, or control records from records, and drops
//! headers. It checks the checksum of each batch; of compressions it knows only Snappy. Called by the audit.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded, select};
use kafka::client::fetch::{Data, Message, Response};
use kafka::client::{FetchOffset, FetchPartition, KafkaClient};
use kafka::error::KafkaCode;

use program::backoff::Backoff;
use program::stop::{Stop, Stopped};
use program::threads::{self, Thread};

/// Bytes to fetch when the rest is asked for: above the brokers' default limit. Also the maximum held in memory.
const REST: i32 = 64 << 20;
/// Bytes to fetch for a single batch, which comes complete at any size.
const ONE_BATCH: i32 = 1;
/// How long the broker may wait for records.
const EMPTY_WAIT: Duration = Duration::from_millis(100);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long `drop` waits for the threads. A thread that waits for a socket ends with the socket or the process.
const FAREWELL: Duration = Duration::from_secs(1);

/// A record of a topic. A null key or value is empty here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// Why a reading ended early. Records that it passed on until then are valid.
#[derive(Debug, thiserror::Error)]
pub(super) enum WitnessError {
    /// The start or end offsets of a topic cannot be read.
    #[error("{topic}: no offsets: {seen}")]
    Offsets { topic: String, seen: Trouble },
    /// A partition cannot be read further.
    #[error("{topic}-{partition} cannot be read from {offset} on: {seen}")]
    Unreadable { topic: String, partition: i32, offset: i64, seen: Trouble },
    /// The broker responds without records before the end.
    #[error("{topic}-{partition} returns no records from {offset} on; expected records up to {end}")]
    Stalled { topic: String, partition: i32, offset: i64, end: i64 },
    /// `stop` was triggered.
    #[error("stopped")]
    Ended,
}

/// What failed in a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Client(#[from] kafka::Error),
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("the client failed on the response")]
    Died,
    #[error("a partition has no leader")]
    Leaderless,
    #[error("there is no such partition")]
    Missing,
    #[error("the response is about another partition")]
    Foreign,
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Limits of the waits.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// For a response.
    answer: Duration,
    /// For a broker that makes no progress, since its last progress.
    trouble: Duration,
    /// Successive responses without records.
    stalls: u32,
}

const LIMITS: Limits = Limits { answer: Duration::from_secs(10), trouble: Duration::from_secs(30), stalls: 10 };

/// Reads topics.
pub(super) struct Witness {
    bootstrap: Vec<String>,
    limits: Limits,
    asker: Option<Asker>,
    /// Abandoned threads; they end when their sockets do.
    retired: Vec<Thread>,
}

/// A partition to read up to `end`, exclusive.
#[derive(Clone, Copy, Debug)]
struct Span<'a> {
    topic: &'a str,
    partition: i32,
    end: i64,
}

impl Witness {
    /// Connects at the first question. `bootstrap`: brokers as `host:port`.
    pub(super) fn new(bootstrap: Vec<String>) -> Self {
        Self { bootstrap, limits: LIMITS, asker: None, retired: Vec::new() }
    }

    /// The end offset of each partition. Empty if the topic does not exist; the request does not create it.
    ///
    /// # Errors
    /// [`WitnessError::Offsets`], after 30 s of failures and one last request.
    pub(super) fn ends(&mut self, topic: &str) -> Result<BTreeMap<i32, i64>, WitnessError> {
        self.offsets(topic, FetchOffset::Latest, &Stop::new())
    }

    /// Reads each partition of `to` up to that offset, exclusive, from its offset in `from` or else from its start.
    /// Passes every record once to `each`, in log order, partition after partition. `stop` ends the reading at any
    /// time.
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
        // A late response to a former call could be about later offsets.
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
            let answer = self.fetch(span, walk.next, if walk.whole { REST } else { ONE_BATCH }, stop);
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

    fn fetch(&mut self, span: Span<'_>, from: i64, bytes: i32, stop: &Stop) -> Result<Response, Trouble> {
        let (topic, partition) = (span.topic.to_owned(), span.partition);
        self.ask(stop, move |client| {
            if client.topics().is_empty() {
                client.load_metadata_all()?;
            }
            let wanted = FetchPartition::new(&topic, partition, from).with_max_bytes(bytes);
            let answers = client.fetch_messages([&wanted])?;
            // The client returns no response if it knows no leader.
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
            // A client keeps the metadata of its start, so each try has a new client.
            self.retire();
            let name = topic.to_owned();
            match self.ask(stop, move |client| offsets(client, &name, which)) {
                // A failed response has no topics either, so only a second empty response counts.
                Ok(offsets) if offsets.is_empty() && !missed => {
                    missed = true;
                    patience.sleep(stop).map_err(fail)?;
                }
                Ok(offsets) => return Ok(offsets),
                Err(seen) => patience.after(seen, stop).map_err(fail)?,
            }
        }
    }

    /// Asks the client on its thread. After an error the caller must retire the client.
    fn ask<T: Send + 'static>(
        &mut self,
        stop: &Stop,
        question: impl FnOnce(&mut KafkaClient) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T, Trouble> {
        let asker = self.asker.get_or_insert_with(|| Asker::start(self.bootstrap.clone()));
        let (reply, answer) = bounded(1);
        let question: Question = Box::new(move |client| {
            // The receiver of a late reply is gone.
            let _ = reply.send(question(client));
        });
        asker.questions.send(question).map_err(|_| Trouble::Died)?;
        select! {
            recv(answer) -> answer => answer.unwrap_or(Err(Trouble::Died)),
            recv(stop.triggered()) -> _ => Err(Trouble::Stopped(Stopped)),
            default(self.limits.answer) => Err(Trouble::Silent(self.limits.answer)),
        }
    }

    /// Abandons the client. The next client begins with another broker, because a silent broker would be asked first
    /// again.
    fn retire(&mut self) {
        let Some(Asker { questions, thread }) = self.asker.take() else { return };
        drop(questions);
        self.retired.push(thread);
        let (ended, waiting): (Vec<_>, Vec<_>) = self.retired.drain(..).partition(Thread::is_finished);
        self.retired = waiting;
        // Their failures were returned as replies.
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

/// A client with its thread.
struct Asker {
    /// One question at a time, so a send never blocks. Dropping the sender ends the thread after its current question.
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

/// The reading of a partition.
struct Walk<'a> {
    span: Span<'a>,
    /// The next offset to pass to `each`.
    next: i64,
    /// Requests ask for the rest of the partition, not for one batch.
    whole: bool,
    patience: Patience,
    stalls: u32,
    limits: Limits,
}

impl<'a> Walk<'a> {
    fn new(span: Span<'a>, start: i64, limits: Limits) -> Self {
        Self { span, next: start, whole: true, patience: Patience::new(limits.trouble), stalls: 0, limits }
    }

    /// Passes the new records of a response to `each`. Returns whether there was progress.
    fn take(&mut self, answer: &Response, each: &mut dyn FnMut(Record)) -> Result<bool, Trouble> {
        let data = data(answer, self.span)?;
        let before = self.next;
        for message in data.messages() {
            if message.offset >= self.span.end {
                // No record is left before the end.
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
        Ok(true)
    }

    /// Waits after a response without progress.
    fn stalled(&mut self, stop: &Stop) -> Result<(), WitnessError> {
        let Span { topic, partition, end } = self.span;
        if self.stalls == self.limits.stalls {
            return Err(WitnessError::Stalled { topic: topic.to_owned(), partition, offset: self.next, end });
        }
        self.stalls += 1;
        // A batch without records does not show where it ends; the rest of the log does.
        self.whole = true;
        self.patience.sleep(stop).map_err(|seen| self.span.unreadable(self.next, seen))
    }

    /// Waits after a failed request.
    fn failed(&mut self, seen: Trouble, stop: &Stop) -> Result<(), WitnessError> {
        let cut = matches!(seen, Trouble::Client(kafka::Error::UnexpectedEOF));
        // The rest may be too much for a response, or for a response in time.
        if cut || matches!(seen, Trouble::Silent(_)) {
            let whole = std::mem::replace(&mut self.whole, false);
            if whole && cut {
                return Ok(());
            }
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

/// How long failures are retried.
struct Patience {
    ends: Instant,
    backoff: Backoff,
}

impl Patience {
    fn new(time: Duration) -> Self {
        Self { ends: Instant::now() + time, backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE) }
    }

    /// Sleeps before the next attempt; `Err` if there is none.
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
    /// Whether another attempt would fail in the same way.
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

/// The part of a response about this partition.
fn data<'a>(answer: &'a Response, span: Span<'_>) -> Result<&'a Data<'a>, Trouble> {
    let topics = answer.topics().iter().filter(|topic| topic.topic() == span.topic);
    let found = topics.flat_map(|topic| topic.partitions()).find(|found| found.partition() == span.partition);
    Ok(found.ok_or(Trouble::Foreign)?.data().map_err(kafka::Error::from)?)
}

/// Offsets of all partitions of a topic; empty if the topic does not exist.
fn offsets(client: &mut KafkaClient, topic: &str, which: FetchOffset) -> Result<BTreeMap<i32, i64>, Trouble> {
    // Metadata of all topics, because a request for a missing topic by name would create it.
    client.load_metadata_all()?;
    let Some(partitions) = client.topics().partitions(topic).map(|partitions| partitions.len()) else {
        return Ok(BTreeMap::new());
    };
    let found = client.fetch_offsets(&[topic], which)?.remove(topic).unwrap_or_default();
    let found: BTreeMap<i32, i64> = found.into_iter().map(|at| (at.partition, at.offset)).collect();
    // Partitions without a leader are left out, and a topic that is being created has no partitions yet.
    if partitions == 0 || found.len() < partitions { Err(Trouble::Leaderless) } else { Ok(found) }
}

#[cfg(test)]
mod tests;
