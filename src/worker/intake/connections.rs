//! The connections to one broker: opening, waiting for an answer, taking over, losing one.
//!
//! A second connection of the same member takes the session over with every lock (KIP-932; 1 to 16 ms), whatever becomes
//! of the first one then. So a request that is unanswered for a third of the lock, or half a second, is not waited for: a second
//! connection opens the session anew and renews what is held, and the first one is read to its end, since what it still
//! brings counts. Never is a connection closed whose epoch 0 is unanswered while its broker may lead anything that is
//! held: answered late, it has the session, and its end would release every lock (rule 6).

use super::{Channel, Intake, TICK, is_renewal};
use crate::worker::drain::Phase;
use crate::worker::in_flight::{ChannelId, Verdict};
use crate::worker::leaders::Leader;
use kafka_share::error::{ErrorCode, KafkaError};
use kafka_share::share_session::{Asked, ShareSession};
use kafka_share::share_wire::SharePartition;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

/// Connections to one broker: the current one, one that hangs, and one that was tried after it (rule 7).
const MOST_CONNECTIONS: usize = 3;
/// A parked fetch ends within 100 ms. A request that is unanswered for this long makes the thread `leaders` ask another
/// broker whether this one still leads.
const SILENCE: Duration = Duration::from_millis(300);
/// How often it asks while the silence lasts.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// A take-over is not put off longer than this, however long a lock lasts.
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);
/// A request that accepts or releases waits for the share coordinator as well, which moves when its broker stops: up to
/// 3 s, in which the tasks of this leader would lie. The session that takes over fetches meanwhile, and accepts nothing.
const ACCEPT_PATIENCE: Duration = Duration::from_millis(500);
/// A stop waits for acknowledgements no longer than this: the result is in Kafka, and the broker releases the rest.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

impl Intake {
    /// Without a connection: makes one when it is time, opens the session and renews what is held.
    pub(super) fn reconnect(&mut self, led: &BTreeMap<SharePartition, Leader>, now: Instant) -> Result<(), KafkaError> {
        self.links.queue.withdraw(self.node);
        if now < self.connect_at || self.superseded.len() >= MOST_CONNECTIONS {
            self.sleep(Some(self.connect_at).filter(|at| *at > now));
            return Ok(());
        }
        self.connect_and_open(led)
    }

    /// A connection with the session on it. The renewals are sent with the request that opens: a broker that is frozen
    /// finds both when it thaws.
    fn connect_and_open(&mut self, led: &BTreeMap<SharePartition, Leader>) -> Result<(), KafkaError> {
        let links = &self.links;
        match ShareSession::connect(&links.cluster, self.node, links.identity.clone()) {
            Ok(session) => {
                let id = links.in_flight.new_channel();
                let channel = Channel { id, session, open: false, muted_until: Instant::now() };
                self.superseded.extend(self.current.replace(channel));
                self.connect_at = Instant::now() + self.connect.pause();
                self.open(led, Instant::now())
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Opens the session on the current connection (epoch 0), which keeps the locks; then renews.
    pub(super) fn open(&mut self, led: &BTreeMap<SharePartition, Leader>, now: Instant) -> Result<(), KafkaError> {
        self.open_again = false;
        // Everything is renewed now.
        self.halves.retain(|half| !is_renewal(half));
        self.doubt();
        let mut partitions: BTreeSet<SharePartition> = led.keys().copied().collect();
        let renewals = self.links.in_flight.renewals(self.node, true, now);
        partitions.extend(renewals.keys());
        if let Some(channel) = &mut self.current {
            channel.open = false;
        }
        self.send(|session| {
            session.send_open(&partitions)?;
            if renewals.is_empty() { Ok(()) } else { session.send_acknowledge(renewals) }
        })
    }

    /// Whether the locks are ours is not known.
    fn doubt(&self) {
        self.links.in_flight.doubt(self.node);
        self.links.queue.purge();
    }

    // ---- waiting ----

    /// Waits for the answers to what is out on the current connection.
    pub(super) fn await_answer(&mut self, led: &BTreeMap<SharePartition, Leader>) -> Result<(), KafkaError> {
        loop {
            let Some(channel) = &mut self.current else { return Ok(()) };
            let id = channel.id;
            match channel.session.receive(TICK) {
                Ok(Some(answer)) => {
                    self.take_answer(id, answer)?;
                    if self.current.as_ref().is_none_or(|channel| !channel.session.is_waiting()) {
                        return Ok(());
                    }
                }
                Ok(None) => {
                    if !self.wait_on(led)? {
                        return Ok(());
                    }
                }
                Err(error) => return self.lost(&error),
            }
        }
    }

    /// No answer yet. False: the next round decides anew.
    fn wait_on(&mut self, led: &BTreeMap<SharePartition, Leader>) -> Result<bool, KafkaError> {
        let now = Instant::now();
        let waiting = self.current.as_ref().and_then(|it| Some((it.id, it.muted_until, it.session.waiting()?)));
        let Some((id, muted_until, (sent_at, asked))) = waiting else { return Ok(false) };
        let muted = muted_until.saturating_duration_since(sent_at);
        let waited = now.saturating_duration_since(sent_at);
        self.links.queue.look(now);
        self.read_superseded(now)?;
        if waited >= muted + SILENCE {
            self.watch(waited, now);
        }
        let third = self.third().min(LONGEST_PATIENCE);
        let patience = match asked {
            Asked::Open => 2 * third,
            // A throttled connection is muted, not silent. But no longer than this: a lock has to be renewed in time.
            _ if self.takes() && self.links.in_flight.asks_on(id) => third.min(muted + ACCEPT_PATIENCE),
            _ => third,
        };
        let room = 1 + self.superseded.len() < MOST_CONNECTIONS;
        if waited >= patience && room && now >= self.connect_at {
            let error = self.current.as_ref().map(|channel| channel.session.silent(waited));
            error.into_iter().for_each(|error| self.outage.report(&error));
            self.connect_and_open(led)?;
            return Ok(self.current.is_some());
        }
        // A stop, and a broker that leads nothing any more, are seen by the next round.
        let phase = self.links.control.phase();
        let changed = waited >= SILENCE && (phase != Phase::Running || self.links.leaders.of_node(self.node) != *led);
        Ok(!changed)
    }

    /// The broker owes an answer: meanwhile another one is asked what it leads, and its places are given to others.
    fn watch(&mut self, waited: Duration, now: Instant) {
        if self.silent_since.is_some_and(|since| now.saturating_duration_since(since) < WATCH_INTERVAL) {
            return;
        }
        self.silent_since = Some(now);
        if let Some(channel) = &self.current {
            self.links.cluster.blame(&channel.session.silent(waited));
        }
        self.links.queue.withdraw(self.node);
        self.links.leaders.set_silent(self.node, true);
        self.links.leaders.look_up();
    }

    fn third(&self) -> Duration {
        self.links.in_flight.lock_length() / 3
    }

    /// Whether nothing is left for this intake: it leads nothing, or a stop takes nothing; and nothing is locked through
    /// its session or looked for there, or a stop has waited long enough for acknowledgements.
    pub(super) fn is_over(&mut self, led: &BTreeMap<SharePartition, Leader>, now: Instant) -> bool {
        let phase = self.links.control.phase();
        if phase >= Phase::Closing {
            return true;
        }
        if phase == Phase::Running && !led.is_empty() {
            return false;
        }
        let in_flight = &self.links.in_flight;
        let seeks = led.keys().any(|partition| in_flight.sought(*partition, self.takes()) > 0);
        if !in_flight.holds_at(self.node) && !seeks {
            return true;
        }
        if phase == Phase::Running || !in_flight.counts().only_acknowledgements() {
            self.settling_since = None;
            return false;
        }
        let since = *self.settling_since.get_or_insert(now);
        now.saturating_duration_since(since) >= SETTLE_LIMIT
    }

    /// An accept or a release is unanswered on a superseded connection: its share coordinator may be away, and further
    /// ones would hang as well. They are held back until that has lasted for two thirds of the lock; then they are tried
    /// here, once (rule 13).
    pub(super) fn is_held_back(&self, now: Instant) -> bool {
        let limit = 2 * self.third();
        let since =
            |channel: &Channel| channel.session.waiting().map(|(sent_at, _)| now.saturating_duration_since(sent_at));
        let long = self.superseded.iter().filter_map(since).filter(|waited| *waited >= limit).count();
        self.superseded.iter().any(|channel| {
            let hangs = since(channel).is_some_and(|waited| waited < limit || long > 1);
            hangs && self.links.in_flight.asks_on(channel.id)
        })
    }

    // ---- superseded connections ----

    /// Reads what superseded connections still bring, and closes those that owe nothing once the session is open on the
    /// current one (rule 2).
    pub(super) fn read_superseded(&mut self, now: Instant) -> Result<(), KafkaError> {
        let mut index = 0;
        while index < self.superseded.len() {
            let channel = &mut self.superseded[index];
            let id = channel.id;
            match channel.session.receive(Duration::ZERO) {
                Ok(Some(answer)) => {
                    self.take_answer(id, answer)?;
                    continue;
                }
                Ok(None) if !self.is_used_up(index, now) => index += 1,
                // Closed, by us or by the broker.
                Ok(None) | Err(_) => {
                    self.superseded.remove(index);
                    self.links.in_flight.unanswered(id, now);
                }
            }
        }
        Ok(())
    }

    fn is_used_up(&self, index: usize, now: Instant) -> bool {
        let is_open = self.current.as_ref().is_some_and(|channel| channel.open) && !self.open_again;
        let lock = self.links.in_flight.lock_length();
        match self.superseded[index].session.waiting() {
            None => is_open,
            // An epoch 0 that a path held up for so long does not arrive any more.
            Some((sent_at, Asked::Open)) => now.saturating_duration_since(sent_at) >= 4 * lock,
            // What it could still bring is locked no longer.
            Some((sent_at, _)) => is_open && now.saturating_duration_since(sent_at) >= lock,
        }
    }

    // ---- the end of a connection ----

    /// The current connection is gone. What was out is due again, what runs is renewed on the next one, what is not
    /// started goes back (rule 17).
    pub(super) fn lost(&mut self, error: &KafkaError) -> Result<(), KafkaError> {
        let now = Instant::now();
        if let Some(channel) = self.current.take() {
            self.links.in_flight.unanswered(channel.id, now);
        }
        self.halves.clear();
        self.was_lost = true;
        self.doubt();
        self.links.queue.answered(self.node, 0, now);
        self.arrivals.hold_still(now);
        self.failed(error)
    }

    /// The broker refused a request as a whole.
    pub(super) fn refused(&mut self, id: ChannelId, is_current: bool, error: KafkaError) -> Result<(), KafkaError> {
        self.links.in_flight.unanswered(id, Instant::now());
        match error.code() {
            // 42: a request of ours is wrong; 35: share groups are off. Repeating cures neither.
            Some(ErrorCode::INVALID_REQUEST | ErrorCode::UNSUPPORTED_VERSION) => Err(error),
            _ if !is_current => Ok(()),
            // The broker does not know the session any more (122), or another connection has it (123): epoch 0 on the same
            // connection takes it back (rule 3).
            Some(ErrorCode::SHARE_SESSION_NOT_FOUND | ErrorCode::INVALID_SHARE_SESSION_EPOCH) => {
                log::debug!("broker {}: {error}; opening the session again", self.node);
                self.open_later();
                Ok(())
            }
            // A right that was withdrawn, a coordinator on its way: the locks are ours, and the request's number is unknown.
            code if code.is_some_and(|code| Verdict::of(Some(code)) == Verdict::Again) => {
                self.outage.report(&error);
                self.open_later();
                Ok(())
            }
            _ => self.lost(&error),
        }
    }

    /// Epoch 0 on the same connection, after a pause.
    fn open_later(&mut self) {
        self.halves.clear();
        self.open_again = true;
        self.links.queue.withdraw(self.node);
        let pause = self.connect.pause();
        self.sleep(Some(Instant::now() + pause));
    }

    /// Decides when to try again.
    fn failed(&mut self, error: &KafkaError) -> Result<(), KafkaError> {
        self.connect_at = Instant::now() + self.connect.pause();
        match error {
            KafkaError::Interrupted => return Ok(()),
            // Something answers under the address, or answered until now: this is no silence.
            KafkaError::Closed { .. } => self.links.control.heard(),
            KafkaError::Io { source, .. }
                if matches!(source.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset) =>
            {
                self.links.control.heard();
            }
            _ => {}
        }
        self.links.leaders.look_up();
        self.outage.report(error);
        Ok(())
    }
}
