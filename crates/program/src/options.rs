//! From the command line and the environment to values: every fault is collected, and all are reported.
//!
//! What all programs share. Names, defaults and rules between options belong to each program's own module. Nothing here connects or listens.
//! Called by the `from_args` and `parse` of each program's configuration, before anything is started.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Write;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{Arg, Command, Parser};

use crate::exit::{ExitCode, terminate};
use crate::logging::escape;

pub mod values;

use values::Read;

/// Long enough for everything, and far from where times overflow.
pub const WEEK: Duration = Duration::from_hours(7 * 24);
const FROM_ONE_MILLISECOND: RangeInclusive<Duration> = Duration::from_millis(1)..=WEEK;

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed<C> {
    /// To run with this configuration.
    Run(C),
    /// To print this text (`--help`, `--version`) and to exit with 0.
    Show(String),
}

/// Everything that is wrong with a configuration, one line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// At least one line; each names the option's variable, the value, and what would be right.
    pub faults: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.faults.join("\n"))
    }
}

/// Where options come from besides the command line.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// The environment variables.
    pub variables: BTreeMap<OsString, OsString>,
    /// The machine's name: the worker's id when none is given.
    pub host_name: OsString,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        // A machine without a name leaves it empty, which is a fault only where the name is needed.
        let host_name = nix::unistd::gethostname().unwrap_or_default();
        Self { variables: std::env::vars_os().collect(), host_name }
    }
}

/// A duration from a millisecond to a week.
///
/// # Errors
/// See [`values::duration`].
pub fn positive(text: &str) -> Read<Duration> {
    values::duration(text, &FROM_ONE_MILLISECOND)
}

/// The faults found so far.
#[derive(Default)]
pub struct Faults(Vec<String>);

impl Faults {
    /// Sets `field` to what `text` says, or keeps it and notes the fault. Returns whether it was set.
    pub fn set<T>(&mut self, field: &mut T, name: &str, text: &str, read: impl FnOnce(&str) -> Read<T>) -> bool {
        match read(text) {
            Ok(value) => {
                *field = value;
                true
            }
            Err(problem) => {
                self.add(name, text, &problem);
                false
            }
        }
    }

    /// Notes what is wrong with the value `text` of the option `name`.
    pub fn add(&mut self, name: &str, text: &str, problem: &str) {
        self.0.push(format!("{name}: value \"{}\" {problem}", escape(text)));
    }

    /// The same about a value that must not be seen in a log.
    pub fn add_hidden(&mut self, name: &str, problem: &str) {
        self.0.push(format!("{name}: value [hidden] {problem}"));
    }

    /// Notes a fault that is none of a value: the whole line.
    pub fn note(&mut self, line: String) {
        self.0.push(line);
    }

    fn none_or<T>(self, value: T) -> Result<T, ConfigError> {
        if self.0.is_empty() { Ok(value) } else { Err(ConfigError { faults: self.0 }) }
    }
}

/// Both stages for one program.
pub fn parse_with<O: Parser, C>(
    args: impl IntoIterator<Item = OsString>,
    environment: &Environment,
    read: impl FnOnce(&O, &mut Faults) -> C,
) -> Result<Parsed<C>, ConfigError> {
    let mut faults = Faults::default();
    let command = with_variables_told(O::command());
    let given = from_variables(&O::command(), environment, &mut faults);
    let mut args = args.into_iter();
    // Variables go first: what is given twice counts as given last, so that a flag wins.
    let line = args.next().into_iter().chain(given).chain(args);
    let matches = match command.try_get_matches_from(line) {
        Ok(matches) => matches,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(Parsed::Show(error.to_string()));
        }
        Err(error) => {
            faults.0.push(in_one_line(&error));
            return Err(ConfigError { faults: faults.0 });
        }
    };
    let options = match O::from_arg_matches(&matches) {
        Ok(options) => options,
        Err(error) => return Err(ConfigError { faults: vec![in_one_line(&error)] }),
    };
    let config = read(&options, &mut faults);
    faults.none_or(Parsed::Run(config))
}

/// The options that variables give, as if they stood on the command line. Done here and not by clap, which would take
/// an empty variable for a value and could not be tested without changing the process.
fn from_variables(command: &Command, environment: &Environment, faults: &mut Faults) -> Vec<OsString> {
    let mut given = Vec::new();
    for arg in command.get_arguments() {
        let (Some(flag), Some(variable)) = (arg.get_long(), arg.get_env()) else { continue };
        let value = environment.variables.get(variable).filter(|value| !value.is_empty());
        match value.map(|value| value.to_str()) {
            None => {}
            Some(Some(value)) => given.push(format!("--{flag}={value}").into()),
            Some(None) => faults.0.push(format!("{}: value is not UTF-8; expected text", variable.display())),
        }
    }
    given
}

/// The same command, whose help names each option's variable and which leaves reading them to [`from_variables`].
fn with_variables_told(command: Command) -> Command {
    command.mut_args(|arg: Arg| {
        let Some(variable) = arg.get_env().map(OsStr::to_os_string) else { return arg };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        // Where the help itself tells a default, the variable goes before it, as clap does with the other defaults.
        let (help, default) = help.split_at(help.find(" [default: ").unwrap_or(help.len()));
        arg.help(format!("{help} [env: {}]{default}", variable.display())).env(Resettable::Reset)
    })
}

/// A fault of the command line itself: its first line, and the tip that may follow.
pub fn in_one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let tips = text.lines().filter_map(|line| line.trim().strip_prefix("tip: "));
    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").trim_end_matches(':');
    let parts: Vec<_> = std::iter::once(first).chain(tips).chain(std::iter::once("see --help")).collect();
    parts.join("; ")
}

/// Hands a configuration on, or ends the process as its command line asks.
pub fn run_or_exit<C>(parsed: Result<Parsed<C>, ConfigError>) -> C {
    match parsed {
        Ok(Parsed::Run(config)) => config,
        Ok(Parsed::Show(text)) => {
            // Fails when nobody reads, for example after `| head`; there is nobody to tell, then.
            let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
            terminate(ExitCode::Drained)
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            terminate(ExitCode::Usage)
        }
    }
}
