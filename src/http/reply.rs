//! How a response reaches its caller.
//!
//! A [`Reply`] is given exactly once: giving consumes it, and a dropped reply answers 500, so that no caller waits
//! forever. The thread with the response writes it, while the connection's own thread waits for the next request. A
//! reply that waits is kept in the book of its program under a [`Ticket`]. The connection's thread takes it
//! out when its caller has left or its time is over.

use super::response::Response;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Carries a response to its caller: a connection.
pub(crate) trait Carrier: Debug + Send + Sync {
    /// Sends the response, without waiting for the caller.
    fn carry(self: Arc<Self>, response: Response);
}

#[derive(Debug)]
pub(crate) struct Reply {
    carrier: Option<Arc<dyn Carrier>>,
    preferences: Preferences,
}

/// The preferences of a request (RFC 7240).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Preferences {
    /// `respond-async`: the caller waits only for Kafka's acknowledgement.
    pub(crate) asynchronous: bool,
    /// `wait`: how long the caller waits for the result at most.
    pub(crate) wait: Option<Duration>,
}

/// Identifies a waiting reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) number: u64,
    /// The caller waits until this time.
    pub(crate) until: Instant,
}

/// What became of a reply whose caller left or whose time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parted {
    /// It was given or withdrawn.
    Given,
    /// Another thread has taken it out and gives it.
    Elsewhere,
    /// It waits until a later time.
    Waits(Ticket),
}

/// Why a reply stops waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parting {
    /// Its caller has closed the connection.
    Left,
    /// Its caller's time is over.
    Late,
    /// The gateway ends.
    Stopping,
}

impl Reply {
    pub(crate) fn new(carrier: Arc<dyn Carrier>) -> Self {
        Self { carrier: Some(carrier), preferences: Preferences::default() }
    }

    /// The response will name these preferences, if it shows that they were applied.
    pub(crate) fn applying(mut self, preferences: Preferences) -> Self {
        self.preferences = preferences;
        self
    }

    /// The response will not name the preferred wait, because it was cut short.
    pub(crate) fn without_wait(mut self) -> Self {
        self.preferences.wait = None;
        self
    }

    /// The preferences that the response will name.
    pub(crate) fn preferences(&self) -> Preferences {
        self.preferences
    }

    /// Gives the response.
    pub(crate) fn give(mut self, response: Response) {
        if let Some(carrier) = self.carrier.take() {
            carrier.carry(response.applying(self.preferences));
        }
    }

    /// Gives no response, because the caller has left.
    pub(crate) fn withdraw(mut self) {
        self.carrier = None;
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(carrier) = self.carrier.take() {
            carrier.carry(Response::problem(500, "the gateway has lost this request; send it again", None));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Keeps the statuses of its responses.
    #[derive(Debug, Default)]
    pub(crate) struct Kept(pub(crate) Mutex<Vec<u16>>);

    impl Carrier for Kept {
        fn carry(self: Arc<Self>, response: Response) {
            self.0.lock().push(response.status());
        }
    }

    /// Keeps its responses.
    #[derive(Debug, Default)]
    pub(crate) struct Given(pub(crate) Mutex<Vec<Response>>);

    impl Carrier for Given {
        fn carry(self: Arc<Self>, response: Response) {
            self.0.lock().push(response);
        }
    }

    #[test]
    fn reply_is_given_once_and_answers_500_when_dropped() {
        let kept = Arc::<Kept>::default();
        let reply = || Reply::new(Arc::clone(&kept) as Arc<dyn Carrier>);
        reply().give(Response::problem(404, "nothing", None));
        drop(reply());
        reply().withdraw();
        assert_eq!(*kept.0.lock(), [404, 500]);
    }
}
