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
    pub socket: &'a TcpStream,
    pub active: &'a Mutex<Instant>,
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
        self.socket.write(bytes)
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
