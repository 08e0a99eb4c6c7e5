//! The fleet of `make up` in native mode: Kafka, one gateway and some workers as background processes of this machine.
//!
//! For trying out and for tests; services of your own are run by what `deploy/` is for. Each run of the program does one
//! word. Nothing stays in the background but the programs and their keepers.
//!
//! | module | noun |
//! |---|---|
//! | `options`, `settings` | the word; what the programs are given |
//! | `state`, `lock` | what is known of the fleet; who may change what |
//! | `keeper` | starts one program, and sees how it ends |
//! | `programs`, `kafka` | start, signal and end of gateway and workers, and of Kafka |
//! | `whole`, `single` | words about the fleet, and about one program |
//! | `ready`, `show` | what the gateway says; what people and programs read |
//!
//! A word holds `lock` in the folder: `up`, `down` and scaling alone, words about single programs together. The latter
//! also hold the lock of their program, such as `worker_1.lock`. Called by the binary `fleet`.

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
pub use options::{FleetConfig, Word};
use programs::Fleet;
pub use settings::Settings;

/// Does one word.
///
/// Exit codes: [`ExitCode::Drained`] when it is done, [`ExitCode::Usage`] when a remembered setting cannot be read,
/// otherwise [`ExitCode::Fatal`].
pub fn run(config: FleetConfig, signals: &Signals) -> ExitCode {
    let done = match (config.word, config.kept.as_slice()) {
        (Word::Keep, [name, program]) => keep(&config, name, Path::new(program)),
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

/// In a session of its own: a Ctrl-C or the end of a terminal is for the word that has started it. Such signals are
/// caught, and not looked at.
fn keep(config: &FleetConfig, name: &str, program: &Path) -> Result<(), Failure> {
    // Refused to the leader of a group, which has no need for it.
    let _ = nix::unistd::setsid();
    let kept = keeper::keep(&config.run, name, program);
    if let Err(failure) = &kept {
        // The word that has started it reads its stdout.
        print(&format!("{failure}\n"));
    }
    kept
}

/// Prints all of it, or what the reader takes.
fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

fn say(text: impl Display) {
    print(&format!("fleet: {text}\n"));
}

fn complain(text: impl Display) {
    // Fails when nothing reads stderr any more; the exit code says the same.
    let _ = writeln!(std::io::stderr(), "fleet: {text}");
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    /// A folder of a test's own, removed at its end.
    pub(crate) struct Folder {
        pub(crate) path: PathBuf,
    }

    impl Folder {
        pub(crate) fn new() -> Self {
            let path = std::env::temp_dir().join(format!("lastcall-fleet-{}", uuid::Uuid::new_v4()));
            std::fs::create_dir(&path).expect("a folder of our own");
            Self { path }
        }

        /// A program with these lines. Another process writes it: one that a test forks meanwhile would have the file
        /// open, which then could not be run.
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
