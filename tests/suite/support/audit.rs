//! Reads and writes topics with the crate `kafka`, which shares no code with the client under test.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kafka::client::{FetchOffset, FetchPartition, KafkaClient, ProduceMessage, RequiredAcks};
use serde_json::Value;

use super::{SOON, eventually};

/// A record on a topic. A missing key or value is empty here: the reader does not distinguish them.
#[derive(Clone, Debug)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

impl Record {
    /// The value as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.value).unwrap_or_else(|error| panic!("{self:?} is not JSON: {error}"))
    }

    /// The key as text; invalid UTF-8 is replaced.
    pub fn key(&self) -> String {
        String::from_utf8_lossy(&self.key).into_owned()
    }
}

/// Key and value of a record to produce.
pub type KeyValue<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// Reads all partitions of `topic` from start to present end; returns no records if the topic does not exist.
pub fn read(broker: &str, topic: &str) -> Vec<Record> {
    let (mut client, offsets) = client_with_offsets(broker, topic, FetchOffset::Latest);
    let mut starts = BTreeMap::new();
    if !offsets.is_empty() {
        let found = client.fetch_offsets(&[topic], FetchOffset::Earliest).expect("the topic has a start");
        starts.extend(found[topic].iter().map(|at| (at.partition, at.offset)));
    }
    let mut records = Vec::new();
    for (partition, end) in offsets {
        let mut next = starts[&partition];
        while next < end {
            let before = next;
            let wanted = FetchPartition::new(topic, partition, next).with_max_bytes(i32::MAX);
            for response in client.fetch_messages([&wanted]).expect("the topic can be read") {
                for part in response.topics().iter().flat_map(|topic| topic.partitions()) {
                    for message in part.data().expect("the partition can be read").messages() {
                        if message.offset >= next && message.offset < end {
                            next = message.offset + 1;
                            let (key, value) = (message.key.to_vec(), message.value.to_vec());
                            records.push(Record { partition, offset: message.offset, key, value });
                        }
                    }
                }
            }
            assert!(next > before, "{topic}-{partition} gives nothing from {next} on, but its end is {end}");
        }
    }
    records
}

/// The end of each partition of `topic`; empty if there is no such topic.
pub fn end_offsets(broker: &str, topic: &str) -> BTreeMap<i32, i64> {
    client_with_offsets(broker, topic, FetchOffset::Latest).1
}

/// Produces one batch of records with any content, as another program could.
pub fn produce(broker: &str, topic: &str, records: &[KeyValue<'_>]) {
    Producer::new(broker, topic).send(records);
}

/// Produces batches to partition 0 of a topic.
pub struct Producer {
    client: KafkaClient,
    topic: String,
}

impl Producer {
    /// Panics if the topic does not exist.
    pub fn new(broker: &str, topic: &str) -> Producer {
        let (client, offsets) = client_with_offsets(broker, topic, FetchOffset::Latest);
        assert!(!offsets.is_empty(), "there is no topic {topic}");
        Producer { client, topic: topic.to_owned() }
    }

    /// Produces one batch.
    pub fn send(&mut self, records: &[KeyValue<'_>]) {
        let messages = records.iter().map(|(key, value)| ProduceMessage::new(&self.topic, 0, *key, *value));
        let answers = self.client.produce_messages(RequiredAcks::All, Duration::from_secs(10), messages);
        let answers = answers.expect("the broker takes the records");
        for part in answers.iter().flat_map(|answer| &answer.partition_confirms) {
            assert!(part.offset.is_ok(), "the broker refused records for {}: {:?}", self.topic, part.offset);
        }
    }
}

fn client_with_offsets(broker: &str, topic: &str, which: FetchOffset) -> (KafkaClient, BTreeMap<i32, i64>) {
    let mut client = KafkaClient::new(vec![broker.to_owned()]);
    client.set_client_id("lastcall-audit".to_owned());
    // Asks for all topics: Kafka would create a missing topic that is named.
    client.load_metadata_all().expect("the broker answers");
    if !client.topics().contains(topic) {
        return (client, BTreeMap::new());
    }
    // After a start of the broker the leader of an unused partition may still load its log.
    let mut found = client.fetch_offsets(&[topic], which);
    eventually(SOON, "every partition has its leader", || {
        // The response lacks the topic while no partition has a leader.
        let has_leaders = found.as_ref().is_ok_and(|offsets| offsets.contains_key(topic));
        if !has_leaders {
            client.load_metadata_all().expect("the broker answers");
            found = client.fetch_offsets(&[topic], which);
        }
        has_leaders
    });
    let offsets = found.expect("the topic has offsets");
    let offsets = offsets[topic].iter().map(|at| (at.partition, at.offset)).collect();
    (client, offsets)
}

/// The records of the tasks and results topics, by type.
pub struct Audit {
    /// Task id to the number of records on `tasks`.
    pub tasks: BTreeMap<String, usize>,
    /// Task id to its results, in the order of the log. More than one result: the task ran more than once.
    pub results: BTreeMap<String, Vec<Value>>,
    /// Every status record, in the order of the log.
    pub statuses: Vec<Value>,
    /// The records on `tasks.dead`.
    pub dead: Vec<Record>,
    /// The records on `tasks.starts`.
    pub starts: Vec<Value>,
}

impl Audit {
    /// Reads the topics `tasks` and `results`, and the side topics of `tasks`.
    pub fn read(broker: &str, tasks: &str, results: &str) -> Audit {
        let mut audit = Audit {
            tasks: BTreeMap::new(),
            results: BTreeMap::new(),
            statuses: Vec::new(),
            dead: read(broker, &format!("{tasks}.dead")),
            starts: read(broker, &format!("{tasks}.starts")).iter().map(Record::json).collect(),
        };
        // Results first: a task produced between the two reads then lacks a result, but no result lacks its task.
        for record in read(broker, results) {
            let value = record.json();
            match value["type"].as_str() {
                Some("result") => {
                    let id = value["task_id"].as_str().expect("a result has a task id").to_owned();
                    assert_eq!(record.key(), id, "the key of a result is its task id");
                    audit.results.entry(id).or_default().push(value);
                }
                Some("worker_status") => {
                    assert_eq!(record.key(), value["worker_id"], "the key of a status is its worker's id");
                    audit.statuses.push(value);
                }
                Some("claim") => {}
                other => panic!("unknown type {other:?} on {results}: {value}"),
            }
        }
        for record in read(broker, tasks) {
            *audit.tasks.entry(record.key()).or_default() += 1;
        }
        audit
    }

    /// Tasks on the topic that have no result.
    pub fn lost(&self) -> Vec<&str> {
        self.tasks.keys().filter(|id| !self.results.contains_key(*id)).map(String::as_str).collect()
    }

    /// Tasks with more than one result, and the workers that made the results.
    pub fn ran_again(&self) -> BTreeMap<&str, Vec<&str>> {
        let again = self.results.iter().filter(|(_, results)| results.len() > 1);
        again
            .map(|(id, results)| (id.as_str(), results.iter().filter_map(|it| it["processed_by"].as_str()).collect()))
            .collect()
    }

    /// Number of results of the task.
    pub fn runs(&self, task: &str) -> usize {
        self.results.get(task).map_or(0, Vec::len)
    }

    /// The one result of a task.
    pub fn result(&self, task: &str) -> &Value {
        match self.results.get(task).map(Vec::as_slice) {
            Some([result]) => result,
            other => panic!("task {task} should have one result, but has {other:?}"),
        }
    }

    /// The states of one worker without repetitions: `["worker_started", "shutdown_started", …]`.
    pub fn states_of(&self, worker: &str) -> Vec<&str> {
        let mut states: Vec<&str> = self.statuses_of(worker).filter_map(|status| status["status"].as_str()).collect();
        states.dedup();
        states
    }

    /// The status records of one worker.
    pub fn statuses_of(&self, worker: &str) -> impl Iterator<Item = &Value> {
        self.statuses.iter().filter(move |status| status["worker_id"] == worker)
    }

    /// The receipt in the last status record of a stopped worker.
    pub fn receipt_of(&self, worker: &str) -> &Value {
        let last = self.statuses_of(worker).last();
        let last = last.unwrap_or_else(|| panic!("worker {worker} has no status on the topic"));
        assert_eq!(last["status"], "shutdown_completed", "the last status of {worker} is {last}");
        &last["receipt"]
    }

    /// Asserts that each of these tasks is on the topic, and that each task on the topic has exactly one result.
    pub fn assert_each_ran_once<'a>(&self, accepted: impl IntoIterator<Item = &'a String>) {
        let accepted: BTreeSet<&String> = accepted.into_iter().collect();
        let missing: Vec<_> = accepted.iter().filter(|id| !self.tasks.contains_key(**id)).collect();
        assert!(missing.is_empty(), "accepted, but not on the topic: {missing:?}");
        assert_eq!(self.lost(), [""; 0], "tasks without a result");
        assert_eq!(self.ran_again(), BTreeMap::new(), "tasks that ran more than once, and their workers");
    }
}
