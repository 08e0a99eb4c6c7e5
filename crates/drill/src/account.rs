//! The account of the requests while a run goes on: each is answered, refused, or open until it is known what became of it.
//!
//! For what is shown meanwhile, and for what has to be asked for; the judge has its own. Pure state; time comes as a parameter. Owned by
//! the run.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::fact::{Answer, Kind};

/// A task that a gateway had in hand when its caller lost it can come to the topic later than that; not later than this.
const COMES_WITHIN: Duration = Duration::from_secs(10);

/// A request whose outcome is not known yet.
#[derive(Clone, Debug)]
struct Open {
    task_id: Option<String>,
    accepted: bool,
    since: Duration,
}

/// See the module documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    /// Requests that were begun.
    pub(super) submitted: u64,
    /// Those of them that have told what became of them at first.
    pub(super) told: u64,
    pub(super) answered: u64,
    pub(super) refused: u64,
    /// Wrong or failed.
    pub(super) failed: u64,
    /// Tasks that were answered, with when; the first one first.
    done: Vec<(Duration, u64, String)>,
    open: BTreeMap<u64, Open>,
    /// Tasks that were read on the topic before it was known what became of their requests.
    seen: HashMap<u64, String>,
}

impl Account {
    /// Takes the outcome of a request, or of asking for an open one.
    pub(super) fn note(&mut self, number: u64, answer: &Answer, at: Duration) {
        self.open.remove(&number);
        let seen = self.seen.remove(&number);
        match answer.outcome {
            Kind::Answered => {
                self.answered += 1;
                self.done.extend(answer.task_id.clone().map(|task_id| (at, number, task_id)));
            }
            Kind::Wrong | Kind::Failed => self.failed += 1,
            Kind::Refused => self.refused += 1,
            Kind::Accepted | Kind::Unknown => {
                let accepted = answer.outcome == Kind::Accepted || seen.is_some();
                self.open.insert(number, Open { task_id: answer.task_id.clone().or(seen), accepted, since: at });
            }
        }
    }

    /// The task of a request stands on the topic: it was accepted, and this is its id.
    pub(super) fn learn(&mut self, number: u64, task_id: &str) {
        match self.open.get_mut(&number) {
            Some(open) => (open.task_id, open.accepted) = (Some(task_id.to_owned()), true),
            None => {
                self.seen.insert(number, task_id.to_owned());
            }
        }
    }

    /// Requests that wait for their first answer.
    pub(super) fn waiting(&self) -> u64 {
        self.submitted.saturating_sub(self.told)
    }

    /// Requests whose outcome is not known.
    pub(super) fn open(&self) -> u64 {
        self.open.len() as u64
    }

    /// Some of the tasks that were answered since then, at most so many, spread over that time.
    pub(super) fn some_done(&self, since: Duration, most: usize) -> Vec<(u64, String)> {
        let first = self.done.partition_point(|(at, ..)| *at < since);
        let recent = self.done.get(first..).unwrap_or_default();
        let every = recent.len().div_ceil(most.max(1)).max(1);
        recent.iter().step_by(every).map(|(_, number, task_id)| (*number, task_id.clone())).collect()
    }

    /// Tasks to be asked for.
    pub(super) fn to_ask(&self) -> Vec<(u64, String)> {
        self.open.iter().filter_map(|(number, open)| Some((*number, open.task_id.clone()?))).collect()
    }

    /// Kafka was away until now: what gateways had in hand meanwhile can still come.
    pub(super) fn postpone(&mut self, at: Duration) {
        for open in self.open.values_mut() {
            open.since = open.since.max(at);
        }
    }

    /// Forgets those that cannot come to the topic any more, since it was read beyond them: they were never accepted.
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
    fn an_open_request_is_asked_for_once_its_id_is_known() {
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
    fn a_task_that_was_read_before_its_caller_was_cut_off_is_known() {
        let mut account = Account::default();
        account.learn(1, "a");
        account.note(1, &answer(Kind::Unknown, None), Duration::ZERO);
        assert_eq!(account.to_ask(), [(1, "a".to_owned())]);
        account.close_unaccepted(Duration::from_secs(60));
        assert_eq!(account.open(), 1, "it was accepted");
    }

    #[test]
    fn some_of_the_tasks_that_were_answered_lately_are_given() {
        let mut account = Account::default();
        for number in 0..10 {
            account.note(number, &answer(Kind::Answered, Some(&number.to_string())), Duration::from_secs(number));
        }
        let numbers = |since, most| -> Vec<u64> {
            account.some_done(Duration::from_secs(since), most).into_iter().map(|(number, _)| number).collect()
        };
        assert_eq!(numbers(0, 100), (0..10).collect::<Vec<_>>());
        assert_eq!(numbers(4, 3), [4, 6, 8]);
        assert!(numbers(11, 3).is_empty());
    }

    #[test]
    fn what_never_came_to_the_topic_was_not_accepted() {
        let mut account = Account::default();
        account.note(1, &answer(Kind::Unknown, Some("a")), Duration::from_secs(5));
        account.close_unaccepted(Duration::from_secs(14));
        assert_eq!((account.open(), account.refused), (1, 0));
        account.close_unaccepted(Duration::from_secs(15));
        assert_eq!((account.open(), account.refused), (0, 1));
    }

    /// A run against a real broker that took 15 s to start closed what came a moment later.
    #[test]
    fn after_an_outage_tasks_have_the_time_to_come_once_more() {
        let mut account = Account::default();
        account.note(1, &answer(Kind::Unknown, Some("a")), Duration::from_secs(5));
        account.postpone(Duration::from_secs(30));
        account.close_unaccepted(Duration::from_secs(31));
        assert_eq!(account.open(), 1);
        account.close_unaccepted(Duration::from_secs(40));
        assert_eq!(account.open(), 0);
    }
}
