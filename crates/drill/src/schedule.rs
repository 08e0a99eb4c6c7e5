//! The schedule of a run: every action of the plan with its time.
//!
//! Pure: the same plan, length and seed give the same schedule. For the target of an action the schedule draws a
//! number; the fleet uses it to choose among the processes that run at that time. Called before a run begins.

use std::time::Duration;

use fastrand::Rng;

use super::plan::{ActionPlan, FaultPlan, Plan, What, Who};

/// An action with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    /// Time from the start of the load.
    pub(super) at: Duration,
    pub(super) what: What,
    pub(super) who: Who,
    /// Node of the broker.
    pub(super) node: Option<u32>,
    /// Duration of the action's effect.
    pub(super) length: Option<Duration>,
    /// Number of workers, for `scale`.
    pub(super) to: u32,
    /// For `fault`.
    pub(super) fault: Option<FaultPlan>,
    /// Random number that chooses the target.
    pub(super) draw: u64,
}

/// No random action in this last part of the load: an action may have to wait for a worker that it can hit.
const LAST: Duration = Duration::from_secs(30);

/// All actions of a plan within `length`, ordered by time.
pub(super) fn schedule(plan: &Plan, length: Duration, seed: u64) -> Vec<Planned> {
    let mut all = Vec::new();
    for (index, action) in plan.actions.iter().enumerate() {
        // Each action has its own generator, so that a change of one action leaves the times of the others.
        let mut rng = Rng::with_seed(seed ^ (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let moments = match action.every {
            Some(every) => random_moments(every, length.saturating_sub(LAST.min(length / 4)), &mut rng),
            None => action.at.clone(),
        };
        all.extend(moments.into_iter().filter(|at| *at < length).map(|at| planned(action, at, &mut rng)));
    }
    all.sort_by_key(|planned| planned.at);
    all
}

/// A random time within each interval of length `every`, so that the number of times is fixed.
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
        fault: action.network_fault(length),
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
    fn the_same_seed_gives_the_same_schedule() {
        let (plan, length) = (plan(RANDOM), Duration::from_secs(600));
        assert_eq!(schedule(&plan, length, 7), schedule(&plan, length, 7));
        assert_ne!(schedule(&plan, length, 7), schedule(&plan, length, 8));
    }

    #[test]
    fn random_actions_keep_their_rate_and_their_range_of_durations() {
        let all = schedule(&plan(RANDOM), Duration::from_secs(600), 7);
        assert!((284..=286).contains(&all.len()), "{}", all.len());
        assert!(
            all.iter().all(|planned| planned.at < Duration::from_secs(570)),
            "an action may have to wait for a worker"
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
    fn actions_after_the_end_of_the_load_are_left_out() {
        let both = "[[action]]\ndo = \"restart-worker\"\nat = [\"9s\", \"1s\", \"10s\"]\n";
        let all = schedule(&plan(both), Duration::from_secs(10), 1);
        assert_eq!(all.iter().map(|planned| planned.at.as_secs()).collect::<Vec<_>>(), [1, 9]);
    }
}
