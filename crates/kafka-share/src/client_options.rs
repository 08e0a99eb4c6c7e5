//! Options that all connections of one client share: brokers, name, deadlines, and the interrupter.
//!
//! Data only. Made by each program, read by [`connection`](super::connection) and by everything above it.

use std::sync::Arc;
use std::time::Duration;

use super::address::BrokerAddress;
use super::interrupt::Interrupter;
use super::login::Login;
use super::resolve::Resolver;
use super::statistics::Statistics;
use super::throttle::Throttles;
use super::tls::Tls;

/// Options that all connections of one client share.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Brokers tried first, and whenever no known broker answers. Kafka: `bootstrap.servers`.
    pub bootstrap: Vec<BrokerAddress>,
    /// Name of this client in the brokers' logs and quotas. Kafka: `client.id`.
    pub client_id: String,
    /// TLS on every connection; `None`: plain. Kafka: `security.protocol`.
    pub tls: Option<Arc<Tls>>,
    /// Login on every connection; `None`: anonymous, or by the certificate. Kafka: `sasl.mechanism`.
    pub login: Option<Arc<Login>>,
    /// Longest wait for the addresses of a broker's name, and then for a TCP connection to any of them. Kafka:
    /// `socket.connection.setup.timeout.ms`.
    pub connect_timeout: Duration,
    /// Longest wait for a response: only this detects a frozen broker. Kafka: `request.timeout.ms`.
    pub request_timeout: Duration,
    /// Wakes every waiting call of this client.
    pub interrupter: Interrupter,
    /// Counts connections and the times of requests.
    pub statistics: Statistics,
    /// The addresses of the brokers' names.
    pub(super) resolver: Resolver,
    /// The brokers that throttle this client.
    pub(super) throttles: Throttles,
}

impl ClientOptions {
    /// Options with the default deadlines: 2 s to connect, 5 s for a response.
    pub fn new(bootstrap: Vec<BrokerAddress>, client_id: impl Into<String>) -> Self {
        Self {
            bootstrap,
            client_id: client_id.into(),
            tls: None,
            login: None,
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            interrupter: Interrupter::new(),
            statistics: Statistics::default(),
            resolver: Resolver::default(),
            throttles: Throttles::default(),
        }
    }
}
