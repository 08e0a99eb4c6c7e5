use std::io::{Read, Write};
use std::net::TcpListener;

use bytes::{BufMut, BytesMut};
use kafka_protocol::messages::BrokerId;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::protocol::Encodable;

use super::*;
use program::stop::Stop;
use program::threads;
use uuid::Uuid;

fn cluster(bootstrap: &[BrokerAddress]) -> Cluster {
    Cluster::new(ClientOptions::new(bootstrap.to_vec(), "test"))
}

fn partition(index: i32, leader: i32, epoch: i32) -> MetadataResponsePartition {
    let partition = MetadataResponsePartition::default().with_partition_index(index);
    partition.with_leader_id(BrokerId(leader)).with_leader_epoch(epoch)
}

fn answer() -> MetadataResponse {
    let broker = MetadataResponseBroker::default()
        .with_node_id(BrokerId(7))
        .with_host(StrBytes::from_static_str("kafka-7"))
        .with_port(9092);
    let topic = MetadataResponseTopic::default()
        .with_name(Some(topic_name("tasks")))
        .with_partitions(vec![partition(1, -1, 0), partition(0, 7, 3)]);
    let missing = MetadataResponseTopic::default().with_name(Some(topic_name("other"))).with_error_code(3);
    MetadataResponse::default().with_brokers(vec![broker]).with_topics(vec![missing, topic])
}

#[test]
fn response_is_learnt_although_one_topic_is_missing() {
    let cluster = cluster(&[]);
    let error = cluster.learn(answer()).expect_err("one is missing");
    assert_eq!(error.code(), Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION));
    assert_eq!(cluster.address(7), Some(BrokerAddress::new("kafka-7", 9092)));
    let indexes: Vec<i32> = cluster.topic("tasks").expect("known").partitions.iter().map(|known| known.index).collect();
    assert_eq!(indexes, [0, 1]);
    assert_eq!(cluster.leader("tasks", 0).ok(), Some(7));
    assert!(cluster.topic_age("tasks").is_some_and(|age| age < Duration::from_secs(60)));
    assert_eq!(cluster.topic_age("other"), None);
    let code = |partition| cluster.leader("tasks", partition).expect_err("no leader").code();
    assert_eq!((code(1), code(2)), (Some(ErrorCode(5)), Some(ErrorCode(3))));
    cluster.forget_topic("tasks");
    assert_eq!(cluster.topic_age("tasks"), None);
    // No broker is left to ask.
    assert!(matches!(cluster.topic("tasks"), Err(KafkaError::NoBroker { .. } | KafkaError::Unsupported(_))));
}

#[test]
fn older_leader_never_replaces_newer_one_of_same_topic() {
    let cluster = cluster(&[]);
    let learn = |id: u128, epoch: i32, leader: i32| {
        let topic = MetadataResponseTopic::default()
            .with_name(Some(topic_name("tasks")))
            .with_topic_id(Uuid::from_u128(id))
            .with_partitions(vec![partition(0, leader, epoch)]);
        cluster.learn(MetadataResponse::default().with_topics(vec![topic])).expect("no error in it");
        let known = cluster.topic("tasks").expect("known").partitions[0];
        (known.leader, known.leader_epoch)
    };
    assert_eq!(learn(1, 4, 2), (2, 4));
    assert_eq!(learn(1, 3, 1), (2, 4), "a node that was cut off names the old leader");
    assert_eq!(learn(1, 5, -1), (-1, 5), "losing the leader is newer knowledge, too");
    assert_eq!(learn(1, -1, 1), (1, -1), "a broker that knows no epochs");
    assert_eq!(learn(1, 6, 3), (3, 6));
    assert_eq!(learn(2, 0, 1), (1, 0), "the topic was created again");
}

#[test]
fn forget_keeps_silent_brokers_last() {
    let addresses = [1, 2, 3].map(|number| BrokerAddress::new(format!("kafka-{number}"), 9092));
    let cluster = cluster(&addresses);
    let source = std::io::Error::from(std::io::ErrorKind::TimedOut);
    cluster.blame(&KafkaError::Io { action: "cannot connect to", broker: addresses[1].clone(), source });
    cluster.forget();
    for _ in 0..50 {
        assert_eq!(cluster.candidates().last(), Some(&addresses[1]));
    }
}

/// Makes a listener that never answers, and one that answers every Metadata request on every connection.
fn mute_and_answering() -> (TcpListener, BrokerAddress, BrokerAddress, Stop) {
    let bind = || TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (mute, answering, stop) = (bind(), bind(), Stop::new());
    let address =
        |listener: &TcpListener| BrokerAddress::new("127.0.0.1", listener.local_addr().expect("bound").port());
    let addresses = (address(&mute), address(&answering));
    let (silent, living, end) = (addresses.0.clone(), addresses.1.clone(), stop.clone());
    let _ = threads::spawn("answering", Stop::new(), move || {
        let broker = |node, address: &BrokerAddress| {
            let broker = MetadataResponseBroker::default().with_node_id(BrokerId(node)).with_port(address.port.into());
            broker.with_host(StrBytes::from_string(address.host.clone()))
        };
        let response = answer().with_brokers(vec![broker(1, &silent), broker(2, &living)]);
        for mut client in answering.incoming().map_while(std::result::Result::ok) {
            if end.is_triggered() {
                break;
            }
            let response = response.clone();
            let _ = threads::spawn("answers", Stop::new(), move || {
                let mut correlation = 0;
                while client.read(&mut [0; 512]).is_ok_and(|count| count > 0) {
                    let mut frame = BytesMut::from(&[0; 4][..]);
                    frame.put_i32(correlation);
                    frame.put_u8(0);
                    correlation += 1;
                    response.encode(&mut frame, METADATA_VERSION).expect("encodable");
                    let length = u32::try_from(frame.len() - 4).expect("short");
                    (&mut frame[..4]).put_u32(length);
                    client.write_all(&frame).expect("sent");
                }
                Ok::<(), KafkaError>(())
            });
        }
        Ok::<(), KafkaError>(())
    });
    (mute, addresses.0, addresses.1, stop)
}

#[test]
fn leader_that_does_not_answer_is_looked_up_at_another_node() {
    let (_mute, silent, living, stop) = mute_and_answering();
    // The spare connection leads to the silent node.
    let cluster = cluster(std::slice::from_ref(&silent));
    cluster.put_back(Connection::open(&silent, cluster.options()).expect("the kernel takes it"));
    cluster.known.lock().brokers.extend([(1, silent.clone()), (2, living)]);
    let since = Instant::now();
    for _ in 0..3 {
        let code = cluster.refresh_from_another(1, &["tasks", "other"], Duration::from_secs(4));
        assert_eq!(code.expect_err("one topic is missing").code(), Some(ErrorCode(3)));
    }
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    assert_eq!(cluster.leader("tasks", 0).ok(), Some(7));
    // With the roles exchanged only the silent broker is left, and the call ends within its limit.
    let error = cluster.refresh_from_another(2, &["tasks"], Duration::from_millis(300)).expect_err("silence");
    assert!(matches!(&error, KafkaError::NoBroker { .. }), "{error}");
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert!(cluster.is_silent(&silent));
    stop.trigger();
}

#[test]
fn wait_for_response_ends_once_partition_has_another_leader_or_newer_epoch() {
    let cluster = cluster(&[]);
    assert!(
        cluster.learn(answer()).is_err(),
        "one topic is missing; node 7 leads tasks-0 in epoch 3, tasks-1 has no leader"
    );
    let source = std::io::Error::from(std::io::ErrorKind::TimedOut);
    let silence = KafkaError::Io { action: "cannot read from", broker: BrokerAddress::new("kafka-7", 9092), source };
    for (node, partition, epoch, expected) in [
        (7, 0, 3, false),
        (7, 0, 2, true),
        (7, 0, -1, false),
        (1, 0, 3, true),
        (1, 0, -1, true),
        (7, 1, 0, false),
        (7, 2, 0, false),
    ] {
        let led = [Led { topic: "tasks", partition, epoch }];
        assert_eq!(cluster.leads_elsewhere(node, &led, &silence), expected, "node {node}, {led:?}");
    }
}

#[test]
fn single_node_cluster_has_no_other_broker_to_ask() {
    let address = BrokerAddress::new("127.0.0.1", 1);
    let cluster = cluster(std::slice::from_ref(&address));
    cluster.known.lock().brokers.insert(1, address);
    let error = cluster.refresh_from_another(1, &[], Duration::from_secs(1)).expect_err("there is none");
    assert_eq!(error.retry(), Retry::RefreshMetadata, "{error}");
}

#[test]
fn silent_broker_is_asked_last() {
    let addresses = [1, 2, 3].map(|number| BrokerAddress::new(format!("kafka-{number}"), 9092));
    let cluster = cluster(&addresses);
    let timeout = KafkaError::Timeout { request: "Fetch", broker: addresses[1].clone(), waited: Duration::ZERO };
    cluster.blame(&timeout);
    for _ in 0..50 {
        let candidates = cluster.candidates();
        assert_eq!((candidates.len(), candidates.last()), (3, Some(&addresses[1])));
    }
}

#[test]
fn connection_that_died_while_idle_is_replaced() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    // Answers one request per connection, then closes the connection.
    let broker = threads::spawn("broker", Stop::new(), move || {
        for mut client in listener.incoming().take(2).map_while(std::result::Result::ok) {
            let request = client.read(&mut [0; 512]).expect("a request");
            assert!(request > 0);
            // Correlation 0 on every connection, no tags.
            let mut frame = BytesMut::from(&[0; 9][..]);
            answer().with_topics(Vec::new()).encode(&mut frame, 12).expect("encodable");
            let length = u32::try_from(frame.len() - 4).expect("short");
            (&mut frame[..4]).put_u32(length);
            client.write_all(&frame).expect("sent");
        }
        Ok::<(), KafkaError>(())
    });
    let cluster = cluster(&[BrokerAddress::new("127.0.0.1", port)]);
    assert!(cluster.refresh(&[]).is_ok());
    // The response named a broker that does not exist; the bootstrap list is still known.
    assert!(cluster.refresh(&[]).is_ok());
    assert_eq!(broker.join(), Ok(()), "two connections");
}

#[test]
fn scoped_clusters_share_knowledge_and_are_interrupted_separately() {
    let cluster = cluster(&[]);
    let part = cluster.scoped(cluster.options().interrupter.child());
    assert!(part.learn(answer()).is_err());
    assert_eq!(cluster.leader("tasks", 0).ok(), Some(7));
    part.options().interrupter.interrupt();
    assert!(!cluster.options().interrupter.is_interrupted());
}

/// Certificates and passwords are replaced at one broker after the other.
#[test]
fn broker_that_cannot_be_used_securely_is_passed_over() {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let [bad, good] = listeners
        .each_ref()
        .map(|listener| BrokerAddress::new("127.0.0.1", listener.local_addr().expect("bound").port()));
    let question = |connection: &mut Connection| {
        if connection.broker() == &good {
            return Ok(());
        }
        Err(KafkaError::Security { broker: connection.broker().clone(), detail: "expired".into(), is_final: true })
    };
    let both = cluster(&[bad.clone(), good.clone()]);
    // The order of the brokers is random.
    for _ in 0..20 {
        assert!(both.ask_with(question).is_ok());
        drop(both.spare.lock().take());
    }
    let alone = cluster(std::slice::from_ref(&bad));
    assert!(matches!(alone.ask_with(question), Err(KafkaError::Security { is_final: true, .. })));
    assert!(alone.insecurity().is_some_and(|text| text.contains("expired")));
    assert!(alone.ask_with(|_| Ok(())).is_ok());
    assert_eq!(alone.insecurity(), None);
    // The broker that does not run may be the one that can be used.
    let port = program::reserved_port::ReservedPort::any().expect("a free port");
    let down = BrokerAddress::new("127.0.0.1", port.address().port());
    let error = cluster(&[bad, down]).ask_with(question).expect_err("neither");
    assert!(matches!(&error, KafkaError::NoBroker { .. }) && error.to_string().contains("expired"), "{error}");
}
