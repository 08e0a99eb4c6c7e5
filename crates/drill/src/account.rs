//! The requests of a run by outcome: answered, failed, refused, or open while the outcome is unknown.
//!
//! The run uses it for its progress and for its lookups of tasks; the judge has its own. Pure state; time comes as a
//! parameter. Owned by the run.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::fact::{Answer, Kind};

/// A gateway can still produce a task after its caller lost the connection, at most this long.
const COMES_WITHIN: Duration = Duration::from_secs(10);

/// A request with an unknown outcome.
#[derive(Clone, Debug)]
struct Open {
    task_id: Option<String>,
    accepted: bool,
    since: Duration,
}

/// The requests of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    /// Requests that were sent.
    pub(super) submitted: u64,
    /// Requests that found no free caller and were not sent.
    pub(super) late: u64,
    /// Requests that got a first outcome.
    pub(super) told: u64,
    pub(super) answered: u64,
    pub(super) refused: u64,
    /// Wrong or failed.
    pub(super) failed: u64,
    open: BTreeMap<u64, Open>,
    /// Tasks that were read on the topic before their requests got an outcome.
    seen: HashMap<u64, String>,
}

impl Account {
    /// Takes the outcome of a request or of a lookup.
    pub(super) fn note(&mut self, number: u64, answer: &Answer, at: Duration) {
        self.open.remove(&number);
        let seen = self.seen.remove(&number);
        match answer.outcome {
            Kind::Answered => self.answered += 1,
            Kind::Wrong | Kind::Failed => self.failed += 1,
            Kind::Refused => self.refused += 1,
            Kind::Accepted | Kind::Unknown => {
                let accepted = answer.outcome == Kind::Accepted || seen.is_some();
                self.open.insert(number, Open { task_id: answer.task_id.clone().or(seen), accepted, since: at });
            }
        }
    }

    /// Notes that the task of a request is on the topic, so that it is accepted and has this id.
    pub(super) fn learn(&mut self, number: u64, task_id: &str) {
        match self.open.get_mut(&number) {
            Some(open) => (open.task_id, open.accepted) = (Some(task_id.to_owned()), true),
            None => {
                self.seen.insert(number, task_id.to_owned());
            }
        }
    }

    /// Number of requests without a first outcome.
    pub(super) fn waiting(&self) -> u64 {
        self.submitted.saturating_sub(self.told)
    }

    /// Number of requests with an unknown outcome.
    pub(super) fn open(&self) -> u64 {
        self.open.len() as u64
    }

    /// Tasks to look up.
    pub(super) fn to_ask(&self) -> Vec<(u64, String)> {
        self.open.iter().filter_map(|(number, open)| Some((*number, open.task_id.clone()?))).collect()
    }

    /// Kafka was unavailable until now: gateways can still produce the tasks of open requests.
    pub(super) fn postpone(&mut self, at: Duration) {
        for open in self.open.values_mut() {
            open.since = open.since.max(at);
        }
    }

    /// Counts open requests as refused whose tasks can no longer come to the topic, which was read to its end at
    /// `read_at`.
    pub(super) fn close_unaccepted(&mut self, read_at: Duration) {
        let before = self.open.len();
        self.open.retain(|_, open| open.accepted || read_at < open.since + COMES_WITHIN);
        self.refused += (before - self.open.len()) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(outcome: Kind, task_id: Option<&str>) -> Answer {
        Answer { task_id: task_id.map(str::to_owned), ..Answer::of(outcome) }
    }

    #[test]
    fn an_open_request_is_looked_up_when_its_id_is_known() {
        let mut account = Account { submitted: 2, told: 2, ..Account::default() };
        account.note(1, &answer(Kind::Unknown, None), Duration::ZERO);
        account.note(2, &answer(Kind::Accepted, Some("b")), Duration::ZERO);
        assert_eq!(account.to_ask(), [(2, "b".to_owned())]);
        account.learn(1, "a");
        assert_eq!(account.to_ask(), [(1, "a".to_owned()), (2, "b".to_owned())]);
        account.note(1, &answer(Kind::Answered, Some("a")), Duration::ZERO);
        assert_eq!((account.answered, account.open()), (1, 1));
    }

    #[test]
    fn a_task_read_on_the_topic_is_accepted_without_a_response() {
        let mut account = Account::default();
        account.learn(1, "a");
        account.note(1, &answer(Kind::Unknown, None), Duration::ZERO);
        assert_eq!(account.to_ask(), [(1, "a".to_owned())]);
        account.close_unaccepted(Duration::from_secs(60));
        assert_eq!(account.open(), 1, "it was accepted");
    }

    #[test]
    fn an_open_request_without_a_task_on_the_topic_becomes_refused() {
        let mut account = Account::default();
        account.note(1, &answer(Kind::Unknown, Some("a")), Duration::from_secs(5));
        account.close_unaccepted(Duration::from_secs(14));
        assert_eq!((account.open(), account.refused), (1, 0));
        account.close_unaccepted(Duration::from_secs(15));
        assert_eq!((account.open(), account.refused), (0, 1));
    }

    /// Regression: a real broker took 15 s to start, and a request was closed just before its task came.
    #[test]
    fn an_outage_gives_open_requests_their_time_again() {
        let mut account = Account::default();
        account.note(1, &answer(Kind::Unknown, Some("a")), Duration::from_secs(5));
        account.postpone(Duration::from_secs(30));
        account.close_unaccepted(Duration::from_secs(31));
        assert_eq!(account.open(), 1);
        account.close_unaccepted(Duration::from_secs(40));
        assert_eq!(account.open(), 0);
    }
}
