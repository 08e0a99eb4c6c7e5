//! The fleet of `make up` in native mode: Kafka, a gateway and workers as background processes of this machine.
//!
//! For trials and tests; `deploy/` is for production. Each run of the program does one command. Only the programs and
//! their keepers stay in the background.
//!
//! | module | noun |
//! |---|---|
//! | `options`, `settings` | the command; settings of the programs |
//! | `state`, `lock` | the state file; locks between commands |
//! | `keeper` | starts a program and records its end |
//! | `programs`, `kafka` | start, signal and end of gateway and workers, and of Kafka |
//! | `whole`, `single` | commands for the fleet, and for a single program |
//! | `ready`, `show` | readiness by the gateway's responses; output for people and programs |
//!
//! A command holds the file `lock` in the folder: `up`, `down` and scaling alone, commands for single programs
//! together. The latter also hold the lock of their program, such as `worker_1.lock`. Called by the binary `fleet`.

mod failure;
mod kafka;
mod keeper;
mod lock;
mod options;
mod programs;
mod ready;
mod settings;
mod show;
mod single;
mod state;
mod whole;

use std::fmt::Display;
use std::io::Write;
use std::path::Path;

use program::exit::ExitCode;
use program::signals::Signals;

use failure::Failure;
pub use options::{FleetCommand, FleetConfig};
use programs::Fleet;
pub use settings::Settings;

/// Runs a command.
///
/// Exit codes: [`ExitCode::Drained`] when it is done, [`ExitCode::Usage`] when a remembered setting cannot be read,
/// otherwise [`ExitCode::Fatal`].
pub fn run(config: FleetConfig, signals: &Signals) -> ExitCode {
    let done = match (config.command, config.kept.as_slice()) {
        (FleetCommand::Keep, [name, program]) => keep(&config, name, Path::new(program)),
        _ => Fleet::open(config, signals.first.clone()).and_then(|fleet| fleet.map_or(Ok(()), Fleet::obey)),
    };
    match done {
        Ok(()) => ExitCode::Drained,
        Err(failure) => {
            let code = if matches!(failure, Failure::Setting(_)) { ExitCode::Usage } else { ExitCode::Fatal };
            complain(failure);
            code
        }
    }
}

/// Runs a keeper. It is started in a process group of its own, because Ctrl-C is for the command that started it, and
/// catches and ignores the signal that comes with the end of a terminal.
fn keep(config: &FleetConfig, name: &str, program: &Path) -> Result<(), Failure> {
    let kept = keeper::keep(&config.run, name, program);
    if let Err(failure) = &kept {
        // The command that started the keeper reads its stdout.
        print(&format!("{failure}\n"));
    }
    kept
}

/// Prints a text. Returns `false` if nothing reads stdout any more.
fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

fn say(text: impl Display) {
    print(&format!("fleet: {text}\n"));
}

fn complain(text: impl Display) {
    // Fails if nothing reads stderr any more; the exit code also reports the failure.
    let _ = writeln!(std::io::stderr(), "fleet: {text}");
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    /// A temporary folder of a test, removed at its end.
    pub(crate) struct Folder {
        pub(crate) path: PathBuf,
    }

    impl Folder {
        pub(crate) fn new() -> Self {
            let path = std::env::temp_dir().join(format!("lastcall-fleet-{}", uuid::Uuid::new_v4()));
            std::fs::create_dir(&path).expect("a folder of our own");
            Self { path }
        }

        /// Writes a shell script with these lines. Another process writes it, because a process that a test forks
        /// meanwhile would keep the file open, and an open file cannot be run.
        pub(crate) fn script(&self, lines: &str) -> PathBuf {
            let path = self.path.join("program");
            let write = "printf '#!/bin/sh\n%s\n' \"$1\" >\"$0\" && chmod 700 \"$0\"";
            let written = Command::new("sh").args(["-c", write]).arg(&path).arg(lines).status();
            assert!(written.is_ok_and(|status| status.success()), "{} cannot be written", path.display());
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
