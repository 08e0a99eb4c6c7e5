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
        let later = later_hits(evidence, story, outage, (request.at, run.began));
        let locked = service::may_stay_locked(evidence, *accepted, run);
        let bound = |outage: &Outage<'_>| match outage.means {
            _ if locked => AFTER_LOCK,
            _ if fell_silent(outage) => fail_over,
            Means::Stop => stop,
            _ => ORDERED,
        };
        let wait = Wait { evidence, accepted: *accepted, began: run.began };
        let hit = if hits(outage, story) {
            Some((outage, request.at, &later[..]))
        } else {
            let next = later.split_first();
            let until = next.map_or(run.began, |(next, _)| next.from);
            elsewhere.push((wait.part(outage, request.at, until), *id, story));
            next.map(|(next, later)| (*next, next.from, later))
        };
        let Some((outage, from, later)) = hit else { continue };
        let (took, bound) = wait
            .longest_part(outage, from, later, &bound)
            .unwrap_or_else(|| (wait.part(outage, from, run.began), bound(outage)));
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

/// The outages that hit a task between its request and its start, after the outage of its request.
fn later_hits<'e, 'a>(
    evidence: &'e Evidence<'a>,
    story: &Story<'_>,
    first: &Outage<'_>,
    (asked, began): (f64, f64),
) -> Vec<&'e Outage<'a>> {
    let begins = |outage: &&Outage<'_>| outage.from > asked.max(first.from) && outage.from < began;
    let mut later: Vec<&Outage<'a>> =
        evidence.done_to_broker.iter().filter(|outage| begins(outage) && hits(outage, story)).collect();
    later.sort_by(|one, other| one.from.total_cmp(&other.from));
    later
}

/// The wait of a task for its first start.
struct Wait<'e, 'a> {
    evidence: &'e Evidence<'a>,
    accepted: f64,
    began: f64,
}

impl Wait<'_, '_> {
    /// How much of this part counts, in seconds: until Kafka had the task, and then while a worker was free.
    fn part(&self, outage: &Outage<'_>, from: f64, until: f64) -> f64 {
        let from = from.max(outage.from);
        let written = (self.accepted.min(until) - from).max(0.0);
        let delivered = (self.accepted.max(from), until);
        written + crashes::free_time_without_gaps(self.evidence, "", delivered, crashes::BETWEEN_ON_BUSY_MACHINE)
    }

    /// The longest part of the wait, with its bound, if each part keeps the bound of its outage. The wait has one part,
    /// or is divided where a later outage begins: that outage has its own bound, and does not extend the one before.
    fn longest_part(
        &self,
        outage: &Outage<'_>,
        from: f64,
        later: &[&Outage<'_>],
        bound: &impl Fn(&Outage<'_>) -> f64,
    ) -> Option<(f64, f64)> {
        let within =
            |until: f64| Some((self.part(outage, from, until), bound(outage))).filter(|(took, most)| took <= most);
        within(self.began).or_else(|| {
            later.iter().enumerate().find_map(|(index, next)| {
                let before = within(next.from)?;
                let rest = self.longest_part(next, next.from, later.get(index + 1..).unwrap_or_default(), bound)?;
                Some(if rest.0 > before.0 { rest } else { before })
            })
        })
    }
}

fn fell_silent(outage: &Outage<'_>) -> bool {
    matches!(outage.means, Means::Kill | Means::Silence)
}

/// Whether an outage may delay this task.
fn hits(outage: &Outage<'_>, story: &Story<'_>) -> bool {
    fell_silent(outage) || outage.concerns(story) || outage.led.is_some_and(|led| led.results)
}

/// Each worker that ran undisturbed at the end of the load has begun some of its tasks.
fn workers(evidence: &Evidence<'_>) -> Row {
    let mut tally = Tally::new("P11", WORKS, format!("in the last {END:.0} s"));
    let (from, until) = (evidence.load_ended - END, evidence.load_ended);
    let undisturbed = |life: &&Life<'_>| {
        life.ready.is_some_and(|ready| ready <= from) && life.works_until() > until && !life.is_held(from, until)
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
