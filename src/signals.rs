//! The signals that stop a program: SIGTERM, SIGINT and SIGHUP, first and second.
//!
//! Installed first thing in `main`: for PID 1 a signal without a handler is ignored. `ctrlc` wakes us but does not say which
//! signal came; `signal-hook` notes its number and chains to handlers that were there before, which `ctrlc` does not, so
//! `ctrlc` is installed first. Two equal signals at once merge in the kernel (signal(7)).

use crate::stop::Stop;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The signals and their numbers on Linux (signal(7)).
const SIGNALS: [(i32, &str); 3] = [
    (signal_hook::consts::SIGTERM, "SIGTERM"),
    (signal_hook::consts::SIGINT, "SIGINT"),
    (signal_hook::consts::SIGHUP, "SIGHUP"),
];
/// `ctrlc` may run up to 2 ms before the number is noted; waited for so long, then the name is unknown.
const NAME_WAIT: Duration = Duration::from_millis(20);

/// The handlers could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum SignalsError {
    /// `ctrlc` failed.
    #[error("cannot install the signal handler: {0}")]
    Handler(#[from] ctrlc::Error),
    /// `signal-hook` failed.
    #[error("cannot note the number of {name}: {source}")]
    Number {
        /// The signal.
        name: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
}

/// The signals as the program sees them; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Triggered by the first signal.
    pub first: Stop,
    /// Triggered by the second signal.
    pub second: Stop,
    number: Arc<AtomicUsize>,
}

/// Installs the handlers. Once per process.
///
/// # Errors
/// The operating system refused, or handlers are installed already.
pub fn install() -> Result<Signals, SignalsError> {
    let signals = Signals::default();
    let (first, second) = (signals.first.clone(), signals.second.clone());
    ctrlc::set_handler(move || {
        if !first.trigger() {
            second.trigger();
        }
    })?;
    for (number, name) in SIGNALS {
        // The flag keeps the last number; the name is read once, right after the first signal.
        signal_hook::flag::register_usize(number, Arc::clone(&signals.number), number.unsigned_abs() as usize)
            .map_err(|source| SignalsError::Number { name, source })?;
    }
    Ok(signals)
}

impl Signals {
    /// Signals that only [`Self::deliver`] sends: for tests and for programs with a handler of their own.
    #[must_use]
    pub fn manual() -> Self {
        Self::default()
    }

    /// Acts as if the signal called `name` had come.
    pub fn deliver(&self, name: &str) {
        let number = SIGNALS.iter().find(|(_, known)| *known == name).map_or(0, |(number, _)| *number);
        self.number.store(number.unsigned_abs() as usize, Ordering::Release);
        if !self.first.trigger() {
            self.second.trigger();
        }
    }

    /// The name of the signal that came, to be asked right after the first; "signal" when the system did not tell.
    #[must_use]
    pub fn name(&self) -> &'static str {
        let deadline = Instant::now() + NAME_WAIT;
        loop {
            let number = self.number.load(Ordering::Acquire);
            if let Some((_, name)) = SIGNALS.iter().find(|(known, _)| known.unsigned_abs() as usize == number) {
                return name;
            }
            if Instant::now() >= deadline {
                return "signal";
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_and_second_are_told_apart() {
        let signals = Signals::manual();
        signals.deliver("SIGINT");
        assert_eq!(signals.name(), "SIGINT");
        assert!(signals.first.is_triggered() && !signals.second.is_triggered());
        signals.deliver("SIGTERM");
        assert!(signals.second.is_triggered());
    }

    #[test]
    fn a_signal_without_a_number_is_called_signal() {
        assert_eq!(Signals::manual().name(), "signal");
    }
}
