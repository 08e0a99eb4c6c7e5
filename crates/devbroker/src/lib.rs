//! The embedded broker: Kafka's protocol and the semantics of its share groups, in memory, in this process.
//!
//! For trying the system out with nothing but cargo, and for tests, which can produce on demand what a real broker shows once a month
//! ([`Fault`]). It keeps nothing on disk, has no security and no limits on who may connect, so it listens on the loopback only; it is no way to
//! run anything that matters. The same tests run against it and against Apache Kafka.
//!
//! | module | noun |
//! |---|---|
//! | `server` | sockets, threads |
//! | `core` | one request with its faults, waiting, time |
//! | `dispatch`, `share_wire`, `refusals`, `throttle`, `damage` | bytes to requests, answers to bytes |
//! | `faults`, `scope` | what shall go wrong, and at which requests |
//! | `state` | everything it knows, behind one lock |
//! | `rights` | which client may do what |
//! | `produce`, `fetch`, `offsets`, `topics`, `configs`, `groups` | the requests about topics and groups |
//! | `share_group`, `share_fetch`, `share_partition` | members, sessions, records of share groups (KIP-932) |
//! | `nodes` | which nodes run, are fenced, lead, coordinate |
//! | `log`, `batch`, `sequences` | a partition's records and its producers |
//! | `transactions` | transactional ids and their epochs (KIP-98) |
//! | `settings`, `options` | Kafka's settings, the program's options |
//!
//! What differs from Kafka 4.4, and from 4.2 and 4.3 when it poses as one of them:
//! - All nodes share one memory: a replica never lags, a log never gets shorter, and a kill loses share state only as far as
//!   `Settings::share_state_delay` says. Nodes are no processes: SIGKILL, SIGSTOP and a cut of the network are emulated, and the kernel goes on
//!   accepting connections. Internal topics do not show; every node has the state of all groups, so no coordinator has to be waited for longer
//!   than for its fencing.
//! - No classic or consumer groups, no quotas, no TLS, no SASL; the requests for these, and all others that
//!   ApiVersions does not list, close the connection. OffsetCommit and OffsetFetch do so, too, though it lists them. A fault throttles
//!   ([`Action::Throttle`]).
//! - Rights are denied by client id ([`Broker::deny`]), not by user, and no request changes them. A name of a resource is whole or `*`.
//!   Transactional ids and AddPartitionsToTxn need none, and authorized operations are never told.
//! - Fetch sessions are never opened (each answer is whole), and nothing is compacted: `cleanup.policy` is kept and told only.
//! - Transactions have no time limit, hold no offsets of groups, and begin with AddPartitionsToTxn, never with a
//!   Produce (KIP-890). EndTxn and InitProducerId write the markers before they answer; Kafka writes them later, and
//!   answers 51 to requests that come before.
//! - Levels of compression and `max.decompressed.message.bytes` are kept and told only. Kafka refuses zstd in Produce
//!   before version 7 and in Fetch before version 10; this broker does not.
//! - Retention drops batches, not segments. When memory is full, producing answers 56, as Kafka does when its disk fails; Kafka ends then.
//! - The limit of record locks holds always; Kafka lets the rest of a batch through that its limit has cut.
//! - A ShareFetch for a group that nobody has joined is answered -1 at once, not at the end of its wait.
//! - When it poses as Kafka 4.2 or 4.3, its settings and the level of `share.version` are that version's; the rest is Kafka 4.4's.
//! - An idle connection is closed within 50 ms after its time; Kafka takes up to 300 ms more, and closes them one after the other.
//!
//! Called by the binary `devbroker` and by tests.

mod batch;
mod configs;
mod core;
mod damage;
mod dispatch;
mod faults;
mod fetch;
mod groups;
mod log;
mod nodes;
mod offsets;
mod options;
mod produce;
mod refusals;
mod rights;
mod scope;
mod sequences;
mod server;
mod settings;
mod share_fetch;
mod share_group;
mod share_partition;
mod share_wire;
mod state;
mod throttle;
mod topics;
mod transactions;

pub use faults::{Action, Bites, Fault, Kind};
pub use options::{DevbrokerConfig, run};
pub use rights::{Denial, Operation, Resource};
pub use settings::{KafkaVersion, MEMORY_LIMIT, Settings};

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use parking_lot::Mutex;

use self::core::{Core, Order};
use self::nodes::Condition;
use self::server::Server;
use self::state::State;
use program::reserved_port::ReservedPort;
use program::stop::Stop;
use program::threads::{self, Thread};

/// Orders that faults may give before one is carried out; more are dropped.
const ORDERS: usize = 64;
/// How often the thread that carries out orders looks for its end.
const KEEP_PAUSE: Duration = Duration::from_millis(20);
/// How long its own port may be in use when it comes back: a process that is just being started has copies of all sockets until it runs its program.
const PORT_WAIT: Duration = Duration::from_secs(1);
const PORT_PAUSE: Duration = Duration::from_millis(5);

/// A broker that runs, with its memory. Dropping it ends it.
pub struct Broker {
    shared: Arc<Shared>,
    threads: Vec<Thread>,
    stop: Stop,
}

struct Shared {
    core: Arc<Core>,
    addresses: Vec<SocketAddr>,
    /// Of its nodes: held while they are down, so that each comes back where it was.
    _ports: Vec<ReservedPort>,
    /// By node; `None` while it is down.
    servers: Mutex<Vec<Option<Server>>>,
    /// Told when a thread dies: whoever runs the broker as a program ends then.
    died: Stop,
}

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
}

impl Broker {
    /// Starts one, empty.
    ///
    /// # Errors
    /// [`StartError`]
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        let ports = each(&settings.listen, server::reserve)?;
        let addresses: Vec<SocketAddr> = ports.iter().map(ReservedPort::address).collect();
        let (orders, to_do) = bounded(ORDERS);
        let announced = announced(&settings, &addresses);
        let core = Arc::new(Core::new(State::new(settings, announced), orders));
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

    /// Where the first node listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.addresses[0]
    }

    /// Where its nodes listen; node ids count from 1.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.shared.addresses
    }

    /// Becomes triggered when a thread of the broker has died.
    pub fn died(&self) -> &Stop {
        &self.shared.died
    }

    /// All of its nodes at once.
    pub fn nodes(&self) -> Nodes<'_> {
        self.shared.only(None)
    }

    /// One of its nodes; ids count from 1.
    pub fn node(&self, id: i32) -> Nodes<'_> {
        self.shared.only(Some(id))
    }

    /// Adds to what shall go wrong.
    pub fn inject(&self, fault: Fault) -> Bites {
        self.shared.core.faults.add(fault)
    }

    /// Nothing more shall go wrong.
    pub fn heal(&self) {
        self.shared.core.faults.clear();
    }

    /// Takes a right away from clients, until [`Self::allow_all`] or until the broker forgets what it knows ([`Action::Forget`]).
    pub fn deny(&self, denial: Denial) {
        self.shared.core.state.lock().rights.deny(denial);
    }

    /// Gives every client every right back.
    pub fn allow_all(&self) {
        self.shared.core.state.lock().rights.allow_all();
    }

    /// Draws what is left to chance from this seed from now on.
    pub fn seed(&self, seed: u64) {
        self.shared.core.faults.seed(seed);
    }

    /// Makes another node the leader of a partition; `false` when there is no such partition, or the node does not serve.
    pub fn move_leader(&self, topic: &str, partition: i32, node: i32) -> bool {
        self.shared.core.change(|state, now| state.move_leader(topic, partition, node, now))
    }

    /// The node that leads a partition; `None` when there is no such partition or no leader.
    pub fn leader(&self, topic: &str, partition: i32) -> Option<i32> {
        let state = self.shared.core.state.lock();
        let partition = state.topics.get(topic)?.partitions.get(usize::try_from(partition).ok()?)?;
        Some(partition.leader).filter(|leader| *leader != nodes::NO_LEADER)
    }

    /// Makes another node the coordinator of a group.
    pub fn move_coordinator(&self, group: &str, node: i32) {
        self.shared.core.state.lock().coordinators.insert(group.to_owned(), node);
    }

    /// Whether a node that runs is fenced, or still reads its state after a restart.
    pub fn is_loading(&self) -> bool {
        self.shared.core.state.lock().is_loading(Instant::now())
    }

    /// Bytes of records that it keeps now.
    pub fn bytes(&self) -> usize {
        self.shared.core.state.lock().bytes()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop.trigger();
        for thread in self.threads.drain(..) {
            // It logged whatever ended it.
            let _ = thread.join();
        }
        self.nodes().kill();
    }
}

/// Some nodes of a broker: what is done is done to each of them.
pub struct Nodes<'a> {
    shared: &'a Shared,
    ids: Vec<i32>,
}

impl Nodes<'_> {
    /// Ends them without a warning: connections break, ports are closed. What the cluster knows stays, but for share state that was not written.
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
    /// Another socket listens on an address, and still does after a second.
    pub fn revive(&self) -> Result<(), StartError> {
        self.ids.iter().try_for_each(|id| self.shared.revive(*id))
    }

    /// SIGSTOP: from now on nothing is answered and no lock runs out; connections stay, and new ones are even accepted.
    pub fn freeze(&self) {
        self.silence(Condition::Frozen);
    }

    /// Cuts the network off without a reset: nothing is answered, connections stay, and locks run out.
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
    /// This node, or all of them; none when there is no such node.
    fn ids(&self, only: Option<i32>) -> Vec<i32> {
        (1..).zip(&self.addresses).map(|(id, _)| id).filter(|id| only.is_none_or(|only| only == *id)).collect()
    }

    fn slot(id: i32) -> usize {
        usize::try_from(id - 1).unwrap_or(usize::MAX)
    }

    /// Starts a node's server on its address, at once or when a process that is just being started has closed its copy of the socket.
    fn serve(&self, id: i32) -> Result<(), StartError> {
        let address = self.addresses[Self::slot(id)];
        let deadline = Instant::now() + PORT_WAIT;
        let listener = loop {
            match std::net::TcpListener::bind(address) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    // A broker whose parts have died ends all the same when it is dropped.
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

    /// Carries out what faults order, each at its time.
    fn carry_out(&self, orders: &Receiver<Order>, stop: &Stop) -> Result<(), StartError> {
        let mut due: Vec<(Instant, Order)> = Vec::new();
        loop {
            let next = due.iter().map(|(at, _)| at.saturating_duration_since(Instant::now())).min();
            match orders.recv_timeout(next.map_or(KEEP_PAUSE, |next| next.min(KEEP_PAUSE))) {
                Ok(order) => {
                    if let Order::Restart { node, .. } = order {
                        self.only(node).kill();
                    }
                    due.push((Instant::now() + order.after(), order));
                }
                Err(RecvTimeoutError::Timeout) if !stop.is_triggered() => {}
                Err(_) => return Ok(()),
            }
            let now = Instant::now();
            for (_, order) in due.extract_if(.., |(at, _)| *at <= now) {
                match order {
                    Order::Thaw { node, .. } => self.only(node).thaw(),
                    Order::Restart { node, forget, .. } => {
                        if forget {
                            self.core.change(|state, _| state.forget());
                        }
                        self.only(node).revive()?;
                    }
                }
            }
        }
    }

    /// This node, or all of them.
    fn only(&self, node: Option<i32>) -> Nodes<'_> {
        Nodes { shared: self, ids: self.ids(node) }
    }
}

/// Takes each address, in one way or another.
fn each<T>(addresses: &[SocketAddr], take: impl Fn(SocketAddr) -> io::Result<T>) -> Result<Vec<T>, StartError> {
    let taken = addresses
        .iter()
        .map(|address| take(*address).map_err(|source| StartError::Listen { address: *address, source }));
    taken.collect()
}

/// The addresses as clients are told: those it listens on, unless the setting `advertised.listeners` names another one for the first node.
fn announced(settings: &Settings, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut announced = addresses.to_vec();
    let other = settings.text("advertised.listeners").strip_prefix("PLAINTEXT://").and_then(|text| text.parse().ok());
    if let (Some(first), Some(other)) = (announced.first_mut(), other) {
        *first = other;
    }
    announced
}
