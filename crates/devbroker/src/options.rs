//! The program `devbroker`: reads its options and runs one broker until a signal.
//!
//! Called by the binary.

use std::net::{Ipv4Addr, SocketAddr};

use clap::Parser;
use log::LevelFilter;

use super::Broker;
use super::settings::{MEMORY_LIMIT, Settings};
use program::exit::ExitCode;
use program::logging::{self, LogFormat};
use program::options::{Effective, Environment, Faults, values};
use program::signals::Signals;

/// Configuration of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevbrokerConfig {
    /// Settings of the broker.
    pub settings: Settings,
    /// `LOG_LEVEL`
    pub log_level: LevelFilter,
}

/// A Kafka broker in memory, for trying out and for tests: nothing it is given survives its end
#[derive(Parser)]
#[command(name = "devbroker", version, args_override_self = true, next_line_help = true, after_help = AFTER)]
struct Options {
    /// Where to listen; addresses of the loopback only
    #[arg(long, env = "DEVBROKER_ADDR", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9092")]
    addr: String,
    /// Records that it keeps, in MiB; when they are full, producing fails as with a full disk
    #[arg(long, env = "DEVBROKER_MEMORY", value_name = "MIB", default_value = "512")]
    memory: String,
    /// A setting of the broker, by Kafka's name; may be given more than once
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The version of Kafka to pose as: 4.2, 4.3 or 4.4; what ApiVersions tells and the settings follow it
    #[arg(long, env = "DEVBROKER_POSE", value_name = "VERSION", default_value = "4.4")]
    pose: String,
    /// Least severe lines to log: error, warn, info, debug, trace
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

const AFTER: &str = "\
A flag counts before its variable; an empty variable counts as unset.

Exit codes:
  0  stopped by a signal
  1  fatal error while running (one line says which)
  2  wrong usage or configuration

Signals: SIGTERM, SIGINT and SIGHUP stop it at once.

Example:
  devbroker --addr 127.0.0.1:9092";

program::configuration!(DevbrokerConfig);

impl DevbrokerConfig {
    fn read(options: &Options, _: &Environment, _: &mut Effective, faults: &mut Faults) -> Self {
        let mut address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9092));
        faults.set(&mut address, "DEVBROKER_ADDR", &options.addr, |text| {
            let address: Option<SocketAddr> =
                text.parse().ok().filter(|address: &SocketAddr| address.ip().is_loopback());
            address.ok_or_else(|| "expected a loopback address and a port, for example 127.0.0.1:9092".to_owned())
        });
        let mut settings = Settings::new(vec![address]);
        let mut mebibytes = MEMORY_LIMIT >> 20;
        faults.set(&mut mebibytes, "DEVBROKER_MEMORY", &options.memory, |text| values::number(text, &(1..=1 << 20)));
        settings.memory_limit = mebibytes << 20;
        faults.set(&mut settings.pose, "DEVBROKER_POSE", &options.pose, str::parse);
        for pair in &options.set {
            let set = match pair.split_once('=') {
                Some((name, value)) => settings.set(name, value),
                None => Err("expected KEY=VALUE".to_owned()),
            };
            if let Err(problem) = set {
                faults.add("--set", pair, &problem);
            }
        }
        let mut log_level = LevelFilter::Info;
        faults.set(&mut log_level, "LOG_LEVEL", &options.log_level, values::log_level);
        Self { settings, log_level }
    }
}

/// Runs a broker until a signal.
///
/// Exit codes: [`ExitCode::Drained`] after a signal; [`ExitCode::Fatal`] if it cannot listen, or one of its threads
/// died.
pub fn run(config: DevbrokerConfig, signals: &Signals) -> ExitCode {
    logging::init(config.log_level, LogFormat::Text);
    let mebibytes = config.settings.memory_limit >> 20;
    let broker = match Broker::start(config.settings) {
        Ok(broker) => broker,
        Err(error) => {
            log::error!("{error}");
            return ExitCode::Fatal;
        }
    };
    log::info!("embedded broker listens on {}", broker.address());
    log::warn!("it keeps everything in memory, {mebibytes} MiB of records at most: for trying out and testing only");
    crossbeam_channel::select! {
        recv(signals.first.triggered()) -> _ => {}
        recv(broker.died().triggered()) -> _ => return ExitCode::Fatal,
    }
    log::info!("embedded broker received {}, stops; its records are gone", signals.name());
    drop(broker);
    ExitCode::Drained
}
