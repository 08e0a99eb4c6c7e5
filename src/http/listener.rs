//! The listening socket, and the watch that connects to it from outside.

use super::load::Load;
use crate::healthcheck::reachable;
use program::http::{Client, Failure};
use program::stop::Stop;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 1024;
/// How long a caller may read nothing before its response is abandoned.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a caller may acknowledge nothing before it counts as gone (tcp(7), TCP_USER_TIMEOUT).
#[cfg(target_os = "linux")]
const PEER_TIMEOUT: Duration = Duration::from_secs(10);
/// After this much silence the kernel probes the caller, so that a vanished caller does not hold its thread forever.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How often the watch connects to the gateway's port, and how long an answer may take.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);
const WATCH_TIMEOUT: Duration = Duration::from_secs(5);
/// After this many failures in a row the listener counts as deaf.
const WATCH_FAILURES: u32 = 3;

/// Opens the listening socket. On Linux accepted sockets inherit its settings.
///
/// # Errors
/// The address is in use, or the process may not bind it.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Otherwise (Nagle) a response of two segments waits 40 ms for the caller's acknowledgement on a kept connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    // Elsewhere such a caller is found by the time limits of its request and response.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Sends requests to the gateway's own port for callers until stopped: no other check notices a deaf listener.
///
/// # Errors
/// The port did not answer [`WATCH_FAILURES`] times in a row.
pub(crate) fn watch(address: SocketAddr, load: &Load, stop: &Stop) -> Result<(), String> {
    let address = reachable(address);
    let mut failures = 0;
    while stop.sleep(WATCH_INTERVAL).is_ok() {
        // A kept connection would not reach the listener.
        let response = Client::new(address, Stop::new()).get("/livez", WATCH_TIMEOUT);
        if is_deaf(&mut failures, load.is_full(), response.err()) {
            return Err(format!("the HTTP port {address} is deaf"));
        }
    }
    Ok(())
}

/// Counts failures in a row. A port is not deaf while all seats are taken.
fn is_deaf(failures: &mut u32, full: bool, failure: Option<Failure>) -> bool {
    match failure {
        None => *failures = 0,
        Some(_) if full => *failures = 0,
        Some(failure) => {
            *failures += 1;
            log::warn!("the gateway's own port does not answer ({failure}), {failures} of {WATCH_FAILURES}");
        }
    }
    *failures >= WATCH_FAILURES
}

/// Wakes the thread that waits for a connection on this listener.
pub(crate) fn wake(address: SocketAddr) {
    // A failure means that the listener is closed.
    let _ = TcpStream::connect_timeout(&reachable(address), Duration::from_millis(100));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn local() -> TcpListener {
        listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port")
    }

    #[test]
    fn accepted_sockets_inherit_the_settings_of_the_listener() {
        let listener = local();
        let _near = TcpStream::connect(listener.local_addr().expect("an address")).expect("it listens");
        let (accepted, _) = listener.accept().expect("a connection");
        assert!(accepted.nodelay().expect("readable"));
        assert_eq!(accepted.write_timeout().expect("readable"), Some(SEND_TIMEOUT));
        let socket = socket2::SockRef::from(&accepted);
        assert_eq!(socket.tcp_user_timeout().expect("readable"), Some(PEER_TIMEOUT));
        assert!(socket.keepalive().expect("readable"));
    }

    #[test]
    fn port_in_use_is_an_error() {
        let listener = local();
        let error = listen(listener.local_addr().expect("an address")).expect_err("in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn port_is_deaf_after_failures_in_a_row_and_never_while_seats_are_full() {
        let failure = || Some(Failure::Cut("no answer in time".to_owned()));
        let mut failures = 0;
        assert!(!is_deaf(&mut failures, false, failure()) && !is_deaf(&mut failures, false, failure()));
        assert!(!is_deaf(&mut failures, false, None), "one answer is enough");
        assert!(!is_deaf(&mut failures, false, failure()) && !is_deaf(&mut failures, false, failure()));
        assert!(!is_deaf(&mut failures, true, failure()), "all seats are taken");
        assert!(!is_deaf(&mut failures, false, failure()) && !is_deaf(&mut failures, false, failure()));
        assert!(is_deaf(&mut failures, false, failure()));
    }
}
