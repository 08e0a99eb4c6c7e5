//! Start of a program by another program that watches it.
//!
//! Called by the native fleet of the drill and by the fleet of `make up`. The callers handle signals and exits.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// How to start a program.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Name in messages.
    pub name: String,
    /// Executable file.
    pub program: PathBuf,
    /// Variables in addition to those of this process.
    pub environment: Vec<(String, String)>,
    /// File to which the output is appended.
    pub log: PathBuf,
}

impl Launch {
    /// Opens the log and starts the program, with an empty stdin and stderr to the log. `set` completes the command and
    /// gets the log, for stdout.
    ///
    /// # Errors
    /// The log or the program, with the reason.
    pub fn start(&self, set: impl FnOnce(&mut Command, &File) -> io::Result<()>) -> Result<(Child, File), String> {
        let mut command = Command::new(&self.program);
        command.envs(self.environment.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
        let log = OpenOptions::new().create(true).append(true).open(&self.log).and_then(|log| {
            command.stderr(log.try_clone()?);
            set(&mut command, &log)?;
            Ok(log)
        });
        let log = log.map_err(|error| format!("{}: {error}", self.log.display()))?;
        let child = command.spawn().map_err(|error| format!("{} does not start: {error}", self.program.display()))?;
        Ok((child, log))
    }
}
