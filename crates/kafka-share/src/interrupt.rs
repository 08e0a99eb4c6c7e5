//! Wakes every blocked call of a client from another thread.
//!
//! An [`Interrupter`] knows all sockets of one client, and its back-offs sleep on it. An interrupt shuts the sockets
//! down, which wakes a blocked read or connect within 0.1 ms. It is final: nothing opens afterwards. It is no graceful
//! stop, since closing a share session's connection releases the running tasks. Called by connections (register), by
//! every back-off (sleep), and as the programs' last resort (interrupt).

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::Receiver;
use parking_lot::Mutex;

use super::error::{KafkaError, Result};
use program::stop::Stop;

/// Handle to the sockets and sleepers of one client; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Interrupter {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Triggered directly after `State::interrupted` is set; wakes waits that have no socket.
    stop: Stop,
}

#[derive(Debug, Default)]
struct State {
    interrupted: bool,
    next_key: u64,
    sockets: HashMap<u64, Weak<TcpStream>>,
    children: Vec<Weak<Shared>>,
}

/// Keeps one socket in the registry; dropping it takes the socket out.
#[derive(Debug)]
pub struct Registration {
    shared: Arc<Shared>,
    key: u64,
}

impl Interrupter {
    /// Makes a registry without sockets.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes an interrupter for a part of the client: it is interrupted with this one, or alone.
    #[must_use]
    pub fn child(&self) -> Self {
        let child = Self::default();
        let mut state = self.shared.state.lock();
        if state.interrupted {
            child.interrupt();
        }
        state.children.retain(|other| other.strong_count() > 0);
        state.children.push(Arc::downgrade(&child.shared));
        drop(state);
        child
    }

    /// Shuts all sockets down, wakes all sleepers, and refuses every later socket and sleep.
    pub fn interrupt(&self) {
        self.shared.interrupt();
    }

    /// Whether [`interrupt`](Self::interrupt) was called.
    pub fn is_interrupted(&self) -> bool {
        self.shared.state.lock().interrupted
    }

    /// Returns `Err(Interrupted)` once interrupted.
    pub fn check(&self) -> Result<()> {
        if self.is_interrupted() { Err(KafkaError::Interrupted) } else { Ok(()) }
    }

    /// Sleeps for `duration`, or until interrupted.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn sleep(&self, duration: Duration) -> Result<()> {
        self.shared.stop.sleep(duration).map_err(|_| KafkaError::Interrupted)
    }

    /// Becomes ready, by disconnecting, once interrupted: for a `select!`.
    pub(super) fn triggered(&self) -> &Receiver<Infallible> {
        self.shared.stop.triggered()
    }

    /// Keeps a socket in the registry until the registration is dropped.
    pub fn register(&self, socket: &Arc<TcpStream>) -> Result<Registration> {
        let mut state = self.shared.state.lock();
        if state.interrupted {
            return Err(KafkaError::Interrupted);
        }
        let key = state.next_key;
        state.next_key += 1;
        state.sockets.insert(key, Arc::downgrade(socket));
        Ok(Registration { shared: Arc::clone(&self.shared), key })
    }
}

impl Shared {
    fn interrupt(&self) {
        let (sockets, children) = {
            let mut state = self.state.lock();
            state.interrupted = true;
            (std::mem::take(&mut state.sockets), std::mem::take(&mut state.children))
        };
        self.stop.trigger();
        for socket in sockets.into_values().filter_map(|socket| socket.upgrade()) {
            // Fails only if the peer closed first; the socket is dead either way.
            let _ = socket.shutdown(Shutdown::Both);
        }
        for child in children.into_iter().filter_map(|child| child.upgrade()) {
            child.interrupt();
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.state.lock().sockets.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    fn pair() -> (Arc<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect to ourselves");
        (Arc::new(near), listener.accept().expect("our own connection").0)
    }

    /// Runs `body` on a thread and returns the time it takes to end after `then`.
    fn woken_by(body: impl FnOnce() + Send, then: impl FnOnce()) -> Duration {
        let (started, ready) = crossbeam_channel::bounded::<()>(1);
        std::thread::scope(|scope| {
            let blocked = scope.spawn(move || {
                started.send(()).expect("the test waits for this");
                body();
            });
            ready.recv().expect("the thread has started");
            let since = Instant::now();
            then();
            blocked.join().expect("the blocked call returns");
            since.elapsed()
        })
    }

    #[test]
    fn interrupt_wakes_blocked_read() {
        let interrupter = Interrupter::new();
        let (near, _far) = pair();
        let _registration = interrupter.register(&near).expect("not interrupted yet");
        let read = || assert_eq!((&*near).read(&mut [0; 8]).expect("shutdown reads as the end"), 0);
        assert!(woken_by(read, || interrupter.interrupt()) < Duration::from_secs(5));
    }

    #[test]
    fn interrupt_wakes_sleeper() {
        let interrupter = Interrupter::new();
        let sleep = || assert!(interrupter.sleep(Duration::from_secs(60)).is_err());
        assert!(woken_by(sleep, || interrupter.interrupt()) < Duration::from_secs(5));
    }

    #[test]
    fn interrupter_refuses_sockets_and_sleeps_after_interrupt() {
        let interrupter = Interrupter::new();
        let (near, _far) = pair();
        assert!(interrupter.sleep(Duration::from_millis(1)).is_ok());
        interrupter.interrupt();
        assert!(matches!(interrupter.register(&near), Err(KafkaError::Interrupted)));
        assert!(matches!(interrupter.sleep(Duration::ZERO), Err(KafkaError::Interrupted)));
        assert!(interrupter.is_interrupted());
    }

    #[test]
    fn child_is_interrupted_with_its_parent_but_not_the_reverse() {
        let parent = Interrupter::new();
        let (alone, together) = (parent.child(), parent.child());
        alone.interrupt();
        assert!(alone.is_interrupted() && !parent.is_interrupted() && !together.is_interrupted());
        parent.interrupt();
        assert!(together.is_interrupted() && parent.child().is_interrupted());
    }

    #[test]
    fn dropped_registration_leaves_the_registry() {
        let interrupter = Interrupter::new();
        let (near, _far) = pair();
        drop(interrupter.register(&near).expect("not interrupted"));
        assert!(interrupter.shared.state.lock().sockets.is_empty());
    }
}
