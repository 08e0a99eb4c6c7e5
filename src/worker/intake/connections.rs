//! The connections to one broker: opening, waiting for an answer, taking over, losing a connection.
//!
//! A second connection of the same member takes the session over with every lock (KIP-932; 1 to 16 ms). So when a
//! request is unanswered for a third of the lock, or half a second, a second connection opens the session anew and
//! renews the held locks. The first connection is read to its end, since its answers still count.
//!
//! A connection with an unanswered epoch 0 is never closed while its broker may lead a held record. If that epoch 0 is
//! processed late, it takes the session, and the close would release every lock (rule 6).

use super::{Channel, Intake, TICK, is_renewal};
use crate::outage::Refusal;
use crate::worker::drain::Phase;
use crate::worker::in_flight::{ChannelId, Verdict};
use crate::worker::leaders::Leader;
use kafka_share::error::{ErrorCode, KafkaError};
use kafka_share::share_session::{Asked, ShareSession};
use kafka_share::share_wire::SharePartition;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

/// At most this many connections to a broker: the current one, one that hangs, one tried after it (rule 7).
const MOST_CONNECTIONS: usize = 3;
/// After a request is unanswered for this long, the thread `leaders` asks another broker whether this one still leads.
/// A parked fetch ends within 100 ms.
const SILENCE: Duration = Duration::from_millis(300);
/// How often it asks while the broker stays silent.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// A take-over waits at most this long, however long a lock lasts.
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);
/// Patience for a request that accepts or releases. It also waits for the share coordinator, which takes up to 3 s to
/// move when its broker stops. The session that takes over fetches meanwhile, and accepts nothing.
const ACCEPT_PATIENCE: Duration = Duration::from_millis(500);
/// A stop waits at most this long for acknowledgements: results are in Kafka, and the broker releases other records.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

impl Intake {
    /// Connects when it is time, opens the session and renews the held locks.
    pub(super) fn reconnect(&mut self, led: &BTreeMap<SharePartition, Leader>, now: Instant) -> Result<(), KafkaError> {
        self.links.queue.withdraw(self.node);
        if now < self.connect_at || self.superseded.len() >= MOST_CONNECTIONS {
            self.sleep(Some(self.connect_at).filter(|at| *at > now));
            return Ok(());
        }
        self.connect_and_open(led)
    }

    /// Connects and opens the session. The renewals follow epoch 0 at once: a frozen broker finds both when it thaws.
    fn connect_and_open(&mut self, led: &BTreeMap<SharePartition, Leader>) -> Result<(), KafkaError> {
        let links = &self.links;
        match ShareSession::connect(&links.cluster, self.node, links.identity.clone()) {
            Ok(session) => {
                let id = links.in_flight.new_channel();
                let channel = Channel { id, session, open: false };
                self.superseded.extend(self.current.replace(channel));
                self.connect_at = Instant::now() + self.connect.pause();
                self.open(led, Instant::now())
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Opens the session on the current connection (epoch 0), which keeps the locks; then renews them.
    pub(super) fn open(&mut self, led: &BTreeMap<SharePartition, Leader>, now: Instant) -> Result<(), KafkaError> {
        self.open_again = false;
        // All locks are renewed now.
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
            // A throttled connection would not be read after epoch 0. Then the renewals follow its answer.
            if renewals.is_empty() || session.is_throttled() { Ok(()) } else { session.send_acknowledge(renewals) }
        })
    }

    /// Puts all locks at the broker in doubt.
    fn doubt(&self) {
        self.links.in_flight.doubt(self.node);
        self.links.queue.purge();
    }

    // ---- waiting ----

    /// Waits for the answers to all requests on the current connection.
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

    /// Handles a tick without an answer. Returns false if the next round has to decide.
    fn wait_on(&mut self, led: &BTreeMap<SharePartition, Leader>) -> Result<bool, KafkaError> {
        let now = Instant::now();
        let waiting = self.current.as_ref().and_then(|it| Some((it.id, it.session.waiting()?)));
        let Some((id, (sent_at, asked))) = waiting else { return Ok(false) };
        let waited = now.saturating_duration_since(sent_at);
        self.links.queue.look(now);
        self.read_superseded(now)?;
        if waited >= SILENCE {
            self.watch(waited, now);
        }
        let third = self.third().min(LONGEST_PATIENCE);
        let patience = match asked {
            Asked::Open => 2 * third,
            _ if self.is_running() && self.links.in_flight.asks_on(id) => third.min(ACCEPT_PATIENCE),
            _ => third,
        };
        let room = 1 + self.superseded.len() < MOST_CONNECTIONS;
        if waited >= patience && room && now >= self.connect_at {
            let error = self.current.as_ref().map(|channel| channel.session.silent(waited));
            error.into_iter().for_each(|error| self.outage.report(&error));
            self.connect_and_open(led)?;
            return Ok(self.current.is_some());
        }
        // The next round handles a stop, and changes of what the broker leads.
        let phase = self.links.control.phase();
        let changed = waited >= SILENCE && (phase != Phase::Running || self.links.leaders.of_node(self.node) != *led);
        Ok(!changed)
    }

    /// Has another broker asked for the leaders, and frees this broker's places, while this broker owes an answer.
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

    pub(super) fn third(&self) -> Duration {
        self.links.in_flight.lock_length() / 3
    }

    /// Whether this intake may end: its broker leads nothing, or a stop takes no new tasks. And no record is locked or
    /// sought there, or a stop has waited long enough for acknowledgements.
    pub(super) fn is_over(&mut self, led: &BTreeMap<SharePartition, Leader>, now: Instant) -> bool {
        let phase = self.links.control.phase();
        if phase >= Phase::Closing {
            return true;
        }
        if phase == Phase::Running && !led.is_empty() {
            return false;
        }
        let in_flight = &self.links.in_flight;
        let seeks = led.keys().any(|partition| in_flight.sought(*partition, self.is_running()) > 0);
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

    /// Whether accepts and releases are held back, because one is unanswered on a superseded connection: the share
    /// coordinator may be unavailable, and further ones would hang, too. After two thirds of the lock they are tried
    /// once on the current connection (rule 13).
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

    /// Reads the answers on superseded connections. Closes those that owe none once the current one is open (rule 2).
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
                // Closed by the worker or by the broker.
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
            // An epoch 0 that the network delayed for this long no longer arrives.
            Some((sent_at, Asked::Open)) => now.saturating_duration_since(sent_at) >= 4 * lock,
            // The locks of any records that it still brings have ended.
            Some((sent_at, _)) => is_open && now.saturating_duration_since(sent_at) >= lock,
        }
    }

    // ---- the end of a connection ----

    /// Handles the loss of the current connection. Unanswered acknowledgements are due again, running tasks are renewed
    /// on the next connection, unstarted records are released (rule 17).
    pub(super) fn lost(&mut self, error: &KafkaError) -> Result<(), KafkaError> {
        let now = Instant::now();
        if let Some(channel) = &mut self.current
            && channel.session.fall_back()
        {
            log::debug!("broker {}: {error}; opening the session again", self.node);
            self.links.in_flight.unanswered(channel.id, now);
            self.open_later();
            return Ok(());
        }
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

    /// Handles the refusal of a whole request.
    pub(super) fn refused(&mut self, id: ChannelId, is_current: bool, error: KafkaError) -> Result<(), KafkaError> {
        self.links.in_flight.unanswered(id, Instant::now());
        match error.code() {
            // 42: the worker's request is wrong; 35: share groups are off. Retrying fixes neither.
            Some(ErrorCode::INVALID_REQUEST | ErrorCode::UNSUPPORTED_VERSION) => Err(error),
            _ if !is_current => Ok(()),
            // The broker has dropped the session (122), or another connection has it (123): epoch 0 on the same
            // connection takes it back (rule 3).
            Some(ErrorCode::SHARE_SESSION_NOT_FOUND | ErrorCode::INVALID_SHARE_SESSION_EPOCH) => {
                log::debug!("broker {}: {error}; opening the session again", self.node);
                self.open_later();
                Ok(())
            }
            // A withdrawn right, or a coordinator that moves: the locks are held, but the request's epoch is unknown.
            code if code.is_some_and(|code| Verdict::of(Some(code)) == Verdict::Again) => {
                match error.refusal_of(&self.links.identity.group, &self.links.topic) {
                    Some(reason) => self.outage.report(&Refusal(reason)),
                    None => self.outage.report(&error),
                }
                self.open_later();
                Ok(())
            }
            _ => self.lost(&error),
        }
    }

    /// Sends epoch 0 again on the same connection after a pause.
    fn open_later(&mut self) {
        self.halves.clear();
        self.open_again = true;
        self.links.queue.withdraw(self.node);
        let pause = self.connect.pause();
        self.sleep(Some(Instant::now() + pause));
    }

    /// Schedules the next attempt to connect.
    fn failed(&mut self, error: &KafkaError) -> Result<(), KafkaError> {
        self.connect_at = Instant::now() + self.connect.pause();
        match error {
            KafkaError::Interrupted => return Ok(()),
            // A process answers at the address, or did until now: the broker is not silent.
            KafkaError::Closed { .. } | KafkaError::Security { .. } => self.links.control.heard(),
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
