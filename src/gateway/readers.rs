//! The readers: what the gateway learns from Kafka.
//!
//! | thread | topic | from | for |
//! |---|---|---|---|
//! | `results-tail` | `results` | its end minus 10 s | waiting callers, the fleet, claims |
//! | `results-past` | `results` | `RESULT_RETENTION` ago, to the end seen at its start | the index, gone workers; then it ends |
//! | `tasks` | `tasks` | the group's start offset | pending tasks |
//!
//! The tail serves from the first moment; only once the other two have reached the ends that they saw is an unknown
//! task known not to exist. All records seen up to the ends at the start count from Kafka's time, later ones from their
//! arrival.

use super::answer::Answer;
use super::desk::{Desk, RESULTS_READ, TASKS_FULL, TASKS_READ, log_events};
use super::index::{HeldClaim, Place, TaskKey};
use super::lookup::Questions;
use super::reply::Reply;
use super::submit::Submitter;
use super::waiting::{Waiter, Wish};
use crate::kafka::admin;
use crate::kafka::cluster::Cluster;
use crate::kafka::error::KafkaError;
use crate::kafka::reader::{ReadRecord, Reader, ReaderOptions, StartAt};
use crate::stop::Stop;
use crate::task::{ResultPeek, ResultsRecord, Task};
use crate::worker::outage::Outage;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// How far before its end the tail begins: long enough that a fleet of live workers has been heard.
const TAIL: Duration = Duration::from_secs(10);
/// How long a fetch is parked while nothing comes.
const MAX_WAIT: Duration = Duration::from_millis(500);
/// Bytes of one fetch: several thousand results.
const MAX_BYTES: i32 = 2 * 1024 * 1024;
/// The tasks of other gateways are known within this.
const TASKS_WAIT: Duration = Duration::from_millis(250);
/// So many bytes of tasks are handed over before that.
const TASKS_BYTES: i32 = 64 * 1024;
/// Before this is reached results may still be missing from the index, because of clocks that differ a little.
const CLOCK_SLACK: Duration = Duration::from_secs(5);

fn options() -> ReaderOptions {
    ReaderOptions { max_wait: MAX_WAIT, max_bytes: MAX_BYTES, ..ReaderOptions::default() }
}

/// The tail of `results`, until stopped.
pub(super) fn tail(desk: &Arc<Desk>, submitter: &Submitter, cluster: Cluster, stop: &Stop) -> Result<(), KafkaError> {
    let mut reader = Reader::new(cluster, &desk.config.common.results_topic, StartAt::EndMinus(TAIL), options());
    let mut outage = Outage::new("Kafka");
    let mut live_from: Option<BTreeMap<i32, i64>> = None;
    while !stop.is_triggered() {
        desk.tail_turned();
        if live_from.is_none() {
            match reader.end_offsets() {
                Ok(ends) => live_from = Some(ends),
                Err(KafkaError::Interrupted) => return Ok(()),
                Err(error) => {
                    outage.report(&error);
                    if stop.sleep(MAX_WAIT / 5).is_err() {
                        return Ok(());
                    }
                    continue;
                }
            }
        }
        match reader.poll() {
            Ok(records) => {
                outage.over();
                // Not the end of the poll: a frozen broker lets polls end empty for seconds.
                if let Some(at) = reader.last_answer() {
                    desk.kafka_answered(at);
                }
                let ends = live_from.as_ref();
                let live = |record: &ReadRecord| {
                    ends.is_none_or(|ends| ends.get(&record.partition).is_none_or(|end| record.offset >= *end))
                };
                take_results(desk, submitter, &records, &live);
            }
            Err(KafkaError::Interrupted) => return Ok(()),
            Err(error) => outage.report(&error),
        }
    }
    Ok(())
}

/// Results, statuses and claims of one fetch, with one visit to the lock.
fn take_results(desk: &Desk, submitter: &Submitter, records: &[ReadRecord], live: &dyn Fn(&ReadRecord) -> bool) {
    if records.is_empty() {
        return;
    }
    let (now, instant) = (desk.now(), Instant::now());
    let (mut answers, mut events, mut claims) = (Vec::new(), Vec::new(), Vec::new());
    let mut finished = 0;
    let decoded: Vec<_> = records.iter().map(|record| (record, decode(record), live(record))).collect();
    {
        let mut state = desk.state();
        // First, so that the age of each is right.
        records.iter().for_each(|record| state.record_read(unix_time(record.timestamp)));
        for (record, decoded, is_live) in decoded {
            let place = Place { partition: record.partition, offset: record.offset };
            let written = unix_time(record.timestamp);
            let at = if is_live { now } else { state.date(written, now) };
            match (decoded, &record.value) {
                (ResultsRecord::Result(peek), Some(value)) => {
                    let (news, callers) = state.task_is_done(TaskKey::from_id(&peek.task_id), place, at);
                    finished += u64::from(news);
                    answers.extend((!callers.is_empty()).then_some((callers, peek, value)));
                }
                (ResultsRecord::Status(status), _) => {
                    let at = if is_live { now } else { state.date_of_life(written, now) };
                    let heard = state.fleet.hear(*status, at, record.offset);
                    if is_live {
                        events.extend(heard);
                    }
                }
                (ResultsRecord::Claim(claim), _) => {
                    if let Some((key, held)) = claim_of(&claim, written, at) {
                        claims.push((key, state.index.claim(key, held).0));
                    }
                }
                (ResultsRecord::Bad(_), _) => desk.metrics.bad_record(),
                (ResultsRecord::Result(_) | ResultsRecord::Other, _) => {}
            }
        }
        let pending = state.index.pending_count();
        state.rate.finished(finished, pending, instant);
    }
    desk.metrics.results(finished);
    for (callers, peek, value) in answers {
        answer(desk, callers, &peek, value, instant);
    }
    log_events(&events);
    for (key, held) in claims {
        submitter.claim_read(key, held);
    }
}

/// Answers the callers whose results have come.
fn answer(desk: &Desk, callers: Vec<Waiter<Reply>>, peek: &ResultPeek, value: &[u8], now: Instant) {
    for caller in callers {
        desk.metrics.answer_took(now.saturating_duration_since(caller.since));
        caller.reply.give(match caller.wish {
            // The result was faster than the acknowledgement.
            Wish::Acceptance => Answer::accepted(&peek.task_id),
            _ => Answer::result(peek, value),
        });
    }
}

/// What a record of `results` is.
pub(super) fn decode(record: &ReadRecord) -> ResultsRecord {
    let headers = record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
    ResultsRecord::of_record(headers, record.value.as_deref())
}

fn claim_of(claim: &crate::task::Claim, at: f64, heard: f64) -> Option<(TaskKey, HeldClaim)> {
    let digest = Uuid::try_parse(&claim.text_hash).ok()?;
    let gateway = Uuid::try_parse(&claim.gateway).ok()?;
    Some((TaskKey::from_id(&claim.task_id), HeldClaim { digest, gateway, at, heard }))
}

fn unix_time(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The results of the retention, up to the end that is seen now.
pub(super) fn past(desk: &Arc<Desk>, cluster: Cluster, stop: &Stop) -> Result<(), KafkaError> {
    let from = StartAt::AtLeast(desk.config.common.result_retention + CLOCK_SLACK);
    let reader = Reader::new(cluster, &desk.config.common.results_topic, from, options());
    let read = until_end(reader, stop, |records| {
        let now = desk.now();
        let decoded: Vec<_> = records.iter().map(|record| (record, decode(record))).collect();
        let mut state = desk.state();
        for (record, decoded) in decoded {
            let place = Place { partition: record.partition, offset: record.offset };
            let written = unix_time(record.timestamp);
            let at = state.date(written, now);
            match decoded {
                ResultsRecord::Result(peek) => {
                    state.index.result(TaskKey::from_id(&peek.task_id), place, at);
                }
                ResultsRecord::Status(status) => {
                    let at = state.date_of_life(written, now);
                    // What happened before the start is no news.
                    let _ = state.fleet.hear(*status, at, record.offset);
                }
                ResultsRecord::Claim(claim) => {
                    if let Some((key, held)) = claim_of(&claim, written, at) {
                        state.index.claim(key, held);
                    }
                }
                _ => {}
            }
        }
    });
    if read.is_ok() {
        desk.set_read(RESULTS_READ);
    }
    Ok(())
}

/// The tasks from the group's start offset on, until stopped.
pub(super) fn tasks(desk: &Arc<Desk>, questions: &Questions, cluster: Cluster, stop: &Stop) -> Result<(), KafkaError> {
    let Some(start) = group_start(desk, &cluster, stop) else { return Ok(()) };
    let topic = &desk.config.common.tasks_topic;
    // Our own tasks are entered when Kafka acknowledges them; those of other gateways may be known a little later, and
    // every answer less leaves the broker more time for tasks.
    let options = ReaderOptions { max_wait: TASKS_WAIT, max_bytes: MAX_BYTES, min_bytes: TASKS_BYTES };
    // The group is read_committed as well: a task of an aborted transaction is never run, and must not be waited for.
    let mut reader = Reader::new(cluster, topic, StartAt::Offsets(start), options).committed();
    let mut ends: Option<BTreeMap<i32, i64>> = None;
    let mut behind = true;
    while !stop.is_triggered() {
        if desk.state().index.pending_count() >= desk.config.max_pending {
            desk.set_read(TASKS_FULL);
            // What is not read yet stays in Kafka; until then unknown tasks are not said not to exist, and new ones are
            // refused.
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
                take_tasks(desk, &records);
                questions.passed(reader.passes());
            }
            Err(KafkaError::Interrupted) => return Ok(()),
            // The tail says that Kafka is away.
            Err(error) => log::debug!("reading the tasks failed: {error}"),
        }
        if behind && ends.as_ref().is_some_and(|ends| reached(ends, &reader.positions())) {
            behind = false;
            desk.set_read(TASKS_READ);
        }
    }
    Ok(())
}

fn take_tasks(desk: &Desk, records: &[ReadRecord]) {
    if records.is_empty() {
        return;
    }
    let now = desk.now();
    // A record in which no id is found is no task; its worker gives it up.
    let id_of = |record: &ReadRecord| Task::id_of(record.key.as_deref(), record.value.as_deref());
    let tasks: Vec<_> = records.iter().filter_map(|record| Some((record, id_of(record)?))).collect();
    let mut answers = Vec::new();
    {
        let mut state = desk.state();
        for (record, id) in tasks {
            let place = Place { partition: record.partition, offset: record.offset };
            let at = state.date(unix_time(record.timestamp), now);
            let done = state.task_is_in_kafka(TaskKey::from_id(&id), place, at);
            answers.extend((!done.is_empty()).then_some((done, id)));
        }
    }
    for (callers, id) in answers {
        for caller in callers {
            caller.reply.give(Answer::accepted(&id));
        }
    }
}

/// Where the group starts on each partition; `None` when stopped first. A group that has never met has no offsets yet,
/// and everything is read.
fn group_start(desk: &Desk, cluster: &Cluster, stop: &Stop) -> Option<BTreeMap<i32, i64>> {
    let common = &desk.config.common;
    loop {
        match admin::share_group_offsets(cluster, &common.worker_group, &common.tasks_topic) {
            Ok(offsets) => return Some(offsets.into_iter().filter(|(_, offset)| *offset >= 0).collect()),
            Err(KafkaError::Interrupted) => return None,
            Err(error) => log::debug!("the group's start offsets are not known yet: {error}"),
        }
        stop.sleep(MAX_WAIT / 5).ok()?;
    }
}

/// Reads until the ends that are seen at the beginning. `Err`: stopped.
fn until_end(mut reader: Reader, stop: &Stop, mut take: impl FnMut(&[ReadRecord])) -> Result<(), ()> {
    let mut ends: Option<BTreeMap<i32, i64>> = None;
    loop {
        stop.check().map_err(|_| ())?;
        if ends.is_none() {
            ends = reader.end_offsets().ok();
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

fn reached(ends: &BTreeMap<i32, i64>, positions: &BTreeMap<i32, i64>) -> bool {
    ends.iter().all(|(partition, end)| *end == 0 || positions.get(partition).is_some_and(|position| position >= end))
}
