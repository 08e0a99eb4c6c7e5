//! The command line of the fleet: one word, and what it needs. Nothing here starts or stops anything.
//!
//! Values that `up` remembers stay texts, in [`Settings`]: their programs read them again. Called by the binary.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use program::options::values;
use program::options::{ConfigError, Environment, Faults, Parsed, parse_with, positive, run_or_exit};

use crate::settings::{Settings, kafka_kind};

/// What the fleet is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Word {
    /// starts what does not run yet, and waits until everything is ready
    Up,
    /// stops the gateway, the workers and Kafka, in this order, by SIGTERM, and waits for each
    Down,
    /// SIGTERM, start, and waiting until it is ready: all workers, one after another, or WORKER
    RestartWorker,
    /// SIGKILL for the first worker, for WORKER, or with ALL=1 for all; a killed worker stays dead until scale-up or up
    KillWorker,
    /// stops the workers with the highest numbers until WORKERS run (1)
    ScaleDown,
    /// starts workers until WORKERS run (3)
    ScaleUp,
    /// prints what runs, and the fleet as the gateway sees it
    Status,
    /// prints the response to GET /health; exit code 0 when its status is 200
    Health,
    /// prints the last lines of all logs with the program's name, and then each new line; FOLLOW=0: no new lines
    Logs,
    /// sends load until Ctrl-C, or for as long as FOR says, and prints a verdict: drill watch
    TestShutdown,
    /// SIGTERM for the first worker or WORKER, which stays stopped; SIGNALS=2: a second SIGTERM after 0.3 s
    StopWorker,
    /// starts the first worker that was stopped or killed, or WORKER, and waits until it is ready
    StartWorker,
    /// SIGSTOP for the first worker that is not frozen, or for WORKER
    FreezeWorker,
    /// SIGCONT for the first worker that is frozen, or for WORKER
    ThawWorker,
    /// SIGTERM for the gateway, which stays stopped; SIGNALS=2: a second SIGTERM after 0.3 s
    StopGateway,
    /// SIGKILL for the gateway, which stays dead
    KillGateway,
    /// starts the gateway again, and waits until it is ready
    StartGateway,
    /// stops and starts the gateway
    RestartGateway,
    /// SIGTERM for Kafka; not for the embedded broker, whose memory would be lost
    StopKafka,
    /// SIGKILL for Kafka; not for the embedded broker
    KillKafka,
    /// starts Kafka again with all that it had, and waits until it answers
    StartKafka,
    /// SIGSTOP for Kafka, also for the embedded broker
    FreezeKafka,
    /// SIGCONT for Kafka
    ThawKafka,
    /// prints a line for each worker that runs, separated by tabs: name, id in the fleet, process, running or frozen
    Workers,
    /// starts one program and waits for its end
    #[value(hide = true)]
    Keep,
}

/// What the fleet is asked to do, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetConfig {
    /// The word.
    pub word: Word,
    /// Of the word `keep`: a name, and the file to run.
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
    /// What the command line and the environment say; what they leave out is as `up` was told.
    pub given: Settings,
}

/// The fleet of `make up` as background processes of this machine: Kafka, one gateway, some workers
#[derive(Parser)]
#[command(name = "fleet", version, args_override_self = true, next_line_help = true, after_help = AFTER)]
struct Options {
    /// What to do
    #[arg(value_enum, value_name = "WORD")]
    word: Word,
    #[arg(hide = true)]
    kept: Vec<String>,
    /// The worker that the word is about
    #[arg(long, env = "WORKER", value_name = "NAME")]
    worker: Option<String>,
    /// How many workers run afterwards, 1 to 1000 [default: 3; scale-down: 1]
    #[arg(long, env = "WORKERS", value_name = "NUMBER")]
    workers: Option<String>,
    /// kill-worker: 1 kills all
    #[arg(long, env = "ALL", value_name = "0|1", default_value = "0")]
    all: String,
    /// stop-worker, stop-gateway: how many SIGTERM
    #[arg(long, env = "SIGNALS", value_name = "1|2", default_value = "1")]
    signals: String,
    /// logs: 0 ends after the last lines of now
    #[arg(long, env = "FOLLOW", value_name = "0|1", default_value = "1")]
    follow: String,
    /// Where the gateway listens [default: 127.0.0.1:8080]
    #[arg(long, env = "HTTP_ADDR", value_name = "IP:PORT")]
    http_addr: Option<String>,
    /// Which Kafka up starts: embedded (in memory), or apache (by scripts/kafka) [default: embedded]
    #[arg(long, env = "KAFKA", value_name = "KAFKA")]
    kafka: Option<String>,
    /// The port of that Kafka, on 127.0.0.1 [default: 9092]
    #[arg(long, env = "KAFKA_PORT", value_name = "PORT")]
    kafka_port: Option<String>,
    /// A Kafka that runs; it is used, and never started or stopped
    #[arg(long, env = "KAFKA_BOOTSTRAP_SERVERS", value_name = "HOST:PORT,...")]
    kafka_bootstrap_servers: Option<String>,
    /// The folder with the state of the fleet and the logs
    #[arg(long, env = "STACK_RUN", value_name = "FOLDER", default_value = ".run")]
    stack_run: String,
}

const AFTER: &str = "\
The variables of gateway and worker are passed on. What `up` was given, the other words remember.

A word about a program waits for another word about the same program; up, down and scale wait for all other words.
While the gateway or Kafka does not run, start, restart and scale print so, and do not wait until workers are ready.

It is run in the folder of the project.

Exit codes:
  0  done
  1  not done, or a program had to be killed (one line says why)
  2  wrong usage or configuration

Example:
  HTTP_ADDR=127.0.0.1:8081 KAFKA_PORT=19092 fleet up";

impl FleetConfig {
    /// The configuration of this process. Ends it when there is none: after `--help` and `--version` with 0, and with 2
    /// after all faults were printed to stderr.
    pub fn from_args() -> Self {
        run_or_exit(Self::parse(std::env::args_os(), &Environment::of_process()))
    }

    /// Reads a command line, the first of whose arguments is the program, and an environment.
    ///
    /// # Errors
    /// All faults of both.
    pub fn parse(
        args: impl IntoIterator<Item = OsString>,
        environment: &Environment,
    ) -> Result<Parsed<Self>, ConfigError> {
        parse_with(args, environment, |options, faults| Self::read(options, environment, faults))
    }

    fn read(options: &Options, environment: &Environment, faults: &mut Faults) -> Self {
        let mut config = Self {
            word: options.word,
            kept: options.kept.clone(),
            run: PathBuf::from(&options.stack_run),
            worker: options.worker.clone(),
            workers: None,
            all: false,
            twice: false,
            follow: true,
            given: Settings::of_programs(environment),
        };
        if options.kept.len() != if options.word == Word::Keep { 2 } else { 0 } {
            faults.note(format!("{:?}: expected one word, see --help", options.kept));
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
    use super::*;

    fn parse(args: &[&str], variables: &[(&str, &str)]) -> Result<Parsed<FleetConfig>, ConfigError> {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let args = std::iter::once("fleet").chain(args.iter().copied()).map(OsString::from);
        FleetConfig::parse(args, &Environment { variables, host_name: OsString::new() })
    }

    #[test]
    fn a_word_and_the_variables_of_all_programs_are_read() {
        let variables = [("WORKER", "worker_2"), ("KAFKA_PORT", "1"), ("DRAIN_TIMEOUT", "9s"), ("HEALTH_FILE", "x")];
        let Ok(Parsed::Run(config)) = parse(&["restart-worker", "--kafka-port=19092"], &variables) else {
            panic!("a configuration")
        };
        assert_eq!((config.word, config.worker.as_deref()), (Word::RestartWorker, Some("worker_2")));
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
        ];
        let faults = parse(&["up"], &variables).expect_err("five faults").faults;
        let all = faults.join("\n");
        assert_eq!(faults.len(), 5, "{all}");
        for fault in [
            "HTTP_ADDR: value \"here\"",
            "STOP_GRACE_PERIOD: value \"x\"",
            "expected embedded or apache",
            "from 1 to 1000",
            "from 1 to 2",
        ] {
            assert!(all.contains(fault), "{all}");
        }
        assert!(parse(&["up", "down"], &[]).is_err() && parse(&["sideways"], &[]).is_err());
    }
}
