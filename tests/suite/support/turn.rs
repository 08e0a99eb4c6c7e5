//! Whose turn it is: which tests run beside each other on this machine.
//!
//! Most tests wait more than they work, so that many of them run at once; those that measure a bound of a second and less run alone, once
//! nobody else wants to run. libtest starts more threads than there are turns (`.cargo/config.toml`), so that those who wait hold up nobody.

use parking_lot::{Condvar, Mutex};

use super::broker::is_apache;

/// How many places the machine has. A real Kafka takes its share.
const PLACES: usize = 20;
const PLACES_WITH_APACHE: usize = 8;

#[derive(Default)]
struct Machine {
    taken: usize,
    alone: bool,
    /// Who waits for places, but for those who want them all.
    waiting: usize,
}

static MACHINE: Mutex<Machine> = Mutex::new(Machine { taken: 0, alone: false, waiting: 0 });
static FREED: Condvar = Condvar::new();

/// The places of one test, until it is dropped.
pub struct Turn {
    /// `None`: all.
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

    /// Nothing else runs meanwhile. Those who share come first.
    pub fn alone() -> Turn {
        let mut machine = MACHINE.lock();
        while machine.alone || machine.taken > 0 || machine.waiting > 0 {
            FREED.wait(&mut machine);
        }
        machine.alone = true;
        Turn { places: None }
    }

    fn take(places: usize) -> Turn {
        let limit = if is_apache() { PLACES_WITH_APACHE } else { PLACES };
        let mut machine = MACHINE.lock();
        machine.waiting += 1;
        while machine.alone || machine.taken + places > limit {
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
            None => machine.alone = false,
        }
        drop(machine);
        FREED.notify_all();
    }
}
