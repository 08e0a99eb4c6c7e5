//! The search: breadth-first over all reachable states. Then, backwards over all steps other than faults, it checks
//! that every state can reach the goals.
//!
//! Nothing is sampled or seeded: a scenario always gives the same counts.

use crate::fingerprint::{self, ByFingerprint};
use crate::property::Goal;
use crate::scenario::Scenario;
use crate::state::State;
use crate::step::{Kind, Steps};
use crate::steps;
use crate::violation::Violation;
use std::time::{Duration, Instant};

/// The number of a state, in order of discovery.
pub type Number = u32;

/// Result of a search.
#[derive(Clone, Debug)]
pub struct Report {
    /// States found.
    pub states: usize,
    /// Steps taken.
    pub steps: usize,
    /// Whether every reachable state was visited.
    pub complete: bool,
    /// Broken properties, each with the first state that shows it.
    pub violations: Vec<(Violation, Number)>,
    /// Goals that some states cannot reach.
    pub unreachable: Vec<Unreachable>,
    /// States in which a task was started more than once.
    pub second_runs: usize,
    /// Time taken.
    pub duration: Duration,
}

impl Report {
    /// Describes the broken properties, each with the first state that shows it.
    pub fn findings(&self) -> Vec<(String, Number)> {
        let broken = self.violations.iter().map(|(violation, number)| (violation.to_string(), *number));
        let unreachable = self.unreachable.iter().map(|it| {
            let Unreachable { goal, first, states } = it;
            (format!("{goal}: out of reach from {states} states"), *first)
        });
        broken.chain(unreachable).collect()
    }
}

/// A goal that some states cannot reach by steps other than faults.
#[derive(Clone, Debug)]
pub struct Unreachable {
    /// The goal.
    pub goal: Goal,
    /// The first such state.
    pub first: Number,
    /// Number of such states.
    pub states: usize,
}

/// All visited states of a scenario, and the step that first led to each.
pub struct Search<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) states: Vec<State>,
    pub(crate) parents: Vec<Number>,
    numbers: ByFingerprint<Number>,
    /// Steps other than faults: from, to.
    edges: Vec<(Number, Number)>,
    violations: Vec<(Violation, Number)>,
    steps: usize,
}

impl<'a> Search<'a> {
    /// Visits all reachable states of a scenario, or stops at the first violation or the limit of states.
    pub fn run(scenario: &'a Scenario) -> (Self, Report) {
        let begin = Instant::now();
        let mut search = Self {
            scenario,
            states: Vec::new(),
            parents: Vec::new(),
            numbers: ByFingerprint::default(),
            edges: Vec::new(),
            violations: Vec::new(),
            steps: 0,
        };
        search.number(&State::initial(scenario), 0);
        let complete = search.visit();
        let unreachable = if complete { search.unreachable() } else { Vec::new() };
        let was_started_again = |state: &State| state.history.0.iter().any(|history| history.starts > 1);
        let report = Report {
            states: search.states.len(),
            steps: search.steps,
            complete,
            violations: search.violations.clone(),
            unreachable,
            second_runs: search.states.iter().filter(|state| was_started_again(state)).count(),
            duration: begin.elapsed(),
        };
        (search, report)
    }

    /// Returns the number of a state; a new state is queued for a visit.
    fn number(&mut self, state: &State, parent: Number) -> Number {
        let new = self.states.len() as Number;
        let number = *self.numbers.entry(fingerprint::of(state)).or_insert(new);
        if number == new {
            self.states.push(*state);
            self.parents.push(parent);
            if let Some(violation) = state.violation
                && !self.violations.iter().any(|(known, _)| *known == violation)
            {
                self.violations.push((violation, new));
            }
        }
        number
    }

    /// Visits all queued states. Returns false if it stopped early.
    fn visit(&mut self) -> bool {
        let mut steps = Steps::default();
        let mut visited = 0;
        while visited < self.states.len() {
            let state = self.states[visited];
            steps::all(&state, self.scenario, &mut steps);
            for step in &mut steps.0 {
                steps::reduce(&mut step.state, self.scenario);
                let number = self.number(&step.state, visited as Number);
                if step.kind != Kind::Fault {
                    self.edges.push((visited as Number, number));
                }
            }
            self.steps += steps.0.len();
            visited += 1;
            let is_decided = !self.scenario.all && !self.violations.is_empty();
            if is_decided || self.states.len() > self.scenario.max_states {
                return false;
            }
        }
        true
    }

    /// Returns the goals that some state cannot reach. A state with a violation counts as reaching all goals.
    fn unreachable(&self) -> Vec<Unreachable> {
        let backwards = Backwards::new(self.states.len(), &self.edges);
        let mut all = Vec::new();
        for goal in Goal::all(self.scenario) {
            let holds = |state: &State| state.violation.is_some() || goal.holds(state, self.scenario);
            let mut reaches: Vec<bool> = self.states.iter().map(holds).collect();
            let mut todo: Vec<Number> =
                (0..self.states.len() as Number).filter(|&number| reaches[number as usize]).collect();
            while let Some(number) = todo.pop() {
                for &from in backwards.sources(number) {
                    if !reaches[from as usize] {
                        reaches[from as usize] = true;
                        todo.push(from);
                    }
                }
            }
            if let Some(first) = reaches.iter().position(|&it| !it) {
                let states = reaches.iter().filter(|&&it| !it).count();
                all.push(Unreachable { goal, first: first as Number, states });
            }
        }
        all
    }
}

/// Edges by their target: the sources of number `n` are `sources[begins[n]..begins[n + 1]]`.
struct Backwards {
    begins: Vec<u32>,
    sources: Vec<Number>,
}

impl Backwards {
    fn new(states: usize, edges: &[(Number, Number)]) -> Self {
        let mut begins = vec![0; states + 1];
        for &(_, to) in edges {
            begins[to as usize + 1] += 1;
        }
        for number in 0..states {
            begins[number + 1] += begins[number];
        }
        let mut free = begins.clone();
        let mut sources = vec![0; edges.len()];
        for &(from, to) in edges {
            sources[free[to as usize] as usize] = from;
            free[to as usize] += 1;
        }
        Self { begins, sources }
    }

    fn sources(&self, to: Number) -> &[Number] {
        &self.sources[self.begins[to as usize] as usize..self.begins[to as usize + 1] as usize]
    }
}
