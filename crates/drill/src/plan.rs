//! The plan of a drill: fleet, load and actions; read from TOML.
//!
//! A plan can leave times to chance; [`schedule`](super::schedule) draws them. All faults of a plan are found here,
//! before the drill starts anything. Called by [`cli`](super::cli).

mod action;

pub use action::{ActionPlan, FaultPlan, What, Who};

use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use program::logging::escape;
use program::options::values;

use action::{OneOrMore, length};

/// The default plan.
pub const DEFAULT: &str = include_str!("../../../drills/default.toml");
/// The longest `work` that a gateway accepts.
const LONGEST_WORK: Duration = Duration::from_secs(120);
/// The promises that a plan can test.
const PROMISES: [&str; 13] = ["P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P8b", "P8c", "P9", "P10", "P11"];
/// Upper limit of every duration in a plan.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// A plan as its file has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Name of the built-in plan or file; not part of the file.
    #[serde(skip)]
    pub name: String,
    /// Length of the load.
    #[serde(rename = "for", deserialize_with = "length")]
    pub length: Duration,
    /// The fleet that the drill starts.
    #[serde(default)]
    pub fleet: FleetPlan,
    /// The load.
    #[serde(default)]
    pub load: LoadPlan,
    /// Promises that the plan must test: `P1` to `P11`. If one stays untested, the verdict is undecided.
    #[serde(default)]
    pub tests: Vec<String>,
    /// The actions.
    #[serde(default, rename = "action")]
    pub actions: Vec<ActionPlan>,
}

/// A fleet that the drill starts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FleetPlan {
    /// Workers at the start.
    pub workers: u32,
    /// Gateways; the load goes to each in turn.
    pub gateways: u32,
    /// `WORKER_CONCURRENCY` of each worker.
    pub concurrency: u32,
    /// `DRAIN_TIMEOUT` of each worker.
    #[serde(deserialize_with = "length")]
    pub drain_timeout: Duration,
    /// Nodes of the broker. With three or more, every partition has three replicas.
    #[serde(deserialize_with = "numbers")]
    pub brokers: Vec<u32>,
    /// `TASKS_PARTITIONS`
    #[serde(deserialize_with = "numbers")]
    pub partitions: Vec<u32>,
}

impl Default for FleetPlan {
    fn default() -> Self {
        let (brokers, partitions) = (vec![1], vec![1]);
        Self { workers: 3, gateways: 2, concurrency: 1, drain_timeout: Duration::from_secs(30), brokers, partitions }
    }
}

/// The number of a list that this seed draws.
pub fn drawn(numbers: &[u32], seed: u64) -> u32 {
    fastrand::Rng::with_seed(seed).choice(numbers).copied().unwrap_or(1)
}

fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    let numbers = OneOrMore::deserialize(deserializer).map(Vec::from).unwrap_or_default();
    let expected = "expected a number, or a list to draw from: [1, 3]";
    if numbers.is_empty() { Err(Error::custom(expected)) } else { Ok(numbers) }
}

/// The load.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadPlan {
    /// Requests per second. `None`: each caller sends its next request after each response.
    pub rate: Option<u32>,
    /// Requests that wait for their responses at once.
    pub callers: usize,
    /// Kinds of tasks with extra time; empty: no extra time.
    pub tasks: Vec<TaskPlan>,
    /// How many of 1000 requests are special.
    pub special: Shares,
}

/// How many of 1000 requests are of each special kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shares {
    /// Repeat an earlier request with its Idempotency-Key.
    pub keyed: u32,
    /// `Prefer: respond-async`.
    pub asynchronous: u32,
    /// A task that fails at each start. Needs workers with the drill's journal.
    pub poison: u32,
}

impl Default for Shares {
    fn default() -> Self {
        Self { keyed: 50, asynchronous: 50, poison: 0 }
    }
}

impl Default for LoadPlan {
    fn default() -> Self {
        Self { rate: None, callers: 64, tasks: Vec::new(), special: Shares::default() }
    }
}

/// One kind of task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskPlan {
    /// Share relative to the other kinds.
    pub share: u32,
    /// Extra time (`work_ms`).
    #[serde(deserialize_with = "length")]
    pub work: Duration,
}

impl Plan {
    /// Reads a plan; `name` is the name of its file. Returns all faults, a line each.
    ///
    /// # Errors
    /// A syntax error alone, or else every wrong value.
    pub fn read(name: &str, text: &str) -> Result<Self, Vec<String>> {
        let mut plan: Self = toml::from_str(text).map_err(|error| vec![in_one_line(text, &error)])?;
        name.clone_into(&mut plan.name);
        let faults = plan.faults();
        if faults.is_empty() { Ok(plan) } else { Err(faults) }
    }

    /// Whether tasks have extra time.
    pub fn has_work(&self) -> bool {
        self.load.tasks.iter().any(|task| !task.work.is_zero())
    }

    /// The longest extra time.
    pub fn longest_work(&self) -> Duration {
        self.load.tasks.iter().map(|task| task.work).max().unwrap_or_default()
    }

    /// Maximum age of a longest task that surely outlasts a drain that begins now; `None`: no task is long enough.
    pub fn outlasts_drain(&self) -> Option<Duration> {
        let sure = self.fleet.drain_timeout + Duration::from_secs(1);
        self.longest_work().checked_sub(sure).filter(|left| *left > Duration::from_secs(1))
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut limits = |name: &str, value: u64, least: u64, most: u64| {
            if !(least..=most).contains(&value) {
                faults.push(format!("{name} is {value}; expected {least} to {most}"));
            }
        };
        limits("fleet.workers", self.fleet.workers.into(), 1, 100);
        limits("fleet.gateways", self.fleet.gateways.into(), 1, 10);
        limits("fleet.concurrency", self.fleet.concurrency.into(), 1, 64);
        for brokers in &self.fleet.brokers {
            limits("fleet.brokers", (*brokers).into(), 1, 5);
        }
        for partitions in &self.fleet.partitions {
            limits("fleet.partitions", (*partitions).into(), 1, 64);
        }
        limits("load.callers", self.load.callers as u64, 1, 512);
        if let Some(rate) = self.load.rate {
            limits("load.rate", rate.into(), 1, 2000);
        }
        let Shares { keyed, asynchronous, poison } = self.load.special;
        limits("the sum of load.special", u64::from(keyed) + u64::from(asynchronous) + u64::from(poison), 0, 500);
        if !self.load.tasks.is_empty() {
            limits(
                "the sum of the shares",
                self.load.tasks.iter().map(|task| u64::from(task.share)).sum(),
                1,
                1_000_000,
            );
        }
        if self.length.is_zero() {
            faults.push("for is 0; expected how long the load goes on, for example \"2m\"".to_owned());
        }
        if self.fleet.drain_timeout < Duration::from_secs(1) {
            faults.push("fleet.drain_timeout is too short; expected 1s at least".to_owned());
        }
        if self.longest_work() > LONGEST_WORK {
            faults
                .push(format!("work {} is too long; expected 2m at most", values::show_duration(self.longest_work())));
        }
        for promise in self.tests.iter().filter(|promise| !PROMISES.contains(&promise.as_str())) {
            faults.push(format!("tests has \"{}\"; expected some of {}", escape(promise), PROMISES.join(", ")));
        }
        for (index, action) in self.actions.iter().enumerate() {
            faults.extend(
                action.faults().into_iter().map(|fault| format!("action {} ({}): {fault}", index + 1, action.what)),
            );
        }
        faults
    }
}

/// The parser's message with its line number, without the excerpt that the parser prints.
pub(super) fn in_one_line(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    format!("line {line}: {}", escape(error.message().trim()).to_string().replace("\\n", ", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        Plan::read("test", text).expect_err("a fault")
    }

    #[test]
    fn shipped_plans_are_valid() {
        for (name, text) in [
            ("default", DEFAULT),
            ("short", include_str!("../../../drills/short.toml")),
            ("random", include_str!("../../../drills/random.toml")),
            ("deploys", include_str!("../../../drills/deploys.toml")),
            ("cluster", include_str!("../../../drills/cluster.toml")),
        ] {
            let plan = Plan::read(name, text).unwrap_or_else(|faults| panic!("{name}: {faults:?}"));
            assert!(!plan.actions.is_empty() && plan.has_work(), "{name}");
        }
    }

    #[test]
    fn shipped_plans_have_every_kind_of_action() {
        let of_one = Plan::read("default", DEFAULT).expect("a plan");
        let of_three = Plan::read("cluster", include_str!("../../../drills/cluster.toml")).expect("a plan");
        let has = |plan: &Plan, what| plan.actions.iter().any(|action| action.what == what);
        for (what, name) in What::all() {
            let needs_three = matches!(what, What::RollBrokers | What::MoveLeader | What::CutBroker);
            assert!(has(if needs_three { &of_three } else { &of_one }, what), "{name}");
        }
        assert_eq!(of_one.length, Duration::from_mins(2));
    }

    #[test]
    fn a_seed_always_draws_the_same_number() {
        let plan = "for = \"1m\"\n[fleet]\nbrokers = 3\npartitions = [1, 3, 6]";
        let plan = Plan::read("test", plan).expect("a plan");
        let all: Vec<u32> = (0..40).map(|seed| drawn(&plan.fleet.partitions, seed)).collect();
        assert!([1, 3, 6].iter().all(|number| all.contains(number)), "{all:?}");
        assert_eq!(all, (0..40).map(|seed| drawn(&plan.fleet.partitions, seed)).collect::<Vec<_>>());
        assert_eq!(drawn(&plan.fleet.brokers, 7), 3);
    }

    #[test]
    fn only_a_task_longer_than_the_drain_timeout_outlasts_a_drain() {
        let outlasts = |text: &str| Plan::read("test", text).expect("a plan").outlasts_drain();
        assert_eq!(outlasts(DEFAULT), Some(Duration::from_secs(4)));
        assert_eq!(outlasts(include_str!("../../../drills/short.toml")), Some(Duration::from_secs(2)));
        let plan = "for = \"1m\"\n[fleet]\ndrain_timeout = \"5s\"\n[[load.tasks]]\nshare = 1\nwork = ";
        assert_eq!(outlasts(&format!("{plan}\"4s\"")), None);
        assert_eq!(outlasts(&format!("{plan}\"6s\"")), None, "the margin is too small for an action");
    }

    #[test]
    fn a_plan_is_read_with_its_values() {
        let plan = Plan::read(
            "x",
            "for = \"90s\"\n[fleet]\nworkers = 4\n[load]\nrate = 7\n[[load.tasks]]\nshare = 3\nwork = \"1s\"\n\
             [[action]]\ndo = \"kill-worker\"\nat = [\"1s\", \"2s\"]\nworker = \"busy\"\nfor = [\"1s\", \"3s\"]\n\
             [[action]]\ndo = \"scale\"\nevery = \"10s\"\nto = 2\n",
        )
        .expect("a plan");
        assert_eq!((plan.fleet.workers, plan.load.rate, plan.length), (4, Some(7), Duration::from_secs(90)));
        assert_eq!(plan.longest_work(), Duration::from_secs(1));
        let [kill, scale] = &plan.actions[..] else { panic!("two actions") };
        assert_eq!(kill.at, [Duration::from_secs(1), Duration::from_secs(2)]);
        assert_eq!((&kill.worker, kill.length), (&Who::Busy, Some((Duration::from_secs(1), Duration::from_secs(3)))));
        assert_eq!((scale.every, scale.to), (Some(Duration::from_secs(10)), Some(2)));
    }

    #[test]
    fn a_fault_names_the_value_and_the_expected_value() {
        for (text, parts) in [
            ("for = \"2m\"\nwhat = 1", &["line 2", "unknown field", "what"][..]),
            ("for = \"90\"", &["line 1", "\"90\"", "has no unit", "for example 30s"]),
            ("", &["missing field", "for"]),
            ("for = \"2m\"\n[[action]]\ndo = \"explode\"\nat = \"1s\"", &["line 3", "explode", "kill-worker"]),
            ("for = \"2m\"\n[[action]]\ndo = \"kill-worker\"", &["action 1 (kill-worker)", "neither at nor every"]),
            ("for = \"2m\"\n[[action]]\ndo = \"freeze-worker\"\nat = \"1s\"", &["needs for"]),
            (
                "for = \"2m\"\n[[action]]\ndo = \"freeze-worker\"\nat = \"1s\"\nfor = [\"3s\", \"1s\"]",
                &["the shorter one first"],
            ),
            ("for = \"2m\"\n[[action]]\ndo = \"scale\"\nat = \"1s\"", &["how many workers, 1 to 100"]),
            (
                "for = \"2m\"\n[[action]]\ndo = \"pause\"\nat = \"1s\"\nfor = \"1s\"\nworker = \"busy\"",
                &["takes no worker"],
            ),
            (
                "for = \"2m\"\n[[action]]\ndo = \"fault\"\nat = \"1s\"\nfault = \"cut-after\"",
                &["action 1 (fault)", "needs fault, request and of"],
            ),
            (
                "for = \"2m\"\n[[action]]\ndo = \"fault\"\nat = \"1s\"\nfault = \"delay\"\nrequest = \"fetch\"\nof = \"worker\"",
                &["a delay without for"],
            ),
            ("for = \"2m\"\n[[action]]\ndo = \"fault\"\nfault = \"cut\"", &["\"cut\"", "cut-before, cut-after"]),
            ("for = \"2m\"\n[fleet]\nbrokers = [3, 0]", &["fleet.brokers is 0; expected 1 to 5"]),
            ("for = \"2m\"\n[fleet]\npartitions = []", &["expected a number, or a list to draw from: [1, 3]"]),
            (
                "for = \"2m\"\n[[action]]\ndo = \"move-leader\"\nat = \"1s\"\nnode = 2",
                &["action 1 (move-leader): takes no node"],
            ),
            ("for = \"2m\"\n[load]\nrate = 0", &["load.rate is 0; expected 1 to 2000"]),
            ("for = \"2m\"\n[[load.tasks]]\nshare = 1\nwork = \"3m\"", &["work 3m", "2m at most"]),
        ] {
            let told = faults(text);
            assert!(parts.iter().all(|part| told[0].contains(part)), "{told:?} for {text}");
            assert!(!told[0].contains('\n'), "{told:?}");
        }
    }
}
