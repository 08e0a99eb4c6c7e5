//! The worker: takes tasks from Kafka and runs the text analysis. The code is in the library.

use std::io::Write;

use lastcall::analysis::Analysis;
use lastcall::config::WorkerConfig;
use lastcall::journal::Journaled;
use lastcall::{logging, signals, worker};
use program::exit::ExitCode;

fn main() -> ExitCode {
    // First of all: the first process of a container has no default action for signals.
    signals::run(|signals| {
        let config = WorkerConfig::from_args();
        logging::init(config.common.log_level, config.common.log_format);
        let analysis = Analysis { allow_work_ms: config.common.allow_work_ms };
        match Journaled::new(analysis, &config.worker_id) {
            Ok(handler) => worker::run(config, handler, signals),
            Err(problem) => {
                let _ = writeln!(std::io::stderr(), "{problem}");
                ExitCode::Usage
            }
        }
    })
}
