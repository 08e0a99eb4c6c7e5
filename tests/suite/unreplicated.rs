//! The latest record of a log is not replicated yet: a replica that counts as in sync is silent. Clients cannot read
//! the record, and all earlier ones must be found all the same.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use devbroker::{Action, Fault, Kind};
use kafka_share::StartAt;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    client::{cluster_at, create, read, reader},
    support::{
        Gateway, Rig, SOON,
        admin::{self, CLIENT, DEBUGGING_CONSUMER, LATEST, list_offset},
        audit,
        cluster::Cluster,
        eventually, session,
        wire::Wire,
    },
};

const HOUR: Duration = Duration::from_secs(3600);

/// Three embedded nodes. Node 1 leads and coordinates; a silent node keeps its place among the replicas in sync.
fn rig(name: &str) -> Rig {
    let settings = ["--set", "broker.session.timeout.ms=60000", "--set", "default.replication.factor=3"];
    let rig = Rig::with_faults_and(name, 3, &settings);
    rig.broker().faulty().move_coordinator(&rig.group(), 1);
    rig
}

/// Waits until the next record gets a later time: of records with the same time, the first is the latest one.
fn pass_a_millisecond() {
    let before = SystemTime::now();
    eventually(SOON, "the clock has moved on", || SystemTime::now() > before + Duration::from_millis(1));
}

/// Has node 1 lead the topics, freezes node 3, and appends a record to `results`.
fn append_unreplicated(rig: &Rig) {
    let broker = rig.broker().faulty();
    let leader = broker.addresses()[0].to_string();
    for topic in [rig.tasks(), rig.results()] {
        assert!(broker.move_leader(&topic, 0, 1));
        eventually(SOON, "node 1 leads", || admin::end_offset(&leader, &topic, 0).is_ok());
    }
    broker.node(3).freeze();
    pass_a_millisecond();
    let topic = rig.results();
    let found = |replica| list_offset(&leader, (&topic, 0), replica, LATEST).expect("a leader");
    session::produce_to(&mut Wire::connect(&leader), (&topic, 0), session::one_record(), 1);
    assert!(found(DEBUGGING_CONSUMER) > found(CLIENT), "the record is replicated");
}

#[test]
fn a_reader_counts_back_from_a_latest_record_that_is_not_replicated() {
    let cluster = Cluster::new();
    for (number, start) in [StartAt::EndMinus(HOUR), StartAt::AtLeast(HOUR)].into_iter().enumerate() {
        let topic = format!("unreplicated-reader-{number}");
        cluster.create_topic(&topic, 1, 3);
        let leader = cluster.leader(&topic, 0);
        let mut wire = cluster.wire(leader);
        let produce = |wire: &mut Wire, acks| session::produce_to(wire, (&topic, 0), session::one_record(), acks);
        for offset in 0..3 {
            assert_eq!(produce(&mut wire, -1), (0, offset));
        }
        let frozen = cluster.other_than(&[leader]);
        cluster.freeze(frozen);
        pass_a_millisecond();
        assert_eq!(produce(&mut wire, 1).0, 0);
        let found = |replica| list_offset(&cluster.address(leader), (&topic, 0), replica, LATEST);
        assert_eq!([DEBUGGING_CONSUMER, CLIENT].map(found), [Ok(4), Ok(3)]);
        let client = cluster_at(&cluster.address(leader));
        let [mut long, mut short] = [start, StartAt::EndMinus(Duration::ZERO)].map(|at| reader(&client, &topic, at));
        assert_eq!(read(&mut long, 3)[0].offset, 0);
        assert_eq!(short.poll().expect("the leader answers"), [], "the earlier records are older");
        cluster.thaw(frozen);
        for reader in [&mut long, &mut short] {
            assert_eq!(read(reader, 1)[0].offset, 3, "the position is not beyond what can be read");
        }
        cluster.wait_in_sync(&topic, 0);
    }
}

#[test]
fn a_record_that_is_replicated_while_its_offset_is_searched_is_read() {
    let rig = rig("unreplicated-race");
    let cluster = cluster_at(rig.broker().address());
    create(&cluster, &rig.results(), 1, &[]);
    create(&cluster, &rig.tasks(), 1, &[]);
    let since = SystemTime::now();
    append_unreplicated(&rig);
    let broker = rig.broker().faulty();
    let second = Fault::new(Action::Delay(Duration::from_secs(1))).at(Kind::ListOffsets).of_client("test").after(1);
    let bites = broker.inject(second);
    let mut reader = reader(&cluster, &rig.results(), StartAt::Time(since));
    std::thread::scope(|scope| {
        let found = scope.spawn(|| read(&mut reader, 1)[0].offset);
        eventually(SOON, "the second look-up has begun", || bites.count() == 1);
        broker.node(3).thaw();
        assert_eq!(found.join().expect("read"), 0);
    });
}

/// The gateway took the log for empty, and answered 404 to requests for tasks with a result.
#[test]
fn a_gateway_serves_all_results_if_it_starts_while_the_latest_record_is_not_replicated() {
    let rig = rig("unreplicated-start");
    let gateway = Gateway::start(rig.gateway());
    let worker = rig.start_worker("w");
    let tasks: BTreeSet<String> = (0..3).map(|_| gateway.analyze("a b").task_id()).collect();
    drop((worker, gateway));
    append_unreplicated(&rig);
    let gateway = rig.start_gateway();
    for task in &tasks {
        let answer = gateway.get(&format!("/tasks/{task}"));
        assert_eq!((answer.status, &answer.json()["words"]), (200, &json!(2)), "{}", answer.text());
    }
    assert_eq!(gateway.get("/tasks/00000000-0000-7000-8000-000000000000").status, 404);
}

/// The sweep took the log for empty, and produced tasks with a result again.
#[test]
fn a_sweep_finds_results_while_the_latest_record_is_not_replicated() {
    let rig = rig("unreplicated-sweep");
    // A displaced result: its task seems pending when its record comes again.
    let gateway = rig.gateway().env("MAX_RESULTS", 1).env("MISSING_AFTER", "6s");
    let gateway = Gateway::start(gateway);
    let mut worker = rig.start_worker("w");
    let task = gateway.analyze("a b").task_id();
    gateway.analyze("displaces the first result");
    worker.ends_at(Signal::SIGTERM, 0);
    let gauge = |name: &str, value: u32| gateway.get("/metrics").text().contains(&format!("{name} {value}\n"));
    eventually(Duration::from_secs(20), "the first result is displaced", || gauge("lastcall_results_known", 1));
    let broker = rig.broker().address();
    let records = || audit::read(broker, &rig.tasks()).into_iter().filter(|record| record.key() == task);
    let record = records().next().expect("the task's record");
    audit::produce(broker, &rig.tasks(), &[(Some(&record.key), Some(&record.value))]);
    eventually(SOON, "the task seems pending", || gauge("lastcall_tasks_pending", 1));
    admin::skip_to_end(broker, &rig.group(), &rig.tasks());
    append_unreplicated(&rig);
    assert!(gauge("lastcall_tasks_pending", 1), "no sweep has examined the task yet");
    // The sweep misses the task after 6 s, and looks for its result 3 s later.
    eventually(Duration::from_secs(20), "the sweep has found the result", || gauge("lastcall_tasks_pending", 0));
    rig.broker().faulty().node(3).thaw();
    eventually(SOON, "the cluster replicates", || {
        session::produce(&mut Wire::connect(broker), &rig.results(), 0).0 == 0
    });
    assert_eq!(records().count(), 2, "the sweep produced the task again");
}
