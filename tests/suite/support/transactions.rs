//! A transactional producer that sends one request at a time. It shares only `kafka_protocol` with the product.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    indexmap::IndexMap,
    messages::{
        AddPartitionsToTxnRequest, EndTxnRequest, FindCoordinatorRequest, InitProducerIdRequest, ProduceRequest,
        ProducerId, TopicName, TransactionalId,
        add_partitions_to_txn_request::AddPartitionsToTxnTopic,
        produce_request::{PartitionProduceData, TopicProduceData},
    },
    protocol::StrBytes,
    records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType},
};

use super::{SOON, eventually, wire::Wire};

/// Kafka's CONCURRENT_TRANSACTIONS: the broker still writes the markers of the previous transaction.
pub const TOO_EARLY: i16 = 51;

/// A transactional id, and the state of its producer.
pub struct Transactions {
    wire: Wire,
    id: TransactionalId,
    /// Producer id and epoch.
    pub producer: (i64, i16),
    /// The next sequence number on partition 0, the only partition that it sends to.
    pub sequence: i32,
}

fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

impl Transactions {
    /// Finds the coordinator of the id and initialises the producer there.
    pub fn new(broker: &str, id: &str) -> Transactions {
        let key = StrBytes::from_string(id.to_owned());
        let id = TransactionalId(key.clone());
        let mut this = Transactions { wire: Wire::connect(broker), id, producer: (-1, -1), sequence: 0 };
        eventually(SOON, "the transactional id has a coordinator", || {
            let request = FindCoordinatorRequest::default().with_key_type(1).with_key(key.clone());
            this.wire.call(3, &request).error_code == 0
        });
        eventually(SOON, "the coordinator has read its state", || this.init() == 0);
        this
    }

    /// Sends InitProducerId; returns the error code.
    pub fn init(&mut self) -> i16 {
        self.init_with(60_000, (-1, -1))
    }

    /// Sends InitProducerId with a timeout and the producer id and epoch that the caller believes to be current.
    pub fn init_with(&mut self, timeout_ms: i32, believed: (i64, i16)) -> i16 {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(self.id.clone()))
            .with_transaction_timeout_ms(timeout_ms)
            .with_producer_id(ProducerId(believed.0))
            .with_producer_epoch(believed.1);
        let answer = self.wire.call(4, &request);
        if answer.error_code == 0 {
            (self.producer, self.sequence) = ((answer.producer_id.0, answer.producer_epoch), 0);
        }
        answer.error_code
    }

    /// Sends AddPartitionsToTxn until the markers of the previous transaction are written; returns an error code for
    /// each partition.
    pub fn add(&mut self, partitions: &[(&str, i32)]) -> Vec<i16> {
        let topics = partitions.iter().map(|(topic, index)| {
            AddPartitionsToTxnTopic::default().with_name(topic_name(topic)).with_partitions(vec![*index])
        });
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(self.id.clone())
            .with_v3_and_below_producer_id(ProducerId(self.producer.0))
            .with_v3_and_below_producer_epoch(self.producer.1)
            .with_v3_and_below_topics(topics.collect());
        let mut codes = Vec::new();
        eventually(SOON, "the markers are written", || {
            let mut answer = self.wire.call(3, &request).results_by_topic_v3_and_below;
            // Kafka answers in another order than it was asked.
            answer.sort_by_key(|topic| partitions.iter().position(|(name, _)| *name == topic.name.as_str()));
            let results = answer.iter().flat_map(|topic| &topic.results_by_partition);
            codes = results.map(|result| result.partition_error_code).collect();
            !codes.contains(&TOO_EARLY)
        });
        codes
    }

    /// Produces one transactional batch of keys and values to partition 0; returns error code and first offset.
    pub fn send(&mut self, topic: &str, records: &[(String, String)]) -> (i16, i64) {
        let id = Some(self.id.clone());
        self.send_with(topic, records, id)
    }

    /// Like [`Self::send`], without the transactional id in the request.
    pub fn send_without_id(&mut self, topic: &str, records: &[(String, String)]) -> (i16, i64) {
        self.send_with(topic, records, None)
    }

    fn send_with(&mut self, topic: &str, records: &[(String, String)], id: Option<TransactionalId>) -> (i16, i64) {
        let partition = PartitionProduceData::default().with_records(Some(self.batch(records)));
        let topic = TopicProduceData::default().with_name(topic_name(topic)).with_partition_data(vec![partition]);
        let request = ProduceRequest::default()
            .with_transactional_id(id)
            .with_acks(-1)
            .with_timeout_ms(5000)
            .with_topic_data(vec![topic]);
        let answer = self.wire.call(7, &request);
        let done = &answer.responses[0].partition_responses[0];
        if done.error_code == 0 {
            self.sequence += i32::try_from(records.len()).expect("a few");
        }
        (done.error_code, done.base_offset)
    }

    fn batch(&self, contents: &[(String, String)]) -> Bytes {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("later").as_millis();
        let records: Vec<Record> = (0..)
            .zip(contents)
            .map(|(number, (key, value))| Record {
                transactional: true,
                delete_horizon: false,
                control: false,
                partition_leader_epoch: -1,
                producer_id: self.producer.0,
                producer_epoch: self.producer.1,
                timestamp_type: TimestampType::Creation,
                offset: number,
                sequence: self.sequence + i32::try_from(number).expect("a few"),
                timestamp: i64::try_from(now).expect("soon"),
                key: Some(Bytes::from(key.clone())),
                value: Some(Bytes::from(value.clone())),
                headers: IndexMap::new(),
            })
            .collect();
        let mut batch = BytesMut::new();
        let options = RecordEncodeOptions { version: 2, compression: Compression::None };
        RecordBatchEncoder::encode(&mut batch, &records, &options).expect("encodable");
        batch.freeze()
    }

    /// Sends EndTxn until the markers of the previous transaction are written; returns the error code.
    pub fn end(&mut self, committed: bool) -> i16 {
        let request = EndTxnRequest::default()
            .with_transactional_id(self.id.clone())
            .with_producer_id(ProducerId(self.producer.0))
            .with_producer_epoch(self.producer.1)
            .with_committed(committed);
        let mut code = 0;
        eventually(SOON, "the markers are written", || {
            code = self.wire.call(3, &request).error_code;
            code != TOO_EARLY
        });
        code
    }
}
