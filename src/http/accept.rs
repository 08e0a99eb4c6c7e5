//! Accepts connections; each has a thread.
//!
//! A thread that has served its connection waits a while for another. Every failure to accept is retried; the watch of
//! the gateway's own port decides when the listener is deaf. Called by the thread `accept`.

use super::connection::Connection;
use super::load::Load;
use super::service::Service;
use crate::outage::{Outage, Refusals};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use program::backoff::Backoff;
use program::stop::Stop;
use program::threads::{self, Thread};
use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

/// Connections in addition to those of waiting callers: idle connections, probes, people.
const FURTHER_CONNECTIONS: usize = 1024;
/// File descriptors for everything except callers.
const OWN_FILES: u64 = 128;
/// A thread without a connection ends after this time.
const THREAD_IDLE: Duration = Duration::from_secs(10);
/// Below this number of threads, ended threads are not collected.
const FEW_THREADS: usize = 64;
/// First and longest pause while the system has no file descriptor, thread or memory left.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// The number of connections that may be open, within the limit of open files. First raises the process's soft limit of
/// open files to the hard limit: the soft limit is low only for programs that use select(2).
pub(crate) fn most_connections(max_waiting: usize) -> usize {
    let wanted = max_waiting + FURTHER_CONNECTIONS;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return wanted };
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let places = if raised { hard } else { soft }.saturating_sub(OWN_FILES);
    let most = wanted.min(usize::try_from(places).unwrap_or(usize::MAX)).max(1);
    if most < wanted {
        log::warn!("the limit of open files allows {most} connections; MAX_WAITING={max_waiting} needs {wanted}");
    }
    most
}

/// Accepts connections until stopped.
pub(crate) fn accept<S: Service>(listener: &TcpListener, service: &Arc<S>, load: &Arc<Load>, stop: &Stop) {
    let mut threads = Threads::new();
    let mut outage = Outage::new("the system", &Refusals::default());
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    while !stop.is_triggered() {
        let trouble = match listener.accept() {
            Ok((socket, _)) => {
                let socket = Arc::new(socket);
                let Some(seat) = load.seat(&socket, stop) else { return };
                threads.serve(Connection::new(socket, seat, Arc::clone(service))).err()
            }
            // The caller left before its connection was accepted.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => None,
            Err(error) => Some(format!("cannot accept a connection: {error}")),
        };
        match trouble {
            None => {
                outage.over();
                backoff.reset();
            }
            Some(error) => {
                outage.report(&error);
                // A stop during the sleep ends the loop.
                let _ = stop.sleep(backoff.pause());
            }
        }
    }
}

/// The threads of the connections, including those that wait for another.
struct Threads<S: Service> {
    /// Capacity zero: only a thread that waits now takes a connection, so no connection waits for a busy thread.
    offers: Sender<Connection<S>>,
    takers: Receiver<Connection<S>>,
    running: Vec<Thread>,
    /// The length of `running` at which ended threads are collected.
    look_at: usize,
    started: usize,
}

impl<S: Service> Threads<S> {
    fn new() -> Self {
        let (offers, takers) = bounded(0);
        Self { offers, takers, running: Vec::new(), look_at: FEW_THREADS, started: 0 }
    }

    fn serve(&mut self, connection: Connection<S>) -> Result<(), String> {
        let connection = match self.offers.try_send(connection) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(connection) | TrySendError::Disconnected(connection)) => connection,
        };
        self.join_ended();
        self.started += 1;
        let takers = self.takers.clone();
        // A separate stop: the death of a connection's thread does not end the gateway.
        let name = format!("conn-{}", self.started % 1_000_000);
        let thread = threads::spawn(&name, Stop::new(), move || -> Result<(), Infallible> {
            work(connection, &takers);
            Ok(())
        });
        if thread.is_finished() {
            // The thread could not be started, or its connection was short.
            return thread.join().map_err(|error| error.to_string());
        }
        self.running.push(thread);
        Ok(())
    }

    /// Joins ended threads, if many are running.
    fn join_ended(&mut self) {
        if self.running.len() < self.look_at {
            return;
        }
        let (ended, running): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.running).into_iter().partition(Thread::is_finished);
        self.running = running;
        self.look_at = (2 * self.running.len()).max(FEW_THREADS);
        if let Err(error) = threads::join_all(ended) {
            log::error!("{error}");
        }
    }
}

/// The body of a connection's thread: serves this connection, and further ones that come soon enough.
fn work<S: Service>(first: Connection<S>, takers: &Receiver<Connection<S>>) {
    let mut next = Some(first);
    while let Some(connection) = next {
        connection.serve();
        next = takers.recv_timeout(THREAD_IDLE).ok();
    }
}
