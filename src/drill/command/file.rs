//! The file that describes a fleet: where it is, and a shell command for each action.
//!
//! It knows nothing of plans. Every fault of a file is found here, before a command runs. Called by the options.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::config::parse::{Faults, positive};
use crate::config::values;
use crate::logging::escape;

use super::super::fleet::Place;
use super::super::options::GatewayAddress;
use super::super::plan::{What, in_one_line};

/// Every command, with the command that a fleet needs beside it.
const COMMANDS: [(&str, Option<&str>); 19] = [
    ("stop-worker", Some("start-worker")),
    ("kill-worker", Some("start-worker")),
    ("second-signal", Some("start-worker")),
    ("start-worker", None),
    ("restart-worker", None),
    ("freeze-worker", Some("thaw-worker")),
    ("thaw-worker", None),
    ("scale", None),
    ("stop-gateway", Some("start-gateway")),
    ("kill-gateway", Some("start-gateway")),
    ("start-gateway", None),
    ("restart-gateway", None),
    ("stop-kafka", Some("start-kafka")),
    ("kill-kafka", Some("start-kafka")),
    ("start-kafka", None),
    ("freeze-kafka", Some("thaw-kafka")),
    ("thaw-kafka", None),
    ("exit-code", None),
    ("gateway-exit-code", None),
];

/// A fleet and its commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetFile {
    /// The path of the file.
    pub name: String,
    /// Where the fleet is.
    pub place: Place,
    /// Prints a line for each worker that runs: its name, and its id in the fleet when that differs.
    pub workers: String,
    /// How long a command may take.
    pub limit: Duration,
    /// By their names.
    pub commands: BTreeMap<String, String>,
}

/// An action on a fleet, as commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deed {
    pub(super) command: &'static str,
    /// The signal that the command sends; how often.
    pub(super) signal: &'static str,
    pub(super) times: usize,
    /// The command that undoes it.
    pub(super) after: Option<&'static str>,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    gateways: Vec<String>,
    kafka_bootstrap_servers: Vec<String>,
    tasks_topic: Option<String>,
    results_topic: Option<String>,
    worker_group: Option<String>,
    drain_timeout: Option<String>,
    gateway_grace: Option<String>,
    worker_timeout: Option<String>,
    concurrency: Option<u32>,
    command_timeout: Option<String>,
    workers: String,
    #[serde(default)]
    commands: BTreeMap<String, String>,
}

impl FleetFile {
    /// Reads a file; `name` is its path. All faults are returned, a line each.
    ///
    /// # Errors
    /// The fault of the syntax, or every value that is wrong, with what would be right.
    pub fn read(name: &str, text: &str) -> Result<Self, Vec<String>> {
        let written: Written = toml::from_str(text).map_err(|error| vec![in_one_line(text, &error)])?;
        let mut faults = Faults::default();
        let mut place = Place::of(Vec::new(), Vec::new());
        let gateways = |text: &str| values::list(text, GatewayAddress::read);
        faults.set(&mut place.gateways, "gateways", &written.gateways.join(","), gateways);
        let brokers = written.kafka_bootstrap_servers.join(",");
        faults.set(&mut place.bootstrap, "kafka_bootstrap_servers", &brokers, values::brokers);
        let topic = |text: &str| values::topic(text, values::TOPIC_LIMIT);
        let group = |text: &str| values::printable(text, values::TOPIC_LIMIT);
        let mut limit = Duration::from_secs(90);
        let Place { tasks_topic, results_topic, drain_timeout, gateway_grace, worker_timeout, .. } = &mut place;
        set(&mut faults, tasks_topic, "tasks_topic", written.tasks_topic.as_deref(), topic);
        set(&mut faults, results_topic, "results_topic", written.results_topic.as_deref(), topic);
        set(&mut faults, drain_timeout, "drain_timeout", written.drain_timeout.as_deref(), positive);
        set(&mut faults, gateway_grace, "gateway_grace", written.gateway_grace.as_deref(), positive);
        set(&mut faults, worker_timeout, "worker_timeout", written.worker_timeout.as_deref(), positive);
        set(&mut faults, &mut limit, "command_timeout", written.command_timeout.as_deref(), positive);
        set(&mut faults, &mut place.group, "worker_group", written.worker_group.as_deref(), group);
        let concurrency = written.concurrency.map(|number| number.to_string());
        let number = |text: &str| values::number(text, &(1..=1024));
        set(&mut faults, &mut place.concurrency, "concurrency", concurrency.as_deref(), number);
        if written.workers.trim().is_empty() {
            faults.add("workers", "", "is no command; expected one that prints a line for each worker that runs");
        }
        let Written { workers, commands, .. } = written;
        check(&commands, &mut faults);
        faults.none_or(Self { name: name.to_owned(), place, workers, limit, commands }).map_err(|error| error.faults)
    }

    /// What an action is on this fleet.
    ///
    /// # Errors
    /// Why the fleet cannot do it.
    pub(super) fn deed(&self, what: What) -> Result<Deed, String> {
        let (command, signal, times, after) = match what {
            What::RestartWorker if !self.commands.contains_key("restart-worker") => {
                ("stop-worker", "SIGTERM", 1, Some("start-worker"))
            }
            What::RestartGateway if !self.commands.contains_key("restart-gateway") => {
                ("stop-gateway", "SIGTERM", 1, Some("start-gateway"))
            }
            What::StopWorker => ("stop-worker", "SIGTERM", 1, Some("start-worker")),
            What::RestartWorker => ("restart-worker", "SIGTERM", 1, None),
            What::SecondSignal => ("second-signal", "SIGTERM", 2, Some("start-worker")),
            What::KillWorker => ("kill-worker", "SIGKILL", 1, Some("start-worker")),
            What::FreezeWorker => ("freeze-worker", "SIGSTOP", 1, Some("thaw-worker")),
            What::StartWorker => ("start-worker", "", 0, None),
            What::Scale => ("scale", "", 0, None),
            What::StopGateway => ("stop-gateway", "SIGTERM", 1, Some("start-gateway")),
            What::RestartGateway => ("restart-gateway", "SIGTERM", 1, None),
            What::KillGateway => ("kill-gateway", "SIGKILL", 1, Some("start-gateway")),
            What::StopBroker | What::RestartBroker => ("stop-kafka", "SIGTERM", 1, Some("start-kafka")),
            What::KillBroker => ("kill-kafka", "SIGKILL", 1, Some("start-kafka")),
            What::FreezeBroker => ("freeze-kafka", "SIGSTOP", 1, Some("thaw-kafka")),
            _ => return Err("only a drill's own broker takes it".to_owned()),
        };
        if !self.commands.contains_key(command) {
            return Err(format!("{} has no command {command}", self.name));
        }
        Ok(Deed { command, signal, times, after })
    }
}

/// Sets `field` if the file has the key.
fn set<T>(
    faults: &mut Faults,
    field: &mut T,
    name: &str,
    text: Option<&str>,
    read: impl FnOnce(&str) -> values::Read<T>,
) {
    if let Some(text) = text {
        faults.set(field, name, text, read);
    }
}

fn check(commands: &BTreeMap<String, String>, faults: &mut Faults) {
    for (name, command) in commands {
        let Some((_, beside)) = COMMANDS.iter().find(|(known, _)| known == name) else {
            let known: Vec<&str> = COMMANDS.iter().map(|(known, _)| *known).collect();
            faults.add("commands", name, &format!("is no command; expected some of {}", known.join(", ")));
            continue;
        };
        if command.trim().is_empty() {
            faults.add(&escape(name).to_string(), command, "is empty; expected a shell command");
        }
        if let Some(beside) = beside.filter(|beside| !commands.contains_key(*beside)) {
            faults.add("commands", name, &format!("needs {beside} beside it, which is missing"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::plan::Plan;
    use super::*;

    const FLEET: &str = "gateways = [\"http://a:1\"]\nkafka_bootstrap_servers = [\"b:2\"]\nworkers = \"list\"\n";

    #[test]
    fn the_fleets_that_ship_go_with_the_plans_that_ship() {
        let plans = [
            include_str!("../../../drills/default.toml"),
            include_str!("../../../drills/short.toml"),
            include_str!("../../../drills/random.toml"),
            include_str!("../../../drills/deploys.toml"),
            include_str!("../../../drills/cluster.toml"),
        ];
        for (name, text, all) in [
            ("compose", include_str!("../../../drills/fleets/compose.toml"), true),
            ("make", include_str!("../../../drills/fleets/make.toml"), true),
            ("systemd", include_str!("../../../drills/fleets/systemd.toml"), false),
            ("kubernetes", include_str!("../../../drills/fleets/kubernetes.toml"), false),
        ] {
            let fleet = FleetFile::read(name, text).unwrap_or_else(|faults| panic!("{name}: {faults:?}"));
            assert!(fleet.deed(What::RestartWorker).is_ok() && fleet.deed(What::Scale).is_ok() || name == "systemd");
            for plan in plans {
                let plan = Plan::read("test", plan).expect("a plan");
                let done = plan.actions.iter().filter(|action| fleet.deed(action.what).is_ok());
                let left_out = plan.actions.iter().filter(|action| fleet.deed(action.what).is_err());
                assert!(done.count() > 0 || plan.actions.iter().all(|action| action.what.has_broker()), "{name}");
                // The embedded broker of `make up` forgets everything when it stops.
                let possible = |what: What| !what.is_left_out() && (name != "make" || !what.has_broker());
                let missing = left_out.map(|action| action.what).find(|what| possible(*what) && *what != What::Pause);
                assert!(!all || missing.is_none(), "{name}: {missing:?}");
            }
        }
    }

    #[test]
    fn a_file_says_where_the_fleet_is_and_what_its_actions_are() {
        let text = format!("{FLEET}concurrency = 3\n[commands]\nstop-worker = \"x\"\nstart-worker = \"y\"");
        let fleet = FleetFile::read("f.toml", &text).expect("a fleet");
        assert_eq!((fleet.place.concurrency, fleet.place.gateways.len()), (3, 1));
        assert_eq!((fleet.place.group.as_str(), fleet.place.drain_timeout), ("workers", Duration::from_secs(30)));
        let restart = fleet.deed(What::RestartWorker).expect("by a stop and a start");
        assert_eq!((restart.command, restart.after), ("stop-worker", Some("start-worker")));
        assert_eq!(fleet.deed(What::KillWorker), Err("f.toml has no command kill-worker".to_owned()));
        assert!(fleet.deed(What::MoveLeader).is_err());
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        for (text, parts) in [
            (FLEET.replace("workers", "worker"), &["line 3", "unknown field", "worker", "workers"][..]),
            ("gateways = []\nkafka_bootstrap_servers = []".to_owned(), &["missing field", "workers"]),
            (FLEET.replace("http:", "https:"), &["gateways", "https://a:1", "http://host:port"]),
            (FLEET.replace("b:2", "b"), &["kafka_bootstrap_servers", "\"b\"", "expected"]),
            (FLEET.replace("list", " "), &["workers", "prints a line for each worker"]),
            (format!("{FLEET}concurrency = 0"), &["concurrency", "\"0\"", "from 1 to 1024"]),
            (format!("{FLEET}drain_timeout = \"5\""), &["drain_timeout", "\"5\"", "for example 30s"]),
            (format!("{FLEET}[commands]\nstop = \"x\""), &["commands", "\"stop\"", "stop-worker, kill-worker"]),
            (format!("{FLEET}[commands]\nstop-worker = \"x\""), &["stop-worker", "needs start-worker beside it"]),
            (format!("{FLEET}[commands]\nscale = \"\""), &["scale", "expected a shell command"]),
        ] {
            let faults = FleetFile::read("f", &text).expect_err("a fault");
            assert!(parts.iter().all(|part| faults[0].contains(part)) && faults.len() == 1, "{faults:?} for {text}");
        }
    }
}
