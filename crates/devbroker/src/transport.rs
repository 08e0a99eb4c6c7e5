//! The byte stream of one connection: its socket, or TLS on its socket.
//!
//! Blocking: the connection's thread reads and writes in turn. Another thread ends it by a shutdown of the socket.
//! Knows no requests. Called by `server`.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// The socket of a connection; notes the time of each read.
pub(super) struct Watched<'a> {
    socket: &'a TcpStream,
    active: &'a Mutex<Instant>,
    /// Whether the bytes are written one by one.
    trickles: bool,
}

impl<'a> Watched<'a> {
    /// `active` gets the time of each read.
    pub fn new(socket: &'a TcpStream, active: &'a Mutex<Instant>) -> Self {
        Self { socket, active, trickles: false }
    }
}

impl Read for Watched<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.socket.read(into)?;
        *self.active.lock() = Instant::now();
        Ok(count)
    }
}

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(if self.trickles { bytes.get(..1).unwrap_or(bytes) } else { bytes })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// The stream of a connection.
pub(super) enum Stream<'a> {
    Plain(Watched<'a>),
    Tls(Box<StreamOwned<ServerConnection, Watched<'a>>>),
}

impl<'a> Stream<'a> {
    /// Makes the stream of a new connection; sends and reads nothing.
    pub fn new(socket: Watched<'a>, tls: Option<&Arc<ServerConfig>>) -> io::Result<Self> {
        let Some(config) = tls else { return Ok(Self::Plain(socket)) };
        let session = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        Ok(Self::Tls(Box::new(StreamOwned::new(session, socket))))
    }

    /// Reads the ClientHello; without TLS nothing. Sends an alert if the bytes are no TLS or nothing in common is left.
    pub fn read_hello(&mut self) -> io::Result<()> {
        let Self::Tls(tls) = self else { return Ok(()) };
        while !tls.conn.wants_write() {
            if tls.conn.read_tls(&mut tls.sock)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Err(error) = tls.conn.process_new_packets() {
                // The alert that tells the client why.
                while tls.conn.wants_write() && tls.conn.write_tls(&mut tls.sock)? > 0 {}
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        Ok(())
    }

    /// Answers the ClientHello and completes the handshake.
    pub fn shake_hands(&mut self) -> io::Result<()> {
        let Self::Tls(tls) = self else { return Ok(()) };
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        tls.flush()
    }

    /// Sends only this many bytes of the answer to the ClientHello.
    pub fn send_flight(&mut self, count: usize) -> io::Result<()> {
        let Self::Tls(tls) = self else { return Ok(()) };
        let mut flight = Vec::new();
        while tls.conn.wants_write() {
            tls.conn.write_tls(&mut flight)?;
        }
        tls.sock.write_all(flight.get(..count).unwrap_or(&flight))
    }

    /// Sends a fatal alert; without TLS nothing. rustls sends one only for an error, so it gets a record that it cannot
    /// decrypt, longer than any record that the client has begun.
    pub fn alert(&mut self) -> io::Result<()> {
        const RECORD: [u8; 5] = [23, 3, 3, 0, 32];
        let Self::Tls(tls) = self else { return Ok(()) };
        let wrong = [&RECORD[..], &[0; 20_000]].concat();
        let mut wrong = wrong.as_slice();
        while !wrong.is_empty() && tls.conn.read_tls(&mut wrong)? > 0 && tls.conn.process_new_packets().is_ok() {}
        while tls.conn.wants_write() && tls.conn.write_tls(&mut tls.sock)? > 0 {}
        Ok(())
    }

    /// Sends bytes at once.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)?;
        self.flush()
    }

    /// Whether the socket gets bytes one by one from now on.
    pub fn set_trickling(&mut self, trickles: bool) {
        match self {
            Self::Plain(socket) => socket.trickles = trickles,
            Self::Tls(tls) => tls.sock.trickles = trickles,
        }
    }

    /// Tells the client that the broker closes the connection (close_notify of TLS), as Kafka does when it closes one
    /// itself.
    pub fn say_goodbye(&mut self) {
        if let Self::Tls(tls) = self {
            tls.conn.send_close_notify();
            // The client may be gone already.
            let _ = tls.flush();
        }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(into),
            Self::Tls(tls) => tls.read(into),
        }
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    /// TLS reports an error of the socket only here: its write has taken the bytes by then.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn trickling_socket_takes_one_byte_of_each_write() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let socket = TcpStream::connect(listener.local_addr().expect("an address")).expect("it listens");
        let active = Mutex::new(Instant::now());
        let mut stream = Stream::Plain(Watched::new(&socket, &active));
        assert_eq!(stream.write(b"abc").expect("written"), 3);
        stream.set_trickling(true);
        assert_eq!(stream.write(b"abc").expect("written"), 1);
        stream.set_trickling(false);
        assert_eq!(stream.write(b"abc").expect("written"), 3);
    }
}
