//! The progress of a run: a bar that is drawn several times a second on a terminal, else a line at an interval. Both have
//! the counts, the speed of the last interval, and the fleet.
//!
//! It decides nothing. Pure except for its console; time is a parameter. Owned by the run.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;

use super::console::Console;
use super::fact::Fact;
use super::judgement::percentile;

/// How often the bar is drawn.
const BAR_EVERY: Duration = Duration::from_millis(250);
/// The rate and the latencies of the bar are those of this time.
const WINDOW: Duration = Duration::from_secs(5);

/// The counts of one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) sent: u64,
    pub(super) waiting: u64,
    pub(super) answered: u64,
    pub(super) refused: u64,
    pub(super) unknown: u64,
    pub(super) failed: u64,
    pub(super) late: u64,
}

/// The progress of one run, on its console.
#[derive(Debug)]
pub(super) struct Display {
    pub(super) console: Console,
    title: String,
    length: Option<Duration>,
    /// `load`, `waiting`, `probing`, `audit`.
    pub(super) phase: &'static str,
    /// The number of planned actions; `None` if others act.
    pub(super) planned: Option<u64>,
    report_every: Duration,
    has_bar: bool,
    carried: u64,
    /// When each answer came, and its latency: in the bar's window, or since the last counts.
    answers: VecDeque<(Duration, Duration)>,
    began: Duration,
    shown: Duration,
}

impl Display {
    /// `length`: of the load; `None`: until a signal. `report_every`: the interval of the counts without a bar.
    pub(super) fn new(console: Console, plan: &str, length: Option<Duration>, report_every: Duration) -> Self {
        Self {
            console,
            title: format!("drill {plan}"),
            length,
            phase: "load",
            planned: None,
            report_every,
            has_bar: false,
            carried: 0,
            answers: VecDeque::new(),
            began: Duration::ZERO,
            shown: Duration::ZERO,
        }
    }

    pub(super) fn begin(&mut self, now: Duration) {
        self.has_bar = self.console.begin_bar(&self.title, self.length);
        (self.began, self.shown) = (now, now);
    }

    pub(super) fn answered(&mut self, now: Duration, took: Duration) {
        self.answers.push_back((now, took));
    }

    /// Counts actions that were carried out.
    pub(super) fn note(&mut self, fact: &Fact) {
        self.carried += u64::from(matches!(fact, Fact::Carried { .. }));
    }

    /// Shows the state of the run, if it is due. `view`: the fleet as a gateway shows it.
    pub(super) fn show(&mut self, now: Duration, counts: Counts, view: Option<&Value>) {
        let every = if self.has_bar { BAR_EVERY } else { self.report_every };
        if now < self.shown + every {
            return;
        }
        let interval = now.saturating_sub(std::mem::replace(&mut self.shown, now));
        if self.has_bar {
            self.draw(now, counts, view);
        } else {
            self.print(now, interval, counts, view);
        }
    }

    fn print(&mut self, now: Duration, interval: Duration, counts: Counts, view: Option<&Value>) {
        let mut latencies: Vec<Duration> = self.answers.drain(..).map(|(_, took)| took).collect();
        let (counts, speed) = (told(counts), speed(interval, &mut latencies));
        self.console.at(now, &format!("{counts}  |  {speed}  |  {}", fleet(view)));
    }

    fn draw(&mut self, now: Duration, counts: Counts, view: Option<&Value>) {
        while self.answers.front().is_some_and(|(at, _)| *at + WINDOW < now) {
            self.answers.pop_front();
        }
        let mut latencies: Vec<Duration> = self.answers.iter().map(|(_, took)| *took).collect();
        let elapsed = now.saturating_sub(self.began);
        let speed = speed(WINDOW.min(elapsed), &mut latencies);
        let planned = self.planned.map(|planned| format!("/{planned}")).unwrap_or_default();
        let (counts, fleet) = (told(counts), fleet(view));
        let text = format!("{}\n  {counts}\n  {speed}  actions {}{planned}  {fleet}", self.phase, self.carried);
        // The phases after the load do not count for its length.
        self.console.update_bar(elapsed.min(self.length.unwrap_or(Duration::MAX)), text);
    }
}

/// The counts on one line.
fn told(counts: Counts) -> String {
    let Counts { sent, waiting, answered, refused, unknown, failed, late } = counts;
    format!(
        "sent {sent}  waiting {waiting}  answered {answered}  refused {refused}  unknown {unknown}  failed {failed}  \
         late {late}"
    )
}

/// Answers per second of the interval, and their latencies.
fn speed(interval: Duration, latencies: &mut [Duration]) -> String {
    let rate = latencies.len() as f64 / interval.as_secs_f64().max(0.001);
    latencies.sort_unstable();
    let shown = |percent| {
        percentile(latencies, percent).map_or("-".to_owned(), |took| format!("{:.1} ms", took.as_secs_f64() * 1e3))
    };
    format!("{rate:.1}/s  p50 {}  p99 {}", shown(50), shown(99))
}

/// The fleet of `GET /workers/status` in a few words.
fn fleet(view: Option<&Value>) -> String {
    let Some(view) = view else { return "no gateway answers".to_owned() };
    let count = |name: &str| view.get(name).and_then(Value::as_u64).unwrap_or_default();
    format!("workers {} active, {} draining", count("active_workers"), count("shutting_down_workers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let values: Vec<u64> = (1..=200).collect();
        assert_eq!((percentile(&values, 50), percentile(&values, 99)), (Some(&100), Some(&198)));
        assert_eq!((percentile(&[7], 99), percentile::<u64>(&[], 50)), (Some(&7), None));
    }

    #[test]
    fn speed_of_an_interval_without_answers_has_no_latencies() {
        let latencies = &mut [Duration::from_millis(3), Duration::from_millis(1)];
        assert_eq!(speed(Duration::from_secs(2), latencies), "1.0/s  p50 1.0 ms  p99 3.0 ms");
        assert_eq!(speed(Duration::ZERO, &mut []), "0.0/s  p50 -  p99 -");
    }

    #[test]
    fn bar_has_the_rate_and_the_latencies_of_the_last_seconds() {
        let seconds = Duration::from_secs;
        let mut display = Display::new(Console::new(), "steady", Some(seconds(60)), seconds(5));
        (display.has_bar, display.planned) = (true, Some(8));
        for number in 1..=80 {
            display.answered(Duration::from_millis(250 * number), Duration::from_millis(number));
        }
        display.note(&Fact::Carried { action: 1, done: true, detail: String::new() });
        let view = serde_json::json!({"active_workers": 3, "shutting_down_workers": 1});
        display.show(seconds(20), Counts { sent: 83, waiting: 3, answered: 80, ..Counts::default() }, Some(&view));
        let counts = "sent 83  waiting 3  answered 80  refused 0  unknown 0  failed 0  late 0";
        let speed = "4.2/s  p50 70.0 ms  p99 80.0 ms  actions 1/8  workers 3 active, 1 draining";
        assert_eq!(display.console.bar_text(), format!("load\n  {counts}\n  {speed}"));
        display.show(Duration::from_millis(20_100), Counts::default(), None);
        assert!(display.console.bar_text().contains("sent 83"), "drawn again before it is due");
    }
}
