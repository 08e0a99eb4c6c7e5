//! Responses to callers that leave without a result: their time is over, or the gateway ends.

use super::Tasks;
use super::key::TaskKey;
use super::questions::{self, pending};
use super::waiting::{Late, Leaving, Progress, Waiter, Wish};
use crate::gateway::metrics::Reason;
use crate::http::reply::{Parted, Parting, Reply, Ticket};
use crate::http::response::Response;
use std::time::Instant;

impl Tasks {
    /// Takes out a waiting reply and gives it, unless its caller waits longer.
    pub(in crate::gateway) fn part(&self, ticket: Ticket, parting: Parting) -> Parted {
        let late = match parting {
            Parting::Late => self.book().late(ticket.number, Instant::now()),
            Parting::Left | Parting::Stopping => self.book().take(ticket.number).map_or(Late::Gone, Late::Leaves),
        };
        match late {
            Late::Waits(ticket) => Parted::Waits(ticket),
            Late::Gone => Parted::Elsewhere,
            Late::Leaves(leaving) => {
                self.tell(leaving, parting);
                Parted::Given
            }
        }
    }

    /// Tells all waiting callers that the gateway stops, and admits no more. Returns their number.
    pub(in crate::gateway) fn close(&self) -> usize {
        let leaving = self.book().close();
        let count = leaving.len();
        for it in leaving {
            self.tell(it, Parting::Stopping);
        }
        count
    }

    /// Gives a reply that leaves without its answer.
    pub(super) fn tell(&self, leaving: Leaving<Reply>, parting: Parting) {
        let Leaving { waiter, progress } = leaving;
        let is_asynchronous = waiter.preferences.asynchronous;
        let stopping = parting == Parting::Stopping;
        let reply = if stopping { waiter.reply.without_wait() } else { waiter.reply };
        match (parting, waiter.wish) {
            (Parting::Left, _) => reply.withdraw(),
            (_, Wish::Result | Wish::Acceptance) if progress == Progress::Queued => {
                let detail = "Kafka does not take tasks at the moment; the task was not accepted";
                reply.give(self.refuse(Reason::KafkaUnavailable, detail));
            }
            (_, Wish::Result | Wish::Acceptance) if is_asynchronous && progress == Progress::Acknowledged => {
                reply.give(Response::accepted(&waiter.key.as_uuid().to_string()));
            }
            (_, Wish::Result | Wish::Acceptance) => reply.give(of_task(waiter.key, progress, stopping)),
            (_, Wish::Poll(id)) => reply.give(pending(&id)),
            // Its preferred wait is over.
            (Parting::Late, Wish::Stored(id)) if is_asynchronous => reply.give(Response::accepted(&id)),
            (_, Wish::Stored(id) | Wish::Existence(id)) => questions::put_off(reply, of_question(stopping), &id),
        }
    }
}

/// Tells callers that wait for Kafka's acknowledgement only that Kafka has their task: 202 with `respond-async`, else
/// 504, because the preferred wait for the result is over.
pub(super) fn tell_accepted(callers: Vec<Waiter<Reply>>, id: &str) {
    for Waiter { reply, preferences, .. } in callers {
        reply.give(if preferences.asynchronous { Response::accepted(id) } else { not_done(id) });
    }
}

/// Tells the callers of a task that it will get no result.
pub(super) fn tell_forgotten(callers: Vec<Waiter<Reply>>) {
    for Waiter { reply, wish, key, .. } in callers {
        reply.give(match wish {
            Wish::Poll(id) => questions::unknown(&id),
            _ => {
                let detail = "the task will get no result; send the request again";
                Response::unavailable(detail, Some(&key.as_uuid().to_string()))
            }
        });
    }
}

/// The response for a task that was sent.
fn of_task(key: TaskKey, progress: Progress, stopping: bool) -> Response {
    let id = key.as_uuid().to_string();
    match progress {
        Progress::Queued | Progress::Sent => {
            let detail =
                "Kafka has not acknowledged the task yet; whether it was accepted is unknown: ask for its result";
            Response::unavailable(detail, Some(&id))
        }
        Progress::Acknowledged if stopping => {
            let detail = "the gateway is shutting down; the task is accepted and not lost: ask for its result";
            Response::unavailable(detail, Some(&id))
        }
        Progress::Acknowledged => not_done(&id),
    }
}

fn not_done(id: &str) -> Response {
    Response::problem(504, "the task is accepted and not done yet; it is not lost: ask for its result", Some(id))
}

fn of_question(stopping: bool) -> &'static str {
    if stopping {
        "the gateway is shutting down; ask another gateway"
    } else {
        "Kafka did not answer in time; the outcome of this task is not known now"
    }
}
