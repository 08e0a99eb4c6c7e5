//! Stops and restarts of gateways, and the fleet that they show (P9, P10).

use super::super::evidence::{Evidence, Life, MOMENT, View};
use super::super::fact::{Fact, Kind};
use super::super::judgement::{Finding, Row};
use super::service::Causes;
use super::{Tally, shown, stops};

/// The row of the fleet that gateways show.
pub(super) const PAGE: &str = "fleet page is correct";
/// Bound of P9 after the last answer, or without waiting callers.
const SECOND: f64 = 1.0;
/// P9: a stop ends this long before the end of the grace period.
const BEFORE_GRACE: f64 = 5.0;
/// Bound of P10.
const RIGHT_WITHIN: f64 = 3.0;
/// How long after a worker's last status record a gateway may still list it.
const TOLD_WITHIN: f64 = 1.5;
/// The drill reads a page this often.
const LAST_LOOK: f64 = 0.5;
/// A worker counts as present, or gone, after this time: status records are a second apart.
const SAME_FOR: f64 = 2.0;

pub(super) fn rows(evidence: &Evidence<'_>, causes: &Causes<'_>) -> Vec<Row> {
    vec![stops(evidence), unready(evidence), answers(evidence, causes), restarts(evidence), pages(evidence)]
}

fn stops(evidence: &Evidence<'_>) -> Row {
    let grace = evidence.begin.gateway_grace_ms as f64 / 1e3;
    let mut tally = Tally::new("P9", "gateway answers its callers and stops", "the last answer + 1 s");
    for life in evidence.gateways.values().flatten() {
        let finding = |what: String, line: Option<usize>| Finding {
            what: format!("{} {what}", life.process),
            ids: vec![life.process.to_owned()],
            lines: life.terms.iter().map(|(line, _)| *line).chain(line).collect(),
        };
        let Some(exit) = &life.exit else {
            if let Some((_, at)) = life.terms.first()
                && life.kill.is_none()
                && evidence.begin.owns_processes
                && evidence.end - at > grace - BEFORE_GRACE
            {
                tally.count += 1;
                tally.findings.push(finding("got a signal and has not ended".to_owned(), None));
            }
            continue;
        };
        let Some((_, at)) = life.terms.first().filter(|_| life.kill.is_none()) else {
            if life.kill.is_none() {
                let what = format!("ended by itself, {}", stops::ended(exit));
                tally.findings.push(finding(what, Some(exit.line)));
            }
            continue;
        };
        // The bound starts when the last waiting caller has its answer, or when the time for answers is over.
        let waited = evidence.waiting(life.process, *at).filter_map(|request| request.answered);
        let last = waited.map(|(_, answered, _)| answered).fold(*at, f64::max).min(at + grace - BEFORE_GRACE);
        let took = (exit.at - last).max(0.0);
        // A command stops the gateway at some time before it returns.
        let doubt = if evidence.begin.owns_processes { 0.0 } else { exit.at - at };
        tally.time_in_doubt(took, doubt, SECOND, || {
            let (stop, answer) = (shown(exit.at - at), shown(took));
            finding(
                format!("took {stop} to stop, {answer} of it after its last answer; its bound was 1 s"),
                Some(exit.line),
            )
        });
        let unknown = !evidence.begin.owns_processes && exit.code.is_none() && exit.signal.is_none();
        // A second signal cuts off waiting callers.
        if !unknown && exit.code != Some(0) && !(exit.code == Some(4) && life.second().is_some()) {
            let what = format!("stopped {}; expected 0", stops::ended(exit));
            tally.findings.push(finding(what, Some(exit.line)));
        }
    }
    tally.row()
}

/// After its signal, a gateway reports at once that it is not ready.
fn unready(evidence: &Evidence<'_>) -> Row {
    let mut tally = Tally::new("P9", "stopping gateway is not ready", "at once");
    for (line, number) in evidence.lines.iter().zip(1..) {
        let Fact::ReadyAsked { gateway, status } = &line.fact else { continue };
        tally.count += 1;
        if !matches!(status, None | Some(503)) {
            let what = format!("/readyz of {gateway} returned {} after its signal", status.unwrap_or_default());
            tally.broken(what, vec![gateway.clone()], vec![number]);
        }
    }
    tally.counted()
}

/// A caller loses its connection only if its gateway was killed, or was already stopping at the call. On the drill's own
/// fleet every request counts, on another fleet the requests that met a signal to their gateway, or were cut off.
fn answers(evidence: &Evidence<'_>, causes: &Causes<'_>) -> Row {
    let owned = evidence.begin.owns_processes;
    let mut tally = Tally::new("P9", "every caller is answered", "0 cut off");
    for (number, request) in &evidence.requests {
        let Some((line, at, answer)) = request.answered else {
            if owned && !evidence.ending.cut_short {
                tally.broken(format!("request {number} was never answered"), Vec::new(), vec![request.line]);
            }
            continue;
        };
        let cut = answer.outcome == Kind::Unknown && answer.status.is_none();
        let lives = evidence.gateways.get(request.gateway).map(Vec::as_slice).unwrap_or_default();
        let signalled = |life: &Life<'_>| life.terms.iter().any(|(_, term)| (request.at..=at + MOMENT).contains(term));
        tally.count += u64::from(owned || cut || lives.iter().any(signalled));
        let excused = |life: &Life<'_>| {
            let ended = life.exit.as_ref().is_some_and(|exit| exit.at >= request.at - MOMENT && exit.at <= at + MOMENT);
            let stopping = life.terms.first().is_some_and(|(_, term)| *term <= request.at + MOMENT);
            ended && (life.kill.is_some() || stopping)
        };
        // The moment at which a command ends a gateway is unknown.
        let excused = if owned { lives.iter().any(excused) } else { causes.excuse(request.gateway, request.at, at) };
        if cut && !excused {
            let why = answer.why.clone().unwrap_or_default();
            tally.broken(
                format!("request {number} was cut off by {} ({why})", request.gateway),
                Vec::new(),
                vec![request.line, line],
            );
        }
    }
    tally.counted()
}

/// A restarted gateway shows the real fleet in time.
fn restarts(evidence: &Evidence<'_>) -> Row {
    let mut tally = Tally::new("P10", "restarted gateway knows the fleet", "< 3 s");
    // The first gateways started before the first request.
    let asked = evidence.requests.values().map(|request| request.at).fold(f64::INFINITY, f64::min);
    let successors = evidence.gateways.values().flat_map(|lives| lives.iter().zip(lives.iter().skip(1)));
    // Without an exit it is unknown whether the successor is another process.
    for (_, life) in successors.filter(|(before, life)| life.from > asked && before.exit.is_some()) {
        let (from, until) = (life.from, evidence.begun_by(life) + RIGHT_WITHIN);
        let has_time = life.works_until().min(evidence.end) > until;
        if !from.is_finite() || !has_time || evidence.kafka_away(from - SAME_FOR, until) {
            continue;
        }
        let views = evidence.views.get(life.process).map(Vec::as_slice).unwrap_or_default();
        let own: Vec<&View<'_>> = views.iter().filter(|view| life.contains(view.at)).collect();
        let right = own.iter().find(|view| is_right(evidence, view));
        let took = right.map_or(life.works_until().min(evidence.end), |view| view.at) - from;
        tally.time_in_doubt(took, evidence.begun_by(life) - from, RIGHT_WITHIN, || Finding {
            what: match own.first() {
                Some(first) => {
                    let sure = sure(evidence, first.at);
                    format!("{} showed {:?} after its start, but {sure:?} ran", life.process, first.active)
                }
                None => format!("{} showed no fleet after its start", life.process),
            },
            ids: vec![life.process.to_owned()],
            lines: own.iter().take(5).map(|view| view.line).collect(),
        });
    }
    tally.row()
}

/// Whether a view shows every worker that has been present for a while, and none that has been gone for a while.
fn is_right(evidence: &Evidence<'_>, view: &View<'_>) -> bool {
    let since = evidence_silence(evidence) + SAME_FOR;
    let may = |id: &String| {
        let lives = evidence.workers.get(id.as_str()).map(Vec::as_slice).unwrap_or_default();
        lives.iter().any(|life| life.from <= view.at && life.works_until() > view.at - since)
    };
    view.active.iter().all(may)
        && sure(evidence, view.at).iter().all(|id| view.active.iter().any(|active| active == id))
}

/// Workers that have been active for a while at this moment, and remain so for another.
fn sure<'a>(evidence: &Evidence<'a>, at: f64) -> Vec<&'a str> {
    let lives = evidence.workers.values().flatten().filter(|life| {
        life.ready.is_some_and(|ready| ready <= at - SAME_FOR)
            && life.works_until() > at + MOMENT
            && !life.is_held(at - SAME_FOR, at + MOMENT)
    });
    lives.map(|life| life.process).collect()
}

/// Each view of the fleet is correct from its time until the next view.
fn pages(evidence: &Evidence<'_>) -> Row {
    let mut tally = Tally::new("-", PAGE, "0 wrong");
    let moments = moments(evidence);
    for (gateway, views) in &evidence.views {
        for (index, view) in views.iter().enumerate() {
            tally.count += 1;
            let until = shown_until(evidence, gateway, view, views.get(index + 1));
            let first = moments.partition_point(|at| *at <= view.at);
            let during = moments.get(first..).unwrap_or_default().iter().copied().take_while(|at| *at < until);
            let wrong = [view.at, until - LAST_LOOK].into_iter().chain(during).find_map(|at| {
                let judged = at >= view.at && at < until && !excused(evidence, gateway, at);
                judged.then(|| untrue(evidence, view, at)).flatten()
            });
            if let Some((what, ids)) = wrong {
                tally.broken(format!("{gateway} {what}"), ids, vec![view.line]);
            }
        }
    }
    tally.counted()
}

/// The times at which every page must show a change of the fleet.
fn moments(evidence: &Evidence<'_>) -> Vec<f64> {
    let silence = evidence_silence(evidence) + SAME_FOR;
    let of = |life: &Life<'_>| {
        let ready = life.ready.map(|ready| ready + SAME_FOR);
        let ended = life.exit.as_ref().map(|exit| exit.at);
        [ready, ended.map(|at| at + TOLD_WITHIN + LAST_LOOK), ended.map(|at| at + silence)].into_iter().flatten()
    };
    let mut all: Vec<f64> = evidence.workers.values().flatten().flat_map(of).collect();
    all.sort_by(f64::total_cmp);
    all
}

/// When a view ends: at the next view, at the exit of its gateway, or at the last reading.
fn shown_until(evidence: &Evidence<'_>, gateway: &str, view: &View<'_>, next: Option<&View<'_>>) -> f64 {
    let lives = evidence.gateways.get(gateway).map(Vec::as_slice).unwrap_or_default();
    let ended = lives.iter().rev().find(|life| life.contains(view.at)).map_or(f64::INFINITY, Life::works_until);
    let asked = if evidence.begin.owns_processes { evidence.end } else { evidence.read };
    next.map_or(asked, |next| next.at).min(ended)
}

/// Whether the gateway has just started, or had no Kafka: then it cannot know the fleet.
fn excused(evidence: &Evidence<'_>, gateway: &str, at: f64) -> bool {
    let lives = evidence.gateways.get(gateway).map(Vec::as_slice).unwrap_or_default();
    let starting = lives.iter().any(|life| (life.from..evidence.begun_by(life) + RIGHT_WITHIN).contains(&at));
    starting || evidence.kafka_away(at - evidence_silence(evidence) - TOLD_WITHIN, at)
}

/// The error of a view at this moment, with the workers that it concerns.
fn untrue(evidence: &Evidence<'_>, view: &View<'_>, at: f64) -> Option<(String, Vec<String>)> {
    let shown = || view.active.iter().chain(view.stopping);
    let ghosts: Vec<String> = shown().filter(|id| !may_be_listed(evidence, id, at)).cloned().collect();
    if !ghosts.is_empty() {
        return Some((format!("lists {} at {at:.1} s, without such a process", ghosts.join(", ")), ghosts));
    }
    let missing: Vec<String> = sure(evidence, at)
        .into_iter()
        .filter(|id| !view.active.iter().any(|active| active == id))
        .map(str::to_owned)
        .collect();
    let what = || format!("does not list {}, which ran at {at:.1} s", missing.join(", "));
    (!missing.is_empty()).then(|| (what(), missing.clone()))
}

/// Whether a worker of this name runs, or ran a moment ago.
fn may_be_listed(evidence: &Evidence<'_>, id: &str, at: f64) -> bool {
    // A second process of the same name is listed as `name#` and a part of its instance.
    let name = id.split('#').next().unwrap_or_default();
    let Some(lives) = evidence.workers.get(name) else { return !evidence.begin.owns_processes };
    lives.iter().any(|life| {
        let told = if life.death().is_some() { evidence_silence(evidence) + TOLD_WITHIN } else { TOLD_WITHIN };
        life.from <= at && life.exit.as_ref().is_none_or(|exit| exit.at + told >= at)
    })
}

fn evidence_silence(evidence: &Evidence<'_>) -> f64 {
    evidence.begin.worker_timeout_ms as f64 / 1e3
}
