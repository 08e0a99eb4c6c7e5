//! One request that is to be answered, seen from both sides: the connection's thread waits, whoever has the answer gives it.
//!
//! An [`Exchange`] is answered exactly once: giving the answer consumes it, and one that is dropped answers 500 by itself, so that no
//! connection waits for ever. What is given is made into a response on the connection's own thread, not on the giver's.

use super::answer::Answer;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;

/// What a request is answered with.
#[derive(Clone, Debug)]
pub(super) enum Given {
    /// A response.
    Answer(Answer),
    /// The value of a result's record, for a caller who waited for it.
    Result(Bytes),
}

impl From<Given> for Answer {
    fn from(given: Given) -> Self {
        match given {
            Given::Answer(answer) => answer,
            Given::Result(value) => Self::result(&value),
        }
    }
}

#[derive(Debug, Default)]
struct Slot {
    given: Mutex<Option<Given>>,
    filled: Condvar,
}

/// The side that answers.
#[derive(Debug)]
pub(super) struct Exchange {
    slot: Option<Arc<Slot>>,
}

/// The side that waits.
#[derive(Debug)]
pub(super) struct Awaited(Arc<Slot>);

impl Exchange {
    /// Both sides.
    pub(super) fn new() -> (Self, Awaited) {
        let slot: Arc<Slot> = Arc::default();
        (Self { slot: Some(Arc::clone(&slot)) }, Awaited(slot))
    }

    /// Answers with a response.
    pub(super) fn answer(mut self, answer: Answer) {
        self.give(Given::Answer(answer));
    }

    /// Answers with a result that was waited for.
    pub(super) fn result(mut self, value: Bytes) {
        self.give(Given::Result(value));
    }

    fn give(&mut self, given: Given) {
        let Some(slot) = self.slot.take() else { return };
        *slot.given.lock() = Some(given);
        slot.filled.notify_one();
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.slot.is_some() {
            self.give(Given::Answer(Answer::problem(500, "the gateway has lost this request; send it again", None)));
        }
    }
}

impl Awaited {
    /// Waits for the answer. It has no deadline of its own: whoever holds the exchange has one.
    pub(super) fn wait(self) -> Answer {
        let mut given = self.0.given.lock();
        loop {
            match given.take() {
                Some(given) => return given.into(),
                None => self.0.filled.wait(&mut given),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_reaches_the_thread_that_waits() {
        let (exchange, awaited) = Exchange::new();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| awaited.wait());
            exchange.answer(Answer::problem(404, "nothing", None));
            assert_eq!(waiter.join().expect("no panic").status(), 404);
        });
    }

    #[test]
    fn a_result_is_made_into_a_response_by_who_waits() {
        let (exchange, awaited) = Exchange::new();
        exchange.result(Bytes::from_static(br#"{"task_id":"t","success":false,"error":"no","type":"result"}"#));
        assert_eq!(awaited.wait().status(), 500);
    }

    #[test]
    fn an_exchange_that_gets_lost_is_answered_all_the_same() {
        let (exchange, awaited) = Exchange::new();
        drop(exchange);
        assert_eq!(awaited.wait().status(), 500);
    }
}
