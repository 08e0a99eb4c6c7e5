//! What the page draws: lanes of processes, columns of the tasks' lines, the load by the second.
//!
//! Pure: a ledger in, data out. An hour's ledger has hundreds of thousands of lines, so those of tasks become columns of numbers, of
//! which only the differences are written; the page puts the lines together again. What would make the page too large is left out,
//! and a note says how much. Called by `html`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::fact::{Fact, Kind, Line};
use super::judgement::Verdict;
use super::lanes::{self, Lane};
use super::receipt;

/// Ticks of the page's clock in a second.
const TICKS: f64 = 10_000.0;
/// A time that no run gets to; what is beyond is not drawn where it says.
const LATEST: f64 = 3e7;
/// Bars of the load at the most: they get wider in a longer run.
const BARS: f64 = 7_200.0;
/// What the page holds at the most. With all of it, it has about 15 MB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Characters of all task ids.
    pub(super) ids: usize,
    /// Lines of one kind.
    pub(super) rows: usize,
    /// Characters of lines that are kept as they stand in the ledger.
    pub(super) raw: usize,
}

pub(super) const LIMITS: Limits = Limits { ids: 6_500_000, rows: 170_000, raw: 1_500_000 };

/// Ticks of a second of the run.
pub(super) fn ticks(seconds: f64) -> i64 {
    // Not a number becomes 0.
    (seconds.clamp(0.0, LATEST) * TICKS).round() as i64
}

/// Everything, in the page's own form.
#[derive(Debug, Serialize)]
pub(super) struct Timeline {
    pub(super) ticks: f64,
    pub(super) end: i64,
    pub(super) concurrency: u32,
    pub(super) names: Vec<String>,
    pub(super) tasks: Vec<String>,
    pub(super) lanes: Vec<Lane>,
    pub(super) load: Load,
    pub(super) tables: BTreeMap<&'static str, Coded>,
    /// Lines as they stand in the ledger, by their numbers.
    pub(super) raw: BTreeMap<usize, String>,
    /// The tasks of the findings.
    pub(super) findings: Vec<i64>,
    /// What was left out.
    pub(super) notes: Vec<String>,
}

/// What came in each interval.
#[derive(Debug, Default, Serialize)]
pub(super) struct Load {
    /// Ticks of a bar.
    pub(super) width: i64,
    pub(super) answered: Vec<u32>,
    /// Milliseconds.
    pub(super) p99: Vec<f64>,
    pub(super) refused: Vec<u32>,
    pub(super) unknown: Vec<u32>,
    /// Wrong or failed.
    pub(super) bad: Vec<u32>,
}

/// Lines of one kind: a column for each thing that they tell.
#[derive(Debug, Default)]
struct Table {
    columns: [Vec<i64>; COLUMNS.len()],
}

/// `value` and `extra` are something else in each table: the page knows.
const COLUMNS: [&str; 7] = ["line", "at", "task", "number", "who", "value", "extra"];

impl Table {
    fn put(&mut self, row: [i64; COLUMNS.len()]) {
        for (column, value) in self.columns.iter_mut().zip(row) {
            column.push(value);
        }
    }

    fn rows(&self) -> usize {
        self.columns.first().map_or(0, Vec::len)
    }
}

/// A table as the page gets it.
#[derive(Debug, Serialize)]
pub(super) struct Coded {
    pub(super) rows: usize,
    #[serde(flatten)]
    columns: BTreeMap<&'static str, Column>,
}

/// Numbers: the first and the step where each is as far from the one before, else differences in 7-bit pieces, in base 64.
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
enum Column {
    Even(i64, i64),
    Packed(String),
}

impl From<Table> for Coded {
    fn from(table: Table) -> Self {
        let rows = table.rows();
        Self { rows, columns: COLUMNS.into_iter().zip(table.columns.iter().map(|column| code(column))).collect() }
    }
}

fn code(column: &[i64]) -> Column {
    let first = column.first().copied().unwrap_or_default();
    let step = column.get(1).map_or(0, |second| second - first);
    if column.windows(2).all(|pair| matches!(pair, [one, two] if two - one == step)) {
        return Column::Even(first, step);
    }
    let mut bytes = Vec::with_capacity(2 * column.len());
    let mut last = 0;
    for &value in column {
        let difference = value - std::mem::replace(&mut last, value);
        // The sign goes to the lowest bit, so that small differences of either sign are short.
        let mut left = ((difference << 1) ^ (difference >> 63)) as u64;
        while left > 127 {
            bytes.push(left as u8 | 128);
            left >>= 7;
        }
        bytes.push(left as u8);
    }
    Column::Packed(base64(&bytes))
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for piece in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, index| bits << 8 | usize::from(piece.get(index).copied().unwrap_or_default()));
        for place in 0..4 {
            let letter = LETTERS.get(bits >> (18 - 6 * place) & 63).copied().unwrap_or(b'=');
            text.push(if place > piece.len() { '=' } else { letter.into() });
        }
    }
    text
}

/// Numbers for names, in the order in which they come.
#[derive(Default)]
struct Index<'a> {
    numbers: HashMap<&'a str, i64>,
    names: Vec<&'a str>,
}

impl<'a> Index<'a> {
    fn get(&self, name: &str) -> Option<i64> {
        self.numbers.get(name).copied()
    }

    fn put(&mut self, name: &'a str) -> i64 {
        let next = self.names.len() as i64;
        let number = *self.numbers.entry(name).or_insert(next);
        if number == next {
            self.names.push(name);
        }
        number
    }

    fn to_names(&self) -> Vec<String> {
        self.names.iter().map(|name| (*name).to_owned()).collect()
    }
}

/// The whole of it.
pub(super) fn draw(lines: &[Line], verdict: &Verdict, limits: Limits) -> Timeline {
    let (lanes, deaths) = lanes::of(lines);
    let ends =
        lines.iter().map(|line| if let Fact::KafkaAway { until } = line.fact { line.at.max(until) } else { line.at });
    let end = ends.map(ticks).max().unwrap_or_default();
    let mut sheet = Sheet::new(verdict, limits);
    sheet.name_tasks(lines);
    for (line, number) in lines.iter().zip(1..) {
        sheet.take(line, number);
    }
    sheet.leave_open(&deaths, end);
    let begin = lines.iter().find_map(|line| if let Fact::Begin(begin) = &line.fact { Some(begin) } else { None });
    Timeline {
        ticks: TICKS,
        end,
        concurrency: begin.map_or(1, |begin| begin.concurrency.max(1)),
        names: sheet.names.to_names(),
        tasks: sheet.tasks.to_names(),
        lanes,
        load: load(lines, end),
        findings: sheet.found.iter().filter_map(|id| sheet.tasks.get(id)).collect(),
        notes: sheet.notes(),
        tables: sheet.tables.into_iter().map(|(name, table)| (name, table.into())).collect(),
        raw: sheet.raw,
    }
}

/// The tasks' lines while they are taken.
struct Sheet<'a> {
    limits: Limits,
    /// Ids that the findings name.
    found: BTreeSet<&'a str>,
    tasks: Index<'a>,
    names: Index<'a>,
    /// Which task came of a request.
    requests: HashMap<u64, &'a str>,
    tables: BTreeMap<&'static str, Table>,
    /// Starts and ends of runs, by task and worker: times, lines.
    began: HashMap<(i64, i64), Vec<(i64, i64)>>,
    ended: HashMap<(i64, i64), Vec<i64>>,
    raw: BTreeMap<usize, String>,
    raw_used: usize,
    raw_left_out: usize,
    tasks_left_out: usize,
    lines_left_out: usize,
    left_out_since: i64,
}

impl<'a> Sheet<'a> {
    fn new(verdict: &'a Verdict, limits: Limits) -> Self {
        let findings = verdict.rows.iter().flat_map(|row| &row.findings);
        Self {
            limits,
            found: findings.flat_map(|finding| &finding.ids).map(String::as_str).collect(),
            tasks: Index::default(),
            names: Index::default(),
            requests: HashMap::new(),
            tables: BTreeMap::new(),
            began: HashMap::new(),
            ended: HashMap::new(),
            raw: BTreeMap::new(),
            raw_used: 0,
            raw_left_out: 0,
            tasks_left_out: 0,
            lines_left_out: 0,
            left_out_since: i64::MAX,
        }
    }

    /// Numbers the tasks, those of the findings first: they are never the ones that are left out.
    fn name_tasks(&mut self, lines: &'a [Line]) {
        let mut used = 0;
        let mut left_out = BTreeSet::new();
        for only_found in [true, false] {
            for line in lines {
                let Some(id) = task(&line.fact) else { continue };
                if only_found {
                    if self.found.contains(id) && self.tasks.get(id).is_none() {
                        used += id.len();
                        self.tasks.put(id);
                    }
                    if let Some(number) = number(&line.fact) {
                        self.requests.insert(number, id);
                    }
                } else if self.tasks.get(id).is_some() {
                } else if used + id.len() <= self.limits.ids {
                    used += id.len();
                    self.tasks.put(id);
                } else if left_out.insert(id) {
                    self.left_out_since = self.left_out_since.min(ticks(line.at));
                }
            }
        }
        self.tasks_left_out = left_out.len();
    }

    fn take(&mut self, line: &'a Line, at_line: usize) {
        let (at, row) = (ticks(line.at), at_line as i64);
        let request = number(&line.fact);
        let named = task(&line.fact).or_else(|| self.requests.get(&request?).copied());
        let known = named.and_then(|id| self.tasks.get(id));
        if named.is_some() && known.is_none() {
            self.lines_left_out += 1;
            return;
        }
        let task = known.unwrap_or(-1);
        let request = request.map_or(-1, |number| number as i64);
        let is_found = named.is_some_and(|id| self.found.contains(id));
        let (table, who, value, extra, keep) = match &line.fact {
            Fact::Submitted { gateway, work_ms, .. } => {
                ("submitted", self.names.put(gateway), work_ms.map_or(-1, |work_ms| work_ms as i64), 0, false)
            }
            Fact::Answered { took_ms, answer, .. } => {
                let who = answer.worker.as_ref().map_or(-1, |worker| self.names.put(worker));
                ("answered", who, ticks(took_ms / 1e3), 0, answer.outcome != Kind::Answered || answer.why.is_some())
            }
            Fact::Accepted { partition, offset, .. } => ("accepted", -1, (*partition).into(), *offset, false),
            Fact::RunBegan { worker, delivery, .. } => {
                let who = self.names.put(worker);
                self.began.entry((task, who)).or_default().push((at, row));
                ("began", who, (*delivery).into(), 0, false)
            }
            Fact::RunEnded { worker, seconds, success, fault, .. } => {
                let who = self.names.put(worker);
                self.ended.entry((task, who)).or_default().push(at);
                ("ended", who, ticks(*seconds), i64::from(*success && fault.is_none()), !success || fault.is_some())
            }
            Fact::Fetched { .. } | Fact::Restarted { .. } | Fact::Dead { .. } => ("rare", -1, 0, 0, true),
            Fact::Notified { receipt: Some(receipt), .. } | Fact::Exited { receipt: Some(receipt), .. } => {
                for id in receipt::abandoned(receipt) {
                    if let Some(task) = self.tasks.get(id) {
                        self.put("rare", [row, at, task, -1, -1, 0, 0], true);
                        self.keep(line, at_line);
                    }
                }
                return;
            }
            _ => return,
        };
        if self.put(table, [row, at, task, request, who, value, extra], is_found) && (keep || is_found) {
            self.keep(line, at_line);
        }
    }

    fn put(&mut self, name: &'static str, row: [i64; COLUMNS.len()], always: bool) -> bool {
        let table = self.tables.entry(name).or_default();
        let fits = always || table.rows() < self.limits.rows;
        if fits {
            table.put(row);
        } else {
            self.lines_left_out += 1;
            self.left_out_since = self.left_out_since.min(row[1]);
        }
        fits
    }

    fn keep(&mut self, line: &Line, number: usize) {
        // A ledger's line is made of text and numbers, which JSON can hold.
        let text = serde_json::to_string(line).unwrap_or_default();
        if self.raw_used + text.len() <= self.limits.raw {
            self.raw_used += text.len();
            self.raw.insert(number, text);
        } else {
            self.raw_left_out += 1;
        }
    }

    /// Runs that began and did not end: until their worker died, or until the end.
    fn leave_open(&mut self, deaths: &BTreeMap<&str, Vec<i64>>, end: i64) {
        /// A log and Kafka's clock tell the same moment so differently.
        const SLACK: i64 = (TICKS / 10.0) as i64;
        let mut open = Vec::new();
        for (&(task, who), began) in &self.began {
            let mut ends = self.ended.get(&(task, who)).cloned().unwrap_or_default();
            let name = self.names.names.get(who as usize).copied().unwrap_or_default();
            let died = |at: i64| deaths.get(name)?.iter().copied().filter(|death| *death >= at).min();
            for &(at, line) in began {
                let death = died(at);
                let until = death.unwrap_or(end);
                let ended = ends.iter().position(|ended| (at - SLACK..=until + SLACK).contains(ended));
                if let Some(index) = ended {
                    ends.remove(index);
                } else {
                    open.push([line, at, task, -1, who, until - at, i64::from(death.is_some())]);
                }
            }
        }
        open.sort_unstable();
        for row in open {
            self.put("open", row, false);
        }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.lines_left_out > 0 {
            notes.push(format!(
                "{} tasks and {} lines of tasks are not on this page, the first of {:.1} s: it would be too large. The ledger has them, \
                 the load counts them, and the tasks of the findings are all here.",
                self.tasks_left_out,
                self.lines_left_out,
                self.left_out_since.clamp(0, ticks(LATEST)) as f64 / TICKS
            ));
        }
        if self.raw_left_out > 0 {
            notes.push(format!(
                "{} lines are shown in a short form only; the ledger has them whole.",
                self.raw_left_out
            ));
        }
        notes
    }
}

/// The task that a line is about.
fn task(fact: &Fact) -> Option<&str> {
    match fact {
        Fact::Accepted { task_id, .. }
        | Fact::RunBegan { task_id, .. }
        | Fact::RunEnded { task_id, .. }
        | Fact::Restarted { task_id, .. } => Some(task_id),
        Fact::Answered { answer, .. } | Fact::Fetched { answer, .. } => answer.task_id.as_deref(),
        Fact::Dead { task_id, .. } => task_id.as_deref(),
        _ => None,
    }
}

/// The request that a line is about.
fn number(fact: &Fact) -> Option<u64> {
    match fact {
        Fact::Submitted { number, .. } | Fact::Answered { number, .. } | Fact::Fetched { number, .. } => Some(*number),
        Fact::Accepted { number, .. } => *number,
        _ => None,
    }
}

/// The answers of all lines, by when they came.
fn load(lines: &[Line], end: i64) -> Load {
    let width = (end as f64 / TICKS / BARS).ceil().max(1.0) as i64 * TICKS as i64;
    let bars = (end / width) as usize + 1;
    let mut latencies: Vec<Vec<f64>> = vec![Vec::new(); bars];
    let counts = || vec![0; bars];
    let mut load = Load { width, refused: counts(), unknown: counts(), bad: counts(), ..Load::default() };
    for line in lines {
        let Fact::Answered { took_ms, answer, .. } = &line.fact else { continue };
        let bar = (ticks(line.at) / width) as usize;
        let counted = match answer.outcome {
            Kind::Answered => {
                latencies.get_mut(bar).into_iter().for_each(|latencies| latencies.push(*took_ms));
                continue;
            }
            Kind::Wrong | Kind::Failed => &mut load.bad,
            Kind::Refused => &mut load.refused,
            Kind::Accepted | Kind::Unknown => &mut load.unknown,
        };
        counted.get_mut(bar).into_iter().for_each(|count| *count += 1);
    }
    for mut latencies in latencies {
        load.answered.push(latencies.len() as u32);
        latencies.sort_by(f64::total_cmp);
        let rank = (latencies.len() * 99).div_ceil(100).max(1) - 1;
        let p99 = latencies.get(rank).copied().unwrap_or_default();
        load.p99.push(if p99.is_finite() { (p99 * 10.0).round() / 10.0 } else { 0.0 });
    }
    load
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::fact::Ending;
    use super::super::sample;
    use super::*;

    fn line(at: f64, fact: Fact) -> Line {
        Line { at, fact }
    }

    fn decode(column: &Column, rows: usize) -> Vec<i64> {
        let packed = match column {
            Column::Even(first, step) => return (0..rows as i64).map(|index| first + step * index).collect(),
            Column::Packed(packed) => packed,
        };
        let letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let bits: String = packed
            .trim_end_matches('=')
            .chars()
            .map(|letter| format!("{:06b}", letters.find(letter).expect("a letter of base 64")))
            .collect();
        let bytes = bits
            .as_bytes()
            .chunks_exact(8)
            .map(|byte| byte.iter().fold(0_u64, |byte, bit| byte << 1 | u64::from(bit & 1)));
        let (mut values, mut value, mut shift, mut last) = (Vec::new(), 0, 0, 0);
        for byte in bytes {
            value |= (byte & 127) << shift;
            shift += 7;
            if byte < 128 {
                last += (value >> 1) as i64 ^ -((value & 1) as i64);
                values.push(last);
                (value, shift) = (0, 0);
            }
        }
        values
    }

    fn columns(timeline: &Timeline, table: &str, column: &str) -> Vec<i64> {
        let table = &timeline.tables[table];
        decode(&table.columns[column], table.rows)
    }

    #[test]
    fn columns_come_back_as_they_were() {
        for column in
            [vec![], vec![5], vec![7, 7, 7], vec![1, 3, 5], vec![-1, 0, 300, -70_000, 1 << 50, 0], vec![1, 2, 4]]
        {
            assert_eq!(decode(&code(&column), column.len()), column);
        }
        assert_eq!(code(&[1, 3, 5]), Column::Even(1, 2));
        assert_eq!([base64(b"foo"), base64(b"fo"), base64(b"f"), base64(b"")], ["Zm9v", "Zm8=", "Zg==", ""]);
    }

    #[test]
    fn every_line_of_a_task_is_there() {
        let lines = sample::ledger(200);
        let timeline = draw(&lines, &sample::broken(), LIMITS);
        let first: BTreeSet<&String> = timeline.tasks[..3].iter().collect();
        assert_eq!(first, BTreeSet::from([&sample::id(7), &sample::id(9), &sample::id(90)]));
        assert_eq!(timeline.findings.iter().collect::<BTreeSet<_>>(), BTreeSet::from([&0, &1, &2]));
        let rows = |table: &str| timeline.tables[table].rows;
        assert_eq!((rows("submitted"), rows("answered"), rows("accepted"), rows("ended")), (200, 198, 200, 198));
        // The request is known by its number alone, and the task by what Kafka has of it.
        let task = columns(&timeline, "submitted", "task")[7];
        assert_eq!(timeline.tasks[task as usize], sample::id(7));
        for (at, row) in columns(&timeline, "ended", "line").into_iter().enumerate() {
            let Fact::RunEnded { task_id, seconds, .. } = &lines[row as usize - 1].fact else { panic!("line {row}") };
            assert_eq!(&timeline.tasks[columns(&timeline, "ended", "task")[at] as usize], task_id);
            assert_eq!(columns(&timeline, "ended", "value")[at], ticks(*seconds));
        }
        // Those of the findings' tasks are there as they stand.
        let whole = timeline.raw.iter().filter(|(_, text)| text.contains(&sample::id(90)));
        assert_eq!(whole.count(), 4);
        assert_eq!(timeline.load.answered.iter().sum::<u32>(), 198);
        assert_eq!(timeline.notes, [""; 0]);
    }

    #[test]
    fn a_run_without_an_end_stays_open_until_its_worker_dies() {
        let began = |at, task: &str, worker: &str| {
            line(at, Fact::RunBegan { worker: worker.to_owned(), task_id: task.to_owned(), delivery: 1 })
        };
        let exited = |at| {
            let (process, pid) = ("w".to_owned(), 1);
            line(at, Fact::Exited { process, pid, code: None, signal: Some(9), receipt: None })
        };
        let ended = |at, task: &str, worker: &str| Fact::RunEnded {
            task_id: task.to_owned(),
            worker: worker.to_owned(),
            seconds: at,
            success: true,
            digest: String::new(),
            fault: None,
            partition: 0,
            offset: 0,
        };
        let lines = [
            began(1.0, "a", "w"),
            exited(2.0),
            began(3.0, "a", "v"),
            line(4.0, ended(1.0, "a", "v")),
            began(5.0, "b", "v"),
            line(9.0, Fact::End(Ending::default())),
        ];
        let timeline = draw(&lines, &sample::held(), LIMITS);
        assert_eq!(columns(&timeline, "open", "at"), [10_000, 50_000]);
        assert_eq!(columns(&timeline, "open", "value"), [10_000, 40_000]);
        assert_eq!(columns(&timeline, "open", "extra"), [1, 0]);
    }

    #[test]
    fn what_is_left_out_is_counted_and_never_of_a_finding() {
        let lines = sample::ledger(100);
        let timeline = draw(&lines, &sample::broken(), Limits { ids: 36 * 50, rows: 40, raw: 300 });
        assert_eq!(timeline.tasks.len(), 50);
        assert_eq!(timeline.findings.len(), 3);
        assert!(timeline.notes[0].starts_with("50 tasks and "), "{:?}", timeline.notes);
        assert!(timeline.notes[1].contains("short form"), "{:?}", timeline.notes);
        assert!(timeline.tables.values().all(|table| table.rows <= 43));
        assert_eq!(timeline.load.answered.iter().sum::<u32>(), 98);
    }

    #[test]
    fn times_that_cannot_be_do_no_harm() {
        let answer =
            sample::ledger(1).into_iter().find(|line| matches!(line.fact, Fact::Answered { .. })).expect("one");
        let times = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -5.0, 1e300];
        let lines: Vec<Line> = times.into_iter().map(|at| Line { at, fact: answer.fact.clone() }).collect();
        let timeline = draw(&lines, &sample::held(), LIMITS);
        assert_eq!(timeline.load.answered.iter().sum::<u32>(), 5);
        assert!(timeline.load.answered.len() <= BARS as usize + 1);
        assert_eq!(draw(&[], &sample::held(), LIMITS).end, 0);
    }

    #[test]
    fn a_tenth_of_an_hour_s_ledger_takes_a_tenth_of_its_time_and_room() {
        let lines = sample::ledger(15_000);
        let began = Instant::now();
        let timeline = draw(&lines, &sample::broken(), LIMITS);
        let size = serde_json::to_string(&timeline).expect("JSON").len();
        let took = began.elapsed();
        assert!(size < 1_500_000, "{size} bytes");
        // Many times what it takes without optimization when nothing else runs.
        assert!(took < Duration::from_secs(20), "{took:?}");
        assert!(timeline.notes.is_empty());
    }
}
