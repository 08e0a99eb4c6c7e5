//! The parts of the server that read what callers send, and the part of the client that reads a broker's messages of a
//! login, by themselves: instrumented, the whole takes many minutes to build.

#![allow(dead_code, reason = "the rest of the server and of the client uses the rest")]

#[path = "../src/http"]
mod http {
    mod chunked;
    mod fuzzing;
    mod head;
    mod refusal;

    pub(crate) use fuzzing::{chunks as try_chunks, head as try_head};
    use refusal::Refusal;
}

#[path = "../crates/kafka-share/src"]
mod kafka_share {
    #[path = "sasl/fuzzing.rs"]
    mod fuzzing;
    mod sasl;

    pub(crate) use fuzzing::challenges as try_challenges;
    use sasl::{Exchange, Mechanism, SaltedKeys, SaslFault, Secret};
}

/// Tries the bytes as the head of a request.
pub fn head(bytes: &[u8]) {
    http::try_head(bytes);
}

/// Tries the bytes as a chunked body.
pub fn chunks(bytes: &[u8]) {
    http::try_chunks(bytes);
}

/// Tries the lines as a broker's messages in a login.
pub fn sasl(bytes: &[u8]) {
    kafka_share::try_challenges(bytes);
}
