//! The drill: loads a running fleet, watches it, and says whether the promises held. Everything is in the library.

use std::io::Write;

use drill::{self, DrillConfig};
use program::exit::ExitCode;
use program::signals;

fn main() -> ExitCode {
    let signals = match signals::install() {
        Ok(signals) => signals,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            return ExitCode::Fatal;
        }
    };
    drill::run(DrillConfig::from_args(), &signals)
}
