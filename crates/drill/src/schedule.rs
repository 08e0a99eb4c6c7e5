//! What happens when: a plan with every moment drawn.
//!
//! Pure, and the same for the same plan, length and seed. Whom an action hits is drawn as a number here, and chosen with it among those who are there
//! when it happens. Called before a run begins.

use std::time::Duration;

use fastrand::Rng;

use super::plan::{ActionPlan, FaultPlan, Plan, What, Who};

/// One action at its moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    /// From the start of the load.
    pub(super) at: Duration,
    pub(super) what: What,
    pub(super) who: Who,
    /// Of the broker.
    pub(super) node: Option<u32>,
    /// How long it lasts, where it lasts.
    pub(super) length: Option<Duration>,
    /// How many, for `scale`.
    pub(super) to: u32,
    /// For `fault`.
    pub(super) fault: Option<FaultPlan>,
    /// Chooses among those it may hit.
    pub(super) draw: u64,
}

/// Nothing is drawn for the last moments of the load: an action may have to wait for a worker that it can be done to.
const LAST: Duration = Duration::from_secs(30);

/// All actions of a plan within `length`, in the order of their moments.
pub(super) fn schedule(plan: &Plan, length: Duration, seed: u64) -> Vec<Planned> {
    let mut all = Vec::new();
    for (index, action) in plan.actions.iter().enumerate() {
        // A generator for each line: one line more or less leaves the others as they are.
        let mut rng = Rng::with_seed(seed ^ (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let moments = match action.every {
            Some(every) => random_moments(every, length.saturating_sub(LAST.min(length / 4)), &mut rng),
            None => action.at.0.clone(),
        };
        all.extend(moments.into_iter().filter(|at| *at < length).map(|at| planned(action, at, &mut rng)));
    }
    all.sort_by_key(|planned| planned.at);
    all
}

/// One within each stretch of this length, so that their number is certain and their moments are not.
fn random_moments(every: Duration, length: Duration, rng: &mut Rng) -> Vec<Duration> {
    let count = length.as_millis() / every.as_millis().max(1);
    let all = (0..=count).map(|index| every.mul_f64(index as f64 + rng.f64()));
    all.filter(|at| *at < length).collect()
}

fn planned(action: &ActionPlan, at: Duration, rng: &mut Rng) -> Planned {
    let length = action.length.map(|range| range.0 + (range.1 - range.0).mul_f64(rng.f64()));
    Planned {
        at,
        what: action.what,
        who: action.worker.clone(),
        node: action.node,
        length,
        to: action.to.unwrap_or_default(),
        fault: action.network_fault(),
        draw: rng.u64(..),
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Plan;
    use super::*;

    fn plan(actions: &str) -> Plan {
        Plan::read("test", &format!("for = \"10s\"\n{actions}")).expect("a plan")
    }

    const RANDOM: &str = "[[action]]\ndo = \"kill-worker\"\nfor = [\"1s\", \"3s\"]\nevery = \"2s\"\n";

    #[test]
    fn a_seed_makes_the_same_schedule_again() {
        let (plan, length) = (plan(RANDOM), Duration::from_secs(600));
        assert_eq!(schedule(&plan, length, 7), schedule(&plan, length, 7));
        assert_ne!(schedule(&plan, length, 7), schedule(&plan, length, 8));
    }

    #[test]
    fn random_actions_come_as_often_as_they_should_and_last_as_long() {
        let all = schedule(&plan(RANDOM), Duration::from_secs(600), 7);
        assert!((284..=286).contains(&all.len()), "{}", all.len());
        assert!(
            all.iter().all(|planned| planned.at < Duration::from_secs(570)),
            "there may be no worker that they can be done to"
        );
        let lengths = all.iter().filter_map(|planned| planned.length);
        assert!(lengths.clone().all(|length| (1000..=3000).contains(&length.as_millis())));
        assert!(
            lengths.clone().any(|length| length.as_millis() < 1500)
                && lengths.clone().any(|length| length.as_millis() > 2500)
        );
        assert!(all.is_sorted_by_key(|planned| planned.at));
    }

    #[test]
    fn what_comes_after_the_end_does_not_come() {
        let both = "[[action]]\ndo = \"restart-worker\"\nat = [\"9s\", \"1s\", \"10s\"]\n";
        let all = schedule(&plan(both), Duration::from_secs(10), 1);
        assert_eq!(all.iter().map(|planned| planned.at.as_secs()).collect::<Vec<_>>(), [1, 9]);
    }
}
