//! Results that number has pushed out of the index, found again in Kafka by their tasks' times and ids.
//!
//! The ids of our own tasks are UUIDs of version 7, which begin with the millisecond of their making: their results are
//! read for from then on. A stranger's id says nothing, and all that is kept is read. One pass serves all that ask in
//! that moment. Runs in the thread `search`, with a reader of its own.

use super::Tasks;
use super::index::Known;
use super::key::TaskKey;
use super::readers::{decode, options, reached};
use crate::gateway::reply::{Reply, Ticket};
use crate::gateway::response::Response;
use crate::kafka::cluster::Cluster;
use crate::kafka::error::KafkaError;
use crate::kafka::reader::{Reader, StartAt};
use crate::stop::Stop;
use crate::task::ResultsRecord;
use crossbeam_channel::{Receiver, select};
use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Searches that may wait for the thread. Full: the caller is told to come back.
pub(super) const QUEUE: usize = 256;
/// The clocks of gateways and of Kafka may differ by so much.
const SLACK: Duration = Duration::from_secs(60);

/// A result that a caller waits for.
#[derive(Clone, Copy, Debug)]
pub(in crate::gateway) struct Search {
    number: u64,
    key: TaskKey,
    /// It was not written before, if that is known.
    since: Option<SystemTime>,
}

impl Tasks {
    /// Whether the result of this task may stand in Kafka though nothing is known of it.
    pub(super) fn may_be_pushed_out(&self, id: &str) -> bool {
        let since = not_before(id);
        self.book().may_be_pushed_out(since)
    }

    /// Has the result of this task searched for.
    pub(super) fn search(&self, reply: Reply, key: TaskKey, id: String) -> Option<Ticket> {
        let since = not_before(&id);
        let entered = self.book().search(key, id.clone(), reply, Instant::now());
        let ticket = super::questions::ticket(entered, &id)?;
        // Full, or the thread has ended.
        if self.searches.try_send(Search { number: ticket.number, key, since }).is_err() {
            self.give(ticket.number, |id| {
                Response::unavailable("too many old results are asked for at once", Some(id))
            });
        }
        Some(ticket)
    }
}

/// Searches until stopped.
pub(super) fn run(tasks: &Tasks, cluster: &Cluster, searches: &Receiver<Search>, stop: &Stop) {
    loop {
        let first = select! {
            recv(searches) -> search => match search {
                Ok(search) => search,
                Err(_) => return,
            },
            recv(stop.triggered()) -> _ => return,
        };
        let mut wanted: HashMap<u64, Search> =
            std::iter::once(first).chain(searches.try_iter()).map(|search| (search.number, search)).collect();
        match search(tasks, cluster, &mut wanted, stop) {
            Ok(()) => wanted.into_values().for_each(|search| not_found(tasks, search)),
            Err(KafkaError::Interrupted) => return,
            // Those that still wait are told at their deadlines.
            Err(error) => log::debug!("a search for old results failed: {error}"),
        }
    }
}

/// Reads from the earliest of these on, and gives what is found; until nothing is wanted any more, or the end.
fn search(tasks: &Tasks, cluster: &Cluster, wanted: &mut HashMap<u64, Search>, stop: &Stop) -> Result<(), KafkaError> {
    let now = tasks.state.now();
    let retention = tasks.state.config.common.result_retention;
    let age = |search: &Search| search.since.map_or(retention, |since| now.duration_since(since).unwrap_or_default());
    let age = wanted.values().map(age).max().unwrap_or_default().min(retention);
    // Counted back from the newest record: no clock of ours takes part.
    let mut reader = Reader::new(cluster.clone(), &tasks.results_topic, StartAt::AtLeast(age + SLACK), options());
    let ends = reader.end_offsets()?;
    while !reached(&ends, &reader.positions()) && !stop.is_triggered() {
        let records = reader.poll()?;
        {
            let book = tasks.book();
            wanted.retain(|number, _| book.waits(*number));
        }
        if wanted.is_empty() {
            return Ok(());
        }
        for record in &records {
            let (ResultsRecord::Result(peek), Some(value)) = (decode(record), &record.value) else { continue };
            let key = TaskKey::from_id(&peek.task_id);
            for (number, _) in wanted.extract_if(|_, search| search.key == key) {
                tasks.give(number, |_| Response::stored_result(value));
            }
        }
    }
    Ok(())
}

fn not_found(tasks: &Tasks, search: Search) {
    let known = tasks.book().known(search.key);
    tasks.give(search.number, |id| match known {
        Known::Pending => super::questions::pending(id),
        // Its result came meanwhile.
        Known::Done(_) => Response::unavailable("the result has just come; ask again", Some(id)),
        Known::Nothing => super::questions::unknown(id),
    });
}

/// The time before which this task was not made, as far as its id says it.
fn not_before(id: &str) -> Option<SystemTime> {
    let (seconds, nanoseconds) =
        Uuid::try_parse(id).ok().filter(|id| id.get_version_num() == 7)?.get_timestamp()?.to_unix();
    let made = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    made.checked_sub(SLACK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_ids_say_when_they_were_made_and_others_do_not() {
        let made = not_before(&Uuid::now_v7().to_string()).expect("a time");
        let age = SystemTime::now().duration_since(made).expect("in the past");
        assert!((SLACK..SLACK + Duration::from_secs(5)).contains(&age), "{age:?}");
        for id in ["order-1", "018f2f6e-7b1c-4c5a-9d3e-0123456789ab", ""] {
            assert_eq!(not_before(id), None, "{id}");
        }
    }
}
