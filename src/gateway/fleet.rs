//! The fleet, as the workers' status records show it: pure state and time in, JSON and log lines out.
//!
//! A status record counts from its arrival, not from its sender's clock. Records that are read back count from Kafka's
//! time, so that dead workers do not look alive after a restart of the gateway.

mod event;

pub(super) use event::{FleetEvent, log_events};

use super::stops::{Stops, WorkerStop};
use crate::task::{WorkerState, WorkerStatus};
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// How long gone workers stay listed.
const LISTED: Duration = Duration::from_secs(600);
/// At most this many workers are listed; a crash loop with ever new names must not fill the memory.
const MOST_WORKERS: usize = 2_000;

/// One worker process.
#[derive(Clone, Debug)]
struct Process {
    status: WorkerStatus,
    /// From when its last status record counts, by this gateway's clock.
    at: SystemTime,
    /// The offset of its last status record.
    offset: i64,
    /// Its silence was logged.
    silent: bool,
    /// Another process with its id has started since its last status record, so it counts as replaced.
    replaced: bool,
}

/// `GET /workers/status`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FleetView {
    pub(super) total_workers: usize,
    pub(super) active_workers: usize,
    pub(super) shutting_down_workers: usize,
    /// Responsive workers that are quiet; they are in no other count.
    pub(super) quiet_workers: usize,
    pub(super) workers: BTreeMap<String, WorkerView>,
}

/// One worker of [`FleetView`].
#[derive(Clone, Debug, Serialize)]
pub(super) struct WorkerView {
    pub(super) status: WorkerState,
    pub(super) current_task: Option<String>,
    pub(super) last_update: i64,
    pub(super) seconds_since_update: i64,
    pub(super) is_responsive: bool,
    pub(super) current_tasks: Vec<String>,
    /// How long each of them has run; empty if its worker does not tell.
    pub(super) current_task_seconds: Vec<f64>,
    pub(super) instance: Uuid,
    pub(super) started_at: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) drain_seconds_left: Option<i64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) holding_back: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exit_code: Option<u8>,
}

#[derive(Debug)]
pub(super) struct Fleet {
    timeout: Duration,
    processes: BTreeMap<(String, Uuid), Process>,
    stops: Stops,
}

impl Fleet {
    /// Creates an empty fleet. A worker without a status record for `timeout` is not responsive (`WORKER_TIMEOUT`).
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, processes: BTreeMap::new(), stops: Stops::default() }
    }

    /// Applies the status record at `offset`, which counts from `at`. Returns an event for each change.
    pub(super) fn hear(&mut self, status: WorkerStatus, at: SystemTime, offset: i64) -> Vec<FleetEvent> {
        if let Some(receipt) = &status.receipt {
            self.stops.add(status.instance, receipt, at);
        }
        let id = status.worker_id.clone();
        let key = (id.clone(), status.instance);
        let mut events = Vec::new();
        let known = self.processes.get(&key);
        if known.is_some_and(|known| offset <= known.offset || known.status.status == WorkerState::ShutdownCompleted) {
            // Read back after a later record, or a heartbeat after `shutdown_completed`.
            return events;
        }
        if known.is_some_and(|known| known.silent) {
            events.push(FleetEvent::Returned(id.clone()));
        }
        if known.is_some_and(|known| known.replaced) && status.status != WorkerState::ShutdownCompleted {
            events.push(FleetEvent::Conflict(id.clone()));
        }
        if known.is_none_or(|known| known.status.status != status.status) {
            events.push(match status.status {
                WorkerState::Started if known.is_some_and(|known| known.status.status == WorkerState::Quiet) => {
                    FleetEvent::Resumed(id.clone())
                }
                WorkerState::Started => FleetEvent::Started(id.clone()),
                WorkerState::Quiet => FleetEvent::Quiet(id.clone()),
                WorkerState::ShutdownStarted => FleetEvent::ShutdownStarted(id.clone()),
                WorkerState::ShutdownCompleted => {
                    FleetEvent::ShutdownCompleted(id.clone(), status.receipt.clone().map(Box::new))
                }
            });
        }
        if known.is_none() && !self.replace_former_self(&key, at, offset) {
            // Read back, and a later process with its id is known: not interesting any more.
            return Vec::new();
        }
        self.processes.insert(key, Process { status, at, offset, silent: false, replaced: false });
        self.bound();
        events
    }

    /// Marks the earlier processes of a new process's id as replaced, and removes those that are not responsive. If a
    /// replaced process sends a status record later, both are alive. Returns false if the new process is the earlier
    /// one.
    fn replace_former_self(&mut self, (id, _): &(String, Uuid), at: SystemTime, offset: i64) -> bool {
        let timeout = self.timeout;
        let range = (id.clone(), Uuid::nil())..=(id.clone(), Uuid::max());
        if self.processes.range(range.clone()).any(|(_, other)| other.offset > offset) {
            return false;
        }
        let gone: Vec<(String, Uuid)> = self
            .processes
            .range_mut(range)
            .filter_map(|(other, process)| {
                process.replaced = true;
                (!process.is_responsive(at, timeout)).then(|| other.clone())
            })
            .collect();
        for other in gone {
            self.processes.remove(&other);
        }
        true
    }

    /// Returns an event for each worker that has become silent, and drops workers that have been gone for long.
    pub(super) fn tick(&mut self, now: SystemTime) -> Vec<FleetEvent> {
        self.processes.retain(|_, process| process.silence(now) < LISTED);
        let mut events = Vec::new();
        for ((id, _), process) in &mut self.processes {
            let gone = process.status.status == WorkerState::ShutdownCompleted;
            if !gone && !process.silent && process.silence(now) > self.timeout {
                process.silent = true;
                events.push(match process.replaced {
                    true => FleetEvent::Replaced(id.clone()),
                    false => FleetEvent::Silent(id.clone()),
                });
            }
        }
        self.drop_former_selves(now);
        events
    }

    /// Drops silent processes whose id a live process uses: they were killed and restarted.
    fn drop_former_selves(&mut self, now: SystemTime) {
        let timeout = self.timeout;
        if self.processes.values().all(|process| process.is_responsive(now, timeout)) {
            return;
        }
        let live = self.processes.iter().filter(|(_, process)| process.is_responsive(now, timeout));
        let live: HashSet<String> = live.map(|((id, _), _)| id.clone()).collect();
        self.processes.retain(|(id, _), process| process.is_responsive(now, timeout) || !live.contains(id));
    }

    fn bound(&mut self) {
        while self.processes.len() > MOST_WORKERS {
            let oldest = self.processes.iter().min_by(|one, other| one.1.at.cmp(&other.1.at));
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { return };
            self.processes.remove(&key);
        }
    }

    /// The number of workers that take tasks now.
    pub(super) fn active(&self, now: SystemTime) -> usize {
        self.count(now, WorkerState::Started)
    }

    fn count(&self, now: SystemTime, state: WorkerState) -> usize {
        let alive =
            self.listed().map(|(_, process)| process).filter(|process| process.is_responsive(now, self.timeout));
        alive.filter(|process| process.status.status == state).count()
    }

    /// The last completed stops, the newest first.
    pub(super) fn stops(&self) -> &[WorkerStop] {
        self.stops.list()
    }

    /// The number of workers in each state, for the metrics. A silent worker was killed, hangs, or has no network.
    pub(super) fn states(&self, now: SystemTime) -> [(&'static str, usize); 4] {
        let is_silent = |process: &Process| {
            process.status.status != WorkerState::ShutdownCompleted && !process.is_responsive(now, self.timeout)
        };
        [
            ("active", self.count(now, WorkerState::Started)),
            ("quiet", self.count(now, WorkerState::Quiet)),
            ("shutting_down", self.count(now, WorkerState::ShutdownStarted)),
            ("silent", self.listed().filter(|(_, process)| is_silent(process)).count()),
        ]
    }

    /// The number of tasks that responsive workers run.
    pub(super) fn running(&self, now: SystemTime) -> usize {
        let alive = self.listed().filter(|(_, process)| process.is_responsive(now, self.timeout));
        alive.map(|(_, process)| process.status.current_tasks.len()).sum()
    }

    /// All processes that were not replaced.
    fn listed(&self) -> impl Iterator<Item = (&(String, Uuid), &Process)> {
        self.processes.iter().filter(|(_, process)| !process.replaced)
    }

    /// The fleet at `now`.
    pub(super) fn view(&self, now: SystemTime) -> FleetView {
        let (active, stopping) = (self.count(now, WorkerState::Started), self.count(now, WorkerState::ShutdownStarted));
        let mut workers = BTreeMap::new();
        for ((id, instance), process) in self.listed() {
            let name = if self.first_of(id) == Some(*instance) {
                id.clone()
            } else {
                format!("{id}#{}", &instance.simple().to_string()[..8])
            };
            workers.insert(name, worker_view(process, now, self.timeout));
        }
        FleetView {
            total_workers: active + stopping,
            active_workers: active,
            shutting_down_workers: stopping,
            quiet_workers: self.count(now, WorkerState::Quiet),
            workers,
        }
    }

    /// The process that keeps the name, of several live processes with one id: the first that started.
    fn first_of(&self, id: &str) -> Option<Uuid> {
        let range = (id.to_owned(), Uuid::nil())..=(id.to_owned(), Uuid::max());
        let same = self.processes.range(range).filter(|(_, process)| !process.replaced);
        let first = same.min_by(|one, other| one.1.status.started_at.total_cmp(&other.1.status.started_at));
        first.map(|((_, instance), _)| *instance)
    }
}

impl Process {
    /// The time since its last status record.
    fn silence(&self, now: SystemTime) -> Duration {
        now.duration_since(self.at).unwrap_or_default()
    }

    fn is_responsive(&self, now: SystemTime, timeout: Duration) -> bool {
        self.status.status != WorkerState::ShutdownCompleted && self.silence(now) <= timeout
    }
}

fn worker_view(process: &Process, now: SystemTime, timeout: Duration) -> WorkerView {
    let status = &process.status;
    let draining = status.status == WorkerState::ShutdownStarted;
    let silence = process.silence(now);
    WorkerView {
        status: status.status,
        current_task: status.current_task.clone(),
        last_update: whole_seconds(process.at.duration_since(UNIX_EPOCH).unwrap_or_default()),
        seconds_since_update: whole_seconds(silence),
        is_responsive: process.is_responsive(now, timeout),
        current_tasks: status.current_tasks.clone(),
        current_task_seconds: status
            .current_task_seconds
            .iter()
            .map(|ran| ((ran + silence.as_secs_f64()) * 10.0).round() / 10.0)
            .collect(),
        instance: status.instance,
        started_at: status.started_at,
        // The deadline is by the worker's clock: take the time left at the status record, less the time since then.
        drain_seconds_left: status
            .stop_deadline
            .filter(|_| draining)
            .map(|deadline| (deadline - status.timestamp - silence.as_secs_f64()).max(0.0).ceil() as i64),
        holding_back: status.holding_back,
        exit_code: status.receipt.as_ref().map(|receipt| receipt.exit_code),
    }
}

fn whole_seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Receipt;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn status(id: &str, instance: u128, state: WorkerState) -> WorkerStatus {
        WorkerStatus {
            worker_id: id.to_owned(),
            status: state,
            // The clocks of workers are not trusted: this timestamp is years off.
            timestamp: 1_000.0,
            current_task: None,
            current_tasks: Vec::new(),
            current_task_seconds: Vec::new(),
            instance: Uuid::from_u128(instance),
            started_at: 1_000.0 + instance as f64,
            stop_deadline: None,
            holding_back: false,
            receipt: None,
        }
    }

    fn at(seconds: f64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs_f64(seconds)
    }

    /// Applies a live status record: a later record has a higher offset.
    fn hear(fleet: &mut Fleet, status: WorkerStatus, seconds: f64) -> Vec<FleetEvent> {
        fleet.hear(status, at(seconds), (seconds * 10.0) as i64)
    }

    fn counts(fleet: &Fleet, now: f64) -> (usize, usize, usize) {
        let view = fleet.view(at(now));
        (view.total_workers, view.active_workers, view.shutting_down_workers)
    }

    #[test]
    fn workers_are_counted_by_state_while_they_are_responsive() {
        let mut fleet = Fleet::new(TIMEOUT);
        assert_eq!(hear(&mut fleet, status("a", 1, WorkerState::Started), 100.0), [FleetEvent::Started("a".into())]);
        assert!(hear(&mut fleet, status("a", 1, WorkerState::Started), 101.0).is_empty(), "a heartbeat is no event");
        hear(&mut fleet, status("b", 2, WorkerState::ShutdownStarted), 101.0);
        assert_eq!(counts(&fleet, 102.0), (2, 1, 1));
        assert_eq!(counts(&fleet, 106.0), (2, 1, 1), "exactly the timeout");
        assert_eq!(counts(&fleet, 106.1), (0, 0, 0));
        let view = fleet.view(at(106.1));
        assert_eq!((view.workers["a"].status, view.workers["a"].is_responsive), (WorkerState::Started, false));
        assert_eq!((view.workers["a"].last_update, view.workers["a"].seconds_since_update), (101, 5));
    }

    #[test]
    fn quiet_worker_is_counted_apart_until_it_takes_tasks_again() {
        let mut fleet = Fleet::new(TIMEOUT);
        hear(&mut fleet, status("a", 1, WorkerState::Started), 100.0);
        hear(&mut fleet, status("b", 2, WorkerState::Started), 100.0);
        assert_eq!(hear(&mut fleet, status("a", 1, WorkerState::Quiet), 101.0), [FleetEvent::Quiet("a".into())]);
        assert!(hear(&mut fleet, status("a", 1, WorkerState::Quiet), 102.0).is_empty(), "a heartbeat is no event");
        assert_eq!((counts(&fleet, 102.0), fleet.view(at(102.0)).quiet_workers), ((1, 1, 0), 1));
        assert_eq!(fleet.active(at(102.0)), 1);
        assert!(fleet.view(at(102.0)).workers["a"].is_responsive);
        assert_eq!(hear(&mut fleet, status("a", 1, WorkerState::Started), 103.0), [FleetEvent::Resumed("a".into())]);
        assert_eq!((counts(&fleet, 103.0), fleet.view(at(103.0)).quiet_workers), ((2, 2, 0), 0));
        hear(&mut fleet, status("a", 1, WorkerState::Quiet), 104.0);
        assert_eq!(fleet.view(at(109.1)).quiet_workers, 0, "a silent worker is in no count");
    }

    #[test]
    fn silence_and_return_are_reported_once_each() {
        let mut fleet = Fleet::new(TIMEOUT);
        hear(&mut fleet, status("a", 1, WorkerState::Started), 100.0);
        assert!(fleet.tick(at(105.0)).is_empty());
        assert_eq!(fleet.tick(at(105.1)), [FleetEvent::Silent("a".into())]);
        assert!(fleet.tick(at(106.0)).is_empty());
        assert_eq!(hear(&mut fleet, status("a", 1, WorkerState::Started), 107.0), [FleetEvent::Returned("a".into())]);
    }

    #[test]
    fn completed_worker_is_gone_at_once_and_listed_for_ten_minutes() {
        let mut fleet = Fleet::new(TIMEOUT);
        hear(&mut fleet, status("a", 1, WorkerState::Started), 100.0);
        let receipt = Receipt {
            worker_id: "a".into(),
            signal: "SIGTERM".into(),
            outcome: "drained".into(),
            phases_ms: serde_json::Map::new(),
            tasks_finished: 0,
            tasks_returned: 0,
            tasks_abandoned: Vec::new(),
            exit_code: 0,
        };
        let last = WorkerStatus { receipt: Some(receipt.clone()), ..status("a", 1, WorkerState::ShutdownCompleted) };
        assert_eq!(hear(&mut fleet, last, 101.0), [FleetEvent::ShutdownCompleted("a".into(), Some(Box::new(receipt)))]);
        assert!(!fleet.view(at(101.0)).workers["a"].is_responsive);
        assert!(
            hear(&mut fleet, status("a", 1, WorkerState::Started), 101.5).is_empty(),
            "a heartbeat after the completion"
        );
        assert_eq!(counts(&fleet, 101.5), (0, 0, 0));
        assert!(fleet.tick(at(700.9)).is_empty() && fleet.view(at(700.9)).workers.contains_key("a"));
        fleet.tick(at(701.0));
        assert!(fleet.view(at(701.0)).workers.is_empty());
    }

    #[test]
    fn restarted_worker_replaces_its_earlier_process_and_a_second_live_process_is_listed_beside() {
        let mut fleet = Fleet::new(TIMEOUT);
        hear(&mut fleet, status("a", 1, WorkerState::Started), 100.0);
        hear(&mut fleet, status("a", 1, WorkerState::ShutdownCompleted), 101.0);
        hear(&mut fleet, status("a", 2, WorkerState::Started), 101.5);
        assert_eq!(fleet.view(at(101.5)).workers.keys().collect::<Vec<_>>(), ["a"]);
        // Killed and started again, or a second live process: the restart is likelier.
        assert_eq!(hear(&mut fleet, status("a", 3, WorkerState::Started), 102.0), [FleetEvent::Started("a".into())]);
        assert_eq!(fleet.view(at(102.0)).workers.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(counts(&fleet, 102.0), (1, 1, 0));
        // The first process sends a status record: both are alive.
        let events = hear(&mut fleet, status("a", 2, WorkerState::Started), 102.5);
        assert_eq!(events, [FleetEvent::Conflict("a".into())]);
        assert!(hear(&mut fleet, status("a", 3, WorkerState::Started), 103.0).is_empty(), "reported once");
        assert_eq!(fleet.view(at(103.0)).workers.keys().collect::<Vec<_>>(), ["a", "a#00000000"]);
        assert_eq!(counts(&fleet, 103.0), (2, 2, 0));
        // The first process is killed: once it is silent, the other keeps the name alone.
        hear(&mut fleet, status("a", 3, WorkerState::Started), 107.0);
        assert_eq!(fleet.tick(at(107.6)), [FleetEvent::Silent("a".into())]);
        let view = fleet.view(at(107.6));
        assert_eq!(view.workers.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(view.workers["a"].instance, Uuid::from_u128(3));
    }

    #[test]
    fn worker_that_was_killed_and_runs_again_is_reported_as_replaced_once() {
        let mut fleet = Fleet::new(TIMEOUT);
        hear(&mut fleet, status("a", 1, WorkerState::Started), 100.0);
        hear(&mut fleet, status("a", 2, WorkerState::Started), 101.0);
        hear(&mut fleet, status("a", 2, WorkerState::Started), 105.5);
        assert_eq!(fleet.tick(at(105.6)), [FleetEvent::Replaced("a".into())]);
        assert_eq!(fleet.processes.len(), 1);
        assert!(fleet.tick(at(105.8)).is_empty());
        hear(&mut fleet, status("a", 2, WorkerState::ShutdownCompleted), 106.0);
        hear(&mut fleet, status("a", 3, WorkerState::Started), 106.1);
        assert!(fleet.tick(at(110.0)).is_empty(), "a stopped worker is not lost");
    }

    #[test]
    fn earlier_process_that_is_read_back_later_stays_unknown() {
        let mut fleet = Fleet::new(TIMEOUT);
        fleet.hear(status("a", 2, WorkerState::Started), at(100.0), 50);
        assert!(fleet.hear(status("a", 1, WorkerState::ShutdownCompleted), at(60.0), 20).is_empty());
        assert_eq!(fleet.view(at(100.0)).workers["a"].instance, Uuid::from_u128(2));
        assert_eq!(fleet.processes.len(), 1);
    }

    #[test]
    fn record_that_is_read_back_never_overwrites_a_live_one() {
        let mut fleet = Fleet::new(TIMEOUT);
        hear(&mut fleet, status("a", 1, WorkerState::ShutdownStarted), 100.0);
        // Even with a later time.
        assert!(fleet.hear(status("a", 1, WorkerState::Started), at(101.0), 500).is_empty());
        assert_eq!(fleet.view(at(100.0)).workers["a"].status, WorkerState::ShutdownStarted);
    }

    #[test]
    fn seconds_left_of_a_drain_count_down_by_the_gateways_clock() {
        let mut fleet = Fleet::new(TIMEOUT);
        let draining = WorkerStatus { stop_deadline: Some(1_030.0), ..status("a", 1, WorkerState::ShutdownStarted) };
        hear(&mut fleet, draining, 500.0);
        assert_eq!(fleet.view(at(504.0)).workers["a"].drain_seconds_left, Some(26));
    }

    #[test]
    fn task_runs_longer_while_its_worker_is_not_heard() {
        let mut fleet = Fleet::new(TIMEOUT);
        let (current_tasks, current_task_seconds) = (vec!["t".to_owned()], vec![7.9]);
        let busy = WorkerStatus { current_tasks, current_task_seconds, ..status("a", 1, WorkerState::Started) };
        hear(&mut fleet, busy, 500.0);
        assert_eq!(fleet.view(at(500.0)).workers["a"].current_task_seconds, [7.9]);
        assert_eq!(fleet.view(at(503.0)).workers["a"].current_task_seconds, [10.9]);
        assert_eq!((fleet.running(at(503.0)), fleet.running(at(510.0))), (1, 0), "a silent worker runs nothing");
    }

    #[test]
    fn crash_loop_with_new_names_does_not_fill_the_memory() {
        let mut fleet = Fleet::new(TIMEOUT);
        for number in 0..MOST_WORKERS as u128 + 50 {
            hear(&mut fleet, status(&format!("w{number}"), number, WorkerState::Started), number as f64);
        }
        assert_eq!(fleet.processes.len(), MOST_WORKERS);
        assert!(!fleet.view(at(0.0)).workers.contains_key("w0"));
    }
}
