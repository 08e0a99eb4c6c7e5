use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use kafka_protocol::messages::MetadataRequest;
use socket2::{Domain, SockRef, Socket, Type};

use super::super::resolve::Resolver;
use super::*;

const SOON: Duration = Duration::from_secs(5);

/// Makes a connection and the socket at its other end.
fn pair() -> (Connection, TcpStream, ClientOptions) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let options = ClientOptions::new(vec![BrokerAddress::new("127.0.0.1", port)], "test");
    let connection = Connection::open(&options.bootstrap[0], &options).expect("the listener takes it");
    (connection, listener.accept().expect("our own connection").0, options)
}

fn read_frame(far: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 4];
    far.read_exact(&mut length).expect("a length");
    let mut frame = vec![0; usize::try_from(i32::from_be_bytes(length)).expect("not negative")];
    far.read_exact(&mut frame).expect("the frame");
    frame
}

fn metadata() -> MetadataRequest {
    MetadataRequest::default().with_topics(Some(Vec::new())).with_allow_auto_topic_creation(false)
}

#[test]
fn request_is_encoded_as_the_known_bytes() {
    let (mut connection, mut far, _) = pair();
    connection.send(12, &metadata()).expect("sent");
    // Key 3, version 12, correlation 0, client id "test", no tags; no topics (compact: length + 1), no creation, no
    // authorized operations, no tags.
    let expected = b"\x00\x03\x00\x0c\x00\x00\x00\x00\x00\x04test\x00\x01\x00\x00\x00";
    assert_eq!(read_frame(&mut far), expected);
    connection.send_body(78, 2, true, b"body").expect("sent");
    assert_eq!(read_frame(&mut far), b"\x00\x4e\x00\x02\x00\x00\x00\x01\x00\x04test\x00body");
}

#[test]
fn partial_frame_is_resumed() {
    let (mut connection, mut far, _) = pair();
    let correlation = connection.send_body(78, 2, true, b"").expect("sent");
    // Length 10: correlation 0, no tags, five bytes of body. The frame comes in three pieces.
    far.write_all(b"\x00\x00").expect("sent");
    assert_eq!(connection.receive(correlation, Duration::from_millis(5)).expect("still good"), None);
    far.write_all(b"\x00\x0a\x00\x00\x00\x00\x00he").expect("sent");
    assert_eq!(connection.receive(correlation, Duration::from_millis(5)).expect("still good"), None);
    assert!(!connection.is_broken());
    far.write_all(b"llo").expect("sent");
    let body = connection.receive(correlation, SOON).expect("good").expect("whole");
    assert_eq!(&body[..], b"hello");
}

#[test]
fn responses_that_arrive_together_are_received_separately() {
    let (mut connection, mut far, _) = pair();
    let first = connection.send_body(78, 2, true, b"").expect("sent");
    let second = connection.send_body(79, 2, true, b"").expect("sent");
    far.write_all(b"\x00\x00\x00\x06\x00\x00\x00\x00\x00a\x00\x00\x00\x06\x00\x00\x00\x01\x00b").expect("sent");
    assert_eq!(&connection.receive(first, SOON).expect("good").expect("whole")[..], b"a");
    assert_eq!(&connection.receive(second, Duration::ZERO).expect("good").expect("already here")[..], b"b");
}

#[test]
fn wrong_correlation_id_closes_connection() {
    let (mut connection, mut far, _) = pair();
    far.write_all(b"\x00\x00\x00\x06\x00\x00\x00\x07\x00x").expect("sent");
    let error = connection.call(12, &metadata(), SOON).expect_err("not ours");
    assert!(matches!(&error, KafkaError::Malformed { detail, .. } if detail.contains("correlation")), "{error}");
    assert!(connection.is_broken());
    assert!(matches!(connection.send(12, &metadata()), Err(KafkaError::Closed { .. })));
    assert_eq!(far.read(&mut [0; 512]).ok().and_then(|_| far.read(&mut [0; 1]).ok()), Some(0), "closed by the client");
}

#[test]
fn web_server_is_reported_as_no_broker() {
    let (mut connection, mut far, _) = pair();
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("sent");
    let error = connection.call(12, &metadata(), SOON).expect_err("not Kafka");
    assert!(error.to_string().contains("HTTP"), "{error}");
    assert_eq!(error.retry(), super::super::Retry::Reconnect);
}

#[test]
fn frames_of_impossible_size_are_refused() {
    for length in [-1, 0, 3, i32::MAX] {
        let (mut connection, mut far, _) = pair();
        far.write_all(&length.to_be_bytes()).expect("sent");
        let error = connection.call(12, &metadata(), SOON).expect_err("not a frame");
        assert!(matches!(error, KafkaError::Malformed { .. }), "{length}: {error}");
    }
}

#[test]
fn undecodable_response_closes_connection() {
    let (mut connection, mut far, _) = pair();
    far.write_all(b"\x00\x00\x00\x08\x00\x00\x00\x00\x00\xff\xff\xff").expect("sent");
    let error = connection.call(12, &metadata(), SOON).expect_err("cut short");
    assert!(matches!(&error, KafkaError::Malformed { detail, .. } if detail.contains("Metadata")), "{error}");
    assert!(connection.is_broken());
}

#[test]
fn connection_to_silent_broker_closes_at_deadline() {
    let (mut connection, _far, _) = pair();
    let since = Instant::now();
    let error = connection.call(12, &metadata(), Duration::from_millis(50)).expect_err("silence");
    assert!(matches!(error, KafkaError::Timeout { request: "Metadata", .. }), "{error}");
    assert!(connection.is_broken());
    assert!((Duration::from_millis(50)..SOON).contains(&since.elapsed()));
}

#[test]
fn error_names_broker_that_closed_connection() {
    let (mut connection, far, options) = pair();
    drop(far);
    let error = connection.call(12, &metadata(), SOON).expect_err("closed");
    assert!(matches!(error, KafkaError::Closed { .. } | KafkaError::Io { .. }), "{error}");
    assert!(error.to_string().contains(&options.bootstrap[0].to_string()), "{error}");
}

#[test]
fn idle_connection_notices_that_it_was_closed() {
    let (mut connection, far, _) = pair();
    assert!(connection.is_alive());
    drop(far);
    let deadline = Instant::now() + SOON;
    // The kernel needs a moment to deliver the end of a connection.
    while connection.is_alive() {
        assert!(Instant::now() < deadline, "the connection looks alive though the broker closed it");
    }
    assert!(connection.is_broken());
}

#[test]
fn write_without_a_reader_ends_at_its_deadline() {
    let (mut connection, _far, _) = pair();
    connection.write_timeout = Duration::from_millis(50);
    let body = vec![0; 64 << 20];
    let error = connection.send_body(0, 7, false, &body).expect_err("no buffer takes so much");
    assert!(matches!(error, KafkaError::Io { .. }), "{error}");
    assert!(connection.is_broken());
}

#[test]
fn interrupt_wakes_blocked_receive() {
    let (mut connection, _far, options) = pair();
    let correlation = connection.send(12, &metadata()).expect("sent");
    let (blocked, started) = crossbeam_channel::bounded::<()>(1);
    let since = std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            blocked.send(()).expect("the test waits for this");
            connection.receive(correlation, Duration::from_secs(60))
        });
        started.recv().expect("the thread has started");
        let since = Instant::now();
        options.interrupter.interrupt();
        let answer = reader.join().expect("the read returns");
        assert!(matches!(answer, Err(KafkaError::Interrupted)), "{answer:?}");
        since.elapsed()
    });
    assert!(since < SOON);
    assert!(matches!(Connection::open(&options.bootstrap[0], &options), Err(KafkaError::Interrupted)));
}

#[test]
fn error_names_closed_port() {
    let port = program::reserved_port::ReservedPort::any().expect("a free port");
    let address = port.address();
    let options = ClientOptions::new(vec![BrokerAddress::new("127.0.0.1", address.port())], "test");
    let error = Connection::open(&options.bootstrap[0], &options).expect_err("a closed port");
    assert!(error.to_string().starts_with(&format!("cannot connect to {address}")), "{error}");
}

#[test]
fn socket_notices_peer_that_is_gone() {
    let (connection, _far, _) = pair();
    let socket = SockRef::from(connection.transport.socket());
    let seconds = Duration::from_secs;
    assert!(socket.keepalive().expect("a socket") && socket.tcp_nodelay().expect("a socket"));
    assert_eq!(socket.tcp_keepalive_time().expect("a socket"), seconds(3));
    assert_eq!(socket.tcp_keepalive_interval().expect("a socket"), seconds(3));
    assert_eq!(socket.tcp_keepalive_retries().expect("a socket"), 2);
    assert_eq!(socket.tcp_user_timeout().expect("a socket"), Some(seconds(10)));
}

/// An address at which connecting neither succeeds nor fails: a listener that never accepts, with a full queue.
struct BlackHole {
    _listener: Socket,
    _queued: Vec<Socket>,
}

impl BlackHole {
    fn at(address: SocketAddr) -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.bind(&address.into()).expect("a free address");
        listener.listen(0).expect("it listens");
        let mut queued = Vec::new();
        loop {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            if socket.connect_timeout(&address.into(), Duration::from_millis(200)).is_err() {
                return Self { _listener: listener, _queued: queued };
            }
            queued.push(socket);
        }
    }
}

/// Makes two addresses with one port: a black hole, and a listener.
fn hole_and_listener() -> (BlackHole, TcpListener, [IpAddr; 2], u16) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let addresses = [IpAddr::from([127, 0, 0, 2]), IpAddr::from(Ipv4Addr::LOCALHOST)];
    (BlackHole::at(SocketAddr::new(addresses[0], port)), listener, addresses, port)
}

#[test]
fn black_hole_does_not_shadow_second_address() {
    let (_hole, _listener, addresses, port) = hole_and_listener();
    let mut options = ClientOptions::new(vec![BrokerAddress::new("kafka", port)], "test");
    options.resolver = Resolver::with(move |_| Ok(addresses.to_vec()));
    let since = Instant::now();
    // Each attempt begins at another address; the black hole costs its share of the time once.
    for _ in 0..4 {
        let connection = Connection::open(&options.bootstrap[0], &options).expect("the second takes it");
        assert_eq!(connection.transport.socket().peer_addr().map(|peer| peer.ip()).ok(), Some(addresses[1]));
    }
    assert!(since.elapsed() < 2 * options.connect_timeout, "{:?}", since.elapsed());
}

#[test]
fn look_up_ends_at_connect_timeout_and_its_late_result_is_used() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let (release, hangs) = crossbeam_channel::bounded::<()>(0);
    let mut options = ClientOptions::new(vec![BrokerAddress::new("kafka", port)], "test");
    options.connect_timeout = Duration::from_millis(100);
    options.resolver = Resolver::with(move |_| {
        let _ = hangs.recv();
        Ok(vec![IpAddr::from(Ipv4Addr::LOCALHOST)])
    });
    let since = Instant::now();
    let error = Connection::open(&options.bootstrap[0], &options).expect_err("no address yet");
    assert!(error.to_string().contains("name server"), "{error}");
    assert!(since.elapsed() < SOON);
    drop(release);
    let deadline = Instant::now() + SOON;
    while let Err(error) = Connection::open(&options.bootstrap[0], &options) {
        assert!(Instant::now() < deadline, "{error}");
    }
}

#[test]
fn interrupt_ends_attempt_to_connect() {
    let (_hole, _listener, addresses, port) = hole_and_listener();
    let mut options = ClientOptions::new(vec![BrokerAddress::new(addresses[0].to_string(), port)], "test");
    options.connect_timeout = Duration::from_secs(60);
    let since = Instant::now();
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| Connection::open(&options.bootstrap[0], &options).map(|_| ()));
        // By then the attempt has begun; an earlier interrupt would refuse it at once.
        options.interrupter.child().sleep(Duration::from_millis(100)).expect("not interrupted yet");
        options.interrupter.interrupt();
        let outcome = connecting.join().expect("no panic");
        assert!(matches!(outcome, Err(KafkaError::Interrupted)), "{outcome:?}");
    });
    assert!(since.elapsed() < SOON);
}

/// On a dead path the kernel ends the connection (tcp(7), TCP_USER_TIMEOUT). Reported as closed by the broker, the
/// broker would count as alive.
#[test]
fn dead_path_is_not_reported_as_closed_by_broker() {
    let (mut connection, _far, _) = pair();
    SockRef::from(connection.transport.socket()).set_tcp_user_timeout(Some(Duration::from_millis(300))).expect("set");
    let correlation = connection.send_body(78, 2, true, b"").expect("sent");
    // Fill both buffers; the other end reads nothing.
    connection.transport.socket().set_nonblocking(true).expect("set");
    while (connection.transport.socket()).write(&[0; 64 * 1024]).is_ok() {}
    connection.transport.socket().set_nonblocking(false).expect("set");
    let error = connection.receive(correlation, SOON).expect_err("it is dead");
    assert!(matches!(&error, KafkaError::Io { source, .. } if source.kind() == ErrorKind::TimedOut), "{error}");
}
