//! The writing half of a connection: the response to the request in hand, written by the thread that has it.
//!
//! While a request is being taken, its response is kept for the connection's own thread. Afterwards that thread waits
//! in its read for the next request, and the thread that has the response writes it at once, as much as the socket
//! takes without waiting: nearly always all of it. What is left then has a thread of its own. So a response costs no
//! change of threads, and no caller that reads slowly holds up others.

use super::load::Seat;
use super::service::Service;
use crate::gateway::reply::Carrier;
use crate::gateway::response::{Afterwards, Response};
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

/// See the module documentation.
pub(super) struct Outgoing<S: Service> {
    socket: Arc<TcpStream>,
    seat: Seat,
    service: Arc<S>,
    slot: Mutex<Slot<S::Counted>>,
    changed: Condvar,
}

/// What is known of the request in hand before its response is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// The response has no body (HEAD).
    pub(super) head_only: bool,
    /// What becomes of the connection, unless a stop or a newcomer ends it.
    pub(super) afterwards: Afterwards,
}

#[derive(Debug)]
struct Slot<C> {
    stage: Stage,
    terms: Terms,
    counted: Option<C>,
    /// Writes what the socket did not take at once.
    rest: Option<Thread>,
}

#[derive(Debug)]
enum Stage {
    /// The request is being taken.
    Taking,
    /// That was faster than its taking.
    Given(Response),
    /// The connection's thread waits for the response or for the next request.
    Waiting,
    /// A thread writes it.
    Writing,
    /// It is written, or there was no request yet.
    Written(Written),
}

/// How a response was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) at: Instant,
    /// The connection may have another request.
    pub(super) stays: bool,
    /// False: it did not get through.
    pub(super) whole: bool,
}

impl<S: Service> Outgoing<S> {
    pub(super) fn new(socket: Arc<TcpStream>, seat: Seat, service: Arc<S>) -> Self {
        let terms = Terms { head_only: false, afterwards: Afterwards::Stays };
        let written = Written { at: Instant::now(), stays: true, whole: true };
        let slot = Slot { stage: Stage::Written(written), terms, counted: None, rest: None };
        Self { socket, seat, service, slot: Mutex::new(slot), changed: Condvar::new() }
    }

    /// A request is in hand.
    pub(super) fn take(&self, terms: Terms, counted: S::Counted) {
        self.seat.busy();
        let mut slot = self.slot.lock();
        (slot.stage, slot.terms, slot.counted) = (Stage::Taking, terms, Some(counted));
    }

    /// The request was taken. `None`: its response comes later, and is not left to this thread.
    pub(super) fn taken(&self) -> Option<Written> {
        let (response, terms) = {
            let mut slot = self.slot.lock();
            match std::mem::replace(&mut slot.stage, Stage::Waiting) {
                Stage::Given(response) => {
                    slot.stage = Stage::Writing;
                    (response, slot.terms)
                }
                // Nothing else is possible between these two.
                _ => return None,
            }
        };
        let (bytes, stays) = self.encode(&response, terms);
        let whole = (&*self.socket).write_all(&bytes).is_ok();
        Some(self.finish(stays, whole))
    }

    /// How the response was written, if it is.
    pub(super) fn written(&self) -> Option<Written> {
        match self.slot.lock().stage {
            Stage::Written(written) => Some(written),
            _ => None,
        }
    }

    /// Waits until it is; `None`: not by then.
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

    /// The connection ends: no thread of it stays behind.
    pub(super) fn join(&self) {
        let rest = self.slot.lock().rest.take();
        // It was logged if it failed.
        let _ = rest.map(Thread::join);
    }

    /// Whether the connection is to make room for another one.
    pub(super) fn makes_room(&self) -> bool {
        self.seat.is_leaving()
    }

    /// The response, and whether the connection stays.
    fn encode(&self, response: &Response, terms: Terms) -> (Vec<u8>, bool) {
        let ends = self.service.is_stopping() || self.seat.is_leaving();
        let afterwards = if ends { Afterwards::Closes } else { terms.afterwards };
        self.service.responds(response.status());
        (response.encode(terms.head_only, afterwards), afterwards != Afterwards::Closes)
    }

    /// The response is written. The connection counts as idle from now on.
    fn finish(&self, stays: bool, whole: bool) -> Written {
        let written = Written { at: Instant::now(), stays, whole };
        // Before the thread may go on with the next request.
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

    /// Writes what the socket takes without waiting, and returns what it does not; `None`: the caller has gone.
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
                // A reply is given once.
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
    /// As `finish`, where the connection's thread is in its read.
    fn end_of_writing(&self, stays: bool, whole: bool) {
        self.finish(stays, whole);
        if !(stays && whole) {
            // Wakes it. It fails where the caller has gone, and then the read has ended.
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
                // It was not started.
                self.end_of_writing(false, false);
            }
            return;
        }
        // The one before has written its last byte: that came before this request.
        let former = self.slot.lock().rest.replace(thread);
        let _ = former.map(Thread::join);
    }
}

impl<S: Service> fmt::Debug for Outgoing<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Outgoing").field("socket", &self.socket).finish_non_exhaustive()
    }
}
