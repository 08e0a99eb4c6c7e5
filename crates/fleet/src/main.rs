//! The fleet of `make up` as background processes. The library has all its code.

use fleet::FleetConfig;
use program::exit::ExitCode;
use program::signals;

fn main() -> ExitCode {
    signals::run(|signals| fleet::run(FleetConfig::from_args(), &signals))
}
