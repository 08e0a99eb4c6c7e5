use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use kafka_protocol::messages::InitProducerIdRequest;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConnection, Error};

use super::sasl::{PLAIN, plain, sasl, scram};
use super::support::{Authority, Client, api_versions, broker, frame, socket, tls_error};
use crate::{Action, Fault, Kind, SaslMechanism, Security};

/// How long a test watches that nothing comes.
const SILENCE: Duration = Duration::from_millis(200);

#[test]
fn handshake_stops_before_the_flight_or_within_it() {
    let authority = Authority::new();
    let broker = broker(authority.server());
    for (action, count) in [(Action::Deafen, 0), (Action::Truncate(100), 100)] {
        let bites = broker.inject(Fault::new(action).at(Kind::TlsHandshake));
        let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let mut session = ClientConnection::new(authority.client(), name).expect("a session");
        let mut socket = socket(&broker);
        session.write_tls(&mut socket).expect("a ClientHello");
        let mut flight = vec![0; count];
        socket.read_exact(&mut flight).expect("the beginning");
        socket.set_read_timeout(Some(SILENCE)).expect("a time-out");
        let none = socket.read(&mut [0; 1]).expect_err("no further byte, no end");
        assert_eq!((none.kind(), bites.count()), (ErrorKind::WouldBlock, 1));
        // Type handshake.
        assert!(flight.first().is_none_or(|first| *first == 22));
        Client::tls(&broker, &authority.client()).api_versions().expect("the next connection works");
    }
}

#[test]
fn handshake_is_cut_before_or_after_it_is_complete() {
    let authority = Authority::new();
    let broker = broker(authority.server());
    for (action, completes) in [(Action::CutBefore, false), (Action::CutAfter, true)] {
        broker.inject(Fault::new(action).at(Kind::TlsHandshake));
        let mut client = Client::tls(&broker, &authority.client());
        let end = client.stream.read(&mut [0; 1]).expect_err("an end without a goodbye");
        assert_eq!((end.kind(), !client.stream.conn.is_handshaking()), (ErrorKind::UnexpectedEof, completes));
    }
}

#[test]
fn alert_ends_a_handshake_or_a_session_and_its_request_has_no_effect() {
    let authority = Authority::new();
    let broker = broker(authority.server());
    broker.inject(Fault::new(Action::Alert).at(Kind::TlsHandshake));
    let alert = Error::AlertReceived(AlertDescription::BadRecordMac);
    let end = Client::tls(&broker, &authority.client()).api_versions().expect_err("an alert");
    assert_eq!(*tls_error(&end), alert);
    let mut client = Client::tls(&broker, &authority.client());
    let request = InitProducerIdRequest::default().with_transactional_id(None);
    let before = client.call(4, &request).expect("a response").producer_id.0;
    broker.inject(Fault::new(Action::Alert).at(Kind::InitProducerId));
    let end = client.call(4, &request).expect_err("an alert");
    assert_eq!(*tls_error(&end), alert);
    let next = Client::tls(&broker, &authority.client()).call(4, &request).expect("a response");
    assert_eq!(next.producer_id.0, before + 1);
}

#[test]
fn fault_of_any_request_strikes_no_handshake() {
    let authority = Authority::new();
    let broker = broker(authority.server());
    let bites = broker.inject(Fault::new(Action::CutBefore));
    let mut client = Client::tls(&broker, &authority.client());
    client.stream.conn.complete_io(&mut client.stream.sock).expect("a handshake");
    assert_eq!(bites.count(), 0);
    client.api_versions().expect_err("the first request");
    assert_eq!(bites.count(), 1);
}

#[test]
fn response_trickles_and_arrives_whole() {
    let authority = Authority::new();
    let broker = broker(Security::default());
    let bites = broker.inject(Fault::new(Action::Trickle).every(1, 2));
    Client::plain(&broker).api_versions().expect("a response");
    broker.set_security(authority.server()).expect("usable");
    let mut client = Client::tls(&broker, &authority.client());
    let whole = client.api_versions().expect("a response");
    assert_eq!(bites.count(), 2);
    assert_eq!(client.api_versions().expect("a response"), whole);
}

#[test]
fn response_stops_within_its_length_and_the_connection_stays_open() {
    let broker = broker(Security::default());
    broker.inject(Fault::new(Action::Truncate(7)));
    let mut socket = socket(&broker);
    socket.write_all(&frame(1, 3, &api_versions())).expect("written");
    socket.read_exact(&mut [0; 7]).expect("the beginning");
    socket.set_read_timeout(Some(SILENCE)).expect("a time-out");
    assert_eq!(socket.read(&mut [0; 1]).expect_err("nothing").kind(), ErrorKind::WouldBlock);
}

#[test]
fn damaged_scram_has_a_wrong_signature_of_the_server() {
    let broker = broker(sasl(&[SaslMechanism::ScramSha256], None));
    broker.inject(Fault::new(Action::Damage).at(Kind::SaslAuthenticate).every(1, 2));
    let (answer, signature) = scram(&mut Client::plain(&broker), "SCRAM-SHA-256", "worker", "pencil");
    let told = String::from_utf8(answer.auth_bytes.to_vec()).expect("text");
    assert_eq!((answer.error_code, told.len()), (0, signature.len()));
    assert!(told.starts_with("v=") && told != signature, "{told}");
}

#[test]
fn sasl_is_never_answered_or_refused_with_any_code() {
    let broker = broker(plain(None));
    for kind in [Kind::SaslHandshake, Kind::SaslAuthenticate] {
        broker.inject(Fault::new(Action::Deafen).at(kind));
        let mut client = Client::plain(&broker);
        client.stream.set_read_timeout(Some(SILENCE)).expect("a time-out");
        let none = client.try_log_in("PLAIN", PLAIN).expect_err("no response");
        assert_eq!(none.kind(), ErrorKind::WouldBlock);
    }
    broker.inject(Fault::new(Action::Refuse(kafka_share::ErrorCode(-1))).at(Kind::SaslAuthenticate));
    assert_eq!(Client::plain(&broker).log_in("PLAIN", PLAIN).error_code, -1);
}
