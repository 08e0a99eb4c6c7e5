//! The fleet of `make up` as background processes. Everything is in the library.

use std::io::Write;

use fleet::FleetConfig;
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
    fleet::run(FleetConfig::from_args(), &signals)
}
