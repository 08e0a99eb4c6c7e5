//! Tasks in flight at each worker as a gateway shows them, with the time since which they were seen. Called by the
//! actions of a [command fleet](super).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::http::Client;
use super::super::plan::Who;

/// A worker repeats its status record once a second. A task that was first seen just now began within that second and
/// is most likely still in flight. A task that was seen in two status records takes long.
const JUST_LISTED: Duration = Duration::from_millis(120);
const LISTED_TWICE: Duration = Duration::from_millis(1200);

/// Tasks in flight by worker, of responsive workers that are not stopping.
pub(super) type InFlight = BTreeMap<String, BTreeSet<String>>;

/// Asks the gateways in turn; `None`: no usable response.
pub(super) fn in_flight(gateways: &mut [Client]) -> Option<InFlight> {
    let mut responses =
        gateways.iter_mut().filter_map(|gateway| gateway.get("/workers/status", Duration::from_secs(1)).ok());
    let view: Value = serde_json::from_slice(&responses.next()?.body).ok()?;
    let workers = view.get("workers")?.as_object()?.iter();
    let active = workers.filter(|(_, worker)| {
        worker.get("is_responsive") == Some(&Value::Bool(true))
            && worker.get("status").and_then(Value::as_str) == Some("worker_started")
    });
    let tasks = |worker: &Value| {
        let tasks = worker.get("current_tasks").and_then(Value::as_array).into_iter().flatten();
        tasks.filter_map(|task| task.as_str().map(str::to_owned)).collect()
    };
    Some(active.map(|(id, worker)| (id.clone(), tasks(worker))).collect())
}

/// For each worker, its tasks in flight and when each was first seen.
#[derive(Debug, Default)]
pub(super) struct TasksSeen(BTreeMap<String, BTreeMap<String, Instant>>);

impl TasksSeen {
    pub(super) fn see(&mut self, now: &InFlight, at: Instant) {
        let mut seen = BTreeMap::new();
        for (worker, tasks) in now {
            let before = self.0.get(worker);
            let since = |task: &String| before.and_then(|before| before.get(task)).copied().unwrap_or(at);
            seen.insert(worker.clone(), tasks.iter().map(|task| (task.clone(), since(task))).collect());
        }
        self.0 = seen;
    }

    pub(super) fn of(&self, worker: &str) -> impl Iterator<Item = &String> {
        self.0.get(worker).into_iter().flat_map(BTreeMap::keys)
    }

    /// Whether a worker is in this state (busy, idle, or busy for long) as far as known.
    pub(super) fn fits(&self, who: &Who, worker: &str, at: Instant) -> bool {
        let Some(tasks) = self.0.get(worker) else { return false };
        let ages = || tasks.values().map(|since| at.saturating_duration_since(*since));
        match who {
            Who::Idle => tasks.is_empty(),
            Who::Busy => ages().any(|age| age <= JUST_LISTED || age >= LISTED_TWICE),
            Who::Long => ages().any(|age| age >= LISTED_TWICE),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_long_after_two_status_records() {
        let (begin, mut tasks_seen) = (Instant::now(), TasksSeen::default());
        let listed =
            |tasks: &[&str]| InFlight::from([("w".to_owned(), tasks.iter().map(|task| (*task).to_owned()).collect())]);
        let at = |ms| begin + Duration::from_millis(ms);
        tasks_seen.see(&listed(&["a"]), at(0));
        assert!(tasks_seen.fits(&Who::Busy, "w", at(0)) && !tasks_seen.fits(&Who::Long, "w", at(0)));
        // First seen a while ago, but not yet in a second status record: it may have ended.
        tasks_seen.see(&listed(&["a"]), at(800));
        assert!(!tasks_seen.fits(&Who::Busy, "w", at(800)) && !tasks_seen.fits(&Who::Idle, "w", at(800)));
        tasks_seen.see(&listed(&["a", "b"]), at(1300));
        assert!(tasks_seen.fits(&Who::Long, "w", at(1300)) && tasks_seen.fits(&Who::Busy, "w", at(1300)));
        tasks_seen.see(&listed(&[]), at(2000));
        assert!(tasks_seen.fits(&Who::Idle, "w", at(2000)));
        assert!(!tasks_seen.fits(&Who::Idle, "unheard", at(2000)));
    }
}
