//! The outcomes of tasks and answers: no task is lost, and every answer is the right one and the only one (P1, P8c).

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::super::evidence::{Evidence, Request, Run, RunEnd, Story};
use super::super::fact::{Answer, Begin, Kind};
use super::super::judgement::Row;
use super::Tally;

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Answered,
    Refused,
    Wrong,
    Failed,
    /// Accepted, without a result.
    Lost,
    /// Accepted, with a result that no gateway returned.
    Unfetched,
    Undecided,
}

/// The last answer of a gateway about a request.
fn last<'a>(request: &Request<'a>) -> Option<(usize, f64, &'a Answer)> {
    request.fetched.or(request.answered)
}

/// The tasks of this run, by request.
fn by_request<'e, 'a>(evidence: &'e Evidence<'a>) -> BTreeMap<u64, Vec<(&'a str, &'e Story<'a>)>> {
    let mut all: BTreeMap<u64, Vec<(&'a str, &'e Story<'a>)>> = BTreeMap::new();
    for (id, story) in &evidence.tasks {
        if let Some(number) = story.number {
            all.entry(number).or_default().push((*id, story));
        }
    }
    all
}

pub(super) fn outcomes(evidence: &Evidence<'_>) -> BTreeMap<u64, Outcome> {
    let tasks = by_request(evidence);
    let outcome = |request: &Request<'_>| {
        let known = tasks.get(&request.of);
        let accepted = known.is_some();
        let has_result = known.is_some_and(|tasks| tasks.iter().any(|(_, story)| story.has_result()));
        match last(request).map_or(Kind::Unknown, |(_, _, answer)| answer.outcome) {
            Kind::Answered => Outcome::Answered,
            Kind::Wrong => Outcome::Wrong,
            Kind::Failed => Outcome::Failed,
            Kind::Refused => Outcome::Refused,
            Kind::Accepted | Kind::Unknown if has_result => Outcome::Unfetched,
            // The topic was read to its end, and the accepted task is not on it.
            Kind::Accepted if evidence.ending.audited && !accepted => Outcome::Lost,
            // The task never reached the topic.
            Kind::Unknown if evidence.ending.audited && !accepted => Outcome::Refused,
            Kind::Accepted | Kind::Unknown if evidence.ending.nobody_works => Outcome::Undecided,
            Kind::Accepted => Outcome::Lost,
            Kind::Unknown if accepted => Outcome::Lost,
            Kind::Unknown => Outcome::Undecided,
        }
    };
    evidence.requests.iter().map(|(number, request)| (*number, outcome(request))).collect()
}

pub(super) fn rows(evidence: &Evidence<'_>) -> Vec<Row> {
    let outcomes = outcomes(evidence);
    let tasks = by_request(evidence);
    let mut lost = Tally::new("P1", "no task is lost", "0");
    let mut fetched = Tally::new("P1", "every result can be fetched", "0");
    let mut right = Tally::new("-", "every answer is right", "0 wrong");
    let mut failed = Tally::new("-", "no task fails that can succeed", "0");
    let mut given_up = 0;
    for (number, outcome) in &outcomes {
        let Some(request) = evidence.requests.get(number) else { continue };
        let stories = tasks.get(&request.of).map(Vec::as_slice).unwrap_or_default();
        let about = || about(request, stories);
        let why = last(request).and_then(|(_, _, answer)| answer.why.clone()).unwrap_or_default();
        match outcome {
            Outcome::Refused | Outcome::Undecided => continue,
            Outcome::Lost => {
                let (ids, lines) = about();
                lost.broken(format!("request {number} was accepted and has no result ({why})"), ids, lines);
            }
            Outcome::Unfetched => {
                let (ids, lines) = about();
                fetched.broken(format!("request {number} has a result that no gateway returned ({why})"), ids, lines);
            }
            Outcome::Wrong => {
                let (ids, lines) = about();
                right.broken(format!("the answer to request {number} is wrong: {why}"), ids, lines);
            }
            // Judged by `poison`.
            Outcome::Failed if request.poison => right.count += 1,
            Outcome::Answered if request.poison => {
                let (ids, lines) = about();
                right.broken(format!("request {number} was answered, but its handler fails each time"), ids, lines);
            }
            Outcome::Failed if stories.iter().any(|(_, story)| was_tried(story, evidence)) => given_up += 1,
            Outcome::Failed => {
                let (ids, lines) = about();
                failed.broken(format!("request {number} failed: {why}"), ids, lines);
            }
            Outcome::Answered => right.count += 1,
        }
        lost.count += 1;
        failed.count += 1;
        fetched.count += u64::from(request.fetched.is_some() || *outcome == Outcome::Unfetched);
    }
    if given_up > 0 {
        failed.note.push(format!("{given_up} after {} starts without a result", evidence.begin.max_deliveries));
    }
    answered_twice(evidence, &tasks, &mut lost, &mut right);
    let dead = |story: &Story<'_>| {
        !story.dead.is_empty() && is_ours(story, evidence) && !was_tried(story, evidence) && !evidence.is_poison(story)
    };
    for (id, story) in evidence.tasks.iter().filter(|(_, story)| dead(story)) {
        failed.broken("a task was dead-lettered".to_owned(), vec![(*id).to_owned()], story.lines());
    }
    let [lost, fetched, right, failed] = [lost, fetched, right, failed].map(Tally::counted);
    vec![lost, fetched, right, unexpected(evidence, &outcomes, &tasks), failed, poison(evidence)]
}

/// A task that fails each time is started `MAX_DELIVERIES` times, and is then dead-lettered once.
fn poison(evidence: &Evidence<'_>) -> Row {
    let most = evidence.begin.max_deliveries as usize;
    let mut tally = Tally::new("P8c", "poison task is dead-lettered", format!("{most} starts"));
    if !evidence.ending.audited || !evidence.sees_starts {
        return tally.row();
    }
    for (id, story) in evidence.tasks.iter().filter(|(_, story)| evidence.is_poison(story)) {
        tally.count += 1;
        let starts = story.runs.len();
        tally.most = tally.most.max(starts as f64);
        let (from, until) = match (story.accepted.first(), story.given_up.first()) {
            (Some((_, from)), Some((_, end))) => (*from, end.at),
            _ => (0.0, f64::INFINITY),
        };
        // The first delivery counts as a start even if no handler began: it leaves no record. Starts that the exit of a
        // worker or an outage cut off, or that a broker has forgotten, do not count.
        let least = if story.runs.first().is_some_and(|run| run.delivery > Some(1)) { most - 1 } else { most };
        let disturbed = evidence.kafka_away(from - 1.0, until)
            || story.runs.iter().any(|run| {
                evidence.life(run.worker, run.began).is_none_or(|life| life.works_until() <= run.began + 1.0)
            });
        let fits = starts >= least - usize::from(disturbed) && starts <= if disturbed { 2 * most } else { most };
        let what = match (story.given_up.len(), story.dead.len()) {
            (0, _) => "a poison task was never dead-lettered".to_owned(),
            (_, 0) => "a poison task has an error result, and is not on the topic of dead-lettered tasks".to_owned(),
            _ if !fits => format!("a poison task was dead-lettered after {starts} starts"),
            _ => continue,
        };
        tally.broken(what, vec![(*id).to_owned()], story.lines());
    }
    tally.worst = if tally.count > 0 { format!("{:.0}", tally.most) } else { String::new() };
    tally.row()
}

/// Whether the task was started `MAX_DELIVERIES` times without a result. Other rows judge the reason of each start.
fn was_tried(story: &Story<'_>, evidence: &Evidence<'_>) -> bool {
    let Some(at) = story.given_up.iter().map(|(_, end)| end.at).reduce(f64::min) else { return false };
    let lost = |run: &&Run<'_>| run.began < at && run.end.as_ref().is_none_or(|end| end.at >= at);
    story.runs.iter().filter(lost).count() >= evidence.begin.max_deliveries as usize
}

/// Whether the task is one of this run; on the drill's own fleet every task is.
fn is_ours(story: &Story<'_>, evidence: &Evidence<'_>) -> bool {
    story.number.is_some() || evidence.begin.owns_processes
}

fn about(request: &Request<'_>, stories: &[(&str, &Story<'_>)]) -> (Vec<String>, Vec<usize>) {
    let mut ids: Vec<String> = stories.iter().map(|(id, _)| (*id).to_owned()).collect();
    let told = last(request).and_then(|(_, _, answer)| answer.task_id.clone());
    ids.extend(told.filter(|id| !ids.contains(id)).into_iter().collect::<Vec<_>>());
    let mut lines = vec![request.line];
    lines.extend([request.answered, request.fetched].into_iter().flatten().map(|(line, ..)| line));
    lines.extend(stories.iter().flat_map(|(_, story)| story.lines()));
    lines.sort_unstable();
    (ids, lines)
}

/// Compares the answers of gateways with the results on the topics.
fn answered_twice(
    evidence: &Evidence<'_>,
    tasks: &BTreeMap<u64, Vec<(&str, &Story<'_>)>>,
    lost: &mut Tally,
    right: &mut Tally,
) {
    let audited = evidence.ending.audited;
    for (number, request) in &evidence.requests {
        let stories = tasks.get(&request.of).map(Vec::as_slice).unwrap_or_default();
        let said =
            [request.answered, request.fetched].into_iter().flatten().filter(|(_, _, answer)| answer.digest.is_some());
        for (line, _, answer) in said {
            let results: Vec<&str> = stories
                .iter()
                .filter(|(id, _)| Some(*id) == answer.task_id.as_deref())
                .flat_map(|(_, story)| story.results().map(|end| end.digest))
                .collect();
            let (ids, lines) = about(request, stories);
            if audited && results.is_empty() {
                lost.broken(
                    format!("request {number} was answered (line {line}), and Kafka has no such result"),
                    ids,
                    lines,
                );
            } else if audited && answer.digest.as_deref().is_some_and(|digest| !results.contains(&digest)) {
                right.broken(
                    format!("the answer to request {number} differs from each result of its task"),
                    ids,
                    lines,
                );
            }
        }
        for (id, story) in stories {
            // A dead-lettered task may still end on a worker that hung, or have ended during an outage: callers get the
            // first result.
            let judged: Vec<&RunEnd<'_>> = story
                .results()
                .filter(|end| end.success || !was_tried(story, evidence) && !evidence.is_poison(story))
                .collect();
            let mut digests: Vec<&str> = judged.iter().map(|end| end.digest).collect();
            digests.dedup();
            let faulty = judged.iter().find_map(|end| end.fault);
            if digests.len() > 1 {
                right.broken("the results of one task differ".to_owned(), vec![(*id).to_owned()], story.lines());
            } else if let Some(fault) = faulty {
                right.broken(format!("a result on the topic is wrong: {fault}"), vec![(*id).to_owned()], story.lines());
            }
        }
    }
}

/// Finds tasks without a request, and tasks whose request was refused.
fn unexpected(
    evidence: &Evidence<'_>,
    outcomes: &BTreeMap<u64, Outcome>,
    tasks: &BTreeMap<u64, Vec<(&str, &Story<'_>)>>,
) -> Row {
    let mut tally = Tally::new("-", "no task runs that was not requested", "0");
    for (id, story) in &evidence.tasks {
        if story.runs.is_empty() {
            continue;
        }
        tally.count += 1;
        // In a Kafka of others, a task can be older than the run.
        let before = began_before(id, &evidence.begin);
        if evidence.ending.audited && story.accepted.is_empty() && !before {
            tally.broken(
                "a result of a task that is not on the topic".to_owned(),
                vec![(*id).to_owned()],
                story.lines(),
            );
        }
    }
    // Another request with the same key may have been accepted.
    let not_refused = evidence.requests.iter().filter(|(number, _)| outcomes.get(number) != Some(&Outcome::Refused));
    let taken: BTreeSet<u64> = not_refused.map(|(_, request)| request.of).collect();
    for (number, stories) in tasks {
        let lines = || evidence.requests.get(number).map(|request| about(request, stories)).unwrap_or_default();
        let refused = outcomes.get(number) == Some(&Outcome::Refused) && !taken.contains(number);
        if refused {
            let (ids, lines) = lines();
            tally.broken(format!("request {number} was refused, and its task exists"), ids, lines);
        }
        if stories.len() > 1 {
            let (ids, lines) = lines();
            tally.broken(format!("request {number} became {} tasks", stories.len()), ids, lines);
        }
    }
    tally.counted()
}

/// Whether a task is older than the run. A UUIDv7 contains its time; ids of other forms come only from other programs
/// and may be of any time.
fn began_before(id: &str, begin: &Begin) -> bool {
    let time = id.parse::<Uuid>().ok().and_then(|id| id.get_timestamp()).map(|time| time.to_unix());
    time.map_or(!begin.owns_processes, |(seconds, nanos)| seconds as f64 + f64::from(nanos) / 1e9 < begin.unix)
}
