//! The seats of connections: how many are taken, and which connection has been idle longest.
//!
//! A connection holds a [`Seat`] until it ends. With all seats taken, the connection that has been idle longest is
//! closed, so idle connections do not lock out new callers and probes. Called by [`accept`](super::accept) and the
//! connections' threads.

use parking_lot::{Condvar, Mutex, MutexGuard};
use program::stop::Stop;
use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a full gateway checks for a stop.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct Load {
    seats: Mutex<Seats>,
    one_less: Condvar,
    most: usize,
    born: Instant,
}

#[derive(Debug, Default)]
struct Seats {
    taken: HashMap<u64, Taken>,
    next: u64,
}

#[derive(Debug)]
struct Taken {
    socket: Arc<TcpStream>,
    rest: Arc<Rest>,
}

/// Since when a connection waits for a complete request, in nanoseconds since the start of the load, or [`BUSY`] or
/// [`LEAVING`]. An atomic outside the lock, which two threads would take for each request.
#[derive(Debug)]
struct Rest(AtomicU64);

/// The connection has a request.
const BUSY: u64 = u64::MAX;
/// The connection has to make room.
const LEAVING: u64 = u64::MAX - 1;

impl Load {
    /// Allows `most` connections at once. If none of them is idle, further ones wait in the kernel's queue.
    pub(crate) fn new(most: usize) -> Self {
        Self { seats: Mutex::default(), one_less: Condvar::new(), most, born: Instant::now() }
    }

    fn nanoseconds(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(LEAVING - 1)
    }

    /// The number of open connections.
    pub(crate) fn open(&self) -> usize {
        self.seats.lock().taken.len()
    }

    /// Whether all seats are taken.
    pub(crate) fn is_full(&self) -> bool {
        self.open() >= self.most
    }

    /// Takes a seat; `None`: a stop came first. With all seats taken, closes the connection that has been idle longest.
    pub(crate) fn seat(self: &Arc<Self>, socket: &Arc<TcpStream>, stop: &Stop) -> Option<Seat> {
        let mut seats = self.seats.lock();
        while seats.taken.len() >= self.most {
            if stop.is_triggered() {
                return None;
            }
            if let Some(longest) = seats.leave_longest() {
                MutexGuard::unlocked(&mut seats, || end_reading(&longest));
            }
            if seats.taken.len() >= self.most {
                self.one_less.wait_for(&mut seats, LOOK);
            }
        }
        let number = seats.next;
        seats.next += 1;
        let rest = Arc::new(Rest(AtomicU64::new(self.nanoseconds())));
        seats.taken.insert(number, Taken { socket: Arc::clone(socket), rest: Arc::clone(&rest) });
        Some(Seat { load: Arc::clone(self), number, rest })
    }
}

impl Seats {
    /// Marks the connection that has been idle longest as leaving, and returns it.
    fn leave_longest(&self) -> Option<Arc<TcpStream>> {
        let since = |it: &&Taken| it.rest.0.load(Ordering::Relaxed);
        let longest = self.taken.values().filter(|it| since(it) < LEAVING).min_by_key(since)?;
        // Unless it has received a request meanwhile; then the next round finds another one.
        let is_idle = longest
            .rest
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |since| (since < LEAVING).then_some(LEAVING));
        is_idle.is_ok().then(|| Arc::clone(&longest.socket))
    }
}

/// Ends the reading: the connection's thread sees the end after the bytes that have arrived.
fn end_reading(socket: &TcpStream) {
    // This fails if the caller has left.
    let _ = socket.shutdown(Shutdown::Read);
}

/// One connection's seat; left when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    load: Arc<Load>,
    number: u64,
    rest: Arc<Rest>,
}

impl Seat {
    /// Notes that a request is complete.
    pub(crate) fn busy(&self) {
        self.change(BUSY);
    }

    /// Notes that the connection waits for the next request.
    pub(crate) fn idle(&self) {
        self.change(self.load.nanoseconds());
    }

    fn change(&self, rest: u64) {
        // A leaving connection stays marked. The result is the previous value.
        let _ = self.rest.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| (now != LEAVING).then_some(rest));
    }

    /// Whether the connection has to make room for another.
    pub(crate) fn is_leaving(&self) -> bool {
        self.rest.0.load(Ordering::Relaxed) == LEAVING
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.load.seats.lock().taken.remove(&self.number);
        self.load.one_less.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{Ipv4Addr, TcpListener};

    /// The caller's end and the gateway's end.
    fn pair() -> (TcpStream, Arc<TcpStream>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let far = TcpStream::connect(listener.local_addr().expect("an address")).expect("it listens");
        let (near, _) = listener.accept().expect("a connection");
        near.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket");
        (far, Arc::new(near))
    }

    fn is_ended(mut socket: &TcpStream) -> bool {
        matches!(socket.read(&mut [0]), Ok(0))
    }

    fn seat(load: &Arc<Load>, socket: &Arc<TcpStream>) -> Seat {
        load.seat(socket, &Stop::new()).expect("no stop")
    }

    #[test]
    fn longest_idle_connection_makes_room_for_a_new_one() {
        let load = Arc::new(Load::new(3));
        let (busy, first, second, new) = (pair(), pair(), pair(), pair());
        let busy_seat = seat(&load, &busy.1);
        busy_seat.busy();
        let first_seat = seat(&load, &first.1);
        let second_seat = seat(&load, &second.1);
        // The first connection has had a request meanwhile.
        first_seat.busy();
        first_seat.idle();
        assert!(load.is_full() && [&busy, &first, &second].iter().all(|it| !is_ended(&it.1)));
        let longest = load.seats.lock().leave_longest().expect("an idle connection");
        assert!(Arc::ptr_eq(&longest, &second.1) && second_seat.is_leaving() && !first_seat.is_leaving());
        second_seat.idle();
        assert!(second_seat.is_leaving(), "a request in between does not keep it");
        // The second connection leaves slowly, so the connection that is idle next longest makes room.
        std::thread::scope(|scope| {
            let newcomer = scope.spawn(|| seat(&load, &new.1));
            // Each read takes up to 50 ms.
            assert!((0..200).any(|_| is_ended(&first.1)), "the longest idle connection is closed");
            drop(first_seat);
            drop(newcomer.join().expect("no panic"));
        });
        assert!(!is_ended(&busy.1), "a busy connection is closed");
        drop((busy_seat, second_seat));
        assert_eq!(load.open(), 0);
    }

    #[test]
    fn without_an_idle_connection_a_caller_waits_for_a_seat_until_a_stop() {
        let load = Arc::new(Load::new(1));
        let (old, new) = (pair(), pair());
        let taken = seat(&load, &old.1);
        taken.busy();
        let stop = Stop::new();
        std::thread::scope(|scope| {
            let newcomer = scope.spawn(|| load.seat(&new.1, &stop));
            stop.trigger();
            assert!(newcomer.join().expect("no panic").is_none());
            let newcomer = scope.spawn(|| seat(&load, &new.1));
            drop(taken);
            drop(newcomer.join().expect("no panic"));
        });
        assert!(!is_ended(&old.1));
    }
}
