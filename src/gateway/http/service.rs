//! What a connection needs from the gateway to have its requests answered.
//!
//! Implemented by [`routes`](super::routes); called by the threads of [`connection`](super::connection) and [`outgoing`](super::outgoing).

use super::head::Head;
use crate::gateway::reply::{Parting, Reply, Ticket};

/// What answers requests.
pub(in crate::gateway) trait Service: Send + Sync + 'static {
    /// What is held from the moment that a request is whole until its response is written.
    type Counted: Send;

    /// A request is whole.
    fn begin(&self) -> Self::Counted;

    /// Whether the body is looked into; what is not wanted is not waited for.
    fn wants_body(&self, head: &Head) -> bool;

    /// Has the reply given, at once or later. The ticket of one that waits.
    fn take(&self, head: &Head, body: &[u8], reply: Reply) -> Option<Ticket>;

    /// Has a reply that waits given, or withdrawn, for this reason. False: another thread is giving it.
    fn part(&self, ticket: Ticket, parting: Parting) -> bool;

    /// A response with this status is about to be written.
    fn responds(&self, status: u16);

    /// Whether connections end with their next response.
    fn is_stopping(&self) -> bool;
}
