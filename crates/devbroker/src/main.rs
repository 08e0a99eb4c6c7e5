//! The program `devbroker`: a Kafka in memory, for tests and for trying the system out. The library has all its code.

use devbroker::{self, DevbrokerConfig};
use program::exit::ExitCode;
use program::signals;

fn main() -> ExitCode {
    signals::run(|signals| devbroker::run(DevbrokerConfig::from_args(), &signals))
}
