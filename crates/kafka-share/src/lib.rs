//! A synchronous client of Apache Kafka for share groups (KIP-932).
//!
//! Built on the codec crate `kafka-protocol` (generated from Kafka's own schemas) and `std::net::TcpStream`. Every call
//! blocks its thread until the response or its own deadline; an [`Interrupter`] wakes them all. The client has no
//! transactions and no consumer groups, and compresses nothing. It knows nothing of tasks, workers or gateways. Called
//! by both services and the drill; the embedded broker uses the wire formats.
//!
//! | module | for |
//! |---|---|
//! | [`address`] | broker addresses |
//! | [`error`] | error codes and the one retry decision |
//! | [`interrupt`] | waking blocked calls from another thread |
//! | [`connection`] | one connection: frames, correlation, deadlines |
//! | `transport`, [`tls`] | its bytes, plain or in TLS; certificates |
//! | [`login`], [`sasl`], `token_command` | its login, with its renewal; the mechanisms; secrets that a program prints |
//! | `stamp` | noticing files that change |
//! | `client_options` | options that all connections of a client share |
//! | `dial`, `resolve` | connecting: sockets that notice a peer that is gone; names, within a limit |
//! | `bounded` | decoding that accepts no count beyond the received bytes |
//! | `throttle` | quotas: for how long a broker reads nothing from a connection |
//! | [`cluster`] | bootstrap list, metadata, leaders, coordinators |
//! | `pool` | one connection per broker for one user |
//! | [`admin`] | support of the cluster, topics, settings, offsets |
//! | [`records`] | encoding and decoding record batches |
//! | [`compression`] | the codecs of record batches |
//! | `fetch`, `offsets` | the requests of that name |
//! | [`partitioner`] | key to partition, as Kafka's own producers do |
//! | [`producer`] | idempotent, batching, with each record's outcome |
//! | [`reader`] | all records of a topic, without a group |
//! | [`statistics`] | counts of connections, times of requests |
//! | [`share_wire`], [`share_session`], [`share_membership`] | the share group (KIP-932) |

pub mod address;
pub mod admin;
mod bounded;
#[cfg(test)]
mod certificates;
mod client_options;
pub mod cluster;
pub mod compression;
pub mod connection;
mod dial;
pub mod error;
mod fetch;
pub mod interrupt;
pub mod login;
mod offsets;
pub mod partitioner;
mod pool;
pub mod producer;
pub mod reader;
pub mod records;
mod resolve;
pub mod sasl;
pub mod share_lag;
pub mod share_membership;
pub mod share_session;
pub mod share_wire;
mod stamp;
pub mod statistics;
mod throttle;
pub mod tls;
mod token_command;
mod transport;

pub use address::BrokerAddress;
pub use client_options::ClientOptions;
pub use cluster::{Cluster, Partition, Topic};
pub use connection::{ApiVersions, Connection};
pub use error::{ErrorCode, KafkaError, Result, Retry};
pub use interrupt::Interrupter;
pub use producer::{
    Closed, Delivered, Delivery, DeliveryError, Producer, ProducerEvents, ProducerOptions, ProducerRecord,
    ProducerSender, TrySendError,
};
pub use reader::{Lookup, ReadRecord, Reader, ReaderOptions, StartAt};
