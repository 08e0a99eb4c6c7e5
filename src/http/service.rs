//! What a connection needs to have its requests answered.
//!
//! Implemented by the gateway's `routes`; called by the threads of [`connection`](super::connection) and
//! [`outgoing`](super::outgoing).

use super::head::Head;
use crate::http::reply::{Parted, Parting, Reply, Ticket};
use std::time::Instant;
use tiny_http::Method;

/// The label of requests without a known route or method: their number must not depend on callers.
const OTHER: &str = "other";

/// What is counted of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// The route, as in the documentation: `/tasks/{id}`.
    pub(crate) route: &'static str,
    pub(crate) method: &'static str,
    /// When the request was complete.
    pub(crate) at: Instant,
}

impl Facts {
    /// `None`: the head is not well-formed; or the path is unknown.
    pub(crate) fn new(head: Option<&Head>, route: Option<&'static str>) -> Self {
        let method = match head.map(|head| &head.method) {
            Some(Method::Get) => "GET",
            Some(Method::Head) => "HEAD",
            Some(Method::Post) => "POST",
            _ => OTHER,
        };
        Self { route: route.unwrap_or(OTHER), method, at: Instant::now() }
    }
}

/// Answers requests.
pub(crate) trait Service: Send + Sync + 'static {
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

    /// The route of a request, for its [`Facts`]; `None`: the path is unknown.
    fn route(&self, head: &Head) -> Option<&'static str>;

    /// Counts a response with this status, before it is written.
    fn responds(&self, facts: Facts, status: u16);

    /// Whether connections end with their next response.
    fn is_stopping(&self) -> bool;
}
