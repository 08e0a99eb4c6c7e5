//! The program `dead`: lists, shows, replays and drops dead letters. The code is in the library.

use lastcall::dead::{self, DeadConfig};
use lastcall::signals;
use program::exit::ExitCode;

fn main() -> ExitCode {
    signals::run(|signals| dead::run(&DeadConfig::from_args(), &signals))
}
