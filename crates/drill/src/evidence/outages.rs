//! Outages that actions caused on the broker: the node, the interval, and the partitions that the node led.
//!
//! A broker of one node is unavailable until it is back. In a cluster the other nodes take over, at once after an
//! orderly stop, and after the fail-over time if the node fell silent. Pure; part of the [evidence](super).

use super::super::fact::{Begin, Led};
use super::{Action, Life, Story};

/// The kind of action that caused an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Means {
    /// SIGTERM: sessions end, and leaders move first.
    Stop,
    Kill,
    /// Frozen or cut off: connections, sessions and locks stay until clients, locks or the other nodes time out.
    Silence,
    /// A partition got another leader.
    Move,
    /// The drill's own reader got no answer, for an unknown reason.
    Seen,
}

/// One outage. Times are seconds of the run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outage<'a> {
    pub(crate) process: &'a str,
    pub(crate) means: Means,
    pub(crate) from: f64,
    /// When its effect ended: it does not cause later events.
    pub(crate) until: f64,
    /// When the node was available again.
    pub(crate) back: f64,
    /// The interval in which the node cannot have appended a record.
    pub(crate) silent: (f64, f64),
    /// What the node led, or the one partition that moved; `None`: everything.
    pub(crate) led: Option<&'a Led>,
}

/// Records may be dated this much later than SIGSTOP, which reaches a thread only when it is scheduled.
const STOPPING: f64 = 0.5;
/// Waiting records arrive this soon after the thaw.
const ON_ITS_WAY: f64 = 0.2;
/// A worker has fetched from a node at most this long after the node is back.
const FIRST_FETCH: f64 = 1.0;
/// Kafka's pauses between retries vary by this share.
const JITTER: f64 = 0.2;
/// Nodes send a heartbeat every half second, so the others may date the silence earlier by this.
const HEARD_EVERY: f64 = 0.6;

impl Outage<'_> {
    /// Whether the unavailable node led the partition of this task.
    pub(crate) fn concerns(&self, story: &Story<'_>) -> bool {
        self.led.is_none_or(|led| story.partition.is_some_and(|partition| led.tasks.contains(&partition)))
    }

    /// When the only node has no share state after its restart: from its stop until it has read the state for the first
    /// fetch.
    pub(crate) fn without_share_state(&self, begin: &Begin) -> Option<(f64, f64)> {
        let restarted = matches!(self.means, Means::Stop | Means::Kill) && !is_cluster(begin);
        let read = state_read(begin) * (1.0 + JITTER);
        (restarted && read > 0.0).then_some((self.from, self.back + FIRST_FETCH + read))
    }

    /// Whether locks may have been lost. `kept`: how long, in seconds, a lock survives the silence of the only node.
    pub(crate) fn costs_locks(&self, begin: &Begin, kept: f64) -> bool {
        let kept = if is_cluster(begin) { silence_allowed(begin) } else { kept };
        self.means != Means::Silence || self.back - self.from >= kept
    }
}

/// The least time, in seconds, for which a silent node of a cluster remains leader.
fn silence_allowed(begin: &Begin) -> f64 {
    begin.pauses.fail_over_ms as f64 / 1e3 - HEARD_EVERY
}

/// Whether the broker has several nodes.
pub(crate) fn is_cluster(begin: &Begin) -> bool {
    begin.brokers > 1
}

/// How long a cluster takes, in seconds, until it serves the partitions of a node that fell silent.
pub(crate) fn fail_over(begin: &Begin) -> f64 {
    begin.pauses.fail_over_ms as f64 / 1e3 + state_read(begin)
}

/// How long a cluster takes, in seconds, until it serves the partitions of a node that stopped in order.
pub(crate) fn state_read(begin: &Begin) -> f64 {
    begin.pauses.state_read_ms as f64 / 1e3
}

/// All outages. `led`: what each node led, with action and time; `end`: of the ledger.
pub(crate) fn outages<'a>(
    begin: &Begin,
    nodes: &[Vec<Life<'a>>],
    actions: &[&Action<'a>],
    led: &[(u32, &'a str, f64, &'a Led)],
    end: f64,
) -> Vec<Outage<'a>> {
    let mut all = Vec::new();
    for life in nodes.iter().flatten() {
        all.extend(life.frozen.iter().map(|frozen| silence(begin, life, *frozen)));
    }
    for lives in nodes {
        all.extend(
            lives.iter().enumerate().filter_map(|(index, life)| absence(begin, life, lives.get(index + 1), end)),
        );
    }
    for outage in &mut all {
        let told = led.iter().filter(|(_, process, at, _)| *process == outage.process && *at <= outage.from);
        outage.led = told.map(|(.., led)| *led).next_back();
    }
    for (number, process, at, led) in led {
        let action = actions.iter().find(|action| action.number == *number && action.what == "move-leader");
        let Some(action) = action else { continue };
        let (from, until) = (*at, action.until.min(end));
        let silent = (from, from);
        all.push(Outage { process, means: Means::Move, from, until, back: until, silent, led: Some(led) });
    }
    all
}

fn silence<'a>(begin: &Begin, life: &Life<'a>, (from, back): (f64, f64)) -> Outage<'a> {
    let (until, silent) = if is_cluster(begin) {
        (back.min(from + fail_over(begin)), back.min(from + silence_allowed(begin)))
    } else {
        (back, back)
    };
    let silent = (from + STOPPING + life.slack, silent - ON_ITS_WAY - life.slack);
    Outage { process: life.process, means: Means::Silence, from, until, back, silent, led: None }
}

/// The outage of a stopped or killed node, from its signal until it was ready again.
fn absence<'a>(begin: &Begin, life: &Life<'a>, next: Option<&Life<'a>>, end: f64) -> Option<Outage<'a>> {
    let means = if life.kill.is_some() { Means::Kill } else { Means::Stop };
    let (_, from) = life.kill.or(life.terms.first().copied())?;
    let back = next.map_or(end, |next| next.ready.unwrap_or(end));
    let exit = life.exit.as_ref().map_or(f64::NAN, |exit| exit.at);
    let until = match means {
        _ if !is_cluster(begin) => back,
        Means::Kill => back.min(from + fail_over(begin)),
        _ => back.min(exit.max(from + state_read(begin))),
    };
    let silent = (exit, next.map_or(end, |next| next.from));
    Some(Outage { process: life.process, means, from, until, back, silent, led: None })
}
