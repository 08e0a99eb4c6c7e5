//! How often each task was interrupted. Actions spare a worker whose task in flight was interrupted often enough.
//!
//! A task that was interrupted at `MAX_DELIVERIES` starts is dead-lettered as promised. Random actions must not cause
//! that. Pure; called by the fleets when they choose the target of an action.

use std::collections::BTreeMap;

/// Interruptions by task id.
#[derive(Debug)]
pub(super) struct Hits {
    /// Interruptions after which a task is spared.
    most: u32,
    tasks: BTreeMap<String, u32>,
}

impl Hits {
    /// Allows half of the starts after the first, because actions on the broker may add further starts.
    pub(super) fn new(max_deliveries: u32) -> Self {
        Self { most: max_deliveries.saturating_sub(1).div_ceil(2), tasks: BTreeMap::new() }
    }

    /// Whether one of these tasks must be spared.
    pub(super) fn are_enough<'t>(&self, mut tasks: impl Iterator<Item = &'t String>) -> bool {
        tasks.any(|task| self.tasks.get(task).is_some_and(|hits| *hits >= self.most))
    }

    /// Counts a hit of the worker that has these tasks in flight.
    pub(super) fn add<'t>(&mut self, tasks: impl Iterator<Item = &'t String>) {
        tasks.for_each(|task| *self.tasks.entry(task.clone()).or_default() += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_spared_after_two_hits() {
        let (one, both) = (["a".to_owned()], ["b".to_owned(), "a".to_owned()]);
        let mut hits = Hits::new(5);
        for expected in [false, false, true] {
            assert_eq!(hits.are_enough(both.iter()), expected);
            hits.add(one.iter());
        }
        assert!(!hits.are_enough(both[..1].iter()), "another task of that worker");
        assert_eq!([2, 3, 5, 7].map(|deliveries| Hits::new(deliveries).most), [1, 1, 2, 3]);
    }
}
