//! The verdict: each promise with its bound, the worst that was seen, how often it was put to the test, and what shows it broken.
//!
//! Plain data and its summary; made by the judge, shown by `paper` and `html`.

use serde::Serialize;

use program::exit::ExitCode;

/// What became of a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// There was occasion to break it, and it held.
    Held,
    /// It did not hold at least once.
    Broken,
    /// There was no occasion.
    Untested,
}

/// Something that breaks a promise, and where it is to be seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Finding {
    /// One sentence.
    pub(super) what: String,
    /// Tasks, workers or gateways that it is about.
    pub(super) ids: Vec<String>,
    /// Lines of the ledger that show it, counted from 1.
    pub(super) lines: Vec<usize>,
}

/// One promise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    /// `P1` to `P10` as the contract numbers them; `-` for what it says elsewhere.
    pub(super) promise: &'static str,
    /// What is promised, in a few words: `no task is lost`.
    pub(super) name: &'static str,
    /// `0`, `< 1 s`.
    pub(super) bound: String,
    /// The worst that was seen, in the unit of the bound; empty when untested.
    pub(super) worst: String,
    /// How often it was put to the test.
    pub(super) count: u64,
    /// What else is to be known: `3 explained: 2 kill, 1 broker`.
    pub(super) note: String,
    pub(super) state: State,
    pub(super) findings: Vec<Finding>,
}

/// How many actions of one kind there were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Fault {
    /// `kill-worker` and so on.
    pub(super) action: String,
    pub(super) planned: u64,
    /// Seen to have happened.
    pub(super) bitten: u64,
    /// Of these, those that hit a worker with a task in hand, or a gateway with callers.
    pub(super) busy: u64,
}

/// The counts of the load.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Totals {
    pub(super) seconds: f64,
    pub(super) sent: u64,
    pub(super) answered: u64,
    pub(super) refused: u64,
    /// Found no free caller and were not sent.
    pub(super) late: u64,
    pub(super) undecided: u64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) worst_ms: f64,
}

/// What it comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Conclusion {
    /// Every promise held.
    Held,
    /// At least one did not.
    Broken,
    /// Nothing was seen to be broken, but it cannot be said that all held: why.
    Undecided(String),
    /// There was nothing to judge: why.
    CouldNotRun(String),
}

/// The whole of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Verdict {
    pub(super) conclusion: Conclusion,
    /// A signal ended the run before its time.
    pub(super) cut_short: bool,
    pub(super) plan: String,
    pub(super) seed: u64,
    pub(super) target: String,
    pub(super) totals: Totals,
    pub(super) rows: Vec<Row>,
    pub(super) faults: Vec<Fault>,
    /// Where the ledger is; empty when it was not kept.
    pub(super) ledger: String,
}

impl Verdict {
    /// How the process ends.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self.conclusion {
            Conclusion::Held => ExitCode::Drained,
            Conclusion::Broken => ExitCode::Broken,
            Conclusion::Undecided(_) | Conclusion::CouldNotRun(_) => ExitCode::Fatal,
        }
    }
}
