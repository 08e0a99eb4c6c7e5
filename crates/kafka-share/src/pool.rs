//! One connection per broker for one user, opened on demand and replaced when broken.
//!
//! Not shared between threads. It repeats nothing but a write on a connection that died while idle: its owner decides
//! what a failure means. Used by producer, reader and admin, which talk to the leaders of many partitions.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::ErrorKind;
use std::time::Duration;

use kafka_protocol::protocol::Request;

use super::cluster::Cluster;
use super::connection::Connection;
use super::error::{KafkaError, Result};

/// The connections of one user.
#[derive(Debug)]
pub(super) struct Pool {
    cluster: Cluster,
    connections: HashMap<i32, Connection>,
}

impl Pool {
    pub(super) fn new(cluster: Cluster) -> Self {
        Self { cluster, connections: HashMap::new() }
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Returns the connection to the broker with this node id, after connecting if needed.
    pub(super) fn get(&mut self, node: i32) -> Result<&mut Connection> {
        match self.connections.entry(node) {
            Entry::Occupied(held) => {
                let held = held.into_mut();
                if held.is_broken() {
                    *held = self.cluster.connect(node)?;
                }
                Ok(held)
            }
            Entry::Vacant(place) => Ok(place.insert(self.cluster.connect(node)?)),
        }
    }

    /// Sends a request on the connection to this broker and returns its correlation id. If writing fails on a kept
    /// connection, the broker may have closed it while it was idle: a new connection gets the request, which must be
    /// repeatable.
    ///
    /// # Errors
    /// Also `Io` with a time-out: the broker reads nothing, and the caller has waited long enough.
    pub(super) fn send<R: Request>(&mut self, node: i32, version: i16, request: &R) -> Result<i32> {
        let is_kept = self.connections.get(&node).is_some_and(|connection| !connection.is_broken());
        match self.get(node)?.send(version, request) {
            Err(KafkaError::Io { source, .. }) if is_kept && source.kind() != ErrorKind::TimedOut => {
                self.get(node)?.send(version, request)
            }
            sent => sent,
        }
    }

    /// How long the broker still throttles the connection to it.
    pub(super) fn muted_for(&self, node: i32) -> Duration {
        self.connections.get(&node).map_or(Duration::ZERO, Connection::muted_for)
    }

    /// Closes the connection to this broker, if there is one.
    pub(super) fn drop_node(&mut self, node: i32) {
        self.connections.remove(&node);
    }

    /// Drops the idle connections that brokers have closed; returns whether any connection is left.
    pub(super) fn any_alive(&mut self) -> bool {
        self.connections.retain(|_, connection| connection.is_alive());
        !self.connections.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use kafka_protocol::messages::metadata_response::MetadataResponseBroker;
    use kafka_protocol::messages::{BrokerId, MetadataRequest, MetadataResponse};
    use kafka_protocol::protocol::StrBytes;
    use socket2::SockRef;

    use super::super::client_options::ClientOptions;
    use super::*;

    #[test]
    fn request_gets_a_new_connection_if_the_kept_one_was_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = i32::from(listener.local_addr().expect("bound").port());
        let broker = MetadataResponseBroker::default().with_node_id(BrokerId(1)).with_port(port);
        let broker = broker.with_host(StrBytes::from_static_str("127.0.0.1"));
        let mut pool = Pool::new(Cluster::new(ClientOptions::new(Vec::new(), "test")));
        pool.cluster.learn(MetadataResponse::default().with_brokers(vec![broker])).expect("no error in it");
        let request = MetadataRequest::default();
        assert_eq!(pool.send(1, 12, &request).expect("sent"), 0);
        let (far, _) = listener.accept().expect("a connection");
        // Closing it resets the connection at once, also because of the unread request.
        SockRef::from(&far).set_linger(Some(Duration::ZERO)).expect("a socket");
        drop(far);
        assert_eq!(pool.send(1, 12, &request).expect("sent again"), 0, "the first request of a new connection");
        listener.accept().expect("another connection");
    }
}
