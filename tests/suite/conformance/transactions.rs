//! Transactions: their markers, where `read_committed` readers stop, and the records that share groups deliver.

use kafka_protocol::messages::BrokerId;

use super::*;
use crate::support::transactions::Transactions;

/// Keys and values of this many records.
fn some(count: usize) -> Vec<(String, String)> {
    vec![("key".to_owned(), "value".to_owned()); count]
}

impl Place {
    fn transactions(&self, id: &str) -> Transactions {
        Transactions::new(self.rig.broker().address(), &format!("{}-{id}", self.topic))
    }

    /// Sends this many records in a transaction, ends it, and waits for its marker. Returns the marker's offset.
    fn transaction(&mut self, producer: &mut Transactions, count: usize, committed: bool) -> i64 {
        assert_eq!(producer.add(&[(&self.topic, 0)]), [0]);
        let (error, first) = producer.send(&self.topic, &some(count));
        assert_eq!((error, producer.end(committed)), (0, 0));
        let marker = first + i64::try_from(count).expect("a few");
        eventually(SOON, "the marker is written", || self.latest(Isolation::Committed) == marker + 1);
        marker
    }

    fn latest(&mut self, isolation: Isolation) -> i64 {
        self.offset_of(isolation, -1)
    }

    fn offset_of(&mut self, isolation: Isolation, time: i64) -> i64 {
        let partition = ListOffsetsPartition::default().with_current_leader_epoch(-1).with_timestamp(time);
        let topic = ListOffsetsTopic::default().with_name(topic_name(&self.topic)).with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
        let answer = self.wire.call(7, &request.with_isolation_level(isolation as i8));
        let found = &answer.topics[0].partitions[0];
        assert_eq!(found.error_code, 0);
        found.offset
    }

    fn read(&mut self, isolation: Isolation, from: i64) -> Read {
        let partition = FetchPartition::default().with_current_leader_epoch(-1).with_fetch_offset(from);
        let partition = partition.with_partition_max_bytes(1 << 20);
        let topic = FetchTopic::default().with_topic(topic_name(&self.topic)).with_partitions(vec![partition]);
        let request = FetchRequest::default().with_replica_id(BrokerId(-1)).with_max_bytes(1 << 20).with_min_bytes(1);
        let request = request.with_session_epoch(-1).with_isolation_level(isolation as i8).with_topics(vec![topic]);
        let answer = self.wire.call(11, &request);
        let data = &answer.responses[0].partitions[0];
        let batches = records::batches(data.records.as_ref().unwrap_or(&Bytes::new()))
            .map(|batch| (batch.base_offset(), batch.last_offset()))
            .collect();
        let aborted = data.aborted_transactions.as_ref();
        Read {
            error: data.error_code,
            ends: (data.last_stable_offset, data.high_watermark),
            batches,
            aborted: aborted.map(|all| all.iter().map(|one| (one.producer_id.0, one.first_offset)).collect()),
            bytes: data.records.clone().unwrap_or_default(),
        }
    }
}

#[derive(Clone, Copy)]
enum Isolation {
    Uncommitted = 0,
    Committed = 1,
}

struct Read {
    error: i16,
    /// The last stable offset and the high watermark.
    ends: (i64, i64),
    /// First and last offset of each batch.
    batches: Vec<(i64, i64)>,
    /// Producer id and first offset of each aborted transaction.
    aborted: Option<Vec<(i64, i64)>>,
    bytes: Bytes,
}

#[test]
fn each_added_partition_gets_a_marker_at_an_offset_of_its_own() {
    let mut place = Place::new("is-markers");
    let mut producer = place.transactions("a");
    assert_eq!(place.transaction(&mut producer, 2, true), 2);
    assert_eq!(place.transaction(&mut producer, 1, false), 4, "sequence numbers continue");
    assert_eq!(producer.add(&[(&place.topic, 0)]), [0]);
    assert_eq!(producer.end(true), 0);
    eventually(SOON, "a transaction without records has a marker", || place.latest(Isolation::Committed) == 6);
    let read = place.read(Isolation::Uncommitted, 0);
    assert_eq!((read.error, read.aborted), (0, None));
    assert_eq!(read.batches, [(0, 1), (2, 2), (3, 3), (4, 4), (5, 5)]);
    let markers = records::batches(&read.bytes).filter(|batch| [2, 4, 5].contains(&batch.base_offset()));
    for (marker, committed) in markers.zip([true, false, true]) {
        let identity = BatchIdentity { producer_id: producer.producer.0, producer_epoch: 0, base_sequence: -1 };
        assert_eq!(marker.identity(), identity);
        let bytes = place.read(Isolation::Uncommitted, marker.base_offset()).bytes;
        assert_eq!(i16::from_be_bytes([bytes[21], bytes[22]]) & 0b110_111, 0b110_000, "transactional, and control");
        assert_eq!(bytes[61..78], [32, 0, 0, 0, 8, 0, 0, 0, u8::from(committed), 12, 0, 0, 0, 0, 0, 0, 0]);
    }
    assert_eq!(records::decode(&read.bytes, 0).records.len(), 3, "markers are not records");
}

#[test]
fn read_committed_stops_at_the_oldest_open_transaction() {
    let mut place = Place::new("is-stable");
    let topic = place.topic.clone();
    let (mut a, mut b) = (place.transactions("a"), place.transactions("b"));
    place.produce(1);
    assert_eq!((a.add(&[(&topic, 0)]), a.send(&topic, &some(2))), (vec![0], (0, 1)));
    assert_eq!(a.add(&[(&topic, 0)]), [0], "added again");
    assert_eq!(a.send(&topic, &some(1)), (0, 3));
    let latest = batch(1, -1, -1, -1, SystemTime::now() + Duration::from_secs(60));
    assert_eq!(produce(&mut place.wire, &topic, latest), (0, 4));
    assert_eq!((b.add(&[(&topic, 0)]), b.send(&topic, &some(1))), (vec![0], (0, 5)));
    for (isolation, end, latest_time) in [(Isolation::Uncommitted, 6, 4), (Isolation::Committed, 1, -1)] {
        assert_eq!((place.latest(isolation), place.offset_of(isolation, -3)), (end, latest_time));
    }
    let read = place.read(Isolation::Uncommitted, 0);
    assert_eq!((read.ends, read.batches.len(), read.aborted), ((1, 6), 5, None));
    let read = place.read(Isolation::Committed, 0);
    assert_eq!((read.ends, &read.batches[..], read.aborted), ((1, 6), &[(0, 0)][..], Some(vec![])));
    for from in [1, 4, 6] {
        let read = place.read(Isolation::Committed, from);
        assert_eq!((read.error, read.ends, read.batches.len()), (0, (1, 6), 0), "from {from}");
    }
    assert_eq!(place.read(Isolation::Committed, 7).error, 1);
    assert_eq!(b.end(true), 0);
    eventually(SOON, "the marker is written", || place.latest(Isolation::Uncommitted) == 7);
    assert_eq!(place.latest(Isolation::Committed), 1, "the older transaction is still open");
    assert_eq!(a.end(false), 0);
    eventually(SOON, "no transaction is open", || place.latest(Isolation::Committed) == 8);
    let all = [(0, 0), (1, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7)];
    for (from, first) in [(0, 0), (2, 1), (4, 3), (7, 6)] {
        let read = place.read(Isolation::Committed, from);
        assert_eq!((read.ends, &read.batches[..]), ((8, 8), &all[first..]), "from {from}");
        assert_eq!(read.aborted, Some(vec![(a.producer.0, 1)]), "from {from}");
    }
    assert_eq!(place.read(Isolation::Committed, 8).aborted, Some(vec![]), "past its marker");
    assert_eq!(place.read(Isolation::Uncommitted, 0).batches, all);
    assert_eq!(place.offset_of(Isolation::Committed, -3), 4);
}

#[test]
fn a_marker_wakes_a_parked_read_committed_fetch() {
    let place = Place::new("is-woken-by-marker");
    let topic = place.topic.clone();
    let mut producer = place.transactions("a");
    assert_eq!((producer.add(&[(&topic, 0)]), producer.send(&topic, &some(1))), (vec![0], (0, 0)));
    let mut other = Wire::connect(place.rig.broker().address());
    std::thread::scope(|scope| {
        let parked = scope.spawn(|| {
            let partition = FetchPartition::default().with_current_leader_epoch(-1).with_partition_max_bytes(1 << 20);
            let topic = FetchTopic::default().with_topic(topic_name(&topic)).with_partitions(vec![partition]);
            let request = FetchRequest::default().with_replica_id(BrokerId(-1)).with_max_bytes(1 << 20);
            let request = request.with_min_bytes(1).with_max_wait_ms(20_000).with_session_epoch(-1);
            other.call(11, &request.with_isolation_level(1).with_topics(vec![topic]))
        });
        be_parked();
        assert_eq!(producer.end(true), 0);
        let begin = Instant::now();
        let answer = parked.join().expect("no panic");
        assert!(!answer.responses[0].partitions[0].records.as_ref().expect("records").is_empty());
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    });
}

#[test]
fn a_new_epoch_aborts_the_open_transaction_and_fences_the_old_epoch() {
    let mut place = Place::new("is-fenced");
    let topic = place.topic.clone();
    let mut producer = place.transactions("a");
    let (id, first) = producer.producer;
    assert_eq!(producer.init(), 0);
    assert_eq!(producer.producer, (id, first + 1), "the same id with a new epoch");
    assert_eq!((producer.add(&[(&topic, 0)]), producer.send(&topic, &some(1))), (vec![0], (0, 0)));
    let old = producer.producer;
    eventually(SOON, "the open transaction is aborted", || producer.init() == 0);
    assert_eq!(producer.producer, (id, first + 3), "one epoch for the abort, one for the new producer");
    let new = producer.producer;
    let read = place.read(Isolation::Committed, 0);
    assert_eq!((read.batches, read.aborted), (vec![(0, 0), (1, 1)], Some(vec![(id, 0)])));
    let marker = records::batches(&place.read(Isolation::Committed, 1).bytes).next().expect("the marker");
    assert_eq!(marker.identity().producer_epoch, first + 2);
    for (other, refusals) in
        [(old, (90, 47, 90)), ((id, first + 9), (90, 47, 90)), ((id + 1_000_000, first), (49, 49, 49))]
    {
        producer.producer = other;
        let said = (producer.add(&[(&topic, 0)])[0], producer.send(&topic, &some(1)).0, producer.end(true));
        assert_eq!(said, refusals, "{other:?}");
        assert_eq!(producer.init_with(60_000, other), 90, "{other:?}");
    }
    producer.producer = new;
    assert_eq!(producer.init_with(60_000, new), 0);
    assert_eq!(producer.producer, (id, first + 4));
    producer.sequence = 5;
    assert_eq!(
        (producer.add(&[(&topic, 0)]), producer.send(&topic, &some(1)).0),
        (vec![0], 45),
        "an epoch starts at sequence number 0"
    );
    producer.sequence = 0;
    assert_eq!(producer.send(&topic, &some(1)), (0, 2));
    producer.sequence = 0;
    assert_eq!(producer.send(&topic, &some(1)), (0, 2), "sent again");
    assert_eq!(producer.end(true), 0);
}

#[test]
fn requests_outside_of_a_transaction_are_refused() {
    let mut place = Place::new("is-no-transaction");
    let topic = place.topic.clone();
    let mut producer = place.transactions("a");
    assert_eq!(producer.end(true), 48, "no transaction was begun");
    assert_eq!(producer.send(&topic, &some(1)).0, 48, "the partition was not added");
    assert_eq!(producer.add(&[(&topic, 0), ("is-nowhere", 0)]), [55, 3], "all partitions are added or none");
    assert_eq!(producer.add(&[(&topic, 7)]), [3]);
    assert_eq!(producer.end(false), 48);
    assert_eq!(producer.add(&[(&topic, 0)]), [0]);
    assert_eq!(producer.send(&topic, &some(1)), (0, 0));
    let (id, epoch) = producer.producer;
    let plain_batch = batch(1, id, epoch, 1, SystemTime::now());
    assert_eq!(produce(&mut place.wire, &topic, plain_batch).0, 48, "a batch without the flag in an open transaction");
    assert_eq!(producer.send_without_id(&topic, &some(1)).0, 53);
    assert_eq!(producer.end(false), 0);
    assert_eq!((producer.end(false), producer.end(true)), (0, 48), "the same end again, and the opposite");
    assert_eq!(producer.send(&topic, &some(1)).0, 48, "the transaction has ended");
    for timeout in [0, -1, 900_001] {
        assert_eq!(producer.init_with(timeout, (-1, -1)), 50, "{timeout} ms");
    }
    let nameless = InitProducerIdRequest::default().with_transactional_id(Some(TransactionalId(text(""))));
    assert_eq!(place.wire.call(4, &nameless.with_transaction_timeout_ms(1000)).error_code, 42);
    let mut marker = BytesMut::from(&plain(1)[..]);
    marker[22] |= 1 << 5;
    let checksum = crc32c::crc32c(&marker[21..]);
    marker[17..21].copy_from_slice(&checksum.to_be_bytes());
    assert_eq!(produce(&mut place.wire, &topic, marker.freeze()).0, 87, "only the broker writes markers");
}

impl Member {
    /// Fetches until this many records came, for at most [`SOON`]; asserts that each is at its first delivery.
    fn offsets(&mut self, count: usize) -> Vec<i64> {
        let mut offsets = Vec::new();
        let deadline = Instant::now() + SOON;
        while offsets.len() < count && Instant::now() < deadline {
            for (first, last, deliveries) in self.fetch(100, 100, &[]).acquired {
                assert_eq!(deliveries, 1);
                offsets.extend(first..=last);
            }
        }
        offsets
    }
}

/// Offsets 0 and 1 are aborted, 2 is the marker, 3 and 4 are committed, 5 is the marker, 7 and 8 are open; 6 and 9 have
/// no transaction.
fn mixed(place: &mut Place) -> Transactions {
    let topic = place.topic.clone();
    let mut producer = place.transactions("a");
    assert_eq!(place.transaction(&mut producer, 2, false), 2);
    assert_eq!(place.transaction(&mut producer, 2, true), 5);
    assert_eq!(place.produce(1), 6);
    assert_eq!((producer.add(&[(&topic, 0)]), producer.send(&topic, &some(2))), (vec![0], (0, 7)));
    assert_eq!(place.produce(1), 9);
    producer
}

#[test]
fn a_read_uncommitted_share_group_gets_aborted_and_open_records_and_markers() {
    let mut place = Place::new("is-share-all");
    let mut producer = mixed(&mut place);
    let group = place.group(&[]);
    let mut member = group.open("m");
    assert_eq!(member.eventually(1), [(0, 0, 1)]);
    assert_eq!(member.offsets(9), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let said: Vec<_> =
        (0..10).map(|offset| (offset, if [2, 5].contains(&offset) { Acknowledgement::Gap } else { Accept })).collect();
    assert_eq!(member.acknowledge(&said[..6]), (0, 0));
    eventually(SOON, "acknowledged gaps are finished", || group.lag() == Some(4));
    assert_eq!(member.acknowledge(&said[6..]), (0, 0));
    eventually(SOON, "all is finished", || group.lag() == Some(0));
    assert_eq!(producer.end(false), 0);
    assert_eq!(member.offsets(1), [10], "the marker of the aborted transaction");
    assert_eq!(group.lag(), Some(1), "a marker counts as lag");
    assert_eq!(member.acknowledge(&[(10, Release)]), (0, 0));
    assert_eq!(member.eventually(1), [(10, 10, 2)], "a released marker is delivered again");
    assert_eq!(member.acknowledge(&[(10, Acknowledgement::Gap)]), (0, 0));
    eventually(SOON, "all is finished", || group.lag() == Some(0));
}

#[test]
fn a_read_committed_share_group_gets_markers_but_no_aborted_records() {
    let mut place = Place::new("is-share-committed");
    let mut producer = mixed(&mut place);
    let group = place.group(&[("share.isolation.level", "read_committed")]);
    let mut member = group.open("m");
    assert_eq!(member.eventually(1), [(2, 2, 1)], "the marker of the aborted transaction");
    assert_eq!(member.offsets(4), [3, 4, 5, 6], "up to the open transaction");
    assert_eq!(member.fetch(100, 100, &[]).acquired, []);
    assert_eq!(member.acknowledge(&[(2, Acknowledgement::Gap), (3, Accept), (4, Accept)]), (0, 0));
    eventually(SOON, "aborted records are finished, open ones are not", || group.lag() == Some(5));
    assert_eq!(member.acknowledge(&[(5, Acknowledgement::Gap), (6, Accept)]), (0, 0));
    eventually(SOON, "the open transaction and the record after it are left", || group.lag() == Some(3));
    assert_eq!(producer.end(false), 0);
    assert_eq!(member.offsets(2), [9, 10], "neither 7 nor 8");
    assert_eq!(member.acknowledge(&[(9, Accept), (10, Acknowledgement::Gap)]), (0, 0));
    eventually(SOON, "all is finished", || group.lag() == Some(0));
}
