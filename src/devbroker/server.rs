//! Sockets and threads of one node: its listener, and a thread for each connection.
//!
//! One [`Server`] is one process lifetime of a node: what the cluster knows is in the [`Core`], which outlives it. Called by
//! [`Broker`](super::Broker).

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

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
    listener: TcpListener,
    accepting: Thread,
}

struct Shared {
    core: Arc<Core>,
    node: i32,
    stop: Stop,
    /// Told when a thread dies.
    died: Stop,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    open: HashMap<u64, (TcpStream, Thread)>,
}

impl Server {
    /// Listens for a node and answers. `died` is triggered when a thread dies.
    ///
    /// # Errors
    /// A listener that cannot be used.
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

    /// Closes all sockets at once. The node is down already, so that no request waits any more. Returns when every thread has ended.
    pub fn end(self) {
        self.shared.stop.trigger();
        // Wakes the thread that waits for a connection (shutdown(2) on Linux).
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        // A thread that did not end well has logged it.
        let _ = self.accepting.join();
        drop(self.listener);
        let open = std::mem::take(&mut self.shared.connections.lock().open);
        for (socket, _) in open.values() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        for (_, thread) in open.into_values() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        while !self.stop.is_triggered() {
            match listener.accept() {
                Ok((socket, _)) => self.open(socket),
                // Out of files, or the caller was gone before it was taken: the next one may do better.
                Err(_) if !self.stop.is_triggered() => drop(self.stop.sleep(std::time::Duration::from_millis(10))),
                Err(_) => return,
            }
        }
    }

    /// A thread for a connection; those of connections that ended are joined on the way.
    fn open(self: &Arc<Self>, socket: TcpStream) {
        let mut connections = self.connections.lock();
        let ended: Vec<u64> =
            connections.open.iter().filter(|(_, (_, thread))| thread.is_finished()).map(|(id, _)| *id).collect();
        let ended: Vec<_> = ended.into_iter().filter_map(|id| connections.open.remove(&id)).collect();
        let id = self.core.next_connection();
        // Dropping the socket closes it.
        if let (Ok(handle), true) = (socket.try_clone(), connections.open.len() < MOST_CONNECTIONS) {
            let shared = Arc::clone(self);
            let thread = threads::spawn(&format!("broker-{:x}", id & 0xffff_ffff), self.died.clone(), move || {
                // The peer has gone, or has sent what is no request: the connection is over either way.
                let caller = Caller::new(shared.node, id);
                let _ = shared.serve(&socket, &caller);
                let _ = socket.shutdown(Shutdown::Both);
                shared.core.disconnected(&caller);
                Ok::<(), io::Error>(())
            });
            connections.open.insert(id, (handle, thread));
        }
        drop(connections);
        for (_, thread) in ended {
            let _ = thread.join();
        }
    }

    /// One request after the other, each answered before the next is read: answers come in the order of their requests.
    fn serve(&self, socket: &TcpStream, caller: &Caller) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let largest = usize::try_from(self.core.state.lock().settings.number("socket.request.max.bytes"));
        let largest = largest.unwrap_or(usize::MAX);
        let mut reader = BufReader::with_capacity(16 << 10, socket);
        let mut writer = socket;
        loop {
            let frame = read_frame(&mut reader, largest)?;
            match self.core.answer(caller.clone(), frame) {
                Reply::Answer(frame, times) => (0..times).try_for_each(|_| writer.write_all(&frame))?,
                Reply::Nothing => {}
                Reply::Close => return Ok(()),
                Reply::Deaf => {
                    self.core.outlast(caller.node);
                    return Ok(());
                }
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
