//! Reads options from the command line and the environment; collects and reports every fault.
//!
//! Shared by all programs; each program's own module has its names, defaults and rules between options. Nothing here
//! connects or listens. Called by the `from_args` and `parse` of each program's configuration, before the program
//! starts anything.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Write;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{Arg, Args, Command, Parser};

use crate::exit::{ExitCode, terminate};
use crate::logging::escape;

mod effective;
pub mod values;

pub use effective::Effective;
use values::Read;

/// Longest duration of an option: more than any option needs, and safe from overflow.
pub const WEEK: Duration = Duration::from_hours(7 * 24);
const FROM_ONE_MILLISECOND: RangeInclusive<Duration> = Duration::from_millis(1)..=WEEK;

/// Result of a command line.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed<C> {
    /// Run with this configuration.
    Run(C),
    /// Print this text (`--help`, `--version`, `--check-config`) and exit with 0.
    Show(String),
}

/// All faults of a configuration, one line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// At least one line; each names the option's variable, the value, and the expected value.
    pub faults: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.faults.join("\n"))
    }
}

/// Sources of options besides the command line.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// The environment variables.
    pub variables: BTreeMap<OsString, OsString>,
    /// The machine's name: the default worker id.
    pub host_name: OsString,
}

impl Environment {
    /// Reads the environment of this process.
    pub fn of_process() -> Self {
        // Without a name the text is empty, which is a fault only if the name is needed.
        let host_name = nix::unistd::gethostname().unwrap_or_default();
        Self { variables: std::env::vars_os().collect(), host_name }
    }
}

/// Reads a duration from a millisecond to a week.
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
    /// Sets `field` to the value in `text`, or keeps it and notes the fault. Returns whether it was set.
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

    /// Notes the `problem` with the value `text` of the option `name`.
    pub fn add(&mut self, name: &str, text: &str, problem: &str) {
        self.0.push(format!("{name}: value \"{}\" {problem}", escape(text)));
    }

    /// As [`add`](Self::add), for a value that must not appear in a log.
    pub fn add_hidden(&mut self, name: &str, problem: &str) {
        self.0.push(format!("{name}: value [hidden] {problem}"));
    }

    /// Notes a fault as a whole line, for faults that concern no single value.
    pub fn note(&mut self, line: String) {
        self.0.push(line);
    }

    /// Returns the value if there is no fault.
    ///
    /// # Errors
    /// All faults.
    pub fn none_or<T>(self, value: T) -> Result<T, ConfigError> {
        if self.0.is_empty() { Ok(value) } else { Err(ConfigError { faults: self.0 }) }
    }
}

/// Options of the parser that check a configuration and do not run the program.
#[derive(Args)]
pub struct CheckOptions {
    /// Do not run: check all options and their files, and print each fault, or the options in effect; exit code 0 or 2
    #[arg(long, help_heading = "Running")]
    pub check_config: bool,
}

/// Gives a configuration `from_args` and `parse`, by its own
/// `read(&options, &environment, &mut effective, &mut faults)`.
#[macro_export]
macro_rules! configuration {
    ($config:ty) => {
        impl $config {
            /// Reads the configuration of this process. Ends the process with 0 after `--help`, `--version` and a
            /// passed `--check-config`, and with 2 after it has printed all faults to stderr.
            pub fn from_args() -> Self {
                let environment = $crate::options::Environment::of_process();
                $crate::options::run_or_exit(Self::parse(std::env::args_os(), &environment))
            }

            /// Reads a command line, which begins with the program's name, and an environment.
            ///
            /// # Errors
            /// All faults.
            pub fn parse(
                args: impl IntoIterator<Item = std::ffi::OsString>,
                environment: &$crate::options::Environment,
            ) -> Result<$crate::options::Parsed<Self>, $crate::options::ConfigError> {
                let read = |options: &_, effective: &mut _, faults: &mut _| {
                    Self::read(options, environment, effective, faults)
                };
                $crate::options::parse_with(args, environment, read)
            }
        }
    };
}

/// Reads the options of one program: typed text first, then validated values. With [`CheckOptions`] among the options,
/// a valid configuration is shown, and `read` checks what the program itself checks later.
///
/// # Errors
/// All faults.
pub fn parse_with<O: Parser, C>(
    args: impl IntoIterator<Item = OsString>,
    environment: &Environment,
    read: impl FnOnce(&O, &mut Effective, &mut Faults) -> C,
) -> Result<Parsed<C>, ConfigError> {
    let mut faults = Faults::default();
    let table = O::command();
    let command = with_variables_told(table.clone());
    let given = from_variables(&table, environment, &mut faults);
    let mut args = args.into_iter();
    // Variables go first, since the last value wins: a flag overrides its variable.
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
    let mut effective = Effective::of(&table, &matches);
    let config = read(&options, &mut effective, &mut faults);
    let config = faults.none_or(config)?;
    let is_check = matches.try_get_one::<bool>("check_config").is_ok_and(|given| given == Some(&true));
    Ok(if is_check { Parsed::Show(effective.as_valid()) } else { Parsed::Run(config) })
}

/// Turns variables into command line arguments. clap would take an empty variable for a value, and tests of it would
/// have to change the process.
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

/// Adds each option's variable to its help, and leaves reading the variables to [`from_variables`].
fn with_variables_told(command: Command) -> Command {
    command.mut_args(|arg: Arg| {
        let Some(variable) = arg.get_env().map(OsStr::to_os_string) else { return arg };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        // clap puts a default after the variable; so does this, if the help text names a default itself.
        let (help, default) = help.split_at(help.find(" [default: ").unwrap_or(help.len()));
        arg.help(format!("{help} [env: {}]{default}", variable.display())).env(Resettable::Reset)
    })
}

/// Returns a fault of the command line in one line: its first line, and the tip that may follow.
pub fn in_one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let tips = text.lines().filter_map(|line| line.trim().strip_prefix("tip: "));
    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").trim_end_matches(':');
    let parts: Vec<_> = std::iter::once(first).chain(tips).chain(std::iter::once("see --help")).collect();
    parts.join("; ")
}

/// Returns the configuration, or prints the text or the faults and ends the process.
pub fn run_or_exit<C>(parsed: Result<Parsed<C>, ConfigError>) -> C {
    match parsed {
        Ok(Parsed::Run(config)) => config,
        Ok(Parsed::Show(text)) => {
            // Fails without a reader, for example after `| head`.
            let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
            terminate(ExitCode::Drained)
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            terminate(ExitCode::Usage)
        }
    }
}
