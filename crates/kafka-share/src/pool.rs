//! One connection per broker for one user, opened on demand and replaced when broken.
//!
//! Not shared between threads, and repeats nothing: its owner decides what a failure means. Used by producer, reader
//! and admin, which talk to the leaders of many partitions.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::cluster::Cluster;
use super::connection::Connection;
use super::error::Result;

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
