//! The live readers of `tasks` and `results`: threads that tell the run what comes to the topics.
//!
//! For what is shown while the load goes on, and for the ids of tasks whose callers never learned them; the audit reads on its own. From the end
//! that a topic has at the start, with the project's own client, which recovers by itself; being away is told once. Started by the run.

use std::convert::Infallible;

use crossbeam_channel::Sender;

use kafka_share::{Cluster, KafkaError, ReadRecord, Reader, ReaderOptions, StartAt};
use lastcall::task::{ResultsRecord, Task, WorkerStatus};

use super::event::Event;
use super::texts::Texts;

/// The body of the reader of tasks; it ends when the client is interrupted, or when nobody listens.
pub(super) fn read_tasks(
    cluster: Cluster,
    topic: &str,
    texts: &Texts,
    events: &Sender<Event>,
) -> Result<(), Infallible> {
    let item = |record: &ReadRecord| {
        let task = Task::decode(record.key.as_deref(), record.value.as_deref()).ok()?;
        Some((texts.number(&task.text)?, task.task_id))
    };
    let mut reader = Reader::new(cluster, topic, StartAt::Latest, ReaderOptions::default());
    loop {
        match reader.poll() {
            Ok(records) => {
                let tasks: Vec<(u64, String)> = records.iter().filter_map(item).collect();
                if events.send(Event::Tasks(tasks)).is_err() {
                    return Ok(());
                }
            }
            Err(KafkaError::Interrupted) => return Ok(()),
            // The other reader tells.
            Err(_) => {}
        }
    }
}

/// The body of the reader of results; it ends alike.
pub(super) fn read_results(cluster: Cluster, topic: &str, events: &Sender<Event>) -> Result<(), Infallible> {
    let mut reader = Reader::new(cluster, topic, StartAt::Latest, ReaderOptions::default());
    let mut away = false;
    loop {
        let event = match reader.poll() {
            Ok(records) => {
                away = false;
                let statuses = records.iter().filter_map(status).collect();
                Some(Event::Read { answered: reader.last_answer(), statuses })
            }
            Err(KafkaError::Interrupted) => return Ok(()),
            Err(_) if away => None,
            Err(error) => {
                away = true;
                Some(Event::Away(error.to_string()))
            }
        };
        if event.is_some_and(|event| events.send(event).is_err()) {
            return Ok(());
        }
    }
}

fn status(record: &ReadRecord) -> Option<WorkerStatus> {
    match ResultsRecord::decode(Some(record.value.as_deref()?)) {
        ResultsRecord::Status(status) => Some(*status),
        _ => None,
    }
}
