//! The director: the thread that acts on the fleet by the schedule.
//!
//! An action that finds no target is tried again for a while and does not delay later actions. After the load, the run
//! commands the director to heal the fleet and later to stop it; the director reports the end of each command once.
//! Started and owned by the run.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, select};

use super::event::{Event, Phase};
use super::fact::Fact;
use super::fleet::{Attempt, Fleet, Teller};
use super::plan::What;
use super::process::Happening;
use super::schedule::Planned;

/// How long an action without a target is tried again.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long an action waits for the end of another action: the start of a broker may take long.
const TURN: Duration = Duration::from_secs(90);
/// How often such an action is tried again.
const AGAIN: Duration = Duration::from_millis(20);
/// How often the end of a command is checked.
const LOOK: Duration = Duration::from_millis(20);

/// A command of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Begin the schedule at this moment.
    Begin(Instant),
    /// Begin no more actions, end those under way, and start everything that should run. `early`: a signal ended the
    /// load, and actions that were left do not count as "not done".
    Heal { early: bool },
    /// Stop the workers.
    StopWorkers,
    /// Stop the gateways.
    StopGateways,
    /// End the fleet at once.
    End,
}

/// The thread's state.
pub(super) struct Director {
    pub(super) fleet: Box<dyn Fleet>,
    pub(super) schedule: VecDeque<Planned>,
    pub(super) teller: Teller,
    pub(super) commands: Receiver<Command>,
    pub(super) happenings: Receiver<Happening>,
    /// The load sends no requests while this is set.
    pub(super) paused: Arc<AtomicBool>,
}

/// An action that is due and has found no target yet.
struct Waiting {
    number: u32,
    planned: Planned,
    since: Instant,
    tried: Instant,
}

/// What is under way.
#[derive(Default)]
struct State {
    began: Option<Instant>,
    numbers: u32,
    waiting: Vec<Waiting>,
    pause: Option<(Instant, u32)>,
    /// The command that is not finished yet.
    phase: Option<Phase>,
}

/// The next step after an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Nothing,
    TryAgain,
    /// With the reason.
    GiveUp(String),
}

/// The next step after this attempt at an action that has waited this long. Pure.
fn next_step(attempt: Attempt, waited: Duration) -> Next {
    let (why, patience) = match attempt {
        Attempt::Begun => return Next::Nothing,
        Attempt::NotNow(why) => (why, PATIENCE),
        Attempt::NotInTurn(why) => (why, TURN),
    };
    if waited < patience { Next::TryAgain } else { Next::GiveUp(why) }
}

impl Director {
    /// The body of the thread.
    pub(super) fn run(mut self) -> Result<(), Infallible> {
        let mut state = State::default();
        loop {
            let wait =
                self.next(&state).map_or(Duration::from_secs(1), |at| at.saturating_duration_since(Instant::now()));
            select! {
                recv(self.commands) -> command => match command {
                    Ok(Command::End) | Err(_) => break,
                    Ok(command) => self.obey(command, &mut state),
                },
                recv(self.happenings) -> happening => match happening {
                    Ok(happening) => self.fleet.happened(happening),
                    // The fleet sends none: wait for commands and time only.
                    Err(_) => self.happenings = never(),
                },
                default(wait) => {}
            }
            self.act(&mut state);
        }
        self.fleet.end();
        Ok(())
    }

    fn next(&self, state: &State) -> Option<Instant> {
        let planned = state.began.and_then(|began| self.schedule.front().map(|planned| began + planned.at));
        let again = state.waiting.iter().map(|waiting| waiting.tried + AGAIN).min();
        let phase = state.phase.map(|_| Instant::now() + LOOK);
        let pause = state.pause.map(|(until, _)| until);
        [planned, again, phase, pause, self.fleet.due()].into_iter().flatten().min()
    }

    fn obey(&mut self, command: Command, state: &mut State) {
        match command {
            Command::Begin(at) => state.began = Some(at),
            Command::Heal { early } => {
                if !early {
                    // Actions of the last moment of the load are still due.
                    self.act(state);
                }
                self.schedule.clear();
                for Waiting { number, planned, .. } in state.waiting.drain(..).filter(|_| !early) {
                    self.give_up(number, &planned, "the load ended before the action found a target");
                }
                self.end_pause(state);
                self.fleet.heal(early);
                state.phase = Some(Phase::Healed);
            }
            Command::StopWorkers => {
                self.fleet.stop(true);
                state.phase = Some(Phase::WorkersStopped);
            }
            Command::StopGateways => {
                self.fleet.stop(false);
                state.phase = Some(Phase::GatewaysStopped);
            }
            Command::End => {}
        }
    }

    fn act(&mut self, state: &mut State) {
        let now = Instant::now();
        // Every time: a fault that takes effect sends no event.
        self.fleet.tick();
        if state.pause.is_some_and(|(until, _)| until <= now) {
            self.end_pause(state);
        }
        for waiting in std::mem::take(&mut state.waiting) {
            self.try_again(waiting, state);
        }
        while let Some(began) = state.began
            && let Some(planned) = self.schedule.front()
            && began + planned.at <= now
        {
            let Some(planned) = self.schedule.pop_front() else { break };
            state.numbers += 1;
            self.order(state.numbers, planned, now, state);
        }
        let done = match state.phase {
            Some(Phase::Healed) => self.fleet.is_sound(),
            Some(_) => self.fleet.is_stopped(),
            None => false,
        };
        if done && let Some(phase) = state.phase.take() {
            // The receiver is dropped only at the end of the drill.
            let _ = self.teller.facts.send(Event::Phase(phase));
        }
    }

    fn try_again(&mut self, waiting: Waiting, state: &mut State) {
        let now = Instant::now();
        if now < waiting.tried + AGAIN {
            state.waiting.push(waiting);
        } else {
            self.order(waiting.number, waiting.planned, waiting.since, state);
        }
    }

    fn order(&mut self, number: u32, planned: Planned, since: Instant, state: &mut State) {
        if planned.what == What::Pause {
            self.pause(number, &planned, state);
            return;
        }
        let waited = since.elapsed();
        match next_step(self.fleet.order(number, &planned), waited) {
            Next::Nothing => {}
            Next::TryAgain => state.waiting.push(Waiting { number, planned, since, tried: Instant::now() }),
            Next::GiveUp(why) => self.give_up(number, &planned, &why),
        }
    }

    fn give_up(&self, number: u32, planned: &Planned, why: &str) {
        let what = planned.what.to_string();
        self.teller.tell(Fact::Ordered { action: number, what, target: None, detail: String::new() });
        self.teller.tell(Fact::Carried { action: number, done: false, detail: why.to_owned() });
    }

    fn pause(&self, number: u32, planned: &Planned, state: &mut State) {
        let length = planned.length.unwrap_or_default();
        let detail = format!("for {:.1} s", length.as_secs_f64());
        self.teller.tell(Fact::Ordered { action: number, what: planned.what.to_string(), target: None, detail });
        self.paused.store(true, Ordering::Relaxed);
        let until = Instant::now() + length;
        let longest = state.pause.map_or(until, |(other, _)| other.max(until));
        state.pause = Some((longest, number));
        self.teller.tell(Fact::Carried { action: number, done: true, detail: "no load".to_owned() });
    }

    fn end_pause(&self, state: &mut State) {
        if state.pause.take().is_some() {
            self.paused.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_waits_longer_for_another_action_than_for_a_target() {
        let (no_target, busy) = (|| Attempt::NotNow("none".to_owned()), || Attempt::NotInTurn("busy".to_owned()));
        assert_eq!(next_step(Attempt::Begun, Duration::ZERO), Next::Nothing);
        assert_eq!(next_step(no_target(), Duration::from_secs(29)), Next::TryAgain);
        assert_eq!(next_step(no_target(), Duration::from_secs(31)), Next::GiveUp("none".to_owned()));
        assert_eq!(next_step(busy(), Duration::from_secs(65)), Next::TryAgain);
        assert_eq!(next_step(busy(), Duration::from_secs(91)), Next::GiveUp("busy".to_owned()));
    }
}
