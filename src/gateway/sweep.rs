//! The sweeper: finds tasks that Kafka has dropped without anybody saying so, and produces them again.
//!
//! A task can vanish by retention, by the broker's own delivery limit, or by a reset of the group. The sign is a task
//! without a result below the group's start offset: the group is done with it. Results are written before tasks are
//! accepted, so when the start offset is past a task its result stands in the log, or it has none. Before anything is
//! produced again the log is searched for the result, from the task's own time on.

use super::desk::Desk;
use super::index::{PendingTask, TaskKey};
use super::readers;
use super::submit::Submitter;
use crate::kafka::admin;
use crate::kafka::cluster::Cluster;
use crate::kafka::error::KafkaError;
use crate::kafka::reader::{Lookup, Reader, ReaderOptions, StartAt};
use crate::stop::Stop;
use crate::task::ResultsRecord;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Tasks produced again in one round at the most.
const MOST_AT_ONCE: usize = 500;
/// A task is produced again so often. Kafka, or a program that owns the group, drops what it has dropped three times
/// for a reason.
const MOST_AGAIN: u32 = 2;
/// Results are kept for an hour at least: an older task without one may have had it, and is not run again.
const RESULTS_KEPT_SECONDS: f64 = 3_500.0;

/// Results are looked for from so long before the task on.
const SLACK: Duration = Duration::from_secs(60);

/// The times of the sweep, all from one option.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// How often is looked, on average.
    interval: Duration,
    /// A task without a result for so many seconds is looked at.
    suspicious: f64,
    /// It must stay without a result for so many seconds below the group's start offset.
    grace: f64,
}

impl Patience {
    /// From `MISSING_AFTER`.
    fn new(missing_after: Duration) -> Self {
        let suspicious = missing_after.as_secs_f64();
        Self { interval: missing_after / 15, suspicious, grace: suspicious / 2.0 }
    }
}

/// Looks again and again until stopped.
pub(super) fn run(desk: &Arc<Desk>, submitter: &Submitter, cluster: &Cluster, stop: &Stop) -> Result<(), KafkaError> {
    let mut suspects: HashMap<TaskKey, f64> = HashMap::new();
    // All gateways see the same; with their rounds apart the first to look produces, and the others see its record.
    let patience = Patience::new(desk.config.missing_after);
    while stop.sleep(patience.interval.mul_f64(0.5 + fastrand::f64())).is_ok() {
        // Also with `MAX_PENDING` tasks pending and others not read: what was dropped of them makes room here only.
        if !desk.has_read_enough() || desk.is_draining() {
            continue;
        }
        match sweep(desk, submitter, cluster, patience, &mut suspects) {
            Ok(()) => {}
            Err(KafkaError::Interrupted) => return Ok(()),
            Err(error) => log::debug!("the sweep failed: {error}"),
        }
    }
    Ok(())
}

fn sweep(
    desk: &Desk,
    submitter: &Submitter,
    cluster: &Cluster,
    patience: Patience,
    suspects: &mut HashMap<TaskKey, f64>,
) -> Result<(), KafkaError> {
    let now = desk.now();
    let old = desk.state().index.pending_since(now - patience.suspicious);
    if old.is_empty() {
        suspects.clear();
        return Ok(());
    }
    let common = &desk.config.common;
    let mut starts = admin::share_group_offsets(cluster, &common.worker_group, &common.tasks_topic)?;
    for (partition, start) in admin::start_offsets(cluster, &common.tasks_topic)? {
        // What the topic has deleted nobody gets any more, whether the group knows or not.
        let known = starts.entry(partition).or_insert(start);
        *known = start.max(*known);
    }
    let dropped = ripe(&old, &starts, suspects, now, patience.grace);
    if dropped.is_empty() {
        return Ok(());
    }
    let earliest = dropped.iter().map(|(_, task)| task.since).fold(f64::INFINITY, f64::min);
    let answered = answered_since(desk, cluster, earliest)?;
    let mut lookup = Lookup::new(cluster.clone());
    for (key, task) in dropped.into_iter().take(MOST_AT_ONCE) {
        suspects.remove(&key);
        let place = task.place;
        if now - task.since > RESULTS_KEPT_SECONDS || answered.contains(&key) {
            desk.state().task_is_settled(key);
            continue;
        }
        let record = lookup.read(&common.tasks_topic, place.partition, place.offset)?;
        // Deleted from the topic: whoever accepted it has it still.
        let kept = || desk.state().kept.get(key).map(|value| (Some(Bytes::from(key.as_uuid().to_string())), value));
        let found = record.and_then(|record| Some((record.key, record.value?))).or_else(kept);
        let given_up = match &found {
            Some(_) if task.again < MOST_AGAIN => None,
            Some(_) => Some("was dropped again and again; it is not produced once more"),
            None => Some("was deleted without a result"),
        };
        if let Some(why) = given_up {
            log::error!("the task at offset {} of {} {why}", place.offset, common.tasks_topic);
            desk.state().task_is_settled(key);
            continue;
        }
        let Some((record_key, value)) = found.filter(|_| desk.state().index.is_pending_at(key, place)) else {
            // Another gateway was faster, or the result has come.
            continue;
        };
        desk.metrics.produced_again();
        log::warn!("Kafka has dropped the task at offset {} without a result; producing it again", place.offset);
        submitter.produce_again(key, record_key, value);
    }
    Ok(())
}

/// Of the old tasks those that have been below the group's start offset for `grace` seconds. Pure.
fn ripe(
    old: &[(TaskKey, PendingTask)],
    starts: &BTreeMap<i32, i64>,
    suspects: &mut HashMap<TaskKey, f64>,
    now: f64,
    grace: f64,
) -> Vec<(TaskKey, PendingTask)> {
    let is_below =
        |task: &PendingTask| starts.get(&task.place.partition).is_some_and(|start| task.place.offset < *start);
    let below: BTreeMap<TaskKey, PendingTask> = old.iter().filter(|(_, task)| is_below(task)).copied().collect();
    suspects.retain(|key, _| below.contains_key(key));
    below.into_iter().filter(|(key, _)| now - *suspects.entry(*key).or_insert(now) >= grace).collect()
}

/// The tasks that have a result in the log since `since`.
fn answered_since(desk: &Desk, cluster: &Cluster, since: f64) -> Result<BTreeSet<TaskKey>, KafkaError> {
    // Counted back from the newest record: no clock of ours takes part.
    let age = Duration::from_secs_f64((desk.now() - since).max(0.0)) + SLACK;
    let options = ReaderOptions { max_bytes: 2 * 1024 * 1024, ..ReaderOptions::default() };
    let mut reader = Reader::new(cluster.clone(), &desk.config.common.results_topic, StartAt::AtLeast(age), options);
    let ends = reader.end_offsets()?;
    let mut answered = BTreeSet::new();
    loop {
        for record in reader.poll()? {
            if let ResultsRecord::Result(peek) = readers::decode(&record) {
                answered.insert(TaskKey::from_id(&peek.task_id));
            }
        }
        let positions = reader.positions();
        if ends.iter().all(|(partition, end)| *end == 0 || positions.get(partition).is_some_and(|at| at >= end)) {
            return Ok(answered);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::index::Place;
    use super::*;

    #[test]
    fn only_what_stays_below_the_start_offset_for_the_grace_is_ripe() {
        let task = |number: u128, offset: i64| {
            let task = PendingTask { place: Place { partition: 0, offset }, since: 0.0, again: 0 };
            (TaskKey::from_number(number), task)
        };
        let old = [task(1, 5), task(2, 10), task(3, 11)];
        let mut suspects = HashMap::new();
        let starts = BTreeMap::from([(0, 10)]);
        assert!(ripe(&old, &starts, &mut suspects, 100.0, 30.0).is_empty(), "seen for the first time");
        assert!(ripe(&old, &starts, &mut suspects, 129.9, 30.0).is_empty());
        assert_eq!(ripe(&old, &starts, &mut suspects, 130.0, 30.0), [task(1, 5)]);
        assert!(ripe(&old[1..], &starts, &mut suspects, 140.0, 30.0).is_empty());
        assert!(suspects.is_empty(), "a task that got its result is forgotten");
        assert!(ripe(&old, &BTreeMap::new(), &mut suspects, 200.0, 30.0).is_empty(), "no offsets, no verdict");
    }
}
