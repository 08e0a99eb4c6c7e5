//! A stand-in for the worker with one defect, to see that whoever judges workers notices it. For tests; never for anything else.
//!
//! A plain worker of its own on the library's client: one task at a time, one share session, everything but the handler and
//! the group's heartbeats on main. `FAULT` names the defect (see [`Fault`](fault::Fault)), `none` or nothing is a worker that keeps
//! the promises; defects of single tasks strike each `FAULT_EVERY`th task of the process (50). All else is configured as the real one.
//!
//! What it leaves out of the real one: recovery of a lost session (its task runs again elsewhere), the limit of starts, several
//! handlers, partitions led by several brokers, watchdog and supervisor.
//!
//! | file | noun |
//! |---|---|
//! | `fault` | the defects, and which task one strikes |
//! | `worker` | takes tasks, one after the other; the account of what is held |
//! | `run` | one run of one task, on a thread of its own |
//! | `stop` | the stop, step by step |
//! | `intake` | membership and share session |
//! | `outbox` | what is written to Kafka |

mod fault;
mod intake;
mod outbox;
mod run;
mod stop;
mod worker;

use std::io::Write;

use lastcall::{config::WorkerConfig, exit::ExitCode, logging, signals};

use fault::Faults;

fn main() -> ExitCode {
    let installed = signals::install().map_err(|error| (ExitCode::Fatal, error.to_string()));
    let ready = installed.and_then(|signals| Ok((signals, Faults::from_environment().map_err(usage)?)));
    let (signals, faults) = match ready {
        Ok(ready) => ready,
        Err((code, reason)) => return refuse(code, &reason),
    };
    let config = WorkerConfig::from_args();
    if config.concurrency > 1 {
        return refuse(ExitCode::Usage, "WORKER_CONCURRENCY: the stand-in has one handler");
    }
    logging::init(config.common.log_level);
    worker::run(config, faults, &signals)
}

fn usage(reason: String) -> (ExitCode, String) {
    (ExitCode::Usage, reason)
}

fn refuse(code: ExitCode, reason: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{reason}");
    code
}
