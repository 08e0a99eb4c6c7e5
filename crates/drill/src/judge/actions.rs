//! Whether the planned actions took effect: an action without an effect proves nothing.

use std::collections::BTreeMap;

use super::super::evidence::outages::{Means, Outage, is_cluster};
use super::super::evidence::{Action, Evidence, Life, MOMENT, On};
use super::super::judgement::{Fault, Row};
use super::{Tally, quiet};

/// The name of the row. A finding in it breaks no promise: it makes the verdict undecided.
pub(super) const NAME: &str = "planned actions took effect";

/// Interval of status records; a freeze longer than two of them leaves a gap.
const HEARTBEAT: f64 = 1.0;
/// A record that was sent before a freeze is in Kafka after at most this time.
const ON_ITS_WAY: f64 = 0.5;

/// Counts actions by kind, and makes the row of those without an effect.
pub(super) fn judge(evidence: &Evidence<'_>) -> (Vec<Fault>, Row) {
    let mut kinds: BTreeMap<&str, Fault> = BTreeMap::new();
    let mut tally = Tally::new("-", NAME, "0 without effect");
    for action in evidence.actions.values() {
        tally.count += 1;
        let fault = kinds.entry(action.what).or_insert_with(|| Fault {
            action: action.what.to_owned(),
            planned: 0,
            bitten: 0,
            busy: 0,
        });
        fault.planned += 1;
        match effect(evidence, action) {
            Ok(()) => {
                fault.bitten += 1;
                fault.busy += u64::from(was_busy(evidence, action));
            }
            Err(why) => {
                let ids = action.target.map(str::to_owned).into_iter().collect();
                tally.broken(format!("{}: {why}", action.what), ids, vec![action.line]);
            }
        }
    }
    (kinds.into_values().collect(), tally.counted())
}

fn effect(evidence: &Evidence<'_>, action: &Action<'_>) -> Result<(), String> {
    match action.carried {
        Some(true) => {}
        Some(false) => return Err(action.detail.to_owned()),
        // A signal to the drill may have interrupted the action.
        None if evidence.ending.cut_short && !action.signals.is_empty() => {}
        None => return Err("it began and never ended".to_owned()),
    }
    let owned = evidence.begin.owns_processes;
    for (process, signal, at) in &action.signals {
        let lives = evidence.workers.get(process).or_else(|| evidence.gateways.get(process));
        // A signal in the instant of an exit has no effect and does no harm. A command may begin before the first sign
        // of the process that it ends.
        let there = |life: &&Life<'_>| {
            let ended = life.exit.as_ref().is_some_and(|exit| (*at..=action.until + MOMENT).contains(&exit.at));
            life.contains(*at) || life.contains(*at - MOMENT) || !owned && ended
        };
        let found = lives.into_iter().flatten().rev().filter(there).take(if owned { 1 } else { usize::MAX });
        let found: Vec<&Life<'_>> = found.collect();
        let seen = match (*process, *signal) {
            (_, "SIGCONT" | "SIGUSR2" | "mended") => true,
            (_, "SIGUSR1") => found.iter().any(|life| became_quiet(evidence, life, *at)),
            (broker, _) if broker.starts_with("broker") => broker_fell_silent(evidence, broker, *at),
            (_, "SIGSTOP") => found.iter().any(|life| fell_silent(evidence, life, *at)),
            (_, "SIGKILL") => found.iter().any(|life| life.exit.as_ref().is_some_and(|exit| exit.signal == Some(9))),
            (_, "SIGTERM") => found.iter().any(|life| life.exit.is_some() || !life.terms.is_empty()),
            _ => true,
        };
        if !seen || found.iter().any(|life| serves_on(evidence, life)) {
            return Err(format!("{signal} to {process} had no visible effect"));
        }
    }
    Ok(())
}

/// Whether a gateway that has ended answered a later request.
fn serves_on(evidence: &Evidence<'_>, life: &Life<'_>) -> bool {
    let Some(exit) = &life.exit else { return false };
    let lives = evidence.gateways.get(life.process).map(Vec::as_slice).unwrap_or_default();
    let next = lives.iter().map(|life| life.from).find(|from| *from >= exit.at).unwrap_or(f64::INFINITY);
    let later = |at: f64| at > exit.at + MOMENT && at < next;
    evidence.requests.values().any(|request| {
        let answered = request.answered.filter(|(.., answer)| answer.status.is_some());
        request.gateway == life.process && later(request.at) && answered.is_some_and(|(_, at, _)| at < next)
    })
}

/// Whether a frozen worker sent no status record and began no task.
fn fell_silent(evidence: &Evidence<'_>, life: &Life<'_>, at: f64) -> bool {
    let Some((from, until)) = life.frozen.iter().find(|(from, _)| (*from - at).abs() < 0.01) else { return false };
    let notices = evidence.notices.get(life.process).map(Vec::as_slice).unwrap_or_default();
    let (from, until) = (from + life.slack, until - life.slack);
    // Earlier records may reach Kafka a little later, or when Kafka is available again.
    let said = notices.iter().map(|notice| notice.at).filter(|at| *at > from + ON_ITS_WAY);
    // The journal dates starts by its own clock.
    let runs = evidence.runs_during(life.process, from, until).map(|held| held.run.began);
    let began = runs.filter(|began| *began > from + MOMENT);
    evidence.kafka_away(from - HEARTBEAT, until) || !said.chain(began).any(|at| at < until - MOMENT)
}

/// Whether a worker said that it is quiet, or was stopped or without Kafka before it could.
fn became_quiet(evidence: &Evidence<'_>, life: &Life<'_>, at: f64) -> bool {
    let Some((from, until)) = life.quiet.iter().find(|(from, _)| (*from - at).abs() < 0.01) else { return false };
    let until = until.min(evidence.end);
    quiet::said_quiet(evidence, life, *from, until + ON_ITS_WAY).is_some()
        || life.works_until() < from + HEARTBEAT
        || evidence.kafka_away(from - HEARTBEAT, until)
}

/// Whether a frozen or stopped broker took no record. A freeze that is too short to be seen counts as no effect. In a
/// cluster this holds for the partitions that the node led until fail-over; a stopped or killed node is known to have
/// ended.
fn broker_fell_silent(evidence: &Evidence<'_>, process: &str, at: f64) -> bool {
    let of = |outage: &&Outage<'_>| outage.process == process && (outage.from - at).abs() < 0.01;
    let Some(outage) = evidence.done_to_broker.iter().find(of) else { return false };
    if is_cluster(&evidence.begin) && outage.means != Means::Silence {
        return true;
    }
    let (from, until) = outage.silent;
    let led = |on: &On| match (outage.led, on) {
        (None, _) => true,
        (Some(led), On::Tasks(partition)) => led.tasks.contains(partition),
        (Some(led), On::Results) => led.results,
        (Some(_), On::Other) => false,
    };
    from < until && !evidence.appended.iter().any(|(at, on)| *at > from && *at < until && led(on))
}

/// Whether the action hit a worker with a task in flight, or a gateway with waiting callers.
fn was_busy(evidence: &Evidence<'_>, action: &Action<'_>) -> bool {
    action.signals.first().is_some_and(|(process, _, at)| {
        let life = evidence.life(process, *at);
        let mut runs = evidence.runs_during(process, *at, *at);
        life.is_some_and(|life| runs.any(|held| held.run.began >= life.from))
            || evidence.waiting(process, *at).next().is_some()
    })
}
