//! Connections: one thread each, one request at a time.
//!
//! The library (`tiny_http`) reads requests and frames bodies; its own server is not used, only its accepting step and its
//! connection. Its server strands connections that come in a burst, goes deaf when file descriptors run out, and reads on behind
//! a body that nobody has read. Here a connection's thread reads a request, has it answered, writes the answer, and only then
//! reads on: pipelined requests are answered in order, a caller that sends or reads slowly holds nobody but itself, and a connection
//! that cannot be read on safely is closed.

use super::answer::Answer;
use super::exchange::Exchange;
use super::request::{self, Afterwards};
use super::routes::Service;
use crate::backoff::Backoff;
use crate::stop::Stop;
use crate::threads::{self, Thread};
use crate::worker::outage::Outage;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use parking_lot::{Condvar, Mutex};
use std::convert::Infallible;
use std::io::{self, Write};
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tiny_http::{Listener, Method, Request, Server, SslContextWrap};

/// Connections beside those of callers that wait: idle ones, probes, people.
const FURTHER_CONNECTIONS: usize = 1024;
/// File descriptors that everything but callers needs.
const OWN_FILES: u64 = 128;
/// The library duplicates each socket.
const FILES_PER_CONNECTION: u64 = 2;
/// A thread without a connection ends after this.
const THREAD_IDLE: Duration = Duration::from_secs(10);
/// With fewer threads those that have ended are not looked for.
const FEW_THREADS: usize = 64;
/// Until the next try when the system has no file descriptor, thread or memory left: at first, and at the most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// How often is looked whether a full gateway is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// How many connections there are, and how many there may be.
#[derive(Debug)]
pub(super) struct Load {
    open: Mutex<usize>,
    one_less: Condvar,
    most: usize,
}

impl Load {
    /// `most` connections at once; more wait in the kernel's queue.
    pub(super) fn new(most: usize) -> Self {
        Self { open: Mutex::new(0), one_less: Condvar::new(), most }
    }

    /// Connections open now.
    pub(super) fn open(&self) -> usize {
        *self.open.lock()
    }

    /// Whether all places are taken.
    pub(super) fn is_full(&self) -> bool {
        self.open() >= self.most
    }

    /// Waits for a place, at most for `patience`; false: there is none.
    fn wait(&self, patience: Duration) -> bool {
        let mut open = self.open.lock();
        if *open >= self.most {
            self.one_less.wait_for(&mut open, patience);
        }
        *open < self.most
    }

    fn enter(self: &Arc<Self>) -> Place {
        *self.open.lock() += 1;
        Place(Arc::clone(self))
    }
}

/// One connection's place; left when dropped.
struct Place(Arc<Load>);

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.open.lock() -= 1;
        self.0.one_less.notify_one();
    }
}

/// How many connections may be open: as many as callers may wait and some more, as far as the files suffice. Raises the process's
/// soft limit of open files to its hard one first, since the soft one is that low for programs that use select(2) only.
pub(super) fn most_connections(max_waiting: usize) -> usize {
    let wanted = max_waiting + FURTHER_CONNECTIONS;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return wanted };
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let places = if raised { hard } else { soft }.saturating_sub(OWN_FILES) / FILES_PER_CONNECTION;
    let most = wanted.min(usize::try_from(places).unwrap_or(usize::MAX)).max(1);
    if most < wanted {
        log::warn!(
            "the limit of open files allows {most} connections; {wanted} would be right for MAX_WAITING={max_waiting}"
        );
    }
    most
}

/// A connection as its thread gets it: requests until the caller has closed or sent something that is no HTTP, which the library
/// has answered with 400.
type Requests = Box<dyn Iterator<Item = Request> + Send>;

/// A connection with its place.
struct Job {
    requests: Requests,
    _place: Place,
}

/// Takes connections until stopped. Whatever an attempt fails with is tried again: the watch of the own port decides when it is hopeless.
///
/// # Errors
/// The library refuses to be set up.
pub(super) fn accept(
    listener: TcpListener,
    service: Arc<Service>,
    load: &Arc<Load>,
    stop: &Stop,
) -> Result<(), String> {
    let listener = Listener::from(listener);
    let plain = SslContextWrap::build_ssl_capabilities(None).map_err(|error| error.to_string())?;
    let mut threads = Threads::new(service);
    let mut outage = Outage::new("the system");
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    while !stop.is_triggered() {
        if !load.wait(LOOK) {
            continue;
        }
        // The library panics when it cannot duplicate an accepted socket; nothing of the attempt is used afterwards.
        let accepted = catch_unwind(AssertUnwindSafe(|| Server::accept_connection(&listener, &plain)));
        let trouble = match accepted {
            Ok(Ok(Some(client))) => {
                let requests = Box::new(client.map_while(Result::ok));
                threads.serve(Job { requests, _place: load.enter() }).err()
            }
            // The caller was gone before it was taken.
            Ok(Ok(None)) => None,
            Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                None
            }
            Ok(Err(error)) => Some(format!("no connection can be taken: {error}")),
            Err(_) => Some("no connection can be taken: no file descriptor is left".to_owned()),
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
    Ok(())
}

/// The connections' threads: as many as there are connections, and those that had one a moment ago.
struct Threads {
    service: Arc<Service>,
    /// Of capacity zero: a job is taken by a thread that waits at this instant, or by none. So no connection is left behind a
    /// thread that was about to become busy.
    offers: Sender<Job>,
    takers: Receiver<Job>,
    running: Vec<Thread>,
    /// How many may be `running` before those that have ended are looked for.
    look_at: usize,
    started: usize,
}

impl Threads {
    fn new(service: Arc<Service>) -> Self {
        let (offers, takers) = bounded(0);
        Self { service, offers, takers, running: Vec::new(), look_at: FEW_THREADS, started: 0 }
    }

    fn serve(&mut self, job: Job) -> Result<(), String> {
        let job = match self.offers.try_send(job) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => job,
        };
        self.join_ended();
        self.started += 1;
        let (service, takers) = (Arc::clone(&self.service), self.takers.clone());
        // A stop of its own: one connection's end is not the gateway's.
        let name = format!("conn-{}", self.started % 1_000_000);
        let thread = threads::spawn(&name, Stop::new(), move || -> Result<(), Infallible> {
            work(&service, job, &takers);
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
fn work(service: &Service, first: Job, takers: &Receiver<Job>) {
    let mut next = Some(first);
    while let Some(job) = next {
        // What the library does not expect of a caller may make it panic; that is this connection's end and nobody else's.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| serve(service, job))) {
            service.desk.metrics.connection_panicked();
            log::error!("a connection was given up: {}", threads::panic_message(panic.as_ref()).escape_debug());
        }
        next = takers.recv_timeout(THREAD_IDLE).ok();
    }
}

/// Serves one connection to its end.
fn serve(service: &Service, mut job: Job) {
    for request in job.requests.by_ref() {
        if !exchange(service, request) {
            return;
        }
    }
}

/// Has one request answered; false when nothing more may be read from its connection.
fn exchange(service: &Service, mut request: Request) -> bool {
    let body = request::body(&request);
    let wants_body = service.wants_body(&request);
    let ambiguous = matches!(body, request::Body::Ambiguous(_));
    let read = (wants_body || ambiguous || body.is_read()).then(|| request::read(&mut request, body));
    let to_its_end = read.as_ref().is_some_and(|read| read.to_its_end);
    // Counted from here: a stop waits for requests that are whole, not for callers that have yet to send theirs.
    let _unanswered = service.desk.count_unanswered();
    let address = request.remote_addr().map_or(std::net::Ipv4Addr::UNSPECIFIED.into(), std::net::SocketAddr::ip);
    let (exchange, awaited) = Exchange::new(address);
    match read.map(|read| read.content) {
        Some(Ok(content)) => service.take(exchange, &request, &content),
        None => service.take(exchange, &request, &[]),
        Some(Err(refusal)) => exchange.answer(Answer::problem(refusal.status, &refusal.detail, None)),
    }
    let answer = awaited.wait();
    service.desk.metrics.answered(answer.status());
    let afterwards = match request::afterwards(&request) {
        _ if !to_its_end || service.desk.is_draining() => Afterwards::Closes,
        afterwards => afterwards,
    };
    let written = if to_its_end { write(request, &answer, afterwards) } else { write_over_body(request, answer) };
    // A caller that has gone, or does not read: its task is in Kafka, its result can be asked for.
    written.is_ok() && afterwards != Afterwards::Closes
}

/// Writes an answer in one piece.
fn write(request: Request, answer: &Answer, afterwards: Afterwards) -> io::Result<()> {
    let response = answer.encode(*request.method() == Method::Head, afterwards);
    let mut writer = request.into_writer();
    writer.write_all(&response)?;
    writer.flush()
}

/// Writes an answer to a request whose body was not read. Letting go of such a request reads its body away, so the library has to write
/// the answer before: that is the one way in which it does.
fn write_over_body(request: Request, answer: Answer) -> io::Result<()> {
    request.respond(answer.into_library_response())
}

/// Counts requests that are whole and not answered: those from before a line was drawn, and those from after it. Callers who ask again and again hold up
/// nobody who waits for the first to be answered.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    line_drawn: AtomicBool,
    before: AtomicUsize,
    after: AtomicUsize,
}

/// One of them; no longer when dropped.
pub(super) struct Counted<'a>(&'a AtomicUsize);

impl Unanswered {
    pub(super) fn enter(&self) -> Counted<'_> {
        if !self.line_drawn.load(Ordering::SeqCst) {
            self.before.fetch_add(1, Ordering::SeqCst);
            let counted = Counted(&self.before);
            // Who finds no line now is seen by whoever draws it and counts then.
            if !self.line_drawn.load(Ordering::SeqCst) {
                return counted;
            }
        }
        self.after.fetch_add(1, Ordering::SeqCst);
        Counted(&self.after)
    }

    /// From now on requests count as later ones.
    pub(super) fn draw_line(&self) {
        self.line_drawn.store(true, Ordering::SeqCst);
    }

    /// Those from before the line, or all while there is none.
    pub(super) fn before(&self) -> usize {
        self.before.load(Ordering::SeqCst)
    }

    /// All of them.
    pub(super) fn count(&self) -> usize {
        self.before() + self.after.load(Ordering::SeqCst)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
