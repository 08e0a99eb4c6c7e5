//! What ran more than once, and why (P2): every run but the last has to have been lost, each for a reason of its own.
//!
//! A reason lies before the run that it explains: what happens to a worker later, or to Kafka, explains nothing.

use std::collections::BTreeMap;

use super::super::evidence::{Evidence, Life, MOMENT, Run, Story};
use super::super::judgement::{Finding, Row};
use super::Tally;

/// A result is accepted so long after it is on the topic at most: a fetch may be under way.
const ACCEPTED_WITHIN: f64 = 0.5;
/// A frozen worker keeps its lock for so long at least: two thirds of it, since it is renewed every third.
const LOCK_KEPT: f64 = 9.0;
/// One that was frozen may start what it had fetched, before it learns that it is no longer its own.
const THAW: f64 = 1.0;
/// After an outage sessions are opened again, and locks that were held are found again.
const AFTERMATH: f64 = 3.0;

pub(super) fn row(evidence: &Evidence<'_>) -> Row {
    let mut tally = Tally::new("P2", "nothing runs twice", "0 unexplained");
    let mut causes: BTreeMap<&'static str, u64> = BTreeMap::new();
    for (id, story) in &evidence.tasks {
        for (index, run) in story.runs.iter().enumerate().skip(1) {
            tally.count += 1;
            let earlier = story.runs.get(..index).unwrap_or_default();
            let lost = earlier.iter().filter_map(|before| cause(evidence, id, before, run));
            let reasons: Vec<&'static str> = sent_again(evidence, story, run).chain(lost).collect();
            match reasons.last().filter(|_| reasons.len() >= index) {
                Some(cause) => *causes.entry(cause).or_default() += 1,
                None => tally.findings.push(Finding {
                    what: format!("a task ran on {}, then on {}, unexplained", list(earlier), run.worker),
                    ids: vec![(*id).to_owned()],
                    lines: story.lines(),
                }),
            }
        }
    }
    let explained: u64 = causes.values().sum();
    tally.worst = tally.findings.len().to_string();
    if explained > 0 {
        let causes: Vec<String> = causes.iter().map(|(cause, count)| format!("{count} {cause}")).collect();
        tally.note.push(format!("{explained} explained: {}", causes.join(", ")));
    }
    let duplicates = tally.count;
    // Every task that ran once is one that could have run twice.
    tally.count = evidence.tasks.values().filter(|story| !story.runs.is_empty()).count() as u64;
    let mut row = tally.row();
    row.count = duplicates;
    row
}

fn list(runs: &[Run<'_>]) -> String {
    runs.iter().map(|run| run.worker).collect::<Vec<_>>().join(", then on ")
}

/// Kafka was away, and a gateway that had not heard of the task for long has sent it again: each record is one more run.
fn sent_again(evidence: &Evidence<'_>, story: &Story<'_>, later: &Run<'_>) -> impl Iterator<Item = &'static str> {
    let was_away = evidence.outages.iter().any(|(from, _)| *from <= later.began);
    let records = if was_away { story.accepted.len() } else { 1 };
    std::iter::repeat_n("sent again", records.saturating_sub(1))
}

/// Why a run was not the last one of its task, but this later one came.
fn cause(evidence: &Evidence<'_>, id: &str, run: &Run<'_>, later: &Run<'_>) -> Option<&'static str> {
    let done = run.end.as_ref().map_or(f64::INFINITY, |end| end.at + ACCEPTED_WITHIN);
    let until = done.min(later.began + MOMENT);
    let life = evidence.life(run.worker, run.began);
    if abandoned(evidence, id, run, life) && life.is_none_or(|life| life.works_until() <= until) {
        let forced = life.is_some_and(|life| life.second().is_some());
        return Some(if forced { "second signal" } else { "drain timeout" });
    }
    if life.is_some_and(|life| killed(life, run.began, until)) {
        return Some("kill");
    }
    let hung = |(from, to): &&(f64, f64)| to - from >= LOCK_KEPT;
    let lost = life.into_iter().flat_map(|life| life.frozen.iter().filter(hung));
    let took = evidence.life(later.worker, later.began).into_iter().flat_map(|life| life.frozen.iter().filter(hung));
    if lost.into_iter().any(|(from, to)| *from <= until && *to >= run.began)
        || took.into_iter().any(|(_, to)| (*to - MOMENT..=*to + THAW).contains(&later.began))
    {
        return Some("freeze");
    }
    evidence.kafka_away(run.began - AFTERMATH, until).then_some("broker")
}

/// A process was killed while it had the run, or could have had; one known by hearsay some time after it was last heard.
fn killed(life: &Life<'_>, began: f64, until: f64) -> bool {
    /// It may have been killed at any time before its next word.
    const NEXT_WORD: f64 = 2.5;
    let late = if life.by_hearsay { NEXT_WORD } else { MOMENT };
    life.death().is_some_and(|death| death + late >= began && death <= until)
}

/// Whether the worker says that it gave the task back while it ran.
fn abandoned(evidence: &Evidence<'_>, id: &str, run: &Run<'_>, life: Option<&Life<'_>>) -> bool {
    let by_exit = life.and_then(|life| life.exit.as_ref()?.receipt);
    // A later process of its name may have abandoned the same task, and that explains nothing of this run.
    let until = life.and_then(|life| life.exit.as_ref()).map_or(f64::INFINITY, |exit| exit.at + ACCEPTED_WITHIN);
    let by_notice = || {
        let said = evidence.notices.get(run.worker)?;
        said.iter().filter(|notice| (run.began..=until).contains(&notice.at)).find_map(|notice| notice.receipt)
    };
    by_exit.or_else(by_notice).is_some_and(|receipt| receipt.tasks_abandoned.iter().any(|task| task == id))
}
