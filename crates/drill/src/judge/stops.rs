//! Compares stops of workers with their bounds (P3 to P7), and checks exit codes, notifications and receipts.
//!
//! The runs show the tasks in flight at the signal; the contract says what the worker must do with them.

use super::super::evidence::{Evidence, Exit, Held, Life, MOMENT, Run};
use super::super::judgement::{Finding, Row};
use super::stop::{FIVE_SECONDS, Kind, SECOND, Stop};
use super::{Tally, crashes, receipts, shown};

/// P5: bound until an abandoned task starts elsewhere.
const RESTARTED: f64 = 2.0;
const SIGTERM: i32 = 15;
/// Clients find Kafka again up to this long after an outage.
const AFTERMATH: f64 = 3.0;
/// A younger process does not handle signals yet, and ends by the signal.
const NEWBORN: f64 = 0.25;
/// A frozen worker keeps its tasks for at least this share of the lock time.
const LOCK_KEPT: f64 = 2.0 / 3.0;

pub(super) fn rows(evidence: &Evidence<'_>) -> Vec<Row> {
    let drain = evidence.begin.drain_timeout_ms as f64 / 1e3;
    let mut bounds = Bounds::new(drain);
    let mut codes = Tally::new("-", "exit codes are correct", "0 wrong");
    let mut said = Tally::new("-", "stops have notifications and receipts", "0 without");
    let mut seen_receipts = Tally::new("-", "receipts match the evidence", "0 wrong");
    for life in evidence.workers.values().flatten() {
        unexpected_end(life, &mut codes);
        vanished(evidence, life, &mut said);
        let Some(stop) = stop(evidence, life, drain) else {
            never_ended(evidence, life, drain, &mut bounds.busy);
            disturbed_end(life, &mut codes);
            continue;
        };
        bounds.judge(evidence, &stop, drain);
        judge_code(&stop, &mut codes);
        judge_notices(evidence, &stop, &mut said);
        receipts::judge(evidence, &stop, &mut seen_receipts);
    }
    let mut rows = bounds.rows();
    rows.extend([codes, said, seen_receipts].map(Tally::counted));
    rows
}

struct Bounds {
    idle: Tally,
    busy: Tally,
    deadline: Tally,
    restarted: Tally,
    second: Tally,
    away: Tally,
    unready: Tally,
}

impl Bounds {
    fn new(drain: f64) -> Self {
        Self {
            idle: Tally::new("P3", "idle worker stops", "< 1 s"),
            busy: Tally::new("P4", "busy worker finishes and stops", "its task + 1 s"),
            deadline: Tally::new("P5", "drain ends at its timeout", format!("< {:.0} s", drain + SECOND)),
            restarted: Tally::new("P5", "abandoned task starts elsewhere", "< 2 s"),
            second: Tally::new("P6", "second signal ends a worker", "< 1 s"),
            away: Tally::new("P7", "stops while Kafka is unavailable", format!("5 s, busy {:.0} s", drain + SECOND)),
            unready: Tally::new("-", "stops before it has started", "< 5 s"),
        }
    }

    fn rows(self) -> Vec<Row> {
        let Self { idle, busy, deadline, restarted, second, away, unready } = self;
        let mut rows: Vec<Row> = [idle, busy, deadline, restarted, second, away].into_iter().map(Tally::row).collect();
        // Such stops are rare and have no promise of their own: the row appears only if there was one.
        if unready.count > 0 {
            rows.push(unready.row());
        }
        rows
    }

    fn judge(&mut self, evidence: &Evidence<'_>, stop: &Stop<'_, '_>, drain: f64) {
        let (took, doubt) = (stop.exit.at - stop.at, stop.doubt);
        let late = |bound: &str| stop.finding(format!("took {} to stop; its bound was {bound}", shown(took)));
        match stop.kind {
            Kind::Unready => self.unready.time_in_doubt(took, doubt, FIVE_SECONDS, || late("5 s")),
            Kind::Idle => self.idle.time_in_doubt(took, doubt, SECOND, || late("1 s")),
            Kind::Busy => {
                // Measured from the time at which the last task should have finished.
                let own = evidence.begin.own_handler;
                let done = stop.runs.iter().map(|held| done_at(held, own)).fold(stop.at, f64::max).min(stop.deadline);
                self.busy.time_in_doubt((stop.exit.at - done).max(0.0), doubt, SECOND, || late("its task + 1 s"));
                for id in stop.unfinished() {
                    let mut finding =
                        stop.finding(format!("left with task {id} in flight, though there was time to finish it"));
                    finding.ids.push(id.to_owned());
                    self.busy.findings.push(finding);
                }
            }
            Kind::Deadline => {
                self.deadline.time_in_doubt(took, doubt, drain + SECOND, || late("the drain timeout + 1 s"));
                self.judge_restarts(evidence, stop);
            }
            Kind::Second => {
                let took = stop.exit.at - stop.life.second().unwrap_or(stop.at);
                // The time at which a command sends the second signal is unknown.
                let doubt = if evidence.begin.owns_processes { 0.0 } else { took };
                let finding = || {
                    stop.finding(format!("took {} to leave after its second signal; its bound was 1 s", shown(took)))
                };
                // The signal came too late for a worker that has drained.
                let forced =
                    stop.exit.receipt.is_some_and(|receipt| receipt.get("outcome").is_some_and(|it| it == "forced"));
                if evidence.begin.owns_processes || forced {
                    self.second.time_in_doubt(took, doubt, SECOND, finding);
                }
            }
            Kind::KafkaAway => {
                let bound = if stop.runs.is_empty() { FIVE_SECONDS } else { FIVE_SECONDS.max(drain + SECOND) };
                self.away.time_in_doubt(took, doubt, bound, || late(&shown(bound)));
            }
        }
    }

    /// A task that was abandoned at the deadline starts elsewhere, as soon as another worker is free.
    fn judge_restarts(&mut self, evidence: &Evidence<'_>, stop: &Stop<'_, '_>) {
        for id in stop.unfinished() {
            let Some(story) = evidence.tasks.get(id) else { continue };
            let next = story.runs.iter().map(|run| run.began).find(|began| *began >= stop.at);
            // Another row reports a task that never starts again as lost. The worker is not to blame for outages.
            let Some(next) = next.filter(|next| !evidence.kafka_away(stop.at - AFTERMATH, *next)) else { continue };
            let took = crashes::free_time(evidence, stop.life.process, stop.exit.at, next);
            self.restarted.time(took, RESTARTED, || Finding {
                what: format!("a task that {} abandoned started elsewhere after {}", stop.life.process, shown(took)),
                ids: vec![id.to_owned()],
                lines: story.lines(),
            });
        }
    }
}

/// When a run should have ended: after the requested work, whatever time the worker claims. Only the worker knows how
/// long a handler of others takes.
fn done_at(held: &Held<'_, '_>, own: bool) -> f64 {
    let Some(end) = &held.run.end else { return held.run.began + held.work };
    let work = if own || held.story.number.is_none() { held.work.max(end.seconds) } else { held.work };
    // A late result extends the time only by the moment that writing it takes.
    end.at.min(held.run.began + work + MOMENT)
}

/// The stop of a process that ended by SIGTERM alone.
fn stop<'e, 'a>(evidence: &'e Evidence<'a>, life: &'e Life<'a>, drain: f64) -> Option<Stop<'e, 'a>> {
    let (line, at) = *life.terms.first()?;
    let exit = life.exit.as_ref()?;
    let disturbed = life.kill.is_some_and(|(_, kill)| kill <= exit.at) || life.is_frozen(at - MOMENT, exit.at);
    if disturbed {
        return None;
    }
    let deadline = at + drain;
    let runs = in_flight(evidence, life, at, exit.at);
    let unready = life.ready.is_none_or(|ready| !life.by_hearsay && ready > at - MOMENT);
    let kind = if unready && runs.is_empty() {
        Kind::Unready
    } else if evidence.kafka_away(at - SECOND, exit.at) {
        Kind::KafkaAway
    } else if life.second().is_some_and(|second| runs.iter().any(|held| had(held, second))) {
        Kind::Second
    } else if runs.iter().any(|held| passes(held, deadline)) {
        Kind::Deadline
    } else if runs.is_empty() {
        Kind::Idle
    } else {
        Kind::Busy
    };
    // The process's own notifications date the stop; the time of the command does not count.
    let said =
        |line: usize| evidence.notices.get(life.process).is_some_and(|all| all.iter().any(|said| said.line == line));
    let seen = evidence.begin.owns_processes || said(line) && said(exit.line);
    let doubt = if seen { 0.0 } else { exit.at - at };
    Some(Stop { life, exit, at, line, kind, deadline, doubt, runs })
}

/// Runs of a worker that ended after its signal, or began after it.
fn in_flight<'e, 'a>(evidence: &'e Evidence<'a>, life: &Life<'a>, at: f64, until: f64) -> Vec<Held<'e, 'a>> {
    let all = evidence.runs_during(life.process, at, until);
    let during = |held: &Held<'_, '_>| {
        held.run.began >= life.from
            && held.run.end.as_ref().is_none_or(|end| end.at > at)
            && !was_lost(evidence, life, held, at)
    };
    let mut runs: Vec<Held<'e, 'a>> = all.filter(during).collect();
    runs.sort_by_key(|held| held.id);
    runs
}

/// Whether a hang or an outage has cost the worker this run. Its handler ends, at the latest when another worker has
/// begun the task, and its outcome is dropped.
fn was_lost(evidence: &Evidence<'_>, life: &Life<'_>, held: &Held<'_, '_>, at: f64) -> bool {
    let began = held.run.began;
    let elsewhere = |run: &Run<'_>| run.worker != life.process && (began..at - MOMENT).contains(&run.began);
    let over = held.run.end.is_none() && (began + held.work < at - MOMENT || held.story.runs.iter().any(elsewhere));
    let kept = LOCK_KEPT * evidence.begin.lock_ms as f64 / 1e3;
    let hung = |(from, until): &(f64, f64)| until - from >= kept && *from <= at && *until >= began;
    // Only after the outage: until then the worker keeps the outcome and retries to send it.
    let back = |(from, until): &(f64, f64)| *until >= began - AFTERMATH && *from <= at && *until <= at - MOMENT;
    let faulty = evidence.session_faults(began - AFTERMATH, at).next().is_some();
    over && (faulty
        || life.frozen.iter().any(hung)
        || evidence.outages.iter().any(back) && !evidence.kafka_away(at - MOMENT, at))
}

/// Whether the task was in flight at this time, within the accuracy of the clocks.
fn had(held: &Held<'_, '_>, at: f64) -> bool {
    held.run.began <= at && held.run.end.as_ref().is_none_or(|end| end.at > at - MOMENT)
}

/// True if the task cannot finish before the drain deadline. A run with a result passes the deadline if the result came
/// more than a second after it.
fn passes(held: &Held<'_, '_>, deadline: f64) -> bool {
    match &held.run.end {
        None => held.run.began + held.work > deadline - MOMENT,
        Some(end) => end.at > deadline + SECOND,
    }
}

/// Finds a worker that got a signal and never ended.
fn never_ended(evidence: &Evidence<'_>, life: &Life<'_>, drain: f64, tally: &mut Tally) {
    let Some((line, at)) = life.terms.first() else { return };
    if life.exit.is_none() && life.kill.is_none() && evidence.end - at > drain + FIVE_SECONDS {
        let ids = vec![life.process.to_owned()];
        tally.broken(format!("{} got a signal and has not ended", life.process), ids, vec![*line]);
    }
}

/// Finds a worker that ended without a stop or a kill.
fn unexpected_end(life: &Life<'_>, codes: &mut Tally) {
    let Some(exit) = &life.exit else { return };
    if life.terms.is_empty() && life.kill.is_none() {
        codes.count += 1;
        let ids = vec![life.process.to_owned()];
        codes.broken(format!("{} ended by itself, {}", life.process, ended(exit)), ids, vec![exit.line]);
    }
}

/// Finds a worker that got a signal to stop, was not killed, and fell silent.
fn vanished(evidence: &Evidence<'_>, life: &Life<'_>, said: &mut Tally) {
    let (Some((line, at)), Some(exit)) = (life.terms.first().filter(|_| life.vanished), &life.exit) else { return };
    if !evidence.kafka_away(at - AFTERMATH, exit.at + AFTERMATH) {
        said.count += 1;
        let what = format!("{} got a signal to stop and fell silent without shutdown_completed", life.process);
        said.broken(what, vec![life.process.to_owned()], vec![*line, exit.line]);
    }
}

/// A worker that was frozen during its stop has no bound, but its exit code must be one of a stop.
fn disturbed_end(life: &Life<'_>, codes: &mut Tally) {
    let Some(exit) = life.exit.as_ref().filter(|_| !life.terms.is_empty() && life.kill.is_none()) else { return };
    if is_unknown(life, exit) {
        return;
    }
    codes.count += 1;
    if !matches!(exit.code, Some(0 | 3 | 4)) {
        let ids = vec![life.process.to_owned()];
        codes.broken(format!("{} ended {}; expected 0, 3 or 4", life.process, ended(exit)), ids, vec![exit.line]);
    }
}

pub(super) fn ended(exit: &Exit<'_>) -> String {
    match (exit.code, exit.signal) {
        (Some(code), _) => format!("with exit code {code}"),
        (None, Some(signal)) => format!("by signal {signal}"),
        (None, None) => "in an unknown way".to_owned(),
    }
}

/// Whether no command printed how the process ended.
fn is_unknown(life: &Life<'_>, exit: &Exit<'_>) -> bool {
    life.by_hearsay && exit.code.is_none() && exit.signal.is_none()
}

fn judge_code(stop: &Stop<'_, '_>, codes: &mut Tally) {
    if is_unknown(stop.life, stop.exit) {
        return;
    }
    let expected: &[i32] = match stop.kind {
        Kind::Unready | Kind::Idle | Kind::Busy => &[0],
        Kind::Deadline => &[3],
        // The task may have ended in the instant of the signal.
        Kind::Second if stop.unfinished().next().is_none() => &[0, 4],
        Kind::Second => &[4],
        // Without a started task nothing can be abandoned.
        Kind::KafkaAway if stop.runs.is_empty() => &[0],
        Kind::KafkaAway if stop.life.second().is_some() => &[0, 3, 4],
        Kind::KafkaAway => &[0, 3],
    };
    codes.count += 1;
    let newborn = stop.kind == Kind::Unready && stop.at - stop.life.from < NEWBORN;
    if newborn && stop.exit.signal == Some(SIGTERM) {
        return;
    }
    if !stop.exit.code.is_some_and(|code| expected.contains(&code)) {
        let expected: Vec<String> = expected.iter().map(i32::to_string).collect();
        codes.findings.push(stop.finding(format!("ended {}; expected {}", ended(stop.exit), expected.join(" or "))));
    }
}

fn judge_notices(evidence: &Evidence<'_>, stop: &Stop<'_, '_>, said: &mut Tally) {
    // Without Kafka there are no notifications; a worker that has not started sends none.
    if matches!(stop.kind, Kind::KafkaAway | Kind::Unready) || evidence.kafka_away(stop.at, stop.exit.at + SECOND) {
        return;
    }
    said.count += 1;
    let heard = |status: &str| stop.notices(evidence).find(|notice| notice.status == status);
    for status in ["shutdown_started", "shutdown_completed"] {
        if heard(status).is_none() {
            said.findings.push(stop.finding(format!("stopped without {status}")));
        }
    }
    if let Some(completed) = heard("shutdown_completed")
        && completed.receipt.is_none()
    {
        let mut finding = stop.finding("sent shutdown_completed without a receipt".to_owned());
        finding.lines.push(completed.line);
        said.findings.push(finding);
    }
}
