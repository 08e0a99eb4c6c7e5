//! Sockets and threads of one node: its listener, and one thread per connection.
//!
//! A [`Server`] exists for one process lifetime of a node; the cluster's state is in the [`Core`], which outlives it.
//! Called by [`Broker`](super::Broker).

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use socket2::SockRef;

use super::answer::{Manner, Reply};
use super::authentication::Authentication;
use super::core::Core;
use super::faults::{Action, Kind};
use super::node::Condition;
use super::scope::Scope;
use super::state::Caller;
use super::transport::{Stream, Watched};
use program::reserved_port::ReservedPort;
use program::stop::Stop;
use program::threads::{self, Thread};

/// Most connections at the same time; further ones are closed at once.
const MOST_CONNECTIONS: usize = 2000;

/// Listener and connections of one node.
pub(super) struct Server {
    shared: Arc<Shared>,
    listener: TcpListener,
    accepting: Thread,
}

struct Shared {
    core: Arc<Core>,
    node: i32,
    stop: Stop,
    /// Triggered when a thread dies.
    died: Stop,
    connections: Mutex<HashMap<u64, Connection>>,
}

struct Connection {
    socket: TcpStream,
    thread: Thread,
    /// When bytes last came or went.
    active: Arc<Mutex<Instant>>,
    /// Closed for being idle; its thread may still be parked in a request.
    closed: bool,
}

impl Server {
    /// Starts to accept connections for a node. A thread that dies triggers `died`.
    ///
    /// # Errors
    /// The listener cannot be used.
    pub fn start(core: &Arc<Core>, node: i32, listener: TcpListener, died: &Stop) -> io::Result<Self> {
        let waiting = listener.try_clone()?;
        let (core, stop, died) = (Arc::clone(core), Stop::new(), died.clone());
        let shared = Arc::new(Shared { core, node, stop, died: died.clone(), connections: Mutex::default() });
        let accepting = {
            let shared = Arc::clone(&shared);
            threads::spawn(&format!("devbroker-{node}"), died, move || {
                shared.accept(&waiting);
                Ok::<(), io::Error>(())
            })
        };
        Ok(Self { shared, listener, accepting })
    }

    /// Closes connections that are idle for too long.
    pub fn close_idle(&self, now: Instant) {
        self.shared.close_idle(now);
    }

    /// Closes all sockets. The node is down already, so no request waits any more. Returns when every thread has ended.
    pub fn end(self) {
        self.shared.stop.trigger();
        // Wakes the thread that waits for a connection (shutdown(2) on Linux).
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        // A failed thread has logged its own error.
        let _ = self.accepting.join();
        drop(self.listener);
        let open = std::mem::take(&mut *self.shared.connections.lock());
        for connection in open.values() {
            let _ = connection.socket.shutdown(Shutdown::Both);
        }
        for connection in open.into_values() {
            let _ = connection.thread.join();
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        while !self.stop.is_triggered() {
            match listener.accept() {
                Ok((socket, _)) => self.open(socket),
                // No file descriptor was left, or the client closed before accept: try the next connection.
                Err(_) if !self.stop.is_triggered() => drop(self.stop.sleep(Duration::from_millis(10))),
                Err(_) => return,
            }
        }
    }

    /// Starts a thread for a connection, and joins the threads of ended connections.
    fn open(self: &Arc<Self>, socket: TcpStream) {
        let mut connections = self.connections.lock();
        let ended: Vec<u64> =
            connections.iter().filter(|(_, open)| open.thread.is_finished()).map(|(id, _)| *id).collect();
        let ended: Vec<_> = ended.into_iter().filter_map(|id| connections.remove(&id)).collect();
        let id = self.core.next_connection();
        // Dropping the socket closes the connection.
        if let (Ok(handle), true) = (socket.try_clone(), connections.len() < MOST_CONNECTIONS) {
            let shared = Arc::clone(self);
            let active = Arc::new(Mutex::new(Instant::now()));
            let noted = Arc::clone(&active);
            let thread = threads::spawn(&format!("broker-{:x}", id & 0xffff_ffff), self.died.clone(), move || {
                // The peer closed the connection or sent no valid request; either way the connection ends.
                let caller = Caller::new(shared.node, id);
                let _ = shared.serve(&socket, &noted, &caller);
                let _ = socket.shutdown(Shutdown::Both);
                shared.core.disconnected(&caller);
                Ok::<(), io::Error>(())
            });
            connections.insert(id, Connection { socket: handle, thread, active, closed: false });
        }
        drop(connections);
        for connection in ended {
            let _ = connection.thread.join();
        }
    }

    /// Closes connections without a byte in either direction for `connections.max.idle.ms`; below 0 there is no limit.
    /// A parked request is no activity and gets no response, as measured with Kafka 4.4.
    fn close_idle(&self, now: Instant) {
        let state = self.core.state.lock();
        let limit = u64::try_from(state.settings.number("connections.max.idle.ms"));
        let runs = state.condition(self.node) == Condition::Running;
        drop(state);
        let (Ok(limit), true) = (limit, runs) else { return };
        let limit = Duration::from_millis(limit);
        let mut idle = Vec::new();
        let mut connections = self.connections.lock();
        for (id, open) in connections.iter_mut() {
            if !open.closed && now.saturating_duration_since(*open.active.lock()) > limit {
                open.closed = true;
                let _ = open.socket.shutdown(Shutdown::Both);
                idle.push(*id);
            }
        }
        drop(connections);
        idle.into_iter().for_each(|id| self.core.end_sessions_of(id));
    }

    /// Completes a TLS handshake, with the faults that apply to it. Returns whether the connection is used; without TLS
    /// it always is.
    fn shake_hands(&self, stream: &mut Stream, node: i32) -> io::Result<bool> {
        if matches!(stream, Stream::Plain(_)) {
            return Ok(true);
        }
        stream.read_hello()?;
        if !self.core.pass(node) {
            return Ok(false);
        }
        let due = self.core.faults.due(Kind::TlsHandshake.api_key(), "", node, Scope::default);
        for fault in &due {
            match fault.action {
                Action::Delay(time) => self.core.linger(node, time),
                Action::CutBefore => return Ok(false),
                Action::Alert => return stream.alert().map(|()| false),
                Action::Deafen | Action::Truncate(_) => {
                    if let Action::Truncate(count) = fault.action {
                        stream.send_flight(count)?;
                    }
                    self.core.outlast(node);
                    return Ok(false);
                }
                _ => {}
            }
        }
        stream.shake_hands()?;
        Ok(!due.iter().any(|fault| fault.action == Action::CutAfter))
    }

    /// Answers each request before it reads the next, so responses come in the order of their requests.
    fn serve(&self, socket: &TcpStream, active: &Mutex<Instant>, caller: &Caller<'static>) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let largest = usize::try_from(self.core.state.lock().settings.number("socket.request.max.bytes"));
        let largest = largest.unwrap_or(usize::MAX);
        let security = self.core.security();
        let mut login = Authentication::new(security.sasl.is_some());
        let mut stream = Stream::new(Watched::new(socket, active), security.tls.as_ref())?;
        if !self.shake_hands(&mut stream, caller.node)? {
            return Ok(());
        }
        let mut stream = BufReader::with_capacity(16 << 10, stream);
        loop {
            let frame = read_frame(&mut stream, largest)?;
            let (reply, mute) = match self.core.answer(caller.clone(), frame, &mut login) {
                Reply::Throttled(reply, time) => (*reply, Some(time)),
                reply => (reply, None),
            };
            match reply {
                Reply::Answer(frame, Manner::Truncated(count)) => {
                    stream.get_mut().send(frame.get(..count).unwrap_or(&frame))?;
                    self.core.outlast(caller.node);
                    return Ok(());
                }
                Reply::Answer(frame, manner) => {
                    stream.get_mut().set_trickling(manner == Manner::Trickling);
                    // One record of TLS then carries two responses.
                    let twice = (manner == Manner::Twice).then(|| frame.repeat(2));
                    stream.get_mut().send(twice.as_deref().unwrap_or(&frame))?;
                }
                Reply::Nothing => {}
                Reply::Alert => return stream.get_mut().alert(),
                Reply::Close => {
                    stream.get_mut().say_goodbye();
                    return Ok(());
                }
                Reply::Cut | Reply::Throttled(..) => return Ok(()),
                Reply::Deaf => {
                    self.core.outlast(caller.node);
                    return Ok(());
                }
            }
            *active.lock() = Instant::now();
            if login.has_failed() {
                stream.get_mut().say_goodbye();
                return Ok(());
            }
            if let Some(time) = mute {
                self.core.linger(caller.node, time);
            }
        }
    }
}

/// Reads one request with its length.
fn read_frame(reader: &mut impl Read, largest: usize) -> io::Result<Bytes> {
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let length = usize::try_from(i32::from_be_bytes(length)).ok().filter(|length| *length <= largest);
    let length = length.ok_or(io::ErrorKind::InvalidData)?;
    // Grows with the received bytes, so a false length reserves no memory.
    let mut frame = Vec::with_capacity(length.min(1 << 20));
    reader.take(length as u64).read_to_end(&mut frame)?;
    if frame.len() < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(frame.into()) }
}

/// Holds a loopback address of this machine.
///
/// # Errors
/// The address is no loopback address, or is in use.
pub(super) fn reserve(address: SocketAddr) -> io::Result<ReservedPort> {
    if !address.ip().is_loopback() {
        let why = "is no loopback address; the embedded broker has no protection and listens on this machine only";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    ReservedPort::at(address)
}
