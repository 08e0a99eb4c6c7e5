//! The ledger put in order: requests, what became of each task, the life of each process.
//!
//! Facts only, with the lines that they come from; what they mean is the judge's. Pure. Called by the judge and the timeline.

mod hearsay;
mod life;
pub(super) mod outages;
mod story;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::fact::{Answer, Begin, Fact, Line};
use super::spans::Spans;
use outages::Outage;

use life::Nodes;
use story::Pieces;

pub(super) use life::{Exit, Life};
pub(super) use story::{Held, Run, RunEnd, Story};

/// Between two clocks that see the same moment: a signal is told before it is sent, a log is read after it was written, and Kafka dates what it gets in whole
/// milliseconds.
pub(super) const MOMENT: f64 = 0.15;

/// One request.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) line: usize,
    pub(super) at: f64,
    pub(super) gateway: &'a str,
    pub(super) work: f64,
    /// The request whose text and key it has; itself, if it repeats none.
    pub(super) of: u64,
    pub(super) poison: bool,
    pub(super) answered: Option<(usize, f64, &'a Answer)>,
    pub(super) fetched: Option<(usize, f64, &'a Answer)>,
}

/// Something a worker said.
#[derive(Clone, Debug)]
pub(super) struct Notice<'a> {
    pub(super) line: usize,
    pub(super) at: f64,
    pub(super) instance: &'a str,
    pub(super) status: &'a str,
    pub(super) current_tasks: &'a [String],
    pub(super) receipt: Option<&'a Value>,
}

/// What a gateway showed, from then on.
#[derive(Clone, Debug)]
pub(super) struct View<'a> {
    pub(super) line: usize,
    pub(super) at: f64,
    pub(super) active: &'a [String],
    pub(super) stopping: &'a [String],
}

/// One answer to asking for a task that is done.
#[derive(Clone, Debug)]
pub(super) struct ReadBack<'a> {
    pub(super) line: usize,
    pub(super) request: u64,
    pub(super) gateway: &'a str,
    pub(super) status: Option<u16>,
    /// Of the result; `None`: there was none.
    pub(super) mark: Option<&'a str>,
}

/// The partition that a record was put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum On {
    Tasks(i32),
    Results,
    /// A topic of ours whose leader is not told.
    Other,
}

/// One action.
#[derive(Clone, Debug)]
pub(super) struct Action<'a> {
    pub(super) number: u32,
    pub(super) line: usize,
    pub(super) what: &'a str,
    pub(super) target: Option<&'a str>,
    pub(super) carried: Option<bool>,
    /// From when it was ordered until it was carried out.
    pub(super) from: f64,
    pub(super) until: f64,
    /// What exactly was ordered, and what came of it.
    pub(super) ordered: &'a str,
    pub(super) detail: &'a str,
    /// Processes that it sent a signal to, with which and when.
    pub(super) signals: Vec<(&'a str, &'a str, f64)>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Evidence<'a> {
    pub(super) begin: Begin,
    pub(super) requests: BTreeMap<u64, Request<'a>>,
    pub(super) tasks: BTreeMap<&'a str, Story<'a>>,
    pub(super) workers: BTreeMap<&'a str, Vec<Life<'a>>>,
    pub(super) gateways: BTreeMap<&'a str, Vec<Life<'a>>>,
    pub(super) brokers: BTreeMap<&'a str, Vec<Life<'a>>>,
    pub(super) notices: BTreeMap<&'a str, Vec<Notice<'a>>>,
    pub(super) views: BTreeMap<&'a str, Vec<View<'a>>>,
    pub(super) actions: BTreeMap<u32, Action<'a>>,
    /// When Kafka was unavailable, for whatever reason.
    pub(super) outages: Vec<(f64, f64)>,
    /// When it did not answer the drill's own reader, with the lines that say so.
    pub(super) seen_away: Vec<(usize, f64, f64)>,
    /// When it has taken a record, and where.
    pub(super) appended: Vec<(f64, On)>,
    /// When the drill had frozen or stopped a node of it, or moved a leader.
    pub(super) done_to_broker: Vec<Outage<'a>>,
    pub(super) lag: Option<(usize, i64)>,
    pub(super) disagreed: Vec<(usize, &'a str, &'a str)>,
    pub(super) load_ended: f64,
    /// From when on everything was well.
    pub(super) healed: f64,
    /// When requests found no free caller.
    pub(super) late: Vec<f64>,
    /// By task.
    pub(super) read_back: BTreeMap<&'a str, Vec<ReadBack<'a>>>,
    /// What gateways said of themselves when they had just been told to stop: line, time, gateway, status.
    pub(super) ready_asked: Vec<(usize, f64, &'a str, Option<u16>)>,
    /// Whether every start of a task was seen.
    pub(super) sees_starts: bool,
    /// When the topics were read.
    pub(super) read: f64,
    pub(super) end: f64,
    pub(super) cut_short: bool,
    /// The runs of each worker: which task, and which of its runs.
    runs: HashMap<&'a str, Spans<(&'a str, usize)>>,
    /// Requests that others repeat.
    repeated: HashSet<u64>,
    /// The first request with each text.
    by_text: HashMap<u64, u64>,
    /// The requests of each gateway that were answered, by the times in which they waited.
    waits: HashMap<&'a str, Spans<u64>>,
}

/// Whether one of the intervals has a moment in common with this one.
pub(super) fn overlaps(intervals: &[(f64, f64)], from: f64, until: f64) -> bool {
    intervals.iter().any(|(begin, end)| *begin <= until && from <= *end)
}

impl<'a> Evidence<'a> {
    /// Takes a ledger's lines.
    pub(super) fn new(lines: &'a [Line]) -> Self {
        let sees_starts = lines.iter().any(|line| matches!(line.fact, Fact::RunBegan { .. }));
        let never = f64::INFINITY;
        let mut evidence = Self { load_ended: never, healed: never, sees_starts, ..Self::default() };
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
            evidence.add_told_runs();
        }
        if !evidence.begin.owns_processes {
            evidence.add_hearsay();
            evidence.add_abandoned_runs();
        }
        // Once none is added any more.
        evidence.sort();
        evidence
    }

    /// Makes what is asked for often easy to find.
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

    /// The runs of a worker that went on at some time between these, the last begun first. One without a result goes on until its worker ends.
    pub(super) fn runs_during(&self, worker: &str, from: f64, until: f64) -> impl Iterator<Item = Held<'_, 'a>> {
        let found = self.runs.get(worker).map(|runs| runs.during(from, until)).into_iter().flatten();
        found.filter_map(|(id, index)| {
            let story = self.tasks.get(id)?;
            Some(Held { id, story, run: story.runs.get(*index)?, work: self.work_of(story) })
        })
    }

    /// The requests that waited for their answers from this gateway at this moment.
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
            Fact::ReadBack { number: request, gateway, task_id, status, mark, is_result } => {
                let (request, is_result) = (*request, *is_result && *status == Some(200));
                let mark = mark.as_deref().filter(|_| is_result);
                let read_back = ReadBack { line: number, request, gateway, status: *status, mark };
                self.read_back.entry(task_id).or_default().push(read_back);
            }
            Fact::ReadyAsked { gateway, status } => self.ready_asked.push((number, at, gateway, *status)),
            Fact::Healed => self.healed = at,
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
                    (action.carried, action.detail, action.until) = (Some(*done), detail, at);
                }
            }
            // In the order of their times, when all actions are known.
            Fact::Started { .. }
            | Fact::Ready { .. }
            | Fact::Signalled { .. }
            | Fact::Exited { .. }
            | Fact::Led { .. } => {}
            Fact::RunBegan { worker, task_id, delivery } => {
                pieces.entry(task_id).or_default().begans.push((number, at, worker, *delivery));
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
            Fact::Disagreed { topic, detail } => self.disagreed.push((number, topic, detail)),
            Fact::Lag { tasks } => (self.lag, self.read) = (Some((number, *tasks)), at),
            Fact::End(ending) => self.cut_short = ending.cut_short,
        }
    }

    /// What the task of a run takes besides, in seconds; 0 when it is not of this run.
    pub(super) fn work_of(&self, story: &Story<'_>) -> f64 {
        self.request_of(story).map_or(0.0, |request| request.work)
    }

    /// The request that a task is of; one that repeats it, if the first one was never sent.
    pub(super) fn request_of(&self, story: &Story<'_>) -> Option<&Request<'a>> {
        self.by_text.get(&story.number?).and_then(|number| self.requests.get(number))
    }

    /// Whether the request has an Idempotency-Key: another one repeats it, or it repeats another one.
    pub(super) fn is_repeated(&self, request: &Request<'a>) -> bool {
        self.repeated.contains(&request.of)
    }

    /// Whether the handler of a task fails each time, as it was asked to.
    pub(super) fn is_poison(&self, story: &Story<'_>) -> bool {
        self.request_of(story).is_some_and(|request| request.poison)
    }

    /// Faults that were done to what a worker says of its share session: whatever it held may be lost with that.
    pub(super) fn session_faults(&self, from: f64, until: f64) -> impl Iterator<Item = &Action<'a>> {
        let faults =
            self.actions.values().filter(|action| action.what == "fault" && action.ordered.contains(" at Share"));
        faults.filter(move |fault| fault.from <= until && from <= fault.until)
    }

    /// Whether Kafka was away at some time between these.
    pub(super) fn kafka_away(&self, from: f64, until: f64) -> bool {
        overlaps(&self.outages, from, until)
    }
}
