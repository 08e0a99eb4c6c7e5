//! The steps of a stop, driven by main: section 5 of the contract.
//!
//! Every wait has a limit, every step that fails is logged by name, and the watchdog bounds them all.

use super::drain::{self, Deadlines, Event, Phase};
use super::in_flight::RunningTask;
use super::intakes::IntakeReport;
use super::membership::Leave;
use super::pulse::Pulse;
use super::quiet::Quiet;
use super::start::Running;
use super::status::Announce;
use crate::config::WorkerConfig;
use crate::supervisor;
use crate::task::{Receipt, TaskStopped, WorkerState};
use crossbeam_channel::{Receiver, at, bounded, never, select, tick};
use kafka_share::error::{ErrorCode, KafkaError};
use program::exit::ExitCode;
use program::logging::{LAST_LINES, LATE_LINES, escape};
use program::signals::Signals;
use std::time::{Duration, Instant};

/// How long to wait for Kafka to acknowledge a notification before the next step.
const NOTIFICATION_WAIT: Duration = Duration::from_secs(1);
/// How long results on their way may still arrive after the deadline.
const LAST_RESULTS: Duration = Duration::from_millis(400);
/// The same after a second signal.
const LAST_RESULTS_FORCED: Duration = Duration::from_millis(100);
/// A worker that no leader answers for this many locks is not live: other workers have its records.
const SILENT_LOCKS: u32 = 2;
/// Limit of one step of an ordinary stop.
const STEP: Duration = Duration::from_secs(1);
/// Limit of one step after work was abandoned.
const HURRIED_STEP: Duration = Duration::from_millis(200);
/// How long to wait for threads without work to end.
const JOIN: Duration = Duration::from_millis(500);

/// Why draining ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Settled,
    Deadline,
    SecondSignal,
    Fatal,
}

/// Waits for a reason to stop, then stops the worker in order. Called by main.
pub(super) fn run_until_stopped(mut worker: Running, config: &WorkerConfig, signals: &Signals) -> ExitCode {
    let id = config.worker_id.as_str();
    let quiet = Quiet::begin(&worker, id, signals);
    if !work(&mut worker, id, quiet, signals) {
        return die(worker, id);
    }
    let stop = Stopping::begin(&mut worker, config, signals);
    stop.run(worker)
}

/// Main's loop while the worker works: reports to the supervisor every second. Returns false if a thread died.
fn work(worker: &mut Running, id: &str, mut quiet: Quiet, signals: &Signals) -> bool {
    let round = tick(supervisor::INTERVAL);
    let mut pulse = Pulse::new(Instant::now());
    let mut live = true;
    if !signals.first.is_triggered() {
        report(worker, live);
    }
    loop {
        select! {
            recv(signals.first.triggered()) -> _ => return true,
            recv(worker.fatal.triggered()) -> _ => return false,
            recv(signals.quiet.signalled()) -> _ => {
                quiet.follow(worker, id, signals);
                report(worker, live);
            }
            recv(quiet.doorbell()) -> _ => quiet.look(worker, id),
            recv(quiet.settled()) -> _ => quiet.look(worker, id),
            recv(round) -> _ => {
                let limit = worker.in_flight.lock_length() * SILENT_LOCKS;
                let hears = pulse.beats(worker.control.times_heard(), limit, Instant::now());
                if hears != live {
                    live = hears;
                    say_live(id, live, limit);
                }
                report(worker, live);
                quiet.look(worker, id);
            }
        }
    }
}

/// Reports to the supervisor. If the worker is not live, main reports nothing; the log has the reason.
fn report(worker: &mut Running, live: bool) {
    if !live || worker.in_flight.has_overdue() {
        return;
    }
    let running = worker.in_flight.running();
    match (worker.control.takes(), running.is_empty()) {
        (true, true) => worker.supervisor.alive("takes tasks"),
        (true, false) => worker.supervisor.alive(&working(&running)),
        (false, true) => worker.supervisor.quiet("quiet: takes no new tasks"),
        (false, false) => worker.supervisor.quiet(&format!("quiet: {}", working(&running))),
    }
}

/// Logs whether any leader of the tasks answers.
fn say_live(id: &str, live: bool, limit: Duration) {
    if live {
        log::info!("Worker {} is live again: a leader of the tasks answers", escape(id));
    } else {
        log::error!("Worker {} is not live: no leader of the tasks has answered for {} s", escape(id), limit.as_secs());
    }
}

fn working(running: &[RunningTask]) -> String {
    match running {
        [] => String::new(),
        [task] => format!("works on task {}", escape(&task.task.id)),
        [oldest, others @ ..] => format!("works on task {} and {} more", escape(&oldest.task.id), others.len()),
    }
}

/// Ends the worker after a thread died: no held task can be trusted to finish. Closed connections release them all.
fn die(worker: Running, id: &str) -> ExitCode {
    log::error!("Worker {} ends: a thread that must not end has ended (its own log line has the reason)", escape(id));
    worker.control.apply(Event::Fatal);
    worker.interrupter.interrupt();
    let unusable = worker
        .intake_done
        .recv_timeout(JOIN)
        .ok()
        .and_then(Result::err)
        .is_some_and(|error| error.code() == Some(ErrorCode::UNSUPPORTED_VERSION));
    worker.producer.close(Instant::now());
    for thread in [worker.threads.intakes, worker.threads.leaders, worker.threads.membership] {
        // A thread that does not end in time ends with the process; it logs its own error.
        let _ = thread.join_deadline(Instant::now() + JOIN);
    }
    if unusable { ExitCode::Usage } else { ExitCode::Fatal }
}

/// One stop.
struct Stopping<'a> {
    id: &'a str,
    signals: &'a Signals,
    deadlines: Deadlines,
    ending: Ending,
    /// After a second signal: every remaining step is short.
    hurried: bool,
    report: Option<Result<IntakeReport, KafkaError>>,
}

impl<'a> Stopping<'a> {
    /// Steps 1 to 3: takes no new tasks and announces the stop.
    fn begin(worker: &mut Running, config: &'a WorkerConfig, signals: &'a Signals) -> Self {
        let began = Instant::now();
        let id = config.worker_id.as_str();
        worker.account.begin(signals.name(), began);
        worker.control.set_finishes_ready(worker.queue.finishes_quickly());
        worker.control.apply(Event::Signal);
        // The stop has a bound, so its records do not wait for a quota.
        worker.producer.hurry();
        let deadlines = Deadlines::new(began, config.drain_timeout, config.stop_grace_period);
        // Capacity two, and this is the first message.
        let _ = worker.watchdog.try_send(deadlines);
        *worker.deadlines.lock() = Some(deadlines);
        worker.supervisor.stopping("stops");
        let mut stop = Self { id, signals, deadlines, ending: Ending::Settled, hurried: false, report: None };
        log::info!("🛑 Worker {} received {}, initiating graceful shutdown...", escape(id), signals.name());
        let limit = (began + NOTIFICATION_WAIT).min(deadlines.abandon_at);
        stop.announce(worker, WorkerState::ShutdownStarted, None, limit);
        worker.account.phase("announce", began.elapsed());
        stop
    }

    fn run(mut self, mut worker: Running) -> ExitCode {
        let id = escape(self.id);
        for task in worker.in_flight.running() {
            log::info!("⏳ Worker {id} waiting for current task {} to complete...", task.task);
        }
        let drained = Instant::now();
        self.ending = self.wait_for_end(&mut worker);
        self.end_draining(&worker);
        worker.account.phase("drain", drained.elapsed());

        log::info!("🧹 Worker {id} cleaning up");
        worker.supervisor.stopping("leaves its group");
        let closed = Instant::now();
        self.close_session(&worker);
        self.leave(&worker);
        worker.account.phase("close", closed.elapsed());
        worker.control.apply(Event::Closed);

        let mut receipt = worker.account.receipt();
        if self.ending == Ending::Fatal {
            receipt.exit_code = ExitCode::Fatal as u8;
        }
        let limit = Instant::now() + self.step();
        self.announce(&worker, WorkerState::ShutdownCompleted, Some(receipt.clone()), limit);
        self.end(worker, &receipt)
    }

    /// Shortens every wait from now on, after a second signal.
    fn hurry(&mut self, worker: &Running) {
        self.hurried = true;
        worker.account.force();
        self.deadlines = self.deadlines.forced(Instant::now());
        // Capacity two, and this is the second message.
        let _ = worker.watchdog.try_send(self.deadlines);
        log::warn!("🛑 Worker {} received a second signal, leaving at once", escape(self.id));
    }

    /// Waits for `receiver` until `deadline`, after a second signal for [`HURRIED_STEP`] at most.
    fn wait<T>(&mut self, worker: &Running, receiver: &Receiver<T>, mut deadline: Instant) -> Option<T> {
        loop {
            let second = if self.hurried { never() } else { self.signals.second.triggered().clone() };
            select! {
                recv(receiver) -> message => return message.ok(),
                recv(second) -> _ => {
                    self.hurry(worker);
                    deadline = deadline.min(Instant::now() + HURRIED_STEP);
                }
                recv(at(deadline)) -> _ => return None,
            }
        }
    }

    /// Sends a notification, and logs whether Kafka has acknowledged it.
    fn announce(&mut self, worker: &Running, state: WorkerState, receipt: Option<Receipt>, deadline: Instant) {
        let announced = self.wait(worker, &send_notification(worker, state, receipt), deadline).unwrap_or(false);
        say_announced(self.id, state, announced);
    }

    /// Step 4: waits until no task is in flight, for the deadline, a second signal, or a dead thread.
    fn wait_for_end(&mut self, worker: &mut Running) -> Ending {
        if self.hurried {
            return Ending::SecondSignal;
        }
        let round = tick(supervisor::INTERVAL);
        loop {
            worker.supervisor.stopping(&self.draining(&worker.in_flight.running()));
            let deadline = self.deadlines.end_draining_at(worker.account.has_work());
            select! {
                recv(worker.intake_done) -> report => {
                    self.report = report.ok();
                    return if matches!(self.report, Some(Ok(_))) { Ending::Settled } else { Ending::Fatal };
                }
                recv(self.signals.second.triggered()) -> _ => {
                    self.hurry(worker);
                    return Ending::SecondSignal;
                }
                recv(at(deadline)) -> _ => {
                    // A task may have started meanwhile, which moves the deadline.
                    if Instant::now() >= self.deadlines.end_draining_at(worker.account.has_work()) {
                        return Ending::Deadline;
                    }
                }
                recv(worker.fatal.triggered()) -> _ => {
                    // The intakes send their report just before their thread ends.
                    self.report = worker.intake_done.try_recv().ok();
                    return Ending::Fatal;
                }
                recv(self.signals.quiet.signalled()) -> _ => {
                    log::debug!("{} is ignored: the worker stops", self.signals.quiet.name().unwrap_or_default());
                }
                recv(round) -> _ => {}
            }
        }
    }

    /// The status that the service manager shows during the drain.
    fn draining(&self, running: &[RunningTask]) -> String {
        let left = self.deadlines.abandon_at.saturating_duration_since(Instant::now()).as_secs();
        match running {
            [] => "draining".to_owned(),
            [task] => format!("draining task {}, {left} s left", escape(&task.task.id)),
            [oldest, others @ ..] => {
                format!("draining task {} and {} more, {left} s left", escape(&oldest.task.id), others.len())
            }
        }
    }

    /// Step 5 for tasks that cannot be finished: they are abandoned, never marked done.
    fn end_draining(&mut self, worker: &Running) {
        let event = match self.ending {
            Ending::Settled => Event::Settled,
            Ending::Deadline => Event::Deadline,
            Ending::SecondSignal => Event::SecondSignal,
            Ending::Fatal => Event::Fatal,
        };
        if self.ending != Ending::Settled {
            worker.in_flight.abandon_running();
            let patience = if self.ending == Ending::SecondSignal { LAST_RESULTS_FORCED } else { LAST_RESULTS };
            wait_until(Instant::now() + patience, || worker.in_flight.counts().publishing == 0);
            worker.in_flight.abandon_publishing();
            worker.control.abandoned.trigger();
            for task in worker.in_flight.abandoned() {
                // Long tasks outlast several deploys, so this start does not count against the task.
                worker.outbox.note_stop(&TaskStopped { task_id: task.id.to_string(), worker_id: self.id.to_string() });
                log::warn!("Worker {} abandons task {task} and releases it to Kafka", escape(self.id));
            }
        }
        if worker.control.phase() < Phase::Closing {
            worker.control.apply(event);
        }
    }

    /// Steps 5 and 7: the last acknowledgements and the end of the share session.
    fn close_session(&mut self, worker: &Running) {
        if self.report.is_none() {
            let deadline = Instant::now() + self.step();
            self.report = self.wait(worker, &worker.intake_done, deadline);
        }
        match &self.report {
            Some(Ok(report)) => {
                for task in &report.unaccepted {
                    log::warn!("task {task} is done, but Kafka did not acknowledge its accept: it may run again");
                }
                for reason in &report.close_failed {
                    log::warn!("Worker {} could not close its share session: {}", escape(self.id), escape(reason));
                }
            }
            Some(Err(error)) => log::error!("the intake ended early: {}", escape(&error.to_string())),
            None => log::warn!("Worker {} could not close its share session: Kafka does not answer", escape(self.id)),
        }
    }

    fn leave(&mut self, worker: &Running) {
        let (done, answer) = bounded(1);
        let deadline = Instant::now() + self.step();
        // Capacity one, and this is the only command.
        let _ = worker.leave.try_send(Leave { deadline, done });
        match self.wait(worker, &answer, deadline) {
            Some(Ok(())) => log::info!("✅ Worker {} consumer closed", escape(self.id)),
            Some(Err(error)) => {
                log::warn!("Worker {} could not leave its group: {}", escape(self.id), escape(&error.to_string()));
            }
            None => log::warn!("Worker {} could not leave its group: Kafka does not answer", escape(self.id)),
        }
    }

    /// Steps 8 and 9: closes the producer, joins the threads, and prints the receipt as the last line.
    fn end(self, worker: Running, receipt: &Receipt) -> ExitCode {
        let id = escape(self.id);
        let last_lines = self.step().clamp(LATE_LINES, LAST_LINES);
        let Running { in_flight, interrupter, announcements, watchdog, queue, producer, supervisor, threads, .. } =
            worker;
        drop(announcements);
        // The last sender of jobs: the handlers end without it.
        drop(queue);
        let deadline = Instant::now() + self.step().min(HURRIED_STEP);
        producer.close(deadline);
        log::info!("✅ Worker {id} producer closed");
        // Wakes the threads that still wait for a socket.
        interrupter.interrupt();
        let ended =
            [threads.intakes, threads.leaders, threads.membership, threads.status].into_iter().chain(threads.handlers);
        // One deadline for all threads. An abandoned handler does not end before the process ends.
        let deadline = Instant::now() + if in_flight.abandoned().is_empty() { JOIN } else { JOIN / 10 };
        for thread in ended {
            if let Err(late) = thread.join_deadline(deadline)
                && in_flight.abandoned().is_empty()
            {
                log::warn!("Worker {id}: thread {} has not ended", late.name());
            }
        }
        drop(supervisor);
        drop(watchdog);
        let _ = threads.watchdog.join_deadline(Instant::now() + JOIN);
        match receipt.tasks_abandoned.len() {
            0 if self.ending == Ending::Fatal => log::error!("👋 Worker {id} stopped after a fatal error"),
            0 => log::info!("👋 Worker {id} gracefully shut down"),
            count => log::warn!("👋 Worker {id} stopped with {count} task(s) abandoned and released to Kafka"),
        }
        drain::print_receipt(receipt, last_lines);
        ExitCode::from_number(receipt.exit_code)
    }

    /// The limit of one step, given how the draining ended and the time until the deadline.
    fn step(&self) -> Duration {
        let usual = if self.ending == Ending::Settled && !self.hurried { STEP } else { HURRIED_STEP };
        usual.min(self.deadlines.exit_at(true).saturating_duration_since(Instant::now()))
    }
}

/// Sends a notification of a running worker, and waits briefly, since the next steps do not need it. A stop ends the
/// wait.
pub(super) fn announce_running(worker: &Running, id: &str, state: WorkerState, signals: &Signals) {
    let announced = select! {
        recv(send_notification(worker, state, None)) -> sent => sent.unwrap_or(false),
        recv(signals.first.triggered()) -> _ => false,
        default(NOTIFICATION_WAIT) => false,
    };
    // The outcome is unknown if a stop ended the wait.
    if announced || !signals.first.is_triggered() {
        say_announced(id, state, announced);
    }
}

/// Passes a notification to the status thread. The receiver gets true once Kafka has it.
fn send_notification(worker: &Running, state: WorkerState, receipt: Option<Receipt>) -> Receiver<bool> {
    let (sent, acknowledged) = bounded(1);
    // Full: the status thread still waits for Kafka since the last notification. The receiver is then disconnected, and
    // the next heartbeat has the state.
    let _ = worker.announcements.try_send(Announce { state, receipt, sent });
    acknowledged
}

fn say_announced(id: &str, state: WorkerState, announced: bool) {
    if announced {
        log::info!("📡 Worker {} sent {state} notification", escape(id));
    } else {
        log::warn!("Worker {} could not send its {state} notification: Kafka does not answer", escape(id));
    }
}

/// Polls every 5 ms: the condition is a counter behind a lock, and this happens once in a process.
fn wait_until(deadline: Instant, condition: impl Fn() -> bool) {
    while !condition() && Instant::now() < deadline {
        #[expect(
            clippy::disallowed_methods,
            reason = "the process is about to end, and nothing may shorten its last wait"
        )]
        std::thread::sleep(Duration::from_millis(5));
    }
}
