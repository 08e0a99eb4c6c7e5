//! The intake thread: takes records from the share group, hands them to the handlers, and tells the broker what became
//! of them.
//!
//! It alone speaks on the share sessions, one for each broker that leads a partition of `tasks`; with one partition
//! there is one. A round is one request: a fetch when a handler is free or the window is open, with the acknowledgements
//! that are due riding along; otherwise an acknowledgement when something is due; otherwise it sleeps at its doorbell.
//!
//! Not here: membership (`membership`), the account of what is held (`in_flight`), results (`outbox`).

use super::drain::{Control, Phase};
use super::in_flight::{Admission, InFlight, RecordKey};
use super::membership::Assignment;
use super::outage::Outage;
use super::recovery::Recovery;
use super::window::Window;
use crate::backoff::Backoff;
use crate::kafka::cluster::Cluster;
use crate::kafka::error::{ErrorCode, KafkaError};
use crate::kafka::share_session::{AcquiredRecord, Answer, Settlement, ShareIdentity, ShareSession};
use crate::kafka::share_wire::{Acknowledgement, Acknowledgements, FetchLimits, SharePartition};
use crate::logging::escape;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the broker parks a fetch. A released record does not wake a parked fetch, so this bounds how long a task
/// that was given back waits while every worker is idle.
const MAX_WAIT: Duration = Duration::from_millis(100);
/// The same, at first, while something is in work here: what is done meanwhile can be accepted only when the fetch has ended, and
/// would run again if this worker were killed before. Doubled with every fetch that brings nothing.
const FIRST_WAIT: Duration = Duration::from_millis(2);
/// Bytes read for a fetch of a few records; the broker's work grows with this, not with what is acquired.
const FEW_BYTES: i32 = 64 * 1024;
/// Records for which [`FEW_BYTES`] is enough.
const FEW_RECORDS: usize = 16;
/// Bytes read for the largest round.
const MOST_BYTES: i32 = 1024 * 1024;
/// An unstarted task lies behind busy handlers this long at the most.
const LONGEST_READY: Duration = Duration::from_millis(100);
/// What lies ready when a stop begins is finished if that takes less than this, given back otherwise.
const QUICK_FINISH: Duration = Duration::from_millis(100);
/// From this delivery count on a record is not released: the broker drops it silently at 10.
pub(super) const NEVER_RELEASE_FROM: u16 = 9;
/// Renewals on their way at a time; a frozen broker finds the first one when it thaws.
const MOST_UNANSWERED: usize = 4;
/// Without anything held, a request unanswered for so long means that the broker is frozen: try another connection.
const IDLE_ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long the last request of a session is waited for.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// How often the wait for an answer looks at the phase and the renewals.
const ANSWER_SLICE: Duration = Duration::from_millis(100);
/// An accept that cannot be delivered while stopping is given up after this; its result is in Kafka.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(1);

/// A record on its way to a handler.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) key: RecordKey,
    pub(super) record: AcquiredRecord,
}

/// The settings that the intake needs.
#[derive(Clone, Debug)]
pub(super) struct IntakeOptions {
    pub(super) worker_id: String,
    pub(super) topic: String,
    pub(super) handlers: usize,
    pub(super) task_timeout: Duration,
    /// The group's lock duration, from its settings.
    pub(super) lock: Duration,
}

/// How the intake ended.
#[derive(Debug, Default)]
pub(super) struct IntakeReport {
    /// Tasks whose result is in Kafka and whose accept is not: another worker may run them again.
    pub(super) unaccepted: Vec<Arc<str>>,
    /// Why the session could not be closed in order; the broker frees its locks when the connection ends.
    pub(super) close_failed: Option<String>,
}

/// See the module documentation.
pub(super) struct Intake {
    cluster: Cluster,
    identity: ShareIdentity,
    options: IntakeOptions,
    in_flight: Arc<InFlight>,
    control: Arc<Control>,
    assignment: Arc<Assignment>,
    /// Capacity for the largest window and every handler; the account never admits more than that.
    jobs: Sender<Job>,
    /// The same channel's other end, to take back what no handler has taken.
    unstarted: Receiver<Job>,
    ready: Sender<()>,
    window: Window,
    sessions: Vec<ShareSession>,
    turn: usize,
    leaders: BTreeMap<SharePartition, i32>,
    retries: VecDeque<Acknowledgements>,
    gaps: Acknowledgements,
    highest: BTreeMap<SharePartition, i64>,
    recovery: Option<Recovery>,
    /// What a search for lost locks brought besides: locked, not started, handed out or given back when the search is over.
    held: Vec<Job>,
    careful: bool,
    busy_since: Option<Instant>,
    /// How long the next fetch is parked while something is in work here.
    patience: Duration,
    backoff: Backoff,
    next_try: Instant,
    outage: Outage,
    report: IntakeReport,
}

/// What the intake shares with the rest of the worker.
pub(super) struct IntakeLinks {
    pub(super) in_flight: Arc<InFlight>,
    pub(super) control: Arc<Control>,
    pub(super) assignment: Arc<Assignment>,
    pub(super) jobs: Sender<Job>,
    pub(super) unstarted: Receiver<Job>,
    /// Capacity one: told once, when the first session is open.
    pub(super) ready: Sender<()>,
}

impl Intake {
    pub(super) fn new(cluster: Cluster, identity: ShareIdentity, options: IntakeOptions, links: IntakeLinks) -> Self {
        let window = Window::new(options.handlers);
        Self {
            cluster,
            identity,
            options,
            in_flight: links.in_flight,
            control: links.control,
            assignment: links.assignment,
            jobs: links.jobs,
            unstarted: links.unstarted,
            ready: links.ready,
            window,
            sessions: Vec::new(),
            turn: 0,
            leaders: BTreeMap::new(),
            retries: VecDeque::new(),
            gaps: Acknowledgements::new(),
            highest: BTreeMap::new(),
            recovery: None,
            held: Vec::new(),
            careful: false,
            busy_since: None,
            patience: FIRST_WAIT,
            backoff: Backoff::new(Duration::from_millis(20), Duration::from_secs(1)),
            next_try: Instant::now(),
            outage: Outage::new("the broker that leads the tasks"),
            report: IntakeReport::default(),
        }
    }

    /// Takes tasks until the worker drains, settles what is in flight, closes the sessions.
    ///
    /// # Errors
    /// What no repetition cures: a request of ours that the broker calls invalid (42), or a cluster without share groups.
    pub(super) fn run(mut self) -> Result<IntakeReport, KafkaError> {
        while self.control.phase() == Phase::Running {
            self.round(true)?;
        }
        self.drain()?;
        self.close();
        Ok(self.report)
    }

    // ---- rounds ----

    /// One request to one broker, or one sleep at the doorbell.
    fn round(&mut self, fetching: bool) -> Result<(), KafkaError> {
        self.control.came_round();
        for took in self.in_flight.take_durations() {
            self.window.observe(took);
        }
        self.in_flight.end_rests(Instant::now());
        self.return_stuck();
        self.follow_assignment()?;
        if self.recovery.as_mut().is_some_and(|recovery| recovery.is_over(Instant::now(), &self.in_flight)) {
            self.end_recovery();
        }
        let Some(index) = self.next_session() else {
            self.sleep(Some(self.next_try));
            return Ok(());
        };
        let wanted = if fetching { self.wanted() } else { 0 };
        match self.due_acknowledgements(index) {
            Some(acknowledgements) if wanted == 0 || is_renewal(&acknowledgements) => {
                self.exchange(index, |session| session.send_acknowledge(acknowledgements))
            }
            acknowledgements if wanted > 0 => {
                let limits = self.limits(wanted);
                self.exchange(index, |session| session.send_fetch(acknowledgements.unwrap_or_default(), limits))
            }
            _ => {
                let search = self.recovery.as_ref().and_then(Recovery::next_round);
                let timer = self.in_flight.next_timer(self.renew_after()).into_iter().chain(search).min();
                self.sleep(timer);
                Ok(())
            }
        }
    }

    fn renew_after(&self) -> Duration {
        self.options.lock / 3
    }

    /// Records to ask for now.
    fn wanted(&mut self) -> usize {
        if let Some(recovery) = &self.recovery {
            return recovery.wanted(Instant::now(), self.held.len());
        }
        self.window.adjust();
        let counts = self.in_flight.counts();
        let idle = self.options.handlers.saturating_sub(counts.busy());
        // An accept rides on the next fetch, and a fetch may be parked: so the next one waits for the results that are on their
        // way, unless there is other work to fetch for meanwhile. A worker that is killed while it is parked then has nothing
        // done that is not accepted.
        let nothing_else = self.careful || self.window.is_closed() || counts.ready + counts.busy() == 0;
        if counts.publishing > 0 && nothing_else {
            return 0;
        }
        if self.careful {
            // One record for each free handler, and only when no other lies ready.
            return idle.saturating_sub(counts.ready);
        }
        self.control.set_low_water(self.window.low_water());
        self.window.wanted(idle, counts.ready)
    }

    fn limits(&self, wanted: usize) -> FetchLimits {
        let max_bytes = if wanted <= FEW_RECORDS { FEW_BYTES } else { MOST_BYTES };
        // Several brokers are asked in turn, and each turn must be short enough that none waits longer than one.
        let counts = self.in_flight.counts();
        let in_work = counts.ready + counts.busy() + counts.publishing > 0;
        let max_wait = if in_work { self.patience } else { MAX_WAIT };
        let max_wait = max_wait / u32::try_from(self.sessions.len().max(1)).unwrap_or(u32::MAX);
        let max_records = i32::try_from(wanted).unwrap_or(i32::MAX);
        FetchLimits { max_wait, max_bytes, max_records }
    }

    /// The acknowledgements for the next request to session `index`; `None` when nothing is due there. Renewals cannot
    /// ride on a fetch that asks for records, so they are only added when due, and then win over fetching.
    fn due_acknowledgements(&mut self, index: usize) -> Option<Acknowledgements> {
        let partitions = self.sessions[index].partitions().clone();
        let mine = |partition: &SharePartition| partitions.contains(partition);
        if !self.retries.is_empty() {
            return Some(self.next_group(&mine)).filter(|group| !group.is_empty());
        }
        let mut acknowledgements = self.in_flight.take_due(&mine);
        let gaps: Vec<SharePartition> = self.gaps.keys().copied().filter(mine).collect();
        for partition in gaps {
            if let Some(offsets) = self.gaps.remove(&partition) {
                acknowledgements.entry(partition).or_default().extend(offsets);
            }
        }
        let overdue = self.in_flight.add_renewals(
            &mut acknowledgements,
            &mine,
            Instant::now(),
            self.renew_after(),
            self.options.task_timeout,
        );
        for task in overdue {
            log::error!(
                "Worker {} is not live: task {} runs longer than TASK_TIMEOUT ({} s); its lock is no longer renewed",
                self.options.worker_id,
                escape(&task),
                self.options.task_timeout.as_secs()
            );
        }
        (!acknowledgements.is_empty()).then_some(acknowledgements)
    }

    /// Half of a refused request, alone, so that one lost lock holds back nothing else; otherwise all that is due.
    fn next_group(&mut self, mine: &dyn Fn(&SharePartition) -> bool) -> Acknowledgements {
        let retry = self.retries.iter().position(|group| group.keys().all(mine));
        match retry.and_then(|position| self.retries.remove(position)) {
            Some(group) => group,
            None => self.in_flight.take_due(mine),
        }
    }

    /// Sleeps until the doorbell rings, `until`, or a tick, whichever is first.
    fn sleep(&mut self, until: Option<Instant>) {
        let tick = Instant::now() + LONGEST_READY;
        let until = until.map_or(tick, |until| until.min(tick));
        // Rung, or time: the next round looks at everything anyway.
        let _ = self.control.doorbell().recv_deadline(until);
    }

    /// Sends one request and lives through its answer.
    fn exchange(
        &mut self,
        index: usize,
        send: impl FnOnce(&mut ShareSession) -> Result<(), KafkaError>,
    ) -> Result<(), KafkaError> {
        if let Err(error) = send(&mut self.sessions[index]) {
            return self.lose(index, error);
        }
        loop {
            match self.sessions[index].receive(ANSWER_SLICE) {
                Ok(Some(answer)) => {
                    self.take_answer(index, answer)?;
                    // An earlier renewal may have been answered by this one; the session is free when nothing is owed.
                    if self.sessions.get(index).is_none_or(|session| !session.is_waiting()) {
                        return Ok(());
                    }
                }
                Ok(None) => {
                    if !self.wait_on(index)? {
                        return Ok(());
                    }
                }
                Err(error) => return self.lose(index, error),
            }
        }
    }

    /// No answer yet. Renews what is held with a further request; gives a session up that holds nothing. False: stop
    /// waiting for this answer.
    fn wait_on(&mut self, index: usize) -> Result<bool, KafkaError> {
        self.control.came_round();
        if self.control.phase() == Phase::Closing {
            return Ok(false);
        }
        let session = &self.sessions[index];
        let waiting = session.waiting_since().map_or(Duration::ZERO, |since| since.elapsed());
        let counts = self.in_flight.counts();
        let holding = counts.busy() + counts.publishing + counts.resting + counts.done > 0;
        if !holding && waiting > IDLE_ANSWER_LIMIT {
            let error = session.silent(waiting);
            self.lose(index, error)?;
            return Ok(false);
        }
        if self.control.phase() == Phase::Draining && counts.only_acknowledgements() && waiting > CLOSE_LIMIT {
            return Ok(false);
        }
        // The queue may not wait for a frozen broker, either.
        self.return_stuck();
        let session = &self.sessions[index];
        if session_owes_renewal(session, waiting, self.renew_after()) {
            let partitions = session.partitions().clone();
            let mine = |partition: &SharePartition| partitions.contains(partition);
            let mut renewals = Acknowledgements::new();
            let after = self.renew_after();
            // Overdue tasks are reported by the next ordinary round.
            let now = Instant::now();
            let _ = self.in_flight.add_renewals(&mut renewals, &mine, now, after, Duration::MAX);
            if !renewals.is_empty()
                && let Err(error) = self.sessions[index].send_acknowledge(renewals)
            {
                self.lose(index, error)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    // ---- answers ----

    fn take_answer(&mut self, index: usize, answer: Answer) -> Result<(), KafkaError> {
        // A broker that still reads its state answers at once, with an error for each partition: that is no end of the trouble.
        if answer.partition_errors.is_empty() {
            self.backoff.reset();
            self.outage.over();
        }
        if let Some(lock) = answer.lock {
            self.options.lock = lock;
        }
        for settlement in answer.settlements {
            self.take_settlement(settlement, answer.sent_at);
        }
        for (partition, offset) in answer.gaps {
            self.gaps.entry(partition).or_default().insert(offset, Acknowledgement::Gap);
        }
        if answer.fetched {
            self.take_records(answer.acquired, answer.sent_at, answer.partition_errors.is_empty());
        }
        if let Some((partition, code)) = answer.partition_errors.first() {
            let error = KafkaError::broker("ShareFetch", *code, Some(&format!("partition {}", partition.partition)));
            self.leaders.clear();
            return self.lose(index, error);
        }
        Ok(())
    }

    /// Applied: struck off. Refused as a whole: halved until only the lost locks remain.
    fn take_settlement(&mut self, settlement: Settlement, sent_at: Instant) {
        let partition = settlement.partition;
        match settlement.error {
            None => self.in_flight.applied(partition, &settlement.offsets, sent_at),
            Some(ErrorCode::INVALID_RECORD_STATE) if settlement.offsets.len() > 1 => {
                let (left, right) = settlement.offsets.split_at(settlement.offsets.len() / 2);
                for half in [left, right] {
                    self.retries.push_back(BTreeMap::from([(partition, half.iter().copied().collect())]));
                }
            }
            Some(code) => {
                for (offset, acknowledgement) in settlement.offsets {
                    let key = RecordKey { partition, offset };
                    if let Some(task) = self.in_flight.lost(key) {
                        log::warn!(
                            "Worker {} lost the lock of task {} (offset {offset}, {acknowledgement:?} answered {code}); \
                             another worker may run it again",
                            self.options.worker_id,
                            escape(&task)
                        );
                    }
                }
            }
        }
    }

    fn take_records(&mut self, records: Vec<AcquiredRecord>, sent_at: Instant, useful: bool) {
        self.patience = if records.is_empty() { (self.patience * 2).min(MAX_WAIT) } else { FIRST_WAIT };
        let mut fresh = Vec::with_capacity(records.len());
        for record in records {
            let key = RecordKey { partition: record.partition, offset: record.offset };
            let task_id = task_name(&record);
            match self.in_flight.admit(key, task_id, sent_at) {
                Admission::Attached => {}
                Admission::New => fresh.push(Job { key, record }),
            }
        }
        if let Some(recovery) = &mut self.recovery {
            if useful {
                recovery.fetched(Instant::now());
            }
            let mut idle = self.options.handlers.saturating_sub(self.in_flight.counts().busy());
            let mut startable = Vec::new();
            for job in fresh {
                if recovery.goes_back(&job.key, job.record.delivery_count) {
                    self.in_flight.take_back(job.key);
                } else if idle > 0 && !recovery.is_foreign(&job.key) {
                    idle -= 1;
                    startable.push(job);
                } else {
                    self.held.push(job);
                }
            }
            fresh = startable;
        }
        self.note_highest(&fresh);
        self.hand_out(fresh);
    }

    fn note_highest(&mut self, jobs: &[Job]) {
        for job in jobs {
            let highest = self.highest.entry(job.key.partition).or_insert(job.key.offset);
            *highest = (*highest).max(job.key.offset);
        }
    }

    /// A record that was delivered before is suspected of killing its worker: until a round comes without one, the
    /// worker holds one record for each free handler and nothing beside it.
    fn hand_out(&mut self, mut jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let suspects = jobs.iter().any(|job| job.record.delivery_count > 1);
        if suspects {
            self.careful = true;
            jobs.extend(self.unstarted.try_iter());
            jobs.sort_by_key(|job| job.key);
            let counts = self.in_flight.counts();
            let mut idle = self.options.handlers.saturating_sub(counts.busy());
            jobs.retain(|job| {
                // The last delivery before the broker drops a record is not given away: a handler copies it.
                let keep = idle > 0 || job.record.delivery_count >= NEVER_RELEASE_FROM;
                if keep {
                    idle = idle.saturating_sub(1);
                } else {
                    self.in_flight.take_back(job.key);
                }
                keep
            });
        } else {
            self.careful = false;
        }
        // A stop that began while the fetch was parked: nothing of it starts here.
        let stopping = self.control.phase() != Phase::Running;
        for job in jobs {
            let keep = !stopping || job.record.delivery_count >= NEVER_RELEASE_FROM;
            let refused = if keep { self.jobs.try_send(job).err() } else { Some(TrySendError::Full(job)) };
            // Full cannot be while the window is smaller than the channel; if it were, the record goes back.
            if let Some(TrySendError::Full(job) | TrySendError::Disconnected(job)) = refused {
                self.in_flight.take_back(job.key);
            }
        }
    }

    /// What lies ready behind handlers that have all been busy for too long goes back.
    fn return_stuck(&mut self) {
        let counts = self.in_flight.counts();
        // What a search holds would only come again: it goes back when that is over.
        if counts.ready == self.held.len() || counts.busy() < self.options.handlers {
            self.busy_since = None;
            return;
        }
        let now = Instant::now();
        // Work that flows is not stuck, however busy: only a handler that has run that long is.
        let oldest = self.in_flight.running().first().map(|task| task.since);
        let since = *self.busy_since.get_or_insert(now);
        let stuck = oldest.is_some_and(|oldest| now.saturating_duration_since(oldest) >= LONGEST_READY);
        if stuck && now.saturating_duration_since(since) >= LONGEST_READY {
            self.take_back_ready();
            self.busy_since = None;
        }
    }

    fn take_back_ready(&mut self) {
        let jobs: Vec<Job> = self.unstarted.try_iter().collect();
        self.give_back(jobs);
    }

    /// Gives unstarted records back, except those that the broker would drop then: a handler copies them.
    fn give_back(&mut self, jobs: Vec<Job>) {
        for job in jobs {
            if job.record.delivery_count >= NEVER_RELEASE_FROM {
                // There is room: what the channel holds and what is held was admitted within its capacity.
                let _ = self.jobs.try_send(job);
            } else {
                self.in_flight.take_back(job.key);
            }
        }
    }

    /// What the search brought besides is started as far as the window is open, and goes back otherwise.
    fn release_held(&mut self) {
        let mut held = std::mem::take(&mut self.held);
        if held.is_empty() {
            return;
        }
        held.sort_by_key(|job| job.key);
        let counts = self.in_flight.counts();
        let idle = self.options.handlers.saturating_sub(counts.busy());
        let running = self.control.phase() == Phase::Running;
        let room = if running { self.window.wanted(idle, counts.ready.saturating_sub(held.len())) } else { 0 };
        let rest = held.split_off(room.min(held.len()));
        self.give_back(rest);
        self.note_highest(&held);
        self.hand_out(held);
    }

    // ---- sessions ----

    /// The next session in turn.
    fn next_session(&mut self) -> Option<usize> {
        if self.sessions.is_empty() {
            return None;
        }
        self.turn = (self.turn + 1) % self.sessions.len();
        Some(self.turn)
    }

    /// Opens a session with every broker that leads an assigned partition.
    fn follow_assignment(&mut self) -> Result<(), KafkaError> {
        let now = Instant::now();
        if now < self.next_try {
            return Ok(());
        }
        let assigned = self.assignment.partitions();
        let covered: BTreeSet<SharePartition> =
            self.sessions.iter().flat_map(|session| session.partitions().iter().copied()).collect();
        if assigned.is_subset(&covered) {
            return Ok(());
        }
        match self.open_sessions(&assigned, &covered) {
            Ok(()) => {
                // Told once; later ones find it full.
                let _ = self.ready.try_send(());
                Ok(())
            }
            Err(error) => self.postpone(error),
        }
    }

    fn open_sessions(
        &mut self,
        assigned: &BTreeSet<SharePartition>,
        covered: &BTreeSet<SharePartition>,
    ) -> Result<(), KafkaError> {
        if self.leaders.is_empty() {
            self.cluster.refresh(&[&self.options.topic])?;
        }
        let topic = self.cluster.topic(&self.options.topic)?;
        self.leaders = topic
            .partitions
            .iter()
            .map(|partition| (SharePartition { topic_id: topic.id, partition: partition.index }, partition.leader))
            .collect();
        let mut wanted: BTreeMap<i32, BTreeSet<SharePartition>> = BTreeMap::new();
        for partition in assigned.difference(covered) {
            let Some(&leader) = self.leaders.get(partition) else { continue };
            wanted.entry(leader).or_default().insert(*partition);
        }
        if wanted.is_empty() {
            // The assignment names a topic that the metadata does not know yet, or not any more.
            self.leaders.clear();
            return Err(KafkaError::broker("Metadata", ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, None));
        }
        for (node, partitions) in wanted {
            if let Some(session) = self.sessions.iter_mut().find(|session| session.node() == node) {
                // An answer that does not come in time is taken by the next round: nothing rides on this request.
                let _ = session.add_partitions(&partitions, ANSWER_SLICE)?;
                continue;
            }
            let session = ShareSession::open(&self.cluster, node, self.identity.clone(), partitions)?;
            self.sessions.push(session);
            if let Some(recovery) = &mut self.recovery {
                recovery.session_opened(Instant::now());
            }
        }
        Ok(())
    }

    /// The session is gone, and with it the locks on its partitions. What runs goes on and is looked for again.
    fn lose(&mut self, index: usize, error: KafkaError) -> Result<(), KafkaError> {
        let session = self.sessions.remove(index);
        let partitions = session.partitions().clone();
        drop(session);
        let mine = |partition: &SharePartition| partitions.contains(partition);
        self.retries.retain(|group| !group.keys().any(mine));
        self.gaps.retain(|partition, _| !mine(partition));
        let missing = self.in_flight.session_lost(&mine);
        for job in self.unstarted.try_iter().collect::<Vec<_>>() {
            // Forgotten by the account: a handler that took it would be told so, too.
            drop(job);
        }
        self.held.clear();
        self.recovery = Some(Recovery::new(missing, self.highest.clone()));
        self.postpone(error)
    }

    /// Decides whether to go on after `error`, and when to try again.
    fn postpone(&mut self, error: KafkaError) -> Result<(), KafkaError> {
        match &error {
            KafkaError::Interrupted => {
                self.next_try = Instant::now() + ANSWER_SLICE;
                return Ok(());
            }
            // 42: a request of ours is wrong; 35: share groups are off. Repeating cures neither.
            KafkaError::Broker { code: ErrorCode::INVALID_REQUEST | ErrorCode::UNSUPPORTED_VERSION, .. } => {
                return Err(error);
            }
            // The broker has forgotten the session (122) or counts its requests differently (123): open a new one, at once as far as
            // one that says so again and again is not asked without a pause.
            KafkaError::Broker {
                code: ErrorCode::SHARE_SESSION_NOT_FOUND | ErrorCode::INVALID_SHARE_SESSION_EPOCH,
                ..
            } => {
                self.next_try = Instant::now() + self.backoff.pause();
            }
            _ => {
                self.leaders.clear();
                self.cluster.forget();
                self.next_try = Instant::now() + self.backoff.pause();
            }
        }
        self.outage.report(&error);
        Ok(())
    }

    fn end_recovery(&mut self) {
        self.recovery = None;
        self.release_held();
        for task in self.in_flight.forget_missing() {
            log::warn!(
                "Worker {} could not accept task {}: its lock was lost; the result is in Kafka, another worker may run it again",
                self.options.worker_id,
                escape(&task)
            );
            self.report.unaccepted.push(task);
        }
    }

    // ---- the end ----

    /// Finishes or gives back what lies ready, then settles what is in flight until nothing is left or main closes.
    fn drain(&mut self) -> Result<(), KafkaError> {
        let began = Instant::now();
        let ready = self.in_flight.counts().ready;
        if !self.window.finishes_within(ready, QUICK_FINISH) {
            self.take_back_ready();
        }
        let mut accepting_since = None;
        while self.control.phase() == Phase::Draining {
            self.release_held();
            if began.elapsed() > QUICK_FINISH {
                self.take_back_ready();
            }
            // A failed task that rests goes back now; another worker has the time.
            self.in_flight.take_back_resting();
            let counts = self.in_flight.counts();
            if counts.only_acknowledgements() {
                let since = *accepting_since.get_or_insert_with(Instant::now);
                let connected = !self.sessions.is_empty() && self.recovery.is_none();
                // With a session the last acknowledgements ride on its closing request.
                if connected || counts.done == 0 || since.elapsed() > ACCEPT_PATIENCE {
                    return Ok(());
                }
            } else {
                accepting_since = None;
            }
            let recovering = self.recovery.as_ref().is_some_and(Recovery::is_searching);
            self.round(recovering)?;
        }
        Ok(())
    }

    /// The last request of every session: accepts, releases, and epoch -1, which frees whatever is left.
    fn close(&mut self) {
        let deadline =
            Instant::now() + if self.control.abandoned.is_triggered() { CLOSE_LIMIT / 3 } else { CLOSE_LIMIT };
        for job in self.unstarted.try_iter() {
            // Only what must not be released can be here; a handler did not come to it in time.
            self.in_flight.take_back(job.key);
        }
        for mut session in std::mem::take(&mut self.sessions) {
            let partitions = session.partitions().clone();
            let mine = |partition: &SharePartition| partitions.contains(partition);
            if let Err(error) = self.close_session(&mut session, &mine, deadline) {
                self.report.close_failed = Some(error);
            }
        }
        self.end_recovery();
    }

    fn close_session(
        &mut self,
        session: &mut ShareSession,
        mine: &dyn Fn(&SharePartition) -> bool,
        deadline: Instant,
    ) -> Result<(), String> {
        // One lost lock refuses a whole request, so the acknowledgements go before the close and are halved as ever; the
        // closing request frees whatever is left and carries nothing that could be refused.
        loop {
            let group = self.next_group(mine);
            if group.is_empty() {
                break;
            }
            session.send_acknowledge(group).map_err(|error| error.to_string())?;
            self.await_last(session, deadline)?;
        }
        session.send_close(Acknowledgements::new()).map_err(|error| error.to_string())?;
        self.await_last(session, deadline)
    }

    fn await_last(&mut self, session: &mut ShareSession, deadline: Instant) -> Result<(), String> {
        while session.is_waiting() {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = session.receive(left).map_err(|error| error.to_string())?;
            let Some(answer) = answer else {
                return Err(format!("no answer from broker {} in time", session.node()));
            };
            // Records that a parked fetch still brings were never started; the closing request frees them.
            for settlement in answer.settlements {
                self.take_settlement(settlement, answer.sent_at);
            }
        }
        Ok(())
    }
}

fn session_owes_renewal(session: &ShareSession, waiting: Duration, renew_after: Duration) -> bool {
    waiting >= renew_after && session.waiting_count() < MOST_UNANSWERED
}

fn is_renewal(acknowledgements: &Acknowledgements) -> bool {
    acknowledgements.values().any(|offsets| offsets.values().any(|kind| *kind == Acknowledgement::Renew))
}

/// A name for the record before anybody has looked into its value: its key, as far as it can be read.
fn task_name(record: &AcquiredRecord) -> Arc<str> {
    match &record.key {
        Some(key) if !key.is_empty() => String::from_utf8_lossy(&key[..key.len().min(100)]).into(),
        _ => format!("offset {}", record.offset).into(),
    }
}
