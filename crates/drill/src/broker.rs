//! The Kafka of a native fleet: the embedded broker inside the drill, or a real Kafka started by `scripts/kafka`.
//!
//! Both have one node or several, and keep their data over a stop and a kill. Each call blocks until the node has
//! stopped or responds again. Called by the native fleet and by [`broker_work`](super::broker_work), one call at a
//! time.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use devbroker::{self, Bites, Fault, Settings};
use kafka_share::BrokerAddress;

use super::fact::Pauses;
use super::leaders::{Leaders, Move};
use super::plan::{FaultPlan, What};
use super::shell;

/// The script that starts a real Kafka, relative to the working directory of the drill.
const SCRIPT: &str = "scripts/kafka";
/// How long the script may take. Its first start downloads Kafka.
const LIMIT: Duration = Duration::from_secs(600);
const NOT_OURS: &str = "the drill did not start this Kafka";

/// `broker.session.timeout.ms`: silence of a node after which the other nodes take over; Kafka's default is 9 s.
const FAIL_OVER_MS: u64 = 3_000;
/// A new leader of Kafka, also a single node after its restart, reads the share state of its partition. The read can
/// fail twice while the state has no leader or is loading, and Kafka retries after 1 s and 2 s
/// (`PersisterStateManager`). The embedded broker has the state at once.
const STATE_READ_MS: u64 = 3_000;
/// When a node of Kafka stops in order, every write with `acks=all` waits until the controller has removed the node
/// from the in-sync replicas: 1.4 s measured on two cores.
const IN_SYNC_MS: u64 = 1_500;

/// The Kafka of a native fleet.
#[derive(Clone)]
pub(super) enum Broker {
    Embedded(Arc<devbroker::Broker>),
    /// The nodes.
    Apache(Vec<Apache>),
    /// A Kafka that the drill did not start and does not act on.
    Given(Vec<BrokerAddress>),
}

/// A node of a real Kafka, with its data in a folder.
#[derive(Clone, Debug)]
pub(super) struct Apache {
    data: PathBuf,
    port: u16,
}

/// Settings of each node of a cluster; a single node has Kafka's defaults.
fn settings(nodes: u32) -> Vec<String> {
    if nodes == 1 {
        return Vec::new();
    }
    let replicas = nodes.min(3);
    vec![
        format!("broker.session.timeout.ms={FAIL_OVER_MS}"),
        format!("default.replication.factor={replicas}"),
        format!("min.insync.replicas={}", replicas - 1),
    ]
}

impl Broker {
    pub(super) fn embedded(nodes: u32) -> Result<Self, String> {
        let listen = (0..nodes).map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).collect();
        let mut all = Settings::new(listen);
        for setting in settings(nodes) {
            let (name, value) = setting.split_once('=').unwrap_or_default();
            all.set(name, value)?;
        }
        let broker = devbroker::Broker::start(all).map_err(|error| error.to_string())?;
        Ok(Self::Embedded(Arc::new(broker)))
    }

    /// Starts a real Kafka with its data in `folder`.
    pub(super) fn apache(folder: &Path, nodes: u32) -> Result<Self, String> {
        if !Path::new(SCRIPT).is_file() {
            return Err(format!(
                "there is no {SCRIPT} here; start the drill in the project's folder, or name a running Kafka with --kafka-bootstrap-servers"
            ));
        }
        let data = folder.join("kafka");
        if data.exists() {
            std::fs::remove_dir_all(&data).map_err(|error| format!("{}: {error}", data.display()))?;
        }
        let data = std::path::absolute(&data).map_err(|error| format!("{}: {error}", data.display()))?;
        let (path, count) = (data.to_string_lossy().into_owned(), nodes.to_string());
        let several = if nodes == 1 { Vec::new() } else { vec!["--nodes", &count] };
        let addresses =
            start(&["--port", "auto", "--data", &path].iter().copied().chain(several).collect::<Vec<_>>(), nodes)?;
        let ports: Option<Vec<u16>> =
            addresses.trim().split(',').map(|address| address.rsplit(':').next()?.parse().ok()).collect();
        let ports = ports.filter(|ports| ports.len() == nodes as usize);
        let ports = ports.ok_or_else(|| format!("{SCRIPT} start printed {addresses:?}; expected {nodes} addresses"))?;
        let folder = |index: usize| if nodes == 1 { data.clone() } else { data.join((index + 1).to_string()) };
        let all = ports.into_iter().enumerate().map(|(index, port)| Apache { data: folder(index), port });
        Ok(Self::Apache(all.collect()))
    }

    pub(super) fn addresses(&self) -> Vec<BrokerAddress> {
        let local = |port| BrokerAddress::new("127.0.0.1", port);
        match self {
            Self::Embedded(broker) => broker.addresses().iter().map(|address| local(address.port())).collect(),
            Self::Apache(nodes) => nodes.iter().map(|node| local(node.port)).collect(),
            Self::Given(addresses) => addresses.clone(),
        }
    }

    /// Number of nodes that the drill can act on.
    pub(super) fn nodes(&self) -> u32 {
        match self {
            Self::Embedded(broker) => broker.addresses().len() as u32,
            Self::Apache(nodes) => nodes.len() as u32,
            Self::Given(_) => 0,
        }
    }

    /// Pauses that the broker itself causes when a node stops, fails or starts.
    pub(super) fn pauses(&self) -> Pauses {
        let fail_over_ms = FAIL_OVER_MS;
        match self {
            Self::Apache(_) if self.nodes() < 2 => Pauses { state_read_ms: STATE_READ_MS, ..Pauses::default() },
            _ if self.nodes() < 2 => Pauses::default(),
            Self::Apache(_) => Pauses { fail_over_ms, state_read_ms: STATE_READ_MS, in_sync_ms: IN_SYNC_MS },
            _ => Pauses { fail_over_ms, ..Pauses::default() },
        }
    }

    /// Name of a node in the ledger.
    pub(super) fn process(&self, node: u32) -> String {
        if self.nodes() > 1 { format!("broker_{node}") } else { "broker".to_owned() }
    }

    /// Name of this kind of broker.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded broker",
            Self::Apache(_) => "Apache Kafka",
            Self::Given(_) => "a running Kafka",
        }
    }

    /// Whether the broker supports this kind of action.
    ///
    /// # Errors
    /// The reason, and what the user can do.
    pub(super) fn can(&self, what: What) -> Result<(), String> {
        match (self, what) {
            (Self::Given(_), what) if what.has_broker() => Err(
                "the drill does not act on a running Kafka; use BROKER=embedded or BROKER=apache, or a plan without it"
                    .to_owned(),
            ),
            (_, What::RollBrokers | What::MoveLeader) if self.nodes() < 2 => {
                Err("the broker has one node; set brokers = 3 under [fleet] of the plan".to_owned())
            }
            (Self::Apache(_) | Self::Given(_), What::Fault) => {
                Err("only the embedded broker has faults on demand".to_owned())
            }
            (Self::Apache(_), What::CutBroker) => Err("only the embedded broker can be cut off".to_owned()),
            _ => Ok(()),
        }
    }

    /// Kills a node, or stops it in order.
    pub(super) fn stop(&self, node: u32, kill: bool) -> Result<(), String> {
        match self {
            Self::Embedded(broker) => {
                let node = broker.node(node as i32);
                if kill {
                    node.kill()
                } else {
                    node.stop()
                }
                Ok(())
            }
            Self::Apache(nodes) => {
                let data = of(nodes, node)?.data.to_string_lossy();
                let arguments = ["stop", "--data", &data, "--kill"];
                script(if kill { &arguments } else { &arguments[..3] }).map(drop)
            }
            Self::Given(_) => Err(NOT_OURS.to_owned()),
        }
    }

    /// Starts a node again with its data and address.
    pub(super) fn start(&self, node: u32) -> Result<(), String> {
        match self {
            Self::Embedded(broker) => broker.node(node as i32).revive().map_err(|error| error.to_string()),
            Self::Apache(nodes) => {
                let Apache { data, port } = of(nodes, node)?;
                start(&["--port", &port.to_string(), "--data", &data.to_string_lossy()], self.nodes()).map(drop)
            }
            Self::Given(_) => Err(NOT_OURS.to_owned()),
        }
    }

    /// Makes a node the leader of a partition; a real Kafka only gets the request. Returns whether the leader has
    /// moved.
    pub(super) fn move_leader(&self, planned: &Move, leaders: &Leaders) -> Result<bool, String> {
        if let Self::Embedded(broker) = self {
            broker.move_leader(&planned.topic, planned.partition, planned.to);
        } else if !leaders.has_moved(planned)? {
            leaders.elect(planned)?;
        }
        leaders.has_moved(planned)
    }

    /// Injects a fault at the next request of a kind. The result counts how often it took effect; `None`: not
    /// supported.
    pub(super) fn fault(&self, (action, kind, client): FaultPlan) -> Option<Bites> {
        let Self::Embedded(broker) = self else { return None };
        Some(broker.inject(Fault::new(action).at(kind).of_client(client)))
    }

    /// Freezes a node, or cuts it off from the network.
    pub(super) fn silence(&self, node: u32, cut: bool) -> Result<(), String> {
        match self {
            Self::Embedded(broker) => {
                let node = broker.node(node as i32);
                if cut {
                    node.cut()
                } else {
                    node.freeze()
                }
                Ok(())
            }
            Self::Apache(nodes) => signal(of(nodes, node)?, "-STOP"),
            Self::Given(_) => Err(NOT_OURS.to_owned()),
        }
    }

    /// Ends a freeze or a cut.
    pub(super) fn thaw(&self, node: u32) -> Result<(), String> {
        match self {
            Self::Embedded(broker) => {
                broker.node(node as i32).thaw();
                Ok(())
            }
            Self::Apache(nodes) => signal(of(nodes, node)?, "-CONT"),
            Self::Given(_) => Err(NOT_OURS.to_owned()),
        }
    }
}

fn of(nodes: &[Apache], node: u32) -> Result<&Apache, String> {
    let index = (node as usize).checked_sub(1);
    let found = index.and_then(|index| nodes.get(index));
    found.ok_or_else(|| format!("there is no node {node}; expected 1 to {}", nodes.len()))
}

fn signal(node: &Apache, signal: &str) -> Result<(), String> {
    let pid = script(&["pid", "--data", &node.data.to_string_lossy()])?;
    shell::run(Command::new("kill").args([signal, pid.trim()]), LIMIT).map(drop)
}

/// Starts one node or all, with the settings of a cluster of this many nodes.
fn start(arguments: &[&str], nodes: u32) -> Result<String, String> {
    let mut settings = settings(nodes);
    if nodes > 1 {
        // Only for a real Kafka: the nodes of the embedded broker send no heartbeats.
        settings.push("broker.heartbeat.interval.ms=500".to_owned());
    }
    let set = settings.iter().flat_map(|setting| ["--set", setting.as_str()]);
    script(&["start"].into_iter().chain(arguments.iter().copied()).chain(set).collect::<Vec<_>>())
}

fn script(arguments: &[&str]) -> Result<String, String> {
    let word = arguments.first().unwrap_or(&"");
    shell::run(Command::new(SCRIPT).args(arguments), LIMIT).map_err(|why| format!("{SCRIPT} {word} failed: {why}"))
}
