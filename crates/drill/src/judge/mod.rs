//! The judge: makes the verdict from the ledger.
//!
//! Pure: it gets all lines after the run, and nothing else. The modules below make a row for each promise of the
//! contract. A row without a finding is held only if something put the promise to the test and the evidence is
//! complete.
//!
//! | module | judges |
//! |---|---|
//! | `tasks` | the outcomes of tasks and answers: P1, P8c |
//! | `service` | whether and how soon callers are served |
//! | `duplicates` | tasks that ran more than once, and their causes: P2 |
//! | `stops`, `receipts` | stops of workers: P3 to P7, exit codes, notifications, receipts |
//! | `quiet` | quiet workers, which start no task |
//! | `crashes` | the tasks of killed and frozen workers: P8, P8b |
//! | `cluster` | service while one of several nodes is unavailable, and work of every worker: P11 |
//! | `gateways` | stops and restarts of gateways, and the fleet that they show: P9, P10 |
//! | `actions` | whether the planned actions took effect |

mod actions;
mod cluster;
#[cfg(test)]
mod cluster_mutations;
mod crashes;
mod duplicates;
mod gateways;
#[cfg(test)]
mod mutations;
mod quiet;
mod receipts;
#[cfg(test)]
pub(super) mod recorded;
#[cfg(test)]
mod sample;
mod service;
mod stop;
mod stops;
mod tasks;
#[cfg(test)]
mod tests;

use super::evidence::Evidence;
use super::fact::{Fact, Kind, Line, ONE_READER};
use super::judgement::{Conclusion, Finding, Row, State, Totals, Verdict, percentile};

/// Whether the ledger has its last line; without it there is nothing to judge yet.
pub(super) fn is_finished(lines: &[Line]) -> bool {
    lines.last().is_some_and(|line| matches!(line.fact, Fact::End(_)))
}

/// Judges a finished ledger, which is at this path.
pub(super) fn judge(lines: &[Line], ledger: String) -> Verdict {
    let mut evidence = Evidence::new(lines);
    // Derived from the ledger, too, so that a second judgement gives the same verdict.
    let nobody = evidence.workers.values().flatten().all(|life| life.exit.is_some());
    evidence.ending.nobody_works |= !evidence.begin.owns_processes && evidence.ending.audited && nobody;
    let (faults, missing) = actions::judge(&evidence);
    let mut rows = tasks::rows(&evidence);
    // The journals show starts, but only the topics show outcomes. Without the topics these rows get no evidence.
    let unknown = Evidence::new(lines.get(..1).unwrap_or_default());
    let audited = if evidence.ending.audited { &evidence } else { &unknown };
    rows.push(duplicates::row(audited));
    let causes = service::Causes::of(&evidence);
    // Where others act on the fleet, the exits of its processes are not seen: only its tasks are judged.
    if evidence.begin.owns_processes || !evidence.actions.is_empty() {
        rows.extend(stops::rows(audited));
        rows.extend(quiet::row(audited));
        rows.extend(crashes::rows(audited));
        rows.extend(cluster::rows(audited));
        rows.extend(gateways::rows(&evidence, &causes));
        rows.extend(service::rows(audited, &causes));
    }
    rows.extend(accounting(&evidence));
    rows.push(missing);
    let totals = totals(&evidence);
    Verdict {
        conclusion: conclusion(&evidence, &rows, &totals, causes.too_late(&evidence)),
        cut_short: evidence.ending.cut_short,
        plan: evidence.begin.plan.clone(),
        seed: evidence.begin.seed,
        target: evidence.begin.target.clone(),
        totals,
        rows,
        faults,
        ledger,
    }
}

fn conclusion(evidence: &Evidence<'_>, rows: &[Row], totals: &Totals, too_late: Option<f64>) -> Conclusion {
    let broken = |row: &Row| row.state == State::Broken;
    let (did_not_happen, others): (Vec<&Row>, Vec<&Row>) =
        rows.iter().filter(|row| broken(row)).partition(|row| row.name == actions::NAME);
    // Without any answer, the refusals were not caused by a fault of the fleet.
    let turned_away = |row: &&Row| [service::REFUSALS, service::RECOVERIES].contains(&row.name);
    let nothing_served = totals.answered == 0 && others.iter().all(turned_away);
    if !others.is_empty() && !nothing_served {
        return Conclusion::Broken;
    }
    if totals.answered == 0 {
        let answers = evidence.requests.values().rev().filter_map(|request| request.answered);
        let last = answers.filter_map(|(_, _, answer)| answer.why.as_ref()).next();
        let reason = last.map(|why| format!("; last refusal: {why}")).unwrap_or_default();
        return Conclusion::CouldNotRun(format!("no task was answered{reason}"));
    }
    if totals.undecided > 0 && evidence.ending.nobody_works {
        let count = totals.undecided;
        return Conclusion::Undecided(format!(
            "tasks waiting in Kafka: {count}; no worker runs: start workers, the tasks are not lost"
        ));
    }
    if !evidence.ending.audited {
        return Conclusion::Undecided(
            "no loss or wrong result was seen, but Kafka could not be read, and nothing was audited".to_owned(),
        );
    }
    if let Some(row) = did_not_happen.first() {
        let first = row.findings.first().map(|finding| finding.what.clone()).unwrap_or_default();
        return Conclusion::Undecided(format!("{} of the planned actions took no effect: {first}", row.findings.len()));
    }
    if let Some(share) = too_late {
        return Conclusion::Undecided(format!(
            "{:.1} % of the requests found no free caller while no action disturbed the fleet; raise load.callers, or use a faster machine",
            share * 100.0
        ));
    }
    if evidence.ending.cut_short {
        return Conclusion::Held;
    }
    let untested = |row: &&Row| row.state == State::Untested;
    if evidence.begin.owns_processes && rows.iter().any(|row| row.name == service::PROBES && untested(&row)) {
        return Conclusion::Undecided("the fleet was not probed after the last action".to_owned());
    }
    let named = |row: &&Row| evidence.begin.tests.iter().any(|promise| promise == row.promise);
    // Of a fleet that others started, some rows of a promise cannot be seen.
    let seen = |row: &&Row| rows.iter().any(|other| other.promise == row.promise && other.state != State::Untested);
    let missed = |row: &&Row| named(row) && untested(row) && (evidence.begin.owns_processes || !seen(row));
    let missing: Vec<String> =
        rows.iter().filter(missed).map(|row| format!("{} ({})", row.promise, row.name)).collect();
    if !missing.is_empty() {
        return Conclusion::Undecided(format!("the plan tests {}, but the run did not", missing.join(", ")));
    }
    Conclusion::Held
}

fn totals(evidence: &Evidence<'_>) -> Totals {
    let mut took: Vec<f64> = evidence
        .lines
        .iter()
        .filter_map(|line| match &line.fact {
            Fact::Answered { took_ms, answer, .. } if answer.outcome == Kind::Answered => Some(*took_ms),
            _ => None,
        })
        .collect();
    took.sort_by(f64::total_cmp);
    let at = |percent| percentile(&took, percent).copied().unwrap_or_default();
    let outcomes = tasks::outcomes(evidence);
    let count = |wanted: tasks::Outcome| outcomes.values().filter(|outcome| **outcome == wanted).count() as u64;
    Totals {
        seconds: evidence.end,
        sent: outcomes.len() as u64 - count(tasks::Outcome::Refused),
        answered: count(tasks::Outcome::Answered),
        refused: count(tasks::Outcome::Refused),
        late: evidence.late.len() as u64,
        undecided: count(tasks::Outcome::Undecided),
        p50_ms: at(50),
        p99_ms: at(99),
        worst_ms: at(100),
    }
}

/// The accounting at the end of the run.
fn accounting(evidence: &Evidence<'_>) -> Vec<Row> {
    let mut lag = Tally::new("-", "no task is left in the queue", "0");
    if let Some((line, tasks)) = evidence.lag {
        lag.count += 1;
        lag.worst = tasks.to_string();
        if tasks > 0 {
            lag.broken(format!("the worker group has not finished {tasks} tasks"), Vec::new(), vec![line]);
        }
    }
    let mut readers = Tally::new("-", "two readers read the same records", "0");
    for (line, number) in evidence.lines.iter().zip(1..) {
        if let Fact::Disagreed { topic, detail } = &line.fact {
            readers.broken(format!("{topic}: {detail}"), Vec::new(), vec![number]);
        }
    }
    if evidence.begin.one_reader {
        readers.note.push(format!("not checked: {ONE_READER}"));
    } else {
        readers.count = u64::from(evidence.lag.is_some() || !readers.findings.is_empty());
    }
    vec![lag.row(), readers.counted()]
}

#[derive(Debug)]
struct Tally {
    promise: &'static str,
    name: &'static str,
    bound: String,
    worst: String,
    /// The largest measured time in seconds.
    most: f64,
    count: u64,
    note: Vec<String>,
    findings: Vec<Finding>,
}

impl Tally {
    fn new(promise: &'static str, name: &'static str, bound: impl Into<String>) -> Self {
        Self {
            promise,
            name,
            bound: bound.into(),
            worst: String::new(),
            most: 0.0,
            count: 0,
            note: Vec::new(),
            findings: Vec::new(),
        }
    }

    /// Counts a case with a time in seconds and compares it with its bound.
    fn time(&mut self, seconds: f64, bound: f64, what: impl FnOnce() -> Finding) {
        self.count += 1;
        if self.worst.is_empty() || seconds > self.most {
            self.most = seconds;
            self.worst = shown(seconds);
        }
        if seconds > bound {
            self.findings.push(what());
        }
    }

    /// Like [`time`](Self::time), for a time between `most - doubt` and `most`. Counts it only if both ends agree on
    /// the bound.
    fn time_in_doubt(&mut self, most: f64, doubt: f64, bound: f64, what: impl FnOnce() -> Finding) {
        let least = most - doubt;
        if most <= bound || least > bound {
            self.time(if most <= bound { most } else { least }, bound, what);
        }
    }

    fn broken(&mut self, what: String, ids: Vec<String>, lines: Vec<usize>) {
        self.findings.push(Finding { what, ids, lines });
    }

    /// Ends a row whose worst value is the number of findings.
    fn counted(mut self) -> Row {
        if self.count > 0 || !self.findings.is_empty() {
            self.worst = self.findings.len().to_string();
        }
        self.row()
    }

    fn row(self) -> Row {
        let state = match (self.findings.is_empty(), self.count) {
            (false, _) => State::Broken,
            (true, 0) => State::Untested,
            (true, _) => State::Held,
        };
        Row {
            promise: self.promise,
            name: self.name,
            bound: self.bound,
            worst: self.worst,
            count: self.count,
            note: self.note.join(", "),
            state,
            findings: self.findings,
        }
    }
}

/// A time as text, with its unit.
fn shown(seconds: f64) -> String {
    if seconds.is_infinite() {
        return "never".to_owned();
    }
    if seconds.abs() < 1.0 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.1} s") }
}
