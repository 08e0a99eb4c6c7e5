//! The ledger put in order: requests, what became of each task, the life of each process.
//!
//! Facts only, with the lines that they come from; what they mean is the judge's. Of processes that the drill did not start it makes out the lives from
//! what workers say: one that announced its stop was stopped, one that fell silent was killed when it was last heard. What is known of their signals and
//! ends goes before that. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::fact::{Answer, Begin, Fact, Led, Line};
use super::outages::{self, Outage};
use super::receipt;
use super::spans::Spans;

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

/// One start of a task, and its end if it has a result.
#[derive(Clone, Debug)]
pub(super) struct Run<'a> {
    pub(super) worker: &'a str,
    pub(super) began: f64,
    pub(super) delivery: Option<i16>,
    pub(super) end: Option<RunEnd<'a>>,
    pub(super) lines: Vec<usize>,
}

/// A result.
#[derive(Clone, Debug)]
pub(super) struct RunEnd<'a> {
    pub(super) at: f64,
    pub(super) digest: &'a str,
    pub(super) fault: Option<&'a str>,
    pub(super) success: bool,
    /// What the handler took, as it says.
    pub(super) seconds: f64,
}

/// One run, of which task, and what that takes besides as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held<'e, 'a> {
    pub(super) id: &'a str,
    pub(super) story: &'e Story<'a>,
    pub(super) run: &'e Run<'a>,
    pub(super) work: f64,
}

impl<'a> Run<'a> {
    /// One of which nothing but this line is known.
    fn unfinished(worker: &'a str, began: f64, line: usize) -> Self {
        Self { worker, began, delivery: None, end: None, lines: vec![line] }
    }
}

/// One task.
#[derive(Debug, Default)]
pub(super) struct Story<'a> {
    pub(super) number: Option<u64>,
    /// Its records on `tasks`, and the partition of the first.
    pub(super) accepted: Vec<(usize, f64)>,
    pub(super) partition: Option<i32>,
    /// In the order of their starts.
    pub(super) runs: Vec<Run<'a>>,
    pub(super) dead: Vec<usize>,
    /// Results of those who gave it up, with their lines: no handler ran for them.
    pub(super) given_up: Vec<(usize, RunEnd<'a>)>,
}

impl<'a> Story<'a> {
    pub(super) fn has_result(&self) -> bool {
        self.results().next().is_some()
    }

    /// What stands on the topic of its results.
    pub(super) fn results(&self) -> impl Iterator<Item = &RunEnd<'a>> {
        self.runs.iter().filter_map(|run| run.end.as_ref()).chain(self.given_up.iter().map(|(_, end)| end))
    }

    /// One more, in its place.
    fn add(&mut self, run: Run<'a>) {
        self.runs.push(run);
        self.runs.sort_by(|one, other| one.began.total_cmp(&other.began));
    }

    /// Every line about it.
    pub(super) fn lines(&self) -> Vec<usize> {
        let accepted = self.accepted.iter().map(|(line, _)| *line);
        let mut lines: Vec<usize> =
            accepted.chain(self.runs.iter().flat_map(|run| run.lines.iter().copied())).collect();
        lines.extend(&self.dead);
        lines.extend(self.given_up.iter().map(|(line, _)| *line));
        lines.sort_unstable();
        lines
    }
}

/// How a process ended.
#[derive(Clone, Debug)]
pub(super) struct Exit<'a> {
    pub(super) line: usize,
    pub(super) at: f64,
    pub(super) code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) receipt: Option<&'a Value>,
}

/// One process.
#[derive(Clone, Debug, Default)]
pub(super) struct Life<'a> {
    pub(super) process: &'a str,
    pub(super) from: f64,
    pub(super) ready: Option<f64>,
    /// Each SIGTERM.
    pub(super) terms: Vec<(usize, f64)>,
    pub(super) kill: Option<(usize, f64)>,
    /// From when until when it was frozen.
    pub(super) frozen: Vec<(f64, f64)>,
    pub(super) exit: Option<Exit<'a>>,
    /// How it ended is known only from what it said.
    pub(super) by_hearsay: bool,
    /// It was told to stop and not killed, and fell silent without a last word.
    pub(super) vanished: bool,
}

impl Life<'_> {
    /// One that is taken for killed because it fell silent lived at least until its last result; `until`: when the next process began.
    fn outlived_by(mut self, results: &[f64], until: f64) -> Self {
        let silent = self.kill.is_some_and(|(line, _)| self.exit.as_ref().is_some_and(|exit| exit.line == line));
        let last =
            results.iter().copied().filter(|at| *at >= self.from && *at < until).fold(f64::NEG_INFINITY, f64::max);
        if self.by_hearsay
            && silent
            && let (Some(exit), Some((_, killed))) = (&mut self.exit, &mut self.kill)
        {
            exit.at = exit.at.max(last);
            *killed = killed.max(last);
        }
        self
    }

    pub(super) fn contains(&self, at: f64) -> bool {
        /// One that was killed when nobody saw it was alive for a while after its last word, until its next would have come.
        const NEXT_WORD: f64 = 2.5;
        let until =
            |exit: &Exit<'_>| if self.by_hearsay && exit.signal.is_some() { exit.at + NEXT_WORD } else { exit.at };
        self.from <= at && self.exit.as_ref().is_none_or(|exit| at <= until(exit))
    }

    pub(super) fn is_frozen(&self, from: f64, until: f64) -> bool {
        overlaps(&self.frozen, from, until)
    }

    /// The signal that ended it, when it was a second one; one that came after its end went to nobody.
    pub(super) fn second(&self) -> Option<f64> {
        let end = self.exit.as_ref().map_or(f64::INFINITY, |exit| exit.at);
        self.terms.get(1).map(|(_, at)| *at).filter(|at| *at < end)
    }

    /// When it was killed, or died.
    pub(super) fn death(&self) -> Option<f64> {
        let exit = self.exit.as_ref().filter(|exit| exit.signal.is_some())?;
        Some(self.kill.map_or(exit.at, |(_, at)| at.min(exit.at)))
    }

    /// Until when it could work: its first SIGTERM, its end, or never.
    pub(super) fn works_until(&self) -> f64 {
        let term = self.terms.first().map_or(f64::INFINITY, |(_, at)| *at);
        let kill = self.kill.map_or(f64::INFINITY, |(_, at)| at);
        term.min(kill).min(self.exit.as_ref().map_or(f64::INFINITY, |exit| exit.at))
    }
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

/// The parts of a run that are put together when all lines were seen.
#[derive(Debug, Default)]
struct Pieces<'a> {
    begans: Vec<(usize, f64, &'a str, i16)>,
    restarts: Vec<(usize, f64, &'a str, i16)>,
    ends: Vec<(usize, &'a str, RunEnd<'a>)>,
}

/// What was told of the nodes of the broker: their lives, and what they led, each with its action and its time.
#[derive(Debug, Default)]
struct Nodes<'a> {
    lives: BTreeMap<&'a str, Vec<Life<'a>>>,
    led: Vec<(u32, &'a str, f64, &'a Led)>,
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
        let lives: Vec<Vec<Life<'a>>> = nodes.lives.into_values().collect();
        let actions: Vec<&Action<'a>> = evidence.actions.values().collect();
        evidence.done_to_broker = outages::outages(&evidence.begin, &lives, &actions, &nodes.led, evidence.end);
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

    /// What was done to processes, in the order in which it was done: the words of make up tell it when they are over, and one may begin and end while
    /// another goes on.
    fn take_processes(&mut self, lines: &'a [Line], nodes: &mut Nodes<'a>) {
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
        let mut told: Vec<_> = numbered.filter_map(|(number, line)| Some((number, line, process_of(line)?))).collect();
        told.sort_by(|(_, one, _), (_, other, _)| one.at.total_cmp(&other.at));
        for (number, line, process) in told {
            self.take_process(number, line, process, nodes);
        }
    }

    fn take_process(&mut self, number: usize, line: &'a Line, process: &'a str, nodes: &mut Nodes<'a>) {
        let at = line.at;
        let lives = match process {
            _ if process.starts_with("broker") => nodes.lives.entry(process).or_default(),
            // One that the drill has not started it knows by its address.
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
            life.by_hearsay && life.kill.is_some() && !ends
        });
        if is_new && !self.begin.owns_processes {
            // Known from what it says, and from what was done to it; whoever was killed and has ended was another one.
            lives.push(Life { process, from: f64::NEG_INFINITY, by_hearsay: true, ..Life::default() });
        }
        let Some(life) = lives.last_mut() else { return };
        match &line.fact {
            Fact::Ready { .. } => life.ready = Some(at),
            Fact::Exited { code, signal, receipt, .. } => {
                life.exit = Some(Exit { line: number, at, code: *code, signal: *signal, receipt: receipt.as_ref() });
            }
            Fact::Signalled { signal, .. } => match signal.as_str() {
                // What is sent after its end goes to nobody.
                "SIGTERM" | "SIGKILL" if life.exit.is_some() => {}
                "SIGTERM" => life.terms.push((number, at)),
                "SIGKILL" => life.kill = Some((number, at)),
                "SIGSTOP" | "cut" => life.frozen.push((at, f64::INFINITY)),
                "SIGCONT" | "mended" => {
                    if let Some((_, until @ f64::INFINITY)) = life.frozen.last_mut() {
                        *until = at;
                    }
                }
                _ => {}
            },
            _ => {}
        }
    }

    /// The life of a process that contains this moment.
    pub(super) fn life(&self, worker: &str, at: f64) -> Option<&Life<'a>> {
        let lives = self.workers.get(worker)?;
        let begun = lives.get(..lives.partition_point(|life| life.from <= at))?;
        // Of one that is known by its words the first word may be dated after its first deed, and the last before its last.
        let next = lives.get(begun.len()).filter(|life| life.by_hearsay && life.from <= at + MOMENT);
        let last = begun.last().filter(|life| life.by_hearsay && life.contains(at - MOMENT));
        begun.iter().rev().find(|life| life.contains(at)).or(next).or(last)
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

    /// Makes lives out of what workers said, and of what is known to have been done to them.
    fn add_hearsay(&mut self) {
        let silence = self.begin.worker_timeout_ms as f64 / 1e3;
        // Until the topics were read every word was heard.
        let last = self.notices.values().filter_map(|notices| notices.last()).map(|notice| notice.at);
        let heard = Heard { silence, end: last.fold(self.read, f64::max), outages: &self.outages };
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
            // A process begins with its start, if that was seen, or with its first word; the first one may have been there before.
            let mut before = f64::NEG_INFINITY;
            let mut begins: Vec<f64> = Vec::new();
            for first in processes.iter().filter_map(|own| own.first()) {
                let starts = done.iter().map(|life| life.from).filter(|from| *from > before && *from <= first.at);
                let unseen = if begins.is_empty() { f64::NEG_INFINITY } else { first.at };
                begins.push(starts.reduce(f64::max).unwrap_or(unseen));
                before = first.at;
            }
            let mut lives: Vec<Life<'a>> = Vec::new();
            for (index, own) in processes.iter().enumerate() {
                let from = begins.get(index).copied().unwrap_or_default();
                let until = begins.get(index + 1).copied().unwrap_or(f64::INFINITY);
                let life = heard.life(worker, own, (from, until), &done);
                lives.extend(life.map(|life| life.outlived_by(results, until)));
            }
            // Those that ended before the first word that was heard of them.
            let unheard = done.into_iter().filter(|life| !begins.contains(&life.from));
            lives.extend(unheard.filter(|life| life.exit.is_some()));
            lives.sort_by(|one, other| one.from.total_cmp(&other.from));
            self.workers.insert(worker, lives);
        }
    }

    /// When each worker's results came.
    fn results_by_worker(&self) -> HashMap<&'a str, Vec<f64>> {
        let mut results: HashMap<&'a str, Vec<f64>> = HashMap::new();
        for run in self.tasks.values().flat_map(|story| &story.runs) {
            results.entry(run.worker).or_default().extend(run.end.as_ref().map(|end| end.at));
        }
        results
    }

    /// Adds the runs that are known only because their workers said what they had in hand: of a first start without a result there is no other trace.
    /// It began after the last word that did not say so; the earliest moment is taken, so that nobody is thought to have been free who was not.
    fn add_told_runs(&mut self) {
        /// A status was true when it was made, and is dated when Kafka has it.
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

    /// The same for those that a worker has abandoned before it said that it had them.
    fn add_abandoned_runs(&mut self) {
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

/// What can be made out of words.
struct Heard<'e> {
    /// Who says nothing for so long is dead, or hung.
    silence: f64,
    /// Until when words were listened to.
    end: f64,
    outages: &'e [(f64, f64)],
}

impl Heard<'_> {
    /// The life of one process that had its time between these two: from what it said, and from what was done to it.
    fn life<'a>(
        &self,
        worker: &'a str,
        notices: &[&Notice<'a>],
        (from, until): (f64, f64),
        done: &[Life<'a>],
    ) -> Option<Life<'a>> {
        let (first, last) = (notices.first()?, notices.last()?);
        let mut life = Life { process: worker, from, ready: Some(first.at), by_hearsay: true, ..Life::default() };
        if let Some(started) = notices.iter().find(|notice| notice.status == "shutdown_started") {
            life.terms.push((started.line, started.at));
        }
        // What was done to it is known better than what it said of it.
        let within = |at: f64| at >= from && at < until;
        let mut told = false;
        for other in done {
            let frozen = other.frozen.iter().filter(|(from, _)| within(*from));
            // When it was hung is known, then.
            life.by_hearsay &= frozen.clone().next().is_none();
            life.frozen.extend(frozen);
            life.kill = life.kill.or(other.kill.filter(|(_, at)| within(*at)));
            let terms: Vec<(usize, f64)> = other.terms.iter().filter(|(_, at)| within(*at)).copied().collect();
            if !terms.is_empty() {
                (life.terms, told) = (terms, true);
            }
            if let Some(exit) = other.exit.as_ref().filter(|exit| within(exit.at)) {
                life.exit = Some(Exit { receipt: last.receipt, ..exit.clone() });
                life.by_hearsay = false;
            }
        }
        let gaps = notices.windows(2).filter_map(|pair| Some((pair.first()?.at, pair.last()?.at)));
        let hung = |(from, until): &(f64, f64)| until - from > self.silence && !overlaps(self.outages, *from, *until);
        let unexplained: Vec<(f64, f64)> =
            gaps.filter(hung).filter(|(from, until)| !life.is_frozen(*from, *until)).collect();
        life.frozen.extend(unexplained);
        if life.exit.is_some() {
            return Some(life);
        }
        let exit = |at, code, signal| Exit { line: last.line, at, code, signal, receipt: last.receipt };
        if last.status == "shutdown_completed" {
            life.exit = Some(exit(last.at, last.receipt.and_then(receipt::exit_code), None));
        } else if self.is_silent_after(last.at) || life.kill.is_some() {
            let at = life.kill.map_or(last.at, |(_, at)| at);
            life.vanished = told && life.kill.is_none();
            life.kill = life.kill.or(Some((last.line, last.at)));
            life.exit = Some(exit(at, None, Some(9)));
        }
        Some(life)
    }

    /// Whether one that was heard last then has said nothing since, though it could have been heard.
    fn is_silent_after(&self, at: f64) -> bool {
        let away = self.outages.iter().filter(|(_, back)| *back > at).map(|(_, back)| back.min(self.end));
        self.end - away.fold(at, f64::max) > self.silence
    }
}

impl<'a> Pieces<'a> {
    /// Puts starts and ends together; and what was said of the task without a run of it.
    fn runs(self, sees_starts: bool) -> (Vec<Run<'a>>, Vec<(usize, RunEnd<'a>)>) {
        /// A start is read in the log so much after it happened at most, and after its result.
        const SOON: f64 = 3.0;
        /// Clocks of the same machine, one of which counts milliseconds.
        const ROUNDING: f64 = 0.05;
        let run = |(line, began, worker, delivery)| Run {
            worker,
            began,
            delivery: Some(delivery),
            end: None,
            lines: vec![line],
        };
        let mut runs: Vec<Run<'a>> = self.begans.into_iter().map(run).collect();
        for restart in self.restarts {
            let (line, at, worker, delivery) = restart;
            let known = runs.iter_mut().find(|run| {
                run.worker == worker
                    && run.delivery == Some(delivery)
                    && (-ROUNDING..SOON).contains(&(run.began - at))
                    && run.lines.len() == 1
            });
            match known {
                Some(known) => known.lines.push(line),
                // With the journal at hand a start that is not in it did not happen.
                None if sees_starts => {}
                None => runs.push(run(restart)),
            }
        }
        let mut ends = self.ends;
        ends.sort_by(|(.., one), (.., other)| one.at.total_cmp(&other.at));
        let mut given_up = Vec::new();
        for (line, worker, end) in ends {
            // A handler takes some time; who gives a task up takes none.
            if !end.success && end.seconds == 0.0 {
                given_up.push((line, end));
                continue;
            }
            let began = end.at - end.seconds;
            // A log that is read late dates a start later than its end; no other run can have said this.
            let open =
                runs.iter_mut().filter(|run| run.worker == worker && run.end.is_none() && run.began <= end.at + SOON);
            match open.min_by(|one, other| (one.began - began).abs().total_cmp(&(other.began - began).abs())) {
                Some(known) => {
                    known.lines.push(line);
                    known.began = known.began.min(began);
                    known.end = Some(end);
                }
                None => runs.push(Run { worker, began, delivery: None, end: Some(end), lines: vec![line] }),
            }
        }
        runs.sort_by(|one, other| one.began.total_cmp(&other.began));
        (runs, given_up)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The ledger of a fleet that others started: these lines, in this order.
    fn lines(facts: Vec<(f64, Fact)>) -> Vec<Line> {
        let begin = Fact::Begin(Begin { worker_timeout_ms: 5_000, ..Begin::default() });
        let all = std::iter::once((0.0, begin)).chain(facts);
        all.map(|(at, fact)| Line { at, fact }).collect()
    }

    /// What worker `w` says as this process of it.
    fn says(instance: &str, status: &str, tasks: &[&str], receipt: Option<Value>) -> Fact {
        Fact::Notified {
            worker: "w".to_owned(),
            instance: instance.to_owned(),
            status: status.to_owned(),
            current_tasks: tasks.iter().map(|task| (*task).to_owned()).collect(),
            receipt,
            offset: 0,
        }
    }

    fn signal(signal: &str) -> Fact {
        Fact::Signalled { process: "w".to_owned(), signal: signal.to_owned(), action: None }
    }

    fn exited(code: Option<i32>, signal: Option<i32>) -> Fact {
        Fact::Exited { process: "w".to_owned(), pid: 0, code, signal, receipt: None }
    }

    fn started() -> Fact {
        Fact::Started { process: "w".to_owned(), pid: 0 }
    }

    fn task(id: &str) -> Fact {
        Fact::Accepted { number: None, task_id: id.to_owned(), partition: 0, offset: 0 }
    }

    fn receipt(exit_code: u8, abandoned: &[&str]) -> Option<Value> {
        Some(json!({ "exit_code": exit_code, "tasks_abandoned": abandoned }))
    }

    #[test]
    fn how_a_process_was_seen_to_end_goes_before_what_it_said() {
        let lines = lines(vec![
            (5.0, signal("SIGTERM")),
            (5.4, exited(Some(3), None)),
            (1.0, says("a", "worker_started", &[], None)),
            (5.1, says("a", "shutdown_started", &[], None)),
            (5.2, says("a", "shutdown_completed", &[], receipt(0, &[]))),
        ]);
        let evidence = Evidence::new(&lines);
        let [life] = &evidence.workers["w"][..] else { panic!("one life") };
        let exit = life.exit.as_ref().expect("an end");
        assert_eq!((exit.at, exit.code, exit.receipt.and_then(receipt::exit_code)), (5.4, Some(3), Some(0)));
        assert!(!life.by_hearsay && life.terms.len() == 1 && life.terms[0].1 == 5.0);
    }

    #[test]
    fn what_was_done_to_a_process_counts_in_its_own_order_whatever_order_it_was_told_in() {
        // A word that restarts all of a fleet tells what it did when it is over; meanwhile the new one was frozen.
        let lines = lines(vec![
            (1.0, started()),
            (5.5, signal("SIGSTOP")),
            (5.2, signal("SIGTERM")),
            (5.4, exited(Some(0), None)),
            (5.47, started()),
            (6.5, signal("SIGCONT")),
            (7.0, exited(Some(0), None)),
            // To nobody.
            (7.1, signal("SIGTERM")),
        ]);
        let evidence = Evidence::new(&lines);
        let [old, new] = &evidence.workers["w"][..] else { panic!("two lives") };
        assert_eq!((&old.frozen[..], old.terms.len(), old.exit.as_ref().map(|exit| exit.at)), (&[][..], 1, Some(5.4)));
        assert_eq!((&new.frozen[..], new.terms.len(), new.from), (&[(5.5, 6.5)][..], 0, 5.47));
    }

    #[test]
    fn where_nobody_saw_the_end_it_is_as_the_worker_said() {
        let lines = lines(vec![
            (5.0, signal("SIGTERM")),
            (1.0, says("a", "worker_started", &[], None)),
            (5.1, says("a", "shutdown_started", &[], None)),
            (5.2, says("a", "shutdown_completed", &[], receipt(0, &[]))),
        ]);
        let evidence = Evidence::new(&lines);
        let life = &evidence.workers["w"][0];
        assert_eq!(life.exit.as_ref().and_then(|exit| exit.code), Some(0));
        assert!(life.by_hearsay);
    }

    #[test]
    fn one_that_was_killed_before_its_first_word_has_not_ended_by_itself() {
        let lines = lines(vec![
            (0.6, signal("SIGKILL")),
            (0.61, exited(None, Some(9))),
            (1.1, started()),
            (1.2, says("b", "worker_started", &[], None)),
        ]);
        let evidence = Evidence::new(&lines);
        let [killed, next] = &evidence.workers["w"][..] else { panic!("two lives") };
        assert!(killed.kill.is_some() && killed.exit.is_some(), "{killed:?}");
        assert!(next.kill.is_none() && next.exit.is_none(), "{next:?}");
    }

    #[test]
    fn what_was_done_belongs_to_the_process_that_ran_then() {
        let lines = lines(vec![
            // Killed long after its last word, since it was frozen.
            (3.5, signal("SIGSTOP")),
            (20.0, signal("SIGKILL")),
            (20.1, exited(None, Some(9))),
            (21.0, started()),
            (1.0, says("a", "worker_started", &[], None)),
            (3.0, says("a", "worker_started", &[], None)),
            (22.0, says("b", "worker_started", &[], None)),
            (30.0, says("b", "worker_started", &[], None)),
        ]);
        let evidence = Evidence::new(&lines);
        let [first, second] = &evidence.workers["w"][..] else { panic!("two lives") };
        assert_eq!(first.exit.as_ref().map(|exit| (exit.at, exit.signal)), Some((20.1, Some(9))));
        assert_eq!((second.from, second.ready, second.kill), (21.0, Some(22.0), None));
        assert!(second.exit.is_none() && first.frozen.len() == 1);
    }

    #[test]
    fn a_process_that_ended_before_its_first_word_is_one_too() {
        let lines = lines(vec![
            (10.0, started()),
            (10.1, signal("SIGTERM")),
            (10.2, exited(Some(0), None)),
            (11.0, started()),
            (1.0, says("a", "worker_started", &[], None)),
            (9.0, says("a", "shutdown_completed", &[], None)),
            (12.0, says("b", "worker_started", &[], None)),
        ]);
        let evidence = Evidence::new(&lines);
        let [_, second, third] = &evidence.workers["w"][..] else { panic!("three lives") };
        assert_eq!((second.from, second.ready, second.terms.len()), (10.0, None, 1));
        assert_eq!((third.from, third.ready, third.terms.len()), (11.0, Some(12.0), 0));
    }

    #[test]
    fn one_that_fell_silent_lived_until_its_last_result() {
        let ended = |worker: &str| Fact::RunEnded {
            task_id: "t".to_owned(),
            worker: worker.to_owned(),
            seconds: 0.02,
            success: true,
            digest: String::new(),
            fault: None,
            partition: 0,
            offset: 0,
        };
        let other = |at: f64| {
            let Fact::Notified { instance, status, .. } = says("o", "worker_started", &[], None) else {
                unreachable!()
            };
            let (worker, current_tasks) = ("x".to_owned(), Vec::new());
            (at, Fact::Notified { worker, instance, status, current_tasks, receipt: None, offset: 0 })
        };
        let lines = lines(vec![
            (3.0, says("a", "worker_started", &[], None)),
            (3.5, task("t")),
            (3.7, ended("w")),
            (3.9, ended("x")),
            other(3.0),
            other(20.0),
        ]);
        let evidence = Evidence::new(&lines);
        let life = evidence.life("w", 3.68).expect("it lived when it ran the task");
        assert_eq!(life.exit.as_ref().map(|exit| (exit.at, exit.signal)), Some((3.7, Some(9))));
    }

    #[test]
    fn a_process_that_was_killed_as_soon_as_the_run_began_is_one_too() {
        let lines = lines(vec![
            (0.5, signal("SIGKILL")),
            (0.6, exited(None, Some(9))),
            (1.2, started()),
            (1.3, says("b", "worker_started", &[], None)),
        ]);
        let evidence = Evidence::new(&lines);
        let [first, second] = &evidence.workers["w"][..] else { panic!("two lives") };
        assert_eq!(first.exit.as_ref().and_then(|exit| exit.signal), Some(9));
        assert!(first.contains(0.5) && second.from == 1.2 && second.exit.is_none());
    }

    /// A drill that looked on called a run unexplained whose worker was killed in the second after its last word.
    #[test]
    fn a_kill_that_nobody_saw_came_after_the_last_word() {
        let lines = lines(vec![
            (1.0, says("a", "worker_started", &[], None)),
            (2.0, says("a", "worker_started", &[], None)),
            (6.0, says("b", "worker_started", &[], None)),
            (20.0, says("b", "worker_started", &[], None)),
        ]);
        let evidence = Evidence::new(&lines);
        let of = |at| evidence.life("w", at).and_then(|life| life.ready);
        assert_eq!((of(2.4), of(4.8), of(6.0)), (Some(1.0), None, Some(6.0)));
    }

    #[test]
    fn a_task_that_a_killed_worker_said_it_had_was_a_run_of_it() {
        let again = Fact::Restarted { task_id: "t".to_owned(), worker: "x".to_owned(), delivery: 2, offset: 0 };
        let lines = lines(vec![
            (4.5, signal("SIGKILL")),
            (0.5, task("t")),
            (2.0, says("a", "worker_started", &[], None)),
            (3.0, says("a", "worker_started", &["t"], None)),
            (4.0, says("a", "worker_started", &["t"], None)),
            (4.6, again),
        ]);
        let evidence = Evidence::new(&lines);
        let runs: Vec<(&str, f64)> = evidence.tasks["t"].runs.iter().map(|run| (run.worker, run.began)).collect();
        assert_eq!(runs, [("w", 2.0), ("x", 4.6)]);
    }

    #[test]
    fn a_task_that_was_in_hand_and_has_its_result_is_one_run() {
        let ended = Fact::RunEnded {
            task_id: "t".to_owned(),
            worker: "w".to_owned(),
            seconds: 2.0,
            success: true,
            digest: String::new(),
            fault: None,
            partition: 0,
            offset: 0,
        };
        let lines = lines(vec![
            (0.5, task("t")),
            (3.0, says("a", "worker_started", &["t"], None)),
            (4.2, says("a", "worker_started", &["t"], None)),
            (4.0, ended),
        ]);
        assert_eq!(Evidence::new(&lines).tasks["t"].runs.len(), 1);
    }

    #[test]
    fn what_a_worker_had_in_hand_before_its_first_word_was_a_run_of_it() {
        let lines = lines(vec![(0.9, says("a", "worker_started", &["t"], None)), (0.2, task("t"))]);
        let evidence = Evidence::new(&lines);
        assert!(evidence.life("w", 0.3).is_some_and(|life| life.ready == Some(0.9)));
    }

    #[test]
    fn an_abandoned_task_was_in_hand_though_no_heartbeat_said_so() {
        let lines = lines(vec![
            (5.0, signal("SIGTERM")),
            (5.3, signal("SIGTERM")),
            (5.4, exited(Some(4), None)),
            (0.5, task("t")),
            (1.0, says("a", "worker_started", &[], None)),
            (5.3, says("a", "shutdown_completed", &[], receipt(4, &["t"]))),
        ]);
        let evidence = Evidence::new(&lines);
        let [run] = &evidence.tasks["t"].runs[..] else { panic!("one run") };
        assert_eq!((run.worker, run.began, run.end.is_none()), ("w", 5.0, true));
    }

    #[test]
    fn a_gateway_that_others_started_is_known_by_its_address() {
        let gateway = || "http://127.0.0.1:8080".to_owned();
        let lines = lines(vec![
            (1.0, Fact::Signalled { process: gateway(), signal: "SIGTERM".to_owned(), action: None }),
            (1.5, Fact::Exited { process: gateway(), pid: 0, code: Some(0), signal: None, receipt: None }),
        ]);
        let evidence = Evidence::new(&lines);
        assert!(evidence.workers.is_empty());
        assert_eq!(evidence.gateways[gateway().as_str()].len(), 1);
    }
}
