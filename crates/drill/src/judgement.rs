//! The verdict: each promise with its bound, its worst value, its number of tests, and the findings that show it
//! broken.
//!
//! Plain data and its summary; made by the judge, shown by `paper` and `html`.

use serde::Serialize;

use program::exit::ExitCode;

/// The state of a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// It was put to the test, and it held.
    Held,
    /// It did not hold at least once.
    Broken,
    /// Nothing put it to the test.
    Untested,
}

/// A broken promise, with its evidence.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Finding {
    /// One sentence.
    pub(super) what: String,
    /// The tasks, workers or gateways that it concerns.
    pub(super) ids: Vec<String>,
    /// Lines of the ledger that show it, counted from 1.
    pub(super) lines: Vec<usize>,
}

/// One promise, or a part of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    /// `P1` to `P11` as the contract numbers them; `-` for a check that follows from them.
    pub(super) promise: &'static str,
    /// The promise in a few words: `no task is lost`.
    pub(super) name: &'static str,
    /// `0`, `< 1 s`.
    pub(super) bound: String,
    /// The worst value, in the unit of the bound; empty when untested.
    pub(super) worst: String,
    /// How often it was put to the test.
    pub(super) count: u64,
    /// Further information: `3 explained: 2 kill, 1 broker`.
    pub(super) note: String,
    pub(super) state: State,
    pub(super) findings: Vec<Finding>,
}

/// The number of actions of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Fault {
    /// `kill-worker` and so on.
    pub(super) action: String,
    pub(super) planned: u64,
    /// Actions that took effect.
    pub(super) bitten: u64,
    /// Effective actions that hit a worker with a task in flight, or a gateway with waiting callers.
    pub(super) busy: u64,
}

/// The counts of the load.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Totals {
    pub(super) seconds: f64,
    pub(super) sent: u64,
    pub(super) answered: u64,
    pub(super) refused: u64,
    /// Requests that found no free caller and were not sent.
    pub(super) late: u64,
    pub(super) undecided: u64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) worst_ms: f64,
}

/// The conclusion of a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Conclusion {
    /// Every promise held.
    Held,
    /// At least one promise was broken.
    Broken,
    /// No promise was seen broken, but not all are known to have held, for this reason.
    Undecided(String),
    /// There was nothing to judge, for this reason.
    CouldNotRun(String),
}

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
    /// Path of the ledger; empty without a file.
    pub(super) ledger: String,
}

/// The nearest-rank percentile of sorted values.
pub(super) fn percentile<T>(sorted: &[T], percent: usize) -> Option<&T> {
    sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1)
}

impl Verdict {
    /// The exit code of the drill.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self.conclusion {
            Conclusion::Held => ExitCode::Drained,
            Conclusion::Broken => ExitCode::Broken,
            Conclusion::Undecided(_) | Conclusion::CouldNotRun(_) => ExitCode::Fatal,
        }
    }
}
