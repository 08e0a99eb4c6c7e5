//! The parts of the gateway that read what callers send, by themselves: instrumented, the whole takes many minutes to
//! build.

#![allow(dead_code, reason = "the rest of the gateway uses the rest")]

#[path = "../src/gateway"]
mod gateway {
    #[path = "http"]
    pub(crate) mod http {
        mod chunked;
        mod fuzzing;
        mod head;
        mod refusal;

        pub(crate) use fuzzing::{chunks as try_chunks, head as try_head};
        use refusal::Refusal;
    }
}

/// Tries the bytes as the head of a request.
pub fn head(bytes: &[u8]) {
    gateway::http::try_head(bytes);
}

/// Tries the bytes as a chunked body.
pub fn chunks(bytes: &[u8]) {
    gateway::http::try_chunks(bytes);
}
