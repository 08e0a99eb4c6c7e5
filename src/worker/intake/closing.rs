//! The end of an intake: it acknowledges every record by name, then closes the session (rule 21).
//!
//! The closing request does not release records of partitions that have left the session, and a superseded connection
//! may still bring records. So the intake settles both first, within its time limit.

use super::{Intake, TICK};
use kafka_share::error::KafkaError;
use kafka_share::share_session::Asked;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time limit for the last requests of a session.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// The same after work was abandoned.
const HURRIED_LIMIT: Duration = Duration::from_millis(330);
/// How often superseded connections are read meanwhile.
const LOOK: Duration = Duration::from_millis(5);

impl Intake {
    /// Settles the remaining records and closes the session. Returns the reason if that failed.
    pub(super) fn close(&mut self) -> Result<Option<String>, KafkaError> {
        let hurried = self.links.control.abandoned.is_triggered();
        let deadline = Instant::now() + if hurried { HURRIED_LIMIT } else { CLOSE_LIMIT };
        let mut closing = false;
        loop {
            let now = Instant::now();
            self.read_superseded(now)?;
            let Some(channel) = &mut self.current else {
                // No session was open, or its end has released every lock.
                let holds = self.links.in_flight.holds_at(self.node);
                return Ok(holds.then(|| format!("no connection to broker {}", self.node)));
            };
            if now >= deadline {
                return Ok(Some(format!("broker {} did not end it in time", self.node)));
            }
            let id = channel.id;
            if let Some((_, asked)) = channel.session.waiting() {
                let wait = deadline.saturating_duration_since(now).min(TICK);
                match channel.session.receive(wait) {
                    Ok(Some(answer)) => {
                        let ends = asked == Asked::Close && answer.refused.is_none();
                        self.take_answer(id, answer)?;
                        // A late record is released by another session (rule 22).
                        if ends && !self.links.in_flight.holds_at(self.node) {
                            return Ok(None);
                        }
                        if ends && let Some(channel) = &mut self.current {
                            (channel.open, closing) = (false, false);
                        }
                    }
                    Ok(None) => {}
                    Err(error) => return Ok(Some(error.to_string())),
                }
                continue;
            }
            if self.open_again || !channel.open {
                self.open(&BTreeMap::new(), now)?;
                continue;
            }
            let due = self.take_due(id);
            if !due.is_empty() {
                self.send(|session| session.send_acknowledge(due))?;
            } else if self.superseded.iter().any(|channel| channel.session.is_waiting()) {
                self.sleep(Some(now + LOOK));
            } else if !closing {
                closing = true;
                self.send(|session| session.send_close())?;
            } else {
                return Ok(None);
            }
        }
    }
}
