//! The data of the page: lanes of processes with their intervals, tasks and instants, and the load by the second.
//!
//! Pure: a ledger and its verdict in, data out. Process lifetimes and runs come from the judge's `evidence`, so the
//! picture shows what was judged. It does not judge and knows no HTML. Called by `html`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::evidence::{Evidence, Life, Run, Story};
use super::fact::{Fact, Kind, Line};
use super::judgement::{Verdict, percentile};

/// Most tasks on the page, besides those of the findings: the page then has about 4 MB.
pub(super) const TASKS: usize = 15_000;
/// Most findings of one promise on the page.
pub(super) const FINDINGS: usize = 50;
/// Most ledger lines of one item, and tasks of one finding.
pub(super) const LINES: usize = 20;
/// Rows of tasks below one worker; runs without a free row cover others.
const ROWS: usize = 8;
/// Most bars of the load; a longer run gets wider bars.
const BARS: f64 = 3_600.0;
/// Upper bound for times in seconds; later ones are clamped.
const LATEST: f64 = 1e7;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    Findings,
    Actions,
    Broker,
    Gateway,
    Worker,
}

/// The whole drawing. Times are seconds of the run.
#[derive(Debug, Serialize)]
pub(super) struct Timeline {
    pub(super) end: f64,
    pub(super) lanes: Vec<Lane>,
    pub(super) load: Load,
    /// Notes about what is not drawn.
    pub(super) notes: Vec<String>,
}

/// The items beside one name.
#[derive(Debug, Default, Serialize)]
pub(super) struct Lane {
    pub(super) name: String,
    pub(super) items: Vec<Item>,
}

/// An interval, or an instant where both times are the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Item {
    pub(super) from: f64,
    pub(super) until: f64,
    /// 0 for the process, the others for its tasks.
    pub(super) row: usize,
    /// A colour of the page.
    pub(super) class: &'static str,
    pub(super) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) task: Option<String>,
    /// Ledger lines, counted from 1.
    pub(super) lines: Vec<usize>,
}

/// The answers of each interval; `p99` in milliseconds.
#[derive(Debug, Default, Serialize)]
pub(super) struct Load {
    /// Seconds of an interval.
    pub(super) width: f64,
    pub(super) answered: Vec<u32>,
    /// Refused, unknown, wrong or failed.
    pub(super) others: Vec<u32>,
    pub(super) p99: Vec<f64>,
}

/// A time that can be drawn, rounded to a tenth of a millisecond.
fn second(at: f64) -> f64 {
    if at.is_nan() { 0.0 } else { (at.clamp(0.0, LATEST) * 1e4).round() / 1e4 }
}

fn span(from: f64, until: f64, class: &'static str, text: impl Into<String>) -> Item {
    let from = second(from);
    Item { from, until: second(until).max(from), class, text: text.into(), ..Item::default() }
}

fn instant(at: f64, class: &'static str, text: impl Into<String>, lines: &[usize]) -> Item {
    Item { lines: lines.iter().copied().take(LINES).collect(), ..span(at, at, class, text) }
}

/// The lanes in their order: `worker_2` is above `worker_10`.
#[derive(Default)]
struct Lanes(BTreeMap<(Of, String, usize, String), Lane>);

impl Lanes {
    fn add(&mut self, of: Of, name: &str, items: impl IntoIterator<Item = Item>) {
        let front = name.trim_end_matches(|character: char| character.is_ascii_digit());
        let lane = self.0.entry((of, front.to_owned(), name.len(), name.to_owned())).or_default();
        name.clone_into(&mut lane.name);
        lane.items.extend(items);
    }
}

/// Draws a run. `tasks`: see [`TASKS`].
pub(super) fn draw(lines: &[Line], verdict: &Verdict, tasks: usize) -> Timeline {
    let evidence = Evidence::new(lines);
    let until = |line: &Line| if let Fact::KafkaAway { until } = line.fact { line.at.max(until) } else { line.at };
    let end = second(lines.iter().map(until).fold(0.0, f64::max));
    let mut lanes = Lanes::default();
    findings(lines, verdict, &mut lanes);
    actions(lines, &evidence, end, &mut lanes);
    let fleet = [(Of::Broker, &evidence.brokers), (Of::Gateway, &evidence.gateways), (Of::Worker, &evidence.workers)];
    for (of, lives) in fleet {
        for (name, lives) in lives {
            lanes.add(of, name, lives.iter().flat_map(|life| self::life(life, end)));
        }
    }
    let findings = verdict.rows.iter().flat_map(|row| row.findings.iter().take(FINDINGS));
    let found = findings.flat_map(|finding| finding.ids.iter().take(LINES)).map(String::as_str).collect();
    let notes = runs(&evidence, &found, tasks, end, &mut lanes);
    Timeline { end, lanes: lanes.0.into_values().collect(), load: load(lines, end), notes: notes.into_iter().collect() }
}

/// Each finding at the time of its first line.
fn findings(lines: &[Line], verdict: &Verdict, lanes: &mut Lanes) {
    for row in &verdict.rows {
        for finding in row.findings.iter().take(FINDINGS) {
            let first = finding.lines.first().and_then(|number| lines.get(number.checked_sub(1)?));
            let text = format!("{} {}: {}", row.promise, row.name, finding.what);
            let item = instant(first.map_or(0.0, |line| line.at), "finding", text, &finding.lines);
            lanes.add(Of::Findings, "findings", [Item { task: finding.ids.first().cloned(), ..item }]);
        }
    }
}

/// Actions, dead-lettered tasks, and the ends of the load and of all faults.
fn actions(lines: &[Line], evidence: &Evidence<'_>, end: f64, lanes: &mut Lanes) {
    for action in evidence.actions.values() {
        let (class, failed) = if action.carried == Some(true) { ("done", "") } else { ("failed", "(not carried out)") };
        let outcome = if action.detail == action.ordered { "" } else { action.detail };
        let words = [action.what, action.target.unwrap_or_default(), action.ordered, outcome, failed];
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let item = span(action.from, action.until.min(end), class, words.join(" "));
        lanes.add(Of::Actions, "actions", [Item { lines: vec![action.line], ..item }]);
    }
    for (line, number) in lines.iter().zip(1..) {
        let at = |class, text| instant(line.at, class, text, &[number]);
        let item = match &line.fact {
            Fact::LoadEnded => at("signal", "the load ended"),
            Fact::Healed => at("start", "every process runs again"),
            Fact::Dead { task_id, .. } => Item { task: task_id.clone(), ..at("kill", "dead-lettered") },
            _ => continue,
        };
        lanes.add(Of::Actions, "actions", [item]);
    }
    for (line, from, until) in &evidence.seen_away {
        let item = span(*from, *until, "away", "Kafka did not answer the drill");
        lanes.add(Of::Broker, "kafka", [Item { lines: vec![*line], ..item }]);
    }
}

/// A process from its start to its exit.
fn life(life: &Life<'_>, end: f64) -> Vec<Item> {
    let from = second(life.from);
    let until = life.exit.as_ref().map_or(end, |exit| second(exit.at)).max(from);
    let stop = life.terms.first().map_or(until, |(_, at)| second(*at)).clamp(from, until);
    // A process that ran before the drill, or never said that it is ready, is drawn as ready.
    let ready = life.ready.map_or(from, second).clamp(from, stop);
    let phases = [(from, ready, "starting"), (ready, stop, "up"), (stop, until, "stopping")];
    let mut items = phases.map(|(from, until, class)| span(from, until, class, class)).to_vec();
    items.retain(|item| item.from < item.until);
    items.extend(life.frozen.iter().map(|(from, thawed)| span(*from, thawed.min(until), "frozen", "frozen")));
    items.extend(life.quiet.iter().map(|(from, resumed)| span(*from, resumed.min(until), "frozen", "quiet")));
    if life.from >= 0.0 {
        items.push(instant(from, "start", "started", &[]));
    }
    let signal = if life.by_hearsay { "signal to stop" } else { "SIGTERM" };
    items.extend(life.terms.iter().map(|(line, at)| instant(*at, "signal", signal, &[*line])));
    if let Some((line, at)) = life.kill.filter(|_| !life.by_hearsay) {
        items.push(instant(at, "kill", "SIGKILL", &[line]));
    }
    if let Some(exit) = &life.exit {
        let how = match (exit.code, exit.signal) {
            (_, Some(_)) if life.by_hearsay => "last sign: killed, or hung".to_owned(),
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        let outcome = exit.receipt.and_then(|receipt| receipt.get("outcome")?.as_str()).unwrap_or("no receipt");
        let class = if exit.signal.is_none() && exit.code.unwrap_or_default() == 0 { "exit" } else { "kill" };
        items.push(instant(exit.at, class, format!("{how}, {outcome}"), &[exit.line]));
    }
    items
}

/// The runs below their workers. Returns a note if some are left out; runs of findings are always drawn.
fn runs(evidence: &Evidence<'_>, found: &BTreeSet<&str>, tasks: usize, end: f64, lanes: &mut Lanes) -> Option<String> {
    let every = evidence.tasks.len().div_ceil(tasks.max(1)).max(1);
    let mut by_worker: BTreeMap<&str, Vec<Item>> = BTreeMap::new();
    let mut shown = 0;
    for (index, (id, story)) in evidence.tasks.iter().enumerate() {
        if index % every == 0 || found.contains(id) {
            shown += 1;
            for run in &story.runs {
                by_worker.entry(run.worker).or_default().push(self::run(evidence, id, story, run, end));
            }
        }
    }
    for (worker, mut runs) in by_worker {
        runs.sort_by(|one, other| one.from.total_cmp(&other.from));
        let mut free: Vec<f64> = Vec::new();
        for run in &mut runs {
            let row = free.iter().position(|until| *until <= run.from).unwrap_or(free.len().min(ROWS - 1));
            free.resize(free.len().max(row + 1), 0.0);
            free.iter_mut().skip(row).take(1).for_each(|until| *until = run.until);
            run.row = row + 1;
        }
        lanes.add(Of::Worker, worker, runs);
    }
    let (all, left_out) = (evidence.tasks.len(), evidence.tasks.len() - shown);
    (left_out > 0).then(|| {
        format!("{left_out} of {all} tasks are not drawn; 1 task in {every} is, and those of the listed findings.")
    })
}

fn run(evidence: &Evidence<'_>, id: &str, story: &Story<'_>, run: &Run<'_>, end: f64) -> Item {
    let died = || evidence.life(run.worker, run.began)?.exit.as_ref().map(|exit| exit.at);
    let next = story.runs.iter().map(|other| other.began).find(|began| *began > run.began);
    let (until, class, state) = match (&run.end, died()) {
        (Some(end), _) if end.success && end.fault.is_none() => (end.at, "run", "finished"),
        (Some(end), _) => (end.at, "failed", "failed or wrong"),
        // Only the next start shows how a poison task's run ended.
        (None, _) if evidence.is_poison(story) => (run.began, "failed", "failed, or cut off"),
        (None, died) if next.is_some_and(|next| died.is_none_or(|died| next < died)) => {
            (next.unwrap_or(end), "cut", "cut off: the task started again")
        }
        (None, Some(died)) => (died, "cut", "cut off: its process ended"),
        (None, None) => (end, "open", "no end seen"),
    };
    let delivery = run.delivery.map(|delivery| format!("delivery {delivery}, ")).unwrap_or_default();
    let request = evidence.request_of(story);
    let mut lines = story.lines();
    lines.extend(request.map(|request| request.line));
    lines.extend(request.and_then(|request| request.answered).map(|(line, ..)| line));
    lines.sort_unstable();
    lines.truncate(LINES);
    Item { task: Some(id.to_owned()), lines, ..span(run.began, until, class, format!("{delivery}{state}")) }
}

/// The answers by the time at which they came.
fn load(lines: &[Line], end: f64) -> Load {
    let width = (end / BARS).ceil().max(1.0);
    let mut bars: Vec<(u32, Vec<f64>)> = vec![(0, Vec::new()); (end / width) as usize + 1];
    for line in lines {
        let Fact::Answered { took_ms, answer, .. } = &line.fact else { continue };
        let Some((others, latencies)) = bars.get_mut((second(line.at) / width) as usize) else { continue };
        match answer.outcome {
            Kind::Answered => latencies.push(*took_ms),
            Kind::Accepted => {}
            Kind::Wrong | Kind::Failed | Kind::Refused | Kind::Unknown => *others += 1,
        }
    }
    let mut load = Load { width, ..Load::default() };
    for (others, mut latencies) in bars {
        latencies.sort_by(f64::total_cmp);
        load.answered.push(latencies.len() as u32);
        load.others.push(others);
        // Milliseconds are rounded as seconds are.
        load.p99.push(second(percentile(&latencies, 99).copied().unwrap_or_default()));
    }
    load
}

#[cfg(test)]
mod tests {
    use super::super::fact::Begin;
    use super::super::judge::recorded::{Recorded, findings};
    use super::super::judgement::Finding;
    use super::*;

    fn lane<'a>(timeline: &'a Timeline, name: &str) -> &'a Lane {
        timeline.lanes.iter().find(|lane| lane.name == name).expect("the lane")
    }

    /// The items of a process, without its tasks.
    fn told(timeline: &Timeline, name: &str) -> String {
        let items = lane(timeline, name).items.iter().filter(|item| item.row == 0);
        let told = items.map(|item| match item.until > item.from {
            true => format!("{} {}..{}", item.class, item.from, item.until),
            false => format!("{} {}", item.class, item.from),
        });
        told.collect::<Vec<_>>().join(", ")
    }

    fn runs(timeline: &Timeline) -> Vec<&Item> {
        timeline.lanes.iter().flat_map(|lane| &lane.items).filter(|item| item.row > 0).collect()
    }

    #[test]
    fn process_has_its_intervals_and_instants() {
        let recorded = Recorded::new();
        let timeline = draw(&recorded.lines, &recorded.judged(), TASKS);
        let names: Vec<&str> = timeline.lanes.iter().map(|lane| lane.name.as_str()).collect();
        assert_eq!(names.join(" "), "actions broker kafka gateway_1 gateway_2 worker_1 worker_2 worker_3 worker_4");
        let stopped = "starting 0.0125..0.0499, up 0.0499..1.9995, stopping 1.9995..2.0285, start 0.0125, signal 1.9995, exit 2.0285";
        let killed = "starting 2.0289..2.0331, up 2.0331..6.5798, start 2.0289, kill 6.5789, kill 6.5798, starting ";
        let worker_4 = told(&timeline, "worker_4");
        assert!(worker_4.starts_with(&format!("{stopped}, {killed}")), "{worker_4}");
        assert!(told(&timeline, "worker_3").contains(", frozen 5.0366..23.0367, "));
        assert_eq!(told(&timeline, "kafka"), "away 34.068..36.0806, away 39.5953..40.4162");
        let actions = told(&timeline, "actions");
        assert!(actions.starts_with("done 1.5789..1.9995, done 5.0366..23.037, done 6.5789..6.5798, "), "{actions}");
        assert!(actions.ends_with(", signal 51.4209, start 57.4327, kill 18.3732"), "{actions}");
        let killed = "kill-worker worker_4 for 0.7 s worker_4: ended by signal 9";
        assert_eq!(lane(&timeline, "actions").items[2].text, killed);
    }

    #[test]
    fn run_has_its_task_and_every_ledger_line_of_it() {
        let lossy = Recorded::lossy();
        let timeline = draw(&lossy.lines, &lossy.judged(), TASKS);
        let task = Some(lossy.task().id);
        let run = runs(&timeline).into_iter().find(|run| run.task == task).expect("the run");
        let kind = |number: &usize| serde_json::to_value(&lossy.lines[number - 1]).expect("JSON")["fact"].to_string();
        let kinds: String = run.lines.iter().map(kind).collect();
        assert_eq!(kinds.replace('"', " "), " submitted  answered  run_began  accepted  run_ended ");
        let findings = &lane(&timeline, "findings").items;
        assert_eq!((findings.len(), findings[0].task.as_deref()), (2, Some("t296")));
        assert_eq!((timeline.load.answered.iter().sum::<u32>(), timeline.notes.len()), (580, 0));
    }

    #[test]
    fn runs_at_the_same_time_lie_in_rows_and_end_with_their_process_or_the_next_start() {
        let worker = || "worker_1".to_owned();
        let began = |task: &str| Fact::RunBegan { worker: worker(), task_id: task.to_owned(), delivery: 1 };
        let exited = Fact::Exited { process: worker(), pid: 1, code: None, signal: Some(9), receipt: None };
        let Recorded { mut lines } = Recorded::new();
        let loaded = lines.iter().position(|line| matches!(line.fact, Fact::Submitted { .. })).expect("a request");
        lines.truncate(loaded);
        let again = Fact::RunBegan { worker: "worker_2".to_owned(), task_id: "a".to_owned(), delivery: 2 };
        let facts = [(0.3, began("a")), (0.4, began("b")), (0.5, again), (0.6, exited)];
        lines.extend(facts.map(|(at, fact)| Line { at, fact }));
        let timeline = draw(&lines, &Recorded::new().judged(), TASKS);
        let drawn: Vec<_> = runs(&timeline).iter().map(|run| (run.row, run.until, run.class)).collect();
        assert_eq!(drawn[..2], [(1, 0.5, "cut"), (2, 0.6, "cut")], "a lost lock ends at the next start of its task");
    }

    /// A status record, which the ledger of a fleet of others has instead of processes.
    fn notified(worker: &str, at: f64, status: &str) -> Line {
        let (worker, instance, status) = (worker.to_owned(), "1".to_owned(), status.to_owned());
        let (current_tasks, receipt) = (Vec::new(), None);
        Line { at, fact: Fact::Notified { worker, instance, status, current_tasks, receipt, offset: 0 } }
    }

    #[test]
    fn fleet_that_others_started_is_known_by_its_notifications() {
        let started = |name, at: i32| notified(name, at.into(), "worker_started");
        let mut lines: Vec<Line> = (0..8).map(|at| started("worker_10", at)).collect();
        let begin = Begin { worker_timeout_ms: 5_000, ..Begin::default() };
        lines.insert(0, Line { at: 0.0, fact: Fact::Begin(begin) });
        lines.push(notified("worker_10", 8.0, "shutdown_started"));
        lines.push(notified("worker_10", 9.5, "shutdown_completed"));
        lines.push(started("worker_2", 9));
        let timeline = draw(&lines, &Recorded::new().judged(), TASKS);
        assert_eq!(timeline.lanes[0].name, "worker_2");
        assert_eq!(told(&timeline, "worker_10"), "up 0..8, stopping 8..9.5, signal 8, exit 9.5");
    }

    #[test]
    fn tasks_beyond_the_limit_are_counted_and_those_of_findings_are_drawn() {
        let recorded = Recorded::new();
        let mut verdict = recorded.judged();
        let task = recorded.task().id;
        verdict.rows[0].findings = vec![Finding { ids: vec![task.clone()], ..findings(1, 0).remove(0) }];
        let timeline = draw(&recorded.lines, &verdict, 10);
        let drawn = runs(&timeline);
        assert!(drawn.len() < 15 && drawn.iter().any(|run| run.task == Some(task.clone())), "{drawn:?}");
        assert!(timeline.notes[0].contains(" of 584 tasks are not drawn"), "{:?}", timeline.notes);
        assert_eq!(timeline.load.answered.iter().sum::<u32>(), 582, "the load counts all");
        verdict.rows[0].findings = findings(1_000, 3);
        let timeline = draw(&recorded.lines, &verdict, 10);
        assert!(runs(&timeline).len() < 100, "{} runs: only listed findings are drawn", runs(&timeline).len());
    }

    #[test]
    fn impossible_times_are_drawn_at_the_edge() {
        let recorded = Recorded::new();
        let answer = |line: &&Line| matches!(line.fact, Fact::Answered { .. });
        let fact = &recorded.lines.iter().find(answer).expect("one").fact;
        let times = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -5.0, 1e300];
        let lines = times.map(|at| Line { at, fact: fact.clone() });
        let Timeline { end, load, .. } = draw(&lines, &recorded.judged(), TASKS);
        assert_eq!((end, load.answered.iter().sum::<u32>()), (LATEST, 5));
        assert!(load.answered.len() <= BARS as usize + 1);
    }
}
