//! An HTTP client of a gateway: HTTP/1.1 over one kept connection, with a deadline for each request.
//!
//! It reads only what this project's gateway sends: a status, `Content-Length` or chunks, `Connection: close`. No TLS,
//! no redirects. A [`Failure`] says whether the request can have reached the gateway. Called by the drill, by the fleet
//! of `make up`, and by the gateway for its health check and the watch on its port.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::stop::Stop;

const CONNECT: Duration = Duration::from_secs(2);
const WRITE: Duration = Duration::from_secs(5);
/// How often a wait for a response checks the stop.
const SLICE: Duration = Duration::from_millis(100);
/// A connection that was idle this long is not used again.
const STALE: Duration = Duration::from_secs(5);
/// Maximum size of a response.
const LARGEST: usize = 16 << 20;

/// Address of a gateway; shown as in the `Host` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Host name or IP address; an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(formatter, "[{host}]:{port}") } else { write!(formatter, "{host}:{port}") }
    }
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Whether it has a `Retry-After` in seconds.
    pub retry_after: bool,
    /// The body, without the framing of chunks.
    pub body: Vec<u8>,
}

/// Why there is no response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No byte was sent, so the gateway did not get the request.
    #[error("{0}")]
    NotSent(String),
    /// The request was sent, at least in part; the gateway may have accepted it.
    #[error("{0}")]
    Cut(String),
}

/// A client of one gateway.
#[derive(Debug)]
pub struct Client {
    gateway: Authority,
    kept: Option<(TcpStream, Instant)>,
    /// Ends every wait.
    hurry: Stop,
}

impl Client {
    /// A client of this gateway; `hurry` ends every wait.
    pub fn new(gateway: impl Into<Authority>, hurry: Stop) -> Self {
        Self { gateway: gateway.into(), kept: None, hurry }
    }

    /// Sends `GET path` and returns the response, which must arrive within `patience`.
    ///
    /// # Errors
    /// No response in time, or a malformed one.
    pub fn get(&mut self, path: &str, patience: Duration) -> Result<Response, Failure> {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.gateway);
        self.exchange(head.as_bytes(), patience)
    }

    /// Sends `POST path` with this JSON. `headers`: further header lines, each with CRLF.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn post(&mut self, path: &str, headers: &str, json: &str, patience: Duration) -> Result<Response, Failure> {
        let (host, length) = (&self.gateway, json.len());
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{headers}\r\n{json}"
        );
        self.exchange(request.as_bytes(), patience)
    }

    /// Sleeps this long, or until the stop.
    pub fn rest(&self, time: Duration) {
        // A stop only shortens the sleep.
        let _ = self.hurry.sleep(time);
    }

    fn exchange(&mut self, request: &[u8], patience: Duration) -> Result<Response, Failure> {
        let deadline = Instant::now() + patience;
        let mut socket = match self.kept.take().filter(|(socket, used)| used.elapsed() < STALE && is_open(socket)) {
            Some((socket, _)) => socket,
            None => self.connect().map_err(|error| Failure::NotSent(error.to_string()))?,
        };
        let cut = |error: io::Error| Failure::Cut(error.to_string());
        socket.write_all(request).map_err(cut)?;
        let mut incoming = Incoming { socket: &mut socket, buffer: Vec::new(), deadline, hurry: &self.hurry };
        let (response, keep) = incoming.response().map_err(cut)?;
        if keep {
            self.kept = Some((socket, Instant::now()));
        }
        Ok(response)
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let mut failed = io::Error::new(ErrorKind::NotFound, "the name has no address");
        for address in (self.gateway.host.as_str(), self.gateway.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(socket) => {
                    socket.set_nodelay(true)?;
                    socket.set_write_timeout(Some(WRITE))?;
                    socket.set_read_timeout(Some(SLICE))?;
                    return Ok(socket);
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

/// Whether a kept connection is open and has no unread data.
fn is_open(socket: &TcpStream) -> bool {
    let peeked = socket.set_nonblocking(true).and_then(|()| socket.peek(&mut [0]));
    let quiet = matches!(&peeked, Err(error) if error.kind() == ErrorKind::WouldBlock);
    quiet && socket.set_nonblocking(false).is_ok()
}

/// The read side of a connection.
struct Incoming<'a, S> {
    socket: &'a mut S,
    buffer: Vec<u8>,
    deadline: Instant,
    hurry: &'a Stop,
}

impl<S: Read> Incoming<'_, S> {
    /// Reads a response; returns it, and whether the connection can be kept.
    fn response(&mut self) -> io::Result<(Response, bool)> {
        let status_line = self.line()?;
        let status = status_line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
        let status: u16 = status.ok_or_else(|| malformed("no status line"))?;
        let mut retry_after = false;
        let (mut length, mut chunked, mut keep) = (None, false, !status_line.starts_with("HTTP/1.0"));
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.parse::<usize>().map_err(|_| malformed("no length"))?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = value.eq_ignore_ascii_case("chunked");
            } else if name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close") {
                keep = false;
            } else if name.eq_ignore_ascii_case("retry-after") {
                retry_after = value.parse::<u32>().is_ok();
            }
        }
        let body = if chunked { self.chunks()? } else { self.take(length.unwrap_or(0))? };
        Ok((Response { status, retry_after, body }, keep))
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| malformed("no chunk"))?;
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Ok(body);
            }
            if body.len().saturating_add(size) > LARGEST {
                return Err(malformed("too large"));
            }
            body.extend(self.take(size)?);
            self.line()?;
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            self.more()?;
        }
    }

    fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        if length > LARGEST {
            return Err(malformed("too large"));
        }
        while self.buffer.len() < length {
            self.more()?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    fn more(&mut self) -> io::Result<()> {
        let mut piece = [0; 8192];
        loop {
            if self.hurry.is_triggered() {
                return Err(io::Error::new(ErrorKind::TimedOut, "the wait was stopped"));
            }
            // Also for a peer that sends a byte now and then, so that no read ever takes a whole slice.
            if Instant::now() >= self.deadline {
                return Err(io::Error::new(ErrorKind::TimedOut, "no answer in time"));
            }
            match self.socket.read(&mut piece) {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "connection closed by the gateway")),
                Ok(count) => {
                    self.buffer.extend(piece.iter().take(count));
                    return if self.buffer.len() > LARGEST { Err(malformed("too large")) } else { Ok(()) };
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the response is not HTTP: {what}"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn read(bytes: &str) -> io::Result<(Response, bool)> {
        let (mut socket, hurry) = (bytes.as_bytes(), Stop::new());
        let deadline = Instant::now() + Duration::from_secs(60);
        Incoming { socket: &mut socket, buffer: Vec::new(), deadline, hurry: &hurry }.response()
    }

    #[test]
    fn responses_with_a_length_or_in_chunks_are_read_and_cut_ones_refused() {
        let plain = read("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").expect("a response");
        assert_eq!(plain, (Response { status: 200, retry_after: false, body: b"{}".to_vec() }, true));
        let chunked = "HTTP/1.1 503 No\r\nRetry-After: 1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\n";
        assert_eq!(
            read(chunked).expect("a response"),
            (Response { status: 503, retry_after: true, body: b"abc".to_vec() }, false)
        );
        for cut in ["", "HTTP/1.1 20", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", "SSH-2.0\r\n\r\n"] {
            assert!(read(cut).is_err(), "{cut:?}");
        }
    }

    #[test]
    fn a_peer_that_sends_a_byte_now_and_then_does_not_outlast_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut client = Client::new(listener.local_addr().expect("an address"), Stop::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut socket, _) = listener.accept().expect("a caller");
                let pace = Stop::new();
                // For at most a minute, or until the caller has closed the connection.
                for _ in 0..1200 {
                    if socket.write_all(b"x").is_err() || pace.sleep(Duration::from_millis(50)).is_err() {
                        break;
                    }
                }
            });
            let begin = Instant::now();
            let answer = client.get("/", Duration::from_millis(300));
            assert!(matches!(&answer, Err(Failure::Cut(why)) if why == "no answer in time"), "{answer:?}");
            assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        });
    }

    #[test]
    fn nothing_sent_and_cut_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let gateway = Authority { host: "127.0.0.1".to_owned(), port };
        let mut client = Client::new(gateway, Stop::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut socket, _) = listener.accept().expect("a caller");
                let _ = socket.read(&mut [0; 4096]);
            });
            let answer = client.get("/", Duration::from_secs(5));
            assert!(matches!(answer, Err(Failure::Cut(_))), "{answer:?}");
        });
        let closed = crate::reserved_port::ReservedPort::any().expect("a free port");
        let answer = Client::new(closed.address(), Stop::new()).get("/", Duration::from_secs(5));
        assert!(matches!(answer, Err(Failure::NotSent(_))), "{answer:?}");
    }
}
