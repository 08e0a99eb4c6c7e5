//! Questions for tasks that this gateway does not know, which another may have accepted a moment ago.
//!
//! The tasks topic is read in larger pieces, so what another gateway has accepted is known up to one piece later. Such a question
//! waits for that, and only then is a task said not to exist. Pure; the answers are given by whoever takes the questions out.

use super::exchange::Exchange;
use super::index::TaskKey;
use std::time::{Duration, Instant};

/// Questions that may wait. Beyond, they are answered from what is known.
const MOST: usize = 256;
/// A question waits for so many pieces: the first may have been put together before it came.
const PIECES: u8 = 2;
/// And not longer than this.
const PATIENCE: Duration = Duration::from_secs(3);

/// A question that waits.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) exchange: Exchange,
    pub(super) key: TaskKey,
    pub(super) id: String,
    since: Instant,
    pieces: u8,
}

/// The questions that wait, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Unknown {
    questions: Vec<Question>,
}

impl Unknown {
    /// Lets a question wait; gives it back when too many do.
    pub(super) fn ask(&mut self, exchange: Exchange, key: TaskKey, id: String, now: Instant) -> Result<(), Exchange> {
        if self.questions.len() >= MOST {
            return Err(exchange);
        }
        self.questions.push(Question { exchange, key, id, since: now, pieces: 0 });
        Ok(())
    }

    /// A piece of the tasks topic was read. Returns the questions that can be answered now.
    pub(super) fn piece_read(&mut self) -> Vec<Question> {
        for question in &mut self.questions {
            question.pieces += 1;
        }
        self.questions.extract_if(.., |question| question.pieces >= PIECES).collect()
    }

    /// Returns the questions that have waited for too long.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Exchange> {
        let late = |question: &mut Question| now.saturating_duration_since(question.since) >= PATIENCE;
        self.questions.extract_if(.., late).map(|question| question.exchange).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(unknown: &mut Unknown, now: Instant) -> Result<(), Exchange> {
        let (exchange, _) = Exchange::new();
        unknown.ask(exchange, TaskKey::from_number(1), "id".to_owned(), now)
    }

    #[test]
    fn a_question_waits_for_two_pieces() {
        let mut unknown = Unknown::default();
        ask(&mut unknown, Instant::now()).expect("room");
        assert!(unknown.piece_read().is_empty());
        ask(&mut unknown, Instant::now()).expect("room");
        assert_eq!(unknown.piece_read().len(), 1);
        assert_eq!(unknown.piece_read().len(), 1);
        assert!(unknown.piece_read().is_empty());
    }

    #[test]
    fn a_question_waits_its_time_and_many_do_not_wait_at_all() {
        let now = Instant::now();
        let mut unknown = Unknown::default();
        for _ in 0..MOST {
            ask(&mut unknown, now).expect("room");
        }
        assert!(ask(&mut unknown, now).is_err());
        assert!(unknown.expire(now + PATIENCE - Duration::from_millis(1)).is_empty());
        assert_eq!(unknown.expire(now + PATIENCE).len(), MOST);
    }
}
