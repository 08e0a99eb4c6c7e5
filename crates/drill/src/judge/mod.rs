//! The judge: from the ledger to the verdict.
//!
//! Pure: it gets all lines, once everything has been seen, and nothing else. Each promise of the contract is a row, made by one of the modules below from the
//! evidence. What is not seen to be broken is held only if there was occasion to break it, and if the evidence is whole.
//!
//! | module | judges |
//! |---|---|
//! | `tasks` | what became of tasks and answers: P1, P8c |
//! | `service` | whether callers are served, and how soon |
//! | `duplicates` | what ran more than once, and why: P2 |
//! | `stops`, `receipts` | stops of workers: P3 to P7, exit codes, notifications, receipts |
//! | `crashes` | what became of the tasks of killed and frozen workers: P8, P8b |
//! | `cluster` | what callers are promised while a node of several is away, and that every worker works: P11 |
//! | `gateways` | stops and restarts of gateways, and what they show: P9, P10 |
//! | `actions` | whether what was planned has happened |

mod actions;
mod cluster;
#[cfg(test)]
mod cluster_mutations;
mod crashes;
mod duplicates;
mod gateways;
#[cfg(test)]
mod mutations;
mod receipts;
#[cfg(test)]
mod recorded;
#[cfg(test)]
mod sample;
mod service;
mod stops;
mod tasks;
#[cfg(test)]
mod tests;

use super::evidence::Evidence;
use super::fact::{Ending, Fact, Kind, Line};
use super::judgement::{Conclusion, Finding, Row, State, Totals, Verdict};

/// What a verdict depends on besides what was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Circumstances {
    /// The topics were read to their ends.
    pub(super) audited: bool,
    /// No worker is left that could do what waits in Kafka.
    pub(super) nobody_works: bool,
    /// Where the ledger is.
    pub(super) ledger: String,
}

impl Circumstances {
    /// As the last line says; `ledger`: where it is. `None` without a last line: there is nothing to judge yet.
    pub(super) fn of(lines: &[Line], ledger: String) -> Option<Self> {
        let Fact::End(Ending { audited, nobody_works, .. }) = lines.iter().map(|line| &line.fact).next_back()? else {
            return None;
        };
        Some(Self { audited: *audited, nobody_works: *nobody_works, ledger })
    }
}

/// Judges a run.
pub(super) fn judge(lines: &[Line], circumstances: &Circumstances) -> Verdict {
    let evidence = Evidence::new(lines);
    // Seen from the ledger, too, so that it is judged again as it was judged.
    let nobody = || evidence.workers.values().flatten().all(|life| life.exit.is_some());
    let nobody_works = !evidence.begin.owns_processes && circumstances.audited && nobody();
    let nobody_works = circumstances.nobody_works || nobody_works;
    let circumstances = &Circumstances { nobody_works, ..circumstances.clone() };
    let (faults, missing) = actions::judge(&evidence);
    let mut rows = tasks::rows(&evidence, circumstances);
    // Logs tell what was begun, and only the topics what came of it: where they were not read nothing follows.
    let unknown = Evidence::new(lines.get(..1).unwrap_or_default());
    let audited = if circumstances.audited { &evidence } else { &unknown };
    rows.push(duplicates::row(audited));
    let causes = service::Causes::of(&evidence);
    // What happens to the processes of a fleet that others act on is not seen: only its tasks are judged.
    if evidence.begin.owns_processes || !evidence.actions.is_empty() {
        rows.extend(stops::rows(audited));
        rows.extend(crashes::rows(audited));
        rows.extend(cluster::rows(audited));
        rows.extend(gateways::rows(&evidence));
        rows.extend(service::rows(audited, &causes));
    }
    rows.extend(books(&evidence));
    rows.push(missing);
    let totals = totals(&evidence, lines, circumstances);
    Verdict {
        conclusion: conclusion(&evidence, &rows, &totals, circumstances, causes.too_late(&evidence)),
        cut_short: evidence.cut_short,
        plan: evidence.begin.plan.clone(),
        seed: evidence.begin.seed,
        target: evidence.begin.target.clone(),
        totals,
        rows,
        faults,
        ledger: circumstances.ledger.clone(),
    }
}

fn conclusion(
    evidence: &Evidence<'_>,
    rows: &[Row],
    totals: &Totals,
    circumstances: &Circumstances,
    too_late: Option<f64>,
) -> Conclusion {
    let broken = |row: &Row| row.state == State::Broken;
    let (did_not_happen, others): (Vec<&Row>, Vec<&Row>) =
        rows.iter().filter(|row| broken(row)).partition(|row| row.name == actions::NAME);
    // Where nothing at all was answered, callers were turned away by something else than a fault of the fleet.
    let turned_away = |row: &&Row| [service::REFUSALS, service::RECOVERIES].contains(&row.name);
    let nothing_served = totals.answered == 0 && others.iter().all(turned_away);
    if !others.is_empty() && !nothing_served {
        return Conclusion::Broken;
    }
    if totals.answered == 0 {
        let answers = evidence.requests.values().rev().filter_map(|request| request.answered);
        let last = answers.filter_map(|(_, _, answer)| answer.why.as_ref()).next();
        let reason = last.map(|why| format!("; last refusal: {why}")).unwrap_or_default();
        return Conclusion::CouldNotRun(format!("not one task was answered{reason}"));
    }
    if totals.undecided > 0 && circumstances.nobody_works {
        let count = totals.undecided;
        return Conclusion::Undecided(format!(
            "{count} wait in Kafka, and no worker runs that could do them; start some, they are not lost"
        ));
    }
    if !circumstances.audited {
        return Conclusion::Undecided(
            "nothing is seen to be lost or wrong, but Kafka could not be read, and nothing was audited".to_owned(),
        );
    }
    if let Some(row) = did_not_happen.first() {
        let first = row.findings.first().map(|finding| finding.what.clone()).unwrap_or_default();
        return Conclusion::Undecided(format!("{} of the planned actions did not happen: {first}", row.findings.len()));
    }
    if let Some(share) = too_late {
        return Conclusion::Undecided(format!(
            "{:.1} % of the requests found no free caller, though nothing was done to the fleet; load.callers is too small, or the machine too slow",
            share * 100.0
        ));
    }
    if evidence.cut_short {
        return Conclusion::Held;
    }
    let untested = |row: &&Row| row.state == State::Untested;
    if evidence.begin.owns_processes && rows.iter().any(|row| row.name == service::PROBES && untested(&row)) {
        return Conclusion::Undecided("the fleet was not seen to work when everything was over".to_owned());
    }
    let named = |row: &&Row| evidence.begin.tests.iter().any(|promise| promise == row.promise);
    // Of a fleet that others started not every row of a promise can be seen.
    let seen = |row: &&Row| rows.iter().any(|other| other.promise == row.promise && other.state != State::Untested);
    let missed = |row: &&Row| named(row) && untested(row) && (evidence.begin.owns_processes || !seen(row));
    let missing: Vec<String> =
        rows.iter().filter(missed).map(|row| format!("{} ({})", row.promise, row.name)).collect();
    if !missing.is_empty() {
        return Conclusion::Undecided(format!("the plan tests {}, and there was no occasion", missing.join(", ")));
    }
    Conclusion::Held
}

fn totals(evidence: &Evidence<'_>, lines: &[Line], circumstances: &Circumstances) -> Totals {
    let mut took: Vec<f64> = lines
        .iter()
        .filter_map(|line| match &line.fact {
            Fact::Answered { took_ms, answer, .. } if answer.outcome == Kind::Answered => Some(*took_ms),
            _ => None,
        })
        .collect();
    took.sort_by(f64::total_cmp);
    let at = |percent: usize| took.get(((took.len() * percent).div_ceil(100)).max(1) - 1).copied().unwrap_or_default();
    let fates = tasks::fates(evidence, circumstances);
    let count = |wanted: tasks::Fate| fates.values().filter(|fate| **fate == wanted).count() as u64;
    Totals {
        seconds: evidence.end,
        sent: fates.len() as u64 - count(tasks::Fate::Refused),
        answered: count(tasks::Fate::Answered),
        refused: count(tasks::Fate::Refused),
        late: evidence.late.len() as u64,
        undecided: count(tasks::Fate::Undecided),
        p50_ms: at(50),
        p99_ms: at(99),
        worst_ms: took.last().copied().unwrap_or_default(),
    }
}

/// What has to be so at the end.
fn books(evidence: &Evidence<'_>) -> Vec<Row> {
    let mut lag = Tally::new("-", "nothing is left in the queue", "0");
    if let Some((line, tasks)) = evidence.lag {
        lag.count += 1;
        lag.worst = tasks.to_string();
        if tasks > 0 {
            lag.broken(format!("{tasks} tasks are not finished by the group"), Vec::new(), vec![line]);
        }
    }
    let mut readers = Tally::new("-", "two readers find the same", "0");
    if evidence.lag.is_some() || !evidence.disagreed.is_empty() {
        readers.count += 1;
        readers.worst = evidence.disagreed.len().to_string();
    }
    for (line, topic, detail) in &evidence.disagreed {
        readers.broken(format!("{topic}: {detail}"), Vec::new(), vec![*line]);
    }
    vec![lag.row(), readers.row()]
}

/// A row while it is made.
#[derive(Debug)]
struct Tally {
    promise: &'static str,
    name: &'static str,
    bound: String,
    worst: String,
    /// The largest measured value, where one is measured.
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

    /// One more case, with a time in seconds that is held against a bound.
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

    /// The same for a time that is known only to be at most this long, and at least this long less `doubt`: it counts
    /// if that decides.
    fn time_in_doubt(&mut self, most: f64, doubt: f64, bound: f64, what: impl FnOnce() -> Finding) {
        let least = most - doubt;
        if most <= bound || least > bound {
            self.time(if most <= bound { most } else { least }, bound, what);
        }
    }

    fn broken(&mut self, what: String, ids: Vec<String>, lines: Vec<usize>) {
        self.findings.push(Finding { what, ids, lines });
    }

    /// A row that counts findings.
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

/// A time as people read it.
fn shown(seconds: f64) -> String {
    if seconds.is_infinite() {
        return "never".to_owned();
    }
    if seconds.abs() < 1.0 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.1} s") }
}
