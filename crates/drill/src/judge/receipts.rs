//! Compares the receipt of a stopped worker with the evidence. Called by `stops`.

use super::super::evidence::{Evidence, Held, MOMENT, Story};
use super::super::receipt::Receipt;
use super::stop::{FIVE_SECONDS, Kind, SECOND, Stop};
use super::{Tally, shown};

pub(super) fn judge(evidence: &Evidence<'_>, stop: &Stop<'_, '_>, tally: &mut Tally) {
    let on_topic = stop.notices(evidence).find_map(|notice| notice.receipt);
    let Some(raw) = stop.exit.receipt.or(on_topic) else {
        if stop.kind != Kind::Unready && !stop.life.by_hearsay {
            tally.findings.push(stop.finding("left no receipt".to_owned()));
        }
        return;
    };
    tally.count += 1;
    let mut wrong = |what: String| tally.findings.push(stop.finding(what));
    let receipt = match Receipt::read(raw) {
        Ok(receipt) => receipt,
        Err(why) => return wrong(format!("has a receipt that cannot be read: {why}")),
    };
    if let Some(fault) = receipt.phases_fault() {
        wrong(format!("{fault}, in its receipt"));
    }
    if let Some(code) = stop.exit.code.filter(|code| *code != receipt.exit_code) {
        wrong(format!("ended with {code}; its receipt says {}", receipt.exit_code));
    }
    let outcomes: &[&str] = match receipt.exit_code {
        3 => &["abandoned"],
        4 => &["forced"],
        // A second signal with nothing left to abandon.
        _ if stop.life.terms.len() > 1 => &["drained", "forced"],
        _ => &["drained"],
    };
    if !outcomes.contains(&receipt.outcome.as_str()) {
        wrong(format!("says {} in its receipt, with exit code {}", receipt.outcome, receipt.exit_code));
    }
    if receipt.worker_id != stop.life.process {
        wrong(format!("has the receipt of {:?}", receipt.worker_id));
    }
    if !stop.life.by_hearsay && receipt.signal != "SIGTERM" {
        wrong(format!("got SIGTERM; its receipt says {:?}", receipt.signal));
    }
    // Compared only where the output is seen. The receipt on the topic may belong to the next process, if that one
    // stopped in the same second.
    if evidence.begin.owns_processes && on_topic.is_some_and(|on_topic| on_topic != raw) {
        wrong("has different receipts on the topic and on its output".to_owned());
    }
    let abandoned: Vec<&String> = receipt.tasks_abandoned.iter().collect();
    let unfinished: Vec<&str> = stop.unfinished().collect();
    let unknown = abandoned.iter().filter(|id| !unfinished.contains(&id.as_str())).count();
    // In its last moment a worker may not have learned that Kafka has a result.
    let may = !matches!(stop.kind, Kind::KafkaAway) && evidence.sees_starts;
    if may
        && (unknown > 0 || unfinished.iter().any(|id| !abandoned.iter().any(|task| task == id)))
        && !late_result(evidence, stop, &abandoned)
    {
        let said = few(abandoned.iter().map(|id| id.as_str()));
        wrong(format!("abandoned {}; its receipt says {said}", few(unfinished.iter().copied())));
    }
    let finished = |slack: f64| {
        // A worker that does not learn of a result abandons the task.
        let gave_up = |id: &str| receipt.tasks_abandoned.iter().any(|task| task == id);
        let after = |held: &&Held<'_, '_>| {
            held.run.end.as_ref().is_some_and(|end| end.at > stop.at + slack) && !gave_up(held.id)
        };
        stop.runs.iter().filter(after).count() as u64
    };
    let given_up = given_up(evidence, stop);
    let (least, most) = (finished(MOMENT), stop.runs.len() as u64 + just_before(evidence, stop) + given_up);
    if may && !(least..=most).contains(&receipt.tasks_finished) {
        wrong(format!(
            "finished {least} to {most} tasks after its signal; its receipt says {}",
            receipt.tasks_finished
        ));
    }
    let waiting = not_begun(evidence, stop) + given_up;
    if may && receipt.tasks_returned > waiting {
        wrong(format!("could return at most {waiting} tasks; its receipt says {}", receipt.tasks_returned));
    }
    let total = receipt.total().unwrap_or_default();
    let took = stop.exit.at - stop.at;
    // The worker makes the receipt before it sends it. Without Kafka the sending takes its whole limit.
    let sending = if stop.kind == Kind::KafkaAway { FIVE_SECONDS } else { SECOND };
    if !stop.life.by_hearsay && (total > took + MOMENT || took > total + sending) {
        wrong(format!("took {} to stop; its receipt says {}", shown(took), shown(total)));
    }
}

/// The first ids, and the number of further ones.
fn few<'a>(ids: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 3;
    let count = ids.len();
    let shown: Vec<&str> = ids.take(SHOWN).collect();
    match count {
        0 => "nothing".to_owned(),
        _ if count > SHOWN => format!("{} and {} more", shown.join(", "), count - SHOWN),
        _ => shown.join(", "),
    }
}

/// Whether each abandoned task with a result got the result in the last second of the stop.
fn late_result(evidence: &Evidence<'_>, stop: &Stop<'_, '_>, abandoned: &[&String]) -> bool {
    let had = |id: &&String| {
        let mut runs = evidence.runs_during(stop.life.process, stop.exit.at - SECOND, stop.exit.at);
        runs.any(|held| held.id == id.as_str())
    };
    abandoned.iter().all(had)
        && stop.runs.iter().all(|held| {
            let listed = abandoned.iter().any(|task| *task == held.id);
            match &held.run.end {
                Some(end) => !listed || end.at >= stop.exit.at - SECOND,
                None => listed,
            }
        })
}

/// The number of tasks that the worker may have fetched and not begun. They were accepted before its exit. At its
/// signal no worker had begun them, or they had begun and had no result.
fn not_begun(evidence: &Evidence<'_>, stop: &Stop<'_, '_>) -> u64 {
    let waits = |story: &&Story<'_>| {
        story.accepted.first().is_some_and(|(_, at)| *at <= stop.exit.at)
            && story.results().all(|end| end.at >= stop.at - MOMENT)
            && story.runs.first().is_none_or(|run| run.began >= stop.at - MOMENT || story.runs.len() > 1)
    };
    evidence.tasks.values().filter(waits).count() as u64
}

/// The number of tasks that were dead-lettered during the stop.
fn given_up(evidence: &Evidence<'_>, stop: &Stop<'_, '_>) -> u64 {
    let stopping = (stop.at - MOMENT)..=(stop.exit.at + MOMENT);
    let given_up = evidence.tasks.values().flat_map(|story| &story.given_up);
    given_up.filter(|(_, end)| stopping.contains(&end.at)).count() as u64
}

/// The number of results just before the signal: the worker may have counted them.
fn just_before(evidence: &Evidence<'_>, stop: &Stop<'_, '_>) -> u64 {
    let (from, until) = (stop.at - MOMENT, stop.at);
    let runs = evidence.runs_during(stop.life.process, from, until);
    let counted = |held: &Held<'_, '_>| held.run.end.as_ref().is_some_and(|end| end.at > from && end.at <= until);
    runs.filter(counted).count() as u64
}
