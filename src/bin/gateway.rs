//! The gateway: takes tasks over HTTP and answers with their results. The code is in the library.

use lastcall::config::GatewayConfig;
use lastcall::{gateway, logging, signals};
use program::exit::ExitCode;

fn main() -> ExitCode {
    // First of all: the first process of a container has no default action for signals.
    signals::run(|signals| {
        let config = GatewayConfig::from_args();
        logging::init(config.common.log_level, config.common.log_format);
        gateway::run(config, signals)
    })
}
