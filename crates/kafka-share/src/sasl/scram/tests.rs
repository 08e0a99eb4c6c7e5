//! Tests of SCRAM: the vector of RFC 7677, and every refusal.

use super::*;

/// The client's nonce, the broker's nonce and the salt of RFC 7677, section 3.
const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
const SERVER_NONCE: &str = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";

const SHA_256: (&str, &str) =
    ("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=", "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");

/// The same user, password, nonces and salt with SHA-512, by Python's `hashlib`, which gives RFC 7677's values for
/// `a = "sha256"`:
/// ```python
/// import base64, hashlib, hmac
/// a, n = "sha512", "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
/// mac = lambda key, text: hmac.new(key, text, a).digest()
/// salt = "W22ZaJ0SNY7soEsUEjb6gQ=="
/// salted = hashlib.pbkdf2_hmac(a, b"pencil", base64.b64decode(salt), 4096)
/// signed = f"n=user,r=rOprNGfwEbeRWgbNEkqO,{n},s={salt},i=4096,c=biws,{n}".encode()
/// key = mac(salted, b"Client Key")
/// proof = bytes(x ^ y for x, y in zip(key, mac(hashlib.new(a, key).digest(), signed)))
/// print(base64.b64encode(proof), base64.b64encode(mac(mac(salted, b"Server Key"), signed)))
/// ```
const SHA_512: (&str, &str) = (
    "gMGXRcevScNtxZ6/8lQYpGtnsNAc3mGcmNomv+xnoOMw+3R2xNJdMNnzMlTN8PPC6wdp6dybEmDYXYTxwnYPJQ==",
    "ZQnYEgWQMFmmsM8aQMF0nDDCy/AgCzkwk8CmMZYcMg0vSVlKDanekLtifDSeVGT4+5ZxXnJq199RVG2rR7N7Zw==",
);

fn begin_as(
    hash: Hash,
    username: &str,
    password: &str,
    keys: &SaltedKeys,
) -> Result<(Scram, Zeroizing<Vec<u8>>), SaslFault> {
    Scram::begin(hash, username, &Secret::from(password.as_bytes().to_vec()), keys, NONCE.to_owned())
}

fn begun() -> Scram {
    begin_as(Hash::Sha256, "user", "pencil", &SaltedKeys::default()).expect("usable").0
}

fn server_first(salt: &str) -> String {
    format!("r={SERVER_NONCE},s={salt},i=4096")
}

/// An exchange that has sent its proof.
fn proved() -> Scram {
    let mut scram = begun();
    assert!(scram.step(server_first(SALT).as_bytes()).is_ok_and(|message| message.is_some()));
    scram
}

#[test]
fn messages_equal_the_vectors() {
    for (hash, (proof, signature)) in [(Hash::Sha256, SHA_256), (Hash::Sha512, SHA_512)] {
        let (mut scram, first) = begin_as(hash, "user", "pencil", &SaltedKeys::default()).expect("usable");
        assert_eq!(str::from_utf8(&first), Ok("n,,n=user,r=rOprNGfwEbeRWgbNEkqO"));
        let second = scram.step(server_first(SALT).as_bytes()).expect("accepted").expect("a proof");
        assert_eq!(str::from_utf8(&second), Ok(&*format!("c=biws,r={SERVER_NONCE},p={proof}")));
        assert_eq!(scram.step(format!("v={signature}").as_bytes()), Ok(None));
    }
}

#[test]
fn optional_extensions_are_ignored_but_signed() {
    let mut scram = proved();
    assert_eq!(scram.step(format!("v={},x=y", SHA_256.1).as_bytes()), Ok(None));

    let mut scram = begun();
    let extended = format!("{},x=y", server_first(SALT));
    let second = scram.step(extended.as_bytes()).expect("accepted").expect("a proof");
    assert!(!str::from_utf8(&second).expect("text").contains(SHA_256.0), "the proof covers the extension");
    assert_eq!(scram.step(format!("v={}", SHA_256.1).as_bytes()), Err(SaslFault::ServerSignature));
}

#[test]
fn comma_and_equals_sign_of_a_user_name_are_encoded() {
    let (_, first) = begin_as(Hash::Sha256, "a=b,c=2C", "pencil", &SaltedKeys::default()).expect("usable");
    assert_eq!(str::from_utf8(&first), Ok("n,,n=a=3Db=2Cc=3D2C,r=rOprNGfwEbeRWgbNEkqO"));
}

#[test]
fn user_names_and_passwords_are_printable_ascii() {
    let begin = |username, password| begin_as(Hash::Sha256, username, password, &SaltedKeys::default()).err();
    assert_eq!(begin(" ~", " ~"), None);
    for (text, fault) in [
        ("", SaslFault::Empty as fn(&'static str) -> SaslFault),
        ("é", SaslFault::NotPrintableAscii),
        ("a\u{a0}b", SaslFault::NotPrintableAscii),
        ("a\0", SaslFault::NotPrintableAscii),
        ("a\tb", SaslFault::NotPrintableAscii),
        ("a\u{7f}", SaslFault::NotPrintableAscii),
        ("a\n\n", SaslFault::NotPrintableAscii),
    ] {
        assert_eq!(begin(text, "pencil"), Some(fault("user name")), "{text:?}");
        assert_eq!(begin("user", text), Some(fault("password")), "{text:?}");
    }
}

#[test]
fn malformed_first_message_is_refused() {
    let nonce = "its nonce is not the client's with a part of the broker's";
    let salt = "its salt is empty or not base64";
    let number = "its number of iterations is not a number";
    let extension = "it has a mandatory extension (m=), and this client knows none";
    for (message, detail) in [
        (String::new(), "its nonce (r=) is missing"),
        (format!("s={SALT},r={SERVER_NONCE},i=4096"), "its nonce (r=) is missing"),
        (format!("r={SERVER_NONCE}"), "its salt (s=) is missing"),
        (format!("r={SERVER_NONCE},x=y,s={SALT},i=4096"), "its salt (s=) is missing"),
        (format!("r={SERVER_NONCE},s={SALT}"), "its number of iterations (i=) is missing"),
        // Another nonce, a part of ours, ours only, and the broker's with a space or a letter outside ASCII.
        (format!("r=x{SERVER_NONCE},s={SALT},i=4096"), nonce),
        (format!("r={},s={SALT},i=4096", &NONCE[..NONCE.len() - 1]), nonce),
        (format!("r={NONCE},s={SALT},i=4096"), nonce),
        (format!("r={NONCE} x,s={SALT},i=4096"), nonce),
        (format!("r={NONCE}é,s={SALT},i=4096"), nonce),
        (server_first(""), salt),
        (server_first("W22ZaJ0SNY7soEsUEjb6gQ"), salt),
        (server_first("W22Z!J0S"), salt),
        (format!("r={SERVER_NONCE},s={SALT},i="), number),
        (format!("r={SERVER_NONCE},s={SALT},i=+4096"), number),
        (format!("r={SERVER_NONCE},s={SALT},i=4096 "), number),
        (format!("r={SERVER_NONCE},s={SALT},i=99999999999999999999"), number),
        (format!("m=x,{}", server_first(SALT)), extension),
        (format!("{},m=x", server_first(SALT)), extension),
    ] {
        assert_eq!(begun().step(message.as_bytes()), Err(SaslFault::Malformed(detail)), "{message}");
    }
    assert_eq!(begun().step(b"r=\xff"), Err(SaslFault::Malformed("it is not UTF-8")));
}

#[test]
fn number_of_iterations_is_bounded_on_both_sides() {
    for number in [0, 1, 4095, 1_000_001, 1 << 32, u64::MAX] {
        let message = format!("r={SERVER_NONCE},s={SALT},i={number}");
        let fault = begun().step(message.as_bytes()).expect_err("refused");
        assert_eq!(fault, SaslFault::Iterations(number));
        let text = format!("asks for {number} iterations of SCRAM; this client takes 4096 to 1000000");
        assert!(fault.to_string().contains(&text), "{fault}");
    }
    let most = format!("r={SERVER_NONCE},s={SALT},i=1000000");
    assert_eq!(ServerFirst::parse(&most, NONCE).map(|first| first.iterations.get()), Ok(1_000_000));
}

#[test]
fn broker_that_does_not_know_the_password_is_refused() {
    for signature in [SHA_512.1, SHA_256.0, "", "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95A==", "AAAA"] {
        let result = proved().step(format!("v={signature}").as_bytes());
        assert_eq!(result, Err(SaslFault::ServerSignature), "{signature}");
    }
    let (mut other, _) = begin_as(Hash::Sha256, "user", "pencil2", &SaltedKeys::default()).expect("usable");
    other.step(server_first(SALT).as_bytes()).expect("accepted");
    assert_eq!(other.step(format!("v={}", SHA_256.1).as_bytes()), Err(SaslFault::ServerSignature));
}

#[test]
fn malformed_last_message_is_refused() {
    for (message, detail) in [
        ("", "its signature (v=) is missing"),
        ("x=y,v=AAAA", "its signature (v=) is missing"),
        (&server_first(SALT), "its signature (v=) is missing"),
        ("v=!", "its signature is not base64"),
        ("v=AAAA,m=x", "it has a mandatory extension (m=), and this client knows none"),
    ] {
        assert_eq!(proved().step(message.as_bytes()), Err(SaslFault::Malformed(detail)), "{message}");
    }
}

#[test]
fn error_of_the_broker_is_shown_escaped_and_bounded() {
    assert_eq!(proved().step(b"e=invalid-proof"), Err(SaslFault::Refused("invalid-proof".to_owned())));
    assert_eq!(begun().step(b"e=unknown-user\n"), Err(SaslFault::Refused("unknown-user\\n".to_owned())));
    for long in [format!("e={}", "\u{202e}".repeat(300)), format!("e={}", "é".repeat(3000))] {
        let Err(SaslFault::Refused(text)) = proved().step(long.as_bytes()) else { panic!("not refused") };
        assert!((190..=200).contains(&text.chars().count()), "{text}");
    }
}

#[test]
fn second_login_with_the_same_salt_computes_no_pbkdf2() {
    let keys = SaltedKeys::default();
    let computed = || keys.0.lock().computed;
    let login = |hash, password, salt| {
        let (mut scram, _) = begin_as(hash, "user", password, &keys.clone()).expect("usable");
        let message = scram.step(server_first(salt).as_bytes()).expect("accepted").expect("a proof");
        str::from_utf8(&message).expect("text").rsplit_once("p=").expect("a proof").1.to_owned()
    };
    assert_eq!((login(Hash::Sha256, "pencil", SALT).as_str(), computed()), (SHA_256.0, 1));
    assert_eq!((login(Hash::Sha256, "pencil", SALT).as_str(), computed()), (SHA_256.0, 1));

    // Another password, hash function, salt or number of iterations is never served from it.
    assert_ne!(login(Hash::Sha256, "pencil2", SALT), SHA_256.0);
    assert_eq!(computed(), 2);
    assert_eq!((login(Hash::Sha512, "pencil", SALT).as_str(), computed()), (SHA_512.0, 3));
    login(Hash::Sha256, "pencil", "AAAA");
    assert_eq!(computed(), 4);
    let iterations = NonZeroU32::new(4097).expect("not 0");
    let salt = BASE64.decode(SALT).expect("base64");
    keys.salted_password(Hash::Sha256, b"pencil", &salt, iterations);
    assert_eq!(computed(), 5);
    assert_eq!(keys.0.lock().entries.len(), KEPT_KEYS);

    // The oldest made room, the others are still there.
    login(Hash::Sha256, "pencil2", SALT);
    assert_eq!(computed(), 5);
    assert_eq!((login(Hash::Sha256, "pencil", SALT).as_str(), computed()), (SHA_256.0, 6));
}

#[test]
fn nonces_are_32_printable_characters_and_differ() {
    let nonces = [random_nonce().expect("random"), random_nonce().expect("random")];
    assert_ne!(nonces[0], nonces[1]);
    for nonce in nonces {
        assert!(nonce.len() == 32 && nonce.bytes().all(|byte| byte.is_ascii_graphic() && byte != b','), "{nonce}");
    }
}
