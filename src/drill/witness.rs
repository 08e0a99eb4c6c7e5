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

use crate::backoff::Backoff;
use crate::stop::{Stop, Stopped};
use crate::threads::{self, Thread};

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
mod tests {
    use std::borrow::Cow;
    use std::net::SocketAddr;
    use std::time::SystemTime;

    use bytes::Bytes;
    use kafka::client::{Compression, ProduceMessage, RequiredAcks};
    use kafka_protocol::messages::fetch_request::{FetchPartition as RawPartition, FetchTopic};
    use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
    use kafka_protocol::messages::{BrokerId, FetchRequest, ProduceRequest, TopicName};
    use kafka_protocol::protocol::StrBytes;

    use super::*;
    use crate::devbroker::{Action, Broker, Fault, Kind, Settings};
    use crate::kafka::admin::{self, TopicSpec};
    use crate::kafka::records::{self, BatchIdentity, RecordContent};
    use crate::kafka::{ClientOptions, Cluster, ErrorCode};

    const NODE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
    /// Kafka's default of `fetch.max.bytes`.
    const CAP: usize = 55 << 20;
    const LONG: Duration = Duration::from_secs(60);

    /// A topic on the embedded broker, or where `WITNESS_BOOTSTRAP` says.
    struct Place {
        _broker: Option<Broker>,
        address: String,
        cluster: Cluster,
        topic: String,
    }

    impl Place {
        fn new(partitions: i32) -> Self {
            if let Ok(address) = std::env::var("WITNESS_BOOTSTRAP") {
                return Self::at(None, address, partitions);
            }
            let broker = Broker::start(Settings::new(vec![NODE])).expect("a free port");
            let address = broker.address().to_string();
            Self::at(Some(broker), address, partitions)
        }

        fn at(broker: Option<Broker>, address: String, partitions: i32) -> Self {
            let bootstrap = vec![address.parse().expect("host:port")];
            let cluster = Cluster::new(ClientOptions::new(bootstrap, "writer"));
            let topic = format!("witness-{}", uuid::Uuid::new_v4().simple());
            let spec = TopicSpec { name: topic.clone(), partitions, replication_factor: Some(1), configs: Vec::new() };
            admin::ensure_topic(&cluster, &spec).expect("the topic is created");
            Self { _broker: broker, address, cluster, topic }
        }

        /// One batch of records without keys, each of this value.
        fn write(&self, partition: i32, values: &[Bytes]) {
            let headers = [(Cow::Borrowed("name"), Some(Bytes::from_static(b"value"))), (Cow::Borrowed("none"), None)];
            let contents =
                values.iter().map(|value| RecordContent { key: None, value: Some(value), headers: &headers });
            let identity = BatchIdentity { producer_id: -1, producer_epoch: -1, base_sequence: -1 };
            let batch = records::encode(contents, identity, SystemTime::now()).expect("small");
            let data = PartitionProduceData::default().with_index(partition).with_records(Some(batch));
            let topic = TopicProduceData::default().with_name(self.name()).with_partition_data(vec![data]);
            let request = ProduceRequest::default().with_acks(-1).with_timeout_ms(5000).with_topic_data(vec![topic]);
            let leader = self.cluster.leader(&self.topic, partition).expect("there is one");
            let mut connection = self.cluster.connect(leader).expect("it takes a connection");
            let answer = connection.call(7, &request, LONG).expect("it answers");
            assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
        }

        /// Bytes of records in the broker's answer to one who asks for everything.
        fn bytes_of_all(&self) -> usize {
            let wanted = RawPartition::default().with_partition_max_bytes(i32::MAX);
            let topic = FetchTopic::default().with_topic(self.name()).with_partitions(vec![wanted]);
            let request = FetchRequest::default().with_replica_id(BrokerId(-1)).with_max_bytes(i32::MAX);
            let answer = self.cluster.ask(11, &request.with_topics(vec![topic])).expect("the broker answers");
            answer.responses[0].partitions[0].records.as_ref().map_or(0, Bytes::len)
        }

        fn name(&self) -> TopicName {
            TopicName(StrBytes::from_string(self.topic.clone()))
        }

        fn witness(&self) -> Witness {
            Witness::new(vec![self.address.clone()])
        }

        /// Everything from the starts to the ends, as (partition, offset, length of the value).
        fn read(&self) -> Vec<(i32, i64, usize)> {
            let mut witness = self.witness();
            let to = witness.ends(&self.topic).expect("the ends are told");
            let mut read = Vec::new();
            let mut each = |record: Record| read.push((record.partition, record.offset, record.value.len()));
            witness.read(&self.topic, &BTreeMap::new(), &to, &Stop::new(), &mut each).expect("it can be read");
            read
        }

        fn offsets_within(&self, from: i64, to: i64) -> Result<Vec<i64>, WitnessError> {
            let (from, to) = (BTreeMap::from([(0, from)]), BTreeMap::from([(0, to)]));
            let mut read = Vec::new();
            let mut witness = self.witness();
            witness.limits.stalls = 2;
            witness.read(&self.topic, &from, &to, &Stop::new(), &mut |record| read.push(record.offset))?;
            Ok(read)
        }
    }

    /// Values of 10 and so many bytes.
    fn values(count: usize) -> Vec<Bytes> {
        (0..count).map(|index| Bytes::from(vec![b'v'; 10 + index])).collect()
    }

    #[test]
    fn more_than_an_answer_holds_is_read_exactly() {
        let place = Place::new(1);
        let (half, little) = (Bytes::from(vec![b'h'; 524_000]), Bytes::from_static(b"little"));
        let batches = 64;
        for _ in 0..batches {
            place.write(0, &[half.clone(), little.clone(), half.clone()]);
        }
        assert_eq!(place.bytes_of_all(), CAP, "the answer is cut in the middle of a batch");
        let read = place.read();
        let lengths = [half.len(), little.len(), half.len()].into_iter().cycle();
        let written: Vec<_> = (0..batches * 3).zip(lengths).map(|(offset, length)| (0, offset, length)).collect();
        assert!(read == written, "{} of {} records", read.len(), written.len());
    }

    #[test]
    fn partitions_are_read_from_and_to_where_they_are_asked_for() {
        let place = Place::new(3);
        place.write(0, &values(4));
        place.write(0, &values(3));
        place.write(2, &values(2));
        let all = [(0, 0, 10), (0, 1, 11), (0, 2, 12), (0, 3, 13), (0, 4, 10), (0, 5, 11), (0, 6, 12)];
        assert_eq!(place.read(), [&all[..], &[(2, 0, 10), (2, 1, 11)]].concat());
        assert_eq!(place.offsets_within(1, 3).expect("inside of one batch"), [1, 2]);
        assert_eq!(place.offsets_within(3, 6).expect("over two"), [3, 4, 5]);
        assert_eq!(place.offsets_within(7, 7).expect("nothing"), [0; 0]);
        assert_eq!(place.offsets_within(5, 2).expect("less than nothing"), [0; 0]);
        let mut witness = place.witness();
        assert_eq!(witness.ends(&place.topic).expect("told"), BTreeMap::from([(0, 7), (1, 0), (2, 2)]));
    }

    #[test]
    fn a_topic_that_is_missing_has_no_offsets_and_is_not_created() {
        let place = Place::new(1);
        for _ in 0..2 {
            assert_eq!(place.witness().ends("nowhere").expect("told"), BTreeMap::new());
        }
        let to = BTreeMap::from([(0, 1)]);
        let missing = place.witness().read("nowhere", &BTreeMap::new(), &to, &Stop::new(), &mut |_| {});
        let missing = missing.expect_err("there is nothing to be read").to_string();
        assert_eq!(missing, "nowhere-0 cannot be read from 0 on: there is no such partition");
    }

    #[test]
    fn keys_values_and_compressed_batches_come_as_they_were_written() {
        let place = Place::new(1);
        let mut client = KafkaClient::new(vec![place.address.clone()]);
        client.load_metadata_all().expect("the broker answers");
        let (some, none) = (|bytes: &'static [u8]| Some(bytes), None::<&[u8]>);
        let pairs = [(some(b"k"), some(b"v")), (none, some(b"w")), (some(b"l"), none)];
        for compression in [Compression::NONE, Compression::SNAPPY] {
            client.set_compression(compression);
            let messages = pairs.map(|(key, value)| ProduceMessage::new(&place.topic, 0, key, value));
            client.produce_messages(RequiredAcks::All, LONG, messages).expect("taken");
        }
        let mut read = Vec::new();
        let to = BTreeMap::from([(0, 6)]);
        let mut each = |record: Record| read.push((record.key, record.value));
        place.witness().read(&place.topic, &BTreeMap::new(), &to, &Stop::new(), &mut each).expect("read");
        let written = pairs.map(|(key, value)| (key.unwrap_or_default().to_vec(), value.unwrap_or_default().to_vec()));
        assert_eq!(read, [written.clone(), written].concat());
    }

    #[test]
    fn what_is_not_there_is_told_with_its_place() {
        let place = Place::new(1);
        place.write(0, &values(3));
        let stalled = place.offsets_within(1, 5).expect_err("the log ends at 3").to_string();
        assert_eq!(stalled, format!("{}-0 gives nothing from 3 on, but is to be read to its end at 5", place.topic));
        let beyond = place.offsets_within(4, 5).expect_err("the log ends at 3").to_string();
        assert!(beyond.starts_with(&format!("{}-0 cannot be read from 4 on: ", place.topic)), "{beyond}");
        assert!(beyond.contains("OffsetOutOfRange"), "{beyond}");
    }

    #[test]
    fn a_stop_ends_it() {
        let place = Place::new(1);
        place.write(0, &values(3));
        let (stop, to) = (Stop::new(), BTreeMap::from([(0, 3)]));
        stop.trigger();
        let ended = place.witness().read(&place.topic, &to, &to, &stop, &mut |_| {});
        assert!(ended.is_ok(), "nothing was to be read: {ended:?}");
        let ended = place.witness().read(&place.topic, &BTreeMap::from([(0, 0)]), &to, &stop, &mut |_| {});
        assert!(matches!(ended, Err(WitnessError::Ended)), "{ended:?}");
    }

    /// An embedded broker, even if there is another: one that can be told to fail. Two nodes.
    fn faulty() -> (Place, Broker) {
        let broker = Broker::start(Settings::new(vec![NODE, NODE])).expect("free ports");
        let place = Place::at(None, broker.address().to_string(), 2);
        for _ in 0..10 {
            place.write(0, &values(2));
            place.write(1, &values(2));
        }
        (place, broker)
    }

    #[test]
    fn trouble_that_passes_changes_nothing() {
        let (place, broker) = faulty();
        let whole = place.read();
        assert_eq!(whole.len(), 40);
        let refused = Action::Refuse(ErrorCode::NOT_LEADER_OR_FOLLOWER);
        let pause = Duration::from_millis(300);
        for action in [
            refused,
            Action::CutBefore,
            Action::CutAfter,
            Action::AnswerTwice,
            Action::MoveLeaders,
            Action::Restart(pause),
        ] {
            for kind in [Kind::Metadata, Kind::ListOffsets, Kind::Fetch] {
                let bites = broker.inject(Fault::new(action).at(kind).of_client("lastcall-witness"));
                assert_eq!(place.read(), whole, "{action:?} at {kind:?}");
                assert_eq!(bites.count(), 1, "{action:?} at {kind:?}");
            }
        }
    }

    #[test]
    fn a_broker_that_stands_still_is_waited_for_and_given_up() {
        let (place, broker) = faulty();
        let mut witness = place.witness();
        let to = witness.ends(&place.topic).expect("told");
        broker.nodes().freeze();
        witness.limits = Limits { answer: Duration::from_millis(200), trouble: Duration::from_secs(1), stalls: 2 };
        let started = Instant::now();
        let silent = witness.read(&place.topic, &to, &BTreeMap::from([(0, 99)]), &Stop::new(), &mut |_| {});
        let silent = silent.expect_err("nobody answers").to_string();
        assert_eq!(silent, format!("{}-0 cannot be read from 20 on: no answer within 200ms", place.topic));
        let ends = witness.ends(&place.topic).expect_err("nobody answers").to_string();
        assert_eq!(ends, format!("{}: no offsets: no answer within 200ms", place.topic));
        assert!(started.elapsed() < Duration::from_secs(10));
        broker.nodes().thaw();
        assert_eq!(place.witness().ends(&place.topic).expect("it answers again"), to);
    }
}
