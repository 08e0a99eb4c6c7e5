//! The tasks of killed and frozen workers start elsewhere in time (P8, P8b).
//!
//! Only time in which another worker had a free handler counts. While every other worker is busy or stopping, a waiting
//! task breaks no promise.

use super::super::evidence::{Evidence, Exit, Held, Life, MOMENT, Story};
use super::super::judgement::{Finding, Row};
use super::{Tally, shown};

/// Bound of P8.
const AFTER_KILL: f64 = 0.5;
/// Bound of P8b.
const AFTER_FREEZE: f64 = 20.0;
/// Trouble of the broker this long before or after excuses all workers.
const AROUND: f64 = 3.0;
/// A thawed worker may need this long until it takes tasks again.
const THAW: f64 = 1.0;
/// A busy worker seems free between two tasks for less than this: it waits for its results (up to 50 ms), and fetches.
/// In a backlog the sum of such gaps shows only the length of the queue.
const BETWEEN: f64 = 0.1;
/// The same for bounds of a second and more, on a machine whose processors are all busy.
pub(super) const BETWEEN_ON_BUSY_MACHINE: f64 = 0.5;
/// Limit of the search for a task that never starts again.
const LONGEST: f64 = 60.0;

pub(super) fn rows(evidence: &Evidence<'_>) -> Vec<Row> {
    let mut killed = Tally::new("P8", "tasks of a killed worker start elsewhere", "< 0.5 s");
    let mut frozen = Tally::new("P8b", "tasks of a hung worker start elsewhere", "< 20 s");
    let mut wall: f64 = 0.0;
    // A freeze shorter than the record lock does not lose the task.
    let lock = evidence.begin.lock_ms as f64 / 1e3;
    let accepted = Accepted::of(evidence);
    for life in evidence.workers.values().flatten() {
        // The drill did not freeze this worker: the reason of its silence is unknown.
        let by_drill = !life.by_hearsay || life.slack > 0.0;
        for (from, until) in life.frozen.iter().filter(|(from, until)| by_drill && until - from - life.slack > lock) {
            for held in in_flight(evidence, life, from + life.slack) {
                after_freeze(evidence, life, &held, (*from, *until), &mut frozen);
            }
        }
        let was_killed = |exit: &&Exit<'_>| exit.signal.is_some() && !life.by_hearsay;
        let Some(exit) = life.exit.as_ref().filter(was_killed) else { continue };
        for held in in_flight(evidence, life, exit.at) {
            after_kill(evidence, life, &held, exit.at, &mut killed);
            if let Some(next) = next(&held) {
                wall = wall.max(next - exit.at);
                accepted.overtook(evidence, life, &held, (exit.at, next), &mut killed);
            }
        }
    }
    if killed.count > 0 {
        killed.note.push(format!("{} including the time in which no worker was free", shown(wall.max(0.0))));
    }
    vec![killed.row(), frozen.row()]
}

/// Tasks by the time of their acceptance: accepted, first start, id, worker.
struct Accepted<'a>(Vec<(f64, f64, &'a str, &'a str)>);

impl<'a> Accepted<'a> {
    fn of(evidence: &Evidence<'a>) -> Self {
        let first = |(id, story): (&&'a str, &Story<'a>)| {
            let (accepted, run) = (story.accepted.first()?, story.runs.first()?);
            Some((accepted.1, run.began, *id, run.worker))
        };
        let mut all: Vec<_> = evidence.tasks.iter().filter_map(first).collect();
        all.sort_by(|one, other| one.0.total_cmp(&other.0));
        Self(all)
    }

    /// Tasks that were accepted after the death of a worker must start after the tasks of that worker.
    fn overtook(
        &self,
        evidence: &Evidence<'_>,
        life: &Life<'_>,
        held: &Held<'_, '_>,
        (died, next): (f64, f64),
        tally: &mut Tally,
    ) {
        if evidence.kafka_away(died - AROUND, next) {
            return;
        }
        let from = self.0.partition_point(|(accepted, ..)| *accepted < died + AFTER_KILL);
        let later = self.0.get(from..).unwrap_or_default().iter().take_while(|(accepted, ..)| *accepted < next);
        // Two threads begin these tasks; their order within a moment is undefined.
        let Some((_, _, id, worker)) = later.clone().find(|(_, began, ..)| *began < next - MOMENT) else { return };
        let what = format!(
            "a task of {} started {} after its exit; task {id}, accepted later, had started before it on {worker}",
            life.process,
            shown(next - died)
        );
        tally.broken(what, vec![held.id.to_owned(), life.process.to_owned()], held.story.lines());
    }
}

/// The tasks that a worker had in flight at this time, ordered by id.
fn in_flight<'e, 'a>(evidence: &'e Evidence<'a>, life: &Life<'a>, at: f64) -> Vec<Held<'e, 'a>> {
    let all = evidence.runs_during(life.process, at, at);
    let mut held: Vec<Held<'e, 'a>> =
        all.filter(|held| held.run.began >= life.from && !has_result_by(held, at)).collect();
    held.sort_by_key(|held| held.id);
    held
}

fn has_result_by(held: &Held<'_, '_>, at: f64) -> bool {
    held.story.runs.iter().filter_map(|run| run.end.as_ref()).any(|end| end.at <= at + 0.01)
}

fn next(held: &Held<'_, '_>) -> Option<f64> {
    held.story.runs.iter().skip_while(|run| !std::ptr::eq(*run, held.run)).nth(1).map(|run| run.began)
}

fn after_kill(evidence: &Evidence<'_>, life: &Life<'_>, held: &Held<'_, '_>, at: f64, tally: &mut Tally) {
    let next = next(held);
    // Its result may have reached Kafka after the exit: then the task need not start again.
    if next.is_none() && held.story.has_result() {
        return;
    }
    let until = next.unwrap_or(evidence.end);
    // The worker is not to blame for outages of the broker.
    let faulty = evidence.session_faults(at - AROUND, until).next().is_some();
    if !faulty && !evidence.kafka_away(at - AROUND, until) {
        // A command killed it at some time in this interval; a process of the drill's own ends at once.
        let from = life.death().filter(|_| !evidence.begin.owns_processes).unwrap_or(at);
        let (most, least) =
            (free_time(evidence, life.process, from, until), free_time(evidence, life.process, at, until));
        measure(life, held, (most, most - least), AFTER_KILL, tally);
    }
}

fn after_freeze(
    evidence: &Evidence<'_>,
    life: &Life<'_>,
    held: &Held<'_, '_>,
    (from, thaw): (f64, f64),
    tally: &mut Tally,
) {
    // The worker was killed, or finished the task itself, within the bound.
    let ended = life.exit.as_ref().is_some_and(|exit| exit.at < from + AFTER_FREEZE);
    if ended || thaw < from + AFTER_FREEZE && next(held).is_none() && held.story.has_result() {
        return;
    }
    let until = next(held).unwrap_or(evidence.end);
    if !evidence.kafka_away(from - AROUND, until) {
        // The lock expires first; afterwards only time with a free worker counts.
        let lock = evidence.begin.lock_ms as f64 / 1e3;
        let took = if until <= from + lock {
            until - from
        } else {
            lock + free_time(evidence, life.process, from + lock, until)
        };
        measure(life, held, (took, life.slack), AFTER_FREEZE, tally);
    }
}

fn measure(life: &Life<'_>, held: &Held<'_, '_>, (took, doubt): (f64, f64), bound: f64, tally: &mut Tally) {
    let took = took.max(0.0);
    tally.time_in_doubt(took, doubt, bound, || Finding {
        what: format!(
            "a task of {} started elsewhere after {}; its bound was {}",
            life.process,
            shown(took),
            shown(bound)
        ),
        ids: vec![held.id.to_owned(), life.process.to_owned()],
        lines: held.story.lines(),
    });
}

/// How long, in seconds, another process had a free handler in this interval.
pub(super) fn free_time(evidence: &Evidence<'_>, but: &str, from: f64, until: f64) -> f64 {
    free_time_without_gaps(evidence, but, (from, until), BETWEEN)
}

/// The same without the times between two tasks that are shorter than `between`.
pub(super) fn free_time_without_gaps(
    evidence: &Evidence<'_>,
    but: &str,
    (from, until): (f64, f64),
    between: f64,
) -> f64 {
    let until = until.min(from + LONGEST);
    let others = evidence.workers.values().flatten().filter(|life| life.process != but || life.from > from);
    let mut free: Vec<(f64, f64)> =
        others.flat_map(|life| free_times(evidence, life, (from, until), between)).collect();
    free.sort_by(|one, other| one.0.total_cmp(&other.0));
    // Time in which several workers are free counts once.
    let (mut total, mut counted) = (0.0, from);
    for (begin, end) in free {
        total += (end - begin.max(counted)).max(0.0);
        counted = counted.max(end);
    }
    total
}

/// The intervals in which this process had a free handler.
fn free_times(evidence: &Evidence<'_>, life: &Life<'_>, (from, until): (f64, f64), between: f64) -> Vec<(f64, f64)> {
    let Some(ready) = life.ready else { return Vec::new() };
    // A worker that gets its signal in the next moment may not have taken the task.
    let (from, until) = (from.max(ready), until.min(life.works_until() - AFTER_KILL));
    if from >= until {
        return Vec::new();
    }
    let places = i64::from(evidence.begin.concurrency.max(1));
    let mut changes: Vec<(f64, i64)> = Vec::new();
    for held in evidence.runs_during(life.process, from, until).filter(|held| held.run.began >= life.from) {
        changes.extend([(held.run.began, 1), (over_at(held), -1)]);
    }
    let hung = life.frozen.iter().chain(&life.quiet).filter(|(begin, _)| *begin <= until);
    changes.extend(hung.flat_map(|(begin, thaw)| [(begin - AFTER_KILL, places), (thaw + THAW, -places)]));
    changes.push((until, places));
    // At equal times the start comes first: no handler was free between them.
    changes.sort_by(|one, other| one.0.total_cmp(&other.0).then(other.1.cmp(&one.1)));
    let (mut taken, mut since, mut free) = (0, Some(from), Vec::new());
    for (at, change) in changes {
        taken += change;
        match since {
            Some(begin) if taken >= places => {
                // A gap that lasts until the judged start is no gap between two tasks.
                if at.min(until) - begin > between || at >= until {
                    free.push((begin, at.min(until)));
                }
                since = None;
            }
            None if taken < places => since = Some(at.max(from)),
            _ => {}
        }
    }
    free
}

/// When the handler was free again; infinity if the length of the task is unknown.
fn over_at(held: Held<'_, '_>) -> f64 {
    match &held.run.end {
        Some(end) => end.at,
        None if held.story.number.is_some() => held.run.began + held.work,
        None => f64::INFINITY,
    }
}
