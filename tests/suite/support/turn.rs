//! Limits which tests run in parallel on this machine. Each [`super::Rig`] takes a turn.
//!
//! Most tests wait more than they work, so many of them run in parallel. Tests that measure a bound of at most a second
//! run three at a time, after all other tests. libtest starts more threads than there are turns (`.cargo/config.toml`),
//! so that a test that waits for its turn does not block another test.

use parking_lot::{Condvar, Mutex};

use super::broker::is_apache;

/// Tests that run in parallel; fewer with Apache Kafka, which needs processors itself.
const PLACES: usize = 12;
const PLACES_WITH_APACHE: usize = 8;
/// Quiet tests that run in parallel: they leave the processors idle for four fifths of their time.
const QUIET: usize = 3;

#[derive(Default)]
struct Machine {
    taken: usize,
    quiet: usize,
    /// Tests that wait for a place, without quiet tests.
    waiting: usize,
}

static MACHINE: Mutex<Machine> = Mutex::new(Machine { taken: 0, quiet: 0, waiting: 0 });
static FREED: Condvar = Condvar::new();

/// The places of one test; dropping it frees them.
pub struct Turn {
    /// `None` for a quiet test.
    places: Option<usize>,
}

impl Turn {
    pub fn shared() -> Turn {
        Turn::take(1)
    }

    /// For a test with its own broker: an Apache Kafka needs more of the machine than its test.
    pub fn with_broker() -> Turn {
        Turn::take(if is_apache() { 2 } else { 1 })
    }

    /// Waits until no other kind of test runs or waits; at most three quiet tests run in parallel.
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
