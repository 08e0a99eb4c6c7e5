//! One stop of a worker: its signal, its kind, and the tasks in flight. Judged by [`stops`](super::stops) and
//! [`receipts`](super::receipts).

use super::super::evidence::{Evidence, Exit, Held, Life, MOMENT, Notice};
use super::super::judgement::Finding;

/// Bound of P3 and P6; P4 and P5 allow it beyond the time of the task and the drain timeout.
pub(super) const SECOND: f64 = 1.0;
/// Bound of a worker that has not started, and of an idle worker without Kafka.
pub(super) const FIVE_SECONDS: f64 = 5.0;

/// The kind of a stop, which decides its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The worker took no tasks yet.
    Unready,
    Idle,
    Busy,
    /// A task in flight could not finish before the drain deadline.
    Deadline,
    Second,
    KafkaAway,
}

pub(super) struct Stop<'e, 'a> {
    pub(super) life: &'e Life<'a>,
    pub(super) exit: &'e Exit<'a>,
    /// The first signal.
    pub(super) at: f64,
    pub(super) line: usize,
    pub(super) kind: Kind,
    /// When the worker abandons the tasks in flight.
    pub(super) deadline: f64,
    /// The most that a command adds to the measured time, in seconds.
    pub(super) doubt: f64,
    /// The runs in flight at the signal, and later runs.
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

    /// Tasks whose run has no result.
    pub(super) fn unfinished(&self) -> impl Iterator<Item = &str> {
        self.runs.iter().filter(|held| held.run.end.is_none()).map(|held| held.id)
    }

    /// The status records of this process during the stop. Another process of the same name may have stopped or started
    /// a moment before or after.
    pub(super) fn notices<'n>(&self, evidence: &'n Evidence<'a>) -> impl Iterator<Item = &'n Notice<'a>> {
        let (from, until) = ((self.at - MOMENT).max(self.life.from), self.exit.at + SECOND);
        let notices = evidence.notices.get(self.life.process).into_iter().flatten();
        notices.filter(move |notice| (from..=until).contains(&notice.at))
    }
}
