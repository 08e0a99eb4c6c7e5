//! A fleet that the drill acts on: the interface of all kinds of fleets.
//!
//! The director decides when an action begins; the fleet decides how and chooses the target. The fleet reports its acts
//! as facts.

use std::time::Instant;

use super::clock::Clock;
use super::event::Event;
use super::fact::{Fact, Line};
use super::plan::What;
use super::process::Happening;
use super::schedule::Planned;
use crossbeam_channel::Sender;

/// The outcome of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The action has begun; facts report the rest.
    Begun,
    /// The action finds no target now, with the reason.
    NotNow(String),
    /// Another action must end first, with its description.
    NotInTurn(String),
}

/// A fleet of any kind.
pub(super) trait Fleet: Send {
    /// A short description.
    fn describe(&self) -> String;

    /// Whether the fleet supports this kind of action.
    ///
    /// # Errors
    /// The reason, and what the user can do.
    fn can(&self, what: What) -> Result<(), String>;

    /// Begins an action. `number` counts the actions of the run.
    fn order(&mut self, number: u32, planned: &Planned) -> Attempt;

    /// Takes an event of a process of the fleet.
    fn happened(&mut self, _: Happening) {}

    /// When [`tick`](Self::tick) is due; `None`: at no certain time.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Does what is due.
    fn tick(&mut self) {}

    /// Ends every freeze and starts everything that should run; [`is_sound`](Self::is_sound) tells when that is done.
    /// `early`: a signal ended the load, and actions that are left need not be done.
    fn heal(&mut self, early: bool);

    /// Whether no action is under way and every process that should run is ready.
    fn is_sound(&self) -> bool;

    /// Stops the workers, or else the gateways, that the drill started; [`is_stopped`](Self::is_stopped) tells when
    /// that is done.
    fn stop(&mut self, _workers: bool) {}

    /// Whether all processes that got a stop have exited.
    fn is_stopped(&self) -> bool {
        true
    }

    /// Ends the fleet at once.
    fn end(&mut self);
}

/// Sends facts to the run.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    pub(super) clock: Clock,
    pub(super) facts: Sender<Event>,
}

impl Teller {
    /// Sends a fact with the present time. `false`: the run takes no more events, at the end of the drill.
    pub(super) fn tell(&self, fact: Fact) -> bool {
        self.tell_at(self.clock.now(), fact)
    }

    /// Sends a fact with this time, likewise.
    pub(super) fn tell_at(&self, at: f64, fact: Fact) -> bool {
        self.facts.send(Event::Fact(Line { at, fact })).is_ok()
    }
}
