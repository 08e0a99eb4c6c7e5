//! Properties that hold for any messages of a broker. Called by the fuzz target `sasl` and by tests with random pieces
//! of messages; not part of the program.

use super::{Exchange, Mechanism, SaltedKeys, SaslFault, Secret};

/// Checks that a broker that knows neither password nor nonce ends no exchange of SCRAM with success, and that an
/// exchange takes nothing after its end. Lines are the broker's messages; `*` in a line stands for the client's nonce.
///
/// # Panics
/// The property does not hold.
pub(crate) fn challenges(bytes: &[u8]) {
    let secret = Secret::from(b"pencil".to_vec());
    let keys = SaltedKeys::default();
    for mechanism in Mechanism::ALL {
        let (mut exchange, first) = Exchange::begin(mechanism, "user", &secret, &keys).expect("usable secret");
        let first = str::from_utf8(&first).expect("ASCII");
        let nonce = first.rsplit_once("r=").map_or("", |(_, nonce)| nonce);
        let scram = matches!(mechanism, Mechanism::ScramSha256 | Mechanism::ScramSha512);
        let mut ended = false;
        for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let challenge = line.split(|byte| *byte == b'*').collect::<Vec<_>>().join(nonce.as_bytes());
            let result = exchange.step(&challenge);
            assert!(!ended || result == Err(SaslFault::Ended), "{mechanism:?} goes on after its end");
            match result {
                Ok(Some(message)) => assert!(number == 0 && !message.is_empty(), "{mechanism:?}: message {number}"),
                Ok(None) => {
                    assert!(!scram && number == 0 && challenge.is_empty(), "{mechanism:?} succeeds");
                    ended = true;
                }
                Err(fault) => {
                    let text = fault.to_string();
                    assert!(text.chars().count() < 300 && !text.contains(char::is_control), "{text:?}");
                    ended = true;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    const PIECES: [&[u8]; 22] = [
        b"r=*",
        b"r=*server,s=QSXCR+Q6sek8bf92,i=4096",
        b"server",
        b",",
        b"s=",
        b"QSXCR+Q6sek8bf92",
        b",i=4096",
        b"i=4095",
        b"i=1000001",
        b"i=99999999999999999999",
        b"m=x",
        b"x=y",
        b"e=other-error",
        b"v=",
        b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
        b"=",
        b"\n",
        b"\n",
        br#"{"status":"invalid_token"}"#,
        b"\x01",
        b"\0",
        b"\xff",
    ];

    proptest! {
        #[test]
        fn random_challenges_never_succeed(pieces in prop::collection::vec(select(&PIECES[..]), 0..8)) {
            super::challenges(&pieces.concat());
        }

        #[test]
        fn arbitrary_bytes_never_succeed(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            super::challenges(&bytes);
        }
    }
}
