//! The program `dead`: lists, shows, replays and drops dead letters.
//!
//! It changes nothing in place. Each replay and each drop is a mark on the dead-letter topic, from which every reader
//! finds the letters' states. Called by the binary `dead`; the gateway reads the same letters for `GET /dead`.
//!
//! | module | noun |
//! |---|---|
//! | `letters` | the letters and their states; pure |
//! | `options` | the command line |
//! | `topic` | reading the topics, and records that Kafka has acknowledged |
//! | `replay` | the steps of a replay and of a drop |
//! | `search` | the letters' tasks on the tasks topic; pure |
//! | `show` | tables and JSON |

pub(crate) mod letters;
mod options;
mod replay;
mod search;
mod show;
mod topic;

pub use options::{Chosen, Command, DeadConfig};

use std::convert::Infallible;
use std::io::Write;
use std::time::SystemTime;

use crossbeam_channel::select;
use kafka_share::{Cluster, Interrupter};
use log::LevelFilter;
use program::exit::ExitCode;
use program::logging::{self, escape};
use program::signals::Signals;
use program::stop::Stop;
use program::threads;

use topic::DeadTopic;

/// Why a command could not be carried out.
#[derive(Debug, thiserror::Error)]
enum DeadError {
    /// Kafka.
    #[error("{0}")]
    Kafka(String),
    /// Kafka refuses one record, whenever it is sent.
    #[error("{0}")]
    Refused(String),
    /// A file of TLS.
    #[error("{0}")]
    Security(#[from] kafka_share::tls::TlsFault),
    /// A signal.
    #[error("interrupted by {0}")]
    Interrupted(&'static str),
}

/// Carries out one command, and prints its outcome on stdout.
///
/// Exit codes: [`ExitCode::Drained`] if all was done; [`ExitCode::Fatal`] if Kafka failed, or a letter was not found,
/// not replayed or not dropped, which the output says.
pub fn run(config: &DeadConfig, signals: &Signals) -> ExitCode {
    logging::init_to(LevelFilter::Error, std::io::stderr());
    let (interrupter, done) = (Interrupter::new(), Stop::new());
    let (first, ended, waker) = (signals.first.clone(), done.clone(), interrupter.clone());
    let thread = threads::spawn("interrupt", Stop::new(), move || -> Result<(), Infallible> {
        select! {
            recv(first.triggered()) -> _ => waker.interrupt(),
            recv(ended.triggered()) -> _ => {}
        }
        Ok(())
    });
    let outcome = carry_out(config, &interrupter);
    done.trigger();
    // Its failure is logged by the thread itself.
    let _ = thread.join();
    let outcome = if signals.first.is_triggered() { Err(DeadError::Interrupted(signals.name())) } else { outcome };
    match outcome {
        Ok(true) => ExitCode::Drained,
        Ok(false) => ExitCode::Fatal,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{}", escape(&error.to_string()));
            ExitCode::Fatal
        }
    }
}

/// Returns whether all was done.
fn carry_out(config: &DeadConfig, interrupter: &Interrupter) -> Result<bool, DeadError> {
    let mut options = config.security.client_options(config.bootstrap.clone(), "lastcall-dead")?;
    options.interrupter = interrupter.clone();
    let mut topic = DeadTopic::new(Cluster::new(options), &config.tasks_topic);
    topic.read_to_end()?;
    let mut out = std::io::stdout().lock();
    match &config.command {
        Command::List { all, reason, state, json } => {
            let now = SystemTime::now();
            let is_shown = |letter: &letters::Letter| {
                let is_wanted = state.map_or(*all || letter.is_open(), |state| letter.state(now).name() == state);
                is_wanted && reason.as_deref().is_none_or(|reason| letter.has_reason(reason))
            };
            let shown = topic.letters().by_age().into_iter().filter(|letter| is_shown(letter));
            show::list(&mut out, topic.letters(), shown.collect(), *json, now);
            Ok(true)
        }
        Command::Show { id, json } => match replay::find(topic.letters(), id) {
            Some(letter) => {
                let letter = letter.clone();
                let record = topic.record(letter.id)?;
                show::letter(&mut out, &letter, record.as_ref(), *json, SystemTime::now());
                Ok(true)
            }
            None => Err(DeadError::Kafka(format!("{}: {}", id, replay::NOT_FOUND))),
        },
        Command::Replay(chosen) => replay::replay_all(&mut topic, config, chosen, &mut out),
        Command::Drop(chosen) => replay::drop_all(&mut topic, config, chosen, &mut out),
    }
}
