//! The lifetime of each process: its start, its signals, and its exit.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::fact::{Fact, Led, Line};
use super::{Evidence, MOMENT, overlaps};

/// How a process ended.
#[derive(Clone, Debug)]
pub(crate) struct Exit<'a> {
    pub(crate) line: usize,
    pub(crate) at: f64,
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) receipt: Option<&'a Value>,
}

/// One process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Life<'a> {
    pub(crate) process: &'a str,
    pub(crate) from: f64,
    pub(crate) ready: Option<f64>,
    /// Each SIGTERM.
    pub(crate) terms: Vec<(usize, f64)>,
    pub(crate) kill: Option<(usize, f64)>,
    /// Intervals in which it was frozen; for commands, the longest possible intervals.
    pub(crate) frozen: Vec<(f64, f64)>,
    /// Intervals in which it was quiet: from SIGUSR1 to SIGUSR2.
    pub(crate) quiet: Vec<(f64, f64)>,
    /// The longest time that a freeze or thaw command took: the process was frozen for at least that much less. 0
    /// without commands.
    pub(crate) slack: f64,
    pub(crate) exit: Option<Exit<'a>>,
    /// Only its status records and commands show how it ended.
    pub(crate) by_hearsay: bool,
    /// It got a signal to stop, was not killed, and fell silent without `shutdown_completed`.
    pub(crate) vanished: bool,
}

impl Life<'_> {
    pub(crate) fn contains(&self, at: f64) -> bool {
        /// After an unobserved kill the worker counts as alive until its next status record would have been due.
        const NEXT_WORD: f64 = 2.5;
        let until =
            |exit: &Exit<'_>| if self.by_hearsay && exit.signal.is_some() { exit.at + NEXT_WORD } else { exit.at };
        self.from <= at && self.exit.as_ref().is_none_or(|exit| at <= until(exit))
    }

    pub(crate) fn is_frozen(&self, from: f64, until: f64) -> bool {
        overlaps(&self.frozen, from, until)
    }

    /// Whether it was frozen or quiet at any time between these.
    pub(crate) fn is_held(&self, from: f64, until: f64) -> bool {
        self.is_frozen(from, until) || overlaps(&self.quiet, from, until)
    }

    /// The second signal, if it ended the process; a signal after the exit has no effect.
    pub(crate) fn second(&self) -> Option<f64> {
        let end = self.exit.as_ref().map_or(f64::INFINITY, |exit| exit.at);
        self.terms.get(1).map(|(_, at)| *at).filter(|at| *at < end)
    }

    /// When it died by a signal.
    pub(crate) fn death(&self) -> Option<f64> {
        let exit = self.exit.as_ref().filter(|exit| exit.signal.is_some())?;
        Some(self.kill.map_or(exit.at, |(_, at)| at.min(exit.at)))
    }

    /// When it stopped taking tasks: its first SIGTERM, its end, or never.
    pub(crate) fn works_until(&self) -> f64 {
        let term = self.terms.first().map_or(f64::INFINITY, |(_, at)| *at);
        let kill = self.kill.map_or(f64::INFINITY, |(_, at)| at);
        term.min(kill).min(self.exit.as_ref().map_or(f64::INFINITY, |exit| exit.at))
    }
}

/// The nodes of the broker: their lifetimes, and what they led at each action.
#[derive(Debug, Default)]
pub(super) struct Nodes<'a> {
    pub(super) lives: BTreeMap<&'a str, Vec<Life<'a>>>,
    pub(super) led: Vec<(u32, &'a str, f64, &'a Led)>,
}

impl<'a> Evidence<'a> {
    /// Takes starts, signals and exits in the order of time. A command reports them at its end, and commands may
    /// overlap.
    pub(super) fn take_processes(&mut self, lines: &'a [Line], nodes: &mut Nodes<'a>) {
        let led = lines.iter().filter_map(|line| match &line.fact {
            Fact::Led { action, process, led } => Some((*action, process.as_str(), line.at, led)),
            _ => None,
        });
        nodes.led = led.collect();
        let process_of = |line: &'a Line| match &line.fact {
            Fact::Started { process, .. }
            | Fact::Ready { process }
            | Fact::Signalled { process, .. }
            | Fact::Exited { process, .. } => Some(process.as_str()),
            _ => None,
        };
        let numbered = (1..).zip(lines);
        let mut facts: Vec<_> = numbered.filter_map(|(number, line)| Some((number, line, process_of(line)?))).collect();
        facts.sort_by(|(_, one, _), (_, other, _)| one.at.total_cmp(&other.at));
        for (number, line, process) in facts {
            self.take_process(number, line, process, nodes);
        }
    }

    fn take_process(&mut self, number: usize, line: &'a Line, process: &'a str, nodes: &mut Nodes<'a>) {
        let at = line.at;
        let lives = match process {
            _ if process.starts_with("broker") => nodes.lives.entry(process).or_default(),
            // A gateway of others is known by its address.
            _ if process.starts_with("gateway") || process.starts_with("http://") => {
                self.gateways.entry(process).or_default()
            }
            _ => self.workers.entry(process).or_default(),
        };
        if let Fact::Started { .. } = line.fact {
            lives.push(Life { process, from: at, ..Life::default() });
            return;
        }
        if let Fact::Signalled { action: Some(action), signal, .. } = &line.fact
            && let Some(action) = self.actions.get_mut(action)
        {
            action.signals.push((process, signal, at));
        }
        let is_new = lives.last().is_none_or(|life| {
            let ends = matches!(line.fact, Fact::Exited { .. }) && life.exit.is_none();
            life.by_hearsay && (life.kill.is_some() || life.exit.is_some()) && !ends
        });
        if is_new && !self.begin.owns_processes {
            // Known from status records and from actions; a killed process that has exited cannot be this one.
            lives.push(Life { process, from: f64::NEG_INFINITY, by_hearsay: true, ..Life::default() });
        }
        let Some(life) = lives.last_mut() else { return };
        match &line.fact {
            Fact::Ready { .. } => life.ready = Some(at),
            Fact::Exited { code, signal, receipt, .. } => {
                // A kill command need not report the signal.
                let killed = life.kill.filter(|_| code.is_none() && !self.begin.owns_processes).map(|_| 9);
                let (code, signal) = (*code, signal.or(killed));
                life.exit = Some(Exit { line: number, at, code, signal, receipt: receipt.as_ref() });
            }
            Fact::Signalled { signal, until, .. } => match signal.as_str() {
                // A signal after the exit has no effect.
                "SIGTERM" | "SIGKILL" if life.exit.is_some() => {}
                "SIGTERM" => life.terms.push((number, at)),
                "SIGKILL" => life.kill = Some((number, at)),
                "SIGUSR1" => life.quiet.push((at, f64::INFINITY)),
                "SIGUSR2" => {
                    if let Some((_, resumed @ f64::INFINITY)) = life.quiet.last_mut() {
                        *resumed = until.unwrap_or(at);
                    }
                }
                "SIGSTOP" | "cut" => {
                    life.frozen.push((at, f64::INFINITY));
                    life.slack = life.slack.max(until.map_or(0.0, |until| until - at));
                }
                "SIGCONT" | "mended" => {
                    if let Some((_, thawed @ f64::INFINITY)) = life.frozen.last_mut() {
                        *thawed = until.unwrap_or(at);
                        life.slack = life.slack.max(*thawed - at);
                    }
                }
                _ => {}
            },
            _ => {}
        }
    }

    /// The latest possible start of a process: the end of the command that started it.
    pub(crate) fn begun_by(&self, life: &Life<'_>) -> f64 {
        if self.begin.owns_processes { life.from } else { life.ready.unwrap_or(life.from) }
    }

    /// The lifetime of a process that contains this moment.
    pub(crate) fn life(&self, worker: &str, at: f64) -> Option<&Life<'a>> {
        let lives = self.workers.get(worker)?;
        let begun = lives.get(..lives.partition_point(|life| life.from <= at))?;
        // For a worker known only from status records, the first record can be later than its first task start. The
        // last record can be earlier than its last result.
        let next = lives.get(begun.len()).filter(|life| life.by_hearsay && life.from <= at + MOMENT);
        let last = begun.last().filter(|life| life.by_hearsay && life.contains(at - MOMENT));
        begun.iter().rev().find(|life| life.contains(at)).or(next).or(last)
    }
}
