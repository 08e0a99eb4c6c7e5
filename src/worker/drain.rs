//! How a worker stops: one state machine for every reason to stop, and the deadlines that bound it.
//!
//! `Running → Draining → Closing → Stopped`, never back. A running worker can be quiet, which is no phase. Main moves
//! it; the intakes, the handlers and the heartbeats read it. The watchdog ends the process at the last deadline with the
//! correct exit code, even if a socket or a handler hangs.

use super::bells::{Bells, Rings};
use super::in_flight::InFlight;
use crate::outage::Refusals;
use crate::task::Receipt;
use crossbeam_channel::Receiver;
use parking_lot::Mutex;
use program::exit::{self, ExitCode};
use program::logging::{self, LATE_LINES};
use program::stop::Stop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Time from abandoning tasks to the end of the process. Promise P5 allows 1 s; a busy machine needs some of it.
const CLOSING_TIME: Duration = Duration::from_millis(600);
/// An idle worker ends within this time, whatever Kafka does (promise P7: 5 s).
const IDLE_LIMIT: Duration = Duration::from_millis(4_500);
/// The worker ends this long before the grace period, when the orchestrator kills it.
const GRACE_MARGIN: Duration = Duration::from_secs(3);

/// The phases of a worker from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Phase {
    /// Takes tasks.
    Running,
    /// Takes no new tasks; finishes the tasks in flight.
    Draining,
    /// No longer waits for tasks; sends the last acknowledgements, closes the session, leaves the group.
    Closing,
    /// The session is closed and the group is left.
    Stopped,
}

/// Moves a worker from one phase to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The first signal.
    Signal,
    /// Another signal while draining.
    SecondSignal,
    /// The drain timeout has passed.
    Deadline,
    /// No task is in flight.
    Settled,
    /// A thread died, or Kafka returned an error that retrying cannot fix.
    Fatal,
    /// The session is closed and the group is left, as far as that was possible.
    Closed,
}

impl Phase {
    /// The phase after `event`; the same phase where the event changes nothing.
    pub(super) fn after(self, event: Event) -> Phase {
        match (self, event) {
            (Phase::Running, Event::Signal) => Phase::Draining,
            (Phase::Running | Phase::Draining, Event::Fatal) => Phase::Closing,
            (Phase::Draining, Event::SecondSignal | Event::Deadline | Event::Settled) => Phase::Closing,
            (Phase::Closing, Event::Closed) => Phase::Stopped,
            (phase, _) => phase,
        }
    }

    fn from_number(number: u8) -> Phase {
        match number {
            0 => Phase::Running,
            1 => Phase::Draining,
            2 => Phase::Closing,
            _ => Phase::Stopped,
        }
    }
}

/// The phase that all threads read, and the doorbells that wake them when something has changed.
#[derive(Debug)]
pub(super) struct Control {
    phase: AtomicU8,
    /// The worker takes nothing new until it is told to go on. Counts only while it is `Running`.
    quiet: AtomicBool,
    /// Triggered with the first signal; handlers see it as `Context::draining`.
    pub(super) draining: Stop,
    /// Triggered when running tasks are abandoned; handlers see it as `Context::abandoned`.
    pub(super) abandoned: Stop,
    bells: Bells,
    /// While the worker takes no tasks: handlers finish the ready tasks, since these take only a moment.
    finishes_ready: AtomicBool,
    /// A handler that finishes rings while this many records or fewer are ready.
    low_water: AtomicUsize,
    /// How often a broker has answered, or has refused or closed a connection.
    heard: AtomicU64,
    /// What Kafka refuses to this worker now.
    pub(super) refusals: Refusals,
}

impl Control {
    pub(super) fn new() -> Self {
        Self {
            phase: AtomicU8::new(0),
            quiet: AtomicBool::new(false),
            draining: Stop::new(),
            abandoned: Stop::new(),
            bells: Bells::default(),
            finishes_ready: AtomicBool::new(false),
            low_water: AtomicUsize::new(usize::MAX),
            heard: AtomicU64::new(0),
            refusals: Refusals::default(),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        Phase::from_number(self.phase.load(Ordering::Acquire))
    }

    /// Applies `event`. Only main calls this, so load and store need no exchange.
    pub(super) fn apply(&self, event: Event) -> Phase {
        let next = self.phase().after(event);
        self.phase.store(next as u8, Ordering::Release);
        if next >= Phase::Draining {
            self.draining.trigger();
        }
        self.announce();
        next
    }

    /// Makes the worker quiet, or lets it take tasks again. Only main calls this.
    pub(super) fn set_quiet(&self, quiet: bool) {
        self.quiet.store(quiet, Ordering::Release);
        self.announce();
    }

    /// Whether new tasks are taken.
    pub(super) fn takes(&self) -> bool {
        self.phase() == Phase::Running && !self.quiet.load(Ordering::Acquire)
    }

    /// Sets whether the ready tasks are finished while no tasks are taken. Main sets it before the phase or the quiet;
    /// the thread `intakes` clears it.
    pub(super) fn set_finishes_ready(&self, finishes: bool) {
        self.finishes_ready.store(finishes, Ordering::Release);
    }

    /// Whether a handler may start a task now.
    pub(super) fn may_start(&self) -> bool {
        match self.phase() {
            Phase::Running if self.takes() => true,
            Phase::Running | Phase::Draining => self.finishes_ready.load(Ordering::Acquire),
            Phase::Closing | Phase::Stopped => false,
        }
    }

    /// Wakes the intakes because there is work, but not the threads that wait for changes.
    pub(super) fn ring(&self) {
        let all = !self.takes();
        self.bells.ring(|rings| all || rings == Rings::Work);
    }

    /// Wakes all threads with a doorbell because the phase, the assignment or a leader has changed.
    pub(super) fn announce(&self) {
        self.bells.ring(|_| true);
    }

    /// A doorbell for the calling thread.
    pub(super) fn doorbell(&self, rings: Rings) -> Receiver<()> {
        self.bells.add(rings)
    }

    /// The number of ready records at which the intake wants to be woken.
    pub(super) fn low_water(&self) -> usize {
        // Only a hint: with an old value the bell rings once too often or one record late.
        self.low_water.load(Ordering::Relaxed)
    }

    pub(super) fn set_low_water(&self, ready: usize) {
        self.low_water.store(ready, Ordering::Relaxed);
    }

    /// Counts an answer, a refusal or a close by a broker.
    pub(super) fn heard(&self) {
        // Relaxed: readers only compare it with an earlier value.
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    /// The count of [`heard`](Self::heard).
    pub(super) fn times_heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}

/// The absolute times of one stop, counted from the first signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadlines {
    /// Tasks that still run at this time are abandoned.
    pub(super) abandon_at: Instant,
    /// A stop without work ends at this time, whatever Kafka does.
    idle_exit_at: Instant,
    /// The watchdog ends the process at this time.
    exit_at: Instant,
}

impl Deadlines {
    /// A stop may take the drain timeout plus [`CLOSING_TIME`], and ends [`GRACE_MARGIN`] before the grace period.
    pub(super) fn new(signalled_at: Instant, drain_timeout: Duration, grace: Duration) -> Self {
        let latest = signalled_at + grace.saturating_sub(GRACE_MARGIN);
        let exit_at = latest.min(signalled_at + drain_timeout + CLOSING_TIME);
        let idle_exit_at = exit_at.min(signalled_at + IDLE_LIMIT);
        Self { abandon_at: exit_at - CLOSING_TIME, idle_exit_at, exit_at }
    }

    /// Deadlines of a stop that waits for nothing after `moment`.
    pub(super) fn at(moment: Instant) -> Self {
        Self { abandon_at: moment, idle_exit_at: moment, exit_at: moment }
    }

    /// After a second signal at `now` the stop has [`CLOSING_TIME`] left.
    pub(super) fn forced(self, now: Instant) -> Self {
        let exit_at = self.exit_at.min(now + CLOSING_TIME);
        Self { abandon_at: now, idle_exit_at: self.idle_exit_at.min(exit_at), exit_at }
    }

    /// The latest end of the process. A task that started just after the signal gets the full drain timeout.
    pub(super) fn exit_at(&self, has_work: bool) -> Instant {
        if has_work { self.exit_at } else { self.idle_exit_at }
    }

    /// The latest end of draining.
    pub(super) fn end_draining_at(&self, has_work: bool) -> Instant {
        if has_work { self.abandon_at } else { self.abandon_at.min(self.idle_exit_at - CLOSING_TIME) }
    }
}

/// The facts of the receipt, where main and the watchdog can both read them.
#[derive(Debug)]
pub(super) struct Account {
    worker_id: String,
    in_flight: Arc<InFlight>,
    facts: Mutex<Facts>,
}

#[derive(Clone, Debug, Default)]
struct Facts {
    signal: &'static str,
    /// Time of the first signal; `None` once the total is computed.
    began: Option<Instant>,
    forced: bool,
    finished_before: u64,
    returned_before: u64,
    phases: Vec<(&'static str, Duration)>,
}

impl Account {
    pub(super) fn new(worker_id: &str, in_flight: Arc<InFlight>) -> Self {
        Self { worker_id: worker_id.to_owned(), in_flight, facts: Mutex::new(Facts::default()) }
    }

    /// Begins the stop: only tasks that finish or are returned from now on count.
    pub(super) fn begin(&self, signal: &'static str, at: Instant) {
        let (finished, returned) = self.in_flight.totals();
        let mut facts = self.facts.lock();
        facts.signal = signal;
        facts.began = Some(at);
        facts.finished_before = finished;
        facts.returned_before = returned;
    }

    /// Whether the stop has, or had, a task to finish.
    pub(super) fn has_work(&self) -> bool {
        let before = self.facts.lock().finished_before;
        self.in_flight.counts().started() > 0 || self.in_flight.totals().0 > before
    }

    pub(super) fn force(&self) {
        self.facts.lock().forced = true;
    }

    /// Adds the duration of one step of the stop.
    pub(super) fn phase(&self, name: &'static str, took: Duration) {
        self.facts.lock().phases.push((name, took));
    }

    /// Returns the receipt. Started tasks without an acknowledged result count as abandoned, since no thread waits for
    /// them. The first call fixes `total`, so the last status record and the last line on stdout are the same, even
    /// when the watchdog calls during a step.
    pub(super) fn receipt(&self) -> Receipt {
        let mut abandoned = self.in_flight.abandoned();
        abandoned.extend(self.in_flight.started());
        let (finished, returned) = self.in_flight.totals();
        let facts = {
            let mut facts = self.facts.lock();
            if let Some(began) = facts.began.take() {
                facts.phases.push(("total", began.elapsed()));
            }
            facts.clone()
        };
        let (outcome, code) = match (abandoned.is_empty(), facts.forced) {
            (true, false) => ("drained", ExitCode::Drained),
            (true, true) => ("forced", ExitCode::Drained),
            (false, true) => ("forced", ExitCode::Forced),
            (false, false) => ("abandoned", ExitCode::Abandoned),
        };
        Receipt {
            worker_id: self.worker_id.clone(),
            signal: facts.signal.to_owned(),
            outcome: outcome.to_owned(),
            phases_ms: facts
                .phases
                .iter()
                .map(|(name, took)| ((*name).to_owned(), milliseconds(*took).into()))
                .collect(),
            tasks_finished: finished.saturating_sub(facts.finished_before),
            tasks_returned: returned.saturating_sub(facts.returned_before),
            tasks_abandoned: abandoned.iter().map(|task| task.id.to_string()).collect(),
            exit_code: code as u8,
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Prints the receipt as the last line on stdout. If stdout does not take it within `limit`, the exit code remains.
pub(super) fn print_receipt(receipt: &Receipt, limit: Duration) {
    logging::close(Some(receipt.to_line()), limit);
}

/// The body of the watchdog thread: ends the process at the last deadline that was sent, unless it was disarmed before.
///
/// `deadlines`: capacity two (first signal, second signal), so sending never blocks; disconnected: disarmed.
pub(super) fn watch(deadlines: &Receiver<Deadlines>, account: &Arc<Account>) {
    let Ok(mut current) = deadlines.recv() else { return };
    loop {
        match deadlines.recv_deadline(current.exit_at(account.has_work())) {
            Ok(sooner) => current = sooner,
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return,
            // A task may have been started meanwhile.
            Err(crossbeam_channel::RecvTimeoutError::Timeout)
                if Instant::now() < current.exit_at(account.has_work()) => {}
            Err(crossbeam_channel::RecvTimeoutError::Timeout) => break,
        }
    }
    let receipt = account.receipt();
    let code = receipt.exit_code;
    log::error!("the worker did not complete its stop in time; ending the process with exit code {code}");
    print_receipt(&receipt, LATE_LINES);
    exit::terminate(ExitCode::from_number(code));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::in_flight::{Claim, Delivered, RecordKey};
    use kafka_share::share_wire::SharePartition;

    const PHASES: [Phase; 4] = [Phase::Running, Phase::Draining, Phase::Closing, Phase::Stopped];
    const EVENTS: [Event; 6] =
        [Event::Signal, Event::SecondSignal, Event::Deadline, Event::Settled, Event::Fatal, Event::Closed];

    #[test]
    fn phases_follow_the_table() {
        use Phase::{Closing, Draining, Running, Stopped};
        // In the order of EVENTS.
        let table = [
            (Running, [Draining, Running, Running, Running, Closing, Running]),
            (Draining, [Draining, Closing, Closing, Closing, Closing, Draining]),
            (Closing, [Closing, Closing, Closing, Closing, Closing, Stopped]),
            (Stopped, [Stopped; 6]),
        ];
        for (phase, expected) in table {
            for (event, next) in EVENTS.into_iter().zip(expected) {
                assert_eq!(phase.after(event), next, "{phase:?} after {event:?}");
            }
        }
    }

    #[test]
    fn quiet_worker_takes_nothing_and_starts_only_what_it_finishes_at_once() {
        let control = Control::new();
        assert!(control.takes() && control.may_start());
        control.set_quiet(true);
        assert!(!control.takes() && !control.may_start() && control.phase() == Phase::Running);
        control.set_finishes_ready(true);
        assert!(!control.takes() && control.may_start());
        control.set_quiet(false);
        assert!(control.takes() && control.may_start());
        control.set_finishes_ready(false);
        control.set_quiet(true);
        assert_eq!(control.apply(Event::Signal), Phase::Draining, "a stop ends the quiet");
        control.set_quiet(false);
        assert!(!control.takes(), "the phase never goes back");
    }

    #[test]
    fn quiet_worker_rings_for_work_the_threads_that_wait_for_changes() {
        let control = Control::new();
        let changes = control.doorbell(Rings::Changes);
        control.ring();
        assert!(changes.try_recv().is_err());
        control.set_quiet(true);
        assert!(changes.try_recv().is_ok(), "the change itself");
        control.ring();
        assert!(changes.try_recv().is_ok());
    }

    #[test]
    fn no_event_moves_the_phase_back() {
        for phase in PHASES {
            for event in EVENTS {
                assert!(phase.after(event) >= phase, "{phase:?} after {event:?}");
            }
            assert_eq!(Phase::from_number(phase as u8), phase);
        }
    }

    #[test]
    fn deadlines_fit_the_promises() {
        let now = Instant::now();
        let seconds = Duration::from_secs;
        let usual = Deadlines::new(now, seconds(30), seconds(45));
        assert_eq!((usual.abandon_at, usual.end_draining_at(true)), (now + seconds(30), now + seconds(30)));
        assert_eq!(usual.exit_at(true), now + seconds(30) + CLOSING_TIME);
        assert_eq!(usual.exit_at(false), now + Duration::from_millis(4_500));
        assert!(usual.end_draining_at(false) < usual.exit_at(false));
        assert!(CLOSING_TIME < seconds(1), "promises P5, P6 and P7");
        let tight = Deadlines::new(now, seconds(5), seconds(10));
        assert_eq!(tight.exit_at(true), now + seconds(5) + CLOSING_TIME);
        let forced = usual.forced(now + seconds(3));
        assert_eq!(forced.exit_at(true), now + seconds(3) + CLOSING_TIME);
        let late = usual.forced(now + Duration::from_millis(30_500));
        assert_eq!(late.exit_at(true), usual.exit_at(true), "a second signal never gives more time");
    }

    /// A stop once gave a task that started at the moment of the signal only the time of an idle worker.
    #[test]
    fn task_started_at_the_moment_of_the_signal_gets_the_full_drain_timeout() {
        let now = Instant::now();
        let in_flight = Arc::new(InFlight::new(Duration::from_secs(15)));
        let account = Account::new("w", Arc::clone(&in_flight));
        account.begin("SIGTERM", now);
        let deadlines = Deadlines::new(now, Duration::from_secs(30), Duration::from_secs(45));
        assert!(!account.has_work());
        let key = RecordKey { partition: SharePartition { topic_id: uuid::Uuid::nil(), partition: 0 }, offset: 0 };
        let mark = "a".into();
        in_flight.deliver(
            Delivered { key, mark, node: 1, sent_at: now, startable: true, delivery_count: 1, last_delivery: false },
            now,
        );
        let Claim::Yours(run) = in_flight.claim((key, 1), None, false, now) else { panic!("the record is ready") };
        assert_eq!(deadlines.end_draining_at(account.has_work()), now + Duration::from_secs(30));
        assert!(in_flight.publish(key, &run, 1, None));
        in_flight.published(key);
        assert_eq!(deadlines.exit_at(account.has_work()), deadlines.exit_at(true), "also when it is done");
    }

    #[test]
    fn receipt_has_a_total_even_when_a_step_was_skipped() {
        let account = Account::new("w", Arc::new(InFlight::new(Duration::from_secs(15))));
        assert_eq!(account.receipt().phases_ms.get("total"), None, "no stop has begun");
        let Some(began) = Instant::now().checked_sub(Duration::from_secs(7)) else { return };
        account.begin("SIGTERM", began);
        account.phase("drain", Duration::from_secs(6));
        let receipt = account.receipt();
        let phases = &receipt.phases_ms;
        assert_eq!(phases["drain"], 6_000);
        assert!(phases["total"].as_u64().is_some_and(|total| (7_000..60_000).contains(&total)), "{phases:?}");
        let now = Instant::now();
        while now.elapsed() < Duration::from_millis(3) {
            std::hint::spin_loop();
        }
        assert_eq!(account.receipt(), receipt, "the second call returns the same receipt");
    }

    /// Otherwise a worker with thousands of tasks per second would wake its threads `leaders` and `intakes` as often.
    #[test]
    fn work_wakes_threads_that_wait_for_changes_only_during_a_stop() {
        let control = Control::new();
        let bell = control.doorbell(Rings::Changes);
        control.ring();
        assert!(bell.try_recv().is_err());
        control.announce();
        assert!(bell.try_recv().is_ok());
        control.apply(Event::Signal);
        assert!(bell.try_recv().is_ok(), "the phase has changed");
        control.ring();
        assert!(bell.try_recv().is_ok());
    }
}
