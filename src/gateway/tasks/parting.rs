//! Responses to callers that leave without a result: their time is over, or the gateway ends.

use super::Tasks;
use super::key::TaskKey;
use super::waiting::{Leaving, Progress, Wish};
use crate::gateway::reply::{Parting, Reply, Ticket};
use crate::gateway::response::Response;

impl Tasks {
    /// Takes out a waiting reply and gives it. Returns false if another thread has taken it out to give it.
    pub(in crate::gateway) fn part(&self, ticket: Ticket, parting: Parting) -> bool {
        let leaving = self.book().take(ticket.number);
        let taken = leaving.is_some();
        if let Some(leaving) = leaving {
            tell(leaving, parting);
        }
        taken
    }

    /// Tells all waiting callers that the gateway stops, and admits no more. Returns their number.
    pub(in crate::gateway) fn close(&self) -> usize {
        let leaving = self.book().close();
        let count = leaving.len();
        for it in leaving {
            tell(it, Parting::Stopping);
        }
        count
    }
}

fn tell(leaving: Leaving<Reply>, parting: Parting) {
    let Leaving { waiter, progress } = leaving;
    let stopping = parting == Parting::Stopping;
    match (parting, waiter.wish) {
        (Parting::Left, _) => waiter.reply.withdraw(),
        (_, Wish::Result | Wish::Acceptance) => waiter.reply.give(of_task(waiter.key, progress, stopping)),
        (_, Wish::Stored(id) | Wish::Existence(id)) => waiter.reply.give(of_question(&id, stopping)),
    }
}

fn of_task(key: TaskKey, progress: Progress, stopping: bool) -> Response {
    let id = key.as_uuid().to_string();
    match progress {
        Progress::Queued => {
            Response::unavailable("Kafka does not take tasks at the moment; the task was not accepted", None)
        }
        Progress::Sent => {
            let detail =
                "Kafka has not acknowledged the task yet; whether it was accepted is unknown: ask for its result";
            Response::unavailable(detail, Some(&id))
        }
        Progress::Acknowledged if stopping => {
            let detail = "the gateway is shutting down; the task is accepted and not lost: ask for its result";
            Response::unavailable(detail, Some(&id))
        }
        Progress::Acknowledged => Response::problem(
            504,
            "the task is accepted and not done yet; it is not lost: ask for its result",
            Some(&id),
        ),
    }
}

fn of_question(id: &str, stopping: bool) -> Response {
    let detail = if stopping {
        "the gateway is shutting down; ask another gateway"
    } else {
        "Kafka did not answer in time; the outcome of this task is not known now"
    };
    Response::unavailable(detail, Some(id))
}
