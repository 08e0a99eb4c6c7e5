//! The configuration in effect, as the log and `--check-config` show it: the value of each option, without secrets.
//!
//! Made from the parser's own table, so a new option appears by itself. Called by [`parse_with`](super::parse_with).

use std::ffi::OsStr;
use std::fmt;

use clap::{ArgMatches, Command};

use crate::logging::escape;

/// The options that have a value, in the order of the help: names of their variables, and values. An option marked
/// `hide_env_values` has the value `[hidden]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective(Vec<(String, String)>);

impl Effective {
    /// Takes the values of the options in `command` that have a variable.
    pub(super) fn of(command: &Command, matches: &ArgMatches) -> Self {
        let shown = command.get_arguments().filter_map(|arg| {
            let variable = arg.get_env()?.to_string_lossy().into_owned();
            let value = matches.get_raw(arg.get_id().as_str())?.next_back()?;
            Some((variable, if arg.is_hide_env_values_set() { "[hidden]".to_owned() } else { shown(value) }))
        });
        Self(shown.collect())
    }

    /// Adds an option whose default is no text of the parser's table, unless it was given.
    pub fn or_default(&mut self, variable: &str, value: &str) {
        if self.get(variable).is_none() {
            self.0.push((variable.to_owned(), shown(OsStr::new(value))));
        }
    }

    /// The shown value of an option.
    pub fn get(&self, variable: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == variable).map(|(_, value)| value.as_str())
    }

    /// The text of `--check-config`: one option a line.
    pub(super) fn as_valid(&self) -> String {
        let options = self.0.iter().map(|(name, value)| format!("\n{name}={value}"));
        std::iter::once("the configuration is valid".to_owned()).chain(options).collect()
    }

    /// Whether no option is known: the configuration was not parsed, but built by a program.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A value, in quotes if it has spaces.
fn shown(value: &OsStr) -> String {
    let value = value.to_string_lossy();
    if value.contains(' ') || value.is_empty() { format!("{value:?}") } else { escape(&value).to_string() }
}

/// All options in one line: `NAME=value`, separated by spaces.
impl fmt::Display for Effective {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (name, value)) in self.0.iter().enumerate() {
            let separator = if number == 0 { "" } else { " " };
            write!(formatter, "{separator}{name}={value}")?;
        }
        Ok(())
    }
}
