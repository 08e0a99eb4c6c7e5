//! The binary `fleet`: calls the library.

use fleet::FleetConfig;
use program::exit::ExitCode;
use program::signals;

fn main() -> ExitCode {
    signals::run(|signals| fleet::run(FleetConfig::from_args(), &signals))
}
