//! Which requests a listener with logins takes when, and what it answers to the others (KIP-43, KIP-152, KIP-368).

use kafka_protocol::{
    messages::{
        ApiVersionsRequest, MetadataResponse, SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest,
        SaslHandshakeResponse,
    },
    protocol::{HeaderVersion, Request},
};

use super::*;
use crate::support::secured::{Listener, PASSWORD, Secured, USER};

/// Instead of a code: an answer that names neither brokers nor topics.
const EMPTY: i16 = -2;

/// A request of a script.
#[derive(Clone, Copy, Debug)]
enum Step {
    Versions,
    Topics,
    Mechanism(&'static str),
    Message(&'static str),
    Password(&'static str),
}
use Step::{Mechanism, Message, Password, Topics, Versions};

/// The client's first message of OAUTHBEARER with a token that Kafka cannot read (RFC 7628, 3.1).
const BAD_TOKEN: &str = "n,,\x01auth=Bearer nonsense\x01\x01";

fn send<R: Request>(wire: &mut Wire, version: i16, request: &R) -> Option<Bytes> {
    let mut body = BytesMut::new();
    request.encode(&mut body, version).expect("encodable");
    wire.send(R::KEY, version, R::header_version(version), &body);
    wire.receive(R::Response::header_version(version))
}

/// The error code of the answer; `None` if the broker closes the connection.
fn play(wire: &mut Wire, step: Step) -> Option<i16> {
    let message = |text: String| SaslAuthenticateRequest::default().with_auth_bytes(text.into_bytes().into());
    let authenticate = |wire: &mut Wire, text: String| {
        let mut answer = send(wire, 2, &message(text))?;
        Some(SaslAuthenticateResponse::decode(&mut answer, 2).expect("readable").error_code)
    };
    match step {
        Versions => {
            let mut answer = send(wire, 0, &ApiVersionsRequest::default())?;
            Some(ApiVersionsResponse::decode(&mut answer, 0).expect("readable").error_code)
        }
        Topics => {
            let mut answer = send(wire, 12, &MetadataRequest::default())?;
            let answer = MetadataResponse::decode(&mut answer, 12).expect("readable");
            Some(if answer.brokers.is_empty() { EMPTY } else { 0 })
        }
        Mechanism(name) => {
            let mut answer = send(wire, 1, &SaslHandshakeRequest::default().with_mechanism(text(name)))?;
            Some(SaslHandshakeResponse::decode(&mut answer, 1).expect("readable").error_code)
        }
        Message(text) => authenticate(wire, text.to_owned()),
        Password(password) => authenticate(wire, format!("\0{USER}\0{password}")),
    }
}

/// The codes of the answers; `None` at the end: the broker has closed the connection.
fn answers(secured: &Secured, listener: Listener, script: &[Step]) -> Vec<Option<i16>> {
    secured.open(listener, Some(LIFETIME));
    let mut wire = Wire::connect(&secured.address(listener));
    let mut answers = Vec::new();
    for step in script {
        answers.push(play(&mut wire, *step));
        if answers.ends_with(&[None]) {
            break;
        }
    }
    answers
}

/// Sessions have a lifetime, so a client may authenticate again.
const LIFETIME: Duration = Duration::from_secs(60);

#[test]
fn listener_takes_each_request_of_a_login_in_its_turn() {
    let secured = Secured::new("is-login", Some(60_000));
    let closed = None;
    for (script, expected) in [
        (&[Versions, Mechanism("PLAIN"), Password(PASSWORD), Topics, Versions][..], &[Some(0); 5][..]),
        (&[Versions, Versions], &[Some(0), closed]),
        (&[Topics], &[closed]),
        (&[Password(PASSWORD)], &[closed]),
        (&[Mechanism("PLAIN"), Topics, Versions], &[Some(0), Some(EMPTY), closed]),
        (&[Mechanism("PLAIN"), Mechanism("PLAIN"), Versions], &[Some(0), Some(34), closed]),
        (&[Mechanism("NONE"), Mechanism("PLAIN")], &[Some(33), closed]),
        (&[Mechanism("PLAIN"), Password("wrong"), Versions], &[Some(0), Some(58), closed]),
        (
            &[Mechanism("OAUTHBEARER"), Message(BAD_TOKEN), Message("\x01"), Versions],
            &[Some(0), Some(0), Some(58), closed],
        ),
        (&[Mechanism("OAUTHBEARER"), Message(BAD_TOKEN), Topics, Versions], &[Some(0), Some(0), Some(EMPTY), closed]),
    ] {
        assert_eq!(answers(&secured, Listener::SaslPlaintext, script), expected, "{script:?}");
    }
    let login = [Mechanism("PLAIN"), Password(PASSWORD)];
    for (script, expected) in [
        (&[Password(PASSWORD), Topics][..], &[Some(34), Some(0)][..]),
        (&[Mechanism("PLAIN"), Password(PASSWORD), Topics], &[Some(0); 3]),
        (&[Mechanism("PLAIN"), Topics, Topics], &[Some(0), Some(EMPTY), closed]),
        (&[Mechanism("PLAIN"), Password("wrong"), Topics], &[Some(0), Some(58), closed]),
        (&[Mechanism("OAUTHBEARER"), Message(BAD_TOKEN)], &[Some(0), closed]),
    ] {
        let again = answers(&secured, Listener::SaslPlaintext, &[&login, script].concat());
        assert_eq!(again[login.len()..], *expected, "again: {script:?}");
    }
    // A listener without logins refuses them, and serves on.
    for first in [Mechanism("PLAIN"), Password(PASSWORD)] {
        assert_eq!(answers(&secured, Listener::Plaintext, &[first, Topics]), [Some(34), Some(0)], "{first:?}");
    }
}
