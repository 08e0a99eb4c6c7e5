//! Holds a TCP port without listening on it.
//!
//! Connections to a held port are refused, and the kernel gives it to no socket that asks for any free port. A listener
//! that names the port can take it, in any process and any number of times. So a program can get its address before it
//! runs, and keeps it between a stop and the next start.
//!
//! Linux only: two sockets with SO_REUSEADDR may share an address while at most one of them listens (ip(7), socket(7)).
//! Called by the drill and the embedded broker (gateways and nodes that restart) and by tests.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// A held port; dropping it frees the port.
#[derive(Debug)]
pub struct ReservedPort {
    _socket: Socket,
    address: SocketAddr,
}

impl ReservedPort {
    /// Holds a free port of the loopback.
    ///
    /// # Errors
    /// The operating system gives no socket, or no port is free.
    pub fn any() -> io::Result<Self> {
        Self::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Holds the port of `address`; with port 0 a free one.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if a socket listens there; others if the operating system gives no socket.
    pub fn at(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // A listener that shares the port must set this, too; those of the standard library and the gateway do.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        let address = socket.local_addr()?.as_socket().unwrap_or(address);
        Ok(Self { _socket: socket, address })
    }

    /// The address with the held port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn held_port_refuses_connections_and_takes_one_listener_after_another() {
        let port = ReservedPort::any().expect("a port");
        for _ in 0..2 {
            // A child of another test that has not yet executed its program may still have the previous round's
            // listener.
            let limit = Instant::now() + Duration::from_secs(10);
            let refused = loop {
                let Err(refused) = TcpStream::connect(port.address()) else {
                    assert!(Instant::now() < limit, "no listener yet");
                    continue;
                };
                break refused;
            };
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            let listener = TcpListener::bind(port.address()).expect("a listener may take it");
            TcpStream::connect(port.address()).expect("it listens");
            let second = ReservedPort::at(port.address()).expect_err("a socket listens there");
            assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
            drop(listener);
        }
    }

    #[test]
    fn held_port_is_given_to_no_socket_that_does_not_share_it() {
        let port = ReservedPort::any().expect("a port");
        let stranger = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        assert_eq!(stranger.bind(&port.address().into()).expect_err("held").kind(), io::ErrorKind::AddrInUse);
        assert_ne!(ReservedPort::any().expect("another port").address(), port.address());
        let address = port.address();
        drop(port);
        stranger.bind(&address.into()).expect("it was let go");
    }
}
