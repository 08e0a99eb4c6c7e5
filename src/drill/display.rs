//! What a run shows of itself while it goes on: a frame several times a second on a terminal, else the counts and the fleet every few seconds.
//!
//! Knows what is shown and nothing else of the run; it decides nothing. Owned by the run.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::Value;

use super::console::Console;
use super::fact::Fact;
use super::report::{self, Counts};
use super::screen::{Snapshot, WorkerView};

/// How often a frame is drawn.
const FRAME_EVERY: Duration = Duration::from_millis(250);
/// The time that a frame's rate and latencies are of.
const WINDOW: Duration = Duration::from_secs(5);

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Display {
    pub(super) console: Console,
    title: String,
    length: Option<Duration>,
    /// `load`, `waiting`, `audit`.
    pub(super) phase: &'static str,
    /// Actions that are planned; `None`: others act.
    pub(super) planned: Option<u64>,
    report_every: Duration,
    is_live: bool,
    carried: u64,
    /// When each answer came, and how long it took; of a frame's window, or since the counts were printed.
    answers: VecDeque<(Duration, Duration)>,
    began: Duration,
    shown: Duration,
    /// What was done to workers that cannot say so themselves.
    marks: BTreeMap<String, &'static str>,
}

impl Display {
    /// `length`: of the load; until a signal when `None`. `report_every`: how often the counts are printed where there is no frame.
    pub(super) fn new(console: Console, plan: &str, length: Option<Duration>, report_every: Duration) -> Self {
        Self { console, title: format!("drill {plan}"), length, phase: "load", report_every, ..Self::default() }
    }

    /// From now on there is something to show.
    pub(super) fn begin(&mut self, now: Duration) {
        self.is_live = self.console.begin_frame();
        (self.began, self.shown) = (now, now);
    }

    /// An answer came.
    pub(super) fn answered(&mut self, now: Duration, took: Duration) {
        self.answers.push_back((now, took));
    }

    /// Takes note of what is done to the fleet.
    pub(super) fn note(&mut self, fact: &Fact) {
        match fact {
            Fact::Carried { .. } => self.carried += 1,
            Fact::Signalled { process, signal, .. } => match signal.as_str() {
                "SIGKILL" => drop(self.marks.insert(process.clone(), "killed")),
                "SIGSTOP" => drop(self.marks.insert(process.clone(), "frozen")),
                "SIGCONT" => drop(self.marks.remove(process)),
                _ => {}
            },
            Fact::Started { process, .. } => drop(self.marks.remove(process)),
            _ => {}
        }
    }

    /// Shows how it stands, if it is time to. `view`: what a gateway says of the fleet; `workers`: what they say themselves.
    pub(super) fn show(
        &mut self,
        now: Duration,
        counts: Counts,
        view: Option<&Value>,
        workers: impl FnOnce() -> Vec<WorkerView>,
    ) {
        let every = if self.is_live { FRAME_EVERY } else { self.report_every };
        if now < self.shown + every {
            return;
        }
        let interval = now.saturating_sub(std::mem::replace(&mut self.shown, now));
        if self.is_live {
            self.draw(now, counts, workers());
        } else {
            self.print(now, interval, counts, view);
        }
    }

    fn print(&mut self, now: Duration, interval: Duration, counts: Counts, view: Option<&Value>) {
        let mut latencies: Vec<Duration> = self.answers.drain(..).map(|(_, took)| took).collect();
        self.console.at(now, &report::counts(counts, interval, &mut latencies));
        let Some(view) = view else {
            self.console.line("          the fleet is not known: no gateway tells");
            return;
        };
        for line in report::table(view) {
            self.console.line(&format!("          {line}"));
        }
    }

    fn draw(&mut self, now: Duration, counts: Counts, mut workers: Vec<WorkerView>) {
        while self.answers.front().is_some_and(|(at, _)| *at + WINDOW < now) {
            self.answers.pop_front();
        }
        let mut latencies: Vec<Duration> = self.answers.iter().map(|(_, took)| *took).collect();
        latencies.sort_unstable();
        for worker in &mut workers {
            if let Some(mark) = self.marks.get(&worker.id) {
                (*mark).clone_into(&mut worker.state);
            }
        }
        let window = WINDOW.min(now).as_secs_f64().max(0.001);
        self.console.draw(Snapshot {
            title: self.title.clone(),
            // Of the load: what comes behind it takes its time, but is no part of it.
            elapsed: now.saturating_sub(self.began).min(self.length.unwrap_or(Duration::MAX)),
            length: self.length,
            phase: self.phase.to_owned(),
            counts,
            rate: latencies.len() as f64 / window,
            p50: report::percentile(&latencies, 50),
            p99: report::percentile(&latencies, 99),
            workers,
            faults_done: self.carried,
            faults_planned: self.planned,
            events: Vec::new(),
        });
    }
}
