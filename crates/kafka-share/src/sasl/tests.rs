//! Tests of PLAIN, of secrets, and of what all mechanisms have in common.

use super::*;

fn secret(text: &[u8]) -> Secret {
    Secret::from(text.to_vec())
}

fn begin(mechanism: Mechanism, username: &str, password: &[u8]) -> Result<(Exchange, Zeroizing<Vec<u8>>), SaslFault> {
    Exchange::begin(mechanism, username, &secret(password), &SaltedKeys::default())
}

#[test]
fn one_line_break_at_the_end_of_a_secret_is_removed() {
    for (file, bytes) in [
        ("a", "a"),
        ("a\n", "a"),
        ("a\r\n", "a"),
        ("a\n\n", "a\n"),
        ("a\r\n\r\n", "a\r\n"),
        ("a\r", "a\r"),
        ("\na ", "\na "),
        ("\n", ""),
        ("", ""),
    ] {
        assert_eq!(secret(file.as_bytes()).bytes(), bytes.as_bytes(), "{file:?}");
    }
}

#[test]
fn plain_message_equals_that_of_rfc_4616() {
    // Section 4, the first example.
    let (mut exchange, first) = begin(Mechanism::Plain, "tim", b"tanstaaftanstaaf\n").expect("usable");
    assert_eq!(first.as_slice(), b"\0tim\0tanstaaftanstaaf");
    assert_eq!(exchange.step(b""), Ok(None));
    // UTF-8 goes as it is: the broker prepares it.
    let (_, first) = begin(Mechanism::Plain, "тим", "é".as_bytes()).expect("usable");
    assert_eq!(first.as_slice(), "\0тим\0é".as_bytes());
}

#[test]
fn plain_refuses_what_it_cannot_carry() {
    for (username, password, fault) in [
        ("", &b"x"[..], SaslFault::Empty("user name")),
        ("tim", b"", SaslFault::Empty("password")),
        ("tim", b"\r\n", SaslFault::Empty("password")),
        ("t\0m", b"x", SaslFault::Nul("user name")),
        ("tim", b"x\0", SaslFault::Nul("password")),
        ("tim", b"x\xff", SaslFault::NotUtf8),
    ] {
        assert_eq!(begin(Mechanism::Plain, username, password).err(), Some(fault), "{username:?}");
    }
    let (mut exchange, _) = begin(Mechanism::Plain, "tim", b"x").expect("usable");
    assert!(matches!(exchange.step(b"\0"), Err(SaslFault::Malformed(_))));
}

#[test]
fn each_mechanism_begins_by_its_own_form() {
    for (mechanism, beginning) in [
        (Mechanism::Plain, "\0user\0"),
        (Mechanism::ScramSha256, "n,,n=user,r="),
        (Mechanism::ScramSha512, "n,,n=user,r="),
        (Mechanism::OauthBearer, "n,,\x01auth=Bearer "),
    ] {
        let (_, first) = begin(mechanism, "user", b"pencil").expect("usable");
        assert!(first.starts_with(beginning.as_bytes()), "{}", mechanism.name());
    }
    assert!(begin(Mechanism::OauthBearer, "", b"token").is_ok(), "a token needs no user name");
}

#[test]
fn exchange_takes_nothing_after_its_end() {
    let (mut exchange, _) = begin(Mechanism::Plain, "user", b"pencil").expect("usable");
    assert_eq!((exchange.step(b""), exchange.step(b"")), (Ok(None), Err(SaslFault::Ended)));

    let (mut exchange, _) = begin(Mechanism::ScramSha256, "user", b"pencil").expect("usable");
    assert!(matches!(exchange.step(b""), Err(SaslFault::Malformed(_))));
    assert_eq!(exchange.step(b"r="), Err(SaslFault::Ended));
}

#[test]
fn refusal_of_a_token_is_remembered_after_the_end() {
    let (mut exchange, _) = begin(Mechanism::OauthBearer, "", b"token").expect("usable");
    assert_eq!(exchange.refusal(), None);
    assert!(exchange.step(br#"{"status":"invalid_token"}"#).is_ok_and(|message| message.is_some()));
    assert_eq!(exchange.refusal(), Some("invalid_token"));
    let fault = exchange.step(b"").expect_err("refused");
    assert_eq!(fault.to_string(), "the broker refuses the login: invalid_token");
    assert_eq!(exchange.step(b""), Err(SaslFault::Ended));
    assert_eq!(exchange.refusal(), Some("invalid_token"));
}

#[test]
fn faults_and_debug_output_do_not_show_the_secret() {
    let keys = SaltedKeys::default();
    for (mechanism, password) in [
        (Mechanism::Plain, &b"hunter2\0"[..]),
        (Mechanism::Plain, b"hunter2\xff"),
        (Mechanism::ScramSha512, "hunter2é".as_bytes()),
        (Mechanism::OauthBearer, b"hunter2 hunter2"),
    ] {
        let fault = Exchange::begin(mechanism, "user", &secret(password), &keys).err().expect("refused");
        assert!(!format!("{fault} {fault:?}").contains("hunter2"), "{fault:?}");
    }
    assert_eq!(format!("{:?} {keys:?}", secret(b"hunter2")), "Secret(hidden) SaltedKeys(hidden)");
}
