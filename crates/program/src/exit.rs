//! Exit codes of the programs, and the only place that ends a process.
//!
//! `worker`, `gateway` and `drill` decide which code applies. Called by the binaries, by their library calls, and by
//! the worker's watchdog, which must end the process even if other threads hang.

use std::fmt;
use std::process::Termination;

use crate::logging::{self, LAST_LINES, LATE_LINES};

/// Exit code of `gateway`, `worker` and `drill`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// Stopped by a signal, and everything in flight was finished.
    Drained = 0,
    /// A fatal error while running; one line of the log says which.
    Fatal = 1,
    /// Wrong usage or configuration; nothing was started.
    Usage = 2,
    /// The drain timeout passed and work was abandoned: released, never marked done.
    Abandoned = 3,
    /// A second signal came while work was in flight, and the work was abandoned.
    Forced = 4,
    /// The drill found a promise broken; its verdict names it.
    Broken = 5,
}

impl ExitCode {
    /// All codes, in the order of their numbers.
    pub const ALL: [Self; 6] = [Self::Drained, Self::Fatal, Self::Usage, Self::Abandoned, Self::Forced, Self::Broken];

    /// The number for the operating system.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Returns the code of a number; an unknown number counts as [`Fatal`](Self::Fatal).
    pub fn from_number(number: u8) -> Self {
        Self::ALL.into_iter().find(|code| code.number() == number).unwrap_or(Self::Fatal)
    }

    /// The meaning of the code, as `--help` shows it.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Drained => "stopped by a signal and drained",
            Self::Fatal => "fatal error while running (one line says which)",
            Self::Usage => "wrong usage or configuration",
            Self::Abandoned => "drain timeout passed, work abandoned",
            Self::Forced => "second signal, work abandoned (nothing in flight: 0)",
            Self::Broken => "a promise was broken (the verdict says which)",
        }
    }
}

impl fmt::Display for ExitCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.number(), self.meaning())
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        code.number().into()
    }
}

/// Lets `main` return the code, and closes the log.
impl Termination for ExitCode {
    fn report(self) -> std::process::ExitCode {
        logging::close(None, LAST_LINES);
        self.into()
    }
}

/// Ends the process at once, without unwinding or joining. Called by `main` at its end, and by a watchdog that must
/// keep a deadline although a thread hangs. Waits 50 ms for the last log lines.
#[expect(clippy::disallowed_methods, clippy::exit, reason = "the one place that ends the process")]
pub fn terminate(code: ExitCode) -> ! {
    logging::close(None, LATE_LINES);
    std::process::exit(code.number().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_numbers_are_fixed() {
        let numbers = ExitCode::ALL.map(ExitCode::number);
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
        for code in ExitCode::ALL {
            assert_eq!(ExitCode::from_number(code.number()), code);
        }
    }

    #[test]
    fn unknown_number_counts_as_fatal() {
        assert_eq!(ExitCode::from_number(6), ExitCode::Fatal);
        assert_eq!(ExitCode::from_number(255), ExitCode::Fatal);
    }
}
