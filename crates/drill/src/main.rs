//! The binary `drill`: calls the library.

use drill::{self, DrillConfig};
use program::exit::ExitCode;
use program::signals;

fn main() -> ExitCode {
    signals::run(|signals| drill::run(DrillConfig::from_args(), &signals))
}
