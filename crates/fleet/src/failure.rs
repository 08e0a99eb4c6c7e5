//! Why a command was not done: a line for people. Printed by `run`.

use std::io;
use std::path::{Path, PathBuf};

use program::stop::Stopped;

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("interrupted; make status shows what runs, make scale-up starts missing workers")]
    Interrupted(#[from] Stopped),
    #[error("nothing runs; start it with: make up")]
    NothingRuns,
    #[error("{} cannot be used: {error}", .path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{} is damaged ({problem}); make down stops the fleet and removes the file", .path.display())]
    Damaged { path: PathBuf, problem: String },
    /// A setting that `up` remembers has a value that cannot be read.
    #[error("{0}")]
    Setting(String),
    /// The fleet is not in the state that the command needs.
    #[error("{0}")]
    Refused(String),
}

impl Failure {
    /// Converts an error of the operating system about this file.
    pub(crate) fn of(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::File { path, error }
    }
}

/// Returns [`Failure::Refused`] with this message.
pub(crate) fn refused<T>(problem: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Refused(problem.into()))
}
