//! How the programs prepare topics and group settings before they work, and how they handle added partitions,
//! partitions without a leader, and deleted topics.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use devbroker::{Operation, Resource};
use kafka_share::{ClientOptions, Cluster, ErrorCode, KafkaError, StartAt, admin};
use lastcall::{
    config::Common,
    queue::{self, PrepareError, Starts},
};
use serde_json::json;

use crate::{
    client::{cluster, cluster_at, create, deliver, eventually_ok, read, reader, record},
    support::{
        Gateway, Rig, SOON, START,
        admin::{Of, configs, create_topic, delete_topic, grow_topic, has_topic, set},
        audit, eventually, reserved_port, started,
    },
};

const STARTS: Starts = Starts { most: 5, longest: Duration::from_secs(600) };

fn common(rig: &Rig) -> Common {
    let bootstrap = vec![rig.broker().address().parse().expect("an address")];
    Common {
        bootstrap,
        tasks_topic: rig.tasks(),
        results_topic: rig.results(),
        worker_group: rig.group(),
        ..Common::default()
    }
}

/// Prepares the queue; repeats this while the cluster is starting.
fn prepare(cluster: &Cluster, common: &Common) -> Result<queue::Queue, String> {
    let deadline = Instant::now() + START;
    loop {
        match queue::prepare(cluster, common, Some(STARTS)) {
            Ok(queue) => return Ok(queue),
            Err(PrepareError::Unusable(text) | PrepareError::Denied(text)) => return Err(text),
            Err(PrepareError::Unreachable(error)) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Prepares the queue of a rig with the rights of the test.
pub fn prepared(rig: &Rig) {
    prepare(&cluster(rig), &common(rig)).expect("usable");
}

#[test]
fn concurrent_preparations_give_the_same_queue() {
    let rig = Rig::shared("client-prepare");
    let (cluster, common) = (cluster(&rig), common(&rig));
    let queues = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..4).map(|_| scope.spawn(|| prepare(&cluster, &common))).collect();
        racers.into_iter().map(|racer| racer.join().expect("no panic")).collect::<Vec<_>>()
    });
    let expected =
        queue::Queue { lock: Duration::from_secs(15), delivery_limit: 10, record_locks: 4000, tasks_partitions: 1 };
    assert!(queues.iter().all(|queue| queue.as_ref() == Ok(&expected)), "{queues:?}");
    let group = configs(rig.broker().address(), Of::Group, &rig.group());
    for (setting, value) in [
        ("share.auto.offset.reset", "earliest"),
        ("share.assignment.interval.ms", "0"),
        ("share.delivery.count.limit", "10"),
        ("share.record.lock.duration.ms", "15000"),
        ("share.partition.max.record.locks", "4000"),
        ("share.isolation.level", "read_committed"),
    ] {
        assert_eq!(group[setting], value, "{setting}");
    }
    // The group has no state without a member. Kafka creates the coordinator's topic at the first such request.
    let begun = eventually_ok(START, || admin::share_group_offsets(&cluster, &rig.group(), &rig.tasks()));
    assert_eq!(begun, BTreeMap::new());
}

#[test]
fn an_existing_topic_gets_the_settings_that_the_programs_need() {
    let rig = Rig::shared("client-foreign");
    create_topic(rig.broker().address(), &rig.tasks(), 3, &[("retention.ms", "60000")]);
    let cluster = cluster(&rig);
    assert_eq!(prepare(&cluster, &common(&rig)).map(|queue| queue.tasks_partitions), Ok(3));
    let own = |configs: &BTreeMap<String, String>| {
        ["message.timestamp.type", "compression.type", "retention.ms"].map(|key| configs[key].clone())
    };
    eventually(SOON, "the broker has the new settings", || {
        admin::topic_configs(&cluster, &rig.tasks())
            .is_ok_and(|found| own(&found) == ["LogAppendTime", "uncompressed", "60000"])
    });
}

#[test]
fn a_topic_name_that_kafka_refuses_is_named() {
    let rig = Rig::shared("client-name");
    let common = Common { results_topic: "no/topic".to_owned(), ..common(&rig) };
    let error = prepare(&cluster(&rig), &common).expect_err("refused");
    assert!(error.contains("\"no/topic\"") && error.contains("INVALID_TOPIC_EXCEPTION"), "{error}");
}

#[test]
fn a_delivery_limit_of_8_is_enough_for_5_starts() {
    let rig = Rig::with_own_broker("client-capped", &["--set", "group.share.max.delivery.count.limit=8"]);
    prepare(&cluster(&rig), &common(&rig)).expect("eight are enough for five");
}

#[test]
fn a_port_without_a_broker_is_unreachable() {
    let port = reserved_port();
    let cluster = cluster_at(&port.address().to_string());
    let error = queue::prepare(&cluster, &Common::default(), None).expect_err("no broker");
    assert!(matches!(error, PrepareError::Unreachable(KafkaError::NoBroker { .. })), "{error}");
}

#[test]
fn usable_settings_of_an_operator_are_kept() {
    let rig = Rig::shared("queue-operator");
    let chosen = [
        ("share.record.lock.duration.ms", "30000"),
        ("share.isolation.level", "read_uncommitted"),
        ("share.delivery.count.limit", "8"),
        ("share.partition.max.record.locks", "1000"),
    ];
    for (key, value) in chosen {
        set(rig.broker().address(), Of::Group, &rig.group(), key, value);
    }
    let found = prepare(&cluster(&rig), &common(&rig)).expect("usable");
    assert_eq!((found.lock, found.delivery_limit, found.record_locks), (Duration::from_secs(30), 8, 1000));
    let group = configs(rig.broker().address(), Of::Group, &rig.group());
    for (key, value) in chosen {
        assert_eq!(group[key], value, "{key}");
    }
    assert_eq!(group["share.auto.offset.reset"], "earliest", "the only usable value is set");
}

#[test]
fn without_the_right_to_alter_the_group_its_settings_must_be_usable() {
    let rig = Rig::with_rights("queue-rights");
    let broker = rig.broker();
    broker.deny(Operation::AlterConfigs, Resource::Group(&rig.group()));
    let error = prepare(&cluster(&rig), &common(&rig)).expect_err("the group would skip earlier tasks");
    for words in [rig.group().as_str(), "share.auto.offset.reset", "earliest", "GROUP_AUTHORIZATION_FAILED"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    let other = Rig::beside(&rig, "queue-set");
    for (key, value) in [("share.auto.offset.reset", "earliest"), ("share.delivery.count.limit", "10")] {
        set(broker.address(), Of::Group, &other.group(), key, value);
    }
    broker.deny(Operation::AlterConfigs, Resource::Group(&other.group()));
    let found = prepare(&cluster(&other), &common(&other)).expect("the settings are usable");
    assert_eq!(found.lock, Duration::from_secs(30), "Kafka's default");
}

#[test]
fn missing_right_is_named_with_its_topic_or_group() {
    let rig = Rig::with_rights("queue-named");
    for (operation, right, of_group) in [
        (Operation::DescribeConfigs, "the right DescribeConfigs on the topic", false),
        (Operation::Describe, "the right Describe on the topic", false),
        (Operation::DescribeConfigs, "the right DescribeConfigs on the group", true),
    ] {
        let rig = Rig::beside(&rig, "queue-named");
        create_topic(rig.broker().address(), &rig.tasks(), 1, &[]);
        let (tasks, group) = (rig.tasks(), rig.group());
        let (name, resource) =
            if of_group { (&group, Resource::Group(&group)) } else { (&tasks, Resource::Topic(&tasks)) };
        rig.broker().deny(operation, resource);
        let error = prepare(&cluster(&rig), &common(&rig)).expect_err("refused");
        assert!(error.contains(name) && error.contains(right), "{error}");
    }
}

#[test]
fn programs_refuse_to_start_without_a_right_that_they_need() {
    let rig = Rig::with_rights("queue-nothing");
    let own = common(&rig);
    let (dead, starts) = (own.dead_topic(), own.starts_topic());
    for (topic, operation, worker, gateway) in [
        (&own.tasks_topic, Operation::Read, true, true),
        (&own.tasks_topic, Operation::Write, false, true),
        (&own.results_topic, Operation::Read, false, true),
        (&own.results_topic, Operation::Write, true, true),
        (&dead, Operation::Write, true, false),
        (&starts, Operation::Write, true, false),
        (&starts, Operation::Read, false, false),
    ] {
        let rig = Rig::beside(&rig, "queue-nothing");
        let other = common(&rig);
        let topic =
            topic.replace(&own.tasks_topic, &other.tasks_topic).replace(&own.results_topic, &other.results_topic);
        let cluster = cluster(&rig);
        prepare(&cluster, &other).expect("all rights");
        rig.broker().deny(operation, Resource::Topic(&topic));
        for (limit, needed) in [(Some(STARTS), worker), (None, gateway)] {
            let refused = queue::prepare(&cluster, &other, limit).err().map(|error| error.to_string());
            let names = |error: &String| error.contains(&topic) && error.contains(&format!("the right {operation:?}"));
            assert_eq!(refused.as_ref().is_some_and(names), needed, "{topic} {operation:?} {limit:?}: {refused:?}");
        }
    }
}

#[test]
fn gateway_needs_no_right_to_the_side_topics() {
    let rig = Rig::with_rights("queue-side");
    let common = common(&rig);
    for topic in [common.dead_topic(), common.starts_topic()] {
        create_topic(rig.broker().address(), &topic, 1, &[]);
        rig.broker().deny(Operation::Describe, Resource::Topic(&topic));
        rig.broker().deny(Operation::DescribeConfigs, Resource::Topic(&topic));
    }
    let cluster = cluster(&rig);
    queue::prepare(&cluster, &common, None).expect("a gateway");
    let error = queue::prepare(&cluster, &common, Some(STARTS)).expect_err("a worker").to_string();
    assert!(error.contains(&common.dead_topic()), "{error}");
}

/// Two nodes, `tasks` with a partition on each, no topic with a second replica. Returns the node without `results` too.
fn with_two_nodes(name: &str) -> (Rig, i32) {
    let rig = Rig::with_faults(name, 2);
    let cluster = cluster(&rig);
    create(&cluster, &rig.results(), 1, &[]);
    create(&cluster, &rig.tasks(), 2, &[]);
    let broker = rig.broker().faulty();
    let results = broker.leader(&rig.results(), 0).expect("a leader");
    broker.move_coordinator(&rig.group(), results);
    (rig, 3 - results)
}

/// Stops this node; returns a client that knows only the other node, and that node's address.
fn cluster_without(rig: &Rig, down: i32) -> (Cluster, String) {
    let broker = rig.broker().faulty();
    broker.node(down).stop();
    let alive = broker.addresses()[usize::try_from(2 - down).expect("1 or 2")].to_string();
    let cluster = Cluster::new(ClientOptions::new(vec![alive.parse().expect("an address")], "test"));
    eventually(SOON, "a partition has no leader", || {
        cluster.refresh(&[&rig.tasks()]).is_ok()
            && cluster.topic(&rig.tasks()).is_ok_and(|topic| topic.partitions.iter().any(|it| it.leader < 0))
    });
    (cluster, alive)
}

#[test]
fn the_gateway_starts_while_a_partition_has_no_leader() {
    let (rig, down) = with_two_nodes("queue-offline");
    let (cluster, alive) = cluster_without(&rig, down);
    let since = Instant::now();
    assert_eq!(prepare(&cluster, &common(&rig)).map(|queue| queue.tasks_partitions), Ok(2));
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
    let launch = rig.gateway().env("KAFKA_BOOTSTRAP_SERVERS", &alive);
    let gateway = Gateway::start(launch);
    assert!(since.elapsed() < START, "{:?}", since.elapsed());
    drop(gateway);
}

#[test]
fn partition_without_leader_delays_no_reader_and_is_read_when_it_has_one() {
    let (rig, down) = with_two_nodes("queue-reader");
    let broker = rig.broker().faulty();
    let offline =
        (0..2).find(|index| broker.leader(&rig.tasks(), *index) == Some(down)).expect("a partition of this node");
    let keys: Vec<String> = (0..20).map(|number| format!("key-{number}")).collect();
    let records = keys.iter().map(|key| record(&rig.tasks(), key, "value")).collect();
    let written = deliver(&cluster(&rig), records);
    let offline_count = written.iter().filter(|it| it.partition == offline).count();
    let (cluster, _) = cluster_without(&rig, down);
    let mut late = reader(&cluster, &rig.tasks(), StartAt::Earliest);
    let since = Instant::now();
    assert!(read(&mut late, 20 - offline_count).iter().all(|record| record.partition != offline));
    for _ in 0..5 {
        assert_eq!(late.poll().map(|records| records.len()).ok(), Some(0), "no record and no error");
    }
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    let ends = late.end_offsets().expect("the other partition's end");
    assert_eq!(ends.keys().copied().collect::<Vec<_>>(), [1 - offline]);
    assert_eq!(late.all_end_offsets().expect_err("one is unknown").code(), Some(ErrorCode::LEADER_NOT_AVAILABLE));
    broker.node(down).revive().expect("the node starts again on its port");
    assert!(read(&mut late, offline_count).iter().all(|record| record.partition == offline));
}

/// The gateway answered 404 to requests for tasks whose results it had not read.
#[test]
fn gateway_has_read_its_past_only_after_every_partition_of_results() {
    let rig = Rig::with_faults("queue-past", 2);
    let client = cluster(&rig);
    create(&client, &rig.results(), 2, &[]);
    create(&client, &rig.tasks(), 1, &[]);
    let broker = rig.broker().faulty();
    let down = broker.leader(&rig.results(), 1).expect("a leader");
    assert!(broker.move_leader(&rig.results(), 0, 3 - down) && broker.move_leader(&rig.tasks(), 0, 3 - down));
    broker.move_coordinator(&rig.group(), 3 - down);
    let ids: Vec<String> = (0..12).map(|number| format!("3f2c8a10-0000-4000-8000-{number:012}")).collect();
    let result =
        |id: &String| json!({"type": "result", "task_id": id, "success": true, "processed_by": "w"}).to_string();
    client.refresh(&[&rig.results()]).expect("the brokers answer");
    deliver(&client, ids.iter().map(|id| record(&rig.results(), id, &result(id))).collect());
    let written = audit::read(rig.broker().address(), &rig.results());
    let (readable, unreadable): (Vec<_>, Vec<_>) = written.iter().partition(|result| result.partition == 0);
    assert!(!readable.is_empty() && !unreadable.is_empty(), "{written:?}");
    broker.node(down).stop();
    let alive = broker.addresses()[usize::try_from(2 - down).expect("1 or 2")].to_string();
    let gateway = Gateway::launch(rig.gateway().env("KAFKA_BOOTSTRAP_SERVERS", &alive));
    let all_have = |results: &[&audit::Record], status: u16| {
        results.iter().all(|result| gateway.get(&format!("/tasks/{}", result.key())).status == status)
    };
    eventually(SOON, "the readable results are known", || all_have(&readable, 200));
    assert!(all_have(&unreadable, 503), "the other results are unknown");
    broker.node(down).revive().expect("the node starts again on its port");
    gateway.program.wait_for_line("read back: 12 results", SOON);
    assert!(all_have(&unreadable, 200));
}

#[test]
fn gateway_reads_added_partitions_of_tasks_within_four_seconds() {
    let rig = Rig::shared("queue-grown");
    let gateway = rig.start_gateway();
    let address = rig.broker().address();
    grow_topic(address, &rig.tasks(), 3);
    let grown = Instant::now();
    let cluster = cluster(&rig);
    eventually(SOON, "the brokers know the new partitions", || {
        cluster.refresh(&[&rig.tasks()]).is_ok() && cluster.leader(&rig.tasks(), 2).is_ok()
    });
    // Another program writes the tasks, so the gateway knows only those that it reads.
    let ids: Vec<String> = (0..12).map(|number| format!("3f2c8a10-0000-4000-8000-{number:012}")).collect();
    let task =
        |id: &String| record(&rig.tasks(), id, &json!({"task_id": id, "text": "x", "timestamp": 1.0}).to_string());
    let written = deliver(&cluster, ids.iter().map(task).collect());
    assert!(written.iter().any(|it| it.partition > 0));
    eventually(Duration::from_secs(4), "all tasks are known", || {
        ids.iter().all(|id| gateway.get(&format!("/tasks/{id}")).json()["state"] == "pending")
    });
    assert!(grown.elapsed() < Duration::from_secs(4), "{:?}", grown.elapsed());
}

#[test]
fn reader_starts_at_the_first_record_of_a_recreated_topic() {
    let rig = Rig::shared("queue-again");
    let (cluster, topic) = (cluster(&rig), rig.tasks());
    let write = |texts: &[&str]| {
        create(&cluster, &topic, 1, &[]);
        cluster.refresh(&[&topic]).expect("the brokers know it");
        deliver(&cluster, texts.iter().map(|text| record(&topic, "key", text)).collect());
    };
    write(&["a", "b", "c"]);
    let mut reader = reader(&cluster, &topic, StartAt::Earliest);
    assert_eq!(read(&mut reader, 3).len(), 3);
    delete_topic(rig.broker().address(), &topic);
    eventually(SOON, "the topic is deleted", || !has_topic(rig.broker().address(), &topic));
    // More records than before, so that the reader's offset is not out of range.
    write(&["d", "e", "f", "g", "h"]);
    let values = read(&mut reader, 5).into_iter().filter_map(|record| record.value).collect::<Vec<_>>();
    assert_eq!(values, ["d", "e", "f", "g", "h"]);
    assert_eq!(reader.gaps(), 1);
}

/// The gateway creates the topic without knowing the worker's TASK_TIMEOUT; a worker extends the retention.
#[test]
fn retention_of_start_records_covers_the_worker_with_the_longest_tasks() {
    let rig = Rig::shared("queue-starts");
    let _gateway = rig.start_gateway();
    let retention = || configs(rig.broker().address(), Of::Topic, &common(&rig).starts_topic())["retention.ms"].clone();
    assert_eq!(retention(), "3600000");
    let worker = started(&rig.worker("w").env("TASK_TIMEOUT", "1h"));
    eventually(SOON, "the broker has the new setting", || retention() == (6 * 3_600_000).to_string());
    assert_eq!(worker.lines_with("retention.ms").len(), 1, "{:?}", worker.lines_with("retention.ms"));
    let other = started(&rig.worker("other"));
    assert_eq!(retention(), (6 * 3_600_000).to_string());
    assert_eq!(other.lines_with("retention.ms").len(), 0, "the longer retention stays");
}
