//! The shortest trace to a state, one line per step.

use crate::connection::Connection;
use crate::ids::{Id, PartitionId, Set, TaskId};
use crate::search::{Number, Search};
use crate::step::{Kind, Steps, Subject};
use crate::steps;
use std::fmt;

impl Search<'_> {
    /// Returns the lines of the shortest trace to a state.
    pub fn trace(&self, number: Number) -> Vec<String> {
        let mut way = vec![number];
        while let Some(&number) = way.last().filter(|&&number| number != 0) {
            way.push(self.parents[number as usize]);
        }
        way.reverse();
        let mut lines = Vec::new();
        let mut swapped = false;
        for pair in way.windows(2) {
            let (text, swaps) = self.line(pair[0], pair[1], swapped);
            lines.push(format!("{:3} {text}", lines.len() + 1));
            swapped ^= swaps;
        }
        lines
    }

    /// Returns the text of one step, and whether the state after it was replaced by its mirror image. The text names
    /// the workers as in the first line. `swapped`: the state before the step is a mirror image.
    fn line(&self, from: Number, to: Number, swapped: bool) -> (String, bool) {
        let mut steps = Steps::default();
        steps::all(&self.states[from as usize], self.scenario, &mut steps);
        for step in &steps.0 {
            let mut reduced = step.state;
            let swaps = steps::reduce(&mut reduced, self.scenario);
            if reduced != self.states[to as usize] {
                continue;
            }
            let mark = if step.kind == Kind::Fault { "FAULT " } else { "" };
            let mut text = format!("{mark}{}", step.name);
            if step.subject != Subject::Everything {
                let subject = if swapped { step.subject.mirrored() } else { step.subject };
                text += &format!(": {subject}");
            }
            if let Subject::Connection(id) = step.subject
                && let Some(connection) = step.state.connection(id)
            {
                text += &connection.to_string();
            }
            return (text, swaps);
        }
        ("no step leads there".to_owned(), false)
    }
}

/// Describes a connection after a step, each part after a semicolon.
impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(request) = self.request {
            write!(f, "; {request:?} {:?}", self.stage)?;
        }
        if let Some(error) = self.error {
            write!(f, "; error {error:?}")?;
        }
        let tasks = [
            ("accept", self.accept),
            ("release", self.release),
            ("renew", self.renew),
            ("refused", self.refused),
            ("retry", self.retry),
            ("brings", self.delivered),
        ];
        for (name, set) in tasks {
            write_set(f, name, "t", set, &TaskId::ALL)?;
        }
        write_set(f, "moved", "p", self.moved, &PartitionId::ALL)
    }
}

fn write_set<I: Id>(f: &mut fmt::Formatter<'_>, name: &str, letter: &str, set: Set<I>, all: &[I]) -> fmt::Result {
    if set.is_empty() {
        return Ok(());
    }
    write!(f, "; {name}")?;
    all.iter().filter(|&&id| set.contains(id)).try_for_each(|id| write!(f, " {letter}{}", id.index()))
}
