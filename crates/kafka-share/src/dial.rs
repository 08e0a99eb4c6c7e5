//! Connects to a broker. All addresses of its name share the time; the socket notices a peer that is gone.
//!
//! Every wait can be interrupted: a socket is registered before it is connected. Called by
//! [`Connection::open`](super::connection::Connection::open).

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::address::BrokerAddress;
use super::client_options::ClientOptions;
use super::error::KafkaError;
use super::interrupt::Registration;

/// Each address of a name gets at least this long: enough for a round trip to another continent.
const SHORTEST_TRY: Duration = Duration::from_millis(250);
/// Two keepalive probes, this far apart, follow this much silence. A host that is gone is noticed within a lock (15 s).
/// A frozen broker is not disturbed, since its kernel answers.
const KEEPALIVE: Duration = Duration::from_secs(3);
const KEEPALIVE_PROBES: u32 = 2;
/// Keepalive does nothing while written bytes are unacknowledged; this limit ends that wait (tcp(7), TCP_USER_TIMEOUT).
/// Without it a worker that renewed into a black hole noticed nothing in 45 s, the length of the measurement.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to the first address of the broker's name that takes a connection. The look-up of the name and the
/// connecting have one connect timeout each.
pub(super) fn dial(broker: &BrokerAddress, options: &ClientOptions) -> io::Result<(Arc<TcpStream>, Registration)> {
    let (host, limit) = (broker.host.as_str(), options.connect_timeout);
    let addresses = options.resolver.addresses(host, limit, &options.interrupter)?;
    let deadline = Instant::now() + limit;
    let mut last = io::Error::from(ErrorKind::TimedOut);
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        match connect(SocketAddr::new(*address, broker.port), share.max(SHORTEST_TRY), options) {
            Ok(connected) => return Ok(connected),
            Err(_) if options.interrupter.is_interrupted() => return Err(ErrorKind::Interrupted.into()),
            Err(error) => last = error,
        }
        options.resolver.failed(host, *address);
    }
    Err(last)
}

fn connect(
    address: SocketAddr,
    limit: Duration,
    options: &ClientOptions,
) -> io::Result<(Arc<TcpStream>, Registration)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A request is one write; waiting to fill a segment would add 40 ms to every call.
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_PROBES))?;
    // Elsewhere a dead path is found by the keepalive probes, and by the limit of each request.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    let socket = Arc::new(TcpStream::from(socket));
    let registration = options.interrupter.register(&socket).map_err(interrupted)?;
    SockRef::from(&*socket).connect_timeout(&address.into(), limit)?;
    refuse_self(&socket, address)?;
    Ok((socket, registration))
}

fn interrupted(_: KafkaError) -> io::Error {
    ErrorKind::Interrupted.into()
}

/// While a broker on this machine is down, the system may pick the broker's port for this end. The socket is then
/// connected to itself, and the broker cannot bind its port.
fn refuse_self(socket: &TcpStream, address: SocketAddr) -> io::Result<()> {
    if socket.local_addr()? == address { Err(ErrorKind::ConnectionRefused.into()) } else { Ok(()) }
}
