//! Taking connections, and their threads: one for each.
//!
//! A thread that has served its connection waits a moment for the next one. Whatever an attempt to take a connection
//! fails with is tried again: the watch of the own port decides when it is hopeless. Called by the thread `accept`.

use super::connection::Connection;
use super::load::Load;
use super::service::Service;
use crate::outage::Outage;
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

/// Connections beside those of callers that wait: idle ones, probes, people.
const FURTHER_CONNECTIONS: usize = 1024;
/// File descriptors that everything but callers needs.
const OWN_FILES: u64 = 128;
/// A thread without a connection ends after this.
const THREAD_IDLE: Duration = Duration::from_secs(10);
/// With fewer threads those that have ended are not looked for.
const FEW_THREADS: usize = 64;
/// Until the next try when the system has no file descriptor, thread or memory left: the first and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// How many connections may be open: as many as callers may wait and some more, as far as the files suffice. Raises the
/// process's soft limit of open files to its hard one first, since the soft one is that low for programs that use
/// select(2) only.
pub(in crate::gateway) fn most_connections(max_waiting: usize) -> usize {
    let wanted = max_waiting + FURTHER_CONNECTIONS;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return wanted };
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let places = if raised { hard } else { soft }.saturating_sub(OWN_FILES);
    let most = wanted.min(usize::try_from(places).unwrap_or(usize::MAX)).max(1);
    if most < wanted {
        log::warn!(
            "the limit of open files allows {most} connections; {wanted} would be right for MAX_WAITING={max_waiting}"
        );
    }
    most
}

/// Takes connections until stopped.
pub(in crate::gateway) fn accept<S: Service>(listener: &TcpListener, service: &Arc<S>, load: &Arc<Load>, stop: &Stop) {
    let mut threads = Threads::new();
    let mut outage = Outage::new("the system");
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    while !stop.is_triggered() {
        let trouble = match listener.accept() {
            Ok((socket, _)) => {
                let socket = Arc::new(socket);
                let Some(seat) = load.seat(&socket, stop) else { return };
                threads.serve(Connection::new(socket, seat, Arc::clone(service))).err()
            }
            // The caller was gone before it was taken.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => None,
            Err(error) => Some(format!("no connection can be taken: {error}")),
        };
        match trouble {
            None => {
                outage.over();
                backoff.reset();
            }
            Some(error) => {
                outage.report(&error);
                // A stop ends the loop.
                let _ = stop.sleep(backoff.pause());
            }
        }
    }
}

/// The connections' threads: as many as there are connections, and those that had one a moment ago.
struct Threads<S: Service> {
    /// Of capacity zero: a connection is taken by a thread that waits at this instant, or by none. So none is left
    /// behind a thread that was about to become busy.
    offers: Sender<Connection<S>>,
    takers: Receiver<Connection<S>>,
    running: Vec<Thread>,
    /// How many may be `running` before those that have ended are looked for.
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
        // A stop of its own: one connection's end is not the gateway's.
        let name = format!("conn-{}", self.started % 1_000_000);
        let thread = threads::spawn(&name, Stop::new(), move || -> Result<(), Infallible> {
            work(connection, &takers);
            Ok(())
        });
        if thread.is_finished() {
            // It was not started, or its connection was a short one.
            return thread.join().map_err(|error| error.to_string());
        }
        self.running.push(thread);
        Ok(())
    }

    /// Joins threads that have ended, when there are many.
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

/// A connection's thread: serves this connection, and the next ones that come soon enough.
fn work<S: Service>(first: Connection<S>, takers: &Receiver<Connection<S>>) {
    let mut next = Some(first);
    while let Some(connection) = next {
        connection.serve();
        next = takers.recv_timeout(THREAD_IDLE).ok();
    }
}
