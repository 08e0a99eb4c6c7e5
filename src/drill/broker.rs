//! The Kafka of a fleet that the drill has started: the embedded broker inside the drill itself, or a real one through `scripts/kafka`.
//!
//! Both keep what they have over a stop and a kill. Each call blocks until the broker is stopped or answers again. Called by the native
//! fleet, one call at a time.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::devbroker::{self, Action, Bites, Fault, Kind, Settings};
use crate::kafka::BrokerAddress;

use super::plan::{FaultPlan, NetworkFault, RequestKind};

/// The script beside which a drill with a real broker is started.
const SCRIPT: &str = "scripts/kafka";

/// See the module documentation.
#[derive(Clone)]
pub(super) enum Broker {
    Embedded(Arc<devbroker::Broker>),
    Apache(Apache),
    /// Somebody else's: nothing can be done to it.
    Given(Vec<BrokerAddress>),
}

/// A real broker, with its data in a folder.
#[derive(Clone, Debug)]
pub(super) struct Apache {
    data: PathBuf,
    port: u16,
}

impl Broker {
    pub(super) fn embedded() -> Result<Self, String> {
        let settings = Settings::new(vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))]);
        let broker = devbroker::Broker::start(settings).map_err(|error| error.to_string())?;
        Ok(Self::Embedded(Arc::new(broker)))
    }

    /// A real one with its data in `folder`.
    pub(super) fn apache(folder: &Path) -> Result<Self, String> {
        if !Path::new(SCRIPT).is_file() {
            return Err(format!(
                "there is no {SCRIPT} here; start the drill in the project's folder, or name a Kafka that runs with --kafka-bootstrap-servers"
            ));
        }
        let data = folder.join("kafka");
        if data.exists() {
            std::fs::remove_dir_all(&data).map_err(|error| format!("{}: {error}", data.display()))?;
        }
        let data = std::path::absolute(&data).map_err(|error| format!("{}: {error}", data.display()))?;
        let address = script(&["start", "--port", "auto", "--data", &data.to_string_lossy()])?;
        let port = address.trim().rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.ok_or_else(|| format!("{SCRIPT} start said {address:?}; expected an address"))?;
        Ok(Self::Apache(Apache { data, port }))
    }

    pub(super) fn addresses(&self) -> Vec<BrokerAddress> {
        match self {
            Self::Embedded(broker) => vec![BrokerAddress::new("127.0.0.1", broker.address().port())],
            Self::Apache(apache) => vec![BrokerAddress::new("127.0.0.1", apache.port)],
            Self::Given(addresses) => addresses.clone(),
        }
    }

    /// In a word or two.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded broker",
            Self::Apache(_) => "Apache Kafka",
            Self::Given(_) => "a Kafka that ran",
        }
    }

    /// Ends it: with SIGKILL, or as it should be ended.
    pub(super) fn stop(&self, kill: bool) -> Result<(), String> {
        match self {
            Self::Embedded(broker) => {
                if kill {
                    broker.nodes().kill()
                } else {
                    broker.nodes().stop()
                }
                Ok(())
            }
            Self::Apache(Apache { data, .. }) => {
                let data = data.to_string_lossy();
                let arguments = ["stop", "--data", &data, "--kill"];
                script(if kill { &arguments } else { &arguments[..3] }).map(drop)
            }
            Self::Given(_) => Err("it is not the drill's".to_owned()),
        }
    }

    /// Starts it again, with what it had, where it was.
    pub(super) fn start(&self) -> Result<(), String> {
        match self {
            Self::Embedded(broker) => broker.nodes().revive().map_err(|error| error.to_string()),
            Self::Apache(Apache { data, port }) => {
                script(&["start", "--port", &port.to_string(), "--data", &data.to_string_lossy()]).map(drop)
            }
            Self::Given(_) => Err("it is not the drill's".to_owned()),
        }
    }

    /// Has a fault done to the next request of this kind: `None` where that cannot be had. Tells how often it was done.
    pub(super) fn fault(&self, plan: FaultPlan, length: Duration) -> Option<Bites> {
        let Self::Embedded(broker) = self else { return None };
        let action = match plan.fault {
            NetworkFault::CutBefore => Action::CutBefore,
            NetworkFault::CutAfter => Action::CutAfter,
            NetworkFault::Delay => Action::Delay(length),
            NetworkFault::AnswerTwice => Action::AnswerTwice,
        };
        let kind = match plan.request {
            RequestKind::Produce => Kind::Produce,
            RequestKind::Fetch => Kind::Fetch,
            RequestKind::ShareFetch => Kind::ShareFetch,
            RequestKind::ShareAcknowledge => Kind::ShareAcknowledge,
            RequestKind::ShareGroupHeartbeat => Kind::ShareGroupHeartbeat,
        };
        let client = if plan.of_worker { "worker" } else { "gateway" };
        Some(broker.inject(Fault::new(action).at(kind).of_client(client)))
    }

    /// Freezes it, or thaws it.
    pub(super) fn freeze(&self, frozen: bool) -> Result<(), String> {
        match self {
            Self::Embedded(broker) if frozen => broker.nodes().freeze(),
            Self::Embedded(broker) => broker.nodes().thaw(),
            Self::Apache(Apache { data, .. }) => {
                let pid = script(&["pid", "--data", &data.to_string_lossy()])?;
                let signal = if frozen { "-STOP" } else { "-CONT" };
                run(Command::new("kill").args([signal, pid.trim()]))?;
            }
            Self::Given(_) => return Err("it is not the drill's".to_owned()),
        }
        Ok(())
    }
}

fn script(arguments: &[&str]) -> Result<String, String> {
    run(Command::new(SCRIPT).args(arguments))
}

/// Runs a command to its end; its stdout, or why it failed, in its own words.
pub(super) fn run(command: &mut Command) -> Result<String, String> {
    use std::os::unix::process::CommandExt;
    // A Ctrl-C is for the drill, which ends what it has begun.
    let output = command.stdin(Stdio::null()).process_group(0).output();
    let name = command.get_program().to_string_lossy().into_owned();
    let output = output.map_err(|error| format!("{name} does not start: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("without a word");
    let word = command.get_args().next().unwrap_or_default().to_string_lossy().into_owned();
    Err(format!("{name} {word} failed ({}): {last}", output.status))
}
