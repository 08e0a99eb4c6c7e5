//! What happens to the fleet, as its notifications tell: starts, stops with their receipts, silences, outages of Kafka.
//!
//! For the lines that a run prints meanwhile, and for how long it waits afterwards; the judge finds out for itself.
//! Pure state; time comes as a parameter, counted from the start of the run. It goes by what workers say themselves, not
//! by what a gateway says of them. Owned by the run.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use lastcall::task::{Receipt, WorkerState, WorkerStatus};
use program::logging::escape;

/// A worker heard within this needs no waiting for.
const FRESH: Duration = Duration::from_millis(2500);
/// Readers answered more rarely than this did not read.
const GAP: Duration = Duration::from_secs(2);

/// One worker process.
#[derive(Clone, Debug)]
struct Process {
    status: WorkerState,
    heard: Duration,
    /// The times in which it said nothing: from when, and until when.
    silences: Vec<(Duration, Option<Duration>)>,
    /// It was seen to end, whatever it said.
    ended: bool,
}

impl Process {
    fn is_silent(&self) -> bool {
        self.silences.last().is_some_and(|(_, until)| until.is_none())
    }

    fn is_gone(&self) -> bool {
        self.ended || self.status == WorkerState::ShutdownCompleted
    }
}

/// See the module documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// When the run began, in Unix seconds: a process that started before is no news.
    began: f64,
    processes: BTreeMap<(String, Uuid), Process>,
    /// A worker that says nothing for so long is taken for killed.
    silence: Duration,
    /// Since when Kafka has been away.
    away: Option<Duration>,
    /// Since when, and when last, the results topic was read.
    reading: Option<(Duration, Duration)>,
}

impl History {
    /// `began`: now, in Unix seconds. `silence`: what a gateway has as its `WORKER_TIMEOUT`.
    pub(super) fn new(began: f64, silence: Duration) -> Self {
        Self { began, silence, ..Self::default() }
    }

    /// Takes a notification or a heartbeat; what is new is returned, one line each.
    pub(super) fn hear(&mut self, status: &WorkerStatus, at: Duration) -> Vec<String> {
        let id = escape(&status.worker_id).to_string();
        let mut lines = Vec::new();
        let key = (status.worker_id.clone(), status.instance);
        let known = self.processes.get(&key);
        if known.is_some_and(|known| known.status == WorkerState::ShutdownCompleted) {
            return lines;
        }
        let is_old_news = known.is_none() && status.status == WorkerState::Started && status.started_at < self.began;
        if known.is_none_or(|known| known.status != status.status) && !is_old_news {
            lines.push(match status.status {
                WorkerState::Started => format!("🚀 {id}: worker_started"),
                WorkerState::ShutdownStarted => format!("🛑 {id}: shutdown_started"),
                WorkerState::ShutdownCompleted => {
                    format!("👋 {id}: shutdown_completed{}", status.receipt.as_ref().map(told).unwrap_or_default())
                }
            });
        }
        let mut silences = known.map(|known| known.silences.clone()).unwrap_or_default();
        if let Some((since, until @ None)) = silences.last_mut() {
            lines.push(format!("📡 {id}: is heard again after {:.1} s", (at.saturating_sub(*since)).as_secs_f64()));
            *until = Some(at);
        }
        let process = Process {
            status: status.status,
            heard: at,
            silences,
            // A word of it may be read after its end.
            ended: known.is_some_and(|known| known.ended),
        };
        self.processes.insert(key, process);
        lines
    }

    /// The results topic was read to here at this time. Returns the outage that this ends.
    pub(super) fn read(&mut self, at: Duration) -> Option<(Duration, Duration)> {
        let gap = self.reading.filter(|(_, last)| at.saturating_sub(*last) > GAP);
        // Nobody may have said so, but nothing was read: a frozen broker.
        let outage = self.away.take().or(gap.map(|(_, last)| last)).map(|since| (since, at));
        let since = self.reading.filter(|_| gap.is_none()).map_or(at, |(since, _)| since);
        self.reading = Some((since, at));
        outage
    }

    /// A process with this id was seen to end: its silence is no news.
    pub(super) fn ended(&mut self, worker: &str) {
        for ((id, _), process) in &mut self.processes {
            process.ended |= id == worker;
        }
    }

    /// The connection to Kafka was lost.
    pub(super) fn lost_kafka(&mut self, at: Duration) {
        self.away.get_or_insert(at);
    }

    /// Finds workers that have fallen silent; one line each.
    pub(super) fn tick(&mut self, at: Duration) -> Vec<String> {
        let Some((since, last)) = self.reading.filter(|(_, last)| at.saturating_sub(*last) <= GAP) else {
            return Vec::new();
        };
        let mut lines = Vec::new();
        for ((id, _), process) in &mut self.processes {
            let quiet = last.saturating_sub(process.heard.max(since));
            if !process.is_gone() && !process.is_silent() && quiet > self.silence {
                process.silences.push((process.heard, None));
                let seconds = self.silence.as_secs();
                lines.push(format!(
                    "⏳ {}: silent for {seconds} s without shutdown_completed: killed, or hung",
                    escape(id)
                ));
            }
        }
        lines
    }

    /// Whether every worker was either heard just now or is known to be gone.
    pub(super) fn is_settled(&self, at: Duration) -> bool {
        self.processes
            .values()
            .all(|process| process.is_gone() || process.is_silent() || at.saturating_sub(process.heard) <= FRESH)
    }

    /// Whether every worker that was ever heard has stopped or is silent: then nobody does what waits in Kafka.
    pub(super) fn nobody_works(&self) -> bool {
        self.processes.values().all(|process| process.is_gone() || process.is_silent())
    }
}

/// A receipt in one line, with a separator before it.
fn told(receipt: &Receipt) -> String {
    let total = receipt.phases_ms.get("total").and_then(Value::as_u64).unwrap_or_default();
    format!(
        ": {} after {}, {} finished, {} returned, {} abandoned, exit code {}, {total} ms",
        escape(&receipt.outcome),
        escape(&receipt.signal),
        receipt.tasks_finished,
        receipt.tasks_returned,
        receipt.tasks_abandoned.len(),
        receipt.exit_code
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn status(worker: &str, instance: u128, state: WorkerState) -> WorkerStatus {
        WorkerStatus {
            worker_id: worker.to_owned(),
            status: state,
            timestamp: 0.0,
            current_task: None,
            current_tasks: Vec::new(),
            instance: Uuid::from_u128(instance),
            started_at: 0.0,
            stop_deadline: None,
            holding_back: false,
            receipt: None,
        }
    }

    /// Workers `a` and `b` heard every second; `a` until `until` only.
    fn fleet(until: u64, end: u64) -> (History, Vec<String>) {
        let (mut history, mut lines) = (History::new(100.0, seconds(5)), Vec::new());
        for second in 0..end {
            history.read(seconds(second));
            for worker in ["a", "b"] {
                if worker == "b" || second <= until {
                    lines.extend(history.hear(&status(worker, 1, WorkerState::Started), seconds(second)));
                }
            }
            lines.extend(history.tick(seconds(second)));
        }
        (history, lines)
    }

    fn state(history: &History, worker: &str, instance: u128) -> &'static str {
        let process = &history.processes[&(worker.to_owned(), Uuid::from_u128(instance))];
        match process {
            _ if process.is_gone() => "gone",
            _ if process.is_silent() => "silent",
            _ => "heard",
        }
    }

    #[test]
    fn a_worker_that_was_there_before_is_no_news_and_a_new_one_is() {
        let mut history = History::new(100.0, seconds(5));
        assert!(history.hear(&status("a", 1, WorkerState::Started), seconds(1)).is_empty());
        let new = WorkerStatus { started_at: 101.0, ..status("b", 2, WorkerState::Started) };
        assert_eq!(history.hear(&new, seconds(1)), ["🚀 b: worker_started"]);
        assert!(history.hear(&new, seconds(2)).is_empty(), "a heartbeat");
        assert_eq!(history.hear(&status("a", 1, WorkerState::ShutdownStarted), seconds(3)), ["🛑 a: shutdown_started"]);
    }

    #[test]
    fn a_receipt_is_told() {
        let mut history = History::new(0.0, seconds(5));
        let receipt: Receipt = serde_json::from_value(json!({"signal": "SIGTERM", "outcome": "abandoned", "exit_code": 3,
            "phases_ms": {"drain": 7, "close": 2, "total": 9}, "tasks_finished": 1, "tasks_returned": 2, "tasks_abandoned": ["t"]}))
        .expect("a receipt");
        let last = WorkerStatus { receipt: Some(receipt), ..status("a", 1, WorkerState::ShutdownCompleted) };
        let line =
            "👋 a: shutdown_completed: abandoned after SIGTERM, 1 finished, 2 returned, 1 abandoned, exit code 3, 9 ms";
        assert_eq!(history.hear(&last, seconds(1)), [line]);
        assert_eq!(state(&history, "a", 1), "gone");
    }

    #[test]
    fn silence_is_told_once() {
        let (history, lines) = fleet(10, 20);
        assert_eq!(lines, ["⏳ a: silent for 5 s without shutdown_completed: killed, or hung"]);
        assert_eq!((state(&history, "a", 1), state(&history, "b", 1)), ("silent", "heard"));
        assert!(!history.nobody_works());
    }

    #[test]
    fn the_silence_of_one_that_was_seen_to_end_is_no_news() {
        let mut history = History::new(100.0, seconds(5));
        history.read(seconds(0));
        history.hear(&status("a", 1, WorkerState::Started), seconds(0));
        history.ended("a");
        // Said before its end, and read after it; the next process of this id is another one.
        history.hear(&status("a", 1, WorkerState::Started), seconds(1));
        assert_eq!(state(&history, "a", 1), "gone");
        history.hear(&status("a", 2, WorkerState::Started), seconds(2));
        for second in 0..=7 {
            history.read(seconds(second));
            assert!(history.tick(seconds(second)).is_empty());
        }
        assert_eq!(state(&history, "a", 2), "heard");
        history.read(seconds(8));
        assert_eq!(history.tick(seconds(8)).len(), 1, "the second process was not seen to end");
    }

    #[test]
    fn a_worker_that_comes_back_hung() {
        let (mut history, _) = fleet(10, 20);
        assert_eq!(
            history.hear(&status("a", 1, WorkerState::Started), seconds(20)),
            ["📡 a: is heard again after 10.0 s"]
        );
        assert_eq!(state(&history, "a", 1), "heard");
    }

    #[test]
    fn while_kafka_is_away_nobody_is_silent() {
        let (mut history, _) = fleet(10, 10);
        history.lost_kafka(seconds(10));
        assert!(history.tick(seconds(30)).is_empty());
        assert_eq!(history.read(seconds(30)), Some((seconds(10), seconds(30))));
        assert!(history.tick(seconds(30)).is_empty() && history.tick(seconds(31)).is_empty());
        assert_eq!(history.read(seconds(31)), None);
    }

    #[test]
    fn a_frozen_broker_is_an_outage_though_nobody_says_so() {
        let (mut history, _) = fleet(10, 10);
        assert_eq!(history.read(seconds(11)), None);
        assert_eq!(history.read(seconds(14)), Some((seconds(11), seconds(14))));
    }

    #[test]
    fn a_fleet_is_settled_once_everybody_was_heard_or_is_gone() {
        let (mut history, _) = fleet(10, 12);
        assert!(history.is_settled(seconds(12)));
        assert!(!history.is_settled(seconds(13)));
        for second in 12..18 {
            history.read(seconds(second));
            history.hear(&status("b", 1, WorkerState::Started), seconds(second));
            history.tick(seconds(second));
        }
        assert!(history.is_settled(seconds(18)));
    }
}
