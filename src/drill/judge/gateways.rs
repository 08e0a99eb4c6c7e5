//! Stops and restarts of gateways, and what they show of the fleet (P9, P10).

use super::super::evidence::{Evidence, Life, MOMENT, View};
use super::super::fact::Kind;
use super::super::judgement::{Finding, Row};
use super::{Tally, shown};

/// P9, nobody waiting.
const SECOND: f64 = 1.0;
/// P9: so long before the end of the grace period it is over.
const BEFORE_GRACE: f64 = 5.0;
/// P10.
const RIGHT_WITHIN: f64 = 3.0;
/// How long after a worker's last word a gateway may take to tell.
const TOLD_WITHIN: f64 = 1.5;
/// A worker counts as one that is there, or gone, once it has been so for this long: words of workers are a second apart.
const SAME_FOR: f64 = 2.0;

pub(super) fn rows(evidence: &Evidence<'_>) -> Vec<Row> {
    vec![stops(evidence), answers(evidence), restarts(evidence), listed(evidence)]
}

fn stops(evidence: &Evidence<'_>) -> Row {
    let grace = evidence.begin.gateway_grace_ms as f64 / 1e3;
    let bound = grace - BEFORE_GRACE;
    let mut tally = Tally::new("P9", "a gateway answers its callers and stops", format!("< {bound:.0} s, alone < 1 s"));
    for life in evidence.gateways.values().flatten() {
        let Some(exit) = &life.exit else { continue };
        let finding = |what: String| Finding {
            what: format!("{} {what}", life.process),
            ids: vec![life.process.to_owned()],
            lines: life.terms.iter().map(|(line, _)| *line).chain([exit.line]).collect(),
        };
        let Some((_, at)) = life.terms.first().filter(|_| life.kill.is_none()) else {
            if life.kill.is_none() {
                tally.findings.push(finding(format!("ended by itself, with exit code {:?}", exit.code)));
            }
            continue;
        };
        // Until the last of those who waited had his answer.
        let waited = evidence.waiting(life.process, *at).filter_map(|request| request.answered);
        let last = waited.map(|(_, answered, _)| answered).fold(*at, f64::max);
        let took = exit.at - at;
        let bound = if last > *at + MOMENT { bound } else { SECOND };
        tally.time(took, bound, || finding(format!("took {} to stop; its bound was {}", shown(took), shown(bound))));
        // A second signal cuts off those who wait.
        if exit.code != Some(0) && !(exit.code == Some(4) && life.second().is_some()) {
            tally.findings.push(finding(format!("stopped with exit code {:?}; expected 0", exit.code)));
        }
    }
    tally.row()
}

/// A caller loses his connection only to a gateway that was killed, or to one that was stopping before he called.
fn answers(evidence: &Evidence<'_>) -> Row {
    let mut tally = Tally::new("P9", "every caller is answered", "0 cut off");
    for (number, request) in &evidence.requests {
        let Some((line, at, answer)) = request.answered else {
            if evidence.begin.owns_processes && !evidence.cut_short {
                tally.broken(format!("request {number} was never answered"), Vec::new(), vec![request.line]);
            }
            continue;
        };
        tally.count += 1;
        let cut = answer.outcome == Kind::Unknown && answer.status.is_none();
        let lives = evidence.gateways.get(request.gateway).map(Vec::as_slice).unwrap_or_default();
        let excused = |life: &Life<'_>| {
            let ended = life.exit.as_ref().is_some_and(|exit| exit.at >= request.at - MOMENT && exit.at <= at + MOMENT);
            let stopping = life.terms.first().is_some_and(|(_, term)| *term <= request.at + MOMENT);
            ended && (life.kill.is_some() || stopping)
        };
        if cut && !lives.iter().any(excused) && evidence.begin.owns_processes {
            let why = answer.why.clone().unwrap_or_default();
            tally.broken(
                format!("request {number} was cut off by {} ({why})", request.gateway),
                Vec::new(),
                vec![request.line, line],
            );
        }
    }
    if tally.count > 0 {
        tally.worst = tally.findings.len().to_string();
    }
    tally.row()
}

/// A gateway that has started shows the fleet as it is.
fn restarts(evidence: &Evidence<'_>) -> Row {
    let mut tally = Tally::new("P10", "a new gateway knows the fleet", "< 3 s");
    // Those of the beginning started before anybody asked.
    let asked = evidence.requests.values().map(|request| request.at).fold(f64::INFINITY, f64::min);
    for life in evidence.gateways.values().flatten().filter(|life| life.from > asked) {
        let (from, until) = (life.from, life.from + RIGHT_WITHIN);
        let has_time = life.works_until().min(evidence.end) > until;
        if !from.is_finite() || !has_time || evidence.kafka_away(from - SAME_FOR, until) {
            continue;
        }
        let views = evidence.views.get(life.process).map(Vec::as_slice).unwrap_or_default();
        let own: Vec<&View<'_>> = views.iter().filter(|view| life.contains(view.at)).collect();
        let right = own.iter().find(|view| is_right(evidence, view));
        let took = right.map_or(life.works_until().min(evidence.end), |view| view.at) - from;
        tally.time(took, RIGHT_WITHIN, || Finding {
            what: match own.first() {
                Some(first) => {
                    let sure = sure(evidence, first.at);
                    format!("{} showed {:?} after its start, and {sure:?} ran", life.process, first.active)
                }
                None => format!("{} showed no fleet after its start", life.process),
            },
            ids: vec![life.process.to_owned()],
            lines: own.iter().take(5).map(|view| view.line).collect(),
        });
    }
    tally.row()
}

/// Whether a view shows everybody who has been there for a while, and nobody who has been gone for a while.
fn is_right(evidence: &Evidence<'_>, view: &View<'_>) -> bool {
    let since = evidence_silence(evidence) + SAME_FOR;
    let may = |id: &String| {
        let lives = evidence.workers.get(id.as_str()).map(Vec::as_slice).unwrap_or_default();
        lives.iter().any(|life| life.from <= view.at && life.works_until() > view.at - since)
    };
    view.active.iter().all(may)
        && sure(evidence, view.at).iter().all(|id| view.active.iter().any(|active| active == id))
}

/// Workers that have been active for a while at this moment, and stay so for one more.
fn sure<'a>(evidence: &Evidence<'a>, at: f64) -> Vec<&'a str> {
    let lives = evidence.workers.values().flatten().filter(|life| {
        life.ready.is_some_and(|ready| ready <= at - SAME_FOR)
            && life.works_until() > at + MOMENT
            && !life.is_frozen(at - SAME_FOR, at)
    });
    lives.map(|life| life.process).collect()
}

/// What gateways show in the end.
fn listed(evidence: &Evidence<'_>) -> Row {
    let mut tally = Tally::new("-", "workers that are gone are not listed", "0");
    for (gateway, views) in &evidence.views {
        let Some(last) = views.last() else { continue };
        tally.count += 1;
        // What it showed last it showed until its end, or until nobody asked any more.
        let lives = evidence.gateways.get(gateway).map(Vec::as_slice).unwrap_or_default();
        let ended = lives.iter().rev().find(|life| life.contains(last.at)).and_then(|life| life.exit.as_ref());
        let asked = if evidence.begin.owns_processes { evidence.end } else { evidence.read };
        let until = ended.map_or(asked, |exit| exit.at);
        if evidence.kafka_away(until - evidence_silence(evidence) - TOLD_WITHIN, until) {
            continue;
        }
        let ids = last.active.iter().chain(last.stopping);
        let ghosts: Vec<String> = ids.filter(|id| !may_be_listed(evidence, id, until)).cloned().collect();
        if !ghosts.is_empty() {
            tally.broken(format!("{gateway} still lists {}", ghosts.join(", ")), ghosts, vec![last.line]);
        }
    }
    if tally.count > 0 {
        tally.worst = tally.findings.len().to_string();
    }
    tally.row()
}

/// Whether there is a worker of this name, or was one just now.
fn may_be_listed(evidence: &Evidence<'_>, id: &str, at: f64) -> bool {
    // A second process of one name is listed with a part of its instance behind it.
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
