//! The fleet by its status records: starts, stops with receipts, silences, outages of Kafka.
//!
//! The run uses it for the lines that it prints and for its waits after the load; the judge has its own evidence. Pure
//! state; time comes as a parameter, counted from the start of the run. The source is the status records of the
//! workers, not the view of a gateway. Owned by the run.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use lastcall::task::{Receipt, WorkerState, WorkerStatus};
use program::logging::escape;

/// Maximum age of the last status record of a worker that counts as heard just now.
const FRESH: Duration = Duration::from_millis(2500);
/// A longer time between two responses to the reader is an outage.
const GAP: Duration = Duration::from_secs(2);

/// A worker process.
#[derive(Clone, Debug)]
struct Process {
    status: WorkerState,
    heard: Duration,
    /// Its status records stopped.
    silent: bool,
    /// The drill saw its exit.
    ended: bool,
}

impl Process {
    fn is_gone(&self) -> bool {
        self.ended || self.status == WorkerState::ShutdownCompleted
    }
}

/// The worker processes and the reading of their status records.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// Unix time of the start of the run; a process that started before it is not reported as new.
    began: f64,
    processes: BTreeMap<(String, Uuid), Process>,
    /// Silence after which a worker counts as killed.
    silence: Duration,
    /// Start of an outage of Kafka that the reader reported.
    away: Option<Duration>,
    /// First and last time of uninterrupted reading of the results topic.
    reading: Option<(Duration, Duration)>,
}

impl History {
    /// `began`: the present Unix time. `silence`: `WORKER_TIMEOUT` of the gateways.
    pub(super) fn new(began: f64, silence: Duration) -> Self {
        Self { began, silence, ..Self::default() }
    }

    /// Takes a status record; returns a line for each change.
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
                WorkerState::Quiet => format!("🔕 {id}: worker_quiet"),
                WorkerState::ShutdownStarted => format!("🛑 {id}: shutdown_started"),
                WorkerState::ShutdownCompleted => {
                    format!("👋 {id}: shutdown_completed{}", status.receipt.as_ref().map(told).unwrap_or_default())
                }
            });
        }
        if let Some(known) = known.filter(|known| known.silent) {
            lines.push(format!("📡 {id}: heard again after {:.1} s", at.saturating_sub(known.heard).as_secs_f64()));
        }
        let process = Process {
            status: status.status,
            heard: at,
            silent: false,
            // Its last status record may be read after its exit.
            ended: known.is_some_and(|known| known.ended),
        };
        self.processes.insert(key, process);
        lines
    }

    /// Notes that the results topic was read at this time; returns the outage that ends here.
    pub(super) fn read(&mut self, at: Duration) -> Option<(Duration, Duration)> {
        let gap = self.reading.filter(|(_, last)| at.saturating_sub(*last) > GAP);
        // Without a report, a gap in the reading is an outage too: a frozen broker.
        let outage = self.away.take().or(gap.map(|(_, last)| last)).map(|since| (since, at));
        let since = self.reading.filter(|_| gap.is_none()).map_or(at, |(since, _)| since);
        self.reading = Some((since, at));
        outage
    }

    /// Notes the exit of a worker's processes, so that their silence is not reported.
    pub(super) fn ended(&mut self, worker: &str) {
        for ((id, _), process) in &mut self.processes {
            process.ended |= id == worker;
        }
    }

    /// Notes the loss of the connection to Kafka.
    pub(super) fn lost_kafka(&mut self, at: Duration) {
        self.away.get_or_insert(at);
    }

    /// Returns a line for each worker that has fallen silent.
    pub(super) fn tick(&mut self, at: Duration) -> Vec<String> {
        let Some((since, last)) = self.reading.filter(|(_, last)| at.saturating_sub(*last) <= GAP) else {
            return Vec::new();
        };
        let mut lines = Vec::new();
        for ((id, _), process) in &mut self.processes {
            let quiet = last.saturating_sub(process.heard.max(since));
            if !process.is_gone() && !process.silent && quiet > self.silence {
                process.silent = true;
                let seconds = self.silence.as_secs();
                lines.push(format!(
                    "⏳ {}: silent for {seconds} s without shutdown_completed: killed, or hung",
                    escape(id)
                ));
            }
        }
        lines
    }

    /// Whether every worker was heard just now, is silent or is gone.
    pub(super) fn is_settled(&self, at: Duration) -> bool {
        self.processes
            .values()
            .all(|process| process.is_gone() || process.silent || at.saturating_sub(process.heard) <= FRESH)
    }

    /// Whether every known worker is gone or silent, so that no worker takes the tasks in Kafka.
    pub(super) fn nobody_works(&self) -> bool {
        self.processes.values().all(|process| process.is_gone() || process.silent)
    }
}

/// A receipt in one line, with a separator before it.
fn told(receipt: &Receipt) -> String {
    let total = receipt.phases_ms.get("total").and_then(Value::as_u64).unwrap_or_default();
    let (outcome, signal) = (escape(&receipt.outcome), escape(&receipt.signal));
    format!(": {outcome} after {signal}, exit code {}, {total} ms", receipt.exit_code)
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
            current_task_seconds: Vec::new(),
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
            _ if process.silent => "silent",
            _ => "heard",
        }
    }

    #[test]
    fn only_workers_that_start_during_the_run_are_reported_as_started() {
        let mut history = History::new(100.0, seconds(5));
        assert!(history.hear(&status("a", 1, WorkerState::Started), seconds(1)).is_empty());
        let new = WorkerStatus { started_at: 101.0, ..status("b", 2, WorkerState::Started) };
        assert_eq!(history.hear(&new, seconds(1)), ["🚀 b: worker_started"]);
        assert!(history.hear(&new, seconds(2)).is_empty(), "a heartbeat");
        assert_eq!(history.hear(&status("a", 1, WorkerState::ShutdownStarted), seconds(3)), ["🛑 a: shutdown_started"]);
    }

    #[test]
    fn a_receipt_is_reported_in_one_line() {
        let mut history = History::new(0.0, seconds(5));
        let receipt = json!({"signal": "SIGTERM", "outcome": "abandoned", "exit_code": 3, "phases_ms": {"total": 9}});
        let receipt: Receipt = serde_json::from_value(receipt).expect("a receipt");
        let last = WorkerStatus { receipt: Some(receipt), ..status("a", 1, WorkerState::ShutdownCompleted) };
        let line = "👋 a: shutdown_completed: abandoned after SIGTERM, exit code 3, 9 ms";
        assert_eq!(history.hear(&last, seconds(1)), [line]);
        assert_eq!(state(&history, "a", 1), "gone");
    }

    #[test]
    fn silence_is_reported_once() {
        let (history, lines) = fleet(10, 20);
        assert_eq!(lines, ["⏳ a: silent for 5 s without shutdown_completed: killed, or hung"]);
        assert_eq!((state(&history, "a", 1), state(&history, "b", 1)), ("silent", "heard"));
        assert!(!history.nobody_works());
    }

    #[test]
    fn silence_after_a_seen_exit_is_not_reported() {
        let mut history = History::new(100.0, seconds(5));
        history.read(seconds(0));
        history.hear(&status("a", 1, WorkerState::Started), seconds(0));
        history.ended("a");
        // Sent before its exit, and read after it; the next process of this id is a new one.
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
    fn a_hung_worker_is_reported_when_it_is_heard_again() {
        let (mut history, _) = fleet(10, 20);
        assert_eq!(
            history.hear(&status("a", 1, WorkerState::Started), seconds(20)),
            ["📡 a: heard again after 10.0 s"]
        );
        assert_eq!(state(&history, "a", 1), "heard");
    }

    #[test]
    fn no_worker_counts_as_silent_while_kafka_is_unavailable() {
        let (mut history, _) = fleet(10, 10);
        history.lost_kafka(seconds(10));
        assert!(history.tick(seconds(30)).is_empty());
        assert_eq!(history.read(seconds(30)), Some((seconds(10), seconds(30))));
        assert!(history.tick(seconds(30)).is_empty() && history.tick(seconds(31)).is_empty());
        assert_eq!(history.read(seconds(31)), None);
    }

    #[test]
    fn a_gap_in_the_reading_is_an_outage_without_a_report() {
        let (mut history, _) = fleet(10, 10);
        assert_eq!(history.read(seconds(11)), None);
        assert_eq!(history.read(seconds(14)), Some((seconds(11), seconds(14))));
    }

    #[test]
    fn a_fleet_is_settled_when_every_worker_is_heard_or_silent() {
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
