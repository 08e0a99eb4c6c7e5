//! Topics with each `compression.type`: tasks run and callers get their results.

use kafka_protocol::{
    messages::{
        BrokerId, FetchRequest, TopicName,
        fetch_request::{FetchPartition, FetchTopic},
    },
    protocol::StrBytes,
};

use crate::support::{Rig, SOON, admin, eventually, wire::Wire};

/// Codec bits of the last batch in the topic's only partition.
fn last_codec(broker: &str, topic: &str) -> u8 {
    let end = admin::end_offset(broker, topic, 0).expect("the topic is there");
    let partition = FetchPartition::default().with_current_leader_epoch(-1).with_fetch_offset(end - 1);
    let name = TopicName(StrBytes::from_string(topic.to_owned()));
    let topic = FetchTopic::default().with_topic(name).with_partitions(vec![partition.with_partition_max_bytes(1)]);
    let request = FetchRequest::default().with_replica_id(BrokerId(-1)).with_max_bytes(1).with_session_epoch(-1);
    let answer = Wire::connect(broker).call(11, &request.with_topics(vec![topic]));
    let records = answer.responses[0].partitions[0].records.clone().expect("a batch before the end");
    records[22] & 0b111
}

#[test]
fn worker_and_gateway_read_batches_that_the_broker_compressed() {
    let rig = Rig::shared("compression");
    let broker = rig.broker().address();
    let gateway = rig.start_gateway();
    let _worker = rig.start_worker("compression_1");
    for (codec, kind) in (1..).zip(["gzip", "snappy", "lz4", "zstd"]) {
        for topic in [rig.tasks(), rig.results()] {
            admin::set(broker, admin::Of::Topic, &topic, "compression.type", kind);
        }
        // The leader applies the setting a moment later.
        eventually(SOON, &format!("tasks and results are stored with {kind}"), || {
            let answer = gateway.analyze("two words");
            assert_eq!(answer.status, 200, "{kind}: {}", answer.text());
            [rig.tasks(), rig.results()].iter().all(|topic| last_codec(broker, topic) == codec)
        });
        let answer = gateway.analyze("three more words");
        assert_eq!((answer.status, &answer.json()["words"]), (200, &3.into()), "{kind}: {}", answer.text());
    }
}
