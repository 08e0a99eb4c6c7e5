//! What a connection needs to have its requests answered.
//!
//! Implemented by [`routes`](super::routes); called by the threads of [`connection`](super::connection) and [`outgoing`](super::outgoing).

use super::head::Head;
use crate::gateway::reply::{Parted, Parting, Reply, Ticket};

/// Answers requests.
pub(in crate::gateway) trait Service: Send + Sync + 'static {
    /// A guard, held from the complete request until its response is written.
    type Counted: Send;

    /// Counts a complete request.
    fn begin(&self) -> Self::Counted;

    /// Whether the body is needed. A body that is not needed is not awaited.
    fn wants_body(&self, head: &Head) -> bool;

    /// Has the request answered, at once or later. Returns the ticket if the reply waits.
    fn take(&self, head: &Head, body: &[u8], reply: Reply) -> Option<Ticket>;

    /// Has a waiting reply given or withdrawn for this reason, unless it has to wait longer.
    fn part(&self, ticket: Ticket, parting: Parting) -> Parted;

    /// Counts a response with this status, before it is written.
    fn responds(&self, status: u16);

    /// Whether connections end with their next response.
    fn is_stopping(&self) -> bool;
}
