//! The fleet of a run: starts it, or waits until it responds.
//!
//! Called by the run before it starts its threads.

use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use program::logging::escape;
use program::signals::Signals;
use program::stop::Stop;

use super::broker::Broker;
use super::command::CommandFleet;
use super::fleet::{Fleet, Teller};
use super::http::Client;
use super::native::Native;
use super::options::{BrokerChoice, NativeTarget, RunConfig, Target};
use super::place::GatewayAddress;
use super::place::Place;
use super::plan::drawn;
use super::process::{Ears, Happening};

/// How long the drill waits for a gateway at the start.
const GATEWAY_WAIT: Duration = Duration::from_secs(10);

/// The fleet, unless others act on it, with its addresses and settings.
pub(super) type Reached = (Option<Box<dyn Fleet>>, Place);

/// Starts the fleet, or waits until it responds.
///
/// # Errors
/// The missing part, and what the user can do.
pub(super) fn reach(
    config: &RunConfig,
    teller: Teller,
    ears: Ears,
    happenings: &Receiver<Happening>,
    signals: &Signals,
) -> Result<Reached, String> {
    match &config.target {
        Target::Native(target) => native(config, target, teller, ears, happenings, signals),
        Target::Commanded(file) => {
            let place = file.place.clone();
            let fleet = CommandFleet::find((**file).clone(), teller, ears.died)?;
            let help = format!("start it, or correct gateways in {}", file.name);
            wait_for_gateway(&place.gateways, &help, &signals.first)?;
            if config.plan.has_work() {
                check_work(&place.gateways, &signals.first)?;
            }
            Ok((Some(Box::new(fleet)), place))
        }
        Target::Outside(place) => {
            let help = "start the fleet with `make up`, or name the gateway with --gateway";
            wait_for_gateway(&place.gateways, help, &signals.first)?;
            Ok((None, place.clone()))
        }
    }
}

fn native(
    config: &RunConfig,
    target: &NativeTarget,
    teller: Teller,
    ears: Ears,
    happenings: &Receiver<Happening>,
    signals: &Signals,
) -> Result<Reached, String> {
    let folder = &config.folder;
    std::fs::create_dir_all(folder).map_err(|error| format!("the folder {}: {error}", folder.display()))?;
    remove_logs(folder)?;
    check_program(&target.worker, "worker")?;
    check_program(&target.gateway, "gateway")?;
    let nodes = drawn(&config.plan.fleet.brokers, config.seed);
    let broker = match &target.broker {
        BrokerChoice::Embedded => Broker::embedded(nodes)?,
        BrokerChoice::Apache => Broker::apache(folder, nodes)?,
        BrokerChoice::Given(addresses) => Broker::Given(addresses.clone()),
    };
    let native = Native::start(config, target, broker, teller, ears, happenings, &signals.first)?;
    let place = native.place.clone();
    Ok((Some(Box::new(native)), place))
}

/// Removes the logs of an earlier run, which could be taken for logs of this run.
fn remove_logs(folder: &Path) -> Result<(), String> {
    let entries = std::fs::read_dir(folder).map_err(|error| format!("the folder {}: {error}", folder.display()))?;
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.extension().is_some_and(|extension| extension == "log") {
            std::fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(())
}

fn check_program(path: &Path, name: &str) -> Result<(), String> {
    if path.is_file() {
        return Ok(());
    }
    Err(format!("there is no program {}; build it (make build), or name another with --{name}-program", path.display()))
}

fn wait_for_gateway(gateways: &[GatewayAddress], help: &str, signal: &Stop) -> Result<(), String> {
    let deadline = Instant::now() + GATEWAY_WAIT;
    let mut clients: Vec<Client> =
        gateways.iter().map(|gateway| Client::new(gateway.clone(), signal.clone())).collect();
    let names = || gateways.iter().map(GatewayAddress::to_string).collect::<Vec<_>>().join(", ");
    loop {
        let mut why = String::new();
        for client in &mut clients {
            match client.get("/livez", Duration::from_secs(2)) {
                Ok(_) => return Ok(()),
                Err(failure) => why = failure.to_string(),
            }
        }
        if signal.is_triggered() {
            return Err(format!("ended by a signal before a gateway answered at {}", names()));
        }
        if Instant::now() >= deadline {
            return Err(format!(
                "no gateway answers at {} ({}) within {} s; {help}",
                names(),
                escape(&why),
                GATEWAY_WAIT.as_secs()
            ));
        }
        // The loop checks the signal.
        let _ = signal.sleep(Duration::from_millis(200));
    }
}

/// Checks that gateways accept `work_ms`, by an invalid request that never makes a task.
fn check_work(gateways: &[GatewayAddress], signal: &Stop) -> Result<(), String> {
    for gateway in gateways {
        let mut client = Client::new(gateway.clone(), signal.clone());
        let request = r#"{"text": "a", "work_ms": "none"}"#;
        let refused = client.post("/analyze", "", request, Duration::from_secs(2));
        if refused.is_ok_and(|response| String::from_utf8_lossy(&response.body).contains("ALLOW_WORK_MS")) {
            return Err(format!(
                "{gateway} does not accept work_ms, which the tasks of the plan have; start the fleet again with \
                 ALLOW_WORK_MS=1, for example: make down; ALLOW_WORK_MS=1 make up"
            ));
        }
    }
    Ok(())
}
