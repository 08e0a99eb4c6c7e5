//! A run: takes events from the threads, writes the ledger, shows progress, and decides when the run ends.
//!
//! The run owns all state, so that no state needs a lock. It does not judge: at the end it gives the ledger to the
//! judge. Called by [`run`](fn@super::run).
//!
//! | thread | does | ends |
//! |---|---|---|
//! | main | this module | returns the exit code |
//! | `pace` | hands out request numbers | when the load's time is over, or at a signal |
//! | `send-N` | posts, waits for the response | after the pace, with its last response |
//! | `director` | acts on the fleet | at the command `End` |
//! | `broker` | does one action on the nodes of the broker | when every replica is in sync again |
//! | `out-NAME` | reads a process's output | with the process |
//! | `fleet`, `lookups` | ask the gateways | when the run drops their channels |
//! | `tasks`, `results` | read the topics | when their client is interrupted |

mod events;
mod settle;
mod start;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use serde_json::Value;

use kafka_share::{Cluster, Interrupter};
use program::exit::ExitCode;
use program::logging::escape;
use program::signals::Signals;
use program::stop::Stop;
use program::threads::{self, Thread};

use super::account::Account;
use super::asker::{Asker, Question};
use super::audit::Audit;
use super::clock::Clock;
use super::console::Console;
use super::director::{Command, Director};
use super::display::{Counts, Display};
use super::event::{EVENTS, Event, Phase};
use super::fact::{Begin, Ending, Fact, Kind, Line, ONE_READER};
use super::fleet::{Fleet, Teller};
use super::history::History;
use super::http::Client;
use super::judge;
use super::judgement::{Conclusion, Verdict};
use super::ledger::Ledger;
use super::load::{Load, LoadOptions};
use super::options::RunConfig;
use super::output;
use super::place::GatewayAddress;
use super::place::Place;
use super::plan::{LoadPlan, Plan, Shares, What};
use super::process::{Ears, Happening};
use super::schedule;
use super::target;
use super::texts::{AFTERWARDS, Checked, Texts};
use super::topics;

/// How long the run waits for outstanding responses after the load, beside the longest task.
const ANSWERS_WAIT: Duration = Duration::from_secs(15);
/// How long the run asks for unknown outcomes without any progress.
const UNKNOWN_WAIT: Duration = Duration::from_secs(30);
/// The same after an outage of a broker: a gateway produces a missing task again after `MISSING_AFTER` and its sweep.
const MISSING_WAIT: Duration = Duration::from_secs(100);
/// Record locks run out at most this long after the last fault; then their tasks start again.
const LOCK_WAIT: Duration = Duration::from_secs(17);
/// How long the fleet may take until all processes are ready again.
const HEAL_WAIT: Duration = Duration::from_secs(120);
/// How long the run waits for a process after the process's own stop limit.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// How long gateways may take to show the state of the fleet.
const SHOWN_WAIT: Duration = Duration::from_secs(6);
/// After the healing, the run sends this many tasks through each gateway and reads this many results back from each.
const PROBES: u64 = 20;
const READ_BACK: usize = 100;
/// Maximum age, in seconds, of a result to read back; gateways keep results longer (`RESULT_RETENTION`).
const READ_BACK_OF: f64 = 300.0;
/// After its start, a gateway must return results of before within this time (P10); then the run asks for this many.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);
const KNOWN: usize = 20;
/// How long the probe and the reading back may take, each.
const PROBE_WAIT: Duration = Duration::from_secs(30);
/// How often the run asks for unknown outcomes.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How often the run asks gateways for the fleet.
const FLEET_EVERY: Duration = Duration::from_millis(250);
/// How long the run waits for Kafka at the start.
const KAFKA_WAIT: Duration = Duration::from_secs(10);
/// Tasks of a round before the load, how soon each is answered by a warm cluster, in milliseconds, and when the rounds
/// end in any case.
const WARM_UP_ROUND: u64 = 60;
const WARM_MS: f64 = 100.0;
const WARM_UP_WAIT: Duration = Duration::from_secs(10);
/// How often the run checks signals and deadlines.
const TICK: Duration = Duration::from_millis(50);

/// Why a run ends before its verdict.
enum End {
    /// A second signal.
    Forced,
    /// The reader of its stdout has closed the pipe.
    Unread,
    /// A thread failed and has logged why.
    Died,
    /// The run cannot start, with the reason.
    Cannot(String),
}

/// Reaches the fleet, runs the plan, and prints the verdict.
pub(super) fn run(config: &RunConfig, signals: &Signals, mut console: Console) -> ExitCode {
    let clock = Clock::start();
    let (events, taken) = bounded(EVENTS);
    let (owner, happenings) = bounded(EVENTS);
    let died = Stop::new();
    let teller = Teller { clock, facts: events };
    let ears = Ears { owner, died: died.clone() };
    console.line(&format!("drill: {}", config.headline()));
    let (fleet, place) = match target::reach(config, teller.clone(), ears, &happenings, signals) {
        Ok(reached) => reached,
        Err(why) => {
            console.error(&why);
            return ExitCode::Fatal;
        }
    };
    let mut run = Run {
        config,
        signals,
        history: History::new(clock.unix(), place.worker_timeout),
        teller,
        taken: Some(taken),
        died,
        place,
        display: Display::new(console, &config.plan.name, config.length(), config.report_every),
        texts: Texts::new(fastrand::u32(..), config.seed, &config.plan.load, config.answers),
        ledger: Ledger::default(),
        account: Account::default(),
        side: None,
        load: None,
        kafka_read: false,
        kafka_away: false,
        tasks_read: Duration::ZERO,
        disturbed: None,
        outage: false,
        asking: false,
        asked: Duration::ZERO,
        fleet_asked: Duration::ZERO,
        restarted: BTreeMap::new(),
        views: BTreeMap::new(),
        phase: None,
        cut_short: false,
    };
    let outcome = run.all(fleet, happenings);
    run.finish(outcome)
}

/// The threads beside the load, and the channels to them.
struct Side {
    threads: Vec<Thread>,
    fleet: Option<Sender<Question>>,
    lookups: Option<Sender<Question>>,
    director: Option<Sender<Command>>,
    hurry: Stop,
    interrupter: Interrupter,
    cluster: Cluster,
}

/// The fleet as a gateway shows it.
#[derive(Clone, Debug)]
struct View {
    told: Value,
    active: Vec<String>,
    stopping: Vec<String>,
}

struct Run<'a> {
    config: &'a RunConfig,
    signals: &'a Signals,
    teller: Teller,
    /// `None` when the run takes no more events.
    taken: Option<Receiver<Event>>,
    died: Stop,
    place: Place,
    display: Display,
    texts: Texts,
    ledger: Ledger,
    account: Account,
    history: History,
    side: Option<Side>,
    load: Option<Load>,
    kafka_read: bool,
    kafka_away: bool,
    /// When the tasks topic was last read to its end.
    tasks_read: Duration,
    /// Time of the last kill, freeze or outage, whose effects show later.
    disturbed: Option<Duration>,
    outage: bool,
    asking: bool,
    asked: Duration,
    fleet_asked: Duration,
    /// Gateways that an action has started: time of the start, and of the questions for earlier results.
    restarted: BTreeMap<String, (f64, Duration)>,
    /// The last view of each gateway, by its name in the ledger.
    views: BTreeMap<String, View>,
    phase: Option<Phase>,
    cut_short: bool,
}

impl<'a> Run<'a> {
    fn now(&self) -> Duration {
        self.teller.clock.elapsed()
    }

    fn plan(&self) -> &'a Plan {
        &self.config.plan
    }

    /// The whole run: start, load, settling, audit and verdict.
    fn all(&mut self, fleet: Option<Box<dyn Fleet>>, happenings: Receiver<Happening>) -> Result<Verdict, End> {
        let target = fleet.as_ref().map_or_else(
            || "a fleet that others act on: only its tasks are judged".to_owned(),
            |fleet| fleet.describe(),
        );
        let owned = self.config.owns_processes();
        let paused = Arc::new(AtomicBool::new(false));
        let path = self.config.ledger_path();
        self.ledger = Ledger::create(path.as_deref())
            .map_err(|error| End::Cannot(format!("the ledger {}: {error}", path.unwrap_or_default().display())))?;
        self.start_side()?;
        if let Some(fleet) = fleet {
            self.start_director(fleet, happenings, Arc::clone(&paused))?;
        }
        self.begin(&target, owned);
        self.wait_for_kafka()?;
        let cluster = self.side.as_ref().map(|side| side.cluster.clone());
        let mut audit = cluster.as_ref().and_then(|cluster| self.begin_audit(cluster));
        self.warm_up()?;
        let load = self.load_options(paused);
        // The schedule starts before the load, so that an action at the last moment of the load still begins.
        self.command(Command::Begin(Instant::now()));
        self.load = Some(Load::start(&load, &self.texts, &self.teller, &self.died));
        self.watch()?;
        self.write(Fact::LoadEnded);
        self.display.phase = "waiting";
        self.settle(owned)?;
        let audited = match (&mut audit, &cluster) {
            (Some(audit), Some(cluster)) => self.audit(audit, cluster)?,
            _ => false,
        };
        Ok(self.judge(audited))
    }

    fn command(&self, command: Command) -> bool {
        let director = self.side.as_ref().and_then(|side| side.director.as_ref());
        // The channel has room for every command of a run.
        director.is_some_and(|director| director.send(command).is_ok())
    }

    /// Takes events until the load has ended and the last response has come.
    fn watch(&mut self) -> Result<(), End> {
        let mut ended: Option<Duration> = None;
        let wait = ANSWERS_WAIT + self.plan().longest_work();
        while let Some(load) = &self.load {
            if load.is_done() {
                break;
            }
            let now = self.now();
            if self.signals.first.is_triggered() && load.stop.trigger() {
                self.cut_short = self.config.length().is_some();
                self.display.console.at(now, &format!("{} received: no more tasks are sent", self.signals.name()));
            }
            match ended {
                None if load.has_ended() => {
                    ended = Some(now);
                    // Heal now, so that no caller waits for a worker that would stay frozen.
                    self.command(Command::Heal { early: self.cut_short });
                }
                Some(since) if now >= since + wait => {
                    load.hurry.trigger();
                }
                _ => {}
            }
            self.step()?;
        }
        if ended.is_none() {
            // The last response came together with the end of the load.
            self.command(Command::Heal { early: self.cut_short });
        }
        self.drain();
        let (at, open) = (self.now(), self.account.open());
        self.display.console.at(at, &format!("the load has ended; asking for {open} unknown outcomes"));
        Ok(())
    }

    /// Takes all events that are in the channel.
    fn drain(&mut self) {
        while let Some(event) = self.taken.as_ref().and_then(|taken| taken.try_recv().ok()) {
            self.take(event);
        }
    }

    /// Takes the events of a tick, and does what is due.
    fn step(&mut self) -> Result<(), End> {
        let received = match &self.taken {
            Some(taken) => taken.recv_timeout(TICK),
            None => Err(RecvTimeoutError::Disconnected),
        };
        match received {
            Ok(event) => {
                self.take(event);
                // Takes all waiting events, but at most as many as the channel holds.
                for _ in 0..EVENTS {
                    let Some(event) = self.taken.as_ref().and_then(|taken| taken.try_recv().ok()) else { break };
                    self.take(event);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(End::Died),
        }
        let now = self.now();
        for line in self.history.tick(now) {
            self.disturbed = Some(now);
            self.display.console.at(now, &line);
        }
        self.ask(now);
        self.show(now);
        if self.signals.second.is_triggered() {
            Err(End::Forced)
        } else if self.display.console.is_closed() {
            Err(End::Unread)
        } else if self.died.is_triggered() {
            Err(End::Died)
        } else {
            Ok(())
        }
    }

    fn show(&mut self, now: Duration) {
        let counts = Counts {
            sent: self.account.submitted - self.account.refused.min(self.account.submitted),
            waiting: self.account.waiting(),
            answered: self.account.answered,
            refused: self.account.refused,
            unknown: self.account.open(),
            failed: self.account.failed,
            late: self.account.late,
        };
        let view = self.views.values().map(|view| &view.told).next();
        self.display.show(now, counts, view);
    }

    /// Ends all threads, writes the files, and prints the verdict.
    fn finish(mut self, outcome: Result<Verdict, End>) -> ExitCode {
        let verdict = match outcome {
            Ok(verdict) => verdict,
            Err(end) => {
                let code = self.say_end(&end);
                // After a second signal only the director is joined: it ends the fleet that the drill started.
                self.end_side(matches!(end, End::Forced));
                return code;
            }
        };
        self.end_side(false);
        let code = verdict.exit_code();
        let ledger_kept = self.ledger.flush().map_err(|error| format!("the ledger: {error}"));
        let written = output::write(&self.config.outputs, self.ledger.lines(), &verdict).and(ledger_kept);
        if let Err(why) = &written {
            self.display.console.error(why);
        }
        self.display.console.verdict(&verdict);
        match (written, verdict.conclusion) {
            (Err(_), Conclusion::Held) => ExitCode::Fatal,
            _ => code,
        }
    }

    fn say_end(&mut self, end: &End) -> ExitCode {
        match end {
            End::Forced => {
                self.display.console.end_bar();
                self.display.console.line("verdict: NONE: a second signal ended the drill at once");
                ExitCode::Forced
            }
            End::Unread => ExitCode::Fatal,
            End::Died => {
                self.display.console.end_bar();
                self.display.console.line("verdict: COULD NOT RUN: a thread of the drill failed, see above");
                ExitCode::Fatal
            }
            End::Cannot(why) => {
                self.display.console.error(why);
                ExitCode::Fatal
            }
        }
    }

    /// Ends the threads. `at_once`: joins only the director, not the threads that wait for a gateway.
    fn end_side(&mut self, at_once: bool) {
        // The receiver first, so that no thread blocks on a full channel.
        self.taken = None;
        self.command(Command::End);
        let Some(mut side) = self.side.take() else { return };
        side.hurry.trigger();
        side.interrupter.interrupt();
        (side.fleet, side.lookups) = (None, None);
        if let Some(load) = self.load.take() {
            load.stop.trigger();
            load.hurry.trigger();
            if !at_once {
                join(load.threads);
            }
        }
        if at_once {
            side.threads.retain(|thread| thread.name() == "director");
        }
        join(side.threads);
    }
}

fn join(threads: Vec<Thread>) {
    for thread in threads {
        // A thread logs its own failure.
        let _ = thread.join();
    }
}

fn milliseconds(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}
