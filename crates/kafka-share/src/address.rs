//! Broker addresses, as users write them and as brokers announce them.
//!
//! Parses only; resolves no name and opens no connection. Called by the configuration (bootstrap list) and by
//! [`cluster`](super::cluster) (addresses in metadata).

use std::fmt;
use std::str::FromStr;

use program::options::values::{self, Read};

/// Host (name, IPv4 or IPv6 address without brackets) and port of one broker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BrokerAddress {
    /// Name or address, never with brackets.
    pub host: String,
    /// TCP port, never 0.
    pub port: u16,
}

/// Why a text is not a broker address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No `:port` at the end.
    #[error("no port; expected host:port, for example 127.0.0.1:9092")]
    NoPort,
    /// The part after the last colon is no port number.
    #[error("\"{}\" is no port; expected a number from 1 to 65535", .0.escape_debug())]
    Port(String),
    /// No host before the port, or characters that no host name has.
    #[error(
        "\"{}\" is no host name; expected a name, an IPv4 address, or an IPv6 address in brackets",
        .0.escape_debug()
    )]
    Host(String),
}

impl BrokerAddress {
    /// Makes an address from the host and port of a broker's announcement.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// Parses a comma-separated list, such as `KAFKA_BOOTSTRAP_SERVERS`.
    ///
    /// # Errors
    /// The first item that is no address, as [`values::list`] reports it.
    pub fn list(text: &str) -> Read<Vec<Self>> {
        values::list(text, str::parse)
    }
}

impl FromStr for BrokerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (host, port) = text.rsplit_once(':').ok_or(AddressError::NoPort)?;
        // Digits only: `u16::from_str` would also take "+9092".
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let number = port.parse::<u16>().ok().filter(|&number| digits && number != 0);
        let bare = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok().then_some(inner),
            None => is_host(host).then_some(host),
        };
        let host = bare.ok_or_else(|| AddressError::Host(host.to_owned()))?;
        let port = number.ok_or_else(|| AddressError::Port(port.to_owned()))?;
        Ok(Self::new(host, port))
    }
}

/// Host names and IPv4 addresses consist of letters, digits, `-`, `_` and `.`.
fn is_host(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

impl fmt::Display for BrokerAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            // A broker announces its host itself, so the text is escaped like everything from outside.
            write!(formatter, "{}:{}", self.host.escape_debug(), self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_names_its_first_invalid_item() {
        let two = vec![BrokerAddress::new("a", 1), BrokerAddress::new("::1", 2)];
        assert_eq!(BrokerAddress::list("a:1, [::1]:2"), Ok(two));
        assert!(BrokerAddress::list("a:1,b").expect_err("no port").starts_with("has the item \"b\": no port"));
        assert!(BrokerAddress::list("a:1,").expect_err("an empty item").starts_with("has the item \"\""));
    }

    #[test]
    fn addresses_survive_a_round_trip() {
        for text in ["127.0.0.1:9092", "kafka-1.example.org:19092", "[::1]:9092", "my_broker:1"] {
            assert_eq!(text.parse::<BrokerAddress>().map(|address| address.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("[::1]:9092".parse::<BrokerAddress>(), Ok(BrokerAddress::new("::1", 9092)));
    }

    #[test]
    fn each_invalid_address_is_reported_with_its_faulty_part() {
        let fault = |text: &str| text.parse::<BrokerAddress>().expect_err(text);
        assert_eq!(fault("localhost"), AddressError::NoPort);
        assert_eq!(fault(""), AddressError::NoPort);
        for port in ["", "0", "65536", "+9092", "x", " 9092"] {
            assert_eq!(fault(&format!("localhost:{port}")), AddressError::Port(port.to_owned()));
        }
        for host in ["", "a b", "[::1", "::1", "http://kafka", "[kafka]"] {
            assert_eq!(fault(&format!("{host}:9092")), AddressError::Host(host.to_owned()));
        }
    }
}
