//! The state of the gateway: whether it serves or drains, whether Kafka answers, whether its threads move.
//!
//! Independent flags, times and metrics; the state of tasks is in [`tasks`](super::tasks). The threads that know set
//! them, all threads read them.

use super::dead::DeadLetters;
use super::metrics::Metrics;
use crate::config::GatewayConfig;
use crate::outage::Refusals;
use kafka_share::statistics::Statistics;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use uuid::Uuid;

/// Callers stop waiting for their results this long before the end of the grace period.
pub(super) const ANSWERS_END: Duration = Duration::from_secs(6);
/// Kafka counts as connected if it has answered within this time.
const KAFKA_SILENCE: Duration = Duration::from_secs(3);
/// After this time without records a worker counts as silent, although Kafka throttles the gateway.
const LONGEST_MUTE: Duration = Duration::from_secs(60);
/// A thread counts as alive if it has completed a round within this time.
pub(super) const THREAD_SILENCE: Duration = Duration::from_secs(10);
/// The same for a thread that asks one broker after another.
const READER_SILENCE: Duration = Duration::from_secs(60);

/// A part of the topics that a gateway reads back when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadBack {
    /// The results of the retention period are read.
    Results = 1,
    /// The tasks are read to the end that was seen at the start.
    Tasks = 2,
    /// The tasks are not read to that end, since `MAX_PENDING` tasks are pending.
    TasksFull = 4,
}

const ALL_READ: u8 = ReadBack::Results as u8 | ReadBack::Tasks as u8;

#[derive(Debug)]
pub(super) struct State {
    pub(super) config: GatewayConfig,
    /// The id of this process in claims.
    pub(super) instance: Uuid,
    pub(super) metrics: Metrics,
    /// Of this gateway's client of Kafka.
    pub(super) statistics: Statistics,
    born: Instant,
    born_at: SystemTime,
    /// No new task is accepted.
    draining: AtomicBool,
    /// When that began.
    drain: Pulse,
    /// Topics and group are prepared.
    prepared: AtomicBool,
    /// Bits of [`ReadBack`].
    read_back: AtomicU8,
    /// What Kafka refuses to this gateway now.
    pub(super) refusals: Refusals,
    pub(super) dead: DeadLetters,
    kafka: Pulse,
    upkeep: Pulse,
    tail: Pulse,
    /// The last response to the tail reader while Kafka throttles it; otherwise new.
    throttled: Pulse,
}

/// When an event last happened: milliseconds after the start plus one; 0: never.
#[derive(Debug, Default)]
struct Pulse(AtomicU64);

impl State {
    pub(super) fn new(config: GatewayConfig) -> Self {
        let statistics = Statistics::default();
        Self {
            config,
            instance: Uuid::new_v4(),
            metrics: Metrics::new(statistics.clone()),
            statistics,
            born: Instant::now(),
            born_at: SystemTime::now(),
            draining: AtomicBool::new(false),
            drain: Pulse::default(),
            prepared: AtomicBool::new(false),
            read_back: AtomicU8::new(0),
            refusals: Refusals::default(),
            dead: DeadLetters::new(),
            kafka: Pulse::default(),
            upkeep: Pulse::default(),
            tail: Pulse::default(),
            throttled: Pulse::default(),
        }
    }

    /// The wall-clock time, without jumps when the clock is set.
    pub(super) fn now(&self) -> SystemTime {
        self.born_at + self.born.elapsed()
    }

    pub(super) fn start_draining(&self) {
        if self.drain.is_new() {
            self.drain.beat(self.born.elapsed());
        }
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// How long callers may still wait for their results; `None` while the gateway does not drain.
    pub(super) fn drain_left(&self) -> Option<Duration> {
        let beat = self.drain.0.load(Ordering::Relaxed).checked_sub(1)?;
        let lasted = self.born.elapsed().saturating_sub(Duration::from_millis(beat));
        Some(self.config.stop_grace_period.saturating_sub(ANSWERS_END).saturating_sub(lasted))
    }

    pub(super) fn set_prepared(&self) {
        self.prepared.store(true, Ordering::Release);
    }

    pub(super) fn is_prepared(&self) -> bool {
        self.prepared.load(Ordering::Acquire)
    }

    /// Notes that this part is read back. Returns true if that completes the reading.
    pub(super) fn set_read(&self, part: ReadBack) -> bool {
        let before = self.read_back.fetch_or(part as u8, Ordering::AcqRel);
        (before | part as u8) & ALL_READ == ALL_READ && before & ALL_READ != ALL_READ
    }

    /// Whether every stored result can be fetched, and as many pending tasks as allowed are known.
    pub(super) fn has_read_enough(&self) -> bool {
        let has = |part: ReadBack| self.read_back.load(Ordering::Acquire) & part as u8 != 0;
        has(ReadBack::Results) && (has(ReadBack::Tasks) || has(ReadBack::TasksFull))
    }

    /// Whether everything is read back, so that an unknown task does not exist.
    pub(super) fn is_read_back(&self) -> bool {
        self.read_back.load(Ordering::Acquire) & ALL_READ == ALL_READ
    }

    /// Notes that Kafka has answered the tail reader at this time.
    pub(super) fn kafka_answered(&self, at: Instant) {
        self.kafka.beat(at.saturating_duration_since(self.born));
    }

    /// Whether Kafka answers.
    pub(super) fn is_kafka_connected(&self) -> bool {
        self.kafka.is_within(KAFKA_SILENCE, self.born.elapsed())
    }

    /// Whether Kafka was unavailable for at most `READY_WITHOUT_KAFKA`. Until then this gateway stays ready, since its
    /// responses name the problem and the task.
    pub(super) fn is_kafka_near(&self) -> bool {
        self.kafka.is_within(self.config.ready_without_kafka.max(KAFKA_SILENCE), self.born.elapsed())
    }

    /// Notes since when Kafka throttles the tail reader, `None` if it does not.
    pub(super) fn set_throttled(&self, since: Option<Instant>) {
        match since {
            Some(at) => self.throttled.beat(at.saturating_duration_since(self.born)),
            None => self.throttled.0.store(0, Ordering::Relaxed),
        }
    }

    /// Until when the gateway has read what workers sent: [`now`](Self::now), or up to a minute earlier while Kafka
    /// throttles it. A worker is not silent because its gateway is throttled.
    pub(super) fn heard_until(&self) -> SystemTime {
        let now = self.now();
        match self.throttled.0.load(Ordering::Relaxed) {
            0 => now,
            beat => (self.born_at + Duration::from_millis(beat - 1)).max(now - LONGEST_MUTE),
        }
    }

    /// Notes a round of the thread `results-tail`.
    pub(super) fn tail_came_round(&self) {
        self.tail.beat(self.born.elapsed());
    }

    /// Whether the thread `results-tail` moves, or has not started.
    pub(super) fn is_tail_alive(&self) -> bool {
        self.tail.is_new() || self.tail.is_within(READER_SILENCE, self.born.elapsed())
    }

    /// Notes a round of the thread `upkeep`.
    pub(super) fn upkeep_came_round(&self) {
        self.upkeep.beat(self.born.elapsed());
    }

    /// Whether the thread `upkeep` moves, or has not started.
    pub(super) fn is_upkeep_alive(&self) -> bool {
        self.upkeep.is_new() || self.upkeep.is_within(THREAD_SILENCE, self.born.elapsed())
    }
}

impl Pulse {
    fn beat(&self, age: Duration) {
        self.0.store(milliseconds(age).saturating_add(1), Ordering::Relaxed);
    }

    fn is_new(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    fn is_within(&self, silence: Duration, age: Duration) -> bool {
        let beat = self.0.load(Ordering::Relaxed);
        beat != 0 && milliseconds(age).saturating_sub(beat - 1) <= milliseconds(silence)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State::new(GatewayConfig::default())
    }

    #[test]
    fn state_is_read_back_once_results_and_tasks_are() {
        for order in [[ReadBack::Results, ReadBack::Tasks], [ReadBack::Tasks, ReadBack::Results]] {
            let state = state();
            assert!(!state.set_read(order[0]) && !state.is_read_back() && !state.has_read_enough());
            assert!(state.set_read(order[1]) && state.is_read_back() && state.has_read_enough());
            assert!(!state.set_read(order[1]), "it was complete before");
        }
    }

    #[test]
    fn gateway_with_too_many_pending_tasks_has_read_enough_but_not_all() {
        let state = state();
        state.set_read(ReadBack::TasksFull);
        assert!(!state.has_read_enough(), "stored results cannot be fetched yet");
        assert!(!state.set_read(ReadBack::Results));
        assert!(state.has_read_enough() && !state.is_read_back());
        assert!(state.set_read(ReadBack::Tasks) && state.is_read_back());
    }

    #[test]
    fn pulse_lasts_for_the_permitted_silence() {
        let pulse = Pulse::default();
        let seconds = Duration::from_secs;
        assert!(pulse.is_new() && !pulse.is_within(seconds(3), Duration::ZERO), "it never beat");
        pulse.beat(Duration::ZERO);
        assert!(!pulse.is_new() && pulse.is_within(seconds(3), seconds(3)));
        assert!(!pulse.is_within(seconds(3), Duration::from_millis(3_001)));
    }

    #[test]
    fn gateway_stays_ready_for_longer_than_it_is_connected() {
        let state = state();
        assert!(!state.is_kafka_connected() && !state.is_kafka_near(), "Kafka was never reached");
        state.kafka_answered(Instant::now());
        assert!(state.is_kafka_connected() && state.is_kafka_near());
        let silent = KAFKA_SILENCE + Duration::from_millis(10);
        assert!(!state.kafka.is_within(KAFKA_SILENCE, state.born.elapsed() + silent));
        assert!(state.kafka.is_within(state.config.ready_without_kafka, state.born.elapsed() + silent));
    }
}
