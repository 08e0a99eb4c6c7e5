//! The table of mutations: each changes the ledger of a real run that is held, and breaks the named row for the named
//! reason. Some have an amount that breaks the row, and one that keeps its bound.
//!
//! It proves that the judge finds each kind of fault. A new check needs a mutation.

use serde_json::json;

use super::super::fact::{Answer, Fact, Kind};
use super::super::judgement::{Conclusion, State};
use super::super::texts::AFTERWARDS;
use super::recorded::{Recorded, alter, broken, refused, task_of};

/// One change, and the text that must appear in a finding of the row or in the reason of an undecided verdict.
pub(super) struct Mutation {
    pub(super) name: &'static str,
    pub(super) row: &'static str,
    pub(super) says: &'static str,
    pub(super) change: fn(&mut Recorded),
    /// The same change by an amount that the bound allows, if it has an amount.
    pub(super) keeps: &'static [fn(&mut Recorded)],
}

pub(super) const LOST: &str = "no task is lost";
const FETCHED: &str = "every result can be fetched";
pub(super) const RIGHT: &str = "every answer is right";
const UNEXPECTED: &str = "no task runs that was not requested";
pub(super) const GIVEN_UP: &str = "no task fails that can succeed";
const POISON: &str = "poison task is dead-lettered";
pub(super) const TWICE: &str = "no task runs twice";
pub(super) const IDLE: &str = "idle worker stops";
pub(super) const BUSY: &str = "busy worker finishes and stops";
pub(super) const DEADLINE: &str = "drain ends at its timeout";
pub(super) const RESTARTED: &str = "abandoned task starts elsewhere";
pub(super) const SECOND: &str = "second signal ends a worker";
pub(super) const AWAY: &str = "stops while Kafka is unavailable";
pub(super) const CODES: &str = "exit codes are correct";
pub(super) const SAID: &str = "stops have notifications and receipts";
pub(super) const RECEIPTS: &str = "receipts match the evidence";
pub(super) const KILLED: &str = "tasks of a killed worker start elsewhere";
pub(super) const HUNG: &str = "tasks of a hung worker start elsewhere";
pub(super) const GATEWAY: &str = "gateway answers its callers and stops";
const UNREADY: &str = "stopping gateway is not ready";
pub(super) const CUT: &str = "every caller is answered";
pub(super) const KNOWS: &str = "restarted gateway knows the fleet";
const PAGE: &str = "fleet page is correct";
const REFUSED: &str = "no request is refused without a cause";
const RECOVERED: &str = "callers are served again after a cause";
pub(super) const IN_TIME: &str = "tasks start in time";
const FOLLOWS: &str = "answer follows its result";
const PROBED: &str = "all probes at the end are answered";
const STAYS: &str = "results stay the same";
const KAFKA: &str = "Kafka is unavailable only by an action";
const LAG: &str = "no task is left in the queue";
const READERS: &str = "two readers read the same records";
pub(super) const PLANNED: &str = "planned actions took effect";
/// Stands for the verdict, in place of a row.
const UNDECIDED: &str = "UNDECIDED";

macro_rules! mutations {
    ($($name:literal => $row:expr, $says:literal $(, $breaks:literal not $keeps:literal)?: $change:expr;)*) => {
        &[$(Mutation {
            name: $name,
            row: $row,
            says: $says,
            change: by!($change $(, $breaks)?),
            keeps: &[$(by!($change, $keeps))?],
        }),*]
    };
}
macro_rules! by {
    ($change:expr) => {
        $change
    };
    ($change:expr, $amount:literal) => {{
        const CHANGE: fn(&mut Recorded, f64) = $change;
        |it| CHANGE(it, $amount)
    }};
}
pub(super) use {by, mutations};

mod service;
mod stops;
mod tasks;

fn all() -> impl Iterator<Item = &'static Mutation> {
    [tasks::MUTATIONS, stops::MUTATIONS, service::MUTATIONS].into_iter().flatten()
}

fn find_poison(it: &Recorded) -> Option<(u64, String)> {
    let number = it.lines.iter().find_map(|line| match &line.fact {
        Fact::Submitted { number, poison: true, .. } => Some(*number),
        _ => None,
    })?;
    let id = it.lines.iter().find_map(|line| match &line.fact {
        Fact::Accepted { number: Some(of), task_id, .. } if *of == number => Some(task_id.clone()),
        _ => None,
    });
    Some((number, id.unwrap_or_default()))
}

fn poison(it: &Recorded) -> (u64, String) {
    find_poison(it).expect("a poison request")
}

/// A task that this process had in flight at this time, and that ran again.
fn in_flight(it: &Recorded, process: &str, at: f64) -> String {
    let began = it.lines.iter().filter_map(|line| match &line.fact {
        Fact::RunBegan { worker, task_id, .. } if worker == process && line.at < at => Some(task_id.clone()),
        _ => None,
    });
    let again = |id: &String| {
        it.lines
            .iter()
            .any(|line| line.at > at && matches!(&line.fact, Fact::RunBegan { task_id, .. } if task_id == id))
    };
    began.rev().find(again).expect("a task in flight")
}

fn abandoned(it: &Recorded, stop: &super::recorded::Done) -> String {
    let receipt = it.lines.iter().find_map(|line| match &line.fact {
        Fact::Exited { process, receipt: Some(receipt), .. } if *process == stop.process && line.at == stop.exit => {
            receipt["tasks_abandoned"][0].as_str().map(str::to_owned)
        }
        _ => None,
    });
    receipt.expect("the stop abandoned a task")
}

fn request_of(it: &Recorded, id: &str) -> u64 {
    let number = it.lines.iter().find_map(|line| match &line.fact {
        Fact::Accepted { number, task_id, .. } if task_id == id => *number,
        _ => None,
    });
    number.expect("a task of this run")
}

fn is_notice(line: &super::super::fact::Line, worker: &str, status: &str, from: f64, until: f64) -> bool {
    let within = (from - 0.01..until + 0.5).contains(&line.at);
    within && matches!(&line.fact, Fact::Notified { worker: by, status: sent, .. } if by == worker && sent == status)
}

fn without(it: &mut Recorded, member: &str) {
    let stop = it.idle_stop();
    it.receipt(&stop, |receipt| drop(receipt.as_object_mut().expect("an object").remove(member)));
}

fn says(it: &mut Recorded, member: &str, value: serde_json::Value) {
    let stop = it.idle_stop();
    it.receipt(&stop, |receipt| receipt[member] = value.clone());
}

fn read_back(it: &mut Recorded, answered: Option<u16>) {
    let mut first = true;
    // The second reading.
    alter!(it, line: Fact::ReadBack { gateway, status, mark, is_result, .. }
        if gateway == "gateway_2" && std::mem::take(&mut first)
        => (*status, *mark, *is_result) = (answered, None, false));
}

/// A restarted gateway is asked for an early task, this many seconds after its start.
fn ask_restarted(it: &mut Recorded, after_seconds: f64, answered: Option<u16>) {
    let stop = it.first("restart-gateway");
    let started = it.lines.iter().find(|line| {
        line.at >= stop.exit && matches!(&line.fact, Fact::Started { process, .. } if *process == stop.process)
    });
    let at = started.expect("it was started").at + after_seconds;
    let early = it.lines.iter().find_map(|line| match &line.fact {
        Fact::Answered { number, answer: Answer { outcome: Kind::Answered, task_id: Some(id), .. }, .. } => {
            Some((*number, id.clone()))
        }
        _ => None,
    });
    let (number, task_id) = early.expect("an answered request");
    let (gateway, status) = (stop.process, answered);
    it.put(at, Fact::ReadBack { number, gateway, task_id, status, mark: None, is_result: false });
}

#[test]
fn recorded_run_is_held() {
    let verdict = Recorded::new().judged();
    let broken = broken(&verdict);
    assert!(verdict.conclusion == Conclusion::Held && broken.is_empty(), "{:?}: {broken:#?}", verdict.conclusion);
    let twice = verdict.rows.iter().find(|row| row.name == TWICE).expect("a row");
    let explained = "8 explained: drain timeout 2 of 2, freeze 1 of 2, kill 4 of 4, second signal 1 of 1";
    assert_eq!(twice.note, explained);
    // The run tests every row, except those of a cluster.
    let untested = verdict.rows.iter().filter(|row| row.state == State::Untested && row.promise != "P11");
    assert_eq!(untested.map(|row| row.name).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn each_mutation_breaks_its_row_for_its_reason() {
    let count = all().count();
    assert!(count >= 60);
    let wrong: Vec<String> = all().filter_map(|mutation| undetected(mutation, Recorded::new()).err()).collect();
    assert!(wrong.is_empty(), "{} of {count} mutations:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn each_bound_is_kept_by_a_smaller_change() {
    let mut wrong = Vec::new();
    for mutation in all() {
        for keeps in mutation.keeps {
            let mut it = Recorded::new();
            keeps(&mut it);
            let verdict = it.judged();
            // The changes do not update the views.
            let red: Vec<_> = broken(&verdict).into_iter().filter(|row| row.name != PAGE).collect();
            wrong.extend((!red.is_empty()).then(|| format!("{}: {red:#?}", mutation.name)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn finding_has_its_worker_its_task_and_its_lines() {
    let finding = |it: &Recorded, name: &str| {
        let verdict = it.judged();
        let row = broken(&verdict).into_iter().find(|row| row.name == name).expect("a broken row");
        row.findings[0].clone()
    };
    let mut it = Recorded::new();
    let stop = it.idle_stop();
    it.later(&stop, 1.2);
    let late = finding(&it, IDLE);
    let times: Vec<f64> = late.lines.iter().map(|number| it.lines[number - 1].at).collect();
    assert_eq!((late.ids, times), (vec![stop.process], vec![stop.at, stop.exit + 1.2]));
    let mut it = Recorded::new();
    let kill = it.first("kill-worker");
    let id = in_flight(&it, &kill.process, kill.at);
    it.delay(&id, request_of(&it, &id), kill.at, 2.0);
    assert_eq!(finding(&it, KILLED).ids, [id, kill.process]);
}

/// Changes the ledger. The error says why the verdict does not show the change.
pub(super) fn undetected(mutation: &Mutation, mut recorded: Recorded) -> Result<(), String> {
    let Mutation { name, row, says, change, .. } = mutation;
    change(&mut recorded);
    let verdict = recorded.judged();
    if *row == UNDECIDED {
        let Conclusion::Undecided(why) = &verdict.conclusion else {
            return Err(format!("{name}: {:?}, {:#?}", verdict.conclusion, broken(&verdict)));
        };
        return if why.contains(says) { Ok(()) } else { Err(format!("{name}: undecided, since {why}")) };
    }
    let red = broken(&verdict);
    let said =
        red.iter().filter(|found| found.name == *row).flat_map(|row| &row.findings).any(|it| it.what.contains(says));
    let held = verdict.conclusion == Conclusion::Held;
    let rows: Vec<String> =
        red.iter().map(|row| format!("{} ({:?})", row.name, row.findings.first().map(|it| &it.what))).collect();
    if said && !held { Ok(()) } else { Err(format!("{name}: {:?}: {}", verdict.conclusion, rows.join(", "))) }
}
