//! The ledger as evidence: requests, the outcome of each task, and the lifetime of each process.
//!
//! It has facts with their ledger lines; the judge decides what they mean. Pure. Called by the judge and the timeline.

mod hearsay;
mod life;
pub(super) mod outages;
mod story;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::fact::{Answer, Begin, Ending, Fact, Line};
use super::spans::Spans;
use outages::Outage;

use life::Nodes;
use story::Pieces;

pub(super) use life::{Exit, Life};
pub(super) use story::{Held, Run, RunEnd, Story};

/// Two clocks may differ by this for the same moment, in seconds. The drill logs a signal before it sends it, reads a
/// journal after it was written, and Kafka dates records in whole milliseconds.
pub(super) const MOMENT: f64 = 0.15;

#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) line: usize,
    pub(super) at: f64,
    pub(super) gateway: &'a str,
    pub(super) work: f64,
    /// The request whose text and key it repeats, or its own number.
    pub(super) of: u64,
    pub(super) poison: bool,
    pub(super) answered: Option<(usize, f64, &'a Answer)>,
    pub(super) fetched: Option<(usize, f64, &'a Answer)>,
}

#[derive(Clone, Debug)]
pub(super) struct Notice<'a> {
    pub(super) line: usize,
    pub(super) at: f64,
    pub(super) instance: &'a str,
    pub(super) status: &'a str,
    pub(super) current_tasks: &'a [String],
    pub(super) receipt: Option<&'a Value>,
}

/// The fleet as a gateway shows it from this time on.
#[derive(Clone, Debug)]
pub(super) struct View<'a> {
    pub(super) line: usize,
    pub(super) at: f64,
    pub(super) active: &'a [String],
    pub(super) stopping: &'a [String],
}

/// The partition to which a record was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum On {
    Tasks(i32),
    Results,
    /// Another topic of the programs, whose leader the ledger does not have.
    Other,
}

#[derive(Clone, Debug)]
pub(super) struct Action<'a> {
    pub(super) number: u32,
    pub(super) line: usize,
    pub(super) what: &'a str,
    pub(super) target: Option<&'a str>,
    pub(super) carried: Option<bool>,
    /// When it was ordered, and when it was carried out.
    pub(super) from: f64,
    pub(super) until: f64,
    /// The detail of the order, and the outcome.
    pub(super) ordered: &'a str,
    pub(super) detail: &'a str,
    /// Its signals: process, signal, time.
    pub(super) signals: Vec<(&'a str, &'a str, f64)>,
}

/// All facts of a run, by what they concern.
#[derive(Debug, Default)]
pub(super) struct Evidence<'a> {
    /// The whole ledger, for facts that one row reads.
    pub(super) lines: &'a [Line],
    pub(super) begin: Begin,
    pub(super) requests: BTreeMap<u64, Request<'a>>,
    pub(super) tasks: BTreeMap<&'a str, Story<'a>>,
    pub(super) workers: BTreeMap<&'a str, Vec<Life<'a>>>,
    pub(super) gateways: BTreeMap<&'a str, Vec<Life<'a>>>,
    pub(super) brokers: BTreeMap<&'a str, Vec<Life<'a>>>,
    pub(super) notices: BTreeMap<&'a str, Vec<Notice<'a>>>,
    pub(super) views: BTreeMap<&'a str, Vec<View<'a>>>,
    pub(super) actions: BTreeMap<u32, Action<'a>>,
    /// When Kafka was unavailable, for any reason.
    pub(super) outages: Vec<(f64, f64)>,
    /// When Kafka did not answer the drill's own reader, with the ledger lines.
    pub(super) seen_away: Vec<(usize, f64, f64)>,
    /// When Kafka appended a record, and where.
    pub(super) appended: Vec<(f64, On)>,
    /// When the drill had frozen or stopped a broker node, or moved a leader.
    pub(super) done_to_broker: Vec<Outage<'a>>,
    pub(super) lag: Option<(usize, i64)>,
    pub(super) load_ended: f64,
    /// When requests found no free caller.
    pub(super) late: Vec<f64>,
    /// Whether every start of a task was seen.
    pub(super) sees_starts: bool,
    /// When the topics were read.
    pub(super) read: f64,
    pub(super) end: f64,
    pub(super) ending: Ending,
    /// The runs of each worker: task, and index of the run.
    runs: HashMap<&'a str, Spans<(&'a str, usize)>>,
    /// Requests that others repeat.
    repeated: HashSet<u64>,
    /// The first request with each text.
    by_text: HashMap<u64, u64>,
    /// The answered requests of each gateway, by the time in which they waited.
    waits: HashMap<&'a str, Spans<u64>>,
}

/// Whether one of the intervals overlaps this one.
pub(super) fn overlaps(intervals: &[(f64, f64)], from: f64, until: f64) -> bool {
    intervals.iter().any(|(begin, end)| *begin <= until && from <= *end)
}

impl<'a> Evidence<'a> {
    pub(super) fn new(lines: &'a [Line]) -> Self {
        let sees_starts = lines.iter().any(|line| matches!(line.fact, Fact::RunBegan { .. }));
        let mut evidence = Self { lines, load_ended: f64::INFINITY, sees_starts, ..Self::default() };
        let mut pieces: HashMap<&'a str, Pieces<'a>> = HashMap::new();
        let mut nodes = Nodes::default();
        for (index, line) in lines.iter().enumerate() {
            evidence.take(index + 1, line, &mut pieces);
        }
        evidence.take_processes(lines, &mut nodes);
        for (task_id, pieces) in pieces {
            let (runs, given_up) = pieces.runs(evidence.sees_starts);
            let story = evidence.tasks.entry(task_id).or_default();
            (story.runs, story.given_up) = (runs, given_up);
        }
        // The topics are read one partition after the other.
        for story in evidence.tasks.values_mut() {
            story.accepted.sort_by(|(_, one), (_, other)| one.total_cmp(other));
        }
        evidence.end = lines.iter().map(|line| line.at).fold(0.0, f64::max);
        let lives: Vec<Vec<Life<'a>>> = nodes.lives.values().cloned().collect();
        let actions: Vec<&Action<'a>> = evidence.actions.values().collect();
        evidence.done_to_broker = outages::outages(&evidence.begin, &lives, &actions, &nodes.led, evidence.end);
        evidence.brokers = nodes.lives;
        evidence.outages.extend(evidence.seen_away.iter().map(|(_, from, until)| (*from, *until)));
        evidence.outages.extend(evidence.done_to_broker.iter().map(|outage| (outage.from, outage.until)));
        for notices in evidence.notices.values_mut() {
            notices.sort_by(|one, other| one.at.total_cmp(&other.at));
        }
        if !evidence.sees_starts {
            evidence.add_listed_runs();
        }
        if !evidence.begin.owns_processes {
            evidence.add_hearsay();
            evidence.add_abandoned_runs();
        }
        // After the last run was added.
        evidence.sort();
        evidence
    }

    /// Builds the indexes of runs and waiting requests.
    fn sort(&mut self) {
        let mut runs: HashMap<&'a str, Vec<_>> = HashMap::new();
        // A poison task is in flight for an instant only.
        for (id, story) in self.tasks.iter().filter(|(_, story)| !self.is_poison(story)) {
            for (index, run) in story.runs.iter().enumerate() {
                let died = || Some(self.life(run.worker, run.began)?.exit.as_ref()?.at);
                let until = run.end.as_ref().map(|end| end.at).or_else(died).unwrap_or(f64::INFINITY);
                runs.entry(run.worker).or_default().push((run.began, until.max(run.began), (*id, index)));
            }
        }
        let mut waits: HashMap<&'a str, Vec<_>> = HashMap::new();
        for (number, request) in &self.requests {
            if let Some((_, answered, _)) = request.answered {
                waits.entry(request.gateway).or_default().push((request.at, answered, *number));
            }
        }
        self.runs = runs.into_iter().map(|(worker, runs)| (worker, Spans::new(runs))).collect();
        self.waits = waits.into_iter().map(|(gateway, waits)| (gateway, Spans::new(waits))).collect();
    }

    /// The runs of a worker that overlap this interval, the latest start first. A run without a result lasts until its
    /// worker ends.
    pub(super) fn runs_during(&self, worker: &str, from: f64, until: f64) -> impl Iterator<Item = Held<'_, 'a>> {
        let found = self.runs.get(worker).map(|runs| runs.during(from, until)).into_iter().flatten();
        found.filter_map(|(id, index)| {
            let story = self.tasks.get(id)?;
            Some(Held { id, story, run: story.runs.get(*index)?, work: self.work_of(story) })
        })
    }

    /// The requests that waited for an answer from this gateway at this moment.
    pub(super) fn waiting(&self, gateway: &str, at: f64) -> impl Iterator<Item = &Request<'a>> {
        let found = self.waits.get(gateway).map(|waits| waits.during(at, at)).into_iter().flatten();
        found.filter_map(|number| self.requests.get(number))
    }

    fn take(&mut self, number: usize, line: &'a Line, pieces: &mut HashMap<&'a str, Pieces<'a>>) {
        let at = line.at;
        let on = match &line.fact {
            Fact::Accepted { partition, .. } => Some(On::Tasks(*partition)),
            Fact::RunEnded { .. } | Fact::Notified { .. } => Some(On::Results),
            Fact::Restarted { .. } => Some(On::Other),
            _ => None,
        };
        self.appended.extend(on.map(|on| (at, on)));
        match &line.fact {
            Fact::Begin(begin) => self.begin = begin.clone(),
            Fact::Submitted { number: request, gateway, work_ms, repeats, poison, .. } => {
                let (work, of) = (work_ms.unwrap_or_default() as f64 / 1e3, repeats.unwrap_or(*request));
                let (answered, fetched) = (None, None);
                let request_of = Request { line: number, at, gateway, work, of, poison: *poison, answered, fetched };
                self.requests.insert(*request, request_of);
                self.by_text.entry(of).or_insert(*request);
                self.repeated.extend(repeats);
            }
            Fact::Late => self.late.push(at),
            Fact::Answered { number: request, answer, .. } => {
                if let Some(request) = self.requests.get_mut(request) {
                    request.answered = Some((number, at, answer));
                }
            }
            Fact::Fetched { number: request, answer, .. } => {
                if let Some(request) = self.requests.get_mut(request) {
                    request.fetched = Some((number, at, answer));
                }
            }
            Fact::Ordered { action, what, target, detail } => {
                let target = target.as_deref();
                let (from, until, carried, signals) = (at, f64::INFINITY, None, Vec::new());
                let (line, number, ordered) = (number, *action, detail);
                let action_of = Action { number, line, what, target, carried, from, until, ordered, detail, signals };
                self.actions.insert(number, action_of);
            }
            Fact::Carried { action, done, detail } => {
                if let Some(action) = self.actions.get_mut(action) {
                    // An action of several commands is done if all are: the first failure stays.
                    if action.carried != Some(false) {
                        (action.carried, action.detail) = (Some(*done), detail);
                    }
                    action.until = at;
                }
            }
            // The rows that need these read `lines`.
            Fact::ReadBack { .. } | Fact::ReadyAsked { .. } | Fact::Disagreed { .. } | Fact::Healed => {}
            // `take_processes` takes these later, in the order of time.
            Fact::Started { .. }
            | Fact::Ready { .. }
            | Fact::Signalled { .. }
            | Fact::Exited { .. }
            | Fact::Led { .. } => {}
            Fact::RunBegan { worker, task_id, delivery } => {
                pieces.entry(task_id).or_default().begans.push((number, at, worker, *delivery));
            }
            Fact::HandlerEnded { worker, task_id, delivery } => {
                pieces.entry(task_id).or_default().handled.push((at, worker, *delivery));
            }
            Fact::Restarted { task_id, worker, delivery, .. } => {
                pieces.entry(task_id).or_default().restarts.push((number, at, worker, *delivery));
            }
            Fact::RunEnded { task_id, worker, seconds, success, digest, fault, .. } => {
                let end = RunEnd { at, digest, fault: fault.as_deref(), success: *success, seconds: *seconds };
                pieces.entry(task_id).or_default().ends.push((number, worker, end));
            }
            Fact::Fleet { gateway, active, stopping } => {
                self.views.entry(gateway).or_default().push(View { line: number, at, active, stopping });
            }
            Fact::KafkaAway { until } => self.seen_away.push((number, at, *until)),
            Fact::LoadEnded => self.load_ended = at,
            Fact::Accepted { number: request, task_id, partition, .. } => {
                let story = self.tasks.entry(task_id).or_default();
                story.number = story.number.or(*request);
                story.partition = story.partition.or(Some(*partition));
                story.accepted.push((number, at));
            }
            Fact::Notified { worker, instance, status, current_tasks, receipt, .. } => {
                let receipt = receipt.as_ref();
                let notice = Notice { line: number, at, instance, status, current_tasks, receipt };
                self.notices.entry(worker).or_default().push(notice);
            }
            Fact::Dead { task_id, .. } => {
                let id = task_id.as_deref().unwrap_or_default();
                self.tasks.entry(id).or_default().dead.push(number);
            }
            Fact::Lag { tasks } => (self.lag, self.read) = (Some((number, *tasks)), at),
            Fact::End(ending) => self.ending = ending.clone(),
        }
    }

    /// The requested extra time of a task, in seconds; 0 for a task of another run.
    pub(super) fn work_of(&self, story: &Story<'_>) -> f64 {
        self.request_of(story).map_or(0.0, |request| request.work)
    }

    /// The request of a task, or a repeat of it if the first request was never sent.
    pub(super) fn request_of(&self, story: &Story<'_>) -> Option<&Request<'a>> {
        self.by_text.get(&story.number?).and_then(|number| self.requests.get(number))
    }

    /// Whether the request shares its Idempotency-Key with another request.
    pub(super) fn is_repeated(&self, request: &Request<'a>) -> bool {
        self.repeated.contains(&request.of)
    }

    /// Whether the request asked for a handler that fails each time.
    pub(super) fn is_poison(&self, story: &Story<'_>) -> bool {
        self.request_of(story).is_some_and(|request| request.poison)
    }

    /// Network faults on a worker's share-session requests: the worker may lose every record that it holds.
    pub(super) fn session_faults(&self, from: f64, until: f64) -> impl Iterator<Item = &Action<'a>> {
        let faults =
            self.actions.values().filter(|action| action.what == "fault" && action.ordered.contains(" at Share"));
        faults.filter(move |fault| fault.from <= until && from <= fault.until)
    }

    /// Whether Kafka was unavailable at some time in this interval.
    pub(super) fn kafka_away(&self, from: f64, until: f64) -> bool {
        overlaps(&self.outages, from, until)
    }
}
