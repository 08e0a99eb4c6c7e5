//! Tasks that ran more than once, and their causes (P2). Each run but the last must have been lost, and each loss needs
//! a cause.
//!
//! A cause must come before the run that it explains. Each cause explains at most as many runs as it can have caused. A
//! kill, for example, loses the tasks in flight and those finished but not yet accepted.

use std::collections::BTreeMap;

use super::super::evidence::outages::{Means, Outage, is_cluster};
use super::super::evidence::{Evidence, Life, MOMENT, Run, Story};
use super::super::judgement::{Finding, Row};
use super::super::receipt;
use super::Tally;

/// A result is accepted at most this long after it is on the topic, because a fetch may be under way.
const ACCEPTED_WITHIN: f64 = 0.5;
/// Usual limit, because a fetch waits no longer. A kill may have lost the results of this window.
const ACCEPT_WINDOW: f64 = 0.1;
/// A frozen worker, or a worker of a frozen broker, keeps its locks for at least this share of the lock time: it renews
/// them every third.
const LOCK_KEPT: f64 = 2.0 / 3.0;
/// A thawed worker may start fetched tasks this long, before it learns that it lost them.
const THAW: f64 = 1.0;
/// After an outage, clients need this long to open sessions and to find their locks again.
const AFTERMATH: f64 = 3.0;
/// A cluster serves all partitions this long after the expected end of an outage (P11); until then results may wait for
/// their acceptance, on every partition: another node may keep the share state of a partition.
const SERVED_AFTER: f64 = 3.0;
/// How long a gateway retries a produce request with an unknown outcome.
const SENT_AGAIN_WITHIN: f64 = 10.0;

/// A cause of second runs: how many it can explain, and how many it has explained.
#[derive(Clone, Debug, PartialEq)]
struct Cause {
    kind: &'static str,
    budget: u64,
    used: u64,
}

/// The causes, each found by its key.
#[derive(Debug, Default)]
struct Causes {
    /// Key of a kill or freeze: worker, start of its process, time of the action. Key of an outage: its begin and end.
    all: BTreeMap<(String, u64, u64), Cause>,
}

impl Causes {
    /// Takes one unit of a cause, and makes the cause at its first use.
    fn take(
        &mut self,
        key: (String, f64, f64),
        kind: &'static str,
        budget: impl FnOnce() -> u64,
    ) -> Option<&'static str> {
        let key = (key.0, key.1.to_bits(), key.2.to_bits());
        let cause = self.all.entry(key).or_insert_with(|| Cause { kind, budget: budget(), used: 0 });
        (cause.used < cause.budget).then(|| {
            cause.used += 1;
            kind
        })
    }

    /// `kill 3 of 6, broker 2 of 16`.
    fn note(&self) -> String {
        let mut kinds: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for cause in self.all.values().filter(|cause| cause.used > 0) {
            let (used, budget) = kinds.entry(cause.kind).or_default();
            *used += cause.used;
            *budget += cause.budget;
        }
        let parts: Vec<String> =
            kinds.iter().map(|(kind, (used, budget))| format!("{kind} {used} of {budget}")).collect();
        parts.join(", ")
    }
}

pub(super) fn row(evidence: &Evidence<'_>) -> Row {
    let mut tally = Tally::new("P2", "no task runs twice", "0 unexplained");
    let mut causes = Causes::default();
    let mut duplicates = 0;
    // In the order of time: earlier runs use up a cause first. A poison task runs again because its handler fails.
    let tried_again = |story: &Story<'_>| evidence.is_poison(story);
    let mut stories: Vec<(&&str, &Story<'_>)> =
        evidence.tasks.iter().filter(|(_, story)| story.runs.len() > 1 && !tried_again(story)).collect();
    stories.sort_by(|(_, one), (_, other)| second(one).total_cmp(&second(other)));
    for (id, story) in stories {
        let mut unexplained: Vec<&Run<'_>> = Vec::new();
        let mut again = story.accepted.iter().skip(1).map(|(_, at)| *at).peekable();
        for (index, run) in story.runs.iter().enumerate().skip(1) {
            duplicates += 1;
            unexplained.extend(story.runs.get(index - 1));
            let sent = again.peek().copied().filter(|at| *at <= run.began + MOMENT);
            // The first delivery of a later record: no worker has lost the record before.
            let is_first = sent.is_some() && run.delivery == Some(1);
            let explains = |before: &&Run<'_>| cause(evidence, id, before, run, &mut causes).is_some();
            let lost = if is_first { None } else { unexplained.iter().position(explains) };
            if let Some(lost) = lost {
                unexplained.remove(lost);
            } else if sent.is_some_and(|at| sent_again(evidence, story, at, &mut causes).is_some()) {
                again.next();
            } else {
                let earlier = story.runs.get(..index).unwrap_or_default();
                tally.findings.push(Finding {
                    what: format!("a task ran on {}, then on {}, unexplained", list(earlier), run.worker),
                    ids: vec![(*id).to_owned()],
                    lines: story.lines(),
                });
            }
        }
    }
    tally.worst = tally.findings.len().to_string();
    let explained = duplicates - tally.findings.len() as u64;
    if explained > 0 {
        tally.note.push(format!("{explained} explained: {}", causes.note()));
    }
    // Every task with a run puts the promise to the test; the row shows the number of second runs.
    tally.count = evidence.tasks.values().filter(|story| !story.runs.is_empty()).count() as u64;
    let mut row = tally.row();
    row.count = duplicates;
    row
}

fn second(story: &Story<'_>) -> f64 {
    story.runs.get(1).map_or(f64::INFINITY, |run| run.began)
}

fn list(runs: &[Run<'_>]) -> String {
    runs.iter().map(|run| run.worker).collect::<Vec<_>>().join(", then on ")
}

/// A gateway sent the task again, because an outage left the outcome of its first record unknown. Each record allows
/// one more run.
fn sent_again(evidence: &Evidence<'_>, story: &Story<'_>, again: f64, causes: &mut Causes) -> Option<&'static str> {
    let (_, first) = story.accepted.first()?;
    let in_doubt = |(from, until): &&(f64, f64)| {
        let asked = *from - AFTERMATH..=*until;
        asked.contains(first) && (*from..=*until + SENT_AGAIN_WITHIN).contains(&again)
    };
    let (from, until) = evidence.outages.iter().find(in_doubt)?;
    let sent =
        || evidence.requests.values().filter(|request| request.at <= *until && request.at >= *from - AFTERMATH).count();
    causes.take(("sent again".to_owned(), *from, *until), "sent again", || sent() as u64)
}

/// The cause that lost a run, so that this later run came.
fn cause(
    evidence: &Evidence<'_>,
    id: &str,
    run: &Run<'_>,
    later: &Run<'_>,
    causes: &mut Causes,
) -> Option<&'static str> {
    let done = run.end.as_ref().map_or(f64::INFINITY, |end| accepted_by(evidence, end.at));
    let until = done.min(later.began + MOMENT);
    let life = evidence.life(run.worker, run.began);
    let of = |life: &Life<'_>, at: f64| (life.process.to_owned(), life.from, at);
    if let Some(abandoned) = abandoned(evidence, id, run, life)
        && life.is_none_or(|life| life.works_until() <= until)
    {
        let forced = life.is_some_and(|life| life.second().is_some());
        let kind = if forced { "second signal" } else { "drain timeout" };
        let from = life.map_or(0.0, |life| life.from);
        if let found @ Some(_) = causes.take((run.worker.to_owned(), from, f64::NAN), kind, || abandoned) {
            return found;
        }
    }
    if let Some(life) = life
        && let Some(death) = killed(life, run.began, until)
        && let found @ Some(_) = causes.take(of(life, death), "kill", || lost_at(evidence, life, death))
    {
        return found;
    }
    let kept = LOCK_KEPT * lock(evidence);
    let hung = |(from, to): &&(f64, f64)| to - from >= kept;
    let frozen = |life: Option<&Life<'_>>, is: &dyn Fn(f64, f64) -> bool| {
        let life = life?;
        let (from, _) = life.frozen.iter().filter(hung).find(|(from, to)| is(*from, *to))?;
        // The freeze began after the last result.
        let results =
            evidence.runs_during(life.process, *from, from + life.slack).filter_map(|held| held.run.end.as_ref());
        let last = results.map(|end| end.at).filter(|at| *at <= from + life.slack).fold(*from, f64::max);
        Some((of(life, *from), lost_at(evidence, life, last)))
    };
    let lost = frozen(life, &|from, to| from <= until && to >= run.began);
    let took = || {
        let thawed_one = evidence.life(later.worker, later.began);
        let slack = thawed_one.map_or(0.0, |life| life.slack);
        frozen(thawed_one, &|_, to| (to - MOMENT - slack..=to + THAW).contains(&later.began))
    };
    if let Some((key, budget)) = lost.or_else(took)
        && let found @ Some(_) = causes.take(key, "freeze", || budget)
    {
        return found;
    }
    // In a cluster, an outage loses only runs on the node's partitions, and no run that began at the next leader.
    let aftermath = if is_cluster(&evidence.begin) { MOMENT } else { AFTERMATH };
    let story = evidence.tasks.get(id)?;
    let hit =
        |outage: &Outage<'_>| outage.from <= until && outage.until + aftermath >= run.began && outage.concerns(story);
    let outage = outages(evidence).find(hit);
    if let Some(outage) = outage
        && let found @ Some(_) =
            causes.take((String::new(), outage.from, outage.until), "broker", || lost_in(evidence, &outage))
    {
        return found;
    }
    let fault = evidence.session_faults(run.began - AFTERMATH, until).next()?;
    causes.take(("fault".to_owned(), fault.from, fault.until), "fault", || {
        // A fault hits the session of one worker: the largest loss of any worker counts.
        let lives = evidence.workers.values().flatten().filter(|life| life.contains(fault.until));
        lives.map(|life| lost_at(evidence, life, fault.until)).max().unwrap_or_default()
    })
}

fn lock(evidence: &Evidence<'_>) -> f64 {
    evidence.begin.lock_ms as f64 / 1e3
}

/// The outages that may delay acceptances of all partitions at this time: not the move of a partition of tasks.
fn delaying<'e, 'a>(evidence: &'e Evidence<'a>, at: f64) -> impl Iterator<Item = &'e Outage<'a>> {
    let delays = |outage: &&Outage<'_>| outage.means != Means::Move || outage.led.is_some_and(|led| led.results);
    let outages = evidence.done_to_broker.iter().filter(delays);
    outages.filter(move |outage| outage.from <= at && at <= outage.until + SERVED_AFTER)
}

/// When a result of this time is accepted at the latest.
fn accepted_by(evidence: &Evidence<'_>, at: f64) -> f64 {
    let by = at + ACCEPTED_WITHIN;
    delaying(evidence, by).map(|outage| outage.until + SERVED_AFTER).fold(by, f64::max)
}

/// Results from this time on may not have been accepted when a worker dies or hangs.
fn unaccepted_since(evidence: &Evidence<'_>, at: f64) -> f64 {
    delaying(evidence, at).map(|outage| outage.from).fold(at - ACCEPT_WINDOW, f64::min)
}

/// How many runs a process can lose that dies or hangs at this time: in flight, or finished and not yet accepted. A
/// finished run may have no result, because its worker could not write it any more.
fn lost_at(evidence: &Evidence<'_>, life: &Life<'_>, at: f64) -> u64 {
    let since = unaccepted_since(evidence, at);
    let all = evidence.runs_during(life.process, since, at);
    let finished = |run: &Run<'_>| run.end.as_ref().map_or(run.handled, |end| Some(end.at));
    let of_process = |run: &Run<'_>| evidence.life(run.worker, run.began).is_none_or(|of| std::ptr::eq(of, life));
    let finished = all.filter(|held| {
        finished(held.run).is_some_and(|finished| finished > since && finished <= at) && of_process(held.run)
    });
    u64::from(evidence.begin.concurrency.max(1)) + finished.count() as u64
}

/// How many runs all workers can lose in an outage, with those that they begin before they notice it.
fn lost_in(evidence: &Evidence<'_>, outage: &Outage<'_>) -> u64 {
    let alive = evidence.workers.values().flatten().filter(|life| life.contains(outage.from));
    let places = u64::from(evidence.begin.concurrency.max(1));
    alive.map(|life| lost_at(evidence, life, outage.from) + places).sum()
}

/// The outages that cost locks. For a broker of others, these are the outages that the drill's reader saw.
fn outages<'e, 'a>(evidence: &'e Evidence<'a>) -> impl Iterator<Item = Outage<'a>> + 'e {
    let kept = LOCK_KEPT * lock(evidence);
    let done = evidence.done_to_broker.iter().copied();
    let done = done.filter(move |outage| outage.costs_locks(&evidence.begin, kept));
    let seen = evidence.seen_away.iter().filter(|_| !evidence.begin.owns_broker);
    done.chain(seen.map(|(_, from, until)| Outage {
        process: "",
        means: Means::Seen,
        from: *from,
        until: *until,
        back: *until,
        silent: (*from, *until),
        led: None,
    }))
}

/// When the process was killed, if it had the run in flight or can have had it.
fn killed(life: &Life<'_>, began: f64, until: f64) -> Option<f64> {
    /// It may have been killed at any time until its next status record was due.
    const NEXT_WORD: f64 = 2.5;
    let doubt = life.exit.as_ref().zip(life.death()).map_or(0.0, |(exit, death)| exit.at - death);
    let late = if life.by_hearsay { NEXT_WORD } else { MOMENT + doubt };
    life.death().filter(|death| death + late >= began && *death <= until)
}

/// The number of tasks that the worker's receipt calls abandoned, if this task is among them.
fn abandoned(evidence: &Evidence<'_>, id: &str, run: &Run<'_>, life: Option<&Life<'_>>) -> Option<u64> {
    let by_exit = life.and_then(|life| life.exit.as_ref()?.receipt);
    // A later process of the same name may have abandoned this task; that explains nothing of this run.
    let until = life.and_then(|life| life.exit.as_ref()).map_or(f64::INFINITY, |exit| exit.at + ACCEPTED_WITHIN);
    let by_notice = || {
        let said = evidence.notices.get(run.worker)?;
        said.iter().filter(|notice| (run.began..=until).contains(&notice.at)).find_map(|notice| notice.receipt)
    };
    let tasks: Vec<&str> = receipt::abandoned(by_exit.or_else(by_notice)?).collect();
    tasks.contains(&id).then_some(tasks.len() as u64)
}
