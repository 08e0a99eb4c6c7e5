//! The embedded broker: Kafka's protocol and share groups, in memory, in this process.
//!
//! For tests, and for trying the system out without Kafka. [`Fault`] produces on demand the failures that a real broker
//! rarely shows. It keeps nothing on disk, and has no limits on clients, so it listens on the loopback only. It is not for production. The same tests run against it and against Apache Kafka.
//!
//! | module | noun |
//! |---|---|
//! | `server` | sockets and threads of one node |
//! | `transport`, `security` | TLS on a socket, and how the listeners are secured |
//! | `authentication`, `scram` | SASL |
//! | `answer` | one request with its faults |
//! | `core` | state, waits and the timer |
//! | `asked`, `dispatch`, `share_wire`, `refusals`, `throttle`, `damage` | decoding requests, encoding responses |
//! | `faults`, `scope` | injected faults, and the requests that they concern |
//! | `state` | the whole state, behind one lock |
//! | `rights` | denied rights of clients |
//! | `produce`, `fetch`, `offsets`, `topics`, `configs`, `groups` | the requests about topics and groups |
//! | `share_group` with `group`, `share_fetch` with `session`, `share_partition` | members, sessions, records of share groups (KIP-932) |
//! | `nodes` with `node` | the nodes: running, fenced, leading, coordinating |
//! | `log`, `batch`, `sequences` | a partition's records and its producers |
//! | `transactions` | transactional ids and their epochs (KIP-98) |
//! | `settings`, `options` | Kafka's settings, the program's options |
//!
//! The README of this crate lists the differences from Kafka. Called by the binary `devbroker` and by tests.

mod answer;
mod asked;
mod authentication;
mod batch;
mod configs;
mod core;
mod damage;
mod dispatch;
mod faults;
mod fetch;
mod group;
mod groups;
mod log;
mod node;
mod nodes;
mod offsets;
mod options;
mod produce;
mod refusals;
mod rights;
mod scope;
mod scram;
mod security;
mod sequences;
mod server;
mod session;
mod settings;
mod share_fetch;
mod share_group;
mod share_partition;
mod share_wire;
mod state;
mod throttle;
mod topics;
mod transactions;
mod transport;

#[cfg(test)]
mod tests;

pub use faults::{Action, Bites, Fault, Kind};
pub use options::{DevbrokerConfig, run};
pub use rights::{Denial, Operation, Resource};
pub use security::{Sasl, SaslMechanism, Security, SecurityError, ServerTls};
pub use settings::{KafkaVersion, MEMORY_LIMIT, Settings};

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use parking_lot::Mutex;

use self::core::{Core, Order};
use self::node::Condition;
use self::server::Server;
use self::state::State;
use program::reserved_port::ReservedPort;
use program::stop::Stop;
use program::threads::{self, Thread};

/// Most orders of faults that wait; further orders are dropped.
const ORDERS: usize = 64;
/// Longest interval at which the thread that carries out orders checks whether to end.
const KEEP_PAUSE: Duration = Duration::from_millis(20);
/// How long a restarting node waits for its port: a process that is just starting has copies of all sockets until it
/// executes its program.
const PORT_WAIT: Duration = Duration::from_secs(1);
const PORT_PAUSE: Duration = Duration::from_millis(5);

/// A running broker with its memory. Dropping it ends the broker.
pub struct Broker {
    shared: Arc<Shared>,
    threads: Vec<Thread>,
    stop: Stop,
}

struct Shared {
    core: Arc<Core>,
    addresses: Vec<SocketAddr>,
    /// Ports of the nodes, held while nodes are down, so that each node returns to its address.
    _ports: Vec<ReservedPort>,
    /// Servers by node; `None` while a node is down.
    servers: Mutex<Vec<Option<Server>>>,
    /// Triggered when a thread dies; the program then ends.
    died: Stop,
}

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The broker cannot listen on an address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// [`Settings::security`] cannot be used.
    #[error(transparent)]
    Security(#[from] SecurityError),
}

impl Broker {
    /// Starts an empty broker.
    ///
    /// # Errors
    /// [`StartError`]
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        let ports = each(&settings.listen, server::reserve)?;
        let addresses: Vec<SocketAddr> = ports.iter().map(ReservedPort::address).collect();
        let (orders, to_do) = bounded(ORDERS);
        let announced = announced(&settings, &addresses);
        let security = settings.security.check()?;
        let core = Arc::new(Core::new(State::new(settings, announced), orders));
        core.set_security(security);
        let servers = Mutex::new(addresses.iter().map(|_| None).collect());
        let shared = Arc::new(Shared { core, addresses, _ports: ports, servers, died: Stop::new() });
        let mut broker = Self { shared: Arc::clone(&shared), threads: Vec::new(), stop: Stop::new() };
        for id in broker.nodes().ids {
            shared.serve(id)?;
        }
        let (keeper, stop) = (Arc::clone(&shared), broker.stop.clone());
        let keep = threads::spawn("devbroker-keep", shared.died.clone(), move || keeper.carry_out(&to_do, &stop));
        let stop = broker.stop.clone();
        let time = threads::spawn("devbroker-timer", shared.died.clone(), move || {
            let servers = &shared.servers;
            shared
                .core
                .keep_time(&stop, |now| servers.lock().iter().flatten().for_each(|server| server.close_idle(now)));
            Ok::<(), StartError>(())
        });
        broker.threads = vec![keep, time];
        Ok(broker)
    }

    /// Address of the first node.
    pub fn address(&self) -> SocketAddr {
        self.shared.addresses[0]
    }

    /// Addresses of the nodes; node ids count from 1.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.shared.addresses
    }

    /// Triggered when a thread of the broker has died.
    pub fn died(&self) -> &Stop {
        &self.shared.died
    }

    /// All nodes together.
    pub fn nodes(&self) -> Nodes<'_> {
        self.shared.only(None)
    }

    /// One node; ids count from 1.
    pub fn node(&self, id: i32) -> Nodes<'_> {
        self.shared.only(Some(id))
    }

    /// Adds a fault to the plan.
    pub fn inject(&self, fault: Fault) -> Bites {
        self.shared.core.faults.add(fault)
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.shared.core.faults.clear();
    }

    /// Secures connections that are opened from now on like this. Open ones stay as they are, but a re-authentication
    /// finds the new accounts.
    ///
    /// # Errors
    /// A file cannot be read, certificate and key do not fit, or the iteration count is 0. Then nothing changes.
    pub fn set_security(&self, security: Security) -> Result<(), SecurityError> {
        self.shared.core.set_security(security.check()?);
        Ok(())
    }

    /// Denies a right to clients, until [`Self::allow_all`].
    pub fn deny(&self, denial: Denial) {
        self.shared.core.state.lock().rights.deny(denial);
    }

    /// Removes all denials.
    pub fn allow_all(&self) {
        self.shared.core.state.lock().rights.allow_all();
    }

    /// Makes another node the leader of a partition; `false` if the partition does not exist, or the node does not
    /// serve.
    pub fn move_leader(&self, topic: &str, partition: i32, node: i32) -> bool {
        self.shared.core.change(|state, now| state.move_leader(topic, partition, node, now))
    }

    /// Returns the node that leads a partition; `None` without such a partition or a leader.
    pub fn leader(&self, topic: &str, partition: i32) -> Option<i32> {
        let state = self.shared.core.state.lock();
        let partition = state.topics.get(topic)?.partitions.get(usize::try_from(partition).ok()?)?;
        Some(partition.leader).filter(|leader| *leader != node::NO_LEADER)
    }

    /// Makes another node the coordinator of a group.
    pub fn move_coordinator(&self, group: &str, node: i32) {
        self.shared.core.state.lock().coordinators.insert(group.to_owned(), node);
    }

    /// Whether a running node is fenced, or still loads its state after a restart.
    pub fn is_loading(&self) -> bool {
        self.shared.core.state.lock().is_loading(Instant::now())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop.trigger();
        for thread in self.threads.drain(..) {
            // The thread has logged its own error.
            let _ = thread.join();
        }
        self.nodes().kill();
    }
}

/// Some nodes of a broker; each operation applies to each of them.
pub struct Nodes<'a> {
    shared: &'a Shared,
    ids: Vec<i32>,
}

impl Nodes<'_> {
    /// Kills them: connections break, ports close. The cluster keeps its state, except share state that was not yet
    /// written.
    pub fn kill(&self) {
        self.ids.iter().for_each(|id| self.shared.end(*id, true));
    }

    /// Ends them as SIGTERM does: leaders move first, and share sessions end with releases that are written.
    pub fn stop(&self) {
        self.ids.iter().for_each(|id| self.shared.end(*id, false));
    }

    /// Starts them again after [`Self::kill`] or [`Self::stop`], on the same addresses.
    ///
    /// # Errors
    /// Another socket still listens on an address after a second.
    pub fn revive(&self) -> Result<(), StartError> {
        self.ids.iter().try_for_each(|id| self.shared.revive(*id))
    }

    /// Freezes them as SIGSTOP does: they answer nothing and no lock expires. Connections stay, and new ones are even
    /// accepted.
    pub fn freeze(&self) {
        self.silence(Condition::Frozen);
    }

    /// Cuts their network off without a reset: they answer nothing, connections stay, and locks expire.
    pub fn cut(&self) {
        self.silence(Condition::Cut);
    }

    /// Ends a freeze or a cut.
    pub fn thaw(&self) {
        let core = &self.shared.core;
        core.change(|state, now| self.ids.iter().for_each(|id| state.resume(*id, now)));
    }

    fn silence(&self, condition: Condition) {
        let core = &self.shared.core;
        core.change(|state, now| self.ids.iter().for_each(|id| state.silence(*id, condition, now)));
    }
}

impl Shared {
    /// Returns this node, or all nodes; empty if the node does not exist.
    fn ids(&self, only: Option<i32>) -> Vec<i32> {
        (1..).zip(&self.addresses).map(|(id, _)| id).filter(|id| only.is_none_or(|only| only == *id)).collect()
    }

    fn slot(id: i32) -> usize {
        usize::try_from(id - 1).unwrap_or(usize::MAX)
    }

    /// Starts a node's server on its address. Waits while a process that is just starting has a copy of the old socket.
    fn serve(&self, id: i32) -> Result<(), StartError> {
        let address = self.addresses[Self::slot(id)];
        let deadline = Instant::now() + PORT_WAIT;
        let listener = loop {
            match std::net::TcpListener::bind(address) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    // A broker whose threads have died still ends when it is dropped.
                    let _ = self.died.sleep(PORT_PAUSE);
                }
                bound => break bound,
            }
        };
        let server = listener.and_then(|listener| Server::start(&self.core, id, listener, &self.died));
        let server = server.map_err(|source| StartError::Listen { address, source })?;
        self.servers.lock()[Self::slot(id)] = Some(server);
        Ok(())
    }

    fn end(&self, id: i32, kill: bool) {
        let server = self.servers.lock()[Self::slot(id)].take();
        self.core.change(|state, now| state.end_node(id, kill, now));
        if let Some(server) = server {
            server.end();
        }
    }

    fn revive(&self, id: i32) -> Result<(), StartError> {
        self.end(id, true);
        self.core.change(|state, now| state.begin_node(id, now));
        self.serve(id)
    }

    /// Carries out the orders of faults, each at its time.
    fn carry_out(&self, orders: &Receiver<Order>, stop: &Stop) -> Result<(), StartError> {
        let mut due: Vec<(Instant, Order)> = Vec::new();
        loop {
            let next = due.iter().map(|(at, _)| at.saturating_duration_since(Instant::now())).min();
            match orders.recv_timeout(next.map_or(KEEP_PAUSE, |next| next.min(KEEP_PAUSE))) {
                Ok(order) => {
                    if matches!(order, Order::Restart(_)) {
                        self.only(None).kill();
                    }
                    let (Order::Restart(after) | Order::Thaw(after)) = order;
                    due.push((Instant::now() + after, order));
                }
                Err(RecvTimeoutError::Timeout) if !stop.is_triggered() => {}
                Err(_) => return Ok(()),
            }
            let now = Instant::now();
            for (_, order) in due.extract_if(.., |(at, _)| *at <= now) {
                match order {
                    Order::Thaw(_) => self.only(None).thaw(),
                    Order::Restart(_) => self.only(None).revive()?,
                }
            }
        }
    }

    /// Selects this node, or all nodes.
    fn only(&self, node: Option<i32>) -> Nodes<'_> {
        Nodes { shared: self, ids: self.ids(node) }
    }
}

/// Calls `take` with each address.
fn each<T>(addresses: &[SocketAddr], take: impl Fn(SocketAddr) -> io::Result<T>) -> Result<Vec<T>, StartError> {
    let taken = addresses
        .iter()
        .map(|address| take(*address).map_err(|source| StartError::Listen { address: *address, source }));
    taken.collect()
}

/// Returns the addresses that clients get: the listeners, except that `advertised.listeners` replaces the first node's.
fn announced(settings: &Settings, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut announced = addresses.to_vec();
    let other = settings.text("advertised.listeners").split_once("://").and_then(|(_, text)| text.parse().ok());
    if let (Some(first), Some(other)) = (announced.first_mut(), other) {
        *first = other;
    }
    announced
}
