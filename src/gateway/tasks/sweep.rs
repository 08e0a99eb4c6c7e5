//! The sweeper: finds tasks that Kafka has dropped silently, and produces them again.
//!
//! A task can vanish by retention, by the broker's delivery limit, or by a reset of the group. It is lost if the
//! group's start offset has passed it and the log has no result: results are written before tasks are accepted. Before
//! a task is produced again, the log is searched for its result from the task's time on. All gateways see the same
//! loss, and the first to claim it produces the task (see [`idempotency`](super::idempotency)).

use super::Tasks;
use super::index::PendingTask;
use super::kept::{LostTask, Record};
use super::key::TaskKey;
use super::parting::tell_forgotten;
use super::readers::{decode, reached};
use crate::outage::{Outage, Refusals};
use crate::task::ResultsRecord;
use crate::task::dead::replay_of;
use bytes::Bytes;
use kafka_share::admin;
use kafka_share::cluster::Cluster;
use kafka_share::error::{ErrorCode, KafkaError};
use kafka_share::reader::{Lookup, ReadRecord, Reader, ReaderOptions, StartAt};
use program::stop::Stop;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime};

/// How often a task is produced again. A third drop has a reason that another copy does not fix.
const MOST_AGAIN: u32 = 2;
/// Results are kept for at least an hour. An older task may have had one, so it is not run again.
const RESULTS_KEPT: Duration = Duration::from_secs(3_500);
/// How long the search for results may go on without a record.
const READ_WAIT: Duration = Duration::from_secs(60);
/// How long before the task's time the search for its result begins.
const SLACK: Duration = Duration::from_secs(60);

/// The times of the sweep, all from one option.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// The average interval of sweeps.
    interval: Duration,
    /// A task without a result for this long is examined.
    suspicious: Duration,
    /// For this long it must then stay below the group's start offset without a result.
    grace: Duration,
}

impl Patience {
    /// From `MISSING_AFTER`.
    fn new(missing_after: Duration) -> Self {
        Self { interval: missing_after / 15, suspicious: missing_after, grace: missing_after / 2 }
    }
}

/// Sweeps until stopped.
///
/// # Errors
/// None: failed sweeps are retried. An interruption ends it.
pub(in crate::gateway) fn run(tasks: &Tasks, cluster: &Cluster, stop: &Stop) -> Result<(), KafkaError> {
    let mut suspects: HashMap<TaskKey, SystemTime> = HashMap::new();
    let patience = Patience::new(tasks.state.config.missing_after);
    // A refusal here leaves the gateway ready: only tasks that Kafka has dropped wait.
    let mut outage = Outage::new("the sweep: Kafka", &Refusals::default());
    while stop.sleep(patience.interval.mul_f64(0.5 + fastrand::f64())).is_ok() {
        measure_lag(tasks, cluster);
        // Also while the reader of tasks pauses at `MAX_PENDING`: if pending tasks were dropped, only the sweep makes
        // room.
        if !tasks.state.has_read_enough() || tasks.state.is_draining() {
            continue;
        }
        match sweep(tasks, cluster, patience, &mut suspects, &mut outage) {
            Ok(()) => {}
            Err(KafkaError::Interrupted) => return Ok(()),
            Err(error) => outage.report_refusal(&error),
        }
    }
    Ok(())
}

/// Asks Kafka how much the share group has not finished, for the metrics.
fn measure_lag(tasks: &Tasks, cluster: &Cluster) {
    let lags = admin::share_group_lags(cluster, &tasks.state.config.common.worker_group, &tasks.tasks_topic);
    let lags = lags.inspect_err(|error| log::debug!("the lag of the share group cannot be read: {error}"));
    // Empty if it is unknown: an old value would look like a queue that does not move.
    let known =
        lags.unwrap_or_default().into_iter().map(|(partition, lag)| (partition, usize::try_from(lag).unwrap_or(0)));
    *tasks.group_lags.lock() = known.collect();
}

fn sweep(
    tasks: &Tasks,
    cluster: &Cluster,
    patience: Patience,
    suspects: &mut HashMap<TaskKey, SystemTime>,
    outage: &mut Outage,
) -> Result<(), KafkaError> {
    let now = tasks.state.now();
    let old = tasks.book().pending_since(now - patience.suspicious);
    if old.is_empty() {
        suspects.clear();
        return Ok(());
    }
    let topic = &tasks.tasks_topic;
    let mut starts = admin::share_group_offsets(cluster, &tasks.state.config.common.worker_group, topic)?;
    outage.over();
    for (partition, start) in admin::start_offsets(cluster, topic)? {
        // Deleted records go to no worker, even if the group does not know that yet.
        let known = starts.entry(partition).or_insert(start);
        *known = start.max(*known);
    }
    let dropped = ripe(&old, &starts, suspects, now, patience.grace);
    let Some(earliest) = dropped.iter().map(|(_, task)| task.since).min() else { return Ok(()) };
    let done = done_since(tasks, cluster, now.duration_since(earliest).unwrap_or_default())?;
    let is_over = |key: &TaskKey, task: &PendingTask| {
        // The result before a replay is not that of the replay.
        done.get(key).is_some_and(|replay| *replay >= tasks.book().replay(*key))
            || now.duration_since(task.since).is_ok_and(|age| age > RESULTS_KEPT)
    };
    let (over, lost): (Vec<_>, Vec<_>) = dropped.into_iter().partition(|(key, task)| is_over(key, task));
    for (key, _) in over {
        suspects.remove(&key);
        forget(tasks, key);
    }
    let room = tasks.book().forget_late_losses(Instant::now());
    let mut lookup = Lookup::new(cluster.clone());
    for (key, task) in lost.into_iter().take(room) {
        suspects.remove(&key);
        let position = task.position;
        let record = lookup.read(topic, position.partition, position.offset)?;
        // Deleted from the topic: the gateway that accepted the task may still have it.
        let kept = || tasks.book().kept(key).map(|record| (Some(Bytes::from(key.as_uuid().to_string())), record));
        let found = record.and_then(copied).or_else(kept);
        let given_up = match &found {
            Some(_) if task.again < MOST_AGAIN => None,
            Some(_) => Some("was dropped again and again; it is not produced another time"),
            None => Some("was deleted without a result"),
        };
        if let Some(why) = given_up {
            let task = found.as_ref().map_or("the task".to_owned(), |(key, record)| record.named(key.as_deref()));
            log::error!("{task} at offset {} of {topic} {why}", position.offset);
            forget(tasks, key);
            continue;
        }
        let Some((record_key, record)) = found.filter(|_| tasks.book().is_pending_at(key, position)) else {
            // Another gateway was faster, or the result has arrived.
            continue;
        };
        tasks.claim_lost(LostTask { key, position, record_key, record });
    }
    Ok(())
}

/// Forgets a task that will get no result, and tells its callers.
fn forget(tasks: &Tasks, key: TaskKey) {
    let callers = tasks.book().settled(key);
    tell_forgotten(callers);
}

/// The key, value and headers of a record; `None` without a value. Copies, since a record shares its memory with the
/// whole answer.
fn copied(record: ReadRecord) -> Option<(Option<Bytes>, Record)> {
    let copy = |bytes: Bytes| Bytes::copy_from_slice(&bytes);
    let headers = record.headers.into_iter().map(|(name, value)| (Cow::Owned(name), value.map(copy))).collect();
    Some((record.key.map(copy), Record { value: copy(record.value?), headers }))
}

/// Returns the old tasks that have been below the group's start offset for `grace`. Pure.
fn ripe(
    old: &[(TaskKey, PendingTask)],
    starts: &BTreeMap<i32, i64>,
    suspects: &mut HashMap<TaskKey, SystemTime>,
    now: SystemTime,
    grace: Duration,
) -> Vec<(TaskKey, PendingTask)> {
    let is_below =
        |task: &PendingTask| starts.get(&task.position.partition).is_some_and(|start| task.position.offset < *start);
    let below: BTreeMap<TaskKey, PendingTask> = old.iter().filter(|(_, task)| is_below(task)).copied().collect();
    suspects.retain(|key, _| below.contains_key(key));
    let has_stayed = |since: SystemTime| now.duration_since(since).unwrap_or_default() >= grace;
    below.into_iter().filter(|(key, _)| has_stayed(*suspects.entry(*key).or_insert(now))).collect()
}

/// The tasks with a result in the last part of the log, of this age, and the last replay that has one.
///
/// # Errors
/// Not every partition could be read to its end: then it is unknown which tasks have a result.
fn done_since(tasks: &Tasks, cluster: &Cluster, age: Duration) -> Result<BTreeMap<TaskKey, u64>, KafkaError> {
    let options = ReaderOptions { max_bytes: 2 * 1024 * 1024, ..ReaderOptions::default() };
    // Counted back from the newest record, without the gateway's clock.
    let mut reader = Reader::new(cluster.clone(), &tasks.results_topic, StartAt::AtLeast(age + SLACK), options);
    let ends = reader.all_end_offsets()?;
    let mut done = BTreeMap::new();
    let mut read_at = Instant::now();
    while !reached(&ends, &reader.positions()) {
        if read_at.elapsed() >= READ_WAIT {
            let text = "no result was read for a minute";
            return Err(KafkaError::broker("Fetch", ErrorCode::REQUEST_TIMED_OUT, Some(text)));
        }
        for record in reader.poll()? {
            read_at = Instant::now();
            if let ResultsRecord::Result(peek) = decode(&record) {
                let last: &mut u64 = done.entry(TaskKey::from_id(&peek.task_id)).or_default();
                *last = replay_of(&record.headers).max(*last);
            }
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::super::key::Position;
    use super::super::waiting::Poll;
    use super::*;
    use crate::config::GatewayConfig;
    use crate::gateway::state::State;
    use crate::http::reply::tests::Kept;
    use crate::http::reply::{Preferences, Reply};
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    #[test]
    fn callers_of_a_forgotten_task_learn_that_it_gets_no_result() {
        let tasks = Tasks::new(Arc::new(State::new(GatewayConfig::default()))).0;
        let (kept, key, now) = (Arc::<Kept>::default(), TaskKey::from_id("1"), tasks.now());
        let reply = || Reply::new(Arc::clone(&kept) as _);
        tasks.book().accept(key, reply(), Preferences::default(), now.instant).expect("room");
        tasks.book().in_kafka(key, Position { partition: 0, offset: 7 }, now.time);
        let poll = Poll { key, id: "1".to_owned(), reply: reply(), wait: Duration::from_secs(5) };
        tasks.book().poll(poll, now.instant).expect("it is pending");
        forget(&tasks, key);
        assert_eq!((kept.0.lock().as_slice(), tasks.callers()), ([503, 404].as_slice(), 0));
    }

    #[test]
    fn task_is_ripe_after_the_grace_below_the_start_offset() {
        let task = |number: u128, offset: i64| {
            let position = Position { partition: 0, offset };
            let task = PendingTask { position, since: UNIX_EPOCH, again: 0 };
            (TaskKey::from_number(number), task)
        };
        const GRACE: Duration = Duration::from_secs(30);
        let at = |seconds: f64| UNIX_EPOCH + Duration::from_secs_f64(seconds);
        let old = [task(1, 5), task(2, 10), task(3, 11)];
        let mut suspects = HashMap::new();
        let starts = BTreeMap::from([(0, 10)]);
        assert!(ripe(&old, &starts, &mut suspects, at(100.0), GRACE).is_empty(), "seen for the first time");
        assert!(ripe(&old, &starts, &mut suspects, at(129.9), GRACE).is_empty());
        assert_eq!(ripe(&old, &starts, &mut suspects, at(130.0), GRACE), [task(1, 5)]);
        assert!(ripe(&old[1..], &starts, &mut suspects, at(140.0), GRACE).is_empty());
        assert!(suspects.is_empty(), "a task that got its result is forgotten");
        assert!(
            ripe(&old, &BTreeMap::new(), &mut suspects, at(200.0), GRACE).is_empty(),
            "no task is ripe without offsets"
        );
    }
}
