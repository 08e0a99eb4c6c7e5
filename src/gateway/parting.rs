//! What a caller is told that leaves without what it waited for: its time is over, or the gateway ends.

use super::answer::Answer;
use super::desk::Desk;
use super::index::TaskKey;
use super::reply::{Parting, Reply};
use super::waiting::{Leaving, Progress, Wish};
use std::time::Duration;

/// When to come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Takes one out that waits, and tells its caller. False: another thread has taken it out to give it.
pub(super) fn part(desk: &Desk, number: u64, parting: Parting) -> bool {
    let leaving = desk.state().waiting.take(number);
    let taken = leaving.is_some();
    if let Some(leaving) = leaving {
        tell(leaving, parting);
    }
    taken
}

/// Tells one that was taken out.
pub(super) fn tell(leaving: Leaving<Reply>, parting: Parting) {
    let Leaving { waiter, progress } = leaving;
    let stopping = parting == Parting::Stopping;
    match (parting, waiter.wish) {
        (Parting::Left, _) => waiter.reply.withdraw(),
        (_, Wish::Result | Wish::Acceptance) => waiter.reply.give(of_task(waiter.key, progress, stopping)),
        (_, Wish::Stored(id) | Wish::Existence(id)) => waiter.reply.give(of_question(&id, stopping)),
    }
}

fn of_task(key: TaskKey, progress: Progress, stopping: bool) -> Answer {
    let id = key.as_uuid().to_string();
    match progress {
        Progress::Queued => {
            Answer::unavailable("Kafka does not take tasks at the moment; nothing was accepted", None, RETRY_AFTER)
        }
        Progress::Sent => {
            let detail =
                "Kafka has not acknowledged the task yet; whether it was accepted is unknown: ask for its result";
            Answer::unavailable(detail, Some(&id), RETRY_AFTER)
        }
        Progress::Acknowledged if stopping => {
            let detail = "the gateway is shutting down; the task is accepted and not lost: ask for its result";
            Answer::unavailable(detail, Some(&id), RETRY_AFTER)
        }
        Progress::Acknowledged => {
            Answer::problem(504, "the task is accepted and not done yet; it is not lost: ask for its result", Some(&id))
        }
    }
}

fn of_question(id: &str, stopping: bool) -> Answer {
    let detail = if stopping {
        "the gateway is shutting down; ask another one"
    } else {
        "Kafka does not answer; what became of this task is not known now"
    };
    Answer::unavailable(detail, Some(id), RETRY_AFTER)
}
