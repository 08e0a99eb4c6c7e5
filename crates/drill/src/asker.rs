//! Asks gateways for the fleet, for tasks with an unknown outcome, and for finished tasks.
//!
//! A thread with connections of its own that handles one question at a time. It keeps no state and repeats no question.
//! Started by the run.

use std::convert::Infallible;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::event::Event;
use super::fact::Fact;
use super::fleet::Teller;
use super::http::{Client, Response};
use super::outcome;
use super::texts::Texts;

const PATIENCE: Duration = Duration::from_secs(3);

/// A question to gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// `GET /workers/status` of every gateway.
    Fleet,
    /// `GET /tasks/{id}` for the tasks of these requests, at the first gateway that responds.
    Tasks(Vec<(u64, String)>),
    /// `GET /tasks/{id}` for these finished tasks, at one gateway of this list after the other.
    ReadBack { tasks: Vec<(u64, String)>, gateways: Vec<String> },
}

/// The thread's state.
#[derive(Debug)]
pub(super) struct Asker {
    /// The gateways by their names in the ledger.
    pub(super) clients: Vec<(String, Client)>,
    pub(super) texts: Texts,
    pub(super) teller: Teller,
}

impl Asker {
    /// The body of the thread; ends when the channel of questions is closed.
    pub(super) fn run(mut self, questions: &Receiver<Question>) -> Result<(), Infallible> {
        for question in questions {
            let sent = match question {
                Question::Fleet => self.fleet(),
                Question::Tasks(tasks) => self.tasks(tasks),
                Question::ReadBack { tasks, gateways } => self.read_back(&tasks, &gateways),
            };
            if !sent {
                break;
            }
        }
        Ok(())
    }

    fn fleet(&mut self) -> bool {
        self.clients.iter_mut().all(|(gateway, client)| {
            let view = match client.get("/workers/status", PATIENCE) {
                Ok(Response { status: 200, body, .. }) => serde_json::from_slice(&body).ok(),
                _ => None,
            };
            self.teller.facts.send(Event::Fleet { gateway: gateway.clone(), view }).is_ok()
        })
    }

    fn read_back(&mut self, tasks: &[(u64, String)], gateways: &[String]) -> bool {
        for gateway in gateways {
            let Some((_, client)) = self.clients.iter_mut().find(|(name, _)| name == gateway) else { continue };
            for (number, task_id) in tasks {
                let response = client.get(&format!("/tasks/{task_id}"), PATIENCE).ok();
                let fact = Fact::ReadBack {
                    number: *number,
                    gateway: gateway.clone(),
                    task_id: task_id.clone(),
                    status: response.as_ref().map(|response| response.status),
                    mark: response.as_ref().map(|response| outcome::mark(&response.body)),
                    is_result: response.as_ref().is_some_and(outcome::is_result),
                };
                if !self.teller.tell(fact) {
                    return false;
                }
                if response.is_none() {
                    // It need not be asked for the others: each could take as long.
                    break;
                }
            }
        }
        self.teller.facts.send(Event::AskedAll).is_ok()
    }

    fn tasks(&mut self, tasks: Vec<(u64, String)>) -> bool {
        for (number, task_id) in tasks {
            // Ids come from a gateway; an id that would break the request line is skipped.
            if !task_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
                continue;
            }
            let path = format!("/tasks/{task_id}");
            // The first gateway varies, because every gateway must serve every result.
            let count = self.clients.len().max(1);
            let mut order = (0..count).map(|index| (index + number as usize) % count);
            let found = order.find_map(|index| {
                let (gateway, client) = self.clients.get_mut(index)?;
                Some((gateway.clone(), client.get(&path, PATIENCE).ok()?))
            });
            let Some((gateway, response)) = found else { break };
            if let Some(answer) = outcome::of_lookup(&self.texts, number, &task_id, &response)
                && !self.teller.tell(Fact::Fetched { number, gateway, answer })
            {
                return false;
            }
        }
        self.teller.facts.send(Event::AskedAll).is_ok()
    }
}
