use std::net::TcpListener;

use rustls::{ServerConnection, StreamOwned};

use super::super::certificates::{Authority, Folder, accept};
use super::super::tls::{Tls, TlsFiles};
use super::*;

const SOON: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(20);

type Server = StreamOwned<ServerConnection, TcpStream>;

fn soon() -> Instant {
    Instant::now() + SOON
}

/// A transport in TLS whose handshake has not begun, and a listener's end to serve.
fn pair() -> (Transport, Server) {
    let (folder, authority) = (Folder::new(), Authority::new());
    let files = TlsFiles { authorities: Some(folder.write("ca.pem", &authority.pem())), identity: None };
    let session = Tls::load(files).expect("usable").session("localhost").expect("a name");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let socket = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    let server = accept(&listener, &authority.issue("localhost").server());
    server.sock.set_read_timeout(Some(SOON)).expect("set");
    (Transport::new(Arc::new(socket), Some(session)), server)
}

/// As [`pair`], after the handshake.
fn connected() -> (Transport, Server) {
    let (mut transport, mut server) = pair();
    std::thread::scope(|scope| {
        scope.spawn(|| server.write_all(&[0]).expect("a handshake"));
        assert_eq!(transport.read(&mut [0], soon()).expect("a handshake"), Some(1));
    });
    assert!(!transport.is_handshaking());
    (transport, server)
}

/// Moves bytes between two ends, one at a time, until one of them closes.
fn trickle(mut from: TcpStream, mut to: TcpStream) {
    let mut byte = [0];
    while from.read_exact(&mut byte).is_ok() && to.write_all(&byte).is_ok() {}
    let _ = to.shutdown(Shutdown::Write);
}

#[test]
fn what_is_written_before_the_handshake_arrives_after_it() {
    let (mut transport, mut server) = pair();
    transport.write(b"question", soon()).expect("kept by the session");
    assert!(transport.is_handshaking());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut asked = [0; 8];
            server.read_exact(&mut asked).expect("the question");
            assert_eq!(&asked, b"question");
            server.write_all(b"answer").expect("sent");
        });
        // No other call than reading drives the handshake.
        let mut answer = [0; 16];
        assert_eq!(transport.read(&mut answer, soon()).expect("good"), Some(6));
        assert_eq!(&answer[..6], b"answer");
    });
}

#[test]
fn wait_for_a_silent_peer_ends_at_its_deadline_and_goes_on_later() {
    let (mut transport, mut server) = pair();
    let since = Instant::now();
    for _ in 0..2 {
        assert_eq!(transport.read(&mut [0; 16], Instant::now() + SHORT).expect("still good"), None);
    }
    assert!((2 * SHORT..SOON).contains(&since.elapsed()), "{:?}", since.elapsed());
    std::thread::scope(|scope| {
        scope.spawn(|| server.write_all(b"late").expect("a handshake"));
        assert_eq!(transport.read(&mut [0; 16], soon()).expect("good"), Some(4));
    });
}

#[test]
fn bytes_that_come_singly_make_the_same_connection() {
    let (mut transport, mut server) = pair();
    // Put a slow wire between the two ends.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    let far = listener.accept().expect("our own connection").0;
    let inner = std::mem::replace(&mut transport.socket, Arc::new(near));
    let outer = Arc::into_inner(inner).expect("the only handle");
    let handle = |socket: &TcpStream| socket.try_clone().expect("a handle");
    for socket in [&far, &outer, &*transport.socket] {
        socket.set_nodelay(true).expect("set");
    }
    std::thread::scope(|scope| {
        let (up, down) = ((handle(&far), handle(&outer)), (handle(&outer), handle(&far)));
        scope.spawn(|| trickle(up.0, up.1));
        scope.spawn(|| trickle(down.0, down.1));
        scope.spawn(|| {
            server.write_all(&[7; 5000]).expect("sent");
            let _ = server.read(&mut [0; 1]);
            let _ = server.sock.shutdown(Shutdown::Both);
        });
        let (mut received, mut into, deadline) = (0, [0; 512], soon());
        while received < 5000 && Instant::now() < deadline {
            // Short waits: most end in the middle of a record.
            received += transport.read(&mut into, Instant::now() + SHORTEST_WAIT).expect("good").unwrap_or(0);
        }
        transport.close();
        assert_eq!(received, 5000);
    });
}

#[test]
fn read_without_time_gets_all_that_one_record_brought() {
    let (mut transport, mut server) = connected();
    server.write_all(&[1; 16_000]).expect("sent");
    let mut into = [0; 1000];
    assert_eq!(transport.read(&mut into, soon()).expect("good"), Some(1000));
    for _ in 1..16 {
        // The socket is empty: the rest is in the session.
        assert_eq!(transport.read(&mut into, Instant::now()).expect("good"), Some(1000));
    }
    assert_eq!(transport.read(&mut into, Instant::now()).expect("good"), None);
}

#[test]
fn end_with_and_without_farewell_reads_as_the_end() {
    for farewell in [true, false] {
        let (mut transport, mut server) = connected();
        if farewell {
            server.conn.send_close_notify();
            server.flush().expect("sent");
        }
        drop(server);
        assert_eq!(transport.read(&mut [0; 16], soon()).expect("an end"), Some(0), "farewell {farewell}");
    }
}

#[test]
fn interrupt_from_another_thread_ends_a_handshake() {
    let (mut transport, _server) = pair();
    let socket = Arc::clone(&transport.socket);
    let since = Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || transport.read(&mut [0], Instant::now() + Duration::from_secs(60)));
        socket.shutdown(Shutdown::Both).expect("open");
        // A broken pipe if the shutdown comes before the first message.
        let outcome = waiting.join().expect("no panic");
        assert!(matches!(outcome, Ok(Some(0)) | Err(_)), "{outcome:?}");
    });
    assert!(since.elapsed() < SOON);
}

#[test]
fn idle_session_is_alive_until_the_peer_ends_it() {
    let (mut transport, mut server) = connected();
    // The tickets of the handshake may still wait in the socket.
    assert!(transport.is_alive() && transport.is_alive());
    server.conn.send_close_notify();
    server.flush().expect("sent");
    let deadline = soon();
    while transport.is_alive() {
        assert!(Instant::now() < deadline, "the session looks alive though the peer has ended it");
    }
}

#[test]
fn write_without_a_reader_ends_at_its_deadline() {
    let (mut transport, _server) = connected();
    let error = transport.write(&vec![0; 64 << 20], Instant::now() + SHORT).expect_err("no buffer takes so much");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[test]
fn foreign_bytes_are_a_fault_of_tls() {
    let (mut transport, server) = pair();
    (&server.sock).write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("sent");
    let error = transport.read(&mut [0], soon()).expect_err("no TLS");
    assert!(super::super::tls::session_error(&error).is_some(), "{error}");
}
