//! A wrapper around a handler that logs the start and end of each task to a file: evidence for the drill from inside a
//! worker.
//!
//! It is independent of the worker's account, log and records, so the drill can compare them. Each line is one write(2)
//! to a file opened with O_APPEND, before and after the handler; a killed worker leaves a start without an end. Without
//! `DRILL_JOURNAL` in the environment it does nothing. Called by the binary `worker`, by other workers under a drill,
//! and by the drill as reader.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::handler::{Context, Handler, HandlerError};
use crate::task::{Task, unix_now};

/// The environment variable that names the file.
pub const JOURNAL: &str = "DRILL_JOURNAL";
/// A task with this as its second word makes a journaled handler panic: the drill's poison task.
pub const POISON: &str = "poison";

/// One line of the file, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JournalLine {
    /// The time, in Unix seconds by the clock of this machine.
    pub at: f64,
    /// The process id of the worker.
    pub pid: u32,
    /// `WORKER_ID`
    pub worker: String,
    /// The task's id.
    pub task_id: String,
    /// The number of the delivery, from 1.
    pub delivery: u16,
    /// True at the end of the handler, false at its start.
    pub ended: bool,
}

/// A handler with a journal.
pub struct Journaled<H> {
    handler: H,
    worker: String,
    file: Option<File>,
}

impl<H: Handler> Journaled<H> {
    /// Wraps `handler` of the worker with this id. The environment names the file.
    ///
    /// # Errors
    /// The file cannot be opened; the text names it.
    pub fn new(handler: H, worker: &str) -> Result<Self, String> {
        Self::to(handler, worker, std::env::var_os(JOURNAL))
    }

    fn to(handler: H, worker: &str, path: Option<OsString>) -> Result<Self, String> {
        let open = |path: &Path| -> io::Result<File> { OpenOptions::new().create(true).append(true).open(path) };
        let file = path.filter(|path| !path.is_empty()).map(|path| {
            open(path.as_ref()).map_err(|error| format!("{JOURNAL}: {} cannot be opened: {error}", path.display()))
        });
        Ok(Self { handler, worker: worker.to_owned(), file: file.transpose()? })
    }

    fn write(&self, task: &Task, context: &Context, ended: bool) -> Result<(), HandlerError> {
        let Some(mut file) = self.file.as_ref() else { return Ok(()) };
        let line = JournalLine {
            at: unix_now(),
            pid: std::process::id(),
            worker: self.worker.clone(),
            task_id: task.task_id.clone(),
            delivery: context.delivery,
            ended,
        };
        let text = serde_json::to_string(&line).map(|text| text + "\n").map_err(io::Error::from);
        // The drill would not know of a start without a line.
        text.and_then(|text| file.write_all(text.as_bytes()))
            .map_err(|error| HandlerError::Final(format!("the journal cannot be written: {error}")))
    }
}

impl<H: Handler> Handler for Journaled<H> {
    fn handle(&self, task: &Task, context: &Context) -> Result<Map<String, Value>, HandlerError> {
        self.write(task, context, false)?;
        let _end = End { journaled: self, task, context };
        let poisoned = self.file.is_some() && task.text.split(' ').nth(1) == Some(POISON);
        assert!(!poisoned, "a poison task of the drill");
        self.handler.handle(task, context)
    }
}

/// Writes the end of a task when dropped, so also after a panic.
struct End<'a, H: Handler> {
    journaled: &'a Journaled<H>,
    task: &'a Task,
    context: &'a Context,
}

impl<H: Handler> Drop for End<'_, H> {
    fn drop(&mut self) {
        if let Err(error) = self.journaled.write(self.task, self.context, true) {
            log::error!("{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(text: &str) -> Task {
        Task { task_id: "t".to_owned(), text: text.to_owned(), timestamp: 0.0, work_ms: None }
    }

    fn nothing(_: &Task, _: &Context) -> Result<Map<String, Value>, HandlerError> {
        Ok(Map::new())
    }

    #[test]
    fn starts_and_ends_are_written_and_a_poison_task_panics() {
        let path = std::env::temp_dir().join(format!("lastcall-journal-{}", std::process::id()));
        let journaled = Journaled::to(nothing, "w", Some(path.clone().into())).expect("a file");
        journaled.handle(&task("mark some text"), &Context::new()).expect("handled");
        let poison = std::panic::AssertUnwindSafe(|| journaled.handle(&task("mark poison"), &Context::new()));
        std::panic::catch_unwind(poison).expect_err("poison");
        let text = std::fs::read_to_string(&path).expect("a file");
        std::fs::remove_file(&path).expect("removed");
        let lines: Vec<JournalLine> =
            text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
        assert_eq!(lines.iter().map(|line| line.ended).collect::<Vec<_>>(), [false, true, false, true]);
        assert!(lines.iter().all(|line| (line.worker.as_str(), line.delivery) == ("w", 1) && line.at > 1e9));
    }

    #[test]
    fn handler_without_a_file_writes_nothing_and_runs_poison_tasks() {
        let journaled = Journaled::to(nothing, "w", Some(OsString::new())).expect("no file");
        journaled.handle(&task("mark poison"), &Context::new()).expect("handled");
        let error = Journaled::to(nothing, "w", Some("/no/such/folder/file".into())).map(drop).expect_err("no file");
        assert!(error.starts_with("DRILL_JOURNAL: /no/such/folder/file cannot be opened"), "{error}");
    }
}
