//! The command line of `dead`: a subcommand, its arguments, and the options of Kafka that all programs share.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser};
use kafka_share::BrokerAddress;
use program::logging::escape;
use program::options::values::{self, Read};
use program::options::{ConfigError, Environment, Faults, Parsed, in_one_line, parse_with, run_or_exit};

use super::letters::LetterState;
use crate::config::{Security, SecurityOptions, TASKS_TOPIC_LIMIT};

/// Configuration of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadConfig {
    /// `KAFKA_BOOTSTRAP_SERVERS`: brokers to ask first; one reachable broker is enough.
    pub bootstrap: Vec<BrokerAddress>,
    /// `TASKS_TOPIC`: the topic of the tasks; its dead letters are on the topic with `.dead` appended.
    pub tasks_topic: String,
    /// `KAFKA_SECURITY_PROTOCOL` and its further options.
    pub security: Security,
    /// The operator whom marks name: `user@host`.
    pub operator: String,
    /// What to do.
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// List letters.
    List {
        /// Also those that were replayed or dropped.
        all: bool,
        /// Only those whose reason is of this class, or begins with this text.
        reason: Option<String>,
        /// Only those in the state with this name.
        state: Option<&'static str>,
        /// As JSON.
        json: bool,
    },
    /// Show one letter with its headers and its value.
    Show {
        /// A task's id, or the position of a letter.
        id: String,
        /// As JSON.
        json: bool,
    },
    /// Produce the tasks of letters again.
    Replay(Chosen),
    /// Mark letters as done.
    Drop(Chosen),
}

/// The letters that a command acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// The letters with these task ids or positions.
    Ids(Vec<String>),
    /// All open letters whose reason is of this class, or begins with this text.
    Reason(String),
}

/// Options of all subcommands.
#[derive(Args)]
#[command(next_help_heading = "Kafka")]
struct CommonOptions {
    /// Brokers to ask first; one reachable broker is enough
    #[arg(long, env = "KAFKA_BOOTSTRAP_SERVERS", value_name = "HOST:PORT,...", default_value = "127.0.0.1:9092")]
    kafka_bootstrap_servers: String,
    /// Topic of the tasks; the dead letters are on <TASKS_TOPIC>.dead
    #[arg(long, env = "TASKS_TOPIC", value_name = "TOPIC", default_value = "tasks")]
    tasks_topic: String,
    #[command(flatten)]
    security: SecurityOptions,
}

/// Lists the letters that were neither replayed nor dropped, the newest last
#[derive(Parser)]
#[command(name = "dead list", bin_name = "dead list", version, args_override_self = true, next_line_help = true)]
struct ListOptions {
    /// Also the letters that were replayed or dropped
    #[arg(long)]
    all: bool,
    /// Only letters whose reason is of this class, or begins with this text
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// Only letters in this state: open, replaying, unfinished, replayed or dropped
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Print one JSON document, as GET /dead of the gateway
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: CommonOptions,
}

/// Shows a letter with all its headers and its value
#[derive(Parser)]
#[command(name = "dead show", bin_name = "dead show", version, args_override_self = true, next_line_help = true)]
struct ShowOptions {
    /// Id of a task, for its newest letter, or PARTITION:OFFSET of a letter
    #[arg(value_name = "ID")]
    id: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: CommonOptions,
}

/// Produces the tasks of letters again, under the same ids and with all their starts
#[derive(Parser)]
#[command(name = "dead replay", bin_name = "dead replay", version, args_override_self = true, next_line_help = true)]
struct ReplayOptions {
    #[command(flatten)]
    chosen: ChosenOptions,
    #[command(flatten)]
    common: CommonOptions,
}

/// Marks letters as dropped: they are no longer listed, and stay on the topic
#[derive(Parser)]
#[command(name = "dead drop", bin_name = "dead drop", version, args_override_self = true, next_line_help = true)]
struct DropOptions {
    #[command(flatten)]
    chosen: ChosenOptions,
    #[command(flatten)]
    common: CommonOptions,
}

#[derive(Args)]
struct ChosenOptions {
    /// Ids of tasks, for the newest open letter of each, or PARTITION:OFFSET of letters
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Instead of ids: all open letters whose reason is of this class, or begins with this text
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
}

const AFTER: &str = "\
dead list --help shows the options of list; the same for show, replay and drop.

Classes of reasons: starts, failed, not-a-task, damaged, refused, delivery-limit, rejected, other.

Exit codes:
  0  done
  1  Kafka failed, or not all was done (the output says what)
  2  wrong usage or configuration

Examples:
  dead list --reason failed
  dead show 0190163d-8694-739b-aea5-966c26f8ad91
  dead replay --reason failed
  dead drop 0:17";

/// The program with its subcommands: for its help, and for faults before a subcommand.
fn command() -> clap::Command {
    clap::Command::new("dead")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Lists, shows, replays and drops the tasks that were given up: the letters on <TASKS_TOPIC>.dead.")
        .subcommand(ListOptions::command().name("list"))
        .subcommand(ShowOptions::command().name("show"))
        .subcommand(ReplayOptions::command().name("replay"))
        .subcommand(DropOptions::command().name("drop"))
        .subcommand_required(true)
        .after_help(AFTER)
}

impl DeadConfig {
    /// The configuration of this process. `--help` and `--version` end the process with exit code 0, faults with 2
    /// after printing them to stderr.
    pub fn from_args() -> Self {
        run_or_exit(Self::parse(std::env::args_os(), &Environment::of_process()))
    }

    /// Reads a command line, the first of whose arguments is the program, and an environment.
    ///
    /// # Errors
    /// All faults.
    pub fn parse(
        args: impl IntoIterator<Item = OsString>,
        environment: &Environment,
    ) -> Result<Parsed<Self>, ConfigError> {
        let mut args: Vec<OsString> = args.into_iter().collect();
        let subcommand = args.get(1).and_then(|word| word.to_str()).map(str::to_owned);
        let config = |common: &CommonOptions, command: Command, faults: &mut Faults| {
            Self::read(common, environment, command, faults)
        };
        if matches!(subcommand.as_deref(), Some("list" | "show" | "replay" | "drop")) {
            args.remove(1);
        }
        match subcommand.as_deref() {
            Some("list") => parse_with(args, environment, |options: &ListOptions, _, faults| {
                let mut named = None;
                if let Some(text) = &options.state {
                    faults.set(&mut named, "--state", text, state);
                }
                let (all, reason) = (options.all, options.reason.clone());
                let command = Command::List { all, reason, state: named, json: options.json };
                config(&options.common, command, faults)
            }),
            Some("show") => parse_with(args, environment, |options: &ShowOptions, _, faults| {
                config(&options.common, Command::Show { id: options.id.clone(), json: options.json }, faults)
            }),
            Some("replay") => parse_with(args, environment, |options: &ReplayOptions, _, faults| {
                config(&options.common, Command::Replay(chosen(&options.chosen, faults)), faults)
            }),
            Some("drop") => parse_with(args, environment, |options: &DropOptions, _, faults| {
                config(&options.common, Command::Drop(chosen(&options.chosen, faults)), faults)
            }),
            _ => match command().try_get_matches_from(args) {
                Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
                    Ok(Parsed::Show(error.to_string()))
                }
                Err(error) => Err(ConfigError { faults: vec![in_one_line(&error)] }),
                // Not reached: no option may precede a subcommand, and a subcommand is required.
                Ok(_) => Err(ConfigError { faults: vec!["expected a subcommand first; see --help".to_owned()] }),
            },
        }
    }

    fn read(common: &CommonOptions, environment: &Environment, command: Command, faults: &mut Faults) -> Self {
        let mut config = Self {
            bootstrap: Vec::new(),
            tasks_topic: String::new(),
            security: Security::read(&common.security, faults),
            operator: operator(&environment.variables, &environment.host_name),
            command,
        };
        // A file that TLS cannot use is a fault, as in the services.
        if let Err(fault) = config.security.client_options(Vec::new(), "") {
            faults.note(escape(&fault.to_string()).to_string());
        }
        let (brokers, tasks) = (&common.kafka_bootstrap_servers, &common.tasks_topic);
        faults.set(&mut config.bootstrap, "KAFKA_BOOTSTRAP_SERVERS", brokers, BrokerAddress::list);
        faults.set(&mut config.tasks_topic, "TASKS_TOPIC", tasks, |text| values::topic(text, TASKS_TOPIC_LIMIT));
        config
    }
}

fn chosen(options: &ChosenOptions, faults: &mut Faults) -> Chosen {
    match (&options.reason, options.ids.is_empty()) {
        (Some(reason), true) if !reason.is_empty() => Chosen::Reason(reason.clone()),
        (None, false) => Chosen::Ids(options.ids.clone()),
        _ => {
            faults.note("expected either ids or --reason; see --help".to_owned());
            Chosen::Ids(Vec::new())
        }
    }
}

fn state(text: &str) -> Read<Option<&'static str>> {
    let names = LetterState::ALL.map(LetterState::name);
    let known = names.into_iter().find(|name| *name == text);
    known.map(Some).ok_or_else(|| format!("is no state; expected one of {}", names.join(", ")))
}

/// The operator: the user by its name, or else by its number, and the host.
fn operator(variables: &BTreeMap<OsString, OsString>, host: &OsStr) -> String {
    let named = ["USER", "LOGNAME"].iter().filter_map(|name| variables.get(OsStr::new(name)));
    let named = named.filter(|value| !value.is_empty()).map(|value| value.to_string_lossy().into_owned()).next();
    let number = || std::fs::metadata("/proc/self").map_or_else(|_| "unknown".to_owned(), |own| own.uid().to_string());
    format!("{}@{}", named.unwrap_or_else(number), host.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Parsed<DeadConfig>, ConfigError> {
        let variables = [("USER", "ann"), ("TASKS_TOPIC", "mine")].map(|(name, value)| (name.into(), value.into()));
        let environment = Environment { variables: variables.into(), host_name: "host".into() };
        DeadConfig::parse(std::iter::once("dead").chain(args.iter().copied()).map(OsString::from), &environment)
    }

    fn running(args: &[&str]) -> DeadConfig {
        match parsed(args) {
            Ok(Parsed::Run(config)) => config,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    fn faults(args: &[&str]) -> Vec<String> {
        parsed(args).expect_err("a fault").faults
    }

    #[test]
    fn arguments_and_variables_reach_their_fields() {
        let config = running(&["replay", "a", "0:7", "--kafka-bootstrap-servers", "kafka:1"]);
        assert_eq!(config.command, Command::Replay(Chosen::Ids(vec!["a".to_owned(), "0:7".to_owned()])));
        assert_eq!((config.tasks_topic.as_str(), config.operator.as_str()), ("mine", "ann@host"));
        assert_eq!(config.bootstrap, [BrokerAddress::new("kafka", 1)]);
        let listed = running(&["list", "--state", "open", "--json", "--reason", "failed"]).command;
        let reason = Some("failed".to_owned());
        assert_eq!(listed, Command::List { all: false, reason, state: Some("open"), json: true });
        assert_eq!(running(&["drop", "--reason", "x"]).command, Command::Drop(Chosen::Reason("x".to_owned())));
    }

    #[test]
    fn wrong_usage_is_one_line_for_each_fault() {
        for args in [&["replay"][..], &["drop", "a", "--reason", "failed"], &["replay", "--reason", ""]] {
            assert_eq!(faults(args), ["expected either ids or --reason; see --help"], "{args:?}");
        }
        assert!(faults(&["list", "--state", "lost"])[0].contains("expected one of open, replaying"));
        assert_eq!(faults(&["bury"]).len(), 1);
        assert_eq!(faults(&["show"]).len(), 1);
        assert!(matches!(parsed(&["--help"]), Ok(Parsed::Show(text)) if text.contains("Exit codes")));
    }
}
