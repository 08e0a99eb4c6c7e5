//! Sockets and threads of the broker: a listener for each node, a thread for each connection, a timer.
//!
//! One [`Server`] is one life of the broker: what it knows is in the [`Core`], which outlives it. Called by [`Broker`](super::Broker).

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use socket2::SockRef;

use super::core::{Core, Reply};
use super::state::Caller;
use crate::reserved_port::ReservedPort;
use crate::stop::Stop;
use crate::threads::{self, Thread};

/// Connections at once; more are closed at once.
const MOST_CONNECTIONS: usize = 2000;

/// See the module documentation.
pub(super) struct Server {
    shared: Arc<Shared>,
    listeners: Vec<(TcpListener, Thread)>,
    timer: Thread,
}

struct Shared {
    core: Arc<Core>,
    stop: Stop,
    /// Told when a thread dies.
    died: Stop,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    /// Counts all there ever were.
    last: u64,
    open: HashMap<u64, Connection>,
}

struct Connection {
    socket: TcpStream,
    thread: Thread,
    /// When bytes came or went last.
    active: Arc<Mutex<Instant>>,
    /// It was idle for too long; its thread may still be parked in a request.
    closed: bool,
}

/// The reading side of a connection, which notes when bytes came.
struct Watched<'a> {
    socket: &'a TcpStream,
    active: &'a Mutex<Instant>,
}

impl Read for Watched<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.socket.read(into)?;
        *self.active.lock() = Instant::now();
        Ok(count)
    }
}

impl Server {
    /// Listens and answers. The nodes are those of these listeners, in their order. `died` is triggered when a thread dies.
    ///
    /// # Errors
    /// A listener that cannot be used.
    pub fn start(core: &Arc<Core>, listeners: Vec<TcpListener>, died: &Stop) -> io::Result<Self> {
        let accepting = listeners.iter().map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>()?;
        let (stop, died) = (Stop::new(), died.clone());
        let shared = Shared { core: Arc::clone(core), stop, died: died.clone(), connections: Mutex::default() };
        let shared = Arc::new(shared);
        let timer = {
            let shared = Arc::clone(&shared);
            threads::spawn("devbroker-timer", died.clone(), move || {
                shared.core.keep_time(&shared.stop, |now| shared.close_idle(now));
                Ok::<(), io::Error>(())
            })
        };
        let mut server = Self { shared: Arc::clone(&shared), listeners: Vec::new(), timer };
        for ((node, listener), accepting) in (1..).zip(listeners).zip(accepting) {
            let shared = Arc::clone(&shared);
            let thread = threads::spawn(&format!("devbroker-{node}"), died.clone(), move || {
                shared.accept(&accepting, node);
                Ok::<(), io::Error>(())
            });
            server.listeners.push((listener, thread));
        }
        Ok(server)
    }

    /// Ends as a killed process does: all sockets are closed at once. Returns when every thread has ended.
    pub fn end(self) {
        self.shared.stop.trigger();
        self.shared.core.end();
        for (listener, _) in &self.listeners {
            // Wakes the thread that waits for a connection (shutdown(2) on Linux).
            let _ = SockRef::from(listener).shutdown(Shutdown::Both);
        }
        // A thread that did not end well has logged it.
        for (listener, thread) in self.listeners {
            let _ = thread.join();
            drop(listener);
        }
        let open = std::mem::take(&mut self.shared.connections.lock().open);
        for connection in open.values() {
            let _ = connection.socket.shutdown(Shutdown::Both);
        }
        for connection in open.into_values() {
            let _ = connection.thread.join();
        }
        let _ = self.timer.join();
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener, node: i32) {
        while !self.stop.is_triggered() {
            match listener.accept() {
                Ok((socket, _)) => self.open(socket, node),
                // Out of files, or the caller was gone before it was taken: the next one may do better.
                Err(_) if !self.stop.is_triggered() => drop(self.stop.sleep(Duration::from_millis(10))),
                Err(_) => return,
            }
        }
    }

    /// A thread for a connection; those of connections that ended are joined on the way.
    fn open(self: &Arc<Self>, socket: TcpStream, node: i32) {
        let mut connections = self.connections.lock();
        let ended: Vec<u64> =
            connections.open.iter().filter(|(_, open)| open.thread.is_finished()).map(|(id, _)| *id).collect();
        let ended: Vec<_> = ended.into_iter().filter_map(|id| connections.open.remove(&id)).collect();
        connections.last += 1;
        let id = connections.last;
        // Dropping the socket closes it.
        if let (Ok(handle), true) = (socket.try_clone(), connections.open.len() < MOST_CONNECTIONS) {
            let shared = Arc::clone(self);
            let active = Arc::new(Mutex::new(Instant::now()));
            let noted = Arc::clone(&active);
            let thread = threads::spawn(&format!("broker-{:x}", id & 0xffff_ffff), self.died.clone(), move || {
                // The peer has gone, or has sent what is no request: the connection is over either way.
                let _ = shared.serve(&socket, &noted, Caller { node, connection: id, client: "", refuses: None });
                let _ = socket.shutdown(Shutdown::Both);
                shared.core.disconnected(id);
                Ok::<(), io::Error>(())
            });
            connections.open.insert(id, Connection { socket: handle, thread, active, closed: false });
        }
        drop(connections);
        for connection in ended {
            let _ = connection.thread.join();
        }
    }

    /// Closes the connections on which no byte came or went for `connections.max.idle.ms`; below 0 there is no limit. A parked request is
    /// no activity, and is not answered, as measured with Kafka 4.4.
    fn close_idle(&self, now: Instant) {
        let Ok(limit) = u64::try_from(self.core.state.lock().settings.number("connections.max.idle.ms")) else {
            return;
        };
        let limit = Duration::from_millis(limit);
        let mut idle = Vec::new();
        let mut connections = self.connections.lock();
        for (id, open) in &mut connections.open {
            if !open.closed && now.saturating_duration_since(*open.active.lock()) > limit {
                open.closed = true;
                let _ = open.socket.shutdown(Shutdown::Both);
                idle.push(*id);
            }
        }
        drop(connections);
        for id in idle {
            self.core.disconnected(id);
        }
    }

    /// One request after the other, each answered before the next is read: answers come in the order of their requests.
    fn serve(&self, socket: &TcpStream, active: &Mutex<Instant>, caller: Caller) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let largest = usize::try_from(self.core.state.lock().settings.number("socket.request.max.bytes"));
        let largest = largest.unwrap_or(usize::MAX);
        let mut reader = BufReader::with_capacity(16 << 10, Watched { socket, active });
        let mut writer = socket;
        loop {
            let frame = read_frame(&mut reader, largest)?;
            let (reply, mute) = match self.core.answer(caller, frame) {
                Reply::Throttled(reply, time) => (*reply, Some(time)),
                reply => (reply, None),
            };
            match reply {
                Reply::Answer(frame, times) => (0..times).try_for_each(|_| writer.write_all(&frame))?,
                Reply::Nothing => {}
                Reply::Close | Reply::Throttled(..) => return Ok(()),
            }
            *active.lock() = Instant::now();
            if let Some(time) = mute {
                self.core.linger(time);
            }
        }
    }
}

fn read_frame(reader: &mut impl Read, largest: usize) -> io::Result<Bytes> {
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let length = usize::try_from(i32::from_be_bytes(length)).ok().filter(|length| *length <= largest);
    let length = length.ok_or(io::ErrorKind::InvalidData)?;
    // Grows with what comes, so that a false length claims no memory.
    let mut frame = Vec::with_capacity(length.min(1 << 20));
    reader.take(length as u64).read_to_end(&mut frame)?;
    if frame.len() < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(frame.into()) }
}

/// Reserves an address of this machine's loopback.
///
/// # Errors
/// The address is not of the loopback, or in use.
pub(super) fn reserve(address: SocketAddr) -> io::Result<ReservedPort> {
    if !address.ip().is_loopback() {
        let why = "is no loopback address; the embedded broker has no protection and listens on this machine only";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    ReservedPort::at(address)
}
