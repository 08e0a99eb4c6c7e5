//! Service of a cluster while one of its nodes is unavailable, and work of every worker afterwards (P11).
//!
//! The measured time runs from a request to the first start of its task, without the time in which no worker had a free
//! handler. Fail-over time belongs to the cluster: while a silent node is still in sync, every partition with a replica
//! on it stands still.

use super::super::evidence::outages::{self, Means, Outage, is_cluster};
use super::super::evidence::{Evidence, Life, MOMENT, Story};
use super::super::judgement::{Finding, Row, percentile};
use super::{Tally, crashes, service, shown};

/// Bound after an orderly move or stop, beyond the time in which Kafka reads its share state again.
const ORDERED: f64 = 2.0;
/// Bound beyond the fail-over time, where a node fell silent.
const BEYOND_FAIL_OVER: f64 = 3.0;
/// Bound of p99 on partitions that other nodes lead.
const ELSEWHERE: f64 = 1.0;
/// Bound where a lock must expire first, as that of a frozen worker.
const AFTER_LOCK: f64 = 20.0;
/// Requests that were sent this long before an outage may have been in flight.
const ON_ITS_WAY: f64 = 0.5;
/// Requests that are sent this long after an outage are still judged.
const AFTER: f64 = 3.0;
/// In this last part of the load every worker must take tasks, if there are at least `ENOUGH` tasks per worker.
const END: f64 = 20.0;
const ENOUGH: usize = 20;

pub(super) const SERVED: &str = "partitions are served again";
pub(super) const OTHERS: &str = "other nodes' partitions are not delayed";
pub(super) const WORKS: &str = "every worker takes tasks at the end";

pub(super) fn rows(evidence: &Evidence<'_>) -> Vec<Row> {
    if !evidence.sees_starts {
        return Vec::new();
    }
    let mut rows = vec![workers(evidence)];
    if is_cluster(&evidence.begin) {
        rows.extend(partitions(evidence));
    }
    rows
}

fn partitions(evidence: &Evidence<'_>) -> [Row; 2] {
    let fail_over = outages::fail_over(&evidence.begin) + BEYOND_FAIL_OVER;
    let stop = outages::state_read(&evidence.begin) + ORDERED;
    let mut served = Tally::new("P11", SERVED, format!("< {ORDERED:.0} s, {stop:.0} s or {fail_over:.0} s"));
    served.note.push("after a move, after a stop, after a fail-over".to_owned());
    let elsewhere_bound = ELSEWHERE + evidence.begin.pauses.in_sync_ms as f64 / 1e3;
    let mut others = Tally::new("P11", OTHERS, format!("p99 < {}", shown(elsewhere_bound)));
    let mut elsewhere: Vec<(f64, &str, &Story<'_>)> = Vec::new();
    for (id, story) in &evidence.tasks {
        let Some(request) = evidence.request_of(story) else { continue };
        // A gateway claims a key before it sends the task; the claim takes its own time.
        if request.poison || evidence.is_repeated(request) {
            continue;
        }
        let (Some((_, accepted)), Some(run)) = (story.accepted.first(), story.runs.first()) else { continue };
        let during =
            |outage: &&Outage<'_>| outage.from - ON_ITS_WAY <= request.at && request.at <= outage.until + AFTER;
        let Some(outage) = evidence.done_to_broker.iter().find(during) else { continue };
        let fell_silent = matches!(outage.means, Means::Kill | Means::Silence);
        let hit = fell_silent || outage.concerns(story) || outage.led.is_some_and(|led| led.results);
        let written = (accepted - request.at.max(outage.from)).max(0.0);
        let waited = (accepted.max(outage.from), run.began);
        let took = written + crashes::free_time_without_gaps(evidence, "", waited, crashes::BETWEEN_ON_BUSY_MACHINE);
        if hit {
            let bound = match outage.means {
                _ if service::may_stay_locked(evidence, *accepted, run) => AFTER_LOCK,
                _ if fell_silent => fail_over,
                Means::Stop => stop,
                _ => ORDERED,
            };
            served.time(took, bound, || Finding {
                what: format!(
                    "a task was delayed by {} after the action on {} at {:.1} s; its bound was {}",
                    shown(took),
                    outage.process,
                    outage.from,
                    shown(bound)
                ),
                ids: vec![(*id).to_owned()],
                lines: story.lines(),
            });
        } else {
            elsewhere.push((took, *id, story));
        }
    }
    elsewhere.sort_by(|(one, ..), (other, ..)| one.total_cmp(other));
    others.count = elsewhere.len() as u64;
    if let Some((took, id, story)) = percentile(&elsewhere, 99) {
        others.worst = shown(*took);
        if *took > elsewhere_bound {
            let what = format!("a task waited for {}, though its partition's leader was available", shown(*took));
            others.broken(what, vec![(*id).to_owned()], story.lines());
        }
    }
    [served.row(), others.row()]
}

/// Each worker that ran undisturbed at the end of the load has begun some of its tasks.
fn workers(evidence: &Evidence<'_>) -> Row {
    let mut tally = Tally::new("P11", WORKS, format!("in the last {END:.0} s"));
    let (from, until) = (evidence.load_ended - END, evidence.load_ended);
    let undisturbed = |life: &&Life<'_>| {
        life.ready.is_some_and(|ready| ready <= from) && life.works_until() > until && !life.is_frozen(from, until)
    };
    let lives: Vec<&Life<'_>> = evidence.workers.values().flatten().filter(undisturbed).collect();
    let begun = |life: &Life<'_>| {
        let runs = evidence.runs_during(life.process, from, until);
        runs.filter(|held| (from..=until + MOMENT).contains(&held.run.began)).count()
    };
    let counts: Vec<usize> = lives.iter().map(|life| begun(life)).collect();
    let enough = counts.iter().sum::<usize>() >= ENOUGH * counts.len();
    if !from.is_finite() || !enough || evidence.kafka_away(from, until) {
        return tally.row();
    }
    for (life, count) in lives.iter().zip(&counts) {
        tally.count += 1;
        if *count == 0 {
            let what = format!("{} began no task in the last {END:.0} s, though the others did", life.process);
            tally.broken(what, vec![life.process.to_owned()], Vec::new());
        }
    }
    tally.worst = counts.iter().min().map(|least| format!("{least} tasks")).unwrap_or_default();
    tally.row()
}
