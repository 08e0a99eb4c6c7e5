//! A scenario: its faults, partitions, tasks and twins, and the text that describes it.

use crate::fault::{Fault, PerFault};
use crate::ids::{PartitionId, Slot, TaskId};
use crate::twin::{Twin, Twins};
use std::str::FromStr;

/// A scenario and options of its search. Its text is `FAULTS [PARTITIONS [TASKS]] [OPTIONS]`, as in `move+login 1 1
/// --sym`.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// How often each fault may occur.
    pub faults: PerFault<u8>,
    /// Departures from the protocol (`--rules`).
    twins: Twins,
    partitions: usize,
    tasks: usize,
    /// Tasks that a worker runs at the same time (`--conc`).
    pub handlers: usize,
    /// Connections of a worker to a broker (`--slots`).
    pub connections: usize,
    /// The workers are interchangeable: a state and its mirror image count once (`--sym`).
    pub symmetric: bool,
    /// There is no worker 1 (`--alone`).
    pub one_worker: bool,
    /// Tasks may be produced at any time; otherwise all exist from the start (`--produce`).
    pub produce_later: bool,
    /// Broker 0 leads all partitions (`--same-leader`).
    pub same_leader: bool,
    /// A broker that is down keeps its partitions (`--rf1`).
    pub no_election: bool,
    /// TCP never gives a dead connection up (`--deaf`).
    pub deaf: bool,
    /// A broker that is down and a path that is cut never recover (`--noback`).
    pub no_recovery: bool,
    /// Any second start is a violation, whatever its cause (`--once`).
    pub once: bool,
    /// Connections are replaced on purpose only while no request is out: rule 4 (`--calm`).
    pub calm: bool,
    /// I6 holds after a black hole, too (`--strict`).
    pub strict: bool,
    /// The search continues after the first violation (`--all`).
    pub all: bool,
    /// Prints no traces (`--quiet`).
    pub quiet: bool,
    /// Number of states after which the search ends incomplete (`--max`).
    pub max_states: usize,
}

impl Scenario {
    /// Whether this twin is in the scenario.
    pub fn has(&self, twin: Twin) -> bool {
        self.twins.contains(twin)
    }

    /// The partitions.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionId> + use<> {
        PartitionId::ALL.into_iter().take(self.partitions)
    }

    /// The tasks.
    pub fn tasks(&self) -> impl Iterator<Item = TaskId> + use<> {
        TaskId::ALL.into_iter().take(self.tasks)
    }

    /// The partition of a task: its number modulo the number of partitions.
    pub fn partition_of(&self, task: TaskId) -> PartitionId {
        if self.partitions == 2 && task == TaskId::T1 { PartitionId::P1 } else { PartitionId::P0 }
    }
}

impl FromStr for Scenario {
    type Err = String;

    /// Reads a scenario.
    ///
    /// # Errors
    ///
    /// The unknown word, or the number that is out of range.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let mut scenario = Self {
            faults: faults(words.next().ok_or("no faults; 'none' is a scenario, too")?)?,
            twins: Twins::default(),
            partitions: 1,
            tasks: 2,
            handlers: 1,
            connections: Slot::ALL.len(),
            symmetric: false,
            one_worker: false,
            produce_later: false,
            same_leader: false,
            no_election: false,
            deaf: false,
            no_recovery: false,
            once: false,
            calm: false,
            strict: false,
            all: false,
            quiet: false,
            max_states: 12_000_000,
        };
        let mut words = words.peekable();
        for count in [&mut scenario.partitions, &mut scenario.tasks] {
            if let Some(word) = words.next_if(|word| !word.starts_with("--")) {
                *count = number(word)?;
            }
        }
        scenario.read_options(words)?;
        let limits = [
            (scenario.partitions, PartitionId::ALL.len(), "partitions"),
            (scenario.tasks, TaskId::ALL.len(), "tasks"),
            (scenario.connections, Slot::ALL.len(), "connections"),
            (scenario.handlers, TaskId::ALL.len(), "handlers"),
        ];
        for (count, most, name) in limits {
            if count == 0 || count > most {
                return Err(format!("{count} {name}: 1 to {most} are possible"));
            }
        }
        Ok(scenario)
    }
}

impl Scenario {
    fn read_options<'a>(&mut self, mut words: impl Iterator<Item = &'a str>) -> Result<(), String> {
        while let Some(option) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{option} needs a value"));
            match option {
                "--rules" => {
                    for name in value()?.split('+') {
                        self.twins.insert(Twin::from_name(name).ok_or_else(|| format!("'{name}' is no twin"))?);
                    }
                }
                "--conc" => self.handlers = number(value()?)?,
                "--slots" => self.connections = number(value()?)?,
                "--max" => self.max_states = number(value()?)?,
                "--sym" => self.symmetric = true,
                "--alone" => self.one_worker = true,
                "--produce" => self.produce_later = true,
                "--same-leader" => self.same_leader = true,
                "--rf1" => self.no_election = true,
                "--deaf" => self.deaf = true,
                "--noback" => self.no_recovery = true,
                "--once" => self.once = true,
                "--calm" => self.calm = true,
                "--strict" => self.strict = true,
                "--all" => self.all = true,
                "--quiet" => self.quiet = true,
                _ => return Err(format!("'{option}' is no option")),
            }
        }
        Ok(())
    }
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("'{text}' is no number"))
}

/// Reads `none`, or names of faults joined by `+`.
fn faults(text: &str) -> Result<PerFault<u8>, String> {
    let mut faults = PerFault::default();
    for name in text.split('+').filter(|&name| name != "none") {
        faults[Fault::from_name(name).ok_or_else(|| format!("'{name}' is no fault"))?] += 1;
    }
    Ok(faults)
}
