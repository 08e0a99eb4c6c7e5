//! Lifetimes and runs of a fleet that others started, from its status records and from the commands on it.
//!
//! A worker that announced its stop was stopped. A worker that fell silent counts as killed at its last status record.
//! A command takes effect at some time between its begin and its end. So status records date stops, and the worker's
//! last sign dates a kill. Pure; part of the [evidence](super).

use std::collections::{BTreeMap, HashMap};

use super::super::receipt;
use super::{Action, Evidence, Exit, Life, Notice, Run, overlaps};

impl<'a> Evidence<'a> {
    /// Makes process lifetimes from status records and from commands.
    pub(super) fn add_hearsay(&mut self) {
        let silence = self.begin.worker_timeout_ms as f64 / 1e3;
        // The status records are complete up to the reading of the topics.
        let last = self.notices.values().filter_map(|notices| notices.last()).map(|notice| notice.at);
        let (end, actions) = (last.fold(self.read, f64::max), &self.actions);
        let heard = Heard { silence, end, outages: &self.outages, actions };
        let results = self.results_by_worker();
        for (worker, notices) in &self.notices {
            let done = self.workers.remove(worker).unwrap_or_default();
            let results = results.get(worker).map(Vec::as_slice).unwrap_or_default();
            let mut processes: Vec<Vec<&Notice<'a>>> = Vec::new();
            for notice in notices {
                let known = processes
                    .iter_mut()
                    .rev()
                    .find(|own| own.first().is_some_and(|one| one.instance == notice.instance));
                match known {
                    Some(own) => own.push(notice),
                    None => processes.push(vec![notice]),
                }
            }
            // A process begins with its first status record. The first process may be older than the run, but it began
            // after the exit of an earlier process.
            let mut begins: Vec<f64> = processes.iter().filter_map(|own| own.first()).map(|first| first.at).collect();
            let ends = done.iter().filter_map(|life| life.exit.as_ref()).map(|exit| exit.at);
            for begin in begins.iter_mut().take(1) {
                *begin = ends.clone().filter(|at| at <= begin).fold(f64::NEG_INFINITY, f64::max);
            }
            let mut lives: Vec<Life<'a>> = Vec::new();
            for (index, own) in processes.iter().enumerate() {
                let from = begins.get(index).copied().unwrap_or_default();
                let until = begins.get(index + 1).copied().unwrap_or(f64::INFINITY);
                let within = results.iter().copied().filter(|at| *at >= from && *at < until);
                let result = within.fold(f64::NEG_INFINITY, f64::max);
                lives.extend(heard.life(worker, own, (from, until), &done, result));
            }
            // Processes that a command ended before their first status record.
            for life in done {
                let ended = life.kill.or(life.terms.first().copied()).filter(|_| life.exit.is_some());
                let Some((_, at)) = ended else { continue };
                let end = life.exit.as_ref().map_or(at, |exit| exit.at);
                let ends = |other: &Life<'_>| other.contains(at) || other.from < end && other.contains(end);
                if lives.iter().any(ends) {
                    continue;
                }
                let before = lives.iter().filter_map(|other| other.exit.as_ref()).map(|exit| exit.at);
                let from = before.filter(|before| *before <= at).fold(life.from, f64::max);
                lives.push(Life { from, ..life });
            }
            lives.sort_by(|one, other| one.from.total_cmp(&other.from));
            self.workers.insert(worker, lives);
        }
    }

    fn results_by_worker(&self) -> HashMap<&'a str, Vec<f64>> {
        let mut results: HashMap<&'a str, Vec<f64>> = HashMap::new();
        for run in self.tasks.values().flat_map(|story| &story.runs) {
            results.entry(run.worker).or_default().extend(run.end.as_ref().map(|end| end.at));
        }
        results
    }

    /// Adds runs that appear only in status records: a first start without a result leaves no other trace. Such a run
    /// began after the last status record without it. The earliest possible start is used, so that a busy worker never
    /// counts as free.
    pub(super) fn add_listed_runs(&mut self) {
        /// Kafka dates a status record at most this long after the worker made it.
        const LATE: f64 = 1.0;
        for (worker, notices) in &self.notices {
            for (index, notice) in notices.iter().enumerate() {
                let before = notices.iter().take(index).rev().find(|before| before.instance == notice.instance);
                for task in notice.current_tasks {
                    let Some(story) = self.tasks.get_mut(task.as_str()) else { continue };
                    let known = story.runs.iter().any(|run| {
                        run.worker == *worker
                            && run.began <= notice.at + LATE
                            && run.end.as_ref().is_none_or(|end| end.at >= notice.at - LATE)
                    });
                    if !known {
                        let accepted = story.accepted.first().map(|(_, at)| *at);
                        let earliest = [before.map(|before| before.at), accepted].into_iter().flatten();
                        let began = earliest.reduce(f64::max).map_or(notice.at, |earliest| earliest.min(notice.at));
                        story.add(Run::unfinished(worker, began, notice.line));
                    }
                }
            }
        }
    }

    /// Adds runs that appear only in a receipt, as abandoned tasks.
    pub(super) fn add_abandoned_runs(&mut self) {
        for life in self.workers.values().flatten() {
            let Some((exit, receipt)) = life.exit.as_ref().and_then(|exit| Some((exit, exit.receipt?))) else {
                continue;
            };
            let at = life.terms.first().map_or(exit.at, |(_, at)| *at);
            for task in receipt::abandoned(receipt) {
                let Some(story) = self.tasks.get_mut(task) else { continue };
                let own = |run: &Run<'_>| run.worker == life.process && (life.from..=exit.at).contains(&run.began);
                if !story.runs.iter().any(own) {
                    story.add(Run::unfinished(life.process, at, exit.line));
                }
            }
        }
    }
}

/// A record that was sent before the exit of its process may be dated this much later.
const ON_ITS_WAY: f64 = 0.5;

/// Limits for reading status records.
struct Heard<'e> {
    /// A worker that is silent for longer is dead, or hung; in seconds.
    silence: f64,
    /// When the last status record was read.
    end: f64,
    outages: &'e [(f64, f64)],
    actions: &'e BTreeMap<u32, Action<'e>>,
}

impl Heard<'_> {
    /// The lifetime of one process in this interval, from its status records, its last result, and the commands on it.
    fn life<'a>(
        &self,
        worker: &'a str,
        notices: &[&Notice<'a>],
        (from, until): (f64, f64),
        done: &[Life<'a>],
        result: f64,
    ) -> Option<Life<'a>> {
        let (first, last) = (notices.first()?, notices.last()?);
        let mut life = Life { process: worker, from, ready: Some(first.at), by_hearsay: true, ..Life::default() };
        let within = |at: f64| at >= from && at < until;
        // A command without effect has ended no process, whatever its exit status.
        let ended_by = |at: f64| last.at <= at + ON_ITS_WAY || overlaps(self.outages, at, last.at);
        let (mut terms, mut exit) = (Vec::new(), None);
        for other in done {
            let frozen: Vec<(f64, f64)> = other.frozen.iter().filter(|(from, _)| within(*from)).copied().collect();
            life.slack = life.slack.max(if frozen.is_empty() { 0.0 } else { other.slack });
            life.frozen.extend(frozen);
            life.quiet.extend(other.quiet.iter().filter(|(from, _)| within(*from)));
            // A command may begin before the first status record of the process that it ends.
            let end = |at: f64| other.exit.as_ref().map_or(at, |exit| exit.at);
            let ended = |at: f64| ended_by(end(at));
            life.kill = life.kill.or(other.kill.filter(|(_, at)| within(end(*at)) && ended(*at)));
            let own = other.terms.iter().filter(|(_, at)| within(end(*at)));
            terms.extend(own.map(|(line, at)| (*line, *at, ended(*at))));
            exit = exit.or(other.exit.as_ref().filter(|exit| within(exit.at) && ended_by(exit.at)));
        }
        // One action stops a process; an earlier action that failed has not.
        if let Some((_, last, _)) = terms.last().copied() {
            let action = self.action(worker, last);
            terms.retain(|(_, at, _)| self.action(worker, *at) == action);
        }
        life.terms = match notices.iter().find(|notice| notice.status == "shutdown_started") {
            // Further signals came at an unknown time after the first.
            Some(started) => vec![(started.line, started.at); terms.len().max(1)],
            None => terms.iter().filter(|(.., ended)| *ended).map(|(line, at, _)| (*line, *at)).collect(),
        };
        let stopped = !terms.is_empty() && !life.terms.is_empty();
        let gaps = notices.windows(2).filter_map(|pair| Some((pair.first()?.at, pair.last()?.at)));
        let hung = |(from, until): &(f64, f64)| until - from > self.silence && !overlaps(self.outages, *from, *until);
        let unexplained: Vec<(f64, f64)> =
            gaps.filter(hung).filter(|(from, until)| !life.is_frozen(*from, *until)).collect();
        life.frozen.extend(unexplained);
        let ended = |line, at, code, signal| Exit { line, at, code, signal, receipt: last.receipt };
        let said = last.receipt.and_then(receipt::exit_code);
        let last_sign = last.at.max(result);
        life.exit = match (exit, life.kill) {
            (Some(exit), Some((line, at))) => {
                life.by_hearsay = false;
                life.kill = Some((line, at.max(last_sign).min(exit.at)));
                Some(ended(exit.line, exit.at, exit.code, exit.signal))
            }
            (Some(exit), None) if last.status == "shutdown_completed" && exit.signal.is_none() => {
                Some(ended(last.line, last.at, exit.code.or(said), None))
            }
            (Some(exit), None) => Some(ended(exit.line, exit.at, exit.code, exit.signal)),
            (None, _) if last.status == "shutdown_completed" => Some(ended(last.line, last.at, said, None)),
            (None, kill) if kill.is_some() || self.is_silent_after(last.at) => {
                life.vanished = stopped && kill.is_none();
                life.kill = Some((last.line, last_sign));
                Some(ended(last.line, last_sign, None, Some(9)))
            }
            (None, _) => None,
        };
        Some(life)
    }

    /// The action that sent this worker a SIGTERM at this time.
    fn action(&self, worker: &str, at: f64) -> Option<u32> {
        let sent = |action: &&Action<'_>| action.signals.contains(&(worker, "SIGTERM", at));
        self.actions.values().find(sent).map(|action| action.number)
    }

    /// Whether no status record came after this time, though Kafka was available for long enough.
    fn is_silent_after(&self, at: f64) -> bool {
        let away = self.outages.iter().filter(|(_, back)| *back > at).map(|(_, back)| back.min(self.end));
        self.end - away.fold(at, f64::max) > self.silence
    }
}
