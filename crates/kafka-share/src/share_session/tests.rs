//! Tests of what a session takes from a response.

use super::*;
use crate::records::{BatchIdentity, RecordContent};
use kafka_protocol::messages::share_fetch_response::AcquiredRecords;
use std::borrow::Cow;

/// The response to a fetch that acquired the second of three records; `damage` changes the batch.
fn acquired(damage: impl FnOnce(&mut [u8])) -> Answer {
    let text = Bytes::from_static(b"text");
    let headers = [(Cow::Borrowed("name"), Some(text.clone()))];
    let content = RecordContent { key: Some(&text), value: Some(&text), headers: &headers };
    let no_producer = BatchIdentity { producer_id: -1, producer_epoch: -1, base_sequence: -1 };
    let batch = records::encode([content; 3].into_iter(), no_producer, SystemTime::now());
    let mut batch = batch.expect("a batch").to_vec();
    damage(&mut batch);
    let acquired = AcquiredRecords::default().with_first_offset(1).with_last_offset(1).with_delivery_count(1);
    let data = PartitionData::default().with_records(Some(batch.into())).with_acquired_records(vec![acquired]);
    let mut request = Outstanding {
        correlation: 0,
        sent_at: Instant::now(),
        sent_wall: SystemTime::now(),
        asked: Asked::Fetch,
        partitions: BTreeSet::new(),
        acknowledgements: Acknowledgements::new(),
    };
    let mut answer = Answer::to(&mut request, None, Ok(()));
    take_acquired(SharePartition { topic_id: uuid::Uuid::nil(), partition: 0 }, &data, &mut answer);
    answer
}

#[test]
fn record_hidden_by_damage_is_released_and_not_acknowledged_as_gap() {
    // The batch's attributes end at byte 23: bit 5 makes it a control batch.
    let answer = acquired(|batch| batch[22] ^= 0x20);
    assert_eq!(answer.acquired.len(), 0);
    let said: Vec<_> = answer.unowned.iter().map(|(_, offset, said)| (*offset, *said)).collect();
    assert_eq!(said, [(1, Acknowledgement::Release)]);
}

/// A task can run for minutes, and a response be as long as 1 MiB.
#[test]
fn acquired_record_does_not_keep_whole_response_in_memory() {
    let answer = acquired(|_| {});
    let [record] = &answer.acquired[..] else { panic!("{answer:?}") };
    for bytes in [&record.key, &record.value, &record.headers[0].1] {
        let bytes = bytes.as_ref().expect("as it was written");
        assert_eq!(&bytes[..], b"text");
        assert!(bytes.is_unique(), "its memory is shared");
    }
}
