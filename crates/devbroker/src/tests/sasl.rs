use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use kafka_protocol::messages::{
    InitProducerIdRequest, InitProducerIdResponse, MetadataRequest, SaslAuthenticateRequest, SaslAuthenticateResponse,
    SaslHandshakeRequest, SaslHandshakeResponse,
};
use kafka_protocol::protocol::StrBytes;
use program::stop::Stop;
use ring::{digest, hmac, pbkdf2};

use super::support::{Authority, Client, broker};
use crate::{Broker, Sasl, SaslMechanism, Security};

pub const PLAIN: &[u8] = b"\0worker\0pencil";
const INVALID_TOKEN: &str = "{\"status\":\"invalid_token\"}";

pub fn sasl(mechanisms: &[SaslMechanism], lifetime: Option<Duration>) -> Security {
    let users = BTreeMap::from([("worker".to_owned(), "pencil".to_owned()), ("a,b=c".to_owned(), "ink".to_owned())]);
    let (mechanisms, tokens) = (mechanisms.to_vec(), vec!["abc.def".to_owned()]);
    Security { sasl: Some(Sasl { mechanisms, users, tokens, lifetime, ..Sasl::default() }), tls: None }
}

pub fn plain(lifetime: Option<Duration>) -> Security {
    sasl(&[SaslMechanism::Plain], lifetime)
}

impl<S: Read + Write> Client<S> {
    fn shake_hands(&mut self, mechanism: &str) -> SaslHandshakeResponse {
        self.call(1, &handshake(mechanism)).expect("a response")
    }

    fn authenticate(&mut self, bytes: &[u8]) -> SaslAuthenticateResponse {
        self.call(2, &token(bytes)).expect("a response")
    }

    /// Authenticates with one message.
    pub fn log_in(&mut self, mechanism: &str, bytes: &[u8]) -> SaslAuthenticateResponse {
        self.try_log_in(mechanism, bytes).expect("responses")
    }

    pub fn try_log_in(&mut self, mechanism: &str, bytes: &[u8]) -> std::io::Result<SaslAuthenticateResponse> {
        assert_eq!(self.call(1, &handshake(mechanism))?.error_code, 0);
        self.call(2, &token(bytes))
    }

    fn init_producer_id(&mut self) -> std::io::Result<InitProducerIdResponse> {
        self.call(4, &InitProducerIdRequest::default().with_transactional_id(None))
    }

    /// Whether requests are answered now.
    fn is_served(&mut self) -> bool {
        self.init_producer_id().is_ok_and(|answer| answer.error_code == 0)
    }

    fn is_closed(&mut self) -> bool {
        self.stream.read(&mut [0; 1]).is_ok_and(|count| count == 0)
    }
}

fn handshake(mechanism: &str) -> SaslHandshakeRequest {
    SaslHandshakeRequest::default().with_mechanism(StrBytes::from_string(mechanism.to_owned()))
}

fn token(bytes: &[u8]) -> SaslAuthenticateRequest {
    SaslAuthenticateRequest::default().with_auth_bytes(Bytes::copy_from_slice(bytes))
}

/// Authenticates with SCRAM. `name` is the user as the protocol writes it. Returns the last response, and the server's
/// signature that its success would have to bring.
pub fn scram(
    client: &mut Client<TcpStream>,
    mechanism: &str,
    name: &str,
    password: &str,
) -> (SaslAuthenticateResponse, String) {
    let (hash, keyed, stretched) = match mechanism {
        "SCRAM-SHA-256" => (&digest::SHA256, hmac::HMAC_SHA256, pbkdf2::PBKDF2_HMAC_SHA256),
        _ => (&digest::SHA512, hmac::HMAC_SHA512, pbkdf2::PBKDF2_HMAC_SHA512),
    };
    let sign = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(keyed, key), text).as_ref().to_vec();
    let bare = format!("n={name},r=client");
    let answer = client.log_in(mechanism, format!("n,,{bare}").as_bytes());
    if answer.error_code != 0 {
        return (answer, String::new());
    }
    assert_eq!(answer.session_lifetime_ms, 0, "the exchange is not over");
    let first = String::from_utf8(answer.auth_bytes.to_vec()).expect("text");
    let attributes: Vec<&str> = first.split(',').collect();
    let nonce = attributes[0].strip_prefix("r=").expect("a nonce");
    assert!(nonce.starts_with("client") && nonce.len() > 20, "{nonce}");
    let salt = BASE64.decode(attributes[1].strip_prefix("s=").expect("a salt")).expect("base64");
    let iterations: NonZeroU32 = attributes[2].strip_prefix("i=").expect("a count").parse().expect("a number");
    let mut salted = vec![0; hash.output_len()];
    pbkdf2::derive(stretched, iterations, &salt, password.as_bytes(), &mut salted);
    let unproven = format!("c=biws,r={nonce}");
    let signed = format!("{bare},{first},{unproven}");
    let key = sign(&salted, b"Client Key");
    let signature = sign(digest::digest(hash, &key).as_ref(), signed.as_bytes());
    let proof: Vec<u8> = key.iter().zip(signature).map(|(key, signature)| key ^ signature).collect();
    let answer = client.authenticate(format!("{unproven},p={}", BASE64.encode(proof)).as_bytes());
    let server = sign(&sign(&salted, b"Server Key"), signed.as_bytes());
    (answer, format!("v={}", BASE64.encode(server)))
}

fn pause(milliseconds: u64) {
    let _ = Stop::new().sleep(Duration::from_millis(milliseconds));
}

fn text(answer: &SaslAuthenticateResponse) -> (i16, &str) {
    (answer.error_code, answer.error_message.as_ref().map_or("", |text| text.as_str()))
}

#[test]
fn plain_lets_the_right_password_in_and_no_other() {
    let broker = broker(plain(None));
    let mut client = Client::plain(&broker);
    client.api_versions().expect("a response");
    let answer = client.log_in("PLAIN", PLAIN);
    assert_eq!((text(&answer), answer.session_lifetime_ms), ((0, ""), 0));
    assert!(client.is_served());
    let wrong = "Authentication failed: Invalid username or password";
    let other = "Authentication failed: Client requested an authorization id that is different from username";
    let hidden = "Authentication failed during authentication due to invalid credentials with SASL mechanism PLAIN";
    let cases: [(&[u8], &str); 6] = [
        (b"\0worker\0Pencil", wrong),
        (b"\0stranger\0pencil", wrong),
        (b"other\0worker\0pencil", other),
        (b"\0worker\0", hidden),
        (b"\0\0pencil", hidden),
        (b"worker", hidden),
    ];
    for (message, reason) in cases {
        let mut client = Client::plain(&broker);
        assert_eq!(text(&client.log_in("PLAIN", message)), (58, reason));
        assert!(client.is_closed());
    }
    assert_eq!(Client::plain(&broker).log_in("PLAIN", b"worker\0worker\0pencil").error_code, 0);
}

#[test]
fn scram_lets_the_right_password_in_and_no_other() {
    let broker = broker(sasl(&[SaslMechanism::ScramSha256, SaslMechanism::ScramSha512], None));
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
        for (name, password) in [("worker", "pencil"), ("a=2Cb=3Dc", "ink")] {
            let mut client = Client::plain(&broker);
            let (answer, signature) = scram(&mut client, mechanism, name, password);
            assert_eq!((text(&answer), answer.auth_bytes.as_ref()), ((0, ""), signature.as_bytes()));
            assert!(client.is_served());
        }
        let kind = "Authentication failed during authentication due to invalid credentials with SASL mechanism";
        for (name, password) in [("worker", "ink"), ("stranger", "pencil")] {
            let mut client = Client::plain(&broker);
            let (answer, _) = scram(&mut client, mechanism, name, password);
            assert_eq!(text(&answer), (58, format!("{kind} {mechanism}").as_str()));
            assert!(answer.auth_bytes.is_empty());
            assert!(client.is_closed());
        }
    }
}

#[test]
fn oauthbearer_refuses_a_token_in_two_steps() {
    let broker = broker(sasl(&[SaslMechanism::OauthBearer], None));
    let mut client = Client::plain(&broker);
    assert_eq!(client.log_in("OAUTHBEARER", b"n,,\x01auth=Bearer abc.def\x01\x01").error_code, 0);
    assert!(client.is_served());
    let mut client = Client::plain(&broker);
    let answer = client.log_in("OAUTHBEARER", b"n,,\x01auth=Bearer abc.deg\x01\x01");
    assert_eq!((text(&answer), answer.auth_bytes.as_ref()), ((0, ""), INVALID_TOKEN.as_bytes()));
    assert_eq!(text(&client.authenticate(b"\x01")), (58, INVALID_TOKEN));
    assert!(client.is_closed());
    let hidden =
        "Authentication failed during authentication due to invalid credentials with SASL mechanism OAUTHBEARER";
    for malformed in [&b"n,,\x01auth=Bearer abc.def\x01"[..], b"abc.def", b"n,,\x01auth=Basic abc.def\x01\x01", b"\x01"]
    {
        assert_eq!(text(&Client::plain(&broker).log_in("OAUTHBEARER", malformed)), (58, hidden));
    }
}

#[test]
fn only_api_versions_and_a_handshake_are_served_before_authentication() {
    let broker = broker(plain(None));
    let mut client = Client::plain(&broker);
    client.send(9, &MetadataRequest::default()).expect("sent");
    assert!(client.is_closed());
    let mut client = Client::plain(&broker);
    client.send(2, &SaslAuthenticateRequest::default()).expect("sent");
    assert!(client.is_closed());
    let mut client = Client::plain(&broker);
    client.api_versions().expect("a response");
    client.send(9, &MetadataRequest::default()).expect("sent");
    assert!(client.is_closed());
    let mut client = Client::plain(&broker);
    client.api_versions().expect("a response");
    client.api_versions().expect_err("Kafka answers it once");
}

#[test]
fn unsupported_mechanism_is_refused_with_the_list_of_the_supported() {
    let broker = broker(sasl(&[SaslMechanism::ScramSha512, SaslMechanism::OauthBearer], None));
    let mut client = Client::plain(&broker);
    let begun = Instant::now();
    let answer = client.shake_hands("PLAIN");
    assert_eq!(answer.error_code, 33);
    assert!(answer.mechanisms.iter().map(|name| name.as_str()).eq(["SCRAM-SHA-512", "OAUTHBEARER"]));
    assert!(begun.elapsed() >= Duration::from_millis(100), "Kafka tells a failure late");
    assert!(client.is_closed());
}

#[test]
fn listener_without_sasl_refuses_it_and_stays_open() {
    let broker = broker(Security::default());
    let mut client = Client::plain(&broker);
    let keys: Vec<i16> = client.api_versions().expect("a response").api_keys.iter().map(|api| api.api_key).collect();
    assert!(keys.contains(&17) && keys.contains(&36), "{keys:?}");
    assert_eq!(client.shake_hands("PLAIN").error_code, 34);
    let answer = client.authenticate(PLAIN);
    assert_eq!(text(&answer), (34, "SaslAuthenticate request received after successful authentication"));
    assert!(client.is_served());
}

#[test]
fn session_without_a_lifetime_cannot_be_renewed() {
    let broker = broker(plain(None));
    let mut client = Client::plain(&broker);
    client.log_in("PLAIN", PLAIN);
    assert_eq!(client.shake_hands("PLAIN").error_code, 34);
    assert!(client.is_served());
}

fn authenticated(broker: &Broker, lifetime_ms: i64) -> Client<TcpStream> {
    let mut client = Client::plain(broker);
    let answer = client.log_in("PLAIN", PLAIN);
    assert_eq!((answer.error_code, answer.session_lifetime_ms), (0, lifetime_ms));
    client
}

#[test]
fn first_request_after_the_lifetime_closes_the_connection() {
    let broker = broker(plain(Some(Duration::from_secs(1))));
    let (mut used, mut renewed) = (authenticated(&broker, 1000), authenticated(&broker, 1000));
    assert!(used.is_served());
    pause(1100);
    used.stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a time-out");
    let silent = used.stream.read(&mut [0; 1]).expect_err("a silent connection stays open");
    assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock);
    used.stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
    used.api_versions().expect_err("closed");
    assert_eq!(renewed.log_in("PLAIN", PLAIN).error_code, 0);
    assert!(renewed.is_served());
}

#[test]
fn renewal_extends_the_lifetime_once_a_second() {
    let broker = broker(plain(Some(Duration::from_secs(2))));
    let mut client = authenticated(&broker, 2000);
    pause(1000);
    assert_eq!(client.log_in("PLAIN", PLAIN).session_lifetime_ms, 2000);
    assert_eq!(client.shake_hands("PLAIN").error_code, 34, "the second renewal within a second");
    pause(1100);
    assert!(client.is_served(), "beyond the first lifetime");
    assert_eq!(client.log_in("PLAIN", PLAIN).session_lifetime_ms, 2000);
}

#[test]
fn request_within_an_authentication_gets_error_34_and_the_end() {
    let broker = broker(plain(Some(Duration::from_secs(60))));
    let mut renewing = authenticated(&broker, 60_000);
    for client in [&mut Client::plain(&broker), &mut renewing] {
        assert_eq!(client.shake_hands("PLAIN").error_code, 0);
        assert_eq!(client.init_producer_id().expect("a response").error_code, 34);
        assert!(client.is_closed());
    }
}

#[test]
fn renewal_cannot_change_user_or_mechanism() {
    let security = sasl(&[SaslMechanism::Plain, SaslMechanism::ScramSha256], Some(Duration::from_secs(60)));
    let broker = broker(security);
    let mut client = authenticated(&broker, 60_000);
    let answer = client.log_in("PLAIN", b"\0a,b=c\0ink");
    let reason = "Cannot change principals during re-authentication from User.worker: User.a,b=c";
    assert_eq!(text(&answer), (58, reason));
    assert!(client.is_closed());
    let mut client = authenticated(&broker, 60_000);
    assert_eq!(client.shake_hands("SCRAM-SHA-256").error_code, 0);
    client.send(2, &SaslAuthenticateRequest::default()).expect("sent");
    assert!(client.is_closed());
}

#[test]
fn rotated_password_counts_for_new_connections_and_renewals() {
    let broker = broker(plain(Some(Duration::from_secs(60))));
    let (mut open, mut renewing) = (authenticated(&broker, 60_000), authenticated(&broker, 60_000));
    let users = BTreeMap::from([("worker".to_owned(), "ink".to_owned())]);
    let rotated = Sasl { mechanisms: vec![SaslMechanism::Plain], users, ..Sasl::default() };
    broker.set_security(Security { sasl: Some(rotated), tls: None }).expect("usable");
    assert!(open.is_served());
    assert_eq!(renewing.log_in("PLAIN", PLAIN).error_code, 58);
    assert_eq!(open.log_in("PLAIN", b"\0worker\0ink").error_code, 0);
    assert_eq!(Client::plain(&broker).log_in("PLAIN", PLAIN).error_code, 58);
    assert_eq!(Client::plain(&broker).log_in("PLAIN", b"\0worker\0ink").error_code, 0);
}

#[test]
fn sasl_runs_inside_tls() {
    let authority = Authority::new();
    let broker = broker(Security { tls: authority.server().tls, ..plain(None) });
    let mut client = Client::tls(&broker, &authority.client());
    assert_eq!(client.log_in("PLAIN", PLAIN).error_code, 0);
    assert!(client.is_served());
    let mut refused = Client::tls(&broker, &authority.client());
    assert_eq!(refused.log_in("PLAIN", b"\0worker\0ink").error_code, 58);
    assert!(refused.is_clean_end());
}

#[test]
fn iteration_count_of_zero_is_refused() {
    let broker = broker(Security::default());
    let sasl = Sasl { iterations: 0, ..Sasl::default() };
    broker.set_security(Security { sasl: Some(sasl), tls: None }).expect_err("PBKDF2 needs a count");
}
