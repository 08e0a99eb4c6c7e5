//! One stop of a worker: its signal, its kind and what the worker had in flight. Judged by [`stops`](super::stops) and [`receipts`](super::receipts).

use super::super::evidence::{Evidence, Exit, Held, Life, MOMENT, Notice};
use super::super::judgement::Finding;

/// P3, P6, and what P4 and P5 allow beyond the task's own time and the drain timeout.
pub(super) const SECOND: f64 = 1.0;
/// A worker that had not started yet, and an idle one whose Kafka is away.
pub(super) const FIVE_SECONDS: f64 = 5.0;

/// What a stop was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Before it took tasks.
    Unready,
    Idle,
    Busy,
    /// A task of it would have taken longer than it may.
    Deadline,
    Second,
    KafkaAway,
}

/// One stop.
pub(super) struct Stop<'e, 'a> {
    pub(super) life: &'e Life<'a>,
    pub(super) exit: &'e Exit<'a>,
    /// The first signal.
    pub(super) at: f64,
    pub(super) line: usize,
    pub(super) kind: Kind,
    /// When it abandons what it has in hand.
    pub(super) deadline: f64,
    /// By how much a command makes it seem longer, at most.
    pub(super) doubt: f64,
    /// What it had in hand then or took on later.
    pub(super) runs: Vec<Held<'e, 'a>>,
}

impl<'a> Stop<'_, 'a> {
    pub(super) fn lines(&self) -> Vec<usize> {
        vec![self.line, self.exit.line]
    }

    pub(super) fn finding(&self, what: String) -> Finding {
        Finding {
            what: format!("{} {what}", self.life.process),
            ids: vec![self.life.process.to_owned()],
            lines: self.lines(),
        }
    }

    /// Tasks that have no result of this run.
    pub(super) fn unfinished(&self) -> impl Iterator<Item = &str> {
        self.runs.iter().filter(|held| held.run.end.is_none()).map(|held| held.id)
    }

    /// What this process said while it stopped: another one of its name may have stopped, or started, a moment before
    /// or after.
    pub(super) fn notices<'n>(&self, evidence: &'n Evidence<'a>) -> impl Iterator<Item = &'n Notice<'a>> {
        let (from, until) = ((self.at - MOMENT).max(self.life.from), self.exit.at + SECOND);
        let notices = evidence.notices.get(self.life.process).into_iter().flatten();
        notices.filter(move |notice| (from..=until).contains(&notice.at))
    }
}
