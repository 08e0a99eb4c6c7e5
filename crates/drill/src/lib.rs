//! The drill: loads a fleet, rolls, scales, kills and freezes it, and says from evidence whether the promises held.
//!
//! `drill run` acts on a fleet by a plan, `drill watch` only looks on while somebody else does. Both write down every request, answer, notification and action
//! in a ledger. When all is over the topics are read with a client that shares no code with the programs under test, and the judge, who has seen
//! nothing but the ledger, gives the verdict. It is no part of the services.
//!
//! | module | noun |
//! |---|---|
//! | `cli`, `options`, `plan`, `schedule` | what was asked for, and what is to happen when |
//! | `run` | the one owner of all state: takes events, writes, shows, decides when it is over |
//! | `load`, `asker`, `topics` | the threads: send, ask, read; `event` is what they tell |
//! | `director`, `fleet` | the thread that acts, and what it acts on: `native` with `process`, `broker`, `broker_work` and `leaders`, or `command`; `target` finds it |
//! | `texts`, `clock` | what they need besides `program::http`: the texts, the time |
//! | `outcome`, `expect` | what became of a request, and whether its result is right |
//! | `hits`, `starts` | which tasks were hit often enough; which are begun and ended, as the workers' journal says |
//! | `account`, `history` | what is known of requests and workers while it goes on |
//! | `ledger`, `fact` | what was seen, line by line |
//! | `audit`, `witness` | what stands on the topics |
//! | `receipt` | what a stopped worker says of itself, read strictly |
//! | `evidence` with `spans` and `outages`, `judge`, `judgement` | the ledger put in order, the promises, the verdict |
//! | `display` with `report`, `console`;  `paper`, `html`, `output` | what people and machines read |
//! | `timeline`, `columns` | what the page draws, and how wide text is on a terminal |
//!
//! Called by the binary `drill`.

mod account;
mod asker;
mod audit;
mod broker;
mod broker_work;
mod cli;
mod clock;
mod columns;
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
mod outages;
mod outcome;
mod output;
mod paper;
mod plan;
mod process;
mod receipt;
mod report;
mod run;
#[cfg(test)]
mod sample;
mod schedule;
mod spans;
mod starts;
mod target;
mod texts;
mod timeline;
mod topics;
mod witness;

use program::http;

pub use command::FleetFile;
pub use fleet::Place;
pub use options::{BrokerChoice, DrillConfig, GatewayAddress, JudgeConfig, NativeTarget, RunConfig, Target};
pub use output::Outputs;
pub use texts::Checked;

use log::LevelFilter;

use program::exit::ExitCode;
use program::logging;
use program::signals::Signals;

use console::Console;
use judge::Circumstances;
use ledger::Ledger;

/// Does what was asked for, until it is over or a signal ends it.
///
/// Exit codes: [`ExitCode::Drained`] when every promise held; [`ExitCode::Broken`] when one did not; [`ExitCode::Fatal`] when it could
/// not run or not find out; [`ExitCode::Forced`] after a second signal.
pub fn run(config: DrillConfig, signals: &Signals) -> ExitCode {
    let console = Console::new();
    // For errors only: what a drill has to say it prints.
    logging::init_to(LevelFilter::Error, console.above());
    match config {
        DrillConfig::Run(config) => run::run(&config, signals, console),
        DrillConfig::Judge(config) => judge_again(&config, console),
    }
}

/// A ledger that ends with its last line was audited.
fn judge_again(config: &JudgeConfig, mut console: Console) -> ExitCode {
    let ledger = match Ledger::read(&config.ledger) {
        Ok(ledger) => ledger,
        Err(error) => {
            console.error(&format!("{}: {error}", config.ledger.display()));
            return ExitCode::Fatal;
        }
    };
    let Some(circumstances) = Circumstances::of(ledger.lines(), config.ledger.display().to_string()) else {
        let what = "has no last line: its run goes on, or was ended before there was something to judge";
        console.error(&format!("{} {what}", config.ledger.display()));
        return ExitCode::Fatal;
    };
    let verdict = judge::judge(ledger.lines(), &circumstances);
    if let Err(why) = output::write(&config.outputs, ledger.lines(), &verdict) {
        console.error(&why);
        return ExitCode::Fatal;
    }
    console.verdict(&verdict);
    verdict.exit_code()
}
