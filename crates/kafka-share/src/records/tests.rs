use kafka_protocol::records::RecordBatchDecoder;
use proptest::prelude::*;

use super::*;

const NO_PRODUCER: BatchIdentity = BatchIdentity { producer_id: -1, producer_epoch: -1, base_sequence: -1 };

/// Makes a batch of the offsets `base..base + values.len()`.
fn batch(base: i64, values: &[&'static str]) -> Vec<u8> {
    let values: Vec<Bytes> = values.iter().map(|value| Bytes::from_static(value.as_bytes())).collect();
    let key = Bytes::from_static(b"key");
    let header = [(Cow::Borrowed("kind"), Some(Bytes::from_static(b"result")))];
    let contents = values.iter().map(|value| RecordContent { key: Some(&key), value: Some(value), headers: &header });
    let now = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    let mut bytes = encode(contents, NO_PRODUCER, now).expect("encodable").to_vec();
    // The checksum does not cover the base offset, which brokers set.
    bytes[..8].copy_from_slice(&base.to_be_bytes());
    bytes
}

fn seal(bytes: &mut [u8]) {
    let checksum = crc32c::crc32c(&bytes[CHECKED_FROM..]);
    bytes[17..21].copy_from_slice(&checksum.to_be_bytes());
}

fn values(decoded: &Decoded) -> Vec<(i64, &str)> {
    let pairs = decoded.records.iter().map(|record| (record.offset, record.value.as_deref().expect("a value")));
    pairs.map(|(offset, value)| (offset, std::str::from_utf8(value).expect("text"))).collect()
}

#[test]
fn one_record_is_encoded_as_the_known_bytes() {
    let bytes = batch(7, &["v"]);
    let body = b"\x2c\x00\x00\x00\x06key\x02v\x02\x08kind\x0cresult";
    assert_eq!(&bytes[HEADER..], body);
    assert_eq!(&bytes[..8], &7_i64.to_be_bytes());
    assert_eq!(bytes[16], 2, "message format");
    assert_eq!(usize::try_from(i32::from_be_bytes(bytes[8..12].try_into().expect("four bytes"))), Ok(bytes.len() - 12));
}

#[test]
fn cut_last_batch_is_left_for_the_next_fetch() {
    let mut bytes = batch(0, &["a", "b"]);
    let whole = bytes.len();
    bytes.extend(batch(2, &["c"]));
    for cut in whole..bytes.len() {
        let decoded = decode(&Bytes::copy_from_slice(&bytes[..cut]), 0);
        assert_eq!(values(&decoded), [(0, "a"), (1, "b")], "cut at {cut}");
        assert_eq!(decoded.next_offset, 2);
    }
    assert_eq!(decode(&Bytes::from(bytes), 0).next_offset, 3);
}

#[test]
fn records_below_the_wanted_offset_are_dropped() {
    let decoded = decode(&Bytes::from(batch(10, &["a", "b", "c"])), 12);
    assert_eq!(values(&decoded), [(12, "c")]);
    assert_eq!(decoded.next_offset, 13);
    assert_eq!(decode(&Bytes::new(), 12).next_offset, 12);
}

#[test]
fn log_append_time_replaces_the_senders_time() {
    let mut bytes = batch(0, &["a"]);
    assert_eq!(decode(&Bytes::copy_from_slice(&bytes), 0).records[0].timestamp, time(1_700_000_000_123));
    bytes[22] |= LOG_APPEND_TIME as u8;
    bytes[35..43].copy_from_slice(&1_800_000_000_456_i64.to_be_bytes());
    seal(&mut bytes);
    assert_eq!(decode(&Bytes::from(bytes), 0).records[0].timestamp, time(1_800_000_000_456));
}

#[test]
fn unreadable_batches_are_reported_and_skipped() {
    let mut bytes = batch(0, &["a", "b"]);
    let faulty = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut first = bytes.clone();
        change(&mut first);
        first.extend(batch(2, &["c"]));
        decode(&Bytes::from(first), 1)
    };
    let compressed = faulty(&|batch| {
        batch[22] |= 5;
        seal(batch);
    });
    let flipped = faulty(&|batch| *batch.last_mut().expect("not empty") ^= 1);
    let malformed = faulty(&|batch| {
        batch[HEADER] = 0x7f;
        seal(batch);
    });
    for (decoded, reason, doubtful) in [
        (compressed, "compressed with unknown method 5", &[][..]),
        (flipped, "checksum does not match", &[(1, "b")]),
        (malformed, "malformed record", &[]),
    ] {
        assert_eq!(values(&decoded), [(2, "c")], "{reason}");
        let [unreadable] = &decoded.unreadable[..] else { panic!("{decoded:?}") };
        assert_eq!((unreadable.first, unreadable.last, unreadable.reason.as_str()), (1, 1, reason));
        let of_damaged = Decoded { records: unreadable.doubtful.clone(), ..Decoded::default() };
        assert_eq!(values(&of_damaged), doubtful, "{reason}");
        assert_eq!((decoded.next_offset, decoded.is_damaged), (3, reason == "checksum does not match"), "{reason}");
    }
    // Flip the bit of a control batch, and the sign of the last offset.
    for (at, bit) in [(22, CONTROL as u8), (23, 0x80)] {
        let hidden = faulty(&|batch| batch[at] |= bit);
        assert_eq!((values(&hidden), hidden.is_damaged), (vec![(2, "c")], true), "byte {at}");
    }
    bytes[22] |= CONTROL as u8;
    seal(&mut bytes);
    let control = decode(&Bytes::from(bytes), 0);
    assert_eq!((control.records.len(), control.unreadable.len(), control.next_offset), (0, 0, 2));
}

/// Compresses the records of a batch.
fn packed(mut batch: Vec<u8>, codec: Codec) -> Vec<u8> {
    let records = codec.pack(&batch.split_off(HEADER)).expect("packed");
    batch.extend(records);
    batch[22] |= codec.bits() as u8;
    let length = i32::try_from(batch.len() - LENGTH_END).expect("short");
    batch[8..LENGTH_END].copy_from_slice(&length.to_be_bytes());
    seal(&mut batch);
    batch
}

#[test]
fn compressed_batches_are_decoded() {
    for codec in Codec::ALL {
        let mut bytes = packed(batch(0, &["a", "b"]), codec);
        bytes.extend(batch(2, &["c"]));
        let decoded = decode(&Bytes::from(bytes), 1);
        assert_eq!((values(&decoded), &decoded.unreadable[..]), (vec![(1, "b"), (2, "c")], &[][..]), "{codec:?}");
    }
}

#[test]
fn compressed_batch_that_cannot_be_unpacked_is_reported_and_skipped() {
    for codec in Codec::ALL {
        let mut bytes = packed(batch(0, &["a", "b"]), codec);
        // No codec's magic.
        bytes[HEADER..HEADER + 4].fill(0xff);
        seal(&mut bytes);
        bytes.extend(batch(2, &["c"]));
        let decoded = decode(&Bytes::from(bytes), 0);
        let unreadable = &decoded.unreadable[0];
        assert_eq!((values(&decoded), unreadable.first, unreadable.last), (vec![(2, "c")], 0, 1), "{codec:?}");
        assert!(
            unreadable.reason.starts_with(&format!("compressed with {}: malformed", codec.name())),
            "{unreadable:?}"
        );
    }
}

#[test]
fn unpacking_of_one_response_is_limited() {
    let large = |base, length| {
        let value = Bytes::from(vec![0; length]);
        let content = RecordContent { key: None, value: Some(&value), headers: &[] };
        let mut bytes = encode([content].into_iter(), NO_PRODUCER, UNIX_EPOCH).expect("encodable").to_vec();
        bytes[..8].copy_from_slice(&i64::to_be_bytes(base));
        packed(bytes, Codec::Gzip)
    };
    let bomb = decode(&Bytes::from(large(0, MOST_UNPACKED)), 0);
    assert_eq!((bomb.records.len(), bomb.next_offset), (0, 1));
    assert_eq!(
        bomb.unreadable[0].reason,
        format!("compressed with gzip: longer than {MOST_UNPACKED} bytes when unpacked")
    );
    let half = MOST_UNPACKED / 2;
    let answer = [large(0, half), large(1, half), large(2, half), batch(3, &["plain"])].concat();
    let decoded = decode(&Bytes::from(answer.clone()), 0);
    assert_eq!((decoded.records.len(), decoded.next_offset), (2, 2), "the rest is left for the next fetch");
    let rest = decode(&Bytes::from(answer), 2);
    assert_eq!((rest.records.len(), rest.next_offset), (2, 4));
}

#[test]
fn header_that_is_not_utf8_loses_no_record() {
    let mut bytes = batch(0, &["a"]);
    let name = bytes.windows(4).position(|window| window == b"kind").expect("the header");
    bytes[name] = 0xff;
    seal(&mut bytes);
    let decoded = decode(&Bytes::from(bytes), 0);
    assert_eq!(decoded.records[0].headers[0].0, "\u{fffd}ind");
    assert_eq!(values(&decoded), [(0, "a")]);
}

#[test]
fn headers_with_the_same_name_are_all_kept() {
    let header = |value| (Cow::Borrowed("name"), value);
    let headers = [header(Some(Bytes::from_static(b"1"))), header(None), header(Some(Bytes::from_static(b"2")))];
    let content = RecordContent { key: None, value: None, headers: &headers };
    let decoded = decode(&encode([content].into_iter(), NO_PRODUCER, UNIX_EPOCH).expect("encodable"), 0);
    let values: Vec<Option<&[u8]>> = decoded.records[0].headers.iter().map(|(_, value)| value.as_deref()).collect();
    assert_eq!(values, [Some(&b"1"[..]), None, Some(&b"2"[..])]);
}

#[test]
fn batch_carries_its_producers_identity() {
    let identity = BatchIdentity { producer_id: 4000, producer_epoch: 3, base_sequence: i32::MAX - 1 };
    let value = Bytes::from_static(b"v");
    let content = RecordContent { key: None, value: Some(&value), headers: &[] };
    // The sequence numbers wrap inside the batch, which must stay one batch.
    let bytes = encode([content; 4].into_iter(), identity, UNIX_EPOCH).expect("encodable");
    let batches: Vec<Batch> = batches(&bytes).collect();
    assert_eq!(batches.len(), 1);
    assert_eq!((batches[0].identity(), batches[0].last_offset()), (identity, 3));
}

#[test]
fn aborted_transaction_ends_at_its_producers_marker() {
    let value = Bytes::from_static(b"v");
    let content = RecordContent { key: None, value: Some(&value), headers: &[] };
    let mut log = BytesMut::new();
    for (offset, producer_id, attributes) in [
        (0_i64, 1, TRANSACTIONAL),
        (2, 2, TRANSACTIONAL),
        (4, 1, TRANSACTIONAL | CONTROL),
        (6, 1, TRANSACTIONAL),
        (8, -1, 0),
        (10, 2, TRANSACTIONAL),
        (12, 2, TRANSACTIONAL | CONTROL),
        (14, 2, TRANSACTIONAL),
    ] {
        let identity = BatchIdentity { producer_id, producer_epoch: 0, base_sequence: 0 };
        let mut batch = encode([content; 2].into_iter(), identity, UNIX_EPOCH).expect("encodable").to_vec();
        batch[..8].copy_from_slice(&offset.to_be_bytes());
        batch[21..23].copy_from_slice(&attributes.to_be_bytes());
        log.extend_from_slice(&batch);
    }
    let log = log.freeze();
    assert!(aborted_offsets(&log, &[]).is_empty());
    assert_eq!(aborted_offsets(&log, &[(1, 0)]), [0..=1], "the next one of this producer is committed");
    assert_eq!(aborted_offsets(&log, &[(2, 2)]), [2..=3, 10..=11]);
    assert_eq!(aborted_offsets(&log, &[(1, 0), (1, 6)]), [0..=1, 6..=7]);
    assert_eq!(aborted_offsets(&log, &[(2, -5)]), [2..=3, 10..=11], "the transaction began before the fetched batches");
}

proptest! {
    #[test]
    fn codec_crate_and_decoder_read_encoded_batches(
        records in prop::collection::vec(
            (prop::option::of(any::<Vec<u8>>()), prop::option::of(any::<Vec<u8>>())),
            1..200,
        ),
        header in prop::option::of(any::<Vec<u8>>()),
        base_sequence in 0..=i32::MAX,
    ) {
        let records: Vec<(Option<Bytes>, Option<Bytes>)> =
            records.into_iter().map(|(key, value)| (key.map(Bytes::from), value.map(Bytes::from))).collect();
        let headers = [(Cow::Borrowed("name"), header.map(Bytes::from))];
        let contents = records.iter().map(|(key, value)| {
            RecordContent { key: key.as_ref(), value: value.as_ref(), headers: &headers }
        });
        let identity = BatchIdentity { producer_id: 5, producer_epoch: 1, base_sequence };
        let bytes = encode(contents, identity, time(1_700_000_000_123)).expect("encodable");

        let read = RecordBatchDecoder::decode_all(&mut bytes.clone()).expect("whole");
        prop_assert_eq!(read.len(), 1);
        for (index, (theirs, ours)) in read[0].records.iter().zip(&records).enumerate() {
            prop_assert_eq!((&theirs.key, &theirs.value), (&ours.0, &ours.1));
            prop_assert_eq!((theirs.offset, theirs.timestamp), (index as i64, 1_700_000_000_123));
            prop_assert_eq!((theirs.producer_id, theirs.producer_epoch), (5, 1));
            prop_assert_eq!(theirs.headers.get("name".as_bytes()), Some(&headers[0].1));
        }

        let decoded = decode(&bytes, 0);
        prop_assert!(decoded.unreadable.is_empty());
        let expected = [("name".to_owned(), headers[0].1.clone())];
        prop_assert!(decoded.records.iter().all(|record| record.headers == expected));
        let read: Vec<_> = decoded.records.into_iter().map(|record| (record.key, record.value)).collect();
        prop_assert_eq!(read, records);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), sealed: bool) {
        if sealed && bytes.len() >= HEADER {
            let length = i32::try_from(bytes.len() - LENGTH_END).expect("short");
            bytes[8..LENGTH_END].copy_from_slice(&length.to_be_bytes());
            bytes[16] = 2;
            bytes[21..23].copy_from_slice(&[0, 0]);
            seal(&mut bytes);
        }
        decode(&Bytes::from(bytes), 0);
    }
}
