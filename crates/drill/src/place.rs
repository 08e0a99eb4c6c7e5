//! Addresses and settings of a fleet.
//!
//! Data, and the syntax of gateway URLs. Made by the command line and by each kind of fleet.

use std::fmt;
use std::time::Duration;

use kafka_share::tls::TlsFault;
use kafka_share::{BrokerAddress, ClientOptions};
use lastcall::config::{Security, SecurityProtocol};
use program::http::Authority;
use program::options::values::{self, Read};

use super::fact::Pauses;

/// Addresses and settings of a fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Gateways; the load goes to each in turn.
    pub gateways: Vec<GatewayAddress>,
    /// Their addresses for operators (`ADMIN_ADDR`), in the same order; empty: the same addresses.
    pub operators: Vec<GatewayAddress>,
    /// First brokers to ask.
    pub bootstrap: Vec<BrokerAddress>,
    /// `KAFKA_SECURITY_PROTOCOL` and its further options.
    pub security: Security,
    /// `TASKS_TOPIC`
    pub tasks_topic: String,
    /// `RESULTS_TOPIC`
    pub results_topic: String,
    /// `WORKER_GROUP`
    pub group: String,
    /// `DRAIN_TIMEOUT` of the workers.
    pub drain_timeout: Duration,
    /// `STOP_GRACE_PERIOD` of the gateways.
    pub gateway_grace: Duration,
    /// `WORKER_TIMEOUT` of the gateways.
    pub worker_timeout: Duration,
    /// `WORKER_CONCURRENCY` of the workers.
    pub concurrency: u32,
    /// `MAX_DELIVERIES` of the workers.
    pub max_deliveries: u32,
    /// Length of a record lock of the group.
    pub lock: Duration,
    /// Pauses that the broker itself causes.
    pub pauses: Pauses,
}

impl Place {
    /// A fleet with the default settings.
    pub(super) fn of(gateways: Vec<GatewayAddress>, bootstrap: Vec<BrokerAddress>) -> Self {
        Self {
            gateways,
            operators: Vec::new(),
            bootstrap,
            security: Security::default(),
            tasks_topic: "tasks".to_owned(),
            results_topic: "results".to_owned(),
            group: "workers".to_owned(),
            drain_timeout: Duration::from_secs(30),
            gateway_grace: Duration::from_secs(30),
            worker_timeout: Duration::from_secs(5),
            concurrency: 1,
            max_deliveries: 5,
            // The programs write it into the settings of their group.
            lock: Duration::from_secs(15),
            pauses: Pauses::default(),
        }
    }

    /// Options of a client of this Kafka.
    ///
    /// # Errors
    /// A file of TLS cannot be used.
    pub(super) fn client_options(&self, client_id: &str) -> Result<ClientOptions, TlsFault> {
        self.security.client_options(self.bootstrap.clone(), client_id)
    }

    /// The addresses that show the fleet, in the order of the gateways.
    pub(super) fn operators(&self) -> &[GatewayAddress] {
        if self.operators.is_empty() { &self.gateways } else { &self.operators }
    }

    /// Whether the witness can read this Kafka. `kafkang` has no TLS without another C library, and one login.
    pub(super) fn has_witness(&self) -> bool {
        self.security.protocol == SecurityProtocol::Plaintext
    }
}

/// Address of a gateway; shown as a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddress(pub Authority);

impl GatewayAddress {
    /// Reads the URL of a gateway.
    pub(super) fn read(text: &str) -> Read<Self> {
        let expected = "expected http://host:port, for example http://127.0.0.1:8080";
        if text.starts_with("https://") {
            return Err(format!("is https, which the drill does not speak; {expected}"));
        }
        let rest = text.strip_prefix("http://").ok_or_else(|| format!("is no http URL; {expected}"))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let address: BrokerAddress = rest.parse().map_err(|_| format!("is no http URL; {expected}"))?;
        Ok(Self(Authority { host: address.host, port: address.port }))
    }
}

impl From<GatewayAddress> for Authority {
    fn from(address: GatewayAddress) -> Self {
        address.0
    }
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "http://{}", self.0)
    }
}

pub(super) fn gateways(text: &str) -> Read<Vec<GatewayAddress>> {
    if text.contains(',') { values::list(text, GatewayAddress::read) } else { Ok(vec![GatewayAddress::read(text)?]) }
}
