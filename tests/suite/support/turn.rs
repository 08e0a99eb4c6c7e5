//! Whose turn it is: which tests run beside each other on this machine.
//!
//! Most tests wait more than they work, so that many of them run at once; those that measure a bound of a second and less run a few at a time,
//! once no other test wants to run. libtest starts more threads than there are turns (`.cargo/config.toml`), so that a test that waits
//! holds up no other.

use parking_lot::{Condvar, Mutex};

use super::broker::is_apache;

/// How many places the machine has. A real Kafka takes its share.
const PLACES: usize = 12;
const PLACES_WITH_APACHE: usize = 8;
/// How many have a quiet machine at once: they leave the processors idle for four fifths of their time.
const QUIET: usize = 3;

#[derive(Default)]
struct Machine {
    taken: usize,
    quiet: usize,
    /// Who waits for places, but for those who want a quiet machine.
    waiting: usize,
}

static MACHINE: Mutex<Machine> = Mutex::new(Machine { taken: 0, quiet: 0, waiting: 0 });
static FREED: Condvar = Condvar::new();

/// The places of one test, until it is dropped.
pub struct Turn {
    /// `None`: one on a quiet machine.
    places: Option<usize>,
}

impl Turn {
    /// Beside others.
    pub fn shared() -> Turn {
        Turn::take(1)
    }

    /// Beside others, with a broker of its own: a real one takes more than its test does.
    pub fn with_broker() -> Turn {
        Turn::take(if is_apache() { 2 } else { 1 })
    }

    /// Beside two others of its kind at most. Those who share come first.
    pub fn quiet() -> Turn {
        let mut machine = MACHINE.lock();
        while machine.taken > 0 || machine.waiting > 0 || machine.quiet == QUIET {
            FREED.wait(&mut machine);
        }
        machine.quiet += 1;
        Turn { places: None }
    }

    fn take(places: usize) -> Turn {
        let limit = if is_apache() { PLACES_WITH_APACHE } else { PLACES };
        let mut machine = MACHINE.lock();
        machine.waiting += 1;
        while machine.quiet > 0 || machine.taken + places > limit {
            FREED.wait(&mut machine);
        }
        machine.waiting -= 1;
        machine.taken += places;
        Turn { places: Some(places) }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut machine = MACHINE.lock();
        match self.places {
            Some(places) => machine.taken -= places,
            None => machine.quiet -= 1,
        }
        drop(machine);
        FREED.notify_all();
    }
}
