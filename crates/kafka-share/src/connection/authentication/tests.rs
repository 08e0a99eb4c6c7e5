use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use kafka_protocol::messages::{SaslAuthenticateResponse, SaslHandshakeResponse};
use kafka_protocol::protocol::Encodable;

use super::*;
use crate::certificates::Folder;
use crate::login::SecretSource;
use crate::sasl::Mechanism;
use crate::{BrokerAddress, ClientOptions, Retry};

const SOON: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(20);
const HANDSHAKE: i16 = 17;
const AUTHENTICATE: i16 = 36;
const SHARE_FETCH: i16 = 78;

/// A broker that a test plays.
struct Far(TcpStream);

/// A request's key, correlation id, and everything after it.
type Asked = (i16, i32, Vec<u8>);

impl Far {
    /// Waits for the next request.
    fn request(&mut self) -> Asked {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).expect("a request");
        let mut frame = vec![0; usize::try_from(i32::from_be_bytes(length)).expect("not negative")];
        self.0.read_exact(&mut frame).expect("the whole request");
        let key = i16::from_be_bytes([frame[0], frame[1]]);
        (key, i32::from_be_bytes([frame[4], frame[5], frame[6], frame[7]]), frame.split_off(8))
    }

    fn has_no_request(&self) -> bool {
        self.0.set_read_timeout(Some(SHORT)).expect("set");
        let peeked = self.0.peek(&mut [0]);
        self.0.set_read_timeout(None).expect("set");
        peeked.is_err()
    }

    fn answer(&mut self, correlation: i32, body: &[u8]) {
        let length = i32::try_from(4 + body.len()).expect("short");
        self.0.write_all(&[&length.to_be_bytes()[..], &correlation.to_be_bytes(), body].concat()).expect("sent");
    }

    fn answer_handshake(&mut self, correlation: i32) {
        let mut body = Vec::new();
        SaslHandshakeResponse::default().encode(&mut body, SASL_HANDSHAKE_VERSION).expect("encodable");
        self.answer(correlation, &body);
    }

    /// Answers with an error code, or with a lifetime in milliseconds.
    fn answer_authenticate(&mut self, correlation: i32, code: i16, lifetime: i64) {
        // The header's tags.
        let mut body = vec![0];
        let answer = SaslAuthenticateResponse::default().with_error_code(code).with_session_lifetime_ms(lifetime);
        answer.encode(&mut body, SASL_AUTHENTICATE_VERSION).expect("encodable");
        self.answer(correlation, &body);
    }

    /// Plays a whole login; returns the message with the password.
    fn log_in(&mut self, lifetime: i64) -> Vec<u8> {
        let (key, correlation, _) = self.request();
        assert_eq!(key, HANDSHAKE);
        self.answer_handshake(correlation);
        let (key, correlation, message) = self.request();
        assert_eq!(key, AUTHENTICATE);
        self.answer_authenticate(correlation, 0, lifetime);
        message
    }
}

/// Plays a login of a minute and the request after it.
fn log_in_and_ask(connection: &mut Connection, far: &mut Far) {
    let asked = send(connection);
    receive_after_login(connection, far, asked);
}

/// Plays a login, and the response to `asked`, which waits for it; returns the message with the secret.
fn receive_after_login(connection: &mut Connection, far: &mut Far, asked: i32) -> Vec<u8> {
    std::thread::scope(|scope| {
        let playing = scope.spawn(|| {
            let message = far.log_in(60_000);
            let (key, correlation, _) = far.request();
            assert_eq!((key, correlation), (SHARE_FETCH, asked));
            far.answer(correlation, b"\0");
            message
        });
        assert!(connection.receive(asked, SOON).expect("good").is_some());
        playing.join().expect("no panic")
    })
}

/// Makes a connection that has begun to log in, and its broker.
fn pair() -> (Connection, Far, Folder) {
    let folder = Folder::new();
    let secret = folder.write("password", "secret");
    let (connection, far) = pair_with(Login::new(Mechanism::Plain, "alice", SecretSource::File(secret)));
    (connection, far, folder)
}

fn pair_with(login: Login) -> (Connection, Far) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let mut options = ClientOptions::new(vec![BrokerAddress::new("127.0.0.1", port)], "test");
    options.login = Some(Arc::new(login));
    let connection = Connection::open(&options.bootstrap[0], &options).expect("the listener takes it");
    (connection, Far(listener.accept().expect("our own connection").0))
}

fn due(connection: &Connection) -> Instant {
    connection.authentication.as_ref().expect("a login").renewal.expect("a lifetime").due
}

/// Makes the renewal due now; the login ends after `rest`.
fn make_due(connection: &mut Connection, rest: Duration) {
    let now = Instant::now();
    connection.authentication.as_mut().expect("a login").renewal = Some(Renewal { due: now, end: now + rest });
}

fn send(connection: &mut Connection) -> i32 {
    connection.send_body(SHARE_FETCH, 2, true, b"body").expect("sent or held")
}

#[test]
fn requests_that_are_sent_during_a_login_follow_it_in_their_order() {
    let (mut connection, mut far, _folder) = pair();
    let (first, second) = (send(&mut connection), send(&mut connection));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let message = far.log_in(0);
            assert!(message.windows(13).any(|part| part == b"\0alice\0secret"), "{message:?}");
            for number in [b"\0\x01", b"\0\x02"] {
                let (key, correlation, _) = far.request();
                assert_eq!(key, SHARE_FETCH);
                far.answer(correlation, number);
            }
        });
        let mut answer = |correlation| connection.receive(correlation, SOON).expect("good").expect("answered");
        assert_eq!(&answer(first)[..], b"\x01");
        assert_eq!(&answer(second)[..], b"\x02");
    });
}

#[test]
fn login_with_a_silent_broker_is_resumed() {
    let (mut connection, mut far, _folder) = pair();
    let correlation = send(&mut connection);
    let (_, handshake, _) = far.request();
    assert!(connection.receive(correlation, SHORT).expect("still good").is_none());
    far.answer_handshake(handshake);
    assert!(connection.receive(correlation, SHORT).expect("still good").is_none());
    let (_, authenticate, _) = far.request();
    assert!(far.has_no_request(), "nothing may be sent between the steps of a login");
    far.answer_authenticate(authenticate, 0, 0);
    assert!(connection.receive(correlation, SHORT).expect("still good").is_none());
    let (key, asked, _) = far.request();
    assert_eq!((key, asked), (SHARE_FETCH, correlation));
}

#[test]
fn login_is_renewed_before_a_request_once_no_response_is_owed() {
    let (mut connection, mut far, _folder) = pair();
    log_in_and_ask(&mut connection, &mut far);
    let owed = send(&mut connection);
    make_due(&mut connection, SOON);
    let behind = send(&mut connection);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2 {
                let (key, correlation, _) = far.request();
                assert_eq!(key, SHARE_FETCH, "a response was owed");
                far.answer(correlation, b"\0");
            }
            far.log_in(60_000);
            let (key, correlation, _) = far.request();
            assert_eq!(key, SHARE_FETCH);
            far.answer(correlation, b"\0");
        });
        for correlation in [owed, behind] {
            assert!(connection.receive(correlation, SOON).expect("good").is_some());
        }
        let after = send(&mut connection);
        assert!(connection.receive(after, SOON).expect("good").is_some());
        assert!(due(&connection) > Instant::now(), "the new lifetime counts");
    });
}

#[test]
fn refused_login_closes_the_connection_and_names_the_user() {
    let (mut connection, mut far, _folder) = pair();
    let correlation = send(&mut connection);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (_, handshake, _) = far.request();
            far.answer_handshake(handshake);
            let (_, authenticate, _) = far.request();
            far.answer_authenticate(authenticate, 58, 0);
        });
        let error = connection.receive(correlation, SOON).expect_err("refused");
        assert!(matches!(&error, KafkaError::Security { is_final: true, .. }), "{error}");
        assert!(
            error.to_string().contains("user \"alice\" by PLAIN") && !error.to_string().contains("secret"),
            "{error}"
        );
        assert_eq!(error.retry(), Retry::Reconnect);
    });
    assert!(connection.is_broken());
}

/// A command that prints a token once the file `gate` exists.
fn waiting_for_gate(folder: &Folder) -> Login {
    let gate = folder.path().join("gate");
    let command = format!("until [ -e '{}' ]; do sleep 0.01; done; echo token", gate.display());
    Login::new(Mechanism::OauthBearer, "", SecretSource::Command(command))
}

#[test]
fn login_waits_for_its_token_and_is_resumed() {
    let folder = Folder::new();
    let (mut connection, mut far) = pair_with(waiting_for_gate(&folder));
    let correlation = send(&mut connection);
    assert!(connection.receive(correlation, SHORT).expect("still good").is_none());
    assert!(far.has_no_request(), "there is no token yet");
    folder.write("gate", "");
    let message = receive_after_login(&mut connection, &mut far, correlation);
    assert!(message.windows(12).any(|part| part == b"Bearer token"), "{message:?}");
}

#[test]
fn renewal_that_waits_for_its_token_delays_no_request() {
    let folder = Folder::new();
    folder.write("gate", "");
    let (mut connection, mut far) = pair_with(waiting_for_gate(&folder));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            far.log_in(60_000);
            // The first request, and those of the time without a token.
            for _ in 0..3 {
                let (key, correlation, _) = far.request();
                assert_eq!(key, SHARE_FETCH, "no login begins without a token");
                far.answer(correlation, b"\0");
            }
            let mut key = SHARE_FETCH;
            while key == SHARE_FETCH {
                let (next, correlation, _) = far.request();
                key = next;
                if key == HANDSHAKE { far.answer_handshake(correlation) } else { far.answer(correlation, b"\0") }
            }
            let (key, correlation, _) = far.request();
            assert_eq!(key, AUTHENTICATE);
            far.answer_authenticate(correlation, 0, 60_000);
            let (_, correlation, _) = far.request();
            far.answer(correlation, b"\0");
        });
        let ask = |connection: &mut Connection| {
            let correlation = send(connection);
            assert!(connection.receive(correlation, SOON).expect("good").is_some());
        };
        ask(&mut connection);
        std::fs::remove_file(folder.path().join("gate")).expect("removed");
        make_due(&mut connection, 10 * SOON);
        let before = due(&connection);
        (0..2).for_each(|_| ask(&mut connection));
        folder.write("gate", "");
        let deadline = Instant::now() + SOON;
        while due(&connection) == before {
            assert!(Instant::now() < deadline, "the login is not renewed");
            ask(&mut connection);
        }
    });
}

#[test]
fn renewal_that_cannot_begin_keeps_the_connection() {
    let (mut connection, mut far, folder) = pair();
    log_in_and_ask(&mut connection, &mut far);
    std::fs::remove_file(folder.path().join("password")).expect("removed");
    make_due(&mut connection, SOON);
    let second = send(&mut connection);
    let (key, correlation, _) = far.request();
    assert_eq!((key, correlation), (SHARE_FETCH, second));
    far.answer(correlation, b"\0");
    assert!(connection.receive(second, SOON).expect("still good").is_some());
}

/// A worker with a long task sends a request every five seconds only: the login may have ended meanwhile.
#[test]
fn request_after_the_end_of_a_login_waits_for_the_token_and_the_renewal() {
    let folder = Folder::new();
    folder.write("gate", "");
    let (mut connection, mut far) = pair_with(waiting_for_gate(&folder));
    log_in_and_ask(&mut connection, &mut far);
    std::fs::remove_file(folder.path().join("gate")).expect("removed");
    make_due(&mut connection, Duration::ZERO);
    let late = send(&mut connection);
    assert!(connection.receive(late, SHORT).expect("still good").is_none());
    assert!(far.has_no_request(), "the broker would close the connection");
    folder.write("gate", "");
    receive_after_login(&mut connection, &mut far, late);
}
