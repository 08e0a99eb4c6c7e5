//! How a program is started by another program that watches it.
//!
//! What is the same for the fleets of the drill and of `make up`. The end of the program is its parent's matter.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// How to start a program.
#[derive(Clone, Debug)]
pub struct Launch {
    /// What it is called in messages.
    pub name: String,
    /// The file that is run.
    pub program: PathBuf,
    /// Variables besides those of this process.
    pub environment: Vec<(String, String)>,
    /// Its output is appended to this file.
    pub log: PathBuf,
}

impl Launch {
    /// Opens the log, and starts the program as `set` completes the command. By then its stdin is empty and its stderr is
    /// the log. `set` also gets the log, for stdout.
    ///
    /// # Errors
    /// The log or the program, and what is wrong with it.
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
