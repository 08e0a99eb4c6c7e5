//! The life of each process as the page draws it: from its start to its exit, how it drained, when it was frozen or silent.
//!
//! Pure. A process that the drill started is known by what was done to it; any other worker by its notifications: what it says, and
//! that it says nothing. Called by `timeline`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::fact::{Fact, Line};
use super::timeline::ticks;

/// Silence for so long is shown when the ledger does not say what the fleet takes for it.
const SILENCE_MS: u64 = 5_000;

/// What is drawn beside one name.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Lane {
    pub(super) name: String,
    /// `actions`, `broker`, `gateway`, `worker`, `other`.
    pub(super) kind: &'static str,
    /// From, until, what it is (a colour of the page), what there is to say.
    pub(super) spans: Vec<(i64, i64, &'static str, String)>,
    pub(super) marks: Vec<(i64, &'static str, String)>,
}

/// A process while its facts are taken.
#[derive(Default)]
struct Life<'a> {
    lane: Lane,
    alive: Option<Alive<'a>>,
    /// Since it ended.
    gone: Option<i64>,
    deaths: Vec<i64>,
}

/// One that runs.
struct Alive<'a> {
    since: i64,
    ready: Option<i64>,
    draining: Option<i64>,
    frozen: Option<i64>,
    /// Of a worker known by its notifications: who it is, and when it was heard last.
    heard: Option<(&'a str, i64)>,
}

impl<'a> Life<'a> {
    fn alive(&mut self, since: i64) -> &mut Alive<'a> {
        if let Some(gone) = self.gone.take() {
            self.lane.spans.push((gone, since, "gone", "not running".to_owned()));
        }
        self.alive.get_or_insert(Alive { since, ready: None, draining: None, frozen: None, heard: None })
    }

    /// Of a process that has given a sign of life without a start: it was there before.
    fn there(&mut self) -> Option<&mut Alive<'a>> {
        if self.gone.is_none() { Some(self.alive(0)) } else { None }
    }

    fn end(&mut self, at: i64, died: bool) {
        if let Some(Alive { since, ready, draining, frozen, .. }) = self.alive.take() {
            let stop = draining.unwrap_or(at).clamp(since, at.max(since));
            // A process that was there before, or never said that it is ready, is drawn as one that is.
            let ready = ready.unwrap_or(since).clamp(since, stop);
            let parts = [(since, ready, "starting"), (ready, stop, "up"), (stop, at, "draining")];
            let parts = parts.into_iter().filter(|(from, until, _)| until > from);
            self.lane.spans.extend(parts.map(|(from, until, class)| (from, until, class, class.to_owned())));
            self.lane.spans.extend(frozen.map(|from| (from, at, "frozen", "frozen".to_owned())));
        }
        if died {
            self.deaths.push(at);
            self.gone = Some(at);
        }
    }

    fn take(&mut self, at: i64, fact: &'a Fact) {
        match fact {
            Fact::Started { pid, .. } => {
                self.end(at, false);
                self.alive(at);
                self.mark(at, "start", format!("started, pid {pid}"));
            }
            Fact::Ready { .. } => {
                if let Some(alive) = self.there() {
                    alive.ready.get_or_insert(at);
                }
            }
            Fact::Signalled { signal, .. } => {
                let Some(alive) = self.there() else { return };
                match signal.as_str() {
                    "SIGTERM" | "SIGINT" | "SIGHUP" => {
                        alive.draining.get_or_insert(at);
                    }
                    "SIGSTOP" | "cut" => {
                        alive.frozen.get_or_insert(at);
                    }
                    "SIGCONT" | "mended" => {
                        let frozen = alive.frozen.take();
                        self.lane.spans.extend(frozen.map(|from| (from, at, "frozen", "frozen".to_owned())));
                    }
                    _ => {}
                }
                let class = if signal == "SIGKILL" { "kill" } else { "signal" };
                self.mark(at, class, signal.clone());
            }
            Fact::Exited { code, signal, receipt, .. } => {
                self.there();
                self.end(at, true);
                let how = match (code, signal) {
                    (Some(code), _) => format!("exit code {code}"),
                    (None, Some(signal)) => format!("ended by signal {signal}"),
                    (None, None) => "ended".to_owned(),
                };
                let receipt = receipt
                    .as_ref()
                    .and_then(|receipt| receipt.get("outcome")?.as_str())
                    .map(|outcome| format!(", {outcome}"))
                    .unwrap_or_default();
                let class = if *code == Some(0) { "exit" } else { "kill" };
                self.mark(at, class, format!("{how}{receipt}"));
            }
            _ => {}
        }
    }

    /// A notification of a worker whose process the drill has in its hands: it tells what the signals do not.
    fn hear(&mut self, at: i64, status: &str) {
        let Some(alive) = &mut self.alive else { return };
        match status {
            "worker_started" => alive.ready = alive.ready.or(Some(at)),
            "shutdown_started" => alive.draining = alive.draining.or(Some(at)),
            _ => {}
        }
    }

    /// A notification of a worker that is known by nothing else.
    fn hear_only(&mut self, at: i64, instance: &'a str, status: &str, timeout: i64) {
        let heard = self.alive.as_ref().and_then(|alive| alive.heard);
        if let Some((other, last)) = heard.filter(|(known, _)| *known != instance) {
            self.mark(last, "kill", format!("last heard of instance {other}, without shutdown_completed"));
            self.end(last, false);
            // It may have worked on for a while after that, but no longer than until another one took its place.
            self.deaths.push(at);
            self.gone = Some(last);
        } else if let Some((_, last)) = heard.filter(|(_, last)| at - last > timeout) {
            self.lane.spans.push((last, at, "silent", "silent".to_owned()));
        }
        if self.alive.is_none() && status == "shutdown_completed" {
            return;
        }
        if self.alive.is_none() {
            self.mark(at, "start", "first heard".to_owned());
        }
        let alive = self.alive(at);
        alive.heard = Some((instance, at));
        if status == "shutdown_started" && alive.draining.is_none() {
            alive.draining = Some(at);
            self.mark(at, "signal", "shutdown_started".to_owned());
        } else if status == "shutdown_completed" {
            self.end(at, true);
            self.mark(at, "exit", "shutdown_completed".to_owned());
        }
    }

    fn finish(&mut self, end: i64, timeout: i64) {
        if let Some((_, last)) = self.alive.as_ref().and_then(|alive| alive.heard)
            && end - last > timeout
        {
            // That is no death: nobody knows whether it was killed or hung.
            self.lane.spans.push((last, end, "silent", "silent until the end: killed, or hung".to_owned()));
        }
        self.end(end, false);
        if let Some(gone) = self.gone {
            self.lane.spans.push((gone, end, "gone", "not running".to_owned()));
        }
    }

    fn mark(&mut self, at: i64, class: &'static str, text: String) {
        self.lane.marks.push((at, class, text));
    }
}

/// The lanes from top to bottom, and when each process ended.
pub(super) fn of(lines: &[Line]) -> (Vec<Lane>, BTreeMap<&str, Vec<i64>>) {
    let end = lines.iter().map(|line| ticks(line.at)).max().unwrap_or_default();
    let timeout = lines.iter().find_map(|line| match &line.fact {
        Fact::Begin(begin) if begin.worker_timeout_ms > 0 => Some(begin.worker_timeout_ms),
        _ => None,
    });
    let timeout = ticks(timeout.unwrap_or(SILENCE_MS) as f64 / 1e3);
    let mut told: Vec<&Line> = lines.iter().filter(|line| process(&line.fact).is_some()).collect();
    // Lines of the topics come after all others.
    told.sort_by_key(|line| ticks(line.at));
    let owned: BTreeSet<&str> = told
        .iter()
        .filter(|line| !matches!(line.fact, Fact::Notified { .. }))
        .filter_map(|line| process(&line.fact))
        .collect();
    let mut lives: BTreeMap<&str, Life<'_>> = BTreeMap::new();
    for line in told {
        let Some(name) = process(&line.fact) else { continue };
        let life = lives.entry(name).or_default();
        let at = ticks(line.at);
        match &line.fact {
            Fact::Notified { status, .. } if owned.contains(name) => life.hear(at, status),
            Fact::Notified { instance, status, .. } => life.hear_only(at, instance, status, timeout),
            fact => life.take(at, fact),
        }
    }
    let asked = asked(lines);
    for gateway in asked.keys() {
        lives.entry(gateway).or_default();
    }
    let workers: BTreeSet<&str> = lines.iter().filter_map(|line| worker(&line.fact)).collect();
    for name in &workers {
        lives.entry(name).or_default();
    }
    let mut deaths = BTreeMap::new();
    let mut lanes = Vec::new();
    for (name, mut life) in lives {
        life.finish(end, timeout);
        if let Some(&(from, until)) = asked.get(name)
            && !owned.contains(name)
        {
            life.lane.spans.push((from, until, "up", "requests were sent to it".to_owned()));
        }
        let kind = match name {
            _ if workers.contains(name) || name.starts_with("worker") => "worker",
            _ if asked.contains_key(name) || name.starts_with("gateway") => "gateway",
            _ if name.starts_with("broker") || name.starts_with("kafka") => "broker",
            _ => "other",
        };
        lanes.push(Lane { name: name.to_owned(), kind, ..life.lane });
        deaths.insert(name, life.deaths);
    }
    kafka(lines, &mut lanes);
    lanes.extend(actions(lines, end));
    lanes.sort_by_cached_key(|lane| {
        let rank = ["actions", "broker", "gateway", "worker"].iter().position(|kind| *kind == lane.kind).unwrap_or(4);
        let front = lane.name.trim_end_matches(|character: char| character.is_ascii_digit());
        // worker_2 stands above worker_10.
        (rank, front.to_owned(), lane.name.len(), lane.name.clone())
    });
    (lanes, deaths)
}

/// The process that a fact of a life is about.
fn process(fact: &Fact) -> Option<&str> {
    match fact {
        Fact::Started { process, .. }
        | Fact::Ready { process }
        | Fact::Signalled { process, .. }
        | Fact::Exited { process, .. }
        | Fact::Notified { worker: process, .. } => Some(process),
        _ => None,
    }
}

/// The worker that a fact says to be one.
fn worker(fact: &Fact) -> Option<&str> {
    match fact {
        Fact::RunBegan { worker, .. } | Fact::RunEnded { worker, .. } | Fact::Notified { worker, .. } => Some(worker),
        _ => None,
    }
}

/// From when until when each gateway was sent requests.
fn asked(lines: &[Line]) -> BTreeMap<&str, (i64, i64)> {
    let mut asked: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
    for line in lines {
        if let Fact::Submitted { gateway, .. } = &line.fact {
            let at = ticks(line.at);
            let (from, until) = asked.entry(gateway).or_insert((at, at));
            (*from, *until) = ((*from).min(at), (*until).max(at));
        }
    }
    asked
}

/// The times without Kafka go to the broker, or to a lane of their own.
fn kafka(lines: &[Line], lanes: &mut Vec<Lane>) {
    let away = lines.iter().filter_map(|line| match line.fact {
        Fact::KafkaAway { until } => Some((ticks(line.at), ticks(until), "away", "Kafka did not answer".to_owned())),
        _ => None,
    });
    let away: Vec<_> = away.collect();
    if let Some(lane) = lanes.iter_mut().find(|lane| lane.kind == "broker") {
        lane.spans.extend(away);
    } else if !away.is_empty() {
        lanes.push(Lane { name: "kafka".to_owned(), kind: "broker", spans: away, marks: Vec::new() });
    }
}

fn actions(lines: &[Line], end: i64) -> Option<Lane> {
    let mut carried = BTreeMap::new();
    for line in lines {
        if let Fact::Carried { action, done, detail } = &line.fact {
            carried.insert(*action, (ticks(line.at), *done, detail));
        }
    }
    let mut lane = Lane { name: "actions".to_owned(), kind: "actions", ..Lane::default() };
    for line in lines {
        let Fact::Ordered { action, what, target, detail } = &line.fact else { continue };
        let at = ticks(line.at);
        let (until, class, outcome) = match carried.get(action) {
            Some((until, true, detail)) => (*until, "done", *detail),
            Some((until, false, detail)) => (*until, "failed", *detail),
            None => (end, "failed", detail),
        };
        let told = [target.as_deref().unwrap_or_default(), detail, outcome].map(str::trim);
        let mut text = format!("{action}: {what}");
        for part in told.into_iter().filter(|part| !part.is_empty()) {
            if !text.ends_with(part) {
                text = format!("{text} {part}");
            }
        }
        if class == "failed" {
            text.push_str(" (not carried out)");
        }
        lane.spans.push((at, until.max(at), class, text));
    }
    (!lane.spans.is_empty()).then_some(lane)
}

#[cfg(test)]
mod tests {
    use super::super::sample::{ledger, notified};
    use super::*;

    fn spans(lane: &Lane) -> Vec<(f64, f64, &'static str)> {
        lane.spans.iter().map(|(from, until, class, _)| (*from as f64 / 1e4, *until as f64 / 1e4, *class)).collect()
    }

    fn lane<'a>(lanes: &'a [Lane], name: &str) -> &'a Lane {
        lanes.iter().find(|lane| lane.name == name).expect("the lane")
    }

    #[test]
    fn a_process_that_was_started_has_its_whole_life() {
        // 26 s: the faults of one minute.
        let lines = ledger(1_040);
        let (lanes, deaths) = of(&lines);
        let names: Vec<&str> = lanes.iter().map(|lane| lane.name.as_str()).collect();
        assert_eq!(names, ["actions", "broker", "gateway_1", "worker_1", "worker_2", "worker_3"]);
        let end = 28.0;
        assert_eq!(
            spans(lane(&lanes, "worker_2")),
            [
                (0.01, 0.2, "starting"),
                (0.2, 11.01, "up"),
                (11.01, 13.5, "draining"),
                (13.5, 14.5, "gone"),
                (14.5, 14.7, "starting"),
                (14.7, end, "up")
            ]
        );
        assert!(spans(lane(&lanes, "worker_3")).contains(&(15.01, 20.0, "frozen")));
        let killed = lane(&lanes, "worker_1");
        assert!(killed.marks.iter().any(|(at, class, _)| (*at, *class) == (50_100, "kill")), "{killed:?}");
        assert_eq!(deaths["worker_1"], [50_200]);
        assert!(spans(lane(&lanes, "broker")).contains(&(27.1, 27.4, "away")));
        assert_eq!(lane(&lanes, "actions").spans.len(), 3);
        assert!(lane(&lanes, "actions").spans[0].3.contains("kill-worker worker_1"));
    }

    #[test]
    fn a_fleet_of_somebody_else_is_known_by_what_it_says() {
        let mut lines: Vec<Line> = (0..8).map(|at| notified("a", "1", f64::from(at), "worker_started")).collect();
        lines.push(notified("a", "1", 8.0, "shutdown_started"));
        lines.push(notified("a", "1", 9.5, "shutdown_completed"));
        lines.push(notified("a", "2", 11.0, "worker_started"));
        // Replaced without a word; then silent, back, and silent to the end.
        lines.push(notified("a", "3", 14.0, "worker_started"));
        lines.push(notified("a", "3", 20.0, "worker_started"));
        lines.push(Line { at: 30.0, fact: Fact::LoadEnded });
        let (lanes, deaths) = of(&lines);
        assert_eq!(
            spans(lane(&lanes, "a")),
            [
                (0.0, 8.0, "up"),
                (8.0, 9.5, "draining"),
                (9.5, 11.0, "gone"),
                (11.0, 14.0, "gone"),
                (14.0, 20.0, "silent"),
                (20.0, 30.0, "silent"),
                (14.0, 30.0, "up")
            ]
        );
        assert_eq!(deaths["a"], [95_000, 140_000]);
    }

    #[test]
    fn lanes_stand_in_the_order_of_their_numbers() {
        let lines: Vec<Line> =
            ["worker_10", "worker_2", "b"].iter().map(|name| notified(name, "1", 0.0, "worker_started")).collect();
        let names: Vec<String> = of(&lines).0.into_iter().map(|lane| lane.name).collect();
        assert_eq!(names, ["b", "worker_2", "worker_10"]);
    }

    #[test]
    fn a_process_that_was_there_before_lives_from_the_beginning() {
        let (process, pid) = ("worker_1".to_owned(), 1);
        let exited = Fact::Exited { process, pid, code: Some(0), signal: None, receipt: None };
        let lines = [Line { at: 3.0, fact: exited }, Line { at: 4.0, fact: Fact::LoadEnded }];
        let (lanes, _) = of(&lines);
        assert_eq!(spans(&lanes[0]), [(0.0, 3.0, "up"), (3.0, 4.0, "gone")]);
    }
}
