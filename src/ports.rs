//! A port of this machine that nobody listens on. Not a reservation: it is free until somebody takes it.
//!
//! Called by the drill, which tells the gateways that it starts where to listen, and by tests.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use socket2::{Domain, Socket, Type};

/// Below the ports that Linux gives to outgoing connections (ip(7), `ip_local_port_range`), so that none of those takes it between a
/// stop and the start after it.
const FIRST: u16 = 10_240;
const COUNT: u16 = 9_000;

/// An address on loopback that nobody listens on. Each call in a process gives another one, and processes start at different places.
///
/// # Errors
/// The operating system gives no socket, or every port is taken.
pub fn unused() -> io::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id().wrapping_mul(64) % u32::from(COUNT);
    for _ in 0..COUNT {
        let turn = u32::from(NEXT.fetch_add(1, Relaxed));
        let port = u16::try_from((start + turn) % u32::from(COUNT)).map_err(io::Error::other)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST + port));
        match bind(address) {
            Ok(()) => return Ok(address),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!("each of the ports {FIRST} to {} is in use", FIRST + COUNT - 1),
    ))
}

/// Asks without listening: a process that is being started has a copy of each socket of its parent until its program begins, and one
/// that listened would keep the port for that long, whoever closed it here.
fn bind(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn nobody_listens_and_somebody_can() {
        let address = unused().expect("a port");
        let refused = TcpStream::connect(address).expect_err("nobody listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_ne!(address, unused().expect("another port"));
        let listener = TcpListener::bind(address).expect("it is free");
        assert_eq!(bind(address).expect_err("somebody listens").kind(), io::ErrorKind::AddrInUse);
        drop(listener);
    }
}
