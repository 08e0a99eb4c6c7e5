//! The command line of the fleet: a command and its options. Nothing here starts or stops anything.
//!
//! Values that `up` saves stay texts in [`Settings`], because their programs read them again. Called by the binary.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use program::options::{Effective, Environment, Faults, positive, values};

use crate::settings::{Settings, kafka_kind};

/// A command of the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FleetCommand {
    /// starts what does not run yet, and waits until everything is ready
    Up,
    /// stops the gateway, the workers and Kafka, in this order, by SIGTERM, and waits for each
    Down,
    /// restarts all workers one after another, or WORKER: SIGTERM, start, wait until ready
    RestartWorker,
    /// sends SIGKILL to the first worker, to WORKER, or with ALL=1 to all; a killed worker stays dead until scale-up or
    /// up
    KillWorker,
    /// stops the workers with the highest numbers until WORKERS run (1)
    ScaleDown,
    /// starts workers until WORKERS run (3)
    ScaleUp,
    /// prints what runs, and the fleet as the gateway sees it
    Status,
    /// prints the response to GET /health; exit code 0 if its status is 200
    Health,
    /// prints the last lines of all logs with the program's name, and then each new line; FOLLOW=0: no new lines
    Logs,
    /// runs drill watch: sends load until Ctrl-C or for the duration FOR, and prints a verdict
    TestShutdown,
    /// sends SIGTERM to the first worker or WORKER, which stays stopped; SIGNALS=2: a second SIGTERM after 0.3 s
    StopWorker,
    /// starts the first stopped or killed worker, or WORKER, and waits until it is ready
    StartWorker,
    /// sends SIGSTOP to the first running worker, or to WORKER
    FreezeWorker,
    /// sends SIGCONT to the first frozen worker, or to WORKER
    ThawWorker,
    /// sends SIGUSR1 to all workers, or to WORKER: it takes no new tasks and stays in its group
    QuietWorker,
    /// sends SIGUSR2 to all workers, or to WORKER: it takes tasks again
    ResumeWorker,
    /// sends SIGTERM to the gateway, which stays stopped; SIGNALS=2: a second SIGTERM after 0.3 s
    StopGateway,
    /// sends SIGKILL to the gateway, which stays dead
    KillGateway,
    /// starts the gateway again, and waits until it is ready
    StartGateway,
    /// stops and starts the gateway
    RestartGateway,
    /// sends SIGTERM to Kafka; not to the embedded broker, which would lose its data
    StopKafka,
    /// sends SIGKILL to Kafka; not to the embedded broker
    KillKafka,
    /// starts Kafka again with its data, and waits until it answers
    StartKafka,
    /// sends SIGSTOP to Kafka, also to the embedded broker
    FreezeKafka,
    /// sends SIGCONT to Kafka
    ThawKafka,
    /// prints a line for each worker that runs, separated by tabs: name, WORKER_ID, pid, running or frozen
    Workers,
    /// starts a program and waits for its end
    #[value(hide = true)]
    Keep,
}

impl FleetCommand {
    /// The parts of a command such as `stop-worker`; `None` for commands for the whole fleet.
    pub(crate) fn parts(self) -> Option<(Verb, Target)> {
        let value = self.to_possible_value()?;
        let (verb, target) = value.get_name().split_once('-')?;
        Some((Verb::from_str(verb, false).ok()?, Target::from_str(target, false).ok()?))
    }
}

/// What a command does to a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Verb {
    Stop,
    Kill,
    Start,
    Restart,
    Freeze,
    Thaw,
    Quiet,
    Resume,
}

/// The program that a command acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    Worker,
    Gateway,
    Kafka,
}

/// A command of the fleet with its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetConfig {
    /// The command.
    pub command: FleetCommand,
    /// For `keep`: the name of the program, and its file.
    pub kept: Vec<String>,
    /// `STACK_RUN`: the folder with the state, the logs and the locks.
    pub run: PathBuf,
    /// `WORKER`
    pub worker: Option<String>,
    /// `WORKERS`
    pub workers: Option<usize>,
    /// `ALL`
    pub all: bool,
    /// `SIGNALS` is 2.
    pub twice: bool,
    /// `FOLLOW`
    pub follow: bool,
    /// Settings from the command line and the environment; other settings are those of `up`.
    pub given: Settings,
}

/// The fleet of `make up` as background processes of this machine: Kafka, a gateway and workers
#[derive(Parser)]
#[command(name = "fleet", version, args_override_self = true, next_line_help = true, after_help = AFTER)]
struct Options {
    /// What to do
    #[arg(value_enum, value_name = "COMMAND")]
    command: FleetCommand,
    #[arg(hide = true)]
    kept: Vec<String>,
    /// Worker that the command acts on
    #[arg(long, env = "WORKER", value_name = "NAME")]
    worker: Option<String>,
    /// Number of workers afterwards, 1 to 1000 [default: 3; scale-down: 1]
    #[arg(long, env = "WORKERS", value_name = "NUMBER")]
    workers: Option<String>,
    /// 1: kill-worker kills all workers
    #[arg(long, env = "ALL", value_name = "0|1", default_value = "0")]
    all: String,
    /// 2: stop-worker and stop-gateway send a second SIGTERM after 0.3 s
    #[arg(long, env = "SIGNALS", value_name = "1|2", default_value = "1")]
    signals: String,
    /// 0: logs ends after the last lines
    #[arg(long, env = "FOLLOW", value_name = "0|1", default_value = "1")]
    follow: String,
    /// Address of the gateway [default: 127.0.0.1:8080]
    #[arg(long, env = "HTTP_ADDR", value_name = "IP:PORT")]
    http_addr: Option<String>,
    /// Kafka that up starts: embedded (in memory), or apache (by scripts/kafka) [default: embedded]
    #[arg(long, env = "KAFKA", value_name = "KAFKA")]
    kafka: Option<String>,
    /// Port of that Kafka on 127.0.0.1 [default: 9092]
    #[arg(long, env = "KAFKA_PORT", value_name = "PORT")]
    kafka_port: Option<String>,
    /// Running Kafka, which the fleet never starts or stops
    #[arg(long, env = "KAFKA_BOOTSTRAP_SERVERS", value_name = "HOST:PORT,...")]
    kafka_bootstrap_servers: Option<String>,
    /// Folder with state, logs and locks
    #[arg(long, env = "STACK_RUN", value_name = "FOLDER", default_value = ".run")]
    stack_run: String,
}

const AFTER: &str = "\
The variables of gateway and worker are passed on. All commands use the settings of `up`.

A command waits for other commands for the same program; up, down and scale wait for all other commands.
While the gateway or Kafka does not run, start, restart and scale say so, and do not wait until workers are ready.

It is run in the folder of the project.

Exit codes:
  0  done
  1  not done, or a program had to be killed (a line says why)
  2  wrong usage or configuration

Example:
  HTTP_ADDR=127.0.0.1:8081 KAFKA_PORT=19092 fleet up";

program::configuration!(FleetConfig);

impl FleetConfig {
    fn read(options: &Options, environment: &Environment, _: &mut Effective, faults: &mut Faults) -> Self {
        let mut config = Self {
            command: options.command,
            kept: options.kept.clone(),
            run: PathBuf::from(&options.stack_run),
            worker: options.worker.clone(),
            workers: None,
            all: false,
            twice: false,
            follow: true,
            given: Settings::of_programs(environment),
        };
        if options.kept.len() != if options.command == FleetCommand::Keep { 2 } else { 0 } {
            faults.note(format!("{:?}: expected one command, see --help", options.kept));
        }
        if let Some(text) = &options.workers {
            let number = |text: &str| values::number(text, &(1..=1000)).map(Some);
            faults.set(&mut config.workers, "WORKERS", text, number);
        }
        faults.set(&mut config.all, "ALL", &options.all, values::switch);
        faults.set(&mut config.follow, "FOLLOW", &options.follow, values::switch);
        faults.set(&mut config.twice, "SIGNALS", &options.signals, |text| {
            values::number(text, &(1..=2)).map(|signals: u8| signals == 2)
        });
        // Here, and not only by the programs: stopping needs it, and must not find out after the signal.
        if let Some(text) = config.given.get("STOP_GRACE_PERIOD") {
            faults.set(&mut (), "STOP_GRACE_PERIOD", text, |text| positive(text).map(drop));
        }
        for (name, is_usable, problem) in [
            (
                "METRICS_ADDR",
                (|port| port == 0) as fn(u16) -> bool,
                "is one port for all workers; expected port 0: each worker logs the port that it gets",
            ),
            (
                "ADMIN_ADDR",
                |port| port != 0,
                "has no fixed port; expected another one than 0, since these commands ask there",
            ),
        ] {
            let address = config.given.get(name).and_then(|text| values::listen_address(text).ok());
            if let Some(address) = address.filter(|it| !is_usable(it.port())) {
                faults.add(name, &address.to_string(), problem);
            }
        }
        let mut set = |name: &str, text: &Option<String>, check: fn(&str) -> values::Read<()>| {
            if let Some(text) = text
                && faults.set(&mut (), name, text, check)
            {
                config.given.set(name, text);
            }
        };
        set("HTTP_ADDR", &options.http_addr, |text| values::listen_address(text).map(drop));
        set("KAFKA", &options.kafka, |text| kafka_kind(text).map(drop));
        set("KAFKA_PORT", &options.kafka_port, |text| values::number::<u16>(text, &(1..=u16::MAX)).map(drop));
        set("KAFKA_BOOTSTRAP_SERVERS", &options.kafka_bootstrap_servers, |_| Ok(()));
        config
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use program::options::{ConfigError, Parsed};

    use super::*;

    fn parse(args: &[&str], variables: &[(&str, &str)]) -> Result<Parsed<FleetConfig>, ConfigError> {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let args = std::iter::once("fleet").chain(args.iter().copied()).map(OsString::from);
        FleetConfig::parse(args, &Environment { variables, host_name: OsString::new() })
    }

    #[test]
    fn commands_for_single_programs_are_a_verb_and_a_target() {
        assert_eq!(FleetCommand::KillWorker.parts(), Some((Verb::Kill, Target::Worker)));
        assert_eq!(FleetCommand::QuietWorker.parts(), Some((Verb::Quiet, Target::Worker)));
        assert_eq!(FleetCommand::ThawKafka.parts(), Some((Verb::Thaw, Target::Kafka)));
        let others = FleetCommand::value_variants().iter().filter(|command| command.parts().is_none());
        assert_eq!(others.count(), 10, "up, down, scaling, output, and keep");
    }

    #[test]
    fn a_command_and_the_variables_of_all_programs_are_read() {
        let variables = [("WORKER", "worker_2"), ("KAFKA_PORT", "1"), ("DRAIN_TIMEOUT", "9s"), ("HEALTH_FILE", "x")];
        let Ok(Parsed::Run(config)) = parse(&["restart-worker", "--kafka-port=19092"], &variables) else {
            panic!("a configuration")
        };
        assert_eq!((config.command, config.worker.as_deref()), (FleetCommand::RestartWorker, Some("worker_2")));
        assert_eq!(config.given.get("KAFKA_PORT"), Some("19092"));
        assert_eq!(config.given.get("DRAIN_TIMEOUT"), Some("9s"));
        assert_eq!(config.given.get("HEALTH_FILE"), None, "two workers must not share one file");
    }

    #[test]
    fn every_fault_is_named_with_its_value() {
        let variables = [
            ("HTTP_ADDR", "here"),
            ("KAFKA", "redpanda"),
            ("WORKERS", "0"),
            ("SIGNALS", "3"),
            ("STOP_GRACE_PERIOD", "x"),
            ("METRICS_ADDR", "127.0.0.1:9091"),
            ("ADMIN_ADDR", "127.0.0.1:0"),
        ];
        let faults = parse(&["up"], &variables).expect_err("seven faults").faults;
        let all = faults.join("\n");
        assert_eq!(faults.len(), 7, "{all}");
        for fault in [
            "HTTP_ADDR: value \"here\"",
            "STOP_GRACE_PERIOD: value \"x\"",
            "METRICS_ADDR: value \"127.0.0.1:9091\"",
            "ADMIN_ADDR: value \"127.0.0.1:0\"",
            "expected embedded or apache",
            "from 1 to 1000",
            "from 1 to 2",
        ] {
            assert!(all.contains(fault), "{all}");
        }
        assert!(parse(&["up", "down"], &[]).is_err() && parse(&["sideways"], &[]).is_err());
    }
}
