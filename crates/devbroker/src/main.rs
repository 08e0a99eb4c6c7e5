//! The program `devbroker`: a Kafka in memory, for tests and for trying the system out. The library has all its code.

use std::io::Write;

use devbroker::{self, DevbrokerConfig};
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
    devbroker::run(DevbrokerConfig::from_args(), &signals)
}
