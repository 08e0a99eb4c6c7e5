//! The file of a fleet: addresses, settings, and a shell command for each action.
//!
//! It does not depend on plans. All faults of a file are found here, before a command runs. Called by `cli`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;

use kafka_share::BrokerAddress;
use program::options::values;
use program::options::{Faults, positive};

use super::super::place::GatewayAddress;
use super::super::place::Place;
use super::super::plan::{What, in_one_line};

/// The commands of an action.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Deed {
    what: What,
    pub(super) command: &'static str,
    /// The signal that the command sends, if any.
    pub(super) signal: &'static str,
    /// The command that undoes it.
    pub(super) after: Option<&'static str>,
}

/// The commands of all actions. For an action with two entries, the first whose command the fleet has counts.
static DEEDS: [Deed; 17] = [
    deed(What::StopWorker, "stop-worker", "SIGTERM", Some("start-worker")),
    deed(What::RestartWorker, "restart-worker", "SIGTERM", None),
    deed(What::RestartWorker, "stop-worker", "SIGTERM", Some("start-worker")),
    deed(What::SecondSignal, "second-signal", "SIGTERM", Some("start-worker")),
    deed(What::KillWorker, "kill-worker", "SIGKILL", Some("start-worker")),
    deed(What::FreezeWorker, "freeze-worker", "SIGSTOP", Some("thaw-worker")),
    deed(What::QuietWorker, "quiet-worker", "SIGUSR1", Some("resume-worker")),
    deed(What::StartWorker, "start-worker", "", None),
    deed(What::Scale, "scale", "", None),
    deed(What::StopGateway, "stop-gateway", "SIGTERM", Some("start-gateway")),
    deed(What::RestartGateway, "restart-gateway", "SIGTERM", None),
    deed(What::RestartGateway, "stop-gateway", "SIGTERM", Some("start-gateway")),
    deed(What::KillGateway, "kill-gateway", "SIGKILL", Some("start-gateway")),
    deed(What::StopBroker, "stop-kafka", "SIGTERM", Some("start-kafka")),
    deed(What::RestartBroker, "stop-kafka", "SIGTERM", Some("start-kafka")),
    deed(What::KillBroker, "kill-kafka", "SIGKILL", Some("start-kafka")),
    deed(What::FreezeBroker, "freeze-kafka", "SIGSTOP", Some("thaw-kafka")),
];
/// Commands that print how a process ended: its exit code, or 128 and the number of the signal.
pub(super) const EXIT_CODES: [&str; 2] = ["exit-code", "gateway-exit-code"];

const fn deed(what: What, command: &'static str, signal: &'static str, after: Option<&'static str>) -> Deed {
    Deed { what, command, signal, after }
}

/// A fleet and its commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetFile {
    /// The path of the file.
    pub name: String,
    /// Addresses and settings of the fleet.
    pub place: Place,
    /// Command that prints a line for each running worker: its name, and its `WORKER_ID` if that differs.
    pub workers: String,
    /// How long a command may take.
    pub limit: Duration,
    /// Commands by name.
    pub commands: BTreeMap<String, String>,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    gateways: Vec<String>,
    #[serde(default)]
    operators: Vec<String>,
    kafka_bootstrap_servers: Vec<String>,
    tasks_topic: Option<String>,
    results_topic: Option<String>,
    worker_group: Option<String>,
    drain_timeout: Option<String>,
    gateway_grace: Option<String>,
    worker_timeout: Option<String>,
    concurrency: Option<u32>,
    max_deliveries: Option<u32>,
    command_timeout: Option<String>,
    workers: String,
    #[serde(default)]
    commands: BTreeMap<String, String>,
}

impl FleetFile {
    /// Reads a file; `name` is its path. Returns all faults, a line each.
    ///
    /// # Errors
    /// A syntax error alone, or else every wrong value with the expected one.
    pub fn read(name: &str, text: &str) -> Result<Self, Vec<String>> {
        let written: Written = toml::from_str(text).map_err(|error| vec![in_one_line(text, &error)])?;
        let mut faults = Faults::default();
        let mut place = Place::of(Vec::new(), Vec::new());
        let gateways = |text: &str| values::list(text, GatewayAddress::read);
        faults.set(&mut place.gateways, "gateways", &written.gateways.join(","), gateways);
        if !written.operators.is_empty() {
            let text = written.operators.join(",");
            faults.set(&mut place.operators, "operators", &text, gateways);
            if written.operators.len() != written.gateways.len() {
                let expected = format!("is not one for each gateway; expected {}", written.gateways.len());
                faults.add("operators", &text, &expected);
            }
        }
        let brokers = written.kafka_bootstrap_servers.join(",");
        faults.set(&mut place.bootstrap, "kafka_bootstrap_servers", &brokers, BrokerAddress::list);
        let topic = |text: &str| values::topic(text, values::TOPIC_LIMIT);
        for (field, name, text) in [
            (&mut place.tasks_topic, "tasks_topic", written.tasks_topic),
            (&mut place.results_topic, "results_topic", written.results_topic),
        ] {
            if let Some(text) = text {
                faults.set(field, name, &text, topic);
            }
        }
        if let Some(text) = written.worker_group {
            let group = |text: &str| values::printable(text, values::TOPIC_LIMIT);
            faults.set(&mut place.group, "worker_group", &text, group);
        }
        let mut limit = Duration::from_secs(90);
        for (field, name, text) in [
            (&mut place.drain_timeout, "drain_timeout", written.drain_timeout),
            (&mut place.gateway_grace, "gateway_grace", written.gateway_grace),
            (&mut place.worker_timeout, "worker_timeout", written.worker_timeout),
            (&mut limit, "command_timeout", written.command_timeout),
        ] {
            if let Some(text) = text {
                faults.set(field, name, &text, positive);
            }
        }
        for (field, name, number, range) in [
            (&mut place.concurrency, "concurrency", written.concurrency, 1..=1024),
            (&mut place.max_deliveries, "max_deliveries", written.max_deliveries, 2..=7),
        ] {
            if let Some(number) = number {
                faults.set(field, name, &number.to_string(), |text| values::number(text, &range));
            }
        }
        let Written { workers, commands, .. } = written;
        check(&commands, &mut faults);
        faults.none_or(Self { name: name.to_owned(), place, workers, limit, commands }).map_err(|error| error.faults)
    }

    /// The commands of an action on this fleet.
    ///
    /// # Errors
    /// The fleet does not support the action.
    pub(super) fn deed(&self, what: What) -> Result<&'static Deed, String> {
        let deeds = || DEEDS.iter().filter(|deed| deed.what == what);
        let Some(last) = deeds().next_back() else {
            return Err("only a broker that the drill starts supports it".to_owned());
        };
        let found = deeds().find(|deed| self.commands.contains_key(deed.command));
        found.ok_or_else(|| format!("{} has no command {}", self.name, last.command))
    }
}

fn check(commands: &BTreeMap<String, String>, faults: &mut Faults) {
    let all = DEEDS.iter().flat_map(|deed| [Some(deed.command), deed.after]).flatten().chain(EXIT_CODES);
    let known: BTreeSet<&str> = all.collect();
    for name in commands.keys().map(String::as_str) {
        let deed = DEEDS.iter().find(|deed| deed.command == name);
        let missing = deed.and_then(|deed| deed.after).filter(|after| !commands.contains_key(*after));
        if !known.contains(name) {
            let known: Vec<&str> = known.iter().copied().collect();
            faults.add("commands", name, &format!("is not a known command; expected some of {}", known.join(", ")));
        } else if let Some(missing) = missing {
            faults.add("commands", name, &format!("needs {missing} beside it, which is missing"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::plan::Plan;
    use super::*;

    const FLEET: &str = "gateways = [\"http://a:1\"]\nkafka_bootstrap_servers = [\"b:2\"]\nworkers = \"list\"\n";

    #[test]
    fn shipped_fleets_go_with_the_shipped_plans() {
        let plans = [
            include_str!("../../../../drills/default.toml"),
            include_str!("../../../../drills/short.toml"),
            include_str!("../../../../drills/random.toml"),
            include_str!("../../../../drills/deploys.toml"),
            include_str!("../../../../drills/cluster.toml"),
        ];
        for (name, text, all) in [
            ("compose", include_str!("../../../../drills/fleets/compose.toml"), true),
            ("make", include_str!("../../../../drills/fleets/make.toml"), true),
            ("systemd", include_str!("../../../../drills/fleets/systemd.toml"), false),
            ("kubernetes", include_str!("../../../../drills/fleets/kubernetes.toml"), false),
        ] {
            let fleet = FleetFile::read(name, text).unwrap_or_else(|faults| panic!("{name}: {faults:?}"));
            assert!(fleet.deed(What::RestartWorker).is_ok() && fleet.deed(What::Scale).is_ok() || name == "systemd");
            for plan in plans {
                let plan = Plan::read("test", plan).expect("a plan");
                let done = plan.actions.iter().filter(|action| fleet.deed(action.what).is_ok());
                let left_out = plan.actions.iter().filter(|action| fleet.deed(action.what).is_err());
                assert!(done.count() > 0 || plan.actions.iter().all(|action| action.what.has_broker()), "{name}");
                // The embedded broker of `make up` loses its data when it stops, so its fleet has no actions on it.
                let possible = |what: What| !what.is_left_out() && (name != "make" || !what.has_broker());
                let missing = left_out.map(|action| action.what).find(|what| possible(*what) && *what != What::Pause);
                assert!(!all || missing.is_none(), "{name}: {missing:?}");
            }
        }
    }

    #[test]
    fn a_file_says_where_the_fleet_is_and_what_its_actions_are() {
        let settings = "concurrency = 3\nmax_deliveries = 4\nworker_group = \"my group\"";
        let text = format!("{FLEET}{settings}\n[commands]\nstop-worker = \"x\"\nstart-worker = \"y\"");
        let fleet = FleetFile::read("f.toml", &text).expect("a fleet");
        assert_eq!((fleet.place.concurrency, fleet.place.max_deliveries, fleet.place.gateways.len()), (3, 4, 1));
        assert_eq!((fleet.place.group.as_str(), fleet.place.drain_timeout), ("my group", Duration::from_secs(30)));
        assert_eq!(fleet.place.operators(), fleet.place.gateways, "one address serves all");
        let apart = FleetFile::read("f.toml", &format!("operators = [\"http://a:2\"]\n{text}")).expect("a fleet");
        assert_eq!(apart.place.operators()[0].to_string(), "http://a:2");
        let restart = fleet.deed(What::RestartWorker).expect("by a stop and a start");
        assert_eq!((restart.command, restart.after), ("stop-worker", Some("start-worker")));
        assert_eq!(fleet.deed(What::KillWorker), Err("f.toml has no command kill-worker".to_owned()));
        assert!(fleet.deed(What::MoveLeader).is_err());
    }

    #[test]
    fn a_fault_names_the_value_and_the_expected_value() {
        for (text, parts) in [
            (FLEET.replace("workers", "worker"), &["line 3", "unknown field", "worker", "workers"][..]),
            ("gateways = []\nkafka_bootstrap_servers = []".to_owned(), &["missing field", "workers"]),
            (FLEET.replace("http:", "https:"), &["gateways", "https://a:1", "http://host:port"]),
            (format!("operators = [\"http://a:2\", \"http://b:2\"]\n{FLEET}"), &["operators", "one for each gateway"]),
            (FLEET.replace("b:2", "b"), &["kafka_bootstrap_servers", "\"b\"", "expected"]),
            (format!("{FLEET}concurrency = 0"), &["concurrency", "\"0\"", "from 1 to 1024"]),
            (format!("{FLEET}max_deliveries = 8"), &["max_deliveries", "\"8\"", "from 2 to 7"]),
            (format!("{FLEET}worker_group = \"é\""), &["worker_group", "1 to 249 printable ASCII"]),
            (format!("{FLEET}drain_timeout = \"5\""), &["drain_timeout", "\"5\"", "for example 30s"]),
            (format!("{FLEET}[commands]\nstop = \"x\""), &["commands", "\"stop\"", "stop-kafka, stop-worker"]),
            (format!("{FLEET}[commands]\nstop-worker = \"x\""), &["stop-worker", "needs start-worker beside it"]),
        ] {
            let faults = FleetFile::read("f", &text).expect_err("a fault");
            assert!(parts.iter().all(|part| faults[0].contains(part)) && faults.len() == 1, "{faults:?} for {text}");
        }
    }
}
