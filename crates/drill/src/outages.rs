//! What was done to the broker, from the ledger: which part of it was away, from when until when, and what that part led.
//!
//! A broker of one node is away until it is back. Of several nodes one may be away for long: the others take over from it, at once if it was stopped in
//! order, and after the fail-over time if it just fell silent. Pure; part of the [evidence](super::evidence).

use super::evidence::{Action, Life, Story};
use super::fact::{Begin, Led};

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// SIGTERM: sessions end, and leaders move first.
    Stop,
    Kill,
    /// Frozen or cut off: connections, sessions and locks stay for as long as clients, locks and the other nodes have patience.
    Silence,
    /// A partition got another leader.
    Move,
    /// The drill's own reader had no answer, for a reason that is not known.
    Seen,
}

/// See the module documentation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage<'a> {
    pub(super) process: &'a str,
    pub(super) means: Means,
    pub(super) from: f64,
    /// Until when it is felt: what comes later is no more its fault.
    pub(super) until: f64,
    /// When the node was there again.
    pub(super) back: f64,
    /// From when until when it can have taken nothing.
    pub(super) silent: (f64, f64),
    /// What the node led, or the one partition that moved; `None`: everything.
    pub(super) led: Option<&'a Led>,
}

/// What a node had taken before it was frozen may be dated later, and what waited for it comes when it is thawed.
const ON_ITS_WAY: f64 = 0.2;
/// Within this after a node is back a worker has fetched from it.
const FIRST_FETCH: f64 = 1.0;
/// Kafka's pauses before it asks again are longer or shorter by this share.
const JITTER: f64 = 0.2;
/// A node is heard every half second, so that its silence may have begun so much earlier for the others.
const HEARD_EVERY: f64 = 0.6;

impl Outage<'_> {
    /// Whether this task's partition was led by what was away.
    pub(super) fn concerns(&self, story: &Story<'_>) -> bool {
        self.led.is_none_or(|led| story.partition.is_some_and(|partition| led.tasks.contains(&partition)))
    }

    /// When the only node that there is has no share state after its restart: from its stop until it has read the state that the first fetch asks for.
    pub(super) fn without_share_state(&self, begin: &Begin) -> Option<(f64, f64)> {
        let restarted = matches!(self.means, Means::Stop | Means::Kill) && !is_cluster(begin);
        let read = state_read(begin) * (1.0 + JITTER);
        (restarted && read > 0.0).then_some((self.from, self.back + FIRST_FETCH + read))
    }

    /// Whether locks may have been lost. `kept`: for how long a lock outlives the silence of the one node that there is, in seconds.
    pub(super) fn costs_locks(&self, begin: &Begin, kept: f64) -> bool {
        let kept = if is_cluster(begin) { silence_allowed(begin) } else { kept };
        self.means != Means::Silence || self.back - self.from >= kept
    }
}

/// For how long a node of several may be silent and leads on, at the least.
fn silence_allowed(begin: &Begin) -> f64 {
    begin.pauses.fail_over_ms as f64 / 1e3 - HEARD_EVERY
}

/// Whether the broker has several nodes.
pub(super) fn is_cluster(begin: &Begin) -> bool {
    begin.brokers > 1
}

/// How long the cluster itself takes until a partition of a node that fell silent is served, and of a node that stopped in order, in seconds.
pub(super) fn fail_over(begin: &Begin) -> f64 {
    begin.pauses.fail_over_ms as f64 / 1e3 + state_read(begin)
}

/// See [`fail_over`].
pub(super) fn state_read(begin: &Begin) -> f64 {
    begin.pauses.state_read_ms as f64 / 1e3
}

/// All outages. `led`: what was told of each node, with its time; `end`: of the ledger.
pub(super) fn outages<'a>(
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
    let silent = (from + ON_ITS_WAY + life.slack, silent - ON_ITS_WAY - life.slack);
    Outage { process: life.process, means: Means::Silence, from, until, back, silent, led: None }
}

/// From its signal until it was ready again.
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
