//! The drill: loads a fleet, restarts, scales, kills and freezes it, and judges from evidence whether the promises
//! held.
//!
//! `drill run` acts on a fleet by a plan; `drill watch` only observes a fleet that others act on. Both write every
//! request, response, notification and action into a ledger. After the load, a client that shares no code with the
//! programs under test reads the topics of a Kafka without security. The judge sees only the ledger and gives the
//! verdict. The services do not use this crate; the binary `drill` calls it.
//!
//! | module | noun |
//! |---|---|
//! | `cli`, `options`, `plan`, `schedule` | the command line, its values, the actions and their times |
//! | `run` | owner of all state: takes events, writes the ledger, shows progress, decides when the run ends |
//! | `load`, `asker`, `topics` | threads that send requests, ask gateways and read topics; `event`: their messages |
//! | `director`, `fleet`, `target` | the thread that acts; the fleet that it acts on; how the fleet is found |
//! | `native`, `process`, `broker`, `broker_work`, `leaders` | a fleet that the drill starts |
//! | `command` | a running fleet, acted on by shell commands; `shell`: a command with a time limit |
//! | `place`, `texts`, `clock` | addresses and settings of the fleet, texts of the tasks, the time |
//! | `outcome`, `expect` | outcome of a request; expected result of a text |
//! | `hits`, `starts` | how often each task was interrupted; starts and ends of tasks from the workers' journal |
//! | `account`, `history` | state of requests and of workers during the run |
//! | `ledger`, `fact` | the ledger and its lines |
//! | `audit`, `witness` | the records on the topics |
//! | `receipt` | the receipt of a stopped worker, read strictly |
//! | `evidence` with `spans`, `judge`, `judgement` | the ordered ledger, the promises, the verdict |
//! | `display`, `console`; `paper`, `html`, `output` | progress and verdict for people and machines |
//! | `timeline` | data of the timeline |

mod account;
mod asker;
mod audit;
mod broker;
mod broker_work;
mod cli;
mod clock;
mod command;
mod console;
mod director;
mod display;
mod event;
mod evidence;
mod expect;
mod fact;
mod fleet;
mod history;
mod hits;
mod html;
mod judge;
mod judgement;
mod leaders;
mod ledger;
mod load;
mod native;
mod options;
mod outcome;
mod output;
mod paper;
mod place;
mod plan;
mod process;
mod receipt;
mod run;
mod schedule;
mod shell;
mod spans;
mod starts;
mod target;
mod texts;
mod timeline;
mod topics;
mod witness;

use program::http;

pub use command::FleetFile;
pub use options::{BrokerChoice, DrillConfig, JudgeConfig, NativeTarget, RunConfig, Target};
pub use output::Outputs;
pub use place::{GatewayAddress, Place};
pub use texts::Checked;

use log::LevelFilter;

use program::exit::ExitCode;
use program::logging;
use program::signals::Signals;

use console::Console;
use ledger::Ledger;

/// Runs, watches or judges as configured, until the end or a signal.
///
/// Exit codes: [`ExitCode::Drained`] if all promises held; [`ExitCode::Broken`] if a promise was broken;
/// [`ExitCode::Fatal`] if the drill failed or could not decide; [`ExitCode::Forced`] after a second signal.
pub fn run(config: DrillConfig, signals: &Signals) -> ExitCode {
    let console = Console::new();
    // Log lines are for errors only; the drill prints its progress.
    logging::init_to(LevelFilter::Error, console.above());
    match config {
        DrillConfig::Run(config) => run::run(&config, signals, console),
        DrillConfig::Judge(config) => judge_again(&config, console),
    }
}

/// Judges a ledger again. Only a finished run has written a last line.
fn judge_again(config: &JudgeConfig, mut console: Console) -> ExitCode {
    let ledger = match Ledger::read(&config.ledger) {
        Ok(ledger) => ledger,
        Err(error) => {
            console.error(&format!("{}: {error}", config.ledger.display()));
            return ExitCode::Fatal;
        }
    };
    if !judge::is_finished(ledger.lines()) {
        let what = "has no last line: the run still goes on, or it ended before its verdict";
        console.error(&format!("{} {what}", config.ledger.display()));
        return ExitCode::Fatal;
    }
    let verdict = judge::judge(ledger.lines(), config.ledger.display().to_string());
    if let Err(why) = output::write(&config.outputs, ledger.lines(), &verdict) {
        console.error(&why);
        return ExitCode::Fatal;
    }
    console.verdict(&verdict);
    verdict.exit_code()
}
