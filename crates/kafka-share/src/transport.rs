//! The bytes of one connection, plain or in TLS, each wait with a deadline.
//!
//! Knows nothing of Kafka. The handshake of TLS needs no call: bytes that are written before its end wait in the
//! session, and each read drives it on. So a handshake is resumed like every read, and its peer may be frozen without
//! blocking this thread beyond the deadline. One thread at a time uses a transport; another thread may only shut its
//! socket down, which reads as the end. Called by [`connection`](super::connection).

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConnection;

/// Shortest wait that the operating system accepts; zero would mean no limit.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
/// Reads of one record of TLS: 16 KiB and its overhead, of which rustls reads 4 KiB at once.
const READS_OF_RECORD: u32 = 5;

/// One end of a connection. Dropping it does not close the socket while another handle exists.
#[derive(Debug)]
pub(super) struct Transport {
    socket: Arc<TcpStream>,
    session: Option<Box<ClientConnection>>,
}

impl Transport {
    /// `session`: of TLS, not begun; `None`: plain.
    pub fn new(socket: Arc<TcpStream>, session: Option<ClientConnection>) -> Self {
        Self { socket, session: session.map(Box::new) }
    }

    #[cfg(test)]
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Whether the handshake of TLS has not ended.
    pub fn is_handshaking(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.is_handshaking())
    }

    /// Reads into `into`, which is not empty, until `deadline`; a passed deadline reads what has arrived. `None`: the
    /// deadline passed first. `Some(0)`: the peer closed the connection, with or without a farewell of TLS.
    ///
    /// # Errors
    /// The socket's; `InvalidData` with a `rustls::Error` when TLS has failed.
    pub fn read(&mut self, into: &mut [u8], deadline: Instant) -> io::Result<Option<usize>> {
        let mut reads = 0;
        loop {
            if let Some(session) = &mut self.session {
                match session.reader().read(into) {
                    Ok(count) => return Ok(Some(count)),
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Some(0)),
                    Err(error) => nothing_yet(error)?,
                }
                self.push(&[], deadline)?;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && reads >= READS_OF_RECORD {
                return Ok(None);
            }
            let arrived = if self.session.is_some() {
                self.receive(left)?
            } else {
                // An error here surfaces in the read.
                let _ = self.socket.set_read_timeout(Some(left.max(SHORTEST_WAIT)));
                match (&*self.socket).read(into) {
                    Ok(count) => return Ok(Some(count)),
                    Err(error) => nothing_yet(error).map(|()| false)?,
                }
            };
            // After a wait without a byte only the deadline counts.
            reads = if arrived { reads + 1 } else { READS_OF_RECORD };
        }
    }

    /// Takes bytes of TLS, or their end, from the socket into the session. `false`: nothing arrived within `wait`.
    fn receive(&mut self, wait: Duration) -> io::Result<bool> {
        let Some(session) = &mut self.session else { return Ok(false) };
        let _ = self.socket.set_read_timeout(Some(wait.max(SHORTEST_WAIT)));
        if let Err(error) = session.read_tls(&mut &*self.socket) {
            return nothing_yet(error).map(|()| false);
        }
        if let Err(error) = session.process_new_packets() {
            // The alert tells the peer why; it must not delay the error.
            let _ = self.socket.set_write_timeout(Some(SHORTEST_WAIT));
            let _ = session.write_tls(&mut &*self.socket);
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        Ok(true)
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// The socket's; `TimedOut` at the deadline, with an unknown part written.
    pub fn write(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        let Some(session) = &mut self.session else {
            return if self.push(bytes, deadline)? { Ok(()) } else { Err(ErrorKind::TimedOut.into()) };
        };
        // The session takes everything, and keeps it until the handshake has ended.
        session.writer().write_all(bytes)?;
        if self.push(&[], deadline)? { Ok(()) } else { Err(ErrorKind::TimedOut.into()) }
    }

    /// Writes to the socket what the session has for it, or `plain`. `false`: the deadline passed first.
    fn push(&mut self, mut plain: &[u8], deadline: Instant) -> io::Result<bool> {
        let mut left = deadline.saturating_duration_since(Instant::now());
        while !plain.is_empty() || self.session.as_ref().is_some_and(|session| session.wants_write()) {
            // A socket on which no deadline can be set also fails the write, which reports it.
            let _ = self.socket.set_write_timeout(Some(left.max(SHORTEST_WAIT)));
            let written = match &mut self.session {
                Some(session) => session.write_tls(&mut &*self.socket).map(|_| 0),
                None => (&*self.socket).write(plain),
            };
            match written {
                Ok(count) => plain = &plain[count..],
                Err(error) => nothing_yet(error)?,
            }
            left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(plain.is_empty() && self.session.as_ref().is_none_or(|session| !session.wants_write()));
            }
        }
        Ok(true)
    }

    /// Returns whether the peer has kept an idle connection open. A frozen peer looks alive.
    pub fn is_alive(&mut self) -> bool {
        let peeked = self.socket.set_read_timeout(Some(SHORTEST_WAIT)).and_then(|()| self.socket.peek(&mut [0]));
        match (peeked, &mut self.session) {
            (Ok(0), _) => false,
            (Ok(_), None) => true,
            // A ticket, an update of keys, or the peer's farewell.
            (Ok(_), Some(session)) => {
                let read = session.read_tls(&mut &*self.socket).is_ok_and(|count| count > 0);
                read && session.process_new_packets().is_ok_and(|state| !state.peer_has_closed())
            }
            (Err(error), _) => nothing_yet(error).is_ok(),
        }
    }

    /// Ends the connection at once, without a farewell of TLS: requests and answers have lengths, so nothing can be cut
    /// unnoticed.
    pub fn close(&self) {
        // Fails only if the peer has closed already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// A passed deadline of a socket surfaces as WouldBlock. TimedOut is the kernel's report of a dead path. The kernel
/// reports it once: the next read would look as if the peer had closed the connection.
fn nothing_yet(error: io::Error) -> io::Result<()> {
    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests;
