//! One connection: reads its requests, has them answered, and writes the responses, one request after another.
//!
//! A head must be complete within 10 s of its first byte, a body within 10 s of its head. Between requests a connection
//! may be idle for 60 s. Pipelined requests are answered in order. A caller can occupy only its own thread, and only
//! for a bounded time. Called by the connections' threads of [`accept`](super::accept).

use super::Refusal;
use super::chunked::Chunked;
use super::head::{self, Body, Head};
use super::load::Seat;
use super::outgoing::{Outgoing, Terms, Written};
use super::service::{Facts, Service};
use crate::http::reply::{Carrier, Parted, Parting, Reply, Ticket};
use crate::http::response::{Afterwards, Response};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tiny_http::Method;

/// The time limits of a caller.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// From the last response to the first byte of the next request.
    idle: Duration,
    /// From that byte to the end of the head.
    head: Duration,
    /// From the head to the end of the body.
    body: Duration,
    /// From the last response until the caller has closed the connection.
    linger: Duration,
}

const LIMITS: Limits = Limits {
    idle: Duration::from_secs(60),
    head: Duration::from_secs(10),
    body: Duration::from_secs(10),
    linger: Duration::from_secs(1),
};
/// The largest body, in bytes.
pub(crate) const LARGEST_BODY: usize = 64 * 1024;
/// At most this many bytes after the last response are dropped, so its caller can read it (RFC 9112 section 9.6).
const READ_AWAY: usize = 1024 * 1024;
/// How long to wait for a reply that another thread is giving.
const GIVING: Duration = Duration::from_secs(5);
/// The granularity of the socket's read timeout.
const TENTH: Duration = Duration::from_millis(100);
/// At most this many bytes per read.
const PIECE: usize = 8 * 1024;

#[derive(Debug)]
pub(super) struct Connection<S: Service> {
    socket: Arc<TcpStream>,
    service: Arc<S>,
    outgoing: Arc<Outgoing<S>>,
    /// Received bytes that are not parsed yet.
    input: Vec<u8>,
    /// The buffer of a read; a buffer on the stack would be cleared for each read.
    piece: Box<[u8; PIECE]>,
    /// The socket's present read timeout; setting it for each read would double the system calls.
    timeout: Duration,
    limits: Limits,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The caller sends nothing more.
    Read,
    /// The caller may still send, and has to read the response first.
    Unread,
}

/// The outcome of a read.
enum Came {
    Bytes,
    /// The caller has closed its side of the connection, or has left.
    End,
    Late,
}

impl<S: Service> Connection<S> {
    pub(super) fn new(socket: Arc<TcpStream>, seat: Seat, service: Arc<S>) -> Self {
        let outgoing = Arc::new(Outgoing::new(Arc::clone(&socket), seat, Arc::clone(&service)));
        Self {
            socket,
            service,
            outgoing,
            input: Vec::new(),
            piece: Box::new([0; PIECE]),
            timeout: Duration::ZERO,
            limits: LIMITS,
        }
    }

    /// Serves the connection to its end.
    pub(super) fn serve(mut self) {
        let ending = self.requests();
        if ending == Ending::Unread {
            self.linger();
        }
        self.outgoing.join();
    }

    fn requests(&mut self) -> Ending {
        let mut idle_since = Instant::now();
        loop {
            let head = match self.read_head(idle_since) {
                Ok(Some(head)) => head,
                Ok(None) => return Ending::Read,
                Err(refusal) => {
                    // The beginning of the next request is unknown.
                    let facts = Facts::new(None, None);
                    let terms = Terms { head_only: false, afterwards: Afterwards::Closes, facts };
                    self.outgoing.take(terms, self.service.begin());
                    self.reply().give(problem(&refusal));
                    self.outgoing.taken();
                    return Ending::Unread;
                }
            };
            let body = self.read_body(&head, self.service.wants_body(&head));
            let whole = matches!(body, Ok(Some(_)));
            let afterwards = match (whole && head.persists, head.is_old) {
                (false, _) => Afterwards::Closes,
                (true, false) => Afterwards::Stays,
                (true, true) => Afterwards::StaysAsAsked,
            };
            // Counted from here: a stop waits for complete requests, not for callers that still send.
            let facts = Facts::new(Some(&head), self.service.route(&head));
            let terms = Terms { head_only: head.method == Method::Head, afterwards, facts };
            self.outgoing.take(terms, self.service.begin());
            let ticket = match body {
                Ok(body) => self.service.take(&head, &body.unwrap_or_default(), self.reply()),
                Err(refusal) => {
                    self.reply().give(problem(&refusal));
                    None
                }
            };
            // If the caller has left or does not read, its task is still in Kafka, and the result can be fetched.
            let Some(written) = self.outgoing.taken().or_else(|| self.wait(ticket)).filter(|it| it.whole) else {
                return Ending::Read;
            };
            if !written.stays {
                return if whole && self.input.is_empty() { Ending::Read } else { Ending::Unread };
            }
            idle_since = written.at;
        }
    }

    fn reply(&self) -> Reply {
        Reply::new(Arc::clone(&self.outgoing) as Arc<dyn Carrier>)
    }

    /// Waits until the response is written, usually while reading the next request; `None`: the caller has left.
    fn wait(&mut self, ticket: Option<Ticket>) -> Option<Written> {
        // Without a ticket another thread is giving the reply.
        let mut until = ticket.map_or_else(|| Instant::now() + GIVING, |ticket| ticket.until);
        let mut waiting = ticket;
        loop {
            // Received bytes belong to the next request. With any, the connection does not notice that the caller
            // leaves.
            let reads = waiting.is_some() && self.input.is_empty() && !self.outgoing.makes_room();
            let came = match reads {
                true => self.read(until),
                false => self.outgoing.wait_until(until).map_or(Came::Late, |_| Came::Bytes),
            };
            let written = self.outgoing.written();
            let parting = match came {
                _ if written.is_some() => return written,
                Came::Bytes => continue,
                // The gateway ended the reading, not the caller.
                Came::End if self.outgoing.makes_room() => continue,
                Came::End => Parting::Left,
                Came::Late => Parting::Late,
            };
            let ticket = waiting.take()?;
            match self.service.part(ticket, parting) {
                Parted::Given if parting == Parting::Left => return None,
                Parted::Given | Parted::Elsewhere => until = Instant::now() + GIVING,
                Parted::Waits(ticket) => (waiting, until) = (Some(ticket), ticket.until),
            }
        }
    }

    /// Reads the next head; `None`: the connection ends without another response.
    fn read_head(&mut self, idle_since: Instant) -> Result<Option<Head>, Refusal> {
        let mut begun = !self.input.is_empty();
        let mut until = if begun { Instant::now() + self.limits.head } else { idle_since + self.limits.idle };
        loop {
            // Some callers send an empty line after a body (RFC 9112 section 2.2).
            while self.input.starts_with(b"\r\n") {
                self.input.drain(..2);
            }
            if !self.input.is_empty()
                && let Some((head, length)) = head::parse(&self.input)?
            {
                self.input.drain(..length);
                return Ok(Some(head));
            }
            match self.read(until) {
                Came::Bytes if !begun => (begun, until) = (true, Instant::now() + self.limits.head),
                Came::Bytes => {}
                Came::End => return Ok(None),
                Came::Late if self.input.is_empty() => return Ok(None),
                Came::Late => {
                    let detail =
                        format!("the head of the request did not come within {} s", self.limits.head.as_secs());
                    return Err(Refusal::new(408, detail));
                }
            }
        }
    }

    /// Reads the body; `None`: it is not wanted, and has not arrived.
    fn read_body(&mut self, head: &Head, wanted: bool) -> Result<Option<Vec<u8>>, Refusal> {
        let until = Instant::now() + self.limits.body;
        match head.body {
            Body::Length(length) => {
                let here = usize::try_from(length).ok().filter(|length| *length <= self.input.len());
                match (here, wanted) {
                    (Some(length), _) => Ok(Some(self.input.drain(..length).collect())),
                    (None, false) => Ok(None),
                    // Refused at once: the body may have any size, or its caller may wait for 100 (Continue).
                    (None, true) if length > LARGEST_BODY as u64 => Err(too_large()),
                    (None, true) => self.read_length(head, length as usize, until).map(Some),
                }
            }
            Body::Chunked if wanted => self.read_chunks(head, until).map(Some),
            Body::Chunked => Ok(None),
        }
    }

    fn read_length(&mut self, head: &Head, length: usize, until: Instant) -> Result<Vec<u8>, Refusal> {
        self.ask_for_body(head);
        self.input.reserve_exact(length - self.input.len());
        while self.input.len() < length {
            match self.read(until) {
                Came::Bytes => {}
                Came::End => return Err(ended_early()),
                Came::Late => return Err(self.late()),
            }
        }
        let rest = self.input.split_off(length);
        Ok(std::mem::replace(&mut self.input, rest))
    }

    fn read_chunks(&mut self, head: &Head, until: Instant) -> Result<Vec<u8>, Refusal> {
        self.ask_for_body(head);
        let (mut chunked, mut body, mut is_large) = (Chunked::new(), Vec::new(), false);
        loop {
            let decoded = chunked.decode(&self.input, |content| {
                is_large |= body.len() + content.len() > LARGEST_BODY;
                if !is_large {
                    body.extend_from_slice(content);
                }
            });
            let length = match decoded {
                Ok(length) => length,
                Err(fault) => return Err(Refusal::new(400, format!("the body is not well-formed: {fault}"))),
            };
            self.input.drain(..length);
            if is_large {
                return Err(too_large());
            }
            if chunked.is_done() {
                return Ok(body);
            }
            match self.read(until) {
                Came::Bytes => {}
                Came::End => return Err(ended_early()),
                Came::Late => return Err(self.late()),
            }
        }
    }

    /// Sends 100 (Continue) to a caller that waits for it (RFC 9110 section 10.1.1).
    fn ask_for_body(&mut self, head: &Head) {
        if head.expects_continue && self.input.is_empty() {
            // A failure to write shows at the next read.
            let _ = (&*self.socket).write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }

    /// Reads the next bytes, or waits for them.
    fn read(&mut self, until: Instant) -> Came {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Came::Late;
            }
            // In steps of 0.1 s, so that it seldom changes; up to 0.1 s too late is acceptable.
            let timeout = TENTH * u32::try_from(left.as_millis() / TENTH.as_millis() + 1).unwrap_or(u32::MAX);
            if timeout != self.timeout {
                if self.socket.set_read_timeout(Some(timeout)).is_err() {
                    return Came::End;
                }
                self.timeout = timeout;
            }
            match (&*self.socket).read(&mut self.piece[..]) {
                Ok(0) => return Came::End,
                Ok(length) => {
                    self.input.extend_from_slice(&self.piece[..length]);
                    return Came::Bytes;
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                }
                Err(_) => return Came::End,
            }
        }
    }

    fn late(&self) -> Refusal {
        Refusal::new(408, format!("the body did not come within {} s", self.limits.body.as_secs()))
    }

    /// Reads and drops the remaining bytes. Closing a socket with unread bytes resets the connection, and the caller
    /// would lose a response that it has not read yet.
    fn linger(&mut self) {
        let until = Instant::now() + self.limits.linger;
        let mut left = READ_AWAY;
        // This fails if the caller has left.
        if self.socket.shutdown(Shutdown::Write).is_err() {
            return;
        }
        loop {
            self.input.clear();
            match self.read(until) {
                Came::Bytes if self.input.len() <= left => left -= self.input.len(),
                _ => return,
            }
        }
    }
}

fn problem(refusal: &Refusal) -> Response {
    Response::problem(refusal.status, &refusal.detail, None)
}

fn too_large() -> Refusal {
    Refusal::new(413, format!("the body is larger than {LARGEST_BODY} bytes"))
}

fn ended_early() -> Refusal {
    Refusal::new(400, "the body ended early")
}

#[cfg(test)]
mod tests;
