//! `compression.type` of an existing topic: the broker stores batches with this codec, whatever their codec was.

use kafka_share::compression::Codec;

use super::*;

/// Bytes of a batch before its records.
const HEADER: usize = 61;

fn sealed(mut batch: BytesMut) -> Bytes {
    let length = i32::try_from(batch.len() - 12).expect("small");
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    let checksum = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&checksum.to_be_bytes());
    batch.freeze()
}

fn packed(plain: &Bytes, codec: Codec) -> Bytes {
    let mut batch = BytesMut::from(&plain[..HEADER]);
    batch.extend_from_slice(&codec.pack(&plain[HEADER..]).expect("packed"));
    batch[22] |= codec.bits() as u8;
    sealed(batch)
}

impl Place {
    /// Sets `compression.type` and waits until the leader applies it: it does so after DescribeConfigs returns it.
    fn compress(&mut self, kind: &str) {
        let topic = self.topic.clone();
        let codec = Codec::ALL.iter().find(|codec| codec.name() == kind).map(|codec| codec.bits());
        let from_gzip = if kind == "producer" { Codec::Gzip.bits() } else { codec.unwrap_or(0) };
        assert_eq!(alter(&mut self.wire, admin::Of::Topic, &topic, "compression.type", Some(kind)), 0);
        eventually(SOON, "the leader applies the setting", || {
            let (plain, gzip) = (plain(20), packed(&plain(20), Codec::Gzip));
            (self.kept_as(&plain).0, self.kept_as(&gzip).0) == (codec.unwrap_or(0), from_gzip)
        });
    }

    /// Produces and fetches this batch; returns the codec bits of the stored batch and its records.
    fn kept_as(&mut self, batch: &Bytes) -> (i16, records::Decoded) {
        let topic = self.topic.clone();
        let (error, offset) = produce(&mut self.wire, &topic, batch.clone());
        assert_eq!(error, 0);
        let (error, bytes) = fetch(&mut self.wire, &topic, offset, 0, 1 << 20);
        assert_eq!(error, 0);
        (i16::from_be_bytes([bytes[21], bytes[22]]) & 0b111, records::decode(&bytes, offset))
    }
}

#[test]
fn compression_type_of_an_existing_topic_decides_how_batches_are_kept() {
    let mut place = Place::new("is-compression");
    let sent = batch(20, -1, -1, -1, SystemTime::now());
    let contents = |decoded: &records::Decoded| {
        let records = decoded.records.iter();
        records.map(|record| (record.value.clone(), record.timestamp)).collect::<Vec<_>>()
    };
    let expected = contents(&records::decode(&sent, 0));
    let forms = |sent: &Bytes| {
        let packed = Codec::ALL.map(|codec| (codec.bits(), packed(sent, codec)));
        std::iter::once((0, sent.clone())).chain(packed).collect::<Vec<_>>()
    };
    let kinds = Codec::ALL.map(|codec| (codec.name(), codec.bits()));
    for (kind, codec) in kinds.into_iter().chain([("uncompressed", 0)]) {
        place.compress(kind);
        for (was, form) in forms(&sent) {
            let (kept, decoded) = place.kept_as(&form);
            assert_eq!((kept, decoded.unreadable.len()), (codec, 0), "{kind}, sent with codec {was}");
            assert_eq!(contents(&decoded), expected, "{kind}, sent with codec {was}");
        }
    }
    place.compress("producer");
    for (was, form) in forms(&sent) {
        let (kept, decoded) = place.kept_as(&form);
        assert_eq!((kept, contents(&decoded)), (was, expected.clone()), "sent with codec {was}");
    }
}

#[test]
fn a_batch_that_the_broker_compresses_keeps_its_producer_id() {
    let mut place = Place::new("is-compression-mark");
    place.compress("zstd");
    let topic = place.topic.clone();
    let request = InitProducerIdRequest::default().with_transactional_id(None);
    let mut id = -1;
    eventually(SOON, "the broker has producer ids", || {
        let answer = place.wire.call(3, &request);
        id = answer.producer_id.0;
        answer.error_code == 0
    });
    let sent = batch(3, id, 0, 0, SystemTime::now());
    let (error, offset) = produce(&mut place.wire, &topic, sent.clone());
    assert_eq!(error, 0);
    assert_eq!(produce(&mut place.wire, &topic, sent), (0, offset), "sent again");
    let bytes = fetch(&mut place.wire, &topic, offset, 0, 1 << 20).1;
    let kept = records::batches(&bytes).next().expect("the batch");
    assert_eq!(kept.identity(), BatchIdentity { producer_id: id, producer_epoch: 0, base_sequence: 0 });
    assert_eq!((bytes[22], kept.last_offset()), (4, offset + 2));
}

#[test]
fn broken_and_oversized_compressed_batches_are_refused() {
    let mut place = Place::new("is-compression-bad");
    let topic = place.topic.clone();
    let zeros = Bytes::from(vec![0; 2_000_000]);
    let contents = [RecordContent { key: None, value: Some(&zeros), headers: &[] }];
    let no_producer = BatchIdentity { producer_id: -1, producer_epoch: -1, base_sequence: -1 };
    let large = records::encode(contents.into_iter(), no_producer, SystemTime::now()).expect("small");
    let large = packed(&large, Codec::Gzip);
    for (kind, error) in [("uncompressed", 10), ("zstd", 0), ("producer", 0)] {
        place.compress(kind);
        assert_eq!(produce(&mut place.wire, &topic, large.clone()).0, error, "{kind}: 2 MB when unpacked");
        for codec in Codec::ALL {
            let good = packed(&plain(3), codec);
            let mut bad = BytesMut::from(&good[..]);
            bad[HEADER..HEADER + 4].fill(0xff);
            assert_eq!(produce(&mut place.wire, &topic, sealed(bad)).0, -1, "{kind}: not {codec:?}");
            let cut = BytesMut::from(&good[..good.len() - 9]);
            assert_eq!(produce(&mut place.wire, &topic, sealed(cut)).0, -1, "{kind}: {codec:?}, cut");
        }
        let mut unknown = BytesMut::from(&plain(1)[..]);
        unknown[22] |= 5;
        assert_eq!(produce(&mut place.wire, &topic, sealed(unknown)).0, -1, "{kind}: unknown codec");
    }
}
