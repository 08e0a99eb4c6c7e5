//! The order of answers on each HTTP connection.
//!
//! A client may send its next request before the first is answered (pipelining, RFC 9112 section 9.3.2); the answers must come
//! in the order of the requests, and the HTTP library makes whoever answers the second wait until the first is answered. So
//! nobody answers directly: every request enters here, every answer is handed in, and what comes out may be written at
//! once. Pure; called under the gateway's lock by whoever receives or answers.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

/// A request's place in the order of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    connection: SocketAddr,
    number: u64,
}

impl Ticket {
    /// The caller's address.
    pub(super) fn address(&self) -> SocketAddr {
        self.connection
    }
}

/// Answers of type `A` that wait for their turn.
#[derive(Debug)]
pub(super) struct Connections<A> {
    queues: HashMap<SocketAddr, VecDeque<(u64, Option<A>)>>,
    next: u64,
    unanswered: usize,
}

impl<A> Connections<A> {
    pub(super) fn new() -> Self {
        Self { queues: HashMap::new(), next: 0, unanswered: 0 }
    }

    /// A request has come on this connection, after all that entered before.
    pub(super) fn enter(&mut self, connection: SocketAddr) -> Ticket {
        let number = self.next;
        self.next += 1;
        self.unanswered += 1;
        self.queues.entry(connection).or_default().push_back((number, None));
        Ticket { connection, number }
    }

    /// The answer to a request is there. Returns the answers that may be written now, in order: none while an earlier
    /// request of the connection is unanswered, otherwise this one and those that waited behind it.
    pub(super) fn answer(&mut self, ticket: Ticket, answer: A) -> Vec<A> {
        let Some(queue) = self.queues.get_mut(&ticket.connection) else { return Vec::new() };
        let Some(place) = queue.iter_mut().find(|(number, _)| *number == ticket.number) else { return Vec::new() };
        if place.1.is_none() {
            self.unanswered -= 1;
        }
        place.1 = Some(answer);
        let mut writable = Vec::new();
        while let Some((_, Some(_))) = queue.front() {
            writable.extend(queue.pop_front().and_then(|(_, answer)| answer));
        }
        if queue.is_empty() {
            self.queues.remove(&ticket.connection);
        }
        writable
    }

    /// The request is let go of without an answer; its connection is of no more use.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        let Some(queue) = self.queues.remove(&ticket.connection) else { return };
        self.unanswered -= queue.iter().filter(|(_, answer)| answer.is_none()).count();
    }

    /// Requests without an answer.
    pub(super) fn unanswered(&self) -> usize {
        self.unanswered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn a_later_answer_waits_for_an_earlier_one() {
        let mut connections = Connections::new();
        let first = connections.enter(address(1));
        let other = connections.enter(address(2));
        let second = connections.enter(address(1));
        assert_eq!(connections.answer(second, "second"), Vec::<&str>::new());
        assert_eq!(connections.answer(other, "other"), ["other"], "another connection does not wait");
        assert_eq!(connections.unanswered(), 1);
        assert_eq!(connections.answer(first, "first"), ["first", "second"]);
        assert_eq!(connections.unanswered(), 0);
        assert!(connections.queues.is_empty(), "nothing is left behind");
    }

    proptest! {
        #[test]
        fn answers_leave_in_the_order_of_their_requests(
            requests in proptest::collection::vec(1u16..4, 1..60), order in any::<u64>(),
        ) {
            let mut connections = Connections::new();
            let mut open: Vec<(Ticket, u16, usize)> = requests
                .iter()
                .enumerate()
                .map(|(number, port)| (connections.enter(address(*port)), *port, number))
                .collect();
            let mut random = fastrand::Rng::with_seed(order);
            random.shuffle(&mut open);
            let mut written: HashMap<u16, Vec<usize>> = HashMap::new();
            for (ticket, port, number) in open {
                for answer in connections.answer(ticket, (port, number)) {
                    written.entry(answer.0).or_default().push(answer.1);
                }
            }
            prop_assert_eq!(connections.unanswered(), 0);
            prop_assert_eq!(written.values().map(Vec::len).sum::<usize>(), requests.len());
            prop_assert!(written.values().all(|numbers| numbers.is_sorted()));
        }
    }
}
