//! The embedded broker: Kafka's protocol and the semantics of its share groups, in memory, in this process.
//!
//! For trying the system out with nothing but cargo, and for tests, which can produce on demand what a real broker shows once a month
//! ([`Fault`]). It keeps nothing on disk, has no replicas, no security and no limits on who may connect, so it listens on the loopback only; it
//! is no way to run anything that matters. The same tests run against it and against Apache Kafka.
//!
//! | module | noun |
//! |---|---|
//! | `server` | sockets, threads |
//! | `core` | one request with its faults, waiting, time |
//! | `dispatch`, `share_wire`, `refusals`, `throttle` | bytes to requests, answers to bytes |
//! | `faults` | what shall go wrong |
//! | `state` | everything it knows, behind one lock |
//! | `rights` | which client may do what |
//! | `produce`, `fetch`, `offsets`, `committed`, `topics`, `configs`, `groups` | the requests about topics and groups |
//! | `share_group`, `share_fetch`, `share_partition` | members, sessions, records of share groups (KIP-932) |
//! | `log`, `batch`, `sequences` | a partition's records and its producers |
//! | `settings`, `options` | Kafka's settings, the program's options |
//!
//! What differs from Kafka 4.4, and from 4.2 and 4.3 when it poses as one of them:
//! - One replica of everything; more than one node is several addresses of one memory. Internal topics do not show.
//! - No transactions, no classic or consumer groups, no quotas, no TLS, no SASL; the requests for these, and all others that
//!   ApiVersions does not list, close the connection. A fault throttles ([`Action::Throttle`]).
//! - Rights are denied by client id ([`Broker::deny`]), not by user, and no request changes them. A name of a resource is whole or `*`.
//!   Transactional ids need none, and authorized operations are never told.
//! - Fetch sessions are never opened (each answer is whole), and nothing is compacted: `cleanup.policy` is kept and told only.
//! - A topic with a `compression.type` of its own is given uncompressed batches as they are; of the compressed ones for a topic that says
//!   `uncompressed` only those with snappy are unpacked, the others refused (76).
//! - Retention drops batches, not segments. When memory is full, producing answers 56, as Kafka does when its disk fails; Kafka ends then.
//! - The limit of record locks holds always; Kafka lets the rest of a batch through that its limit has cut.
//! - A ShareFetch for a group that nobody has joined is answered -1 at once, not at the end of its wait.
//! - When it poses as Kafka 4.2 or 4.3, its settings and the level of `share.version` are that version's; the rest is Kafka 4.4's.
//! - An idle connection is closed within 50 ms after its time; Kafka takes up to 300 ms more, and closes them one after the other.
//! - Share state is written at once, so that no restart repeats more than what was locked.
//!
//! Called by the binary `devbroker` and by tests.

mod batch;
mod committed;
mod configs;
mod core;
mod dispatch;
mod faults;
mod fetch;
mod groups;
mod log;
mod offsets;
mod options;
mod produce;
mod refusals;
mod rights;
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
use self::server::Server;
use self::state::State;
use crate::reserved_port::ReservedPort;
use crate::stop::Stop;
use crate::threads::{self, Thread};

/// After a restart leaders and coordinators read their state for so long, as seen with Kafka (40 to 200 ms).
const LOADING: Duration = Duration::from_millis(100);
/// Orders that faults may give before one is carried out; more are dropped.
const ORDERS: usize = 64;
/// How long its own port may be in use when it comes back: a process that is just being started has copies of all sockets until it runs its program.
const PORT_WAIT: Duration = Duration::from_secs(1);
const PORT_PAUSE: Duration = Duration::from_millis(5);

/// A broker that runs, with its memory. Dropping it ends it.
pub struct Broker {
    shared: Arc<Shared>,
    keeper: Option<Thread>,
    keeper_stop: Stop,
}

struct Shared {
    core: Arc<Core>,
    addresses: Vec<SocketAddr>,
    /// Of its nodes: held while it is down, so that it comes back where it was.
    _ports: Vec<ReservedPort>,
    server: Mutex<Option<Server>>,
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
        let listeners = each(&addresses, std::net::TcpListener::bind)?;
        let (orders, to_do) = bounded(ORDERS);
        let announced = announced(&settings, &addresses);
        let core = Arc::new(Core::new(State::new(settings, announced), orders));
        let shared = Arc::new(Shared { core, addresses, _ports: ports, server: Mutex::new(None), died: Stop::new() });
        shared.serve(listeners)?;
        let keeper_stop = Stop::new();
        let keeper = {
            let (shared, stop) = (Arc::clone(&shared), keeper_stop.clone());
            threads::spawn("devbroker-keep", shared.died.clone(), move || shared.carry_out(&to_do, &stop))
        };
        Ok(Self { shared, keeper: Some(keeper), keeper_stop })
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

    /// Ends it without a warning: connections break, the port is closed. What it knows stays.
    pub fn kill(&self) {
        self.shared.kill();
    }

    /// Starts it again after [`Self::kill`], on the same addresses.
    ///
    /// # Errors
    /// Somebody else listens there now.
    pub fn revive(&self) -> Result<(), StartError> {
        self.shared.revive()
    }

    /// From now on nothing is answered and no lock runs out; connections stay, and new ones are even accepted.
    pub fn freeze(&self) {
        self.shared.core.freeze();
    }

    /// Ends a freeze.
    pub fn thaw(&self) {
        self.shared.core.thaw();
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

    /// Makes another node the leader of a partition; `false` when there is no such partition or node.
    pub fn move_leader(&self, topic: &str, partition: i32, node: i32) -> bool {
        let moved = self.shared.core.state.lock().move_leader(topic, partition, node);
        self.shared.core.changed.notify_all();
        moved
    }

    /// Makes another node the coordinator of a group.
    pub fn move_coordinator(&self, group: &str, node: i32) {
        self.shared.core.state.lock().coordinators.insert(group.to_owned(), node);
    }

    /// Whether its leaders and coordinators still read their state after a restart.
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
        self.keeper_stop.trigger();
        if let Some(keeper) = self.keeper.take() {
            // It logged whatever ended it.
            let _ = keeper.join();
        }
        self.shared.kill();
    }
}

impl Shared {
    fn serve(&self, listeners: Vec<std::net::TcpListener>) -> Result<(), StartError> {
        let address = self.addresses[0];
        let server = Server::start(&self.core, listeners, &self.died);
        *self.server.lock() = Some(server.map_err(|source| StartError::Listen { address, source })?);
        Ok(())
    }

    fn kill(&self) {
        let server = self.server.lock().take();
        if let Some(server) = server {
            server.end();
        }
    }

    fn revive(&self) -> Result<(), StartError> {
        self.kill();
        let deadline = Instant::now() + PORT_WAIT;
        let listeners = loop {
            match each(&self.addresses, std::net::TcpListener::bind) {
                Err(StartError::Listen { source, .. })
                    if source.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline =>
                {
                    // A broker whose parts have died ends all the same when it is dropped.
                    let _ = self.died.sleep(PORT_PAUSE);
                }
                bound => break bound?,
            }
        };
        self.core.state.lock().restart(Instant::now(), LOADING);
        self.serve(listeners)
    }

    /// Carries out what faults order.
    fn carry_out(&self, orders: &Receiver<Order>, stop: &Stop) -> Result<(), StartError> {
        loop {
            match orders.recv_timeout(Duration::from_millis(20)) {
                Ok(Order::Thaw { after }) => {
                    // A stop thaws as well: nobody shall wait for ever.
                    let _ = stop.sleep(after);
                    self.core.thaw();
                }
                Ok(Order::Restart { after, forget }) => {
                    self.kill();
                    if stop.sleep(after).is_err() {
                        return Ok(());
                    }
                    if forget {
                        let mut state = self.core.state.lock();
                        *state = State::new(state.settings.clone(), state.nodes.clone());
                    }
                    self.revive()?;
                }
                Err(RecvTimeoutError::Timeout) if !stop.is_triggered() => {}
                Err(_) => return Ok(()),
            }
        }
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
