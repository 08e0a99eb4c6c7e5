//! Tests of the readers, without Kafka.

use super::*;
use crate::config::GatewayConfig;
use crate::gateway::state::State;
use crate::gateway::tasks::Wanted;
use crate::gateway::tasks::book::{Keyed, KeyedRequest};
use crate::gateway::tasks::index::Known;
use crate::gateway::tasks::key::digest;
use crate::http::reply::Preferences;
use crate::http::reply::tests::Kept;
use crate::task::{Claim, Headers, TaskResult, WorkerState, WorkerStatus};
use bytes::Bytes;
use serde_json::{Map, json};
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use uuid::Uuid;

fn gateway() -> Arc<Tasks> {
    Tasks::new(Arc::new(State::new(GatewayConfig::default()))).0
}

fn record(offset: i64, key: &str, value: impl Into<Bytes>) -> ReadRecord {
    ReadRecord {
        partition: 0,
        offset,
        timestamp: SystemTime::now(),
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: Some(value.into()),
        headers: Vec::new(),
    }
}

fn result(offset: i64, id: &str) -> ReadRecord {
    let result = TaskResult {
        task_id: id.to_owned(),
        success: true,
        error: None,
        processed_by: "w".to_owned(),
        seconds: 0.1,
        output: Map::new(),
    };
    record(offset, id, result.encode())
}

fn status(offset: i64, age: Duration) -> ReadRecord {
    let status = WorkerStatus {
        worker_id: "w".to_owned(),
        status: WorkerState::Started,
        timestamp: 1_000.0,
        current_task: None,
        current_tasks: Vec::new(),
        current_task_seconds: Vec::new(),
        instance: Uuid::from_u128(1),
        started_at: 1_000.0,
        stop_deadline: None,
        holding_back: false,
        receipt: None,
    };
    ReadRecord { timestamp: SystemTime::now() - age, ..record(offset, "w", status.encode()) }
}

/// A caller that waits for this task.
fn park(tasks: &Tasks, key: TaskKey) -> Arc<Kept> {
    let kept = Arc::<Kept>::default();
    tasks.book().accept(key, Reply::new(Arc::clone(&kept) as _), Preferences::default(), Instant::now()).expect("room");
    kept
}

#[test]
fn result_is_given_to_its_callers_and_can_be_fetched() {
    let tasks = gateway();
    let id = Uuid::now_v7().to_string();
    let key = TaskKey::from_id(&id);
    let (first, second, other) = (park(&tasks, key), park(&tasks, key), park(&tasks, TaskKey::from_number(9)));
    take_results(&tasks, &[result(7, &id), result(8, &id)], |_| true);
    assert_eq!((first.0.lock().as_slice(), second.0.lock().as_slice()), ([200].as_slice(), [200].as_slice()));
    assert!(other.0.lock().is_empty());
    assert_eq!(tasks.book().known(key), Known::Done(Position { partition: 0, offset: 7 }));
    assert_eq!(tasks.book().counts().duplicate_results, 1);
}

#[test]
fn id_in_the_value_identifies_the_task() {
    let tasks = gateway();
    take_results(&tasks, &[ReadRecord { key: Some(Bytes::from_static(b"another")), ..result(7, "own") }], |_| true);
    let task = json!({"task_id": "mine", "text": "a", "timestamp": 1.0}).to_string();
    take_tasks(&tasks, &[record(3, "another", task), record(4, "", "no task")]);
    let known = |id: &str| tasks.book().known(TaskKey::from_id(id));
    assert_eq!(known("own"), Known::Done(Position { partition: 0, offset: 7 }));
    assert_eq!((known("mine"), known("another")), (Known::Pending, Known::Nothing));
    assert_eq!(tasks.book().counts().pending, 1);
}

#[test]
fn worker_that_is_read_back_is_dated_by_kafkas_time() {
    let tasks = gateway();
    tasks.clock.read([SystemTime::now(); 2]);
    take_results(&tasks, &[status(3, Duration::from_secs(60))], |_| false);
    assert_eq!(tasks.active_workers(), 0, "its last status record is a minute old");
    take_results(&tasks, &[status(10, Duration::from_secs(60))], |_| true);
    assert_eq!(tasks.active_workers(), 1, "a live record counts from its arrival, whatever its clock shows");
}

#[test]
fn record_with_a_future_date_makes_no_record_look_old() {
    let tasks = gateway();
    let future = ReadRecord { timestamp: SystemTime::now() + Duration::from_secs(9_000), ..result(7, "future") };
    // The tail has read it as well.
    tasks.clock.read([SystemTime::now(), future.timestamp]);
    take_results(&tasks, &[result(6, "a"), future], |_| false);
    tasks.book().forget_old(tasks.state.now());
    assert_eq!(tasks.book().counts().results, 2, "both have their true age");
}

#[test]
fn effect_of_a_claim_depends_on_the_results_before_it() {
    let tasks = gateway();
    let id = TaskKey::from_number(1).as_uuid().to_string();
    let claim = |offset: i64, text: &str| {
        let gateway = Uuid::from_u128(7).to_string();
        let claim = Claim { task_id: id.clone(), text_hash: digest(text).to_string(), gateway, timestamp: 1.0 };
        let timestamp = SystemTime::UNIX_EPOCH + Duration::from_secs(offset as u64);
        ReadRecord { timestamp, ..record(offset, &id, claim.encode()) }
    };
    // The first claim brought no task; the task of the second is done.
    take_results(&tasks, &[claim(10, "a"), claim(16, "b"), result(17, &id)], |_| false);
    let ask = |text: &str| {
        let wanted = Wanted { text: text.to_owned(), work_ms: None, headers: Headers::new() };
        let request =
            KeyedRequest { wanted, digest: digest(text), preferences: Preferences { asynchronous: true, wait: None } };
        let (reply, now) = (Reply::new(Arc::<Kept>::default() as _), tasks.now());
        tasks.book().accept_keyed(TaskKey::from_number(1), reply, request, now)
    };
    assert!(matches!(ask("b"), Keyed::Accepted(_)));
    assert!(matches!(ask("a"), Keyed::Conflict(_)));
}

#[test]
fn own_claim_has_its_task_produced() {
    let tasks = gateway();
    let key = TaskKey::from_number(1);
    let claim = Claim {
        task_id: key.as_uuid().to_string(),
        text_hash: digest("a").to_string(),
        gateway: tasks.state.instance.to_string(),
        timestamp: 1.0,
    };
    let kept = Arc::<Kept>::default();
    let wanted = Wanted { text: "a".to_owned(), work_ms: None, headers: Headers::new() };
    let request = KeyedRequest { wanted, digest: digest("a"), preferences: Preferences::default() };
    let now = tasks.now();
    let _ = tasks.book().accept_keyed(key, Reply::new(Arc::clone(&kept) as _), request, now);
    take_results(&tasks, &[record(5, "k", claim.encode())], |_| true);
    assert_eq!(*kept.0.lock(), [503], "there is no producer, so the caller is refused");
    assert_eq!(tasks.callers(), 0);
}

#[test]
fn records_that_cannot_be_decoded_are_counted_and_skipped() {
    let tasks = gateway();
    take_results(&tasks, &[record(1, "x", "no json"), record(2, "x", "{}"), result(3, "a")], |_| true);
    assert_eq!(tasks.book().counts().results, 1);
}

#[test]
fn ends_are_reached_only_on_all_partitions() {
    let ends = BTreeMap::from([(0, 5), (1, 0), (2, 3)]);
    assert!(!reached(&ends, &BTreeMap::from([(0, 5)])), "the position in the third partition is unknown");
    assert!(!reached(&ends, &BTreeMap::from([(0, 5), (2, 2)])));
    assert!(reached(&ends, &BTreeMap::from([(0, 6), (2, 3)])), "an empty partition has nothing to read");
}
