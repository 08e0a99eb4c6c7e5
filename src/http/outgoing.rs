//! The writing half of a connection: the thread that has the response to the present request writes it.
//!
//! While the connection's thread takes a request, a response is kept for that thread. Later that thread reads the next
//! request, and the thread with the response writes as much as the socket takes without waiting, nearly always all of
//! it. A thread `rest` writes the remaining bytes. So a response needs no change of threads, and a slow reader blocks
//! no other caller.

use super::load::Seat;
use super::service::{Facts, Service};
use crate::http::reply::Carrier;
use crate::http::response::{Afterwards, Response};
use parking_lot::{Condvar, Mutex};
use program::stop::Stop;
use program::threads::{self, Thread};
use rustix::net::{SendFlags, send};
use std::convert::Infallible;
use std::fmt;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Instant;

pub(super) struct Outgoing<S: Service> {
    socket: Arc<TcpStream>,
    seat: Seat,
    service: Arc<S>,
    slot: Mutex<Slot<S::Counted>>,
    changed: Condvar,
}

/// How to answer the present request, known before its response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// The response has no body (HEAD).
    pub(super) head_only: bool,
    /// The connection's state after the response, unless a stop or a new connection ends it.
    pub(super) afterwards: Afterwards,
    pub(super) facts: Facts,
}

#[derive(Debug)]
struct Slot<C> {
    stage: Stage,
    terms: Terms,
    counted: Option<C>,
    /// Writes the bytes that the socket did not take at once.
    rest: Option<Thread>,
}

#[derive(Debug)]
enum Stage {
    /// The connection's thread takes the request.
    Taking,
    /// The response came while the request was being taken.
    Given(Response),
    /// The connection's thread waits for the response or the next request.
    Waiting,
    /// A thread writes the response.
    Writing,
    /// The response is written, or there was no request yet.
    Written(Written),
}

/// How a response was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) at: Instant,
    /// The connection stays open for another request.
    pub(super) stays: bool,
    /// Whether all bytes were written.
    pub(super) whole: bool,
}

impl<S: Service> Outgoing<S> {
    pub(super) fn new(socket: Arc<TcpStream>, seat: Seat, service: Arc<S>) -> Self {
        let terms = Terms { head_only: false, afterwards: Afterwards::Stays, facts: Facts::new(None, None) };
        let written = Written { at: Instant::now(), stays: true, whole: true };
        let slot = Slot { stage: Stage::Written(written), terms, counted: None, rest: None };
        Self { socket, seat, service, slot: Mutex::new(slot), changed: Condvar::new() }
    }

    /// Begins to take a request.
    pub(super) fn take(&self, terms: Terms, counted: S::Counted) {
        self.seat.busy();
        let mut slot = self.slot.lock();
        (slot.stage, slot.terms, slot.counted) = (Stage::Taking, terms, Some(counted));
    }

    /// Ends the taking, and writes the response if it is there. `None`: another thread will write it.
    pub(super) fn taken(&self) -> Option<Written> {
        let (response, terms) = {
            let mut slot = self.slot.lock();
            match std::mem::replace(&mut slot.stage, Stage::Waiting) {
                Stage::Given(response) => {
                    slot.stage = Stage::Writing;
                    (response, slot.terms)
                }
                // No response yet.
                _ => return None,
            }
        };
        let (bytes, stays) = self.encode(&response, terms);
        let whole = (&*self.socket).write_all(&bytes).is_ok();
        Some(self.finish(stays, whole))
    }

    /// How the response was written; `None` while it is not.
    pub(super) fn written(&self) -> Option<Written> {
        match self.slot.lock().stage {
            Stage::Written(written) => Some(written),
            _ => None,
        }
    }

    /// Waits for the response to be written, until this time at most.
    pub(super) fn wait_until(&self, until: Instant) -> Option<Written> {
        let mut slot = self.slot.lock();
        loop {
            if let Stage::Written(written) = slot.stage {
                return Some(written);
            }
            if self.changed.wait_until(&mut slot, until).timed_out() {
                return None;
            }
        }
    }

    /// Joins the thread that writes remaining bytes, at the end of the connection.
    pub(super) fn join(&self) {
        let rest = self.slot.lock().rest.take();
        // A failure was logged.
        let _ = rest.map(Thread::join);
    }

    /// Whether the connection has to make room for another.
    pub(super) fn makes_room(&self) -> bool {
        self.seat.is_leaving()
    }

    /// The bytes of the response, and whether the connection stays open.
    fn encode(&self, response: &Response, terms: Terms) -> (Vec<u8>, bool) {
        let ends = self.service.is_stopping() || self.seat.is_leaving();
        let afterwards = if ends { Afterwards::Closes } else { terms.afterwards };
        self.service.responds(terms.facts, response.status());
        (response.encode(terms.head_only, afterwards), afterwards != Afterwards::Closes)
    }

    /// Notes that the response is written; the connection counts as idle from now on.
    fn finish(&self, stays: bool, whole: bool) -> Written {
        let written = Written { at: Instant::now(), stays, whole };
        // Before the connection's thread continues with the next request.
        self.seat.idle();
        let counted = {
            let mut slot = self.slot.lock();
            slot.stage = Stage::Written(written);
            slot.counted.take()
        };
        self.changed.notify_one();
        drop(counted);
        written
    }

    /// Writes the bytes that the socket takes without waiting, and returns the others; `None`: the caller has left.
    fn send<'r>(&self, mut response: &'r [u8]) -> Option<&'r [u8]> {
        while !response.is_empty() {
            match send(&self.socket, response, SendFlags::DONTWAIT) {
                Ok(length) => response = &response[length..],
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Some(response),
                Err(_) => return None,
            }
        }
        Some(response)
    }
}

impl<S: Service> Carrier for Outgoing<S> {
    fn carry(self: Arc<Self>, response: Response) {
        let terms = {
            let mut slot = self.slot.lock();
            match slot.stage {
                Stage::Taking => {
                    slot.stage = Stage::Given(response);
                    return;
                }
                Stage::Waiting => slot.stage = Stage::Writing,
                // A reply is given only once.
                Stage::Given(_) | Stage::Writing | Stage::Written(_) => return,
            }
            slot.terms
        };
        let (response, stays) = self.encode(&response, terms);
        let unsent = self.send(&response).map(<[u8]>::len);
        match unsent {
            Some(0) | None => self.end_of_writing(stays, unsent.is_some()),
            Some(unsent) => self.write_rest(response[response.len() - unsent..].to_vec(), stays),
        }
    }
}

impl<S: Service> Outgoing<S> {
    /// As `finish`, while the connection's thread reads.
    fn end_of_writing(&self, stays: bool, whole: bool) {
        self.finish(stays, whole);
        if !(stays && whole) {
            // Wakes that thread. This fails if the caller has left, and then the read has ended.
            let _ = self.socket.shutdown(Shutdown::Read);
        }
    }

    fn write_rest(self: Arc<Self>, rest: Vec<u8>, stays: bool) {
        let own = Arc::clone(&self);
        let thread = threads::spawn("rest", Stop::new(), move || -> Result<(), Infallible> {
            let whole = (&*own.socket).write_all(&rest).is_ok();
            own.end_of_writing(stays, whole);
            Ok(())
        });
        if thread.is_finished() {
            if thread.join().is_err() {
                // The thread could not be started.
                self.end_of_writing(false, false);
            }
            return;
        }
        // The earlier thread has written its last byte, since that came before this request.
        let former = self.slot.lock().rest.replace(thread);
        let _ = former.map(Thread::join);
    }
}

impl<S: Service> fmt::Debug for Outgoing<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Outgoing").field("socket", &self.socket).finish_non_exhaustive()
    }
}
