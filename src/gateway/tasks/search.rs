//! Finds results that the index has displaced, by reading Kafka from their tasks' times on.
//!
//! The id of a task without a key is a UUID of version 7, which begins with the millisecond of its creation: its result
//! is searched for from then on. Any other id has no time, and the whole retention is read. A pass begins at the latest
//! of these times, so a cheap search does not wait for a long one, and it serves all searches ahead of it. Runs in the
//! thread `search`, with its own reader.

use super::Tasks;
use super::index::Known;
use super::key::TaskKey;
use super::questions::{self, Question};
use super::readers::{decode, options, reached};
use crate::http::reply::{Reply, Ticket};
use crate::http::response::Response;
use crate::task::ResultsRecord;
use crossbeam_channel::{Receiver, select};
use kafka_share::cluster::Cluster;
use kafka_share::error::KafkaError;
use kafka_share::reader::{ReadRecord, Reader, StartAt};
use program::stop::Stop;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Searches that may wait for the thread. Full: the caller has to retry.
pub(super) const QUEUE: usize = 256;
/// The clocks of gateways and of Kafka may differ by this much.
const SLACK: Duration = Duration::from_secs(60);
/// How long a caller waits for a search.
const PATIENCE: Duration = Duration::from_secs(10);
/// Searches whose times are this close share a pass.
const TOGETHER: Duration = Duration::from_secs(60);

/// A result that a caller waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) struct Search {
    number: u64,
    key: TaskKey,
    /// The result was not written before this; `None`: unknown.
    since: Option<SystemTime>,
}

impl Tasks {
    /// Whether Kafka may have a result of this task that the index has displaced.
    pub(super) fn may_be_pushed_out(&self, key: TaskKey, id: &str) -> bool {
        let since = not_before(id);
        self.book().may_be_pushed_out(key, since)
    }

    /// Has the result of this task searched for.
    pub(super) fn search(&self, reply: Reply, key: TaskKey, id: String) -> Option<Ticket> {
        let since = not_before(&id);
        let preferences = reply.preferences();
        let entered = self.book().look_up(key, id.clone(), (reply, preferences), PATIENCE, Instant::now());
        let ticket = questions::ticket(entered, &id)?;
        if self.searches.try_send(Search { number: ticket.number, key, since }).is_err() {
            self.put_off(ticket.number, "too many old results are requested at once");
        }
        Some(ticket)
    }

    /// Handles a result that is not in Kafka: the index decides, or the tasks topic.
    fn was_not_found(&self, search: Search) {
        let Search { number, key, .. } = search;
        let known = {
            let mut book = self.book();
            let known = book.answer(number, key, Instant::now());
            if known == Some(Known::Nothing) {
                book.not_found(number);
            }
            known
        };
        match known {
            None | Some(Known::Nothing) => {}
            Some(Known::Pending) => self.give(number, questions::pending),
            Some(Known::Done(position)) => self.hand_over(Question { number, key, position, stored: true }),
        }
    }
}

/// Searches until stopped.
pub(super) fn run(tasks: &Tasks, cluster: &Cluster, searches: &Receiver<Search>, stop: &Stop) {
    let mut waiting = Vec::new();
    loop {
        if waiting.is_empty() {
            select! {
                recv(searches) -> search => match search {
                    Ok(search) => waiting.push(search),
                    Err(_) => return,
                },
                recv(stop.triggered()) -> _ => return,
            }
        }
        waiting.extend(searches.try_iter());
        let mut pass = Pass { tasks, searches, wanted: first_pass(&mut waiting), waiting: &mut waiting };
        match pass.run(cluster, stop) {
            Ok(()) => {
                let not_found = pass.wanted;
                not_found.into_iter().for_each(|search| tasks.was_not_found(search));
            }
            Err(KafkaError::Interrupted) => return,
            // The waiting callers are answered at their deadlines.
            Err(error) => log::debug!("a search for old results failed: {error}"),
        }
    }
}

/// Takes out the searches with the latest time, and those close to it.
fn first_pass(waiting: &mut Vec<Search>) -> Vec<Search> {
    let latest = waiting.iter().map(|search| search.since).max().flatten();
    let from = latest.and_then(|latest| latest.checked_sub(TOGETHER));
    waiting.extract_if(.., |search| search.since >= from).collect()
}

/// One reading of the results topic.
struct Pass<'p> {
    tasks: &'p Tasks,
    searches: &'p Receiver<Search>,
    wanted: Vec<Search>,
    /// Searches that this pass does not serve.
    waiting: &'p mut Vec<Search>,
}

impl Pass<'_> {
    /// Answers the found results, until all are found or the end is reached.
    fn run(&mut self, cluster: &Cluster, stop: &Stop) -> Result<(), KafkaError> {
        let now = self.tasks.state.now();
        let retention = self.tasks.state.config.common.result_retention;
        let since = self.wanted.iter().map(|search| search.since).min().flatten();
        let age = since.map_or(Duration::MAX, |since| now.duration_since(since).unwrap_or_default());
        // Counted back from the newest record, without the gateway's clock.
        let from = StartAt::AtLeast(age.min(retention + SLACK));
        let mut reader = Reader::new(cluster.clone(), &self.tasks.results_topic, from, options());
        let ends = reader.all_end_offsets()?;
        let mut newest = UNIX_EPOCH;
        while !reached(&ends, &reader.positions()) {
            stop.check().map_err(|_| KafkaError::Interrupted)?;
            let records = reader.poll()?;
            self.take_new(newest, since);
            if self.wanted.is_empty() {
                return Ok(());
            }
            for record in &records {
                newest = newest.max(record.timestamp);
                self.take(record, now, retention);
            }
        }
        Ok(())
    }

    /// Adds new searches that lie ahead of the position, and drops those whose callers have left. A pass over the whole
    /// retention yields to a shorter one.
    fn take_new(&mut self, newest: SystemTime, since: Option<SystemTime>) {
        for search in self.searches.try_iter() {
            let is_ahead = search.since.is_some_and(|since| since > newest);
            if is_ahead { self.wanted.push(search) } else { self.waiting.push(search) }
        }
        let book = self.tasks.book();
        self.wanted.retain(|search| book.waits(search.number));
        self.waiting.retain(|search| book.waits(search.number));
        if since.is_none() && self.waiting.iter().any(|search| search.since.is_some()) {
            self.waiting.append(&mut self.wanted);
        }
    }

    fn take(&mut self, record: &ReadRecord, now: SystemTime, retention: Duration) {
        let (ResultsRecord::Result(peek), Some(value)) = (decode(record), &record.value) else { return };
        let key = TaskKey::from_id(&peek.task_id);
        let age = now.duration_since(self.tasks.clock.date(record.timestamp, now)).unwrap_or_default();
        if age > retention {
            return;
        }
        for search in self.wanted.extract_if(.., |search| search.key == key) {
            self.tasks.give(search.number, |_| Response::stored_result(&peek, value));
        }
    }
}

/// The time before which this task was not created, if its id contains it.
fn not_before(id: &str) -> Option<SystemTime> {
    let uuid = Uuid::try_parse(id).ok().filter(|id| id.get_version_num() == 7)?;
    let (seconds, nanoseconds) = uuid.get_timestamp()?.to_unix();
    (UNIX_EPOCH + Duration::new(seconds, nanoseconds)).checked_sub(SLACK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GatewayConfig;
    use crate::gateway::state::State;
    use crate::http::reply::tests::Kept;
    use crate::http::reply::{Parted, Parting};
    use std::sync::Arc;
    use uuid::{NoContext, Timestamp};

    /// Enters a search for a task that was created this many seconds after 1970, or whose id has no time.
    fn enter(tasks: &Tasks, created: Option<u64>) -> Ticket {
        let uuid = |seconds| Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, 0)).to_string();
        let id = created.map_or_else(|| "order-1".to_owned(), uuid);
        let reply = Reply::new(Arc::<Kept>::default() as _);
        tasks.search(reply, TaskKey::from_id(&id), id).expect("room")
    }

    /// Runs a pass for the first search while searches with these creation times arrive. Returns the numbers of the
    /// searches that it then serves, and of those that wait for another pass.
    fn pass_that_meets(first: Option<u64>, others: &[Option<u64>], newest: u64) -> (Vec<u64>, Vec<u64>) {
        let (tasks, asked) = Tasks::new(Arc::new(State::new(GatewayConfig::default())));
        enter(&tasks, first);
        let wanted: Vec<_> = asked.searches.try_iter().collect();
        let since = wanted[0].since;
        let left = enter(&tasks, Some(newest + 1_000));
        for created in others {
            enter(&tasks, *created);
        }
        assert_eq!(tasks.part(left, Parting::Left), Parted::Given);
        let mut waiting = Vec::new();
        let mut pass = Pass { tasks: &tasks, searches: &asked.searches, wanted, waiting: &mut waiting };
        pass.take_new(UNIX_EPOCH + Duration::from_secs(newest), since);
        let numbers = |searches: &[Search]| searches.iter().map(|search| search.number).collect::<Vec<_>>();
        (numbers(&pass.wanted), numbers(pass.waiting))
    }

    // The first search has the number 0. The caller of number 1 has left.

    #[test]
    fn search_joins_a_pass_that_has_not_read_beyond_its_time() {
        let others = [Some(3_000), Some(1_500), None];
        assert_eq!(pass_that_meets(Some(1_000), &others, 2_000), (vec![0, 2], vec![3, 4]));
        let on_the_edge = 2_000 + SLACK.as_secs();
        let others = [Some(on_the_edge), Some(on_the_edge + 1)];
        assert_eq!(pass_that_meets(Some(1_000), &others, 2_000), (vec![0, 3], vec![2]));
    }

    #[test]
    fn pass_over_the_whole_retention_yields_to_a_shorter_one() {
        assert_eq!(pass_that_meets(None, &[Some(1_500)], 2_000), (vec![], vec![2, 0]));
        assert_eq!(pass_that_meets(None, &[None], 2_000), (vec![0], vec![2]), "the other is not shorter");
        assert_eq!(pass_that_meets(None, &[Some(3_000)], 2_000), (vec![0, 2], vec![]), "this pass will serve it");
    }

    #[test]
    fn only_ids_of_version_7_contain_their_time_of_creation() {
        let made = not_before(&Uuid::now_v7().to_string()).expect("a time");
        let age = SystemTime::now().duration_since(made).expect("in the past");
        assert!((SLACK..SLACK + Duration::from_secs(5)).contains(&age), "{age:?}");
        for id in ["order-1", "018f2f6e-7b1c-4c5a-9d3e-0123456789ab", ""] {
            assert_eq!(not_before(id), None, "{id}");
        }
    }

    #[test]
    fn latest_searches_come_first_and_those_without_a_time_last() {
        let search = |number, seconds: Option<u64>| Search {
            number,
            key: TaskKey::from_number(number.into()),
            since: seconds.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds)),
        };
        let mut waiting = vec![
            search(1, None),
            search(2, Some(1_000)),
            search(3, Some(5_000)),
            search(4, Some(4_940)),
            search(5, None),
        ];
        let mut numbers = || first_pass(&mut waiting).iter().map(|it| it.number).collect::<Vec<_>>();
        assert_eq!(numbers(), [3, 4]);
        assert_eq!(numbers(), [2]);
        assert_eq!(numbers(), [1, 5]);
    }
}
