use std::io::{Read, Write};
use std::time::{Duration, Instant};

use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::{CreateTopicsRequest, OffsetFetchRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use program::stop::Stop;
use rustls::{AlertDescription, CertificateError, Error};

use super::support::{Authority, Client, api_versions, broker, frame, socket, tls_error};
use crate::{Security, ServerTls, StartError};

#[test]
fn requests_are_answered_over_both_versions_of_tls() {
    let authority = Authority::new();
    let broker = broker(authority.server());
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut client = Client::tls(&broker, &authority.client_of(&[version], None));
        assert!(!client.api_versions().expect("a response").api_keys.is_empty());
        assert!(!client.api_versions().expect("a response").api_keys.is_empty());
        assert_eq!(client.stream.conn.protocol_version(), Some(version.version));
    }
}

#[test]
fn request_and_response_of_many_tls_records_arrive_whole() {
    let authority = Authority::new();
    let broker = broker(authority.server());
    let topics = (0..1000).map(|number| {
        let name = TopicName(StrBytes::from_string(format!("{number:0>200}")));
        CreatableTopic::default().with_name(name).with_num_partitions(1).with_replication_factor(1)
    });
    let request = CreateTopicsRequest::default().with_topics(topics.collect()).with_validate_only(true);
    let answer = Client::tls(&broker, &authority.client()).call(5, &request).expect("a response");
    assert_eq!(answer.topics.len(), 1000);
    assert!(answer.topics.iter().all(|topic| topic.error_code == 0));
}

#[test]
fn client_needs_a_certificate_of_the_demanded_authority() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (certificate, key) = authority.issue("server");
    let client_authorities = Some(authority.file());
    let broker = broker(Security { tls: Some(ServerTls { certificate, key, client_authorities }), sasl: None });
    let versions = rustls::DEFAULT_VERSIONS;
    let known = authority.client_of(versions, Some(authority.issue("client")));
    Client::tls(&broker, &known).api_versions().expect("a response");
    // In TLS 1.3 the client learns with its first read that it is refused.
    let refusal = |config| {
        let refused = Client::tls(&broker, &config).stream.read(&mut [0; 1]).expect_err("refused");
        tls_error(&refused).clone()
    };
    assert_eq!(refusal(authority.client()), Error::AlertReceived(AlertDescription::CertificateRequired));
    let stranger = authority.client_of(versions, Some(other.issue("client")));
    assert_eq!(refusal(stranger), Error::AlertReceived(AlertDescription::UnknownCA));
}

#[test]
fn plain_client_at_a_tls_port_gets_an_alert_and_the_end() {
    let authority = Authority::new();
    let broker = broker(authority.server());
    let mut socket = socket(&broker);
    socket.write_all(&frame(1, 3, &api_versions())).expect("written");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("an end without a reset");
    // RFC 8446, 5.1: a record of type alert, two bytes long; 6: fatal.
    assert_eq!((answer.len(), answer[0], answer[5]), (7, 21, 2), "{answer:?}");
}

#[test]
fn security_that_is_set_later_concerns_later_connections() {
    let (first, second) = (Authority::new(), Authority::new());
    let broker = broker(Security::default());
    let mut plain = Client::plain(&broker);
    plain.api_versions().expect("a response");
    broker.set_security(first.server()).expect("usable");
    let mut open = Client::tls(&broker, &first.client());
    open.api_versions().expect("a response");
    broker.set_security(second.server()).expect("usable");
    let refused = Client::tls(&broker, &first.client()).api_versions().expect_err("another authority");
    assert_eq!(*tls_error(&refused), Error::InvalidCertificate(CertificateError::UnknownIssuer));
    Client::tls(&broker, &second.client()).api_versions().expect("a response");
    open.api_versions().expect("a response on the open connection");
    plain.api_versions().expect("a response on the plain connection");
}

#[test]
fn security_that_cannot_be_used_changes_nothing_and_names_the_file() {
    let authority = Authority::new();
    let broker = broker(authority.server());
    let (certificate, _) = authority.issue("one");
    let (_, key) = authority.issue("other");
    let pair = ServerTls { certificate: certificate.clone(), key, client_authorities: None };
    let fault = broker.set_security(Security { tls: Some(pair), sasl: None }).expect_err("they do not fit").to_string();
    assert!(fault.contains("one.pem"), "{fault}");
    let absent = ServerTls { certificate: certificate.clone(), key: "absent".into(), client_authorities: None };
    let fault = broker.set_security(Security { tls: Some(absent), sasl: None }).expect_err("no key").to_string();
    assert!(fault.contains("absent"), "{fault}");
    let no_certificate = ServerTls { key: certificate.with_extension("key"), certificate, client_authorities: None };
    let no_authority = ServerTls { client_authorities: Some(no_certificate.key.clone()), ..no_certificate };
    let fault =
        broker.set_security(Security { tls: Some(no_authority), sasl: None }).expect_err("no authority").to_string();
    assert!(fault.contains("one.key"), "{fault}");
    Client::tls(&broker, &authority.client()).api_versions().expect("a response as before");
}

#[test]
fn broker_does_not_start_without_its_certificate() {
    let mut settings = crate::Settings::new(vec!["127.0.0.1:0".parse().expect("an address")]);
    let tls = ServerTls { certificate: "absent".into(), key: "absent".into(), client_authorities: None };
    settings.security = Security { tls: Some(tls), sasl: None };
    assert!(matches!(crate::Broker::start(settings), Err(StartError::Security(_))));
}

#[test]
fn silent_client_holds_up_no_handshake_and_no_end_of_the_node() {
    let authority = Authority::new();
    let broker = broker(authority.server());
    let mut silent = socket(&broker);
    Client::tls(&broker, &authority.client()).api_versions().expect("a response");
    let begun = Instant::now();
    broker.nodes().kill();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(silent.read(&mut [0; 1]).expect("an end"), 0);
}

#[test]
fn close_is_announced_and_kill_is_not() {
    let authority = Authority::new();
    let broker = broker(authority.server());
    let mut closed = Client::tls(&broker, &authority.client());
    // The broker lists this request and closes the connection of a client that sends it.
    closed.send(1, &OffsetFetchRequest::default().with_topics(Some(Vec::new()))).expect("sent");
    assert!(closed.is_clean_end());
    let (mut idle, mut waiting) =
        (Client::tls(&broker, &authority.client()), Client::tls(&broker, &authority.client()));
    idle.api_versions().expect("a response");
    waiting.api_versions().expect("a response");
    broker.nodes().freeze();
    waiting.send(3, &api_versions()).expect("sent");
    // Until the broker waits with the request.
    let _ = Stop::new().sleep(Duration::from_millis(100));
    broker.nodes().kill();
    assert!(!idle.is_clean_end());
    assert!(!waiting.is_clean_end());
}

#[test]
fn frozen_node_completes_no_handshake_until_it_is_thawed() {
    let authority = Authority::new();
    let broker = broker(authority.server());
    broker.nodes().freeze();
    let mut client = Client::tls(&broker, &authority.client());
    client.stream.sock.set_read_timeout(Some(Duration::from_millis(200))).expect("a time-out");
    let none = client.api_versions().expect_err("no handshake");
    assert_eq!(none.kind(), std::io::ErrorKind::WouldBlock);
    broker.nodes().thaw();
    client.stream.sock.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
    client.api_versions().expect("a response");
}
