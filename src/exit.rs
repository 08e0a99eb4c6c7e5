//! The exit codes of all programs, and the one place that ends a process from within.

/// How a program ended, as its process exit code tells the orchestrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Stopped by a signal and drained.
    Drained = 0,
    /// A fatal error while running; one log line says which.
    Fatal = 1,
    /// Wrong usage or configuration, or a cluster that cannot be used.
    Usage = 2,
    /// The drain timeout passed and work was abandoned.
    Abandoned = 3,
    /// A second signal came and work was abandoned.
    Forced = 4,
}

impl ExitCode {
    /// The code with this number; any other number is a fault of the caller and counts as [`ExitCode::Fatal`].
    #[must_use]
    pub fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Drained,
            2 => Self::Usage,
            3 => Self::Abandoned,
            4 => Self::Forced,
            _ => Self::Fatal,
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// Ends the process now, with nothing unwound or joined. For watchdogs, whose reason to exist this is, and for faults of
/// the command line; everything else returns its code from `main`.
#[expect(clippy::exit, clippy::disallowed_methods, reason = "the one place")]
pub fn terminate(code: ExitCode) -> ! {
    std::process::exit(i32::from(code as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_codes_are_one_to_one() {
        for number in 0..=4 {
            assert_eq!(ExitCode::from_number(number) as u8, number);
        }
        assert_eq!(ExitCode::from_number(77), ExitCode::Fatal);
    }
}
