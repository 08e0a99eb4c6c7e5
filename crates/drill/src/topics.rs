//! The live readers of `tasks` and `results`: threads that send new records to the run.
//!
//! The run uses them for its progress, and for the ids of tasks whose callers never learned them; the audit reads on
//! its own. They begin at the ends of the topics and use the project's own client, which reconnects by itself. An
//! outage is reported once. Started by the run.

use std::convert::Infallible;

use crossbeam_channel::Sender;

use kafka_share::{Cluster, KafkaError, ReadRecord, Reader, ReaderOptions, StartAt};
use lastcall::task::{ResultsRecord, Task, WorkerStatus};

use super::event::Event;
use super::texts::Texts;

/// The body of the reader of tasks; ends when the client is interrupted or the run's channel is closed.
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
            // The reader of results reports outages.
            Err(_) => {}
        }
    }
}

/// The body of the reader of results; ends likewise.
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
