//! A fleet that can be acted on: what every kind of it has in common.
//!
//! Called by the director, which says when; a fleet says how, and to whom. What it does it tells as facts.

use std::time::Instant;

use super::clock::Clock;
use super::event::Event;
use super::fact::{Fact, Line};
use super::plan::What;
use super::process::Happening;
use super::schedule::Planned;
use crossbeam_channel::Sender;

/// What came of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// It was begun; facts tell the rest.
    Begun,
    /// It hits nobody just now: why.
    NotNow(String),
    /// Another action has to end first: which.
    NotInTurn(String),
}

/// See the module documentation.
pub(super) trait Fleet: Send {
    /// What it is, in a few words.
    fn describe(&self) -> String;

    /// Whether this can be done to it at all.
    ///
    /// # Errors
    /// Why not, and what would help.
    fn can(&self, what: What) -> Result<(), String>;

    /// Begins an action. `number` counts the actions of the run.
    fn order(&mut self, number: u32, planned: &Planned) -> Attempt;

    /// Takes what a process of it told.
    fn happened(&mut self, _: Happening) {}

    /// When [`tick`](Self::tick) has something to do; `None`: not by itself.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Does what is due.
    fn tick(&mut self) {}

    /// The load was ended before its time: what is left of the plan need not be done. Told before [`heal`](Self::heal).
    fn cut_short(&mut self) {}

    /// Ends every freeze and has everything started again that should run; [`is_sound`](Self::is_sound) tells when it does.
    fn heal(&mut self);

    /// Whether nothing is under way and everything that should run is ready.
    fn is_sound(&self) -> bool;

    /// Stops all workers, as `is_stopped` tells; those that ran before the drill go on.
    fn stop_workers(&mut self) {}

    /// Stops all gateways; those that ran before the drill go on.
    fn stop_gateways(&mut self) {}

    /// Whether those that were told to stop have.
    fn is_stopped(&self) -> bool {
        true
    }

    /// Ends all of it at once.
    fn end(&mut self);
}

/// Tells facts.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    pub(super) clock: Clock,
    pub(super) facts: Sender<Event>,
}

impl Teller {
    /// Something that is so now.
    pub(super) fn tell(&self, fact: Fact) {
        self.tell_at(self.clock.now(), fact);
    }

    /// Something that was so then.
    pub(super) fn tell_at(&self, at: f64, fact: Fact) {
        // The receiver is gone only when the drill ends.
        let _ = self.facts.send(Event::Fact(Line { at, fact }));
    }
}
