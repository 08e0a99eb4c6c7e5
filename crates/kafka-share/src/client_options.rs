//! What every connection of one client shares: brokers, name, deadlines, and what wakes it.
//!
//! Data only. Made by each program, read by [`connection`](super::connection) and by everything above it.

use std::time::Duration;

use super::address::BrokerAddress;
use super::interrupt::Interrupter;
use super::resolve::Resolver;

/// What every connection of one client shares.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Brokers asked first, and whenever none of the known ones answers. Kafka: `bootstrap.servers`.
    pub bootstrap: Vec<BrokerAddress>,
    /// Name of this client in the brokers' logs and quotas. Kafka: `client.id`.
    pub client_id: String,
    /// Longest wait for a TCP connection, and before it for the addresses of the broker's name. All addresses share it.
    /// Kafka: `socket.connection.setup.timeout.ms`.
    pub connect_timeout: Duration,
    /// Longest wait for an answer: the only thing that detects a frozen broker. Kafka: `request.timeout.ms`.
    pub request_timeout: Duration,
    /// Wakes everything of this client that waits.
    pub interrupter: Interrupter,
    /// The addresses of the brokers' names.
    pub(super) resolver: Resolver,
}

impl ClientOptions {
    /// Options with the default deadlines: 2 s to connect, 5 s for an answer.
    pub fn new(bootstrap: Vec<BrokerAddress>, client_id: impl Into<String>) -> Self {
        Self {
            bootstrap,
            client_id: client_id.into(),
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            interrupter: Interrupter::new(),
            resolver: Resolver::default(),
        }
    }
}
