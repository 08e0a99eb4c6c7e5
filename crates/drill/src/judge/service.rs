//! Whether callers were served: refusals have causes, service returns after each cause, tasks start in time, answers
//! follow results, and the fleet works at the end.
//!
//! A fleet that refuses every request loses nothing, so safety alone proves no service. A [`Cause`] is an interval in
//! which a gateway did not run, Kafka was unavailable, or no worker worked. It excuses refusals and delays that overlap
//! it, and those shortly after it.

use std::collections::BTreeMap;

use super::super::evidence::outages::{Means, Outage, is_cluster};
use super::super::evidence::{Evidence, Life, MOMENT, Request, Run, Story};
use super::super::fact::{Answer, Fact, Kind};
use super::super::judgement::{Finding, Row, percentile};
use super::super::texts::AFTERWARDS;
use super::{Tally, crashes, shown};

/// The first success comes within this time after a cause; until then the cause still excuses.
const RECOVERED: f64 = 3.0;
/// A gateway may refuse if its pending tasks take longer than this, half of its `ANSWER_TIMEOUT`.
const IN_VAIN: f64 = 5.0;
/// Bound from a result to its answer.
const ANSWERED: f64 = 1.0;
/// Bounds from acceptance to start while a worker is free: usually, after a stop or a kill, and after a hang.
const BEGUN: f64 = 1.0;
const BEGUN_AFTER_STOP: f64 = 2.0;
const BEGUN_AFTER_HANG: f64 = 20.0;
/// A node that is back needs this long until it follows the others again.
const BACK_IN_SYNC: f64 = 1.0;
/// Bound of a probe's answer.
const PROBED: f64 = 2.0;
/// The share of requests outside of causes that may find no free caller.
const LATE_SHARE: f64 = 0.01;

/// The row of refused requests.
pub(super) const REFUSALS: &str = "no request is refused without a cause";
/// The row of the time until callers are served again.
pub(super) const RECOVERIES: &str = "callers are served again after a cause";
/// The row of the probes; while it is untested, the run cannot be held.
pub(super) const PROBES: &str = "all probes at the end are answered";

/// An interval in which gateways may refuse requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cause {
    pub(super) from: f64,
    pub(super) until: f64,
}

impl Cause {
    fn excuses(&self, from: f64, until: f64) -> bool {
        self.from - MOMENT <= until && from <= self.until + RECOVERED
    }
}

/// The causes of each gateway, in the order of time. Causes that overlap, or are closer than [`RECOVERED`], are merged.
#[derive(Debug, Default)]
pub(super) struct Causes<'a>(BTreeMap<&'a str, Vec<Cause>>);

impl<'a> Causes<'a> {
    pub(super) fn of(evidence: &Evidence<'a>) -> Self {
        let kafka = evidence.outages.iter().map(|(from, until)| Cause { from: *from, until: *until });
        let everywhere: Vec<Cause> = kafka.chain(without_workers(evidence)).collect();
        // A gateway that others started, and that no action hits, has no process lifetime in the ledger.
        let mut gateways: BTreeMap<&str, &[Life<'a>]> =
            evidence.requests.values().map(|request| (request.gateway, [].as_slice())).collect();
        gateways.extend(evidence.gateways.iter().map(|(gateway, lives)| (*gateway, lives.as_slice())));
        let causes = gateways.into_iter().map(|(gateway, lives)| {
            let mut all = everywhere.clone();
            for (index, life) in lives.iter().enumerate() {
                let next = lives.get(index + 1..).unwrap_or_default();
                let until = if evidence.begin.owns_processes {
                    next.first().map(|next| next.from)
                } else {
                    // A command that failed has started nothing.
                    next.iter().find_map(|next| next.ready)
                };
                let until = until.unwrap_or(f64::INFINITY);
                let from = life.works_until();
                if from.is_finite() {
                    all.push(Cause { from, until });
                }
            }
            (gateway, merged(all))
        });
        Self(causes.collect())
    }

    fn at(&self, gateway: &str) -> &[Cause] {
        self.0.get(gateway).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn excuse(&self, gateway: &str, from: f64, until: f64) -> bool {
        self.at(gateway).iter().any(|cause| cause.excuses(from, until))
    }

    /// The share of requests outside of causes that found no free caller, if it is too large.
    pub(super) fn too_late(&self, evidence: &Evidence<'_>) -> Option<f64> {
        let calm = |at: f64| !self.0.keys().any(|gateway| self.excuse(gateway, at, at));
        let late = evidence.late.iter().filter(|at| calm(**at)).count() as f64;
        let sent = evidence.requests.values().filter(|request| calm(request.at)).count() as f64;
        let share = late / (late + sent).max(1.0);
        (share > LATE_SHARE).then_some(share)
    }
}

fn merged(mut causes: Vec<Cause>) -> Vec<Cause> {
    causes.sort_by(|one, other| one.from.total_cmp(&other.from));
    let mut all: Vec<Cause> = Vec::new();
    for cause in causes {
        match all.last_mut().filter(|last| cause.from <= last.until + RECOVERED) {
            Some(last) => last.until = last.until.max(cause.until),
            None => all.push(cause),
        }
    }
    all
}

/// The intervals in which no worker could take tasks: each was starting, stopping, frozen or quiet.
fn without_workers(evidence: &Evidence<'_>) -> Vec<Cause> {
    let mut works: Vec<(f64, f64)> = Vec::new();
    for life in evidence.workers.values().flatten() {
        let Some(ready) = life.ready else { continue };
        let (mut from, until) = (ready, life.works_until());
        let mut held: Vec<(f64, f64)> = life.frozen.iter().chain(&life.quiet).copied().collect();
        held.sort_by(|one, other| one.0.total_cmp(&other.0));
        for (begin, end) in held {
            works.push((from, begin.min(until)));
            from = from.max(end);
        }
        works.push((from, until));
    }
    works.retain(|(from, until)| from < until);
    works.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (mut covered, mut gaps) = (0.0, Vec::new());
    for (from, until) in works {
        if from > covered {
            gaps.push(Cause { from: covered, until: from });
        }
        covered = until.max(covered);
    }
    // After the last interval the workers are stopped and no requests are sent.
    gaps
}

pub(super) fn rows(evidence: &Evidence<'_>, causes: &Causes<'_>) -> Vec<Row> {
    vec![
        refusals(evidence, causes),
        recoveries(evidence, causes),
        starts(evidence),
        answers(evidence, causes),
        probes(evidence),
        read_back(evidence, causes),
        unplanned(evidence),
    ]
}

/// A 503 needs a cause; no cause excuses another refusal of a valid request.
fn refusals(evidence: &Evidence<'_>, causes: &Causes<'_>) -> Row {
    let mut tally = Tally::new("-", REFUSALS, "0");
    let backlog = Backlog::of(evidence);
    for (number, request) in &evidence.requests {
        tally.count += 1;
        let Some((line, at, answer)) = request.answered else { continue };
        let why = || answer.why.clone().unwrap_or_default();
        let what = if is_fault(answer) {
            format!("request {number} is valid and got {}", why())
        } else if (answer.outcome == Kind::Refused || answer.status == Some(503))
            && !causes.excuse(request.gateway, request.at, at)
            && !backlog.outlasts(at, IN_VAIN)
        {
            format!("request {number} was refused without a cause by {}: {}", request.gateway, why())
        } else if answer.status == Some(503) && !answer.retry_after {
            format!("request {number} got 503 without Retry-After: {}", why())
        } else {
            continue;
        };
        tally.broken(what, vec![request.gateway.to_owned()], vec![request.line, line]);
    }
    tally.counted()
}

/// Pending tasks and their pace: shows whether callers that a gateway refused would have waited in vain.
struct Backlog {
    accepted: Vec<f64>,
    ended: Vec<f64>,
}

impl Backlog {
    fn of(evidence: &Evidence<'_>) -> Self {
        let stories = || evidence.tasks.values();
        let mut accepted: Vec<f64> = stories().filter_map(|story| story.accepted.first()).map(|(_, at)| *at).collect();
        let first = |story: &Story<'_>| story.results().map(|end| end.at).reduce(f64::min);
        let mut ended: Vec<f64> = stories().filter_map(first).collect();
        accepted.sort_by(f64::total_cmp);
        ended.sort_by(f64::total_cmp);
        Self { accepted, ended }
    }

    /// Whether the tasks pending at this time would take longer than `limit` seconds at the pace of the ten seconds
    /// before.
    fn outlasts(&self, at: f64, limit: f64) -> bool {
        const PACE_OF: f64 = 10.0;
        let until = |times: &[f64], at: f64| times.partition_point(|time| *time <= at) as f64;
        let ended = until(&self.ended, at);
        let pace = (ended - until(&self.ended, at - PACE_OF)) / PACE_OF;
        until(&self.accepted, at) - ended > limit * pace
    }
}

/// Whether no valid request may get this answer.
fn is_fault(answer: &Answer) -> bool {
    let status = answer.status.unwrap_or_default();
    // A task that failed for good is a 500 with the members of its result.
    status >= 400 && !matches!(status, 503 | 504) && answer.outcome != Kind::Failed
}

/// After a cause, callers are soon answered again.
fn recoveries(evidence: &Evidence<'_>, causes: &Causes<'_>) -> Row {
    let mut tally = Tally::new("-", RECOVERIES, "< 3 s");
    let mut of_gateway: BTreeMap<&str, Vec<&Request<'_>>> = BTreeMap::new();
    for request in evidence.requests.values() {
        of_gateway.entry(request.gateway).or_default().push(request);
    }
    for (gateway, requests) in of_gateway {
        for (index, cause) in causes.at(gateway).iter().enumerate() {
            let next = causes.at(gateway).get(index + 1).map_or(f64::INFINITY, |next| next.from);
            let over = cause.until;
            // Requests must have come during the whole recovery time.
            let asked =
                |from: f64| requests.iter().find(|request| (over + from..over + from + 1.0).contains(&request.at));
            let (Some(first), Some(_), true) = (asked(0.0), asked(RECOVERED - 1.0), next > over + RECOVERED) else {
                continue;
            };
            let served = requests.iter().filter(|request| request.at > cause.from - RECOVERED * 4.0);
            let served = served
                .filter_map(|request| request.answered.filter(|(_, at, answer)| *at >= over && is_served(answer)));
            let soonest = served.map(|(_, at, _)| at).fold(f64::INFINITY, f64::min);
            let waited = (over, soonest.min(evidence.end));
            // While every handler is busy or stopping, no gateway can answer. Even the shortest gap between two tasks
            // counts, because a gateway that sends no tasks leaves workers busy with those of the others.
            let took = if evidence.sees_starts && waited.1 - over > RECOVERED {
                crashes::free_time_without_gaps(evidence, "", waited, 0.0)
            } else {
                waited.1 - over
            };
            tally.time(took, RECOVERED, || Finding {
                what: format!("{gateway} served no caller for {} after a cause had ended at {over:.1} s", shown(took)),
                ids: vec![gateway.to_owned()],
                lines: vec![first.line],
            });
        }
    }
    tally.row()
}

fn is_served(answer: &Answer) -> bool {
    matches!(answer.outcome, Kind::Answered | Kind::Failed) || answer.status == Some(202)
}

/// A task starts as soon as a worker has a free handler.
fn starts(evidence: &Evidence<'_>) -> Row {
    let mut tally = Tally::new("-", "tasks start in time", "< 1 s, 2 s or 20 s");
    tally.note.push("usually, after a stop, after a hang".to_owned());
    if is_cluster(&evidence.begin) {
        tally.note.push(format!("{} beside an unavailable node", shown(beside(evidence))));
    }
    // Without the journal, the result alone dates a first start.
    if !evidence.sees_starts {
        return tally.row();
    }
    // The drill warms up a cluster with tasks of no request.
    for (id, story) in evidence.tasks.iter().filter(|(_, story)| story.number.is_some()) {
        let (Some((_, accepted)), Some(run)) = (story.accepted.first(), story.runs.first()) else { continue };
        let waited = run.began - accepted;
        let took = if waited <= BEGUN { waited.max(0.0) } else { free_time(evidence, *accepted, run.began) };
        tally.time(took, bound(evidence, *accepted, run), || Finding {
            what: format!(
                "a task started {} after it was accepted; a worker was free for {}",
                shown(waited),
                shown(took)
            ),
            ids: vec![(*id).to_owned()],
            lines: story.lines(),
        });
    }
    tally.row()
}

/// How long, in seconds, a worker was free while Kafka could deliver.
fn free_time(evidence: &Evidence<'_>, from: f64, until: f64) -> f64 {
    let outages = evidence.outages.iter().map(|(from, until)| (*from, until + RECOVERED));
    let restarts = evidence.done_to_broker.iter().filter_map(|outage| outage.without_share_state(&evidence.begin));
    let mut away: Vec<(f64, f64)> = outages.chain(restarts).collect();
    away.sort_by(|one, other| one.0.total_cmp(&other.0));
    let free_within =
        |from, until| crashes::free_time_without_gaps(evidence, "", (from, until), crashes::BETWEEN_ON_BUSY_MACHINE);
    let (mut since, mut free) = (from, 0.0);
    for (begin, end) in away.into_iter().filter(|(begin, _)| *begin < until) {
        if begin > since {
            free += free_within(since, begin);
        }
        since = since.max(end);
    }
    if since < until { free + free_within(since, until) } else { free }
}

/// The bound, which depends on what happened to workers that may have fetched the task.
fn bound(evidence: &Evidence<'_>, accepted: f64, run: &Run<'_>) -> f64 {
    let began = run.began;
    let lives = || evidence.workers.values().flatten();
    let within = |at: f64| at >= accepted - MOMENT && at <= began;
    if may_stay_locked(evidence, accepted, run) {
        BEGUN_AFTER_HANG
    } else if lives().any(|life| {
        within(life.works_until())
            || life.quiet.iter().any(|(from, _)| within(*from))
            || life.exit.as_ref().is_some_and(|exit| within(exit.at))
    }) {
        BEGUN_AFTER_STOP.max(beside_unavailable(evidence, accepted, began))
    } else {
        BEGUN.max(beside_unavailable(evidence, accepted, began))
    }
}

/// The bound beside an unavailable node of a cluster: every record waits until that node leaves the in-sync replicas.
fn beside_unavailable(evidence: &Evidence<'_>, accepted: f64, began: f64) -> f64 {
    let absent = |outage: &Outage<'_>| {
        outage.means != Means::Move && outage.from <= began && accepted <= outage.back + BACK_IN_SYNC
    };
    if is_cluster(&evidence.begin) && evidence.done_to_broker.iter().any(absent) { beside(evidence) } else { 0.0 }
}

fn beside(evidence: &Evidence<'_>) -> f64 {
    BEGUN + evidence.begin.pauses.in_sync_ms as f64 / 1e3
}

/// Whether a lock of this task may have lasted until its end. One cause is a worker that may have fetched the task: it
/// was frozen, lost its session, or was killed while sessions were replaced (P8). The other is a node that fell silent:
/// another node may have held the response with an earlier delivery back, and its worker replaced the connection.
pub(super) fn may_stay_locked(evidence: &Evidence<'_>, accepted: f64, run: &Run<'_>) -> bool {
    let began = run.began;
    let lives = || evidence.workers.values().flatten();
    let hung = lives().any(|life| life.frozen.iter().any(|(from, thaw)| *from <= began && *thaw >= accepted));
    let lost = evidence.session_faults(accepted - RECOVERED, began).next().is_some();
    let mut deaths = lives().filter_map(Life::death);
    let dropped = run.delivery.is_some_and(|delivery| delivery > 1)
        && evidence
            .done_to_broker
            .iter()
            .any(|outage| outage.means == Means::Silence && outage.from <= began && outage.back >= accepted);
    hung || lost
        || dropped
        || deaths.any(|at| (accepted - MOMENT..=began).contains(&at) && evidence.kafka_away(at - RECOVERED, at))
}

/// A gateway passes a result on at once.
fn answers(evidence: &Evidence<'_>, causes: &Causes<'_>) -> Row {
    let mut tally = Tally::new("-", "answer follows its result", "< 1 s");
    let mut took_all: Vec<f64> = Vec::new();
    let stories: BTreeMap<u64, &Story<'_>> =
        evidence.tasks.values().filter_map(|story| Some((story.number?, story))).collect();
    for (number, request) in &evidence.requests {
        let Some((line, at, answer)) = request.answered.filter(|(_, _, answer)| answer.outcome == Kind::Answered)
        else {
            continue;
        };
        let Some(story) = stories.get(&request.of) else { continue };
        let result = story.results().map(|end| end.at).fold(f64::INFINITY, f64::min).max(request.at);
        if !result.is_finite() || causes.excuse(request.gateway, result, at) {
            continue;
        }
        let took = (at - result).max(0.0);
        took_all.push(took);
        tally.time(took, ANSWERED, || Finding {
            what: format!("request {number} was answered {} after its result was in Kafka", shown(took)),
            ids: answer.task_id.clone().into_iter().collect(),
            lines: vec![request.line, line],
        });
    }
    took_all.sort_by(f64::total_cmp);
    if let (Some(half), Some(most)) = (percentile(&took_all, 50), percentile(&took_all, 99)) {
        tally.note.push(format!("p50 {}, p99 {}", shown(*half), shown(*most)));
    }
    tally.row()
}

/// Short tasks that are sent after all faults.
fn probes(evidence: &Evidence<'_>) -> Row {
    let mut tally = Tally::new("-", PROBES, "< 2 s");
    for (number, request) in evidence.requests.range(AFTERWARDS..) {
        let answered = request.answered.filter(|(_, _, answer)| answer.outcome == Kind::Answered);
        let took = answered.map_or(evidence.end, |(_, at, _)| at) - request.at;
        let why = request.answered.and_then(|(_, _, answer)| answer.why.clone()).unwrap_or_default();
        tally.time(if answered.is_some() { took } else { f64::INFINITY }, PROBED, || Finding {
            what: match answered {
                Some(_) => format!("request {number} was answered after {}, though all faults were over", shown(took)),
                None => format!("request {number} was not answered, though all faults were over: {why}"),
            },
            ids: vec![request.gateway.to_owned()],
            lines: [Some(request.line), request.answered.map(|(line, ..)| line)].into_iter().flatten().collect(),
        });
    }
    tally.row()
}

/// Every gateway returns a known result, with the same bytes each time. A gateway that has just started, or is without
/// Kafka, may refuse, but must not take a finished task for unknown or pending.
fn read_back(evidence: &Evidence<'_>, causes: &Causes<'_>) -> Row {
    let mut tally = Tally::new("P1", "results stay the same", "0 differ");
    let mut marks: BTreeMap<&str, Option<&str>> = BTreeMap::new();
    for (line, number) in evidence.lines.iter().zip(1..) {
        let Fact::ReadBack { number: request, gateway, task_id, status, mark, is_result } = &line.fact else {
            continue;
        };
        if matches!(status, None | Some(503)) && causes.excuse(gateway, line.at, line.at) {
            continue;
        }
        let first = marks.entry(task_id).or_default();
        let mark = mark.as_deref().filter(|_| *is_result && *status == Some(200));
        let what = match (mark, status) {
            (Some(mark), _) if *first.get_or_insert(mark) == mark => continue,
            (Some(_), _) => "differs from the result before".to_owned(),
            (None, Some(200)) => "is pending again".to_owned(),
            (None, Some(status)) => format!("is answered {status}"),
            (None, None) => "is not answered".to_owned(),
        };
        let what = format!("the task of request {request} has a result; at {gateway} it {what}");
        tally.broken(what, vec![task_id.clone()], vec![number]);
    }
    tally.count = marks.len() as u64;
    tally.counted()
}

/// The drill's own broker is unavailable only because of an action.
fn unplanned(evidence: &Evidence<'_>) -> Row {
    let mut tally = Tally::new("-", "Kafka is unavailable only by an action", "0");
    if !evidence.begin.owns_broker {
        return tally.row();
    }
    tally.count = 1;
    for (line, from, until) in &evidence.seen_away {
        // Until the node is back, clients may still find that its connections are silent.
        let planned = |outage: &Outage<'_>| {
            outage.from - RECOVERED <= *from && *until <= outage.back.max(outage.until) + RECOVERED
        };
        if !evidence.done_to_broker.iter().any(planned) {
            let what = format!("Kafka did not answer for {}, and no action had disturbed it", shown(until - from));
            tally.broken(what, vec!["broker".to_owned()], vec![*line]);
        }
    }
    tally.counted()
}
