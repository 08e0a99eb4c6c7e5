//! The readers: apply the records of Kafka to the gateway's state.
//!
//! | thread | topic | from | for |
//! |---|---|---|---|
//! | `results-tail` | `results` | its end minus 10 s | waiting callers, the fleet, claims |
//! | `results-past` | `results` | `RESULT_RETENTION` ago, to the end seen at its start | the index, gone workers |
//! | `tasks` | `tasks` | the group's start offset | pending tasks |
//!
//! The tail serves from the first moment. An unknown task is known not to exist only after the other two have reached
//! the ends that they saw. Records up to the ends at the start count from Kafka's time, later ones from their arrival.
//! Records are decoded before the book is locked, a batch at a time.

use super::Tasks;
use super::idempotency::Claim;
use super::key::{Position, TaskKey};
use super::parting::tell_accepted;
use super::submit::claim_of;
use super::waiting::{Waiter, Wish};
use crate::gateway::fleet::{FleetEvent, log_events};
use crate::gateway::state::ReadBack;
use crate::http::reply::Reply;
use crate::http::response::Response;
use crate::outage::Outage;
use crate::task::dead::replay_of;
use crate::task::{ResultPeek, ResultsRecord, Task};
use bytes::Bytes;
use kafka_share::admin;
use kafka_share::cluster::Cluster;
use kafka_share::error::KafkaError;
use kafka_share::reader::{ReadRecord, Reader, ReaderOptions, StartAt};
use program::stop::Stop;
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

/// How far before its end the tail begins: long enough for a status record of every live worker.
const TAIL: Duration = Duration::from_secs(10);
/// How long a fetch is parked while no records arrive.
const MAX_WAIT: Duration = Duration::from_millis(500);
/// Bytes of one fetch: several thousand results.
const MAX_BYTES: i32 = 2 * 1024 * 1024;
/// The tasks of other gateways are known within this time.
const TASKS_WAIT: Duration = Duration::from_millis(250);
/// A fetch of tasks returns earlier with this many bytes.
const TASKS_BYTES: i32 = 64 * 1024;
/// How far the past reader begins before the retention, since clocks differ a little.
const CLOCK_SLACK: Duration = Duration::from_secs(5);

/// The options of the readers of results.
pub(super) fn options() -> ReaderOptions {
    ReaderOptions { max_wait: MAX_WAIT, max_bytes: MAX_BYTES, ..ReaderOptions::default() }
}

/// Reads the tail of `results` until stopped.
///
/// # Errors
/// None: failed reads are retried. An interruption ends it.
pub(in crate::gateway) fn tail(tasks: &Tasks, cluster: Cluster, stop: &Stop) -> Result<(), KafkaError> {
    let mut reader = Reader::new(cluster, &tasks.results_topic, StartAt::EndMinus(TAIL), options());
    let mut outage = Outage::new("Kafka", &tasks.state.refusals);
    let mut live_from: Option<BTreeMap<i32, i64>> = None;
    while !stop.is_triggered() {
        tasks.state.tail_came_round();
        let Some(ends) = &live_from else {
            match reader.end_offsets() {
                Ok(ends) => live_from = Some(ends),
                Err(KafkaError::Interrupted) => return Ok(()),
                Err(error) => {
                    outage.report(&error);
                    if stop.sleep(MAX_WAIT / 5).is_err() {
                        return Ok(());
                    }
                }
            }
            continue;
        };
        match reader.poll() {
            Ok(records) => {
                outage.over();
                // Not the end of the poll: with a frozen broker, polls end empty for seconds.
                if let Some(at) = reader.last_answer() {
                    tasks.state.kafka_answered(at);
                }
                // Only by the tail: otherwise a record with a future date would count twice.
                tasks.clock.read(records.iter().map(|record| record.timestamp));
                take_results(tasks, &records, |record| {
                    ends.get(&record.partition).is_none_or(|end| record.offset >= *end)
                });
            }
            Err(KafkaError::Interrupted) => return Ok(()),
            Err(error) => outage.report(&error),
        }
        tasks.state.set_throttled(reader.throttled_since());
    }
    Ok(())
}

/// Reads the results of the retention, up to the present end.
pub(in crate::gateway) fn past(tasks: &Tasks, cluster: Cluster, stop: &Stop) {
    let from = StartAt::AtLeast(tasks.state.config.common.result_retention + CLOCK_SLACK);
    let reader = Reader::new(cluster, &tasks.results_topic, from, options());
    if until_end(reader, stop, |records| take_results(tasks, records, |_| false)).is_ok() {
        tasks.set_read(ReadBack::Results);
    }
}

/// A record for the book.
enum Entry<'r> {
    Result { position: Position, at: SystemTime, live: bool, replay: u64, peek: ResultPeek, value: &'r Bytes },
    Claim(TaskKey, Claim),
}

/// Applies the results, status records and claims of one fetch, with one lock of the book. Records from before the
/// start cause no events.
fn take_results(tasks: &Tasks, records: &[ReadRecord], is_live: impl Fn(&ReadRecord) -> bool) {
    if records.is_empty() {
        return;
    }
    let now = tasks.now();
    let (mut entries, mut statuses) = (Vec::new(), Vec::new());
    for record in records {
        let (live, written) = (is_live(record), record.timestamp);
        let at = if live { now.time } else { tasks.clock.date(written, now.time) };
        match (decode(record), &record.value) {
            (ResultsRecord::Result(peek), Some(value)) => {
                let position = Position { partition: record.partition, offset: record.offset };
                let replay = replay_of(&record.headers);
                entries.push(Entry::Result { position, at, live, replay, peek, value });
            }
            (ResultsRecord::Status(status), _) => {
                let seen = if live { now.time } else { tasks.clock.last_seen(written, now.time) };
                statuses.push((status, seen, record.offset, live));
            }
            (ResultsRecord::Claim(claim), _) => {
                entries.extend(claim_of(&claim, written, at).map(|(key, claim)| Entry::Claim(key, claim)));
            }
            (ResultsRecord::Bad(_), _) if live => tasks.state.metrics.unreadable(),
            (ResultsRecord::Result(_) | ResultsRecord::Bad(_) | ResultsRecord::Other, _) => {}
        }
    }
    let (mut responses, mut claims, mut finished, mut failed) = (Vec::new(), Vec::new(), 0, 0);
    {
        let mut book = tasks.book();
        // In the order of the log: the effect of a claim depends on the results before it.
        for entry in entries {
            match entry {
                Entry::Result { position, at, live, replay, peek, value } => {
                    let key = TaskKey::from_id(&peek.task_id);
                    if !book.heeds(key, replay) {
                        continue;
                    }
                    let (is_news, callers) = book.done(key, position, at);
                    finished += u64::from(is_news && live);
                    failed += u64::from(is_news && live && !peek.success);
                    responses.extend((!callers.is_empty()).then_some((callers, peek, value)));
                }
                Entry::Claim(key, claim) => {
                    claims.push((key, book.claim_read(key, claim, tasks.state.instance, now.instant)));
                }
            }
        }
        book.finished(finished, now.instant);
    }
    tasks.state.metrics.results(finished - failed, failed);
    for (callers, peek, value) in responses {
        respond(tasks, callers, &peek, value, now.instant);
    }
    let events: Vec<_> = {
        let mut fleet = tasks.fleet.lock();
        let heard = statuses.into_iter().map(|(status, at, offset, live)| (fleet.hear(*status, at, offset), live));
        heard.filter(|(_, live)| *live).flat_map(|(events, _)| events).collect()
    };
    for event in &events {
        if let FleetEvent::ShutdownCompleted(_, Some(receipt)) = event {
            tasks.state.metrics.stopped(receipt);
        }
    }
    log_events(&events);
    for (key, comes_to) in claims {
        tasks.claim_came(key, comes_to);
    }
}

/// Gives the callers of a result their responses.
fn respond(tasks: &Tasks, callers: Vec<Waiter<Reply>>, peek: &ResultPeek, value: &[u8], now: Instant) {
    tasks.state.metrics.answered(callers.iter().filter(|caller| caller.wish == Wish::Result).count());
    for caller in callers {
        let took = now.saturating_duration_since(caller.since);
        if let Wish::Poll(_) = caller.wish {
            caller.reply.give(Response::stored_result(peek, value));
            continue;
        }
        caller.reply.give(match caller.wish {
            // The result arrived before the acknowledgement.
            Wish::Acceptance if caller.preferences.asynchronous => Response::accepted(&peek.task_id),
            _ if caller.is_first => Response::result(peek, value).took(took),
            _ => Response::result(peek, value),
        });
    }
}

/// Decodes a record of `results`.
pub(super) fn decode(record: &ReadRecord) -> ResultsRecord {
    let headers = record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
    ResultsRecord::of_record(headers, record.value.as_deref())
}

/// Reads the tasks from the group's start offset on, until stopped.
///
/// # Errors
/// None: failed reads are retried. An interruption ends it.
pub(in crate::gateway) fn tasks(tasks: &Tasks, cluster: Cluster, stop: &Stop) -> Result<(), KafkaError> {
    let mut outage = Outage::new("the reader of tasks: Kafka", &tasks.state.refusals);
    let Some(start) = group_start(tasks, &cluster, &mut outage, stop) else { return Ok(()) };
    // This gateway's tasks are entered when Kafka acknowledges them. Other gateways' tasks may be known a little later,
    // and fewer fetches leave the broker more time for tasks.
    let options = ReaderOptions { max_wait: TASKS_WAIT, max_bytes: MAX_BYTES, min_bytes: TASKS_BYTES };
    // Committed like the group: a task of an aborted transaction never runs, so it must not count as pending.
    let mut reader = Reader::new(cluster, &tasks.tasks_topic, StartAt::Offsets(start), options).committed();
    let mut ends: Option<BTreeMap<i32, i64>> = None;
    let mut behind = true;
    while !stop.is_triggered() {
        if tasks.book().counts().pending >= tasks.state.config.max_pending {
            tasks.set_read(ReadBack::TasksFull);
            // Unread tasks stay in Kafka. Until they are read, unknown tasks get no 404, and new tasks are refused.
            if stop.sleep(TASKS_WAIT).is_err() {
                return Ok(());
            }
            continue;
        }
        if ends.is_none() {
            ends = reader.end_offsets().ok();
        }
        match reader.poll() {
            Ok(records) => {
                outage.over();
                take_tasks(tasks, &records);
                tasks.passed(reader.passes());
            }
            Err(KafkaError::Interrupted) => return Ok(()),
            // The tail logs that Kafka is unavailable.
            Err(error) => outage.report_refusal(&error),
        }
        if behind && ends.as_ref().is_some_and(|ends| reached(ends, &reader.positions())) {
            behind = false;
            tasks.set_read(ReadBack::Tasks);
        }
    }
    Ok(())
}

fn take_tasks(tasks: &Tasks, records: &[ReadRecord]) {
    if records.is_empty() {
        return;
    }
    let now = tasks.state.now();
    // A record without an id is not a task; a worker dead-letters it.
    let id_of = |record: &ReadRecord| Task::id_of(record.key.as_deref(), record.value.as_deref());
    let found: Vec<_> = records.iter().filter_map(|record| Some((record, id_of(record)?))).collect();
    let mut accepted = Vec::new();
    {
        let mut book = tasks.book();
        for (record, id) in found {
            let position = Position { partition: record.partition, offset: record.offset };
            let at = tasks.clock.date(record.timestamp, now);
            let key = TaskKey::from_id(&id);
            if !book.heeds(key, replay_of(&record.headers)) {
                continue;
            }
            let callers = book.in_kafka(key, position, at);
            accepted.extend((!callers.is_empty()).then_some((callers, id)));
        }
    }
    for (callers, id) in accepted {
        tell_accepted(callers, &id);
    }
}

/// Returns the group's start offset of each partition; `None` when stopped first. A group without members so far has no
/// offsets yet, and everything is read.
fn group_start(tasks: &Tasks, cluster: &Cluster, outage: &mut Outage, stop: &Stop) -> Option<BTreeMap<i32, i64>> {
    let common = &tasks.state.config.common;
    loop {
        match admin::share_group_offsets(cluster, &common.worker_group, &common.tasks_topic) {
            Ok(offsets) => {
                outage.over();
                return Some(offsets.into_iter().filter(|(_, offset)| *offset >= 0).collect());
            }
            Err(KafkaError::Interrupted) => return None,
            // The group has no start offsets yet, or its coordinator is unavailable.
            Err(error) => outage.report_refusal(&error),
        }
        stop.sleep(MAX_WAIT / 5).ok()?;
    }
}

/// Reads all partitions until the ends that are seen at the beginning. `Err`: stopped.
fn until_end(mut reader: Reader, stop: &Stop, mut take: impl FnMut(&[ReadRecord])) -> Result<(), ()> {
    let mut ends: Option<BTreeMap<i32, i64>> = None;
    loop {
        stop.check().map_err(|_| ())?;
        if ends.is_none() {
            ends = reader.all_end_offsets().ok();
        }
        match reader.poll() {
            Ok(records) => take(&records),
            Err(KafkaError::Interrupted) => return Err(()),
            Err(error) => log::debug!("reading back failed: {error}"),
        }
        if ends.as_ref().is_some_and(|ends| reached(ends, &reader.positions())) {
            return Ok(());
        }
    }
}

/// Whether these positions have reached these ends.
pub(super) fn reached(ends: &BTreeMap<i32, i64>, positions: &BTreeMap<i32, i64>) -> bool {
    ends.iter().all(|(partition, end)| *end == 0 || positions.get(partition).is_some_and(|position| position >= end))
}

#[cfg(test)]
mod tests;
